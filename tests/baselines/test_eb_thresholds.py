"""The two exclusive-batching thresholds against solutions that share nothing with the package."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from playing import COST, start_of, world

from llmsched_env.baselines.iteration import eb_threshold, eb_threshold_finite
from llmsched_env.cost import PRESETS


def number(rule, cost, clients, mean_output_tokens):
    scenario = world(cost=cost, num_clients=clients)
    return rule.compiled(start_of(scenario, mean_output_tokens=mean_output_tokens)).count


def theta(price):
    """The root of t / (1 - t) + ln(1 - t) = price in (0, 1), halved down to."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle < 1.0 and middle / (1 - middle) + math.log(1 - middle) < price:
            low = middle
        else:
            high = middle
    return low


@pytest.mark.parametrize("cost", [COST, *PRESETS.values()], ids=lambda cost: cost.name)
@pytest.mark.parametrize("mean", [1.0, 12.0, 345.2, 5000.0])
@pytest.mark.parametrize("clients", [1, 7, 200, 3001])
def test_closed_form(cost, mean, clients):
    root = theta(cost.alpha_prefill_ns / cost.alpha_decode_ns / mean)
    assert number(eb_threshold(), cost, clients, mean) == max(1, math.floor(root * clients))


def test_closed_form_on_paper():
    # theta = 1/2: 1 + ln(1/2) = 0.30685 = alpha_p / alpha_d / mean. With alpha_p = alpha_d the mean is 3.2589.
    even = replace(COST, alpha_prefill_ns=50)
    mean = 1 / (1 - math.log(2))
    assert mean == pytest.approx(3.2589, abs=1e-4)
    assert number(eb_threshold(), even, 100, mean * 0.999) == 50
    assert number(eb_threshold(), even, 100, mean * 1.001) == 49


def test_closed_form_when_small():
    # theta^2 / 2 + 2 theta^3 / 3 + ...: theta is about sqrt(2 price), and less.
    for mean in (1e4, 1e6):
        price = 2 / mean
        k = number(eb_threshold(), COST, 1_000_000, mean)
        assert k < math.sqrt(2 * price) * 1e6
        assert k == pytest.approx(math.sqrt(2 * price) * 1e6, rel=math.sqrt(2 * price))


def test_closed_form_counts_the_fixed_time_of_a_prefill_only():
    dear = replace(COST, beta_prefill_ns=10_000)
    assert number(eb_threshold(), dear, 200, 40.0) == number(eb_threshold(), COST, 200, 40.0) > 1


@pytest.mark.parametrize("alpha_prefill_ns", [0, 10**12])
def test_closed_form_at_the_ends_of_what_costs_may_be(alpha_prefill_ns):
    cost = replace(COST, alpha_prefill_ns=alpha_prefill_ns, alpha_decode_ns=0)
    k = number(eb_threshold(), cost, 100, 1.0)
    assert k == (1 if alpha_prefill_ns == 0 else 99)


def smallest(cost, clients, mean):
    p = 1 / mean

    def tau(active):
        return (cost.alpha_decode_ns + cost.beta_decode_ns * active) / (1 - (1 - p) ** active)

    for k in range(1, clients):
        if k * tau(clients - k) - sum(tau(j) for j in range(clients - k + 1, clients + 1)) >= cost.alpha_prefill_ns:
            return k
    return clients


@pytest.mark.parametrize("cost", [COST, *PRESETS.values()], ids=lambda cost: cost.name)
@pytest.mark.parametrize("mean", [1.0, 12.0, 345.2])
@pytest.mark.parametrize("clients", [1, 2, 9, 200])
def test_finite_form(cost, mean, clients):
    assert number(eb_threshold_finite(), cost, clients, mean) == smallest(cost, clients, mean)


def test_finite_form_on_paper():
    # Two clients, p = 1/2, alpha_d = 60, beta_d = 0: tau(1) = 120, tau(2) = 80. k = 1: 120 - 80 = 40.
    cost = replace(COST, alpha_decode_ns=60, beta_decode_ns=0)
    # (At 40 itself the last bit of a logarithm decides.)
    assert number(eb_threshold_finite(), replace(cost, alpha_prefill_ns=39), 2, 2.0) == 1
    assert number(eb_threshold_finite(), replace(cost, alpha_prefill_ns=41), 2, 2.0) == 2


def test_finite_form_tends_to_the_closed_one():
    # At most one completion a decode (J p << 1) and no time a client: tau(j) = alpha_d / (p j).
    cost = replace(COST, alpha_prefill_ns=500_000, beta_decode_ns=0)
    closed, finite = (number(rule(), cost, 1000, 1e6) for rule in (eb_threshold, eb_threshold_finite))
    assert 50 < closed < 500
    assert finite == pytest.approx(closed, abs=2)
