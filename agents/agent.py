"""Trained networks as a policy: which of them decides is settled by the scenario."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from llmsched_env.agents.lengths import QUANTILES, lengths_apart, shown_lengths
from llmsched_env.agents.network import Network
from llmsched_env.config import ASSIGNMENTS, MAX_LOAD, QUEUES, Scenario, real
from llmsched_env.cost import MAX_COEFFICIENT_NS
from llmsched_env.engine.features import features_of
from llmsched_env.errors import ConfigError, InvalidViewError, UnknownNameError
from llmsched_env.policy import EpisodeContext, Rule, View
from llmsched_env.workload import MAX_TOKENS, WORKLOADS

__all__ = ["Agent", "Origin", "Trained"]


@dataclass(frozen=True)
class Origin:
    """Where a network was trained, as far as that says where it belongs.

    Attributes:
        workload: name of the workload.
        queue: "client" or "shared".
        price_ratio: alpha_p / alpha_d, a prefill's fixed time against a decode's, each taken to be at least 1 ns.
        serving: whether requests had SLOs.
        told: whether the scheduler was shown anything of each output length, true or predicted.
        load: arrivals as a share of capacity; ``None`` for the workload's own times.
        assignment: how the requests came into the clients' queues; ``None`` where queues are shared.
        lengths: (QUANTILES,) output lengths as they were shown there (`llmsched_env.agents.lengths.shown_lengths`);
            ``None`` where nobody noted them.

    Raises:
        ConfigError: a number out of range, or a value of another type.
        UnknownNameError: no such form of queues, or assignment.
    """

    workload: str
    queue: str
    price_ratio: float
    serving: bool
    told: bool
    load: float | None = None
    assignment: str | None = None
    lengths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.queue not in QUEUES:
            raise UnknownNameError("queue", self.queue, QUEUES)
        if self.assignment not in (None, *ASSIGNMENTS):
            raise UnknownNameError("assignment", str(self.assignment), ASSIGNMENTS)
        if not isinstance(self.workload, str):
            raise ConfigError(f"workload = {self.workload!r}: give its name.")
        for name in ("serving", "told"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither True nor False.")
        real("price_ratio", self.price_ratio, 0.0, MAX_COEFFICIENT_NS)
        if self.load is not None:
            real("load", self.load, 0.0, MAX_LOAD)
        if self.lengths is not None:
            if len(self.lengths) != QUANTILES:
                raise ConfigError(f"lengths has {len(self.lengths)} quantiles: give {QUANTILES}, or None.")
            shown = tuple(real("a quantile of lengths", length, 1.0, MAX_TOKENS) for length in self.lengths)
            object.__setattr__(self, "lengths", shown)

    @classmethod
    def of(cls, scenario: Scenario) -> Origin:
        """That of a network which is trained in this scenario."""
        cost = scenario.believed_model
        ratio = max(1, cost.prefill_ns(0)) / max(1, cost.alpha_decode_ns)
        return cls(
            workload=scenario.source.name,
            queue=scenario.queue,
            price_ratio=ratio,
            serving=scenario.serving,
            told=_shows_lengths(scenario),
            load=scenario.load,
            assignment=scenario.assignment if scenario.queue == "client" else None,
            lengths=shown_lengths(scenario),
        )

    def distance(self, scenario: Scenario) -> tuple[bool, bool, float, float, float]:
        """How far a scenario is from here, to be compared entry by entry.

        Whether the forms of queues differ, and the assignments; how far the output lengths are apart; by how much
        ln(price_ratio) differs, and the load.
        """
        other = Origin.of(scenario)
        if self.load is None or other.load is None:
            load = 0.0 if self.load is other.load else math.inf
        else:
            load = abs(self.load - other.load)
        prices = abs(math.log(self.price_ratio) - math.log(other.price_ratio))
        apart = self._lengths_from(scenario, other)
        return self.queue != other.queue, self.assignment != other.assignment, apart, prices, load

    def _lengths_from(self, scenario: Scenario, other: Origin) -> float:
        """A workload of the package is looked at as the scenario would show it: 0 where it is the scenario's own."""
        mine = self.lengths
        if self.workload in WORKLOADS:
            here = scenario.replace(workload=self.workload)
            known = here.replace(lengths="known", predictor=None, sd_weight=0.0)
            mine = shown_lengths(here) or shown_lengths(known)
        if mine is None or other.lengths is None:
            return 0.0 if self.workload == other.workload else math.inf
        return lengths_apart(mine, other.lengths)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and where it was trained.

    Raises:
        ConfigError: it reads what is known with SLOs only, and there were none.
    """

    network: Network
    origin: Origin

    def __post_init__(self) -> None:
        if self.network.needs_slo and not self.origin.serving:
            raise ConfigError("the network reads what is known with SLOs only, but its origin says serving = False.")

    def fits(self, scenario: Scenario) -> bool:
        """Whether it can decide there: as many actions, SLOs and lengths shown as where it was trained, and all that
        it reads.
        """
        alike = (self.origin.serving, self.origin.told) == (scenario.serving, _shows_lengths(scenario))
        seen = {feature.name for feature in features_of(scenario)}
        return alike and self.network.actions == scenario.num_actions and seen.issuperset(self.network.features)


class Agent:
    """Networks as one policy, which runs inside the engine and decides in microseconds when asked from Python.

    In each episode one network decides. Those that can are the ones with as many actions as the scenario, trained with
    SLOs if it has them and without if not, and shown lengths, or not, as the scenario shows them. Among them it is
    one trained on the same form of queues ("client", "shared") if there is any; then on queues of the same assignment
    if any; then with the nearest output lengths, whatever the workload is called; then the nearest in
    ln(alpha_p / alpha_d); then the nearest in load; then the first. :meth:`origin_for` says where that one was trained.

    Args:
        name: what tables call it.
        trained: its networks.
    """

    kind = "agent"
    clairvoyant = False

    def __init__(self, name: str, trained: Iterable[Trained]) -> None:
        self.name = name
        self.trained = tuple(trained)
        self._rule: Rule | None = None

    @classmethod
    def of(cls, name: str, network: Network, scenario: Scenario) -> Agent:
        """An agent of one network, trained in ``scenario``."""
        return cls(name, [Trained(network, Origin.of(scenario))])

    def fits(self, scenario: Scenario) -> bool:
        """Whether one of its networks can decide there."""
        return any(one.fits(scenario) for one in self.trained)

    def network_for(self, scenario: Scenario) -> Network:
        """The one of its networks that decides there.

        Raises:
            ConfigError: none can.
        """
        return self._deciding(scenario).network

    def origin_for(self, scenario: Scenario) -> Origin:
        """Where the network was trained that decides there; raises as :meth:`network_for`."""
        return self._deciding(scenario).origin

    def describe(self, scenario: Scenario) -> str:
        """One line about the network that decides there, where it was trained on another workload; else nothing."""
        trained, there = self.origin_for(scenario).workload, scenario.source.name
        if trained == there:
            return ""
        return f"its network was trained on workload {trained!r}, the nearest to {there!r} in queues and output lengths"

    def _deciding(self, scenario: Scenario) -> Trained:
        nearest = _nearest(self.trained, scenario, getattr(scenario.source, "version", None))
        if nearest is None:
            kinds = dict.fromkeys(_described(one.network.actions, one.origin) for one in self.trained)
            raise ConfigError(
                f"agent {self.name!r} has networks for {', '.join(kinds)}; this scenario needs one for "
                f"{_described(scenario.num_actions, Origin.of(scenario))}: take another agent, or change choose_order "
                "(2 actions without, 7 with it), ttft_s and tpot_s (the SLOs), or lengths."
            )
        return nearest

    def compiled(self, start: EpisodeContext) -> Rule:
        """The network for this scenario as the loop runs it; raises as :meth:`network_for`."""
        return self.network_for(start.scenario).rule()

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode; raises as :meth:`network_for`."""
        self._rule = self.compiled(start)

    def act(self, view: View) -> int:
        """The action, by the same code as inside the loop."""
        if self._rule is None:
            raise RuntimeError(
                f"policy {self.name!r} was asked before reset: call llmsched_env.evaluation.begin(policy, env) or "
                "policy.reset(start) first."
            )
        if not isinstance(view, View):
            raise InvalidViewError(self.name, view)
        return self._rule.decide(view)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@functools.lru_cache(maxsize=64)
def _nearest(trained: tuple[Trained, ...], scenario: Scenario, version: object) -> Trained | None:
    fitting = [one for one in trained if one.fits(scenario)]
    return min(fitting, key=lambda one: one.origin.distance(scenario), default=None)


def _shows_lengths(scenario: Scenario) -> bool:
    return scenario.lengths != "hidden"


def _described(actions: int, origin: Origin) -> str:
    slo, lengths = "with" if origin.serving else "without", "shown" if origin.told else "hidden"
    return f"{actions} actions {slo} SLOs (lengths {lengths})"
