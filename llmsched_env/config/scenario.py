"""A scenario: everything that a study may vary, checked at the door. Touches no disk and runs no solver."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmsched_env.config import cases, chunked, episodes, kv_cache, machine, migration, noise, queues, slo
from llmsched_env.config.cases import CaseOptions
from llmsched_env.config.chunked import MixedOptions
from llmsched_env.config.episodes import EpisodeOptions
from llmsched_env.config.kv_cache import CAP_LEVELS, KVOptions
from llmsched_env.config.machine import MachineOptions
from llmsched_env.config.migration import MigrationOptions
from llmsched_env.config.noise import NoiseOptions
from llmsched_env.config.queues import ORDER_CODES, QueueOptions
from llmsched_env.config.slo import SLOOptions
from llmsched_env.cost import CostModel, MixedCost, cost_model, mixed_cost
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownArgumentError, UnknownNameError
from llmsched_env.workload import predictor, workload

__all__ = ["Scenario", "read_arguments"]

CHECKS = (machine, queues, cases, slo, kv_cache, chunked, migration, noise, episodes)


@dataclass(frozen=True)
class Scenario(
    # Dataclasses take the fields of the last base first.
    EpisodeOptions,
    NoiseOptions,
    MigrationOptions,
    MixedOptions,
    KVOptions,
    SLOOptions,
    QueueOptions,
    MachineOptions,
    CaseOptions,
):
    """What is served, by what, in which order, and what may be known of it.

    The arguments of each group are described at its class:

    - `CaseOptions`: workload, split, num_requests, load, lengths, predictor, sd_weight
    - `MachineOptions`: num_clients, cost, prefill_token_cap
    - `QueueOptions`: queue, assignment, order, stealing
    - `SLOOptions`: ttft_s, tpot_s, uncounted_share, choose_order
    - `KVOptions`: kv_budget_tokens, kv_block_tokens, kv_rule, kv_admission, kv_watermark, kv_reserve_tokens,
      kv_swap_gb_per_s, kv_bytes_per_token, choose_cap
    - `MixedOptions`: mixed_tokens, mixed_counts_active, mixed_whole_prompts, mixed_cost
    - `MigrationOptions`: cached_share, steal, move_gb_per_s
    - `NoiseOptions`: noise_sd, straggler_probability, straggler_factor, believed_cost
    - `EpisodeOptions`: reward, skip_forced, max_iterations

    Raises:
        ConfigError: a value out of range or options that contradict each other.
        UnknownNameError: a name that does not exist.
    """

    def __post_init__(self) -> None:
        for group in CHECKS:
            group.check(self)

    @property
    def num_actions(self) -> int:
        """A decode; a prefill for each order or cap to choose from; and as many mixed ones, where there are any."""
        variants = len(ORDER_CODES) if self.choose_order else CAP_LEVELS if self.choose_cap else 1
        return 1 + variants * (2 if self.mixes else 1)

    @property
    def mixed_cost_model(self) -> MixedCost | None:
        """What mixed iterations last; ``None`` where there are none."""
        return mixed_cost(self.mixed_cost, self.cost_model) if self.mixes else None

    @property
    def believed_mixed_cost(self) -> MixedCost | None:
        """What schedulers believe that mixed iterations last; ``None`` where there are none."""
        return mixed_cost(self.mixed_cost, self.believed_model) if self.mixes else None

    @property
    def believed_model(self) -> CostModel:
        """The cost model that schedulers are shown, with this scenario's cap."""
        if self.believed_cost is None:
            return self.cost_model
        model = cost_model(self.believed_cost)
        return model if self.prefill_token_cap is None else model.with_cap(self.prefill_token_cap)

    def replace(self, **changes: Any) -> Scenario:
        """The same scenario with some arguments changed.

        Raises:
            UnknownArgumentError: no such argument.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in fields:
                raise UnknownArgumentError(name, fields)
        return dataclasses.replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """The arguments as plain JSON values; workload and predictor by name only where that stands for them."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["workload"] = _told(self.source, workload)
        plain["predictor"] = None if self.predictor is None else _told(predictor(self.predictor), predictor)
        plain["cost"] = dataclasses.asdict(self.cost_model)
        mixed = self.mixed_cost_model
        plain["mixed_cost"] = None if mixed is None else dataclasses.asdict(mixed)
        if self.believed_cost is not None:
            plain["believed_cost"] = dataclasses.asdict(self.believed_model)
        return plain


def _told(item: Any, lookup: Callable[[Any], Any]) -> str:
    """The item's name if that leads back to it, else all that its class shows of it."""
    name: str = item.name
    try:
        return name if lookup(name) == item else repr(item)
    except LLMSchedError:
        return repr(item)


def read_arguments(text: str) -> dict[str, Any]:
    """Arguments of a scenario as a command line has them: ``name=value,name=value``.

    Values are Python's numbers, ``True``, ``False`` and ``None``; anything else is a name.

    Raises:
        ConfigError: a part that is not of this form.
        UnknownNameError: no such argument.
    """
    found: dict[str, Any] = {}
    known = {field.name for field in dataclasses.fields(Scenario)}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"{part!r} is not of the form name=value: as in noise_sd=0.5,mixed_tokens=1024.")
        if name not in known:
            raise UnknownNameError("scenario argument", name, known)
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
