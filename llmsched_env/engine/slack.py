"""What the longest client makes the others wait for: the part of `differential` that looks ahead (reward.py)."""

from __future__ import annotations

import math

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.view import View


def slack(v: View, clients: cython.int[:, ::1], shared: cython.bint) -> cython.longlong:
    """Client-decodes that will be idle because one client takes longest, by the estimates.

    Client j has l_j decodes to go: of its request, and of its own queue. One line for all is filled in where there is
    least to do, up to one level. With J clients it is J t ln(mean of exp(l_j / t)) - sum of l_j: J times a smooth
    maximum, less what there is to do; t is a 32nd of a mean output, so a client that has t less to do than the longest
    counts 1 / e as much. It is 0 where all are level, so at the end. exp and log are the C library's: another one may
    round them otherwise, and the result by 1.

    Args:
        v: the view.
        clients: the episode's table of clients.
        shared: whether all take from one line.
    """
    client: cython.int
    left: cython.double
    count: cython.double = v.num_clients
    width: cython.double = v.mean_output_tokens / 32.0
    level: cython.double = filled_to(v, clients) if shared else 0.0
    longest: cython.double = 0.0
    work: cython.double = 0.0
    weights: cython.double = 0.0
    for client in range(clients.shape[0]):
        left = to_go(v, clients, client, shared)
        longest = max(longest, left)
        work += max(left, level)
    longest = max(longest, level)
    for client in range(clients.shape[0]):
        left = to_go(v, clients, client, shared)
        weights += math.exp((max(left, level) - longest) / width)
    return cython.cast(cython.longlong, count * (longest + width * math.log(weights / count)) - work)


def to_go(v: View, clients: cython.int[:, ::1], client: cython.int, shared: cython.bint) -> cython.double:
    """Decodes that a client is expected to take part in, a shared line left out."""
    left: cython.double = 0.0
    if clients[client, codes.RUNNING] >= 0 and clients[client, codes.DUE] > v.decodes:
        left = clients[client, codes.DUE] - v.decodes
    return left if shared else left + clients[client, codes.WORK]


def filled_to(v: View, clients: cython.int[:, ::1]) -> cython.double:
    """The level up to which the work that waits in one line fills the clients that have least to do."""
    client: cython.int
    left: cython.double
    below: cython.double
    sum_below: cython.double
    level: cython.double = 1e300  # all are below
    before: cython.double = 2e300
    while level < before:
        before = level
        below = 0.0
        sum_below = v.waiting_work
        for client in range(clients.shape[0]):
            left = to_go(v, clients, client, True)
            if left < before:
                below += 1.0
                sum_below += left
        if below > 0.0:
            level = sum_below / below
    return level
