"""What other libraries do with an environment: the calls that they make, without the libraries."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import NormalizeReward, RecordEpisodeStatistics, TimeLimit

from llmsched_env import ENVIRONMENTS, workload
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, MeasuredCost, MixedCost, cost_model
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, UnknownArgumentError, UnknownNameError
from llmsched_env.spec import CLASSES, Spec
from llmsched_env.vector_env import LLMSchedVectorEnv
from llmsched_env.workload import QuantileLaw, Requests

ID = "LLMSched/GSM8K-v0"
SMALL = {"num_clients": 5, "num_requests": 20, "assignment": "lpt"}
LEVELS = CostModel("levels", 0, 0, 10, 1, prefill_token_cap=100, prefill_levels=((50, 30), (4096, 90)))


class TestArguments:
    """TorchRL gives ``frameskip`` and goes on without it where it is told that there is no such argument."""

    @pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
    def test_one_that_does_not_exist_is_refused_as_python_does(self, make):
        with pytest.raises(TypeError, match="unexpected keyword argument 'frameskip'"):
            make(ID, frameskip=1, **SMALL)

    @pytest.mark.parametrize("kind", [LLMSchedEnv, LLMSchedVectorEnv])
    def test_the_nearest_one_is_named(self, kind):
        with pytest.raises(UnknownArgumentError, match=r"'num_client'\. Did you mean 'num_clients'") as caught:
            kind(num_client=5)
        assert isinstance(caught.value, UnknownNameError)
        assert caught.value.close_matches[0] == "num_clients"
        with pytest.raises(UnknownNameError, match=r"'num_client'\. Did you mean .* with kwargs"):
            gymnasium.make(ID, num_client=5)


class TestInfo:
    def test_keys_that_are_read_at_a_limit(self):
        """As SB3's ``Monitor(info_keywords=...)`` and the README's loop read them."""
        env = RecordEpisodeStatistics(NormalizeReward(gymnasium.make(ID, max_episode_steps=10, **SMALL)))
        _, info = env.reset(seed=0)
        over = False
        while not over:
            *_, terminated, truncated, info = env.step(int(info["action_mask"][1]))
            over = terminated or truncated
        assert truncated
        assert (info["makespan_s"], info["gap_to_bound"]) == (np.inf, np.inf)
        assert info["prefills"] + info["decodes"] == info["episode"]["l"] == 10
        assert 0 < info["elapsed_s"] < np.inf
        assert 0 < info["utilization"] <= 1

    @pytest.mark.parametrize("identity", sorted(ENVIRONMENTS))
    def test_every_info_has_one_structure(self, identity):
        """As Minari's ``record_infos`` stacks them."""
        env = TimeLimit(gymnasium.make(identity, **SMALL), 30)

        def structure(info):
            return {key: (np.asarray(value).dtype, np.shape(value)) for key, value in info.items()}

        _, info = env.reset(seed=0)
        first, over = structure(info), False
        while not over:
            *_, terminated, truncated, info = env.step(int(info["action_mask"][1]))
            assert structure(info) == first
            over = truncated or terminated

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_clients": 1, "skip_forced": True},
            {"queue": "shared", "order": "fcfs", "ttft_s": 2.0, "tpot_s": 0.1, "num_requests": 1, "skip_forced": True},
        ],
        ids=["no choice at all", "one request with SLOs"],
    )
    def test_an_episode_that_ends_in_its_first_step_passes_check_env(self, changes):
        env = LLMSchedEnv(**{**SMALL, **changes})
        env.reset(seed=0)
        assert env.step(0)[2], "the episode goes on"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env, skip_render_check=True)

    def test_no_second_token_is_no_time_between_tokens(self, tmp_path):
        path = tmp_path / "short.csv"
        path.write_text("prompt_tokens,output_tokens\n" + "30,1\n" * 4)
        env = LLMSchedEnv(workload=path, num_clients=4, queue="shared", ttft_s=2.0, tpot_s=0.1)
        env.reset(seed=0)
        *_, info = env.step(1)
        assert info["completed"] == 4
        assert info["tpot_s"] == 0.0
        assert 0 < info["ttft_s"] < 2


@dataclasses.dataclass(frozen=True)
class OwnWorkload:
    """One of a user's own, and a dataclass."""

    name: str = "own"

    def pool_size(self, split):
        return 1

    def requests(self, split, number, *, num_requests=None):
        return Requests.of([5, 6], [2, 3])


WORKLOADS = [
    workload.Gsm8kWorkload(cap_probability=0.25),
    workload.Gsm8kSmoothWorkload(),
    workload.GammaWorkload(name="own", output_mean_tokens=30.0),
    workload.LognormalWorkload(name="own", output_mean_tokens=30.0),
    workload.MixtureWorkload(cap_tokens=300),
    workload.QuantileWorkload(output_law=QuantileLaw((0, 500, 1000), (1, 5, 90))),
    *(
        workload.ServingWorkload("own", workload.GammaWorkload(num_requests=30), arrivals, 40)
        for arrivals in (
            workload.PoissonArrivals(),
            workload.GammaArrivals(cv=3.0),
            workload.OnOffArrivals(duty=0.25),
            workload.DiurnalArrivals(amplitude=0.25, base=workload.GammaArrivals(cv=1.5)),
        )
    ),
    workload.CsvWorkload(Path("some.csv")),
    workload.TraceWorkload(Path("some.jsonl"), "mooncake", 30),
    Path("some.csv"),
    "some.csv",
    "lognormal",
]
PREDICTED = [
    workload.Population(),
    workload.PromptRegression(),
    workload.NoisyTruth(0.8, seed=3),
    workload.UnevenTruth((0.2, 0.5), seed=1),
    "noisy:0.8",
]
MEASURED = MeasuredCost("measured", 100, 10, 50, 1, prefill_token_cap=512, mixed=MixedCost(False, 5, 6, 7, 8))
OBJECTS = [
    *({"workload": item} for item in WORKLOADS),
    *({"lengths": "predicted", "predictor": item} for item in PREDICTED),
    {"cost": cost_model("qwen3-8b-h200"), "believed_cost": cost_model("qwen3-8b-rtx-pro-6000")},
    {"cost": LEVELS},
    {"queue": "shared", "mixed_tokens": 64, "mixed_cost": MixedCost(False, 5, 6, 7, 8)},
    {"queue": "shared", "mixed_tokens": 64, "mixed_cost": "fitted", "cost": MEASURED},
    {"num_clients": np.int64(7), "noise_sd": np.float64(0.25)},
    {"scenario": Scenario(workload="gsm8k", cost=cost_model("qwen3-8b-h200"), num_clients=7)},
    {"render_mode": "ansi", "render_size": (640, 400)},
]


@pytest.fixture
def plain():
    """An id that fixes nothing."""
    gymnasium.register("Own/Plain-v0", entry_point="llmsched_env.env:LLMSchedEnv")
    yield "Own/Plain-v0"
    del gymnasium.registry["Own/Plain-v0"]


class TestSpecs:
    @pytest.mark.parametrize("arguments", OBJECTS, ids=lambda arguments: str(next(iter(arguments.values())))[:40])
    def test_what_an_environment_was_made_with_survives_json(self, plain, arguments):
        given = {**({} if "scenario" in arguments else SMALL), **arguments}
        made = gymnasium.make(plain, max_episode_steps=7, **given)
        text = made.spec.to_json()
        spec = EnvSpec.from_json(text)
        again = gymnasium.make(spec)
        assert again.unwrapped.scenario == made.unwrapped.scenario
        assert again.unwrapped.render_mode == made.unwrapped.render_mode
        assert (again.spec.max_episode_steps, again.spec.additional_wrappers) == (7, made.spec.additional_wrappers)
        assert json.loads(again.spec.to_json()) == json.loads(text)
        assert spec == made.spec == again.spec
        assert gymnasium.make(made.spec).unwrapped.scenario == made.unwrapped.scenario

    def test_every_class_is_written_by_some_example(self):
        told = " ".join(Spec("Any-v0", kwargs=arguments).to_json() for arguments in OBJECTS)
        assert {name for name in CLASSES if f'"class": "{name}"' in told} == set(CLASSES)

    def test_plain_specs_are_equal_after_json(self):
        spec = gymnasium.make(ID, **SMALL).spec
        assert EnvSpec.from_json(spec.to_json()) == spec
        assert spec != gymnasium.make(ID, **{**SMALL, "num_clients": 6}).spec

    def test_the_vector_class_too(self):
        made = gymnasium.make_vec(ID, num_envs=2, cost=LEVELS, **SMALL)
        spec = EnvSpec.from_json(made.spec.to_json())
        again = gymnasium.make_vec(ID, **{key: spec.kwargs[key] for key in ("num_envs", "cost", *SMALL)})
        assert again.scenarios == made.scenarios

    def test_what_asdict_makes_of_a_registered_id(self):
        """``gymnasium.spec(id).to_json()`` is Gymnasium's own: it does not say of which class a dictionary was."""
        given = {"cost": LEVELS, "believed_cost": LEVELS, "queue": "shared"}
        spec = EnvSpec("Own/Cost-v0", "llmsched_env.env:LLMSchedEnv", kwargs=given)
        assert gymnasium.make(EnvSpec.from_json(spec.to_json())).unwrapped.scenario == Scenario(**given)
        scenario = Scenario(cost=LEVELS, num_clients=7)
        assert LLMSchedEnv(json.loads(json.dumps(dataclasses.asdict(scenario)))).scenario == scenario

    @pytest.mark.parametrize("own", [OwnWorkload(), object()], ids=["a dataclass", "anything"])
    def test_what_json_cannot_hold_is_refused_with_words(self, own):
        made = gymnasium.make(ID, **SMALL)
        made.unwrapped.spec.kwargs["workload"] = own
        with pytest.raises(ConfigError, match=r"workload = .* cannot be written to JSON: .* Pickle the spec"):
            made.spec.to_json()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"workload": {"name": "own"}}, r"workload = .* does not say what it was: .* add its 'class', one of Cost"),
            ({"predictor": {"class": "Oracle"}}, r"predictor = .* does not say what it was"),
            ({"cost": {"name": "own"}}, r"cost = .* does not make a CostModel: .* missing 4 required"),
            ({"cost": {**dataclasses.asdict(LEVELS), "alpha": 1}}, r"does not make a CostModel: .*'alpha'"),
            ({"scenario": {"num_client": 1}}, r"'num_client'\. Did you mean 'num_clients'"),
        ],
    )
    def test_a_dictionary_that_tells_of_nothing(self, arguments, words):
        for kind in (LLMSchedEnv, LLMSchedVectorEnv):
            with pytest.raises((ConfigError, UnknownArgumentError), match=words):
                kind(**arguments)


@pytest.mark.parametrize("reuses", [False, True])
def test_buffers_are_reused_only_where_that_is_asked_for(small, reuses):
    single, fresh = LLMSchedEnv(small, reuse_buffers=reuses), LLMSchedEnv(small)
    many, fresh_many = (LLMSchedVectorEnv(3, small, reuse_buffers=reuse) for reuse in (reuses, False))
    first, _ = single.reset(seed=0)
    fresh.reset(seed=0)
    arrays = [many.reset(seed=0)[0]]
    fresh_many.reset(seed=0)
    for action in (1, 0, 0, 1):
        observation, *rest = single.step(action)
        assert (observation is first) == reuses
        expected, *others = fresh.step(action)
        assert observation.tolist() == expected.tolist()
        assert rest[:3] == others[:3]
        found, wanted = many.step(np.full(3, action)), fresh_many.step(np.full(3, action))
        for one, other in zip(found[:4], wanted[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        arrays.append(found[0])
    assert (len({id(array) for array in arrays}) == 1) == reuses


def test_an_environment_that_reuses_buffers_is_made_by_name_and_pickled(small):
    env = gymnasium.make(ID, **SMALL, reuse_buffers=True, disable_env_checker=True)
    env.reset(seed=0)
    twin = pickle.loads(pickle.dumps(env.unwrapped))
    for action in (1, 0, 1, 0):
        assert twin.step(action)[0].tolist() == env.step(action)[0].tolist()
    vector = gymnasium.make_vec(ID, num_envs=2, **SMALL, reuse_buffers=True)
    assert vector.reset(seed=0)[0] is vector.step([1, 1])[0]
