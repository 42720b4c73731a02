"""Recorded traces: windows of a file that the user names, the splits disjoint stretches of its time."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal, get_args

import numpy as np

from llmsched_env.errors import ConfigError, UnknownNameError, WorkloadError
from llmsched_env.workload.draws import Stream, raw_words, with_replacement
from llmsched_env.workload.protocol import check_case, check_num_requests, check_split
from llmsched_env.workload.requests import Requests
from llmsched_env.workload.synthetic import population_mean
from llmsched_env.workload.text_file import file_name, file_version
from llmsched_env.workload.times import UNITS, TimeUnit
from llmsched_env.workload.trace import Trace
from llmsched_env.workload.trace_formats import FORMATS, TraceFormat, read_trace

__all__ = ["STRETCHES", "TraceWorkload"]

FAMILY = "trace"

STRETCHES = MappingProxyType({"train": (0, 60), "validation": (60, 80), "test": (80, 100)})
"""Split -> the percents of the recording's time at which it begins and ends."""


@dataclass(frozen=True)
class TraceWorkload:
    """Windows of a recorded trace.

    The time of the recording is cut in three: ``train`` is the first 60 %, ``validation`` the next 20 %, ``test`` the
    last 20 %; what comes at a cut belongs to the later stretch. A case is a *window*: consecutive requests of its
    split's stretch, times counted from its first request. With m requests in the stretch and w in a window, cases 0 to
    floor(m / w) - 1 are the windows that follow one another from the beginning of the stretch, with no request in two
    of them: the default pool. Higher numbers are windows that begin anywhere in it, by chance. Another ``num_requests``
    is another w. A file without times is cut by its rows instead, and all requests of a case arrive at 0.

    ``mean_output_tokens`` is the mean of the train stretch, in every split. The file is read at the first use, and
    again when its size or time of modification has changed.

    Attributes:
        path: the file.
        format: one of those of :func:`~llmsched_env.workload.read_trace`, or ``"auto"``: by the file's beginning.
        num_requests: w, natural size of a window.
        skip_failed: leave out rows with 0 output tokens, counted in :attr:`skipped`; ``False`` makes them an error;
            ``None``: leave them out where they are requests that failed (BurstGPT, vLLM's results, ShareGPT).
        unit: of timestamps in a file with Mooncake's keys, "ms" or "s"; ``None``: as the file shows: seconds where
            records have a ``chat_id`` (Qwen-Bailian's), milliseconds where all have one of the ``hash_ids`` for each
            512 prompt tokens (Mooncake's) or seconds would be at most one request in 100 s; else the file is refused
            until a unit is given.
        tokenizer: for files with texts in place of token counts (vLLM's custom JSONL, ShareGPT); ``None``: estimated.
        disjoint_splits: always true: what is fitted or tuned on training cases has seen no request of the others.

    Raises:
        ConfigError: a path that is not a path, or a size out of range.
        UnknownNameError: no such format.
    """

    disjoint_splits: ClassVar[bool] = True

    path: Path
    format: Literal["auto"] | TraceFormat = "auto"
    num_requests: int = 2000
    skip_failed: bool | None = None
    unit: TimeUnit | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise ConfigError(f"path = {self.path!r} is not a path: pass a str or a Path.")
        object.__setattr__(self, "path", Path(self.path))
        if self.format != "auto" and self.format not in get_args(TraceFormat):
            raise UnknownNameError("trace format", self.format, ("auto", *FORMATS))
        check_num_requests(self.num_requests)
        if self.skip_failed not in (True, False, None):
            raise ConfigError(f"skip_failed = {self.skip_failed!r} is not True, False or None.")
        if self.unit is not None and self.unit not in UNITS:
            raise UnknownNameError("unit", self.unit, UNITS)
        if not isinstance(self.tokenizer, str | None):
            raise ConfigError(f"tokenizer = {self.tokenizer!r} is not a name or the path of a tokenizer.json.")

    @property
    def name(self) -> str:
        """What tables call it: the file's name without its ending."""
        return file_name(self.path)

    @property
    def version(self) -> tuple[int, int]:
        """Time of modification in ns and size in bytes: what tells one state of the file from another.

        Raises:
            PathError: the file cannot be read.
        """
        return file_version(self.path, "trace")

    @property
    def skipped(self) -> int:
        """Rows of the file that were left out because they have no output; the file is read for this."""
        return self.trace().skipped

    def pool_size(self, split: str) -> int | None:
        """Windows of natural size that fit the split's stretch without overlap, at least 1; the file is read for this.

        A stretch that is too short for one window may hold a smaller one; :meth:`requests` says so where it does not.

        Raises:
            UnknownNameError: no such split.
            PathError, FileFormatError: the file cannot be read or understood.
        """
        first, end = self.stretch(check_split(split))
        return max(1, (end - first) // self.num_requests)

    def stretch(self, split: str) -> tuple[int, int]:
        """The requests of a split, as (first, past the last), counted in the file without rows left out.

        Raises:
            UnknownNameError: no such split.
            PathError, FileFormatError: the file cannot be read or understood.
            WorkloadError: the recording has no length in time.
        """
        split = check_split(split)
        trace = self.trace()
        release = trace.release_ns if trace.has_times else np.arange(len(trace))
        start, span = int(release[0]), int(release[-1]) - int(release[0])
        if span == 0:
            raise WorkloadError(
                f"{self.path} has {len(release)} requests at one time, and splits are stretches of time: "
                f"give a longer recording."
            )
        low, high = STRETCHES[split]
        first, past = (int(np.searchsorted(release, start - (-span * cut // 100))) for cut in (low, high))  # rounded up
        return first, len(release) if high == 100 else past

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one window; see :class:`~llmsched_env.workload.protocol.Workload`.

        Raises:
            PathError, FileFormatError: the file cannot be read or understood.
            WorkloadError: the split's stretch has fewer requests than the window.
        """
        split, number = check_case(split, number)
        count = self.num_requests if num_requests is None else check_num_requests(num_requests)
        first, end = self.stretch(split)
        self._check_fits(split, end - first, count)
        if number < (end - first) // count:
            first += number * count
        else:
            word = raw_words(FAMILY, split, number, Stream.WINDOW, 1)
            first += int(with_replacement(word, end - first - count + 1)[0])
        return self.trace().requests(first, first + count, mean_output_tokens=self._mean_output_tokens())

    def _mean_output_tokens(self) -> float:
        first, end = self.stretch("train")
        return population_mean(int(self.trace().output_tokens[first:end].sum()) / (end - first))

    def _check_fits(self, split: str, available: int, count: int) -> None:
        if available < count:
            low, high = STRETCHES[split]
            whole = "time" if self.trace().has_times else "rows"
            raise WorkloadError(
                f"{self.path} is too short: its {split} stretch ({low} to {high} % of the {whole}) has {available} "
                f"requests and a case takes {count}. Pass num_requests of at most {available}, or a longer recording."
            )

    def trace(self) -> Trace:
        """The whole recording, with what was assumed in it; the file is read for this.

        Raises:
            PathError, FileFormatError, WorkloadError, ConfigError, MissingExtraError: as
                :func:`~llmsched_env.workload.read_trace`.
        """
        options = self.format, self.skip_failed, self.unit, self.tokenizer
        return _read_once(self.path.absolute(), *self.version, self.path, *options)


@functools.lru_cache(maxsize=4)
def _read_once(
    absolute: Path,
    modified_ns: int,
    size_bytes: int,
    shown: Path,
    kind: Literal["auto"] | TraceFormat,
    skip_failed: bool | None,
    unit: TimeUnit | None,
    tokenizer: str | None,
) -> Trace:
    return read_trace(shown, kind, skip_failed=skip_failed, unit=unit, tokenizer=tokenizer)
