"""Rules of 2025 for requests that come over time under SLOs.

Both need the arrivals or the deadlines of a scenario with SLOs. Nested WAIT, the second rule of the paper on WAIT, is
left out: it pauses running requests between segments of their outputs, and here a decode serves every active client.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from llmsched_env.baselines.iteration import theta
from llmsched_env.baselines.mixed import TRAINING_CASES, first_mixed
from llmsched_env.baselines.rule import Rule
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine import rules
from llmsched_env.engine.codes import OUTPUT, PROMPT
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext

__all__ = ["fluid_threshold", "slai", "wait"]


def wait() -> Rule:
    """Prefill iff R >= n: clients are idle for the n requests of a batch, n by :func:`fluid_threshold`; or A = 0.

    WAIT, 'waiting for accumulated inference threshold', of 'Optimizing LLM Inference: Fluid-Guided Online Scheduling
    with Memory Constraints' (Ao, Luo, Simchi-Levi, Wang; arXiv 2504.11320), in our reading. Read were the abstracts of
    v2 and v3, and the authors' simulator (``booking_limit_replica_scheduler.py`` of Luoxiaogan/vidur_or at
    0251b5ccb3fe), where a batch begins once so many requests of each type wait for their prompts, with an equal number
    for each token of an output. It differs from that in three points. There is one type, since lengths may be hidden.
    Prompts are read in iterations of their own, and the fluid model is that of these. Running requests go on while a
    batch gathers; there they wait for it, too. Rates and mean lengths are those of training cases.
    """
    return Rule("wait", rules.ReadyThreshold, _fluid)


def fluid_threshold(scenario: Scenario, requests_per_s: float, prompt_tokens: float, output_tokens: float) -> int:
    """The batch n of a fluid model: requests come evenly, and each prefill reads those of one cycle.

    A cycle of a prefill of n requests and m decodes of A clients lasts n / lambda, and in it n requests decode N - 1
    times each, so m A = n (N - 1):

        n / lambda = alpha_p + n beta_p P + m alpha_d + n (N - 1) beta_d

    Two numbers follow. With m = 1, a prefill to every decode, n is lambda (alpha_p + alpha_d) / (1 - lambda (beta_p P +
    (N - 1) beta_d)). And A <= J holds, so that the queue does not grow, from n = alpha_p / (1 / lambda - 1 / capacity)
    on, 1 / capacity = beta_p P + (N - 1) (beta_d + alpha_d / J). The threshold is the larger one, rounded up, but at
    most what one prefill may read, and at most the threshold that is best for a saturated queue
    (:func:`llmsched_env.baselines.iteration.eb_threshold`); that one where there is no equilibrium.

    Args:
        scenario: clients and costs.
        requests_per_s: lambda.
        prompt_tokens: mean P.
        output_tokens: mean N.
    """
    cost, clients = scenario.believed_model, scenario.num_clients
    gap_ns, decodes = 1e9 / requests_per_s if requests_per_s > 0 else math.inf, output_tokens - 1.0
    prefill_ns = cost.prefill_ns(0) + cost.first_decode_ns
    token_ns = cost.beta_decode_ns + cost.gamma_decode_ns * (prompt_tokens + output_tokens / 2.0)
    slack_ns = gap_ns - cost.beta_prefill_ns * prompt_tokens - token_ns * decodes
    spare_ns = slack_ns - decodes * cost.alpha_decode_ns / clients
    most = max(1, math.floor(theta(cost, output_tokens) * clients))
    most = max(1, min(most, math.floor(cost.prefill_token_cap / prompt_tokens)))
    if spare_ns <= 0.0:
        return most
    return min(most, max(1, math.ceil(max((prefill_ns + cost.alpha_decode_ns) / slack_ns, prefill_ns / spare_ns))))


def _fluid(start: EpisodeContext) -> tuple[int]:
    train = start.scenario.replace(split="train")
    problems = [build_problem(train, case) for case in TRAINING_CASES]
    spans_s = [1e-9 * float(one.release_ns[-1] - one.release_ns[0]) for one in problems]
    if sum(spans_s) == 0.0:
        rate = math.inf
    else:
        rate = sum(one.num_requests - 1 for one in problems) / sum(spans_s)
    prompt, output = (
        float(np.mean([one.requests[:, column].mean() for one in problems])) for column in (PROMPT, OUTPUT)
    )
    return (fluid_threshold(start.scenario, rate, prompt, output),)


def slai(offset: float = 1.0) -> Rule:
    """Prefill until the decode of the running requests is urgent: until their last schedulable time.

    With D the end of the last token of the request that has waited longest for its next, that is D + S - f T_d, S the
    TPOT limit and T_d what a decode now would last. Where iterations may be mixed, an urgent decode is a mixed one, and
    one that is not waits only for a prefill that fills the token budget, else it joins, too.

    SLAI of 'Optimal Scheduling Algorithms for LLM Inference: Theory and Practice' (Bari, Hegde, de Veciana; arXiv
    2508.01002). Read were its abstract and the authors' code (``SLAIScheduler`` in
    sarathi/core/scheduler/slai_scheduler.py of agrimUT/SLAI at 1c485de096af). That has a limit of the time between two
    tokens, for which the TPOT limit stands here; f times the mean duration of its batches, for which the decode's does;
    and a batch of any of the running requests, where here a decode serves all. Shortest prompts first and offsets by
    memory in use are not modelled.

    Args:
        offset: f.

    Raises, at the start of an episode:
        ConfigError: a scenario without SLOs.
    """
    return Rule("slai", rules.LastSchedulable, functools.partial(_last_schedulable, offset))


def _last_schedulable(offset: float, start: EpisodeContext) -> tuple[float, int, int]:
    scenario = start.scenario
    if not scenario.serving:
        raise ConfigError("policy 'slai' needs SLOs: take a scenario with ttft_s and tpot_s.")
    return offset, scenario.mixed_tokens or 0, first_mixed(start) if scenario.mixes else 0
