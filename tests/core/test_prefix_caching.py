"""Prefix caching: on paper, as laws, and at the door. `test_combinations.py` compares it with the plain simulator."""

from __future__ import annotations

import numpy as np
import pytest
from combinations import combined_actions, combined_case
from reference import Reference
from strategies import Case

from llmsched_env import Scenario
from llmsched_env.config import KVCache
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.workload import Requests
from llmsched_env.workload.prefix_blocks import PrefixBlocks


def cache(blocks):
    return KVCache(2 * blocks, 2, rule="vllm_v1", prefix_caching=True)


def played(case, actions):
    """The episode after these actions."""
    episode = case.problem().episode(record=True)
    for action in actions:
        episode.step(action)
    return episode


TWICE = Case((5, 5), (3, 3), 2, prefixes=((7, 8, 9), (7, 8, 1)), prefix_tokens=2, kv_cache=cache(20))
"""Two prompts of five tokens: two full blocks alike, then a token that differs."""


def test_a_block_is_computed_once_and_held_once():
    """One prefill computes 5 + 1 tokens, 100 + 6 * 10 ns. It holds 2 blocks for both, and one more for each: 8 tokens.

    Each then holds 5 of 6 tokens: a decode takes no block, the next one does, for both.
    """
    episode = played(TWICE, [1])
    assert (episode.view.clock_ns, episode.view.kv_used, episode.totals.cached_tokens) == (160, 8, 4)
    episode.step(0)
    assert episode.view.kv_used == 8
    episode.step(0)
    assert (episode.view.completed, episode.view.kv_used) == (2, 0)
    apart = played(Case((5, 5), (3, 3), 2, kv_cache=KVCache(40, 2, rule="vllm_v1")), [1])
    assert (apart.view.clock_ns, apart.view.kv_used) == (200, 12)


def test_the_last_token_is_computed_in_any_case():
    """Prompts of four tokens, both blocks alike: the second reads one block, though the other is there, too."""
    case = Case((4, 4), (3, 3), 1, prefixes=((7, 8), (7, 8)), prefix_tokens=2, kv_cache=cache(20))
    episode = played(case, [1, 0, 0, 1])
    assert episode.totals.cached_tokens == 2
    assert episode.view.clock_ns == (100 + 40) + 2 * 51 + (100 + 20)


def test_what_nobody_asked_for_longest_goes_first():
    """Four blocks. A (ids 1 2) ends and leaves two blocks, the last first; B (ids 3 4) takes the two that are fresh.

    C (ids 5, one block and a token) needs two: the block of 2, then that of 1 go. D (ids 3 4) still finds block 3.
    """
    case = Case(
        (4, 4, 3, 4), (1, 1, 1, 1), 1,
        prefixes=((1, 2), (3, 4), (5,), (3, 4)), prefix_tokens=2, kv_cache=cache(4),
    )  # fmt: skip
    episode = played(case, [1, 1])
    assert episode.kv.prefix.fresh == 0
    episode.step(1)
    episode.step(1)
    assert episode.view.completed == 4
    assert episode.totals.cached_tokens == 2
    again = Case(
        (4, 4, 3, 4), (1, 1, 1, 1), 1,
        prefixes=((1, 2), (3, 4), (5,), (1, 2)), prefix_tokens=2, kv_cache=cache(4),
    )  # fmt: skip
    assert played(again, [1, 1, 1, 1]).totals.cached_tokens == 0


def prefix_cases():
    """Cases of any mechanisms with prefix caching, each played to the end beside nothing else."""
    for seed in range(900):
        case = combined_case(seed)
        if case.kv_cache is not None and case.kv_cache.prefix_caching:
            yield seed, case


def test_no_block_is_counted_twice_and_none_is_invented():
    """Used and free blocks are all there are; each free one stands in the queue once; nobody refers to a free one."""
    shared = 0
    for seed, case in prefix_cases():
        problem = case.problem()
        episode, actions, step = problem.episode(), combined_actions(seed), 0
        prefix = episode.kv.prefix
        while episode.view.completed < len(case.prompts):
            episode.step(case.number(*actions[step % len(actions)]))
            step += 1
            labels = prefix.free_labels()
            units = np.asarray(prefix.units)
            assert prefix.used + len(labels) + prefix.fresh == prefix.blocks
            known = [label for label in labels if label >= 0]
            assert len({*known}) == len(known)
            assert sorted(known) == np.flatnonzero(units < 0).tolist()
            assert (units > 0).sum() <= prefix.used <= prefix.blocks
            assert episode.view.kv_used == prefix.used * prefix.block <= case.kv_cache.budget_tokens
            shared += (units > 1).any()
        assert prefix.used == 0, "all have left"
        if case.noise is None:
            assert problem.bound_ns <= episode.view.clock_ns
    assert shared > 100


def test_without_alike_prompts_it_changes_nothing():
    """Ids that are all different: the iterations are those without prefix caching where nobody is preempted."""
    same = 0
    for seed, case in prefix_cases():
        if seed > 450:
            break
        apart = tuple(tuple(range(100 * i, 100 * i + len(ids))) for i, ids in enumerate(case.prefixes))
        on = Case(**{**vars_of(case), "prefixes": apart})
        off = Case(**{**vars_of(case), "prefixes": (), "kv_cache": without(case.kv_cache)})
        logs = []
        for one in (on, off):
            reference, actions, step = Reference(one), combined_actions(seed), 0
            episode = one.problem().episode(record=True)
            while not reference.done:
                action = one.number(*actions[step % len(actions)])
                episode.step(action)
                reference.step(action)
                step += 1
            logs.append((reference.preemptions, np.asarray(episode.recorder.log)[: episode.recorder.logged].tolist()))
        if logs[0][0] == logs[1][0] == 0:
            assert logs[0] == logs[1]
            same += 1
    assert same > 10


def vars_of(case):
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


def without(kv_cache):
    return KVCache(kv_cache.budget_tokens, kv_cache.block_tokens, kv_cache.headroom_tokens,
                   cap_levels=kv_cache.cap_levels, rule=kv_cache.rule)  # fmt: skip


def test_bad_input():
    alike = PrefixBlocks(np.array([1, 2, 1, 3]), np.array([0, 2, 4]), 16)
    two = Requests.of([20, 20], [5, 5], prefix_blocks=alike)
    assert two.prefix_blocks is alike
    with pytest.raises(WorkloadError, match="request 0 has 2 prefix blocks of 16 tokens and a prompt of 9"):
        Requests.of([9, 20], [5, 5], prefix_blocks=alike)
    with pytest.raises(WorkloadError, match="prefix_blocks are of 2 requests, but there are 3: give one each"):
        Requests.of([20, 20, 20], [5, 5, 5], prefix_blocks=alike)
    with pytest.raises(WorkloadError, match="prefix_blocks of 0 tokens: a block has at least one"):
        Requests.of([20, 20], [5, 5], prefix_blocks=PrefixBlocks(alike.ids, alike.starts, 0))
    kv = {
        "kv_budget_tokens": 1600,
        "kv_block_tokens": 16,
        "kv_prefix_caching": True,
        "queue": "shared",
        "order": "fcfs",
    }
    with pytest.raises(
        ConfigError, match=r"kv_prefix_caching = True with kv_rule = 'keep_growth': .* Set kv_rule='vllm_v1'"
    ):
        Scenario(**kv)
    with pytest.raises(WorkloadError, match="does not say what prompts are made of: take a trace with hash_ids"):
        LLMSchedEnv(Scenario(**kv, kv_rule="vllm_v1")).reset(seed=0)
    with pytest.raises(ConfigError, match=r"4194305 blocks .* 4194304 are the most. Lower the budget"):
        Scenario(**{**kv, "kv_budget_tokens": 2**22 + 1, "kv_block_tokens": 1}, kv_rule="vllm_v1")
    for tokens, words in (
        (24, "prefix blocks of 24 tokens and kv_block_tokens = 16"),
        (None, "an unknown number of tokens"),
    ):
        case = Requests.of([40, 40], [5, 5], prefix_blocks=PrefixBlocks(alike.ids, alike.starts, tokens))
        with pytest.raises(WorkloadError, match=words):
            problem_of(case)


def problem_of(requests):
    from llmsched_env.problem import Problem

    cost = Case((1,), (1,), 1).cost
    mechanism = KVCache(1600, 16, rule="vllm_v1", prefix_caching=True)
    return Problem.build(
        requests, requests.output_tokens, cost, 2, client_of=None, stealing=False, order="fcfs", bound_ns=0,
        mechanisms=(mechanism,),
    )  # fmt: skip
