"""A case as the engine reads it: laid out in queue order, checked, with an episode before its first iteration."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmsched_env.actions import Variants, action_table
from llmsched_env.config import KEYED_ORDERS, KV_RULES, REWARDS, SLO, KVCache, Mechanism, Mixed, Noise, World
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine import codes
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.features import feature_table
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.limits import check_clock, check_sum
from llmsched_env.offline.joint import JointPlan
from llmsched_env.orders import Known, queue_key
from llmsched_env.workload.requests import Requests

__all__ = ["Problem"]

Options = dict[str, dict[str, Any]]

MAX_UNITS = 2**28
"""Most different blocks that prompts of a case begin with: an episode keeps four bytes of each."""

_M = TypeVar("_M", bound=Mechanism)


@dataclass(frozen=True, eq=False)
class Problem:
    """One case as the engine reads it: read-only, built once, shared by every copy of an episode.

    Attributes:
        data: requests, clients, costs and actions.
        options: of each mechanism that is on, by its name in the engine.
        requests: (n, REQUEST_COLUMNS) int32 in queue order.
        release_ns: (n,) int64 in release order.
        request_of: (n,) int32: number of the request at each position.
        lb1_ns: LB1 in ns, what the rewards are scaled by; it stays as it is where a better bound is found.
        action_names: (num_actions,) what each action is called.
        planned: decodes before each prefill of the joint plan whose order the queue has; ``None`` without one.
    """

    data: ProblemData
    options: Options
    requests: NDArray[np.int32]
    release_ns: NDArray[np.int64]
    request_of: NDArray[np.int32]
    lb1_ns: int
    action_names: tuple[str, ...]
    planned: tuple[int, ...] | None = None

    @property
    def num_requests(self) -> int:
        """Requests of the case."""
        return len(self.request_of)

    @property
    def num_clients(self) -> int:
        """Clients J."""
        return int(self.data.num_clients)

    @property
    def num_actions(self) -> int:
        """Entries of the action table (`llmsched_env.actions`)."""
        return int(self.data.num_actions)

    @property
    def num_features(self) -> int:
        """Entries of an observation."""
        return len(feature_table("slo" in self.options, "kv" in self.options, bool(self.data.mixes)))

    @property
    def bound_ns(self) -> int:
        """The best lower bound on the makespan that holds, in ns: what gaps are to."""
        return int(self.data.bound_ns)

    @property
    def max_iterations(self) -> int:
        """Horizon, 0 for none."""
        return int(self.data.max_iterations)

    @property
    def nbytes(self) -> int:
        """About the memory that it takes, in bytes."""
        arrays = sum(int(array.nbytes) for array in (self.requests, self.release_ns, self.request_of))
        # Where iterations are noisy a second start is made, of the world as it is believed to be.
        return 4096 + arrays + (2 if self.noisy else 1) * self.episode_nbytes

    @property
    def episode_nbytes(self) -> int:
        """About what each of its episodes takes beside, in bytes: what depends on its size."""
        per_request = 8 + 12 * ("kv" in self.options) + 8 * ("slo" in self.options) + 20 * bool(self.data.ranked)
        kept = 0
        if self.options.get("kv", {}).get("prefix_caching"):
            kv = self.options["kv"]
            kept = 4 * self.data.num_nodes * (self.data.node_units + 3) + 20 * (kv["budget"] // kv["block"])
            per_request += 12
        return 64 * self.num_clients + 8 * int(self.data.ring_mask) + per_request * self.num_requests + int(kept)

    @property
    def noisy(self) -> bool:
        """Whether iterations last something else than schedulers believe."""
        return "noise" in self.options

    @cached_property
    def start(self) -> Episode:
        """An episode before its first iteration, which others are set back to; it is never advanced."""
        return self.episode()

    def episode(self, *, record: bool = False) -> Episode:
        """A new episode before its first iteration."""
        return Episode(self.data, self.options, record=record)

    def digest(self) -> str:
        """Content hash (hex) of everything that the course of an episode depends on."""
        h = hashlib.sha256()
        p = self.data
        for array in (self.requests, self.release_ns, self.request_of, p.kinds, p.orders, p.caps):
            h.update(np.ascontiguousarray(array).tobytes())
        world = (
            p.num_clients, bool(p.shared), bool(p.stealing), p.token_cap, p.mean_output_tokens, p.max_iterations,
            _nameless(p.believed.model), p.believed.mixed, _nameless(p.actual.model), p.actual.mixed, self.lb1_ns,
            sorted(self.options.items()),
        )  # fmt: skip
        h.update(repr(world).encode())
        if p.waits:
            h.update(np.ascontiguousarray(p.idle_until).tobytes())
        if p.num_nodes:
            h.update(np.asarray(p.path).tobytes() + np.asarray(p.path_start).tobytes())
            h.update(repr(p.node_units).encode())
        return h.hexdigest()

    @classmethod
    def build(
        cls,
        requests: Requests,
        estimates: NDArray[np.int32],
        cost: CostModel,
        num_clients: int,
        *,
        client_of: NDArray[np.int32] | None,
        order: str,
        stealing: bool,
        bound_ns: int,
        lb1_ns: int | None = None,
        reward: str = "excess",
        skip_forced: bool = False,
        max_iterations: int = 0,
        mechanisms: Iterable[Mechanism] = (),
        plan: JointPlan | None = None,
        aging_tokens_per_s: float = 0.0,
        choose_length: bool = False,
    ) -> Problem:
        """Lay a case out.

        Args:
            requests: the truth.
            estimates: (n,) int32, at least 1: output lengths as the scheduler sees them.
            cost: the cost model; its cap bounds a prefill.
            num_clients: J.
            client_of: (n,) queue of each request, or ``None`` for one shared queue.
            order: one of `llmsched_env.config.ORDERS` or `KEYED_ORDERS`, or "joint" with a plan.
            stealing: idle clients with an empty queue take from others (client queues only).
            bound_ns: the best lower bound on the makespan, in ns.
            lb1_ns: LB1 in ns, what rewards are scaled by; ``None`` where it is that bound.
            reward: one of `llmsched_env.config.REWARDS`.
            skip_forced: whether a step goes on to the next choice.
            max_iterations: horizon, 0 for none.
            mechanisms: those that are on, as `Scenario.mechanisms` has them: with an `SLO` and one shared queue
                ``order`` may also be one of those in which late ones go last; `KVCache` and `Mixed` need one shared
                queue, `Migration` queues of clients.
            plan: whose order the queue has, and whose prefills policies may be told.
            aging_tokens_per_s: of the order "aged_shortest_first".
            choose_length: whether windows and waits are actions (one shared queue, "longest_first", no SLO).

        Raises:
            WorkloadError: too many tokens for the clock, or a request that the KV cache does not hold.
            ConfigError: a prompt that no level holds, or an order of a batch where requests come over time,
                or without a KV cache.
        """
        n = len(requests)
        check_sum(max(int(requests.output_tokens.sum(dtype=np.int64)), int(estimates.sum(dtype=np.int64))))
        shared = client_of is None
        queue = np.zeros(n, np.int32) if client_of is None else client_of
        on = {one.name: one for one in mechanisms}
        slo, mixed, noise, kv_cache = _one(on, SLO), _one(on, Mixed), _one(on, Noise), _one(on, KVCache)
        chosen = slo is not None and shared  # orders are then chosen at each prefill, by the engine
        number = np.arange(n)
        ranked_by = order if order in KEYED_ORDERS else "shortest_first"
        laid_out_by = "fcfs" if chosen else order
        budget = kv_cache.budget_tokens if kv_cache else 0
        _check_batch(order, requests, budget)
        known = Known(requests.prompt_tokens, estimates, requests.release_ns, budget, aging_tokens_per_s)
        key = queue_key(laid_out_by, known) if plan is None else plan.rank
        by_position = np.lexsort((number, key, queue)).astype(np.int32)
        rows = np.empty((n, codes.REQUEST_COLUMNS), np.int32)
        rows[:, codes.PROMPT] = requests.prompt_tokens[by_position]
        rows[:, codes.OUTPUT] = requests.output_tokens[by_position]
        rows[:, codes.ESTIMATE] = estimates[by_position]
        rows[:, codes.QUEUE] = queue[by_position]
        shown = noise.believed or cost if noise else cost
        for model in {shown, cost}:
            _check_levels(requests, model)
        believed = _costs(shown, mixed.believed_cost or mixed.cost if mixed else None)
        actual = _costs(cost, mixed.cost if mixed else None) if noise else believed
        world = World(believed.least_prefill_ns, noise is not None, stealing and not shared)
        by_mechanism = {name: one.engine_options(world) for name, one in on.items()}
        options: Options = {name: values for name, values in by_mechanism.items() if values}
        if "kv" in options:
            _check_longest(options["kv"], rows)
            for model in {shown, cost}:
                _check_recompute(options["kv"], rows, model)
        check_clock(rows, requests.release_ns, num_clients, believed, actual, options)
        variants = Variants(
            order if chosen else "fcfs",
            bool(slo and slo.choose_order),
            kv_cache.cap_levels if kv_cache else 0,
            mixed is not None,
            choose_length,
        )
        table = action_table(variants, num_clients)
        ranked = any(1 < action.order < codes.WINDOW for action in table)
        scale_ns = bound_ns if lb1_ns is None else lb1_ns
        scale = float(scale_ns) * {"makespan": 1, "latency": n}.get(reward, num_clients)
        if slo is not None and reward == "goodput":
            scale = float(slo.last - slo.first)
        if reward == "differential" and shown.alpha_prefill_ns:
            scale = float(num_clients * shown.alpha_prefill_ns)
        for array in (rows, by_position):
            array.setflags(write=False)
        data = ProblemData(
            rows,
            requests.release_ns,
            by_position,
            num_clients,
            shared=shared,
            stealing=stealing,
            ranking=_ranking(queue_key(ranked_by, known), -estimates) if ranked else None,
            actions=[action[1:] for action in table],
            believed=believed,
            actual=actual,
            token_cap=cost.prefill_token_cap,
            mean_output_tokens=requests.mean_output_tokens,
            reward=REWARDS.index(reward),
            reward_scale=scale,
            affine=_affine(shown, options),
            bound_ns=bound_ns,
            max_iterations=max_iterations,
            skip_forced=skip_forced,
            prefixes=_prefixes(requests, kv_cache.block_tokens) if kv_cache and kv_cache.prefix_caching else None,
        )
        names = tuple(action.name for action in table)
        planned = None if plan is None else tuple(plan.instants.tolist())
        return cls(data, options, rows, requests.release_ns, by_position, scale_ns, names, planned)

    @cached_property
    def believed(self) -> Problem:
        """The case in the world as schedulers believe it to be: this one, where they believe the truth."""
        if not self.noisy:
            return self
        options = {name: values for name, values in self.options.items() if name != "noise"}
        shown = self.data.believed
        data = self.data.changed(actual=shown, affine=_affine(shown.model, options))
        if "slo" in options:
            options["slo"] = {**options["slo"], "certain": True}
        return replace(self, data=data, options=options)

    def with_outputs(self, outputs: NDArray[np.int32]) -> Problem:
        """The same case with other true lengths; estimates, queues and the bound stay.

        Args:
            outputs: (n,) int32, at least 1, by position.

        Raises:
            WorkloadError: too many tokens for the clock, or a request that the KV cache does not hold.
        """
        check_sum(int(outputs.sum(dtype=np.int64)))
        rows = self.requests.copy()
        rows[:, codes.OUTPUT] = outputs
        if "kv" in self.options:
            _check_longest(self.options["kv"], rows)
        check_clock(
            rows, self.release_ns, self.num_clients, self.data.believed, self.data.actual, self.options,
            "these output lengths",
        )  # fmt: skip
        rows.setflags(write=False)
        return replace(self, data=self.data.changed(rows), requests=rows)

    def with_line(self, positions: NDArray[np.integer]) -> Problem:
        """The same case with requests at other positions of the one queue.

        Args:
            positions: (n,) which request, by its position so far, stands at each position.
        """
        rows, numbers = self.requests[positions], self.request_of[positions]
        for array in (rows, numbers):
            array.setflags(write=False)
        return replace(self, data=self.data.changed(rows, numbers), requests=rows, request_of=numbers)

    def with_bound(self, bound_ns: int) -> Problem:
        """The same case with another bound for its gaps."""
        return replace(self, data=self.data.changed(bound_ns=bound_ns))

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _nameless(model: CostModel) -> CostModel:
    """The numbers of a cost model, whatever it is called and was fitted on."""
    return replace(model, name="", covers_prefill_tokens=None, covers_active_clients=None)


@functools.lru_cache(64)
def _costs(model: CostModel, mixed: MixedCost | None) -> Costs:
    """One for all cases of a scenario: then it stays in the nearest cache."""
    make: Callable[[MixedCost | None], Costs] | None = getattr(model, "engine_costs", None)
    costs = Costs(model, mixed) if make is None else make(mixed)
    costs.check()
    return costs


def _affine(cost: CostModel, options: Options) -> bool:
    """Whether the makespan is a policy-free constant plus fixed times per iteration.

    Not where what is prefilled is no constant (preemption, cached prefixes, recompute), where iterations mix, or where
    what passes is not what schedulers believe.
    """
    return cost.is_affine and options.keys() <= {"slo"}


def _one(on: dict[str, Mechanism], kind: type[_M]) -> _M | None:
    """The mechanism of this class, where it is on."""
    option = on.get(kind.name)
    assert option is None or isinstance(option, kind)
    return option


def _ranking(*keys: NDArray[Any]) -> NDArray[np.int32]:
    """(n, 2 * RANKINGS) int32: ranks of positions, then positions of ranks, by each key; ties by release."""
    table = np.empty((len(keys[0]), 2 * codes.RANKINGS), np.int32)
    for ranking, key in enumerate(keys):
        by_rank = np.argsort(key, kind="stable")
        table[by_rank, ranking] = np.arange(len(key))
        table[:, codes.RANKINGS + ranking] = by_rank
    table.setflags(write=False)
    return table


def _check_batch(order: str, requests: Requests, budget_tokens: int) -> None:
    """Raise where an order of batches has no budget, or knows requests before they come."""
    if order != "sorted_f":
        return
    if not budget_tokens:
        raise ConfigError("order = 'sorted_f' without a KV cache: its batches are what fits. Give a KVCache.")
    if requests.release_ns[0] != requests.release_ns[-1]:
        raise ConfigError(
            "order = 'sorted_f' where requests come over time: it sorts a batch that is there. Take another order, "
            "such as 'smallest_volume_first', or a workload without arrivals."
        )


def _check_longest(kv: dict[str, Any], rows: NDArray[np.int32]) -> None:
    """Raise where a request can never be served, be it alone."""
    cache = KVCache(kv["budget"], kv["block"], kv["headroom"], rule=KV_RULES[kv["rule"]])
    tokens = int((rows[:, codes.PROMPT].astype(np.int64) + rows[:, codes.OUTPUT]).max())
    if tokens > cache.longest_request_tokens:
        most = -(-(tokens - cache.uncached_tokens) // cache.block_tokens) * cache.block_tokens
        left_free = f", {cache.headroom_tokens} of which stay free" if most <= cache.budget_tokens else ""
        raise WorkloadError(
            f"a request of {tokens} prompt and output tokens takes {most} tokens in blocks of {cache.block_tokens}, "
            f"and the KV cache holds {cache.budget_tokens}{left_free}: raise kv_budget_tokens, or leave "
            "such requests out."
        )


def _check_recompute(kv: dict[str, Any], rows: NDArray[np.int32], cost: CostModel) -> None:
    """Raise where no prefill level holds what a preempted request has to compute again."""
    if kv["swap_token_ns"] or not cost.prefill_levels:
        return
    again = int((rows[:, codes.PROMPT].astype(np.int64) + rows[:, codes.OUTPUT]).max()) - 1
    if again > cost.prefill_levels[-1][0]:
        raise ConfigError(
            f"a preempted request may have {again} tokens to compute again, which exceeds the largest prefill level, "
            f"{cost.prefill_levels[-1][0]} tokens: add a level that holds them, or swap (kv_swap_gb_per_s)."
        )


def _prefixes(requests: Requests, block_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int32], int, int]:
    """What prompts are made of, as `ProblemData` takes it.

    Raises:
        WorkloadError: nobody says, or not in a way that fits the blocks of the cache.
    """
    blocks = requests.prefix_blocks
    if blocks is None:
        raise WorkloadError(
            "kv_prefix_caching = True, and the workload does not say what prompts are made of: take a trace with "
            "hash_ids (Mooncake, Qwen-Bailian), or Requests with prefix_blocks; or leave it out."
        )
    if blocks.tokens is None or blocks.tokens % block_tokens:
        what = "of an unknown number of" if blocks.tokens is None else f"of {blocks.tokens}"
        raise WorkloadError(
            f"kv_prefix_caching = True with prefix blocks {what} tokens and kv_block_tokens = {block_tokens}: a prefix "
            "block is one or several blocks of the cache. Set kv_block_tokens to a divisor of it."
        )
    units = blocks.num_nodes * (blocks.tokens // block_tokens)
    if units > MAX_UNITS:
        raise WorkloadError(
            f"{units} different blocks of {block_tokens} tokens begin the prompts of this case, and {MAX_UNITS} are "
            "the most: split the case, or take larger kv_block_tokens."
        )
    return blocks.nodes, blocks.starts.astype(np.int32), blocks.num_nodes, blocks.tokens // block_tokens


def _check_levels(requests: Requests, cost: CostModel) -> None:
    longest_prompt = int(requests.prompt_tokens.max())
    if cost.prefill_levels and longest_prompt > cost.prefill_levels[-1][0]:
        raise ConfigError(
            f"a prompt of {longest_prompt} tokens exceeds the largest prefill level, {cost.prefill_levels[-1][0]} "
            "tokens: add a level that holds it."
        )
