"""An episode's present moment as a block of plain text."""

from __future__ import annotations

import numpy as np

from llmsched_env.engine import codes
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.scales import time_unit

__all__ = ["text"]

WIDTH = 60
"""Characters of a bar; a line stays under 100."""

LAST_ITERATIONS = WIDTH


def text(simulator: Simulator) -> str:
    """The numbers of the moment, the clients, the queue and the last iterations, in six lines.

    ``clients``: a character for each client, or for a group of them where they are many: ``#`` all active, ``+``
    some, ``.`` all idle. ``queue``: the share of the requests that waits. ``last``: ``P`` a prefill, ``D`` a decode,
    the newest at the right; only where the simulator records. ``next``: what either kind of iteration now would be;
    after the end (``end``), how far the makespan is above the lower bound.
    """
    view, problem = simulator.view, simulator.problem
    clock_ns, num_clients = int(view.clock_ns), problem.num_clients
    unit, length_ns = time_unit(float(clock_ns)) if clock_ns else ("s", 1e9)
    utilization = "–"
    if clock_ns:
        utilization = f"{100 * float(simulator.totals.busy_client_ns) / (num_clients * clock_ns):.1f} %"
    waiting = _bar(int(view.waiting) / problem.num_requests)
    lines = (
        f"time     {clock_ns / length_ns:,.3f} {unit}   utilization {utilization}",
        f"done     {int(view.completed):,} of {problem.num_requests:,} requests"
        f"   {int(view.prefills):,} prefills   {int(view.decodes):,} decodes",
        f"clients  [{_clients(simulator)}] {int(view.active):,} active, {int(view.idle):,} idle",
        f"queue    [{waiting}] {int(view.waiting):,} waiting",
        f"last     {_last(simulator)}",
        f"{'end ' if simulator.done else 'next'}     {_next(simulator)}",
    )
    return "\n".join(lines)


def _bar(share: float) -> str:
    filled = int(np.ceil(share * WIDTH))
    return "=" * filled + " " * (WIDTH - filled)


def _clients(simulator: Simulator) -> str:
    running = np.asarray(simulator.episode.clients)[:, codes.RUNNING] >= 0
    characters = min(WIDTH, len(running))
    group = np.arange(len(running)) * characters // len(running)
    share = np.bincount(group, running) / np.bincount(group)
    return "".join("#" if one == 1 else "." if one == 0 else "+" for one in share)


def _last(simulator: Simulator) -> str:
    log = simulator.log
    if not len(log):
        return "nothing recorded" if int(simulator.view.clock_ns) else "nothing yet"
    last = log[-LAST_ITERATIONS:]
    shown = "".join("M" if one["mixed"] else "P" if one["prefill"] else "D" for one in last)
    return ("…" if len(log) > LAST_ITERATIONS else "") + shown


def _next(simulator: Simulator) -> str:
    if simulator.done:
        gap = int(simulator.view.clock_ns) / simulator.problem.bound_ns - 1
        return f"all requests complete, {100 * gap:.2f} % above the lower bound"
    view, choices = simulator.view, []
    if simulator.can_prefill:
        batch = int(view.batch_requests)
        choices.append(
            f"prefill {batch:,} request{'s' * (batch != 1)}, {int(view.batch_tokens):,} tokens, "
            f"{int(view.prefill_ns) / 1e6:,.1f} ms"
        )
    if simulator.can_decode:
        active = int(view.active)
        choices.append(f"decode {active:,} client{'s' * (active != 1)}, {int(view.decode_ns) / 1e6:,.1f} ms")
    if view.chunk_tokens > 0:
        choices.append(f"mixed, {int(view.chunk_tokens):,} tokens read, {int(view.mixed_ns) / 1e6:,.1f} ms")
    return " | ".join(choices)
