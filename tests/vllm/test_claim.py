"""The claim: vLLM under a policy does what the simulator does, in every iteration, view and time."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.config")

import vllm_bare as bare
from vllm_playing import REQUESTS, SLO, Playing, compare, options

POLICIES = {
    "prefill_first": ("prefill_first", [], {}),
    "threshold": ("threshold", [4], {}),
    "lagrangian": ("lagrangian", [0.7], {}),
    "deadline": ("deadline", [4, 0.5], SLO),
    "delay_factor": ("delay_factor", [0.5], {}),
    "late last": ("deadline", [4, 0.5], {**SLO, "order": "late_last"}),
    "mixing": ("mixed_first", [], {"mixed_tokens": 96, "mixed_counts_active": True}),
}


@pytest.mark.parametrize("requests", REQUESTS)
@pytest.mark.parametrize("name", POLICIES)
def test_it_does_what_the_simulator_does(model, name, requests):
    policy, parameters, more = POLICIES[name]
    playing = Playing(bare.scheduler(model, options(policy, parameters, **more)))
    playing.play(REQUESTS[requests])
    assert compare(playing, policy, parameters, REQUESTS[requests]) > 500
