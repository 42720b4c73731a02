"""What is served: the requests of a case, when they come, and what is known of their output lengths."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal, get_args

from llmsched_env.config.checks import check_names, keep, number, real, whole
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint
from llmsched_env.workload import SPLITS, Predictor, Workload, predictor, workload
from llmsched_env.workload.predictors import check_sd_weight
from llmsched_env.workload.protocol import Split

__all__ = ["LENGTHS", "MAX_LOAD", "CaseOptions", "check"]

Lengths = Literal["known", "predicted", "hidden"]
LENGTHS: tuple[Lengths, ...] = get_args(Lengths)
MAX_LOAD = 10.0
MAX_REQUESTS_PER_S = 1e9
"""A gap of 1 ns."""


@dataclass(frozen=True)
class CaseOptions:
    """Requests.

    Attributes:
        workload: a name ("gsm8k", "gsm8k-smooth", "lognormal", ...), the path of a CSV file, or a `Workload`.
        split: "train", "validation" or "test": disjoint pools of cases.
        num_requests: requests of a case; ``None`` for the workload's own number, else drawn with replacement.
        load: rate of arrivals as a share of what the clients can take at most, for the case's own lengths; ``None``
            for the workload's own times, or those of ``requests_per_s``.
        requests_per_s: rate of arrivals, in place of ``load``; ``None`` for the workload's own times, or a load.
        lengths: what a scheduler knows of output lengths. "known": the truth. "predicted": what ``predictor`` says.
            "hidden": nothing but the population's mean. Assignment, order, stealing and the observation all use the
            same estimate.
        predictor: "population", "prompt", "noisy", "noisy:0.8", "class:2", ..., or a `Predictor`; ``None`` for the
            workload's own ``predicted_tokens`` (lengths "predicted" only).
        sd_weight: k: a predictor's mean + k standard deviations is the estimate.
    """

    workload: str | Path | Workload = "gsm8k"
    split: Split = "train"
    _: KW_ONLY
    num_requests: int | None = None
    load: float | None = None
    requests_per_s: float | None = None
    lengths: Lengths = "known"
    predictor: str | Predictor | None = None
    sd_weight: float = 0.0

    @property
    def source(self) -> Workload:
        """The workload itself."""
        return workload(self.workload)

    @property
    def shows_lengths(self) -> bool:
        """Whether a scheduler is given the true output lengths, be it as a prediction without error."""
        exact = self.predictor is not None and getattr(predictor(self.predictor), "exact", False)
        return self.lengths == "known" or exact


def check(options: CaseOptions) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
        UnknownNameError: a name that does not exist.
    """
    check_names(options, split=SPLITS, lengths=LENGTHS)
    if options.num_requests is not None:
        keep(options, "num_requests", whole("num_requests", options.num_requests, 1, 2**24))
    if options.load is not None:
        if number("load", options.load) > MAX_LOAD:
            hint = percent_hint(float(options.load), MAX_LOAD)
            raise ConfigError(f"load = {options.load} is out of range: it is above 0 and at most {MAX_LOAD:g}.{hint}")
        keep(options, "load", real("load", options.load, 0.0, MAX_LOAD))
    if options.requests_per_s is not None:
        keep(options, "requests_per_s", real("requests_per_s", options.requests_per_s, 0.0, MAX_REQUESTS_PER_S))
        if options.load is not None:
            raise ConfigError(
                f"load = {options.load} with requests_per_s = {options.requests_per_s}: each is the rate of arrivals. "
                "Give one of them, and None for the other."
            )
    _check_prediction(options)
    try:
        hash(options.source)
    except TypeError:
        raise ConfigError(
            f"workload {options.source!r} cannot be hashed, but its cases are kept by it: make it a frozen dataclass."
        ) from None


def _check_prediction(options: CaseOptions) -> None:
    keep(options, "sd_weight", check_sd_weight(options.sd_weight))
    if options.predictor is not None:
        predictor(options.predictor)
        if options.lengths != "predicted":
            raise ConfigError(
                f"predictor = {options.predictor!r} but lengths = {options.lengths!r}: nobody would read what it "
                "says. Set lengths='predicted', or leave it out."
            )
    elif options.sd_weight != 0:
        raise ConfigError(
            f"sd_weight = {options.sd_weight} but there is no predictor to state a standard deviation: give one "
            "(predictor='prompt'), or leave it out."
        )
