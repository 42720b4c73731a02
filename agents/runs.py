"""The folder of a training run: what it was asked for, its checkpoints, its curve, its result.

A kill at any moment leaves a folder to go on from. A checkpoint is written beside the others and then given its name;
it carries the curve up to it, so no point of the curve is lost or logged twice; those that it replaces are removed
after that. `curve.csv` is written anew from it, and again when the run is gone on with.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.storage import output_folder, write_whole

__all__ = ["FORMAT", "Best", "Checkpoint", "Run", "writing"]

FORMAT = 1
"""Of everything in the folder. A change that an older or newer program would misread counts it up."""

CONFIG, CURVE, RESULT = "config.json", "curve.csv", "run.json"
CHECKPOINTS, MANIFEST, UNFINISHED = "checkpoints", "checkpoint.json", ".unfinished-"


@dataclass(frozen=True)
class Best:
    """The best agent of a run so far, on the validation cases.

    Attributes:
        timesteps: when; the checkpoint of that name holds it.
        policy: in which form.
        value: mean of the scenario's objective.
    """

    timesteps: int
    policy: str
    value: float


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        timesteps: when.
        best: the best agent up to then.
        rows: the curve up to then.
        folder: where the learner's files are.
    """

    timesteps: int
    best: Best
    rows: list[dict[str, float]] = field(repr=False)
    folder: Path


class Run:
    """A run's folder.

    Args:
        folder: it.
        config: what ``config.json`` holds.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> Run:
        """Begin a run in a folder that has none.

        Raises:
            ConfigError: the folder holds a run, or the configuration cannot be written as JSON.
            PathError: it cannot be written.
        """
        output_folder(folder)
        if (folder / RESULT).exists():
            raise ConfigError(f"{folder} holds a finished run: choose another folder, or move that one away.")
        if (folder / CONFIG).exists():
            # The options are those of a run to begin.
            command = str(config.get("command", "")).partition(" --")[0]
            resume = (
                f"{command} --resume {shlex.quote(str(folder))}" if command else "train(recorded(out), resume=True)"
            )
            raise ConfigError(
                f"{folder} holds a run already: go on with it by '{resume}', choose another folder, or move that one "
                "away."
            )
        if (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir()):
            raise ConfigError(f"{folder / CHECKPOINTS} is there already, and not of this run: choose another folder.")
        _write_json(folder / CONFIG, {"format": FORMAT, **config})
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """A run to go on with.

        Raises:
            PathError: no such folder, or no run in it.
            FileFormatError: its ``config.json`` is damaged.
            ConfigError: it is of another format, or finished.
        """
        if not (folder / CONFIG).is_file():
            raise PathError(f"{folder} holds no run ({CONFIG} is not there): give the --out folder of one.")
        config = _read_json(folder / CONFIG, "begin the run again in another folder")
        _check_format(folder / CONFIG, config)
        if (folder / RESULT).exists():
            raise ConfigError(
                f"the run in {folder} is finished, its result is in {folder / RESULT}: there is nothing to go on with. "
                "To train longer, begin another run with more timesteps in another folder: what changes over a run "
                "(the learning rate, exploration) is set by its timesteps."
            )
        return cls(folder, {name: value for name, value in config.items() if name != "format"})

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's files go."""
        return self.folder / "tensorboard"

    def last(self) -> Checkpoint | None:
        """The last checkpoint, or ``None`` where the run was ended before the first.

        Raises:
            FileFormatError: it is damaged.
            ConfigError: it is of another format.
        """
        names = self._checkpoints()
        return self.at(int(names[-1])) if names else None

    def at(self, timesteps: int) -> Checkpoint:
        """The checkpoint of that moment, found whole.

        Raises:
            FileFormatError: it is damaged.
            ConfigError: it is of another format.
        """
        folder = self.checkpoint(timesteps)
        others = [name for name in self._checkpoints() if name != folder.name]
        remedy = (
            f"remove {folder} to go on from {self.checkpoint(int(others[-1]))}"
            if others
            else "there is no other checkpoint, begin the run again in another folder"
        )
        manifest = _read_json(folder / MANIFEST, remedy)
        _check_format(folder / MANIFEST, manifest)
        try:
            best, rows, files = Best(**manifest["best"]), list(manifest["rows"]), dict(manifest["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(folder / MANIFEST, f"damaged ({type(error).__name__}: {error}): {remedy}.") from error
        for name, digest in files.items():
            if not (folder / name).is_file():
                raise FileFormatError(folder / name, f"missing from the checkpoint: {remedy}.")
            if _digest(folder / name) != digest:
                raise FileFormatError(folder / name, f"damaged, not what was written: {remedy}.")
        return Checkpoint(timesteps, best, rows, folder)

    def save(
        self, timesteps: int, best: Best, rows: list[dict[str, float]], write: Callable[[Path], None]
    ) -> Checkpoint:
        """Write a checkpoint, then remove those that are neither it nor the best; then the curve.

        Args:
            timesteps: when.
            best: as for `Checkpoint`.
            rows: as for `Checkpoint`.
            write: writes the learner's files into the folder that it is given.

        Raises:
            PathError: it cannot be written; what was there is there still.
        """
        folder = self.checkpoint(timesteps)
        with writing(folder):
            folder.parent.mkdir(exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
            try:
                write(unfinished)
                files = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
                manifest = {"format": FORMAT, "best": asdict(best), "files": files, "rows": rows}
                _write_json(unfinished / MANIFEST, manifest)
                unfinished.chmod(0o755)
                unfinished.replace(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        needed = {folder, self.checkpoint(best.timesteps)}
        for other in folder.parent.iterdir():
            ours = other.name.isdecimal() or other.name.startswith(UNFINISHED)
            if ours and other not in needed:
                shutil.rmtree(other, ignore_errors=True)  # a later checkpoint tries again
        self.write_curve(rows)
        return Checkpoint(timesteps, best, rows, folder)

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``run.json``: the run is over.

        Raises:
            PathError: it cannot be written.
        """
        _write_json(self.folder / RESULT, {"format": FORMAT, **result})

    def write_curve(self, rows: list[dict[str, float]]) -> None:
        """Write ``curve.csv``.

        Raises:
            PathError: it cannot be written.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        with writing(self.folder / CURVE), write_whole(self.folder / CURVE) as path:
            path.write_text(text.getvalue(), encoding="utf-8")

    def checkpoint(self, timesteps: int) -> Path:
        """The folder of the checkpoint of that moment."""
        return self.folder / CHECKPOINTS / f"{timesteps:012d}"

    def _checkpoints(self) -> list[str]:
        """Names of those that are whole, by age."""
        folder = self.folder / CHECKPOINTS
        return sorted(path.name for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the disk into an error that says what to do.

    Raises:
        PathError: an OSError, or what torch makes of one.
    """
    try:
        yield
    except PathError:
        raise
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise PathError(
            f"cannot write {path}: {cause.strerror or cause}. Make room, or make the folder writable; then the run can "
            "go on from its last checkpoint (--resume)."
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        text = json.dumps(content, indent=1) + "\n"
    except TypeError as error:
        raise ConfigError(
            f"{path.name} cannot hold this run ({error}): give names and numbers for the scenario's arguments, so that "
            "it can be gone on with."
        ) from error
    with writing(path), write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PathError(f"cannot read {path}: {error.strerror or error}. If it is gone, {remedy}.") from error
    except ValueError as error:
        raise FileFormatError(path, f"damaged, not JSON ({error}): {remedy}.") from error
    if not isinstance(record, dict):
        raise FileFormatError(path, f"damaged, not a JSON object: {remedy}.")
    return record


def _check_format(path: Path, record: dict[str, Any]) -> None:
    if record.get("format") != FORMAT:
        raise ConfigError(
            f"{path} is of format {record.get('format')}, this version reads format {FORMAT}: go on with the version "
            "that wrote it, or begin a new run."
        )
