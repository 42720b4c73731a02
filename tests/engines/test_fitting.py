"""What a recording with noise says, and what it cannot say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from simulated import TRUTH, recorded

from llmsched_env.cost import MeasuredCost, MixedCost, as_fit, cost_model, read_fit
from llmsched_env.engines.fitting import fit_recording, pooled
from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError


@pytest.fixture(scope="module")
def plain():
    return recorded()


def lasting(recording, durations_ns):
    """The recording with other durations, its iterations one after another, its requests as they were."""
    rows = recording.iterations.copy()
    rows["duration_ns"] = durations_ns
    rows["start_ns"] = np.cumsum(durations_ns) - durations_ns
    requests = recording.requests.copy()
    requests["arrival_ns"] = 0
    requests["finished_ns"] = int(durations_ns.sum())
    return replace(recording, iterations=rows, requests=requests)


def noisy(recording, seed=0, sd=0.05):
    factors = np.exp(np.random.default_rng(seed).normal(0, sd, len(recording.iterations)))
    return lasting(recording, (recording.iterations["duration_ns"] * factors).astype(np.int64))


def test_standard_errors_cover_the_truth(plain):
    """In most of twenty recordings each coefficient lies within two standard errors."""
    inside = []
    for seed in range(20):
        fit = fit_recording(noisy(plain, seed))
        assert not fit.context.used
        for value, error, true in zip(
            (fit.model.alpha_decode_ns, fit.model.beta_decode_ns, fit.model.mixed.beta_prompt_ns),
            (*fit.decode.standard_errors_ns, fit.mixed.standard_errors_ns[1]),
            (TRUTH.alpha_decode_ns, TRUTH.beta_decode_ns, TRUTH.mixed.beta_prompt_ns),
            strict=True,
        ):
            assert error > 0
            inside.append(abs(value - true) <= 2 * error)
    assert 0.8 <= np.mean(inside) <= 1.0


def test_stalls_do_not_move_the_fit(plain):
    """One iteration in forty lasts ten times as long: the coefficients stay, and the excess says what they cost."""
    stalled = np.random.default_rng(1).random(len(plain.iterations)) < 1 / 40
    assert 3 < stalled.sum() < 40
    fit = fit_recording(lasting(plain, plain.iterations["duration_ns"] * np.where(stalled, 10, 1)))
    assert fit.outliers > 0
    assert fit.model.beta_decode_ns == pytest.approx(TRUTH.beta_decode_ns, rel=0.02)
    assert fit.model.alpha_decode_ns == pytest.approx(TRUTH.alpha_decode_ns, rel=0.02)
    assert 0.05 < fit.excess < 1.0
    assert f"all iterations together last {fit.excess:.2%} longer than modelled" in fit.report()


def test_repeats_count_as_their_median():
    """Decodes of 1 and of 2 clients, five times each, with one straggler each: 3 ms and 4 ms in the median."""
    base = recorded(within_ns=0)
    reads = base.iterations["prefill_tokens"] > 0
    some = np.concatenate([base.iterations[reads][:20], base.iterations[~reads][:10]])
    some["decode_requests"][20:], some["context_tokens"][20:] = [1] * 5 + [2] * 5, [10] * 5 + [20] * 5
    lasts = np.array([*some["duration_ns"][:20], *[3_000_000] * 4, 9_000_000, 4_000_000, 1_000_000, *[4_000_000] * 3])
    fit = fit_recording(lasting(replace(base, iterations=some), lasts))
    assert (fit.model.alpha_decode_ns, fit.model.beta_decode_ns) == (2_000_000, 1_000_000)
    assert fit.decode.rows == 10


def other_first_decodes(recording, extra_ns, *, after_mixed=False):
    """The recording with longer decodes after a prefill, or after a mixed iteration, and how many they are."""
    reads, decodes = recording.iterations["prefill_tokens"] > 0, recording.iterations["decode_requests"] > 0
    follows = np.zeros(len(reads), bool)
    follows[1:] = (reads & (decodes == after_mixed))[:-1] & ~reads[1:]
    return lasting(recording, recording.iterations["duration_ns"] + np.where(follows, extra_ns, 0)), int(follows.sum())


@pytest.fixture(scope="module")
def exclusive():
    return recorded("threshold", mixes=False)


@pytest.mark.parametrize("within_ns", [0, 4 * 10**9])
def test_a_longer_first_decode_is_in_the_model(within_ns):
    """Where larger decodes follow prefills, too."""
    slower, rows = other_first_decodes(recorded("threshold", mixes=False, within_ns=within_ns), 400_000)
    assert rows > 15
    fit = fit_recording(noisy(slower, sd=0.01))
    after = fit.after_prefill
    assert (after.shown, after.used, after.rows) == (True, True, rows)
    assert after.t > 4
    assert after.extra_ns == pytest.approx(400_000, rel=0.2)
    assert fit.model.first_decode_ns == pytest.approx(400_000, rel=0.2)
    assert fit.model.beta_decode_ns == pytest.approx(TRUTH.beta_decode_ns, rel=0.02)
    assert fit.model.alpha_decode_ns == pytest.approx(TRUTH.alpha_decode_ns, rel=0.05)
    assert abs(fit.excess) < 0.01
    told = fit.report()
    assert f"+ {fit.model.first_decode_ns} (se " in told
    assert f"first decode after a prefill: differs: {after.extra_ns / 1e6:+.3g} ms in the median of {rows} (" in told
    assert "); in the model" in told
    read = json.loads(json.dumps(fit.as_json()))
    assert read["cost_model"]["first_decode_ns"] == fit.model.first_decode_ns
    assert read["fit"]["after_prefill"]["used"] is True


def test_a_first_decode_that_lasts_no_longer_is_left_out(plain, exclusive):
    same = fit_recording(noisy(exclusive, sd=0.01))
    assert (same.after_prefill.shown, same.after_prefill.used, same.model.first_decode_ns) == (False, False, 0)
    assert "first decode after a prefill: shows no difference that matters" in same.report()
    shorter, rows = other_first_decodes(exclusive, -400_000)
    fit = fit_recording(noisy(shorter, sd=0.01))
    assert (fit.after_prefill.shown, fit.after_prefill.used, fit.model.first_decode_ns) == (True, False, 0)
    assert fit.after_prefill.rows == rows
    assert fit.after_prefill.extra_ns < -200_000
    assert "); not in the model" in fit.report()
    after_mixed, rows = other_first_decodes(plain, 400_000, after_mixed=True)
    assert rows > 15
    fit = fit_recording(noisy(after_mixed, sd=0.01))
    assert (fit.after_prefill.used, fit.model.first_decode_ns) == (False, 0)


def test_older_files_have_no_first_decode(tmp_path):
    path = tmp_path / "cost.json"
    told = json.loads(json.dumps(as_fit(replace(TRUTH, first_decode_ns=7))))
    path.write_text(json.dumps(told))
    assert read_fit(path) == replace(TRUTH, first_decode_ns=7)
    del told["cost_model"]["first_decode_ns"]
    path.write_text(json.dumps(told))
    assert read_fit(path) == TRUTH


def test_no_quality_without_variety(plain):
    reads = plain.iterations["prefill_tokens"] > 0
    with pytest.raises(ConfigError, match="has 0 iterations that only decode, none: record a load"):
        fit_recording(replace(plain, iterations=plain.iterations[reads]))
    same = plain.iterations[~reads & (plain.iterations["decode_requests"] == 3)]
    assert len(same) > 3
    with pytest.raises(ConfigError, match="that only decode, all of 3 requests"):
        fit_recording(replace(plain, iterations=np.concatenate([plain.iterations[reads], same])))
    with pytest.raises(ConfigError, match="has 0 iterations that only read prompts, of 0 sizes"):
        fit_recording(replace(plain, iterations=plain.iterations[~reads]))


def test_prefills_that_are_few_are_priced_as_mixed_iterations():
    few = recorded(within_ns=0)
    fit = fit_recording(few)
    assert fit.prefill_from_mixed
    assert (fit.model.alpha_prefill_ns, fit.model.beta_prefill_ns) == (3_100_000, 21_000)
    assert "of the mixed iterations: fewer than 8 iterations of 4 sizes" in fit.report()


def test_the_file_comes_back_and_names_a_cost_model(tmp_path, plain):
    fit = fit_recording(plain, name="mine")
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(fit.as_json()))
    assert read_fit(path) == fit.model == cost_model(f"fit:{path}") == cost_model(f"fit:{tmp_path}")
    assert fit.model.mixed == MixedCost(False, 3_100_000, 21_000, 290_000)
    told = json.loads(path.read_text())["fit"]
    assert told["decode"]["r_squared"] == 1.0
    assert told["context"]["used"] is False


def test_files_that_are_no_cost_model(tmp_path):
    with pytest.raises(PathError, match=r"cannot read the cost model .*none\.json"):
        cost_model(f"fit:{tmp_path / 'none.json'}")
    with pytest.raises(PathError, match=r"has no cost\.json: if it is a recording, run 'llmsched engines calibrate"):
        cost_model(f"fit:{tmp_path}")
    with pytest.raises(PathError, match="give a file that"):
        cost_model("fit:")
    path = tmp_path / "cost.json"
    for text, words in (
        ("{", "is no cost model"),
        ("[]", "is no cost model"),
        ('{"format": 7}', "has format 7: this version reads format 1"),
        ('{"format": 1}', "has no 'cost_model'"),
        ('{"format": 1, "cost_model": {"mixed": null}}', "is no cost model"),
    ):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=words):
            cost_model(f"fit:{path}")
    plain = {f"{a}_{b}_ns": -1 for a in ("alpha", "beta") for b in ("prefill", "decode")}
    ranges = {"covers_prefill_tokens": None, "covers_active_clients": None, "prefill_levels": []}
    path.write_text(json.dumps({"format": 1, "cost_model": {"name": "x", "mixed": None, **plain, **ranges}}))
    with pytest.raises(FileFormatError, match=r"is no cost model \(alpha_prefill_ns = -1 is out of range"):
        cost_model(f"fit:{path}")
    with pytest.raises(UnknownNameError, match="unknown cost preset 'fit'"):
        cost_model("fit")


def test_a_measured_cost_is_a_cost_model():
    assert isinstance(TRUTH.with_cap(99), MeasuredCost)
    assert TRUTH.with_cap(99).mixed == TRUTH.mixed
    assert TRUTH.is_affine


def test_recordings_are_fitted_together(plain):
    """vLLM's own scheduling and a policy's: the report names both, and each half comes from where it was seen."""
    exclusive = replace(recorded("threshold", mixes=False), parameters=(4,), engine=plain.engine, version=plain.version)
    fit = fit_recording(pooled([replace(plain, name="own"), replace(exclusive, name="rule")]))
    assert f"from recording 'own+rule' of {plain.engine}" in fit.report()
    assert f"{plain.decided_by} and threshold(4) decided" in fit.report()
    assert not fit.prefill_from_mixed
    assert fit.mixed is not None
    assert (fit.model.alpha_prefill_ns, fit.model.mixed) == (TRUTH.alpha_prefill_ns, TRUTH.mixed)
    with pytest.raises(ConfigError, match="Give those of one engine"):
        pooled([plain, replace(exclusive, version="another")])
