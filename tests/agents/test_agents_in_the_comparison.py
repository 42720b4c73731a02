"""``python -m baselines`` with trained agents among the policies."""

from __future__ import annotations

import json

import pytest
from networks import SCENARIOS, SERVING, random_network

import llmsched_env.agents.files
import llmsched_env.baselines.__main__ as command
from llmsched_env.agents.agent import Origin, Trained
from llmsched_env.agents.files import AgentFile
from llmsched_env.baselines import registry
from llmsched_env.baselines.guarded import Guarded
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.evaluation import evaluate

SMALL = ["--requests", "40", "--clients", "6", "--cases", "2"]
ORDERS = ["--scenario", "LLMSched/ServingOrder-v0", "--requests", "120", "--clients", "8", "--cases", "2"]


def write(path, **places):
    trained = [
        Trained(random_network(number, actions=SCENARIOS[name].num_actions), Origin.of(SCENARIOS[name]))
        for name, number in places.items()
    ]
    AgentFile(tuple(trained), "x").write(path)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An agent in the current folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.npz", client=1, orders=2)


@pytest.fixture
def box(tmp_path, monkeypatch):
    """Agents that are shipped."""
    monkeypatch.setattr(llmsched_env.agents.files, "WEIGHTS", tmp_path / "weights")
    write(tmp_path / "weights" / "gsm8k.npz", client=1)
    write(tmp_path / "weights" / "serving.npz", orders=2)
    for names in (registry.AGENTS, registry.BASELINES):
        monkeypatch.setitem(names, "agent", Guarded)


@pytest.fixture(autouse=True)
def no_scores(monkeypatch):
    """What scores count from is tuned elsewhere."""
    monkeypatch.setattr(command, "ends_of", lambda *_: (None, None, None))


def rows(path, *arguments):
    assert command.main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))["policies"]


def complaint(capsys, *arguments):
    assert command.main([*arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_file_of_ones_own_is_in_the_table(mine, tmp_path, capsys):
    found = rows(tmp_path / "x.json", *SMALL, "--policies", "lagrangian,mine.npz", "--workers", "2")
    assert [*found] == ["lagrangian", "mine"]
    assert found["mine"]["kind"] == "agent"
    assert found["mine"]["decision_us"]["p50"] > 0
    assert "| mine       | –          | agent |" in capsys.readouterr().out
    scenario = Scenario(num_clients=6, num_requests=40, split="test")
    expected = evaluate(registry.make_policy("mine.npz"), scenario, 2).estimate("makespan_s").mean
    assert found["mine"]["makespan_s"]["mean"] == expected != found["lagrangian"]["makespan_s"]["mean"]


def test_the_agent_of_a_run_is_called_by_its_folder(mine, tmp_path):
    write(tmp_path / "first" / "agent.npz", client=1)
    write(tmp_path / "second" / "beam.npz", client=2)
    found = rows(tmp_path / "x.json", *SMALL, "--policies", "first/agent.npz,second/beam.npz,random")
    assert [*found] == ["first/agent", "second/beam", "random"]


def test_it_chooses_orders_at_every_load(mine, tmp_path):
    options = ["--policies", "min_batch,./mine.npz", "--loads", "0.9,0.5", "--out", "out"]
    found = rows(tmp_path / "x.json", *ORDERS, *options)
    assert found["mine"]["kind"] == "agent"
    assert not found["mine"]["clairvoyant"]
    item = registry.entry("mine.npz", SCENARIOS["orders"])
    assert (item.name, item.kind, item.scenario) == ("mine", "agent", SCENARIOS["orders"])


def test_the_agent_in_the_box_is_listed_where_it_fits(box, tmp_path, capsys):
    for name, fits in {"client": True, "shared": True, "serving": False, "orders": True}.items():
        assert ("agent" in registry.default_names(SCENARIOS[name])) == fits
    found = rows(tmp_path / "x.json", *SMALL, "--policies", "agent,baseline,random")
    assert [*found] == ["agent", "baseline", "random"]
    assert found["agent"]["kind"] == "agent"
    assert command.main(["--list"]) == 0
    assert "\nagent\n" in capsys.readouterr().out
    assert registry.entry("agent", SERVING).text.endswith("no network was surely better on training cases")
    with pytest.raises(ConfigError, match="'agent@fcfs': 'agent' is no rule"):
        registry.entry("agent@fcfs", SCENARIOS["client"])


def test_without_files_nothing_is_in_the_box():
    assert ("agent" in registry.AGENTS) == bool(llmsched_env.agents.files.shipped()) == ("agent" in registry.BASELINES)


def test_complaints(mine, tmp_path, capsys):
    assert "cannot read absent.npz: No such file" in complaint(capsys, *SMALL, "--policies", "absent.npz")
    (tmp_path / "bad.npz").write_text("text")
    assert "bad.npz: not an agent, or damaged" in complaint(capsys, *SMALL, "--policies", "bad.npz")
    words = "agent 'mine' has networks for 2 actions without SLOs (lengths shown), 7 actions with SLOs"
    assert words in complaint(capsys, "--scenario", "LLMSched/Serving-v0", "--policies", "mine.npz")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "mine.npz", client=3)
    said = complaint(capsys, *SMALL, "--policies", "mine.npz,other/mine.npz")
    assert "more than one policy is called 'mine'" in said


def test_errors_of_files_are_those_of_the_loader(mine, tmp_path):
    (tmp_path / "bad.npz").write_text("text")
    with pytest.raises(FileFormatError, match="damaged"):
        registry.make_policy("bad.npz")
    with pytest.raises(PathError, match="cannot read"):
        registry.make_policy("absent.npz")


def test_shipped_agents_go_by_their_names(capsys):
    small = ["--cases", "1", "--clients", "20", "--requests", "60", "--queue", "shared"]
    assert command.main([*small, "--policies", "lagrangian,gsm8k"]) == 0
    assert "| gsm8k " in capsys.readouterr().out
