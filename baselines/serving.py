"""What the comparison prints and draws where there are SLOs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmsched_env.baselines.registry import Entry
from llmsched_env.evaluation import play, request_metrics
from llmsched_env.evaluation.comparison import Comparison, Row
from llmsched_env.evaluation.report import glossary, serving_table
from llmsched_env.evaluation.rollout import episode_seed
from llmsched_env.evaluation.serving_pictures import LoadCurve, goodput_against_load, latency_distributions

__all__ = ["draw_serving", "show_serving"]

SHOWN = 15
"""Rows of a printed table; the files have all of them."""

PLAIN = "prefill_first"

MOST_NAMED = 12
FEW = 5
"""Named in a picture beside three, where there are more than a dozen policies."""


def show_serving(comparisons: Sequence[Comparison]) -> None:
    """Print a table a load."""
    where = comparisons[0].scenario
    ends, tpot_ms = f"{where.uncounted_share:.0%}", 1e3 * (where.tpot_s or 0.0)
    print(
        f"SLOs: first token within {where.ttft_s:g} s (TTFT), then {tpot_ms:g} ms a token (TPOT).\n"
        f"The first and the last {ends} of a case, its warm-up and cut end, are served but not counted."
    )
    for comparison in comparisons:
        where_to = comparison.arrivals()
        rows = sorted(comparison.rows, key=lambda row: -np.nan_to_num(row.estimate("goodput").mean, nan=-1.0))
        best = rows[:SHOWN]
        best += [row for row in rows[SHOWN:] if row.name == PLAIN]
        print(
            "\n"
            + f"{where_to[0].upper()}{where_to[1:]}. Score: {_scale(comparison)}."
            + (f"\nThe best {SHOWN} of {len(rows)}, and {PLAIN}." if len(rows) > len(best) else "")
            + ("" if comparison is comparisons[0] else " Decision times: at the first load.")
            + "\n"
        )
        print(serving_table(best))
    print(f"\n{glossary(*comparisons)}")


def _scale(comparison: Comparison) -> str:
    """What scores 0 and 1, with the goodput of each."""
    if comparison.ends is None:
        return "none"
    zero, one = (f"goodput {100 * end.mean:.1f} %" for end in comparison.ends)
    return f"0 = {comparison.reference} ({zero}), 1 = {comparison.planner} ({one})"


def draw_serving(comparisons: Sequence[Comparison], entries: Sequence[Entry], folder: Path) -> list[Path]:
    """The pictures: goodput against load, and the latencies of three rules in one case.

    Args:
        comparisons: at each load.
        entries: of the first one.
        folder: to write to.
    """
    where = comparisons[0].scenario
    assert where.ttft_s is not None
    assert where.tpot_s is not None
    paths = []
    if len(comparisons) > 1 and all(_rate(one) > 0 for one in comparisons):
        paths.append(folder / "goodput_against_load.png")
        by_load = sorted(comparisons, key=_rate)
        goodput_against_load(
            paths[-1],
            [_curve(by_load, row.name) for row in comparisons[0].rows],
            limits_s=(where.ttft_s, where.tpot_s),
            named=_three(comparisons[0]),
            best=MOST_NAMED if len(comparisons[0].rows) <= MOST_NAMED else FEW,
            title=f"{comparisons[0].scenario_id}: SLO violations against the rate of requests",
        )
    by_name = {item.name: item for item in entries}
    paths.append(folder / "latencies.png")
    latency_distributions(
        paths[-1],
        [_latencies(comparisons[0], by_name[name]) for name in _three(comparisons[0])],
        ttft_s=where.ttft_s,
        tpot_s=where.tpot_s,
        title=f"{comparisons[0].about(int(comparisons[0].cases[0]))}, {comparisons[0].arrivals()}",
    )
    return paths


def _rate(comparison: Comparison) -> float:
    return comparison.offered.requests_per_s or 0.0


def _curve(comparisons: Sequence[Comparison], name: str) -> LoadCurve:
    rows = [comparison.row(name) for comparison in comparisons]
    mean, low, high = zip(*(row.estimate("goodput") for row in rows), strict=True)
    gaps_s = [row.estimate("worst_token_gap_s").mean for row in rows]
    loads = [float("nan") if one.offered.load is None else one.offered.load for one in comparisons]
    return LoadCurve(name, loads, mean, low, high, rows[0].kind, gaps_s, [_rate(one) for one in comparisons])


def _three(comparison: Comparison) -> list[str]:
    """The plain rule, the best rule first come first served, and the best of all that know no future."""
    rows = [row for row in comparison.rows if row.kind == "rule"] or list(comparison.rows)
    plain = [row for row in rows if "@" not in row.name]

    def best(among: Sequence[Row]) -> list[str]:
        return [max(among, key=lambda row: row.estimate("goodput").mean).name] if among else []

    first = [PLAIN] if any(row.name == PLAIN for row in rows) else []
    return list(dict.fromkeys([*first, *best(plain), *best(rows)]))


def _latencies(comparison: Comparison, item: Entry) -> tuple[str, np.ndarray, np.ndarray]:
    """TTFT and TPOT in s of the counted requests of the first case."""
    case = int(comparison.cases[0])
    episode = play(item.policy, item.scenario, case, seed=episode_seed(comparison.seed, case), record=True)
    counted = item.scenario.slo(episode.problem.num_requests)
    assert counted is not None
    latencies = request_metrics(episode)
    return (
        item.name,
        latencies["ttft_s"][counted.first : counted.last],
        latencies["tpot_s"][counted.first : counted.last],
    )
