"""The same moment with other output lengths: what changes, what does not, and what is refused."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from reference import Reference
from states import fields, state_of
from strategies import ACTIONS, DECODE, PREFILL, REPEATABLE, Case, cases, seeded_case

from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.simulator import Futures, Simulator


def halfway(case, actions, **options):
    """An episode after the actions, or as much of them as there is to do, and the iterations that it took."""
    simulator, taken = Simulator(case.problem(**options)), 0
    for action in actions:
        if simulator.done:
            break
        simulator.step(action)
        taken += 1
    return simulator, taken


def truth(simulator):
    outputs = np.empty(simulator.problem.num_requests, np.int32)
    outputs[simulator.problem.request_of] = simulator.problem.requests[:, codes.OUTPUT]
    return outputs


def course(simulator, actions):
    """What is seen of an episode from here to its end, after every iteration; its whole state after some of them."""
    seen = []
    for step, action in enumerate(itertools.cycle(actions)):
        seen.append(fields(simulator.view))
        if step in (0, 1, 2, 10, 100) or simulator.done:
            seen.append(state_of(simulator, order=False))
        if simulator.done:
            return seen, simulator.log.tobytes(), simulator.served.tobytes()
        simulator.step(action)


def test_the_true_lengths_change_nothing():
    seen = Counter()

    @settings(REPEATABLE, max_examples=200)
    @given(case=cases(), actions=ACTIONS, rest=ACTIONS)
    def check(case, actions, rest):
        simulator, _ = halfway(case, actions)
        twin = simulator.fork(record=True, outputs=truth(simulator))
        ring = len(simulator.episode.ring)
        assert len(twin.episode.ring) == ring
        assert course(twin, rest) == course(simulator.fork(record=True), rest)
        started = simulator.view.completed + simulator.view.active
        seen["running"] += simulator.view.active > 0
        seen["overdue"] += simulator.view.overdue > 0
        seen["waiting"] += simulator.view.waiting > 0
        seen["to come"] += started + simulator.view.waiting < len(case.prompts)
        seen["shared" if case.queues is None else "stealing" if case.stealing else "client"] += 1
        seen["noisy"] += case.estimates != case.outputs
        seen["far"] += ring > 64

    check()
    assert min(seen.values()) > 5, seen
    assert len(seen) == 9


def test_other_lengths_are_those_of_a_case_that_has_them():
    # What was done before must not depend on the lengths: those of what had not emitted its last token by then.
    seen = Counter()

    @settings(REPEATABLE, max_examples=150)
    @given(case=cases(), actions=ACTIONS, rest=ACTIONS)
    def check(case, actions, rest):
        simulator, taken = halfway(case, actions)
        emitted, true = simulator.emitted, truth(simulator)
        rng = np.random.default_rng(len(actions))
        longer = rng.integers(1, 500, len(true)) if len(rest) % 2 else rng.integers(1, 4, len(true))
        outputs = np.where(emitted < true, emitted + longer, true)
        other = replace(case, outputs=tuple(outputs.tolist()), estimates=case.estimates)
        whole, _ = halfway(other, actions[:taken])
        twin, whole = simulator.fork(record=True, outputs=outputs), whole.fork(record=True)
        found, expected = course(twin, rest), course(whole, rest)
        for seen_of_one in (*found[0], *expected[0]):  # the mean of the population was known before
            seen_of_one.pop("mean_output_tokens", None)
            seen_of_one.pop("view.mean_output_tokens", None)
        assert found == expected
        assert truth(twin).tolist() == outputs.tolist()
        assert truth(simulator).tolist() == true.tolist()
        seen["longer than the ring held"] += outputs.max() > len(simulator.episode.ring) // codes.RING_COLUMNS
        seen["shorter"] += outputs.max() < true.max()
        seen["running"] += bool(((emitted > 0) & (emitted < true)).any())

    check()
    assert min(seen.values()) > 10, seen
    assert len(seen) == 3


@settings(REPEATABLE, max_examples=150)
@given(case=cases(), actions=ACTIONS)
def test_emitted_tokens_are_counted(case, actions):
    simulator, reference = Simulator(case.problem()), Reference(case)
    for action in actions:
        emitted = simulator.emitted
        # A token for each client in a prefill, and for each in a decode.
        assert emitted.sum() == sum(clients for _, _, _, clients in reference.log)
        assert (emitted <= np.array(case.outputs)).all()
        assert (emitted == np.array(case.outputs)).sum() == simulator.view.completed
        assert ((emitted > 0) & (emitted < np.array(case.outputs))).sum() == simulator.view.active
        if simulator.done:
            break
        simulator.step(action)
        reference.step(action)


def test_on_paper():
    # Two clients, three requests. After the prefill and one decode, A and B have emitted 2 tokens each.
    case = Case((1, 1, 1), (4, 9, 5), 2)
    simulator, _ = halfway(case, [PREFILL, DECODE])
    assert simulator.emitted.tolist() == [2, 2, 0]
    # A were done after 1 more decode, B after 3: the one client takes C at the first chance, and C has 2 tokens.
    twin = simulator.fork(record=True, outputs=[3, 5, 2])
    while not twin.done:
        twin.step(PREFILL)
    # D: A is done. P: C's first token. D: C is done. D: B is done.
    assert "".join("DP"[kind] for kind in twin.log["prefill"]) == "DPDD"
    assert twin.view.clock_ns - simulator.view.clock_ns == 52 + 110 + 52 + 51
    assert simulator.view.active == 2


def test_without_arrivals_only_what_is_there_is_served():
    served = 0
    for seed in (1, 3, 5, 7):
        simulator, _ = halfway(seeded_case(seed), [0, 1] * 20)
        there = int(simulator.view.active + simulator.view.waiting)
        to_come = simulator.problem.num_requests - there - int(simulator.view.completed)
        assert there > 0
        assert to_come > 0, "nothing was to come"
        for outputs in (None, truth(simulator)):
            twin = simulator.fork(record=True, outputs=outputs, arrivals=False)
            jumped = int(twin.totals.jump_ns)
            for action in itertools.cycle([0, 1]):
                if twin.done:
                    break
                twin.step(action)
            assert (twin.served["completion_ns"] > 0).sum() == there
            assert twin.totals.jump_ns == jumped
        served += there
    assert served > 20


def test_a_fork_with_other_lengths_is_an_episode_like_any_other():
    simulator, _ = halfway(seeded_case(2), [0, 1] * 15)
    twin = simulator.fork(outputs=simulator.emitted + 7)
    again, copied, other = twin.fork(), pickle.loads(pickle.dumps(twin)), Simulator(twin.problem)
    other.restore(twin)
    with pytest.raises(ConfigError, match="another problem"):
        simulator.restore(twin)
    ends = {repr(course(episode, [1, 0, 0])[0][-1]) for episode in (twin, again, copied, other)}
    assert len(ends) == 1
    twin.reset()
    assert twin.view.clock_ns == twin.view.completed == 0
    assert twin.problem.bound_ns == simulator.problem.bound_ns


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([5, 5], r"outputs of shape \(2,\) and dtype int64: give 3 whole numbers"),
        ([5.0, 5.0, 5.0], r"outputs of shape \(3,\) and dtype float64: give 3 whole numbers"),
        ([[5, 5, 5]], r"outputs of shape \(1, 3\)"),
        ([5, 2, 5], r"outputs\[1\] = 2 is out of range: the request has emitted 2 tokens and is not complete"),
        ([5, 5, 0], r"outputs\[2\] = 0 is out of range: the request has emitted 0 tokens"),
        ([5, 2**24 + 1, 5], r"outputs\[1\] = 16777217 is out of range: .* the longest may have 16777216"),
        ([2**40, 5, 5], r"outputs\[0\] = 1099511627776 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(outputs, words):
    simulator, _ = halfway(Case((1, 1, 1), (4, 9, 5), 2), [PREFILL, DECODE])
    with pytest.raises(ConfigError, match=words):
        simulator.fork(outputs=outputs)


def test_a_length_of_a_complete_request_is_ignored():
    simulator, _ = halfway(Case((1, 1, 1), (1, 9, 5), 2), [PREFILL, DECODE])
    assert truth(simulator.fork(outputs=[7, 6, 6])).tolist() == [1, 6, 6]


def test_too_much_for_the_clock_is_refused():
    n = 200
    simulator = Simulator(Case((1,) * n, (2,) * n, 2).problem())
    with pytest.raises(WorkloadError, match=r"3355443200 output tokens in sum exceed .* split it"):
        simulator.fork(outputs=np.full(n, 2**24))
    slow = Simulator(Case((1,), (2,), 2, alpha_decode_ns=10**12).problem())
    with pytest.raises(WorkloadError, match="1 requests under these output lengths could take"):
        slow.fork(outputs=[10**7])


def test_an_outlook_keeps_what_is_hidden():
    simulator, _ = halfway(seeded_case(1), [0, 1] * 15)
    hidden, known = (Futures(simulator, known=known) for known in (False, True))
    assert hidden.emitted.tolist() == simulator.emitted.tolist()
    assert hidden.estimates.tolist() == list(seeded_case(1).estimates)
    with pytest.raises(ConfigError, match="does not show true output lengths: imagine a future instead"):
        hidden.future()
    assert course(known.future(), [1, 0])[0] == course(simulator.fork(), [1, 0])[0]
    imagined = hidden.imagine(simulator.emitted + 3)
    assert imagined.episode.line.next_release == simulator.problem.num_requests
