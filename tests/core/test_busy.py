"""An episode that runs is not changed by anybody else: by another thread, or by the rule that it asks."""

from __future__ import annotations

import pickle
import sys
import threading

import numpy as np
import pytest

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine.rule import PythonRule
from llmsched_env.engine.rules import ReadyThreshold
from llmsched_env.errors import BusyError
from llmsched_env.simulator import Simulator
from llmsched_env.vector_env import LLMSchedVectorEnv

SMALL = Scenario(num_clients=8, num_requests=300, queue="shared", order="fcfs", workload="lognormal")


@pytest.mark.parametrize("call", ["step", "reset", "run"])
@pytest.mark.parametrize("record", [False, True])
def test_a_rule_that_goes_on_with_what_asks_it(call, record):
    simulator = Simulator(build_problem(SMALL, 0), record=record)
    calls = {
        "step": lambda: simulator.step(1),
        "reset": simulator.reset,
        "run": lambda: simulator.run(ReadyThreshold(1)),
    }

    def meddle(view):
        calls[call]()
        return 1

    with pytest.raises(BusyError, match="this episode is running"):
        simulator.run(PythonRule(meddle))
    simulator.run(ReadyThreshold(1))  # it can be gone on with
    assert simulator.done


def test_a_rule_may_fork_what_asks_it():
    simulator = Simulator(build_problem(SMALL, 0))
    clocks = []

    def look_ahead(view):
        twin = simulator.fork()
        twin.step(1)
        clocks.append((view.clock_ns, twin.view.clock_ns))
        return 1

    simulator.run(PythonRule(look_ahead))
    assert len(clocks) > 10
    assert all(now < later for now, later in clocks)


def test_a_copy_that_a_rule_has_pickled_can_be_gone_on_with():
    simulator, kept = Simulator(build_problem(SMALL, 0)), []

    def keep(view):
        if not kept:
            kept.append(pickle.dumps(simulator))
        return 1

    simulator.run(PythonRule(keep))
    again = pickle.loads(kept[0])
    again.step(1)
    again.run(ReadyThreshold(1))
    assert again.done


def test_a_policy_cannot_write_its_view():
    view = Simulator(build_problem(SMALL, 0)).view
    assert not hasattr(type(view), "take")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_that_step_the_same_copies(threads):
    """Each step is done as if alone, or refused in a sentence; the process lives."""
    env = LLMSchedVectorEnv(64, SMALL, threads=threads)
    env.reset(seed=0)
    outcomes: list[str] = []

    def go(seed):
        rng = np.random.default_rng(seed)
        for i in range(150):
            try:
                if i % 50 == 49:
                    env.reset(seed=seed)
                else:
                    env.step(rng.integers(0, 2, 64))
                outcomes.append("done")
            except BusyError as error:
                outcomes.append(str(error))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=go, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert len(outcomes) == 600
    assert outcomes.count("done") > 10
    assert all(outcome == "done" or "this vector environment is running" in outcome for outcome in outcomes)
    env.close()
