"""Networks as vectors of numbers that an evolution strategy can search: zeros are a rule that is good already."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env.agents.agent import Agent
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.network import BASES, NEVER, Network
from llmsched_env.agents.sb3_origin import origin
from llmsched_env.cases import build_problem, pool_size
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.engine.features import features_of
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation.rollout import episode_seed, start
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator

__all__ = ["FIRST_VALUES", "Encoding", "first_encoding", "rule_start"]

Floats = NDArray[np.float64]

FIRST_VALUES: dict[str, list[tuple[float, ...]]] = {
    "lagrangian": [
        (math.log(x), w) for x, w in product((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.4), (0.0, 1.0))
    ],
    "none": [()],
    "deadline": list(product((0.02, 0.04, 0.06, 0.08, 0.12, 0.2), (0.3, 0.5, 0.7, 0.8, 0.9))),
}
"""Numbers of each base rule, the best of which on training cases the search begins with."""

FIRST_CASES = 16
LOOKED_AT = 2
"""Training cases whose observations say how far each feature spreads."""

MOST_OBSERVATIONS = 4000
LEAST_SPREAD = 0.02
"""Spreads below are taken for this one, lest a feature that hardly ever moves decides everything when it does."""

NEVER_TAKEN = -1e9
"""Bias of an order that is not to choose."""

ORDER_HEAD_START = 0.5
"""By how much one action is preferred to the others but the decode at the start, where there are several."""


class Encoding(NamedTuple):
    """How a vector of numbers is read as a network, in standardised features: zeros are the base rule.

    Attributes:
        features: names of the features.
        mean: (features,) of each.
        spread: (features,) standard deviation of each.
        hidden: units.
        actions: actions of the scenario.
        base: rule that the network is a residual on.
        base_values: its numbers at the start.
        order: of the actions but the decode, the one preferred at the start, an index from 0.
        limit: of the base (`Network.base_limit`).
        orders: indices of the orders to choose among, where orders are actions; none for all.
    """

    features: tuple[str, ...]
    mean: Floats
    spread: Floats
    hidden: int
    actions: int
    base: str
    base_values: tuple[float, ...]
    order: int = 0
    limit: float = NEVER
    orders: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Of the network that are numbers of the vector: the prefill's, then one for each action to choose among."""
        return 1 if self.actions == 2 else 1 + (len(self.orders) or self.actions - 1)

    @property
    def size(self) -> int:
        """Numbers of a vector of parameters."""
        n, h, m = len(self.features), self.hidden, self.outputs
        return BASES[self.base] + h * (n + 1) + m * (h + 1) + m * n

    def network(self, numbers: Floats) -> Network:
        """The network of a vector of parameters, (size,)."""
        n, h, m = len(self.features), self.hidden, self.outputs
        ends = np.cumsum([BASES[self.base], h * n, h, m * h, m, m * n])
        shift, inner, inner_bias, outer, outer_bias, skip = np.split(numbers, ends[:-1])
        weight, straight = inner.reshape(h, n) / self.spread, skip.reshape(m, n) / self.spread
        outer, bias = outer.reshape(m, h), outer_bias - straight @ self.mean
        if self.orders:
            rows = [0, *(1 + order for order in self.orders)]
            outer, straight = (_rows(rows, self.actions, x) for x in (outer, straight))
            bias = _rows(rows, self.actions, bias, NEVER_TAKEN)
        if self.actions > 2:
            bias[1 + self.order] += ORDER_HEAD_START
        first = np.array(self.base_values)
        values = first + shift if self.base == "lagrangian" else first * np.exp(shift)
        return Network(
            self.features,
            ((weight, inner_bias - weight @ self.mean), (outer, bias)),
            head="prefill",
            actions=self.actions,
            skip=straight,
            base=self.base,
            base_values=tuple(values.tolist()),
            base_limit=self.limit,
        )

    def networks(self, candidates: Sequence[Floats]) -> list[Network]:
        """The networks of vectors of parameters, each (size,)."""
        return [self.network(parameters) for parameters in candidates]


def _rows(places: Sequence[int], count: int, values: Floats, fill: float = 0.0) -> Floats:
    """The values as these of so many rows."""
    spread = np.full((count, *values.shape[1:]), fill)
    spread[list(places)] = values
    return spread


def first_encoding(
    evaluation: BatchEvaluation, base: str, chosen: Sequence[str], hidden: int, orders: Sequence[str] = ()
) -> Encoding:
    """The encoding whose zeros are the base rule with the numbers that do best on the first training cases.

    Args:
        evaluation: the training cases.
        base: one of `FIRST_VALUES`; "auto" for "deadline" with SLOs, else "lagrangian".
        chosen: names of the features to read; none for all that move.
        hidden: units.
        orders: names of the orders to choose among, where orders are actions; none for all.

    Raises:
        ConfigError: orders where they are no actions, a base that needs SLOs where there are none, or a scenario
            without choices.
        UnknownNameError: a feature that the scenario does not have.
    """
    where = evaluation.scenario
    if base == "auto":
        base = "deadline" if where.serving else "lagrangian"
    if base == "deadline" and not where.serving:
        raise ConfigError("base = 'deadline' needs SLOs: take 'lagrangian', or a scenario with ttft_s and tpot_s.")
    table = [feature.name for feature in features_of(where)]
    names = tuple(chosen or table)
    for name in names:
        if name not in table:
            raise UnknownNameError("feature", name, table)
    if orders and not where.choose_order:
        raise ConfigError(f"orders = {list(orders)}: orders are no actions here. Leave them out, or take choose_order.")
    codes = tuple(ORDER_CODES[order] for order in orders)
    plain = Encoding(names, np.zeros(len(names)), np.ones(len(names)), 1, where.num_actions, base, (), orders=codes)
    first = codes or range(where.num_actions - 1)
    tried = [plain._replace(base_values=x, order=order) for order in first for x in FIRST_VALUES[base]]
    losses, _ = evaluation.losses(
        [encoding.network(np.zeros(encoding.size)) for encoding in tried], evaluation.cases[:FIRST_CASES]
    )
    best = tried[int(losses.mean(axis=1).argmin())]
    seen = _observations(evaluation, best)[:, [table.index(name) for name in names]]
    moving = np.ones(len(names), bool) if chosen else seen.std(axis=0) > 0
    spread = np.maximum(seen.std(axis=0), LEAST_SPREAD)
    moved = tuple(name for name, moves in zip(names, moving, strict=True) if moves)
    return best._replace(features=moved, mean=seen.mean(axis=0)[moving], spread=spread[moving], hidden=hidden)


def rule_start(scenario: Scenario) -> dict[str, Any]:
    """The rule with the numbers that do best on training cases, where a residual on it begins.

    ``PPO(ResidualPolicy, env, policy_kwargs={"start": rule_start(scenario)})``; no learning library is needed.

    Args:
        scenario: to train on, with two actions. With SLOs the rule is ``deadline``, else the Lagrangian rule.

    Returns:
        Plain values: ``features`` (names of those that move), their ``mean`` and ``spread`` as seen under the rule,
        ``base`` and ``base_values`` as `llmsched_env.agents.network.Network` has them, and the ``scenario``.

    Raises:
        ConfigError: more than two actions, or a scenario that never offers a choice.
    """
    if not isinstance(scenario, Scenario):
        raise ConfigError(
            f"rule_start takes a Scenario, not {scenario!r}: make_scenario({scenario!r}) makes one of an id."
        )
    if scenario.num_actions != 2:
        raise ConfigError(
            f"this scenario has {scenario.num_actions} actions, and a rule's comparison chooses between two: take "
            '"MlpPolicy" (train.py: policy: mlp), or a scenario without choose_order, choose_cap and mixed_tokens.'
        )
    train = scenario.replace(split="train")
    cases = range(min(FIRST_CASES, pool_size(train) or FIRST_CASES))
    found = first_encoding(BatchEvaluation(train, cases), "auto", (), 1)
    return {
        "features": list(found.features),
        "mean": found.mean.tolist(),
        "spread": found.spread.tolist(),
        "base": found.base,
        "base_values": list(found.base_values),
        "scenario": origin(scenario),
    }


def _observations(evaluation: BatchEvaluation, encoding: Encoding) -> Floats:
    """(decisions, all features) on training cases under the encoding's base rule."""
    policy = Agent.of("base", encoding.network(np.zeros(encoding.size)), evaluation.scenario)
    rows: list[Floats] = []
    for case in evaluation.cases[:LOOKED_AT]:
        simulator = Simulator(build_problem(evaluation.scenario, case))
        policy.reset(start(policy, evaluation.scenario, simulator, episode_seed(0, case)))
        most = len(rows) + MOST_OBSERVATIONS
        while not simulator.done and len(rows) < most:
            if simulator.has_choice:
                rows.append(features(simulator.view).astype(np.float64))
                simulator.step(policy.act(simulator.view))
            else:
                simulator.step(simulator.forced_action)
    if not rows:
        raise ConfigError(
            "this scenario never offers a choice between a prefill and a decode: give it more requests than clients."
        )
    return np.stack(rows)
