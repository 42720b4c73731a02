"""Predictors by name."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload.coarse import LengthClass, LengthInterval
from llmsched_env.workload.predictors import NoisyTruth, Population, Predictor, PromptRegression, UnevenTruth

__all__ = ["PREDICTORS", "predictor"]

PREDICTORS: MappingProxyType[str, Callable[[], Predictor]] = MappingProxyType(
    {
        "population": Population,
        "prompt": PromptRegression,
        "noisy": NoisyTruth,
        "uneven": UnevenTruth,
        "class": LengthClass,
        "interval": LengthInterval,
    }
)
"""Name -> what makes the predictor, with its default parameters."""


COARSE: dict[str, type[LengthClass | LengthInterval]] = {"class": LengthClass, "interval": LengthInterval}


def predictor(source: str | Predictor) -> Predictor:
    """A predictor by name, or itself.

    ``"noisy:0.8"`` is ``NoisyTruth(0.8)``, ``"uneven:0.2:0.95"`` is ``UnevenTruth((0.2, 0.95))``, ``"class:2"`` is
    ``LengthClass(2)`` and ``"interval:10"`` is ``LengthInterval(10)``.

    Raises:
        UnknownNameError: no such name.
        ConfigError: correlations or classes that are no numbers or out of range; an object that is not a predictor, or
            that cannot be hashed.
    """
    if isinstance(source, str):
        if source in PREDICTORS:
            return PREDICTORS[source]()
        kind, _, numbers = source.partition(":")
        if kind == "noisy" and numbers.count(":") == 0:
            return NoisyTruth(_correlation(source, numbers))
        if kind == "uneven":
            return UnevenTruth(tuple(_correlation(source, number) for number in numbers.split(":")))
        if kind in COARSE and numbers.count(":") == 0:
            return COARSE[kind](_classes(source, numbers))
        raise UnknownNameError("predictor", source, [*PREDICTORS, "noisy:R", "uneven:R:R", "class:K", "interval:K"])
    if isinstance(source, type) or not isinstance(source, Predictor):
        raise ConfigError(
            f"{source!r} is not a predictor: pass a name ({', '.join(PREDICTORS)}, noisy:0.8), or an object with name "
            "and predict."
        )
    try:
        hash(source)
    except TypeError:
        raise ConfigError(
            f"predictor {source!r} cannot be hashed, but cases are kept by it: make it a frozen dataclass."
        ) from None
    return source


def _correlation(name: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise ConfigError(
            f"predictor {name!r}: {number!r} is not a number: write a correlation in [0, 1] there, as in 'noisy:0.8'."
        ) from None


def _classes(name: str, number: str) -> int:
    try:
        return int(number)
    except ValueError:
        raise ConfigError(
            f"predictor {name!r}: {number!r} is not a whole number: write how many classes there, as in 'class:2'."
        ) from None
