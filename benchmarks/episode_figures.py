"""Figures of whole episodes, and what their cost depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from building import compiled
from episodes import Episodes
from kernels import plain_episode
from measuring import Figure, repeat

from llmsched_env.baselines.iteration import threshold
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS, CostModel
from llmsched_env.engine.codes import OUTPUT, PROMPT
from llmsched_env.engine.rule import Rule
from llmsched_env.policy import EpisodeContext
from llmsched_env.problem import Problem
from llmsched_env.workload import Requests

__all__ = ["ScalingPoint", "episode_figures", "scaling_figures", "scaling_points"]

IDLE_CLIENTS = 14
TARGET_M_PER_S, TARGET_OBSERVED_M_PER_S = 50.0, 25.0
SIZES = (50, 100, 200, 500, 1_000, 2_000, 5_000)
REQUESTS_PER_CLIENT = 7
DECODES = "a decode in which nothing ends"
FLAT = 1.5
"""Below this factor two figures count as equal on a shared machine."""

QUEUES: dict[str, dict[str, Any]] = {
    "shared queue, longest first": {"queue": "shared", "order": "longest_first"},
    "shared queue, FCFS": {"queue": "shared", "order": "fcfs"},
    "client queues with stealing": {"queue": "client"},
}
LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}


def _rule(clients: int = 200) -> Rule:
    idle_clients = max(1, round(IDLE_CLIENTS * clients / 200))
    return threshold(idle_clients).compiled(EpisodeContext(Scenario(), 1.0))


def _plain_arguments(case: Problem, cost: CostModel) -> tuple[Any, ...]:
    prices = (cost.alpha_prefill_ns, cost.beta_prefill_ns, cost.alpha_decode_ns, cost.beta_decode_ns)
    prompts, outputs = (case.requests[:, column].astype(np.int64) for column in (PROMPT, OUTPUT))
    ring = np.zeros(case.data.ring_mask + 1, np.int64)
    return prompts, outputs, ring, case.num_clients, IDLE_CLIENTS, cost.prefill_token_cap, prices


def _as_lists(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.tolist() if isinstance(value, np.ndarray) else value for value in arguments)


def episode_figures(*, cases: int, repeats: int) -> Iterator[Figure]:
    """Iterations per second of whole episodes, resets included, beside the plain simulator as Python and compiled.

    Raises:
        AssertionError: the plain simulator and the engine disagree on a makespan.
    """
    compiled_plain = compiled().plain_episode
    for workload, lengths in LENGTHS.items():
        for queues, changes in QUEUES.items():
            section = f"Whole episodes, threshold rule, {lengths} lengths (1,319 requests, 200 clients)"
            scenario = Scenario(workload=workload, split="test", **changes)
            problems = [build_problem(scenario, number) for number in range(cases)]
            episodes, rule = Episodes(problems), _rule()
            iterations = episodes.run(rule)
            if changes["queue"] == "client":
                run, observed = repeat(
                    lambda e=episodes, r=rule: e.run(r), lambda e=episodes, r=rule: e.run_observed(r), repeats=repeats
                )
                yield Figure(section, queues, iterations / run.best_s / 1e6, "M iterations/s")
                rate = iterations / observed.best_s / 1e6
                yield Figure(section, f"{queues}, observation at each iteration", rate, "M iterations/s")
                continue
            arrays = [_plain_arguments(case, scenario.cost_model) for case in problems]
            lists = _as_lists(arrays[0])
            expected = [compiled_plain(*arguments) for arguments in arrays]
            assert [clock_ns for clock_ns, _ in expected] == episodes.clocks_ns(), "the two simulators disagree"
            assert plain_episode(*lists) == expected[0]

            def least(arrays: list[tuple[Any, ...]] = arrays) -> None:
                for arguments in arrays:
                    compiled_plain(*arguments)

            single = Episodes(problems[:1])
            single_iterations = single.run(rule)
            run, again, observed, reset, ceiling, python = repeat(
                lambda e=episodes, r=rule: e.run(r),
                lambda e=single, r=rule: [e.run(r) for _ in range(cases)],
                lambda e=episodes, r=rule: e.run_observed(r),
                lambda e=episodes: e.reset(),
                least,
                lambda arguments=lists: plain_episode(*arguments),
                repeats=repeats,
            )
            rate, python_rate = iterations / run.best_s / 1e6, expected[0][1] / python.best_s / 1e6
            least_rate = iterations / ceiling.best_s / 1e6
            unit = "M iterations/s"
            yield Figure(
                section, f"{queues}, {cases} cases in turn", rate, unit, python_rate, "plain Python", TARGET_M_PER_S
            )
            again_rate = single_iterations * cases / again.best_s / 1e6
            yield Figure(section, f"{queues}, one case again and again", again_rate, unit, rate, "cases in turn")
            yield Figure(
                section, f"{queues} (the same)", rate, unit, least_rate, "plain simulator, compiled: the ceiling"
            )
            yield Figure(
                section,
                f"{queues}, observation at each iteration",
                iterations / observed.best_s / 1e6,
                unit,
                rate,
                "without",
                TARGET_OBSERVED_M_PER_S,
            )
            yield Figure(
                section,
                f"{queues}, reset of an episode",
                reset.best_s / cases * 1e6,
                "µs",
                run.best_s / cases * 1e6,
                "reset and whole episode",
            )


class ScalingPoint(NamedTuple):
    """Cost of an episode at one size."""

    queues: str
    clients: int
    requests: int
    iterations: int
    steals: int
    seconds: float

    @property
    def iteration_ns(self) -> float:
        """Time of an iteration."""
        return self.seconds / self.iterations * 1e9

    @property
    def event_ns(self) -> float:
        """Time of an event: an iteration, or the start or the end of a request."""
        return self.seconds / (self.iterations + 2 * self.requests) * 1e9


def scaling_points(*, repeats: int) -> list[ScalingPoint]:
    """The threshold rule from 50 to 5,000 clients with 7 requests a client, and decodes in which nothing ends."""
    points = []
    kinds = {
        "shared queue": {"queue": "shared"},
        "client queues with stealing": {"queue": "client", "assignment": "lpt"},
    }
    for queues, changes in kinds.items():
        for clients in SIZES:
            scenario = Scenario(
                workload="gsm8k-smooth",
                split="test",
                num_clients=clients,
                num_requests=REQUESTS_PER_CLIENT * clients,
                **changes,
            )
            points.append(_point(queues, [build_problem(scenario, number) for number in range(2)], clients, repeats))
    for clients in SIZES:
        # Starts and ends are the same in both, so the difference is decodes and nothing else.
        short, long = (_point("", [_endless(clients, length)], clients, repeats) for length in (2048, 8192))
        points.append(
            ScalingPoint(DECODES, clients, 0, long.iterations - short.iterations, 0, long.seconds - short.seconds)
        )
    return points


def _point(queues: str, problems: list[Problem], clients: int, repeats: int) -> ScalingPoint:
    episodes, rule = Episodes(problems), _rule(clients)
    iterations = episodes.run(rule)
    steals = episodes.steals()
    run, reset = repeat(lambda: episodes.run(rule), episodes.reset, repeats=repeats)
    return ScalingPoint(queues, clients, episodes.requests, iterations, steals, run.best_s - reset.best_s)


def _endless(clients: int, length: int) -> Problem:
    """One request a client, all of the same length, all prefilled at once."""
    lengths = np.full(clients, length, np.int32)
    requests = Requests.of(np.ones(clients, np.int32), lengths)
    cost = PRESETS["llama-65b-paper"].with_cap(2**31 - 1)
    return Problem.build(
        requests, lengths, cost, clients, client_of=None, order="fcfs", stealing=False, bound_ns=10**12
    )


def scaling_figures(points: list[ScalingPoint]) -> Iterator[Figure]:
    """Largest against smallest."""
    section = f"From {SIZES[0]} to {SIZES[-1]:,} clients, {REQUESTS_PER_CLIENT} requests a client, smooth lengths"
    for queues in dict.fromkeys(point.queues for point in points):
        of_kind = [point for point in points if point.queues == queues]
        small, large = of_kind[0], of_kind[-1]
        yield Figure(
            section,
            f"{queues}: an iteration with {large.clients:,} clients" if queues != DECODES else queues,
            large.iteration_ns,
            "ns",
            small.iteration_ns,
            f"with {small.clients}",
            FLAT,
            "ratio",
            at_least=False,
        )
        if queues != DECODES:
            yield Figure(
                section,
                f"{queues}: an event (iteration, start or end of a request)",
                large.event_ns,
                "ns",
                small.event_ns,
                f"with {small.clients}",
                FLAT,
                "ratio",
                at_least=False,
            )
