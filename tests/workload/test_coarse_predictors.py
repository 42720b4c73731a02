"""Predictors that know a class of lengths: on paper, and true to what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload import LengthClass, LengthInterval, Requests, estimated_tokens, predictor, workload


@dataclass(frozen=True)
class Eight:
    """Training lengths 1, 2, 3, 4, 10, 20, 30, 40; test lengths 4, 5, 10, 99."""

    name: str = "eight"

    def pool_size(self, split):
        return 1

    def requests(self, split, number, *, num_requests=None):
        outputs = [4, 5, 10, 99] if split == "test" else [1, 2, 3, 4, 10, 20, 30, 40]
        return Requests.of([7] * len(outputs), outputs)


def told(name):
    return predictor(name).predict(Eight(), "test", 0, Eight().requests("test", 0))


def test_a_bit_on_paper():
    """The upper half begins at 10. Means (1 + 2 + 3 + 4) / 4 = 2.5 and 25, variances 1.25 and 125."""
    said = told("class:2")
    assert said.mean_tokens.tolist() == [2.5, 2.5, 25.0, 25.0]
    assert said.sd_tokens.tolist() == pytest.approx([1.25**0.5] * 2 + [125**0.5] * 2, abs=1e-6)


def test_intervals_on_paper():
    """Four classes: from 1, 3, 10 and 30 on. The last ends at 40, the longest that was seen."""
    said = told("interval:4")
    assert estimated_tokens(said, -1.0).tolist() == [3, 3, 10, 30]
    assert estimated_tokens(said, 1.0).tolist() == [9, 9, 29, 40]


@pytest.mark.parametrize("source", ["gsm8k", "gsm8k-smooth", "lognormal"])
def test_a_length_lies_in_its_interval(source):
    case = workload(source).requests("test", 0)
    said = predictor("interval:10").predict(workload(source), "test", 0, case)
    least, most = estimated_tokens(said, -1.0), estimated_tokens(said, 1.0)
    assert (least <= case.output_tokens).all()
    assert (most >= case.output_tokens).mean() > 0.999
    # More than half of GSM8K's outputs end at 512 tokens: one class instead of five.
    assert len(np.unique(least)) == (6 if source == "gsm8k" else 10)
    error = case.output_tokens - predictor("class:2").predict(workload(source), "test", 0, case).mean_tokens
    assert abs(error.mean()) < 4 * case.output_tokens.std() / len(case) ** 0.5


def test_one_class_knows_the_population():
    case = workload("gsm8k").requests("test", 0)
    one, all_of_them = (
        predictor(name).predict(workload("gsm8k"), "test", 0, case) for name in ("class:1", "population")
    )
    np.testing.assert_allclose(one.mean_tokens, all_of_them.mean_tokens)


def test_names():
    assert predictor("class") == LengthClass(2)
    assert predictor("interval:3") == LengthInterval(3)
    assert predictor(LengthInterval(3).name) == LengthInterval(3)
    assert not Scenario(lengths="predicted", predictor="class:2").shows_lengths
    with pytest.raises(UnknownNameError, match="unknown predictor 'class:2:3'"):
        predictor("class:2:3")
    with pytest.raises(ConfigError, match="'interval:many': 'many' is not a whole number: write how many classes"):
        predictor("interval:many")
    for wrong in (0, 2000, True, 2.0):
        with pytest.raises(ConfigError, match=rf"classes = {wrong} is out of range: pass an int in \[1, 1024\]"):
            LengthClass(wrong)
