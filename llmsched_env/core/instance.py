"""A case as the core reads it: laid out in queue order, checked, with the memory of an episode before it begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import ADMISSIONS, KV_RULES, ORDER_CODES, REWARDS, STEALS
from llmsched_env.core import layout
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.episode import Memory
from llmsched_env.core.features import feature_table
from llmsched_env.core.layout import SETUP, Records
from llmsched_env.core.noise import COEFFICIENTS, ONE, factor_table, forget_truth
from llmsched_env.core.transition import start_episode
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.mechanisms import Disturbance, KVCache, Mixed, Moves, Promises
from llmsched_env.workload.requests import Requests

__all__ = ["MAX_CLOCK_S", "Instance"]

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
        levels: (num_levels, LEVEL_COLUMNS) int64: prefill levels of the cost model; where schedulers believe in
            another one, of that, and then of the true one.
        start: the memory of an episode before its first iteration; a reset copies it.
        noise: (noise_size,) int64: factors of iterations (llmsched_env.core.noise); empty without noise.
        lb1_ns: LB1 in ns, what the rewards are scaled by; it stays as it is where a better bound is found.
    """

    requests: NDArray[np.int32]
    release_ns: NDArray[np.int64]
    request_of: NDArray[np.int32]
    setup: Records
    levels: NDArray[np.int64]
    start: Memory
    noise: NDArray[np.int64]
    lb1_ns: int

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
        """The best lower bound on the makespan that holds, in ns: what gaps are to."""
        return int(self.setup[0]["bound_ns"])

    @property
    def nbytes(self) -> int:
        """Memory that it takes, in bytes."""
        case = (self.requests, self.release_ns, self.request_of, self.setup, self.noise)
        arrays = (*case, *self.start.arrays, self.start.ranking)
        # Where iterations are disturbed a second start is made, of the world as it is believed to be.
        return (2 if self.setup[0]["disturbed"] else 1) * sum(int(array.nbytes) for array in arrays)

    def digest(self) -> str:
        """Content hash (hex) of everything that the course of an episode depends on."""
        h = hashlib.sha256()
        world = self.setup.copy()
        for name in ("reward", "reward_scale", "skip_forced", *(x for x in SETUP.names or () if x.endswith("address"))):
            world[name] = 0
        world["bound_ns"] = self.lb1_ns  # no better bound makes another case of it
        for array in (self.requests, self.release_ns, self.request_of, self.levels, world, self.noise):
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
        lb1_ns: int | None = None,
        reward: str = "excess",
        skip_forced: bool = False,
        max_iterations: int = 0,
        promises: Promises | None = None,
        kv_cache: KVCache | None = None,
        mixed: Mixed | None = None,
        moves: Moves | None = None,
        disturbance: Disturbance | None = None,
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
            bound_ns: the best lower bound on the makespan, in ns.
            lb1_ns: LB1 in ns, what rewards are scaled by; ``None`` where it is that bound.
            reward: one of `llmsched_env.config.REWARDS`.
            skip_forced: whether a step goes on to the next choice.
            max_iterations: horizon, 0 for none.
            promises: what requests are promised; with one shared queue only, and then ``order`` may also be one of
                those in which late ones go last.
            kv_cache: what the KV cache holds; ``None`` where it is no limit. With one shared queue only.
            mixed: what mixed iterations read, and last; ``None`` where there are none. With one shared queue only.
            moves: what lies where, and what a thief has to move; ``None`` where stealing is free. Client queues only.
            disturbance: why iterations do not last what schedulers are told; ``None`` where they do.

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
        shown = disturbance.believed or cost if disturbance else cost
        setup = _setup(requests, shown, num_clients, shared, stealing, estimates)
        levels = np.array(shown.prefill_levels, np.int64).reshape(-1, layout.LEVEL_COLUMNS)
        k = setup[0]
        if moves is not None:
            _move(k, moves)
        if mixed is not None:
            _mix(k, mixed)
        k.num_actions = 2 if mixed is None else 3
        if kv_cache is not None:
            _limit(k, kv_cache, rows, levels)
        noise = np.empty(0, np.int64)
        if disturbance is not None:
            _check_levels(requests, cost)
            noise = factor_table(disturbance.noise_sd)
            noise.setflags(write=False)
            levels = np.concatenate([levels, np.array(cost.prefill_levels, np.int64).reshape(-1, layout.LEVEL_COLUMNS)])
            _disturb(k, cost, disturbance, noise)
        _check_clock(rows, requests.release_ns, setup, levels, f"cost model {cost.name!r}", noise)
        k.max_iterations = max_iterations
        k.reward = REWARDS.index(reward)
        k.skip_forced = skip_forced
        k.bound_ns = bound_ns
        scale_ns = bound_ns if lb1_ns is None else lb1_ns
        k.reward_scale = float(scale_ns) * {"excess": num_clients, "idle": num_clients, "latency": n}.get(reward, 1)
        ranking = np.empty((0, 2 * layout.RANKINGS), np.int32)
        if promises is not None:
            _promise(k, promises, ORDER_CODES[order], levels)
            if reward == "goodput":
                k.reward_scale = promises.last - promises.first
            if k.ranked:
                ranking = _ranking(estimates)
                ranking.setflags(write=False)
        memory = Memory.empty(setup, (rows, requests.release_ns, position_of, levels, ranking, noise))
        memory.view[0].mean_output_tokens = requests.mean_output_tokens
        if shared:
            memory.clients[0, layout.END] = n
        else:
            memory.clients[:, layout.END] = np.searchsorted(rows[:, layout.QUEUE], np.arange(num_clients), side="right")
        start_episode(memory.view[0], memory.state[0], memory.setup[0])
        for array in (rows, by_position, position_of, setup, levels, *memory.arrays):
            array.setflags(write=False)
        return cls(rows, requests.release_ns, by_position, setup, levels, memory, noise, scale_ns)

    @cached_property
    def believed(self) -> Instance:
        """The case in the world as schedulers are told that it is: this one, where they are told the truth."""
        if not self.setup[0]["disturbed"]:
            return self
        setup, levels = self.setup.copy(), self.levels[: int(self.setup[0]["num_levels"])]
        forget_truth(setup[0])
        setup.setflags(write=False)
        start = self.start.copy(setup=setup)
        for array in start.arrays:
            array.setflags(write=False)
        return replace(self, setup=setup, levels=levels, start=start, noise=np.empty(0, np.int64))

    @property
    def num_actions(self) -> int:
        """A decode, and one prefill for each order or cap to choose from; or a decode, a prefill and a mixed one."""
        return int(self.setup[0]["num_actions"])

    @property
    def num_features(self) -> int:
        """Entries of an observation."""
        k = self.setup[0]
        return len(feature_table(bool(k["serving"]), bool(k["kv_budget"]), bool(k["mixed_budget"])))

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
        _check_clock(rows, self.release_ns, setup, self.levels, "these output lengths", self.noise)
        setup[0].ring_mask = _ring_mask(outputs, rows[:, layout.ESTIMATE])
        start = self.start.moved(setup, rows)
        for array in (rows, setup, *start.arrays):
            array.setflags(write=False)
        return replace(self, requests=rows, setup=setup, start=start)


def _mix(k: Any, mixed: Mixed) -> None:
    if mixed.cost.interference_ns * int(k.num_clients) ** 2 > MAX_CLOCK_S * 1e9:
        raise ConfigError(
            f"interference_ns = {mixed.cost.interference_ns} with {k.num_clients} clients leaves the clock: check its "
            "unit."
        )
    k.settling = True
    k.mixed_budget, k.mixed_counts_active = mixed.tokens, mixed.counts_active
    k.mixed_whole_prompts, k.mixed_overlaps = mixed.whole_prompts, mixed.cost.overlaps
    for name in ("alpha_ns", "beta_prompt_ns", "beta_active_ns", "interference_ns"):
        k[f"mixed_{name}"] = getattr(mixed.cost, name)
    k.affine = False


def _move(k: Any, moves: Moves) -> None:
    k.moving = moves.cached_millionths > 0 or (moves.steal != "waiting" and k.stealing)
    if k.moving:
        k.cached_millionths, k.steal = moves.cached_millionths, STEALS.index(moves.steal)
        k.settling = k.steal > 0
        k.move_token_ns = moves.token_ns
        k.affine = False  # what is prefilled is no constant


def _limit(k: Any, cache: KVCache, rows: NDArray[np.int32], levels: NDArray[np.int64]) -> None:
    k.settling = True
    k.kv_budget, k.kv_block, k.kv_headroom = cache.budget_tokens, cache.block_tokens, cache.headroom_tokens
    k.kv_rule, k.kv_uncached = KV_RULES.index(cache.rule), cache.uncached_tokens
    k.kv_longest = cache.longest_request_tokens
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
    if tokens.max() > k.kv_longest:
        most = -(-int(tokens.max() - k.kv_uncached) // int(k.kv_block)) * int(k.kv_block)
        left_free = f", {k.kv_headroom} of which stay free" if most <= k.kv_budget else ""
        raise WorkloadError(
            f"a request of {tokens.max()} prompt and output tokens takes {most} tokens in blocks of {k.kv_block}, and "
            f"the KV cache holds {k.kv_budget}{left_free}: give it a larger kv_budget_tokens, or leave such requests "
            "out."
        )


def _disturb(k: Any, cost: CostModel, disturbance: Disturbance, noise: NDArray[np.int64]) -> None:
    k.disturbed = True
    k.affine = False  # what passes beside the constant is not what decisions are told to cost
    for name in COEFFICIENTS:
        k[f"true_{name}"] = getattr(cost, name)
    k.true_num_levels = len(cost.prefill_levels)
    k.noise_key, k.noise_size = disturbance.key, len(noise)
    k.straggler_limit = round(disturbance.straggler_probability * 2**32)
    k.straggler_factor = round(disturbance.straggler_factor * ONE)


def _promise(k: Any, promises: Promises, order: int, levels: NDArray[np.int64]) -> None:
    k.serving = k.settling = True
    k.ttft_ns, k.tpot_ns = promises.ttft_ns, promises.tpot_ns
    k.least_prefill_ns = levels[0, layout.LEVEL_NS] if k.num_levels else k.alpha_prefill_ns
    if k.mixed_budget > 0 and not k.mixed_overlaps:
        k.least_prefill_ns = min(k.least_prefill_ns, k.mixed_alpha_ns)
    k.first_counted, k.last_counted = promises.first, promises.last
    k.order = 0 if promises.choose_order else order
    if promises.choose_order:
        k.num_actions = 1 + len(ORDER_CODES)
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
    rows: NDArray[np.int32],
    release_ns: NDArray[np.int64],
    setup: Records,
    levels: NDArray[np.int64],
    cost: str,
    noise: NDArray[np.int64],
) -> None:
    """Raise where even some schedule that serves one request at a time could overflow the clock."""
    k = setup[0]
    decodes, prompts = (rows[:, column].astype(np.float64) for column in (layout.OUTPUT, layout.PROMPT))
    decodes -= 1.0
    most = {name: float(max(k[name], k[f"true_{name}"])) for name in COEFFICIENTS}
    factor = max(1.0, noise.max(initial=ONE) / ONE) * max(1.0, k.straggler_factor / ONE)
    longest_s = 1e-9 * (
        float(release_ns[-1])
        + factor
        * (
            max(most["alpha_prefill_ns"], float(levels[:, layout.LEVEL_NS].max(initial=0))) * len(rows)
            + most["beta_prefill_ns"] * float(prompts.sum())
            + (most["alpha_decode_ns"] + most["beta_decode_ns"]) * float(decodes.sum())
            + most["gamma_decode_ns"] * float((decodes * (prompts + decodes)).sum())
            + float(k.mixed_alpha_ns + k.mixed_beta_prompt_ns) * float(prompts.sum())  # read one by one
            + float(k.mixed_beta_active_ns + k.mixed_interference_ns) * float(decodes.sum())
            + _again_ns(k, most, float((prompts + decodes + 1.0).max()), len(rows), float(decodes.sum()))
        )
    )
    if longest_s > MAX_CLOCK_S:
        raise WorkloadError(
            f"{len(rows)} requests under {cost} could take {longest_s:.3g} s one after another, "
            f"beyond the {MAX_CLOCK_S:.3g} s of the clock: check the units of the cost model, or split the case."
        )


def _again_ns(k: Any, most: dict[str, float], context: float, num_requests: int, decodes: float) -> float:
    """Time to copy, or to compute again, what moves or is preempted.

    Each start moves one request. A decode takes at most a block for each client and one to spare, so those that give
    way for it hold no more than that, and the last of them; they come back by a prefill.
    """
    if k.moving:
        return num_requests * context * max(float(k.move_token_ns), most["beta_prefill_ns"])
    if k.kv_budget == 0:
        return 0.0
    tokens = min(float(k.kv_budget), float(k.num_clients + 1) * float(k.kv_block) + context)
    if k.swap_token_ns > 0:
        return decodes * 2.0 * tokens * float(k.swap_token_ns)
    return decodes * (most["alpha_prefill_ns"] + tokens * most["beta_prefill_ns"])


def _check_levels(requests: Requests, cost: CostModel) -> None:
    longest_prompt = int(requests.prompt_tokens.max())
    if cost.prefill_levels and longest_prompt > cost.prefill_levels[-1][0]:
        raise ConfigError(
            f"a prompt of {longest_prompt} tokens exceeds the largest prefill level, {cost.prefill_levels[-1][0]} "
            "tokens: add a level that holds it."
        )


def _setup(
    requests: Requests, cost: CostModel, num_clients: int, shared: bool, stealing: bool, estimates: NDArray[np.int32]
) -> Records:
    _check_levels(requests, cost)
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
    for name in COEFFICIENTS:
        k[name] = getattr(cost, name)
    k.token_cap = cost.prefill_token_cap
    k.num_levels = len(cost.prefill_levels)
    return setup
