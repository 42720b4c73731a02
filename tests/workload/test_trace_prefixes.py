"""From a trace with hash_ids to tokens that are not computed, on paper; and traces that have none."""

from __future__ import annotations

import json

import pytest

from llmsched_env import Scenario
from llmsched_env.errors import WorkloadError
from llmsched_env.evaluation import play
from llmsched_env.recommend import VLLM_DEFAULT
from llmsched_env.recommend.trial import Load
from llmsched_env.workload import read_trace, workload


def trace(tmp_path, rows, qwen=False):
    """The path of a trace of (seconds, prompt tokens, ids) rows, in Mooncake's or Qwen-Bailian's keys."""
    path = tmp_path / "trace.jsonl"
    records = []
    for number, (at_s, prompt, ids) in enumerate(rows):
        record = {"timestamp": at_s if qwen else 1000 * at_s, "input_length": prompt, "output_length": 2}
        records.append(record | {"hash_ids": ids} | ({"chat_id": number, "parent_chat_id": number - 1} if qwen else {}))
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def served(path):
    """Totals of vLLM's scheduler with prefix caching, one request at a time."""
    given = Load("trace", read_trace(path).requests())
    scenario = Scenario(
        num_clients=1, queue="shared", order="fcfs", cost="qwen3-8b-h200", workload=given, mixed_tokens=2048,
        kv_budget_tokens=64_000, kv_block_tokens=16, kv_rule="vllm_v1", kv_prefix_caching=True,
    )  # fmt: skip
    return play(VLLM_DEFAULT.policy(), scenario, 0).totals


def test_mooncake_blocks_of_512_tokens(tmp_path):
    """The second prompt finds one block of 512; the third both
    full blocks, not the 176 tokens of its own last one.
    """
    path = trace(tmp_path, [(0, 1200, [1, 2, 3]), (60, 600, [1, 4]), (120, 1200, [1, 2, 5])])
    given = read_trace(path).requests().prefix_blocks
    assert (given.ids.tolist(), given.starts.tolist(), given.tokens) == ([1, 2, 3, 1, 4, 1, 2, 5], [0, 3, 5, 8], 512)
    assert given.shared.tolist() == [2, 1, 2]
    assert served(path).cached_tokens == 512 + 1024


def test_turns_of_a_qwen_conversation(tmp_path):
    """Blocks of 16. The second turn finds the 32 tokens of the first; asked once more it computes its last block."""
    path = trace(tmp_path, [(0, 32, [7, 8]), (60, 48, [7, 8, 9]), (120, 48, [7, 8, 9])], qwen=True)
    assert served(path).cached_tokens == 32 + 32


def test_cases_of_a_trace_keep_their_blocks(tmp_path):
    """The first 60 % of the time are for training: of ten requests a minute apart, the first six."""
    path = trace(tmp_path, [(60 * i, 1200, [1, 2, 10 + i]) for i in range(10)])
    case = workload(f"trace:{path}").requests("train", 0, num_requests=3)
    assert [ids[:2] for ids in map(list, map(case.prefix_blocks.of, range(3)))] == [[1, 2]] * 3


@pytest.mark.parametrize("ids", [None, ["a", "b", "c"]])
def test_a_trace_without_them_is_refused(tmp_path, ids):
    path = trace(tmp_path, [(0, 1200, ids), (60, 1200, ids)])
    with pytest.raises(WorkloadError, match=r"take a trace with hash_ids \(Mooncake, Qwen-Bailian\)"):
        served(path)
