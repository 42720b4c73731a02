"""What is checked of a recording at the door."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from simulated import TRUTH, recorded

from llmsched_env.engines.recording import (
    RecordingWarning,
    RecordingWriter,
    Settings,
    read_recording,
    write_recording,
)
from llmsched_env.engines.replay import replay
from llmsched_env.engines.steps import StepRecorder
from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.units import UnitWarning

ABOUT = {"format": 1, "engine": "vllm", "version": "0.32.0", "decided_by": "vLLM's own scheduler"}
SETTINGS = {"max_num_seqs": 8, "token_budget": 64}
ITERATIONS = "start_s,duration_s,prefill_requests,prefill_tokens,decode_requests,context_tokens\n"
ROWS = "0.0,0.010,1,20,0,0\n0.010,0.002,0,0,1,20\n0.012,0.002,0,0,1,21\n"
REQUESTS = "request,arrival_s,prompt_tokens,output_tokens,first_token_s,finished_s,preemptions\n"
ONE = "0,0,20,3,0.010,0.014,0\n"


def folder_of(tmp_path, *, iterations=ITERATIONS + ROWS, requests=REQUESTS + ONE, about=None):
    (tmp_path / "recording.json").write_text(json.dumps({**ABOUT, "settings": SETTINGS} if about is None else about))
    (tmp_path / "iterations.csv").write_text(iterations)
    (tmp_path / "requests.csv").write_text(requests)
    return tmp_path


def test_a_recording_on_paper(tmp_path):
    recording = read_recording(folder_of(tmp_path))
    assert recording.iterations.tolist() == [
        (0, 10_000_000, 1, 20, 0, 0),
        (10_000_000, 2_000_000, 0, 0, 1, 20),
        (12_000_000, 2_000_000, 0, 0, 1, 21),
    ]
    assert recording.requests.tolist() == [(0, 20, 3, 10_000_000, 14_000_000, 0)]
    assert recording.settings == Settings(8, 64)
    assert (recording.engine, recording.version, recording.decided_by) == ("vllm", "0.32.0", "vLLM's own scheduler")
    assert recording.makespan_s == 0.014


def test_requests_are_in_order_of_arrival_then_of_their_numbers(tmp_path):
    rows = "10,0.5,20,1,0.6,0.6,0\n2,0.5,21,1,0.6,0.6,0\nlate,0.7,22,1,0.8,0.8,1\n0,0,20,3,0.010,0.014,0\n"
    assert read_recording(folder_of(tmp_path, requests=REQUESTS + rows)).names == ("0", "2", "10", "late")


@pytest.mark.parametrize("cut", ["0.014,0.002,0,0,1", "0.014,0.002,0,0,1,2", "0.0"])
def test_a_last_line_that_was_cut_is_left_out(tmp_path, cut):
    with pytest.warns(RecordingWarning, match=r"iterations\.csv: the last line, '0\.0.*, has no line break"):
        recording = read_recording(folder_of(tmp_path, iterations=ITERATIONS + ROWS + cut))
    assert len(recording.iterations) == 3


def test_a_line_that_was_cut_elsewhere_is_an_error(tmp_path):
    with pytest.raises(FileFormatError, match="line 3: has 2 cells"):
        read_recording(folder_of(tmp_path, iterations=ITERATIONS + "0.0,0.010,1,20,0,0\n0.1,0\n0.3,0.01,0,0,1,20\n"))


def test_requests_that_had_not_finished_are_said(tmp_path):
    more = ROWS + "0.014,0.002,0,0,4,99\n"
    with pytest.warns(RecordingWarning, match="4 of 6 decoded tokens belong to requests that are not in requests.csv"):
        read_recording(folder_of(tmp_path, iterations=ITERATIONS + more))


def test_milliseconds_are_doubted(tmp_path):
    rows = "0,10,1,20,0,0\n10,12,0,0,1,20\n22,12,0,0,1,21\n"
    with pytest.warns(UnitWarning, match="divide duration_s by 1000"):
        read_recording(folder_of(tmp_path, iterations=ITERATIONS + rows))


@pytest.mark.parametrize(
    ("rows", "line", "column", "words"),
    [
        ("-0.1,0.010,1,20,0,0\n", 2, "start_s", "'-0.1' is out of range"),
        ("0,-0.010,1,20,0,0\n", 2, "duration_s", "'-0.010' is out of range"),
        ("0,0,1,20,0,0\n", 2, "duration_s", "is no time"),
        ("0,nan,1,20,0,0\n", 2, "duration_s", "not a finite number"),
        ("0,0.01,1,20,0,0\n0.005,0.01,0,0,1,20\n", 3, "start_s", "lies before the end of the iteration before"),
        ("0,0.01,0,0,0,0\n", 2, None, "ran nothing"),
        ("0,0.01,1,0,0,0\n", 2, "prefill_tokens", "is 0 with prefill_requests = 1"),
        ("0,0.01,3,2,0,0\n", 2, "prefill_tokens", "is 2 for 3 requests"),
        ("0,0.01,0,0,5,4\n", 2, "context_tokens", "is 4 for 5 requests"),
        ("0,0.01,1,5,0,4\n", 2, "context_tokens", "is 4 for 0 requests"),
        ("0,0.01,1,5.5,0,0\n", 2, "prefill_tokens", "is not whole"),
    ],
)
def test_bad_iterations(tmp_path, rows, line, column, words):
    with pytest.raises(FileFormatError) as caught:
        read_recording(folder_of(tmp_path, iterations=ITERATIONS + rows))
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    ("rows", "line", "column", "words"),
    [
        ("0,-1,20,3,0.010,0.014,0\n", 2, "arrival_s", "out of range"),
        ("0,0.011,20,3,0.010,0.014,0\n", 2, "first_token_s", "lies before arrival_s"),
        ("0,0,20,3,0.015,0.014,0\n", 2, "finished_s", "lies before first_token_s"),
        ("0,0,0,3,0.010,0.014,0\n", 2, "prompt_tokens", "out of range"),
        (ONE + ONE, 3, "request", "'0' stands on line 2, too"),
        ("", 1, None, "has a header but no rows"),
    ],
)
def test_bad_requests(tmp_path, rows, line, column, words):
    with pytest.raises(FileFormatError) as caught:
        read_recording(folder_of(tmp_path, requests=REQUESTS + rows))
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_headers_that_nearly_match(tmp_path):
    for right, wrong in (("duration_s", "duration_ms"), ("context_tokens", "context_token"), ("start_s", "start")):
        with pytest.raises(FileFormatError, match=f"{right}.*is missing, but there is '{wrong}'"):
            read_recording(folder_of(tmp_path, iterations=ITERATIONS.replace(right, wrong) + ROWS))


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({**ABOUT, "format": 2, "settings": SETTINGS}, "has format 2: this version reads recordings of format 1"),
        ([], "has format None"),
        (ABOUT, "has no settings"),
        ({**ABOUT, "settings": {"max_num_seq": 3, "token_budget": 64}}, "no max_num_seqs.*There is 'max_num_seq'"),
        ({**ABOUT, "settings": {**SETTINGS, "token_budget": 0}}, "token_budget = 0"),
        ({**ABOUT, "settings": {**SETTINGS, "mixes": 1}}, "mixes = 1"),
        ({**ABOUT, "settings": SETTINGS, "arguments": [2]}, r"has arguments \[2\]: give an object with some of ttft_s"),
        ({**ABOUT, "settings": SETTINGS, "arguments": {"workload": "x"}}, "has arguments {'workload': 'x'}"),
    ],
)
def test_bad_settings(tmp_path, about, words):
    with pytest.raises(FileFormatError, match=words):
        read_recording(folder_of(tmp_path, about=about))


def test_no_recording(tmp_path):
    with pytest.raises(PathError, match=r"is not a folder: give a recording, which is a folder with recording\.json"):
        read_recording(tmp_path / "none")
    with pytest.raises(PathError, match=r"has no recording\.json, so it is no recording"):
        read_recording(tmp_path)
    (folder_of(tmp_path) / "recording.json").write_text("{")
    with pytest.raises(FileFormatError, match="is not JSON"):
        read_recording(tmp_path)


def test_a_recording_is_not_written_over(tmp_path):
    written = recorded()
    write_recording(tmp_path / "r", written)
    with pytest.raises(PathError, match=r"holds a recording already \(recording\.json\): give a new folder"):
        write_recording(tmp_path / "r", written)


def test_names_with_commas_and_quotes_come_back(tmp_path):
    written = recorded()
    named = replace(written, names=('chat,"1"', *written.names[1:]))
    write_recording(tmp_path / "r", named)
    assert read_recording(tmp_path / "r").names[0] == 'chat,"1"'


def test_parameters_come_back_and_play(tmp_path):
    """A rule with numbers of its own is replayed with them."""
    own = recorded("cadence", mixes=False)
    assert (own.decided_by, own.settings.mixes) == ("cadence", False)
    told = replace(own, parameters=(40,))
    write_recording(tmp_path / "r", told)
    assert json.loads((tmp_path / "r" / "recording.json").read_text())["parameters"] == [40]
    again = replay(read_recording(tmp_path / "r"), TRUTH)
    assert again.iterations.tolist() != own.iterations.tolist() == replay(own, TRUTH).iterations.tolist()
    slos = {"ttft_s": 2.0, "tpot_s": 0.2}
    write_recording(tmp_path / "slo", replace(own, decided_by="deadline", parameters=(4, 0.5), arguments=slos))
    recording = read_recording(tmp_path / "slo")
    assert recording.arguments == slos
    assert replay(recording, TRUTH).decided_by == "deadline"
    about = json.loads((tmp_path / "r" / "recording.json").read_text()) | {"parameters": 5}
    (tmp_path / "r" / "recording.json").write_text(json.dumps(about))
    with pytest.raises(FileFormatError, match=r"parameters 5: give a list of the rule's numbers"):
        read_recording(tmp_path / "r")


def test_rows_are_there_before_the_writer_is_closed(tmp_path):
    """So that a killed engine keeps them."""
    writer = RecordingWriter(tmp_path / "r", engine="e", version="1", settings=Settings(8, 64), decided_by="e")
    writer.iteration(0, 10, 1, 20, 0, 0)
    writer.request(0, 0, 20, 1, 10, 10)
    assert read_recording(tmp_path / "r").iterations.tolist() == [(0, 10, 1, 20, 0, 0)]
    writer.close()


class Request:
    """What the recorder reads of vLLM's."""

    def __init__(self, name, prompt, arrival_time):
        self.request_id, self.num_prompt_tokens, self.arrival_time = name, prompt, arrival_time
        self.num_computed_tokens = self.num_output_tokens = self.num_preemptions = 0
        self.over = False

    def is_finished(self):
        return self.over


class Output:
    def __init__(self, tokens):
        self.num_scheduled_tokens = tokens


def test_steps_of_a_scheduler_that_runs_ahead(tmp_path, monkeypatch):
    """Asynchronous: the second is composed before the first is over. One is aborted, one preempted, one idle step."""
    clock = [0]
    monkeypatch.setattr("llmsched_env.engines.steps.time.perf_counter_ns", lambda: clock[0])
    monkeypatch.setattr("llmsched_env.engines.steps.time.time", lambda: 1000 + clock[0] / 1e9)
    steps = StepRecorder(tmp_path / "r", engine="vllm", version="1", settings=Settings(8, 64), decided_by="it")
    a, b, c = Request("a", 10, 1000.0), Request("b", 5, 999.0), Request("c", 7, 1000.0)
    requests = {"a": a, "b": b, "c": c}
    for request in (a, b, c):
        steps.arrived(request)

    def scheduled(at_ns, tokens):
        clock[0], output = at_ns, Output(tokens)
        for name, count in tokens.items():
            requests[name].num_computed_tokens += count
        steps.scheduled(at_ns, output, requests)
        return output

    def updated(at_ns, output, emits=(), ends=()):
        clock[0] = at_ns
        for name in emits:
            requests[name].num_output_tokens += 1
        for name in ends:
            requests[name].over = True
        steps.updated(output)

    first = scheduled(100, {"a": 10, "b": 5})
    second = scheduled(150, {"a": 1, "b": 1, "c": 7})
    updated(200, first, "ab")
    updated(300, second, "ab", "ab")  # c is aborted before its first token
    updated(350, scheduled(320, {}))
    c.num_computed_tokens, c.num_preemptions = 0, 1
    updated(500, scheduled(400, {"c": 7}), "c", "c")
    steps.left(requests)
    steps.close()
    recording = read_recording(tmp_path / "r")
    assert recording.iterations.tolist() == [
        (100, 100, 2, 15, 0, 0),
        (200, 100, 1, 7, 2, 15),
        (400, 100, 1, 7, 0, 0),
    ]
    assert recording.names == ("0", "1", "2")
    assert recording.requests.tolist() == [(0, 10, 2, 200, 300, 0), (0, 5, 2, 200, 300, 0), (0, 7, 1, 500, 500, 1)]


class Full:
    def write(self, text=""):
        raise OSError(28, "No space left on device")

    close = write


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path):
    steps = StepRecorder(tmp_path / "r", engine="vllm", version="1", settings=Settings(8, 64), decided_by="it")
    request = Request("a", 10, 1000.0)
    steps.arrived(request)
    for _ in range(3):
        request.num_computed_tokens += 1
        output = Output({"a": 1})
        steps.scheduled(steps.now_ns(), output, {"a": request})
        steps.updated(output)
    for file in steps.writer._files:
        file.close()
    steps.writer._files = [Full(), Full()]
    output = Output({"a": 1})
    steps.scheduled(steps.now_ns(), output, {"a": request})
    with pytest.warns(RecordingWarning, match="cannot write .*No space left.* the recording ends here, and the engine"):
        steps.updated(output)
    steps.scheduled(steps.now_ns(), output, {"a": request})
    steps.updated(output)
    steps.close()
    assert len((tmp_path / "r" / "iterations.csv").read_text().splitlines()) == 4


def test_more_requests_than_seats_are_refused(tmp_path):
    few = {**ABOUT, "settings": {**SETTINGS, "max_num_seqs": 3}}
    folder = folder_of(tmp_path, iterations=ITERATIONS + "0.0,0.1,2,20,2,30\n", about=few)
    with pytest.raises(FileFormatError, match=r"is 2 beside 2 that are read, and recording.json says max_num_seqs = 3"):
        read_recording(folder)


def test_settings_are_whole_numbers():
    with pytest.raises(ConfigError, match="max_num_seqs = 0 of a recording: give a whole number in"):
        Settings(0, 64)
    assert Settings(1, 1, None, None).num_blocks is None


def test_a_recording_without_gaps_is_busy(tmp_path):
    recording = read_recording(folder_of(tmp_path))
    assert recording.busy_ns.tolist() == recording.iterations["duration_ns"].tolist()
    late = ITERATIONS + "0.0,0.009,1,20,0,0\n0.010,0.001,0,0,1,20\n0.012,0.002,0,0,1,21\n"
    assert read_recording(folder_of(tmp_path, iterations=late)).busy_ns.tolist() == [10_000_000, 2_000_000, 2_000_000]
    assert np.issubdtype(recording.busy_ns.dtype, np.int64)
