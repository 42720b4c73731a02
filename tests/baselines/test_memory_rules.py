"""Rules where the KV cache is a budget."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines.memory_aware import memory_aware, most_clients
from llmsched_env.baselines.memory_methods import MEMORY_METHODS
from llmsched_env.baselines.registry import default_names, entry, make_policy
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate, play

SMALL = make_scenario(
    "LLMSched/KVMemory-v0", split="test", num_clients=60, num_requests=120, kv_budget_tokens=6_000, choose_cap=False
)


def test_the_cap_on_paper():
    """Without spread it is the budget over the mean; with it, what the quadratic equation says."""
    assert most_clients(1000, 10, 0, 0.05) == pytest.approx(100)
    assert most_clients(1000, 10, 3, 0.5) == pytest.approx(100), "the median of a normal sum is its mean"
    found = most_clients(1000, 10, 3, 0.05)
    assert 10 * found + 1.6448536 * 3 * np.sqrt(found) == pytest.approx(1000, rel=1e-6)
    assert most_clients(1000, 10, 3, 0.01) < found < most_clients(1000, 10, 3, 0.2)


@pytest.mark.parametrize("choose_cap", [False, True])
def test_it_stays_below_its_cap_and_hardly_preempts(choose_cap):
    scenario = SMALL.replace(choose_cap=choose_cap, num_clients=48, prefill_token_cap=700)
    runs = {
        name: play(entry(name, scenario).policy, scenario, 0, record=True) for name in ("memory_aware", "prefill_first")
    }
    preemptions = {name: run.totals.preemptions for name, run in runs.items()}
    assert preemptions["prefill_first"] > 20 * max(1, preemptions["memory_aware"])
    # Some 12 clients of 413 tokens are sure to fit; a sixth of 48 is 6, two are 12.
    assert 6 <= runs["memory_aware"].totals.max_active <= 13 < runs["prefill_first"].totals.max_active


@pytest.mark.parametrize(
    ("changes", "never"),
    [
        ({"kv_admission": "reserve", "kv_reserve_tokens": 512}, True),
        ({"kv_admission": "predicted", "lengths": "known", "order": "shortest_first"}, True),
        ({"kv_watermark": 0.01}, False),
    ],
)
def test_admissions(changes, never):
    """Who sets the worst case aside, or knows lengths and looks ahead, never preempts; a watermark does."""
    found = evaluate(entry("prefill_first", SMALL).policy, SMALL.replace(**changes), 3)
    assert (found.columns["preemptions"] == 0).all() == never
    assert (found.columns["kv_peak"] <= 1).all()
    assert (found.columns["kv_peak"] > 0.5).all()
    assert np.isfinite(found.columns["makespan_s"]).all()


def test_it_is_offered_where_it_makes_sense():
    assert "memory_aware" in default_names(SMALL)
    assert "hybrid" not in default_names(SMALL)
    assert "memory_aware" not in default_names(Scenario())
    for name, scenario in (("memory_aware", Scenario()), ("hybrid", SMALL)):
        with pytest.raises(ConfigError, match="budget"):
            entry(name, scenario)
    with pytest.raises(ConfigError, match=r"risk = 0 is out of range"):
        memory_aware(0)


def test_rollout_draws_lengths_that_the_cache_holds():
    """The budget is that of the longest request here, and the population has longer ones."""
    few = SMALL.replace(num_requests=12, num_clients=6, lengths="hidden")
    tokens = int(build_problem(few, 0).requests[:, :2].sum(axis=1).max())
    tight = few.replace(kv_budget_tokens=-(-tokens // 16) * 16)
    assert play(make_policy("rollout"), tight, 0).done


BROUGHT = {"mc_sf": "shortest_first", "svf": "smallest_volume_first", "sorted_f": "sorted_f"}


@pytest.mark.parametrize("name", MEMORY_METHODS)
def test_a_method_brings_order_admission_and_lengths(name):
    """Whatever the scenario has, also reserved tokens or vLLM's rules, which go with no other admission."""
    for changes in ({}, {"kv_admission": "reserve", "kv_reserve_tokens": 9}, {"kv_rule": "vllm_v1"}):
        item = entry(name, SMALL.replace(**changes))
        assert (item.name, item.kind) == (name, "rule")
        assert {key: getattr(item.scenario, key) for key in MEMORY_METHODS[name]} == MEMORY_METHODS[name]
    assert name in default_names(SMALL.replace(workload="serving") if name == "aged_sf" else SMALL)
    assert name not in default_names(Scenario())
    with pytest.raises(ConfigError, match=f"'{name}' is a method with .*order='{MEMORY_METHODS[name]['order']}'"):
        play(item.policy, SMALL, 0)
    for refuse in (lambda: entry(name, Scenario()), lambda: play(item.policy, Scenario(), 0)):
        with pytest.raises(ConfigError, match=f"policy '{name}' needs a budget"):
            refuse()


def test_methods_that_know_lengths_say_so_and_never_preempt():
    for name, order in BROUGHT.items():
        item = entry(name, SMALL)
        found = evaluate(item.policy, item.scenario, 2)
        assert found.clairvoyant
        assert item.scenario.order == order
        assert (found.columns["preemptions"] == 0).all()


def test_sorted_f_sorts_a_batch():
    served = SMALL.replace(workload="serving")
    assert "sorted_f" in default_names(SMALL)
    assert {"svf", "aged_sf"} == {"svf", "aged_sf", "sorted_f"} & set(default_names(served))
    item = entry("sorted_f", served)
    with pytest.raises(ConfigError, match="'sorted_f' where requests come over time: it sorts a batch"):
        play(item.policy, item.scenario, 0)
    with pytest.raises(ConfigError, match=r"order = 'sorted_f' with load = 0.5: .*leave load out"):
        entry("sorted_f", served.replace(load=0.5))
    with pytest.raises(ConfigError, match=r"order = 'sorted_f' with no KV budget: .*give kv_budget_tokens"):
        Scenario(order="sorted_f")


def test_methods_are_not_paired_with_orders():
    ordered = SMALL.replace(ttft_s=9.0, tpot_s=0.5, order="fcfs", choose_order=True)
    names = default_names(ordered)
    assert {"svf", "threshold@late_last"} <= set(names)
    assert "svf@late_last" not in names
    assert entry("svf", ordered).scenario.order == "smallest_volume_first"
    with pytest.raises(ConfigError, match="'svf' is no rule, or brings its own order"):
        entry("svf@late_last", ordered)


def test_intervals_cost_what_the_paper_says():
    """In mean latency A_min, which alone preempts, is about as good as MC-SF, A_max worse (2508.14544)."""
    few = SMALL.replace(workload="gsm8k-smooth", num_requests=400, kv_budget_tokens=9_000)
    found = {}
    for name in ("mc_sf", "a_min", "a_max"):
        item = entry(name, few)
        found[name] = evaluate(item.policy, item.scenario, 5).columns
        assert item.scenario.shows_lengths == (name == "mc_sf")
    latency = {name: columns["mean_latency_s"].mean() for name, columns in found.items()}
    assert latency["a_min"] == pytest.approx(latency["mc_sf"], rel=0.1)
    assert latency["a_max"] > 1.1 * latency["mc_sf"]
    assert found["a_min"]["preemptions"].mean() > 5
    assert found["a_max"]["preemptions"].sum() == 0
