"""Rules of serving systems and of the literature that need only the binary action.

Symbols as in docs/model.md: W waiting, A active, F idle, J clients, R idle clients that have something to take. A rule
is asked only where both actions are feasible (A > 0 and R > 0); where A = 0 the loop prefills, as each of them would.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.optimize import brentq

from llmsched_env.baselines.rule import Rule
from llmsched_env.cost import CostModel
from llmsched_env.engine import rules
from llmsched_env.engine.plans import FollowPrefills
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext

__all__ = [
    "RandomRule",
    "cadence",
    "deadline",
    "decode_first",
    "delay_factor",
    "eb_threshold",
    "eb_threshold_finite",
    "interleave",
    "lightllm",
    "max_wait",
    "min_batch",
    "planned",
    "prefill_first",
    "static_batching",
    "tgi",
    "theta",
    "threshold",
]


def prefill_first() -> Rule:
    """Prefill whenever an idle client can take a waiting request (W > 0 and F >= 1), else decode.

    vLLM's V0 scheduler (Kwon et al., SOSP 2023, arXiv 2309.06180; ``Scheduler._schedule_default``, the default before
    v0.8.0 and gone in v0.11.0; compared with v0.6.6.post1), Vidur's ``vllm_replica_scheduler.py``, and SGLang's
    ``Scheduler.get_next_batch_to_run`` (pull request 34058 describes it as of August 2026), prompts in parts aside.
    """
    return Rule("prefill_first", rules.Always, (1,))


def planned() -> Rule:
    """Prefill at the decode counts of the joint plan whose order the queue has (`llmsched_env.offline.joint`).

    Raises, at the start of an episode:
        ConfigError: a scenario without a plan.
    """
    return Rule("joint", FollowPrefills, _prefills)


def _prefills(start: EpisodeContext) -> tuple[tuple[int, ...]]:
    if start.planned is None:
        raise ConfigError("policy 'joint' follows a plan: take a scenario with queue='shared' and order='joint'.")
    return (start.planned,)


def decode_first() -> Rule:
    """Prefill only when no client is active (A = 0): the other extreme."""
    return Rule("decode_first", rules.Always, (0,))


def static_batching() -> Rule:
    """When no client is active, prefill what waits, up to J requests; then decode until all of them are done.

    FasterTransformer's request-level batching, as described in the paper on Orca (Yu et al., OSDI 2022) and as Vidur
    has it (``faster_transformer_replica_scheduler.py`` of microsoft/vidur at 82f0840df626). The batch is fixed when it
    opens: who arrives while it is read waits for the next one. Vidur reads a batch in one prefill; here the token cap
    may cut it into several, and then the last of them may take later arrivals along, and clients whose requests had one
    token take others that waited. FasterTransformer decodes finished requests on; neither Vidur nor this rule does.
    """
    return Rule("static_batching", rules.StaticBatching)


def threshold(idle_clients: int = 14) -> Rule:
    """Prefill iff F >= k, or everything that waits fits, or A = 0.

    The family of rules of 'Threshold-Based Exclusive Batching', arXiv 2606.00516.

    Args:
        idle_clients: k. k = 1 is :func:`prefill_first`; the default is near the optimum of the paper's case.
    """
    return Rule("threshold", rules.IdleThreshold, (idle_clients,))


def min_batch(requests: int = 4) -> Rule:
    """Prefill iff R >= k: idle clients for k waiting requests, or A = 0. Mimics no system.

    :func:`threshold` without its 'or everything that waits fits', which is nearly always so where requests come over
    time and the queue is short.

    Args:
        requests: k.
    """
    return Rule("min_batch", rules.ReadyThreshold, (requests,))


def deadline(requests: int = 12, ttft_share: float = 0.8) -> Rule:
    """As :func:`min_batch`, or when some request has waited for a share of its TTFT limit. Mimics no system.

    The oldest request counts that is not late; needs SLOs.

    Args:
        requests: k.
        ttft_share: of the TTFT limit.
    """
    return Rule("deadline", rules.Deadline, (requests, ttft_share))


def eb_threshold() -> Rule:
    """The threshold k* = floor(theta * J), with theta / (1 - theta) + ln(1 - theta) = p * alpha_p / alpha_d.

    p = 1 / E[N] is the chance per decode that a request ends. Optimal for geometric lengths, saturated queues and many
    clients: 'Threshold-Based Exclusive Batching', arXiv 2606.00516, and ``Scheduler._compute_optimal_ratio`` of its
    code (vllm/v1/core/sched/scheduler.py of weifang231/eb-vllm at 1fc9712). Where fewer wait than clients are idle,
    that code prefills iff W / A >= k / (J - k), and this rule at once, as :func:`threshold` does.
    """
    return Rule("eb_threshold", rules.IdleThreshold, _eb_closed_form)


def eb_threshold_finite() -> Rule:
    """The smallest k with k tau(J - k) - sum of tau(j) over j = J-k+1..J >= alpha_p.

    tau(j) = (alpha_d + beta_d j) / (1 - (1 - p)^j) is the time to the next completion with j active clients:
    ``Scheduler._compute_optimal_k`` in the code of arXiv 2606.00516 (:func:`eb_threshold` says where). It tends to the
    closed form where J p is small. Under the default preset, with J = 200 and E[N] = 345, this is k = 37 and the closed
    form 16 (18 and 12 under -mid, 7 and 6 under -low); the difference is beta_d's, without which it is 17. Where J p is
    well above 1, a completion comes with every decode, no k satisfies the formula, and this rule waits for everybody.
    """
    return Rule("eb_threshold_finite", rules.IdleThreshold, _eb_finite)


def _eb_closed_form(start: EpisodeContext) -> tuple[int]:
    share = theta(start.scenario.believed_model, start.mean_output_tokens)
    return (max(1, math.floor(share * start.scenario.num_clients)),)


def theta(cost: CostModel, mean_output_tokens: float) -> float:
    """The root of x / (1 - x) + ln(1 - x) = p alpha_p / alpha_d in [0, 1): the share of clients to let fall idle."""
    price = cost.prefill_ns(0) / max(1, cost.alpha_decode_ns) / mean_output_tokens
    return float(brentq(lambda x: x / (1 - x) + math.log1p(-x) - price, 0.0, 1.0 - 1e-15))


def _eb_finite(start: EpisodeContext) -> tuple[int]:
    cost, clients = start.scenario.believed_model, start.scenario.num_clients
    ends = 1.0 / start.mean_output_tokens
    active = np.arange(1, clients + 1)
    tau = (cost.alpha_decode_ns + cost.beta_decode_ns * active) / -np.expm1(active * math.log1p(-min(ends, 1 - 1e-12)))
    spent = 0.0
    for k in range(1, clients):
        spent += tau[clients - k]
        if k * tau[clients - k - 1] - spent >= cost.prefill_ns(0):
            return (k,)
    return (clients,)


def max_wait(decodes: int = 10) -> Rule:
    """Prefill when A = 0 or at least ``decodes`` decodes have passed since the last prefill. Mimics no system.

    After LightLLM, which counts from its last attempt, whether or not that found something: :func:`lightllm`.
    """
    return Rule("max_wait", rules.AfterDecodes, (decodes,))


def lightllm(decodes: int = 10) -> Rule:
    """Prefill when A = 0, or at every ``decodes``-th decode since the last prefill that began with A = 0.

    ``RouterManager._step`` of LightLLM (lightllm/server/router/manager.py at 3bed16df56bb): it looks for requests at
    every 10th decode (``max_wait_tokens``, later the option ``router_max_wait_tokens``, 6 and then 1), and starts to
    count again whether or not it found any. A request that arrives after an attempt so waits for the next one;
    :func:`max_wait` takes it at once where the last prefill is long ago. LightLLM's estimate of memory is not modelled.

    Args:
        decodes: from one attempt to the next.
    """
    return Rule("lightllm", rules.EveryNthDecode, (decodes,))


def tgi(waiting_served_ratio: float = 0.3, max_decodes: int = 20) -> Rule:
    """Prefill when the waiting requests that fit number at least floor(A * ratio), or after ``max_decodes`` decodes.

    After ``batching_task`` of Hugging Face Text Generation Inference (backends/v3/src/backend.rs at 1d0847a90e6b, and
    v2): its ``waiting_served_ratio`` (0.3 since pull request 1820 of April 2024, 1.2 before) and
    ``max_waiting_tokens``. TGI itself differs in two points: it counts from 1, so drops the minimum one decode sooner,
    and it decodes at least once between two prefills.
    """
    return Rule("tgi", rules.ServedRatio, (waiting_served_ratio, max_decodes))


def delay_factor(factor: float = 0.5) -> Rule:
    """Prefill iff the oldest waiting request has waited longer than ``factor`` times the last prefill's duration.

    After vLLM's ``scheduler_delay_factor`` (pull request 3279, ``Scheduler._passed_delay`` of the V0 scheduler, v0.4.0
    until v0.11.0 dropped V0; 0 by default; read at v0.6.6.post1). vLLM asks again before each request that it
    takes, so its prefill holds only those that have waited so long; here it holds all that fit. With every release at
    0 and a factor below 1 it is prefill-first.
    """
    return Rule("delay_factor", rules.Waited, (factor,))


def cadence(iterations: int = 8) -> Rule:
    """While a client is active, prefill at most once in ``iterations`` iterations.

    ``--decode-priority-cadence`` of vLLM pull request 56848 (September 2026, closed unmerged). That takes every n-th
    step of the engine; this rule counts from the last prefill. vLLM itself has ``--prefill-schedule-interval`` since
    pull request 44558 (June 2026, merged): a rank of several in data parallel defers prefills to every n-th step while
    a running request can decode, but for a queue that such a step does not empty. Pull request 54627 (August 2026,
    open) gives the option to a single engine, counted from the last step that read a prompt, as here.
    """
    return Rule("cadence", rules.AfterDecodes, (iterations - 1,))


def interleave(prefills: int = 2, decodes: int = 8) -> Rule:
    """At most ``prefills`` prefills in a row, then at least ``decodes`` decodes.

    ``TTDecodeInterleavePolicy`` of vllm-tt-plugin (pull request 119 of September 2026), whose defaults are 2 and 1 and
    whose prefills may be chunks of a prompt; SGLang pull request 34058 (August 2026, open) bounds the first number.
    """
    return Rule("interleave", rules.InTurns, (prefills, decodes))


class RandomRule(Rule):
    """A fair coin: a control that mimics no system. Seeded by the episode's seed."""

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__("random", rules.Coin, functools.partial(_coin, probability))


def _coin(probability: float, start: EpisodeContext) -> tuple[float, int]:
    return probability, int(np.random.SeedSequence(start.seed).generate_state(1, np.uint64)[0] >> 3 | 1)
