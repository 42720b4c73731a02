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

from llmsched_env.config import number, whole
from llmsched_env.core.features import ALL_FEATURES, FEATURES, PROMISE_FEATURES, feature_table, observe_all
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.jit import inlined, jit
from llmsched_env.policy import RuleFunction, compile_rule

__all__ = ["ACTIVATIONS", "BASES", "HEADS", "NEVER", "Layer", "Network", "dense", "network_function", "squash"]

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

# Where in the vector of numbers what lies. After the widths of the layers come first layer and skip as one matrix, its
# outputs in blocks of four, filled up with zeros: of each block the biases (zeros for the skip), then the weights by
# feature (zeros for features that are not read). Then the biases and weights by input of each further layer.
INPUTS, OUTPUTS, HEAD, ACTIVATION, LAYERS, WIDEST, MASKED, BASE, BASE_LIMIT, BASE_VALUES = range(10)
WIDTHS = BASE_VALUES + 2

NEVER = 1e9
"""A limit that no base's score reaches."""

MOST_ACTIONS = 2**16

ROW = 64
"""Room for an observation."""

BLOCK = 4
"""Sums that are kept in registers side by side."""


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


@inlined
def squash(values: Any, size: int) -> None:
    """Put the tanh of each of the first ``size`` values in its place, to 5e-8.

    Half the angle by Lambert's continued fraction (1761), broken off after six terms, then doubled. Nothing but sums,
    products and quotients: the same bits everywhere, and a third of the time of the C library's.
    """
    for j in range(size):
        x = 0.5 * min(9.0, max(-9.0, values[j]))
        y = x * x
        half = x * (135135.0 + y * (17325.0 + y * (378.0 + y))) / (135135.0 + y * (62370.0 + y * (3150.0 + y * 28.0)))
        values[j] = 2.0 * half / (1.0 + half * half)


def _act(view: Any, parameters: Any, memory: Any) -> Any:
    observed = np.empty(ROW, np.float32)
    observe_all(view, observed)
    inputs, outputs = int(parameters[INPUTS]), int(parameters[OUTPUTS])
    layers, widest = int(parameters[LAYERS]), int(parameters[WIDEST])
    relu = parameters[ACTIVATION] > 0
    room = np.empty((3, widest))
    here, there, straight = room[0], room[1], room[2]
    size = int(parameters[WIDTHS])
    at = WIDTHS + layers
    for first in range(0, size + outputs, BLOCK):
        a, b, c, d = parameters[at], parameters[at + 1], parameters[at + 2], parameters[at + 3]
        at += BLOCK
        for i in range(inputs):
            x = np.float64(observed[i])
            a += x * parameters[at]
            b += x * parameters[at + 1]
            c += x * parameters[at + 2]
            d += x * parameters[at + 3]
            at += BLOCK
        here[first], here[first + 1], here[first + 2], here[first + 3] = a, b, c, d
    for j in range(outputs):
        straight[j] = here[size + j]
    for layer in range(1, layers):
        if relu:
            for j in range(size):
                here[j] = max(0.0, here[j])
        else:
            squash(here, size)
        width = int(parameters[WIDTHS + layer])
        for j in range(width):
            there[j] = parameters[at + j]
        at += width
        for i in range(size):
            for j in range(width):
                there[j] += here[i] * parameters[at + j]
            at += width
        size = width
        here, there = there, here
    for j in range(outputs):
        here[j] += straight[j]
    if parameters[HEAD] > 0:
        if view.active > 0:
            prefill = here[0]
            if parameters[BASE] > 0:
                base = _compiled_base_score(view, parameters)
                prefill = base if base >= parameters[BASE_LIMIT] else prefill + base
            if prefill < 0.0:
                return 0
        best = 1
    else:
        best = 1 if parameters[MASKED] > 0 and view.active == 0 else 0
    for j in range(best + 1, outputs):
        if here[j] > here[best]:
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
        if not np.isfinite(self.parameters).all():
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
    def needs_promises(self) -> bool:
        """Whether it reads what is known only where requests are promised a latency."""
        promised = {feature.name for feature in PROMISE_FEATURES}
        return self.base == "deadline" or not promised.isdisjoint(self.features)

    @functools.cached_property
    def parameters(self) -> Floats:
        """The vector of numbers that the compiled function reads."""
        names = [feature.name for feature in ALL_FEATURES]
        places = [names.index(name) for name in self.features]
        ends = (len(FEATURES), len(feature_table(promises=True)), len(ALL_FEATURES))
        observed = next(end for end in ends if max(places) < end)
        widths = [len(bias) for _, bias in self.layers]
        head = np.zeros(WIDTHS)
        head[INPUTS], head[OUTPUTS], head[LAYERS] = observed, self.outputs, len(self.layers)
        head[HEAD], head[ACTIVATION] = HEADS.index(self.head), ACTIVATIONS.index(self.activation)
        blocks = -(-(widths[0] + self.outputs) // BLOCK)
        head[WIDEST], head[MASKED] = max(BLOCK * blocks, *widths), self.masked
        head[BASE], head[BASE_LIMIT] = list(BASES).index(self.base), self.base_limit
        head[BASE_VALUES : BASE_VALUES + len(self.base_values)] = self.base_values
        weight, bias = self.layers[0]
        first = np.zeros((1 + observed, BLOCK * blocks))
        first[0, : widths[0]] = bias
        rows = 1 + np.array(places)
        np.add.at(first[:, : widths[0]], rows, weight.T)  # a feature may be read twice
        if self.skip is not None:
            np.add.at(first[:, widths[0] : widths[0] + self.outputs], rows, self.skip.T)
        parts = [head, np.array(widths), first.reshape(-1, blocks, BLOCK).swapaxes(0, 1).ravel()]
        for weight, bias in self.layers[1:]:
            parts += [bias, weight.T.ravel()]
        return np.concatenate(parts).astype(np.float64)


def dense(weight: Sequence[Any] | Floats, bias: Sequence[float] | Floats) -> Layer:
    """A layer from anything that numpy can read, copied to float64."""
    return np.array(weight, np.float64), np.array(bias, np.float64)
