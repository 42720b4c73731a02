"""What holds for every name in BASELINES, whatever its rule."""

from __future__ import annotations

import functools
import inspect
import itertools
import pickle
import re

import gymnasium
import pytest
from playing import WORLDS, asked, by_act, history, start_of

from llmsched_env.baselines import BASELINES, METHODS, POLICIES, entry, make_policy
from llmsched_env.baselines.memory_methods import MEMORY_METHODS
from llmsched_env.baselines.mixed import SYSTEMS, mixed_first
from llmsched_env.baselines.origins import ORIGINS
from llmsched_env.baselines.origins import OURS as OURS_ON_THE_PAGE
from llmsched_env.baselines.registry import (
    AGENTS,
    BATCH_PLANNERS,
    MEMORY_POLICIES,
    MIXED_POLICIES,
    OWN_KINDS,
    SLACK_POLICIES,
    SLO_POLICIES,
    default_names,
    fixed_order_planner,
)
from llmsched_env.cases import build_problem
from llmsched_env.config import ORDER_CODES
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import begin, evaluate, play
from llmsched_env.evaluation.rollout import start
from llmsched_env.policy import Policy
from llmsched_env.simulator import Simulator

CITATIONS = {
    "prefill_first": "2309.06180",
    "static_batching": "OSDI 2022.*82f0840df626",
    "eb_threshold": "2606.00516",
    "eb_threshold_finite": "2606.00516",
    "eb_plus": "2606.00516",
    "max_wait": "Mimics no system",
    "lightllm": "LightLLM.*3bed16df56bb",
    "tgi": "Text Generation Inference",
    "delay_factor": "pull request 3279",
    "cadence": "pull request 56848.*pull request 44558",
    "interleave": "pull request 119.*pull request 34058",
    "lagrangian": "2502.15763",
    "lagrangian_lookahead": "2502.15763",
    "lagrangian_literal": "2502.15763",
    "lagrangian_instant": "2502.15763",
    "rollout": "Bertsekas",
    "baseline": "2309.06180",
    "offline": "2309.06180",
    "offline_sorted": "2309.06180",
    "shared_lpt_prefill_first": "2309.06180",
    "baseline_lagrangian": "2502.15763",
    "hybrid": "2502.15763",
    "hybrid_lpt": "2502.15763",
    "shared_lpt_lagrangian": "2502.15763",
    "threshold": "2606.00516",
    "memory_aware": "Memory-aware",
    "wait": "2504.11320.*Luoxiaogan/vidur_or at",
    "slai": "2508.01002.*agrimUT/SLAI at",
    "mc_sf": "2502.07115",
    "svf": "2606.22327",
    "svf_1bit": "2606.22327",
    "sorted_f": "2508.06133",
    "aged_sf": "pull request 30806.*2601.21758",
    "a_max": "2508.14544",
    "a_min": "2508.14544",
    "orca": "OSDI 2022",
    "sarathi_serve": "OSDI 2024",
    "vllm_v1": "vLLM v1",
    "fairbatching": "2510.14392",
}
"""What a docstring (of the factory, its class or its module) must name: the source of the rule."""

OURS = {
    *(
        "decode_first",
        "random",
        "always_worst",
        "beam",
        "beam_1",
        "min_batch",
        "deadline",
        "lookahead",
        "mixed_first",
        "joint",
    ),
    *("tuned_threshold", "lagrangian_tuned", "max_wait_tuned", "interleave_tuned", "min_batch_tuned", "tgi_tuned"),
    *("deadline_tuned", "mixed_tuned", "agent"),
}
"""Rules of nobody else, and numbers that training cases chose for the rules above."""

DRAWS = {"random"}

UNBATCHED = ("sorted_f", "memory, swapped")
"""It sorts a batch, and requests come over time there."""


def documentation(name):
    factory = METHODS[name].policy if name in METHODS else mixed_first if name in SYSTEMS else BASELINES[name]
    made = factory.func if isinstance(factory, functools.partial) else factory
    if made.__name__ == "<lambda>":
        made = type(factory())
    return f"{inspect.getdoc(made)}\n{inspect.getmodule(made).__doc__}"


def end_of(name, world, case=0, seed=0):
    return history(play(make_policy(name), WORLDS[world], case, seed=seed, record=True))


def test_names_are_methods_and_policies():
    groups = (METHODS, POLICIES, SLO_POLICIES, MEMORY_POLICIES, MIXED_POLICIES, SLACK_POLICIES, AGENTS)
    assert set(BASELINES) == {name for group in groups for name in group}
    assert len(BASELINES) == sum(map(len, groups))
    for name in ("baseline", "hybrid", "threshold", "tuned_threshold", "lagrangian_tuned", "rollout", "beam"):
        assert name in BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_it_is_a_policy(name):
    policy = make_policy(name)
    assert isinstance(policy, Policy)
    assert policy.kind in OWN_KINDS
    assert policy.clairvoyant == (policy.kind == "planner" and name != "rollout")
    if name in POLICIES:
        assert policy.name == name


@pytest.mark.parametrize("name", BASELINES)
def test_its_docstring_states_the_rule(name):
    assert len(documentation(name).split()) > 8


@pytest.mark.parametrize("name", CITATIONS)
def test_its_docstring_states_the_source(name):
    assert re.search(CITATIONS[name], documentation(name), re.DOTALL)


def test_what_has_no_source_is_ours():
    """Whoever adds a policy names where it is from, here, or says that it is nobody's."""
    assert set(BASELINES) - set(CITATIONS) == OURS
    assert set(CITATIONS) <= set(BASELINES)


def test_the_page_of_policies_names_the_same_sources():
    assert set(ORIGINS) == set(BASELINES)
    for name, origin in ORIGINS.items():
        method = name in METHODS and name != "joint"  # a rule's source may be that of the whole method
        assert (origin.source == OURS_ON_THE_PAGE) == (name in OURS), name
        for number in re.findall(r"\d{4}\.\d{5}|request \d+", origin.source):
            assert method or number in documentation(name), f"{name} is from {number}, and its docstring not"


@pytest.mark.parametrize(
    ("name", "world"),
    [
        *itertools.product(POLICIES, WORLDS),
        *itertools.product(SLO_POLICIES, [w for w in WORLDS if "SLO" in w]),
        *((name, w) for name in MEMORY_POLICIES for w in WORLDS if "memory" in w and (name, w) != UNBATCHED),
        *itertools.product(MIXED_POLICIES, [w for w in WORLDS if "mixed" in w]),
        *itertools.product(SLACK_POLICIES, [w for w in WORLDS if "mixed, SLO" in w]),
    ],
)
def test_compiled_and_asked_it_does_the_same(name, world):
    brought = {**SYSTEMS, **MEMORY_METHODS}.get(name, {})
    policy, scenario = make_policy(name), WORLDS[world].replace(**brought)
    ran = play(policy, scenario, 0, seed=3, record=True)
    stepped = by_act(policy, scenario, 0, seed=3)
    assert ran.done
    assert history(ran) == history(stepped)
    assert len(ran.log) == ran.view.prefills + ran.view.decodes > 0
    for simulator in (ran, stepped):
        assert simulator.totals.invalid_actions == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_on_its_own_queues(name):
    item = entry(name, WORLDS["client"].replace(num_requests=12, num_clients=3))
    assert (item.name, item.kind, bool(item.text)) == (name, "method", True)
    ran = play(item.policy, item.scenario, 0, record=True)
    assert ran.done
    assert history(ran) == history(by_act(item.policy, item.scenario, 0))
    assert ran.totals.invalid_actions == 0
    for option, value in METHODS[name].queues.items():
        assert getattr(item.scenario, option) == value


OTHER_QUEUES = {name: "fixed queues" for name in METHODS if name != "offline"} | {"offline": "client"}
"""A world whose queues are not the method's: LPT queues in arrival order, without stealing; or sorted, with it."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_refused_on_other_queues(name):
    policy, scenario = make_policy(name), WORLDS[OTHER_QUEUES[name]].replace(num_requests=12, num_clients=3)
    apart = {key: value for key, value in METHODS[name].queues.items() if getattr(scenario, key) != value}
    assert apart, "these queues are the method's: nothing is refused"
    own = ", ".join(f"{key}={value!r}" for key, value in apart.items())
    words = re.escape(f"'{name}' is a method with {own}, and this scenario has ")
    remedy = re.escape(
        f"Take item = llmsched_env.baselines.entry('{name}', scenario), and item.policy in item.scenario"
    )
    for run, argument in ((play, 0), (evaluate, 1), (by_act, 0)):
        with pytest.raises(ConfigError, match=f"{words}.*{remedy}"):
            run(policy, scenario, argument)
    item = entry(name, scenario)
    expected = evaluate(item.policy, item.scenario, 1).columns["makespan_s"]
    assert evaluate(policy, scenario.replace(**METHODS[name].queues), 1).columns["makespan_s"] == expected


def test_a_method_is_refused_in_an_environment_with_other_queues():
    made = {"num_clients": 3, "num_requests": 12, "split": "test"}
    env = gymnasium.make("LLMSched/GSM8K-v0", assignment="lpt", **made)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="'baseline' is a method with queue='shared', order='fcfs', lengths='hidden'"):
        begin(make_policy("baseline"), env)
    begin(make_policy("hybrid_lpt"), env)  # whose queues these are
    env = gymnasium.make("LLMSched/GSM8K-v0", **METHODS["baseline"].queues, **made)
    env.reset(seed=0)
    begin(make_policy("baseline"), env)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_refused_where_iterations_are_composed_otherwise(name):
    with pytest.raises(ConfigError, match=f"'{name}' is a method with mixed_tokens=.*has mixed_tokens=9"):
        evaluate(make_policy(name), WORLDS["mixed"], 1)


@pytest.mark.parametrize("told", [{}, {"lengths": "predicted", "predictor": "noisy", "sd_weight": 2.0}])
def test_blind_methods_are_given_no_lengths(told):
    for name in ("baseline", "baseline_lagrangian"):
        scenario = entry(name, WORLDS["client"].replace(**told)).scenario
        assert scenario.lengths == "hidden"
        # Every request is expected to be of one and the same length, the population's mean.
        assert len(set(build_problem(scenario, 0).requests[:, 2].tolist())) == 1
        assert len(set(build_problem(scenario, 0).requests[:, 1].tolist())) > 5


@pytest.mark.parametrize("name", POLICIES)
def test_its_choices_are_fixed_by_case_and_seed(name):
    first = end_of(name, "shared", seed=1)
    assert end_of(name, "shared", seed=1) == first
    other = end_of(name, "shared", seed=2)
    assert (other == first) == (name not in DRAWS)


@pytest.mark.parametrize("name", POLICIES)
def test_an_episode_before_leaves_no_trace(name):
    policy, scenario = make_policy(name), WORLDS["client, arrivals"]
    by_act(policy, WORLDS["shared"], 1)  # another world, other parameters
    half = Simulator(build_problem(scenario, 2))
    policy.reset(start(policy, scenario, half, 5))
    for _ in range(30):
        choice = half.can_decode and half.can_prefill
        half.step(policy.act(half.view) if choice else int(half.can_prefill))
    assert not half.done
    assert history(by_act(policy, scenario, 0)) == history(by_act(make_policy(name), scenario, 0))


@pytest.mark.parametrize("name", POLICIES)
def test_it_pickles_before_and_within_an_episode(name):
    scenario = WORLDS["shared"]
    fresh = pickle.loads(pickle.dumps(make_policy(name)))
    expected = end_of(name, "shared")
    assert history(by_act(fresh, scenario, 0)) == expected
    # Simulator and policy together, as a planner holds on to the episode that it was started in.
    policy, simulator = make_policy(name), Simulator(build_problem(scenario, 0), record=True)
    policy.reset(start(policy, scenario, simulator, 0))
    policy, simulator = pickle.loads(pickle.dumps((policy, simulator)))
    assert history(asked(policy, simulator)) == expected


@pytest.mark.parametrize(
    "name", [name for name in POLICIES if name not in {"rollout", "beam", "beam_1", "always_worst"}]
)
def test_a_rule_must_be_started(name):
    with pytest.raises(RuntimeError, match=rf"policy '{name}' was asked before reset: call reset\(start\) first"):
        make_policy(name).act(None)


def test_unknown_names_have_neighbours():
    with pytest.raises(UnknownNameError, match="Did you mean 'tuned_threshold'"):
        make_policy("tuned_treshold")


@pytest.mark.parametrize("world", WORLDS)
def test_controls_are_told_apart(world):
    spans = {
        name: sum(play(make_policy(name), WORLDS[world], case).view.clock_ns for case in range(5))
        for name in ("beam", "random", "always_worst")
    }
    assert spans["beam"] < spans["random"] < spans["always_worst"]


def test_a_single_client_leaves_no_choice():
    scenario = WORLDS["shared"].replace(num_clients=1, num_requests=5)
    spans = {name: play(make_policy(name), scenario, 0).view.clock_ns for name in POLICIES}
    assert len(set(spans.values())) == 1


def test_parameters_are_those_of_the_start():
    # The closed form depends on clients: a policy started in a smaller world uses that world's number.
    policy = make_policy("eb_threshold")
    numbers = [policy.compiled(start_of(WORLDS["shared"].replace(num_clients=clients))).count for clients in (6, 600)]
    assert numbers[1] > 50 * numbers[0] >= 50


class TestPairs:
    """A rule under an order, with SLOs."""

    ORDERED = WORLDS["SLO"].replace(choose_order=True)

    @pytest.mark.parametrize("order", ORDER_CODES)
    def test_a_pair_is_the_rule_in_a_scenario_of_that_order(self, order):
        item = entry(f"min_batch@{order}", self.ORDERED)
        assert (item.name, item.kind, item.policy.name) == (f"min_batch@{order}", "rule", "min_batch")
        assert item.scenario == WORLDS["SLO"].replace(order=order)
        assert entry("min_batch", self.ORDERED).scenario == WORLDS["SLO"]

    def test_what_a_comparison_runs(self):
        methods = [name for name in METHODS if name != "joint"]  # whose plans do not come with the package
        assert default_names(WORLDS["client"]) == [*methods, *POLICIES, *AGENTS]
        worlds = (WORLDS["SLO"], self.ORDERED)
        plain, ordered = ([name for name in default_names(where) if name not in AGENTS] for where in worlds)
        assert set(plain) == (set(POLICIES) | set(SLO_POLICIES)) - set(BATCH_PLANNERS)
        assert len(ordered) == len(set(ordered)) == (len(plain) - 1) * len(ORDER_CODES) + 1
        assert {"threshold", "threshold@late_last", "lookahead"} <= set(ordered)
        for name in (*plain, *ordered):
            entry(name, self.ORDERED)
        assert (fixed_order_planner(WORLDS["client"]), fixed_order_planner(self.ORDERED)) == ("beam", "lookahead")

    def test_a_planner_that_knows_the_future_knows_lengths_and_chooses_orders(self):
        hidden = self.ORDERED.replace(lengths="hidden")
        assert entry("lookahead", hidden).scenario == hidden.replace(lengths="known")

    @pytest.mark.parametrize(
        ("name", "error", "words"),
        [
            ("threshold@late", UnknownNameError, "unknown order 'late'. Did you mean 'late_last'"),
            ("thresholt@late_last", UnknownNameError, "unknown policy 'thresholt'"),
            ("lookahead@late_last", ConfigError, "is no rule, or brings its own order"),
            ("beam", ConfigError, "minimises the makespan of a batch"),
            ("hybrid", ConfigError, "minimises the makespan of a batch"),
        ],
    )
    def test_names_that_make_no_sense(self, name, error, words):
        with pytest.raises(error, match=words):
            entry(name, self.ORDERED)

    @pytest.mark.parametrize("name", ["deadline", "lookahead", "deadline_tuned"])
    def test_without_slos(self, name):
        with pytest.raises(ConfigError, match="needs SLOs"):
            entry(name, WORLDS["client"])
        with pytest.raises(ConfigError, match=r"SLOs"):
            entry("threshold@late_last", WORLDS["shared"])


class TestMethodsElsewhere:
    """A method is played with its queues, or refused: at every door in the same words."""

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"kv_budget_tokens": 3000}, "leave it out where the KV cache is a budget"),
            ({"ttft_s": 1.0, "tpot_s": 0.1}, "minimises the makespan of a batch"),
            ({"mixed_tokens": 64}, "knows no mixed iterations"),
        ],
    )
    def test_where_it_makes_no_sense(self, changes, words):
        scenario = WORLDS["shared"].replace(order="fcfs", lengths="hidden", **changes)
        for refuse in (lambda: entry("baseline", scenario), lambda: evaluate(make_policy("baseline"), scenario, 1)):
            with pytest.raises(ConfigError, match=words):
                refuse()

    def test_where_requests_move(self):
        with pytest.raises(ConfigError, match="where caches lie with clients, or requests move"):
            entry("hybrid_lpt", WORLDS["client"].replace(cached_share=0.5))

    def test_on_an_assignment_of_ones_own(self):
        item = entry("offline", WORLDS["client"])
        count = len(play(item.policy, item.scenario, 0).problem.requests)
        with pytest.raises(ConfigError, match="'offline' is a method with queues of its own"):
            play(item.policy, item.scenario, 0, client_of=[0] * count)
