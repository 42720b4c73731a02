"""``python -m llmsched_env.offline.pools``: make and verify the assignments that ship with the package.

Each case goes through the disk cache, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import CacheError, ConfigError, LLMSchedError
from llmsched_env.offline.assignment import STAGES, Assignment
from llmsched_env.offline.cmax_bounds import cmax_bound
from llmsched_env.offline.store import Pool, cached_assignment, loads_digest, pool_path
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole
from llmsched_env.workload import workload

__all__ = ["CLIENTS", "SPLITS", "WORKLOADS", "build", "main", "pool_size", "solved", "verify"]

Job = TypeVar("Job")
Made = TypeVar("Made")

CLIENTS = 200
WORKLOADS = ("gsm8k", "gsm8k-smooth")
SPLITS = ("train", "validation", "test")


def _case(job: tuple[str, str, int, int]) -> tuple[str, Assignment]:
    name, split, number, clients = job
    requests = workload(name).requests(split, number)
    return loads_digest(requests.decodes.astype(np.int64)), cached_assignment(requests, clients)


def pool_size(name: str, split: str) -> int:
    """Cases of a split.

    Raises:
        ConfigError: it has no end.
    """
    size = workload(name).pool_size(split)
    if size is None:
        raise ConfigError(f"workload {name!r} has no pool of a fixed size in split {split!r}: nothing to ship.")
    return size


def solved(case: Callable[[Job], Made], jobs: Sequence[Job], processes: int, *, at_once: int = 4) -> Iterator[Made]:
    """What is made of each job, in their order; ``at_once`` are handed to a process together."""
    if processes == 1:
        yield from map(case, jobs)
        return
    with ProcessPoolExecutor(processes) as executor:
        yield from executor.map(case, jobs, chunksize=at_once)


def build(name: str, split: str, path: Path, *, clients: int = CLIENTS, processes: int = 1) -> Counter[str]:
    """Assign every case of a split and write them to ``path``, whole or not at all.

    Args:
        name: workload.
        split: split of it, a finite pool.
        path: file to write.
        clients: at most 256, since the file has one byte a request.
        processes: how many to use; the result does not depend on it.

    Returns:
        How many cases each stage closed.

    Raises:
        ConfigError: more than 256 clients.
        PathError: ``path`` cannot be written.
    """
    if not 1 <= clients <= 256:
        raise ConfigError(f"clients = {clients} is out of range: a shipped pool has 1 to 256, one byte a request.")
    jobs = [(name, split, number, clients) for number in range(pool_size(name, split))]
    made = list(Progress(solved(_case, jobs, processes), total=len(jobs), desc=f"{name} {split}", unit="case"))
    assignments = [assignment for _, assignment in made]
    with write_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            digest=np.array([digest for digest, _ in made], "S64"),
            client_of=np.stack([a.client_of for a in assignments]).astype(np.uint8),
            makespan_decodes=np.array([a.makespan_decodes for a in assignments], np.int64),
            bound_decodes=np.array([a.bound_decodes for a in assignments], np.int64),
            stage=np.array([STAGES.index(a.stage) for a in assignments], np.uint8),
            clients=np.array(clients, np.int64),
        )
    return Counter(a.stage for a in assignments)


def verify(name: str, split: str, path: Path) -> Iterable[str]:
    """What is wrong with a pool's file: a case missing, or a certificate that its requests do not bear out."""
    try:
        pool = Pool.read(path)
    except CacheError as error:
        yield f"{error}: build it."
        return
    for number in Progress(range(pool_size(name, split)), desc=f"verify {name} {split}", unit="case"):
        loads: NDArray[np.int64] = workload(name).requests(split, number).decodes.astype(np.int64)
        row = pool.row_of.get(loads_digest(loads))
        if row is None:
            yield f"{path.name}: case {number} is missing: its requests have changed, build the pool again."
            continue
        try:
            assignment = pool.assignment(row, loads)
        except CacheError as error:
            yield f"{path.name}: case {number}: {error}."
            continue
        if assignment.bound_decodes > cmax_bound(loads, pool.clients):
            yield f"{path.name}: case {number}: its bound, {assignment.bound_decodes}, cannot be recomputed."
        if assignment.proved != (assignment.stage != "open"):
            yield f"{path.name}: case {number}: stage {assignment.stage!r} contradicts its certificate."


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llmsched_env.offline.pools", description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result is the same)")
    parser.add_argument("--verify", action="store_true", help="check the files that are there; build nothing")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give at least 1.")
    failed = False
    for name in args.workloads:
        for split in args.splits:
            path = pool_path(name, split)
            try:
                if not args.verify:
                    stages = build(name, split, path, clients=CLIENTS, processes=args.jobs)
                    print(f"{path.name}: " + ", ".join(f"{count} {stage}" for stage, count in sorted(stages.items())))
                problems = list(verify(name, split, path))
            except LLMSchedError as error:
                problems = [str(error)]
            for problem in problems:
                print(problem, file=sys.stderr)
            failed |= bool(problems)
            if not problems:
                print(f"{path.name}: verified")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
