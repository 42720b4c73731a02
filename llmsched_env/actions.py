"""What each number of an action space means."""

from __future__ import annotations

from llmsched_env.config import CAP_LEVELS
from llmsched_env.core.layout import ORDER_CODES
from llmsched_env.errors import InvalidActionError

__all__ = ["action_names", "outside_space"]


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
