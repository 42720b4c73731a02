"""Loops over the transition: one step of an environment, whole episodes under a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.features import observe
from llmsched_env.core.layout import SETUP, STATE, VIEW
from llmsched_env.core.measure import measure_so_far, pack
from llmsched_env.core.pointers import array_at
from llmsched_env.core.reward import charge
from llmsched_env.core.rules import call_rule
from llmsched_env.core.transition import DECODE, PREFILL, advance
from llmsched_env.jit import inlined, jit

__all__ = ["advance_once", "choose", "feasible", "has_choice", "run_rule", "step", "step_and_measure", "step_episode"]

OBSERVE = -1
CONTINUE = -2

TERMINATED = 4
TRUNCATED = 8
OVER = TERMINATED | TRUNCATED
LOG_FULL = 16
INVALID_SHIFT = 5


@jit
def feasible(v: Any) -> int:
    """Bit 0: a decode is feasible; bit 1: prefills are. 0 when the episode is complete."""
    return (1 if v.active > 0 else 0) + (2 if v.ready > 0 else 0)


@inlined
def has_choice(v: Any, k: Any) -> bool:
    """Whether more than one action is feasible and makes a difference."""
    if v.ready == 0:
        return False
    return v.active > 0 or (k.num_actions > 2 and (v.waiting > 1 or k.mixed_budget > 0))


@inlined
def choose(v: Any, k: Any, rule: Any, parameters: Any, memory: Any) -> int:
    """The next action: the rule's where there is a choice, else the one that is feasible.

    A decode where the rule names no action; a prefill by the first order where it wants a decode and none can be.
    """
    if not has_choice(v, k):
        return DECODE if v.ready == 0 else PREFILL
    action = call_rule(rule, v, parameters, memory)
    if action < 0 or action >= k.num_actions:
        action = DECODE
    return PREFILL if action == DECODE and v.active == 0 else action


@jit
def finished(v: Any, k: Any) -> bool:
    """Whether every request is complete, or the horizon is reached."""
    return v.completed >= k.num_requests or (k.max_iterations > 0 and v.prefills + v.decodes >= k.max_iterations)


@jit
def skip_forced(v: Any, s: Any, k: Any) -> None:
    """Advance through iterations that offer no choice, up to a choice or the end."""
    while not finished(v, k):
        if has_choice(v, k) or (k.log_capacity > 0 and s.logged >= k.log_capacity):
            return
        advance(v, s, k, DECODE if v.ready == 0 else PREFILL)


@inlined
def step_episode(
    v: Any,
    s: Any,
    k: Any,
    action: int,
    out: NDArray[np.float32],
) -> tuple[float, int]:
    """One step of an environment: ``(reward, flags)``; writes the observation to ``out``.

    ``action`` may also be `OBSERVE` (after a reset: no reward is paid) or `CONTINUE` (after bit 4, once there is room).
    Flags: bits 0 and 1 as :func:`feasible`, then `TERMINATED`, `TRUNCATED`, `LOG_FULL` (before a choice was reached),
    and from bit `INVALID_SHIFT` the number of infeasible actions so far.
    """
    if action >= 0:
        advance(v, s, k, action)
    if k.skip_forced:
        skip_forced(v, s, k)
    reward = 0.0
    if action != OBSERVE:
        total = charge(v, s, k)
        reward = -np.float64(total - s.charged) / k.reward_scale
        s.charged = total
    observe(v, out)
    flags = feasible(v)
    if v.completed >= k.num_requests:
        flags += TERMINATED
    elif finished(v, k):
        flags += TRUNCATED
    if k.log_capacity > 0 and s.logged >= k.log_capacity:
        flags += LOG_FULL
    flags += s.invalid_actions << INVALID_SHIFT
    return reward, flags


@jit
def step(views: Any, states: Any, setup: Any, action: int, out: NDArray[np.float32]) -> tuple[float, int]:
    """:func:`step_episode` on the first of each."""
    return step_episode(views[0], states[0], setup[0], action, out)


@jit
def step_and_measure(
    setup: int, action: int, out: NDArray[np.float32], measured: NDArray[np.float64]
) -> tuple[float, int]:
    """:func:`step_episode` on the episode whose `SETUP` lies at ``setup``, and what it achieved so far.

    ``measured``, (len(MEASURED),), is written as `llmsched_env.core.measure.PACKED` reads it. Passing one address costs
    a third of passing three records.
    """
    k = array_at(setup, (1,), SETUP)[0]
    v = array_at(k.view_address, (1,), VIEW)[0]
    s = array_at(k.state_address, (1,), STATE)[0]
    found = step_episode(v, s, k, action, out)
    measure_so_far(v, s, k, measured)
    pack(measured)
    return found


@jit
def advance_once(views: Any, states: Any, setup: Any, action: int) -> None:
    """One iteration, whatever comes after it."""
    advance(views[0], states[0], setup[0], action)


@jit
def run_rule(
    views: Any,
    states: Any,
    setup: Any,
    rule: Any,
    parameters: NDArray[np.float64],
    memory: NDArray[np.int64],
) -> int:
    """Run to the end under ``rule``; returns the iterations run. Stops early where the log is full."""
    v = views[0]
    s = states[0]
    k = setup[0]
    before = v.prefills + v.decodes
    while not finished(v, k):
        if k.log_capacity > 0 and s.logged >= k.log_capacity:
            break
        advance(v, s, k, choose(v, k, rule, parameters, memory))
    return v.prefills + v.decodes - before
