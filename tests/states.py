"""States of episodes and fields of views as plain values, to be compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.engine import codes
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.view import FIELDS, View
from llmsched_env.simulator import Simulator
from llmsched_env.snapshot import State, snapshot

SCRATCH = {"chosen", "recorder"}
SCRATCH_OF_A_CACHE = {"ending", "ending_context", "batch", "batch_growth", "batch_reserved", "company"}
SCRATCH_OF_A_CACHE |= {"this_growth", "next_growth", "later"}
"""What an iteration writes before it reads it, and recordings, which begin anew."""

Values = dict[str, Any]


def fields(view: View) -> dict[str, float]:
    """All fields of a view."""
    return {name: getattr(view, name) for name in FIELDS}


def state_of(episode: Episode | Simulator, *, order: bool = True) -> Values:
    """Everything that decides how an episode goes on; how much of it was recorded does not.

    Args:
        episode: where it stands.
        order: with the order in which clients are found that finish at one decode. It makes no difference but to the
            rounding of a sum of TPOTs, and depends on whether the episode was moved to other lengths.
    """
    inner = episode.episode if isinstance(episode, Simulator) else episode
    found = dict(_flat(snapshot(inner)))
    if not order:
        found["ending"] = _together(inner)
        found["clients"] = np.delete(np.array(found["clients"]), codes.NEXT, axis=1).tolist()
        found["totals.tpot_sum_ns"] = f"{found['totals.tpot_sum_ns']:.9g}"
    return found


def _flat(state: State, path: str = "") -> Any:
    for name, value in state.items():
        if isinstance(value, dict):
            if name not in SCRATCH:
                yield from _flat(value, f"{path}{name}.")
        elif path == "kv." and name in SCRATCH_OF_A_CACHE:
            continue
        elif path.startswith("next_"):  # rows beyond the last are left over, and clients are known when it is run
            if name != "client":
                yield path + name, value[: state["rows"]].tolist() if isinstance(value, np.ndarray) else value
        else:
            yield path + name, value.tolist() if isinstance(value, np.ndarray) else value


def _together(episode: Episode) -> list[list[int]]:
    """Clients that finish at each decode of the ring."""
    chains = []
    for first in np.asarray(episode.ending).tolist():
        chain, client = [], first
        while client >= 0:
            chain.append(client)
            client = int(episode.clients[client, codes.NEXT])
        chains.append(sorted(chain))
    return chains
