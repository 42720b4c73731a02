"""Policies side by side on the same cases, from Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llmsched_env import make_scenario
from llmsched_env.agents.fingerprint import difference
from llmsched_env.baselines.registry import Entry, entry, fixed_order_planner, planner_of
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.comparison import Comparison
from llmsched_env.evaluation.comparison import compare as compare_entries
from llmsched_env.evaluation.rollout import case_numbers, check_scenario
from llmsched_env.policy import Policy, check_policy

__all__ = ["compare", "ends_of"]

BROUGHT = (
    "queue", "assignment", "order", "stealing", "lengths", "predictor", "sd_weight", "choose_order",
    "mixed_tokens", "mixed_counts_active", "mixed_whole_prompts", "mixed_within_slack", "mixed_cost",
    "reward", "skip_forced",
)  # fmt: skip
"""Arguments of a scenario that a method, a system or a planner may bring; the others make other episodes."""


def compare(
    policies: Iterable[str | Policy | Entry],
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
            the `Policy` protocol, or what `entry` returns for this scenario.
        scenario: a scenario, or an environment id, whose test cases are taken then.
        cases: how many of the first cases, or which.
        scores: play the best tuned rule (score 0) and the planner (score 1), too. That may take seconds a case.
        seed: for policies that draw random numbers.
        workers: processes that share the cases.

    Raises:
        UnknownNameError: no such policy or id.
        ConfigError: no scenario, no policy at all, something that is none, two of one name, one that makes no sense
            there, or an entry of another scenario.
    """
    where = make_scenario(scenario, split="test") if isinstance(scenario, str) else scenario
    check_scenario(where, "compare")
    try:
        given = [] if isinstance(policies, str | bytes) else list(policies)
    except TypeError:
        given = []
    if not given:
        raise ConfigError(f"policies = {policies!r}: give a list of at least one policy, as ['lagrangian_tuned'].")
    rows = [_row(policy, where) for policy in given]
    numbers = case_numbers(cases)
    ends = ends_of(where, numbers.tolist()) if scores else (None, None, None)
    return compare_entries(
        rows,
        scenario if isinstance(scenario, str) else where.source.name,
        where,
        numbers,
        reference=ends[0],
        planner=ends[1],
        fixed_order=ends[2],
        seed=seed,
        workers=workers,
        timed=False,
    )


def ends_of(scenario: Scenario, cases: Sequence[int], shown: Sequence[Entry] = ()) -> tuple[Entry, Entry, Entry | None]:
    """What scores 0, what scores 1, and what scores 1 with the order of requests fixed, where that is another.

    Args:
        scenario: where.
        cases: that are played.
        shown: entries that are there already.
    """
    there = {item.name: item for item in shown}
    planner, fixed = planner_of(scenario, cases), fixed_order_planner(scenario)
    names = (best_tuned(scenario), planner, *((fixed,) if fixed != planner else ()))
    zero, one, *others = (there.get(name) or entry(name, scenario) for name in names)
    return zero, one, others[0] if others else None


def _row(policy: str | Policy | Entry, scenario: Scenario) -> Entry:
    if isinstance(policy, Entry):
        theirs, ours = (_requests(one) for one in (policy.scenario, scenario))
        if theirs != ours:
            raise ConfigError(
                f"entry {policy.name!r} is of another scenario ({difference(theirs, ours)}), so its episodes are not "
                "those of the others: make it with entry(name, scenario) of the scenario that is compared in."
            )
        return policy
    if isinstance(policy, str):
        return entry(policy, scenario)
    check_policy(policy)
    return Entry(policy.name, policy.kind, policy, scenario)


def _requests(scenario: Scenario) -> dict[str, Any]:
    """What makes its episodes others, whoever schedules."""
    return {name: value for name, value in scenario.describe().items() if name not in BROUGHT}
