"""How one simulated episode lies in memory: numbers only, so that compiled code and plain Python read the same thing.

An episode is some arrays. `view` holds what any policy may know, `state` what only the transition may; `clients`,
`ring`, `bits` and `tournament` are its data structures; `requests`, `release_ns` and `levels` are the case, read-only
and shared by all copies. Copying the first six copies an episode, which is all that a planner or a reset needs.

Positions. Requests are laid out in *queue order*: queue by queue, within a queue in the order in which they are to be
taken. A request is named by its position throughout the core, and a shared queue is read front to back.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CASE_ADDRESSES",
    "CLIENT_COLUMNS",
    "DUE_LIMITS",
    "FLEET",
    "ITERATION",
    "RANKINGS",
    "RING_COLUMNS",
    "SERVED",
    "SETUP",
    "STATE",
    "STEPS",
    "TOURNAMENT_COLUMNS",
    "VIEW",
    "Records",
    "View",
]

Records = NDArray[np.void]

_I8, _F8 = np.int64, np.float64


def _record(*fields: tuple[str, type]) -> np.dtype[np.void]:
    return np.dtype((np.record, np.dtype([*fields], align=True)))


RANKINGS = 2
"""Rankings by estimated output: shortest first, longest first."""

DUE_LIMITS = (1, 4, 16, 64, 256)
"""Upper ends, in decodes from now, of the windows in which `view` counts the completions that are expected."""


class View(Protocol):
    """What a policy may know before an iteration. Lengths are *estimates*: the truth where the scenario says so.

    So are durations to come and the coefficients of the cost model: without noise, and what schedulers believe.
    Symbols of docs/model.md: J clients, A active, F idle, W waiting, R ready. Times are ns, work is output tokens.

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
        batch_requests: what a prefill now would hold (client queues: expected, see queues.preview).
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
        ttft_ns: promised time to first token; 0 where nothing is promised, and then the following are 0, too.
        tpot_ns: promised time per output token.
        late: waiting requests whose TTFT cannot be kept any more.
        in_time_release_ns: of the oldest waiting request that is not late; the clock where there is none.
        decoding_ns: time since their first token, summed over the active clients.
        decoding_tokens: tokens that they have emitted in it.
        kv_budget: tokens that the KV cache holds; 0 where it is not modelled, and then the following are 0, too.
        kv_used: tokens allocated to the active clients, in whole blocks.
        kv_growth: tokens that a decode now would take (vLLM's rules: once it has preempted for it).
        preempted: requests that have started, and wait to go on.
        mixed_budget: most prompt tokens beside a decode; 0: no mixed iterations, and then the following are 0, too.
        mixed: mixed iterations so far: those with an active client count as decodes, the others as prefills.
        chunk_tokens: prompt tokens that a mixed iteration now would read.
        mixed_ns: what it would last.
        reading_tokens: left to read of the prompt that has been read in part; 0 where none has.
    """

    clock_ns: int
    prefills: int
    decodes: int
    completed: int
    num_clients: int
    active: int
    idle: int
    waiting: int
    ready: int
    batch_requests: int
    batch_tokens: int
    batch_work: int
    prefill_ns: int
    decode_ns: int
    last_prefill_ns: int
    last_prefill_decode: int
    consecutive_prefills: int
    idle_charge: int
    waiting_tokens: int
    waiting_work: int
    context_tokens: int
    oldest_release_ns: int
    due_1: int
    due_4: int
    due_16: int
    due_64: int
    due_256: int
    overdue: int
    remaining: int
    remaining_squared: int
    last_due: int
    alpha_prefill_ns: int
    alpha_decode_ns: int
    beta_decode_ns: int
    token_cap: int
    mean_output_tokens: float
    ttft_ns: int
    tpot_ns: int
    late: int
    in_time_release_ns: int
    decoding_ns: int
    decoding_tokens: int
    kv_budget: int
    kv_used: int
    kv_growth: int
    preempted: int
    mixed_budget: int
    mixed: int
    chunk_tokens: int
    mixed_ns: int
    reading_tokens: int


VIEW = _record(*((name, _F8 if kind == "float" else _I8) for name, kind in View.__annotations__.items()))

# What only the transition may know: bookkeeping, and the totals that rewards and metrics are differences of. First,
# and side by side, what every decode touches.
STATE = _record(
    ("next_release_ns", _I8),  # its time; the largest integer where none is left
    ("busy_client_ns", _I8),  # sum over clients of the time in which they took part
    ("request_ns", _I8),  # integral of (waiting + active) over time
    ("idle_client_decodes", _I8),  # sum over decodes of idle clients
    ("min_active", _I8),
    ("charged", _I8),  # reward charge that was already paid out
    ("invalid_actions", _I8),
    ("logged", _I8),  # iterations written to the log
    ("next_release", _I8),  # index into release order
    ("oldest_position", _I8),  # index into release order: all before it have started
    ("own_ready", _I8),  # client queues: idle clients whose own queue is not empty, and what its head holds
    ("own_tokens", _I8),
    ("own_work", _I8),
    ("window_from", _I8),  # shared queue: where the previewed batch ends
    ("window_full", _I8),  # shared queue: the next request would exceed the cap
    ("prefill_time_ns", _I8),
    ("jump_ns", _I8),  # time in which nothing was there to do
    ("steals", _I8),
    ("max_batch_tokens", _I8),
    ("min_batch_tokens", _I8),
    ("max_active", _I8),
    ("late_until", _I8),  # promises: requests released before this one (a number) are late
    ("lost", _I8),  # counted requests that have broken a promise
    ("lost_ttft", _I8),  # ... of which TTFT
    ("lost_tpot", _I8),  # ... of which TPOT; some break both
    ("counted_started", _I8),  # counted requests that have their first token, and their TTFT in sum
    ("ttft_ns", _I8),
    ("counted_decoded", _I8),  # counted requests complete with more than one token, and their TPOT in sum
    ("tpot_ns", _F8),
    ("kv_last_started", _I8),  # KV cache: active client that started last, -1 for none
    ("kv_reserved", _I8),  # tokens set aside for the active clients
    (
        "kv_batch",
        _I8,
    ),  # scratch: tokens of the batch being composed, growth, those swapped in, what is set aside
    ("kv_batch_growth", _I8),
    ("kv_batch_copied", _I8),
    ("kv_batch_reserved", _I8),
    ("kv_decoding", _I8),  # vLLM's rules: clients that a decode now would serve, and their context
    ("kv_decoding_context", _I8),
    ("kv_peak", _I8),  # most tokens allocated so far
    ("preemptions", _I8),
    ("resumed_by_prefill", _I8),  # ... of which resumed by another prefill; and migrations that were
    ("recomputed_tokens", _I8),  # tokens that such prefills, and thieves, computed again
    ("swapped_tokens", _I8),  # tokens copied out or back
    ("swap_out_ns", _I8),  # time of the copying out that the next iteration waits for
    ("swap_ns", _I8),  # time of all copying
    ("reading_client", _I8),  # mixed iterations: client of the request whose prompt has been read in part
    ("reading_position", _I8),  # that request
    ("reading_start_ns", _I8),  # when its reading began
    ("reading_late", _I8),  # whether it was late then
    ("own_cached", _I8),  # client queues: tokens of the heads in `own_tokens` that are cached at home
    ("waiting_cached", _I8),  # ... of all waiting requests
    ("moves_ahead", _I8),  # tokens that thieves would copy in the previewed prefill
    ("migrations", _I8),  # running requests that moved to another client
    ("moved_tokens", _I8),  # tokens that thieves copied
    ("move_ns", _I8),  # time of that
)

# What does not change during an episode: the case, the world, and where the arrays of this copy lie. First, and
# side by side, what every step reads.
SETUP = _record(
    ("num_requests", _I8),
    ("num_clients", _I8),
    ("max_iterations", _I8),  # horizon; 0: none
    ("skip_forced", _I8),
    ("reward", _I8),  # index into config.REWARDS
    ("reward_scale", _F8),
    ("affine", _I8),
    ("alpha_prefill_ns", _I8),
    ("alpha_decode_ns", _I8),
    ("gamma_decode_ns", _I8),
    ("ring_mask", _I8),
    ("ring_address", _I8),
    ("clients_address", _I8),
    ("log_capacity", _I8),
    ("served_address", _I8),
    ("requests_address", _I8),
    ("shared_queue", _I8),
    ("stealing", _I8),
    ("first_release_ns", _I8),
    ("arrivals", _I8),  # whether a request is released later than that
    ("beta_prefill_ns", _I8),
    ("beta_decode_ns", _I8),
    ("token_cap", _I8),
    ("num_levels", _I8),
    ("bound_ns", _I8),  # on the makespan
    ("view_address", _I8),
    ("state_address", _I8),
    ("bit_words", _I8),  # of the sets
    ("waiting_address", _I8),  # the set of waiting positions
    ("idle_address", _I8),  # the set of idle clients
    ("own_ready_address", _I8),  # client queues: the set of idle clients whose own queue is not empty
    ("stale_address", _I8),  # stealing: the set of blocks of clients that the tournament must weigh again
    ("tournament_address", _I8),  # stealing: who has the most work
    ("num_nodes", _I8),  # of the tournament; 0 without stealing
    ("release_address", _I8),
    ("release_order_address", _I8),
    ("log_address", _I8),  # recordings: 0 where they are off
    ("levels_address", _I8),
    ("num_actions", _I8),  # a decode, and one prefill for each order to choose from
    ("order", _I8),  # of action 1, one of ORDER_CODES; of action a: a - 1 more
    ("settling", _I8),  # whether every iteration, and not only some, changes what is ready or what it costs
    ("serving", _I8),  # whether there are promises
    ("ttft_ns", _I8),
    ("tpot_ns", _I8),
    ("least_prefill_ns", _I8),  # no prefill is shorter
    ("first_counted", _I8),  # goodput counts requests from this number
    ("last_counted", _I8),  # ... to before this one
    ("started_address", _I8),  # promises: time of the first token of each client's request
    ("ranked", _I8),  # whether some order goes by length
    ("ranking_address", _I8),  # ... then: ranks of positions and positions of ranks,
    ("ranked_address", _I8),  # ... and the sets of waiting ranks (orders.py),
    ("ranked_bytes", _I8),  # ... of so many bytes each
    ("cap_levels", _I8),  # where actions are caps on active clients, how many
    ("kv_budget", _I8),  # tokens; 0: the KV cache is not modelled
    ("kv_block", _I8),  # tokens allocated at a time
    ("kv_headroom", _I8),  # tokens that a prefill leaves free
    ("kv_rule", _I8),  # index into config.KV_RULES
    ("kv_uncached", _I8),  # tokens of a running request that have no cache yet
    ("kv_longest", _I8),  # most prompt and output tokens of a request
    ("kv_admission", _I8),  # index into config.ADMISSIONS
    ("kv_reserve", _I8),  # output tokens set aside for each request; 0: its estimate
    ("swap_token_ns", _I8),  # time to copy a token's cache out or back; 0: preempted requests are computed again
    ("kv_address", _I8),  # KV cache: words of kv.py
    ("kv_words", _I8),
    ("preempted_address", _I8),  # the set of preempted positions
    ("mixed_budget", _I8),  # most prompt tokens beside a decode; 0: no mixed iterations
    ("mixed_counts_active", _I8),  # whether each active client takes a token of that budget
    ("mixed_whole_prompts", _I8),  # whether prompts are never read in part
    ("mixed_overlaps", _I8),  # whether it lasts as long as the longer of prefill and decode; else by the following:
    ("mixed_alpha_ns", _I8),  # fixed time of a mixed iteration
    ("mixed_beta_prompt_ns", _I8),  # time of a prompt token
    ("mixed_beta_active_ns", _I8),  # time of an active client
    ("mixed_interference_ns", _I8),  # ... and once more, times the share of active clients in all tokens
    ("moving", _I8),  # whether stealing is anything but free and of waiting requests (migration.py)
    ("cached_millionths", _I8),  # share of each prompt that is cached at home
    ("steal", _I8),  # index into config.STEALS
    ("move_token_ns", _I8),  # time to copy a token's cache to another client; 0: it is computed again
    ("disturbed", _I8),  # whether iterations last something else than the coefficients above say: noise.py
    ("true_alpha_prefill_ns", _I8),  # disturbed: coefficients of the world; those above are what schedulers believe
    ("true_beta_prefill_ns", _I8),
    ("true_alpha_decode_ns", _I8),
    ("true_beta_decode_ns", _I8),
    ("true_gamma_decode_ns", _I8),
    ("true_num_levels", _I8),
    ("noise_key", _I8),  # 32 bits that fix the factors of the case
    ("noise_size", _I8),  # of the table of factors; 0 without noise
    ("noise_address", _I8),
    ("straggler_limit", _I8),  # an iteration whose 32-bit word is below it is a straggler
    ("straggler_factor", _I8),  # in multiples of 2^-20
)

# Many copies, side by side: where the parts of each lie.
FLEET = _record(
    ("count", _I8),
    ("views_address", _I8),
    ("states_address", _I8),
    ("setups_address", _I8),
    ("flags_address", _I8),  # int64 a copy, as loops.step_episode returns them
    ("rows_address", _I8),  # the queues of copy i: a row of so many bytes
    ("row_bytes", _I8),
)

# What a step of many copies returns: where its arrays lie.
STEPS = _record(
    ("count", _I8),
    ("num_actions", _I8),
    ("num_features", _I8),
    ("rewards_address", _I8),
    ("invalid_address", _I8),
    ("observations_address", _I8),
    ("masks_address", _I8),
    ("terminated_address", _I8),
    ("truncated_address", _I8),
)

CASE_ADDRESSES = (
    "requests_address",
    "release_address",
    "release_order_address",
    "levels_address",
    "ranking_address",
    "noise_address",
)
"""Fields of `SETUP` that lead to the case, which copies share; the others lead to what a copy owns."""

# Columns of `clients` (int32, one row a client: an event touches one cache line).
RUNNING = 0  # position of the running request, -1 when idle
DUE = 1  # decode count at which it is expected to finish (0 when idle)
QUEUE_WORK = 2  # estimated output tokens waiting in its queue
HEAD = 3  # position of the head of its queue, -1 when empty (shared queue: row 0)
END = 4  # position after the last of its queue
NEXT = 5  # next client in the same bucket of the ring, -1 at the end
HELD = 6  # context tokens of the running request at its end (migration: 0 while its prefill is composed)
BATCH = 7  # scratch: clients of the batch being composed, by row
CLIENT_COLUMNS = 8

# Columns of `ring` (int32, one row a decode count modulo its size).
BUCKET = 0  # first client that finishes at this decode, -1 for none
EXPECTED = 1  # number of clients expected to finish at this decode
RING_COLUMNS = 2

# Columns of `tournament` (int64, one row a node; see stealing.py).
BEST_RUNNING = 0  # client with the most work, counted from decode 0, of those that run and keep to their estimate
BEST_STILL = 1  # client with the most work of the others
EXPIRES = 2  # first decode at which one of the former joins the latter
TOURNAMENT_COLUMNS = 3

# Columns of `requests` (int32, one row a position): what a start reads lies together.
PROMPT = 0
OUTPUT = 1
ESTIMATE = 2
QUEUE = 3  # queue that holds it
REQUEST_COLUMNS = 4

# Columns of `levels` (int64, one row a prefill level; none where prefills are affine). Believed ones, then true ones.
CAPACITY_TOKENS = 0
LEVEL_NS = 1
LEVEL_COLUMNS = 2

# Optional recordings: one entry an iteration, one entry a position. Length 0 switches them off.
ITERATION = _record(
    ("start_ns", _I8),
    ("end_ns", _I8),
    ("prefill", _I8),  # 0 for what counts as a decode
    ("clients", _I8),  # that had a token
    ("mixed", _I8),
)
SERVED = _record(
    ("client", _I8),  # that served it last
    ("prefill_start_ns", _I8),
    ("first_token_ns", _I8),
    ("completion_ns", _I8),
    ("decode", _I8),  # decode count when that client took it
    ("token_ns", _I8),  # its last token before the decodes that followed: the first one if it was not preempted,
    ("tokens", _I8),  # ... the how many-th that is,
    ("gap_ns", _I8),  # ... and the longest time between two of those; 0 for one alone
    ("preempted_ns", _I8),  # when it was preempted last; 0 for never
)
