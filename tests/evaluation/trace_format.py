"""What the trace-event format asks of a file, and what is read back from one: written down apart from the writer."""

from __future__ import annotations

import math
from collections import defaultdict

NS = 1000  # in a microsecond

NEEDED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "C": {"name", "pid", "ts", "args"},
    "i": {"name", "pid", "tid", "ts", "s"},
    "b": {"name", "cat", "id", "pid", "ts"},
    "e": {"name", "cat", "id", "pid", "ts"},
}
"""Fields without which viewers drop an event, by its phase."""

METADATA = {
    "process_name": str,
    "thread_name": str,
    "process_sort_index": int,
    "thread_sort_index": int,
}


def ns(microseconds):
    """A time of the file as whole nanoseconds."""
    found = round(microseconds * NS)
    assert math.isclose(found, microseconds * NS, rel_tol=1e-12, abs_tol=1e-6), f"{microseconds} us hides a remainder"
    return found


def assert_well_formed(trace):
    """Raise where viewers would drop, misread or reorder something."""
    assert isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    for event in events:
        assert NEEDED[event["ph"]] <= set(event), event
        assert isinstance(event["pid"], int), event
        assert isinstance(event.get("tid", 0), int), event
        assert event.get("ts", 0) >= 0, event
        assert isinstance(event["name"], str), event
    for event in by_phase(events, "M"):
        (value,) = event["args"].values()
        assert isinstance(value, METADATA[event["name"]]), event
    for event in by_phase(events, "C"):
        assert event["args"], event
        assert all(type(value) in (int, float) and math.isfinite(value) for value in event["args"].values()), event
    timed = [event["ts"] for event in events if event["ph"] != "M"]
    assert timed == sorted(timed), "viewers that stream expect events in order of time"
    assert all(event["s"] in ("t", "p", "g") for event in by_phase(events, "i"))
    _assert_nested(events)
    _assert_paired(events)
    named = {(event["pid"], event["tid"]) for event in by_phase(events, "M") if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in by_phase(events, "X", "i")} <= named, "a track without a name"


def by_phase(events, *phases):
    return [event for event in events if event["ph"] in phases]


def _assert_nested(events):
    """Slices of a thread are apart, or one holds the other; what holds others comes before them."""
    tracks = defaultdict(list)
    for event in by_phase(events, "X"):
        start = ns(event["ts"])
        open_ends = tracks[event["pid"], event["tid"]]
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        end = start + ns(event["dur"])
        assert not open_ends or end <= open_ends[-1], f"{event} overlaps what is open until {open_ends[-1]}"
        open_ends.append(end)


def _assert_paired(events):
    """Each async event ends, with its own name and id, not before it begins."""
    begun = defaultdict(list)
    for event in by_phase(events, "b", "e"):
        key = event["cat"], event["id"], event["name"]
        if event["ph"] == "b":
            begun[key].append(event["ts"])
        else:
            assert begun[key], f"{event} has not begun"
            assert begun[key].pop() <= event["ts"]
    assert not any(begun.values()), "some never end"


def slices(trace, pid, names=None):
    """(tid, name, start_ns, end_ns) of a process, in order of time."""
    return [
        (event["tid"], event["name"], ns(event["ts"]), ns(event["ts"]) + ns(event["dur"]))
        for event in by_phase(trace["traceEvents"], "X")
        if event["pid"] == pid and (names is None or event["name"] in names)
    ]


def counter(trace, name, series):
    """A function of the time in ns: the value of a counter that holds from then on."""
    found = [
        (ns(event["ts"]), event["args"][series])
        for event in by_phase(trace["traceEvents"], "C")
        if event["name"] == name
    ]
    assert found, f"no counter {name}"
    times = [time for time, _ in found]
    assert times == sorted(set(times)), "two values at one time"

    def at(time_ns):
        return next((value for time, value in reversed(found) if time <= time_ns), 0)

    return at
