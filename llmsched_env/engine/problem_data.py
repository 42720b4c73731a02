"""A case as the engine reads it: laid out in queue order, read-only, shared by all its episodes."""

from __future__ import annotations

import functools
from typing import Any

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.costs import Costs


class ProblemData:
    """Requests, clients, costs and actions.

    Requests are laid out in *queue order*: queue by queue, within a queue in the order in which they are to be taken. A
    request is named by its *position* there throughout the engine. Its *number* is its place by release.

    Attributes:
        num_requests: n.
        num_clients: J.
        requests: (n, REQUEST_COLUMNS) int32, by position.
        release_ns: (n,) int64, by number, ascending.
        position_of: (n,) int32: position of each number.
        number_of: (n,) int32: number of each position.
        queue_end: (J,) int32: position after the last of each client's queue; all n where the queue is shared.
        ranking: (n, 2 * RANKINGS) int32: rank of each position in each ranking, then position of each rank; one row of
            zeros where no order goes by length.
        ranked: whether some order goes by length.
        shared: whether there is one queue for all.
        stealing: whether idle clients take from others' queues.
        num_actions: entries of the following four.
        kinds: (num_actions,) int32: codes.DECODE, PREFILL or MIXED.
        orders: (num_actions,) int32: order in which it takes requests (2 * ranking + late last, or a window).
        caps: (num_actions,) int32: most active clients after it.
        idle_until: (num_actions,) int32: idle clients until which a decode is repeated; 0 for one decode.
        waits: whether some of these is not 0.
        mixes: whether some action is a mixed iteration.
        believed: durations of iterations, as schedulers believe.
        actual: what they do.
        token_cap: most prompt tokens in one prefill.
        mean_output_tokens: of the population.
        ring_mask: size of rings over decode counts, less 1: a power of two, at least the longest output and estimate.
        max_iterations: horizon, 0 for none.
        skip_forced: whether a step goes on to the next choice.
        reward: one of codes.EXCESS, ...
        reward_scale: what its charge is divided by.
        affine: whether the makespan is a policy-free constant plus fixed times per iteration.
        bound_ns: best lower bound on the makespan.
        arrivals: whether a request is released later than another.
        path: (total,) int32: the blocks that prompts are made of, request after request by number, as nodes of the tree
            of all prompts; one 0 where nobody says.
        path_start: (n + 1,) int32: where in ``path`` each request begins.
        num_nodes: different nodes; 0 where nobody says.
        node_units: blocks of the KV cache that a node stands for.
        made_of: the arguments that it was made of.
    """

    # What an iteration reads comes first, so that it lies together.
    num_requests: cython.int
    num_clients: cython.int
    num_actions: cython.int
    ring_mask: cython.int
    shared: cython.bint
    stealing: cython.bint
    mixes: cython.bint
    waits: cython.bint
    ranked: cython.bint
    arrivals: cython.bint
    skip_forced: cython.bint
    affine: cython.bint
    reward: cython.int
    reward_scale: cython.double
    max_iterations: cython.longlong
    token_cap: cython.longlong
    believed: Costs
    actual: Costs
    bound_ns: cython.longlong
    mean_output_tokens: cython.double
    requests: cython.int[:, ::1]
    release_ns: cython.longlong[::1]
    position_of: cython.int[::1]
    number_of: cython.int[::1]
    queue_end: cython.int[::1]
    ranking: cython.int[:, ::1]
    kinds: cython.int[::1]
    orders: cython.int[::1]
    caps: cython.int[::1]
    idle_until: cython.int[::1]
    path: cython.int[::1]
    path_start: cython.int[::1]
    num_nodes: cython.int
    node_units: cython.longlong
    made_of: tuple  # type: ignore[type-arg]  # Cython knows no other

    def __init__(
        self,
        rows: NDArray[np.int32],
        release_ns: NDArray[np.int64],
        number_of: NDArray[np.int32],
        num_clients: int,
        *,
        shared: bool,
        stealing: bool,
        ranking: NDArray[np.int32] | None,
        actions: Any,
        believed: Costs,
        actual: Costs,
        token_cap: int,
        mean_output_tokens: float,
        reward: int,
        reward_scale: float,
        affine: bool,
        bound_ns: int,
        max_iterations: int = 0,
        skip_forced: bool = False,
        prefixes: tuple[NDArray[np.int32], NDArray[np.int32], int, int] | None = None,
    ) -> None:
        self.made_of = (
            (rows, release_ns, number_of, num_clients),
            {
                "shared": shared, "stealing": stealing, "ranking": ranking, "actions": actions, "believed": believed,
                "actual": actual, "token_cap": token_cap, "mean_output_tokens": mean_output_tokens, "reward": reward,
                "reward_scale": reward_scale, "affine": affine, "bound_ns": bound_ns, "max_iterations": max_iterations,
                "skip_forced": skip_forced, "prefixes": prefixes,
            },
        )  # fmt: skip
        n = len(rows)
        self.num_requests = n
        self.num_clients = num_clients
        self.requests = view_of(np.array(rows, np.int32))
        self.release_ns = view_of(np.array(release_ns, np.int64))
        position_of = np.empty(n, np.int32)
        position_of[number_of] = np.arange(n, dtype=np.int32)
        self.position_of = view_of(position_of)
        self.number_of = view_of(np.array(number_of, np.int32))
        ends = np.full(num_clients, n) if shared else np.searchsorted(rows[:, 3], np.arange(num_clients), side="right")
        self.queue_end = view_of(ends.astype(np.int32))
        self.ranked = ranking is not None
        self.ranking = view_of(np.zeros((1, 4), np.int32) if ranking is None else np.array(ranking))
        self.shared = shared
        self.stealing = stealing and not shared
        self.num_actions = len(actions)
        self.kinds, self.orders, self.caps, self.idle_until = _columns(tuple(map(tuple, actions)))
        self.waits = any(action[3] > 0 for action in actions)
        self.mixes = any(action[0] == codes.MIXED for action in actions)
        self.believed = believed
        self.actual = actual
        self.token_cap = token_cap
        self.mean_output_tokens = mean_output_tokens
        longest = int(max(rows[:, 1].max(), rows[:, 2].max()))
        # A request decodes one time fewer than it has tokens; the decode that has just been run has a slot, too.
        self.ring_mask = (1 << (longest - 1).bit_length()) - 1
        self.max_iterations = max_iterations
        self.skip_forced = skip_forced
        self.reward = reward
        self.reward_scale = reward_scale
        self.affine = affine
        self.bound_ns = bound_ns
        self.arrivals = bool(release_ns.max() > release_ns.min())
        none = np.zeros(1, np.int32)
        path, path_start, self.num_nodes, self.node_units = prefixes or (none, none, 0, 0)
        self.path = view_of(np.array(path, np.int32))  # what is given may be read-only
        self.path_start = view_of(np.array(path_start, np.int32))

    def changed(
        self, rows: NDArray[np.int32] | None = None, number_of: NDArray[np.int32] | None = None, **changes: Any
    ) -> ProblemData:
        """The same problem with other rows of requests, other numbers of them, or other keyword arguments."""
        (own_rows, release_ns, own_numbers, num_clients), named = self.made_of
        return ProblemData(
            own_rows if rows is None else rows,
            release_ns,
            own_numbers if number_of is None else number_of,
            num_clients,
            **{**named, **changes},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.made_of,)


@functools.lru_cache(64)
def _columns(actions: tuple[tuple[int, ...], ...]) -> tuple[Any, ...]:
    """Kinds, orders, caps and waits: all cases of a scenario share them, so that they stay in the nearest cache."""
    return tuple(view_of(np.array(column, np.int32)) for column in zip(*actions, strict=True))


def _made_again(made_of: tuple[tuple[Any, ...], dict[str, Any]]) -> ProblemData:
    return ProblemData(*made_of[0], **made_of[1])
