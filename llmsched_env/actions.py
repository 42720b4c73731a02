"""What each number of an action space means."""

from __future__ import annotations

from typing import NamedTuple

from llmsched_env.config import CAP_LEVELS, ORDER_CODES
from llmsched_env.engine import codes
from llmsched_env.errors import InvalidActionError

__all__ = ["NamedAction", "Variants", "action_names", "action_table", "outside_space"]


class NamedAction(NamedTuple):
    """One action.

    Attributes:
        name: what messages and pictures call it.
        kind: codes.DECODE, PREFILL or MIXED.
        order: in which it takes waiting requests, one of `llmsched_env.config.ORDER_CODES`.
        cap: most active clients that it leads to.
    """

    name: str
    kind: int
    order: int
    cap: int


class Variants(NamedTuple):
    """What the actions of a scenario choose.

    Attributes:
        order: the order, where no action chooses it.
        choose_order: whether each order is an action of its own.
        cap_levels: caps on active clients that are actions; 0 for none.
        mixes: whether there are mixed iterations.
    """

    order: str = "fcfs"
    choose_order: bool = False
    cap_levels: int = 0
    mixes: bool = False


def action_table(variants: Variants, num_clients: int) -> tuple[NamedAction, ...]:
    """A decode; then a prefill for each order or cap; then, where iterations may be mixed, a mixed one for each."""
    table = [NamedAction("decode", codes.DECODE, 0, num_clients)]
    kinds = [("prefill", codes.PREFILL), *([("mixed", codes.MIXED)] if variants.mixes else [])]
    for name, kind in kinds:
        if variants.choose_order:
            table += [NamedAction(f"{name} {order}", kind, code, num_clients) for order, code in ORDER_CODES.items()]
            continue
        order = ORDER_CODES[variants.order]
        table.append(NamedAction(name, kind, order, num_clients))
        for level in range(variants.cap_levels - 1, 0, -1):
            cap = -(-level * num_clients // variants.cap_levels)
            table.append(NamedAction(f"{name} up to {level}/{variants.cap_levels} of the clients", kind, order, cap))
    return tuple(table)


def action_names(num_actions: int) -> tuple[str, ...]:
    """(num_actions,) names: a decode and a prefill, with or without a mixed iteration; or prefills by order or cap."""
    if num_actions <= 3:
        return ("decode", "prefill", "mixed")[:num_actions]
    if num_actions == 1 + CAP_LEVELS:
        caps = (f"prefill up to {level}/{CAP_LEVELS} of the clients" for level in range(CAP_LEVELS - 1, 0, -1))
        return ("decode", "prefill", *caps)
    return ("decode", *(f"prefill {order}" for order in ORDER_CODES))


def outside_space(what: str, num_actions: int) -> InvalidActionError:
    """The error for an action, described by ``what``, that is not in the space."""
    named = ", ".join(f"{number} is {name}" for number, name in enumerate(action_names(num_actions)))
    return InvalidActionError(f"{what} is not in Discrete({num_actions}): {named}.")
