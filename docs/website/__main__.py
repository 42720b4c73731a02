"""Builds the site: ``PYTHONPATH=docs python -m website``. Warnings and dead links are errors."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .gifs import draw
from .links import broken
from .staging import ROOT, Staging

OWN = ("genindex", "py-modindex", "search")
"""Pages that Sphinx adds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build it; 1 where something is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder of the pages")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "docs-work", help="what the next build uses again"
    )
    options = parser.parse_args(argv)
    source = options.work / "source"
    drawn = draw(options.work / "episodes", source / "environments" / "episodes")
    print(f"Pictures of episodes: {len(drawn)} drawn, the others are there.")
    staging = Staging()
    staging.write(source)
    for old in options.out.rglob("*.html"):  # of pages that are gone
        name = old.relative_to(options.out).with_suffix("").as_posix()
        if name not in {*OWN, *(place.rpartition(".")[0] for place in staging.texts)}:
            old.unlink()
    settings, kept = Path(__file__).with_name("conf.py"), options.work / "doctrees" / "environment.pickle"
    anew = ["-E"] if kept.exists() and settings.stat().st_mtime > kept.stat().st_mtime else []
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2", *anew),
            *("-c", str(settings.parent), "-d", str(options.work / "doctrees"), str(source), str(options.out)),
        ],
        # Signatures of what is compiled are those of its sources.
        env={**os.environ, "LLMSCHED_UNCOMPILED": "1"},
        check=False,
    )
    wrong = broken(options.out) if done.returncode == 0 else []
    for line in wrong:
        print(f"dead link: {line}", file=sys.stderr)
    if done.returncode or wrong:
        return 1
    print(f"The start page is {os.path.relpath(options.out / 'index.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
