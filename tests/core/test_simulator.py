"""Forks, restores, pickles and recordings of a running episode."""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
from states import state_of
from strategies import Case, seeded_case

from llmsched_env.cases import build_problem
from llmsched_env.config import Noise, Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engine import compiled
from llmsched_env.engine.recorder import FIRST_CAPACITY
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError
from llmsched_env.policy import FunctionRule, Rule
from llmsched_env.simulator import Simulator

SEEDS = range(6)


def refill_when(view, parameters, memory):
    """Prefill when so many clients are ready; counts how often it was asked."""
    memory[0] += 1
    return 1 if view.ready >= parameters[0] else 0


def threshold(ready):
    return FunctionRule(refill_when, [float(ready)], [0])


def actions_of(seed):
    return np.random.default_rng(seed).integers(0, 2, 10_000).tolist()


def advance(simulator, actions, count=None):
    for action in itertools.islice(actions, count):
        if simulator.done:
            break
        simulator.step(action)


def history_of(simulator):
    return simulator.log.tobytes(), simulator.served.tobytes()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["fork", "restore", "pickle", "deepcopy"])
def test_a_copy_goes_on_as_the_original_would(seed, how):
    actions = actions_of(seed)
    original = Simulator(seeded_case(seed).problem(), record=True)
    advance(original, actions, 25)
    assert not original.done
    if how == "fork":
        twin = original.fork()
    elif how == "restore":
        twin = Simulator(original.problem)
        advance(twin, actions[100:], 40)
        twin.restore(original)
    else:
        twin = pickle.loads(pickle.dumps(original)) if how == "pickle" else copy.deepcopy(original)
    before = state_of(original)
    assert state_of(twin) == before
    advance(twin, actions[25:])
    assert twin.done
    assert state_of(original) == before, "the copy wrote into the original"
    advance(original, actions[25:])
    assert state_of(original) == state_of(twin)
    if how in {"pickle", "deepcopy"}:
        assert history_of(twin) == history_of(original)
    elif how == "fork":
        assert not len(twin.log)


def test_a_pickled_episode_also_runs_under_a_rule():
    original = Simulator(seeded_case(1).problem(), record=True)
    advance(original, actions_of(1), 10)
    twin = pickle.loads(pickle.dumps(original))
    for simulator in (original, twin):
        simulator.run(threshold(2))
    assert original.done
    assert state_of(original) == state_of(twin)
    assert history_of(original) == history_of(twin)


def test_a_fork_that_records_begins_its_own_recording():
    original = Simulator(seeded_case(2).problem(), record=True)
    advance(original, actions_of(2), 25)
    completed_before = int(original.view.completed)
    twin = original.fork(record=True)
    recorded = len(original.log)
    assert recorded == 25
    assert len(twin.log) == 0
    for simulator in (original, twin):
        advance(simulator, actions_of(3))
    assert twin.log.tobytes() == original.log[recorded:].tobytes()
    # Of requests that had started before the fork it saw the end only.
    assert (twin.served["completion_ns"] > 0).sum() == len(twin.served) - completed_before


def test_a_long_recording_does_not_reach_into_a_copy():
    # The original recorded more iterations than the log of a fresh copy holds.
    original = Simulator(Case((1,), (3 * FIRST_CAPACITY,), 1).problem(), record=True)
    advance(original, itertools.cycle([0]), 2 * FIRST_CAPACITY + 10)
    restored = Simulator(original.problem, record=True)
    restored.restore(original)
    for twin in (original.fork(record=True), restored):
        advance(twin, [0], 1)
        assert len(twin.log) == 1
        assert twin.log[0]["end_ns"] == twin.view.clock_ns


@pytest.mark.parametrize("seed", SEEDS)
def test_reset_forgets_everything(seed):
    simulator = Simulator(seeded_case(seed).problem(), record=True)
    start = state_of(simulator)
    advance(simulator, actions_of(seed))
    history = history_of(simulator)
    simulator.reset()
    assert state_of(simulator) == start
    assert not len(simulator.log)
    assert not simulator.served["completion_ns"].any()
    advance(simulator, actions_of(seed))
    assert history_of(simulator) == history


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rule_runs_as_if_stepped(seed):
    rule = threshold(3)
    ran = Simulator(seeded_case(seed).problem(), record=True)
    ran.run(rule)
    stepped, kept = Simulator(ran.problem, record=True), [0]
    while not stepped.done:
        choice = stepped.can_decode and stepped.can_prefill
        action = rule.function(stepped.view, rule.parameters, kept) if choice else int(stepped.can_prefill)
        stepped.step(action)
    assert history_of(ran) == history_of(stepped)
    assert state_of(ran) == state_of(stepped)
    assert 0 < kept[0] < len(ran.log), "asked always or never"
    assert rule.memory == kept
    assert rule.first == (0,), "the rule's initial memory was written to"


def long_case():
    # One client, one request of many tokens, then short ones: more iterations than the first log holds.
    return Case((1, 1, 1), (FIRST_CAPACITY + 500, FIRST_CAPACITY, 5), 2)


@pytest.mark.parametrize("how", ["step", "run"])
def test_the_log_grows(how):
    simulator = Simulator(long_case().problem(), record=True)
    plain = Simulator(simulator.problem)
    for episode in (simulator, plain):
        if how == "step":
            advance(episode, itertools.cycle([0]))
        else:
            episode.run(threshold(1))
    log = simulator.log
    assert len(log) == simulator.view.prefills + simulator.view.decodes > FIRST_CAPACITY
    assert (log["start_ns"][1:] == log["end_ns"][:-1]).all()
    assert log["end_ns"][-1] == simulator.view.clock_ns == plain.view.clock_ns
    assert len(plain.log) == 0


def test_the_horizon_ends_a_run_but_not_a_step():
    simulator = Simulator(seeded_case(0).problem(max_iterations=17))
    simulator.run(threshold(1))
    assert simulator.view.prefills + simulator.view.decodes == 17
    assert not simulator.done
    simulator.step(0)
    assert simulator.view.prefills + simulator.view.decodes == 18


@pytest.mark.skipif(not compiled, reason="plain classes let anybody write")
def test_the_view_is_read_only():
    simulator = Simulator(seeded_case(0).problem())
    for name in ("clock_ns", "clocks"):
        with pytest.raises(AttributeError):
            setattr(simulator.view, name, 5)


def test_the_problem_is_read_only():
    problem = seeded_case(0).problem()
    for array in (problem.requests, problem.request_of, problem.release_ns):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    start = state_of(problem.start)
    for simulator in (Simulator(problem), Simulator(problem)):
        simulator.run(Rule())
    simulator.reset()
    assert state_of(problem.start) == start, "the start that all episodes share was advanced"


def test_a_digest_covers_what_an_episode_depends_on():
    case = Case((1, 2), (9, 3), 2, releases_ns=(0, 100), order="longest_first")
    others = [
        replace(case, prompts=(2, 2)),
        replace(case, outputs=(9, 4)),
        replace(case, estimates=(9, 4)),
        replace(case, releases_ns=(0, 101)),
        replace(case, queues=(0, 1)),
        replace(case, queues=(0, 1), stealing=True),
        replace(case, num_clients=3),
        replace(case, token_cap=2),
        replace(case, alpha_prefill_ns=101),
        replace(case, levels=((1000, 100),)),
        # The same requests, the other one first.
        replace(case, prompts=(2, 1), outputs=(3, 9), estimates=(3, 9)),
    ]
    digests = [other.problem().digest() for other in (case, *others)]
    assert len(set(digests)) == len(digests)
    assert case.problem(reward="idle", skip_forced=True).digest() == digests[0]
    named = CostModel("another name", 100, 10, 50, 1, 0, 1000, covers_active_clients=(1, 2))
    assert replace(case, noise=Noise(named)).problem().believed.digest() == digests[0]


def test_a_step_after_the_end():
    simulator = Simulator(Case((1,), (1,), 1).problem())
    simulator.step(1)
    with pytest.raises(EpisodeOverError, match="every request of this episode is complete: call reset"):
        simulator.step(0)


@pytest.mark.parametrize("action", [2, -1, 0.5, None, "1"])
def test_an_action_outside_the_space(action):
    simulator = Simulator(Case((1,), (2,), 1).problem())
    with pytest.raises(InvalidActionError, match=r"is not in Discrete\(2\): 0 is decode, 1 is prefill"):
        simulator.step(action)
    assert simulator.view.prefills == 0


def test_another_problem_cannot_be_restored():
    first, second = (Simulator(build_problem(Scenario(split="test", queue="shared"), case)) for case in (0, 1))
    with pytest.raises(ConfigError, match="another problem"):
        first.restore(second)
