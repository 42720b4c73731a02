"""What an iteration costs: integer-nanosecond models and their presets.

Every coefficient is a whole number of nanoseconds, so that the clock is exact and the same on every machine.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmsched_env.errors import ConfigError, FileFormatError, PathError, UnknownNameError

__all__ = [
    "FIT",
    "MIXED_FITS",
    "PRESETS",
    "CostModel",
    "MeasuredCost",
    "MixedCost",
    "capacity_requests_per_s",
    "cost_model",
    "mixed_cost",
]

COEFFICIENTS = (
    "alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns", "first_decode_ns",
)  # fmt: skip
"""What iterations that are not mixed last is a sum of these, each times a number."""

MAX_COEFFICIENT_NS = 10**12
"""A thousand seconds for one iteration's share: beyond it a unit was mistaken."""


@dataclass(frozen=True)
class CostModel:
    """Durations of the two kinds of iteration.

    Prefill of a batch with ``tokens`` prompt tokens: ``alpha_prefill_ns + beta_prefill_ns * tokens``, or, where
    ``prefill_levels`` is given, the time of the smallest level whose capacity holds the batch (the paper's form).
    Decode with ``active`` clients whose caches hold ``context`` tokens in sum:
    ``alpha_decode_ns + beta_decode_ns * active + gamma_decode_ns * context``, and ``first_decode_ns`` longer after a
    prefill.

    A subclass may be another law: it overrides :meth:`decode_ns`, says that it is not affine, and has a method
    ``engine_costs(mixed)`` that returns a `llmsched_env.engine.costs.Costs` of the same law. Lower bounds hold for
    decodes that last longer than this class says.

    Attributes:
        name: what tables call it.
        alpha_prefill_ns: fixed time of a prefill.
        beta_prefill_ns: time of each prompt token.
        alpha_decode_ns: fixed time of a decode.
        beta_decode_ns: time of each active client.
        gamma_decode_ns: time of each token of context (0: a decode does not grow with context).
        prefill_token_cap: most prompt tokens in one prefill (a longer prompt is prefilled alone).
        prefill_levels: ``((capacity_tokens, time_ns), ...)``, both strictly increasing; empty for the affine form.
            The last capacity bounds every prefill.
        covers_prefill_tokens: ``(fewest, most)`` prompt tokens in a prefill that the model was fitted on; ``None``
            where that is not known.
        covers_active_clients: ``(fewest, most)`` active clients in a decode that it was fitted on; ``None`` likewise.
        first_decode_ns: what a decode lasts longer right after a prefill, in which no active client had a token. Not
            after a mixed iteration that decodes, nor what one lasts.

    Raises:
        ConfigError: a coefficient that is negative, not whole, or beyond :data:`MAX_COEFFICIENT_NS`; an iteration
            that would take no time; a cap below 1; levels that do not increase or do not hold the cap.
    """

    name: str
    alpha_prefill_ns: int
    beta_prefill_ns: int
    alpha_decode_ns: int
    beta_decode_ns: int
    gamma_decode_ns: int = 0
    prefill_token_cap: int = 2048
    prefill_levels: tuple[tuple[int, int], ...] = field(default=())
    covers_prefill_tokens: tuple[int, int] | None = None
    covers_active_clients: tuple[int, int] | None = None
    first_decode_ns: int = 0

    def __post_init__(self) -> None:
        _check_coefficients(self, COEFFICIENTS)
        if isinstance(self.prefill_token_cap, bool) or not isinstance(self.prefill_token_cap, int):
            raise ConfigError(f"prefill_token_cap = {self.prefill_token_cap!r} is not a whole number of tokens.")
        if self.prefill_token_cap < 1:
            raise ConfigError(
                f"prefill_token_cap = {self.prefill_token_cap} is below 1: no prefill could hold a token."
            )
        if self.alpha_decode_ns + self.beta_decode_ns < 1:
            raise ConfigError("alpha_decode_ns + beta_decode_ns is 0: a decode must take at least 1 ns.")
        self._check_levels()
        for key in ("covers_prefill_tokens", "covers_active_clients"):
            _check_range(key, getattr(self, key))
        if not self.prefill_levels and self.alpha_prefill_ns + self.beta_prefill_ns < 1:
            raise ConfigError("alpha_prefill_ns + beta_prefill_ns is 0: a prefill must take at least 1 ns.")

    def _check_levels(self) -> None:
        levels = self.prefill_levels
        if not levels:
            return
        for i, (capacity, time_ns) in enumerate(levels):
            if not 1 <= time_ns <= MAX_COEFFICIENT_NS or capacity < 1:
                raise ConfigError(f"prefill_levels[{i}] = ({capacity}, {time_ns}): capacity and time start at 1.")
            if i and (capacity <= levels[i - 1][0] or time_ns <= levels[i - 1][1]):
                raise ConfigError(f"prefill_levels[{i}] = ({capacity}, {time_ns}) does not exceed {levels[i - 1]}.")
        if levels[-1][0] < self.prefill_token_cap:
            raise ConfigError(
                f"the largest prefill level holds {levels[-1][0]} tokens but prefill_token_cap is "
                f"{self.prefill_token_cap}: lower the cap or add a level."
            )

    @property
    def is_affine(self) -> bool:
        """Whether makespan = alpha_prefill * K + alpha_decode * D + a constant that no policy can change."""
        return not self.prefill_levels and self.gamma_decode_ns == 0 and self.first_decode_ns == 0

    @property
    def has_capacity(self) -> bool:
        """Whether :func:`capacity_requests_per_s` holds: no levels, no context term.

        ``first_decode_ns`` is paid once after a prefill. It vanishes as prefills grow, as their fixed time does.
        """
        return replace(self, first_decode_ns=0).is_affine

    def prefill_ns(self, tokens: int) -> int:
        """Duration of a prefill of ``tokens`` prompt tokens in sum.

        Raises:
            ConfigError: more tokens than the largest level holds.
        """
        if not self.prefill_levels:
            return self.alpha_prefill_ns + self.beta_prefill_ns * tokens
        for capacity, time_ns in self.prefill_levels:
            if tokens <= capacity:
                return time_ns
        raise ConfigError(f"a prefill of {tokens} tokens exceeds the largest level, {self.prefill_levels[-1][0]}.")

    def decode_ns(self, active: int, context_tokens: int = 0) -> int:
        """Duration of a decode with ``active`` clients that hold ``context_tokens`` in sum, after another decode."""
        return self.alpha_decode_ns + self.beta_decode_ns * active + self.gamma_decode_ns * context_tokens

    def outside_coverage(
        self, min_prefill_tokens: int, max_prefill_tokens: int, min_active: int, max_active: int
    ) -> str | None:
        """What to warn of when a simulation left the range that the model was fitted on.

        Args:
            min_prefill_tokens: fewest prompt tokens in one of its prefills.
            max_prefill_tokens: most prompt tokens in one of its prefills.
            min_active: fewest active clients in one of its decodes.
            max_active: most active clients in one of its decodes.

        Returns:
            The warning, or ``None`` where the simulation stayed inside or the range is not known.
        """
        left = []
        for covered, low, high, what in (
            (self.covers_prefill_tokens, min_prefill_tokens, max_prefill_tokens, "prefills of {} prompt tokens"),
            (self.covers_active_clients, min_active, max_active, "decodes of {} active clients"),
        ):
            if covered is not None and not covered[0] <= low <= high <= covered[1]:
                asked, known = (what.format(f"{a}-{b}") for a, b in ((low, high), covered))
                left.append(f"{asked} (fitted on {known})")
        if not left:
            return None
        return (
            f"cost model {self.name!r} was used outside the range that it was fitted on: {'; '.join(left)}. "
            f"Times there are extrapolated: record such iterations and fit again."
        )

    def with_cap(self, prefill_token_cap: int) -> CostModel:
        """The same model with another cap on the tokens of one prefill."""
        return replace(self, prefill_token_cap=prefill_token_cap)


@dataclass(frozen=True)
class MixedCost:
    """Duration of a mixed iteration: A active clients have a token each while c > 0 prompt tokens are computed.

    Sum form (Zhang et al., arXiv 2606.00516, eq. 11: alpha + (a + b r + c r^2) times all tokens, r the share of active
    clients in them, is this with ``beta_prompt = a``, ``beta_active = a + b``, ``interference = c``):

        T = alpha + beta_prompt c + beta_active A + interference A^2 / (A + c) + gamma_decode * context

    Overlap form (a roofline: one of the two is hidden entirely): T = max(T_p(c), T_d(A)) of the cost model.

    Attributes:
        overlaps: the overlap form, which has no numbers of its own.
        alpha_ns: fixed time.
        beta_prompt_ns: time of each prompt token.
        beta_active_ns: time of each active client.
        interference_ns: what attention over both kinds adds, at its most.

    Raises:
        ConfigError: a coefficient that is negative, not whole, or beyond :data:`MAX_COEFFICIENT_NS`; an iteration that
            would take no time; numbers beside ``overlaps``.
    """

    overlaps: bool = False
    alpha_ns: int = 0
    beta_prompt_ns: int = 0
    beta_active_ns: int = 0
    interference_ns: int = 0

    def __post_init__(self) -> None:
        names = ("alpha_ns", "beta_prompt_ns", "beta_active_ns", "interference_ns")
        _check_coefficients(self, names)
        given = [name for name in names if getattr(self, name)]
        if self.overlaps and given:
            raise ConfigError(f"{given[0]} = {getattr(self, given[0])} beside overlaps=True, which has no numbers.")
        if not self.overlaps and self.alpha_ns + self.beta_prompt_ns < 1:
            raise ConfigError("alpha_ns + beta_prompt_ns is 0: a mixed iteration must take at least 1 ns.")


@dataclass(frozen=True)
class MeasuredCost(CostModel):
    """A cost model from a recording of an engine (docs/calibration.md), which may know mixed iterations, too.

    Attributes:
        mixed: what mixed iterations last, for ``mixed_cost="fitted"``; ``None`` where none were recorded.
    """

    mixed: MixedCost | None = None


def _check_coefficients(model: object, names: tuple[str, ...]) -> None:
    for key in names:
        value = getattr(model, key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{key} = {value!r} is not a whole number of nanoseconds: pass an int.")
        if not 0 <= value <= MAX_COEFFICIENT_NS:
            raise ConfigError(f"{key} = {value} is out of range: coefficients lie in [0, {MAX_COEFFICIENT_NS}] ns.")


def _check_range(key: str, value: object) -> None:
    if value is None:
        return
    whole = isinstance(value, tuple) and all(isinstance(end, int) and not isinstance(end, bool) for end in value)
    if not whole or len(value) != 2 or not 1 <= value[0] <= value[1]:  # type: ignore[arg-type, index]
        raise ConfigError(f"{key} = {value!r} is not a range: pass a pair of ints (fewest, most), 1 <= fewest <= most.")


def _published(name: str, alpha_p_s: float, beta_p_s: float, alpha_d_s: float, beta_d_s: float) -> CostModel:
    alpha_p, beta_p, alpha_d, beta_d = (round(value * 1e9) for value in (alpha_p_s, beta_p_s, alpha_d_s, beta_d_s))
    return CostModel(
        name,
        alpha_p,
        beta_p,
        alpha_d,
        beta_d,
        covers_prefill_tokens=(256, 4096),
        covers_active_clients=(16, 1024),
    )


# Three numbers of the paper (baseline makespan, baseline utilization, bound) fitted by benchmarks/fit_paper_presets.py,
# which also says what each preset predicts. The other rows: calibration files of arXiv 2606.00516's code (Apache-2.0),
# fitted there on prefills of 256-4096 tokens and decodes of 16-1024 sequences, without a context term.
PRESETS: dict[str, CostModel] = {
    model.name: model
    for model in (
        CostModel("llama-65b-paper", 23_240_000, 155_700, 17_870_000, 275_300, prefill_token_cap=2048),
        CostModel("llama-65b-paper-mid", 19_080_000, 179_100, 26_510_000, 228_800, prefill_token_cap=4096),
        CostModel("llama-65b-paper-low", 9_110_000, 196_000, 50_590_000, 105_100, prefill_token_cap=2048),
        _published("qwen3-8b-h200", 0.001279, 2.485e-5, 0.008921, 4.586e-5),
        _published("qwen3-8b-rtx-pro-6000", 0.004691, 5.008e-5, 0.010376, 1.0388e-4),
        _published("qwen3-30b-a3b-h200", 0.017540, 1.347e-5, 0.024418, 2.427e-5),
        _published("qwen3-30b-a3b-rtx-pro-6000", 0.031139, 2.690e-5, 0.022420, 1.2194e-4),
        _published("llama-3.1-8b-h200", 0.000347, 2.420e-5, 0.006791, 4.440e-5),
    )
}


# beta_MB^e(r) = a + b r + c r^2 in seconds a token, from the calibration files of arXiv 2606.00516's code (Apache-2.0),
# fitted there on throughput under vLLM v1, so that a part of the fixed time may be in them; alpha_MB is alpha_p there.
MIXED_FITS: dict[str, tuple[float, float, float]] = {
    "qwen3-8b-h200": (2.493675e-5, 5.192856e-5, 1.477785e-5),
    "qwen3-8b-rtx-pro-6000": (6.293427e-5, 1.968926e-4, 9.898973e-6),
}

MIXED_COSTS = ("sum", "overlap", "fitted")

FIT = "fit:"
"""What a cost model's name begins with where it is read from a file."""

FIT_FILE = "cost.json"
"""Where ``calibrate`` writes it, in the folder of the recording."""

FIT_FORMAT = 1


def mixed_cost(name: str | MixedCost, model: CostModel) -> MixedCost:
    """What mixed iterations cost beside a cost model.

    Args:
        name: "sum": the larger of the two fixed times, and the other terms of a prefill and a decode; "overlap": the
            longer of the two; "fitted": what was measured for this preset (:data:`MIXED_FITS`) or on one's own engine
            (`MeasuredCost`); or a cost of one's own.
        model: the cost model.

    Raises:
        UnknownNameError: no such name.
        ConfigError: prefill levels, or no measurement for this model.
    """
    if isinstance(name, MixedCost):
        cost = name
    elif name == "sum":
        most = max(model.alpha_prefill_ns, model.alpha_decode_ns)
        cost = MixedCost(False, most, model.beta_prefill_ns, model.beta_decode_ns)
    elif name == "overlap":
        cost = MixedCost(True)
    elif name != "fitted":
        raise UnknownNameError("mixed_cost", name, MIXED_COSTS)
    elif isinstance(model, MeasuredCost) and model.mixed is not None:
        cost = model.mixed
    elif isinstance(model, MeasuredCost) or model.name not in MIXED_FITS:
        raise ConfigError(
            f"mixed_cost = 'fitted' with cost model {model.name!r}, for which nothing was measured: take "
            f"{' or '.join(MIXED_FITS)}, or give a MixedCost."
        )
    else:
        a, b, c = MIXED_FITS[model.name]
        cost = MixedCost(False, model.alpha_prefill_ns, *(round(1e9 * slope) for slope in (a, a + b, c)))
    if model.prefill_levels:
        raise ConfigError(
            f"mixed iterations with cost model {model.name!r}, whose prefills have levels: take an affine one."
        )
    return cost


def cost_model(model: str | CostModel) -> CostModel:
    """A cost model by name, or the model itself.

    Args:
        model: a preset; or ``fit:PATH``, a file that ``llmsched engines calibrate`` wrote, or the recording's folder
            that it wrote its file to; or a model.

    Raises:
        UnknownNameError: no such preset.
        PathError: a file that cannot be read.
        FileFormatError: a file that is no cost model.
    """
    if isinstance(model, CostModel):
        return model
    if isinstance(model, str) and model.startswith(FIT):
        return read_fit(model.removeprefix(FIT))
    try:
        return PRESETS[model]
    except (KeyError, TypeError):
        raise UnknownNameError("cost preset", model, PRESETS) from None


def capacity_requests_per_s(
    model: str | CostModel, num_clients: int, mean_prompt_tokens: float, mean_output_tokens: float
) -> float:
    """The rate of arrivals that no schedule can keep up with, in requests per second.

    With J clients, E[P] the mean prompt and E[N] the mean output,

        capacity = 1 / (beta_p E[P] + (E[N] - 1) (alpha_d / J + beta_d))

    Each prompt token costs beta_p, and each output token after the first at least its share of a decode with all J
    clients active. The fixed time of prefills and ``first_decode_ns`` are left out (they vanish as prefills grow), so
    what a schedule can reach lies below: load is measured against this number, and load 1 is already too much.

    Args:
        model: preset name or model; affine.
        num_clients: J, at least 1.
        mean_prompt_tokens: E[P], at least 1.
        mean_output_tokens: E[N], at least 1.

    Raises:
        UnknownNameError: no such preset.
        ConfigError: an argument out of range; a model with prefill levels or a context term, for which the formula
            does not hold; a request that costs nothing.
    """
    model = cost_model(model)
    if not model.has_capacity:
        raise ConfigError(
            f"cost model {model.name!r} has prefill levels or a context term, and the formula for capacity holds for "
            f"affine models: pass an affine one, or give arrivals as requests per second."
        )
    if isinstance(num_clients, bool) or not isinstance(num_clients, int) or num_clients < 1:
        raise ConfigError(f"num_clients = {num_clients!r} is out of range: pass an int of at least 1.")
    for key, value in (("mean_prompt_tokens", mean_prompt_tokens), ("mean_output_tokens", mean_output_tokens)):
        if not (value >= 1.0 and math.isfinite(value)):
            raise ConfigError(f"{key} = {value!r} is out of range: pass a finite number of at least 1.")
    decode_share_ns = model.alpha_decode_ns / num_clients + model.beta_decode_ns
    request_ns = model.beta_prefill_ns * mean_prompt_tokens + (mean_output_tokens - 1.0) * decode_share_ns
    if request_ns <= 0.0:
        raise ConfigError(
            f"cost model {model.name!r} serves outputs of one token at no cost a request: capacity has no limit."
        )
    return 1e9 / request_ns


def as_fit(model: MeasuredCost) -> dict[str, Any]:
    """The model as plain JSON values, which :func:`read_fit` reads."""
    return {"format": FIT_FORMAT, "cost_model": asdict(model)}


def read_fit(path: Path | str) -> MeasuredCost:
    """A cost model from a file that ``llmsched engines calibrate`` wrote, or from the folder that holds its file.

    Raises:
        PathError: no such file, or a folder without a ``cost.json``.
        FileFormatError: it is no cost model of this version.
    """
    path = Path(path).expanduser() if str(path).strip() else Path("(nothing)")
    if path.is_dir():
        if not (path / FIT_FILE).exists():
            raise PathError(
                f"{path} has no {FIT_FILE}: if it is a recording, run 'llmsched engines calibrate {path}' first."
            )
        path = path / FIT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PathError(
            f"cannot read the cost model {path} ({why}): after '{FIT}' give a file that 'llmsched engines calibrate' "
            "wrote, or a folder that holds one."
        ) from error
    try:
        told = json.loads(text)
        if told["format"] != FIT_FORMAT:
            raise FileFormatError(path, f"has format {told['format']!r}: this version reads format {FIT_FORMAT}.")
        plain = dict(told["cost_model"])
        mixed = plain.pop("mixed")
        for name in ("covers_prefill_tokens", "covers_active_clients", "prefill_levels"):
            plain[name] = _tuples(plain[name])
        return MeasuredCost(**plain, mixed=None if mixed is None else MixedCost(**mixed))
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, FileFormatError):
            raise
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise FileFormatError(
            path, f"is no cost model ({what}): give a file that 'llmsched engines calibrate' wrote."
        ) from error


def _tuples(value: Any) -> Any:
    """JSON has lists in place of tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
