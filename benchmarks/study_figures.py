"""Figures of what people run: studies, planners, a large case, a first start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figure

from llmsched_env import ENVIRONMENTS
from llmsched_env.baselines.planners import Beam, Rollout
from llmsched_env.baselines.registry import METHODS, POLICIES, entry
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.evaluation import decision_times, evaluate, play
from llmsched_env.studies.machine import child, peak_memory_bytes

__all__ = ["large_figures", "planner_figures", "start_figures", "study_figures"]

SCRIPT = Path(__file__)
STUDY_TARGET_S = 10.0
"""Our reading of 'a matter of seconds'."""
START_TARGET_S, BEAM_TARGET_MS, DECISION_TARGET_MS, MEMORY_TARGET_GIB = 1.5, 20.0, 5.0, 1.0
STARTS = 3
FIRST_STEPS = {
    "one": "e = gymnasium.make('llmsched_env:{}'); e.reset(seed=0); e.step(1)",
    "64 copies": "e = gymnasium.make_vec('llmsched_env:{}', num_envs=64); e.reset(seed=0); e.step([1] * 64)",
}
LARGE = {"workload": "gsm8k-smooth", "split": "test", "num_clients": 5_000, "num_requests": 100_000}
LARGE_QUEUES: dict[str, dict[str, Any]] = {
    "shared queue": {"queue": "shared"},
    "LPT queues with stealing": {"queue": "client", "assignment": "lpt"},
}


def study_figures(*, cases: int) -> Iterator[Figure]:
    """All methods, then all rules, on the test cases."""
    section = f"A study of {cases} cases under compiled rules (LLMSched/GSM8K-v0, test)"
    scenario = Scenario(split="test")
    compiled_rules = [name for name in POLICIES if entry(name, scenario).kind == "rule"]
    for names, text in ((list(METHODS), "methods"), (compiled_rules, "rules, cases in memory")):
        for name in names:  # read tuned constants before the clock runs
            item = entry(name, scenario)
            play(item.policy, item.scenario, cases)
        start = time.perf_counter()
        for name in names:
            item = entry(name, scenario)
            evaluate(item.policy, item.scenario, cases)
        seconds = time.perf_counter() - start
        yield Figure(section, f"{len(names)} {text}", seconds, "s", target=STUDY_TARGET_S, at_least=False)
        each_ms = seconds / len(names) / cases * 1e3
        yield Figure(section, f"{len(names)} {text}: one episode with its metrics", each_ms, "ms")


def planner_figures(*, cases: int) -> Iterator[Figure]:
    """Planners, in a process whose cache holds no plans."""
    with tempfile.TemporaryDirectory() as folder:
        found = child(SCRIPT, "planners", str(cases), environment={"LLMSCHED_CACHE_DIR": folder})
    section = f"Planners (LLMSched/GSM8K-v0 and its smooth form, {cases} test cases each)"
    for name, value in found["beam_ms"].items():
        target = BEAM_TARGET_MS if name.startswith("width 1 ") else None
        yield Figure(section, f"beam, {name}, an episode (median)", value, "ms", target=target, at_least=False)
    for name, value in found["rollout_p99_ms"].items():
        yield Figure(
            section, f"rollout, {name}, a decision (p99)", value, "ms", target=DECISION_TARGET_MS, at_least=False
        )


def _planners(cases: int) -> dict[str, Any]:
    beam_ms, rollout_p99_ms = {}, {}
    for workload in ("gsm8k", "gsm8k-smooth"):
        scenario = Scenario(workload=workload, split="test")
        for width, episodes in ((1, cases), (50, max(2, cases // 4))):
            play(Beam(width, rounds=1 if width == 1 else 2), scenario, cases)
            times = []
            for case in range(episodes):
                build_problem(scenario, case)
                start = time.perf_counter()
                play(Beam(width, rounds=1 if width == 1 else 2), scenario, case)
                times.append(time.perf_counter() - start)
            beam_ms[f"width {width} {workload}"] = float(np.median(times)) * 1e3
        blind = scenario.replace(lengths="hidden", queue="shared", order="fcfs")
        for name, world in ((workload, scenario), (f"{workload}, lengths hidden (4 drawn futures)", blind)):
            decision_times(Rollout(), world, [cases])
            p99_ns = np.quantile(decision_times(Rollout(), world, range(max(1, cases // 4))), 0.99)
            rollout_p99_ms[name] = float(p99_ns) / 1e6
    return {"beam_ms": beam_ms, "rollout_p99_ms": rollout_p99_ms}


def large_figures() -> Iterator[Figure]:
    """100,000 requests on 5,000 clients, each in a fresh process."""
    section = "100,000 requests on 5,000 clients, smooth lengths, in a fresh process"
    for queues in LARGE_QUEUES:
        found = child(SCRIPT, "large", queues)
        memory_gib = found["peak_bytes"] / 2**30
        yield Figure(
            section, f"{queues}: peak memory of the process", memory_gib, "GiB",
            found["import_bytes"] / 2**30, "after the imports", MEMORY_TARGET_GIB, at_least=False,
        )  # fmt: skip
        yield Figure(section, f"{queues}: drawing the case, queues, bound", found["build_s"], "s")
        yield Figure(section, f"{queues}: the episode, threshold rule", found["run_s"] * 1e3, "ms")
        yield Figure(section, f"{queues}: an iteration ({found['iterations']:,} of them)", found["iteration_ns"], "ns")


def _large(queues: str) -> dict[str, Any]:
    from llmsched_env.baselines.iteration import threshold

    scenario = Scenario(**{**LARGE, **LARGE_QUEUES[queues]})
    import_bytes = peak_memory_bytes()
    start = time.perf_counter()
    build_problem(scenario, 0)
    build_s = time.perf_counter() - start
    start = time.perf_counter()
    simulator = play(threshold(350), scenario, 0)
    run_s = time.perf_counter() - start
    iterations = int(simulator.view.prefills + simulator.view.decodes)
    return {
        "import_bytes": import_bytes,
        "peak_bytes": peak_memory_bytes(),
        "build_s": build_s,
        "run_s": run_s,
        "iterations": iterations,
        "iteration_ns": run_s / iterations * 1e9,
    }


def start_figures() -> Iterator[Figure]:
    """CPU seconds of a process until the first step, with an empty cache folder, beside one that imports Gymnasium."""
    section = "A fresh process, empty cache: until the first step, in CPU seconds"
    alone = min(_cpu_s("import gymnasium") for _ in range(STARTS))
    for identity in ENVIRONMENTS:
        for kind, code in FIRST_STEPS.items():
            taken = min(_cpu_s(f"import gymnasium; {code.format(identity)}") for _ in range(STARTS))
            yield Figure(
                section, f"{identity}, {kind}, beyond import gymnasium", taken - alone, "s", alone, "import gymnasium",
                START_TARGET_S, at_least=False,
            )  # fmt: skip


def _cpu_s(code: str) -> float:
    """CPU seconds of a Python process of its own that runs this."""
    said = "import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", f"{code}; {said}"],
            env={**os.environ, "LLMSCHED_CACHE_DIR": folder},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    run = {"planners": lambda: _planners(int(arguments[0])), "large": lambda: _large(arguments[0])}
    print(json.dumps(run[task]()))
