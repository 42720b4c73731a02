"""One digest of each of many combined episodes: fields, observations, rewards and metrics."""

from __future__ import annotations

import hashlib
import pickle

from combinations import combined_actions, combined_case

from llmsched_env.snapshot import snapshot

CASES = 80


def combined_digest(seed: int) -> str:
    """Everything of an episode, after every iteration; every field after every third."""
    found, case = hashlib.sha256(), combined_case(seed)
    episode, actions = case.problem().episode(record=True), combined_actions(seed)
    for step in range(10**6):
        for part in (episode.observation(), episode.charge(), episode.measured(infos=True)):
            found.update(pickle.dumps(part))
        over = not episode.feasible_now()
        if step % 3 == 0 or over:
            found.update(pickle.dumps(snapshot(episode)))
        if over:
            return found.hexdigest()
        episode.step(case.number(*actions[step % len(actions)]))
    raise AssertionError("an episode without an end")
