"""The engine against the plain simulator, after every iteration, for every pair of mechanisms that go together.

``LLMSCHED_CASES=10000`` plays so many cases.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
from combinations import PAIRS, combined_actions, combined_case, pairs_of
from reference import Reference

CASES = int(os.environ.get("LLMSCHED_CASES", "600"))
RARE = (5871,)
"""Cases in which what happens seldom once went wrong: one in time gives way while it is read."""


def assert_same(episode, reference, where):
    view, totals = episode.view, episode.totals
    for name, value in reference.view().items():
        assert getattr(view, name) == value, (*where, name)
    assert max(0, view.last_due - view.decodes) == max([0, *reference.expected]), where
    expected = {
        "busy_client_ns": reference.busy_client_ns(),
        "request_ns": reference.request_ns(),
        "jump_ns": reference.jump_ns,
        "idle_client_decodes": reference.idle_client_decodes,
        "invalid_actions": reference.invalid_actions,
        "preemptions": reference.preemptions,
        "recomputed_tokens": reference.recomputed,
        "swapped_tokens": reference.swapped,
        "kv_peak": reference.kv_peak,
        "steals": reference.steals,
        "migrations": reference.migrations,
        "moved_tokens": reference.moved,
    }
    for name, value in expected.items():
        assert getattr(totals, name) == value, (*where, name)
    if reference.pool is not None:
        pool, prefix = reference.pool, episode.kv.prefix
        assert episode.view.kv_used == prefix.used * prefix.block, where
        assert totals.cached_tokens == reference.hit_tokens, where
        assert (prefix.fresh, len(prefix.free_labels())) == (pool.fresh, len(pool.free)), where
    if episode.slo.enabled:
        violating = reference.ttft_violations(), reference.tpot_violations()
        assert (totals.ttft_violations, totals.tpot_violations, totals.violations) == (
            *map(len, violating),
            len(set.union(*violating)),
        ), where


def assert_same_record(episode, reference):
    recorder = episode.recorder
    log = np.asarray(recorder.log)[: recorder.logged, :4]
    assert log.tolist() == [list(entry) for entry in reference.log]
    served = np.asarray(recorder.served)[np.asarray(episode.problem.position_of)]
    for request, (client, start_ns, first_ns, end_ns) in enumerate(served[:, :4].tolist()):
        assert client == reference.client[request]
        assert start_ns == reference.prefill_start_ns[request]
        assert first_ns == reference.first_token_ns[request]
        assert end_ns == reference.completion_ns[request]


def test_it_equals_the_reference_for_every_pair_of_mechanisms():
    met, gave_way = Counter(), Counter()
    for seed in (*range(CASES), *RARE):
        case = combined_case(seed)
        problem = case.problem()
        episode, reference = problem.episode(record=True), Reference(case)
        assert problem.num_actions == case.num_actions
        actions, step = combined_actions(seed), 0
        assert_same(episode, reference, (seed, step))
        while not reference.done:
            action = case.number(*actions[step % len(actions)])
            episode.step(action)
            reference.step(action)
            step += 1
            assert_same(episode, reference, (seed, step))
        assert_same_record(episode, reference)
        met.update(pairs_of(case))
        if case.kv_cache is not None:
            gave_way[case.kv_cache.rule, case.mixed is not None] += reference.preemptions > 0
    rare = [pair for pair in PAIRS if met[pair] < 3]
    assert not rare, f"hardly tested: {rare}"
    assert len(gave_way) == 5
    assert min(gave_way.values()) > 5, gave_way
