"""What a scheduler may know of output lengths before they are out: a mean and a standard deviation a request.

A predictor is fitted on training cases and on nothing else. What it says of a case is fixed by (predictor, workload,
split, number) for ever, as the case itself is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.workload.draws import Stream, raw_words, standard_normal, with_replacement
from llmsched_env.workload.lengths import check_number
from llmsched_env.workload.protocol import Workload
from llmsched_env.workload.requests import MAX_TOKENS, Requests

__all__ = [
    "NoisyTruth",
    "Population",
    "Prediction",
    "Predictor",
    "PromptRegression",
    "UnevenTruth",
    "check_sd_weight",
    "estimated_tokens",
    "length_bins",
]

TRAINING_REQUESTS = 2**16
"""A fit reads training cases from number 0 on, until it has that many requests."""

MOST_TRAINING_CASES = 64

MOST_BINS = 32
LEAST_PER_BIN = 100

SIGNALS = 1024
"""Points at which the law of a length given its signal is computed; linear between them."""

TAIL_SD = 6.0
MOST_SD_WEIGHT = 1e6

Tokens = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of the output lengths of one case; read-only copies of what is given.

    Attributes:
        mean_tokens: (n,) float64, at least 0: expected output length of each request.
        sd_tokens: (n,) float64, at least 0: standard deviation of the length around that mean.

    Raises:
        WorkloadError: columns of unequal length, or values that are negative or not finite.
    """

    mean_tokens: Tokens
    sd_tokens: Tokens

    def __post_init__(self) -> None:
        for name in ("mean_tokens", "sd_tokens"):
            object.__setattr__(self, name, _column(name, getattr(self, name)))
        if len(self.mean_tokens) != len(self.sd_tokens):
            raise WorkloadError(
                f"sd_tokens has {len(self.sd_tokens)} entries but mean_tokens has {len(self.mean_tokens)}: "
                "give one per request."
            )

    def __len__(self) -> int:
        return len(self.mean_tokens)


@runtime_checkable
class Predictor(Protocol):
    """Says what may be expected of output lengths. It is hashable, and equal ones predict the same.

    One that may say the truth itself has an attribute ``exact``, true where it does: results are then marked as
    clairvoyant.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case.

        Args:
            workload: where the case is from; fits read its training cases.
            split: of the case.
            number: of the case.
            requests: the case.

        Returns:
            One mean and one standard deviation a request, the same for the same arguments, whatever was asked before.
        """
        ...


@dataclass(frozen=True)
class Population:
    """Knows nothing of a request: mean and standard deviation of the training cases, the same for all."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return "population"

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`Predictor`."""
        outputs = _training(_source(workload)).output_tokens
        n = len(requests)
        return Prediction(_told(np.full(n, outputs.mean())), _told(np.full(n, outputs.std())))


@dataclass(frozen=True)
class PromptRegression:
    """Knows the prompt's length: mean and standard deviation of the training requests with about as long a prompt.

    Training requests are cut by prompt length into at most 32 bins of about equally many, at least 100 (equal prompts
    stay together); within a bin all predictions are equal.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        return "prompt"

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`Predictor`."""
        bins = _by_prompt(_source(workload))
        place = np.searchsorted(bins.edges, requests.prompt_tokens, side="right")
        return Prediction(bins.mean_tokens[place], bins.sd_tokens[place])


@dataclass(frozen=True)
class NoisyTruth:
    """Knows a noisy signal of each length, with a given correlation: a stand-in for a predictor of that quality.

    With m and s the mean and standard deviation of ln N over the training cases, r the correlation and e standard
    normal noise, independent from request to request,

        signal = r * z + sqrt(1 - r**2) * e,    z = (ln N - m) / s

    so that r is the correlation of the signal with the logarithm of the length. The prediction is mean and standard
    deviation of N given the signal, by Bayes' rule with the lengths of the training cases as the prior. With r = 1
    that is the length itself, with r = 0 it is that of :class:`Population`.

    The noise is drawn for (workload's name, seed, split, number); different correlations use the same.

    Attributes:
        correlation: r, in [0, 1].
        seed: of the noise, at least 0.

    Raises:
        ConfigError: a correlation or a seed out of range.
    """

    correlation: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "correlation", check_number("correlation", self.correlation, 0.0, 1.0))
        _check_seed(self.seed)

    @property
    def name(self) -> str:
        """What tables call it; with seed 0, what :func:`predictor` knows it by."""
        return f"noisy:{self.correlation!r}{_seeded(self.seed)}"

    @property
    def exact(self) -> bool:
        """Whether it says the truth."""
        return self.correlation == 1.0

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`Predictor`."""
        if self.exact:
            return Prediction(requests.output_tokens.astype(np.float64), np.zeros(len(requests)))
        given = _by_signal(_source(workload), self.correlation)
        signal = self.signal(workload, split, number, requests)
        mean, sd = (np.interp(signal, given.signals, column) for column in (given.mean_tokens, given.sd_tokens))
        return Prediction(_told(mean), _told(sd))

    def signal(self, workload: Workload, split: str, number: int, requests: Requests) -> NDArray[np.float64]:
        """(n,) float64: all that this predictor knows of the requests."""
        words = raw_words(f"{workload.name}/{self.seed}", split, number, Stream.PREDICTION, len(requests))
        z = _standardised(_training(_source(workload)), requests.output_tokens)
        return self.correlation * z + math.sqrt(1.0 - self.correlation**2) * standard_normal(words)


@dataclass(frozen=True)
class UnevenTruth:
    """Knows some lengths better than others, and which: each request has a :class:`NoisyTruth` chosen by chance.

    Where one signal says everything, as in :class:`NoisyTruth`, the standard deviation is a function of the mean. Here
    requests of equal mean have different standard deviations.

    Attributes:
        correlations: of the signals, each in [0, 1]; every request has one of them with equal chance.
        seed: of the noise and of that chance, at least 0.

    Raises:
        ConfigError: a correlation or a seed out of range, or no correlation.
    """

    correlations: tuple[float, ...] = (0.2, 0.95)
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.correlations, tuple) or not self.correlations:
            raise ConfigError(f"correlations = {self.correlations!r} is not a tuple of at least one number.")
        checked = tuple(check_number("correlation", one, 0.0, 1.0) for one in self.correlations)
        object.__setattr__(self, "correlations", checked)
        _check_seed(self.seed)

    @property
    def exact(self) -> bool:
        """Whether it says the truth, be it of some requests only."""
        return 1.0 in self.correlations

    @property
    def name(self) -> str:
        """What tables call it; with seed 0, what :func:`predictor` knows it by."""
        return f"uneven:{':'.join(map(repr, self.correlations))}{_seeded(self.seed)}"

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`Predictor`."""
        words = raw_words(f"{workload.name}/{self.seed}", split, number, Stream.CERTAINTY, len(requests))
        which = with_replacement(words, len(self.correlations))
        by_level = [NoisyTruth(one, self.seed).predict(workload, split, number, requests) for one in self.correlations]
        each = np.arange(len(requests))
        return Prediction(
            np.stack([one.mean_tokens for one in by_level])[which, each],
            np.stack([one.sd_tokens for one in by_level])[which, each],
        )


def estimated_tokens(prediction: Prediction, sd_weight: float = 0.0) -> NDArray[np.int32]:
    """(n,) int32: mean + ``sd_weight`` * sd in whole tokens, in [1, ``MAX_TOKENS``].

    Raises:
        ConfigError: a weight that is not a finite number, or beyond a million.
    """
    tokens = np.rint(prediction.mean_tokens + check_sd_weight(sd_weight) * prediction.sd_tokens)
    return np.clip(tokens, 1, MAX_TOKENS).astype(np.int32)


def check_sd_weight(sd_weight: object) -> float:
    """A weight of standard deviations, as a float.

    Raises:
        ConfigError: it is not a finite number, or beyond a million.
    """
    return check_number("sd_weight", sd_weight, -MOST_SD_WEIGHT, MOST_SD_WEIGHT)


class _Source(NamedTuple):
    """A workload as it is now: a file that has changed is another source."""

    workload: Workload
    version: object


class _Training(NamedTuple):
    """Training requests: prompts and outputs, each (m,) int32; mean and sd of the logarithm of the outputs."""

    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    log_mean: float
    log_sd: float


class _Bins(NamedTuple):
    """Bin b holds the keys in [edges[b - 1], edges[b]): (b - 1,) edges, (b,) means and sds of lengths; the ends of
    all keys."""

    edges: NDArray[np.int32]
    mean_tokens: Tokens
    sd_tokens: Tokens
    first: int
    last: int


class _GivenSignal(NamedTuple):
    """Mean and sd of a length given its signal, at ascending signals, each (SIGNALS,)."""

    signals: NDArray[np.float64]
    mean_tokens: Tokens
    sd_tokens: Tokens


def _check_seed(seed: object) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed = {seed!r} is out of range: pass an int in [0, 2**63 - 1].")


def _seeded(seed: int) -> str:
    return f" (seed {seed})" if seed else ""


def _column(name: str, values: ArrayLike) -> Tokens:
    column = np.array(values, np.float64)
    if column.ndim != 1:
        raise WorkloadError(f"{name} has shape {column.shape}: give a one-dimensional sequence, one entry per request.")
    bad = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
    if bad.size:
        raise WorkloadError(f"{name}[{bad[0]}] = {column[bad[0]]} is out of range: give finite numbers of at least 0.")
    column.setflags(write=False)
    return column


def _told(tokens: Tokens) -> Tokens:
    """To a millionth of a token: what the last bit of a logarithm does on another machine is not to be seen."""
    return np.round(tokens, 6)


def _standardised(training: _Training, output_tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    z: NDArray[np.float64] = (np.log(output_tokens.astype(np.float64)) - training.log_mean) / training.log_sd
    return z


def _source(workload: Workload) -> _Source:
    try:
        hash(workload)
    except TypeError:
        raise ConfigError(
            f"workload {workload!r} cannot be hashed, but what is fitted to it is kept by it: make it a frozen "
            "dataclass."
        ) from None
    return _Source(workload, getattr(workload, "version", None))


@functools.lru_cache(maxsize=16)
def _training(source: _Source) -> _Training:
    workload = source.workload
    pool = workload.pool_size("train")
    most = MOST_TRAINING_CASES if pool is None else min(pool, MOST_TRAINING_CASES)
    cases: list[Requests] = []
    while len(cases) < most and sum(map(len, cases)) < TRAINING_REQUESTS:
        cases.append(workload.requests("train", len(cases)))
    output = np.concatenate([case.output_tokens for case in cases])
    logs = np.log(output.astype(np.float64))
    # Where all lengths are equal there is nothing to standardise.
    log_sd = float(logs.std()) if output.min() < output.max() else 1.0
    return _Training(np.concatenate([case.prompt_tokens for case in cases]), output, float(logs.mean()), log_sd)


@functools.lru_cache(maxsize=64)
def _by_prompt(source: _Source) -> _Bins:
    training = _training(source)
    return _binned(
        training, training.prompt_tokens, min(MOST_BINS, max(1, len(training.prompt_tokens) // LEAST_PER_BIN))
    )


@functools.lru_cache(maxsize=64)
def _by_length(source: _Source, count: int) -> _Bins:
    training = _training(source)
    return _binned(training, training.output_tokens, count)


def length_bins(workload: Workload, count: int) -> _Bins:
    """Training requests by output length, in at most ``count`` classes of about equally many.

    Args:
        workload: whose training cases are read.
        count: of classes, at least 1; fewer where many lengths are equal.
    """
    return _by_length(_source(workload), count)


def _binned(training: _Training, key: NDArray[np.int32], count: int) -> _Bins:
    """Training requests by a key, in at most ``count`` bins of about equally many; equal keys stay together."""
    output = training.output_tokens.astype(np.float64)
    n = len(key)
    edges = np.unique(np.sort(key)[np.arange(1, count) * n // count])
    edges = edges[edges > key.min()]
    place = np.searchsorted(edges, key, side="right")
    size = np.bincount(place)
    mean = np.bincount(place, output) / size
    variance = np.bincount(place, (output - mean[place]) ** 2) / size
    return _Bins(edges, _told(mean), _told(np.sqrt(variance)), int(key.min()), int(key.max()))


@functools.lru_cache(maxsize=64)
def _by_signal(source: _Source, correlation: float) -> _GivenSignal:
    training = _training(source)
    lengths, times = np.unique(training.output_tokens, return_counts=True)
    expected = correlation * _standardised(training, lengths)
    noise_sd = math.sqrt(1.0 - correlation**2)
    signals = np.linspace(expected[0] - TAIL_SD * noise_sd, expected[-1] + TAIL_SD * noise_sd, SIGNALS)
    mean, sd = np.empty(SIGNALS, np.float64), np.empty(SIGNALS, np.float64)
    for i, signal in enumerate(signals):
        log_weight = np.log(times) - 0.5 * ((signal - expected) / noise_sd) ** 2
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        mean[i] = weight @ lengths
        sd[i] = math.sqrt(weight @ (lengths - mean[i]) ** 2)
    return _GivenSignal(signals, mean, sd)
