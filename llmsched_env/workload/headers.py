"""Names of columns: what is nearly one that a reader knows, and what other systems call it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

__all__ = ["OTHER_NAMES", "Values", "guesses", "means", "named_like_a_time", "others", "remedy", "values"]

NEAR_MISS = 0.8
"""Similarity of a column's name to an optional one above which it is taken for a typo."""

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

TIME_WORD = re.compile(r"arriv\w*|timestamps?|times?|date|datetime|submi\w*|releas\w*|offsets?|start\w*|elapsed")
OTHER_TIME_WORD = re.compile(
    r"end(ed)?|finish\w*|complet\w*|done|stop\w*|first|last|per|to|total|tokens?|latency|duration|queue\w*|wait\w*"
    r"|responses?|service|process\w*|inference|execution|run|prefill|decod\w*|generat\w*|e2e|ttft|tpot|think|zone|limit"
)
"""Words of a name that make it another time than that of the arrival."""

GAP_WORD = re.compile(r"inter\w*|deltas?|gaps?")
"""Words of a name that make it the time since the request before."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("TIMESTAMP", "Timestamp", "arrived_at", "timestamp"), "arrival_s"),
    **dict.fromkeys(("ContextTokens", "Request tokens", "num_prefill_tokens", "input_tokens"), "prompt_tokens"),
    **dict.fromkeys(("GeneratedTokens", "Response tokens", "num_decode_tokens"), "output_tokens"),
}
"""Column of a published trace -> the one of ours that holds the same."""

IN_SECONDS = ("arrival_s", "Timestamp", "arrived_at", "timestamp")
"""Columns of times that are read as seconds, whether or not their name says so."""

Values = Literal["numbers", "dates", "text"]
MONTH = "(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
DATE = re.compile(rf"\d[-/:]\d|\d\.\d+\.\d|\d.*{MONTH}|{MONTH}.*\d", re.IGNORECASE)
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

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
    small = CAMEL.sub("_", name.strip()).casefold()
    match = UNIT_AT_THE_END.search(small)
    if match is None:
        return small, None
    word = match[1]
    unit = "s" if word.startswith("s") else {"m": "ms", "u": "us", "n": "ns"}[word[0]]
    return small[: match.start()], "us" if word.startswith("micro") else unit


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _unit(name)[0])


def means(known: str, name: str) -> bool:
    """Whether ``name``, of another system or in another spelling, stands for the column ``known``."""
    plain, other = _plain(name), OTHER_NAMES.get(ROLES.get(known, known))
    return plain == _plain(known) or (other is not None and other.fullmatch(plain) is not None)


def _means_another(known: str, name: str) -> bool:
    """Whether ``name`` stands for something else than ``known``, however alike they are spelt."""
    role = ROLES.get(known, known)
    return any(means(other, name) for other in ("prompt_tokens", "output_tokens") if other != role)


def named_like_a_time(name: str) -> bool:
    """Whether a word of the name, in camelCase or between other characters, says that it may be a time of arrival."""
    words = re.findall(r"[a-z0-9]+", _unit(name)[0])
    times = any(TIME_WORD.fullmatch(word) or GAP_WORD.fullmatch(word) for word in words)
    return times and not any(map(OTHER_TIME_WORD.fullmatch, words))


def values(cell: str) -> Values:
    """What a column holds, by one of its cells."""
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return "dates" if DATE.search(cell) else "text"
    return "numbers"


def guesses(
    header: Sequence[str], required: Sequence[str], optional: Sequence[str], text: Collection[str] = ()
) -> dict[str, str]:
    """For columns that a header lacks, what it may have in their place: known name -> name in the header.

    Args:
        header: names of the columns.
        required: names of the known columns that must be there.
        optional: names of those that may be.
        text: columns that hold neither numbers nor dates: no time, whatever a word of their name says.
    """
    known = (*required, *optional)
    strange = [name for name in header if name not in known]
    guessed: dict[str, str] = {}
    missing = [name for name in known if name not in header]
    for name in missing:
        same = next((one for one in strange if means(name, one)), None)
        if same is not None:
            guessed[name] = same
            strange.remove(same)
    for name in missing:
        cutoff = NEAR_MISS_REQUIRED if name in required else NEAR_MISS
        alike = [one for one in strange if not _means_another(name, one)]
        close = [] if name in guessed else difflib.get_close_matches(name, alike, n=1, cutoff=cutoff)
        if close:
            guessed[name] = close[0]
            strange.remove(close[0])
    for name in (name for name in missing if name in IN_SECONDS and name not in guessed):
        times = [one for one in strange if one not in text and named_like_a_time(one)]
        if times:
            guessed[name] = times[0]
    return guessed


def _change(known: str, name: str, called: str, dates: Collection[str]) -> str:
    """What to do with the column ``name``, called so in the sentence, that should be ``known``."""
    wanted, given = "s" if known in IN_SECONDS else _unit(known)[1], _unit(name)[1]
    if wanted is not None and any(map(GAP_WORD.fullmatch, re.findall(r"[a-z0-9]+", _unit(name)[0]))):
        return f"add {called} up, in seconds, and call that {known!r} (pandas: table[{name!r}].cumsum())"
    if name in dates:
        return (
            f"write {called} in seconds, as dates are not read, and call that {known!r} (pandas: "
            f"t = pandas.to_datetime(table[{name!r}]); table[{known!r}] = (t - t.min()).dt.total_seconds())"
        )
    if wanted is None or given == wanted:
        return f"rename {called} to {known!r}"
    if given is None:
        meaning = UNITS[wanted][0]
        return f"rename {called} to {known!r} if it is in {meaning}, else convert it to {meaning} first"
    meaning, per_second = UNITS[given]
    return f"divide {called}, in {meaning} by its name, by {per_second} and call that {known!r}"


def remedy(known: str, name: str, dates: Collection[str] = ()) -> str:
    """What to do with the column ``name`` that should be ``known``: rename it, or change its unit as well."""
    text = _change(known, name, "it", dates)
    return f"{text[0].upper()}{text[1:]}."


def others(guessed: Mapping[str, str], shown: str, dates: Collection[str] = ()) -> str:
    """The further columns that are to be changed, in a sentence."""
    parts = [_change(known, name, repr(name), dates) for known, name in guessed.items() if known != shown]
    return f" Likewise {'; '.join(parts)}." if parts else ""
