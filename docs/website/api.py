"""The API reference: a page for each public module, with all that is in its ``__all__``, each thing in one place."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import llmsched_env
from llmsched_env.errors import MissingExtraError

from .markdown import plain, sentence, table

GROUPS = {
    "Environments": ["", "env", "vector_env", "replicas.env", "actions", "config", "errors"],
    "Policies": [
        "policy",
        "baselines",
        "baselines.registry",
        "baselines.tuned",
        "baselines.rule",
        "baselines.leaderboard",
    ],
    "Agents": ["agents", "agents.agent", "agents.files", "agents.network", "agents.vec_env", "agents.sb3_policy"],
    "Training": ["agents.training", "agents.evolution", "agents.algorithms", "agents.export"],
    "Simulation": [
        "simulator",
        "problem",
        "snapshot",
        "cases",
        "cost",
        "calibration",
        "workload",
        "offline",
        "viewer",
        "replicas",
    ],
    "Real engines": ["engines.driver", "engines.session", "engines.options"],
    "Evaluation": [
        "metrics",
        "evaluation",
        "evaluation.comparison",
        "evaluation.report",
        "evaluation.pictures",
        "evaluation.serving_pictures",
    ],
}
"""Modules of llmsched_env, under headings."""

MOCKED = ["torch", "stable_baselines3", "sb3_contrib", "ray", "tensorboard", "cmaes", "yaml", "threadpoolctl"]
"""Learning libraries, which are not needed to describe what uses them."""

MODULES = [f"llmsched_env.{name}".rstrip(".") for names in GROUPS.values() for name in names]


def pages() -> dict[str, str]:
    """Text by the name of its page."""
    loaded = {name: _loaded(name) for name in MODULES}
    texts = {f"api/{name}.md": _page(module, loaded) for name, module in loaded.items()}
    parts = ["# API reference", "What is public is what a module lists in `__all__`."]
    for heading, names in GROUPS.items():
        listed = [f"llmsched_env.{name}".rstrip(".") for name in names]
        rows = [(f"[`{name}`]({name}.md)", plain(sentence(loaded[name].__doc__ or ""))) for name in listed]
        tree = (
            "```{toctree}\n:hidden:\n:caption: "
            + heading
            + "\n\n"
            + "\n".join(_short(name) for name in listed)
            + "\n```"
        )
        parts += [f"## {heading}", table(("module", "has"), rows), tree]
    return {"api/index.md": "\n\n".join(parts), **texts}


def _loaded(name: str) -> ModuleType:
    """A module; one that needs a learning library that is not there, with stand-ins."""
    try:
        return importlib.import_module(name)
    except (ImportError, MissingExtraError):
        from sphinx.ext.autodoc.mock import mock

        with mock(MOCKED):
            return importlib.import_module(name)


def _short(name: str) -> str:
    """An entry of the list at the side."""
    return f"{name.removeprefix('llmsched_env.')} <{name}>"


def _page(module: ModuleType, loaded: dict[str, ModuleType]) -> str:
    name = module.__name__
    entries: dict[bool, list[str]] = {False: [], True: []}  # constants last
    elsewhere = []
    for public in module.__all__:
        thing = getattr(module, public)
        home = _home(module, public, loaded)
        if home != name:
            elsewhere.append(f"- {{py:obj}}`{home}.{public}`")
            continue
        entries[_is_constant(thing)].append(_directive(module, public, thing))
    parts = [
        f"# {name}",
        "```{eval-rst}",
        f".. automodule:: {name}",
        "   :no-members:",
        "",
        *entries[False],
        *entries[True],
        "```",
    ]
    if elsewhere:
        parts += ["", "Also here, and described where it belongs:", "", *elsewhere]
    return "\n".join(parts)


def _home(module: ModuleType, public: str, loaded: dict[str, ModuleType]) -> str:
    """The page that describes a thing: of those that list it, the one that is nearest to where it is defined."""
    thing = getattr(module, public)
    defined = getattr(thing, "__module__", None) if callable(thing) else None
    listing = [
        name
        for name, other in loaded.items()
        if public in other.__all__ and other.__dict__.get(public, _ABSENT) is thing
    ]
    near = [name for name in listing if f"{defined or _source(module.__name__, public)}.".startswith(f"{name}.")]
    return max(near, key=len) if near else (listing or [module.__name__])[0]


_ABSENT = object()
"""In place of what a module makes on demand."""


def _directive(module: ModuleType, public: str, thing: Any) -> str:
    name = f"{module.__name__}.{public}"
    if inspect.isclass(thing):
        named = "   :undoc-members:\n" * issubclass(thing, enum.Enum)
        return f".. autoclass:: {name}\n   :members:\n   :member-order: bysource\n{named}"
    if not _is_constant(thing):
        return f".. autofunction:: {name}\n"
    kind = type(thing).__name__
    text = _constant(_source(module.__name__, public), public)
    value = repr(thing)
    shown = f"   :value: {value}\n" if len(value) <= 80 and " at 0x" not in value else ""
    described = "\n".join(f"   {line}" for line in text.splitlines())
    return f".. py:data:: {public}\n   :module: {module.__name__}\n   :type: {kind}\n{shown}\n{described}\n"


def _is_constant(thing: Any) -> bool:
    return not inspect.isclass(thing) and (not callable(thing) or hasattr(type(thing), "__iter__"))


def _source(module: str, public: str) -> str:
    """The module that a name is imported from, or this one."""
    while True:
        froms = [node for node in ast.walk(ast.parse(_text(module))) if isinstance(node, ast.ImportFrom)]
        found = [str(node.module) for node in froms if any((a.asname or a.name) == public for a in node.names)]
        if not found or not found[0].startswith("llmsched_env"):
            return module
        module = found[0]


def _text(module: str) -> str:
    """The source of a module, compiled or not."""
    found = Path(llmsched_env.__file__).parent.joinpath(*module.split(".")[1:])
    file = found / "__init__.py" if found.is_dir() else found.with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _constant(module: str, public: str) -> str:
    """The string below an assignment."""
    body = ast.parse(_text(module)).body
    for node, following in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = {getattr(part, "id", "") for target in targets for part in ast.walk(target or ast.Pass())}
        if public in named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return inspect.cleandoc(str(following.value.value))
    return ""
