"""Measuring policies: rollouts over cases, metrics, comparison with confidence intervals, reports."""

from llmsched_env.cases import SLOWarning
from llmsched_env.errors import WorkerError
from llmsched_env.evaluation.comparison import Comparison
from llmsched_env.evaluation.decisions import Trace, trace_episode
from llmsched_env.evaluation.phases import phases, request_table
from llmsched_env.evaluation.rollout import (
    CoverageWarning,
    Evaluation,
    HorizonWarning,
    begin,
    decision_times,
    evaluate,
    play,
)
from llmsched_env.evaluation.statistics import (
    Estimate,
    aggregate_estimate,
    mean_estimate,
    runs_estimate,
    score_estimate,
    share_estimate,
    wilson_interval,
)
from llmsched_env.evaluation.trace_events import trace_events, write_trace
from llmsched_env.evaluation.write_table import write_table
from llmsched_env.metrics import EPISODE_METRICS, SERVING_METRICS, final_metrics, request_metrics, serving_metrics

__all__ = [
    "EPISODE_METRICS",
    "SERVING_METRICS",
    "Comparison",
    "CoverageWarning",
    "Estimate",
    "Evaluation",
    "HorizonWarning",
    "SLOWarning",
    "Trace",
    "WorkerError",
    "aggregate_estimate",
    "begin",
    "decision_times",
    "evaluate",
    "final_metrics",
    "mean_estimate",
    "phases",
    "play",
    "request_metrics",
    "request_table",
    "runs_estimate",
    "score_estimate",
    "serving_metrics",
    "share_estimate",
    "trace_episode",
    "trace_events",
    "wilson_interval",
    "write_table",
    "write_trace",
]
