"""Train an agent on an environment of this project, choose it by validation cases, and compare it with the baselines.

A run is a folder: config.json, checkpoints, curve.csv, TensorBoard logs and at the end run.json with the comparison.
A run that was interrupted or killed goes on with --resume FOLDER. docs/training.md says more.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from llmsched_env import ENVIRONMENTS
from llmsched_env.agents.algorithms import ALGORITHMS, DEFAULT
from llmsched_env.errors import ConfigError, LLMSchedError, MissingExtraError
from llmsched_env.flags import flags_of, in_flags, warnings_in_flags
from llmsched_env.storage import user_path

if TYPE_CHECKING:
    from llmsched_env.agents.training import Baselines, Training
    from llmsched_env.config import Scenario

COMMAND = "python train.py"

SCENARIO_OPTIONS = {
    "clients": "num_clients",
    "requests": "num_requests",
    "workload": "workload",
    "cost": "cost",
    "prefill_cap": "prefill_token_cap",
    "queue": "queue",
    "assignment": "assignment",
    "order": "order",
    "lengths": "lengths",
    "predictor": "predictor",
    "load": "load",
    "ttft_s": "ttft_s",
    "tpot_s": "tpot_s",
    "reward": "reward",
}
"""Option -> argument of the scenario; one that is not given is as the environment id has it."""


@dataclass(frozen=True)
class Args:
    """The command line: one option a field, with what its attribute says here as its help.

    Attributes:
        algo: algorithm: {algorithms}
        scenario: environment id: {scenarios}
        timesteps: decisions (of es: iterations) to train for; 0: as the algorithm's settings say
        seed: of network, exploration and order of cases
        out: folder of the run; nothing: runs/ALGO
        resume: go on with the run in this folder, which knows all other options
        settings: YAML file with settings of the algorithm; those not in it are as in agents/settings/ALGO.yaml
        copies: environments stepped side by side; 0: as the settings say
        evaluate_every: timesteps from one validation, with its checkpoint, to the next; 0: as the settings say
        cases: validation cases that agents are chosen by and compared on
        clients: clients J; 0: the scenario's, 200
        requests: requests a case, drawn with replacement; 0: the workload's own number
        workload: other requests: a workload's name, a CSV file, or trace:PATH; nothing: the scenario's own
        cost: preset of the cost model; nothing: the scenario's own
        prefill_cap: most prompt tokens in a prefill; 0: the cost model's own
        queue: queues: client or shared; nothing: the scenario's own
        assignment: what fills client queues: mip, lpt or round_robin; nothing: the scenario's own
        order: order of the queues; nothing: the scenario's own
        lengths: what is known of output lengths: known, predicted or hidden; nothing: the scenario's own
        predictor: who predicts them: population, prompt, noisy, noisy:0.8, ...; nothing: the scenario's own
        load: arrivals as a share of capacity; 0: the scenario's own
        ttft_s: TTFT limit, in seconds; 0: the scenario's own
        tpot_s: TPOT limit, in seconds; 0: the scenario's own
        arguments: any other arguments of the scenario: noise_sd=0.5,mixed_tokens=1024; nothing: none
        reward: reward: excess, makespan, idle, latency, goodput or differential; nothing: the scenario's own
    """

    algo: str = DEFAULT
    scenario: str = "LLMSched/GSM8K-v0"
    timesteps: int = 0
    seed: int = 0
    out: str = ""
    resume: str = ""
    settings: str = ""
    copies: int = 0
    evaluate_every: int = 0
    cases: int = 20
    clients: int = 0
    requests: int = 0
    workload: str = ""
    cost: str = ""
    prefill_cap: int = 0
    queue: str = ""
    assignment: str = ""
    order: str = ""
    lengths: str = ""
    predictor: str = ""
    load: float = 0.0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    arguments: str = ""
    reward: str = ""

    @classmethod
    def parse(cls, argv: Sequence[str], command: str = COMMAND) -> tuple[Args, list[str]]:
        """From the words of a command line; and which options it names."""
        given = vars(cls.parser(command).parse_args(argv))
        return cls(**given), list(given)

    @classmethod
    def parser(cls, command: str = COMMAND) -> argparse.ArgumentParser:
        """Of the command line: an option for each field."""
        # argparse and not a library: flat options need no dependency.
        parser = argparse.ArgumentParser(
            prog=command,
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        kinds, texts = get_type_hints(cls), dict(re.findall(r"^ +(\w+): (.+)$", cls.__doc__ or "", re.MULTILINE))
        names = {"algorithms": ", ".join(ALGORITHMS), "scenarios": ", ".join(ENVIRONMENTS)}
        for option in fields(cls):
            text = f"{texts[option.name].format(**names)} (default: {option.default or repr(option.default)})"
            parser.add_argument(
                f"--{option.name.replace('_', '-')}", type=kinds[option.name], default=argparse.SUPPRESS, help=text
            )
        return parser

    @property
    def folder(self) -> Path:
        """Of the run."""
        return user_path(self.resume or self.out or f"runs/{self.algo}")

    def training(self) -> Training:
        """What the options ask for.

        Raises:
            LLMSchedError: what they ask for cannot be done.
        """
        from llmsched_env.agents.hyperparameters import read_settings
        from llmsched_env.agents.training import Training
        from llmsched_env.config import read_arguments

        arguments: dict[str, Any] = {
            **read_arguments(self.arguments),
            **{name: getattr(self, option) for option, name in SCENARIO_OPTIONS.items() if getattr(self, option)},
        }
        if arguments.get("lengths", "predicted") != "predicted":
            arguments.setdefault("predictor", None)  # nobody would read the scenario's own
        return Training(
            algo=self.algo,
            scenario=self.scenario,
            timesteps=self.timesteps,
            seed=self.seed,
            out=self.folder,
            copies=self.copies,
            validation_cases=self.cases,
            arguments=arguments,
            settings=read_settings(self.settings) if self.settings else {},
            evaluate_every=self.evaluate_every,
            source=self.settings or "settings",
        )


FLAGS = flags_of(Args.parser())


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Train and compare; 2 for what cannot be done, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    args, given = Args.parse(words, command)
    try:
        record = _run(args, given, f"{command} {shlex.join(words)}".strip())
    except LLMSchedError as error:
        print(f"error: {in_flags(str(error), FLAGS)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted: nothing half-written is left behind. {_advice(args.folder, command)}", file=sys.stderr)
        return 130
    _show(record)
    _say_what_is_there(record, args.folder)
    return 0


def _run(args: Args, given: Sequence[str], command: str) -> dict[str, Any]:
    # Imported here: the libraries take seconds, in which Ctrl-C should do what it does later.
    from llmsched_env.agents.training import recorded, train
    from llmsched_env.evaluation import CoverageWarning
    from llmsched_env.evaluation.drawing import check_drawing

    if "resume" in given and not args.resume:
        raise ConfigError("--resume names no folder: give that of the run to go on with.")
    if args.resume and "timesteps" in given:
        raise ConfigError(
            f"--resume {args.resume} with --timesteps {args.timesteps}: a run ends at the timesteps that it was begun "
            "with, since what changes over a run (the learning rate, exploration) is set by them. To train longer, "
            f"begin a new run: the command in {args.resume}/config.json with --timesteps {args.timesteps} and "
            "another --out."
        )
    others = [f"--{name.replace('_', '-')}" for name in given if name != "resume"]
    if args.resume and others:
        raise ConfigError(
            f"--resume {args.resume} with {', '.join(others)}: a run goes on with the options that it was begun with. "
            "Leave out the others, or begin a new run."
        )
    training = recorded(args.folder) if args.resume else args.training()
    try:
        check_drawing()
    except MissingExtraError as error:
        print(f"warning: there will be no learning_curve.png. {error}", file=sys.stderr)
    with warnings_in_flags(FLAGS):
        warnings.simplefilter("ignore", CoverageWarning)  # one a policy; each says the same
        return train(training, _rivals(training.validation), command=command, resume=bool(args.resume))


def _rivals(scenario: Scenario) -> Baselines:
    """The baselines that make sense in the scenario, but of the planners only the one that scores 1."""
    from llmsched_env.agents.training import Baselines
    from llmsched_env.baselines.registry import default_names, entry, fixed_order_planner
    from llmsched_env.baselines.tuned import best_tuned

    entries = {name: entry(name, scenario) for name in default_names(scenario)}
    planner = fixed_order_planner(scenario)
    shown = {name: item for name, item in entries.items() if item.kind != "planner" or name == planner}
    reference = best_tuned(scenario)
    return Baselines(tuple(shown.values()), shown.get(reference) or entry(reference, scenario), shown[planner])


def _advice(folder: Path, command: str) -> str:
    if (folder / "run.json").exists():
        return f"The run in {folder} is finished."
    if (folder / "config.json").exists():
        return f"Go on from the last checkpoint with: {command} --resume {shlex.quote(str(folder))}"
    return "The run had not begun."


def _show(record: dict[str, Any]) -> None:
    validation, best = record["validation"], record["best"]
    metric = "goodput" if "goodput" in next(iter(validation["policies"].values())) else "makespan_s"
    reference = validation["score_reference"]
    trained = record["agent_minus_baseline"]
    print(
        f"\n{validation['cases']} validation cases, with 95 % intervals; score: 0 = {reference}, "
        f"1 = {validation['score_planner']}.\nThe agent is that of timestep {best['timesteps']}, the best of the run "
        f"as {best['policy']}: chosen\non these cases, so a claim wants `evaluate` on the test split. "
        "Marked '>': this run's.\n\n"
        f"{'':>28}  {metric:<27}  score"
    )
    rows = sorted(validation["policies"].items(), key=lambda item: item[1][metric]["mean"], reverse=metric == "goodput")
    for name, row in rows:
        shown = f"> {name}" if name in trained else f"{name} (shipped)" if row["kind"] == "agent" else name
        print(f"{shown:>28}  {_interval(row[metric])}  {_interval(row['score'])}")
    print()
    for name, differences in trained.items():
        print(f"{name} less {reference}, case by case: {_interval(differences[reference]).strip()} ({metric})")
    if all(row["score"]["mean"] is None for _, row in rows):
        print(f"No scores: on these cases {validation['score_planner']} is not surely better than {reference}.")
    if best["timesteps"] == 0:
        print("No validation was better than the one before training.")


def _say_what_is_there(record: dict[str, Any], folder: Path) -> None:
    best = record["best"]
    safe = (folder / "agent.npz").exists()
    what = f"{'agent.npz, ' * safe}run.json, curve.csv, tensorboard, {best['folder']} (the best agent)"
    print(f"Written to {folder}: {what}")
    if not safe:
        drawn = best["policy"].endswith("_sampled")
        why = "draws its actions, which the networks of that file do not" if drawn else "is no network that it can hold"
        print(
            f"No agent.npz: the best form, {best['policy']}, {why}. "
            "llmsched_env.agents.sb3_policy.SB3Policy.load takes the model."
        )


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return ""
    low, high = estimate["ci95"]
    text = f"{estimate['mean']:8.3f}"
    return text if low is None else f"{text} [{low:.3f}, {high:.3f}]"
