"""Who sends each request to one of several replicas, when it arrives.

The names are those of Vidur's global schedulers (microsoft/vidur, ``vidur/scheduler/global_scheduler``: random,
round_robin, lor) and of the policies of vLLM's router (vllm-project/router, ``src/policies``: random, round_robin,
power_of_two). A router knows what the replicas have at the arrival (`llmsched_env.engine.replica`), and of the request
its prompt and its estimated output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from llmsched_env.engine.view import View
from llmsched_env.errors import ConfigError, UnknownNameError

__all__ = [
    "LINEAR_FEATURES",
    "ROUTERS",
    "TRAINED_WEIGHTS",
    "LeastKV",
    "LeastOutstanding",
    "Linear",
    "PowerOfTwo",
    "RandomRouter",
    "RoundRobin",
    "Router",
    "kv_tokens",
    "make_router",
    "outstanding",
]


class Router(Protocol):
    """Anything that sends requests to replicas.

    With an attribute ``reads_forecast = True`` its views say what is expected of active requests (``due_1`` to
    ``last_due``), which takes a little longer.

    Attributes:
        name: what tables call it.
    """

    name: str

    def reset(self, replicas: int, seed: int) -> None:
        """Begin an episode with so many replicas."""

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The replica that the request goes to.

        Args:
            views: what each replica has, before the iteration that is under way there.
            prompt_tokens: of the request.
            estimate_tokens: of its output, as far as the scenario lets it be known.
        """


def outstanding(view: View) -> int:
    """Requests of a replica that have arrived and are not complete."""
    return int(view.waiting + view.active + view.preempted + (view.reading_tokens > 0))


def kv_tokens(view: View) -> int:
    """Tokens in the KV cache of a replica, in whole blocks where it has a budget, and prompt tokens that wait."""
    held = view.kv_used if view.kv_budget_tokens else view.context_tokens
    return int(held + view.waiting_tokens + view.reading_tokens)


class RoundRobin:
    """One replica after another (Vidur's and vLLM's ``round_robin``)."""

    name = "round_robin"

    def reset(self, replicas: int, seed: int) -> None:
        """Begin with the first."""
        self._next = 0

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The next one."""
        replica = self._next
        self._next = (replica + 1) % len(views)
        return replica


class RandomRouter:
    """Any replica, each with the same probability (Vidur's and vLLM's ``random``)."""

    name = "random"

    def reset(self, replicas: int, seed: int) -> None:
        """Begin the stream of this seed."""
        self._random = np.random.default_rng(seed)

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """One by chance."""
        return int(self._random.integers(len(views)))


class LeastOutstanding:
    """The replica with the fewest outstanding requests, the first of several (Vidur's ``lor``).

    Vidur's counts those that wait to be scheduled; this one, as load balancers do and as its name says, those that run
    as well.
    """

    name = "least_outstanding"

    def reset(self, replicas: int, seed: int) -> None:
        """Nothing is kept."""

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The least loaded."""
        return _least([outstanding(view) for view in views])


class PowerOfTwo:
    """Of two different replicas drawn by chance the one with fewer outstanding requests, the first if both have as many
    (vLLM's ``power_of_two``; Mitzenmacher 2001, The power of two choices in randomized load balancing)."""

    name = "power_of_two"

    def reset(self, replicas: int, seed: int) -> None:
        """Begin the stream of this seed."""
        self._random = np.random.default_rng(seed)

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The less loaded of two."""
        if len(views) == 1:
            return 0
        one = int(self._random.integers(len(views)))
        other = int(self._random.integers(len(views) - 1))
        other += other >= one
        return one if outstanding(views[one]) <= outstanding(views[other]) else other


class LeastKV:
    """The replica with the fewest tokens in its KV cache and in prompts that wait, the first of several.

    KV-aware without prefixes: what llm-d's scorers of KV-cache utilization and queue depth measure, in one unit.
    """

    name = "least_kv"

    def reset(self, replicas: int, seed: int) -> None:
        """Nothing is kept."""

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The least full."""
        return _least([kv_tokens(view) for view in views])


class Linear:
    """The replica with the least weighted sum of what it has, the first of several.

    The weights were trained by ``benchmarks/train_router.py`` (CMA-ES) on training cases of ``LLMSched/Router-v0``, and
    are scaled so that an active request weighs 1.

    Args:
        weights: of `LINEAR_FEATURES`; ``None`` for the trained ones.
    """

    name = "linear"
    reads_forecast = True

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = TRAINED_WEIGHTS if weights is None else tuple(float(weight) for weight in weights)
        if len(self.weights) != len(LINEAR_FEATURES):
            raise ConfigError(
                f"{len(self.weights)} weights: give {len(LINEAR_FEATURES)}, of {', '.join(LINEAR_FEATURES)}."
            )

    def reset(self, replicas: int, seed: int) -> None:
        """Nothing is kept."""

    def choose(self, views: Sequence[View], prompt_tokens: int, estimate_tokens: int) -> int:
        """The least loaded."""
        active, waiting, context, remaining, waiting_work, late, due_16, due_64 = self.weights
        tokens = 1.0 / views[0].mean_output_tokens  # as many tokens as a request has in the mean weigh as one
        return _least(
            [
                active * view.active
                + waiting * view.waiting
                + late * view.late
                + due_16 * view.due_16
                + due_64 * view.due_64
                + tokens * (context * view.context_tokens + remaining * view.remaining)
                + tokens * waiting_work * view.waiting_work
                for view in views
            ]
        )


LINEAR_FEATURES = ("active", "waiting", "context_tokens", "remaining", "waiting_work", "late", "due_16", "due_64")
"""What `Linear` weighs: fields of a view; tokens in units of the mean output."""

TRAINED_WEIGHTS = (1.0, 0.166, 0.201, 0.126, -0.279, 0.115, 0.340, -0.337)
"""What ``benchmarks/train_router.py`` printed."""


def _least(loads: Sequence[float]) -> int:
    return loads.index(min(loads))


ROUTERS: Mapping[str, Callable[[], Router]] = MappingProxyType(
    {
        "random": RandomRouter,
        "round_robin": RoundRobin,
        "power_of_two": PowerOfTwo,
        "least_outstanding": LeastOutstanding,
        "least_kv": LeastKV,
        "linear": Linear,
    }
)
"""Every router by its name."""


def make_router(router: str | Router) -> Router:
    """The router of that name; any other object of the protocol as it is.

    Raises:
        UnknownNameError: no such name.
        ConfigError: not a router.
    """
    if isinstance(router, str):
        if router not in ROUTERS:
            raise UnknownNameError("router", router, ROUTERS)
        return ROUTERS[router]()
    missing = [name for name in ("name", "reset", "choose") if not hasattr(router, name)]
    if missing:
        raise ConfigError(
            f"router = {router!r} is no router: it lacks {', '.join(missing)}. Give one of {', '.join(ROUTERS)}, or "
            "an object as llmsched_env.replicas.Router describes."
        )
    return router
