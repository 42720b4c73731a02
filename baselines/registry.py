"""Every policy by its name, and the bringing of one's own."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmsched_env.agents.agent import Agent
from llmsched_env.agents.files import load_agent, shipped
from llmsched_env.baselines import iteration, lagrangian, planners
from llmsched_env.baselines.deadlines import slai, wait
from llmsched_env.baselines.guarded import Guarded
from llmsched_env.baselines.lookahead import Lookahead
from llmsched_env.baselines.memory_aware import memory_aware
from llmsched_env.baselines.memory_methods import MEMORY_METHODS, a_max, a_min, aged_sf, mc_sf, sorted_f, svf, svf_1bit
from llmsched_env.baselines.mixed import MIXED_SYSTEMS, SLACK_SYSTEMS, SYSTEMS, eb_plus, mixed_first
from llmsched_env.baselines.rule import Rule, TiedRule
from llmsched_env.baselines.tuned import MIXED_TUNABLE, SLO_TUNABLE, TUNABLE, Tuned, paired
from llmsched_env.cases import has_plans, is_batch
from llmsched_env.config import JOINT, ORDER_CODES, Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.policy import Policy, check_policy

__all__ = [
    "AGENTS",
    "BASELINES",
    "METHODS",
    "POLICIES",
    "SLO_POLICIES",
    "Entry",
    "Method",
    "default_names",
    "entry",
    "fixed_order_planner",
    "make_policy",
    "planner_of",
]

Factory = Callable[[], Policy]

OWN_KINDS = ("rule", "planner", "agent")


@dataclass(frozen=True)
class Method:
    """A whole scheduling method: how requests are queued, and the rule that picks iterations.

    Attributes:
        policy: makes the iteration rule.
        queues: what it changes of the scenario.
        text: one line for the tables.
    """

    policy: Callable[[], Rule]
    queues: dict[str, Any] = field(default_factory=dict)
    text: str = ""


_FCFS = {"queue": "shared", "order": "fcfs", "lengths": "hidden", "predictor": None, "sd_weight": 0.0}
_LPT = {"queue": "shared", "order": "longest_first"}
_MIP = {"queue": "client", "assignment": "mip"}
_SORTED = {"order": "longest_first", "stealing": True}

METHODS: dict[str, Method] = {
    "baseline": Method(iteration.prefill_first, _FCFS, "one shared FCFS queue, prefill-first (vLLM-style)"),
    "baseline_lagrangian": Method(lagrangian.lagrangian, _FCFS, "the same with the Lagrangian rule"),
    "offline": Method(
        iteration.prefill_first,
        {**_MIP, "order": "fcfs", "stealing": False},
        "MIP queues in arrival order, prefill-first",
    ),
    "offline_sorted": Method(iteration.prefill_first, {**_MIP, **_SORTED}, "+ sorting and stealing"),
    "hybrid": Method(lagrangian.lagrangian, {**_MIP, **_SORTED}, "+ Lagrangian rule: the paper's hybrid"),
    "hybrid_lpt": Method(
        lagrangian.lagrangian, {"queue": "client", "assignment": "lpt", **_SORTED}, "hybrid on LPT queues, no MIP"
    ),
    "shared_lpt_prefill_first": Method(iteration.prefill_first, _LPT, "one shared queue, longest first, prefill-first"),
    "shared_lpt_lagrangian": Method(lagrangian.lagrangian, _LPT, "one shared queue, longest first, Lagrangian rule"),
    "joint": Method(
        iteration.planned, {"queue": "shared", "order": JOINT}, "the joint plan of order and prefills, made offline"
    ),
}
"""Methods of the ablation: each brings its own queues, and runs on no others."""

POLICIES: dict[str, Factory] = {
    "prefill_first": iteration.prefill_first,
    "decode_first": iteration.decode_first,
    "static_batching": iteration.static_batching,
    "threshold": iteration.threshold,
    "eb_threshold": iteration.eb_threshold,
    "eb_threshold_finite": iteration.eb_threshold_finite,
    "max_wait": iteration.max_wait,
    "lightllm": iteration.lightllm,
    "tgi": iteration.tgi,
    "delay_factor": iteration.delay_factor,
    "cadence": iteration.cadence,
    "interleave": iteration.interleave,
    "lagrangian": lagrangian.lagrangian,
    "lagrangian_lookahead": lagrangian.lagrangian_lookahead,
    "lagrangian_literal": lagrangian.lagrangian_literal,
    "lagrangian_instant": lagrangian.lagrangian_instant,
    **{name: functools.partial(Tuned, name) for name in TUNABLE},
    "random": iteration.RandomRule,
    "always_worst": planners.AlwaysWorst,
    "rollout": planners.Rollout,
    "beam": planners.Beam,
    "beam_1": functools.partial(planners.Beam, 1, rounds=1),
}
"""Rules and planners: each runs on the scenario's own queues."""

SLO_POLICIES: dict[str, Factory] = {
    "min_batch": iteration.min_batch,
    "deadline": iteration.deadline,
    "wait": wait,
    "slai": slai,
    **{name: functools.partial(Tuned, name) for name in SLO_TUNABLE},
    "lookahead": Lookahead,
}
"""For scenarios with SLOs, beside the rules."""

MEMORY_POLICIES: dict[str, Factory] = {
    "memory_aware": memory_aware,
    "mc_sf": mc_sf,
    "svf": svf,
    "svf_1bit": svf_1bit,
    "sorted_f": sorted_f,
    "aged_sf": aged_sf,
    "a_max": a_max,
    "a_min": a_min,
}
"""Where the KV cache is a budget, beside the rules; those of `MEMORY_METHODS` bring order, admission and lengths."""


def _system(name: str) -> TiedRule:
    """A system that mixes prefills and decodes, on iterations composed as it composes them: `SYSTEMS`."""
    return TiedRule(name, mixed_first(name), SYSTEMS[name])


MIXED_POLICIES: dict[str, Factory] = {
    "mixed_first": mixed_first,
    **{name: functools.partial(Tuned, name) for name in MIXED_TUNABLE},
    **{name: functools.partial(_system, name) for name in MIXED_SYSTEMS},
    "eb_plus": eb_plus,
}
"""Where iterations may be mixed, beside the rules; systems compose theirs as they do."""

SLACK_POLICIES: dict[str, Factory] = {name: functools.partial(_system, name) for name in SLACK_SYSTEMS}
"""Where there are SLOs, too."""

AGENTS: dict[str, Callable[[], Guarded]] = {Guarded.name: Guarded} if shipped() else {}
"""Trained networks where they are surely better than tuned rules, else the best of those."""


def _whole(name: str) -> TiedRule:
    """A whole method of the ablation: its rule, on queues that are filled and ordered as `METHODS` says."""
    return TiedRule(name, METHODS[name].policy(), METHODS[name].queues, _check_method)


def _methods(scenario: Scenario) -> list[str]:
    """Methods, the joint plan only where plans are shipped: to make one takes half a minute."""
    return [name for name in METHODS if name != "joint" or has_plans(scenario)]


def _check_method(name: str, scenario: Scenario) -> None:
    """Whether a whole method makes sense in a scenario.

    Raises:
        ConfigError: it does not.
    """
    for given, why in (
        (scenario.serving, "minimises the makespan of a batch: leave it out where there are SLOs"),
        (scenario.kv_limited, "brings queues of its own: leave it out where the KV cache is a budget"),
        (scenario.mixes, "knows no mixed iterations: leave it out where mixed_tokens is given"),
        (scenario.migrates, "brings queues of its own: leave it out where caches lie with clients, or requests move"),
    ):
        if given:
            raise ConfigError(f"policy {name!r} {why}.")


BASELINES: dict[str, Factory] = {
    **{name: functools.partial(_whole, name) for name in METHODS},
    **POLICIES,
    **SLO_POLICIES,
    **MEMORY_POLICIES,
    **MIXED_POLICIES,
    **SLACK_POLICIES,
    **AGENTS,
}

BATCH_PLANNERS = ("always_worst", "rollout", "beam", "beam_1")
"""Planners that minimise a makespan, which says nothing where requests come over time."""

EXCLUSIVE_PLANNERS = ("always_worst", "beam", "beam_1")
"""Planners that know prefills and decodes only."""


def default_names(scenario: Scenario) -> list[str]:
    """What a comparison in a scenario runs: every policy that makes sense there, each rule under each order."""
    agents = [name for name, make in AGENTS.items() if make().fits(scenario)]
    added = [
        *(_memory_names(scenario) if scenario.kv_limited else ()),
        *(_mixed_names(scenario) if scenario.mixes else ()),
    ]
    if not scenario.serving:
        # Their queues need a fixed number of clients, and are not those that caches lie with.
        methods = [] if scenario.kv_limited or scenario.mixes or scenario.migrates else _methods(scenario)
        left_out = EXCLUSIVE_PLANNERS if scenario.mixes else ("beam",) if scenario.kv_limited else ()
        rules = [name for name in POLICIES if name not in left_out]
        return [*methods, *rules, *added, *agents]
    names = [name for name in (*POLICIES, *SLO_POLICIES, *added) if name not in BATCH_PLANNERS]
    if not scenario.choose_order:
        return [*names, *agents]
    apart = [name for name in names if name == "lookahead" or name in MEMORY_METHODS]
    rules = [name for name in names if name not in apart]
    return [*(paired(name, order) for name in rules for order in ORDER_CODES), *apart, *agents]


def _memory_names(scenario: Scenario) -> list[str]:
    apart = "aged_sf" if is_batch(scenario) else "sorted_f"  # the one needs a batch, the other says nothing new of one
    return [name for name in MEMORY_POLICIES if name != apart]


def _mixed_names(scenario: Scenario) -> list[str]:
    mixed = scenario.mixed_cost_model
    names = [name for name in MIXED_POLICIES if name != "eb_plus" or (mixed is not None and not mixed.overlaps)]
    return [*names, *(SLACK_POLICIES if scenario.serving else ())]


def planner_of(scenario: Scenario, cases: Iterable[int] = ()) -> str:
    """What scores 1: the joint plan where the cases' plans are shipped, else :func:`fixed_order_planner`.

    Args:
        scenario: where.
        cases: that are played; none for those of the pool.
    """
    size = scenario.source.pool_size(scenario.split) or 0
    if not scenario.serving and has_plans(scenario) and max(cases, default=0) < size:
        return "joint"
    return fixed_order_planner(scenario)


def fixed_order_planner(scenario: Scenario) -> str:
    """The planner that picks iterations only, on the scenario's own queues: 1 in a second column of scores."""
    if scenario.serving:
        return "lookahead"
    # With a thousand clients a wide beam takes a minute a case, and finds no more.
    return "rollout" if scenario.mixes else "beam_1" if scenario.kv_limited else "beam"


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a policy in a scenario, under a name."""

    name: str
    kind: str
    policy: Policy
    scenario: Scenario
    text: str = ""


def make_policy(name: str) -> Policy:
    """A policy by name, or one's own.

    A method (`METHODS`), or a system that mixes, is the rule of it: to run where the scenario is as the method makes
    it, and refused elsewhere; :func:`entry` makes both. One's own is ``module:factory`` (a class, or a function without
    arguments), or the path of an agent's .npz file, of which no code is run.

    Raises:
        UnknownNameError: no such name.
        ConfigError: a module that cannot be imported, a factory that does not make a policy, one that takes the
            name of a baseline, or the zip of a model.
        PathError: a file that cannot be read.
        FileFormatError: a file that is no agent of this version.
    """
    if _is_agent(name):
        return _agent(name)
    if name.endswith(".zip"):
        raise ConfigError(
            f"policy {name!r}: the zip of a model of stable-baselines3 is not taken by name, since opening one can run "
            "code. Make an agent of it, 'llmsched export MODEL.zip --algo ALGO --scenario ID --out AGENT.npz', and "
            "give that file; or in Python evaluate(SB3Policy.load(path, algo), scenario), of llmsched_env.agents."
        )
    if ":" in name:
        return _own(name)
    if name not in BASELINES:
        raise UnknownNameError("policy", name, BASELINES)
    return BASELINES[name]()


def entry(name: str, scenario: Scenario) -> Entry:
    """The row for a name: a method on its own queues, anything else on the scenario's.

    ``rule@order`` is a rule under an order; where orders are actions, a rule without one is under "fcfs". Planners that
    know the future are given true lengths for their orders, too.

    Raises:
        UnknownNameError: no such name or order.
        ConfigError: a policy that cannot be made, or that makes no sense in the scenario.
        PathError: the file of an agent that cannot be read.
        FileFormatError: one that is no agent of this version.
    """
    if _is_agent(name):
        agent = _agent(name)
        text = agent.describe(scenario)  # complains now, before the long work, where no network of a file fits
        return Entry(agent.name, agent.kind, agent, scenario, text)
    if "@" in name and ":" not in name:
        rule, _, order = name.partition("@")
        if order not in ORDER_CODES:
            raise UnknownNameError("order", order, ORDER_CODES)
        plain = entry(rule, scenario.replace(order=order, choose_order=False))
        if plain.kind != "rule" or rule in MEMORY_METHODS:
            raise ConfigError(f"{name!r}: {rule!r} is no rule, or brings its own order.")
        return replace(plain, name=name)
    policy = make_policy(name)
    if name in METHODS:
        _check_method(name, scenario)
    if scenario.serving and name in BATCH_PLANNERS:
        raise ConfigError(f"policy {name!r} minimises the makespan of a batch: leave it out where there are SLOs.")
    if not scenario.kv_limited and name in MEMORY_POLICIES:
        raise ConfigError(f"policy {name!r} needs a budget: take a scenario with kv_budget_tokens.")
    if scenario.mixes and name in EXCLUSIVE_PLANNERS:
        raise ConfigError(f"policy {name!r} knows no mixed iterations: leave it out where mixed_tokens is given.")
    if not scenario.mixes and (name in MIXED_POLICIES or name in SLACK_POLICIES):
        raise ConfigError(f"policy {name!r} needs mixed iterations: take a scenario with mixed_tokens.")
    if not scenario.serving and (name in SLACK_POLICIES or (name in SLO_POLICIES and name != "min_batch")):
        raise ConfigError(f"policy {name!r} needs SLOs: take a scenario with ttft_s and tpot_s.")
    if scenario.serving and policy.clairvoyant:
        scenario = scenario.replace(lengths="known", predictor=None, sd_weight=0.0)
    if scenario.choose_order and name in BASELINES and policy.kind == "rule":
        scenario = scenario.replace(choose_order=False)
    if scenario.choose_length and name != "rollout":
        scenario = scenario.replace(choose_length=False)
    for methods in (SYSTEMS, MEMORY_METHODS):
        if name in methods:
            scenario = scenario.replace(**methods[name])
    if name in METHODS:
        method = METHODS[name]
        return Entry(name, "method", policy, scenario.replace(**method.queues), method.text)
    return Entry(policy.name, policy.kind, policy, scenario)


def _is_agent(name: str) -> bool:
    return name in AGENTS or name.endswith(".npz") or name in shipped()


def _agent(name: str) -> Agent | Guarded:
    if name in AGENTS:
        return AGENTS[name]()
    agent = load_agent(name)
    if agent.name in BASELINES:  # as the agent.npz of a training run
        return Agent(f"{Path(name).resolve().parent.name}/{agent.name}", agent.trained)
    return agent


def _own(name: str) -> Policy:
    module_name, _, factory_name = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(
            f"policy {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}). Run where it is."
        ) from error
    if not hasattr(module, factory_name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownNameError(f"factory in module {module_name!r}:", factory_name, known)
    try:
        policy = getattr(module, factory_name)()
    except Exception as error:
        raise ConfigError(
            f"policy {name!r}: {factory_name}() raised {type(error).__name__}: {error}. Name a class, or a function, "
            "that makes a policy without arguments."
        ) from error
    check_policy(policy, f"what {name!r} makes")
    if policy.kind not in OWN_KINDS:
        raise UnknownNameError(f"kind of policy {name!r}:", policy.kind, OWN_KINDS)
    if policy.name in BASELINES:
        raise ConfigError(f"policy {name!r} calls itself {policy.name!r}, a baseline's name: give it one of its own.")
    return policy  # type: ignore[no-any-return]
