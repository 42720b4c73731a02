"""Token counts with given quantiles: for imitating a recording of which only a table is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.workload.draws import Stream, raw_words, uniform_53
from llmsched_env.workload.protocol import POOL_SIZES, check_case, check_num_requests, check_split
from llmsched_env.workload.requests import MAX_TOKENS, Requests
from llmsched_env.workload.synthetic import population_mean

__all__ = ["AZURE_2023_OUTPUT", "AZURE_2023_PROMPT", "QuantileLaw", "QuantileWorkload"]

FAMILY = "quantiles"

PER_MILLE = (0, 5, 10, 20, 50, *range(100, 901, 50), 950, 970, 980, 990, 995, 999, 1000)


@dataclass(frozen=True)
class QuantileLaw:
    """A law that is uniform between given quantiles, rounded to the nearest token.

    Attributes:
        per_mille: shares in thousandths, increasing from 0 to 1000.
        tokens: the quantile at each share: as many, never decreasing, in [1, ``MAX_TOKENS``].

    Raises:
        ConfigError: shares or quantiles that are not as described.
    """

    per_mille: tuple[int, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        for key, values in (("per_mille", self.per_mille), ("tokens", self.tokens)):
            whole = isinstance(values, tuple) and all(type(value) is int for value in values)
            if not whole or len(values) < 2:
                raise ConfigError(f"{key} = {values!r} is not a table: pass a tuple of at least two ints.")
        if len(self.per_mille) != len(self.tokens):
            raise ConfigError(f"{len(self.per_mille)} shares but {len(self.tokens)} quantiles: give one for each.")
        if self.per_mille[0] != 0 or self.per_mille[-1] != 1000 or min(np.diff(self.per_mille)) <= 0:
            raise ConfigError(f"per_mille = {self.per_mille} does not increase from 0 to 1000.")
        if min(np.diff(self.tokens)) < 0 or self.tokens[0] < 1 or self.tokens[-1] > MAX_TOKENS:
            raise ConfigError(f"tokens = {self.tokens} decreases or leaves [1, {MAX_TOKENS}].")

    def draw(self, uniforms: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n,) int32 token counts from (n,) integers uniform on [0, 2**53); integer arithmetic throughout."""
        share = np.array([value * 2**32 // 1000 for value in self.per_mille], np.int64)
        tokens = np.array(self.tokens, np.int64)
        uniform = (uniforms >> np.uint64(21)).astype(np.int64)  # [0, 2**32)
        cell = np.searchsorted(share, uniform, side="right") - 1
        width = np.diff(share)[cell]
        steps = (2 * (uniform - share[cell]) * np.diff(tokens)[cell] + width) // (2 * width)
        drawn: NDArray[np.int32] = (tokens[cell] + steps).astype(np.int32)
        return drawn

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of what :meth:`draw` returns (to 2**-32), in closed form.

        A uniform on [a, b], rounded, has mean (a + b) / 2 and, for a < b, variance ((b - a)**2 + 2) / 12.
        """
        weight = np.diff(self.per_mille) / 1000.0
        low, high = np.array(self.tokens[:-1], float), np.array(self.tokens[1:], float)
        mean = math.fsum(weight * (low + high) / 2.0)
        variance = np.where(high > low, ((high - low) ** 2 + 2.0) / 12.0, 0.0)
        second = math.fsum(weight * (variance + ((low + high) / 2.0) ** 2))
        return mean, math.sqrt(max(second - mean * mean, 0.0))


# Measured on AzureLLMInferenceTrace_conv.csv of the Azure LLM inference trace 2023 (19,366 requests), project
# Azure/AzurePublicDataset, CC BY 4.0; P. Patel et al., "Splitwise", ISCA 2024. Linear interpolation, whole tokens.
# fmt: off
AZURE_2023_PROMPT = QuantileLaw(PER_MILLE, (
    2, 17, 29, 91, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2734,
    4083, 4090, 4098, 4142, 4831, 6179, 14050,
))
"""Context tokens of the Azure 2023 conversation trace."""

AZURE_2023_OUTPUT = QuantileLaw(PER_MILLE, (
    7, 14, 16, 24, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 509, 540,
    601, 643, 954, 1000,
))
"""Generated tokens of the Azure 2023 conversation trace."""
# fmt: on


@dataclass(frozen=True)
class QuantileWorkload:
    """Independent prompts and outputs with given quantiles, all released at time 0.

    A scaled case draws more (or fewer) of the same sequence. The defaults imitate the Azure 2023 conversation trace;
    they are synthetic, made from a table of its quantiles and of nothing else.

    Attributes:
        name: what tables call it.
        num_requests: natural size of a case.
        prompt_law: the law of prompt lengths.
        output_law: the law of output lengths.

    Raises:
        ConfigError: a parameter out of range.
    """

    name: str = "azure-synthetic-lengths"
    num_requests: int = 5000
    prompt_law: QuantileLaw = AZURE_2023_PROMPT
    output_law: QuantileLaw = AZURE_2023_OUTPUT

    def __post_init__(self) -> None:
        check_num_requests(self.num_requests)
        for key in ("prompt_law", "output_law"):
            if not isinstance(getattr(self, key), QuantileLaw):
                raise ConfigError(f"{key} = {getattr(self, key)!r} is not a QuantileLaw.")

    @property
    def mean_output_tokens(self) -> float:
        """Population mean of the output lengths."""
        return population_mean(self.output_law.moments()[0])

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split."""
        return POOL_SIZES[check_split(split)]

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`."""
        split, number = check_case(split, number)
        count = self.num_requests if num_requests is None else check_num_requests(num_requests)
        prompt = self.prompt_law.draw(uniform_53(raw_words(FAMILY, split, number, Stream.PROMPT, count)))
        output = self.output_law.draw(uniform_53(raw_words(FAMILY, split, number, Stream.OUTPUT, count)))
        return Requests.of(prompt, output, mean_output_tokens=self.mean_output_tokens)
