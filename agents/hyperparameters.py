"""Settings of the training algorithms: one YAML file each, ``agents/settings/ALGO.yaml``, and the check of one's own.

Of ppo there are two: its own is for a residual on a rule, ``ppo_plain.yaml`` for a plain network.

Which settings an algorithm has is what its file holds; what each may be, its learner says with the checks made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmsched_env.config import number, whole
from llmsched_env.errors import ConfigError, FileFormatError, MissingExtraError, PathError, UnknownNameError

__all__ = [
    "COMMON",
    "Check",
    "flag",
    "one_of",
    "read_settings",
    "real_number",
    "resolved",
    "shipped_file",
    "whole_number",
    "widths",
]

SHIPPED = Path(__file__).with_name("settings")

PLAIN = "_plain"
"""Ends the name of the file for plain networks, where an algorithm's own is for residuals on a rule."""

DIGITS = "[0-9]+(?:_[0-9]+)*"
WHOLE = re.compile(rf"[-+]?{DIGITS}$")
REAL = re.compile(rf"[-+]?(?:{DIGITS}\.?(?:{DIGITS})?|\.{DIGITS})(?:[eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$")
"""A value that is neither is no number."""

NUMBER, REAL_NUMBER, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))
"""YAML's names of them."""

Check = Callable[[str, object], Any]
"""Given a name and a value, returns the value, or raises a ConfigError that says what it may be."""


def whole_number(least: int, most: int) -> Check:
    """A whole number in [least, most]."""
    return lambda name, value: whole(name, value, least, most)


def real_number(least: float, most: float) -> Check:
    """A number in [least, most]."""

    def check(name: str, value: object) -> float:
        checked = number(name, value)
        if not least <= checked <= most:
            raise ConfigError(f"{name} = {value} is out of range: it lies in [{least:g}, {most:g}].")
        return checked

    return check


def one_of(*known: str) -> Check:
    """One of these words."""

    def check(name: str, value: object) -> str:
        if value not in known:
            raise UnknownNameError(name, value, known)
        return str(value)

    return check


def flag(name: str, value: object) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r} is neither true nor false.")
    return value


def widths(name: str, value: object) -> list[int]:
    """Layers of a network: at most 8 whole numbers in [1, 4096]; none for a linear one."""
    if not isinstance(value, list) or len(value) > 8:
        raise ConfigError(f"{name} = {value!r} is not a list of at most 8 whole numbers: write [64, 64].")
    return [whole(f"{name}[{i}]", width, 1, 4096) for i, width in enumerate(value)]


OPTIONS = "options"

COMMON: dict[str, Check] = {
    "timesteps": whole_number(1, 2**62),
    "evaluate_every": whole_number(1, 2**62),
    "copies": whole_number(1, 4096),
}
"""Settings of the training itself, which an algorithm's file gives defaults for."""


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML file, not checked yet.

    Raises:
        PathError: the file cannot be read.
        FileFormatError: it is not YAML, not one mapping of names to values, merges another one, or says something
            twice.
        MissingExtraError: the extra `agents` is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            f"settings need PyYAML ({error}): install the extra 'agents', pip install -e '.[agents]' from the clone."
        ) from error

    class Loader(yaml.SafeLoader):
        """Plain values only. Numbers are decimal: 3e-4, 1_000 and 010 (ten) are some, 0x10 and 1:30 are words."""

    # PyYAML itself takes 3e-4 for a word, 010 for 8 and 1:30 for 90.
    others = yaml.SafeLoader.yaml_implicit_resolvers.items()
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag not in (NUMBER, REAL_NUMBER)] for first, known in others
    }
    for tag, form in ((NUMBER, WHOLE), (REAL_NUMBER, REAL)):  # the first that fits counts
        Loader.add_implicit_resolver(tag, form, list("-+0123456789."))
    Loader.add_constructor(NUMBER, _decimal)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PathError(f"cannot read {path}: {error.strerror or error}. Give a YAML file of settings.") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"not a text file in UTF-8 ({error.reason}): give a YAML file.") from error
    try:
        tree = yaml.compose(text, Loader=Loader)
        settings = yaml.load(text, Loader=Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # the latter of a tag that its value does not fit
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or error
        line = None if mark is None else mark.line + 1
        raise FileFormatError(path, f"not YAML ({what}): write one 'name: value' a line.", line=line) from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise FileFormatError(path, "not a mapping of names to values: write one 'name: value' a line.")
    seen: set[str] = set()
    assert tree is not None
    for key, _ in tree.value:
        if key.tag == MERGE:
            raise FileFormatError(
                path, "merges another mapping: write its settings out.", line=key.start_mark.line + 1, column=key.value
            )
        if key.value in seen:
            raise FileFormatError(path, "given twice: leave one out.", line=key.start_mark.line + 1, column=key.value)
        seen.add(key.value)
    return settings


def _decimal(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


def shipped_file(algo: str, given: Mapping[str, object], actions: int) -> str:
    """Whose settings stand for those not given: the algorithm's, or ``ALGO_plain`` where its network is a plain one.

    Args:
        algo: its name.
        given: settings; ``policy`` says which network.
        actions: of the scenario; a residual on a rule has two.
    """
    policy = given.get("policy", "auto")
    is_plain = policy == "mlp" or (policy == "auto" and actions != 2)
    return f"{algo}{PLAIN}" if is_plain and (SHIPPED / f"{algo}{PLAIN}.yaml").is_file() else algo


def resolved(
    algo: str,
    checks: Mapping[str, Check],
    given: Mapping[str, object],
    source: str = "settings",
    *,
    file: str | None = None,
) -> dict[str, Any]:
    """All settings of an algorithm: those given, the shipped ones for the rest.

    Args:
        algo: its name.
        checks: what its own settings may be.
        given: some of them.
        source: where they are from, for messages; `OPTIONS` for those of a command.
        file: the name of the shipped ones, if not the algorithm's.

    Raises:
        UnknownNameError: a setting that the algorithm does not have.
        ConfigError: a value of another type, or out of range.
    """
    shipped = read_settings(SHIPPED / f"{file or algo}.yaml")
    checks = {**COMMON, **checks}
    for name, value in given.items():
        if name not in shipped:
            raise UnknownNameError(f"{file or algo} setting in {source}:", name, shipped)
        try:
            checks[name](name, value)
        except ConfigError as error:
            # A setting of a file is none of the options of the same name.
            what = "" if source == OPTIONS else "setting "
            raise ConfigError(
                f"{source}: {what}{error} Change it, or leave it out for the default, {shipped[name]}."
            ) from None
        except UnknownNameError as error:
            raise ConfigError(f"{source}: {error} Without it, {name} is {shipped[name]!r}.") from None
    return {name: checks[name](name, {**shipped, **given}[name]) for name in shipped}
