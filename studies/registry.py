"""Every study by name."""

from __future__ import annotations

from studies import cost_check, kv_memory, uncertain_lengths

__all__ = ["STUDIES"]

STUDIES = {study.name: study for study in (cost_check.STUDY, uncertain_lengths.STUDY, kv_memory.STUDY)}
