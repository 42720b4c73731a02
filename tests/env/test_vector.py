"""The vector environment: each copy is a single environment, to the last bit, and episodes that end begin anew."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from comparing import assert_same
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from llmsched_env import ENVIRONMENTS, copies, make_scenario, vector_env
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError, UnknownNameError
from llmsched_env.vector_env import LLMSchedVectorEnv

VARIANTS: dict[str, dict[str, Any]] = {
    "client queues": {},
    "forced steps skipped": {"skip_forced": True},
    "mostly without a choice": {"skip_forced": True, "num_clients": 39, "stealing": False},
    "horizon": {"max_iterations": 90, "queue": "shared"},
    "hidden lengths": {"lengths": "hidden", "queue": "shared", "order": "fcfs", "reward": "latency"},
    "a pool without end": {"split": "test", "reward": "makespan"},
}


def synchronous(scenarios: list[Scenario]) -> SyncVectorEnv:
    """Gymnasium's own loop over single environments."""
    makers = [lambda scenario=scenario: LLMSchedEnv(scenario) for scenario in scenarios]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def assert_same_step(native: LLMSchedVectorEnv, result: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """The same, but for what running episodes have achieved: the native one measures that when it is asked."""
    *arrays, infos = expected
    measured = native.metrics()
    assert_same(measured, {name: infos[name] for name in measured})
    left = {key: value for key, value in infos.items() if key.removeprefix("_") not in measured}
    assert_same(result, (*arrays, left))


def play_both(native: LLMSchedVectorEnv, reference: SyncVectorEnv, steps: int, seed: int = 5) -> int:
    """Step both with the same actions; returns the number of episodes that ended.

    A third of the steps is enough where every copy has begun anew by then, 200 before.
    """
    rng = np.random.default_rng(seed)
    assert_same_step(native, native.reset(seed=seed), reference.reset(seed=seed))
    ended, prefills = 0, native.single_action_space.n
    last_step, anew = steps, np.zeros(native.num_envs, bool)
    for number in range(steps):
        if number == last_step:
            break
        actions = (rng.random(native.num_envs) < 0.4).astype(np.int64)
        if prefills > 2:
            actions *= rng.integers(1, prefills, native.num_envs)
        result = native.step(actions)
        assert_same_step(native, result, reference.step(actions))
        over = result[2] | result[3]
        ended += int(np.count_nonzero(over))
        if not anew.all() and (anew | over).all():
            last_step = max(steps // 3, number + 200)
        anew |= over
    assert_same_step(native, native.reset(), reference.reset())
    return ended


@pytest.mark.parametrize("name", VARIANTS)
def test_each_copy_is_a_single_environment(small, name):
    scenario = small.replace(**VARIANTS[name])
    native, reference = LLMSchedVectorEnv(4, scenario), synchronous([scenario] * 4)
    assert native.observation_space == reference.observation_space
    assert native.action_space == reference.action_space
    assert play_both(native, reference, 1500) >= 6


@pytest.mark.parametrize("identity", sorted(ENVIRONMENTS))
def test_every_id_is_made_natively(identity):
    arguments = {"num_clients": 30, "num_requests": 90, "assignment": "lpt"}
    native = gymnasium.make_vec(identity, num_envs=3, **arguments)
    assert isinstance(native, LLMSchedVectorEnv)
    assert native.metadata["autoreset_mode"] is native.autoreset_mode is AutoresetMode.SAME_STEP
    assert native.spec is not None
    assert native.spec.id == identity
    reference = synchronous([make_scenario(identity, **arguments)] * 3)
    assert play_both(native, reference, 2500) >= 3


def test_copies_of_different_scenarios(small):
    # Sizes that grow and shrink: a copy's memory must follow.
    scenarios = [small.replace(**changes) for changes in VARIANTS.values()]
    scenarios.append(Scenario(workload="lognormal", num_requests=30, num_clients=300, assignment="lpt"))
    native = LLMSchedVectorEnv(len(scenarios), scenarios)
    assert play_both(native, synchronous(scenarios), 700) >= 20


@pytest.mark.parametrize("threads", [2, 3, 24])
def test_results_do_not_depend_on_threads(small, threads):
    alone, together = (LLMSchedVectorEnv(24, small, threads=count) for count in (1, threads))
    rng = np.random.default_rng(0)
    assert_same(together.reset(seed=1), alone.reset(seed=1))
    ended = 0
    for _ in range(400):
        actions = rng.integers(0, 2, 24)
        result = together.step(actions)
        assert_same(result, alone.step(actions))
        ended += int(result[2].sum())
    assert ended >= 24
    together.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_threads_begin_anew_after_a_fork(small):
    env = LLMSchedVectorEnv(4, small, threads=2)
    env.reset(seed=0)
    env.step(np.ones(4, np.int64))
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs must not outlive the test
        env.step(np.ones(4, np.int64))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_seeds_are_those_of_the_copies(small):
    env = LLMSchedVectorEnv(3, small)
    assert env.np_random_seed == (-1, -1, -1)
    env.reset(seed=7)
    assert env.np_random_seed == (7, 8, 9)
    env.reset(seed=[None, 2**64, None])
    assert env.np_random_seed == (7, 2**64, 9)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.array, int])
def test_any_integer_is_a_seed_of_both_classes(small, kind):
    env, single = LLMSchedVectorEnv(2, small), LLMSchedEnv(small)
    observations, _ = env.reset(seed=kind(7))
    np.testing.assert_array_equal(single.reset(seed=kind(7))[0], observations[0])
    np.testing.assert_array_equal(single.reset(seed=kind(8))[0], observations[1])
    assert single.np_random_seed == 8
    assert type(single.np_random_seed) is int


def test_actions_in_unusual_arrays(small):
    env, untouched = LLMSchedVectorEnv(3, small), LLMSchedVectorEnv(3, small)
    env.reset(seed=0)
    untouched.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(0, 2, 3)
        frozen = actions.copy()
        frozen.setflags(write=False)
        expected = untouched.step(actions)
        unusual = [np.repeat(actions, 2)[::2], actions[::-1].copy()[::-1], frozen, actions.tolist()]
        assert_same(env.step(unusual[rng.integers(4)]), expected)


def test_an_episode_ends_and_the_next_begins_in_the_same_step(small):
    scenario = small.replace(max_iterations=7)
    env, single = LLMSchedVectorEnv(2, scenario), LLMSchedEnv(scenario)
    env.reset(seed=0)
    single.reset(seed=1)
    for step in range(1, 15):
        observations, rewards, terminated, truncated, infos = env.step(np.array([1, step % 2]))
        expected = single.step(step % 2)
        assert rewards[1] == expected[1]
        assert terminated[1] == expected[2]
        assert truncated[1] == expected[3] == (step % 7 == 0)
        assert ("final_obs" in infos) == (step % 7 == 0)
        if step % 7:
            np.testing.assert_array_equal(observations[1], expected[0])
            continue
        # The old episode's last observation and its metrics; the new one's first observation, mask and case.
        np.testing.assert_array_equal(infos["final_obs"][1], expected[0])
        assert infos["final_info"]["elapsed_s"][1] == expected[4]["elapsed_s"]
        assert infos["final_info"]["prefills"][1] + infos["final_info"]["decodes"][1] == 7
        begun, info = single.reset()
        np.testing.assert_array_equal(observations[1], begun)
        np.testing.assert_array_equal(infos["action_mask"][1], info["action_mask"])
        assert infos["case"][1] == info["case"]
        assert infos["final_info"]["case"][1] == expected[4]["case"]


def test_masks(small):
    env = LLMSchedVectorEnv(4, small)
    _, infos = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        masks = env.action_masks()
        assert masks.dtype == np.bool_
        np.testing.assert_array_equal(masks, infos["action_mask"].astype(bool))
        assert masks.any(axis=1).all()
        infos = env.step(np.where(masks[:, 1], 1 - masks[:, 0] * rng.integers(0, 2, 4), 0))[-1]
        assert not infos["invalid_actions"].any()


def test_pickled_in_the_middle_of_episodes(small):
    env = LLMSchedVectorEnv(3, small)
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.step(rng.integers(0, 2, 3))
    twin = pickle.loads(pickle.dumps(env))
    for _ in range(300):
        actions = rng.integers(0, 2, 3)
        assert_same(twin.step(actions), env.step(actions))


def test_pickled_into_another_process(small, tmp_path):
    # There, nothing of what the addresses meant here is left. Levels and a context term, too.
    cost = CostModel("levels", 0, 0, 17_000_000, 280_000, 100, 256, ((128, 20_000_000), (1024, 90_000_000)))
    env = LLMSchedVectorEnv(12, small.replace(cost=cost, prefill_token_cap=None))
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.step(rng.integers(0, 2, 12))
    file = tmp_path / "env.pickle"
    file.write_bytes(pickle.dumps(env))
    steps = rng.integers(0, 2, (150, 12))
    code = (
        "import pickle, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "env = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        f"steps = np.array({steps.tolist()})\n"
        "print(repr(sum(float(env.step(actions)[1].sum()) for actions in steps)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == sum(float(env.step(actions)[1].sum()) for actions in steps)


def test_masks_of_every_copy_stay_read_only(small):
    env = pickle.loads(pickle.dumps(LLMSchedVectorEnv(3, small)))
    _, infos = env.reset(seed=0)
    with pytest.raises(ValueError, match="read-only"):
        infos["_action_mask"][0] = False


def test_reset_of_some_copies_and_of_named_cases(small):
    env = LLMSchedVectorEnv(3, small)
    _, infos = env.reset(seed=0, options={"case": 7})
    np.testing.assert_array_equal(infos["case"], [7, 7, 7])
    _, infos = env.reset(options={"case": [1, 2, 3]})
    np.testing.assert_array_equal(infos["case"], [1, 2, 3])
    before, *_ = env.step(np.ones(3, np.int64))
    mask = np.array([False, True, False])
    observations, infos = env.reset(seed=[None, 9, None], options={"reset_mask": mask})
    np.testing.assert_array_equal(observations[[0, 2]], before[[0, 2]])
    begun, info = LLMSchedEnv(small).reset(seed=9)
    np.testing.assert_array_equal(observations[1], begun)
    assert infos["case"][1] == info["case"]
    np.testing.assert_array_equal(infos["case"], [1, info["case"], 3])
    assert infos["_case"].all()


class TestBadInput:
    def test_sizes(self, small):
        for changes in ({"num_envs": 0}, {"num_envs": 2.5}, {"num_envs": True}, {"threads": 0}, {"threads": 10**6}):
            with pytest.raises(ConfigError, match=next(iter(changes))):
                LLMSchedVectorEnv(scenario=small, **changes)

    def test_more_copies_than_memory(self, small, monkeypatch):
        with pytest.raises(ConfigError, match="GiB: make fewer"):
            LLMSchedVectorEnv(2**24, Scenario(num_clients=2**20))
        monkeypatch.setattr(copies, "memory_bytes", lambda: 3 * (copies.COPY_BYTES + 500))
        made = LLMSchedVectorEnv(3, small)
        with pytest.raises(ConfigError, match="20 copies need"):
            LLMSchedVectorEnv(20, small)
        # What the queues of a case need is known when it is there.
        with pytest.raises(ConfigError, match="3 copies need"):
            made.reset(seed=0)

    def test_scenarios(self, small):
        with pytest.raises(ConfigError, match="2 scenarios are given for 3 copies"):
            LLMSchedVectorEnv(3, [small, small])
        with pytest.raises(ConfigError, match="is not a Scenario"):
            LLMSchedVectorEnv(1, ["gsm8k"])
        for scenario in (5, "LLMSched/GSM8K-v0"):
            with pytest.raises(ConfigError, match="neither a Scenario nor a list"):
                LLMSchedVectorEnv(1, scenario)
        with pytest.raises(UnknownNameError, match="num_clients"):
            LLMSchedVectorEnv(1, num_client=5)
        with pytest.raises(ConfigError, match="does not draw"):
            gymnasium.make_vec("LLMSched/GSM8K-v0", num_envs=2, render_mode="rgb_array")

    @pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4], ()])
    def test_seeds_of_the_wrong_length(self, small, seed):
        with pytest.raises(ConfigError, match=f"{len(seed)} seeds are given for 3 copies"):
            LLMSchedVectorEnv(3, small).reset(seed=seed)

    @pytest.mark.parametrize(
        "seed", [-1, 1.5, "7", True, np.True_, 2**129, [0, -1, 2], [0, 0.5, 1], [0, True, 1], object(), np.array(-5)]
    )
    def test_seeds_that_are_none(self, small, seed):
        with pytest.raises(ConfigError, match="seed"):
            LLMSchedVectorEnv(3, small).reset(seed=seed)
        if not isinstance(seed, list):
            with pytest.raises(ConfigError, match="seed"):
                LLMSchedEnv(small).reset(seed=seed)

    def test_reset_options(self, small):
        env = LLMSchedVectorEnv(3, small)
        with pytest.raises(ConfigError, match="is not a dictionary"):
            env.reset(options=5)
        with pytest.raises(UnknownNameError, match="reset_mask"):
            env.reset(options={"mask": None})
        with pytest.raises(EpisodeOverError, match="without reset_mask"):
            env.reset(options={"reset_mask": np.array([True, False, True])})
        for mask in (np.ones(2, bool), np.ones(3), [True] * 3, np.zeros(3, bool)):
            with pytest.raises(ConfigError, match="reset_mask"):
                env.reset(options={"reset_mask": mask})
        for case in ([1, 2], -1, [0, 1, 1.5], "a", [[1, 2, 3]]):
            with pytest.raises(ConfigError, match="case"):
                env.reset(options={"case": case})

    @pytest.mark.parametrize(
        "actions",
        [
            [0, 1],
            [[0, 1, 0]],
            [0, [1], 0],
            1,
            [0.0, 1.0, 0.0],
            [True, False, True],
            ["0", "1", "0"],
            None,
            [0, None, 1],
        ],
    )
    def test_actions_of_the_wrong_shape_or_type(self, small, actions):
        env = LLMSchedVectorEnv(3, small)
        env.reset(seed=0)
        with pytest.raises(InvalidActionError, match=r"shape \(3,\)"):
            env.step(actions)

    def test_an_action_outside_the_space_changes_nothing(self, small):
        env, untouched = LLMSchedVectorEnv(3, small), LLMSchedVectorEnv(3, small)
        env.reset(seed=0)
        untouched.reset(seed=0)
        for outside in (2, -1, 2**40, 2**64 - 1):
            with pytest.raises(InvalidActionError, match=f"action {outside} of copy 2"):
                env.step(np.array([0, 1, outside], np.uint64 if outside > 2**62 else np.int64))
        assert_same(env.step([1, 1, 1]), untouched.step(np.ones(3, np.uint8)))

    def test_a_reset_that_fails_changes_nothing(self, small):
        env, untouched = LLMSchedVectorEnv(12, small), LLMSchedVectorEnv(12, small)
        with pytest.raises(ConfigError, match="case"):
            env.reset(seed=0, options={"case": [0] * 11 + [-1]})
        for call in (lambda: env.step([1] * 12), env.action_masks):
            with pytest.raises(EpisodeOverError, match="not begun"):
                call()
        with pytest.raises(EpisodeOverError, match="without reset_mask"):
            env.reset(options={"reset_mask": np.arange(12) == 11})
        env = pickle.loads(pickle.dumps(env))
        assert_same(env.reset(seed=4), untouched.reset(seed=4))
        with pytest.raises(ConfigError, match="case"):
            env.reset(seed=9, options={"case": -1})
        assert_same(env.step([1] * 12), untouched.step([1] * 12))
        assert_same(env.reset(), untouched.reset())

    def test_an_autoreset_that_fails_ends_the_copies(self, small, monkeypatch):
        env = LLMSchedVectorEnv(2, small.replace(max_iterations=1))
        env.reset(seed=0)
        with monkeypatch.context() as patched:
            patched.setattr(vector_env, "build_problem", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                env.step([1, 1])
        with pytest.raises(EpisodeOverError, match="not begun"):
            env.step([1, 1])
        env.reset()
        env.step([1, 1])

    def test_steps_before_reset_and_after_close(self, small):
        env = LLMSchedVectorEnv(3, small, threads=2)
        with pytest.raises(EpisodeOverError, match="not begun"):
            env.step([0, 0, 0])
        env.reset(seed=0)
        env.close()
        for call in (lambda: env.step([1, 1, 1]), env.reset, env.action_masks):
            with pytest.raises(EpisodeOverError, match="closed"):
                call()
