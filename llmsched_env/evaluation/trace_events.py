"""A recorded episode in Chrome's trace-event format, which Perfetto and speedscope read."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.decisions import Trace
from llmsched_env.evaluation.phases import PHASES, PREEMPTED, WAITING, phases, request_table
from llmsched_env.simulator import Records, Simulator
from llmsched_env.storage import user_path, write_whole

__all__ = ["ACCELERATOR", "CLIENTS", "QUEUE", "TRACE_ENDINGS", "check_trace_path", "trace_events", "write_trace"]

ACCELERATOR, CLIENTS, QUEUE = 1, 2, 3
"""Processes of the trace."""

ITERATIONS, OTHER, FIRST_CLIENT = 11, 12, 1000
"""Threads. Perfetto takes threads of one number for the same one, also in two processes, and one that has its process's
number for the main thread."""

TRACE_ENDINGS = (".json", ".json.gz")

NS_PER_US = 1000

Event = dict[str, Any]
Placed = tuple[int, int, Event]
"""When an event happens, in ns, and its place among others of that time: ends before beginnings, inner ends first."""

Ints = NDArray[np.int64]


def trace_events(episode: Simulator | Trace) -> list[Event]:
    """The events of a recorded episode, in order of time: what stands under ``traceEvents``.

    Tracks, each a thread of one of three processes:

    - *accelerator*: ``iterations`` has a slice an iteration, ``prefill``, ``decode`` or ``mixed``. Counters:
      ``queue`` (requests ``waiting``, and ``preempted`` where some were), ``batch`` (``requests`` that have a token in
      the iteration) and, of a :class:`Trace`, ``KV`` (``tokens``). Of a trace with another policy there is also a
      thread with a mark at each decision where that one differs, and what its action would have cost.
    - *clients*: a thread a client. A slice ``request N`` for each stay of a request, and in it its phases: ``prefill``
      (or ``resume``, ``move``) and ``decode``, stalls by prefills of others included.
    - *queue*: ``waiting`` and ``preempted``, each a pair of async events whose id is the request.

    Times are microseconds, with the nanoseconds behind the point.

    Args:
        episode: a simulator that was recorded from its beginning, or what `trace_episode` returns.

    Raises:
        ConfigError: it was not recorded from its beginning.
    """
    trace = episode if isinstance(episode, Trace) else None
    simulator = episode if isinstance(episode, Simulator) else episode.simulator
    found = phases(simulator)
    placed = [
        *_iterations(simulator, trace),
        *_requests(simulator, found),
        *_counters(simulator, found, trace),
        *(_differences(trace) if trace is not None and trace.against is not None else ()),
    ]
    placed.sort(key=lambda one: one[:2])
    return [*_names(simulator, trace), *({**event, "ts": _us(time_ns)} for time_ns, _, event in placed)]


def _names(simulator: Simulator, trace: Trace | None) -> Iterator[Event]:
    def meta(what: str, pid: int, tid: int, **args: Any) -> Event:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}

    for pid, name in ((ACCELERATOR, "accelerator"), (CLIENTS, "clients"), (QUEUE, "queue")):
        yield meta("process_name", pid, 0, name=name)
        yield meta("process_sort_index", pid, 0, sort_index=pid)
    threads = [(ACCELERATOR, ITERATIONS, "iterations")]
    if trace is not None and trace.against is not None:
        threads.append((ACCELERATOR, OTHER, f"where {trace.against} differs"))
    threads += [(CLIENTS, FIRST_CLIENT + client, f"client {client}") for client in range(simulator.problem.num_clients)]
    for pid, tid, name in threads:
        yield meta("thread_name", pid, tid, name=name)
        yield meta("thread_sort_index", pid, tid, sort_index=tid)


def _us(time_ns: int) -> float:
    """Microseconds that give the same nanoseconds again, cut off or rounded: Perfetto cuts them off."""
    found = time_ns / NS_PER_US
    return found if int(found * NS_PER_US) == time_ns else math.nextafter(found, math.inf)


def _slice(
    pid: int, tid: int, name: str, start_ns: int, end_ns: int, *, args: Event | None = None, inner: bool = False
) -> Iterator[Placed]:
    """Its two ends; a duration would be added up in floating point, and seem to reach into the next slice."""
    if end_ns == start_ns:
        return
    event = {"name": name, "cat": "iteration" if pid == ACCELERATOR else "request", "pid": pid, "tid": tid}
    yield start_ns, 2 if inner else 1, {"ph": "B", **event, "args": args or {}}
    yield end_ns, -2 if inner else -1, {"ph": "E", **event}


def _iterations(simulator: Simulator, trace: Trace | None) -> Iterator[Placed]:
    names = simulator.problem.action_names
    choices = set() if trace is None else set(trace.decisions["iteration"].tolist())
    for number, (start_ns, end_ns, prefill, clients, mixed) in enumerate(simulator.log.tolist()):
        args: Event = {"iteration": number, "requests": clients}
        if trace is not None and number in choices:
            args["action"] = names[trace.simulator.actions[number]]
        name = "mixed" if mixed else "prefill" if prefill else "decode"
        yield from _slice(ACCELERATOR, ITERATIONS, name, start_ns, end_ns, args=args)


def _requests(simulator: Simulator, found: Records) -> Iterator[Placed]:
    """Of each stay at a client the slice around it, then its phases; of each wait a pair of async events."""
    table = request_table(simulator)
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    about = [_plain(dict(zip(table, row, strict=True))) for row in rows]
    for (request, client), group in itertools.groupby(found.tolist(), key=lambda row: row[:2]):
        stay = [*group]
        track = CLIENTS, FIRST_CLIENT + client
        if client >= 0:
            yield from _slice(*track, f"request {request}", stay[0][3], stay[-1][4], args=about[request])
        for _, _, phase, start_ns, end_ns in stay:
            if client >= 0:
                yield from _slice(*track, PHASES[phase], start_ns, end_ns, inner=True)
                continue
            # Perfetto puts all of one category and id on the track of the first: so each name has a category.
            event: Event = {"name": PHASES[phase], "cat": PHASES[phase], "id2": {"local": str(request)}}
            event |= {"pid": QUEUE, "tid": QUEUE}
            yield start_ns, 1, {"ph": "b", **event, "args": {"request": request}}
            yield end_ns, -1, {"ph": "e", **event}


def _plain(row: Event) -> Event:
    """Without what has no number: JSON has no NaN."""
    return {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}


def _counter(name: str, times_ns: ArrayLike, **series: ArrayLike) -> Iterator[Placed]:
    """A value at each time from which it holds: the last one where several have the same time, and only changes."""
    at, columns = np.asarray(times_ns, np.int64), np.stack([np.asarray(one, np.int64) for one in series.values()])
    last = np.append(at[1:] != at[:-1], True)
    at, columns = at[last], columns[:, last]
    changed = np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0))
    for time_ns, values in zip(at[changed].tolist(), columns[:, changed].T.tolist(), strict=True):
        args = dict(zip(series, values, strict=True))
        yield time_ns, 0, {"ph": "C", "name": name, "pid": ACCELERATOR, "tid": 0, "args": args}


def _counters(simulator: Simulator, found: Records, trace: Trace | None) -> Iterator[Placed]:
    spans = [found[found["phase"] == kind] for kind in (WAITING, PREEMPTED)]
    at = np.unique(np.concatenate([[0], *(times for one in spans for times in (one["start_ns"], one["end_ns"]))]))
    waiting, preempted = (_present(one["start_ns"], one["end_ns"], at) for one in spans)
    yield from _counter("queue", at, waiting=waiting, **({"preempted": preempted} if preempted.any() else {}))
    log = simulator.log
    ends = np.stack([log["start_ns"], log["end_ns"]], axis=1).ravel()  # an end is the next one's start, if that follows
    yield from _counter("batch", ends, requests=np.stack([log["clients"], np.zeros(len(log))], axis=1).ravel())
    if trace is not None:
        yield from _counter("KV", [0, *log["end_ns"]], tokens=[0, *trace.simulator.kv_tokens])


def _present(start_ns: Ints, end_ns: Ints, at: Ints) -> Ints:
    """How many spans [start, end) hold each time."""
    begun, over = (np.searchsorted(np.sort(times), at, side="right") for times in (start_ns, end_ns))
    return begun - over


def _differences(trace: Trace) -> Iterator[Placed]:
    names, table = trace.simulator.problem.action_names, trace.decisions
    serving = trace.simulator.episode.slo.enabled
    for i in np.flatnonzero(table["action"] != table["against_action"]).tolist():
        args = {"iteration": int(table["iteration"][i]), "action": names[table["action"][i]]}
        for name in ("against_makespan_s", "makespan_change_s", "against_goodput", "goodput_change"):
            if serving or "goodput" not in name:
                args[name] = float(table[name][i])
        event = {"ph": "i", "s": "t", "name": names[table["against_action"][i]], "cat": "decision"}
        yield int(table["clock_ns"][i]), 0, {**event, "pid": ACCELERATOR, "tid": OTHER, "args": _plain(args)}


def check_trace_path(path: Path | str) -> Path:
    """The path of a trace.

    Raises:
        ConfigError: another ending than those of `TRACE_ENDINGS`.
        PathError: it begins with a home folder that is not known.
    """
    if not str(path).endswith(TRACE_ENDINGS):
        raise ConfigError(f"trace_out = {str(path)!r}: a trace is JSON. End its name in {' or '.join(TRACE_ENDINGS)}.")
    return user_path(path)


def write_trace(episode: Simulator | Trace, path: Path | str, **about: Any) -> Path:
    """Write :func:`trace_events` as a JSON file, whole or not at all; gzipped where its name ends in ``.gz``.

    Args:
        episode: as :func:`trace_events` takes it.
        path: ends in ``.json`` or ``.json.gz``.
        about: what the file says of itself, under ``otherData``.

    Raises:
        ConfigError: another ending, or an episode that was not recorded from its beginning.
        PathError: the file cannot be written.
    """
    path = check_trace_path(path)
    events = trace_events(episode)
    with write_whole(path) as temporary, temporary.open("wb") as file:
        if path.suffix != ".gz":
            file.writelines(_lines(events, about))
        else:  # no name and no time in it: the same episode gives the same bytes
            with gzip.GzipFile("", "wb", 6, file, 0) as packed:
                packed.writelines(_lines(events, about))
    return path


def _lines(events: Iterable[Event], about: Event) -> Iterator[bytes]:
    """The file, an event a line."""
    head = json.dumps({"displayTimeUnit": "ms", "otherData": about}, allow_nan=False)
    yield f'{head[:-1]}, "traceEvents": [\n'.encode()
    before = ""
    for event in events:
        yield f"{before}{json.dumps(event, allow_nan=False, separators=(',', ':'))}".encode()
        before = ",\n"
    yield b"\n]}\n"
