"""What tells one policy from another, as far as that can be seen from outside: its state and its sources."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

from llmsched_env.errors import ConfigError
from llmsched_env.sources import UPPER

__all__ = ["fingerprint"]

OWN = "llmsched_env"
"""This package: whoever uses a fingerprint adds `llmsched_env.sources.package_digest`, which knows all but `UPPER`."""

SOURCES = (".py", ".json")


class _Modules(pickle.Unpickler):
    """Unpickles, and notes the modules of the classes and functions that a pickle names but does not contain."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(module)
        return super().find_class(module, name)


def fingerprint(pickled: bytes, what: str) -> str:
    """Hash (hex) of a pickle made by cloudpickle and of the code that it names.

    The code is: of an installed package, its version; of any other package, all its sources; of a module in no package,
    all modules in its folder. Two fingerprints may differ though nothing that matters does; the other way round it
    takes something that is seen in neither: a file that is read while the policy runs, a module in a third place.

    Args:
        pickled: an object.
        what: what it is called in errors.

    Raises:
        ConfigError: the pickle contains code (of a script, a notebook, a lambda), which is never twice the same, or
            names code that is in no file.
    """
    reader = _Modules(pickled)
    reader.load()
    digest = hashlib.sha256(pickled)
    for root in sorted({_root(name) for name in reader.names} - {OWN}):
        if root in sys.stdlib_module_names and root != "__main__":
            continue
        code = None if root in {"cloudpickle", "__main__"} else _code(root)
        if code is None:
            raise ConfigError(
                f"{what} cannot be told from a changed one, since its code is in no module that can be imported: "
                "move it to a module, or give key=..., a text that you change whenever it changes."
            )
        digest.update(f"{root} {code} ".encode())
    return digest.hexdigest()


def _root(module: str) -> str:
    """The package, or the part of this one, that a module is in."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if first == OWN and rest and rest[0] in UPPER else first


def _code(root: str) -> str | None:
    """What a module or package is made of, or ``None`` where that cannot be seen."""
    module = sys.modules[root]
    places = [Path(place) for place in getattr(module, "__path__", [])]
    file = getattr(module, "__file__", None)
    if not places and file is None:
        return None
    first = places[0] if places else Path(file).parent  # type: ignore[arg-type]
    if any(first.is_relative_to(installed) for installed in _installed()):
        return " ".join(sorted(_versions(root)))
    digest = hashlib.sha256()
    paths = [path for place in places for path in place.rglob("*")] if places else first.glob("*")
    for source in sorted(path for path in paths if path.suffix in SOURCES and path.is_file()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


@functools.cache
def _installed() -> list[Path]:
    return [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]


@functools.cache
def _versions(root: str) -> list[str]:
    distributions = metadata.packages_distributions().get(root.partition(".")[0], ())
    return [f"{name} {metadata.version(name)}" for name in distributions]
