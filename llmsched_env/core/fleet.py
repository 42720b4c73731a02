"""Many episodes side by side, stepped in one compiled call.

What each step touches first lies together by kind (views, states, setups); the queues of a copy are one row of a large
array, whose rows grow when a case needs more. A reset copies the start of an instance over the copy's row: no solver,
no Python object per client or request, and, unless rows have to grow, no allocation.
"""

from __future__ import annotations

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.features import NUM_FEATURES, observe
from llmsched_env.core.instance import Instance
from llmsched_env.core.layout import (
    BUCKET,
    CASE_ADDRESSES,
    CLIENT_COLUMNS,
    DUE_LIMITS,
    FLEET,
    HEAD,
    REQUEST_COLUMNS,
    RING_COLUMNS,
    SETUP,
    STATE,
    STEPS,
    TOURNAMENT_COLUMNS,
    VIEW,
)
from llmsched_env.core.loops import CONTINUE, INVALID_SHIFT, OBSERVE, OVER, TERMINATED, TRUNCATED, step_episode
from llmsched_env.core.measure import MEASURED, measure_so_far
from llmsched_env.core.memory import bits_at, clients_at, kv_at, ring_at, started_at, tournament_at
from llmsched_env.core.pointers import array_at, prefetch
from llmsched_env.jit import inlined, jit

__all__ = [
    "CLIENT_BYTES",
    "COPY_BYTES",
    "Fleet",
    "Steps",
    "flags_at",
    "load_copy",
    "look_ahead",
    "setups_at",
    "states_at",
    "step_copies",
    "views_at",
]

CACHE_LINE_BYTES = 64
VIEW_BYTES, STATE_BYTES = VIEW.itemsize, STATE.itemsize
NODE_BYTES = 8 * TOURNAMENT_COLUMNS
CLIENT_BYTES, RING_BYTES, REQUEST_BYTES = 4 * CLIENT_COLUMNS, 4 * RING_COLUMNS, 4 * REQUEST_COLUMNS
AHEAD = 3
RETURNED = 2
"""Steps whose memory is kept for another use: a loop holds one while it asks for the next, and then lets go of it."""
DUE_WINDOWS = (0, *DUE_LIMITS)

COPY_BYTES = VIEW_BYTES + STATE_BYTES + SETUP.itemsize
"""What a copy takes beside its queues."""


class Steps:
    """What one step of ``count`` copies returns.

    Args:
        count: copies.
        num_actions: of each.
        num_features: of each.

    Attributes:
        observations: (count, num_features) float32.
        rewards: (count,) float64.
        invalid: (count,) int64: infeasible actions of the episode so far.
        masks: (count, num_actions) int8: which actions are feasible next.
        terminated: (count,) bool.
        truncated: (count,) bool.
        address: of a `STEPS` record that leads to them, for compiled code.
    """

    __slots__ = (
        "_block", "_record", "_unseen", "address", "invalid", "masks", "observations", "rewards", "terminated",
        "truncated",
    )  # fmt: skip

    def __init__(self, count: int, num_actions: int = 2, num_features: int = NUM_FEATURES) -> None:
        sizes = 8 * count, 8 * count, 4 * num_features * count, num_actions * count, count, count
        places = (*accumulate(sizes, initial=0),)
        self._block = np.empty(places[-1], np.uint8)
        self.rewards = np.ndarray((count,), np.float64, self._block, places[0])
        self.invalid = np.ndarray((count,), np.int64, self._block, places[1])
        self.observations = np.ndarray((count, num_features), np.float32, self._block, places[2])
        self.masks = np.ndarray((count, num_actions), np.int8, self._block, places[3])
        self.terminated = np.ndarray((count,), np.bool_, self._block, places[4])
        self.truncated = np.ndarray((count,), np.bool_, self._block, places[5])
        first = self._block.ctypes.data
        record = [count, num_actions, num_features, *(first + place for place in places[:-1])]  # as STEPS has them
        self._record = np.array(record)
        self.address = int(self._record.ctypes.data)
        self._unseen = getrefcount(self._block)

    def forgotten(self) -> bool:
        """Whether nobody else refers to this memory: arrays handed out, and parts of them, refer to the block."""
        return getrefcount(self._block) == self._unseen

    def handed_out(self) -> Steps:
        """The same memory under new array objects: what becomes of those, as a new shape, is of no concern here."""
        other = object.__new__(Steps)
        other.address = self.address
        other.observations, other.rewards = self.observations.view(), self.rewards.view()
        other.terminated, other.truncated = self.terminated.view(), self.truncated.view()
        other.masks, other.invalid = self.masks.view(), self.invalid.view()
        return other


@inlined
def first_unknown(actions: NDArray[np.int64], num_actions: int) -> int:
    """Index of the first action that is not in the action space, or -1."""
    last = num_actions - 1
    signs = 0  # negative as soon as an action is negative or above the last
    for i in range(len(actions)):
        signs |= actions[i] | (last - actions[i])
    if signs < 0:
        for i in range(len(actions)):
            if not 0 <= actions[i] <= last:
                return i
    return -1


@inlined
def views_at(fleet: int) -> Any:
    """(count,) `VIEW` of the `FLEET` at this address."""
    f = array_at(fleet, (1,), FLEET)[0]
    return array_at(f.views_address, (f.count,), VIEW)


@inlined
def states_at(fleet: int) -> Any:
    """(count,) `STATE`."""
    f = array_at(fleet, (1,), FLEET)[0]
    return array_at(f.states_address, (f.count,), STATE)


@inlined
def setups_at(fleet: int) -> Any:
    """(count,) `SETUP`."""
    f = array_at(fleet, (1,), FLEET)[0]
    return array_at(f.setups_address, (f.count,), SETUP)


@inlined
def flags_at(fleet: int) -> Any:
    """(count,) int64."""
    f = array_at(fleet, (1,), FLEET)[0]
    return array_at(f.flags_address, (f.count,), np.int64)


@inlined
def _observations_at(out: int) -> Any:
    """(count, num_features) float32 of the `STEPS` at this address."""
    o = array_at(out, (1,), STEPS)[0]
    return array_at(o.observations_address, (o.count, o.num_features), np.float32)


@inlined
def _tell(out: int, copy: int, flag: int) -> None:
    """Write what the flags of a copy say about its next action."""
    o = array_at(out, (1,), STEPS)[0]
    masks = array_at(o.masks_address, (o.count, o.num_actions), np.int8)
    masks[copy, 0] = flag & 1
    for action in range(1, o.num_actions):
        masks[copy, action] = flag >> 1 & 1
    array_at(o.invalid_address, (o.count,), np.int64)[copy] = flag >> INVALID_SHIFT


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
def step_copies(fleet: int, out: int, first: int, last: int, actions: NDArray[np.int64]) -> int:
    """Step copies ``first`` to ``last`` - 1; returns how many of them are over.

    Where some action of ``actions``, (count,), is not in the action space, nothing is done: -1 - the first one's index.
    ``fleet`` and ``out`` are the addresses of a `FLEET` and of the `STEPS` to write to.
    """
    o = array_at(out, (1,), STEPS)[0]
    unknown = first_unknown(actions, o.num_actions)
    if unknown >= 0:
        return -1 - unknown
    views, states, setups, flags = views_at(fleet), states_at(fleet), setups_at(fleet), flags_at(fleet)
    observations = _observations_at(out)
    rewards = array_at(o.rewards_address, (o.count,), np.float64)
    terminated = array_at(o.terminated_address, (o.count,), np.bool_)
    truncated = array_at(o.truncated_address, (o.count,), np.bool_)
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
        _tell(out, i, flag)
        over += 1 if flag & OVER else 0
    return over


@inlined
def _place(fleet: int, copy: int) -> None:
    """Point the setup of ``copy`` at its own view, state and row."""
    f = array_at(fleet, (1,), FLEET)[0]
    k = setups_at(fleet)[copy]
    k.view_address = f.views_address + copy * VIEW_BYTES
    k.state_address = f.states_address + copy * STATE_BYTES
    base = f.rows_address + copy * f.row_bytes
    move = base - k.waiting_address
    k.waiting_address += move
    k.idle_address += move
    k.own_ready_address += move
    k.stale_address += move
    k.ranked_address += move
    k.preempted_address += move
    k.ring_address = base + 8 * k.bit_words
    k.clients_address = k.ring_address + RING_BYTES * (k.ring_mask + 1)
    k.tournament_address = k.clients_address + CLIENT_BYTES * k.num_clients
    k.started_address = k.tournament_address + NODE_BYTES * k.num_nodes
    k.kv_address = k.started_address + (8 * k.num_clients if k.serving else 0)


@jit
def load_copy(fleet: int, out: int, copy: int, source: int) -> None:
    """Put the episode whose `SETUP` lies at ``source`` into ``copy``, and write what it looks like to ``out``."""
    setup = array_at(source, (1,), SETUP)[0]
    views, states, setups, flags = views_at(fleet), states_at(fleet), setups_at(fleet), flags_at(fleet)
    views[copy] = array_at(setup.view_address, (1,), VIEW)[0]
    states[copy] = array_at(setup.state_address, (1,), STATE)[0]
    setups[copy] = setup
    _place(fleet, copy)
    k = setups[copy]
    clients_at(k)[:, :] = clients_at(setup)
    ring_at(k)[:, :] = ring_at(setup)
    bits_at(k)[:] = bits_at(setup)
    if k.stealing:
        tournament_at(k)[:, :] = tournament_at(setup)
    if k.serving:
        started_at(k)[:] = started_at(setup)
    if k.kv_budget > 0:
        kv_at(k)[:] = kv_at(setup)
    _, flags[copy] = step_episode(views[copy], states[copy], k, OBSERVE, _observations_at(out)[copy])
    _tell(out, copy, flags[copy])


@jit
def place_copies(fleet: int) -> None:
    """Point every setup at the queues in its row: after a move."""
    for i in range(len(setups_at(fleet))):
        _place(fleet, i)


@jit
def observe_copies(fleet: int, out: int) -> None:
    """Write what every copy looks like as it stands."""
    views, flags, observations = views_at(fleet), flags_at(fleet), _observations_at(out)
    for i in range(len(views)):
        observe(views[i], observations[i])
        _tell(out, i, flags[i])


@jit
def measure_copies(fleet: int, copies: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """Write what each of ``copies`` achieved so far to its column of ``out``, (len(MEASURED), count)."""
    for i in copies:
        measure_so_far(views_at(fleet)[i], states_at(fleet)[i], setups_at(fleet)[i], out[:, i])


class Fleet:
    """``count`` episodes, each of an instance of its own, stepped together.

    Args:
        count: copies.
        num_actions: of each.
        num_features: of each.
        threads: that share a step; results do not depend on it.

    Attributes:
        count: as given.
        views: (count,) `VIEW`.
        states: (count,) `STATE`.
        setups: (count,) `SETUP`.
        flags: (count,) int64: of the last step or reset, as `llmsched_env.core.loops.step_episode` returns them.
        address: of a `FLEET` record that leads to them, for compiled code.
    """

    def __init__(self, count: int, num_actions: int = 2, num_features: int = NUM_FEATURES, *, threads: int = 1) -> None:
        self.count, self.num_actions, self.num_features = count, num_actions, num_features
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
        self._record = np.zeros(1, FLEET)
        record = self._record[0]
        record.count = self.count
        for name in ("views", "states", "setups", "flags"):
            record[f"{name}_address"] = getattr(self, name).ctypes.data
        self.address = int(self._record.ctypes.data)
        self._returned: list[Steps | None] = [None] * RETURNED
        self._turn = 0
        bounds = np.linspace(0, self.count, self._threads + 1).astype(int).tolist()
        self._shares = list(pairwise(bounds))
        self._start_threads()

    def _start_threads(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pid = os.getpid()

    def _move_to(self, rows: NDArray[np.uint8]) -> None:
        self._rows = rows
        self._record[0].rows_address, self._record[0].row_bytes = rows.ctypes.data, rows.shape[1]
        place_copies(self.address)

    def new_steps(self) -> Steps:
        """New arrays."""
        return Steps(self.count, self.num_actions, self.num_features)

    def _next_steps(self) -> Steps:
        """Arrays to return, of which nobody holds a part: those of some steps ago where they were dropped, else new."""
        self._turn = turn = (self._turn + 1) % RETURNED
        out = self._returned[turn]
        if out is None or not out.forgotten():
            out = self._returned[turn] = self.new_steps()
        return out.handed_out()

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
        load_copy(self.address, out.address, number, start.setup_address)

    def step(self, actions: NDArray[np.int64]) -> tuple[Steps, int]:
        """Step every copy; returns what came of it, and how many copies are over.

        Where some action is not in the action space, nothing is done: -1 - the index of the first one.
        """
        out = self._next_steps()
        if self._pool is None:
            return out, step_copies(self.address, out.address, 0, self.count, actions)
        if self._pid != os.getpid():  # threads do not survive a fork
            self._start_threads()
        shares = [
            self._pool.submit(step_copies, self.address, out.address, first, last, actions)
            for first, last in self._shares
        ]
        over = [share.result() for share in shares]
        return out, min(over) if min(over) < 0 else sum(over)

    def observe(self) -> Steps:
        """What every copy looks like as it stands; no rewards and no ends."""
        out = self._next_steps()
        observe_copies(self.address, out.address)
        return out

    def measure(self, copies: NDArray[np.int64]) -> NDArray[np.float64]:
        """(len(MEASURED), count): `MEASURED` of each of ``copies`` as an ``info`` has them; 0 in the other columns."""
        out = np.zeros((len(MEASURED), self.count))
        measure_copies(self.address, copies, out)
        return out

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("address", "_record", "_returned", "_pool", "_pid"):
            del kept[name]
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
