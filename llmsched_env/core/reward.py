"""What a step is charged: differences of exact integer totals, so that a sum of rewards telescopes to a metric.

``reward = -(C(after) - C(before)) / scale`` with C from the table below. Time that passes inside ``reset`` (a first
arrival after 0, iterations without a choice under ``skip_forced``) is part of the first difference.

======== ========================================================== ============= ===============================
reward   C, a total since the start of the episode                  scale         an episode sums to
======== ========================================================== ============= ===============================
excess   alpha_p * J * prefills + alpha_d * idle client-decodes     J * LB1       -(makespan - constant) / LB1
         + J * time with nothing to do
makespan clock                                                      LB1           -makespan / LB1
idle     J * clock - busy client time                               J * LB1       -makespan * (1 - util) / LB1
latency  integral of (waiting + active) over time                   n * LB1       -mean end-to-end latency / LB1
goodput  counted requests that have broken a promise                counted       goodput - 1
======== ========================================================== ============= ===============================

The constant of `excess` is beta_p * prompt tokens + (alpha_d / J + beta_d) * decodes needed: no policy can change it.
With a cost model that is not affine, or iterations that do not last what schedulers are told, there is no such
constant, and `excess` is `makespan`.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.config import REWARDS
from llmsched_env.jit import jit

__all__ = ["charge", "excess"]

EXCESS, IDLE, LATENCY, GOODPUT = (REWARDS.index(name) for name in ("excess", "idle", "latency", "goodput"))


@jit
def excess(v: Any, s: Any, k: Any) -> int:
    """The part of the clock that decisions control, in client-ns; J times the clock where costs are not affine."""
    if k.affine:
        lost = k.alpha_prefill_ns * v.prefills + s.jump_ns
        return k.num_clients * lost + k.alpha_decode_ns * s.idle_client_decodes
    return k.num_clients * v.clock_ns


@jit
def charge(v: Any, s: Any, k: Any) -> int:
    """The total C so far: ns (makespan), client-ns (excess, idle), request-ns (latency) or requests (goodput)."""
    if k.reward == IDLE:
        return k.num_clients * v.clock_ns - s.busy_client_ns
    if k.reward == LATENCY:
        return s.request_ns
    if k.reward == GOODPUT:
        return s.lost
    if k.reward == EXCESS:
        return excess(v, s, k)
    return v.clock_ns
