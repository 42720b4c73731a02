"""A cap on active clients that follows from what they will hold: where the KV cache is a budget."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import ndtri

from llmsched_env.baselines.rule import Rule
from llmsched_env.cases import build_problem
from llmsched_env.config import CAP_LEVELS
from llmsched_env.engine import rules
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext

__all__ = ["memory_aware", "most_clients"]

TRAINING_CASES = range(4)


def most_clients(budget_tokens: float, mean_tokens: float, sd_tokens: float, risk: float) -> float:
    """The largest b with b * mean + z * sd * sqrt(b) <= budget, z the normal quantile of 1 - risk; not rounded.

    Args:
        budget_tokens: M.
        mean_tokens: of a request's prompt and output together.
        sd_tokens: their standard deviation.
        risk: chance that b independent requests hold more than M in sum, above 0 and below 1.
    """
    spread = float(ndtri(1.0 - risk)) * sd_tokens
    root = (math.sqrt(spread * spread + 4.0 * mean_tokens * budget_tokens) - spread) / (2.0 * mean_tokens)
    return root * root


def memory_aware(risk: float = 0.05) -> Rule:
    """Prefill as long as no more than b clients are active then, b by :func:`most_clients`.

    Where caps are actions, by the largest that is at most b, or else the smallest.

    After 'Optimizing LLM Inference Throughput via Memory-aware and SLA-constrained Dynamic Batching' (Pang, Li, Wang,
    arXiv 2503.05248), its part about memory, in our reading. Mean and standard deviation are those of training cases.

    Args:
        risk: that all active requests at their ends exceed the budget.

    Raises:
        ConfigError: a risk out of range.
    """
    if not 0 < risk < 1:
        raise ConfigError(f"risk = {risk} is out of range: it lies above 0 and below 1.")
    return Rule("memory_aware", rules.UpToTheCap, functools.partial(_cap, risk))


def _cap(risk: float, start: EpisodeContext) -> tuple[float, int]:
    scenario = start.scenario
    if scenario.kv_budget_tokens is None:
        raise ConfigError("policy 'memory_aware' needs a budget: take a scenario with kv_budget_tokens.")
    train = scenario.replace(split="train")
    held = np.concatenate([build_problem(train, case).requests[:, :2].sum(axis=1) for case in TRAINING_CASES])
    most = max(1.0, most_clients(scenario.kv_budget_tokens, float(held.mean()), float(held.std()), risk))
    if not scenario.choose_cap:
        return most, 1
    level = min(CAP_LEVELS, max(1, math.floor(CAP_LEVELS * most / scenario.num_clients)))
    return math.ceil(level * scenario.num_clients / CAP_LEVELS), 1 + CAP_LEVELS - level
