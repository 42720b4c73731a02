"""Assignments that are already there: shipped with the package, or cached on disk; else computed once.

A shipped pool, ``workload/data/assignments_<workload>_<split>.npz``, holds the assignments of a split's cases:

- ``digest`` (cases,) ascii: :func:`loads_digest` of each case, by which it is found;
- ``client_of`` (cases, n) uint8; ``makespan_decodes``, ``bound_decodes`` (cases,) int64;
- ``stage`` (cases,) uint8, an index into :data:`~llmsched_env.offline.assignment.STAGES`; ``clients`` () int64.

Whatever is read is checked before it is served: one client for each request, the largest load recomputed, the bound no
lower than a freshly computed one. What fails is logged and rebuilt; it never raises.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import CacheError, PathError, UnknownNameError
from llmsched_env.offline.assignment import METHODS, STAGES, Assignment, assign, check_clients, check_loads
from llmsched_env.offline.cmax_bounds import cmax_bound
from llmsched_env.storage import cache_dir, write_whole
from llmsched_env.workload.requests import Requests

__all__ = [
    "ALGORITHM_VERSION",
    "UNREADABLE",
    "Pool",
    "cache_path",
    "cached_assignment",
    "loads_digest",
    "pool_path",
    "stored_assignment",
]

ALGORITHM_VERSION = 1
"""Raise it when a change to the algorithm changes assignments: cached ones are then left behind."""

DATA = Path(__file__).parent.parent / "workload" / "data"

UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    CacheError,
)
"""What reading a damaged file may raise."""

_log = logging.getLogger(__name__)


def loads_digest(loads: NDArray[np.int64]) -> str:
    """Content hash (hex) of what an assignment depends on: the loads, in order."""
    return hashlib.sha256(np.ascontiguousarray(loads.astype("<i8")).tobytes()).hexdigest()


def stored_assignment(
    requests: Requests,
    clients: SupportsIndex,
    method: str = "mip",
    *,
    loads: ArrayLike | None = None,
    progress: bool = False,
) -> Assignment:
    """:func:`~llmsched_env.offline.assignment.assign` with its default budget, from the store where it can be.

    Args:
        requests: the requests.
        clients: number of clients.
        method: one of :data:`~llmsched_env.offline.assignment.METHODS`; only ``"mip"`` is worth storing.
        loads: (n,) loads to balance; None: ``requests.decodes``.
        progress: show a line on stderr while computing.

    Raises:
        ConfigError: as :func:`~llmsched_env.offline.assignment.assign`.
        UnknownNameError: no such method.
    """
    count = check_clients(clients)
    if method not in METHODS:
        raise UnknownNameError("assignment method", method, METHODS)
    if method != "mip":
        return assign(requests, count, method, loads=loads)
    work = check_loads(requests, loads)
    shipped = _shipped(work, count)
    return shipped if shipped is not None else cached_assignment(requests, count, loads=loads, progress=progress)


def cached_assignment(
    requests: Requests, clients: int, *, loads: ArrayLike | None = None, progress: bool = False
) -> Assignment:
    """``method="mip"`` from the disk cache, or computed and put there."""
    work = check_loads(requests, loads)
    path = cache_path(work, clients)
    if path.exists():
        try:
            return _read(path, work, clients)
        except UNREADABLE as error:
            _log.warning("cached assignment %s is damaged (%s): building it again.", path, type(error).__name__)
    assignment = assign(requests, clients, "mip", loads=loads, progress=progress)
    try:
        _write(path, assignment)
    except PathError as error:
        _log.warning("assignment not cached: %s", error)
    return assignment


def cache_path(loads: NDArray[np.int64], clients: int) -> Path:
    """Where the disk cache keeps the assignment of these loads."""
    key = f"{loads_digest(loads)} {clients} mip {ALGORITHM_VERSION}"
    return cache_dir() / "assignments" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def pool_path(workload: str, split: str) -> Path:
    """Where the package keeps a shipped pool."""
    return DATA / f"assignments_{workload}_{split}.npz"


def _checksum(client_of: NDArray[np.int32], numbers: NDArray[np.int64]) -> str:
    return hashlib.sha256(client_of.astype("<i4").tobytes() + numbers.astype("<i8").tobytes()).hexdigest()


def _write(path: Path, assignment: Assignment) -> None:
    numbers = np.array(
        [assignment.makespan_decodes, assignment.bound_decodes, STAGES.index(assignment.stage)], np.int64
    )
    checksum = _checksum(assignment.client_of, numbers)
    with write_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, client_of=assignment.client_of, numbers=numbers, checksum=np.array(checksum))


def _read(path: Path, loads: NDArray[np.int64], clients: int) -> Assignment:
    # np.load leaves the file open when it is no archive; a file of our own is closed.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
        client_of, numbers = entry["client_of"].astype(np.int32), entry["numbers"].astype(np.int64)
        if str(entry["checksum"]) != _checksum(client_of, numbers):
            raise CacheError("its checksum does not match")
    makespan, bound, stage = numbers.tolist()
    return checked(client_of, loads, clients, makespan=makespan, bound=bound, stage=STAGES[stage])


def checked(
    client_of: NDArray[np.int32], loads: NDArray[np.int64], clients: int, *, makespan: int, bound: int, stage: str
) -> Assignment:
    """A stored assignment with its certificate recomputed.

    Raises:
        CacheError: it does not fit the loads, or its numbers are wrong.
    """
    if client_of.shape != loads.shape or client_of.min() < 0 or client_of.max() >= clients:
        raise CacheError("it does not name one client for each request")
    held = np.zeros(clients, np.int64)
    np.add.at(held, client_of, loads)
    if int(held.max()) != makespan:
        raise CacheError(f"its largest load is {held.max()}, not {makespan}")
    if not cmax_bound(loads, clients) <= bound <= makespan:
        raise CacheError(f"its bound, {bound}, is wrong")
    client_of.setflags(write=False)
    return Assignment(client_of, clients, "mip", makespan, bound, stage)


@dataclass(frozen=True, eq=False)
class Pool:
    """A shipped pool in memory: see the module's docstring for the arrays."""

    clients: int
    row_of: dict[str, int]
    client_of: NDArray[np.uint8]
    makespan_decodes: NDArray[np.int64]
    bound_decodes: NDArray[np.int64]
    stage: NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Pool:
        """Load a pool's file.

        Raises:
            CacheError: it cannot be read as one.
        """
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                digests = file["digest"].astype(str).tolist()
                pool = cls(
                    int(file["clients"]),
                    {digest: row for row, digest in enumerate(digests)},
                    file["client_of"],
                    file["makespan_decodes"],
                    file["bound_decodes"],
                    file["stage"],
                )
        except UNREADABLE as error:
            raise CacheError(f"{path} is damaged ({error})") from error
        for column in (pool.client_of, pool.makespan_decodes, pool.bound_decodes, pool.stage):
            if len(column) != len(digests):
                raise CacheError(f"{path} is damaged (columns of unequal length)")
        return pool

    def assignment(self, row: int, loads: NDArray[np.int64]) -> Assignment:
        """The assignment of one case, checked against its loads.

        Raises:
            CacheError: it does not fit.
        """
        makespan, bound = int(self.makespan_decodes[row]), int(self.bound_decodes[row])
        client_of = self.client_of[row].astype(np.int32)
        stage = STAGES[int(self.stage[row])]
        return checked(client_of, loads, self.clients, makespan=makespan, bound=bound, stage=stage)


@functools.cache
def _pools() -> tuple[Pool, ...]:
    """Every shipped pool, read on the first look-up and kept."""
    pools = []
    for path in sorted(DATA.glob("assignments_*.npz")):
        try:
            pools.append(Pool.read(path))
        except CacheError as error:
            _log.warning("shipped assignments: %s; cases are assigned afresh.", error)
    return tuple(pools)


def _shipped(loads: NDArray[np.int64], clients: int) -> Assignment | None:
    fitting = [pool for pool in _pools() if pool.clients == clients]
    if not fitting:
        return None
    digest = loads_digest(loads)
    for pool in fitting:
        row = pool.row_of.get(digest)
        if row is None:
            continue
        try:
            return pool.assignment(row, loads)
        except CacheError as error:
            _log.warning("a shipped assignment is damaged (%s): building it again.", error)
    return None
