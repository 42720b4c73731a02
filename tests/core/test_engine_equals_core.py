"""The engine against the core, after every iteration: every field of the view, every total, and the recordings."""

from __future__ import annotations

import random

import numpy as np
import pytest
from adapter import engine_of
from episodes import CASES

from llmsched_env.config import REWARDS
from llmsched_env.core.layout import View as CoreView
from llmsched_env.core.measure import measure_so_far
from llmsched_env.engine.measure import MEASURED
from llmsched_env.engine.view import FIELDS, TOTALS
from llmsched_env.metrics import final_metrics
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator

RENAMED = {
    "kv_budget": "kv_budget_tokens",
    "mixed_budget": "mixed_tokens",
    "ttft_ns": "ttft_sum_ns",
    "tpot_ns": "tpot_sum_ns",
}
VIEW = {name: RENAMED.get(name, name) if "kv" in name or "mixed" in name else name for name in CoreView.__annotations__}
STATE = {RENAMED.get(name, name): name for name in ("ttft_ns", "tpot_ns")} | {
    name: name for name in TOTALS if name not in ("charged", "ttft_sum_ns", "tpot_sum_ns")
}


def assert_same(simulator, episode):
    core, view, totals = simulator.view, episode.view, episode.totals
    for theirs, ours in VIEW.items():
        if theirs == "last_due":  # up to the decode count where none is expected
            assert max(0, core.last_due - core.decodes) == max(0, view.last_due - view.decodes)
        elif theirs != "prefill_ns" or core.batch_requests:
            assert getattr(core, theirs) == getattr(view, ours), ours
    for ours, theirs in STATE.items():
        assert simulator.totals[theirs] == getattr(totals, ours), ours
    assert simulator.charge == episode.charge()
    if core.batch_requests or not core.mixed_budget:  # a share of no batch
        assert np.array_equal(features(core), episode.observation())
    assert np.array_equal(list(final_metrics(simulator).values()), episode.measured(), equal_nan=True)
    found = np.empty(len(MEASURED))
    measure_so_far(*(array[0] for array in simulator.memory.call_arrays), found)
    assert np.array_equal(found, episode.measured(infos=True))


@pytest.mark.parametrize("kind", CASES)
def test_engine_equals_core_after_every_iteration(kind):
    assert sorted(VIEW.values()) == sorted(FIELDS)
    happened = 0
    for seed in range(40):
        case = CASES[kind](seed)
        objective = case.ttft_ns and seed % 3
        instance = case.instance(reward="goodput" if objective else REWARDS[seed % (len(REWARDS) - 1)])
        simulator, episode = Simulator(instance, record=True), engine_of(instance, case, record=True)
        rng = random.Random(seed)
        assert_same(simulator, episode)
        while not simulator.done:
            action = rng.randrange(instance.num_actions)
            simulator.step(action)
            episode.step(action)
            assert_same(simulator, episode)
            happened += 1
        recorder = episode.recorder
        assert np.array(simulator.log.tolist()).tolist() == np.asarray(recorder.log)[: recorder.logged].tolist()
        served = np.asarray(recorder.served)[np.argsort(instance.request_of)]
        assert np.array(simulator.served.tolist()).tolist() == served.tolist()
    assert happened > 40 * 40


def test_a_forecast_that_nobody_kept_is_counted_anew():
    for seed in range(20):
        episodes = [engine_of(CASES["promised"](seed).instance(), CASES["promised"](seed)) for _ in range(2)]
        episodes[1].set_forecast(False)
        rng = random.Random(seed)
        while episodes[0].feasible_now():
            action = rng.randrange(episodes[0].problem.num_actions)
            for episode in episodes:
                episode.step(action)
            if rng.randrange(9) == 0:
                episodes[1].set_forecast(True)
                for name in FIELDS:
                    if name != "last_due":
                        assert getattr(episodes[0].view, name) == getattr(episodes[1].view, name), name
                episodes[1].set_forecast(False)
