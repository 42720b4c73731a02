"""The Python face of the core: one episode of one instance, stepped, run under a compiled rule, or forked."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.core.episode import Instance, Memory
from llmsched_env.core.layout import Records, View
from llmsched_env.core.loops import advance_once, run_rule
from llmsched_env.core.reward import charge
from llmsched_env.core.rules import CompiledRule
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError

__all__ = ["Simulator"]


SPARE_MEMORY = 16
"""Entries behind a rule's memory that it may write by mistake."""


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
        shown = self._memory.view.view()
        shown.setflags(write=False)
        self.view: View = shown[0]

    def reset(self) -> None:
        """Back to the state before the first iteration."""
        self._memory.assign(self.instance.start)

    def fork(self, *, record: bool = False) -> Simulator:
        """An independent episode that goes on from here."""
        twin = Simulator.__new__(Simulator)
        twin.instance = self.instance
        twin._memory = self._memory.copy(record=record)
        twin._bind()
        return twin

    def restore(self, other: Simulator) -> None:
        """Take over the state of another episode of the same instance (recordings excepted).

        Raises:
            ConfigError: it is an episode of another instance.
        """
        if other.instance is not self.instance and other.instance.digest() != self.instance.digest():
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

    def step(self, action: int) -> None:
        """Run one iteration; an infeasible action is replaced by the feasible one and counted.

        Raises:
            EpisodeOverError: every request is complete.
            InvalidActionError: not 0 (decode) or 1 (prefill).
        """
        if self.done:
            raise EpisodeOverError("every request of this episode is complete: call reset first.")
        if action not in (0, 1):
            raise InvalidActionError(f"action {action!r} is not in the action space: 0 is decode, 1 is prefill.")
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
