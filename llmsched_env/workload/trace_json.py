"""Readers of traces in JSON: Mooncake's and Qwen-Bailian's records, and results of vLLM's benchmark."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import FileFormatError
from llmsched_env.units import ApproximationWarning
from llmsched_env.workload.csv_table import EXACT
from llmsched_env.workload.headers import means
from llmsched_env.workload.json_text import json_lines, json_number, json_tokens, json_whole, token_list
from llmsched_env.workload.requests import MAX_TOKENS
from llmsched_env.workload.text_file import read_text
from llmsched_env.workload.times import (
    FACTORS,
    MAX_CLOCK_S,
    MOONCAKE_BLOCK_TOKENS,
    QWEN_BLOCK_TOKENS,
    QWEN_KEY,
    TimeUnit,
    check_gaps,
    has_blocks,
    json_unit,
)
from llmsched_env.workload.trace import PrefixBlocks, Trace

__all__ = ["NO_OUTPUT", "RECORD_KEYS", "RESULT_KEYS", "SAME", "read_records", "read_result"]

RECORD_KEYS = ("timestamp", "input_length", "output_length")

SAME: Mapping[str, str] = MappingProxyType(
    dict(zip(RECORD_KEYS, ("arrival_s", "prompt_tokens", "output_tokens"), strict=True))
)
"""Mooncake's key -> this project's name for the same."""

RECORD = '{"timestamp": 27482, "input_length": 6955, "output_length": 52}, one object a line.'

RESULT_KEYS = ("start_times", "input_lens", "output_lens")
QUEUE_KEY = "queue_times"
"""Seconds that each request waited in the client for its turn (``--max-concurrency``), in results of newer versions."""

NO_OUTPUT = (
    "0 output tokens: remove the row, or read the file with skip_failed=True ('trace:FILE?skip_failed=yes'), which "
    "counts such rows."
)

Column = NDArray[np.int64]


def read_records(path: Path, skip_failed: bool, unit: TimeUnit | None) -> Trace:
    """Mooncake's keys, one JSON object a line.

    Raises:
        PathError, FileFormatError: as :func:`~llmsched_env.workload.read_trace`.
    """
    text = read_text(path, "JSONL")
    time_key, prompt_key, output_key = RECORD_KEYS
    least = 0 if skip_failed else 1
    times: list[int | Decimal] = []
    prompts: list[int] = []
    outputs: list[int] = []
    blocks: list[Any] = []
    chats: list[tuple[Any, Any]] = []
    most = MAX_CLOCK_S * 1000
    before: int | Decimal = 0
    qwen, mooncake = False, True
    for line, entry in json_lines(path, text, RECORD):
        try:
            time, prompt, output = entry[time_key], entry[prompt_key], entry[output_key]
        except KeyError as error:
            raise _missing(path, line, str(error.args[0]), entry) from None
        if not (type(time) is int and 0 <= time <= most):
            time = json_number(path, line, time_key, time, 0, most, "milliseconds or seconds from 0 or since 1970")
        if time < before:
            problem = f"{time} is earlier than the row before: sort by time."
            raise FileFormatError(path, problem, line=line, column=time_key)
        before = time
        if not (type(output) is int and least <= output <= MAX_TOKENS):
            output = json_tokens(path, line, output_key, output, 0)
            if output < least:
                raise FileFormatError(path, NO_OUTPUT, line=line, column=output_key)
        if not (type(prompt) is int and 1 <= prompt <= MAX_TOKENS):
            prompt = json_tokens(path, line, prompt_key, prompt, 1 if output else 0)
        if QWEN_KEY in entry:
            qwen = True
            chats.append((entry[QWEN_KEY], entry.get("parent_chat_id", -1)))
        hashes = entry.get("hash_ids")
        mooncake = mooncake and has_blocks(hashes, prompt, MOONCAKE_BLOCK_TOKENS)
        blocks.append(hashes)
        times.append(time)
        prompts.append(prompt)
        outputs.append(output)
    unit_given = unit is not None
    unit = unit or json_unit(path, float(times[-1] - times[0]), len(times), qwen=qwen, mooncake=mooncake)
    if unit == "s" and times[-1] > MAX_CLOCK_S:
        problem = f"{times[-1]} is out of range: write seconds, in [0, {MAX_CLOCK_S}], or say unit='ms'."
        raise FileFormatError(path, problem, column=time_key)
    times_ns = _ns(times, FACTORS[unit])
    if unit == "s" and not unit_given:
        check_gaps(path, times_ns, time_key)
    block_tokens = _block_tokens(blocks, prompts, qwen, mooncake)
    found, doubts = _prefix_blocks(blocks, block_tokens)
    meant = f"timestamps are {'seconds' if unit == 's' else 'milliseconds'}{', as you say' * unit_given}"
    return Trace(
        "qwen" if qwen else "mooncake",
        times_ns,
        np.array(prompts, np.int64),
        np.array(outputs, np.int64),
        notes=(f"{meant}.", *doubts),
        prefix_blocks=found,
        session_ids=_sessions(chats) if len(chats) == len(times) else None,
    )


def _missing(path: Path, line: int, key: str, entry: Mapping[str, Any]) -> FileFormatError:
    keys = ", ".join(map(repr, list(entry)[:10]))
    close = next((other for other in entry if other not in SAME and means(SAME[key], other)), None)
    hint = "" if close is None else f"Did you mean {close!r}? "
    problem = f"is missing: the object has {keys or 'no keys'}. {hint}Write {RECORD}"
    return FileFormatError(path, problem, line=line, column=key)


def _ns(times: list[int | Decimal], factor: int) -> Column:
    """(n,) times in ns, rounded half to even, from times in units of ``factor`` ns."""
    multiply, whole = EXACT.multiply, EXACT.to_integral_value
    exact = (time * factor if type(time) is int else int(whole(multiply(time, factor))) for time in times)
    return np.fromiter(exact, np.int64, len(times))


def _block_tokens(blocks: list[Any], prompts: list[int], qwen: bool, mooncake: bool) -> int | None:
    """Prompt tokens that a block stands for, or ``None`` where counts of blocks do not show it."""
    if mooncake:
        return MOONCAKE_BLOCK_TOKENS
    small = (has_blocks(hashes, prompt, QWEN_BLOCK_TOKENS) for hashes, prompt in zip(blocks, prompts, strict=True))
    return QWEN_BLOCK_TOKENS if qwen or all(small) else None


def _prefix_blocks(blocks: list[Any], tokens: int | None) -> tuple[PrefixBlocks | None, list[str]]:
    """The blocks of all requests, and what is said where they cannot be read: they are no reason to refuse a file."""
    given = [hashes for hashes in blocks if hashes is not None]
    if not given:
        return None, []
    sound = len(given) == len(blocks) and all(isinstance(hashes, list) for hashes in given)
    try:
        ids = np.array([*itertools.chain.from_iterable(given)] if sound else [None])  # integers only where all are
    except ValueError:  # lists among them
        ids = np.array([None])
    if ids.dtype != np.int64 and ids.size:
        return None, ["hash_ids are not a list of whole numbers in every row, and are left out."]
    starts = np.cumsum([0, *map(len, blocks)], dtype=np.int64)
    doubt = [] if tokens else ["how many tokens one of the hash_ids stands for does not follow from their number."]
    return PrefixBlocks(ids.astype(np.int64), starts, tokens), doubt


def _sessions(chats: list[tuple[Any, Any]]) -> Column:
    """(n,) number of the conversation of each request: a chat belongs to that of its parent, where that came before."""
    session: dict[str, int] = {}
    numbers: list[int] = []
    fresh = itertools.count()
    for chat, parent in chats:
        known = session.get(str(parent))
        numbers.append(next(fresh) if known is None else known)
        session[str(chat)] = numbers[-1]
    return np.array(numbers, np.int64)


def read_result(path: Path, skip_failed: bool) -> Trace:
    """A result of ``vllm bench serve --save-result --save-detailed``, or of SGLang's with the same keys.

    ``start_times`` are when requests were sent, in seconds of the client's clock; ``input_lens`` and ``output_lens``
    belong to them. A request arrives when it is sent, less what the client held it back (:data:`QUEUE_KEY`). One that
    failed has 0 output tokens.

    Raises:
        PathError, FileFormatError: as :func:`~llmsched_env.workload.read_trace`.

    Warns:
        ApproximationWarning: the client held requests back, and the file does not say for how long.
    """
    text = read_text(path, "JSON")
    objects = [line for line in text.split("\n") if line.startswith("{")]
    if len(objects) > 1:
        raise FileFormatError(
            path, f"has {len(objects)} results, one a line (--append-result): give a file with one of them.", line=2
        )
    result = json_whole(path, text)
    if not isinstance(result, dict):
        raise FileFormatError(path, "is not one JSON object: give the file that --save-result wrote.")
    time_key, prompt_key, output_key = RESULT_KEYS
    columns: dict[str, list[Any]] = {}
    for key in (*RESULT_KEYS, QUEUE_KEY):
        values = result.get(key)
        if values is None and key in (prompt_key, output_key):
            problem = "is missing: only a result with every request has it. Run the benchmark with --save-detailed."
            raise FileFormatError(path, problem, column=key)
        if values is not None and not (isinstance(values, list) and values):
            raise FileFormatError(path, "is not a list with an entry for each request.", column=key)
        if values is not None:
            columns[key] = values
    count = len(columns[prompt_key])
    for key, values in columns.items():
        if len(values) != count:
            problem = f"has {len(values)} entries but {prompt_key} has {count}: give one for each request."
            raise FileFormatError(path, problem, column=key)
    output = token_list(path, output_key, columns[output_key], 0 if skip_failed else 1)
    prompt = token_list(path, prompt_key, columns[prompt_key], 0)
    for i in np.flatnonzero((prompt == 0) & (output > 0))[:1].tolist():
        json_number(path, None, prompt_key, 0, 1, MAX_TOKENS, "a whole number of tokens", f"entry {i}: ")
    if time_key not in columns:
        note = "the file has no start_times (older benchmarks write none): all requests arrive at 0."
        return Trace("vllm", np.zeros(count, np.int64), prompt, output, has_times=False, notes=(note,))
    times, note = _arrivals(path, columns, result)
    order = np.argsort(times, kind="stable")
    return Trace("vllm", times[order], prompt[order], output[order], notes=(note,))


def _arrivals(path: Path, columns: Mapping[str, list[Any]], result: Mapping[str, Any]) -> tuple[Column, str]:
    """(n,) ns, unsorted, and how they are known. What the file says of its duration must not be shorter."""
    key = RESULT_KEYS[0]
    sent = _ns_list(path, key, columns[key])
    span_s = int(sent.max() - sent.min()) / 1e9
    duration: Any = result.get("duration")
    known = type(duration) in (int, float) and 0 <= duration <= MAX_CLOCK_S
    if known and span_s > 1.5 * duration + 1:
        raise FileFormatError(
            path,
            f"span {span_s:g} s, but the duration of the benchmark is {duration:g} s: write both in seconds "
            f"(milliseconds divided by 1000).",
            column=key,
        )
    most = result.get("max_concurrency")
    if QUEUE_KEY in columns:
        return sent - _ns_list(path, QUEUE_KEY, columns[QUEUE_KEY]), f"arrivals are {key} less {QUEUE_KEY}, in seconds."
    if most is None:
        return sent, f"{key} are seconds."
    note = f"{key} are when requests were sent: max_concurrency = {str(most)[:20]} held some back after they arrived."
    warnings.warn(f"{path}: {note} Run the benchmark without it for arrivals.", ApproximationWarning, stacklevel=2)
    return sent, note


def _ns_list(path: Path, key: str, values: list[Any]) -> Column:
    """(n,) ns from a list of seconds.

    Raises:
        FileFormatError: an entry that is none, by its place in the list, from 0.
    """
    if not set(map(type, values)) <= {int, float} or not all(0 <= value <= MAX_CLOCK_S for value in values):
        for i, value in enumerate(values):
            json_number(path, None, key, value, 0, MAX_CLOCK_S, "seconds of any clock", f"entry {i}: ")
    return np.array([round(value * 10**9) for value in values], np.int64)
