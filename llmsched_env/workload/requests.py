"""Requests as a struct of arrays: what a workload is, whatever it came from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.workload.prefix_blocks import PrefixBlocks
from llmsched_env.workload.rescale import rescaled

__all__ = ["MAX_TOKENS", "Requests"]

MAX_TOKENS = 2**24
"""Longest prompt or output accepted, in tokens: sums over 2**20 of them still fit the engine's integers."""

NS_PER_S = 10**9
LATEST_NS = 2**62
"""Latest release time that a change of rate may produce."""


@dataclass(frozen=True, eq=False)
class Requests:
    """``n`` requests, read-only, in arrival order of equal release times.

    Build with :meth:`of`, which validates and copies; the constructor itself trusts its caller.

    Attributes:
        prompt_tokens: (n,) int32, at least 1.
        output_tokens: (n,) int32, at least 1: the true output length, the first token included.
        release_ns: (n,) int64, at least 0, non-decreasing: when the request enters the system.
        predicted_tokens: (n,) int32, at least 1: an estimate of ``output_tokens`` that came with the workload, or
            ``None`` where it brought none.
        mean_output_tokens: what is known of output lengths without looking at any request of this case: the mean of
            the population that they were drawn from (of the sample itself for a user's file).
        prefix_blocks: what prompts are made of, so that one sees which begin alike; ``None`` where nobody says.
    """

    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    release_ns: NDArray[np.int64]
    predicted_tokens: NDArray[np.int32] | None
    mean_output_tokens: float
    prefix_blocks: PrefixBlocks | None = None

    @classmethod
    def of(
        cls,
        prompt_tokens: ArrayLike,
        output_tokens: ArrayLike,
        *,
        release_ns: ArrayLike | None = None,
        predicted_tokens: ArrayLike | None = None,
        mean_output_tokens: float | None = None,
        prefix_blocks: PrefixBlocks | None = None,
    ) -> Requests:
        """Validate and copy.

        Raises:
            WorkloadError: empty, ragged, non-finite, fractional, non-positive or too long (over :data:`MAX_TOKENS`)
                token counts; release times that are negative or go back; blocks of other requests, or too few of them.
        """
        prompt = _tokens("prompt_tokens", prompt_tokens)
        output = _tokens("output_tokens", output_tokens)
        n = len(prompt)
        release = np.zeros(n, np.int64) if release_ns is None else _integers("release_ns", release_ns).astype(np.int64)
        predicted = None if predicted_tokens is None else _tokens("predicted_tokens", predicted_tokens)
        for name, column in (("output_tokens", output), ("release_ns", release), ("predicted_tokens", predicted)):
            if column is not None and len(column) != n:
                raise WorkloadError(
                    f"{name} has {len(column)} entries but prompt_tokens has {n}: give one per request."
                )
        if release.min() < 0:
            bad = int(np.argmin(release))
            raise WorkloadError(f"release_ns[{bad}] = {release[bad]} is negative: times count from 0.")
        back = np.flatnonzero(np.diff(release) < 0)
        if back.size:
            i = int(back[0]) + 1
            raise WorkloadError(
                f"release_ns goes back at request {i} ({release[i - 1]} ns, then {release[i]} ns): sort by arrival."
            )
        mean = float(output.mean()) if mean_output_tokens is None else float(mean_output_tokens)
        if not (np.isfinite(mean) and mean >= 1.0):
            raise WorkloadError(f"mean_output_tokens = {mean} is not a length: give a finite number of at least 1.")
        if prefix_blocks is not None:
            _check_blocks(prefix_blocks, prompt)
        for column in (prompt, output, release, predicted):
            if column is not None:
                column.setflags(write=False)
        return cls(prompt, output, release, predicted, mean, prefix_blocks)

    @classmethod
    def checked(cls, given: object, source: str) -> Requests:
        """The same requests, checked as :meth:`of` does: ``dataclasses.replace`` checks nothing.

        Args:
            given: what a workload made.
            source: its name.

        Raises:
            WorkloadError: no requests, or none that can be simulated.
        """
        if not isinstance(given, cls):
            raise WorkloadError(
                f"workload {source!r} made a {type(given).__name__}: its method requests "
                "returns Requests, as Requests.of makes."
            )
        return cls.of(
            given.prompt_tokens,
            given.output_tokens,
            release_ns=given.release_ns,
            predicted_tokens=given.predicted_tokens,
            mean_output_tokens=given.mean_output_tokens,
            prefix_blocks=given.prefix_blocks,
        )

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def decodes(self) -> NDArray[np.int32]:
        """(n,) int32 decodes that each request needs, ``output_tokens - 1``: its prefill yields the first token."""
        out: NDArray[np.int32] = self.output_tokens - np.int32(1)
        return out

    @property
    def rate_per_s(self) -> float:
        """Mean rate of arrivals: the n - 1 gaps over the time from the first release to the last.

        Raises:
            WorkloadError: no two requests are released at different times.
        """
        return (len(self) - 1) * NS_PER_S / self._span_ns()

    def at_rate(self, requests_per_s: float) -> Requests:
        """The same requests, time stretched so that :attr:`rate_per_s` is as asked.

        With S the span from first to last release and T = (n - 1) / rate rounded to the nanosecond, a request that
        came s after the first one comes floor(s T / S) after it, in exact integers: order is kept, and the new span
        is T. The time of the first release is stretched likewise.

        Args:
            requests_per_s: positive, at most 10**9 (a gap of 1 ns).

        Raises:
            ConfigError: a rate that is not a finite number in range, or so low that times leave 64 bits.
            WorkloadError: no two requests are released at different times, so that there is no rate to change.
        """
        rate = _positive("requests_per_s", requests_per_s)
        if rate > NS_PER_S:
            raise ConfigError(f"requests_per_s = {rate:g} is out of range: gaps are at least 1 ns, rates at most 1e9.")
        span = self._span_ns()
        wanted = round(Fraction((len(self) - 1) * NS_PER_S) / Fraction(rate))
        first = int(self.release_ns[0])
        new_first = first * wanted // span
        if new_first + wanted > LATEST_NS:
            raise ConfigError(
                f"requests_per_s = {rate:g} is too low for {len(self)} requests: the last would be released after more "
                f"than {LATEST_NS} ns. Raise the rate or take fewer requests."
            )
        release = rescaled(self.release_ns - first, wanted, span) + np.int64(new_first)
        release.setflags(write=False)
        return replace(self, release_ns=release)

    def at_load(self, load: float, capacity_requests_per_s: float) -> Requests:
        """The same requests at a fraction of a capacity: :meth:`at_rate` of the product.

        Args:
            load: positive and finite. At 1 or more the queue grows for as long as requests come: a finite case still
                ends, an endless one never settles.
            capacity_requests_per_s: what the server could take at most, as from
                :func:`llmsched_env.cost.capacity_requests_per_s`.

        Raises:
            ConfigError: load or capacity is not a positive finite number, or their product is no rate.
            WorkloadError: as in :meth:`at_rate`.
        """
        return self.at_rate(_positive("load", load) * _positive("capacity_requests_per_s", capacity_requests_per_s))

    def _span_ns(self) -> int:
        span = int(self.release_ns[-1]) - int(self.release_ns[0])
        if span == 0:
            raise WorkloadError(
                f"{len(self)} requests that are released at one time have no rate: give at least two release times."
            )
        return span

    def digest(self) -> str:
        """Content hash (hex): equal requests have equal digests, on any machine."""
        h = hashlib.sha256()
        for column in (self.prompt_tokens, self.output_tokens, self.release_ns, self.predicted_tokens):
            data = b"" if column is None else np.ascontiguousarray(column.astype("<i8")).tobytes()
            h.update(len(data).to_bytes(8, "little") + data)
        h.update(repr(self.mean_output_tokens).encode())
        if self.prefix_blocks is not None:
            blocks = self.prefix_blocks
            h.update(blocks.nodes.astype("<i4").tobytes() + blocks.starts.astype("<i8").tobytes())
            h.update(repr(blocks.tokens).encode())
        return h.hexdigest()


def _check_blocks(blocks: PrefixBlocks, prompts: NDArray[np.int32]) -> None:
    """Raise where blocks are not those of these prompts; a trace may have fewer, not more.

    Raises:
        WorkloadError: they are not.
    """
    if len(blocks) != len(prompts):
        raise WorkloadError(
            f"prefix_blocks are of {len(blocks)} requests, but there are {len(prompts)}: give one each."
        )
    if blocks.tokens is None:
        return
    if blocks.tokens < 1:
        raise WorkloadError(f"prefix_blocks of {blocks.tokens} tokens: a block has at least one.")
    many = np.flatnonzero(np.diff(blocks.starts) > -(-prompts.astype(np.int64) // blocks.tokens))
    if many.size:
        i = int(many[0])
        raise WorkloadError(
            f"request {i} has {len(blocks.of(i))} prefix blocks of {blocks.tokens} tokens and a prompt of {prompts[i]} "
            "tokens: they are more than the prompt."
        )


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ConfigError(f"{name} = {value!r} is not a number.")
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} = {value} is out of range: pass a positive finite number.")
    return float(value)


def _integers(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise WorkloadError(f"{name} has shape {array.shape}: give a one-dimensional sequence, one entry per request.")
    if array.size == 0:
        raise WorkloadError(f"{name} is empty: a workload needs at least one request.")
    if array.dtype.kind not in "iuf":
        raise WorkloadError(f"{name} has dtype {array.dtype}: give whole numbers.")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(array) | (array != np.floor(array)))
        if bad.size:
            raise WorkloadError(f"{name}[{bad[0]}] = {array[bad[0]]} is not a whole number.")
        bad = np.flatnonzero(np.abs(array) > 2**53)
        if bad.size:
            raise WorkloadError(f"{name}[{bad[0]}] = {array[bad[0]]} is too large for an exact integer: pass integers.")
    return array


def _tokens(name: str, values: ArrayLike) -> NDArray[np.int32]:
    array = _integers(name, values)
    bad = np.flatnonzero((array < 1) | (array > MAX_TOKENS))
    if bad.size:
        i = int(bad[0])
        raise WorkloadError(f"{name}[{i}] = {array[i]} is out of range: token counts lie in [1, {MAX_TOKENS}].")
    return array.astype(np.int32)
