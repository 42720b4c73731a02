"""vLLM's scheduler without a model: whoever is read to the end, or decodes, is told to have sampled a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
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
BLOCK = 16

init_none_hash(sha256)  # once: it draws what the first block's hash begins with


def write_model(folder: Path) -> str:
    """A model's config without weights."""
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder)


def scheduler(
    model: str,
    options: dict[str, Any] | None,
    *,
    seats: int = 8,
    tokens: int = 2048,
    blocks: int = 10_000,
    caching: bool = False,
    kind: type[Scheduler] | None = None,
    overlapping: bool = False,
    **scheduling: Any,
) -> Scheduler:
    """A scheduler with these options of ours; vLLM's own without any."""
    from llmsched_env.engines.vllm import LLMSchedScheduler

    named = {"async_scheduling": False, "enable_chunked_prefill": True, "max_model_len": 8192, **scheduling}
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=caching)
    cache.num_gpu_blocks = blocks + 1
    config = VllmConfig(
        scheduler_config=SchedulerConfig(
            max_num_seqs=seats, max_num_batched_tokens=tokens, is_encoder_decoder=False, **named
        ),
        model_config=ModelConfig(model=model, skip_tokenizer_init=True, dtype="float32"),
        cache_config=cache,
        parallel_config=ParallelConfig(),
        additional_config={} if options is None else {"llmsched": options},
    )
    config.scheduler_config.async_scheduling = overlapping  # which vLLM switches off on a CPU
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    pool = KVCacheConfig(blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    kind = kind or (Scheduler if options is None else LLMSchedScheduler)
    return kind(config, pool, StructuredOutputManager(config), block_size=BLOCK)


def request(name: str, at_ns: int, prompt: int, output: int) -> Request:
    """A request that ends at its limit, and came at a time of the virtual clock; all prompts begin alike."""
    sampling = SamplingParams(max_tokens=output, ignore_eos=True)
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request(name, [1] * prompt, sampling, None, arrival_time=at_ns / 1e9, block_hasher=hasher)


def sampling(serving: Scheduler, output: Any) -> list[bool]:
    """Whether each request of an iteration, which has just been scheduled, will have a token of it."""
    there = [serving.requests[name] for name in output.num_scheduled_tokens]
    return [one.num_computed_tokens >= one.num_tokens for one in there]


def answer(serving: Scheduler, output: Any, done: list[bool] | None = None) -> dict[str, int]:
    """Let an iteration end; tokens of each request that had one."""
    names = list(output.num_scheduled_tokens)
    if done is None:
        there = [serving.requests.get(name) for name in names]
        done = [one is not None and one.num_computed_tokens >= one.num_tokens for one in there]
    sampled = [[2] if yes else [] for yes in done]
    index = {name: i for i, name in enumerate(names)}
    serving.update_from_output(output, ModelRunnerOutput(names, index, sampled_token_ids=sampled))
    return {name: len(tokens) for name, tokens in zip(names, sampled, strict=True)}
