"""Slow, obviously right answers to compare with. Nothing here shares code with the package but its data types."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

from llmsched_env.cost import CostModel
from llmsched_env.workload.requests import Requests


def least_cmax(loads: Sequence[int], clients: int) -> int:
    """Optimum of P||Cmax: every assignment, clients interchangeable."""
    best = sum(loads)

    def place(index: int, held: tuple[int, ...]) -> None:
        nonlocal best
        if max(held) >= best:
            return
        if index == len(loads):
            best = max(held)
            return
        for client in {load: j for j, load in enumerate(held)}.values():
            place(index + 1, (*held[:client], held[client] + loads[index], *held[client + 1 :]))

    if clients == 1:
        return best
    place(0, (0,) * clients)
    return best


def least_makespan_ns(requests: Requests, clients: int, cost: CostModel, client_of: Sequence[int] | None = None) -> int:
    """Shortest schedule under exclusive batching, over every choice of action, batch and order.

    A state is the clock (with release times), the waiting requests and, for each client, what its request still needs
    and holds: ``None`` or (remaining decodes, context tokens), the latter 0 where no decode lasts longer for them.
    Clients without queues of their own are kept sorted.
    """
    counted = int(cost.gamma_decode_ns > 0)
    prompts, needs = requests.prompt_tokens.tolist(), requests.decodes.tolist()
    releases = requests.release_ns.tolist()
    timed = any(releases)

    def batches(waiting: int, idle: tuple[int, ...], now: int) -> Iterator[tuple[tuple[int, int], ...]]:
        """Every way to give waiting requests to idle clients: tuples of (client, request)."""
        ready = [i for i in range(len(needs)) if waiting >> i & 1 and releases[i] <= now]
        for size in range(1, len(idle) + 1):
            for chosen in itertools.combinations(ready, size):
                if size > 1 and sum(prompts[i] for i in chosen) > cost.prefill_token_cap:
                    continue
                if client_of is None:
                    yield tuple(zip(idle, chosen, strict=False))
                elif len({client_of[i] for i in chosen}) == size and {client_of[i] for i in chosen} <= set(idle):
                    yield tuple((client_of[i], i) for i in chosen)

    @functools.cache
    def best(waiting: int, held: tuple[tuple[int, int] | None, ...], now: int, first_ns: int = 0) -> int:
        """Least time from here to the end; ``now`` stays 0 where nothing is released later.

        A decode lasts longer by ``first_ns``: what was before was a prefill.
        """
        if not waiting and not any(held):
            return 0
        options = []

        def after(duration: int, waiting: int, held: Sequence[tuple[int, int] | None], first_ns: int = 0) -> int:
            if client_of is None:
                held = sorted(held, key=lambda h: h or (0, 0))
            return duration + best(waiting, tuple(held), now + duration if timed else 0, first_ns)

        idle = tuple(j for j, h in enumerate(held) if h is None)
        for batch in batches(waiting, idle, now):
            following, rest = list(held), waiting
            for client, i in batch:
                rest &= ~(1 << i)
                following[client] = (needs[i], counted * (prompts[i] + 1)) if needs[i] else None
            lasts_ns = cost.prefill_ns(sum(prompts[i] for _, i in batch))
            options.append(after(lasts_ns, rest, following, cost.first_decode_ns))
        active = [h for h in held if h is not None]
        if active:
            following = [None if h is None or h[0] == 1 else (h[0] - 1, h[1] + counted) for h in held]
            duration = cost.decode_ns(len(active), sum(context for _, context in active))
            options.append(after(duration + first_ns, waiting, following))
        later = [releases[i] for i in range(len(needs)) if waiting >> i & 1 and releases[i] > now]
        if not options:
            options.append(after(min(later) - now, waiting, held))
        return min(options)

    return best((1 << len(needs)) - 1, (None,) * clients, 0)
