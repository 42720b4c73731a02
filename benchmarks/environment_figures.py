"""Figures of one environment as a user steps it, beside Gymnasium's CartPole under the same driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from measuring import Figure, repeat

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env.engine.features import FEATURES

__all__ = ["environment_figures"]

SECTION = "One environment through gymnasium.make, resets included"
TARGET_RATIO = 3.0


def _drive(env: gymnasium.Env[Any, Any], actions: Sequence[int]) -> Callable[[], None]:
    """Take ``actions`` one after another, a new episode wherever one ends."""

    def run() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return run


def _balancing(steps: int) -> list[int]:
    """Actions that keep CartPole up for whole episodes of 500 steps when they start from seed 0: few resets."""
    env = gymnasium.make("CartPole-v1")
    actions: list[int] = []
    observation, _ = env.reset(seed=0)
    while len(actions) < steps:
        action = int(observation[2] + 0.5 * observation[3] + 0.01 * observation[0] + 0.05 * observation[1] > 0)
        actions.append(action)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
    return actions


def environment_figures(*, steps: int, repeats: int) -> Iterator[Figure]:
    """Steps per second, and where the time of a step goes."""
    coin = np.random.default_rng(0).integers(2, size=steps).tolist()
    ours = {name: gymnasium.make(name) for name in ("LLMSched/GSM8K-v0", "LLMSched/GSM8K-Smooth-v0")}
    skipping = gymnasium.make("LLMSched/GSM8K-v0", skip_forced=True)
    cartpole = gymnasium.make("CartPole-v1")
    timings = repeat(
        _drive(cartpole, coin),
        _drive(gymnasium.make("CartPole-v1"), _balancing(steps)),
        *(_drive(env, coin) for env in ours.values()),
        _drive(skipping, coin),
        _drive(ours["LLMSched/GSM8K-v0"].unwrapped, coin),
        repeats=repeats,
    )
    coin_rate, balanced_rate, *rates, skipping_rate, bare_rate = (steps / timing.best_s / 1e6 for timing in timings)
    unit = "M steps/s"
    for name, rate in zip(ours, rates, strict=True):
        yield Figure(SECTION, name, rate, unit, coin_rate, "CartPole-v1, same actions", TARGET_RATIO, "ratio")
    yield Figure(
        SECTION, "LLMSched/GSM8K-v0 (the same)", rates[0], unit, balanced_rate, "CartPole-v1, episodes of 500 steps"
    )
    yield Figure(SECTION, "LLMSched/GSM8K-v0, skip_forced", skipping_rate, unit, coin_rate, "CartPole-v1, same actions")
    yield Figure(SECTION, "LLMSched/GSM8K-v0 without wrappers", bare_rate, unit, rates[0], "with")
    yield from _parts(ours["LLMSched/GSM8K-v0"], coin, repeats)


def _parts(env: gymnasium.Env[Any, Any], actions: Sequence[int], repeats: int) -> Iterator[Figure]:
    """The parts of a step, each alone."""
    section = "Where the time of a step goes (LLMSched/GSM8K-v0, each part alone)"
    bare: Any = env.unwrapped
    out = np.empty(len(FEATURES), np.float32)

    def compiled() -> None:
        bare.reset(options={"case": 0})
        single = bare._single
        for action in actions:
            single.go_logged(action)
            if single.over:
                bare.reset(options={"case": 0})

    def flag_checks() -> None:
        single = bare._single
        for _ in actions:
            single.over  # noqa: B018  # to time it

    def observation() -> None:
        for _ in actions:
            out.copy()

    def info() -> None:
        single = bare._single
        for _ in actions:
            single.info(single.running)

    def reset() -> None:
        for number in range(100):
            bare.reset(options={"case": number % 2})

    bare.reset(seed=0)
    timings = repeat(
        _drive(env, actions), compiled, flag_checks, observation, info, reset, _loop(actions), repeats=repeats
    )
    whole_s, compiled_s, check_s, observation_s, info_s, reset_s, loop_s = (timing.best_s for timing in timings)
    whole_ns = whole_s / len(actions) * 1e9
    for name, seconds in (
        ("transition, reward and observation", compiled_s - check_s),
        ("a new observation array", observation_s - loop_s),
        ("metrics so far, and an info with them and a new mask", info_s - loop_s),
    ):
        yield Figure(section, name, seconds / len(actions) * 1e9, "ns", whole_ns, "a whole step")
    yield Figure(
        section, "a reset to another case in memory, once in an episode", reset_s / 100 * 1e9, "ns", whole_ns, "a step"
    )


def _loop(actions: Sequence[int]) -> Callable[[], None]:
    def run() -> None:
        for _ in actions:
            pass

    return run
