"""Plans of whole episodes on disk: a study asks for the same ones again and again."""

from __future__ import annotations

import functools
import hashlib
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import PathError
from llmsched_env.simulator import Simulator
from llmsched_env.sources import package_digest
from llmsched_env.storage import cache_dir, write_whole

__all__ = ["cached_plan"]

_log = logging.getLogger(__name__)

Plan = NDArray[np.int64]


def cached_plan(simulator: Simulator, key: str, make: Callable[[], Plan], loss_of: Callable[[Plan], int]) -> Plan:
    """The plan that ``make`` makes for this episode; from disk where it was made before.

    Kept are plans of episodes that have not begun, by the case, ``key`` and the sources of package and planners. A
    plan that is damaged, or does not lose what it says, is made again.

    Args:
        simulator: the episode.
        key: what else the plan depends on.
        make: plans.
        loss_of: what a plan loses in this episode.
    """
    if simulator.view.prefills + simulator.view.decodes > 0:
        return make()
    name = f"{simulator.problem.digest()} {key} {package_digest()} {_own_digest()}"
    path = cache_dir() / "plans" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    if path.exists():
        plan = _read(path, loss_of)
        if plan is not None:
            return plan
    plan = make()
    _write(path, plan, loss_of(plan))
    return plan


@functools.cache
def _own_digest() -> str:
    own = sorted(Path(__file__).parent.glob("*.py"))  # a plan may go on by any rule
    return hashlib.sha256(b"".join(file.read_bytes() for file in own)).hexdigest()


def _read(path: Path, loss_of: Callable[[Plan], int]) -> Plan | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            plan: Plan = stored["plan"].astype(np.int64)
            loss = int(stored["loss"])
        if loss_of(plan) == loss:
            return plan
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    _log.warning("stored plan %s is damaged: planning again.", path)
    return None


def _write(path: Path, plan: Plan, loss: int) -> None:
    try:
        with write_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, plan=plan, loss=loss)
    except PathError as error:
        _log.warning("plan not kept: %s", error)
