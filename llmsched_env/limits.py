"""What the engine's integers hold: checked when a case is laid out, so that clocks and decode counts never overflow.

Totals that are multiples of the clock (J times it, in rewards) may wrap around 64 bits on cases of days with very many
clients; their differences, which rewards are, stay right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import COEFFICIENTS
from llmsched_env.engine import codes
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.noise import ONE, factor_table
from llmsched_env.errors import ConfigError, WorkloadError

__all__ = ["MAX_CLOCK_S", "MAX_OUTPUT_TOKENS", "check_clock", "check_sum"]

MAX_OUTPUT_TOKENS = 2**31 - 2**25
"""Most output tokens of one case in sum: decode counts are 32-bit."""

MAX_CLOCK_S = 4e9
"""The clock counts nanoseconds in 62 bits."""


def check_sum(output_tokens: int) -> None:
    """Raise where a case has more output tokens than decode counts hold.

    Raises:
        WorkloadError: it has.
    """
    if output_tokens > MAX_OUTPUT_TOKENS:
        raise WorkloadError(
            f"{output_tokens} output tokens in sum exceed {MAX_OUTPUT_TOKENS}, the most of one case: split it."
        )


def check_clock(
    rows: NDArray[np.int32],
    release_ns: NDArray[np.int64],
    num_clients: int,
    believed: Costs,
    actual: Costs,
    options: dict[str, dict[str, Any]],
    what: str = "",
) -> None:
    """Raise where even some schedule that serves one request at a time could overflow the clock.

    Raises:
        WorkloadError: it could.
        ConfigError: interference among all clients could alone.
    """
    costs = believed, actual
    interference = max(cost.mixed_interference_ns for cost in costs)
    if interference * num_clients**2 > MAX_CLOCK_S * 1e9:
        raise ConfigError(
            f"interference_ns = {interference} with {num_clients} clients leaves the clock: check its unit."
        )
    decodes, prompts = (rows[:, column].astype(np.float64) for column in (codes.OUTPUT, codes.PROMPT))
    decodes -= 1.0
    most = {name: float(max(getattr(cost, name) for cost in costs)) for name in COEFFICIENTS}
    level_ns = max(float(np.asarray(cost.levels)[:, 1].max()) for cost in costs)
    noise = options.get("noise", {})
    table = factor_table(noise.get("noise_sd", 0.0))
    factor = max(1.0, table.max(initial=ONE) / ONE) * max(1.0, noise.get("straggler_factor", 1.0))
    reading = max(float(cost.mixed_alpha_ns + cost.mixed_beta_prompt_ns) for cost in costs)
    beside = max(float(cost.mixed_beta_active_ns + cost.mixed_interference_ns) for cost in costs)
    longest_s = 1e-9 * (
        float(release_ns[-1])
        + factor
        * (
            max(most["alpha_prefill_ns"], level_ns) * len(rows)
            + most["beta_prefill_ns"] * float(prompts.sum())
            + (most["alpha_decode_ns"] + most["beta_decode_ns"] + most["first_decode_ns"]) * float(decodes.sum())
            + most["gamma_decode_ns"] * float((decodes * (prompts + decodes)).sum())
            + reading * float(prompts.sum())  # read one by one
            + beside * float(decodes.sum())
            + _again_ns(
                options,
                num_clients,
                most,
                reading,
                float((prompts + decodes + 1.0).max()),
                len(rows),
                float(decodes.sum()),
            )
        )
    )
    gap_ns = int(np.diff(release_ns, prepend=0).max())
    if gap_ns * num_clients >= 2**62:
        raise WorkloadError(
            f"{gap_ns / 1e9:.3g} s without an arrival, times {num_clients} clients, is more client time than the "
            f"{2**62 / 1e9:.3g} s that a reward can tell: take fewer clients, or begin another case after the gap."
        )
    if longest_s > MAX_CLOCK_S:
        what = what or f"cost model {actual.model.name!r}"
        raise WorkloadError(
            f"{len(rows)} requests under {what} could take {longest_s:.3g} s one after another, "
            f"beyond the {MAX_CLOCK_S:.3g} s of the clock: check the units of the cost model, or split the case."
        )


def _again_ns(
    options: dict[str, dict[str, Any]],
    num_clients: int,
    most: dict[str, float],
    reading: float,
    context: float,
    num_requests: int,
    decodes: float,
) -> float:
    """Time to copy, or to compute again, what moves or is preempted.

    Each start moves one request. A decode takes at most a block for each client and one to spare, so those that give
    way for it hold no more than that, and the last of them; they come back by a prefill.
    """
    migration, kv = options.get("migration"), options.get("kv")
    if migration is not None:
        return num_requests * context * max(float(migration["token_ns"]), most["beta_prefill_ns"])
    if kv is None:
        return 0.0
    tokens = min(float(kv["budget"]), float(num_clients + 1) * float(kv["block"]) + context)
    if kv["swap_token_ns"] > 0:
        return decodes * 2.0 * tokens * float(kv["swap_token_ns"])
    return decodes * (most["alpha_prefill_ns"] + tokens * max(most["beta_prefill_ns"], reading))
