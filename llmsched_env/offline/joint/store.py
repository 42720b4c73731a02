"""Joint plans that are already there: shipped with the package, or cached on disk; else made once.

A shipped pool, ``workload/data/plans_<workload>_<split>.npz``, holds plans of a split's cases:

- ``digest`` (cases,) ascii: :func:`plan_digest` of each case, by which it is found;
- ``prefill_of`` (cases, n) uint8: the prefill that reads each request;
- ``instants`` (cases, K) int32: decodes before each prefill, -1 where a case has fewer.

A cached plan is a file of ``prefill_of`` and ``instants`` likewise, its ``stage``, and the ``counts`` (2,) of prefills
and decodes that it came to.

A plan is what it comes to when it is played, so whatever is read is played and measured anew; what is damaged, or comes
to other counts than it says, is logged and made again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, PathError
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan, played
from llmsched_env.offline.joint.search import Effort, check_batch, joint_plan
from llmsched_env.offline.store import DATA, UNREADABLE
from llmsched_env.storage import cache_dir, write_whole
from llmsched_env.workload.requests import Requests

__all__ = [
    "ALGORITHM_VERSION",
    "cached_plan",
    "is_shipped",
    "plan_digest",
    "plan_of",
    "pool_path",
    "shipped_plans",
    "stored_plan",
]

ALGORITHM_VERSION = 4
"""Raise it when a change to the search changes plans: cached ones are then left behind."""

STAGES = ("exact", "search", "greedy")

_UNREADABLE = (*UNREADABLE, ConfigError)

_log = logging.getLogger(__name__)


def plan_digest(requests: Requests, clients: int, cost: CostModel) -> str:
    """Content hash (hex) of what a plan depends on."""
    numbers = np.array([clients, cost.prefill_token_cap, cost.alpha_prefill_ns, cost.alpha_decode_ns], "<i8")
    h = hashlib.sha256(numbers.tobytes())
    for column in (requests.prompt_tokens, requests.output_tokens):
        h.update(np.ascontiguousarray(column.astype("<i8")).tobytes())
    return h.hexdigest()


def stored_plan(
    requests: Requests, clients: int, cost: CostModel, *, effort: Effort | None = None, progress: bool = False
) -> JointPlan:
    """:func:`~llmsched_env.offline.joint.search.joint_plan`, from the store where it can be.

    Args:
        requests: the batch.
        clients: J.
        cost: affine cost model.
        effort: of the search where there is no plan yet.
        progress: show a line on stderr while searching.

    Raises:
        ConfigError: as :func:`~llmsched_env.offline.joint.search.joint_plan`.
        SolverError: likewise.
    """
    case = check_batch(requests, clients, cost)
    row = _shipped().get(plan_digest(requests, case.clients, cost))
    if row is not None:
        try:
            return plan_of(case, *row)
        except _UNREADABLE as error:
            _log.warning("a shipped plan is damaged (%s): planning again.", error)
    return cached_plan(requests, clients, cost, effort=effort, progress=progress)


def cached_plan(
    requests: Requests, clients: int, cost: CostModel, *, effort: Effort | None = None, progress: bool = False
) -> JointPlan:
    """The same from the disk cache, or made and put there."""
    case = check_batch(requests, clients, cost)
    digest = plan_digest(requests, case.clients, cost)
    key = f"{digest} {effort or Effort()} {ALGORITHM_VERSION}"
    path = cache_dir() / "joint" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return _kept(case, kept["prefill_of"], kept["instants"], str(kept["stage"]), kept["counts"])
        except _UNREADABLE as error:
            _log.warning("stored plan %s is damaged (%s): planning again.", path, error)
    found = joint_plan(requests, case.clients, cost, effort=effort, progress=progress)
    # As it will be read: the order within a prefill is not kept, so the first plan is the same as all later ones.
    plan = plan_of(case, found.prefill_of, found.instants, stage=found.stage)
    counts = np.array([plan.prefills, plan.decodes])
    try:
        with write_whole(path) as temporary, temporary.open("wb") as written:
            np.savez_compressed(
                written, prefill_of=found.prefill_of, instants=found.instants, stage=found.stage, counts=counts
            )
    except PathError as error:
        _log.warning("plan not kept: %s", error)
    return plan


def is_shipped(requests: Requests, clients: int, cost: CostModel) -> bool:
    """Whether a plan of this batch came with the package."""
    return plan_digest(requests, clients, cost) in _shipped()


def _kept(case: Case, prefill_of: Any, instants: Any, stage: str, counts: Any) -> JointPlan:
    """A cached plan, if it is what it says.

    Raises:
        ConfigError: it is not.
    """
    if stage not in STAGES:
        raise ConfigError(f"stage = {stage!r}: known are {', '.join(STAGES)}.")
    plan = plan_of(case, prefill_of, instants, stage=stage)
    if np.asarray(counts).tolist() != [plan.prefills, plan.decodes]:
        raise ConfigError(
            f"played it has {plan.prefills} prefills and {plan.decodes} decodes, not {np.asarray(counts).tolist()}: "
            "it was made for another batch."
        )
    return plan


def plan_of(
    case: Case, prefill_of: NDArray[np.integer], instants: NDArray[np.integer], *, stage: str = "search"
) -> JointPlan:
    """The plan that reads each request in such a prefill.

    Raises:
        ConfigError: not a prefill for each request, or instants that do not ascend.
    """
    place, due = np.asarray(prefill_of), np.asarray(instants)
    if due.ndim != 1 or place.dtype.kind not in "iu" or due.dtype.kind not in "iu":
        raise ConfigError(
            f"prefill_of of {place.dtype} and instants of {due.dtype} in {due.ndim} dimensions: give whole numbers, "
            "instants in one dimension."
        )
    place, due = place.astype(np.int64), due.astype(np.int64)
    if place.shape != case.decodes.shape or not len(due) or place.min() < 0 or place.max() >= len(due):
        raise ConfigError(f"prefill_of of shape {place.shape}: give one of {len(due)} prefills for each request.")
    if due[0] < 0 or (np.diff(due) < 0).any():
        raise ConfigError("instants of prefills: give counts of decodes that ascend from 0.")
    return played(case, np.lexsort((np.arange(len(place)), -case.decodes, place)), due, stage=stage)


def pool_path(workload: str, split: str) -> Path:
    """Where the package keeps a shipped pool."""
    return DATA / f"plans_{workload}_{split}.npz"


Row = tuple[NDArray[np.uint8], NDArray[np.int32]]


def shipped_plans(path: Path) -> dict[str, Row]:
    """Prefills of requests and instants by digest, of a pool's file.

    Raises:
        ConfigError: it cannot be read as one.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            digests, prefill_of, instants = file["digest"].astype(str), file["prefill_of"], file["instants"]
        rows = zip(digests.tolist(), prefill_of, instants, strict=True)
        return {digest: (place, due[due >= 0]) for digest, place, due in rows}
    except UNREADABLE as error:
        raise ConfigError(f"{path} is damaged ({error}): build it again.") from error


@functools.cache
def _shipped() -> dict[str, Row]:
    """Every shipped plan by its digest, read on the first look-up and kept."""
    found: dict[str, Row] = {}
    for path in sorted(DATA.glob("plans_*.npz")):
        try:
            found |= shipped_plans(path)
        except ConfigError as error:
            _log.warning("shipped plans: %s Cases are planned afresh.", error)
    return found
