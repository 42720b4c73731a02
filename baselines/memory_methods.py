"""Whole methods where the KV cache is a budget: an order, an admission and what is known of lengths, prefill first.

Their papers minimise the mean latency of requests, in a model whose iterations all last as long and whose prompts cost
nothing. Here prefills and decodes last what the scenario says, and who is in the cache is what each method decides.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.baselines.iteration import prefill_first
from llmsched_env.baselines.rule import TiedRule
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError

__all__ = ["MEMORY_METHODS", "a_max", "a_min", "aged_sf", "mc_sf", "sorted_f", "svf", "svf_1bit"]

_CHECKED = {
    "kv_rule": "keep_growth",
    "kv_victim": "last",
    "kv_admission": "predicted",
    "kv_reserve_tokens": None,
    "aging_tokens_per_s": None,
}
_ENDS = {**_CHECKED, "order": "shortest_first", "lengths": "predicted", "predictor": "interval:10"}
_KNOWN: dict[str, Any] = {**_CHECKED, "lengths": "known", "predictor": None, "sd_weight": 0.0}

AGING_TOKENS_PER_S = 10.0
"""Ours: a request that has waited for half a minute counts as one that is 300 tokens shorter."""

MEMORY_METHODS: dict[str, dict[str, Any]] = {
    "mc_sf": {**_KNOWN, "order": "shortest_first"},
    "svf": {**_KNOWN, "order": "smallest_volume_first"},
    "svf_1bit": {**_KNOWN, "order": "smallest_volume_first", "lengths": "predicted", "predictor": "class:2"},
    "sorted_f": {**_KNOWN, "order": "sorted_f"},
    "aged_sf": {**_KNOWN, "order": "aged_shortest_first", "aging_tokens_per_s": AGING_TOKENS_PER_S},
    "a_max": {**_ENDS, "sd_weight": 1.0},
    "a_min": {**_ENDS, "sd_weight": -1.0, "kv_victim": "least_estimate"},
}
"""What each method makes of a scenario with a budget."""


def _method(name: str) -> TiedRule:
    return TiedRule(name, prefill_first(), MEMORY_METHODS[name], _check)


def _check(name: str, scenario: Scenario) -> None:
    """Whether a method makes sense in a scenario.

    Raises:
        ConfigError: it does not.
    """
    if not scenario.kv_limited:
        raise ConfigError(f"policy {name!r} needs a budget: take a scenario with kv_budget_tokens.")


def mc_sf() -> TiedRule:
    """MC-SF: shortest output first, as long as all let in fit at every decode to come. Lengths are known.

    'Online Scheduling for LLM Inference with KV Cache Constraints' (Jaillet et al., arXiv 2502.07115), Algorithm 1.
    """
    return _method("mc_sf")


def svf() -> TiedRule:
    """SVF: smallest volume first, as long as all let in fit at every decode to come. Lengths are known.

    'Geometry-Aware Online Scheduling for LLM Serving: From Theoretical Bound to System Practice' (Kong, Qi, Ye, Zhou;
    arXiv 2606.22327). The volume of a request with s prompt tokens and o outputs is what it holds of the cache, summed
    over its iterations: s o + o (o + 1) / 2, as we read the abstract's "2D spatio-temporal geometric growth". The check
    of what is to come is MC-SF's.
    """
    return _method("svf")


def svf_1bit() -> TiedRule:
    """1-bit SVF: as `svf`, but all that is known of a length is one bit, whether it is short or long.

    Of the same paper (arXiv 2606.22327), in our reading: the abstract says "a single bit information", and we take the
    bit to be on which side of the median of training lengths the output is, and the mean of that side for the length.
    The bit is right. Prompts are known as ever. What outlives its estimate may make others give way.
    """
    return _method("svf_1bit")


def sorted_f() -> TiedRule:
    """Sorted-F: batches of least (sum of outputs) / (number of requests)^2 that fit, as long as all let in fit later.

    'LLM Serving Optimization with Variable Prefill and Decode Lengths' (Wang, Ye, Zhou; arXiv 2508.06133, version 3):
    its two phases are the order (`llmsched_env.orders.sorted_f`) and MC-SF's check. For a batch that is there; lengths
    are known.
    """
    return _method("sorted_f")


def a_max() -> TiedRule:
    """A_max: MC-SF with the upper end of an interval for each length. Ten intervals, each a tenth of training lengths.

    'Adaptively Robust LLM Inference Optimization under Prediction Uncertainty' (Chen, Ye, Zhou; arXiv 2508.14544,
    version 2). Whoever the interval holds never gives way.
    """
    return _method("a_max")


def a_min() -> TiedRule:
    """A_min: MC-SF with the lower end, which goes up with what is emitted; who is expected to be shortest gives way.

    Of the same paper (arXiv 2508.14544). There who gives way loses its tokens and goes back to its place by the lower
    end that it has then; here it keeps them, is computed again as vLLM does it, and comes before those that wait.
    """
    return _method("a_min")


def aged_sf() -> TiedRule:
    """Shortest first with ageing: least output less 10 tokens for each second waited, with MC-SF's check.

    The linear ageing of SGLang's pull request 30806, by known outputs where that one has prompts. EWSJF (Sidik, Levi,
    Kampeas; arXiv 2601.21758, vLLM's pull request 33392) has a product, waiting time times a weight of the prompt's
    length, over queues by prompt length that it learns: its orders change while requests wait, and it is not this.
    Where all requests come at once it is `mc_sf`.
    """
    return _method("aged_sf")
