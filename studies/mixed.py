"""Mixed iterations: when is it better to read prompts beside decodes than in prefills of their own?

Three parts. The crossover of arXiv 2606.00516, its closed form against simulated throughput, on the costs measured
there. Batches of GSM8K and smooth lengths on the paper's accelerator, under two laws of what a mixed iteration lasts.
Requests over time under SLOs, short prompts and long ones.

On long prompts the goodput of `tuned_threshold` rises with load. A threshold also prefills when everything that waits
fits, at light load at nearly every arrival whatever its number is, and the stalls violate the TPOT limit; at high load
more wait than fit, its number decides, and prefills are fewer. `min_batch` has no such clause and does not rise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env import make_scenario
from llmsched_env.baselines.mixed import MIXED_SYSTEMS, costs_per_token_ns
from llmsched_env.baselines.registry import entry
from llmsched_env.baselines.tuned import SLO_TUNABLE
from llmsched_env.config import Scenario
from llmsched_env.cost import MIXED_FITS, PRESETS, mixed_cost
from llmsched_env.evaluation import CoverageWarning, Estimate, evaluate, mean_estimate, play
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.policy import Policy
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Table, stacked
from llmsched_env.workload import GammaWorkload

__all__ = ["STUDY"]

EVERYTHING = 2**31 - 1
"""As a cap or a chunk: none."""

# The crossover.
MEANS = {"decode-heavy": (128, 1024), "balanced": (512, 512), "table 4": (512, 256), "prefill-heavy": (1024, 128)}
"""Mean prompt and output tokens of the synthetic workloads of arXiv 2606.00516."""
CONCURRENCY = (32, 128, 512, 2048)
REQUESTS_A_CLIENT = 12
CROSSOVER_CASES = 5
STEADY = (0.2, 0.8)
"""Throughput is that between these shares of the completions: between filling up and running dry."""

# Batches.
LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
FORMS = ("sum", "overlap")
CHUNKS = (64, 128, 256, 512, 1024, 2048)
TUNED_ON = 4
RULES = ("prefill_first", "eb_threshold", "tuned_threshold", "lagrangian")
BATCH_METHODS = (*RULES, *MIXED_SYSTEMS, "mixed_first, best chunk")
ORDERS: dict[str, dict[str, Any]] = {
    "fcfs, lengths hidden": {"order": "fcfs", "lengths": "hidden"},
    "longest first, lengths known": {"order": "longest_first", "lengths": "known"},
}

# SLOs.
SERVED = {"serving": {"num_requests": 3000}, "azure-synthetic": {"num_requests": 3000}}
LOADS = (0.8, 0.9, 0.97)
SERVED_CASES = 5
SERVED_RULES = ("prefill_first", "tuned_threshold", *SLO_TUNABLE, "lagrangian_tuned", "max_wait_tuned")
SERVED_METHODS = (*SERVED_RULES, *MIXED_SYSTEMS, "mixed_first, best chunk")
SERVED_KEPT = ("goodput", "ttft_p99_s", "tpot_p99_s", "worst_token_gap_s")


def saturated(cost: str, kind: str, clients: int, **changes: Any) -> Scenario:
    """So many clients and always enough that waits; prompts and outputs gamma, the outputs as good as geometric."""
    prompt, output = MEANS[kind]
    workload = GammaWorkload(
        f"gamma {prompt}/{output}", REQUESTS_A_CLIENT * clients, prompt, prompt / 4.0, output, float(output)
    )
    usual = {"mixed_tokens": EVERYTHING, "mixed_cost": "fitted", "prefill_token_cap": EVERYTHING}
    return Scenario(
        workload,
        "test",
        num_clients=clients,
        cost=cost,
        queue="shared",
        order="fcfs",
        lengths="hidden",
        **{**usual, **changes},
    )


def steady_requests_per_s(policy: str, scenario: Scenario, case: int) -> float:
    """Completions a second between the shares `STEADY` of them."""
    item = entry(policy, scenario)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        done_s = np.sort(play(item.policy, item.scenario, case, record=True).served["completion_ns"]) / 1e9
    first, last = (int(share * (len(done_s) - 1)) for share in STEADY)
    return float((last - first) / (done_s[last] - done_s[first]))


def always_mixed(cost: str) -> dict[str, Any]:
    """Costs of an engine whose iterations are all priced as mixed ones, also those with nothing to read."""
    mixed = mixed_cost("fitted", PRESETS[cost])
    per_client_ns = mixed.beta_active_ns + mixed.interference_ns
    model = replace(
        PRESETS[cost], name=f"{cost}, always mixed", alpha_decode_ns=mixed.alpha_ns, beta_decode_ns=per_client_ns
    )
    return {"cost": model, "mixed_cost": mixed}


def measure_crossover(cost: str, kind: str, clients: int, cases: int) -> dict[str, Any]:
    """What the closed form expects, and what exclusive and mixed batching reach."""
    place = saturated(cost, kind, clients)
    exclusive_ns, mixed_ns = costs_per_token_ns(place, *MEANS[kind])
    tried = {
        "EB": ("eb_threshold", place),
        "MB": ("mixed_first", place.replace(**always_mixed(cost))),
        "MB, decodes at T_d": ("mixed_first", place),
    }
    reached = {
        name: [steady_requests_per_s(policy, where, case) for case in range(cases)]
        for name, (policy, where) in tried.items()
    }
    return {"expected": exclusive_ns / mixed_ns - 1.0, "delta_ns": mixed_ns - exclusive_ns, **reached}


def batch(lengths: str, clients: int, form: str, order: str, **changes: Any) -> Scenario:
    """A batch at a size on the paper's accelerator."""
    count = None if clients == 200 else round(1319 * clients / 200)
    usual = {"num_clients": clients, "num_requests": count, "queue": "shared", "split": "test", **ORDERS[order]}
    return Scenario(lengths, **{**usual, "mixed_tokens": 512, "mixed_cost": form, **changes})


def _columns(policy: Policy, where: Scenario, cases: int, latencies: bool) -> dict[str, NDArray[np.float64]]:
    with warnings.catch_warnings():  # the small decodes at the ends of an episode
        warnings.simplefilter("ignore", CoverageWarning)
        return evaluate(policy, where, cases, latencies=latencies).columns


def _best_chunk(where: Scenario, metric: str, cases: int) -> tuple[int, Scenario]:
    """The chunk of `mixed_first` that is best on training cases."""
    policy, sign = entry("mixed_first", where).policy, -1.0 if metric == "goodput" else 1.0
    train = where.replace(split="train")

    def loss(chunk: int) -> float:
        found = _columns(policy, train.replace(mixed_tokens=chunk), min(TUNED_ON, cases), False)
        return sign * float(found[metric].mean())

    best = min(CHUNKS, key=loss)
    return best, where.replace(mixed_tokens=best)


def _reached(name: str, where: Scenario, cases: int, kept: tuple[str, ...], latencies: bool) -> dict[str, Any]:
    chunk = None
    if name == "mixed_first, best chunk":
        chunk, where = _best_chunk(where, kept[0], cases)
        name = "mixed_first"
    if name in RULES or name in SERVED_RULES:  # tuned where there is nothing to mix
        where = where.replace(mixed_tokens=None, mixed_counts_active=False, mixed_cost="sum")
    item = entry(name, where)
    found = _columns(item.policy, item.scenario, cases, latencies)
    return {"chunk": chunk, **{metric: found[metric].tolist() for metric in kept}}


def measure_batch(lengths: str, clients: int, order: str, cases: int) -> dict[str, Any]:
    """Makespans of rules that keep the kinds apart, and of systems that mix them under each law of cost."""
    kept = ("makespan_s",)
    return {
        form: {name: _reached(name, batch(lengths, clients, form, order), cases, kept, False) for name in BATCH_METHODS}
        for form in FORMS
    }


def measure_served(workload: str, load: float, cases: int) -> dict[str, Any]:
    """Goodput, late last, and what it is made of."""
    usual = {"workload": workload, "load": load, "order": "late_last", "split": "test", **SERVED[workload]}
    if workload == "azure-synthetic":
        usual |= {"cost": "qwen3-30b-a3b-h200", "prefill_token_cap": 16_384, "ttft_s": 1.0, "tpot_s": 0.05}
    return {
        form: {
            name: _reached(name, make_scenario("LLMSched/Mixed-v0", **usual, mixed_cost=form), cases, SERVED_KEPT, True)
            for name in SERVED_METHODS
        }
        for form in FORMS
    }


def jobs(options: Options) -> list[Job]:
    """One job a place."""
    crossover = [
        Job(
            f"crossover, {cost}, {kind}, {clients}",
            measure_crossover,
            {"cost": cost, "kind": kind, "clients": clients, "cases": min(CROSSOVER_CASES, options.cases)},
        )
        for cost in MIXED_FITS
        for kind in MEANS
        for clients in CONCURRENCY
    ]
    batches = [
        Job(
            f"{lengths}, {clients} clients, {order}",
            measure_batch,
            {"lengths": lengths, "clients": clients, "order": order, "cases": options.cases_at(clients)},
        )
        for lengths in LENGTHS
        for clients in options.clients
        for order in ORDERS
    ]
    served = [
        Job(
            f"{workload}, load {load}",
            measure_served,
            {"workload": workload, "load": load, "cases": min(SERVED_CASES, options.cases)},
        )
        for workload in SERVED
        for load in LOADS
    ]
    return [*crossover, *batches, *served]


def _gain(said: dict[str, Any], one: str, other: str) -> Estimate:
    """Throughput of the one above the other's, in %."""
    return mean_estimate(100.0 * (np.array(said[one]) / np.array(said[other]) - 1.0))


def _pm(found: Estimate, digits: int = 1) -> str:
    half = "" if np.isnan(found.low) else f" ± {(found.high - found.low) / 2:.{digits}f}"
    return f"{found.mean:+.{digits}f}{half}"


def _crossovers(found: Found) -> list[tuple[str, str, str, dict[str, Any]]]:
    parts = [(name.split(", "), said) for name, said in found.items() if name.startswith("crossover")]
    return [(cost, kind, clients, said) for (_, cost, kind, clients), said in parts]


def _crossover_table(found: Found) -> Table:
    body, agree, agree_otherwise, clear = [], 0, 0, 0
    for cost, kind, clients, said in _crossovers(found):
        measured, otherwise = _gain(said, "MB", "EB"), _gain(said, "MB, decodes at T_d", "EB")
        right = (measured.mean > 0) == (said["delta_ns"] < 0)
        agree += right
        agree_otherwise += (otherwise.mean > 0) == (said["delta_ns"] < 0)
        clear += not right and (measured.low > 0 or measured.high < 0)
        prompt, output = MEANS[kind]
        row = [cost, f"{kind} ({prompt} / {output})", clients, f"{said['delta_ns'] / 1000:+.1f}"]
        body.append([*row, f"{100 * said['expected']:+.1f}", _pm(measured), "yes" if right else "no", _pm(otherwise)])
    header = ["costs", "lengths: prompt / output", "J", "Δ, µs a token", "mixed above exclusive: closed form, %"]
    header += ["simulated, %", "same sign", "simulated, decodes at T_d, %"]
    title = (
        f"Crossover: the sign of Δ is that of the simulated difference in {agree} of {len(body)} places "
        f"({clear} of the others differ beyond their intervals), and in {agree_otherwise} where an iteration that "
        "reads nothing lasts as long as a decode."
    )
    return Table("crossover", title, header, body)


def _batch_table(found: Found) -> Table:
    parts = {}
    for order in ORDERS:
        places = {
            name.rsplit(", ", len(order.split(", ")))[0]: said for name, said in found.items() if name.endswith(order)
        }
        header = ["method", *(f"{place}, {form}" for place in places for form in FORMS)]
        body = []
        for method in BATCH_METHODS:
            cells = []
            for said in places.values():
                for form in FORMS:
                    one, best = (said[form][name] for name in (method, "tuned_threshold"))
                    change = 100.0 * (np.array(one["makespan_s"]) / np.array(best["makespan_s"]) - 1.0)
                    chunk = f" ({one['chunk']})" if one["chunk"] else ""
                    if method in RULES and form != FORMS[0]:
                        cells.append("")
                    elif method == "tuned_threshold":
                        cells.append(f"{np.mean(best['makespan_s']):.1f} s")
                    else:
                        cells.append(_pm(mean_estimate(change)) + chunk)
            body.append([method, *cells])
        parts[order] = (header, body)
    title = "Batches: makespan against the tuned threshold, %, by what a mixed iteration lasts (best chunk)."
    return stacked("batches", title, "order", parts)


def _served_table(found: Found) -> Table:
    parts = {}
    for workload in SERVED:
        places = {name.split(", ")[1]: said for name, said in found.items() if name.startswith(f"{workload}, load")}
        header = ["method", *(f"{place}, {form}" for place in places for form in FORMS)]
        body = []
        for method in SERVED_METHODS:
            cells = []
            for said in places.values():
                for form in FORMS:
                    one = said[form][method]
                    goodput = mean_estimate(100.0 * np.array(one["goodput"]))
                    half = "" if np.isnan(goodput.low) else f" ± {(goodput.high - goodput.low) / 2:.1f}"
                    chunk = f" ({one['chunk']})" if one["chunk"] else ""
                    shown = f"{goodput.mean:.1f}{half} / {np.mean(one['worst_token_gap_s']):.2f}{chunk}"
                    cells.append("" if method in SERVED_RULES and form != FORMS[0] else shown)
            body.append([method, *cells])
        parts[workload] = (header, body)
    title = "Serving under SLOs: goodput, % / longest gap between two tokens, s (best chunk)."
    return stacked("serving", title, "workload", parts)


def tables(found: Found) -> list[Table]:
    """The crossover, batches and SLOs."""
    return [_crossover_table(found), _batch_table(found), _served_table(found)]


SHORT = ("prefill_first", "tgi_tuned", "deadline_tuned", *MIXED_SYSTEMS)


def short(found: Mapping[str, Table]) -> Table:
    """Serving at the highest load: rules that keep the kinds apart, and systems that mix them."""
    columns = [f"load {max(LOADS)}, {form}" for form in FORMS]
    picked = found["serving"].picked(["workload", "method", *columns], lambda row: row["method"] in SHORT)
    return picked._replace(title="Goodput, % / longest gap between two tokens, s, at the highest load.")


PICTURED = ("prefill_first", "tuned_threshold", "deadline_tuned", *MIXED_SYSTEMS)


def draw(found: Found, path: Path) -> Path:
    """Left: mixed above exclusive batching, closed form against simulation. Right: goodput against load."""
    figure = new_figure(10.5, 4.6)
    left, right = figure.subplots(1, 2)
    rows = _crossovers(found)
    values = []
    for colour, cost in zip(LINES, MIXED_FITS, strict=False):
        for marker, kind in zip("osD^", MEANS, strict=False):
            points = [said for one, of, _, said in rows if (one, of) == (cost, kind)]
            xs = [100 * said["expected"] for said in points]
            ys = [_gain(said, "MB", "EB").mean for said in points]
            values += xs + ys
            left.plot(xs, ys, marker, color=colour, markersize=5, alpha=0.85)
    low, high = min(values) - 3, max(values) + 3
    left.plot([low, high], [low, high], color=FAINT, linewidth=1)
    left.axhline(0, color=FAINT, linewidth=0.6)
    left.axvline(0, color=FAINT, linewidth=0.6)
    for colour, cost in zip(LINES, MIXED_FITS, strict=False):
        left.plot([], [], "s", color=colour, label=cost)
    for marker, kind in zip("osD^", MEANS, strict=False):
        left.plot([], [], marker, color=FAINT, label=kind)
    left.legend(fontsize=7, frameon=False)
    left.set_xlabel("throughput of mixed above exclusive batching, closed form, %", fontsize=8)
    left.set_ylabel("simulated, %", fontsize=8)
    left.set_title("Crossover of arXiv 2606.00516", fontsize=9, color=INK)
    served = {name: said for name, said in found.items() if name.startswith("azure-synthetic, load")}
    loads = [float(name.rsplit(" ", 1)[1]) for name in served]
    for name, colour in zip(PICTURED, LINES, strict=True):
        for form, line in zip(FORMS, ("-", ":"), strict=True):
            if name in SERVED_RULES and form != FORMS[0]:
                continue
            ys = [100 * float(np.mean(said[form][name]["goodput"])) for said in served.values()]
            style = "--" if name in SERVED_RULES else line
            label = name if form == FORMS[0] else None
            right.plot(loads, ys, style, marker="o", markersize=3, color=colour, label=label)
    right.set_xlabel("load", fontsize=8)
    right.set_ylabel("goodput, %", fontsize=8)
    right.set_title("azure-synthetic (full: sum form; dotted: overlap)", fontsize=9, color=INK)
    right.set_ylim(0, 103)
    reached = {name: 100 * float(np.mean(said["goodput"])) for name, said in served[[*served][-1]][FORMS[0]].items()}
    mixing, apart = (max(names, key=reached.__getitem__) for names in (MIXED_SYSTEMS, SERVED_RULES))
    figure.suptitle(
        f"Long prompts, load {max(loads)}: {reached[mixing]:.0f} % goodput by {mixing}, {reached[apart]:.0f} % by the "
        f"best rule with prefills of their own, {apart}",
        fontsize=10, color=INK,
    )  # fmt: skip
    right.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    for axes in (left, right):
        plain(axes)
    return save(figure, path)


STUDY = Study(
    "mixed",
    "When is it better to read prompts beside decodes than in prefills of their own?",
    jobs,
    tables,
    short,
    draw,
)
