"""Readers of data sets that have texts instead of token counts: vLLM's custom JSONL and ShareGPT."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError, FileFormatError, MissingExtraError
from llmsched_env.units import ApproximationWarning
from llmsched_env.workload.json_text import json_lines, json_tokens, json_whole
from llmsched_env.workload.requests import MAX_TOKENS
from llmsched_env.workload.text_file import read_text
from llmsched_env.workload.trace import Trace

__all__ = ["CUSTOM_KEYS", "SHAREGPT_KEYS", "count_tokens", "read_custom", "read_sharegpt"]

CUSTOM_KEYS = ("prompt", "output_tokens")
SHAREGPT_KEYS = ("conversations",)

CUSTOM = '{"prompt": "What is the capital of India?", "output_tokens": 10}, one object a line.'
SHAREGPT = '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}.'

BYTES_PER_TOKEN = 4
"""UTF-8 bytes that are taken for a token where no tokenizer is named: about right for English prose, and within a
factor of two for most scripts and for code."""

BATCH = 1024
NO_TIMES = "the file has no times: all requests arrive at 0."

Column = NDArray[np.int64]


def count_tokens(path: Path, texts: Sequence[str], tokenizer: str | None) -> tuple[Column, str]:
    """(n,) tokens of texts, 0 for an empty one, and a sentence that says how they were counted.

    Args:
        path: the file, for messages.
        texts: n of them.
        tokenizer: a ``tokenizer.json`` file (library tokenizers), or the name or folder of a model on this machine
            (library transformers; nothing is fetched). ``None``: UTF-8 bytes over 4, rounded up.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: no such tokenizer on this machine.

    Warns:
        ApproximationWarning: without a tokenizer.
    """
    if tokenizer is None:
        counts = np.array([-(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN) for text in texts], np.int64)
        note = f"tokens are estimated as UTF-8 bytes / {BYTES_PER_TOKEN}, which can be wrong by a factor of two."
        said = f"{path}: {note} Name your model's tokenizer for counts: '?tokenizer=NAME'."
        warnings.warn(said, ApproximationWarning, stacklevel=2)
        return counts, note
    is_file = tokenizer.endswith(".json")
    library = "tokenizers" if is_file else "transformers"
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise MissingExtraError(
            f"tokenizer = {tokenizer!r} needs {library}, which is not installed: pip install {library}, or leave the "
            f"tokenizer out, and tokens are estimated from the length of the text."
        ) from error
    counts_of: list[int] = []
    batches = [list(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    try:
        if is_file:
            encode = module.Tokenizer.from_file(tokenizer).encode_batch
            counts_of = [len(found.ids) for part in batches for found in encode(part)]
        else:
            call = module.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            counts_of = [len(ids) for part in batches for ids in call(part)["input_ids"]]
    except Exception as error:  # every library has its own
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(
            f"tokenizer = {tokenizer!r} cannot be used ({reason}): give the path of a tokenizer.json, or the name or "
            f"folder of a model that is on this machine."
        ) from error
    counts = np.array([count if text else 0 for count, text in zip(counts_of, texts, strict=True)], np.int64)
    return counts, f"tokens are counted by the tokenizer {tokenizer!r}, without a chat template."


def _text(path: Path, line: int | None, key: str, value: Any, example: str) -> str:
    if not isinstance(value, str):
        shown = type(value).__name__
        raise FileFormatError(path, f"is not a text but a {shown}: write {example}", line=line, column=key)
    return value


def _check_lengths(path: Path, key: str, counts: Column) -> None:
    if counts.size and counts.max() > MAX_TOKENS:
        problem = f"text {int(counts.argmax())} has {counts.max()} tokens: at most {MAX_TOKENS} can be read."
        raise FileFormatError(path, problem, column=key)


def read_custom(path: Path, skip_failed: bool, tokenizer: str | None) -> Trace:
    """vLLM's custom data set (``--dataset-name custom``), one JSON object a line.

    Raises:
        PathError, FileFormatError, ConfigError, MissingExtraError: as :func:`~llmsched_env.workload.read_trace`.
    """
    text_key, output_key = CUSTOM_KEYS
    texts: list[str] = []
    outputs: list[int] = []
    for line, entry in json_lines(path, read_text(path, "JSONL"), CUSTOM):
        for key in CUSTOM_KEYS:
            if key not in entry:
                keys = ", ".join(map(repr, list(entry)[:10])) or "no keys"
                more = " vLLM takes it from --custom-output-len there." if key == output_key else ""
                raise FileFormatError(
                    path, f"is missing: the object has {keys}.{more} Write {CUSTOM}", line=line, column=key
                )
        texts.append(_text(path, line, text_key, entry[text_key], CUSTOM))
        if not texts[-1]:
            raise FileFormatError(path, f"is empty: write {CUSTOM}", line=line, column=text_key)
        outputs.append(json_tokens(path, line, output_key, entry[output_key], 0 if skip_failed else 1))
    counts, note = count_tokens(path, texts, tokenizer)
    _check_lengths(path, text_key, counts)
    return Trace(
        "vllm-custom",
        np.zeros(len(texts), np.int64),
        np.maximum(counts, 1),
        np.array(outputs, np.int64),
        has_times=False,
        notes=(note, NO_TIMES),
    )


def read_sharegpt(path: Path, tokenizer: str | None) -> Trace:
    """ShareGPT: the first prompt and answer of each conversation, as vLLM's benchmark takes them.

    A conversation without both, or with an empty one, comes with 0 output tokens.

    Raises:
        PathError, FileFormatError, ConfigError, MissingExtraError: as :func:`~llmsched_env.workload.read_trace`.
    """
    pairs = [(turns[0], turns[1]) if len(turns) > 1 else ("", "") for turns in _conversations(path)]
    counts, note = count_tokens(path, [text for pair in pairs for text in pair], tokenizer)
    _check_lengths(path, SHAREGPT_KEYS[0], counts)
    prompt, output = counts[0::2], counts[1::2]
    return Trace(
        "sharegpt",
        np.zeros(len(pairs), np.int64),
        prompt,
        np.where(prompt > 0, output, 0),
        has_times=False,
        notes=(note, "of each conversation the first prompt and answer are taken, as vLLM's benchmark does.", NO_TIMES),
    )


def _conversations(path: Path) -> Iterator[list[str]]:
    """The texts of the first two turns of each conversation, from one array or from one object a line."""
    text = read_text(path, "JSON")
    key = SHAREGPT_KEYS[0]
    entries: Iterator[tuple[int | None, Any]]
    if text.lstrip().startswith("{"):
        entries = iter(json_lines(path, text, SHAREGPT))
    else:
        whole = json_whole(path, text)
        if not isinstance(whole, list) or not whole:
            raise FileFormatError(path, f"has no conversations: write a list of {SHAREGPT}")
        entries = iter([(None, entry) for entry in whole])
    for i, (line, entry) in enumerate(entries):
        turns = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns[:2]):
            raise FileFormatError(
                path, f"conversation {i} has no list of turns: write {SHAREGPT}", line=line, column=key
            )
        yield [_text(path, line, "value", turn.get("value"), SHAREGPT) for turn in turns[:2]]
