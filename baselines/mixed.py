"""Policies of systems that mix prefills and decodes: each is an action rule, and how its iterations are composed.

In this model Orca (Yu et al., OSDI 2022), Sarathi-Serve (Agrawal et al., OSDI 2024) and vLLM v1 all decode everybody
and read prompts beside it in order of arrival, whenever there is anything to read; they differ in how much they read
and whether a prefill is chunked. Admission by memory, priorities, and several micro-batches in a pipeline are not
modelled. FairBatching (arXiv 2510.14392) varies that: `SLACK_SYSTEMS`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from llmsched_env.baselines.iteration import theta
from llmsched_env.baselines.rule import Rule
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine import rules
from llmsched_env.engine.codes import PROMPT
from llmsched_env.engine.rule import Rule as EngineRule
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext

__all__ = [
    "MIXED_SYSTEMS",
    "SLACK_SYSTEMS",
    "SYSTEMS",
    "costs_per_token_ns",
    "eb_plus",
    "first_mixed",
    "mixed_first",
    "mixed_threshold",
]

TRAINING_CASES = range(4)

SARATHI_TOKENS = 512
"""Token budget for strict latency targets in Sarathi-Serve's evaluation; 2048 for relaxed ones."""

VLLM_TOKENS = 2048
"""``SchedulerConfig.max_num_batched_tokens`` of vLLM v1 (v0.32.0), where nothing else says."""

_BUDGET = {"mixed_counts_active": True, "mixed_whole_prompts": False, "mixed_within_slack": False}

MIXED_SYSTEMS: dict[str, dict[str, Any]] = {
    "orca": {
        "mixed_tokens": 2**31 - 1,
        "mixed_counts_active": False,
        "mixed_whole_prompts": True,
        "mixed_within_slack": False,
    },
    "sarathi_serve": {"mixed_tokens": SARATHI_TOKENS, **_BUDGET},
    "vllm_v1": {"mixed_tokens": VLLM_TOKENS, **_BUDGET},
}
"""How the iterations of each system are composed. Orca: whole prompts, as many as clients are idle. Sarathi-Serve and
vLLM v1: a token budget that decodes are served from first. Compared with Vidur's ``orca`` and ``sarathi`` schedulers
and with vLLM 0.32.0: docs/fidelity.md."""

SLACK_SYSTEMS: dict[str, dict[str, Any]] = {
    "fairbatching": {**MIXED_SYSTEMS["vllm_v1"], "mixed_within_slack": True},
}
"""... under SLOs. FairBatching ('FairBatching: Fairness-Aware Batch Formation for LLM Inference', Lyu, Liu, Wu, Chen;
arXiv 2510.14392): the token budget follows the slack of the running requests, up to vLLM's. Read were the abstract and
a review that quotes the deadlines. It differs in two points. A token is due by the limits of this model, where TPOT
counts from the first token; the paper's line begins at the arrival and the TTFT limit, so that an early first token
leaves time. And every running request decodes in each iteration; there one that has slack may be left out."""

SYSTEMS = {**MIXED_SYSTEMS, **SLACK_SYSTEMS}


def mixed_threshold(clients: int) -> Rule:
    """As :func:`llmsched_env.baselines.iteration.threshold`, with a mixed iteration in place of a prefill.

    Args:
        clients: k: mixed iff so many clients are idle, or as many as there is anything for.
    """
    return Rule("mixed_threshold", rules.IdleThreshold, functools.partial(_threshold, clients))


def mixed_first(name: str = "mixed_first") -> Rule:
    """A mixed iteration whenever there is anything to read, with the scenario's own chunk.

    Args:
        name: what tables call it: one of `SYSTEMS`, whose composition the scenario then has.
    """
    return Rule(name, rules.Always, _always_mixed)


def _threshold(clients: int, start: EpisodeContext) -> tuple[int, int]:
    return clients, first_mixed(start)


def _always_mixed(start: EpisodeContext) -> tuple[int]:
    return (first_mixed(start),)


def first_mixed(start: EpisodeContext) -> int:
    """The mixed iteration among the actions, the first where there are several.

    Raises:
        ConfigError: a scenario without mixed iterations.
    """
    if not start.scenario.mixes:
        raise ConfigError("this policy needs mixed iterations: take a scenario with mixed_tokens.")
    return 1 + (start.scenario.num_actions - 1) // 2  # decode, prefills, as many mixed ones


def costs_per_token_ns(scenario: Scenario, mean_prompt_tokens: float, mean_output_tokens: float) -> tuple[float, float]:
    """Time a token, prompts and outputs, under exclusive and under mixed batching: (exclusive, mixed) in ns.

    Proposition 4 of 'Threshold-Based Exclusive Batching' (Zhang, Nie, Pang, Ma, Wu; arXiv 2606.00516), as its code
    computes it (``_compute_diagnostic_delta``, vllm/v1/core/sched/scheduler.py of weifang231/eb-vllm), for a saturated
    system of J clients, geometric output lengths with mean N, prompts with mean L, and refills of k = theta J clients
    at a time (:func:`llmsched_env.baselines.iteration.eb_threshold`):

        exclusive = (beta_p L + beta_d N) / (L + N) + (alpha_p - alpha_d ln(1 - theta) N) / (k (L + N))
        mixed = beta_MB(r) + alpha_MB (1 + N) / (J (L + N))

    Its Delta is mixed - exclusive: mixed batching has the higher throughput iff Delta < 0. beta_MB(r) is taken at the
    mean share r = N / (L + N) of decodes in the tokens of a mixed iteration. Sum form only.

    Args:
        scenario: clients, costs and mixed costs.
        mean_prompt_tokens: L.
        mean_output_tokens: N.

    Raises:
        ConfigError: a scenario without mixed iterations, or with the overlap form.
    """
    mixed, cost, clients = scenario.mixed_cost_model, scenario.cost_model, scenario.num_clients
    if mixed is None or mixed.overlaps:
        raise ConfigError(
            "the crossover of exclusive and mixed batching needs mixed iterations with the sum form: give "
            "mixed_tokens, and a mixed_cost other than 'overlap'."
        )
    tokens = mean_prompt_tokens + mean_output_tokens
    share = mean_output_tokens / tokens
    slope = mixed.beta_prompt_ns + (mixed.beta_active_ns - mixed.beta_prompt_ns) * share
    slope += mixed.interference_ns * share * share
    exclusive_slope = (cost.beta_prefill_ns * mean_prompt_tokens + cost.beta_decode_ns * mean_output_tokens) / tokens
    idle = theta(cost, mean_output_tokens)
    refill = cost.alpha_prefill_ns - cost.alpha_decode_ns * math.log1p(-idle) * mean_output_tokens
    steps = mixed.alpha_ns * (1.0 + mean_output_tokens) / clients
    return exclusive_slope + refill / (idle * clients) / tokens, slope + steps / tokens


def eb_plus() -> Rule:
    """EB+ of arXiv 2606.00516: mixed iterations where :func:`costs_per_token_ns` says that they are cheaper, else
    :func:`llmsched_env.baselines.iteration.eb_threshold`.

    The original decides again every hundred completions by running means; here the means are the population's (those
    of training cases), so one decision holds for an episode. The formula is one of a saturated system whose mixed
    iterations read all that there is room for: it knows neither the load nor the scenario's ``mixed_tokens``.
    """
    return Rule("eb_plus", _mixed_or_threshold, _eb_plus)


def _mixed_or_threshold(saving_ns: float, clients: int, mixed: int) -> EngineRule:
    return rules.Always(mixed) if saving_ns > 0.0 else rules.IdleThreshold(clients)


def _eb_plus(start: EpisodeContext) -> tuple[float, int, int]:
    scenario, output = start.scenario, start.mean_output_tokens
    share = theta(scenario.cost_model, output)
    train = scenario.replace(split="train")
    prompt = float(np.mean([build_problem(train, case).requests[:, PROMPT].mean() for case in TRAINING_CASES]))
    exclusive, mixed = costs_per_token_ns(scenario, prompt, output)
    return exclusive - mixed, max(1, math.floor(share * scenario.num_clients)), first_mixed(start)
