"""Predictors: true to what they say of themselves, on cases that they were not fitted on."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import spearmanr

from llmsched_env.cases import build_problem, estimates
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, UnknownNameError, WorkloadError
from llmsched_env.simulator import Futures, Simulator
from llmsched_env.workload import (
    MAX_TOKENS,
    PREDICTORS,
    NoisyTruth,
    Population,
    Prediction,
    Predictor,
    PromptRegression,
    Requests,
    UnevenTruth,
    estimated_tokens,
    predictor,
    predictors,
    workload,
)
from llmsched_env.workload.draws import Stream, raw_words, standard_normal

HELD_OUT = range(20)
EACH = ["population", "prompt", "noisy:0.0", "noisy:0.3", "noisy:0.6", "noisy:0.9", "noisy:0.99", "uneven:0.2:0.95"]
SOURCES = ["gsm8k", "gsm8k-smooth", "lognormal"]


@pytest.fixture
def nothing_remembered():
    caches = (predictors._training, predictors._by_prompt, predictors._by_length, predictors._by_signal)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def predict(name, source, number, split="test"):
    case = workload(source).requests(split, number)
    return case, predictor(name).predict(workload(source), split, number, case)


def held_out(name, source, split="test"):
    """True lengths, means and standard deviations of many test requests."""
    found = [predict(name, source, number, split) for number in HELD_OUT]
    true = np.concatenate([case.output_tokens for case, _ in found]).astype(np.float64)
    return true, *(np.concatenate([getattr(said, key) for _, said in found]) for key in ("mean_tokens", "sd_tokens"))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", EACH)
def test_mean_and_sd_are_calibrated_on_cases_that_were_not_fitted(name, source):
    true, mean, sd = held_out(name, source)
    error = true - mean
    # All test cases of GSM8K have the same rows, so 20 of them say about as much of rows as one does.
    repeats = len(HELD_OUT) if source == "gsm8k" else 1
    assert abs(error.mean()) < 4 * standard_error(error, repeats)
    assert np.mean(error**2) == pytest.approx(np.mean(sd**2), rel=0.06), "sd says how large errors are"
    # Also where little or much is predicted, and where the predictor is sure or in doubt.
    for said in (mean, sd):
        for part in np.array_split(np.argsort(said, kind="stable"), 4):
            assert abs(error[part].mean()) < 4 * standard_error(error[part], repeats)
            excess = error[part] ** 2 - sd[part] ** 2
            assert abs(excess.mean()) < 0.03 * np.mean(sd[part] ** 2) + 4 * standard_error(excess, repeats)


def standard_error(values, repeats):
    return values.std() / math.sqrt(len(values) / repeats)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.6, 0.8, 0.95, 1.0])
def test_the_signal_has_the_correlation_that_was_asked_for(correlation, source):
    noisy, found = NoisyTruth(correlation), []
    for number in HELD_OUT:
        case = workload(source).requests("test", number)
        signal = noisy.signal(workload(source), "test", number, case)
        found.append(np.corrcoef(signal, np.log(case.output_tokens))[0, 1])
    error = 4 * (1 - correlation**2) / math.sqrt(len(found) * len(case))
    assert np.mean(found) == pytest.approx(correlation, abs=error + 0.003)


@pytest.mark.parametrize("source", SOURCES)
def test_more_correlation_is_a_better_prediction(source):
    errors = []
    for correlation in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 0.9999, 1.0):
        true, mean, _ = held_out(f"noisy:{correlation}", source)
        errors.append(np.mean((true - mean) ** 2))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_the_ends_are_the_truth_and_the_population():
    case, truth = predict("noisy:1.0", "gsm8k", 3)
    assert (truth.mean_tokens == case.output_tokens).all()
    assert (truth.sd_tokens == 0).all()
    _, nothing = predict("noisy:0.0", "gsm8k", 3)
    _, population = predict("population", "gsm8k", 3)
    for key in ("mean_tokens", "sd_tokens"):
        np.testing.assert_allclose(getattr(nothing, key), getattr(population, key), atol=2e-6)
        assert np.ptp(getattr(population, key)) == 0


def test_prompts_tell_something_where_they_do_and_nothing_where_they_do_not():
    true, mean, _ = held_out("prompt", "gsm8k")
    assert 0.08 < spearmanr(true, mean)[0] < 0.13
    true, mean, _ = held_out("prompt", "gsm8k-smooth")
    assert abs(spearmanr(true, mean)[0]) < 0.03


def test_uneven_certainty_gives_equal_means_different_deviations():
    _, even = predict("noisy:0.6", "gsm8k-smooth", 0)
    _, uneven = predict("uneven:0.2:0.95", "gsm8k-smooth", 0)
    for said, known in ((even, True), (uneven, False)):
        by_mean = said.sd_tokens[np.argsort(said.mean_tokens)]
        jumps = np.abs(np.diff(by_mean)).mean() / np.ptp(by_mean)
        assert (jumps < 0.01) == known
    parts = [predict(name, "gsm8k-smooth", 0)[1] for name in ("noisy:0.2", "noisy:0.95")]
    poor, good = ((uneven.mean_tokens == one.mean_tokens) & (uneven.sd_tokens == one.sd_tokens) for one in parts)
    assert (poor | good).all()
    assert 0.45 < good.mean() < 0.55


@dataclass(frozen=True)
class Coin:
    """Half of the outputs are 10 long and half 1000; prompts tell which in training cases, and are 7 in others."""

    name: str = "coin"

    def pool_size(self, split):
        return 3

    def requests(self, split, number, *, num_requests=None):
        output = np.where(np.arange(200) % 2, 10, 1000)
        return Requests.of(np.where(output == 10, 5, 50) if split == "train" else [7] * 200, output)


def test_prompt_regression_on_paper():
    # 600 training requests make 6 bins at most, and two prompts leave two: below 50, and from 50 on.
    source = Coin()
    train = source.requests("train", 0)
    said = PromptRegression().predict(source, "train", 0, train)
    assert said.mean_tokens.tolist() == train.output_tokens.tolist()
    assert not said.sd_tokens.any()
    said = PromptRegression().predict(source, "test", 0, source.requests("test", 0))
    assert set(said.mean_tokens) == {10.0}
    # Mean (10 + 1000) / 2, and 495 from it to either side.
    said = Population().predict(source, "test", 0, source.requests("test", 0))
    assert (set(said.mean_tokens), set(said.sd_tokens)) == ({505.0}, {495.0})


def test_noisy_truth_on_paper():
    # z is -1 or 1 and the prior even, so by Bayes' rule P(1000 | signal) = 1 / (1 + exp(-2 r signal / (1 - r**2))).
    source, noisy = Coin(), NoisyTruth(0.6)
    case = source.requests("test", 0)
    signal = noisy.signal(source, "test", 0, case)
    long = 1 / (1 + np.exp(-2 * 0.6 * signal / (1 - 0.6**2)))
    said = noisy.predict(source, "test", 0, case)
    np.testing.assert_allclose(said.mean_tokens, 10 + 990 * long, atol=0.02)
    np.testing.assert_allclose(said.sd_tokens, 990 * np.sqrt(long * (1 - long)), atol=0.02)


@pytest.mark.parametrize("name", EACH)
def test_constant_lengths_are_known_to_everybody(name):
    @dataclass(frozen=True)
    class Constant(Coin):
        def requests(self, split, number, *, num_requests=None):
            return Requests.of([5] * 30, [70] * 30)

    case = Constant().requests("test", 0)
    said = predictor(name).predict(Constant(), "test", 0, case)
    np.testing.assert_allclose(said.mean_tokens, 70.0)
    np.testing.assert_allclose(said.sd_tokens, 0.0, atol=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_the_same_for_ever_and_whatever_came_before(name, nothing_remembered):
    first = predict(name, "gsm8k", 7)[1]
    predict(name, "gsm8k", 8), predict("noisy:0.5", "lognormal", 7)
    for cache in (predictors._training, predictors._by_prompt, predictors._by_signal):
        cache.cache_clear()
    predict("prompt", "gsm8k-smooth", 1)
    again = predict(name, "gsm8k", 7)[1]
    assert (first.mean_tokens == again.mean_tokens).all()
    assert (first.sd_tokens == again.sd_tokens).all()


def test_predictions_are_what_they_were():
    digest = hashlib.sha256()
    for source in (*SOURCES, "azure-synthetic"):
        for name in EACH:
            for split, number in (("train", 0), ("validation", 99), ("test", 0), ("test", 12_345)):
                said = predict(name, source, number, split)[1]
                for column in (said.mean_tokens, said.sd_tokens):
                    digest.update(np.rint(column * 1e3).astype("<i8").tobytes())
    assert digest.hexdigest() == "e659b5c2741782f6eb799c8bc9045251fd73aae2e99f1d4b22382a9386da2819"


def test_every_part_of_the_seed_matters():
    case = workload("gsm8k").requests("test", 0)
    signals = [
        noisy.signal(workload(source), split, number, case)
        for noisy, source, split, number in [
            (NoisyTruth(0.0), "gsm8k", "test", 0),
            (NoisyTruth(0.0), "gsm8k-smooth", "test", 0),
            (NoisyTruth(0.0), "gsm8k", "train", 0),
            (NoisyTruth(0.0), "gsm8k", "test", 1),
            (NoisyTruth(0.0, seed=1), "gsm8k", "test", 0),
        ]
    ]
    correlations = np.corrcoef(signals)[np.triu_indices(len(signals), 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(len(case))
    assert Stream.PREDICTION != Stream.CERTAINTY


def test_noise_is_standard_normal_and_finite_at_the_ends():
    noise = standard_normal(raw_words("law", "test", 0, Stream.PREDICTION, 100_000))
    assert abs(noise.mean()) < 4 / math.sqrt(1e5)
    assert noise.std() == pytest.approx(1.0, abs=4 / math.sqrt(2e5))
    low, high = standard_normal(np.array([0, 2**64 - 1], np.uint64))
    assert -9 < low == -high < -8


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_fits_read_training_cases_only(name, split, nothing_remembered):
    read = []

    @dataclass(frozen=True)
    class Watched:
        name: str = "watched"

        def pool_size(self, split):
            read.append((split, None))
            return 5

        def requests(self, split, number, *, num_requests=None):
            read.append((split, number))
            return workload("gsm8k").requests(split, number)

    case = workload("gsm8k").requests(split, 0)
    predictor(name).predict(Watched(), split, 0, case)
    assert {number for _, number in read} == {None, *range(5)}, "the whole pool, as it is small"
    assert {split for split, _ in read} == {"train"}


def test_a_file_that_changed_is_fitted_again(tmp_path):
    path = tmp_path / "own.csv"
    means = []
    for step, length in enumerate((30, 90)):
        path.write_text("prompt_tokens,output_tokens\n" + f"20,{length}\n" * 50)
        os.utime(path, ns=(step, step))
        source = workload(path)
        case = source.requests("test", 0)
        means.append([float(one().predict(source, "test", 0, case).mean_tokens[0]) for one in PREDICTORS.values()])
    assert means[0] == pytest.approx([30.0] * len(PREDICTORS))
    assert means[1] == pytest.approx([90.0] * len(PREDICTORS))


def test_names():
    assert predictor("noisy") == NoisyTruth(0.6)
    assert predictor("noisy:0.8") == NoisyTruth(0.8)
    assert predictor("uneven:0.2:0.95") == predictor("uneven") == UnevenTruth((0.2, 0.95))
    for one in (*(make() for make in PREDICTORS.values()), NoisyTruth(1), UnevenTruth((0.5,))):
        assert isinstance(one, Predictor)
        assert predictor(one) is one
        assert predictor(one.name) == one == pickle.loads(pickle.dumps(one))
        assert hash(predictor(one.name)) == hash(one)
    assert NoisyTruth(0.8, seed=3).name == "noisy:0.8 (seed 3)"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("promt", UnknownNameError, "unknown predictor 'promt'. Did you mean 'prompt'"),
        ("noisy:0.8:3", UnknownNameError, "unknown predictor 'noisy:0.8:3'"),
        ("noisy:much", ConfigError, "'noisy:much': 'much' is not a number: write a correlation in [0, 1]"),
        ("noisy:", ConfigError, "'' is not a number"),
        ("noisy:1.5", ConfigError, "correlation = 1.5 is out of range: it must lie in [0, 1]"),
        ("noisy:nan", ConfigError, "correlation = nan is out of range"),
        ("uneven:0.5:-1", ConfigError, "correlation = -1.0 is out of range"),
        (
            3,
            ConfigError,
            "3 is not a predictor: pass a name (population, prompt, noisy, uneven, class, interval, noisy:0.8)",
        ),
        (NoisyTruth, ConfigError, "is not a predictor"),
    ],
)
def test_names_that_are_none(name, kind, words):
    with pytest.raises(kind) as caught:
        predictor(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NoisyTruth("much"), "correlation = 'much' is not a number"),
        (lambda: NoisyTruth(True), "correlation = True is not a number"),
        (lambda: NoisyTruth(seed=-1), "seed = -1 is out of range"),
        (lambda: NoisyTruth(seed=1.0), "seed = 1.0 is out of range"),
        (lambda: UnevenTruth(()), "correlations = () is not a tuple of at least one number"),
        (lambda: UnevenTruth([0.5]), "correlations = [0.5] is not a tuple"),
        (lambda: UnevenTruth(seed=True), "seed = True is out of range"),
    ],
)
def test_parameters_out_of_range(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


def test_what_cannot_be_hashed():
    class Loose(Coin):
        __hash__ = None

    class LoosePredictor(Population):
        __hash__ = None

    with pytest.raises(ConfigError, match="cannot be hashed, but what is fitted to it is kept by it"):
        Population().predict(Loose(), "test", 0, Coin().requests("test", 0))
    with pytest.raises(ConfigError, match="cannot be hashed, but cases are kept by it: make it a frozen dataclass"):
        predictor(LoosePredictor())


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        ([1.0, 2.0], [1.0], "sd_tokens has 1 entries but mean_tokens has 2"),
        ([1.0, math.nan], [0.0, 0.0], r"mean_tokens\[1\] = nan is out of range"),
        ([1.0, 2.0], [0.0, -1.0], r"sd_tokens\[1\] = -1.0 is out of range: give finite numbers of at least 0"),
        ([[1.0]], [0.0], r"mean_tokens has shape \(1, 1\)"),
    ],
)
def test_predictions_that_are_none(mean, sd, words):
    with pytest.raises(WorkloadError, match=words):
        Prediction(mean, sd)


def test_predictions_are_read_only_copies():
    given = np.ones(3)
    said = Prediction(given, given)
    given[:] = 7
    assert said.mean_tokens.tolist() == said.sd_tokens.tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="read-only"):
        said.sd_tokens[0] = 2


def test_estimated_tokens_on_paper():
    said = Prediction([100.0, 100.6, 0.2, 3.0, 2.0**24], [50.0, 0.0, 0.0, 2.0, 1.0])
    assert estimated_tokens(said).tolist() == [100, 101, 1, 3, MAX_TOKENS]
    assert estimated_tokens(said, 1.5).tolist() == [175, 101, 1, 6, MAX_TOKENS]
    assert estimated_tokens(said, -2).tolist() == [1, 101, 1, 1, MAX_TOKENS - 2]
    assert estimated_tokens(said, 1e6).tolist() == [MAX_TOKENS, 101, 1, 2_000_003, MAX_TOKENS]
    assert estimated_tokens(said).dtype == np.int32
    for weight in (math.nan, math.inf, -math.inf, 2e6):
        with pytest.raises(ConfigError, match=f"sd_weight = {weight} is out of range"):
            estimated_tokens(said, weight)
    with pytest.raises(ConfigError, match="sd_weight = 'one' is not a number"):
        estimated_tokens(said, "one")


PREDICTED = Scenario(split="test", queue="shared", lengths="predicted", predictor="prompt", num_requests=300)


def test_a_scenario_reads_its_predictor():
    scenario = PREDICTED.replace(predictor="noisy:0.7", sd_weight=1)
    case = scenario.source.requests("test", 4, num_requests=300)
    said = NoisyTruth(0.7).predict(scenario.source, "test", 4, case)
    expected = estimated_tokens(said, 1.0)
    assert (estimates(scenario, 4, case) == expected).all()
    assert (Futures(Simulator(build_problem(scenario, 4)), known=False).estimates == expected).all()
    assert scenario.describe()["predictor"] == "noisy:0.7"
    assert PREDICTED.replace(predictor=NoisyTruth(0.7)).describe()["predictor"] == "noisy:0.7"
    assert Scenario().describe()["predictor"] is None


def test_a_scenario_holds_no_truth():
    scenario = PREDICTED.replace(predictor=UnevenTruth((0.5, 0.9)))
    build_problem(scenario, 0)
    assert len(pickle.dumps(scenario)) < 2000
    assert not any(isinstance(value, np.ndarray) for value in vars(scenario.predictor).values())


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"predictor": "promt"}, UnknownNameError, "Did you mean 'prompt'"),
        ({"lengths": "hidden"}, ConfigError, "predictor = 'prompt' but lengths = 'hidden'"),
        ({"predictor": None, "sd_weight": 1.0}, ConfigError, "sd_weight = 1.0 but there is no predictor"),
        ({"sd_weight": math.nan}, ConfigError, "sd_weight = nan is out of range"),
        ({"sd_weight": True}, ConfigError, "sd_weight = True is not a number"),
    ],
)
def test_scenarios_that_contradict_themselves(changes, kind, words):
    with pytest.raises(kind) as caught:
        PREDICTED.replace(**changes)
    assert words in str(caught.value)


def test_a_predictor_of_ones_own_that_says_too_little():
    @dataclass(frozen=True)
    class Short:
        name: str = "short"

        def predict(self, workload, split, number, requests):
            return Prediction([1.0], [0.0])

    with pytest.raises(WorkloadError, match="predicts 1 lengths for 300 requests: it has to return one per request"):
        build_problem(PREDICTED.replace(predictor=Short()), 0)


def test_without_a_predictor_the_workload_has_to_bring_predictions():
    with pytest.raises(WorkloadError, match=r"has no predictions: give a file .*, or predictor='prompt'"):
        build_problem(PREDICTED.replace(predictor=None), 0)


def test_who_says_the_truth_be_it_of_some_requests_is_exact():
    for name, exact in (
        ("noisy:1", True),
        ("noisy:0.99", False),
        ("uneven:1", True),
        ("uneven:1:1", True),
        ("uneven:0.5:1", True),
        ("prompt", False),
    ):
        scenario = Scenario(workload="gamma", lengths="predicted", predictor=name)
        assert scenario.shows_lengths == exact, name
        requests = scenario.source.requests("test", 0)
        told = predictor(name).predict(scenario.source, "test", 0, requests).mean_tokens
        right = (told == requests.output_tokens).mean()
        assert right > 0.3 if exact else right < 0.1, name
