"""What iterations last under a cost model, in whole nanoseconds."""

from __future__ import annotations

from typing import Any

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.arrays import view_of
from llmsched_env.extensions import compiled


class Costs:
    """A cost model as the engine computes with it, and what a mixed iteration lasts under it.

    A subclass is another law of durations (examples/quadratic_context.py): its cost model makes it, by a method
    ``engine_costs(mixed)``.

    Attributes:
        alpha_prefill_ns: fixed time of a prefill.
        beta_prefill_ns: time of a prompt token.
        alpha_decode_ns: fixed time of a decode.
        beta_decode_ns: time of an active client in a decode.
        gamma_decode_ns: time of a token of context in a decode.
        first_decode_ns: what a decode lasts longer right after a prefill.
        reads_context: whether a decode lasts anything but ``alpha_decode_ns + beta_decode_ns * active``.
        num_levels: prefill levels; 0 where prefills are affine.
        levels: (num_levels, 2) int64: most tokens, and time, of each level, ascending.
        overlaps: whether a mixed iteration lasts as long as the longer of its prefill and its decode.
        mixed_alpha_ns: else: its fixed time,
        mixed_beta_prompt_ns: the time of a prompt token,
        mixed_beta_active_ns: of an active client,
        mixed_interference_ns: and once more of each, times the share of active clients in all tokens.
        model: the cost model.
        mixed: what mixed iterations last; ``None`` where there are none.
    """

    alpha_prefill_ns: cython.longlong
    beta_prefill_ns: cython.longlong
    alpha_decode_ns: cython.longlong
    beta_decode_ns: cython.longlong
    gamma_decode_ns: cython.longlong
    first_decode_ns: cython.longlong
    reads_context: cython.bint
    num_levels: cython.int
    levels: cython.longlong[:, ::1]
    overlaps: cython.bint
    mixed_alpha_ns: cython.longlong
    mixed_beta_prompt_ns: cython.longlong
    mixed_beta_active_ns: cython.longlong
    mixed_interference_ns: cython.longlong
    model: Any
    mixed: Any

    def __init__(self, model: CostModel, mixed: MixedCost | None = None) -> None:
        self.model = model
        self.mixed = mixed
        self.alpha_prefill_ns = model.alpha_prefill_ns
        self.beta_prefill_ns = model.beta_prefill_ns
        self.alpha_decode_ns = model.alpha_decode_ns
        self.beta_decode_ns = model.beta_decode_ns
        self.gamma_decode_ns = model.gamma_decode_ns
        self.first_decode_ns = model.first_decode_ns
        self.reads_context = model.gamma_decode_ns != 0 or model.first_decode_ns != 0
        self.num_levels = len(model.prefill_levels)
        table: NDArray[np.int64] = np.array(model.prefill_levels or [(0, 0)], np.int64).reshape(-1, 2)
        self.levels = view_of(table)
        self.overlaps = mixed is None or mixed.overlaps
        self.mixed_alpha_ns = 0 if mixed is None else mixed.alpha_ns
        self.mixed_beta_prompt_ns = 0 if mixed is None else mixed.beta_prompt_ns
        self.mixed_beta_active_ns = 0 if mixed is None else mixed.beta_active_ns
        self.mixed_interference_ns = 0 if mixed is None else mixed.interference_ns

    @property
    def least_prefill_ns(self) -> int:
        """No prefill, and no mixed iteration that reads, is shorter."""
        least = int(self.levels[0, 1] if self.num_levels else self.alpha_prefill_ns)
        return least if self.overlaps else min(least, int(self.mixed_alpha_ns))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.mixed)

    def check(self) -> None:
        """A compiled engine does not find durations that are not compiled.

        Raises:
            TypeError: these have some.
        """
        for name in ("prefill_ns", "decode_ns", "mixed_ns"):
            if compiled and hasattr(self, name):
                raise TypeError(
                    f"{type(self).__name__}.{name} is not compiled, but the engine is: set LLMSCHED_UNCOMPILED=1 "
                    "before llmsched_env is imported, or write it into llmsched_env/engine/costs.py."
                )

    def prefill_ns(self, tokens: cython.longlong) -> cython.longlong:
        """A prefill of ``tokens``: affine, or the smallest level that holds them."""
        level: cython.int = 0
        if self.num_levels == 0:
            return self.alpha_prefill_ns + self.beta_prefill_ns * tokens
        while level < self.num_levels - 1 and self.levels[level, 0] < tokens:
            level += 1
        return self.levels[level, 1]

    def decode_ns(self, active: cython.longlong, context: cython.longlong) -> cython.longlong:
        """A decode of ``active`` clients that hold ``context`` tokens; without ``first_decode_ns``."""
        return self.alpha_decode_ns + self.beta_decode_ns * active + self.gamma_decode_ns * context

    def mixed_ns(self, tokens: cython.longlong, active: cython.longlong, context: cython.longlong) -> cython.longlong:
        """An iteration that reads ``tokens`` beside a decode; a decode where it reads nothing."""
        alone: cython.longlong
        decode: cython.longlong
        if tokens == 0:
            return self.decode_ns(active, context)
        if self.overlaps:
            alone = self.prefill_ns(tokens)
            decode = self.decode_ns(active, context)
            return decode if active > 0 and decode > alone else alone
        return (
            self.mixed_alpha_ns
            + self.mixed_beta_prompt_ns * tokens
            + self.mixed_beta_active_ns * active
            + self.mixed_interference_ns * active * active // (active + tokens)
            + self.gamma_decode_ns * context
        )

    def tokens_within(self, ns: cython.longlong, active: cython.longlong, context: cython.longlong) -> cython.longlong:
        """Most tokens that are surely read beside a decode within ``ns``: interference counts as if next to none were.

        A subclass with another :meth:`mixed_ns` has its own.
        """
        fixed_ns: cython.longlong = self.alpha_prefill_ns
        slope_ns: cython.longlong = self.beta_prefill_ns
        one: cython.longlong = 1
        if self.overlaps:
            if self.decode_ns(active, context) > ns:
                return 0
        else:
            fixed_ns = self.mixed_alpha_ns + (self.mixed_beta_active_ns + self.mixed_interference_ns) * active
            fixed_ns += self.gamma_decode_ns * context
            slope_ns = self.mixed_beta_prompt_ns
        if fixed_ns > ns:
            return 0
        return one << 62 if slope_ns == 0 else (ns - fixed_ns) // slope_ns
