"""From a scenario and a case number to what the engine reads: requests, estimates, queues and bound, built once."""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from cachetools import LRUCache
from numpy.typing import ArrayLike, NDArray

from llmsched_env.config import (
    JOINT,
    LARGEST,
    MAX_KV_TOKENS,
    SLO,
    KVCache,
    Migration,
    Mixed,
    Scenario,
)
from llmsched_env.cost import CostModel, capacity_requests_per_s
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.offline import lb1_ns, lb2_ns, lb4_ns, mixed_bound_ns, stored_assignment
from llmsched_env.offline.joint import Effort, is_shipped, stored_plan
from llmsched_env.problem import Problem
from llmsched_env.units import DOUBTED, UnitWarning, doubt
from llmsched_env.workload import Requests, estimated_tokens, predictor
from llmsched_env.workload.protocol import check_case

__all__ = [
    "Offered",
    "SLOWarning",
    "build_problem",
    "draw_case",
    "estimates",
    "has_plans",
    "is_batch",
    "offered",
    "pool_size",
]

BYTES_KEPT = 2**29
"""Memory for problems that may be asked for again: a GSM8K case takes about 60 kB, the default pools 45 MB."""

UNBOUNDED_POOL = 2**31
"""Cases to draw from where a workload makes them without end."""

MOST_CACHE_BYTES = 10**15
"""The memory of some thousand accelerators: no cache is larger."""

ROUGH = Effort(tries=1, anneal_moves=1_000, repair_moves=1_500)
"""Of joint plans by predicted lengths: an error of one percent costs more than the search gains."""

LATE_NS = 86_400 * 10**9
"""A day of waiting for the first request is no part of any episode."""

_lock = threading.Lock()
_problems: LRUCache[Any, Problem] = LRUCache(BYTES_KEPT, getsizeof=lambda kept: kept.nbytes)
_said: set[Any] = set()


class SLOWarning(UserWarning):
    """An SLO that no schedule meets for any request; said once a process for each SLO, workload and cost."""


def build_problem(scenario: Scenario, case: int, *, client_of: ArrayLike | None = None) -> Problem:
    """The case of that number in the scenario's split; the same for ever, read-only, shared by all its users.

    Args:
        scenario: where.
        case: its number.
        client_of: (n,) queue of each request, in place of the scenario's assignment; such a problem is not kept.

    Raises:
        ConfigError: not a case number; an assignment that does not name one client for each request, or one for a
            shared queue.
        WorkloadError: lengths that the workload does not predict.

    Warns:
        SLOWarning: an SLO that no schedule can meet.
        UnitWarning: a latency limit, a bandwidth, a budget or an origin of times that looks as if another was meant.
    """
    if not isinstance(scenario, Scenario):
        raise ConfigError(f"a problem is built for a Scenario, not a {type(scenario).__name__}: see make_scenario.")
    # Before the cache, to which True and 1.0 are 1.
    _, case = check_case(scenario.split, case)
    if client_of is not None:
        return _build(scenario, case, np.asarray(client_of))
    key = scenario, case, getattr(scenario.source, "version", None)
    with _lock:
        built = _problems.get(key)
    if built is None:
        built = _build(scenario, case)
        if built.nbytes <= BYTES_KEPT:
            with _lock:
                _problems[key] = built
    return built


def is_batch(scenario: Scenario) -> bool:
    """Whether all requests are there at once, by the first case of the scenario's pool."""
    release_ns = scenario.source.requests(scenario.split, 0, num_requests=scenario.num_requests).release_ns
    return scenario.load is None and bool(release_ns[0] == release_ns[-1])


def has_plans(scenario: Scenario) -> bool:
    """Whether a scenario can have joint plans, and those of its pool's first and last case are shipped."""
    size = scenario.source.pool_size(scenario.split)
    if size is None or scenario.lengths != "known":
        return False
    try:
        scenario.replace(queue="shared", order=JOINT)
    except ConfigError:
        return False
    ends = (
        scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests) for case in (0, size - 1)
    )
    return all(is_shipped(requests, scenario.num_clients, scenario.believed_model) for requests in ends)


def _build(scenario: Scenario, case: int, client_of: NDArray[Any] | None = None) -> Problem:
    requests = _requests(scenario, case)
    guess = estimates(scenario, case, requests)
    cost = scenario.cost_model
    queues = None
    if client_of is not None:
        queues = _checked(client_of, scenario, len(requests))
    elif scenario.queue == "client":
        queues = stored_assignment(
            requests, scenario.num_clients, scenario.assignment, loads=guess - 1, progress=sys.stderr.isatty()
        ).client_of
    plan = None
    if scenario.order == JOINT:
        shown, effort = requests, None
        if scenario.lengths != "known":
            shown, effort = replace(requests, output_tokens=guess), ROUGH
        plan = stored_plan(
            shown, scenario.num_clients, scenario.believed_model, effort=effort, progress=sys.stderr.isatty()
        )
    slo = scenario.slo(len(requests))
    moved, mixed, cache = scenario.migration(), scenario.mixed_iterations(), scenario.kv_cache()
    lb1, best = bounds_ns(requests, scenario.num_clients, cost, moved, mixed, cache)
    built = Problem.build(
        requests,
        guess,
        cost,
        scenario.num_clients,
        client_of=queues,
        order=scenario.order,
        stealing=scenario.stealing,
        bound_ns=best,
        lb1_ns=lb1,
        reward=scenario.reward,
        skip_forced=scenario.skip_forced,
        max_iterations=scenario.max_iterations or 0,
        mechanisms=scenario.mechanisms(case, len(requests)),
        plan=plan,
        aging_tokens_per_s=scenario.aging_tokens_per_s or 0.0,
        choose_length=scenario.choose_length,
    )
    if slo is not None:
        _warn_of(slo, scenario, case, requests)
    _warn_of_units(scenario, requests)
    return built


def _checked(client_of: NDArray[Any], scenario: Scenario, num_requests: int) -> NDArray[np.int32]:
    """The assignment, if it is one.

    Raises:
        ConfigError: it is not, or the scenario has no client queues.
    """
    if scenario.queue != "client":
        raise ConfigError(f"client_of with queue = {scenario.queue!r}: set queue='client', or leave it out.")
    if client_of.shape != (num_requests,) or client_of.dtype.kind not in "iu":
        raise ConfigError(
            f"client_of of shape {client_of.shape} and dtype {client_of.dtype}: give {num_requests} whole numbers, the "
            "client of each request."
        )
    bad = np.flatnonzero((client_of < 0) | (client_of >= scenario.num_clients))
    if bad.size:
        raise ConfigError(
            f"client_of[{bad[0]}] = {client_of[bad[0]]} is out of range: clients are numbered from 0 to "
            f"{scenario.num_clients - 1}."
        )
    return client_of.astype(np.int32)


def _warn_of(slo: SLO, scenario: Scenario, case: int, requests: Requests) -> None:
    """Say which SLO every counted request violates, even one that comes alone."""
    if scenario.noisy:
        return  # nobody can say for certain
    cost, counted = scenario.cost_model, slice(slo.first, slo.last)
    prompts, outputs = requests.prompt_tokens[counted], requests.output_tokens[counted]
    least_ns = cost.prefill_ns(int(prompts.min()))
    mixed = scenario.mixed_cost_model
    if mixed is not None and not mixed.overlaps:
        least_ns = min(least_ns, mixed.alpha_ns + mixed.beta_prompt_ns * int(prompts.min()))
    best_ns = {"ttft_s": ("the shortest prefill of a request lasts", float(least_ns))}
    more = outputs > 1
    if more.any() and mixed is None:
        # Alone, a request of P and N tokens holds P + N / 2 of context in the mean of its decodes.
        context = float((prompts[more] + outputs[more] / 2).min())
        decode_ns = cost.decode_ns(1) + cost.gamma_decode_ns * context
        best_ns["tpot_s"] = ("decodes of one client alone last", decode_ns)
    for name, (what, shortest_ns) in best_ns.items():
        limit_ns = slo.ttft_ns if name == "ttft_s" else slo.tpot_ns
        key = name, limit_ns, cost, scenario.source
        if limit_ns >= shortest_ns or key in _said:
            continue
        rest = " but for requests of one token" if name == "tpot_s" and not more.all() else ""
        warnings.warn(
            f"{name} = {getattr(scenario, name):g}: no schedule meets this SLO in case {case} of workload "
            f"{scenario.source.name!r}{rest}, since {what} {shortest_ns / 1e9:.4g} s under cost model {cost.name!r}. "
            f"Allow more than that, or take a faster cost model.",
            SLOWarning,
            stacklevel=4,
        )
        _said.add(key)


def _warn_of_units(scenario: Scenario, requests: Requests) -> None:
    """Say once a process which arguments look as if another unit was meant."""
    given = {name: value for name in DOUBTED if (value := getattr(scenario, name)) is not None}
    unlimited = {name for name, value in given.items() if value == LARGEST[name]}
    if not {"ttft_s", "tpot_s"} <= unlimited:  # one without a limit beside one with is no absence of SLOs
        unlimited -= {"ttft_s", "tpot_s"}
    doubts = [doubt(name, value) for name, value in given.items() if name not in unlimited]
    tokens, each = scenario.kv_budget_tokens, scenario.kv_bytes_per_token
    if tokens is not None and tokens * each > MOST_CACHE_BYTES and tokens < MAX_KV_TOKENS:
        doubts.append(
            f"kv_budget_tokens = {tokens} of {each} bytes each are {tokens * each / 1e12:.4g} TB. If {tokens} bytes "
            f"are meant, give kv_budget_tokens = {max(1, tokens // each)}."
        )
    if requests.release_ns[0] > LATE_NS:
        doubts.append(
            f"the first request of workload {scenario.source.name!r} comes at release_ns = {requests.release_ns[0]}, "
            f"{requests.release_ns[0] / 86400e9:.4g} days after the episode begins. If these are a clock's times, "
            "subtract the first."
        )
    for text in doubts:
        if text is not None and text not in _said:
            warnings.warn(text, UnitWarning, stacklevel=4)
            _said.add(text)


class Offered(NamedTuple):
    """How fast the requests of a case come.

    Attributes:
        requests_per_s: gaps between arrivals over the time from the first to the last; ``None`` where all are released
            at one time.
        load: the same as a share of `llmsched_env.cost.capacity_requests_per_s` for the case's own mean lengths;
            ``None`` where there is no rate, or the cost model has no such capacity.
    """

    requests_per_s: float | None
    load: float | None


def offered(scenario: Scenario, case: int) -> Offered:
    """How fast the requests of a case come.

    Raises:
        ConfigError: a load or rate that cannot be set.
        WorkloadError: a case that cannot be made.
    """
    requests = _requests(scenario, case)
    span_s = (int(requests.release_ns[-1]) - int(requests.release_ns[0])) / 1e9
    if span_s == 0:
        return Offered(None, None)
    rate = (len(requests) - 1) / span_s
    try:
        return Offered(rate, rate / _capacity(scenario, requests))
    except ConfigError:  # a cost model without one
        return Offered(rate, None)


def _requests(scenario: Scenario, case: int) -> Requests:
    """The requests of a case at the scenario's load or rate, or at the workload's own times.

    Raises:
        ConfigError: a cost model for which there is no capacity, or requests that do not come over time.
    """
    source = scenario.source
    requests = Requests.checked(source.requests(scenario.split, case, num_requests=scenario.num_requests), source.name)
    name = "load" if scenario.load is not None else "requests_per_s"
    wanted: float | None = getattr(scenario, name)
    if wanted is None:
        return requests
    if len(requests) == 1:
        raise ConfigError(
            f"{name} = {wanted}: a case of one request has no rate of arrivals. Give it more requests, or no {name}."
        )
    if requests.release_ns[0] == requests.release_ns[-1]:
        raise ConfigError(
            f"{name} = {wanted}: the requests of workload {source.name!r} are all released at one time, "
            f"which no rate describes. Take one with arrivals ('serving', 'azure-synthetic', a trace), or no {name}."
        )
    try:
        return requests.at_rate(wanted if scenario.load is None else wanted * _capacity(scenario, requests))
    except ConfigError as error:  # of a load, it speaks of rates, which nobody has given
        raise ConfigError(f"load = {wanted}: {error}" if name == "load" else str(error)) from None


def _capacity(scenario: Scenario, requests: Requests) -> float:
    """`capacity_requests_per_s` for the requests' own mean lengths."""
    return capacity_requests_per_s(
        scenario.cost_model,
        scenario.num_clients,
        float(requests.prompt_tokens.mean()),
        float(requests.output_tokens.mean()),
    )


def bounds_ns(
    requests: Requests,
    clients: int,
    cost: CostModel,
    moved: Migration | None = None,
    mixed: Mixed | None = None,
    cache: KVCache | None = None,
) -> tuple[int, int]:
    """LB1, or what stands for it, and the best bound that holds where requests move, mix or are preempted so.

    Both hold for every policy, order, assignment and stealing, so that methods with queues of their own are compared
    with one bound. Rewards are scaled by the first, gaps are to the second.
    """
    hits = None
    if cache is not None and cache.prefix_caching:
        hits = most_cached(requests, cache.block_tokens)
    if mixed is not None:
        recomputes = cache is not None and not cache.swap_token_ns
        first, best = (
            mixed_bound_ns(
                requests,
                clients,
                cost,
                mixed.cost,
                longest=longest,
                changes_clients=cache is not None,
                recomputes=recomputes,
                cached_tokens=hits,
            )
            for longest in (False, True)
        )
        return first, best
    cached, changes, most = hits, cache is not None, 0
    if cache is not None and not cache.swap_token_ns:
        most = int(requests.decodes.sum(dtype=np.int64))
    if moved is not None:
        cached = requests.prompt_tokens.astype(np.int64) * moved.cached_millionths // 10**6
        changes = moved.steal != "waiting"
        most = len(requests) - 1 if changes and moved.token_ns == 0 else 0
    again = None if hits is None else 1  # a preempted request may find all but its last token
    first = lb1_ns(requests, clients, cost, cached_tokens=cached, most_recomputed=most, least_again=again)
    if most > 0:
        return first, first
    if changes:
        return first, lb2_ns(requests, clients, cost, cached_tokens=cached, changes_clients=True)
    return first, lb4_ns(requests, clients, cost, cached_tokens=cached)


def most_cached(requests: Requests, block_tokens: int) -> NDArray[np.int64]:
    """(n,) tokens of each prompt that another request may have computed: whole blocks, and never its last token."""
    blocks, prompts = requests.prefix_blocks, requests.prompt_tokens.astype(np.int64)
    if blocks is None or blocks.tokens is None:
        return np.zeros_like(prompts)  # refused where the case is laid out
    alike = np.minimum(blocks.shared * blocks.tokens, prompts - 1)
    return alike // block_tokens * block_tokens


def estimates(scenario: Scenario, case: int, requests: Requests) -> NDArray[np.int32]:
    """(n,) int32, at least 1: output lengths as the scenario lets a scheduler see them.

    Raises:
        WorkloadError: ``lengths="predicted"`` without a predictor, and the workload brings no predictions; a predictor
            that does not say as much as it should.
    """
    if scenario.lengths == "known":
        return requests.output_tokens
    if scenario.lengths == "hidden":
        return np.full(len(requests), max(1, round(requests.mean_output_tokens)), np.int32)
    if scenario.predictor is not None:
        prediction = predictor(scenario.predictor).predict(scenario.source, scenario.split, case, requests)
        if len(prediction) != len(requests):
            raise WorkloadError(
                f"predictor {scenario.predictor!r} predicts {len(prediction)} lengths for {len(requests)} requests: "
                "it has to return one per request."
            )
        return estimated_tokens(prediction, scenario.sd_weight)
    if requests.predicted_tokens is None:
        raise WorkloadError(
            f"lengths='predicted' but workload {scenario.source.name!r} has no predictions: give a file with a "
            "column predicted_tokens, or predictor='prompt', or lengths='hidden'."
        )
    return requests.predicted_tokens


def pool_size(scenario: Scenario) -> int | None:
    """Cases in the scenario's default pool, or ``None`` where there is no end to them."""
    return scenario.source.pool_size(scenario.split)


def draw_case(scenario: Scenario, stream: np.random.Generator) -> int:
    """The next case number of a seeded stream, uniform over the scenario's pool."""
    return int(stream.integers(pool_size(scenario) or UNBOUNDED_POOL))
