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


def updated(bar):
    with bar:
        for item in range(bar.total):
            yield item
            bar.update()


@pytest.fixture(params=["update", "loop"])
def steps(request):
    """Both ways to count."""
    loop = request.param == "loop"
    return lambda total: (
        Progress(range(total), desc="comparing") if loop else updated(Progress(total=total, desc="comparing"))
    )


def test_a_log_has_a_line_now_and_then(stderr, clock, steps):
    for _ in steps(100):
        clock.now += 1.0
    assert stderr.getvalue().splitlines() == [
        "comparing: 10 of 100 steps after 00:10, about 01:30 to go",
        "comparing: 40 of 100 steps after 00:40, about 01:00 to go",
        "comparing: 70 of 100 steps after 01:10, about 00:30 to go",
        "comparing: 100 of 100 steps after 01:40, about 00:00 to go",
    ]


def test_steps_that_get_quicker_are_counted_once(stderr, clock, steps):
    for number in steps(400):
        clock.now += 1.0 if number < 10 else 0.125
    counted = [line.split(" of ")[0] for line in stderr.getvalue().splitlines()]
    assert counted == ["comparing: 10", "comparing: 250"]


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
