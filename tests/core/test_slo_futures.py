"""Episodes with SLOs forked, restored, pickled and copied, and gone on with under other lengths."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from episodes import slo_case
from hypothesis import given, settings
from reference import Reference
from states import fields, state_of
from strategies import ORDERED_ACTIONS, REPEATABLE, slo_cases
from test_equivalence import assert_same_state
from test_futures import halfway, truth
from test_slo import assert_same_slo, in_space

from llmsched_env.engine import codes
from llmsched_env.engine.batch import Batch
from llmsched_env.errors import ConfigError
from llmsched_env.policy import features
from llmsched_env.simulator import Futures, Simulator


def course(simulator, actions):
    """What is seen of an episode from here to its end, after every iteration; its whole state after some of them."""
    seen = []
    for step, action in enumerate(itertools.cycle(actions)):
        seen += [fields(simulator.view), features(simulator.view).tobytes()]
        if step % 10 < 2 or simulator.done:
            seen.append(state_of(simulator, order=False))
        if simulator.done:
            return seen
        simulator.step(action % simulator.problem.num_actions)


def test_other_lengths_are_those_of_a_fresh_reference_that_has_them():
    """The past does not depend on the lengths of what is not complete, so both tell the same story from there."""
    seen = Counter()

    @settings(REPEATABLE, max_examples=120)
    @given(case=slo_cases(), actions=ORDERED_ACTIONS, rest=ORDERED_ACTIONS)
    def check(case, actions, rest):
        actions = [in_space(case, action) for action in actions]
        simulator, taken = halfway(case, actions)
        emitted, true = simulator.emitted, truth(simulator)
        rng = np.random.default_rng(len(actions))
        longer = rng.integers(1, 60, len(true)) if len(rest) % 2 else rng.integers(1, 4, len(true))
        outputs = np.where(emitted < true, emitted + longer, true)
        reference = Reference(replace(case, outputs=tuple(outputs.tolist())))
        for action in actions[:taken]:
            reference.step(action)
        twin = simulator.fork(outputs=outputs)
        running = bool(((emitted > 0) & (emitted < true)).any())
        seen["running"] += running
        seen["violated before"] += bool(simulator.totals.violations)
        before = int(simulator.totals.tpot_violations)
        for action in itertools.cycle(in_space(case, action) for action in rest):
            assert_same_state(twin, reference)
            assert_same_slo(twin, reference)
            if reference.done:
                break
            twin.step(action)
            reference.step(action)
        seen["TPOT violated"] += running and int(twin.totals.tpot_violations) > before
        seen["chosen"] += case.choose_order
        assert truth(simulator).tolist() == true.tolist(), "the episode that was forked has changed"

    check()
    assert min(seen.values()) > 10, seen
    assert len(seen) == 4


def test_without_arrivals_slos_are_those_of_what_is_there():
    seen = Counter()

    @settings(REPEATABLE, max_examples=120)
    @given(case=slo_cases(), actions=ORDERED_ACTIONS, rest=ORDERED_ACTIONS)
    def check(case, actions, rest):
        actions = [in_space(case, action) for action in actions]
        simulator, taken = halfway(case, actions)
        emitted, true = simulator.emitted, truth(simulator)
        outputs = np.where(emitted < true, emitted + 1 + np.arange(len(true)) % 5, true)
        reference = Reference(replace(case, outputs=tuple(outputs.tolist())))
        for action in actions[:taken]:
            reference.step(action)
        twin = Futures(simulator, known=False).imagine(outputs)
        to_come = len(reference.unreleased)
        reference.unreleased.clear()
        for action in itertools.cycle(in_space(case, action) for action in rest):
            expected = reference.view()
            for name in (
                "late",
                "waiting",
                "active",
                "decoding_ns",
                "decoding_tokens",
                "in_time_release_ns",
                "clock_ns",
            ):
                assert getattr(twin.view, name) == expected[name], name
            assert_same_slo(twin, reference)
            assert twin.view.completed == len(reference.completion_ns) + to_come
            assert twin.done == (not reference.active and not reference.waiting)
            if twin.done:
                break
            twin.step(action)
            reference.step(action)
        seen["cut"] += to_come > 0
        seen["violated in it"] += to_come > 0 and int(twin.totals.violations) > int(simulator.totals.violations)

    check()
    assert min(seen.values()) > 10, seen
    assert len(seen) == 2


@pytest.mark.parametrize("seed", range(6))
def test_forked_restored_and_pickled_it_goes_on_alike(seed):
    case = slo_case(seed)
    simulator, _ = halfway(case, [3, 0, 0, 5, 0, 1, 0, 0] * 6 if case.choose_order else [1, 0, 0] * 14)
    assert 0 < simulator.view.completed < 40
    assert simulator.view.active > 0
    assert simulator.view.decoding_ns > 0
    restored = Simulator(case.problem())
    restored.restore(simulator)
    others = [
        simulator.fork(),
        simulator.fork(outputs=truth(simulator)),
        restored,
        pickle.loads(pickle.dumps(simulator)),
    ]
    rest = [0, 2, 6, 0, 1]
    expected = course(simulator, rest)
    for other in others:
        assert course(other, rest) == expected
    assert simulator.totals.violations > 0


def test_slos_are_part_of_what_a_problem_is():
    case = slo_case(0)
    simulator = Simulator(case.problem())
    for changes in (
        {"ttft_ns": case.ttft_ns + 1},
        {"tpot_ns": case.tpot_ns + 1},
        {"uncounted": 3},
        {"order": "late_last_shortest"},
        {"choose_order": True},
    ):
        other = Simulator(replace(case, **changes).problem())
        with pytest.raises(ConfigError, match="another problem"):
            simulator.restore(other)
    simulator.restore(Simulator(case.problem(reward="goodput")))


@pytest.mark.parametrize("seed", range(4))
def test_copies_are_independent(seed):
    simulator, _ = halfway(slo_case(seed), [1, 0, 0] * 12)
    before, (kept, stepped) = state_of(simulator), (simulator.problem.episode() for _ in range(2))
    for episode in (kept, stepped):
        episode.restart(simulator.episode)
    twin = simulator.fork()
    actions = [0, min(3, simulator.problem.num_actions - 1), 0, 1] * 8
    for action in actions:
        if not twin.done:
            stepped.step(action)
            twin.step(action)
    assert state_of(stepped) == state_of(twin) != before
    assert state_of(simulator) == state_of(kept) == before
    kept.restart(stepped)
    stepped.restart(simulator.episode)
    assert state_of(stepped) == before
    for action in actions:
        if not simulator.done:
            stepped.step(action)
            simulator.step(action)
        if not twin.done:
            kept.step(action)
            twin.step(action)
    assert state_of(stepped) == state_of(simulator)
    assert state_of(kept) == state_of(twin)


def test_a_pickled_episode_owns_its_arrays():
    simulator, _ = halfway(slo_case(1), [4, 0, 0] * 9)
    kept = pickle.loads(pickle.dumps(simulator))
    assert len(np.asarray(kept.episode.slo.started_ns)) == 7
    assert np.array(kept.episode.problem.ranking).tobytes() == np.array(simulator.episode.problem.ranking).tobytes()
    state = state_of(kept)
    assert state == state_of(simulator)
    for _ in range(20):
        simulator.step(2)
    assert state_of(kept) == state != state_of(simulator)


def test_a_copy_of_a_batch_goes_from_ranked_orders_to_none_and_back():
    """Its sets of ranks begin where others end: what one case leaves behind is nothing to the next."""
    by_length, by_release = (
        slo_case(8, order=order, choose_order=False) for order in ("late_last_longest", "late_last")
    )
    problems = [by_length.problem(), by_release.problem()]
    assert [bool(one.data.ranked) for one in problems] == [True, False]
    batch = Batch(3, (codes.DECODE, codes.PREFILL), 33)
    out = batch.new_steps()
    singles = [Simulator(problems[i % 2]) for i in range(3)]
    for number in range(3):
        batch.load(number, problems[number % 2], out)
    rng, turns = np.random.default_rng(0), Counter()
    for _ in range(900):
        actions = rng.integers(0, 2, 3)
        out, _ = batch.step(actions)
        for number, single in enumerate(singles):
            single.step(int(actions[number]))
            assert batch.copies[number].episode.totals.violations == single.totals.violations
            np.testing.assert_array_equal(out.arrays[0][number], features(single.view))
            if single.done:
                turns[number] += 1
                chosen = problems[(number + turns[number]) % 2]
                singles[number] = Simulator(chosen)
                batch.load(number, chosen, out)
    assert min(turns.values()) >= 2, turns
