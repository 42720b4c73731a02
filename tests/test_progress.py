"""How far work is: bars for terminals, lines for logs, and a clock that stands still while code is compiled."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from llmsched_env import progress
from llmsched_env.progress import Progress


@pytest.fixture
def stderr(monkeypatch):
    """What is written; ``stderr.terminal = True`` makes it one."""
    written = io.StringIO()
    written.terminal = False
    monkeypatch.setattr(written, "isatty", lambda: written.terminal)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=written))  # pytest sets its own for each phase
    return written


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test lets pass."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("tqdm.std.time", lambda: found.now)
    return found


def test_a_log_has_a_line_now_and_then(stderr, clock):
    with Progress(total=100, desc="comparing", unit="episode") as bar:
        for _ in range(100):
            clock.now += 1.0
            bar.update()
    assert stderr.getvalue().splitlines() == [
        "comparing: 10 of 100 episodes after 00:10, about 01:30 to go",
        "comparing: 40 of 100 episodes after 00:40, about 01:00 to go",
        "comparing: 70 of 100 episodes after 01:10, about 00:30 to go",
        "comparing: 100 of 100 episodes after 01:40, about 00:00 to go",
    ]


def test_short_work_leaves_no_trace_in_a_log(stderr, clock):
    for _ in Progress(range(9), desc="tuning"):
        clock.now += 1.0
    assert stderr.getvalue() == ""


def test_what_has_come_out_is_beside_the_bar_or_a_line(stderr):
    for terminal in (False, True):
        stderr.terminal = terminal
        with Progress(total=2, desc="training") as bar:
            bar.tell("best 3", "after one step: 3")
            bar.update()
        said = stderr.getvalue()
        assert ("best 3" in said, "after one step: 3\n" in said, "\r" in said) == (terminal, True, terminal)
    with Progress(total=2, hidden=True) as bar:
        bar.tell("best 4", "after one step: 4")
    assert "4" not in stderr.getvalue().replace(said, "")
