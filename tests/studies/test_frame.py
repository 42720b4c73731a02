"""Studies are resumed job by job, and what they write is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsched_env.errors import ConfigError, PathError
from llmsched_env.studies import __main__ as command
from llmsched_env.studies import pages
from llmsched_env.studies import study as frame
from llmsched_env.studies.markdown import replaced
from llmsched_env.studies.study import Job, Options, Study, run
from llmsched_env.studies.tables import Table


def count(folder: str, number: int) -> int:
    """A job: leaves a trace of having run."""
    with (Path(folder) / "ran.txt").open("a") as file:
        file.write(f"{number}\n")
    if (Path(folder) / f"stop{number}").exists():
        raise KeyboardInterrupt
    return number * number


def made(folder: Path) -> Study:
    def jobs(options: Options) -> list[Job]:
        return [Job(f"n = {n}", count, {"folder": str(folder), "number": n}) for n in range(options.cases)]

    def draw(found, path):
        path.write_bytes(b"picture of " + str(len(found)).encode())
        return path

    def tables(found):
        rows = [[name, f"{value}.0 ± 1"] for name, value in found.items()]
        return [
            Table("all", "All of them.", ["n", "n²"], rows),
            Table("count", "How many.", ["many"], [[f"{len(rows)}"]]),
        ]

    def short(found):
        return found["all"].picked(["n²"], lambda row: row["n"] != "n = 0")._replace(title="Without the first.")

    return Study("squares", "What are squares?", jobs, tables, short, draw)


def ran(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "ran.txt").read_text(encoding="utf-8").split()]


def test_what_is_done_is_not_done_again(tmp_path):
    study = made(tmp_path)
    found = run(study, Options(3), tmp_path / "out", workers=1, progress=False)
    assert found == {"n = 0": 0, "n = 1": 1, "n = 2": 4}
    assert list(run(study, Options(4), tmp_path / "out", workers=1, progress=False)) == [f"n = {n}" for n in range(4)]
    assert run(study, Options(2), tmp_path / "out", workers=1, progress=False) == {"n = 0": 0, "n = 1": 1}
    assert sorted(ran(tmp_path)) == [0, 1, 2, 3]
    assert len(json.loads((tmp_path / "out" / "squares.json").read_text(encoding="utf-8"))["results"]) == 4, (
        "a smaller call kept all"
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("squares.json", "squares.md", "squares.png"),
        *("squares_all.csv", "squares_count.csv"),
    }


def test_an_interrupted_study_goes_on(tmp_path):
    study = made(tmp_path)
    (tmp_path / "stop2").touch()
    with pytest.raises(KeyboardInterrupt):
        run(study, Options(4), tmp_path / "out", workers=1, progress=False)
    (tmp_path / "stop2").unlink()
    assert run(study, Options(4), tmp_path / "out", workers=1, progress=False)["n = 3"] == 9
    assert ran(tmp_path) == [0, 1, 2, 2, 3]


def test_results_of_other_code_or_arguments_are_not_taken(tmp_path, monkeypatch):
    job = Job("one", count, {"folder": "a", "number": 1})
    assert job.key == Job("renamed", count, {"number": 1, "folder": "a"}).key
    assert job.key != Job("one", count, {"folder": "a", "number": 2}).key
    before = job.key
    monkeypatch.setattr(frame, "package_digest", lambda: "other")
    assert job.key != before
    monkeypatch.undo()
    monkeypatch.setattr(frame, "_code", lambda file: "other")
    assert job.key != before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"results": 3}', b"\xff\xff"])
def test_a_file_that_cannot_be_read_is_done_anew(content, tmp_path):
    (tmp_path / "squares.json").write_bytes(content)
    assert run(made(tmp_path), Options(2), tmp_path, workers=1, progress=False) == {"n = 0": 0, "n = 1": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, "cases = 0 is out of range"),
        ({"clients": ()}, "clients is empty"),
        ({"clients": (200, 0)}, "clients = 0 is out of range"),
        ({"seed": -1}, "seed = -1 is out of range"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Options(**arguments)


def test_large_cases_are_fewer():
    options = Options(cases=20)
    assert [options.cases_at(clients) for clients in (50, 200, 1000, 5000)] == [20, 20, 4, 3]
    assert Options(cases=2).cases_at(5000) == 2


def test_the_command_refuses_what_it_does_not_know(capsys, tmp_path):
    assert command.main(["squeres"]) == 2
    assert "unknown study 'squeres'" in capsys.readouterr().err
    assert command.main(["--cases", "0"]) == 2
    assert "--cases 0 is out of range" in capsys.readouterr().err


def test_the_command_prints_and_publishes(tmp_path, monkeypatch, capsys):
    page, data, pictures = tmp_path / "studies" / "squares.md", tmp_path / "studies" / "data", tmp_path / "images"
    for folder in (data, pictures):
        folder.mkdir(parents=True)
    (data / "squares_gone.csv").touch()
    (data / "cubes_all.csv").touch()
    page.write_text("before\n<!-- squares: begin -->\nold\n<!-- squares: end -->\nafter\n")
    monkeypatch.setattr(command, "STUDIES", {"squares": made(tmp_path)})
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    arguments = ["--cases", "2", "--workers", "1", "--out", str(tmp_path / "out"), "--write"]
    assert command.main(arguments) == 0
    assert "What are squares?\n\nWithout the first.\n\n| n² |" in capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert written == (
        "before\n<!-- squares: begin -->\n\nWithout the first.\n\n| n² |\n| --- |\n| 1.0 ± 1 |\n\nFull tables:\n\n"
        "- [all](data/squares_all.csv): All of them.\n- [count](data/squares_count.csv): How many.\n"
        "\n<!-- squares: end -->\nafter\n"
    )
    assert (pictures / "study_squares.png").read_bytes() == b"picture of 2"
    assert {path.name for path in data.iterdir()} == {"squares_all.csv", "squares_count.csv", "cubes_all.csv"}
    for name in ("squares_all.csv", "squares_count.csv"):
        assert (data / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert (data / "squares_all.csv").read_text(encoding="utf-8") == 'n,n²,"n², ±"\nn = 0,0.0,1\nn = 1,1.0,1\n'
    before = page.read_bytes()
    command.main(arguments)
    assert page.read_bytes() == before
    assert ran(tmp_path) == [0, 1]


def test_pages_that_are_not_there_are_missed_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "STUDIES", {"squares": made(tmp_path)})
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    assert command.main(["squares", "--write", "--out", str(tmp_path / "out")]) == 2
    assert "--write needs a clone of the repository" in capsys.readouterr().err
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "squares.md").write_text("no place\n")
    assert command.main(["squares", "--write", "--out", str(tmp_path / "out")]) == 2
    assert "exactly one has to be there" in capsys.readouterr().err
    assert not (tmp_path / "ran.txt").exists()


def test_a_page_without_markers_is_refused():
    with pytest.raises(PathError, match="exactly one has to be there"):
        replaced("nothing", "squares", "table")


def test_jobs_that_do_the_same_keep_their_names(tmp_path):
    """Done once, found twice."""
    study = made(tmp_path)
    twice = Study(
        study.name,
        study.question,
        lambda options: [job._replace(name=name) for job in study.jobs(Options(1)) for name in ("one", "other")],
        study.tables,
        study.short,
        study.draw,
    )
    assert run(twice, Options(1), tmp_path / "out", workers=1, progress=False) == {"one": 0, "other": 0}
    assert ran(tmp_path) == [0]
