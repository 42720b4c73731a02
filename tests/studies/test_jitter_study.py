"""The study of jitter and wrong models, at a size of seconds."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env.baselines import iteration
from llmsched_env.baselines import lagrangian as readings
from llmsched_env.cases import build_problem
from llmsched_env.cost import cost_model
from llmsched_env.engine import codes
from llmsched_env.evaluation import evaluate
from llmsched_env.studies import jitter
from llmsched_env.studies.jitter import (
    COEFFICIENTS,
    FORESIGHT,
    IN_BATCHES,
    PRESET,
    QUIET,
    RIGHT,
    SLOWER,
    STRAGGLERS,
    WORLDS,
    batch,
    measure_batch,
    measure_noise,
    quiet,
    serving,
    wrong_models,
)
from llmsched_env.studies.study import Options, run


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(jitter, "LOADS", (0.9,))
    monkeypatch.setattr(jitter, "WRONG_LOADS", (0.9,))
    monkeypatch.setattr(jitter, "LENGTHS", {"gsm8k": "GSM8K"})
    models = {name: model for name, model in wrong_models().items() if name in (RIGHT, "α_p +20 %", "β_d -20 %")}
    monkeypatch.setattr(jitter, "wrong_models", lambda: models)
    served = jitter.serving
    monkeypatch.setattr(jitter, "serving", lambda *given, **more: served(*given, **more).replace(num_requests=150))
    monkeypatch.setattr(jitter, "tuned_in", lambda scenario, name, cases: jitter.tuned_rules(quiet(0.9), [name])[name])


def test_wrong_models():
    models, right = wrong_models(), cost_model(PRESET)
    assert models[RIGHT] is right
    assert len(models) == 1 + 2 * (len(COEFFICIENTS) + 1)
    assert models["α_p -20 %"].alpha_prefill_ns == round(0.8 * right.alpha_prefill_ns)
    assert models["α_p -20 %"].beta_prefill_ns == right.beta_prefill_ns
    assert models["all +20 %"].beta_decode_ns == round(1.2 * right.beta_decode_ns)
    assert {model.prefill_token_cap for model in models.values()} == {right.prefill_token_cap}


def test_all_worlds_have_the_same_requests_at_the_same_times():
    usual = build_problem(quiet(0.9), 0)
    for changes in WORLDS.values():
        made = build_problem(serving(0.9, **changes), 0)
        assert (made.release_ns == usual.release_ns).all()
        assert (made.requests[:, [codes.PROMPT, codes.OUTPUT]] == usual.requests[:, [codes.PROMPT, codes.OUTPUT]]).all()
    slower = serving(0.9, **WORLDS[SLOWER]).cost_model
    assert slower.alpha_decode_ns == round(1.09 * cost_model(PRESET).alpha_decode_ns)


def test_stragglers_take_as_much_time_in_the_mean_as_the_slower_world():
    for name in (STRAGGLERS, jitter.RARE):
        world = WORLDS[name]
        assert 1 + world["straggler_probability"] * (world["straggler_factor"] - 1) == pytest.approx(1.09)
    spent = {}
    for name in (STRAGGLERS, SLOWER, QUIET):
        scenario = batch("gsm8k", 20).replace(workload="gsm8k", num_requests=1319)
        changes = dict(WORLDS[name])
        if changes.pop("slower", None):
            changes["cost"] = serving(0.9, slower=1.09).cost_model
        found = evaluate(iteration.prefill_first(), scenario.replace(**changes), 6).columns["makespan_s"]
        spent[name] = found.mean()
    assert spent[SLOWER] / spent[QUIET] == pytest.approx(1.09, abs=1e-4)
    assert spent[STRAGGLERS] / spent[QUIET] == pytest.approx(1.09, abs=0.02)


def test_what_wrong_models_cannot_change():
    """Betas no Lagrangian price; a unit of time no ratio; nothing a rule that reads no model."""
    right = measure_batch("gsm8k", 20, RIGHT, 2)
    for believed in ("β_p -20 %", "β_d +20 %", "all +20 %"):
        wrong = measure_batch("gsm8k", 20, believed, 2)
        for name in ("λ = 1", "λ lookahead", "hybrid, LPT queues", "rollout of λ = 1", "beam, width 1", "eb threshold"):
            assert wrong[name] == right[name], (believed, name)
    wrong = measure_batch("gsm8k", 20, "α_p +20 %", 2)
    assert wrong["λ = 1"] != right["λ = 1"]
    deceived = serving(0.9, believed_cost=wrong_models()["all +20 %"])
    for rule in (iteration.deadline(), readings.lagrangian(), iteration.prefill_first()):
        here, there = (
            evaluate(rule, scenario.replace(num_requests=400, order="fcfs"), 2, latencies=False).columns["goodput"]
            for scenario in (deceived, serving(0.9))
        )
        assert np.array_equal(here, there), rule.name


def test_a_price_too_high_is_a_multiplier_too_high():
    """With alpha_p off by a fifth the Lagrangian rule is that of lambda = 1.2 in the right world."""
    scenario = batch("gsm8k", 20)
    wrong = evaluate(readings.lagrangian(), scenario.replace(believed_cost=wrong_models()["α_p +20 %"]), 3)
    right = evaluate(readings.lagrangian(1.2), scenario, 3)
    assert np.array_equal(wrong.columns["makespan_s"], right.columns["makespan_s"])


def test_noise_in_batches_is_the_same_for_every_rule_but_for_its_iterations():
    found = measure_noise("gsm8k", 20, 2)
    for name in IN_BATCHES:
        assert found["sd 1"][name] != found[QUIET][name]
        ratio = np.array(found["sd 0.5"][name]) / np.array(found[QUIET][name])
        assert (np.abs(ratio - 1) < 0.1).all()


def test_table_and_picture(brief, tmp_path, figures):
    found = run(jitter.STUDY, Options(2, (20,)), tmp_path, workers=1, progress=False)
    assert len(found) == 2 * len(WORLDS) + 3 + 2 + 1 + 3
    text = (tmp_path / "jitter.md").read_text(encoding="utf-8")
    for name in ("deadline tuned", "λ = 1", FORESIGHT, "beam, width 1", "threshold tuned in it"):
        assert f"| {name} |" in text
    assert sum(line.startswith("| --- |") for line in text.splitlines()) == 5
    short = jitter.STUDY.short({table.name: table for table in jitter.STUDY.tables(found)})
    assert [*sorted(row[0] for row in short.rows)] == sorted(jitter.SHORT)
    assert (tmp_path / "jitter.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    served, _, _, slower, wrong, longer = figure.axes
    assert [axes.get_title() for axes in (served, slower, wrong, longer)] == [
        "load 0.9", "slower iterations, load 0.9", "wrong models, load 0.9", "wrong models, gsm8k, 20 clients",
    ]  # fmt: skip
    shown = {line.get_label(): line.get_ydata() for line in served.lines}
    assert tuple(shown) == jitter.PICTURED
    for name in ("λ = 1", "prefill-first"):
        means = [100 * np.mean(found[f"load 0.9, {world}"][name]) for world in jitter.SPREADS]
        assert shown[name] == pytest.approx(means)
    assert [line.get_label() for line in slower.lines] == [SLOWER, STRAGGLERS, jitter.RARE]
    assert {len(line.get_xdata()) for line in slower.lines} == {len(jitter.PICTURED)}
