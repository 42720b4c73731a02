"""A joint plan while it is carried out: made again at each prefill, where lengths turn out otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.offline.assignment import check_seed
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan
from llmsched_env.offline.joint.search import temperatures
from llmsched_env.offline.kernels.instants import Instants

__all__ = ["LivePlan"]

MOVES = 40_000
"""Of the search at each prefill: some three milliseconds."""

COOLING = (0.1, 0.03)
"""First and last temperature, in clients held too many: the plan is near already."""


class LivePlan:
    """What is left of a plan: who of those that wait is to be read when, and when the next prefill is due.

    At each prefill the rest of the plan is searched again from what there is by then, by the moves and growing weights
    of :func:`~llmsched_env.offline.joint.search.joint_plan`. Requests that run hold their clients as long as they are
    expected to; where nothing fits any more, the least violation that was met is gone on with.

    Args:
        case: requests, with lengths as they are believed, clients and costs.
        plan: made of it.
        moves: of the search at each prefill; 0 follows the plan as it is.
        seed: of its random numbers: any whole number.

    Attributes:
        due: decodes before the next prefill of the plan; ``None`` after the last.
    """

    def __init__(self, case: Case, plan: JointPlan, *, moves: int = MOVES, seed: int = 0) -> None:
        self.case, self.moves = case, moves
        self._rng = np.random.default_rng(check_seed(seed) % 2**128)
        self._instants = plan.instants.copy()
        self._start_of = plan.prefill_of.astype(np.int64)
        self._horizon = plan.decodes

    @property
    def due(self) -> int | None:
        """Decodes before the next prefill of the plan; ``None`` after the last."""
        return int(self._instants[0]) if len(self._instants) else None

    def prefill(self, decodes: int, waiting: ArrayLike, left: ArrayLike) -> NDArray[np.int64]:
        """The prefill that comes now: in which order the requests that wait are to be read.

        Args:
            decodes: that have been run.
            waiting: (w,) numbers of the requests that wait.
            left: (running,) decodes that each running request is expected to need, at least 1 each.

        Returns:
            (w,) the same numbers: the prefill takes as many from the front as there are idle clients, within the cap.

        Raises:
            ConfigError: nobody waits.
        """
        line, running = np.asarray(waiting, np.int64), np.asarray(left, np.int32)
        if not len(line):
            raise ConfigError("a prefill of nobody: ask while a request waits.")
        instants = np.maximum(self._instants - decodes, 0)
        instants[:1] = 0
        if not len(instants):
            instants = np.zeros(1, np.int64)
        start_of = np.clip(self._start_of[line], 0, len(instants) - 1)
        if self.moves:
            start_of, instants = self._searched(decodes, line, running, start_of, instants)
        sequence = line[np.lexsort((line, -self.case.decodes[line], start_of))]
        self._instants = instants[1:] + decodes
        self._start_of[line] = np.maximum(start_of - 1, 0)
        return sequence

    def _searched(
        self,
        decodes: int,
        line: NDArray[np.int64],
        running: NDArray[np.int32],
        start_of: NDArray[np.int64],
        instants: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Prefills and instants from now on, with fewer violations."""
        lengths = np.append(self.case.decodes[line].astype(np.int32), running)
        horizon = max(self._horizon - decodes, int(lengths.max()), 1)
        search = Instants(
            lengths,
            np.append(self.case.requests.prompt_tokens[line], np.zeros(len(running), np.int32)),
            np.minimum(instants, horizon).astype(np.int32),
            np.append(start_of, np.zeros(len(running), np.int64)).astype(np.int32),
            self.case.clients,
            horizon,
            self.case.cost.prefill_token_cap,
            int(self._rng.integers(2**31)),
            len(running),
        )
        search.run(self.moves, temperatures(search, *COOLING), shifts=30, growth=1)
        found: Any = search.best_start
        return np.asarray(found)[: len(line)].astype(np.int64), np.asarray(search.best_instants).astype(np.int64)
