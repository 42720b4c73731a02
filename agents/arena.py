"""Whole populations of networks on the same cases, inside the core."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.network import network_function
from llmsched_env.config import Scenario
from llmsched_env.core.episode import Block
from llmsched_env.core.loops import run_rule
from llmsched_env.core.memory import copy_episode
from llmsched_env.instances import instance
from llmsched_env.jit import jit
from llmsched_env.progress import Progress

__all__ = ["Arena"]


@jit
def _play(
    views: Any, states: Any, setups: Any, rule: Any, parameters: Any, memory: Any, clock_ns: Any, lost: Any
) -> int:  # fmt: skip
    """Play the case under each row of ``parameters``; returns the iterations of all."""
    iterations = 0
    for row in range(len(parameters)):
        copy_episode(views, states, setups, 0, 1)
        iterations += run_rule(views[1:2], states[1:2], setups[1:2], rule, parameters[row], memory)
        clock_ns[row] = views[1].clock_ns
        lost[row] = states[1].lost
    return iterations


class Arena:
    """Cases of a scenario, each laid out once, to be played by many networks.

    Args:
        scenario: where.
        cases: their numbers.
        threads: that share the cases; results do not depend on it.

    Attributes:
        scenario: as given.
        cases: as given.
    """

    def __init__(self, scenario: Scenario, cases: Sequence[int], *, threads: int = 1) -> None:
        self.scenario = scenario.replace(skip_forced=False, max_iterations=None)
        self.cases = tuple(cases)
        self._threads = ThreadPoolExecutor(threads)
        # Seconds a case where the MIP has to assign it; what was assigned is kept.
        shown = Progress(self.cases, desc="laying out cases", unit="case", after_s=2.0)
        self._instances = {case: instance(self.scenario, case) for case in shown}
        self._blocks = {case: Block(made.start, 2) for case, made in self._instances.items()}

    def losses(self, parameters: NDArray[np.float64], cases: Sequence[int]) -> tuple[NDArray[np.float64], int]:
        """Play each case under each network.

        Args:
            parameters: (networks, numbers), rows as `Network.parameters`.
            cases: numbers out of ``self.cases``, each once.

        Returns:
            (networks, cases): the gap to LB1, or where promises are made the share of counted requests that were lost;
            and the iterations of all episodes.
        """
        assert len({*cases}) == len(cases), "a case has one block"
        handle = network_function().handle
        rows = np.ascontiguousarray(parameters, np.float64)

        def one(case: int) -> tuple[NDArray[np.float64], int]:
            block, setup = self._blocks[case], self._instances[case].setup[0]
            clock_ns, lost = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
            arrays = block.views, block.states, block.setups
            iterations = _play(*arrays, handle, rows, np.zeros(1, np.int64), clock_ns, lost)
            if self.scenario.serving:
                return lost / (int(setup["last_counted"]) - int(setup["first_counted"])), iterations
            return clock_ns / self._instances[case].lb1_ns - 1.0, iterations

        played = list(self._threads.map(one, cases))
        return np.stack([losses for losses, _ in played], axis=1), sum(iterations for _, iterations in played)
