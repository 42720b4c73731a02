"""Vidur's schedulers of replicas: ``python benchmarks/systems/vidur.py FOLDER``, where FOLDER/vidur is its package.

Its schedulers, requests and batches run (github.com/microsoft/vidur), in front of stand-ins for its configuration, its
memory planner and its predictor of times.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import memory_cases
from driving import GOLDEN, Case, Step, drawn, exclusive_ns, mixed_ns, play, write

COMMITS = {
    "vllm": "01f216fe8559",
    "sarathi": "01f216fe8559",
    "orca": "82f0840df626",
    "faster_transformer": "82f0840df626",
}
"""Of the version of each scheduler that was run; base_replica_scheduler.py is that of 01f216fe8559, request.py and
batch.py those of 82f0840df626."""

CLASSES = {
    "vllm": "VLLMReplicaScheduler",
    "sarathi": "SarathiReplicaScheduler",
    "orca": "OrcaReplicaScheduler",
    "faster_transformer": "FasterTransformerReplicaScheduler",
}


class _Planner:
    def __init__(self, *args: Any) -> None: ...

    def get_max_batch_size(self) -> int:
        return 2**31


class _Any:
    def __init__(self, *args: Any) -> None: ...


def _stand_in(folder: Path) -> None:
    def module(name: str, **members: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(members)

    for name in ("", ".entities", ".scheduler", ".scheduler.replica_scheduler", ".scheduler.utils"):
        module(f"vidur{name}")
        sys.modules[f"vidur{name}"].__path__ = [str(folder / f"vidur{name}".replace(".", "/"))]
    silent = SimpleNamespace(debug=lambda *args: None)
    module("vidur.logger", init_logger=lambda name: silent)
    module("vidur.config", SimulationConfig=_Any)
    module("vidur.execution_time_predictor", BaseExecutionTimePredictor=_Any)
    module("vidur.scheduler.replica_stage_scheduler", ReplicaStageScheduler=_Any)
    module("vidur.scheduler.utils.memory_planner", MemoryPlanner=_Planner)
    entities = sys.modules["vidur.entities"]
    entities.Replica = _Any  # type: ignore[attr-defined]
    entities.Request = importlib.import_module("vidur.entities.request").Request  # type: ignore[attr-defined]
    entities.Batch = importlib.import_module("vidur.entities.batch").Batch  # type: ignore[attr-defined]


class Vidur:
    """One of its schedulers on one replica of one stage."""

    def __init__(self, kind: str, capacity: dict[str, Any]) -> None:
        settings = SimpleNamespace(
            block_size=capacity.get("block_tokens", 16),
            num_blocks=capacity.get("blocks") or 10**9,
            batch_size_cap=capacity["clients"],
            watermark_blocks_fraction=capacity.get("watermark", 0.0),
            max_tokens_in_batch=capacity.get("token_cap"),
            chunk_size=capacity.get("mixed_tokens"),
        )
        config = SimpleNamespace(
            cluster_config=SimpleNamespace(replica_scheduler_config=settings),
            request_generator_config=SimpleNamespace(max_tokens=4096),
        )
        module = importlib.import_module(f"vidur.scheduler.replica_scheduler.{kind}_replica_scheduler")
        self._scheduler = getattr(module, CLASSES[kind])(config, SimpleNamespace(id=0), 1, None)
        self._numbers: dict[int, int] = {}
        self._batch: Any = None
        self._clock = 0

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived. Its place in the order stands for the time: equal times are equal to Vidur's sort."""
        made = sys.modules["vidur.entities"].Request(float(number), prompt, output)
        self._numbers[made.id] = number
        self._scheduler.add_request(made)

    def next(self) -> Step:
        """Ask for the next iteration."""
        before = {request.id: request._num_restarts for request in self._running()}
        found = self._scheduler.on_schedule()
        waiting = {request.id: request for request in self._scheduler._request_queue}
        lost = [name for name, count in before.items() if name in waiting and waiting[name]._num_restarts > count]
        step = Step(preempted=sorted((self._numbers[name] for name in lost), reverse=True))
        if not found:
            return step
        self._batch = found[0]
        for request, tokens in zip(self._batch.requests, self._batch.num_tokens, strict=True):
            if request.is_prefill_complete:
                step.decodes.append(self._numbers[request.id])
            else:
                step.reads.append((self._numbers[request.id], tokens))
        return step

    def _running(self) -> list[Any]:
        return getattr(self._scheduler, "_preempted_requests", [])

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over."""
        self._clock += 1
        self._batch.on_schedule(self._clock)
        self._batch.on_batch_end(self._clock)
        self._scheduler.on_batch_end(self._batch)
        done = [self._numbers[request.id] for request in self._batch.requests if request.completed]
        assert set(finished) <= set(done)


def main() -> None:
    """Write the golden files."""
    _stand_in(Path(sys.argv[1]).resolve())
    together = ((0, 7, 5), (0, 9, 3), (0, 12, 2), (0, 4, 8), (0, 30, 1), (0, 8, 6))
    arrivals = drawn(31, 30, (1, 60), (2, 30), 500)
    rare = drawn(32, 10, (1, 40), (2, 10), 4000)

    def under(**capacity: Any) -> list[Case]:
        named = {"together": together, "arrivals": arrivals, "arrivals, often idle": rare}
        return [Case(name, requests, {"clients": 4, **capacity}) for name, requests in named.items()]

    late = Case("the second arrives while the first is read", ((0, 10, 100), (100, 10, 5)), {"clients": 4})
    sets = {
        # Its vLLM pads each prompt to the longest one of the batch for the cap, so this cap never closes a batch.
        "vllm": (exclusive_ns, under(token_cap=10**9)),
        "orca": (mixed_ns, under()),
        "sarathi": (mixed_ns, [*under(mixed_tokens=48), *under(mixed_tokens=512)]),
        "faster_transformer": (exclusive_ns, [late, *under()]),
    }

    def record(name: str, kind: str, duration: Any, cases: list[Case]) -> None:
        said = {"system": f"Vidur ({kind}_replica_scheduler.py)", "version": f"commit {COMMITS[kind]}"}
        said["made_by"] = "benchmarks/systems/vidur.py, which runs its files"
        write(name, cases=map(partial(_played, kind, duration), cases), **said)

    for kind, (duration, cases) in sets.items():
        record(f"vidur_{kind}", kind, duration, cases)
    _compare_with_vllm()


def _compare_with_vllm() -> None:
    """Where memory is short, its vLLM does what vLLM does: ``vllm_v0_memory.json`` stands for both."""
    recorded = {case["name"]: case for case in json.loads((GOLDEN / "vllm_v0_memory.json").read_text())["cases"]}
    for case in memory_cases.cases(watermarks=True):
        if case.capacity["token_cap"] > 1000:  # not where the padding closes a batch
            assert _played("vllm", exclusive_ns, case)["iterations"] == recorded[case.name]["iterations"], case.name
            print(f"vllm_v0_memory, {case.name}: the same")


def _played(kind: str, duration: Any, case: Case) -> dict[str, Any]:
    return play(Vidur(kind, case.capacity), case, duration)


if __name__ == "__main__":
    main()
