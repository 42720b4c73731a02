"""Names of columns: what is nearly one that a reader knows, and what other systems call it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["OTHER_NAMES", "guesses", "means", "others", "remedy"]

NEAR_MISS = 0.8
"""Similarity of a column's name to an optional one above which it is taken for a slip of the pen."""

NEAR_MISS_REQUIRED = 0.5

OTHER_NAMES: Mapping[str, re.Pattern[str]] = {
    "arrival_s": re.compile(
        r"t|ts|times?|timestamps?|date|datetime|created|arriv(al|als|ed)|released?|starts?"
        r"|(arriv(al|als|ed)|releas(e|ed)|request|sen[dt]|start|submi(t|tted|ssion)|created?|receiv(e|ed)|enqueued?|issued?)"
        r"(time|times|timestamp|at|ts|date)"
    ),
    "prompt_tokens": re.compile(
        r"(num|n)?(prompt|input|prefill|context|request)s?(token|tokens|len|length|lens|lengths|size)?|isl"
    ),
    "output_tokens": re.compile(
        r"(num|n|expected)?(output|decode|completion|generated|generation|response)s?(token|tokens|len|length|lens|lengths|size)?"
        r"|osl"
    ),
    "predicted_tokens": re.compile(
        r"(num|n)?(predict(ed|ion)|estimat(ed|e)|expected)(output)?s?(token|tokens|len|length|lens|lengths)?"
    ),
    "duration_s": re.compile(r"(iteration|step|batch|execution|forward)?(duration|latency|elapsed|time|seconds)"),
    "active_clients": re.compile(r"(num|n)?(batchsize|seqs|sequences|running|activerequests|runningrequests)"),
    "prefill_tokens": re.compile(r"(num|n)?(prompt|input|prefill)s?(token|tokens|len|length)"),
    "context_tokens": re.compile(r"(num|n)?(kv|cache|kvcache|context)s?(token|tokens|len|length)"),
    "kind": re.compile(r"phase|type|stage|iterationtype"),
}
"""Column -> what Vidur, vLLM, SGLang, Mooncake, Azure and others call such a thing: in small letters and digits alone,
without a unit at the end."""

UNITS = {
    "s": ("seconds", 1),
    "ms": ("milliseconds", 10**3),
    "us": ("microseconds", 10**6),
    "ns": ("nanoseconds", 10**9),
}
UNIT_AT_THE_END = re.compile(
    r"(?<=[a-z0-9])[ _.(\[-]+(s|secs?|seconds?|ms|msecs?|millis(econds?)?|us|usecs?|micros(econds?)?|ns"
    r"|nanos(econds?)?)[)\]]?$"
)


def _unit(name: str) -> tuple[str, str | None]:
    """A name in small letters without the unit at its end, and that unit."""
    small = name.strip().casefold()
    found = UNIT_AT_THE_END.search(small)
    if found is None:
        return small, None
    word = found[1]
    unit = "s" if word.startswith("s") else {"m": "ms", "u": "us", "n": "ns"}[word[0]]
    return small[: found.start()], "us" if word.startswith("micro") else unit


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _unit(name)[0])


def means(known: str, name: str) -> bool:
    """Whether another system's, or another hand's, ``name`` stands for the column ``known``."""
    plain, other = _plain(name), OTHER_NAMES.get(known)
    return plain == _plain(known) or (other is not None and other.fullmatch(plain) is not None)


def guesses(header: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """For columns that a header lacks, what it may have in their place: known name -> name in the header."""
    known = (*required, *optional)
    strange = [name for name in header if name not in known]
    found: dict[str, str] = {}
    missing = [name for name in known if name not in header]
    for name in missing:
        same = next((one for one in strange if means(name, one)), None)
        if same is not None:
            found[name] = same
            strange.remove(same)
    for name in missing:
        cutoff = NEAR_MISS_REQUIRED if name in required else NEAR_MISS
        close = [] if name in found else difflib.get_close_matches(name, strange, n=1, cutoff=cutoff)
        if close:
            found[name] = close[0]
            strange.remove(close[0])
    return found


def remedy(known: str, name: str) -> str:
    """What to do with the column ``name`` that should be ``known``: rename it, or change its unit as well."""
    wanted, given = _unit(known)[1], _unit(name)[1]
    if wanted is not None and given is not None and given != wanted:
        meaning, per_second = UNITS[given]
        return f"It is in {meaning} by its name: divide by {per_second} and call it {known!r}."
    return f"Rename it to {known!r}, in {UNITS[wanted][0]}." if wanted is not None else "Rename it."


def others(found: Mapping[str, str], told: str) -> str:
    """The further columns that are to be renamed, in a sentence."""
    rest: Iterable[str] = (f"{name!r} to {known!r}" for known, name in found.items() if known != told)
    listed = ", ".join(rest)
    return f" Likewise {listed}." if listed else ""
