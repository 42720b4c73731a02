"""Every study by name."""

from __future__ import annotations

from llmsched_env.studies import (
    accelerators,
    cost_check,
    jitter,
    kv_memory,
    migration,
    mixed,
    planning,
    scale,
    uncertain_lengths,
)

__all__ = ["STUDIES"]

_ALL = (cost_check, uncertain_lengths, planning, kv_memory, migration, jitter, mixed, scale, accelerators)

STUDIES = {module.STUDY.name: module.STUDY for module in _ALL}
