"""What decides: the protocol that rules, planners and learned agents share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

from llmsched_env.config import Scenario
from llmsched_env.engine.features import features
from llmsched_env.engine.rule import FunctionRule, PythonRule, Rule
from llmsched_env.engine.view import View
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Futures, Simulator

__all__ = [
    "Action",
    "EpisodeContext",
    "FunctionRule",
    "Policy",
    "PythonRule",
    "Rule",
    "View",
    "check_policy",
    "features",
]


class Action(IntEnum):
    """The kind of the next iteration.

    Where orders or caps are actions, or iterations may be mixed, there are more: `llmsched_env.actions.action_names`.
    """

    DECODE = 0
    PREFILL = 1


@dataclass(frozen=True)
class EpisodeContext:
    """What a policy is told when an episode begins: facts about the system, nothing about this case's requests.

    Attributes:
        scenario: clients, cost model, queues, and what may be known of lengths. A policy that is not clairvoyant goes
            by its ``believed_model``.
        mean_output_tokens: mean output length of the population that the requests are drawn from.
        seed: for policies that draw random numbers.
        simulator: the running episode itself, future included (what iterations will last, too, but not for
            ``fork(believed=True)``); given to clairvoyant policies only, else ``None``.
        futures: the running episode, to be gone on with as far as the scenario lets it be known; given to policies that
            say ``plans = True``, else ``None``.
        planned: decodes before each prefill of the joint plan, with ``order="joint"``; else ``None``.
    """

    scenario: Scenario
    mean_output_tokens: float
    seed: int = 0
    simulator: Simulator | None = None
    futures: Futures | None = None
    planned: tuple[int, ...] | None = None


@runtime_checkable
class Policy(Protocol):
    """Anything that chooses the next iteration: a prefill or a decode, or what else a scenario's actions are.

    It is asked only where there is a choice. It may also have a method ``compiled(start) -> Rule``; studies then
    run that inside the engine, which must give the same actions. With an attribute ``plans = True`` it is given the
    episode's futures, in which it can try actions without being told what the scenario hides.

    Where a decision costs much and a hundred at once hardly more, it may have ``together(starts) -> decide``: studies
    then begin many episodes at a time and call ``decide(episodes, views)`` with the numbers of those that wait for a
    decision and their views; it returns their actions, those that ``act`` gives to each but for rounding.

    A whole method that brings queues of its own has ``brings_queues = True``, and is refused on others.

    Attributes:
        name: what tables call it.
        kind: "rule", "planner" or "agent".
        clairvoyant: whether ``reset`` must be given the simulator, and with it the truth.
    """

    name: str
    kind: str
    clairvoyant: bool

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""

    def act(self, view: View) -> int:
        """Choose the next iteration: 0 a decode, 1 a prefill; more as `llmsched_env.actions.action_names` has them.

        Both kinds are feasible; where there are more than two actions it may be that nobody can decode.
        """


METHODS = ("reset", "act")
MEMBERS = ("name", "kind", "clairvoyant", *METHODS)
"""What a policy cannot be without."""

MOST_SHOWN = 200
"""Characters of what is no policy that a message repeats."""


def check_policy(policy: object, described: str | None = None) -> None:
    """Whether something is a policy.

    Args:
        policy: what is to be one.
        described: what to call it in the message; ``None`` for what it says of itself.

    Raises:
        ConfigError: it is none; says what it lacks.
    """
    missing = [part for part in MEMBERS if not hasattr(policy, part)]
    if isinstance(policy, type):  # of which an instance may have attributes of its own
        lacks = [part for part in missing if part in METHODS]
        raise ConfigError(
            f"{described or repr(policy)} is a class: give an instance of it, {policy.__name__}()."
            + f" It lacks {', '.join(lacks)}." * bool(lacks)
        )
    if missing:
        raise ConfigError(
            f"{described or _shown(policy)} is not a policy: it lacks {', '.join(missing)} (see "
            f"llmsched_env.policy.Policy). {_made_into_one(policy)}"
        )


def _shown(thing: object) -> str:
    """What it says of itself where that is short; a network prints a line a layer."""
    text = repr(thing)
    plain = len(text) <= MOST_SHOWN and "\n" not in text and not hasattr(thing, "predict")
    return text if plain else f"the {type(thing).__qualname__} object"


def _made_into_one(thing: object) -> str:
    """What makes a policy of it."""
    wrapped = "llmsched_env.agents.SB3Policy(model)"
    if hasattr(thing, "predict"):
        network = "" if hasattr(thing, "policy") else ", not its network"
        return f"Wrap the model of stable-baselines3{network}: {wrapped}."
    if hasattr(thing, "state_dict"):
        return (
            "A network of torch needs a class with these members around it, whose act(view) asks it about "
            f"llmsched_env.policy.features(view); a model of stable-baselines3 needs {wrapped}."
        )
    return "llmsched_env.baselines.make_policy makes one by name."
