# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One composer for prefills, decodes and mixed iterations under a KV budget, in typed Python that Cython compiles.

A trial of what the next engine could look like (docs/performance.md). It does what vLLM V0 and V1 do with few blocks.
"""

import cython
import numpy as np

PREFILL = cython.declare(cython.int, 1)
MIXED = cython.declare(cython.int, 2)
DECODE = cython.declare(cython.int, 0)


@cython.cclass
class View:
    clock_ns: cython.longlong
    active: cython.longlong
    idle: cython.longlong
    waiting: cython.longlong
    ready: cython.longlong
    idle_charge: cython.longlong
    decodes: cython.longlong
    prefills: cython.longlong

    def __init__(self):
        self.clock_ns = self.active = self.idle = self.waiting = self.ready = 0
        self.idle_charge = self.decodes = self.prefills = 0


@cython.cclass
class Rule:
    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def act(self, view: View) -> cython.int:
        return PREFILL


@cython.cclass
class Threshold(Rule):
    k: cython.longlong

    def __init__(self, k):
        self.k = k

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def act(self, view: View) -> cython.int:
        return PREFILL if view.ready >= self.k else DECODE


@cython.cclass
class Mixer(Rule):
    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def act(self, view: View) -> cython.int:
        return MIXED


@cython.cclass
class KVCache:
    """Blocks; rule 1: vLLM V0, 2: V1."""

    rule: cython.int
    block: cython.longlong
    blocks: cython.longlong
    mark: cython.longlong
    used: cython.longlong
    last: cython.int
    below: cython.int[:]
    above: cython.int[:]
    phases: cython.longlong[:]

    def __init__(self, slots, rule, block, blocks, mark=0):
        self.rule, self.block, self.blocks, self.mark = rule, block, blocks, mark
        self.used = 0
        self.last = -1
        self.below = memoryview(np.full(slots, -1, np.int32))
        self.above = memoryview(np.full(slots, -1, np.int32))
        self.phases = memoryview(np.zeros(block, np.int64))

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def need(self, tokens: cython.longlong) -> cython.longlong:
        return (tokens + self.block - 1) // self.block

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def admit(self, tokens: cython.longlong, pending: cython.longlong) -> cython.bint:
        if self.rule == 2 and self.used + pending == 0:
            return self.need(tokens) <= self.blocks
        return self.used + pending + self.need(tokens) + self.mark <= self.blocks

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def join(self, slot: cython.int) -> cython.void:
        self.below[slot] = self.last
        self.above[slot] = -1
        if self.last >= 0:
            self.above[self.last] = slot
        self.last = slot

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def leave(self, slot: cython.int) -> cython.void:
        if self.below[slot] >= 0:
            self.above[self.below[slot]] = self.above[slot]
        if self.above[slot] >= 0:
            self.below[self.above[slot]] = self.below[slot]
        else:
            self.last = self.below[slot]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def growth(self, decodes: cython.longlong) -> cython.longlong:
        p: cython.longlong = (-decodes) % self.block
        if p < 0:
            p += self.block
        return self.phases[p]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def phase(self, tokens: cython.longlong, decodes: cython.longlong, by: cython.longlong) -> cython.void:
        p: cython.longlong = (tokens - decodes) % self.block
        if p < 0:
            p += self.block
        self.phases[p] += by


@cython.cclass
class Episode:
    # the case
    n: cython.int
    slots: cython.int
    prompt: cython.int[:]
    output: cython.int[:]
    release_ns: cython.longlong[:]
    cap: cython.longlong
    chunk: cython.longlong
    alpha_p: cython.longlong
    beta_p: cython.longlong
    alpha_d: cython.longlong
    beta_d: cython.longlong
    kv: KVCache
    has_kv: cython.bint
    # the state
    view: View
    completed: cython.int
    head: cython.int
    arrived: cython.int
    reading: cython.int
    computed: cython.longlong
    preempted: cython.int
    iterations: cython.longlong
    preemptions: cython.longlong
    emitted: cython.int[:]
    waits: cython.char[:]
    request: cython.int[:]
    base: cython.longlong[:]
    follows: cython.int[:]
    ring: cython.int[:]
    mask: cython.longlong
    free_slots: cython.int[:]
    # the batch
    rows: cython.int
    row_slot: cython.int[:]
    row_tokens: cython.longlong[:]
    tokens: cython.longlong
    decoding: cython.bint
    pending: cython.longlong

    def __init__(self, requests, slots, cost, cap=2048, chunk=0, kv=None):
        self.n = len(requests)
        self.slots = slots
        table = np.array(requests, np.int64)
        self.release_ns = memoryview(np.ascontiguousarray(table[:, 0]))
        self.prompt = memoryview(np.ascontiguousarray(table[:, 1].astype(np.int32)))
        self.output = memoryview(np.ascontiguousarray(table[:, 2].astype(np.int32)))
        self.alpha_p, self.beta_p, self.alpha_d, self.beta_d = cost
        self.cap, self.chunk = cap, chunk
        self.has_kv = kv is not None
        self.kv = kv if kv is not None else KVCache(1, 1, 1, 1)
        self.view = View()
        self.view.idle = slots
        self.emitted = memoryview(np.zeros(self.n, np.int32))
        self.waits = memoryview(np.zeros(self.n, np.int8))
        self.request = memoryview(np.full(slots, -1, np.int32))
        self.base = memoryview(np.zeros(slots, np.int64))
        self.follows = memoryview(np.full(slots, -1, np.int32))
        size = 1
        while size <= int(table[:, 2].max()):
            size *= 2
        self.ring = memoryview(np.full(size, -1, np.int32))
        self.mask = size - 1
        self.free_slots = memoryview(np.arange(slots - 1, -1, -1).astype(np.int32))
        self.row_slot = memoryview(np.zeros(slots + 1, np.int32))
        self.row_tokens = memoryview(np.zeros(slots + 1, np.int64))
        self.resumed = False
        self.rows = 0
        self.preempted = 0
        self.reading = -1
        self.computed = 0
        self.completed = self.head = self.arrived = 0
        self.iterations = self.preemptions = 0
        self.settle()

    # ---- who is next

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def settle(self) -> cython.void:
        while self.arrived < self.n and self.release_ns[self.arrived] <= self.view.clock_ns:
            self.waits[self.arrived] = 1
            self.arrived += 1
            self.view.waiting += 1
        if self.view.waiting == 0 and self.view.active == 0 and self.reading < 0 and self.arrived < self.n:
            self.view.clock_ns = self.release_ns[self.arrived]
            while self.arrived < self.n and self.release_ns[self.arrived] <= self.view.clock_ns:
                self.waits[self.arrived] = 1
                self.arrived += 1
                self.view.waiting += 1
        while self.head < self.arrived and self.waits[self.head] == 0:
            self.head += 1
        if self.has_kv and self.kv.rule == 1 and self.view.active == 1 and self.kv.used == self.kv.blocks:
            self.preempt(self.kv.last)
        self.view.ready = min(self.view.idle, self.view.waiting)
        if (
            self.has_kv
            and self.view.ready > 0
            and not self.kv.admit(self.prompt[self.head] + self.emitted[self.head], 0)
        ):
            self.view.ready = 0

    # ---- compose

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def compose(self, action: cython.int) -> cython.void:
        room: cython.longlong
        want: cython.longlong
        part: cython.longlong
        i: cython.int
        slot: cython.int
        before: cython.longlong = self.preemptions
        self.rows = 0
        self.tokens = 0
        self.pending = 0
        self.decoding = action != PREFILL and self.view.active > 0
        room = 0
        if action == PREFILL:
            room = self.cap
        if self.has_kv and self.decoding:
            self.make_room(0)
            self.pending = self.kv.growth(self.view.decodes)
        if action == MIXED:
            room = self.chunk - self.view.active
        if room <= 0:
            return
        if self.reading >= 0:
            want = self.prompt[self.request[self.reading]] + self.emitted[self.request[self.reading]] - self.computed
            part = want if want < room else room
            if self.has_kv:
                while self.reading >= 0 and not self.kv_fits(self.computed + part):
                    self.preempt(self.kv.last)
                if self.reading < 0:
                    return
            self.add(self.reading, part)
            room -= part
        if self.preemptions > before:
            return
        i = self.head
        while room > 0 and self.view.waiting > 0 and self.view.idle > 0:
            while i < self.arrived and self.waits[i] == 0:
                i += 1
            if i >= self.arrived:
                return
            want = self.prompt[i] + self.emitted[i]
            part = want
            if want > room:
                if action == PREFILL:
                    if self.rows > 0:
                        return
                else:
                    part = room
            if self.has_kv and not self.kv.admit(want, self.pending):
                return
            self.view.idle -= 1
            slot = self.free_slots[self.view.idle]
            self.request[slot] = i
            self.waits[i] = 0
            self.view.waiting -= 1
            self.reading = slot
            self.computed = 0
            self.add(slot, part)
            room -= part
            i += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def kv_fits(self, tokens: cython.longlong) -> cython.bint:
        return self.kv.used - self.kv.need(self.computed) + self.kv.need(tokens) + self.pending <= self.kv.blocks

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def make_room(self, more: cython.longlong) -> cython.void:
        free: cython.longlong
        growth: cython.longlong
        while self.kv.last >= 0:
            free = self.kv.blocks - self.kv.used
            growth = self.kv.growth(self.view.decodes)
            if growth < free or (growth == free and self.kv.rule == 2):
                return
            if (
                growth == free
                and self.request[self.kv.last] >= 0
                and self.kv.last != self.reading
                and (self.held(self.kv.last) % self.kv.block) == 0
            ):
                return
            self.preempt(self.kv.last)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def held(self, slot: cython.int) -> cython.longlong:
        return self.prompt[self.request[slot]] + self.view.decodes - self.base[slot] - 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def add(self, slot: cython.int, tokens: cython.longlong) -> cython.void:
        self.row_slot[self.rows] = slot
        self.row_tokens[self.rows] = tokens
        self.rows += 1
        self.tokens += tokens
        if self.has_kv:
            self.pending += self.kv.need(self.computed + tokens) - self.kv.need(self.computed)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def preempt(self, slot: cython.int) -> cython.void:
        i: cython.int = self.request[slot]
        other: cython.int
        at: cython.longlong
        self.preemptions += 1
        if slot == self.reading:
            self.kv.used -= self.kv.need(self.computed)
            self.reading = -1
            self.computed = 0
        else:
            self.kv.used -= self.kv.need(self.held(slot))
            self.kv.phase(self.held(slot), self.view.decodes, -1)
            self.emitted[i] = cython.cast(cython.int, self.view.decodes - self.base[slot])
            at = (self.base[slot] + self.output[i]) & self.mask
            if self.ring[at] == slot:
                self.ring[at] = self.follows[slot]
            else:
                other = self.ring[at]
                while self.follows[other] != slot:
                    other = self.follows[other]
                self.follows[other] = self.follows[slot]
            self.view.active -= 1
        self.kv.leave(slot)
        self.request[slot] = -1
        self.free_slots[self.view.idle] = slot
        self.view.idle += 1
        self.waits[i] = 1
        self.view.waiting += 1
        self.head = min(self.head, i)

    # ---- duration, commit

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def duration(self) -> cython.longlong:
        if self.tokens == 0:
            return self.alpha_d + self.beta_d * self.view.active
        return self.alpha_p + self.beta_p * self.tokens + (self.beta_d * self.view.active if self.decoding else 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def commit(self) -> cython.void:
        slot: cython.int
        i: cython.int
        r: cython.int
        nxt: cython.int
        done: cython.longlong
        at: cython.longlong
        self.view.clock_ns += self.duration()
        self.iterations += 1
        if self.decoding:
            if self.has_kv:
                self.kv.used += self.kv.growth(self.view.decodes)
            self.view.decodes += 1
            slot = self.ring[self.view.decodes & self.mask]
            self.ring[self.view.decodes & self.mask] = -1
            while slot >= 0:
                nxt = self.follows[slot]
                self.view.active -= 1
                self.complete(slot)
                slot = nxt
        else:
            self.view.prefills += 1
        for r in range(self.rows):
            slot = self.row_slot[r]
            i = self.request[slot]
            done = self.row_tokens[r] + (self.computed if r == 0 and self.resumed else 0)
            if r == 0 and self.resumed:
                if self.has_kv:
                    self.kv.used += self.kv.need(done) - self.kv.need(self.computed)
            elif self.has_kv:
                self.kv.used += self.kv.need(done)
                self.kv.join(slot)
            if done < self.prompt[i] + self.emitted[i]:
                self.reading = slot
                self.computed = done
                continue
            self.reading = -1
            self.computed = 0
            self.base[slot] = self.view.decodes - self.emitted[i] - 1
            if self.has_kv:
                self.kv.phase(done, self.view.decodes, 1)
            if self.emitted[i] + 1 == self.output[i]:
                self.complete(slot)
                continue
            at = (self.base[slot] + self.output[i]) & self.mask
            self.follows[slot] = self.ring[at]
            self.ring[at] = slot
            self.view.active += 1

    resumed: cython.bint

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(self, slot: cython.int) -> cython.void:
        if self.has_kv:
            self.kv.used -= self.kv.need(self.held(slot))
            self.kv.phase(self.held(slot), self.view.decodes, -1)
            self.kv.leave(slot)
        self.request[slot] = -1
        self.free_slots[self.view.idle] = slot
        self.view.idle += 1
        self.completed += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _advance(self, action: cython.int) -> cython.void:
        if action == PREFILL and self.view.ready == 0:
            action = DECODE
        elif action == DECODE and self.view.active == 0:
            action = PREFILL
        held: cython.int = self.reading
        computed: cython.longlong = self.computed
        self.compose(action)
        if self.rows == 0 and not self.decoding:
            self.settle()
            return
        self.resumed = held >= 0 and self.rows > 0 and self.row_slot[0] == held
        if self.resumed:
            self.computed = computed
        self.commit()
        self.settle()

    def advance(self, action: cython.int):
        self._advance(action)

    def run(self, rule: Rule):
        with cython.nogil:
            while self.completed < self.n:
                self._advance(rule.act(self.view))
        return self.iterations

    def result(self):
        return self.view.clock_ns, self.view.prefills, self.view.decodes, self.preemptions, self.iterations
