"""The free blocks of a KV cache with prefix caching: a queue that keeps what they hold until they are given out."""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import int32s


class FreeBlocks:
    """A queue of blocks in the order in which they became free.

    Attributes:
        blocks: that there are.
        used: blocks that some request refers to.
        fresh: blocks that have never been used: they are given out before all others.
        label: (blocks,) int32: what a free block holds: a unit, codes.BLANK, or BLANK - 1 - number: of a request's own.
        after: (blocks,) int32: the block that became free after it, -1 at the end.
        before: (blocks,) int32: the one that became free before it, -1 for the oldest.
        under: (blocks,) int32: where it is a request's own, that request's block before it, -1 for its first.
        oldest: the free block that is given out next, -1 for none.
        newest: the one that became free last.
        spare: (blocks,) int32: blocks in use, in no order: they are all alike.
    """

    blocks: cython.int
    used: cython.longlong
    fresh: cython.int
    label: cython.int[::1]
    after: cython.int[::1]
    before: cython.int[::1]
    under: cython.int[::1]
    oldest: cython.int
    newest: cython.int
    spare: cython.int[::1]

    def __init__(self, size: int) -> None:
        self.blocks = size
        self.used = 0
        self.fresh = size
        self.label = int32s(size, codes.BLANK)
        self.after = int32s(size, -1)
        self.before = int32s(size, -1)
        self.under = int32s(size, -1)
        self.oldest = -1
        self.newest = -1
        self.spare = int32s(size, -1)

    def assign_blocks(self, other: FreeBlocks) -> cython.void:
        """Take over another one's blocks, as many."""
        i: cython.int
        for i in range(self.blocks):
            self.label[i] = other.label[i]
            self.after[i] = other.after[i]
            self.before[i] = other.before[i]
            self.under[i] = other.under[i]
            self.spare[i] = other.spare[i]
        self.used = other.used
        self.fresh = other.fresh
        self.oldest = other.oldest
        self.newest = other.newest

    def enqueue(self, label: cython.int) -> cython.int:
        """A block in use becomes free, after all others: which one."""
        found: cython.int
        self.used -= 1
        found = self.spare[self.used]
        self.label[found] = label
        self.before[found] = self.newest
        self.after[found] = -1
        if self.newest >= 0:
            self.after[self.newest] = found
        else:
            self.oldest = found
        self.newest = found
        return found

    def unlink(self, found: cython.int) -> cython.void:
        """A free block is in use again."""
        if self.before[found] >= 0:
            self.after[self.before[found]] = self.after[found]
        else:
            self.oldest = self.after[found]
        if self.after[found] >= 0:
            self.before[self.after[found]] = self.before[found]
        else:
            self.newest = self.before[found]
        self.spare[self.used] = found
        self.used += 1

    def free_labels(self) -> Any:
        """(blocks,) labels of the free blocks that have been used, oldest first."""
        found: cython.int = self.oldest
        labels = []
        while found >= 0:
            labels.append(int(self.label[found]))
            found = self.after[found]
        return labels
