"""Predictors that know the class of a length and nothing else: a bit, or an interval that the length lies in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmsched_env.errors import ConfigError
from llmsched_env.workload.predictors import Prediction, length_bins
from llmsched_env.workload.protocol import Workload
from llmsched_env.workload.requests import Requests

__all__ = ["LengthClass", "LengthInterval"]

MOST_CLASSES = 2**10


def _check_classes(classes: object) -> None:
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= MOST_CLASSES:
        raise ConfigError(f"classes = {classes!r} is out of range: pass an int in [1, {MOST_CLASSES}].")


@dataclass(frozen=True)
class LengthClass:
    """Knows in which of some classes a length is, without error: with two of them, whether it is short or long.

    The classes are those of training lengths, about equally many in each (equal lengths stay together, so there may be
    fewer). The prediction is mean and standard deviation of the training lengths of the class.

    Attributes:
        classes: how many, at least 1.

    Raises:
        ConfigError: a number out of range.
    """

    classes: int = 2

    def __post_init__(self) -> None:
        _check_classes(self.classes)

    @property
    def name(self) -> str:
        """What tables call it, and what :func:`llmsched_env.workload.predictor` knows it by."""
        return f"class:{self.classes}"

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`llmsched_env.workload.Predictor`."""
        bins = length_bins(workload, self.classes)
        place = np.searchsorted(bins.edges, requests.output_tokens, side="right")
        return Prediction(bins.mean_tokens[place], bins.sd_tokens[place])


@dataclass(frozen=True)
class LengthInterval:
    """Knows the ends of the class that a length is in: the interval [mean - sd, mean + sd] of what it says.

    So ``sd_weight=-1`` makes the lower end the estimate, and ``sd_weight=1`` the upper one. Classes are those of
    `LengthClass`. The lowest begins at the shortest training length and the highest ends at the longest; a length may
    lie beyond.

    Attributes:
        classes: how many, at least 1.

    Raises:
        ConfigError: a number out of range.
    """

    classes: int = 10

    def __post_init__(self) -> None:
        _check_classes(self.classes)

    @property
    def name(self) -> str:
        """What tables call it, and what :func:`llmsched_env.workload.predictor` knows it by."""
        return f"interval:{self.classes}"

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see :class:`llmsched_env.workload.Predictor`."""
        bins = length_bins(workload, self.classes)
        place = np.searchsorted(bins.edges, requests.output_tokens, side="right")
        least = np.concatenate(([bins.first], bins.edges))[place]
        most = np.concatenate((bins.edges - 1, [bins.last]))[place]
        return Prediction((least + most) / 2, (most - least) / 2)
