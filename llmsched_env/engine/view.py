"""What a policy may know, and what only metrics and rewards read."""

from __future__ import annotations

from types import GetSetDescriptorType
from typing import Any

import cython

from llmsched_env.errors import UnknownFieldError


class View:
    """What a policy may know before an iteration. Lengths are *estimates*: the truth where the scenario says so.

    So are durations to come and the coefficients of the cost model: without noise, and what schedulers believe.
    Symbols of docs/model.md: J clients, A active, F idle, W waiting, R ready. Times are ns, work is output tokens.
    All fields are whole numbers but ``mean_output_tokens``. The one of a running episode is updated in place.

    ``View(active=3, ...)`` makes one by hand: what is not given is 0.

    Attributes:
        clock_ns: time since the start of the episode.
        prefills: prefill iterations so far.
        decodes: decode iterations so far.
        completed: requests complete.
        num_clients: J.
        active: clients that decode.
        idle: clients that do not.
        waiting: requests released and not started.
        ready: idle clients that have something to take.
        batch_requests: what a prefill now would hold (client queues: expected, see client_queues.py).
        batch_tokens: prompt tokens of that batch.
        batch_work: estimated output tokens of that batch.
        prefill_ns: what that prefill would last.
        decode_ns: what a decode now would last.
        last_prefill_ns: duration of the last prefill.
        last_prefill_decode: decode count at the last prefill.
        consecutive_prefills: prefills since the last decode.
        idle_charge: sum of `ready` over the decodes since the last prefill.
        waiting_tokens: prompt tokens that wait.
        waiting_work: estimated output tokens that wait.
        context_tokens: prompt and output tokens held for the active clients.
        oldest_release_ns: of the waiting requests; some time up to the clock where none waits.
        due_1: active clients expected to finish in the next decode.
        due_4: ... in 2 to 4 decodes.
        due_16: ... in 5 to 16.
        due_64: ... in 17 to 64.
        due_256: ... in 65 to 256.
        overdue: active clients that have outlived their estimate.
        remaining: sum of expected decodes to go over the active clients (overdue: 0).
        remaining_squared: sum of their squares.
        last_due: decode count at which the last active client is expected to finish; up to `decodes` where none is.
        alpha_prefill_ns: fixed time of a prefill (cost model).
        alpha_decode_ns: fixed time of a decode.
        beta_decode_ns: time of an active client in a decode.
        token_cap: most prompt tokens in one prefill.
        mean_output_tokens: of the population that the case was drawn from.
        ttft_ns: time to first token of the SLO; 0 where there is none, and then the following are 0, too.
        tpot_ns: time per output token of the SLO.
        late: waiting requests past their TTFT deadline: not even the shortest prefill now would meet it.
        in_time_release_ns: of the oldest waiting request that is not late; the clock where there is none.
        decoding_ns: time since their first token, summed over the active clients.
        decoding_tokens: tokens that they have emitted in it.
        kv_budget_tokens: tokens that the KV cache holds; 0 where it is not modelled, and then the following are 0, too.
        kv_used: tokens allocated, in whole blocks.
        kv_growth: tokens that a decode now would take (vLLM's rules: once it has preempted for it).
        preempted: requests that have started, and wait to go on.
        mixed_tokens: most prompt tokens beside a decode; 0: no mixed iterations, and then the following are 0, too.
        mixed: mixed iterations so far: those with an active client count as decodes, the others as prefills.
        chunk_tokens: prompt tokens that a mixed iteration now would read.
        mixed_ns: what it would last.
        reading_tokens: tokens left of the prompt whose prefill is chunked; 0 without one.

    Raises:
        UnknownFieldError: a field that does not exist is given or read.
    """

    clock_ns: cython.longlong
    prefills: cython.longlong
    decodes: cython.longlong
    completed: cython.longlong
    num_clients: cython.longlong
    active: cython.longlong
    idle: cython.longlong
    waiting: cython.longlong
    ready: cython.longlong
    batch_requests: cython.longlong
    batch_tokens: cython.longlong
    batch_work: cython.longlong
    prefill_ns: cython.longlong
    decode_ns: cython.longlong
    last_prefill_ns: cython.longlong
    last_prefill_decode: cython.longlong
    consecutive_prefills: cython.longlong
    idle_charge: cython.longlong
    waiting_tokens: cython.longlong
    waiting_work: cython.longlong
    context_tokens: cython.longlong
    oldest_release_ns: cython.longlong
    due_1: cython.longlong
    due_4: cython.longlong
    due_16: cython.longlong
    due_64: cython.longlong
    due_256: cython.longlong
    overdue: cython.longlong
    remaining: cython.longlong
    remaining_squared: cython.longlong
    last_due: cython.longlong
    alpha_prefill_ns: cython.longlong
    alpha_decode_ns: cython.longlong
    beta_decode_ns: cython.longlong
    token_cap: cython.longlong
    mean_output_tokens: cython.double
    ttft_ns: cython.longlong
    tpot_ns: cython.longlong
    late: cython.longlong
    in_time_release_ns: cython.longlong
    decoding_ns: cython.longlong
    decoding_tokens: cython.longlong
    kv_budget_tokens: cython.longlong
    kv_used: cython.longlong
    kv_growth: cython.longlong
    preempted: cython.longlong
    mixed_tokens: cython.longlong
    mixed: cython.longlong
    chunk_tokens: cython.longlong
    mixed_ns: cython.longlong
    reading_tokens: cython.longlong

    def __init__(self, **fields: float) -> None:
        take: Any = fields.pop
        self.clock_ns = take("clock_ns", 0)
        self.prefills = take("prefills", 0)
        self.decodes = take("decodes", 0)
        self.completed = take("completed", 0)
        self.num_clients = take("num_clients", 0)
        self.active = take("active", 0)
        self.idle = take("idle", 0)
        self.waiting = take("waiting", 0)
        self.ready = take("ready", 0)
        self.batch_requests = take("batch_requests", 0)
        self.batch_tokens = take("batch_tokens", 0)
        self.batch_work = take("batch_work", 0)
        self.prefill_ns = take("prefill_ns", 0)
        self.decode_ns = take("decode_ns", 0)
        self.last_prefill_ns = take("last_prefill_ns", 0)
        self.last_prefill_decode = take("last_prefill_decode", 0)
        self.consecutive_prefills = take("consecutive_prefills", 0)
        self.idle_charge = take("idle_charge", 0)
        self.waiting_tokens = take("waiting_tokens", 0)
        self.waiting_work = take("waiting_work", 0)
        self.context_tokens = take("context_tokens", 0)
        self.oldest_release_ns = take("oldest_release_ns", 0)
        self.due_1 = take("due_1", 0)
        self.due_4 = take("due_4", 0)
        self.due_16 = take("due_16", 0)
        self.due_64 = take("due_64", 0)
        self.due_256 = take("due_256", 0)
        self.overdue = take("overdue", 0)
        self.remaining = take("remaining", 0)
        self.remaining_squared = take("remaining_squared", 0)
        self.last_due = take("last_due", 0)
        self.alpha_prefill_ns = take("alpha_prefill_ns", 0)
        self.alpha_decode_ns = take("alpha_decode_ns", 0)
        self.beta_decode_ns = take("beta_decode_ns", 0)
        self.token_cap = take("token_cap", 0)
        self.mean_output_tokens = take("mean_output_tokens", 0)
        self.ttft_ns = take("ttft_ns", 0)
        self.tpot_ns = take("tpot_ns", 0)
        self.late = take("late", 0)
        self.in_time_release_ns = take("in_time_release_ns", 0)
        self.decoding_ns = take("decoding_ns", 0)
        self.decoding_tokens = take("decoding_tokens", 0)
        self.kv_budget_tokens = take("kv_budget_tokens", 0)
        self.kv_used = take("kv_used", 0)
        self.kv_growth = take("kv_growth", 0)
        self.preempted = take("preempted", 0)
        self.mixed_tokens = take("mixed_tokens", 0)
        self.mixed = take("mixed", 0)
        self.chunk_tokens = take("chunk_tokens", 0)
        self.mixed_ns = take("mixed_ns", 0)
        self.reading_tokens = take("reading_tokens", 0)
        for name in fields:
            raise UnknownFieldError(name, FIELDS)

    def assign(self, other: View) -> cython.void:
        """Take over all fields of ``other``."""
        self.clock_ns = other.clock_ns
        self.prefills = other.prefills
        self.decodes = other.decodes
        self.completed = other.completed
        self.num_clients = other.num_clients
        self.active = other.active
        self.idle = other.idle
        self.waiting = other.waiting
        self.ready = other.ready
        self.batch_requests = other.batch_requests
        self.batch_tokens = other.batch_tokens
        self.batch_work = other.batch_work
        self.prefill_ns = other.prefill_ns
        self.decode_ns = other.decode_ns
        self.last_prefill_ns = other.last_prefill_ns
        self.last_prefill_decode = other.last_prefill_decode
        self.consecutive_prefills = other.consecutive_prefills
        self.idle_charge = other.idle_charge
        self.waiting_tokens = other.waiting_tokens
        self.waiting_work = other.waiting_work
        self.context_tokens = other.context_tokens
        self.oldest_release_ns = other.oldest_release_ns
        self.due_1 = other.due_1
        self.due_4 = other.due_4
        self.due_16 = other.due_16
        self.due_64 = other.due_64
        self.due_256 = other.due_256
        self.overdue = other.overdue
        self.remaining = other.remaining
        self.remaining_squared = other.remaining_squared
        self.last_due = other.last_due
        self.alpha_prefill_ns = other.alpha_prefill_ns
        self.alpha_decode_ns = other.alpha_decode_ns
        self.beta_decode_ns = other.beta_decode_ns
        self.token_cap = other.token_cap
        self.mean_output_tokens = other.mean_output_tokens
        self.ttft_ns = other.ttft_ns
        self.tpot_ns = other.tpot_ns
        self.late = other.late
        self.in_time_release_ns = other.in_time_release_ns
        self.decoding_ns = other.decoding_ns
        self.decoding_tokens = other.decoding_tokens
        self.kv_budget_tokens = other.kv_budget_tokens
        self.kv_used = other.kv_used
        self.kv_growth = other.kv_growth
        self.preempted = other.preempted
        self.mixed_tokens = other.mixed_tokens
        self.mixed = other.mixed
        self.chunk_tokens = other.chunk_tokens
        self.mixed_ns = other.mixed_ns
        self.reading_tokens = other.reading_tokens

    def set_limits(
        self,
        ttft_ns: cython.longlong,
        tpot_ns: cython.longlong,
        kv_budget_tokens: cython.longlong,
        mixed_tokens: cython.longlong,
    ) -> cython.void:
        """Write what a mechanism's options say."""
        self.ttft_ns = ttft_ns
        self.tpot_ns = tpot_ns
        self.kv_budget_tokens = kv_budget_tokens
        self.mixed_tokens = mixed_tokens

    def copy(self) -> View:
        """The same fields in a view of its own, which no episode changes."""
        return View(**{name: getattr(self, name) for name in FIELDS})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what copy and pickle try
        raise UnknownFieldError(name, FIELDS)

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)}" for name in FIELDS)
        return f"View({', '.join(part for part in shown if not part.endswith('=0'))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _view, ({name: getattr(self, name) for name in FIELDS},)


class Totals:
    """What rewards and metrics are made of, and no policy sees. Times are ns.

    Attributes:
        busy_client_ns: sum over clients of the time in which they took part.
        request_ns: integral of the requests in the system over time.
        idle_client_decodes: sum over decodes of idle clients.
        jump_ns: time in which nothing was there to do.
        min_active: fewest clients served by a decode.
        charged: reward charge that was already paid out.
        invalid_actions: infeasible actions so far.
        max_active: most clients active.
        prefill_time_ns: time of the prefills.
        steals: requests that a client took from another's queue.
        max_batch_tokens: most tokens computed in one prefill.
        min_batch_tokens: fewest.
        kv_peak: most tokens allocated so far.
        preemptions: of running requests, and of one whose prefill was chunked.
        resumed_by_prefill: ... of which resumed by another prefill; and migrations that were.
        recomputed_tokens: tokens that such prefills, and thieves, computed again.
        cached_tokens: tokens of prompts that were in the prefix cache when their requests first started.
        swapped_tokens: tokens copied out or back.
        swap_ns: time of that copying.
        migrations: running requests that moved to another client.
        moved_tokens: tokens that thieves copied.
        move_ns: time of that.
        violations: counted requests that have violated an objective.
        ttft_violations: ... of which TTFT.
        tpot_violations: ... of which TPOT; some violate both.
        counted_started: counted requests that have their first token.
        ttft_sum_ns: their TTFT in sum.
        counted_decoded: counted requests complete with more than one token.
        tpot_sum_ns: their TPOT in sum.
    """

    busy_client_ns: cython.longlong
    request_ns: cython.longlong
    idle_client_decodes: cython.longlong
    jump_ns: cython.longlong
    min_active: cython.longlong
    charged: cython.longlong
    invalid_actions: cython.longlong
    max_active: cython.longlong
    prefill_time_ns: cython.longlong
    steals: cython.longlong
    max_batch_tokens: cython.longlong
    min_batch_tokens: cython.longlong
    kv_peak: cython.longlong
    preemptions: cython.longlong
    resumed_by_prefill: cython.longlong
    recomputed_tokens: cython.longlong
    cached_tokens: cython.longlong
    swapped_tokens: cython.longlong
    swap_ns: cython.longlong
    migrations: cython.longlong
    moved_tokens: cython.longlong
    move_ns: cython.longlong
    violations: cython.longlong
    ttft_violations: cython.longlong
    tpot_violations: cython.longlong
    counted_started: cython.longlong
    ttft_sum_ns: cython.longlong
    counted_decoded: cython.longlong
    tpot_sum_ns: cython.double

    def __init__(self) -> None:
        self.busy_client_ns = 0
        self.request_ns = 0
        self.idle_client_decodes = 0
        self.jump_ns = 0
        self.min_active = 0
        self.charged = 0
        self.invalid_actions = 0
        self.max_active = 0
        self.prefill_time_ns = 0
        self.steals = 0
        self.max_batch_tokens = 0
        self.min_batch_tokens = 0
        self.kv_peak = 0
        self.preemptions = 0
        self.resumed_by_prefill = 0
        self.recomputed_tokens = 0
        self.cached_tokens = 0
        self.swapped_tokens = 0
        self.swap_ns = 0
        self.migrations = 0
        self.moved_tokens = 0
        self.move_ns = 0
        self.violations = 0
        self.ttft_violations = 0
        self.tpot_violations = 0
        self.counted_started = 0
        self.ttft_sum_ns = 0
        self.counted_decoded = 0
        self.tpot_sum_ns = 0.0

    def assign(self, other: Totals) -> cython.void:
        """Take over all fields of ``other``."""
        self.busy_client_ns = other.busy_client_ns
        self.request_ns = other.request_ns
        self.idle_client_decodes = other.idle_client_decodes
        self.jump_ns = other.jump_ns
        self.min_active = other.min_active
        self.charged = other.charged
        self.invalid_actions = other.invalid_actions
        self.max_active = other.max_active
        self.prefill_time_ns = other.prefill_time_ns
        self.steals = other.steals
        self.max_batch_tokens = other.max_batch_tokens
        self.min_batch_tokens = other.min_batch_tokens
        self.kv_peak = other.kv_peak
        self.preemptions = other.preemptions
        self.resumed_by_prefill = other.resumed_by_prefill
        self.recomputed_tokens = other.recomputed_tokens
        self.cached_tokens = other.cached_tokens
        self.swapped_tokens = other.swapped_tokens
        self.swap_ns = other.swap_ns
        self.migrations = other.migrations
        self.moved_tokens = other.moved_tokens
        self.move_ns = other.move_ns
        self.violations = other.violations
        self.ttft_violations = other.ttft_violations
        self.tpot_violations = other.tpot_violations
        self.counted_started = other.counted_started
        self.ttft_sum_ns = other.ttft_sum_ns
        self.counted_decoded = other.counted_decoded
        self.tpot_sum_ns = other.tpot_sum_ns

    def reset(self, num_clients: cython.longlong) -> cython.void:
        """Set the extremes to what anything beats."""
        one: cython.longlong = 1
        self.min_active = num_clients
        self.min_batch_tokens = one << 62


def fields_of(kind: type) -> tuple[str, ...]:
    """Names of the fields of a class of the engine, compiled or not, those of its bases first."""
    names: dict[str, None] = {}
    for part in reversed(kind.__mro__):
        members = vars(part)
        compiled = (n for n, member in members.items() if isinstance(member, GetSetDescriptorType) and n[:2] != "__")
        names |= dict.fromkeys([*compiled, *members.get("__annotations__", ())])
    return tuple(names)


FIELDS = fields_of(View)
"""Names of the fields of a `View`, in order."""

TOTALS = fields_of(Totals)
"""Names of the fields of `Totals`."""


def _view(fields: dict[str, float]) -> View:
    return View(**fields)
