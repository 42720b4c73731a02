"""The network that decides is chosen by output lengths as the scenario shows them, not by what a workload is called."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
from networks import SERVING, history, random_network

import llmsched_env.agents.files
from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.lengths import QUANTILES, lengths_apart, shown_lengths
from llmsched_env.baselines import entry
from llmsched_env.baselines.__main__ import main
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.workload import GammaWorkload, Requests

KNOWN = Scenario(workload="gsm8k", assignment="lpt", num_clients=8)
HOMES = {"gsm8k": KNOWN, "gsm8k-smooth": KNOWN.replace(workload="gsm8k-smooth")}
NETWORKS = {name: random_network(number) for number, name in enumerate(HOMES)}
AGENT = Agent("two", [Trained(NETWORKS[name], Origin.of(home)) for name, home in HOMES.items()])


def file_scenario(name: str, requests: Requests, path) -> Scenario:
    """The scenario of a user's file with these requests, under a name of the user's."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt_tokens", "output_tokens"])
        rows.writerows(zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True))
    return HOMES[name].replace(workload=path)


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("called", ["mine", "gsm8k", "gsm8k-smooth"])
def test_a_file_with_the_same_lengths_is_played_as_the_named_workload(name, called, tmp_path):
    mine = file_scenario(name, HOMES[name].source.requests("test", 300), tmp_path / f"{called}.csv")
    assert mine.source.name == called
    assert AGENT.network_for(mine) is NETWORKS[name]
    assert AGENT.origin_for(mine).workload == name
    alone = Agent("alone", [Trained(NETWORKS[name], Origin.of(HOMES[name]))])
    other = Agent("other", [Trained(one, Origin.of(mine)) for key, one in NETWORKS.items() if key != name])
    few = mine.replace(num_requests=60)
    assert history(AGENT, few) == history(alone, few) != history(other, few)


def test_names_of_the_package_choose_what_they_did():
    for name, home in HOMES.items():
        for changes in ({}, {"num_clients": 200}, {"split": "test"}, {"lengths": "predicted", "predictor": "prompt"}):
            assert AGENT.network_for(home.replace(**changes)) is NETWORKS[name]
            assert AGENT.origin_for(home.replace(**changes)) == Origin.of(home)
            assert AGENT.describe(home.replace(**changes)) == ""
    predicted = make_scenario("LLMSched/GSM8K-Predicted-v0")
    assert AGENT.network_for(predicted) is NETWORKS["gsm8k"]


@pytest.mark.parametrize("name", llmsched_env.agents.files.shipped())
def test_shipped_networks_are_at_home_where_they_were_trained(name):
    """The first files were written before lengths were noted: the workload is the package's, and looked at."""
    for one in llmsched_env.agents.files.load_agent(name).trained:
        assert (one.origin.lengths is None) == (name != "gsm8k_order")
        changes = {"workload": one.origin.workload, "num_clients": 8}
        base = SERVING if one.origin.serving else KNOWN
        assert one.origin.distance(base.replace(**changes))[2] == 0.0


def test_what_is_shown_is_what_a_scheduler_knows():
    hidden = {"lengths": "hidden", "order": "fcfs"}
    known = shown_lengths(KNOWN)
    assert known == tuple(np.quantile(KNOWN.source.requests("train", 0).output_tokens, _middles()).tolist())
    mean = round(KNOWN.source.requests("train", 0).mean_output_tokens)
    assert shown_lengths(KNOWN.replace(**hidden)) == (mean,) * QUANTILES
    noisy = KNOWN.replace(lengths="predicted", predictor="noisy:0.5", split="train")
    shown = build_problem(noisy, 0).requests[:, 2]
    assert shown_lengths(noisy) == tuple(np.quantile(shown, _middles()).tolist()) != known
    assert shown_lengths(KNOWN.replace(lengths="predicted")) is None, "gsm8k brings no predictions"


def _middles():
    return (np.arange(QUANTILES) + 0.5) / QUANTILES


def test_of_hidden_lengths_the_mean_is_all_that_counts():
    """Two workloads of one mean, one with all lengths alike: hidden, nothing tells them apart; known, all does."""
    wide, narrow = (GammaWorkload(name="x", output_mean_tokens=300, output_sd_tokens=sd) for sd in (150.0, 0.0))
    apart = {}
    for lengths in ("hidden", "known"):
        shown = [shown_lengths(KNOWN.replace(workload=one, lengths=lengths)) for one in (wide, narrow)]
        apart[lengths] = lengths_apart(*shown)
    assert apart["hidden"] < 0.02
    assert apart["known"] > 0.3


def test_distance_on_paper():
    one, other = (2.0,) * QUANTILES, (4.0,) * QUANTILES
    assert lengths_apart(one, other) == pytest.approx(math.log(2))
    halves = (1.0,) * (QUANTILES // 2) + (3.0,) * (QUANTILES // 2)  # of mean 2: half a mean below, half above
    assert lengths_apart(one, halves) == pytest.approx(0.5)
    assert lengths_apart(halves, halves) == 0


def test_a_network_of_ones_own_file_is_known_by_its_lengths(tmp_path):
    homes = [
        file_scenario(name, home.source.requests("train", 5), tmp_path / f"{name[-3:]}.csv")
        for name, home in HOMES.items()
    ]
    path = tmp_path / "own.npz"
    trained = [Trained(network, Origin.of(home)) for network, home in zip(NETWORKS.values(), homes, strict=True)]
    AgentFile(tuple(trained), "x").write(path)
    agent = llmsched_env.agents.files.load_agent(path)
    assert [one.origin for one in agent.trained] == [one.origin for one in trained]
    for name, home in HOMES.items():
        assert agent.origin_for(home).workload == name[-3:]
    bare = [Trained(one.network, dataclasses.replace(one.origin, lengths=None)) for one in trained]
    nameless = Agent("bare", bare)
    assert nameless.origin_for(homes[1]) == bare[1].origin, "nothing is noted: the name is all there is"
    assert nameless.origin_for(KNOWN) == bare[0].origin


def test_bad_quantiles_are_refused():
    origin = Origin.of(KNOWN)
    with pytest.raises(ConfigError, match=f"lengths has 3 quantiles: give {QUANTILES}, or None"):
        dataclasses.replace(origin, lengths=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match=r"a quantile of lengths = 0\.5 is out of range"):
        dataclasses.replace(origin, lengths=(0.5,) * QUANTILES)


def test_the_comparison_says_where_the_network_was_trained(tmp_path, capsys, monkeypatch):
    mine = file_scenario("gsm8k-smooth", HOMES["gsm8k-smooth"].source.requests("test", 0), tmp_path / "mine.csv")
    AgentFile(AGENT.trained, "x").write(tmp_path / "two.npz")
    words = "its network was trained on workload 'gsm8k-smooth', the nearest to 'mine' in queues and output lengths"
    assert entry(str(tmp_path / "two.npz"), mine).text == words
    monkeypatch.setattr("llmsched_env.baselines.__main__.ends_of", lambda *_: (None, None, None))
    asked = ["--cases", "1", "--clients", "8", "--requests", "40", "--policies", f"lagrangian,{tmp_path / 'two.npz'}"]
    assert main([*asked, "--workload", str(mine.workload), "--json", str(tmp_path / "x.json")]) == 0
    assert f"two: {words}." in capsys.readouterr().out
    assert "two" in json.loads((tmp_path / "x.json").read_text())["policies"]
    assert main([*asked, "--workload", "gsm8k"]) == 0
    assert "its network" not in capsys.readouterr().out
