"""A cost model from a recording: prefills, decodes and mixed iterations, and what the data show beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.calibration import KindFit, fit_lines, least_squares
from llmsched_env.cost import MeasuredCost, MixedCost, as_fit
from llmsched_env.engines.recording import Recording
from llmsched_env.engines.terms import (
    ENOUGH_DECODES,
    T_NEEDED,
    AfterPrefill,
    Term,
    after_prefill,
    follows,
    t_of,
    tested,
)
from llmsched_env.errors import ConfigError

__all__ = ["AfterPrefill", "RecordedFit", "fit_recording", "pooled", "predicted_ns"]

MIN_ROWS = 3
ENOUGH_PREFILLS = (8, 4)
"""Iterations that only read, and sizes of them. With fewer, a prefill's time is that of a mixed iteration without
decodes, if any ran."""

CONTEXT_BINS = 32
OUTLIER_SCALES = 6.0
"""Robust standard deviations beyond which a size is left out: the machine was doing something else then."""

MOST_OUTLIERS = 0.1


@dataclass(frozen=True)
class RecordedFit:
    """A cost model from a recording, and how far to trust it.

    Attributes:
        model: in whole nanoseconds, with what mixed iterations last where some were recorded.
        prefill: quality of the prefill half.
        decode: quality of the decode half.
        mixed: quality over all iterations that read prompts; ``None`` where no cost of mixed iterations was fitted.
        prefill_from_mixed: whether prefills are priced as mixed iterations without decodes.
        context: whether a decode grows with context.
        interference: whether reading and decoding hinder each other.
        after_prefill: of decodes that follow a prefill.
        excess: what all iterations last beyond the model, as a share: what stalls and outliers add.
        outliers: iterations whose size was left out.
        recording: where it comes from: name, engine, version, who decided.
    """

    model: MeasuredCost
    prefill: KindFit
    decode: KindFit
    mixed: KindFit | None
    prefill_from_mixed: bool
    context: Term
    interference: Term
    after_prefill: AfterPrefill
    excess: float
    outliers: int
    recording: str

    def report(self) -> str:
        """The fit in some lines of text."""
        model, mixed = self.model, self.model.mixed
        lines = [
            f"cost model {model.name!r} (ns, standard errors in parentheses), from {self.recording}",
            "R2, errors and outliers are those of the medians of iterations of one size",
        ]
        prefill = [(model.alpha_prefill_ns, ""), (model.beta_prefill_ns, "prompt tokens")]
        decode = [(model.alpha_decode_ns, ""), (model.beta_decode_ns, "active clients")]
        if self.after_prefill.used:
            decode.append((model.first_decode_ns, "whether it is the first after a prefill"))
        if self.context.used:
            decode.append((model.gamma_decode_ns, "context tokens"))
        if self.prefill_from_mixed:
            lines.append(
                f"prefill: {prefill[0][0]} + {prefill[1][0]} * prompt tokens, of the mixed iterations: fewer than "
                f"{ENOUGH_PREFILLS[0]} iterations of {ENOUGH_PREFILLS[1]} sizes only read"
            )
        else:
            lines += fit_lines("prefill", self.prefill, prefill, "prompt tokens")
        lines += fit_lines("decode", self.decode, decode, "active clients")
        if self.mixed is not None and mixed is not None:
            terms = [(mixed.alpha_ns, ""), (mixed.beta_prompt_ns, "prompt tokens")]
            terms.append((mixed.beta_active_ns, "active clients"))
            if self.interference.used:
                terms.append((mixed.interference_ns, "A^2 / (A + prompt tokens)"))
            lines += fit_lines("mixed", self.mixed, terms, "prompt tokens")
        lines += [self.context.told(), self.interference.told(), self.after_prefill.told()]
        lines.append(
            f"all iterations together last {abs(self.excess):.2%} {'longer' if self.excess > 0 else 'shorter'} than "
            f"modelled; sizes of {self.outliers} iterations were left out as outliers"
        )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """What `llmsched_env.cost.read_fit` reads, and the quality beside it."""
        quality = {field: value for field, value in asdict(self).items() if field != "model"}
        return {**as_fit(self.model), "fit": quality}


@dataclass(frozen=True)
class _Cells:
    """Iterations by size: the median of those of one size."""

    x: NDArray[np.float64]  # (cells, columns) sizes, without the constant
    y: NDArray[np.float64]  # (cells,) ns
    counts: NDArray[np.float64]  # (cells,)

    @property
    def design(self) -> NDArray[np.float64]:
        return np.column_stack([np.ones(len(self.y)), self.x])

    def columns(self, most: int) -> _Cells:
        return _Cells(self.x[:, :most], self.y, self.counts)

    def without(self, bad: NDArray[np.bool_]) -> _Cells:
        return _Cells(self.x[~bad], self.y[~bad], self.counts[~bad])


def pooled(recordings: Sequence[Recording]) -> Recording:
    """Recordings of one engine one after another, to be fitted together; settings are the first one's, most tokens.

    Raises:
        ConfigError: none, or those of different engines.
    """
    if len({(recording.engine, recording.version) for recording in recordings}) != 1:
        told = ", ".join(f"{r.name!r} of {r.engine} {r.version}" for r in recordings) or "none"
        raise ConfigError(f"recordings to be fitted together: {told}. Give those of one engine.")
    first, from_ns, iterations, requests = recordings[0], 0, [], []
    for recording in recordings:
        rows, served = recording.iterations.copy(), recording.requests.copy()
        rows["start_ns"] += from_ns
        for name in ("arrival_ns", "first_token_ns", "finished_ns"):
            served[name] += from_ns
        from_ns = int(max(rows["start_ns"][-1] + rows["duration_ns"][-1], served["finished_ns"].max())) + 1
        iterations.append(rows)
        requests.append(served)
    most = max(recording.settings.token_budget for recording in recordings)
    names = tuple(f"{i}/{name}" for i, recording in enumerate(recordings) for name in recording.names)
    return replace(
        first,
        iterations=np.concatenate(iterations),
        requests=np.concatenate(requests),
        names=names,
        settings=replace(first.settings, token_budget=most),
        name="+".join(recording.name for recording in recordings[:2]) + "+..." * (len(recordings) > 2),
        decided_by=" and ".join(dict.fromkeys(_decider(recording) for recording in recordings)),
        parameters=(),
        arguments={},
    )


def _decider(recording: Recording) -> str:
    """Who decided, with the rule's numbers."""
    numbers = f"({', '.join(map(str, recording.parameters))})" if recording.parameters else ""
    return recording.decided_by + numbers


def fit_recording(recording: Recording, *, name: str | None = None) -> RecordedFit:
    """Fit a cost model to a recording.

    An iteration lasts from its start to the start of the next one, where the engine was busy (`Recording.busy_ns`).
    Iterations of one size count as their median, weighted by their number, and non-negative least squares fits each
    kind: decodes by clients and context, iterations that read by prompt tokens, clients and A^2 / (A + tokens).
    Context and interference are in the model where t is at least `T_NEEDED` and the term moves an iteration by
    `LEAST_EFFECT` (`llmsched_env.engines.terms`). What the first decode after a prefill adds is there where,
    besides, a Mann-Whitney test has p below `P_NEEDED`. Sizes further than `OUTLIER_SCALES` robust standard
    deviations off are left out.

    Args:
        recording: what the engine did.
        name: of the model; ``None`` for the recording's.

    Raises:
        ConfigError: too few iterations of a kind, or sizes that do not vary.
    """
    rows, y = recording.iterations, recording.busy_ns.astype(np.float64)
    tokens, active = rows["prefill_tokens"], rows["decode_requests"]
    # Clients of the simulator also hold the token that was sampled last, which has no cache yet.
    held = rows["context_tokens"] + active
    reads = tokens > 0
    decode, context, after, left_out = _fit_decodes(recording, active, held, y)
    alpha_d, beta_d, *more_d = decode[0]
    first_ns = more_d.pop(0) if after.used else 0
    gamma_ns = more_d[0] if context.used else 0
    together = _fit_mixed(tokens[reads], active[reads], y[reads] - gamma_ns * held[reads])
    alone = reads & (active == 0)
    prefill = _fit_prefills(tokens[alone], y[alone], *((MIN_ROWS, 2) if together is None else ENOUGH_PREFILLS))
    mixed, interference = None, Term("interference", False, why="too few mixed iterations, or of one size")
    if together is not None:
        (coefficients, _), interference, more = together
        mixed = MixedCost(False, *coefficients, *(0,) * (4 - len(coefficients)))
        left_out += more
    if prefill is not None:
        (alpha_p, beta_p), quality = prefill[0]
        left_out += prefill[1]
    elif mixed is not None and together is not None:
        alpha_p, beta_p, quality = mixed.alpha_ns, mixed.beta_prompt_ns, together[0][1]
    else:
        raise ConfigError(
            f"recording {recording.name!r} has {np.count_nonzero(alone)} iterations that only read prompts, of "
            f"{len(np.unique(tokens[alone]))} sizes, and too few mixed ones: record a load with prompts of several "
            "lengths."
        )
    model = MeasuredCost(
        name or recording.name,
        alpha_p,
        beta_p,
        alpha_d,
        beta_d,
        gamma_decode_ns=gamma_ns,
        prefill_token_cap=recording.settings.token_budget,
        covers_prefill_tokens=(int(tokens[reads].min()), int(tokens[reads].max())),
        covers_active_clients=decode[1].covers,
        first_decode_ns=first_ns,
        mixed=mixed,
    )
    expected = predicted_ns(recording, model)
    return RecordedFit(
        model,
        quality,
        decode[1],
        None if together is None else together[0][1],
        prefill is None,
        context,
        interference,
        after,
        float(y.sum() / expected.sum() - 1),
        left_out,
        f"recording {recording.name!r} of {recording.engine} {recording.version}, {_decider(recording)} decided",
    )


def predicted_ns(recording: Recording, model: MeasuredCost) -> NDArray[np.float64]:
    """(iterations,) what each recorded iteration lasts under a model, in ns."""
    rows = recording.iterations
    tokens, active = rows["prefill_tokens"].astype(np.int64), rows["decode_requests"].astype(np.int64)
    held = rows["context_tokens"] + active
    decode = model.alpha_decode_ns + model.beta_decode_ns * active + model.gamma_decode_ns * held
    decode = decode + model.first_decode_ns * follows(rows)
    read = model.alpha_prefill_ns + model.beta_prefill_ns * tokens
    if model.mixed is not None and (recording.settings.mixes or bool((active[tokens > 0] > 0).any())):
        m = model.mixed
        read = m.alpha_ns + m.beta_prompt_ns * tokens + m.beta_active_ns * active + model.gamma_decode_ns * held
        read = read + m.interference_ns * active * active // np.maximum(1, active + tokens)
    return np.where(tokens > 0, read, decode).astype(np.float64)


def _fit_decodes(
    recording: Recording, active: NDArray[np.int64], held: NDArray[np.int64], y: NDArray[np.float64]
) -> tuple[tuple[list[int], KindFit], Term, AfterPrefill, int]:
    """(coefficients, quality), whether context counts, whether the first after a prefill does, iterations left out."""
    reads = recording.iterations["prefill_tokens"] > 0
    first, active, held, y = follows(recording.iterations)[~reads], active[~reads], held[~reads], y[~reads]
    if len(active) < MIN_ROWS or active.min() == active.max():
        sizes = f"all of {active[0]} requests" if len(active) else "none"
        raise ConfigError(
            f"recording {recording.name!r} has {len(active)} iterations that only decode, {sizes}: record a load in "
            f"which the number of running requests varies, with at least {MIN_ROWS} such iterations."
        )
    none = np.zeros((len(y), 0), np.int64)
    plain, context, left_out = _fit_decode_terms(active, none, held, y)
    after = after_prefill(first, y - _decode_ns(plain[0], active, none, held), y)
    if min(np.count_nonzero(first), np.count_nonzero(~first)) < ENOUGH_DECODES:
        return plain, context, after, left_out
    # Fitted with the sizes, not to what they leave over: those that follow a prefill are often the larger ones.
    flag = first.astype(np.int64)[:, None]
    if _has_full_rank(_cells((active, flag[:, 0]), (active, flag[:, 0]), y)):
        fit, with_context, more = _fit_decode_terms(active, flag, held, y)
        extra_ns, t = fit[0][2], t_of(fit, 2)
        alone = [*fit[0][:2], 0, *fit[0][3:]]
        told = after_prefill(first, y - _decode_ns(alone, active, flag, held), y)
        if told.shown and min(told.extra_ns, extra_ns) > 0 and t >= T_NEEDED:
            return fit, with_context, replace(told, used=True, t=t), more
        after = replace(after, t=t)
    return plain, context, after, left_out


def _decode_ns(
    coefficients: Sequence[int], active: NDArray[np.int64], more: NDArray[np.int64], held: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(decodes,) what they last by a fit of :func:`_fit_decode_terms`."""
    columns = np.column_stack([np.ones(len(active)), active, more, held])
    return columns[:, : len(coefficients)] @ np.array(coefficients, np.float64)


def _fit_decode_terms(
    active: NDArray[np.int64], more: NDArray[np.int64], held: NDArray[np.int64], y: NDArray[np.float64]
) -> tuple[tuple[list[int], KindFit], Term, int]:
    """(coefficients, quality) by clients, ``more`` columns and, where it counts, context; that; iterations left out."""
    bins = np.minimum((held - held.min()) * CONTEXT_BINS // max(1, int(np.ptp(held)) + 1), CONTEXT_BINS - 1)
    others = list(more.T)
    fine = _cells((active, *others, bins), (active, *others, held), y)
    covers = (int(active.min()), int(active.max()))
    names = ("constant", "active clients", *("first after a prefill" for _ in others), "context tokens")
    if not _has_full_rank(fine) or len(fine.y) < 2 * len(names):
        term = Term("context", False, why="it follows from the number of clients, or there are too few sizes")
    else:
        fine, left_out = _trimmed(names, fine, covers)
        fit = least_squares(names, fine.design, fine.y, covers=covers, weights=fine.counts)
        low, high = np.quantile(held, (0.05, 0.95))
        term = tested("context", fit, float(high - low) / float(np.median(y)))
        if term.used:
            return fit, term, left_out
    coarse, left_out = _trimmed(names[:-1], _cells((active, *others), (active, *others), y), covers)
    return least_squares(names[:-1], coarse.design, coarse.y, covers=covers, weights=coarse.counts), term, left_out


def _fit_mixed(
    tokens: NDArray[np.int64], active: NDArray[np.int64], y: NDArray[np.float64]
) -> tuple[tuple[list[int], KindFit], Term, int] | None:
    """The same of iterations that read; ``None`` where too few of them also decode, or all are of one size."""
    if np.count_nonzero(active) < MIN_ROWS:
        return None
    both = active.astype(np.float64) ** 2 / (active + tokens)
    cells = _cells((tokens, active), (tokens, active, both), y)
    names = ("constant", "prompt tokens", "active clients", "interference")
    covers = (int(tokens.min()), int(tokens.max()))
    plain = cells.columns(2)
    if len(plain.y) <= len(names) or not _has_full_rank(plain):
        return None
    term = Term("interference", False, why="sizes vary too little")
    if _has_full_rank(cells) and len(cells.y) >= 2 * len(names):
        trimmed, left_out = _trimmed(names, cells, covers)
        fit = least_squares(names, trimmed.design, trimmed.y, covers=covers, weights=trimmed.counts)
        term = tested("interference", fit, float(np.ptp(both)) / float(np.median(y)))
        if term.used and fit[0][0] + fit[0][1] > 0:
            return fit, term, left_out
    trimmed, left_out = _trimmed(names[:3], plain, covers)
    fit = least_squares(names[:3], trimmed.design, trimmed.y, covers=covers, weights=trimmed.counts)
    return (fit, term, left_out) if fit[0][0] + fit[0][1] > 0 else None


def _fit_prefills(
    tokens: NDArray[np.int64], y: NDArray[np.float64], needed: int, sizes: int
) -> tuple[tuple[list[int], KindFit], int] | None:
    """Of iterations that only read; ``None`` where there are too few, or too few sizes."""
    if len(tokens) < needed or len(np.unique(tokens)) < sizes:
        return None
    covers, names = (int(tokens.min()), int(tokens.max())), ("constant", "prompt tokens")
    cells, left_out = _trimmed(names, _cells((tokens,), (tokens,), y), covers)
    fit = least_squares(names, cells.design, cells.y, covers=covers, weights=cells.counts)
    return (fit, left_out) if sum(fit[0]) > 0 else None


def _cells(same: tuple[NDArray[np.int64], ...], sizes: tuple[NDArray[Any], ...], y: NDArray[np.float64]) -> _Cells:
    """The median duration, and size, of the iterations that agree in ``same``."""
    _, which = np.unique(np.column_stack(same), axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(which.ravel()[order])) + 1)
    x = np.array([[np.median(size[group]) for size in sizes] for group in groups], np.float64)
    return _Cells(x, np.array([np.median(y[group]) for group in groups]), np.array([float(len(g)) for g in groups]))


def _trimmed(names: tuple[str, ...], cells: _Cells, covers: tuple[int, int]) -> tuple[_Cells, int]:
    """Without the sizes that lie far off a first fit, and how many iterations they are; all of them where many do."""
    if len(cells.y) < 3 * len(names):
        return cells, 0
    first, _ = least_squares(names, cells.design, cells.y, covers=covers, weights=cells.counts)
    # A cell's median scatters less, the more iterations it stands for.
    off = np.abs(cells.y - cells.design @ np.array(first, np.float64)) * np.sqrt(cells.counts)
    bad = off > OUTLIER_SCALES * 1.4826 * max(float(np.median(off)), 1.0)
    if cells.counts[bad].sum() > MOST_OUTLIERS * cells.counts.sum() or not _has_full_rank(cells.without(bad)):
        return cells, 0
    return cells.without(bad), int(cells.counts[bad].sum())


def _has_full_rank(cells: _Cells) -> bool:
    design = cells.design
    return bool(np.linalg.matrix_rank(design / np.maximum(design.max(axis=0), 1e-300)) == design.shape[1])
