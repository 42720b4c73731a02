"""Our policies against recordings of the systems that they are named after, iteration for iteration, in whole ns."""

from __future__ import annotations

import json
from itertools import zip_longest
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from playing import start_of, world
from strategies import Case

from llmsched_env.baselines import iteration
from llmsched_env.baselines.mixed import MIXED_SYSTEMS, mixed_first
from llmsched_env.engine import codes
from llmsched_env.simulator import Simulator

GOLDEN = Path(__file__).parent / "golden"
RECORDED = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}
NO_CAP = 2**31 - 1

PLAYED = {
    "vllm_v0": lambda capacity: iteration.prefill_first(),
    "vidur_vllm": lambda capacity: iteration.prefill_first(),
    "vidur_faster_transformer": lambda capacity: iteration.static_batching(),
    "lightllm": lambda capacity: iteration.lightllm(capacity["max_wait_tokens"]),
    "vidur_orca": lambda capacity: mixed_first("orca"),
    "vidur_sarathi": lambda capacity: mixed_first("sarathi_serve"),
    "vllm_v1": lambda capacity: mixed_first("vllm_v1"),
    "blis": lambda capacity: mixed_first("vllm_v1"),
}
"""Who is compared with a recording."""

PLAYED_IN_MEMORY = {"vllm_v0_memory": "vllm_v0"}
"""Rules of memory that are, under `prefill_first`."""

PLAYED_ELSEWHERE = {"vllm_v1_memory"}
"""In test_vllm_v1_memory.py: preemption beside mixed iterations."""


def each(names):
    return [
        pytest.param(name, case, id=f"{name}: {case['name']}") for name in names for case in RECORDED[name]["cases"]
    ]


def policy_and_case(name, recorded):
    """The policy, started, and the case as the engine reads it."""
    capacity, cost = recorded["capacity"], RECORDED[name]["cost_ns"]
    policy = PLAYED[name](capacity)
    releases, prompts, outputs = zip(*recorded["requests"], strict=True)
    scenario = world(queue="shared", order="fcfs", num_clients=capacity["clients"])
    if policy.name in MIXED_SYSTEMS:
        composed = {**MIXED_SYSTEMS[policy.name], "mixed_tokens": capacity.get("mixed_tokens", NO_CAP)}
        scenario = scenario.replace(**composed)
    case = Case(
        prompts,
        outputs,
        capacity["clients"],
        releases_ns=releases,
        token_cap=capacity.get("token_cap", NO_CAP),
        alpha_prefill_ns=cost["alpha_p"],
        beta_prefill_ns=cost["beta_p"],
        alpha_decode_ns=cost["alpha_d"],
        beta_decode_ns=cost["beta_d"],
        mixed=scenario.mixed_iterations(),
    )
    return policy, case, start_of(scenario)


def rows_of(policy, simulator, prompts):
    """The episode in the words of a recording."""
    rows, unread = [], list(prompts)
    while not simulator.done:
        action = int(policy.act(simulator.view)) if simulator.has_choice else int(simulator.can_prefill)
        tokens = (0, simulator.view.batch_tokens, simulator.view.chunk_tokens)[action]
        before, start_ns = simulator.emitted, int(simulator.view.clock_ns)
        simulator.step(action)
        gained = simulator.emitted - before
        decodes = [i for i in range(len(prompts)) if before[i] > 0 and gained[i] > 0]
        reads = []
        for i in range(len(prompts)):
            part = min(unread[i], tokens)
            unread[i] -= part
            tokens -= part
            if part > 0:
                reads.append(f"{i}:{part}")
                assert (gained[i] == 1) == (unread[i] == 0), "a first token comes when its prompt has been read"
        end_ns = int(simulator.log["end_ns"][len(rows)])
        rows.append([start_ns, end_ns, f"{' '.join(reads)} | {' '.join(map(str, decodes))}".strip()])
    return rows


def first_difference(ours, theirs):
    for i, (a, b) in enumerate(zip_longest(ours, theirs)):
        if a != b:
            return f"iteration {i}: ours {a}, theirs {b}; before it {theirs[max(0, i - 2) : i]}"
    return None


@pytest.mark.parametrize(("name", "recorded"), each(PLAYED))
def test_a_policy_does_what_its_system_does(name, recorded):
    policy, case, start = policy_and_case(name, recorded)
    simulator = Simulator(case.problem(), record=True)
    policy.reset(start)
    rows = rows_of(policy, simulator, case.prompts)
    assert not first_difference(rows, [row[:3] for row in recorded["iterations"]])
    assert simulator.served["first_token_ns"].tolist() == recorded["first_token_ns"]
    assert simulator.served["completion_ns"].tolist() == recorded["completion_ns"]
    assert simulator.totals.invalid_actions == 0
    ran = Simulator(case.problem(), record=True)
    ran.run(policy.compiled(start))
    assert ran.log.tobytes() == simulator.log.tobytes()


def running_requests(simulator):
    positions = np.asarray(simulator.episode.clients)[:, codes.RUNNING]
    return {int(simulator.problem.request_of[position]) for position in positions if position >= 0}


@pytest.mark.parametrize(("name", "recorded"), each(PLAYED_IN_MEMORY))
def test_a_rule_of_memory_does_what_its_system_does(name, recorded):
    """Row for row, with who loses its cache, in which order: the last to start first."""
    capacity, cost = recorded["capacity"], RECORDED[name]["cost_ns"]
    releases, prompts, outputs = zip(*recorded["requests"], strict=True)
    where = {"num_clients": capacity["clients"], "kv_budget_tokens": capacity["blocks"] * capacity["block_tokens"]}
    scenario = world(
        queue="shared",
        order="fcfs",
        kv_block_tokens=capacity["block_tokens"],
        kv_watermark=capacity["watermark"],
        kv_rule=PLAYED_IN_MEMORY[name],
        **where,
    )
    case = Case(
        prompts, outputs, capacity["clients"], releases_ns=releases, token_cap=capacity.get("token_cap", NO_CAP),
        alpha_prefill_ns=cost["alpha_p"], beta_prefill_ns=cost["beta_p"],
        alpha_decode_ns=cost["alpha_d"], beta_decode_ns=cost["beta_d"], kv_cache=scenario.kv_cache(),
    )  # fmt: skip
    simulator = Simulator(case.problem(), record=True)
    rows, had_tokens = [], set()
    while not simulator.done:
        action, before = int(simulator.can_prefill), simulator.emitted
        start_ns, held = int(simulator.view.clock_ns), running_requests(simulator)
        simulator.step(action)
        served = {i for i in range(len(prompts)) if simulator.emitted[i] > before[i]}
        reads = " ".join(f"{i}:{prompts[i] + before[i]}" for i in sorted(served)) if action else ""
        decodes = "" if action else " ".join(map(str, sorted(served)))
        gone = [*sorted(had_tokens - held, reverse=True), *sorted(set() if action else held - served, reverse=True)]
        end_ns = int(simulator.log["end_ns"][len(rows)])
        rows.append([start_ns, end_ns, f"{reads} | {decodes}".strip(), " ".join(map(str, gone))])
        had_tokens = {i for i in (held - set(gone)) | served if simulator.emitted[i] < outputs[i]}
    assert not first_difference(rows, recorded["iterations"])
    assert simulator.served["first_token_ns"].tolist() == recorded["first_token_ns"]
    assert simulator.served["completion_ns"].tolist() == recorded["completion_ns"]
    assert simulator.totals.preemptions == sum(len(row[3].split()) for row in recorded["iterations"]) > 0


def test_every_recording_is_compared():
    assert set(RECORDED) == {*PLAYED, *PLAYED_IN_MEMORY, *PLAYED_ELSEWHERE}
    assert RECORDED["vllm_v0_memory"]["cases"][0]["capacity"]["blocks"] == 9, "the case of docs/memory.md"


def test_recordings_have_what_tells_the_rules_apart():
    """Each system's cases are told from those of the rules next to it."""
    for name, other in (
        ("vidur_faster_transformer", iteration.prefill_first),
        ("vllm_v0", iteration.static_batching),
        ("lightllm", iteration.max_wait),
        ("lightllm", iteration.prefill_first),
    ):
        different = 0
        for recorded in RECORDED[name]["cases"]:
            _, case, start = policy_and_case(name, recorded)
            policy = other()
            policy.reset(start)
            rows = rows_of(policy, Simulator(case.problem(), record=True), case.prompts)
            different += rows != [row[:3] for row in recorded["iterations"]]
        assert different >= 2, (name, other)


@pytest.mark.parametrize(("name", "recorded"), each(RECORDED))
def test_a_recording_adds_up(name, recorded):
    """Clock, clients, tokens and blocks: whatever the system, nothing comes from nowhere."""
    cost, capacity = RECORDED[name]["cost_ns"], recorded["capacity"]
    requests = recorded["requests"]
    assert [release for release, _, _ in requests] == sorted(release for release, _, _ in requests)
    emitted, unread = [0] * len(requests), [prompt for _, prompt, _ in requests]
    held, block, clock = [0] * len(requests), capacity.get("block_tokens", 1), 0
    first, last = {}, {}
    for start_ns, end_ns, who, preempted in recorded["iterations"]:
        assert start_ns >= clock
        assert start_ns == clock or start_ns in {release for release, _, _ in requests}
        clock = end_ns
        for i in map(int, preempted.split()):
            held[i], unread[i] = 0, requests[i][1] + emitted[i]
        reads, _, decoding = who.partition("|")
        decodes, emits, tokens = list(map(int, decoding.split())), [], 0
        for i, part in (map(int, read.split(":")) for read in reads.split()):
            assert requests[i][0] <= start_ns
            unread[i] -= part
            held[i] += part
            tokens += part
            assert unread[i] >= 0
            emits += [i] * (unread[i] == 0)
        for i in decodes:
            assert unread[i] == 0
            held[i] += 1
        active = cost["beta_d"] * len(decodes)
        fixed = cost["alpha_p"] + cost["beta_p"] * tokens if tokens else cost["alpha_d"]
        assert end_ns - start_ns == fixed + active
        assert sum(h > 0 for h in held) <= capacity["clients"]
        if "blocks" in capacity:
            assert sum(ceil(h / block) for h in held) <= capacity["blocks"]
        for i in emits + decodes:
            emitted[i] += 1
            first.setdefault(i, end_ns)
            if emitted[i] == requests[i][2]:
                held[i], last[i] = 0, end_ns
    assert emitted == [output for _, _, output in requests]
    assert [first[i] for i in range(len(requests))] == recorded["first_token_ns"]
    assert [last[i] for i in range(len(requests))] == recorded["completion_ns"]


def test_v0_thrashes_and_v1_does_not():
    """V0 preempts 16 times where V1 does once: three requests of (15, 40) on nine blocks."""

    def preemptions(name):
        case = RECORDED[name]["cases"][0]
        assert case["requests"] == [[0, 15, 40]] * 3
        assert case["capacity"]["blocks"] == 9
        return len(case["iterations"]), sum(len(row[3].split()) for row in case["iterations"])

    assert preemptions("vllm_v0_memory") == (61, 16)
    assert preemptions("vllm_v1_memory") == (46, 1)
