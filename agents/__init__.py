"""Learned policies: training them with stable-baselines3 or by evolution, and running them as policies."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmsched_env.agents.files import load_agent
from llmsched_env.errors import MissingExtraError

if TYPE_CHECKING:
    from llmsched_env.agents.encoding import rule_start
    from llmsched_env.agents.sb3_policy import SB3Policy
    from llmsched_env.agents.sb3_residual import ResidualPolicy
    from llmsched_env.agents.training import Training, train
    from llmsched_env.agents.vec_env import SB3VecEnv

__all__ = ["ResidualPolicy", "SB3Policy", "SB3VecEnv", "Training", "load_agent", "rule_start", "train"]

_LATE = {
    "ResidualPolicy": "sb3_residual",
    "SB3Policy": "sb3_policy",
    "SB3VecEnv": "vec_env",
    "Training": "training",
    "rule_start": "encoding",
    "train": "training",
}
"""What is imported when it is asked for, since learning libraries take seconds, and its module."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_LATE[name]}")
    except ImportError as error:
        raise MissingExtraError(
            f"{__name__}.{name} needs a library that is not installed ({error}): install the extra 'agents', "
            "pip install -e '.[agents]' from the clone."
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
