"""Actions that choose lengths and waits (`choose_length`)."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from strategies import Case

from llmsched_env import make_scenario
from llmsched_env.actions import actions_of
from llmsched_env.config import WAIT_PERCENTS, WINDOWS
from llmsched_env.engine import codes
from llmsched_env.engine.rule import PythonRule
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Simulator

LINE = Case((1,) * 6, (2, 3, 4, 5, 6, 7), 2, order="longest_first", choose_length=True)
ORDER = "LLMSched/GSM8KOrder-v0"


def begun(simulator):
    """Output tokens of the requests that run, by client."""
    rows, running = simulator.problem.requests, np.asarray(simulator.episode.clients)[:, codes.RUNNING]
    return [int(rows[position, codes.OUTPUT]) for position in running if position >= 0]


@pytest.mark.parametrize(
    ("action", "lengths"),
    [(1, [7, 6]), (4, [7, 6]), (5, [6, 5]), (9, [5, 4]), (13, [4, 3]), (16, [4, 3]), (17, [3, 2])],
)
def test_windows_on_paper(action, lengths):
    """Six wait, two clients are idle: 4 begin beyond the window, and i sixteenths of 4, rounded down, before it."""
    simulator = Simulator(LINE.problem())
    simulator.step(action)
    assert begun(simulator) == lengths
    assert simulator.view.clock_ns == 100 + 2 * 10


def test_a_window_closes_at_the_cap():
    case = Case((3, 3, 3, 3), (2, 3, 4, 5), 3, order="longest_first", choose_length=True, token_cap=6)
    simulator = Simulator(case.problem())
    simulator.step(17)  # three could start: one stands before the window of 4, 3 and 2, of which the cap takes two
    assert begun(simulator) == [4, 3]


def test_waits_on_paper():
    """30 to 6 tokens begin on 25 clients. 6, 7, 8 are complete after 5, 6, 7 decodes: 12 % of 25 clients are 3.

    Then 3, 2 and 1 begin, of which 1 is complete at once. Two wait, so that no more than 2 need be idle: 9 and 2 are
    complete one decode later, and 3 are.
    """
    case = Case((1,) * 30, tuple(range(1, 31)), 25, order="longest_first", choose_length=True)
    wait = next(i for i, one in enumerate(actions_of(make_scenario(ORDER, num_clients=25))) if one.idle_until == 3)
    asked = []

    def rule(view):
        asked.append((int(view.decodes), int(view.idle)))
        return {2: wait, 3: 17, 4: wait}.get(len(asked), 1)

    episode = case.problem().episode()
    episode.run(PythonRule(rule))
    assert asked[:5] == [(0, 25), (5, 1), (7, 3), (7, 1), (8, 3)]


@pytest.mark.parametrize("seed", range(3))
def test_one_step_is_the_same_as_its_decodes(seed):
    env = gymnasium.make(ORDER, num_requests=80, num_clients=20).unwrapped
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    plain = Simulator(env.simulator.problem)
    over, repeated = False, 0
    while not over:
        action = int(rng.choice(np.flatnonzero(env.action_masks())))
        until = actions_of(env.scenario)[action].idle_until
        _, _, over, _, _ = env.step(action)
        plain.step(action)
        while until and plain.view.active and plain.view.idle < min(until, plain.view.waiting):
            plain.step(0)
            repeated += 1
        while plain.view.decodes < env.simulator.view.decodes:
            assert plain.view.ready == 0 or plain.view.waiting == 0, "a decode that was chosen by nobody"
            plain.step(0)
        assert plain.view.clock_ns == env.simulator.view.clock_ns
    assert repeated > 50, "no wait was longer than a decode"


@pytest.mark.parametrize("workload", ["gsm8k", "gsm8k-smooth"])
def test_an_episode_is_a_hundred_decisions(workload):
    env = gymnasium.make(ORDER, workload=workload)
    observation, info = env.reset(options={"case": 0})
    wait = next(i for i, one in enumerate(actions_of(env.unwrapped.scenario)) if one.idle_until == 24)
    steps, over = 0, False
    while not over:
        view = env.unwrapped.simulator.view
        _, _, over, _, info = env.step(1 if view.idle >= min(24, view.waiting) else wait)
        steps += 1
    assert steps <= 120
    assert info["invalid_actions"] == 0
    assert info["gap_to_bound"] < 0.03
    assert observation.shape == (26,)


def test_the_names_of_the_actions():
    names = [action.name for action in actions_of(make_scenario(ORDER))]
    assert names[:3] == ["decode", "prefill longest first", "prefill 1/16 along"]
    assert names[-1] == "decode until 18 % of the clients are idle"
    assert len(names) == 1 + WINDOWS + len(WAIT_PERCENTS) == make_scenario(ORDER).num_actions
    assert codes.LAST_WINDOW == WINDOWS - 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue": "client"}, "choose_length = True with queue = 'client': windows are those of one line; set queue="),
        ({"order": "fcfs"}, "choose_length = True with order = 'fcfs': the order is the action's; leave order out"),
        ({"lengths": "hidden"}, "choose_length = True with lengths = 'hidden': it sorts by lengths; set 'known'"),
        ({"ttft_s": 1.0, "tpot_s": 0.1}, "choose_length = True with SLOs: .* take choose_order, or leave ttft_s out"),
        ({"kv_budget_tokens": 9999, "choose_cap": True}, "choose_length = True with choose_cap = True"),
        ({"choose_length": 1}, "choose_length = 1 is neither True nor False"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        LLMSchedEnv(make_scenario(ORDER, **changes))
