"""Errors survive the way from a worker process."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from llmsched_env import errors
from llmsched_env.errors import FileFormatError, LLMSchedError, UnknownNameError

SPECIAL = {
    "FileFormatError": FileFormatError("a.csv", "not a number.", line=3, column="prompt_tokens"),
    "UnknownNameError": UnknownNameError("policy", "hybird", ["hybrid", "offline"]),
}


@pytest.mark.parametrize("name", errors.__all__)
def test_a_pickled_error_is_the_same_error(name: str) -> None:
    error = SPECIAL.get(name) or getattr(errors, name)("what, value, limit, remedy")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert isinstance(found, LLMSchedError)
    assert str(found) == str(error)
    assert found.__dict__ == error.__dict__


def test_what_the_special_ones_carry() -> None:
    found = pickle.loads(pickle.dumps(SPECIAL["FileFormatError"]))
    assert (found.path, found.line, found.column) == (Path("a.csv"), 3, "prompt_tokens")
    assert pickle.loads(pickle.dumps(SPECIAL["UnknownNameError"])).close_matches == ["hybrid"]
