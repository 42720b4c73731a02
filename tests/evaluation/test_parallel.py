"""Studies in chunks: the same results however they are shared, and what is finished is kept."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from test_comparison import Contestant
from test_rollouts import SMALL, Compiled

import llmsched_env
from llmsched_env.cost import PRESETS
from llmsched_env.errors import ConfigError, InvalidActionError, MissingExtraError, PathError, UnknownNameError
from llmsched_env.evaluation import CoverageWarning, WorkerError, evaluate
from llmsched_env.evaluation.comparison import compare
from llmsched_env.evaluation.rollout import episode_seed
from llmsched_env.workload import GammaWorkload

CASES = (7, 3, 5, 0, 11, 2, 4)
ROOT = Path(llmsched_env.__file__).parents[1]


@dataclass
class Coin:
    """Draws its actions, and notes each episode in a file, from whatever process it is in."""

    notes: Path | None = None
    heads: float = 0.5
    name: str = "coin"
    kind: str = "rule"
    clairvoyant: bool = False
    drawn: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    def reset(self, start):
        self.seed = start.seed
        self.drawn = random.Random(start.seed)
        if self.notes is not None:
            with self.notes.open("a") as file:
                file.write("x")

    def act(self, view):
        return int(self.drawn.random() < self.heads)

    def episodes(self):
        """Episodes since the last call."""
        count = len(self.notes.read_text(encoding="utf-8")) if self.notes.exists() else 0
        self.notes.write_text("")
        return count


@pytest.fixture
def coin(tmp_path):
    return Coin(tmp_path / "notes")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


def same(one, two):
    assert one.columns.keys() == two.columns.keys()
    assert one.cases.tolist() == two.cases.tolist()
    return all(np.array_equal(one.columns[name], two.columns[name], equal_nan=True) for name in one.columns)


@pytest.mark.parametrize(
    ("workers", "engine", "chunk"),
    [(2, "loky", 3), (2, "loky", None), (3, "loky", 1), (-1, "loky", 2), (2, "threading", 2), (2, "sequential", 2)],
)
@pytest.mark.parametrize("policy", [Coin(), Compiled()], ids=["asked", "compiled"])
def test_results_do_not_depend_on_how_the_work_is_shared(policy, workers, engine, chunk):
    ticks = []
    alone = evaluate(policy, SMALL, CASES, seed=3)
    assert len(set(alone.columns["makespan_s"])) > 3, "cases that are alike: no order was tested"
    shared = evaluate(policy, SMALL, CASES, seed=3, workers=workers, engine=engine, chunk=chunk, progress=ticks.append)
    assert same(alone, shared)
    assert sum(ticks) == len(CASES)
    assert len(ticks) == -(-len(CASES) // (chunk or 10))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rerun_reads_what_is_there(coin, folder, workers):
    alone = evaluate(coin, SMALL, CASES)
    coin.episodes()
    ticks = []
    for expected in (len(CASES), 0):
        kept = evaluate(coin, SMALL, CASES, folder=folder, workers=workers, chunk=2, progress=ticks.append)
        assert same(alone, kept)
        assert coin.episodes() == expected
    assert ticks[-1] == sum(ticks) // 2 == len(CASES)
    assert len([*folder.iterdir()]) == 4
    # More cases: the chunks of the first ones are there. Another number of workers finds them too.
    evaluate(coin, SMALL, (*CASES, 20), folder=folder, workers=3 - workers, chunk=2)
    assert coin.episodes() == 2, "the last chunk has one case more than before"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"scenario": SMALL.replace(num_clients=4)},
        {"scenario": SMALL.replace(workload=replace(SMALL.workload, output_sd_tokens=11.0))},
        {"heads": 0.25},
        {"name": "another"},
        {"chunk": 3},
        {"key": "mine"},
    ],
    ids=str,
)
def test_another_study_finds_none_of_it(coin, folder, change):
    def run(scenario=SMALL, seed=0, chunk=4, key=None, **attributes):
        policy = replace(coin, **attributes)
        found = evaluate(policy, scenario, CASES, seed=seed, chunk=chunk, key=key, folder=folder)
        assert same(found, evaluate(replace(policy, notes=None), scenario, CASES, seed=seed))
        return coin.episodes()

    assert isinstance(SMALL.workload, GammaWorkload)
    assert [run(), run(), run(**change), run(**change), run()] == [len(CASES), 0, len(CASES), 0, 0]


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "renamed"])
def test_a_damaged_chunk_is_run_again(coin, folder, caplog, harm):
    first = evaluate(coin, SMALL, CASES, folder=folder, chunk=2)
    coin.episodes()
    path, other = sorted(folder.iterdir())[:2]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"cut": content[:-30], "empty": b"", "flipped": content, "renamed": other.read_bytes()}[harm]
    path.write_bytes(bytes(harmed))
    assert same(first, evaluate(coin, SMALL, CASES, folder=folder, chunk=2))
    assert f"chunk {path} is damaged" in caplog.text
    assert coin.episodes() == 2
    assert same(first, evaluate(coin, SMALL, CASES, folder=folder, chunk=2))
    assert coin.episodes() == 0


MODULE = """
class Mine:
    name, kind, clairvoyant = "mine", "rule", False

    def reset(self, start):
        pass

    def act(self, view):
        return int(view.ready >= {ready})
"""


def test_an_edited_policy_is_another_one(tmp_path, folder, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    spans = []
    for number in (1, 3):
        (tmp_path / "mine_to_edit.py").write_text(MODULE.format(ready=number))
        monkeypatch.delitem(sys.modules, "mine_to_edit", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        import mine_to_edit

        policy = mine_to_edit.Mine()
        spans.append(evaluate(policy, SMALL, CASES, folder=folder).columns["makespan_s"].tolist())
        assert spans[-1] == evaluate(policy, SMALL, CASES).columns["makespan_s"].tolist()
    assert spans[0] != spans[1]


def local_policy(ready):
    class Local:
        name, kind, clairvoyant = "local", "rule", False

        def reset(self, start):
            pass

        def act(self, view):
            return int(view.ready >= ready)

    return Local()


def test_a_policy_that_is_in_no_module_needs_a_key(folder):
    alone, other = (evaluate(local_policy(ready), SMALL, CASES) for ready in (2, 3))
    assert not same(alone, other)
    assert same(alone, evaluate(local_policy(2), SMALL, CASES, workers=2, chunk=3))
    with pytest.raises(ConfigError, match=r"policy 'local' cannot be told from a changed one.*give key="):
        evaluate(local_policy(2), SMALL, CASES, folder=folder)
    assert same(alone, evaluate(local_policy(2), SMALL, CASES, folder=folder, key="two"))
    # The key stands for the policy: that it is another one is for its author to say.
    assert same(alone, evaluate(local_policy(3), SMALL, CASES, folder=folder, key="two"))
    assert same(other, evaluate(local_policy(3), SMALL, CASES, folder=folder, key="three"))


@dataclass
class Mortal(Coin):
    """Takes its process with it in one case, once: when a chunk is kept in the study's folder, if that is given."""

    dies_in: int = 0
    marker: Path = Path()
    study: Path | None = None

    def act(self, view):
        if self.seed == episode_seed(0, self.dies_in) and not self.marker.exists():
            while self.study is not None and not [*self.study.glob("cases-*.npz")]:
                time.sleep(0.01)
            self.marker.touch()
            os._exit(3)
        return super().act(view)


@pytest.mark.parametrize("kept", [True, False])
def test_a_dead_worker(tmp_path, folder, kept):
    policy = Mortal(tmp_path / "notes", dies_in=11, marker=tmp_path / "marker", study=folder if kept else None)
    options = {"workers": 2, "chunk": 1, "folder": folder if kept else None}
    words = f"are kept in {folder}: run the same again" if kept else "nothing is kept without a folder"
    with pytest.raises(WorkerError, match=f"a worker of engine 'loky' died .TerminatedWorkerError.*{words}"):
        evaluate(policy, SMALL, range(12), **options)
    done = len([*folder.glob("cases-*.npz")]) if kept else 0
    assert 0 < done < 12 or not kept
    policy.episodes()
    again = evaluate(policy, SMALL, range(12), **options)
    assert policy.episodes() == 12 - done
    assert same(again, evaluate(Coin(), SMALL, range(12)))
    assert not [*folder.glob(".*")] or not kept


SLOW = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from llmsched_env.config import Scenario
    from llmsched_env.evaluation import evaluate

    class Slow:
        name, kind, clairvoyant = "slow", "rule", False

        def reset(self, start):
            # Later ones wait to be killed, however slowly whoever kills looks.
            while Path("notes").exists() and Path("notes").stat().st_size >= 16 and not Path("go").exists():
                time.sleep(0.01)
            with Path("notes").open("a") as file:
                file.write("x")

        def act(self, view):
            return int(view.ready >= 2)

    SCENARIO = Scenario(num_clients=5, num_requests=20, queue="shared", split="test")

    def study(**options):
        return evaluate(Slow(), SCENARIO, 40, **options)

    if __name__ == "__main__":
        import slow_study
        found = slow_study.study(workers=2, chunk=2, folder="study")
        print(found.columns["makespan_s"].tolist())
    """
)


def test_a_killed_study_is_gone_on_with(tmp_path, monkeypatch):
    (tmp_path / "slow_study.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "slow_study.py"]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        while len([*tmp_path.glob("study/cases-*.npz")]) < 5:
            assert process.poll() is None, "the study was done before it could be killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
    done = len([*tmp_path.glob("study/cases-*.npz")])
    assert 5 <= done < 20, "nothing was left to do"
    (tmp_path / "notes").write_text("")
    (tmp_path / "go").touch()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1800)
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "notes").read_text(encoding="utf-8")) == 40 - 2 * done
    monkeypatch.syspath_prepend(tmp_path)
    import slow_study

    assert again.stdout.strip() == str(slow_study.study().columns["makespan_s"].tolist())


class AwkwardError(Exception):
    """Cannot be unpickled: its pickle holds one argument."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@dataclass
class Wild(Coin):
    """Fails at its first choice."""

    awkward: bool = False

    def act(self, view):
        if self.awkward:
            raise AwkwardError("this", "that")
        return 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_policy_arrives(folder, workers):
    with pytest.raises(InvalidActionError, match=r"policy 'coin'.*action 2"):
        evaluate(Wild(), SMALL, CASES, workers=workers, folder=folder)
    with pytest.raises(WorkerError, match=r"AwkwardError: this and that\nIn the worker:(.|\n)*in act"):
        evaluate(Wild(awkward=True), SMALL, CASES, workers=workers, folder=folder)
    assert [*folder.iterdir()] == []


def test_leaving_the_range_of_the_cost_model_is_warned_of_once(folder):
    scenario = SMALL.replace(cost=replace(PRESETS["qwen3-8b-h200"]), prefill_token_cap=None)
    with pytest.warns(CoverageWarning) as alone:
        evaluate(Coin(), scenario, 6)
    for _ in ("run", "read"):
        with pytest.warns(CoverageWarning) as seen:
            evaluate(Coin(), scenario, 6, workers=2, chunk=2, folder=folder)
        assert [str(one.message) for one in seen] == [str(one.message) for one in alone]
        assert seen[0].filename == __file__
        assert len(seen) == 1


def test_a_comparison_is_shared_too(coin, folder):
    rows = [Contestant("coin", coin), Contestant("rare", replace(coin, name="rare", heads=0.1))]
    cases = np.arange(5)
    alone = compare(rows, "x", SMALL, cases, reference=rows[0], planner=rows[1])
    coin.episodes()
    for expected in (10, 0):
        shared = compare(rows, "x", SMALL, cases, reference=rows[0], planner=rows[1], workers=2, folder=folder)
        assert all(same(one.evaluation, two.evaluation) for one, two in zip(alone.rows, shared.rows, strict=True))
        assert coin.episodes() == expected + 4, "decision times take two episodes of each, one to compile"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, r"workers = 0 is out of range.*give -1 for every core"),
        ({"workers": -2}, "workers = -2 is out of range"),
        ({"workers": 1.5}, "workers = 1.5 is not a whole number"),
        ({"workers": True}, "workers = True is not a whole number"),
        ({"workers": "2"}, "workers = '2' is not a whole number"),
        ({"workers": 10**6}, "workers = 1000000 is out of range"),
        ({"chunk": 0}, "chunk = 0 is out of range"),
        ({"chunk": 0.5}, "chunk = 0.5 is not a whole number"),
        ({"key": ""}, "key = '' names nothing"),
        ({"key": 3}, "key = 3 names nothing"),
        ({"engine": "lokky"}, "unknown engine 'lokky'. Did you mean 'loky'"),
        ({"engine": "Ray"}, "unknown engine 'Ray'. Did you mean 'ray'"),
        ({"engine": None}, "unknown engine None"),
        # It waits for ever when a worker is killed.
        ({"engine": "multiprocessing", "workers": 2}, "unknown engine 'multiprocessing'"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises((ConfigError, UnknownNameError), match="(?i)" + words):
        evaluate(Coin(), SMALL, CASES, **options)


def test_an_engine_that_is_not_installed(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"engine 'ray' needs.*pip install 'llmsched-env\[cluster\]'"):
        evaluate(Coin(), SMALL, CASES, engine="ray", workers=2)


def test_a_policy_that_cannot_be_copied():
    policy = Coin()
    policy.lock = threading.Lock()
    assert evaluate(policy, SMALL, 1).policy == "coin"
    with pytest.raises(ConfigError, match=r"policy 'coin' cannot be copied to a worker .TypeError: .*lock"):
        evaluate(policy, SMALL, 1, workers=2)


def test_the_examples_of_the_page_run(tmp_path):
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "example.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *side_by_side, method, study = done.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in side_by_side[2:]] == ["interleave_tuned", "lagrangian", "hybrid_lpt"]
    assert method.startswith("Estimate(mean=201."), "the baseline on queues of its own, not on those of the scenario"
    assert study.startswith("Estimate(mean=18")
    assert len([*(tmp_path / "study").iterdir()]) == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="cannot write"):
        evaluate(Coin(), SMALL, 1, folder=tmp_path / "file")
