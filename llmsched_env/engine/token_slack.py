"""How many prompt tokens the running requests leave time for: mixed iterations within their slack.

With its first token at f, a request that has k tokens is due to have the next one at f + k * TPOT limit: then it meets
the limit. What is left until then is its slack; it is below 0 for one that is behind. A mixed iteration reads no more
than lets the request with the least slack have its token in time, by the cost model that schedulers believe in. Where
the decode alone is too long for that, it reads nothing. Where nobody decodes, nobody is kept waiting.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.view import View


def tokens_in_time(
    v: View,
    costs: Costs,
    clients: cython.int[:, ::1],
    started_ns: cython.longlong[::1],
    context: cython.longlong,
) -> cython.longlong:
    """Most prompt tokens of a mixed iteration now, with somebody active.

    Args:
        v: the view.
        costs: what schedulers believe.
        clients: (J, CLIENT_COLUMNS) the episode's table of clients.
        started_ns: (J,) when the running request of each client had its first token.
        context: tokens of context that the decode reads.
    """
    client: cython.int
    slack_ns: cython.longlong
    least_ns: cython.longlong = cython.cast(cython.longlong, 1) << 62
    for client in range(clients.shape[0]):
        if clients[client, codes.RUNNING] >= 0:
            slack_ns = v.tpot_ns * (v.decodes - clients[client, codes.BASE]) - (v.clock_ns - started_ns[client])
            least_ns = min(least_ns, slack_ns)
    return costs.tokens_within(least_ns, v.active, context)
