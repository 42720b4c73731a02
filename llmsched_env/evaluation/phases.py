"""What each request did when, and the table of all requests, from a recorded episode."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.metrics import NS_PER_S, request_metrics, slos_met
from llmsched_env.simulator import Records, Simulator, as_records, record_type
from llmsched_env.viewer.cells import recorded

__all__ = ["DECODE", "LOST", "MOVE", "PHASE", "PHASES", "PREEMPTED", "PREFILL", "RESUME", "WAITING", "phases",
           "preemptions", "request_table"]  # fmt: skip

PHASES = ("waiting", "prefill", "decode", "preempted", "resume", "move", "lost prefill")
"""In its queue; in its first prefill; decoding, stalls included; off its client; coming back, by a prefill or a copy;
going to another client; in a chunked prefill that gave way, so that its tokens are computed again."""

WAITING, PREFILL, DECODE, PREEMPTED, RESUME, MOVE, LOST = range(len(PHASES))

PHASE = record_type("request", "client", "phase", "start_ns", "end_ns")
"""A stretch of a request's time. ``phase``: the place in `PHASES`. ``client``: -1 while it has none."""


class _Course:
    """A request's phases, while they are found."""

    def __init__(self, request: int, release_ns: int, moves: bool) -> None:
        self.found: list[tuple[int, int, int, int, int]] = []
        self.client, self.phase, self.since_ns = -1, WAITING, release_ns
        self._request, self._moves = request, moves
        self._again = WAITING
        """The phase of the next wait."""

    def turn(self, now_ns: int, phase: int, client: int) -> None:
        """The running phase ends, and another begins."""
        if now_ns > self.since_ns:
            self.found.append((self._request, self.client, self.phase, self.since_ns, now_ns))
        self.phase, self.client, self.since_ns = phase, client, now_ns

    def happen(self, event: int, client: int, iteration_ns: int, now_ns: int) -> None:
        """What the recording says; the iteration of it began at ``iteration_ns``."""
        if event == codes.READ:
            self.turn(iteration_ns, PREFILL if self._again == WAITING else RESUME, client)
        elif event == codes.DROPPED:
            self.phase = LOST
            self.turn(now_ns, self._again, -1)
        elif event in (codes.STARTED, codes.RESUMED):
            if self.client < 0:  # else it was read in parts, and the first has begun this phase
                reading = PREFILL if event == codes.STARTED else MOVE if self._moves else RESUME
                self.turn(iteration_ns, reading, client)
            self.turn(now_ns, DECODE, client)
        elif event == codes.SUSPENDED:
            self._again = PREEMPTED
            self.turn(now_ns, PREEMPTED, -1)
        else:
            self.turn(now_ns, WAITING, -1)


def phases(simulator: Simulator) -> Records:
    """(phases,) `PHASE` by request, in order of time: those of a request follow one another from release to end.

    Phases without a duration are left out. Of a request that is not complete the last one ends now.

    Args:
        simulator: recorded from its beginning.

    Raises:
        ConfigError: it was not.
    """
    served, log, now_ns = recorded(simulator), simulator.log, int(simulator.view.clock_ns)
    moves = not simulator.problem.data.shared  # nobody is preempted there
    courses = [_Course(i, release_ns, moves) for i, release_ns in enumerate(simulator.problem.release_ns.tolist())]
    starts_ns = [*log["start_ns"].tolist(), now_ns]
    for request, client, event, iteration, clock_ns in simulator.events.tolist():
        courses[request].happen(event, client, starts_ns[iteration], clock_ns)
    for course, completion_ns in zip(courses, served["completion_ns"].tolist(), strict=True):
        if completion_ns == 0:
            course.turn(now_ns, WAITING, -1)
    rows = [row for course in courses for row in course.found]
    return as_records(np.array(rows, np.int64).reshape(-1, len(PHASE.names or ())), PHASE)


def preemptions(simulator: Simulator) -> NDArray[np.int64]:
    """(n,) how often each request was preempted, or gave way while it was read; moves do not count.

    Raises:
        ConfigError: the episode was not recorded from its beginning.
    """
    recorded(simulator)
    events = simulator.events
    gave_way = events["event"] == codes.DROPPED
    if simulator.problem.data.shared:
        gave_way |= events["event"] == codes.SUSPENDED
    return np.bincount(events["request"][gave_way], minlength=simulator.problem.num_requests)


def request_table(simulator: Simulator) -> dict[str, NDArray[np.generic]]:
    """A table of the requests of a recorded episode: columns of (n,), by request number.

    ``request``, ``client`` (the last one; -1 before the first token), ``arrival_s``, ``first_token_s`` and ``end_s`` on
    the clock of the episode, ``prompt_tokens``, ``output_tokens``, ``preemptions``, then `request_metrics`; with SLOs
    also ``slo_met`` and ``counted`` (0 or 1; goodput is the mean of the first over the second). NaN for what a request
    has not reached.

    Raises:
        ConfigError: the episode was not recorded from its beginning.
    """
    served, problem = recorded(simulator), simulator.problem
    started, finished = served["first_token_ns"] > 0, served["completion_ns"] > 0
    tokens = np.empty((problem.num_requests, 2), np.int64)
    tokens[problem.request_of] = problem.requests[:, [codes.PROMPT, codes.OUTPUT]]
    table: dict[str, NDArray[np.generic]] = {
        "request": np.arange(problem.num_requests),
        "client": np.where(started, served["client"], -1),
        "arrival_s": problem.release_ns / NS_PER_S,
        "first_token_s": np.where(started, served["first_token_ns"], np.nan) / NS_PER_S,
        "end_s": np.where(finished, served["completion_ns"], np.nan) / NS_PER_S,
        "prompt_tokens": tokens[:, 0],
        "output_tokens": tokens[:, 1],
        "preemptions": preemptions(simulator),
        **request_metrics(simulator),
    }
    slo = simulator.episode.slo
    if slo.enabled:
        ttft_met, tpot_met = slos_met(simulator, int(slo.ttft_ns), int(slo.tpot_ns))
        table["slo_met"] = (finished & ttft_met & tpot_met).astype(np.int64)
        number = np.arange(problem.num_requests)
        table["counted"] = ((number >= int(slo.first)) & (number < int(slo.last))).astype(np.int64)
    return table
