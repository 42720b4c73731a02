"""Prefix caching block by block: a pool of numbered blocks, each with its content, beside the engine's counts.

The engine keeps counts by unit, the plain simulator keys; here every block is an object of its own, as in vLLM's block
pool. So a block that both of them count twice, or find without its being computed, shows.
"""

from __future__ import annotations

from collections import Counter, deque

from combinations import combined_actions, combined_case
from reference import Reference

SEEDS = 1200


class Blocks:
    """Numbered blocks: what each holds, who refers to it, and the free ones, the next to be given out first."""

    def __init__(self, case):
        self.case, self.size = case, case.kv_cache.block_tokens
        count = case.kv_cache.budget_tokens // self.size
        self.free = deque(range(count))
        self.fresh = set(range(count))
        self.content = [None] * count
        self.references = [0] * count
        self.where = {}  # content -> block
        self.table = {}  # request -> its blocks, in the order of its tokens
        self.met = Counter()

    def key(self, request, index):
        """What the full block of this index of a prompt is known by; None where nobody says."""
        each = self.case.prefix_tokens // self.size
        ids = self.case.prefixes[request][: index // each + 1]
        if index // each >= len(ids) or (index + 1) * self.size > self.case.prompts[request]:
            return None
        return (*ids, "block", index)

    def keys_of(self, request, tokens):
        """Of so many tokens' full blocks, as far as they are known."""
        keys = [self.key(request, index) for index in range(tokens // self.size)]
        return keys[: keys.index(None)] if None in keys else keys

    def begin(self, rows, reading, growing):
        """An iteration with rows of (request, tokens before, after), of which ``reading`` began earlier."""
        soon = set()
        for request, before, after in rows:
            if request != reading:
                self.join(request, before, soon)
            for key in self.keys_of(request, after)[before // self.size :]:
                if key in self.where or key in soon:
                    break
                soon.add(key)
        for request in growing:
            self.table[request].append(self.give_out())
        for request, before, after in rows:
            self.compute(request, before, after)

    def join(self, request, before, soon):
        """It refers to what is there; what a row before computes, it gets when that is done: None until then."""
        found = []
        own = 0
        for index in range(before // self.size):
            mine, key = (request, "own", index), self.key(request, index)
            own += mine in self.where
            block = self.where.get(mine, self.where.get(key))
            if block is None:
                assert key in soon, "a hit on what nobody has computed"
            found.append(block)
        following = self.key(request, len(found))
        last = (self.case.prompts[request] - 1) // self.size
        if not own and len(found) < last and following is not None:
            assert following not in {*self.where, *soon}, "a block that was there is not hit"
        for block in found:
            if block is not None:
                if not self.references[block]:
                    self.free.remove(block)
                self.references[block] += 1
        self.table[request] = found
        self.met["hits on free or shared blocks"] += any(block is not None for block in found)
        self.met["hits on blocks of the same iteration"] += None in found
        self.met["own blocks found again"] += own > 0

    def give_out(self):
        """The block that has been free for longest; it loses what it holds."""
        block = self.free.popleft()
        assert not self.references[block]
        self.fresh.discard(block)
        if self.content[block] is not None:
            self.met["evictions"] += 1
            assert self.where.pop(self.content[block]) == block
            self.content[block] = None
        self.references[block] = 1
        return block

    def compute(self, request, before, after):
        table = self.table[request]
        for index in [index for index, block in enumerate(table) if block is None]:
            table[index] = self.where[self.key(request, index)]
            self.references[table[index]] += 1
        first = before // self.size
        known = [self.content[block] for block in table[:first]]
        new = []
        if all(one is not None and one[-2] == "block" for one in known):  # what follows own blocks is its own, too
            for key in self.keys_of(request, after)[first:]:
                if key in self.where:  # the engine asks before it gives out blocks, and keeps no second copy
                    self.met["last blocks computed again"] += 1
                    break
                new.append(key)
        table += [self.give_out() for _ in range(-(-after // self.size) - len(table))]
        for key, block in zip(new, table[first:], strict=False):
            self.hold(block, key)

    def hold(self, block, content):
        assert self.content[block] is None
        assert content not in self.where, "two blocks with the same content"
        self.content[block] = content
        self.where[content] = block

    def release(self, request, tokens):
        """Its blocks are given up, the last first; a preempted request may ask for the full ones again."""
        table = self.table.pop(request)
        assert len(table) == -(-tokens // self.size)
        for index in reversed(range(len(table))):
            block = table[index]
            if self.content[block] is None and (index + 1) * self.size <= tokens:
                self.hold(block, (request, "own", index))
            self.references[block] -= 1
            if not self.references[block]:
                self.free.append(block)

    def labels(self):
        """What free blocks hold that have been used, oldest first: None, a request's number, or "prompt"."""
        held = [self.content[block] for block in self.free if block not in self.fresh]
        return [None if one is None else one[0] if one[1] == "own" else "prompt" for one in held]


class Watched(Reference):
    """The plain simulator, which says to numbered blocks what happens."""

    def __init__(self, case):
        self.numbered = Blocks(case)
        super().__init__(case)

    def take_blocks(self, rows, served):
        size = self.numbered.size
        growing = [one.request for one in served if self.holds(self.running.index(one)) % size == 0]
        computed = [(row.request, row.before, row.before + row.tokens) for row in rows]
        reading = None if self.reading is None else self.reading.request
        self.numbered.begin(computed, reading, growing)
        super().take_blocks(rows, served)

    def give_up_blocks(self, client):
        held = self.running[client] or self.reading
        self.numbered.release(held.request, self.holds(client))
        super().give_up_blocks(client)


def label(number):
    """The engine's label of a free block, as `Blocks.labels` has it."""
    return "prompt" if number >= 0 else None if number == -1 else -2 - number


def test_every_block_of_the_engine_is_one_of_the_pool():
    """In use and free are all there are; the free ones stand in the same order, and hold the same."""
    met = Counter()
    for seed in range(SEEDS):
        case = combined_case(seed)
        if case.kv_cache is None or not case.kv_cache.prefix_caching:
            continue
        episode, watched = case.problem().episode(), Watched(case)
        actions, step, blocks = combined_actions(seed), 0, watched.numbered
        while not watched.done:
            action = case.number(*actions[step % len(actions)])
            watched.step(action)
            episode.step(action)
            step += 1
            prefix, where = episode.kv.prefix, (seed, step)
            used = sum(count > 0 for count in blocks.references)
            assert used + len(blocks.free) == prefix.blocks == len(blocks.content), where
            assert used * blocks.size == episode.view.kv_used <= case.kv_cache.budget_tokens, where
            assert prefix.fresh == len(blocks.fresh), where
            assert [label(one) for one in prefix.free_labels()] == blocks.labels(), where
        assert not blocks.table, "all have left"
        met += blocks.met
    assert len(met) == 5
    assert min(met.values()) > 10, met
