"""Messages about arguments in the words of the command line."""

from __future__ import annotations

import argparse
import warnings

import pytest

from llmsched_env.baselines import __main__ as comparison
from llmsched_env.baselines import predictions, tuned
from llmsched_env.cli import train
from llmsched_env.config import Scenario
from llmsched_env.flags import flags_of, in_flags, path_option, warnings_in_flags
from llmsched_env.studies import __main__ as studies
from llmsched_env.units import UnitWarning

FLAGS = comparison.FLAGS


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Pass num_requests of at most 3.", "Pass --requests of at most 3."),
        ("num_requests = 50 but mine.csv has 100 requests.", "--requests 50 but mine.csv has 100 requests."),
        ("ttft_s = 2.0, tpot_s = None: give both or none.", "--ttft-s 2.0, --tpot-s None: give both or none."),
        ("SLOs need queue='shared'.", "SLOs need --queue shared."),
        ("order = 'fcfs' with choose_order=True: the order is", "--order fcfs with choose_order=True: the order is"),
        (
            "give kv_budget_tokens, which num_clients_more is not.",
            "give kv_budget_tokens, which num_clients_more is not.",
        ),
        ("unknown argument 'num_client'. Did you mean 'num_clients'?",) * 2,
        ("a queue of its own, at some load, of this workload",) * 2,
        ("Take Scenario(queue='shared', num_clients=5).",) * 2,
        (
            "Take Scenario(workload=Path('x'), num_clients=5), or give num_clients = 4.",
            "Take Scenario(workload=Path('x'), num_clients=5), or give --clients 4.",
        ),
        ("at the load = 0.9 of capacity, whose num_clients are many",) * 2,
        ("--arguments load=3: this one has an option of its own.",) * 2,
        ("needs SLOs: give ttft_s and tpot_s.", "needs SLOs: give --ttft-s and --tpot-s."),
        ("take a scenario with ttft_s and tpot_s.", "take a scenario with --ttft-s and --tpot-s."),
        ("Allow more in `ttft_s`, or leave out `noise_sd`.", "Allow more in --ttft-s, or leave out `noise_sd`."),
        (
            "mine.csv: num_requests = 3 (of 5), load = 0.9: too few",
            "mine.csv: --requests 3 (of 5), --loads 0.9: too few",
        ),
    ],
)
def test_names_of_arguments_become_options(message, told):
    assert in_flags(message, FLAGS) == told


@pytest.mark.parametrize(
    ("main", "words", "told"),
    [
        (comparison.main, ["--clients", "0"], "--clients 0 is out of range: it lies in [1, "),
        (comparison.main, ["--requests", "0"], "--requests 0 is out of range"),
        (comparison.main, ["--prefill-cap", "-1"], "--prefill-cap -1 is out of range"),
        (comparison.main, ["--ttft-s", "2"], "--ttft-s 2.0, --tpot-s None: give both or none."),
        (comparison.main, ["--ttft-s", "2", "--tpot-s", "0.1", "--order", "late_last"],
         "--order late_last with --queue client: orders by deadline are orders of one line. Set --queue shared,"),
        (comparison.main, ["--scenario", "LLMSched/Serving-v0", "--loads", "90"],
         "--loads 90.0 is out of range: it is above 0 and at most 10. As a share, 90 % is 0.9."),
        (comparison.main, ["--workers", "0"], "--workers"),
        (predictions.main, ["--clients", "0"], "--clients 0 is out of range"),
        (predictions.main, ["--requests", "-3"], "--requests -3 is out of range"),
        (studies.main, ["--cases", "0"], "--cases 0 is out of range"),
        (studies.main, ["--clients", "0"], "--clients 0 is out of range"),
        (train.main, ["--clients", "-1"], "--clients -1 is out of range"),
        (train.main, ["--requests", "-1"], "--requests -1 is out of range"),
        (train.main, ["--cases", "-1"], "--cases"),
        (train.main, ["--timesteps", "-1"], "--timesteps -1 is out of range"),
    ],
)  # fmt: skip
def test_every_command_speaks_of_its_options(capsys, tmp_path, monkeypatch, main, words, told):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    for name in ("num_clients", "num_requests", "prefill_token_cap", "ttft_s", "tpot_s", "validation_cases"):
        assert name not in error
    assert not list(tmp_path.iterdir())


def test_tuning_speaks_of_its_option(capsys):
    with pytest.raises(SystemExit):
        tuned.main(["--cases", "0"])
    assert "error: --cases 0 names no case" in capsys.readouterr().err


def test_a_trace_that_is_too_short_names_the_option(capsys, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},30,50\n" for i in range(100)))
    command = ["--scenario", "LLMSched/Serving-v0", "--workload", f"trace:{path}", "--policies", "prefill_first"]
    assert comparison.main([*command, "--cases", "1"]) == 2
    assert "Pass --requests of at most 20, or a longer recording." in capsys.readouterr().err


def test_units_are_doubted_in_the_words_of_the_command(capsys):
    command = [
        "--scenario",
        "LLMSched/Serving-v0",
        "--clients",
        "2",
        "--requests",
        "10",
        "--cases",
        "1",
        "--loads",
        "0.8",
    ]
    assert comparison.main([*command, "--ttft-s", "2001", "--tpot-s", "101", "--policies", "prefill_first@fcfs"]) == 0
    error = capsys.readouterr().err
    assert "warning: --ttft-s 2001 is taken as seconds. If milliseconds are meant, give --ttft-s 2.001." in error
    assert "warning: --tpot-s 101 is taken as seconds." in error


def test_warnings_in_the_words_of_the_command(capsys):
    with warnings.catch_warnings(record=True) as others, warnings_in_flags(train.FLAGS):
        warnings.simplefilter("always")
        warnings.warn("ttft_s = 2000 is taken as seconds.", UnitWarning, stacklevel=1)
        warnings.warn("num_clients of another library", UserWarning, stacklevel=1)
    assert [str(other.message) for other in others] == ["num_clients of another library"]
    assert capsys.readouterr().err == "warning: --ttft-s 2000 is taken as seconds.\n"


@pytest.mark.parametrize(
    ("parser", "renamed"),
    [
        (comparison._parser(), {"num_clients": "--clients", "load": "--loads", "prefill_token_cap": "--prefill-cap"}),
        (predictions._parser(), {"num_clients": "--clients", "num_requests": "--requests"}),
        (studies._parser(), {"num_clients": "--clients"}),
        (train.Args.parser(), {"num_requests": "--requests", "load": "--load", "validation_cases": "--cases"}),
    ],
    ids=["baselines", "predictions", "studies", "train"],
)
def test_options_are_those_of_the_parser(parser, renamed):
    flags = flags_of(parser)
    assert renamed.items() <= flags.items()
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            assert flags[action.dest] in action.option_strings
    assert "help" not in flags


def test_an_option_that_is_added_is_told_of():
    parser = argparse.ArgumentParser()
    parser.add_argument("--noise-sd", type=float)
    assert in_flags("noise_sd = -1 is out of range", flags_of(parser)) == "--noise-sd -1 is out of range"


def test_every_option_of_a_scenario_that_trains_has_its_argument():
    assert set(train.SCENARIO_OPTIONS) <= train.FLAGS.keys()
    assert set(train.SCENARIO_OPTIONS.values()) <= train.FLAGS.keys() & set(Scenario.__dataclass_fields__)


def test_a_tilde_after_an_equals_sign_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = comparison._parser().parse_args(["--out=~/results", "--json=~/a.json"])
    assert (parsed.out, parsed.json) == (tmp_path / "results", tmp_path / "a.json")
    assert train.Args(out="~/runs").folder == tmp_path / "runs"
    with pytest.raises(argparse.ArgumentTypeError, match="home folder that is not known: write the whole path"):
        path_option("~nobody-of-that-name/x")
