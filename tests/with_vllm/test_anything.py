"""Anything that may happen to an engine, drawn: everybody is served all the same, and the driver keeps track."""

from __future__ import annotations

import random
import warnings

import pytest

pytest.importorskip("vllm.config")

import vllm_bare as bare
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus
from vllm_playing import options

from llmsched_env.engines.session import EngineWarning
from llmsched_env.engines.vllm import AsyncLLMSchedScheduler, LLMSchedScheduler

COUNT = 60


def drawn_engine(model, rng):
    """Any policy, memory, budget and seats; whether it schedules ahead, and how long its prompts may be."""
    tokens, blocks, seats = rng.choice([64, 256, 2048]), rng.choice([16, 20, 30, 10_000]), rng.choice([1, 4, 16])
    ahead, caching = rng.random() < 0.5, rng.random() < 0.3
    name, parameters = rng.choice(
        [("threshold", [rng.randint(1, seats)]), ("lagrangian", [0.7]), ("static_batching", []), ("mixed_first", [])]
    )
    more = {"mixed_tokens": 64, "mixed_counts_active": True} if name == "mixed_first" else {}
    more |= {"kv": not caching and rng.random() < 0.5, "shadow": rng.random() < 0.2}
    more["clock"] = rng.choice(["virtual", "wall"])
    serving = bare.scheduler(
        model, options(name, parameters, **more), tokens=tokens, blocks=blocks, seats=seats, caching=caching,
        overlapping=ahead, kind=AsyncLLMSchedScheduler if ahead else LLMSchedScheduler,
    )  # fmt: skip
    return serving, ahead, min(400, blocks * bare.BLOCK - 60)


@pytest.mark.parametrize("seed", [194, 318, 447, *range(40)])
def test_everybody_is_served(model, seed):
    """Requests are aborted in any state, all running ones are preempted at once, and the engine pauses."""
    rng = random.Random(seed)
    serving, ahead, longest = drawn_engine(model, rng)
    often = {what: rng.choice([0, 0.05]) for what in ("abort", "reset", "pause")}
    wanted, got, under_way, added, until = {}, {}, [], 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        for step in range(5000):
            while added < COUNT and rng.random() < 0.5:
                wanted[str(added)] = rng.randint(1, 40)
                prompt = rng.randint(1, longest if rng.random() < 0.1 else 150)
                at_ns = serving.session.driver.clock_ns
                serving.add_request(bare.request(str(added), at_ns, prompt, wanted[str(added)]))
                added += 1
            if serving.requests and rng.random() < often["abort"]:
                name = rng.choice(list(serving.requests))
                serving.finish_requests([name], RequestStatus.FINISHED_ABORTED)
                del wanted[name]
            if rng.random() < often["reset"]:
                serving.reset_prefix_cache(reset_running_requests=True)
            if rng.random() < often["pause"]:
                serving.set_pause_state(rng.choice([PauseState.PAUSED_NEW, PauseState.PAUSED_ALL]))
                until = step + 5
            elif step >= until:
                serving.set_pause_state(PauseState.UNPAUSED)
            output = serving.schedule()
            under_way.append((output, bare.sampling(serving, output)))
            while len(under_way) > (1 if ahead and output.num_scheduled_tokens else 0):
                for name, count in bare.answer(serving, *under_way.pop(0)).items():
                    got[name] = got.get(name, 0) + count
            if added == COUNT and not serving.requests and not under_way:
                break
    assert not serving.requests, "some are never served"
    # An engine that schedules ahead may compute a token more, or again after all were preempted.
    assert {name: min(got[name], output) for name, output in wanted.items()} == wanted
    session = serving.session
    session.end(session.driver.clock_ns)
    view = session.driver.look()
    assert (view.waiting, view.active, view.preempted, view.context_tokens) == (0, 0, 0, 0)
    assert not session.decoding
