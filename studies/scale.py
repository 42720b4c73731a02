"""How far one machine goes: up to 5,000 clients and a million requests, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmsched_env.evaluation import Estimate, mean_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, RULE, label_at_right, new_figure, plain, save
from llmsched_env.studies.stages import REFERENCE, STAGES, WHOLE_MIP_NODES, stage, whole_mip
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Rows, Table
from llmsched_env.workload.gsm8k import NUM_REQUESTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STUDY", "sizes"]

LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
MANY = 200
"""Requests of a client on the second ladder; on the first they are the paper's 1319 to 200 clients."""
MOST_REQUESTS = 1_000_000
MOST_MODELS, MOST_HARD_MODELS = 8_000, 300
"""PuLP models of polishing: two a client, but no more than this. Where lengths are equal and few to a client they take
ten times as long, and do not get there."""
WHOLE_MIP_CLIENTS = (2, 4, 8, 16)
COLOURS = tuple(zip(("draw", "lpt", "resplit", "polish", "layout", "client"), LINES, strict=True))
"""Stages of the picture: an episode with one shared queue is much like one with client queues."""
MIB = 2**20
LEAST_MIB = 1.0
"""Less than that is not told from noise."""


def sizes(clients: int) -> list[int]:
    """Numbers of requests for a number of clients: as many a client as in the paper's case, and 200 up to a million."""
    return sorted({_few(clients), min(MANY * clients, MOST_REQUESTS)})


def _few(clients: int) -> int:
    return round(NUM_REQUESTS * clients / 200)


def _models(lengths: str, clients: int, requests: int) -> int:
    hard = lengths == "gsm8k" and requests == _few(clients)
    return min(2 * clients, MOST_HARD_MODELS if hard else MOST_MODELS)


def _jobs(options: Options) -> list[Job]:
    found = []
    for lengths in LENGTHS:
        for clients in options.clients:
            for requests in sizes(clients):
                for name in STAGES:
                    polishing = name == "polish"
                    arguments = {
                        "name": name,
                        "lengths": lengths,
                        "clients": clients,
                        "requests": requests,
                        "cases": 1 if polishing else options.cases_at(clients),
                        "models": _models(lengths, clients, requests) if polishing else 0,
                    }
                    found.append(Job(f"{name} {lengths} {clients} {requests}", stage, arguments))
        cases = min(3, options.cases)
        # A tenth of the ladder's end: a small study stays small.
        for clients in (count for count in WHOLE_MIP_CLIENTS if 10 * count <= max(options.clients)):
            arguments = {"lengths": lengths, "clients": clients, "requests": _few(clients), "cases": cases}
            found.append(Job(f"whole MIP {lengths} {clients}", whole_mip, arguments))
    # The long ones first, so that no core is left with them at the end.
    return sorted(found, key=lambda job: -job.arguments["requests"] * (1 + job.arguments.get("models", 0)))


class _Size(NamedTuple):
    """One size of one set of lengths."""

    lengths: str
    requests: int
    clients: int

    @property
    def cells(self) -> list[str]:
        """What its lines begin with."""
        return [LENGTHS[self.lengths], f"{self.clients:,}", f"{self.requests:,}"]


def _points(found: Found) -> dict[_Size, dict[str, Any]]:
    """Results of stages by size, in order of lengths and requests."""
    points: dict[_Size, dict[str, Any]] = {}
    for value in found.values():
        if "stage" in value:
            size = _Size(value["lengths"], value["requests"], value["clients"])
            points.setdefault(size, {})[value["stage"]] = value
    return dict(sorted(points.items(), key=lambda item: (list(LENGTHS).index(item[0].lengths), item[0][1:])))


def _excess(found: Iterable[Mapping[str, Any]]) -> list[int]:
    """Decodes of Cmax above its bound, case by case: 0 where it is proved."""
    return [case["cmax"] - case["bound"] for case in found]


def _left(found: Sequence[Mapping[str, Any]]) -> str:
    """How many were proved, and how far the worst is from it."""
    excess = _excess(found)
    worst = f", worst {max(excess)}" if max(excess) else ""
    return f"{excess.count(0)} of {len(excess)}{worst}"


def _seconds(value: float) -> str:
    if value < 0.01:
        return f"{value * 1e3:.2g} ms"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _cost(result: Mapping[str, Any]) -> str:
    """Time, in brackets against the reference, and memory where it is told from noise."""
    ratio, mib = result["seconds"] / result["reference_s"], _memory_mib(result)
    held = f", {mib:.0f} MiB" if mib > LEAST_MIB else ""
    return f"{_seconds(result['seconds'])} ({f'{ratio:.0f}' if ratio >= 10 else f'{ratio:.2g}'}){held}"


def _percent(found: Estimate) -> str:
    half = "" if np.isnan(found.low) else f" ± {100 * (found.high - found.low) / 2:.2f}"
    return f"{100 * found.mean:z.2f}{half}"


def _tables(found: Found) -> list[Table]:
    title = (
        f"CPU time of case 0, the best of up to five runs. In brackets: as a multiple of {REFERENCE} "
        f"({_seconds(_reference_s(found))}). Then the peak memory of the stage, its input included, if above "
        f"{LEAST_MIB:g} MiB. {_machines(found)}."
    )
    tables = [
        Table("assignments", "What is proved of the offline assignment.", *_assignments(found)),
        Table("costs", title, *_costs(found)),
        Table("episodes", "Makespan of the Lagrangian rule above the bound LB1.", *_episodes(found)),
        Table("whole_mip", "The whole assignment as one MIP.", *_whole_mips(found)),
    ]
    return [table for table in tables if table.rows]


def _short(found: Mapping[str, Table]) -> Table:
    """Time of the stages that lead to an episode, at the fewest and at the most clients."""
    stages = [STAGES[name].text for name in ("lpt", "assign", "client", "shared")]
    whole = found["costs"]
    counts = [row[whole.header.index("clients")] for row in whole.rows]
    ends = {choice(counts, key=lambda text: int(text.replace(",", ""))) for choice in (min, max)}
    picked = whole.picked(["lengths", "clients", "requests", *stages], lambda row: row["clients"] in ends)
    times = [[cell.partition(" (")[0] for cell in row] for row in picked.rows]
    return picked._replace(title="CPU time of one case.", rows=times)


def _machines(found: Found) -> str:
    """More than one where a study was begun on one machine and ended on another."""
    return "; ".join(dict.fromkeys(value["machine"] for value in found.values() if "machine" in value))


def _reference_s(found: Found) -> float:
    return float(np.median([value["reference_s"] for value in found.values() if "reference_s" in value]))


def _assignments(found: Found) -> Rows:
    header = ["lengths", "clients", "requests", "LPT: decodes above the bound", "re-split: proved", "moves a client"]
    header += ["`assign`: proved", "polish MIPs alone: models", "above the bound"]
    rows = []
    for size, stages in _points(found).items():
        above = _excess(stages["lpt"]["found"])
        searched, polished = stages["resplit"]["found"], stages["polish"]["found"][0]
        left = polished["cmax"] - polished["bound"]
        rows.append(
            [
                *size.cells,
                f"{min(above)} to {max(above)}" if len(above) > 1 else f"{above[0]}",
                _left(searched),
                f"{np.mean([case['moves'] for case in searched]) / size.clients:,.1f}",
                _left(stages["assign"]["found"]),
                f"at most {polished['models']:,}",
                f"{left}" if left else "0: proved",
            ]
        )
    return header, rows


def _costs(found: Found) -> Rows:
    header = ["lengths", "clients", "requests", *(item.text for item in STAGES.values())]
    rows = [[*size.cells, *(_cost(stages[name]) for name in STAGES)] for size, stages in _points(found).items()]
    return header, rows


def _episodes(found: Found) -> Rows:
    header = ["lengths", "clients", "requests", "cases", "LB1, s", "client queues: gap, %", "shared queue: gap, %"]
    header += ["shared less client, points", "iterations"]
    rows = []
    for size, stages in _points(found).items():
        bounds = [case["bound_s"] for case in stages["client"]["found"]]
        client, shared = (
            np.array([case["gap_to_bound"] for case in stages[name]["found"]]) for name in ("client", "shared")
        )
        rows.append(
            [
                *size.cells,
                f"{len(bounds)}",
                f"{np.mean(bounds):,.1f}",
                *(_percent(mean_estimate(values)) for values in (client, shared, shared - client)),
                f"{stages['shared']['found'][0]['iterations']:,}",
            ]
        )
    return header, rows


def _whole_mips(found: Found) -> Rows:
    values = [value for name, value in found.items() if name.startswith("whole MIP")]
    values.sort(key=lambda value: (list(LENGTHS).index(value["lengths"]), value["clients"]))
    rows = [
        [*_Size(value["lengths"], value["requests"], value["clients"]).cells, _left(value["found"]),
         _seconds(value["seconds"])]
        for value in values
    ]  # fmt: skip
    header = ["lengths", "clients", "requests", f"the whole MIP, {WHOLE_MIP_NODES} nodes: proved", "seconds a case"]
    return header, rows


def _draw(found: Found, path: Path) -> Path:
    points, reference_s = _points(found), _reference_s(found)
    figure = new_figure(11.0, 7.6)
    panels = figure.subplots(2, len(LENGTHS), sharex=True, sharey="row")
    for row, quantity in zip(panels, (_time_s, _memory_mib), strict=True):
        for axes, lengths in zip(row, LENGTHS, strict=True):
            _lines(axes, [item for item in points.items() if item[0].lengths == lengths], quantity)
        # Limits are shared, so that they are final only now.
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, max(high, 100 * low))
        for axes, lengths in zip(row, LENGTHS, strict=True):
            _proportional(axes)
            size, stages = [item for item in points.items() if item[0].lengths == lengths][-1]
            ends = [(STAGES[name].text, colour, size.requests, quantity(stages[name])) for name, colour in COLOURS]
            label_at_right(axes, ends, 3.1)
    for axes, lengths in zip(panels[0], LENGTHS, strict=True):
        axes.set_title(f"{LENGTHS[lengths]} lengths", loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.axhline(reference_s, color=FAINT, linewidth=0.8, zorder=1)
    for axes in panels[1]:
        axes.set_xlabel("requests", fontsize=9, color=INK)
    panels[0, 0].set_ylabel("CPU time, s", fontsize=9, color=INK)
    panels[1, 0].set_ylabel(f"memory, MiB ({LEAST_MIB:g} where less)", fontsize=9, color=INK)
    size, stages = [*points.items()][-1]
    figure.suptitle(
        f"{size.requests:,} requests on {size.clients:,} clients: {_time_s(stages['assign']):.1f} s to assign, "
        f"{_time_s(stages['client']):.2f} s to play\n"
        f"filled: 6.6 requests a client; hollow: {MANY} a client; dotted: proportional to requests; "
        "grey line: NumPy sorts a million numbers",
        x=0.01, ha="left", fontsize=9, color=FAINT,
    )  # fmt: skip
    return save(figure, path)


def _time_s(result: Mapping[str, Any]) -> float:
    return float(result["seconds"])


def _memory_mib(result: Mapping[str, Any]) -> float:
    return max(LEAST_MIB, float(result["memory_bytes"]) / MIB)


def _lines(
    axes: Axes, points: Sequence[tuple[_Size, Mapping[str, Any]]], quantity: Callable[[Mapping[str, Any]], float]
) -> None:
    """A line a stage along each of the two ladders."""
    plain(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.tick_params(which="minor", labelbottom=False, labelleft=False)
    for few in (True, False):
        ladder = [(size, stages) for size, stages in points if (size.requests == _few(size.clients)) == few]
        requests = [size.requests for size, _ in ladder]
        for name, colour in COLOURS:
            values = [quantity(stages[name]) for _, stages in ladder]
            face = colour if few else "white"
            axes.plot(requests, values, "o-", color=colour, markersize=4.5, markerfacecolor=face, linewidth=1.3)


def _proportional(axes: Axes) -> None:
    """Lines of slope 1, a decade apart."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = np.array([left, right])
    for decade in range(math.floor(math.log10(low / right)), math.ceil(math.log10(high / left)) + 1):
        axes.plot(ends, ends * 10.0**decade, ":", color=RULE, linewidth=1.0, zorder=0)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)


STUDY = Study(
    "scale",
    "How far does one machine go: 5,000 clients and a million requests?",
    _jobs,
    _tables,
    _short,
    _draw,
)
