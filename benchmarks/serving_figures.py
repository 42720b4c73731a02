"""Figures of serving over time: a long trace, what SLOs cost an iteration, copies, latencies from a recording."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from measuring import Figure, repeat

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env import make_scenario
from llmsched_env.baselines.iteration import min_batch
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.metrics import serving_metrics
from llmsched_env.policy import EpisodeContext
from llmsched_env.simulator import Simulator
from llmsched_env.workload import ServingWorkload, TraceWorkload

__all__ = ["serving_figures"]

AZURE = Path(__file__).resolve().parents[2] / "shared" / "data" / "azure_2023_conv.csv"
REQUESTS = 1_000_000
COPIES = 64
STEPS = 2_000
IDS = ("LLMSched/Serving-v0", "LLMSched/ServingOrder-v0")


def _scenario(**changes: Any) -> Scenario:
    return make_scenario(IDS[0], **{"workload": ServingWorkload(), **changes})


def _best_s(simulator: Simulator, repeats: int) -> float:
    """Whole episodes under a rule, resets not included."""
    rule = min_batch().compiled(EpisodeContext(_scenario(), 345.0))
    best = float("inf")
    for _ in range(repeats):
        simulator.reset()
        start = time.perf_counter()
        simulator.run(rule)
        best = min(best, time.perf_counter() - start)
    return best


def serving_figures(*, repeats: int) -> Iterator[Figure]:
    """The figures, one after another."""
    section = "A trace of 1,000,000 requests at load 0.9 with SLOs, rule min_batch"
    for order in ("fcfs", "late_last", "late_last_shortest"):
        start = time.perf_counter()
        problem = build_problem(_scenario(num_requests=REQUESTS, order=order, lengths="known"), 0)
        built_s = time.perf_counter() - start
        simulator = Simulator(problem)
        best_s = _best_s(simulator, min(repeats, 5))
        iterations = int(simulator.view.prefills + simulator.view.decodes)
        yield Figure(
            section, f"{order}: the episode ({iterations:,} iterations)", best_s, "s", target=10.0, at_least=False
        )
        yield Figure(section, f"{order}: an iteration", best_s / iterations * 1e9, "ns")
        if order == "fcfs":
            yield Figure(section, "drawing the case", built_s, "s")
    recorded = Simulator(problem, record=True)
    recorded.run(min_batch().compiled(EpisodeContext(_scenario(), 345.0)))
    start = time.perf_counter()
    serving_metrics(recorded, ttft_s=2.0, tpot_s=0.1, first=REQUESTS // 10, last=REQUESTS - REQUESTS // 10)
    yield Figure(section, "latencies of all requests from its recording", time.perf_counter() - start, "s")

    if AZURE.exists():
        section = "The Azure conversation trace of 2023 (where it lies beside the project), load 0.9"
        trace = TraceWorkload(AZURE)
        start = time.perf_counter()
        trace.pool_size("train")
        yield Figure(section, "reading it (19,366 rows)", time.perf_counter() - start, "s")
        world = {"workload": trace, "cost": "qwen3-30b-a3b-h200", "prefill_token_cap": 16_384, "split": "test"}
        simulator = Simulator(build_problem(_scenario(**world, ttft_s=1.0, tpot_s=0.05), 0))
        best_s = _best_s(simulator, min(repeats, 5))
        iterations = int(simulator.view.prefills + simulator.view.decodes)
        yield Figure(section, "an iteration", best_s / iterations * 1e9, "ns")

    section = "What SLOs cost (GSM8K lengths over time, load 0.9, 5,000 requests, FCFS, rule min_batch)"
    plain = Simulator(build_problem(_scenario(ttft_s=None, tpot_s=None, reward="makespan"), 0))
    with_slo = Simulator(build_problem(_scenario(), 0))
    rule = min_batch().compiled(EpisodeContext(_scenario(), 345.0))

    def play(simulator: Simulator) -> None:
        simulator.reset()
        simulator.run(rule)

    timings = repeat(lambda: play(with_slo), lambda: play(plain), repeats=repeats)
    ours, theirs = (
        timing.best_s / int(simulator.view.prefills + simulator.view.decodes) * 1e9
        for timing, simulator in zip(timings, (with_slo, plain), strict=True)
    )
    yield Figure(section, "an iteration", ours, "ns", theirs, "without SLOs")

    section = f"{COPIES} copies through gymnasium.make_vec"
    chance = np.random.default_rng(0)
    for identity in IDS:
        env = gymnasium.make_vec(identity, num_envs=COPIES)
        env.reset(seed=0)
        actions = chance.integers(1, env.single_action_space.n, (64, COPIES)) * (chance.random((64, COPIES)) < 0.1)
        for step in range(1_000):
            env.step(actions[step % 64])

        def run(env: Any = env, actions: Any = actions) -> None:
            for step in range(STEPS):
                env.step(actions[step % 64])

        (timing,) = repeat(run, repeats=min(repeats, 8))
        yield Figure(section, identity, STEPS * COPIES / timing.best_s / 1e6, "M steps/s")
