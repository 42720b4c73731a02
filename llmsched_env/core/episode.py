"""The memory of one episode: making, resetting and copying its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core import layout
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.kv import kv_words
from llmsched_env.core.layout import ITERATION, SERVED, SETUP, STATE, VIEW, Records
from llmsched_env.core.stealing import blocks_needed

__all__ = ["Block", "Memory"]

FIRST_LOG_CAPACITY = 4096

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
        "noise_address",
        "ranked_address",
        "preempted_address",
        "started_address",
        "kv_address",
        "kv_words",
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
            the blocks of clients that the tournament must weigh again; with orders by length, those of orders.py; with
            a KV cache, the preempted positions.
        tournament: (2 * leaves, TOURNAMENT_COLUMNS) int64: who has the most work; empty without stealing.
        started: (J,) int64: time of the first token of each client's request; empty without promises.
        kv: (words,) int64: what kv.py describes; empty without a KV cache.
        setup_address: where ``setup`` lies, for compiled code.
        log: (capacity,) `ITERATION`: one entry an iteration; empty where nothing is recorded.
        served: (n,) `SERVED`, by position; empty where nothing is recorded.
    """

    __slots__ = (
        "_case",
        "bits",
        "clients",
        "kv",
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
        self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started, self.kv = arrays
        self._case = case  # requests, releases, their order, levels, ranking, noise: shared, kept for their addresses
        self.setup = template.copy()
        self.log = np.zeros(FIRST_LOG_CAPACITY if record else 0, ITERATION)
        self.served = np.zeros(len(case[0]) if record else 0, SERVED)
        self._bind()

    def _bind(self) -> None:
        requests, release_ns, release_order, levels, ranking, noise = self._case
        self.setup_address = int(self.setup.ctypes.data)
        words = self.setup.view(np.int64)  # fields of a record by name take twenty times as long
        clients = words_needed(len(self.clients))
        waiting = self.bits.ctypes.data
        idle = waiting + 8 * words_needed(len(requests))
        stale = idle + 16 * clients
        ranked = stale + 8 * words_needed(blocks_needed(len(self.clients)))
        ranked_bytes = 2 * layout.RANKINGS * int(self.setup[0]["ranked_bytes"])
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
                noise.ctypes.data,
                ranked,
                ranked + ranked_bytes,
                self.started.ctypes.data,
                self.kv.ctypes.data,
                len(self.kv),
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
        sets = (2 * layout.RANKINGS if k["ranked"] else 0) + (1 if k["kv_budget"] else 0)
        arrays = (
            np.zeros(1, VIEW),
            np.zeros(1, STATE),
            np.zeros((num_clients, layout.CLIENT_COLUMNS), np.int32),
            np.zeros((ring_size, layout.RING_COLUMNS), np.int32),
            np.zeros(_words(len(case[0]), num_clients, blocks, sets), np.uint64),
            np.zeros((2 * blocks if k["stealing"] else 0, layout.TOURNAMENT_COLUMNS), np.int64),
            np.zeros(num_clients if k["serving"] else 0, np.int64),
            np.zeros(kv_words(template), np.int64),
        )
        return cls(template, case, arrays)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What makes up the episode's state: view, state, clients, ring, bits, tournament, started, kv."""
        return self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started, self.kv

    @property
    def queue_bytes(self) -> int:
        """Size of clients, ring, bits, tournament, started and kv."""
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

    def copy(self, *, record: bool = False, setup: Records | None = None) -> Memory:
        """An independent copy, writable; its recordings are empty.

        Args:
            record: keep every iteration of it.
            setup: of the same case in another world, to go on in; ``None`` for this one.
        """
        arrays = tuple(array.copy() for array in self.arrays)
        arrays[1]["logged"] = 0
        return Memory(self.setup if setup is None else setup, self._case, arrays, record=record)

    def moved(self, setup: Records, rows: NDArray[np.int32], *, record: bool = False) -> Memory:
        """A copy on other rows of requests, which have the same places; its ring is empty, of the size that fits them.

        That is right before the first iteration; later the ring is to be filled (llmsched_env.core.futures.refill).
        """
        ring = np.zeros((int(setup[0]["ring_mask"]) + 1, layout.RING_COLUMNS), np.int32)
        ring[:, layout.BUCKET] = -1
        kv = np.zeros(kv_words(setup), np.int64)
        kept = min(len(kv), len(self.kv))  # what lies behind is scratch, a part for each slot of the ring
        kv[:kept] = self.kv[:kept]
        arrays: tuple[Any, ...] = tuple(array.copy() for array in self.arrays[:-1])
        arrays = (*arrays[:3], ring, *arrays[4:], kv)
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
        self.view, self.state, self.clients, self.ring, self.bits, self.tournament, self.started, self.kv = arrays
        self._bind()


def _words(num_requests: int, num_clients: int, blocks: int, more: int) -> int:
    """Words of all sets, ``more`` of them of requests."""
    return (1 + more) * words_needed(num_requests) + 2 * words_needed(num_clients) + words_needed(blocks)


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
