"""Blocks of tokens that prompts are made of: which prompts begin alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["PrefixBlocks"]

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """The blocks of tokens that prompts are made of: two prompts that begin with the same ids share a prefix.

    Attributes:
        ids: (total,) of all blocks, request after request.
        starts: (n + 1,) where in ``ids`` each request begins; the last entry is ``total``.
        tokens: tokens that a block stands for (512 in Mooncake's traces, 16 in Qwen-Bailian's), or ``None`` where the
            file does not show it. The last block of a prompt may be shorter.
    """

    ids: Column
    starts: Column
    tokens: int | None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, request: int) -> Column:
        """(blocks,) ids of one request, in the order of its prompt."""
        return self.ids[self.starts[request] : self.starts[request + 1]]

    def take(self, rows: Column) -> PrefixBlocks:
        """The blocks of some requests, in the order of ``rows``."""
        parts = [self.of(row) for row in rows.tolist()]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return PrefixBlocks(np.concatenate([self.ids[:0], *parts]), starts, self.tokens)

    @cached_property
    def nodes(self) -> NDArray[np.int32]:
        """(total,) beside ``ids``: the same number where a prompt and all before it is the same; from 0 on.

        The numbers are nodes of a tree: a block is what it says after the blocks before it.
        """
        count = len(self)
        lengths = np.diff(self.starts)
        _, ids = np.unique(self.ids, return_inverse=True)
        many = int(ids.max(initial=0)) + 1
        nodes = np.empty(len(self.ids), np.int32)
        before = np.full(count, -1, np.int64)
        found = 0
        for level in range(int(lengths.max(initial=0))):
            there = np.flatnonzero(lengths > level)
            at = self.starts[there] + level
            _, same = np.unique((before[there] + 1) * many + ids[at], return_inverse=True)
            nodes[at] = before[there] = found + same
            found += int(same.max()) + 1
        nodes.setflags(write=False)
        return nodes

    @property
    def num_nodes(self) -> int:
        """Different nodes."""
        return int(self.nodes.max(initial=-1)) + 1

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """(n,) blocks at the beginning of each prompt that another prompt begins with, too."""
        often = np.bincount(self.nodes, minlength=1)[self.nodes] > 1
        return np.add.reduceat(np.append(often, False), self.starts[:-1]) * (np.diff(self.starts) > 0)
