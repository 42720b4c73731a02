"""An entry on disk: JSON with the policies, one whole number a case, and what follows from the numbers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env import __version__
from llmsched_env.baselines.leaderboard.bench import Benchmark, Place
from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError
from llmsched_env.storage import write_whole

__all__ = ["FORMAT", "LeaderboardEntry", "Results", "check_name", "check_runs", "read_entry", "write_entry"]

FORMAT = 1
NAME = re.compile(r"[\w.+]([\w.+ -]{0,58}[\w.+-])?")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
AGAIN = "Make the entry again with `llmsched submit`."


@dataclass(frozen=True, eq=False)
class Results:
    """What an entry did in one scenario.

    Attributes:
        policies: a policy a run: a registered name, ``rule@order``, the path of an agent's .npz file relative to the
            entry, or ``module:factory``. More than one are training runs of one method.
        figures: (runs, cases) int64: makespans in ns, or numbers of counted requests that violate an SLO.
    """

    policies: tuple[str, ...]
    figures: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LeaderboardEntry:
    """What somebody says that their policies do.

    Attributes:
        name: what the table calls it.
        results: by scenario.
        made_by: who, or the command.
        clairvoyant: whether a policy of it is given the future.
        version: of this package, when it was played.
        stated: what the file says that follows from the figures, as `Scoring.as_json` has it; empty while not scored.
        path: the file; agents are looked for in its folder.
    """

    name: str
    results: Mapping[str, Results]
    made_by: str = ""
    clairvoyant: bool = False
    version: str = __version__
    stated: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path("entry.json")


def check_name(name: str) -> str:
    """The name, if a table can show it.

    Raises:
        ConfigError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"an entry cannot be called {name!r}: give 1 to 60 letters, digits, blanks or any of _ . + -, with no "
            "blank or - at the beginning and no blank at the end."
        )
    return name


def check_runs(policies: Sequence[str]) -> None:
    """Whether policies are runs of their own.

    Raises:
        ConfigError: one that no path has, or one that is there twice.
    """
    for one in policies:
        if UNPRINTABLE.search(one):
            raise ConfigError(f"policy {one!r} has characters that no name has: leave them out.")
    names = [os.path.normpath(one) if one.endswith(".npz") else one for one in policies]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ConfigError(f"policy {twice[0]!r} is given twice, and each is a training run of its own: give it once.")


def write_entry(entry: LeaderboardEntry, benchmark: Benchmark, path: Path) -> None:
    """Write the file, whole: the figures of each run in one line.

    Raises:
        ConfigError: a name that does not end in .json.
        PathError: the folder cannot be written.
    """
    if path.suffix != ".json":
        raise ConfigError(f"cannot write entry {path}: its name has to end in .json.")
    stated = dict(entry.stated)
    derived = stated.pop("scenarios", {})
    head = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "name": entry.name,
        "made_by": entry.made_by,
        "version": entry.version,
        "clairvoyant": entry.clairvoyant,
        **stated,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    parts = []
    for name, results in entry.results.items():
        place = benchmark.places[name]
        said = {
            "policies": list(results.policies),
            "cases": [place.cases.start, place.cases.stop - 1],
            **derived.get(name, {}),
        }
        runs = ",\n   ".join(json.dumps(run, separators=(",", ":")) for run in results.figures.tolist())
        parts.append(f'  {json.dumps(name)}: {json.dumps(said)[:-1]},\n   "{place.figure}": [\n   {runs}]}}')
    text = "\n".join(["{", *lines, ' "scenarios": {', ",\n".join(parts), " }", "}", ""])
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_entry(path: Path | str, benchmark: Benchmark) -> LeaderboardEntry:
    """Read the file. Nothing is played, and nothing of it is run.

    Raises:
        PathError: it cannot be read.
        FileFormatError: it is no entry of this benchmark, or has other cases.
        UnknownNameError: a scenario that the benchmark does not have.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise PathError(f"cannot read {path}: {why}. Give the .json file of an entry.") from None
    said = _parsed(path, text)
    if not isinstance(said, dict) or "format" not in said:
        raise FileFormatError(path, f"not an entry: it has no format number. {AGAIN}")
    if not _is_whole(said["format"]) or said["format"] != FORMAT:
        raise FileFormatError(path, f"its format is {said['format']!r}, this version reads {FORMAT}. {AGAIN}")
    if said.get("benchmark") != benchmark.name:
        raise FileFormatError(path, f"an entry of {said.get('benchmark')!r}, not of {benchmark.name!r}. {AGAIN}")
    for key, kind in (("name", str), ("made_by", str), ("version", str), ("clairvoyant", bool), ("scenarios", dict)):
        if not isinstance(said.get(key), kind):
            raise FileFormatError(path, f"{key} = {said.get(key)!r} has to be of type {kind.__name__}. {AGAIN}")
    try:
        check_name(said["name"])
    except ConfigError as error:
        raise FileFormatError(path, str(error)) from None
    if not said["scenarios"]:
        raise FileFormatError(path, f"it has no scenario: at least one of {benchmark.name} is needed. {AGAIN}")
    results, derived = {}, {}
    for name, one in said["scenarios"].items():
        if name not in benchmark.places:
            raise UnknownNameError(f"scenario in {path}:", name, benchmark.places)
        results[name], derived[name] = _results(path, name, benchmark.places[name], one)
    ordered = {name: results[name] for name in benchmark.places if name in results}
    stated = {"score": said.get("score"), "scenarios": derived}
    return LeaderboardEntry(said["name"], ordered, said["made_by"], said["clairvoyant"], said["version"], stated, path)


def _parsed(path: Path, text: str) -> Any:
    """The values of a text in JSON.

    Raises:
        FileFormatError: it is none, or says a thing twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise FileFormatError(path, f"it says {twice[0]!r} twice: which of the two holds is not clear. {AGAIN}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise FileFormatError(path, f"not JSON: {error.msg}. {AGAIN}", line=error.lineno) from None
    except FileFormatError:
        raise
    except RecursionError:
        raise FileFormatError(path, f"its values are nested too deeply. {AGAIN}") from None
    except ValueError:
        raise FileFormatError(path, f"it has a number of too many digits. {AGAIN}") from None


def _is_whole(value: object) -> bool:
    """Of JSON: not true, and not 1.0."""
    return type(value) is int


def _results(path: Path, name: str, place: Place, said: Any) -> tuple[Results, dict[str, Any]]:
    """What a scenario's part of the file says: policies and figures, and what it says that follows from them."""
    where = f"scenario {name!r}"
    if not isinstance(said, dict):
        raise FileFormatError(path, f"{where} is {said!r}, it has to be an object with policies and figures. {AGAIN}")
    policies, cases = said.get("policies"), [place.cases.start, place.cases.stop - 1]
    if not (isinstance(policies, list) and policies and all(isinstance(one, str) and one for one in policies)):
        raise FileFormatError(path, f"{where}: policies = {policies!r} has to be a list of names, one a run. {AGAIN}")
    try:
        check_runs(policies)
    except ConfigError as error:
        raise FileFormatError(path, f"{where}: {error} {AGAIN}") from None
    if said.get("cases") != cases or not all(map(_is_whole, said["cases"])):
        raise FileFormatError(
            path, f"{where}: cases = {said.get('cases')!r}, but its cases are {cases[0]} to {cases[1]}. {AGAIN}"
        )
    runs = said.get(place.figure)
    if not isinstance(runs, list) or len(runs) != len(policies):
        raise FileFormatError(
            path, f"{where}: {place.figure} has to be a list of {len(policies)} runs, one for each policy. {AGAIN}"
        )
    for run in runs:
        _check_run(path, f"{where}: {place.figure}", run, len(place.cases))
    derived = {key: value for key, value in said.items() if key not in ("policies", "cases", place.figure)}
    return Results(tuple(policies), np.array(runs, np.int64)), derived


def _check_run(path: Path, what: str, run: object, cases: int) -> None:
    if not isinstance(run, Sequence) or len(run) != cases:
        count = len(run) if isinstance(run, Sequence) else 0
        raise FileFormatError(path, f"{what} has a run of {count} figures, {cases} are needed, one a case. {AGAIN}")
    for value in run:
        if not _is_whole(value) or not 0 <= value < 2**53:
            raise FileFormatError(path, f"{what} has {value!r}: whole numbers from 0 to 2**53 are needed. {AGAIN}")
