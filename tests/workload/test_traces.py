"""Recorded traces: published formats, stretches of time, windows, and what every complaint says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError, WorkloadError
from llmsched_env.workload import SPLITS, CsvWorkload, TraceWorkload, Workload, from_csv, workload
from llmsched_env.workload.csv_table import read_table
from llmsched_env.workload.trace_csv import read_carefully, read_fast
from llmsched_env.workload.trace_formats import COLUMNS, detect_format, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "data"
NO_RESET = settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck])

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_8 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
PLAIN = "arrival_s,prompt_tokens,output_tokens\n"


def write(folder: Path, text: str | bytes, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(*rows: tuple[object, object, object]) -> str:
    keys = COLUMNS["mooncake"]
    return "".join(json.dumps({**dict(zip(keys, row, strict=True)), "hash_ids": [0, 1]}) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "kind", "times"),
    [
        (AZURE + "2023-11-16 23:59:59.9799600,3,5\n2023-11-17 00:00:00.0000001,4,7\n", "azure", 20_040_100),
        (AZURE + "2024-05-12 00:00:00+00:00,3,5\n2024-05-12 00:00:00.020040+00:00,4,7\n", "azure", 20_040_000),
        (AZURE + "2024-05-12 00:00:00Z,3,5\n2024-05-12T02:00:01+02:00,4,7\n", "azure", 10**9),
        (AZURE + "2024-02-28 20:00:00-0400,3,5\n2024-02-29 00:00:00.5,4,7\n", "azure", 5 * 10**8),
        (BURST + "5,ChatGPT,3,5,8,Conversation log\n45,GPT-4,4,7,11,API log\n", "burstgpt", 40 * 10**9),
        (BURST_8 + "19440110.0,a-b,43,GPT-4,3,5,8,x\n19440110.5,c,2,ChatGPT,4,7,11,x\n", "burstgpt", 5 * 10**8),
        (jsonl((27482, 3, 5), (30535, 4, 7)), "mooncake", 3_053_000_000),
        ("\ufeff\n" + jsonl((0, 3, 5)) + "\n\r\n" + jsonl((250.25, 4, 7.0)).strip(), "mooncake", 250_250_000),
        (PLAIN + "2.5,3,5\n2.75,4,7\n", "csv", 25 * 10**7),
        ("GeneratedTokens,ContextTokens,TIMESTAMP\n5,3,2023-01-01 00:00:00\n7,4,2023-01-01 00:00:01\n", "azure", 10**9),
    ],
    ids=["Azure 2023", "Azure 2024", "zones", "leap day", "BurstGPT", "BurstGPT v2", "Mooncake", "fractions", "plain",
         "order"],
)  # fmt: skip
def test_published_formats(tmp_path, text, kind, times):
    path = write(tmp_path, text)
    assert detect_format(path) == kind
    trace = read_trace(path, kind, skip_failed=False)
    assert trace.release_ns.tolist() == [0, times]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3, 4], [5, 7])
    assert (trace.predicted_tokens, trace.skipped) == (None, 0)


def test_failures_of_burstgpt_are_left_out_and_counted(tmp_path):
    path = write(tmp_path, BURST + "5,a,3,5,8,x\n6,a,9,0,9,x\n7,a,0,0,0,x\n9,a,4,7,11,x\n")
    item = TraceWorkload(path, num_requests=1)
    assert item.skipped == 2
    assert read_trace(path, "burstgpt", skip_failed=True).release_ns.tolist() == [0, 4 * 10**9]
    with pytest.raises(FileFormatError, match=r"line 3, column 'Response tokens': 0 output tokens: remove the row, or"):
        _ = TraceWorkload(path, skip_failed=False).skipped
    for text, name in ((AZURE + "2023-01-01 00:00:00,3,5\n2023-01-01 00:00:01,3,0\n", "a.csv"),
                       (jsonl((0, 3, 5), (1000, 3, 0)), "m.jsonl")):  # fmt: skip
        other = write(tmp_path, text, name)
        with pytest.raises(FileFormatError, match="0 output tokens"):
            _ = TraceWorkload(other).skipped
        assert TraceWorkload(other, skip_failed=True).skipped == 1
    nothing = write(tmp_path, BURST + "5,a,3,0,3,x\n", "none.csv")
    with pytest.raises(WorkloadError, match="has 1 rows and none of them has output tokens"):
        _ = TraceWorkload(nothing).skipped


DAY = "2023-11-16 18:17:0"


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, None, "is empty: start it with a header"),
        ("\n\n", 1, None, "is empty"),
        ("a,b,c\n1,2,3\n", 1, None, "begins with 'a,b,c', which is no known format. It has no column or key of"),
        ("3,5\n", 1, None, "start it with a header, arrival_s,prompt_tokens,output_tokens, or see docs/workloads.md"),
        (AZURE, 1, None, "has a header but no rows"),
        ("TIMESTAMP,ContextTokens\nx,1\n", 1, "GeneratedTokens", "is missing: the header has 'TIMESTAMP', 'Context"),
        ("TIMESTAMP,ContextTokens,Generated\n", 1, "GeneratedTokens", "but there is 'Generated'. Did you mean that?"),
        ("TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n", 1, "ContextTokens", "more than once"),
        (AZURE + f"{DAY}3,3\n", 2, None, "has 2 cells but the header names 3 columns"),
        (AZURE + f"{DAY}3.5,3,5\n{DAY}3.25,4,7\n", 3, "TIMESTAMP", f"{DAY}3.25 is earlier than the row before: sort"),
        (AZURE + f"{DAY}3,3,-5\n", 2, "GeneratedTokens", "'-5' is out of range: write a whole number in [0, 16777216]"),
        (AZURE + f"{DAY}3,3,0\n", 2, "GeneratedTokens", "0 output tokens: remove the row"),
        (AZURE + f"{DAY}3,0,5\n", 2, "ContextTokens", "'0' is out of range: write a whole number in [1, 16777216]"),
        (AZURE + f"{DAY}3,nan,5\n", 2, "ContextTokens", "'nan' is not a finite number"),
        (AZURE + f"{DAY}3,,5\n", 2, "ContextTokens", "is blank"),
        (AZURE + f"3,{DAY}3,5\n", 2, "TIMESTAMP", "'3' is not a time: write a time such as 2023-11-16 18:17"),
        (AZURE + "nan,3,5\n", 2, "TIMESTAMP", "'nan' is not a time"),
        (AZURE + "NaT,3,5\n", 2, "TIMESTAMP", "'NaT' is not a time"),
        (AZURE + "2023-11-31 00:00:00,3,5\n", 2, "TIMESTAMP", "is not in the calendar (day is out of range for month)"),
        (AZURE + "2023-11-30 25:00:00,3,5\n", 2, "TIMESTAMP", "is not in the calendar"),
        (BURST + "7,a,3,5,8,x\n6,a,4,7,11,x\n", 3, "Timestamp", "6 is earlier than the row before"),
        (BURST + "7,a,3,five,8,x\n", 2, "Response tokens", "'five' is not a finite number"),
        (BURST + "x,a,3,5,8,x\n", 2, "Timestamp", "'x' is not a finite number: write seconds of any clock"),
        (BURST + "7,a,0,5,8,x\n", 2, "Request tokens", "'0' is out of range: write a whole number in [1, 16777216]"),
        (BURST.replace("Response tokens,", "") + "7,a,3,5,x\n", 1, "Response tokens", "is missing"),
        ("prompt_tokens,output_tokens\n3,5\n", 1, "arrival_s", "is missing: the header has"),
        (PLAIN + "3,5,nan\n", 2, "output_tokens", "'nan' is not a finite number"),
        (jsonl((5, 3, 5)) + "{'timestamp': 6}\n", 2, None, "is not JSON ("),
        ('{"timestamp": 1,\n"input_length": 3, "output_length": 5}\n', 1, None, "write one object a line"),
        (jsonl((5, 3, 5)) + "[5, 3, 5]\n", 2, None, 'is not a JSON object: write {"timestamp": 27482'),
        ('{"timestamp": 1, "input_length": 3}\n', 1, "output_length", "is missing: the object has 'timestamp'"),
        ("{}\n", 1, "timestamp", "is missing: the object has no keys"),
        (jsonl((5, 3, 5), (4, 3, 5)), 2, "timestamp", "4 is earlier than the row before: sort by time"),
        (jsonl((-1, 3, 5)), 1, "timestamp", "-1 is out of range: write milliseconds or seconds from 0"),
        (jsonl((float("nan"), 3, 5)), 1, "timestamp", "NaN is not a finite number"),
        (jsonl((5, 3, float("inf"))), 1, "output_length", "Infinity is not a finite number"),
        (jsonl((5, "3", 5)), 1, "input_length", "'3' is not a finite number: write a whole number of tokens"),
        (jsonl((5, True, 5)), 1, "input_length", "True is not a finite number"),
        (jsonl((5, 3.5, 5)), 1, "input_length", "3.5 is not whole"),
        (jsonl((5, 0, 5)), 1, "input_length", "0 is out of range: write a whole number of tokens, in [1, 16777216]"),
        (jsonl((5, 3, 0)), 1, "output_length", "0 output tokens"),
        (jsonl((5, 3, -2)), 1, "output_length", "-2 is out of range"),
        ('{"input_length": 1e999999999999999999999}\n', 1, None, "is not JSON"),
        ("{" * 100_000 + "\n", 1, None, "is not JSON"),
        (AZURE.encode() + b"\xff\n", 2, None, "byte 0xff is not UTF-8"),
        (b'{"input_length": "\xff"}\n', 1, None, "byte 0xff is not UTF-8: save the file as JSONL UTF-8"),
    ],
)  # fmt: skip
def test_errors_name_line_column_and_remedy(tmp_path, text, line, column, words):
    path = write(tmp_path, text)
    with pytest.raises(FileFormatError) as caught:
        _ = TraceWorkload(path).skipped
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(path))
    assert (caught.value.line, caught.value.column) == (line, column)
    assert len(message) < 500 + len(str(path))


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4 * 10**18), st.integers(1, 2**24), st.integers(0, 5)), min_size=1, max_size=20
    ),
    zone=st.sampled_from(["", "+00:00", "Z", "-00:00"]),
    chunk_rows=st.integers(1, 8),
)
@NO_RESET
def test_dates_by_the_fast_and_by_the_careful_pass(tmp_path, rows, zone, chunk_rows):
    rows = sorted(rows)
    lines = []
    for time, prompt, output in rows:
        date, fraction = str(np.datetime64(time, "ns")).split(".")
        lines.append(f"{date.replace('T', ' ')}.{fraction}{zone},{prompt},{output}\n")
    table = read_table(write(tmp_path, AZURE + "".join(lines)), required=COLUMNS["azure"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_csv, "CHUNK_ROWS", chunk_rows)
        fast = read_fast(table, "azure", skip_failed=True)
    careful = read_carefully(table, "azure", skip_failed=True)
    assert (fast is not None) == (zone != "-00:00"), "the fast pass was not tested"
    for i in range(3):
        assert careful[i].tolist() == [row[i] for row in rows]
        assert fast is None or fast[i].tolist() == careful[i].tolist()


CELLS = st.one_of(
    st.sampled_from(
        ["1", "0", "-1", "2.0", "nan", "inf", "1_0", "", "1e3", "x", DAY + "3", DAY + "1.5", "2023", "NaT"]
    ),
    st.text(alphabet="0123456789.:-+T Z", max_size=25),
)


@pytest.mark.parametrize("kind", ["azure", "burstgpt"])
@given(cells=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), skip=st.booleans())
@NO_RESET
def test_fast_pass_never_accepts_what_the_careful_one_refuses(tmp_path, kind, cells, skip):
    names = COLUMNS[kind]
    text = ",".join(names) + "\n" + "".join(",".join(row) + "\n" for row in cells)
    table = read_table(write(tmp_path, text), required=names)
    fast = read_fast(table, kind, skip)
    try:
        careful = read_carefully(table, kind, skip)
    except FileFormatError:
        assert fast is None
    else:
        assert fast is None or all(a.tolist() == b.tolist() for a, b in zip(fast, careful, strict=True))


def recording(folder: Path, seconds: list[int], name: str = "trace.csv") -> Path:
    """A plain trace half a second past the given ones; prompts number the rows from 1, outputs are twice that."""
    rows = "".join(f"{s}.5,{i},{2 * i}\n" for i, s in enumerate(seconds, start=1))
    return write(folder, PLAIN + rows, name)


def test_windows_on_paper(tmp_path):
    # Span 100 s from 10: cuts at 70 and 90 s. Rows 1-6, 7-9 (one at the cut itself), 10-11.
    seconds = [10, 20, 30, 40, 50, 60, 70, 75, 89, 90, 110]
    item = TraceWorkload(recording(tmp_path, seconds), num_requests=2)
    assert [item.stretch(split) for split in SPLITS] == [(0, 6), (6, 9), (9, 11)]
    assert [item.pool_size(split) for split in SPLITS] == [3, 1, 1]
    case = item.requests("train", 1)
    assert case.prompt_tokens.tolist() == [3, 4]
    assert case.release_ns.tolist() == [0, 10 * 10**9]
    assert item.requests("validation", 0).prompt_tokens.tolist() == [7, 8]
    assert item.requests("test", 0).release_ns.tolist() == [0, 20 * 10**9]
    # Train outputs 2, 4, ..., 12: mean 7, in every split.
    assert {item.requests(split, 0).mean_output_tokens for split in SPLITS} == {7.0}
    assert item.requests("train", 0, num_requests=6).prompt_tokens.tolist() == [1, 2, 3, 4, 5, 6]


@given(
    gaps=st.lists(st.integers(0, 50), min_size=10, max_size=120).filter(lambda gaps: any(gaps[1:])),
    size=st.integers(1, 5),
    number=st.integers(1000, 2**40),
)
@NO_RESET
def test_splits_are_disjoint_in_time_and_windows_of_a_pool_in_requests(tmp_path, gaps, size, number):
    seconds = np.cumsum(gaps).tolist()
    item = TraceWorkload(recording(tmp_path, seconds, f"{hash((tuple(gaps), size))}.csv"), num_requests=size)
    ends = [item.stretch(split) for split in SPLITS]
    assert [first for first, _ in ends] == [0, *[end for _, end in ends[:-1]]]
    assert ends[-1][1] == len(seconds)
    for split, (first, end) in zip(SPLITS, ends, strict=True):
        if end - first < size:
            with pytest.raises(WorkloadError, match=rf"its {split} stretch .* has {end - first} requests"):
                item.requests(split, 0)
            continue
        pool = item.pool_size(split)
        assert pool == (end - first) // size
        seen: set[int] = set()
        for k in (*range(pool), pool, number):
            case = item.requests(split, k)
            rows = case.prompt_tokens.tolist()
            assert rows == list(range(rows[0], rows[0] + size)), "a window has a gap"
            assert first < rows[0]
            assert rows[-1] <= end
            assert case.release_ns[0] == 0
            if k < pool:
                assert seen.isdisjoint(rows)
                seen.update(rows)
            assert item.requests(split, k).digest() == case.digest()


def test_too_short_for_a_split(tmp_path):
    item = TraceWorkload(recording(tmp_path, [0, 1, 2, 3, 10]))
    words = r"trace\.csv is too short: its test stretch \(80 to 100 % of the time\) has 1 requests and a case takes"
    with pytest.raises(WorkloadError, match=words):
        item.requests("test", 0)
    # A smaller window may fit where the natural one does not.
    assert item.pool_size("test") == 1
    assert len(item.requests("test", 0, num_requests=1)) == 1
    with pytest.raises(WorkloadError, match=r"validation stretch .* has 0 requests"):
        item.requests("validation", 0, num_requests=1)
    together = TraceWorkload(recording(tmp_path, [5, 5, 5], "same.csv"), num_requests=1)
    with pytest.raises(WorkloadError, match="has 3 requests at one time, and splits are stretches of time"):
        together.requests("train", 0)


def test_predictions_travel(tmp_path):
    path = write(tmp_path, PLAIN.replace("\n", ",predicted_tokens\n") + "0,1,2,3\n1,4,5,6\n9,7,8,9\n")
    case = TraceWorkload(path, num_requests=1).requests("train", 1)
    assert case.predicted_tokens is not None
    assert case.predicted_tokens.tolist() == [6]


def test_contract(tmp_path):
    path = recording(tmp_path, list(range(100)))
    item = TraceWorkload(path, num_requests=5)
    assert isinstance(item, Workload)
    assert item.name == "trace"
    assert pickle.loads(pickle.dumps(item)) == item
    assert hash(item) == hash(TraceWorkload(str(path), num_requests=5))
    before = item.version
    recording(tmp_path, list(range(50)))
    assert item.version != before
    assert item.stretch("test")[1] == 50
    with pytest.raises(UnknownNameError, match="unknown split 'all'"):
        item.pool_size("all")
    for build, words in (
        (lambda: TraceWorkload(3), "path = 3 is not a path"),
        (lambda: TraceWorkload(path, "azur"), "unknown trace format 'azur'. Did you mean 'azure'"),
        (lambda: TraceWorkload(path, num_requests=0), "num_requests = 0 is out of range"),
        (lambda: TraceWorkload(path, skip_failed="yes"), "skip_failed = 'yes' is not True, False or None"),
        (lambda: TraceWorkload(tmp_path / "none.csv").skipped, "cannot read"),
        (lambda: detect_format(tmp_path), "Give the path of a readable trace file"),
    ):
        with pytest.raises((ConfigError, UnknownNameError, PathError)) as caught:
            build()
        assert words in str(caught.value)


def test_lookup(tmp_path):
    azure = write(tmp_path, AZURE + "2023-01-01 00:00:00,3,5\n", "azure.csv")
    plain = write(tmp_path, PLAIN + "0,3,5\n", "plain.csv")
    bad = write(tmp_path, "a,b\n", "bad.csv")
    moon = write(tmp_path, jsonl((0, 3, 5)), "moon.jsonl")
    assert workload(str(azure)) == workload(azure) == TraceWorkload(azure)
    assert workload(f"azure:{azure}") == TraceWorkload(azure, "azure")
    assert workload(f"burstgpt:{azure}").format == "burstgpt"
    assert workload(f"trace:{plain}") == TraceWorkload(plain)
    assert workload(str(plain)) == workload(plain) == CsvWorkload(plain)
    assert workload(bad) == CsvWorkload(bad)
    assert workload(str(moon)) == workload(f"trace:{moon}") == TraceWorkload(moon)
    assert workload(f"mooncake:{moon}") == TraceWorkload(moon, "mooncake")
    for wrong in ("azure:", "azur:x", "trace"):
        with pytest.raises(UnknownNameError, match=r"unknown workload .*azure:PATH"):
            workload(wrong)


@pytest.mark.parametrize("name", ["azure_2023_conv", "azure_2023_code", "mooncake_conversation"])
def test_recorded_traces(name):
    path = SHARED / f"{name}.csv"
    if not path.is_file():
        pytest.skip("the recorded traces are not part of the repository")
    item = TraceWorkload(path, num_requests=700)
    sizes = [end - first for first, end in map(item.stretch, SPLITS)]
    assert sum(sizes) == len(path.read_text(encoding="utf-8").splitlines()) - 1
    assert min(sizes) >= 700
    for split in SPLITS:
        assert item.pool_size(split) >= 1
        case = item.requests(split, 0)
        assert case.at_rate(5.0).rate_per_s == pytest.approx(5.0)
    whole = from_csv.read_requests_csv(path)
    first, end = item.stretch("train")
    assert (first, item.requests("test", 0).mean_output_tokens) == (0, round(whole.output_tokens[:end].mean(), 6))
