"""A whole episode: made, set back, copied, and played under a rule."""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes, features, measure, reward, slack
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.transition import Transition
from llmsched_env.engine.view import Totals, View


class Episode(Transition):
    """One episode of a problem.

    Args:
        problem: the case.
        options: of its mechanisms, by the name of each.
        record: keep every iteration and the times of every request.
    """

    def __init__(self, problem: ProblemData, options: dict[str, Any] | None = None, *, record: bool = False) -> None:
        Transition.__init__(self, problem, options or {}, record)
        self.settle(self.view, self.totals)

    def assign(self, other: Episode) -> cython.void:
        """Take over the state of another episode of the same problem and options; the recordings begin anew."""
        self.assign_but_rings(other)
        self.assign_rings(other)

    def assign_but_rings(self, other: Episode) -> cython.void:
        """Take over what does not depend on output lengths to come."""
        self.assign_transition(other)
        self.recorder.logged = 0
        self.recorder.noted = 0

    def done(self) -> cython.bint:
        """Whether every request is complete."""
        return self.view.completed >= self.problem.num_requests

    def finished(self) -> cython.bint:
        """Whether every request is complete, or the horizon is reached."""
        if self.view.completed >= self.problem.num_requests:
            return True
        if self.problem.max_iterations == 0:
            return False
        return self.view.prefills + self.view.decodes >= self.problem.max_iterations

    def feasible(self) -> cython.int:
        """Bits codes.CAN_DECODE, CAN_PREFILL and CAN_MIX; none when the episode is complete."""
        bits: cython.int = 0
        if self.view.active > 0:
            bits += codes.CAN_DECODE
        if self.view.ready > 0:
            bits += codes.CAN_PREFILL
        if self.has_mixed and (self.view.ready > 0 or self.view.reading_tokens > 0):
            bits += codes.CAN_MIX
        return bits

    def has_choice(self) -> cython.bint:
        """Whether more than one action is feasible and makes a difference, and none is pledged."""
        if self.pledge > 0 and self.is_pledged():
            return False
        if self.view.ready == 0 and not (self.has_mixed and self.view.reading_tokens > 0):
            return False
        return self.view.active > 0 or (self.problem.num_actions > 2 and (self.view.waiting > 1 or self.has_mixed))

    def is_pledged(self) -> cython.bint:
        """Whether the last action goes on: fewer clients are idle than it said, and fewer than requests wait."""
        idle: cython.longlong = min(self.view.waiting, self.problem.idle_until[self.pledge])
        return self.view.active > 0 and self.view.idle < idle

    def forced(self) -> cython.int:
        """The action where there is no choice."""
        if self.pledge > 0 and (self.view.ready == 0 or self.is_pledged()):
            return self.pledge
        return 0 if self.view.ready == 0 else 1

    def charge(self) -> int:
        """The total that the reward is a difference of (see reward.py)."""
        total: cython.longlong = reward.charge(self.view, self.totals, self.problem.reward, self.problem.affine)
        return int(total + self.slack_ns() if self.problem.reward == codes.DIFFERENTIAL else total)

    def slack_ns(self) -> cython.longlong:
        """What clients will wait for the longest one, in client-ns (see slack.py)."""
        return self.view.alpha_decode_ns * slack.slack(self.view, self.clients, self.problem.shared)

    def rereading(self) -> cython.int:
        """Requests that were preempted and are partly prefilled again: 1 or 0."""
        if not self.has_kv or self.chunked.position < 0:
            return 0
        return 1 if self.kv.emitted[self.chunked.position] > 0 else 0

    def measured(self, infos: bool = False) -> NDArray[np.float64]:
        """(len(MEASURED),) float64: as metrics have them, or as an ``info`` has (see measure.py)."""
        out: NDArray[np.float64] = np.empty(len(measure.MEASURED))
        counted = self.slo.last - self.slo.first if self.has_slo else 0
        if infos:
            measure.measure_so_far(
                self.view, self.totals, self.problem, counted, self.rereading(), np.inf, view_of(out)
            )
        else:
            measure.measure(self.view, self.totals, self.problem, counted, self.rereading(), np.nan, view_of(out))
        return out

    def observation(self) -> NDArray[np.float32]:
        """(num_features,) float32: what an environment shows of it."""
        self.set_forecast(True)
        return features.features(self.view)

    # Whole episodes.

    def choose(self, rule: Rule) -> cython.int:
        """The next action: the rule's where there is a choice, else the one that is feasible.

        A decode where the rule names no action; a prefill by the first order where it wants a decode and none can be.
        """
        action: cython.int
        if not self.has_choice():
            return self.forced()
        action = rule.act(self.view)
        if action < 0 or action >= self.problem.num_actions:
            if action == codes.STOP:
                return codes.STOP
            action = 0
        return 1 if self.problem.kinds[action] == codes.DECODE and self.view.active == 0 else action

    def play(self, rule: Rule) -> cython.longlong:
        """Run to the end, or the horizon; returns the iterations run. Stops early where the log is full, or on STOP."""
        return self.play_on(self.view, self.totals, rule)

    def play_on(self, v: View, t: Totals, rule: Rule) -> cython.longlong:
        """:meth:`play` on the episode's view and totals."""
        action: cython.int
        before: cython.longlong = v.prefills + v.decodes
        requests: cython.longlong = self.problem.num_requests
        horizon: cython.longlong = self.problem.max_iterations
        recording: cython.bint = self.records
        while v.completed < requests:
            if horizon > 0 and v.prefills + v.decodes >= horizon:
                break
            if recording and self.recorder.full():
                break
            if v.ready == 0 and v.reading_tokens == 0:
                self.run_iteration(v, t, self.pledge, codes.DECODE)
                continue
            action = self.choose(rule)
            if action == codes.STOP:
                break
            self.run_iteration(v, t, action, self.problem.kinds[action])
        return v.prefills + v.decodes - before

    def run(self, rule: Rule) -> int:
        """:meth:`play` for Python: without the GIL, with a log that grows."""
        iterations: cython.longlong = 0
        self.check_idle()
        rule.check()
        rule.begin()
        self.set_forecast(rule.reads_forecast)
        self.running = True
        try:
            while True:
                with cython.nogil:
                    iterations += self.play(rule)
                if not self.recorder.full() or self.finished():
                    break
                self.recorder.grow()
        finally:
            self.running = False
        rule.end()
        self.set_forecast(True)
        return int(iterations)

    def feasible_now(self) -> int:
        """:meth:`feasible` for Python."""
        return int(self.feasible())

    def offers_choice(self) -> bool:
        """:meth:`has_choice` for Python."""
        return bool(self.has_choice())

    def forced_now(self) -> int:
        """:meth:`forced` for Python."""
        return int(self.forced())

    def set_forecast(self, on: bool) -> None:
        """Keep what is expected of the active clients up to date, or leave it until somebody looks."""
        if on:
            self.count_forecast()
        else:
            self.forecast_current = False

    def step(self, action: int) -> None:
        """:meth:`advance` for Python."""
        self.check_idle()
        if self.recorder.full():
            self.recorder.grow()
        self.advance(action)

    def restart(self, start: Episode) -> None:
        """:meth:`assign` for Python; a recording begins anew."""
        self.check_idle()
        self.assign(start)
        self.recorder.clear()

    def fits(self, other: Episode) -> bool:
        """Whether both are of the same sizes: then one can switch to the other's problem where the options agree."""
        mine, theirs = self.problem, other.problem
        return bool(
            mine.num_requests == theirs.num_requests
            and mine.num_clients == theirs.num_clients
            and mine.ring_mask == theirs.ring_mask
            and mine.ranked == theirs.ranked
            and mine.shared == theirs.shared
            and mine.stealing == theirs.stealing
            and mine.mixes == theirs.mixes
            and mine.num_nodes == theirs.num_nodes
            and self.records == other.records
        )

    def switch(self, start: Episode) -> None:
        """Take over the state and the problem of an episode that it fits, whose options are the same but for noise."""
        self.check_idle()
        self.take_terms(start.problem)
        self.hand_out(start.problem)
        self.noise = start.noise
        self.recomposes = start.recomposes
        self.settles = start.settles
        self.plans_memory = start.plans_memory
        self.restart(start)

    def move(self, other: Episode) -> None:
        """Take over the state of an episode of the same problem with other lengths, which none has outlived."""
        self.check_idle()
        self.assign_but_rings(other)
        self.fill_ending()
        self.recorder.clear()

    def requeue(self, other: Episode) -> None:
        """Take over the state of an episode of the same problem whose waiting requests stand in another order."""
        self.move(other)
        self.empty_window()
        self.preview(self.view)

    def end_arrivals(self) -> None:
        """Let nothing more arrive: requests not released by now count as complete."""
        self.check_idle()
        one: cython.longlong = 1
        self.view.completed += self.problem.num_requests - self.line.next_release
        self.line.next_release = self.problem.num_requests
        self.next_release_ns = one << 62
