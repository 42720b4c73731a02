"""The numbers of a rule, as tables show them: what a reader has to know to run it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine import rules
from llmsched_env.engine.patience import Patience
from llmsched_env.evaluation.rollout import start
from llmsched_env.policy import Policy
from llmsched_env.simulator import Simulator

__all__ = ["MEANINGS", "parameters_of", "written"]

SYMBOLS: Mapping[type, Mapping[str, str]] = {
    rules.IdleThreshold: {"count": "k"},
    rules.ReadyThreshold: {"count": "k"},
    rules.LastSchedulable: {"offset": "offset"},
    rules.Deadline: {"count": "k", "ttft_share": "share"},
    rules.AfterDecodes: {"count": "decodes"},
    rules.EveryNthDecode: {"count": "decodes"},
    rules.ServedRatio: {"ratio": "ratio", "most_decodes": "decodes"},
    rules.Waited: {"factor": "factor"},
    rules.InTurns: {"prefills": "prefills", "decodes": "decodes"},
    rules.Coin: {"probability": "p"},
    rules.Lagrangian: {"multiplier": "λ"},
    rules.UpToTheCap: {"most": "cap"},
    Patience: {"worth": "worth", "batch": "batch"},
}
"""Class of the engine's rule -> its field -> how tables write it. What a rule keeps between decisions is none."""

MEANINGS: Mapping[str, str] = {
    "k": "prefill from so many idle clients on, or (min_batch, deadline) so many that have something to take",
    "λ": "multiplier on the price of a prefill",
    "ratio": "prefill when the waiting requests that fit are that share of the active ones",
    "share": "or when the oldest request has waited that share of its TTFT limit",
    "offset": "decode durations kept before the last time at which a decode can begin",
    "decodes": "from one prefill, or attempt, to the next",
    "prefills": "in a row",
    "factor": "prefill when the oldest request has waited so many times the last prefill",
    "cap": "most active clients",
    "p": "probability of a prefill",
    "worth": "decodes of a client that one more in a prefill is worth",
    "batch": "clients that a prefill takes, beyond which none is waited for",
}


def parameters_of(policy: Policy, scenario: Scenario, case: int = 0, seed: int = 0) -> dict[str, float]:
    """The numbers that a policy decides by in a scenario, tuned ones too; none where it is no rule of the package.

    Args:
        policy: any.
        scenario: where.
        case: whose start the policy is told of.
        seed: for policies that draw random numbers.
    """
    if not callable(getattr(policy, "compiled", None)):
        return {}
    told = start(policy, scenario, Simulator(build_problem(scenario, case)), seed)
    return _numbers(policy.compiled(told))  # type: ignore[attr-defined]  # asked above


def _numbers(rule: Any) -> dict[str, float]:
    if isinstance(rule, rules.WithPrefill):
        return _numbers(rule.rule)
    symbols = next((SYMBOLS[kind] for kind in type(rule).__mro__ if kind in SYMBOLS), {})
    values = {symbol: float(getattr(rule, field)) for field, symbol in symbols.items()}
    return {symbol: int(value) if value.is_integer() else value for symbol, value in values.items()}


def written(parameters: Mapping[str, float]) -> str:
    """``k = 12, share = 0.8``."""
    return ", ".join(f"{name} = {value:g}" for name, value in parameters.items())
