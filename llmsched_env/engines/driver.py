"""What an adapter of any engine needs: the view kept from events, and a policy asked for the next iteration.

An adapter tells a `Driver` what happens: :meth:`Driver.arrive`, :meth:`Driver.ran`, :meth:`Driver.finish`. Before an
iteration it asks :meth:`Driver.decide`, which answers with a `Plan`: which requests to read, whether to decode, how
many prompt tokens. What the engine then really does is what it reports; it need not be the plan.

The state is that of the simulator (`llmsched_env.engine.live`): a field of the view means the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, TypeVar

import numpy as np

from llmsched_env.actions import action_number, actions_of
from llmsched_env.baselines.registry import BASELINES, entry
from llmsched_env.config import KEYED_ORDERS, Scenario
from llmsched_env.config.checks import MAX_KV_TOKENS
from llmsched_env.engine import codes
from llmsched_env.engine.live import NEVER, Live
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.errors import ConfigError, InvalidActionError, LLMSchedError
from llmsched_env.policy import EpisodeContext, Policy, View, check_policy
from llmsched_env.problem import Problem
from llmsched_env.workload import Requests
from llmsched_env.workload.requests import MAX_TOKENS

__all__ = ["Driver", "Memory", "Plan", "Ran", "policy_for"]

ROOM = 4096
"""Requests that a table holds; a larger one follows where more wait."""

KINDS = ("decode", "prefill", "mixed")

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Memory:
    """The KV cache of an engine that admits and preempts as vLLM V1 does.

    Attributes:
        tokens: that it holds.
        block_tokens: that are allocated at a time.
        watermark: share of it that an admission leaves free.
    """

    tokens: int
    block_tokens: int = 16
    watermark: float = 0.0

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of a scenario."""
        return {
            "kv_budget_tokens": self.tokens,
            "kv_block_tokens": self.block_tokens,
            "kv_watermark": self.watermark,
            "kv_rule": "vllm_v1",
        }


@dataclass(frozen=True)
class Plan(Generic[Key]):
    """The next iteration.

    Attributes:
        action: of the policy's action table (`llmsched_env.actions`).
        name: what the table calls it.
        kind: "decode", "prefill" or "mixed".
        decodes: whether every active request has a token of it.
        reads: whose prompts are read, in this order: key, and tokens of each. Where memory or a cached prefix says
            otherwise, an engine reads fewer.
        expected_ns: what it lasts by the cost model, in ns.
        asked: whether the policy had a choice.
    """

    action: int
    name: str
    kind: str
    decodes: bool
    reads: tuple[tuple[Key, int], ...]
    expected_ns: int
    asked: bool

    @property
    def tokens(self) -> int:
        """Prompt tokens that it reads."""
        return sum(tokens for _, tokens in self.reads)


@dataclass(frozen=True)
class Ran(Generic[Key]):
    """What an engine did in an iteration.

    Attributes:
        decodes: whether the active requests had a token.
        reads: key, tokens read, and tokens left to read of each; the one that was partly read before comes first, one
            that is partly read now last.
        preempted: keys, in the order in which they gave way, before it began.
        mixed: whether it counts as mixed though nobody decoded.
    """

    decodes: bool
    reads: Sequence[tuple[Key, int, int]] = ()
    preempted: Sequence[Key] = ()
    mixed: bool = False


def policy_for(policy: str | Policy, scenario: Scenario, parameters: Sequence[Any] = ()) -> tuple[Policy, Scenario]:
    """A policy for an engine, and the scenario as it has it: a system that mixes composes its own iterations.

    Args:
        policy: a rule's name, the name or the .npz file of an agent, ``module:Class``, or a policy.
        scenario: what is known of the engine.
        parameters: the rule's numbers, in the order of its factory.

    Raises:
        UnknownNameError: no such name.
        ConfigError: a policy that wants what no engine knows, that makes no sense in the scenario, or that does not
            take these parameters.
        PathError: a file that cannot be read.
        FileFormatError: a file that is no agent.
    """
    if not isinstance(policy, str):
        check_policy(policy)
        if parameters:
            raise ConfigError(
                f"parameters = {list(parameters)!r} with a policy that is made: give them to its factory."
            )
        found = policy
    else:
        item = entry(policy, scenario)
        found, composed = item.policy, item.scenario
        if not found.clairvoyant:
            scenario = composed
        if parameters:
            found = _with_numbers(policy, parameters)
    wants = "the true output lengths" if found.clairvoyant else "futures of the running episode"
    if found.clairvoyant or getattr(found, "plans", False):
        raise ConfigError(
            f"policy {found.name!r} plans with {wants}, which no engine knows while it serves: take a rule "
            "('deadline', 'lagrangian', ...) or an agent."
        )
    if scenario.queue != "shared":
        raise ConfigError(
            f"policy {found.name!r} is made for queues of the clients' own, and an engine has one shared queue: take a "
            "rule or an agent for queue='shared'."
        )
    return found, scenario


def _with_numbers(name: str, parameters: Sequence[Any]) -> Policy:
    if name not in BASELINES:
        raise ConfigError(f"parameters = {list(parameters)!r} with policy {name!r}: only rules by name take numbers.")
    for value in parameters:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"policy {name!r} does not take {value!r} among its parameters: give finite numbers.")
    factory: Any = BASELINES[name]
    try:
        made: Policy = factory(*parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"policy {name!r} does not take parameters = {list(parameters)!r}: {str(error).rstrip('.')}."
        ) from error
    return made


def _check(scenario: Scenario) -> None:
    """Raise where a scenario knows more than an engine, or orders by what it does not know.

    Raises:
        ConfigError: it does.
    """
    if scenario.lengths == "predicted":
        raise ConfigError(
            "lengths = 'predicted': an engine's requests come without predictions. Take 'hidden', or 'known' where "
            "every request ends at its limit of output tokens."
        )
    if scenario.kv_limited and scenario.kv_rule != "vllm_v1":
        raise ConfigError(
            f"kv_rule = {scenario.kv_rule!r}: the engine decides who gives way, as vLLM V1 does. Set kv_rule='vllm_v1'."
        )
    if scenario.mixed_within_slack:
        raise ConfigError(
            "mixed_within_slack = True: an engine composes its iterations within one token budget, and is not told "
            "another one for each. Leave it out, or take policy 'sarathi_serve' or 'mixed_first'."
        )
    if scenario.order in KEYED_ORDERS:
        raise ConfigError(
            f"order = {scenario.order!r}: orders by a key are not kept for arriving requests. Take order='fcfs' or "
            "'late_last'."
        )
    by_length = scenario.choose_order or scenario.order not in ("fcfs", "late_last")
    if scenario.lengths == "known" and by_length:
        raise ConfigError(
            f"order = {scenario.order!r}, choose_order = {scenario.choose_order} with lengths = 'known': orders by "
            "length are not kept for arriving requests. Take order='fcfs' or 'late_last', or lengths='hidden', where "
            "equal estimates go by arrival."
        )


def _checked_mean(tokens: float) -> float:
    """Mean output tokens, as a number that requests can have.

    Raises:
        ConfigError: no such number.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, Real) or not 1 <= tokens <= MAX_TOKENS:
        raise ConfigError(f"mean_output_tokens = {tokens!r}: give a number in [1, {MAX_TOKENS}], or leave it out.")
    return float(tokens)


class Driver(Generic[Key]):
    """Keeps the view of a running engine, and asks a policy for each iteration.

    Requests go by keys of the engine's own. Times are ns of any clock that does not go back; the engine's begin is 0.

    Args:
        policy: a rule's name, an agent's name or file, ``module:Class``, or a policy.
        scenario: seats (``num_clients``), cost model, SLOs and mixed iterations of the engine; one shared queue.
        parameters: the rule's numbers.
        mean_output_tokens: of the requests to come; ``None`` for the mean of the scenario's workload. With
            ``lengths="hidden"`` it is every request's estimate.
        longest_tokens: most prompt and output tokens of a request.
        memory: the KV cache, where the scenario shows policies none; ``None`` where it is no limit.
        virtual: whether the clock is moved by the cost model, and not by the caller.

    Attributes:
        policy: that decides.
        scenario: as the policy has it.
        clock_ns: of the last event.

    Raises:
        ConfigError: a policy that wants what an engine cannot know, or a scenario that no engine has.
        UnknownNameError: no such policy.
    """

    def __init__(
        self,
        policy: str | Policy,
        scenario: Scenario,
        *,
        parameters: Sequence[Any] = (),
        mean_output_tokens: float | None = None,
        longest_tokens: int = 2**17,
        memory: Memory | None = None,
        virtual: bool = False,
    ) -> None:
        self.policy, self.scenario = policy_for(policy, scenario, parameters)
        _check(self.scenario)
        if mean_output_tokens is None:
            source = scenario.source
            mean_output_tokens = source.requests(scenario.split, 0, num_requests=1).mean_output_tokens
        self.mean_output_tokens = _checked_mean(mean_output_tokens)
        self.virtual = virtual
        self.clock_ns = 0
        self._longest = longest_tokens
        self._tracked = self.scenario
        if not self.scenario.kv_limited:
            self._tracked = self.scenario.replace(**(memory or Memory(MAX_KV_TOKENS, 1)).arguments)
        self._actions = actions_of(self.scenario)
        self._live = self._table(ROOM)
        self._number: dict[Key, int] = {}
        self._key: dict[int, Key] = {}
        try:
            self.policy.reset(EpisodeContext(self.scenario, self.mean_output_tokens))
        except LLMSchedError:
            raise
        except Exception as error:  # whatever a user's policy raises
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(f"policy {self.policy.name!r} cannot begin: its reset raised {told}.") from error

    def _table(self, room: int) -> Live:
        """An empty table for so many requests."""
        scenario = self._tracked
        one = Problem.build(
            Requests.of([1], [1]),
            np.ones(1, np.int32),
            scenario.cost_model,
            scenario.num_clients,
            client_of=None,
            order=scenario.order,
            stealing=False,
            bound_ns=1,
            mechanisms=scenario.mechanisms(0, 1),
        )
        rows = np.ones((room, codes.REQUEST_COLUMNS), np.int32)
        rows[:, codes.OUTPUT] = self._longest
        rows[:, codes.QUEUE] = 0
        named = {**one.data.made_of[1], "mean_output_tokens": self.mean_output_tokens}
        numbers = np.arange(room, dtype=np.int32)
        if named["ranking"] is not None:  # estimates are equal, and go by arrival
            named["ranking"] = np.repeat(numbers[:, None], 2 * codes.RANKINGS, axis=1)
        data = ProblemData(rows, np.full(room, NEVER), numbers, scenario.num_clients, **named)
        return Live(data, one.options, self.scenario.kv_limited)

    @property
    def shown(self) -> View:
        """The view of the last :meth:`look` or :meth:`decide`, updated in place; read-only."""
        return self._live.shown

    # What happens.

    def arrive(self, key: Key, prompt_tokens: int, at_ns: int, most_tokens: int | None = None) -> None:
        """A request is there.

        Args:
            key: of the request.
            prompt_tokens: of it.
            at_ns: when it came; waiting times count from then.
            most_tokens: its limit of output tokens: the estimate where ``lengths="known"``.

        Raises:
            ConfigError: a request of this key is there; a limit that is needed is not given.
        """
        if key in self._number:
            raise ConfigError(f"request {key!r} is there already: finish it first, or give another key.")
        estimate = max(1, round(self.mean_output_tokens))
        if self.scenario.lengths == "known":
            if most_tokens is None:
                raise ConfigError(f"request {key!r} has no limit of output tokens, and lengths = 'known' reads it.")
            estimate = most_tokens
        if self._live.full():
            self._grow()
        if not self.virtual:
            self.clock_ns = max(self.clock_ns, at_ns)
        number = self._live.arrive(prompt_tokens, min(estimate, self._longest), min(at_ns, self.clock_ns))
        self._number[key] = number
        self._key[number] = key

    def _grow(self) -> None:
        """Go on in a table with room."""
        room = ROOM
        while room < 4 * len(self._number):
            room *= 2
        other = self._table(room)
        moved = self._live.move_into(other)
        self._key = {moved[old]: key for old, key in self._key.items() if old in moved}
        self._number = {key: number for number, key in self._key.items()}
        self._live = other

    def decide(self, now_ns: int = 0) -> Plan[Key] | None:
        """What to run now; ``None`` where nobody waits or decodes.

        Args:
            now_ns: the time; ignored by a virtual clock.

        Raises:
            Exception: whatever the policy raises, InvalidActionError where its answer is no action. :meth:`ran` may be
                called all the same, with what the engine does instead.
        """
        view = self.look(now_ns)
        action = self._live.forced_action()
        if action < 0:
            return None
        asked = self._live.offers_choice()
        if asked:
            answer = self.policy.act(view)
            action = self._checked(answer)
        return self.plan(action, asked=asked)

    def _checked(self, answer: object) -> int:
        try:
            return self._live.feasible_action(action_number(answer, [one.name for one in self._actions]))
        except InvalidActionError as error:
            raise InvalidActionError(f"policy {self.policy.name!r}: {error}") from None

    def plan(self, action: int, *, asked: bool = False) -> Plan[Key]:
        """What a feasible action would run now."""
        kind = self._actions[action].kind
        rows = () if kind == codes.DECODE else self._live.rows(action)
        decodes = kind != codes.PREFILL and self._live.view.active > 0
        expected = self._live.planned_ns(action) if rows else int(self._live.view.decode_ns)
        reads = tuple((self._key[number], tokens) for number, tokens in rows)
        return Plan(action, self._actions[action].name, KINDS[kind], decodes, reads, expected, asked)

    def look(self, now_ns: int = 0) -> View:
        """The view as the policy may see it, updated in place; read-only."""
        if not self.virtual:
            self.clock_ns = max(self.clock_ns, now_ns)
        return self._live.look(self.clock_ns)

    def wait_until(self, at_ns: int) -> None:
        """Let a virtual clock go on to a time where nothing is left to do before."""
        self.clock_ns = max(self.clock_ns, at_ns)

    def ran(self, done: Ran[Key], now_ns: int = 0) -> int:
        """An iteration has ended, which began at the last :meth:`decide` or :meth:`look`.

        Args:
            done: what it was.
            now_ns: the time; a virtual clock goes on by what the cost model says.

        Returns:
            What the cost model says that it lasts, in ns; 0 where nothing ran.

        Raises:
            ValueError: two requests are partly read at once, or more are read than there are seats.
        """
        number = self._number
        rows = [(number[key], tokens, left) for key, tokens, left in done.reads]
        kind = codes.MIXED if done.mixed else -1
        gone = [number[key] for key in done.preempted if key in number]
        self._live.passed(-1 if self.virtual else now_ns, done.decodes, rows, gone, kind)
        expected = int(self._live.expected_ns)
        self.clock_ns = self.clock_ns + expected if self.virtual else max(self.clock_ns, now_ns)
        return expected

    def finish(self, key: Key) -> None:
        """A request is complete, or was aborted; one that is not there is passed over. Not while an iteration runs."""
        number = self._number.pop(key, None)
        if number is None:
            return
        del self._key[number]
        if self._live.unseen(number):
            self._live.look(self.clock_ns)
        self._live.ended(number)
