"""The least makespan of one queue that is taken in a given order: exact, and for small problems only.

The stage model (stage_model.py) is free in the order and the batches. Here both are given, as they are in the simulator
with one shared queue, and what is left is the choice of a policy: prefill or decode. All requests are released at time
0 and prefills are affine, so makespan = alpha_p * K + alpha_d * D + a constant (see bounds.py), and a state is the
position in the queue and the remaining decodes of the running requests.

**When to prefill.** Some best schedule prefills only at the beginning, after another prefill, and after a decode that
completed a request. Proof. Let time count decodes. Take a schedule with a prefill that comes later than that; move it
back to the last completion or prefill before it, and leave the others where they are. The same clients were idle there,
so it takes the same batch. Now no request starts later than it did. Let i be a request that has not started when the
prefill comes that took it before, and let the statement hold for all requests ahead of i. They have started, or are in
this batch as they were before, so the tokens of the batch fit. They started no later than before, so no more of them
are running, and a client is left for i. So the last request ends no later, and D does not grow; K does not either, and
prefills that nothing is left for, and decodes in which nothing runs, fall away. Repeat.

So the dynamic program goes from completion to completion, and long outputs cost it nothing.
"""

from __future__ import annotations

from typing import SupportsIndex

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.offline.assignment import check_clients
from llmsched_env.offline.bounds import Case
from llmsched_env.workload.requests import Requests

__all__ = ["MAX_QUEUE", "QueueOptimum"]

MAX_QUEUE = 32
"""Most requests. The number of states grows exponentially: with 20 on 4 clients it is some ten thousand."""

Running = tuple[int, ...]


class QueueOptimum:
    """What is the least that can be reached from any state of one case; computed when asked for, and kept.

    A *charge* is what decisions control of the makespan: alpha_p for each prefill, alpha_d for each decode, in ns.

    Args:
        requests: in the order of the queue, all released at time 0; 32 at most.
        clients: number of clients.
        cost: cost model or preset; affine, a context term allowed (it is the same for all schedules).

    Raises:
        ConfigError: prefill levels or ``first_decode_ns``; release times; too many requests; ``clients`` below 1.
        UnknownNameError: no such cost preset.
    """

    def __init__(self, requests: Requests, clients: SupportsIndex, cost: CostModel | str) -> None:
        model = cost_model(cost)
        if model.prefill_levels:
            raise ConfigError(f"cost model {model.name!r} has prefill levels: QueueOptimum needs an affine prefill.")
        if model.first_decode_ns:
            raise ConfigError(
                f"cost model {model.name!r} has first_decode_ns = {model.first_decode_ns}: QueueOptimum "
                "takes decodes to last the same whatever ran before. Set it to 0."
            )
        if requests.release_ns.any():
            raise ConfigError("QueueOptimum knows no release times: give requests that are all released at 0.")
        if len(requests) > MAX_QUEUE:
            raise ConfigError(f"{len(requests)} requests are too many for QueueOptimum: give {MAX_QUEUE} at most.")
        self._clients, self._cost = check_clients(clients), model
        self._prompts, self._decodes = requests.prompt_tokens.tolist(), requests.decodes.tolist()
        self._constant_ns = Case(requests, self._clients, model).makespan_ns(0, 0)
        self._least_ns: dict[tuple[int, Running], int] = {}

    @property
    def makespan_ns(self) -> int:
        """Of the shortest schedule."""
        return self._constant_ns + self.least_ns()

    def least_ns(self, position: int = 0, running: Running = ()) -> int:
        """Least charge to the end.

        Args:
            position: how many requests have been taken from the queue.
            running: remaining decodes of the active clients, at least 1 each, in ascending order.
        """
        if position == len(self._decodes):
            return self._cost.alpha_decode_ns * max(running, default=0)
        least = self._least_ns.get((position, running))
        if least is None:
            options = []
            if running:
                options.append(self._decoded_ns(position, running, running[0]))
            if len(running) < self._clients:
                options.append(self.prefill_ns(position, running))
            least = self._least_ns[position, running] = min(options)
        return least

    def decode_ns(self, position: int, running: Running) -> int:
        """Least charge to the end with a decode now, where some client is active."""
        return self._decoded_ns(position, running, 1)

    def prefill_ns(self, position: int, running: Running) -> int:
        """Least charge to the end with a prefill now, where some client is idle and some request waits."""
        tokens, end = 0, position
        last = min(len(self._decodes), position + self._clients - len(running))
        while end < last:
            tokens += self._prompts[end]
            if end > position and tokens > self._cost.prefill_token_cap:
                break
            end += 1
        started = [need for need in self._decodes[position:end] if need]
        return self._cost.alpha_prefill_ns + self.least_ns(end, tuple(sorted([*running, *started])))

    def _decoded_ns(self, position: int, running: Running, decodes: int) -> int:
        left = tuple(need - decodes for need in running if need > decodes)
        return self._cost.alpha_decode_ns * decodes + self.least_ns(position, left)
