"""How an environment is given its arguments, and how its ``EnvSpec`` goes to JSON and comes back.

``EnvSpec.to_json`` turns every dataclass into a dictionary that does not say of which class it was. So the
environments keep a `Spec`, which does, and take such dictionaries where they take the objects.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from llmsched_env import workload
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, MeasuredCost, MixedCost
from llmsched_env.errors import ConfigError, UnknownArgumentError

__all__ = ["CLASSES", "Spec", "WithSpec", "merged", "restored"]

CLASSES = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            Path,
            Scenario,
            CostModel,
            MeasuredCost,
            MixedCost,
            workload.CsvWorkload,
            workload.GammaWorkload,
            workload.Gsm8kSmoothWorkload,
            workload.Gsm8kWorkload,
            workload.LognormalWorkload,
            workload.MixtureWorkload,
            workload.QuantileLaw,
            workload.QuantileWorkload,
            workload.ServingWorkload,
            workload.TraceWorkload,
            workload.DiurnalArrivals,
            workload.GammaArrivals,
            workload.OnOffArrivals,
            workload.PoissonArrivals,
            workload.NoisyTruth,
            workload.Population,
            workload.PromptRegression,
            workload.UnevenTruth,
        )
    }
)
"""What is written with its class: ``{"class": name, **fields}``."""

OWN_ARGUMENTS = frozenset(
    {"scenario", "render_mode", "render_size", "render_every", "reuse_buffers", "max_episode_steps"}
)
"""What an environment is made with beside the arguments of a `Scenario`."""

_USUAL = {
    "scenario": Scenario,
    "cost": CostModel,
    "believed_cost": CostModel,
    "mixed_cost": MixedCost,
    "mixed": MixedCost,
}
"""Of which class a dictionary is that does not say so, by argument: what ``dataclasses.asdict`` gives is taken too."""


def merged(scenario: Any, arguments: Mapping[str, Any]) -> Scenario:
    """``scenario``, or the default one, with the arguments that an environment was made with.

    Raises:
        ConfigError: not a scenario, or one that contradicts an argument.
        UnknownArgumentError: no such argument.
    """
    scenario = restored("scenario", scenario)
    if scenario is not None and not isinstance(scenario, Scenario):
        raise ConfigError(f"scenario = {scenario!r} is not a Scenario: make one with Scenario(...).")
    known = {field.name for field in dataclasses.fields(Scenario)}
    for name in arguments:
        if name not in known:
            raise UnknownArgumentError(name, known | OWN_ARGUMENTS)
    arguments = {name: restored(name, value) for name, value in arguments.items()}
    merged_scenario = (scenario or Scenario()).replace(**arguments)
    for name, value in arguments.items():
        given = getattr(scenario, name, value)
        # An explicit default looks like none given; but the workload is what an id is about.
        if given != value and (name == "workload" or given != getattr(Scenario, name)):
            raise ConfigError(
                f"scenario has {name} = {given!r}, but {name} = {value!r} is given beside it or fixed by the "
                "environment id: leave one out, or pass the scenario to the environment's class itself."
            )
    return merged_scenario


def restored(name: str, value: Any) -> Any:
    """The value of an argument, where it may have come from JSON: a dictionary becomes the object that it describes.

    Raises:
        ConfigError: a dictionary that describes none.
        UnknownArgumentError: of a scenario, with an argument that does not exist.
    """
    if isinstance(value, list):
        return tuple(restored(name, item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: restored(key, item) for key, item in value.items() if key != "class"}
    kind = _USUAL.get(name) if "class" not in value else CLASSES.get(str(value["class"]))
    if kind is CostModel and "mixed" in fields:
        kind = MeasuredCost
    if kind is None:
        raise ConfigError(
            f"{name} = {value!r} is a dictionary that does not say what it was: give the object, or add its 'class', "
            f"one of {', '.join(sorted(CLASSES))}."
        )
    if kind is Scenario:
        return Scenario().replace(**fields)
    if kind is Path:
        return Path(str(fields.get("path", "")))
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{name} = {value!r} does not make a {kind.__name__}: {error}.") from None


def _written(name: str, value: Any) -> Any:
    """The value of an argument as JSON has it, such that `restored` gives it back."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_written(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _written(key, item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return {"class": "Path", "path": str(value)}
    if type(value) in CLASSES.values():
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {"class": type(value).__name__, **{field: _written(field, getattr(value, field)) for field in fields}}
    raise ConfigError(
        f"{name} = {value!r} cannot be written to JSON: only names, numbers, paths and objects of this package's own "
        "classes can. Pickle the spec instead, or leave the argument out of it and give it to gymnasium.make."
    )


class Spec(EnvSpec):
    """A specification whose arguments survive the way to JSON and back."""

    @classmethod
    def of(cls, spec: EnvSpec) -> Spec:
        """The same under this class."""
        return cls(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec) if field.init})

    def to_json(self) -> str:
        """As the base class does it; objects are written with their class.

        Raises:
            ConfigError: an argument that JSON cannot hold.
        """
        plain = copy.copy(self)
        plain.kwargs = {name: _written(name, value) for name, value in self.kwargs.items()}
        return EnvSpec.to_json(plain)

    def __eq__(self, other: object) -> bool:
        # The base class compares specs of one class only, and those that come from JSON are of its own.
        if not isinstance(other, EnvSpec):
            return NotImplemented
        return all(_compared(self, field.name) == _compared(other, field.name) for field in dataclasses.fields(EnvSpec))

    __hash__ = None  # type: ignore[assignment]  # as the base class


def _compared(spec: EnvSpec, field: str) -> Any:
    """A field of a specification, such that an argument equals what JSON made of it."""
    value = getattr(spec, field)
    if field != "kwargs":
        return value
    try:
        return {name: _written(name, item) for name, item in value.items()}
    except ConfigError:  # an object that JSON cannot hold is equal to itself only
        return value


class WithSpec:
    """What the environments keep of the specification that Gymnasium gives them."""

    _spec: Spec | None = None

    @property
    def spec(self) -> Spec | None:
        """How the environment was made; ``None`` where its class was called."""
        return self._spec

    @spec.setter
    def spec(self, given: EnvSpec | None) -> None:
        self._spec = None if given is None else Spec.of(given)
