"""States of episodes and fields of views as plain values, to be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.view import FIELDS, View
from llmsched_env.simulator import Simulator
from llmsched_env.snapshot import State, snapshot

SCRATCH = {"chosen", "recorder"}
SCRATCH_OF_A_CACHE = {"ending", "ending_context", "batch", "batch_growth", "batch_reserved", "company"}
SCRATCH_OF_A_CACHE |= {"this_growth", "next_growth", "later"}
"""What an iteration writes before it reads it, and recordings, which begin anew."""

ELSEWHERE = {"records", "queues.clients", "queues.tournament.clients", "kv.clients"}
"""Whether it is recorded, and tables that have another name, too."""

Values = dict[str, Any]


def fields(view: View) -> dict[str, float]:
    """All fields of a view."""
    found = {name: getattr(view, name) for name in FIELDS}
    found["last_due"] = max(view.last_due, view.decodes)  # which of the decodes before makes no difference
    return found


def state_of(episode: Episode | Simulator, *, order: bool = True) -> Values:
    """Everything that decides how an episode goes on; how much of it was recorded does not.

    Args:
        episode: where it stands.
        order: with the order in which clients are found that finish at one decode, which makes no difference but to the
            rounding of a sum of TPOTs, and with when nobody was expected any more. Both depend on whether the episode
            was moved to other lengths.
    """
    inner = episode.episode if isinstance(episode, Simulator) else episode
    found: Values = {}
    _flatten(snapshot(inner), "", found)
    if not order:
        found["ring"] = _together(inner), ring_of(inner, codes.EXPECTED).tolist()
        found["clients"] = np.delete(np.asarray(inner.clients), codes.NEXT, axis=1).tobytes()
        found["view.last_due"] = max(found["view.last_due"], inner.view.decodes)
        found["totals.tpot_sum_ns"] = f"{inner.totals.tpot_sum_ns:.9g}"
    return found


def ring_of(episode: Episode, column: int) -> NDArray[np.int32]:
    """(decodes to come,) int32: a column of the ring of an episode."""
    return np.asarray(episode.ring).reshape(-1, codes.RING_COLUMNS)[:, column]


def _flatten(state: State, path: str, found: Values) -> None:
    """Add the values of a snapshot by their paths."""
    rows = path in ("next_prefill.", "next_mixed.")
    left_out = SCRATCH_OF_A_CACHE if path == "kv." else ("client",) if rows else ()  # known when it is run
    for name, value in state.items():
        kind, where = type(value), path + name
        if kind is dict:
            if name not in SCRATCH:
                _flatten(value, f"{where}.", found)
        elif where not in ELSEWHERE and name not in left_out:
            if kind is np.ndarray:
                found[where] = (value[: state["rows"]] if rows else value).tobytes()  # rows beyond it are left over
            else:
                found[where] = value


def _together(episode: Episode) -> list[list[int]]:
    """Clients that finish at each decode of the ring."""
    chains, following = [], np.asarray(episode.clients)[:, codes.NEXT].tolist()
    for client in ring_of(episode, codes.ENDING).tolist():
        chain, left = [], client
        while left >= 0:
            chain.append(left)
            left = following[left]
        chains.append(sorted(chain))
    return chains
