"""The leaderboard that can be checked: fixed scenarios and cases, and entries that are played again."""

from llmsched_env.baselines.leaderboard.bench import LLMSCHED_BENCH, Benchmark, Place
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry, Results, read_entry, write_entry
from llmsched_env.baselines.leaderboard.scoring import Scoring, references, scored

__all__ = [
    "LLMSCHED_BENCH",
    "Benchmark",
    "LeaderboardEntry",
    "Place",
    "Results",
    "Scoring",
    "read_entry",
    "references",
    "scored",
    "write_entry",
]
