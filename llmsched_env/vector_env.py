"""The native vector environment: many copies stepped in one compiled call, each the same as a single environment."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from llmsched_env.actions import actions_of
from llmsched_env.cases import build_problem, draw_case
from llmsched_env.config import MAX_SEED, Scenario, checked_options, flag, whole
from llmsched_env.copies import CLIENT_BYTES, check_memory, checked_actions, one_each, one_shape, outside
from llmsched_env.engine.batch import Batch
from llmsched_env.engine.measure import COUNTS, MEASURED
from llmsched_env.engine.step import Steps
from llmsched_env.errors import BusyError, ConfigError, EpisodeOverError
from llmsched_env.metrics import info_metrics
from llmsched_env.problem import Problem
from llmsched_env.snapshot import restore, snapshot
from llmsched_env.spec import WithSpec

__all__ = ["LLMSchedVectorEnv"]

Observations = NDArray[np.float32]
Actions = NDArray[np.int64]
Infos = dict[str, Any]

Stream = tuple[np.random.Generator, int]
"""Where a copy draws its cases from, and what that was seeded with."""

MOST_COPIES, MOST_THREADS, MOST_STEPS = 2**24, 256, 2**62


class LLMSchedVectorEnv(  # type: ignore[misc]  # spec is a property
    WithSpec, gymnasium.vector.VectorEnv[Observations, Actions, NDArray[Any]]
):
    """``num_envs`` copies of :class:`llmsched_env.env.LLMSchedEnv`, stepped in one compiled call.

    Copy i gives exactly what the single environment gives that is seeded with ``seed + i`` and takes the same actions.
    Each reset draws the copy's next case. Episodes that end are reset in the same step (`AutoresetMode.SAME_STEP`):
    the observation returned is the first of the next episode; the last one of the ended episode is in
    ``infos["final_obs"]``, its last info, with all that the single environment's has, in ``infos["final_info"]``. The
    infos of a reset and of a step hold the copies' ``action_mask``, ``invalid_actions`` and ``case``; what running
    episodes have achieved so far is measured when it is asked for, by :meth:`metrics`. What is returned is never
    overwritten: all arrays are new, but for case numbers and masks that say "every copy", which are read-only.

    Gymnasium's wrappers of vector environments are right about this kind of autoreset from Gymnasium 1.4 on. In 1.2 and
    1.3, ``RecordEpisodeStatistics`` and ``NormalizeReward`` leave the first step of each further episode out.

    Args:
        num_envs: copies, at least 1.
        scenario: of all copies, or one a copy. They may differ in all but the sizes of observation and action space.
        threads: that share a step. Results do not depend on it. Measure whether it pays: handing a step over costs
            tens of microseconds.
        reuse_buffers: write every step to the same arrays: what ``reset`` and ``step`` return holds until the next call
            only. It saves the new array objects, about half a microsecond a step.
        max_episode_steps: truncate an episode after that many steps, as ``gymnasium.wrappers.TimeLimit`` does with a
            single environment (``max_iterations`` counts iterations, of which one step with ``skip_forced`` has many);
            ``None`` or -1 for no limit.
        render_mode: only ``None``: a single environment draws.
        **arguments: those of `Scenario`, as for the single environment.

    Raises:
        ConfigError: a number out of range, contradicting options, or more copies than memory holds.
        UnknownNameError: a preset or mode that does not exist.
        UnknownArgumentError: an argument that does not exist (it is an UnknownNameError and a TypeError).
    """

    _batch: Batch | None = None  # here too: Gymnasium may close what could not be made
    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  # as the base class declares it
    autoreset_mode = AutoresetMode.SAME_STEP  # where TorchRL looks for it

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | Sequence[Scenario] | None = None,
        *,
        threads: int = 1,
        reuse_buffers: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self._lock = threading.Lock()
        self.num_envs = whole("num_envs", num_envs, 1, MOST_COPIES)
        self._reuses = flag("reuse_buffers", reuse_buffers)
        self._threads = whole("threads", threads, 1, MOST_THREADS)
        unlimited = max_episode_steps is None or max_episode_steps == -1  # as gymnasium.make has it
        self._limit = 0 if unlimited else whole("max_episode_steps", max_episode_steps, 1, MOST_STEPS)
        if render_mode is not None:
            raise ConfigError(
                f"render_mode = {render_mode!r}: a vector environment does not draw; make a single one with "
                "gymnasium.make, or pass vectorization_mode='sync'."
            )
        self.scenarios = one_each(scenario, arguments, self.num_envs)
        check_memory(self.num_envs, CLIENT_BYTES * max(one.num_clients for one in self.scenarios))
        self._names, table = one_shape(self.scenarios)
        self._kinds = tuple(action.kind for action in actions_of(self.scenarios[0]))
        self._num_features = len(table)
        self._measured = info_metrics(self.scenarios[0])  # the same of all, as the features are
        self.single_observation_space = spaces.Box(0.0, 1.0, (self._num_features,), np.float32)
        self.single_action_space = spaces.Discrete(len(self._names))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._largest = 0  # memory of an episode that there is room for
        self._streams: list[Stream | None] = [None] * self.num_envs
        self._everywhere = np.ones(self.num_envs, np.bool_)
        self._everywhere.setflags(write=False)
        self._case = np.zeros(self.num_envs, np.int64)
        # Steps so far, those before each copy's episode began, and when the first copy can be at its limit.
        self._steps, self._before, self._due = 0, np.zeros(self.num_envs, np.int64), 0

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Infos]:
        """Begin an episode in every copy, or in those of ``options["reset_mask"]``.

        Args:
            seed: copy i is seeded with ``seed + i``, or with entry i of a list; ``None`` goes on with what it has.
            options: ``case``: a case number for all copies, or one a copy. ``reset_mask``: (num_envs,) bool.

        Returns:
            (num_envs, features) observations (those of the other copies as they stand) and infos.

        Raises:
            ConfigError: a list of the wrong length, an option of the wrong shape or type, or a case number below 0.
            EpisodeOverError: the environment is closed, or ``reset_mask`` leaves out a copy that has not begun.
        """
        with self._alone():
            return self._reset(seed, options)

    def _reset(
        self, seed: int | Sequence[int | None] | None, options: dict[str, Any] | None
    ) -> tuple[Observations, Infos]:
        if self.closed:
            raise EpisodeOverError("the vector environment is closed: make another one.")
        chosen, cases = self._reset_options(options)
        seeds = self._seeds(seed)
        if self._batch is None and len(chosen) < self.num_envs:
            raise EpisodeOverError("no copy has begun: call reset() once without reset_mask.")
        streams = self._streams.copy()
        for i in chosen.tolist():
            if seeds[i] is not None or streams[i] is None:
                streams[i] = seeding.np_random(seeds[i])
        # Only what succeeds changes anything: cases that do not exist are found before the first copy begins anew.
        begun = self._cases(chosen, cases, streams)
        batch = self._batch or self._new_batch()
        out = batch.next_steps() if self._batch is None else batch.observe()
        self._begin(batch, begun, out)
        self._batch, self._streams = batch, streams
        observations, _, _, _, masks, invalid = self._handed_out(out)
        return observations, self._infos(masks, invalid)

    def step(
        self, actions: Any
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """One step of every copy; those that end begin anew.

        Args:
            actions: (num_envs,) whole numbers: 0 decode, 1 prefill; more where orders or caps are actions and where
                iterations may be mixed (`llmsched_env.actions.action_names`).

        Returns:
            (num_envs, features) observations, (num_envs,) rewards, terminations and truncations, and infos: arrays of
            one entry a copy, each with a mask ``_name`` of the copies for which it holds.

        Raises:
            InvalidActionError: of the wrong shape or type, or an action that is not in the action space.
            EpisodeOverError: before ``reset`` or after ``close``.
            BusyError: another thread steps or resets it.
        """
        if not self._lock.acquire(blocking=False):  # as `_alone`, written out where every step pays for it
            raise BusyError("this vector environment")
        try:
            return self._step(actions)
        finally:
            self._lock.release()

    def _step(
        self, actions: Any
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        batch = self._running()
        if not (
            type(actions) is np.ndarray
            and actions.dtype == np.int64
            and actions.shape == (self.num_envs,)
            and actions.flags.carray
        ):
            actions = checked_actions(actions, self.num_envs, self._names)
        out, over = batch.step(actions)
        if over < 0:
            raise outside(actions, -1 - over, self._names)
        observations, rewards, terminated, truncated, masks, invalid = self._handed_out(out)
        self._steps += 1
        if self._limit and self._steps >= self._due:
            over += self._truncate(truncated)
        if over:
            try:
                infos = self._autoreset(batch, out)
            except BaseException:
                self._batch = None  # some copies are over: only a reset goes on from here
                raise
        else:
            infos = self._infos(masks, invalid)
        return observations, rewards, terminated, truncated, infos

    def _truncate(self, truncated: NDArray[np.bool_]) -> int:
        """Truncate the copies that are at their limit; how many there are."""
        late = self._steps - self._before >= self._limit
        truncated[late] = True
        on_time = self._before[~late]
        self._due = self._limit + int(on_time.min(initial=self._steps))
        return int(late.sum())

    def _autoreset(self, batch: Batch, out: Steps) -> Infos:
        """Report the episodes that ended, and begin the next."""
        shown, _, terminated, truncated, masks, invalid = out.arrays
        (ended,) = (terminated | truncated).nonzero()
        where = _where(ended, self.num_envs)
        observations = np.empty(self.num_envs, object)  # of None
        for i in ended.tolist():
            observations[i] = shown[i].copy()
        final = self._metrics(batch, ended)
        for name, last in (("action_mask", masks), ("invalid_actions", invalid), ("case", self._case)):
            final[name] = np.zeros(last.shape, last.dtype)
            final[name][ended] = last[ended]
        final.update({f"_{name}": where for name in final})
        self._begin(batch, self._cases(ended, None, self._streams), out)
        return {
            **self._infos(*self._handed_out(out)[4:]),
            "final_obs": observations,
            "final_info": final,
            "_final_obs": where,
            "_final_info": where,
        }

    def metrics(self) -> Infos:
        """What the running episodes have achieved so far: (num_envs,) of each metric of the single environment's info.

        Raises:
            EpisodeOverError: before ``reset`` or after ``close``.
        """
        with self._alone():
            return self._metrics(self._running(), np.arange(self.num_envs))

    def _metrics(self, batch: Batch, copies: NDArray[np.int64]) -> Infos:
        values: Infos = dict(zip(MEASURED, batch.measure(copies), strict=True))
        return {name: values[name].astype(np.int64) if name in COUNTS else values[name] for name in self._measured}

    def _cases(
        self, copies: NDArray[np.int64], cases: Sequence[int] | None, streams: Sequence[Stream | None]
    ) -> list[tuple[int, int, Problem]]:
        """(copy, case number, case) for each of ``copies``, the number drawn where none is given."""
        drawn = []
        for i in copies.tolist():
            scenario, stream = self.scenarios[i], streams[i]
            assert stream is not None
            case = draw_case(scenario, stream[0]) if cases is None else cases[i]
            drawn.append((i, case, build_problem(scenario, case)))
        return drawn

    def _begin(self, batch: Batch, begun: Sequence[tuple[int, int, Problem]], out: Steps) -> None:
        """Begin these cases in these copies.

        Raises:
            ConfigError: they need more memory than there is.
        """
        largest = max(problem.episode_nbytes for _, _, problem in begun)
        if largest > self._largest:
            check_memory(self.num_envs, largest)
            self._largest = largest
        self._case = self._case.copy()  # that of earlier infos stays what it was
        for i, case, problem in begun:
            batch.load(i, problem, out)
            self._case[i], self._before[i] = case, self._steps
        self._case.setflags(write=False)

    def _new_batch(self) -> Batch:
        return Batch(self.num_envs, self._kinds, self._num_features, threads=self._threads, reuses=self._reuses)

    def _handed_out(self, out: Steps) -> tuple[NDArray[Any], ...]:
        """Its arrays, as new array objects: what becomes of those, as a new shape, is of no concern here."""
        return out.arrays if self._reuses else out.views()

    def _infos(self, masks: NDArray[np.int8], invalid: NDArray[np.int64]) -> Infos:
        return {
            "action_mask": masks,
            "_action_mask": self._everywhere,
            "invalid_actions": invalid,
            "_invalid_actions": self._everywhere,
            "case": self._case,
            "_case": self._everywhere,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """(num_envs, num_actions) bool: which actions are feasible now.

        Raises:
            EpisodeOverError: before ``reset`` or after ``close``.
        """
        with self._alone():
            return self._running().masks().astype(np.bool_)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse whoever comes while another thread is at it."""
        if not self._lock.acquire(blocking=False):
            raise BusyError("this vector environment")
        try:
            yield
        finally:
            self._lock.release()

    def _running(self) -> Batch:
        if self._batch is None or self.closed:
            what = "closed: make another one" if self.closed else "not begun: call reset() first"
            raise EpisodeOverError(f"the vector environment is {what}.")
        return self._batch

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]  # one a copy, as SyncVectorEnv has it
        """(num_envs,) what each copy was seeded with; -1 before its first reset."""
        return tuple(-1 if stream is None else stream[1] for stream in self._streams)

    @property  # type: ignore[misc]  # the base class lets it be set, here streams belong to copies
    def np_random(self) -> tuple[np.random.Generator | None, ...]:  # type: ignore[override]
        """(num_envs,) where each copy draws its cases from; ``None`` before its first reset."""
        return tuple(None if stream is None else stream[0] for stream in self._streams)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"]
        batch = state.pop("_batch", None)
        if batch is not None:
            state["_running_episodes"] = batch.cases, [snapshot(copy.episode) for copy in batch.copies], batch.flags()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        running = state.pop("_running_episodes", None)
        self.__dict__.update(state)
        self._lock = threading.Lock()
        for array in (self._everywhere, self._case):
            array.setflags(write=False)
        if running is not None:
            self._batch = self._new_batch()
            for number, (case, episode_state, flags) in enumerate(zip(*running, strict=True)):
                episode = case.episode()
                restore(episode, episode_state)
                self._batch.adopt(number, case, episode, int(flags))

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads and free the episodes."""
        if self._batch is not None:
            with self._alone():
                self._batch.close()
                self._batch = None

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, Iterable) or np.ndim(seed) == 0:  # type: ignore[arg-type]  # an array of no dimension
            first = whole("seed", seed, 0, MAX_SEED)
            return [first + i for i in range(self.num_envs)]
        seeds = [None if one is None else whole("seed", one, 0, MAX_SEED) for one in seed]
        if len(seeds) != self.num_envs:
            raise ConfigError(f"{len(seeds)} seeds are given for {self.num_envs} copies: give one each, or one number.")
        return seeds

    def _reset_options(self, options: dict[str, Any] | None) -> tuple[NDArray[np.int64], list[int] | None]:
        """The copies to reset, and the case of every copy where they are given."""
        options = checked_options(options, {"case", "reset_mask"})
        mask = options.get("reset_mask", np.ones(self.num_envs, np.bool_))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ConfigError(f"reset_mask = {mask!r} is not an array of {self.num_envs} bool.")
        if not mask.any():
            raise ConfigError("reset_mask is False everywhere: name at least one copy.")
        cases = options.get("case")
        if cases is None:
            return np.flatnonzero(mask), None
        if not isinstance(cases, Sequence | np.ndarray) or isinstance(cases, str) or np.shape(cases) == ():
            cases = [cases] * self.num_envs
        if len(cases) != self.num_envs:
            raise ConfigError(f"{len(cases)} cases are given for {self.num_envs} copies: give one each, or one number.")
        return np.flatnonzero(mask), list(cases)


def _where(copies: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[copies] = True
    return mask
