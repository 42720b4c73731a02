"""Rules: what decides inside the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.view import View
from llmsched_env.errors import InvalidActionError
from llmsched_env.extensions import compiled

MOST_ACTIONS = 2**16
"""No scenario has so many."""

NONE = -1
"""What is no action, and so a decode."""


class Rule:
    """Chooses the next iteration. Subclasses override :meth:`act`.

    Attributes:
        reads_forecast: whether it reads ``due_1`` to ``last_due``: episodes are faster where nobody does.
    """

    reads_forecast: cython.bint

    def __init__(self) -> None:
        self.reads_forecast = True

    def act(self, view: View) -> cython.int:
        """The next action: 0 a decode, 1 a prefill, more as the scenario has them. What is no action is a decode."""
        return codes.DECODE

    def decide(self, view: View) -> int:
        """:meth:`act` for Python."""
        return int(self.act(view))

    def check(self) -> None:
        """A compiled loop does not find an ``act`` that is not compiled.

        Raises:
            TypeError: this rule has one.
        """
        if compiled and hasattr(self, "act"):
            raise TypeError(
                f"{type(self).__name__}.act is not compiled, but the engine is: compile its file as "
                "examples/my_rule.py says, or give a function to FunctionRule."
            )

    def twin(self) -> Rule:
        """Another rule, which goes on from what this one has kept."""
        return copy.copy(self)

    def begin(self) -> None:
        """An episode begins, or goes on: set back what is kept between decisions."""

    def end(self) -> None:
        """The loop is left."""


def action_of(answer: Any) -> int:
    """The number that a function has answered.

    Raises:
        InvalidActionError: it is none.
    """
    try:
        return int(answer)
    except (TypeError, ValueError, OverflowError):
        raise InvalidActionError(f"a rule answered {answer!r}: an action is a whole number.") from None


class PythonRule(Rule):
    """A function of Python's that is asked from inside the loop.

    Args:
        function: ``view -> action``. An exception in it ends the episode there, and is raised again at its end.

    Attributes:
        function: as given.
        error: what it raised in this episode, or ``None``.
    """

    function: Any
    error: Any

    def __init__(self, function: Callable[[View], int]) -> None:
        Rule.__init__(self)
        self.function = function
        self.error = None

    def act(self, view: View) -> cython.int:
        """The function's answer."""
        with cython.gil:
            return self.ask(view)

    def ask(self, view: View) -> int:
        """:meth:`decide`; STOP where that raises."""
        try:
            action = self.decide(view)
            return action if 0 <= action < MOST_ACTIONS else NONE
        except BaseException as error:
            self.error = error
            return codes.STOP

    def decide(self, view: View) -> int:
        """The function's answer, or what it raises."""
        return action_of(self.function(view))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function,)

    def begin(self) -> None:
        """Forget an error."""
        self.error = None

    def end(self) -> None:
        """Raise what the function raised."""
        error, self.error = self.error, None
        if error is not None:
            raise error


class FunctionRule(PythonRule):
    """A Python function ``(view, parameters, memory) -> action``, asked from inside the loop.

    Args:
        function: asked where there is a choice.
        parameters: numbers that it reads.
        memory: whole numbers that it may keep between the decisions of an episode, as they are at its start.

    Attributes:
        parameters: as given.
        first: ``memory`` at the start of an episode.
        memory: what it is now.
    """

    parameters: Any
    first: Any
    memory: Any

    def __init__(
        self,
        function: Callable[[View, Sequence[float], list[int]], int],
        parameters: Sequence[float] = (),
        memory: Sequence[int] = (),
    ) -> None:
        PythonRule.__init__(self, function)  # type: ignore[arg-type]  # asked with more
        self.parameters = tuple(parameters)
        self.first = tuple(memory)
        self.memory = list(memory)

    def decide(self, view: View) -> int:
        """The function's answer, or what it raises."""
        return action_of(self.function(view, self.parameters, self.memory))

    def begin(self) -> None:
        """Forget an error, and what was kept."""
        self.error = None
        self.memory = list(self.first)

    def twin(self) -> Rule:
        """Another rule, which goes on from what this one has kept."""
        return FunctionRule(self.function, self.parameters, self.memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.parameters, self.first)
