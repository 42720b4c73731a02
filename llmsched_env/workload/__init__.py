"""What is to be served: requests, the workloads that they are drawn from, and the splits that keep studies honest."""

from llmsched_env.workload.arrivals import (
    ArrivalProcess,
    DiurnalArrivals,
    GammaArrivals,
    OnOffArrivals,
    PoissonArrivals,
)
from llmsched_env.workload.coarse import LengthClass, LengthInterval
from llmsched_env.workload.from_csv import CsvWorkload, read_requests_csv
from llmsched_env.workload.gsm8k import Gsm8kSmoothWorkload, Gsm8kWorkload
from llmsched_env.workload.lengths import LengthLaw
from llmsched_env.workload.predictor_names import PREDICTORS, predictor
from llmsched_env.workload.predictors import (
    NoisyTruth,
    Population,
    Prediction,
    Predictor,
    PromptRegression,
    UnevenTruth,
    estimated_tokens,
)
from llmsched_env.workload.protocol import POOL_SIZES, SPLITS, Workload
from llmsched_env.workload.quantiles import QuantileLaw, QuantileWorkload
from llmsched_env.workload.registry import WORKLOADS, workload
from llmsched_env.workload.requests import MAX_TOKENS, Requests
from llmsched_env.workload.serving import ServingWorkload
from llmsched_env.workload.synthetic import GammaWorkload, LognormalWorkload, MixtureWorkload
from llmsched_env.workload.trace import PrefixBlocks, Trace
from llmsched_env.workload.trace_formats import read_trace
from llmsched_env.workload.traces import TraceWorkload

__all__ = [
    "MAX_TOKENS",
    "POOL_SIZES",
    "PREDICTORS",
    "SPLITS",
    "WORKLOADS",
    "ArrivalProcess",
    "CsvWorkload",
    "DiurnalArrivals",
    "GammaArrivals",
    "GammaWorkload",
    "Gsm8kSmoothWorkload",
    "Gsm8kWorkload",
    "LengthClass",
    "LengthInterval",
    "LengthLaw",
    "LognormalWorkload",
    "MixtureWorkload",
    "NoisyTruth",
    "OnOffArrivals",
    "PoissonArrivals",
    "Population",
    "Prediction",
    "Predictor",
    "PrefixBlocks",
    "PromptRegression",
    "QuantileLaw",
    "QuantileWorkload",
    "Requests",
    "ServingWorkload",
    "Trace",
    "TraceWorkload",
    "UnevenTruth",
    "Workload",
    "estimated_tokens",
    "predictor",
    "read_requests_csv",
    "read_trace",
    "workload",
]
