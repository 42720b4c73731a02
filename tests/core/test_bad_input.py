"""What no simulation can honour is refused at the door, in words that name the value and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from strategies import Case

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario, read_arguments
from llmsched_env.cost import PRESETS, CostModel
from llmsched_env.engine.batch import Batch
from llmsched_env.engine.features import all_features, features
from llmsched_env.engine.view import View
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import (
    ConfigError,
    EpisodeOverError,
    FileFormatError,
    LLMSchedError,
    PathError,
    UnknownNameError,
    WorkloadError,
)
from llmsched_env.simulator import Simulator
from llmsched_env.workload import Requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_clients": 0}, r"num_clients = 0 is out of range: it lies in \[1, 1048576\]"),
        ({"num_clients": -3}, r"num_clients = -3 is out of range"),
        ({"num_clients": 2**20 + 1}, r"num_clients = 1048577 is out of range"),
        ({"num_clients": 8.0}, r"num_clients = 8.0 is not a whole number"),
        ({"num_clients": "8"}, r"num_clients = '8' is not a whole number"),
        ({"num_clients": True}, r"num_clients = True is not a whole number"),
        ({"num_clients": None}, r"num_clients = None is not a whole number"),
        ({"num_clients": float("nan")}, r"num_clients = nan is not a whole number"),
        ({"num_requests": 0}, r"num_requests = 0 is out of range"),
        ({"max_iterations": 0}, r"max_iterations = 0 is out of range"),
        ({"prefill_token_cap": 0}, r"prefill_token_cap = 0 is out of range"),
        ({"stealing": 1}, r"stealing = 1 is neither True nor False"),
        ({"skip_forced": "no"}, r"skip_forced = 'no' is neither True nor False"),
        ({"workload": 5}, r"5 is not a workload: pass a name"),
    ],
)
def test_values_out_of_range(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Scenario(**arguments)
    with pytest.raises(ConfigError, match=words):
        LLMSchedEnv(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cost": "llama-65b"}, r"unknown cost preset 'llama-65b'. Did you mean 'llama-65b-paper"),
        ({"workload": "gsm8"}, r"unknown workload 'gsm8'. Did you mean 'gsm8k'"),
        ({"split": "tests"}, r"unknown split 'tests'. Did you mean 'test'"),
        ({"queue": "client queues"}, r"unknown queue 'client queues'"),
        ({"assignment": "lp"}, r"unknown assignment 'lp'. Did you mean 'lpt'"),
        ({"order": "longest"}, r"unknown order 'longest'. Did you mean 'longest_first'"),
        ({"lengths": "know"}, r"unknown lengths 'know'. Did you mean 'known'"),
        ({"reward": "makespam"}, r"unknown reward 'makespam'. Did you mean 'makespan'"),
        ({"client": 8}, r"unexpected keyword argument 'client'. Did you mean 'num_clients'"),
    ],
)
def test_names_that_do_not_exist(arguments, words):
    with pytest.raises(UnknownNameError, match=words):
        LLMSchedEnv(**arguments)


def test_an_unknown_render_mode():
    with pytest.raises(UnknownNameError, match=r"unknown render mode 'rgb'. Did you mean 'rgb_array'"):
        LLMSchedEnv(render_mode="rgb")


def test_whole_numbers_of_numpy_are_whole_numbers():
    scenario = Scenario(num_clients=np.int8(100), max_iterations=np.uint16(7))
    assert scenario == Scenario(num_clients=100, max_iterations=7)
    assert type(scenario.describe()["num_clients"]) is int


def test_a_workload_must_be_hashable():
    @dataclass
    class Mutable:
        name: str = "mine"

        def pool_size(self, split):
            return 1

        def requests(self, split, number, *, num_requests=None):
            return Requests.of([1], [1])

    with pytest.raises(ConfigError, match=r"cannot be hashed.*make it a frozen dataclass"):
        Scenario(workload=Mutable())


def test_levels_that_a_prompt_exceeds():
    # A prompt above the cap goes alone, but some level must hold it.
    case = Case((30,), (1,), 1, levels=((10, 5), (20, 9)), token_cap=20)
    with pytest.raises(ConfigError, match=r"of 30 tokens exceeds the largest (prefill )?level, 20"):
        case.problem()


def test_a_cap_that_no_level_holds():
    cost = CostModel("levels", 0, 0, 1, 1, prefill_token_cap=10, prefill_levels=((10, 5),))
    with pytest.raises(ConfigError, match=r"largest prefill level holds 10 tokens but prefill_token_cap is 11"):
        Scenario(cost=cost, prefill_token_cap=11)


def test_more_output_tokens_than_decode_counts_hold():
    with pytest.raises(WorkloadError, match=r"output tokens in sum exceed .* split it"):
        Case((1,) * 128, (2**24,) * 128, 4).problem()


def test_durations_beyond_the_clock():
    with pytest.raises(WorkloadError, match=r"beyond the 4e.09 s of the clock: check the units of the cost model"):
        Case((2**24,) * 4, (1,) * 4, 2, beta_prefill_ns=10**12).problem()
    with pytest.raises(WorkloadError, match=r"beyond the"):
        Case((1,), (2**24,), 1, gamma_decode_ns=10**6).problem()
    with pytest.raises(WorkloadError, match=r"beyond the"):
        Case((1,), (2**24,), 1, first_decode_ns=10**12).problem()


def test_the_largest_case_of_the_issue_fits_the_clock():
    case = Case((128,) * 100_000, (512,) * 100_000, 5000, token_cap=2048)
    preset = PRESETS["llama-65b-paper"]
    built = Case(
        case.prompts,
        case.outputs,
        case.num_clients,
        alpha_prefill_ns=preset.alpha_prefill_ns,
        beta_prefill_ns=preset.beta_prefill_ns,
        alpha_decode_ns=preset.alpha_decode_ns,
        beta_decode_ns=preset.beta_decode_ns,
        token_cap=2048,
    ).problem()
    assert built.num_requests == 100_000


def test_a_file_that_cannot_be_read(tmp_path):
    env = LLMSchedEnv(workload=tmp_path / "absent.csv", num_clients=2, assignment="lpt")
    with pytest.raises(PathError, match=r"cannot read .*absent.csv: .*Give the path of a readable CSV file"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("5,0", r"line 2, column 'output_tokens'"),
        ("5,3\nnan,1", r"line 3, column 'prompt_tokens'"),
        ("-5,3", r"line 2, column 'prompt_tokens'"),
        ("", "no rows|no requests|at least one"),
    ],
)
def test_a_file_with_requests_that_cannot_be_served(tmp_path, rows, words):
    path = tmp_path / "mine.csv"
    path.write_text(f"prompt_tokens,output_tokens\n{rows}\n")
    env = LLMSchedEnv(workload=path, num_clients=2, assignment="lpt")
    with pytest.raises(FileFormatError, match=words):
        env.reset(seed=0)


def test_predictions_that_the_workload_does_not_bring(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt_tokens,output_tokens\n5,3\n")
    env = LLMSchedEnv(workload=path, num_clients=2, assignment="lpt", lengths="predicted")
    with pytest.raises(WorkloadError, match=r"has no predictions: give a file with a column predicted_tokens, or"):
        env.reset(seed=0)


@pytest.mark.parametrize("case", [-1, 1.0, True, "0", None])
def test_no_such_case(case):
    scenario = Scenario(split="test", assignment="lpt")
    build_problem(scenario, 1)
    with pytest.raises(ConfigError, match=r"case number"):
        build_problem(scenario, case)


def test_every_error_is_one_of_ours():
    for error in (ConfigError, WorkloadError, UnknownNameError):
        assert issubclass(error, LLMSchedError)
        assert issubclass(error, ValueError)


def test_arguments_of_a_command_line():
    found = read_arguments(
        "noise_sd=0.5, mixed_tokens=64,mixed_counts_active=True , steal=running,kv_budget_tokens=None"
    )
    assert found == {
        "noise_sd": 0.5, "mixed_tokens": 64, "mixed_counts_active": True, "steal": "running", "kv_budget_tokens": None,
    }  # fmt: skip
    assert read_arguments("") == {}
    with pytest.raises(ConfigError, match="'noise_sd' is not of the form name=value"):
        read_arguments("noise_sd")
    with pytest.raises(UnknownNameError, match="unknown scenario argument 'noise'"):
        read_arguments("noise=1")


def test_a_view_that_lacks_what_features_divide_by():
    whole = {"num_clients": 9, "token_cap": 100, "mean_output_tokens": 7.5, "active": 2, "decode_ns": 5}
    seen = features(View(**whole))
    assert ((seen >= 0) & (seen <= 1)).all()
    for name in ("num_clients", "token_cap", "mean_output_tokens", "decode_ns"):
        with pytest.raises(ConfigError, match=f"features need {name} above 0, and this view has {name}="):
            features(View(**{**whole, name: 0}))
    with pytest.raises(ConfigError, match="prefill_ns=0"):
        all_features(View(**whole, batch_requests=1))


def test_a_batch_some_of_whose_copies_have_no_case():
    batch, problem = Batch(2, (0, 1), 26), build_problem(Scenario(), 0)
    actions = np.ones(2, np.int64)
    for left in (2, 1):
        with pytest.raises(EpisodeOverError, match=f"{left} of 2 copies have not begun"):
            batch.step(actions)
        batch.load(2 - left, problem, batch.next_steps())
    assert batch.step(actions)[1] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release_ns": np.zeros(3, np.int64)}, "release_ns has 3 entries but prompt_tokens has 5"),
        ({"prompt_tokens": np.zeros(5, np.int32)}, r"prompt_tokens\[0\] = 0 is out of range"),
        ({"output_tokens": [1, 2, 3, 4, -5]}, r"output_tokens\[4\] = -5"),
        ({"mean_output_tokens": float("nan")}, "mean_output_tokens = nan"),
    ],
)
def test_requests_that_nobody_has_checked(changes, words):
    given = replace(Requests.of([3] * 5, [4] * 5), **changes)
    with pytest.raises(WorkloadError, match=words):
        build_problem(Scenario(workload=Drawn(given), num_clients=2, assignment="lpt"), 0)


def test_what_are_no_requests():
    for given in (None, [1, 2], {"prompt_tokens": [1]}):
        with pytest.raises(WorkloadError, match=f"workload 'drawn' made a {type(given).__name__}"):
            build_problem(Scenario(workload=Drawn(given), num_clients=2), 0)


def test_a_gap_that_no_reward_can_tell():
    given = Requests.of([5] * 2, [9] * 2, release_ns=[0, 3 * 3600 * 10**9])
    with pytest.raises(WorkloadError, match="without an arrival, times 1048576 clients"):
        build_problem(Scenario(workload=Drawn(given), queue="shared", order="fcfs", num_clients=2**20), 0)


def test_numbers_names_and_flags_of_other_kinds():
    with pytest.raises(ConfigError, match="tpot_s is beyond the numbers that a float holds"):
        Scenario(ttft_s=1.0, tpot_s=10**400)
    with pytest.raises(UnknownNameError, match="reward"):
        Scenario(reward=np.array([1, 2]))
    with pytest.raises(ConfigError, match="reuse_buffers = 'no' is neither True nor False"):
        LLMSchedEnv(reuse_buffers="no")
    with pytest.raises(ConfigError, match="does not say what it was"):
        LLMSchedEnv(workload={"class": [1]})


def test_what_is_no_problem_no_scenario_and_no_rule():
    with pytest.raises(ConfigError, match="made of a Problem, as build_problem makes, not of a Scenario"):
        Simulator(Scenario())
    with pytest.raises(ConfigError, match="a problem is built for a Scenario, not a int"):
        build_problem(3, 0)
    with pytest.raises(ConfigError, match="run takes a Rule, not a function"):
        Simulator(build_problem(Scenario(), 0)).run(lambda view: 1)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A workload of one's own."""

    given: object
    name: str = "drawn"

    def pool_size(self, split):
        return 1

    def requests(self, split, number, *, num_requests=None):
        return self.given
