"""Seeded episodes reduced to one digest each. Run as a script it prints them, so that a process of its own can."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from strategies import seeded_case

from llmsched_env.config import REWARDS
from llmsched_env.core.features import NUM_FEATURES
from llmsched_env.core.fleet import Fleet, Steps
from llmsched_env.core.loops import OBSERVE, OVER, step
from llmsched_env.policy import CompiledRule, compile_rule, features
from llmsched_env.simulator import Simulator

LEVELS = ((20, 150), (45, 400), (60, 900))


def busiest(view, parameters, memory):
    """Some arithmetic of both kinds, a branch, and a memory."""
    memory[0] = (memory[0] * 31 + view.clock_ns) % 1009
    price = parameters[0] * view.active * view.alpha_prefill_ns
    return 1 if view.alpha_decode_ns * view.idle_charge >= price or memory[0] % 7 == 0 else 0


def episode_digest(seed: int) -> str:
    """What one episode did and what was seen of it, stepped through the environment's loop."""
    changes = {"gamma_decode_ns": 2, "levels": LEVELS} if seed % 5 == 4 else {}
    instance = seeded_case(seed, **changes).instance(
        reward=REWARDS[seed % len(REWARDS)], skip_forced=seed % 2 == 1, max_iterations=150 if seed % 7 == 6 else 0
    )
    simulator = Simulator(instance, record=True)
    arrays, out = simulator.memory.call_arrays, np.empty(NUM_FEATURES, np.float32)
    digest = hashlib.sha256()
    rng = np.random.default_rng(seed)
    reward, flags = step(*arrays, OBSERVE, out)
    while True:
        digest.update(repr((float(reward), int(flags), simulator.charge)).encode())
        for part in (out, features(simulator.view), *simulator.memory.arrays):
            digest.update(part.tobytes())
        if flags & OVER:
            break
        reward, flags = step(*arrays, int(rng.integers(0, 2)), out)
    digest.update(simulator.log.tobytes() + simulator.served.tobytes())
    return digest.hexdigest()


def run_digest(seed: int) -> str:
    """The same under a compiled rule."""
    simulator = Simulator(seeded_case(seed).instance(), record=True)
    simulator.run(CompiledRule(compile_rule(busiest), np.array([0.7]), np.zeros(1, np.int64)))
    arrays = b"".join(array.tobytes() for array in simulator.memory.arrays)
    return hashlib.sha256(arrays + simulator.log.tobytes() + simulator.served.tobytes()).hexdigest()


def fleet_digest(seed: int) -> str:
    """Twelve copies stepped together, each begun anew with the next case where it is over."""
    cases = [
        seeded_case(3 * seed + i, **({"gamma_decode_ns": 2, "levels": LEVELS} if i == 4 else {})).instance(
            reward=REWARDS[i % len(REWARDS)], skip_forced=i == 1, max_iterations=70 if i == 2 else 0
        )
        for i in range(5)
    ]
    fleet, rng, digest, out, ends = Fleet(12), np.random.default_rng(seed), hashlib.sha256(), Steps(12), 0
    for number in range(12):
        fleet.load(number, cases[number % 5], out)
    for step_number in range(400):
        out, over = fleet.step(rng.integers(0, 2, 12))
        ended = np.flatnonzero(fleet.flags & OVER)
        assert len(ended) == over
        ends += over
        digest.update(fleet.measure(ended).tobytes())
        for number in ended:
            fleet.load(number, cases[step_number % 5], out)
        for part in (out.observations, out.rewards, out.terminated, out.truncated, out.masks, out.invalid):
            digest.update(part.tobytes())
    assert ends >= 6
    return digest.hexdigest()


def digests() -> dict[str, list[str]]:
    return {
        "stepped": [episode_digest(seed) for seed in range(24)],
        "fleet": [fleet_digest(seed) for seed in range(4)],
        "run": [run_digest(seed) for seed in range(12)],
    }


if __name__ == "__main__":
    print(json.dumps(digests()))
