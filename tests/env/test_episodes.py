"""What the environment does with a scenario: masks, ends, cases, observations at the edges of what can be asked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from llmsched_env.config import REWARDS, Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engine.recorder import FIRST_CAPACITY
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError, UnknownNameError
from llmsched_env.policy import features
from llmsched_env.workload import MixtureWorkload

FREE = CostModel("free", 0, 1, 0, 1)
LEVELS = CostModel("levels", 0, 0, 10, 1, prefill_token_cap=100, prefill_levels=((50, 30), (4096, 90)))
CONTEXT = CostModel("context", 50, 3, 10, 1, gamma_decode_ns=2)
SLO = {"queue": "shared", "order": "fcfs", "ttft_s": 0.3, "tpot_s": 0.025}
HOSTILE = {
    "one client": {"num_clients": 1, "assignment": "round_robin"},
    "more clients than requests": {"num_clients": 2000},
    "one request": {"num_requests": 1},
    "one request and one client": {"num_requests": 1, "num_clients": 1},
    "hidden lengths": {"lengths": "hidden"},
    "hidden, shared": {"lengths": "hidden", "queue": "shared", "order": "fcfs"},
    "levels": {"cost": LEVELS},
    "context": {"cost": CONTEXT, "reward": "latency"},
    "first decode": {
        "cost": replace(CONTEXT, first_decode_ns=70),
        "believed_cost": replace(CONTEXT, first_decode_ns=9),
    },
    "no fixed time": {"cost": FREE},
    "cap of one token": {"prefill_token_cap": 1},
    "no stealing": {"stealing": False, "reward": "idle"},
    "skipping": {"skip_forced": True},
    "SLOs": SLO,
    "orders": {**SLO, "choose_order": True},
    "orders, skipping": {**SLO, "choose_order": True, "skip_forced": True, "lengths": "hidden"},
    "late last of one length": {**SLO, "order": "late_last_longest", "lengths": "hidden"},
    "one request that counts": {**SLO, "num_requests": 3, "uncounted_share": 0.49},
    "one request with SLOs": {**SLO, "num_requests": 1, "reward": "goodput"},
    "SLOs at levels": {**SLO, "cost": LEVELS, "order": "late_last", "ttft_s": 1e-7, "tpot_s": 2e-8},
    "SLOs and context": {**SLO, "cost": CONTEXT, "choose_order": True, "ttft_s": 1e-3, "tpot_s": 1e-3},
    "SLOs that all meet": {**SLO, "ttft_s": 1e6, "tpot_s": 500.0},
    "equal lengths": {
        "workload": MixtureWorkload(num_requests=30, output_mean_tokens=5.0, cap_tokens=9, cap_probability=1.0)
    },
}


@pytest.fixture
def trace(tmp_path):
    """A CSV file with late arrivals, gaps and predictions that are wrong."""
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(0.4, 30)) + 3.0
    lines = ["prompt_tokens,output_tokens,arrival_s,predicted_tokens"]
    lines += [f"{rng.integers(1, 200)},{rng.integers(1, 40)},{t:.9f},{rng.integers(1, 40)}" for t in arrival_s]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines))
    return path


def play(env, seed=0, case=0):
    """A random episode: yields (observation, reward, info) of every step, the end's flags in ``info``."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed, options={"case": case})
    for _ in itertools.count():
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        yield observation, reward, {**info, "terminated": terminated, "truncated": truncated}
        if terminated or truncated:
            return


def assert_sound(env):
    steps = list(play(env))
    for observation, reward, _ in steps:
        assert observation.dtype == np.float32
        assert env.observation_space.contains(observation), observation
        assert np.isfinite(reward)
        assert type(reward) is float
    _, _, last = steps[-1]
    assert last["terminated"]
    assert last["completed"] == env.simulator.problem.num_requests
    return len(steps)


@pytest.mark.parametrize("name", HOSTILE)
def test_observations_stay_in_their_box(make, name):
    assert assert_sound(make(**HOSTILE[name])) >= 1


@pytest.mark.parametrize("lengths", ["known", "predicted", "hidden"])
@pytest.mark.parametrize("queue", ["shared", "client"])
def test_observations_stay_in_their_box_with_arrivals(make, trace, lengths, queue):
    env = make(workload=trace, lengths=lengths, queue=queue, num_clients=3, reward="latency")
    assert_sound(env)
    assert env.simulator.totals.jump_ns > 3e9, "the clock starts at the first arrival"


def test_an_observation_is_never_written_to_again(make):
    env = make()
    kept, copies = [], []
    for observation, _, _ in play(env):
        kept.append(observation)
        copies.append(observation.copy())
    np.testing.assert_array_equal(kept, copies)
    np.testing.assert_array_equal(kept[-1], features(env.simulator.view))


def doubled(scenario, tmp_path, times):
    """Every request ``times`` times, on as many times the clients, at the same price for all of them together.

    The cap does not bind: where a batch is cut depends on the size of what is cut.
    """
    rng = np.random.default_rng(5)
    rows = [f"{rng.integers(1, 60)},{rng.integers(1, 30)}" for _ in range(24)]
    path = tmp_path / f"times_{times}.csv"
    path.write_text("\n".join(["prompt_tokens,output_tokens", *(row for row in rows for _ in range(times))]))
    cost = CostModel("test", 4000, 1024 // times, 2000, 512 // times, prefill_token_cap=256 * times)
    return scenario.replace(workload=path, num_clients=4 * times, cost=cost, prefill_token_cap=None)


@pytest.mark.parametrize("order", ["fcfs", "longest_first", "shortest_first"])
def test_an_observation_means_the_same_at_any_size(small, tmp_path, order):
    shared = small.replace(queue="shared", order=order)
    one, eight = (LLMSchedEnv(doubled(shared, tmp_path, times)) for times in (1, 8))
    steps = 0
    for (observation, reward, _), (other, same_reward, _) in zip(play(one), play(eight), strict=True):
        # Powers of two change no rounding: the same to the last bit.
        np.testing.assert_array_equal(observation, other)
        assert reward == pytest.approx(same_reward, rel=0.05)  # the bound is rounded up to whole iterations
        steps += 1
    assert steps > 50


def test_an_observation_means_the_same_on_any_cost_scale(make, small):
    cost = small.cost_model
    coefficients = ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns")
    times_64 = replace(cost, **{name: 64 * getattr(cost, name) for name in coefficients})
    slow, fast = make(cost=times_64), make(cost=cost)
    for (observation, reward, _), (other, same_reward, _) in zip(play(slow), play(fast), strict=True):
        np.testing.assert_array_equal(observation, other)
        assert reward == same_reward


def test_masks_say_what_is_feasible(make):
    env = make(stealing=False)
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    infeasible, both, terminated = 0, 0, False
    while not terminated:
        mask, simulator = info["action_mask"], env.simulator
        assert mask.dtype == np.int8
        assert mask.tolist() == [simulator.can_decode, simulator.can_prefill]
        assert env.action_masks().dtype == np.bool_
        assert env.action_masks().tolist() == mask.astype(bool).tolist()
        action, before = int(rng.integers(0, 2)), (int(simulator.view.decodes), int(simulator.view.prefills))
        _, _, terminated, _, info = env.step(action)
        taken = [simulator.view.decodes, simulator.view.prefills][action] - before[action]
        assert taken == mask[action]
        infeasible += not mask[action]
        both += mask.all()
        assert info["invalid_actions"] == infeasible
    assert infeasible > 0, "every action was feasible"
    assert both > 0, "there was never a choice"
    assert info["action_mask"].tolist() == [0, 0]


def test_a_mask_that_is_kept_does_not_change(make):
    env = make()
    _, info = env.reset(seed=0)
    info["action_mask"][:] = 1
    assert env.reset(seed=0)[1]["action_mask"].tolist() == [0, 1]


def test_skipping_leaves_only_choices(make):
    plain, skipping = make(), make(skip_forced=True)
    _, info = skipping.reset(options={"case": 3})
    plain.reset(options={"case": 3})
    paid = [0.0, 0.0]
    terminated = False
    while not terminated:
        assert info["action_mask"].tolist() == [1, 1]
        # The plain one needs a step for each iteration without a choice.
        while not plain.action_masks().all():
            paid[0] += plain.step(int(plain.simulator.can_prefill))[1]
        action = int(skipping.simulator.view.ready >= 2)
        paid[0] += plain.step(action)[1]
        _, reward, terminated, _, info = skipping.step(action)
        paid[1] += reward
    while not plain.simulator.done:
        paid[0] += plain.step(int(plain.simulator.can_prefill))[1]
    assert plain.simulator.view.clock_ns == skipping.simulator.view.clock_ns
    assert paid[0] == pytest.approx(paid[1], rel=1e-12)


@pytest.mark.parametrize("reward", REWARDS)
def test_an_episode_without_a_choice_ends_in_its_first_step(make, reward):
    slo = {"queue": "shared", "ttft_s": 1.0, "tpot_s": 0.1} if reward == "goodput" else {}
    env = make(num_clients=1, assignment="round_robin", skip_forced=True, reward=reward, **slo)
    for _ in range(2):
        _, info = env.reset(seed=0)
        assert info["action_mask"].tolist() == [0, 0]
        observation, paid, terminated, truncated, info = env.step(0)
        assert (terminated, truncated) == (True, False)
        assert env.observation_space.contains(observation)
        assert info["completed"] == 40
        assert info["invalid_actions"] == 0
        assert paid == -env.simulator.charge / env.simulator.problem.data.reward_scale
        assert (paid < 0) == (reward not in ("idle", "differential")), "a single client is never idle"
        with pytest.raises(EpisodeOverError, match="call reset"):
            env.step(0)


def test_the_horizon_truncates(make):
    *_, (_, _, info) = list(play(make(max_iterations=70)))
    assert (info["terminated"], info["truncated"]) == (False, True)
    assert info["prefills"] + info["decodes"] == 70
    assert 0 < info["completed"] < 40, "the horizon is too short or too long to tell"


def test_ending_at_the_horizon_is_ending(make):
    *_, (_, _, info) = list(play(make()))
    iterations = info["prefills"] + info["decodes"]
    *_, (_, _, info) = list(play(make(max_iterations=iterations)))
    assert (info["terminated"], info["truncated"]) == (True, False)


def test_cases_are_picked_exactly(make):
    env = make()
    first, _ = env.reset(options={"case": 4})
    plan = env.simulator.problem
    env.reset(options={"case": 5})
    assert env.simulator.problem is not plan
    again, info = env.reset(options={"case": np.int64(4)})
    assert info["case"] == 4
    assert type(info["case"]) is int
    assert env.simulator.problem is plan
    np.testing.assert_array_equal(first, again)


def test_cases_of_a_pool_are_all_drawn(make):
    env = make(split="test")
    env.reset(seed=0)
    assert {env.reset()[1]["case"] for _ in range(1200)} == set(range(100))


@pytest.mark.parametrize("case", [-1, 2**63, 1.0, 0.5, True, "0", float("nan"), [1]])
def test_no_such_case(make, case):
    env = make()
    env.reset(options={"case": 1})
    with pytest.raises(ConfigError, match="case number"):
        env.reset(options={"case": case})


def test_an_unknown_option(make):
    with pytest.raises(UnknownNameError, match=r"unknown reset option 'cas'. Did you mean 'case'"):
        make().reset(options={"cas": 1})


@pytest.mark.parametrize("action", [2, -1, 0.5, 1.0, None, "1", np.array([1]), np.array([0, 1]), 2**70])
def test_an_action_outside_the_space(make, action):
    env = make()
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"action .* is not in Discrete\(2\): 0 is decode, 1 is prefill"):
        env.step(action)
    assert env.simulator.view.prefills == 0
    env.step(1)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.array, bool])
def test_any_integer_is_an_action(make, kind):
    env = make()
    env.reset(seed=0)
    env.step(kind(1))
    env.step(kind(0))
    assert (env.simulator.view.prefills, env.simulator.view.decodes) == (1, 1)


def test_stepping_where_there_is_no_episode(make):
    env = make(num_requests=1)
    with pytest.raises(EpisodeOverError, match="call reset"):
        env.step(0)
    with pytest.raises(EpisodeOverError, match="call reset"):
        _ = env.simulator
    list(play(env))
    with pytest.raises(EpisodeOverError, match="call reset"):
        env.step(0)


def test_a_recorded_episode_outgrows_its_log(small):
    # `ansi` records every iteration; nothing is drawn here.
    workload = MixtureWorkload(num_requests=2, output_mean_tokens=5000.0, output_sd_tokens=2000.0, cap_tokens=6000)
    env = LLMSchedEnv(small.replace(workload=workload, skip_forced=True), render_mode="ansi")
    plain = LLMSchedEnv(env.scenario)
    for seed in (0, 1):
        steps, same = list(play(env, seed)), list(play(plain, seed))
        assert [reward for _, reward, _ in steps] == [reward for _, reward, _ in same]
        log = env.simulator.log
        assert len(log) == env.simulator.view.prefills + env.simulator.view.decodes > FIRST_CAPACITY
        assert log["end_ns"][-1] == env.simulator.view.clock_ns == plain.simulator.view.clock_ns


def test_scenario_and_arguments_are_one(small):
    assert LLMSchedEnv(small).scenario == small
    assert LLMSchedEnv(num_clients=50).scenario == Scenario(num_clients=50)
    assert LLMSchedEnv(small, reward="idle").scenario == small.replace(reward="idle")
    with pytest.raises(ConfigError, match="scenario has num_clients = 6, but num_clients = 7 is given"):
        LLMSchedEnv(small, num_clients=7)
