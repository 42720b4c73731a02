"""An evolution strategy in the compiled simulator: whole episodes are cheap, so networks are evolved by their results.

CMA-ES (Hansen and Ostermeier 2001; library `cmaes`) on the numbers of one small network that is a residual on a rule
(:mod:`llmsched_env.agents.network`). Each generation plays the same training cases under every candidate, so that
candidates differ by what they decide and not by their cases. A network of zeros is the rule with the numbers that do
best on training cases, which is where the search begins. No gradients, no credit assignment, no discounting: what is
minimised is the makespan, or the share of requests whose SLOs are violated.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from llmsched_env.agents.agent import Agent
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.encoding import FIRST_CASES, FIRST_VALUES, Encoding, first_encoding
from llmsched_env.agents.hyperparameters import Check, one_of, real_number, whole_number
from llmsched_env.agents.learner import Task
from llmsched_env.agents.network import BASES, NEVER, Network
from llmsched_env.cases import build_problem, pool_size
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.engine.features import ALL_FEATURES
from llmsched_env.errors import ConfigError, FileFormatError, LLMSchedError, MissingExtraError, UnknownNameError
from llmsched_env.policy import Policy

__all__ = ["Evolution", "EvolutionSettings"]

Floats = NDArray[np.float64]

COVARIANCES = ("full", "diagonal")

LEAST_POPULATION = 4
LEAST_SIZE = 0.01

LEAST_LOSS = 1e-4
"""Losses of the base rule below are taken for this one: they are what candidates are measured by."""


def _words(name: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{name} = {value!r} is not a list of names: write [ready, due_1], or [] for all.")
    return list(value)


def _multiples(name: str, value: object) -> list[float]:
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f"{name} = {value!r} is not a list of numbers: write [1.0], or [0.5, 1.0, 2.0].")
    return [real_number(LEAST_SIZE, 1 / LEAST_SIZE)(f"{name}[{i}]", size) for i, size in enumerate(value)]


CHECKS: dict[str, Check] = {
    "hidden": whole_number(1, 1024),
    "sigma": real_number(1e-9, 10.0),
    "population": whole_number(0, 4096),
    "cases": whole_number(1, 4096),
    "growth": whole_number(0, 2**20),
    "pool": whole_number(1, 2**20),
    "covariance": one_of(*COVARIANCES),
    "base": one_of("auto", *FIRST_VALUES),
    "features": _words,
    "orders": _words,
    "limit": real_number(0.0, NEVER),
    "sizes": _multiples,
}
"""What each setting may be."""


@dataclass(frozen=True)
class EvolutionSettings:
    """What may be set of the strategy.

    Attributes:
        hidden: units of the network's hidden layer.
        sigma: first step size, in standard deviations of the features.
        population: candidates a generation; 0 for twice the usual 4 + 3 ln(numbers).
        cases: training cases that each of them plays, at first.
        growth: generations in which ``cases`` more cases are added, evenly, up to the pool: the better they are, the
            less candidates differ; 0 for never.
        pool: training cases to draw these from: the first ones; less where there are fewer.
        covariance: "full", or "diagonal" (Ros and Hansen 2008), quicker from some three hundred numbers on.
        base: the rule that the network is a residual on; "auto": "deadline" with SLOs, else "lagrangian".
        features: names of the features to read; none: all that move on training cases.
        orders: names of the orders to choose among, where orders are actions; none: all. Fewer are fewer numbers.
        limit: of the base, from which on it is a prefill whatever the network says (`Network.base_limit`).
        sizes: multiples of the scenario's clients, and of its requests, to train on side by side. At sizes other than 1
            LPT fills the queues that the MIP would fill. Where the search begins (the features and how far they spread,
            the rule's numbers) is found in the scenario itself, whether 1 is among the sizes or not.

    Raises:
        ConfigError: a number out of range.
        UnknownNameError: no such covariance, base, feature or order.
    """

    hidden: int = 7
    sigma: float = 0.15
    population: int = 0
    cases: int = 12
    growth: int = 150
    pool: int = 256
    covariance: str = "full"
    base: str = "auto"
    features: tuple[str, ...] = ()
    orders: tuple[str, ...] = ()
    limit: float = 1.0
    sizes: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            check(name, getattr(self, name))
        if 0 < self.population < LEAST_POPULATION:
            raise ConfigError(
                f"population = {self.population} is too small to choose from: give at least {LEAST_POPULATION}, or 0 "
                "for the usual number."
            )
        if self.cases < len(self.sizes):
            raise ConfigError(
                f"setting cases = {self.cases}, the training cases of a candidate, for {len(self.sizes)} sizes: give "
                "at least one of each."
            )
        if self.cases > self.pool:
            raise ConfigError(
                f"setting cases = {self.cases}, the training cases of a candidate, exceeds setting pool = {self.pool}, "
                "those to draw from: draw at most as many as there are."
            )
        names = [feature.name for feature in ALL_FEATURES]
        for kind, given, known in (("feature", self.features, names), ("order", self.orders, ORDER_CODES)):
            for name in given:
                if name not in known:
                    raise UnknownNameError(kind, name, known)


class Evolution:
    """CMA-ES on one scenario; a `Learner`.

    Args:
        scenario: to train on.
        settings: of the strategy.
        seed: of the first network, of the candidates and of the draws of cases.
        threads: that share the cases; results do not depend on it.
        stored: what :meth:`save` wrote, to go on from.

    Attributes:
        timesteps: iterations of the simulator in all episodes of all candidates.
        generation: generations so far.
    """

    checks: ClassVar[Mapping[str, Check]] = CHECKS

    def __init__(
        self,
        scenario: Scenario,
        settings: EvolutionSettings,
        seed: int,
        *,
        threads: int = 1,
        stored: dict[str, Any] | None = None,
    ) -> None:
        self._settings = settings
        self._scenario = scenario
        cases = range(min(settings.pool, pool_size(scenario) or settings.pool))
        self._evaluations = [BatchEvaluation(_sized(scenario, size), cases, threads=threads) for size in settings.sizes]
        self._draws = np.random.default_rng(seed)
        self.timesteps = 0
        self.generation = 0
        self._loss = math.nan
        self._least = math.inf
        if stored is None:
            home = BatchEvaluation(scenario, cases[:FIRST_CASES], threads=threads)
            first = first_encoding(home, settings.base, settings.features, settings.hidden, settings.orders)
            self.encoding = first._replace(limit=settings.limit)
            start = np.zeros(self.encoding.size)
            inner = start[BASES[self.encoding.base] :][: settings.hidden * len(self.encoding.features)]
            inner[:] = self._draws.normal(0.0, 0.05, len(inner))
            self._strategy = _strategy(start, settings, seed)
        else:
            self._restore(stored, seed)
        rule = self.encoding.networks([np.zeros(self.encoding.size)])
        self._rule_losses = [
            max(LEAST_LOSS, float(evaluation.losses(rule, evaluation.cases[:FIRST_CASES])[0].mean()))
            for evaluation in self._evaluations
        ]

    @classmethod
    def begin(cls, training: Task) -> Evolution:
        """The learner of a new run; raises as the class and `EvolutionSettings`."""
        return cls(training.training_scenario, _settings(training), training.seed, threads=_threads())

    @classmethod
    def resume(cls, training: Task, folder: Path) -> Evolution:
        """The learner of a run as it was when :meth:`save` wrote ``folder``; raises as :meth:`resumed`."""
        arguments = training.training_scenario, _settings(training), training.seed, folder
        return cls.resumed(*arguments, threads=_threads())

    @classmethod
    def resumed(
        cls, scenario: Scenario, settings: EvolutionSettings, seed: int, folder: Path, *, threads: int = 1
    ) -> Evolution:
        """As it was when :meth:`save` wrote ``folder``; the other arguments have to be the same as then.

        Raises:
            FileFormatError: what lies there is damaged, or of a network of another size.
        """
        path = folder / FILE
        stored = _read(path)
        try:
            learner = cls(scenario, settings, seed, threads=threads, stored=stored)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, LLMSchedError):
                raise
            problem = f"of another version, or damaged ({type(error).__name__}: {error})"
            raise FileFormatError(path, f"{problem}: begin the run again.") from error
        if learner.encoding.hidden != settings.hidden:
            raise FileFormatError(
                path,
                f"of another network: {learner.encoding.hidden} hidden units, the settings say {settings.hidden}.",
            )
        return learner

    def ends_at(self, timesteps: int) -> int:
        """As asked: how long a generation is shows when it is over."""
        return timesteps

    def learn(self, until: int, report: Callable[[], None]) -> None:
        """Evolve generations until ``timesteps`` reaches ``until``; ``report`` is called after each."""
        while self.timesteps < until:
            with threadpool_limits(1, "blas"):  # matrices this small only wait for other threads
                self._breed()
                if self.generation % TRIED_EVERY == 0:
                    self._try()
            report()

    def _breed(self) -> None:
        """One generation."""
        strategy = self._strategy
        candidates = [strategy.ask() for _ in range(strategy.population_size)]
        losses = self._losses(candidates, self._cases)
        strategy.tell(list(zip(candidates, losses.tolist(), strict=True)))
        self.generation += 1
        self._loss = float(losses.mean())

    def _try(self) -> None:
        """Play the whole pool under the strategy's mean, which wavers, and keep it if it is the best so far."""
        loss = float(self._losses([self._strategy.mean], len(self._evaluations) * self._settings.pool)[0])
        if loss < self._least:
            self._least, self._best = loss, self._strategy.mean.copy()

    def _losses(self, candidates: Sequence[Floats], count: int) -> Floats:
        """(candidates,): losses on so many cases, as shares of the rule's lest one size outweigh the others."""
        networks = self.encoding.networks(candidates)
        losses = np.zeros(len(networks))
        for evaluation, rule_loss in zip(self._evaluations, self._rule_losses, strict=True):
            each = min(count // len(self._evaluations), len(evaluation.cases))
            cases = self._draws.choice(len(evaluation.cases), each, replace=False).tolist()
            found, iterations = evaluation.losses(networks, cases)
            losses += found.mean(axis=1) / rule_loss / len(self._evaluations)
            self.timesteps += iterations
        return losses

    @property
    def _cases(self) -> int:
        """That a candidate of the next generation plays."""
        cases, growth = self._settings.cases, self._settings.growth
        return cases + (cases * self.generation // growth if growth else 0)

    @property
    def _sigma(self) -> float:
        return float(vars(self._strategy)["_sigma"])

    @property
    def numbers(self) -> Floats:
        """(size,): of the strategy's means that were tried, the best; before the first try its mean."""
        mean: Floats = self._strategy.mean
        return mean if math.isinf(self._least) else self._best

    def network(self) -> Network:
        """The network of these numbers."""
        return self.encoding.network(self.numbers)

    def policies(self) -> list[Policy]:
        """The network of the best numbers."""
        return [Agent.of("es", self.network(), self._scenario)]

    def figures(self) -> dict[str, float]:
        """Generations, step size, the mean loss of the last candidates, and that of the best mean; 1 is the rule's."""
        loss = {} if math.isnan(self._loss) else {"training_loss": self._loss}
        loss |= {} if math.isinf(self._least) else {"least_training_loss": self._least}
        return {"generation": float(self.generation), "sigma": self._sigma, **loss}

    def save(self, folder: Path) -> None:
        """Write the whole state as one file of plain arrays."""
        arrays: dict[str, Any] = {}
        scalars = {}
        for name, value in vars(self._strategy).items():
            if isinstance(value, np.ndarray):
                arrays[f"strategy/{name}"] = value
            elif name != "_rng":
                scalars[name] = value.item() if isinstance(value, np.generic) else value
        kind, keys, *rest = vars(self._strategy)["_rng"].get_state()
        arrays.update({"rng": keys, "mean": self.encoding.mean, "spread": self.encoding.spread, "best": self.numbers})
        state = {
            "strategy": scalars,
            "rng": [kind, *rest],
            "draws": self._draws.bit_generator.state,
            "encoding": {**self.encoding._asdict(), "mean": None, "spread": None},
            "timesteps": self.timesteps,
            "generation": self.generation,
            "loss": self._loss,
            "least": self._least,
            "cmaes": version("cmaes"),
        }
        arrays["said"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        with (folder / FILE).open("wb") as file:
            np.savez(file, **arrays)

    def _restore(self, stored: dict[str, Any], seed: int) -> None:
        state = json.loads(stored["said"].tobytes())
        if state["cmaes"] != version("cmaes"):
            raise ConfigError(
                f"the run was begun with cmaes {state['cmaes']}, this is {version('cmaes')}, whose state may mean "
                "something else: install the former, or begin the run again."
            )
        encoding = state["encoding"]
        for name in ("features", "base_values", "orders"):
            encoding[name] = tuple(encoding[name])
        self.encoding = Encoding(**{**encoding, "mean": stored["mean"], "spread": stored["spread"]})
        self._strategy = _strategy(np.zeros(self.encoding.size), self._settings, seed)
        arrays = {name.removeprefix("strategy/"): x for name, x in stored.items() if name.startswith("strategy/")}
        vars(self._strategy).update({**state["strategy"], **arrays})
        vars(self._strategy)["_rng"].set_state((state["rng"][0], stored["rng"], *state["rng"][1:]))
        self._draws.bit_generator.state = state["draws"]
        self.timesteps, self.generation, self._loss = state["timesteps"], state["generation"], state["loss"]
        self._least, self._best = state["least"], stored["best"]


FILE = "evolution.npz"

TRIED_EVERY = 20
"""Generations from one try of the strategy's mean on the whole pool to the next."""

MOST_THREADS = 8
"""More hardly help: a generation plays some dozens of cases."""


def _settings(training: Task) -> EvolutionSettings:
    values = {field.name: training.settings[field.name] for field in dataclasses.fields(EvolutionSettings)}
    lists = {name: tuple(values[name]) for name in ("features", "orders", "sizes")}
    return EvolutionSettings(**{**values, **lists})


def _sized(scenario: Scenario, size: float) -> Scenario:
    """The scenario with so many times the clients and the requests."""
    if size == 1:
        return scenario
    requests = build_problem(scenario, 0).num_requests
    return scenario.replace(
        num_clients=max(1, round(scenario.num_clients * size)),
        num_requests=max(1, round(requests * size)),
        assignment="lpt" if scenario.assignment == "mip" else scenario.assignment,
    )


def _threads() -> int:
    return min(MOST_THREADS, os.cpu_count() or 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy and zipfile raise whatever the damaged part raises
        raise FileFormatError(path, f"cannot be read ({type(error).__name__}: {error}).") from error


def _strategy(first: Floats, settings: EvolutionSettings, seed: int) -> Any:
    try:
        import cmaes
    except ImportError as error:
        raise MissingExtraError(
            "the evolution strategy needs cmaes: install the extra 'agents', pip install -e '.[agents]' from the clone."
        ) from error
    population = settings.population or 2 * (4 + int(3 * math.log(len(first))))
    kind = cmaes.CMA if settings.covariance == "full" else cmaes.SepCMA
    return kind(mean=first, sigma=settings.sigma, population_size=population, seed=seed)
