"""A driver that never stops its engine: errors become one warning, and the engine's own schedule takes over."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from llmsched_env.engines.driver import Driver, Plan, Ran
from llmsched_env.errors import InvalidActionError, PathError
from llmsched_env.storage import user_path

__all__ = ["DecisionLog", "EngineWarning", "Session"]

Key = TypeVar("Key", bound=Hashable)

SLOW_NS, SLOW_DECISIONS = 20_000_000, 10
"""A decision this long, so often, is warned of: the engine waits meanwhile."""


class EngineWarning(UserWarning):
    """An engine goes on without its policy, in an iteration or for good."""


class DecisionLog:
    """What the policy wanted and what the engine did: a CSV file, a row an iteration.

    Args:
        path: of the file, which is begun anew; every row is written whole as its iteration ends.

    Raises:
        PathError: it cannot be written.
    """

    COLUMNS = (
        "iteration", "start_s", "policy_action", "policy_kind", "policy_requests", "policy_tokens",
        "policy_expected_s", "engine_kind", "engine_requests", "engine_tokens", "engine_expected_s", "engine_s", "same",
    )  # fmt: skip

    def __init__(self, path: Path | str) -> None:
        self.path = user_path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", newline="", buffering=1)
            self._file.write(",".join(self.COLUMNS) + "\n")
        except OSError as error:
            raise PathError(f"cannot write {path}: {error.strerror or error}. Choose a writable folder.") from error
        self._rows = 0

    def note(self, plan: Plan[Key] | None, done: Ran[Key], start_ns: int, end_ns: int, expected_ns: int) -> None:
        """An iteration has ended."""
        kind = kind_of(done)
        tokens = sum(read for _, read, _ in done.reads)
        wanted = "" if plan is None else plan.name
        planned = ("", "", "", "") if plan is None else (plan.kind, len(plan.reads), plan.tokens, _s(plan.expected_ns))
        same = plan is not None and (plan.decodes, len(plan.reads), plan.tokens) == (
            done.decodes, len(done.reads), tokens,
        )  # fmt: skip
        row = (self._rows, _s(start_ns), wanted, *planned, kind, len(done.reads), tokens, _s(expected_ns),
               _s(end_ns - start_ns), int(same))  # fmt: skip
        self._file.write(",".join(map(str, row)) + "\n")
        self._rows += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _s(ns: int) -> str:
    return f"{ns / 1e9:.9f}"


def kind_of(done: Ran[Key]) -> str:
    """What an iteration was: "decode", "prefill" or "mixed"."""
    if not done.reads:
        return "decode"
    return "mixed" if done.decodes or done.mixed else "prefill"


@dataclass(frozen=True)
class _Row(Generic[Key]):
    """An iteration that is not in the log yet."""

    mark: object
    plan: Plan[Key] | None
    done: Ran[Key]
    start_ns: int
    expected_ns: int


class Session(Generic[Key]):
    """What an adapter holds: it asks, begins, ends and finishes, and no call of it raises.

    Args:
        driver: that keeps the view and asks the policy.
        shadow: the engine's own scheduler decides, and the policy is asked beside it.
        log: what the policy wanted and what the engine did; ``None`` for none.

    Attributes:
        decoding: keys of the requests that have their first token and are not finished or preempted.
        failed: iterations in which the policy gave no usable answer.
        lost: whether the engine did what the driver cannot follow: the policy is not asked any more.
    """

    def __init__(self, driver: Driver[Key], *, shadow: bool = False, log: DecisionLog | None = None) -> None:
        self.driver = driver
        self.shadow = shadow
        self.decoding: set[Key] = set()
        self.failed = 0
        self.lost = False
        self._log = log
        self._plan: Plan[Key] | None = None
        self._pending: Ran[Key] | None = None
        self._mark: object = None
        self._over: list[Key] = []
        self._start_ns = self._end_ns = 0
        self._unlogged: deque[_Row[Key]] = deque()
        self._slow = 0

    def __str__(self) -> str:
        """Who decides, in words."""
        policy, scenario = self.driver.policy.name, self.driver.scenario
        who = f"the engine's own scheduler decides, policy {policy!r} is asked beside it"
        tokens = scenario.mixed_tokens if scenario.mixed_tokens is not None else scenario.cost_model.prefill_token_cap
        return (
            f"{who if self.shadow else f'policy {policy!r} decides'}: {scenario.num_clients} seats, {tokens} prompt "
            f"tokens an iteration, cost model {scenario.cost_model.name!r}"
        )

    def arrive(self, key: Key, prompt_tokens: int, at_ns: int, most_tokens: int | None = None) -> None:
        """A request is there; see `Driver.arrive`."""
        try:
            self.driver.arrive(key, prompt_tokens, at_ns, most_tokens)
        except Exception as error:  # an engine that serves is never stopped
            self._lose(error)

    def ask(self, now_ns: int) -> Plan[Key] | None:
        """The plan to follow; ``None`` where the engine is to go by its own schedule."""
        self.end(now_ns)
        self._plan = None
        if self.lost:
            return None
        asked_ns = time.perf_counter_ns()
        try:
            self._plan = self.driver.decide(now_ns)
        except (Exception, SystemExit) as error:  # whatever a policy raises: the engine's own schedule steps in
            if not self.failed:
                who = "" if isinstance(error, InvalidActionError) else f"policy {self.driver.policy.name!r} raised "
                self._warn(who + _told(error), "in this step, and in others where it fails")
            self.failed += 1
        self._watch(time.perf_counter_ns() - asked_ns)
        self._start_ns = self.driver.clock_ns
        return None if self.shadow else self._plan

    def _watch(self, decision_ns: int) -> None:
        """Warn, once, of a policy that is slow again and again."""
        if decision_ns < SLOW_NS:
            return
        self._slow += 1
        if self._slow == SLOW_DECISIONS:
            warnings.warn(
                f"policy {self.driver.policy.name!r} took more than {SLOW_NS // 10**6} ms for each of {SLOW_DECISIONS} "
                f"decisions, {decision_ns / 1e6:.0f} ms for the last one: the engine waits meanwhile.",
                EngineWarning,
                stacklevel=3,
            )

    def began(self, done: Ran[Key], mark: object = None) -> None:
        """An iteration has begun, and this is what it does.

        Args:
            done: the same.
            mark: what :meth:`end` is told once its output is known, where the next one is scheduled before that.
        """
        self._mark = mark
        mixes = self.driver.scenario.mixes and bool(done.reads)
        planned = self._plan is not None and self._plan.kind == "prefill" and not self.shadow
        self._pending = replace(done, mixed=mixes and not planned)

    def end(self, now_ns: int, mark: object = None) -> None:
        """The iteration that has begun is over, if there is one.

        Where the next one is scheduled first, the view counts it as over then, and the log once its output is known.

        Args:
            now_ns: the time.
            mark: of the iteration whose output is known, which need not be the one that began last; ``None`` where the
                next one is to be scheduled.
        """
        if mark is None or mark is self._mark:
            self._count(now_ns)
        if mark is None or all(row.mark is not mark for row in self._unlogged):
            return  # one that ran nothing has no row
        while (row := self._unlogged.popleft()).mark is not mark:
            pass
        self._note(row, now_ns)

    def _count(self, now_ns: int) -> None:
        """What has begun last is over, as far as the view knows."""
        done, self._pending = self._pending, None
        if done is None:
            return
        self.decoding.difference_update(done.preempted)
        self.decoding.update(key for key, _, left in done.reads if left <= 0)
        if not self.lost:
            try:
                expected_ns = self.driver.ran(done, now_ns)
            except Exception as error:  # an engine that serves is never stopped
                self._lose(error)
            else:
                row = _Row(self._mark, self._plan, done, self._start_ns, expected_ns)
                if self._mark is None:
                    self._note(row, now_ns)
                elif self._log is not None:
                    self._unlogged.append(row)
        over, self._over = self._over, []
        for key in over:
            self.finish(key)

    def _note(self, row: _Row[Key], now_ns: int) -> None:
        """Write a row of the log, or give the log up."""
        if self._log is None or not (row.done.reads or row.done.decodes):
            return
        start_ns = max(row.start_ns, self._end_ns)  # it was scheduled while the one before it ran
        self._end_ns = row.start_ns + row.expected_ns if self.driver.virtual else max(start_ns, now_ns)
        try:
            self._log.note(row.plan, row.done, start_ns, self._end_ns, row.expected_ns)
        except OSError as error:
            path, self._log = self._log.path, None
            warnings.warn(f"cannot write {path} ({error}): its rows end here.", EngineWarning, stacklevel=4)

    def finish(self, key: Key) -> None:
        """A request is complete, or was aborted."""
        if self._pending is not None:
            self._over.append(key)
            return
        self.decoding.discard(key)
        if not self.lost:
            try:
                self.driver.finish(key)
            except Exception as error:  # an engine that serves is never stopped
                self._lose(error)

    def close(self) -> None:
        """The engine ends: the last iteration is over, and the log is closed."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _lose(self, error: Exception) -> None:
        self.lost = True
        self._warn(f"the driver lost track ({_told(error)})", "from here on")

    def _warn(self, what: str, how_long: str) -> None:
        warnings.warn(f"{what}: the engine goes by its own schedule {how_long}.", EngineWarning, stacklevel=3)


def _told(error: BaseException) -> str:
    """Its kind and its words."""
    return f"{type(error).__name__}: {error}".rstrip(". :")
