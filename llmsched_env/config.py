"""A scenario: everything that a study may vary, checked at the door. Touches no disk and runs no solver."""

from __future__ import annotations

import ast
import dataclasses
import numbers
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmsched_env.cost import CostModel, MixedCost, cost_model, mixed_cost
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownArgumentError, UnknownNameError
from llmsched_env.units import percent_hint
from llmsched_env.workload import SPLITS, Predictor, Workload, predictor, workload
from llmsched_env.workload.predictors import check_sd_weight

__all__ = [
    "ADMISSIONS",
    "ASSIGNMENTS",
    "CAP_LEVELS",
    "DEADLINE_ORDERS",
    "KV_RULES",
    "LARGEST",
    "LENGTHS",
    "MAX_CLIENTS",
    "MAX_SEED",
    "ORDERS",
    "ORDER_CODES",
    "QUEUES",
    "REWARDS",
    "STEALS",
    "Scenario",
    "checked_options",
    "read_arguments",
    "real",
    "whole",
]

QUEUES = ("client", "shared")
ASSIGNMENTS = ("mip", "lpt", "round_robin")
ORDERS = ("fcfs", "longest_first", "shortest_first")
"""Orders of a queue: by release; by estimated output, longest or shortest first (ties by release)."""

DEADLINE_ORDERS = ("late_last", "late_last_shortest", "late_last_longest")
"""The same where requests are promised a time to first token, with those behind all others that cannot keep it."""

ORDER_CODES = MappingProxyType(
    {
        "fcfs": 0,
        "late_last": 1,
        "shortest_first": 2,
        "late_last_shortest": 3,
        "longest_first": 4,
        "late_last_longest": 5,
    }
)
"""Orders that an action may choose: twice the ranking (release, shortest, longest), plus 1 where late ones go last."""

ADMISSIONS = ("fits", "reserve", "predicted")
"""Who a prefill lets into the KV cache: who fits now and through the next decode; who also fits with what is set aside
for each request; who also fits at every decode to come, if all end as expected (MC-SF, arXiv 2502.07115)."""

KV_RULES = ("keep_growth", "vllm_v0", "vllm_v1")
"""When a full KV cache makes a request give way: this project's rule, and those of vLLM's two schedulers."""

CAP_LEVELS = 8
"""Caps on active clients that are actions: this many eighths of them, ..., one."""

STEALS = ("waiting", "running", "cheaper")
"""What a thief takes of its victim: the head of its queue, the request that it runs, or where fewer tokens move."""

LLAMA_65B_BYTES_PER_TOKEN = 2 * 80 * 8192 * 2
"""Keys and values, layers, width, bytes of a number in half precision."""

LENGTHS = ("known", "predicted", "hidden")
REWARDS = ("excess", "makespan", "idle", "latency", "goodput")
MAX_CLIENTS = 2**20
MAX_SEED = 2**128
MAX_LOAD = 10.0
MAX_KV_TOKENS = 2**40
MAX_NOISE_SD = 2.0
MAX_STRAGGLER_FACTOR = 1e4
MIN_PROMISE_S = 1e-9
LARGEST = MappingProxyType({"ttft_s": 1e6, "tpot_s": 500.0, "kv_swap_gb_per_s": 1e6, "move_gb_per_s": 1e6})
"""Argument -> the largest value that is allowed, which stands for no limit. That of ``tpot_s``, times the longest
output, still fits 64 bits of nanoseconds."""


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
        kv_rule: "keep_growth": a prefill leaves room for the next decode, and where an iteration leaves none, who
            started last gives way at once. "vllm_v0", "vllm_v1": a prefill lets in whoever fits now, and the decode
            that finds no room preempts (docs/memory.md).
        kv_admission: who a prefill lets in. "fits": who fits now and through the next decode. "reserve": ... and with
            ``kv_reserve_tokens`` set aside for each request. "predicted": ... and at every decode to come, if all end
            as estimated.
        kv_watermark: share of the budget that a prefill leaves free; under vLLM's rules rounded down to whole blocks.
        kv_reserve_tokens: output tokens set aside for each request ("reserve" only); ``None`` for its estimate.
        kv_swap_gb_per_s: bandwidth at which the cache of a preempted request is copied out and back, in 10^9 bytes a
            second; ``None``: its tokens are computed again.
        kv_bytes_per_token: of the model's KV cache (where it is swapped, or copied to a thief).
        choose_cap: caps on active clients are actions of their own: 1 is a prefill as ever, 2 to 8 are prefills up to
            7/8, ..., 1/8 of the clients. Needs ``kv_budget_tokens``.
        mixed_tokens: b: action 2 is a mixed iteration, a decode beside which at most b prompt tokens are read; a prompt
            may be read in parts (chunked prefill). ``None`` for no such action. Needs one shared queue.
        mixed_counts_active: each active client takes a token of b (the token budget of Sarathi-Serve and vLLM v1).
        mixed_whole_prompts: prompts are not read in parts (Orca); the first one may exceed b.
        mixed_cost: "sum", "overlap", "fitted" or a `MixedCost`: what such an iteration lasts.
        cached_share: share of each prompt that is cached at the client in whose queue it waits: in [0, 1), in
            millionths, rounded down to whole tokens (client queues only).
        steal: what a thief takes of its victim. "waiting": the head of its queue. "running": the request that it runs;
            it then starts its head itself. "cheaper": the one with fewer tokens to move.
        move_gb_per_s: bandwidth at which a thief copies what is cached of that, in 10^9 bytes a second; ``None``: its
            tokens are computed again.
        noise_sd: standard deviation of the logarithm of the factor, lognormal with mean 1, by which an iteration lasts
            longer than its cost model says; 0 for none. A case fixes its factors as it fixes its requests.
        straggler_probability: chance of an iteration to be a straggler, in [0, 1).
        straggler_factor: what a straggler lasts, in times of what it would: durations grow by probability * (factor -
            1) in the mean. Needs ``straggler_probability``.
        believed_cost: a preset's name or a `CostModel` that schedulers are shown and plan with in place of the true
            one; ``None`` for the truth. It has the same cap.
        reward: "excess", "makespan", "idle", "latency" or "goodput" (see llmsched_env.engine.reward).
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
    kv_rule: str = "keep_growth"
    kv_admission: str = "fits"
    kv_watermark: float = 0.0
    kv_reserve_tokens: int | None = None
    kv_swap_gb_per_s: float | None = None
    kv_bytes_per_token: int = LLAMA_65B_BYTES_PER_TOKEN
    choose_cap: bool = False
    mixed_tokens: int | None = None
    mixed_counts_active: bool = False
    mixed_whole_prompts: bool = False
    mixed_cost: str | MixedCost = "sum"
    cached_share: float = 0.0
    steal: str = "waiting"
    move_gb_per_s: float | None = None
    noise_sd: float = 0.0
    straggler_probability: float = 0.0
    straggler_factor: float = 1.0
    believed_cost: str | CostModel | None = None
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
            ("kv_rule", KV_RULES),
            ("kv_admission", ADMISSIONS),
            ("steal", STEALS),
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
            ("mixed_tokens", 2**31 - 1),
        ):
            if getattr(self, name) is not None or name in ("num_clients", "kv_block_tokens", "kv_bytes_per_token"):
                object.__setattr__(self, name, whole(name, getattr(self, name), 1, most))
        for name in (
            "stealing",
            "skip_forced",
            "choose_order",
            "choose_cap",
            "mixed_counts_active",
            "mixed_whole_prompts",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} is neither True nor False.")
        self._check_serving()
        self._check_prediction()
        self._check_memory()
        self._check_mixed()
        self._check_moves()
        self._check_disturbance()
        self.cost_model  # noqa: B018  # checks the preset and the cap now, not at the first reset
        try:
            hash(self.source)
        except TypeError:
            raise ConfigError(
                f"workload {self.source!r} cannot be hashed, but its cases are kept by it: make it a frozen dataclass."
            ) from None

    def _check_serving(self) -> None:
        if self.load is not None and number("load", self.load) > MAX_LOAD:
            hint = percent_hint(float(self.load), MAX_LOAD)
            raise ConfigError(f"load = {self.load} is out of range: it is above 0 and at most {MAX_LOAD:g}.{hint}")
        for name, least, most in (
            ("load", 0.0, MAX_LOAD),
            ("ttft_s", MIN_PROMISE_S, LARGEST["ttft_s"]),
            ("tpot_s", MIN_PROMISE_S, LARGEST["tpot_s"]),
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real(name, getattr(self, name), least, most))
        share = number("uncounted_share", self.uncounted_share)
        if not 0 <= share < 0.5:
            raise ConfigError(
                f"uncounted_share = {self.uncounted_share!r} is out of range: it lies in [0, 0.5), at each end."
                f"{percent_hint(share, 0.5)}"
            )
        object.__setattr__(self, "uncounted_share", share)
        if self.load is not None and not self.cost_model.is_affine:
            raise ConfigError(
                f"load = {self.load} with cost model {self.cost_model.name!r}, which has prefill levels or a context "
                "term: the capacity that a load is a share of is known for affine models. Take one, or leave out load."
            )
        if (self.ttft_s is None) != (self.tpot_s is None):
            raise ConfigError(f"ttft_s = {self.ttft_s}, tpot_s = {self.tpot_s}: promise both or none.")
        if self.queue != "shared" and (self.order in DEADLINE_ORDERS or self.choose_order):
            which = "choose_order = True" if self.choose_order else f"order = {self.order!r}"
            raise ConfigError(
                f"{which} with queue = {self.queue!r}: orders by deadline are orders of one line. Set "
                "queue='shared', or leave it out."
            )
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
            raise ConfigError(
                f"kv_watermark = {self.kv_watermark!r} is out of range: it lies in [0, 1).{percent_hint(watermark, 1)}"
            )
        object.__setattr__(self, "kv_watermark", watermark)
        if self.kv_swap_gb_per_s is not None:
            found = real("kv_swap_gb_per_s", self.kv_swap_gb_per_s, 1e-6, LARGEST["kv_swap_gb_per_s"])
            object.__setattr__(self, "kv_swap_gb_per_s", found)
        if self.kv_budget_tokens is None:
            for name in self._given("kv_", "choose_cap"):
                if name == "kv_bytes_per_token" and self.move_gb_per_s is not None:
                    continue
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} without a budget: nobody would read it. Give "
                    f"kv_budget_tokens{' or move_gb_per_s' * (name == 'kv_bytes_per_token')}, or leave it out."
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
        if self.kv_reserve_tokens is not None and self.kv_reserve_tokens > self.kv_budget_tokens:
            raise ConfigError(
                f"kv_reserve_tokens = {self.kv_reserve_tokens} exceeds kv_budget_tokens = {self.kv_budget_tokens}: "
                "no two requests would ever run side by side."
            )
        if self.kv_rule != "keep_growth":
            for name, usual, remedy in (
                ("kv_admission", "fits", "it lets in whoever fits now"),
                ("kv_swap_gb_per_s", None, "what it preempts is computed again"),
            ):
                if getattr(self, name) != usual:
                    raise ConfigError(
                        f"{name} = {getattr(self, name)!r} with kv_rule = {self.kv_rule!r}: {remedy}. Leave out "
                        f"{name}, or set kv_rule='keep_growth'."
                    )
        if self.choose_cap and self.choose_order:
            raise ConfigError("choose_cap=True with choose_order=True: an action says the one or the other.")

    def _check_mixed(self) -> None:
        if self.mixed_tokens is None:
            for name in self._given("mixed_"):
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} without mixed iterations: nobody would read it. Give "
                    "mixed_tokens, or leave it out."
                )
            return
        mixed_cost(self.mixed_cost, self.cost_model)
        for name, wrong, remedy in (
            ("queue", self.queue != "shared", "it needs queue='shared'"),
            (
                "kv_rule",
                self.kv_rule == "vllm_v0",
                "vLLM's V0 scheduler runs a prefill or a decode, never both; take kv_rule='vllm_v1'",
            ),
        ):
            if wrong:
                raise ConfigError(
                    f"mixed_tokens = {self.mixed_tokens} with {name} = {getattr(self, name)!r}: {remedy}."
                )

    def _given(self, *prefixes: str) -> Iterator[str]:
        """Names of arguments that begin so, and are not at their defaults."""
        for field in dataclasses.fields(self):
            if field.name.startswith(prefixes) and getattr(self, field.name) != field.default:
                yield field.name

    def _check_moves(self) -> None:
        share = number("cached_share", self.cached_share)
        if not 0 <= share < 1:
            raise ConfigError(
                f"cached_share = {self.cached_share!r} is out of range: it lies in [0, 1) (a prefill computes at "
                f"least one token).{percent_hint(share, 1)}"
            )
        object.__setattr__(self, "cached_share", share)
        if self.move_gb_per_s is not None:
            found = real("move_gb_per_s", self.move_gb_per_s, 1e-6, LARGEST["move_gb_per_s"])
            object.__setattr__(self, "move_gb_per_s", found)
        for name, usual in (("cached_share", 0.0), ("steal", "waiting"), ("move_gb_per_s", None)):
            value = getattr(self, name)
            if value == usual:
                continue
            if self.queue != "client":
                raise ConfigError(
                    f"{name} = {value!r} with queue = {self.queue!r}: caches lie with clients that have queues of "
                    "their own. Set queue='client', or leave it out."
                )
            if name == "move_gb_per_s" and not self.moves:
                raise ConfigError(
                    f"move_gb_per_s = {value!r} where nothing is moved: nobody would read it. Give cached_share or "
                    "steal, or leave it out."
                )
            if not self.stealing and name != "cached_share":
                raise ConfigError(
                    f"{name} = {value!r} with stealing = False: nobody takes anything. Set stealing=True, or leave it "
                    "out."
                )

    def _check_disturbance(self) -> None:
        for name, least, most, limits in (
            ("noise_sd", 0.0, MAX_NOISE_SD, f"[0, {MAX_NOISE_SD:g}]"),
            ("straggler_probability", 0.0, 1.0, "[0, 1)"),
            ("straggler_factor", 1.0, MAX_STRAGGLER_FACTOR, f"[1, {MAX_STRAGGLER_FACTOR:g}]"),
        ):
            found = number(name, getattr(self, name))
            if not least <= found <= most or (name == "straggler_probability" and found == most):
                hint = "" if name == "straggler_factor" else percent_hint(found, most)
                raise ConfigError(f"{name} = {getattr(self, name)!r} is out of range: it lies in {limits}.{hint}")
            object.__setattr__(self, name, found)
        if (self.straggler_probability > 0) != (self.straggler_factor > 1):
            raise ConfigError(
                f"straggler_probability = {self.straggler_probability} with straggler_factor = "
                f"{self.straggler_factor}: there are stragglers where the one is above 0 and the other above 1. Give "
                "both, or leave both out."
            )
        if self.believed_model.prefill_token_cap != self.cost_model.prefill_token_cap:
            raise ConfigError(
                f"believed_cost = {self.believed_model.name!r} has a prefill_token_cap of "
                f"{self.believed_model.prefill_token_cap}, the cost model one of {self.cost_model.prefill_token_cap}: "
                "the cap bounds a prefill whatever is believed. Give prefill_token_cap, which holds for both."
            )

    @property
    def serving(self) -> bool:
        """Whether requests are promised a TTFT and a TPOT."""
        return self.ttft_s is not None

    @property
    def kv_limited(self) -> bool:
        """Whether the KV cache is a budget."""
        return self.kv_budget_tokens is not None

    @property
    def mixes(self) -> bool:
        """Whether there are mixed iterations."""
        return self.mixed_tokens is not None

    @property
    def moves(self) -> bool:
        """Whether stealing is anything but free and of waiting requests, or prompts are cached in part."""
        return self.cached_share > 0 or self.steal != "waiting"

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
        """A decode; a prefill for each order or cap to choose from; and as many mixed ones, where there are any."""
        variants = len(ORDER_CODES) if self.choose_order else CAP_LEVELS if self.choose_cap else 1
        return 1 + variants * (2 if self.mixes else 1)

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

    @property
    def disturbed(self) -> bool:
        """Whether iterations may last something else than schedulers are told."""
        return self.noise_sd > 0 or self.straggler_probability > 0 or self.believed_cost is not None

    @property
    def source(self) -> Workload:
        """The workload itself."""
        return workload(self.workload)

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
    try:
        number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} = {value!r} is not a whole number.") from None
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
