"""Episodes as arrays: laying a case out in queue order, and making, resetting and copying its memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import REWARDS
from llmsched_env.core import layout
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.features import feature_table
from llmsched_env.core.layout import ITERATION, SERVED, SETUP, STATE, VIEW, Records
from llmsched_env.core.stealing import blocks_needed
from llmsched_env.core.transition import start_episode
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.workload.requests import Requests

__all__ = ["Block", "Instance", "Memory", "Promises"]

FIRST_LOG_CAPACITY = 4096

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

        Raises:
            WorkloadError: too many tokens for the clock.
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
        return len(feature_table(bool(self.setup[0]["serving"])))

    def with_outputs(self, outputs: NDArray[np.int32]) -> Instance:
        """The same case with other true lengths; estimates, queues and the bound stay.

        Args:
            outputs: (n,) int32, at least 1, by position.

        Raises:
            WorkloadError: too many tokens for the clock.
        """
        _check_sum(int(outputs.sum(dtype=np.int64)))
        rows, setup = self.requests.copy(), self.setup.copy()
        rows[:, layout.OUTPUT] = outputs
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


_FIELDS: Any = SETUP.fields
_BOUND = tuple(
    _FIELDS[name][1] // 8
    for name in (
        "view_address",
        "state_address",
        "clients_address",
        "ring_address",
        "bit_words",
        "waiting_address",
        "idle_address",
        "own_ready_address",
        "stale_address",
        "tournament_address",
        "num_nodes",
        "requests_address",
        "release_address",
        "release_order_address",
        "levels_address",
        "ranking_address",
        "ranked_address",
        "started_address",
        "log_address",
        "log_capacity",
        "served_address",
    )
)
"""Where in a `SETUP` record the fields lie that :meth:`Memory._bind` writes, in eight bytes each."""


class Memory:
    """The arrays that one running episode owns, and a `SETUP` record that leads to them.

    Attributes:
        view: (1,) `VIEW`.
        state: (1,) `STATE`.
        setup: (1,) `SETUP` with the addresses of this memory's arrays and of its instance's.
        clients: (J, CLIENT_COLUMNS) int32.
        ring: (R, RING_COLUMNS) int32, R a power of two, not below the longest output.
        bits: (words,) uint64: the waiting positions, the idle clients, those of them whose own queue is not empty, and
            the blocks of clients that the tournament must weigh again; with orders by length, those of orders.py.
        tournament: (2 * leaves, TOURNAMENT_COLUMNS) int64: who has the most work; empty without stealing.
        started: (J,) int64: time of the first token of each client's request; empty without promises.
        setup_address: where ``setup`` lies, for compiled code.
        log: (capacity,) `ITERATION`: one entry an iteration; empty where nothing is recorded.
        served: (n,) `SERVED`, by position; empty where nothing is recorded.
    """

    __slots__ = (
        "_case",
        "bits",
        "clients",
        "log",
        "ring",
        "served",
        "setup",
        "setup_address",
        "started",
        "state",
        "tournament",
        "view",
    )

    def __init__(
        self,
        template: Records,
        case: tuple[Any, ...],
        arrays: tuple[Any, ...],
        *,
        record: bool = False,
    ) -> None:
        self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started = arrays
        self._case = case  # requests, releases, their order, levels, ranking: shared, kept alive for their addresses
        self.setup = template.copy()
        self.log = np.zeros(FIRST_LOG_CAPACITY if record else 0, ITERATION)
        self.served = np.zeros(len(case[0]) if record else 0, SERVED)
        self._bind()

    def _bind(self) -> None:
        requests, release_ns, release_order, levels, ranking = self._case
        self.setup_address = int(self.setup.ctypes.data)
        words = self.setup.view(np.int64)  # fields of a record by name take twenty times as long
        clients = words_needed(len(self.clients))
        waiting = self.bits.ctypes.data
        idle = waiting + 8 * words_needed(len(requests))
        stale = idle + 16 * clients
        for field, value in zip(
            _BOUND,
            (
                self.view.ctypes.data,
                self.state.ctypes.data,
                self.clients.ctypes.data,
                self.ring.ctypes.data,
                len(self.bits),
                waiting,
                idle,
                idle + 8 * clients,
                stale,
                self.tournament.ctypes.data,
                len(self.tournament),
                requests.ctypes.data,
                release_ns.ctypes.data,
                release_order.ctypes.data,
                levels.ctypes.data,
                ranking.ctypes.data,
                stale + 8 * words_needed(blocks_needed(len(self.clients))),
                self.started.ctypes.data,
                self.log.ctypes.data,
                len(self.log),
                self.served.ctypes.data if len(self.served) else 0,
            ),
            strict=True,
        ):
            words[field] = value

    @classmethod
    def empty(cls, template: Records, case: tuple[Any, ...]) -> Memory:
        """Zeroed arrays for an instance."""
        k = template[0]
        num_clients, ring_size = int(k["num_clients"]), int(k["ring_mask"]) + 1
        blocks = blocks_needed(num_clients)
        arrays = (
            np.zeros(1, VIEW),
            np.zeros(1, STATE),
            np.zeros((num_clients, layout.CLIENT_COLUMNS), np.int32),
            np.zeros((ring_size, layout.RING_COLUMNS), np.int32),
            np.zeros(_words(len(case[0]), num_clients, blocks, 2 * layout.RANKINGS if k["ranked"] else 0), np.uint64),
            np.zeros((2 * blocks if k["stealing"] else 0, layout.TOURNAMENT_COLUMNS), np.int64),
            np.zeros(num_clients if k["serving"] else 0, np.int64),
        )
        return cls(template, case, arrays)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What makes up the episode's state: view, state, clients, ring, bits, tournament, started."""
        return self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started

    @property
    def queue_bytes(self) -> int:
        """Size of clients, ring, bits, tournament and started."""
        return sum(int(array.nbytes) for array in self.arrays[2:])

    @property
    def call_arrays(self) -> tuple[Any, Any, Any]:
        """What compiled code takes: view, state, setup."""
        return self.view, self.state, self.setup

    @property
    def ranking(self) -> NDArray[np.int32]:
        """(n, 2 * RANKINGS) int32 of the case; empty where no order goes by length."""
        found: NDArray[np.int32] = self._case[4]
        return found

    def copy(self, *, record: bool = False) -> Memory:
        """An independent copy, writable; its recordings are empty."""
        arrays = tuple(array.copy() for array in self.arrays)
        arrays[1]["logged"] = 0
        return Memory(self.setup, self._case, arrays, record=record)

    def moved(self, setup: Records, rows: NDArray[np.int32], *, record: bool = False) -> Memory:
        """A copy on other rows of requests, which have the same places; its ring is empty, of the size that fits them.

        That is right before the first iteration; later the ring is to be filled (llmsched_env.core.futures.refill).
        """
        ring = np.zeros((int(setup[0]["ring_mask"]) + 1, layout.RING_COLUMNS), np.int32)
        ring[:, layout.BUCKET] = -1
        arrays: tuple[Any, ...] = tuple(ring if array is self.ring else array.copy() for array in self.arrays)
        arrays[1]["logged"] = 0
        return Memory(setup, (rows, *self._case[1:]), arrays, record=record)

    def assign(self, other: Memory) -> None:
        """Overwrite with another memory of the same instance; the recordings begin anew."""
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine[...] = theirs
        self.state["logged"] = 0
        self.log[:] = 0
        self.served[:] = 0

    def grow_log(self) -> None:
        """Double the room for recorded iterations."""
        self.log = np.concatenate([self.log, np.zeros_like(self.log)])
        self._bind()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.setup, self._case, self.arrays, self.log, self.served

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.setup, self._case, arrays, self.log, self.served = state
        self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started = arrays
        self._bind()


def _words(num_requests: int, num_clients: int, blocks: int, ranked: int) -> int:
    """Words of all sets."""
    return (1 + ranked) * words_needed(num_requests) + 2 * words_needed(num_clients) + words_needed(blocks)


class Block:
    """Many episodes of one instance side by side, for compiled code that copies among them.

    Attributes:
        views: (count,) `VIEW`.
        states: (count,) `STATE`.
        setups: (count,) `SETUP`.
    """

    def __init__(self, memory: Memory, count: int) -> None:
        """Make ``count`` copies of ``memory``."""
        self.views = np.repeat(memory.view, count)
        self.states = np.repeat(memory.state, count)
        self.setups = np.repeat(memory.setup, count)
        self._arrays = [memory.copy() for _ in range(count)]
        for row, copy in enumerate(self._arrays):
            self.setups[row] = copy.setup[0]
