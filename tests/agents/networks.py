"""Small scenarios, networks of random weights, and views to decide at."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.network import Network, dense
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine.features import feature_table
from llmsched_env.evaluation import play
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator

SERVING = make_scenario("LLMSched/Serving-v0", num_clients=8, num_requests=120)
SCENARIOS = {
    "client": Scenario(workload="gsm8k", assignment="lpt", num_clients=8, num_requests=60),
    "shared": Scenario(workload="gsm8k-smooth", queue="shared", num_clients=8, num_requests=60),
    "serving": SERVING,
    "orders": make_scenario("LLMSched/ServingOrder-v0", num_clients=8, num_requests=120),
}


def names(slo=False):
    return tuple(feature.name for feature in feature_table(slo))


PLAIN = names()


def random_network(seed=0, *, actions=2, features=PLAIN, hidden=(8,), outputs=None, scale=1.0, **fields):
    """Weights and biases from a normal distribution."""
    rng = np.random.default_rng(seed)
    widths = (len(features), *hidden, outputs or actions)
    layers = [
        dense(scale * rng.normal(size=(after, before)), scale * rng.normal(size=after))
        for before, after in itertools.pairwise(widths)
    ]
    return Network(features, tuple(layers), actions=actions, **fields)


def zero_network(features=("active",), **fields):
    """Residual on a rule, all zeros: decides as the rule does."""
    outputs = {2: 1, 7: 7}[fields.get("actions", 2)]
    return Network(features, (dense(np.zeros((outputs, len(features))), np.zeros(outputs)),), head="prefill", **fields)


def scores(network, view):
    """(outputs,): what the last layer says, by matrices."""
    observed = dict(zip(names(slo=True), features(view).astype(np.float64), strict=False))
    x = np.array([observed[name] for name in network.features])
    out = x
    for number, (weight, bias) in enumerate(network.layers):
        out = weight @ out + bias
        if number < len(network.layers) - 1:
            out = np.tanh(out) if network.activation == "tanh" else np.maximum(out, 0)
    return out if network.skip is None else out + network.skip @ x


def agent_for(scenario, network, name="agent_of_one"):
    return Agent(name, [Trained(network, Origin.of(scenario))])


class Asked:
    """The same policy, asked from Python at every choice."""

    def __init__(self, policy):
        self.policy = policy
        self.name, self.kind, self.clairvoyant = policy.name, policy.kind, policy.clairvoyant
        self.reset, self.act = policy.reset, policy.act


def history(policy, scenario, case=0):
    """All that happened in an episode."""
    episode = play(policy, scenario, case, record=True)
    assert episode.done
    return episode.log.tobytes(), episode.served.tobytes()


@functools.cache
def views(name, count=1500):
    """Copies of views at choices of whole episodes, under actions by lot."""
    scenario, found, case = SCENARIOS[name], [], 0
    while len(found) < count:
        rng, simulator = np.random.default_rng(case), Simulator(build_problem(scenario, case))
        chance = (0.4, 0.0, 0.1)[case % 3]  # of a prefill; with none at all, clients finish while requests wait
        while not simulator.done:
            action = int(simulator.can_prefill)
            if simulator.has_choice:
                if not simulator.can_decode or rng.random() < 0.3:
                    found.append(simulator.view.copy())
                prefill = not simulator.can_decode or rng.random() < chance
                action = int(rng.integers(1, scenario.num_actions)) if prefill else 0
            simulator.step(action)
        case += 1
    return found
