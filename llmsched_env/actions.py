"""What each number of an action space means: a table of named actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llmsched_env.config import CAP_LEVELS, ORDER_CODES, WAIT_PERCENTS, Scenario, order_code
from llmsched_env.engine import codes
from llmsched_env.errors import InvalidActionError

__all__ = ["NamedAction", "Variants", "action_names", "action_number", "action_table", "actions_of", "outside_space"]


class NamedAction(NamedTuple):
    """One action.

    Attributes:
        name: what messages and pictures call it.
        kind: codes.DECODE, PREFILL or MIXED.
        order: in which it takes waiting requests, one of `llmsched_env.config.ORDER_CODES`.
        cap: most active clients that it leads to.
        idle_until: idle clients until which a decode is repeated where a step goes on to the next choice; 0 for none.
    """

    name: str
    kind: int
    order: int
    cap: int
    idle_until: int = 0


class Variants(NamedTuple):
    """What the actions of a scenario choose.

    Attributes:
        order: the order, where no action chooses it.
        choose_order: whether each order is an action of its own.
        cap_levels: caps on active clients that are actions; 0 for none.
        mixes: whether there are mixed iterations.
        choose_length: whether windows of the queue, longest first, and waits are actions.
    """

    order: str = "fcfs"
    choose_order: bool = False
    cap_levels: int = 0
    mixes: bool = False
    choose_length: bool = False


def action_table(variants: Variants, num_clients: int) -> tuple[NamedAction, ...]:
    """A decode; a prefill for each order or cap; where iterations may be mixed, a mixed one for each; then waits."""
    table = [NamedAction("decode", codes.DECODE, 0, num_clients)]
    kinds = [("prefill", codes.PREFILL), *([("mixed", codes.MIXED)] if variants.mixes else [])]
    for name, kind in kinds:
        if variants.choose_order:
            table += [NamedAction(f"{name} {order}", kind, code, num_clients) for order, code in ORDER_CODES.items()]
            continue
        if variants.choose_length:
            table.append(NamedAction(f"{name} longest first", kind, 0, num_clients))
            table += [
                NamedAction(f"{name} {part}/{codes.LAST_WINDOW} along", kind, codes.WINDOW + part, num_clients)
                for part in range(1, codes.LAST_WINDOW + 1)
            ]
            continue
        order = order_code(variants.order)
        table.append(NamedAction(name, kind, order, num_clients))
        for level in range(variants.cap_levels - 1, 0, -1):
            cap = -(-level * num_clients // variants.cap_levels)
            table.append(NamedAction(f"{name} up to {level}/{variants.cap_levels} of the clients", kind, order, cap))
    if variants.choose_length:
        for percent in WAIT_PERCENTS:
            idle = max(1, percent * num_clients // 100)
            name = f"decode until {percent} % of the clients are idle"
            table.append(NamedAction(name, codes.DECODE, 0, num_clients, idle))
    return tuple(table)


def actions_of(scenario: Scenario) -> tuple[NamedAction, ...]:
    """(num_actions,) a scenario's actions."""
    caps = CAP_LEVELS if scenario.choose_cap else 0
    order = scenario.order if scenario.serving and scenario.queue == "shared" else "fcfs"
    return action_table(
        Variants(order, scenario.choose_order, caps, scenario.mixes, scenario.choose_length), scenario.num_clients
    )


def action_names(scenario: Scenario) -> tuple[str, ...]:
    """(num_actions,) their names."""
    return tuple(action.name for action in actions_of(scenario))


def action_number(answer: Any, names: Sequence[str]) -> int:
    """The action that an answer is, among those of these names.

    Raises:
        InvalidActionError: it is none of them.
    """
    if (isinstance(answer, np.ndarray) and answer.ndim) or answer not in range(len(names)):
        raise outside_space(f"action {answer!r}", names)
    return int(answer)


def outside_space(what: str, names: Sequence[str]) -> InvalidActionError:
    """The error for an action, described by ``what``, that is not among those of these names."""
    named = ", ".join(f"{number} is {name}" for number, name in enumerate(names))
    return InvalidActionError(f"{what} is not in Discrete({len(names)}): {named}.")
