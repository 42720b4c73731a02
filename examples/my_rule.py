"""A rule of one's own, compiled: as fast inside the loop as the shipped ones.

``cythonize -i my_rule.py`` (``pip install cython``) compiles it against the installed package, in any folder; then
`import my_rule` finds the compiled one. Compile it again after every change of the package.
``my_rule.pxd`` beside it declares its fields and ``act``. Both files run uncompiled with ``LLMSCHED_UNCOMPILED=1``, to
debug. A rule that need not be fast is a Python function: `llmsched_env.policy.FunctionRule`.
"""

import cython

from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import View


class Patience(Rule):
    """A prefill once enough clients are idle, or after so many decodes. Fewer are enough each time it had to wait.

    Args:
        idle_clients: that are enough at first.
        most_decodes: between two prefills.
    """

    idle_clients: cython.longlong
    most_decodes: cython.longlong
    enough: cython.longlong

    def __init__(self, idle_clients: int, most_decodes: int) -> None:
        self.reads_forecast = False  # it reads none of due_1, ..., last_due: episodes are faster so
        self.idle_clients = idle_clients
        self.most_decodes = most_decodes
        self.enough = idle_clients

    def begin(self) -> None:
        """Set back what is kept between decisions."""
        self.enough = self.idle_clients

    def act(self, view: View) -> cython.int:
        """0 for a decode, 1 for a prefill."""
        if view.idle >= self.enough:
            return 1
        if view.decodes - view.last_prefill_decode >= self.most_decodes:
            self.enough = self.enough - 1 if self.enough > 1 else 1
            return 1
        return 0
