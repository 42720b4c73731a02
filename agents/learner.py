"""What every training algorithm is to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from llmsched_env.agents.hyperparameters import Check
from llmsched_env.agents.network import Network
from llmsched_env.config import Scenario
from llmsched_env.policy import Policy

__all__ = ["Learner", "Task"]


class Task(Protocol):
    """What a learner is asked to do. `llmsched_env.agents.training.Training` is one."""

    @property
    def algo(self) -> str:
        """The algorithm's name."""

    @property
    def seed(self) -> int:
        """Of the network, the exploration and the order of cases."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of the algorithm, all of them, checked."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What was changed of the environment id's scenario."""

    @property
    def training_scenario(self) -> Scenario:
        """Where it learns."""


class Learner(Protocol):
    """One algorithm in the middle of its training.

    Attributes:
        checks: what each setting of the algorithm may be; which it has is what its YAML file in ``agents/settings``
            holds.
    """

    checks: ClassVar[Mapping[str, Check]]

    @property
    def timesteps(self) -> int:
        """Iterations or decisions done so far, in the algorithm's own count."""

    @classmethod
    def begin(cls, training: Task) -> Self:
        """A learner that has learnt nothing.

        Raises:
            ConfigError: settings that contradict each other or the scenario.
            MissingExtraError: a library is not installed.
        """

    @classmethod
    def resume(cls, training: Task, folder: Path) -> Self:
        """A learner as it was when :meth:`save` wrote ``folder``, whose files are those that were written.

        Raises:
            FileFormatError: files that cannot be understood, for instance of another version.
        """

    def ends_at(self, timesteps: int) -> int:
        """Where a training ends that is to reach these timesteps: in whole updates, where their size is known."""

    def learn(self, until: int, report: Callable[[], None]) -> None:
        """Train until ``timesteps`` reaches ``until``.

        ``report`` is called often, between two updates, where training could be stopped and gone on with; what it
        raises ends the training.
        """

    def policies(self) -> list[Policy]:
        """The agent as it stands, in the forms that are worth judging (greedy, sampled); the first is the usual one.

        To run them changes nothing in the training.
        """

    def network(self) -> Network | None:
        """The usual one as plain numbers, which decide alike; ``None`` where it has no such form, and a warning why."""

    def figures(self) -> dict[str, float]:
        """Numbers of the algorithm's own that a curve should show: losses, step sizes, ..."""

    def save(self, folder: Path) -> None:
        """Write all that :meth:`learn` needs to go on from here, as files of ``folder``, which is empty."""
