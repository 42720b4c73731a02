"""Every training algorithm by its name, imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from llmsched_env.agents.learner import Learner
from llmsched_env.agents.libraries import LIBRARIES
from llmsched_env.errors import MissingExtraError, UnknownNameError

__all__ = ["ALGORITHMS", "DEFAULT", "Place", "learner_class"]


class Place(NamedTuple):
    """Where a learner is: the module, and the class in it."""

    module: str
    kind: str


ALGORITHMS = {
    "es": Place("llmsched_env.agents.evolution", "Evolution"),
    **dict.fromkeys(LIBRARIES, Place("llmsched_env.agents.sb3_learner", "SB3Learner")),
}
"""Name -> learner. Each has its settings in ``agents/settings/NAME.yaml``."""

DEFAULT = "es"
"""What `train.py` takes where none is named."""


def learner_class(name: str) -> type[Learner]:
    """The class of a learner.

    Raises:
        UnknownNameError: no such algorithm.
        MissingExtraError: the extra `agents` is not installed.
    """
    if name not in ALGORITHMS:
        raise UnknownNameError("algorithm", name, ALGORITHMS)
    module, kind = ALGORITHMS[name]
    try:
        learner: type[Learner] = getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise MissingExtraError(
            f"algorithm {name!r} needs a library that is not installed ({error}): install the extra 'agents', "
            "pip install -e '.[agents]' from the clone."
        ) from error
    return learner
