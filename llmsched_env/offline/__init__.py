"""Before the first iteration: which client serves which request, and how fast any schedule could be.

- :func:`assign` balances requests over clients (Minimizing Makespan Bin Packing, P||Cmax) and says how near to the
  optimum it came, with a certificate; :func:`stored_assignment` takes the result from the shipped pools or the cache.
- :func:`lower_bounds` gives LB1 to LB4: no policy finishes earlier, proved in their docstrings.
- :func:`goodput_bound` says how many requests any policy can serve in time, at most.
- :func:`assign_expected_max` does so for loads that are uncertain, :func:`sample_average` on a sample of scenarios.
- :func:`naive_model` and :func:`stage_model` are the paper's MIPs as they stand: exact references on small problems.
- :class:`QueueOptimum` is the exact reference where the order of the requests is given and a policy only says when.

All of it is deterministic: seeds and counts decide, never a clock.
"""

from llmsched_env.offline.assignment import METHODS, STAGES, Assignment, Budget, assign, naive_model
from llmsched_env.offline.bounds import (
    LowerBounds,
    lb1_ns,
    lb2_ns,
    lb3_ns,
    lb4_ns,
    lower_bounds,
    min_prefills,
    mixed_bound_ns,
)
from llmsched_env.offline.cmax_bounds import cmax_bound
from llmsched_env.offline.expected_max import assign_expected_max, expected_max, expected_max_bound
from llmsched_env.offline.goodput import goodput_bound
from llmsched_env.offline.greedy import lpt, round_robin
from llmsched_env.offline.queue_optimum import QueueOptimum
from llmsched_env.offline.sample_average import SampleAverage, sample_average, tail_mean
from llmsched_env.offline.stage_model import Stage, StagePlan, stage_model
from llmsched_env.offline.store import stored_assignment

__all__ = [
    "METHODS",
    "STAGES",
    "Assignment",
    "Budget",
    "LowerBounds",
    "QueueOptimum",
    "SampleAverage",
    "Stage",
    "StagePlan",
    "assign",
    "assign_expected_max",
    "cmax_bound",
    "expected_max",
    "expected_max_bound",
    "goodput_bound",
    "lb1_ns",
    "lb2_ns",
    "lb3_ns",
    "lb4_ns",
    "lower_bounds",
    "lpt",
    "min_prefills",
    "mixed_bound_ns",
    "naive_model",
    "round_robin",
    "sample_average",
    "stage_model",
    "stored_assignment",
    "tail_mean",
]
