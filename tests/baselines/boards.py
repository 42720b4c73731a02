"""Entries of a small leaderboard: changed by hand, and verified."""

from __future__ import annotations

import json

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Origin, Trained
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.network import Network, dense
from llmsched_env.baselines.leaderboard import verify
from llmsched_env.engine.features import feature_table

SMALL = {"num_clients": 8, "num_requests": 60}


def changed(path, change):
    """The file with something changed by hand."""
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")


def verified(capsys, bench, *arguments):
    """Exit code and what was said."""
    capsys.readouterr()
    code = verify.main([*map(str, arguments)], benchmark=bench)
    said = capsys.readouterr()
    return code, said.out + said.err


def agents(folder, *seeds):
    """Files of training runs: random networks for a batch."""
    read = tuple(feature.name for feature in feature_table(False))
    for seed in seeds:
        rng = np.random.default_rng(seed)
        layer = dense(rng.normal(size=(2, len(read))), rng.normal(size=2))
        trained = Trained(Network(read, (layer,), masked=True), Origin.of(make_scenario("LLMSched/GSM8K-v0", **SMALL)))
        AgentFile((trained,), "the tests", (seed,)).write(folder / f"seed{seed}" / "agent.npz")
