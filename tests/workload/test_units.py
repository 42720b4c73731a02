"""Origins, units and names: what a file says of them, what is refused, and what is warned of."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import gymnasium
import pytest

from llmsched_env import cases
from llmsched_env.calibration import fit_cost_model
from llmsched_env.cases import build_problem
from llmsched_env.config import LARGEST, Scenario
from llmsched_env.errors import ConfigError, FileFormatError, UnknownNameError, WorkloadError
from llmsched_env.units import UnitWarning
from llmsched_env.workload import CsvWorkload, Requests, TraceWorkload, read_requests_csv, workload
from llmsched_env.workload.trace_formats import read_trace

HEAD = "arrival_s,prompt_tokens,output_tokens\n"


def write(folder: Path, text: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("start", ["0", "353399.7", "1700000000.25"], ids=["zero", "uptime", "since 1970"])
def test_times_count_from_the_first_row_in_every_reader(tmp_path, start):
    """A machine's clock is no idle time: two requests half a second apart, whatever the clock showed."""
    path = write(tmp_path, HEAD + f"{start},3,5\n{Decimal(start) + Decimal('0.5')},4,7\n")
    assert read_requests_csv(path).release_ns.tolist() == [0, 5 * 10**8]
    assert CsvWorkload(path).requests("train", 1).release_ns.tolist() == [0, 5 * 10**8]
    assert read_trace(path, "csv", skip_failed=False).release_ns.tolist() == [0, 5 * 10**8]
    keys = [{"timestamp": 1000 * float(start) + more, "input_length": 3, "output_length": 5} for more in (0, 500)]
    moon = write(tmp_path, "".join(json.dumps(row) + "\n" for row in keys), "moon.jsonl")
    assert read_trace(moon, "mooncake", skip_failed=False, unit="ms").release_ns.tolist() == [0, 5 * 10**8]


def test_a_machines_clock_makes_no_idle_episode(tmp_path):
    path = write(tmp_path, HEAD + "".join(f"{353399.7 + i / 10:.1f},30,50\n" for i in range(20)))
    env = gymnasium.make("LLMSched/GSM8K-v0", workload=str(path), num_clients=4, assignment="lpt")
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, info = env.step(1)
    assert info["makespan_s"] < 60
    assert info["utilization"] > 0.5
    env.close()


def test_two_clocks_in_one_file_are_refused(tmp_path):
    path = write(tmp_path, HEAD + "0,3,5\n1700000000,4,7\n")
    with pytest.raises(WorkloadError, match=r"there are 53\.9 years from the first request to the last: write"):
        read_requests_csv(path)


def qwen(seconds: list[float], **more: object) -> str:
    """Records of Qwen-Bailian's traces as their README has them; fields that are given as None are left out."""
    rows = []
    for i, time in enumerate(seconds):
        row = {"chat_id": i, "parent_chat_id": -1, "timestamp": time, "input_length": 521, "output_length": 132,
               "type": "text", "turn": 1, "hash_ids": list(range(33)), **more}  # fmt: skip
        rows.append(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
    return "".join(rows)


BARE = {"chat_id": None, "parent_chat_id": None, "type": None, "turn": None}
"""Records with Mooncake's keys alone; the prompt of 521 tokens still has Qwen-Bailian's 33 blocks of 16."""

BLOCKS = {**BARE, "hash_ids": [0, 1]}
"""The same prompt in Mooncake's blocks of 512."""

EVERY_1_5_S = [1.5 * i for i in range(101)]
MOONCAKE = [300 * i for i in range(101)]


def span_s(path: Path | str, **more: str) -> float:
    source = workload(path) if isinstance(path, str) else TraceWorkload(path, **more)
    return int(source.trace().release_ns[-1]) / 1e9


def test_qwen_bailians_timestamps_are_seconds(tmp_path):
    path = write(tmp_path, qwen(EVERY_1_5_S), "qwen.jsonl")
    assert span_s(path) == span_s(str(path)) == span_s(f"mooncake:{path}") == span_s(f"trace:{path}") == 150
    assert workload(str(path)).requests("train", 0, num_requests=60).rate_per_s == pytest.approx(1 / 1.5)
    assert span_s(path, unit="ms") == 0.15  # what the user says holds


def test_mooncakes_timestamps_are_milliseconds(tmp_path):
    path = write(tmp_path, qwen(MOONCAKE, **BARE), "moon.jsonl")
    assert span_s(path) == 30, "3.3 requests a second; as seconds, 0.003"
    assert span_s(f"mooncake:{path}?unit=s") == 30_000
    fractions = write(tmp_path, qwen([time + 0.5 for time in MOONCAKE], **BARE), "fractions.jsonl")
    assert span_s(fractions) == 30
    for gap in (2, 20, 20.5):  # rates that do not tell; the blocks do
        fast = write(tmp_path, qwen([gap * i for i in range(101)], **BLOCKS), "fast.jsonl")
        assert span_s(fast) == gap / 10


def test_the_published_beginnings_of_mooncakes_traces_are_read_without_a_question(tmp_path):
    """The lengths and times of the first records (FAST '25 release), their hashes counted."""
    for records in (((0, 6758, 14), (0, 2290, 5), (3000, 6324, 13), (3000, 915, 2), (5999, 1053, 3)),
                    ((0, 40160, 79), (40, 23769, 47), (277, 32140, 63), (529, 28, 1), (1514, 18053, 36))):  # fmt: skip
        rows = (
            {"timestamp": time, "input_length": prompt, "output_length": 5, "hash_ids": list(range(blocks))}
            for time, prompt, blocks in records
        )
        path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "moon.jsonl")
        assert span_s(str(path)) == records[-1][0] / 1000


@pytest.mark.parametrize(
    ("times", "as_ms", "as_s"),
    [
        (EVERY_1_5_S, "666.7 requests a second over 0.15 s", "0.6667 a second over 150 s"),
        ([2 * i for i in range(101)], "500 requests a second over 0.2 s", "0.5 a second over 200 s"),
        ([20 * i for i in range(101)], "50 requests a second over 2 s", "0.05 a second over 2000 s"),
        ([99 * i for i in range(101)], "10.1 requests a second over 9.9 s", "0.0101 a second over 9900 s"),
        ([20.5 * i for i in range(101)], "48.78 requests a second over 2.05 s", "0.04878 a second over 2050 s"),
    ],
    ids=["seconds with fractions", "whole seconds", "both plausible", "slow, or fast", "fractions, slow or fast"],
)
def test_where_the_unit_cannot_be_told_both_readings_and_the_remedy_are_said(tmp_path, times, as_ms, as_s):
    path = write(tmp_path, qwen(times, **BARE), "bare.jsonl")
    for source in (str(path), f"mooncake:{path}", f"trace:{path}"):
        with pytest.raises(FileFormatError) as caught:
            workload(source).requests("train", 0)
        for words in (as_ms, as_s, f"'mooncake:{path}?unit=ms'", "unit='s'"):
            assert words in str(caught.value)
    assert 1000 * span_s(f"mooncake:{path}?unit=ms") == span_s(f"trace:{path}?unit=s") == times[-1]


def test_seconds_are_exact_to_the_nanosecond(tmp_path):
    path = write(tmp_path, qwen([0, 61.114000001]), "exact.jsonl")
    assert read_trace(path, "mooncake", skip_failed=False).release_ns.tolist() == [0, 61_114_000_001]


def test_a_unit_is_one_of_two_and_only_where_two_are_in_use(tmp_path):
    path = write(tmp_path, HEAD + "0,3,5\n1,4,7\n")
    with pytest.raises(UnknownNameError, match=r"unknown unit 'sec'\. .*Known: ms, s"):
        workload(f"trace:{path}?unit=sec")
    with pytest.raises(ConfigError, match=r"unit = 's' for .*mine\.csv, of format 'csv', whose times are in one unit"):
        _ = workload(f"trace:{path}?unit=s").skipped
    late = write(tmp_path, qwen([0, 5 * 10**9]), "late.jsonl")
    with pytest.raises(FileFormatError, match=r"5000000000 is out of range: write seconds, .* or say unit='ms'"):
        _ = TraceWorkload(late).skipped


@pytest.mark.parametrize("gap", [10, 50, 300])
def test_whole_arrivals_far_apart_are_doubted(tmp_path, gap):
    slow = "".join(f"{gap * i},3,5\n" for i in range(20))
    words = rf"a request every {gap} seconds .* If these are milliseconds, divide arrival_s by 1000\."
    with pytest.warns(UnitWarning, match=words):
        found = read_requests_csv(write(tmp_path, HEAD + slow))
    assert found.release_ns[-1] == 19 * gap * 10**9, "taken as it is written"


def test_arrivals_that_are_seconds_are_not_doubted(tmp_path):
    for text in ("".join(f"{99 * i}.25,3,5\n" for i in range(20)), "".join(f"{9 * i},3,5\n" for i in range(20)),
                 "".join(f"{300 * i},3,5\n" for i in range(9))):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_requests_csv(write(tmp_path, HEAD + text))


@pytest.mark.parametrize(
    ("header", "column", "words"),
    [
        ("timestamp,prompt_tokens,output_tokens", "timestamp", "Did you mean 'arrival_s'? Rename it to 'arrival_s'"),
        ("Timestamp,prompt_tokens,output_tokens", "Timestamp", "Did you mean 'arrival_s'?"),
        ("time,prompt_tokens,output_tokens", "time", "Did you mean 'arrival_s'?"),
        ("Arrival_S,prompt_tokens,output_tokens", "Arrival_S", "Did you mean 'arrival_s'?"),
        ("arrival s,prompt_tokens,output_tokens", "arrival s", "Did you mean 'arrival_s'?"),
        ("arrival_time,prompt_tokens,output_tokens", "arrival_time", "Remove it if it is something else."),
        ("arrived_at,prompt_tokens,output_tokens", "arrived_at", "Did you mean 'arrival_s'?"),
        ("request_timestamp,prompt_tokens,output_tokens", "request_timestamp", "Did you mean 'arrival_s'?"),
        ("arrival_ms,prompt_tokens,output_tokens", "arrival_ms",
         "Divide it, in milliseconds by its name, by 1000 and call that 'arrival_s'."),
        ("timestamp (ms),prompt_tokens,output_tokens", "timestamp (ms)", "in milliseconds by its name, by 1000 and"),
        ("arrival_ns,prompt_tokens,output_tokens", "arrival_ns", "in nanoseconds by its name, by 1000000000 and"),
        *((f"{name},prompt_tokens,output_tokens", name,
           "Did you mean 'arrival_s'? Rename it to 'arrival_s' if it is in seconds, else convert it to seconds first.")
          for name in ("request_arrival_time", "arrival_time_unix", "request_start", "rel_time", "time", "t",
                       "submittedAt", "release", "startTime", "timeOffset")),
        ("elapsed_s,prompt_tokens,output_tokens", "elapsed_s", "Rename it to 'arrival_s'. Remove it if"),
        *((f"{name},prompt_tokens,output_tokens", name, "Divide it, in milliseconds by its name, by 1000 and call that")
          for name in ("arrivalTimestampMs", "timestampMs", "offset_ms")),
        ("prompt_tokens,output_tokens,Predicted Tokens", "Predicted Tokens", "Did you mean 'predicted_tokens'?"),
        ("Prompt Tokens,output-tokens", "prompt_tokens", "there is 'Prompt Tokens'. Did you mean that? Rename it to"),
        ("PROMPT_TOKENS,OUTPUT_TOKENS", "prompt_tokens", "Likewise rename 'OUTPUT_TOKENS' to 'output_tokens'."),
        ("prompt_len,output_len", "prompt_tokens", "there is 'prompt_len'. Did you mean that?"),  # vLLM
        ("input_tokens,output_tokens", "prompt_tokens", "there is 'input_tokens'. Did you mean that?"),
        ("prompt_tokens,completion_tokens", "output_tokens", "there is 'completion_tokens'. Did you mean that?"),
        ("input_length,output_length", "prompt_tokens", "there is 'input_length'."),  # Mooncake, as a table
    ],
)  # fmt: skip
def test_headers_that_must_mean_a_known_column(tmp_path, header, column, words):
    path = write(tmp_path, header + "\n" + ",".join("1" * len(header.split(","))) + "\n")
    for read in (read_requests_csv, lambda path: workload(str(path)).requests("train", 0)):
        with pytest.raises(FileFormatError) as caught:
            read(path)
        assert caught.value.column == column
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("created", "2023-11-16 18:17:03"),
        ("date", "16.11.2023"),
        ("start_date", "11/16/2023"),
        ("request_start", "2023-11-16T18:17:03Z"),
        ("time", "18:17:03"),
        ("timestamp", "Nov 16 2023"),
    ],
)
def test_dates_are_not_seconds(tmp_path, name, cell):
    path = write(tmp_path, f"id,{name},prompt_tokens,output_tokens\n1,,3,5\n2,{cell},3,5\n")
    for read in (read_requests_csv, lambda path: workload(f"trace:{path}").skipped):
        with pytest.raises(FileFormatError) as caught:
            read(path)
        assert "Write it in seconds, as dates are not read, and call that 'arrival_s' (pandas: " in str(caught.value)
        assert f"to_datetime(table['{name}'])" in str(caught.value)
        assert "ename" not in str(caught.value)


def test_other_columns_are_left_alone(tmp_path):
    header = "id,user,latency_s,ttft_ms,finish_time,e2e_time,model,total_tokens,temperature,prompt,tokens_per_s"
    path = write(tmp_path, f"{header},prompt_tokens,output_tokens\n{'1,' * 11}3,5\n")
    assert read_requests_csv(path).prompt_tokens.tolist() == [3]
    header = "time_to_first_token,responseTime,timeout_s,status,start_reason,timezone,end_timestamp,wait_time_ms"
    path = write(tmp_path, f"{header},prompt_tokens,output_tokens\n{'1,' * 4}new,1,1,1,3,5\n")
    assert read_requests_csv(path).prompt_tokens.tolist() == [3]
    both = write(tmp_path, "timestamp," + HEAD + "99,0,3,5\n")
    assert read_requests_csv(both).release_ns.tolist() == [0]


@pytest.mark.parametrize("name", ["interarrival_s", "inter_arrival_time", "delta_s", "gap"])
def test_gaps_are_no_times(tmp_path, name):
    path = write(tmp_path, f"{name},prompt_tokens,output_tokens\n0,3,5\n1,3,5\n")
    with pytest.raises(FileFormatError, match=rf"Add it up, in seconds, and call that 'arrival_s' .*'{name}'.*cumsum"):
        read_requests_csv(path)


@pytest.mark.parametrize(
    ("kind", "header", "prompt", "output"),
    [
        ("burstgpt", "Timestamp,prompt_tokens,output_tokens", "Request tokens", "Response tokens"),
        ("burstgpt", "Timestamp,context_tokens,generated_tokens", "Request tokens", "Response tokens"),
        ("azure", "TIMESTAMP,prompt_tokens,output_tokens", "ContextTokens", "GeneratedTokens"),
    ],
)
def test_prompts_are_never_taken_for_outputs(tmp_path, kind, header, prompt, output):
    """However alike names are spelt."""
    path = write(tmp_path, f"{header}\n1,1000,7\n")
    with pytest.raises(FileFormatError) as caught:
        _ = workload(f"{kind}:{path}").skipped
    _, prompts, outputs = header.split(",")
    assert f"there is '{prompts}'" in str(caught.value)
    assert f"'{outputs}' to '{output}'" in str(caught.value)
    assert caught.value.column == prompt


@pytest.mark.parametrize(("gap", "doubted"), [(99.5, False), (100.5, True), (1500.25, True)])
def test_times_with_decimals_are_doubted_too(tmp_path, gap, doubted):
    path = write(tmp_path, HEAD + "".join(f"{gap * i},3,5\n" for i in range(20)))
    burst = "Timestamp,Request tokens,Response tokens\n" + "".join(f"{gap * i},3,5\n" for i in range(20))
    for read in (lambda: read_requests_csv(path), lambda: workload(f"burstgpt:{write(tmp_path, burst)}").skipped):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read()
        assert [warning.category for warning in caught] == [UnitWarning] * doubted


def test_qwen_bailians_keys_with_milliseconds_are_doubted(tmp_path):
    path = write(tmp_path, qwen([1500 * i for i in range(40)]), "qwen.jsonl")
    with pytest.warns(UnitWarning, match="a request every 1500 seconds in the mean"):
        _ = TraceWorkload(path).skipped
    assert span_s(path, unit="ms") == 1.5 * 39  # what is said is not doubted


def test_a_unit_needs_no_prefix(tmp_path):
    path = write(tmp_path, qwen(EVERY_1_5_S, **BARE), "mine.jsonl")
    assert span_s(f"{path}?unit=s") == 150


def test_milliseconds_since_1970_are_told_what_to_do(tmp_path):
    path = write(tmp_path, HEAD + "1700000000289,3,5\n")
    with pytest.raises(FileFormatError, match=r"since 1970 \(milliseconds divided by 1000, nanoseconds by 10\^9\)"):
        read_requests_csv(path)


def test_a_trace_with_other_names_is_explained(tmp_path):
    vidur = write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,3,5\n")
    words = (
        r"there is 'num_prefill_tokens'\. .*Likewise rename 'num_decode_tokens' to 'output_tokens'; rename 'arrived_"
    )
    with pytest.raises(FileFormatError, match=words):
        read_requests_csv(vidur)
    in_ms = write(tmp_path, "arrival_ms,num_prefill_tokens,num_decode_tokens\n500,3,5\n")
    words = r"Did you mean 'arrived_at'\? Divide it, in milliseconds by its name, by 1000 and call that 'arrived_at'"
    with pytest.raises(FileFormatError, match=words):
        _ = workload(f"trace:{in_ms}").skipped
    keys = write(tmp_path, '{"arrival_time": 0, "prompt_len": 3, "output_len": 5}\n', "vllm.jsonl")
    with pytest.raises(FileFormatError, match=r"column 'timestamp': is missing: .* Did you mean 'arrival_time'\?"):
        _ = TraceWorkload(keys).skipped


SHARED = {"num_requests": 8, "num_clients": 2, "queue": "shared", "order": "fcfs"}
SERVED = {**SHARED, "workload": "serving", "ttft_s": 2.0, "tpot_s": 0.1}
KEPT = {**SHARED, "kv_budget_tokens": 2000}
MOVED = {"num_requests": 8, "num_clients": 2, "assignment": "lpt", "steal": "running"}


@pytest.mark.parametrize(
    ("usual", "changes", "words"),
    [
        (SERVED, {"ttft_s": 2000}, r"ttft_s = 2000 is taken as seconds\. If milliseconds are .* give ttft_s = 2\."),
        (SERVED, {"tpot_s": 100}, r"tpot_s = 100 is taken as seconds\. If milliseconds are .* give tpot_s = 0\.1\."),
        (SERVED, {"ttft_s": 300, "tpot_s": 0.05}, r"ttft_s = 300 is taken as seconds\."),
        (SERVED, {"tpot_s": 500}, r"tpot_s = 500 is taken as seconds\. If milliseconds are .* give tpot_s = 0\.5\."),
        (SERVED, {"ttft_s": 1e6}, r"ttft_s = 1e\+06 is taken as seconds\."),
        (KEPT, {"kv_swap_gb_per_s": 64_000}, r"as 10\^9 bytes a second\. If 10\^6 .* give kv_swap_gb_per_s = 64\."),
        (MOVED, {"move_gb_per_s": 12_500}, r"as 10\^9 bytes a second\. If 10\^6 .* give move_gb_per_s = 12\.5\."),
        (KEPT, {"kv_budget_tokens": 40 * 10**9},
         r"kv_budget_tokens = 40000000000 of 2621440 bytes each are 1\.049e\+05 TB\. .*_tokens = 15258\."),
    ],
    ids=["TTFT in ms", "TPOT in ms", "small TTFT in ms", "largest TPOT alone", "largest TTFT alone", "swap in MB/s",
         "moves in MB/s", "budget in bytes"],
)  # fmt: skip
def test_what_looks_like_another_unit_is_said_once(monkeypatch, usual, changes, words):
    monkeypatch.setattr(cases, "_said", set())
    with pytest.warns(UnitWarning, match=words) as said:
        build_problem(Scenario(**{**usual, **changes}), 0)
    assert len(said) == 1
    build_problem(Scenario(**{**usual, **changes}, split="test"), 0)  # warnings are errors here


@pytest.mark.parametrize(
    ("usual", "changes"),
    [
        *((SERVED, {"ttft_s": value}) for value in (0.2, 10, 60)),
        *((SERVED, {"tpot_s": value}) for value in (0.1, 2)),
        (SERVED, {name: LARGEST[name] for name in ("ttft_s", "tpot_s")}),
        *((KEPT, {"kv_swap_gb_per_s": value}) for value in (0.1, 64, 8000, 1e6)),
        *((MOVED, {"move_gb_per_s": value}) for value in (12.5, 8000, 1e6)),
        *((KEPT, {"kv_budget_tokens": value}) for value in (2000, 10**8, 2**40)),
    ],
)
def test_what_somebody_may_mean_is_not_doubted(monkeypatch, usual, changes):
    """The largest bandwidth, and the largest limits together, are taken for 'no limit'."""
    monkeypatch.setattr(cases, "_said", set())
    build_problem(Scenario(**{**usual, **changes}), 0)


@dataclass(frozen=True)
class Clock:
    """A workload of the user's own, whose times are those of a machine's clock."""

    first_ns: int
    name: str = "clock"

    def pool_size(self, split: str) -> int | None:
        return None

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        return Requests.of([3] * 4, [5] * 4, release_ns=[self.first_ns + i * 10**6 for i in range(4)])


@pytest.mark.parametrize(("ttft_s", "tpot_s"), [(300, 500), (500, 8), (2000, 100), (1e6, 8)])
def test_both_slos_in_milliseconds_are_doubted_one_by_one(monkeypatch, ttft_s, tpot_s):
    monkeypatch.setattr(cases, "_said", set())
    with pytest.warns(UnitWarning) as said:
        build_problem(Scenario(**{**SERVED, "ttft_s": ttft_s, "tpot_s": tpot_s}), 0)
    assert [str(warning.message).split()[0] for warning in said] == ["ttft_s", "tpot_s"]


def test_a_clocks_origin_in_a_workload_of_the_users_own_is_doubted(monkeypatch):
    monkeypatch.setattr(cases, "_said", set())
    usual = {"num_clients": 2, "assignment": "lpt"}
    with pytest.warns(
        UnitWarning, match=r"workload 'clock' comes at release_ns = 353399\d+, 4\.09 days .* subtract the"
    ):
        build_problem(Scenario(workload=Clock(353_399_700_000_000), **usual), 0)
    build_problem(Scenario(workload=Clock(86_400 * 10**9), **usual), 0)


def test_recorded_iterations_in_milliseconds_are_doubted(tmp_path):
    head = "kind,prefill_tokens,active_clients,{name}\n"
    rows = "prefill,100,,20\nprefill,200,,30\nprefill,300,,40\ndecode,,10,11\ndecode,,20,12\ndecode,,30,13\n"
    with pytest.warns(
        UnitWarning,
        match=r"a decode takes 12 s in the median of duration_s\. If these are milliseconds, divide duration_s",
    ):
        fit_cost_model(write(tmp_path, head.format(name="duration_s") + rows))
    words = r"'duration_ms'\. Did you mean that\? Divide it, in milliseconds by its name, by 1000 and call that"
    with pytest.raises(FileFormatError, match=words):
        fit_cost_model(write(tmp_path, head.format(name="duration_ms") + rows))
