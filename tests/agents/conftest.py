from __future__ import annotations

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")
pytest.importorskip("tensorboard")
pytest.importorskip("yaml")

from small_runs import QUICK, SMALL

from llmsched_env.agents.runs import Run
from llmsched_env.agents.training import Training


@pytest.fixture
def small(tmp_path):
    """A training that takes a second."""

    def make(algo="ppo", out="run", settings=None, **changes):
        return Training(
            **{
                "algo": algo,
                "scenario": "LLMSched/GSM8K-Smooth-v0",
                "timesteps": 512,
                "seed": 3,
                "out": tmp_path / out,
                "copies": 0 if algo == "es" else 2,
                "validation_cases": 2,
                "arguments": SMALL,
                "settings": {**QUICK.get(algo, {}), **(settings or {})},
                "evaluate_every": 128,
                **changes,
            }
        )

    return make


@pytest.fixture
def stopped_after(monkeypatch):
    """Ends training as a kill would, when so many checkpoints are whole."""

    def stop(checkpoints):
        save, left = Run.save, [checkpoints]

        def save_and_stop(*arguments):
            saved = save(*arguments)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return saved

        monkeypatch.setattr(Run, "save", save_and_stop)
        return lambda: monkeypatch.setattr(Run, "save", save)

    return stop
