"""The page of policies, made of the registry and of docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

from llmsched_env.baselines import mixed, registry
from llmsched_env.baselines.tuned import MIXED_TUNABLE, SLO_TUNABLE, TUNABLE, Tuned
from llmsched_env.config import Scenario

from .markdown import arguments, paragraphs, plain, table


def _of(policies: dict[str, Any], kind: str, *, tuned: bool) -> dict[str, Any]:
    """Those of one kind."""
    return {name: make for name, make in policies.items() if make().kind == kind and _is_tuned(make) == tuned}


def _is_tuned(factory: Any) -> bool:
    return isinstance(factory, functools.partial) and factory.func is Tuned


GROUPS = {
    "Methods of the paper's ablation": (
        registry.METHODS,
        "Each brings its own queues, and runs on no others. The rule is one of those below.",
    ),
    "Rules": (_of(registry.POLICIES, "rule", tuned=False), "They run on the queues of the scenario."),
    "Tuned rules": (_of(registry.POLICIES, "rule", tuned=True), "Score 0 is the best tuned rule of a scenario."),
    "Planners": (_of(registry.POLICIES, "planner", tuned=False), "They search in the true future, or in drawn ones."),
    "With SLOs": (registry.SLO_POLICIES, "They need `ttft_s` and `tpot_s`."),
    "With a budget of KV cache": (registry.MEMORY_POLICIES, "They need `kv_budget_tokens`."),
    "With mixed iterations": (registry.MIXED_POLICIES, "They need `mixed_tokens` (chunked prefill)."),
    "With mixed iterations and SLOs": (registry.SLACK_POLICIES, "They need `mixed_tokens`, `ttft_s` and `tpot_s`."),
    "Agents": (registry.AGENTS, "Trained networks, for the scenarios that they fit."),
}


def page() -> str:
    """The whole page."""
    parts = [
        "# Policies",
        "Every policy that `llmsched_env.baselines.make_policy(name)` makes. `llmsched compare` and "
        "`llmsched_env.evaluation` run them by these names; a policy of your own is `module:factory`. "
        "A *clairvoyant* policy is given the true output lengths and arrivals. A policy that *plans* tries actions in "
        "futures that hide what the scenario hides.",
    ]
    for heading, (policies, text) in GROUPS.items():
        rows, details = [], []
        for name in policies:
            policy = registry.BASELINES[name]()
            first, further = described(name)
            kind = "method" if name in registry.METHODS else policy.kind
            sees = "clairvoyant" if policy.clairvoyant else "plans" if getattr(policy, "plans", False) else ""
            # A policy with more to say has a section of its own.
            shown = f"[`{name}`](#{name})" if further else f"`{name}`"
            rows.append((shown, kind, sees, first))
            if further:
                details.append(f"### `{name}`\n\n" + "\n\n".join([first, *further]))
        parts += [f"## {heading}", text, table(("name", "kind", "sees more", "what it does"), rows), *details]
    return "\n\n".join(parts)


def described(name: str) -> tuple[str, list[str]]:
    """The first sentence about a policy, and the rest: the source that it is taken from, and its arguments."""
    factory: Any = registry.BASELINES[name]
    if name in registry.METHODS:
        method = registry.METHODS[name]
        queues = ", ".join(f"`{key}={value!r}`" for key, value in method.queues.items())
        names = list(registry.METHODS)
        before = f"as `{names[names.index(name) - 1]}`, with "  # texts are read from the top of a table
        text = re.sub(r"^(\+ |the same with )", before, method.text)
        return f"{_capital(text)}. Rule: `{method.policy().name}`.", [f"Sets {queues}."]
    if _is_tuned(factory):
        tunable = {**TUNABLE, **SLO_TUNABLE, **MIXED_TUNABLE}[name]
        sample = tunable.make(*tunable.grid(Scenario())[0])
        return f"The rule `{sample.name}`, with numbers chosen on training cases of the scenario.", []
    if name in registry.SYSTEMS:
        settings = ", ".join(f"`{key}={value!r}`" for key, value in registry.SYSTEMS[name].items())
        source = (inspect.getdoc(mixed) or "").split("\n\n")[1]
        return f"`mixed_first` on iterations composed with {settings}.", [plain(source)]
    if isinstance(factory, functools.partial):
        given = ", ".join([*map(repr, factory.args), *(f"{key}={value!r}" for key, value in factory.keywords.items())])
        return f"`{factory.func.__name__}({given})`: {_first(factory.func)}", []
    _, *further = paragraphs(factory)
    return _first(factory), [*map(plain, further), *_arguments(factory)]


def _first(factory: Any) -> str:
    return plain(" ".join(paragraphs(factory)[0].split()))


def _arguments(factory: Any) -> Iterator[str]:
    found = arguments(factory)
    if found:
        yield "\n".join(f"- `{name}`: {plain(text)}" for name, text in found.items())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
