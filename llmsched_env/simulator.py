"""The Python face of the engine: one episode of one problem, stepped, run under a rule, or forked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.actions import action_number
from llmsched_env.engine import codes
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import Totals, View
from llmsched_env.errors import ConfigError, EpisodeOverError
from llmsched_env.problem import Problem
from llmsched_env.snapshot import restore, snapshot
from llmsched_env.workload.requests import MAX_TOKENS

__all__ = ["EVENT", "ITERATION", "SERVED", "Futures", "Records", "Simulator", "as_records", "record_type"]

Records = NDArray[np.void]


def record_type(*names: str) -> np.dtype[np.void]:
    """Records of whole numbers of these names."""
    return np.dtype((np.record, np.dtype([(name, np.int64) for name in names])))


ITERATION = record_type("start_ns", "end_ns", "prefill", "clients", "mixed")
"""An entry of the log. ``prefill``: 0 for what counts as a decode. ``clients``: how many had a token."""

SERVED = record_type(
    "client", "prefill_start_ns", "first_token_ns", "completion_ns", "decode", "token_ns", "tokens", "gap_ns",
    "preempted_ns",
)  # fmt: skip
"""A request's course (see the columns in llmsched_env.engine.codes)."""

EVENT = record_type("request", "client", "event", "iteration", "clock_ns")
"""What happened to a request: ``event`` is one of READ to COMPLETED in llmsched_env.engine.codes."""


class Simulator:
    """One episode.

    Args:
        problem: the case as the engine reads it.
        record: keep every iteration and the times of every request (for metrics and pictures).

    Attributes:
        problem: as given.
        episode: the engine's own.
    """

    def __init__(self, problem: Problem, *, record: bool = False) -> None:
        if not isinstance(problem, Problem):
            raise ConfigError(
                f"a Simulator is made of a Problem, as build_problem makes, not of a {type(problem).__name__}."
            )
        self.problem = problem
        self.episode = problem.episode(record=record)

    @property
    def view(self) -> View:
        """What a policy may know now; updated in place, read-only."""
        self.episode.set_forecast(True)
        return self.episode.view

    def reset(self) -> None:
        """Back to the state before the first iteration."""
        self.episode.restart(self.problem.start)

    def fork(
        self,
        *,
        record: bool = False,
        outputs: ArrayLike | None = None,
        arrivals: bool = True,
        believed: bool = False,
        sequence: ArrayLike | None = None,
    ) -> Simulator:
        """An independent episode that goes on from here.

        Args:
            record: keep every iteration of it.
            outputs: (n,) output lengths to go on with, by request number; entries of complete requests are ignored.
                The past, the estimates and the queues stay as they are. ``None`` for the true lengths.
            arrivals: whether requests that are not released by now still come; else they count as complete, and as
                served in time, so that goodput is to be compared between such forks only.
            believed: whether iterations last what the view says from here on, instead of what they will last where the
                scenario has noise, or a cost model that is not the believed one.
            sequence: (waiting,) the requests that wait, by number, in the order in which they are to be taken; ``None``
                for the order that there is. Of one queue without SLOs.

        Raises:
            ConfigError: not n lengths, or one that its request has outlived; a sequence where there is not one queue,
                or orders are actions, or of other requests than wait.
            WorkloadError: too many tokens for the clock.
        """
        twin = Simulator.__new__(Simulator)
        twin.problem = self.problem.believed if believed else self.problem
        if outputs is None:
            twin.episode = twin.problem.episode(record=record)
            twin.episode.restart(self.episode)
        else:
            twin.problem = twin.problem.with_outputs(self._checked(outputs))
            twin.episode = twin.problem.episode(record=record)
            twin.episode.move(self.episode)
        if sequence is not None:
            twin.problem = twin.problem.with_line(self._in_line(sequence))
            last, twin.episode = twin.episode, twin.problem.episode(record=record)
            twin.episode.requeue(last)
        if not arrivals:
            twin.episode.end_arrivals()
        return twin

    def _checked(self, outputs: ArrayLike) -> NDArray[np.int32]:
        """``outputs`` by position, the true lengths where requests are complete."""
        given = np.asarray(outputs)
        n = self.problem.num_requests
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise ConfigError(
                f"outputs of shape {given.shape} and dtype {given.dtype}: give {n} whole numbers, one a request."
            )
        emitted, true = self._emitted(), self.problem.requests[:, codes.OUTPUT]
        by_position = np.where(emitted == true, true, given[self.problem.request_of])
        bad = np.flatnonzero((by_position <= emitted) & (emitted < true) | (by_position > MAX_TOKENS))
        if len(bad):
            position = int(bad[0])
            raise ConfigError(
                f"outputs[{self.problem.request_of[position]}] = {by_position[position]} is out of range: the request "
                f"has emitted {emitted[position]} tokens and is not complete, and the longest may have {MAX_TOKENS}."
            )
        return by_position.astype(np.int32)

    @property
    def waiting(self) -> NDArray[np.int64]:
        """(waiting,) numbers of the requests that wait, preempted ones aside, in queue order."""
        there = _members(self.episode.line.waiting, self.problem.num_requests)
        return self.problem.request_of[there].astype(np.int64)

    def _in_line(self, sequence: ArrayLike) -> NDArray[np.int64]:
        """Positions so far, by position from now on."""
        problem, wanted = self.problem, np.asarray(sequence)
        if not problem.data.shared or "slo" in problem.options:
            raise ConfigError(
                "a sequence is an order of one queue whose order is fixed: set queue='shared', and leave ttft_s and "
                "tpot_s out."
            )
        there = np.flatnonzero(_members(self.episode.line.waiting, problem.num_requests))
        by_number = np.asarray(problem.data.position_of)
        if (
            wanted.shape != there.shape
            or wanted.dtype.kind not in "iu"
            or set(wanted.tolist()) != set(self.waiting.tolist())
        ):
            raise ConfigError(
                f"a sequence of shape {wanted.shape}: name each of the {len(there)} requests that wait once."
            )
        positions = np.arange(problem.num_requests)
        positions[there] = by_number[wanted]
        return positions

    def _emitted(self) -> NDArray[np.int32]:
        """(n,) by position; all of them where a request is complete."""
        e, problem = self.episode, self.problem
        out = problem.requests[:, codes.OUTPUT].copy()
        out[_members(e.line.waiting, len(out))] = 0
        out[np.asarray(e.problem.position_of)[e.line.next_release :]] = 0
        if e.kv.enabled:
            np.copyto(out, np.asarray(e.kv.emitted), where=_members(e.line.preempted, len(out)))
        if e.chunked.position >= 0:
            out[e.chunked.position] = e.kv.emitted[e.chunked.position] if e.kv.enabled else 0
        clients = np.asarray(e.clients)
        active = clients[clients[:, codes.RUNNING] >= 0]
        out[active[:, codes.RUNNING]] = e.view.decodes - active[:, codes.BASE]
        return out

    @property
    def emitted(self) -> NDArray[np.int32]:
        """(n,) output tokens emitted so far, by request number."""
        by_request = np.empty(self.problem.num_requests, np.int32)
        by_request[self.problem.request_of] = self._emitted()
        return by_request

    def restore(self, other: Simulator) -> None:
        """Take over the state of another episode of the same problem (recordings excepted), or of a believed one's.

        Raises:
            ConfigError: it is an episode of another problem.
        """
        same = self.problem in (other.problem, other.problem.believed)
        if not same and other.problem.digest() != self.problem.digest():
            raise ConfigError("restore: the other episode is of another problem: fork it instead.")
        self.episode.restart(other.episode)

    @property
    def done(self) -> bool:
        """Whether every request is complete."""
        return bool(self.episode.view.completed >= self.problem.num_requests)

    @property
    def can_decode(self) -> bool:
        """Whether some client is active."""
        return bool(self.episode.view.active > 0)

    @property
    def can_prefill(self) -> bool:
        """Whether some idle client has something to take."""
        return bool(self.episode.view.ready > 0)

    @property
    def has_choice(self) -> bool:
        """Whether more than one action is feasible and makes a difference."""
        return self.episode.offers_choice()

    @property
    def forced_action(self) -> int:
        """The action where there is no choice: a decode, a prefill, or a wait that goes on."""
        return self.episode.forced_now()

    def step(self, action: int) -> None:
        """Run one iteration; an infeasible action is replaced by a feasible one and counted.

        Args:
            action: 0 is a decode, 1 a prefill; others as the scenario has them (`llmsched_env.actions.action_names`).

        Raises:
            EpisodeOverError: every request is complete.
            InvalidActionError: not one of these.
        """
        if self.done:
            raise EpisodeOverError("every request of this episode is complete: call reset first.")
        self.episode.step(action_number(action, self.problem.action_names))

    def run(self, rule: Rule) -> None:
        """Run to the end (or the horizon) under a rule, which is asked only where there is a choice.

        Raises:
            ConfigError: not a rule.
            BusyError: it is running.
        """
        if not isinstance(rule, Rule):
            raise ConfigError(f"run takes a Rule, not a {type(rule).__name__}: PythonRule makes one of a function.")
        self.episode.run(rule)

    @property
    def totals(self) -> Totals:
        """The totals that metrics are made of, to read."""
        return self.episode.totals

    @property
    def charge(self) -> int:
        """The integer total that the problem's reward is a difference of (see llmsched_env.engine.reward)."""
        return self.episode.charge()

    @property
    def log(self) -> Records:
        """(iterations,) `ITERATION`: what was recorded."""
        recorder = self.episode.recorder
        return as_records(np.asarray(recorder.log)[: int(recorder.logged)], ITERATION)

    @property
    def served(self) -> Records:
        """(n,) `SERVED` in order of request number; ``completion_ns`` is 0 for requests not complete."""
        if not self.episode.recorder.enabled:
            return np.zeros(0, SERVED)
        by_position = as_records(np.asarray(self.episode.recorder.served), SERVED)
        by_request = np.empty_like(by_position)
        by_request[self.problem.request_of] = by_position
        return by_request

    @property
    def events(self) -> Records:
        """(events,) `EVENT`: what happened to requests, in order; empty where nothing is recorded."""
        recorder = self.episode.recorder
        found = np.array(np.asarray(recorder.events)[: int(recorder.noted)])
        found[:, codes.POSITION] = self.problem.request_of[found[:, codes.POSITION]]
        return as_records(found, EVENT)

    def __getstate__(self) -> dict[str, Any]:
        record = bool(self.episode.recorder.enabled)
        return {"problem": self.problem, "record": record, "state": snapshot(self.episode)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.problem = state["problem"]
        self.episode = self.problem.episode(record=state["record"])
        restore(self.episode, state["state"])


def _members(words: Any, size: int) -> NDArray[np.bool_]:
    """(size,) who is in a set of the engine (llmsched_env.engine.bitset)."""
    return np.unpackbits(np.asarray(words).view(np.uint8), count=size, bitorder="little").view(np.bool_)


def as_records(rows: NDArray[np.int64], kind: np.dtype[np.void]) -> Records:
    """(n,) records of (n, columns)."""
    return np.ascontiguousarray(rows).view(kind)[:, 0]


class Futures:
    """A running episode as a planner may know it: it can be gone on with, but what is hidden has to be imagined.

    What iterations will last is always hidden where it is not what the view says: futures go by the believed cost
    model, without noise.

    Args:
        simulator: the episode; a planner that plays fair does not look for it in here.
        known: whether the scenario shows true lengths.
    """

    def __init__(self, simulator: Simulator, *, known: bool) -> None:
        self._simulator = simulator
        self.known = known

    @property
    def emitted(self) -> NDArray[np.int32]:
        """(n,) output tokens emitted so far, by request number."""
        return self._simulator.emitted

    @property
    def estimates(self) -> NDArray[np.int32]:
        """(n,) estimated output lengths, by request number."""
        return self._by_request(codes.ESTIMATE)

    @property
    def prompts(self) -> NDArray[np.int32]:
        """(n,) prompt tokens, by request number."""
        return self._by_request(codes.PROMPT)

    def _by_request(self, column: int) -> NDArray[np.int32]:
        by_request = np.empty(self._simulator.problem.num_requests, np.int32)
        by_request[self._simulator.problem.request_of] = self._simulator.problem.requests[:, column]
        return by_request

    def future(self, into: Simulator | None = None) -> Simulator:
        """The episode as it will go on.

        Args:
            into: an earlier future of this episode, to be overwritten: quicker than a new one.

        Raises:
            ConfigError: the scenario hides it.
        """
        if not self.known:
            raise ConfigError("the scenario does not show true output lengths: imagine a future instead.")
        if into is None:
            return self._simulator.fork(believed=True)
        into.restore(self._simulator)
        return into

    def imagine(self, outputs: ArrayLike) -> Simulator:
        """The episode as it would go on with these lengths, by request number, if nothing more arrived.

        Raises:
            ConfigError: not n lengths, or one that its request has outlived.
            WorkloadError: too many tokens for the clock.
        """
        return self._simulator.fork(outputs=outputs, arrivals=False, believed=True)
