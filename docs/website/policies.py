"""The page of policies, made of the registry and of docstrings.

``PYTHONPATH=docs python -m website.policies --write`` writes docs/policies.md, a line a policy; the site's page has the
same tables and a section for each policy of which there is more to say.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmsched_env.baselines import mixed, registry
from llmsched_env.baselines.origins import ORIGINS
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


FILE = Path(__file__).parents[1] / "policies.md"


def page(*, short: bool = False) -> str:
    """The whole page, or only its tables."""
    parts = [
        "# Policies",
        "Every policy that `llmsched_env.baselines.make_policy(name)` makes: what it does, where it is from, and what "
        "does the same in a serving engine.",
        "`llmsched compare` runs them by these names, and `rule@order` under an order; a policy of your own is "
        "`module:factory`. The numbers of a rule stand in the column *parameters* of a comparison. "
        "vLLM runs the rules and the agent itself: `--scheduler-cls llmsched_env.engines.vllm.LLMSchedScheduler` with "
        "a name as `policy` and its numbers as `parameters` ([engines](engines.md)).",
        "A *clairvoyant* policy is given the true output lengths and arrivals. A policy that *plans* tries actions in "
        "futures that hide what the scenario hides. *W* requests wait, *A* of *J* clients are active, *F* are idle, "
        "*R* of these have something to take; other symbols are those of [the model](model.md).",
    ]
    for heading, (policies, text) in GROUPS.items():
        rows, details = [], []
        for name in policies:
            policy = registry.BASELINES[name]()
            first, further = described(name)
            kind = "method" if name in registry.METHODS else policy.kind
            sees = "clairvoyant" if policy.clairvoyant else "plans" if getattr(policy, "plans", False) else ""
            # A policy with more to say has a section of its own.
            shown = f"[`{name}`](#{name})" if further and not short else f"`{name}`"
            origin = ORIGINS[name]
            rows.append((shown, kind, sees, first, origin.source, origin.engine))
            if further and not short:
                details.append(f"### `{name}`\n\n" + "\n\n".join([first, *further]))
        parts += [f"## {heading}", text, _table(rows), *details]
    return "\n\n".join(parts)


def _table(rows: list[tuple[str, ...]]) -> str:
    """Without columns that are empty."""
    head = ("name", "kind", "sees more", "what it does", "source", "in an engine")
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


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


if __name__ == "__main__":
    text = page(short=True) + "\n"
    if "--write" in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
