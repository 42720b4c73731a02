"""What an engine's user says, and what the engine says of itself: together a scenario, checked before any request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, cost_model
from llmsched_env.engines.driver import Driver, Memory
from llmsched_env.engines.session import DecisionLog, Session
from llmsched_env.errors import ConfigError, UnknownArgumentError

__all__ = ["EngineFacts", "EngineOptions"]

SCENARIO = (
    "cost", "prefill_token_cap", "ttft_s", "tpot_s", "order", "choose_order", "choose_cap", "lengths", "workload",
    "mixed_tokens", "mixed_counts_active", "mixed_whole_prompts", "mixed_within_slack", "mixed_cost",
)  # fmt: skip
"""Arguments of a scenario that are the user's to say; the others are the engine's, or mean nothing there."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself.

    Attributes:
        num_seats: requests that run at a time.
        token_budget: most tokens in one iteration.
        longest_tokens: most prompt and output tokens of a request.
        memory: its KV cache; ``None`` where blocks are shared or of several kinds, so that no budget describes it.
    """

    num_seats: int
    token_budget: int
    longest_tokens: int
    memory: Memory | None


@dataclass(frozen=True)
class EngineOptions:
    """What an engine's user says.

    Attributes:
        policy: a rule's name, an agent's name or .npz file, or ``module:Class``.
        parameters: the rule's numbers.
        shadow: the engine's own scheduler decides, and the policy is asked beside it.
        log: path of a CSV file: what the policy wanted and what the engine did.
        kv: whether policies see the KV cache as a budget.
        mean_output_tokens: of the requests to come; ``None`` for the workload's.
        clock: "wall", or "virtual": moved by the cost model, for tests.
        scenario: arguments of the scenario: `SCENARIO`.
    """

    policy: str
    parameters: tuple[Any, ...] = ()
    shadow: bool = False
    log: str | None = None
    kv: bool = False
    mean_output_tokens: float | None = None
    clock: str = "wall"
    scenario: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, given: object) -> EngineOptions:
        """Options as JSON has them, in one mapping.

        Raises:
            ConfigError: no mapping, no policy, or a value of another type.
            UnknownArgumentError: no such option.
        """
        if not isinstance(given, Mapping) or "policy" not in given:
            raise ConfigError(
                f"llmsched options are {given!r}: give a mapping with a policy, as in "
                'additional_config={"llmsched": {"policy": "lagrangian"}}.'
            )
        own = {one.name for one in fields(cls)} - {"scenario"}
        for name in given:
            if name not in own and name not in SCENARIO:
                raise UnknownArgumentError(name, {*own, *SCENARIO})
        values = {name: given[name] for name in given if name in own}
        for name, kind in (("policy", str), ("shadow", bool), ("kv", bool), ("clock", str)):
            if name in values and not isinstance(values[name], kind):
                kinds = "text" if kind is str else "true or false"
                raise ConfigError(f"{name} = {values[name]!r}: give {kinds}.")
        if (log := values.get("log")) is not None and (not isinstance(log, str) or not log):
            raise ConfigError(f"log = {log!r}: give the path of a CSV file, or leave it out.")
        parameters = values.get("parameters", ())
        if not isinstance(parameters, Sequence) or isinstance(parameters, str):
            raise ConfigError(f"parameters = {parameters!r}: give a list of the rule's numbers, as in [14].")
        values["parameters"] = tuple(parameters)
        if values.get("clock", "wall") not in ("wall", "virtual"):
            raise ConfigError(f"clock = {values['clock']!r}: take 'wall', or 'virtual' for tests.")
        scenario = {name: given[name] for name in given if name in SCENARIO}
        return cls(**values, scenario=scenario)

    def session(self, facts: EngineFacts) -> Session[str]:
        """A session of an engine with requests that go by text.

        Raises:
            ConfigError: options that contradict the engine or each other, or a policy that wants what it cannot have.
            UnknownNameError: no such policy.
            PathError: a log that cannot be written.
        """
        scenario = self._scenario(facts)
        driver: Driver[str] = Driver(
            self.policy,
            scenario,
            parameters=self.parameters,
            mean_output_tokens=self.mean_output_tokens,
            longest_tokens=facts.longest_tokens,
            memory=None if self.kv else facts.memory,
            virtual=self.clock == "virtual",
        )
        _check_budget(driver.scenario, facts)
        return Session(driver, shadow=self.shadow, log=None if self.log is None else DecisionLog(self.log))

    def _scenario(self, facts: EngineFacts) -> Scenario:
        """The scenario that the engine is."""
        arguments = {"lengths": "hidden", "order": "fcfs", **self.scenario}
        given = arguments.get("cost", Scenario.cost)
        if isinstance(given, Mapping):
            given = _cost_of(given)
        arguments["cost"] = given
        cap = arguments.get("prefill_token_cap")
        if cap is None:
            arguments["prefill_token_cap"] = min(cost_model(given).prefill_token_cap, facts.token_budget)
        elif isinstance(cap, int) and cap > facts.token_budget:
            raise ConfigError(
                f"prefill_token_cap = {cap} exceeds the engine's token budget of {facts.token_budget} (vLLM's "
                "max_num_batched_tokens): lower it, or raise that."
            )
        if self.kv:
            if facts.memory is None:
                raise ConfigError(
                    "kv = True: no budget describes this engine's KV cache, since prefix caching shares blocks, or its "
                    "layers have caches of several kinds. Switch prefix caching off, or leave kv out."
                )
            arguments |= facts.memory.arguments
        return Scenario(num_clients=facts.num_seats, queue="shared", **arguments)


def _cost_of(given: Mapping[str, Any]) -> CostModel:
    """A cost model of its coefficients."""
    try:
        return CostModel(**{"name": "engine", **given})
    except TypeError as error:
        raise ConfigError(f"cost = {dict(given)!r}: {error}. Give the fields of llmsched_env.CostModel.") from None


def _check_budget(scenario: Scenario, facts: EngineFacts) -> None:
    """Raise where a mixed iteration would not fit.

    Raises:
        ConfigError: it would not.
    """
    if scenario.mixed_tokens is None:
        return
    most = scenario.mixed_tokens + (0 if scenario.mixed_counts_active else scenario.num_clients)
    if most > facts.token_budget:
        raise ConfigError(
            f"mixed_tokens = {scenario.mixed_tokens} can lead to iterations of {most} tokens, and the engine's token "
            f"budget (vLLM's max_num_batched_tokens) is {facts.token_budget}: take policy 'mixed_first' with "
            f"mixed_tokens={facts.token_budget} and mixed_counts_active=True, or raise the budget."
        )
