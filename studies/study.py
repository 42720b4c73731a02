"""What a study is: jobs that can be done in any order and on any core, tables and a picture of what they found.

Each job's result is kept as it comes, so that a call that was killed goes on with what is missing.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import joblib

from llmsched_env import baselines
from llmsched_env.config import MAX_CLIENTS, whole
from llmsched_env.errors import ConfigError
from llmsched_env.progress import Progress
from llmsched_env.sources import package_digest
from llmsched_env.storage import output_folder, write_whole
from llmsched_env.studies.tables import Table, write_csv

__all__ = ["Found", "Job", "Options", "Study", "run"]

Found = Mapping[str, Any]
"""Results by the names of their jobs, in the order of the jobs; JSON values."""


@dataclass(frozen=True)
class Options:
    """How large a study is.

    Attributes:
        cases: of the test split, from the first on, at up to 200 clients; studies say what they take at more.
        clients: numbers of clients.
        seed: of what is random beside the cases.

    Raises:
        ConfigError: a number out of range, or no clients.
    """

    cases: int = 20
    clients: tuple[int, ...] = (200, 1000, 5000)
    seed: int = 0

    def __post_init__(self) -> None:
        whole("cases", self.cases, 1, 2**20)
        whole("seed", self.seed, 0, 2**32 - 1)
        if not self.clients:
            raise ConfigError("clients is empty: give at least one number of clients.")
        for count in self.clients:
            whole("clients", count, 1, MAX_CLIENTS)

    def cases_at(self, clients: int) -> int:
        """Fewer cases where they are large: as many requests in all, and at least three."""
        return max(min(3, self.cases), min(self.cases, self.cases * 200 // clients))


class Job(NamedTuple):
    """One piece of a study: an importable function of JSON values that returns some."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of all that the result depends on: the arguments, and the code of study, policies and simulator."""
        said = [self.function.__qualname__, self.arguments, _code(inspect.getfile(self.function)), package_digest()]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _code(file: str) -> str:
    """Hash of the folder of a file, and of the policies."""
    digest = hashlib.sha256()
    for folder in (Path(file).parent, Path(baselines.__file__).parent):
        for source in sorted(folder.iterdir()):
            if source.suffix in (".py", ".json"):
                digest.update(source.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        name: on the command line and in file names.
        question: in one line.
        jobs: what there is to do.
        tables: what was found, in full.
        short: the rows of these that answer the question, by the names of the tables: at most a dozen, for the page.
        draw: writes a picture of it to a path (PNG).
    """

    name: str
    question: str
    jobs: Callable[[Options], Sequence[Job]]
    tables: Callable[[Found], Sequence[Table]]
    short: Callable[[Mapping[str, Table]], Table]
    draw: Callable[[Found, Path], Path]


def run(study: Study, options: Options, folder: Path, *, workers: int = -1, progress: bool = True) -> dict[str, Any]:
    """Do what is not done yet, and write ``NAME.json``, ``NAME.md``, ``NAME.png`` and a CSV a table to a folder.

    Args:
        study: which.
        options: how large.
        folder: for what comes out of it; results of an earlier call that still hold are taken from it.
        workers: processes; -1 for one a core.
        progress: show how far it is.

    Returns:
        Results by job.

    Raises:
        PathError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed; the tables are written all the same.
    """
    folder = output_folder(folder)
    path = folder / f"{study.name}.json"
    asked = study.jobs(options)
    jobs = {job.key: job for job in asked}  # what two of them would do alike is done once
    kept = _kept(path)
    results = {key: kept[key] for key in jobs if key in kept}
    missing = [(key, job) for key, job in jobs.items() if key not in results]
    work = joblib.Parallel(n_jobs=min(workers, len(missing)) or 1, return_as="generator_unordered")
    calls = (joblib.delayed(_do)(key, job.function, job.arguments) for key, job in missing)
    with Progress(
        total=len(jobs), initial=len(results), desc=study.name, unit="job", leave=True, hidden=not progress
    ) as bar:
        for key, result in work(calls):
            results[key] = result
            # Other jobs' results stay: a call with other options may want them again.
            _keep(path, {**kept, **results}, study, options)
            bar.update()
    found = {job.name: results[job.key] for job in asked}
    _keep(path, {**kept, **results}, study, options)
    tables = study.tables(found)
    with write_whole(folder / f"{study.name}.md") as temporary:
        parts = [f"{table.title}\n\n{table.markdown()}\n" for table in tables]
        temporary.write_text("\n".join(parts), encoding="utf-8")
    write_csv(study.name, tables, folder)
    study.draw(found, folder / f"{study.name}.png")
    return found


def _do(key: str, function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[str, Any]:
    return key, function(**arguments)


def _kept(path: Path) -> dict[str, Any]:
    """Results of earlier calls by key; none where there is no file that can be read."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(path: Path, results: dict[str, Any], study: Study, options: Options) -> None:
    said = {"study": study.name, "question": study.question, "options": asdict(options), "results": results}
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(said, indent=1), encoding="utf-8")
