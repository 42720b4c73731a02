"""Compiled loops that only benchmarks need, and the plain simulator that they are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llmsched_env.core.episode import Block
from llmsched_env.core.features import NUM_FEATURES, observe
from llmsched_env.core.fleet import (
    Fleet,
    Steps,
    flags_at,
    load_copy,
    look_ahead,
    setups_at,
    states_at,
    step_copies,
    views_at,
)
from llmsched_env.core.instance import Instance
from llmsched_env.core.loops import OVER, choose, finished, run_rule
from llmsched_env.core.memory import copy_episode
from llmsched_env.core.transition import advance
from llmsched_env.jit import jit
from numpy.typing import NDArray

from llmsched_env.policy import CompiledRule

__all__ = ["CompiledFleet", "Episodes", "plain_episode"]

ROWS = 64
"""Observations go to a buffer of so many rows in turn, as a rollout buffer would take them."""


@jit
def run_episodes(views: Any, states: Any, setups: Any, rule: Any, parameters: Any, memory: Any) -> int:
    """Reset and run each pair (start, running) of episodes under ``rule``; returns the iterations."""
    total = 0
    for pair in range(len(views) // 2):
        copy_episode(views, states, setups, 2 * pair, 2 * pair + 1)
        row = 2 * pair + 1
        total += run_rule(views[row : row + 1], states[row : row + 1], setups[row : row + 1], rule, parameters, memory)
    return total


@jit
def run_observed(
    views: Any, states: Any, setups: Any, rule: Any, parameters: Any, memory: Any, out: NDArray[np.float32]
) -> int:
    """The same with the observation computed before each iteration."""
    total = 0
    for pair in range(len(views) // 2):
        copy_episode(views, states, setups, 2 * pair, 2 * pair + 1)
        v = views[2 * pair + 1]
        s = states[2 * pair + 1]
        k = setups[2 * pair + 1]
        while not finished(v, k):
            observe(v, out[total % ROWS])
            advance(v, s, k, choose(v, k, rule, parameters, memory))
            total += 1
    return total


@jit
def reset_episodes(views: Any, states: Any, setups: Any) -> int:
    """Only the resets."""
    for pair in range(len(views) // 2):
        copy_episode(views, states, setups, 2 * pair, 2 * pair + 1)
    return len(views) // 2


class Episodes:
    """Several cases, each with the memory that it starts from and the memory that it runs in.

    Args:
        instances: the cases.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._blocks = [Block(case.start, 2) for case in instances]  # kept alive for their addresses
        self._arrays = tuple(
            np.concatenate([getattr(block, name) for block in self._blocks]) for name in ("views", "states", "setups")
        )
        self._out = np.zeros((ROWS, NUM_FEATURES), np.float32)

    def run(self, rule: CompiledRule) -> int:
        """Whole episodes under a rule; returns their iterations."""
        call = run_episodes
        return call(*self._arrays, rule.function.handle, rule.parameters, rule.memory.copy())

    def run_observed(self, rule: CompiledRule) -> int:
        """The same with an observation at each iteration."""
        call = run_observed
        return call(*self._arrays, rule.function.handle, rule.parameters, rule.memory.copy(), self._out)

    def reset(self) -> int:
        """Only reset; returns the number of episodes."""
        return reset_episodes(*self._arrays)

    def clocks_ns(self) -> list[int]:
        """(cases,) the clock where each episode stands: after a run, its makespan."""
        return [int(view["clock_ns"]) for view in self._arrays[0][1::2]]

    def steals(self) -> int:
        """Requests taken from another client's queue, over all cases."""
        return int(self._arrays[1]["steals"][1::2].sum())

    @property
    def requests(self) -> int:
        """Requests of all cases in sum."""
        return int(self._arrays[2]["num_requests"][1::2].sum())


@jit
def run_fleet(fleet: int, out: int, sources: Any, actions: Any, steps: int) -> int:
    """Step every copy ``steps`` times and begin anew where an episode ends; returns the episodes that ended."""
    flags = flags_at(fleet)
    ended = 0
    for step in range(steps):
        if step_copies(fleet, out, 0, len(flags), actions[step % len(actions)]):
            for i in range(len(flags)):
                if flags[i] & OVER:
                    load_copy(fleet, out, i, sources[ended % len(sources)])
                    ended += 1
    return ended


@jit
def advance_fleet(fleet: int, out: int, sources: Any, actions: Any, steps: int) -> int:
    """The same without observation, reward and mask: transitions only."""
    views, states, setups = views_at(fleet), states_at(fleet), setups_at(fleet)
    ended = 0
    for step in range(steps):
        for i in range(len(views)):
            look_ahead(views, setups, i, len(views))
            advance(views[i], states[i], setups[i], actions[step % len(actions), i])
            if finished(views[i], setups[i]):
                load_copy(fleet, out, i, sources[ended % len(sources)])
                ended += 1
    return ended


@jit
def run_to_share(fleet: int, actions: Any, shares: Any) -> None:
    """Step each copy, alone, until that share of its requests is complete."""
    views, states, setups = views_at(fleet), states_at(fleet), setups_at(fleet)
    for i in range(len(shares)):
        step = 0
        while views[i].completed < shares[i] * setups[i].num_requests:
            advance(views[i], states[i], setups[i], actions[step % len(actions), i])
            step += 1


class CompiledFleet:
    """``count`` copies in a loop without Python: the ceiling of the vector environment.

    Args:
        instances: cases that the copies take in turn.
        count: copies.
    """

    def __init__(self, instances: Sequence[Instance], count: int) -> None:
        self._instances = instances  # kept alive for their addresses
        self._fleet, self._out = Fleet(count), Steps(count)
        largest = max(instances, key=lambda instance: instance.start.queue_bytes)
        for i in range(count):
            # The largest first: compiled code cannot make a copy's block grow.
            for instance in (largest, instances[i % len(instances)]):
                self._fleet.load(i, instance, self._out)
        self._sources = np.array([instance.start.setup_address for instance in instances])

    def _arguments(self, actions: NDArray[np.int64], steps: int) -> tuple[Any, ...]:
        return self._fleet.address, self._out.address, self._sources, actions, steps

    def scatter(self, actions: NDArray[np.int64]) -> None:
        """Bring every copy to a random depth of an episode, however long those are; up to nine tenths of it."""
        count = self._fleet.count
        depths = np.random.default_rng(0).random(count) * 0.9
        run_to_share(self._fleet.address, actions, depths)

    def spread(self, actions: NDArray[np.int64], steps: int) -> None:
        """``steps`` steps of every copy, each begun anew after some of them: copies then stand all over an episode."""
        begun_at = np.random.default_rng(0).integers(steps, size=self._fleet.count)
        for step in range(steps):
            for i in np.flatnonzero(begun_at == step).tolist():
                self._fleet.load(i, self._instances[(i + 1) % len(self._instances)], self._out)
            self.run(actions[step % len(actions)][np.newaxis], 1)

    def run(self, actions: NDArray[np.int64], steps: int) -> int:
        """``steps`` steps of every copy, with everything that a vector environment returns; the episodes ended."""
        call = run_fleet
        return call(*self._arguments(actions, steps))

    def advance(self, actions: NDArray[np.int64], steps: int) -> int:
        """Only transitions."""
        call = advance_fleet
        return call(*self._arguments(actions, steps))


def plain_episode(
    prompts: Any, outputs: Any, finish_at: Any, clients: int, threshold: int, cap: int, cost: Any
) -> tuple[int, int]:
    """The paper's system in as few lines as it takes: one shared queue, known costs, the threshold rule.

    What anybody would write first, and as quick as plain Python is: a decode costs the same whatever the number of
    clients, because completions are counted in a calendar by decode. No client has an identity, nothing is recorded,
    nothing is shown to a policy. Also compiled as it stands: the least that an iteration can cost.

    Args:
        prompts: prompt tokens in the order in which requests are taken.
        outputs: output tokens.
        finish_at: zeros, longer than the longest output by 1 and a power of two.
        clients: J.
        threshold: idle clients that make a prefill worth while.
        cap: most prompt tokens in a prefill.
        cost: alpha_prefill, beta_prefill, alpha_decode, beta_decode in ns.

    Returns:
        makespan in ns, iterations.
    """
    alpha_prefill_ns, beta_prefill_ns, alpha_decode_ns, beta_decode_ns = cost
    mask = len(finish_at) - 1
    n = len(prompts)
    clock_ns = 0
    head = active = decodes = prefills = 0
    while active > 0 or head < n:
        idle = clients - active
        if head < n and (active == 0 or (idle > 0 and (idle >= threshold or idle >= n - head))):
            tokens = first = 0
            while head < n and first < idle and (first == 0 or tokens + prompts[head] <= cap):
                tokens += prompts[head]
                if outputs[head] > 1:
                    finish_at[(decodes + outputs[head] - 1) & mask] += 1
                    active += 1
                head += 1
                first += 1
            clock_ns += alpha_prefill_ns + beta_prefill_ns * tokens
            prefills += 1
        else:
            clock_ns += alpha_decode_ns + beta_decode_ns * active
            decodes += 1
            active -= finish_at[decodes & mask]
            finish_at[decodes & mask] = 0
    return clock_ns, prefills + decodes
