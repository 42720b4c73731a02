"""What iterations last: the cost model, and noise."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from statistics import NormalDist

from strategies import PREFILL, Case

from .state import Running, State

PARTS = 4096
"""Of the lognormal law, equally likely: a factor is the mean of one."""

FRACTION = 2**20


@functools.cache
def factors(sd: float) -> list[int]:
    """The factors of iterations, in parts of a 2^20th."""
    normal = NormalDist()
    below = [normal.cdf(normal.inv_cdf(i / PARTS) - sd) for i in range(1, PARTS)]
    return [round((b - a) * PARTS * FRACTION) for a, b in zip([0.0, *below], [*below, 1.0], strict=True)]


def mixed(word: int) -> int:
    """'lowbias32' of C. Wellons: a hash of 32 bits."""
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16


class Durations(State):
    """By the cost model of ``case``: the true one, or the one that schedulers believe in."""

    def prefill_ns(self, tokens: int, case: Case) -> int:
        if case.levels:
            return min(time for capacity, time in case.levels if capacity >= tokens)
        return case.alpha_prefill_ns + case.beta_prefill_ns * tokens

    def serving_ns(self, served: list[Running], case: Case) -> int:
        """A decode that gives these a token."""
        context = sum(self.context(held.request, held.emitted) for held in served)
        return case.alpha_decode_ns + case.beta_decode_ns * len(served) + case.gamma_decode_ns * context

    def first_ns(self, case: Case) -> int:
        """What a decode pays that comes right after an iteration in which nobody decoded."""
        return case.first_decode_ns if self.kinds[-1:] == [PREFILL] else 0

    def beside_ns(self, tokens: int, served: list[Running], case: Case) -> int:
        """A mixed iteration that computes so many tokens while these have one each."""
        cost = case.mixed.cost
        if tokens == 0:
            return self.serving_ns(served, case) if served else 0
        if cost.overlaps:
            return max(self.prefill_ns(tokens, case), self.serving_ns(served, case) if served else 0)
        active = len(served)
        context = sum(self.context(held.request, held.emitted) for held in served)
        both = cost.alpha_ns + cost.beta_prompt_ns * tokens + cost.beta_active_ns * active
        return both + cost.interference_ns * active * active // (active + tokens) + case.gamma_decode_ns * context

    def at_most_ns(self, tokens: int, served: list[Running], case: Case) -> int:
        """The same, with the interference that it would have beside the fewest tokens."""
        cost = case.mixed.cost
        if cost.overlaps:
            return self.beside_ns(tokens, served, case)
        least = replace(case, mixed=replace(case.mixed, cost=replace(cost, interference_ns=0)))
        return self.beside_ns(tokens, served, least) + cost.interference_ns * len(served)

    def actual_duration_ns(self, ns: int, kind: int) -> int:
        """Actual duration of an iteration that lasts ``ns`` without noise."""
        noise = self.case.noise
        if noise is None:
            return ns
        count = self.kinds.count(kind)
        word = mixed(noise.key ^ mixed(2 * count + (kind == PREFILL)))
        if noise.noise_sd:
            ns = ns * factors(noise.noise_sd)[word * PARTS // 2**32] // FRACTION
        if mixed(word ^ 0x3C6EF372) < noise.straggler_probability * 2**32:
            ns = math.floor(ns * noise.straggler_factor)
            self.stragglers += 1
        return max(1, ns)
