"""Loops that only benchmarks need, and the plain simulator that they are measured against.

``building.compiled()`` gives them compiled. As it stands, this file has `plain_episode` in plain Python.
"""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import features
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.step import Copies, Steps
from llmsched_env.engine.view import View


class Watched:
    """Episodes with an observation before each iteration.

    Args:
        out: (rows, num_features) float32, contiguous: the rows are written in turn, as a rollout buffer would be.
    """

    out: cython.float[:, ::1]
    rows: cython.int
    row: cython.int

    def __init__(self, out: Any) -> None:
        self.out = out
        self.rows = len(out)
        self.row = 0

    def play(self, e: Episode, v: View, rule: Rule) -> cython.longlong:
        """Run to the end; returns the iterations."""
        action: cython.int
        before: cython.longlong = v.prefills + v.decodes
        while not e.finished():
            features.observe(v, self.out, self.row)
            self.row = (self.row + 1) % self.rows
            action = e.choose(rule)
            e.run_iteration(v, e.totals, action, e.problem.kinds[action])
        return v.prefills + v.decodes - before

    def run(self, e: Episode, rule: Rule) -> int:
        """:meth:`play` for Python."""
        iterations: cython.longlong
        e.set_forecast(True)
        rule.begin()
        with cython.nogil:
            iterations = self.play(e, e.view, rule)
        return int(iterations)


class Bare(Copies):
    """One copy of an environment that is advanced and not looked at."""

    episode: Episode
    row: cython.int

    def __init__(self, episode: Episode, row: int) -> None:
        self.episode = episode
        self.row = row

    def step_all(self, out: Steps) -> cython.int:
        """One iteration with the action in its row; returns whether the episode is over."""
        return self.advance(self.episode, cython.cast(cython.int, out.actions[self.row]), out)

    def advance(self, e: Episode, action: cython.int, out: Steps) -> cython.int:
        """The same, of the episode."""
        e.run_iteration(e.view, e.totals, action, out.kind_of(action))
        return 1 if e.finished() else 0


def plain_episode(
    prompts: cython.longlong[::1],
    outputs: cython.longlong[::1],
    finish_at: cython.longlong[::1],
    clients: cython.longlong,
    threshold: cython.longlong,
    cap: cython.longlong,
    prices: tuple[int, int, int, int],
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
        prices: alpha_prefill, beta_prefill, alpha_decode, beta_decode in ns.

    Returns:
        makespan in ns, iterations.
    """
    alpha_prefill_ns: cython.longlong = prices[0]
    beta_prefill_ns: cython.longlong = prices[1]
    alpha_decode_ns: cython.longlong = prices[2]
    beta_decode_ns: cython.longlong = prices[3]
    mask: cython.longlong = len(finish_at) - 1
    n: cython.longlong = len(prompts)
    clock_ns: cython.longlong = 0
    head: cython.longlong = 0
    active: cython.longlong = 0
    decodes: cython.longlong = 0
    prefills: cython.longlong = 0
    idle: cython.longlong
    tokens: cython.longlong
    first: cython.longlong
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
