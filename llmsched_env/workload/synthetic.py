"""Workloads drawn from laws instead of recorded: lognormal, gamma, and a mixture with a cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmsched_env.workload.draws import Stream, bernoulli, raw_words, uniform_53
from llmsched_env.workload.lengths import LengthFamily, LengthLaw, check_limit, check_moments, check_number
from llmsched_env.workload.protocol import POOL_SIZES, check_case, check_num_requests, check_split
from llmsched_env.workload.requests import Requests

__all__ = ["GammaWorkload", "LognormalWorkload", "MixtureWorkload", "population_mean"]


def population_mean(mean: float) -> float:
    """The mean as it enters :class:`Requests`: to a millionth of a token.

    A digest of requests covers this number, and must not change with the last bit of a special function.
    """
    return round(mean, 6)


@dataclass(frozen=True)
class _LawWorkload:
    """Independent prompts and outputs, all released at time 0.

    Cases with equal (split, number) use the same chance whatever the parameters, so that a study of a parameter
    compares in pairs. A scaled case draws more (or fewer) of the same sequence.
    """

    _family: ClassVar[LengthFamily]

    name: str = ""
    num_requests: int = 1319
    prompt_mean_tokens: float = 68.43
    prompt_sd_tokens: float = 25.04
    output_mean_tokens: float = 345.2
    output_sd_tokens: float = 191.9
    max_tokens: int = 2**16

    def __post_init__(self) -> None:
        check_num_requests(self.num_requests)
        check_limit("max_tokens", self.max_tokens)
        check_moments("prompt_", self.prompt_mean_tokens, self.prompt_sd_tokens, self.max_tokens)
        check_moments("output_", self.output_mean_tokens, self.output_sd_tokens, self._longest_output())

    @property
    def prompt_law(self) -> LengthLaw:
        """The law of prompt lengths."""
        return LengthLaw(self._family, self.prompt_mean_tokens, self.prompt_sd_tokens, self.max_tokens)

    @property
    def output_law(self) -> LengthLaw:
        """The law of output lengths; in a mixture, of those that stop by themselves, cut at the cap."""
        return LengthLaw(self._family, self.output_mean_tokens, self.output_sd_tokens, self._longest_output())

    @property
    def mean_output_tokens(self) -> float:
        """Population mean of the output lengths, after rounding and clipping."""
        return population_mean(self.output_law.moments()[0])

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split."""
        return POOL_SIZES[check_split(split)]

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`."""
        split, number = check_case(split, number)
        count = self.num_requests if num_requests is None else check_num_requests(num_requests)
        prompt = self.prompt_law.draw(uniform_53(raw_words(self._family, split, number, Stream.PROMPT, count)))
        return Requests.of(prompt, self._outputs(split, number, count), mean_output_tokens=self.mean_output_tokens)

    def _longest_output(self) -> int:
        return self.max_tokens

    def _outputs(self, split: str, number: int, count: int) -> NDArray[np.int32]:
        return self.output_law.draw(uniform_53(raw_words(self._family, split, number, Stream.OUTPUT, count)))


@dataclass(frozen=True)
class LognormalWorkload(_LawWorkload):
    """Lognormal prompts and outputs, independent of each other: a long upper tail.

    Lengths are rounded to whole tokens and clipped to ``[1, max_tokens]``. The default moments are near those of the
    GSM8K case.

    Attributes:
        name: what tables call it.
        num_requests: natural size of a case.
        prompt_mean_tokens: mean prompt length before rounding.
        prompt_sd_tokens: its standard deviation; 0 for a constant.
        output_mean_tokens: mean output length before rounding.
        output_sd_tokens: its standard deviation; 0 for a constant.
        max_tokens: longest prompt and longest output.

    Raises:
        ConfigError: a parameter out of range.
    """

    _family: ClassVar[LengthFamily] = "lognormal"

    name: str = "lognormal"


@dataclass(frozen=True)
class GammaWorkload(_LawWorkload):
    """Gamma prompts and outputs, independent of each other: a short, exponential upper tail.

    The attributes, their checks and defaults are those of :class:`LognormalWorkload`.
    """

    _family: ClassVar[LengthFamily] = "gamma"

    name: str = "gamma"


@dataclass(frozen=True)
class MixtureWorkload(_LawWorkload):
    """Outputs that run to a cap with some chance, and otherwise stop by themselves after a lognormal length.

    With probability ``cap_probability`` the output is ``cap_tokens`` long, else it is lognormal with
    ``output_mean_tokens`` and ``output_sd_tokens``, cut at ``cap_tokens``. The defaults imitate the GSM8K case.
    The other attributes are those of :class:`LognormalWorkload`.

    Attributes:
        cap_probability: share of requests that run to the cap, in [0, 1].
        cap_tokens: the longest output, in [1, ``max_tokens``].

    Raises:
        ConfigError: a parameter out of range.
    """

    _family: ClassVar[LengthFamily] = "lognormal"

    name: str = "mixture"
    output_mean_tokens: float = 132.8
    output_sd_tokens: float = 56.7
    cap_probability: float = 0.56
    cap_tokens: int = 512

    def __post_init__(self) -> None:
        check_number("cap_probability", self.cap_probability, 0.0, 1.0)
        check_limit("max_tokens", self.max_tokens)
        check_limit("cap_tokens", self.cap_tokens, self.max_tokens)
        super().__post_init__()

    @property
    def mean_output_tokens(self) -> float:
        """Population mean of the output lengths: the share at the cap included."""
        p = self.cap_probability
        return population_mean(p * self.cap_tokens + (1.0 - p) * self.output_law.moments()[0])

    def _outputs(self, split: str, number: int, count: int) -> NDArray[np.int32]:
        at_cap = bernoulli(raw_words(self._family, split, number, Stream.CAP, count), self.cap_probability)
        return np.where(at_cap, np.int32(self.cap_tokens), super()._outputs(split, number, count)).astype(np.int32)

    def _longest_output(self) -> int:
        return self.cap_tokens
