"""A whole vLLM engine, which computes tokens with a model of random weights, found by its dotted path."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import os
import statistics
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm.config")

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import vllm_bare as bare
from vllm import LLM, SamplingParams
from vllm_playing import Playing, compare, drawn, options

PATH = "llmsched_env.engines.vllm.LLMSchedScheduler"


def llm(folder, told, **named):
    config = {**bare.TINY, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4,
              "num_key_value_heads": 4, "max_position_embeddings": 2048}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=512,
        max_model_len=2048,
        block_size=32,
        additional_config={"llmsched": told},
        **{"scheduler_cls": PATH, "async_scheduling": False, **named},
    )


def core_scheduler(engine):
    return engine.llm_engine.engine_core.engine_core.scheduler


def test_an_engine_does_what_the_simulator_does(tmp_path):
    """Batch and arrivals, each iteration, view and virtual time, with tokens that a model has computed."""
    engine = llm(tmp_path, options("lagrangian", [0.7]), enable_prefix_caching=False)
    serving = core_scheduler(engine)
    assert type(serving).__name__ == "LLMSchedScheduler"
    requests = drawn(2, 60, 2500, (5, 100), (1, 25))
    playing = Playing(serving)
    driver, added, computed = serving.session.driver, 0, {}
    playing.listen()
    while len(computed) < len(requests):
        while added < len(requests) and requests[added][0] <= driver.clock_ns:
            at_ns, prompt, output = requests[added]
            sampling = SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0)
            engine.llm_engine.add_request(
                str(added), {"prompt_token_ids": [1 + added % 90] * prompt}, sampling, arrival_time=at_ns / 1e9
            )
            added += 1
        if not serving.requests:
            driver.wait_until(requests[added][0])
            continue
        count = len(playing.clocks_ns)
        for result in engine.llm_engine.step():
            if result.finished:
                computed[int(result.request_id)] = list(result.outputs[0].token_ids)
        assert len(playing.clocks_ns) == count + 1
    assert [len(computed[i]) for i in range(len(requests))] == [output for _, _, output in requests]
    assert compare(playing, "lagrangian", [0.7], requests, served=False) > 200


def test_a_shadowed_engine_serves_and_notes(tmp_path):
    log = tmp_path / "log.csv"
    told = {"policy": "threshold", "parameters": [4], "shadow": True, "log": str(log)}
    engine = llm(tmp_path, told)
    sampling = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.0)
    prompts = [{"prompt_token_ids": [1 + i] * (20 + i)} for i in range(20)]
    texts = engine.generate(prompts, sampling, use_tqdm=False)
    assert [len(one.outputs[0].token_ids) for one in texts] == [12] * 20
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["engine_tokens"]) for row in rows) == sum(20 + i for i in range(20))
    assert all(float(row["engine_s"]) > 0 for row in rows), "a wall clock"


def overlap(engine):
    """Schedule each iteration while the last one runs, as vLLM does by default, but not on CPUs."""
    core = engine.llm_engine.engine_core.engine_core
    core.batch_queue_size, core.batch_queue, core.step_fn = 2, deque(maxlen=2), core.step_with_batch_queue
    thread, executor = ThreadPoolExecutor(1), core.model_executor
    for name in ("execute_model", "sample_tokens"):
        computes = functools.partial(thread.submit, getattr(executor, name))
        setattr(executor, name, lambda given, non_block=False, computes=computes: computes(given))


@pytest.mark.parametrize(
    ("policy", "shadow"),
    [(("threshold", [3]), False), (("mixed_first", []), False), (("threshold", [3]), True)],
    ids=["threshold", "mixing", "shadow"],
)
def test_an_engine_that_schedules_ahead_serves_everybody(tmp_path, policy, shadow):
    """Right lengths, and a log whose times are those of its own rows."""
    log = tmp_path / "log.csv"
    told = {"policy": policy[0], "parameters": policy[1], "shadow": shadow, "log": str(log)}
    if policy[0] == "mixed_first":
        told |= {"mixed_tokens": 256, "mixed_counts_active": True}
    engine = llm(tmp_path, told, scheduler_cls=PATH.replace("LLM", "AsyncLLM", 1), async_scheduling=True)
    overlap(engine)
    serving = core_scheduler(engine)
    assert type(serving).__name__ == "AsyncLLMSchedScheduler"
    requests = [(300 + 5 * i if i % 3 else 20 + i, 1 + 7 * i % 23) for i in range(40)]
    prompts = [{"prompt_token_ids": [1 + (i + 3 * j) % 90 for j in range(row[0])]} for i, row in enumerate(requests)]
    sampling = [SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0) for _, output in requests]
    texts = engine.generate(prompts, sampling, use_tqdm=False)
    assert [len(one.outputs[0].token_ids) for one in texts] == [output for _, output in requests]
    session = serving.session
    assert not session.lost
    assert not session.failed
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["engine_tokens"]) for row in rows) == sum(prompt for prompt, _ in requests)
    times = [(float(row["start_s"]), float(row["engine_s"])) for row in rows]
    assert all(later >= start + lasted - 1e-9 for (start, lasted), (later, _) in itertools.pairwise(times))
    long, short = (
        statistics.median(float(row["engine_s"]) for row in rows if (int(row["engine_tokens"]) > 200) == many)
        for many in (True, False)
    )
    assert long > 1.5 * short, "these are the times of other iterations"
    session.end(serving._now_ns())
    view = session.driver.look()
    assert (view.waiting, view.active, view.context_tokens, session.decoding) == (0, 0, 0, set())
