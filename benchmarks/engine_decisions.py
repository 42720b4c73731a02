"""What a decision costs an engine: ``python benchmarks/engine_decisions.py`` (docs/engines.md quotes it).

Decodes at 256 seats, 200 of them active: median time of `Driver.decide`, of `Driver.ran` and of `Driver.arrive`, in
microseconds, with nobody waiting and with many. In the last row 255 seats are idle, so that each decision previews
a prefill of 255 prompts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from llmsched_env import Scenario
from llmsched_env.engines.driver import Driver, Ran

SEATS, ITERATIONS = 256, 2000
SLO = {"ttft_s": 10.0, "tpot_s": 0.2}
POLICIES: dict[str, dict[str, Any]] = {
    "lagrangian": {},
    "deadline": SLO,
    "serving": {**SLO, "workload": "serving"},
    "mixed_first": {"mixed_tokens": 512, "mixed_counts_active": True},
}


def timed(call: Callable[[], Any], took: list[float]) -> Any:
    """What it returns; the microseconds that it took are appended."""
    before = time.perf_counter()
    answer = call()
    took.append(1e6 * (time.perf_counter() - before))
    return answer


def measured(policy: str, more: dict[str, Any], active: int, waiting: int) -> list[float]:
    """Medians, in microseconds."""
    scenario = Scenario(num_clients=SEATS, queue="shared", order="fcfs", lengths="hidden", **more)
    driver: Driver[int] = Driver(policy, scenario, mean_output_tokens=200, virtual=True)
    asks: list[float] = []
    runs: list[float] = []
    arrivals: list[float] = []
    for key in range(active):
        driver.arrive(key, 50, 0)
    driver.look()
    driver.ran(Ran(False, [(key, 50, 0) for key in range(active)]))
    for key in range(active, active + waiting):
        timed(lambda key=key: driver.arrive(key, 50, 0), arrivals)
    for _ in range(ITERATIONS):
        timed(driver.decide, asks)
        timed(lambda: driver.ran(Ran(True)), runs)
    return [statistics.median(one) if one else 0.0 for one in (asks, runs, arrivals)]


def main() -> None:
    """Print the table."""
    print("| policy | active | waiting | decide | ran | arrive |\n| --- | --- | --- | --- | --- | --- |")
    rows = [(policy, more, 200, waiting) for policy, more in POLICIES.items() for waiting in (0, 1000)]
    for policy, more, active, waiting in [*rows, ("decode_first", {}, 1, 1000)]:
        times = " | ".join(f"{one:.1f}" for one in measured(policy, more, active, waiting))
        print(f"| `{policy}` | {active} | {waiting} | {times} |")


if __name__ == "__main__":
    main()
