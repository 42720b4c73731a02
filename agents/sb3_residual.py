"""A policy of stable-baselines3 that begins as a rule: its logit is the rule's own comparison plus a network.

A fresh network chooses between a prefill and a decode like a coin. Most of a training then goes into finding what is
known: to wait until enough clients are idle. Worse, a wait of a dozen decodes is learned as a small chance of a prefill
at each of them, so that the most likely action is always the decode. Here the logit of a prefill is
``sharpness * (score of the rule + network(features))``. A network of zeros is the rule, drawn actions differ from it
only near its threshold, and what is learned moves the threshold, so the most likely actions are good, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from llmsched_env.agents.encoding import rule_start
from llmsched_env.agents.network import BASES, Network, dense
from llmsched_env.agents.sb3_origin import check_bounds
from llmsched_env.config import number, real, whole
from llmsched_env.engine.features import TABLES
from llmsched_env.errors import ConfigError, UnknownNameError

__all__ = ["ResidualPolicy", "rule_start"]

LEAST_SHARE = 1e-9
"""Shares below, and above 1 less this, are taken for it where their logarithm is."""

FORCED = 30.0
"""Logit of a prefill where the rule's score reaches the limit."""

STARTED = 'policy_kwargs={"start": rule_start(scenario)}'
PARTS = ("features", "mean", "spread", "base", "base_values")
"""What a start cannot be without."""

MOST_UNITS = 2**16
MOST_SHARPNESS = 1e6

Start = Mapping[str, Any]


class ResidualPolicy(ActorCriticPolicy):
    """An actor that is a residual on a rule, beside a critic of its own; for PPO, A2C and TRPO, as ``MlpPolicy`` is.

    ``PPO(ResidualPolicy, env, policy_kwargs={"start": rule_start(scenario)})``

    Args:
        observation_space: of an environment of this project.
        action_space: ``Discrete(2)``.
        lr_schedule: as of the base class.
        start: what :func:`rule_start` returned.
        hidden: tanh units of the actor, beside a straight path from the features.
        critic: widths of the critic's tanh layers.
        sharpness: logits per unit of score at the start. It is learned, too.
        limit: from this score of the rule on it is a prefill whatever the network says.
        **others: of the base class.

    Raises:
        ConfigError: another action space, observations that lack a feature or were normalised, a start that is none,
            or a number out of range.
        UnknownNameError: no such rule.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Callable[[float], float],
        *,
        start: Start | None = None,
        hidden: int = 16,
        critic: Sequence[int] = (64, 64),
        sharpness: float = 10.0,
        limit: float = 1.0,
        **others: Any,
    ) -> None:
        if start is None:
            raise ConfigError(f"ResidualPolicy needs {STARTED}: the rule to begin as.")
        if not isinstance(start, Mapping) or (lacking := [part for part in PARTS if part not in start]):
            what = f"lacks {', '.join(lacking)}" if isinstance(start, Mapping) else f"is {start!r}"
            raise ConfigError(f"start {what}, and has to be what rule_start returned: give {STARTED}.")
        if not isinstance(action_space, spaces.Discrete) or action_space.n != 2:
            raise ConfigError(
                f"ResidualPolicy chooses between a decode and a prefill, and the space is {action_space}."
            )
        check_bounds(observation_space, "ResidualPolicy")
        if start["base"] not in BASES or start["base"] == "none":
            raise UnknownNameError("rule", start["base"], [name for name in BASES if name != "none"])
        self._own: dict[str, Any] = {
            "start": dict(start),
            "hidden": whole("hidden", hidden, 1, MOST_UNITS),
            "critic": tuple(whole(f"critic[{i}]", width, 1, MOST_UNITS) for i, width in enumerate(critic)),
            "sharpness": real("sharpness", sharpness, 0.0, MOST_SHARPNESS),
            "limit": number("limit", limit),
        }
        super().__init__(observation_space, action_space, lr_schedule, **others)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._own}

    def _build_mlp_extractor(self) -> None:
        size = int(np.prod(self.observation_space.shape or (0,)))
        self.mlp_extractor = _Residual(size, **self._own)  # type: ignore[assignment]  # all that is asked of it

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        super()._build(lr_schedule)
        self.action_net = _Halves().to(self.device)
        self._residual.begin()  # after the base class drew weights for all layers
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]  # of the optimizers that there are, not of their base
            **self.optimizer_kwargs,
        )

    @property
    def start(self) -> dict[str, Any]:
        """The rule that it began as."""
        start: dict[str, Any] = self._own["start"]
        return start

    def network(self) -> Network:
        """The actor as plain numbers, which take its most likely actions inside the engine."""
        return self._residual.network()

    @property
    def _residual(self) -> _Residual:
        extractor: object = self.mlp_extractor
        assert isinstance(extractor, _Residual)
        return extractor


class _Halves(nn.Module):
    """The logits of a decode and a prefill from the actor's one number: a layer that does not learn.

    Its numbers are buffers: TRPO differentiates by every parameter. They are named as those of a layer, for the zips.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([[-0.5], [0.5]]))
        self.register_buffer("bias", torch.zeros(2))

    def forward(self, logit: Tensor) -> Tensor:
        """(n, 2)."""
        return nn.functional.linear(logit, self.weight, self.bias)


class _Residual(nn.Module):
    """The actor's logit of a prefill, and the critic's last hidden layer."""

    def __init__(
        self, size: int, start: Start, hidden: int, critic: Sequence[int], sharpness: float, limit: float
    ) -> None:
        super().__init__()
        tables = {len(table): [feature.name for feature in table] for table in TABLES}
        if size not in tables:
            known = ", ".join(map(str, sorted(tables)))
            raise ConfigError(f"observations of {size} numbers: ResidualPolicy reads those of this project, {known}.")
        table, names = tables[size], list(start["features"])
        asked = {"lagrangian": ("charge", "charge_ahead"), "deadline": ("ready", "in_time_wait")}[start["base"]]
        for name in (*names, *asked):
            if name not in table:
                raise ConfigError(
                    f"observations of {size} numbers have no {name!r}: start from a rule of this scenario."
                )
        self._start, self._limit, self._first_sharpness = start, limit, sharpness
        self._places = [table.index(name) for name in names]
        self._asked = [table.index(name) for name in asked]
        self.register_buffer("mean", torch.tensor(start["mean"], dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(start["spread"], dtype=torch.float32))
        self.inner = nn.Linear(len(names), hidden)
        self.outer = nn.Linear(hidden, 1)
        self.skip = nn.Linear(len(names), 1, bias=False)
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        widths = [len(names) + 1, *critic]
        layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths)]
        self.critic = nn.Sequential(*layers)
        self.latent_dim_pi, self.latent_dim_vf = 1, widths[-1]

    def begin(self) -> None:
        """Be the rule, but for what is needed to learn."""
        with torch.no_grad():
            nn.init.orthogonal_(self.inner.weight)
            nn.init.normal_(self.outer.weight, std=0.01)
            self.log_sharpness.fill_(float(np.log(self._first_sharpness)))
            for zero in (self.inner.bias, self.outer.bias, self.skip.weight):
                zero.zero_()

    def score(self, observations: Tensor) -> Tensor:
        """(n, 1): the rule's own comparison, 0 where it is level."""
        first, second = (observations[:, place : place + 1] for place in self._asked)
        one, two = self._start["base_values"]
        if self._start["base"] == "deadline":
            needed: Tensor = torch.maximum(first / one, second / two)
            return needed - 1.0
        before, ahead = (share.clamp(LEAST_SHARE, 1.0 - 1e-7) for share in (first, second))
        ratio: Tensor = (1.0 - two) * before / (1.0 - before) + two * ahead / (1.0 - ahead)
        level: Tensor = torch.log(ratio) - one
        return level

    def forward_actor(self, observations: Tensor) -> Tensor:
        """(n, 1): the logit of a prefill.

        Raises:
            ConfigError: observations that were normalised.
        """
        if not torch.is_grad_enabled() and (observations < 0.0).any():  # as it acts, not as it learns
            raise ConfigError(
                f"ResidualPolicy was given an observation of {float(observations.min()):.3g}, and those of the "
                "environment lie in [0, 1]. It normalises them itself: wrap in VecNormalize(..., norm_obs=False)."
            )
        score, seen = self.score(observations), self._seen(observations)
        logit = self.log_sharpness.exp() * (score + self.outer(torch.tanh(self.inner(seen))) + self.skip(seen))
        return torch.where(score >= self._limit, torch.full_like(logit, FORCED), logit)

    def forward_critic(self, observations: Tensor) -> Tensor:
        """(n, latent_dim_vf)."""
        score = self.score(observations).clamp(-3.0, 3.0)
        last: Tensor = self.critic(torch.cat([self._seen(observations), score], 1))
        return last

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def _seen(self, observations: Tensor) -> Tensor:
        """(n, features): in standard deviations, as seen under the rule."""
        mean, spread = self.get_buffer("mean"), self.get_buffer("spread")
        seen: Tensor = (observations[:, self._places] - mean) / spread
        return seen

    def network(self) -> Network:
        """The same decisions in plain numbers, of the features as they are."""
        start = self._start
        mean, spread = np.array(start["mean"]), np.array(start["spread"])

        def plain(tensor: Tensor) -> Any:
            return tensor.detach().cpu().numpy().astype(np.float64)

        weight, skip = plain(self.inner.weight) / spread, plain(self.skip.weight) / spread
        return Network(
            tuple(start["features"]),
            (
                dense(weight, plain(self.inner.bias) - weight @ mean),
                dense(plain(self.outer.weight), plain(self.outer.bias) - skip @ mean),
            ),
            head="prefill",
            skip=skip,
            base=start["base"],
            base_values=tuple(start["base_values"]),
            base_limit=self._limit,
        )
