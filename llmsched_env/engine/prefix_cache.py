"""Prefix caching: blocks of the KV cache that requests share, and that stay when nobody needs them any more.

As vLLM's V1 block pool has it. The cache is made of blocks; a *unit* is a block's worth of tokens at the beginning of
prompts, a node of the tree that all prompts make. A request that joins *hits* the units of its prompt that are in the
cache, from the first one on, and computes the rest; its last token is computed in any case. Only full blocks are units.
Blocks that nobody refers to are free: they stand in a queue, in the order in which they became free, the last of a
request first, and keep what they hold until they are given out anew. A preempted request finds its own full blocks
again where they are still there, those of its output included.

What is in the cache is closed: with a unit all before it in its prompt. So how much of a prompt is there is found by
bisection. Composing an iteration changes nothing here but marks: an iteration looks all its hits up before it takes any
block, where vLLM does that for one request after another.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import int32s, int64s
from llmsched_env.engine.free_blocks import FreeBlocks
from llmsched_env.engine.iteration import Iteration
from llmsched_env.engine.problem_data import ProblemData


class PrefixCache(FreeBlocks):
    """The blocks of a KV cache, and what they hold.

    Attributes:
        problem: the case.
        enabled: whether blocks are shared and kept.
        block: tokens of a block.
        units: (nodes * units of a node,) int32: how many requests refer to each; 0: it is not in the cache; below 0: it
            is free, in the block -1 - this.
        held: (n,) int32: units that a request refers to, or did when it lost its blocks, by number.
        own: (n,) int32: free blocks that hold what the request computed beside those.
        top: (n,) int32: the last of these.
        found: (n,) int32: scratch: units of each prompt that were in the cache when it was looked up last,
        busy: (n,) int32: and those of them that were in use.
        serial: number of the iteration that is being composed.
        marked: (nodes,) int64: the last such iteration of which a row holds units of each node that nobody used before,
        marks: (nodes,) int32: and up to which of the node's, or -1 - the position of the one row that does so far:
            what that one holds is marked on its further nodes as soon as another needs to know.
        reached: (n,) int32: scratch: units that each row of the iteration will refer to.
        touched: (J + 1,) int32: scratch: units of each row that were in the cache when it began.
        hit: blocks found by the last :meth:`look_up`,
        in_use: and how many of these are in use already, or computed by a row before.
    """

    problem: ProblemData
    enabled: cython.bint
    block: cython.longlong
    units: cython.int[::1]
    held: cython.int[::1]
    own: cython.int[::1]
    top: cython.int[::1]
    found: cython.int[::1]
    busy: cython.int[::1]
    serial: cython.longlong
    marked: cython.longlong[::1]
    marks: cython.int[::1]
    reached: cython.int[::1]
    touched: cython.int[::1]
    hit: cython.longlong
    in_use: cython.longlong

    def __init__(self, problem: ProblemData, enabled: bool = False, blocks: int = 1, block: int = 1) -> None:
        FreeBlocks.__init__(self, max(1, blocks) if enabled else 1)
        nodes = max(1, problem.num_nodes) if enabled else 1
        requests = problem.num_requests if enabled else 1
        self.problem = problem
        self.enabled = enabled
        self.block = block
        self.units = int32s(nodes * max(1, problem.node_units))
        self.held = int32s(requests)
        self.own = int32s(requests)
        self.top = int32s(requests, -1)
        self.found = int32s(requests)
        self.busy = int32s(requests)
        self.serial = 0
        self.marked = int64s(nodes)
        self.marks = int32s(nodes)
        self.reached = int32s(requests)
        self.touched = int32s(problem.num_clients + 1 if enabled else 1)
        self.hit = 0
        self.in_use = 0

    def assign(self, other: PrefixCache) -> cython.void:
        """Take over another one's state, of the same sizes; what is scratch does not count."""
        i: cython.int
        if not self.enabled:
            return
        for i in range(self.units.shape[0]):
            self.units[i] = other.units[i]
        self.assign_blocks(other)
        for i in range(self.held.shape[0]):
            self.held[i] = other.held[i]
            self.own[i] = other.own[i]
            self.top[i] = other.top[i]

    # What prompts are made of.

    def path_units(self, position: cython.int) -> cython.longlong:
        """Units of a request's prompt: its full blocks, as far as anybody says what they hold."""
        number: cython.int = self.problem.number_of[position]
        full: cython.longlong = self.problem.requests[position, codes.PROMPT] // self.block
        told: cython.longlong = self.problem.path_start[number + 1] - self.problem.path_start[number]
        return min(full, told * self.problem.node_units)

    def node(self, position: cython.int, index: cython.longlong) -> cython.int:
        """The node that the unit of this index of a prompt belongs to."""
        first: cython.int = self.problem.path_start[self.problem.number_of[position]]
        return self.problem.path[first + index // self.problem.node_units]

    def unit(self, position: cython.int, index: cython.longlong) -> cython.longlong:
        """The unit of this index of a prompt."""
        wide: cython.longlong = self.problem.node_units
        return self.node(position, index) * wide + index % wide

    # Who is let in: nothing changes but marks.

    def begin(self) -> cython.void:
        """Nobody has joined the iteration that is being composed."""
        self.serial += 1

    def is_there(self, position: cython.int, index: cython.longlong, used_only: cython.bint) -> cython.bint:
        """Whether the unit of this index of a prompt is in the cache, or in use."""
        state: cython.int = self.units[self.unit(position, index)]
        return state > 0 or (state < 0 and not used_only)

    def present(
        self, position: cython.int, most: cython.longlong, used_only: cython.bint, guess: cython.longlong
    ) -> cython.longlong:
        """Units at the beginning of a prompt, ``most`` at most, that are in the cache, or that are in use.

        The guess, what it was the last time, costs two looks where it still holds.
        """
        low: cython.longlong = 0
        high: cython.longlong = most
        middle: cython.longlong = min(guess, most)
        if middle > 0:
            if self.is_there(position, middle - 1, used_only):
                low = middle
            else:
                high = middle - 1
        if low == middle and middle < high:
            if self.is_there(position, middle, used_only):
                low = middle + 1
            else:
                high = middle
        while low < high:
            middle = (low + high) // 2
            if self.is_there(position, middle, used_only):
                low = middle + 1
            else:
                high = middle
        return low

    def joined(self, position: cython.int, most: cython.longlong) -> cython.longlong:
        """Units at the beginning of a prompt, ``most`` at most, that are in use or that rows of this iteration hold."""
        wide: cython.longlong = self.problem.node_units
        busy: cython.longlong = self.busy[self.problem.number_of[position]]
        low: cython.longlong = busy // wide
        high: cython.longlong = (most + wide - 1) // wide
        middle: cython.longlong
        if busy >= most or not self.is_marked(position, busy):
            return busy
        low += 1
        while low < high:
            middle = (low + high) // 2
            if self.marked[self.node(position, middle * wide)] == self.serial:
                low = middle + 1
            else:
                high = middle
        return min(most, (low - 1) * wide + self.marks[self.node(position, (low - 1) * wide)])

    def is_marked(self, position: cython.int, busy: cython.longlong) -> cython.bint:
        """Whether rows of this iteration hold units of the node at the end of what is in use; all is marked then."""
        node: cython.int = self.node(position, busy)
        other: cython.int
        if self.marked[node] != self.serial:
            return False
        if self.marks[node] < 0:
            other = -1 - self.marks[node]
            self.marks[node] = 0
            self.mark_nodes(other)
        return True

    def look_up(self, position: cython.int, context: cython.longlong) -> cython.longlong:
        """Tokens that a request need not compute which joins with so many of context: all but the last at most."""
        number: cython.int = self.problem.number_of[position]
        most: cython.longlong = min(self.path_units(position), (context - 1) // self.block)
        if self.own[number] > 0:
            most = self.held[number]
        self.found[number] = cython.cast(cython.int, self.present(position, most, False, self.found[number]))
        self.busy[number] = cython.cast(cython.int, self.present(position, most, True, self.busy[number]))
        self.in_use = self.joined(position, most)
        self.hit = max(self.in_use, self.found[number])
        if self.own[number] > 0:  # all before what was computed after a prompt is there, too
            self.hit = most + self.own[number]
        return self.hit * self.block

    def reach(
        self, position: cython.int, have: cython.longlong, before: cython.longlong, after: cython.longlong
    ) -> cython.longlong:
        """Units that a request with ``have`` refers to once its tokens from ``before`` to ``after`` are computed."""
        most: cython.longlong = min(self.path_units(position), after // self.block)
        if most <= have or (have + 1) * self.block <= before:
            return have
        # The last block of a prompt may be there: it is computed all the same, in a block of the request's own.
        return have if self.units[self.unit(position, have)] != 0 else most

    def mark(self, position: cython.int, tokens: cython.longlong) -> cython.void:
        """The request just looked up is a row of this iteration, at whose end so many tokens of it are computed."""
        have: cython.longlong = self.hit
        if self.own[self.problem.number_of[position]] > 0:
            have = self.held[self.problem.number_of[position]]
        self.mark_to(position, self.reach(position, have, self.hit * self.block, tokens))

    def mark_on(self, position: cython.int, before: cython.longlong, after: cython.longlong) -> cython.void:
        """The same of the request whose prefill is chunked, of whose tokens ``before`` are computed."""
        self.busy[self.problem.number_of[position]] = self.held[self.problem.number_of[position]]
        self.mark_to(position, self.reach(position, self.held[self.problem.number_of[position]], before, after))

    def mark_to(self, position: cython.int, most: cython.longlong) -> cython.void:
        """A row of this iteration holds so many units of its prompt."""
        number: cython.int = self.problem.number_of[position]
        node: cython.int
        self.reached[number] = cython.cast(cython.int, most)
        if most <= self.busy[number]:
            return
        if self.is_marked(position, self.busy[number]):
            self.mark_nodes(position)
            return
        node = self.node(position, self.busy[number])
        self.marked[node] = self.serial
        self.marks[node] = -1 - position

    def mark_nodes(self, position: cython.int) -> cython.void:
        """Mark all that a row of this iteration holds and that nobody used before."""
        number: cython.int = self.problem.number_of[position]
        wide: cython.longlong = self.problem.node_units
        most: cython.longlong = self.reached[number]
        at: cython.longlong = self.busy[number] // wide * wide
        node: cython.int
        while at < most:
            node = self.node(position, at)
            if self.marked[node] != self.serial:
                self.marked[node] = self.serial
                self.marks[node] = 0
            self.marks[node] = cython.cast(cython.int, max(self.marks[node], min(wide, most - at)))
            at += wide

    def take_blocks(self, count: cython.longlong) -> cython.void:
        """Give out so many blocks: those never used, then those free for longest, whatever they hold."""
        found: cython.int
        label: cython.int
        number: cython.int
        while count > 0:
            count -= 1
            if self.fresh > 0:
                self.fresh -= 1
                self.spare[self.used] = self.fresh
                self.used += 1
                continue
            found = self.oldest
            label = self.label[found]
            self.unlink(found)
            if label >= 0:
                self.units[label] = 0
            elif label < codes.BLANK:
                number = codes.BLANK - 1 - label
                self.own[number] -= 1
                self.top[number] = self.under[found]

    # Iterations.

    def take(self, it: Iteration, reading: cython.int, computed: cython.longlong) -> cython.void:
        """An iteration begins: first what its rows hit is in use, then blocks are given out.

        Args:
            it: the iteration, whose victims have given way.
            reading: position of the request whose prefill was chunked, which is the first row; -1 without one.
            computed: tokens of it that are in the cache.
        """
        row: cython.int
        for row in range(it.rows):
            if it.position[row] != reading:
                self.touch(it.position[row], row, it.cached[row] // self.block)
        self.take_blocks(it.growth // self.block)
        for row in range(it.rows):
            if it.position[row] == reading:
                self.touched[row] = self.held[self.problem.number_of[reading]]
                self.extend(reading, row, computed, computed + it.tokens[row])
            else:
                self.extend(it.position[row], row, it.cached[row], it.cached[row] + it.tokens[row])

    def touch(self, position: cython.int, row: cython.int, hit: cython.longlong) -> cython.void:
        """A request refers to what is in the cache of the blocks that it hits."""
        number: cython.int = self.problem.number_of[position]
        unit: cython.longlong
        state: cython.int
        count: cython.int = 0
        found: cython.int
        if self.own[number] > 0:
            hit = self.held[number]
        while self.own[number] > 0:
            found = self.top[number]
            self.own[number] -= 1
            self.top[number] = self.under[found]
            self.unlink(found)
        while count < hit:
            unit = self.unit(position, count)
            state = self.units[unit]
            if state == 0:  # a row before computes it
                break
            if state < 0:
                self.unlink(-1 - state)
                state = 0
            self.units[unit] = state + 1
            count += 1
        self.touched[row] = count
        self.held[number] = cython.cast(cython.int, hit)

    def extend(
        self, position: cython.int, row: cython.int, before: cython.longlong, after: cython.longlong
    ) -> cython.void:
        """A row computes its tokens from ``before`` to ``after``: new units, and blocks of its own."""
        number: cython.int = self.problem.number_of[position]
        hit: cython.longlong = self.held[number]
        most: cython.longlong
        unit: cython.longlong
        index: cython.longlong = self.touched[row]
        blocks: cython.longlong = (after + self.block - 1) // self.block - (before + self.block - 1) // self.block
        while index < hit:  # a row before has just computed it
            unit = self.unit(position, index)
            self.units[unit] += 1
            index += 1
        most = self.reach(position, hit, before, after)
        while index < most:
            self.units[self.unit(position, index)] = 1
            index += 1
        self.held[number] = cython.cast(cython.int, index)
        self.take_blocks(blocks)

    def release(self, position: cython.int, tokens: cython.longlong) -> cython.longlong:
        """A request with so many tokens in the cache gives them up, the last first; returns how many get free."""
        number: cython.int = self.problem.number_of[position]
        used: cython.longlong = self.used
        index: cython.int = self.held[number]
        own: cython.longlong = tokens // self.block - index
        unit: cython.longlong
        found: cython.int
        last: cython.int = -1
        if tokens % self.block != 0:
            self.enqueue(codes.BLANK)
        self.own[number] = cython.cast(cython.int, own)
        while own > 0:
            own -= 1
            found = self.enqueue(codes.BLANK - 1 - number)
            self.under[found] = -1
            if last < 0:
                self.top[number] = found
            else:
                self.under[last] = found
            last = found
        while index > 0:
            index -= 1
            unit = self.unit(position, index)
            self.units[unit] -= 1
            if self.units[unit] == 0:
                self.units[unit] = -1 - self.enqueue(cython.cast(cython.int, unit))
        return (used - self.used) * self.block

    # Who would give way.

    def give_up(self, position: cython.int, tokens: cython.longlong) -> cython.longlong:
        """Tokens that would get free if this request gave its own up, after those that have; until :meth:`keep`."""
        index: cython.int = self.held[self.problem.number_of[position]]
        unit: cython.longlong
        count: cython.longlong = (tokens + self.block - 1) // self.block - index
        while index > 0:
            index -= 1
            unit = self.unit(position, index)
            self.units[unit] -= 1
            if self.units[unit] == 0:
                count += 1
        return count * self.block

    def keep(self, position: cython.int) -> cython.void:
        """It does not after all."""
        index: cython.int
        unit: cython.longlong
        for index in range(self.held[self.problem.number_of[position]]):
            unit = self.unit(position, index)
            self.units[unit] += 1
