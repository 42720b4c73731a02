"""A recorder for a stock vLLM: its own scheduler decides, and what it does is written down.

``vllm serve MODEL --scheduler-cls llmsched_env.engines.vllm_recorder.RecordingAsyncScheduler
--additional-config '{"llmsched_recording": "FOLDER"}'``. vLLM schedules asynchronously under a subclass of its
``AsyncScheduler`` only: where it is to do so, name `RecordingAsyncScheduler`, else `RecordingScheduler`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmsched_env.engines.recording import Settings
from llmsched_env.engines.steps import StepRecorder
from llmsched_env.errors import ConfigError, MissingExtraError

try:
    from vllm import __version__ as vllm_version
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
except ImportError as error:
    raise MissingExtraError(
        f"the recorder runs inside vLLM, which cannot be imported here ({error}): install vLLM (tested: 0.15 and 0.32)."
    ) from error

__all__ = ["OPTION", "Recorded", "RecordingAsyncScheduler", "RecordingScheduler", "bounds_of"]

OPTION = "llmsched_recording"
"""Key of ``additional_config``: the folder of the recording, new for each start of the server."""


def bounds_of(scheduler: Any) -> Settings:
    """What bounds a scheduler's iterations."""
    return Settings(
        scheduler.max_num_running_reqs,
        scheduler.max_num_scheduled_tokens,
        scheduler.block_size,
        scheduler.kv_cache_config.num_blocks - 1,  # one is never given out
        prefix_caching=bool(scheduler.cache_config.enable_prefix_caching),
    )


class Recorded(Scheduler):
    """A scheduler of vLLM that is recorded where ``additional_config`` names a folder.

    It stands in front of another base, whose iterations it records, and whose ``told()`` says who decides, and within
    which bounds: arguments of a `StepRecorder`.
    """

    recorder: StepRecorder | None = None

    def __init__(self, vllm_config: Any, *args: Any, **named: Any) -> None:
        super().__init__(vllm_config, *args, **named)
        folder = (vllm_config.additional_config or {}).get(OPTION)
        if not folder:
            return
        if vllm_config.speculative_config is not None:
            raise ConfigError("speculative decoding is not recorded: its decodes read several tokens. Switch it off.")
        rank = int(vllm_config.parallel_config.data_parallel_rank)
        self.record(Path(folder) / f"rank-{rank}" if rank else folder)

    def record(self, folder: Path | str) -> None:
        """Begin a recording in a new folder."""
        self.recorder = StepRecorder(folder, engine="vllm", version=vllm_version, **self.told())

    def add_request(self, request: Any) -> None:
        """A request is there."""
        if self.recorder is not None:
            self.recorder.arrived(request)
        super().add_request(request)

    def schedule(self, *args: Any, **named: Any) -> Any:
        """An iteration begins."""
        if self.recorder is None:
            return super().schedule(*args, **named)
        start_ns = self.recorder.now_ns()
        output = super().schedule(*args, **named)
        self.recorder.scheduled(start_ns, output, self.requests)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """It has ended."""
        result = super().update_from_output(scheduler_output, model_runner_output)
        if self.recorder is not None:
            self.recorder.updated(scheduler_output)
            self.recorder.left(self.requests)
        return result


class RecordingScheduler(Recorded):
    """vLLM's scheduler, recorded."""

    def __init__(self, vllm_config: Any, *args: Any, **named: Any) -> None:
        super().__init__(vllm_config, *args, **named)
        if self.recorder is None:
            raise ConfigError(f"no folder for the recording: give additional_config={{'{OPTION}': 'FOLDER'}}.")

    def told(self) -> dict[str, Any]:
        """Who decides, and within which bounds: arguments of a `StepRecorder`."""
        return {"settings": bounds_of(self), "decided_by": "vLLM's own scheduler"}


class RecordingAsyncScheduler(RecordingScheduler, AsyncScheduler):
    """vLLM's asynchronous scheduler, recorded."""
