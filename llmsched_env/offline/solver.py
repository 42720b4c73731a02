"""The one place that talks to PuLP's solvers, and knows where PuLP 3 and PuLP 4 differ.

HiGHS (through ``highspy``) is the default; CBC is taken where it is missing. Solves run on one thread and stop on an
optimality gap or a node count, never on time, so that they end the same way everywhere.

What is worked around, seen with PuLP 3.3:

- ``status`` is 'Optimal' for any incumbent: only ``sol_status`` tells a proven optimum (PuLP 4: ``stats.status``).
- A HiGHS solve that stops at its node limit ends in ``kSolutionLimit``, which PuLP does not know: it raises
  ``KeyError`` *after* it has stored the values.
- Unknown solver options are ignored without a word, so they are spelled here only.
- HiGHS has a scheduler for each thread that solves. It keeps the thread count of the first solve and fails every later
  one that asks for another count; and a forked process inherits one whose threads are gone. So each solve here has a
  thread of its own, whose scheduler is new and ends with it.
- CBC's command line is split at blanks, also at those in the path of its files, and these stay behind where it fails.
- ``LpVariable(...)`` and ``PULP_CBC_CMD`` are deprecated, and gone in 4.0.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulp

from llmsched_env.errors import SolverError, UnknownNameError

__all__ = ["SOLVERS", "Outcome", "add_variable", "default_solver", "solve"]

SOLVERS = ("highs", "cbc")
"""Names of the solvers, in the order in which they are preferred."""


@dataclass(frozen=True)
class Outcome:
    """How a solve ended.

    Attributes:
        has_values: the variables hold what the solver returned (to be checked: it may stem from a node limit).
        proved: the solver claims that it is optimal within the gap that was asked for.
        infeasible: the solver claims that no solution exists.
    """

    has_values: bool
    proved: bool
    infeasible: bool


def add_variable(problem: Any, name: str, low: float | None, high: float | None, *, integer: bool) -> Any:
    """A new variable of ``problem``, in either PuLP."""
    category = "Integer" if integer else "Continuous"
    if hasattr(problem, "add_variable"):
        return problem.add_variable(name, low, high, category)
    return pulp.LpVariable(name, low, high, category)


def _highs_available() -> bool:
    return hasattr(pulp, "HiGHS") and bool(pulp.HiGHS(msg=False).available())


def _cbc_path() -> str | None:
    """Path of a CBC that runs: the system's or the wheel's, or the one that PuLP 3 brings along."""
    path = pulp.COIN_CMD(msg=False).available()
    if path:
        return str(path)
    bundled = getattr(getattr(pulp, "PULP_CBC_CMD", None), "pulp_cbc_path", None)
    if bundled and pulp.COIN_CMD(path=bundled, msg=False).available():
        return str(bundled)
    return None


def default_solver() -> str:
    """Name of the solver that is used where the caller names none.

    Raises:
        SolverError: neither HiGHS nor CBC can be run.
    """
    if _highs_available():
        return "highs"
    if _cbc_path():
        return "cbc"
    raise SolverError("no MIP solver found: install highspy (pip install highspy), or CBC (pip install 'pulp[cbc]').")


def _solver_object(name: str | None, gap_abs: float, node_limit: int | None) -> Any:
    name = default_solver() if name is None else name
    if name == "highs":
        if not _highs_available():
            raise SolverError("solver 'highs' was asked for, but highspy is not installed: pip install highspy.")
        options = {} if node_limit is None else {"mip_max_nodes": int(node_limit)}
        return pulp.HiGHS(msg=False, threads=1, gapRel=0.0, gapAbs=gap_abs, **options)
    if name == "cbc":
        path = _cbc_path()
        if path is None:
            raise SolverError("solver 'cbc' was asked for, but no cbc runs here: pip install 'pulp[cbc]'.")
        # CBC builds without threads reject the option, and one thread is their default.
        return pulp.COIN_CMD(path=path, msg=False, gapRel=0.0, gapAbs=gap_abs, maxNodes=node_limit)
    raise UnknownNameError("solver", name, SOLVERS)


@contextmanager
def _files_of_its_own(program: Any) -> Iterator[None]:
    """A folder for the files of a solver that is a command, without blanks in its path; removed whatever happens.

    Raises:
        SolverError: there is none.
    """
    if program.name == "HiGHS":
        yield
        return
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp", str(Path.cwd())):
        if len(base.split()) == 1 and os.access(base, os.W_OK | os.X_OK):
            break
    else:
        raise SolverError(
            f"CBC takes no path with blanks, and the folder of temporary files is {tempfile.gettempdir()!r}: set "
            "TMPDIR to a folder without blanks, or install highspy."
        )
    with tempfile.TemporaryDirectory(prefix="llmsched_env-", dir=base) as program.tmpDir:
        yield


def _in_its_own_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1, "llmsched_env-solver") as thread:
        return thread.submit(work).result()


def solve(problem: Any, solver: str | None = None, *, gap_abs: float = 0.0, node_limit: int | None = None) -> Outcome:
    """Solve a PuLP problem in place.

    Args:
        problem: a ``pulp.LpProblem``.
        solver: one of :data:`SOLVERS`, or None for :func:`default_solver`.
        gap_abs: stop when incumbent and bound are this near, in units of the objective. Just below 1 proves the
            optimum of an objective that takes whole values only.
        node_limit: most branch-and-bound nodes, or None.

    Raises:
        SolverError: the solver is missing or broke down.
        UnknownNameError: no such solver.
    """
    program = _solver_object(solver, gap_abs, node_limit)
    try:
        with _files_of_its_own(program):
            stats = _in_its_own_thread(lambda: problem.solve(program))
    except KeyError:
        return Outcome(has_values=True, proved=False, infeasible=False)
    except pulp.PulpError as error:
        raise SolverError(f"the MIP solver broke down: {error}") from error
    if hasattr(stats, "has_solution"):  # PuLP 4
        return Outcome(bool(stats.has_solution), bool(stats.has_solution) and stats.status == 1, stats.status == -1)
    return Outcome(problem.sol_status in {1, 2}, problem.sol_status == 1, problem.sol_status == -1)
