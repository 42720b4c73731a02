"""What a case goes through, stage by stage: time and memory of each in a process of its own, and what it found.

Time is CPU time, which other processes on the machine hardly add to, and the reference is timed in the same process.

``python -m llmsched_env.studies.stages NAME FILE`` is that process. The file holds two pickles, a small case and the
case itself, each as the stage takes it over from the one before. The small one loads libraries. What the process
holds then is idle; what it holds at most beyond that, the arrays of the case included, is the stage's memory.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.metrics import final_metrics
from llmsched_env.offline import Assignment, Budget, assign, lb1_ns, naive_model
from llmsched_env.offline.assignment import MOVES_PER_REQUEST
from llmsched_env.offline.polish import polish
from llmsched_env.offline.resplit import resplit
from llmsched_env.policy import EpisodeContext
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.studies.machine import child, machine, peak_memory_bytes, reset_peak_memory
from llmsched_env.workload import Requests

__all__ = ["REFERENCE", "STAGES", "WHOLE_MIP_NODES", "Point", "Stage", "measured", "stage", "whole_mip"]

MOST_REPEATS, ENOUGH_S = 5, 2.0
"""A stage is timed so often, or until so much time is spent on it; the best counts."""

REFERENCE_NUMBERS = 1_000_000
REFERENCE = "NumPy's stable argsort of a million random doubles"
"""What times are set against: LPT begins with one like it."""

WHOLE_MIP_NODES = 500
"""Branch-and-bound nodes of the MIP that has all requests in it."""

QUEUES: dict[str, dict[str, str]] = {"client": {"queue": "client", "assignment": "lpt"}, "shared": {"queue": "shared"}}
"""What an episode is played on, longest first, with stealing: the queues of `hybrid_lpt` and `shared_lpt_lagrangian`.
No policy is looked up by name here: the registry takes longer to import than all the rest."""


class Point(NamedTuple):
    """One case of a size.

    Attributes:
        lengths: name of the workload.
        clients: number of clients.
        requests: number of requests.
        case: of the test split.
        models: PuLP models that polishing may solve.
    """

    lengths: str
    clients: int
    requests: int
    case: int = 0
    models: int = 2

    def scenario(self, **queues: Any) -> Scenario:
        """The scenario that the case belongs to."""
        return Scenario(self.lengths, "test", num_clients=self.clients, num_requests=self.requests, **queues)


SMALL = Point("gsm8k-smooth", 20, 132)
"""What a process does first, whatever it is to measure."""


class Started(NamedTuple):
    """Where the searches begin: (n,) loads, LPT's assignment of them, and the PuLP models allowed."""

    loads: NDArray[np.int64]
    lpt: Assignment
    models: int


class Found(NamedTuple):
    """Where a search ended: (n,) clients, and the moves spent, if it counts them."""

    client_of: NDArray[np.int32]
    moves: int | None


class Stage(NamedTuple):
    """One stage.

    Attributes:
        text: what tables call it.
        given: makes what it starts from; not measured.
        work: what is measured; leaves what it is given as it is.
        said: JSON values of what was given and what became of it.
    """

    text: str
    given: Callable[[Point], Any]
    work: Callable[[Any], Any]
    said: Callable[[Any, Any], dict[str, Any]]


def _draw(point: Point) -> Requests:
    return point.scenario().source.requests("test", point.case, num_requests=point.requests)


def _unassigned(point: Point) -> tuple[Requests, int]:
    return _draw(point), point.clients


def _assigned(point: Point) -> tuple[Requests, Assignment]:
    requests = _draw(point)
    return requests, assign(requests, point.clients, "lpt")


def _started(point: Point) -> Started:
    requests, lpt = _assigned(point)
    return Started(requests.decodes.astype(np.int64), lpt, point.models)


def _by(method: str) -> Callable[[tuple[Requests, int]], Assignment]:
    return lambda given: assign(given[0], given[1], method)


def _resplit(given: Started) -> Found:
    client_of = given.lpt.client_of.copy()
    most = min(Budget().resplit_moves, MOVES_PER_REQUEST * len(client_of))
    _, moves = resplit(given.loads, client_of, given.lpt.num_clients, given.lpt.bound_decodes, most, 0)
    return Found(client_of, int(moves))


def _polish(given: Started) -> Found:
    lpt, nodes = given.lpt, Budget().polish_nodes
    found = polish(lpt.client_of, given.loads, lpt.num_clients, lpt.bound_decodes, mips=given.models, node_limit=nodes)
    return Found(found, None)


def _certificate(given: Started, found: Found) -> dict[str, Any]:
    clients, bound = given.lpt.num_clients, given.lpt.bound_decodes
    held = np.zeros(clients, np.int64)
    np.add.at(held, found.client_of, given.loads)
    return {"cmax": int(held.max()), "bound": bound, "moves": found.moves, "models": given.models}


def _closed(given: tuple[Requests, int], found: Assignment) -> dict[str, Any]:
    return {"cmax": found.makespan_decodes, "bound": found.bound_decodes}


def _lay_out(given: tuple[Requests, Assignment]) -> Problem:
    requests, lpt = given
    cost, clients = Scenario().cost_model, lpt.num_clients
    return Problem.build(
        requests,
        requests.output_tokens,
        cost,
        clients,
        client_of=lpt.client_of,
        order="longest_first",
        stealing=True,
        bound_ns=lb1_ns(requests, clients, cost),
    )


def _laid_out(queues: str) -> Callable[[Point], Problem]:
    return lambda point: build_problem(point.scenario(**QUEUES[queues]), point.case)


def _play(given: Problem) -> Simulator:
    simulator = Simulator(given)
    simulator.run(lagrangian().compiled(EpisodeContext(Scenario(), given.start.view.mean_output_tokens)))
    return simulator


def _episode(given: Problem, played: Simulator) -> dict[str, Any]:
    metrics = final_metrics(played)
    said = {name: metrics[name] for name in ("makespan_s", "bound_s", "gap_to_bound")}
    return {**said, "iterations": metrics["prefills"] + metrics["decodes"]}


STAGES = {
    "draw": Stage(
        "drawing the case",
        lambda point: point,
        _draw,
        lambda point, drawn: {"output_tokens": int(drawn.output_tokens.sum(dtype=np.int64))},
    ),
    "lpt": Stage("LPT and bound", _unassigned, _by("lpt"), _closed),
    "resplit": Stage("pair re-split", _started, _resplit, _certificate),
    "polish": Stage("polish MIPs", _started, _polish, _certificate),
    "assign": Stage("all of `assign`", _unassigned, _by("mip"), _closed),
    "layout": Stage("laying out", _assigned, _lay_out, lambda given, made: {"problem_bytes": made.nbytes}),
    "client": Stage("episode, client queues", _laid_out("client"), _play, _episode),
    "shared": Stage("episode, shared queue", _laid_out("shared"), _play, _episode),
}
"""Stages by name, in their order; re-split and polishing both start from LPT, and `assign` runs all that it needs."""


def measured(name: str, path: str | Path) -> dict[str, Any]:
    """What the process of a stage says: seconds, those of the reference, bytes, and what it found."""
    this = STAGES[name]
    with Path(path).open("rb") as file:
        this.work(pickle.load(file))
        idle_bytes = reset_peak_memory()
        given = pickle.load(file)
    seconds, made = _best(lambda: this.work(given))
    memory_bytes = peak_memory_bytes() - idle_bytes
    numbers = np.random.default_rng(0).random(REFERENCE_NUMBERS)
    return {
        "seconds": seconds,
        "reference_s": _best(lambda: np.argsort(numbers, kind="stable"))[0],
        "memory_bytes": memory_bytes,
        "found": this.said(given, made),
    }


def _best(work: Callable[[], Any]) -> tuple[float, Any]:
    """Least CPU seconds of several times, and what was made the last time."""
    seconds: list[float] = []
    made = None
    while len(seconds) < MOST_REPEATS and sum(seconds) < ENOUGH_S:
        made = None  # or two of them would be held
        before = time.process_time()
        made = work()
        seconds.append(time.process_time() - before)
    return min(seconds), made


def stage(name: str, lengths: str, clients: int, requests: int, cases: int, models: int) -> dict[str, Any]:
    """A job: case 0 measured in a process of its own, the others only for what is found.

    Raises:
        RuntimeError: that process failed, as for want of memory.
    """
    this, point = STAGES[name], Point(lengths, clients, requests, models=models)
    small = this.given(SMALL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case"
        with path.open("wb") as file:
            pickle.dump(small, file)
            pickle.dump(this.given(point), file)
        found = child("llmsched_env.studies.stages", name, str(path))
    others = []
    for case in range(1, cases):
        given = this.given(point._replace(case=case))
        others.append(this.said(given, this.work(given)))
    return {
        "stage": name,
        "lengths": lengths,
        "clients": clients,
        "requests": requests,
        **{name: found[name] for name in ("seconds", "reference_s", "memory_bytes")},
        "found": [found["found"], *others],
        "machine": machine(),
    }


def whole_mip(lengths: str, clients: int, requests: int, cases: int) -> dict[str, Any]:
    """A job: the MIP with a binary for each request and client, on cases small enough for it."""
    found, seconds = [], []
    for case in range(cases):
        drawn = _draw(Point(lengths, clients, requests, case))
        before = time.process_time()
        naive = naive_model(drawn, clients, node_limit=WHOLE_MIP_NODES)
        seconds.append(time.process_time() - before)
        found.append({"cmax": naive.makespan_decodes, "bound": naive.bound_decodes})
    return {
        "lengths": lengths,
        "clients": clients,
        "requests": requests,
        "found": found,
        "seconds": sum(seconds) / cases,
    }


if __name__ == "__main__":
    print(json.dumps(measured(*sys.argv[1:])))
