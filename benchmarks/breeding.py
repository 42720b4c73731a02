"""Breed the networks of the agents in the box: several seeds for each place where a network is trained.

    python benchmarks/breeding.py --out DIR [--seeds 5] [--places gsm8k/shared/llama-65b-paper ...]

Writes one file a place and seed, whole or not at all; a call that was killed goes on with what is missing. Only
training cases are played. benchmarks/agent_tables.py judges the networks.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from agents.evolution import Evolution, EvolutionSettings
from agents.genome import Genome
from agents.network import Network
from llmsched_env import ENVIRONMENTS
from llmsched_env.config import Scenario
from llmsched_env.storage import write_whole

PRESETS = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")
FORMS: dict[str, dict[str, Any]] = {"client": {}, "shared": {"queue": "shared", "order": "longest_first"}}
KNOWN = {
    f"{workload}/{form}/{preset}": Scenario(workload=workload, cost=preset, **arguments)
    for preset, workload, (form, arguments) in itertools.product(PRESETS, ("gsm8k", "gsm8k-smooth"), FORMS.items())
}
"""Known lengths: both cases, both forms of queues, three cost presets."""

LOADS = (0.8, 0.9, 0.97)
SERVING = {
    f"{name}/{load}": Scenario(**ENVIRONMENTS[f"LLMSched/{name}-v0"]).replace(load=load)
    for name, load in itertools.product(("Serving", "ServingOrder"), LOADS)
}
PLACES = {**KNOWN, **SERVING}

VARIANTS = {
    "one hidden unit": EvolutionSettings(hidden=1),
    "16 hidden units": EvolutionSettings(hidden=16),
    "no rule to begin with": EvolutionSettings(base="none"),
    "diagonal covariance": EvolutionSettings(covariance="diagonal"),
    "4 cases a generation": EvolutionSettings(cases=4),
    "five features": EvolutionSettings(features=("ready", "charge", "due_1", "due_2_4", "work")),
}
"""Other settings, tried in some places: what helps and what does not."""

TRIED_IN = ("gsm8k/shared/llama-65b-paper", "gsm8k-smooth/client/llama-65b-paper")

KNOWN_ITERATIONS = 800_000_000
SERVING_ITERATIONS = 1_500_000_000


def _settings(variant: str, scenario: Scenario) -> EvolutionSettings:
    if variant:
        return VARIANTS[variant]
    return EvolutionSettings(cases=6, covariance="diagonal") if scenario.serving else EvolutionSettings()


def _folder(out: Path, name: str, variant: str) -> Path:
    return out / (name + f" ({variant})" * bool(variant)).replace("/", "_")


def breed(name: str, seed: int, out: Path, variant: str = "") -> None:
    """Train one network and keep its numbers."""
    path = _folder(out, name, variant) / f"{seed}.npz"
    if path.exists():
        return
    scenario = PLACES[name]
    evolution = Evolution(scenario, _settings(variant, scenario), seed)
    evolution.learn(SERVING_ITERATIONS if scenario.serving else KNOWN_ITERATIONS, lambda: None)
    with write_whole(path) as temporary, temporary.open("wb") as file:
        genome = evolution.genome
        said = {**genome._asdict(), "mean": None, "spread": None, "iterations": evolution.timesteps}
        said["generations"] = evolution.generation
        text = np.frombuffer(json.dumps(said).encode(), np.uint8)
        np.savez(file, numbers=evolution.numbers, mean=genome.mean, spread=genome.spread, said=text)


def bred(name: str, out: Path, variant: str = "") -> dict[int, Network]:
    """The networks of a place by seed."""
    found = {}
    for path in sorted(_folder(out, name, variant).glob("*.npz"), key=lambda path: int(path.stem)):
        with np.load(path, allow_pickle=False) as stored:
            said = json.loads(stored["said"].tobytes())
            fields = {field: said[field] for field in Genome._fields if field not in ("mean", "spread")}
            fields |= {field: tuple(fields[field]) for field in ("features", "base_values")}
            genome = Genome(**fields, mean=stored["mean"], spread=stored["spread"])
            found[int(path.stem)] = genome.network(stored["numbers"])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Breed what is missing, one network a core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--places", nargs="*", default=list(PLACES))
    parser.add_argument("--variants", action="store_true", help="other settings, in some places, instead")
    options = parser.parse_args(argv)
    places, variants = (TRIED_IN, list(VARIANTS)) if options.variants else (options.places, [""])
    jobs = itertools.product(range(options.seeds), places, variants)
    joblib.Parallel(n_jobs=-1, verbose=5)(
        joblib.delayed(breed)(name, seed, options.out, variant) for seed, name, variant in jobs
    )


if __name__ == "__main__":
    main()
