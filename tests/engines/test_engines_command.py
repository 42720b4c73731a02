"""``llmsched engines`` and ``--cost fit:FILE``."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import gymnasium
import pytest
from simulated import TRUTH, recorded

import llmsched_env
from llmsched_env import Scenario
from llmsched_env.baselines.__main__ import main as compare_main
from llmsched_env.cli import main
from llmsched_env.config import read_arguments
from llmsched_env.cost import cost_model
from llmsched_env.engines.recording import read_recording, write_recording
from llmsched_env.engines.trial import TrialEngine, drawn_load
from llmsched_env.errors import ConfigError, MissingExtraError

DRAWS = importlib.util.find_spec("matplotlib") is not None
"""`make test-vllm` has no matplotlib: pictures are left out there."""


@pytest.fixture(scope="module")
def written():
    return recorded()


@pytest.fixture
def folder(tmp_path, written):
    write_recording(tmp_path / "run", written)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--policy", "thresold"], "Did you mean 'threshold'"),
        (["--policy", "beam"], "which no engine knows"),
        (["--policy", "threshold", "--parameters", "1,2"], "does not take parameters"),
        (["--parameters", "3"], "--parameters without --policy"),
        (["--cost", "llama-65b-paper"], "--cost without --policy"),
        (["--arguments", "ttft_s=2"], "--arguments without --policy"),
        (["--policy", "deadline", "--arguments", "ttft_s=2"], "give both or none"),
        (["--policy", "deadline", "--arguments", "noise_sd=2"], "noise_sd"),
        (["--policy", "mixed_first", "--arguments", "mixed_tokens=9999"], "can lead to iterations of"),
        (["--policy", "threshold", "--parameters", "1e999"], "does not take inf among its parameters"),
    ],
)
def test_a_policy_that_cannot_decide_is_refused_before_the_engine_starts(given, message, tmp_path, capsys):
    assert main(["engines", "record", str(tmp_path / "r"), *given]) == 2
    assert message in capsys.readouterr().err


def test_calibrate_replay_compare(folder, tmp_path, capsys, written):
    assert main(["engines", "calibrate", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "decode: 2500000 (se 0) + 310000 (se 0) * active clients; R2 = 1.0000" in out
    assert f"Use it as --cost fit:{folder / 'cost.json'}" in out
    assert cost_model(f"fit:{folder}").mixed == TRUTH.mixed
    assert (folder / "cost.png").exists() is DRAWS

    assert main(["engines", "replay", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert f"engine: 80 requests in {len(written.iterations)} iterations" in capsys.readouterr().out
    assert read_recording(tmp_path / "again").requests.tolist() == written.requests.tolist()

    assert main(["engines", "compare", str(folder), "--within", "0.001", "--out", str(tmp_path / "page")]) == 0
    out = capsys.readouterr().out
    assert "# The simulated makespan and mean TTFT are the engine's, within 0.05%" in out
    assert "Simulated with cost model `run`, the engine's own scheduler decided." in out
    numbers = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert numbers["iterations"]["first_equal"] == len(written.iterations)
    assert [kind["kind"] for kind in numbers["iteration_errors"]] == ["prefill", "decode", "mixed"]
    assert all(kind["error_p90"] == 0 for kind in numbers["iteration_errors"])
    assert ("![The simulated makespan" in (tmp_path / "page" / "compare.md").read_text()) is DRAWS
    assert (tmp_path / "page" / "compare.png").exists() is DRAWS


def test_compare_fails_where_it_is_off(folder, capsys):
    assert main(["engines", "compare", str(folder), "--cost", "llama-65b-paper", "--within", "5"]) == 1
    told = capsys.readouterr()
    assert "error: makespan or mean TTFT is off by more than 5 %" in told.err
    assert re.search(r"# The simulated makespan differs from the engine's by \+\d+.\d%, the mean TTFT by \+", told.out)
    assert main(["engines", "compare", str(folder), "--cost", "llama-65b-paper"]) == 0, "no limit, no failure"


def test_a_reader_that_stops_is_no_error(folder):
    command = [sys.executable, "-m", "llmsched_env.engines", "replay", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_policy_and_other_arguments(folder, capsys):
    assert main(["engines", "replay", str(folder), "--policy", "threshold"]) == 0
    assert "threshold: 80 requests" in capsys.readouterr().out
    assert main(["engines", "replay", str(folder), "--arguments", "mixed_cost=overlap,noise_sd=0.1"]) == 0
    assert "engine: 80 requests" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrate", "nowhere"], "nowhere is not a folder"),
        (["replay", "RUN", "--policy", "treshold"], "unknown policy 'treshold'"),
        (["replay", "RUN", "--cost", "fit:nothing.json"], "cannot read the cost model nothing.json"),
        (["replay", "RUN", "--cost", "llama"], "unknown cost preset 'llama'"),
        (["replay", "RUN", "--arguments", "seats=3"], "unknown scenario argument 'seats'"),
        (["compare", "RUN", "--within", "0"], "--within 0: give percents"),
        (["calibrate", "RUN", "--out", "RUN"], "it is a folder. Give the path of a file"),
        (["record", "RUN"], "is not empty: give a new folder"),
        (["record", "new", "--budget", "2", "--seats", "4"], "vLLM needs a token for each seat"),
        (["record", "new", "--requests", "0"], "--requests 0: give a whole number of at least 1"),
        (["record", "new", "--rate", "-1"], "rate = -1.0 requests a second"),
    ],
)
def test_unusable_input(folder, capsys, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["engines", *(str(folder) if word == "RUN" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_without_vllm_it_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "llmsched_env.engines.vllm_recorder", raising=False)
    with pytest.raises(MissingExtraError, match="a trial needs vLLM, which is not installed"):
        TrialEngine()
    with pytest.raises(MissingExtraError, match=r"the recorder runs inside vLLM.*install vLLM \(tested"):
        importlib.import_module("llmsched_env.engines.vllm_recorder")
    monkeypatch.chdir(tmp_path)
    assert main(["engines", "record", "new"]) == 2
    assert "pip install vllm" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_drawn_load():
    load = drawn_load(2000, rate_per_s=50.0, seed=1)
    assert load == drawn_load(2000, rate_per_s=50.0, seed=1)
    assert load.arrivals_s[0] == 0.0
    assert load.arrivals_s[-1] == pytest.approx(40.0, rel=0.1)
    assert set(drawn_load(5).arrivals_s) == {0.0}
    with pytest.raises(ConfigError, match="requests = 0 of a trial"):
        drawn_load(0)


def test_a_fit_is_a_cost_wherever_one_is_asked_for(folder, capsys):
    assert main(["engines", "calibrate", str(folder)]) == 0
    text = f"fit:{folder / 'cost.json'}"
    model = cost_model(text)
    scenario = Scenario(cost=text, believed_cost=text, queue="shared", mixed_tokens=64, mixed_cost="fitted")
    assert scenario.cost == scenario.believed_cost == model
    assert scenario.mixed_cost_model == TRUTH.mixed
    assert Scenario(**read_arguments(f"cost={text}")) == Scenario(cost=model)
    (folder / "cost.json").unlink()
    assert scenario.replace(num_clients=3).cost_model == model, "the file is read once"
    made = gymnasium.make("LLMSched/GSM8K-v0", cost=model)
    again = gymnasium.make(llmsched_env.spec.Spec.of(made.spec).from_json(made.spec.to_json()))
    assert again.unwrapped.scenario.cost == model
    described = scenario.describe()
    assert Scenario().replace(cost=llmsched_env.spec.restored("cost", described["cost"])).cost == model


def test_the_comparison_takes_a_fit(folder, capsys):
    assert main(["engines", "calibrate", str(folder)]) == 0
    arguments = ["--cases", "1", "--policies", "prefill_first", "--requests", "20", "--clients", "8"]
    assert compare_main([*arguments, "--cost", f"fit:{folder}"]) == 0
    assert "cost model run" in capsys.readouterr().out
    assert compare_main([*arguments, "--cost", "fit:nowhere.json"]) == 2
    assert "cannot read the cost model nowhere.json" in capsys.readouterr().err


def test_a_preset_has_no_fitted_mixed_cost(folder):
    with pytest.raises(ConfigError, match="for which nothing was measured"):
        Scenario(cost="llama-65b-paper", queue="shared", mixed_tokens=64, mixed_cost="fitted")
