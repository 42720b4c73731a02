"""Choose the networks of the pretrained agents, and judge all that were evolved on cases that nothing was chosen by.

    python benchmarks/evolving.py --out DIR
    python benchmarks/judging.py DIR validate  # scores on validation cases, before anything is judged
    python benchmarks/judging.py DIR box       # of each place, the seed that is best on validation cases
    python benchmarks/judging.py DIR judge     # every seed on test cases, beside best tuned rule and planner
    python benchmarks/judging.py DIR transfer  # the agent where no network was trained

What is found is kept in DIR as JSON; benchmarks/agent_tables.py makes tables and a picture of it. The first validation
cases choose, the second hundred test cases judge (--cases). Recorded traces are read from ../shared/data, if they are
there.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from evolving import FORMS, KNOWN, PLACES, RECORDED, SERVING, TRACES, WORKLOADS, conversations, evolved, folder
from numpy.typing import NDArray
from tqdm import tqdm

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.files import WEIGHTS, AgentFile, load_agent
from llmsched_env.agents.network import Network
from llmsched_env.baselines.guarded import Guarded
from llmsched_env.baselines.registry import entry, fixed_order_planner
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS, cost_model
from llmsched_env.evaluation import decision_times, evaluate, score_estimate
from llmsched_env.policy import Policy
from llmsched_env.storage import write_whole
from llmsched_env.workload import LognormalWorkload, MixtureWorkload

Floats = NDArray[np.float64]

CASES, SERVING_CASES, VALIDATED = 100, 20, 40
ELSEWHERE_CASES, LARGE_CASES = 40, 20

AGENTS = {"gsm8k": KNOWN, "serving": SERVING, "azure": RECORDED}
"""The places whose networks make up each agent."""
SHIPPED = ("gsm8k", "serving")
"""The pretrained ones. Others are written to DIR."""

QUEUES = {"MIP queues": FORMS["client"], "LPT queues": {"assignment": "lpt"}, "shared queues": FORMS["shared"]}
BY_HAND = {form: QUEUES[form] for form in ("LPT queues", "shared queues")}
"""Queues that need no MIP, whose assignments are shipped for two workloads at one size."""

CLIENTS = (50, 100, 400, 1000)
FEW_REQUESTS = 300
COEFFICIENTS = ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns")
FACTORS = (0.8, 1.2)
MACHINES = tuple(name for name in PRESETS if not name.startswith("llama-65b"))
"""Cost presets of other models and machines."""

LENGTHS = {
    "bimodal": MixtureWorkload(name="bimodal", cap_probability=0.3, output_mean_tokens=100.0, output_sd_tokens=40.0),
    "lognormal": LognormalWorkload(),
    "heavy tails": LognormalWorkload(name="heavy tails", output_sd_tokens=500.0, max_tokens=8192),
}
LOADS = (0.8, 0.85, 0.94, 1.05)

SERVED = ("worst_token_gap_s", "longest_wait_s")
"""What is kept beside the share of violations."""


def keep(path: Path, said: Any) -> None:
    """Write JSON whole."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(said), encoding="utf-8")


def kept(path: Path) -> Any:
    """What :func:`keep` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def outcome(name: str, policy: Policy, scenario: Scenario, cases: Sequence[int]) -> dict[str, Any]:
    """Name and loss by case: the gap to LB1, or the share of violations beside what `SERVED` says."""
    columns = evaluate(policy, scenario, cases, latencies=scenario.serving).columns
    if not scenario.serving:
        return {"name": name, "loss": (columns["makespan_s"] / columns["lb1_s"] - 1.0).tolist()}
    violations = (1.0 - columns["goodput"]).tolist()
    return {"name": name, "loss": violations, **{metric: columns[metric].tolist() for metric in SERVED}}


def by_name(name: str, scenario: Scenario, cases: Sequence[int]) -> dict[str, Any]:
    """:func:`outcome` of a policy that the comparison knows by name."""
    item = entry(name, scenario)
    return outcome(name, item.policy, item.scenario, cases)


def case_count(scenario: Scenario, cases: int) -> int:
    """Cases with SLOs are long: fewer of them."""
    return min(cases, SERVING_CASES) if scenario.serving else cases


def judged_cases(scenario: Scenario, cases: int) -> range:
    """Test cases that no network of this project was judged on before: the first ones have seen many."""
    count = case_count(scenario, cases)
    return range(count, 2 * count)


def rows(networks: dict[int, Network]) -> list[Network]:
    """(networks, numbers) for an evaluation."""
    return list(networks.values())


def box(study: Path, cases: int, weights: Path = WEIGHTS) -> None:
    """Write the agents' files: of each place the seed with the least loss on validation cases.

    An agent is written whole or left as it is: all of its places have to be evolved.
    """
    chosen: dict[str, int] = {}
    for agent, places in AGENTS.items():
        found = {name: evolved(folder(study, name)) for name in places}
        missing = [name for name, networks in found.items() if not networks]
        if missing or not places:
            print(f"{agent}: left as it is, since nothing is evolved for {', '.join(missing) or 'it'}.")
            continue
        trained = []
        for name, networks in tqdm(found.items(), desc=agent):
            played = range(case_count(places[name], cases))
            evaluation = BatchEvaluation(places[name].replace(split="validation"), played)
            mean = evaluation.losses(rows(networks), played)[0].mean(axis=1)
            chosen[name] = list(networks)[int(mean.argmin())]
            trained.append(Trained(networks[chosen[name]], Origin.of(places[name])))
        made_by = "benchmarks/evolving.py, benchmarks/judging.py box"
        path = (weights if agent in SHIPPED else study) / f"{agent}.npz"
        AgentFile(tuple(trained), made_by, tuple(chosen[name] for name in places)).write(path)
    keep(study / "chosen.json", chosen)


def validate(study: Path) -> None:
    """Scores of the known places on validation cases: who needs more training."""
    played = range(VALIDATED)
    for name, scenario in KNOWN.items():
        where = scenario.replace(split="validation")
        runs = BatchEvaluation(where, played).losses(rows(evolved(folder(study, name))), played)[0]
        ends = (by_name(policy, where, played)["loss"] for policy in (best_tuned(where), fixed_order_planner(where)))
        print(name, *(f"{value:.2f}" for value in score_estimate(runs, *ends)))


def judge(study: Path, cases: int) -> None:
    """Every seed of every place on test cases, and the chosen one as a policy."""
    chosen = kept(study / "chosen.json")
    found: dict[str, Any] = {}
    for name, scenario in tqdm(PLACES.items(), desc="judging"):
        networks = evolved(folder(study, name))
        if name not in chosen or not networks:
            continue
        test, played = scenario.replace(split="test"), judged_cases(scenario, cases)
        agent = Agent.of("agent", networks[chosen[name]], scenario)
        found[name] = {
            "seeds": list(networks),
            "cases": [played.start, played.stop - 1],
            "runs": BatchEvaluation(test, played).losses(rows(networks), played)[0].tolist(),
            "agent": outcome("agent", agent, test, played),
            "rule": by_name(best_tuned(test), test, played),
            "planner": by_name(fixed_order_planner(test), test, played),
            "lagrangian": by_name("lagrangian", test, played),
        }
        keep(study / "judged.json", found)
    times = decision_times(load_agent("gsm8k"), Scenario(split="test"), [0])
    keep(study / "decision_us.json", np.quantile(times / 1e3, [0.5, 0.99]).tolist())


def elsewhere() -> Iterator[tuple[str, str, Scenario]]:
    """Scenarios that networks were not trained in: what they change, what they are, and the scenario."""
    for workload, (form, arguments) in itertools.product(WORKLOADS, QUEUES.items()):
        base = Scenario(workload=workload, **arguments)
        text = f"{workload}, {form}"
        for clients in CLIENTS if form in BY_HAND else ():  # the MIP's are trained at one size
            sized = base.replace(num_clients=clients, num_requests=round(1319 * clients / 200))
            yield "clients", f"{text}, {clients} clients", sized
        if form in BY_HAND:
            few = base.replace(num_requests=FEW_REQUESTS)
            yield "requests", f"{text}, {FEW_REQUESTS} requests", few
        usual = cost_model(base.cost)
        changes = [*itertools.product(COEFFICIENTS, FACTORS), ("alpha_prefill_ns", 10.0)]
        for name, factor in changes:
            other = replace(usual, name=f"{usual.name}*", **{name: round(getattr(usual, name) * factor)})
            yield "cost", f"{text}, {name.removesuffix('_ns')} {factor - 1:+.0%}", base.replace(cost=other)
        for machine in MACHINES:
            yield "machine", f"{text}, {machine}", base.replace(cost=machine)
        if form != "MIP queues":
            yield "order", f"{text}, first come, first served", base.replace(order="fcfs")
    for (name, lengths), (form, arguments) in itertools.product(LENGTHS.items(), BY_HAND.items()):
        yield "lengths", f"{name}, {form}", Scenario(workload=lengths, **arguments)
    yield "predicted", "gsm8k, predicted lengths", make_scenario("LLMSched/GSM8K-Predicted-v0")
    ordered = SERVING["ServingOrder/0.9"]
    for load in LOADS:
        yield "load", f"`ServingOrder` at load {load}", ordered.replace(load=load)
    for name in TRACES:
        for load, scenario in conversations(name):
            yield "trace", f"{name} at load {load}", scenario


def transfer(study: Path, cases: int) -> None:
    """The agent, not trained again, against the rule that is best when tuned for the place.

    Beside it the network that is nearest by where it was trained: what the agent would be without its guard.
    """
    path = study / "elsewhere.json"
    found: dict[str, Any] = kept(path) if path.exists() else {}
    agent = Guarded()
    for kind, text, scenario in tqdm(list(elsewhere()), desc="elsewhere"):
        key = f"{kind}/{text}"
        if key in found:  # a call that was killed goes on
            continue
        test = scenario.replace(split="test")
        count = case_count(scenario, min(cases, LARGE_CASES if scenario.num_clients > 400 else ELSEWHERE_CASES))
        nearest = load_agent("serving" if scenario.serving else "gsm8k")
        found[key] = {
            "decides": agent.describe(test),
            "agent": outcome("agent", agent, test, range(count)),
            "nearest": outcome("nearest", nearest, test, range(count)) if nearest.fits(test) else None,
            "rule": by_name(best_tuned(test), test, range(count)),
            "lagrangian": by_name("lagrangian", test, range(count)),
        }
        keep(path, found)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="DIR")
    parser.add_argument("step", choices=("validate", "box", "judge", "transfer"))
    parser.add_argument("--cases", type=int, default=CASES, help="(default: %(default)s; with SLOs at most 20)")
    options = parser.parse_args(argv)
    if options.step == "validate":
        validate(options.study)
    elif options.step == "box":
        box(options.study, options.cases)
    elif options.step == "judge":
        judge(options.study, options.cases)
    else:
        transfer(options.study, options.cases)


if __name__ == "__main__":
    main()
