"""A small leaderboard."""

from __future__ import annotations

from dataclasses import replace

import pytest
from boards import SMALL

from llmsched_env.baselines.leaderboard import Benchmark, Place, read_entry, references, scored, submit, write_entry
from llmsched_env.baselines.registry import fixed_order_planner


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A benchmark of three small scenarios, with references of its own."""
    folder = tmp_path_factory.mktemp("tiny")
    places = {
        "shared": Place("LLMSched/GSM8K-v0", {**SMALL, "queue": "shared", "order": "longest_first"}, range(6)),
        "lpt": Place("LLMSched/GSM8K-Smooth-v0", {**SMALL, "assignment": "lpt"}, range(3, 8)),
        "order": Place("LLMSched/ServingOrder-v0", {"num_clients": 8, "num_requests": 100, "load": 0.9}, range(4)),
    }
    bench = Benchmark("Tiny-v1", places, folder)
    for name, policy in (("best_tuned_rule", "decode_first"), ("planner", None)):
        policies = {place: [policy or fixed_order_planner(one.scenario)] for place, one in places.items()}
        path = folder / f"{name}.json"
        write_entry(submit.play_entry(name, policies, bench, path, made_by="the tests"), bench, path)
    ends = references(bench)
    for name in ("best_tuned_rule", "planner"):
        entry = read_entry(folder / f"{name}.json", bench)
        stated = scored(entry, bench, ends).as_json(bench)
        write_entry(replace(entry, stated=stated), bench, entry.path)
    return bench


@pytest.fixture
def entry(tiny, tmp_path):
    """The file of an entry of the Lagrangian rule."""
    path = tmp_path / "mine.json"
    assert submit.main(["mine", "lagrangian", "--out", str(path), "--by", "me"], benchmark=tiny) == 0
    return path
