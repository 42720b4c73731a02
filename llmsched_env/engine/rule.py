"""Rules: what decides inside the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.view import View


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

    def begin(self) -> None:
        """An episode begins, or goes on."""

    def end(self) -> None:
        """The loop is left."""


class PythonRule(Rule):
    """A function of Python's that is asked from inside the loop.

    Args:
        function: ``view -> action``. An exception in it ends the episode there, and is raised again at its end.
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

    def ask(self, view: View) -> Any:
        """The same; STOP where it raises."""
        try:
            return self.function(view)
        except BaseException as error:
            self.error = error
            return codes.STOP

    def begin(self) -> None:
        """Forget an error."""
        self.error = None

    def end(self) -> None:
        """Raise what the function raised."""
        error, self.error = self.error, None
        if error is not None:
            raise error


class Threshold(Rule):
    """A prefill as soon as so many clients are ready.

    Args:
        count: of them.
    """

    count: cython.longlong

    def __init__(self, count: int) -> None:
        self.reads_forecast = False
        self.count = count

    def act(self, view: View) -> cython.int:
        """A prefill from ``count`` ready clients on."""
        return codes.PREFILL if view.ready >= self.count else codes.DECODE


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

    def begin(self) -> None:
        """Forget an error, and what was kept."""
        self.error = None
        self.memory = list(self.first)

    def ask(self, view: View) -> Any:
        """The function's answer; STOP where it raises."""
        try:
            return self.function(view, self.parameters, self.memory)
        except BaseException as error:
            self.error = error
            return codes.STOP
