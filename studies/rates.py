"""Requests over time at a rate that does not depend on who serves them."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched_env.cost import capacity_requests_per_s
from llmsched_env.workload import Requests, workload

__all__ = ["AtRateFor"]


@dataclass(frozen=True)
class AtRateFor:
    """A workload at a load of so many clients: the rate of `Scenario.load`, kept where others serve it.

    Attributes:
        base: name of a workload with arrivals.
        load: share of what the clients can take at most.
        num_clients: whose capacity that is.
        cost: preset of their cost model.
    """

    base: str
    load: float
    num_clients: int
    cost: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.base} at load {self.load} of {self.num_clients} clients"

    def pool_size(self, split: str) -> int | None:
        """As of the base."""
        return workload(self.base).pool_size(split)

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """Those of the base at this rate, for the case's own mean lengths."""
        found = workload(self.base).requests(split, number, num_requests=num_requests)
        means = float(found.prompt_tokens.mean()), float(found.output_tokens.mean())
        return found.at_load(self.load, capacity_requests_per_s(self.cost, self.num_clients, *means))
