"""Exchanges that lower the bound on the expected largest load (`llmsched_env/offline/expected_max.py`)."""

from __future__ import annotations

import math

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels import xorshift


def excess(level: cython.double, mean: cython.double, variance: cython.double) -> cython.double:
    """E[(L - level)^+] of a normal load."""
    sd: cython.double
    z: cython.double
    if variance <= 0.0:
        return max(0.0, mean - level)
    sd = math.sqrt(variance)
    z = (level - mean) / sd
    return sd * math.exp(-0.5 * z * z) / math.sqrt(2.0 * 3.141592653589793) - (level - mean) * 0.5 * math.erfc(
        z / math.sqrt(2.0)
    )


def total_excess(level: float, means: NDArray[np.float64], variances: NDArray[np.float64]) -> float:
    """Sum of E[(L - level)^+] over loads."""
    mean: cython.double[::1] = memoryview(means)
    variance: cython.double[::1] = memoryview(variances)
    total: cython.double = 0.0
    i: cython.Py_ssize_t
    for i in range(mean.shape[0]):
        total += excess(level, mean[i], variance[i])
    return float(total)


class Exchange:
    """Requests on clients, and exchanges between two of them.

    Attributes:
        num_clients: J.
        state: of the random numbers, not 0.
        least_gain: what an exchange must gain.
        means: (n,) expected loads of the requests.
        variances: (n,) their variances.
        client_of: (n,) int32: client of each request; as given, overwritten.
        held_mean: (J,) expected loads of the clients.
        held_variance: (J,) their variances.
        head: (J,) int64: first request of each client's list, -1 at the end of a list.
        after: (n,) int64: the next one in the list.
    """

    num_clients: cython.int
    state: cython.longlong
    least_gain: cython.double
    means: cython.double[::1]
    variances: cython.double[::1]
    client_of: cython.int[::1]
    held_mean: cython.double[::1]
    held_variance: cython.double[::1]
    head: cython.longlong[::1]
    after: cython.longlong[::1]

    def __init__(
        self,
        means: NDArray[np.float64],
        variances: NDArray[np.float64],
        client_of: NDArray[np.int32],
        held_mean: NDArray[np.float64],
        held_variance: NDArray[np.float64],
        least_gain: float,
        state: int,
    ) -> None:
        self.means = memoryview(means)
        self.variances = memoryview(variances)
        self.client_of = memoryview(client_of)
        self.held_mean = memoryview(held_mean)
        self.held_variance = memoryview(held_variance)
        self.num_clients = len(held_mean)
        self.least_gain = least_gain
        self.state = state
        self.head = memoryview(np.full(len(held_mean), -1, np.int64))
        self.after = memoryview(np.full(len(client_of), -1, np.int64))

    def run(self, level: float, pairs: int) -> int:
        """Try so many pairs of clients at one level; returns the state of the random numbers."""
        x: cython.double = level
        count: cython.longlong = pairs
        item: cython.longlong
        with cython.nogil:
            for item in range(self.client_of.shape[0]):
                self.push(item, self.client_of[item])
            self.search(x, count)
        return int(self.state)

    def search(self, level: cython.double, pairs: cython.longlong) -> cython.void:
        """Try so many pairs of clients."""
        _tried: cython.longlong
        a: cython.longlong
        b: cython.longlong
        for _tried in range(pairs):
            self.state = xorshift.next_random(self.state)
            a = (self.state * self.num_clients) >> 32
            self.state = xorshift.next_random(self.state)
            b = (self.state * (self.num_clients - 1)) >> 32
            if b >= a:
                b += 1
            self.exchange(level, a, b)

    def exchange(self, level: cython.double, a: cython.longlong, b: cython.longlong) -> cython.void:
        """Make the best exchange between two clients, of one request for another or for none, if it gains anything."""
        mean_a: cython.double = self.held_mean[a]
        mean_b: cython.double = self.held_mean[b]
        variance_a: cython.double = self.held_variance[a]
        variance_b: cython.double = self.held_variance[b]
        least: cython.double = excess(level, mean_a, variance_a) + excess(level, mean_b, variance_b) - self.least_gain
        best_a: cython.longlong = -1
        best_b: cython.longlong = -1
        item_a: cython.longlong = -1  # none: a request of the other one moves
        item_b: cython.longlong
        mean: cython.double
        variance: cython.double
        value: cython.double
        while True:
            item_b = -1
            while True:
                mean = 0.0
                variance = 0.0
                if item_a >= 0:
                    mean -= self.means[item_a]
                    variance -= self.variances[item_a]
                if item_b >= 0:
                    mean += self.means[item_b]
                    variance += self.variances[item_b]
                value = excess(level, mean_a + mean, variance_a + variance)
                value += excess(level, mean_b - mean, variance_b - variance)
                if value < least:
                    least = value
                    best_a = item_a
                    best_b = item_b
                item_b = self.head[b] if item_b < 0 else self.after[item_b]
                if item_b < 0:
                    break
            item_a = self.head[a] if item_a < 0 else self.after[item_a]
            if item_a < 0:
                break
        if best_a >= 0:
            self.move(best_a, b)
        if best_b >= 0:
            self.move(best_b, a)

    def push(self, item: cython.longlong, client: cython.longlong) -> cython.void:
        """Put a request at the head of a client's list."""
        self.after[item] = self.head[client]
        self.head[client] = item
        self.client_of[item] = cython.cast(cython.int, client)

    def move(self, item: cython.longlong, client: cython.longlong) -> cython.void:
        """Move a request to another client."""
        source: cython.longlong = self.client_of[item]
        place: cython.longlong = self.head[source]
        if place == item:
            self.head[source] = self.after[item]
        else:
            while self.after[place] != item:
                place = self.after[place]
            self.after[place] = self.after[item]
        self.push(item, client)
        self.held_mean[source] -= self.means[item]
        self.held_mean[client] += self.means[item]
        self.held_variance[source] -= self.variances[item]
        self.held_variance[client] += self.variances[item]
