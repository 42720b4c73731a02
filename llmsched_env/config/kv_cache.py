"""The KV cache as a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from llmsched_env.config.checks import (
    LARGEST,
    MAX_KV_TOKENS,
    check_flags,
    check_names,
    keep,
    number,
    real,
    whole,
)
from llmsched_env.config.mechanism import World
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

__all__ = [
    "ADMISSIONS",
    "CAP_LEVELS",
    "KV_RULES",
    "KV_VICTIMS",
    "LLAMA_65B_BYTES_PER_TOKEN",
    "KVCache",
    "KVOptions",
    "check",
]

Admission = Literal["fits", "reserve", "predicted"]
ADMISSIONS: tuple[Admission, ...] = get_args(Admission)
"""Who a prefill lets into the KV cache: who fits now and through the next decode; who also fits with what is set aside
for each request; who also fits at every decode to come, if all end as expected (MC-SF, arXiv 2502.07115)."""

KVRule = Literal["keep_growth", "vllm_v0", "vllm_v1"]
KV_RULES: tuple[KVRule, ...] = get_args(KVRule)
"""When a full KV cache makes a request give way: this project's rule, and those of vLLM's two schedulers."""

KVVictim = Literal["last", "least_estimate"]
KV_VICTIMS: tuple[KVVictim, ...] = get_args(KVVictim)
"""Who gives way: the client that started last, or that with the smallest estimated output (A_min, arXiv 2508.14544)."""

CAP_LEVELS = 8
"""Caps on active clients that are actions: this many eighths of them, ..., one."""

MAX_PREFIX_BLOCKS = 2**22
"""Most blocks of a cache whose blocks are shared: 67 million tokens in blocks of 16."""

LLAMA_65B_BYTES_PER_TOKEN = 2 * 80 * 8192 * 2
"""Keys and values, layers, width, bytes of a number in half precision."""


@dataclass(frozen=True, kw_only=True)
class KVOptions:
    """Memory.

    Attributes:
        kv_budget_tokens: tokens that the KV cache holds; clients are then slots, and how many can be active depends on
            what they hold. ``None`` where it is no limit. Needs one shared queue.
        kv_block_tokens: tokens that are allocated at a time.
        kv_rule: "keep_growth": a prefill leaves room for the next decode, and where an iteration leaves none, who
            started last gives way at once. "vllm_v0", "vllm_v1": a prefill lets in whoever fits now, and the decode
            that finds no room preempts (docs/memory.md).
        kv_victim: who gives way under "keep_growth". "last": the client that started last. "least_estimate": the one
            with the smallest estimate of its output, which is at least what it has emitted; of equal ones the last.
        kv_admission: who a prefill lets in. "fits": who fits now and through the next decode. "reserve": ... and with
            ``kv_reserve_tokens`` set aside for each request. "predicted": ... and at every decode to come, if all end
            as estimated.
        kv_watermark: share of the budget that a prefill leaves free; under vLLM's rules rounded down to whole blocks.
        kv_reserve_tokens: output tokens set aside for each request ("reserve" only); ``None`` for its estimate.
        kv_swap_gb_per_s: bandwidth at which the cache of a preempted request is copied out and back, in 10^9 bytes a
            second; ``None``: its tokens are computed again.
        kv_bytes_per_token: of the model's KV cache (where it is swapped, or copied to a thief).
        kv_prefix_caching: blocks that several prompts begin with are computed and held once, and stay until their room
            is needed (docs/memory.md). Needs "vllm_v1" and requests that say what their prompts are made of.
        choose_cap: caps on active clients are actions of their own: 1 is a prefill as ever, 2 to 8 are prefills up to
            7/8, ..., 1/8 of the clients. Needs ``kv_budget_tokens``.
    """

    kv_budget_tokens: int | None = None
    kv_block_tokens: int = 1
    kv_rule: KVRule = "keep_growth"
    kv_victim: KVVictim = "last"
    kv_admission: Admission = "fits"
    kv_watermark: float = 0.0
    kv_reserve_tokens: int | None = None
    kv_swap_gb_per_s: float | None = None
    kv_bytes_per_token: int = LLAMA_65B_BYTES_PER_TOKEN
    choose_cap: bool = False
    kv_prefix_caching: bool = False

    @property
    def kv_limited(self) -> bool:
        """Whether the KV cache is a budget."""
        return self.kv_budget_tokens is not None

    def kv_cache(self) -> KVCache | None:
        """What the engine takes; ``None`` where it is no limit."""
        if self.kv_budget_tokens is None:
            return None
        bandwidth = self.kv_swap_gb_per_s  # 10^9 bytes/s are one byte/ns
        block_tokens = self.kv_block_tokens
        headroom_tokens = math.ceil(self.kv_watermark * self.kv_budget_tokens)
        if self.kv_rule != "keep_growth":
            apart = self.kv_rule == "vllm_v1"  # V1's pool counts a block that it never gives out
            blocks = self.kv_budget_tokens // block_tokens + apart
            headroom_tokens = int(self.kv_watermark * blocks) * block_tokens
        return KVCache(
            self.kv_budget_tokens,
            block_tokens,
            headroom_tokens,
            self.kv_admission,
            self.kv_reserve_tokens or 0,
            0 if bandwidth is None else max(1, round(self.kv_bytes_per_token / bandwidth)),
            CAP_LEVELS if self.choose_cap else 0,
            self.kv_rule,
            self.kv_victim,
            self.kv_prefix_caching,
        )


@dataclass(frozen=True)
class KVCache:
    """The same as the engine takes it.

    Attributes:
        budget_tokens: what it holds.
        block_tokens: tokens that are allocated at a time.
        headroom_tokens: that an admission leaves free.
        admission: one of `ADMISSIONS`.
        reserve_tokens: output tokens set aside for each request; 0 for its estimate.
        swap_token_ns: time to copy a token's cache out or back; 0: preempted requests are computed again.
        cap_levels: caps on active clients that are actions; 0 for none.
        rule: one of `KV_RULES`.
        victim: one of `KV_VICTIMS`.
        prefix_caching: whether blocks are shared and kept.
    """

    name: ClassVar[str] = "kv"
    budget_tokens: int
    block_tokens: int = 1
    headroom_tokens: int = 0
    admission: str = "fits"
    reserve_tokens: int = 0
    swap_token_ns: int = 0
    cap_levels: int = 0
    rule: str = "keep_growth"
    victim: str = "last"
    prefix_caching: bool = False

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of `llmsched_env.engine.kv_cache.KVCache`."""
        options = {
            "budget": self.budget_tokens,
            "block": self.block_tokens,
            "headroom": self.headroom_tokens,
            "rule": KV_RULES.index(self.rule),
            "admission": ADMISSIONS.index(self.admission),
            "reserve_tokens": self.reserve_tokens,
            "swap_token_ns": self.swap_token_ns,
            "by_estimate": self.victim == "least_estimate",
        }
        return {**options, "prefix_caching": True} if self.prefix_caching else options  # digests from before it stay

    @property
    def uncached_tokens(self) -> int:
        """Tokens of a running request that have no cache yet: under vLLM's rules, the one sampled last."""
        return int(self.rule != "keep_growth")

    @property
    def longest_request_tokens(self) -> int:
        """Most prompt and output tokens of a request that can always be served, be it alone."""
        whole = self.budget_tokens // self.block_tokens * self.block_tokens
        never_used = self.headroom_tokens if self.rule == "vllm_v0" else 0  # its watermark holds for one alone, too
        return whole - never_used + self.uncached_tokens


def check(options: KVOptions) -> None:
    """Check it.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
        UnknownNameError: a name that does not exist.
    """
    check_names(options, kv_rule=KV_RULES, kv_victim=KV_VICTIMS, kv_admission=ADMISSIONS)
    check_flags(options, "choose_cap", "kv_prefix_caching")
    for name, most in (
        ("kv_budget_tokens", MAX_KV_TOKENS),
        ("kv_block_tokens", 2**16),
        ("kv_reserve_tokens", MAX_KV_TOKENS),
        ("kv_bytes_per_token", 2**40),
    ):
        if getattr(options, name) is not None or name in ("kv_block_tokens", "kv_bytes_per_token"):
            keep(options, name, whole(name, getattr(options, name), 1, most))
    watermark = number("kv_watermark", options.kv_watermark)
    if not 0 <= watermark < 1:
        raise ConfigError(
            f"kv_watermark = {options.kv_watermark!r} is out of range: it lies in [0, 1).{percent_hint(watermark, 1)}"
        )
    keep(options, "kv_watermark", watermark)
    if options.kv_swap_gb_per_s is not None:
        rate = real("kv_swap_gb_per_s", options.kv_swap_gb_per_s, 1e-6, LARGEST["kv_swap_gb_per_s"])
        keep(options, "kv_swap_gb_per_s", rate)
    if options.kv_budget_tokens is not None:
        _check_together(options, options.kv_budget_tokens)


def _check_together(options: KVOptions, budget_tokens: int) -> None:
    if options.kv_block_tokens > budget_tokens:
        raise ConfigError(
            f"kv_block_tokens = {options.kv_block_tokens} exceeds kv_budget_tokens = {budget_tokens}: "
            "not one block would fit."
        )
    if options.kv_reserve_tokens is not None and options.kv_admission != "reserve":
        raise ConfigError(
            f"kv_reserve_tokens = {options.kv_reserve_tokens} with kv_admission = {options.kv_admission!r}: only "
            "'reserve' sets anything aside."
        )
    if options.kv_reserve_tokens is not None and options.kv_reserve_tokens > budget_tokens:
        raise ConfigError(
            f"kv_reserve_tokens = {options.kv_reserve_tokens} exceeds kv_budget_tokens = {budget_tokens}: "
            "no two requests would ever run side by side."
        )
    if options.kv_prefix_caching:
        _check_prefix_caching(options, budget_tokens)
    if options.kv_rule != "keep_growth":
        for name, usual, remedy in (
            ("kv_victim", "last", "whoever started last gives way"),
            ("kv_admission", "fits", "it lets in whoever fits now"),
            ("kv_swap_gb_per_s", None, "what it preempts is computed again"),
        ):
            if getattr(options, name) != usual:
                raise ConfigError(
                    f"{name} = {getattr(options, name)!r} with kv_rule = {options.kv_rule!r}: {remedy}. Leave out "
                    f"{name}, or set kv_rule='keep_growth'."
                )


def _check_prefix_caching(options: KVOptions, budget_tokens: int) -> None:
    if options.kv_rule != "vllm_v1":
        raise ConfigError(
            f"kv_prefix_caching = True with kv_rule = {options.kv_rule!r}: blocks are shared as by vLLM's V1 "
            "scheduler. Set kv_rule='vllm_v1', or leave kv_prefix_caching out."
        )
    blocks = budget_tokens // options.kv_block_tokens
    if blocks > MAX_PREFIX_BLOCKS:
        raise ConfigError(
            f"kv_prefix_caching = True with {blocks} blocks (kv_budget_tokens = {budget_tokens} in blocks of "
            f"{options.kv_block_tokens}): each is kept track of, and {MAX_PREFIX_BLOCKS} are the most. Lower the "
            "budget, or take blocks of 16."
        )
