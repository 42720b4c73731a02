"""A rule that knows who is about to finish, and asks whether they are worth waiting for."""

from __future__ import annotations

import cython

from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import View


class Patience(Rule):
    """A prefill where no wait pays: the clients that it would add are worth less than the idle time that it costs.

    It reads who is expected to finish in the next 1, 4, 16, 64 and 256 decodes.

    Args:
        worth: of a client more in a prefill, in decodes of a client.
        batch: clients that a prefill takes on average; beyond them none is worth waiting for.
    """

    worth: cython.double
    batch: cython.double

    def __init__(self, worth: float, batch: float) -> None:
        self.reads_forecast = True
        self.worth = worth
        self.batch = batch

    def pays(self, view: View, idle: cython.double, wait: cython.double, due: cython.double) -> cython.bint:
        """Whether a wait of so many decodes, in which so many finish, pays."""
        more: cython.double = min(due, view.waiting - idle)
        more = min(more, self.batch - idle)
        return more > 0 and idle * wait + due * wait / 2 < self.worth * more

    def act(self, view: View) -> cython.int:
        """A prefill where waits for the next 1, 4, 16, 64 or 256 decodes all cost more than they bring."""
        idle: cython.double = min(view.idle, view.waiting)
        if self.pays(view, idle, 1, view.due_1) or self.pays(view, idle, 4, view.due_4):
            return 0
        if self.pays(view, idle, 16, view.due_16) or self.pays(view, idle, 64, view.due_64):
            return 0
        return 0 if self.pays(view, idle, 256, view.due_256) else 1
