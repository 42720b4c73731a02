"""The requests of a recording in the simulator, under the settings of the engine that made it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmsched_env.agents.files import shipped
from llmsched_env.baselines.mixed import mixed_first
from llmsched_env.baselines.registry import BASELINES, Entry, entry
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, MeasuredCost, cost_model
from llmsched_env.engine import codes
from llmsched_env.engines.driver import policy_for
from llmsched_env.engines.recording import ITERATION, REQUEST, Recording, RecordingWarning, Settings
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.rollout import start
from llmsched_env.policy import Policy
from llmsched_env.progress import Progress
from llmsched_env.simulator import Simulator
from llmsched_env.workload.protocol import check_case
from llmsched_env.workload.requests import Requests

__all__ = ["ENGINES_OWN", "RecordedWorkload", "engine_entry", "replay", "scenario_of", "simulate"]

ENGINES_OWN = "engine"
"""The policy that does what the engine's own scheduler does."""

SIMULATOR = "llmsched-env"

OWN_BUDGET = ("vllm_v1", "sarathi_serve")
"""Systems that compose an iteration as the engine does, within a budget: here within that of the recording."""


@dataclass(frozen=True, eq=False)
class RecordedWorkload:
    """The requests of a recording: one case, the same in every split, times counted from its first iteration.

    What came before that iteration was waiting when the engine began: it is released then.
    """

    recording: Recording

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.recording.name

    def pool_size(self, split: str) -> int | None:
        """Always 1."""
        return 1

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests as they came.

        Raises:
            ConfigError: another case than 0, or another size than the recording's.
        """
        _, number = check_case(split, number)
        rows = self.recording.requests
        if number or num_requests not in (None, len(rows)):
            raise ConfigError(f"recording {self.name!r} is one case, 0, of {len(rows)} requests: ask for that.")
        release_ns = np.maximum(rows["arrival_ns"] - int(self.recording.iterations["start_ns"][0]), 0)
        return Requests.of(rows["prompt_tokens"], rows["output_tokens"], release_ns=release_ns)


def scenario_of(recording: Recording, cost: str | CostModel, **changes: Any) -> Scenario:
    """The scenario of a recording: its requests, and what bounded its iterations.

    Seats are clients, and the token budget bounds prompts and decodes of an iteration. The KV cache is a budget where
    the requests could fill it. Output lengths are hidden.

    Args:
        recording: what the engine did.
        cost: what iterations last.
        changes: other arguments of the scenario.
    """
    settings, model = recording.settings, cost_model(cost)
    arguments: dict[str, Any] = {
        "workload": RecordedWorkload(recording),
        "num_clients": settings.max_num_seqs,
        "cost": model,
        "prefill_token_cap": settings.token_budget,
        "queue": "shared",
        "order": "fcfs",
        "lengths": "hidden",
    }
    if settings.mixes:
        measured = isinstance(model, MeasuredCost) and model.mixed is not None
        arguments |= {
            "mixed_tokens": settings.token_budget,
            "mixed_counts_active": True,
            "mixed_cost": "fitted" if measured else "sum",
        }
    if _fills(recording):
        assert settings.num_blocks is not None
        block = settings.block_size or 1
        arguments |= {
            "kv_budget_tokens": settings.num_blocks * block,
            "kv_block_tokens": block,
            "kv_rule": "vllm_v1" if settings.mixes else "vllm_v0",
        }
    return Scenario(**{**arguments, **changes})


def _fills(recording: Recording) -> bool:
    """Whether the requests that can run at once may need more blocks than there are."""
    settings = recording.settings
    if settings.num_blocks is None:
        return False
    tokens = recording.requests["prompt_tokens"] + recording.requests["output_tokens"]
    blocks = np.sort(-(-tokens // (settings.block_size or 1)))[::-1]
    return int(blocks[: settings.max_num_seqs].sum()) > settings.num_blocks


def engine_entry(name: str, scenario: Scenario, parameters: Sequence[Any] = ()) -> Entry:
    """A policy by name, in a scenario that keeps the recording's settings.

    Args:
        name: of a policy (`llmsched_env.baselines.registry.entry`), or `ENGINES_OWN` for what the engine's own
            scheduler does: prompts beside decodes within the token budget, or prefills first where it never mixes.
        scenario: as :func:`scenario_of` makes it.
        parameters: the rule's numbers; () for its own.

    Raises:
        UnknownNameError: no such policy.
        ConfigError: one that makes no sense there, or does not take these parameters.
    """
    if parameters:
        made, composed = policy_for(name, scenario, parameters)
        return Entry(made.name, made.kind, made, composed)
    if name == ENGINES_OWN and not scenario.mixes:
        return entry("prefill_first", scenario)
    if scenario.mixes and name in (ENGINES_OWN, *OWN_BUDGET):
        policy = mixed_first(name)
        return Entry(policy.name, policy.kind, policy, scenario)
    return entry(name, scenario)


def replay(recording: Recording, cost: str | CostModel, policy: str | None = None, **changes: Any) -> Recording:
    """The requests of a recording in the simulator.

    Args:
        recording: what the engine did.
        cost: what iterations last.
        policy: who decides; ``None`` for who decided in the recording, with its parameters and SLOs, where that is a
            rule or an agent of this package, else the engine's own scheduler.
        changes: other arguments of the scenario.

    Returns:
        What the simulator does, as a recording with the same clock.

    Raises:
        UnknownNameError: no such policy.
        ConfigError: one that makes no sense there, or a scenario that cannot be.
        WorkloadError: requests that the KV cache does not hold.

    Warns:
        RecordingWarning: what the engine did and the simulator does not: cached prefixes, prompts that were read in
            parts under a policy that keeps prefills apart, a policy that is not played by name.
    """
    _warn_of_differences(recording)
    name, parameters = policy or _who_decided(recording), ()
    if policy is None and name == recording.decided_by:
        parameters, changes = recording.parameters, {**recording.arguments, **changes}
    item = engine_entry(name, scenario_of(recording, cost, **changes), parameters)
    begin_ns = int(recording.iterations["start_ns"][0])
    simulated = simulate(
        item.policy, item.scenario, settings=recording.settings, names=recording.names, from_ns=begin_ns,
        name=recording.name,
    )  # fmt: skip
    simulated.requests["arrival_ns"] = recording.requests["arrival_ns"]
    return simulated


def _who_decided(recording: Recording) -> str:
    """The policy that decided; the engine's own scheduler where that is none of this package.

    A file or a class is not loaded because a recording names it: that may run code.
    """
    who = recording.decided_by
    if who in BASELINES or who in shipped():
        return who
    if who != ENGINES_OWN and " " not in who:  # words are a scheduler of the engine's own
        warnings.warn(
            f"recording {recording.name!r}: {who!r} decided, which is no policy of llmsched-env, so the engine's own "
            f"scheduler plays. Give policy={who!r} to have it play.",
            RecordingWarning,
            stacklevel=3,
        )
    return ENGINES_OWN


def _warn_of_differences(recording: Recording) -> None:
    """Say what of this recording is not simulated."""
    prompts, read = recording.requests["prompt_tokens"], recording.iterations["prefill_tokens"]
    if recording.settings.prefix_caching and (cached := int(prompts.sum() - read.sum())) > 0:
        text = (
            f"{cached} of {int(prompts.sum())} prompt tokens were cached, and the simulator reads all of them. Record "
            "without prefix caching to compare."
        )
    elif not recording.settings.mixes and (parts := int((prompts > read.max()).sum())):
        text = (
            f"{parts} prompts are longer than any iteration: the engine read them in parts, and the simulator reads "
            "each at once. Record with a larger token budget to compare."
        )
    else:
        return
    warnings.warn(f"recording {recording.name!r}: {text}", RecordingWarning, stacklevel=3)


def simulate(
    policy: Policy,
    scenario: Scenario,
    case: int = 0,
    *,
    settings: Settings | None = None,
    names: tuple[str, ...] | None = None,
    from_ns: int = 0,
    name: str = "simulated",
) -> Recording:
    """An episode as a recording: what an engine that iterates as the simulator does would have written.

    Args:
        policy: who decides.
        scenario: with one shared queue; the KV cache, if it is limited, under vLLM's rules.
        case: its number.
        settings: what the recording says of them; ``None`` for those of the scenario.
        names: (n,) of the requests; ``None`` for their numbers.
        from_ns: when the episode begins.
        name: of the recording.

    Raises:
        ConfigError: client queues.
    """
    if scenario.queue != "shared":
        raise ConfigError(f"queue = {scenario.queue!r} of a recording: engines have one queue; take queue='shared'.")
    simulator = Simulator(build_problem(scenario, case), record=True)
    policy.reset(start(policy, scenario, simulator, 0))
    n = simulator.problem.num_requests
    by_position = simulator.problem.request_of
    prompts, outputs, release = np.empty(n, np.int64), np.empty(n, np.int64), simulator.problem.release_ns
    prompts[by_position] = simulator.problem.requests[:, codes.PROMPT]
    outputs[by_position] = simulator.problem.requests[:, codes.OUTPUT]
    rows = []
    emitted = simulator.emitted.astype(np.int64)
    with Progress(total=n, desc="simulating", unit="request", after_s=2.0) as bar:
        while not simulator.done:
            view = simulator.view
            action = int(policy.act(view)) if simulator.has_choice else int(simulator.can_prefill)
            if not simulator.can_prefill and not simulator.can_decode:  # a chunked prompt is all there is
                action = scenario.num_actions - 1
            kind = int(simulator.problem.data.kinds[action])
            tokens = (0, int(view.batch_tokens), int(view.chunk_tokens))[kind]
            running = _running(simulator)
            start_ns, done = int(view.clock_ns), int(view.completed)
            simulator.step(action)
            after = simulator.emitted.astype(np.int64)
            decoded = running & (after > emitted)
            read = int(np.count_nonzero((after > emitted) & ~running)) + int(tokens > 0 and view.reading_tokens > 0)
            context = int((prompts + emitted - 1)[decoded].sum())
            end_ns = int(simulator.log["end_ns"][-1])
            rows.append((start_ns + from_ns, end_ns - start_ns, read, tokens, int(decoded.sum()), context))
            emitted = after
            bar.update(int(view.completed) - done)
    requests = np.zeros(n, REQUEST)
    served = simulator.served
    requests["arrival_ns"] = release + from_ns
    requests["prompt_tokens"], requests["output_tokens"] = prompts, outputs
    requests["first_token_ns"] = served["first_token_ns"] + from_ns
    requests["finished_ns"] = served["completion_ns"] + from_ns
    bounds = settings or Settings(
        scenario.num_clients,
        scenario.mixed_tokens or scenario.cost_model.prefill_token_cap,
        scenario.kv_block_tokens if scenario.kv_limited else None,
        None if scenario.kv_budget_tokens is None else scenario.kv_budget_tokens // scenario.kv_block_tokens,
        mixes=scenario.mixes,
    )
    shown = names or tuple(map(str, range(n)))
    iterations = np.array(rows, ITERATION)
    return Recording(iterations, requests, shown, bounds, SIMULATOR, "0", policy.name, name)


def _running(simulator: Simulator) -> Any:
    """(n,) who decodes, by request number."""
    running = np.zeros(simulator.problem.num_requests, bool)
    positions = np.asarray(simulator.episode.clients)[:, codes.RUNNING]
    running[simulator.problem.request_of[positions[positions >= 0]]] = True
    return running
