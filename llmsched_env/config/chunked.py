"""Mixed iterations: a decode beside which prompts are prefilled, in chunks where they are long (chunked prefill)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmsched_env.config.checks import changed, check_flags, keep, whole
from llmsched_env.config.mechanism import World
from llmsched_env.cost import MixedCost
from llmsched_env.errors import ConfigError

__all__ = ["Mixed", "MixedOptions", "check"]


@dataclass(frozen=True, kw_only=True)
class MixedOptions:
    """Chunked prefill.

    Attributes:
        mixed_tokens: b: action 2 is a mixed iteration, a decode beside which at most b prompt tokens are computed;
            prefills may be chunked. ``None`` for no such action. Needs one shared queue.
        mixed_counts_active: each active client takes a token of b (the token budget of Sarathi-Serve and vLLM v1).
        mixed_whole_prompts: prompts are not chunked (Orca); the first one may exceed b.
        mixed_within_slack: no more is read than lets every running request have its next token in time: at f + k S with
            its first token at f, k tokens so far and ``tpot_s`` S. Needs SLOs.
        mixed_cost: "sum", "overlap", "fitted" or a `MixedCost`: what such an iteration lasts.
    """

    mixed_tokens: int | None = None
    mixed_counts_active: bool = False
    mixed_whole_prompts: bool = False
    mixed_within_slack: bool = False
    mixed_cost: str | MixedCost = "sum"

    @property
    def mixes(self) -> bool:
        """Whether there are mixed iterations."""
        return self.mixed_tokens is not None


@dataclass(frozen=True)
class Mixed:
    """The same as the engine takes it.

    Attributes:
        tokens: most prompt tokens beside a decode.
        counts_active: whether each active client takes one of them.
        whole_prompts: whether prompts are never chunked.
        cost: what they last.
        believed_cost: what schedulers believe that they last; ``None`` for the truth.
        within_slack: whether no more is read than lets every running request have its next token in time.
    """

    name: ClassVar[str] = "chunked"
    tokens: int
    counts_active: bool
    whole_prompts: bool
    cost: MixedCost
    believed_cost: MixedCost | None = None
    within_slack: bool = False

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of `llmsched_env.engine.chunked.Chunked`."""
        options = {"budget": self.tokens, "counts_active": self.counts_active, "whole_prompts": self.whole_prompts}
        return {**options, "within_slack": True} if self.within_slack else options  # digests from before it stay


def check(options: MixedOptions) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
    """
    check_flags(options, "mixed_counts_active", "mixed_whole_prompts", "mixed_within_slack")
    if options.mixed_tokens is None:
        for name in changed(options, MixedOptions):
            raise ConfigError(
                f"{name} = {getattr(options, name)!r} without mixed iterations: nobody would read it. Give "
                "mixed_tokens, or leave it out."
            )
        return
    keep(options, "mixed_tokens", whole("mixed_tokens", options.mixed_tokens, 1, 2**31 - 1))
