"""The Gymnasium environment for LLM-inference scheduling.

Importing this package registers the environments, and nothing else: ``gymnasium.make("LLMSched/GSM8K-v0")``, or,
without an import of one's own, ``gymnasium.make("llmsched_env:LLMSched/GSM8K-v0")``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from llmsched_env.config import Scenario

__all__ = [
    "ENVIRONMENTS",
    "ROUTER_ENVIRONMENTS",
    "Scenario",
    "__version__",
    "make_scenario",
    "register_environments",
]

__version__ = "0.1.0"

_SERVING: dict[str, Any] = {
    "workload": "serving",
    "queue": "shared",
    "order": "fcfs",
    "lengths": "hidden",
    "load": 0.9,
    "ttft_s": 2.0,
    "tpot_s": 0.1,
    "reward": "goodput",
}

_ORDER: dict[str, Any] = {"lengths": "predicted", "predictor": "noisy", "choose_order": True}

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "LLMSched/GSM8K-v0": {"workload": "gsm8k"},
    "LLMSched/GSM8K-Smooth-v0": {"workload": "gsm8k-smooth"},
    "LLMSched/GSM8K-Blind-v0": {"workload": "gsm8k", "queue": "shared", "order": "fcfs", "lengths": "hidden"},
    "LLMSched/GSM8K-Predicted-v0": {
        "workload": "gsm8k",
        "assignment": "lpt",
        "lengths": "predicted",
        "predictor": "noisy",
    },
    "LLMSched/GSM8KOrder-v0": {
        "workload": "gsm8k",
        "queue": "shared",
        "choose_length": True,
        "skip_forced": True,
    },
    "LLMSched/Serving-v0": _SERVING,
    "LLMSched/ServingOrder-v0": {**_SERVING, **_ORDER},
    "LLMSched/ServingOrder-v1": {**_SERVING, **_ORDER, "load": 0.95, "ttft_s": 1.0, "tpot_s": 0.08},
    "LLMSched/Jitter-v0": {**_SERVING, "noise_sd": 0.3, "straggler_probability": 0.005, "straggler_factor": 10.0},
    "LLMSched/KVMemory-v0": {
        "workload": "gsm8k",
        "num_clients": 1024,
        "queue": "shared",
        "order": "fcfs",
        "lengths": "hidden",
        "kv_budget_tokens": 170_000,
        "kv_block_tokens": 16,
        "choose_cap": True,
        "reward": "makespan",
    },
    "LLMSched/Mixed-v0": {
        **_SERVING,
        "mixed_tokens": 512,
        "mixed_counts_active": True,
    },
    "LLMSched/Migration-v0": {
        "workload": "gsm8k",
        "assignment": "lpt",
        "lengths": "predicted",
        "predictor": "noisy",
        "cached_share": 0.5,
        "steal": "running",
        "move_gb_per_s": 64.0,
        "reward": "makespan",
    },
}
"""Every environment id, and what it changes of the default `Scenario`."""

ROUTER_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "LLMSched/Router-v0": {
        **_SERVING,
        "lengths": "predicted",
        "predictor": "noisy",
        "load": 0.95,
        "ttft_s": 1.0,
        "tpot_s": 0.08,
        "replicas": 4,
        "policy": "deadline",
    },
}
"""Ids of `llmsched_env.replicas.env.RouterEnv`, whose action is a replica, and its arguments."""


def make_scenario(name: str, **changes: Any) -> Scenario:
    """What an environment id stands for, with changes: as ``gymnasium.make`` takes an id and arguments.

    Raises:
        UnknownNameError: no such id.
        UnknownArgumentError: no such argument of `Scenario`; it is a TypeError, too.
        ConfigError: a value out of range, or arguments that do not go together.
    """
    from llmsched_env.config import Scenario
    from llmsched_env.errors import UnknownNameError

    if name not in ENVIRONMENTS:
        raise UnknownNameError("scenario", name, ENVIRONMENTS)
    return Scenario().replace(**{**ENVIRONMENTS[name], **changes})


def register_environments() -> None:
    """Register every id with Gymnasium; harmless when they are registered already."""
    for name, arguments in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="llmsched_env.env:LLMSchedEnv",
                vector_entry_point="llmsched_env.vector_env:LLMSchedVectorEnv",
                kwargs=arguments,
            )
    for name, arguments in ROUTER_ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point="llmsched_env.replicas.env:RouterEnv", kwargs=arguments)


register_environments()


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "Scenario":
        from llmsched_env.config import Scenario

        return Scenario
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
