"""Compiled beam search over the action, with the future in hand.

Only the decode counts at which prefills happen matter, so a schedule is a *plan*: the decode count of each prefill in
turn. A *stage* is the decodes before one prefill, and that prefill. At each stage every kept state is extended by every
moment at which its next prefill could hold more than before. Extensions are sifted by an estimate (loss so far, plus
what a reference schedule still lost from the same progress on), the survivors are finished with a base rule, and those
that end best are kept. Every finish is a whole schedule, so the search never does worse than its base rule.

*Loss* is the part of the makespan that decisions control (the `excess` charge), or the clock where costs are not
affine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.loops import choose, feasible
from llmsched_env.core.memory import copy_episode
from llmsched_env.core.reward import excess
from llmsched_env.core.rules import call_rule
from llmsched_env.core.transition import DECODE, PREFILL, advance
from llmsched_env.jit import jit

__all__ = ["beam_search", "follow"]

Longs = NDArray[np.int64]

NOT_DONE = np.int64(2**62)


@jit
def _progress(v: Any, s: Any) -> int:
    """Client-decodes done: sum over decodes of active clients."""
    return v.num_clients * v.decodes - s.idle_client_decodes


@jit
def follow(
    views: Any,
    states: Any,
    setups: Any,
    rule: Any,
    parameters: Any,
    memory: Any,
    prefix: Longs,
    prefix_length: int,
    plan: Longs,
    progress: Longs,
    lost: Longs,
) -> int:
    """Play episode 0: the first prefills as in ``prefix``, the rest by ``rule``.

    Writes the whole plan, and progress and loss right after each prefill and at the end; all three of one length.
    Returns the number of prefills, or -1 where it is not below that length: requests that give way to others come back
    by prefills of their own.
    """
    v, s, k = views[0], states[0], setups[0]
    while v.completed < k.num_requests:
        options = feasible(v)
        prefill = options == 2
        if options == 3:
            if v.prefills < prefix_length:
                prefill = v.decodes >= prefix[v.prefills]
            else:
                prefill = call_rule(rule, v, parameters, memory) == PREFILL
        if prefill:
            if v.prefills + 1 >= len(plan):
                return -1
            plan[v.prefills] = v.decodes
        advance(v, s, k, PREFILL if prefill else DECODE)
        if prefill:
            progress[v.prefills - 1] = _progress(v, s)
            lost[v.prefills - 1] = excess(v, s, k)
    progress[v.prefills] = _progress(v, s)
    lost[v.prefills] = excess(v, s, k)
    return v.prefills


@jit
def _finish(v: Any, s: Any, k: Any, rule: Any, parameters: Any, memory: Any, limit: Any) -> Any:
    """Loss at the end of the episode under ``rule``; given up once it exceeds ``limit``."""
    kept = memory.copy()
    while v.completed < k.num_requests:
        action = choose(v, k, rule, parameters, kept)
        advance(v, s, k, action)
        if action != DECODE and excess(v, s, k) > limit:
            return NOT_DONE
    return excess(v, s, k)


@jit
def _to_go(at: int, progress: Longs, lost: Longs, last: int) -> float:
    """What the reference lost from progress ``at`` on, in proportion between its stages."""
    if at >= progress[last]:
        return 0.0
    low = 0
    high = last
    while high - low > 1:
        middle = (low + high) // 2
        if progress[middle] <= at:
            low = middle
        else:
            high = middle
    share = np.float64(at - progress[low]) / np.float64(max(1, progress[high] - progress[low]))
    return lost[last] - (lost[low] + share * np.float64(lost[high] - lost[low]))


@jit
def _keep_least(score: float, scores: Any, kept: int) -> int:
    """Where ``score`` belongs among the least so far: a free place, the worst's, or -1."""
    if kept < len(scores):
        return kept
    worst = 0
    for i in range(1, kept):
        if scores[i] > scores[worst]:
            worst = i
    return worst if score < scores[worst] else -1


@jit
def beam_search(
    views: Any,
    states: Any,
    setups: Any,
    rule: Any,
    parameters: Any,
    memory: Any,
    width: int,
    sifted: int,
    horizon: int,
    progress: Longs,
    lost: Longs,
    last: int,
    plan: Longs,
) -> int:
    """Search from episode 0 of a block of ``width + sifted + 1`` episodes.

    Args:
        views: the block, as ``states`` and ``setups``.
        states: see ``views``.
        setups: see ``views``.
        rule: finishes schedules, with ``parameters`` and ``memory``.
        parameters: of the rule.
        memory: of the rule.
        width: states kept a stage.
        sifted: extensions finished a stage, at least ``width``.
        horizon: most decodes in a stage.
        progress: reference curve as :func:`follow` writes it, as ``lost``.
        lost: see ``progress``.
        last: its last index.
        plan: takes the prefix of the best schedule found; the rule does the rest. No longer one is searched for.

    Returns the length of that prefix.
    """
    spare = width + sifted
    stages = len(plan)
    parents = np.empty((stages, width), np.int32)
    moments = np.empty((stages, width), np.int32)
    scores = np.empty(sifted, np.float64)
    origin = np.empty(sifted, np.int64)
    moment = np.empty(sifted, np.int64)
    reached = np.empty(sifted, np.int64)
    ends = np.empty(width, np.int64)
    chosen = np.empty(width, np.int64)
    best_end: Any = NOT_DONE
    best_stage = 0
    best_parent = 0
    best_moment = np.int64(0)
    count = 1
    stage = 0
    while count > 0 and stage < stages:
        kept = 0
        for parent in range(count):
            copy_episode(views, states, setups, parent, spare)
            v, s, k = views[spare], states[spare], setups[spare]
            start = v.decodes
            seen = np.int64(-1)
            while v.active > 0 or v.ready > 0:
                if v.ready > 0 and v.ready > seen:
                    seen = v.ready
                    # What the cap leaves behind needs prefills of its own.
                    left = np.float64(v.ready - v.batch_requests) / v.batch_requests
                    score = excess(v, s, k) + left * k.alpha_prefill_ns * k.num_clients
                    score += _to_go(_progress(v, s), progress, lost, last)
                    place = _keep_least(score, scores, kept)
                    if place >= 0:
                        scores[place] = score
                        origin[place] = parent
                        moment[place] = v.decodes
                        kept = max(kept, place + 1)
                if v.active == 0 or (v.ready > 0 and v.decodes - start >= horizon):
                    break
                advance(v, s, k, DECODE)
        count = 0
        for child in range(kept):
            target = width + child
            copy_episode(views, states, setups, origin[child], target)
            v, s, k = views[target], states[target], setups[target]
            while v.decodes < moment[child]:
                advance(v, s, k, DECODE)
            advance(v, s, k, PREFILL)
            copy_episode(views, states, setups, target, spare)
            limit = NOT_DONE if count < width else ends[:count].max()
            end = _finish(views[spare], states[spare], setups[spare], rule, parameters, memory, limit)
            if end < best_end:
                best_end = end
                best_stage = stage
                best_parent = origin[child]
                best_moment = moment[child]
            same = False
            for i in range(count):
                same = same or (ends[i] == end and reached[chosen[i]] == _progress(v, s))
            reached[child] = _progress(v, s)
            if same or end >= NOT_DONE or v.completed + v.active == k.num_requests:
                continue
            place = _keep_least(np.float64(end), ends[:width], count)
            if place >= 0:
                ends[place] = end
                chosen[place] = child
                count = max(count, place + 1)
        for row in range(count):
            parents[stage, row] = origin[chosen[row]]
            moments[stage, row] = moment[chosen[row]]
        for row in range(count):
            copy_episode(views, states, setups, width + chosen[row], row)
        stage += 1
    plan[best_stage] = best_moment
    row = best_parent
    for earlier in range(best_stage - 1, -1, -1):
        plan[earlier] = moments[earlier, row]
        row = parents[earlier, row]
    return best_stage + 1
