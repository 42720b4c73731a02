"""Random scenarios, requests, actions and calls, sensible or not: ``python tests/core/fuzzing.py SEED COUNT``.

Whatever is given, there is a result or an error of this project. The last line tells how often which came of it.
"""

from __future__ import annotations

import collections
import copy
import hashlib
import pickle
import sys
import warnings
from typing import Any

import numpy as np

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.view import View
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import LLMSchedError
from llmsched_env.metrics import final_metrics
from llmsched_env.policy import FunctionRule, PythonRule, features
from llmsched_env.simulator import Simulator
from llmsched_env.vector_env import LLMSchedVectorEnv
from llmsched_env.workload import Requests

MOST_STEPS = 300
WILD = (0, -1, 1, 2**31 - 1, 2**31, 2**62, 2**64, 0.5, -0.0, float("nan"), float("inf"), None, "", "x", True, [], {})
"""What nobody means."""


class Fixed:
    """A workload of one case."""

    name, version = "fixed", None

    def __init__(self, requests: Requests) -> None:
        self.held = requests

    def pool_size(self, split: str) -> int:
        """One case."""
        return 1

    def requests(self, split: str, case: int, *, num_requests: int | None = None) -> Requests:
        """It."""
        return self.held


def lengths(rng: np.random.Generator, n: int) -> Any:
    """Token counts: short ones, equal ones, a few huge ones, rarely what is none."""
    kind = rng.random()
    if kind < 0.03:
        return rng.integers(-2, 4, n)
    if kind < 0.06:
        return rng.random(n) * 9
    if kind < 0.1:
        return np.full(n, int(rng.choice([1, 1, 2, 64, 2**12, 2**31 - 1])))
    return rng.integers(1, int(rng.choice([2, 9, 60])), n)


def drawn(rng: np.random.Generator) -> Requests:
    """A case, or an error."""
    n = 0 if rng.random() < 0.02 else int(rng.choice([1, 2, 7, 40, 40]))
    release = None
    if rng.random() < 0.5:
        release = np.sort(rng.integers(0, int(rng.choice([2, 10**6, 10**10, 10**10, 2**61])), n))
    return Requests.of(lengths(rng, n), lengths(rng, n), release_ns=release)


COST = CostModel("tiny", 3_000_000, 1_000_000, 2_000_000, 1_000_000)

GROUPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "always": {
        "num_clients": (1, 2, 3, 9, 70),
        "prefill_token_cap": (None, 1, 40, 2048),
        "cost": (
            COST,
            COST,
            CostModel("levels", 0, 0, 50, 1, prefill_levels=((64, 100), (4096, 900))),
            CostModel("context", 100, 10, 50, 1, gamma_decode_ns=2, first_decode_ns=30),
            CostModel("huge", 10**12, 10**9, 10**12, 10**9),
        ),
        "order": ("fcfs", "longest_first", "shortest_first"),
        "lengths": ("known", "hidden"),
        "reward": ("excess", "makespan", "idle", "latency", "differential"),
        "skip_forced": (False, True),
        "max_iterations": (None, None, 5),
    },
    "slo": {"ttft_s": (1e-6, 0.02, 2.0), "tpot_s": (1e-6, 0.1), "uncounted_share": (0.1, 0.0), "reward": ("goodput",)},
    "noise": {"noise_sd": (0.0, 0.4), "believed_cost": (None, COST)},
    "client": {
        "queue": ("client",),
        "assignment": ("lpt", "round_robin"),
        "stealing": (True, True, False),
    },
    "migration": {
        "cached_share": (0.0, 0.7),
        "steal": ("waiting", "running", "cheaper"),
        "stealing": (True,),
    },
    "shared": {"queue": ("shared",)},
    "deadlines": {"order": ("late_last", "late_last_shortest")},
    "orders": {"order": ("fcfs",), "choose_order": (True,)},
    "kv": {
        "kv_budget_tokens": (30, 200, 200, 5000),
        "kv_block_tokens": (1, 16),
        "kv_admission": ("fits", "reserve", "predicted"),
        "kv_watermark": (0.0, 0.2),
        "kv_victim": ("last", "least_estimate"),
        "kv_swap_gb_per_s": (None, 20.0),
    },
    "vllm": {
        "kv_budget_tokens": (200, 5000),
        "kv_block_tokens": (1, 16),
        "kv_rule": ("vllm_v0", "vllm_v1", "vllm_v1"),
        "kv_watermark": (0.0, 0.2),
    },
    "caps": {"choose_cap": (True,)},
    "mixed": {
        "mixed_tokens": (1, 40, 40, 2**31 - 1),
        "mixed_counts_active": (False, True),
        "mixed_whole_prompts": (False, True),
        "mixed_within_slack": (False, False, True),
        "mixed_cost": ("sum", "overlap", MixedCost(alpha_ns=10, beta_prompt_ns=2, beta_active_ns=3)),
    },
}
ON_CLIENTS = ("slo", "noise", "migration")
ON_ONE_LINE = ("slo", "noise", "kv", "vllm", "mixed", "orders", "deadlines", "caps")


def scenario(rng: np.random.Generator, served: Requests) -> Scenario:
    """A scenario, or an error."""
    kind, others = ("client", ON_CLIENTS) if rng.random() < 0.3 else ("shared", ON_ONE_LINE)
    groups = ["always", kind, *(name for name in others if rng.random() < 0.35)]
    given: dict[str, Any] = {"workload": Fixed(served)}
    for group in groups:
        for name, values in GROUPS[group].items():
            given[name] = values[rng.integers(len(values))]
    if rng.random() < 0.1:
        given[str(rng.choice(list(given)))] = WILD[rng.integers(len(WILD))]
    return Scenario(**given)


def act(rng: np.random.Generator, actions: int) -> Any:
    """An action, feasible or not, rarely none at all."""
    return WILD[rng.integers(len(WILD))] if rng.random() < 0.002 else int(rng.integers(actions))


def play(rng: np.random.Generator, simulator: Simulator) -> None:
    """Step, fork, restore, pickle and run, at random."""
    others = [simulator]
    for _ in range(MOST_STEPS):
        one = others[rng.integers(len(others))]
        what = rng.random()
        if what < 0.9:
            if not one.done:
                one.step(act(rng, one.problem.num_actions))
        elif what < 0.92:
            one.reset()
        elif what < 0.94:
            wrong = rng.random() < 0.02
            longer = one.emitted + (rng.integers(-2, 2**31, len(one.emitted)) if wrong else rng.integers(1, 60))
            others.append(one.fork(outputs=longer, arrivals=bool(rng.random() < 0.5), record=bool(rng.random() < 0.5)))
        elif what < 0.96:
            one.restore(others[rng.integers(len(others))])
        elif what < 0.98:
            others.append(pickle.loads(pickle.dumps(one)))
        else:
            others.append(copy.deepcopy(one))
            answers = rng.integers(-3, 40, 64).tolist()
            rules = (PythonRule(lambda view, a=answers: a[view.decodes % 64]), FunctionRule(lambda view, p, m: 2**40))
            others[-1].run(rules[rng.integers(2)])
            final_metrics(others[-1])
        features(one.view)
        others = others[-4:]


def steps_of(rng: np.random.Generator, env: LLMSchedEnv) -> None:
    """One environment, to the end of an episode and beyond."""
    env.reset(seed=int(rng.integers(9)))
    for _ in range(MOST_STEPS // 3):
        _, _, terminated, truncated, _ = env.step(act(rng, env.action_space.n))
        if (terminated or truncated) and rng.random() < 0.99:
            env.reset(options={"case": int(rng.integers(2))} if rng.random() < 0.1 else None)


def steps_of_many(rng: np.random.Generator, env: LLMSchedVectorEnv) -> None:
    """Copies of one."""
    env.reset(seed=int(rng.integers(9)))
    for _ in range(MOST_STEPS // 10):
        actions: Any = rng.integers(env.single_action_space.n, size=env.num_envs)
        if rng.random() < 0.03:
            actions = rng.integers(-(2**62), 2**62, size=rng.integers(5))
        env.step(actions)
        if rng.random() < 0.1:
            env.reset(options={"reset_mask": rng.random(env.num_envs) < 0.5})


def view(field: str, value: int) -> View:
    """One made by hand, and what is seen of it."""
    made = View(num_clients=5, token_cap=value + 2, mean_output_tokens=3.5, **{field: value})
    assert not np.isnan(features(made)).any()
    return made


def tried(tally: collections.Counter[str], name: str, call: Any, *arguments: Any) -> Any:
    """What the call returns; ``None`` after one of our errors."""
    try:
        found = call(*arguments)
    except LLMSchedError as error:
        tally[type(error).__name__] += 1
        return None
    tally[name] += 1
    return found


def wild_digest(number: int) -> str:
    """What an environment returns in a world of any sizes and costs, to the bit, or what is said of that world."""
    rng = np.random.default_rng([77, number])
    found = hashlib.sha256(str(number).encode())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = LLMSchedEnv(scenario=scenario(rng, drawn(rng)))
            found.update(pickle.dumps(env.reset(seed=0)))
        for _ in range(25):
            *seen, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
            found.update(pickle.dumps((seen, sorted(info.items(), key=str))))
            if terminated or truncated:
                break
    except LLMSchedError as error:
        found.update(str(error).encode())
    return found.hexdigest()


def main(seed: int, count: int) -> None:
    """Try ``count`` worlds."""
    warnings.simplefilter("ignore")
    tally: collections.Counter[str] = collections.Counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        print(f"world {number}", file=sys.stderr, flush=True)  # the last one that is told is the one that crashed
        served = tried(tally, "requests", drawn, rng)
        where = None if served is None else tried(tally, "scenarios", scenario, rng, served)
        if where is None:
            continue
        case = tried(tally, "cases", build_problem, where, 0)
        if case is not None:
            record = bool(rng.random() < 0.5)
            tried(tally, "played", play, rng, Simulator(case, record=record))
            tried(tally, "environments", steps_of, rng, LLMSchedEnv(scenario=where, reuse_buffers=record))
            tried(tally, "vectors", steps_of_many, rng, LLMSchedVectorEnv(3, scenario=where))
        field, value = str(rng.choice(["active", "clock_ns", "nothing"])), int(rng.integers(-9, 9))
        tried(tally, "views", view, field, value)
    print(dict(sorted(tally.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
