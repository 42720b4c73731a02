"""A scenario: everything that a study may vary, checked at the door. Touches no disk and runs no solver."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownNameError
from llmsched_env.workload import SPLITS, Predictor, Workload, predictor, workload
from llmsched_env.workload.predictors import check_sd_weight

__all__ = [
    "ADMISSIONS",
    "ASSIGNMENTS",
    "CAP_LEVELS",
    "DEADLINE_ORDERS",
    "LENGTHS",
    "MAX_CLIENTS",
    "ORDERS",
    "QUEUES",
    "REWARDS",
    "Scenario",
    "checked_options",
    "merged",
    "real",
    "whole",
]

QUEUES = ("client", "shared")
ASSIGNMENTS = ("mip", "lpt", "round_robin")
ORDERS = ("fcfs", "longest_first", "shortest_first")
"""Orders of a queue: by release; by estimated output, longest or shortest first (ties by release)."""

DEADLINE_ORDERS = ("late_last", "late_last_shortest", "late_last_longest")
"""The same where requests are promised a time to first token, with those behind all others that cannot keep it."""

ADMISSIONS = ("fits", "reserve", "predicted")
"""Who a prefill lets into the KV cache: who fits now and through the next decode; who also fits with what is set aside
for each request; who also fits at every decode to come, if all end as expected (MC-SF, arXiv 2502.07115)."""

CAP_LEVELS = 8
"""Caps on active clients that are actions: this many eighths of them, ..., one."""

LLAMA_65B_BYTES_PER_TOKEN = 2 * 80 * 8192 * 2
"""Keys and values, layers, width, bytes of a number in half precision."""

LENGTHS = ("known", "predicted", "hidden")
REWARDS = ("excess", "makespan", "idle", "latency", "goodput")
MAX_CLIENTS = 2**20
MAX_LOAD = 10.0
MAX_KV_TOKENS = 2**40
MIN_PROMISE_S = 1e-9
MAX_TTFT_S = 1e6
MAX_TPOT_S = 500.0
"""Times the longest output it still fits 64 bits of nanoseconds."""


@dataclass(frozen=True)
class Scenario:
    """What is served, by what, in which order, and what may be known of it.

    Attributes:
        workload: a name ("gsm8k", "gsm8k-smooth", "lognormal", ...), the path of a CSV file, or a `Workload`.
        split: "train", "validation" or "test": disjoint pools of cases.
        num_clients: J, the decode slots.
        num_requests: requests of a case; ``None`` for the workload's own number, else drawn with replacement.
        cost: a preset's name or a `CostModel`.
        prefill_token_cap: most prompt tokens in one prefill; ``None`` for the cost model's own.
        queue: "client" for a queue at each client, filled by ``assignment``; "shared" for one queue.
        assignment: "mip", "lpt" or "round_robin" (client queues only).
        order: "fcfs", "longest_first" or "shortest_first" by estimated output, within each queue. With promises also
            "late_last", "late_last_longest" and "late_last_shortest": behind all others goes who cannot have the first
            token in time any more.
        stealing: idle clients with an empty queue take waiting requests of others (client queues only).
        lengths: what a scheduler knows of output lengths. "known": the truth. "predicted": what ``predictor`` says.
            "hidden": nothing but the population's mean. Assignment, order, stealing and the observation all use the
            same estimate.
        predictor: "population", "prompt", "noisy", "noisy:0.8", ..., or a `Predictor`; ``None`` for the workload's own
            ``predicted_tokens`` (lengths "predicted" only).
        sd_weight: k: a predictor's mean + k standard deviations is the estimate.
        load: rate of arrivals as a share of what the clients can take at most, for the case's own lengths; ``None``
            for the workload's own times.
        ttft_s: promised time to first token, with ``tpot_s`` and one shared queue; ``None`` for no promises.
        tpot_s: promised time per output token after the first.
        uncounted_share: share of the requests at the beginning (the warm-up), and as many at the end (the cut end),
            that are served like the others but left out of goodput and latencies.
        choose_order: each order is an action of its own: 1 is a prefill by "fcfs", 2 "late_last", 3 "shortest_first", 4
            "late_last_shortest", 5 "longest_first", 6 "late_last_longest". Needs promises.
        kv_budget_tokens: tokens that the KV cache holds; clients are then slots, and how many can be active depends on
            what they hold. ``None`` where it is no limit. Needs one shared queue.
        kv_block_tokens: tokens that are allocated at a time.
        kv_admission: who a prefill lets in. "fits": who fits now and through the next decode. "reserve": ... and with
            ``kv_reserve_tokens`` set aside for each request. "predicted": ... and at every decode to come, if all end
            as estimated.
        kv_watermark: share of the budget that a prefill leaves free.
        kv_reserve_tokens: output tokens set aside for each request ("reserve" only); ``None`` for its estimate.
        kv_swap_gb_per_s: bandwidth at which the cache of a preempted request is copied out and back, in 10^9 bytes a
            second; ``None``: its tokens are computed again.
        kv_bytes_per_token: of the model's KV cache (swapping only).
        choose_cap: caps on active clients are actions of their own: 1 is a prefill as ever, 2 to 8 are prefills up to
            7/8, ..., 1/8 of the clients. Needs ``kv_budget_tokens``.
        reward: "excess", "makespan", "idle", "latency" or "goodput" (see llmsched_env.core.reward).
        skip_forced: a step goes on through iterations that offer no choice.
        max_iterations: truncate an episode there; ``None`` for no horizon.

    Raises:
        ConfigError: a value out of range or options that contradict each other.
        UnknownNameError: a name that does not exist.
    """

    workload: str | Path | Workload = "gsm8k"
    split: str = "train"
    num_clients: int = 200
    num_requests: int | None = None
    cost: str | CostModel = "llama-65b-paper"
    prefill_token_cap: int | None = None
    queue: str = "client"
    assignment: str = "mip"
    order: str = "longest_first"
    stealing: bool = True
    lengths: str = "known"
    predictor: str | Predictor | None = None
    sd_weight: float = 0.0
    load: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    uncounted_share: float = 0.1
    choose_order: bool = False
    kv_budget_tokens: int | None = None
    kv_block_tokens: int = 1
    kv_admission: str = "fits"
    kv_watermark: float = 0.0
    kv_reserve_tokens: int | None = None
    kv_swap_gb_per_s: float | None = None
    kv_bytes_per_token: int = LLAMA_65B_BYTES_PER_TOKEN
    choose_cap: bool = False
    reward: str = "excess"
    skip_forced: bool = False
    max_iterations: int | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("split", SPLITS),
            ("queue", QUEUES),
            ("assignment", ASSIGNMENTS),
            ("order", ORDERS + DEADLINE_ORDERS),
            ("lengths", LENGTHS),
            ("kv_admission", ADMISSIONS),
            ("reward", REWARDS),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)
        for name, most in (
            ("num_clients", MAX_CLIENTS),
            ("num_requests", 2**24),
            ("prefill_token_cap", 2**31 - 1),
            ("max_iterations", 2**62),
            ("kv_budget_tokens", MAX_KV_TOKENS),
            ("kv_block_tokens", 2**16),
            ("kv_reserve_tokens", MAX_KV_TOKENS),
            ("kv_bytes_per_token", 2**40),
        ):
            if getattr(self, name) is not None or name in ("num_clients", "kv_block_tokens", "kv_bytes_per_token"):
                object.__setattr__(self, name, whole(name, getattr(self, name), 1, most))
        for name in ("stealing", "skip_forced", "choose_order", "choose_cap"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither True nor False.")
        self._check_serving()
        self._check_prediction()
        self._check_memory()
        self.cost_model  # noqa: B018  # checks the preset and the cap now, not at the first reset
        try:
            hash(self.source)
        except TypeError:
            raise ConfigError(
                f"workload {self.source!r} cannot be hashed, but its cases are kept by it: make it a frozen dataclass."
            ) from None

    def _check_serving(self) -> None:
        for name, least, most in (
            ("load", 0.0, MAX_LOAD),
            ("ttft_s", MIN_PROMISE_S, MAX_TTFT_S),
            ("tpot_s", MIN_PROMISE_S, MAX_TPOT_S),
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), least, most))
        share = number("uncounted_share", self.uncounted_share)
        if not 0 <= share < 0.5:
            raise ConfigError(
                f"uncounted_share = {self.uncounted_share!r} is out of range: it lies in [0, 0.5), at each end."
            )
        object.__setattr__(self, "uncounted_share", share)
        if self.load is not None and not self.cost_model.is_affine:
            raise ConfigError(
                f"load = {self.load} with cost model {self.cost_model.name!r}, which has prefill levels or a context "
                "term: the capacity that a load is a share of is known for affine models. Take one, or leave out load."
            )
        if (self.ttft_s is None) != (self.tpot_s is None):
            raise ConfigError(f"ttft_s = {self.ttft_s}, tpot_s = {self.tpot_s}: promise both or none.")
        if self.serving and self.queue != "shared":
            raise ConfigError(f"ttft_s = {self.ttft_s} with queue = {self.queue!r}: promises need queue='shared'.")
        if not self.serving:
            for name, value in (("order", DEADLINE_ORDERS), ("choose_order", (True,)), ("reward", ("goodput",))):
                if getattr(self, name) in value:
                    raise ConfigError(f"{name} = {getattr(self, name)!r} needs promises: give ttft_s and tpot_s.")
        elif self.choose_order and self.order != "fcfs":
            raise ConfigError(
                f"order = {self.order!r} with choose_order=True: the order is the action's; set order='fcfs'."
            )

    def _check_memory(self) -> None:
        watermark = number("kv_watermark", self.kv_watermark)
        if not 0 <= watermark < 1:
            raise ConfigError(f"kv_watermark = {self.kv_watermark!r} is out of range: it lies in [0, 1).")
        object.__setattr__(self, "kv_watermark", watermark)
        if self.kv_swap_gb_per_s is not None:
            found = real("kv_swap_gb_per_s", self.kv_swap_gb_per_s, 1e-6, 1e6)
            object.__setattr__(self, "kv_swap_gb_per_s", found)
        if self.kv_budget_tokens is None:
            usual = {field.name: field.default for field in dataclasses.fields(self)}
            for name, value in usual.items():
                if (name.startswith("kv_") or name == "choose_cap") and getattr(self, name) != value:
                    raise ConfigError(
                        f"{name} = {getattr(self, name)!r} without a budget: nobody would read it. Give "
                        "kv_budget_tokens, or leave it out."
                    )
            return
        if self.queue != "shared":
            raise ConfigError(
                f"kv_budget_tokens = {self.kv_budget_tokens} with queue = {self.queue!r}: it needs queue='shared'."
            )
        if self.kv_block_tokens > self.kv_budget_tokens:
            raise ConfigError(
                f"kv_block_tokens = {self.kv_block_tokens} exceeds kv_budget_tokens = {self.kv_budget_tokens}: "
                "not one block would fit."
            )
        if self.kv_reserve_tokens is not None and self.kv_admission != "reserve":
            raise ConfigError(
                f"kv_reserve_tokens = {self.kv_reserve_tokens} with kv_admission = {self.kv_admission!r}: only "
                "'reserve' sets anything aside."
            )
        if self.choose_cap and self.choose_order:
            raise ConfigError("choose_cap=True with choose_order=True: an action says the one or the other.")

    @property
    def serving(self) -> bool:
        """Whether requests are promised a TTFT and a TPOT."""
        return self.ttft_s is not None

    @property
    def kv_limited(self) -> bool:
        """Whether the KV cache is a budget."""
        return self.kv_budget_tokens is not None

    @property
    def shows_lengths(self) -> bool:
        """Whether a scheduler is given the true output lengths, be it as a prediction without error."""
        exact = self.predictor is not None and getattr(predictor(self.predictor), "exact", False)
        return self.lengths == "known" or exact

    @property
    def objective(self) -> str:
        """The metric that policies are tuned and scored by: ``goodput`` with promises, else ``makespan_s``."""
        return "goodput" if self.serving else "makespan_s"

    @property
    def num_actions(self) -> int:
        """A decode, and one prefill for each order or cap to choose from."""
        if self.choose_cap:
            return 1 + CAP_LEVELS
        return 1 + (len(ORDERS + DEADLINE_ORDERS) if self.choose_order else 1)

    def _check_prediction(self) -> None:
        object.__setattr__(self, "sd_weight", check_sd_weight(self.sd_weight))
        if self.predictor is not None:
            predictor(self.predictor)
            if self.lengths != "predicted":
                raise ConfigError(
                    f"predictor = {self.predictor!r} but lengths = {self.lengths!r}: nobody would read what it says. "
                    "Set lengths='predicted', or leave it out."
                )
        elif self.sd_weight != 0:
            raise ConfigError(
                f"sd_weight = {self.sd_weight} but there is no predictor to state a standard deviation: give one "
                "(predictor='prompt'), or leave it out."
            )

    @property
    def cost_model(self) -> CostModel:
        """The cost model, with this scenario's cap."""
        model = cost_model(self.cost)
        return model if self.prefill_token_cap is None else model.with_cap(self.prefill_token_cap)

    @property
    def source(self) -> Workload:
        """The workload itself."""
        return workload(self.workload)

    def replace(self, **changes: Any) -> Scenario:
        """The same scenario with some arguments changed.

        Raises:
            UnknownNameError: no such argument.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in fields:
                raise UnknownNameError("scenario argument", name, fields)
        return dataclasses.replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """The arguments as plain JSON values; workload and predictor by name only where that stands for them."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain["workload"] = _told(self.source, workload)
        plain["predictor"] = None if self.predictor is None else _told(predictor(self.predictor), predictor)
        plain["cost"] = dataclasses.asdict(self.cost_model)
        return plain


def _told(item: Any, lookup: Callable[[Any], Any]) -> str:
    """The item's name if that leads back to it, else all that its class shows of it."""
    name: str = item.name
    try:
        return name if lookup(name) == item else repr(item)
    except LLMSchedError:
        return repr(item)


def merged(scenario: Scenario | None, arguments: dict[str, Any]) -> Scenario:
    """``scenario``, or the default one, with the arguments that an environment was made with.

    Raises:
        ConfigError: not a scenario, or one that contradicts an argument.
        UnknownNameError: no such argument.
    """
    if scenario is not None and not isinstance(scenario, Scenario):
        raise ConfigError(f"scenario = {scenario!r} is not a Scenario: make one with Scenario(...).")
    found = (scenario or Scenario()).replace(**arguments)
    for name, value in arguments.items():
        given = getattr(scenario, name, value)
        # An explicit default looks like none given; but the workload is what an id is about.
        if given != value and (name == "workload" or given != getattr(Scenario, name)):
            raise ConfigError(
                f"scenario has {name} = {given!r}, but {name} = {value!r} is given beside it or fixed by the "
                "environment id: leave one out, or pass the scenario to the environment's class itself."
            )
    return found


def checked_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """The options of a reset.

    Raises:
        ConfigError: not a dictionary.
        UnknownNameError: an option that does not exist.
    """
    if not isinstance(options, dict | None):
        raise ConfigError(f"options = {options!r} is not a dictionary: give one, with {' or '.join(sorted(known))}.")
    for name in options or {}:
        if name not in known:
            raise UnknownNameError("reset option", name, known)
    return options or {}


def whole(name: str, value: object, least: int, most: int) -> int:
    """``value`` as an integer in [least, most].

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} = {value!r} is not a whole number.")
    number = int(value.__index__())
    if not least <= number <= most:
        raise ConfigError(f"{name} = {value} is out of range: it lies in [{least}, {most}].")
    return number


def number(name: str, value: object) -> float:
    """``value`` as a float.

    Raises:
        ConfigError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} = {value!r} is not a number.")
    return float(value)


def real(name: str, value: object, least: float, most: float) -> float:
    """``value`` as a float above 0, at least ``least`` and at most ``most``.

    Raises:
        ConfigError: it is none.
    """
    found = number(name, value)
    if not (found > 0 and least <= found <= most):
        low = f"at least {least:g}" if least > 0 else "above 0"
        raise ConfigError(f"{name} = {value} is out of range: it is {low} and at most {most:g}.")
    return found
