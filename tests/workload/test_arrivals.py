"""Arrival processes: their laws, and instances that can be done on paper."""

from __future__ import annotations

import hashlib
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload import (
    SPLITS,
    ArrivalProcess,
    DiurnalArrivals,
    GammaArrivals,
    OnOffArrivals,
    PoissonArrivals,
)
from llmsched_env.workload.arrivals import STEPS_PER_OCTAVE, UNIT_NS, _gap_table, _gaps_ns

RENEWAL = st.one_of(
    st.just(PoissonArrivals()),
    st.builds(GammaArrivals, cv=st.one_of(st.just(0.0), st.floats(0.05, 20.0))),
    st.builds(OnOffArrivals, duty=st.floats(0.001, 1.0), burst_requests=st.floats(0.1, 1000.0)),
)
PROCESSES = st.one_of(
    RENEWAL,
    st.builds(
        DiurnalArrivals,
        amplitude=st.floats(0.0, 0.99),
        period_requests=st.floats(1.0, 1e5),
        phase=st.floats(0.0, 1.0),
        base=RENEWAL,
    ),
)
DEFAULTS = [PoissonArrivals(), GammaArrivals(), OnOffArrivals(), DiurnalArrivals()]


@given(process=PROCESSES, split=st.sampled_from(SPLITS), number=st.integers(0, 2**40), count=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_a_case_is_fixed_ordered_and_a_prefix_of_a_larger_one(process, split, number, count):
    release = process.release_ns(split, number, count)
    assert release.dtype == np.int64
    assert release.shape == (count,)
    assert release[0] == 0
    assert (np.diff(release) >= 0).all()
    again = pickle.loads(pickle.dumps(process)).release_ns(split, number, count)
    np.testing.assert_array_equal(again, release)
    np.testing.assert_array_equal(process.release_ns(split, number, count + 50)[:count], release)


@given(cv=st.floats(0.05, 20.0))
@settings(max_examples=30, deadline=None)
def test_mean_and_cv_of_the_table_are_those_asked_for(cv):
    # Uniform within each cell: moments without sampling.
    table, edges = _gap_table(cv)
    weight, low, high = np.diff(table) / 2.0**53, edges[:-1] / UNIT_NS, edges[1:] / UNIT_NS
    mean = math.fsum(weight * (low + high) / 2)
    second = math.fsum(weight * (low**2 + low * high + high**2) / 3)
    assert weight.min() > 0
    assert weight.sum() == pytest.approx(1.0, abs=1e-15)
    assert mean == pytest.approx(1.0, abs=1e-5)
    assert math.sqrt(second - mean**2) / mean == pytest.approx(cv, rel=1e-3)


@pytest.mark.parametrize("cv", [1.0, 1.09, 2.0])
def test_no_entry_of_a_default_table_hangs_on_the_last_bits(cv):
    # An entry would differ elsewhere only if the special function differed by its distance to a half, 1e-15 here.
    from scipy import special

    mantissa = np.arange(STEPS_PER_OCTAVE, 2 * STEPS_PER_OCTAVE, dtype=np.int64)
    edges = np.concatenate([np.arange(STEPS_PER_OCTAVE), *[mantissa << octave for octave in range(37)]])
    share = special.gammainc(1 / cv**2, edges * (1 / cv**2 / UNIT_NS)) * 2.0**32
    inner = share[(share > 0.25) & (share < 2**32 - 0.25)]
    assert len(inner) > 5000
    assert np.abs(inner - np.floor(inner) - 0.5).min() / 2.0**32 > 1e-15 * 10


def test_exponential_gaps_on_paper():
    # The median of a gap is ln 2 = 0.693147 s; the word 2**63 is the middle. Linear between steps of 1/256 octave.
    gaps = _gaps_ns(1.0, np.array([2**63, 0, int(0.9 * 2**64)], np.uint64)) / UNIT_NS
    assert gaps[0] == pytest.approx(math.log(2), rel=1e-5)
    assert gaps[1] == 0.0
    assert gaps[2] == pytest.approx(math.log(10), rel=1e-5)


def test_equal_gaps_are_whole_seconds():
    assert GammaArrivals(cv=0.0).release_ns("test", 5, 4).tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9]


def test_poisson_is_gamma_with_cv_1_and_on_off_that_is_always_on():
    poisson = PoissonArrivals().release_ns("train", 2, 500)
    np.testing.assert_array_equal(GammaArrivals(cv=1.0).release_ns("train", 2, 500), poisson)
    np.testing.assert_array_equal(OnOffArrivals(duty=1.0).release_ns("train", 2, 500), poisson)
    flat = DiurnalArrivals(amplitude=0.0, period_requests=100.0).release_ns("train", 2, 500)
    np.testing.assert_allclose(flat, poisson, atol=2.0)  # one floor in each of two tables


@pytest.mark.parametrize(
    ("process", "cv"),
    [
        (PoissonArrivals(), 1.0),
        (GammaArrivals(0.5), 0.5),
        (GammaArrivals(2.0), 2.0),
        (OnOffArrivals(0.5, 20.0), math.sqrt(11.0)),  # 1 + 2 * 20 * 0.5**2
        (OnOffArrivals(0.1, 5.0), math.sqrt(9.1)),  # 1 + 2 * 5 * 0.9**2
    ],
)
def test_long_run_rate_and_cv(process, cv):
    n = 400_000
    gaps = np.diff(process.release_ns("test", 0, n)) / UNIT_NS
    assert gaps.mean() == pytest.approx(1.0, abs=5 * cv / math.sqrt(n))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0.0, abs=0.02)  # all are renewal processes


def test_closed_form_of_the_cv():
    assert OnOffArrivals(0.5, 20.0).cv == pytest.approx(math.sqrt(11.0))
    assert OnOffArrivals(1.0, 20.0).cv == 1.0


def test_bursts_and_silences():
    # Duty 1 %, 50 requests a burst: 50 s of requests fall into half a second, then 49.5 s of silence in the mean.
    gaps = np.diff(OnOffArrivals(0.01, 50.0).release_ns("test", 0, 100_000)) / UNIT_NS
    silences = gaps > 1.0
    assert silences.mean() == pytest.approx(1 / 50, rel=0.1)
    assert gaps[~silences].mean() == pytest.approx(0.01, rel=0.2)


def test_a_days_rhythm():
    # a = 0.5: the first half of a period holds 1/2 + a / pi = 0.659 of its requests.
    process = DiurnalArrivals(amplitude=0.5, period_requests=1000.0)
    day = process.release_ns("test", 0, 200_000) / UNIT_NS % 1000.0
    n = len(day)
    assert (day < 500).mean() == pytest.approx(0.5 + 0.5 / math.pi, abs=5 * 0.5 / math.sqrt(n))
    assert ((day > 200) & (day < 300)).mean() / 0.1 == pytest.approx(1.49, abs=0.05)
    assert ((day > 700) & (day < 800)).mean() / 0.1 == pytest.approx(0.51, abs=0.05)
    shifted = DiurnalArrivals(amplitude=0.5, period_requests=1000.0, phase=0.5).release_ns("test", 0, 200_000)
    assert (shifted / UNIT_NS % 1000.0 < 500).mean() == pytest.approx(0.5 - 0.5 / math.pi, abs=0.01)


def test_a_regular_day_on_paper():
    # Equal gaps of the base, 4 requests a period: the k-th comes where the integral of the rate reaches k, and at
    # half a period the integral is 2 + a * 4 / pi = 3.27 of 4; at whole periods it is whole.
    process = DiurnalArrivals(amplitude=0.99, period_requests=4.0, base=GammaArrivals(cv=0.0))
    release = process.release_ns("test", 0, 9)
    assert release[[0, 4, 8]].tolist() == [0, 4 * 10**9, 8 * 10**9]
    for k in (1, 2, 3):
        t = release[k] / UNIT_NS
        integral = t + 0.99 * 4 / (2 * math.pi) * (1 - math.cos(2 * math.pi * t / 4))
        assert integral == pytest.approx(k, abs=1e-5)


@pytest.mark.parametrize("process", DEFAULTS, ids=lambda process: type(process).__name__)
def test_contract(process):
    assert isinstance(process, ArrivalProcess)
    assert hash(process) == hash(pickle.loads(pickle.dumps(process)))
    with pytest.raises(UnknownNameError, match="unknown split 'all'"):
        process.release_ns("all", 0, 5)
    with pytest.raises(ConfigError, match="case number -1 is out of range"):
        process.release_ns("test", -1, 5)
    with pytest.raises(ConfigError, match="num_requests = 0 is out of range"):
        process.release_ns("test", 0, 0)
    assert process.release_ns("test", 0, 1).tolist() == [0]
    train, test = process.release_ns("train", 0, 50), process.release_ns("test", 0, 50)
    assert (train != test).any()
    assert (process.release_ns("test", 1, 50) != test).any()


@pytest.mark.parametrize(
    ("process", "digest"),
    [
        (GammaArrivals(cv=2.0), "5716571e0487cb21b9e1995dace70c65"),
        (OnOffArrivals(), "e37ff0a78f038c389f3639e94ac186b9"),
        (DiurnalArrivals(), "778695d96c8894542580f2b33a16cfa7"),
    ],
)
def test_golden_times(process, digest):
    release = process.release_ns("test", 7, 5000)
    assert hashlib.sha256(release.astype("<i8").tobytes()).hexdigest()[:32] == digest


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GammaArrivals(cv=-1.0), "cv = -1.0 is out of range: it must lie in [0, 20]"),
        (lambda: GammaArrivals(cv=0.01), "cv = 0.01 is out of range: pass 0 for equal gaps, or a number in [0.05, 20]"),
        (lambda: GammaArrivals(cv=float("nan")), "cv = nan is out of range"),
        (lambda: GammaArrivals(cv=True), "cv = True is not a number"),
        (lambda: OnOffArrivals(duty=0.0), "duty = 0.0 is out of range"),
        (lambda: OnOffArrivals(burst_requests=0.0), "burst_requests = 0.0 is out of range"),
        (lambda: DiurnalArrivals(amplitude=1.0), "amplitude = 1.0 is out of range: it must lie in [0, 0.99]"),
        (lambda: DiurnalArrivals(period_requests=0.5), "period_requests = 0.5 is out of range"),
        (lambda: DiurnalArrivals(phase=1.5), "phase = 1.5 is out of range"),
        (lambda: DiurnalArrivals(base=3), "base = 3 is not an arrival process: pass one such as GammaArrivals"),
        (lambda: DiurnalArrivals(base=PoissonArrivals), "is not an arrival process"),
    ],
)
def test_bad_processes(build, words):
    with pytest.raises(ConfigError) as caught:
        build()
    assert words in str(caught.value)
