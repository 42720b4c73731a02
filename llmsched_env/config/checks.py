"""Checks of single values, and limits that groups of arguments share."""

from __future__ import annotations

import dataclasses
import numbers
import operator
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np

from llmsched_env.errors import ConfigError, UnknownNameError

__all__ = [
    "LARGEST",
    "MAX_KV_TOKENS",
    "MAX_SEED",
    "changed",
    "check_flags",
    "check_names",
    "checked_options",
    "flag",
    "keep",
    "number",
    "real",
    "whole",
]

MAX_SEED = 2**128
MAX_KV_TOKENS = 2**40
LARGEST = MappingProxyType(
    {"ttft_s": 1e6, "tpot_s": 500.0, "kv_swap_gb_per_s": 1e6, "move_gb_per_s": 1e6, "aging_tokens_per_s": 1e9}
)
"""Argument -> the largest value that is allowed, which stands for no limit. That of ``tpot_s``, times the longest
output, still fits 64 bits of nanoseconds."""


def keep(options: object, name: str, value: object) -> None:
    """Set an argument of a frozen dataclass to what it was checked to be."""
    object.__setattr__(options, name, value)


def check_names(options: object, **known: tuple[str, ...]) -> None:
    """Check arguments that are one of some names.

    Raises:
        UnknownNameError: one is not.
    """
    for name, names in known.items():
        if not isinstance(getattr(options, name), str) or getattr(options, name) not in names:
            raise UnknownNameError(name, getattr(options, name), names)


def check_flags(options: object, *names: str) -> None:
    """Check arguments that are True or False.

    Raises:
        ConfigError: one is neither.
    """
    for name in names:
        flag(name, getattr(options, name))


def flag(name: str, value: object) -> bool:
    """``value``, which is True or False.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} = {value!r} is neither True nor False.")
    return bool(value)


def changed(options: Any, group: type) -> Iterator[str]:
    """Names of a group's arguments that are not at their defaults."""
    for field in dataclasses.fields(group):
        value = getattr(options, field.name)
        if isinstance(value, np.ndarray) or value != field.default:
            yield field.name


def checked_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """The options of a reset.

    Raises:
        ConfigError: not a dictionary.
        UnknownNameError: an option that does not exist.
    """
    if not isinstance(options, dict | None):
        raise ConfigError(f"options = {options!r} is not a dictionary: give one, with {' or '.join(sorted(known))}.")
    for name in options or {}:
        if name not in known:
            raise UnknownNameError("reset option", name, known)
    return options or {}


def whole(name: str, value: object, least: int, most: int) -> int:
    """``value`` as an integer in [least, most].

    Raises:
        ConfigError: it is none.
    """
    try:
        number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]  # what is no integer is refused below
    except TypeError:
        raise ConfigError(f"{name} = {value!r} is not a whole number.") from None
    if not least <= number <= most:
        raise ConfigError(f"{name} = {value} is out of range: it lies in [{least}, {most}].")
    return number


def number(name: str, value: object) -> float:
    """``value`` as a float.

    Raises:
        ConfigError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} = {value!r} is not a number.")
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{name} is beyond the numbers that a float holds: check its unit.") from None


def real(name: str, value: object, least: float, most: float) -> float:
    """``value`` as a float above 0, at least ``least`` and at most ``most``.

    Raises:
        ConfigError: it is none.
    """
    checked = number(name, value)
    if not (checked > 0 and least <= checked <= most):
        low = f"at least {least:g}" if least > 0 else "above 0"
        raise ConfigError(f"{name} = {value} is out of range: it is {low} and at most {most:g}.")
    return checked
