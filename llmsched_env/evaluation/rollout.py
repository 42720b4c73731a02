"""Running policies over cases: whole episodes in compiled code where a policy can, one decision at a time otherwise."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.actions import action_number
from llmsched_env.cases import build_problem
from llmsched_env.config import MAX_SEED, Scenario, whole
from llmsched_env.errors import ConfigError, InvalidActionError, UnknownFieldError, UnknownNameError
from llmsched_env.evaluation.parallel import Rows, Sharing, measure_in_chunks
from llmsched_env.evaluation.statistics import Estimate, mean_estimate, share_estimate
from llmsched_env.metrics import EPISODE_METRICS, SERVING_METRICS, final_metrics, serving_metrics
from llmsched_env.policy import EpisodeContext, Policy, check_policy
from llmsched_env.simulator import Futures, Simulator

__all__ = [
    "CoverageWarning",
    "Evaluation",
    "HorizonWarning",
    "begin",
    "case_numbers",
    "check_scenario",
    "choice_awaits",
    "decision_times",
    "evaluate",
    "left_range",
    "play",
    "play_on",
    "start",
    "take",
    "taken",
]

MOST_CASES = 10**9
"""In one study."""

SIDE_BY_SIDE = 64
"""Episodes that a policy with a method ``together`` is asked about at once, at most: they are all in memory."""

BOUNDS = ("bound_s", "lb1_s")

SHARES = ("utilization", "prefill_share", "decode_share", "bubble_share", "goodput", "ttft_met", "tpot_met")
"""Metrics that lie in [0, 1]."""


class CoverageWarning(UserWarning):
    """A simulation left the range of iterations that its cost model was fitted on."""


class HorizonWarning(UserWarning):
    """Episodes ended at ``max_iterations``, before their last request was complete: they have no makespan."""


@dataclass(frozen=True)
class Evaluation:
    """What one policy did on some cases of one scenario.

    Attributes:
        policy: the policy's name.
        kind: "method", "rule", "planner" or "agent".
        clairvoyant: whether true output lengths were there to see, for the queues or for the policy.
        scenario: where.
        cases: (cases,) case numbers.
        columns: a (cases,) array a metric: those of `EPISODE_METRICS`, ``bound_s`` (the best lower bound that holds),
            ``lb1_s`` (what rewards are scaled by), and with SLOs those of `SERVING_METRICS`.
        outside: how an episode left the range of iterations that the cost model was fitted on; ``None`` where none did.
    """

    policy: str
    kind: str
    clairvoyant: bool
    scenario: Scenario
    cases: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    outside: str | None = None

    def estimate(self, metric: str) -> Estimate:
        """Mean over the cases with its 95 % confidence interval, which for a share stays within 0 and 1.

        Raises:
            UnknownNameError: no such metric.
        """
        if metric not in self.columns:
            raise UnknownNameError("metric", metric, self.columns)
        return (share_estimate if metric in SHARES else mean_estimate)(self.columns[metric])


def case_numbers(cases: int | Iterable[int]) -> NDArray[np.int64]:
    """Case numbers from a count (the first N) or a sequence of numbers.

    Raises:
        ConfigError: none, or a negative, fractional or repeated number.
    """
    try:
        if isinstance(cases, int | np.integer):
            numbers = np.arange(whole("cases", cases, -MOST_CASES, MOST_CASES))
        else:
            numbers = np.array([whole("case number", x, -(2**63), 2**63 - 1) for x in cases])
    except TypeError:
        raise ConfigError(f"cases = {cases!r} is not a whole number, and not case numbers.") from None
    if not len(numbers):
        raise ConfigError(f"cases = {cases!r} names no case: give a count of at least 1, or case numbers.")
    if numbers.min() < 0 or len(np.unique(numbers)) < len(numbers):
        raise ConfigError(f"cases = {cases!r}: case numbers start at 0 and appear once each.")
    return numbers.astype(np.int64)


def episode_seed(seed: int, case: int) -> int:
    """The seed that a policy is given for one case: repeatable, and no hint at which case it is."""
    return int(np.random.SeedSequence([seed, case]).generate_state(1, np.uint64)[0])


def start(policy: Policy, scenario: Scenario, simulator: Simulator, seed: int) -> EpisodeContext:
    """What ``policy`` is told at the start of this episode: the simulator only where it is marked clairvoyant."""
    mean = float(simulator.view.mean_output_tokens)
    futures = Futures(simulator, known=scenario.shows_lengths) if getattr(policy, "plans", False) else None
    return EpisodeContext(
        scenario, mean, seed, simulator if policy.clairvoyant else None, futures, simulator.problem.planned
    )


def begin(policy: Policy, env: Any, *, seed: int = 0) -> None:
    """Begin the episode that an environment is in, for a policy that is then asked step by step.

    After ``env.reset()``: ``begin(policy, env)``, then ``policy.act(env.unwrapped.simulator.view)`` before each step.

    Args:
        policy: any policy.
        env: made by ``gymnasium.make``, wrapped or not.
        seed: for policies that draw random numbers.

    Raises:
        ConfigError: not a policy.
        EpisodeOverError: before the environment's first reset.
    """
    check_policy(policy)
    policy.reset(start(policy, env.unwrapped.scenario, env.unwrapped.simulator, seed))


def play(
    policy: Policy,
    scenario: Scenario,
    case: int,
    *,
    seed: int = 0,
    record: bool = False,
    client_of: ArrayLike | None = None,
) -> Simulator:
    """Run one episode to its end and return it.

    A policy with a method ``compiled`` runs inside the engine; one without is asked wherever there is a choice.

    Args:
        policy: any object of the `Policy` protocol.
        scenario: where.
        case: its number.
        seed: for policies that draw random numbers.
        record: keep every iteration and the times of every request.
        client_of: (n,) queue of each request, in place of the scenario's assignment.

    Raises:
        ConfigError: not a policy, not a case number, or not an assignment.
    """
    check_policy(policy)
    if client_of is not None and getattr(policy, "brings_queues", False):
        raise ConfigError(
            f"policy {policy.name!r} is a method with queues of its own, and client_of gives others: leave out "
            "client_of, or play a rule."
        )
    simulator = Simulator(build_problem(scenario, case, client_of=client_of), record=record)
    play_on(policy, scenario, simulator, seed)
    return simulator


def play_on(policy: Policy, scenario: Scenario, simulator: Simulator, seed: int) -> None:
    """Let a policy begin where an episode is, and run it to the end."""
    context = start(policy, scenario, simulator, seed)
    compiled = getattr(policy, "compiled", None)
    if compiled is not None:
        simulator.run(compiled(context))
        return
    policy.reset(context)
    for _ in _decisions(policy, simulator):
        pass


def _played(
    policy: Policy, scenario: Scenario, cases: NDArray[np.int64], seed: int, record: bool
) -> Iterator[Simulator]:
    """The finished episodes of these cases, in their order."""
    together = getattr(policy, "together", None)
    for first in range(0, len(cases), SIDE_BY_SIDE):
        block = cases[first : first + SIDE_BY_SIDE].tolist()
        if together is None:
            yield from (play(policy, scenario, case, seed=episode_seed(seed, case), record=record) for case in block)
            continue
        simulators = [Simulator(build_problem(scenario, case), record=record) for case in block]
        decide = together(
            [
                start(policy, scenario, simulator, episode_seed(seed, case))
                for simulator, case in zip(simulators, block, strict=True)
            ]
        )
        running = list(range(len(block)))
        while running := [episode for episode in running if choice_awaits(simulators[episode])]:
            actions = decide(running, [simulators[episode].view for episode in running])
            if np.shape(actions) != (len(running),):
                raise InvalidActionError(
                    f"policy {policy.name!r} answered {actions!r} about {len(running)} episodes: one action each is "
                    "needed."
                )
            for episode, action in zip(running, actions, strict=True):
                take(policy, simulators[episode], action)
        yield from simulators


def _decisions(policy: Policy, simulator: Simulator, clock: Callable[[], int] = lambda: 0) -> Iterable[int]:
    while choice_awaits(simulator):
        before = clock()
        try:
            action = policy.act(simulator.view)
        except UnknownFieldError as error:
            error.args = (f"policy {policy.name!r}: {error}",)
            raise
        yield clock() - before
        take(policy, simulator, action)


def choice_awaits(simulator: Simulator) -> bool:
    """Go on through iterations that offer no choice; whether there is one before the end or the horizon."""
    horizon = simulator.problem.max_iterations
    while not simulator.done and not (horizon and simulator.view.prefills + simulator.view.decodes >= horizon):
        if simulator.has_choice:
            return True
        simulator.step(simulator.forced_action)
    return False


def take(policy: Policy, simulator: Simulator, action: Any) -> None:
    """Step by what a policy has answered.

    Raises:
        InvalidActionError: it is no action; names the policy.
    """
    simulator.step(taken(policy, simulator, action))


def taken(policy: Policy, simulator: Simulator, answer: Any) -> int:
    """The action that the engine takes for an answer; raises as :func:`take`."""
    try:
        action = action_number(answer, simulator.problem.action_names)
    except InvalidActionError as error:
        raise InvalidActionError(f"policy {policy.name!r}: {error}") from None
    return 1 if action == 0 and not simulator.can_decode else action


def evaluate(
    policy: Policy,
    scenario: Scenario,
    cases: int | Iterable[int] = 100,
    *,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    workers: int = 1,
    engine: str = "loky",
    chunk: int | None = None,
    folder: Path | str | None = None,
    key: str | None = None,
    latencies: bool = True,
) -> Evaluation:
    """Run ``policy`` on cases of ``scenario``: in this process, or shared among others, with the same results.

    With more than one worker, or a folder, cases are run in chunks, each on a fresh copy of the policy: what a policy
    keeps from one episode to the next is lost between chunks, and its side effects stay in the worker. That pays where
    a case takes long, as with a planner; compiled rules are done before the workers have started (docs/evaluation.md).

    Args:
        policy: any object of the `Policy` protocol.
        scenario: the scenario; its split says which pool of cases.
        cases: how many of the first cases, or which.
        seed: for policies that draw random numbers; each case is given one of its own.
        progress: called with a number of cases when they are done: 1 after each, or those of a chunk.
        workers: processes that share the cases; -1 for every core.
        engine: what runs them, by the name that joblib knows it by: "loky" on this machine, "ray" on a cluster.
        chunk: cases in a chunk; ``None`` for 10, or more where that would make more than 256 chunks.
        folder: where finished chunks are kept. The same call later reads them and runs only what is missing.
        key: stands for the policy in the names of its chunks, where its state and its sources do not tell it from
            another: change it whenever the policy changes.
        latencies: measure `SERVING_METRICS` too where there are SLOs. Without, episodes are not recorded, which is
            quicker; goodput and the mean TTFT and TPOT are there all the same.

    Raises:
        ConfigError: not a policy, no such cases, a negative seed, a number out of range, or a policy that cannot be
            copied or told apart.
        UnknownNameError: no such engine.
        MissingExtraError: the engine's library is not installed.
        WorkerError: a worker died. Finished chunks are kept, if there is a folder.
        PathError: the folder cannot be written.
    """
    check_policy(policy)
    check_scenario(scenario, "evaluate")
    numbers = case_numbers(cases)
    seed = whole("seed", seed, 0, MAX_SEED)
    sharing = Sharing(workers, engine, chunk, folder, key)
    if scenario.serving:
        build_problem(scenario, int(numbers[0]))  # what it warns of is said here, whoever runs the cases
    measure = _measure_latencies if latencies and scenario.serving else _measure
    if sharing.plain:
        rows = measure(policy, scenario, numbers, seed, progress)
    else:
        rows = measure_in_chunks(measure, policy, scenario, numbers, seed, sharing, progress)
    if rows.outside is not None:
        warnings.warn(f"{policy.name}: {rows.outside}", CoverageWarning, stacklevel=2)
    cut = int(np.isnan(rows.columns["makespan_s"]).sum())
    if cut and scenario.max_iterations is not None:
        warnings.warn(
            f"{policy.name}: {cut} of {len(numbers)} episodes ended at max_iterations = {scenario.max_iterations}, "
            "before their last request was complete: their makespan is NaN, and with it the mean. To judge a policy, "
            "leave max_iterations out.",
            HorizonWarning,
            stacklevel=2,
        )
    clairvoyant = policy.clairvoyant or scenario.shows_lengths
    return Evaluation(policy.name, policy.kind, clairvoyant, scenario, numbers, rows.columns, rows.outside)


def check_scenario(given: object, who: str) -> None:
    """Whether something is a scenario.

    Args:
        given: what is to be one.
        who: takes it, for the message.

    Raises:
        ConfigError: it is none; says how to make one.
    """
    if isinstance(given, Scenario):
        return
    if hasattr(given, "unwrapped"):  # an environment of Gymnasium
        raise ConfigError(
            f"{given!r} is an environment, and {who} takes the scenario of one: give env.unwrapped.scenario. It "
            "plays whole episodes itself; what a wrapper changes (a time limit, say) does not count."
        )
    if isinstance(given, str):
        raise ConfigError(f"{given!r} is not a Scenario: llmsched_env.make_scenario({given!r}) makes one of an id.")
    raise ConfigError(f"{given!r} is not a Scenario: make one with Scenario(...).")


def _measure(
    policy: Policy, scenario: Scenario, cases: NDArray[np.int64], seed: int, progress: Callable[[int], Any] | None
) -> Rows:
    """Whole episodes of these cases, one after another."""
    return _rows(_metrics, (*EPISODE_METRICS, *BOUNDS), policy, scenario, cases, seed, progress)


def _measure_latencies(
    policy: Policy, scenario: Scenario, cases: NDArray[np.int64], seed: int, progress: Callable[[int], Any] | None
) -> Rows:
    """The same, recorded."""
    names = dict.fromkeys((*EPISODE_METRICS, *BOUNDS, *SERVING_METRICS))
    assert scenario.ttft_s is not None
    assert scenario.tpot_s is not None
    ttft_s, tpot_s = scenario.ttft_s, scenario.tpot_s

    def metrics(simulator: Simulator) -> dict[str, Any]:
        counted = scenario.slo(simulator.problem.num_requests)
        assert counted is not None
        latencies = serving_metrics(simulator, ttft_s=ttft_s, tpot_s=tpot_s, first=counted.first, last=counted.last)
        return {**_metrics(simulator), **latencies}

    return _rows(metrics, tuple(names), policy, scenario, cases, seed, progress, record=True)


def _metrics(simulator: Simulator) -> dict[str, Any]:
    return {**final_metrics(simulator), "lb1_s": simulator.problem.lb1_ns / 1e9}


def _rows(
    measure: Callable[[Simulator], dict[str, Any]],
    names: Sequence[str],
    policy: Policy,
    scenario: Scenario,
    cases: NDArray[np.int64],
    seed: int,
    progress: Callable[[int], Any] | None,
    *,
    record: bool = False,
) -> Rows:
    columns = {name: np.empty(len(cases)) for name in names}
    outside: str | None = None
    for row, simulator in enumerate(_played(policy, scenario, cases, seed, record)):
        metrics = measure(simulator)
        for name in names:
            columns[name][row] = metrics[name]
        outside = outside or left_range(scenario, simulator)
        if progress is not None:
            progress(1)
    return Rows(columns, outside)


def left_range(scenario: Scenario, simulator: Simulator) -> str | None:
    """How an episode left the range of iterations that its cost model was fitted on; ``None`` where it did not."""
    totals = simulator.totals
    if not totals.max_batch_tokens:
        return None
    return scenario.cost_model.outside_coverage(
        int(totals.min_batch_tokens),
        int(totals.max_batch_tokens),
        int(totals.min_active),
        int(totals.max_active),
    )


def decision_times(
    policy: Policy, scenario: Scenario, cases: Sequence[int] = (0,), *, seed: int = 0
) -> NDArray[np.int64]:
    """(decisions,) ns: how long ``policy.act`` took, asked one decision at a time from Python on these cases."""
    check_policy(policy)
    times: list[int] = []
    first = Simulator(build_problem(scenario, int(cases[0])))  # code is compiled or loaded before the clock runs
    policy.reset(start(policy, scenario, first, episode_seed(seed, int(cases[0]))))
    next(iter(_decisions(policy, first)), None)
    for case in cases:
        simulator = Simulator(build_problem(scenario, int(case)))
        policy.reset(start(policy, scenario, simulator, episode_seed(seed, int(case))))
        times.extend(_decisions(policy, simulator, time.perf_counter_ns))
    return np.array(times, np.int64)
