"""Many copies of an environment, stepped in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine.arrays import Region, arrays_in, view_of
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.measure import MEASURED
from llmsched_env.engine.step import Copies, Copy, Steps, together
from llmsched_env.errors import EpisodeOverError

RETURNED = 2
"""Steps whose memory is kept for another use: a loop holds one while it asks for the next, and then lets go of it."""

LARGE_PAGES_FROM, REGION_BYTES = 2**22, 2**25
"""Size of the regions of memory from which the arrays of episodes are taken; fewer bytes lie where they may."""


class Case(Protocol):
    """What episodes are made of."""

    @property
    def start(self) -> Episode:
        """One before its first iteration, which is never advanced."""

    @property
    def options(self) -> dict[str, Any]:
        """Of its mechanisms."""

    @property
    def episode_nbytes(self) -> int:
        """About what an episode takes of it."""

    def episode(self, *, record: bool = False) -> Episode:
        """A new one."""


class Batch:
    """``count`` episodes, each of a case of its own, stepped together.

    Args:
        count: copies.
        kinds: (num_actions,) of iteration that each action is.
        num_features: of each.
        threads: that share a step; results do not depend on it.
        reuses: whether every step is written to the same arrays.

    Attributes:
        count: as given.
        kinds: as given.
        num_features: as given.
        copies: (count,) `Copy`.
        cases: (count,) of each; ``None`` before its first episode.
    """

    count: cython.int
    kinds: tuple[Any, ...]
    num_features: cython.int
    copies: list[Any]
    cases: list[Any]
    _waiting: cython.int
    _reuses: cython.bint
    _shares: list[Any]
    _returned: list[Any]
    _turn: cython.int
    _unseen: cython.longlong
    _region: Any
    _pool: Any
    _pid: cython.longlong

    def __init__(
        self, count: int, kinds: Sequence[int], num_features: int, *, threads: int = 1, reuses: bool = False
    ) -> None:
        self.count = count
        self.kinds = tuple(kinds)
        self.num_features = num_features
        self.copies = [Copy(i) for i in range(count)]
        self.cases = [None] * count
        self._waiting = count
        self._reuses = reuses
        bounds = np.linspace(0, count, min(threads, count) + 1).astype(int).tolist()
        self._shares = [together(self.copies[first:last]) for first, last in pairwise(bounds)]
        self._returned = [self.new_steps() for _ in range(RETURNED)]
        self._unseen = self._returned[0].holders()
        self._turn = 0
        self._region = None
        self._pool = None
        self._pid = 0

    def new_steps(self) -> Steps:
        """New arrays."""
        return Steps(self.count, self.kinds, self.num_features)

    def next_steps(self) -> Steps:
        """Arrays of which nobody holds a part: those of some steps ago where they were dropped, else new."""
        if self._reuses:
            out: Steps = self._returned[0]
            return out
        self._turn = (self._turn + 1) % RETURNED
        out = self._returned[self._turn]
        if out.holders() != self._unseen:
            out = self.new_steps()
            self._returned[self._turn] = out
        return out

    def load(self, number: int, case: Case, out: Steps) -> None:
        """Begin an episode of a case in copy ``number``, and write what it looks like to its row of ``out``."""
        copy: Copy = self.copies[number]
        before = self.cases[number]
        self._waiting -= before is None
        if before is case:
            copy.episode.restart(case.start)
        elif before is not None and copy.episode.fits(case.start) and _alike(before.options, case.options):
            copy.episode.switch(case.start)
        else:
            copy.adopt(self._new_episode(case), 0)
        self.cases[number] = case
        copy.begin(out)

    def adopt(self, number: int, case: Case, episode: Episode, flags: int) -> None:
        """Let copy ``number`` go on with an episode of a case, after a step that returned these flags."""
        self._waiting -= self.cases[number] is None
        self.copies[number].adopt(episode, flags)
        self.cases[number] = case

    def _new_episode(self, case: Case) -> Episode:
        size = min(self.count * case.episode_nbytes, REGION_BYTES)
        if size < LARGE_PAGES_FROM:
            return case.episode()
        if self._region is None or self._region.free < case.episode_nbytes:
            self._region = Region(size)
        with arrays_in(self._region):
            made = case.episode()
        self._region.end_part()
        return made

    def step(self, actions: NDArray[np.int64]) -> tuple[Steps, int]:
        """Step every copy; returns what came of it, and how many copies are over.

        Where some action is not in the action space, nothing is done: -1 - the index of the first one.

        Args:
            actions: (count,) int64, contiguous.
        """
        if self._waiting:
            raise EpisodeOverError(
                f"{self._waiting} of {self.count} copies have not begun: load a case into each first."
            )
        out = self.next_steps()
        out.actions = view_of(actions)
        unknown = out.first_unknown()
        if unknown >= 0:
            return out, -1 - unknown
        shares = self._shares
        if len(shares) == 1:
            return out, shares[0].run(out)
        if self._pid != os.getpid():  # threads do not survive a fork
            self._pool = ThreadPoolExecutor(len(shares))
            self._pid = os.getpid()
        return out, sum(self._pool.map(_run, shares, [out] * len(shares)))

    def observe(self) -> Steps:
        """What every copy, each with a case, looks like as it stands; no rewards and no ends."""
        out = self.next_steps()
        for copy in self.copies:
            copy.write_to(out)
        return out

    def measure(self, copies: NDArray[np.int64]) -> NDArray[np.float64]:
        """(len(MEASURED), count): `MEASURED` of each of ``copies`` as an ``info`` has them; 0 in the other columns."""
        out: NDArray[np.float64] = np.zeros((len(MEASURED), self.count))
        for i in copies.tolist():
            out[:, i] = self.copies[i].episode.measured(infos=True)
        return out

    def flags(self) -> NDArray[np.int64]:
        """(count,) int64: of the last step or reset of each copy, as `Copy` has them."""
        return np.array([copy.flags for copy in self.copies], np.int64)

    def masks(self) -> NDArray[np.int8]:
        """(count, num_actions) int8: which actions are feasible next."""
        masks: NDArray[np.int8] = (self.flags()[:, np.newaxis] >> np.array(self.kinds) & 1).astype(np.int8)
        return masks

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.shutdown()
        self._pool = None
        self._pid = 0


def _alike(options: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether the options of two cases are the same, but for the noise: each case has its own."""
    if options.keys() != others.keys():
        return False
    return all(options[name] == others[name] for name in options if name != "noise")


def _run(share: Copies, out: Steps) -> int:
    return share.run(out)
