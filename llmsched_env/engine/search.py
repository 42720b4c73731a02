"""Beam search over prefills and decodes, with the future in hand.

Only the decode counts at which prefills happen matter, so a schedule is a *plan*: the decode count of each prefill in
turn. A *stage* is the decodes before one prefill, and that prefill. At each stage every kept state is extended by every
moment at which its next prefill could hold more than before. Extensions are sifted by an estimate (loss so far, plus
what a reference schedule still lost from the same progress on), the survivors are finished with a base rule, and those
that end best are kept. Every finish is a whole schedule, so the search never does worse than its base rule.
"""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes, reward, schedule
from llmsched_env.engine.arrays import int64s, view_of
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.schedule import Schedule
from llmsched_env.engine.view import Totals, View


class Ends:
    """Losses at the end of plans that a rule has finished: searches that follow each other finish many of them again.

    A plan is a path in a tree: its first prefills, then one more.

    Attributes:
        numbers: of plans, by the number of the plan without the last prefill and the decode count of that; the empty
            plan has number 0.
        ends: loss at the end, by number.
        limits: of those that were given up, the loss that they have reached at least.
    """

    numbers: dict[tuple[int, int], int]
    ends: dict[int, int]
    limits: dict[int, int]

    def __init__(self) -> None:
        self.numbers = {}
        self.ends = {}
        self.limits = {}

    def number(self, plan: int, moment: int) -> int:
        """The number of ``plan`` and a prefill at ``moment``."""
        return self.numbers.setdefault((plan, moment), len(self.numbers) + 1)

    def known(self, plan: int, limit: int) -> int:
        """What a finish with such a limit comes to; -1 where it has to be played."""
        if plan in self.ends:
            return self.ends[plan]
        return not_done() if self.limits.get(plan, -1) >= limit else -1

    def keep(self, plan: int, end: int, limit: int) -> None:
        """What a finish with such a limit has come to."""
        if end >= not_done():
            self.limits[plan] = limit
        else:
            self.ends[plan] = end


class Beam:
    """A beam search from one state.

    Args:
        start: the state; stays as it is.
        pool: ``width + sifted + 1`` episodes of the same case, to be overwritten.
        rule: finishes schedules.
        width: states kept a stage.
        reference: values states.
        finished: what searches before this one have found, from the same state with the same rule.

    Attributes:
        scores: (sifted,) estimate of each extension, as the following three.
        origin: the state that it extends.
        moment: decode count of its prefill.
        reached: progress after it.
        kept: number of extensions.
        loser: the first of those with the largest estimate, where all places are taken.
        ends: (width,) loss at the end of each state chosen for the next stage.
        chosen: (width,) number of its extension.
        count: number of those.
        ruled: (width,) decode count of the rule's next prefill in each state, -1 where it is not known,
        known: and the loss at the end under the rule.
        plans: (count,) number of the plan that has led to each state.
    """

    pool: list[Episode]
    rule: Rule
    width: cython.int
    sifted: cython.int
    reference: Schedule
    scores: cython.double[::1]
    origin: cython.longlong[::1]
    moment: cython.longlong[::1]
    reached: cython.longlong[::1]
    ends: cython.longlong[::1]
    chosen: cython.longlong[::1]
    kept: cython.int
    loser: cython.int
    count: cython.int
    ruled: cython.longlong[::1]
    known: cython.longlong[::1]
    finished: Ends
    plans: list[int]
    _forgets: cython.bint

    def __init__(
        self, start: Episode, pool: list[Episode], rule: Rule, width: int, reference: Schedule, finished: Ends
    ) -> None:
        self.pool = pool
        self.rule = rule
        self.width = width
        self.sifted = len(pool) - width - 1
        self.reference = reference
        self.scores = view_of(np.zeros(self.sifted))
        self.origin = int64s(self.sifted)
        self.moment = int64s(self.sifted)
        self.reached = int64s(self.sifted)
        self.ends = int64s(width)
        self.chosen = int64s(width)
        self.kept = 0
        self.loser = 0
        self.count = 1
        self.ruled = int64s(width)
        self.known = int64s(width, -1)
        self.finished = finished
        self.plans = [0]
        self._forgets = type(rule).begin is Rule.begin
        for episode in pool:
            episode.restart(start)
            episode.set_forecast(rule.reads_forecast)

    def search(self) -> NDArray[np.int64]:
        """The prefix of the best schedule found; the rule does the rest."""
        stages: cython.Py_ssize_t = self.reference.plan.shape[0]
        stage: cython.int = 0
        parent: cython.int
        child: cython.int
        row: cython.int
        end: cython.longlong
        limit: cython.longlong
        best: cython.longlong = not_done()
        best_stage = 0
        best_child = (0, 0)
        tree: list[list[tuple[int, int]]] = []
        spare: Episode = self.pool[self.width + self.sifted]
        episode: Episode
        while self.count > 0 and stage < stages:
            self.kept = 0
            for parent in range(self.count):
                episode = self.pool[parent]
                with cython.nogil:
                    spare.assign(episode)
                    self.scan(spare, parent)
            self.grow()
            self.count = 0
            plans = [self.finished.number(self.plans[self.origin[i]], self.moment[i]) for i in range(self.kept)]
            for child in range(self.kept):
                episode = self.pool[self.width + child]
                limit = self.limit()
                end = self.known_end(child)
                if end < 0:
                    end = self.finished.known(plans[child], limit)
                if end < 0:
                    self.rule.begin()
                    with cython.nogil:
                        spare.assign(episode)
                        end = self.finish(spare, spare.view, spare.totals, self.rule, limit)
                    self.finished.keep(plans[child], end, limit)
                if end < best:
                    best = end
                    best_stage = stage
                    best_child = (int(self.origin[child]), int(self.moment[child]))
                self.choose(episode.view, episode.totals, episode.problem.num_requests, child, end)
            self.plans = [plans[self.chosen[row]] for row in range(self.count)]
            tree.append([(int(self.origin[i]), int(self.moment[i])) for i in self.chosen[: self.count]])
            for row in range(self.count):
                self.known[row] = self.ends[row]
                child = self.width + cython.cast(cython.int, self.chosen[row])
                self.pool[row], self.pool[child] = self.pool[child], self.pool[row]
            stage += 1
        self.rule.end()
        path = [best_child[1]]
        row = best_child[0]
        for chosen in reversed(tree[:best_stage]):
            row, before = chosen[row]
            path.append(before)
        return np.array(path[::-1], np.int64)

    def scan(self, e: Episode, parent: cython.int) -> cython.void:
        """Sift the moments of the next prefill from a copy of state ``parent`` on."""
        horizon: cython.longlong = e.problem.ring_mask + e.view.decodes + 1
        seen: cython.longlong = -1
        self.ruled[parent] = -1
        least: cython.double = 0.0
        if e.problem.affine:
            least = self.reference.to_go(schedule.progress_of(e.view, e.totals) + work_left(e))
        while e.view.active > 0 or e.view.ready > 0:
            if e.view.ready == 0 and e.view.waiting == 0 and is_draining(e):
                return
            if e.view.ready > 0 and e.view.ready > seen:
                seen = e.view.ready
                self.sift(e.view, e.totals, e, parent)
                if self.kept == self.sifted and self.is_hopeless(e, least):
                    return
            if self._forgets and self.ruled[parent] < 0 and e.choose(self.rule) != 0:
                self.ruled[parent] = e.view.decodes
            if e.view.active == 0 or (e.view.ready > 0 and e.view.decodes >= horizon):
                return
            e.advance(0)

    def known_end(self, child: cython.int) -> cython.longlong:
        """Loss at the end of an extension that is what the rule does; -1 where it has to be played."""
        parent: cython.Py_ssize_t = self.origin[child]
        return self.known[parent] if self.moment[child] == self.ruled[parent] else -1

    def is_hopeless(self, e: Episode, least: cython.double) -> cython.bint:
        """Whether no later moment can be among the best: each loses this and, behind what is active now, ``least``."""
        lost: cython.double = reward.excess(e.view, e.totals, e.problem)
        # Sums of losses are off by far less than a billionth.
        return (lost + least) * 0.999999999 > self.scores[self.loser]

    def sift(self, v: View, t: Totals, e: Episode, parent: cython.int) -> cython.void:
        """Keep this moment if its estimate is among the best so far."""
        place: cython.int
        left: cython.double = v.ready - v.batch_requests
        score: cython.double = reward.excess(v, t, e.problem)
        # What the cap leaves behind needs prefills of its own.
        left = left / v.batch_requests
        score = score + left * v.alpha_prefill_ns * v.num_clients
        score += self.reference.to_go(schedule.progress_of(v, t))
        if self.kept < self.sifted:
            place = self.kept
            self.kept += 1
        else:
            place = self.loser
            if score >= self.scores[place]:
                return
        self.scores[place] = score
        self.origin[place] = parent
        self.moment[place] = v.decodes
        if self.kept == self.sifted:
            self.loser = self.worst(self.scores)

    def worst(self, scores: cython.double[::1]) -> cython.int:
        """The first of the largest."""
        largest: cython.double = scores[0]
        worst: cython.int = 0
        i: cython.int
        for i in range(1, cython.cast(cython.int, scores.shape[0])):
            if scores[i] > largest:
                largest = scores[i]
                worst = i
        return worst

    def last_chosen(self) -> cython.int:
        """The first of the chosen states that end worst."""
        worst: cython.int = 0
        i: cython.int
        for i in range(1, self.count):
            if self.ends[i] > self.ends[worst]:
                worst = i
        return worst

    def limit(self) -> cython.longlong:
        """Loss from which on an extension is of no use."""
        return self.ends[self.last_chosen()] if self.count == self.width else not_done()

    def grow(self) -> None:
        """Make the states after each kept extension; each state is led from moment to moment once."""
        child: cython.int
        moment: cython.longlong
        parent: Episode
        target: Episode
        order = sorted(range(self.kept), key=lambda i: (self.origin[i], self.moment[i]))
        for child in order:
            parent = self.pool[self.origin[child]]
            target = self.pool[self.width + child]
            moment = self.moment[child]
            with cython.nogil:
                while parent.view.decodes < moment:
                    parent.advance(0)
                target.assign(parent)
                target.advance(1)

    def finish(self, e: Episode, v: View, t: Totals, rule: Rule, limit: cython.longlong) -> cython.longlong:
        """Loss at the end of the episode under ``rule``; given up once it is not below ``limit``."""
        last: cython.longlong = e.problem.num_requests
        binary: cython.bint = e.problem.num_actions == 2
        action: cython.int
        while v.completed < last:
            if not binary:
                action = e.choose(rule)
                action = action if action > 0 else 0
            elif v.ready > 0:
                action = 1 if v.active == 0 or rule.act(v) == 1 else 0
            elif v.waiting == 0 and is_draining(e):
                return loss_drained(e, v, t)
            else:
                action = 0
            e.run_iteration(v, t, action, e.problem.kinds[action])
            if action != 0 and reward.excess(v, t, e.problem) >= limit:
                return not_done()
        return reward.excess(v, t, e.problem)

    def choose(
        self, v: View, t: Totals, num_requests: cython.longlong, child: cython.int, end: cython.longlong
    ) -> cython.void:
        """Keep this extension, which ends with such a loss, if that is among the best so far."""
        place: cython.int
        i: cython.int
        reached: cython.longlong = schedule.progress_of(v, t)
        self.reached[child] = reached
        if end >= not_done() or v.completed + v.active == num_requests:
            return
        for i in range(self.count):
            if self.ends[i] == end and self.reached[cython.cast(cython.Py_ssize_t, self.chosen[i])] == reached:
                return
        if self.count < self.width:
            place = self.count
            self.count += 1
        else:
            place = self.last_chosen()
            if end >= self.ends[place]:
                return
        self.ends[place] = end
        self.chosen[place] = child


def not_done() -> cython.longlong:
    """More than any loss."""
    one: cython.longlong = 1
    return one << 62


def is_draining(e: Episode) -> cython.bint:
    """Where nobody waits: whether nothing is left but decodes, whose loss is known."""
    return e.problem.affine and e.line.next_release == e.problem.num_requests


def loss_drained(e: Episode, v: View, t: Totals) -> cython.longlong:
    """Loss at the end where nothing is left but decodes: all clients but those that still run are idle in them."""
    client: cython.int
    position: cython.int
    left: cython.longlong
    longest: cython.longlong = 0
    work: cython.longlong = 0
    for client in range(e.problem.num_clients):
        position = e.clients[client, codes.RUNNING]
        if position >= 0:
            left = e.problem.requests[position, codes.OUTPUT] + e.clients[client, codes.BASE] - v.decodes
            work += left
            longest = max(longest, left)
    return reward.excess(v, t, e.problem) + e.problem.believed.alpha_decode_ns * (v.num_clients * longest - work)


def work_left(e: Episode) -> cython.longlong:
    """Decodes to go, summed over the active clients."""
    client: cython.int
    position: cython.int
    left: cython.longlong = 0
    for client in range(e.problem.num_clients):
        position = e.clients[client, codes.RUNNING]
        if position >= 0:
            left += e.problem.requests[position, codes.OUTPUT] - e.emitted(client)
    return left
