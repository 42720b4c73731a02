"""Laws of a training run, for every algorithm."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from killed import exit_code_of, train_and_die_at_any_moment, train_and_die_in_a_rollout
from small_runs import QUICK, SMALL, curve, tensorboard_steps, weights

import llmsched_env.agents.training
from llmsched_env import cases
from llmsched_env.agents import load_agent
from llmsched_env.agents.algorithms import ALGORITHMS
from llmsched_env.agents.libraries import LIBRARIES
from llmsched_env.agents.runs import Run
from llmsched_env.agents.sb3_learner import SB3Learner, _Falling
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.training import Baselines, Training, recorded, train
from llmsched_env.baselines.registry import entry
from llmsched_env.config import Scenario
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.rollout import _played
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]

ROOT = Path(__file__).parents[2]
EXACT = [algo for algo in ALGORITHMS if algo != "ars"]
COPIES = {algo: 0 if algo == "es" else 2 for algo in ALGORITHMS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody stopped, by algorithm: (training, what train returned)."""
    runs = {}

    def get(algo):
        if algo not in runs:
            training = Training(
                algo, "LLMSched/GSM8K-Smooth-v0", 512, 3, tmp_path_factory.mktemp(algo) / "run", COPIES[algo], 2, SMALL,
                QUICK[algo], 128,
            )  # fmt: skip
            baselines = [entry(name, training.validation) for name in ("lagrangian", "interleave", "beam")]
            runs[algo] = (
                training,
                train(training, Baselines(baselines, baselines[1], baselines[2]), command="the command"),
            )
        return runs[algo]

    return get


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_what_a_run_holds(whole, algo):
    training, record = whole(algo)
    folder = training.out
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert {**json.loads(json.dumps(record)), "format": 1} == written
    safe = {"agent.npz"} if written["best"]["policy"] == algo else set()  # what the file decides as
    assert {path.name for path in folder.iterdir()} - {"learning_curve.png"} == {
        "checkpoints", "config.json", "curve.csv", "run.json", "tensorboard", *safe,
    }  # fmt: skip
    if safe:
        found = evaluate(load_agent(folder / "agent.npz"), training.validation, 2).estimate("makespan_s").mean
        assert found == pytest.approx(written["best"]["value"], rel=1e-12)
    assert written["command"] == "the command"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["training"]["settings"].get("copies", 0) == config["training"]["copies"] == COPIES[algo]
    assert config["training"]["settings"].keys() >= QUICK[algo].keys()
    assert config["training"]["seed"] == 3
    assert config["scenario"]["split"] == "train"
    assert config["scenario"]["skip_forced"] is True
    assert torch.__version__.startswith(config["packages"]["torch"])
    assert len(config["observation"]) == 26

    rows = curve(folder)
    steps = [int(row["timesteps"]) for row in rows]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert steps[-1] == written["timesteps"] >= 512
    assert tensorboard_steps(folder) == steps
    columns = [name for name in rows[0] if name.endswith("/makespan_s")]
    values = {(int(row["timesteps"]), name.partition("/")[0]): float(row[name]) for row in rows for name in columns}
    best = written["best"]
    assert best["value"] == min(values.values()) == values[best["timesteps"], best["policy"]]
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {Path(written[which]["folder"]).name for which in ("best", "last")}
    figures = [float(value or 0) for row in rows for name, value in row.items() if "rollout" in name or name == "sigma"]
    assert any(figures), "no figures"

    compared = written["validation"]["policies"]
    agents = [name for name, row in compared.items() if row["kind"] == "agent"]
    assert list(compared) == [*agents, "lagrangian", "interleave", "beam"]
    assert [f"{name}/makespan_s" for name in agents] == columns
    assert compared[best["policy"]]["makespan_s"]["mean"] == pytest.approx(best["value"], rel=1e-12)
    assert compared["interleave"]["score"]["mean"] == 0
    assert compared["beam"]["score"]["mean"] == pytest.approx(1)
    difference = written["agent_minus_baseline"][agents[0]]["lagrangian"]["mean"]
    assert difference == pytest.approx(
        compared[algo]["makespan_s"]["mean"] - compared["lagrangian"]["makespan_s"]["mean"]
    )


def same(one, other):
    for name, column in one.columns.items():
        np.testing.assert_array_equal(other.columns[name], column, err_msg=name)


def test_side_by_side_each_episode_is_decided_by_its_own_view():
    """A model whose choice hangs on every feature, so that no mistake in the views is overlooked."""

    class Model:
        observation_space, action_space, policy = np.zeros((26,)), type("Space", (), {"n": 2}), None
        taken: ClassVar[list[int]] = []

        def predict(self, observation, *, deterministic=False):
            actions = (observation * 1000).astype(int).sum(axis=1) % 2  # whole numbers: no order of summation matters
            self.taken.extend(actions)
            return actions, None

    class OneByOne(SB3Policy):
        together = None

    where = Scenario(**SMALL, split="validation")
    cases = np.arange(70)  # more than go side by side
    same(evaluate(SB3Policy(Model()), where, cases), evaluate(OneByOne(Model()), where, cases))
    assert 500 < sum(Model.taken) < len(Model.taken) - 500, "hardly a choice"


@pytest.mark.parametrize("algo", LIBRARIES)
def test_side_by_side_the_agent_plays_as_one_by_one(whole, algo):
    training, record = whole(algo)
    policy = SB3Policy.load(training.out / record["best"]["folder"] / "model.zip", algo)
    together = evaluate(policy, training.validation, 3, seed=1)

    class OneByOne:
        name, kind, clairvoyant, reset, act = policy.name, "agent", False, policy.reset, policy.act

    alone = evaluate(OneByOne(), training.validation, 3, seed=1)
    same(together, alone)
    simulator = Simulator(cases.build_problem(training.validation, 0))
    choices = 0
    while not simulator.done:
        action = int(simulator.can_prefill)
        if simulator.has_choice:
            masks = {"action_masks": np.array([True, True])} if "maskable" in algo else {}
            expected = policy._model.predict(features(simulator.view), deterministic=True, **masks)[0]
            assert policy.act(simulator.view) == expected
            choices += 1
            action = choices % 2  # visit more than one policy would
        simulator.step(action)
    assert choices > 5, "no choice was compared"


def test_drawn_actions_are_of_the_episode_wherever_it_is_played(whole):
    training, record = whole("ppo")
    path = training.out / record["best"]["folder"] / "model.zip"
    policy = SB3Policy.load(path, "ppo", deterministic=False)
    results = [evaluate(policy, training.validation, cases, seed=1).columns for cases in ([0, 1, 2], [2, 0], [1])]
    for name, column in results[0].items():
        np.testing.assert_array_equal(results[1][name], column[[2, 0]])
        np.testing.assert_array_equal(results[2][name], column[[1]])
    others = [evaluate(policy, training.validation, 3, seed=seed).columns["makespan_s"] for seed in range(2, 8)]
    assert any((other != results[0]["makespan_s"]).any() for other in others), "nothing was drawn"


def test_masks_are_kept_where_actions_are_drawn():
    class Network:
        def obs_to_tensor(self, observations):
            return torch.as_tensor(observations), True

        def get_distribution(self, observations, action_masks):
            logits = torch.zeros(action_masks.shape).masked_fill(~torch.as_tensor(action_masks), -1e8)
            return type("Distribution", (), {"distribution": torch.distributions.Categorical(logits=logits)})

    class Model:
        policy = Network()
        observation_space = np.zeros((33,))
        action_space = type("Space", (), {"n": 7})

        def predict(self, observation, *, deterministic=False, action_masks=None):
            raise NotImplementedError

    ordered = Scenario(
        workload="serving", queue="shared", order="fcfs", lengths="hidden", load=0.9, ttft_s=2.0, tpot_s=0.1,
        choose_order=True, num_clients=4, num_requests=30,
    )  # fmt: skip
    episodes = list(_played(SB3Policy(Model(), deterministic=False), ordered, np.arange(2), 0, False))
    assert [int(episode.totals.invalid_actions) for episode in episodes] == [0, 0]
    assert all(episode.done for episode in episodes)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "ars"])
def test_the_same_seed_trains_the_same_agent_and_another_another(whole, small, algo, tmp_path):
    first, _ = whole(algo)
    for seed in (3, 4):
        train(small(algo, f"seed{seed}", seed=seed))
    texts = [
        (folder / "curve.csv").read_text(encoding="utf-8")
        for folder in (first.out, tmp_path / "seed3", tmp_path / "seed4")
    ]
    assert texts[0] == texts[1] != texts[2]


def assert_the_same(folder, other):
    """The curve, and what was learnt to the last bit."""
    assert (folder / "curve.csv").read_text(encoding="utf-8") == (other / "curve.csv").read_text(encoding="utf-8")
    expected, found = weights(other), weights(folder)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("algo", EXACT)
def test_a_resumed_run_is_the_one_that_was_never_stopped(whole, small, algo, stopped_after):
    training, _ = whole(algo)
    broken = small(algo)
    carry_on = stopped_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    carry_on()
    assert 0 < int(curve(broken.out)[-1]["timesteps"]) < 512, "it was not stopped in the middle"
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    record = train(recorded(broken.out), resume=True)
    assert tensorboard_steps(broken.out) == tensorboard_steps(training.out)
    assert_the_same(broken.out, training.out)
    assert record["timesteps"] == int(curve(training.out)[-1]["timesteps"])


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_bars_are_for_terminals_lines_for_logs_and_both_can_be_left_out(
    small, monkeypatch, tmp_path, terminal, progress, shown
):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    train(small("es", timesteps=2000, evaluate_every=1000), progress=progress)
    said = stderr.getvalue()
    assert ("\r" in said, "training es:" in said, "comparing" in said) == (shown, shown or progress, shown)
    if progress and not shown:
        lines = said.splitlines()
        steps = [int(row["timesteps"]) for row in curve(tmp_path / "run")]
        assert len(lines) == len(steps) > 1, "a line for each validation"
        for line, step in zip(lines, steps, strict=True):
            assert re.fullmatch(
                rf"training es: {step:,} of {max(2000, step):,} steps: es/makespan_s [\d.]+, best [\d.]+ at [\d,]+",
                line,
            )


def test_ars_goes_on_counting_where_it_was(small, stopped_after):
    broken = small("ars", timesteps=1500)
    carry_on = stopped_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    carry_on()
    before = curve(broken.out)
    assert 0 < int(before[-1]["timesteps"]) < 1500, "it was not stopped in the middle"
    train(recorded(broken.out), resume=True)
    after = curve(broken.out)
    names = list(before[-1])
    assert [[row[name] for name in names] for row in after[: len(before)]] == [list(row.values()) for row in before]
    steps = [int(row["timesteps"]) for row in after]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 1500
    assert tensorboard_steps(broken.out) == steps


def test_ended_between_evaluation_and_checkpoint_no_row_is_told_twice(small, monkeypatch):
    """The worst moment: TensorBoard has the row, the checkpoint is not there."""
    training = small()
    save, calls = Run.save, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return save(*arguments)

    monkeypatch.setattr(Run, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    assert len(tensorboard_steps(training.out)) == 3
    assert len(curve(training.out)) == 2
    train(recorded(training.out), resume=True)
    steps = [int(row["timesteps"]) for row in curve(training.out)]
    assert tensorboard_steps(training.out) == steps == [0, 128, 256, 384, 512]


def test_ended_before_the_first_checkpoint_it_begins(small, monkeypatch, whole):
    training = small()
    with monkeypatch.context() as patch:
        patch.setattr(llmsched_env.agents.training, "_Driver", None)  # cannot be called: the end, the folder just made
        with pytest.raises(TypeError):
            train(training)
    assert (training.out / "config.json").exists()
    train(recorded(training.out), resume=True)
    assert (training.out / "curve.csv").read_text(encoding="utf-8") == (whole("ppo")[0].out / "curve.csv").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(("algo", "requests"), [("ppo", 13), ("es", 14)])
def test_nothing_touches_the_test_cases(small, monkeypatch, algo, requests):
    splits = set()
    build = cases._build

    def built(scenario, case):
        splits.add(scenario.split)
        return build(scenario, case)

    monkeypatch.setattr(cases, "_build", built)
    # A number of requests of its own, so that no problem is in memory already.
    training = small(algo, timesteps=64, arguments={**SMALL, "num_requests": requests})
    baselines = [entry(name, training.validation) for name in ("lagrangian", "lagrangian_tuned", "beam")]
    train(training, Baselines(baselines, baselines[1], baselines[2]))
    assert splits == {"train", "validation"}


KILLED = {
    "ppo": ("60000", "640", "n_steps: 32\nbatch_size: 32\nn_epochs: 2\nnet_arch: [16]\ncopies: 2\n"),
    "es": ("100000", "10000", "hidden: 2\npopulation: 4\ncases: 2\npool: 4\n"),
}
"""Timesteps, timesteps between two checkpoints, settings."""


@pytest.mark.parametrize("algo", KILLED)
def test_kill_at_any_moment(tmp_path, algo):
    """A real SIGKILL of a real process, twice; and the run goes on as if nothing had been."""
    settings, folder = tmp_path / "quick.yaml", tmp_path / "run"
    timesteps, every, text = KILLED[algo]
    settings.write_text(text)
    words = (
        f"--algo {algo} --scenario LLMSched/GSM8K-Smooth-v0 --timesteps {timesteps} --cases 2 --clients 4 "
        f"--workload {SMALL['workload']} --queue shared --evaluate-every {every} --seed 1 --settings {settings}"
    ).split()
    for checkpoints, asked in ((3, [*words, "--out", str(folder)]), (2, ["--resume", str(folder)])):
        assert exit_code_of(train_and_die_at_any_moment, checkpoints, asked) == -signal.SIGKILL
    last = Run.open(folder).last()
    assert last is not None
    assert last.timesteps >= 4 * int(every)
    steps = [int(row["timesteps"]) // int(every) for row in last.rows]
    assert steps == list(range(len(steps)))
    assert not (folder / "run.json").exists()
    if algo == "es":  # to the end, and to the last bit
        straight = Training(**{**recorded(folder).as_json(), "out": tmp_path / "straight"})
        train(recorded(folder), resume=True)
        train(straight)
        assert_the_same(folder, straight.out)


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_a_kill_in_the_middle_of_a_rollout(whole, tmp_path, algo):
    training, _ = whole(algo)
    folder = tmp_path / "run"
    # 294 decisions of two copies: rollouts are of 32 steps (ppo) and of 4 (dqn).
    asked = Training(**{**training.as_json(), "out": folder})
    assert exit_code_of(train_and_die_in_a_rollout, asked, 147) == -signal.SIGKILL
    assert Run.open(folder).last().timesteps == 256
    train(recorded(folder), resume=True)
    assert tensorboard_steps(folder) == tensorboard_steps(training.out)
    assert_the_same(folder, training.out)


def test_a_horizon_is_for_learning_alone(small):
    """Where all episodes ended early there was no makespan to choose an agent by."""
    training = small(arguments={**SMALL, "max_iterations": 30}, timesteps=128)
    assert (training.training_scenario.max_iterations, training.validation.max_iterations) == (30, None)
    train(training, progress=False)
    reached = [float(row["ppo/makespan_s"]) for row in curve(training.out)]
    assert len(reached) == 2
    assert np.isfinite(reached).all()


def test_progress_is_in_whole_updates(small, capsys, caplog):
    train(small(timesteps=100, evaluate_every=64))
    said = re.findall(r"training ppo: ([\d,]+) of ([\d,]+) steps", capsys.readouterr().err)
    assert said == [("0", "128"), ("64", "128"), ("128", "128")]
    assert "an update is not cut: training ends at timestep 128, not at 100." in caplog.text
    assert "nothing will be learned" not in caplog.text


def test_a_run_shorter_than_an_update(small, capsys, caplog):
    training = small(timesteps=1)
    train(training)
    assert "training ppo: 64 of 64 steps" in capsys.readouterr().err
    assert "nothing will be learned: an update is 64 decisions, and with anneal the learning rate" in caplog.text
    before, after = (float(row["ppo/makespan_s"]) for row in curve(training.out))
    assert before == after, "a rate below 0 unlearns"
    assert float(curve(training.out)[-1]["train/learning_rate"]) == 0.0


def test_a_falling_rate_is_never_far_below_0():
    rate = _Falling(0.005)
    assert rate(1.0) == 0.005
    assert rate(0.5) == 0.0025
    assert rate(1 - 131_072 / 100_000) == 0.0
    assert abs(rate(1 - 5_013_504 / 5_000_000)) < 2e-5


def test_a_reward_that_is_no_goodput_is_said(small, caplog):
    where = {"num_clients": 4, "num_requests": 30}
    SB3Learner.begin(small(scenario="LLMSched/Serving-v0", arguments={**where, "reward": "differential"}))
    assert "reward differential adds up to the makespan" in caplog.text
    caplog.clear()
    SB3Learner.begin(small(scenario="LLMSched/Serving-v0", arguments=where))
    SB3Learner.begin(small(arguments={**SMALL, "reward": "differential"}))
    assert not caplog.text


def test_only_a_residual_learns_from_another_reward_than_the_scenarios_own(small):
    def paid(algo="ppo", **changes):
        (one, *_) = SB3Learner.begin(small(algo, **changes))._copies.get_attr("scenario")
        return one.reward

    assert [paid(algo) for algo in LIBRARIES] == ["differential", *["excess"] * (len(LIBRARIES) - 1)]
    assert next(iter(LIBRARIES)) == "ppo"
    assert paid(settings={"policy": "mlp"}) == "excess"
    assert paid(settings={"policy": "mlp", "reward": "auto"}) == "differential"
    assert paid("dqn", arguments={**SMALL, "reward": "idle"}) == "idle"
    assert paid(settings={"reward": "own"}, arguments={**SMALL, "reward": "latency"}) == "latency"
