"""The run's folder: whole at every moment, and clear words about what is not."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace

import pytest
from small_runs import curve, tensorboard_steps

from llmsched_env.agents.curve import Board
from llmsched_env.agents.runs import Best, Run
from llmsched_env.agents.sb3_learner import SB3Learner
from llmsched_env.agents.training import recorded, train
from llmsched_env.errors import ConfigError, FileFormatError, PathError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


def write(text):
    def files(folder):
        (folder / "learner.bin").write_text(text)

    return files


def fail(folder):
    (folder / "learner.bin").write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {"anything": 1})


def rows(*timesteps):
    return [{"timesteps": step, "x": step / 3} for step in timesteps]


def names(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_a_checkpoint_is_read_as_it_was_written(run):
    assert run.last() is None
    run.save(0, Best(0, "a", 3.0), rows(0), write("0"))
    best = Best(10, "b", 1 / 3)
    run.save(10, best, rows(0, 10), write("10"))
    last = Run.open(run.folder).last()
    assert last == run.at(10)
    assert (last.timesteps, last.best, last.rows) == (10, best, rows(0, 10))
    assert (last.folder / "learner.bin").read_text(encoding="utf-8") == "10"
    assert [row["x"] for row in curve(run.folder)] == ["0.0", str(10 / 3)]


def test_only_the_last_and_the_best_are_kept(run):
    for step, best in ((0, 0), (10, 10), (20, 10), (30, 10), (40, 40)):
        run.save(step, Best(best, "a", 1.0), rows(step), write(str(step)))
        assert names(run) == [f"{kept:012d}" for kept in sorted({step, best})]


def test_the_old_one_is_there_until_the_new_one_is_whole(run):
    run.save(0, Best(0, "a", 1.0), rows(0), write("0"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    def look(folder):
        assert run.last().timesteps == 0
        fail(folder)

    with pytest.raises(PathError, match=r"cannot write .*0010: No space left on device\. Make room, .*--resume"):
        run.save(10, Best(10, "a", 0.5), rows(0, 10), look)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_what_a_kill_left_unfinished_is_passed_over_and_removed(run):
    run.save(0, Best(0, "a", 1.0), rows(0), write("0"))
    unfinished = run.folder / "checkpoints" / ".unfinished-x"
    unfinished.mkdir()
    (unfinished / "learner.bin").write_text("half")
    assert run.last().timesteps == 0
    run.save(10, Best(10, "a", 0.5), rows(0, 10), write("10"))
    assert names(run) == [f"{10:012d}"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("learner.bin", b"1", r"learner.bin: damaged, not what was written: remove .*0020 to go on from .*0010"),
        ("learner.bin", None, r"learner.bin: missing from the checkpoint: remove"),
        ("checkpoint.json", b'{"format": 1, "best', r"checkpoint.json: damaged, not JSON .*: remove .*0020 to go on"),
        ("checkpoint.json", b"[]", r"checkpoint.json: damaged, not a JSON object: remove"),
        ("checkpoint.json", b'{"format": 1}', r"checkpoint.json: damaged \(KeyError: 'best'\): remove"),
        (
            "checkpoint.json",
            b'{"format": 7}',
            "checkpoint.json is of format 7, this version reads format 1: go on",
        ),
        ("checkpoint.json", None, r"cannot read .*checkpoint.json: No such file.*\. If it is gone, remove"),
    ],
)
def test_a_damaged_checkpoint(run, name, content, words):
    run.save(10, Best(10, "a", 1.0), rows(10), write("10"))
    run.save(20, Best(10, "a", 1.0), rows(10, 20), write("20"))
    damaged = run.checkpoint(20) / name
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.raises((FileFormatError, ConfigError, PathError), match=words):
        run.last()
    for path in run.checkpoint(20).iterdir():
        path.unlink()
    run.checkpoint(20).rmdir()
    assert run.last().timesteps == 10


def test_the_only_checkpoint_damaged(run):
    run.save(10, Best(10, "a", 1.0), rows(10), write("10"))
    (run.checkpoint(10) / "learner.bin").write_text("")
    with pytest.raises(FileFormatError, match="there is no other checkpoint, begin the run again in another folder"):
        run.last()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"format": 1, "ver', r"config.json: damaged, not JSON .*begin the run again in another folder"),
        ("[]", "config.json: damaged, not a JSON object"),
        ("{}", "config.json is of format None, this version reads format 1"),
        (
            '{"format": 2}',
            "config.json is of format 2, this version reads format 1: go on with the version",
        ),
        ('{"format": 1}', r"config.json: damaged \('training'\): begin the run again elsewhere"),
    ],
)
def test_a_configuration_that_cannot_be_read(run, content, words):
    (run.folder / "config.json").write_text(content)
    with pytest.raises((FileFormatError, ConfigError), match=words):
        recorded(run.folder)


def test_folders_without_a_run_and_with_one(run, tmp_path):
    with pytest.raises(PathError, match=r"elsewhere holds no run \(config.json is not there\): give the --out folder"):
        Run.open(tmp_path / "elsewhere")
    for command, words in (
        ("llmsched train --algo es --out x", r"'llmsched train --resume "),
        ("python train.py", r"'python train\.py --resume "),
        ("", r"'train\(recorded\(out\), resume=True\)'"),
    ):
        with pytest.raises(ConfigError, match=rf"holds a run already: go on with it by {words}"):
            Run.create(run.folder, {"command": command})
    run.finish({})
    with pytest.raises(ConfigError, match=r"is finished, its result is in .*run.json: there is nothing to go on with"):
        Run.open(run.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match=r"cannot write .*file"):
        Run.create(tmp_path / "file", {})
    with pytest.raises(ConfigError, match=r"config.json cannot hold this run .*: give names and numbers"):
        Run.create(tmp_path / "other", {"cost": object()})
    assert list((tmp_path / "other").iterdir()) == []


def test_folders_of_others_are_let_alone(tmp_path):
    """`checkpoints` is a common name."""
    mine = tmp_path / "checkpoints" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"checkpoints is there already, and not of this run: choose another folder"):
        Run.create(tmp_path, {})
    mine.rmdir()
    run = Run.create(tmp_path, {})
    mine.mkdir()
    for timesteps in (1, 2, 3):
        run.save(timesteps, Best(timesteps, "x", 0.0), [{"timesteps": timesteps}], write("a"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000000003", "mine"]


@pytest.fixture
def stopped(small, stopped_after):
    """A run that was ended in the middle."""
    training = small()
    carry_on = stopped_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    carry_on()
    return training


def changed(folder, change):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(version="0.0.9"), r"was begun when llmsched-env was another \('0.0.9', now '"),
        (lambda c: c["observation"].pop(), r"when the observation was another \(25 features, now 26\): go on with"),
        (lambda c: c["observation"].reverse(), r"when the observation was another \(feature 0 = '"),
        (lambda c: c.update(actions=7), r"when the number of actions was another \(7, now 2\)"),
        (lambda c: c["scenario"].update(num_clients=9), r"when the scenario was another \(num_clients = 9, now 4\)"),
        (lambda c: c["scenario"]["cost"].update(alpha_prefill_ns=1), r"when the scenario was another \(cost: "),
        (lambda c: c.update(workload="other"), r"when the content of its file was another \('other', now '"),
        (lambda c: c["training"].update(algo="pp0"), r"unknown algorithm 'pp0'"),
        (lambda c: c["training"].update(speed=1), r"config.json: damaged \(.*speed"),
        (lambda c: c["training"]["settings"].update(speed=1), r"unknown ppo setting .* 'speed'"),
    ],
)
def test_a_run_of_another_program_is_not_gone_on_with(stopped, change, words):
    changed(stopped.out, change)
    with pytest.raises((ConfigError, FileFormatError, ValueError), match=words):
        recorded(stopped.out)


def test_a_run_goes_on_with_its_own_options_only(stopped):
    with pytest.raises(
        ConfigError, match=r"was begun with other options \(seed = 3, now 4\): go on with what `recorded`"
    ):
        train(replace(stopped, seed=4), resume=True)


def test_a_whole_checkpoint_that_the_libraries_cannot_read(stopped):
    run = Run.open(stopped.out)
    last = run.last()
    run.save(last.timesteps + 1, last.best, last.rows, write("of another library"))
    with pytest.raises(FileFormatError, match=r"cannot be gone on with \(.*: use the versions that config.json lists"):
        train(recorded(stopped.out), resume=True)


def warned(caplog):
    """All but that a file of one's own has no splits."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "reorderings" not in message]


@pytest.mark.parametrize("best", ["whole", "damaged", "gone"])
def test_the_best_checkpoint_on_resume(stopped, best, caplog):
    run = Run.open(stopped.out)
    last, earlier = run.last(), run.checkpoint(64)
    shutil.copytree(last.folder, earlier)
    manifest = json.loads((last.folder / "checkpoint.json").read_text(encoding="utf-8"))
    manifest["best"] = {"timesteps": 64, "policy": "ppo", "value": 0.0}  # nothing after it is better
    (last.folder / "checkpoint.json").write_text(json.dumps(manifest))
    if best == "damaged":
        (earlier / "model.zip").write_bytes(b"")
    if best == "gone":
        shutil.rmtree(earlier)
    found = train(recorded(stopped.out), resume=True)["best"]
    if best == "whole":
        assert (found["timesteps"], found["value"]) == (64, 0.0)
        assert warned(caplog) == []
        return
    said = (
        f"the best checkpoint, {earlier}, is {best}: the run goes on with the last one, of timestep 128, as its best."
    )
    assert warned(caplog) == [said]
    later = [row for row in curve(stopped.out) if int(row["timesteps"]) >= last.timesteps]
    values = {float(value) for row in later for name, value in row.items() if name.endswith("/makespan_s")}
    assert found["value"] == min(values)
    assert not earlier.exists()


def test_a_resume_under_other_versions_says_so(stopped, caplog):
    changed(stopped.out, lambda c: (c.update(python="3.9.1"), c["packages"].update(numpy="1.0", gymnasium=None)))
    train(recorded(stopped.out), resume=True)
    (said,) = warned(caplog)
    assert re.search(
        r"was begun with Python 3\.9\.1, now 3[^;]+; gymnasium not installed, now [^;]+; numpy 1\.0, now [^;]+: "
        "from here on it need not be, bit for bit, the one that was never stopped",
        said,
    )


def test_ended_between_the_last_checkpoint_and_its_curve(small, monkeypatch):
    training, write = small(), Run.write_curve

    def killed(run, rows):
        if rows[-1]["timesteps"] == 512:
            raise KeyboardInterrupt
        write(run, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_curve", killed)
        with pytest.raises(KeyboardInterrupt):
            train(training)
    assert Run.open(training.out).last().timesteps == 512
    assert len(curve(training.out)) == 4
    train(recorded(training.out), resume=True)
    assert [int(row["timesteps"]) for row in curve(training.out)] == [0, 128, 256, 384, 512]


@pytest.mark.parametrize("where", ["model", "curve", "board", "result"])
def test_a_full_disk_loses_nothing(small, monkeypatch, where):
    training = small()

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    targets = {
        "model": (SB3Learner, "save"),
        "curve": (Run, "write_curve"),
        "board": (Board, "_write"),
        "result": (Run, "finish"),
    }
    kind, name = targets[where]
    real, calls = getattr(kind, name), []

    def later(*arguments, **named):
        calls.append(1)
        if where == "result" or len(calls) > 2:
            full()
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, later)
        with pytest.raises(OSError, match="No space left on device"):
            train(training)
    record = train(recorded(training.out), resume=True)
    assert (
        [int(row["timesteps"]) for row in curve(training.out)]
        == tensorboard_steps(training.out)
        == [0, 128, 256, 384, 512]
    )
    assert record["timesteps"] == 512
