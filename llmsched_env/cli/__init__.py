"""``llmsched``: the commands of an installed package; ``python -m llmsched_env`` is the same."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from llmsched_env import __version__

__all__ = ["COMMANDS", "main"]

NAME = "llmsched"

COMMANDS = {
    "compare": ("llmsched_env.baselines.__main__", "compare rules, planners, methods and agents on the same cases"),
    "recommend": ("llmsched_env.recommend.__main__", "from a trace, a machine and SLOs to a setting of the server"),
    "train": ("llmsched_env.cli.train", "train an agent and compare it with the baselines"),
    "export": ("llmsched_env.agents.export", "write a trained model as an agent that loads without torch"),
    "leaderboard": ("llmsched_env.baselines.leaderboard.standings", "show the leaderboard"),
    "submit": ("llmsched_env.baselines.leaderboard.submit", "make an entry of the leaderboard from a policy"),
    "verify": ("llmsched_env.baselines.leaderboard.verify", "play an entry of the leaderboard again, and compare"),
    "trace": ("llmsched_env.cli.trace", "play one case, and write it for trace viewers and as tables"),
    "predictions": ("llmsched_env.baselines.predictions", "show what a prediction of output lengths is worth"),
    "replicas": ("llmsched_env.replicas.__main__", "compare routers of several replicas, or find how many are needed"),
    "engines": ("llmsched_env.engines.__main__", "record a real engine, fit a cost model to it, compare it"),
    "studies": ("llmsched_env.studies.__main__", "answer the paper's open questions"),
}
"""Name -> the module whose ``main(argv, command)`` it is, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; 2 for unusable arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        module, _ = COMMANDS[words[0]]
        code: int = importlib.import_module(module).main(words[1:], command=f"{NAME} {words[0]}")
        return code
    if words == ["--version"]:
        print(f"{NAME} {__version__}")
        return 0
    listed = "\n".join(f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items())
    text = f"usage: {NAME} COMMAND ...\n\n{listed}\n\n{NAME} COMMAND --help says more of each; {NAME} --version."
    if words[:1] in ([], ["-h"], ["--help"]):
        print(text)
        return 0
    print(f"error: there is no command {words[0]!r}.\n\n{text}", file=sys.stderr)
    return 2
