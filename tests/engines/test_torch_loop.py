"""The example of a home-made engine: continuous batching changes no token, and the policy decides."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from llmsched_env.config import Scenario
from llmsched_env.engines.driver import Driver

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_loop.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("torch_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def alone(model, prompt, count):
    words = []
    for _ in range(count):
        sequence = [*prompt, *words]
        words += model.next_tokens(sequence[-1:], [model.cache(sequence)])
    return words


@pytest.mark.parametrize(
    ("policy", "parameters", "more"),
    [
        ("threshold", [3], {}),
        ("prefill_first", [], {}),
        ("mixed_first", [], {"mixed_tokens": 60, "mixed_whole_prompts": True}),
    ],
)
def test_every_request_gets_the_tokens_that_it_gets_alone(example, policy, parameters, more):
    requests, model = example.drawn(24), example.Model()
    scenario = Scenario(num_clients=8, queue="shared", order="fcfs", lengths="hidden", **more)
    driver = Driver(policy, scenario, parameters=parameters, mean_output_tokens=15)
    texts = example.serve(requests, driver, model)
    assert texts == {key: alone(model, *request) for key, request in requests.items()}
    view = driver.look()
    assert (view.completed, view.active, view.waiting, view.context_tokens) == (24, 0, 0, 0)
    assert (view.mixed > 0) == (policy == "mixed_first")
    assert view.clock_ns > 0


def test_it_says_what_it_served(example, capsys):
    example.main("threshold", "4")
    waits = capsys.readouterr().out
    example.main("prefill_first")
    assert waits.startswith("24 requests, ")
    assert waits != capsys.readouterr().out


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 100
