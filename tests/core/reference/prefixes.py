"""Blocks of the KV cache that prompts share: a pool of blocks, each known by what it holds, as plainly as can be."""

from __future__ import annotations

from strategies import Case

Key = tuple[int, ...]
"""A block of a prompt: the ids of what it holds and of all before it."""

BLANK = None


class Pool:
    """Who refers to what, and which free blocks still hold what, oldest first."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.block = case.kv_cache.block_tokens
        self.blocks = case.kv_cache.budget_tokens // self.block
        self.references: dict[Key, int] = {}  # of blocks in use that are known
        self.private = 0  # blocks in use that nobody else finds
        self.free: list[object] = []  # what free blocks hold: a key, (request, index), or nothing
        self.held: dict[int, int] = {}  # known blocks that a request refers to, or did
        self.fresh = self.blocks

    @property
    def used(self) -> int:
        return len(self.references) + self.private

    def keys(self, request: int) -> list[Key]:
        """Of a prompt's full blocks, as far as its ids go."""
        case = self.case
        each = case.prefix_tokens // self.block
        ids = [(one, part) for one in case.prefixes[request] for part in range(each)]
        ids = ids[: case.prompts[request] // self.block]
        return [tuple(x for pair in ids[: i + 1] for x in pair) for i in range(len(ids))]

    def own(self, request: int) -> int:
        """Free blocks that hold what it computed after its known ones."""
        return sum(self.is_own(label, request) for label in self.free)

    @staticmethod
    def is_own(label: object, request: int) -> bool:
        return isinstance(label, tuple) and label[:2] == ("own", request)

    def hits(self, request: int, context: int, joined: dict[Key, int]) -> tuple[int, int]:
        """Blocks of the context that need not be computed, and how many of these are in use, or about to be."""
        keys = self.keys(request)[: (context - 1) // self.block]
        own = self.own(request)
        if own:
            keys = keys[: self.held[request]]
        there, busy = 0, 0
        for key in keys:
            if key not in self.references and key not in joined and key not in self.free:
                break
            there += 1
        for key in keys:
            if key not in self.references and key not in joined:
                break
            busy += 1
        return there + own, busy

    def known_after(self, request: int, have: int, before: int, after: int, there: object) -> list[Key]:
        """Blocks that become known as this request's once its tokens from before to after are computed."""
        keys = self.keys(request)[: after // self.block]
        if len(keys) <= have or (have + 1) * self.block <= before or keys[have] in there:
            return []
        return keys[have:]

    def take(self, rows: list[tuple[int, int, int, bool]], growth: int) -> None:
        """An iteration begins.

        Args:
            rows: (request, tokens computed before, after, whether it joins now).
            growth: blocks that its decode takes.
        """
        late: dict[int, list[Key]] = {}
        for request, before, _, joins in rows:
            if not joins:
                continue
            known = before // self.block
            own = self.own(request)
            if own:
                known = self.held[request]
                self.free = [label for label in self.free if not self.is_own(label, request)]
                self.private += own
            keys = self.keys(request)[:known]
            there = {*self.references, *self.free}
            first = next((i for i, key in enumerate(keys) if key not in there), known)
            for key in keys[:first]:
                if key in self.free:
                    self.free.remove(key)
                self.references[key] = self.references.get(key, 0) + 1
            late[request] = keys[first:]
            self.held[request] = known
        self.give_out(growth)
        self.private += growth
        for request, before, after, _ in rows:
            for key in late.get(request, []):
                self.references[key] += 1
            new = self.known_after(request, self.held[request], before, after, {*self.references, *self.free})
            for key in new:
                self.references[key] = 1
            self.held[request] += len(new)
            blocks = -(-after // self.block) - -(-before // self.block)
            self.give_out(blocks)
            self.private += blocks - len(new)

    def give_out(self, count: int) -> None:
        """So many free blocks are used for something else: fresh ones first, then the oldest."""
        for _ in range(count):
            if self.fresh:
                self.fresh -= 1
            else:
                self.free.pop(0)

    def release(self, request: int, tokens: int) -> int:
        """A request with so many tokens in the cache gives them up, the last block first; how many blocks get free."""
        used, held = self.used, self.held[request]
        if tokens % self.block:
            self.free.append(BLANK)
            self.private -= 1
        for index in reversed(range(tokens // self.block - held)):
            self.free.append(("own", request, index))
            self.private -= 1
        for key in reversed(self.keys(request)[:held]):
            self.references[key] -= 1
            if not self.references[key]:
                del self.references[key]
                self.free.append(key)
        return used - self.used

    def copy(self) -> Pool:
        twin = Pool(self.case)
        twin.references, twin.private, twin.free = dict(self.references), self.private, list(self.free)
        twin.held, twin.fresh = dict(self.held), self.fresh
        return twin
