"""A library that a command draws with, and that is not installed, is named before the long work."""

from __future__ import annotations

import importlib

import gymnasium
import pytest

import llmsched_env.baselines.__main__ as comparison
import llmsched_env.studies.__main__ as studies
from llmsched_env.baselines import predictions
from llmsched_env.baselines.leaderboard import standings
from llmsched_env.cli import train
from llmsched_env.errors import MissingExtraError

ID = "LLMSched/GSM8K-v0"
SMALL = ["--clients", "5", "--requests", "20", "--queue", "shared", "--cases", "2"]
WORDS = r"needs {}, which cannot be imported .*llmsched-env\[viz\]"


@pytest.fixture
def hide(monkeypatch):
    """``hide(library)``: make imports of it fail."""
    real = importlib.import_module

    def hide_library(library):
        def import_module(name, package=None):
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {library!r}")
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", import_module)

    return hide_library


def unexpected(*_, **__):
    raise AssertionError("the long work has begun")


@pytest.mark.parametrize(
    ("command", "arguments", "work"),
    [
        (comparison, [*SMALL, "--out", "out"], "compare"),
        (predictions, ["--clients", "5", "--requests", "20", "--cases", "2", "--out", "out"], "study"),
        (studies, ["scale", "--out", "out"], "run"),
        (standings, ["--out", "out"], "shipped_entries"),
    ],
    ids=["comparison", "predictions", "studies", "leaderboard"],
)
def test_a_command_that_will_draw_asks_at_its_door(hide, monkeypatch, tmp_path, capsys, command, arguments, work):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, work, unexpected)
    hide("matplotlib")
    assert command.main(arguments) == 2
    assert "Drawing a picture needs matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_training_says_that_there_will_be_no_picture(hide, monkeypatch, tmp_path, capsys):
    import llmsched_env.agents.training

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(llmsched_env.agents.training, "train", stop)
    hide("matplotlib")
    assert train.main(["--algo", "es", "--out", str(tmp_path / "run"), "--clients", "5", "--requests", "20"]) == 130
    assert "warning: there will be no learning_curve.png. Drawing a picture needs matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "mode", "name"),
    [("PIL", "rgb_array", "pillow"), ("PIL", "human", "pillow"), ("pygame", "human", "pygame-ce")],
)
def test_an_environment_that_will_draw_asks_when_it_is_made(hide, library, mode, name):
    hide(library)
    with pytest.raises(MissingExtraError, match=WORDS.format(name)):
        gymnasium.make(ID, render_mode=mode)
    gymnasium.make(ID, render_mode="ansi")
