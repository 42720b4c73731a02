from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import (
    PLAIN,
    SCENARIOS,
    SERVING,
    Asked,
    agent_for,
    history,
    names,
    random_network,
    scores,
    views,
    zero_network,
)
from strategies import REPEATABLE

from llmsched_env import make_scenario
from llmsched_env.agents.network import ACTIVATIONS, Network, dense
from llmsched_env.baselines.iteration import deadline, decode_first
from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_lookahead
from llmsched_env.cases import build_problem
from llmsched_env.engine.features import ALL_FEATURES, all_features, features_of
from llmsched_env.engine.network import FORECAST_PLACES, squashed
from llmsched_env.engine.view import FIELDS
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import play
from llmsched_env.policy import EpisodeContext, View, features
from llmsched_env.simulator import Simulator


def asked(network, scenario, views):
    """The action at each view, of an agent that is asked for one after the other."""
    agent = agent_for(scenario, network)
    agent.reset(EpisodeContext(scenario, 100.0))
    return [agent.act(view) for view in views]


def decided(network, view):
    """The action by matrices, or -1 where two are all but level."""
    found = scores(network, view)
    if network.head == "prefill":
        if view.active > 0 and abs(found[0]) < 1e-6:
            return -1
        if view.active > 0 and found[0] < 0:
            return 0
        found = np.array([-np.inf, *(found[1:] if network.actions > 2 else [0.0])])
    elif network.masked and view.active == 0:
        found[0] = -np.inf
    best, second = np.sort(found)[[-1, -2]]
    return -1 if best - second < 1e-6 else int(np.argmax(found))


def test_the_tanh_is_one():
    values = np.concatenate([np.linspace(-30.0, 30.0, 100_001), [0.0, -0.0, 1e-300, 1e300, -np.inf, np.inf]])
    found = squashed(values, len(values) - 1)
    np.testing.assert_allclose(found[:-1], np.tanh(values[:-1]), rtol=0, atol=5e-8)
    assert found[-1] == np.inf  # only as many as asked for


@st.composite
def networks(draw, slo, actions):
    read = draw(st.lists(st.sampled_from(names(slo)), min_size=1, max_size=12))
    head = draw(st.sampled_from(["actions", "prefill"]))
    outputs = 1 if head == "prefill" and actions == 2 else actions
    skip = draw(st.booleans())
    return random_network(
        draw(st.integers(0, 2**32)),
        features=tuple(read),
        actions=actions,
        hidden=tuple(draw(st.lists(st.integers(1, 9), max_size=3))),
        outputs=outputs,
        head=head,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        masked=draw(st.booleans()),
        skip=np.random.default_rng(1).normal(size=(outputs, len(read))) if skip else None,
    )


@pytest.mark.parametrize("name", ["client", "serving", "orders"])
def test_it_decides_as_the_matrices_say(name):
    scenario, seen, level, masked = SCENARIOS[name], set(), 0, 0
    seldom = [view for view in views(name) if view.active == 0][:100]
    assert bool(seldom) == (name == "orders"), "with two actions nobody is asked where no client is active"
    pool = 8 * seldom + views(name)[::5]

    @settings(REPEATABLE, max_examples=300)
    @given(network=networks(scenario.serving, scenario.num_actions), at=st.integers(0, len(pool) - 9))
    def law(network, at):
        nonlocal level, masked
        few = pool[at : at + 8]
        for view, action in zip(few, asked(network, scenario, few), strict=True):
            expected = decided(network, view)
            level += expected < 0
            if network.head == "actions" and network.masked and view.active == 0:
                masked += scores(network, view).argmax() == 0
            assert action == expected or expected < 0
            seen.add((network.head, action))

    law()
    assert bool(masked) == (name == "orders"), "no decode was left out for being infeasible"
    assert level < 50, "too many ties: hardly anything was tested"
    assert seen == {(head, action) for head in ("actions", "prefill") for action in range(scenario.num_actions)}


def test_the_hidden_layer_changes_a_score_by_no_more_than_its_reach():
    """Where the rest is farther from 0 than that, the hidden layer is left out."""
    left_out, largest = 0, 0.0
    for seed in range(20):
        skip = 3 * np.random.default_rng(seed).normal(size=(1, len(PLAIN)))
        network = random_network(seed, head="prefill", hidden=(7,), outputs=1, skip=skip, scale=0.5)
        rule = network.rule()
        assert rule.bounded
        for view in views("client")[::50]:
            seen = all_features(view)[np.asarray(rule.places)].astype(np.float64)
            straight = float(rule.bias + np.asarray(rule.skip) @ seen)
            changed = abs(scores(network, view)[0] - straight)
            assert changed <= rule.reach
            largest = max(largest, changed / rule.reach)
            left_out += abs(straight) > rule.reach
    assert largest > 0.5
    assert 100 < left_out < 500
    for fields in ({"activation": "relu"}, {"hidden": (7, 3)}, {"hidden": ()}, {"head": "actions", "outputs": 2}):
        assert not random_network(**{"head": "prefill", "outputs": 1, **fields}).rule().bounded


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("head", ["actions", "prefill"])
def test_whole_episodes_in_the_loop_and_asked_are_one(name, head):
    scenario = SCENARIOS[name]
    actions = scenario.num_actions
    network = random_network(
        5,
        actions=actions,
        features=names(scenario.serving),
        head=head,
        outputs=1 if head == "prefill" and actions == 2 else actions,
        masked=True,
    )
    agent = agent_for(scenario, network)
    for case in range(3):
        expected = history(agent, scenario, case)
        assert history(Asked(agent), scenario, case) == expected
        assert play(agent, scenario, case).totals.invalid_actions == 0


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["client", "shared", "serving"])
def test_zeros_on_the_lagrangian_rule_are_the_lagrangian_rule(name, multiplier):
    scenario, told = SCENARIOS[name], set()
    for rule, weight in ((lagrangian, 0.0), (lagrangian_lookahead, 1.0)):
        network = zero_network(base="lagrangian", base_values=(math.log(multiplier), weight))
        for case in range(5):
            found = history(agent_for(scenario, network), scenario, case)
            assert found == history(rule(multiplier), scenario, case)
            told.add(found)
    assert len(told) == 10, "the two readings were not told apart"


def test_zeros_on_a_rule_choose_the_first_order():
    scenario = SCENARIOS["orders"]
    network = zero_network(base="lagrangian", base_values=(0.0, 0.0), actions=7)
    expected = history(lagrangian(), scenario.replace(choose_order=False))
    assert history(agent_for(scenario, network), scenario) == expected


@pytest.mark.parametrize(("requests", "share"), [(14, 0.8), (3, 0.1), (200, 0.5)])
def test_zeros_on_the_deadline_rule_are_the_deadline_rule(requests, share):
    # 14 / 200 * 200 is above 14 in floating point: a share of the clients is not to be multiplied back.
    scenario = make_scenario("LLMSched/Serving-v0", num_requests=1500)
    network = zero_network(base="deadline", base_values=(requests / 200, share))
    for case in range(2):
        found = history(agent_for(scenario, network), scenario, case)
        assert found == history(deadline(requests, share), scenario, case)
        assert found != history(lagrangian(), scenario, case)


def test_from_the_limit_of_the_base_on_it_prefills():
    """A network that never wants a prefill is the rule that waits e^limit times as long."""
    scenario = SCENARIOS["shared"]
    zero = zero_network(base="lagrangian", base_values=(math.log(0.5), 0.0))
    ((weight, bias),) = zero.layers
    unbounded = dataclasses.replace(zero, layers=((weight, bias - 100.0),))
    for limit in (0.0, 1.5):
        found = history(agent_for(scenario, dataclasses.replace(unbounded, base_limit=limit)), scenario)
        assert found == history(lagrangian(0.5 * math.exp(limit)), scenario)
    assert history(agent_for(scenario, unbounded), scenario) == history(decode_first(), scenario)


def test_a_network_on_paper():
    # ReLU(2 active - 1, 1 - 2 active) times (3, 5), less 1: 2 active - 1 = 0.5 at active 0.75 gives 0.5, a prefill; and
    # 0.0 at 0.5 gives -1, a decode.
    network = Network(
        ("active",),
        (dense([[2.0], [-2.0]], [-1.0, 1.0]), dense([[3.0, 5.0]], [-1.0])),
        head="prefill",
        activation="relu",
    )
    for active, action in ((6, 1), (4, 0), (0, 1), (1, 1)):
        view = View(active=active, num_clients=8, token_cap=1, mean_output_tokens=100.0, decode_ns=1)
        assert asked(network, SCENARIOS["client"], [view]) == [action]


LAYER = dense([[1.0], [2.0]], [0.0, 0.0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"features": ("activ",)}, "unknown feature 'activ'. Did you mean 'active'"),
        ({"head": "order"}, "unknown head 'order'"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"base": "threshold"}, "unknown base 'threshold'"),
        ({"features": ()}, "at least one feature"),
        ({"layers": ()}, "one layer"),
        ({"actions": 1}, r"actions = 1 is out of range: it lies in \[2, "),
        ({"actions": 2.0}, "actions = 2.0 is not a whole number"),
        ({"actions": True}, "actions = True is not a whole number"),
        ({"masked": 5}, "masked = 5 is neither True nor False"),
        ({"base_limit": "1"}, "base_limit = '1' is not a number"),
        (
            {"base": "lagrangian", "base_values": (0.1, "1.0"), "head": "prefill"},
            r"base_values\[1\] = '1.0' is not a number",
        ),
        (
            {"layers": ((np.array([["1"], ["2"]]), np.zeros(2)),)},
            "weights or biases are of <U1: give arrays of floats",
        ),
        ({"layers": (([[1.0], [2.0]], [0.0, 0.0]),)}, "weights or biases are of list: give arrays of floats"),
        ({"skip": np.array([[1], [2]])}, "weights or biases are of int64"),
        ({"base": "lagrangian", "head": "prefill", "actions": 2}, r"base 'lagrangian' has 2 numbers, not 0: \(\)"),
        ({"base": "lagrangian", "base_values": (0.0, 0.0)}, "base 'lagrangian' with head 'actions': only the score of"),
        (
            {"base": "deadline", "base_values": (0.0, 0.5), "head": "prefill"},
            r"'deadline' has the numbers \(0.0, 0.5\)",
        ),
        (
            {"features": ("active", "ready")},
            r"layer 0 has weights of shape \(2, 1\) and biases of shape \(2,\) after 2",
        ),
        ({"layers": (LAYER, LAYER)}, r"layer 1 has weights of shape \(2, 1\) .* after 2 values"),
        ({"layers": ((LAYER[0], np.zeros((2, 1))),)}, r"biases of shape \(2, 1\)"),
        ({"layers": ((LAYER[0], np.array(0.0)),)}, r"biases of shape \(\)"),
        ({"layers": ((np.zeros((0, 1)), np.zeros(0)),)}, r"weights of shape \(0, 1\)"),
        ({"layers": ((np.zeros(2), np.zeros(2)),)}, r"weights of shape \(2,\)"),
        ({"actions": 7}, "the last layer has 2 outputs, but 7 actions need 7"),
        ({"head": "prefill"}, "the last layer has 2 outputs, but 2 actions need 1"),
        ({"skip": np.zeros((1, 2))}, r"skip has shape \(1, 2\), it has to be \(2, 1\)"),
        ({"layers": (dense([[1.0], [math.nan]], [0.0, 0.0]),)}, "not finite: its training has failed"),
        ({"base_limit": math.inf}, "not finite"),
        ({"base_limit": -0.5}, r"base_limit = -0.5 is out of range: it is at least 0"),
    ],
)
def test_bad_input(fields, words):
    Network(("active",), (LAYER,))
    with pytest.raises((ConfigError, UnknownNameError), match=words):
        Network(**{"features": ("active",), "layers": (LAYER,), **fields})


def test_what_needs_slo():
    assert not random_network().needs_slo
    assert random_network(features=("late",)).needs_slo
    assert zero_network(base="deadline", base_values=(0.1, 0.5)).needs_slo
    assert SERVING.serving


def test_what_is_not_modelled_reads_as_zero():
    """Whatever lay there: a network that reads it must not decide by what another episode has left."""
    for name, modelled in (("LLMSched/GSM8K-Blind-v0", 26), ("LLMSched/Serving-v0", 33)):
        view = Simulator(build_problem(make_scenario(name, num_requests=20, num_clients=4), 0)).view
        seen = all_features(view)
        assert (seen[:modelled] == features(view)).all()
        assert (seen[modelled:] == 0).all()
    names = [feature.name for feature in ALL_FEATURES]
    memory = make_scenario("LLMSched/KVMemory-v0", num_requests=20, num_clients=4)
    view = Simulator(build_problem(memory, 0)).view
    seen = all_features(view)
    found = dict(zip(names, seen.tolist(), strict=True))
    assert [found[one.name] for one in features_of(memory)] == features(view).tolist()
    assert found["late"] == found["chunk"] == 0


def test_which_features_are_made_of_the_forecast():
    """Networks that read none of these let the loop leave it out."""
    scenario = make_scenario("LLMSched/KVMemory-v0", num_requests=60, num_clients=6).replace(ttft_s=2.0, tpot_s=0.2)
    simulator, moved = Simulator(build_problem(scenario, 0)), set()
    while not simulator.done:
        simulator.step(int(simulator.can_prefill))
        view = simulator.view.copy()
        before = all_features(view)
        forecast = (
            "due_1",
            "due_4",
            "due_16",
            "due_64",
            "due_256",
            "overdue",
            "remaining",
            "remaining_squared",
            "last_due",
        )
        changed = View(
            **{name: getattr(view, name) * (1 if name not in forecast else 3) + (name in forecast) for name in FIELDS}
        )
        moved |= set(np.flatnonzero(all_features(changed) != before).tolist())
    assert moved == set(FORECAST_PLACES)


def test_networks_that_read_no_forecast_decide_alike_without_it():
    scenario = SCENARIOS["shared"]
    plain = random_network(3, features=("active", "ready", "waiting", "charge"), scale=0.5)
    assert not plain.rule().reads_forecast
    assert random_network(3).rule().reads_forecast
    assert history(agent_for(scenario, plain), scenario) == history(Asked(agent_for(scenario, plain)), scenario)
