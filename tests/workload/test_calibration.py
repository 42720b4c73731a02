"""Fitting a cost model to recorded iterations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsched_env.calibration import fit_cost_model
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, FileFormatError, PathError

HEAD = "kind,prefill_tokens,active_clients,duration_s\n"
PREFILLS = "prefill,100,,0.020\nprefill,200,,0.030\nprefill,300,,0.040\n"
DECODES = "decode,,10,0.011\ndecode,,20,0.012\ndecode,,30,0.013\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "iterations.csv"
    path.write_text(text)
    return path


def test_a_fit_on_paper(tmp_path):
    # Prefill 10 ms + 0.1 ms a token; decode 10 ms + 0.1 ms a client.
    fitted = fit_cost_model(write(tmp_path, HEAD + PREFILLS + DECODES), name="mine")
    assert fitted.model == CostModel(
        "mine",
        10_000_000,
        100_000,
        10_000_000,
        100_000,
        prefill_token_cap=300,
        covers_prefill_tokens=(100, 300),
        covers_active_clients=(10, 30),
    )
    for fit in (fitted.prefill, fitted.decode):
        assert (fit.rows, fit.r_squared, fit.rms_error_ns, fit.at_zero) == (3, 1.0, 0.0, ())
        assert fit.standard_errors_ns == (0.0, 0.0)
    assert fitted.report().splitlines() == [
        "cost model 'mine' (ns)",
        "prefill: 10000000 (se 0) + 100000 (se 0) * prompt tokens; "
        "R2 = 1.0000, rms error 0 ms, 3 rows, 100-300 prompt tokens",
        "decode: 10000000 (se 0) + 100000 (se 0) * active clients; "
        "R2 = 1.0000, rms error 0 ms, 3 rows, 10-30 active clients",
    ]


COEFFICIENT = st.integers(1, 10**8)


@given(
    coefficients=st.tuples(COEFFICIENT, st.integers(1, 10**6), COEFFICIENT, st.integers(1, 10**6), st.integers(1, 100)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
def test_exact_recordings_give_their_model_back(tmp_path, coefficients, seed):
    alpha_p, beta_p, alpha_d, beta_d, gamma = coefficients
    truth = CostModel("truth", alpha_p, beta_p, alpha_d, beta_d, gamma_decode_ns=gamma)
    rng = np.random.default_rng(seed)
    lines = ["duration_s,context_tokens,active_clients,prefill_tokens,kind"]
    for tokens in rng.permutation(4000)[:20] + 1:
        lines.append(f"{truth.prefill_ns(int(tokens)) / 1e9:.9f},,,{tokens},prefill")
    for active, context in zip(rng.permutation(300)[:20] + 1, rng.permutation(100_000)[:20], strict=True):
        lines.append(f"{truth.decode_ns(int(active), int(context)) / 1e9:.9f},{context},{active},,decode")
    model = fit_cost_model(write(tmp_path, "\n".join(lines) + "\n"), prefill_token_cap=2048).model
    got = (model.alpha_prefill_ns, model.beta_prefill_ns, model.alpha_decode_ns, model.beta_decode_ns)
    np.testing.assert_allclose([*got, model.gamma_decode_ns], coefficients, atol=1)
    assert model.prefill_token_cap == 2048


def test_noise_lowers_r_squared_and_agrees_with_ordinary_least_squares(tmp_path):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 4000, 400)
    seconds = np.round(0.01 + 1e-4 * tokens + rng.normal(0, 0.003, 400), 9)
    text = HEAD + "".join(f"prefill,{t},,{s}\n" for t, s in zip(tokens, seconds, strict=True)) + DECODES
    fitted = fit_cost_model(write(tmp_path, text))
    slope, constant = np.polyfit(tokens, seconds * 1e9, 1)
    assert fitted.model.beta_prefill_ns == pytest.approx(slope, abs=1)
    assert fitted.model.alpha_prefill_ns == pytest.approx(constant, abs=2)
    assert fitted.prefill.r_squared == pytest.approx(np.corrcoef(tokens, seconds)[0, 1] ** 2, abs=1e-6)
    assert fitted.prefill.rms_error_ns == pytest.approx(0.003e9, rel=0.1)
    _, covariance = np.polyfit(tokens, seconds * 1e9, 1, cov=True)
    np.testing.assert_allclose(fitted.prefill.standard_errors_ns, np.sqrt(np.diag(covariance))[::-1], rtol=1e-3)


def test_a_poor_fit_and_a_narrow_range_are_said(tmp_path):
    poor = "prefill,100,,0.03\nprefill,110,,0.01\nprefill,120,,0.03\nprefill,130,,0.02\n"
    lines = fit_cost_model(write(tmp_path, HEAD + poor + DECODES)).report().splitlines()
    assert any(line.startswith("prefill: R2 = ") and "is below 0.9" in line for line in lines)
    assert any("prefill: 100-130 prompt tokens are a narrow range" in line for line in lines)
    assert not any(line.startswith("decode: R2") or "10-30 active clients are" in line for line in lines)


def test_a_negative_coefficient_becomes_zero_and_is_reported(tmp_path):
    # The line through these durations has the constant -10 ms; through the origin, least squares gives 6/70 s a token.
    falling = "prefill,100,,0.000000001\nprefill,200,,0.010\nprefill,300,,0.020\n"
    fitted = fit_cost_model(write(tmp_path, HEAD + falling + DECODES))
    assert fitted.model.alpha_prefill_ns == 0
    assert fitted.model.beta_prefill_ns == round((200 * 10e6 + 300 * 20e6 + 100) / 140_000)
    assert fitted.prefill.at_zero == ("constant",)
    assert fitted.prefill.r_squared < 1
    assert "prefill: constant fitted as 0; check that the recording varies enough" in fitted.report()


def test_times_that_do_not_vary_are_a_constant(tmp_path):
    flat = "prefill,100,,0.02\nprefill,200,,0.02\nprefill,300,,0.02\n"
    fitted = fit_cost_model(write(tmp_path, HEAD + flat + DECODES))
    assert (fitted.model.alpha_prefill_ns, fitted.model.beta_prefill_ns) == (20_000_000, 0)
    assert (fitted.prefill.r_squared, fitted.prefill.at_zero) == (1.0, ("prefill_tokens",))


CONTEXT = "kind,prefill_tokens,active_clients,context_tokens,duration_s\n"
CONTEXT_PREFILLS = PREFILLS.replace(",,", ",,,")


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("kind,tokens,duration_s\n", 1, "prefill_tokens", "is missing, but there is 'tokens'"),
        (HEAD, 1, None, "has a header but no rows"),
        (HEAD + DECODES, None, "kind", "has 0 prefill lines: record at least 3"),
        (
            HEAD + PREFILLS + DECODES.removesuffix("decode,,30,0.013\n"),
            None,
            "kind",
            "has 2 decode lines: record at least 3",
        ),
        (HEAD + "mixed,1,1,0.1\n", 2, "kind", "'mixed' is not a kind of iteration: write prefill or decode"),
        (HEAD + "prefill,100,,-0.02\n", 2, "duration_s", "'-0.02' is out of range: write the iteration's seconds"),
        (HEAD + "prefill,100,,0\n", 2, "duration_s", "'0' is no time"),
        (HEAD + "prefill,100,,nan\n", 2, "duration_s", "'nan' is not a finite number"),
        (HEAD + "prefill,100,,20000\n", 2, "duration_s", "'20000' is out of range"),
        (HEAD + "prefill,,10,0.02\n", 2, "prefill_tokens", "is blank: write a whole number"),
        (HEAD + PREFILLS + "decode,5,,0.02\n", 5, "active_clients", "is blank"),
        (HEAD + "prefill,0,,0.02\n", 2, "prefill_tokens", "'0' is out of range"),
        (HEAD + "prefill,100,,0.02\n" * 3 + DECODES, None, "prefill_tokens", "is 100 on every prefill line"),
        (CONTEXT + CONTEXT_PREFILLS + "decode,,1,-1,0.1\n", 5, "context_tokens", "'-1' is out of range"),
        (
            CONTEXT + CONTEXT_PREFILLS + "".join(f"decode,,{k},{100 * k},0.0{k}\n" for k in range(1, 6)),
            None,
            "context_tokens",
            "follows from the other columns on the decode lines: vary it, or leave it out",
        ),
    ],
)
def test_bad_recordings(tmp_path, text, line, column, words):
    path = write(tmp_path, text)
    with pytest.raises(FileFormatError) as caught:
        fit_cost_model(path)
    assert words in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_bad_arguments(tmp_path):
    path = write(tmp_path, HEAD + PREFILLS + DECODES)
    with pytest.raises(ConfigError, match="prefill_token_cap = 0 is below 1"):
        fit_cost_model(path, prefill_token_cap=0)
    with pytest.raises(PathError, match="cannot read"):
        fit_cost_model(tmp_path / "none.csv")
