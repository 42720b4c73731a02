"""What every iteration reads of an episode, side by side in memory.

With a thousand copies of an episode each line of memory that a step touches comes from far away.
"""

from __future__ import annotations

import cython

from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import Totals, View
from llmsched_env.errors import BusyError


class State:
    """The numbers of an episode, and which of its parts are on: its lowest layer. The layers above set the latter.

    Attributes:
        view: what a policy may know.
        totals: what rewards and metrics are made of.
        next_release_ns: when the next request is released; beyond any clock where none is left.
        num_clients: of the problem.
        has_slo: whether there are objectives.
        has_kv: whether the KV cache is a budget.
        has_queues: whether clients have queues of their own.
        has_mixed: whether some action is a mixed iteration.
        has_noise: whether durations are noisy.
        records: whether the episode is recorded.
        reads_context: of the believed costs.
        settles: whether every iteration, and not only some, changes what is ready or what it costs.
        plans_memory: whether a decode may have to preempt before it begins.
        recomposes: whether the previews may change at any place from one iteration to the next.
        running: whether a rule plays it just now, without the GIL.
    """

    view: View
    totals: Totals
    next_release_ns: cython.longlong
    num_clients: cython.int
    has_slo: cython.bint
    has_kv: cython.bint
    has_queues: cython.bint
    has_mixed: cython.bint
    has_noise: cython.bint
    records: cython.bint
    reads_context: cython.bint
    settles: cython.bint
    plans_memory: cython.bint
    recomposes: cython.bint
    running: cython.bint

    def __init__(self, problem: ProblemData) -> None:
        self.view = View(
            num_clients=problem.num_clients,
            idle=problem.num_clients,
            alpha_prefill_ns=problem.believed.alpha_prefill_ns,
            alpha_decode_ns=problem.believed.alpha_decode_ns,
            beta_decode_ns=problem.believed.beta_decode_ns,
            token_cap=problem.token_cap,
            mean_output_tokens=problem.mean_output_tokens,
        )
        self.totals = Totals()
        self.totals.reset(problem.num_clients)
        self.next_release_ns = 0
        self.num_clients = problem.num_clients
        self.has_slo = self.has_kv = self.has_queues = self.has_mixed = self.has_noise = self.records = False
        self.reads_context = self.settles = self.plans_memory = self.recomposes = self.running = False

    def assign_state(self, other: State) -> cython.void:
        """Take over the numbers of another episode; what is on is the same."""
        self.view.assign(other.view)
        self.totals.assign(other.totals)
        self.next_release_ns = other.next_release_ns

    def set_view(self, view: View) -> None:
        """Take over all fields of a view."""
        self.view.assign(view)

    def check_idle(self) -> None:
        """Raise where a rule plays the episode just now.

        Raises:
            BusyError: one does.
        """
        if self.running:
            raise BusyError("this episode")
