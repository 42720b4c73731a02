"""Where requests wait, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from llmsched_env.config.checks import LARGEST, check_flags, check_names, keep, number
from llmsched_env.errors import ConfigError

__all__ = [
    "ASSIGNMENTS",
    "DEADLINE_ORDERS",
    "JOINT",
    "KEYED_ORDERS",
    "ORDERS",
    "ORDER_CODES",
    "QUEUES",
    "WAIT_PERCENTS",
    "WINDOWS",
    "QueueOptions",
    "check",
    "order_code",
]

Queue = Literal["client", "shared"]
QUEUES: tuple[Queue, ...] = get_args(Queue)
Assignment = Literal["mip", "lpt", "round_robin"]
ASSIGNMENTS: tuple[Assignment, ...] = get_args(Assignment)
PlainOrder = Literal["fcfs", "longest_first", "shortest_first"]
ORDERS: tuple[PlainOrder, ...] = get_args(PlainOrder)
"""Orders of a queue: by release; by estimated output, longest or shortest first (ties by release)."""

KeyedOrder = Literal["smallest_volume_first", "sorted_f", "aged_shortest_first"]
KEYED_ORDERS: tuple[KeyedOrder, ...] = get_args(KeyedOrder)
"""Orders by a number of each request that more goes into than its length (`llmsched_env.orders`): by the volume that it
takes of the KV cache, smallest first (SVF, arXiv 2606.22327); by batches (Sorted-F, arXiv 2508.06133); by
estimated output less what the time waited counts for (ageing, as in SGLang's pull request 30806)."""

PlannedOrder = Literal["joint"]
JOINT: PlannedOrder = "joint"
"""The order of a joint plan (`llmsched_env.offline.joint`), made for each case: of one shared queue."""

DeadlineOrder = Literal["late_last", "late_last_shortest", "late_last_longest"]
DEADLINE_ORDERS: tuple[DeadlineOrder, ...] = get_args(DeadlineOrder)
"""The same where requests have a TTFT limit, with those behind all others that cannot meet it any more."""

ORDER_CODES = MappingProxyType(
    {
        "fcfs": 0,
        "late_last": 1,
        "shortest_first": 2,
        "late_last_shortest": 3,
        "longest_first": 4,
        "late_last_longest": 5,
    }
)
"""Orders that an action may choose: twice the ranking (release, shortest, longest), plus 1 where late ones go last."""


WINDOWS = 17
"""Windows of a queue, longest first, that an action may choose: the longest, one sixteenth along, ..., the shortest."""

WAIT_PERCENTS = (4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18)
"""Shares of idle clients, in percent, until which an action may decode."""


def order_code(order: str) -> int:
    """What the engine is told of an order, where one holds for a whole episode.

    A keyed order has the place of "shortest_first": the ranking by estimate is one by its key then.
    """
    return ORDER_CODES["shortest_first" if order in KEYED_ORDERS else order]


@dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """Queues.

    Attributes:
        queue: "client" for a queue at each client, filled by ``assignment``; "shared" for one queue.
        assignment: "mip", "lpt" or "round_robin" (client queues only).
        order: "fcfs", "longest_first" or "shortest_first" by estimated output, within each queue. With SLOs also
            "late_last", "late_last_longest" and "late_last_shortest": behind all others goes who cannot have the first
            token in time any more. "smallest_volume_first": by what a request is expected to hold of the KV cache,
            summed over its output tokens. "sorted_f": in the batches of Sorted-F, which fit ``kv_budget_tokens``.
            "aged_shortest_first": by estimated output less ``aging_tokens_per_s`` for each second waited. "joint" is
            the order of a joint plan of the batch (one shared queue).
        aging_tokens_per_s: of the order "aged_shortest_first", and of no other: 0 is "shortest_first".
        choose_length: an action also says who is next, and until when to decode (one shared queue, "longest_first").
            With W waiting and room for r of them, 1 prefills the r longest, 2 to 17 the r that stand 1/16, ..., 16/16
            of the way along, from the longest of them on; the last twelve decode until 4, 6, 8, 9, ..., 16 or 18 % of
            the clients are idle, with ``skip_forced`` in one step.
        stealing: idle clients with an empty queue take waiting requests of others (client queues only).
    """

    queue: Queue = "client"
    assignment: Assignment = "mip"
    order: PlainOrder | KeyedOrder | DeadlineOrder | PlannedOrder = "longest_first"
    aging_tokens_per_s: float | None = None
    choose_length: bool = False
    stealing: bool = True


def check(options: QueueOptions) -> None:
    """Check them.

    Raises:
        ConfigError: a value of the wrong type or out of range, or one that nobody would read.
        UnknownNameError: a name that does not exist.
    """
    check_names(options, queue=QUEUES, assignment=ASSIGNMENTS, order=(*ORDERS, *KEYED_ORDERS, *DEADLINE_ORDERS, JOINT))
    check_flags(options, "choose_length", "stealing")
    aged, rate = options.order == "aged_shortest_first", options.aging_tokens_per_s
    if aged != (rate is not None):
        raise ConfigError(
            f"order = {options.order!r} with aging_tokens_per_s = {rate!r}: "
            + ("give a rate, 0 for none." if aged else "nobody would read it. Set order='aged_shortest_first'.")
        )
    if rate is not None:
        most = LARGEST["aging_tokens_per_s"]
        if not 0 <= number("aging_tokens_per_s", rate) <= most:
            raise ConfigError(f"aging_tokens_per_s = {rate} is out of range: it lies in [0, {most:g}].")
        keep(options, "aging_tokens_per_s", float(rate))
