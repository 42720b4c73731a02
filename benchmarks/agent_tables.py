"""Choose the networks of the agents in the box, and judge all that were bred, for docs/agents.md and README.md.

    python benchmarks/breeding.py --out DIR
    python benchmarks/agent_tables.py DIR box      # of each place, the seed that is best on validation cases
    python benchmarks/agent_tables.py DIR judge    # every seed on test cases, against best tuned rule and planner
    python benchmarks/agent_tables.py DIR transfer # the box elsewhere: other sizes and costs
    python benchmarks/agent_tables.py DIR write    # tables and pictures from what the last two found

`judge` and `transfer` keep what they found in DIR as JSON. The first validation cases choose, the first test cases
judge (--cases).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from breeding import PLACES, bred
from numpy.typing import NDArray
from readme_tables import README, grid, replaced
from scipy.stats import trim_mean
from tqdm import tqdm

from agents.agent import Origin, Trained
from agents.arena import Arena
from agents.files import WEIGHTS, AgentFile, load_agent
from baselines.registry import entry, planner_of
from baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.cost import cost_model
from llmsched_env.evaluation import decision_times, evaluate, mean_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.storage import write_whole

Floats = NDArray[np.float64]

ROOT = README.parent
PAGE = ROOT / "docs" / "agents.md"
PICTURE = ROOT / "docs" / "images" / "agent_scores.png"

CASES, SERVING_CASES = 100, 20
RESAMPLES = 2000


def losses(name: str, scenario: Scenario, cases: int) -> Floats:
    """(cases,) of a policy by name: the gap to LB1, or the share of requests whose promise is broken."""
    item = entry(name, scenario)
    columns = evaluate(item.policy, item.scenario, cases, latencies=False).columns
    return 1.0 - columns["goodput"] if scenario.serving else columns["gap_to_bound"]


def box(study: Path, cases: int) -> None:
    """Write agents/weights/*.npz: of each place the seed with the least loss on validation cases."""
    chosen: dict[str, list[Trained]] = {"gsm8k": [], "serving": []}
    seeds: dict[str, list[int]] = {"gsm8k": [], "serving": []}
    for name, scenario in tqdm(PLACES.items(), desc="choosing"):
        found = bred(name, study)
        if not found:
            continue
        played = range(min(cases, SERVING_CASES) if scenario.serving else cases)
        arena = Arena(scenario.replace(split="validation"), played)
        rows = np.stack([network.parameters for network in found.values()])
        mean = arena.losses(rows, played)[0].mean(axis=1)
        seed = list(found)[int(mean.argmin())]
        agent = "serving" if scenario.serving else "gsm8k"
        chosen[agent].append(Trained(found[seed], Origin.of(scenario)))
        seeds[agent].append(seed)
    for agent, trained in chosen.items():
        if trained:
            made_by = "benchmarks/breeding.py, benchmarks/agent_tables.py box"
            AgentFile(tuple(trained), made_by, tuple(seeds[agent])).write(WEIGHTS / f"{agent}.npz")


def judge(study: Path, cases: int) -> None:
    """Every seed of every place on test cases."""
    found: dict[str, Any] = {}
    for name, scenario in tqdm(PLACES.items(), desc="judging"):
        networks = bred(name, study)
        if not networks:
            continue
        test, count = scenario.replace(split="test"), min(cases, SERVING_CASES) if scenario.serving else cases
        rows = np.stack([network.parameters for network in networks.values()])
        rule = best_tuned(test)
        found[name] = {
            "seeds": list(networks),
            "agent": Arena(test, range(count)).losses(rows, range(count))[0].tolist(),
            "rule_name": rule,
            "rule": losses(rule, test, count).tolist(),
            "planner": losses(planner_of(test), test, count).tolist(),
            **({} if scenario.serving else {"lagrangian": losses("lagrangian", test, count).tolist()}),
        }
        _keep(study / "judged.json", found)
    times = decision_times(load_agent("gsm8k"), Scenario(split="test"), [0])
    _keep(study / "judged.json", {**found, "decision_us": np.quantile(times / 1e3, [0.5, 0.99]).tolist()})


def _keep(path: Path, said: Any) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(said))


def elsewhere() -> dict[str, dict[str, Scenario]]:
    """Scenarios that training never saw, by what they change."""
    found: dict[str, dict[str, Scenario]] = {"clients": {}, "cost": {}}
    forms: dict[str, dict[str, Any]] = {
        "client": {"assignment": "lpt"},
        "shared": {"queue": "shared", "order": "longest_first"},
    }
    for workload, (form, arguments) in itertools.product(("gsm8k", "gsm8k-smooth"), forms.items()):
        base = Scenario(workload=workload, **arguments)
        for clients in (50, 100, 400, 1000):
            sized = base.replace(num_clients=clients, num_requests=round(1319 * clients / 200))
            found["clients"][f"{workload}, {form} queues, {clients} clients"] = sized
        usual = cost_model(base.cost)
        for name, factor in itertools.product(
            ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns"), (0.8, 1.2)
        ):
            other = replace(usual, name=f"{usual.name}*", **{name: round(getattr(usual, name) * factor)})
            text = f"{workload}, {form} queues, {name.removesuffix('_ns')} {factor - 1:+.0%}"
            found["cost"][text] = base.replace(cost=other)
    return found


def transfer(study: Path, cases: int) -> None:
    """The agent in the box, not trained again, against the rule that is best when tuned for the place."""
    agent = load_agent("gsm8k")
    found: dict[str, Any] = {}
    for kind, places in elsewhere().items():
        for text, scenario in tqdm(places.items(), desc=kind):
            test = scenario.replace(split="test")
            count = min(cases, 20 if scenario.num_clients > 400 else 40)
            rule = best_tuned(test)
            found[f"{kind}/{text}"] = {
                "rule_name": rule,
                "agent": evaluate(agent, test, count).columns["gap_to_bound"].tolist(),
                "rule": losses(rule, test, count).tolist(),
                "lagrangian": losses("lagrangian", test, count).tolist(),
            }
            _keep(study / "transferred.json", found)


def interquartile_mean(scores: Floats) -> float:
    """The mean of the middle half (Agarwal et al., NeurIPS 2021)."""
    return float(trim_mean(scores, 0.25))


def score(said: dict[str, Any]) -> tuple[float, float, float]:
    """Interquartile mean over seeds of (rule - agent) / (rule - planner), and its 95 % bootstrap interval.

    Seeds and cases are both drawn again (2000 times, seed 0), the cases alike for all.
    """
    agent, rule, planner = (np.array(said[name]) for name in ("agent", "rule", "planner"))
    draws = np.random.default_rng(0)

    def of(seeds: Any, cases: Any) -> float:
        gain = rule[cases].mean() - planner[cases].mean()
        return interquartile_mean((rule[cases].mean() - agent[seeds][:, cases].mean(axis=1)) / gain)

    everyone = np.arange(len(agent)), np.arange(len(rule))
    drawn = [of(*(draws.integers(len(x), size=len(x)) for x in everyone)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return of(*everyone), float(low), float(high)


def _percent(values: Any, digits: int = 2) -> str:
    return f"{100 * float(np.mean(values)):.{digits}f}"


def _interval(values: Floats, digits: int = 2) -> str:
    mean, low, high = mean_estimate(100 * values)
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def score_table(judged: dict[str, Any], serving: bool) -> str:
    """One line a place."""
    lines = []
    for name, said in judged.items():
        if name not in PLACES or PLACES[name].serving != serving:
            continue
        mean, low, high = score(said)
        agent = np.array(said["agent"])
        rule = np.array(said["rule"])
        row = [name.replace("llama-65b-paper", "paper"), f"`{said['rule_name']}` {_percent(rule)}", _percent(agent)]
        row += [_percent(said["planner"]), f"**{mean:.2f}** ({low:.2f} to {high:.2f})"]
        other = rule if serving else np.array(said["lagrangian"])
        lines.append([*row, _interval(agent.mean(axis=0) - other)])
    what = "lost, %" if serving else "gap, %"
    against = "agent − rule" if serving else "agent − `lagrangian`"
    return grid(
        [
            "place",
            f"best tuned rule, {what}",
            f"agent, {what}",
            f"planner, {what}",
            "score (95 %)",
            f"{against}, points",
        ],
        lines,
    )


def transfer_table(found: dict[str, Any], kind: str) -> str:
    """One line a place: the agent of the box, and by how much it is better or worse."""
    lines = []
    for name, said in found.items():
        of, _, text = name.partition("/")
        if of == kind:
            agent, rule, lagrangian = (np.array(said[x]) for x in ("agent", "rule", "lagrangian"))
            row = [text, f"`{said['rule_name']}` {_percent(rule)}", _percent(agent)]
            lines.append([*row, _interval(agent - rule), _interval(agent - lagrangian)])
    return grid(["place", "best tuned rule, gap in %", "agent", "agent − rule, points", "agent − `lagrangian`"], lines)


def draw(judged: dict[str, Any], path: Path) -> Path:
    """Score by place, each seed a dot."""
    names = [name for name in judged if name in PLACES and not PLACES[name].serving]
    figure = new_figure(7.0, 0.34 * len(names) + 1.2)
    axes = figure.subplots()
    for x, text in ((0.0, "best tuned rule"), (1.0, "planner (beam)")):
        axes.axvline(x, color=FAINT, linewidth=0.8)
        axes.annotate(text, (x, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=INK)
    axes.axvline(0.6, color=FAINT, linewidth=0.8, linestyle=":")
    for y, name in enumerate(reversed(names)):
        said = judged[name]
        agent, rule, planner = (np.array(said[x]) for x in ("agent", "rule", "planner"))
        seeds = (rule.mean() - agent.mean(axis=1)) / (rule.mean() - planner.mean())
        mean, low, high = score(said)
        axes.plot([low, high], [y, y], color=LINES[0], linewidth=2)
        axes.plot(seeds, np.full(len(seeds), y), "|", color=FAINT, markersize=7)
        axes.plot(mean, y, "^", color=LINES[0], markersize=6)
    axes.set_yticks(range(len(names)), [name.replace("llama-65b-", "") for name in reversed(names)], fontsize=8)
    axes.set_xlabel("score on test cases: interquartile mean over seeds, 95 % bootstrap interval", fontsize=8)
    plain(axes)
    return save(figure, path)


def write(study: Path, cases: int) -> None:
    """Put the tables between their markers in docs/agents.md, and the picture beside it."""
    judged = json.loads((study / "judged.json").read_text())
    moved = json.loads((study / "transferred.json").read_text())
    p50, p99 = judged["decision_us"]
    first = next(judged[name] for name in PLACES if name in judged)
    said = f"Test cases 0 to {len(first['rule']) - 1}, {len(first['seeds'])} training seeds:\n\n"
    text = replaced(PAGE.read_text(), "scores", said + score_table(judged, serving=False))
    if any(PLACES[name].serving for name in judged if name in PLACES):
        text = replaced(text, "serving scores", score_table(judged, serving=True))
    for kind in ("clients", "cost"):
        text = replaced(text, f"transfer by {kind}", transfer_table(moved, kind))
    text = replaced(
        text, "decision time", f"A decision takes {p50:.1f} µs (99th percentile {p99:.1f} µs), asked from Python."
    )
    with write_whole(PAGE) as path:
        path.write_text(text)
    draw(judged, PICTURE)


STEPS: dict[str, Callable[[Path, int], None]] = {"box": box, "judge": judge, "transfer": transfer, "write": write}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="DIR")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--cases", type=int, default=CASES, help="(default: %(default)s; with promises at most 20)")
    options = parser.parse_args(argv)
    STEPS[options.step](options.study, options.cases)


if __name__ == "__main__":
    main()
