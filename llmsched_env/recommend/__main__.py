"""``llmsched recommend``: from a trace, a machine and SLOs to a setting of the server.

Settings are searched on the first half of the trace by simulation, and confirmed on the second.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace

from llmsched_env.cost import FIT, MIXED_COSTS, PRESETS, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.drawing import check_drawing
from llmsched_env.flags import flags_of, path_option, run_command, warnings_in_flags
from llmsched_env.progress import Progress
from llmsched_env.recommend.answer import Recommendation, recommend
from llmsched_env.recommend.page import page
from llmsched_env.recommend.pictures import draw
from llmsched_env.recommend.search import MAX_SIMULATIONS
from llmsched_env.recommend.setting import Machine
from llmsched_env.storage import output_file, output_folder, write_whole
from llmsched_env.units import ApproximationWarning, UnitWarning
from llmsched_env.workload import PoissonArrivals, workload
from llmsched_env.workload.requests import Requests
from llmsched_env.workload.traces import TraceWorkload

COMMAND = "python -m llmsched_env.recommend"

UNITS_S = {"ms": 1e-3, "s": 1.0, "min": 60.0}
TIME = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[a-z]*)", re.IGNORECASE)

CONFIRMING = 100
"""Simulations of the second half, about: for the bar."""


def seconds(text: str) -> float:
    """``50ms``, ``1s``, ``1.5 s`` in seconds; a number alone is refused, since half of the world's are in ms.

    Raises:
        argparse.ArgumentTypeError: no time above 0 with a unit.
    """
    match = TIME.fullmatch(text.strip())
    if match is None or (match["unit"] and match["unit"].lower() not in UNITS_S):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write it with its unit, as 50ms or 1.5s.")
    if not match["unit"]:
        raise argparse.ArgumentTypeError(f"{text!r} has no unit: write {text}ms or {text}s.")
    value = float(match["number"]) * UNITS_S[match["unit"].lower()]
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a time above 0.")
    return value


def _rate(text: str) -> float | None:
    if text == "recorded":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: give requests per second, as 5.5, or 'recorded'.")
    return value


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share of the requests, as 0.99 or 99%.")
    return value


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command,
        description=__doc__,
        epilog="exit status: 0; 2 for unusable input, and where no setting holds the SLOs at the rate",
    )
    option = parser.add_argument
    option("--trace", required=True, metavar="FILE", help="recorded requests (docs/workloads.md lists the formats)")
    option("--cost", required=True, metavar="MODEL", help=f"what iterations last: {', '.join(PRESETS)}; or {FIT}FILE")
    option("--ttft", required=True, type=seconds, metavar="TIME", help="SLO on the time to first token, as 1s or 800ms")
    option("--tpot", required=True, type=seconds, metavar="TIME", help="SLO on the time per output token, as 50ms")
    option("--rate", type=_rate, default=None, metavar="R", help="requests per second (default: recorded)")
    option("--target", type=_share, default=0.99, metavar="SHARE", help="of requests that meet both (default: 0.99)")
    option(
        "--mixed-cost",
        metavar="KIND",
        choices=MIXED_COSTS,
        help="what chunked iterations last (default: fitted where fit:FILE has it, else sum)",
    )
    option("--kv-tokens", type=int, metavar="N", help="what the KV cache holds, as vLLM's log says at its start")
    option("--kv-gb", type=float, metavar="GB", help="the same in 10^9 bytes, with --kv-bytes-per-token")
    option("--kv-bytes-per-token", type=int, metavar="B", help="2 * layers * KV heads * head size * bytes of a number")
    option(
        "--prefix-caching", action="store_true", help="vLLM's automatic prefix caching, where the trace has hash_ids"
    )
    option("--swap-gb-per-s", type=float, metavar="X", help="bandwidth of swapping, in 10^9 bytes a second")
    option(
        "--own-engine",
        action="store_true",
        help="also search admission to the KV cache and swapping, where vLLM has its own",
    )
    option(
        "--max-simulations",
        type=int,
        default=MAX_SIMULATIONS,
        metavar="N",
        help="the search makes no more (default: %(default)s)",
    )
    option("--json", type=path_option, metavar="PATH", help="write all figures there")
    option(
        "--out",
        type=path_option,
        metavar="DIR",
        help="write recommendation.md, recommendation.json and three pictures there",
    )
    return parser


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the command; 2 for unusable input and where nothing can be recommended."""
    parser = _parser(command)
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    flags = {**flags_of(parser), "ttft_s": "--ttft", "tpot_s": "--tpot", "kv_budget_tokens": "--kv-tokens"}
    with warnings_in_flags(flags):
        for kind in (ApproximationWarning, UnitWarning):
            warnings.simplefilter("always", kind)
        return run_command(flags, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if not 30 <= options.max_simulations <= 100_000:
        raise ConfigError(f"--max-simulations {options.max_simulations}: give 30 to 100000 simulations.")
    kv_tokens = _kv_tokens(options)
    _check_files(options)
    model = cost_model(options.cost)
    given, about = _requests(options.trace, options.rate)
    if options.prefix_caching and given.prefix_blocks is None:
        raise ConfigError(
            f"--prefix-caching: {options.trace} does not say which prompts begin alike. Give a trace with hash_ids "
            "(Mooncake, Qwen-Bailian), or leave it out."
        )
    machine = Machine(
        model, options.ttft, options.tpot,
        kv_tokens=kv_tokens, swap_gb_per_s=options.swap_gb_per_s, kv_bytes_per_token=options.kv_bytes_per_token,
        prefix_caching=options.prefix_caching,
        longest_prompt_tokens=int(given.prompt_tokens.max()), cost_name=options.cost,
    )  # fmt: skip
    machine = machine.mixing(options.mixed_cost)
    with Progress(total=options.max_simulations + CONFIRMING, desc="settings", unit="simulation") as bar:

        def progress(stage: str, done: int) -> None:
            bar.set_description(f"{stage}: ", refresh=False)
            bar.update(done)

        answer = recommend(
            given, machine, rate_per_s=options.rate, target=options.target, max_simulations=options.max_simulations,
            own_engine=options.own_engine, progress=progress,
        )  # fmt: skip
    text = page(answer, about)
    print(text)
    _write(answer, text, options)
    if not answer.holds:
        print(
            f"error: {answer.rate_per_s:.3g} requests/s are too many for this machine and these SLOs.", file=sys.stderr
        )
    return 0 if answer.holds else 2


def _kv_tokens(options: argparse.Namespace) -> int | None:
    """The budget that the options say.

    Raises:
        ConfigError: they contradict each other.
    """
    if options.kv_tokens is not None and options.kv_gb is not None:
        raise ConfigError("--kv-tokens with --kv-gb: both say how large the KV cache is. Give one.")
    if options.kv_gb is not None and options.kv_bytes_per_token is None:
        raise ConfigError(
            "--kv-gb without --kv-bytes-per-token: how many tokens that is depends on the model. Give both, or "
            "--kv-tokens."
        )
    limited = options.kv_tokens is not None or options.kv_gb is not None
    for name in ("own_engine", "swap_gb_per_s", "prefix_caching"):
        if getattr(options, name) and not limited:
            raise ConfigError(f"--{name.replace('_', '-')} without a KV budget: give --kv-tokens or --kv-gb.")
    if options.swap_gb_per_s is not None and not options.own_engine:
        raise ConfigError("--swap-gb-per-s without --own-engine: vLLM's V1 scheduler computes again and swaps nothing.")
    if options.swap_gb_per_s is not None and options.kv_bytes_per_token is None:
        raise ConfigError("--swap-gb-per-s without --kv-bytes-per-token: give what a token takes.")
    if options.kv_gb is None:
        if options.kv_tokens is not None and options.kv_tokens < 1:
            raise ConfigError(f"--kv-tokens {options.kv_tokens}: give a number of tokens above 0.")
        return options.kv_tokens  # type: ignore[no-any-return]
    if options.kv_bytes_per_token < 1 or not options.kv_gb > 0:
        raise ConfigError(
            f"--kv-gb {options.kv_gb:g} --kv-bytes-per-token {options.kv_bytes_per_token}: give numbers above 0."
        )
    tokens = int(options.kv_gb * 1e9 / options.kv_bytes_per_token)
    if tokens < 1:
        raise ConfigError(f"--kv-gb {options.kv_gb:g} holds no token of {options.kv_bytes_per_token:,} bytes.")
    return tokens


def _check_files(options: argparse.Namespace) -> None:
    """Complain now, before the work, of what could not be written after it."""
    if options.out is not None:
        check_drawing()
        output_folder(options.out)
    if options.json is not None:
        output_file(options.json)


def _requests(named: str, rate_per_s: float | None) -> tuple[Requests, str]:
    """All requests of a trace, and what is to be said of them.

    Raises:
        ConfigError: no trace, or one without times where no rate is given.
    """
    source = workload(named)
    if not isinstance(source, TraceWorkload):
        source = workload(f"trace:{named}")
    if not isinstance(source, TraceWorkload):
        raise ConfigError(f"--trace {named}: give a recorded trace.")
    trace = source.trace()
    given = trace.requests()
    lengths = (
        f"prompts of {given.prompt_tokens.mean():,.0f} tokens in the mean, outputs of {given.output_tokens.mean():,.0f}"
    )
    about = f"{len(given):,} requests of {source.path.name} (format {trace.format})"
    if trace.has_times:
        span_s = int(given.release_ns[-1]) / 1e9
        rate = f" in {span_s:,.0f} s, {given.rate_per_s:.3g} requests/s as recorded" if span_s else ""
        about += f"{rate}; {lengths}."
    else:
        if rate_per_s is None:
            raise ConfigError(
                f"{source.path} has no arrival times: give --rate, at which requests then come at random."
            )
        given = replace(given, release_ns=PoissonArrivals().release_ns("test", 0, len(given)))
        about += f", which has no arrival times: they come at random (Poisson); {lengths}."
    return given, " ".join([about, *(_sentence(note) for note in trace.notes)])


def _sentence(note: str) -> str:
    """A note on a trace between sentences; where it has no times, arrivals are drawn."""
    note = note.replace(": all requests arrive at 0", "")
    return note if "_" in note.split()[0] else note[0].upper() + note[1:]


def _write(answer: Recommendation, text: str, options: argparse.Namespace) -> None:
    figures = json.dumps(answer.as_json(), indent=1) + "\n"
    written = []
    if options.json is not None:
        with write_whole(options.json) as path:
            path.write_text(figures, encoding="utf-8")
        written.append(options.json)
    if options.out is not None:
        for name, content in (("recommendation.json", figures), ("recommendation.md", text + "\n")):
            with write_whole(options.out / name) as path:
                path.write_text(content, encoding="utf-8")
            written.append(options.out / name)
        written += draw(answer, options.out)
    if written:
        print(f"\nWritten: {', '.join(map(str, written))}")


if __name__ == "__main__":
    raise SystemExit(main())
