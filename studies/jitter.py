"""Iterations that jitter, and cost models that are wrong: what each costs which method, and which breaks first.

First serving: noise and stragglers on every iteration, at three loads, with rules tuned in the quiet world. Then wrong
models: coefficients are off by a fifth in what schedulers are shown, plan with and are tuned in, and right in the
world; goodput, and makespans of batches. In a batch noise changes no decision of these rules, so it is only measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env import make_scenario
from llmsched_env.baselines import iteration
from llmsched_env.baselines import lagrangian as readings
from llmsched_env.baselines.lookahead import Lookahead
from llmsched_env.baselines.planners import Beam, Rollout
from llmsched_env.baselines.rule import Rule
from llmsched_env.baselines.tuned import tune, tuned_value
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, cost_model
from llmsched_env.evaluation import Estimate, evaluate, mean_estimate
from llmsched_env.evaluation.drawing import INK, LINES, new_figure, plain, save
from llmsched_env.policy import Policy
from llmsched_env.studies.jitter_picture import dots, finding, ranges
from llmsched_env.studies.rates import AtRateFor
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Rows, Table, stacked

__all__ = ["STUDY", "wrong_models"]

PRESET = "llama-65b-paper"
PAPERS_CLIENTS = 200
LOADS = (0.8, 0.9, 0.97)
QUIET, SLOWER = "quiet", "all 9 % slower"
STRAGGLERS, RARE = "1 % last 10 x", "0.1 % last 91 x"
WORLDS: dict[str, dict[str, Any]] = {
    QUIET: {},
    "sd 0.1": {"noise_sd": 0.1},
    "sd 0.3": {"noise_sd": 0.3},
    "sd 0.5": {"noise_sd": 0.5},
    "sd 1": {"noise_sd": 1.0},
    STRAGGLERS: {"straggler_probability": 0.01, "straggler_factor": 10.0},
    RARE: {"straggler_probability": 0.001, "straggler_factor": 91.0},
    SLOWER: {"slower": 1.09},
}
"""Both kinds of stragglers make iterations last 9 % longer in the mean; the last world is that without the jitter."""
SPREADS = {QUIET: 0.0, "sd 0.1": 0.1, "sd 0.3": 0.3, "sd 0.5": 0.5, "sd 1": 1.0}
NOISY = ("sd 0.5", "sd 1", STRAGGLERS, RARE)
"""Worlds in which makespans are measured, too."""
ORDER = "late_last"
FORESEEN_CASES = 10
"""Most cases of the planner that tries every action at each choice."""

OFF = 0.2
COEFFICIENTS = {"alpha_prefill_ns": "α_p", "beta_prefill_ns": "β_p", "alpha_decode_ns": "α_d", "beta_decode_ns": "β_d"}
RIGHT = "right"
LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
WRONG_LOADS = (0.9, 0.97)
TUNED_ON = 8
"""Training cases on which rules are tuned where nothing is stored."""
ROLLED_OUT = 1000
"""Most clients at which each choice is rolled out."""

TUNED: dict[str, tuple[str, Callable[..., Rule]]] = {
    "threshold tuned": ("tuned_threshold", lambda k: iteration.threshold(int(k))),
    "λ tuned": ("lagrangian_tuned", readings.lagrangian),
    "max wait tuned": ("max_wait_tuned", lambda decodes: iteration.max_wait(int(decodes))),
    "deadline tuned": ("deadline_tuned", lambda k, share: iteration.deadline(int(k), share)),
}
SERVED: dict[str, Callable[[], Rule]] = {
    "prefill-first": iteration.prefill_first,
    "λ = 1": readings.lagrangian,
    "eb threshold": iteration.eb_threshold,
    "delay factor": iteration.delay_factor,
}
READERS: dict[str, Callable[[], Rule]] = {
    "λ = 1": readings.lagrangian,
    "λ lookahead": readings.lagrangian_lookahead,
    "λ literal": readings.lagrangian_literal,
    "eb threshold": iteration.eb_threshold,
    "eb threshold, finite": iteration.eb_threshold_finite,
}
"""Rules that read the cost model when they decide."""
IN_BATCHES: dict[str, tuple[Callable[[], Rule], str]] = {
    "prefill-first": (iteration.prefill_first, "shared"),
    "λ = 1": (readings.lagrangian, "shared"),
    "hybrid, LPT queues": (readings.lagrangian, "client"),
}
FORESIGHT = "lookahead"

Column = dict[str, list[float]]


def scaled(model: CostModel, name: str, factors: Mapping[str, float]) -> CostModel:
    """The model with some coefficients times something."""
    return replace(model, name=name, **{key: round(getattr(model, key) * by) for key, by in factors.items()})


def wrong_models(preset: str = PRESET, off: float = OFF) -> dict[str, CostModel]:
    """The right model first, then each coefficient, and all of them, too small and too large by a share."""
    right = cost_model(preset)
    found = {RIGHT: right}
    for symbol, keys in {**{symbol: [key] for key, symbol in COEFFICIENTS.items()}, "all": [*COEFFICIENTS]}.items():
        for sign in (-1, 1):
            name = f"{symbol} {sign * round(100 * off):+d} %"
            found[name] = scaled(right, name, dict.fromkeys(keys, 1 + sign * off))
    return found


def quiet(load: float, order: str = ORDER) -> Scenario:
    """The serving id at a load and in an order: where the stored rules were tuned."""
    return make_scenario("LLMSched/ServingOrder-v0", load=load, order=order, choose_order=False, split="test")


def serving(load: float, order: str = ORDER, *, slower: float = 1.0, **changes: Any) -> Scenario:
    """The same requests in another world: they come when they do in the quiet one."""
    cost = cost_model(PRESET)
    if slower != 1:
        cost = scaled(cost, f"{slower:g} x {PRESET}", dict.fromkeys(COEFFICIENTS, slower))
    workload = AtRateFor("serving", load, PAPERS_CLIENTS, PRESET)
    return quiet(load, order).replace(workload=workload, load=None, cost=cost, **changes)


def tuned_rules(scenario: Scenario, names: Iterable[str] = TUNED) -> dict[str, Rule]:
    """Rules with the numbers that training cases chose in a scenario, as they are stored."""
    chosen = {name: TUNED[name] for name in names}
    return {name: make(*tuned_value(rule, scenario).values) for name, (rule, make) in chosen.items()}


def tuned_in(scenario: Scenario, name: str, cases: int) -> Rule:
    """A rule with the numbers that are best on a few training cases of a scenario."""
    rule, make = TUNED[name]
    return make(*tune(rule, scenario.replace(split="train"), min(TUNED_ON, cases)).values)


def measure_world(load: float, world: str, cases: int) -> Column:
    """Goodput of every rule in one world, tuned in the quiet one; one of them also tuned there."""
    there, first_come = (serving(load, order, **WORLDS[world]) for order in (ORDER, "fcfs"))
    rules = {**{name: make() for name, make in SERVED.items()}, **tuned_rules(quiet(load))}
    rules["deadline tuned there"] = tuned_in(there, "deadline tuned", cases)
    found = {name: _goodput(rule, there, cases) for name, rule in rules.items()}
    usual = tuned_rules(quiet(load, "fcfs"), ["deadline tuned"])["deadline tuned"]
    return {**found, "deadline tuned, fcfs": _goodput(usual, first_come, cases)}


def _goodput(policy: Policy, scenario: Scenario, cases: int) -> list[float]:
    found: list[float] = evaluate(policy, scenario, cases, latencies=False).columns["goodput"].tolist()
    return found


def measure_foresight(load: float, world: str, believed: str, cases: int) -> list[float]:
    """The same of the planner, which knows the requests to come and only believes how long iterations last."""
    changes = dict(WORLDS[world])
    if world == QUIET:
        changes["believed_cost"] = wrong_models()[believed]
    scenario = serving(load, **changes).replace(lengths="known", predictor=None)
    return _goodput(Lookahead(tuned_rules(quiet(load))["deadline tuned"]), scenario, cases)


def measure_served_wrong(load: float, believed: str, cases: int) -> Column:
    """Goodput of the rules that read the model, and of those that were tuned in it."""
    model = wrong_models()[believed]
    rules = {name: make() for name, make in READERS.items()}
    there = serving(load).replace(cost=model)
    for name in ("λ tuned", "threshold tuned", "deadline tuned"):
        rules[f"{name} in it"] = tuned_in(there, name, cases)
    scenario = serving(load, believed_cost=model)
    return {name: _goodput(rule, scenario, cases) for name, rule in rules.items()}


def batch(lengths: str, clients: int, queue: str = "shared", **changes: Any) -> Scenario:
    """A batch with known lengths, longest first, requests in proportion to the clients."""
    size = None if clients == PAPERS_CLIENTS else max(1, round(1319 * clients / PAPERS_CLIENTS))
    usual = {"split": "test", "num_clients": clients, "num_requests": size, "queue": queue, "assignment": "lpt"}
    return Scenario(workload=lengths, **{**usual, **changes})


def _makespans(policy: Policy, scenario: Scenario, cases: int) -> list[float]:
    found: list[float] = evaluate(policy, scenario, cases).columns["makespan_s"].tolist()
    return found


def measure_batch(lengths: str, clients: int, believed: str, cases: int) -> Column:
    """Makespans of every method that reads the model, or was tuned in it."""
    model = wrong_models()[believed]
    shared, queues = (batch(lengths, clients, queue, believed_cost=model) for queue in ("shared", "client"))
    found = {name: _makespans(make(), shared, cases) for name, make in READERS.items()}
    found["hybrid, LPT queues"] = _makespans(readings.lagrangian(), queues, cases)
    for name in ("λ tuned", "threshold tuned"):
        rule = tuned_in(batch(lengths, clients, cost=model), name, cases)
        found[f"{name} in it"] = _makespans(rule, shared, cases)
    found["beam, width 1"] = _makespans(Beam(1, rounds=1), shared, cases)
    if clients <= ROLLED_OUT:
        found["rollout of λ = 1"] = _makespans(Rollout(), shared, cases)
    return found


def measure_noise(lengths: str, clients: int, cases: int) -> dict[str, Column]:
    """Makespans of batches in noisy worlds."""
    return {
        world: {
            name: _makespans(make(), batch(lengths, clients, queue, **WORLDS[world]), cases)
            for name, (make, queue) in IN_BATCHES.items()
        }
        for world in (QUIET, *NOISY)
    }


def jobs(options: Options) -> list[Job]:
    """Worlds by load, wrong models by load, then batches by lengths and size."""
    foreseen = min(FORESEEN_CASES, options.cases)
    made = []
    for load in LOADS:
        for world in WORLDS:
            at = {"load": load, "world": world}
            made.append(Job(f"load {load}, {world}", measure_world, {**at, "cases": options.cases}))
            more = {**at, "believed": RIGHT, "cases": foreseen}
            made.append(Job(f"load {load}, {world}, {FORESIGHT}", measure_foresight, more))
    for load in WRONG_LOADS:
        for believed in wrong_models():
            at = {"load": load, "believed": believed}
            made.append(Job(f"wrong at {load}, {believed}", measure_served_wrong, {**at, "cases": options.cases}))
            if believed != RIGHT:  # that is the planner in the quiet world
                more = {**at, "world": QUIET, "cases": foreseen}
                made.append(Job(f"wrong at {load}, {believed}, {FORESIGHT}", measure_foresight, more))
    for lengths in LENGTHS:
        for clients in options.clients:
            at = {"lengths": lengths, "clients": clients, "cases": options.cases_at(clients)}
            place = f"{lengths}, {clients} clients"
            made.append(Job(f"{place}, noise", measure_noise, at))
            for believed in wrong_models():
                made.append(Job(f"{place}, {believed}", measure_batch, {**at, "believed": believed}))
    return made


def _served(found: Found, load: float, world: str, believed: str | None = None) -> dict[str, NDArray[np.float64]]:
    """Goodput in % of every method in a world, or with a belief: the rules', then the planner's on its cases."""
    place = f"load {load}, {world}" if believed is None else f"wrong at {load}, {believed}"
    planned = f"load {load}, {world}" if believed in (None, RIGHT) else place
    both = {**found[place], FORESIGHT: found[f"{planned}, {FORESIGHT}"]}
    return {name: 100 * np.array(values) for name, values in both.items()}


def lost_in(found: Found, load: float, world: str, usual: str = QUIET) -> dict[str, Estimate]:
    """Goodput in one world against another, in points: the same case in both."""
    here, there = (_served(found, load, name) for name in (world, usual))
    return {name: mean_estimate(here[name] - there[name]) for name in here}


def lost_by_belief(found: Found, load: float, believed: str) -> dict[str, Estimate]:
    """Goodput with a wrong model against the right one, in points."""
    here, there = (_served(found, load, QUIET, name) for name in (believed, RIGHT))
    return {name: mean_estimate(here[name] - there[name]) for name in here}


def longer_by_belief(found: Found, place: str, believed: str) -> dict[str, Estimate]:
    """Makespan with a wrong model against the right one, in %."""
    here, there = (found[f"{place}, {name}"] for name in (believed, RIGHT))
    return {name: mean_estimate(100 * (np.array(here[name]) / np.array(there[name]) - 1)) for name in here}


def _places(found: Found) -> list[str]:
    """Lengths and sizes of the batches."""
    return [name.removesuffix(", noise") for name in found if name.endswith(", noise")]


def _spread(estimate: Estimate, digits: int = 1) -> str:
    if estimate.low == estimate.high == 0:
        return "0"
    if np.isnan(estimate.low):
        return f"{estimate.mean:+.{digits}f}"
    return f"{estimate.mean:+.{digits}f} ± {(estimate.high - estimate.low) / 2:.{digits}f}"


def _worst(losses: Mapping[str, Mapping[str, Estimate]], name: str, sign: int, digits: int) -> str:
    """The wrong model under which a method loses most (``sign`` -1: where less is worse)."""
    model = max(losses, key=lambda one: sign * losses[one][name].mean)
    if sign * losses[model][name].mean <= 0:
        return "none"
    return f"{_spread(losses[model][name], digits)} ({model})"


def _worlds(found: Found, load: float) -> Rows:
    columns = {world: lost_in(found, load, world) for world in WORLDS if world != QUIET}
    beyond = {f"{world}, beyond {SLOWER}": lost_in(found, load, world, SLOWER) for world in (STRAGGLERS, RARE)}
    usual = _served(found, load, QUIET)
    body = [
        [name, f"{values.mean():.1f}", *(_spread(column[name]) for column in (*columns.values(), *beyond.values()))]
        for name, values in usual.items()
    ]
    return ["method", f"{QUIET}, %", *(f"{world}, points" for world in (*columns, *beyond))], body


def _beliefs(found: Found, load: float) -> Rows:
    columns = {name: lost_by_belief(found, load, name) for name in wrong_models() if name != RIGHT}
    usual = _served(found, load, QUIET, RIGHT)
    body = [
        [name, f"{values.mean():.1f}", *(_spread(column[name]) for column in columns.values())]
        for name, values in usual.items()
    ]
    return ["method", f"{RIGHT}, %", *columns], body


def _batches(found: Found, lengths: str) -> Rows:
    """Makespans with the right model, and how much longer they are with the worst of the wrong ones."""
    places = [place for place in _places(found) if place.startswith(f"{lengths}, ")]
    wrong = [name for name in wrong_models() if name != RIGHT]
    losses = {place: {name: longer_by_belief(found, place, name) for name in wrong} for place in places}
    body = []
    for method in found[f"{places[0]}, {RIGHT}"]:
        cells = []
        for place in places:
            right = found[f"{place}, {RIGHT}"]
            known = method in right
            cells += [f"{np.mean(right[method]):.1f}", _worst(losses[place], method, 1, 2)] if known else ["", ""]
        body.append([method, *cells])
    sizes = [place.removeprefix(f"{lengths}, ") for place in places]
    return ["method", *(f"{size}: {what}" for size in sizes for what in ("makespan, s", "longer, %"))], body


def _noise_table(found: Found) -> Table:
    body = []
    for place in _places(found):
        worlds = found[f"{place}, noise"]
        for name in IN_BATCHES:
            ratios = [np.array(worlds[world][name]) / np.array(worlds[QUIET][name]) for world in NOISY]
            body.append([place, name, *(_spread(mean_estimate(100 * (ratio - 1)), 2) for ratio in ratios)])
    return Table("noise", "Batches: makespan against the quiet world, %.", ["place", "rule", *NOISY], body)


def _summary_table(found: Found) -> Table:
    """What hurts each method most, at the highest load and in the batches of the first size."""
    load = max(LOADS)
    noise, rare = lost_in(found, load, "sd 0.5"), lost_in(found, load, RARE, SLOWER)
    frequent = lost_in(found, load, STRAGGLERS, SLOWER)
    wrong = [name for name in wrong_models() if name != RIGHT]
    served = {name: lost_by_belief(found, max(WRONG_LOADS), name) for name in wrong}
    place = _places(found)[0]
    longer = {name: longer_by_belief(found, place, name) for name in wrong}
    names = dict.fromkeys((*noise, *served[wrong[0]], *longer[wrong[0]]))
    body = []
    for name in names:
        jitter = [_spread(column[name]) if name in column else "" for column in (noise, frequent, rare)]
        goodput = _worst(served, name, -1, 1) if name in served[wrong[0]] else ""
        makespan = _worst(longer, name, 1, 2) if name in longer[wrong[0]] else ""
        body.append([name, *jitter, goodput, makespan])
    header = [
        "method",
        "sd 0.5, points",
        f"{STRAGGLERS}, beyond {SLOWER}",
        f"{RARE}, beyond {SLOWER}",
        "worst wrong model, points",
        "worst wrong model, % of makespan",
    ]
    title = f"Goodput at load {load} against the quiet world and the right model, points; makespan of {place}, %."
    return Table("summary", title, header, body)


def tables(found: Found) -> list[Table]:
    """What hurts each method most, then goodput by world and by belief, then makespans."""
    return [
        _summary_table(found),
        stacked(
            "worlds",
            "Goodput in the quiet world, %, and changes in others, points.",
            "load",
            {f"{load}": _worlds(found, load) for load in LOADS},
        ),
        stacked(
            "beliefs",
            "Goodput with the right model, %, and changes with a wrong one, points.",
            "load",
            {f"{load}": _beliefs(found, load) for load in WRONG_LOADS},
        ),
        stacked(
            "batches",
            "Batches: makespan with the right model, s, and how much longer it is with the worst wrong one, %.",
            "lengths",
            {text: _batches(found, lengths) for lengths, text in LENGTHS.items()},
        ),
        _noise_table(found),
    ]


SHORT = (
    "prefill-first",
    "λ = 1",
    "λ tuned",
    "deadline tuned",
    FORESIGHT,
    "λ literal",
    "λ tuned in it",
)
HEADINGS = ("method", "noise", "frequent stragglers", "rare stragglers", "worst wrong model")


def short(found: Mapping[str, Table]) -> Table:
    """What each of these worlds costs the methods that differ, while requests arrive."""
    whole = found["summary"]
    headings = dict(zip(whole.header, HEADINGS, strict=False))  # the last column is of batches
    picked = whole.picked(headings, lambda row: row["method"] in SHORT)
    return picked._replace(title=f"Change of goodput at load {max(LOADS)}, points.")


PICTURED = ("deadline tuned", "λ tuned", "threshold tuned", "λ = 1", "prefill-first", FORESIGHT)


def draw(found: Found, path: Path) -> Path:
    """Goodput against noise by load; stragglers; the range of what wrong models cost each method."""
    figure = new_figure(10.5, 7.0)
    above, below = figure.subplots(2, 3)
    for axes, load in zip(above, LOADS, strict=False):
        for colour, name in zip(LINES, PICTURED, strict=True):
            ys = [_served(found, load, world)[name].mean() for world in SPREADS]
            axes.plot([*SPREADS.values()], ys, "o-", color=colour, markersize=3, linewidth=1.3, label=name)
        axes.set_title(f"load {load}", fontsize=9, color=INK)
        axes.set_xlabel("sd of the logarithm of an iteration", fontsize=8)
        axes.set_ylabel("goodput, %", fontsize=8)
        plain(axes)
    load = max(LOADS)
    points = {world: lost_in(found, load, world) for world in (SLOWER, STRAGGLERS, RARE)}
    dots(below[0], points, PICTURED)
    below[0].set_title(f"slower iterations, load {load}", fontsize=9, color=INK)
    wrong = [name for name in wrong_models() if name != RIGHT]
    served = {name: lost_by_belief(found, max(WRONG_LOADS), name) for name in wrong}
    ranges(below[1], served)
    below[1].set_title(f"wrong models, load {max(WRONG_LOADS)}", fontsize=9, color=INK)
    for axes in below[:2]:
        axes.set_xlabel("goodput, points", fontsize=8)
    place = _places(found)[0]
    longer = {name: longer_by_belief(found, place, name) for name in wrong}
    ranges(below[2], longer)
    below[2].set_title(f"wrong models, {place}", fontsize=9, color=INK)
    below[2].set_xlabel("makespan, %", fontsize=8)
    little = [*SPREADS][1]
    lost = {name: lost_in(found, load, little)[name].mean for name in PICTURED}
    figure.suptitle(finding(f"Load {load}, {little}", lost, FORESIGHT), fontsize=11, color=INK)
    figure.legend(*above[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return save(figure, path)


STUDY = Study(
    "jitter", "Jitter and wrong cost models: what do they cost, and who breaks first?", jobs, tables, short, draw
)
