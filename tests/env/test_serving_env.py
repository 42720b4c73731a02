"""SLOs in the environment: orders as actions, what is masked and skipped, what rewards sum to, what is drawn."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.actions import action_names
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.policy import features


def play(env, seed=0, case=0):
    """A random episode, infeasible actions included; the rewards and the last step."""
    rng = np.random.default_rng(seed)
    env.reset(options={"case": case})
    rewards = []
    while True:
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        rewards.append(reward)
        if terminated or truncated:
            return rewards, observation, info


def test_spaces_of_the_ids():
    for name, actions in (("Serving-v0", 2), ("ServingOrder-v0", 7), ("ServingOrder-v1", 7)):
        env = gymnasium.make(f"LLMSched/{name}", num_requests=20, num_clients=4)
        assert env.action_space == gymnasium.spaces.Discrete(actions)
        assert env.observation_space.shape == (33,)
        observation, info = env.reset(seed=0)
        assert observation.shape == (33,)
        assert info["action_mask"].shape == env.unwrapped.action_masks().shape == (actions,)
    assert action_names(make_scenario("LLMSched/Serving-v0")) == ("decode", "prefill")
    assert action_names(make_scenario("LLMSched/ServingOrder-v0"))[1:] == tuple(
        f"prefill {order}" for order in ORDER_CODES
    )


def test_masks_of_orders(ordered):
    env = LLMSchedEnv(ordered)
    _, info = env.reset(seed=0)
    rng, seen, infeasible, terminated = np.random.default_rng(0), set(), [0, 0], False
    while not terminated:
        mask, simulator = info["action_mask"], env.simulator
        assert mask.tolist() == [simulator.can_decode] + [simulator.can_prefill] * 6
        assert env.action_masks().tolist() == mask.astype(bool).tolist()
        seen.add((int(mask[0]), int(mask[1])))
        action, before = int(rng.integers(0, 7)), (int(simulator.view.decodes), int(simulator.view.prefills))
        _, _, terminated, _, info = env.step(action)
        took = (int(simulator.view.decodes) - before[0], int(simulator.view.prefills) - before[1])
        wanted = int(action > 0)
        assert took[wanted] == mask[action], "a feasible action is taken, an infeasible one replaced"
        assert sum(took) == 1
        infeasible[wanted] += not mask[action]
        assert info["invalid_actions"] == sum(infeasible)
    assert seen == {(0, 1), (1, 0), (1, 1)}
    assert min(infeasible) > 0, "a kind of infeasible action was not tried"


def test_a_decode_that_cannot_be_is_a_prefill_by_the_first_order(ordered):
    env, twin = (LLMSchedEnv(ordered.replace(load=5.0), render_mode="ansi") for _ in range(2))
    rng, choices = np.random.default_rng(0), 0
    for case in range(4):
        for one in (env, twin):
            one.reset(options={"case": case})
        while not env.simulator.done:
            forced, action = not env.simulator.can_decode, 5 * int(rng.random() < 0.02)
            choices += forced and int(env.simulator.view.waiting) > 6
            results = [env.step(0 if forced else action), twin.step(1 if forced else action)]
            np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(env.simulator.served, twin.simulator.served)
        assert results[0][4]["invalid_actions"] > 0
    assert choices > 5, "another order would have taken the same"


def test_a_forced_prefill_is_a_choice_among_orders(ordered):
    """With ``skip_forced``: only where more than one request waits; where one does, it is taken without a step."""
    plain = LLMSchedEnv(ordered.replace(load=0.6))
    skipping = LLMSchedEnv(plain.scenario.replace(skip_forced=True))
    binary = LLMSchedEnv(plain.scenario.replace(skip_forced=True, choose_order=False))
    rng = np.random.default_rng(0)
    forced, alone, paid = 0, 0, [0.0, 0.0]
    for case in range(8):
        plain.reset(options={"case": case})
        _, info = skipping.reset(options={"case": case})
        terminated = False
        while not terminated:
            view = skipping.simulator.view
            assert info["action_mask"][1] == 1
            assert view.active > 0 or view.waiting > 1
            forced += view.active == 0
            while not plain.simulator.has_choice:
                alone += plain.simulator.view.active == 0
                paid[0] += plain.step(int(plain.simulator.can_prefill))[1]
            action = int(rng.integers(1, 7)) if view.active == 0 or rng.random() < 0.02 else 0
            paid[0] += plain.step(action)[1]
            _, reward, terminated, _, info = skipping.step(action)
            paid[1] += reward
        while not plain.simulator.done:
            paid[0] += plain.step(int(plain.simulator.can_prefill))[1]
        assert plain.simulator.view.clock_ns == skipping.simulator.view.clock_ns
        assert info["invalid_actions"] == 0
        _, info = binary.reset(options={"case": case})
        terminated = False
        while not terminated:
            assert info["action_mask"].tolist() == [1, 1], "one order is no choice"
            _, _, terminated, _, info = binary.step(1)
    assert paid[0] == pytest.approx(paid[1], rel=1e-12)
    assert forced > 5, "no prefill was forced where more than one waited"
    assert alone > 5, "no prefill was forced where one waited"


@pytest.mark.parametrize(
    "changes", [{}, {"skip_forced": True}, {"uncounted_share": 0.0}, {"order": "late_last_longest"}, {"orders": True}]
)
def test_goodput_rewards_sum_to_goodput_less_one(with_slo, ordered, changes):
    env = LLMSchedEnv(ordered if "orders" in changes else with_slo.replace(**changes))
    found = []
    for case in range(4):
        rewards, _, info = play(env, case, case)
        assert max(rewards) == 0
        assert sum(rewards) == pytest.approx(info["goodput"] - 1, abs=1e-12)
        counted = 40 - 2 * int(40 * env.scenario.uncounted_share)
        assert -min(rewards) * counted == pytest.approx(round(-min(rewards) * counted)), "whole requests are charged"
        found.append(info["goodput"])
    assert 0 < np.mean(found) < 1, "SLOs too easy or too hard: nothing was told apart"


@pytest.mark.parametrize("orders", [False, True])
def test_the_horizon_truncates_with_slos(with_slo, ordered, orders):
    env = LLMSchedEnv((ordered if orders else with_slo).replace(max_iterations=150))
    rewards, observation, info = play(env)
    assert info["prefills"] + info["decodes"] == 150
    assert 0 < info["completed"] < 40, "the horizon is too short or too long to tell"
    violations = int(env.simulator.totals.violations)
    assert 0 < violations < 32
    assert info["goodput"] == pytest.approx(1 - violations / 32), "what can still be reached"
    assert (info["ttft_s"], info["tpot_s"]) == (np.inf, np.inf), "a mean over those served would flatter"
    assert sum(rewards) == pytest.approx(-violations / 32)
    np.testing.assert_array_equal(observation, features(env.simulator.view))


@pytest.mark.parametrize("action", [7, -1, 1.0, None, "1", np.array([1]), 2**70])
def test_an_action_outside_the_space(ordered, action):
    env = LLMSchedEnv(ordered)
    env.reset(seed=0)
    words = r"not in Discrete\(7\): 0 is decode, 1 is prefill fcfs, .*6 is prefill late_last_longest\."
    with pytest.raises(InvalidActionError, match=words):
        env.step(action)
    assert env.simulator.view.prefills == 0
    env.step(np.int32(6))


def test_text_and_pictures_of_prefills_by_any_order(ordered):
    pytest.importorskip("PIL", reason="pillow is an extra")
    for mode in ("ansi", "rgb_array"):
        env = LLMSchedEnv(ordered, render_mode=mode)
        env.reset(seed=0)
        drawn = [env.render()]
        for action in itertools.islice(itertools.cycle((0, 6, 0, 3)), 40):
            env.step(action)
        drawn.append(env.render())
        log = env.simulator.log
        assert set(log["prefill"].tolist()) == {0, 1}, "the viewer counts on two kinds"
        assert log["prefill"].sum() == env.simulator.view.prefills > 3
        if mode == "ansi":
            kinds = "".join("DP"[kind] for kind in log["prefill"])
            assert kinds[-10:] in drawn[-1]
        else:
            assert drawn[0].shape == drawn[1].shape
            assert (drawn[0] != drawn[1]).any()


def test_the_window_shows_the_slos(ordered, monkeypatch):
    pytest.importorskip("pygame", reason="pygame is an extra")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = LLMSchedEnv(ordered.replace(max_iterations=6), render_mode="human")
    env.metadata = {**env.metadata, "render_fps": 10_000}
    env.reset(seed=0)
    truncated = False
    while not truncated:
        *_, truncated, info = env.step(6)
    assert info["prefills"] > 0
    env.close()


def test_ids_and_arguments_that_contradict_each_other():
    for changes, words in (
        ({"ttft_s": None}, "give both or none"),
        ({"queue": "client"}, "orders by deadline are orders of one line"),
        (
            {"order": "late_last"},
            "order = 'late_last' with choose_order=True: the order is the action's; set order='fcfs'",
        ),
        ({"lengths": "hidden"}, "nobody would read what it says"),
        ({"workload": "gsm8k"}, "all released at one time, which no rate describes"),
    ):
        with pytest.raises(ConfigError, match=words):
            gymnasium.make("LLMSched/ServingOrder-v0", num_clients=5, num_requests=20, **changes).reset(seed=0)
    own = Scenario(workload="serving", queue="shared", order="fcfs", ttft_s=1.0, tpot_s=0.1)
    with pytest.raises(
        ConfigError, match=r"scenario has ttft_s = 1.0, but ttft_s = 2.0 is given beside it or fixed by"
    ):
        gymnasium.make("LLMSched/Serving-v0", scenario=own)
