"""Recordings that people have in hand: each format by its keys, what is said of those that are none, and bad input."""

from __future__ import annotations

import gzip
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsched_env.errors import (
    ConfigError,
    FileFormatError,
    LLMSchedError,
    MissingExtraError,
    UnknownNameError,
    WorkloadError,
)
from llmsched_env.units import ApproximationWarning, UnitWarning
from llmsched_env.workload import (
    SPLITS,
    CsvWorkload,
    PoissonArrivals,
    ServingWorkload,
    TraceWorkload,
    read_trace,
    trace_json,
    workload,
)
from llmsched_env.workload.json_text import first_keys
from llmsched_env.workload.trace_formats import FORMATS, detect_format

SHARED = Path(__file__).parents[3] / "shared" / "data"


def lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def turns(*texts: str) -> dict[str, object]:
    names = ("human", "gpt")
    return {"id": "a", "conversations": [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]}


RESULT: dict[str, object] = {
    "date": "20251201-060000", "backend": "vllm", "num_prompts": 2, "request_rate": 2.0, "duration": 3.25,
    "completed": 2, "total_input_tokens": 7, "input_lens": [3, 4], "output_lens": [5, 7], "ttfts": [0.1, 0.2],
    "itls": [[0.01] * 4, [0.01] * 6], "start_times": [353399.25, 353399.75], "generated_texts": ['"timestamp": 1', "b"],
    "errors": ["", ""],
}  # fmt: skip

FILES: dict[str, str] = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.4799600,3,5\n2023-11-16 18:17:03.9799600,4,7\n",
    "azure 2025": "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15T12:00:00.269Z,1,3,5\n2024-10-15T12:00:00.769Z,0,4,7\n",
    "burstgpt": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.0,ab,4,GPT-4,3,5,8,API log\n5.5,ab,4,GPT-4,4,7,11,API log\n",
    "csv": "arrival_s,prompt_tokens,output_tokens\n5,3,5\n5.5,4,7\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens,session_id\n0.25,3,5,8\n0.75,4,7,8\n",
    "vidur lengths": "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3,5,8,0.6\n4,7,11,0.57\n",
    "servegen": "request_id,timestamp,input_tokens,output_tokens\n0,0.5,3,5\n1,1.0,4,7\n",
    "mooncake": lines({"timestamp": 27000, "input_length": 3, "output_length": 5, "hash_ids": [46]},
                      {"timestamp": 27500, "input_length": 4, "output_length": 7, "hash_ids": [46]}),
    "qwen": lines({"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 3, "output_length": 5,
                   "type": "text", "turn": 1, "hash_ids": [9]},
                  {"chat_id": 160, "parent_chat_id": 159, "timestamp": 62, "input_length": 4, "output_length": 7,
                   "type": "text", "turn": 2, "hash_ids": [9]}),
    "vllm": json.dumps(RESULT),
    "vllm old": json.dumps({key: value for key, value in RESULT.items() if key != "start_times"}),
    "vllm-custom": lines({"prompt": "abcdefghij", "output_tokens": 5}, {"prompt": "a" * 16, "output_tokens": 7}),
    "sharegpt": json.dumps([turns("abcdefghij", "a" * 20, "more"), turns("a" * 13, "b" * 26)]),
    "sharegpt lines": lines(turns("abcdefghij", "a" * 20, "more"), turns("a" * 13, "b" * 26)),
}  # fmt: skip
"""Two requests in each: 3 and 4 prompt tokens (texts of 10 and 13 to 16 bytes: 4 a token, rounded up), 5 and 7 output
tokens, half a second apart where the format has times."""

UNTIMED = ("vidur lengths", "vllm old", "vllm-custom", "sharegpt", "sharegpt lines")
ESTIMATED = ("vllm-custom", "sharegpt", "sharegpt lines")


def write(folder: Path, data: str | bytes, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def quietly(path: Path, *args: object, **more: object):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        return read_trace(path, *args, **more)


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_recognised_and_read(tmp_path, name):
    kind = name.split()[0]
    path = write(tmp_path, FILES[name])
    packed = write(tmp_path, gzip.compress(FILES[name].encode()), "packed.gz")
    assert detect_format(path) == detect_format(packed) == kind
    read = (quietly(path), quietly(path, kind), quietly(packed), quietly(path, "auto"))
    for trace in read:
        assert trace.format == kind
        assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3, 4], [5, 7])
        assert trace.has_times == (name not in UNTIMED)
        assert trace.arrival_s.tolist() == ([0, 0] if name in UNTIMED else [0, 0.5])
        assert (len(trace), trace.skipped) == (2, 0)
        assert any("estimated" in note for note in trace.notes) == (name in ESTIMATED)
        assert trace.requests(1).prompt_tokens.tolist() == [4]
    assert {kind.split()[0] for kind in FILES} == set(FORMATS), "a format was not tested"


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_a_workload_by_its_name_and_without(tmp_path, name):
    path = write(tmp_path, FILES[name])
    kind = name.split()[0]
    sources = [f"trace:{path}"] if kind == "csv" else [f"trace:{path}", f"{kind}:{path}"]
    for source in sources:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ApproximationWarning)
            case = workload(source).requests("train", 0, num_requests=1)
        assert (case.prompt_tokens.tolist(), case.output_tokens.tolist()) == ([3], [5])
    if FILES[name][0] not in "{[":
        named = write(tmp_path, FILES[name], "named.csv")
        assert workload(named) == (CsvWorkload(named) if kind == "csv" else TraceWorkload(named))


def test_sessions_and_prefix_blocks(tmp_path):
    """Conversations: 0 asks again (chat 2), 5 has a parent that came before the recording; the third is of chat 5."""
    records = [
        {"chat_id": chat, "parent_chat_id": parent, "timestamp": chat, "input_length": prompt, "output_length": 1,
         "hash_ids": ids}
        for chat, parent, prompt, ids in ((0, -1, 17, [7, 8]), (2, 0, 33, [7, 8, 9]), (5, 4, 16, [3]), (6, 5, 1, []))
    ]  # fmt: skip
    trace = read_trace(write(tmp_path, lines(*records)))
    assert trace.session_ids.tolist() == [0, 0, 1, 1]
    blocks = trace.prefix_blocks
    assert (blocks.ids.tolist(), blocks.starts.tolist(), blocks.tokens) == ([7, 8, 7, 8, 9, 3], [0, 2, 5, 6, 6], 16)
    assert [blocks.of(i).tolist() for i in range(4)] == [[7, 8], [7, 8, 9], [3], []]
    records[1]["output_length"] = 0
    kept = read_trace(write(tmp_path, lines(*records)), skip_failed=True)
    assert (kept.skipped, kept.session_ids.tolist()) == (1, [0, 1, 1])
    assert [kept.prefix_blocks.of(i).tolist() for i in range(3)] == [[7, 8], [3], []]
    moon = read_trace(write(tmp_path, FILES["mooncake"]))
    assert (moon.prefix_blocks.ids.tolist(), moon.prefix_blocks.tokens) == ([46, 46], 512)
    assert moon.session_ids is None
    burst = FILES["burstgpt"] + "6,,4,GPT-4,4,7,11,API log\n7,cd,4,GPT-4,4,7,11,x\n8,ab,4,GPT-4,4,7,11,x\n"
    assert read_trace(write(tmp_path, burst)).session_ids.tolist() == [0, 0, -1, 1, 0]
    assert read_trace(write(tmp_path, FILES["vidur"])).session_ids.tolist() == [0, 0]


@pytest.mark.parametrize("ids", [None, 5, [1.5], ["a"], [2**70], [[1], 2], {"a": 1}])
def test_hash_ids_that_are_none_are_left_out_with_a_note(tmp_path, ids):
    path = write(tmp_path, FILES["mooncake"] + lines({"timestamp": 27600, "input_length": 3, "output_length": 5,
                                                      "hash_ids": ids}))  # fmt: skip
    trace = read_trace(path, unit="ms")
    assert trace.prefix_blocks is None
    assert any("hash_ids are not a list of whole numbers" in note for note in trace.notes)


def test_a_result_is_sorted_and_its_failed_requests_are_counted(tmp_path):
    """Sent at 1, 0 and 2.25 s; the first to arrive failed. Times count from it all the same."""
    result = {**RESULT, "input_lens": [3, 4, 2], "output_lens": [5, 0, 7], "start_times": [101, 100.0, 102.25]}
    path = write(tmp_path, json.dumps(result, indent=1))
    trace = read_trace(path)
    assert (trace.arrival_s.tolist(), trace.prompt_tokens.tolist()) == ([1.0, 2.25], [3, 2])
    assert trace.skipped == 1
    assert "1 of 3 rows have no output and are left out." in trace.notes
    with pytest.raises(FileFormatError, match=r"column 'output_lens': entry 1: 0 is out of range"):
        read_trace(path, skip_failed=False)


def test_a_client_that_holds_requests_back(tmp_path):
    """Sent at 0 and 3 s, the second one 2.5 s after it came: so it arrived at 0.5 s."""
    limited = {**RESULT, "max_concurrency": 1, "start_times": [100.0, 103.0]}
    trace = read_trace(write(tmp_path, json.dumps({**limited, "queue_times": [0.0, 2.5]})))
    assert trace.arrival_s.tolist() == [0, 0.5]
    assert trace.notes == ("arrivals are start_times less queue_times, in seconds.",)
    with pytest.warns(
        ApproximationWarning, match=r"max_concurrency = 1 held some back .* Run the benchmark without it"
    ):
        trace = read_trace(write(tmp_path, json.dumps(limited)))
    assert trace.arrival_s.tolist() == [0, 3]
    for queue, words in (([0], "'queue_times': has 1 entries but input_lens has 2"), ([0, "x"], "entry 1: 'x' is not"),
                         ([0, -1], "entry 1: -1 is out of range")):  # fmt: skip
        with pytest.raises(FileFormatError, match=words):
            read_trace(write(tmp_path, json.dumps({**limited, "queue_times": queue})))


def test_files_without_times_are_cut_by_rows(tmp_path):
    path = write(tmp_path, "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},5\n" for i in range(1, 12)))
    item = TraceWorkload(path, num_requests=2)
    assert [item.stretch(split) for split in SPLITS] == [(0, 6), (6, 8), (8, 11)]  # rows 0 to 10: cuts at 6 and 8
    case = item.requests("train", 1)
    assert (case.prompt_tokens.tolist(), case.release_ns.tolist()) == ([3, 4], [0, 0])
    with pytest.raises(WorkloadError, match=r"its test stretch \(80 to 100 % of the rows\) has 3 requests"):
        item.requests("test", 0, num_requests=4)
    served = ServingWorkload("chat", lengths=item, arrivals=PoissonArrivals(), num_requests=3).requests("test", 0)
    assert sorted(served.prompt_tokens.tolist()) == [9, 10, 11]
    assert served.release_ns[-1] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TIMESTAMP,foo\n1,2\n", r"Nearest: azure \(has TIMESTAMP; lacks ContextTokens, GeneratedTokens\); burstgpt"),
        ("foo,bar\n1,2\n", r"'foo,bar', which is no known format\. It has no column or key of azure, .*sharegpt: "),
        ('{"timestamp": 1, "model": 2}\n', r"keys 'timestamp', 'model': no known format\. Nearest: mooncake \(has ti"),
        ('{"chat_id": 1, "timestamp": 2}\n', "column 'input_length': is missing: the object has 'chat_id', 'ti"),
        ('{"messages": []}\n', r"has the keys 'messages': no known format\. It has no column or key of"),
        ('[{"prompt": "x"}]', r"is one JSON array: write one object a line .* Nearest: vllm-custom \(has prompt; "),
        ('[{"prompt": "x", "timestamp": 1, "input_length": 2}]', r"Nearest: mooncake \(.*\); qwen \(.*\); vllm-c"),
        ('{"prompt": "x"}\n', r"column 'output_tokens': is missing: .* --custom-output-len there\. Write"),
        ("arrived_at,num_prefill_tokens\n1,2\n", "'num_decode_tokens': is missing: the header has"),
        ("arrived_at,num_prefill_tokens,decode_tokens\n1,2,3\n", "there is 'decode_tokens'. Did you mean that"),
        ('{"num_prompts": 5, "request_throughput": 2}', "'input_lens': is missing: .* Run the benchmark with --save"),
        (json.dumps({**RESULT, "input_lens": [3]}), "'start_times': has 2 entries but input_lens has 1"),
        (json.dumps({**RESULT, "input_lens": []}), "'input_lens': is not a list with an entry for each request"),
        (json.dumps({**RESULT, "input_lens": 3}), "'input_lens': is not a list with an entry for each request"),
        (json.dumps({**RESULT, "input_lens": [3, -4]}), r"entry 1: -4 is out of range: write a whole number of tokens"),
        (json.dumps({**RESULT, "input_lens": [0, 4]}), r"entry 0: 0 is out of range"),
        (json.dumps({**RESULT, "output_lens": [5, 7.5]}), "entry 1: 7.5 is not whole"),
        (json.dumps({**RESULT, "output_lens": [5, None]}), "entry 1: None is not a finite number"),
        (json.dumps({**RESULT, "start_times": [1, "2"]}), "entry 1: '2' is not a finite number: write seconds"),
        (json.dumps({**RESULT, "start_times": [1, float("nan")]}), "entry 1: nan is not a finite number"),
        (json.dumps({**RESULT, "start_times": [1, -1]}), "entry 1: -1 is out of range"),
        (json.dumps({**RESULT, "start_times": [0, 1700000000289]}), "entry 1: 1700000000289 is out of range"),
        (json.dumps({**RESULT, "start_times": [0, 2500]}), r"span 2500 s, but the duration of the benchmark is 3\.25"),
        (json.dumps(RESULT) + "\n" + json.dumps(RESULT), r"line 2: has 2 results, one a line \(--append-result\)"),
        (json.dumps(RESULT)[:-30], r"line 1: is cut off \("),
        (json.dumps(RESULT)[:300], r"line 1: is cut off \("),
        (json.dumps(RESULT) + "}", r"line 1: is not JSON \(Extra data"),
        (FILES["sharegpt"][:-20], r"line 1: is cut off \("),
        (FILES["mooncake"][:-20], r"line 2: is not JSON \("),
        ('[{"conversations": 5}]', 'conversation 0 has no list of turns: write {"conversations"'),
        ('[{"conversations": [{"from": "human", "value": 5}]}]', "'value': is not a text but a int"),
        (lines({"prompt": ["x"], "output_tokens": 5}), "line 1, column 'prompt': is not a text but a list"),
        (lines({"prompt": "", "output_tokens": 5}), "line 1, column 'prompt': is empty"),
        (lines({"prompt": "x", "output_tokens": -5}), "line 1, column 'output_tokens': -5 is out of range"),
        (FILES["vidur"] + "0.5,1,1,1\n", "line 4, column 'arrived_at': 0.5 is earlier than the row before: sort by"),
        (FILES["vidur"] + "1,-1,1,1\n", "line 4, column 'num_prefill_tokens': '-1' is out of range"),
        (FILES["vidur"] + "1700000000289,1,1,1\n", r"line 4, column 'arrived_at': .*milliseconds divided by 1000"),
        (FILES["servegen"] + "2,1.5,1,0\n", r"'output_tokens': 0 output tokens: .*'trace:FILE\?skip_failed=yes'"),
        (FILES["servegen"] + "2,1.5\n", "line 4: has 2 cells but the header names 4 columns"),
        (FILES["vidur"].replace(",", ";"), r"line 1: the header is separated by semicolons\. Separate cells by commas"),
        ("", "line 1: is empty: start it with a header"),
        (" \n\n", "line 1: is empty"),
    ],
)  # fmt: skip
def test_bad_files_are_answered_with_what_is_wrong_and_the_remedy(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(FileFormatError, match=words) as caught:
        quietly(path)
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.parametrize("name", ["vidur", "servegen", "burstgpt"])
def test_milliseconds_in_a_column_of_seconds_are_doubted(tmp_path, name):
    row = {"vidur": "{},3,5,8\n", "servegen": "0,{},3,5\n", "burstgpt": "{},ab,4,GPT-4,3,5,8,API log\n"}[name]
    header = FILES[name].splitlines(keepends=True)[0]
    path = write(tmp_path, header + "".join(row.format(500 * i) for i in range(20)))
    with pytest.warns(UnitWarning, match=r"a request every 500 seconds .* If these are milliseconds, divide"):
        trace = read_trace(path)
    assert trace.arrival_s[-1] == 9500, "taken as it is written"


def test_a_file_in_which_nothing_is_served(tmp_path):
    with pytest.raises(WorkloadError, match="has 1 rows and none of them has output tokens"):
        quietly(write(tmp_path, json.dumps([turns("a question")])))


def test_conversations_without_an_answer_are_counted(tmp_path):
    trace = quietly(write(tmp_path, json.dumps([turns("a"), turns("a", ""), turns("", "b"), turns("a", "b")])))
    assert (len(trace), trace.skipped) == (1, 3)


class Words:
    """In place of tokenizers and transformers: a token a word, and one at the start of each text."""

    @classmethod
    def from_file(cls, path):
        Path(path).read_text(encoding="utf-8")
        return cls()

    @classmethod
    def from_pretrained(cls, name, *, local_files_only):
        assert local_files_only, "a name must not be fetched"
        if name != "mine":
            raise OSError(f"{name} is not here\nand more")
        return cls()

    def encode_batch(self, texts):
        return [types.SimpleNamespace(ids=[0, *text.split()]) for text in texts]

    def __call__(self, texts):
        return {"input_ids": [[0, *text.split()] for text in texts]}


def test_tokenizers_are_used_where_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Words))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=Words))
    rules = write(tmp_path, "{}", "tokenizer.json")
    path = write(tmp_path, json.dumps([turns("how are you", "well"), turns("why", "I do not know")]))
    for tokenizer in (str(rules), "mine"):
        trace = read_trace(path, tokenizer=tokenizer)  # no warning: warnings are errors here
        assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([4, 2], [2, 5])
        assert f"counted by the tokenizer {tokenizer!r}" in trace.notes[0]
    assert workload(f"sharegpt:{path}?tokenizer=mine").requests("train", 0, num_requests=1).prompt_tokens.tolist() == [
        4
    ]
    custom = write(tmp_path, lines({"prompt": "how are you", "output_tokens": 9}), "custom.jsonl")
    assert read_trace(custom, tokenizer="mine").prompt_tokens.tolist() == [4]
    for tokenizer, words in (("other", r"tokenizer = 'other' cannot be used \(other is not here\): give the path"),
                             (str(tmp_path / "none.json"), r"none\.json' cannot be used \(.*No such f")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            read_trace(path, tokenizer=tokenizer)


def test_a_tokenizer_whose_library_is_missing_and_one_that_is_not_needed(tmp_path, monkeypatch):
    path = write(tmp_path, FILES["sharegpt"])
    for library, tokenizer in (("tokenizers", "a/tokenizer.json"), ("transformers", "some-model")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=rf"needs {library}, which is not installed: pip install {library}"):
            read_trace(path, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"tokenizer = 'x' .*, of format 'csv', which has numbers of tokens: leave"):
        read_trace(write(tmp_path, FILES["csv"]), tokenizer="x")
    with pytest.raises(ConfigError, match="tokenizer = 5 is not a name"):
        TraceWorkload(path, tokenizer=5)


def test_an_estimate_is_said(tmp_path):
    with pytest.warns(ApproximationWarning, match=r"estimated as UTF-8 bytes / 4, .*factor of two\. Name your model's"):
        trace = read_trace(write(tmp_path, lines({"prompt": "日本語" * 4, "output_tokens": 1})))
    assert trace.prompt_tokens.tolist() == [9], "12 characters of 3 bytes: 36 / 4"


def test_options_of_a_source(tmp_path):
    path = write(tmp_path, FILES["servegen"] + "2,1.5,1,0\n")
    assert workload(f"trace:{path}?skip_failed=yes").skipped == 1
    assert workload(f"trace:{path}?skip_failed=yes").trace().format == "servegen"
    assert workload(f"{path}?skip_failed=no".replace("txt", "csv")).skip_failed is False
    assert workload(f"mooncake:{path}?unit=s&skip_failed=yes") == TraceWorkload(path, "mooncake", 2000, True, "s")
    with pytest.raises(UnknownNameError, match=r"unknown option of a trace 'units'\. Did you mean 'unit'"):
        workload(f"trace:{path}?units=ms")
    with pytest.raises(UnknownNameError, match="unknown value of skip_failed 'maybe'"):
        workload(f"trace:{path}?skip_failed=maybe")
    with pytest.raises(UnknownNameError, match=r"unknown trace format 'azur'\. Did you mean 'azure'"):
        read_trace(path, "azur")
    with pytest.raises(UnknownNameError, match="unknown unit 'h'"):
        read_trace(path, unit="h")


def test_keys_are_read_from_a_beginning():
    text = '{"a": {"b": 1}, "c": [{"d": "\\"e\\": {"}], "f'
    assert first_keys(text) == ["a", "c"]
    assert first_keys('[{"a": 1, "b": [') == ["a", "b"]
    assert first_keys('[{"a": 1}, {"b": 2}]') == ["a"]
    assert first_keys("[[1, 2]]") == first_keys("{}") == first_keys("{" * 100_000) == []


WRONG = [b"-1", b"0", b"1e400", b"NaN", b"null", b"true", b'"x"', b"[]", b"{}", b"9" * 30, b"2.5", b"", b"1e-9"]


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
def test_damaged_files_are_read_or_refused_with_an_error_of_ours(tmp_path, name, data):
    """Cut anywhere, with bytes replaced or lines lost, packed and cut, or told to be another format."""
    raw = FILES[name].encode()
    how = data.draw(st.sampled_from(["cut", "bytes", "value", "lines", "packed", "other"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    kind = None
    if how == "cut":
        raw = raw[:at]
    elif how == "bytes":
        raw = raw[:at] + data.draw(st.binary(min_size=1, max_size=6)) + raw[at + 1 :]
    elif how == "value":
        digit = data.draw(st.sampled_from([b"3", b"4", b"5", b"7"]))
        raw = raw.replace(digit, data.draw(st.sampled_from(WRONG)), 1)
    elif how == "lines":
        raw = b"\n".join(line for line in raw.split(b"\n") if data.draw(st.booleans()))
    elif how == "packed":
        raw = gzip.compress(raw)[: at + 2]
    else:
        kind = data.draw(st.sampled_from(FORMATS))
    path = write(tmp_path, raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trace = read_trace(path, kind)
        except LLMSchedError as error:
            said = str(error)
        else:
            said = ""
    if said:
        assert str(path) in said
        return
    assert len(trace) > 0
    assert min(trace.prompt_tokens.min(), trace.output_tokens.min()) >= 1
    assert trace.release_ns[0] >= 0
    assert (np.diff(trace.release_ns) >= 0).all()
    trace.requests()


@pytest.mark.parametrize("data", [b"\x00\x01\x02" * 50, bytes(range(256)) * 4, b"{\x00", b"[\xff\xfe\x00", b"PAR1\0"])
def test_binary_files_are_refused(tmp_path, data):
    with pytest.raises(FileFormatError):
        read_trace(write(tmp_path, data))


@pytest.mark.parametrize("name", ["azure_2023_conv", "azure_2023_code", "mooncake_conversation"])
def test_recordings_in_every_format_are_the_same_requests(tmp_path, name):
    path = SHARED / f"{name}.csv"
    if not path.is_file():
        pytest.skip("the recorded traces are not part of the repository")
    whole = read_trace(path)
    rows = list(zip(whole.arrival_s.tolist(), whole.prompt_tokens.tolist(), whole.output_tokens.tolist(), strict=True))
    assert len(rows) > 8000
    written = {
        "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{t},{p},{o}\n" for t, p, o in rows),
        "servegen": "timestamp,input_tokens,output_tokens\n" + "".join(f"{t},{p},{o}\n" for t, p, o in rows),
        "mooncake": lines(*({"timestamp": round(1000 * t), "input_length": p, "output_length": o, "hash_ids":
                             [0] * -(-p // 512)} for t, p, o in rows)),
        "vllm": json.dumps({"duration": rows[-1][0], **{key: [row[i] for row in rows]
                                                       for i, key in enumerate(trace_json.RESULT_KEYS)}}),
    }  # fmt: skip
    for kind, text in written.items():
        trace = read_trace(write(tmp_path, text))
        assert trace.format == kind
        assert (trace.release_ns == whole.release_ns).all()
        assert (trace.prompt_tokens == whole.prompt_tokens).all()
        assert (trace.output_tokens == whole.output_tokens).all()
