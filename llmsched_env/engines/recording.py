"""What an engine did, iteration by iteration: a folder with two CSV files and a JSON file, written and read here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.storage import output_folder, user_path, write_whole
from llmsched_env.units import warn_of_milliseconds
from llmsched_env.workload.csv_table import Cell, CsvTable, read_table
from llmsched_env.workload.requests import MAX_TOKENS
from llmsched_env.workload.times import MAX_CLOCK_S

__all__ = [
    "Recording",
    "RecordingWarning",
    "RecordingWriter",
    "Settings",
    "read_recording",
    "write_recording",
]

FORMAT = 1
"""Of a recording; a reader refuses any other."""

ITERATION_COLUMNS = (
    "start_s", "duration_s", "prefill_requests", "prefill_tokens", "decode_requests", "context_tokens",
)  # fmt: skip
REQUEST_COLUMNS = (
    "request", "arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finished_s", "preemptions",
)  # fmt: skip

POLICY_ARGUMENTS = ("ttft_s", "tpot_s", "order", "choose_order", "choose_cap", "lengths")
"""Arguments of a scenario that a policy is shown, and that no setting of the engine says."""

FILES = ("recording.json", "iterations.csv", "requests.csv")
NS_DIGITS = 9
MAX_SIZE = 2**31 - 1
MAX_DURATION_S = 1000
LONG_ITERATION_S = 2
"""The median iteration of the largest models lasts a fifth of a second."""


def _record(names: Sequence[str]) -> np.dtype[np.void]:
    in_ns = [f"{name.removesuffix('_s')}_ns" if name.endswith("_s") else name for name in names]
    return np.dtype((np.record, np.dtype([(name, np.int64) for name in in_ns])))


ITERATION = _record(ITERATION_COLUMNS)
"""``start_ns``, ``duration_ns``, ``prefill_requests``, ``prefill_tokens``, ``decode_requests``, ``context_tokens``."""

REQUEST = _record(REQUEST_COLUMNS[1:])
"""``arrival_ns``, ``prompt_tokens``, ``output_tokens``, ``first_token_ns``, ``finished_ns``, ``preemptions``."""


class RecordingWarning(UserWarning):
    """A recording that can be used, but not as it stands: rows that were dropped, requests that are missing."""


@dataclass(frozen=True)
class Settings:
    """What bounds an engine's iterations.

    Attributes:
        max_num_seqs: most requests that run at once.
        token_budget: most tokens that an iteration computes, prompts and decodes together.
        block_size: tokens of a block of the KV cache; ``None`` where that is not known.
        num_blocks: blocks that requests can have; ``None`` where that is not known, and memory is no limit.
        mixes: whether an iteration may read prompts beside decodes.
        prefix_caching: whether prompts share blocks. Only tokens that were computed are recorded.

    Raises:
        ConfigError: a number below 1, or one that is not whole.
    """

    max_num_seqs: int
    token_budget: int
    block_size: int | None = None
    num_blocks: int | None = None
    mixes: bool = True
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "token_budget", "block_size", "num_blocks"):
            value = getattr(self, name)
            if value is None and name in ("block_size", "num_blocks"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
                raise ConfigError(f"{name} = {value!r} of a recording: give a whole number in [1, {MAX_SIZE}].")
        for name in ("mixes", "prefix_caching"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} = {getattr(self, name)!r} of a recording: give true or false.")


@dataclass(frozen=True, eq=False)
class Recording:
    """What an engine did.

    Attributes:
        iterations: (iterations,) `ITERATION`, in order of time. ``context_tokens`` are those in the KV cache, before
            the iteration, of the requests that decode in it.
        requests: (n,) `REQUEST`: those that finished, in order of arrival.
        names: (n,) what the engine called them.
        settings: what bounded its iterations.
        engine: "vllm", or another engine's name.
        version: of that engine.
        decided_by: who chose the iterations: the engine's own scheduler, or a policy.
        name: what tables call the recording: the folder's name.
        parameters: numbers of the rule that chose; () for its own.
        arguments: of the scenario that it was shown: its SLOs, and what it could choose (`POLICY_ARGUMENTS`).
    """

    iterations: NDArray[np.void]
    requests: NDArray[np.void]
    names: tuple[str, ...]
    settings: Settings
    engine: str
    version: str
    decided_by: str
    name: str = "recording"
    parameters: tuple[Any, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def makespan_s(self) -> float:
        """From the first arrival to the last token, in seconds."""
        return float(self.requests["finished_ns"].max() - self.requests["arrival_ns"].min()) / 1e9

    @property
    def busy_ns(self) -> NDArray[np.int64]:
        """(iterations,) from the start of each iteration to the next one's, where a request waited or ran all the time.

        This is what a request waits for: it includes what the engine does between two iterations. Elsewhere, and for
        the last iteration, the recorded duration.
        """
        starts, durations = self.iterations["start_ns"], self.iterations["duration_ns"].copy()
        ends = starts[:-1] + durations[:-1]
        arrived = np.searchsorted(np.sort(self.requests["arrival_ns"]), ends, side="right")
        finished = np.searchsorted(np.sort(self.requests["finished_ns"]), starts[1:], side="right")
        busy: NDArray[np.int64] = durations
        busy[:-1] = np.where(arrived > finished, np.diff(starts), durations[:-1])
        return busy


def latencies_s(recording: Recording) -> dict[str, float]:
    """Mean and 99th percentile of TTFT and TPOT, and the makespan, in seconds.

    TPOT is (finish - first token) / (output tokens - 1) of requests with at least two tokens; NaN without any.
    """
    rows = recording.requests
    ttft = (rows["first_token_ns"] - rows["arrival_ns"]) / 1e9
    several = rows["output_tokens"] > 1
    decoded = (rows["finished_ns"] - rows["first_token_ns"])[several] / 1e9
    tpot = decoded / (rows["output_tokens"][several] - 1)
    none = float("nan")
    return {
        "makespan_s": recording.makespan_s,
        "ttft_s": float(ttft.mean()),
        "ttft_p99_s": float(np.quantile(ttft, 0.99)),
        "tpot_s": float(tpot.mean()) if len(tpot) else none,
        "tpot_p99_s": float(np.quantile(tpot, 0.99)) if len(tpot) else none,
    }


class RecordingWriter:
    """Writes a recording while the engine runs: each row whole and at once, so that a killed engine keeps what it has.

    Args:
        folder: of the recording; made if need be.
        engine: its name.
        version: its version.
        settings: what bounds its iterations.
        decided_by: who chooses the iterations.
        parameters: numbers of the rule that chooses, as JSON has them.
        arguments: of its scenario, likewise.

    Raises:
        PathError: the folder cannot be written, or holds a recording already.
    """

    def __init__(
        self, folder: Path | str, *, engine: str, version: str, settings: Settings, decided_by: str,
        parameters: Sequence[Any] = (), arguments: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.folder = output_folder(folder)
        for name in FILES:
            if (self.folder / name).exists():
                raise PathError(f"{self.folder} holds a recording already ({name}): give a new folder.")
        about = {"format": FORMAT, "engine": engine, "version": version, "decided_by": decided_by}
        about |= {"parameters": list(parameters)} if parameters else {}
        about |= {"arguments": dict(arguments)} if arguments else {}
        with write_whole(self.folder / FILES[0]) as path:
            path.write_text(json.dumps({**about, "settings": asdict(settings)}, indent=1) + "\n", encoding="utf-8")
        self._files = [self._begun(FILES[1], ITERATION_COLUMNS), self._begun(FILES[2], REQUEST_COLUMNS)]

    def _begun(self, name: str, columns: Sequence[str]) -> Any:
        file = (self.folder / name).open("x", buffering=1, encoding="utf-8", newline="\n")  # a line at a time
        file.write(",".join(columns) + "\n")
        return file

    def iteration(
        self,
        start_ns: int,
        duration_ns: int,
        prefill_requests: int,
        prefill_tokens: int,
        decode_requests: int,
        context_tokens: int,
    ) -> None:
        """An iteration that ran something is over; times from the recording's begin."""
        sizes = f"{prefill_requests},{prefill_tokens},{decode_requests},{context_tokens}"
        self._files[0].write(f"{_seconds(start_ns)},{_seconds(duration_ns)},{sizes}\n")

    def request(
        self,
        name: object,
        arrival_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        first_token_ns: int,
        finished_ns: int,
        preemptions: int = 0,
    ) -> None:
        """A request is over; times from the recording's begin."""
        shown = str(name)
        if any(letter in shown for letter in ',"\r\n'):
            shown = '"' + shown.replace('"', '""').replace("\r", " ").replace("\n", " ") + '"'
        self._files[1].write(
            f"{shown},{_seconds(arrival_ns)},{prompt_tokens},{output_tokens},{_seconds(first_token_ns)},"
            f"{_seconds(finished_ns)},{preemptions}\n"
        )

    def close(self) -> None:
        """Nothing more will come."""
        for file in self._files:
            file.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _seconds(time_ns: int) -> str:
    """Whole nanoseconds as seconds with nine digits, without passing through a float."""
    whole, rest = divmod(int(time_ns), 10**9)
    return f"{whole}.{rest:09d}"


def write_recording(folder: Path | str, recording: Recording) -> None:
    """Write a recording that is complete.

    Raises:
        PathError: the folder cannot be written, or holds a recording already.
    """
    names = ("engine", "version", "settings", "decided_by", "parameters", "arguments")
    told = {name: getattr(recording, name) for name in names}
    with RecordingWriter(folder, **told) as writer:
        for row in recording.iterations.tolist():
            writer.iteration(*row)
        for name, row in zip(recording.names, recording.requests.tolist(), strict=True):
            writer.request(name, *row)


def read_recording(folder: Path | str) -> Recording:
    """Read a recording and check it.

    Raises:
        PathError: no such folder, or a file of it that cannot be read.
        FileFormatError: a file that is no part of a recording: another format, a column that is missing or misspelt, a
            cell that is not what its column asks for, iterations that overlap, a request that ends before it begins.

    Warns:
        RecordingWarning: a last line that was cut off, as by a kill, and is left out; requests that were running then.
        UnitWarning: iterations so long that they may be in milliseconds.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise PathError(f"{folder} is not a folder: give a recording, which is a folder with {', '.join(FILES)}.")
    if not (folder / FILES[0]).exists():
        raise PathError(f"{folder} has no {FILES[0]}, so it is no recording: give a folder with {', '.join(FILES)}.")
    told, settings = _read_about(folder / FILES[0])
    iterations = _read_iterations(_read_whole_lines(folder / FILES[1], ITERATION_COLUMNS), settings.max_num_seqs)
    names, requests = _read_requests(_read_whole_lines(folder / FILES[2], REQUEST_COLUMNS))
    order = sorted(range(len(names)), key=lambda i: (int(requests["arrival_ns"][i]), _number(names[i]), i))
    recording = Recording(
        iterations, requests[order], tuple(names[i] for i in order), settings, **told, name=folder.resolve().name
    )
    _warn_of_missing(folder, recording)
    return recording


def _number(name: str) -> int:
    """Requests that came at once are in the order of their numbers, where they have some."""
    return int(name) if name.isascii() and name.isdigit() else 0


def _read_about(path: Path) -> tuple[dict[str, Any], Settings]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PathError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(path, f"is not JSON ({error}): copy the folder again, or write it anew.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise FileFormatError(path, f"has format {found!r}: this version reads recordings of format {FORMAT}.")
    told: dict[str, Any] = {name: str(about.get(name, "not said")) for name in ("engine", "version", "decided_by")}
    parameters = about.get("parameters", [])
    if not isinstance(parameters, list):
        raise FileFormatError(path, f"has parameters {parameters!r}: give a list of the rule's numbers, as in [14].")
    arguments = about.get("arguments", {})
    if not isinstance(arguments, dict) or not arguments.keys() <= set(POLICY_ARGUMENTS):
        some = ", ".join(POLICY_ARGUMENTS)
        raise FileFormatError(path, f"has arguments {arguments!r}: give an object with some of {some}.")
    told |= {"parameters": tuple(parameters), "arguments": arguments}
    given = about.get("settings")
    if not isinstance(given, dict):
        raise FileFormatError(path, "has no settings: give an object with max_num_seqs and token_budget.")
    known = [one.name for one in fields(Settings)]
    for name in ("max_num_seqs", "token_budget"):
        if name not in given:
            near = [word for word in given if word not in known]
            hint = f" There is {near[0]!r}." if near else ""
            raise FileFormatError(path, f"has no {name} among its settings.{hint} Give a whole number.")
    try:
        return told, Settings(**{name: given[name] for name in known if name in given})
    except ConfigError as error:
        raise FileFormatError(path, str(error)) from None


def _read_whole_lines(path: Path, columns: Sequence[str]) -> CsvTable:
    """The table, without a last line that has no end: its last number may have been cut."""
    table = read_table(path, required=columns)
    if table.text.endswith(("\n", "\r")) or "\n" not in table.text:
        return table
    kept, _, cut = table.text.rpartition("\n")
    warnings.warn(
        f"{path}: the last line, {cut[:60]!r}, has no line break, as where the engine was killed: it is left out. If "
        "it is whole, end it with one.",
        RecordingWarning,
        stacklevel=4,
    )
    return replace(table, text=kept + "\n")


def _cells(table: CsvTable) -> Iterable[tuple[int, Callable[[str], Cell]]]:
    for line, cells in table.rows():

        def cell(column: str, line: int = line, cells: list[str] = cells) -> Cell:
            return Cell(table, line, column, cells[table.index[column]])

        yield line, cell


def _read_iterations(table: CsvTable, seats: int) -> NDArray[np.void]:
    rows, end_ns = [], 0
    for line, cell in _cells(table):
        start_ns = cell("start_s").scaled_number(NS_DIGITS, 0, MAX_CLOCK_S, "seconds from the recording's begin")
        duration_ns = cell("duration_s").scaled_number(NS_DIGITS, 0, MAX_DURATION_S, "the iteration's seconds")
        sizes = tuple(cell(name).whole_number(0, MAX_SIZE) for name in ITERATION_COLUMNS[2:])
        if duration_ns == 0:
            raise cell("duration_s").error("is no time: an iteration takes at least a nanosecond.")
        if start_ns < end_ns:
            raise cell("start_s").error(
                f"{cell('start_s').text.strip()} lies before the end of the iteration before, {_seconds(end_ns)}: "
                "write one row an iteration, in order of time."
            )
        prefills, tokens, decodes, context = sizes
        if (prefills == 0) != (tokens == 0):
            raise cell("prefill_tokens").error(
                f"is {tokens} with prefill_requests = {prefills}: both are 0, or neither is."
            )
        if tokens < prefills or context < decodes or (context > 0) != (decodes > 0):
            column, few, many = (
                ("prefill_tokens", tokens, prefills) if tokens < prefills else ("context_tokens", context, decodes)
            )
            raise cell(column).error(f"is {few} for {many} requests: each has at least one token there.")
        if prefills + decodes == 0:
            raise FileFormatError(table.path, "ran nothing: leave such an iteration out.", line=line)
        if prefills + decodes > seats:
            raise cell("decode_requests").error(
                f"is {decodes} beside {prefills} that are read, and {FILES[0]} says max_num_seqs = {seats}: correct "
                "one of them."
            )
        end_ns = start_ns + duration_ns
        rows.append((start_ns, duration_ns, *sizes))
    iterations = np.array(rows, ITERATION)
    usual_s = float(np.median(iterations["duration_ns"])) / 1e9
    if usual_s > LONG_ITERATION_S:
        seen = f"an iteration takes {usual_s:.4g} s in the median of duration_s"
        warn_of_milliseconds(table.path, "duration_s", seen)
    return iterations


def _read_requests(table: CsvTable) -> tuple[list[str], NDArray[np.void]]:
    names: dict[str, int] = {}
    rows = []
    for line, cell in _cells(table):
        name = cell("request").text.strip()
        if name in names:
            raise cell("request").error(f"{name!r} stands on line {names[name]}, too: write one row a request.")
        names[name] = line
        times = {
            column: cell(column).scaled_number(NS_DIGITS, 0, MAX_CLOCK_S, "seconds from the recording's begin")
            for column in ("arrival_s", "first_token_s", "finished_s")
        }
        for earlier, later in (("arrival_s", "first_token_s"), ("first_token_s", "finished_s")):
            if times[later] < times[earlier]:
                raise cell(later).error(f"{cell(later).text.strip()} lies before {earlier}: times go forward.")
        tokens = tuple(cell(column).whole_number(1, MAX_TOKENS) for column in ("prompt_tokens", "output_tokens"))
        preemptions = cell("preemptions").whole_number(0, MAX_SIZE)
        rows.append((times["arrival_s"], *tokens, times["first_token_s"], times["finished_s"], preemptions))
    return list(names), np.array(rows, REQUEST)


def _warn_of_missing(folder: Path, recording: Recording) -> None:
    """Say where more tokens were emitted than the finished requests have."""
    emitted = int(recording.iterations["decode_requests"].sum())
    known = int((recording.requests["output_tokens"] - 1).sum())
    if emitted > known:
        warnings.warn(
            f"{folder}: {emitted - known} of {emitted} decoded tokens belong to requests that are not in requests.csv "
            "(they had not finished, or were aborted): a replay leaves them out.",
            RecordingWarning,
            stacklevel=3,
        )
