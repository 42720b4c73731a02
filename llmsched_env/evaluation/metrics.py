"""What an episode achieved: each metric is defined, with its formula, in docs/metrics.md."""

from __future__ import annotations

from typing import Any

from llmsched_env.simulator import Simulator

__all__ = ["final_metrics"]


def final_metrics(simulator: Simulator) -> dict[str, Any]:
    """The scalars that an environment reports at the end of an episode, as flat plain numbers."""
    view, totals, instance = simulator.view, simulator.totals, simulator.instance
    makespan_ns = int(view.clock_ns)
    return {
        "makespan_s": makespan_ns / 1e9,
        "utilization": float(totals.busy_client_ns / (instance.num_clients * makespan_ns)),
        "gap_to_bound": makespan_ns / instance.bound_ns - 1.0,
        "prefills": int(view.prefills),
        "decodes": int(view.decodes),
        "completed": int(view.completed),
        "mean_latency_s": float(totals.request_ns / instance.num_requests / 1e9),
    }
