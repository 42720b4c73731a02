"""What is played: the scenarios of ``LLMSched-Bench-v1`` and their cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmsched_env import make_scenario
from llmsched_env.config import Scenario
from llmsched_env.errors import UnknownNameError

__all__ = ["LLMSCHED_BENCH", "Benchmark", "Place"]


class Place(NamedTuple):
    """A scenario of a benchmark, and the cases that are played in it.

    Attributes:
        scenario_id: environment id.
        changes: arguments of the scenario that differ from the id's.
        cases: case numbers of the test split, consecutive.
    """

    scenario_id: str
    changes: Mapping[str, Any]
    cases: range

    @property
    def scenario(self) -> Scenario:
        """With the test cases."""
        return make_scenario(self.scenario_id, split="test", **self.changes)

    @property
    def figure(self) -> str:
        """What an entry says of each case: the makespan, or how many counted requests violate an SLO."""
        return "violations" if self.scenario.serving else "makespan_ns"

    @property
    def mean(self) -> str:
        """What an entry calls the mean of it."""
        return "mean_violations" if self.scenario.serving else "mean_makespan_s"

    @property
    def scale(self) -> float:
        """How many of it make one of the mean."""
        return 1.0 if self.scenario.serving else 1e9


@dataclass(frozen=True)
class Benchmark:
    """A set of scenarios that entries are made for. What a name stands for never changes.

    Attributes:
        name: with a version.
        places: by the name of the scenario.
        entries: folder of the entries that are shipped, with the references ``best_tuned_rule`` and ``planner``.
    """

    name: str
    places: Mapping[str, Place]
    entries: Path

    def chosen(self, names: Iterable[str] | None) -> list[str]:
        """Names of scenarios in the benchmark's order; all of them for ``None``.

        Raises:
            UnknownNameError: no such scenario.
        """
        wanted = set(self.places if names is None else names)
        for name in sorted(wanted - set(self.places)):
            raise UnknownNameError(f"scenario of {self.name}", name, self.places)
        return [name for name in self.places if name in wanted]


_GSM8K, _SMOOTH = "LLMSched/GSM8K-v0", "LLMSched/GSM8K-Smooth-v0"
_ORDER = "LLMSched/ServingOrder-v1"
_SHARED = {"queue": "shared", "order": "longest_first"}
_LPT = {"assignment": "lpt"}
_BATCH, _SERVING = range(100, 140), range(20, 40)

LLMSCHED_BENCH = Benchmark(
    "LLMSched-Bench-v1",
    {
        "gsm8k": Place(_GSM8K, {}, _BATCH),
        "gsm8k-shared": Place(_GSM8K, _SHARED, _BATCH),
        "gsm8k-lpt": Place(_GSM8K, _LPT, _BATCH),
        "smooth": Place(_SMOOTH, {}, _BATCH),
        "smooth-shared": Place(_SMOOTH, _SHARED, _BATCH),
        "smooth-lpt": Place(_SMOOTH, _LPT, _BATCH),
        "smooth-mid": Place(_SMOOTH, {"cost": "llama-65b-paper-mid"}, _BATCH),
        "smooth-low": Place(_SMOOTH, {"cost": "llama-65b-paper-low"}, _BATCH),
        "order": Place(_ORDER, {}, _SERVING),
        "order-ttft": Place(_ORDER, {"load": 0.97, "ttft_s": 0.5, "tpot_s": 0.15}, _SERVING),
    },
    Path(__file__).with_name("entries"),
)
"""The leaderboard's own."""
