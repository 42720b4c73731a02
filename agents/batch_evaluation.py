"""Whole populations of networks on the same cases, inside the loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from llmsched_env.agents.network import Network
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.progress import Progress

__all__ = ["BatchEvaluation"]


class BatchEvaluation:
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
        self._problems = {case: build_problem(self.scenario, case) for case in shown}
        self._episodes = {case: made.episode() for case, made in self._problems.items()}

    def losses(self, networks: Sequence[Network], cases: Sequence[int]) -> tuple[NDArray[np.float64], int]:
        """Play each case under each network.

        Args:
            networks: to be compared.
            cases: numbers out of ``self.cases``, each once.

        Returns:
            (networks, cases): the gap to LB1, or with SLOs the share of counted requests that violate one;
            and the iterations of all episodes.
        """
        assert len({*cases}) == len(cases), "a case has one episode"
        own = threading.local()  # a rule computes in room of its own, so each thread has its own ones

        def one(case: int) -> tuple[list[float], int]:
            episode, problem = self._episodes[case], self._problems[case]
            losses, iterations = [], 0
            if not hasattr(own, "rules"):
                own.rules = [network.rule() for network in networks]
            for rule in own.rules:
                episode.restart(problem.start)
                iterations += episode.run(rule)
                if self.scenario.serving:
                    losses.append(episode.totals.violations / (episode.slo.last - episode.slo.first))
                else:
                    losses.append(episode.view.clock_ns / problem.lb1_ns - 1.0)
            return losses, iterations

        played = list(self._threads.map(one, cases))
        return np.array([losses for losses, _ in played]).T, sum(iterations for _, iterations in played)
