"""Digests of what rules, networks and searches do in the loop, printed as JSON when run as a script."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from playing import WORLDS, start_of

from llmsched_env.agents.network import Network, dense
from llmsched_env.baselines.lookahead import _search as find_actions
from llmsched_env.baselines.planners import Beam, Rollout
from llmsched_env.baselines.registry import BASELINES, METHODS, make_policy
from llmsched_env.baselines.rule import Rule
from llmsched_env.baselines.tuned import Tuned
from llmsched_env.cases import build_problem
from llmsched_env.engine.features import features_of
from llmsched_env.engine.rule import Rule as EngineRule
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import play
from llmsched_env.evaluation.rollout import start
from llmsched_env.simulator import Simulator

CASE = 3
SEARCHED = ("shared", "client", "client, arrivals", "memory", "moving")
WITH_SLO = {"SLO": 0, "SLO, late last": 0, "mixed, SLO": 0}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def played(rule: EngineRule, world: str) -> str:
    """The iterations of an episode, and which request ran where."""
    simulator = Simulator(build_problem(WORLDS[world], CASE), record=True)
    simulator.run(rule)
    assert simulator.done
    return digest(simulator.log.tobytes(), simulator.served.tobytes())


def rule_digests() -> dict[str, str]:
    """Every shipped rule in every world where it makes sense."""
    found = {}
    for name in BASELINES:
        policy = make_policy(name)
        if name in METHODS or not isinstance(policy, Rule) or isinstance(policy, Tuned):
            continue
        for world, scenario in WORLDS.items():
            try:
                rule = policy.compiled(start(policy, scenario, Simulator(build_problem(scenario, CASE)), 0))
                found[f"{name}, {world}"] = played(rule, world)
            except ConfigError:
                continue
    return found


def network_digests() -> dict[str, str]:
    """Networks of random weights that read everything, with each head, activation and base."""
    found = {}
    for world, scenario in WORLDS.items():
        features = tuple(feature.name for feature in features_of(scenario))
        for seed, (head, activation, base) in enumerate(
            (
                ("actions", "relu", "none"),
                ("prefill", "tanh", "none"),
                ("prefill", "relu", "lagrangian"),
                ("prefill", "tanh", "deadline"),
            )
        ):
            if base == "deadline" and not scenario.serving:
                continue
            rng = np.random.default_rng(seed)
            outputs = 1 if head == "prefill" and scenario.num_actions == 2 else scenario.num_actions
            widths = ((7, len(features)), (5, 7), (outputs, 5))
            network = Network(
                features,
                tuple(dense(0.5 * rng.normal(size=size), 0.5 * rng.normal(size=size[0])) for size in widths),
                head=head,
                actions=scenario.num_actions,
                activation=activation,
                skip=rng.normal(size=(outputs, len(features))),
                masked=True,
                base=base,
                base_values={"none": (), "lagrangian": (0.1, 0.5), "deadline": (0.3, 0.6)}[base],
                base_limit=2.0,
            )
            found[f"{head} {activation} {base}, {world}"] = played(network.rule(), world)
    return found


def search_digests() -> dict[str, str]:
    """What planners find, with nothing read from disk."""
    found = {}
    for world in SEARCHED:
        simulator = Simulator(build_problem(WORLDS[world], CASE))
        schedule = Beam(3)._search_all(simulator, start_of(WORLDS[world], simulator=simulator))
        found[f"beam, {world}"] = digest(schedule.prefills.tobytes(), str(schedule.loss).encode())
    for world, prefill in WITH_SLO.items():
        simulator = Simulator(build_problem(WORLDS[world], CASE))
        rule = make_policy("deadline").compiled(start_of(WORLDS[world]))
        found[f"lookahead, {world}"] = digest(find_actions(simulator, rule, prefill, 3000).tobytes())
    ran = play(Rollout(), WORLDS["shared"].replace(lengths="hidden", order="fcfs"), CASE, record=True)
    found["rollout"] = digest(ran.log.tobytes())
    return found


def digests() -> dict[str, str]:
    return {**rule_digests(), **network_digests(), **search_digests()}


if __name__ == "__main__":
    print(json.dumps(digests()))
