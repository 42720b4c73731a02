"""The engine against a plain simulator of the same system, after every iteration of random episodes."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from reference import Reference
from strategies import ACTIONS, REPEATABLE, cases

from llmsched_env.simulator import Simulator


def assert_same_state(simulator, reference):
    view, totals = simulator.view, simulator.totals
    expected = reference.view()
    assert {name: getattr(view, name) for name in expected} == expected
    # The latest expected end: only the active clients' decide it.
    assert max(0, view.last_due - view.decodes) == max([0, *reference.expected])
    assert totals.jump_ns == reference.jump_ns
    assert totals.idle_client_decodes == reference.idle_client_decodes
    assert totals.invalid_actions == reference.invalid_actions
    assert totals.steals == reference.steals
    assert simulator.done == reference.done
    assert simulator.can_decode == bool(reference.active)
    assert simulator.can_prefill == (reference.ready > 0)
    if len(reference.log) % 4 == 0 or reference.done:  # the reference adds them up anew; what goes wrong stays wrong
        assert totals.busy_client_ns == reference.busy_client_ns()
        assert totals.request_ns == reference.request_ns()
        assert totals.prefill_time_ns == sum(end - start for start, end, prefill, _ in reference.log if prefill)


def assert_same_history(simulator, reference):
    assert [tuple(int(x) for x in entry)[:4] for entry in simulator.log] == reference.log
    for request, entry in enumerate(simulator.served):
        assert entry.client == reference.client.get(request, 0)
        assert entry.prefill_start_ns == reference.prefill_start_ns.get(request, 0)
        assert entry.first_token_ns == reference.first_token_ns.get(request, 0)
        assert entry.completion_ns == reference.completion_ns.get(request, 0)
    totals = simulator.totals
    assert totals.max_batch_tokens == max(reference.batches)
    assert totals.min_batch_tokens == min(reference.batches)
    if reference.active_at_decodes:
        assert totals.min_active == min(reference.active_at_decodes)


def test_it_equals_the_reference_after_every_iteration():
    seen = Counter()

    @settings(REPEATABLE, max_examples=400)
    @given(case=cases(), actions=ACTIONS)
    def check(case, actions):
        simulator, reference = Simulator(case.problem(), record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            overdue = any(left <= 0 for left in reference.expected)
            simulator.step(action)
            reference.step(action)
            assert_same_state(simulator, reference)
            seen["overdue"] += overdue
        assert_same_history(simulator, reference)
        seen["steals"] += reference.steals > 0
        seen["cap"] += reference.stopped_at_cap > 0
        seen["jump"] += reference.jump_ns > 0
        seen["arrival inside an iteration"] += reference.arrived_inside > 0
        seen["invalid"] += reference.invalid_actions > 0
        seen["prompt above the cap"] += max(case.prompts) > case.token_cap
        seen["levels"] += bool(case.levels)
        seen["context"] += case.gamma_decode_ns > 0
        seen["first decode"] += case.first_decode_ns > 0
        seen["early"] += any(e > o for e, o in zip(case.estimates, case.outputs, strict=True))
        seen["far"] += max(case.outputs) > 64
        for name in ("shared", "client"):
            seen[name, case.order] += (case.queues is None) == (name == "shared")
        seen["single token"] += 1 in case.outputs

    check()
    rare = {name: count for name, count in seen.items() if count < 5}
    assert not rare, f"hardly tested: {rare}"
    assert len(seen) == 21


def test_batch_expected_on_client_queues_is_exact_where_it_can_be():
    seen = Counter()

    @settings(REPEATABLE, max_examples=200)
    @given(case=cases(longest=20), actions=ACTIONS)
    def check(case, actions):
        queues = case.queues or tuple(i % case.num_clients for i in range(len(case.prompts)))
        case = replace(case, queues=queues)
        simulator, reference = Simulator(case.problem()), Reference(case)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            view, batch = simulator.view, reference.compose()
            tokens = sum(case.prompts[i] for _, i in batch)
            assert (view.batch_requests == 0) == (not batch)
            assert view.batch_requests <= view.ready
            assert view.batch_tokens <= max(case.token_cap, *case.prompts)
            everything = len(reference.waiting) == reference.ready
            if len(batch) == reference.ready and (everything or not case.stealing) and tokens <= case.token_cap:
                work = sum(case.estimates[i] for _, i in batch)
                assert (view.batch_requests, view.batch_tokens, view.batch_work) == (len(batch), tokens, work)
                assert view.prefill_ns == reference.prefill_ns(tokens, case) or not batch
                seen["exact with stealing" if case.stealing else "exact"] += len(batch) > 1
            else:
                seen["expected"] += 1
            simulator.step(action)
            reference.step(action)

    check()
    assert min(seen["exact"], seen["exact with stealing"], seen["expected"]) > 10, seen
