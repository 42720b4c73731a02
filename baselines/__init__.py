"""Rules, planners and whole methods to be compared with: ``python -m baselines`` runs them."""

from baselines.registry import BASELINES, METHODS, POLICIES, entry, make_policy

__all__ = ["BASELINES", "METHODS", "POLICIES", "entry", "make_policy"]
