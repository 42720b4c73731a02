"""Agents on disk: plain arrays and a text, so that reading a file runs no code of it.

A file is a NumPy archive (npz). ``metadata`` is JSON in UTF-8, as uint8; network n has float64 arrays ``n.weight_i``
(outputs, inputs) and ``n.bias_i`` (outputs,), one pair a layer, and ``n.skip`` where it has a skip. Object arrays are
refused: they are pickles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env import __version__
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.network import Network
from llmsched_env.engine.features import ALL_FEATURES
from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError
from llmsched_env.storage import write_whole

__all__ = ["AgentFile", "load_agent", "shipped", "shipped_agent", "shipped_digest"]

FORMAT = 1
MOST_BYTES = 2**26
"""Of all arrays of a file: a network takes some 10 kB."""

WEIGHTS = Path(__file__).with_name("weights")
PLAIN = ("head", "actions", "activation", "masked", "base", "base_limit")
"""Fields of a network that JSON keeps as they are."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class AgentFile:
    """What the file of an agent holds.

    Attributes:
        trained: its networks, and where each was trained; at least one.
        made_by: the command that made it.
        seeds: of the training.
        version: of this package, when it was written.

    Raises:
        ConfigError: no networks.
    """

    trained: tuple[Trained, ...]
    made_by: str
    seeds: tuple[int, ...] = ()
    version: str = __version__

    def __post_init__(self) -> None:
        if not self.trained:
            raise ConfigError("an agent without networks decides nothing: give at least one.")

    def write(self, path: Path | str) -> None:
        """Write the file, whole; the same contents make the same bytes.

        Raises:
            ConfigError: a name that does not end in .npz.
            PathError: the folder cannot be written.
        """
        if Path(path).suffix != ".npz":
            raise ConfigError(f"cannot write agent {path}: its name has to end in .npz.")
        metadata = {
            "format": FORMAT,
            "version": self.version,
            "made_by": self.made_by,
            "seeds": [int(seed) for seed in self.seeds],
            "networks": [_described(one) for one in self.trained],
        }
        arrays: dict[str, Any] = {"metadata": np.frombuffer(json.dumps(metadata).encode(), np.uint8)}
        for number, one in enumerate(self.trained):
            for layer, (weight, bias) in enumerate(one.network.layers):
                arrays[f"{number}.weight_{layer}"], arrays[f"{number}.bias_{layer}"] = weight, bias
            if one.network.skip is not None:
                arrays[f"{number}.skip"] = one.network.skip
        with write_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def read(cls, path: Path | str) -> AgentFile:
        """Read the file. No code of it is run, whoever wrote it.

        Raises:
            PathError: it cannot be read.
            FileFormatError: it is no agent, damaged, of another format, or for another observation table.
        """
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # the latter of characters that no path has
            shown, why = (path, error.strerror or error) if isinstance(error, OSError) else (repr(str(path)), error)
            raise PathError(f"cannot read {shown}: {why}. Give the .npz file of an agent.") from None
        arrays = _arrays(path, content)
        try:
            metadata = json.loads(arrays["metadata"].astype(np.uint8).tobytes())
            if metadata["format"] != FORMAT:
                raise FileFormatError(
                    path,
                    f"written by another version: its format is {metadata['format']!r}, this version reads {FORMAT}. "
                    f"Take llmsched-env {metadata['version']}, or make the agent again.",
                )
            for number, one in enumerate(metadata["networks"]):
                _check_table(path, f"network {number}", one, metadata["version"])
            trained = [_trained(number, one, arrays) for number, one in enumerate(metadata["networks"])]
            return cls(
                tuple(trained), str(metadata["made_by"]), tuple(map(int, metadata["seeds"])), str(metadata["version"])
            )
        except FileFormatError:
            raise
        except KeyError as error:
            raise FileFormatError(path, f"not an agent, or damaged: {error} is missing. Take another copy.") from error
        except Exception as error:  # whatever values of other types and shapes raise
            problem = str(error).rstrip(".")
            raise FileFormatError(path, f"not an agent, or damaged: {problem}. Take another copy.") from error


def _arrays(path: Path | str, content: bytes) -> Arrays:
    """The arrays of an archive.

    Raises:
        FileFormatError: it is none, damaged, or too large; or holds objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise ConfigError(f"{size} bytes of arrays, at most {MOST_BYTES} are read.")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy raise whatever the damaged part raises
        raise FileFormatError(
            path, f"not an agent, or damaged ({type(error).__name__}: {error}). Take another copy."
        ) from error


def _described(one: Trained) -> dict[str, Any]:
    network = one.network
    return {
        "origin": dataclasses.asdict(one.origin),
        "features": network.features,
        "table": _table(network.features),
        "layers": len(network.layers),
        "skip": network.skip is not None,
        "base_values": [float(value) for value in network.base_values],
        **{name: getattr(network, name) for name in PLAIN},
    }


def _trained(number: int, entry: Mapping[str, Any], arrays: Arrays) -> Trained:
    layers = [
        (_floats(arrays, f"{number}.weight_{layer}"), _floats(arrays, f"{number}.bias_{layer}"))
        for layer in range(entry["layers"])
    ]
    network = Network(
        tuple(entry["features"]),
        tuple(layers),
        skip=_floats(arrays, f"{number}.skip") if entry["skip"] else None,
        base_values=tuple(entry["base_values"]),
        **{name: entry[name] for name in PLAIN},
    )
    return Trained(network, Origin(**entry["origin"]))


def _floats(arrays: Arrays, name: str) -> NDArray[np.float64]:
    array = arrays[name]
    if array.dtype.kind != "f":
        raise ConfigError(f"array {name!r} is of {array.dtype}, it has to be of floats.")
    return array.astype(np.float64)


def _table(features: Sequence[str]) -> str:
    """What tells the meaning of these features from another: a hash (hex) of their formulas."""
    formulas = dict(ALL_FEATURES)
    text = "\n".join(f"{name}: {formulas[name]}" for name in features)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_table(path: Path | str, what: str, entry: Mapping[str, Any], version: str) -> None:
    known = dict(ALL_FEATURES)
    missing = [name for name in entry["features"] if name not in known]
    if missing or _table(entry["features"]) != entry["table"]:
        reads = f"feature {missing[0]!r}, which is not there" if missing else "features whose formulas were others"
        raise FileFormatError(
            path,
            f"an agent for another observation table: {what} reads {reads} in llmsched-env {__version__}. Take "
            f"llmsched-env {version}, or make the agent again.",
        )


def shipped() -> list[str]:
    """Names of the agents that are part of the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.npz"))


def shipped_digest() -> str:
    """Content hash (hex) of their files."""
    files = [path.read_bytes() for path in sorted(WEIGHTS.glob("*.npz"))]
    return hashlib.sha256(b"".join(files)).hexdigest()[:12]


def load_agent(name: str | Path) -> Agent:
    """An agent that is shipped, by its name; or of a file, by its path, which ends in .npz. Runs no code of the file.

    Raises:
        UnknownNameError: no such agent is shipped.
        PathError: the file cannot be read.
        FileFormatError: it is no agent, damaged, of another format, or for another observation table.
    """
    path = Path(name)
    if path.suffix.lower() != ".npz":
        if (path / "agent.npz").is_file():
            raise PathError(f"{name} is a folder: give {path / 'agent.npz'}.")
        if path.suffix.lower() == ".zip":
            raise PathError(
                f"{name} is a model of stable-baselines3, which can run code: llmsched_env.agents.sb3_policy.SB3Policy"
                ".load takes it, and python -m llmsched_env.agents.export makes an .npz file of it."
            )
        if str(name) not in shipped():
            raise UnknownNameError("agent (one that is shipped, or the path of an .npz file):", str(name), shipped())
        path = WEIGHTS / f"{name}.npz"
    return Agent(path.stem, AgentFile.read(path).trained)


def shipped_agent() -> Agent:
    """The trained networks of all files that are shipped, as one agent: it takes the one that fits the scenario."""
    return Agent("agent", [one for name in shipped() for one in load_agent(name).trained])
