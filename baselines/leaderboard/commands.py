"""What the commands of the leaderboard share."""

from __future__ import annotations

import argparse

from llmsched_env.baselines.leaderboard.bench import Benchmark
from llmsched_env.errors import ConfigError

__all__ = ["add_scenarios", "add_sharing", "scenarios_of"]


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """Options of commands that play."""
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that share the cases; -1 for every core"
    )
    parser.add_argument(
        "--own-code", action="store_true", help="allow policies of the form module:factory, whose code is run"
    )


def add_scenarios(parser: argparse.ArgumentParser, what: str) -> None:
    """The option that leaves scenarios out."""
    parser.add_argument("--scenarios", metavar="A,B,...", help=what)


def scenarios_of(text: str | None, benchmark: Benchmark) -> list[str]:
    """What ``--scenarios`` names; all of them where it is not given.

    Raises:
        UnknownNameError: no such scenario.
        ConfigError: it names none.
    """
    if text is None:
        return benchmark.chosen(None)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--scenarios {text!r} names none: take some of {', '.join(benchmark.places)}.")
    return benchmark.chosen(names)
