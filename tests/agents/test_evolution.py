"""The evolution strategy: what it begins with, that it learns, repeats and goes on, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import history
from numpy.testing import assert_array_equal

import llmsched_env.agents.encoding
import llmsched_env.agents.evolution
from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent, Origin
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.encoding import Encoding
from llmsched_env.agents.evolution import TRIED_EVERY, Evolution, EvolutionSettings
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, FileFormatError, UnknownNameError
from llmsched_env.evaluation import Evaluation, evaluate
from llmsched_env.policy import EpisodeContext, features
from llmsched_env.simulator import Simulator

SMALL = Scenario(num_clients=20, num_requests=120, queue="shared")
WITH_SLO = make_scenario("LLMSched/ServingOrder-v0", num_clients=20, num_requests=150, load=0.97)
QUICK: dict[str, Any] = {"hidden": 3, "population": 8, "cases": 3, "pool": 6}


def evolution(scenario: Scenario = SMALL, seed: int = 0, **changes: Any) -> Evolution:
    return Evolution(scenario, EvolutionSettings(**{**QUICK, **changes}), seed)


def learn(learner: Evolution, generations: int) -> Evolution:
    class EnoughError(Exception):
        pass

    def report() -> None:
        if learner.generation >= generations:
            raise EnoughError

    with pytest.raises(EnoughError):
        learner.learn(10**12, report)
    return learner


def above_lb1(found: Evaluation) -> np.ndarray:
    """(cases,) the gap to LB1, which training goes by."""
    return found.columns["makespan_s"] / found.columns["lb1_s"] - 1


@pytest.mark.parametrize("scenario", [SMALL, SMALL.replace(queue="client", assignment="lpt"), WITH_SLO], ids=str)
def test_an_arena_plays_as_an_evaluation_does(scenario: Scenario) -> None:
    learner = evolution(scenario)
    candidates = np.random.default_rng(1).normal(0.0, 0.5, (3, learner.encoding.size))
    evaluation = BatchEvaluation(scenario, range(5), threads=2)
    losses, iterations = evaluation.losses(learner.encoding.networks(list(candidates)), [4, 0, 2])
    told = 0
    for row, parameters in zip(losses, candidates, strict=True):
        found = evaluate(
            Agent.of("x", learner.encoding.network(parameters), scenario), scenario, [4, 0, 2], latencies=False
        )
        expected = 1 - found.columns["goodput"] if scenario.serving else above_lb1(found)
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)
        told += int((found.columns["prefills"] + found.columns["decodes"]).sum())
    assert iterations == told


def test_zeros_are_the_base_rule_with_its_best_numbers() -> None:
    learner = evolution(pool=16)
    encoding = learner.encoding
    evaluation = BatchEvaluation(SMALL, range(16))
    zeros, _ = evaluation.losses(encoding.networks([np.zeros(encoding.size)]), range(16))
    multiplier = float(np.exp(encoding.base_values[0]))
    if encoding.base_values[1] == 0:
        same = above_lb1(evaluate(lagrangian(multiplier), SMALL, 16))
        np.testing.assert_allclose(zeros[0], same, atol=1e-12)
    for other in (0.05, 0.3, 1.0):
        assert zeros.mean() <= above_lb1(evaluate(lagrangian(other), SMALL, 16)).mean() + 1e-12


def test_features_are_standardised() -> None:
    """A network in standardised features is the network in plain ones: the same outputs, by hand."""
    rng = np.random.default_rng(3)
    encoding = Encoding(
        ("ready", "waiting"), np.array([0.2, 0.7]), np.array([0.1, 0.4]), 2, 7, "deadline", (0.1, 0.5), 3
    )
    numbers = rng.normal(size=encoding.size)
    network = encoding.network(numbers)
    x = np.array([0.35, 0.4])
    z = (x - encoding.mean) / encoding.spread
    shift, inner, inner_bias, outer, outer_bias, skip = np.split(numbers, np.cumsum([2, 4, 2, 14, 7]))
    expected = np.tanh(inner.reshape(2, 2) @ z + inner_bias) @ outer.reshape(7, 2).T + outer_bias
    expected = expected + skip.reshape(7, 2) @ z
    expected[1 + 3] += 0.5
    (first, first_bias), (last, last_bias) = network.layers
    assert network.skip is not None
    found = np.tanh(first @ x + first_bias) @ last.T + last_bias + network.skip @ x
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(network.base_values, np.array([0.1, 0.5]) * np.exp(shift))


def test_a_choice_among_some_orders() -> None:
    """The numbers of three outputs lie in the rows of the prefill and of two orders; the others are never best."""
    rng = np.random.default_rng(4)
    every = Encoding(("ready", "waiting"), np.zeros(2), np.ones(2), 2, 7, "deadline", (0.1, 0.5), 3)
    encoding = every._replace(orders=(1, 3))
    assert encoding.outputs == 3
    network = encoding.network(rng.normal(size=encoding.size))
    weight, bias = network.layers[1]
    assert network.skip is not None
    for values in (weight, network.skip):
        assert (values[[0, 2, 4]] != 0).all()
        assert not values[[1, 3, 5, 6]].any()
    assert (bias[[1, 3, 5, 6]] == -1e9).all()
    assert (abs(bias[[0, 2, 4]]) < 10).all()
    learner = learn(evolution(WITH_SLO, orders=("late_last", "late_last_shortest")), 2)
    assert learner.encoding.size < evolution(WITH_SLO).encoding.size
    (policy,), simulator = learner.policies(), Simulator(build_problem(WITH_SLO, 0))
    policy.reset(EpisodeContext(WITH_SLO, 100.0))
    taken = []
    while not simulator.done:
        taken.append(policy.act(simulator.view) if simulator.has_choice else int(simulator.can_prefill))
        simulator.step(taken[-1])
    assert set(taken) - {1} <= {0, 2, 4}
    with pytest.raises(ConfigError, match="orders are no actions here"):
        evolution(orders=("late_last",))


@pytest.fixture
def bad_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that wait far too long, which the first parameters alone can mend: there is much to be learnt."""
    bad: dict[str, list[tuple[float, ...]]] = {"lagrangian": [(math.log(5.0), 0.0)], "deadline": [(0.5, 2.0)]}
    monkeypatch.setattr(llmsched_env.agents.encoding, "FIRST_VALUES", bad)


@pytest.mark.usefixtures("bad_start")
@pytest.mark.parametrize("scenario", [SMALL, WITH_SLO], ids=["known lengths", "SLOs"])
def test_it_learns(scenario: Scenario) -> None:
    learner = evolution(scenario, pool=8, cases=8, population=16)
    evaluation = BatchEvaluation(scenario, range(8))

    def loss() -> float:
        return float(evaluation.losses([learner.network()], range(8))[0].mean())

    before = loss()
    learn(learner, TRIED_EVERY)
    assert loss() < 0.85 * before  # 0.68 and 0.32 of it at most, of six seeds each
    assert learner.generation == TRIED_EVERY
    assert learner.timesteps > TRIED_EVERY * 16 * 8 * 100


def test_a_seed_repeats_whatever_the_threads() -> None:
    first, again, other = learn(evolution(), 5), learn(evolution(), 5), learn(evolution(seed=1), 5)
    shared = learn(Evolution(SMALL, EvolutionSettings(**QUICK), 0, threads=3), 5)
    assert_array_equal(first.numbers, again.numbers)
    assert_array_equal(first.numbers, shared.numbers)
    assert first.timesteps == shared.timesteps
    assert (first.numbers != other.numbers).any()


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("scenario", [SMALL, WITH_SLO], ids=["known lengths", "SLOs"])
def test_going_on_is_as_if_never_stopped(tmp_path: Path, scenario: Scenario, covariance: str) -> None:
    straight = learn(evolution(scenario, covariance=covariance), 12)
    stopped = learn(evolution(scenario, covariance=covariance), 5)
    stopped.save(tmp_path)
    settings = EvolutionSettings(**{**QUICK, "covariance": covariance})
    resumed = Evolution.resumed(scenario, settings, 0, tmp_path)
    assert_array_equal(resumed.numbers, stopped.numbers)
    assert resumed.timesteps == stopped.timesteps
    learn(resumed, 12)
    assert_array_equal(resumed.numbers, straight.numbers)
    assert resumed.timesteps == straight.timesteps
    assert resumed.figures() == straight.figures()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    learner = learn(evolution(), 1)
    learner.save(tmp_path)
    file = next(tmp_path.iterdir())
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
        file.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"evolution\.npz"):
            Evolution.resumed(SMALL, EvolutionSettings(**QUICK), 0, tmp_path)
    file.write_bytes(whole)
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "said"}
    with file.open("wb") as damaged_file:
        np.savez(damaged_file, **arrays)
    with pytest.raises(FileFormatError, match=r"of another version, or damaged \(KeyError"):
        Evolution.resumed(SMALL, EvolutionSettings(**QUICK), 0, tmp_path)
    file.write_bytes(whole)
    with pytest.raises(FileFormatError, match="another network"):
        Evolution.resumed(SMALL, EvolutionSettings(**{**QUICK, "hidden": 4}), 0, tmp_path)


@pytest.mark.usefixtures("bad_start")
def test_several_sizes_side_by_side() -> None:
    """Each size plays its share of the cases; what was learnt is judged on all of them."""
    scenario = SMALL.replace(queue="client", assignment="round_robin")
    learner = evolution(scenario, sizes=(1.0, 0.5, 2.0), pool=9, cases=9, population=12)
    places = [(20, 120), (10, 60), (40, 240)]
    evaluations = [
        BatchEvaluation(scenario.replace(num_clients=clients, num_requests=requests), range(9))
        for clients, requests in places
    ]

    def losses() -> list[float]:
        rows = [learner.network()]
        return [float(evaluation.losses(rows, range(9))[0].mean()) for evaluation in evaluations]

    before = losses()
    learn(learner, 1)
    decodes = sum(int(evaluation.losses([learner.network()], [0])[1]) for evaluation in evaluations)
    assert learner.timesteps == pytest.approx(12 * 3 * decodes, rel=0.2)
    learn(learner, TRIED_EVERY)
    assert np.mean(np.divide(losses(), before)) < 0.9


def test_at_other_sizes_lpt_fills_the_queues_that_the_mip_would() -> None:
    learner = evolution(SMALL.replace(queue="client", assignment="mip"), sizes=(1.0, 0.5), cases=2)
    assert [evaluation.scenario.assignment for evaluation in learner._evaluations] == ["mip", "lpt"]
    assert [
        (evaluation.scenario.num_clients, evaluation.scenario.num_requests) for evaluation in learner._evaluations
    ] == [
        (20, 120),
        (10, 60),
    ]


def test_the_search_begins_in_the_scenario_itself_whatever_the_sizes() -> None:
    scenario = SMALL.replace(queue="client")
    expected = evolution(scenario)
    for sizes in ((1.0, 0.5), (0.5, 1.0), (0.5, 2.0)):
        learner = evolution(scenario, sizes=sizes)
        for name, value in learner.encoding._asdict().items():
            assert_array_equal(value, getattr(expected.encoding, name), err_msg=name)
        (policy,) = learner.policies()
        assert isinstance(policy, Agent)
        assert [one.origin for one in policy.trained] == [Origin.of(scenario)]


def test_cases_grow_with_the_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    losses = BatchEvaluation.losses

    def counted(evaluation: BatchEvaluation, rows: Any, cases: Any) -> Any:
        played.append(len(cases))
        return losses(evaluation, rows, cases)

    for growth, expected in ((2, [3, 4, 6, 6, 6]), (3, [3, 4, 5, 6, 6]), (0, [3, 3, 3, 3, 3])):
        learner = evolution(growth=growth)
        monkeypatch.setattr(BatchEvaluation, "losses", counted)
        played.clear()
        learn(learner, 5)
        monkeypatch.undo()
        assert played == expected


def test_the_best_mean_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the means that were tried on the whole pool, whatever came after; of two that are level, the earlier."""
    monkeypatch.setattr(llmsched_env.agents.evolution, "TRIED_EVERY", 3)
    tried: list[Any] = []
    said = [0.9, 0.7, 0.8, 0.7, 1.2]
    losses = Evolution._losses

    def scripted(learner: Evolution, candidates: Any, count: int) -> Any:
        if len(candidates) > 1:
            return losses(learner, candidates, count)
        assert count == 6, "not the whole pool"
        tried.append(candidates[0].copy())
        return np.array([said[len(tried) - 1]])

    monkeypatch.setattr(Evolution, "_losses", scripted)
    learner = evolution()
    assert_array_equal(learner.numbers, learner._strategy.mean)
    learn(learner, 16)
    assert len(tried) == 5
    assert not any((tried[1] == other).all() for other in (tried[0], *tried[2:])), "all means are the same"
    assert_array_equal(learner.numbers, tried[1])
    assert learner.figures()["least_training_loss"] == 0.7
    learner.save(tmp_path)
    resumed = Evolution.resumed(SMALL, EvolutionSettings(**QUICK), 0, tmp_path)
    assert_array_equal(resumed.numbers, tried[1])


def test_a_mean_is_tried_on_the_whole_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmsched_env.agents.evolution, "TRIED_EVERY", 2)
    learner = learn(evolution(), 2)
    losses, _ = BatchEvaluation(SMALL, range(6)).losses(learner.encoding.networks([learner.numbers]), range(6))
    assert learner.figures()["least_training_loss"] == pytest.approx(losses.mean() / learner._rule_losses[0])


def test_features_that_never_move_are_left_out() -> None:
    encoding = evolution().encoding
    assert "overdue" not in encoding.features  # lengths are known: nobody outlives an estimate
    assert "fixed_price" not in encoding.features  # one cost model
    assert {"ready", "due_1", "charge"} <= set(encoding.features)
    chosen = evolution(features=("ready", "due_1")).encoding
    assert chosen.features == ("ready", "due_1")


def test_the_policy_decides_as_the_network_says() -> None:
    learner = evolution()
    learner._least, learner._best = 0.0, np.random.default_rng(0).normal(0.0, 0.5, learner.encoding.size)
    (policy,) = learner.policies()
    assert (policy.name, policy.kind, policy.clairvoyant) == ("es", "agent", False)
    rule = learner.encoding.network(np.zeros(learner.encoding.size))
    for case in range(3):
        expected = history(Agent.of("x", learner.network(), SMALL), SMALL, case)
        assert history(policy, SMALL, case) == expected
        assert history(Agent.of("x", rule, SMALL), SMALL, case) != expected, "numbers of the rule: nothing was tested"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, r"hidden = 0 .* \[1, 1024\]"),
        ({"population": 3}, "population = 3 .* at least 4, or 0"),
        ({"sigma": 0.0}, "sigma = 0.0"),
        ({"sigma": float("nan")}, "sigma = nan"),
        ({"cases": 9, "pool": 8}, "setting cases = 9, .* exceeds setting pool = 8"),
        ({"limit": -1.0}, "limit = -1.0 is out of range"),
        ({"sizes": ()}, r"sizes = \(\) is not a list of numbers"),
        ({"sizes": (1.0, 0.0)}, r"sizes\[1\] = 0.0 is out of range: it lies in \[0.01, 100\]"),
        ({"sizes": (1.0, 2.0), "cases": 1}, "setting cases = 1, .* for 2 sizes"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvolutionSettings(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"covariance": "ful"}, {"base": "lagrange"}, {"features": ("raedy",)}, {"orders": ("late-last",)}],
    ids=["covariance", "base", "feature", "order"],
)
def test_unknown_names(changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        EvolutionSettings(**changes)


def test_a_scenario_without_choices() -> None:
    with pytest.raises(ConfigError, match="never offers a choice"):
        evolution(Scenario(num_clients=1, num_requests=5, queue="shared"))


def test_slos_that_are_not_given() -> None:
    with pytest.raises(ConfigError, match="needs SLOs"):
        evolution(base="deadline")
    with pytest.raises(UnknownNameError, match="slack"):
        evolution(features=("slack",))


def test_observations_lie_within_the_room_for_them() -> None:
    from llmsched_env.cases import build_problem
    from llmsched_env.engine.network import ROOM

    assert len(features(Simulator(build_problem(WITH_SLO, 0)).view)) <= ROOM
