"""``python train.py`` from the outside: its words, its exit codes, its folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from small_runs import SMALL, curve

from llmsched_env import ENVIRONMENTS, make_scenario
from llmsched_env.agents.runs import Run
from llmsched_env.baselines import registry, tuned
from llmsched_env.cli import train as command
from llmsched_env.config import Scenario

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]

ROOT = Path(__file__).parents[2]
WORDS = [
    *["--algo", "ppo"],
    *["--scenario", "LLMSched/GSM8K-Smooth-v0", "--clients", "4", "--queue", "shared", "--cases", "2", "--copies", "2"],
    "--workload",
    SMALL["workload"],
]


@pytest.fixture
def quick(tmp_path):
    """Words of a run of a second."""
    path = tmp_path / "quick.yaml"
    path.write_text("n_steps: 32\nbatch_size: 32\nn_epochs: 1\nnet_arch: [8]\n")
    return [*WORDS, "--timesteps", "128", "--settings", str(path), "--out", str(tmp_path / "run")]


def test_help_has_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for option in fields(command.Args):
        name = f"--{option.name.replace('_', '-')} "
        described = said.partition(f" {name}{option.name.upper()} ")[2]
        default = str(option.default) or "''"
        assert re.match(rf"(?:(?! --\w).)+ \(default: {re.escape(default)}\)", described), name


def test_a_run_and_its_comparison(quick, tmp_path, capsys):
    assert command.main(quick) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    validation = record["validation"]
    assert record["command"] == f"python train.py {' '.join(quick)}"
    assert {"ppo", "baseline", "hybrid", "lagrangian", "tuned_threshold", "beam"} <= set(validation["policies"])
    assert "ppo_sampled" not in validation["policies"], "a residual on a rule is judged by its most likely actions"
    assert [name for name, row in validation["policies"].items() if row["kind"] == "planner"] == ["beam"]
    assert validation["score_planner"] == "beam"
    reference = validation["score_reference"]
    assert reference in ("tuned_threshold", "lagrangian_tuned", "max_wait_tuned", "interleave_tuned")
    assert f"score: 0 = {reference}, 1 = beam" in said
    assert re.search(r"> ppo +\d+\.\d+ \[", said)
    assert record["best"]["folder"] in said
    assert (tmp_path / "run" / record["best"]["folder"] / "model.zip").exists()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    assert command.main(quick) == 2
    assert "holds a finished run: choose another folder" in capsys.readouterr().err
    assert command.main(["--resume", str(tmp_path / "run")]) == 2
    assert re.search(r"error: the run in .* is finished, its result is in .*run.json", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algo", "pp0"], r"error: unknown algorithm 'pp0'\. Did you mean 'ppo'"),
        (["--timesteps", "-1"], r"error: options: --timesteps -1 is out of range"),
        (["--scenario", "GSM8K"], r"error: unknown scenario 'GSM8K'"),
        (["--assignment", "ltp"], r"error: unknown assignment 'ltp'\. Did you mean 'lpt'"),
        (["--queue", "shard"], r"error: unknown queue 'shard'\. Did you mean 'shared'"),
        (["--load", "0.5", "--cost", "no"], r"error: unknown"),
        (["--settings", "absent.yaml"], r"error: cannot read absent.yaml: No such file"),
        (["--resume", "absent"], r"error: absent holds no run"),
        (
            ["--resume", "absent", "--timesteps", "9000000"],
            r"a run ends at the timesteps .* learning rate.*absent/config.json with --timesteps 9000000 a",
        ),
        (
            ["--resume", "absent", "--seed", "0", "--evaluate-every", "5"],
            "--resume absent with --seed, --evaluate-every:",
        ),
    ],
)
def test_what_cannot_be_done(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    assert re.search(said, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ("cases: 500", [], "error: setting cases = 500, .* exceeds setting pool = 256"),
        ("pool: 1", ["--cases", "2"], "error: setting cases = 12, .* exceeds setting pool = 1"),
        ("{cases: 1, sizes: [1.0, 2.0]}", [], "error: setting cases = 1, .* for 2 sizes"),
        ("cases: 0", [], r"error: es\.yaml: setting cases = 0 is out of range"),
    ],
)
def test_a_setting_is_not_called_by_an_option(settings, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "es.yaml").write_text(settings)
    size = ["--clients", "4", "--requests", "8", "--queue", "shared"]
    assert command.main(["--algo", "es", "--settings", "es.yaml", *size, *words]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert "--cases" not in error


def test_options_of_the_scenario_reach_it():
    words = (
        "--scenario LLMSched/ServingOrder-v0 --clients 5 --requests 40 --cost llama-65b-paper-mid --prefill-cap 999 "
        "--lengths hidden --load 0.7 --ttft-s 3 --tpot-s 0.2 --reward latency --copies 3 --cases 4 --seed 9 --algo dqn"
    )
    args, given = command.Args.parse(words.split())
    training = args.training()
    assert training.validation == Scenario(
        workload="serving", split="validation", num_clients=5, num_requests=40, cost="llama-65b-paper-mid",
        prefill_token_cap=999, queue="shared", order="fcfs", lengths="hidden", load=0.7, ttft_s=3.0, tpot_s=0.2,
        choose_order=True, reward="latency",
    )  # fmt: skip
    assert (training.algo, training.copies, training.validation_cases, training.seed) == ("dqn", 3, 4, 9)
    assert training.out == Path("runs/dqn")
    assert "timesteps" not in given


def test_what_fills_client_queues_is_an_option():
    for assignment in ("mip", "lpt", "round_robin"):
        args, _ = command.Args.parse(["--assignment", assignment])
        assert args.training().validation == Scenario(workload="gsm8k", assignment=assignment, split="validation")


def test_a_scenario_with_slos_is_chosen_and_compared_by_goodput(quick, tmp_path, monkeypatch, capsys):
    # All baselines of a scenario that is not in tuned.json take a while.
    monkeypatch.setattr(registry, "default_names", lambda scenario: ["lagrangian@late_last", "lookahead"])
    monkeypatch.setattr(tuned, "best_tuned", lambda scenario: "lagrangian@late_last")
    words = ["--scenario", "LLMSched/ServingOrder-v0", "--requests", "30", *quick[quick.index("--timesteps") :]]
    assert command.main([*words, "--clients", "4", "--cases", "2", "--copies", "2", "--algo", "maskable_ppo"]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    values = [float(row[name]) for row in curve(tmp_path / "run") for name in row if name.endswith("/goodput")]
    assert record["best"]["value"] == max(values)
    assert record["validation"]["score_planner"] == "lookahead"
    agents = ["maskable_ppo", "maskable_ppo_sampled"]
    assert list(record["validation"]["policies"]) == [*agents, "lagrangian@late_last", "lookahead"]
    assert "goodput" in capsys.readouterr().out


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_rivals_are_all_baselines_that_make_sense_with_the_planner_that_scores_1(name):
    scenario = make_scenario(name, num_clients=4, num_requests=30)  # small, where rules have to be tuned first
    if scenario.queue == "client":
        scenario = scenario.replace(assignment="lpt")
    baselines = command._rivals(scenario)
    kinds = {item.name: item.kind for item in baselines.contestants}
    assert [item for item, kind in kinds.items() if kind == "planner"] == [baselines.planner.name]
    assert baselines.planner.name == registry.fixed_order_planner(scenario)
    assert baselines.reference in baselines.contestants
    left_out = set(registry.default_names(scenario)) - set(kinds)
    usual = set() if scenario.serving else {"always_worst", "rollout", "beam_1"}
    assert left_out == usual - {baselines.planner.name}


def test_interrupted_says_how_to_go_on(quick, tmp_path, monkeypatch, capsys):
    save, calls = Run.save, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(*arguments)

    monkeypatch.setattr(Run, "save", interrupted)
    assert command.main(quick) == 130
    said = capsys.readouterr().err
    resume = re.search(r"Go on from the last checkpoint with: python train.py (--resume .*)\n", said)[1]
    assert command.main(resume.split()) == 0
    assert [row["timesteps"] for row in curve(tmp_path / "run")] == ["0", "128"]

    def never(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", never)
    for folder, words in ((tmp_path / "run", r"The run in .* is finished"), (tmp_path / "no", "The run had not begun")):
        assert command.main(["--out", str(folder)]) == 130
        assert re.search(words, capsys.readouterr().err)


def test_ctrl_c_of_a_real_process(quick, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here is ignored by children
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *quick, "--timesteps", "1000000"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, usual)
    while not list((tmp_path / "run" / "checkpoints").glob("[0-9]*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted: nothing half-written is left behind. Go on from the last checkpoint with: " in said
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
