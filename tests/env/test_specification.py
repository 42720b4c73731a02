"""The docstring of the class is the specification: its tables against the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import gymnasium
import pytest

from llmsched_env import ENVIRONMENTS, ROUTER_ENVIRONMENTS, make_scenario
from llmsched_env.config import (
    ADMISSIONS,
    ASSIGNMENTS,
    DEADLINE_ORDERS,
    JOINT,
    KEYED_ORDERS,
    KV_RULES,
    KV_VICTIMS,
    LENGTHS,
    ORDERS,
    QUEUES,
    REWARDS,
    STEALS,
    Scenario,
)
from llmsched_env.engine import codes
from llmsched_env.engine.features import FEATURES, MEMORY_FEATURES, MIXED_FEATURES, SLO_FEATURES, feature_table
from llmsched_env.engine.view import FIELDS, View
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import UnknownNameError
from llmsched_env.metrics import EPISODE_METRICS, info_metrics
from llmsched_env.workload import SPLITS

ENTRY = r"^    (\w+): (.+(?:\n     .+)*)"
"""Of an attribute in a docstring."""

HEADINGS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Information",
    "Arguments",
    "Version History",
]


@pytest.fixture(scope="module")
def sections():
    text = inspect.getdoc(LLMSchedEnv)
    _, *parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(section):
    """Cells of a Markdown table's body."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\|( --- \|)+", lines[1])
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in table}) == 1, "rows of unequal length"
    return table[2:]


def test_headings(sections):
    assert list(sections) == HEADINGS


def test_nothing_is_left_to_fill_in(sections):
    for heading, section in sections.items():
        assert not re.search(r"\{\w+\}", section), heading


def test_observation_table(sections):
    table = [row for row in rows(sections["Observation Space"]) if row[0].isdigit()]  # two tables, with their heads
    added = [row for row in rows(sections["Observation Space"]) if row[0].startswith("+")]
    assert [(number, name, formula) for number, name, formula, _, _ in added] == [
        (f"+{i}", f"`{f.name}`", f.formula) for table in (MEMORY_FEATURES, MIXED_FEATURES) for i, f in enumerate(table)
    ]
    assert (len(FEATURES), len(SLO_FEATURES)) == (codes.FEATURES, codes.SLO_FEATURES)
    assert (len(MEMORY_FEATURES), len(MIXED_FEATURES)) == (codes.MEMORY_FEATURES, codes.MIXED_FEATURES)
    assert feature_table(False, mixed=True) == (*FEATURES, *MIXED_FEATURES)
    assert feature_table(True, memory=True) == (*feature_table(True), *MEMORY_FEATURES)
    features = feature_table(slo=True)
    assert [(name, formula) for _, name, formula, _, _ in table] == [(f"`{f.name}`", f.formula) for f in features]
    assert [int(index) for index, *_ in table] == list(range(len(features)))
    assert features[: len(FEATURES)] == FEATURES == feature_table(slo=False)
    assert LLMSchedEnv().observation_space.shape == (len(FEATURES),)
    space = gymnasium.make("LLMSched/Serving-v0").observation_space
    assert [float(low) for *_, low, _ in table] == space.low.tolist()
    assert [float(high) for *_, high in table] == space.high.tolist()
    assert f"`Box(0, 1, ({len(FEATURES)},), float32)`" in sections["Observation Space"]
    assert f"`Box(0, 1, ({len(features)},), float32)`" in sections["Observation Space"]
    assert len({f.name for f in features}) == len(features)


def test_argument_table(sections):
    table = rows(sections["Arguments"])
    fields = dataclasses.fields(Scenario)
    assert [(name, default) for name, default, _ in table] == [(f"`{f.name}`", f"`{f.default!r}`") for f in fields]
    assert all(meaning for *_, meaning in table), "an argument without a description"
    own = set(inspect.signature(LLMSchedEnv.__init__).parameters) - {"self", "arguments"}
    assert own == {"scenario", "render_mode", "render_size", "render_every", "reuse_buffers"}
    for name in own:
        assert f"`{name}" in sections["Arguments"]


def test_the_scenario_names_its_arguments_by_group():
    entries = next(part for part in inspect.getdoc(Scenario).split("\n\n") if part.startswith("- "))
    listed = [re.findall(r"\w+", entry) for entry in entries.split("- ")[1:]]
    groups = [kind for kind in reversed(Scenario.__mro__) if dataclasses.is_dataclass(kind) and kind is not Scenario]
    assert listed == [[kind.__name__, *(field.name for field in dataclasses.fields(kind))] for kind in groups]


def test_version_table(sections):
    assert [name for name, *_ in rows(sections["Version History"])] == [f"`{name}`" for name in ENVIRONMENTS]
    assert {name for name in gymnasium.registry if name.startswith("LLMSched/")} == {
        *ENVIRONMENTS,
        *ROUTER_ENVIRONMENTS,
    }


def test_rewards_and_information_name_what_there_is(sections):
    assert tuple(re.findall(r"^- `(\w+)`", sections["Rewards"], re.MULTILINE)) == REWARDS
    always, slo, memory, prefix = (
        {*re.findall(r"`(\w+)`", part)}
        for part in re.split("With SLOs|where the KV|with prefix", sections["Information"])
    )
    assert always == {"action_mask", "invalid_actions", "case", *info_metrics(Scenario())}
    for identity, arguments in ENVIRONMENTS.items():
        _, info = gymnasium.make(identity, num_requests=20, num_clients=5, assignment="lpt").reset(seed=0)
        assert info.keys() == (
            always | (slo if "ttft_s" in arguments else set()) | (memory if "kv_budget_tokens" in arguments else set())
        )
    assert always | slo | memory | prefix == {"action_mask", "invalid_actions", "case", "bound_s", *EPISODE_METRICS}


def test_render_modes(sections):
    named = re.search(r"`render_mode`: (.+?)\.", sections["Arguments"], re.DOTALL).group(1)
    assert set(re.findall(r'"(\w+)"', named)) == set(LLMSchedEnv.metadata["render_modes"])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_scenario_of_an_id(name):
    assert make_scenario(name, split="test") == gymnasium.make(name, split="test").unwrapped.scenario
    changed = make_scenario(name, num_clients=7)
    assert changed == make_scenario(name).replace(num_clients=7) != make_scenario(name)


def test_an_id_that_does_not_exist():
    with pytest.raises(UnknownNameError, match=r"unknown scenario 'GSM8K'\..* Known: LLMSched/GSM8K-Blind-v0, "):
        make_scenario("GSM8K")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'clients'\. Did you mean 'num_clients'"):
        make_scenario("LLMSched/GSM8K-v0", clients=7)


def test_every_field_of_a_view_is_described():
    described = re.findall(
        r"^    (\w+): \S", inspect.getdoc(View).partition("Attributes:\n")[2].partition("\n\n")[0], re.MULTILINE
    )
    assert described == list(FIELDS)


def test_docs_list_the_fields_of_a_view():
    section = inspect.getdoc(View).partition("Attributes:\n")[2].partition("\n\n")[0]
    said = {name: " ".join(text.split()) for name, text in re.findall(ENTRY, section, re.MULTILINE)}
    text = (Path(__file__).parents[2] / "docs" / "view.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)) == said


@pytest.mark.parametrize(
    ("field", "known"),
    [("queue", QUEUES), ("assignment", ASSIGNMENTS), ("lengths", LENGTHS), ("reward", REWARDS), ("split", SPLITS),
     ("order", (*ORDERS, *KEYED_ORDERS, *DEADLINE_ORDERS, JOINT)), ("steal", STEALS), ("kv_rule", KV_RULES),
     ("kv_admission", ADMISSIONS),
     ("kv_victim", KV_VICTIMS)],
)  # fmt: skip
def test_a_type_checker_knows_the_names_that_an_argument_takes(field, known):
    kind = get_type_hints(Scenario)[field]
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    assert tuple(name for part in parts for name in get_args(part)) == known
