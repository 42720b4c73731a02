"""Which workloads are alike to a scheduler: output lengths as a scenario shows them, and how far two are apart."""

from __future__ import annotations

import functools
import math

import numpy as np

from llmsched_env.cases import estimates
from llmsched_env.config import Scenario
from llmsched_env.errors import LLMSchedError

__all__ = ["QUANTILES", "lengths_apart", "shown_lengths"]

QUANTILES = 32


def shown_lengths(scenario: Scenario) -> tuple[float, ...] | None:
    """(QUANTILES,) output lengths at even quantiles, as the scenario shows them; ``None`` where it shows none.

    They are those of training case 0 at the workload's own size: the truth where lengths are known, the estimates where
    they are predicted, and the population's mean throughout where they are hidden.
    """
    return _shown(scenario.replace(split="train"), getattr(scenario.source, "version", None))


@functools.lru_cache(maxsize=64)
def _shown(scenario: Scenario, version: object) -> tuple[float, ...] | None:
    try:
        estimated = estimates(scenario, 0, scenario.source.requests("train", 0))
    except LLMSchedError:  # no training cases, or none that are predicted
        return None
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(np.quantile(estimated, at).tolist())


def lengths_apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """How far apart two sets of lengths are: their shapes, each in units of its mean, and the logarithms of the means.

    The first part is the Wasserstein distance of the lengths over their mean.
    """
    a, b = np.array(one), np.array(other)
    return float(np.abs(a / a.mean() - b / b.mean()).mean()) + abs(math.log(a.mean() / b.mean()))
