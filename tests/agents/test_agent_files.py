from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from networks import SCENARIOS, SERVING, Asked, agent_for, history, names, random_network, zero_network

import llmsched_env.agents.files
from llmsched_env import make_scenario
from llmsched_env.agents import load_agent
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.files import AgentFile, shipped, shipped_agent
from llmsched_env.baselines.iteration import deadline, min_batch
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS, CostModel
from llmsched_env.errors import (
    ConfigError,
    EpisodeOverError,
    FileFormatError,
    InvalidViewError,
    PathError,
    UnknownNameError,
)
from llmsched_env.evaluation import begin, evaluate
from llmsched_env.policy import EpisodeContext, Policy

CLIENT, ORDERS = SCENARIOS["client"], SCENARIOS["orders"]
BLIND = CLIENT.replace(queue="shared", order="fcfs", lengths="hidden")


def several():
    """One network of each kind, where it belongs."""
    rule = {"base": "lagrangian", "base_values": (0.1, 1.0), "base_limit": 2.0}
    return [
        Trained(random_network(1), Origin.of(CLIENT)),
        Trained(zero_network(**rule), Origin.of(SCENARIOS["shared"])),
        Trained(
            random_network(2, features=names(True), activation="relu", skip=np.ones((2, 33)), masked=True),
            Origin.of(SERVING),
        ),
        Trained(random_network(3, features=("late",), hidden=(), actions=7), Origin.of(ORDERS)),
    ]


@pytest.fixture
def path(tmp_path):
    where = tmp_path / "mine.npz"
    AgentFile(tuple(several()), "the command", (3, 4)).write(where)
    return where


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of shipped agents."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(llmsched_env.agents.files, "WEIGHTS", folder)
    trained = several()
    AgentFile(tuple(trained[:2]), "x").write(folder / "gsm8k.npz")
    AgentFile(tuple(trained[2:]), "x").write(folder / "serving.npz")
    return folder


def test_what_is_read_is_what_was_written(path):
    found = AgentFile.read(path)
    assert (found.made_by, found.seeds, found.version) == ("the command", (3, 4), "0.1.0")
    for one, two in zip(found.trained, several(), strict=True):
        assert one.origin == two.origin
        assert vars(one.network).keys() == vars(two.network).keys()
        for field, value in vars(one.network).items():
            if field not in ("layers", "skip", "parameters"):
                assert value == getattr(two.network, field)
        assert one.network.parameters.tobytes() == two.network.parameters.tobytes()
    policy = load_agent(path)
    assert isinstance(policy, Policy)
    assert (policy.name, policy.kind, policy.clairvoyant) == ("mine", "agent", False)
    assert load_agent(str(path)).name == "mine"
    for scenario in SCENARIOS.values():
        assert history(policy, scenario) == history(Agent("other", several()), scenario)


def test_the_same_agent_makes_the_same_bytes(path, tmp_path):
    AgentFile.read(path).write(tmp_path / "copy.npz")
    assert (tmp_path / "copy.npz").read_bytes() == path.read_bytes()
    assert len(path.read_bytes()) < 30_000


def test_numbers_of_numpy_are_written_too(tmp_path):
    network = zero_network(base="deadline", base_values=tuple(np.array([0.07, 0.8])))
    AgentFile((Trained(network, Origin.of(SERVING)),), "x", tuple(np.arange(2))).write(tmp_path / "a.npz")
    assert AgentFile.read(tmp_path / "a.npz").seeds == (0, 1)


def test_shipped_agents_go_by_name(weights):
    assert shipped() == ["gsm8k", "serving"]
    assert load_agent("gsm8k").name == "gsm8k"
    assert load_agent("serving").fits(SERVING)
    assert not load_agent("gsm8k").fits(SERVING)
    with pytest.raises(UnknownNameError, match=r"agent .*'gsm8l'. Did you mean 'gsm8k'.* Known: gsm8k, serving"):
        load_agent("gsm8l")
    with pytest.raises(UnknownNameError, match=r"the path of an .npz file"):
        load_agent("model")
    agent = shipped_agent()
    assert (agent.name, len(agent.trained)) == ("agent", 4)
    assert all(agent.fits(scenario) for scenario in SCENARIOS.values())


def test_nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(llmsched_env.agents.files, "WEIGHTS", tmp_path / "none")
    assert shipped() == []
    with pytest.raises(UnknownNameError, match="unknown agent"):
        load_agent("gsm8k")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_agent_can_be_read(name):
    assert load_agent(name).trained


@pytest.mark.parametrize("load", [0.9, 0.97])
@pytest.mark.parametrize("name", ["LLMSched/Serving-v0", "LLMSched/ServingOrder-v0"])
def test_the_shipped_agent_meets_more_slos_than_a_rule(name, load):
    scenario = make_scenario(name, split="validation", load=load)
    agent = evaluate(load_agent("serving"), scenario, 2, latencies=False).columns["goodput"]
    rule = evaluate(deadline(), scenario.replace(choose_order=False), 2, latencies=False).columns["goodput"]
    assert (agent > rule).all()


LOWER = PRESETS["llama-65b-paper-low"]


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, "client"),
        ({"queue": "shared"}, "shared"),
        ({"queue": "shared", "workload": "lognormal"}, "shared"),
        ({"workload": "lognormal"}, "client, smooth"),
        ({"cost": "llama-65b-paper-low"}, "client, low"),
        ({"assignment": "mip"}, "client, mip"),
        ({"assignment": "round_robin"}, "client"),
        # The form of the queues comes before the assignment, that before the lengths, then the prices, then the load.
        ({"assignment": "mip", "workload": "gsm8k-smooth"}, "client, mip"),
        ({"assignment": "mip", "queue": "shared"}, "shared"),
        ({"workload": "gsm8k-smooth"}, "client, smooth"),
        ({"workload": "gsm8k-smooth", "cost": "llama-65b-paper-low"}, "client, smooth"),
        ({"queue": "shared", "workload": "gsm8k-smooth"}, "shared"),
        # 23.2 / 17.9 = 1.30 and 9.1 / 50.6 = 0.18: halfway in logarithms is 0.484.
        ({"cost": replace(LOWER, alpha_prefill_ns=485, alpha_decode_ns=1000)}, "client"),
        ({"cost": replace(LOWER, alpha_prefill_ns=482, alpha_decode_ns=1000)}, "client, low"),
        ({"load": 0.8}, "client, loaded"),
        ({"load": 0.8, "cost": "llama-65b-paper-low"}, "client, low"),
        ({"cost": replace(LOWER, alpha_prefill_ns=0)}, "client, low"),
        ({"cost": replace(LOWER, alpha_decode_ns=0)}, "client"),
        ({"cost": replace(LOWER, alpha_prefill_ns=0, alpha_decode_ns=0)}, "client"),
    ],
)
def test_the_nearest_network_decides(changes, chosen):
    base = Scenario(assignment="lpt", num_clients=8, num_requests=60)
    places = {
        "serving": SERVING,
        "client": base,
        "client, again": base,
        "client, mip": base.replace(assignment="mip"),
        "client, low": base.replace(cost="llama-65b-paper-low"),
        "client, smooth": base.replace(workload="gsm8k-smooth"),
        "client, loaded": base.replace(load=0.9),
        "client, overloaded": base.replace(load=2.0),
        "shared": base.replace(queue="shared"),
    }
    networks = {name: random_network(number) for number, name in enumerate(places)}
    agent = Agent("several", [Trained(networks[name], Origin.of(place)) for name, place in places.items()])
    assert agent.network_for(base.replace(**changes)) is networks[chosen]


def test_a_load_is_nearer_to_a_load_than_to_none():
    networks = [random_network(number) for number in range(3)]
    places = [SERVING.replace(load=load) for load in (None, 0.7, 0.9)]
    agent = Agent("several", [Trained(*pair) for pair in zip(networks, map(Origin.of, places), strict=True)])
    for load, number in ((None, 0), (0.1, 1), (0.75, 1), (0.85, 2), (5.0, 2)):
        assert agent.network_for(SERVING.replace(load=load)) is networks[number]


def test_prices_of_prefill_levels_are_those_of_the_first():
    levels = CostModel("levels", 0, 1, 10, 0, prefill_levels=((100, 40), (2048, 90)))
    assert Origin.of(CLIENT.replace(cost=levels)).price_ratio == 4.0


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (SERVING, "needs one for 2 actions with SLOs \\(lengths hidden\\)"),
        (BLIND, "needs one for 2 actions without SLOs \\(lengths hidden\\)"),
        (ORDERS, "needs one for 7 actions with SLOs.*change choose_order"),
    ],
)
def test_a_scenario_that_no_network_fits(scenario, words):
    agent = agent_for(CLIENT, random_network(), "mine")
    with pytest.raises(
        ConfigError, match=f"agent 'mine' has networks for 2 actions without SLOs \\(lengths shown\\); .*{words}"
    ):
        agent.reset(EpisodeContext(scenario, 100.0))
    with pytest.raises(ConfigError, match=words):
        evaluate(agent, scenario, 1)


def test_an_agent_must_be_started():
    with pytest.raises(RuntimeError, match="policy 'mine' was asked before reset"):
        agent_for(CLIENT, random_network(), "mine").act(None)


def test_an_episode_goes_on_after_pickling():
    agent = agent_for(CLIENT, random_network(4))
    expected = history(agent, CLIENT)
    assert history(pickle.loads(pickle.dumps(agent)), CLIENT) == expected
    agent.reset(EpisodeContext(CLIENT, 100.0))
    again = Asked(pickle.loads(pickle.dumps(agent)))
    again.reset = lambda start: None
    assert history(again, CLIENT) == expected


def test_studies_tell_agents_apart(path, tmp_path):
    one, two = load_agent(path), agent_for(CLIENT, random_network(9), "mine")
    found = []
    for agent in (one, two, one):
        shared = evaluate(agent, CLIENT, 6, workers=2, chunk=3, folder=tmp_path / "study")
        alone = evaluate(agent, CLIENT, 6).columns["makespan_s"].tolist()
        assert shared.columns["makespan_s"].tolist() == alone
        found.append(alone)
        assert shared.kind == "agent"
    assert found[0] != found[1]
    assert len([*(tmp_path / "study").iterdir()]) == 4, "two chunks each, and none for the same again"


def changed(path, **arrays):
    """The file with some arrays others; ``None`` leaves one out."""
    with np.load(path, allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}
    np.savez(path, **{name: array for name, array in {**found, **arrays}.items() if array is not None})


def with_metadata(path, change):
    """The file with other metadata."""
    with np.load(path, allow_pickle=False) as stored:
        metadata = json.loads(stored["metadata"].tobytes())
    change(metadata)
    changed(path, metadata=np.frombuffer(json.dumps(metadata).encode(), np.uint8))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code of a file was run",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"0.weight_0": np.array([Trap()], object)},
            "damaged .ValueError: Object arrays cannot be loaded",
        ),
        ({"metadata": np.array([Trap()], object)}, "Object arrays cannot be loaded"),
        ({"metadata": None}, "'metadata' is missing"),
        ({"0.bias_1": None}, "'0.bias_1' is missing"),
        ({"2.skip": None}, "'2.skip' is missing"),
        ({"0.weight_0": np.zeros((8, 25))}, r"layer 0 has weights of shape \(8, 25\)"),
        ({"0.bias_0": np.zeros((8, 1))}, r"biases of shape \(8, 1\)"),
        ({"0.bias_0": np.array(1.0)}, r"biases of shape \(\)"),
        ({"0.bias_0": np.zeros(8, np.int64)}, "array '0.bias_0' is of int64, it has to be of floats"),
        ({"0.bias_0": np.zeros(8, "U3")}, "array '0.bias_0' is of <U3"),
        ({"0.bias_0": np.full(8, np.nan)}, "not finite"),
        ({"2.skip": np.zeros((2, 2))}, "skip has shape"),
        ({"metadata": np.frombuffer(b"{", np.uint8)}, "not an agent, or damaged: Expecting"),
        ({"metadata": np.frombuffer(b"[]", np.uint8)}, "not an agent, or damaged: list indices"),
        ({"metadata": np.frombuffer(b"{}", np.uint8)}, "'format' is missing"),
        ({"metadata": np.zeros(3)}, "not an agent, or damaged"),
        ({"more": np.zeros(2**23)}, "bytes of arrays, at most 67108864 are read"),
    ],
)
def test_arrays_that_are_no_agent(path, arrays, words):
    changed(path, **arrays)
    with pytest.raises(FileFormatError, match=f"mine.npz: .*{words}"):
        load_agent(path)


def network(**changes):
    return lambda said: said["networks"][0].update(changes)


def origin(**changes):
    return lambda said: said["networks"][0]["origin"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda said: said.update(format=2, version="9.1"),
            "another version: .*2, .*reads 1. Take llmsched-env 9.1",
        ),
        (network(features=["mood"]), "an agent for another observation table: network 0 reads feature 'mood'.* 0.1.0"),
        (network(table="0"), "another observation table: network 0 reads features whose formulas were others"),
        (lambda said: said.update(networks=[]), "an agent without networks"),
        (lambda said: said.pop("seeds"), "'seeds' is missing"),
        (network(head="tail"), "unknown head 'tail'"),
        (network(layers="two"), "not an agent, or damaged"),
        (network(actions=3), "the last layer has 2 outputs, but 3 actions need 3"),
        (network(actions="2"), "actions = '2' is not a whole number"),
        (network(actions=2.0), "actions = 2.0 is not a whole number"),
        (network(masked=5), "masked = 5 is neither True nor False"),
        (
            lambda said: said["networks"][1].update(base_values=["0.1", "1.0"]),
            r"base_values\[0\] = '0.1' is not a number",
        ),
        (lambda said: said["networks"][1].update(base_limit=True), "base_limit = True is not a number"),
        (origin(queue="both"), "unknown queue 'both'"),
        (origin(price_ratio=0.0), "price_ratio = 0.0 is out of range"),
        (origin(price_ratio="high"), "price_ratio = 'high' is not a number"),
        (origin(load=-1), "load = -1 is out of range"),
        (origin(serving=1), "serving = 1 is neither True nor False"),
        (origin(planet="Mars"), "unexpected keyword argument 'planet'"),
        (lambda said: said["networks"][3]["origin"].update(serving=False), "what is known with SLOs only"),
    ],
)
def test_metadata_that_are_no_agents(path, change, words):
    with_metadata(path, change)
    with pytest.raises(FileFormatError, match=f"mine.npz: .*{words}"):
        load_agent(path)


def test_files_that_are_no_archive(path, tmp_path):
    whole = path.read_bytes()
    single, pickled = io.BytesIO(), pickle.dumps(Trap())
    np.save(single, np.zeros(3))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("metadata.npy", "no array")
    for content in (
        b"",
        b"text",
        whole[:100],
        whole[:-30],
        single.getvalue(),
        pickled,
        (tmp_path / "other.npz").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"mine.npz: not an agent, or damaged"):
            load_agent(path)
    with pytest.raises(PathError, match=r"cannot read .*absent.npz: No such file.* Give the .npz file of an agent"):
        load_agent(tmp_path / "absent.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(PathError, match=r"cannot read .*folder.npz: Is a directory"):
        load_agent(tmp_path / "folder.npz")


def test_a_flipped_byte_never_goes_unnoticed_as_another_agent(path):
    whole, rng, found = path.read_bytes(), np.random.default_rng(0), 0
    expected = AgentFile.read(path)
    for at in rng.integers(0, len(whole), 300):
        harmed = bytearray(whole)
        harmed[at] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(harmed))
        try:
            read = AgentFile.read(path)
        except FileFormatError:
            found += 1
            continue
        # In what the archive says of itself, such as dates, there is room for an error.
        for one, two in zip(read.trained, expected.trained, strict=True):
            assert one.network.parameters.tobytes() == two.network.parameters.tobytes()
    assert found > 200


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="an agent without networks"):
        AgentFile((), "x")
    file = AgentFile(tuple(several()), "x")
    with pytest.raises(ConfigError, match=r"model.zip: its name has to end in .npz"):
        file.write(tmp_path / "model.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="cannot write"):
        file.write(tmp_path / "file" / "a.npz")
    with pytest.raises(ConfigError, match="what is known with SLOs only"):
        Trained(random_network(features=("late",)), Origin.of(CLIENT))


def test_the_examples_of_the_page_run(path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    path.rename("my_agent.npz")
    page = Path(__file__).parents[2] / "docs" / "agents.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    assert capsys.readouterr().out.startswith("Estimate(mean=")
    made = AgentFile.read("my_agent.npz")
    assert made.made_by == "by hand"
    assert history(Agent("x", made.trained), SCENARIOS["client"]) == history(min_batch(2), SCENARIOS["client"])


def test_what_is_no_file_of_an_agent_is_named(tmp_path):
    (tmp_path / "agent.npz").touch()
    with pytest.raises(PathError, match=r"is a folder: give .*agent\.npz"):
        load_agent(tmp_path)
    with pytest.raises(PathError, match=r"model\.zip is a model of stable-baselines3, which can run code"):
        load_agent("runs/x/model.zip")


def test_an_agent_is_played_step_by_step():
    agent, scenario = load_agent("gsm8k"), Scenario(num_clients=20, num_requests=60, queue="shared", split="test")
    env = gymnasium.make("llmsched_env:LLMSched/GSM8K-v0", scenario=scenario)
    observation, _ = env.reset(options={"case": 3})
    with pytest.raises(RuntimeError, match="was asked before reset: call llmsched_env"):
        load_agent("gsm8k").act(env.unwrapped.simulator.view)
    begin(agent, env)
    with pytest.raises(InvalidViewError, match="was asked about a ndarray: act takes a view"):
        agent.act(observation)
    over = False
    while not over:
        _, _, over, _, info = env.step(agent.act(env.unwrapped.simulator.view))
    assert info["makespan_s"] == evaluate(agent, scenario, [3]).columns["makespan_s"][0]
    with pytest.raises(EpisodeOverError):
        begin(agent, gymnasium.make("llmsched_env:LLMSched/GSM8K-v0"))


def test_a_network_that_reads_of_the_cache_needs_one():
    """Where nothing is known of a KV cache, nothing would be read but zeros."""
    budget = make_scenario("LLMSched/KVMemory-v0", choose_cap=False)
    reads = zero_network(features=("kv_used",))
    agent = Agent("reads", [Trained(reads, Origin.of(budget))])
    assert agent.fits(budget)
    assert not agent.fits(budget.replace(kv_budget_tokens=None, kv_block_tokens=1))
