"""The claim: vLLM under a policy does what the simulator does, in every iteration, view and time."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.config")

import vllm_bare as bare
from beside_simulator import played
from vllm_playing import REQUESTS, SLO, Playing, compare, drawn, options

POLICIES = {
    "prefill_first": ("prefill_first", [], {}),
    "threshold": ("threshold", [4], {}),
    "lagrangian": ("lagrangian", [0.7], {}),
    "deadline": ("deadline", [4, 0.5], SLO),
    "delay_factor": ("delay_factor", [0.5], {}),
    "mixing": ("mixed_first", [], {"mixed_tokens": 96, "mixed_counts_active": True}),
}


@pytest.mark.parametrize("requests", REQUESTS)
@pytest.mark.parametrize("name", POLICIES)
def test_it_does_what_the_simulator_does(model, name, requests):
    policy, parameters, more = POLICIES[name]
    playing = Playing(bare.scheduler(model, options(policy, parameters, **more)))
    playing.play(REQUESTS[requests])
    assert compare(playing, policy, parameters, REQUESTS[requests]) > 500
    actions = [action for action, _, _ in played("prefill_first", [], playing.serving.session.driver.scenario,
                                                  REQUESTS[requests], 20.0)]  # fmt: skip
    alike = name == "prefill_first" or (name, requests) == ("delay_factor", "batch")  # as docs of that rule say
    assert (actions == playing.actions) == alike, "another rule would have done the same"


@pytest.mark.parametrize(("seats", "gap_s"), [(32, 0.0), (32, 0.15)], ids=["batch", "arrivals"])
def test_the_shipped_agent_does_too(model, seats, gap_s):
    """Under the costs and the lengths that it was trained for."""
    requests = drawn(2, 200, round(gap_s * 1e9), (5, 150), (20, 200))
    told = {"cost": "llama-65b-paper", "mean_output_tokens": 110.0, "workload": "serving", "ttft_s": 2.0, "tpot_s": 0.1}
    playing = Playing(bare.scheduler(model, options("serving", [], **told), seats=seats))
    playing.play(requests)
    assert compare(playing, "serving", [], requests) > 800
    scenario = playing.serving.session.driver.scenario
    actions = [action for action, _, _ in played("prefill_first", [], scenario, requests, 110.0)]
    assert actions != playing.actions, "the agent only did what prefill-first does"


def test_late_requests_go_last(model):
    """The order of reading is another than that of arrival."""
    requests = drawn(4, 200, 1200)
    playing = Playing(bare.scheduler(model, options("deadline", [4, 0.5], **SLO, order="late_last")))
    playing.play(requests)
    compare(playing, "deadline", [4, 0.5], requests)
    started = [playing.first_ns[number] for number in range(len(requests))]
    assert started != sorted(started)


def test_an_order_is_an_action(model):
    """Each prefill by an order of its own."""
    requests = REQUESTS["arrivals"]
    playing = Playing(bare.scheduler(model, options("test_claim:Turns", **SLO, choose_order=True)))
    playing.play(requests)
    compare(playing, "test_claim:Turns", [], requests)
    assert set(playing.actions) == set(range(7))


class Turns:
    """Every action in its turn."""

    name, kind, clairvoyant = "turns", "rule", False

    def reset(self, start):
        self.asked = 0

    def act(self, view):
        self.asked += 1
        return self.asked % 7


@pytest.mark.parametrize("blocks", [10_000, 20], ids=["plenty", "preemption"])
@pytest.mark.parametrize("budget", [64, 128, 512, 2048])
def test_vllm_alone_is_what_the_simulator_calls_vllm_v1(model, budget, blocks):
    """Its own scheduler decides, in the shadow; the driver follows it, and the simulator plays `mixed_first`."""
    tight = blocks < 10_000
    requests = drawn(5, 150, 900, (1, 60), (1, 60)) if tight else REQUESTS["arrivals"]
    told = options("mixed_first", [], mixed_tokens=budget, mixed_counts_active=True, shadow=True, kv=True)
    playing = Playing(bare.scheduler(model, told, seats=16, tokens=budget, blocks=blocks))
    playing.play(requests)
    assert compare(playing, "mixed_first", [], requests) > 500
    assert (playing.preemptions > 0) == tight
