"""A scenario: everything that a study may vary, checked at the door. Touches no disk and runs no solver."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmsched_env.config import cases, chunked, episodes, kv_cache, machine, migration, noise, queues, slo
from llmsched_env.config.cases import CaseOptions
from llmsched_env.config.checks import changed
from llmsched_env.config.chunked import Mixed, MixedOptions
from llmsched_env.config.episodes import EpisodeOptions
from llmsched_env.config.kv_cache import CAP_LEVELS, KVOptions
from llmsched_env.config.machine import MachineOptions
from llmsched_env.config.mechanism import Mechanism
from llmsched_env.config.migration import Migration, MigrationOptions
from llmsched_env.config.noise import Noise, NoiseOptions
from llmsched_env.config.queues import DEADLINE_ORDERS, JOINT, ORDER_CODES, WAIT_PERCENTS, WINDOWS, QueueOptions
from llmsched_env.config.slo import SLOOptions
from llmsched_env.cost import CostModel, MixedCost, cost_model, mixed_cost
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownArgumentError, UnknownNameError
from llmsched_env.workload import predictor, workload
from llmsched_env.workload.draws import Stream, raw_words

__all__ = ["Scenario", "read_arguments"]

LATER = {"kv_victim": "last", "aging_tokens_per_s": None, "choose_length": False, "kv_prefix_caching": False}
"""Arguments that a description leaves out where they are as usual: they came later, and stored ones are to fit."""

GROUPS = (machine, queues, cases, slo, kv_cache, chunked, migration, noise, episodes)


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

    The arguments of each group are described at its class (in `llmsched_env.config.cases`, `machine`, `queues`, `slo`,
    `kv_cache`, `chunked`, `migration`, `noise`, `episodes`), and all of them in ``help(llmsched_env.env.LLMSchedEnv)``:

    - `CaseOptions`: workload, split, num_requests, load, requests_per_s, lengths, predictor, sd_weight
    - `MachineOptions`: num_clients, cost, prefill_token_cap
    - `QueueOptions`: queue, assignment, order, aging_tokens_per_s, choose_length, stealing
    - `SLOOptions`: ttft_s, tpot_s, uncounted_share, choose_order
    - `KVOptions`: kv_budget_tokens, kv_block_tokens, kv_rule, kv_victim, kv_admission, kv_watermark,
      kv_reserve_tokens, kv_swap_gb_per_s, kv_bytes_per_token, choose_cap, kv_prefix_caching
    - `MixedOptions`: mixed_tokens, mixed_counts_active, mixed_whole_prompts, mixed_within_slack, mixed_cost
    - `MigrationOptions`: cached_share, steal, move_gb_per_s
    - `NoiseOptions`: noise_sd, straggler_probability, straggler_factor, believed_cost
    - `EpisodeOptions`: reward, skip_forced, max_iterations

    Raises:
        ConfigError: a value out of range or options that contradict each other.
        UnknownNameError: a name that does not exist.
    """

    def __post_init__(self) -> None:
        for group in GROUPS:
            group.check(self)
        self._check_requests()
        self._check_joint()
        self._check_sorted_f()
        self._check_choose_length()
        self._check_slo()
        self._check_kv()
        self._check_mixed()
        self._check_migration()
        self._check_beliefs()

    def _check_requests(self) -> None:
        if self.load is not None and not self.cost_model.has_capacity:
            raise ConfigError(
                f"load = {self.load} with cost model {self.cost_model.name!r}, which has prefill levels or a context "
                "term: the capacity that a load is a share of is known for affine models. Take one, or give "
                "requests_per_s in place of load."
            )

    def _check_joint(self) -> None:
        """A joint plan counts prefills and decodes of a batch whose lengths are known, or predicted."""
        if self.order != JOINT:
            return
        for wrong, given, why in (
            (self.queue != "shared", f"queue = {self.queue!r}", "it is the order of one line; set queue='shared'"),
            (self.serving, "SLOs", "it minimises the makespan of a batch; leave ttft_s and tpot_s out"),
            (self.load is not None, f"load = {self.load}", "it plans a batch that is there; leave load out"),
            (
                self.requests_per_s is not None,
                f"requests_per_s = {self.requests_per_s}",
                "it plans a batch that is there; leave requests_per_s out",
            ),
            (self.lengths == "hidden", "lengths = 'hidden'", "it plans lengths; set 'known', or 'predicted'"),
            (self.kv_limited, "a KV budget", "it knows no memory; leave kv_budget_tokens out"),
            (self.mixes, "mixed iterations", "it knows prefills and decodes only; leave mixed_tokens out"),
            (not self.cost_model.is_affine, f"cost = {self.cost_model.name!r}", "it needs an affine cost model"),
        ):
            if wrong:
                raise ConfigError(f"order = 'joint' with {given}: {why}.")

    def _check_sorted_f(self) -> None:
        """Sorted-F makes batches that fit a budget, of requests that are all there."""
        if self.order != "sorted_f":
            return
        for wrong, given, why in (
            (not self.kv_limited, "no KV budget", "its batches are what fits; give kv_budget_tokens"),
            (self.load is not None, f"load = {self.load}", "it sorts a batch that is there; leave load out"),
        ):
            if wrong:
                raise ConfigError(f"order = 'sorted_f' with {given}: {why}.")

    def _check_choose_length(self) -> None:
        """Windows are those of one line, longest first, by lengths that are known or predicted."""
        if not self.choose_length:
            return
        for wrong, given, why in (
            (self.queue != "shared", f"queue = {self.queue!r}", "windows are those of one line; set queue='shared'"),
            (self.serving, "SLOs", "its queue is sorted by length alone; take choose_order, or leave ttft_s out"),
            (self.order != "longest_first", f"order = {self.order!r}", "the order is the action's; leave order out"),
            (self.lengths == "hidden", "lengths = 'hidden'", "it sorts by lengths; set 'known', or 'predicted'"),
            (self.choose_cap, "choose_cap = True", "an action says the one or the other"),
        ):
            if wrong:
                raise ConfigError(f"choose_length = True with {given}: {why}.")

    def _check_slo(self) -> None:
        if self.queue != "shared" and (self.order in DEADLINE_ORDERS or self.choose_order):
            which = "choose_order = True" if self.choose_order else f"order = {self.order!r}"
            raise ConfigError(
                f"{which} with queue = {self.queue!r}: orders by deadline are orders of one line. Set "
                "queue='shared', or leave it out."
            )
        if not self.serving:
            for name, value in (("order", DEADLINE_ORDERS), ("choose_order", (True,)), ("reward", ("goodput",))):
                if getattr(self, name) in value:
                    raise ConfigError(f"{name} = {getattr(self, name)!r} needs SLOs: give ttft_s and tpot_s.")
        elif self.choose_order and self.order != "fcfs":
            raise ConfigError(
                f"order = {self.order!r} with choose_order=True: the order is the action's; set order='fcfs'."
            )

    def _check_kv(self) -> None:
        if self.kv_budget_tokens is None:
            for name in changed(self, KVOptions):
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
        if self.choose_cap and self.choose_order:
            raise ConfigError("choose_cap=True with choose_order=True: an action says the one or the other.")

    def _check_mixed(self) -> None:
        if self.mixed_tokens is None:
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
        if self.mixed_within_slack and not self.serving:
            raise ConfigError(
                "mixed_within_slack = True needs SLOs, which say when tokens are due: give ttft_s and tpot_s."
            )
        if self.mixed_within_slack and self.mixed_whole_prompts:
            raise ConfigError(
                "mixed_within_slack = True with mixed_whole_prompts = True: the first prompt may exceed any number of "
                "tokens then. Leave one out."
            )

    def _check_migration(self) -> None:
        for name in changed(self, MigrationOptions):
            value = getattr(self, name)
            if self.queue != "client":
                raise ConfigError(
                    f"{name} = {value!r} with queue = {self.queue!r}: caches lie with clients that have queues of "
                    "their own. Set queue='client', or leave it out."
                )
            if name == "move_gb_per_s" and not self.migrates:
                raise ConfigError(
                    f"move_gb_per_s = {value!r} where nothing is moved: nobody would read it. Give cached_share or "
                    "steal, or leave it out."
                )
            if not self.stealing and name != "cached_share":
                raise ConfigError(
                    f"{name} = {value!r} with stealing = False: nobody takes anything. Set stealing=True, or leave it "
                    "out."
                )

    def _check_beliefs(self) -> None:
        believed, actual = self.believed_model, self.cost_model
        if believed.prefill_token_cap != actual.prefill_token_cap:
            raise ConfigError(
                f"believed_cost = {believed.name!r} has a prefill_token_cap of {believed.prefill_token_cap}, the cost "
                f"model one of {actual.prefill_token_cap}: the cap bounds a prefill whatever is believed. Give "
                "prefill_token_cap, which holds for both."
            )

    def mixed_iterations(self) -> Mixed | None:
        """What mixed iterations read, and last, as the engine takes it; ``None`` where there are none."""
        cost = self.mixed_cost_model
        if cost is None or self.mixed_tokens is None:
            return None
        believed = None if self.believed_cost is None else self.believed_mixed_cost
        return Mixed(
            self.mixed_tokens,
            self.mixed_counts_active,
            self.mixed_whole_prompts,
            cost,
            believed,
            self.mixed_within_slack,
        )

    def migration(self) -> Migration | None:
        """What lies with clients and what thieves move, as the engine takes it; ``None`` where stealing is free."""
        if not self.migrates:
            return None
        bandwidth = self.move_gb_per_s
        return Migration(
            min(999_999, round(self.cached_share * 10**6)),
            self.steal,
            0 if bandwidth is None else max(1, round(self.kv_bytes_per_token / bandwidth)),
        )

    def noise(self, case: int) -> Noise | None:
        """Why iterations of a case do not last what is believed, as the engine takes it; ``None`` where they do."""
        if not self.noisy:
            return None
        word = raw_words(self.source.name, self.split, case, Stream.JITTER, 1)[0]
        return Noise(
            None if self.believed_cost is None else self.believed_model,
            self.noise_sd,
            self.straggler_probability,
            self.straggler_factor,
            int(word) >> 32,
        )

    def mechanisms(self, case: int, num_requests: int) -> tuple[Mechanism, ...]:
        """The mechanisms that are on, for a case of so many requests, as the engine takes them."""
        mechanisms = (
            self.slo(num_requests),
            self.kv_cache(),
            self.mixed_iterations(),
            self.migration(),
            self.noise(case),
        )
        return tuple(one for one in mechanisms if one is not None)

    @property
    def num_actions(self) -> int:
        """A decode; a prefill for each order or cap to choose from; as many mixed ones, where there are any; waits."""
        variants = len(ORDER_CODES) if self.choose_order else CAP_LEVELS if self.choose_cap else 1
        waits = len(WAIT_PERCENTS) if self.choose_length else 0
        return 1 + (WINDOWS if self.choose_length else variants) * (2 if self.mixes else 1) + waits

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
        plain["cost"] = _told_cost(self.cost_model)
        mixed = self.mixed_cost_model
        plain["mixed_cost"] = None if mixed is None else dataclasses.asdict(mixed)
        for name, usual in LATER.items():
            if plain[name] == usual:  # it came later: stored descriptions still fit
                del plain[name]
        if self.believed_cost is not None:
            plain["believed_cost"] = _told_cost(self.believed_model)
        if self.requests_per_s is None:
            del plain["requests_per_s"]  # it came later, and what is stored is found by these values
        return plain


def _told_cost(model: CostModel) -> dict[str, Any]:
    """A cost model as plain values; a term that came later is left out where it is 0, so that stored keys still fit."""
    plain = dataclasses.asdict(model)
    if model.first_decode_ns == 0:
        del plain["first_decode_ns"]
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
    arguments: dict[str, Any] = {}
    known = {field.name for field in dataclasses.fields(Scenario)}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"{part!r} is not of the form name=value: as in noise_sd=0.5,mixed_tokens=1024.")
        if name not in known:
            raise UnknownNameError("scenario argument", name, known)
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments
