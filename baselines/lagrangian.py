"""Five readings of the paper's Lagrangian rule.

makespan = alpha_p K + alpha_d D + constant. Relaxing the two counts puts a price on each: another decode costs the idle
clients that have something to take alpha_d each (C_d, accumulated since the last prefill, as holding cost is in lot
sizing); a prefill costs the active clients, which stall, alpha_p each (C_p). Prefill when C_d has reached lambda * C_p.
The paper's words admit several readings; this one is ours, and the others stand beside it (docs/model.md has the
derivation). Source: Pang et al., arXiv 2502.15763, its abstract and digests; neither full text nor code was at hand.
"""

from __future__ import annotations

from llmsched_env.baselines.rule import Rule
from llmsched_env.engine import rules

__all__ = ["lagrangian", "lagrangian_instant", "lagrangian_literal", "lagrangian_lookahead"]


def lagrangian(multiplier: float = 1.0) -> Rule:
    """Prefill when alpha_d * (sum of R over the decodes since the last prefill) >= lambda * alpha_p * A.

    Our reading of arXiv 2502.15763.
    """
    return Rule("lagrangian", rules.Lagrangian, (multiplier,))


def lagrangian_lookahead(multiplier: float = 1.0) -> Rule:
    """As :func:`lagrangian`, with the coming decode's idle clients counted as if it had been run.

    alpha_d * (sum of R + R now) >= lambda * alpha_p * A: a reading of arXiv 2502.15763.
    """
    return Rule("lagrangian_lookahead", rules.LagrangianLookahead, (multiplier,))


def lagrangian_literal(multiplier: float = 1.0) -> Rule:
    """As :func:`lagrangian`, with whole durations, T_d of a decode and T_p of the coming prefill, in place of alphas.

    T_d * (sum of R) >= lambda * T_p * A: a reading of arXiv 2502.15763. The parts of both that grow with tokens and
    clients are spent whatever the policy does, so it waits too long.
    """
    return Rule("lagrangian_literal", rules.LagrangianLiteral, (multiplier,))


def lagrangian_instant(multiplier: float = 1.0) -> Rule:
    """Compares one iteration's costs, nothing accumulated: R * T_d >= lambda * T_p * A. Waits far too long.

    A reading of arXiv 2502.15763.
    """
    return Rule("lagrangian_instant", rules.LagrangianInstant, (multiplier,))
