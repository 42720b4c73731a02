"""What is to be served: requests, the workloads that they are drawn from, and the splits that keep studies honest."""

from llmsched_env.workload.from_csv import CsvWorkload, read_requests_csv
from llmsched_env.workload.gsm8k import Gsm8kSmoothWorkload, Gsm8kWorkload
from llmsched_env.workload.lengths import LengthLaw
from llmsched_env.workload.protocol import POOL_SIZES, SPLITS, Workload
from llmsched_env.workload.registry import WORKLOADS, workload
from llmsched_env.workload.requests import MAX_TOKENS, Requests
from llmsched_env.workload.synthetic import GammaWorkload, LognormalWorkload, MixtureWorkload

__all__ = [
    "MAX_TOKENS",
    "POOL_SIZES",
    "SPLITS",
    "WORKLOADS",
    "CsvWorkload",
    "GammaWorkload",
    "Gsm8kSmoothWorkload",
    "Gsm8kWorkload",
    "LengthLaw",
    "LognormalWorkload",
    "MixtureWorkload",
    "Requests",
    "Workload",
    "read_requests_csv",
    "workload",
]
