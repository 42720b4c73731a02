"""Whole episodes of policies: what they are told, in which order cases are run, what is measured and warned of."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numba
import numpy as np
import pytest
from llmsched_env.core.episode import Memory
from llmsched_env.core.instance import Instance
from llmsched_env.jit import jit

from baselines.iteration import prefill_first
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, InvalidActionError, UnknownNameError
from llmsched_env.evaluation import CoverageWarning, begin, decision_times, evaluate, play
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.instances import instance
from llmsched_env.metrics import info_metrics
from llmsched_env.offline import lpt
from llmsched_env.policy import CompiledRule, Policy, compile_rule, features
from llmsched_env.simulator import Outlook, Simulator
from llmsched_env.workload import GammaWorkload, Requests, ServingWorkload

SMALL = Scenario(
    workload=GammaWorkload(name="small", num_requests=30, output_mean_tokens=20.0, output_sd_tokens=10.0),
    split="test",
    num_clients=5,
    queue="shared",
    order="fcfs",
    prefill_token_cap=256,
)


class Patient:
    """Prefills when two clients are ready; remembers what it was told and asked."""

    name, kind = "patient", "rule"

    def __init__(self, *, clairvoyant=False):
        self.clairvoyant = clairvoyant
        self.starts = []
        self.asked = 0

    def reset(self, start):
        self.starts.append(start)

    def act(self, view):
        assert view.active > 0
        assert view.ready > 0
        self.asked += 1
        return int(view.ready >= 2)


def two_are_ready(view, parameters, memory):
    return 1 if view.ready >= 2 else 0


class Compiled(Patient):
    """The same, with a compiled rule."""

    def compiled(self, start):
        self.starts.append(start)
        return CompiledRule(compile_rule(two_are_ready), np.zeros(1), np.zeros(1, np.int64))


def test_a_policy_with_a_compiled_rule_runs_in_the_core():
    asked, ran = Patient(), Compiled()
    first, second = (evaluate(policy, SMALL, 5) for policy in (asked, ran))
    assert asked.asked > 0
    assert ran.asked == 0
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, second.columns[name])
    assert isinstance(asked, Policy)


def test_an_evaluation_holds_one_row_a_case():
    ticks = []
    found = evaluate(Patient(), SMALL, (7, 3, 3 + 2), progress=ticks.append)
    assert found.cases.tolist() == [7, 3, 5]
    assert ticks == [1, 1, 1]
    for row, case in enumerate(found.cases):
        episode = play(Patient(), SMALL, int(case))
        assert found.columns["makespan_s"][row] == episode.view.clock_ns / 1e9
        assert found.columns["bound_s"][row] == episode.instance.bound_ns / 1e9
    assert len(set(found.columns["makespan_s"])) == 3
    assert (found.policy, found.kind, found.scenario) == ("patient", "rule", SMALL)
    assert found.estimate("decodes").mean == found.columns["decodes"].mean()


def test_each_case_has_a_seed_of_its_own():
    policy = Patient()
    evaluate(policy, SMALL, (0, 4), seed=10)
    seeds = [start.seed for start in policy.starts]
    evaluate(policy, SMALL, (4, 0), seed=10)
    assert [start.seed for start in policy.starts[2:]] == seeds[::-1]
    evaluate(policy, SMALL, (0, 4), seed=11)
    assert len({start.seed for start in policy.starts}) == 4
    assert {start.mean_output_tokens for start in policy.starts} == {SMALL.source.mean_output_tokens}


@pytest.mark.parametrize("clairvoyant", [False, True])
@pytest.mark.parametrize("kind", [Patient, Compiled])
def test_only_a_clairvoyant_policy_is_given_the_simulator(kind, clairvoyant):
    policy = kind(clairvoyant=clairvoyant)
    evaluate(policy, SMALL, 2)
    decision_times(policy, SMALL)
    assert len(policy.starts) == 4  # one of them to compile what is timed
    for start in policy.starts:
        assert isinstance(start.simulator, Simulator) == clairvoyant
    # Where true lengths are to be seen, in the view or in the order of the queues, any policy is clairvoyant in tables.
    assert evaluate(policy, SMALL, 1).clairvoyant
    hidden = SMALL.replace(order="longest_first", lengths="hidden")
    assert evaluate(policy, hidden, 1).clairvoyant == clairvoyant


def reachable(*roots):
    """Everything that attributes, bases and containers lead to from these objects."""
    found, todo = {}, [*roots]
    while todo:
        item = todo.pop()
        if id(item) in found or isinstance(item, str | bytes | int | float | type | None):
            continue
        found[id(item)] = item
        names = {*getattr(item, "__dict__", {}), *getattr(type(item), "__dataclass_fields__", {}), "base"}
        todo += [getattr(item, name) for name in names if hasattr(item, name)]
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            todo += [*item]
    return [*found.values()]


def test_a_blind_policy_does_not_reach_the_truth():
    # Short of enumerating the cases of the workload, which it knows by name, or of searching the interpreter.
    reached = []

    class Curious(Patient):
        def act(self, view):
            reached.append(reachable(self.starts[-1], view))
            with pytest.raises((ValueError, AttributeError)):
                view.clock_ns = 0
            return super().act(view)

    hidden = SMALL.replace(lengths="hidden")
    play(Curious(), hidden, 0)
    truth = instance(hidden, 0).requests[:, 1]
    assert len(set(truth.tolist())) > 3
    assert reached
    for items in reached:
        for item in items:
            assert not isinstance(item, Simulator | Instance | Memory | Requests)
            if isinstance(item, np.ndarray):
                assert item.size == 1, "more than the view"


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
        simulator = Simulator(instance(SMALL.replace(workload=source, lengths="hidden"), 0))
        simulator.step(1)
        views.append(simulator.view.tobytes())
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
def test_a_blind_policy_does_not_reach_the_truth_of_what_is_promised(scenario):
    # Short of what the test without promises excepts.
    true = instance(scenario, 0).requests[:, 1]
    reached = []

    class Curious(Patient):
        def act(self, view):
            reached.append(reachable(self.starts[-1], view, features(view)))
            return 1 + 2 * (len(reached) % 3) if scenario.choose_order else super().act(view)

    play(Curious(), scenario, 0)
    assert reached
    for items in reached:
        for item in items:
            assert not isinstance(item, Simulator | Instance | Memory | Requests | Outlook)
            if isinstance(item, np.ndarray):
                assert item.shape in {(), (1,), (33,)}, "more than the view and what is made of it"
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
def test_an_outlook_keeps_the_truth_of_what_is_promised(scenario):
    true = np.empty(30, np.int64)
    problem = instance(scenario, 0)
    true[problem.request_of] = problem.requests[:, 1]
    looked = []

    class Planner(Patient):
        plans = True

        def act(self, view):
            outlook = self.starts[-1].outlook
            assert self.starts[-1].simulator is None
            assert not outlook.known
            assert [name for name in dir(outlook) if name[0] != "_"] == [
                "emitted", "estimates", "future", "imagine", "known", "prompts",
            ]  # fmt: skip
            with pytest.raises(ConfigError, match="does not show true output lengths"):
                outlook.future()
            assert (outlook.estimates == true).mean() < 0.2, "more than chance hits"
            emitted = outlook.emitted
            imagined = outlook.imagine(emitted + 7).instance
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
    simulator = Simulator(instance(scenario, 0))
    views = [simulator.view.tobytes() + features(simulator.view).tobytes()]
    for action in actions:
        simulator.step(action)
        views.append(simulator.view.tobytes() + features(simulator.view).tobytes())
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
def test_a_promised_view_says_nothing_of_true_lengths(order, lengths):
    choose = order == "choose"
    scenario = HIDDEN.replace(order="fcfs" if choose else order, choose_order=choose, lengths=lengths)
    actions = [5 if choose else 1, 0, 3 if choose else 1, 0]
    # The same lengths, each another request's: nothing is to be seen of that.
    assert seen_of(scenario, actions) == seen_of(scenario.replace(workload=Turned(turn=7)), actions)
    assert not np.array_equal(*(instance(scenario.replace(workload=Turned(turn=t)), 0).requests for t in (0, 7)))
    # Without a load nothing is to be seen of twice the lengths, either.
    own = scenario.replace(load=None)
    assert seen_of(own, actions) == seen_of(own.replace(workload=Turned(times=2)), actions)
    assert infos_of(own, actions) == infos_of(own.replace(workload=Turned(times=2)), actions)


def test_the_mean_length_of_a_case_shows_in_its_rate_at_a_load():
    """The one thing of true lengths that is to be seen in principle.

    A load is a share of the capacity for the case's own mean lengths: twice the lengths are half the rate.
    """
    one, two = (instance(HIDDEN.replace(workload=Turned(times=times)), 0) for times in (1, 2))
    stretched = (two.release_ns[-1] - two.release_ns[0]) / (one.release_ns[-1] - one.release_ns[0])
    assert stretched == pytest.approx(2, rel=0.1)
    gaps = np.diff(one.release_ns)
    np.testing.assert_allclose(np.diff(two.release_ns), stretched * gaps, atol=2)


QUEUES = SMALL.replace(queue="client", assignment="lpt", stealing=False)


def test_an_assignment_of_ones_own():
    case = QUEUES.source.requests("test", 0)
    own = lpt(case.decodes.astype(np.int64), 5)
    assert play(Patient(), QUEUES, 0, client_of=own).view == play(Patient(), QUEUES, 0).view
    # On one client, nothing is decoded beside anything else.
    alone = play(Patient(), QUEUES, 0, client_of=[3] * 30)
    assert alone.view.decodes == case.decodes.sum() > play(Patient(), QUEUES, 0).view.decodes
    assert alone.view.prefills == 30
    assert play(Patient(), QUEUES, 0).view.prefills < 30, "the assignment of a call is kept for the next"


@pytest.mark.parametrize(
    ("scenario", "client_of", "words"),
    [
        (SMALL, [0] * 30, "client_of with queue = 'shared'"),
        (QUEUES, [0] * 29, r"client_of of shape \(29,\) and dtype int64: give 30"),
        (QUEUES, [0.0] * 30, "dtype float64"),
        (QUEUES, [0] * 29 + [5], r"client_of\[29\] = 5 is out of range: clients are numbered from 0 to 4"),
        (QUEUES, [-1] + [0] * 29, r"client_of\[0\] = -1 is out of range"),
    ],
)
def test_what_is_no_assignment(scenario, client_of, words):
    with pytest.raises(ConfigError, match=words):
        play(Patient(), scenario, 0, client_of=client_of)


def test_a_horizon_ends_an_episode():
    scenario = SMALL.replace(max_iterations=9)
    for policy in (Patient(), Compiled()):
        episode = play(policy, scenario, 0)
        assert not episode.done
        assert episode.view.prefills + episode.view.decodes == 9
    assert len(decision_times(Patient(), scenario)) <= 9


def test_decision_times_are_one_a_choice():
    policy = Patient()
    times = decision_times(policy, SMALL, (0, 1))
    assert len(times) == policy.asked - 1 > 0  # the first is not timed: it may have to compile
    assert (times >= 0).all()
    assert len(decision_times(policy, SMALL.replace(num_clients=1))) == 0


def test_an_action_outside_the_space_is_refused():
    class Wild(Patient):
        def act(self, view):
            return 2

    with pytest.raises(InvalidActionError, match=r"action 2 is not in Discrete\(2\)"):
        play(Wild(), SMALL, 0)


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (0, "names no case"),
        (-3, "names no case"),
        ([], "names no case"),
        ([-1, 2], "start at 0"),
        ([2, 2], "once each"),
        ("20", "give a whole number"),
        ([0.5], "give a whole number"),
        (2.0, "give a whole number"),
    ],
)
def test_cases_that_are_none(cases, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(Patient(), SMALL, cases)


def test_case_numbers():
    assert case_numbers(3).tolist() == case_numbers(np.int64(3)).tolist() == [0, 1, 2]
    assert case_numbers(range(5, 7)).tolist() == case_numbers(np.array([5, 6])).tolist() == [5, 6]
    assert case_numbers((2**40,)).dtype == np.int64


def test_a_negative_seed():
    with pytest.raises(ConfigError, match="seed = -1 is negative"):
        evaluate(Patient(), SMALL, 1, seed=-1)


def test_leaving_the_range_of_the_cost_model_is_warned_of_once():
    scenario = SMALL.replace(cost=replace(PRESETS["qwen3-8b-h200"]), prefill_token_cap=None)
    with pytest.warns(CoverageWarning, match="patient: cost model 'qwen3-8b-h200' was used outside the range") as seen:
        found = evaluate(Patient(), scenario, 4)
    assert len(seen) == 1
    assert str(seen[0].message) == f"patient: {found.outside}"
    assert evaluate(Patient(), SMALL, 1).outside is None


class WithoutReset:
    name, kind, clairvoyant = "without_reset", "rule", False

    def act(self, view):
        return 1


def test_what_is_not_a_policy_is_told_what_it_lacks():
    for call in (
        lambda policy: evaluate(policy, SMALL, 1),
        lambda policy: play(policy, SMALL, 0),
        lambda policy: decision_times(policy, SMALL),
        lambda policy: begin(policy, None),
    ):
        with pytest.raises(ConfigError, match=r"WithoutReset object .* is not a policy: it lacks reset \(see"):
            call(WithoutReset())
        with pytest.raises(ConfigError, match=r"'hybrid' is not a policy: it lacks name, kind, .*make_policy"):
            call("hybrid")
        with pytest.raises(ConfigError, match=r"Patient'> is a class: give an instance of it, Patient\(\)"):
            call(Patient)
        with pytest.raises(ConfigError, match=r"is a class: .* WithoutReset\(\)\. It lacks reset\."):
            call(WithoutReset)


class Mistyped(Patient):
    def act(self, view):
        return int(view.raedy >= 2)


def mistyped_rule(view, parameters, memory):
    return 1 if view.raedy >= 2 else 0


def test_a_mistyped_field_of_a_view_is_named():
    words = r"unknown field of a view 'raedy'\. Did you mean 'ready'"
    with pytest.raises(UnknownNameError, match=words) as caught:
        evaluate(Mistyped(), SMALL, 1)
    assert isinstance(caught.value, AttributeError)
    with pytest.raises(UnknownNameError, match=words):
        compile_rule(mistyped_rule)(play(Patient(), SMALL, 0).view, (), ())


def test_a_mistyped_field_is_named_however_it_is_reached():
    view = play(Patient(), SMALL, 0).view
    for reach in (lambda: view["raedy"], lambda: setattr(view, "raedy", 1)):
        with pytest.raises(UnknownNameError, match=r"unknown field of a view 'raedy'\. Did you mean 'ready'"):
            reach()
    assert view["ready"] == view.ready


def helper(view):
    return view.raedy


def rule_with_a_helper(view, parameters, memory):
    return 1 if compiled_helper(view) >= 2 else 0


compiled_helper = jit(helper)


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled in this process")
def test_a_mistyped_field_in_a_helper_of_a_rule_is_named():
    with pytest.raises(UnknownNameError, match=r"unknown field of a view 'raedy'"):
        compile_rule(rule_with_a_helper)


def test_a_view_is_asked_for_fields_as_any_object():
    view = play(Patient(), SMALL, 0).view
    assert getattr(view, "raedy", None) is None
    assert not hasattr(view, "raedy")
    assert copy.copy(view).clock_ns == view.clock_ns


def test_an_unknown_metric_is_named():
    found = evaluate(prefill_first(), Scenario(num_clients=10, num_requests=20, queue="shared"), 1)
    with pytest.raises(UnknownNameError, match=r"unknown metric 'makespan'\. Did you mean 'makespan_s'"):
        found.estimate("makespan")
