"""Small networks that decide inside the engine: what is left of a trained agent when only its numbers are kept.

A network reads some of the observation's features and scores actions. It may be a *residual* on a known rule, whose
own score is then added to that of a prefill: a network of zeros decides as the rule does. It runs inside the loop
(`llmsched_env.engine.network`), so an evolution strategy plays whole populations there, and a shipped agent needs no
learning library.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import number, whole
from llmsched_env.engine import network as engine
from llmsched_env.engine.features import ALL_FEATURES, SLO_FEATURES
from llmsched_env.engine.network import BLOCK
from llmsched_env.errors import ConfigError, UnknownNameError

__all__ = ["ACTIVATIONS", "BASES", "HEADS", "NEVER", "Layer", "Network", "dense"]

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]
"""Weights (outputs, inputs) and biases (outputs,)."""

ACTIVATIONS = ("tanh", "relu")

BASES = {"none": 0, "lagrangian": 2, "deadline": 2}
"""Rules that a network may be a residual on, and how many numbers each has.

"lagrangian", values (ln lambda, w): ln(C_d / C_p) - ln lambda, with the prices of docs/model.md; w of the coming
decode's ready clients count in C_d. "deadline", values (k, s): the ready clients over k J, or the wait of the oldest
request that is not late over s of the TTFT limit, whichever is more, minus 1.
"""

HEADS = ("actions", "prefill")
"""What the last layer says. "actions": a score for each action, the best of which is taken. "prefill": first, how much
better a prefill is than a decode (a prefill from 0 on); then, where orders are actions, a score for each order."""

NEVER = 1e9
"""A limit that no base's score reaches."""

MOST_ACTIONS = 2**16


@dataclass(frozen=True, eq=False)
class Network:
    """A network's numbers and what they mean.

    Attributes:
        features: names of the features that it reads, in order.
        layers: the layers; between two of them lies the activation.
        head: what the last layer says, one of `HEADS`.
        actions: actions that it chooses among, at least 2.
        activation: one of `ACTIVATIONS`.
        skip: (outputs, features) weights from the inputs straight to the outputs, or ``None``.
        masked: leave out the decode where no client is active ("actions" only; "prefill" always does).
        base: the rule that "prefill" is a residual on, one of `BASES`.
        base_values: its numbers.
        base_limit: from this score of the base on, at least 0, it is a prefill whatever the network says. A prefill too
            early costs its fixed time; a wait without end, in states that training never met, costs everything.

    Raises:
        UnknownNameError: an unknown feature, head, activation or base.
        ConfigError: a value of another type, shapes that do not fit together, numbers that are not finite, or a base
            that makes no sense.
    """

    features: tuple[str, ...]
    layers: tuple[Layer, ...]
    head: str = "actions"
    actions: int = 2
    activation: str = "tanh"
    skip: Floats | None = None
    masked: bool = False
    base: str = "none"
    base_values: tuple[float, ...] = ()
    base_limit: float = NEVER

    def __post_init__(self) -> None:
        names = [feature.name for feature in ALL_FEATURES]
        for kind, name, known in (
            *(("feature", name, names) for name in self.features),
            ("head", self.head, HEADS),
            ("activation", self.activation, ACTIVATIONS),
            ("base", self.base, BASES),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        self._check_types()
        if not self.features or not self.layers:
            raise ConfigError("a network needs at least one feature and one layer.")
        if len(self.base_values) != BASES[self.base]:
            raise ConfigError(
                f"base {self.base!r} has {BASES[self.base]} numbers, not {len(self.base_values)}: {self.base_values}."
            )
        if self.base != "none" and self.head != "prefill":
            raise ConfigError(f"base {self.base!r} with head {self.head!r}: only the score of a prefill has a base.")
        if not self.base_limit >= 0:
            raise ConfigError(f"base_limit = {self.base_limit} is out of range: it is at least 0.")
        if self.base == "deadline" and min(self.base_values) <= 0:
            raise ConfigError(f"base 'deadline' has the numbers {self.base_values}: both have to be above 0.")
        width = len(self.features)
        for layer, (weight, bias) in enumerate(self.layers):
            if bias.ndim != 1 or weight.shape != (bias.size, width) or not bias.size:
                raise ConfigError(
                    f"layer {layer} has weights of shape {weight.shape} and biases of shape {bias.shape} after "
                    f"{width} values: weights have to be (outputs, {width}) and biases (outputs,)."
                )
            width = bias.size
        if width != self.outputs:
            raise ConfigError(f"the last layer has {width} outputs, but {self.actions} actions need {self.outputs}.")
        if self.skip is not None and self.skip.shape != (self.outputs, len(self.features)):
            raise ConfigError(f"skip has shape {self.skip.shape}, it has to be {(self.outputs, len(self.features))}.")
        numbers = [*self.base_values, self.base_limit]
        if not (np.isfinite(self.parameters).all() and np.isfinite(numbers).all()):
            raise ConfigError("the network has numbers that are not finite: its training has failed.")

    def _check_types(self) -> None:
        whole("actions", self.actions, 2, MOST_ACTIONS)
        if not isinstance(self.masked, bool):
            raise ConfigError(f"masked = {self.masked!r} is neither True nor False.")
        for i, value in enumerate(self.base_values):
            number(f"base_values[{i}]", value)
        number("base_limit", self.base_limit)
        arrays = [array for layer in self.layers for array in layer]
        for array in arrays if self.skip is None else [*arrays, self.skip]:
            if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
                kind = getattr(array, "dtype", type(array).__name__)
                raise ConfigError(f"weights or biases are of {kind}: give arrays of floats, as `dense` makes them.")

    @property
    def outputs(self) -> int:
        """Numbers that the last layer says."""
        if self.head == "actions":
            return self.actions
        return 1 if self.actions == 2 else self.actions

    @property
    def needs_slo(self) -> bool:
        """Whether it reads what is known only where requests have SLOs."""
        slo = {feature.name for feature in SLO_FEATURES}
        return self.base == "deadline" or not slo.isdisjoint(self.features)

    @functools.cached_property
    def places(self) -> list[int]:
        """Of the features that it reads in `ALL_FEATURES`, ascending, each once."""
        names = [feature.name for feature in ALL_FEATURES]
        return sorted({names.index(name) for name in self.features})

    @functools.cached_property
    def parameters(self) -> Floats:
        """All its weights, as `llmsched_env.engine.network.Network` reads them."""
        names = [feature.name for feature in ALL_FEATURES]
        rows = [1 + self.places.index(names.index(name)) for name in self.features]
        weight, bias = self.layers[0]
        hidden = len(bias)
        blocks = -(-(hidden + self.outputs) // BLOCK)
        first = np.zeros((1 + len(self.places), BLOCK * blocks))
        first[0, :hidden] = bias
        np.add.at(first[:, :hidden], rows, weight.T)  # a feature may be read twice
        if self.skip is not None:
            np.add.at(first[:, hidden : hidden + self.outputs], rows, self.skip.T)
        parts = [first.reshape(-1, blocks, BLOCK).swapaxes(0, 1).ravel()]
        for weight, bias in self.layers[1:]:
            parts += [bias, weight.T.ravel()]
        return np.concatenate(parts).astype(np.float64)

    def rule(self) -> engine.Network:
        """The network as the loop runs it."""
        return engine.Network(
            self.places,
            [len(bias) for _, bias in self.layers],
            self.outputs,
            self.parameters,
            relu=self.activation == "relu",
            scores_prefill=self.head == "prefill",
            masked=self.masked,
            base=list(BASES).index(self.base),
            base_values=self.base_values,
            base_limit=self.base_limit,
        )


def dense(weight: Sequence[Any] | Floats, bias: Sequence[float] | Floats) -> Layer:
    """A layer from anything that numpy can read, copied to float64."""
    return np.array(weight, np.float64), np.array(bias, np.float64)
