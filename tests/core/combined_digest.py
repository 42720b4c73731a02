"""Print one digest of many combined episodes: every field after every iteration, observations, rewards and metrics."""

from __future__ import annotations

import hashlib
import pickle

from combinations import combined_actions, combined_case
from test_combinations import problem_of

from llmsched_env.engine import compiled
from llmsched_env.snapshot import snapshot

CASES = 80


def digest() -> str:
    found = hashlib.sha256()
    for seed in range(CASES):
        case = combined_case(seed)
        episode, actions = problem_of(case).episode(record=True), combined_actions(seed)
        for step in range(10**6):
            for part in (snapshot(episode), episode.observation(), episode.charge(), episode.measured(infos=True)):
                found.update(pickle.dumps(part))
            if not episode.feasible_now():
                break
            episode.step(case.number(*actions[step % len(actions)]))
    return found.hexdigest()


if __name__ == "__main__":
    print(compiled, digest())
