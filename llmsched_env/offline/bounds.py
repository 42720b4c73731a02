"""Lower bounds on the makespan of *any* policy under exclusive batching: LB1 <= ... <= LB4, in whole nanoseconds.

Notation: n requests with prompt P_i and l_i = output_i - 1 decodes; J clients; a schedule is a sequence of K prefills
and D decodes and, with arrivals, of waits. Durations add up, waits last at least nothing, hence

    makespan >= (sum of prefill times) + (sum of decode times).

**Decode times.** A decode with ``a`` active clients that hold ``c`` tokens lasts alpha_d + beta_d * a + gamma * c. Each
request takes part in exactly l_i decodes, so the sum of ``a`` is S = sum l_i; before its m-th decode it holds its
prompt and m emitted tokens, so the sum of ``c`` is sum_i (l_i * P_i + l_i * (l_i + 1) / 2). Both are the same under
every policy, also with a context term:

    sum of decode times = alpha_d * D + beta_d * S + gamma * (that sum).

A decode right after a prefill may last first_decode_ns longer. The first one of all comes after a prefill, so where
there are decodes that is paid once at least (LB1 with tokens by recompute leaves it out).

**Prefill times.** Affine: alpha_p * K + beta_p * sum P_i. With levels, a prefill of t tokens costs a step function of
t; any affine function a + b * t with a, b >= 0 that never exceeds the step function at its steps bounds it from below,
hence the sum by a * K + b * (sum of tokens); the best of the finitely many such functions through steps is used, and a
prompt above the cap, prefilled alone, enters with its exact time.

**How many prefills.** A prompt above the cap is prefilled alone; any other prefill holds at most cap tokens and at
most one request a client. With v prompts above the cap, K >= N_min = v + max(ceil(rest of sum P / cap),
ceil((n - v) / J)), which is at least both max(N_cap, ceil(n / J)) and the count without a cap.

What is used: one prefill *or* one decode at a time, at most one request on a client, every request prefilled once, and
decodes that emit one token for each active client. Nothing is said about queues, order, stealing, lengths known or not,
or release times: those only take schedules away or add waits, and a minimum over fewer schedules is no smaller. What
breaks LB1 to LB4: preemption with recompute (see below), mixed iterations and chunked prefills (:func:`mixed_bound_ns`
is a bound for those).

**Caches at clients** (docs/migration.md). Where parts of the prompts are cached, each request computes at least the
rest, once, and P_i is that rest in all prefill terms; a thief that computes or copies more only takes longer. Contexts
hold whole prompts as before.

**Requests that change clients** while they run, without being computed again (LB1, and LB2 with ``changes_clients``).
The loads of P||Cmax may then be split between clients. A decode still emits at most one token of a request, so D is at
least the longest l_i, beside ceil(S / J).

**Tokens by recompute** (LB1 only). A running request that moves or is preempted, and is computed again, gets a token of
a prefill in place of a decode: with m such tokens there are at least m * (1 + min P_i) tokens to prefill beside the
others, and S - m in decodes, each of which held P_i + N_i - 1 tokens at most. The minimum over m is a lower bound. A
move comes with the start of another request, and none with the first, so m < n (docs/migration.md); with preemption
(docs/memory.md) nothing else need start beside, and m is at most S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.cost import CostModel, MixedCost, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.offline.assignment import Assignment, check_clients
from llmsched_env.offline.cmax_bounds import cmax_bound, exact_cmax
from llmsched_env.offline.grouping import grouped_loads
from llmsched_env.offline.spans import MAX_VALUE, MAX_WORK, UNIT, most_prefills, raised_decodes
from llmsched_env.workload.requests import Requests

__all__ = ["LowerBounds", "lb1_ns", "lb2_ns", "lb3_ns", "lb4_ns", "lower_bounds", "min_prefills", "mixed_bound_ns"]

CachedTokens = NDArray[np.int64] | None

Queues = Assignment | ArrayLike | None


@dataclass(frozen=True)
class LowerBounds:
    """The bounds of one problem, each in ns and at least as large as the one before."""

    lb1_ns: int
    lb2_ns: int
    lb3_ns: int
    lb4_ns: int

    @property
    def best_ns(self) -> int:
        """The largest of them."""
        return max(self.lb1_ns, self.lb2_ns, self.lb3_ns, self.lb4_ns)


def min_prefills(requests: Requests, clients: SupportsIndex, prefill_token_cap: int) -> int:
    """N_min: no schedule has fewer prefills (proof in the module's docstring).

    Raises:
        ConfigError: ``clients`` below 1.
    """
    count = check_clients(clients)
    alone = requests.prompt_tokens > prefill_token_cap
    num_alone = int(np.count_nonzero(alone))
    rest = int(requests.prompt_tokens.sum(dtype=np.int64) - requests.prompt_tokens[alone].sum(dtype=np.int64))
    return num_alone + max(-(-rest // prefill_token_cap), -(-(len(requests) - num_alone) // count))


def lb1_ns(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    *,
    cached_tokens: CachedTokens = None,
    most_recomputed: int = 0,
    least_again: int | None = None,
) -> int:
    """LB1 = constants + (prefill time of N_min prefills) + alpha_d * ceil(S / J); what the default reward divides by.

    Proof. The module's docstring gives everything but D >= ceil(S / J): a decode emits at most J tokens, and the
    decodes emit S in all. Holds for every cost model of this package, with and without release times.

    Args:
        requests: the requests, with their true lengths.
        clients: number of clients.
        cost: cost model or preset name.
        cached_tokens: (n,) tokens of each prompt that need not be computed; ``None`` for none.
        most_recomputed: how many times at most a request that has started is computed again by a prefill, which gives
            it a token (it has moved, or was preempted).
        least_again: tokens that such a prefill computes at least; ``None``: a whole prompt and a token.

    Raises:
        ConfigError: ``clients`` below 1; a prompt that no prefill level holds.
        UnknownNameError: no such cost preset.
    """
    model = cost_model(cost)
    case = Case.of(requests, clients, model, cached_tokens)
    if most_recomputed > 0:
        context = requests.prompt_tokens.astype(np.int64) + case.decodes
        # Levels say nothing of contexts above the cap, so there what is computed again counts for nothing.
        least = 1 + int(requests.prompt_tokens.min()) if least_again is None else least_again
        least = 0 if model.prefill_levels else least
        return case.least_with_recompute_ns(most_recomputed, least, int(context.max()))
    return case.makespan_ns(case.least_prefills, case.least_decodes)


def lb2_ns(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    *,
    queues: Queues = None,
    cached_tokens: CachedTokens = None,
    changes_clients: bool = False,
) -> int:
    """LB2: LB1 with D >= any lower bound on P||Cmax of the l_i.

    Proof. Label each request with the client that serves it. A client's requests are served one after another, one
    token a decode, so D is at least each client's load, and the largest load is at least the optimum of P||Cmax, of
    which :func:`~llmsched_env.offline.cmax_bounds.cmax_bound` is a lower bound.

    With ``queues`` the clients are given (client queues *without stealing*): then D is at least the largest queue's
    load, and K at least the number of requests in the longest queue, since a prefill takes at most one from each.

    Args:
        requests: the requests, with their true lengths.
        clients: number of clients.
        cost: cost model or preset name.
        queues: an assignment, or (n,) clients, that binds; None where any request may go anywhere.
        cached_tokens: as :func:`lb1_ns`.
        changes_clients: whether a running request may go on at another client: then D >= max(ceil(S / J), longest l).

    Raises:
        ConfigError: as :func:`lb1_ns`; queues that do not fit the requests.
    """
    case = Case.of(requests, clients, cost_model(cost), cached_tokens)
    if changes_clients:
        return case.makespan_ns(case.least_prefills, max(case.least_decodes, int(case.decodes.max())))
    return case.makespan_ns(*case.least_counts(queues))


def lb3_ns(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    *,
    queues: Queues = None,
    cached_tokens: CachedTokens = None,
) -> int:
    """LB3 = constants + min over N of (time of N prefills) + alpha_d * max(LB2's D, ceil(F(N (N + 1) / 2) / J)).

    F(G) is the least sum over requests of their group's largest l, over partitions of the requests into at most G
    groups; sorted by l, groups may be taken contiguous, so a one-dimensional dynamic program finds it.

    Proof. Take a schedule with N prefills. Label each request (k, h): it is prefilled in the k-th, and h is the
    prefill in which its client is refilled next, or N + 1 for the end; 1 <= k < h <= N + 1, so there are at most
    N (N + 1) / 2 labels. All requests of a label hold their clients through the same decodes: those between the k-th
    and the h-th prefill. So each is held at least as long as the longest l of its label. A client holds one request
    at a time, so the J clients give at most J * D client-decodes in all: J * D >= sum over requests of the largest l
    of their label >= F(N (N + 1) / 2). The cost grows with N through the prefills and F falls, so the minimum over
    N >= N_min is a lower bound. Where N (N + 1) / 2 reaches the number of distinct l, F = S and the search ends.

    Args and errors as :func:`lb2_ns`. Above :data:`~llmsched_env.offline.grouping.MAX_DISTINCT` distinct lengths they
    are rounded down to fewer, which keeps the bound valid and makes it weaker.
    """
    case = Case.of(requests, clients, cost_model(cost), cached_tokens)
    return case.lb3_ns(*case.least_counts(queues))


def lb4_ns(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    *,
    queues: Queues = None,
    cached_tokens: CachedTokens = None,
) -> int:
    """LB4 = constants + min over N of (time of N prefills) + alpha_d * D_N, with D_N at least what LB3 has there.

    With few prefills most requests are refilled at the next one and share N holding times (proof in `raised_decodes`
    of spans.py). With few requests D_N is at least the optimum of P||Cmax (`exact_cmax`). What gaps are to. Some
    milliseconds; beyond `spans.MAX_WORK` requests times clients only the latter is added to LB3.

    Args and errors as :func:`lb3_ns`.
    """
    case = Case.of(requests, clients, cost_model(cost), cached_tokens)
    return case.lb4_ns(*case.least_counts(queues))


def mixed_bound_ns(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    mixed: MixedCost,
    *,
    longest: bool = True,
    changes_clients: bool = False,
    recomputes: bool = False,
    cached_tokens: CachedTokens = None,
) -> int:
    """A bound on the makespan where iterations may be mixed (and prefills be chunked); affine prefills only.

    Proof. The first iteration has nobody active, so it emits no token but first ones. All others that emit the S
    further tokens are decodes or mixed, at least ceil(S / J) of them. With the sum form each iteration lasts at least
    the least fixed time of its kind, plus the lesser price of each token in it; interference only adds. With the
    overlap form a mixed iteration lasts as long as the prefill in it, and as the decode in it: so the makespan is at
    least one fixed time and all prompt tokens, and at least the first prefill and all decodes. A request stays on its
    client, so there are as many of those iterations as :func:`lb2_ns` has decodes.

    Where a preempted request is computed again, its next token comes without a decode. In the sum form each further
    token then costs its share of a full decode, or at least 1 + min P_i prompt tokens, whichever is less. In the
    overlap form nothing but the reading of all prompts is left to count.

    Args:
        requests: the requests, with their true lengths.
        clients: number of clients.
        cost: cost model or preset name.
        mixed: what mixed iterations last.
        longest: count decodes as LB2 does; else as LB1 does, which is what rewards are scaled by.
        changes_clients: whether a request may go on at another client, by being copied.
        recomputes: whether preempted requests are computed again.
        cached_tokens: as :func:`lb1_ns`, where blocks are shared; then it may be a token that is computed again.

    Raises:
        ConfigError: ``clients`` below 1.
        UnknownNameError: no such cost preset.
    """
    cost = cost_model(cost)
    case = Case.of(requests, clients, cost)
    decodes = case.least_decodes
    if longest and changes_clients:
        decodes = max(decodes, int(case.decodes.max()))
    elif longest:
        decodes = case.least_counts(None)[1]
    prompts = int(requests.prompt_tokens.sum(dtype=np.int64)) - int(0 if cached_tokens is None else cached_tokens.sum())
    if recomputes and mixed.overlaps:
        return cost.alpha_prefill_ns + cost.beta_prefill_ns * prompts
    if recomputes:
        fixed_ns = min(cost.alpha_decode_ns, mixed.alpha_ns)
        prompt_ns = min(cost.beta_prefill_ns, mixed.beta_prompt_ns)
        decoding_ns = fixed_ns * case.total_decodes // case.clients
        decoding_ns += min(cost.beta_decode_ns, mixed.beta_active_ns) * case.total_decodes
        least = 1 + int(requests.prompt_tokens.min()) if cached_tokens is None else 1
        again_ns = least * prompt_ns * case.total_decodes
        return min(cost.alpha_prefill_ns, mixed.alpha_ns) + prompt_ns * prompts + min(decoding_ns, again_ns)
    if mixed.overlaps:
        first_ns = cost.alpha_prefill_ns + cost.beta_prefill_ns
        decoding_ns = first_ns + cost.alpha_decode_ns * decodes + case.constant_ns
        return max(cost.alpha_prefill_ns + cost.beta_prefill_ns * prompts, decoding_ns)
    saved = max(0, cost.beta_decode_ns - mixed.beta_active_ns)
    return (
        min(cost.alpha_prefill_ns, mixed.alpha_ns)
        + min(cost.beta_prefill_ns, mixed.beta_prompt_ns) * prompts
        + min(cost.alpha_decode_ns, mixed.alpha_ns) * decodes
        + case.constant_ns
        - saved * case.total_decodes
    )


def lower_bounds(
    requests: Requests, clients: SupportsIndex, cost: CostModel | str, *, queues: Queues = None
) -> LowerBounds:
    """All of them at once, with the errors of :func:`lb2_ns`. LB1 ignores ``queues``."""
    case = Case.of(requests, clients, cost_model(cost))
    counts = case.least_counts(queues)
    return LowerBounds(
        case.makespan_ns(case.least_prefills, case.least_decodes),
        case.makespan_ns(*counts),
        case.lb3_ns(*counts),
        case.lb4_ns(*counts),
    )


class Case:
    """The constants of one problem that all bounds share."""

    def __init__(self, requests: Requests, clients: int, cost: CostModel) -> None:
        self.requests, self.clients, self.cost = requests, clients, cost
        self.decodes = requests.decodes.astype(np.int64)
        self.total_decodes = int(self.decodes.sum())
        self.least_decodes = -(-self.total_decodes // clients)
        self.alone = requests.prompt_tokens[requests.prompt_tokens > cost.prefill_token_cap]
        self.rest_tokens = int(requests.prompt_tokens.sum(dtype=np.int64) - self.alone.sum(dtype=np.int64))
        self.least_prefills = min_prefills(requests, clients, cost.prefill_token_cap)
        context = 0
        if cost.gamma_decode_ns:
            # Python integers: a product of two int32 columns, summed, may leave 64 bits.
            context = sum(
                need * prompt + need * (need + 1) // 2
                for need, prompt in zip(self.decodes.tolist(), requests.prompt_tokens.tolist(), strict=True)
            )
        self.constant_ns = cost.beta_decode_ns * self.total_decodes + cost.gamma_decode_ns * context
        self.alone_ns = sum(cost.prefill_ns(tokens) for tokens in self.alone.tolist())
        self.minorants = _prefill_minorants(cost)

    @classmethod
    def of(
        cls, requests: Requests, clients: SupportsIndex, cost: CostModel, cached_tokens: CachedTokens = None
    ) -> Case:
        """The problem, of whose prompts ``cached_tokens`` need not be computed."""
        count = check_clients(clients)
        if cached_tokens is None:
            return cls(requests, count, cost)
        uncached = (requests.prompt_tokens - cached_tokens).astype(np.int32)
        case = cls(replace(requests, prompt_tokens=uncached), count, cost)
        case.constant_ns += cost.gamma_decode_ns * int((case.decodes * cached_tokens).sum())
        return case

    def makespan_ns(self, prefills: int, decodes: int) -> int:
        """Least makespan of a schedule with at least so many prefills and decodes."""
        others = prefills - len(self.alone)
        prefill_ns = max(-(-(a * others + b * self.rest_tokens) // 1) for a, b in self.minorants)
        first_ns = self.cost.first_decode_ns if decodes > 0 else 0
        return self.constant_ns + self.alone_ns + int(prefill_ns) + self.cost.alpha_decode_ns * decodes + first_ns

    def least_with_recompute_ns(self, most_recomputed: int, least_context: int, most_context: int) -> int:
        """LB1 where prefills that recompute requests of such contexts give tokens in place of decodes.

        Linear in their number m but for the count of decodes, which falls by one with every J: so the minimum is at an
        end, or at the first or last m that has one decode less.
        """
        most = min(most_recomputed, self.total_decodes)
        first = self.total_decodes % self.clients
        counts = {0, most, min(most, first), most - (most - first) % self.clients if most >= first else 0}
        saved_ns = self.cost.beta_decode_ns + self.cost.gamma_decode_ns * most_context
        others = self.least_prefills - len(self.alone)

        def least(a: Fraction | int, b: Fraction | int, m: int) -> int:
            prefill_ns = -(-(a * others + b * (self.rest_tokens + m * least_context)) // 1)
            decodes = -(-(self.total_decodes - m) // self.clients)
            return int(prefill_ns) - saved_ns * m + self.cost.alpha_decode_ns * decodes

        shared_ns = max(min(least(a, b, m) for m in counts) for a, b in self.minorants)
        return self.constant_ns + self.alone_ns + shared_ns

    def least_counts(self, queues: Queues) -> tuple[int, int]:
        """LB2's least numbers of prefills and decodes."""
        if queues is None:
            return self.least_prefills, max(self.least_decodes, cmax_bound(self.decodes, self.clients))
        client_of = client_indices(queues, len(self.requests), self.clients)
        held = np.zeros(self.clients, np.int64)
        np.add.at(held, client_of, self.decodes)
        longest = int(np.bincount(client_of).max())
        return max(self.least_prefills, longest), max(self.least_decodes, int(held.max()))

    def lb3_ns(self, least_prefills: int, least_decodes: int) -> int:
        return min(
            self.makespan_ns(least_prefills + more, decodes)
            for more, decodes in enumerate(self._grouped(least_prefills, least_decodes))
        )

    def lb4_ns(self, least_prefills: int, least_decodes: int) -> int:
        least_decodes = max(least_decodes, exact_cmax(self.decodes, self.clients))
        grouped = self._grouped(least_prefills, least_decodes)
        lb3_ns = min(self.makespan_ns(least_prefills + more, decodes) for more, decodes in enumerate(grouped))
        n, alpha_ns = len(self.decodes), self.cost.alpha_decode_ns
        largest = max(n * int(self.decodes.max()) * UNIT, alpha_ns * self.total_decodes)
        if n * self.clients > MAX_WORK or alpha_ns * self.total_decodes == 0 or largest > MAX_VALUE:
            return lb3_ns
        prefills = range(least_prefills, most_prefills(least_prefills, n) + 1)
        known = np.full(len(prefills), least_decodes, np.int64)
        known[: len(grouped)] = grouped[: len(known)]
        from_ns = self.makespan_ns(least_prefills, least_decodes)
        fixed_ns = np.array([self.makespan_ns(k, least_decodes) - from_ns for k in prefills], np.int64)
        slots = np.cumsum(np.minimum(self.clients, self._most_read(prefills[-1])))[least_prefills - 1 :]
        raised = raised_decodes(self.decodes, self.clients, slots, least_prefills, fixed_ns, alpha_ns, known)
        bound = from_ns + int((fixed_ns + alpha_ns * (raised - least_decodes)).min())
        if prefills[-1] < n:  # of more prefills no more is known than of decodes in all
            bound = min(bound, self.makespan_ns(prefills[-1] + 1, least_decodes))
        return max(lb3_ns, bound)

    def _grouped(self, least_prefills: int, least_decodes: int) -> list[int]:
        """LB3's least decodes with ``least_prefills`` prefills, with one more, ...; the last holds from there on."""
        held = grouped_loads(self.decodes, first=least_prefills)
        found = [max(least_decodes, -(-h // self.clients)) for h in held]
        return found[: found.index(least_decodes) + 1] if least_decodes in found else found

    def _most_read(self, prefills: int) -> NDArray[np.int64]:
        """(prefills,) how many requests can be read by the first prefill, the second, ...: those of least tokens."""
        cap = self.cost.prefill_token_cap
        prompts = self.requests.prompt_tokens
        upto = np.cumsum(np.sort(prompts[prompts <= cap]), dtype=np.int64)
        count = np.arange(1, prefills + 1, dtype=np.int64)
        return np.searchsorted(upto, cap * count, side="right") + np.minimum(len(self.alone), count)


def client_indices(queues: Assignment | ArrayLike, n: int, clients: int) -> NDArray[np.int64]:
    array = np.asarray(queues.client_of if isinstance(queues, Assignment) else queues)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ConfigError(
            f"queues has shape {array.shape} and dtype {array.dtype}: give one client index for each of {n} requests."
        )
    if array.min() < 0 or array.max() >= clients:
        bad = int(np.flatnonzero((array < 0) | (array >= clients))[0])
        raise ConfigError(f"queues[{bad}] = {array[bad]} is no client: indices lie in [0, {clients}).")
    return array.astype(np.int64)


def _prefill_minorants(cost: CostModel) -> Sequence[tuple[Fraction | int, Fraction | int]]:
    """Affine functions (a, b), a, b >= 0, with a + b * t <= the time of a prefill of t tokens for all 1 <= t <= cap.

    For levels they are the lines through two steps that lie below all others, the line from the origin below them,
    and the constant of the lowest level: the vertices of the dual of 'cover the tokens with at least K prefills'.
    """
    if not cost.prefill_levels:
        return [(cost.alpha_prefill_ns, cost.beta_prefill_ns)]
    steps = [(min(capacity, cost.prefill_token_cap), time) for capacity, time in cost.prefill_levels]
    # Levels beyond the cap all end at the cap: only the lowest of them counts.
    steps = [step for i, step in enumerate(steps) if i == 0 or step[0] > steps[i - 1][0]]
    lines: list[tuple[Fraction | int, Fraction | int]] = [(steps[0][1], 0)]
    lines.append((0, min(Fraction(time, tokens) for tokens, time in steps)))
    for i, (tokens, time) in enumerate(steps):
        for other_tokens, other_time in steps[i + 1 :]:
            slope = Fraction(other_time - time, other_tokens - tokens)
            base = time - slope * tokens
            if base >= 0 and all(base + slope * t <= c for t, c in steps):
                lines.append((base, slope))
    return lines
