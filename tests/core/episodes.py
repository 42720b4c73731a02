"""Seeded episodes reduced to one digest each. Run as a script it prints them, so that a process of its own can."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from combined_digests import CASES as COMBINED
from combined_digests import combined_digest
from fuzzing import wild_digest
from strategies import Case, seeded_case

from llmsched_env.config import ADMISSIONS, ORDER_CODES, STEALS, KVCache, Migration, Mixed, Noise
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine import codes, compiled
from llmsched_env.engine.batch import Batch
from llmsched_env.engine.features import FEATURES, SLO_FEATURES
from llmsched_env.engine.step import Copy, Steps
from llmsched_env.policy import FunctionRule, features
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.snapshot import State, snapshot

OVER = codes.TERMINATED | codes.TRUNCATED

PAID = ("excess", "makespan", "idle", "latency", "goodput")
"""Rewards of the episodes whose digests are kept."""

LEVELS = ((20, 150), (45, 400), (60, 900))


def busiest(view, parameters, memory):
    """Some arithmetic of both kinds, a branch, and a memory."""
    memory[0] = (memory[0] * 31 + view.clock_ns) % 1009
    price = parameters[0] * view.active * view.alpha_prefill_ns
    return 1 if view.alpha_decode_ns * view.idle_charge >= price or memory[0] % 7 == 0 else 0


def slo_case(seed: int, **changes: object) -> Case:
    """The seeded case over time, with SLOs that some meet; orders are actions for odd seeds."""
    rng = np.random.default_rng(1000 + seed)
    return seeded_case(
        seed,
        **{
            "releases_ns": tuple(np.cumsum(rng.integers(0, 400, 40)).tolist()),
            "queues": None,
            "stealing": False,
            "order": [*ORDER_CODES][seed % len(ORDER_CODES)],
            "ttft_ns": 4000,
            "tpot_ns": 110,
            "uncounted": seed % 5,
            "choose_order": seed % 2 == 1,
            **changes,
        },
    )


def memory_case(seed: int, **changes: object) -> Case:
    """The same, or without SLOs, with a KV cache that is too small for all clients; caps where no orders."""
    case = slo_case(seed) if seed % 3 else seeded_case(seed, queues=None, stealing=False)
    most = 16 * max(-(-(p + n) // 16) for p, n in zip(case.prompts, case.outputs, strict=True))
    rule = ("keep_growth", "vllm_v0", "keep_growth", "vllm_v1")[seed % 4]
    cache = KVCache(
        most + 50,
        block_tokens=(1, 16)[seed % 2],
        admission=ADMISSIONS[seed // 2 % 3] if rule == "keep_growth" else "fits",
        headroom_tokens=seed % 4 if rule == "keep_growth" else 16,
        swap_token_ns=(0, 2)[seed % 5 // 3] if rule == "keep_growth" else 0,
        cap_levels=0 if case.choose_order else 8 * (seed // 2 % 2),
        rule=rule,
    )
    return replace(case, kv_cache=cache, **changes)


def mixed_case(seed: int, **changes: object) -> Case:
    """Mixed iterations, every second time under SLOs."""
    case = slo_case(seed, choose_order=False) if seed % 2 else seeded_case(seed, queues=None, stealing=False)
    cost = MixedCost(seed % 3 == 0, *((0, 0, 0, 0) if seed % 3 == 0 else (90, 8, 2, 25)))
    return replace(case, mixed=Mixed((4, 30, 9)[seed // 2 % 3], seed % 4 > 1, seed % 5 == 0, cost), **changes)


def moving_case(seed: int, **changes: object) -> Case:
    """The seeded case on the queues of three of its clients, whose caches the other four move."""
    queues = tuple(np.random.default_rng(2000 + seed).integers(0, 3, 40).tolist())
    moves = Migration((0, 500_000, 900_000)[seed % 3], STEALS[(seed + 1) % 3], (0, 3)[seed // 2 % 2])
    return seeded_case(seed, **{"queues": queues, "stealing": True, "migration": moves, **changes})


def noisy_case(seed: int, **changes: object) -> Case:
    """One of those before, with noise, stragglers, a wrong belief, or all of them."""
    case = (seeded_case, slo_case, memory_case)[seed % 3](seed, **changes)
    if seed % 6 == 0 and not case.levels:
        case = mixed_case(seed, **changes)
    elif seed % 6 == 3 and not case.levels:
        case = moving_case(seed, **changes)
    believed = CostModel("believed", 120, 8, 60, 2, 1, case.token_cap) if seed % 2 and case.mixed is None else None
    noise_sd = (0.4, 0.0, 1.1)[seed % 5 // 2]
    stragglers = (0.1, 7.5) if noise_sd == 0 or seed % 4 > 1 else (0.0, 1.0)
    return replace(case, noise=Noise(believed, noise_sd, *stragglers, 12345 + seed))


CASES = {
    "plain": seeded_case,
    "SLO": slo_case,
    "memory": memory_case,
    "mixed": mixed_case,
    "moving": moving_case,
    "noisy": noisy_case,
}


def kinds_of(problem: Problem) -> list[int]:
    """(num_actions,) kinds of iterations."""
    return np.asarray(problem.data.kinds).tolist()


class Stepped:
    """An episode in the environment's loop.

    Attributes:
        observation: (num_features,) float32: what was seen last.
        reward: for the last step.
        flags: see `llmsched_env.engine.step.Copy`.
    """

    def __init__(self, simulator: Simulator) -> None:
        problem = simulator.problem
        self._out, self._copy = Steps(1, kinds_of(problem), problem.num_features), Copy()
        self._copy.adopt(simulator.episode, 0)
        self._copy.begin(self._out)
        self.observation, self.reward, self.flags = self._out.arrays[0][0], 0.0, self._copy.flags

    def step(self, action: int) -> None:
        """Take a step."""
        self._out.actions = memoryview(np.array([action], np.int64))
        self._copy.run(self._out)
        self.reward, self.flags = float(self._out.arrays[1][0]), self._copy.flags

    @property
    def over(self) -> bool:
        """Whether it is."""
        return self.flags & OVER != 0


def written(simulator: Simulator) -> bytes:
    """Every field of the episode."""
    return b"".join(_written(snapshot(simulator.episode)))


def _written(state: State) -> Iterator[bytes]:
    numbers = []
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _written(value)
        elif isinstance(value, np.ndarray):
            yield value.tobytes()
        else:
            numbers.append((name, value))
    yield repr(numbers).encode()


def episode_digest(seed: int, *, kind: str = "plain") -> str:
    """What one episode did and what was seen of it, stepped through the environment's loop."""
    in_memory = kind == "memory" or (kind == "noisy" and seed % 3 == 2)
    no_levels = in_memory or kind in ("mixed", "moving")
    changes = {"gamma_decode_ns": 2, **({} if no_levels else {"levels": LEVELS})} if seed % 5 == 4 else {}
    case = CASES[kind](seed, **changes)
    with_slo = case.ttft_ns > 0
    problem = case.problem(
        reward="goodput" if with_slo and seed % 3 else PAID[seed % len(PAID)],
        skip_forced=seed % 4 > 1 if with_slo else seed % 2 == 1,
        max_iterations=150 if seed % 7 == 6 else 0,
    )
    simulator = Simulator(problem, record=True)
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed)
    stepped, steps = Stepped(simulator), 0
    while True:
        digest.update(repr((stepped.reward, stepped.flags, simulator.charge)).encode())
        if steps % 3 == 0 or stepped.over:
            digest.update(written(simulator))
        for part in (stepped.observation, features(simulator.view)):
            digest.update(part.tobytes())
        if stepped.over:
            break
        stepped.step(int(rng.integers(0, problem.num_actions)))
        steps += 1
    if with_slo:
        assert simulator.totals.violations > 0, "no SLO was violated"
    if kind == "memory" and case.kv_cache.admission == "fits" and not case.kv_cache.cap_levels:
        assert simulator.totals.preemptions > 0
    if kind == "moving" and case.migration.steal == "running" and not problem.max_iterations:
        assert simulator.totals.migrations > 0
    digest.update(simulator.log.tobytes() + simulator.served.tobytes())
    return digest.hexdigest()


def run_digest(seed: int, *, kind: str = "plain") -> str:
    """The same under a compiled rule."""
    case = replace(CASES[kind](seed), choose_order=False)
    simulator = Simulator(case.problem(), record=True)
    simulator.run(FunctionRule(busiest, [0.7], [0]))
    return hashlib.sha256(written(simulator) + simulator.log.tobytes() + simulator.served.tobytes()).hexdigest()


def forked_digest(seed: int) -> str:
    """An episode that is gone on with under other lengths."""
    simulator, rng = Simulator(seeded_case(seed).problem()), np.random.default_rng(seed)
    for action in rng.integers(0, 2, 20 + seed).tolist():
        if not simulator.done:
            simulator.step(action)
    emitted = simulator.emitted
    longer = rng.integers(1, 90, len(emitted))
    twin = simulator.fork(record=True, outputs=emitted + longer, arrivals=seed % 4 < 2)
    digest = hashlib.sha256(emitted.tobytes() + written(twin))
    for action in itertools.cycle([1, 0, 0]):
        if twin.done:
            break
        twin.step(action)
        digest.update(features(twin.view).tobytes())
    digest.update(written(twin) + twin.log.tobytes() + twin.served.tobytes())
    return digest.hexdigest()


def fleet_digest(seed: int) -> str:
    """Twelve copies stepped together, each begun anew with the next case where it is over."""
    cases = [
        seeded_case(3 * seed + i, **({"gamma_decode_ns": 2, "levels": LEVELS} if i == 4 else {})).problem(
            reward=PAID[i % len(PAID)], skip_forced=i == 1, max_iterations=70 if i == 2 else 0
        )
        for i in range(5)
    ]
    digest, ends = batch_digest(Batch(12, kinds_of(cases[0]), len(FEATURES)), cases, 400, seed)
    assert ends >= 6
    return digest


def batch_digest(batch: Batch, cases: list[Problem], steps: int, seed: int) -> tuple[str, int]:
    """What random actions come to, and how many episodes end."""
    rng, digest, out, ends = np.random.default_rng(seed), hashlib.sha256(), batch.new_steps(), 0
    for number in range(batch.count):
        batch.load(number, cases[number % len(cases)], out)
    for step_number in range(steps):
        out, over = batch.step(rng.integers(0, len(batch.kinds), batch.count))
        ended = np.flatnonzero(batch.flags() & OVER)
        assert len(ended) == over
        ends += over
        digest.update(batch.measure(ended).tobytes())
        for number in ended:
            batch.load(number, cases[step_number % len(cases)], out)
        for part in out.arrays:
            digest.update(part.tobytes())
    return digest.hexdigest(), ends


def slo_fleet_digest(orders: bool) -> str:
    """Six copies of cases with SLOs; those by length keep sets that others do not, and copies change sides."""
    cases = [
        slo_case(
            20 + i,
            order="fcfs" if orders else [*ORDER_CODES][i],
            choose_order=orders,
            **({"gamma_decode_ns": 2, "levels": LEVELS} if i == 4 else {}),
        ).problem(reward="goodput" if i % 2 else "latency", skip_forced=i == 3, max_iterations=90 if i == 2 else 0)
        for i in range(6)
    ]
    shown = len(FEATURES + SLO_FEATURES)
    assert {(case.num_actions, case.num_features) for case in cases} == {(7 if orders else 2, shown)}
    assert orders or {bool(case.data.ranked) for case in cases} == {False, True}
    digest, ends = batch_digest(Batch(6, kinds_of(cases[0]), shown), cases, 220, int(orders))
    assert ends >= 3
    return digest


def digests() -> dict[str, Any]:
    """All of them, by kind; and whether the engine is compiled here."""
    return {
        "compiled": compiled,
        "combined": [combined_digest(seed) for seed in range(COMBINED)],
        "stepped": [episode_digest(seed) for seed in range(16)],
        "forked": [forked_digest(seed) for seed in range(12)],
        "fleet": [fleet_digest(seed) for seed in range(4)],
        "run": [run_digest(seed) for seed in range(12)],
        "SLO": [episode_digest(seed, kind="SLO") for seed in range(10)],
        "SLO fleet": [slo_fleet_digest(orders) for orders in (False, True)],
        "SLO run": [run_digest(seed, kind="SLO") for seed in range(4)],
        "memory": [episode_digest(seed, kind="memory") for seed in range(8)],
        "memory run": [run_digest(seed, kind="memory") for seed in range(6)],
        "mixed": [episode_digest(seed, kind="mixed") for seed in range(8)],
        "moving": [episode_digest(seed, kind="moving") for seed in range(6)],
        "moving run": [run_digest(seed, kind="moving") for seed in range(4)],
        "noisy": [episode_digest(seed, kind="noisy") for seed in range(8)],
        "noisy run": [run_digest(seed, kind="noisy") for seed in range(6)],
        "wild": [wild_digest(number) for number in range(90)],
    }


if __name__ == "__main__":
    print(json.dumps(digests()))
