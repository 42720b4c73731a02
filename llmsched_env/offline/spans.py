"""What LB4 adds: with few prefills, clients are held beyond their requests' ends. The proof is in `raised_decodes`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels.spans import cheapest_groups

__all__ = ["MAX_VALUE", "MAX_WORK", "UNIT", "most_prefills", "raised_decodes"]

MAX_WORK = 2**15
"""Requests times clients: beyond it LB4 is LB3, so that resets stay fast where there is next to nothing to find."""

MAX_VALUE = 2**60
"""Of sums that are formed: they stay within 64 bits."""

MOST_PREFILLS = 64
"""Numbers of prefills that are looked at, from the least."""

CLASSES = 8
"""Spans that are told apart; the last class is all longer ones, too."""

ROUNDS, PATIENCE, LEAST_AIM = 120, 6, 8
"""Multipliers that are tried; how many in vain before the aim is halved; and the last aim, 1 / 8 of a decode."""

UNIT = 2**10
"""A multiplier of 1 is so much: they are whole numbers, so that every machine finds the same bound."""


def most_prefills(least: int, n: int) -> int:
    """The last number of prefills that is looked at; n are never too few, as each prefill reads a request."""
    return max(least, min(n, least + MOST_PREFILLS - 1))


def raised_decodes(
    decodes: NDArray[np.int64],
    clients: int,
    slots: NDArray[np.int64],
    least: int,
    fixed_ns: NDArray[np.int64],
    decode_ns: int,
    known: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Least numbers of decodes with K = ``least``, ``least`` + 1, ... prefills; nowhere below ``known``.

    **Labels.** Take a schedule with K prefills, and label each request (k, h) as in LB3: it is read in the k-th
    prefill, and its client is refilled in the h-th, or h = K + 1 for the end. Requests of one label, a *group*, all
    hold their clients through the decodes between the two, at least as many as the longest of them needs. So
    J * D >= sum over groups of size * longest.

    **Slots.** Let h - k be the *span*. Between one prefill and the next (or the end) a client holds at most one
    request, so at most J are held then, and no more than have been read: T_k at most. Each request is held in as many
    of these K intervals as its span says, so the sum of all spans is at most T = T_1 + ... + T_K <= J * K. A request
    takes one slot at least, also where no decode comes between.

    **Groups.** There are K + 1 - s labels of span s, each of at most J requests (all held at once).

    So with few prefills most spans are 1, and those requests share K holding times. LB3 knows the number of labels
    only, not that long spans take more slots.

    **Bound.** Let a multiplier mu >= 0 be paid for each slot and nu_s >= 0 for each label of span s. Then for every
    schedule::

        J * D >= (least sum over groups of size * longest + min over s of (mu * s * size + nu_s))
                 - mu * T - sum of nu_s * (K + 1 - s)

    since a schedule's groups pay at most mu * T and nu_s * (K + 1 - s) on top of J * D. The least sum is found by
    :func:`~llmsched_env.offline.kernels.spans.cheapest_groups`. The spans from the last class on are taken together:
    they pay for the shortest of them, and there are as many labels as of all. Any multipliers give a bound, and the
    same ones for each K; they follow subgradients at the K whose makespan is least so far. All of it is whole numbers.

    Args:
        decodes: (n,) l_i, n at least 1.
        clients: J.
        slots: (m,) T for each K.
        least: first K.
        fixed_ns: (m,) time of a schedule with K prefills and no decodes (up to a constant).
        decode_ns: what a decode adds.
        known: (m,) bounds on D that are known.
    """
    lengths = np.sort(decodes)
    sizes = np.arange(min(clients, len(lengths)) + 1, dtype=np.int64)
    spans = np.arange(1, CLASSES + 1, dtype=np.int64)
    prefills = least + np.arange(len(known), dtype=np.int64)
    labels = np.maximum(prefills[:, None] + 1 - spans, 0)
    labels[:, -1] = labels[:, -1] * (labels[:, -1] + 1) // 2
    limits = np.column_stack([slots, labels])  # (m, 1 + CLASSES): slots, labels of each class
    # A label weighs as many slots as it has requests, so that steps are alike in both.
    per_label = max(1, len(lengths) // least)
    scale = np.array([1] + [per_label**2] * CLASSES, np.int64)
    multipliers = np.zeros(1 + CLASSES, np.int64)
    most = 2**40 // (clients * int(prefills[-1]) + 1)
    found = known.copy()
    aim = UNIT * max(clients, int(lengths.sum()) // 64)  # how much more the next multipliers are to show
    vain = 0
    for _ in range(ROUNDS):
        worst = int(np.argmin(fixed_ns + decode_ns * found))
        priced = multipliers[0] * sizes[:, None] * spans + multipliers[1:]
        span_of = np.argmin(priced, axis=1)
        cost, counts = cheapest_groups(lengths, priced[np.arange(len(sizes)), span_of], UNIT)
        shown = cost - limits @ multipliers
        raised = np.maximum(found, -(-shown // (UNIT * clients)))
        vain = 0 if raised[worst] > found[worst] else vain + 1
        found = raised
        if vain == PATIENCE:
            vain, aim = 0, aim // 2
        used = np.zeros(1 + CLASSES, np.int64)
        np.add.at(used, 1 + span_of, counts)
        used[0] = int((counts * sizes * spans[span_of]).sum())
        slope = used - limits[worst]
        slope[(slope < 0) & (multipliers == 0)] = 0
        norm = int((slope * slope * scale).sum())
        if norm == 0 or aim * LEAST_AIM < UNIT:
            break
        step = UNIT * clients * int(found[worst]) + aim - int(shown[worst])
        moved = multipliers.tolist()
        for i, (along, weight) in enumerate(zip(slope.tolist(), scale.tolist(), strict=True)):
            moved[i] = min(most, max(0, moved[i] + step * along * weight // norm))
        multipliers = np.array(moved, np.int64)
    return found
