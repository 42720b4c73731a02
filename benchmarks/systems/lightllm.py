"""LightLLM's router: ``python benchmarks/systems/lightllm.py FOLDER``, where FOLDER/lightllm is its package.

Its ``RouterManager._step`` runs (github.com/ModelTC/lightllm at 3bed16df56bb, with ``max_wait_tokens`` of 10), in front
of a stand-in for its queue: first come, first served, as many as there are free clients, up to the token cap.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from driving import Case, Step, drawn, play, write

COMMIT = "3bed16df56bb"
KEPT = ("_step", "_filter_runing_batch")


def _router(folder: Path) -> type:
    """The class RouterManager with nothing but the methods that decide."""
    path = folder / "lightllm" / "server" / "router" / "manager.py"
    tree = ast.parse(path.read_text())
    manager = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RouterManager")
    manager.body = [node for node in manager.body if getattr(node, "name", "") in KEPT]
    space: dict[str, Any] = {}
    exec(compile(ast.Module([manager], []), str(path), "exec"), space)
    return space["RouterManager"]  # type: ignore[no-any-return]


class _Batch:
    def __init__(self, reqs: list[int]) -> None:
        self.reqs = reqs

    def is_clear(self) -> bool:
        return not self.reqs

    def merge(self, other: _Batch) -> None:
        self.reqs += other.reqs


class LightLLM:
    """The router, one ``_step`` an iteration. It learns of completions when the iteration is over."""

    def __init__(self, router: type, capacity: dict[str, Any]) -> None:
        self._clients, self._cap = capacity["clients"], capacity["token_cap"]
        self._waiting: deque[int] = deque()
        self._prompts: dict[int, int] = {}
        self._done: set[int] = set()
        self._step = Step()
        router_at_work = router()
        router_at_work.running_batch = None
        router_at_work.has_wait_tokens, router_at_work.max_wait_tokens = 0, capacity["max_wait_tokens"]
        silent = SimpleNamespace(count_prompt_tokens=lambda batch: None, count_output_tokens=lambda batch: None)
        router_at_work.stats_tool, router_at_work.req_queue = silent, self
        router_at_work._prefill_batch, router_at_work._decode_batch = self._prefill, self._decode
        router_at_work._merge_batch, router_at_work._can_decode = self._merge, lambda batch: True
        self._router = router_at_work
        self._course: Any = None

    def generate_new_batch(self, running: _Batch | None) -> _Batch | None:
        """As many of those that wait as there are clients and tokens for; None for nobody."""
        room, tokens, chosen = self._clients - (len(running.reqs) if running else 0), 0, []
        while self._waiting and len(chosen) < room and tokens + self._prompts[self._waiting[0]] <= self._cap:
            chosen.append(self._waiting.popleft())
            tokens += self._prompts[chosen[-1]]
        return _Batch(chosen) if chosen else None

    async def _prefill(self, batch: _Batch) -> None:
        self._step.reads = [(number, self._prompts[number]) for number in batch.reqs]
        await _pause()
        batch.reqs = [number for number in batch.reqs if number not in self._done]

    async def _decode(self, batch: _Batch) -> None:
        self._step.decodes = list(batch.reqs)
        await _pause()
        batch.reqs = [number for number in batch.reqs if number not in self._done]

    async def _merge(self, batch: _Batch, other: _Batch) -> None: ...

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived."""
        self._waiting.append(number)
        self._prompts[number] = prompt

    def next(self) -> Step:
        """Ask for the next iteration: run to where the model would be called."""
        self._step = Step()
        self._course = self._router._step().__await__()
        next(self._course, None)
        return self._step

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over."""
        self._done = set(finished)
        assert next(self._course, None) is None


class _Pause:
    def __await__(self) -> Any:
        yield


def _pause() -> _Pause:
    return _Pause()


def main() -> None:
    """Write the golden file."""
    router = _router(Path(sys.argv[1]).resolve())

    def room(clients: int, tokens: int = 2048, every: int = 10) -> dict[str, int]:
        return {"clients": clients, "token_cap": tokens, "max_wait_tokens": every}

    cases = [
        Case("one arrives between two attempts", ((0, 10, 40), (1500, 10, 5), (1600, 4, 30)), room(4)),
        Case("nothing waits at the first attempts", ((0, 10, 60), (2300, 10, 5)), room(2)),
        Case("the cap closes prefills", drawn(41, 12, (5, 40), (1, 30), 0), room(6, 64)),
        Case("arrivals", drawn(42, 30, (1, 40), (1, 40), 400), room(6)),
        Case("arrivals, every sixth", drawn(43, 30, (1, 40), (1, 40), 300), room(4, 64, 6)),
        Case("arrivals, often idle", drawn(44, 10, (1, 40), (1, 25), 3000), room(3)),
    ]
    said = {"system": "LightLLM (lightllm/server/router/manager.py)", "version": f"commit {COMMIT}"}
    said["made_by"] = "benchmarks/systems/lightllm.py, which runs RouterManager._step"
    write("lightllm", cases=[play(LightLLM(router, case.capacity), case) for case in cases], **said)


if __name__ == "__main__":
    main()
