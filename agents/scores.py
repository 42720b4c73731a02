"""How a library's network scores the actions, asked without what the library's ``predict`` does around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MASKED", "SCORERS", "Scores", "scores_of"]


def _actor(policy: Any) -> list[Any]:
    return [*policy.mlp_extractor.policy_net, policy.action_net]


SCORERS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "ActorCriticPolicy": _actor,
    "MaskableActorCriticPolicy": _actor,
    "DQNPolicy": lambda policy: policy.q_net.q_net,
    "QRDQNPolicy": lambda policy: policy.quantile_net.quantile_net,
    "ARSPolicy": lambda policy: policy.action_net,
    "ARSLinearPolicy": lambda policy: policy.action_net,
}
"""Class of a model's policy -> the modules that score the actions, first to last."""

MASKED = ("MaskableActorCriticPolicy",)
DISTRIBUTIONS = ("ActorCriticPolicy", *MASKED)
"""Those whose scores are logits of a distribution."""

MODULES = {"Linear", "Tanh", "ReLU"}
OWN = ("stable_baselines3.", "sb3_contrib.")


class Scores:
    """The same operations on the same numbers as the library's, so its actions to the last tie.

    Args:
        modules: that score the actions, first to last.
        actions: how many there are.
        distribution: whether the scores are logits.
    """

    def __init__(self, modules: Iterable[Any], actions: int, distribution: bool) -> None:
        import torch

        self._torch = torch
        self._modules = tuple(modules)
        self._actions = actions
        self._distribution = distribution

    def __call__(
        self, observations: NDArray[np.float32], action_masks: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """(observations, actions) probabilities, or the values where there is no distribution; NaN where broken."""
        torch = self._torch
        with torch.inference_mode():
            scores = torch.from_numpy(observations)
            for module in self._modules:
                scores = module(scores)
            if not self._distribution:
                # Of quantiles, or of one value.
                values: NDArray[np.float32] = scores.view(len(observations), -1, self._actions).mean(dim=1).numpy()
                return values
            scores = scores - scores.logsumexp(dim=-1, keepdim=True)
            if action_masks is not None:
                scores = torch.where(torch.from_numpy(action_masks), scores, -1e8)
                scores = scores - scores.logsumexp(dim=-1, keepdim=True)
            chances: NDArray[np.float32] = torch.softmax(scores, dim=-1).numpy()
            return chances


def scores_of(model: Any) -> Scores | None:
    """How a model of the libraries' own classes, on the CPU, scores the actions; ``None`` for any other model."""
    policy: Any = getattr(model, "policy", None)
    kinds = type(model), type(policy)
    if not all(kind.__module__.startswith(OWN) for kind in kinds) or kinds[1].__name__ not in SCORERS:
        return None
    modules = [*SCORERS[kinds[1].__name__](policy)]
    plain = {type(module).__name__ for module in modules} <= MODULES
    if not plain or policy.features_extractor_class.__name__ != "FlattenExtractor" or policy.device.type != "cpu":
        return None
    return Scores(modules, int(model.action_space.n), kinds[1].__name__ in DISTRIBUTIONS)
