"""A stock vLLM, recorded: its iterations add up, a kill leaves them whole, and the simulator repeats them."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.engines.fitting import fit_recording
from llmsched_env.engines.recording import RecordingWarning, read_recording
from llmsched_env.engines.replay import replay
from llmsched_env.engines.trial import MODEL, TrialEngine, drawn_load
from llmsched_env.errors import ConfigError

FOUND = importlib.util.find_spec("vllm")  # this folder, where its parent is on the path

pytestmark = [
    pytest.mark.skipif(FOUND is None or FOUND.origin is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # its own
]

SIZES = ["prefill_requests", "prefill_tokens", "decode_requests", "context_tokens"]
LOAD = drawn_load(30, outputs=(2, 40))


@pytest.fixture(scope="module")
def engine():
    made = TrialEngine(max_num_seqs=8, token_budget=512)
    yield made
    made.close()


def check_sums(recording, load, budget):
    rows = recording.iterations
    assert recording.settings.token_budget == budget
    assert rows["prefill_tokens"].sum() == sum(load.prompts)
    assert rows["decode_requests"].sum() == sum(load.outputs) - len(load.outputs)
    assert (rows["prefill_tokens"] + rows["decode_requests"]).max() <= budget
    assert (rows["prefill_requests"] + rows["decode_requests"]).max() <= recording.settings.max_num_seqs
    assert recording.requests["prompt_tokens"].tolist() == list(load.prompts)
    assert recording.requests["output_tokens"].tolist() == list(load.outputs)
    # The cache of a request holds its prompt and all tokens but the last, before each of its decodes.
    prompts, decodes = (np.array(tokens, np.int64) for tokens in (load.prompts, load.outputs))
    decodes = decodes - 1
    assert rows["context_tokens"].sum() == (prompts * decodes + decodes * (decodes - 1) // 2).sum()


@pytest.mark.parametrize("budget", [64, 512])
def test_the_simulator_composes_the_same_iterations(engine, tmp_path, budget):
    engine.run(LOAD, tmp_path / "r", token_budget=budget)
    recording = read_recording(tmp_path / "r")
    check_sums(recording, LOAD, budget)
    simulated = replay(recording, fit_recording(recording).model)
    assert simulated.iterations[SIZES].tolist() == recording.iterations[SIZES].tolist()


def test_arrivals_and_a_used_folder(engine, tmp_path):
    load = drawn_load(20, rate_per_s=40.0, outputs=(2, 20), seed=1)
    engine.run(load, tmp_path / "r")
    recording = read_recording(tmp_path / "r")
    check_sums(recording, load, 512)
    came_s = (recording.requests["arrival_ns"] - recording.requests["arrival_ns"][0]) / 1e9
    np.testing.assert_allclose(came_s, load.arrivals_s, atol=0.02)
    with pytest.raises(Exception, match="holds a recording already"):
        engine.run(load, tmp_path / "r")


@pytest.fixture
def scheduler_of(tmp_path):
    """Makes a recorded scheduler, with no model beside it: (blocks, additional_config) -> it."""
    import torch
    from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from llmsched_env.engines.vllm_recorder import RecordingScheduler

    (tmp_path / "config.json").write_text(json.dumps(MODEL))

    def make(blocks, options):
        cache = CacheConfig(block_size=16, enable_prefix_caching=False)
        cache.num_gpu_blocks = blocks + 1
        config = VllmConfig(
            scheduler_config=SchedulerConfig(
                max_num_seqs=8, max_num_batched_tokens=128, max_model_len=2048, is_encoder_decoder=False,
                enable_chunked_prefill=True, async_scheduling=False,
            ),
            model_config=ModelConfig(model=str(tmp_path), skip_tokenizer_init=True, dtype="float32"),
            cache_config=cache,
            parallel_config=ParallelConfig(),
            additional_config=options,
        )  # fmt: skip
        spec = FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=64, dtype=torch.float32)
        pool = KVCacheConfig(blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        return RecordingScheduler(config, pool, StructuredOutputManager(config), block_size=16)

    return make


def test_a_scheduler_needs_a_folder(scheduler_of):
    with pytest.raises(ConfigError, match="give additional_config"):
        scheduler_of(9, {})


def test_preemption_is_recorded_and_repeated(scheduler_of, tmp_path):
    """Six requests of (15, 40) on nine blocks; also with vLLM 0.15, whose scheduler runs without its kernels."""
    from vllm import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    scheduler = scheduler_of(9, {"llmsched_recording": str(tmp_path / "r")})
    more = {"eos_token_id": None} if "eos_token_id" in inspect.signature(Request.__init__).parameters else {}
    for name in "012345":
        sampling = SamplingParams(max_tokens=40, ignore_eos=True)
        scheduler.add_request(Request(name, [1] * 15, sampling, None, arrival_time=time.time(), **more))
    while scheduler.requests:
        output = scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        requests = [scheduler.requests[name] for name in names]
        sampled = [[2] if each.num_computed_tokens >= each.num_tokens else [] for each in requests]
        index = {name: i for i, name in enumerate(names)}
        scheduler.update_from_output(output, ModelRunnerOutput(names, index, sampled_token_ids=sampled))
    recording = read_recording(tmp_path / "r")
    assert recording.settings.num_blocks == 9
    assert recording.requests["preemptions"].sum() > 0
    simulated = replay(recording, "llama-65b-paper")
    assert simulated.iterations[SIZES].tolist() == recording.iterations[SIZES].tolist()


DRIVEN = """
import sys
from pathlib import Path
from llmsched_env.engines.trial import TrialEngine, drawn_load
engine = TrialEngine(max_num_seqs=8, token_budget=512, driven=True)
load, folder = drawn_load(30, prompts=(16, 512), outputs=(2, 40)), Path(sys.argv[1])
engine.run(load, folder / "rule", options={"policy": "threshold", "parameters": [3]})
engine.run(load, folder / "mixing", options={"policy": "mixed_first", "mixed_tokens": 128, "mixed_counts_active": True})
engine.run(load, folder / "own", token_budget=64)
"""


def test_a_driven_engine_is_recorded(tmp_path):
    subprocess.run([sys.executable, "-c", DRIVEN, str(tmp_path)], check=True, timeout=110)
    load = drawn_load(30, prompts=(16, 512), outputs=(2, 40))  # a longer prompt than the budget is read in parts
    for name, decider, parameters, budget, mixes in (
        ("rule", "threshold", (3,), 512, False),
        ("mixing", "mixed_first", (), 128, True),
        ("own", "vLLM's own scheduler", (), 64, True),
    ):
        recording = read_recording(tmp_path / name)
        assert (recording.decided_by, recording.parameters) == (decider, parameters)
        assert (recording.settings.token_budget, recording.settings.mixes) == (budget, mixes)
        check_sums(recording, load, budget)
        simulated = replay(recording, "llama-65b-paper")
        assert simulated.iterations[SIZES].tolist() == recording.iterations[SIZES].tolist(), name


SERVING = """
import sys
from pathlib import Path
from llmsched_env.engines.trial import MODEL, TrialEngine, drawn_load
engine = TrialEngine(max_num_seqs=8, token_budget=256, asynchronous=sys.argv[2] == "async")
engine.run(drawn_load(int(sys.argv[3]), outputs=(2, 40)), Path(sys.argv[1]))
"""


def test_a_killed_engine_keeps_what_it_has(tmp_path):
    folder = tmp_path / "r"
    process = subprocess.Popen([sys.executable, "-c", SERVING, str(folder), "sync", "5000"], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 100
        while not (folder / "requests.csv").exists() or len((folder / "requests.csv").read_text().split()) < 40:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    with pytest.warns(RecordingWarning, match="belong to requests that are not in requests.csv"):
        recording = read_recording(folder)
    assert 30 < len(recording.requests) < 5000
    assert recording.iterations["decode_requests"].sum() > (recording.requests["output_tokens"] - 1).sum()


def test_asynchronous_scheduling_is_recorded(tmp_path):
    folder = tmp_path / "r"
    subprocess.run([sys.executable, "-c", SERVING, str(folder), "async", "20"], check=True, timeout=110)
    recording = read_recording(folder)
    check_sums(recording, drawn_load(20, outputs=(2, 40)), 256)


def test_the_durations_benchmark_runs(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "engine_durations.py"
    small = ["--repeats", "2", "--requests", "16"]
    ran = subprocess.run(
        [sys.executable, str(script), *small, "--csv", str(tmp_path / "d.csv")],
        check=True, timeout=110, capture_output=True, text=True,
    )  # fmt: skip
    assert "| threshold(8) | no | " in ran.stdout
    assert "Kendall's tau" in ran.stdout
    assert len((tmp_path / "d.csv").read_text().splitlines()) == 1 + 8 * 2 * 2
