"""What a scheduler like vLLM's did, from what its three methods are given: rows of a recording."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched_env.engines.recording import RecordingWarning, RecordingWriter, Settings

__all__ = ["StepRecorder"]


CLOCK_STEP_S = 0.01


class StepRecorder:
    """Writes an iteration once its output is known, and a request once it is over.

    It reads what vLLM's schedulers have in 0.15 and in 0.32: of a request ``request_id``, ``arrival_time`` (s since
    1970), ``num_prompt_tokens``, ``num_output_tokens``, ``num_computed_tokens``, ``is_finished()``; of what they
    schedule ``num_scheduled_tokens``, tokens by request.

    Where the folder cannot be written any more, as on a full disk, the recording ends, and the engine goes on.

    A request that is aborted before its first token leaves no row. One that is aborted later has the tokens that it
    got, where it was in an iteration that had not ended.

    Args:
        folder: of the recording, new.
        engine: the engine's name.
        version: its version.
        settings: what bounds the iterations.
        decided_by: who decides.
        parameters: numbers of the rule that decides.
        arguments: of its scenario.

    Raises:
        PathError: the folder cannot be written, or holds a recording.
    """

    def __init__(
        self, folder: Path | str, *, engine: str, version: str, settings: Settings, decided_by: str,
        parameters: Sequence[Any] = (), arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.writer = RecordingWriter(
            folder, engine=engine, version=version, settings=settings, decided_by=decided_by, parameters=parameters,
            arguments=arguments,
        )  # fmt: skip
        self._begin_ns, self._end_ns, self._count = time.perf_counter_ns(), 0, 0
        self._epoch_s, self._last_arrival_ns = time.time(), 0
        self._ended = False
        self._live: dict[str, list[int]] = {}  # number, arrival, first token or -1
        self._pending: deque[tuple[Any, list[Any], int, tuple[int, int, int, int]]] = deque()

    def now_ns(self) -> int:
        """Time since the recording's begin."""
        return time.perf_counter_ns() - self._begin_ns

    def arrived(self, request: Any) -> None:
        """The scheduler was given a request, which had come to the server some time before.

        The order is that in which the scheduler was given them.
        """
        now_ns = self.now_ns()
        epoch_s = time.time() - now_ns / 1e9
        if abs(epoch_s - self._epoch_s) > CLOCK_STEP_S:
            self._epoch_s = epoch_s  # the clock of the machine was set
        came_ns = int(1e9 * (request.arrival_time - self._epoch_s))
        self._last_arrival_ns = min(now_ns, max(self._last_arrival_ns, came_ns))
        self._live[request.request_id] = [self._count, self._last_arrival_ns, -1]
        self._count += 1

    def left(self, requests: dict[str, Any]) -> None:
        """Forget those that the scheduler knows no more, because they were aborted."""
        if len(self._live) > 2 * len(requests) + 1000:
            self._live = {name: times for name, times in self._live.items() if name in requests}

    def scheduled(self, start_ns: int, output: Any, requests: dict[str, Any]) -> None:
        """The scheduler has composed an iteration, and counts its tokens as computed."""
        batch, prefills, tokens, decodes, context = [], 0, 0, 0, 0
        for name, computed in output.num_scheduled_tokens.items():
            request = requests[name]
            before = request.num_computed_tokens - computed
            batch.append(request)
            if computed == 1 and before >= request.num_prompt_tokens:
                decodes, context = decodes + 1, context + before
            else:
                prefills, tokens = prefills + 1, tokens + computed
        self._pending.append((output, batch, start_ns, (prefills, tokens, decodes, context)))

    def updated(self, output: Any) -> None:
        """The output of an iteration is known: it is over."""
        if self._ended:
            self._pending.clear()
            return
        try:
            self._write(output)
        except (OSError, ValueError) as error:  # an engine that serves is never stopped
            self._ended = True
            warnings.warn(
                f"cannot write {self.writer.folder} ({error}): the recording ends here, and the engine goes on.",
                RecordingWarning,
                stacklevel=3,
            )

    def _write(self, output: Any) -> None:
        """The rows of an iteration that is over."""
        end_ns = self.now_ns()
        batch, start_ns, sizes = self._taken(output)
        if not batch:
            return
        # With asynchronous scheduling one is composed before the last is over.
        start_ns = max(start_ns, self._end_ns)
        self._end_ns = max(end_ns, start_ns + 1)
        self.writer.iteration(start_ns, self._end_ns - start_ns, *sizes)
        for request in batch:
            times = self._live.get(request.request_id)
            if times is None or request.num_output_tokens < 1:
                continue
            if times[2] < 0:
                times[2] = self._end_ns
            if request.is_finished():
                number, arrival_ns, first_ns = self._live.pop(request.request_id)
                self.writer.request(
                    number,
                    min(arrival_ns, first_ns),
                    request.num_prompt_tokens,
                    request.num_output_tokens,
                    first_ns,
                    self._end_ns,
                    getattr(request, "num_preemptions", 0),
                )

    def close(self) -> None:
        """Nothing more will come."""
        try:
            self.writer.close()
        except OSError:
            if not self._ended:  # else it was said
                raise

    def _taken(self, output: Any) -> tuple[list[Any], int, tuple[int, int, int, int]]:
        """The iteration of this output; those before it, which had none, are forgotten."""
        while self._pending:
            known, batch, start_ns, sizes = self._pending.popleft()
            if known is output:
                return batch, start_ns, sizes
        return [], 0, (0, 0, 0, 0)
