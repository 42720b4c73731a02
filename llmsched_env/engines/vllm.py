"""vLLM's V1 scheduler, driven by a policy of this package, or shadowed by one.

``vllm serve MODEL --scheduler-cls llmsched_env.engines.vllm.LLMSchedScheduler`` with the options of
`llmsched_env.engines.options.EngineOptions` in ``--additional-config '{"llmsched": {"policy": "lagrangian"}}'``.

vLLM's own ``schedule`` runs in each iteration, with half of the requests hidden from it: in a prefill those that
decode, in a decode those that wait. So allocation, preemption, prefix caching and output are vLLM's own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler

from llmsched_env.engines.driver import Memory, Plan, Ran
from llmsched_env.engines.options import EngineFacts, EngineOptions
from llmsched_env.engines.recording import POLICY_ARGUMENTS
from llmsched_env.engines.session import Session
from llmsched_env.engines.vllm_recorder import Recorded, bounds_of
from llmsched_env.errors import ConfigError

__all__ = ["TESTED", "AsyncLLMSchedScheduler", "LLMSchedScheduler"]

logger = init_logger("vllm.llmsched_env")  # shown as vLLM's own lines are

TESTED = ("0.27.1", "0.32.0")
"""Versions of vLLM that the tests run; those between are taken, too."""

QUEUES = ("waiting", "skipped_waiting", "kv_holding_waiting")
"""Where requests wait; which of these there are differs by version."""

LIMITS = ("max_num_running_reqs", "max_num_active_reqs", "max_num_scheduled_tokens")
"""What bounds an iteration; likewise."""


class _Driven(Scheduler):
    """What both schedulers share; see the module."""

    running: list[Any]
    session: Session[str]

    def __init__(self, *args: Any, **named: Any) -> None:
        _check_version(vllm.__version__)
        super().__init__(*args, **named)
        options = EngineOptions.read((self.vllm_config.additional_config or {}).get("llmsched"))
        _check_engine(self.vllm_config)
        self.drive(options)
        self._gone: list[str] = []
        logger.info("%s.", self.session)

    def drive(self, options: EngineOptions) -> None:
        """Begin anew, with these options.

        Raises:
            ConfigError: requests are being served; options that contradict the engine, or each other.
            UnknownNameError: no such policy.
            PathError: a log that cannot be written.
        """
        if self.requests:
            raise ConfigError(f"{len(self.requests)} requests are being served: change the policy when they are done.")
        session = options.session(self._facts())
        if (before := getattr(self, "session", None)) is not None:
            before.close()
        self.options, self.session, self._begin_ns = options, session, time.monotonic_ns()

    def told(self) -> dict[str, Any]:
        """What a recording says of who decides, and within which bounds: arguments of a `StepRecorder`."""
        bounds, driver = bounds_of(self), self.session.driver
        if self.session.shadow:
            return {"settings": bounds, "decided_by": "vLLM's own scheduler"}
        scenario = driver.scenario
        tokens = scenario.mixed_tokens if scenario.mixed_tokens is not None else scenario.cost_model.prefill_token_cap
        bounds = replace(bounds, token_budget=min(bounds.token_budget, tokens), mixes=scenario.mixes)
        options = self.options
        shown = {name: value for name, value in options.scenario.items() if name in POLICY_ARGUMENTS}
        told = {"settings": bounds, "decided_by": options.policy, "parameters": options.parameters}
        return {**told, "arguments": shown}

    def _facts(self) -> EngineFacts:
        """What this engine is."""
        groups, cache = self.kv_cache_config.kv_cache_groups, self.cache_config
        memory = None
        if (
            len(groups) == 1
            and not cache.enable_prefix_caching
            and type(groups[0].kv_cache_spec).__name__ == "FullAttentionSpec"
        ):
            blocks = self.kv_cache_config.num_blocks - 1  # the pool's first block holds nothing
            memory = Memory(blocks * self.block_size, self.block_size, getattr(self.scheduler_config, "watermark", 0.0))
        seats = min(getattr(self, name) for name in LIMITS[:2] if hasattr(self, name))
        return EngineFacts(seats, self.max_num_scheduled_tokens, self.max_model_len, memory)

    def _now_ns(self) -> int:
        return time.monotonic_ns() - self._begin_ns

    # What the engine core calls.

    def add_request(self, request: Any) -> None:
        """A request is there."""
        known = request.request_id in self.requests
        super().add_request(request)
        if known or request.request_id not in self.requests:
            return
        if self.session.driver.virtual:
            at_ns = round(request.arrival_time * 1e9)
        else:
            at_ns = max(0, self._now_ns() - max(0, round((time.time() - request.arrival_time) * 1e9)))
        self.session.arrive(request.request_id, request.num_prompt_tokens, at_ns, request.max_tokens)

    def schedule(self, *args: Any, **named: Any) -> Any:
        """The next iteration."""
        plan = self.session.ask(self._now_ns())
        if plan is None:
            return self._observed(super().schedule(*args, **named))
        with self._only(plan):
            output = super().schedule(*args, **named)
        if not output.num_scheduled_tokens and self.running:
            # Memory, or what a request waits for, lets nobody in: what vLLM can run runs.
            self.finished_req_ids |= output.finished_req_ids
            self.reset_preempted_req_ids |= output.preempted_req_ids
            return self._observed(super().schedule(*args, **named))
        return self._observed(output, plan)

    def update_from_output(self, scheduler_output: Any, *args: Any, **named: Any) -> Any:
        """The iteration is over."""
        self.session.end(self._now_ns(), scheduler_output)
        return super().update_from_output(scheduler_output, *args, **named)

    def shutdown(self) -> None:
        """The engine ends."""
        self.session.close()
        super().shutdown()

    # What vLLM's scheduler calls of itself.

    def _preempt_request(self, request: Any, *args: Any, **named: Any) -> None:
        self._gone.append(request.request_id)
        super()._preempt_request(request, *args, **named)

    def _free_request(self, request: Any, *args: Any, **named: Any) -> Any:
        self.session.finish(request.request_id)
        return super()._free_request(request, *args, **named)

    # How a plan is followed.

    def _observed(self, output: Any, plan: Plan[str] | None = None) -> Any:
        """Tell the session what this iteration does."""
        scheduled, decoding = output.num_scheduled_tokens, self.session.decoding
        gone, self._gone = self._gone, []
        reads: list[tuple[str, int, int]] = []
        if plan is None or plan.kind != "decode":  # one that mixes may go on with a prompt where none was planned
            for name, tokens in scheduled.items():
                if name not in decoding or name in gone:
                    request = self.requests[name]
                    reads.append((name, tokens, max(0, request.num_tokens - request.num_computed_tokens)))
        if scheduled or gone:
            self.session.began(Ran(len(scheduled) > len(reads), reads, gone), output)
        return output

    @contextmanager
    def _only(self, plan: Plan[str]) -> Iterator[None]:
        """Let vLLM's scheduler see what the plan runs, and nothing else."""
        decoding = self.session.decoding
        reading = [request for request in self.running if request.request_id not in decoding]
        hidden: list[Any] = []
        limits = {name: getattr(self, name) for name in LIMITS if hasattr(self, name)}
        if plan.kind == "decode":
            with self._nobody_waits():
                self.running = [request for request in self.running if request.request_id in decoding]
                try:
                    yield
                finally:
                    self.running = self.running + reading
            return
        partly = {request.request_id for request in reading}
        fresh = [name for name, _ in plan.reads if name not in partly]
        self._call_first(fresh)
        if plan.kind == "prefill":
            hidden = [request for request in self.running if request.request_id in decoding]
            self.running = reading
        seats = len(self.running) + len(fresh)
        for name in limits.keys() - {"max_num_scheduled_tokens"}:
            setattr(self, name, seats)
        if plan.kind == "mixed":
            # Not the plan's tokens: a prompt that is partly read has to ask for its blocks, and may give way for them.
            scenario, served = self.session.driver.scenario, len(self.running) - len(reading)
            tokens = plan.tokens if scenario.mixed_whole_prompts else scenario.mixed_tokens or 0
            tokens += 0 if scenario.mixed_counts_active and not scenario.mixed_whole_prompts else served
            self.max_num_scheduled_tokens = min(limits["max_num_scheduled_tokens"], tokens)
        try:
            yield
        finally:
            for name, value in limits.items():
                setattr(self, name, value)
            self.running = hidden + self.running

    def _call_first(self, names: list[str]) -> None:
        """Let these requests be the first to wait, in this order."""
        for name, request in zip(names, self.waiting, strict=False):
            if request.request_id != name:
                break
        else:
            return
        called = [self.requests[name] for name in names]
        for queue in QUEUES:
            if hasattr(self, queue):
                getattr(self, queue).remove_requests(called)
        for request in reversed(called):
            self.waiting.prepend_request(request)

    @contextmanager
    def _nobody_waits(self) -> Iterator[None]:
        """Hide who waits; who is preempted meanwhile comes back in front."""
        hidden = {name: getattr(self, name) for name in QUEUES if hasattr(self, name)}
        for name in hidden:
            setattr(self, name, create_request_queue(self.policy))
        try:
            yield
        finally:
            for name, queue in hidden.items():
                for request in reversed(list(getattr(self, name))):
                    queue.prepend_request(request)
                setattr(self, name, queue)


class LLMSchedScheduler(Recorded, _Driven):
    """vLLM's scheduler under a policy, where iterations are scheduled one after another (``--no-async-scheduling``).

    Raises:
        ConfigError: options, a version or an engine that cannot be driven; says which and what to do.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        config = named.get("vllm_config", args[0] if args else None)
        if config is not None and config.scheduler_config.async_scheduling:
            raise ConfigError(
                "this engine schedules asynchronously: take --scheduler-cls "
                "llmsched_env.engines.vllm.AsyncLLMSchedScheduler, or add --no-async-scheduling."
            )
        super().__init__(*args, **named)


class AsyncLLMSchedScheduler(Recorded, _Driven, AsyncScheduler):
    """The same where the next iteration is scheduled while one runs.

    A policy then sees the requests that end in the running iteration as active still.

    Raises:
        ConfigError: as `LLMSchedScheduler`.
    """


def _check_version(version: str) -> None:
    """Raise where this version was not tried.

    Raises:
        ConfigError: it was not.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    number = tuple(map(int, found.groups())) if found else (0, 0)
    oldest, newest = (tuple(map(int, one.split(".")[:2])) for one in (TESTED[0], TESTED[-1]))
    if not oldest <= number <= newest:
        raise ConfigError(
            f"vLLM {version} is not supported: llmsched_env.engines.vllm runs with {TESTED[0]} to {TESTED[-1]}. "
            "Install one of these."
        )


def _check_engine(config: Any) -> None:
    """Raise where vLLM does what no policy here knows of.

    Raises:
        ConfigError: it does.
    """
    scheduling, parallel = config.scheduler_config, config.parallel_config
    refused = (
        (scheduling.policy != "fcfs", f"scheduling policy {scheduling.policy!r}", "orders are the policy's: 'fcfs'"),
        (config.speculative_config is not None, "speculative decoding", "a decode emits one token a request"),
        (config.kv_transfer_config is not None, "a KV connector", "requests are read by this engine alone"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "one iteration runs at a time"),
        (parallel.data_parallel_size > 1, "data parallelism", "engines that wait for each other have no own schedule"),
        (
            getattr(scheduling, "long_prefill_token_threshold", 0) > 0,
            "long_prefill_token_threshold",
            "one prompt at a time is partly read",
        ),
        (not scheduling.enable_chunked_prefill, "chunked prefill off", "a prompt above the token budget is chunked"),
        (config.model_config.runner_type == "pooling", "a pooling model", "requests emit tokens"),
        (config.model_config.is_encoder_decoder, "an encoder-decoder model", "prompts are read by the decoder"),
        (config.model_config.is_multimodal_model, "a multimodal model", "prompts are text"),
    )
    for given, what, why in refused:
        if given:
            raise ConfigError(f"{what} is not supported under a policy of llmsched-env: {why}. Change it, or serve "
                              "without --scheduler-cls.")  # fmt: skip
