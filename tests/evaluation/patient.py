"""A small scenario, and a policy that remembers what it was told and asked."""

from __future__ import annotations

from llmsched_env.config import Scenario
from llmsched_env.policy import FunctionRule
from llmsched_env.workload import GammaWorkload

SMALL = Scenario(
    workload=GammaWorkload(name="small", num_requests=30, output_mean_tokens=20.0, output_sd_tokens=10.0),
    split="test",
    num_clients=5,
    queue="shared",
    order="fcfs",
    prefill_token_cap=256,
)


class Patient:
    """Prefills when two clients are ready; remembers what it was told and asked."""

    name, kind = "patient", "rule"

    def __init__(self, *, clairvoyant=False):
        self.clairvoyant = clairvoyant
        self.starts = []
        self.asked = 0

    def reset(self, start):
        self.starts.append(start)

    def act(self, view):
        assert view.active > 0
        assert view.ready > 0
        self.asked += 1
        return int(view.ready >= 2)


def two_are_ready(view, parameters, memory):
    return 1 if view.ready >= 2 else 0


class Compiled(Patient):
    """The same, with a rule for the engine's loop."""

    def compiled(self, start):
        self.starts.append(start)
        return FunctionRule(two_are_ready)
