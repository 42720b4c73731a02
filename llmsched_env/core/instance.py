"""A case as the core reads it: laid out in queue order, checked, with the memory of an episode before it begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import ADMISSIONS, REWARDS
from llmsched_env.core import layout
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.episode import Memory
from llmsched_env.core.features import feature_table
from llmsched_env.core.layout import SETUP, Records
from llmsched_env.core.transition import start_episode
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.workload.requests import Requests

__all__ = ["MAX_CLOCK_S", "Instance", "KVCache", "Promises"]

MAX_OUTPUT_TOKENS = 2**31 - 2**25
"""Most output tokens of one case in sum: decode counts are 32-bit."""


MAX_CLOCK_S = 4e9
"""The clock counts nanoseconds in 63 bits, less some room for sums."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One case as the core reads it: read-only, built once, shared by every copy of an episode.

    Attributes:
        requests: (n, REQUEST_COLUMNS) int32 in queue order.
        release_ns: (n,) int64 in release order.
        request_of: (n,) int32: number of the request at each position.
        setup: (1,) `SETUP`.
        levels: (num_levels, LEVEL_COLUMNS) int64: prefill levels of the cost model.
        start: the memory of an episode before its first iteration; a reset copies it.
    """

    requests: NDArray[np.int32]
    release_ns: NDArray[np.int64]
    request_of: NDArray[np.int32]
    setup: Records
    levels: NDArray[np.int64]
    start: Memory

    @property
    def num_requests(self) -> int:
        """Requests of the case."""
        return len(self.request_of)

    @property
    def num_clients(self) -> int:
        """Clients J."""
        return int(self.setup[0]["num_clients"])

    @property
    def bound_ns(self) -> int:
        """LB1 in ns, what the rewards are scaled by."""
        return int(self.setup[0]["bound_ns"])

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        arrays = (self.requests, self.release_ns, self.request_of, self.setup, *self.start.arrays, self.start.ranking)
        return sum(int(array.nbytes) for array in arrays)

    def digest(self) -> str:
        """Content hash (hex) of everything that the course of an episode depends on."""
        h = hashlib.sha256()
        world = self.setup.copy()
        for name in ("reward", "reward_scale", "skip_forced", *(x for x in SETUP.names or () if x.endswith("address"))):
            world[name] = 0
        for array in (self.requests, self.release_ns, self.request_of, self.levels, world):
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()

    @property
    def max_iterations(self) -> int:
        """Horizon, 0 for none."""
        return int(self.setup[0]["max_iterations"])

    @classmethod
    def build(
        cls,
        requests: Requests,
        estimates: NDArray[np.int32],
        cost: CostModel,
        num_clients: int,
        *,
        client_of: NDArray[np.int32] | None,
        order: str,
        stealing: bool,
        bound_ns: int,
        reward: str = "excess",
        skip_forced: bool = False,
        max_iterations: int = 0,
        promises: Promises | None = None,
        kv_cache: KVCache | None = None,
    ) -> Instance:
        """Lay a case out.

        Args:
            requests: the truth.
            estimates: (n,) int32, at least 1: output lengths as the scheduler sees them.
            cost: the cost model; its cap bounds a prefill.
            num_clients: J.
            client_of: (n,) queue of each request, or ``None`` for one shared queue.
            order: one of `llmsched_env.config.ORDERS`.
            stealing: idle clients with an empty queue take from others (client queues only).
            bound_ns: LB1 in ns.
            reward: one of `llmsched_env.config.REWARDS`.
            skip_forced: whether a step goes on to the next choice.
            max_iterations: horizon, 0 for none.
            promises: what requests are promised; with one shared queue only, and then ``order`` may also be one of
                those in which late ones go last.
            kv_cache: what the KV cache holds; ``None`` where it is no limit. With one shared queue only.

        Raises:
            WorkloadError: too many tokens for the clock, or a request that the KV cache does not hold.
            ConfigError: a prompt that no level holds.
        """
        n = len(requests)
        total = int(requests.output_tokens.sum(dtype=np.int64)), int(estimates.sum(dtype=np.int64))
        _check_sum(max(total))
        shared = client_of is None
        queue = np.zeros(n, np.int32) if client_of is None else client_of
        number = np.arange(n)
        keys: dict[str, NDArray[Any]] = {"fcfs": number, "longest_first": -estimates, "shortest_first": estimates}
        by_position = np.lexsort((number, keys["fcfs" if promises else order], queue)).astype(np.int32)
        position_of = np.empty(n, np.int32)
        position_of[by_position] = np.arange(n, dtype=np.int32)
        rows = np.empty((n, layout.REQUEST_COLUMNS), np.int32)
        rows[:, layout.PROMPT] = requests.prompt_tokens[by_position]
        rows[:, layout.OUTPUT] = requests.output_tokens[by_position]
        rows[:, layout.ESTIMATE] = estimates[by_position]
        rows[:, layout.QUEUE] = queue[by_position]
        setup = _setup(requests, cost, num_clients, shared, stealing, estimates)
        levels = np.array(cost.prefill_levels, np.int64).reshape(-1, layout.LEVEL_COLUMNS)
        _check_clock(rows, requests.release_ns, setup, levels, f"cost model {cost.name!r}")
        k = setup[0]
        k.max_iterations = max_iterations
        k.reward = REWARDS.index(reward)
        k.skip_forced = skip_forced
        k.bound_ns = bound_ns
        k.reward_scale = float(bound_ns) * {"excess": num_clients, "idle": num_clients, "latency": n}.get(reward, 1)
        k.num_actions = 2
        ranking = np.empty((0, 2 * layout.RANKINGS), np.int32)
        if promises is not None:
            _promise(k, promises, layout.ORDER_CODES[order], levels)
            if reward == "goodput":
                k.reward_scale = promises.last - promises.first
            if k.ranked:
                ranking = _ranking(estimates)
                ranking.setflags(write=False)
        if kv_cache is not None:
            _limit(k, kv_cache, rows, levels)
        memory = Memory.empty(setup, (rows, requests.release_ns, position_of, levels, ranking))
        memory.view[0].mean_output_tokens = requests.mean_output_tokens
        if shared:
            memory.clients[0, layout.END] = n
        else:
            memory.clients[:, layout.END] = np.searchsorted(rows[:, layout.QUEUE], np.arange(num_clients), side="right")
        start_episode(memory.view[0], memory.state[0], memory.setup[0])
        for array in (rows, by_position, position_of, setup, levels, *memory.arrays):
            array.setflags(write=False)
        return cls(rows, requests.release_ns, by_position, setup, levels, memory)

    @property
    def num_actions(self) -> int:
        """A decode, and one prefill for each order to choose from."""
        return int(self.setup[0]["num_actions"])

    @property
    def num_features(self) -> int:
        """Entries of an observation."""
        return len(feature_table(bool(self.setup[0]["serving"]), bool(self.setup[0]["kv_budget"])))

    def with_outputs(self, outputs: NDArray[np.int32]) -> Instance:
        """The same case with other true lengths; estimates, queues and the bound stay.

        Args:
            outputs: (n,) int32, at least 1, by position.

        Raises:
            WorkloadError: too many tokens for the clock, or a request that the KV cache does not hold.
        """
        _check_sum(int(outputs.sum(dtype=np.int64)))
        rows, setup = self.requests.copy(), self.setup.copy()
        rows[:, layout.OUTPUT] = outputs
        _check_memory(setup[0], rows)
        _check_clock(rows, self.release_ns, setup, self.levels, "these output lengths")
        setup[0].ring_mask = _ring_mask(outputs, rows[:, layout.ESTIMATE])
        start = self.start.moved(setup, rows)
        for array in (rows, setup, *start.arrays):
            array.setflags(write=False)
        return replace(self, requests=rows, setup=setup, start=start)


@dataclass(frozen=True)
class Promises:
    """What requests are promised, and which of them count.

    Attributes:
        ttft_ns: time to first token.
        tpot_ns: time per output token.
        first: number of the first request that counts.
        last: number after that of the last.
        choose_order: whether each order is an action of its own.
    """

    ttft_ns: int
    tpot_ns: int
    first: int
    last: int
    choose_order: bool = False


@dataclass(frozen=True)
class KVCache:
    """What the KV cache holds, and how it is shared out.

    Attributes:
        budget_tokens: what it holds.
        block_tokens: tokens that are allocated at a time.
        headroom_tokens: that a prefill leaves free.
        admission: one of `llmsched_env.config.ADMISSIONS`.
        reserve_tokens: output tokens set aside for each request; 0 for its estimate.
        swap_token_ns: time to copy a token's cache out or back; 0: preempted requests are computed again.
        cap_levels: caps on active clients that are actions; 0 for none.
    """

    budget_tokens: int
    block_tokens: int = 1
    headroom_tokens: int = 0
    admission: str = "fits"
    reserve_tokens: int = 0
    swap_token_ns: int = 0
    cap_levels: int = 0


def _limit(k: Any, cache: KVCache, rows: NDArray[np.int32], levels: NDArray[np.int64]) -> None:
    k.kv_budget, k.kv_block, k.kv_headroom = cache.budget_tokens, cache.block_tokens, cache.headroom_tokens
    k.kv_admission = ADMISSIONS.index(cache.admission)
    k.kv_reserve, k.swap_token_ns = cache.reserve_tokens, cache.swap_token_ns
    k.affine = False  # what is prefilled again is no constant
    if cache.cap_levels:
        k.cap_levels, k.num_actions = cache.cap_levels, 1 + cache.cap_levels
    _check_memory(k, rows)
    again = int((rows[:, layout.PROMPT].astype(np.int64) + rows[:, layout.OUTPUT]).max()) - 1
    if len(levels) and not cache.swap_token_ns and again > levels[-1, layout.CAPACITY_TOKENS]:
        raise ConfigError(
            f"a preempted request may have {again} tokens to compute again, which exceeds the largest prefill level, "
            f"{levels[-1, layout.CAPACITY_TOKENS]} tokens: add a level that holds them, or swap (kv_swap_gb_per_s)."
        )


def _check_memory(k: Any, rows: NDArray[np.int32]) -> None:
    if k.kv_budget == 0:
        return
    tokens = rows[:, layout.PROMPT].astype(np.int64) + rows[:, layout.OUTPUT]
    most = -(-int(tokens.max()) // int(k.kv_block)) * int(k.kv_block)
    if most > k.kv_budget:
        raise WorkloadError(
            f"a request of {tokens.max()} prompt and output tokens takes {most} tokens of KV cache in blocks of "
            f"{k.kv_block}, which holds {k.kv_budget}: give it a larger kv_budget_tokens, or leave such requests out."
        )


def _promise(k: Any, promises: Promises, order: int, levels: NDArray[np.int64]) -> None:
    k.serving = True
    k.ttft_ns, k.tpot_ns = promises.ttft_ns, promises.tpot_ns
    k.least_prefill_ns = levels[0, layout.LEVEL_NS] if len(levels) else k.alpha_prefill_ns
    k.first_counted, k.last_counted = promises.first, promises.last
    k.order = 0 if promises.choose_order else order
    if promises.choose_order:
        k.num_actions = 1 + len(layout.ORDER_CODES)
    k.ranked = promises.choose_order or order > 1
    k.ranked_bytes = 8 * words_needed(int(k.num_requests)) if k.ranked else 0


def _ranking(estimates: NDArray[np.int32]) -> NDArray[np.int32]:
    """(n, 2 * RANKINGS) int32, as llmsched_env.core.memory.ranking_at describes it; ties by release."""
    table = np.empty((len(estimates), 2 * layout.RANKINGS), np.int32)
    for ranking, keys in enumerate((estimates, -estimates)):
        by_rank = np.argsort(keys, kind="stable")
        table[by_rank, ranking] = np.arange(len(estimates))
        table[:, layout.RANKINGS + ranking] = by_rank
    return table


def _check_sum(output_tokens: int) -> None:
    if output_tokens > MAX_OUTPUT_TOKENS:
        raise WorkloadError(
            f"{output_tokens} output tokens in sum exceed {MAX_OUTPUT_TOKENS}, the most of one case: split it."
        )


def _ring_mask(outputs: NDArray[np.int32], estimates: NDArray[np.int32]) -> int:
    # A request decodes one time fewer than it has tokens; the decode that has just been run has a slot, too.
    return (1 << int(max(outputs.max(), estimates.max()) - 1).bit_length()) - 1


def _check_clock(
    rows: NDArray[np.int32], release_ns: NDArray[np.int64], setup: Records, levels: NDArray[np.int64], cost: str
) -> None:
    """Raise where even some schedule that serves one request at a time could overflow the clock."""
    k = setup[0]
    decodes, prompts = (rows[:, column].astype(np.float64) for column in (layout.OUTPUT, layout.PROMPT))
    decodes -= 1.0
    longest_s = 1e-9 * (
        float(release_ns[-1])
        + float(max(k.alpha_prefill_ns, levels[:, layout.LEVEL_NS].max(initial=0))) * len(rows)
        + float(k.beta_prefill_ns) * float(prompts.sum())
        + (float(k.alpha_decode_ns) + float(k.beta_decode_ns)) * float(decodes.sum())
        + float(k.gamma_decode_ns) * float((decodes * (prompts + decodes)).sum())
    )
    if longest_s > MAX_CLOCK_S:
        raise WorkloadError(
            f"{len(rows)} requests under {cost} could take {longest_s:.3g} s one after another, "
            f"beyond the {MAX_CLOCK_S:.3g} s of the clock: check the units of the cost model, or split the case."
        )


def _setup(
    requests: Requests, cost: CostModel, num_clients: int, shared: bool, stealing: bool, estimates: NDArray[np.int32]
) -> Records:
    longest_prompt = int(requests.prompt_tokens.max())
    if cost.prefill_levels and longest_prompt > cost.prefill_levels[-1][0]:
        raise ConfigError(
            f"a prompt of {longest_prompt} tokens exceeds the largest prefill level, {cost.prefill_levels[-1][0]} "
            "tokens: add a level that holds it."
        )
    setup = np.zeros(1, SETUP)
    k = setup[0]
    k.num_requests = len(requests)
    k.num_clients = num_clients
    k.ring_mask = _ring_mask(requests.output_tokens, estimates)
    k.shared_queue = shared
    k.stealing = stealing and not shared
    k.first_release_ns = requests.release_ns[0]
    k.arrivals = requests.release_ns[-1] > requests.release_ns[0]
    k.affine = cost.is_affine
    for name in ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns"):
        k[name] = getattr(cost, name)
    k.token_cap = cost.prefill_token_cap
    k.num_levels = len(cost.prefill_levels)
    return setup
