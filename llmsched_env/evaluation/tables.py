"""Tables for people: what all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmsched_env.evaluation.statistics import Estimate

__all__ = ["grid", "interval", "knows"]


def interval(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    """``mean [low, high]`` in other units; a dash where there is no number."""
    if math.isnan(estimate.mean):
        return "–"
    text = f"{estimate.mean * scale:.{digits}f}"
    if math.isnan(estimate.low):
        return text
    return f"{text} [{estimate.low * scale:.{digits}f}, {estimate.high * scale:.{digits}f}]"


def grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def knows(clairvoyant: bool) -> str:
    """What a policy, or its queues, are told of output lengths."""
    return "lengths" if clairvoyant else "blind"
