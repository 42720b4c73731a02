"""The Gymnasium environment: an adapter over the engine, without arithmetic of its own."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmsched_env import ENVIRONMENTS
from llmsched_env.actions import actions_of, outside_space
from llmsched_env.cases import build_problem, draw_case
from llmsched_env.config import MAX_SEED, Scenario, checked_options, flag, whole
from llmsched_env.engine import codes
from llmsched_env.engine.features import FEATURES, MEMORY_FEATURES, MIXED_FEATURES, SLO_FEATURES, features_of
from llmsched_env.engine.step import Single
from llmsched_env.errors import ConfigError, EpisodeOverError, UnknownNameError
from llmsched_env.metrics import info_metrics, running_metrics
from llmsched_env.simulator import Simulator
from llmsched_env.spec import WithSpec, merged

__all__ = ["LLMSchedEnv"]

Observation = NDArray[np.float32]
Info = dict[str, Any]


class LLMSchedEnv(WithSpec, gymnasium.Env[Observation, np.int64]):  # type: ignore[misc]  # spec is a property
    """One accelerator serves LLM requests to J client slots; each step chooses a prefill or a decode.

    ## Description

    `n` requests wait for `J` clients. The accelerator runs one iteration at a time. In a **prefill** the idle clients
    take waiting requests, as many as the token cap admits, and everybody else stalls; each taken request has its first
    token at the end. In a **decode** every active client emits one token. The episode's length is the makespan. The
    system is that of 'Hybrid Offline-online Scheduling Method for Large Language Model Inference Optimization' (Pang,
    Li, She, Wang; arXiv 2502.15763); docs/model.md has its exact semantics.

    ## Action Space

    `Discrete(2)`: 0 runs a decode, 1 a prefill. With `choose_order` it is `Discrete(7)`: 0 runs a decode, 1 to 6 a
    prefill that takes waiting requests by one of six orders. With `choose_cap` it is `Discrete(9)`: 0 runs a decode, 1
    a prefill, 2 to 8 a prefill that stops where 7/8, ..., 1/8 of the clients are active (it takes at least one
    request). With `mixed_tokens` it is `Discrete(3)`: 0 runs a decode, 1 a prefill, 2 a mixed iteration, a decode
    beside which prompts are prefilled (with nobody active it counts as a prefill). With `choose_length` it is
    `Discrete(30)`: 0 runs a decode, 1 a prefill of the longest requests, 2 to 17 prefills of requests that stand
    further along in the line of lengths, 17 those of the shortest; 18 to 29 decode until a share of the clients is
    idle. An
    infeasible action is replaced by a feasible one (a prefill by the first of these) and counted in
    `info["invalid_actions"]`; `info["action_mask"]` and `action_masks()` tell in advance.

    ## Observation Space

    `Box(0, 1, (26,), float32)`. Counts of clients are divided by J; a pair of prices or lengths x : y appears as
    x / (x + y). So it means the same at any size and on any cost scale. Lengths in it are estimates, the truth where
    `lengths="known"`. A active, F idle, W waiting, R idle clients that have something to take, b requests that a
    prefill now would hold, T_p and T_d what a prefill and a decode now would last, m the mean output length. Durations
    are those of the believed cost model, without noise (docs/jitter.md).

    {observation_table}

    With SLOs (`ttft_s` S1, `tpot_s` S2) the observation is `Box(0, 1, (33,), float32)` and goes on with

    {slo_table}

    Where the KV cache is a budget (`kv_budget_tokens` M, U of which are allocated) six more follow:

    {memory_table}

    Where iterations may be mixed (`mixed_tokens` b; a chunk of c prompt tokens now, in T_m) five more follow:

    {mixed_table}

    ## Rewards

    A step is charged the difference of an exact integer total, so that the rewards of an episode telescope:

    - `excess` (default): -(alpha_p [prefill] + alpha_d * idle / J [decode]) / LB1. Sums to
      -(makespan - a constant) / LB1; dense, and nearly right under discounting too, since nothing in it is beyond a
      policy's control.
    - `makespan`: -dt / LB1. Sums to -makespan / LB1; use it with gamma = 1 only.
    - `idle`: client-time lost / (J * LB1). Sums to -makespan * (1 - utilization) / LB1.
    - `latency`: -integral of (waiting + active) dt / (n * LB1). Sums to -mean end-to-end latency / LB1.
    - `goodput` (with SLOs): -1 / counted for each counted request that violates an SLO, as soon as that is certain
      whatever its length: when it is past its TTFT deadline, when its first token comes too late, or when it has ended
      too slowly. Sums to goodput - 1.
    - `differential`: that of `excess` in units of alpha_p, plus a price for each token decoded, which evens out what a
      cycle of decodes and a prefill is charged, less the idle time at the end as soon as it is sure. Sums to
      (a constant - makespan) / alpha_p; made for discounts of 0.98 to 0.995.

    ## Starting State

    All clients idle, all queues as the scenario lays them out, the clock at the first release. `reset(seed=...)`
    draws a case of the pool; `reset(options={{"case": k}})` takes case k.

    ## Episode End

    Terminated when every request is complete; truncated after `max_iterations` iterations, where that is given. An
    episode that offers no choice at all ends in its first step, whatever the action (`skip_forced` only).

    ## Information

    Every info, of a reset as of a step, has the same keys: `action_mask`, an int8 for each action; `invalid_actions`,
    the count so far; `case`, the number of the case; and what the episode has achieved so far, as plain numbers
    (docs/metrics.md has the formulas): {metric_names}. With SLOs also `goodput`, `ttft_s` and `tpot_s`,
    where the KV cache is a budget `kv_peak`, with prefix caching `cached_tokens`. (The native vector class tells these
    of episodes that end; of running ones its `metrics()` does.)

    No value is NaN. Before the last request is complete, the makespan, the gap, TTFT and TPOT are infinite (strict JSON
    has no word for that), `bound_s` is 0, and the goodput is what can still be reached: 1 less the share of SLO
    violations that are certain. The others are those of the time up to now. A total beyond 64 bits is infinite. No
    info tells what the scenario hides: the bound, say, is computed from all output lengths.

    ## Arguments

    {argument_table}

    `render_mode`: `None`, `"rgb_array"`, `"human"` or `"ansi"`. `render_size`: width and height of a picture in
    pixels, even, at least 640 and 400. `render_every`: iterations from one new picture to the next; until then
    `render` returns the same array again, so that a recording of an episode of n iterations holds n / `render_every`
    pictures in memory (`gymnasium.wrappers.RecordVideo(..., fps=30 * render_every)` plays as many a second).
    `reuse_buffers`: write every observation to the same array, so that it holds until the next step only (Gymnasium's
    checker warns of that: pass `disable_env_checker=True` to `gymnasium.make`). All others may be given
    as one `scenario=Scenario(...)`.

    ## Version History

    {version_table}
    """

    metadata = {  # noqa: RUF012  # declared by the base class
        "render_modes": ["human", "rgb_array", "ansi"],
        "render_fps": 30,
    }

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        render_mode: str | None = None,
        render_size: Sequence[int] = (960, 600),
        render_every: int = 1,
        reuse_buffers: bool = False,
        **arguments: Any,
    ) -> None:
        """Make the environment; see the class for the arguments.

        Raises:
            ConfigError: a value out of range, or options that contradict each other.
            UnknownNameError: a preset or mode that does not exist.
            UnknownArgumentError: an argument that does not exist (it is an UnknownNameError and a TypeError).
            MissingExtraError: a mode that draws, without the library that it needs.
        """
        self.scenario = merged(scenario, arguments)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UnknownNameError("render mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._render_size = _size(render_size)
        self._render_every = whole("render_every", render_every, 1, 2**62)
        if render_mode in ("rgb_array", "human"):
            from llmsched_env import viewer

            viewer.check(*self._render_size, window=render_mode == "human")
        table = features_of(self.scenario)
        self.observation_space = spaces.Box(0.0, 1.0, (len(table),), np.float32)
        self.action_space = spaces.Discrete(self.scenario.num_actions)
        actions = actions_of(self.scenario)
        self._names = tuple(action.name for action in actions)
        self._kinds = tuple(action.kind for action in actions)
        self._num_actions = len(actions)
        self._simulator: Simulator | None = None
        self._reuses = flag("reuse_buffers", reuse_buffers)
        self._single = self._new_single()
        self._unpaid = False  # reset has run through the whole episode, the first step reports its end
        self._window: Any = None
        self._frame: Any = None
        self._drawn: int | None = None  # iterations when the last picture was drawn

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
        case = draw_case(self.scenario, self.np_random) if named is None else int(named)
        problem = build_problem(self.scenario, case)
        if self._simulator is not None and self._simulator.problem is problem:
            self._simulator.reset()
        else:
            self._simulator = Simulator(problem, record=self.render_mode is not None)
        self._drawn = None
        observation, info = self._single.start(self._simulator.episode, case)
        self._unpaid = True
        if self.render_mode == "human":
            self.render()
        return observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Run one iteration (with ``skip_forced``, and those after it that offer no choice).

        Raises:
            InvalidActionError: not in the action space.
            EpisodeOverError: before ``reset``, or after the end.
        """
        over = self._single.over
        if over and not self._unpaid:
            raise EpisodeOverError("the episode has not begun or is over: call reset() before step().")
        if type(action) is not int or not 0 <= action < self._num_actions:
            action = _checked(action, self._names)
        if self._unpaid:
            self._unpaid = False
            if over:
                action = codes.CONTINUE
        outcome = self._single.step(action)
        if self.render_mode == "human":
            self.render()
        return outcome

    def _new_single(self) -> Single:
        metric_names = running_metrics(self.scenario), info_metrics(self.scenario)
        return Single(self._kinds, len(features_of(self.scenario)), *metric_names, reuses=self._reuses)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_single"] = self._single.state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._single = self._new_single()
        if self._simulator is not None:
            self._single.adopt_with(self._simulator.episode, *state["_single"])

    def action_masks(self) -> NDArray[np.bool_]:
        """(num_actions,) bool: which actions are feasible now (the name that sb3-contrib looks for)."""
        mask: NDArray[np.int8] = self._single.mask()
        return mask.astype(np.bool_)

    @property
    def simulator(self) -> Simulator:
        """The running episode, for inspection.

        Raises:
            EpisodeOverError: before the first reset.
        """
        if self._simulator is None:
            raise EpisodeOverError("no episode has begun: call reset() first.")
        return self._simulator

    def render(self) -> Any:
        """A picture of the timeline so far: an RGB array, text, or (``human``) a window.

        Between pictures that are ``render_every`` iterations apart, the last one again; the end is always drawn.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode: make the environment with render_mode='rgb_array'.")
            return None
        from llmsched_env import viewer

        simulator, (width, height) = self.simulator, self._render_size
        if self.render_mode == "ansi":
            return viewer.text(simulator)
        iterations = len(simulator.log)
        passed = self._render_every if self._drawn is None or self._single.over else iterations - self._drawn
        if passed >= self._render_every and iterations != self._drawn:
            self._drawn = iterations
            if self.render_mode == "rgb_array":
                self._frame = viewer.frame(simulator, width=width, height=height)
            else:
                if self._window is None:
                    self._window = viewer.Window(self.metadata["render_fps"], width=width, height=height)
                self._window.show(simulator)
        return self._frame

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


def _size(given: Any) -> tuple[int, int]:
    try:
        width, height = given
    except (TypeError, ValueError):
        raise ConfigError(f"render_size = {given!r} is not a pair: give width and height in pixels.") from None
    return whole("width of render_size", width, 1, 2**14), whole("height of render_size", height, 1, 2**14)


def _checked(action: Any, names: Sequence[str]) -> int:
    try:
        index = operator.index(action)
    except TypeError:
        index = -1
    if index not in range(len(names)):
        raise outside_space(f"action {action!r}", names)
    return index


def _table(*rows: tuple[object, ...]) -> str:
    head, *body = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n    ".join((head, "|" + " --- |" * len(rows[0]), *body))


def _numbered(rows: Sequence[tuple[object, ...]], first: int = 0) -> Iterator[tuple[object, ...]]:
    return ((number, *row) for number, row in enumerate(rows, first))


def _described(documented: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute, by name."""
    section = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _specification(template: str) -> str:
    described = {name: text for group in Scenario.__mro__ for name, text in _described(group).items()}
    features, slo, memory, mixed = (
        [(f"`{f.name}`", f.formula, 0, 1) for f in table]
        for table in (FEATURES, SLO_FEATURES, MEMORY_FEATURES, MIXED_FEATURES)
    )
    arguments = [
        (f"`{field.name}`", f"`{field.default!r}`", described.get(field.name, ""))
        for field in dataclasses.fields(Scenario)
    ]
    versions = [
        (f"`{name}`", ", ".join(f"`{key}={value!r}`" for key, value in changes.items()), "first version")
        for name, changes in ENVIRONMENTS.items()
    ]
    return template.format(
        observation_table=_table(("", "feature", "value", "min", "max"), *_numbered(features)),
        slo_table=_table(("", "feature", "value", "min", "max"), *_numbered(slo, len(features))),
        memory_table=_table(("", "feature", "value", "min", "max"), *((f"+{i}", *row) for i, row in enumerate(memory))),
        mixed_table=_table(("", "feature", "value", "min", "max"), *((f"+{i}", *row) for i, row in enumerate(mixed))),
        metric_names=", ".join(f"`{name}`" for name in info_metrics(Scenario())),
        argument_table=_table(("argument", "default", "meaning"), *arguments),
        version_table=_table(("id", "differs from the defaults in", "history"), *versions),
    )


if LLMSchedEnv.__doc__ is not None:  # python -OO strips it
    LLMSchedEnv.__doc__ = _specification(LLMSchedEnv.__doc__)
