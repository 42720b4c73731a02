"""What policies can find out: nothing that a scenario hides; and what they are told of a name that does not exist."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
from patient import SMALL, Patient
from states import fields

from llmsched_env.cases import build_problem
from llmsched_env.engine import compiled
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import View, fields_of
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import evaluate, play
from llmsched_env.metrics import info_metrics
from llmsched_env.policy import FunctionRule, features
from llmsched_env.problem import Problem
from llmsched_env.simulator import Futures, Simulator
from llmsched_env.workload import GammaWorkload, Requests, ServingWorkload

TRUTH = Simulator | Problem | Episode | ProblemData | Requests


def reachable(*roots):
    """Everything that attributes, bases and containers lead to from these objects."""
    found, todo = {}, [*roots]
    while todo:
        item = todo.pop()
        if id(item) in found or isinstance(item, str | bytes | int | float | type | None):
            continue
        found[id(item)] = item
        names = {*getattr(item, "__dict__", {}), *getattr(type(item), "__dataclass_fields__", {}), "base"}
        if type(item).__module__.startswith("llmsched_env.engine."):
            names |= {*fields_of(type(item))}
        todo += [getattr(item, name) for name in names if hasattr(item, name)]
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += [*item]
    return [*found.values()]


def test_the_truth_is_found_where_there_is_a_way_to_it():
    simulator = Simulator(build_problem(SMALL, 0))
    for start in (simulator, simulator.episode, [{"episode": simulator.episode.kv}]):
        found = reachable(start)
        assert any(isinstance(item, ProblemData) for item in found)
        assert any(isinstance(item, memoryview) and item.shape == (30, 4) for item in map(viewed, found))


def viewed(item):
    """The memory of an array of the engine."""
    return memoryview(item) if "memoryview" in type(item).__name__ else item


def test_a_blind_policy_does_not_reach_the_truth():
    # Short of enumerating the cases of the workload, which it knows by name, or of searching the interpreter.
    reached = []

    class Curious(Patient):
        def act(self, view):
            reached.append(reachable(self.starts[-1], view))
            if compiled:  # plain classes let anybody write
                with pytest.raises(AttributeError):
                    view.clock_ns = 0
            return super().act(view)

    hidden = SMALL.replace(lengths="hidden")
    play(Curious(), hidden, 0)
    truth = build_problem(hidden, 0).requests[:, 1]
    assert len(set(truth.tolist())) > 3
    assert reached
    for items in reached:
        for item in items:
            assert not isinstance(item, TRUTH | np.ndarray), "more than the view"


def test_a_view_of_hidden_lengths_says_nothing_of_them():
    workload = GammaWorkload(name="other", num_requests=30, output_mean_tokens=20.0, output_sd_tokens=10.0)

    class Longer:
        """The same requests, each twice as long, from a population of the same mean."""

        name = "longer"

        def pool_size(self, split):
            return None

        def requests(self, split, number, *, num_requests=None):
            base = workload.requests(split, number)
            twice = 2 * base.output_tokens
            return replace(base, output_tokens=twice)

    views = []
    for source in (workload, Longer()):
        simulator = Simulator(build_problem(SMALL.replace(workload=source, lengths="hidden"), 0))
        simulator.step(1)
        views.append(fields(simulator.view))
    assert views[0] == views[1]


@dataclass(frozen=True)
class Turned:
    """The small requests over time. ``turn`` moves true lengths from request to request, ``times`` multiplies them."""

    turn: int = 0
    times: int = 1
    name: str = "turned"

    def pool_size(self, split):
        return None

    def requests(self, split, number, *, num_requests=None):
        base = OVER_TIME.requests(split, number)
        outputs = np.roll(self.times * (base.output_tokens + 3), self.turn)  # nobody is done after two decodes
        return replace(base, output_tokens=outputs, predicted_tokens=base.prompt_tokens, mean_output_tokens=20.0)


OVER_TIME = ServingWorkload("over-time", SMALL.source, num_requests=30)
HIDDEN = SMALL.replace(
    workload=Turned(), lengths="hidden", load=0.9, ttft_s=1.0, tpot_s=0.05, reward="goodput", prefill_token_cap=None
)
PREDICTED = HIDDEN.replace(workload=OVER_TIME, lengths="predicted", predictor="noisy", choose_order=True)


@pytest.mark.parametrize("scenario", [HIDDEN, PREDICTED], ids=["hidden", "orders by predicted lengths"])
def test_a_blind_policy_does_not_reach_the_truth_with_slos(scenario):
    # Short of what the test without SLOs excepts.
    true = build_problem(scenario, 0).requests[:, 1]
    reached = []

    class Curious(Patient):
        def act(self, view):
            reached.append(reachable(self.starts[-1], view, features(view)))
            return 1 + 2 * (len(reached) % 3) if scenario.choose_order else super().act(view)

    play(Curious(), scenario, 0)
    assert reached
    for items in reached:
        for item in items:
            assert not isinstance(item, TRUTH | Futures)
            if isinstance(item, np.ndarray):
                assert item.shape == (33,), "more than the view and what is made of it"
    env = LLMSchedEnv(scenario)
    observation, info = env.reset(options={"case": 0})
    over = False
    while not over:
        assert info.keys() == {"action_mask", "invalid_actions", "case", *info_metrics(scenario)}
        arrays = [item for item in reachable(observation, info) if isinstance(item, np.ndarray)]
        assert {array.shape for array in arrays} <= {(33,), (scenario.num_actions,)}
        observation, _, over, _, info = env.step(1)
    assert len(set(true.tolist())) > 3


@pytest.mark.parametrize("scenario", [HIDDEN, PREDICTED], ids=["hidden", "orders by predicted lengths"])
def test_futures_keep_the_truth_of_the_slos(scenario):
    true = np.empty(30, np.int64)
    problem = build_problem(scenario, 0)
    true[problem.request_of] = problem.requests[:, 1]
    looked = []

    class Planner(Patient):
        plans = True

        def act(self, view):
            futures = self.starts[-1].futures
            assert self.starts[-1].simulator is None
            assert not futures.known
            assert [name for name in dir(futures) if name[0] != "_"] == [
                "emitted", "estimates", "future", "imagine", "known", "prompts",
            ]  # fmt: skip
            with pytest.raises(ConfigError, match="does not show true output lengths"):
                futures.future()
            assert (futures.estimates == true).mean() < 0.2, "more than chance hits"
            emitted = futures.emitted
            imagined = futures.imagine(emitted + 7).problem
            there = np.empty(30, np.int64)
            there[imagined.request_of] = imagined.requests[:, 1]
            looked.append((there != emitted + 7).sum())
            # Only of a complete request the length is the true one, and that is known.
            assert (emitted[there != emitted + 7] == true[there != emitted + 7]).all()
            assert looked[-1] == view.completed
            return super().act(view)

    play(Planner(), scenario, 0)
    assert max(looked) > 5


def seen_of(scenario, actions):
    """What is to be seen of case 0 from the start on, after each action."""
    simulator = Simulator(build_problem(scenario, 0))
    views = [(fields(simulator.view), features(simulator.view).tobytes())]
    for action in actions:
        simulator.step(action)
        views.append((fields(simulator.view), features(simulator.view).tobytes()))
    assert simulator.view.completed == 0, "a length has become known"
    assert simulator.view.active > 0
    return views


def infos_of(scenario, actions):
    """What the infos of case 0 say."""
    env = LLMSchedEnv(scenario)
    infos = [env.reset(options={"case": 0})[1], *(env.step(action)[-1] for action in actions)]
    return [{key: np.asarray(value).tolist() for key, value in info.items()} for info in infos]


@pytest.mark.parametrize("order", ["fcfs", "late_last", "late_last_longest", "choose"])
@pytest.mark.parametrize("lengths", ["hidden", "predicted"])
def test_a_view_with_slos_says_nothing_of_true_lengths(order, lengths):
    choose = order == "choose"
    scenario = HIDDEN.replace(order="fcfs" if choose else order, choose_order=choose, lengths=lengths)
    actions = [5 if choose else 1, 0, 3 if choose else 1, 0]
    # The same lengths, each another request's: nothing is to be seen of that.
    assert seen_of(scenario, actions) == seen_of(scenario.replace(workload=Turned(turn=7)), actions)
    assert not np.array_equal(*(build_problem(scenario.replace(workload=Turned(turn=t)), 0).requests for t in (0, 7)))
    # Without a load nothing is to be seen of twice the lengths, either.
    own = scenario.replace(load=None)
    assert seen_of(own, actions) == seen_of(own.replace(workload=Turned(times=2)), actions)
    assert infos_of(own, actions) == infos_of(own.replace(workload=Turned(times=2)), actions)


def test_the_mean_length_of_a_case_shows_in_its_rate_at_a_load():
    """The one thing of true lengths that is to be seen in principle.

    A load is a share of the capacity for the case's own mean lengths: twice the lengths are half the rate.
    """
    one, two = (build_problem(HIDDEN.replace(workload=Turned(times=times)), 0) for times in (1, 2))
    stretched = (two.release_ns[-1] - two.release_ns[0]) / (one.release_ns[-1] - one.release_ns[0])
    assert stretched == pytest.approx(2, rel=0.1)
    gaps = np.diff(one.release_ns)
    np.testing.assert_allclose(np.diff(two.release_ns), stretched * gaps, atol=2)


class Mistyped(Patient):
    def act(self, view):
        return int(view.raedy >= 2)


def mistyped_rule(view, parameters, memory):
    return 1 if view.raedy >= 2 else 0


def helper(view):
    return view.raedy


def rule_with_a_helper(view, parameters, memory):
    return 1 if helper(view) >= 2 else 0


def test_a_mistyped_field_of_a_view_is_named():
    words = r"unknown field of a view 'raedy'\. Did you mean 'ready'"
    with pytest.raises(UnknownNameError, match=words) as caught:
        evaluate(Mistyped(), SMALL, 1)
    assert isinstance(caught.value, AttributeError)
    for rule in (FunctionRule(mistyped_rule), FunctionRule(rule_with_a_helper)):
        with pytest.raises(UnknownNameError, match=words):
            rule.decide(play(Patient(), SMALL, 0).view)
        with pytest.raises(UnknownNameError, match=words):
            Simulator(build_problem(SMALL, 0)).run(rule)


def test_a_mistyped_field_is_named_however_it_is_reached():
    view = play(Patient(), SMALL, 0).view
    for reach in (lambda: view.raedy, lambda: View(raedy=1)):
        with pytest.raises(UnknownNameError, match=r"unknown field of a view 'raedy'\. Did you mean 'ready'"):
            reach()
    assert View(ready=view.ready).ready == view.ready


def test_a_view_is_asked_for_fields_as_any_object():
    view = play(Patient(), SMALL, 0).view
    assert getattr(view, "raedy", None) is None
    assert not hasattr(view, "raedy")
    assert copy.copy(view).clock_ns == view.clock_ns
