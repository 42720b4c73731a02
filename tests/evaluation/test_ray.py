"""Studies on Ray, started on this machine: what holds for other engines holds for this one."""

from __future__ import annotations

from copy import deepcopy

import pytest
from test_parallel import CASES, Coin, Mortal, same
from test_rollouts import SMALL, Compiled

from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.evaluation import WorkerError, evaluate
from llmsched_env.studies.accelerators import accelerators

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[cluster]'")

ON_RAY = {"engine": "ray", "workers": 2}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of its own default
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


@pytest.mark.parametrize("policy", [Coin(), Compiled()], ids=["asked", "compiled"])
def test_results_are_those_of_one_process(policy, tmp_path):
    ticks = []
    shared = evaluate(policy, SMALL, CASES, seed=3, chunk=2, folder=tmp_path, progress=ticks.append, **ON_RAY)
    # A copy, since playing changes the state by which a policy is told from others.
    assert same(shared, evaluate(deepcopy(policy), SMALL, CASES, seed=3))
    assert sum(ticks) == len(CASES)
    # Chunks are the same whoever wrote them.
    ticks.clear()
    assert same(shared, evaluate(policy, SMALL, CASES, seed=3, chunk=2, folder=tmp_path, progress=ticks.append))
    assert ticks == [len(CASES)]


def test_a_dead_worker(tmp_path):
    policy = Mortal(tmp_path / "notes", dies_in=11, marker=tmp_path / "marker", study=tmp_path / "study")
    options = {**ON_RAY, "chunk": 1, "folder": tmp_path / "study"}
    with pytest.raises(WorkerError, match=r"a worker of engine 'ray' died .ActorDiedError.*run the same again"):
        evaluate(policy, SMALL, range(12), **options)
    done = len([*(tmp_path / "study").glob("cases-*.npz")])
    assert 0 < done < 12
    policy.episodes()
    again = evaluate(policy, SMALL, range(12), **options)
    assert policy.episodes() == 12 - done
    assert same(again, evaluate(Coin(), SMALL, range(12)))


class Wild(Coin):
    """Takes an action that there is not."""

    def act(self, view):
        return 2


def test_an_error_of_a_policy_arrives():
    with pytest.raises(InvalidActionError, match=r"policy 'coin'.*action 2"):
        evaluate(Wild(), SMALL, CASES, chunk=2, **ON_RAY)


def test_more_workers_than_the_cluster_has():
    with pytest.raises(ConfigError, match=r"workers = 3: .*only 2 CPUs.*-1 for all"):
        evaluate(Coin(), SMALL, CASES, chunk=2, engine="ray", workers=3)
    assert same(evaluate(Coin(), SMALL, CASES, chunk=2, engine="ray", workers=-1), evaluate(Coin(), SMALL, CASES))


def test_several_accelerators():
    alone = accelerators("gsm8k", 4, 100, "lpt", 2)
    assert accelerators("gsm8k", 4, 100, "lpt", 2, **ON_RAY) == alone
