"""What the trace-event format asks of a file, and what is read back from one: written down apart from the writer."""

from __future__ import annotations

import math
from collections import defaultdict

NS = 1000  # in a microsecond

NEEDED = {
    "M": {"name", "pid", "tid", "args"},
    "B": {"name", "cat", "pid", "tid", "ts"},
    "E": {"name", "pid", "tid", "ts"},
    "C": {"name", "pid", "ts", "args"},
    "i": {"name", "pid", "tid", "ts", "s"},
    "b": {"name", "cat", "id2", "pid", "ts"},
    "e": {"name", "cat", "id2", "pid", "ts"},
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
    found = int(microseconds * NS)  # as Perfetto does
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
    assert {(event["pid"], event["tid"]) for event in by_phase(events, "B", "E", "i")} <= named, "without a name"
    threads = [thread for _, thread in named]
    assert len(threads) == len({*threads}), "Perfetto takes threads of one number for the same one"
    assert not {*threads} & {pid for pid, _ in named}, "Perfetto takes such a thread for the main one"


def by_phase(events, *phases):
    return [event for event in events if event["ph"] in phases]


def _assert_nested(events):
    """Each end is that of what began last on its thread and is open, and nothing stays open."""
    tracks = defaultdict(list)
    for event in by_phase(events, "B", "E"):
        began = tracks[event["pid"], event["tid"]]
        if event["ph"] == "B":
            began.append(event)
        else:
            assert began, f"{event} has not begun"
            assert began[-1]["name"] == event["name"], f"{event} ends {began[-1]}"
            assert began.pop()["ts"] < event["ts"], f"{event} has no duration"
    assert not any(tracks.values()), "some never end"


def _assert_paired(events):
    """Each async event ends, with its own name and id, not before it begins."""
    begun, names = defaultdict(list), defaultdict(set)
    for event in by_phase(events, "b", "e"):
        key = event["pid"], event["cat"], event["id2"]["local"], event["name"]
        names[key[:3]].add(event["name"])
        if event["ph"] == "b":
            begun[key].append(event["ts"])
        else:
            assert begun[key], f"{event} has not begun"
            assert begun[key].pop() <= event["ts"]
    assert not any(begun.values()), "some never end"
    assert all(len(found) == 1 for found in names.values()), "Perfetto shows them under the first one's name"


def slices(trace, pid):
    """(track, name, start_ns, end_ns) of a process, in order of their beginnings."""
    track = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    found, began = [], defaultdict(list)
    for event in by_phase(trace["traceEvents"], "B", "E"):
        if event["pid"] != pid:
            continue
        if event["ph"] == "B":
            began[event["tid"]].append(len(found))
            found.append((track[event["tid"]], event["name"], ns(event["ts"])))
        else:
            found[began[event["tid"]].pop()] += (ns(event["ts"]),)
    return found


def counter(trace, name, series):
    """A function of the time in ns: the value of a counter that holds from then on."""
    found = [
        (ns(event["ts"]), event["args"].get(series, 0))
        for event in by_phase(trace["traceEvents"], "C")
        if event["name"] == name
    ]
    assert found, f"no counter {name}"
    times = [time for time, _ in found]
    assert times == sorted(set(times)), "two values at one time"

    def at(time_ns):
        return next((value for time, value in reversed(found) if time <= time_ns), 0)

    return at
