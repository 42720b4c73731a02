"""Rules whose numbers were chosen on training cases: the honest bar for a learned policy.

``python -m llmsched_env.baselines.tuned`` makes ``tuned.json`` again; a scenario that is not in it is tuned when first
met, on fewer training cases. Nothing is ever tuned on validation or test cases. The exception is a file of one's own:
it is one case in every split, so its rules are tuned on reorderings of the requests that they are judged on, and a
message says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent
from llmsched_env.agents.files import shipped, shipped_agent, shipped_digest
from llmsched_env.baselines.iteration import deadline, interleave, max_wait, min_batch, tgi, threshold
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.baselines.mixed import mixed_threshold
from llmsched_env.baselines.rule import Rule
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.engine import rule as engine
from llmsched_env.errors import ConfigError, LLMSchedError
from llmsched_env.evaluation import CoverageWarning, evaluate, mean_estimate
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.flags import flags_of, in_flags, path_option
from llmsched_env.policy import EpisodeContext, Policy
from llmsched_env.progress import Progress
from llmsched_env.storage import output_file, write_whole

__all__ = ["AGENT", "LOADS", "RULE", "TUNABLE", "Tuned", "best_rule", "best_tuned", "paired", "tunable", "tuned_value"]

STORED = Path(__file__).with_name("tuned.json")
STORED_CASES = 64
QUICK_CASES = 16
LOADS = (0.7, 0.8, 0.9, 0.97)
"""Of a comparison over loads."""

COMMAND = "python -m llmsched_env.baselines.tuned"

_log = logging.getLogger(__name__)


class Tunable(NamedTuple):
    """A rule with numbers to choose, and where to look for them."""

    make: Callable[..., Rule]
    grid: Callable[[Scenario], Sequence[tuple[float, ...]]]


def _single(values: Iterable[float]) -> list[tuple[float, ...]]:
    return [(float(value),) for value in values]


def _counts(scenario: Scenario) -> Sequence[tuple[float, ...]]:
    shares = np.concatenate([np.arange(1, 31) * 0.005, [0.175, 0.2, 0.25, 0.3, 0.4, 0.5]])
    return _single(sorted({max(1, round(share * scenario.num_clients)) for share in shares}))


def _multipliers(scenario: Scenario) -> Sequence[tuple[float, ...]]:
    return _single(np.round(np.geomspace(0.01, 10.0, 37), 4))


def _decodes(scenario: Scenario) -> Sequence[tuple[float, ...]]:
    return _single((*range(1, 21), 24, 28, 32, 40, 48, 64, 96))


def _ratios(scenario: Scenario) -> Sequence[tuple[float, ...]]:
    return _single(np.round(np.geomspace(0.01, 1.0, 25), 4))


def _deadlines(scenario: Scenario) -> Sequence[tuple[float, ...]]:
    counts = sorted({max(1, round(share * scenario.num_clients)) for share in (0.02, 0.04, 0.06, 0.08, 0.12, 0.2)})
    return [(float(count), share) for count in counts for share in (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)]


TUNABLE: dict[str, Tunable] = {
    "tuned_threshold": Tunable(lambda value: threshold(int(value)), _counts),
    "lagrangian_tuned": Tunable(lagrangian, _multipliers),
    "max_wait_tuned": Tunable(lambda value: max_wait(int(value)), _decodes),
    "interleave_tuned": Tunable(lambda value: interleave(2, int(value)), _decodes),
}
"""For every scenario."""

SLO_TUNABLE: dict[str, Tunable] = {
    "min_batch_tuned": Tunable(lambda value: min_batch(int(value)), _counts),
    "tgi_tuned": Tunable(tgi, _ratios),
    "deadline_tuned": Tunable(lambda count, share: deadline(int(count), share), _deadlines),
}
"""For those with SLOs, beside the others."""


MIXED_TUNABLE: dict[str, Tunable] = {
    "mixed_tuned": Tunable(lambda value: mixed_threshold(int(value)), lambda scenario: [(1.0,), *_counts(scenario)]),
}
"""Where iterations may be mixed, beside the others; with 1 it is `mixed_first`."""


AGENT = "agent"
"""The shipped networks, whose number is which of them decides."""

RULE = -1.0
"""None of them: the best tuned rule."""


def tunable(scenario: Scenario) -> dict[str, Tunable]:
    """What can be tuned for a scenario, by name."""
    return {
        **TUNABLE,
        **(SLO_TUNABLE if scenario.serving else {}),
        **(MIXED_TUNABLE if scenario.mixes else {}),
    }


class Choice(NamedTuple):
    """What tuning found: the numbers, and the mean of the objective that they reached on the training cases."""

    values: tuple[float, ...]
    mean: float
    cases: int

    def loss(self, scenario: Scenario) -> float:
        """The mean, such that less is better."""
        return -self.mean if scenario.serving else self.mean


IRRELEVANT = (
    "split", "reward", "skip_forced", "max_iterations", "prefill_token_cap", "choose_order", "choose_length",
)  # fmt: skip


def _key(scenario: Scenario, name: str) -> str:
    """What a choice depends on: the rule, and what the scenario changes of the default one."""
    shown, usual = scenario.describe(), Scenario().describe()
    irrelevant = {*IRRELEVANT}
    if name == AGENT:
        name = f"{name} {shipped_digest()}"
        irrelevant -= {"choose_order", "choose_length"}  # which networks fit depends on them
    elif scenario.serving and scenario.order in ("fcfs", "late_last") and scenario.kv_admission == "fits":
        irrelevant |= {"lengths", "predictor", "sd_weight"}  # no rule that is tuned looks at them
    changed = {field: value for field, value in shown.items() if value != usual.get(field) and field not in irrelevant}
    return json.dumps({"policy": name, **changed}, sort_keys=True, default=str)


@functools.cache
def _stored() -> dict[str, dict[str, Any]]:
    try:
        return {entry["key"]: entry for entry in json.loads(STORED.read_text(encoding="utf-8"))["entries"]}
    except FileNotFoundError:
        return {}


def tune(name: str, scenario: Scenario, cases: int) -> Choice:
    """The best numbers of the grid by the mean objective on the first training cases; the first ones on ties."""
    rule, where = tunable(scenario)[name], scenario.replace(choose_order=False, choose_length=False)
    choices = [
        Choice(values, float(_trained_on(rule.make(*values), where, cases).mean()), cases)
        for values in Progress(rule.grid(scenario), desc=f"tuning {name}", unit="value")
    ]
    return min(choices, key=lambda choice: choice.loss(scenario))


def _trained_on(policy: Policy, scenario: Scenario, cases: int) -> NDArray[np.float64]:
    """(cases,) the objective on the first training cases."""
    train = scenario.replace(split="train", max_iterations=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # what is judged says it once, not every value that is tried
        return evaluate(policy, train, cases, latencies=False).columns[scenario.objective]


def tune_agent(scenario: Scenario, cases: int) -> Choice:
    """Number of the shipped network that does best on the first training cases, or `RULE`.

    It is a network only where it is surely better than the best tuned rule: the 95 % interval of the mean difference
    over these cases says so.
    """
    name, where = best_rule(scenario)
    rule = _trained_on(tunable(where)[name].make(*tuned_value(name, where).values), where, cases)
    best, better = Choice((RULE,), float(rule.mean()), cases), 0.0
    sign = -1.0 if scenario.serving else 1.0
    networks = shipped_agent().trained if shipped() else ()
    fitting = [number for number, one in enumerate(networks) if one.fits(scenario)]
    for number in Progress(fitting, desc=f"tuning {AGENT}", unit="network"):
        found = _trained_on(Agent(AGENT, [networks[number]]), scenario, cases)
        apart = mean_estimate(sign * (found - rule))
        if apart.high < 0.0 and apart.mean < better:
            best, better = Choice((float(number),), float(found.mean()), cases), apart.mean
    return best


def tuned_value(name: str, scenario: Scenario) -> Choice:
    """The tuned numbers of rule ``name`` for a scenario: the stored ones, or tuned now.

    Of `AGENT` it is what `tune_agent` finds.
    """
    networks = shipped_digest() if name == AGENT else ""
    return _tuned_value(name, scenario, getattr(scenario.source, "version", None), networks)


@functools.lru_cache(maxsize=4096)
def _tuned_value(name: str, scenario: Scenario, version: object, networks: str) -> Choice:
    entry = _stored().get(_key(scenario, name))
    if entry is not None and version is None:
        return Choice(tuple(entry["values"]), entry["mean"], entry["cases"])
    if version is not None and not _has_training_cases(scenario):
        _warn_of_tuning_on_test_cases(scenario.source.name)
    cases = _quick_cases(scenario)
    _log.info("tuning %s on %d training cases of a scenario that is not in tuned.json", name, cases)
    return tune_agent(scenario, cases) if name == AGENT else tune(name, scenario, cases)


@functools.cache
def _warn_of_tuning_on_test_cases(workload: str) -> None:
    """Once for each file, whatever is tuned."""
    _log.warning(
        "tuned rules are tuned on reorderings of the file that they are judged on: %s has no training cases.", workload
    )


def _has_training_cases(scenario: Scenario) -> bool:
    """Whether a file's splits are apart: stretches of a recorded trace are, reorderings of one table are not."""
    return bool(getattr(scenario.source, "disjoint_splits", False))


def _quick_cases(scenario: Scenario) -> int:
    """A trace may have fewer windows in its training stretch."""
    return min(QUICK_CASES, scenario.source.pool_size("train") or QUICK_CASES)


def best_tuned(scenario: Scenario) -> str:
    """Name of the tuned rule that did best on training cases: what scores count from.

    Where orders are actions, of the pairs of a rule and an order: ``rule@order``.
    """
    rule, where = best_rule(scenario)
    return paired(rule, where.order) if scenario.choose_order else rule


def best_rule(scenario: Scenario) -> tuple[str, Scenario]:
    """The same rule and where it was tuned, which is under the best order where orders are actions."""
    ordered = [scenario]
    if scenario.choose_order:
        ordered = [scenario.replace(order=order, choose_order=False) for order in ORDER_CODES]
    pairs = [(name, where) for where in ordered for name in tunable(where)]
    return min(pairs, key=lambda pair: tuned_value(*pair).loss(scenario))


def paired(rule: str, order: str) -> str:
    """The name of a rule under an order."""
    return rule if order == "fcfs" else f"{rule}@{order}"


class Tuned(Rule):
    """A tunable rule with the numbers that training cases chose for the scenario that it is started in."""

    def __init__(self, name: str) -> None:
        super().__init__(name, engine.Rule)

    def compiled(self, start: EpisodeContext) -> engine.Rule:
        """The rule with its tuned numbers."""
        rule = tunable(start.scenario).get(self.name)
        if rule is None:
            if self.name in MIXED_TUNABLE:
                raise ConfigError(f"policy {self.name!r} needs mixed iterations: give mixed_tokens.")
            raise ConfigError(f"policy {self.name!r} needs SLOs: give ttft_s and tpot_s.")
        return rule.make(*tuned_value(self.name, start.scenario).values).compiled(start)


def default_scenarios() -> list[Scenario]:
    """What the stored numbers cover: both cases, the queue forms of the ablation, the three presets, and what else is
    scored: the blind and the predicted case, serving.
    """
    queues: list[dict[str, Any]] = [
        {"queue": "client", "assignment": "mip"},
        {"queue": "client", "assignment": "lpt"},
        {"queue": "shared", "order": "longest_first"},
        {"queue": "shared", "order": "fcfs"},
    ]
    presets = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")
    batch = [
        Scenario(workload=name, cost=cost, **queue)
        for name, cost, queue in product(("gsm8k", "gsm8k-smooth"), presets, queues)
    ]
    others = [make_scenario(name) for name in ("LLMSched/GSM8K-Blind-v0", "LLMSched/GSM8K-Predicted-v0")]
    return [*batch, *others, *serving_scenarios()]


def agent_scenarios() -> list[Scenario]:
    """Where the network that decides is stored: in the default scenarios, orders as actions where they are."""
    orders = len(ORDER_CODES)
    ordered = [scenario.replace(order="fcfs", choose_order=True) for scenario in serving_scenarios()[::orders]]
    blind = [make_scenario("LLMSched/Serving-v0", load=load) for load in LOADS]
    agent = shipped_agent()
    return [scenario for scenario in (*default_scenarios(), *ordered, *blind) if agent.fits(scenario)]


def serving_scenarios() -> list[Scenario]:
    """Those of the serving ids, at the loads of a comparison, and of the leaderboard, under each order."""
    relaxed = make_scenario("LLMSched/ServingOrder-v0")
    binding = make_scenario("LLMSched/ServingOrder-v1")
    scenarios = [
        *(relaxed.replace(load=load) for load in LOADS),
        binding,
        binding.replace(load=0.97, ttft_s=0.5, tpot_s=0.15),
    ]
    return [scenario.replace(order=order, choose_order=False) for scenario in scenarios for order in ORDER_CODES]


def main(argv: Sequence[str] | None = None) -> int:
    """Tune every rule on every default scenario and write ``tuned.json``; 2 for unusable arguments."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=main.__doc__)
    parser.add_argument("--cases", type=int, default=STORED_CASES, help="training cases (default: %(default)s)")
    parser.add_argument("--missing", action="store_true", help="keep the numbers that the file has, tune the others")
    parser.add_argument("--out", type=path_option, default=STORED, help="file to write (default: the package's own)")
    options = parser.parse_args(argv)
    try:
        _tune_all(options.cases, options.out, keep=options.missing)
    except LLMSchedError as error:
        parser.exit(2, f"error: {in_flags(str(error), flags_of(parser))}\n")
    return 0


def _tune_all(cases: int, out: Path, keep: bool) -> None:
    case_numbers(cases)  # complains before the long work, as the next lines do
    output_file(out)
    old = json.loads(out.read_text(encoding="utf-8")) if keep else {"entries": []}
    kept = {entry["key"]: entry for entry in old["entries"]}
    jobs = [(name, scenario) for scenario in default_scenarios() for name in tunable(scenario)]
    jobs += [(AGENT, scenario) for scenario in agent_scenarios()]
    added = f"; --missing --cases {cases}"
    made_by = f"{old['made_by'].removesuffix(added)}{added}" if keep else f"{COMMAND} --cases {cases}"
    entries: list[dict[str, Any]] = []
    for name, scenario in Progress(jobs, desc="tuning", unit="rule", leave=True):
        key = _key(scenario, name)
        if key not in kept:
            found = tune_agent(scenario, cases) if name == AGENT else tune(name, scenario, cases)
            kept[key] = {"key": key, **found._asdict()}
            if keep:  # a killed run goes on from here
                _write(out, old["made_by"], [*kept.values()])
        entries.append(kept[key])
    _write(out, made_by, entries)


def _write(out: Path, made_by: str, entries: Sequence[dict[str, Any]]) -> None:
    said = {
        "made_by": made_by,
        "tuned_on": "the first cases of split train, mean makespan (goodput with SLOs)",
        "entries": entries,
    }
    with write_whole(out) as path:
        path.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
