"""Moving a started request: what stealing is worth where it has caches to move.

The paper's chain on queues of clients, up to the hybrid. A share of each prompt lies in a cache with its own client; a
thief brings that over or computes it again, or takes over the victim's running request instead. Copies hold everybody
up and change no decision, so the makespan is linear in the time of a token, and break-even bandwidths follow exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.registry import make_policy
from llmsched_env.config import LLAMA_65B_BYTES_PER_TOKEN, Scenario
from llmsched_env.config.cases import Lengths
from llmsched_env.cost import cost_model
from llmsched_env.evaluation import Estimate, mean_estimate, play
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, RULE, new_figure, plain, save
from llmsched_env.metrics import final_metrics
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Rows, Table, stacked
from llmsched_env.workload import Requests, workload

__all__ = ["STUDY", "LongPrompts"]

PAPERS_CLIENTS = 200
LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
VARIANTS: dict[str, tuple[int, Lengths]] = {
    "known": (1, "known"),
    "known, long prompts": (10, "known"),
    "predicted": (1, "predicted"),
    "predicted, long prompts": (10, "predicted"),
}
"""Prompts are so many times as long (69 tokens in the mean, or 690); what is known of output lengths."""

SHARES = (0.0, 0.5, 0.9)
FREE = 1e6
LINKS: dict[str, float | None] = {"free": FREE, "NVLink": 450.0, "PCIe": 64.0, "Ethernet": 12.5, "recompute": None}
"""GB/s, one way: an H100's NVLink 4, PCIe 5.0 x16, 100 Gb/s Ethernet; 2.6 ns a token stand for nothing."""

STEALS = {
    "waiting": tuple(LINKS),
    "running": tuple(LINKS),
    "cheaper": ("Ethernet", "recompute"),
}
"""What thieves take, and over which links that is tried."""
RULES = {"prefill_first": "prefill-first", "lagrangian": "Lagrangian"}
BYTES = LLAMA_65B_BYTES_PER_TOKEN
RECOMPUTE = BYTES / cost_model("llama-65b-paper").beta_prefill_ns
"""GB/s at which a token is copied in the time that it takes to compute."""
WORTH_SHARING = 1.0
"""Gains in % of a makespan below which shares of them say nothing."""

_ALONE: dict[str, Any] = {"stealing": False, "order": "longest_first"}
CHAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("prefill_first", {"assignment": "round_robin", "order": "fcfs", "stealing": False}),
    "offline": ("prefill_first", {"order": "fcfs", "stealing": False}),
    "prefill_first, no stealing": ("prefill_first", _ALONE),
    "lagrangian, no stealing": ("lagrangian", _ALONE),
}
"""Methods that steal nothing: rule, and what the scenario is given."""


@dataclass(frozen=True)
class LongPrompts:
    """A workload with longer prompts; outputs, and so assignments, are those of the base.

    Attributes:
        base: its name.
        factor: each prompt is so many times as long.
    """

    base: str
    factor: int

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.base}, prompts x {self.factor}"

    def pool_size(self, split: str) -> int | None:
        """As of the base."""
        return workload(self.base).pool_size(split)

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """Those of the base with longer prompts."""
        found = workload(self.base).requests(split, number, num_requests=num_requests)
        return Requests.of(
            found.prompt_tokens.astype(np.int64) * self.factor,
            found.output_tokens,
            release_ns=found.release_ns,
            mean_output_tokens=found.mean_output_tokens,
        )


def place(lengths: str, variant: str, clients: int, share: float) -> Scenario:
    """Client queues at a size; the MIP's at the paper's, if lengths are known, else LPT's. Requests in proportion."""
    factor, known = VARIANTS[variant]
    papers = clients == PAPERS_CLIENTS
    return Scenario(
        workload=lengths if factor == 1 else LongPrompts(lengths, factor),
        split="test",
        num_clients=clients,
        num_requests=None if papers else max(1, round(1319 * clients / PAPERS_CLIENTS)),
        assignment="mip" if papers and known == "known" else "lpt",
        lengths=known,
        predictor="noisy" if known == "predicted" else None,
        cached_share=share,
    )


def columns(rule: str, scenario: Scenario, cases: int) -> dict[str, list[float]]:
    """What a rule reached, by case; moved tokens are those copied or computed again."""
    kept: dict[str, list[float]] = {"makespan_s": [], "utilization": [], "thefts": [], "moved": []}
    for case in range(cases):
        episode = play(make_policy(rule), scenario, case)
        found, totals = final_metrics(episode), episode.totals
        kept["makespan_s"].append(found["makespan_s"])
        kept["utilization"].append(found["utilization"])
        kept["thefts"].append(int(totals.steals + totals.migrations))
        kept["moved"].append(int(totals.moved_tokens + totals.recomputed_tokens))
    return kept


def measure(lengths: str, variant: str, clients: int, share: float, cases: int) -> dict[str, Any]:
    """The chain without stealing, and each rule with each way to steal over each link."""
    here = place(lengths, variant, clients, share)
    found = {name: columns(rule, here.replace(**changes), cases) for name, (rule, changes) in CHAIN.items()}
    for rule in RULES:
        for steal, links in STEALS.items():
            for link in links:
                if share == 0 and (steal == "cheaper" or (steal == "waiting" and link != "free")):
                    continue  # waiting requests have nothing to move
                bare = share == 0 and steal == "waiting"
                changes = {"steal": steal, "move_gb_per_s": None if bare else LINKS[link]}
                found[f"{rule}, {steal}, {link}"] = columns(rule, here.replace(**changes), cases)
    return found


def jobs(options: Options) -> list[Job]:
    """One job a kind of lengths, variant, size and share."""
    return [
        Job(
            f"{lengths}; {variant}; {clients} clients; {share:g}",
            measure,
            {
                "lengths": lengths,
                "variant": variant,
                "clients": clients,
                "share": share,
                "cases": options.cases_at(clients),
            },
        )
        for lengths in LENGTHS
        for variant in VARIANTS
        for clients in options.clients
        for share in SHARES
    ]


def _of(said: dict[str, Any], name: str, metric: str = "makespan_s") -> NDArray[np.float64]:
    """A method's column; that of free stealing where there is nothing to move."""
    if name not in said:
        name = f"{name.split(', ', maxsplit=1)[0]}, waiting, free"
    return np.array(said[name][metric], np.float64)


def gain(said: dict[str, Any], name: str) -> NDArray[np.float64]:
    """(cases,) what a method takes off the makespan of the offline one, in %."""
    return 100.0 * (1.0 - _of(said, name) / _of(said, "offline"))


def surviving(said: dict[str, Any], name: str) -> Estimate:
    """The gain of a method in % of what the hybrid gains where stealing is free: a ratio of means.

    Its interval is that of the mean of a - R * b over the cases (Cochran 1977, ratio estimators). NaN unless the
    hybrid surely gains `WORTH_SHARING`.
    """
    mine, free = gain(said, name), gain(said, "lagrangian, waiting, free")
    sure = mean_estimate(free)
    if not (sure.low > WORTH_SHARING or (np.isnan(sure.low) and sure.mean > WORTH_SHARING)):
        return Estimate(np.nan, np.nan, np.nan)
    ratio = mine.mean() / free.mean()
    off = mean_estimate((mine - ratio * free) / free.mean())
    return Estimate(100.0 * ratio, 100.0 * (ratio + off.low), 100.0 * (ratio + off.high))


def worth(said: dict[str, Any], rule: str, steal: str, link: str) -> NDArray[np.float64]:
    """(cases,) what stealing takes off the makespan of the same queues without it, in %."""
    alone = _of(said, f"{rule}, no stealing")
    return 100.0 * (1.0 - _of(said, f"{rule}, {steal}, {link}") / alone)


def break_even_gb_per_s(said: dict[str, Any], rule: str, steal: str) -> float:
    """The bandwidth at which stealing gains nothing in the mean: infinite if it never gains, 0 if nothing moves."""
    moved_bytes = float(_of(said, f"{rule}, {steal}, free", "moved").mean()) * BYTES
    gain_s = float((_of(said, f"{rule}, no stealing") - _of(said, f"{rule}, {steal}, free")).mean())
    gain_s += moved_bytes / FREE / 1e9
    if moved_bytes == 0:
        return 0.0
    return moved_bytes / gain_s / 1e9 if gain_s > 0 else float("inf")


def _shown(found: Estimate, digits: int = 1) -> str:
    if np.isnan(found.mean):
        return "–"
    half = "" if np.isnan(found.low) else f" ± {(found.high - found.low) / 2:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def _at(found: Found, **asked: str) -> dict[str, dict[str, Any]]:
    """Results by what is not asked for of lengths, variant, clients and share."""
    fields = ("lengths", "variant", "clients", "share")
    chosen = {}
    for name, said in found.items():
        parts = dict(zip(fields, name.split("; "), strict=True))
        if all(parts[field] == value for field, value in asked.items()):
            chosen["; ".join(part for field, part in parts.items() if field not in asked)] = said
    return chosen


def _first(found: Found, field: int) -> str:
    return next(iter(found)).split("; ")[field]


SURVIVORS = {
    "no stealing": "lagrangian, no stealing",
    **{f"waiting, {link}": f"lagrangian, waiting, {link}" for link in LINKS if link != "free"},
    **{f"running, {link}": f"lagrangian, running, {link}" for link in LINKS},
    **{f"cheaper of both, {link}": f"lagrangian, cheaper, {link}" for link in STEALS["cheaper"]},
}


FREE_GAIN = "*hybrid, stealing free: gain, % of the offline method's makespan*"


def _survival(found: Found, lengths: str, clients: str) -> Rows:
    places = _at(found, lengths=lengths, clients=clients)
    free = [f"*{_shown(mean_estimate(gain(said, 'lagrangian, waiting, free')))}*" for said in places.values()]
    rows = [[FREE_GAIN, *free]]
    for title, name in SURVIVORS.items():
        rows.append([title, *(_shown(surviving(said, name)) for said in places.values())])
    return ["stealing", *places], rows


LINKS_OF_CHAIN = {
    "round robin, first come first served": "baseline",
    "offline: balanced queues": "offline",
    "+ longest first": "prefill_first, no stealing",
    "+ stealing, free": "prefill_first, waiting, free",
    "+ stealing, recompute": "prefill_first, waiting, recompute",
    "+ taking over what runs, Ethernet": "prefill_first, running, Ethernet",
    "Lagrangian, no stealing": "lagrangian, no stealing",
    "hybrid, stealing free": "lagrangian, waiting, free",
    "hybrid, recompute": "lagrangian, waiting, recompute",
    "hybrid, taking over what runs, Ethernet": "lagrangian, running, Ethernet",
}


def _chain_table(found: Found) -> Table:
    """At the first size, with the largest share."""
    clients, share = _first(found, 2), f"{SHARES[-1]:g}"
    places = _at(found, clients=clients, share=share)
    rows = []
    for title, name in LINKS_OF_CHAIN.items():
        pairs = [(_of(said, name).mean(), 100 * _of(said, name, "utilization").mean()) for said in places.values()]
        rows.append([title, *(f"{makespan:.1f} / {busy:.1f}" for makespan, busy in pairs)])
    return Table("chain", f"{clients}, {share} cached: makespan, s / utilization, %.", ["method", *places], rows)


def _speed(value: float) -> str:
    if np.isinf(value):
        return "never"
    return "–" if value == 0 else f"{float(f'{value:.2g}'):g}"


def _break_even(found: Found, rule: str) -> Rows:
    """With the largest share, where there is a theft in every case or two."""
    share = f"{SHARES[-1]:g}"
    header = [
        "place", "thefts", "free: gains, %",
        *(f"{steal}: {what}" for steal in ("waiting", "running")
          for what in ("tokens a theft", "pays from, GB/s", "recompute gains, %")),
    ]  # fmt: skip
    rows = []
    for name, said in _at(found, share=share).items():
        thefts = _of(said, f"{rule}, waiting, free", "thefts").mean()
        if thefts < 0.5:
            continue
        row = [name.replace("; ", ", "), f"{thefts:.0f}"]
        row += [_shown(mean_estimate(worth(said, rule, "waiting", "free")), 2)]
        for steal in ("waiting", "running"):
            taken, moved = (_of(said, f"{rule}, {steal}, free", metric).mean() for metric in ("thefts", "moved"))
            row += [f"{moved / taken:.0f}", _speed(break_even_gb_per_s(said, rule, steal))]
            row += [_shown(mean_estimate(worth(said, rule, steal, "recompute")), 2)]
        rows.append(row)
    return header, rows


def tables(found: Found) -> list[Table]:
    """What survives of the hybrid's gain, the chain at the first size, and from where on stealing pays."""
    known, clients = dict.fromkeys(name.split("; ")[0] for name in found), _first(found, 2)
    survival = {LENGTHS[lengths]: _survival(found, lengths, clients) for lengths in known}
    title = f"{clients}: share of the gain of free stealing that survives, %; columns: lengths; share cached."
    break_even = {text: _break_even(found, rule) for rule, text in RULES.items()}
    return [
        stacked("survival", title, "lengths", survival),
        _chain_table(found),
        stacked(
            "break_even",
            f"What stealing gains, and from which bandwidth on; {SHARES[-1]:g} cached.",
            "rule",
            break_even,
        ),
    ]


SHORT = ("no stealing", "waiting, Ethernet", "running, Ethernet")


def short(found: Mapping[str, Table]) -> Table:
    """What survives with the largest share cached."""
    share = f"; {SHARES[-1]:g}"
    whole = found["survival"]
    columns = {name: name.removesuffix(share) for name in whole.header if name.endswith(share)}
    picked = whole.picked(
        {"lengths": "lengths", "stealing": "stealing", **columns}, lambda row: row["stealing"] in SHORT
    )
    return picked._replace(
        title=f"Share of the gain of free stealing that survives, %; {SHARES[-1]:g} of prompts cached."
    )


def _curve(said: dict[str, Any], steal: str, speeds: NDArray[np.float64]) -> NDArray[np.float64]:
    """What stealing is worth at each bandwidth, in %: linear in the time of a token."""
    moved_s = float(_of(said, f"lagrangian, {steal}, free", "moved").mean()) * BYTES / 1e9
    alone = float(_of(said, "lagrangian, no stealing").mean())
    free = float(_of(said, f"lagrangian, {steal}, free").mean()) - moved_s / FREE
    curve: NDArray[np.float64] = 100.0 * (1.0 - (free + moved_s / speeds) / alone)
    return curve


MARKED = {"Ethernet": 12.5, "recompute": RECOMPUTE, "PCIe": 64.0, "NVLink": 450.0}
STYLES = {0.0: ":", 0.5: "--", 0.9: "-"}


def draw(found: Found, path: Path) -> Path:
    """What stealing is worth against the bandwidth at the first size, under the Lagrangian rule."""
    clients = _first(found, 2)
    kinds = dict.fromkeys(tuple(name.split("; ")[:2]) for name in found)
    rows = (len(kinds) + 1) // 2
    figure = new_figure(9.0, 2.6 * rows + 0.6)
    panels = np.atleast_1d(figure.subplots(rows, 2, sharex=True)).ravel()
    speeds = np.geomspace(0.1, 1000.0, 200)
    for axes, (lengths, variant) in zip(panels, kinds, strict=False):
        most = 0.1
        for share, said in _at(found, lengths=lengths, variant=variant, clients=clients).items():
            for colour, steal in zip(LINES, ("waiting", "running"), strict=False):
                curve = _curve(said, steal, speeds)
                most = max(most, float(np.abs(curve[-1])))
                label = f"takes {steal} requests, {share} cached"
                axes.semilogx(speeds, curve, STYLES[float(share)], color=colour, linewidth=1.5, label=label)
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.set_ylim(-1.2 * most, 1.5 * most)
        axes.set_xlim(speeds[0], speeds[-1])
        for link, speed in MARKED.items():
            axes.axvline(speed, color=RULE, linewidth=0.8, zorder=0)
            side = "right" if link == "Ethernet" else "left"
            axes.annotate(
                link, (speed, 0.0), (-1 if side == "right" else 1, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", rotation=90, va="bottom", ha=side, fontsize=7, color=FAINT,
            )  # fmt: skip
        axes.set_title(f"{LENGTHS[lengths]}, {variant}, {clients}", fontsize=9, color=INK)
        axes.set_ylabel("stealing gains, %", fontsize=8)
        plain(axes)
    for axes in panels[len(kinds) - 2 : len(kinds)]:
        axes.set_xlabel("bandwidth, GB/s; recompute takes as long as a copy at its line", fontsize=8)
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    pays = [
        break_even_gb_per_s(said, "lagrangian", "waiting")
        for name, said in _at(found, clients=clients).items()
        if name.endswith(f"; {SHARES[-1]:g}")
    ]
    figure.suptitle(
        f"With {SHARES[-1]:g} of prompts cached, stealing waiting requests pays from {_speed(min(pays))} to "
        f"{_speed(max(pays))} GB/s on",
        fontsize=10, color=INK,
    )  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save(figure, path)


STUDY = Study(
    "migration",
    "When does stealing still pay where caches have to move, or running requests?",
    jobs,
    tables,
    short,
    draw,
)
