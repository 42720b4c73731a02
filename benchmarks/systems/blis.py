"""BLIS's batch formation and step: ``python benchmarks/systems/blis.py FOLDER``, where FOLDER/sim is its package.

``sim/batch_formation.go`` runs as it is, and so do the parts of a step in ``sim/simulator.go``, which say whom a step
gave a token and who completes (github.com/inference-sim/inference-sim at 0de1e44b41f8). The stand-ins around them are
in ``benchmarks/systems/blis``: the KV cache always has room and knows no prefix. Needs Go 1.19 or later.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from driving import GOLDEN, Case, Step, mixed_ns, play, write

COMMIT = "0de1e44b41f8"
LIFTED = ("Step", "scheduleBatch", "executeBatchStep", "processCompletions", "scheduleNextStep")
IMPORTS = ("github.com/sirupsen/logrus", "github.com/inference-sim/inference-sim/sim/internal/util")


def _built(folder: Path, where: Path) -> Path:
    """The program that answers, built in ``where``."""
    shutil.copytree(Path(__file__).with_suffix(""), where, dirs_exist_ok=True)
    shutil.copy(folder / "sim" / "batch_formation.go", where / "sim")
    source = (folder / "sim" / "simulator.go").read_text()
    parts = ["package sim", *(f'import "{name}"' for name in IMPORTS)]
    for name in LIFTED:
        found = re.search(rf"^func \(sim \*Simulator\) {name}\(.*?^}}", source, re.MULTILINE | re.DOTALL)
        assert found, f"{folder}/sim/simulator.go has no {name}"
        parts.append(found[0])
    (where / "sim" / "step.go").write_text("\n\n".join(parts) + "\n")
    subprocess.run(["go", "build", "-o", "blis", "."], cwd=where, check=True)
    return where / "blis"


class Blis:
    """``Simulator.Step``, one an iteration."""

    def __init__(self, program: Path, capacity: dict[str, Any]) -> None:
        asked = [str(program), str(capacity["clients"]), str(capacity["mixed_tokens"])]
        self._process = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._emitted: set[int] = set()
        self._completed: set[int] = set()

    def _say(self, line: str) -> None:
        asking = cast("IO[str]", self._process.stdin)
        asking.write(line + "\n")
        asking.flush()

    def add(self, number: int, prompt: int, output: int) -> None:
        """A request has arrived."""
        self._say(f"add {number} {prompt} {output}")

    def next(self) -> Step:
        """Ask for the next iteration."""
        self._say("step")
        step = Step()
        self._emitted, self._completed = set(), set()
        for ran in cast("IO[str]", self._process.stdout).readline().split():
            number, tokens = map(int, ran.split(",")[:2])
            reads, emitted, completed = (word == "true" for word in ran.split(",")[2:])
            if reads and tokens:
                step.reads.append((number, tokens))
            elif tokens:
                assert tokens == 1
                step.decodes.append(number)
            self._emitted |= {number} if emitted else set()
            self._completed |= {number} if completed else set()
        return step

    def end(self, emitted: Sequence[int], finished: Sequence[int]) -> None:
        """That iteration is over: BLIS has counted the same tokens."""
        assert (self._emitted, self._completed) == (set(emitted), set(finished))

    def close(self) -> None:
        """No more steps."""
        self._process.communicate()


def main() -> None:
    """Write the golden file: the cases of ``vllm_v1.json``."""
    played = []
    with tempfile.TemporaryDirectory() as where:
        program = _built(Path(sys.argv[1]).resolve(), Path(where))
        for told in json.loads((GOLDEN / "vllm_v1.json").read_text())["cases"]:
            case = Case(told["name"], tuple(map(tuple, told["requests"])), told["capacity"])
            system = Blis(program, case.capacity)
            played.append(play(system, case, mixed_ns))
            system.close()
    said = {"system": "BLIS (inference-sim, sim/batch_formation.go, sim/simulator.go)", "version": f"commit {COMMIT}"}
    said["made_by"] = "benchmarks/systems/blis.py, which runs VLLMBatchFormation and Simulator.Step"
    write("blis", cases=played, **said)


if __name__ == "__main__":
    main()
