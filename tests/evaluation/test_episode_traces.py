"""Traces: instances on paper, laws over every mechanism, and what the files say against the recording."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
from itertools import pairwise

import numpy as np
import pytest
from combinations import combined_actions, combined_case
from patient import SMALL, Patient
from strategies import DECODE, PREFILL, Case
from trace_format import assert_well_formed, by_phase, counter, slices

from llmsched_env.baselines import make_policy
from llmsched_env.config import KVCache, Scenario
from llmsched_env.engine.codes import READ
from llmsched_env.errors import ConfigError, MissingExtraError, PathError
from llmsched_env.evaluation import (
    final_metrics,
    phases,
    play,
    request_metrics,
    request_table,
    serving_metrics,
    trace_episode,
    trace_events,
    write_table,
    write_trace,
)
from llmsched_env.evaluation.decisions import Trace, TracedSimulator
from llmsched_env.evaluation.phases import PHASES, preemptions
from llmsched_env.evaluation.trace_events import ACCELERATOR, CLIENTS, QUEUE
from llmsched_env.simulator import Simulator

SEEDS = range(250)
CODES = {name: number for number, name in enumerate(PHASES)}


def played(case, actions, kind=Simulator):
    simulator = kind(case.problem(), record=True) if kind is Simulator else kind(case.problem())
    for action in actions:
        simulator.step(action)
    return simulator


def rows(simulator):
    """[(request, client, phase, start, end)]."""
    return [(r, c, PHASES[p], start, end) for r, c, p, start, end in phases(simulator).tolist()]


def trace_of(simulator):
    trace = Trace("by hand", None, simulator, {"iteration": np.zeros(0, np.int64)})
    return {"displayTimeUnit": "ms", "traceEvents": trace_events(trace)}


# Prefill 100 + 10 a token, decode 50 + 1 a client.


def test_three_requests_on_paper():
    # P of 0 (0-110), D (110-161), P of 1 (161-271, its only token), D (271-322, request 0 ends), nothing until 1000,
    # P of 2 (1000-1110), D (1110-1161, request 2 ends). Request 1 came at 50.
    case = Case((1, 1, 1), (3, 1, 2), 2, releases_ns=(0, 50, 1000))
    simulator = played(case, [PREFILL, DECODE, PREFILL, DECODE, PREFILL, DECODE], TracedSimulator)
    assert rows(simulator) == [
        (0, 0, "prefill", 0, 110),
        (0, 0, "decode", 110, 322),
        (1, -1, "waiting", 50, 161),
        (1, 1, "prefill", 161, 271),
        (2, 0, "prefill", 1000, 1110),
        (2, 0, "decode", 1110, 1161),
    ]
    trace = trace_of(simulator)
    assert_well_formed(trace)
    assert [(name, start, end) for _, name, start, end in slices(trace, ACCELERATOR)] == [
        ("prefill", 0, 110),
        ("decode", 110, 161),
        ("prefill", 161, 271),
        ("decode", 271, 322),
        ("prefill", 1000, 1110),
        ("decode", 1110, 1161),
    ]
    assert slices(trace, CLIENTS) == [
        ("client 0", "request 0", 0, 322),
        ("client 0", "prefill", 0, 110),
        ("client 0", "decode", 110, 322),
        ("client 1", "request 1", 161, 271),
        ("client 1", "prefill", 161, 271),
        ("client 0", "request 2", 1000, 1161),
        ("client 0", "prefill", 1000, 1110),
        ("client 0", "decode", 1110, 1161),
    ]
    queue, batch = counter(trace, "queue", "waiting"), counter(trace, "batch", "requests")
    assert [queue(time) for time in (0, 49, 50, 160, 161)] == [0, 0, 1, 1, 0]
    assert [batch(time) for time in (0, 161, 321, 322, 999, 1000, 1161)] == [1, 1, 1, 0, 0, 1, 0]
    # Request 0 holds 1 + 1 tokens after its prefill, then one more each decode; 1 is complete with its first.
    held = counter(trace, "KV", "tokens")
    assert [held(time) for time in (0, 110, 161, 271, 322, 1110, 1161)] == [0, 2, 3, 3, 0, 2, 0]


def test_one_that_gives_way_on_paper():
    # Prompts 2, 2, outputs 3, 3, 8 tokens of cache. P of both: 100 + 40 (0-140). D of both (140-192): each holds 4. One
    # more would take 2: 10 > 8, so request 1 gives way. D (192-243): request 0 ends. Request 1 has 2 + 2 tokens: P
    # 100 + 40 (243-383) gives it its last one, so it never decodes again.
    case = Case((2, 2), (3, 3), 2, kv_cache=KVCache(8))
    simulator = played(case, [PREFILL, DECODE, DECODE, PREFILL], TracedSimulator)
    assert simulator.done
    assert simulator.totals.preemptions == 1
    assert rows(simulator) == [
        (0, 0, "prefill", 0, 140),
        (0, 0, "decode", 140, 243),
        (1, 1, "prefill", 0, 140),
        (1, 1, "decode", 140, 192),
        (1, -1, "preempted", 192, 243),
        (1, 0, "resume", 243, 383),
    ]
    assert preemptions(simulator).tolist() == [0, 1]
    trace = trace_of(simulator)
    assert_well_formed(trace)
    gone = [(event["ph"], event["id2"]["local"], event["ts"]) for event in by_phase(trace["traceEvents"], "b", "e")]
    assert gone == [("b", "1", 0.192), ("e", "1", 0.243)]
    assert [name for _, name, _, _ in slices(trace, CLIENTS)].count("request 1") == 2


def stepped(seed):
    """An episode of any mechanisms, with the view before each iteration."""
    case = combined_case(seed)
    simulator = TracedSimulator(case.problem())
    actions, step, views = combined_actions(seed), 0, []
    while not simulator.done:
        views.append(simulator.view.copy())
        action = case.number(*actions[step % len(actions)])
        simulator.step(action)
        step += 1
    return case, simulator, views


@pytest.fixture(scope="module")
def episodes():
    return [stepped(seed) for seed in SEEDS]


def test_traces_keep_to_the_format_and_slices_add_up_to_the_makespan(episodes):
    idle = 0
    for _, simulator, _ in episodes:
        trace = json.loads(json.dumps(trace_of(simulator), allow_nan=False))
        assert_well_formed(trace)
        iterations = slices(trace, ACCELERATOR)
        busy_ns = sum(end - start for _, _, start, end in iterations)
        assert busy_ns + simulator.totals.jump_ns == simulator.view.clock_ns
        assert all(one[3] <= other[2] for one, other in pairwise(iterations))
        idle += simulator.totals.jump_ns > 0
        log = simulator.log
        assert [name for _, name, _, _ in iterations] == [
            "mixed" if mixed else "prefill" if prefill else "decode"
            for prefill, mixed in zip(log["prefill"], log["mixed"], strict=True)
        ]
        around = [one for one in slices(trace, CLIENTS) if one[1].startswith("request")]
        inside = [one for one in slices(trace, CLIENTS) if not one[1].startswith("request")]
        assert sum(end - start for *_, start, end in around) == sum(end - start for *_, start, end in inside)
        waits = by_phase(trace["traceEvents"], "b", "e")
        assert {event["pid"] for event in waits} <= {QUEUE}
    assert idle > 10, "no time with nothing to do"


def test_counters_equal_the_view_and_the_log(episodes):
    queued = full = 0
    for case, simulator, views in episodes:
        trace, log = trace_of(simulator), simulator.log
        batch, held = counter(trace, "batch", "requests"), counter(trace, "KV", "tokens")
        waiting, preempted = (counter(trace, "queue", name) for name in ("waiting", "preempted"))
        found = phases(simulator)
        reads = found[np.isin(found["phase"], [CODES["prefill"], CODES["lost prefill"]])]
        first_ns = reads["start_ns"][reads["start_ns"] <= simulator.served["prefill_start_ns"][reads["request"]]]
        waits = found[found["phase"] == CODES["waiting"]]
        back = waits[waits["start_ns"] > simulator.problem.release_ns[waits["request"]]]  # what was read is lost
        if case.kv_cache and case.kv_cache.rule == "keep_growth":  # there it is so before the next iteration
            back = back[:0]
        for view, entry in zip(views, log, strict=True):
            assert batch(entry["start_ns"]) == entry["clients"]
            taken = np.count_nonzero(first_ns == entry["start_ns"])
            returned = np.count_nonzero(back["start_ns"] == entry["start_ns"])
            assert waiting(entry["start_ns"]) == view.waiting - taken + returned
            queued += view.waiting > 0
            kv = view.kv_used if case.kv_cache else view.context_tokens
            assert held(entry["start_ns"]) == kv
            full += kv > 0
        assert preempted(simulator.view.clock_ns) == waiting(simulator.view.clock_ns) == 0
        gave_way = found[found["phase"] == CODES["preempted"]]
        for start_ns in gave_way["start_ns"]:
            assert preempted(start_ns) > 0
    assert min(queued, full) > 500


def test_a_request_is_prefilled_once_and_resumed_after_each_preemption(episodes):
    """A request that has given way does not wait in the queue again, and its next prefill is a resume."""
    resumed_in_parts = 0
    for _, simulator, _ in episodes:
        if not simulator.problem.data.shared:
            continue  # moves
        found = phases(simulator)
        for request in range(simulator.problem.num_requests):
            course = [PHASES[phase] for phase in found["phase"][found["request"] == request]]
            if "preempted" not in course:
                continue
            before, after = course[: course.index("preempted")], course[course.index("preempted") :]
            assert course.count("prefill") == before.count("prefill") == 1
            assert set(after) <= {"preempted", "resume", "lost prefill", "decode"}
        read = simulator.events[simulator.events["event"] == READ]["request"]
        resumed_in_parts += np.isin(np.flatnonzero(np.bincount(read, minlength=1) > 1), found["request"]).sum()
    assert resumed_in_parts > 3, "no request came back in a chunked prefill"


SERVING = Scenario(
    workload="serving", split="test", num_requests=150, num_clients=8, queue="shared", load=0.9, ttft_s=1.0, tpot_s=0.1
)


@pytest.fixture(scope="module")
def served():
    return play(make_policy("prefill_first"), SERVING, 3, record=True)


def test_the_table_of_requests_is_that_of_request_metrics(served):
    table, slo = request_table(served), SERVING.slo(150)
    for name, column in request_metrics(served).items():
        np.testing.assert_array_equal(table[name], column)
    np.testing.assert_allclose(table["first_token_s"] - table["arrival_s"], table["ttft_s"], rtol=1e-9)
    np.testing.assert_allclose(table["end_s"] - table["arrival_s"], table["latency_s"], rtol=1e-9)
    counted = table["counted"] == 1
    assert counted.sum() == slo.last - slo.first
    goodput = table["slo_met"][counted].mean()
    assert goodput == pytest.approx(final_metrics(served)["goodput"])
    assert goodput == serving_metrics(served, ttft_s=1.0, tpot_s=0.1, first=slo.first, last=slo.last)["goodput"]
    assert 0.02 < goodput < 0.98, "all alike"
    requests = SERVING.source.requests("test", 3)
    assert (table["prompt_tokens"].tolist(), table["output_tokens"].tolist()) == (
        requests.prompt_tokens[:150].tolist(),
        requests.output_tokens[:150].tolist(),
    )


def test_a_csv_file_gives_the_same_numbers_again(served, tmp_path):
    table = request_table(served)
    path = write_table(table, tmp_path / "requests.csv")
    with path.open(newline="") as file:
        read = [*csv.DictReader(file)]
    assert [*read[0]] == [*table]
    for name, column in table.items():
        assert [float(row[name] or "nan") for row in read] == pytest.approx(column.tolist(), rel=0, nan_ok=True)
    single = table["output_tokens"] == 1
    assert [row["tpot_s"] == "" for row in read] == single.tolist()


def test_a_parquet_file_does_too(served, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install -e '.[parquet]'")
    table = request_table(served)
    read = parquet.read_table(write_table(table, tmp_path / "requests.parquet"))
    assert read.column_names == [*table]
    for name, column in table.items():
        found = read.column(name).to_pylist()
        expected = [None if value != value else value for value in column.tolist()]  # noqa: PLR0124  # NaN
        assert found == expected


def test_without_pyarrow_a_parquet_file_says_what_to_install(monkeypatch, tmp_path):
    real = importlib.import_module

    def without(name, package=None):
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"Writing a Parquet file needs pyarrow.*llmsched-env\[parquet\]"):
        write_table({"a": np.arange(2)}, tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_a_plain_recording_has_all_but_the_cache(served):
    events = trace_events(served)
    assert_well_formed({"displayTimeUnit": "ms", "traceEvents": events})
    assert {event["name"] for event in by_phase(events, "C")} == {"queue", "batch"}


def test_gzipped_or_not_it_is_the_same_file_each_time(tmp_path):
    traces = [trace_episode(Patient(), SMALL, 0) for _ in range(2)]
    plain = [write_trace(trace, tmp_path / f"{i}.json", policy="patient") for i, trace in enumerate(traces)]
    packed = [write_trace(trace, tmp_path / f"{i}.json.gz", policy="patient") for i, trace in enumerate(traces)]
    assert plain[0].read_bytes() == plain[1].read_bytes() == gzip.decompress(packed[0].read_bytes())
    assert packed[0].read_bytes() == packed[1].read_bytes()
    read = json.loads(plain[0].read_text())
    assert read["otherData"] == {"policy": "patient"}
    assert_well_formed(read)


def test_what_cannot_be_written_is_said(tmp_path):
    trace = trace_episode(Patient(), SMALL, 0)
    with pytest.raises(ConfigError, match=r"trace_out = '.*a.txt': a trace is JSON. End its name in .json or .json.gz"):
        write_trace(trace, tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"a table is CSV or Parquet. End its name in .csv or .parquet"):
        write_table(trace.table(), tmp_path / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match=r"cannot write"):
        write_trace(trace, tmp_path / "file" / "a.json")
    with pytest.raises(ConfigError, match=r"were recorded: make the simulator with record=True"):
        trace_events(play(Patient(), SMALL, 0))
    fork = Simulator(trace.simulator.problem)
    fork.step(PREFILL)
    with pytest.raises(ConfigError, match=r"record=True, not a fork"):
        phases(fork.fork(record=True))
