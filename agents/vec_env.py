"""The vector environment as stable-baselines3 wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.vector_env import LLMSchedVectorEnv

__all__ = ["SB3VecEnv"]


class SB3VecEnv(VecEnv):
    """``num_envs`` copies of the environment, stepped in one compiled call.

    A step's infos are empty but for episodes that end: those hold the episode's metrics, ``terminal_observation``,
    ``TimeLimit.truncated`` and, as SB3's ``Monitor`` has it, ``episode`` (return ``r``, length ``l``, seconds ``t``):
    so ``rollout/ep_rew_mean`` is logged, and no ``VecMonitor`` is needed. Masks come from
    ``env_method("action_masks")``, which sb3-contrib calls.

    Args:
        num_envs: copies.
        scenario: of all copies, or one a copy.
        threads: that share a step.
        **arguments: those of `Scenario`, or ``max_episode_steps``.

    Raises:
        ConfigError: as :class:`llmsched_env.vector_env.LLMSchedVectorEnv`.
        UnknownNameError: as there.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: Scenario | Sequence[Scenario] | None = None,
        *,
        threads: int = 1,
        **arguments: Any,
    ) -> None:
        self._copies = LLMSchedVectorEnv(num_envs, scenario, threads=threads, **arguments)
        self._actions: Any = None
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._began_s = time.time()
        super().__init__(num_envs, self._copies.single_observation_space, self._copies.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """(num_envs, features): first observations; ``reset_infos`` holds the case of each copy.

        Raises:
            ConfigError: options that name a case for some copies only, or something else.
        """
        given, seeds = self._options, self._seeds
        self._reset_seeds()
        self._reset_options()
        options = None
        if any(given):
            if any(set(options) != {"case"} for options in given):
                raise ConfigError(f"options = {given}: give a 'case' for every copy, and nothing else.")
            options = {"case": [options["case"] for options in given]}
        observations, infos = self._copies.reset(seed=seeds, options=options)
        self._returns[:], self._lengths[:] = 0.0, 0
        self.reset_infos = [{"case": case} for case in infos["case"].tolist()]
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions, (num_envs,), for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step: observations (num_envs, features) float32, rewards float32, dones, and a dictionary a copy.

        Raises:
            InvalidActionError: actions of the wrong shape or type, or outside the space.
            EpisodeOverError: before ``reset`` or after ``close``.
        """
        observations, rewards, terminated, truncated, infos = self._copies.step(self._actions)
        listed: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        if "final_obs" in infos:
            final = infos["final_info"]
            names = [name for name in final if not name.startswith("_") and name != "action_mask"]
            for i in np.flatnonzero(done).tolist():
                listed[i].update({name: final[name][i].item() for name in names})
                listed[i]["terminal_observation"] = infos["final_obs"][i]
                listed[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                passed_s = round(time.time() - self._began_s, 6)
                listed[i]["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": passed_s}
                self.reset_infos[i] = {"case": int(infos["case"][i])}
            self._returns[done], self._lengths[done] = 0.0, 0
        return observations, rewards.astype(np.float32), done, listed

    def close(self) -> None:
        """Free the copies."""
        self._copies.close()

    def action_masks(self) -> NDArray[np.bool_]:
        """(num_envs, num_actions) bool: which actions are feasible now."""
        return self._copies.action_masks()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """``scenario``, ``render_mode`` or ``action_masks`` of some copies.

        Raises:
            AttributeError: another name; there is no environment object a copy.
        """
        known: dict[str, Callable[[int], Any]] = {
            "scenario": lambda i: self._copies.scenarios[i],
            "render_mode": lambda i: None,
            "action_masks": lambda i: partial(self._mask, i),
        }
        if attr_name not in known:
            raise AttributeError(f"copies have no attribute {attr_name!r}, only {', '.join(sorted(known))}.")
        return [known[attr_name](i) for i in self._get_indices(indices)]

    def _mask(self, copy: int) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.action_masks()[copy]
        return mask

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing can be set: make the environment with the arguments wanted.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{attr_name!r} cannot be set: make the vector environment with the arguments wanted.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """``action_masks``: (num_actions,) bool of some copies.

        Raises:
            AttributeError: another method.
        """
        if method_name != "action_masks":
            raise AttributeError(f"copies have no method {method_name!r}, only action_masks.")
        masks = self.action_masks()
        return list(masks) if indices is None else [masks[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Whether copies do what a wrapper does: SB3's ``Monitor``, whose ``episode`` is in the infos; no other."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
