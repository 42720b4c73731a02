"""Small environments, so that a test of the adapter takes milliseconds."""

from __future__ import annotations

import pytest

from llmsched_env.config import Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.workload import GammaWorkload

SMALL = Scenario(
    workload=GammaWorkload(name="small", num_requests=40, output_mean_tokens=30.0, output_sd_tokens=15.0),
    num_clients=6,
    assignment="lpt",
    prefill_token_cap=256,
)


@pytest.fixture
def small():
    """A scenario of 40 requests on 6 clients."""
    return SMALL


@pytest.fixture
def make(small):
    """``make(**changes)``: the environment of the small scenario."""
    return lambda **changes: LLMSchedEnv(small.replace(**changes))
