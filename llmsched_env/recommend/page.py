"""The answer in words: what is printed, and what is written as a page."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched_env.evaluation import Estimate
from llmsched_env.evaluation.tables import grid
from llmsched_env.recommend.answer import Candidate, Capacity, Recommendation
from llmsched_env.recommend.setting import VLLM_DEFAULT

__all__ = ["finding", "page"]

HEADER = ("", "setting", "goodput, %", "TTFT p50 / p99, s", "TPOT p50 / p99, ms", "holds up to, requests/s")

GLOSSARY = (
    "N x B: at most N sequences, B tokens an iteration. Goodput: share of requests that meet both SLOs. TTFT: time to "
    "first token. TPOT: time per output token after the first. Brackets: 95 % intervals over 20 stretches of "
    "consecutive requests. 'Holds up to': the rate at which goodput falls below the target; the trace is stretched in "
    "time. 'Indistinguishable': the interval of the paired difference holds 0."
)


def finding(answer: Recommendation) -> str:
    """The answer in one sentence."""
    chosen, goodput = answer.chosen, answer.chosen.outcome.goodput.mean
    asked = f"{answer.rate_per_s:.3g} requests/s"
    if not answer.holds:
        if chosen.capacity.mean <= 0:
            return "The machine is too small: no setting found holds the SLOs at any rate."
        return (
            f"The machine is too small for {asked}: the best setting found meets the SLOs for {goodput:.1%} of the "
            f"requests, and {_percent(answer.target)} of them up to {_rate(chosen.capacity)} requests/s. It needs "
            f"about {answer.machines()} such machines."
        )
    if chosen.setting == VLLM_DEFAULT:
        return (
            f"Leave vLLM as it is: {goodput:.2%} of the requests meet the SLOs at {asked}, up to "
            f"{_rate(chosen.capacity)} requests/s, and no other setting is surely better."
        )
    return (
        f"{chosen.setting.words()[0].upper()}{chosen.setting.words()[1:]}: {goodput:.2%} of the requests meet the SLOs "
        f"at {asked}, up to {_rate(chosen.capacity)} requests/s."
    )


def page(answer: Recommendation, about: str) -> str:
    """The answer in Markdown, which reads as well in a terminal.

    Args:
        answer: the recommendation.
        about: one sentence on the trace.
    """
    machine = answer.machine
    memory = "no memory limit" if machine.kv_tokens is None else f"{machine.kv_tokens:,} tokens of KV cache"
    where = f"at {answer.rate_per_s:.3g} requests/s"
    if answer.searched_at_per_s != answer.rate_per_s:
        where = f"at {answer.searched_at_per_s:.3g} requests/s, about what the machine holds"
    lines = [
        f"# {finding(answer)}",
        "",
        about,
        f"Cost model {machine.cost_name}, {memory}. SLOs: TTFT {_time(machine.ttft_s)}, TPOT {_time(machine.tpot_s)}, "
        f"to be met by {_percent(answer.target)} of the requests.",
        f"{len(answer.found.values)} settings were tried on the first {answer.searched:,} requests {where}. The "
        f"figures are of the other {answer.confirmed:,}, which the search did not see.",
        "",
        *_how(answer),
        *_notes(answer),
        grid(HEADER, [_row(one, recommended=one is answer.chosen) for one in (answer.chosen, *answer.others)]),
        "",
        *(_difference(answer, one) for one in answer.others),
        "",
        GLOSSARY,
    ]
    return "\n".join(lines)


def _how(answer: Recommendation) -> Sequence[str]:
    chosen = answer.chosen.setting
    if not chosen.runs_in_vllm:
        return ("vLLM has no such admission: this is for an engine of your own.", "")
    said = [] if answer.holds else ["The best setting found:", ""]
    indented = chosen.vllm_command(answer.machine).replace("\n", "\n    ")
    said += [f"    {indented}", ""]
    if chosen.needs_scheduler and any(not one.setting.needs_scheduler for one in answer.others):
        said += ["The scheduler class comes with this package, which the server then needs (docs/engines.md).", ""]
    return said


def _notes(answer: Recommendation) -> Sequence[str]:
    """What limits the answer."""
    outcome, notes = answer.chosen.outcome, []
    if outcome.provable < answer.target:
        notes.append(
            f"Few requests: if all {len(outcome.met):,} that count met the SLOs, only {outcome.provable:.1%} would be "
            f"sure (95 %), not {_percent(answer.target)}. A longer trace says more."
        )
    if outcome.outside is not None:
        notes.append(f"{outcome.outside[0].upper()}{outcome.outside[1:]}")
    return [*notes, ""] if notes else []


def _row(one: Candidate, *, recommended: bool) -> list[str]:
    outcome = one.outcome
    role = "**recommended**" if recommended else one.role
    if recommended and one.setting == VLLM_DEFAULT:
        role = "**recommended**: vLLM as it is"

    def pair(name: str, scale: float) -> str:
        return " / ".join(f"{outcome.quantile(name, share).mean * scale:.3g}" for share in (0.5, 0.99))

    return [
        role,
        one.setting.short(),
        _interval(outcome.goodput, 100),
        pair("ttft_s", 1),
        pair("tpot_s", 1e3),
        _rate(one.capacity),
    ]


def _difference(answer: Recommendation, one: Candidate) -> str:
    """Whether the difference to another setting is real."""
    chosen = answer.chosen
    less = chosen.outcome.better_than(one.outcome)
    points = f"{100 * less.mean:+.2f} points of goodput [{100 * less.low:+.2f}, {100 * less.high:+.2f}]"
    if less.low > 0 or less.high < 0:
        sure = "a real difference"
    elif chosen.capacity.low > one.capacity.high or chosen.capacity.high < one.capacity.low:
        sure = "indistinguishable at this rate; the difference in the rate that is held is real"
    else:
        sure = "indistinguishable"
    return f"- Recommended less '{one.role}': {points}, {sure}."


def _rate(capacity: Capacity) -> str:
    """With its interval; too few requests have no lower end."""
    if capacity.low <= 0:
        return f"{capacity.mean:.3g} (at most {capacity.high:.3g})"
    return f"{capacity.mean:.3g} ({capacity.low:.3g} to {capacity.high:.3g})"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _interval(estimate: Estimate, scale: float) -> str:
    return f"{estimate.mean * scale:.2f} [{estimate.low * scale:.2f}, {estimate.high * scale:.2f}]"


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"
