"""Rules whose one number was chosen on training cases: the honest bar for a learned policy.

``python -m baselines.tuned`` makes ``tuned.json`` again; a scenario that is not in it is tuned when first met, on fewer
training cases. Nothing is ever tuned on validation or test cases. The exception is a file of one's own: it is one case
in every split, so its rules are tuned on reorderings of the requests that they are judged on, and a message says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from baselines.iteration import interleave, max_wait, threshold
from baselines.lagrangian import lagrangian
from baselines.rule import Rule
from llmsched_env.config import Scenario
from llmsched_env.errors import LLMSchedError, PathError
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.policy import CompiledRule, Start
from llmsched_env.storage import output_folder, write_whole

__all__ = ["TUNABLE", "Tuned", "best_tuned", "tuned_value"]

STORED = Path(__file__).with_name("tuned.json")
STORED_CASES = 64
QUICK_CASES = 16
COMMAND = "python -m baselines.tuned"

_log = logging.getLogger(__name__)


class Tunable(NamedTuple):
    """A rule with one number to choose, and where to look for it."""

    make: Callable[[float], Rule]
    grid: Callable[[Scenario], Sequence[float]]


def _counts(scenario: Scenario) -> Sequence[float]:
    shares = np.concatenate([np.arange(1, 31) * 0.005, [0.175, 0.2, 0.25, 0.3, 0.4, 0.5]])
    return sorted({float(max(1, round(share * scenario.num_clients))) for share in shares})


def _multipliers(scenario: Scenario) -> Sequence[float]:
    return [float(x) for x in np.round(np.geomspace(0.01, 10.0, 37), 4)]


_DECODES = [float(x) for x in (*range(1, 21), 24, 28, 32, 40, 48, 64, 96)]

TUNABLE: dict[str, Tunable] = {
    "tuned_threshold": Tunable(lambda value: threshold(int(value)), _counts),
    "lagrangian_tuned": Tunable(lagrangian, _multipliers),
    "max_wait_tuned": Tunable(lambda value: max_wait(int(value)), lambda scenario: _DECODES),
    "interleave_tuned": Tunable(lambda value: interleave(2, int(value)), lambda scenario: _DECODES),
}


class Choice(NamedTuple):
    """What tuning found: the number, and the mean makespan in s that it reached on the training cases."""

    value: float
    makespan_s: float
    cases: int


def _key(scenario: Scenario, name: str) -> str:
    said = scenario.describe()
    for irrelevant in ("split", "reward", "skip_forced", "max_iterations", "prefill_token_cap"):
        del said[irrelevant]
    return json.dumps({"policy": name, **said}, sort_keys=True, default=str)


@functools.cache
def _stored() -> dict[str, dict[str, Any]]:
    try:
        return {entry["key"]: entry for entry in json.loads(STORED.read_text())["entries"]}
    except FileNotFoundError:
        return {}


def tune(name: str, scenario: Scenario, cases: int) -> Choice:
    """The best number of the grid by mean makespan on the first training cases; the smallest on ties."""
    train = scenario.replace(split="train", max_iterations=None)
    best = Choice(float("nan"), float("inf"), cases)
    for value in tqdm(TUNABLE[name].grid(scenario), desc=f"tuning {name}", leave=False, disable=None):
        makespan_s = evaluate(TUNABLE[name].make(value), train, cases).estimate("makespan_s").mean
        if makespan_s < best.makespan_s:
            best = Choice(value, makespan_s, cases)
    return best


def tuned_value(name: str, scenario: Scenario) -> Choice:
    """The tuned number of rule ``name`` for a scenario: the stored one, or tuned now."""
    return _tuned_value(name, scenario, getattr(scenario.source, "version", None))


@functools.lru_cache(maxsize=256)
def _tuned_value(name: str, scenario: Scenario, version: object) -> Choice:
    entry = _stored().get(_key(scenario, name))
    if entry is not None and version is None:
        return Choice(entry["value"], entry["makespan_s"], entry["cases"])
    if version is not None:
        _log.warning("%s is tuned on reorderings of the file that it is judged on: it has no training cases.", name)
    _log.info("tuning %s on %d training cases of a scenario that is not in tuned.json", name, QUICK_CASES)
    return tune(name, scenario, QUICK_CASES)


def best_tuned(scenario: Scenario) -> str:
    """Name of the tuned rule that did best on training cases: what scores count from."""
    return min(TUNABLE, key=lambda name: tuned_value(name, scenario).makespan_s)


def _replaced(view: Any, parameters: Any, memory: Any) -> Any:
    raise NotImplementedError("a tuned rule runs the function of the rule that it tunes")


class Tuned(Rule):
    """A tunable rule with the number that training cases chose for the scenario that it is started in."""

    def __init__(self, name: str) -> None:
        super().__init__(name, _replaced)

    def compiled(self, start: Start) -> CompiledRule:
        """The rule with its tuned number."""
        return TUNABLE[self.name].make(tuned_value(self.name, start.scenario).value).compiled(start)


def default_scenarios() -> list[Scenario]:
    """What the stored numbers cover: both cases, the queue forms of the ablation, the three presets."""
    queues: list[dict[str, Any]] = [
        {"queue": "client", "assignment": "mip"},
        {"queue": "client", "assignment": "lpt"},
        {"queue": "shared", "order": "longest_first"},
        {"queue": "shared", "order": "fcfs"},
    ]
    presets = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")
    return [
        Scenario(workload=name, cost=cost, **queue)
        for name, cost, queue in product(("gsm8k", "gsm8k-smooth"), presets, queues)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Tune every rule on every default scenario and write ``tuned.json``; 2 for unusable arguments."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=main.__doc__)
    parser.add_argument("--cases", type=int, default=STORED_CASES, help="training cases (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=STORED, help="file to write (default: the package's own)")
    options = parser.parse_args(argv)
    try:
        _tune_all(options.cases, options.out)
    except LLMSchedError as error:
        parser.exit(2, f"error: {error}\n")
    return 0


def _tune_all(cases: int, out: Path) -> None:
    case_numbers(cases)  # complains before the long work, as the next lines do
    output_folder(out.resolve().parent)
    if out.is_dir():
        raise PathError(f"cannot write {out}: it is a folder. Give the path of a file.")
    jobs = [(name, scenario) for scenario in default_scenarios() for name in TUNABLE]
    entries = []
    for name, scenario in tqdm(jobs, desc="tuning", unit="rule"):
        choice = tune(name, scenario, cases)
        entries.append({"key": _key(scenario, name), **choice._asdict()})
    provenance = {
        "made_by": f"{COMMAND} --cases {cases}",
        "tuned_on": f"split train, cases 0-{cases - 1}, mean makespan",
        "entries": entries,
    }
    with write_whole(out) as path:
        path.write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
