"""Many episodes side by side, stepped in one compiled call.

What each step touches first lies together by kind (views, states, setups); the queues of a copy are one row of a large
array, whose rows grow when a case needs more. A reset copies the start of an instance over the copy's row: no solver,
no Python object per client or request, and, unless rows have to grow, no allocation.
"""

from __future__ import annotations

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.episode import Instance
from llmsched_env.core.features import NUM_FEATURES, observe
from llmsched_env.core.layout import (
    BUCKET,
    CASE_ADDRESSES,
    CLIENT_COLUMNS,
    DUE_LIMITS,
    HEAD,
    REQUEST_COLUMNS,
    RING_COLUMNS,
    SETUP,
    STATE,
    VIEW,
)
from llmsched_env.core.loops import CONTINUE, INVALID_SHIFT, OBSERVE, OVER, TERMINATED, TRUNCATED, step_episode
from llmsched_env.core.measure import MEASURED, measure
from llmsched_env.core.memory import bits_at, clients_at, ring_at, tournament_at
from llmsched_env.core.pointers import array_at, prefetch
from llmsched_env.jit import inlined, jit

__all__ = ["CLIENT_BYTES", "COPY_BYTES", "Fleet", "Steps", "load_copy", "look_ahead", "step_copies"]

CACHE_LINE_BYTES = 64
VIEW_BYTES, STATE_BYTES = VIEW.itemsize, STATE.itemsize
CLIENT_BYTES, RING_BYTES, REQUEST_BYTES = 4 * CLIENT_COLUMNS, 4 * RING_COLUMNS, 4 * REQUEST_COLUMNS
AHEAD = 3
DUE_WINDOWS = (0, *DUE_LIMITS)

COPY_BYTES = VIEW_BYTES + STATE_BYTES + SETUP.itemsize
"""What a copy takes beside its queues."""

Addresses = tuple[int, int, int, int]
"""Of the views, the states, the setups and the flags (int64) of all copies."""


class Steps:
    """What one step of ``count`` copies returns: new arrays, which nobody overwrites.

    Attributes:
        observations: (count, 26) float32.
        rewards: (count,) float64.
        terminated: (count,) bool.
        truncated: (count,) bool.
        masks: (count, 2) int8: which actions are feasible next.
        invalid: (count,) int64: infeasible actions of the episode so far.
    """

    __slots__ = ("invalid", "masks", "observations", "rewards", "terminated", "truncated")

    def __init__(self, count: int) -> None:
        self.observations = np.empty((count, NUM_FEATURES), np.float32)
        self.rewards = np.empty(count)
        self.terminated = np.empty(count, np.bool_)
        self.truncated = np.empty(count, np.bool_)
        self.masks = np.empty((count, 2), np.int8)
        self.invalid = np.empty(count, np.int64)


@inlined
def first_unknown(actions: NDArray[np.int64]) -> int:
    """Index of the first action that is not in the action space, or -1."""
    unknown = 0
    for i in range(len(actions)):
        unknown |= actions[i] >> 1
    if unknown != 0:
        for i in range(len(actions)):
            if actions[i] >> 1 != 0:
                return i
    return -1


@inlined
def _tell(flag: int, masks: NDArray[np.int8], invalid: NDArray[np.int64], copy: int) -> None:
    """Write what the flags of a copy say about its next action."""
    masks[copy, 0] = flag & 1
    masks[copy, 1] = flag >> 1 & 1
    invalid[copy] = flag >> INVALID_SHIFT


@inlined
def look_ahead(views: Any, setups: Any, i: int, last: int) -> None:
    """Ask for what the copies after ``i`` will touch, since with a thousand copies it has left the near caches.

    In three stages, since each reads what the one before has asked for: the ring; a client whose request ends in the
    next decode; the request at the head of its queue.
    """
    if i + 3 * AHEAD < last:
        k = setups[i + 3 * AHEAD]
        now = views[i + 3 * AHEAD].decodes + 1
        for window in DUE_WINDOWS:
            prefetch(k.ring_address + RING_BYTES * ((now + window) & k.ring_mask))
    if i + 2 * AHEAD < last:
        k = setups[i + 2 * AHEAD]
        client = ring_at(k)[(views[i + 2 * AHEAD].decodes + 1) & k.ring_mask, BUCKET]
        if client >= 0:
            prefetch(k.clients_address + CLIENT_BYTES * client)
    if i + AHEAD < last:
        k = setups[i + AHEAD]
        client = ring_at(k)[(views[i + AHEAD].decodes + 1) & k.ring_mask, BUCKET]
        if client >= 0:
            prefetch(k.requests_address + REQUEST_BYTES * clients_at(k)[client, HEAD])


@jit
def step_copies(
    addresses: Addresses,
    first: int,
    last: int,
    actions: NDArray[np.int64],
    observations: NDArray[np.float32],
    rewards: NDArray[np.float64],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    masks: NDArray[np.int8],
    invalid: NDArray[np.int64],
) -> int:
    """Step copies ``first`` to ``last`` - 1; returns how many of them are over.

    Where some action of ``actions``, (count,), is not in the action space, nothing is done: -1 - the first one's index.
    """
    unknown = first_unknown(actions)
    if unknown >= 0:
        return -1 - unknown
    count = len(actions)
    views = array_at(addresses[0], (count,), VIEW)
    states = array_at(addresses[1], (count,), STATE)
    setups = array_at(addresses[2], (count,), SETUP)
    flags = array_at(addresses[3], (count,), np.int64)
    over = 0
    for i in range(first, last):
        look_ahead(views, setups, i, last)
        # A reset that ran through a whole episode: this step reports its end.
        action = CONTINUE if flags[i] & OVER else actions[i]
        reward, flag = step_episode(views[i], states[i], setups[i], action, observations[i])
        flags[i] = flag
        rewards[i] = reward
        terminated[i] = flag & TERMINATED != 0
        truncated[i] = flag & TRUNCATED != 0
        _tell(flag, masks, invalid, i)
        over += 1 if flag & OVER else 0
    return over


@inlined
def _place(addresses: Addresses, k: Any, copy: int, base: int) -> None:
    """Point the setup of ``copy`` at its own view, state and block."""
    k.view_address = addresses[0] + copy * VIEW_BYTES
    k.state_address = addresses[1] + copy * STATE_BYTES
    move = base - k.waiting_address
    k.waiting_address += move
    k.idle_address += move
    k.own_ready_address += move
    k.stale_address += move
    k.ring_address = base + 8 * k.bit_words
    k.clients_address = k.ring_address + RING_BYTES * (k.ring_mask + 1)
    k.tournament_address = k.clients_address + CLIENT_BYTES * k.num_clients


@jit
def load_copy(
    addresses: Addresses,
    count: int,
    copy: int,
    base: int,
    source: int,
    observations: NDArray[np.float32],
    masks: NDArray[np.int8],
    invalid: NDArray[np.int64],
) -> None:
    """Put the episode whose `SETUP` lies at ``source`` into ``copy``, its queues at ``base``."""
    setup = array_at(source, (1,), SETUP)[0]
    v = array_at(addresses[0], (count,), VIEW)[copy]
    s = array_at(addresses[1], (count,), STATE)[copy]
    setups = array_at(addresses[2], (count,), SETUP)
    k = setups[copy]
    array_at(addresses[0], (count,), VIEW)[copy] = array_at(setup.view_address, (1,), VIEW)[0]
    array_at(addresses[1], (count,), STATE)[copy] = array_at(setup.state_address, (1,), STATE)[0]
    setups[copy] = setup
    _place(addresses, k, copy, base)
    clients_at(k)[:, :] = clients_at(setup)
    ring_at(k)[:, :] = ring_at(setup)
    bits_at(k)[:] = bits_at(setup)
    if k.stealing:
        tournament_at(k)[:, :] = tournament_at(setup)
    flags = array_at(addresses[3], (count,), np.int64)
    _, flags[copy] = step_episode(v, s, k, OBSERVE, observations[copy])
    _tell(flags[copy], masks, invalid, copy)


@jit
def place_copies(addresses: Addresses, bases: NDArray[np.int64]) -> None:
    """Point every setup at the queues at its base: after a move."""
    setups = array_at(addresses[2], (len(bases),), SETUP)
    for i in range(len(bases)):
        _place(addresses, setups[i], i, bases[i])


@jit
def observe_copies(
    addresses: Addresses, observations: NDArray[np.float32], masks: NDArray[np.int8], invalid: NDArray[np.int64]
) -> None:
    """Write what every copy looks like as it stands."""
    count = len(observations)
    views = array_at(addresses[0], (count,), VIEW)
    flags = array_at(addresses[3], (count,), np.int64)
    for i in range(count):
        observe(views[i], observations[i])
        _tell(flags[i], masks, invalid, i)


@jit
def measure_copies(addresses: Addresses, copies: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Write what each of ``copies`` achieved to its column of ``out``, (13, count)."""
    count = out.shape[1]
    for i in copies:
        measure(
            array_at(addresses[0], (count,), VIEW)[i],
            array_at(addresses[1], (count,), STATE)[i],
            array_at(addresses[2], (count,), SETUP)[i],
            out[:, i],
        )


class Fleet:
    """``count`` episodes, each of an instance of its own, stepped together.

    Args:
        count: copies.
        threads: that share a step; results do not depend on it.

    Attributes:
        count: as given.
        views: (count,) `VIEW`.
        states: (count,) `STATE`.
        setups: (count,) `SETUP`.
        addresses: of these and of ``flags``, for compiled code.
        bases: (count,) int64: where the block of each copy begins.
        flags: (count,) int64: of the last step or reset, as `llmsched_env.core.loops.step_episode` returns them.
    """

    def __init__(self, count: int, *, threads: int = 1) -> None:
        self.count = count
        self.views = np.zeros(count, VIEW)
        self.states = np.zeros(count, STATE)
        self.setups = np.zeros(count, SETUP)
        self.flags = np.full(count, TERMINATED, np.int64)
        self._instances: list[Instance | None] = [None] * count  # kept alive: the core reads their requests
        self._rows = _new_rows(count, 0)
        self._threads = min(threads, count)
        self._open()
        self._move_to(self._rows)

    def _open(self) -> None:
        self.addresses: Addresses = (
            self.views.ctypes.data, self.states.ctypes.data, self.setups.ctypes.data, self.flags.ctypes.data
        )  # fmt: skip
        bounds = np.linspace(0, self.count, self._threads + 1).astype(int).tolist()
        self._shares = list(pairwise(bounds))
        self._start_threads()

    def _start_threads(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pid = os.getpid()

    def _move_to(self, rows: NDArray[np.uint8]) -> None:
        self._rows = rows
        self.bases = rows.ctypes.data + rows.strides[0] * np.arange(self.count)
        place_copies(self.addresses, self.bases)

    @property
    def row_bytes(self) -> int:
        """Room for the queues of a copy."""
        return self._rows.shape[1]

    def make_room(self, queue_bytes: int) -> None:
        """Make every row hold at least ``queue_bytes``."""
        if self._rows.shape[1] < queue_bytes:
            rows = _new_rows(self.count, queue_bytes)
            rows[:, : self._rows.shape[1]] = self._rows
            self._move_to(rows)

    def load(self, number: int, instance: Instance, out: Steps) -> None:
        """Begin an episode of ``instance`` in copy ``number``, and write what it looks like to its row of ``out``."""
        start = instance.start
        self.make_room(start.queue_bytes)
        self._instances[number] = instance
        load_copy(
            self.addresses, self.count, number, int(self.bases[number]), start.setup_address,
            out.observations, out.masks, out.invalid,
        )  # fmt: skip

    def step(self, actions: NDArray[np.int64]) -> tuple[Steps, int]:
        """Step every copy; returns what came of it, and how many copies are over.

        Where some action is not in the action space, nothing is done: -1 - the index of the first one.
        """
        out = Steps(self.count)
        arrays = (
            out.observations, out.rewards, out.terminated, out.truncated, out.masks, out.invalid
        )  # fmt: skip
        if self._pool is None:
            return out, step_copies(self.addresses, 0, self.count, actions, *arrays)
        if self._pid != os.getpid():  # threads do not survive a fork
            self._start_threads()
        shares = [
            self._pool.submit(step_copies, self.addresses, first, last, actions, *arrays)
            for first, last in self._shares
        ]
        over = [share.result() for share in shares]
        return out, min(over) if min(over) < 0 else sum(over)

    def observe(self) -> Steps:
        """What every copy looks like as it stands; no rewards and no ends."""
        out = Steps(self.count)
        observe_copies(self.addresses, out.observations, out.masks, out.invalid)
        return out

    def measure(self, copies: NDArray[np.int64]) -> NDArray[np.float64]:
        """(13, count): `MEASURED` of each of ``copies``; 0 in the other columns."""
        out = np.zeros((len(MEASURED), self.count))
        measure_copies(self.addresses, copies, out)
        return out

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        del kept["addresses"], kept["_pool"], kept["bases"], kept["_pid"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for k, instance in zip(self.setups, self._instances, strict=True):
            if instance is not None:
                for name in CASE_ADDRESSES:
                    k[name] = instance.start.setup[0][name]
        self._open()
        rows = _new_rows(self.count, self._rows.shape[1])
        rows[:, : self._rows.shape[1]] = self._rows
        self._move_to(rows)

    def __copy__(self) -> Fleet:
        # A shallow copy would share the setups, which can lead to one fleet's rows only.
        return copy.deepcopy(self)


def _new_rows(count: int, size: int) -> NDArray[np.uint8]:
    """(count, at least size) bytes. Rows begin with a cache line, each in another part of the caches."""
    lines = -(-size // CACHE_LINE_BYTES) | 1
    flat = np.empty((count * lines + 1) * CACHE_LINE_BYTES, np.uint8)
    first = -flat.ctypes.data % CACHE_LINE_BYTES
    return flat[first : first + count * lines * CACHE_LINE_BYTES].reshape(count, -1)
