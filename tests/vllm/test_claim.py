"""The claim: vLLM under a policy does what the simulator does, in every iteration, view and time."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("vllm.config")

import vllm_bare as bare
from vllm_playing import Playing, compare

COST = {"name": "toy", "alpha_prefill_ns": 1000, "beta_prefill_ns": 10, "alpha_decode_ns": 300, "beta_decode_ns": 7,
        "gamma_decode_ns": 0, "prefill_token_cap": 400}  # fmt: skip
SLO = {"ttft_s": 3e-5, "tpot_s": 1e-6}
POLICIES = {
    "prefill_first": ("prefill_first", [], {}),
    "threshold": ("threshold", [4], {}),
    "lagrangian": ("lagrangian", [0.7], {}),
    "deadline": ("deadline", [4, 0.5], SLO),
    "delay_factor": ("delay_factor", [0.5], {}),
    "agent": ("serving", [], {**SLO, "workload": "serving"}),
    "late last": ("deadline", [4, 0.5], {**SLO, "order": "late_last"}),
    "mixing": ("mixed_first", [], {"mixed_tokens": 96, "mixed_counts_active": True}),
}
MEAN = 20.0


def drawn(seed, count, gap_ns, prompts=(5, 150), outputs=(1, 40)):
    rng = random.Random(seed)
    clock, found = 0, []
    for _ in range(count):
        found.append((clock, rng.randint(*prompts), rng.randint(*outputs)))
        clock += rng.randint(0, 2 * gap_ns)
    return found


REQUESTS = {"batch": drawn(1, 200, 0), "arrivals": drawn(2, 300, 3500)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bare.write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("requests", REQUESTS)
@pytest.mark.parametrize("name", POLICIES)
def test_it_does_what_the_simulator_does(model, name, requests):
    policy, parameters, more = POLICIES[name]
    options = {"policy": policy, "parameters": parameters, "cost": COST, "clock": "virtual",
               "mean_output_tokens": MEAN, **more}  # fmt: skip
    serving = bare.scheduler(model, options)
    playing = Playing(serving)
    playing.play(REQUESTS[requests])
    scenario = serving.session.driver.scenario
    count = compare(playing, policy, parameters, scenario, REQUESTS[requests], MEAN)
    print(name, requests, count, "iterations")
