"""What serves: its decode slots and what its iterations last."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched_env.config.checks import keep, whole
from llmsched_env.cost import FIT, CostModel, cost_model

__all__ = ["MAX_CLIENTS", "MachineOptions", "check"]

MAX_CLIENTS = 2**20


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The accelerator.

    Attributes:
        num_clients: J, the decode slots.
        cost: a preset's name, ``fit:PATH`` for one from a recording (docs/calibration.md), or a `CostModel`.
        prefill_token_cap: most prompt tokens in one prefill; ``None`` for the cost model's own.
    """

    num_clients: int = 200
    cost: str | CostModel = "llama-65b-paper"
    prefill_token_cap: int | None = None

    @property
    def cost_model(self) -> CostModel:
        """The cost model, with this scenario's cap."""
        model = cost_model(self.cost)
        return model if self.prefill_token_cap is None else model.with_cap(self.prefill_token_cap)


def check(options: MachineOptions) -> None:
    """Check it: the preset and the cap now, not at the first reset.

    Raises:
        ConfigError: a value out of range.
        UnknownNameError: a preset that does not exist.
    """
    if isinstance(options.cost, str) and options.cost.startswith(FIT):
        keep(options, "cost", cost_model(options.cost))  # read once: the file may change
    keep(options, "num_clients", whole("num_clients", options.num_clients, 1, MAX_CLIENTS))
    if options.prefill_token_cap is not None:
        cap = whole("prefill_token_cap", options.prefill_token_cap, 1, 2**31 - 1)
        keep(options, "prefill_token_cap", cap)
    options.cost_model  # noqa: B018  # raises where there is no such preset, or the cap does not go with it
