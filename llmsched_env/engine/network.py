"""Small networks that decide inside the loop: see ``agents/network.py`` for what they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes, features
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.features import ALL_FEATURES
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import View

ROOM = 64
"""Places of an observation."""

BLOCK = 8
"""Sums that are kept in registers side by side."""

FORECAST = {"due_1", "due_2_4", "due_5_16", "due_17_64", "due_65_256", "overdue", "slack", "kv_due"} | {
    f"remaining_{what}" for what in ("mean", "spread", "max")
}
FORECAST_PLACES = tuple(place for place, feature in enumerate(ALL_FEATURES) if feature.name in FORECAST)
"""Features, by their places in ALL_FEATURES, that are made of the forecast."""

BASES = ("none", "lagrangian", "deadline")


class Network(Rule):
    """A network.

    Args:
        places: of the features that it reads in ALL_FEATURES, ascending.
        widths: outputs of each layer.
        outputs: of the last one.
        numbers: (n,) the weights. First layer and skip are one matrix, its outputs in blocks of `BLOCK`, filled up with
            zeros: of each block the biases (zeros for the skip), then the weights by feature. Then the biases and
            weights by input of each further layer.
        relu: whether the activation is ReLU, instead of tanh.
        scores_prefill: whether the first output says how much better a prefill is than a decode; else each output is
            the score of an action.
        masked: leave out the decode where no client is active.
        base: a rule whose score is added to that of a prefill, a place in `BASES`.
        base_values: its two numbers.
        base_limit: from this score of the base on it is a prefill whatever the network says.

    Attributes:
        bounded: whether `reach` and what follows hold: one hidden layer of tanh, and a score of the prefill.
        skip: (features,) weights from the inputs straight to that score.
        bias: of that score.
        reach: by how much the hidden layer changes the score at most, with all that rounding does.
    """

    places: cython.int[::1]
    widths: cython.int[::1]
    outputs: cython.int
    numbers: cython.double[::1]
    relu: cython.bint
    scores_prefill: cython.bint
    masked: cython.bint
    base: cython.int
    base_first: cython.double
    base_second: cython.double
    base_limit: cython.double
    bounded: cython.bint
    skip: cython.double[::1]
    bias: cython.double
    reach: cython.double
    _observed: cython.float[:, ::1]
    _here: cython.double[::1]
    _there: cython.double[::1]
    _straight: cython.double[::1]

    def __init__(
        self,
        places: Sequence[int],
        widths: Sequence[int],
        outputs: int,
        numbers: NDArray[np.float64],
        *,
        relu: bool,
        scores_prefill: bool,
        masked: bool,
        base: int,
        base_values: Sequence[float],
        base_limit: float,
    ) -> None:
        self.reads_forecast = not set(FORECAST_PLACES).isdisjoint(places)
        self.places = view_of(np.array(places, np.int32))
        self.widths = view_of(np.array(widths, np.int32))
        self.outputs = outputs
        self.numbers = view_of(np.array(numbers, np.float64))
        self.relu = relu
        self.scores_prefill = scores_prefill
        self.masked = masked
        self.base = base
        self.base_first, self.base_second = (*base_values, 0.0, 0.0)[:2]
        self.base_limit = base_limit
        widest = max(*widths, widths[0] + outputs + BLOCK)
        self._observed = view_of(np.zeros((1, ROOM), np.float32))
        self._here = view_of(np.zeros(widest))
        self._there = view_of(np.zeros(widest))
        self._straight = view_of(np.zeros(outputs))
        self.bounded = scores_prefill and not relu and len(widths) == 2
        straight, self.bias, reach = _prefill_row(np.asarray(numbers), len(places), widths, outputs)
        self.skip = view_of(straight)
        self.reach = reach + 1e-6 * (1.0 + reach + abs(self.bias) + float(np.abs(straight).sum()))

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(
            Network,
            np.asarray(self.places).tolist(),
            np.asarray(self.widths).tolist(),
            int(self.outputs),
            np.array(self.numbers),
            relu=bool(self.relu),
            scores_prefill=bool(self.scores_prefill),
            masked=bool(self.masked),
            base=int(self.base),
            base_values=(float(self.base_first), float(self.base_second)),
            base_limit=float(self.base_limit),
        )
        return made, ()

    def act(self, view: View) -> cython.int:
        """The action that it scores best."""
        first: cython.int = 0
        j: cython.int
        best: cython.int
        base: cython.double = 0.0
        prefill: cython.double
        scored: cython.bint = self.scores_prefill and view.active > 0  # else it prefills in any case
        if scored and self.base > 0:
            base = self.base_score(view)
            if base >= self.base_limit and self.outputs == 1:
                return codes.PREFILL
        features.observe_all(view, self._observed, 0)
        if scored and self.bounded:
            prefill = base + self.bias + self.go_straight()
            if prefill < -self.reach and base < self.base_limit:
                return codes.DECODE
            if prefill > self.reach and self.outputs == 1:
                return codes.PREFILL
        self.propagate()
        if self.scores_prefill:
            if scored:
                prefill = self._here[0]
                if self.base > 0:
                    prefill = base if base >= self.base_limit else prefill + base
                if prefill < 0.0:
                    return codes.DECODE
            first = 1
        elif self.masked and view.active == 0:
            first = 1
        best = first
        for j in range(first + 1, self.outputs):
            if self._here[j] > self._here[best]:
                best = j
        return best

    def go_straight(self) -> cython.double:
        """What the inputs add to the score of a prefill past the hidden layer: in four sums, for a bound."""
        inputs: cython.Py_ssize_t = self.places.shape[0]
        i: cython.Py_ssize_t = 0
        a: cython.double = 0.0
        b: cython.double = 0.0
        c: cython.double = 0.0
        d: cython.double = 0.0
        while i + 4 <= inputs:
            a += self._observed[0, self.places[i]] * self.skip[i]
            b += self._observed[0, self.places[i + 1]] * self.skip[i + 1]
            c += self._observed[0, self.places[i + 2]] * self.skip[i + 2]
            d += self._observed[0, self.places[i + 3]] * self.skip[i + 3]
            i += 4
        while i < inputs:
            a += self._observed[0, self.places[i]] * self.skip[i]
            i += 1
        return (a + b) + (c + d)

    def base_score(self, view: View) -> cython.double:
        """The score of the rule that it is a residual on."""
        charge: cython.double
        price: cython.double
        filled: cython.double
        waited: cython.double
        if self.base == 1:
            charge = (view.idle_charge + self.base_second * view.ready) * view.alpha_decode_ns
            price = view.alpha_prefill_ns * view.active
            return math.log((charge + 1.0) / (price + 1.0)) - self.base_first
        filled = view.ready
        filled = filled / view.num_clients / self.base_first  # not over k J, which is rounded
        waited = view.clock_ns - view.in_time_release_ns
        waited = waited / (self.base_second * view.ttft_ns)
        return (filled if filled > waited else waited) - 1.0

    def propagate(self) -> cython.void:
        """Write what the last layer says to ``_here``."""
        inputs: cython.Py_ssize_t = self.places.shape[0]
        size: cython.Py_ssize_t = self.widths[0]
        width: cython.Py_ssize_t
        first: cython.Py_ssize_t
        layer: cython.Py_ssize_t
        i: cython.Py_ssize_t
        j: cython.Py_ssize_t
        at: cython.Py_ssize_t = 0
        a: cython.double
        b: cython.double
        c: cython.double
        d: cython.double
        e: cython.double
        f: cython.double
        g: cython.double
        h: cython.double
        x: cython.double
        for first in range(0, size + self.outputs, 8):
            a = self.numbers[at]
            b = self.numbers[at + 1]
            c = self.numbers[at + 2]
            d = self.numbers[at + 3]
            e = self.numbers[at + 4]
            f = self.numbers[at + 5]
            g = self.numbers[at + 6]
            h = self.numbers[at + 7]
            at += 8
            for i in range(inputs):
                x = self._observed[0, self.places[i]]
                a += x * self.numbers[at]
                b += x * self.numbers[at + 1]
                c += x * self.numbers[at + 2]
                d += x * self.numbers[at + 3]
                e += x * self.numbers[at + 4]
                f += x * self.numbers[at + 5]
                g += x * self.numbers[at + 6]
                h += x * self.numbers[at + 7]
                at += 8
            self._here[first] = a
            self._here[first + 1] = b
            self._here[first + 2] = c
            self._here[first + 3] = d
            self._here[first + 4] = e
            self._here[first + 5] = f
            self._here[first + 6] = g
            self._here[first + 7] = h
        for j in range(self.outputs):
            self._straight[j] = self._here[size + j]
        for layer in range(1, self.widths.shape[0]):
            if self.relu:
                for j in range(size):
                    self._here[j] = self._here[j] if self._here[j] > 0.0 else 0.0
            else:
                squash(self._here, size)
            width = self.widths[layer]
            for j in range(width):
                self._there[j] = self.numbers[at + j]
            at += width
            for i in range(size):
                x = self._here[i]
                for j in range(width):
                    self._there[j] += x * self.numbers[at + j]
                at += width
            for j in range(width):
                self._here[j] = self._there[j]
            size = width
        for j in range(self.outputs):
            self._here[j] += self._straight[j]


def _prefill_row(
    numbers: NDArray[np.float64], inputs: int, widths: Sequence[int], outputs: int
) -> tuple[NDArray[np.float64], float, float]:
    """Of the first output: the weights from the inputs, the bias, and what its weights by hidden unit add up to."""
    block, lane = divmod(widths[0], BLOCK)
    rows = numbers[(1 + inputs) * BLOCK * block :][: (1 + inputs) * BLOCK].reshape(1 + inputs, BLOCK)
    last = numbers[(1 + inputs) * BLOCK * -(-(widths[0] + outputs) // BLOCK) :]
    straight = np.array(rows[1:, lane])
    if len(widths) == 1:
        return straight, 0.0, 0.0
    return straight, float(last[0]), float(np.abs(last[widths[1] :][:: widths[1]][: widths[0]]).sum())


def squash(values: cython.double[::1], size: cython.Py_ssize_t) -> cython.void:
    """Put the tanh of each of the first ``size`` values in its place, to 5e-8.

    Half the angle by Lambert's continued fraction (1761), broken off after six terms, then doubled. Nothing but sums,
    products and quotients: the same bits everywhere, and a third of the time of the C library's.
    """
    j: cython.Py_ssize_t
    x: cython.double
    y: cython.double
    half: cython.double
    for j in range(size):
        x = values[j] if values[j] < 9.0 else 9.0
        values[j] = x if x > -9.0 else -9.0
    for j in range(size):  # by itself, so that compilers compute several at a time
        x = 0.5 * values[j]
        y = x * x
        half = x * (135135.0 + y * (17325.0 + y * (378.0 + y))) / (135135.0 + y * (62370.0 + y * (3150.0 + y * 28.0)))
        values[j] = 2.0 * half / (1.0 + half * half)


def squashed(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """:func:`squash` for Python, on a copy."""
    out = np.array(values, np.float64)
    squash(view_of(out), size)
    return out
