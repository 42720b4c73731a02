"""vLLM's V0 scheduler and block manager: ``python benchmarks/systems/vllm_v0.py FOLDER``.

FOLDER holds an unpacked wheel of vLLM with V0 in it (``pip download --no-deps vllm==0.6.6.post1``, then unzip). Only
its scheduler, its block manager and its sequences run, in front of stand-ins for the rest of vLLM, so that neither a
model nor a GPU is needed; of other packages only msgspec.
"""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import memory_cases
from driving import Case, Step, drawn, play, write


class _Any:
    """Stands for a class that is only named in annotations."""

    def __init__(self, *args: Any, **named: Any) -> None: ...


class _Device(enum.Enum):
    GPU = enum.auto()
    CPU = enum.auto()


class _ObjectCache:
    """vllm.utils.PyObjectCache without the re-use."""

    def __init__(self, build: Any) -> None:
        self._build = build

    def get_object(self) -> Any:
        return self._build()

    def reset(self) -> None: ...


class _Inputs:
    """vllm.inputs.SingletonInputsAdapter for token ids."""

    def __init__(self, inputs: Any) -> None:
        self.prompt_token_ids = inputs["prompt_token_ids"]
        self.prompt = None
        self.multi_modal_data: Any = {}


def _stand_in(folder: Path) -> None:
    def module(name: str, **members: Any) -> None:
        made = types.ModuleType(name)
        made.__dict__.update(members)
        made.__getattr__ = lambda attribute: _Any  # type: ignore[method-assign]
        sys.modules[name] = made

    for package in ("vllm", "vllm.core", "vllm.core.block"):
        module(package)
        sys.modules[package].__path__ = [str(folder / package.replace(".", "/"))]
    if "torch" not in sys.modules:
        module("torch", Tensor=_Any)
    for name in ("config", "multimodal", "pooling_params", "sampling_params", "platforms"):
        module(f"vllm.{name}")
    module("vllm.inputs", SingletonInputsAdapter=_Inputs, SingletonInputs=_Any)
    for name in ("lora", "prompt_adapter"):
        module(f"vllm.{name}")
        module(f"vllm.{name}.request")
    silent = SimpleNamespace(**{level: lambda *args, **named: None for level in ("debug", "info", "warning")})
    module("vllm.logger", init_logger=lambda name: silent)
    sys.modules["vllm.platforms"].current_platform = SimpleNamespace(is_hpu=lambda: False)  # type: ignore[attr-defined]
    module(
        "vllm.utils",
        Device=_Device,
        PyObjectCache=_ObjectCache,
        cdiv=lambda a, b: -(-a // b),
        chunk_list=lambda found, size: (found[i : i + size] for i in range(0, len(found), size)),
        array_full=None,
        STR_NOT_IMPL_ENC_DEC_PREFIX_CACHE="",
        STR_NOT_IMPL_ENC_DEC_SWA="",
    )


class VllmV0:
    """``Scheduler._schedule_default`` with recompute, and no asynchronous output processing."""

    def __init__(self, capacity: dict[str, Any]) -> None:
        from vllm.core.scheduler import Scheduler
        from vllm.sequence import SequenceStatus

        self._statuses = SequenceStatus
        self._block = capacity.get("block_tokens", 16)
        blocks = capacity.get("blocks") or 100_000
        config = SimpleNamespace(
            runner_type="generate",
            preemption_mode="recompute",
            max_num_batched_tokens=capacity["token_cap"],
            max_num_seqs=capacity["clients"],
            max_model_len=100_000,
            policy="fcfs",
            chunked_prefill_enabled=False,
            delay_factor=capacity.get("delay_factor", 0.0),
            is_multi_step=False,
            num_scheduler_steps=1,
            num_lookahead_slots=0,
            send_delta_data=False,
        )
        cache = SimpleNamespace(
            block_size=self._block,
            num_gpu_blocks=blocks,
            num_cpu_blocks=0,
            is_attention_free=False,
            sliding_window=None,
            enable_prefix_caching=False,
        )
        self._scheduler = Scheduler(config, cache, None)
        manager = self._scheduler.block_manager
        manager.watermark_blocks = int(capacity.get("watermark", 0.0) * blocks)  # as its constructor does
        self._groups: dict[int, Any] = {}
        self._chunks: dict[int, int] = {}
        self._preemptions: list[int] = []
        preempt = self._scheduler._preempt

        def noting(group: Any, *args: Any) -> Any:
            self._preemptions.append(int(group.request_id))
            return preempt(group, *args)

        self._scheduler._preempt = noting

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived."""
        from vllm.sequence import Sequence as Tokens
        from vllm.sequence import SequenceGroup

        tokens = Tokens(number, {"prompt_token_ids": [1] * prompt}, self._block)
        sampling = SimpleNamespace(n=1, best_of=1, use_beam_search=False)
        self._groups[number] = SequenceGroup(str(number), [tokens], float(number), sampling_params=sampling)
        self._scheduler.add_seq_group(self._groups[number])

    def next(self) -> Step:
        """Ask for the next iteration."""
        self._preemptions.clear()
        outputs = self._scheduler._schedule()
        assert not outputs.ignored_seq_groups, "a request was refused: it needs more than there is"
        step = Step(preempted=list(self._preemptions))
        for i, scheduled in enumerate(outputs.scheduled_seq_groups):
            number = int(scheduled.seq_group.request_id)
            self._chunks[number] = scheduled.token_chunk_size
            if i < outputs.num_prefill_groups:
                step.reads.append((number, scheduled.token_chunk_size))
            else:
                step.decodes.append(number)
        return step

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over."""
        for number in emitted:
            group = self._groups[number]
            group.update_num_computed_tokens(self._chunks[number])
            group.first_seq.data.append_token_id(1, 0.0)
            if number in finished:
                group.first_seq.status = self._statuses.FINISHED_LENGTH_CAPPED
        self._scheduler.free_finished_seq_groups()


def main() -> None:
    """Write the golden files."""
    folder = Path(sys.argv[1]).resolve()
    _stand_in(folder)
    version = next(folder.glob("vllm-*.dist-info")).name.removesuffix(".dist-info").removeprefix("vllm-")
    said = {"system": "vLLM V0 (vllm/core/scheduler.py, block_manager.py)", "version": version}
    said["made_by"] = "benchmarks/systems/vllm_v0.py, which runs these files"
    write("vllm_v0_memory", cases=[play(VllmV0(c.capacity), c) for c in memory_cases.cases(watermarks=True)], **said)
    plenty = [
        Case("together", ((0, 7, 5), (0, 9, 3), (0, 12, 1), (0, 4, 8)), {"clients": 2, "token_cap": 2048}),
        Case("the cap closes prefills", drawn(11, 12, (5, 40), (1, 12), 0), {"clients": 6, "token_cap": 64}),
        Case("arrivals", drawn(12, 30, (1, 40), (1, 30), 400), {"clients": 6, "token_cap": 2048}),
        Case(
            "arrivals, the cap closes prefills", drawn(13, 30, (5, 40), (1, 30), 150), {"clients": 8, "token_cap": 64}
        ),
        Case("arrivals, often idle", drawn(14, 10, (1, 40), (1, 10), 3000), {"clients": 3, "token_cap": 2048}),
    ]
    write("vllm_v0", cases=[play(VllmV0(case.capacity), case) for case in plenty], **said)


if __name__ == "__main__":
    main()
