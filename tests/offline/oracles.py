"""Slow, obviously right answers to compare with. Nothing here shares code with the package but its data types."""

from __future__ import annotations

import functools
import heapq
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


def least_counted(
    needs: Sequence[int],
    prompts: Sequence[int],
    clients: int,
    prefill: int,
    decode: int,
    cap: int,
) -> int:
    """Least prefill * K + decode * D over all schedules of a batch, for lengths of any size.

    Best first over states (who waits, what the clients still need, sorted). Time runs from one completion to the next:
    a prefill between two completions could as well come right after the first. What is left takes at least so many
    prefills and decodes as clients and tokens say.
    """
    shortest = sorted(range(len(needs)), key=lambda i: needs[i])

    def at_least(waiting: frozenset[int], held: tuple[int, ...]) -> int:
        decodes = max(-(-(sum(held) + sum(needs[i] for i in waiting)) // clients), held[-1])
        if waiting:
            decodes = max(decodes, held[0] + max(needs[i] for i in waiting))
        return prefill * -(-len(waiting) // clients) + decode * decodes

    start = (frozenset(shortest), (0,) * clients)
    spent = {start: 0}
    heap = [(at_least(*start), 0, 0, start)]
    for number in itertools.count(1):
        _, _, cost, state = heapq.heappop(heap)
        if cost > spent[state]:
            continue
        waiting, held = state
        if not waiting and not any(held):
            return cost
        following = []
        if any(held):
            passed = min(h for h in held if h)
            following.append((cost + decode * passed, waiting, [max(0, h - passed) for h in held]))
        idle = held.count(0)
        for size in range(1, min(idle, len(waiting)) + 1):
            for chosen in itertools.combinations(sorted(waiting), size):
                if size == 1 or sum(prompts[i] for i in chosen) <= cap:
                    after = [*held[idle:], *(needs[i] for i in chosen), *[0] * (idle - size)]
                    following.append((cost + prefill, waiting - set(chosen), after))
        for place, (after_cost, left, after) in enumerate(following):
            reached = (left, tuple(sorted(after)))
            if after_cost < spent.get(reached, after_cost + 1):
                spent[reached] = after_cost
                entry = (after_cost + at_least(*reached), number * 10**6 + place, after_cost, reached)
                heapq.heappush(heap, entry)
    raise AssertionError
