"""An upper bound on the goodput of *any* schedule under exclusive batching.

*Goodput* is the share of the counted requests that meet both SLOs: TTFT <= S1, and TPOT <= S2 or one token only.
Notation: request i with release r_i, prompt P_i and l_i = output_i - 1 decodes; J clients; costs as in docs/model.md.
A request is *served in time* where it meets both. What the proof uses of a schedule: one prefill or one decode at a
time, a request on a client of its own, each prefilled once after its release, a batch within the cap unless it is one
request, and decodes that emit one token for each active client. Order, queues, knowledge of lengths and idling are
free.

**1. When such a request is served.** Its prefill lies in [r_i, r_i + S1], and TPOT <= S2 says that it is complete at
most S2 * l_i after its first token; so its decodes lie in [r_i, d_i] with d_i = r_i + S1 + S2 * l_i.

**2. What it takes of the server, at least.** Iterations do not overlap, so their times may be shared out among the
requests served in time in them, as long as no iteration gives more than its duration.

- A decode with k of these requests lasts at least alpha_d + beta_d * k + gamma * (their context). Here k <= J, and
  k <= C, the most intervals [r_i, d_i] that have a point in common, since each of the k contains the decode. So
  alpha_d / min(J, C) + beta_d + gamma * context may be given to each, and all decodes of i give it

      l_i (alpha_d / min(J, C) + beta_d) + gamma (l_i P_i + l_i (l_i + 1) / 2).

- A prefill of t tokens lasts at least a + b * t (affine: a = alpha_p, b = beta_p; with levels, an affine function
  below the steps), or exactly the time of its one request where that is above the cap. Each request is given
  b * P_i + a * u(P_i) with a function u that no batch sums to more than 1: u = 1 / J, since a batch has at most J
  requests; or, for a threshold 0 <= h <= cap / 2 (Martello and Toth 1990, a *dual feasible function* of bin packing),

      u(P) = 1 above cap - h,   P / cap from h to cap - h,   0 below h:

  beside a prompt above cap - h only prompts below h fit, and without one the sum is at most tokens / cap <= 1.

**3. Windows.** In a window [a, b] let each request served in time with r_i >= a count with its prefill where
r_i + S1 <= b, and with its decodes as well where d_i <= b. By 1 the iterations that these shares come from lie inside
the window, so the shares add up to at most b - a. So at most as many of these requests are served in time as fit into
b - a smallest first; the others violate an SLO. A window speaks of requests with a <= r_i <= b - S1. Windows that speak
of disjoint sets of requests prove disjoint violations, which add up: a dynamic program finds the best sequence of
windows.

**4. Alone.** A request may violate an SLO even on an idle server: prefill time of P_i above S1, or l_i > 0
and alpha_d + beta_d + gamma (P_i + (l_i + 1) / 2), its mean decode alone, above S2.
"""

from __future__ import annotations

import math
import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.offline.assignment import check_clients
from llmsched_env.offline.bounds import Case
from llmsched_env.workload.requests import Requests

__all__ = ["goodput_bound"]

Floats = NDArray[np.float64]

MAX_ENDS = 256
"""Ends of windows that are looked at, spread evenly over all: fewer windows leave the bound valid."""

MAX_THRESHOLDS = 64
"""Dual feasible functions that are tried."""

SLACK = 1.0 + 1e-9
"""Limits and windows are longer by this much than they are, which is more than float64 can be wrong."""


def goodput_bound(
    requests: Requests,
    cost: CostModel | str,
    num_clients: SupportsIndex,
    *,
    ttft_s: float,
    tpot_s: float,
    first: SupportsIndex = 0,
    last: SupportsIndex | None = None,
) -> float:
    """No schedule meets both SLOs for a larger share of the counted requests (proof: the module's docstring).

    Clairvoyant schedules included: it is the yardstick for goodput that LB1 is for the makespan. Requests that
    violate an SLO and uncounted ones cost nothing, as if they were served when nobody minds.

    With up to :data:`MAX_ENDS` / 2 counted requests a tighter SLO never has a larger bound. With more, windows are
    sampled and that may fail in the last digits. About half a second for 5000 requests in overload.

    Args:
        requests: the requests, with their true lengths, in release order.
        cost: cost model or preset name; any.
        num_clients: J.
        ttft_s: S1, the longest time to first token that counts, in seconds; ``math.inf`` for no limit.
        tpot_s: S2, the longest time per output token after the first that counts, in seconds; ``math.inf`` likewise.
        first: number of the first counted request.
        last: number after the last counted request; ``None``: all from ``first`` on.

    Returns:
        A share in [0, 1].

    Raises:
        ConfigError: ``num_clients`` below 1; a limit that is not positive; a range that holds no request; a prompt
            that no prefill level holds.
        UnknownNameError: no such cost preset.
    """
    clients, model = check_clients(num_clients), cost_model(cost)
    ttft_ns, tpot_ns = _limit_ns("ttft_s", ttft_s), _limit_ns("tpot_s", tpot_s)
    start, stop = _counted(first, last, len(requests))
    counted, num_counted = slice(start, stop), stop - start

    release = (requests.release_ns[counted] - requests.release_ns[start]).astype(np.float64)
    prompt, decodes = (column[counted].astype(np.float64) for column in (requests.prompt_tokens, requests.decodes))
    sizes, size_of = np.unique(requests.prompt_tokens[counted], return_inverse=True)
    prefill_alone = np.array([model.prefill_ns(tokens) for tokens in sizes.tolist()], np.float64)[size_of]
    token_alone = model.decode_ns(1) + model.gamma_decode_ns * (prompt + (decodes + 1.0) / 2.0)
    able = (prefill_alone <= ttft_ns) & ((decodes == 0.0) | (token_alone <= tpot_ns))
    if not able.any():
        return 0.0

    # Shares of all counted requests, whatever the SLOs: else a tighter one might choose weaker ones.
    minorants = [(float(a), float(b)) for a, b in Case(requests, clients, model).minorants]
    prefill_work = _prefill_work(prompt, prefill_alone, clients, model.prefill_token_cap, minorants)[able]
    release, prompt, decodes = release[able], prompt[able], decodes[able]
    begun = release + ttft_ns
    done = begun + np.where(decodes > 0.0, np.maximum(decodes, 1.0) * tpot_ns, 0.0)  # an infinite S2 times 0 is 0
    together = min(clients, _most_at_once(release, done))
    context = decodes * (prompt + (decodes + 1.0) / 2.0)
    decode_work = decodes * (model.alpha_decode_ns / together + model.beta_decode_ns) + model.gamma_decode_ns * context
    violations = (
        num_counted - len(release) + _violations(release, begun, done, prefill_work, prefill_work + decode_work)
    )
    return (num_counted - violations) / num_counted


def _limit_ns(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | np.floating | np.integer):
        raise ConfigError(f"{name} = {seconds!r} is not a number of seconds.")
    if math.isnan(seconds) or seconds <= 0.0:
        raise ConfigError(f"{name} = {seconds!r} is out of range: pass seconds above 0, or math.inf for no limit.")
    # Whole ns, as the simulator has them.
    return math.inf if math.isinf(seconds) else round(seconds * 1e9) * SLACK


def _counted(first: SupportsIndex, last: SupportsIndex | None, n: int) -> tuple[int, int]:
    try:
        start, stop = operator.index(first), n if last is None else operator.index(last)
    except TypeError:
        raise ConfigError(f"first = {first!r}, last = {last!r}: pass whole numbers of requests.") from None
    if not 0 <= start < stop <= n:
        raise ConfigError(f"first = {start}, last = {stop} counts none of {n} requests: pass 0 <= first < last <= {n}.")
    return start, stop


def _most_at_once(start: Floats, end: Floats) -> int:
    """Most closed intervals with a point in common; ``start`` (n,) ascending, ``end`` (n,)."""
    begun = np.searchsorted(start, start, side="right")
    ended = np.searchsorted(np.sort(end), start, side="left")
    return int((begun - ended).max())


def _prefill_work(
    prompt: Floats, alone_ns: Floats, clients: int, cap: int, minorants: list[tuple[float, float]]
) -> Floats:
    """(n,) ns of server time that the prefill of each request takes at least: the valid shares with the largest sum."""
    above = prompt > cap
    small = np.unique(prompt[2.0 * prompt <= cap])
    shares = [np.full(len(prompt), 1.0 / clients), prompt / cap]
    for h in _spread(small, MAX_THRESHOLDS):
        shares.append(np.where(prompt > cap - h, 1.0, np.where(prompt < h, 0.0, prompt / cap)))
    shares.append(np.where(2.0 * prompt > cap, 1.0, np.where(2.0 * prompt < cap, 0.0, 0.5)))
    works = (np.where(above, alone_ns, a * share + b * prompt) for a, b in minorants for share in shares)
    return max(works, key=lambda work: float(work.sum()))


def _violations(release: Floats, begun: Floats, done: Floats, prefill_work: Floats, work: Floats) -> int:
    """Requests that any schedule loses, by step 3 of the proof; all (n,) in ns, ``release`` ascending."""
    ends = np.unique(np.concatenate([begun, done]))
    ends = _spread(ends[np.isfinite(ends)], MAX_ENDS)
    reach = np.searchsorted(begun, ends, side="right")  # a window that ends there speaks of requests below this one
    starts = np.unique(np.append(reach, 0))
    proved = np.zeros(len(starts), np.int64)  # violations among the requests below starts[k]
    most = 0
    for end, stop in zip(ends.tolist(), reach.tolist(), strict=True):
        inside = np.where(done[:stop] <= end, work[:stop], prefill_work[:stop])
        sums = np.append(np.cumsum(inside[::-1])[::-1], 0.0)
        position = int(np.searchsorted(starts, stop))
        room = (end - release[starts[:position]]) * SLACK
        order = np.argsort(inside)
        for k in np.flatnonzero(sums[starts[:position]] > room).tolist():
            of_window = order[order >= starts[k]]
            fitting = int(np.searchsorted(np.cumsum(inside[of_window]), room[k], side="right"))
            most = max(most, int(proved[k]) + len(of_window) - fitting)
        proved[position] = most
    return most


def _spread(values: Floats, most: int) -> Floats:
    """At most so many of the values, evenly spaced by rank, the outermost included."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(np.int64)]
