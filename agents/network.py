"""Small networks that decide inside the core: what is left of a trained agent when only its numbers are kept.

A network reads some of the observation's features and scores actions. It may be a *residual* on a known rule, whose
own score is then added to that of a prefill: a network of zeros decides as the rule does. All of it is one vector of
numbers to one compiled function, so an evolution strategy runs whole populations of networks inside the core, and a
shipped agent needs no learning library.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.features import PROMISE_FEATURES, feature_table, observe
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.jit import jit
from llmsched_env.policy import RuleFunction, compile_rule

__all__ = ["ACTIVATIONS", "BASES", "HEADS", "NEVER", "Layer", "Network", "dense", "network_function"]

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]
"""Weights (outputs, inputs) and biases (outputs,)."""

ACTIVATIONS = ("tanh", "relu")

BASES = {"none": 0, "lagrangian": 2, "deadline": 2}
"""Rules that a network may be a residual on, and how many numbers each has.

"lagrangian", values (ln lambda, w): ln(C_d / C_p) - ln lambda, with the prices of docs/model.md; w of the coming
decode's ready clients count in C_d. "deadline", values (k, s): the ready clients over k J, or the wait of the oldest
request that is not late over s of the promised TTFT, whichever is more, minus 1.
"""

HEADS = ("actions", "prefill")
"""What the last layer says. "actions": a score for each action, the best of which is taken. "prefill": first, how much
better a prefill is than a decode (a prefill from 0 on); then, where orders are actions, a score for each order."""

# Where in the vector of numbers what lies. After the widths of the layers: biases of the first layer and then of the
# skip (zeros), their weights by feature (zeros for features that are not read), and the biases and weights by input of
# each further layer. First layer and skip are one matrix: reading the features once is quicker.
INPUTS, OUTPUTS, HEAD, ACTIVATION, LAYERS, WIDEST, MASKED, BASE, BASE_LIMIT, BASE_VALUES = range(10)
WIDTHS = BASE_VALUES + 2

NEVER = 1e9
"""A limit that no base's score reaches."""

ROW = 64
"""Room for an observation."""


def _base_score(view: Any, parameters: Any) -> Any:
    if parameters[BASE] == 1:
        charge = (view.idle_charge + parameters[BASE_VALUES + 1] * view.ready) * view.alpha_decode_ns
        price = view.alpha_prefill_ns * view.active
        return math.log((charge + 1.0) / (price + 1.0)) - parameters[BASE_VALUES]
    if parameters[BASE] == 2:
        filled = view.ready / view.num_clients / parameters[BASE_VALUES]  # not over k J, which is rounded
        waited = (view.clock_ns - view.in_time_release_ns) / (parameters[BASE_VALUES + 1] * view.ttft_ns)
        return max(filled, waited) - 1.0
    return 0.0


_compiled_base_score = jit(_base_score)


def _act(view: Any, parameters: Any, memory: Any) -> Any:
    observed = np.empty(ROW, np.float32)
    observe(view, observed)
    inputs, outputs = int(parameters[INPUTS]), int(parameters[OUTPUTS])
    layers, widest = int(parameters[LAYERS]), int(parameters[WIDEST])
    relu = parameters[ACTIVATION] > 0
    values = np.empty(3 * widest)  # of a layer, of the next, and of the skip
    width = int(parameters[WIDTHS])
    at = WIDTHS + layers
    both = width + outputs
    for j in range(both):
        values[j] = parameters[at + j]
    at += both
    for i in range(inputs):
        x = np.float64(observed[i])
        for j in range(both):
            values[j] += x * parameters[at + j]
        at += both
    for j in range(outputs):
        values[2 * widest + j] = values[width + j]
    size, here, there = width, 0, widest
    for layer in range(1, layers):
        for j in range(size):
            y = values[here + j]
            values[here + j] = max(0.0, y) if relu else math.tanh(y)
        width = int(parameters[WIDTHS + layer])
        for j in range(width):
            values[there + j] = parameters[at + j]
        at += width
        for i in range(size):
            x = values[here + i]
            for j in range(width):
                values[there + j] += x * parameters[at + j]
            at += width
        size = width
        here, there = there, here
    for j in range(outputs):
        values[here + j] += values[2 * widest + j]
    if parameters[HEAD] > 0:
        if view.active > 0:
            prefill = values[here]
            if parameters[BASE] > 0:
                base = _compiled_base_score(view, parameters)
                prefill = base if base >= parameters[BASE_LIMIT] else prefill + base
            if prefill < 0.0:
                return 0
        best = 1
    else:
        best = 1 if parameters[MASKED] > 0 and view.active == 0 else 0
    for j in range(best + 1, outputs):
        if values[here + j] > values[here + best]:
            best = j
    return best


@functools.cache
def network_function() -> RuleFunction:
    """The compiled function of every network."""
    return compile_rule(_act)


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
        ConfigError: shapes that do not fit together, numbers that are not finite, or a base that makes no sense.
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
        names = [feature.name for feature in feature_table(promises=True)]
        for kind, name, known in (
            *(("feature", name, names) for name in self.features),
            ("head", self.head, HEADS),
            ("activation", self.activation, ACTIVATIONS),
            ("base", self.base, BASES),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if not self.features or not self.layers or self.actions < 2:
            raise ConfigError("a network needs at least one feature, one layer and two actions.")
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
        for number, (weight, bias) in enumerate(self.layers):
            if bias.ndim != 1 or weight.shape != (bias.size, width) or not bias.size:
                raise ConfigError(
                    f"layer {number} has weights of shape {weight.shape} and biases of shape {bias.shape} after "
                    f"{width} values: weights have to be (outputs, {width}) and biases (outputs,)."
                )
            width = bias.size
        if width != self.outputs:
            raise ConfigError(f"the last layer has {width} outputs, but {self.actions} actions need {self.outputs}.")
        if self.skip is not None and self.skip.shape != (self.outputs, len(self.features)):
            raise ConfigError(f"skip has shape {self.skip.shape}, it has to be {(self.outputs, len(self.features))}.")
        if not np.isfinite(self.parameters).all():
            raise ConfigError("the network has numbers that are not finite: its training has failed.")

    @property
    def outputs(self) -> int:
        """Numbers that the last layer says."""
        if self.head == "actions":
            return self.actions
        return 1 if self.actions == 2 else self.actions

    @property
    def needs_promises(self) -> bool:
        """Whether it reads what is known only where requests are promised a latency."""
        promised = {feature.name for feature in PROMISE_FEATURES}
        return self.base == "deadline" or not promised.isdisjoint(self.features)

    @functools.cached_property
    def parameters(self) -> Floats:
        """The vector of numbers that the compiled function reads."""
        names = [feature.name for feature in feature_table(promises=True)]
        places = [names.index(name) for name in self.features]
        observed = len(feature_table(promises=max(places) >= len(feature_table(promises=False))))
        widths = [len(bias) for _, bias in self.layers]
        head = np.zeros(WIDTHS)
        head[INPUTS], head[OUTPUTS], head[LAYERS] = observed, self.outputs, len(self.layers)
        head[HEAD], head[ACTIVATION] = HEADS.index(self.head), ACTIVATIONS.index(self.activation)
        head[WIDEST], head[MASKED] = widths[0] + max(widths), self.masked
        head[BASE], head[BASE_LIMIT] = list(BASES).index(self.base), self.base_limit
        head[BASE_VALUES : BASE_VALUES + len(self.base_values)] = self.base_values
        weight, bias = self.layers[0]
        first = np.zeros((observed, widths[0] + self.outputs))
        np.add.at(first[:, : widths[0]], places, weight.T)  # a feature may be read twice
        if self.skip is not None:
            np.add.at(first[:, widths[0] :], places, self.skip.T)
        parts = [head, np.array(widths), bias, np.zeros(self.outputs), first.ravel()]
        for weight, bias in self.layers[1:]:
            parts += [bias, weight.T.ravel()]
        return np.concatenate(parts).astype(np.float64)


def dense(weight: Sequence[Any] | Floats, bias: Sequence[float] | Floats) -> Layer:
    """A layer from anything that numpy can read, copied to float64."""
    return np.array(weight, np.float64), np.array(bias, np.float64)
