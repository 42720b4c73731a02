"""Where each policy is from, and what does the same in a serving engine: for the page of policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ORIGINS", "OURS", "Origin"]

OURS = "ours"
"""In place of a source: a rule of nobody else, or numbers that training cases chose."""


class Origin(NamedTuple):
    """Of a policy.

    Attributes:
        source: paper, system or pull request, in a few words; the docstring has it in full.
        engine: setting of a serving engine that does the same, or nearly; empty where none is known.
    """

    source: str
    engine: str = ""


_PAPER = "arXiv 2502.15763"
_EXCLUSIVE = "arXiv 2606.00516"
_VLLM_V0 = "vLLM V0 (arXiv 2309.06180)"

ORIGINS: Mapping[str, Origin] = {
    "baseline": Origin(_VLLM_V0, "vLLM before 0.8, as it is"),
    "baseline_lagrangian": Origin(_PAPER),
    "offline": Origin(_PAPER),
    "offline_sorted": Origin(_PAPER),
    "hybrid": Origin(_PAPER),
    "hybrid_lpt": Origin(f"after {_PAPER}"),
    "shared_lpt_prefill_first": Origin(f"after {_PAPER}"),
    "shared_lpt_lagrangian": Origin(f"after {_PAPER}"),
    "joint": Origin(OURS),
    "prefill_first": Origin(_VLLM_V0, "vLLM before 0.8, SGLang: the default, prompts in parts aside"),
    "decode_first": Origin(OURS),
    "static_batching": Origin("FasterTransformer, by Orca (OSDI 2022)", "Vidur: scheduler `faster_transformer`"),
    "threshold": Origin(_EXCLUSIVE),
    "eb_threshold": Origin(_EXCLUSIVE, "eb-vllm: `_compute_optimal_ratio`"),
    "eb_threshold_finite": Origin(_EXCLUSIVE, "eb-vllm: `_compute_optimal_k`"),
    "max_wait": Origin("after LightLLM", "LightLLM: `router_max_wait_tokens`, nearly"),
    "lightllm": Origin("LightLLM", "LightLLM: `router_max_wait_tokens`"),
    "tgi": Origin("Text Generation Inference", "TGI: `--waiting-served-ratio`, `--max-waiting-tokens`, nearly"),
    "delay_factor": Origin("vLLM pull request 3279", "vLLM 0.4 to 0.10, V0: `--scheduler-delay-factor`, nearly"),
    "cadence": Origin("vLLM pull request 56848", "its `--decode-priority-cadence`, not merged"),
    "interleave": Origin("vllm-tt-plugin pull request 119", "vllm-tt-plugin: `TTDecodeInterleavePolicy`, nearly"),
    "lagrangian": Origin(_PAPER),
    "lagrangian_lookahead": Origin(_PAPER),
    "lagrangian_literal": Origin(_PAPER),
    "lagrangian_instant": Origin(_PAPER),
    "tuned_threshold": Origin(OURS, "as `threshold`"),
    "lagrangian_tuned": Origin(OURS, "as `lagrangian`"),
    "max_wait_tuned": Origin(OURS, "as `max_wait`"),
    "interleave_tuned": Origin(OURS, "as `interleave`"),
    "random": Origin(OURS),
    "always_worst": Origin(OURS),
    "rollout": Origin("Bertsekas: rollout of a base policy"),
    "beam": Origin(OURS),
    "beam_1": Origin(OURS),
    "min_batch": Origin(OURS),
    "deadline": Origin(OURS),
    "min_batch_tuned": Origin(OURS, "as `min_batch`"),
    "tgi_tuned": Origin(OURS, "as `tgi`"),
    "deadline_tuned": Origin(OURS, "as `deadline`"),
    "wait": Origin("WAIT, arXiv 2504.11320", "vidur_or: WAIT, nearly"),
    "slai": Origin("SLAI, arXiv 2508.01002", "agrimUT/SLAI: `SLAIScheduler`, nearly"),
    "lookahead": Origin(OURS),
    "memory_aware": Origin("arXiv 2503.05248"),
    "mc_sf": Origin("MC-SF, arXiv 2502.07115"),
    "svf": Origin("SVF, arXiv 2606.22327"),
    "svf_1bit": Origin("SVF, arXiv 2606.22327"),
    "sorted_f": Origin("Sorted-F, arXiv 2508.06133"),
    "a_max": Origin("A_max, arXiv 2508.14544"),
    "a_min": Origin("A_min, arXiv 2508.14544"),
    "aged_sf": Origin("after EWSJF, arXiv 2601.21758"),
    "mixed_first": Origin(OURS, "vLLM V1: `--max-num-batched-tokens` as `mixed_tokens`"),
    "mixed_tuned": Origin(OURS),
    "orca": Origin("Orca (OSDI 2022)", "Vidur: scheduler `orca`"),
    "sarathi_serve": Origin(
        "Sarathi-Serve (OSDI 2024)", "Vidur: scheduler `sarathi`; vLLM V1: `--max-num-batched-tokens 512`"
    ),
    "vllm_v1": Origin("vLLM v1", "vLLM V1: the default, with `--max-num-batched-tokens 2048`"),
    "eb_plus": Origin(_EXCLUSIVE, "eb-vllm: EB+"),
    "fairbatching": Origin("FairBatching, arXiv 2510.14392"),
    "agent": Origin(OURS, '`LLMSchedScheduler` with `"policy": "agent"`'),
}
"""By name, every policy of the registry."""
