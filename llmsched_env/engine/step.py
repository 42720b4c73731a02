"""One step of an environment: an iteration, the reward for it, and what is seen and may be done next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf
from sys import getrefcount
from typing import Any

import cython
import numpy as np

from llmsched_env.engine import codes, features, measure, reward
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.measure import COUNTS, MEASURED
from llmsched_env.engine.problem_data import ProblemData

LOOK_FROM, LOOK_AT = 1_024, 16
"""From how many copies on a step's memory is in no near cache, and how many copies then wait for theirs together."""


class Steps:
    """What one step of ``count`` copies returns, in one block of memory.

    Args:
        count: copies.
        kinds: (num_actions,) of iteration that each action is: codes.DECODE, PREFILL or MIXED.
        num_features: of each copy.

    Attributes:
        count: as given.
        num_actions: of each copy.
        block: the memory, which all arrays refer to.
        arrays: observations (count, num_features) float32, rewards (count,) float64, terminated and truncated (count,)
            bool, masks (count, num_actions) int8: which actions are feasible next, and invalid (count,) int64:
            infeasible actions of the episode so far.
        actions: (count,) int64: to be taken next.
    """

    count: cython.int
    num_actions: cython.int
    block: Any
    arrays: tuple[Any, ...]
    actions: cython.longlong[::1]
    _observations: cython.float[:, ::1]
    _rewards: cython.double[::1]
    _terminated: cython.uchar[::1]
    _truncated: cython.uchar[::1]
    _masks: cython.schar[:, ::1]
    _invalid: cython.longlong[::1]
    _kinds: cython.int[::1]

    def __init__(self, count: int, kinds: Sequence[int], num_features: int) -> None:
        num_actions = len(kinds)
        self.count = count
        self.num_actions = num_actions
        self._kinds = view_of(np.array(kinds, np.int32))
        parts: tuple[tuple[tuple[int, ...], Any], ...] = (
            ((count,), np.float64),
            ((count,), np.int64),
            ((count, num_features), np.float32),
            ((count, num_actions), np.int8),
            ((count,), np.bool_),
            ((count,), np.bool_),
        )
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in parts]
        places = [*accumulate(sizes, initial=0)]
        self.block = np.empty(sum(sizes), np.uint8)
        rewards, invalid, observations, masks, terminated, truncated = (
            np.ndarray(shape, kind, self.block, place) for (shape, kind), place in zip(parts, places, strict=False)
        )
        self.arrays = (observations, rewards, terminated, truncated, masks, invalid)
        self.actions = view_of(np.zeros(count, np.int64))
        self._observations = view_of(observations)
        self._rewards = view_of(rewards)
        self._invalid = view_of(invalid)
        self._masks = view_of(masks)
        self._terminated = view_of(terminated.view(np.uint8))
        self._truncated = view_of(truncated.view(np.uint8))

    def unknown_action(self) -> cython.int:
        """The first copy whose action is not in the action space, or -1."""
        i: cython.int
        last: cython.longlong = self.num_actions - 1
        signs: cython.longlong = 0  # negative as soon as an action is negative or above the last
        for i in range(self.count):
            signs |= self.actions[i] | (last - self.actions[i])
        if signs < 0:
            for i in range(self.count):
                if not 0 <= self.actions[i] <= last:
                    return i
        return -1

    def write(self, e: Episode, flags: cython.int, row: cython.int) -> cython.void:
        """Write what an episode looks like, and which actions are feasible: those whose kind of iteration is."""
        action: cython.int
        if not e.forecast_current:
            e.count_forecast()
        features.observe(e.view, self._observations, row)
        self._invalid[row] = e.totals.invalid_actions
        for action in range(self.num_actions):
            self._masks[row, action] = flags >> self._kinds[action] & 1

    def views(self) -> tuple[Any, ...]:
        """The same arrays as new objects."""
        observations, rewards, terminated, truncated, masks, invalid = self.arrays
        return (
            observations.view(),
            rewards.view(),
            terminated.view(),
            truncated.view(),
            masks.view(),
            invalid.view(),
        )

    def holders(self) -> int:
        """How many references there are to the memory: arrays that were handed out, and parts of them, have one."""
        return getrefcount(self.block)

    def first_unknown(self) -> int:
        """:meth:`unknown_action` for Python."""
        return int(self.unknown_action())

    def kind_of(self, action: cython.int) -> cython.int:
        """The kind of iteration that an action is; any where it is none."""
        return self._kinds[action] if action >= 0 else 0

    def end(self, flags: cython.int, row: cython.int) -> cython.void:
        """Write whether the episode has ended."""
        self._terminated[row] = 1 if flags & codes.TERMINATED else 0
        self._truncated[row] = 1 if flags & codes.TRUNCATED else 0


class Copies:
    """Some copies of an environment, which are stepped one after another."""

    def look(self, out: Steps, stage: cython.int) -> cython.longlong:
        """Read what the next steps will: first what each does (stage 0), then what ends and beginnings do (1)."""
        return 0

    def step_all(self, out: Steps) -> cython.int:
        """Step each with its action of ``out.actions``, and write there what comes of it; returns how many are over."""
        return 0

    def run(self, out: Steps) -> int:
        """:meth:`step_all` for Python, without the GIL."""
        over: cython.int
        with cython.nogil:
            over = self.step_all(out)
        return int(over)


class Copy(Copies):
    """One environment.

    Attributes:
        episode: the running one.
        row: of what is returned.
        flags: codes.CAN_DECODE, CAN_PREFILL, CAN_MIX, TERMINATED, TRUNCATED and LOG_FULL, added up, after the last step
            or reset.
    """

    episode: Episode
    row: cython.int
    flags: cython.int
    _requests: cython.longlong
    _horizon: cython.longlong
    _scale: cython.double
    _reward: cython.int
    _affine: cython.bint
    _skips: cython.bint

    def __init__(self, row: int = 0) -> None:
        self.row = row
        self.flags = codes.TERMINATED

    def note_terms(self, problem: ProblemData) -> None:
        """Keep what every step reads of the problem: that of a thousand copies is in no near cache."""
        self._requests = problem.num_requests
        self._horizon = problem.max_iterations
        self._scale = problem.reward_scale
        self._reward = problem.reward
        self._affine = problem.affine
        self._skips = problem.skip_forced

    def go(self, e: Episode, action: cython.int, kind: cython.int) -> cython.double:
        """Take one step; returns the reward.

        Args:
            e: the episode.
            kind: of iteration that the action is.
            action: codes.OBSERVE after a reset (no reward is paid); codes.CONTINUE after LOG_FULL, once there is room,
                and where a reset has run through the whole episode.
        """
        total: cython.longlong
        paid: cython.double = 0.0
        if action >= 0:
            e.run_iteration(e.view, e.totals, action, kind)
        if self._skips:
            self.skip_forced(e)
        if action != codes.OBSERVE:
            total = reward.charge(e.view, e.totals, self._reward, self._affine)
            if self._reward == codes.DIFFERENTIAL:
                total += e.slack_ns()
            paid = -cython.cast(cython.double, total - e.totals.charged) / self._scale
            e.totals.charged = total
        self.flags = e.feasible()
        if e.view.completed >= self._requests:
            self.flags |= codes.TERMINATED
        elif self._horizon > 0 and e.view.prefills + e.view.decodes >= self._horizon:
            self.flags |= codes.TRUNCATED
        if e.records and e.recorder.full():
            self.flags |= codes.LOG_FULL
        return paid

    def skip_forced(self, e: Episode) -> cython.void:
        """Advance through iterations that offer no choice, up to a choice or the end, or as far as the log goes."""
        while not (e.finished() or e.has_choice() or (e.records and e.recorder.full())):
            e.advance(e.forced())

    def step_all(self, out: Steps) -> cython.int:
        """One step with the action in its row."""
        action: cython.int = cython.cast(cython.int, out.actions[self.row])
        if self.flags & (codes.TERMINATED | codes.TRUNCATED):
            action = codes.CONTINUE  # a reset that ran through a whole episode: this step reports its end
        out._rewards[self.row] = self.go(self.episode, action, out.kind_of(action))
        out.write(self.episode, self.flags, self.row)
        out.end(self.flags, self.row)
        return 1 if self.flags & (codes.TERMINATED | codes.TRUNCATED) else 0

    def look(self, out: Steps, stage: cython.int) -> cython.longlong:
        """Read what its next step will."""
        if stage == 0:
            return self._reward | self.episode.look_at_numbers(self.episode.view, self.episode.totals)
        if out.actions[self.row] == 0:
            return self.episode.look_at_ends(self.episode.view)
        return self.episode.look_at_heads()

    def begin(self, out: Steps) -> None:
        """Begin the episode, which stands before its first iteration, and write what it looks like."""
        self.note_terms(self.episode.problem)
        self.go(self.episode, codes.OBSERVE, 0)
        out.write(self.episode, self.flags, self.row)

    def adopt(self, episode: Episode, flags: int) -> None:
        """Go on with a running episode, after a step that returned these flags."""
        self.episode = episode
        self.flags = flags
        self.note_terms(episode.problem)

    def write_to(self, out: Steps) -> None:
        """Write what it looks like as it stands."""
        out.write(self.episode, self.flags, self.row)


class Group(Copies):
    """Four groups of copies: a tree of them is walked without Python's lists.

    Attributes:
        first: of them.
        second: of them.
        third: of them.
        fourth: of them.
        looks: whether their memory is read before the first of them is stepped.
    """

    first: Copies
    second: Copies
    third: Copies
    fourth: Copies
    looks: cython.bint
    _seen: cython.longlong

    def __init__(self, first: Copies, second: Copies, third: Copies, fourth: Copies, looks: bool = False) -> None:
        self.first = first
        self.second = second
        self.third = third
        self.fourth = fourth
        self.looks = looks
        self._seen = 0

    def look(self, out: Steps, stage: cython.int) -> cython.longlong:
        """Read what their next steps will."""
        seen: cython.longlong = self.first.look(out, stage) | self.second.look(out, stage)
        return seen | self.third.look(out, stage) | self.fourth.look(out, stage)

    def step_all(self, out: Steps) -> cython.int:
        """Those of the first, then those of the second, and so on."""
        over: cython.int
        if self.looks:
            self._seen = self.look(out, 0) | self.look(out, 1)  # kept, or the compiler would leave the reading out
        over = self.first.step_all(out)
        over += self.second.step_all(out)
        over += self.third.step_all(out)
        return over + self.fourth.step_all(out)


def together(copies: Sequence[Copies], looks: bool = False) -> Copies:
    """A balanced tree of these; ``looks``: whether they are some of `LOOK_FROM` or more."""
    if len(copies) < 2:
        return copies[0] if copies else Copies()
    looks = looks or len(copies) >= LOOK_FROM
    here = looks and len(copies) <= LOOK_AT
    ends = [len(copies) * part // 4 for part in range(5)]
    parts = [together(copies[first:last], looks and not here) for first, last in pairwise(ends)]
    return Group(parts[0], parts[1], parts[2], parts[3], here)


class InfoFields:
    """Which of `llmsched_env.engine.measure.MEASURED` an info has.

    Args:
        names: of these.

    Attributes:
        names: as given.
        count: how many.
        places: (count,) int32: where they are in `MEASURED`.
        whole: (count,) int32: 1 for those that are whole numbers.
    """

    names: tuple[Any, ...]
    count: cython.int
    places: cython.int[::1]
    whole: cython.int[::1]

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.count = len(names)
        self.places = view_of(np.array([MEASURED.index(name) for name in names], np.int32))
        self.whole = view_of(np.array([name in COUNTS for name in names], np.int32))


class Single(Copy):
    """One environment on its own, whose infos say what has been achieved so far.

    Args:
        kinds: (num_actions,) of iteration that each action is.
        num_features: of it.
        running: what an info says that may change before the last request is complete.
        final: all that an info says.
        reuses: whether every step is written to the same observation.

    Attributes:
        out: what a step is written to.
        running: as given.
        final: as given.
        values: (len(MEASURED),) float64.
        infinity: what an info says of what is not known yet.
    """

    out: Steps
    running: InfoFields
    final: InfoFields
    values: cython.double[::1]
    infinity: cython.double
    _reuses: cython.bint
    _observation: Any
    _mask: Any
    _blank: dict[str, Any]

    def __init__(
        self,
        kinds: Sequence[int],
        num_features: int,
        running: Sequence[str],
        final: Sequence[str],
        reuses: bool = False,
    ) -> None:
        Copy.__init__(self)
        self.out = Steps(1, kinds, num_features)
        self.running = InfoFields(running)
        self.final = InfoFields(final)
        self.values = view_of(np.zeros(len(MEASURED)))
        self.infinity = inf
        self._reuses = reuses
        self._observation = self.out.arrays[0][0]
        self._mask = self.out.arrays[4][0]
        self._blank = {}

    def start(self, episode: Episode, case: int) -> tuple[Any, dict[str, Any]]:
        """Begin an episode that stands before its first iteration; what ``reset`` returns."""
        self.adopt(episode, 0)
        self.go_logged(codes.OBSERVE)
        self._blank = {"action_mask": None, "invalid_actions": 0, "case": case}
        self._blank = self.info(self.final)
        return self.observation(), self._blank.copy()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; what the environment's returns."""
        paid: cython.double = self.go_logged(action)
        ended: cython.bint = self.flags & codes.TERMINATED != 0
        info: dict[str, Any] = self.info(self.final if ended else self.running)
        return self.observation(), paid, bool(ended), self.flags & codes.TRUNCATED != 0, info

    def go_logged(self, action: int) -> float:
        """:meth:`go`, with a log that grows."""
        paid: cython.double = self.go(self.episode, action, self.out.kind_of(action))
        while self.flags & codes.LOG_FULL:
            self.episode.recorder.grow()
            paid += self.go(self.episode, codes.OBSERVE if action == codes.OBSERVE else codes.CONTINUE, 0)
        self.out.write(self.episode, self.flags, 0)
        return float(paid)

    @property
    def over(self) -> bool:
        """Whether the episode is over, or none has begun."""
        return bool(self.flags & (codes.TERMINATED | codes.TRUNCATED))

    def state(self) -> tuple[int, dict[str, Any]]:
        """What there is beside the episode, for :meth:`adopt_with`."""
        return self.flags, self._blank

    def adopt_with(self, episode: Episode, flags: int, blank: dict[str, Any]) -> None:
        """Go on with a running episode, in the state of another one."""
        self.adopt(episode, flags)
        self._blank = blank
        self.out.write(episode, flags, 0)

    def observation(self) -> Any:
        """What was written last, in memory of its own unless that is reused."""
        return self._observation if self._reuses else self._observation.copy()

    def mask(self) -> Any:
        """(num_actions,) int8: which actions are feasible next."""
        return self._mask.copy()

    def info(self, fields: InfoFields) -> dict[str, Any]:
        """What an info says; what is not among the fields is as after the reset."""
        e: Episode = self.episode
        found: dict[str, Any] = self._blank.copy()
        i: cython.int
        count: cython.longlong
        counted: cython.longlong = e.slo.last - e.slo.first if e.has_slo else 0
        measure.measure_so_far(e.view, e.totals, e.problem, counted, e.rereading(), self.infinity, self.values)
        found["action_mask"] = self._mask.copy()
        count = e.totals.invalid_actions
        found["invalid_actions"] = count
        for i in range(fields.count):
            if fields.whole[i]:
                count = cython.cast(cython.longlong, self.values[fields.places[i]])
                found[fields.names[i]] = count
            else:
                found[fields.names[i]] = self.values[fields.places[i]]
        return found
