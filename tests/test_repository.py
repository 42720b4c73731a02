"""The repository keeps its own rules: light imports, documents that are true, linked and portable."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import llmsched_env

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ABSOLUTE = re.compile(
    "|".join(["(?<![\\w.~$}])/" + f"({'|'.join(('home', 'Users', 'root', 'work', 'mnt', 'tmp'))})/", r"[A-Z]:\\\\"])
)

MOST_LINES = 450
MOST_WORDS = 1200


def tracked() -> list[Path]:
    """Files of the repository, by git where this is a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 50, "hardly any file listed: nothing was tested"
    return [file for file in files if file.is_file()]


def run_python(code: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


@pytest.mark.parametrize(
    "module", ["llmsched_env", "llmsched_env.config", "llmsched_env.agents", "llmsched_env.baselines.registry"]
)
def test_imports_bring_no_learning_library_and_no_pictures(module: str, tmp_path: Path) -> None:
    heavy = {"torch", "stable_baselines3", "sb3_contrib", "matplotlib", "pygame", "PIL"}
    if module == "llmsched_env":
        heavy |= {"scipy", "pulp", "highspy"}
    done = run_python(f"import sys, {module}\nprint(*sorted({heavy!r} & set(sys.modules)))", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_file_is_long() -> None:
    """A file that is hard to read at a sitting has more than one subject."""
    long = {}
    for folder in ("llmsched_env", "baselines", "agents", "studies", "benchmarks", "examples", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines > MOST_LINES:
                long[str(file.relative_to(ROOT))] = lines
    assert long == {}


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == llmsched_env.__version__
    assert f"## [{llmsched_env.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_licence() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "MIT"


def test_every_dependency_is_pinned_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in listed}  # type: ignore[index]
    assert {"gymnasium", "torch", "pytest"} <= names
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a constraint that is no exact pin"
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert names <= pinned
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert {name for name in names if name not in explained} == set()


def _python_blocks(page: str) -> list[str]:
    blocks = PYTHON_BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks, f"{page} has no example: nothing was tested"
    if importlib.util.find_spec("stable_baselines3") is None:
        blocks = [block for block in blocks if "stable_baselines3" not in block]
    return blocks


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def _shortly(block: str) -> str:
    """An example that trains, on fewer decisions and cases."""
    changes = {"64, scenario": "2, scenario", "n_steps=512": "n_steps=8", "batch_size=4096": "batch_size=8"}
    for long, short in {**changes, "1_000_000": "16", "20)": "1)"}.items():
        assert long in block
        block = block.replace(long, short)
    return block


def test_the_examples_that_train_run(tmp_path: Path) -> None:
    """Each with names of its own, in one process: most of the time of two would be two imports of torch."""
    pytest.importorskip("stable_baselines3")
    expected = {"README.md": "| policy           | parameters ", "docs/learning.md": "Estimate(mean=0.0"}
    script = []
    for page in expected:
        (block,) = (block for block in _python_blocks(page) if "ResidualPolicy" in block)
        code = f"compile({_shortly(block)!r}, {page!r}, 'exec')"
        script.append(f"exec({code}, {{'__name__': '__main__'}})\nprint('=====')")
    done = run_python("\n".join(script), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *parts, rest = done.stdout.split("=====\n")
    assert rest == ""
    for said, printed in zip(parts, expected.values(), strict=True):
        assert f"\n{printed}" in f"\n{said}"


def test_the_first_example_of_the_readme_prints_what_stands_below_it(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    done = run_python(_python_blocks("README.md")[0], folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, shown), done.stderr


def test_the_examples_of_the_guide_run(tmp_path: Path) -> None:
    blocks = _python_blocks("docs/guide.md")
    (own,) = (block for block in blocks if block.startswith("# my_policy.py"))
    (tmp_path / "my_policy.py").write_text(own, encoding="utf-8")
    done = run_python("\n".join(blocks), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    stepped, in_the_loop, agent = (line for line in done.stdout.splitlines() if line.startswith("Estimate"))
    assert agent.startswith("Estimate(mean=0.00"), "the agent of the guide is not within 1 % of the bound"
    assert stepped.startswith(in_the_loop), "the two forms of the policy in the guide play differently"


def test_the_own_policy_of_the_guide_runs_in_the_comparison(tmp_path: Path) -> None:
    block = next(block for block in _python_blocks("docs/guide.md") if block.startswith("# my_policy.py"))
    (tmp_path / "my_policy.py").write_text(block, encoding="utf-8")
    arguments = ["-m", "baselines", "--cases", "1", "--policies", "hybrid,tuned_threshold,my_policy:TenIdle"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| ten_idle " in done.stdout
    assert "| hybrid " in done.stdout


@pytest.mark.parametrize("page", ["docs/metrics.md", "docs/replicas.md"])
def test_the_examples_of_a_page_run(page: str, tmp_path: Path) -> None:
    done = run_python("\n".join(_python_blocks(page)), folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_metrics_page_has_every_metric() -> None:
    from llmsched_env.metrics import EPISODE_METRICS

    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    per_request = ("ttft_s", "tpot_s", "worst_token_gap_s", "latency_s")
    assert [name for name in (*EPISODE_METRICS, "bound_s", *per_request) if f"`{name}`" not in page] == []


def test_every_document_is_linked_and_every_link_leads_somewhere() -> None:
    pages = [file for file in tracked() if file.suffix == ".md"]
    targets, broken = set(), []
    for page in pages:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            target = (page.parent / link).resolve()
            targets.add(target)
            if not target.exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken
    documents = {file.resolve() for file in tracked() if (ROOT / "docs") in file.parents}
    documents = {file for file in documents if ROOT / "docs" / "website" not in file.parents}  # the code of the site
    assert documents, "no document: nothing was tested"
    assert {str(file.relative_to(ROOT)) for file in documents - targets} == set()


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for file in tracked():
        if file == Path(__file__) or file.suffix in {".npz", ".png", ".csv"}:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if ABSOLUTE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


def test_tables_of_the_results_are_filled_and_the_readme_has_the_papers_rows() -> None:
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results.md", "README.md"))
    table = page.partition("<!-- measured: begin -->")[2].partition("<!-- measured: end -->")[0]
    rows = readme.partition("<!-- paper: begin -->")[2].partition("<!-- paper: end -->")[0]
    for row in re.findall(r"^\| `(\w+)`: .* \| (.*) \| (.*) \| (.*) \|$", rows, re.MULTILINE):
        assert re.search(
            rf"^\| `{row[0]}` .* {re.escape(row[1])} \| {re.escape(row[2])} .* {re.escape(row[3])} \|$", table, re.M
        )
    assert rows.count("`baseline`") == rows.count("`hybrid`") == 1
    for name in ("`baseline`", "`hybrid`", "201.00 s, 80.2 %", "190.58 s, 89.1 %", "LB1"):
        assert name in table


def test_gaps_are_those_of_the_tuned_rules_of_today_and_fall_from_row_to_row() -> None:
    from llmsched_env import make_scenario
    from llmsched_env.baselines.tuned import best_tuned

    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = page.partition("<!-- gaps: begin -->")[2].partition("<!-- gaps: end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    tuned = [best_tuned(make_scenario(name)) for name in ("LLMSched/GSM8K-v0", "LLMSched/GSM8K-Smooth-v0")]
    names = [re.findall(r"`(\w+)`", row[0]) for row in rows]
    assert names == [["random"], ["lagrangian"], list(dict.fromkeys(tuned)), ["beam"], ["agent"], ["joint"]], (
        "run make tables"
    )
    for column in (-2, -1):
        gaps = [float(re.fullmatch(r"(\d+\.\d+) ± \d+\.\d+", row[column])[1]) for row in rows]  # type: ignore[index]
        *others, agent, joint = gaps
        assert others == sorted(others, reverse=True), (
            "the text says that each is nearer to the bound than the one above"
        )
        assert agent < others[2], "the text says that the agent beats the tuned rules"
        assert joint < min(*others, agent) / 3, "a plan of order and prefills is far nearer"


def test_what_is_public_is_what_completion_shows() -> None:
    import llmsched_env.agents
    import llmsched_env.baselines

    for module in (llmsched_env, llmsched_env.agents, llmsched_env.baselines):
        assert dir(module) == sorted(module.__all__)
        if module is not llmsched_env.agents or importlib.util.find_spec("stable_baselines3"):
            assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
        _ = llmsched_env.agents.no_such_thing
