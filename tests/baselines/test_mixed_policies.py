"""Policies that mix: what they do, the crossover on paper, and who may run where."""

from __future__ import annotations

import math

import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines.mixed import MIXED_SYSTEMS, SLACK_SYSTEMS, costs_per_token_ns, eb_plus, mixed_first
from llmsched_env.baselines.registry import default_names, entry, planner_of
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.config.checks import LARGEST
from llmsched_env.cost import MIXED_FITS, CostModel, MixedCost
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate, play
from llmsched_env.policy import EpisodeContext
from llmsched_env.simulator import Simulator
from llmsched_env.snapshot import snapshot

BATCH = Scenario("gsm8k", "test", num_clients=8, num_requests=40, queue="shared", lengths="hidden", mixed_tokens=64)
SERVING = make_scenario("LLMSched/Mixed-v0", split="test", num_clients=16, num_requests=80, mixed_tokens=128)


@pytest.mark.parametrize("name", MIXED_SYSTEMS)
def test_systems_read_whenever_there_is_something_to_read(name):
    item = entry(name, BATCH)
    assert item.name == name
    assert {key: getattr(item.scenario, key) for key in MIXED_SYSTEMS[name]} == MIXED_SYSTEMS[name]
    simulator, seen = Simulator(build_problem(item.scenario, 0)), set()
    item.policy.reset(EpisodeContext(item.scenario, 300.0))
    while not simulator.done:
        before, readable = int(simulator.view.mixed), simulator.can_prefill
        simulator.step(item.policy.act(simulator.view) if simulator.has_choice else 0)
        assert simulator.view.mixed - before == readable
        seen.add(readable)
    assert seen == {True, False}
    assert snapshot(play(item.policy, item.scenario, 0).totals) == snapshot(simulator.totals)


def test_fairbatching_reads_within_the_slack_of_the_running_requests():
    item = entry("fairbatching", SERVING)
    assert {key: getattr(item.scenario, key) for key in SLACK_SYSTEMS["fairbatching"]} == SLACK_SYSTEMS["fairbatching"]
    simulator, read = Simulator(build_problem(item.scenario, 0)), set()
    item.policy.reset(EpisodeContext(item.scenario, 300.0))
    while not simulator.done:
        if simulator.view.active > 0 and simulator.can_prefill:
            read.add(min(2, int(simulator.view.chunk_tokens) // 64))
        simulator.step(item.policy.act(simulator.view) if simulator.has_choice else 0)
    assert len(read) > 1, "the budget never varied"
    assert snapshot(play(item.policy, item.scenario, 0).totals) == snapshot(simulator.totals)


def test_a_limit_of_tpot_that_binds_nobody_makes_it_vllm():
    loose = SERVING.replace(**{name: LARGEST[name] for name in ("ttft_s", "tpot_s")})
    ends = [play(one.policy, one.scenario, 0).view for one in (entry(n, loose) for n in ("fairbatching", "vllm_v1"))]
    assert ends[0].clock_ns == ends[1].clock_ns
    assert ends[0].mixed == ends[1].mixed > 0


def test_systems_decode_while_nobody_is_idle():
    """One client: what is read is never beside a decode, and each request is decoded to its end before the next."""
    one = BATCH.replace(num_clients=1, num_requests=5)
    log = play(mixed_first(), one, 0, record=True).log
    assert not log["prefill"][log["mixed"] == 0].any()
    assert log["prefill"][log["mixed"] == 1].all()
    assert log["mixed"].sum() >= 5


def mixed_advantage_ns(*arguments):
    exclusive, mixed = costs_per_token_ns(*arguments)
    return exclusive - mixed


def simple(**changes):
    cost = CostModel("simple", 100, 1, 50, 1)
    mixed = MixedCost(alpha_ns=100, beta_prompt_ns=1, beta_active_ns=1)
    return Scenario(
        "gsm8k", num_clients=20, queue="shared", lengths="hidden", cost=cost, mixed_tokens=64, mixed_cost=mixed
    ).replace(**changes)


def test_crossover_on_paper():
    """alpha_p / alpha_d = 2, slopes all 1: then only fixed times count.

    With theta = 1/2 the price is 1 + ln(1/2) = 0.30685 = 2 / N, N = 6.5178. A cycle of exclusive batching refills
    k = 10 clients for 100 + 50 * ln 2 * N ns; mixed batching takes 1 + N steps of 100 ns a request on 20 clients.
    """
    output = 2.0 / (1.0 - math.log(2.0))
    exclusive = (100 + 50 * math.log(2.0) * output) / 10
    mixed = 100 * (1 + output) / 20
    found = mixed_advantage_ns(simple(), 13.5, output)
    assert found == pytest.approx((exclusive - mixed) / (13.5 + output))
    dear = simple(mixed_cost=MixedCost(alpha_ns=100, beta_prompt_ns=1, beta_active_ns=1, interference_ns=8))
    share = output / (13.5 + output)
    assert found - mixed_advantage_ns(dear, 13.5, output) == pytest.approx(8 * share**2)
    steep = simple(mixed_cost=MixedCost(alpha_ns=100, beta_prompt_ns=3, beta_active_ns=6))
    assert found - mixed_advantage_ns(steep, 13.5, output) == pytest.approx(2 + 3 * share)


def test_eb_plus_is_the_better_half_by_its_own_account():
    cheap, dear = (simple(mixed_cost=MixedCost(alpha_ns=a, beta_prompt_ns=1, beta_active_ns=1)) for a in (1, 900))
    for scenario, twin in ((cheap, "mixed_first"), (dear, "eb_threshold")):
        place = scenario.replace(split="test", num_requests=60)
        assert play(eb_plus(), place, 0).view.clock_ns == play(entry(twin, place).policy, place, 0).view.clock_ns
    assert play(mixed_first(), cheap.replace(split="test", num_requests=60), 0).view.mixed > 0


@pytest.mark.parametrize("name", MIXED_FITS)
def test_published_fits_favour_what_the_paper_says(name):
    """Much bandwidth and few clients: mixed; little and many: exclusive (Table 4 of arXiv 2606.00516)."""
    place = Scenario("gsm8k", queue="shared", lengths="hidden", cost=name, mixed_tokens=4096, mixed_cost="fitted")
    few = mixed_advantage_ns(place.replace(num_clients=32), 512.0, 256.0)
    many = mixed_advantage_ns(place.replace(num_clients=2048), 512.0, 256.0)
    assert few > many
    assert few > 0 or name != "qwen3-8b-h200"
    assert many < 0 or name != "qwen3-8b-rtx-pro-6000"


def test_who_may_run_where():
    with pytest.raises(ConfigError, match="policy 'orca' needs mixed iterations: take a scenario with mixed_tokens"):
        entry("orca", make_scenario("LLMSched/GSM8K-Blind-v0"))
    with pytest.raises(ConfigError, match="policy 'fairbatching' needs SLOs: take a scenario with ttft_s and tpot_s"):
        entry("fairbatching", BATCH)
    with pytest.raises(ConfigError, match="policy 'fairbatching' needs mixed iterations"):
        entry("fairbatching", make_scenario("LLMSched/Serving-v0"))
    with pytest.raises(ConfigError, match="policy 'beam' knows no mixed iterations"):
        entry("beam", BATCH)
    with pytest.raises(ConfigError, match="needs mixed iterations with the sum form"):
        play(eb_plus(), BATCH.replace(mixed_cost="overlap"), 0)
    assert planner_of(BATCH) == "rollout"
    assert planner_of(SERVING) == "lookahead"
    for scenario in (BATCH, SERVING, BATCH.replace(mixed_cost="overlap")):
        names = default_names(scenario)
        assert {"mixed_first", "orca", "sarathi_serve", "vllm_v1", "lagrangian"} <= set(names)
        assert ("fairbatching" in names) == scenario.serving
        assert ("eb_plus" in names) == (scenario.mixed_cost != "overlap")
        assert "beam" not in names
        for name in names:
            entry(name, scenario)


@pytest.mark.usefixtures("usual_tuning")
def test_rollout_tries_the_mixed_iteration():
    """With the overlap form a mixed iteration hides a decode: whoever may take it is not slower."""
    place = BATCH.replace(mixed_cost="overlap", lengths="known", num_requests=24)
    two, three = (
        evaluate(entry("rollout", scenario).policy, scenario, cases=3).columns["makespan_s"]
        for scenario in (place.replace(mixed_tokens=None, mixed_cost="sum"), place)
    )
    assert (three <= two).all()
    assert (three < two).any()
