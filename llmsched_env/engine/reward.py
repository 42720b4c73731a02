"""What a step is charged: differences of exact integer totals, so that a sum of rewards telescopes to a metric.

``reward = -(C(after) - C(before)) / scale`` with C from the table below. Time that passes inside ``reset`` (a first
arrival after 0, iterations without a choice under ``skip_forced``) is part of the first difference.

============ ========================================================== ============= ===============================
reward       C, a total since the start of the episode                  scale         an episode sums to
============ ========================================================== ============= ===============================
excess       alpha_p * J * prefills + alpha_d * idle client-decodes     J * LB1       -(makespan - constant) / LB1
             + J * time with nothing to do
makespan     clock                                                      LB1           -makespan / LB1
idle         J * clock - busy client time                               J * LB1       -makespan * (1 - util) / LB1
latency      integral of (waiting + active) over time                   n * LB1       -mean end-to-end latency / LB1
goodput      counted requests that have violated an objective           counted       goodput - 1
differential that of excess, less a price for each token decoded,       J * alpha_p   (constant - makespan) / alpha_p
             + alpha_d * slack ahead
============ ========================================================== ============= ===============================

The constant of `excess` is beta_p * prompt tokens + (alpha_d / J + beta_d) * decodes needed: no policy can change it.
With a cost model that is not affine, or iterations that do not last what schedulers believe, there is no such
constant, and `excess` is `makespan`.

`differential` is the differential reward of average-reward learning (Sutton and Barto 2018, section 10.3), per token
instead of per step. Every policy decodes the same tokens, so their price changes no comparison of episodes. It changes
what a discount does: under the price, what is earned and what is charged balance within each cycle from prefill to
prefill, so to put a prefill off is no gain, and a short horizon (gamma of 0.98) is enough. Its unit is the fixed time
of a prefill (LB1 where that is 0), so rewards are of the size that learning libraries expect. The price is what waiting
and prefilling cost at least per token in the textbook's lot-size model (Harris 1913): with one of A clients falling
idle every m / A decodes, a cycle of d decodes costs J * alpha_p + alpha_d * J * d^2 / (2 m), least per token at
sqrt(2 * alpha_p * alpha_d / m). Where `excess` is `makespan` the price has the decode itself, too.

Its second part, the slack (slack.py), charges the end of an episode when it is decided. There, clients without work
wait for the longest one. How long is decided much earlier: each time that a client idles which has more to do than
others. Under the slack that costs a whole decode, and to let one idle that has less to do costs next to nothing. This
is a potential of the state, 0 when all is done (Ng, Harada and Russell 1999), so it changes no comparison of episodes
of a case either.
"""

from __future__ import annotations

import math

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import Totals, View


def excess(v: View, t: Totals, problem: ProblemData) -> cython.longlong:
    """The part of the clock that decisions control, in client-ns; J times the clock where costs are not affine."""
    return charge(v, t, codes.EXCESS, problem.affine)


def charge(v: View, t: Totals, kind: cython.int, affine: cython.bint) -> cython.longlong:
    """The total C so far, without slack: ns (makespan), client-ns (excess, idle, differential), request-ns or requests.

    Args:
        v: the view.
        t: the totals.
        kind: codes.EXCESS, ...
        affine: whether the makespan is a policy-free constant plus fixed times per iteration.
    """
    if kind == codes.IDLE:
        return v.num_clients * v.clock_ns - t.busy_client_ns
    if kind == codes.LATENCY:
        return t.request_ns
    if kind == codes.GOODPUT:
        return t.violations
    if kind == codes.MAKESPAN:
        return v.clock_ns
    total: cython.longlong = v.num_clients * v.clock_ns
    if affine:
        total = v.num_clients * (v.alpha_prefill_ns * v.prefills + t.jump_ns)
        total += v.alpha_decode_ns * t.idle_client_decodes
    if kind == codes.DIFFERENTIAL:
        total -= token_price_ns(v, affine) * (v.num_clients * v.decodes - t.idle_client_decodes)
    return total


def token_price_ns(v: View, affine: cython.bint) -> cython.longlong:
    """What `differential` pays back for each token decoded, in client-ns."""
    alphas: cython.double = cython.cast(cython.double, v.alpha_prefill_ns) * v.alpha_decode_ns
    price: cython.longlong = cython.cast(cython.longlong, math.sqrt(2.0 * alphas / v.mean_output_tokens))
    return price if affine else price + v.alpha_decode_ns + v.num_clients * v.beta_decode_ns
