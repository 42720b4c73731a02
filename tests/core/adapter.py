"""An episode of the engine from a case laid out for the core: while both stand."""

from __future__ import annotations

import numpy as np

from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.problem import Problem


def costs_of(k, levels, prefix="", count=None):
    levels = [tuple(map(int, row)) for row in levels]
    model = CostModel(
        "any",
        *(
            int(k[prefix + name])
            for name in ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns")
        ),
        int(k["token_cap"]),
        tuple(levels),
    )
    mixed = None
    if k["mixed_budget"]:
        mixed = MixedCost(
            bool(k["mixed_overlaps"]),
            *(
                (0,) * 4
                if k["mixed_overlaps"]
                else (int(k[f"mixed_{n}"]) for n in ("alpha_ns", "beta_prompt_ns", "beta_active_ns", "interference_ns"))
            ),
        )
    return Costs(model, mixed)


def engine_of(instance, case, *, record=False):
    k = instance.setup[0]
    J = int(k["num_clients"])
    actions = [(0, 0, J)]
    if k["cap_levels"]:
        c = int(k["cap_levels"])
        actions += [(1, int(k["order"]), -(-(c + 1 - a) * J // c)) for a in range(1, c + 1)]
    elif k["mixed_budget"]:
        actions += [(1, int(k["order"]), J), (2, int(k["order"]), J)]
    else:
        actions += [(1, int(k["order"]) + a, J) for a in range(int(k["num_actions"]) - 1)]
    num_levels = int(k["num_levels"])
    believed = costs_of(k, instance.levels[:num_levels])
    noisy = bool(k["disturbed"])
    actual = costs_of(k, instance.levels[num_levels:], "true_") if noisy else believed
    options = {}
    if k["kv_budget"]:
        options["kv"] = {
            "budget": int(k["kv_budget"]),
            "block": int(k["kv_block"]),
            "headroom": int(k["kv_headroom"]),
            "rule": int(k["kv_rule"]),
            "admission": int(k["kv_admission"]),
            "reserve_tokens": int(k["kv_reserve"]),
            "swap_token_ns": int(k["swap_token_ns"]),
        }
    if k["mixed_budget"]:
        options["chunked"] = {
            "budget": int(k["mixed_budget"]),
            "counts_active": bool(k["mixed_counts_active"]),
            "whole_prompts": bool(k["mixed_whole_prompts"]),
        }
    if k["serving"]:
        options["slo"] = {
            "ttft_ns": int(k["ttft_ns"]),
            "tpot_ns": int(k["tpot_ns"]),
            "least_prefill_ns": int(k["least_prefill_ns"]),
            "first": int(k["first_counted"]),
            "last": int(k["last_counted"]),
            "certain": not noisy,
        }
    if noisy:
        found = case.disturbance
        options["noise"] = {
            "enabled": True,
            "noise_sd": found.noise_sd,
            "straggler_probability": found.straggler_probability,
            "straggler_factor": found.straggler_factor,
            "key": found.key,
        }
    if k["moving"]:
        options["migration"] = {
            "enabled": True,
            "cached_millionths": int(k["cached_millionths"]),
            "steal": int(k["steal"]),
            "token_ns": int(k["move_token_ns"]),
        }
    ranking = instance.start.ranking if k["ranked"] else None
    problem = Problem(
        np.array(instance.requests),
        np.array(instance.release_ns),
        np.array(instance.request_of),
        J,
        shared=bool(k["shared_queue"]),
        stealing=bool(k["stealing"]),
        ranking=None if ranking is None else np.array(ranking),
        actions=actions,
        believed=believed,
        actual=actual,
        token_cap=int(k["token_cap"]),
        mean_output_tokens=float(instance.start.view[0]["mean_output_tokens"]),
        reward=int(k["reward"]),
        reward_scale=float(k["reward_scale"]),
        affine=bool(k["affine"]),
        bound_ns=int(k["bound_ns"]),
        max_iterations=int(k["max_iterations"]),
        skip_forced=bool(k["skip_forced"]),
    )
    return Episode(problem, options, record=record)
