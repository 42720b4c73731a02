"""A study in chunks of cases: shared among worker processes, and kept on disk as it goes.

Each chunk is measured by one worker on a fresh copy of the policy, and the worker that measured it writes its file,
whole. So neither the number of workers, nor their engine, nor the size of a chunk changes a result, and what was
finished before a kill is there for the next run.

The file of a chunk is named by a hash of everything that the result is known to depend on (`_Study.key`). Another study
may use the same folder: it finds none of these files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import pickle
import sys
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import Scenario, whole
from llmsched_env.errors import ConfigError, MissingExtraError, UnknownNameError, WorkerError
from llmsched_env.evaluation.fingerprint import fingerprint
from llmsched_env.policy import Policy
from llmsched_env.sources import package_digest
from llmsched_env.storage import output_folder, write_whole

__all__ = ["Measure", "Rows", "Sharing", "measure_in_chunks"]

LEAST_CHUNK = 10
MOST_CHUNKS = 256
MOST_WORKERS = 4096

REFUSED = ("multiprocessing",)
"""Engines of joblib that wait for ever when a worker is killed."""

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error)

_log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """What was measured: a (cases,) array a metric, and how an episode left its cost model's range, if one did."""

    columns: dict[str, NDArray[np.float64]]
    outside: str | None


Measure = Callable[[Policy, Scenario, NDArray[np.int64], int, Callable[[int], Any] | None], Rows]
"""``measure(policy, scenario, cases, seed, progress)``: an importable function."""


@dataclass(frozen=True)
class Sharing:
    """How the work is cut, shared and kept.

    Attributes:
        workers: how many processes; 1 is this one, whatever the engine, and -1 every core that the engine has.
        engine: a name that joblib knows: "loky" for processes of this machine, "ray" for a cluster.
        chunk: cases in a chunk; ``None`` for 10, or more where that would make more than 256 chunks.
        folder: where finished chunks are kept and looked for; ``None`` keeps nothing.
        key: stands for the policy in the names of its chunks, instead of its state and its sources.

    Raises:
        ConfigError: a number out of range, or an empty key.
        UnknownNameError: no such engine.
        MissingExtraError: the engine's library is not installed.
        PathError: the folder cannot be written.
    """

    workers: int = 1
    engine: str = "loky"
    chunk: int | None = None
    folder: Path | str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.workers != -1:
            try:
                whole("workers", self.workers, 1, MOST_WORKERS)
            except ConfigError as error:
                raise ConfigError(f"{error} Or give -1 for every core.") from None
        if self.chunk is not None:
            whole("chunk", self.chunk, 1, 2**31)
        if self.key is not None and not (isinstance(self.key, str) and self.key):
            raise ConfigError(f"key = {self.key!r} names nothing: give a text that changes whenever the policy does.")
        if self.engine != "loky":
            _check_engine(self.engine)
        if self.folder is not None:
            output_folder(self.folder)

    @property
    def plain(self) -> bool:
        """Whether this is a loop in this process that keeps nothing."""
        return self.workers == 1 and self.folder is None

    def blocks(self, cases: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The chunks of these cases. They do not depend on the workers, so that a rerun with others finds them."""
        size = self.chunk or max(LEAST_CHUNK, -(-len(cases) // MOST_CHUNKS))
        return [cases[first : first + size] for first in range(0, len(cases), size)]


def _check_engine(name: object) -> None:
    """Make joblib know the engine.

    Raises:
        UnknownNameError: it never will.
        MissingExtraError: its library is not installed.
    """
    from joblib import parallel

    known = sorted({*parallel.BACKENDS, *parallel.EXTERNAL_BACKENDS, "ray"} - {*REFUSED})
    if name not in known:
        raise UnknownNameError("engine", name, known)
    try:
        if name == "ray":
            # By name: this package imports no Ray, and the import contract says so.
            importlib.import_module("ray.util.joblib").register_ray()
            logging.getLogger("ray.util.multiprocessing.pool").addFilter(_is_news)
        elif name not in parallel.BACKENDS:
            parallel.EXTERNAL_BACKENDS[name]()
    except ImportError as error:
        remedy = "the extra 'cluster', pip install 'llmsched-env[cluster]' (from a clone: pip install -e '.[cluster]')"
        raise MissingExtraError(
            f"engine {name!r} needs a library that cannot be imported ({error}): install "
            f"{remedy if name == 'ray' else 'what joblib asks for'}, or use engine 'loky'."
        ) from error


def _is_news(record: logging.LogRecord) -> bool:
    # joblib gives Ray's pool an argument that it ignores, and it warns of that at every call.
    return "'context' argument" not in record.getMessage()


@dataclass(frozen=True)
class _Study:
    """One policy on cases of one scenario, as workers receive it.

    Attributes:
        measure: what a chunk goes through.
        pickled: policy and scenario.
        seed: of the study.
        key: everything that a result is known to depend on but its cases, as JSON; empty where nothing is kept.
        folder: where chunks are kept, absolute.
        places: where this process imports from; not every engine's workers do by themselves.
        made_by: this process.
    """

    measure: Measure
    pickled: bytes
    seed: int
    key: str
    folder: Path | None
    places: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    made_by: int = field(default_factory=os.getpid)

    @classmethod
    def of(cls, measure: Measure, policy: Policy, scenario: Scenario, seed: int, sharing: Sharing) -> _Study:
        pickled = _pickled(policy.name, (policy, scenario))
        if sharing.folder is None:
            return cls(measure, pickled, seed, "", None)
        identity = {
            "measured": measure.__qualname__,
            "policy": [policy.name, policy.kind, policy.clairvoyant],
            "policy_is": sharing.key or fingerprint(_pickled(policy.name, policy), f"policy {policy.name!r}"),
            "scenario": scenario.describe(),
            "scenario_is": _workload_is(scenario, sharing.key),
            "workload_version": getattr(scenario.source, "version", None),
            "seed": seed,
            "llmsched_env": package_digest(),
            "numpy": np.__version__,
        }
        folder = Path(sharing.folder).resolve()
        return cls(measure, pickled, seed, json.dumps(identity, sort_keys=True, default=repr), folder)

    def path(self, cases: NDArray[np.int64]) -> Path | None:
        """Where the chunk of these cases is kept."""
        if self.folder is None:
            return None
        digest = hashlib.sha256(self.key.encode() + cases.astype("<i8").tobytes()).hexdigest()
        return self.folder / f"cases-{cases[0]}-{cases[-1]}-{digest[:32]}.npz"

    def kept(self, cases: NDArray[np.int64]) -> Rows | None:
        """The chunk of these cases, if it is there and whole."""
        path = self.path(cases)
        if path is None or not path.exists():
            return None
        try:
            # The archive's checksums find damaged content.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                values, names = stored["values"].astype(np.float64), stored["names"].astype(str).tolist()
                outside, key, numbers = str(stored["outside"]), str(stored["key"]), stored["cases"]
            if key == self.key and np.array_equal(numbers, cases) and values.shape == (len(names), len(cases)):
                return Rows(dict(zip(names, values, strict=True)), outside or None)
        except _UNREADABLE:
            pass
        _log.warning("chunk %s is damaged: its cases are run again.", path)
        return None

    def keep(self, cases: NDArray[np.int64], rows: Rows) -> None:
        """Write the chunk, whole.

        Raises:
            PathError: the folder cannot be written.
        """
        path = self.path(cases)
        if path is None:
            return
        with write_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                values=np.stack([*rows.columns.values()]),
                names=np.array([*rows.columns]),
                outside=np.array(rows.outside or ""),
                cases=cases,
                key=np.array(self.key),
            )


def _workload_is(scenario: Scenario, key: str | None) -> str:
    """What tells the scenario from others; the key, if any, where that is a workload whose code is in no module."""
    try:
        return fingerprint(cloudpickle.dumps(scenario), f"workload {scenario.source.name!r}")
    except ConfigError:
        if key is None:
            raise
        return key


def _pickled(name: str, what: object) -> bytes:
    try:
        return cloudpickle.dumps(what)  # type: ignore[no-any-return]  # cloudpickle is untyped
    except Exception as error:  # whatever the attributes of a user's object raise
        raise ConfigError(
            f"policy {name!r} cannot be copied to a worker ({type(error).__name__}: {error}): keep open files, locks "
            "and the like out of its attributes until reset, or use one worker without a folder."
        ) from error


class _Done(NamedTuple):
    """A chunk that a worker has measured.

    Attributes:
        number: of the chunk.
        rows: what came out.
    """

    number: int
    rows: Rows


def _work(study: _Study, number: int, cases: NDArray[np.int64]) -> _Done:
    """One chunk, in a worker: measured, then written.

    Raises:
        WorkerError: the policy cannot be made there, or failed with an error that cannot be sent back.
    """
    sys.path += [place for place in study.places if place not in sys.path]
    try:
        policy, scenario = pickle.loads(study.pickled)
    except Exception as error:  # whatever importing and making a user's object raises
        raise WorkerError(
            f"a worker cannot make its copy of the policy ({type(error).__name__}: {error}): its module has to be "
            "where workers import from too, at the same version."
        ) from None
    try:
        rows = study.measure(policy, scenario, cases, study.seed, None)
        study.keep(cases, rows)
    except Exception as error:  # of a user's policy: sent back as it is, if it can be
        if _travels(error):
            raise
        raise WorkerError(f"{type(error).__name__}: {error}\nIn the worker:\n{traceback.format_exc()}") from None
    return _Done(number, rows)


def _travels(error: Exception) -> bool:
    """Whether an error is the same after it was sent to another process; else the engine would break at it."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # whatever a class of errors raises when it is pickled
        return False


def measure_in_chunks(
    measure: Measure,
    policy: Policy,
    scenario: Scenario,
    cases: NDArray[np.int64],
    seed: int,
    sharing: Sharing,
    progress: Callable[[int], Any] | None,
) -> Rows:
    """``measure`` over all cases: chunks that are kept are read, the others shared among workers.

    Args:
        measure: what a chunk goes through.
        policy: pickled, and started from that copy at each chunk.
        scenario: pickled with it.
        cases: (cases,) case numbers.
        seed: of the study.
        sharing: how.
        progress: called with the cases of a chunk when it is done.

    Raises:
        ConfigError: a policy that cannot be copied or told apart, or more workers than a cluster has.
        WorkerError: a worker died, or failed with an error that cannot be sent back.
        PathError: the folder cannot be written.
    """
    study = _Study.of(measure, policy, scenario, seed, sharing)
    blocks = sharing.blocks(cases)
    done = {number: rows for number, block in enumerate(blocks) if (rows := study.kept(block)) is not None}
    if done:
        _log.info("policy %r: %d of %d chunks are in %s.", policy.name, len(done), len(blocks), study.folder)
        if progress is not None:
            progress(sum(len(blocks[number]) for number in done))
    missing = [(number, block) for number, block in enumerate(blocks) if number not in done]
    with closing(_shared(study, missing, sharing)) as results:
        for number, rows in results:
            done[number] = rows
            path = study.path(blocks[number])
            if path is not None and not path.exists():  # a worker elsewhere, which does not share the folder
                study.keep(blocks[number], rows)
            if progress is not None:
                progress(len(blocks[number]))
    parts = [done[number] for number in range(len(blocks))]
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Rows(columns, next((part.outside for part in parts if part.outside), None))


def _shared(study: _Study, tasks: list[tuple[int, NDArray[np.int64]]], sharing: Sharing) -> Generator[_Done]:
    """Measured chunks as they come in, in any order; from an engine that cannot do that, when all are done.

    Raises:
        ConfigError: more workers than a cluster has.
        WorkerError: a worker died.
    """
    if not tasks:
        return
    import joblib

    engine, workers = "sequential" if sharing.workers == 1 else sharing.engine, sharing.workers
    if engine == "loky":
        # More than there are chunks would start for nothing; one would be this process.
        workers = max(2, min(joblib.cpu_count() if workers < 0 else workers, len(tasks)))
    backend = joblib.parallel.BACKENDS[engine]
    threads = {"inner_max_num_threads": 1} if getattr(backend, "supports_inner_max_num_threads", False) else {}
    with joblib.parallel_config(backend=engine, n_jobs=workers, max_nbytes=None, **threads):
        try:
            parallel = joblib.Parallel(return_as="generator_unordered")
        except ValueError:  # Ray's cannot hand out results one by one; its workers write them one by one all the same
            parallel = joblib.Parallel()
    outputs: Any = None
    try:
        outputs = parallel(joblib.delayed(_work)(study, number, block) for number, block in tasks)
        yield from outputs
    except Exception as error:  # engines have errors of their own
        _explain(error, sharing)
        raise
    finally:
        if isinstance(outputs, Generator):
            with warnings.catch_warnings():  # of tasks that are cancelled: that is what an error or Ctrl-C asks for
                warnings.simplefilter("ignore")
                outputs.close()


def _explain(error: Exception, sharing: Sharing) -> None:
    """Raise what an engine's own error means.

    Raises:
        ConfigError: more workers than a cluster has.
        WorkerError: a worker died.
    """
    engine_of = type(error).__module__.partition(".")[0]
    if isinstance(error, BrokenExecutor) or engine_of in {"ray", "distributed"}:
        remedy = (
            f"chunks that are done are kept in {sharing.folder}: run the same again, and only the others are done."
            if sharing.folder is not None
            else "nothing is kept without a folder: give one (folder=..., or --out with --workers) and run again."
        )
        raise WorkerError(
            f"a worker of engine {sharing.engine!r} died ({type(error).__name__}). Mostly memory ran out, or something "
            f"killed it; fewer workers than {sharing.workers} need less memory. As to the results, {remedy}"
        ) from error
    if sharing.engine == "ray" and isinstance(error, ValueError) and "pool with" in str(error):
        raise ConfigError(f"workers = {sharing.workers}: {error} Give fewer, or -1 for all of them.") from error
