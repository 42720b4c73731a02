"""Every study by name."""

from __future__ import annotations

from studies.study import Study

__all__ = ["STUDIES"]

_ALL: tuple[Study, ...] = ()
STUDIES = {study.name: study for study in _ALL}
