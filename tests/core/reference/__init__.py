"""The system of docs/model.md once more, as plainly as it can be said: lists, loops, everything counted anew each time.

Shares nothing with the package, so that what both say is likely to be true. A layer a file: the state, what iterations
last, the KV cache, iterations on a shared queue, prefills on client queues, and here the step and what is seen.
"""

from __future__ import annotations

from strategies import CHOICES, DECODE, MIXED, PREFILL, Case

from .client_queues import ClientQueues
from .durations import factors, mixed
from .shared_queue import Iteration, SharedQueue

__all__ = ["CHOICES", "Iteration", "Reference", "factors", "mixed"]

WINDOWS = {"due_1": (1, 1), "due_4": (2, 4), "due_16": (5, 16), "due_64": (17, 64), "due_256": (65, 256)}


class Reference(SharedQueue, ClientQueues):
    """One episode of a case, and what is seen of it."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.let_time_pass()

    @property
    def shared(self) -> bool:
        return self.case.queues is None

    def step(self, action: int) -> None:
        kind = self.case.action(action)[0]
        reading = kind == MIXED and self.reading is not None
        if kind != DECODE and not self.ready and not reading:
            self.invalid_actions += 1
            action = DECODE
        elif kind == DECODE and not self.active:
            self.invalid_actions += 1
            action = PREFILL
        if action == DECODE or self.shared:
            self.iterate(action)
        else:
            self.prefill_on_queues()
        self.let_time_pass()

    def let_time_pass(self) -> None:
        """Arrivals up to now; where nothing is left to do, the time until the next."""
        self.release()
        busy = self.active or self.waiting or self.preempted or self.reading
        if self.unreleased and not busy:
            next_ns = self.case.releases_ns[self.unreleased[0]]
            self.jump_ns += next_ns - self.clock_ns
            self.clock_ns = next_ns
            self.release()
        self.settle_memory()
        self.ready = self.ready_to_read if self.shared else self.ready_at_queues

    # What is seen.

    def view(self) -> dict[str, int]:
        """The fields of a view that have one exact value."""
        case, expected = self.case, self.expected
        on_time = [left for left in expected if left > 0]
        decode = self.iteration(DECODE)
        fields = {
            "clock_ns": self.clock_ns,
            "prefills": self.kinds.count(PREFILL),
            "decodes": self.kinds.count(DECODE),
            "completed": len(self.completion_ns),
            "num_clients": case.num_clients,
            "active": len(self.active),
            "idle": len(self.idle),
            "waiting": len(self.waiting),
            "ready": self.ready,
            "decode_ns": self.iteration_ns(decode, DECODE, self.believed),
            "consecutive_prefills": self.consecutive_prefills,
            "idle_charge": sum(self.ready_at_decodes),
            "waiting_tokens": sum(case.prompts[i] for i in self.waiting),
            "waiting_work": sum(case.estimates[i] for i in self.waiting),
            "context_tokens": self.context_tokens,
            "overdue": len(expected) - len(on_time),
            "remaining": sum(on_time),
            "remaining_squared": sum(left * left for left in on_time),
        }
        for name, (first, last) in WINDOWS.items():
            fields[name] = sum(1 for left in on_time if first <= left <= last)
        if self.last_read >= 0:
            fields["last_prefill_ns"] = self.log[self.last_read][1] - self.log[self.last_read][0]
            fields["last_prefill_decode"] = self.kinds[: self.last_read + 1].count(DECODE)
        if self.waiting:
            fields["oldest_release_ns"] = min(case.releases_ns[i] for i in self.waiting)
        if case.ttft_ns:
            fields.update(self.view_of_slo())
        if self.shared:
            fields.update(self.view_of_batch())
        if case.mixed is not None:
            fields.update(self.view_of_mixed())
        if case.kv_cache is not None:
            fields["kv_budget_tokens"] = case.kv_cache.budget_tokens
            fields["kv_used"] = self.kv_used
            fields["kv_growth"] = self.growth(decode.served)
            fields["preempted"] = len(self.preempted)
        return fields

    def view_of_slo(self) -> dict[str, int]:
        case = self.case
        in_time = [case.releases_ns[i] for i in self.waiting if not self.late(i)]
        return {
            "ttft_ns": case.ttft_ns,
            "tpot_ns": case.tpot_ns,
            "late": len(self.waiting) - len(in_time),
            "in_time_release_ns": min(in_time, default=self.clock_ns),
            "decoding_ns": sum(self.clock_ns - self.first_token_ns[held.request] for held in self.active),
            "decoding_tokens": sum(held.emitted - 1 for held in self.active),
        }

    def view_of_batch(self) -> dict[str, int]:
        """Of the prefill of action 1."""
        batch = self.iteration(PREFILL)
        fields = {
            "batch_requests": len(batch.rows),
            "batch_tokens": batch.tokens,
            "batch_work": sum(max(1, self.case.estimates[row.request] - row.emitted) for row in batch.rows),
        }
        if batch.rows:
            fields["prefill_ns"] = self.iteration_ns(batch, PREFILL, self.believed)
        return fields

    def view_of_mixed(self) -> dict[str, int]:
        action = self.case.first_mixed
        it = self.iteration(action)
        return {
            "chunk_tokens": it.tokens,
            "mixed_ns": self.iteration_ns(it, action, self.believed),
            "mixed_tokens": self.case.mixed.tokens,
            "mixed": self.mixed,
            "reading_tokens": 0 if self.reading is None else self.reading.left,
        }
