"""The environment of a router: the contract of Gymnasium, what it shows, and what it pays."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings

import gymnasium
import numpy as np
import pytest
from comparing import assert_same
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

from llmsched_env import ENVIRONMENTS, ROUTER_ENVIRONMENTS, make_scenario
from llmsched_env.baselines import make_policy
from llmsched_env.errors import (
    ConfigError,
    EpisodeOverError,
    InvalidActionError,
    UnknownArgumentError,
    UnknownNameError,
)
from llmsched_env.replicas import make_router, simulate_replicas
from llmsched_env.replicas.env import REPLICA_FEATURES, REQUEST_FEATURES, RouterEnv
from llmsched_env.workload import GammaWorkload, ServingWorkload

IDS = sorted(ROUTER_ENVIRONMENTS)
SMALL = {"num_requests": 300, "num_clients": 10, "replicas": 3}


@pytest.fixture(params=IDS)
def env(request):
    made = gymnasium.make(request.param, **SMALL)
    yield made
    made.close()


def test_check_env():
    for name in IDS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


def test_stable_baselines_check_env(env):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="stable-baselines3 is an extra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(env.unwrapped, warn=True, skip_render_check=True)


def test_ppo_learns_on_it(env):
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is an extra")
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(128)
    assert model.num_timesteps == 128


def test_the_ids_are_apart():
    assert not ROUTER_ENVIRONMENTS.keys() & ENVIRONMENTS.keys()
    made = gymnasium.make(f"llmsched_env:{IDS[0]}")
    assert isinstance(made.unwrapped, RouterEnv)
    assert gymnasium.spec(IDS[0]).kwargs == ROUTER_ENVIRONMENTS[IDS[0]]


def test_two_environments_in_lock_step(env):
    twin, rng = gymnasium.make(env.spec), np.random.default_rng(0)
    for seed in (3, None, None):
        assert_same(env.reset(seed=seed), twin.reset(seed=seed))
        for _ in range(100):
            action = int(rng.integers(3))
            assert_same(env.step(action), twin.step(action))


def test_a_seed_repeats_the_episode(env):
    first = env.reset(seed=11)
    cases = [env.reset()[1]["case"] for _ in range(5)]
    assert_same(env.reset(seed=11), first)
    assert [env.reset()[1]["case"] for _ in range(5)] == cases
    assert len({first[1]["case"], *cases}) > 1, "every reset draws the same case"


def test_the_specification_comes_back_from_json(env):
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    twin = gymnasium.make(spec)
    assert_same(env.reset(seed=1), twin.reset(seed=1))
    assert (twin.unwrapped.replicas, twin.unwrapped.scenario) == (3, env.unwrapped.scenario)


@pytest.mark.parametrize("policy", ["prefill_first", "random"])
def test_pickled_in_the_middle_of_an_episode(policy):
    env, rng = gymnasium.make(IDS[0], **SMALL, policy=policy), np.random.default_rng(1)
    env.reset(seed=5)
    for _ in range(150):
        env.step(int(rng.integers(3)))
    twin = pickle.loads(pickle.dumps(env))
    terminated = False
    while not terminated:
        action = int(rng.integers(3))
        result = env.step(action)
        assert_same(result, twin.step(action))
        terminated = result[2]
    assert_same(env.reset(), twin.reset())
    assert_same(pickle.loads(pickle.dumps(RouterEnv(env.unwrapped.scenario))).reset(seed=2)[0].shape, (38,))


def test_copies_step_side_by_side():
    vector = gymnasium.make_vec(IDS[0], num_envs=2, **SMALL)
    single = [gymnasium.make(IDS[0], **SMALL) for _ in range(2)]
    observations, infos = vector.reset(seed=7)
    first = [env.reset(seed=7 + i) for i, env in enumerate(single)]
    assert (observations == [observation for observation, _ in first]).all()
    assert infos["case"].tolist() == [info["case"] for _, info in first]
    for number in range(50):
        observations, rewards, *_ = vector.step(np.array([number % 3, number % 2]))
        steps = [single[0].step(number % 3), single[1].step(number % 2)]
        assert (observations == [step[0] for step in steps]).all()
        assert rewards.tolist() == [step[1] for step in steps]
    vector.close()


@pytest.mark.parametrize("policy", ["prefill_first", "deadline", "random"])
def test_an_episode_is_a_run_of_the_fleet_and_its_rewards_are_its_goodput(policy):
    env = RecordEpisodeStatistics(gymnasium.make(IDS[0], **SMALL, policy=policy))
    router = make_router("least_outstanding")
    observation, info = env.reset(seed=0, options={"case": 7})
    fleet = env.unwrapped.fleet
    router.reset(3, 0)
    total, sent, terminated = 0.0, 0, False
    while not terminated:
        assert info.keys() - {"episode"} == {
            "case", "sent", "completed", "elapsed_s", "goodput", "makespan_s", "ttft_s", "tpot_s",
        }  # fmt: skip
        assert (info["case"], info["sent"], info["makespan_s"], info["ttft_s"]) == (7, sent, np.inf, np.inf)
        assert info["elapsed_s"] == fleet.release_ns[sent] / 1e9
        assert info["goodput"] == pytest.approx(1 + total)
        assert observation in env.observation_space
        observation, reward, terminated, truncated, info = env.step(router.choose(fleet.views, *fleet.arriving))
        assert (reward <= 0, truncated) == (True, False)
        total += reward
        sent += 1
    assert (sent, info["completed"]) == (300, 300)
    assert info["episode"]["l"] == 300
    assert total == pytest.approx(info["goodput"] - 1)
    assert 0 < info["goodput"] < 1, "no SLO is violated, or all are: the rewards were not tested"
    run = simulate_replicas(
        env.unwrapped.scenario, make_policy(policy), "least_outstanding", 3, 7, seed=env.unwrapped._seed
    )
    assert (run.replica_of == fleet.replica_of).all()
    for name in ("goodput", "makespan_s", "ttft_s", "tpot_s"):
        assert info[name] == pytest.approx(run.metrics[name]), name
    with pytest.raises(EpisodeOverError, match="has not begun or is over"):
        env.step(0)
    assert not observation[-len(REQUEST_FEATURES) :].any()


PAPER = make_scenario(
    "LLMSched/Serving-v0",
    ttft_s=2.0,
    workload=ServingWorkload("paper", GammaWorkload(name="paper", num_requests=40)),
    num_clients=4,
    lengths="known",
    load=1.2,
)


def test_what_it_shows_is_counted_anew():
    """Each entry from times of the run, as a router could have kept them."""
    env = RouterEnv(PAPER, replicas=2)
    observation, _ = env.reset(options={"case": 0})
    problem, seen = env.fleet.problem, []
    times = env.fleet.release_ns
    while not env.fleet.done:
        seen.append(observation)
        observation, *_ = env.step(env.fleet.next % 2)
    run = simulate_replicas(PAPER, make_policy("prefill_first"), "round_robin", 2, 0)
    rows, served = problem.requests, run.served
    cap, mean, ttft_ns = problem.data.token_cap, problem.data.mean_output_tokens, 2 * 10**9
    names = [feature.name for feature in REPLICA_FEATURES]
    alone_ns, longest_ns = PAPER.cost_model.alpha_prefill_ns, PAPER.cost_model.prefill_ns(cap)
    names_checked = ("active", "waiting", "oldest_wait", "waiting_prompts", "late", "decode_time", "iteration_left")
    checked = dict.fromkeys(names_checked, 0)
    for number, now_ns in enumerate(times.tolist()):
        for replica in (0, 1):
            entries = dict(zip(names, seen[number][9 * replica : 9 * replica + 9].tolist(), strict=True))
            mine = range(replica, number, 2)
            waiting = [i for i in mine if served["first_token_ns"][i] > now_ns]
            active = [i for i in mine if served["first_token_ns"][i] <= now_ns < served["completion_ns"][i]]
            prompts = int(rows[waiting, 0].sum())
            oldest_ns = now_ns - min((int(times[i]) for i in waiting), default=now_ns)
            expected = {
                "active": len(active) / 4,
                "waiting": len(waiting) / (len(waiting) + 4),
                "waiting_prompts": prompts / (prompts + cap),
                "oldest_wait": oldest_ns / (oldest_ns + ttft_ns),
            }
            # As the iteration under way began, so up to its duration ago; no prefill is shorter than alone_ns.
            since, until = (
                sum(at_ns - times[i] > ttft_ns for i in waiting) for at_ns in (now_ns - longest_ns, now_ns + alone_ns)
            )
            if since == until:
                expected["late"] = since / max(1, len(waiting))
            if active:
                decode_ns = PAPER.cost_model.decode_ns(len(active))
                expected["decode_time"] = decode_ns / (decode_ns + 10**8)
            work = entries["work"] / (1 - entries["work"]) * 4 * mean  # some tokens of active requests are emitted
            queued, running = int(rows[waiting, 1].sum()), int(rows[active, 1].sum())
            assert queued * 0.999 + bool(active) <= work <= (queued + running) * 1.001
            read = [i for i in waiting if served["prefill_start_ns"][i] < now_ns]
            if read:  # a prefill is under way, and ends with the first token of each
                left_ns = int(served["first_token_ns"][read[0]]) - now_ns
                expected["iteration_left"] = left_ns / (left_ns + ttft_ns)
            for name, value in expected.items():
                assert entries[name] == pytest.approx(value, abs=1e-6), (number, replica, name)
                checked[name] += value > 0
        prompt, estimate = int(rows[number, 0]), int(rows[number, 1])
        assert seen[number][-2:] == pytest.approx([prompt / (prompt + cap), estimate / (estimate + mean)])
    assert min(checked.values()) > 10, checked


def test_the_docstring_is_the_specification():
    text = inspect.getdoc(RouterEnv)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Information",
        "Arguments", "Version History",
    ]  # fmt: skip
    assert not re.search(r"\{\w+\}", text)
    rows = re.findall(r"^\| `(\w+)` \| (replica|request) \| (.+) \| 0 \| 1 \|$", text, re.MULTILINE)
    table = [*((*f, "replica") for f in REPLICA_FEATURES), *((*f, "request") for f in REQUEST_FEATURES)]
    assert rows == [(name, what, formula) for name, formula, what in table]
    assert f"({len(REPLICA_FEATURES)} replicas + {len(REQUEST_FEATURES)},)" in text
    assert re.findall(r"^\| `(LLMSched/\S+)` ", text, re.MULTILINE) == list(ROUTER_ENVIRONMENTS)
    own = inspect.signature(RouterEnv.__init__).parameters.keys() - {"self", "arguments", "scenario"}
    arguments = text.partition("## Arguments")[2]
    assert {name for name in own if f"`{name}`:" not in arguments} == set()
    for name in ("case", "sent", "completed", "elapsed_s", "goodput", "makespan_s", "ttft_s", "tpot_s"):
        assert f"`{name}`" in text.partition("## Information")[2].partition("## Arguments")[0]


def test_text():
    env = gymnasium.make(IDS[0], **SMALL, render_mode="ansi")
    env.reset(seed=0)
    for number in range(6):
        env.step(number % 2)
    lines = env.render().splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("request 6 of 300")
    assert [line.rpartition(",")[2].split() for line in lines[1:]] == [["3", "sent"], ["3", "sent"], ["0", "sent"]]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"replicas": 0}, ConfigError, "replicas = 0 is out of range"),
        ({"policy": "nobody"}, UnknownNameError, "unknown policy 'nobody'"),
        ({"policy": "beam"}, ConfigError, "policy 'beam' looks at the future"),
        ({"ttft_s": None, "tpot_s": None, "reward": "excess"}, ConfigError, "without SLOs"),
        ({"clients": 7}, UnknownArgumentError, "Did you mean 'num_clients'"),
        ({"render_mode": "human"}, UnknownNameError, "unknown render mode 'human'"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's own about the render mode
        with pytest.raises(error, match=words):
            RouterEnv(**{**ROUTER_ENVIRONMENTS[IDS[0]], **arguments})


def test_bad_actions():
    env = RouterEnv(**{**ROUTER_ENVIRONMENTS[IDS[0]], **SMALL})
    with pytest.raises(EpisodeOverError, match="reset"):
        env.step(0)
    with pytest.raises(EpisodeOverError, match="reset"):
        env.fleet  # noqa: B018
    env.reset(seed=0)
    for action in (3, -1, 0.5, "one"):
        with pytest.raises(InvalidActionError, match="replicas are numbered from 0 to 2"):
            env.step(action)
    assert env.fleet.next == 0
