"""Length laws and the generators built on them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload import (
    POOL_SIZES,
    SPLITS,
    WORKLOADS,
    CsvWorkload,
    GammaWorkload,
    Gsm8kWorkload,
    LengthLaw,
    LognormalWorkload,
    MixtureWorkload,
    Workload,
    workload,
)

LAWS = st.builds(
    LengthLaw,
    family=st.sampled_from(["gamma", "lognormal"]),
    mean_tokens=st.floats(1, 300),
    sd_tokens=st.floats(0, 400),
    max_tokens=st.integers(300, 3000),
)
GENERATORS = [LognormalWorkload, GammaWorkload, MixtureWorkload]


@given(law=LAWS, uniforms=st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_draw_inverts_the_table(law, uniforms):
    table = law.thresholds()
    drawn = law.draw(np.array(uniforms, np.uint64))
    assert (np.diff(table.astype(np.int64)) >= 0).all()
    for uniform, length in zip(uniforms, drawn.tolist(), strict=True):
        assert 1 <= length <= law.max_tokens
        assert length == 1 or table[length - 2] <= uniform
        assert length > len(table) or uniform < table[length - 1]


@given(law=LAWS)
@settings(max_examples=40, deadline=None)
def test_moments_are_those_of_the_draws(law):
    # Every length weighed by its share of the uniforms, without sampling.
    edges = np.concatenate([[0], law.thresholds().astype(np.float64), [2.0**53]]) / 2.0**53
    share, length = np.diff(edges), np.arange(1, len(edges))
    mean, sd = law.moments()
    assert mean == pytest.approx((share * length).sum(), rel=1e-9)
    assert sd == pytest.approx(np.sqrt((share * (length - mean) ** 2).sum()), rel=1e-6, abs=1e-4)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_far_from_both_ends_only_rounding_changes_the_moments(family):
    mean, sd = LengthLaw(family, 500.0, 100.0).moments()
    assert mean == pytest.approx(500.0, abs=1e-6)
    assert sd**2 == pytest.approx(100.0**2 + 1 / 12, abs=1e-3)


def test_an_exponential_on_paper():
    # Gamma with sd = mean is exponential: P(N = 1) = 1 - exp(-1.5 / 10).
    law = LengthLaw("gamma", 10.0, 10.0)
    assert int(law.thresholds()[0]) == pytest.approx(2**53 * (1 - np.exp(-0.15)), rel=1e-12)
    assert law.draw(np.array([0, 2**52], np.uint64)).tolist() == [1, 7]  # median 10 ln 2 = 6.93


def test_no_spread_is_a_constant():
    uniforms = np.array([0, 2**52, 2**53 - 1], np.uint64)
    assert LengthLaw("gamma", 7.0, 0.0).draw(uniforms).tolist() == [7, 7, 7]
    assert LengthLaw("lognormal", 7.0, 0.0, max_tokens=7).draw(uniforms).tolist() == [7, 7, 7]
    assert LengthLaw("gamma", 7.0, 0.0).moments() == (7.0, 0.0)


def test_the_limit_gathers_what_lies_beyond():
    law = LengthLaw("lognormal", 50.0, 100.0, max_tokens=60)
    drawn = law.draw(np.linspace(0, 2**53 - 1, 1000).astype(np.uint64))
    assert drawn.max() == 60
    assert np.mean(drawn == 60) > 0.1
    assert law.moments()[0] < 50.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gama", 5.0, 1.0), "unknown family of lengths 'gama'. Did you mean 'gamma'"),
        (("gamma", 0.5, 1.0), "mean_tokens = 0.5 is out of range"),
        (("gamma", float("nan"), 1.0), "mean_tokens = nan is out of range"),
        (("gamma", "5", 1.0), "mean_tokens = '5' is not a number"),
        (("gamma", 5.0, -1.0), "sd_tokens = -1.0 is out of range"),
        (("gamma", 5.0, float("inf")), "sd_tokens = inf is out of range"),
        (("gamma", 5.0, 1.0, 4), "mean_tokens = 5.0 is out of range: it must lie in [1, 4]"),
        (("gamma", 5.0, 1.0, 2**21), "max_tokens = 2097152 is out of range: pass an int in [1, 1048576]"),
        (("gamma", 5.0, 1.0, True), "max_tokens = True is out of range"),
    ],
)
def test_bad_laws(arguments, words):
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        LengthLaw(*arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("generator", GENERATORS)
@given(
    split=st.sampled_from(SPLITS),
    number=st.integers(0, 2**40),
    size=st.integers(1, 300),
    mean=st.floats(1, 500),
    sd=st.floats(0, 500),
)
@settings(max_examples=25, deadline=None)
def test_a_case_is_fixed_valid_and_a_prefix_of_a_larger_one(generator, split, number, size, mean, sd):
    item = generator(output_mean_tokens=mean, output_sd_tokens=sd, max_tokens=600)
    case = item.requests(split, number, num_requests=size)
    assert len(case) == size
    assert case.output_tokens.min() >= 1
    assert case.output_tokens.max() <= 600
    again = pickle.loads(pickle.dumps(item)).requests(split, number, num_requests=size)
    assert again.digest() == case.digest()
    more = item.requests(split, number, num_requests=size + 7)
    np.testing.assert_array_equal(more.output_tokens[:size], case.output_tokens)
    np.testing.assert_array_equal(more.prompt_tokens[:size], case.prompt_tokens)


@pytest.mark.parametrize("generator", GENERATORS)
def test_large_case_has_the_stated_moments(generator):
    item = generator()
    case = item.requests("test", 0, num_requests=100_000)
    assert item.mean_output_tokens == case.mean_output_tokens
    assert case.output_tokens.mean() == pytest.approx(item.mean_output_tokens, abs=4 * 192 / np.sqrt(100_000))
    assert case.output_tokens.std() == pytest.approx(192, abs=4)
    assert case.prompt_tokens.mean() == pytest.approx(68.43, abs=0.4)
    assert case.prompt_tokens.std() == pytest.approx(25.04, abs=0.4)
    assert abs(np.corrcoef(case.prompt_tokens, case.output_tokens)[0, 1]) < 0.02


def test_mixture_on_paper():
    item = MixtureWorkload(output_mean_tokens=100.0, output_sd_tokens=0.0, cap_probability=0.25, cap_tokens=500)
    assert item.mean_output_tokens == 0.25 * 500 + 0.75 * 100
    case = item.requests("test", 0, num_requests=20_000)
    assert set(case.output_tokens.tolist()) == {100, 500}
    assert np.mean(case.output_tokens == 500) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20_000))


def test_a_parameter_changes_only_what_it_names():
    one, two = GammaWorkload().requests("test", 0), GammaWorkload(output_sd_tokens=50.0).requests("test", 0)
    np.testing.assert_array_equal(one.prompt_tokens, two.prompt_tokens)
    # Common chance: both put the requests in the same order of length, up to ties.
    order = np.argsort(one.output_tokens, kind="stable")
    assert np.corrcoef(two.output_tokens[order], np.arange(len(order)))[0, 1] > 0.9


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: GammaWorkload(num_requests=0), "num_requests = 0 is out of range"),
        (lambda: GammaWorkload(num_requests=2.5), "num_requests 2.5 is not a whole number"),
        (lambda: GammaWorkload(prompt_mean_tokens=0.0), "prompt_mean_tokens = 0.0 is out of range"),
        (lambda: GammaWorkload(output_sd_tokens=-1.0), "output_sd_tokens = -1.0 is out of range"),
        (lambda: GammaWorkload(max_tokens=100), "output_mean_tokens = 345.2 is out of range: it must lie in [1, 100]"),
        (lambda: MixtureWorkload(cap_probability=-0.1), "cap_probability = -0.1 is out of range"),
        (lambda: MixtureWorkload(cap_tokens=100), "output_mean_tokens = 132.8 is out of range"),
        (lambda: MixtureWorkload(cap_tokens=200_000), "cap_tokens = 200000 is out of range: pass an int in [1, 65536]"),
    ],
)
def test_bad_generators(build, words):
    with pytest.raises(ConfigError) as caught:
        build()
    assert words in str(caught.value)


@pytest.mark.parametrize("item", WORKLOADS.values(), ids=list(WORKLOADS))
def test_every_workload_is_one(item):
    assert isinstance(item, Workload)
    assert workload(item.name) is item
    assert workload(item) is item
    assert {split: item.pool_size(split) for split in SPLITS} == dict(POOL_SIZES)
    assert hash(item) == hash(pickle.loads(pickle.dumps(item)))
    assert len(item.requests("validation", 10_000)) == item.num_requests  # beyond the pool, on demand
    assert item.num_requests == (5000 if item.name in ("serving", "azure-synthetic") else 1319)
    columns = [item.requests("test", 0).prompt_tokens, item.requests("test", 0).output_tokens]
    assert not any(column.flags.writeable for column in columns)


@pytest.mark.parametrize(
    ("name", "digests"),
    {
        "lognormal": (
            "98ff76a73242f70812333ed3a24dc3fa",
            "a897c185ec854c803feb92a968fb8920",
            "10efa5e6048a13f3e88e24b68813d214",
        ),
        "gamma": (
            "e13e67b152113147ae51464acf3b6558",
            "a09fe7c2e8c15de9617476ebd3de7ed3",
            "3533852c4fc0059367fa026966f4e4de",
        ),
        "mixture": (
            "c0a7d9bd98183c894beff1804c798ca6",
            "d6ed302b2ba26428a6031bd4cf0a4597",
            "93ea66f78712ae63b07999884e7f2c25",
        ),
    }.items(),
)
def test_golden_cases(name, digests):
    item = workload(name)
    cases = (
        item.requests("train", 0),
        item.requests("validation", 7),
        item.requests("test", 0, num_requests=5000),
    )
    assert tuple(case.digest()[:32] for case in cases) == digests


def test_lookup():
    assert isinstance(workload("some/where.csv"), CsvWorkload)
    with pytest.raises(UnknownNameError, match=r"unknown workload 'gsm8k-smoth'\. Did you mean 'gsm8k-smooth'"):
        workload("gsm8k-smoth")
    for wrong in (3, None, Gsm8kWorkload):
        with pytest.raises(ConfigError, match="is not a workload: pass a name"):
            workload(wrong)
