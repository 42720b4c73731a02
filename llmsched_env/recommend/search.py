"""The search: one thing changed at a time, in every family of rules, from what vLLM has where nobody says anything.

A simulation takes some hundredths of a second, and the value of a setting changes slowly along each of its numbers, so
line searches with shrinking steps are enough. Beside optuna's TPE sampler with 400 simulations, 150 to 200 of these
found as much or more wherever nine tenths of the requests can meet the SLOs; in overload up to 0.02 less goodput
(benchmarks/settings_search.py, first half of Azure's traces of 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llmsched_env.errors import LLMSchedError
from llmsched_env.recommend.setting import CHUNKED, RULES, VLLM_DEFAULT, Machine, Setting
from llmsched_env.recommend.trial import Load, try_setting

__all__ = ["MAX_SIMULATIONS", "SEQS", "TOKENS", "Found", "search"]

MAX_SIMULATIONS = 300

SEQS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TOKENS = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)

NUMBERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "min_batch": (COUNTS,),
    "deadline": (COUNTS, (0.1, 0.3, 0.5, 0.7, 0.9)),
    "max_wait": (COUNTS,),
    "tgi": ((0.01, 0.03, 0.1, 0.2, 0.3, 0.6, 1.2),),
    "lagrangian": ((0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),),
}
"""What the numbers of each rule may be; every search begins in the middle."""

STRIDES = (3, 1)
REFINED = 4
"""Families whose best is searched around until nothing is better."""


@dataclass(frozen=True)
class Axis:
    """One thing that can be changed.

    Attributes:
        name: of the field of a setting; ``numbers`` with a place.
        values: in their order where ``ordered``.
        place: among the numbers.
        ordered: whether neighbours are alike.
    """

    name: str
    values: tuple[Any, ...]
    place: int = 0
    ordered: bool = True


@dataclass
class Found:
    """What was tried, by setting: its value, as `llmsched_env.recommend.trial.Outcome.value` has it."""

    values: dict[Setting, float] = field(default_factory=dict)

    def best(self, where: Callable[[Setting], bool] = lambda setting: True) -> Setting | None:
        """The best setting of some kind, the first found of equals; ``None`` where none was tried."""
        chosen = [setting for setting in self.values if where(setting)]
        return max(chosen, key=lambda setting: self.values[setting], default=None)


class _Searcher:
    """One search; see :func:`search`."""

    def __init__(
        self,
        machine: Machine,
        load: Load,
        target: float,
        max_simulations: int,
        own_engine: bool,
        progress: Callable[[float], object],
    ) -> None:
        self.machine, self.load, self.target = machine, load, target
        self.max_simulations, self.progress = max_simulations, progress
        self.found = Found()
        self.error: LLMSchedError | None = None
        self.admissions: tuple[tuple[str, bool], ...] = ()
        if own_engine and machine.kv_tokens is not None:
            swaps = (False, True) if machine.swap_gb_per_s is not None else (False,)
            self.admissions = (("vllm", False), *((name, swap) for name in ("fits", "watermark") for swap in swaps))

    def value(self, setting: Setting) -> float:
        """The setting's value; minus infinity for one that is refused, or where the search is over."""
        known = self.found.values.get(setting)
        if known is not None:
            return known
        if len(self.found.values) >= self.max_simulations:
            return float("-inf")
        try:
            value = try_setting(setting, self.machine, self.load).value(self.target)
        except LLMSchedError as error:
            self.error = self.error or error
            return float("-inf")
        self.found.values[setting] = value
        self.progress(max(self.found.values.values()))
        return value

    def axes(self, rule: str) -> list[Axis]:
        """What can be changed in a family."""
        numbers = [Axis("numbers", values, place) for place, values in enumerate(NUMBERS.get(rule, ()))]
        axes = [Axis("tokens", TOKENS), Axis("max_num_seqs", SEQS), *numbers]
        axes.append(Axis("order", ("late_last", "fcfs"), ordered=False))
        if self.admissions:
            axes.append(Axis("admission", self.admissions, ordered=False))
        return axes

    def line(self, setting: Setting, axis: Axis, stride: int) -> Setting:
        """The best along one axis, by steps of so many values as long as they are better."""
        steps: tuple[int, ...] = (-stride, stride) if axis.ordered else tuple(range(1, len(axis.values)))
        while True:
            here = axis.values.index(_get(setting, axis))
            places = [here + step if axis.ordered else (here + step) % len(axis.values) for step in steps]
            near = [_with(setting, axis, axis.values[place]) for place in places if 0 <= place < len(axis.values)]
            best = max(near, key=self.value, default=setting)
            if not self.value(best) > self.value(setting):
                return setting
            setting = best
            if not axis.ordered:
                return setting

    def sweep(self, setting: Setting, strides: tuple[int, ...]) -> Setting:
        """Each axis once, for each stride."""
        for stride in strides:
            for axis in self.axes(setting.rule):
                setting = self.line(setting, axis, stride)
        return setting

    def run(self) -> Found:
        """Every family once, then the best ones until nothing is better."""
        for order in ("fcfs", "late_last"):
            for tokens in TOKENS[1::2]:
                self.value(replace(VLLM_DEFAULT, tokens=tokens, order=order))
        reached = []
        for rule in RULES:
            middle = tuple(values[len(values) // 2 - 1] for values in NUMBERS.get(rule, ()))
            known = self.found.best(lambda setting, rule=rule: setting.rule == rule)  # type: ignore[misc]
            start = known or self.scan(replace(VLLM_DEFAULT, rule=rule, numbers=middle, order="late_last"))
            reached.append(self.sweep(start, STRIDES if rule == CHUNKED else STRIDES[:1]))
        leaders = sorted(reached, key=self.value, reverse=True)[:REFINED]
        for setting in leaders:
            self.climb(setting)
        return self.found

    def scan(self, setting: Setting) -> Setting:
        """The best over every value of each number of the rule, one after another."""
        for axis in self.axes(setting.rule):
            if axis.name == "numbers":
                setting = max((_with(setting, axis, value) for value in axis.values), key=self.value)
        return setting

    def climb(self, setting: Setting) -> Setting:
        """Sweeps until nothing is better."""
        before: Setting | None = None
        while setting != before:
            before, setting = setting, self.sweep(setting, (2, 1))
        return setting


def search(
    machine: Machine,
    load: Load,
    *,
    target: float,
    max_simulations: int = MAX_SIMULATIONS,
    own_engine: bool = False,
    progress: Callable[[float], object] = lambda best: None,
) -> Found:
    """Settings for a machine under a load, by simulation.

    Args:
        machine: what they are tried on.
        load: the requests.
        target: share of requests that are to meet the SLOs.
        max_simulations: no more are made.
        own_engine: whether the KV cache's admission and swapping are searched, too; vLLM has its own.
        progress: called with the best value so far after every simulation.

    Raises:
        LLMSchedError: the simulator refuses every setting; its reason.
    """
    searcher = _Searcher(machine, load, target, max_simulations, own_engine, progress)
    found = searcher.run()
    if not found.values and searcher.error is not None:
        raise searcher.error
    return found


def _get(setting: Setting, axis: Axis) -> Any:
    if axis.name == "admission":
        return setting.admission, setting.swaps
    return setting.numbers[axis.place] if axis.name == "numbers" else getattr(setting, axis.name)


def _with(setting: Setting, axis: Axis, value: Any) -> Setting:
    """The setting with another value; a token budget of chunked prefill has a token for each sequence."""
    if axis.name == "admission":
        return replace(setting, admission=value[0], swaps=value[1])
    if axis.name == "numbers":
        numbers = (*setting.numbers[: axis.place], value, *setting.numbers[axis.place + 1 :])
        return replace(setting, numbers=numbers)
    changed: Setting = replace(setting, **{axis.name: value})
    if changed.chunked and changed.tokens < changed.max_num_seqs:
        return replace(changed, max_num_seqs=max(seqs for seqs in SEQS if seqs <= changed.tokens))
    return changed
