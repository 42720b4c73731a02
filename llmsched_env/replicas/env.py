"""The Gymnasium environment of a router: each step sends the request that arrives to one of several replicas."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmsched_env import ROUTER_ENVIRONMENTS
from llmsched_env.baselines.registry import make_policy
from llmsched_env.cases import build_problem, draw_case
from llmsched_env.config import MAX_SEED, Scenario, checked_options, whole
from llmsched_env.engine.view import View
from llmsched_env.errors import EpisodeOverError, InvalidActionError, UnknownNameError
from llmsched_env.policy import Policy
from llmsched_env.replicas.fleet import Fleet, check_fleet, make_fleet
from llmsched_env.spec import WithSpec, merged

__all__ = ["REPLICA_FEATURES", "REQUEST_FEATURES", "RouterEnv", "observe"]

Observation = NDArray[np.float32]
Info = dict[str, Any]

MOST_POLICY_SEED = 2**62


class Feature(NamedTuple):
    """An entry of the observation.

    Attributes:
        name: what tables call it.
        formula: its value in symbols.
    """

    name: str
    formula: str


REPLICA_FEATURES = (
    Feature("active", "A / J"),
    Feature("waiting", "W / (W + J)"),
    Feature("kv", "U / M; without a budget U / (U + J m)"),
    Feature("waiting_prompts", "P / (P + prefill_token_cap)"),
    Feature("work", "R / (R + J m)"),
    Feature("oldest_wait", "w / (w + S1)"),
    Feature("late", "L / W; 0 where W = 0"),
    Feature("decode_time", "T_d / (T_d + S2)"),
    Feature("iteration_left", "l / (l + S1)"),
)
"""Of each replica, one replica after another."""

REQUEST_FEATURES = (
    Feature("prompt", "p / (p + prefill_token_cap)"),
    Feature("estimate", "e / (e + m)"),
)
"""Of the request that is to be sent, after those of the replicas."""


class RouterEnv(WithSpec, gymnasium.Env[Observation, np.int64]):  # type: ignore[misc]  # spec is a property
    """Several accelerators serve LLM requests; each step sends the request that arrives to one of them.

    ## Description

    `replicas` accelerators, each with J clients, a KV cache and a queue of its own, run their iterations independently,
    all by the same `policy`. Requests come over time. A router sends each of them to one replica at its arrival, where
    it stays. Between two arrivals every replica is run up to the second one. Each replica is the engine of the other
    environments, exact to the nanosecond (docs/model.md); with one replica an episode is the same as theirs under that
    policy. docs/replicas.md compares routers.

    ## Action Space

    `Discrete(replicas)`: the replica that the request is sent to. Every action is feasible.

    ## Observation Space

    `Box(0, 1, (9 replicas + 2,), float32)`: nine entries of each replica, then two of the request that is to be sent,
    which are 0 at the end. They show what a router can know at the arrival: an iteration that is under way has given
    no tokens yet. A active and W waiting requests, J clients, m the mean output length, U tokens in the KV cache of M,
    P prompt tokens that wait, R output tokens to come by estimates, w the time that the oldest waiting request waits, L
    waiting requests that had missed their TTFT as the iteration under way began (even the shortest prefill would have
    been too late), T_d what a decode lasts, l what the iteration under way is still to last; S1 and S2 the limits on
    TTFT and TPOT; p prompt tokens and e estimated output tokens of the request. Durations and lengths are what
    schedulers believe, as the scenario lets them be known.

    {observation_table}

    ## Rewards

    -1 / counted for each counted request of which it became certain, from one arrival to the next, that it violates an
    SLO, an iteration that is under way included; an episode sums to goodput - 1. What comes after the last arrival is
    part of the last step.

    ## Starting State

    All replicas idle, the first request to be sent. `reset(seed=...)` draws a case of the pool;
    `reset(options={{"case": k}})` takes case k.

    ## Episode End

    Terminated when the last request was sent; everything is then run to its end. Never truncated.

    ## Information

    `case`, the number of the case; `sent`, requests sent; `completed`, requests complete; `elapsed_s`, the time of the
    next arrival, and of the last completion at the end; `goodput`, what can still be reached, 1 less the share of
    certain violations; `makespan_s`, `ttft_s` and `tpot_s` (means of the counted requests), infinite before the end.

    ## Arguments

    `replicas`: how many, from 1 to 1024 (4). `policy`: what decides in each, the name of a rule or an agent
    (`llmsched_env.baselines.make_policy`), or an object of the `Policy` protocol ("prefill_first"). `render_mode`:
    `None` or `"ansi"`, a line of text a replica. All others are those of `Scenario`, which each replica has, and may be
    given as one `scenario=Scenario(...)`: one shared queue, and SLOs. `load` is that of each replica where all are sent
    as much: the case comes at `replicas` times its rate.

    ## Version History

    {version_table}
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 30}  # noqa: RUF012  # declared by the base class

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        replicas: int = 4,
        policy: str | Policy = "prefill_first",
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        """Make the environment; see the class for the arguments.

        Raises:
            ConfigError: a value out of range, options that contradict each other, or what replicas cannot have.
            UnknownNameError: a preset, policy or mode that does not exist.
            UnknownArgumentError: an argument that does not exist (it is an UnknownNameError and a TypeError).
        """
        self.scenario = merged(scenario, arguments)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UnknownNameError("render mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.policy = make_policy(policy) if isinstance(policy, str) else policy
        self.replicas = check_fleet(self.scenario, self.policy, replicas)
        size = len(REPLICA_FEATURES) * self.replicas + len(REQUEST_FEATURES)
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)
        self.action_space = spaces.Discrete(self.replicas)
        self._fleet: Fleet | None = None
        self._case = self._seed = self._charged = 0

    @property
    def fleet(self) -> Fleet:
        """The running episode, for inspection.

        Raises:
            EpisodeOverError: before the first reset.
        """
        if self._fleet is None:
            raise EpisodeOverError("no episode has begun: call reset() first.")
        return self._fleet

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode: a case drawn from the scenario's pool, or the one named in ``options["case"]``.

        Raises:
            ConfigError: a seed or case number that is no whole number of at least 0.
            UnknownNameError: an option that does not exist.
        """
        named = checked_options(options, {"case"}).get("case")
        seed = None if seed is None else whole("seed", seed, 0, MAX_SEED)
        if named is not None:
            build_problem(self.scenario, named)  # one that does not exist is found before anything has changed
        super().reset(seed=seed)
        drawn = draw_case(self.scenario, self.np_random)
        self._case = drawn if named is None else int(named)
        self._seed = int(self.np_random.integers(MOST_POLICY_SEED))
        self._fleet = self._begun()
        self._charged = self._fleet.violations
        return observe(self._fleet), self._info()

    def _begun(self) -> Fleet:
        return make_fleet(self.scenario, self.policy, self.replicas, self._case, seed=self._seed, forecast=True)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Send the request, and go on to the next arrival.

        Raises:
            InvalidActionError: not in the action space.
            EpisodeOverError: before ``reset``, or after the end.
        """
        fleet = self._fleet
        if fleet is None or fleet.done:
            raise EpisodeOverError("the episode has not begun or is over: call reset() before step().")
        fleet.send(self._checked(action))
        charged, self._charged = self._charged, fleet.violations
        reward = (charged - self._charged) / fleet.counted
        return observe(fleet), reward, fleet.done, False, self._info()

    def _checked(self, action: Any) -> int:
        try:
            replica = operator.index(action)
        except TypeError:
            replica = -1
        if not 0 <= replica < self.replicas:
            raise InvalidActionError(
                f"action {action!r} is outside the action space: replicas are numbered from 0 to {self.replicas - 1}."
            )
        return replica

    def _info(self) -> Info:
        fleet = self.fleet
        done, totals = fleet.done, fleet.totals
        ttft_s = sum(one.ttft_sum_ns for one in totals) / fleet.counted / 1e9 if done else np.inf
        decoded = sum(one.counted_decoded for one in totals)
        tpot_s = sum(one.tpot_sum_ns for one in totals) / max(1, decoded) / 1e9 if done else np.inf
        return {
            "case": self._case,
            "sent": fleet.next,
            "completed": fleet.completed,
            "elapsed_s": fleet.clock_ns / 1e9,
            "goodput": 1 - fleet.violations / fleet.counted,
            "makespan_s": fleet.clock_ns / 1e9 if done else np.inf,
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
        }

    def render(self) -> Any:
        """What each replica has, a line of text each.

        Raises:
            EpisodeOverError: before the first reset.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode: make the environment with render_mode='ansi'.")
            return None
        fleet, sent = self.fleet, np.bincount(self.fleet.replica_of[: self.fleet.next], minlength=self.replicas)
        lines = [f"{fleet.clock_ns / 1e9:.3f} s, request {fleet.next} of {len(fleet.replica_of)}"]
        for number, view in enumerate(fleet.views):
            lines.append(
                f"replica {number}: {view.active:4} active, {view.waiting:4} waiting, {view.context_tokens:7} tokens, "
                f"{sent[number]:6} sent"
            )
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # An episode is what was sent where: it is played again.
        state["_fleet"] = None if self._fleet is None else self._fleet.replica_of[: self._fleet.next].tolist()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        sent = state["_fleet"]
        self.__dict__.update({**state, "_fleet": None})
        if sent is not None:
            self._fleet = self._begun()
            for replica in sent:
                self._fleet.send(replica)


def observe(fleet: Fleet) -> Observation:
    """(9 N + 2,) float32: what `RouterEnv` shows of a fleet whose views have a forecast."""
    problem, now_ns = fleet.problem, fleet.clock_ns
    mean, cap = float(problem.data.mean_output_tokens), float(problem.data.token_cap)
    values: list[float] = []
    for view, left_ns in zip(fleet.views, fleet.left_ns, strict=True):
        values += _of_replica(view, left_ns, now_ns, mean, cap)
    prompt, estimate = fleet.arriving
    values += (_share(prompt, cap), _share(estimate, mean))
    return np.array(values, np.float32)


def _of_replica(view: View, left_ns: int, now_ns: int, mean: float, cap: float) -> tuple[float, ...]:
    clients, waiting = int(view.num_clients), int(view.waiting)
    budget = int(view.kv_budget_tokens)
    waited_ns = max(0, now_ns - view.oldest_release_ns) if waiting else 0
    return (
        view.active / clients,
        _share(waiting, clients),
        view.kv_used / budget if budget else _share(view.context_tokens, clients * mean),
        _share(view.waiting_tokens, cap),
        _share(view.waiting_work + view.remaining, clients * mean),
        _share(waited_ns, view.ttft_ns),
        min(1.0, view.late / waiting) if waiting else 0.0,
        _share(view.decode_ns, view.tpot_ns),
        _share(left_ns, view.ttft_ns),
    )


def _share(one: float, other: float) -> float:
    """``one / (one + other)``, of which the second is above 0."""
    return one / (one + other)


def _table(*rows: tuple[object, ...]) -> str:
    head, *body = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n    ".join((head, "|" + " --- |" * len(rows[0]), *body))


def _specification(template: str) -> str:
    described = [
        (f"`{name}`", what, formula, 0, 1)
        for what, features in (("replica", REPLICA_FEATURES), ("request", REQUEST_FEATURES))
        for name, formula in features
    ]
    versions = [
        (f"`{name}`", ", ".join(f"`{key}={value!r}`" for key, value in changes.items()), "first version")
        for name, changes in ROUTER_ENVIRONMENTS.items()
    ]
    return template.format(
        observation_table=_table(("feature", "of the", "value", "min", "max"), *described),
        version_table=_table(("id", "differs from the defaults in", "history"), *versions),
    )


if RouterEnv.__doc__ is not None:  # python -OO strips it
    RouterEnv.__doc__ = _specification(RouterEnv.__doc__)
