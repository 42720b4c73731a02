"""Recorded schedules of vLLM's two schedulers, with all the memory they want and with little, against the simulator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.config import KVCache, Mixed
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.rule import PythonRule
from llmsched_env.problem import Problem
from llmsched_env.workload import Requests

GOLDEN = Path(__file__).parents[1] / "baselines" / "golden"
RULES = {"vllm_v0": None, "vllm_v1": None, "vllm_v0_memory": "vllm_v0", "vllm_v1_memory": "vllm_v1"}
NO_CAP = 2**31 - 1
CASES = [
    pytest.param(name, case, id=f"{name} {case['name']}")
    for name in RULES
    for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
]


def problem_of(name: str, case: dict) -> Problem:
    released, prompts, outputs = (list(column) for column in zip(*case["requests"], strict=True))
    requests, capacity = Requests.of(prompts, outputs, release_ns=released), case["capacity"]
    cost = CostModel("recorded", 100, 10, 50, 1, 0, capacity.get("token_cap", NO_CAP))
    cache, mixed = None, None
    if RULES[name] is not None:
        # V1's pool counts a block that it never gives out.
        marked = int(capacity["watermark"] * (capacity["blocks"] + (name == "vllm_v1_memory")))
        block = capacity["block_tokens"]
        cache = KVCache(capacity["blocks"] * block, block, marked * block, rule=RULES[name])
    if name.startswith("vllm_v1"):
        mixed = Mixed(capacity["mixed_tokens"], True, False, MixedCost(False, 100, 10, 1))
    return Problem.build(
        requests,
        np.array(outputs, np.int32),
        cost,
        capacity["clients"],
        client_of=None,
        order="fcfs",
        stealing=False,
        bound_ns=1,
        mechanisms=[one for one in (cache, mixed) if one is not None],
    )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_it_schedules_as_vllm_did(name, case):
    made = problem_of(name, case)
    episode = made.episode(record=True)
    episode.run(PythonRule(lambda view: 2 if name.startswith("vllm_v1") else 1))  # mixed, or prefill first
    completed = np.asarray(episode.recorder.served)[np.argsort(made.request_of), 3]
    assert completed.tolist() == case["completion_ns"]
    assert episode.totals.preemptions == sum(len(row[3].split()) for row in case["iterations"])
