"""Prefills on client queues: who starts, who takes from whom, and whose cache moves."""

from __future__ import annotations

from typing import Any

from strategies import PREFILL

from .durations import Durations
from .state import Running


class NothingMoves:
    """Where a case does not say anything of caches."""

    cached_millionths, steal, token_ns = 0, "waiting", 0


class ClientQueues(Durations):
    """Parts of prompts may be cached with the client in whose queue a request waits."""

    @property
    def moves(self) -> Any:
        return self.case.migration or NothingMoves

    def cached(self, request: int) -> int:
        """Tokens of its prompt that its own client need not compute."""
        return self.case.prompts[request] * self.moves.cached_millionths // 10**6

    def work(self, client: int, waiting: list[int], running: list[Running | None]) -> int:
        """Expected work of a client that can be robbed; -1 where nothing waits in its queue."""
        queue, held = self.own(client, waiting), running[client]
        if not queue:
            return -1
        left = 0 if held is None else max(0, self.case.estimates[held.request] - held.emitted)
        return left + sum(self.case.estimates[i] for i in queue)

    @property
    def ready_at_queues(self) -> int:
        if self.case.stealing:
            return min(len(self.idle), len(self.waiting))
        return sum(1 for client in self.idle if self.own(client, self.waiting))

    def compose_with_moves(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], int, int, int]:
        """Who starts (client, request), who takes over from whom (thief, victim), and tokens: computed, copied, again.

        Again are those of the computed that somebody has in a cache.
        """
        case, moves = self.case, self.moves
        waiting, running = list(self.waiting), list(self.running)
        starts: list[tuple[int, int]] = []
        overs: list[tuple[int, int]] = []
        computed, copied, again = 0, 0, 0
        for client in self.idle:
            victim = client
            if not self.own(client, waiting) and case.stealing and waiting:
                victim = max(range(case.num_clients), key=lambda j: (self.work(j, waiting, running), -j))
            queue = self.own(victim, waiting)
            if not queue:
                continue
            request = queue[0]
            rest, cached, over = case.prompts[request] - self.cached(request), self.cached(request), False
            to_move = 0 if victim == client else cached
            held = self.running[victim]
            if victim != client and held is not None and running[victim] is held and moves.steal != "waiting":
                context = self.context(held.request, held.emitted)
                fits = moves.token_ns > 0 or rest + context <= case.token_cap
                over = fits and (moves.steal == "running" or context < cached)
                to_move = context if over else to_move
            tokens = rest + (0 if moves.token_ns else to_move)
            if starts and computed + tokens > case.token_cap:
                break
            computed += tokens
            if moves.token_ns:
                copied += to_move
            else:
                again += to_move
            if over:
                overs.append((client, victim))
            starter = victim if over else client
            starts.append((starter, request))
            running[starter] = Running(request)
            waiting.remove(request)
        return starts, overs, computed, copied, again

    def compose(self) -> list[tuple[int, int]]:
        """Who would start on a client queue: (client, request)."""
        return self.compose_with_moves()[0]

    def prefill_on_queues(self) -> None:
        case, moves, start_ns = self.case, self.moves, self.clock_ns
        starts, overs, computed, copied, again = self.compose_with_moves()
        copying_ns = copied * moves.token_ns
        self.stopped_at_cap += len(starts) < self.ready_at_queues
        self.clock_ns += self.actual_duration_ns(self.prefill_ns(computed, case) + copying_ns, PREFILL)
        self.batches.append(computed)
        self.computed += computed
        self.migrations += len(overs)
        self.moved += copied
        self.recomputed += again
        self.move_ns += copying_ns
        for thief, victim in overs:
            held = self.running[victim]
            self.running[thief], self.running[victim] = held, None
            self.client[held.request] = thief
            if not moves.token_ns:
                held.emitted += 1
                self.token_ns[held.request].append(self.clock_ns)
        robbed = {victim for _, victim in overs}
        for client, request in starts:
            self.waiting.remove(request)
            self.running[client] = Running(request)
            self.client[request] = client
            self.prefill_start_ns[request] = start_ns
            self.first_token_ns[request] = self.clock_ns
            self.token_ns[request] = [self.clock_ns]
            self.steals += case.queues[request] != client
            assert client not in robbed or case.queues[request] == client
        self.last_read = len(self.log)
        self.write_down(start_ns, PREFILL, len(starts) + len(overs))
        self.ready_at_decodes = []
        self.retire()
