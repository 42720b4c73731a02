"""The policy `vllm_v1` under a KV budget against recordings of vLLM's v1 scheduler: row for row, in whole ns."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from playing import start_of, world
from strategies import Case

from llmsched_env.baselines.mixed import MIXED_SYSTEMS, mixed_first
from llmsched_env.engine import codes
from llmsched_env.simulator import Simulator

RECORDED = json.loads((Path(__file__).parent / "golden" / "vllm_v1_memory.json").read_text())


def started(recorded):
    """The policy, started, and the case."""
    capacity, cost = recorded["capacity"], RECORDED["cost_ns"]
    releases, prompts, outputs = zip(*recorded["requests"], strict=True)
    scenario = world(
        queue="shared",
        order="fcfs",
        num_clients=capacity["clients"],
        kv_budget_tokens=capacity["blocks"] * capacity["block_tokens"],
        kv_block_tokens=capacity["block_tokens"],
        kv_watermark=capacity["watermark"],
        kv_rule="vllm_v1",
        **{**MIXED_SYSTEMS["vllm_v1"], "mixed_tokens": capacity["mixed_tokens"]},
    )
    case = Case(
        prompts, outputs, capacity["clients"], releases_ns=releases, token_cap=2**31 - 1,
        alpha_prefill_ns=cost["alpha_p"], beta_prefill_ns=cost["beta_p"],
        alpha_decode_ns=cost["alpha_d"], beta_decode_ns=cost["beta_d"],
        kv_cache=scenario.kv_cache(), mixed=scenario.mixed_iterations(),
    )  # fmt: skip
    policy = mixed_first("vllm_v1")
    policy.reset(start_of(scenario))
    return policy, Simulator(case.problem(), record=True), prompts


def holders(simulator):
    """Numbers of the requests that run, and that of the one whose prefill is chunked with what was computed of it."""
    episode, number = simulator.episode, simulator.problem.request_of
    running = {int(number[at]) for at in np.asarray(episode.clients)[:, codes.RUNNING] if at >= 0}
    at = episode.chunked.position
    return running, ({int(number[at]): int(episode.chunked.computed)} if at >= 0 else {})


def rows_of(policy, simulator, prompts):
    """The episode in the words of the recording: start, end, who reads how much and who decodes, who was preempted."""
    rows = []
    while not simulator.done:
        action = int(policy.act(simulator.view)) if simulator.has_choice else int(simulator.can_prefill)
        before, start_ns = simulator.emitted, int(simulator.view.clock_ns)
        ran, was_read = holders(simulator)
        simulator.step(action)
        _, is_read = holders(simulator)
        emitted = simulator.emitted
        served = [i for i in range(len(prompts)) if emitted[i] > before[i]]
        reads = {i: prompts[i] + before[i] - was_read.get(i, 0) for i in served if i not in ran}
        reads |= {i: part - was_read.get(i, 0) for i, part in is_read.items() if part > was_read.get(i, 0)}
        gone = [i for i in ran if i not in served] + [i for i in was_read if i not in is_read and i not in served]
        end_ns = int(simulator.log["end_ns"][len(rows)])
        rows.append([start_ns, end_ns, reads, sorted(i for i in served if i in ran), sorted(gone)])
    return rows


def as_rows(iterations):
    """The recording's, in the same form."""
    for start_ns, end_ns, who, preempted in iterations:
        reads, _, decoding = who.partition("|")
        parts = dict(map(int, read.split(":")) for read in reads.split())
        yield [start_ns, end_ns, parts, sorted(map(int, decoding.split())), sorted(map(int, preempted.split()))]


@pytest.mark.parametrize("recorded", RECORDED["cases"], ids=lambda recorded: recorded["name"])
def test_the_policy_does_what_vllm_does(recorded):
    policy, simulator, prompts = started(recorded)
    rows = rows_of(policy, simulator, prompts)
    for i, (ours, theirs) in enumerate(zip_longest(rows, as_rows(recorded["iterations"]))):
        assert ours == theirs, f"iteration {i}"
    assert simulator.served["first_token_ns"].tolist() == recorded["first_token_ns"]
    assert simulator.served["completion_ns"].tolist() == recorded["completion_ns"]
    assert simulator.totals.preemptions == sum(len(row[3].split()) for row in recorded["iterations"])


def test_cases_preempt_while_they_mix():
    mixed = [row for recorded in RECORDED["cases"] for row in as_rows(recorded["iterations"]) if row[2] and row[3]]
    assert len(mixed) > 20
    assert all(recorded["capacity"]["mixed_tokens"] for recorded in RECORDED["cases"])
