"""Figures of many copies: the vector environment beside its ceiling and beside what users know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from copies import KINDS, BareFleet, Fleet
from gymnasium.vector import AutoresetMode
from measuring import Figure, repeat
from numpy.typing import NDArray

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env import make_scenario
from llmsched_env.cases import build_problem, pool_size
from llmsched_env.config import Scenario
from llmsched_env.engine.batch import Batch
from llmsched_env.engine.features import FEATURES

__all__ = ["CopiesPoint", "copies_points", "learning_figures", "size_points", "vector_figures"]

IDS = ("LLMSched/GSM8K-v0", "LLMSched/GSM8K-Smooth-v0")
PREFILL_SHARE = 0.07
"""Of random actions: about as many prefills as a good rule orders."""
ACTION_ROWS = 64
STEPS_BEFORE = 2_400
"""Steps before anything is timed, about an episode. Each copy begins anew at another of them, so that copies stand
anywhere in an episode, as after a while of training: its beginning and its end are cheaper than the rest."""
COPIES = (1, 4, 16, 64, 256, 1_024, 4_096)
UNIT = "M steps/s"


class CopiesPoint(NamedTuple):
    """Environment steps per second, in millions, at one number of copies."""

    identity: str
    copies: int
    ours: float
    ceiling: float
    cartpole: float


def _actions(copies: int, prefill_share: float = PREFILL_SHARE) -> NDArray[np.int64]:
    return (np.random.default_rng(0).random((ACTION_ROWS, copies)) < prefill_share).astype(np.int64)


def _warmed(identity: str) -> list[Any]:
    """Every case of the pool, built and begun once: a training run meets them all in its first minute."""
    scenario = make_scenario(identity)
    cases = [build_problem(scenario, case) for case in range(pool_size(scenario) or 0)]
    for case in cases:
        case.start  # noqa: B018  # made at the first use, in a millisecond
    return cases


def _spread(env: Any, actions: NDArray[np.int64]) -> Any:
    """Reset ``env`` and bring its copies to where they are after a while of training."""
    env.reset(seed=0)
    begun_at = np.random.default_rng(0).integers(STEPS_BEFORE, size=env.num_envs)
    for step in range(STEPS_BEFORE):
        now = begun_at == step
        if now.any():
            env.reset(options={"reset_mask": now})
        env.step(actions[step % ACTION_ROWS])
    return env


def _stepper(env: Any, actions: NDArray[np.int64], steps: int) -> Callable[[], None]:
    """Take ``steps`` rows of ``actions`` in turn, going on where the last call stopped."""
    rows = list(actions)
    row = 0

    def run() -> None:
        nonlocal row
        step, number = env.step, len(rows)
        for _ in range(steps):
            step(rows[row % number])
            row += 1

    return run


def _steps_for(copies: int, budget: int) -> int:
    return max(20, min(5_000, budget // copies))


def copies_points(*, budget: int, repeats: int) -> list[CopiesPoint]:
    """Vector environment, ceiling and CartPole's own vector class from 1 to 4,096 copies.

    Args:
        budget: environment steps a call.
        repeats: calls of each, taken in turn.
    """
    points = []
    for identity in IDS:
        cases = _warmed(identity)
        for copies in COPIES:
            steps, actions = _steps_for(copies, budget), _actions(copies)
            ours = _spread(gymnasium.make_vec(identity, num_envs=copies), actions)
            cartpole = gymnasium.make_vec("CartPole-v1", num_envs=copies, vectorization_mode="vector_entry_point")
            cartpole.reset(seed=0)
            fleet = Fleet(cases, copies)
            fleet.spread(actions, STEPS_BEFORE)
            timings = repeat(
                _stepper(ours, actions, steps),
                lambda f=fleet, a=actions, s=steps: f.run(a, s),
                _stepper(cartpole, _actions(copies, 0.5), steps),
                repeats=repeats,
            )
            points.append(CopiesPoint(identity, copies, *(steps * copies / t.best_s / 1e6 for t in timings)))
    return points


def vector_figures(points: Sequence[CopiesPoint], *, budget: int, repeats: int) -> Iterator[Figure]:
    """The targets of the vector environment, each beside its reference."""
    section = "Many copies through gymnasium.make_vec, resets and copies of returned arrays included"
    for point in points:
        if point.copies not in (64, 256, 1_024):
            continue
        name = f"{point.identity}, {point.copies:,} copies"
        target: dict[str, Any] = {"target": 3.0, "target_on": "ratio"} if point.copies == 64 else {}
        yield Figure(section, name, point.ours, UNIT, point.cartpole, "CartPole-v1, its own vector class", **target)
        if point.copies == 1_024:
            yield Figure(section, name, point.ours, UNIT, target=8.0)
        yield Figure(section, name, point.ours, UNIT, point.ceiling, "the batch alone", 0.6, "ratio")
    yield from _beside_others(budget, repeats)
    yield from _parts(budget, repeats)


def _beside_others(budget: int, repeats: int) -> Iterator[Figure]:
    section = "The same, beside other ways to step copies (LLMSched/GSM8K-v0)"
    identity, copies = IDS[0], 64
    steps, actions = _steps_for(copies, budget), _actions(copies)
    ours = _spread(gymnasium.make_vec(identity, num_envs=copies), actions)
    slow = gymnasium.make_vec(
        identity, num_envs=copies, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )  # fmt: skip
    slow.reset(seed=0)
    calls = [_stepper(ours, actions, steps), _stepper(slow, actions, max(1, steps // 20))]
    names = ["SyncVectorEnv over single environments, its first steps"]
    shares = [1, max(1, steps // 20) / steps]
    envpool = _envpool(copies)
    if envpool is not None:
        calls.append(_stepper(envpool, _actions(copies, 0.5).astype(np.int32), steps))
        names.append("EnvPool CartPole-v1, one thread")
        shares.append(1)
    timings = repeat(*calls, repeats=repeats)
    rates = [steps * share * copies / timing.best_s / 1e6 for share, timing in zip(shares, timings, strict=True)]
    for name, rate in zip(names, rates[1:], strict=True):
        yield Figure(section, f"{copies} copies", rates[0], UNIT, rate, name)


def _envpool(copies: int) -> Any:
    try:
        import envpool
    except ImportError:
        return None
    env = envpool.make("CartPole-v1", "gymnasium", num_envs=copies, num_threads=1)
    env.reset()
    return env


def _parts(budget: int, repeats: int) -> Iterator[Figure]:
    """Where a step goes, by taking parts away."""
    for identity in IDS:
        cases = _warmed(identity)
        for copies in (64, 1_024):
            section = f"Where the time of a copy's step goes ({identity}, {copies:,} copies)"
            steps, actions = _steps_for(copies, budget), _actions(copies)
            env = _spread(gymnasium.make_vec(identity, num_envs=copies), actions)
            fleet, bare = Fleet(cases, copies), BareFleet(cases, copies)
            for some in (fleet, bare):
                some.spread(actions, STEPS_BEFORE)
            bare.gather()
            batch = Batch(copies, KINDS, len(FEATURES))
            timings = repeat(
                _stepper(env, actions, steps),
                lambda f=fleet, a=actions, s=steps: f.run(a, s),
                lambda f=bare, a=actions, s=steps: f.advance(a, s),
                lambda b=batch, s=steps: _hand_out(b, s),
                repeats=repeats,
            )
            whole, batch_ns, transition, arrays = (t.best_s / steps / copies * 1e9 for t in timings)
            for name, ns in (
                ("transition and reset", transition),
                ("observation, reward, mask, and writing them", batch_ns - transition),
                ("arrays to return", arrays),
                ("the rest in Python: checks, infos, ends of episodes", whole - batch_ns - arrays),
            ):
                yield Figure(section, name, ns, "ns", whole, "a copy's step")
    yield Figure("State of a copy", "with 200 clients", float(_warmed(IDS[0])[0].episode_nbytes), "B")


def _hand_out(batch: Batch, steps: int) -> None:
    for _ in range(steps):
        batch.next_steps().views()


def learning_figures(*, budget: int, repeats: int, timesteps: int) -> Iterator[Figure]:
    """The adapter for stable-baselines3 beside its own loop, and the environment's share of PPO's time."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from llmsched_env.agents.vec_env import SB3VecEnv

    section = "Through stable-baselines3 (LLMSched/GSM8K-v0)"
    copies = 256
    scenario = make_scenario(IDS[0])
    steps, actions = _steps_for(copies, budget), _actions(copies)
    ours = SB3VecEnv(copies, scenario)
    theirs = DummyVecEnv([lambda: gymnasium.make(IDS[0]) for _ in range(copies)])
    for env in (ours, theirs):
        env.seed(0)
        env.reset()
    _spread(ours._copies, actions)
    few = max(1, steps // 20)
    timings = repeat(_stepper(ours, actions, steps), _stepper(theirs, actions, few), repeats=repeats)
    rates = [count * copies / timing.best_s / 1e6 for count, timing in zip((steps, few), timings, strict=True)]
    yield Figure(section, f"{copies} copies", rates[0], UNIT, target=3.0)
    yield Figure(
        section, f"{copies} copies", rates[0], UNIT, rates[1], "DummyVecEnv over single environments, its first steps"
    )

    class Timed(SB3VecEnv):
        spent_s = 0.0

        def step_wait(self) -> Any:
            start = time.perf_counter()
            result = super().step_wait()
            self.spent_s += time.perf_counter() - start
            return result

        def reset(self) -> Any:
            start = time.perf_counter()
            result = super().reset()
            self.spent_s += time.perf_counter() - start
            return result

    for name, settings in (
        ("its defaults, 8 copies", {"copies": 8, "n_steps": 256, "batch_size": 64, "n_epochs": 10}),
        ("large batches, 256 copies", {"copies": 256, "n_steps": 32, "batch_size": 2_048, "n_epochs": 2}),
    ):
        skipping = scenario.replace(skip_forced=True)
        for case in range(pool_size(skipping) or 0):  # built once, as a training run does
            build_problem(skipping, case)
        env = Timed(settings.pop("copies"), skipping)
        model = PPO("MlpPolicy", env, seed=0, device="cpu", **settings)
        start = time.perf_counter()
        model.learn(timesteps)
        whole_s = time.perf_counter() - start
        yield Figure(
            section, f"PPO, {name}: share of its time spent in the environment", env.spent_s / whole_s * 100, "%",
            target=8.0, at_least=False,
        )  # fmt: skip
        yield Figure(section, f"PPO, {name}: all of it", model.num_timesteps / whole_s / 1e6, UNIT)


def size_points(*, budget: int, repeats: int) -> dict[str, list[tuple[int, float]]]:
    """Millions of steps a second of 64 copies as clients, then requests, grow (shared queue, longest first)."""
    copies = 64
    actions = _actions(copies)
    found: dict[str, list[tuple[int, float]]] = {}
    kinds = {
        "clients": [(size, {"num_clients": size, "num_requests": 7 * size}) for size in (50, 200, 1_000, 5_000)],
        "requests": [(size, {"num_requests": size}) for size in (100, 1_000, 10_000, 100_000)],
    }
    for kind, sizes in kinds.items():
        found[kind] = []
        for size, changes in sizes:
            scenario = Scenario(workload="gsm8k-smooth", split="train", queue="shared", **changes)
            fleet = Fleet([build_problem(scenario, case) for case in range(8)], copies)
            steps = _steps_for(copies, budget)
            fleet.scatter(actions)
            (timing,) = repeat(lambda f=fleet, s=steps: f.run(actions, s), repeats=repeats)
            found[kind].append((size, steps * copies / timing.best_s / 1e6))
    return found
