"""Train PPO with its shipped settings in the leaderboard's batch scenarios, and put its agents among the entries.

    python benchmarks/ppo_entry.py --out DIR      # goes on after a kill; then benchmarks/leaderboard.py --entries ppo

`benchmarks/learning.py` has trained five seeds in two of them: where DIR is its folder, they are taken as they are.
Where orders are actions there is no residual for PPO to learn: its entry plays the best tuned rule there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import joblib
from learning import PLACES, learn, training_of

from llmsched_env.agents.training import Training
from llmsched_env.baselines.leaderboard import LLMSCHED_BENCH, write_entry
from llmsched_env.baselines.leaderboard.submit import play_entry
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.storage import write_whole

FOLDER = LLMSCHED_BENCH.entries / "ppo"
LEARNED = {"gsm8k": "GSM8K-v0", "smooth": "GSM8K-Smooth-v0"}
"""Scenarios of the leaderboard that `learning.py` trains in, by their name there."""
VALIDATED = 100


def trainings(name: str, seeds: int, out: Path) -> list[Training]:
    """One a seed; none where orders are actions."""
    place = LLMSCHED_BENCH.places[name]
    if place.scenario.num_actions > 2:
        return []
    if name in LEARNED:
        assert PLACES[LEARNED[name]].scenario == place.scenario_id
        return [training_of(LEARNED[name], seed, out) for seed in range(5)]
    return [
        Training("ppo", place.scenario_id, seed=seed, out=out / "leaderboard" / name / f"seed{seed}",
                 validation_cases=VALIDATED, arguments=dict(place.changes))
        for seed in range(seeds)
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, copy the agents, and play them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=1, help="where learning.py has none (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    runs = {name: trainings(name, options.seeds, options.out) for name in LLMSCHED_BENCH.places}
    waiting = [run for ones in runs.values() for run in ones]
    done = joblib.Parallel(options.workers, return_as="generator")(joblib.delayed(learn)(run) for run in waiting)
    for number, _ in enumerate(done, 1):
        print(f"{number} of {len(waiting)} runs are there", file=sys.stderr, flush=True)
    policies: dict[str, list[str]] = {}
    for name, ones in runs.items():
        policies[name] = [] if ones else [best_tuned(LLMSCHED_BENCH.places[name].scenario)]
        for run in ones:
            target = FOLDER / f"{name}-{run.seed}.npz"
            target.parent.mkdir(exist_ok=True)
            with write_whole(target) as temporary:
                temporary.write_bytes((run.out / "agent.npz").read_bytes())
            policies[name].append(target.relative_to(LLMSCHED_BENCH.entries).as_posix())
    path = LLMSCHED_BENCH.entries / "ppo.json"
    entry = play_entry(
        "ppo", policies, LLMSCHED_BENCH, path, made_by="benchmarks/ppo_entry.py", workers=options.workers
    )
    write_entry(entry, LLMSCHED_BENCH, path)


if __name__ == "__main__":
    main()
