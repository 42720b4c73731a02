"""Plays cases through somebody else's scheduler, under costs in integer ns, and writes down what it did.

Needs nothing but Python, since it runs where that scheduler is installed. tests/baselines/golden/README.md has the
format of the files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

__all__ = ["GOLDEN", "Case", "Step", "System", "drawn", "exclusive_ns", "mixed_ns", "play", "write"]

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "baselines" / "golden"

ALPHA_P, BETA_P, ALPHA_D, BETA_D = 100, 10, 50, 1
"""ns: a prefill lasts 100 + 10 a token, a decode 50 + 1 a client, a mixed iteration 100 + 10 a token + 1 a client."""


@dataclass(frozen=True)
class Case:
    """Requests, in order of arrival, and what there is to serve them.

    Attributes:
        name: in words.
        requests: (arrival in ns, prompt tokens, output tokens) each.
        capacity: clients, token budgets, blocks of the KV cache: what the system's own settings were made of.
    """

    name: str
    requests: tuple[tuple[int, int, int], ...]
    capacity: dict[str, Any]


@dataclass
class Step:
    """What one call of a scheduler chose: whose prompts are read, how far, and who decodes beside it."""

    reads: list[tuple[int, int]] = field(default_factory=list)  # (request, tokens)
    decodes: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)


class System(Protocol):
    """A scheduler under test."""

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived."""

    def next(self) -> Step:
        """Ask for the next iteration."""

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over: who had a token of it, and whose last one that was."""


def exclusive_ns(read: int, decoding: int) -> int:
    """Duration where an iteration is a prefill or a decode."""
    assert not (read and decoding), "this system reads prompts beside decodes"
    return ALPHA_P + BETA_P * read if read else ALPHA_D + BETA_D * decoding


def mixed_ns(read: int, decoding: int) -> int:
    """Duration where it may be both."""
    return ALPHA_P + BETA_P * read + BETA_D * decoding if read else ALPHA_D + BETA_D * decoding


def drawn(seed: int, count: int, prompts: tuple[int, int], outputs: tuple[int, int], gap_ns: int) -> Any:
    """Requests with lengths drawn evenly, one after another in 0 to 2 ``gap_ns``."""
    rng = random.Random(seed)
    clock, found = 0, []
    for _ in range(count):
        found.append((clock, rng.randint(*prompts), rng.randint(*outputs)))
        clock += rng.randint(0, 2 * gap_ns)
    return tuple(found)


def play(system: System, case: Case, duration: Any = exclusive_ns) -> dict[str, Any]:
    """The case from the first arrival to the last token."""
    n = len(case.requests)
    emitted, computed, needed = [0] * n, [0] * n, [prompt for _, prompt, _ in case.requests]
    first, last = [0] * n, [0] * n
    rows: list[list[Any]] = []
    clock, added, done, idle, preempted = 0, 0, 0, 0, []
    while done < n:
        while added < n and case.requests[added][0] <= clock:
            system.add(added, *case.requests[added][1:])
            added += 1
        step = system.next()
        for request in step.preempted:
            computed[request], needed[request] = 0, case.requests[request][1] + emitted[request]
        preempted = [*preempted, *step.preempted]
        if not step.reads and not step.decodes:
            idle += 1
            assert idle < 3 or added < n, f"{case.name}: the system has stopped with {n - done} requests to serve"
            if not step.preempted:
                assert added < n
                clock = max(clock, case.requests[added][0])
            continue
        idle = 0
        start, clock = clock, clock + duration(sum(tokens for _, tokens in step.reads), len(step.decodes))
        emits, finished = list(step.decodes), []
        for request, tokens in step.reads:
            computed[request] += tokens
            assert computed[request] <= needed[request]
            if computed[request] == needed[request]:
                emits.append(request)
        for request in emits:
            emitted[request] += 1
            first[request] = first[request] or clock
            if emitted[request] == case.requests[request][2]:
                last[request] = clock
                finished.append(request)
        done += len(finished)
        system.end(emits, finished)
        rows.append([start, clock, _text(step), " ".join(map(str, preempted))])
        preempted = []
    return {**asdict(case), "first_token_ns": first, "completion_ns": last, "iterations": rows}


def _text(step: Step) -> str:
    """As ``0:15 1:7 | 2 3``: prompts of requests 0 and 1 are read, 2 and 3 decode."""
    reads = " ".join(f"{request}:{tokens}" for request, tokens in sorted(step.reads))
    decodes = " ".join(map(str, sorted(step.decodes)))
    return f"{reads} | {decodes}".strip()


def write(name: str, system: str, version: str, made_by: str, cases: Iterable[dict[str, Any]], **said: Any) -> None:
    """Put a golden file where the tests look for it, one iteration a line."""
    head = {"system": system, "version": version, "made_by": made_by, **said}
    head["cost_ns"] = {"alpha_p": ALPHA_P, "beta_p": BETA_P, "alpha_d": ALPHA_D, "beta_d": BETA_D}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    texts = []
    for case in cases:
        rows = ",\n".join(f"    {json.dumps(row)}" for row in case["iterations"])
        kept = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in case.items() if k != "iterations")
        texts.append(f'  {{\n{kept},\n   "iterations": [\n{rows}\n   ]\n  }}')
        preemptions = sum(len(row[3].split()) for row in case["iterations"])
        print(f"{name}, {case['name']}: {len(case['iterations'])} iterations, {preemptions} preemptions")
    body = ",\n".join(texts)
    (GOLDEN / f"{name}.json").write_text("{\n" + "\n".join(lines) + f'\n "cases": [\n{body}\n ]\n}}\n')
