"""A cost model from one's own hardware: least squares on recorded iterations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel
from llmsched_env.errors import FileFormatError
from llmsched_env.units import warn_of_milliseconds
from llmsched_env.workload.csv_table import Cell, CsvTable, read_table

__all__ = ["FittedCostModel", "KindFit", "fit_cost_model", "least_squares"]

COLUMN_OF_KIND = {"prefill": "prefill_tokens", "decode": "active_clients"}
MIN_ROWS = 3
"""Two rows determine a line, so only a third can contradict it."""

MAX_SIZE = 2**31 - 1
MAX_DURATION_S = 1000
LONG_DECODE_S = 2
"""A decode emits a token for each client; ones of the largest models take a fifth of a second."""

NS_DIGITS = 9

POOR_R_SQUARED = 0.9
NARROW = 2
"""Where the largest size is less than this many times the smallest, a constant and a slope are hard to tell apart."""


@dataclass(frozen=True)
class KindFit:
    """How well one kind of iteration was fitted.

    Attributes:
        rows: iterations recorded.
        covers: ``(fewest, most)`` prompt tokens of a prefill, or active clients of a decode.
        r_squared: share of the variance of the durations that the rounded model explains, at most 1; 1 where they do
            not vary and it meets them.
        rms_error_ns: root mean square of recorded minus modelled duration.
        at_zero: coefficients that least squares alone would have made negative, or exactly zero, and that are 0.
        standard_errors_ns: of each coefficient, the constant first; 0 for one that is at zero, NaN where as many rows
            as coefficients leave nothing to judge by. They hold for independent errors.
    """

    rows: int
    covers: tuple[int, int]
    r_squared: float
    rms_error_ns: float
    at_zero: tuple[str, ...]
    standard_errors_ns: tuple[float, ...] = ()

    def doubts(self, unit: str) -> list[str]:
        """Why not to trust it, each with a remedy; ``unit``: what its sizes are."""
        doubts = []
        if self.r_squared < POOR_R_SQUARED:
            doubts.append(
                f"R2 = {self.r_squared:.2f} is below {POOR_R_SQUARED}: sizes explain little of the time. Record on a "
                "quiet machine, and a load that varies more."
            )
        if self.covers[1] < NARROW * self.covers[0]:
            doubts.append(
                f"{self.covers[0]}-{self.covers[1]} {unit} are a narrow range: other sizes are extrapolated. Record a "
                "load that varies more."
            )
        if self.at_zero:
            doubts.append(f"{', '.join(self.at_zero)} fitted as 0; check that the recording varies enough")
        return doubts


@dataclass(frozen=True)
class FittedCostModel:
    """A fitted cost model and how far to trust it.

    Attributes:
        model: the model, in whole nanoseconds; it knows the range that it covers.
        prefill: quality of the prefill half.
        decode: quality of the decode half.
    """

    model: CostModel
    prefill: KindFit
    decode: KindFit

    def report(self) -> str:
        """The fit in a few lines of text."""
        model = self.model
        prefill = [(model.alpha_prefill_ns, ""), (model.beta_prefill_ns, "prompt tokens")]
        decode = [(model.alpha_decode_ns, ""), (model.beta_decode_ns, "active clients")]
        if len(self.decode.standard_errors_ns) > len(decode):
            decode.append((model.gamma_decode_ns, "context tokens"))
        return "\n".join(
            [
                f"cost model {model.name!r} (ns)",
                *fit_lines("prefill", self.prefill, prefill, "prompt tokens"),
                *fit_lines("decode", self.decode, decode, "active clients"),
            ]
        )


def fit_lines(kind: str, fit: KindFit, terms: Sequence[tuple[int, str]], unit: str) -> list[str]:
    """What was fitted to one kind of iteration, and what to doubt, as lines of text.

    Args:
        kind: what the lines begin with.
        fit: its quality.
        terms: (coefficient in ns, what it multiplies; "" for the constant), in the order of the standard errors.
        unit: what `covers` counts.
    """
    errors = fit.standard_errors_ns or (math.nan,) * len(terms)
    formula = " + ".join(
        f"{value} (se {error:.2g})" + f" * {what}" * bool(what)
        for (value, what), error in zip(terms, errors, strict=True)
    )
    line = (
        f"{kind}: {formula}; R2 = {fit.r_squared:.4f}, rms error {fit.rms_error_ns / 1e6:.3g} ms, "
        f"{fit.rows} rows, {fit.covers[0]}-{fit.covers[1]} {unit}"
    )
    return [line, *(f"{kind}: {doubt}" for doubt in fit.doubts(unit))]


def fit_cost_model(
    csv_path: Path | str, *, name: str = "fitted", prefill_token_cap: int | None = None
) -> FittedCostModel:
    """Fit an affine cost model to recorded iterations by non-negative least squares, prefills and decodes apart.

    The file has one line an iteration and the columns ``kind`` (``prefill`` or ``decode``), ``prefill_tokens`` (prompt
    tokens in sum; read on prefill lines only), ``active_clients`` (read on decode lines only), ``duration_s``, and
    optionally ``context_tokens`` (tokens in all caches; read on decode lines only; with it, the decode has a term for
    them). Cells that are not read may be blank. Durations are taken to the nanosecond; coefficients are rounded to it,
    and quality is measured after the rounding.

    Args:
        csv_path: the file.
        name: of the model, in tables.
        prefill_token_cap: most prompt tokens in one prefill; ``None`` for the largest prefill recorded, so that no
            simulated batch lies beyond it.

    Raises:
        PathError: the file cannot be read.
        FileFormatError: a missing column, a bad cell, too few lines of a kind, or sizes that do not vary enough to
            tell the coefficients apart.
        ConfigError: a cap that is not a number of tokens, or durations that leave no valid model.

    Warns:
        UnitWarning: decodes so long that they may be in milliseconds.
    """
    table = read_table(
        csv_path, required=("kind", *COLUMN_OF_KIND.values(), "duration_s"), optional=("context_tokens",)
    )
    sizes: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in COLUMN_OF_KIND}
    durations_ns: dict[str, list[int]] = {kind: [] for kind in COLUMN_OF_KIND}
    for line, cells in table.rows():
        kind, size, duration_ns = _iteration(table, line, cells)
        sizes[kind].append(size)
        durations_ns[kind].append(duration_ns)
    usual_s = statistics.median(durations_ns["decode"] or [0]) / 1e9
    if usual_s > LONG_DECODE_S:
        seen = f"a decode takes {usual_s:.4g} s in the median of duration_s"
        warn_of_milliseconds(table.path, "duration_s", seen)
    (alpha_p, beta_p), prefill = _fit(table, "prefill", sizes["prefill"], durations_ns["prefill"])
    (alpha_d, beta_d, *gamma), decode = _fit(table, "decode", sizes["decode"], durations_ns["decode"])
    model = CostModel(
        name,
        alpha_p,
        beta_p,
        alpha_d,
        beta_d,
        gamma_decode_ns=gamma[0] if gamma else 0,
        prefill_token_cap=prefill.covers[1] if prefill_token_cap is None else prefill_token_cap,
        covers_prefill_tokens=prefill.covers,
        covers_active_clients=decode.covers,
    )
    return FittedCostModel(model, prefill, decode)


def _iteration(table: CsvTable, line: int, cells: list[str]) -> tuple[str, tuple[int, ...], int]:
    """(kind, sizes that its time depends on, duration in ns) of one line."""

    def cell(column: str) -> Cell:
        return Cell(table, line, column, cells[table.index[column]])

    kind = cell("kind").text.strip()
    if kind not in COLUMN_OF_KIND:
        raise cell("kind").error(f"{kind!r} is not a kind of iteration: write prefill or decode.")
    size = [cell(COLUMN_OF_KIND[kind]).whole_number(1, MAX_SIZE)]
    if kind == "decode" and "context_tokens" in table.index:
        size.append(cell("context_tokens").whole_number(0, MAX_SIZE))
    duration = cell("duration_s")
    duration_ns = duration.scaled_number(NS_DIGITS, 0, MAX_DURATION_S, "the iteration's seconds")
    if duration_ns == 0:
        raise duration.error(f"{duration.text.strip()!r} is no time: an iteration takes at least a nanosecond.")
    return kind, tuple(size), duration_ns


def _fit(
    table: CsvTable, kind: str, sizes: list[tuple[int, ...]], durations_ns: list[int]
) -> tuple[list[int], KindFit]:
    """Coefficients in ns, the constant first, and their quality."""
    if len(sizes) < MIN_ROWS:
        raise FileFormatError(table.path, f"has {len(sizes)} {kind} lines: record at least {MIN_ROWS}.", column="kind")
    names = [COLUMN_OF_KIND[kind], "context_tokens"][: len(sizes[0])]
    x = np.column_stack([np.ones(len(sizes)), np.array(sizes, np.float64)])  # (rows, coefficients)
    y = np.array(durations_ns, np.float64)  # (rows,)
    _check_spread(table, kind, names, x)
    column = x[:, 1]
    covers = (int(column.min()), int(column.max()))
    return least_squares(("constant", *names), x, y, covers=covers)


def least_squares(
    names: Sequence[str],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    covers: tuple[int, int],
    weights: NDArray[np.float64] | None = None,
) -> tuple[list[int], KindFit]:
    """Coefficients that are not negative, in whole ns, and their quality, measured after the rounding.

    Args:
        names: (coefficients,) of the columns.
        x: (rows, coefficients) sizes, a column of ones for the constant; of full rank.
        y: (rows,) durations in ns, above 0.
        covers: fewest and most of the size that the fit is to be used for.
        weights: (rows,) how many iterations each row stands for, as the median of them; ``None`` for 1 each.
    """
    # scipy.optimize takes a quarter of a second to import, and only calibration needs it.
    from scipy.optimize import nnls

    # Columns of equal size: tokens are a thousand times clients, and nnls stops on absolute gradients.
    scale = x.max(axis=0)
    counts = np.ones(len(y)) if weights is None else weights
    root = np.sqrt(counts)
    solution, _ = nnls(x / scale * root[:, None], y / y.max() * root)
    coefficients = [round(float(value)) for value in solution * y.max() / scale]
    residual = y - x @ np.array(coefficients, np.float64)
    about_mean = y - np.average(y, weights=counts)
    total, left = float(counts @ about_mean**2), float(counts @ residual**2)
    r_squared = 1.0 - left / total if total > 0 else float(left == 0)
    free = [i for i, value in enumerate(coefficients) if value != 0]
    errors = np.zeros(len(names))
    if free:
        squares = (x[:, free] / scale[free] * root[:, None]).T @ (x[:, free] / scale[free] * root[:, None])
        spare = len(y) - len(free)
        variance = left / spare if spare > 0 else math.nan
        errors[free] = np.sqrt(variance * np.diag(np.linalg.pinv(squares))) / scale[free]
    zero = tuple(label for label, value in zip(names, coefficients, strict=True) if value == 0)
    rms = float(np.sqrt(left / counts.sum()))
    return coefficients, KindFit(int(counts.sum()), covers, r_squared, rms, zero, tuple(errors.tolist()))


def _check_spread(table: CsvTable, kind: str, names: list[str], x: NDArray[np.float64]) -> None:
    for name, column in zip(names, x.T[1:], strict=True):
        if column.min() == column.max():
            raise FileFormatError(
                table.path,
                f"is {column[0]:.0f} on every {kind} line: a constant and a slope need at least two sizes.",
                column=name,
            )
    if np.linalg.matrix_rank(x / x.max(axis=0)) < x.shape[1]:
        raise FileFormatError(
            table.path,
            f"follows from the other columns on the {kind} lines: vary it, or leave it out.",
            column=names[-1],
        )
