"""A scenario: everything that a study may vary, checked at the door. Touches no disk and runs no solver."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload import SPLITS, Workload, workload

__all__ = [
    "ASSIGNMENTS",
    "LENGTHS",
    "MAX_CLIENTS",
    "ORDERS",
    "QUEUES",
    "REWARDS",
    "Scenario",
    "checked_options",
    "merged",
    "whole",
]

QUEUES = ("client", "shared")
ASSIGNMENTS = ("mip", "lpt", "round_robin")
ORDERS = ("fcfs", "longest_first", "shortest_first")
"""Orders of a queue: by release; by estimated output, longest or shortest first (ties by release)."""

LENGTHS = ("known", "predicted", "hidden")
REWARDS = ("excess", "makespan", "idle", "latency")
MAX_CLIENTS = 2**20


@dataclass(frozen=True)
class Scenario:
    """What is served, by what, in which order, and what may be known of it.

    Attributes:
        workload: a name ("gsm8k", "gsm8k-smooth", "lognormal", ...), the path of a CSV file, or a `Workload`.
        split: "train", "validation" or "test": disjoint pools of cases.
        num_clients: J, the decode slots.
        num_requests: requests of a case; ``None`` for the workload's own number, else drawn with replacement.
        cost: a preset's name or a `CostModel`.
        prefill_token_cap: most prompt tokens in one prefill; ``None`` for the cost model's own.
        queue: "client" for a queue at each client, filled by ``assignment``; "shared" for one queue.
        assignment: "mip", "lpt" or "round_robin" (client queues only).
        order: "fcfs", "longest_first" or "shortest_first" by estimated output, within each queue.
        stealing: idle clients with an empty queue take waiting requests of others (client queues only).
        lengths: what a scheduler knows of output lengths. "known": the truth. "predicted": the workload's
            ``predicted_tokens``. "hidden": nothing but the population's mean. Assignment, order, stealing and the
            observation all use the same estimate.
        reward: "excess", "makespan", "idle" or "latency" (see llmsched_env.core.reward).
        skip_forced: a step goes on through iterations that offer no choice.
        max_iterations: truncate an episode there; ``None`` for no horizon.

    Raises:
        ConfigError: a value out of range or options that contradict each other.
        UnknownNameError: a name that does not exist.
    """

    workload: str | Path | Workload = "gsm8k"
    split: str = "train"
    num_clients: int = 200
    num_requests: int | None = None
    cost: str | CostModel = "llama-65b-paper"
    prefill_token_cap: int | None = None
    queue: str = "client"
    assignment: str = "mip"
    order: str = "longest_first"
    stealing: bool = True
    lengths: str = "known"
    reward: str = "excess"
    skip_forced: bool = False
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("split", SPLITS),
            ("queue", QUEUES),
            ("assignment", ASSIGNMENTS),
            ("order", ORDERS),
            ("lengths", LENGTHS),
            ("reward", REWARDS),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        for name, most in (
            ("num_clients", MAX_CLIENTS),
            ("num_requests", 2**24),
            ("prefill_token_cap", 2**31 - 1),
            ("max_iterations", 2**62),
        ):
            if getattr(self, name) is not None or name == "num_clients":
                object.__setattr__(self, name, whole(name, getattr(self, name), 1, most))
        for name in ("stealing", "skip_forced"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither True nor False.")
        self.cost_model  # noqa: B018  # checks the preset and the cap now, not at the first reset
        try:
            hash(self.source)
        except TypeError:
            raise ConfigError(
                f"workload {self.source!r} cannot be hashed, but its cases are kept by it: make it a frozen dataclass."
            ) from None

    @property
    def cost_model(self) -> CostModel:
        """The cost model, with this scenario's cap."""
        model = cost_model(self.cost)
        return model if self.prefill_token_cap is None else model.with_cap(self.prefill_token_cap)

    @property
    def source(self) -> Workload:
        """The workload itself."""
        return workload(self.workload)

    def replace(self, **changes: Any) -> Scenario:
        """The same scenario with some arguments changed.

        Raises:
            UnknownNameError: no such argument.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in fields:
                raise UnknownNameError("scenario argument", name, fields)
        return dataclasses.replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """The arguments as plain JSON values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["workload"] = self.source.name
        plain["cost"] = dataclasses.asdict(self.cost_model)
        return plain


def merged(scenario: Scenario | None, arguments: dict[str, Any]) -> Scenario:
    """``scenario``, or the default one, with the arguments that an environment was made with.

    Raises:
        ConfigError: not a scenario, or one that contradicts an argument.
        UnknownNameError: no such argument.
    """
    if scenario is not None and not isinstance(scenario, Scenario):
        raise ConfigError(f"scenario = {scenario!r} is not a Scenario: make one with Scenario(...).")
    found = (scenario or Scenario()).replace(**arguments)
    for name, value in arguments.items():
        given = getattr(scenario, name, value)
        # An explicit default looks like none given; but the workload is what an id is about.
        if given != value and (name == "workload" or given != getattr(Scenario, name)):
            raise ConfigError(
                f"scenario has {name} = {given!r}, but {name} = {value!r} is given beside it or fixed by the "
                "environment id: leave one out, or pass the scenario to the environment's class itself."
            )
    return found


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
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} = {value!r} is not a whole number.")
    number = int(value.__index__())
    if not least <= number <= most:
        raise ConfigError(f"{name} = {value} is out of range: it lies in [{least}, {most}].")
    return number
