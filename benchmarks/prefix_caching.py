"""What prefix caching changes in a recommendation, on synthetic conversations: docs/studies/prefix_caching.md.

    python benchmarks/prefix_caching.py [--trace FILE] [--write]

Without ``--trace`` it makes a trace of its own, in Mooncake's format: see :func:`conversations`. ``--write`` writes
docs/data/prefix_caching.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import numpy as np

from llmsched_env.cost import cost_model
from llmsched_env.evaluation import play
from llmsched_env.recommend import VLLM_DEFAULT, Machine, recommend
from llmsched_env.recommend.trial import Load
from llmsched_env.storage import write_whole
from llmsched_env.workload import workload

DATA = Path(__file__).parents[1] / "docs" / "data" / "prefix_caching.csv"
COST, TTFT_S, TPOT_S, RATE_PER_S = "qwen3-8b-h200", 1.0, 0.05, 6.0
BUDGETS = (100_000, 200_000, 400_000)
BLOCK_TOKENS = 512
SYSTEM_TOKENS = 1_024


def conversations(path: Path, sessions: int = 4_000, seed: int = 0) -> None:
    """Write conversations as Mooncake's traces have them.

    All begin with one system prompt of 1,024 tokens. Sessions come at random, one a second; each has 1 + a geometric
    number of turns, five in the mean. A turn adds a question (log-normal, median 245 tokens, sigma 1) to all that was
    said; its answer (log-normal, median 200, sigma 0.8, 2,001 at most) is part of the next prompt. Between turns lie an
    exponential pause of 20 s and 0.03 s for each token of the answer.
    """
    rng = np.random.default_rng(seed)
    rows, unused, at_s = [], SYSTEM_TOKENS // BLOCK_TOKENS, 0.0
    for _ in range(sessions):
        at_s += rng.exponential(1.0)
        now_s, context, known = at_s, SYSTEM_TOKENS, list(range(SYSTEM_TOKENS // BLOCK_TOKENS))
        for _ in range(rng.geometric(0.2)):
            context += int(rng.lognormal(5.5, 1.0)) + 1
            fresh = -(-context // BLOCK_TOKENS) - len(known)
            ids = [*known, *range(unused, unused + fresh)]
            unused += fresh
            answer = int(min(2_000, rng.lognormal(5.3, 0.8))) + 1
            rows.append((now_s, context, answer, ids))
            known = ids[: context // BLOCK_TOKENS]
            context += answer
            now_s += rng.exponential(20.0) + 0.03 * answer
    lines = [
        json.dumps({"timestamp": round(1e3 * at), "input_length": prompt, "output_length": answer, "hash_ids": ids})
        for at, prompt, answer, ids in sorted(rows, key=lambda row: row[0])
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured(trace: Path) -> list[dict[str, object]]:
    """A row for each budget, without and with prefix caching."""
    given = workload(f"trace:{trace}").trace().requests()  # type: ignore[attr-defined]
    rows: list[dict[str, object]] = []
    for budget in BUDGETS:
        for caching in (False, True):
            machine = Machine(
                cost_model(COST), TTFT_S, TPOT_S, kv_tokens=budget, prefix_caching=caching,
                longest_prompt_tokens=int(given.prompt_tokens.max()), cost_name=COST,
            ).mixing(None)  # fmt: skip
            answer = recommend(given, machine, rate_per_s=RATE_PER_S)
            usual = machine.scenario(VLLM_DEFAULT, Load("trace", given.at_rate(RATE_PER_S)))
            totals = play(VLLM_DEFAULT.policy(), usual, 0).totals
            rows.append(
                {
                    "kv_tokens": budget,
                    "prefix_caching": caching,
                    "hit_share": round(int(totals.cached_tokens) / int(given.prompt_tokens.sum(dtype=np.int64)), 4),
                    **_figures("vllm", answer.stock),
                    **_figures("recommended", answer.chosen),
                    "setting": answer.chosen.setting.short(),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _figures(name: str, row: object) -> dict[str, object]:
    goodput, holds = row.outcome.goodput, row.capacity  # type: ignore[attr-defined]
    return {
        f"{name}_goodput": round(goodput.mean, 4),
        f"{name}_goodput_low": round(goodput.low, 4),
        f"{name}_goodput_high": round(goodput.high, 4),
        f"{name}_holds_per_s": round(holds.mean, 3),
    }


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="with hash_ids (default: conversations of its own)")
    parser.add_argument("--write", action="store_true", help=f"write {DATA.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = options.trace
        if trace is None:
            trace = Path(folder) / "conversations.jsonl"
            conversations(trace)
        rows = measured(trace)
    if options.write:
        with write_whole(DATA) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
