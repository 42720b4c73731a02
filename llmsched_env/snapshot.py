"""An episode as plain values, to be kept, compared or sent to another process."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import View, fields_of

__all__ = ["restore", "snapshot"]

State = dict[str, Any]

ENGINE = "llmsched_env.engine."
PLAIN = (bool, int, float, str)

_NAMES: dict[type, tuple[str, ...]] = {}
"""Of the fields of each class, once found."""


def snapshot(part: Any) -> State:
    """All fields of an episode, or of a part of it: numbers, copies of arrays, and snapshots of its parts.

    The problem and its costs are left to their owner. Nobody runs what is made of it.
    """
    state: State = {}
    kind = type(part)
    for name in _NAMES.get(kind) or _NAMES.setdefault(kind, fields_of(kind)):
        if name == "running":
            continue
        value = getattr(part, name)
        if type(value) in PLAIN:  # most fields, by far
            state[name] = value
        elif isinstance(value, ProblemData | Costs) or value is None:
            continue
        elif type(value).__module__.startswith(ENGINE):
            state[name] = snapshot(value)
        else:
            state[name] = value if isinstance(value, PLAIN) else np.array(value)
    return state


def restore(part: Any, state: State) -> None:
    """Write a snapshot of the same class and sizes back."""
    for name, value in state.items():
        if isinstance(value, dict):
            held = getattr(part, name)
            if isinstance(held, View):
                part.set_view(View(**value))
            else:
                restore(held, value)
        elif isinstance(value, np.ndarray):
            held = getattr(part, name)
            if np.shape(held) == value.shape:
                np.asarray(held)[...] = value
            else:  # a log that has grown
                setattr(part, name, view_of(value))
        else:
            setattr(part, name, value)
