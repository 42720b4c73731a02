"""Cases with few blocks of KV cache. Blocks hold 16 tokens; every request fits alone."""

from __future__ import annotations

from driving import Case, drawn

__all__ = ["cases"]


def _room(blocks: int, clients: int = 16, watermark: float = 0.0, tokens: int = 2048) -> dict[str, object]:
    return {"clients": clients, "token_cap": tokens, "blocks": blocks, "block_tokens": 16, "watermark": watermark}


def cases(*, watermarks: bool) -> list[Case]:
    """The cases; without those that have a watermark for systems that know none."""
    found = [
        Case("three alike, nine blocks", ((0, 15, 40),) * 3, _room(9)),
        Case("one alone that fills its blocks", ((0, 15, 40),), _room(4)),
        Case("two that need a block in the same decode", ((0, 16, 20), (0, 16, 20)), _room(4)),
        Case("arrivals", drawn(1, 12, (1, 40), (1, 40), 300), _room(12)),
        Case("arrivals, many", drawn(2, 24, (1, 60), (1, 60), 150), _room(20)),
        Case("arrivals, five clients", drawn(3, 16, (1, 40), (1, 40), 100), _room(12, clients=5)),
        Case("arrivals, at most 80 tokens", drawn(4, 16, (1, 40), (1, 30), 100), _room(14, tokens=80)),
    ]
    if watermarks:
        found += [
            Case("watermark of 0.12, nine blocks: one", ((0, 15, 40),) * 3, _room(9, watermark=0.12)),
            Case("watermark of 0.15, 18 blocks: two", drawn(5, 20, (1, 60), (1, 60), 150), _room(18, watermark=0.15)),
            Case("watermark of 0.01, 20 blocks: none", drawn(2, 24, (1, 60), (1, 60), 150), _room(20, watermark=0.01)),
        ]
    return found
