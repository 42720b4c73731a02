"""Studies of the paper's open questions, one by one or all: tables (NAME.md, NAME_*.csv), a picture, NAME.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llmsched_env.errors import UnknownNameError
from llmsched_env.evaluation.drawing import check_drawing
from llmsched_env.flags import flags_of, path_option, run_command
from llmsched_env.studies.pages import check_pages, publish
from llmsched_env.studies.registry import STUDIES
from llmsched_env.studies.study import Options, run

COMMAND = "python -m studies"


def _parser(command: str = COMMAND) -> argparse.ArgumentParser:
    usual = Options()
    listed = "\n".join(f"  {study.name:18} {study.question}" for study in STUDIES.values())
    parser = argparse.ArgumentParser(
        prog=command,
        description=__doc__,
        epilog=f"studies:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="which (default: all)")
    add("--cases", type=int, default=usual.cases, metavar="N", help="test cases at 200 clients (default: %(default)s)")
    add("--clients", type=int, nargs="+", default=usual.clients, metavar="J", help=f"(default: {usual.clients})")
    add("--seed", type=int, default=usual.seed, help="of what is random beside the cases (default: %(default)s)")
    add("--workers", type=int, default=-1, metavar="N", help="processes; -1 for every core (default: %(default)s)")
    add("--out", type=path_option, default=Path("results/studies"), metavar="DIR", help="(default: %(default)s)")
    add("--write", action="store_true", help="put tables and pictures into docs/, too")
    return parser


FLAGS = flags_of(_parser())


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the studies; 2 for unusable arguments, 130 after Ctrl-C."""
    asked = _parser(command).parse_args(argv)
    kept = "\ninterrupted: what was done is kept, and the same command goes on from there."
    return run_command(FLAGS, lambda: _run(asked), kept)


def _run(asked: argparse.Namespace) -> None:
    for name in asked.names:
        if name not in STUDIES:
            raise UnknownNameError("study", name, STUDIES)
    check_drawing()  # complains now, before the long work
    if asked.write:
        check_pages(asked.names or [*STUDIES])  # that too
    options = Options(asked.cases, tuple(asked.clients), asked.seed)
    for name in asked.names or STUDIES:
        study = STUDIES[name]
        tables = study.tables(run(study, options, asked.out, workers=asked.workers))
        short = study.short({table.name: table for table in tables})
        print(f"\n{study.question}\n\n{short.title}\n\n{short.markdown()}\n")
        print(f"In full in {asked.out}: {name}.md, {name}_*.csv, {name}.json; the picture: {name}.png")
        if asked.write:
            publish(study, tables, asked.out / f"{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
