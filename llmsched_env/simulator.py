"""The Python face of the core: one episode of one instance, stepped, run under a compiled rule, or forked."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.actions import outside_space
from llmsched_env.core.episode import Memory
from llmsched_env.core.futures import count_emitted, end_arrivals, refill
from llmsched_env.core.instance import Instance
from llmsched_env.core.layout import ESTIMATE, OUTPUT, PROMPT, VIEW, Records, View
from llmsched_env.core.loops import advance_once, has_choice, run_rule
from llmsched_env.core.reward import charge
from llmsched_env.core.rules import CompiledRule, compile_rule
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, EpisodeOverError, UnknownFieldError
from llmsched_env.workload.requests import MAX_TOKENS, Requests

__all__ = ["Outlook", "Simulator", "compile_episodes"]


SPARE_MEMORY = 16
"""Entries behind a rule's memory that it may write by mistake."""


class _Shown(np.record):  # type: ignore[misc]  # numpy's stubs call it final
    """A view that knows what its fields are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what numpy, copy and pickle try
        raise UnknownFieldError(name, View.__annotations__)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in View.__annotations__:
            raise UnknownFieldError(name, View.__annotations__)
        super().__setattr__(name, value)

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, str) and name not in View.__annotations__:
            raise UnknownFieldError(name, View.__annotations__)
        return super().__getitem__(name)


_SHOWN = np.dtype((_Shown, VIEW))


class Simulator:
    """One episode.

    Args:
        instance: the case as the core reads it.
        record: keep every iteration and the times of every request (for metrics and pictures).

    Attributes:
        instance: as given.
        view: what a policy may know now; updated in place, read-only.
    """

    def __init__(self, instance: Instance, *, record: bool = False) -> None:
        self.instance = instance
        self._memory = instance.start.copy(record=record)
        self._bind()

    def _bind(self) -> None:
        shown = self._memory.view.view(_SHOWN)
        shown.setflags(write=False)
        self.view: View = shown[0]

    def reset(self) -> None:
        """Back to the state before the first iteration."""
        self._memory.assign(self.instance.start)

    def fork(
        self,
        *,
        record: bool = False,
        outputs: ArrayLike | None = None,
        arrivals: bool = True,
        believed: bool = False,
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

        Raises:
            ConfigError: not n lengths, or one that its request has outlived.
            WorkloadError: too many tokens for the clock.
        """
        twin = Simulator.__new__(Simulator)
        twin.instance = self.instance.believed if believed else self.instance
        if outputs is None:
            twin._memory = self._memory.copy(record=record, setup=twin.instance.setup)
        else:
            twin.instance = twin.instance.with_outputs(self._checked(outputs))
            twin._memory = self._memory.moved(twin.instance.setup, twin.instance.requests, record=record)
            refill(twin._memory.view, twin._memory.setup)
        if not arrivals:
            end_arrivals(*twin._memory.call_arrays)
        twin._bind()
        return twin

    def _checked(self, outputs: ArrayLike) -> NDArray[np.int32]:
        """``outputs`` by position, the true lengths where requests are complete."""
        given = np.asarray(outputs)
        n = self.instance.num_requests
        if given.shape != (n,) or given.dtype.kind not in "iu":
            raise ConfigError(
                f"outputs of shape {given.shape} and dtype {given.dtype}: give {n} whole numbers, one a request."
            )
        emitted, true = self._emitted(), self.instance.requests[:, OUTPUT]
        by_position = np.where(emitted == true, true, given[self.instance.request_of])
        bad = np.flatnonzero((by_position <= emitted) & (emitted < true) | (by_position > MAX_TOKENS))
        if len(bad):
            position = int(bad[0])
            raise ConfigError(
                f"outputs[{self.instance.request_of[position]}] = {by_position[position]} is out of range: the request "
                f"has emitted {emitted[position]} tokens and is not complete, and the longest may have {MAX_TOKENS}."
            )
        return by_position.astype(np.int32)

    def _emitted(self) -> NDArray[np.int32]:
        out = np.empty(self.instance.num_requests, np.int32)
        count_emitted(*self._memory.call_arrays, out)
        return out

    @property
    def emitted(self) -> NDArray[np.int32]:
        """(n,) output tokens emitted so far, by request number."""
        by_request = np.empty(self.instance.num_requests, np.int32)
        by_request[self.instance.request_of] = self._emitted()
        return by_request

    def restore(self, other: Simulator) -> None:
        """Take over the state of another episode of the same instance (recordings excepted), or of a believed one's.

        Raises:
            ConfigError: it is an episode of another instance.
        """
        same = self.instance in (other.instance, other.instance.believed)
        if not same and other.instance.digest() != self.instance.digest():
            raise ConfigError("restore: the other episode is of another instance: fork it instead.")
        self._memory.assign(other._memory)

    @property
    def memory(self) -> Memory:
        """The arrays of the episode, for compiled code."""
        return self._memory

    @property
    def done(self) -> bool:
        """Whether every request is complete."""
        return bool(self.view.completed >= self.instance.num_requests)

    @property
    def can_decode(self) -> bool:
        """Whether some client is active."""
        return bool(self.view.active > 0)

    @property
    def can_prefill(self) -> bool:
        """Whether some idle client has something to take."""
        return bool(self.view.ready > 0)

    @property
    def has_choice(self) -> bool:
        """Whether more than one action is feasible and makes a difference."""
        return bool(has_choice(self.view, self._memory.setup[0]))

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
        if action not in range(self.instance.num_actions):
            raise outside_space(f"action {action!r}", self.instance.num_actions)
        memory = self._memory
        if len(memory.log) and memory.state[0].logged >= len(memory.log):
            memory.grow_log()
        advance_once(memory.view, memory.state, memory.setup, int(action))

    def run(self, rule: CompiledRule) -> None:
        """Run to the end (or the horizon) under a compiled rule, which is asked only where there is a choice."""
        memory = self._memory
        kept = np.concatenate([np.array(rule.memory, np.int64), np.zeros(SPARE_MEMORY, np.int64)])
        parameters = np.ascontiguousarray(rule.parameters, np.float64)
        while True:
            run_rule(*memory.call_arrays, rule.function.handle, parameters, kept)
            if not len(memory.log) or memory.state[0].logged < len(memory.log):
                return
            memory.grow_log()

    @property
    def totals(self) -> Any:
        """The totals that metrics are made of: a `STATE` record, to read."""
        return self._memory.state[0]

    @property
    def charge(self) -> int:
        """The integer total that the instance's reward is a difference of (see llmsched_env.core.reward)."""
        memory = self._memory
        return int(charge(memory.view[0], memory.state[0], memory.setup[0]))

    @property
    def log(self) -> Records:
        """(iterations,) `ITERATION`: what was recorded."""
        return self._memory.log[: int(self._memory.state[0]["logged"])]

    @property
    def served(self) -> Records:
        """(n,) `SERVED` in order of request number; ``completion_ns`` is 0 for requests not complete."""
        if not len(self._memory.served):
            return self._memory.served
        by_request = np.empty_like(self._memory.served)
        by_request[self.instance.request_of] = self._memory.served
        return by_request

    def __getstate__(self) -> dict[str, Any]:
        return {"instance": self.instance, "_memory": self._memory}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()


class Outlook:
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
        return self._by_request(ESTIMATE)

    @property
    def prompts(self) -> NDArray[np.int32]:
        """(n,) prompt tokens, by request number."""
        return self._by_request(PROMPT)

    def _by_request(self, column: int) -> NDArray[np.int32]:
        by_request = np.empty(self._simulator.instance.num_requests, np.int32)
        by_request[self._simulator.instance.request_of] = self._simulator.instance.requests[:, column]
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


def _decode(view: Any, parameters: Any, memory: Any) -> int:
    return 0


@functools.cache
def compile_episodes() -> None:
    """Compile, or load, what every episode needs."""
    requests = Requests.of([1], [2])
    case = Instance.build(
        requests, requests.output_tokens, CostModel("any", 1, 1, 1, 1), 1,
        client_of=None, order="fcfs", stealing=False, bound_ns=1,
    )  # fmt: skip
    Simulator(case).step(1)
    Simulator(case).run(CompiledRule(compile_rule(_decode), np.zeros(1), np.zeros(1, np.int64)))
