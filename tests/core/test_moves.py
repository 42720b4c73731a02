"""What stealing costs where caches lie with clients: the engine against the plain simulator, laws, paper, bad input."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from episodes import moving_case
from hypothesis import given, settings
from reference import Reference
from states import fields, state_of
from strategies import ACTIONS, DECODE, PREFILL, REPEATABLE, Case, cases, moving_cases
from test_equivalence import assert_same_history, assert_same_state

from llmsched_env.config import STEALS, Migration, Scenario
from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError, LLMSchedError, WorkloadError
from llmsched_env.metrics import final_metrics, worst_token_gaps_ns
from llmsched_env.simulator import Simulator


def assert_same_moves(simulator, reference):
    totals = simulator.totals
    assert totals.migrations == reference.migrations
    assert totals.moved_tokens == reference.moved
    assert totals.recomputed_tokens == reference.recomputed
    assert totals.move_ns == reference.move_ns
    order = simulator.problem.request_of
    clients = np.asarray(simulator.episode.clients)[:, codes.RUNNING].tolist()
    running = [None if i < 0 else int(order[i]) for i in clients]
    assert running == [None if held is None else held.request for held in reference.running]
    emitted = simulator.emitted.tolist()
    for held in reference.active:
        assert emitted[held.request] == held.emitted


def test_it_equals_the_reference_after_every_iteration():
    seen = Counter()

    @settings(REPEATABLE, max_examples=300)
    @given(case=moving_cases(), actions=ACTIONS)
    def check(case, actions):
        simulator, reference = Simulator(case.problem(), record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            simulator.step(action)
            reference.step(action)
            assert_same_state(simulator, reference)
            assert_same_moves(simulator, reference)
        assert_same_history(simulator, reference)
        gaps = worst_token_gaps_ns(simulator, np.array(case.outputs))
        for request, times in reference.token_ns.items():
            assert len(times) == case.outputs[request], "a token was lost, or given twice"
            assert gaps[request] == max(np.diff(times), default=0)
        how = "copied" if case.migration.token_ns else "recomputed"
        seen["migrated", how, case.migration.steal] += reference.migrations > 0
        seen["migrated often", how] += reference.migrations > 1
        seen["prefix moved", how] += reference.migrations == 0 < reference.moved + reference.recomputed
        seen["running and waiting"] += reference.migrations > 0 and reference.steals > 0
        seen["cap"] += reference.stopped_at_cap > 0 and reference.migrations > 0
        seen["outlived"] += reference.migrations > 0 and min(case.estimates) == 1
        seen["levels"] += bool(case.levels) and reference.migrations > 0
        seen["no stealing"] += not case.stealing
        seen["arrivals"] += case.releases_ns[-1] > 0 and reference.migrations > 0

    check()
    for seed in range(60):  # so that what is counted does not hang on what Hypothesis draws
        check.hypothesis.inner_test(moving_case(seed), [1, 0, 0, 0] if seed % 2 else [1, 0])
    never = {("migrated", how, "waiting") for how in ("copied", "recomputed")}
    rare = {name: count for name, count in seen.items() if count < 5 and name not in never}
    assert not rare, f"hardly tested: {rare}"
    assert all(seen[name] == 0 for name in never)
    assert len(seen) == 16, sorted(map(str, seen))


@settings(REPEATABLE, max_examples=200)
@given(case=moving_cases(), actions=ACTIONS)
def test_preview_is_exact_without_stealing(case, actions):
    case = replace(case, stealing=False)
    simulator, reference = Simulator(case.problem()), Reference(case)
    for action in itertools.cycle(actions):
        if reference.done:
            break
        starts, _, computed, copied, again = reference.compose_with_moves()
        assert copied == again == 0
        view = simulator.view
        if len(starts) == view.ready > 0 and computed <= case.token_cap:
            assert (view.batch_requests, view.batch_tokens) == (len(starts), computed)
            assert view.prefill_ns == reference.prefill_ns(computed, case)
        simulator.step(action)
        reference.step(action)


@settings(REPEATABLE, max_examples=200)
@given(case=moving_cases(), actions=ACTIONS)
def test_what_holds_in_every_episode(case, actions):
    """Conservation, one request a client, the preview within its limits, and the bound."""
    simulator = Simulator(case.problem(), record=True)
    n, recompute = len(case.prompts), case.migration.token_ns == 0
    for action in itertools.cycle(actions):
        view, queues = simulator.view, simulator.episode.queues
        released = sum(release <= view.clock_ns for release in case.releases_ns)
        assert view.completed + view.active + view.waiting == released
        assert view.active + view.idle == case.num_clients
        running = np.asarray(simulator.episode.clients)[:, codes.RUNNING]
        held = running[running >= 0]
        assert len(held) == len(set(held.tolist())) == view.active
        assert view.batch_tokens >= 0
        assert queues.moves_ahead >= 0
        assert min(queues.own_cached, queues.waiting_cached - queues.own_cached) >= 0
        if simulator.done:
            break
        simulator.step(action)
    totals, log = simulator.totals, simulator.log
    assert queues.own_cached == queues.waiting_cached == 0
    started = n + totals.migrations
    assert log["clients"][log["prefill"] == PREFILL].sum() == started
    decoded = log["clients"][log["prefill"] == DECODE].sum()
    assert decoded == sum(case.outputs) - n - (totals.migrations if recompute else 0)
    assert totals.migrations < n, "each comes with the start of another request, and none with the first"
    assert totals.move_ns == totals.moved_tokens * case.migration.token_ns
    assert min(totals.moved_tokens, totals.recomputed_tokens) == 0
    assert simulator.view.clock_ns >= simulator.problem.bound_ns
    tokens = final_metrics(simulator)["throughput_tokens_per_s"] * simulator.view.clock_ns / 1e9
    assert tokens == pytest.approx(sum(case.outputs))


@settings(REPEATABLE, max_examples=60)
@given(case=cases(), actions=ACTIONS)
def test_nothing_to_move_changes_nothing(case, actions):
    """No share cached and waiting requests taken, at whatever bandwidth: every field is that of today's stealing."""
    case = replace(case, queues=case.queues or (0,) * len(case.prompts))
    free = Simulator(case.problem())
    idle = Simulator(replace(case, migration=Migration(0, "waiting", 15)).problem())
    for number, action in enumerate(itertools.cycle(actions)):
        assert fields(free.view) == fields(idle.view)
        if number % 4 == 0 or free.done:  # what goes wrong unseen stays wrong
            assert state_of(free) == state_of(idle)
        if free.done:
            break
        free.step(action)
        idle.step(action)


@settings(REPEATABLE, max_examples=80)
@given(case=moving_cases(), actions=ACTIONS)
def test_dearer_copies_take_exactly_their_time(case, actions):
    """Who is taken does not depend on the bandwidth, and without arrivals nothing depends on the clock."""
    case = replace(case, releases_ns=(0,) * len(case.prompts))
    runs = {}
    for token_ns in (1, 1000):
        moves = replace(case.migration, token_ns=token_ns)
        simulator = runs[token_ns] = Simulator(replace(case, migration=moves).problem())
        for action in itertools.cycle(actions):
            if simulator.done:
                break
            simulator.step(action)
    near, far = runs[1], runs[1000]
    assert near.totals.moved_tokens == far.totals.moved_tokens
    assert far.view.clock_ns - near.view.clock_ns == 999 * near.totals.moved_tokens


def log_of(simulator):
    return [tuple(int(x) for x in entry)[:4] for entry in simulator.log]


def paper(**changes):
    """Two clients; the queue of the first holds requests of 10 + 8 and 20 + 3 tokens, that of the second nothing.

    Alpha and beta of a prefill are 100 and 10 ns, of a decode 50 and 1.
    """
    return replace(Case((10, 20), (8, 3), 2, queues=(0, 0), stealing=True), **changes)


def play(case, actions=()):
    simulator = Simulator(case.problem(), record=True)
    for action in itertools.chain(actions, itertools.repeat(PREFILL)):
        if simulator.done:
            return simulator
        simulator.step(action)


def test_a_thief_brings_the_prefix_on_paper():
    """Half of each prompt lies with the first client, which computes 5 tokens of its first one.

    The thief takes 20 + 3 in the same prefill: it computes 10 and copies 10 at 7 ns, or computes 20.
    """
    copied = play(paper(migration=Migration(500_000, "waiting", 7)))
    assert log_of(copied)[0] == (0, 100 + 10 * (5 + 10) + 7 * 10, 1, 2)
    found = final_metrics(copied)
    assert (found["moved_tokens"], found["recomputed_tokens"], found["migrations"]) == (10, 0, 0)
    assert found["transfer_s"] == 70e-9
    computed = play(paper(migration=Migration(500_000, "waiting", 0)))
    assert log_of(computed)[0] == (0, 100 + 10 * (5 + 20), 1, 2)
    found = final_metrics(computed)
    assert (found["moved_tokens"], found["recomputed_tokens"], found["transfer_s"]) == (0, 10, 0.0)
    alone = play(paper(migration=Migration(500_000), stealing=False))
    assert log_of(alone)[0] == (0, 150, 1, 1)
    assert [entry for entry in log_of(alone) if entry[2]][1][1:] == (150 + 7 * 51 + 100 + 100, 1, 1)


def test_a_running_request_moves_on_paper():
    """The first prefill cannot have the running request moved: nothing runs. With one slot of tokens it holds one.

    A cap of 5 tokens: the first prefill takes 5 of 10. Two decodes: the request has 3 tokens, 13 of context. Then the
    second client takes it over: 13 tokens at 7 ns, while the first computes 10 of its next. Nobody has gained a token
    but the new one. 5 decodes end the first, 2 of which end the second.
    """
    case = paper(migration=Migration(500_000, "running", 7), token_cap=10)
    simulator = play(case, [PREFILL, DECODE, DECODE])
    assert log_of(simulator)[:4] == [
        (0, 150, 1, 1), (150, 201, 0, 1), (201, 252, 0, 1), (252, 252 + 100 + 100 + 91, 1, 2),
    ]  # fmt: skip
    assert [entry[3] for entry in log_of(simulator)[4:]] == [2, 2, 1, 1, 1]
    assert simulator.served["client"].tolist() == [1, 0]
    assert simulator.served["prefill_start_ns"].tolist() == [0, 252]
    found = final_metrics(simulator)
    assert (found["migrations"], found["moved_tokens"], found["recomputed_tokens"]) == (1, 13, 0)
    assert simulator.totals.steals == 0
    # The token after the move comes one prefill and one decode after the last.
    assert worst_token_gaps_ns(simulator, np.array(case.outputs))[0] == 291 + 52


def test_a_running_request_is_computed_again_on_paper():
    """13 + 10 tokens are computed, which gives the fourth token; where no prefill holds them, the waiting 20 are."""
    for cap, migrations in ((23, 1), (22, 0)):
        case = paper(migration=Migration(500_000, "running", 0), token_cap=cap, prompts=(10, 20))
        case = replace(case, releases_ns=(0, 201))
        simulator = play(case, [PREFILL, DECODE, DECODE])
        assert simulator.totals.migrations == migrations
        tokens = 13 + 10 if migrations else 20
        assert log_of(simulator)[3] == (252, 252 + 100 + 10 * tokens, 1, 1 + migrations)
        left = [entry[3] for entry in log_of(simulator)[4:]]
        assert left == ([2, 2, 1, 1] if migrations else [2, 2, 1, 1, 1])


def test_the_cheaper_of_the_two_on_paper():
    """Context 13 after two decodes; 10 or 14 of the next prompt's 20 are cached at home."""
    for share, migrations, moved in ((500_000, 0, 10), (700_000, 1, 13)):
        case = paper(migration=Migration(share, "cheaper", 7), releases_ns=(0, 201))
        simulator = play(case, [PREFILL, DECODE, DECODE])
        assert (simulator.totals.migrations, simulator.totals.moved_tokens) == (migrations, moved)


def test_the_preview_expects_an_average_theft():
    """Two requests of 10 and 20 tokens run nowhere: own head 5 tokens, and one theft of the other's 10."""
    for moves, tokens, ahead in (
        (Migration(500_000, "waiting", 7), 5 + 10, 10),
        (Migration(500_000, "waiting", 0), 5 + 20, 0),
    ):
        simulator = Simulator(paper(migration=moves).problem())
        view = simulator.view
        assert (view.ready, view.batch_tokens) == (2, tokens)
        assert view.prefill_ns == 100 + 10 * tokens + 7 * ahead
    simulator = Simulator(paper(migration=Migration(500_000, "running", 7), releases_ns=(0, 201)).problem())
    for action in (PREFILL, DECODE, DECODE):
        simulator.step(action)
    assert simulator.view.prefill_ns == 100 + 10 * 10 + 7 * 13, "the only one that runs, and its head"


def test_the_bound_where_prefills_give_tokens():
    """Decodes are dear, prefills next to free: LB1 counts a decode for each token but the first, and is too large."""
    case = Case(
        (1, 1), (2, 2), 2, queues=(0, 0), stealing=True, releases_ns=(0, 1), alpha_prefill_ns=0, beta_prefill_ns=1,
        alpha_decode_ns=1000, beta_decode_ns=1, migration=Migration(0, "running", 0),
    )  # fmt: skip
    simulator = play(case)
    assert simulator.totals.migrations == 1
    # 1 ns; then context 2 and head 1 in one prefill, which completes the first; one decode for the second.
    assert log_of(simulator) == [(0, 1, 1, 1), (1, 4, 1, 2), (4, 1005, 0, 1)]
    assert simulator.problem.bound_ns <= 1005
    plain = replace(case, migration=None).problem().bound_ns
    assert plain == 2 + 2 * 1 + 1000 * 1
    three = replace(case, prompts=(1,) * 3, outputs=(2,) * 3, estimates=(), queues=(0,) * 3, releases_ns=(0, 1, 4))
    assert play(three).view.clock_ns < replace(three, migration=None).problem().bound_ns, "the plain one is too large"
    assert play(three).view.clock_ns >= three.problem().bound_ns


def shortest_ns(simulator):
    """The makespan of the best sequence of decisions, all of them tried."""
    while not simulator.done and not simulator.has_choice:
        simulator.step(PREFILL if simulator.can_prefill else DECODE)
    if simulator.done:
        return int(simulator.view.clock_ns)
    found = []
    for action in (PREFILL, DECODE):
        twin = simulator.fork()
        twin.step(action)
        found.append(shortest_ns(twin))
    return min(found)


def test_no_sequence_of_decisions_beats_the_bound():
    tight, moved, above_plain = 0, 0, 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 5))
        case = Case(
            tuple(rng.integers(1, 9, n).tolist()), tuple(rng.integers(1, 5, n).tolist()), 2, queues=(0,) * n,
            stealing=True, releases_ns=(0, *([1] * (n - 1))), alpha_prefill_ns=int(rng.integers(0, 30)),
            beta_prefill_ns=int(rng.integers(1, 4)), alpha_decode_ns=int(rng.choice([1, 40, 400])),
            gamma_decode_ns=int(rng.choice([0, 0, 3])), token_cap=int(rng.choice([6, 1000])),
            migration=Migration(int(rng.choice([0, 500_000, 900_000])), STEALS[seed % 3], int(rng.choice([0, 0, 2]))),
        )  # fmt: skip
        best, problem = shortest_ns(Simulator(case.problem())), case.problem()
        assert best >= problem.bound_ns, seed
        tight += best == problem.bound_ns
        moved += play(case).totals.migrations > 0
        above_plain += best < replace(case, migration=None).problem().bound_ns
    assert tight > 3, "no bound was ever met: the instances say little"
    assert min(moved, above_plain) > 3, "the plain bound would have done"


def test_a_clock_that_copies_would_overflow():
    with pytest.raises(WorkloadError, match="beyond the 4e"):
        paper(migration=Migration(500_000, "running", 10**18)).problem()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cached_share": 1.0}, r"cached_share = 1.0 is out of range: it lies in \[0, 1\)"),
        ({"cached_share": 80}, r"at least one token\)\. As a share, 80 % is 0\.8\."),
        ({"cached_share": -0.1}, "cached_share = -0.1 is out of range"),
        ({"cached_share": float("nan")}, "cached_share = nan is out of range"),
        ({"cached_share": "half"}, "cached_share = 'half' is not a number"),
        ({"cached_share": 0.5, "queue": "shared"}, "cached_share = 0.5 with queue = 'shared'"),
        ({"steal": "everything"}, "unknown steal 'everything'"),
        ({"steal": "running", "stealing": False}, "steal = 'running' with stealing = False: nobody takes anything"),
        ({"steal": "cheaper", "queue": "shared"}, "steal = 'cheaper' with queue = 'shared'"),
        ({"steal": "running", "queue": "shared", "kv_budget_tokens": 10_000}, "Set queue='client'"),
        ({"cached_share": 0.5, "kv_budget_tokens": 10_000}, "it needs queue='shared'"),
        ({"move_gb_per_s": 0.0}, "move_gb_per_s = 0.0 is out of range: it is at least 1e-06"),
        ({"move_gb_per_s": -64.0}, "move_gb_per_s = -64.0 is out of range"),
        ({"move_gb_per_s": "fast"}, "move_gb_per_s = 'fast' is not a number"),
        ({"move_gb_per_s": 64.0}, "move_gb_per_s = 64.0 where nothing is moved: nobody would read it"),
        ({"move_gb_per_s": 64.0, "cached_share": 0.5, "stealing": False}, "move_gb_per_s = 64.0 with stealing = False"),
        ({"move_gb_per_s": 64.0, "queue": "shared"}, "move_gb_per_s = 64.0 with queue = 'shared'"),
        ({"kv_bytes_per_token": 1000}, "kv_bytes_per_token = 1000 without a budget"),
        ({"move_gb_per_s": 64.0, "kv_watermark": 0.1}, "kv_watermark = 0.1 without a budget"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(LLMSchedError, match=message):
        Scenario(**arguments)


def test_bytes_of_a_token_go_with_a_bandwidth():
    scenario = Scenario(move_gb_per_s=64.0, kv_bytes_per_token=131_072, cached_share=0.5)
    assert (scenario.migrates, scenario.kv_limited) == (True, False)
    with pytest.raises(ConfigError, match="is out of range"):
        scenario.replace(kv_bytes_per_token=0)
