"""What is to be set on a server, and what it is set on: a setting, a machine, and the scenario of the two."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from llmsched_env.baselines import iteration, lagrangian
from llmsched_env.baselines.mixed import mixed_first
from llmsched_env.baselines.rule import Rule
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, MeasuredCost, mixed_cost
from llmsched_env.workload.protocol import Workload

__all__ = ["CHUNKED", "RULES", "VLLM_DEFAULT", "Machine", "Setting"]

CHUNKED = "mixed_first"
"""The rule of chunked prefill: prompts are read beside the decodes whenever there is anything to read."""

BLOCK_TOKENS = 16
"""Of vLLM's KV cache."""

SCHEDULER = "llmsched_env.engines.vllm.LLMSchedScheduler"

RULES: dict[str, Callable[..., Rule]] = {
    CHUNKED: mixed_first,
    "prefill_first": iteration.prefill_first,
    "min_batch": iteration.min_batch,
    "deadline": iteration.deadline,
    "max_wait": iteration.max_wait,
    "tgi": iteration.tgi,
    "lagrangian": lagrangian.lagrangian,
}
"""Rules that are searched, by name: what makes them of their numbers."""

ADMISSIONS: dict[str, dict[str, Any]] = {
    "vllm": {"kv_rule": "vllm_v1", "kv_block_tokens": BLOCK_TOKENS},
    "fits": {"kv_block_tokens": BLOCK_TOKENS},
    "watermark": {"kv_block_tokens": BLOCK_TOKENS, "kv_watermark": 0.05},
}
"""Who is let into a KV cache that is a budget, by name: as vLLM's V1 scheduler does it, and in an engine of one's own:
who fits now and through the next decode, and the same with a twentieth left free."""


@dataclass(frozen=True)
class Setting:
    """What an operator chooses.

    Attributes:
        max_num_seqs: most requests that run at a time.
        tokens: most tokens of an iteration (chunked prefill), or of a prefill.
        rule: one of `RULES`.
        numbers: of the rule.
        order: of the queue: "fcfs", or "late_last" (requests that have missed their TTFT go behind all others).
        admission: one of `ADMISSIONS`; without effect where memory is no limit.
        swaps: whether a preempted request's cache is copied out and back; else it is computed again.
    """

    max_num_seqs: int
    tokens: int
    rule: str = CHUNKED
    numbers: tuple[float, ...] = ()
    order: Literal["fcfs", "late_last"] = "fcfs"
    admission: str = "vllm"
    swaps: bool = False

    @property
    def chunked(self) -> bool:
        """Whether prompts are read beside decodes, in chunks where they are long."""
        return self.rule == CHUNKED

    @property
    def needs_scheduler(self) -> bool:
        """Whether vLLM's flags alone do not express it: it needs this package's scheduler class."""
        return not self.chunked or self.order != "fcfs"

    @property
    def runs_in_vllm(self) -> bool:
        """Whether a vLLM can be set so; what it does where memory is full is its own."""
        return self.admission == "vllm"

    def policy(self) -> Rule:
        """The rule, with its numbers."""
        return RULES[self.rule](*self.numbers)

    @property
    def _rule_words(self) -> str:
        numbers = f"({', '.join(f'{number:g}' for number in self.numbers)})" if self.numbers else ""
        return f"{self.rule}{numbers}"

    def words(self) -> str:
        """The setting on one line."""
        kind = f"chunked prefill, {self.tokens:,} tokens an iteration"
        if not self.chunked:
            kind = f"exclusive prefills of up to {self.tokens:,} tokens by {self._rule_words}"
        order = "first come, first served" if self.order == "fcfs" else "requests that missed their TTFT last"
        memory = "" if self.runs_in_vllm else f", KV admission '{self.admission}'{' with swapping' * self.swaps}"
        return f"{self.max_num_seqs:,} sequences, {kind}, {order}{memory}"

    def short(self) -> str:
        """The same for a table: sequences x tokens, the rule, the order."""
        rule = "chunked" if self.chunked else self._rule_words
        memory = "" if self.runs_in_vllm else f", {self.admission}{', swapping' * self.swaps}"
        return f"{self.max_num_seqs:,} x {self.tokens:,} {rule}, {self.order}{memory}"

    def vllm_command(self, machine: Machine) -> str:
        """The command line that sets a vLLM so.

        Exclusive prefills read a prompt at once, so there the token budget holds the longest prompt.
        """
        longest = 0 if self.chunked else machine.longest_prompt_tokens
        flags = [
            "vllm serve MODEL",
            f"--max-num-seqs {self.max_num_seqs}",
            f"--max-num-batched-tokens {max(self.tokens, longest, self.max_num_seqs)}",
        ]
        if machine.prefix_caching:
            flags.append("--enable-prefix-caching")
        if self.needs_scheduler:
            config = json.dumps({"llmsched": self.scheduler_options(machine)})
            flags += [
                f"--scheduler-cls {SCHEDULER}",
                "--no-async-scheduling",
                f"--additional-config {shlex.quote(config)}",
            ]
        return " \\\n  ".join([" ".join(flags[:3]), *flags[3:]])

    def scheduler_options(self, machine: Machine) -> dict[str, Any]:
        """What `llmsched_env.engines.options.EngineOptions` reads."""
        options: dict[str, Any] = {"policy": self.rule}
        if self.numbers:
            options["parameters"] = [int(number) if number == int(number) else number for number in self.numbers]
        options |= {"ttft_s": machine.ttft_s, "tpot_s": machine.tpot_s, "order": self.order, "cost": machine.cost_name}
        if self.chunked:
            return {**options, "mixed_tokens": self.tokens, "mixed_counts_active": True}
        return {**options, "prefill_token_cap": self.tokens}

    def as_json(self, machine: Machine) -> dict[str, Any]:
        """Plain values, and the command line."""
        plain = {
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.tokens,
            "chunked_prefill": self.chunked,
            "rule": self.rule,
            "parameters": list(self.numbers),
            "order": self.order,
        }
        if machine.kv_tokens is not None:
            plain |= {"kv_admission": self.admission, "kv_swap": self.swaps}
        return {**plain, "words": self.words(), "command": self.vllm_command(machine) if self.runs_in_vllm else None}


VLLM_DEFAULT = Setting(256, 2_048)
"""What vLLM's server has where nobody says anything: `max_num_seqs` and `max_num_batched_tokens` of ``EngineArgs`` in
vLLM 0.32.0, where the accelerator has less than 70 GiB; 1,024 and 8,192 above."""


@dataclass(frozen=True)
class Machine:
    """What settings are tried on, and what is asked of it.

    Attributes:
        cost: what iterations last.
        ttft_s: SLO: seconds to the first token.
        tpot_s: SLO: seconds per output token after the first.
        mixed_cost: what chunked iterations last: "sum", "overlap" or "fitted".
        kv_tokens: tokens that the KV cache holds; ``None`` where memory is no limit.
        swap_gb_per_s: bandwidth of swapping, in 10^9 bytes a second; ``None`` where nothing is swapped.
        kv_bytes_per_token: of the model's KV cache; ``None`` where nobody needs it.
        prefix_caching: whether blocks that prompts begin with are kept and shared, by vLLM's admission; needs a budget.
        longest_prompt_tokens: of the trace.
        cost_name: what the cost model was asked for by.
    """

    cost: CostModel
    ttft_s: float
    tpot_s: float
    mixed_cost: str = "sum"
    kv_tokens: int | None = None
    swap_gb_per_s: float | None = None
    kv_bytes_per_token: int | None = None
    prefix_caching: bool = False
    longest_prompt_tokens: int = 0
    cost_name: str = ""

    def scenario(self, setting: Setting, load: Workload) -> Scenario:
        """A setting of this machine under a load.

        Raises:
            ConfigError: a setting that the simulator refuses.
        """
        arguments: dict[str, Any] = {"prefill_token_cap": setting.tokens}
        if setting.chunked:
            arguments = {"mixed_tokens": setting.tokens, "mixed_counts_active": True, "mixed_cost": self.mixed_cost}
        if self.kv_tokens is not None:
            arguments |= {"kv_budget_tokens": self.kv_tokens, **ADMISSIONS[setting.admission]}
            arguments["kv_prefix_caching"] = self.prefix_caching and setting.runs_in_vllm
            if setting.swaps:
                arguments |= {
                    "kv_swap_gb_per_s": self.swap_gb_per_s,
                    "kv_bytes_per_token": self.kv_bytes_per_token,
                }
        return Scenario(
            load,
            cost=self.cost,
            num_clients=setting.max_num_seqs,
            queue="shared",
            order=setting.order,
            lengths="hidden",
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            **arguments,
        )

    def mixing(self, kind: str | None) -> Machine:
        """With what chunked iterations last; ``None``: as measured, where the cost model knows, else the sum."""
        measured = isinstance(self.cost, MeasuredCost) and self.cost.mixed is not None
        found = replace(self, mixed_cost=kind or ("fitted" if measured else "sum"))
        mixed_cost(found.mixed_cost, self.cost)  # complains now
        return found
