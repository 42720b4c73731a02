"""Policies side by side on the same cases, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmsched_env import make_scenario
from llmsched_env.baselines.registry import Entry, entry, planner_of
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.comparison import Comparison
from llmsched_env.evaluation.comparison import compare as compare_entries
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.policy import Policy, check_policy

__all__ = ["compare"]


def compare(
    policies: Sequence[str | Policy | Entry],
    scenario: str | Scenario,
    cases: int | Iterable[int] = 20,
    *,
    scores: bool = False,
    seed: int = 0,
    workers: int = 1,
) -> Comparison:
    """Play policies on the same cases; ``print`` shows the table, with paired differences to the first policy.

    Args:
        policies: names (``"lagrangian_tuned"``, ``"deadline@late_last"``, a path of an agent's .npz file), objects of
            the `Policy` protocol, or what `entry` returns.
        scenario: a scenario, or an environment id, whose test cases are taken then.
        cases: how many of the first cases, or which.
        scores: play the best tuned rule (score 0) and the planner (score 1), too. That may take seconds a case.
        seed: for policies that draw random numbers.
        workers: processes that share the cases.

    Raises:
        UnknownNameError: no such policy or id.
        ConfigError: no policy at all, something that is none, two of one name, or one that makes no sense there.
    """
    where = make_scenario(scenario, split="test") if isinstance(scenario, str) else scenario
    if isinstance(policies, str) or not policies:
        raise ConfigError(f"policies = {policies!r}: give a list of at least one policy, as ['lagrangian_tuned'].")
    rows = [_row(policy, where) for policy in policies]
    return compare_entries(
        rows,
        scenario if isinstance(scenario, str) else where.source.name,
        where,
        case_numbers(cases),
        reference=entry(best_tuned(where), where) if scores else None,
        planner=entry(planner_of(where), where) if scores else None,
        seed=seed,
        workers=workers,
        timed=False,
    )


def _row(policy: str | Policy | Entry, scenario: Scenario) -> Entry:
    if isinstance(policy, Entry):
        return policy
    if isinstance(policy, str):
        return entry(policy, scenario)
    check_policy(policy)
    return Entry(policy.name, policy.kind, policy, scenario)
