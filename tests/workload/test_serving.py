"""Workloads over time, and load."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmsched_env.cases import build_problem, offered
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS, CostModel, capacity_requests_per_s
from llmsched_env.errors import ConfigError, UnknownNameError, WorkloadError
from llmsched_env.workload import (
    POOL_SIZES,
    SPLITS,
    GammaWorkload,
    PoissonArrivals,
    QuantileLaw,
    QuantileWorkload,
    Requests,
    ServingWorkload,
    workload,
)
from llmsched_env.workload.quantiles import AZURE_2023_OUTPUT, AZURE_2023_PROMPT
from llmsched_env.workload.rescale import rescaled

SHARED = Path(__file__).parents[3] / "shared" / "data"


def released(*release_ns: int) -> Requests:
    return Requests.of([1] * len(release_ns), [1] * len(release_ns), release_ns=release_ns)


@given(
    values=st.lists(st.integers(0, 2**62), min_size=1, max_size=20),
    numerator=st.integers(0, 2**62),
    more=st.integers(1, 2**61),
)
@settings(max_examples=300, deadline=None)
def test_rescaling_is_exact(values, numerator, more):
    denominator = max(values) + more
    got = rescaled(np.array(values, np.int64), numerator, denominator)
    assert got.tolist() == [value * numerator // denominator for value in values]


@given(
    values=st.lists(st.integers(0, 10**16), min_size=1, max_size=20),
    numerator=st.integers(0, 10**17),
    more=st.integers(1, 10**6),
)
@settings(max_examples=300, deadline=None)
def test_rescaling_is_exact_where_no_python_integers_are_used(values, numerator, more):
    denominator = max(values) + more
    assert denominator * (numerator // 2**51 + 3) < 2**63, "the other branch was tested"
    got = rescaled(np.array(values, np.int64), numerator, denominator)
    assert got.tolist() == [value * numerator // denominator for value in values]


def test_rate_on_paper():
    # Three gaps in 6 s: half a request per second. At 1 per second the span is 3 s, every time halved.
    case = released(2 * 10**9, 3 * 10**9, 3 * 10**9, 8 * 10**9)
    assert case.rate_per_s == 0.5
    faster = case.at_rate(1.0)
    assert faster.release_ns.tolist() == [10**9, 15 * 10**8, 15 * 10**8, 4 * 10**9]
    assert faster.rate_per_s == 1.0
    assert not faster.release_ns.flags.writeable
    assert case.at_load(0.8, 1.25).release_ns.tolist() == faster.release_ns.tolist()
    assert released(0, 1, 3).at_rate(1e9).release_ns.tolist() == [0, 0, 2]  # floor(2 / 3), floor(6 / 3)


@given(
    gaps=st.lists(st.integers(0, 10**12), min_size=1, max_size=50).filter(any),
    first=st.integers(0, 10**12),
    rate=st.floats(1e-3, 1e6),
)
@settings(max_examples=200, deadline=None)
def test_rate_is_as_asked_and_order_is_kept(gaps, first, rate):
    case = released(*np.cumsum([first, *gaps]).tolist())
    wanted = round(Fraction(len(gaps) * 10**9) / Fraction(rate))
    span = int(case.release_ns[-1] - case.release_ns[0])
    assume(first * wanted // span + wanted < 2**62)  # what is later is refused
    got = case.at_rate(rate)
    assert int(got.release_ns[-1] - got.release_ns[0]) == wanted
    shift = first * wanted // span
    assert got.release_ns.tolist() == [shift + (t - first) * wanted // span for t in case.release_ns.tolist()]
    assert (np.diff(got.release_ns) >= 0).all()
    assert got.prompt_tokens is case.prompt_tokens
    assert got.mean_output_tokens == case.mean_output_tokens


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_and_loads_that_are_none(rate):
    case = released(0, 10)
    for call in (case.at_rate, lambda value: case.at_load(value, 1.0), lambda value: case.at_load(1.0, value)):
        with pytest.raises(ConfigError, match=r"is out of range: pass a positive finite number"):
            call(rate)


def test_loads_above_1_are_allowed_and_times_that_do_not_fit_are_not():
    case = released(0, 10**9)
    assert case.at_load(1.5, 1.0).rate_per_s == pytest.approx(1.5)
    with pytest.raises(ConfigError, match=r"requests_per_s = 2e\+09 is out of range: gaps are at least 1 ns"):
        case.at_rate(2e9)
    with pytest.raises(ConfigError, match=r"requests_per_s = 1e-12 is too low for 2 requests"):
        case.at_rate(1e-12)
    with pytest.raises(ConfigError, match=r"requests_per_s = 'x' is not a number"):
        case.at_rate("x")


@pytest.mark.parametrize("times", [(0,), (5, 5, 5)])
def test_no_rate_without_two_release_times(times):
    case = released(*times)
    with pytest.raises(WorkloadError, match="released at one time have no rate: give at least two release times"):
        case.at_rate(1.0)
    with pytest.raises(WorkloadError, match="have no rate"):
        _ = case.rate_per_s


def test_capacity_on_paper():
    # 2 ms a prompt token of 10, 20 ms; 4 more tokens at 100 ms / 10 clients + 5 ms, 60 ms: 80 ms, 12.5 a second.
    model = CostModel("paper", 7, 2_000_000, 100_000_000, 5_000_000)
    assert capacity_requests_per_s(model, 10, 10.0, 5.0) == pytest.approx(12.5)
    assert capacity_requests_per_s(model, 10, 10.0, 1.0) == pytest.approx(50.0)
    paper = PRESETS["llama-65b-paper"]
    by_hand = 1e9 / (155_700 * 68.43 + 344.16 * (17_870_000 / 200 + 275_300))
    assert capacity_requests_per_s("llama-65b-paper", 200, 68.43, 345.16) == pytest.approx(by_hand)
    assert capacity_requests_per_s(paper, 200, 68.43, 345.16) == pytest.approx(by_hand)


def test_a_longer_first_decode_takes_no_capacity():
    """Like the fixed time of prefills it vanishes as they grow."""
    paper = PRESETS["llama-65b-paper"]
    longer = replace(paper, first_decode_ns=10**9)
    assert not longer.is_affine
    assert capacity_requests_per_s(longer, 200, 68.43, 345.16) == capacity_requests_per_s(paper, 200, 68.43, 345.16)
    assert Scenario("serving", load=0.9, cost=longer).load == 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("llama-65b-paper", 0, 10.0, 5.0), "num_clients = 0 is out of range"),
        (("llama-65b-paper", 2.0, 10.0, 5.0), "num_clients = 2.0 is out of range"),
        (("llama-65b-paper", 2, 0.5, 5.0), "mean_prompt_tokens = 0.5 is out of range"),
        (("llama-65b-paper", 2, 10.0, float("nan")), "mean_output_tokens = nan is out of range"),
        ((CostModel("g", 1, 1, 1, 1, gamma_decode_ns=1), 2, 10.0, 5.0), "has prefill levels or a context term"),
        ((CostModel("free", 1, 0, 1, 1), 2, 10.0, 1.0), "at no cost a request: capacity has no limit"),
        (("llama", 2, 10.0, 5.0), "unknown cost preset 'llama'"),
    ],
)
def test_bad_capacities(arguments, words):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        capacity_requests_per_s(*arguments)
    assert words in str(caught.value)


def test_lengths_and_times_come_from_where_they_are_said_to():
    item = workload("serving")
    case = item.requests("validation", 3)
    lengths = workload("gsm8k").requests("validation", 3, num_requests=5000)
    np.testing.assert_array_equal(case.prompt_tokens, lengths.prompt_tokens)
    np.testing.assert_array_equal(case.output_tokens, lengths.output_tokens)
    np.testing.assert_array_equal(case.release_ns, item.arrivals.release_ns("validation", 3, 5000))
    assert case.mean_output_tokens == lengths.mean_output_tokens
    assert case.rate_per_s == pytest.approx(1.0, abs=5 * 2.0 / math.sqrt(5000))


@pytest.mark.parametrize("name", ["serving", "azure-synthetic"])
@given(split=st.sampled_from(SPLITS), number=st.integers(0, 2**40), size=st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_a_case_is_fixed_and_a_prefix_of_a_larger_one(name, split, number, size):
    item = workload(name)
    case = item.requests(split, number, num_requests=size)
    again = pickle.loads(pickle.dumps(item)).requests(split, number, num_requests=size)
    assert len(case) == size
    assert again.digest() == case.digest()
    more = item.requests(split, number, num_requests=size + 7)
    for key in ("prompt_tokens", "output_tokens", "release_ns"):
        np.testing.assert_array_equal(getattr(more, key)[:size], getattr(case, key))


@pytest.mark.parametrize(
    ("name", "digests"),
    [
        ("serving", ("2a55bd1da9bd5150ed658f65d49d3eea", "39dbd4ce2a46299723ad6c062aded0a0")),
        ("azure-synthetic", ("f0ce75fdf04b8d6249c584cec07f4b16", "fc07ecc1ec6e283a182b2f690df03395")),
    ],
)
def test_golden_cases(name, digests):
    item = workload(name)
    cases = (item.requests("train", 0), item.requests("test", 7, num_requests=2000))
    assert tuple(case.digest()[:32] for case in cases) == digests


def test_other_lengths_and_processes():
    item = ServingWorkload("mine", GammaWorkload(), PoissonArrivals(), num_requests=10)
    assert len(item.requests("test", 0)) == 10
    assert {split: item.pool_size(split) for split in SPLITS} == dict(POOL_SIZES)
    for build, words in (
        (lambda: ServingWorkload(lengths=3), r"lengths = 3 is not a workload"),
        (lambda: ServingWorkload(lengths=GammaWorkload), r"is not a workload"),
        (lambda: ServingWorkload(arrivals=3), r"arrivals = 3 is not an arrival process"),
        (lambda: ServingWorkload(num_requests=0), r"num_requests = 0 is out of range"),
    ):
        with pytest.raises(ConfigError, match=words):
            build()


# Laws of quantiles.

TABLES = st.lists(st.tuples(st.integers(1, 999), st.integers(1, 5000)), min_size=0, max_size=8).map(
    lambda rows: QuantileLaw(
        (0, *sorted({share for share, _ in rows}), 1000),
        tuple(sorted([1, *(1 + k * 7 for k in range(len({share for share, _ in rows}))), 5000])),
    )
)


@given(law=TABLES, uniforms=st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_draw_lies_between_its_quantiles_and_grows_with_chance(law, uniforms):
    drawn = law.draw(np.array(sorted(uniforms), np.uint64))
    assert (np.diff(drawn) >= 0).all()
    exact = np.interp(np.array(sorted(uniforms)) / 2.0**53 * 1000, law.per_mille, law.tokens)
    assert np.abs(drawn - exact).max() <= 0.5 + 1e-3


def test_quantile_law_on_paper():
    # Half of the draws on [1, 3], half on [3, 3]: 1 and 2 and 3 with chances 1/8, 1/4, 5/8; mean 2.5, second 6.75.
    law = QuantileLaw((0, 500, 1000), (1, 3, 3))
    drawn = law.draw((np.arange(8000, dtype=np.uint64) * np.uint64(2**53 // 8000)) + np.uint64(1))
    counts = np.bincount(drawn, minlength=4)[1:]
    assert counts.tolist() == pytest.approx([1000, 2000, 5000], abs=1)
    mean, sd = law.moments()
    assert mean == pytest.approx(2.5)
    assert sd == pytest.approx(math.sqrt(1 / 8 + 4 / 4 + 9 * 5 / 8 - 6.25))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((0, 1000), (1, 2, 3)), "2 shares but 3 quantiles"),
        (((0, 500), (1, 2)), "does not increase from 0 to 1000"),
        (((0, 500, 500, 1000), (1, 2, 3, 4)), "does not increase"),
        (((0, 1000), (5, 2)), "decreases or leaves"),
        (((0, 1000), (0, 2)), "decreases or leaves"),
        (((0, 1000), [1, 2]), "is not a table"),
        (((0, 1000), (1.0, 2)), "is not a table"),
    ],
)
def test_bad_quantiles(arguments, words):
    with pytest.raises(ConfigError) as caught:
        QuantileLaw(*arguments)
    assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"prompt_law = 3 is not a QuantileLaw"):
        QuantileWorkload(prompt_law=3)


def test_azure_synthetic_has_the_published_moments():
    # Mean and sd of the trace: 1154.70 and 1108.82 prompt tokens, 211.13 and 162.87 output tokens; CV of gaps 1.09.
    for law, mean, sd in ((AZURE_2023_PROMPT, 1154.70, 1108.82), (AZURE_2023_OUTPUT, 211.13, 162.87)):
        assert law.moments()[0] == pytest.approx(mean, rel=0.01)
        assert law.moments()[1] == pytest.approx(sd, rel=0.02)
    case = workload("azure-synthetic").requests("test", 0, num_requests=200_000)
    for column, law in ((case.prompt_tokens, AZURE_2023_PROMPT), (case.output_tokens, AZURE_2023_OUTPUT)):
        assert column.mean() == pytest.approx(law.moments()[0], rel=0.01)
        assert column.std() == pytest.approx(law.moments()[1], rel=0.02)
    gaps = np.diff(case.release_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(1.09, rel=0.01)


def test_azure_synthetic_against_the_trace_itself():
    path = SHARED / "azure_2023_conv.csv"
    if not path.is_file():
        pytest.skip("the recorded trace is not part of the repository")
    real = np.loadtxt(path, delimiter=",", skiprows=1)
    case = workload("azure-synthetic").requests("test", 0, num_requests=200_000)
    for column, drawn in ((1, case.prompt_tokens), (2, case.output_tokens)):
        grid = np.union1d(real[:, column], drawn)
        shares = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (real[:, column], drawn)]
        assert np.abs(shares[0] - shares[1]).max() < 0.04  # Kolmogorov-Smirnov


def test_a_rate_in_requests_per_second_on_paper(tmp_path):
    """Four requests at 0, 1, 2 and 6 s are 0.5 a second; at 2 a second the gaps shrink to a quarter.

    By the capacity 1 / (beta_p E[P] + (E[N] - 1) (alpha_d / J + beta_d)) = 1 / (0.01 * 10 + 9 * (0.1 / 2 + 0.05)) = 1
    a second, load is the same number.
    """
    path = tmp_path / "four.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t},10,10\n" for t in (0, 1, 2, 6)))
    cost = CostModel("paper", 10**6, 10**7, 10**8, 5 * 10**7)
    usual = {"workload": path, "cost": cost, "num_clients": 2, "queue": "shared", "ttft_s": 1, "tpot_s": 1}
    own = Scenario(**usual)
    assert build_problem(own, 0).release_ns.tolist() == [0, 10**9, 2 * 10**9, 6 * 10**9]
    assert offered(own, 0) == (0.5, pytest.approx(0.5))
    fast = Scenario(**usual, requests_per_s=2)
    assert build_problem(fast, 0).release_ns.tolist() == [0, 250_000_000, 500_000_000, 1_500_000_000]
    assert offered(fast, 0) == (2.0, pytest.approx(2.0))
    assert (
        build_problem(Scenario(**usual, load=2.0), 0).release_ns.tolist() == build_problem(fast, 0).release_ns.tolist()
    )
    assert "requests_per_s" not in own.describe(), "what is stored by these values would not be found again"
    assert fast.describe()["requests_per_s"] == 2.0
