"""Stored assignments: cache, shipped pools, and what happens when either is damaged."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from llmsched_env.errors import CacheError, ConfigError, UnknownNameError
from llmsched_env.offline import assign, pools, store, stored_assignment
from llmsched_env.workload import workload
from llmsched_env.workload.requests import Requests

CLIENTS = 7


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(store, "DATA", tmp_path / "data")
    store._pools.cache_clear()
    yield tmp_path
    store._pools.cache_clear()


def requests_of(seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests.of(np.ones(60, int), rng.integers(2, 400, 60))


def loads_of(requests: Requests) -> np.ndarray:
    return requests.decodes.astype(np.int64)


def refuse(*args, **kwargs):
    raise AssertionError("computed although it was stored")


def test_computed_once_then_read(monkeypatch):
    first = stored_assignment(requests_of(), CLIENTS)
    assert store.cache_path(loads_of(requests_of()), CLIENTS).exists()
    monkeypatch.setattr(store, "assign", refuse)
    again = stored_assignment(requests_of(), CLIENTS)
    assert first == again
    assert not again.client_of.flags.writeable
    with pytest.raises(AssertionError, match="computed although"):
        stored_assignment(requests_of(1), CLIENTS)


def test_greedy_methods_are_not_stored(own_folders):
    assert stored_assignment(requests_of(), CLIENTS, "lpt") == assign(requests_of(), CLIENTS, "lpt")
    assert not (own_folders / "cache").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 0xFF
    path.write_bytes(bytes(data))


def text(path):
    path.write_text("not an archive")


def rewrite(path, **changes):
    with np.load(path) as entry:
        columns = {**entry, **changes}
    np.savez(path, **columns)


def wrong_numbers(path):
    rewrite(path, numbers=np.array([1, 1, 1]))


def wrong_but_consistent(path):
    with np.load(path) as entry:
        client_of = entry["client_of"] * 0
        numbers = entry["numbers"]
    rewrite(path, client_of=client_of, checksum=np.array(store._checksum(client_of, numbers)))


def pickled(path):
    rewrite(path, client_of=np.array([{}], dtype=object))


@pytest.mark.parametrize("damage", [cut, empty, flip, text, wrong_numbers, wrong_but_consistent, pickled])
def test_damaged_cache_entry_is_rebuilt(damage, caplog):
    requests = requests_of()
    sound = stored_assignment(requests, CLIENTS)
    path = store.cache_path(loads_of(requests), CLIENTS)
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert stored_assignment(requests, CLIENTS) == sound
    assert "is damaged" in caplog.text
    assert "building it again" in caplog.text
    caplog.clear()
    assert stored_assignment(requests, CLIENTS) == sound
    assert not caplog.text, "the entry was not repaired"


def test_unwritable_cache_costs_time_only(own_folders, caplog):
    (own_folders / "cache").write_text("a file where the folder should be")
    assert stored_assignment(requests_of(), CLIENTS) == assign(requests_of(), CLIENTS)
    assert "assignment not cached" in caplog.text


def test_bad_input():
    with pytest.raises(ConfigError, match="clients = 0 is out of range"):
        stored_assignment(requests_of(), 0)
    with pytest.raises(UnknownNameError, match="Did you mean 'mip'"):
        stored_assignment(requests_of(), CLIENTS, "mpi")


class FewCases:
    name = "few"

    def pool_size(self, split):
        return 3

    def requests(self, split, number, *, num_requests=None):
        return requests_of(number)


@pytest.fixture
def pool(own_folders, monkeypatch):
    monkeypatch.setattr(pools, "workload", lambda name: FewCases())
    path = store.pool_path("few", "test")
    stages = pools.build("few", "test", path, clients=CLIENTS)
    assert sum(stages.values()) == 3
    store._pools.cache_clear()
    return path


def test_pool_is_built_verified_and_served(pool, monkeypatch):
    assert list(pools.verify("few", "test", pool)) == []
    monkeypatch.setattr(store, "cached_assignment", refuse)
    served = stored_assignment(requests_of(2), CLIENTS)
    assert served == assign(requests_of(2), CLIENTS)
    assert not served.client_of.flags.writeable
    with pytest.raises(AssertionError, match="computed although"):
        stored_assignment(requests_of(2), CLIENTS + 1)


def test_pool_bytes_do_not_depend_on_the_run(pool):
    first = pool.read_bytes()
    pools.build("few", "test", pool, clients=CLIENTS)
    assert pool.read_bytes() == first


def test_damaged_pool_is_reported_and_not_served(pool, caplog):
    with np.load(pool) as file:
        columns = dict(file)
    client_of = columns["client_of"].copy()
    client_of[1] = 0
    np.savez(pool, **{**columns, "client_of": client_of})
    problems = list(pools.verify("few", "test", pool))
    assert len(problems) == 1
    assert "case 1: its largest load is" in problems[0]
    assert stored_assignment(requests_of(1), CLIENTS) == assign(requests_of(1), CLIENTS)
    assert "a shipped assignment is damaged" in caplog.text
    cut(pool)
    assert "is damaged" in next(iter(pools.verify("few", "test", pool)))
    store._pools.cache_clear()
    assert stored_assignment(requests_of(0), CLIENTS) == assign(requests_of(0), CLIENTS)


def test_command_builds_and_verifies(own_folders, monkeypatch, capsys):
    monkeypatch.setattr(pools, "workload", lambda name: FewCases())
    monkeypatch.setattr(pools, "CLIENTS", CLIENTS)
    wanted = ["--workloads", "gsm8k", "--splits", "test"]
    assert pools.main([*wanted, "--verify"]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert pools.main(wanted) == 0
    assert "assignments_gsm8k_test.npz: verified" in capsys.readouterr().out
    monkeypatch.setattr(FewCases, "requests", lambda self, split, number: requests_of(number + 1))
    assert pools.main([*wanted, "--verify"]) == 1
    assert "case 2 is missing: its requests have changed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pools.main(["--jobs", "0"])
    assert "--jobs 0: give at least 1" in capsys.readouterr().err


def test_pool_of_unequal_columns(pool):
    rewrite(pool, stage=np.zeros(1, np.uint8))
    with pytest.raises(CacheError, match="unequal length"):
        store.Pool.read(pool)


def test_too_many_clients_for_a_byte(own_folders):
    with pytest.raises(ConfigError, match="one byte a request"):
        pools.build("gsm8k", "test", own_folders / "x.npz", clients=257)


def test_shipped_pools_fit_the_workloads(monkeypatch):
    monkeypatch.undo()
    store._pools.cache_clear()
    for name in pools.WORKLOADS:
        for split in pools.SPLITS:
            path = store.pool_path(name, split)
            pool = store.Pool.read(path)
            size = workload(name).pool_size(split)
            assert len(pool.client_of) == size
            for number in (0, size - 1):
                loads = loads_of(workload(name).requests(split, number))
                found = pool.assignment(pool.row_of[store.loads_digest(loads)], loads)
                assert found.gap <= 0.001
            proved = np.count_nonzero(pool.makespan_decodes == pool.bound_decodes)
            assert proved >= size / 2
