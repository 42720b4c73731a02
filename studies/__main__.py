"""Studies of the paper's open questions, one by one or all. Writes NAME.json, NAME.md and NAME.png for each."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llmsched_env.errors import LLMSchedError, UnknownNameError
from llmsched_env.evaluation.drawing import check_drawing
from llmsched_env.flags import flags_of, in_flags, path_option
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import PAGE, PICTURES, replaced
from llmsched_env.studies.registry import STUDIES
from llmsched_env.studies.study import Options, Study, run

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
    add("--write", action="store_true", help="put the tables and pictures into docs/, too")
    return parser


FLAGS = flags_of(_parser())


def _publish(study: Study, table: str, picture: Path) -> None:
    page = replaced(PAGE.read_text(encoding="utf-8"), study.name, table)
    with write_whole(PAGE) as path:
        path.write_text(page, encoding="utf-8")
    shutil.copyfile(picture, PICTURES / f"study_{study.name}.png")


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the studies; 2 for unusable arguments, 130 after Ctrl-C."""
    asked = _parser(command).parse_args(argv)
    try:
        for name in asked.names:
            if name not in STUDIES:
                raise UnknownNameError("study", name, STUDIES)
        check_drawing()  # complains now, before the long work
        options = Options(asked.cases, tuple(asked.clients), asked.seed)
        for name in asked.names or STUDIES:
            study = STUDIES[name]
            table = study.table(run(study, options, asked.out, workers=asked.workers))
            print(f"\n{study.question}\n\n{table}\n\nIn {asked.out}: {name}.json, {name}.md, {name}.png")
            if asked.write:
                _publish(study, table, asked.out / f"{name}.png")
    except LLMSchedError as error:
        print(f"error: {in_flags(str(error), FLAGS)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was done is kept, and the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
