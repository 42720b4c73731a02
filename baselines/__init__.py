"""Rules, planners and whole methods to be compared with: ``python -m baselines`` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsched_env.baselines.comparing import compare
    from llmsched_env.baselines.registry import BASELINES, METHODS, POLICIES, entry, make_policy

__all__ = ["BASELINES", "METHODS", "POLICIES", "compare", "entry", "make_policy"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    # Late, so that ``python -m llmsched_env.baselines.tuned`` runs a module that was not imported before.
    if name == "compare":
        from llmsched_env.baselines.comparing import compare

        return compare
    if name in __all__:
        from llmsched_env.baselines import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
