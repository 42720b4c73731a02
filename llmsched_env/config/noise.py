"""Iterations that last something else than schedulers believe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmsched_env.config.checks import keep, number
from llmsched_env.config.mechanism import World
from llmsched_env.cost import FIT, CostModel, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

__all__ = ["Noise", "NoiseOptions", "check"]

MAX_NOISE_SD = 2.0
MAX_STRAGGLER_FACTOR = 1e4


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """Noise.

    Attributes:
        noise_sd: standard deviation of the logarithm of the factor, lognormal with mean 1, by which an iteration lasts
            longer than its cost model says; 0 for none. A case fixes its factors as it fixes its requests.
        straggler_probability: chance of an iteration to be a straggler, in [0, 1).
        straggler_factor: what a straggler lasts, in times of what it would: durations grow by probability * (factor -
            1) in the mean. Needs ``straggler_probability``.
        believed_cost: a preset's name, ``fit:PATH`` or a `CostModel` that schedulers are shown and plan with in place
            of the true one; ``None`` for the truth. It has the same cap.
    """

    noise_sd: float = 0.0
    straggler_probability: float = 0.0
    straggler_factor: float = 1.0
    believed_cost: str | CostModel | None = None

    @property
    def noisy(self) -> bool:
        """Whether iterations may last something else than schedulers believe."""
        return self.noise_sd > 0 or self.straggler_probability > 0 or self.believed_cost is not None


@dataclass(frozen=True)
class Noise:
    """The same of one case, as the engine takes it.

    Attributes:
        believed: the cost model that schedulers are shown; ``None`` for the true one.
        noise_sd: standard deviation of the logarithm of the factors.
        straggler_probability: chance of an iteration to be a straggler.
        straggler_factor: what such a one lasts, in times of what it would.
        key: 32 bits that fix all factors of a case.
    """

    name: ClassVar[str] = "noise"
    believed: CostModel | None = None
    noise_sd: float = 0.0
    straggler_probability: float = 0.0
    straggler_factor: float = 1.0
    key: int = 0

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of `llmsched_env.engine.noise.Noise`."""
        return {
            "enabled": True,
            "noise_sd": self.noise_sd,
            "straggler_probability": self.straggler_probability,
            "straggler_factor": self.straggler_factor,
            "key": self.key,
        }


def check(options: NoiseOptions) -> None:
    """Check it.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
        UnknownNameError: a cost model that does not exist.
    """
    if isinstance(options.believed_cost, str) and options.believed_cost.startswith(FIT):
        keep(options, "believed_cost", cost_model(options.believed_cost))
    for name, least, most, limits in (
        ("noise_sd", 0.0, MAX_NOISE_SD, f"[0, {MAX_NOISE_SD:g}]"),
        ("straggler_probability", 0.0, 1.0, "[0, 1)"),
        ("straggler_factor", 1.0, MAX_STRAGGLER_FACTOR, f"[1, {MAX_STRAGGLER_FACTOR:g}]"),
    ):
        value = number(name, getattr(options, name))
        if not least <= value <= most or (name == "straggler_probability" and value == most):
            hint = "" if name == "straggler_factor" else percent_hint(value, most)
            raise ConfigError(f"{name} = {getattr(options, name)!r} is out of range: it lies in {limits}.{hint}")
        keep(options, name, value)
    if (options.straggler_probability > 0) != (options.straggler_factor > 1):
        raise ConfigError(
            f"straggler_probability = {options.straggler_probability} with straggler_factor = "
            f"{options.straggler_factor}: there are stragglers where the one is above 0 and the other above 1. Give "
            "both, or leave both out."
        )
