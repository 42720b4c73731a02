"""``llmsched recommend --prefix-caching``: what it costs on paper, what becomes of blocks, and wrong input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from llmsched_env.cost import CostModel
from llmsched_env.recommend import VLLM_DEFAULT, Machine, Setting, try_setting
from llmsched_env.recommend.__main__ import main
from llmsched_env.recommend.answer import attainable, halves
from llmsched_env.recommend.trial import Load
from llmsched_env.workload.prefix_blocks import PrefixBlocks
from llmsched_env.workload.requests import Requests

# A prefill of p tokens takes 10 + p ms, a decode of any number of clients 5 ms.
PAPER = CostModel("paper", 10_000_000, 1_000_000, 5_000_000, 0, prefill_token_cap=4096)
MACHINE = Machine(PAPER, 0.1, 0.02, kv_tokens=640, longest_prompt_tokens=40, cost_name="paper")


def alike(count: int, every_ms: int) -> Requests:
    """Prompts of 40 tokens that begin with the same two blocks of 16."""
    ids = np.array([number for i in range(count) for number in (1, 2, 10 + i)], np.int64)
    blocks = PrefixBlocks(ids, np.arange(count + 1) * 3, 16)
    release_ns = np.arange(count) * every_ms * 10**6
    return Requests.of([40] * count, [3] * count, release_ns=release_ns, prefix_blocks=blocks)


def test_on_paper():
    """The first prompt is read in 10 + 40 ms. The others find two blocks of 16 tokens: 10 + 8 ms."""
    load, setting = Load("paper", alike(40, 100)), Setting(4, 64, "prefill_first")
    without, cached = (try_setting(setting, replace(MACHINE, prefix_caching=on), load) for on in (False, True))
    assert without.ttft_s == pytest.approx(np.full(32, 0.050))
    assert cached.ttft_s == pytest.approx(np.full(32, 0.018))


def test_what_can_be_attained_counts_what_may_be_cached():
    """Within 30 ms nobody reads 40 tokens, and everybody the 8 that are left."""
    machine = replace(MACHINE, ttft_s=0.03, mixed_cost="overlap")
    assert attainable(alike(10, 100), machine) == 0.0
    assert attainable(alike(10, 100), replace(machine, prefix_caching=True)) == 1.0


def test_blocks_stay_with_their_requests():
    given = alike(40, 100)
    first, second = halves(given)
    assert second.prefix_blocks.of(0).tolist() == given.prefix_blocks.of(20).tolist() == [1, 2, 30]
    assert len(first.prefix_blocks) == len(second.prefix_blocks) == 20
    assert Load("paper", given).at_rate(3.0).given.prefix_blocks is given.prefix_blocks


def test_the_flag():
    assert "--enable-prefix-caching" in VLLM_DEFAULT.vllm_command(replace(MACHINE, prefix_caching=True))
    assert "prefix" not in VLLM_DEFAULT.vllm_command(MACHINE)


def test_an_own_engine_shares_no_blocks():
    """Admissions that are not vLLM's have no prefix caching."""
    machine = replace(MACHINE, prefix_caching=True)
    for admission, shares in (("vllm", True), ("fits", False), ("watermark", False)):
        scenario = machine.scenario(Setting(4, 64, admission=admission), Load("paper", alike(10, 100)))
        assert scenario.kv_prefix_caching == shares


COMMON = ["--cost", "qwen3-8b-h200", "--ttft", "1s", "--tpot", "50ms", "--prefix-caching"]


@pytest.fixture
def lines(tmp_path):
    """Eighty requests of a Mooncake trace."""
    path = tmp_path / "mooncake.jsonl"
    rows = [
        {"timestamp": 1000 * i, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 100 + i]}
        for i in range(400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command(lines, tmp_path, capsys):
    out = tmp_path / "answer.json"
    assert main(["--trace", str(lines), *COMMON, "--kv-tokens", "100000", "--json", str(out)]) == 0
    assert "--enable-prefix-caching" in capsys.readouterr().out
    assert json.loads(out.read_text(encoding="utf-8"))["prefix_caching"] is True


def test_wrong_input(lines, tmp_path, capsys):
    assert main(["--trace", str(lines), *COMMON]) == 2
    assert "--prefix-caching without a KV budget: give --kv-tokens or --kv-gb." in capsys.readouterr().err
    path = tmp_path / "plain.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n", encoding="utf-8")
    assert main(["--trace", str(path), *COMMON, "--kv-tokens", "100000"]) == 2
    assert "does not say which prompts begin alike. Give a trace with hash_ids" in capsys.readouterr().err
