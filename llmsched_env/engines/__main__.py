"""``llmsched engines``: record a real engine, fit a cost model to it, and compare it with the simulator.

A recording is a folder with iterations.csv, requests.csv and recording.json. A server of your own writes one with
'vllm serve MODEL --scheduler-cls llmsched_env.engines.vllm_recorder.RecordingAsyncScheduler --additional-config
{"llmsched_recording": "FOLDER"}'; see docs/calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields

from llmsched_env.config import read_arguments
from llmsched_env.cost import FIT, FIT_FILE, CostModel, MeasuredCost, cost_model, mixed_cost
from llmsched_env.engines.comparing import SHOWN, compare_recordings, draw_fit, write_comparison
from llmsched_env.engines.fitting import fit_recording, pooled
from llmsched_env.engines.options import EngineFacts, EngineOptions
from llmsched_env.engines.recording import Recording, RecordingWarning, latencies_s, read_recording, write_recording
from llmsched_env.engines.replay import ENGINES_OWN, replay
from llmsched_env.engines.trial import TrialEngine, drawn_load
from llmsched_env.errors import ConfigError, MissingExtraError, PathError
from llmsched_env.evaluation import CoverageWarning
from llmsched_env.flags import flags_of, path_option, run_command, warnings_in_flags
from llmsched_env.storage import output_file, write_whole
from llmsched_env.units import UnitWarning

COMMAND = "python -m llmsched_env.engines"
LONGEST = 600
"""Prompt tokens of a trial's requests, where the budget allows."""


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command, description=__doc__, epilog="exit status: 0; 1 where --within is not met; 2 for unusable input"
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> Callable[..., object]:
        return commands.add_parser(name, help=text, description=text).add_argument

    option = add("record", "serve a small load on a vLLM in this Python, without weights, and record it")
    option("recording", type=path_option, metavar="FOLDER", help="of the recording, new")
    option("--requests", type=int, default=60, metavar="N", help="requests (default: %(default)s)")
    option("--rate", type=float, metavar="R", help="arrivals a second (default: all at once)")
    option("--seats", type=int, default=16, metavar="J", help="most requests at once (default: %(default)s)")
    option("--budget", type=int, default=512, metavar="B", help="tokens of an iteration (default: %(default)s)")
    option("--seed", type=int, default=0, help="of lengths and arrivals (default: %(default)s)")
    option("--policy", metavar="NAME", help="who decides: a rule or an agent (default: vLLM's own scheduler)")
    option("--parameters", type=_numbers, default=(), metavar="X,Y,...", help="the rule's numbers (default: its own)")
    option("--cost", metavar="MODEL", help=f"what the policy thinks of times: a preset, or {FIT}FILE")
    option("--arguments", default="", metavar="A=X,B=Y,...", help="the policy's scenario, as in ttft_s=2,tpot_s=0.2")

    option = add("calibrate", "fit a cost model to a recording, or to several of one engine together")
    option("recordings", type=path_option, nargs="+", metavar="RECORDING", help="folder of a recording")
    option("--out", type=path_option, metavar="FILE", help=f"where the model goes (default: {FIT_FILE} in the first)")
    option("--name", metavar="NAME", help="of the model (default: the recording's)")

    for name, text in (
        ("replay", "the requests of a recording in the simulator, under the engine's settings"),
        ("compare", "a recording beside its replay: one page, in Markdown, JSON and a picture"),
    ):
        option = add(name, text)
        option("recording", type=path_option, metavar="RECORDING", help="folder of the recording")
        option(
            "--cost",
            metavar="MODEL",
            help=f"a preset, or {FIT}FILE (default: {FIT}RECORDING where it was calibrated, else fitted now)",
        )
        option("--out", type=path_option, metavar="FOLDER", help="what is written goes there")
        option("--arguments", default="", metavar="A=X,B=Y,...", help="other arguments of the scenario")
        option(
            "--policy",
            metavar="NAME",
            help=f"who decides; {ENGINES_OWN!r} is the engine's own scheduler (default: who did in the recording)",
        )
        if name == "compare":
            option(
                "--within", type=float, metavar="P", help="fail where makespan or mean TTFT is off by more than P %%"
            )
    return parser


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run one of the commands; 1 where a comparison is not within its limit, 2 for unusable arguments."""
    parser = _parser(command)
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    flags = flags_of(parser)
    work = {"record": _record, "calibrate": _calibrate, "replay": _replay, "compare": _compare}[options.what]
    with warnings_in_flags(flags):
        for kind in (RecordingWarning, UnitWarning, CoverageWarning):
            warnings.simplefilter("always", kind)
        return run_command(flags, lambda: work(options), "interrupted: a recording keeps the rows that it has.")


def _numbers(text: str) -> tuple[float, ...]:
    """``12,0.8``; whole numbers stay whole.

    Raises:
        ArgumentTypeError: no numbers.
    """
    try:
        return tuple(float(part) if {".", "e"} & set(part.lower()) else int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, as in 12,0.8") from None


def _record(options: argparse.Namespace) -> int:
    if options.recording.exists() and any(options.recording.iterdir()):
        raise PathError(f"{options.recording} is not empty: give a new folder for the recording.")
    for name, least in (("requests", 1), ("seats", 1), ("budget", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} {getattr(options, name)}: give a whole number of at least {least}.")
    if options.budget < options.seats:
        raise ConfigError(f"--budget {options.budget} with --seats {options.seats}: vLLM needs a token for each seat.")
    given = next((f"--{one}" for one in ("parameters", "cost", "arguments") if getattr(options, one)), None)
    if options.policy is None and given is not None:
        raise ConfigError(f"{given} without --policy: vLLM's own scheduler takes none. Name a policy.")
    longest = min(LONGEST, options.budget)  # a policy that keeps prefills apart reads each prompt at once
    load = drawn_load(options.requests, rate_per_s=options.rate, prompts=(min(16, longest), longest), seed=options.seed)
    told = {"policy": options.policy, "parameters": list(options.parameters), "cost": options.cost}
    policy = {name: value for name, value in told.items() if value} | read_arguments(options.arguments) or None
    if policy is not None:  # complains before the engine starts
        facts = EngineFacts(options.seats, options.budget, options.budget, None)
        EngineOptions.read(policy).session(facts).close()
    engine = TrialEngine(max_num_seqs=options.seats, token_budget=options.budget, driven=policy is not None)
    try:
        engine.run(load, options.recording, options=policy)
    finally:
        engine.close()
    recording = read_recording(options.recording)
    print(f"{len(recording.iterations)} iterations and {len(recording.requests)} requests in {options.recording}")
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    recordings = [read_recording(folder) for folder in options.recordings]
    recording = pooled(recordings) if len(recordings) > 1 else recordings[0]
    fit = fit_recording(recording, name=options.name)
    out = output_file(options.out or options.recordings[0] / FIT_FILE)
    with write_whole(out) as path:
        path.write_text(json.dumps(fit.as_json(), indent=1) + "\n", encoding="utf-8")
    print(fit.report())
    written = [out]
    try:
        written.append(draw_fit(recording, fit.model, fit.excess, out.with_suffix(".png")))
    except MissingExtraError:
        print("No picture: matplotlib is not installed.")
    print(f"Written: {', '.join(map(str, written))}. Use it as --cost {FIT}{out}, or Scenario(cost='{FIT}{out}').")
    return 0


def _replay(options: argparse.Namespace) -> int:
    recording = read_recording(options.recording)
    simulated = replay(recording, _cost(options), options.policy, **read_arguments(options.arguments))
    told = latencies_s(simulated)
    print(f"{simulated.decided_by}: {len(simulated.requests)} requests in {len(simulated.iterations)} iterations")
    print("\n".join(f"{shown:<11} {told[name]:.6f} s" for name, shown in SHOWN.items() if told[name] == told[name]))
    if options.out is not None:
        write_recording(options.out, simulated)
        print(f"Written as a recording: {options.out}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    if options.within is not None and not 0 < options.within < 100:
        raise ConfigError(f"--within {options.within:g}: give percents in (0, 100).")
    recording, model = read_recording(options.recording), _cost(options)
    simulated = replay(recording, model, options.policy, **read_arguments(options.arguments))
    comparison = compare_recordings(recording, simulated, _measured(model, recording))
    print(comparison.page())
    written = write_comparison(comparison, options.out or options.recording)
    print(f"Written: {', '.join(map(str, written))}")
    if options.within is not None and not comparison.within(options.within / 100):
        print(f"error: makespan or mean TTFT is off by more than {options.within:g} %.", file=sys.stderr)
        return 1
    return 0


def _cost(options: argparse.Namespace) -> CostModel:
    """What was asked for, or what the recording says."""
    if options.cost is not None:
        return cost_model(options.cost)
    if (options.recording / FIT_FILE).exists():
        return cost_model(f"{FIT}{options.recording}")
    return fit_recording(read_recording(options.recording)).model


def _measured(model: CostModel, recording: Recording) -> MeasuredCost:
    """The model, with what the simulator takes for mixed iterations where it knows nothing of them."""
    known = {field.name: getattr(model, field.name) for field in fields(CostModel)}
    mixed = model.mixed if isinstance(model, MeasuredCost) else None
    if mixed is None and recording.settings.mixes:
        mixed = mixed_cost("sum", model)
    return MeasuredCost(**known, mixed=mixed)


if __name__ == "__main__":
    raise SystemExit(main())
