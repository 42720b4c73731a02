"""Trainings of a second, and what is read of their folders."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = {"num_clients": 4, "queue": "shared", "workload": str(Path(__file__).with_name("short.csv"))}
"""Episodes of some forty choices."""

QUICK = {
    "es": {"hidden": 2, "population": 4, "cases": 1, "pool": 2},
    "ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
    "maskable_ppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
    "trpo": {"n_steps": 32, "batch_size": 32, "n_critic_updates": 2},
    "a2c": {},
    "dqn": {"buffer_size": 500, "learning_starts": 64, "batch_size": 32, "target_update_interval": 64},
    "qrdqn": {
        "buffer_size": 500,
        "learning_starts": 64,
        "batch_size": 8,
        "gradient_steps": 1,
        "train_freq": 8,
        "target_update_interval": 64,
    },
    "ars": {"n_delta": 2, "n_top": 1, "n_eval_episodes": 2},
}
"""Settings for a few hundred timesteps."""


def curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tensorboard_steps(folder):
    """Timesteps of what TensorBoard shows."""
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    (tag,) = [tag for tag in shown.Tags()["scalars"] if tag.endswith("makespan_s") and "sampled" not in tag]
    return [event.step for event in shown.Scalars(tag)]


def weights(folder):
    """What was learnt, in the last checkpoint."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    if (last / "evolution.npz").exists():
        with np.load(last / "evolution.npz") as stored:
            return {
                name: torch.from_numpy(stored[name]) for name in ("strategy/_mean", "strategy/_C", "mean", "spread")
            }
    with zipfile.ZipFile(last / "model.zip") as archive, archive.open("policy.pth") as file:
        return torch.load(file, weights_only=True)
