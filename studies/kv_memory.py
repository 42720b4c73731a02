"""A changing number of clients: a budget of KV cache in place of a fixed J, and whom to let in.

Batches of GSM8K and smooth lengths, lengths hidden but where said, on eight devices of 80 GB (M = 170,000 tokens) and
of 40 GB (60,000); at J clients budget and requests are J / 200 as large. The rule is the Lagrangian one throughout, but
where a method brings its own, so what differs is who is let in. Then requests over time, whose goodput is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.baselines.registry import make_policy
from llmsched_env.config import Scenario
from llmsched_env.evaluation import Estimate, evaluate, mean_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.studies.rates import AtRateFor
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Table, stacked

__all__ = ["STUDY"]

PAPERS_CLIENTS = 200
BUDGETS = {"8 x 80 GB": 170_000, "8 x 40 GB": 60_000}
LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
SLOTS = 1024
"""Most active clients where memory is the limit, at the paper's size."""

FIXED = (80, 100, 120, 140, 160, 180, 200, 240, 280, 320, 360, 400, 480, 560, 640)
"""Fixed numbers of clients to choose from, at the paper's size."""
TUNED_ON = 4
"""Training cases that the best of them is chosen on."""

SWAP_GB_PER_S = {"PCIe 4.0": 25.0, "NVLink": 450.0}
KNOWN = "MC-SF, lengths known"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "reserve all": ("lagrangian", {"kv_admission": "reserve", "kv_reserve_tokens": 512}),
    "whoever fits": ("lagrangian", {}),
    "watermark 1 %": ("lagrangian", {"kv_watermark": 0.01}),
    "watermark 10 %": ("lagrangian", {"kv_watermark": 0.1}),
    "watermark 1 %, prefill first": ("prefill_first", {"kv_watermark": 0.01}),
    "vLLM V0: watermark 1 %, prefill first": ("prefill_first", {"kv_rule": "vllm_v0", "kv_watermark": 0.01}),
    "vLLM V1's rule of memory, prefill first": ("prefill_first", {"kv_rule": "vllm_v1"}),
    "memory-aware cap (2503.05248)": ("memory_aware", {}),
    **{
        f"watermark 1 %, swapped by {name}": ("lagrangian", {"kv_watermark": 0.01, "kv_swap_gb_per_s": speed})
        for name, speed in SWAP_GB_PER_S.items()
    },
    "MC-SF, lengths predicted": (
        "prefill_first",
        {"kv_admission": "predicted", "lengths": "predicted", "predictor": "noisy", "order": "shortest_first"},
    ),
    KNOWN: (
        "prefill_first",
        {"kv_admission": "predicted", "lengths": "known", "order": "shortest_first"},
    ),
    "MC-SF's check, longest first, lengths known": (
        "lagrangian",
        {"kv_admission": "predicted", "lengths": "known", "order": "longest_first"},
    ),
}
"""Rule, and what the scenario is given."""
KNOWING = tuple(name for name in METHODS if "known" in name)

SERVED_LOADS = (0.8, 0.9, 0.97, 1.05)
SERVED_METHODS = {
    name: METHODS[name] for name in ("reserve all", "whoever fits", "watermark 10 %", "memory-aware cap (2503.05248)")
}
SERVED_RULE = "deadline"
SERVED_CASES = 5
KEPT = ("makespan_s", "throughput_tokens_per_s", "mean_latency_s", "preemptions", "kv_peak")


def batch(lengths: str, clients: int, budget_tokens: int, split: str, **changes: Any) -> Scenario:
    """A batch at a size: slots, budget and requests in proportion to ``clients``."""
    scale = clients / PAPERS_CLIENTS
    sized = {"num_clients": round(SLOTS * scale), "num_requests": None if scale == 1 else round(1319 * scale)}
    usual = {"workload": lengths, "choose_cap": False, "kv_budget_tokens": round(budget_tokens * scale), "split": split}
    return make_scenario("LLMSched/KVMemory-v0", **{**sized, **usual, **changes})


def columns(policy: str, scenario: Scenario, cases: int, kept: Sequence[str] = KEPT) -> dict[str, list[float]]:
    """What a policy reached, by case."""
    found = evaluate(make_policy(policy), scenario, cases, latencies=False).columns
    return {name: found[name].tolist() for name in kept}


def measure_batch(lengths: str, clients: int, budget_tokens: int, cases: int) -> dict[str, Any]:
    """Every fixed J on training cases, the best of them and every method on test cases."""
    fixed = {}
    for count in FIXED:
        where = batch(lengths, clients, budget_tokens, "train", num_clients=round(count * clients / PAPERS_CLIENTS))
        fixed[str(count)] = columns("lagrangian", where, min(TUNED_ON, cases), ("makespan_s",))["makespan_s"]
    best = min(fixed, key=lambda count: float(np.mean(fixed[count])))
    slots = round(int(best) * clients / PAPERS_CLIENTS)
    test = batch(lengths, clients, budget_tokens, "test")
    return {
        "fixed": fixed,
        "best": int(best),
        "best fixed J": columns("lagrangian", test.replace(num_clients=slots), cases),
        "J = 200": columns("lagrangian", test.replace(num_clients=clients), cases),
        **{name: columns(rule, test.replace(**changes), cases) for name, (rule, changes) in METHODS.items()},
    }


def serving(load: float, budget_tokens: int, split: str, **changes: Any) -> Scenario:
    """Requests over time at a share of what 200 clients can take, whoever serves them."""
    usual = make_scenario("LLMSched/Serving-v0", load=None, order="late_last", split=split)
    workload = AtRateFor("serving", load, PAPERS_CLIENTS, "llama-65b-paper")
    return usual.replace(
        **{
            "workload": workload,
            "num_clients": SLOTS,
            "kv_budget_tokens": budget_tokens,
            "kv_block_tokens": 16,
            **changes,
        }
    )


def measure_serving(load: float, budget_tokens: int, cases: int) -> dict[str, Any]:
    """The same for goodput, under the rule `deadline`."""
    kept = ("goodput", "preemptions", "kv_peak")
    fixed = {}
    for count in FIXED:
        where = serving(load, budget_tokens, "train", num_clients=count)
        fixed[str(count)] = columns(SERVED_RULE, where, min(TUNED_ON, cases), ("goodput",))["goodput"]
    best = max(fixed, key=lambda count: float(np.mean(fixed[count])))
    test = serving(load, budget_tokens, "test")
    methods = {
        name: columns(SERVED_RULE if rule == "lagrangian" else rule, test.replace(**changes), cases, kept)
        for name, (rule, changes) in SERVED_METHODS.items()
    }
    return {
        "fixed": fixed,
        "best": int(best),
        "best fixed J": columns(SERVED_RULE, test.replace(num_clients=int(best)), cases, kept),
        "J = 200": columns(SERVED_RULE, test.replace(num_clients=PAPERS_CLIENTS), cases, kept),
        **methods,
    }


def jobs(options: Options) -> list[Job]:
    """One job a kind of lengths, size and budget; one a load and budget."""
    batches = [
        Job(
            f"{lengths}, {clients} clients, {name}",
            measure_batch,
            {"lengths": lengths, "clients": clients, "budget_tokens": budget, "cases": options.cases_at(clients)},
        )
        for lengths in LENGTHS
        for clients in options.clients
        for name, budget in BUDGETS.items()
    ]
    served = [
        Job(
            f"load {load}, {name}",
            measure_serving,
            {"load": load, "budget_tokens": budget, "cases": min(SERVED_CASES, options.cases)},
        )
        for load in SERVED_LOADS
        for name, budget in BUDGETS.items()
    ]
    return [*batches, *served]


def _gain(said: dict[str, Any], name: str) -> Estimate:
    """Throughput against the best fixed J, in %: the same case under both."""
    one, other = (np.array(said[of]["makespan_s"]) for of in (name, "best fixed J"))
    return mean_estimate(100.0 * (other / one - 1.0))


def _spread(found: Estimate, digits: int = 1) -> str:
    if np.isnan(found.low):
        return f"{found.mean:+.{digits}f}"
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def _batch_table(found: Found) -> Table:
    parts = {}
    for lengths, title in LENGTHS.items():
        places = {name: said for name, said in found.items() if name.startswith(f"{lengths}, ")}
        header = ["method", *(name.split(", ", 1)[1] for name in places)]
        best = ["*best fixed J at 200 clients' size*", *(f"*{said['best']}*" for said in places.values())]
        names = ["J = 200", *METHODS]
        body = [[name, *(_spread(_gain(said, name)) for said in places.values())] for name in names]
        parts[title] = (header, [best, *body])
    return stacked("throughput", "Throughput against the best fixed J, %, and that J.", "lengths", parts)


def _detail_table(found: Found) -> Table:
    """Of the first size: what lies behind."""
    first = next(iter(found)).split(", ")[1]
    places = {name: said for name, said in found.items() if f", {first}, " in name}
    header = ["method", *(name.replace(f", {first}", "") for name in places)]
    body = []
    for name in ("J = 200", "best fixed J", *METHODS):
        cells = []
        for said in places.values():
            means = [np.mean(said[name][metric]) for metric in ("makespan_s", "mean_latency_s", "preemptions")]
            cells.append(f"{means[0]:.1f} / {means[1]:.1f} / {means[2]:.0f}")
        body.append([name, *cells])
    return Table("details", f"{first}: makespan, s / mean latency, s / preemptions.", header, body)


def _serving_table(found: Found) -> Table:
    places = {name: said for name, said in found.items() if name.startswith("load ")}
    body = [["*the best fixed J*", *(f"*{said['best']}*" for said in places.values())]]
    for name in ("best fixed J", "J = 200", *SERVED_METHODS):
        cells = []
        for said in places.values():
            goodput = np.array(said[name]["goodput"])
            against = mean_estimate(100 * (goodput - np.array(said["best fixed J"]["goodput"])))
            shown = "" if name == "best fixed J" else f" ({_spread(against)})"
            cells.append(f"{100 * goodput.mean():.1f}{shown}")
        body.append([name, *cells])
    title = "Serving under SLOs: goodput, % (points against the best fixed J)."
    return Table("goodput", title, ["method", *places], body)


def tables(found: Found) -> list[Table]:
    """Throughput by method and size, what lies behind it, and goodput by load."""
    return [_batch_table(found), _detail_table(found), _serving_table(found)]


SHORT = (
    "J = 200",
    "reserve all",
    "memory-aware cap (2503.05248)",
    "watermark 1 %, swapped by NVLink",
    "MC-SF's check, longest first, lengths known",
)


def short(found: Mapping[str, Table]) -> Table:
    """Throughput at the first size: the paper's J, what needs no lengths, and what does."""
    whole = found["throughput"]
    columns = whole.header[: 2 + len(BUDGETS)]
    picked = whole.picked(columns, lambda row: row["method"] in SHORT or row["method"].startswith("*"))
    return picked._replace(title="Throughput against the best fixed J, % (95 % interval).")


PICTURED = {
    "reserve all": "--",
    "watermark 1 %": "-.",
    "memory-aware cap (2503.05248)": "-",
    KNOWN: ":",
}


def draw(found: Found, path: Path) -> Path:
    """Makespan against a fixed J, and the methods that need none, at the first size."""
    first = next(iter(found)).split(", ")[1]
    places = {name: said for name, said in found.items() if f", {first}, " in name}
    figure = new_figure(9.0, 3.0 * (len(places) + 1) // 2)
    panels = np.atleast_1d(figure.subplots((len(places) + 1) // 2, 2)).ravel()
    for axes, (name, said) in zip(panels, places.items(), strict=False):
        xs = [int(count) for count in said["fixed"]]
        ys = [float(np.mean(values)) for values in said["fixed"].values()]
        axes.plot(xs, ys, "o-", color=FAINT, markersize=3, linewidth=1.2, label="fixed J (training cases)")
        for colour, (method, style) in zip(LINES, PICTURED.items(), strict=False):
            axes.axhline(
                np.mean(said[method]["makespan_s"]), color=colour, linestyle=style, linewidth=1.4, label=method
            )
        axes.set_title(name.replace(f", {first}", ""), fontsize=9, color=INK)
        axes.set_xlabel("J at 200 clients' size", fontsize=8)
        axes.set_ylabel("makespan, s", fontsize=8)
        plain(axes)
    blind = [name for name in PICTURED if name != KNOWN]
    best = [
        min(float(np.mean(said[name]["makespan_s"])) for name in blind)
        / min(float(np.mean(values)) for values in said["fixed"].values())
        for said in places.values()
    ]
    least, most = (f"{100 * share - 100:+.1f}" for share in (min(best), max(best)))
    figure.suptitle(
        f"Without known lengths the best method drawn takes {least} to {most} % against the best fixed J",
        fontsize=10, color=INK,
    )  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save(figure, path)


STUDY = Study(
    "kv_memory",
    "What does a budget of KV cache gain over the best fixed number of clients?",
    jobs,
    tables,
    short,
    draw,
)
