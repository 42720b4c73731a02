"""The GSM8K cases: moments, splits, pairing, and digests that hold for ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.errors import ConfigError, FileFormatError, UnknownNameError
from llmsched_env.workload import POOL_SIZES, SPLITS, WORKLOADS, Gsm8kSmoothWorkload, Gsm8kWorkload, workload
from llmsched_env.workload import embed as embed_module
from llmsched_env.workload.draws import Stream, raw_words, uniform_53
from llmsched_env.workload.gsm8k import FAMILY, NUM_REQUESTS, _split_rows

ROOT = Path(__file__).parents[2]
FULL_TABLES = ROOT.parent / "shared" / "data"
GSM8K, SMOOTH = Gsm8kWorkload(), Gsm8kSmoothWorkload()

# Of the 712 cases of the default pools, in order. A change here makes every published number and every shipped
# assignment worthless: it is never the test that is wrong.
POOL_DIGESTS = {
    "gsm8k": "42b5bf87651eca0d85800fa6feb95a1b1642a357c2cae62425166f7502d7b7f4",
    "gsm8k-smooth": "b8fe04ecdb4ed62b2da7caa0fce30b31035cbf7376757b441a60587d6bc60807",
}


@pytest.mark.parametrize("name", POOL_DIGESTS)
def test_default_pools_never_change(name):
    whole = hashlib.sha256()
    cases = [(split, number) for split in SPLITS for number in range(POOL_SIZES[split])]
    assert len(cases) == 712
    for split, number in cases:
        whole.update(bytes.fromhex(WORKLOADS[name].requests(split, number).digest()))
    assert whole.hexdigest() == POOL_DIGESTS[name]


@pytest.mark.parametrize(
    ("name", "split", "number", "size", "digest"),
    [
        ("gsm8k", "train", 0, None, "324516a6376cfcddb7919ab1b95b6699"),
        ("gsm8k", "validation", 7, None, "7b5d641cc2fd93ef06a8aa20af4fd552"),
        ("gsm8k", "test", 99, None, "3592b9a942af66f9c6abb4e308b9c86f"),
        ("gsm8k", "test", 0, 5000, "20b3237a07d13d1a7606616562b011ed"),
        ("gsm8k-smooth", "train", 0, None, "c497badf30d1364d82c502a370200bfa"),
        ("gsm8k-smooth", "validation", 7, None, "1ae334ab561288eee775425d5762056d"),
        ("gsm8k-smooth", "test", 99, None, "276950a66bb87c08227683819555b917"),
        ("gsm8k-smooth", "test", 0, 5000, "f1b11a3050b1b61c73439e8b2d730a9f"),
    ],
)
def test_golden_cases(name, split, number, size, digest):
    assert workload(name).requests(split, number, num_requests=size).digest()[:32] == digest


def test_embedded_prompts_have_the_published_moments():
    prompt, answer = _split_rows("test")
    # The paper's 25.04 is the population sd (ddof 0); with ddof 1 it would be 25.05.
    assert round(float(prompt.mean()), 2) == 68.43
    assert round(float(prompt.std()), 2) == 25.04
    assert (int(prompt.sum()), int(answer.sum())) == (90258, 173878)
    train = [_split_rows(split) for split in ("train", "validation")]
    assert [len(rows[0]) for rows in train] == [6000, 1473]
    assert (sum(int(p.sum()) for p, _ in train), sum(int(a.sum()) for _, a in train)) == (499242, 968402)


def test_output_moments_in_closed_form():
    mean, sd = GSM8K.output_moments("test")
    assert (round(mean, 1), round(sd, 1)) == (345.2, 191.9)
    # On paper: 0.56 * 512 + 0.44 * (173878 / 1319 + 1).
    assert mean == pytest.approx(286.72 + 0.44 * (131.825625473844 + 1), abs=1e-9)
    for split in ("train", "validation"):
        mean, sd = GSM8K.output_moments(split)
        assert mean == pytest.approx(344.2, abs=0.1)
        assert sd == pytest.approx(193.1, abs=0.1)


@pytest.mark.parametrize("split", SPLITS)
def test_a_hundred_cases_have_the_population_moments(split):
    output = np.concatenate([GSM8K.requests(split, number).output_tokens for number in range(100)])
    mean, sd = GSM8K.output_moments(split)
    assert abs(output.mean() - mean) < 4 * sd / np.sqrt(len(output))
    assert output.std() == pytest.approx(sd, rel=0.01)
    # No answer is as long as the cap, so the share at the cap is the probability.
    assert np.mean(output == 512) == pytest.approx(0.56, abs=4 * np.sqrt(0.56 * 0.44 / len(output)))


@pytest.mark.parametrize("split", SPLITS)
def test_a_case_has_distinct_rows_of_its_own_split(split):
    case = GSM8K.requests(split, 5)
    assert len(case) == NUM_REQUESTS
    assert not case.release_ns.any()
    assert case.predicted_tokens is None
    prompt, answer = _split_rows(split)
    rows = np.sort(prompt.astype(np.int64) * 1000 + answer + 1)
    stopped = case.output_tokens < 512
    assert 0 < stopped.sum() < len(case), "all at the cap or none: nothing to compare"
    keys = case.prompt_tokens.astype(np.int64)[stopped] * 1000 + case.output_tokens[stopped]
    values, drawn = np.unique(keys, return_counts=True)
    have = np.searchsorted(rows, values, side="right") - np.searchsorted(rows, values, side="left")
    assert (drawn <= have).all()
    if split == "test":
        np.testing.assert_array_equal(np.sort(case.prompt_tokens), np.sort(prompt))


def test_cases_differ_in_order_and_in_who_runs_to_the_cap():
    one, two = GSM8K.requests("test", 0), GSM8K.requests("test", 1)
    assert (one.prompt_tokens != two.prompt_tokens).any()
    assert ((one.output_tokens == 512) != (two.output_tokens == 512)).any()


def test_mean_is_the_population_not_the_sample():
    for item in (GSM8K, SMOOTH):
        means = {item.requests("test", number).mean_output_tokens for number in range(3)}
        assert means == {345.163275}
        assert item.requests("test", 0).output_tokens.mean() not in means


@pytest.mark.parametrize("size", [None, 50, 2000])
def test_smooth_has_the_same_prompts_case_for_case(size):
    for split in SPLITS:
        np.testing.assert_array_equal(
            GSM8K.requests(split, 3, num_requests=size).prompt_tokens,
            SMOOTH.requests(split, 3, num_requests=size).prompt_tokens,
        )


def test_smooth_law_is_derived_from_the_test_split():
    law = SMOOTH.output_law
    assert (law.family, law.mean_tokens, law.sd_tokens) == ("gamma", *GSM8K.output_moments("test"))
    mean, sd = law.moments()
    assert mean == pytest.approx(law.mean_tokens, abs=1e-6)  # clipping at 1 moves it less
    assert sd**2 == pytest.approx(law.sd_tokens**2 + 1 / 12, abs=1e-3)  # rounding
    output = np.concatenate([SMOOTH.requests("train", number).output_tokens for number in range(100)])
    assert abs(output.mean() - mean) < 4 * sd / np.sqrt(len(output))
    assert output.std() == pytest.approx(sd, rel=0.01)


def test_smooth_pools_lie_far_from_every_threshold():
    # Another build of the gamma function may move a threshold by some units of 2**-53. No draw of the default pools
    # is within 2**20 of one, 1e-10 of probability, so no such build changes a case.
    table = np.concatenate([[0], SMOOTH.output_law.thresholds(), [2**53]]).astype(np.uint64)
    nearest = 2**53
    for split in SPLITS:
        for number in range(POOL_SIZES[split]):
            draws = uniform_53(raw_words(FAMILY, split, number, Stream.OUTPUT, NUM_REQUESTS))
            above = np.searchsorted(table, draws, side="right")
            nearest = min(nearest, int((draws - table[above - 1]).min()), int((table[above] - draws).min()))
    assert 2**20 < nearest < 2**40


def test_scaled_case_draws_rows_with_replacement():
    case = GSM8K.requests("test", 0, num_requests=100_000)
    assert len(case) == 100_000
    prompt, _ = _split_rows("test")
    assert set(np.unique(case.prompt_tokens)) == set(np.unique(prompt))
    assert case.prompt_tokens.mean() == pytest.approx(prompt.mean(), abs=4 * prompt.std() / np.sqrt(100_000))
    fewer = GSM8K.requests("test", 0, num_requests=100)
    np.testing.assert_array_equal(fewer.output_tokens, case.output_tokens[:100])


def test_natural_size_may_be_given_in_words():
    assert GSM8K.requests("train", 2, num_requests=1319).digest() == GSM8K.requests("train", 2).digest()


def test_cap_is_a_parameter():
    all_at_cap = Gsm8kWorkload(cap_probability=1.0, cap_tokens=100).requests("test", 0)
    assert (all_at_cap.output_tokens == 100).all()
    assert all_at_cap.mean_output_tokens == 100.0
    never = Gsm8kWorkload(cap_probability=0.0, cap_tokens=100).requests("test", 0)
    assert never.output_tokens.max() == 100
    assert never.mean_output_tokens == pytest.approx(never.output_tokens.mean())  # all rows, so sample = population
    with pytest.raises(ConfigError, match=r"cap_probability = 1\.5 is out of range: it must lie in \[0, 1\]"):
        Gsm8kWorkload(cap_probability=1.5)
    with pytest.raises(ConfigError, match=r"cap_tokens = 0 is out of range: pass an int"):
        Gsm8kWorkload(cap_tokens=0)


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_bad_cases_are_refused(name):
    item = WORKLOADS[name]
    with pytest.raises(UnknownNameError, match=r"unknown split 'tset'\. Did you mean 'test'\?"):
        item.requests("tset", 0)
    with pytest.raises(UnknownNameError, match="unknown split 3"):
        item.pool_size(3)
    with pytest.raises(ConfigError, match=r"case number -1 is out of range: cases are numbered from 0"):
        item.requests("test", -1)
    for number in (True, 1.0, "1", None):
        with pytest.raises(ConfigError, match=r"case number .* is not a whole number: pass an int"):
            item.requests("test", number)
    for size in (0, -3, 2**24 + 1):
        with pytest.raises(ConfigError, match=rf"num_requests = {size} is out of range: a case has 1 to 16777216"):
            item.requests("test", 0, num_requests=size)
    with pytest.raises(ConfigError, match="num_requests True is not a whole number"):
        item.requests("test", 0, num_requests=True)
    assert item.requests("test", np.int64(3)).digest() == item.requests("test", 3).digest()


def _tables(folder: Path, *, rows: int = 1319, cell: str = "7") -> Path:
    for part, count in (("train", 7473), ("test", rows)):
        lines = ["index,question_tokens,answer_tokens", *(f"{i},{i % 90 + 5},7" for i in range(count - 1))]
        (folder / f"gsm8k_{part}_lengths.csv").write_text("\n".join([*lines, f"{count - 1},9,{cell}"]) + "\n")
    return folder


def test_embed_keeps_two_columns_in_order(tmp_path, capsys):
    assert embed_module.main([str(_tables(tmp_path)), "--out", str(tmp_path / "out")]) == 0
    assert "gsm8k_test_tokens.csv" in capsys.readouterr().out
    lines = (tmp_path / "out" / "gsm8k_test_tokens.csv").read_bytes().decode().split("\n")
    assert lines[:3] == ["prompt_tokens,answer_tokens", "5,7", "6,7"]
    assert len(lines) == 1321


def test_embed_refuses_a_table_that_is_not_whole(tmp_path, capsys):
    with pytest.raises(FileFormatError, match="has 1318 rows, GSM8K test has 1319: use it whole"):
        embed_module.embed(_tables(tmp_path, rows=1318), tmp_path / "out")
    assert embed_module.main([str(_tables(tmp_path, cell="x")), "--out", str(tmp_path / "out")]) == 1
    assert "line 7474, column 'answer_tokens': 'x' is not a finite number" in capsys.readouterr().err


def test_embedded_files_are_what_embed_makes(tmp_path):
    if not FULL_TABLES.is_dir():
        pytest.skip("the full tables of token counts are not beside this checkout")
    for written in embed_module.embed(FULL_TABLES, tmp_path):
        shipped = ROOT / "llmsched_env" / "workload" / "data" / written.name
        assert written.read_bytes() == shipped.read_bytes()
