"""The state of an episode, what is counted on the way, and what follows from it: who is idle, waits, or is late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from strategies import DECODE, PREFILL, Case

from .prefixes import Pool


class Running:
    """A request on a client."""

    def __init__(self, request: int, emitted: int = 1) -> None:
        self.request = request
        self.emitted = emitted


class Reading:
    """A request of whose prompt, or of the context that it lost, a part has been computed."""

    def __init__(
        self, request: int, client: int, start_ns: int, whole: int, computed: int, emitted: int, late: bool, cached: int
    ) -> None:
        self.request, self.client, self.start_ns = request, client, start_ns
        self.whole, self.computed = whole, computed  # tokens
        self.emitted = emitted  # before it lost its context
        self.late = late  # when its reading began
        self.cached = cached  # tokens that were in the prefix cache then

    @property
    def left(self) -> int:
        return self.whole - self.computed


class State:
    """One episode of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.believed = case.believed  # with the cost model that schedulers believe in
        self.clock_ns = 0
        self.jump_ns = 0
        self.running: list[Running | None] = [None] * case.num_clients
        self.reading: Reading | None = None
        self.waiting: list[int] = []
        self.ready = 0  # how many of them a prefill could start, counted when time has passed
        self.preempted: dict[int, int] = {}  # output tokens by request
        self.unreleased = list(range(len(case.prompts)))
        self.starts: list[int] = []  # clients that run, by when they started
        self.just_read: list[int] = []  # those of them that the iteration which ends now has read
        self.pool = Pool(case) if case.kv_cache is not None and case.kv_cache.prefix_caching else None
        self.hit_tokens = 0  # of prompts that were in the prefix cache
        self.swap_out_ns = 0

        self.client: dict[int, int] = {}
        self.prefill_start_ns: dict[int, int] = {}
        self.first_token_ns: dict[int, int] = {}
        self.completion_ns: dict[int, int] = {}
        self.token_ns: dict[int, list[int]] = {}  # of every token, by request
        self.log: list[tuple[int, int, int, int]] = []
        self.kinds: list[int] = []  # of what is in the log
        self.last_read = -1  # the last iteration that read or copied something
        self.ready_at_decodes: list[int] = []  # since then
        self.read_at_ns: list[int] = []  # client time of requests whose prefill was chunked
        self.batches: list[int] = []  # tokens computed in each prefill
        self.active_at_decodes: list[int] = []

        self.computed = 0  # tokens, by all iterations
        self.idle_client_decodes = 0
        self.invalid_actions = 0
        self.steals = 0
        self.stopped_at_cap = 0
        self.arrived_inside = 0
        self.chosen: Counter[str] = Counter()
        self.overtaken = 0  # prefills that did not take the oldest first
        self.preemptions = 0
        self.gave_way_alone = 0
        self.gave_way_reading = 0
        self.fell_back = 0  # iterations that went by the order of action 1
        self.recomputed = 0
        self.swapped = 0
        self.kv_peak = 0
        self.mixed = 0
        self.read_beside = 0  # tokens computed in mixed iterations with somebody active
        self.chunked_prefills = 0  # requests whose prefill was chunked
        self.migrations = 0
        self.moved = 0
        self.move_ns = 0
        self.stragglers = 0

    @property
    def active(self) -> list[Running]:
        return [held for held in self.running if held is not None]

    @property
    def idle(self) -> list[int]:
        return [client for client, held in enumerate(self.running) if held is None]

    @property
    def done(self) -> bool:
        return len(self.completion_ns) == len(self.case.prompts)

    def context(self, request: int, emitted: int) -> int:
        return self.case.prompts[request] + emitted

    def emitted(self, request: int) -> int:
        """Output tokens so far, wherever the request is."""
        held = [one.emitted for one in [*self.active, self.reading] if one is not None and one.request == request]
        done = self.case.outputs[request] if request in self.completion_ns else 0
        return held[0] if held else self.preempted.get(request, done)

    @property
    def context_tokens(self) -> int:
        return sum(self.context(held.request, held.emitted) for held in self.active)

    @property
    def expected(self) -> list[int]:
        """Decodes that each active client is expected to go; 0 or less where the estimate was outlived."""
        return [self.case.estimates[held.request] - held.emitted for held in self.active]

    # Queues.

    def own(self, client: int, waiting: Iterable[int], order: str = "") -> list[int]:
        """What waits in a client's queue, in the order in which it is to be taken; by default that of action 1."""
        case, order = self.case, order or self.first_order
        if order.startswith("window"):
            line = sorted(waiting, key=lambda i: (-case.estimates[i], i))
            clients = len(self.idle) - (self.reading is not None)
            left = len(line) - min(clients, len(line))
            return line[left * int(order.removeprefix("window ")) // 16 :]
        mine = sorted(i for i in waiting if case.queues is None or case.queues[i] == client)
        mine.sort(key=lambda i: self.key(order, i))  # those before the same stay in their order
        if "late_last" in order:
            mine.sort(key=self.late)
        return mine

    def key(self, order: str, request: int) -> float:
        """What an order sorts by, smallest first; the same for all where it is by release."""
        prompt, output = self.case.prompts[request], self.case.estimates[request]
        if order == "sorted_f":
            return self.sorted_f.index(request)
        if "volume" in order:  # what it holds at each of its tokens
            return sum(prompt + token for token in range(1, output + 1))
        if "aged" in order:
            return output + self.case.aging_tokens_per_s * (self.case.releases_ns[request] / 1e9)
        return -output if "longest" in order else output if "shortest" in order else 0

    @cached_property
    def sorted_f(self) -> list[int]:
        """All requests, batch by batch: each the one of least sum / number^2 that some weights find."""
        outputs, budget = self.case.estimates, self.case.kv_cache.budget_tokens
        sizes = [min(budget, prompt + output) for prompt, output in zip(self.case.prompts, outputs, strict=True)]
        weights = [(1, 0), *((2**j, 1) for j in range(10, 0, -1)), *((1, 2**j) for j in range(11)), (0, 1)]
        left, line = set(range(len(outputs))), []
        while left:
            batches = []
            for a, b in weights:
                ranked = sorted(left, key=lambda i, a=a, b=b: (a * outputs[i] + b * sizes[i], i))
                batches += [
                    ranked[:k] for k in range(1, len(ranked) + 1) if sum(sizes[i] for i in ranked[:k]) <= budget
                ]
            batch = min(batches, key=lambda some: sum(outputs[i] for i in some) / len(some) ** 2)
            line += sorted(batch, key=lambda i: (outputs[i], i))
            left -= set(batch)
        return line

    @property
    def first_order(self) -> str:
        """The order of action 1."""
        return self.case.action(PREFILL)[1]

    def late(self, request: int) -> bool:
        """Whether its first token cannot come in time any more."""
        return self.clock_ns + self.least_ns - self.case.releases_ns[request] > self.case.ttft_ns

    @cached_property
    def least_ns(self) -> int:
        """What an iteration with a first token is expected to last at least."""
        believed = self.believed
        least_ns = believed.levels[0][1] if believed.levels else believed.alpha_prefill_ns
        if believed.mixed is not None and not believed.mixed.cost.overlaps:
            least_ns = min(least_ns, believed.mixed.cost.alpha_ns)
        return least_ns

    # Time.

    def retire(self) -> None:
        for client in self.leaving:
            held = self.running[client]
            if held is not None and held.emitted == self.case.outputs[held.request]:
                self.give_up_blocks(client)
                self.completion_ns[held.request] = self.clock_ns
                self.running[client] = None
                if client in self.starts:
                    self.starts.remove(client)

    @property
    def leaving(self) -> list[int]:
        """Clients in the order in which they leave: the last to start first; then those read just now, as they were."""
        starts = [*(client for client in range(len(self.running)) if client not in self.starts), *self.starts]
        running = [client for client in reversed(starts) if client not in self.just_read]
        return [*running, *self.just_read]

    def give_up_blocks(self, client: int) -> None:
        """Whoever leaves gives back what it refers to."""

    def release(self) -> None:
        while self.unreleased and self.case.releases_ns[self.unreleased[0]] <= self.clock_ns:
            self.arrived_inside += self.case.releases_ns[self.unreleased[0]] < self.clock_ns
            self.waiting.append(self.unreleased.pop(0))
            self.waiting.sort()

    def write_down(self, start_ns: int, kind: int, clients: int) -> None:
        """An iteration that ends now."""
        self.log.append((start_ns, self.clock_ns, kind, clients))
        self.kinds.append(kind)

    # What is counted.

    def request_ns(self) -> int:
        """Time that requests spent in the system, in sum."""
        released = [i for i in range(len(self.case.prompts)) if i not in self.unreleased]
        return sum(self.completion_ns.get(i, self.clock_ns) - self.case.releases_ns[i] for i in released)

    def busy_client_ns(self) -> int:
        return sum((end - start) * clients for start, end, _, clients in self.log) + sum(self.read_at_ns)

    def counted(self) -> range:
        return range(self.case.uncounted, len(self.case.prompts) - self.case.uncounted)

    def ttft_violations(self) -> set[int]:
        """Counted requests that had their first token too late, or will: that is certain without noise only."""
        case = self.case
        started = {i for i, at in self.first_token_ns.items() if at - case.releases_ns[i] > case.ttft_ns}
        read_late = [self.reading.request] if self.reading is not None and self.reading.late else []
        given_up = [] if case.noise else [*read_late, *(i for i in self.waiting if self.late(i))]
        return {i for i in self.counted() if i in started or i in given_up}

    def tpot_violations(self) -> set[int]:
        """Counted requests that have ended too slowly."""
        case = self.case
        return {
            i
            for i in self.counted()
            if i in self.completion_ns
            and self.completion_ns[i] - self.first_token_ns[i] > case.tpot_ns * (case.outputs[i] - 1)
        }

    @property
    def consecutive_prefills(self) -> int:
        return next((i for i, kind in enumerate(reversed(self.kinds)) if kind == DECODE), len(self.kinds))
