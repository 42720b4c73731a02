"""A page for each environment id, made of `ENVIRONMENTS`, its spaces and the docstring of the class."""

from __future__ import annotations

import inspect
import re

import gymnasium

from llmsched_env import ENVIRONMENTS, ROUTER_ENVIRONMENTS, make_scenario
from llmsched_env.actions import actions_of
from llmsched_env.config import Scenario
from llmsched_env.engine import codes
from llmsched_env.engine.features import features_of
from llmsched_env.env import LLMSchedEnv
from llmsched_env.replicas.env import RouterEnv

from .markdown import slug, table

KINDS = {codes.DECODE: "decode", codes.PREFILL: "prefill", codes.MIXED: "mixed"}


def sections(documented: type = LLMSchedEnv) -> dict[str, str]:
    """The docstring of the class, by heading."""
    _, *parts = re.split(r"^## (.+)$", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    linked = [re.sub(r"docs/(\w+)\.md", r"[the page on \1](/\1.md)", part.strip()) for part in parts]
    return dict(zip(linked[::2], linked[1::2], strict=True))


def meanings() -> dict[str, str]:
    """What each argument of a scenario means."""
    rows = re.findall(r"^\| `(\w+)` \| `.*?` \| (.+) \|$", sections()["Arguments"], re.MULTILINE)
    return dict(rows)


def rule_of(scenario: Scenario) -> str:
    """The baseline that the picture of an episode shows."""
    return "memory_aware" if scenario.kv_limited else "mixed_first" if scenario.mixes else "lagrangian"


def summary(scenario: Scenario) -> str:
    """What is served, in one sentence made of the scenario's values."""
    if scenario.serving:
        what = f"Requests over time (`{scenario.workload}`) at load {scenario.load:g}"
        what += f", limits of {scenario.ttft_s:g} s on TTFT and {scenario.tpot_s:g} s on TPOT"
    else:
        what = f"A batch of requests (`{scenario.workload}`)"
    lengths = {"known": "output lengths known", "predicted": "output lengths predicted"}
    queue = "one shared queue" if scenario.queue == "shared" else f"a queue per client ({scenario.assignment.upper()})"
    extras = [
        text
        for on, text in (
            (scenario.choose_order, "the action chooses the order"),
            (scenario.choose_length, "the action chooses lengths and waits"),
            (scenario.kv_limited, f"a KV cache of {scenario.kv_budget_tokens or 0:,} tokens"),
            (scenario.choose_cap, "the action caps the active clients"),
            (scenario.mixes, "chunked prefill"),
            (scenario.migrates, "requests can move between clients"),
            (scenario.noise_sd > 0, "iterations of random duration"),
        )
        if on
    ]
    return "; ".join([what, lengths.get(scenario.lengths, "output lengths unknown"), queue, *extras]) + "."


def listed(folder: str = "") -> str:
    """A table of all ids, with links to their pages in this folder."""
    rows = []
    for name in (*ENVIRONMENTS, *ROUTER_ENVIRONMENTS):
        env = gymnasium.make(name).unwrapped
        link = f"[{name}]({folder}{slug(name)}.md)"
        text = summary(env.scenario) if name in ENVIRONMENTS else routed(env)
        rows.append((link, text, env.action_space.n, env.observation_space.shape[0]))
    return table(("id", "what is served", "actions", "features"), rows)


def index() -> str:
    """The page of all ids."""
    parts = sections()
    return "\n\n".join(
        [
            "# Environments",
            "Every id but that of the router is the same class with other arguments. Each page below gives the spaces, "
            "rewards and arguments of one id. Importing `llmsched_env` registers all of them.",
            '```python\nimport gymnasium\nimport llmsched_env\n\nenv = gymnasium.make("LLMSched/GSM8K-v0")\n```',
            listed(),
            "## Arguments",
            "`gymnasium.make(id, argument=value)` changes one. The defaults are those of `Scenario`; the page of an id "
            "lists what that id changes.",
            parts["Arguments"],
            "```{toctree}\n:hidden:\n\n"
            + "\n".join(slug(name) for name in (*ENVIRONMENTS, *ROUTER_ENVIRONMENTS))
            + "\n```",
        ]
    )


def page(name: str) -> str:
    """The page of one id; its picture is `episodes/<slug>.gif`."""
    scenario, parts, env = make_scenario(name), sections(), gymnasium.make(name).unwrapped
    said, rule, version = meanings(), rule_of(scenario), name.rpartition("-v")[2]
    changes = [
        (f"`{key}`", f"`{value!r}`", f"`{getattr(Scenario(), key)!r}`", said[key])
        for key, value in ENVIRONMENTS[name].items()
        if value != getattr(Scenario(), key)
    ]
    actions = [(i, action.name, KINDS[action.kind]) for i, action in enumerate(actions_of(scenario))]
    features = [(i, f"`{f.name}`", f.formula, 0, 1) for i, f in enumerate(features_of(scenario))]
    symbols = parts["Observation Space"].partition("\n\n")[0].partition("float32)`. ")[2]
    rewards = parts["Rewards"]
    box = env.observation_space
    return "\n\n".join(
        [
            f"# {name}",
            summary(scenario),
            f"![Timeline of an episode of {name} under {rule}](episodes/{slug(name)}.gif)",
            f"*Test case 0 under the baseline [`{rule}`](../policies.md#{rule}): clients over time, "
            "and below it the number of waiting requests.*",
            table(
                ("property", "value"),
                [
                    ("Action space", f"`{_discrete(env)}`"),
                    (
                        "Observation space",
                        f"`Box({box.low.min():.0f}, {box.high.max():.0f}, {box.shape}, {box.dtype})`",
                    ),
                    ("Reward", f"`{scenario.reward}`"),
                    ("Clients", scenario.num_clients),
                    ("Version", version),
                    ("Import", f'`gymnasium.make("{name}")`'),
                ],
            ),
            "## Description",
            parts["Description"],
            "## What this id changes",
            table(("argument", "value", "default", "meaning"), changes) if changes else "Nothing: it has all defaults.",
            "The other arguments are [listed with the ids](index.md#arguments).",
            "## Action Space",
            f"`{_discrete(env)}`:",
            table(("action", "name", "kind of iteration"), actions),
            'An infeasible action is replaced by a feasible one and counted in `info["invalid_actions"]`. '
            '`info["action_mask"]` and `action_masks()` tell in advance.',
            "## Observation Space",
            symbols,
            table(("", "feature", "value", "min", "max"), features),
            "## Rewards",
            f"This id uses `{scenario.reward}`. The argument `reward` chooses another.",
            rewards,
            *(f"## {heading}\n\n{parts[heading]}" for heading in ("Starting State", "Episode End", "Information")),
            "## Version History",
            f"- v{version}: first version. What an id computes never changes; a change of meaning is a new version.",
        ]
    )


def routed(env: RouterEnv) -> str:
    """What is served, in one sentence."""
    return f"Which of {env.replicas} replicas an arriving request goes to. Each: {summary(env.scenario)}"


def router_page(name: str) -> str:
    """The page of an id of the router: its docstring, and a table of its spaces."""
    env = gymnasium.make(name).unwrapped
    box = env.observation_space
    return "\n\n".join(
        [
            f"# {name}",
            routed(env),
            table(
                ("property", "value"),
                [
                    ("Action space", f"`{_discrete(env)}`"),
                    ("Observation space", f"`Box(0, 1, {box.shape}, {box.dtype})`"),
                    ("Replicas", env.replicas),
                    ("Policy in each", f"`{env.policy.name}`"),
                    ("Import", f'`gymnasium.make("{name}")`'),
                ],
            ),
            *(f"## {heading}\n\n{text}" for heading, text in sections(RouterEnv).items()),
        ]
    )


def _discrete(env: gymnasium.Env) -> str:
    return f"Discrete({env.action_space.n})"
