"""How many simulations a setting takes: our search beside optuna's samplers, on the first half of recorded traces.

``python benchmarks/settings_search.py TRACE [TRACE ...]``, after ``pip install optuna`` (no dependency of the package).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import optuna

from llmsched_env.cost import cost_model
from llmsched_env.errors import LLMSchedError
from llmsched_env.recommend.answer import halves
from llmsched_env.recommend.search import COUNTS, SEQS, TOKENS, search
from llmsched_env.recommend.setting import CHUNKED, RULES, Machine, Setting
from llmsched_env.recommend.trial import Load, try_setting
from llmsched_env.workload.traces import TraceWorkload

TARGET = 0.99
PLACES = (("qwen3-8b-h200", 1.0, 0.05), ("qwen3-30b-a3b-h200", 1.0, 0.06), ("llama-65b-paper", 4.0, 0.15))
TIMES = (1.0, 2.5, 4.0)
"""Rates, as multiples of the recorded one."""
SHOWN = (30, 60, 100, 150, 400)


def drawn(trial: optuna.Trial) -> Setting:
    """The same settings as a space of optuna."""
    rule = trial.suggest_categorical("rule", list(RULES))
    numbers: tuple[float, ...] = ()
    if rule in ("min_batch", "deadline", "max_wait"):
        numbers = (trial.suggest_int(f"{rule}_count", COUNTS[0], COUNTS[-1], log=True),)
    if rule == "deadline":
        numbers = (*numbers, trial.suggest_float("share", 0.05, 0.95))
    if rule in ("tgi", "lagrangian"):
        numbers = (trial.suggest_float(rule, 0.01, 10.0 if rule == "lagrangian" else 1.2, log=True),)
    seqs = SEQS[trial.suggest_int("seqs", 0, len(SEQS) - 1)]
    tokens = TOKENS[trial.suggest_int("tokens", 0, len(TOKENS) - 1)]
    order = trial.suggest_categorical("order", ["fcfs", "late_last"])
    return Setting(seqs, max(tokens, seqs) if rule == CHUNKED else tokens, rule, numbers, order)


def by_optuna(machine: Machine, load: Load, seed: int) -> list[float]:
    """Best value so far after each simulation."""
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    )
    study.optimize(lambda trial: try_setting(drawn(trial), machine, load).value(TARGET), n_trials=SHOWN[-1])
    return np.maximum.accumulate([trial.value for trial in study.trials]).tolist()


def by_us(machine: Machine, load: Load, seed: int) -> list[float]:
    """Likewise; it draws nothing."""
    return np.maximum.accumulate(list(search(machine, load, target=TARGET).values.values())).tolist()


def main() -> None:
    """Compare them, a line a search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", metavar="TRACE")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    ways: dict[str, Callable[[Machine, Load, int], list[float]]] = {"ours": by_us, "TPE": by_optuna}
    for name in options.traces:
        first, _ = halves(TraceWorkload(name).trace().requests())
        for cost, ttft_s, tpot_s in PLACES:
            machine = Machine(cost_model(cost), ttft_s, tpot_s, cost_name=cost)
            for times in TIMES:
                load = Load("first", first).at_rate(first.rate_per_s * times)
                for way, run in ways.items():
                    for seed in range(1 if way == "ours" else 2):
                        try:
                            best = run(machine, load, seed)
                        except LLMSchedError as error:
                            print(f"{name} {cost} x{times:g} {way}: {error}")
                            continue
                        shown = "  ".join(f"{best[min(count, len(best)) - 1]:.4f}" for count in SHOWN)
                        print(
                            f"{name} {cost} x{times:g} {way} seed {seed}: {len(best)} simulations, {shown}", flush=True
                        )


if __name__ == "__main__":
    main()
