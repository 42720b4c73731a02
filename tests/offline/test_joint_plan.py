"""Joint plans: what they come to when played, the search beside exact optima, the store, and the engine's replay."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched_env import Scenario, make_scenario
from llmsched_env.baselines import entry
from llmsched_env.baselines.iteration import planned
from llmsched_env.cases import build_problem, has_plans
from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate
from llmsched_env.offline import stage_model
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint import Effort, joint_plan, played, pools, search, starts, store, stored_plan
from llmsched_env.offline.kernels.instants import Instants
from llmsched_env.policy import EpisodeContext
from llmsched_env.workload import Requests, workload

COST = CostModel(
    "joint", alpha_prefill_ns=90, beta_prefill_ns=2, alpha_decode_ns=40, beta_decode_ns=3, prefill_token_cap=20
)
QUICK = Effort(tries=3, anneal_moves=500, repair_moves=4_000)


def batch(prompts, outputs):
    return Requests.of(prompts, outputs)


def drawn(seed, n, *, prompts=(1, 9), outputs=(1, 30)):
    rng = np.random.default_rng(seed)
    return batch(rng.integers(*prompts, n), rng.integers(*outputs, n))


def test_a_plan_done_on_paper():
    """Two clients, cap 20: (8, 8) is read at 0, the third prompt when the first request ends, after 3 decodes."""
    requests = batch([8, 8, 15], [4, 6, 3])
    plan = played(Case.of(requests, 2, COST), [0, 1, 2], [0, 3])
    assert plan.prefill_of.tolist() == [0, 0, 1]
    assert plan.client_of.tolist() == [0, 1, 0]
    assert (plan.prefills, plan.decodes) == (2, 5)
    # Prefills 2 * 90 + 2 * 31 tokens, decodes 5 * 40 + 3 * (3 + 5 + 2) tokens.
    assert plan.makespan_ns == 180 + 62 + 200 + 30
    assert plan.rank.tolist() == [0, 1, 2]
    # A prefill at which nobody can be read is none.
    assert played(Case.of(requests, 2, COST), [0, 1, 2], [0, 1, 3]).instants.tolist() == [0, 3]


def violates(case, instants, start_of, horizon):
    """Whether starts at prefills break the clients, the cap or the horizon, counted from the definition."""
    ends = instants[start_of] + case.decodes
    free = np.maximum(np.searchsorted(instants, ends), start_of + 1)
    gaps = np.arange(len(instants))
    held = ((start_of[:, None] <= gaps) & (gaps < free[:, None])).sum(axis=0)
    load = np.bincount(start_of, case.requests.prompt_tokens, minlength=len(instants))
    return ends.max() > horizon or held.max() > case.clients or load.max() > case.cost.prefill_token_cap


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_a_cut_that_violates_nothing_is_played_no_later(seed):
    rng = np.random.default_rng(seed)
    case = Case.of(drawn(seed, int(rng.integers(2, 25))), int(rng.integers(1, 8)), COST)
    count = int(rng.integers(1, 8))
    instants = np.sort(rng.integers(0, 60, count))
    instants[0] = 0
    start_of = rng.integers(0, count, len(case.decodes))
    horizon = int((instants[start_of] + case.decodes).max())
    if violates(case, instants, start_of, horizon):
        return
    sequence = np.argsort(start_of, kind="stable")
    plan = played(case, sequence, instants)
    assert plan.decodes <= horizon
    assert plan.prefills <= count
    assert (plan.instants[plan.prefill_of] <= instants[start_of]).all()


def test_cuts_that_violate_nothing_are_drawn():
    """So that the law above says something."""
    found = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        case = Case.of(drawn(seed, int(rng.integers(2, 6))), 8, COST)
        instants = np.array([0, 10, 20, 30, 40])
        start_of = rng.integers(0, 5, len(case.decodes))
        found += not violates(case, instants, start_of, 10**6)
    assert found > 50


@pytest.mark.parametrize("seed", range(6))
def test_a_search_counts_what_it_moves(seed):
    """Clients, tokens and ends after many moves are those counted anew; the best one violates as much as it says."""
    rng = np.random.default_rng(seed)
    n, clients, count, horizon = 60, 8, 12, 300
    case = Case.of(drawn(seed, n, outputs=(1, 60)), clients, COST)
    instants = np.sort(rng.integers(0, 250, count)).astype(np.int32)
    instants[:2] = 0
    start_of = rng.integers(0, count, n).astype(np.int32)
    decodes, prompts = case.decodes.astype(np.int32), case.requests.prompt_tokens
    tried = Instants(decodes, prompts, instants, start_of, clients, horizon, 20, seed)
    temperatures = np.array([2, 1]) * tried.client_weight * tried.unit
    least = tried.run(30_000, temperatures, shifts=200, growth=seed % 2)
    at, start_of = np.asarray(tried.instants), np.asarray(tried.start_of)
    assert (np.diff(at) >= 0).all()
    assert (at[start_of] + case.decodes <= horizon).all()
    free = np.maximum(np.searchsorted(at, at[start_of] + case.decodes), start_of + 1)
    assert np.asarray(tried.end_of).tolist() == free.tolist()
    gaps = np.arange(count)
    held = ((start_of[:, None] <= gaps) & (gaps < free[:, None])).sum(axis=0)
    assert np.asarray(tried.held).tolist() == held.tolist()
    assert (
        np.asarray(tried.load).tolist() == np.bincount(start_of, case.requests.prompt_tokens, minlength=count).tolist()
    )
    done = at[start_of] + case.decodes
    lists = [*(start_of == k for k in gaps), *(done == x for x in range(horizon + 1))]
    for place, members in enumerate(lists):
        kind, met = int(place >= count), []
        i = tried.first_of[place]
        while i >= 0:
            met.append(i)
            i = tried.after[kind, i]
        assert sorted(met) == np.flatnonzero(members).tolist()
    at, start_of = np.asarray(tried.best_instants), np.asarray(tried.best_start)
    free = np.maximum(np.searchsorted(at, at[start_of] + case.decodes), start_of + 1)
    held = ((start_of[:, None] <= gaps) & (gaps < free[:, None])).sum(axis=0)
    load = np.bincount(start_of, case.requests.prompt_tokens, minlength=count)
    assert least == np.maximum(held - clients, 0).sum() * tried.client_weight + np.maximum(load - 20, 0).sum()


@pytest.mark.parametrize("seed", range(5))
def test_few_requests_are_planned_as_the_exact_model_does(seed):
    requests = drawn(seed, 6, outputs=(1, 8))
    plan = joint_plan(requests, 2, COST, effort=QUICK)
    assert plan.makespan_ns == stage_model(requests, 2, COST).makespan_ns
    assert plan.proved


def test_the_search_finds_optima_that_the_exact_model_proves(monkeypatch):
    """The same without the exact model: most optima, and never less than one."""
    monkeypatch.setattr("llmsched_env.offline.joint.search.EXACT_REQUESTS", 0)
    met = 0
    for seed in range(8):
        requests = drawn(seed, 6, outputs=(1, 8))
        plan = joint_plan(requests, 2, COST, effort=Effort(tries=12, anneal_moves=500, repair_moves=4_000))
        best_ns = stage_model(requests, 2, COST).makespan_ns
        assert plan.makespan_ns >= best_ns
        met += plan.makespan_ns == best_ns
    assert met >= 6


def test_plans_repeat_and_are_no_worse_than_their_start():
    requests = workload("gsm8k-smooth").requests("validation", 3, num_requests=120)
    start = joint_plan(requests, 20, effort=Effort(tries=0))
    more = Effort(tries=8, anneal_moves=1_000, repair_moves=10_000)
    plan, again = (joint_plan(requests, 20, effort=more, seed=5) for _ in range(2))
    assert plan == again
    assert plan.bound_ns <= plan.makespan_ns < start.makespan_ns
    assert (start.stage, plan.stage) == ("greedy", "search")


def test_a_plan_is_the_same_on_one_core(monkeypatch):
    """Tries are made two at a time, however many threads make them."""
    requests = workload("gsm8k").requests("validation", 4, num_requests=90)
    more = Effort(tries=9, anneal_moves=200, repair_moves=2_000)
    plan = joint_plan(requests, 15, effort=more)
    monkeypatch.setattr(search, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    assert joint_plan(requests, 15, effort=more) == plan


@pytest.mark.parametrize("step", [-2, -1, 0, 1, 2])
def test_a_plan_annealed_again_is_shorter(step):
    """With prefills more or less than the best plan has; what it says of itself is what it comes to when played."""
    case = Case.of(workload("gsm8k").requests("validation", 5, num_requests=120), 20, cost_model("llama-65b-paper"))
    order = np.arange(120)  # first come, first served: there is much to gain
    best = played(case, order, starts.when_idle(case, order, 1))
    tries = search._Search(case, Effort(anneal_moves=200, repair_moves=2_000), 0, [best])
    plan = tries._reheated((step, 1.0), np.random.default_rng(0))
    assert tries.best is best
    assert plan is not None
    assert plan.makespan_ns < best.makespan_ns
    again = played(case, plan.sequence, plan.instants)
    assert (again.makespan_ns, again.prefills) == (plan.makespan_ns, plan.prefills)


@pytest.mark.parametrize(("clients", "requests"), [(4, 20), (6, 40)])
def test_with_few_requests_it_is_better_than_the_hybrid(clients, requests):
    """Which has balanced queues: without them as a start the plan was worse, 3.1 % against 1.4 %."""
    where = Scenario(workload="gsm8k-smooth", split="validation", num_requests=requests, num_clients=clients)
    item = entry("hybrid", where)
    ends = evaluate(item.policy, item.scenario, cases=2).columns["makespan_s"]
    for case, end_s in enumerate(ends):
        plan = joint_plan(where.source.requests("validation", case, num_requests=requests), clients, effort=QUICK)
        assert plan.makespan_ns < 1e9 * end_s


def test_the_engine_plays_a_plan_to_the_nanosecond():
    """As the method of a comparison; clients too."""
    scenario = make_scenario("LLMSched/GSM8K-v0", num_requests=60, num_clients=8, queue="shared", order="joint")
    requests = scenario.source.requests(scenario.split, 0, num_requests=60)
    plan = stored_plan(requests, 8, scenario.cost_model)
    item = entry("joint", make_scenario("LLMSched/GSM8K-v0", num_requests=60, num_clients=8))
    assert item.scenario == scenario
    result = evaluate(item.policy, item.scenario, cases=[0])
    assert round(result.columns["makespan_s"][0] * 1e9) == plan.makespan_ns
    assert build_problem(scenario, 0).planned == tuple(plan.instants.tolist())


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k-smooth"])
def test_shipped_plans_are_better_than_the_beam(name):
    """The beam of width 50 has 0.5 % and 0.9 % on its order; these need no search here."""
    requests = workload(name).requests("test", 0)
    assert store.is_shipped(requests, 200, cost_model("llama-65b-paper"))
    assert 0 < stored_plan(requests, 200, cost_model("llama-65b-paper")).gap < 0.0026


def test_a_damaged_plan_is_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(store, "joint_plan", lambda *given, **named: joint_plan(*given, **{**named, "effort": QUICK}))
    requests = drawn(1, 40)
    plan = stored_plan(requests, 5, COST)
    (path,) = tmp_path.rglob("joint/*.npz")
    assert stored_plan(requests, 5, COST) == plan
    path.write_bytes(path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        assert stored_plan(requests, 5, COST) == plan
    assert "is damaged" in caplog.text
    with path.open("wb") as file:
        np.savez(file, prefill_of=np.full(40, 7), instants=np.array([0]))
    assert stored_plan(requests, 5, COST) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queue": "client"}, "it is the order of one line"),
        ({"lengths": "hidden"}, "it plans lengths; set 'known', or 'predicted'"),
        ({"ttft_s": 1.0, "tpot_s": 0.2, "load": 0.9}, "makespan of a batch"),
        ({"kv_budget_tokens": 10**6}, "it knows no memory"),
        ({"mixed_tokens": 512}, "prefills and decodes only"),
        ({"cost": CostModel("context", 1, 1, 1, 1, gamma_decode_ns=1)}, "needs an affine cost model"),
    ],
)
def test_scenarios_without_a_plan_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Scenario(**{"queue": "shared", "order": "joint", **change})


@pytest.mark.parametrize(
    ("requests", "clients", "cost", "message"),
    [
        (batch([30, 1], [2, 2]), 2, COST, "a prompt of 30 tokens exceeds the cap of 20"),
        (Requests.of([1, 1], [2, 2], release_ns=[0, 5]), 2, COST, "knows no release times"),
        (batch([1, 1], [2, 2]), 0, COST, "clients = 0 is out of range"),
        (batch([1, 1], [2, 2]), 2, CostModel("c", 1, 1, 1, 1, gamma_decode_ns=1), "is not affine"),
    ],
)
def test_batches_that_cannot_be_planned(requests, clients, cost, message):
    with pytest.raises(ConfigError, match=message):
        joint_plan(requests, clients, cost)


@pytest.mark.parametrize(
    ("requests", "clients"),
    [
        (batch([1], [1]), 3),
        (batch([5] * 4, [1, 1, 1, 1]), 9),
        (batch([20] * 12, [3] * 12), 12),
        (batch([1] * 15, [1] * 14 + [5000]), 2),
        (drawn(3, 30), 1),
    ],
)
def test_odd_batches(requests, clients):
    """One request, fewer than clients, prompts that fill a prefill, one longer than all together, one client."""
    plan = joint_plan(requests, clients, COST, effort=QUICK)
    assert plan.bound_ns <= plan.makespan_ns
    assert sorted(plan.sequence.tolist()) == list(range(len(requests)))


BINS = batch([11, 9, 3] * 5, [1, 4, 2] * 5)
"""Prompts that do not fill prefills, so that the greedy plan is above the bound and a search begins."""


@pytest.mark.parametrize(
    "cost",
    [
        CostModel("free decodes", 1000000000, 0, 0, 1, prefill_token_cap=20),
        CostModel("cheap", 1000000000000, 0, 1, 0, prefill_token_cap=20),
        CostModel("equal", 1, 0, 1, 0, prefill_token_cap=20),
        CostModel("free prefills", 0, 1, 1, 0, prefill_token_cap=20),
    ],
)
def test_no_cost_of_an_iteration_makes_the_table_of_decodes_long(cost, monkeypatch):
    """A gap in ns is no number of decodes: none has more than the batch has tokens."""
    horizons = []

    def noted(*given):
        horizons.append(given[5])
        return Instants(*given)

    monkeypatch.setattr("llmsched_env.offline.joint.search.Instants", noted)
    for seed in range(20):
        requests = drawn(seed, 14, prompts=(1, 12), outputs=(1, 5))
        plan = joint_plan(requests, 5, cost, effort=Effort(4, 20, 20), seed=seed)
        assert plan.bound_ns <= plan.makespan_ns
        assert max(horizons, default=0) <= int((requests.output_tokens - 1).sum())
        horizons.clear()


def test_more_decodes_than_the_table_holds_are_refused():
    with pytest.raises(
        ConfigError, match="a batch of at least 83,886,070 decodes: a joint plan has at most 16,777,216"
    ):
        joint_plan(batch([1] * 10, [2**23] * 10), 1, COST)


def test_clients_without_a_request_cost_nothing():
    few, many = (joint_plan(BINS, clients, COST, effort=QUICK) for clients in (15, 2**31 - 1))
    assert few == many


@pytest.mark.parametrize("seed", [-1, 2**200, np.int64(7), np.int32(-4)])
def test_any_whole_number_is_a_seed(seed):
    plan, again = (joint_plan(drawn(2, 20), 4, COST, effort=QUICK, seed=given) for given in (seed, int(seed)))
    assert plan == again


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_no_other_seeds(seed):
    with pytest.raises(ConfigError, match="is not a whole number: pass an int"):
        joint_plan(BINS, 4, COST, seed=seed)


@pytest.mark.parametrize("goal", [float("nan"), -0.1, "small", None])
def test_goals_are_gaps(goal):
    with pytest.raises(ConfigError, match=r"goal = .* of an effort: give a gap of at least 0"):
        Effort(goal=goal)


def test_efforts_take_the_integers_of_numpy():
    assert Effort(tries=np.int64(3)) == Effort(tries=3)
    with pytest.raises(ConfigError, match=r"tries = 1.5 of an effort: give a whole number"):
        Effort(tries=1.5)


def test_a_plan_is_the_same_when_it_is_read_again(tmp_path, monkeypatch):
    """Its order within each prefill, too, by which clients are taken; and whether it was proved."""
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path)
    for seed in range(30):
        requests = drawn(seed, 4 + seed % 20, outputs=(1, 12))
        first, again = (stored_plan(requests, 1 + seed % 4, COST, effort=Effort(2, 100, 400)) for _ in range(2))
        assert first == again
        assert (first.stage, first.makespan_ns) == (again.stage, again.makespan_ns)
        assert first.client_of.tolist() == again.client_of.tolist()


def test_a_kept_plan_is_not_taken_for_what_cannot_be_planned(tmp_path, monkeypatch):
    """Release times and context terms are no part of a plan's name."""
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path)
    requests = drawn(1, 20)
    stored_plan(requests, 4, COST, effort=QUICK)
    later = Requests.of(requests.prompt_tokens, requests.output_tokens, release_ns=np.arange(20))
    with pytest.raises(ConfigError, match="knows no release times"):
        stored_plan(later, 4, COST, effort=QUICK)
    with pytest.raises(ConfigError, match="is not affine"):
        stored_plan(requests, 4, dataclasses.replace(COST, gamma_decode_ns=1), effort=QUICK)


@pytest.mark.parametrize(
    "change",
    [
        {"instants": np.array(5)},
        {"instants": np.zeros((3, 3), np.int64)},
        {"prefill_of": np.full(20, np.nan)},
        {"prefill_of": np.array(["a"] * 20)},
        {"prefill_of": np.arange(20), "instants": np.arange(20) * 400},
        {"stage": "proved"},
        {"counts": np.array([1, 1])},
    ],
)
def test_what_a_kept_plan_says_is_checked(change, tmp_path, monkeypatch, caplog):
    """Other shapes and types; a plan that may be played, but was made for another batch."""
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path)
    requests = drawn(1, 20)
    plan = stored_plan(requests, 4, COST, effort=QUICK)
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path) as kept:
        changed = {**kept, **change}
    with path.open("wb") as file:
        np.savez(file, **changed)
    with caplog.at_level(logging.WARNING):
        assert stored_plan(requests, 4, COST, effort=QUICK) == plan
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("change", [{"lengths": "predicted"}, {"kv_budget_tokens": 10**6, "queue": "shared"}])
def test_a_default_comparison_has_no_plans_where_none_can_be_followed(change, monkeypatch):
    """Also once all plans of a pool are shipped."""
    monkeypatch.setattr("llmsched_env.cases.is_shipped", lambda *given: True)
    assert has_plans(make_scenario("LLMSched/GSM8K-v0"))
    assert not has_plans(make_scenario("LLMSched/GSM8K-v0", **change))


def test_bad_plans_and_efforts():
    case = Case.of(drawn(1, 4), 2, COST)
    with pytest.raises(ConfigError, match="name each of the 4 requests once"):
        played(case, [0, 1, 1, 2], [0])
    with pytest.raises(ConfigError, match="give one of 1 prefills for each"):
        store.plan_of(case, np.array([0, 0, 1, 0]), np.array([0]))
    with pytest.raises(ConfigError, match="ascend"):
        store.plan_of(case, np.array([0, 0, 1, 0]), np.array([5, 2]))
    with pytest.raises(ConfigError, match="tries = -1 of an effort"):
        Effort(tries=-1)
    with pytest.raises(ConfigError, match="take a scenario with queue='shared' and order='joint'"):
        planned().reset(EpisodeContext(Scenario(), 1.0))


def test_shipped_plans_are_made_and_verified(tmp_path, monkeypatch, capsys):
    """Those that ship are played; two are made, written and played; a file that is none ends with status 1."""
    assert pools.main(["--verify"]) == 0
    assert capsys.readouterr().out.count("% at most") == 2
    monkeypatch.setattr(pools, "pool_path", lambda name, split: tmp_path / f"{name}_{split}.npz")
    monkeypatch.setattr(pools, "EFFORT", Effort(tries=0))
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path)
    made = ["--workloads", "gsm8k", "--splits", "validation", "--cases", "2"]
    assert pools.main(made) == 0
    assert "gsm8k_validation.npz: 2 of 100 cases, gap " in capsys.readouterr().out
    rows = store.shipped_plans(tmp_path / "gsm8k_validation.npz")
    requests, cost = workload("gsm8k").requests("validation", 1), cost_model("llama-65b-paper")
    place, _ = rows[store.plan_digest(requests, 200, cost)]
    assert place.tolist() == joint_plan(requests, 200, cost, effort=Effort(tries=0)).prefill_of.tolist()
    (tmp_path / "gsm8k_validation.npz").write_bytes(b"no archive")
    assert pools.main([*made[:4], "--verify"]) == 1
    assert "is damaged" in capsys.readouterr().err
