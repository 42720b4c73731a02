"""The native vector environment: many copies stepped in one compiled call, each the same as a single environment."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmsched_env.config import Scenario, merged, whole
from llmsched_env.core.features import NUM_FEATURES
from llmsched_env.core.fleet import COPY_BYTES, Fleet, Steps
from llmsched_env.core.loops import OVER
from llmsched_env.core.measure import COUNTS, MEASURED
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError, UnknownNameError
from llmsched_env.instances import draw_case, instance

__all__ = ["LLMSchedVectorEnv"]

Observations = NDArray[np.float32]
Actions = NDArray[np.int64]
Infos = dict[str, Any]

FINAL_MASKS = tuple(f"_{name}" for name in (*MEASURED, "action_mask", "invalid_actions"))

MOST_COPIES, MOST_THREADS, MOST_SEED = 2**24, 256, 2**128


class LLMSchedVectorEnv(gymnasium.vector.VectorEnv[Observations, Actions, NDArray[Any]]):
    """``num_envs`` copies of :class:`llmsched_env.env.LLMSchedEnv`, stepped in one compiled call.

    Copy i gives exactly what the single environment gives that is seeded with ``seed + i`` and takes the same actions.
    Each reset draws the copy's next case. Episodes that end are reset in the same step (`AutoresetMode.SAME_STEP`):
    the observation returned is the first of the next episode; the last one of the ended episode is in
    ``infos["final_obs"]``, what it achieved in ``infos["final_info"]``. All arrays returned are new, and never
    overwritten.

    Args:
        num_envs: copies, at least 1.
        scenario: of all copies, or one a copy. They may differ in all but the observation's size, which is fixed.
        threads: that share a step. Results do not depend on it; it pays from a thousand copies on.
        render_mode: only ``None``: a single environment draws.
        **arguments: those of `Scenario`, as for the single environment.

    Raises:
        ConfigError: a number out of range, contradicting options, or more copies than memory holds.
        UnknownNameError: an argument, preset or mode that does not exist.
    """

    _fleet: Fleet | None = None  # here too: Gymnasium may close what could not be made
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | Sequence[Scenario] | None = None,
        *,
        threads: int = 1,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.num_envs = whole("num_envs", num_envs, 1, MOST_COPIES)
        self._threads = whole("threads", threads, 1, MOST_THREADS)
        if render_mode is not None:
            raise ConfigError(
                f"render_mode = {render_mode!r}: a vector environment does not draw; make a single one with "
                "gymnasium.make, or pass vectorization_mode='sync'."
            )
        self.scenarios = _one_each(scenario, arguments, self.num_envs)
        _check_memory(self.scenarios)
        self.single_observation_space = spaces.Box(0.0, 1.0, (NUM_FEATURES,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._fleet: Fleet | None = None
        self._streams: list[np.random.Generator | None] = [None] * self.num_envs
        self._everywhere = np.ones(self.num_envs, np.bool_)
        self._everywhere.setflags(write=False)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Infos]:
        """Begin an episode in every copy, or in those of ``options["reset_mask"]``.

        Args:
            seed: copy i is seeded with ``seed + i``, or with entry i of a list; ``None`` goes on with what it has.
            options: ``case``: a case number for all copies, or one a copy. ``reset_mask``: (num_envs,) bool.

        Returns:
            (num_envs, 26) observations (those of the other copies as they stand) and infos.

        Raises:
            ConfigError: a list of the wrong length, an option of the wrong shape or type, or a case number below 0.
            EpisodeOverError: the environment is closed, or ``reset_mask`` leaves out a copy that has not begun.
        """
        if self.closed:
            raise EpisodeOverError("the vector environment is closed: make another one.")
        chosen, cases = self._reset_options(options or {})
        seeds = self._seeds(seed)
        if self._fleet is None:
            if len(chosen) < self.num_envs:
                raise EpisodeOverError("no copy has begun: call reset() once without reset_mask.")
            self._fleet = Fleet(self.num_envs, threads=self._threads)
        for i in chosen.tolist():
            if seeds[i] is not None or self._streams[i] is None:
                self._streams[i] = seeding.np_random(seeds[i])[0]
        out = self._fleet.observe()
        drawn = self._begin(self._fleet, chosen, cases, out)
        infos = self._infos(out)
        infos["case"], infos["_case"] = drawn, _where(chosen, self.num_envs)
        return out.observations, infos

    def step(
        self, actions: Any
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """One step of every copy; those that end begin anew.

        Args:
            actions: (num_envs,) whole numbers, 0 decode or 1 prefill.

        Returns:
            (num_envs, 26) observations, (num_envs,) rewards, terminations and truncations, and infos: arrays of one
            entry a copy, each with a mask ``_name`` of the copies for which it holds.

        Raises:
            InvalidActionError: of the wrong shape or type, or an action that is not in the action space.
            EpisodeOverError: before ``reset`` or after ``close``.
        """
        fleet = self._running()
        if type(actions) is not np.ndarray or actions.dtype != np.int64 or actions.shape != (self.num_envs,):
            actions = _checked(actions, self.num_envs)
        out, over = fleet.step(actions)
        if over < 0:
            copy = -1 - over
            raise InvalidActionError(
                f"action {actions[copy]} of copy {copy} is not in Discrete(2): 0 is decode, 1 is prefill."
            )
        infos = self._infos(out)
        if over:
            self._autoreset(fleet, out, infos)
        return out.observations, out.rewards, out.terminated, out.truncated, infos

    def _autoreset(self, fleet: Fleet, out: Steps, infos: Infos) -> None:
        """Report the episodes that ended, and begin the next."""
        ended = np.flatnonzero(fleet.flags & OVER)
        where = _where(ended, self.num_envs)
        observations = np.full(self.num_envs, None, object)
        for i in ended.tolist():
            observations[i] = out.observations[i].copy()
        final: Infos = dict(zip(MEASURED, fleet.measure(ended), strict=True))
        for name in COUNTS:
            final[name] = final[name].astype(np.int64)
        for name in ("action_mask", "invalid_actions"):
            final[name] = np.zeros_like(infos[name])
            final[name][ended] = infos[name][ended]
        final.update(dict.fromkeys(FINAL_MASKS, where))
        infos["final_obs"], infos["final_info"] = observations, final
        infos["case"] = self._begin(fleet, ended, None, out)
        infos["_final_obs"] = infos["_final_info"] = infos["_case"] = where

    def _begin(
        self, fleet: Fleet, copies: NDArray[np.int64], cases: Sequence[int] | None, out: Steps
    ) -> NDArray[np.int64]:
        """Load a case into each of ``copies``, drawn where none is given; returns their numbers, 0 for other copies."""
        drawn = np.zeros(self.num_envs, np.int64)
        found = []
        for i in copies.tolist():
            scenario, stream = self.scenarios[i], self._streams[i]
            assert stream is not None
            case = draw_case(scenario, stream) if cases is None else cases[i]
            found.append((i, instance(scenario, case)))
            drawn[i] = case
        # Only now: a case that does not exist has changed nothing.
        for i, problem in found:
            fleet.load(i, problem, out)
        return drawn

    def _infos(self, out: Steps) -> Infos:
        return {
            "action_mask": out.masks,
            "_action_mask": self._everywhere,
            "invalid_actions": out.invalid,
            "_invalid_actions": self._everywhere,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """(num_envs, 2) bool: which actions are feasible now.

        Raises:
            EpisodeOverError: before ``reset`` or after ``close``.
        """
        return (self._running().flags[:, np.newaxis] >> np.arange(2) & 1).astype(np.bool_)

    def _running(self) -> Fleet:
        if self._fleet is None or self.closed:
            what = "closed: make another one" if self.closed else "not begun: call reset() first"
            raise EpisodeOverError(f"the vector environment is {what}.")
        return self._fleet

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and free the episodes."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, Iterable):
            first = whole("seed", seed, 0, MOST_SEED)
            return [first + i for i in range(self.num_envs)]
        seeds = [None if one is None else whole("seed", one, 0, MOST_SEED) for one in seed]
        if len(seeds) != self.num_envs:
            raise ConfigError(f"{len(seeds)} seeds are given for {self.num_envs} copies: give one each, or one number.")
        return seeds

    def _reset_options(self, options: dict[str, Any]) -> tuple[NDArray[np.int64], list[int] | None]:
        """The copies to reset, and the case of every copy where they are given."""
        unknown = set(options) - {"case", "reset_mask"}
        if unknown:
            raise UnknownNameError("reset option", sorted(unknown)[0], {"case", "reset_mask"})
        mask = options.get("reset_mask", self._everywhere)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ConfigError(f"reset_mask = {mask!r} is not an array of {self.num_envs} bool.")
        if not mask.any():
            raise ConfigError("reset_mask is False everywhere: name at least one copy.")
        cases = options.get("case")
        if cases is None:
            return np.flatnonzero(mask), None
        if np.ndim(cases) == 0:
            cases = [cases] * self.num_envs
        if len(cases) != self.num_envs:
            raise ConfigError(f"{len(cases)} cases are given for {self.num_envs} copies: give one each, or one number.")
        return np.flatnonzero(mask), list(cases)


def _one_each(scenario: Any, arguments: dict[str, Any], count: int) -> tuple[Scenario, ...]:
    if scenario is None or isinstance(scenario, Scenario):
        return (merged(scenario, arguments),) * count
    scenarios = tuple(scenario)
    if len(scenarios) != count:
        raise ConfigError(f"{len(scenarios)} scenarios are given for {count} copies: give one each, or one for all.")
    return tuple(merged(one, arguments) for one in scenarios)


def _check_memory(scenarios: Sequence[Scenario]) -> None:
    fixed, per_client = COPY_BYTES
    needed = sum(fixed + per_client * scenario.num_clients for scenario in scenarios)
    limit = _memory_bytes()
    if needed > limit:
        raise ConfigError(
            f"{len(scenarios)} copies need at least {needed / 2**30:.1f} GiB, but this machine has "
            f"{limit / 2**30:.1f} GiB: make fewer, or with fewer clients."
        )


def _memory_bytes() -> float:
    """What this machine or the container that we run in has."""
    try:
        limit = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        limit = math.inf
    try:
        return min(limit, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return limit


def _checked(actions: Any, count: int) -> Actions:
    found = np.asarray(actions)
    if found.dtype.kind not in "iu" or found.shape != (count,):
        raise InvalidActionError(
            f"actions of shape {found.shape} and type {found.dtype} are given: one whole number a copy is needed, "
            f"shape ({count},)."
        )
    return found.astype(np.int64)


def _where(copies: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[copies] = True
    return mask
