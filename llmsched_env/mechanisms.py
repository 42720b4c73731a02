"""The options of each mechanism, as a scenario or a test gives them to a problem."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched_env.cost import CostModel, MixedCost

__all__ = ["Disturbance", "KVCache", "Mixed", "Moves", "Promises"]


@dataclass(frozen=True)
class Promises:
    """The service-level objectives, and which requests count.

    Attributes:
        ttft_ns: time to first token.
        tpot_ns: time per output token.
        first: number of the first request that counts.
        last: number after that of the last.
        choose_order: whether each order is an action of its own.
    """

    ttft_ns: int
    tpot_ns: int
    first: int
    last: int
    choose_order: bool = False


@dataclass(frozen=True)
class KVCache:
    """What the KV cache holds, and how it is shared out.

    Attributes:
        budget_tokens: what it holds.
        block_tokens: tokens that are allocated at a time.
        headroom_tokens: that an admission leaves free.
        admission: one of `llmsched_env.config.ADMISSIONS`.
        reserve_tokens: output tokens set aside for each request; 0 for its estimate.
        swap_token_ns: time to copy a token's cache out or back; 0: preempted requests are computed again.
        cap_levels: caps on active clients that are actions; 0 for none.
        rule: one of `llmsched_env.config.KV_RULES`.
    """

    budget_tokens: int
    block_tokens: int = 1
    headroom_tokens: int = 0
    admission: str = "fits"
    reserve_tokens: int = 0
    swap_token_ns: int = 0
    cap_levels: int = 0
    rule: str = "keep_growth"

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


@dataclass(frozen=True)
class Mixed:
    """What mixed iterations read, and last.

    Attributes:
        tokens: most prompt tokens beside a decode.
        counts_active: whether each active client takes one of them.
        whole_prompts: whether prompts are never read in part.
        cost: what they last.
        believed_cost: what schedulers believe that they last; ``None`` for the truth.
    """

    tokens: int
    counts_active: bool
    whole_prompts: bool
    cost: MixedCost
    believed_cost: MixedCost | None = None


@dataclass(frozen=True)
class Moves:
    """What of a request lies with a client, and what a thief does about it.

    Attributes:
        cached_millionths: share of each prompt that is cached at home, below 1,000,000.
        steal: one of `llmsched_env.config.STEALS`.
        token_ns: time to copy a token's cache to the thief; 0: it is computed again.
    """

    cached_millionths: int = 0
    steal: str = "waiting"
    token_ns: int = 0


@dataclass(frozen=True)
class Disturbance:
    """What makes iterations last something else than schedulers believe.

    Attributes:
        believed: the cost model that schedulers are shown; ``None`` for the true one.
        noise_sd: standard deviation of the logarithm of the factors.
        straggler_probability: chance of an iteration to be a straggler.
        straggler_factor: what such a one lasts, in times of what it would.
        key: 32 bits that fix all factors of a case.
    """

    believed: CostModel | None = None
    noise_sd: float = 0.0
    straggler_probability: float = 0.0
    straggler_factor: float = 1.0
    key: int = 0
