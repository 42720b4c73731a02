"""Small environments, so that a test of the adapter takes milliseconds."""

from __future__ import annotations

import pytest

from llmsched_env.config import Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.workload import GammaWorkload, ServingWorkload

SMALL = Scenario(
    workload=GammaWorkload(name="small", num_requests=40, output_mean_tokens=30.0, output_sd_tokens=15.0),
    num_clients=6,
    assignment="lpt",
    prefill_token_cap=256,
)

WITH_SLO = SMALL.replace(
    workload=ServingWorkload("SLO", SMALL.source, num_requests=40),
    queue="shared",
    order="fcfs",
    load=0.9,
    ttft_s=0.3,
    tpot_s=0.025,
    reward="goodput",
)
ORDERED = WITH_SLO.replace(choose_order=True, lengths="predicted", predictor="noisy")


@pytest.fixture
def small():
    """A scenario of 40 requests on 6 clients."""
    return SMALL


@pytest.fixture
def with_slo():
    """The same requests over time, with SLOs that some meet and others do not."""
    return WITH_SLO


@pytest.fixture
def ordered():
    """The same with orders as actions, by predicted lengths."""
    return ORDERED


@pytest.fixture
def make(small):
    """``make(**changes)``: the environment of the small scenario."""
    return lambda **changes: LLMSchedEnv(small.replace(**changes))
