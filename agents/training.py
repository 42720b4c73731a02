"""Training: one driver for every algorithm. It validates, keeps the curve and checkpoints, and compares at the end."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Origin, Trained
from llmsched_env.agents.algorithms import learner_class
from llmsched_env.agents.curve import Board, draw
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.fingerprint import changed_versions, difference, fingerprint
from llmsched_env.agents.hyperparameters import OPTIONS, resolved, shipped_file
from llmsched_env.agents.learner import Learner
from llmsched_env.agents.libraries import LIBRARIES, one_thread
from llmsched_env.agents.runs import Best, Checkpoint, Run
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.evaluation import evaluate, mean_estimate
from llmsched_env.evaluation.comparison import Comparison, Contestant, compare
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.policy import Policy
from llmsched_env.progress import Progress
from llmsched_env.workload.registry import PREFIXES, WORKLOADS

__all__ = ["Baselines", "Training", "recorded", "train"]

_log = logging.getLogger(__name__)

MUCH_LONGER = 1.1
"""By which factor a training may be longer than asked for without a word."""


@dataclass(frozen=True)
class Training:
    """What to train on what. Numbers that are 0 are the algorithm's own, from its settings.

    Attributes:
        algo: one of `llmsched_env.agents.algorithms.ALGORITHMS`.
        scenario: environment id.
        timesteps: to train for, in the algorithm's own count.
        seed: of the network, the exploration and the order of cases.
        out: folder of the run, a path or its text.
        copies: environments stepped side by side.
        validation_cases: cases that agents are chosen by, and compared with their baselines on.
        arguments: what to change of the scenario; the path of a workload's file is made absolute, so that a resume
            from another folder finds it.
        settings: of the algorithm; those not given are the shipped ones, so that afterwards all are here.
        evaluate_every: timesteps from one validation, with its checkpoint, to the next.
        source: where the settings are from, for messages.

    Raises:
        UnknownNameError: no such algorithm, environment, argument or setting.
        ConfigError: a number out of range.
        MissingExtraError: the extra `agents` is not installed.
    """

    algo: str
    scenario: str = "LLMSched/GSM8K-v0"
    timesteps: int = 0
    seed: int = 0
    out: Path = Path("runs/agent")
    copies: int = 0
    validation_cases: int = 20
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    evaluate_every: int = 0
    source: str = field(default="settings", compare=False)

    def __post_init__(self) -> None:
        kind = learner_class(self.algo)
        object.__setattr__(self, "out", Path(self.out))
        object.__setattr__(self, "arguments", _with_absolute_path(self.arguments))
        for name, least, most in (("validation_cases", 1, 2**20), ("seed", 0, 2**32 - 1)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)} is out of range: it lies in [{least}, {most}].")
        file = shipped_file(self.algo, self.settings, self.training_scenario.num_actions)  # checks the arguments, too
        settings = resolved(self.algo, kind.checks, self.settings, self.source, file=file)
        numbers = ("timesteps", "evaluate_every", "copies")
        chosen = {name: getattr(self, name) for name in numbers if getattr(self, name) != 0}
        settings = resolved(self.algo, kind.checks, {**settings, **chosen}, OPTIONS, file=file)
        object.__setattr__(self, "settings", settings)
        for name in numbers:
            object.__setattr__(self, name, settings.get(name, 0))

    @property
    def validation(self) -> Scenario:
        """Where agents are chosen and compared: in whole episodes, whatever horizon those have that they learn from."""
        return self._scenario.replace(split="validation", max_iterations=None)

    @property
    def training_scenario(self) -> Scenario:
        """Where the agent learns: decisions only where there is a choice."""
        return self._scenario.replace(split="train", skip_forced=True)

    @property
    def _scenario(self) -> Scenario:
        return make_scenario(self.scenario).replace(**{**self.arguments, "split": "train"})

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {
            **{item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "source"},
            "out": str(self.out),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What a run of it depends on."""
        return fingerprint(self.as_json(), self.training_scenario)


@dataclass(frozen=True)
class Baselines:
    """Whom the agent is compared with at the end.

    Attributes:
        contestants: policies, each in the scenario that it brings.
        reference: the rule that scores 0.
        planner: what scores 1.
    """

    contestants: Sequence[Contestant] = ()
    reference: Contestant | None = None
    planner: Contestant | None = None


@dataclass(frozen=True)
class Candidate:
    """A learned policy as a contestant."""

    name: str
    policy: Policy
    scenario: Scenario
    kind: str = "agent"
    text: str = ""


def train(
    training: Training,
    baselines: Baselines | None = None,
    *,
    command: str = "",
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train, choose the best agent by validation, compare it; everything goes to the folder ``training.out``.

    Args:
        training: what to do.
        baselines: policies to compare with, on the same validation cases.
        command: what repeats the run, for the record.
        resume: go on with the run that the folder holds, which is the one that :func:`recorded` gives.
        progress: show on stderr how far it is: bars on a terminal, elsewhere a line now and then, and for each
            validation.

    Returns:
        What ``run.json`` holds.

    Raises:
        PathError: the folder cannot be written, or holds no run to resume.
        ConfigError: it holds a run already, or one that cannot be gone on with; or settings that contradict each other.
        FileFormatError: the last checkpoint is damaged. (Where it is the best one, a warning says so, and the last one
            stands for it.)
        MissingExtraError: a library is not installed.
    """
    source = training.validation.source
    if getattr(source, "version", None) is not None and not getattr(source, "disjoint_splits", False):
        _log.warning(
            "the agent is chosen and compared on reorderings of the file that it learns from: it has no splits."
        )
    with one_thread() if training.algo in LIBRARIES else nullcontext():
        return _train(training, baselines or Baselines(), command, resume, progress)


def recorded(folder: Path | str) -> Training:
    """What the run in a folder was asked to do, to go on with it.

    Raises:
        PathError: no run there.
        FileFormatError: its ``config.json`` is damaged.
        ConfigError: it is finished, or of a version, a scenario or observations that are others now.
    """
    folder = Path(folder)
    config = Run.open(folder).config
    try:
        training = Training(**{**config["training"], "out": folder})
    except (KeyError, TypeError) as error:
        raise FileFormatError(folder / "config.json", f"damaged ({error}): begin the run again elsewhere.") from error
    now = json.loads(json.dumps(training.fingerprint()))
    for name, what in (
        ("version", "llmsched-env"),
        ("observation", "the observation"),
        ("actions", "the number of actions"),
        ("scenario", "the scenario"),
        ("workload", "the content of its file"),
    ):
        if config.get(name) != now[name]:
            raise ConfigError(
                f"the run in {folder} was begun when {what} was another ({difference(config.get(name), now[name])}): "
                "go on with the version that began it, or begin a new run."
            )
    return training


def _train(training: Training, baselines: Baselines, command: str, resume: bool, progress: bool) -> dict[str, Any]:
    kind, cases = learner_class(training.algo), case_numbers(training.validation_cases)
    build_problem(training.validation, int(cases[-1]))  # says now that there are not so many
    if resume:
        run = Run.open(training.out)
        asked = json.loads(json.dumps(training.fingerprint()))["training"]
        if {**run.config["training"], "out": asked["out"]} != asked:
            raise ConfigError(
                f"the run in {training.out} was begun with other options "
                f"({difference(run.config['training'], asked)}): go on with what `recorded` gives."
            )
        changed = changed_versions(run.config)
        if changed:
            _log.warning(
                "the run in %s was begun with %s: from here on it need not be, bit for bit, the one that was never "
                "stopped.",
                run.folder,
                "; ".join(changed),
            )
        last = run.last()
        if last is None:
            learner = kind.begin(training)
        else:
            run.write_curve(last.rows)  # a kill may have come after the checkpoint and before its curve
            last = _with_whole_best(run, last, training.validation.objective)
            learner = kind.resume(training, last.folder)
    else:
        learner, last = kind.begin(training), None
        run = Run.create(training.out, {"command": command, **training.fingerprint()})
    last = _Driver(training, run, learner, last, progress).drive()
    best = kind.resume(training, run.at(last.best.timesteps).folder)
    agents = [Candidate(policy.name, policy, training.validation) for policy in best.policies()]
    comparison = _compare(training, [*agents, *baselines.contestants], baselines, progress)
    record = {
        "command": run.config["command"],
        "config": run.config,
        "timesteps": last.timesteps,
        "best": {**dataclasses.asdict(last.best), "folder": _relative(run, last.best.timesteps)},
        "last": {"timesteps": last.timesteps, "folder": _relative(run, last.timesteps)},
        "validation": comparison.as_json(),
        "agent_minus_baseline": _differences(comparison, len(agents)),
    }
    network = best.network() if last.best.policy == agents[0].name else None  # which decides as the usual form
    if network is not None:
        trained = Trained(network, Origin.of(training.training_scenario))
        AgentFile((trained,), run.config["command"], (training.seed,)).write(run.folder / "agent.npz")
    draw(run.folder / "learning_curve.png", last.rows, comparison)
    run.finish(record)
    return record


class _Driver:
    """From where a run stands to its end."""

    def __init__(self, training: Training, run: Run, learner: Learner, last: Checkpoint | None, progress: bool) -> None:
        self._training = training
        self._run = run
        self._learner = learner
        self._last = last
        self._progress = progress

    def drive(self) -> Checkpoint:
        """Train to the end; the last checkpoint."""
        training, learner = self._training, self._learner
        self._end = learner.ends_at(training.timesteps)
        if self._end > MUCH_LONGER * training.timesteps:
            _log.warning(
                "an update is not cut: training ends at timestep %s, not at %s.",
                f"{self._end:,}",
                f"{training.timesteps:,}",
            )
        with (
            Board(self._run.tensorboard, after=None if self._last is None else self._last.timesteps) as self._board,
            Progress(
                total=self._end,
                initial=learner.timesteps,
                desc=f"training {training.algo}",
                leave=True,
                hidden=not self._progress,
            ) as self._bar,
        ):
            if self._last is None:
                self._last = self._validate()
            learner.learn(training.timesteps, self._report)
            if self._last.timesteps < learner.timesteps:
                self._last = self._validate()
            self._show()
        return self._last

    def _report(self) -> None:
        self._show()
        assert self._last is not None
        every = self._training.evaluate_every
        if self._learner.timesteps // every > self._last.timesteps // every:
            self._last = self._validate()

    def _show(self) -> None:
        self._bar.update(min(self._learner.timesteps, self._end) - self._bar.n)

    def _validate(self) -> Checkpoint:
        """Judge the agent as it stands, and write a checkpoint."""
        training, timesteps = self._training, self._learner.timesteps
        objective = training.validation.objective
        row: dict[str, float] = {"timesteps": timesteps}
        for policy in self._learner.policies():
            evaluation = evaluate(
                policy, training.validation, training.validation_cases, seed=training.seed, latencies=False
            )
            for metric in dict.fromkeys((objective, "gap_to_bound")):
                row[f"{policy.name}/{metric}"] = evaluation.estimate(metric).mean
        best = _best(None if self._last is None else self._last.best, row, objective)
        row.update(self._learner.figures())
        self._board.add(row)
        reached = ", ".join(f"{name} {value:.5g}" for name, value in row.items() if name.endswith(f"/{objective}"))
        self._bar.tell(
            f"best {objective}={best.value:.4g}",
            f"training {training.algo}: {timesteps:,} of {max(self._end, timesteps):,} steps: {reached}, "
            f"best {best.value:.5g} at {best.timesteps:,}",
        )
        rows = [*([] if self._last is None else self._last.rows), row]
        return self._run.save(timesteps, best, rows, self._learner.save)


def _best(before: Best | None, row: Mapping[str, float], objective: str) -> Best:
    """The best agent up to a row of the curve, the earlier one on ties."""
    best = before
    for name, value in row.items():
        policy, _, metric = name.rpartition("/")
        if metric != objective:
            continue
        if best is None or (value > best.value if objective == "goodput" else value < best.value):
            best = Best(int(row["timesteps"]), policy, value)
    assert best is not None, "a learner has at least one policy"
    return best


def _with_whole_best(run: Run, last: Checkpoint, objective: str) -> Checkpoint:
    """The last checkpoint; where the best one can no longer be read, with the last one as the best."""
    if last.best.timesteps == last.timesteps:
        return last
    try:
        run.at(last.best.timesteps)
    except (FileFormatError, PathError):
        folder = run.checkpoint(last.best.timesteps)
        _log.warning(
            "the best checkpoint, %s, is %s: the run goes on with the last one, of timestep %d, as its best.",
            folder,
            "damaged" if folder.exists() else "gone",
            last.timesteps,
        )
        return dataclasses.replace(last, best=_best(None, last.rows[-1], objective))
    return last


def _with_absolute_path(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a scenario, with an absolute path in ``workload`` where that is a file's."""
    source = arguments.get("workload")
    if not isinstance(source, str) or source in WORKLOADS:
        return arguments
    prefix, _, path = source.partition(":")
    if path and prefix in PREFIXES:
        return {**arguments, "workload": f"{prefix}:{Path(path).resolve()}"}
    return {**arguments, "workload": str(Path(source).resolve())} if Path(source).is_file() else arguments


def _relative(run: Run, timesteps: int) -> str:
    return run.checkpoint(timesteps).relative_to(run.folder).as_posix()


def _compare(training: Training, contestants: Sequence[Contestant], baselines: Baselines, progress: bool) -> Comparison:
    shown = {id(item) for item in contestants}
    more = sum(end is not None and id(end) not in shown for end in (baselines.reference, baselines.planner))
    total = (len(contestants) + more) * training.validation_cases
    with Progress(total=total, desc="comparing", unit="episode", leave=True, hidden=not progress) as bar:
        return compare(
            contestants,
            training.scenario,
            training.validation,
            case_numbers(training.validation_cases),
            reference=baselines.reference,
            planner=baselines.planner,
            seed=training.seed,
            progress=_ticker(bar),
        )


def _ticker(bar: Any) -> Callable[[str, int], None]:
    def progress(name: str, episodes: int) -> None:
        bar.set_description(name, refresh=False)
        bar.update(episodes)

    return progress


def _differences(comparison: Comparison, agents: int) -> dict[str, Any]:
    """By how much each agent differs from each baseline, case by case, with intervals."""
    objective = comparison.scenario.objective
    reached = {row.name: row.evaluation.columns[objective] for row in comparison.rows}
    names = list(reached)
    return {
        agent: {
            baseline: mean_estimate(np.subtract(reached[agent], reached[baseline])).as_json()
            for baseline in names[agents:]
        }
        for agent in names[:agents]
    }
