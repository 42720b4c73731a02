"""The pages of the site that are made of the code, as texts. `make docs` builds the site, and checks its links."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import gymnasium
import pytest

from llmsched_env import ENVIRONMENTS, ROUTER_ENVIRONMENTS
from llmsched_env.actions import action_names
from llmsched_env.baselines.origins import ORIGINS
from llmsched_env.baselines.registry import BASELINES
from llmsched_env.config import Scenario
from llmsched_env.engine.features import features_of

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from website import api, environments, links, policies, staging  # noqa: E402  # after its folder is on the path

if importlib.util.find_spec("stable_baselines3") is None:
    pytest.importorskip("sphinx", reason="the API reference needs the learning libraries, or Sphinx's stand-ins")

TERMS = (
    "prefill", "decode", "chunked prefill", "KV cache", "TTFT", "TPOT", "SLO", "goodput", "makespan", "utilization",
    "client slot", "gap", "LB1", "score",
)  # fmt: skip


@pytest.fixture(scope="module")
def staged():
    return staging.Staging()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_page_of_an_id_has_its_spaces(name):
    text, env = environments.page(name), gymnasium.make(name).unwrapped
    assert text.startswith(f"# {name}\n")
    assert f"`Discrete({env.action_space.n})`" in text
    assert f"`Box(0, 1, {env.observation_space.shape}, float32)`" in text
    assert f"| Reward | `{env.scenario.reward}` |" in text
    actions = re.findall(r"^\| \d+ \| (.+?) \| (?:decode|prefill|mixed) \|$", text, re.MULTILINE)
    assert actions == list(action_names(env.scenario))
    features = re.findall(r"^\| \d+ \| `(\w+)` \| .+ \| 0 \| 1 \|$", text, re.MULTILINE)
    assert features == [feature.name for feature in features_of(env.scenario)]
    for argument, value in ENVIRONMENTS[name].items():
        assert (f"| `{argument}` | `{value!r}` |" in text) == (value != getattr(Scenario(), argument))
    assert not re.search(r"\]\(/?docs/", text), "a link to a page that is elsewhere in the site"


@pytest.mark.parametrize("name", ROUTER_ENVIRONMENTS)
def test_the_page_of_a_router_has_its_spaces(name, staged):
    text, env = staged.texts[f"environments/{name.rpartition('/')[2].lower()}.md"], gymnasium.make(name).unwrapped
    assert text.startswith(f"# {name}\n")
    assert f"`Discrete({env.action_space.n})`" in text
    assert f"`Box(0, 1, {env.observation_space.shape}, float32)`" in text
    assert "## Rewards" in text
    assert not re.search(r"\]\(/?docs/", text)
    assert f"[{name}](environments/" in environments.listed("environments/")


def test_the_pages_of_ids_say_how_they_differ():
    summaries = {environments.summary(gymnasium.make(name).unwrapped.scenario) for name in ENVIRONMENTS}
    assert len(summaries) == len(ENVIRONMENTS)


def test_every_policy_is_on_the_page():
    text = policies.page()
    named = set(re.findall(r"^\| \[?`(\w+)`", text, re.MULTILINE))
    assert named == set(BASELINES)
    for name in BASELINES:
        first, further = policies.described(name)
        assert first.strip(), f"{name} has no description"
        assert f"### `{name}`" in text or not further
    assert "arXiv 2309.06180" in text, "sources are not told"
    assert ":func:" not in text


def test_the_short_page_of_policies_is_up_to_date():
    """``PYTHONPATH=docs python -m website.policies --write`` writes it."""
    written = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    assert written == policies.page(short=True) + "\n"
    lines = [line for line in written.splitlines() if line.startswith("| `")]
    assert len(lines) == len(BASELINES)
    for name, (source, engine) in ORIGINS.items():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` "))
        assert f"| {source} |" in line
        assert engine in line


def test_every_public_name_is_in_the_reference():
    pages = api.pages()
    for module, other in zip(api.MODULES, map(sys.modules.get, api.MODULES), strict=True):
        text = pages[f"api/{module}.md"]
        assert all(re.search(rf"[. ]{name}\b", text) for name in other.__all__), module
    directives = re.findall(r"^\.\. (?:autoclass|autofunction):: (\S+)$", "\n".join(pages.values()), re.MULTILINE)
    assert len(directives) == len(set(directives)) > 150


def test_glossary(staged):
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = {term.lower() for term in staging.TERM.findall(text) for term in term[:1]}
    assert {term.lower() for term in TERMS} <= terms
    for term, meaning in staging.TERM.findall(text):
        assert f"\n{term}\n  {meaning}\n" in staged.texts["glossary.md"]


def test_every_page_is_in_a_list_and_links_lead_to_pages(staged):
    index = staged.texts["index.md"]
    assert staging.UNLISTED not in index
    assert staging.TABLE not in index
    assert "[First steps](tutorials/1_first_steps.ipynb)" in index
    for page in ("training", "agents", "serving", "policies", "glossary", "environments/index", "api/index"):
        assert re.search(rf"^{page}$", index, re.MULTILINE), page
    assert {"changelog.md", "contributing.md", "files/examples/my_rule.py.md"} <= staged.texts.keys()
    places = {*staged.texts, *staged.copies}
    for place, text in staged.texts.items():
        if not place.endswith(".md"):
            continue
        for link in staging.LINK.findall(staging.FENCE.sub("", text)):
            if "://" not in link[1] and not link[1].startswith("/") and not link[1].startswith("episodes/"):
                leads = (ROOT / place).parent.joinpath(link[1]).resolve().relative_to(ROOT).as_posix()
                assert leads in places, f"{place}: {link[1]}"


def test_pages_that_no_list_names_are_listed_last(staged):
    staged.texts["news.md"] = "# News"
    try:
        listed = staged._listed((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    finally:
        del staged.texts["news.md"]
    assert listed.rpartition("```{toctree}")[2].rstrip("`\n").endswith("news")


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"><a href="#top"></a><a href="b.html#x"></a><img src="http://x/y">')
    assert links.broken(tmp_path) == ["a.html: loads http://x/y", "a.html: no file b.html#x"]
    (tmp_path / "b.html").write_text('<a href="a.html#top"></a><a href="a.html#low"></a>')
    assert links.broken(tmp_path)[1:] == ["a.html: no place b.html#x", "b.html: no place a.html#low"]


def test_forms_and_citation():
    yaml = pytest.importorskip("yaml")
    for name in ("bug", "feature"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
        assert form["name"]
        assert form["description"]
        assert all(part["attributes"]["label"] for part in form["body"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [author["family-names"] for author in citation["references"][0]["authors"]] == ["Pang", "Li", "She", "Wang"]
    import llmsched_env

    assert citation["version"] == llmsched_env.__version__
