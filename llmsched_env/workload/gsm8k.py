"""The paper's case: GSM8K questions as prompts, with lengths that reproduce its moments, and the same made smooth."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from llmsched_env.workload.draws import Stream, bernoulli, permutation, raw_words, uniform_53, with_replacement
from llmsched_env.workload.lengths import LengthLaw, check_limit, check_number
from llmsched_env.workload.protocol import POOL_SIZES, check_case, check_num_requests, check_split
from llmsched_env.workload.requests import MAX_TOKENS, Requests
from llmsched_env.workload.synthetic import population_mean

__all__ = ["NUM_REQUESTS", "Gsm8kSmoothWorkload", "Gsm8kWorkload"]

NUM_REQUESTS = 1319
"""Questions in the GSM8K test set, and so requests in a case of any split."""

FAMILY = "gsm8k"
"""Seeds both workloads of this file: case k of either has the same prompts in the same order."""

ROWS = MappingProxyType({"train": ("train", 0, 6000), "validation": ("train", 6000, 7473), "test": ("test", 0, 1319)})
"""Split -> (source file, first row, row past the last)."""


@functools.cache
def _split_rows(split: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Prompt and answer tokens of a split's rows, each (rows,) int32, in the order of the source."""
    source, first, last = ROWS[split]
    text = resources.files("llmsched_env.workload").joinpath(f"data/gsm8k_{source}_tokens.csv").read_text("ascii")
    header, *lines = text.split()
    assert header == "prompt_tokens,answer_tokens", header
    table = np.array(",".join(lines[first:last]).split(","), np.int32).reshape(-1, 2)
    assert len(table) == last - first, (split, len(table))
    table.setflags(write=False)
    return table[:, 0], table[:, 1]


def _rows(split: str, number: int, num_requests: int | None) -> NDArray[np.int64]:
    """Which rows of the split a case has, in order: without replacement in its natural size, else with."""
    population = len(_split_rows(split)[0])
    if num_requests is None or num_requests == NUM_REQUESTS:
        return permutation(raw_words(FAMILY, split, number, Stream.ORDER, population), NUM_REQUESTS)
    return with_replacement(raw_words(FAMILY, split, number, Stream.RESAMPLE, num_requests), population)


@dataclass(frozen=True)
class Gsm8kWorkload:
    """GSM8K under a base model that often runs on to the token cap: the paper's case.

    A prompt is a GSM8K question, its length the LLaMA token count (BOS included). With probability
    ``cap_probability`` the output is ``cap_tokens`` long; else it is the row's own reference answer and one token for
    the end of the sequence, cut at the cap. Everything is released at time 0.

    A case has 1319 requests. In ``train`` and ``validation`` they are drawn without replacement from the split's
    6000 and 1473 rows (of the GSM8K training set), in ``test`` they are all 1319 rows of the test set; each case has
    its own order and its own draw of which requests run to the cap. The scaled case draws rows with replacement.

    Attributes:
        name: what tables call it.
        cap_probability: share of requests that run to the cap, in [0, 1].
        cap_tokens: the longest output.

    Raises:
        ConfigError: a parameter out of range.
    """

    name: str = "gsm8k"
    cap_probability: float = 0.56
    cap_tokens: int = 512

    def __post_init__(self) -> None:
        check_number("cap_probability", self.cap_probability, 0.0, 1.0)
        check_limit("cap_tokens", self.cap_tokens, MAX_TOKENS)

    @property
    def num_requests(self) -> int:
        """Natural size of a case."""
        return NUM_REQUESTS

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split."""
        return POOL_SIZES[check_split(split)]

    def output_moments(self, split: str) -> tuple[float, float]:
        """Population mean and standard deviation (ddof 0) of the output lengths in a split, in closed form.

        With c the cap, p its probability and m1, m2 the mean and mean square of the rows' own lengths:
        mean = p c + (1 - p) m1, variance = p c**2 + (1 - p) m2 - mean**2.
        """
        own = self._own_lengths(check_split(split)).astype(np.int64)
        p, cap = self.cap_probability, self.cap_tokens
        mean = p * cap + (1.0 - p) * (int(own.sum()) / len(own))
        square = p * cap**2 + (1.0 - p) * (int((own * own).sum()) / len(own))
        return mean, math.sqrt(max(square - mean * mean, 0.0))

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`."""
        split, number = check_case(split, number)
        count = None if num_requests is None else check_num_requests(num_requests)
        rows = _rows(split, number, count)
        at_cap = bernoulli(raw_words(FAMILY, split, number, Stream.CAP, len(rows)), self.cap_probability)
        output = np.where(at_cap, self.cap_tokens, self._own_lengths(split)[rows])
        mean = population_mean(self.output_moments(split)[0])
        return Requests.of(_split_rows(split)[0][rows], output, mean_output_tokens=mean)

    def _own_lengths(self, split: str) -> NDArray[np.int32]:
        own: NDArray[np.int32] = np.minimum(_split_rows(split)[1] + np.int32(1), np.int32(self.cap_tokens))
        return own


@dataclass(frozen=True)
class Gsm8kSmoothWorkload:
    """The prompts of :class:`Gsm8kWorkload`, case for case, with gamma output lengths: no two clusters of equal ones.

    Mean and standard deviation of the gamma law are those of the GSM8K case on its test split, in closed form (345.2
    and 191.9), and are the same in every split. Lengths are rounded to whole tokens and are at least 1; about four
    in 10**9 fall below half a token, so clipping moves neither moment by 1e-6, and rounding adds 1/12 to the variance.
    There is no cap: one output in a hundred exceeds 939 tokens. Lengths do not depend on prompts.

    Attributes:
        name: what tables call it.
    """

    name: str = "gsm8k-smooth"

    @property
    def num_requests(self) -> int:
        """Natural size of a case."""
        return NUM_REQUESTS

    @property
    def output_law(self) -> LengthLaw:
        """The gamma law of the output lengths."""
        return _smooth_law()

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split."""
        return POOL_SIZES[check_split(split)]

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`."""
        split, number = check_case(split, number)
        count = None if num_requests is None else check_num_requests(num_requests)
        rows = _rows(split, number, count)
        law = _smooth_law()
        output = law.draw(uniform_53(raw_words(FAMILY, split, number, Stream.OUTPUT, len(rows))))
        return Requests.of(_split_rows(split)[0][rows], output, mean_output_tokens=population_mean(law.moments()[0]))


@functools.cache
def _smooth_law() -> LengthLaw:
    mean, sd = Gsm8kWorkload().output_moments("test")
    return LengthLaw("gamma", mean, sd)
