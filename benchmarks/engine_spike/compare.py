"""Play the trial on the recordings of vLLM, and time it: python compare.py [uncompiled]."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "tests" / "baselines" / "golden"
RULES = {"vllm_v0": 0, "vllm_v1": 0, "vllm_v0_memory": 1, "vllm_v1_memory": 2}
PAPER_NS = (22_900_000, 156_000, 17_500_000, 281_000)


def load(uncompiled):
    """The module, compiled or as it stands."""
    if not uncompiled:
        import episode

        return episode
    spec = importlib.util.spec_from_file_location("episode", Path(__file__).with_name("episode.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(engine):
    """Makespan and preemptions of each recorded case, ours against vLLM's."""
    for name, rule in RULES.items():
        mixes = name.startswith("vllm_v1")
        for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]:
            capacity = case["capacity"]
            cache = None
            if rule:
                mark = int(capacity["watermark"] * (capacity["blocks"] + (rule == 2)))
                cache = engine.KVCache(capacity["clients"], rule, capacity["block_tokens"], capacity["blocks"], mark)
            cap, chunk = capacity.get("token_cap", 10**9), capacity.get("mixed_tokens", 0) if mixes else 0
            episode = engine.Episode(case["requests"], capacity["clients"], (100, 10, 50, 1), cap, chunk, cache)
            episode.run(engine.Mixer() if mixes else engine.Threshold(1))
            clock_ns, _, _, preemptions, _ = episode.result()
            wanted = max(case["completion_ns"]), sum(len(row[3].split()) for row in case["iterations"])
            print(name, case["name"], "agrees" if (clock_ns, preemptions) == wanted else "DIFFERS")


def measure(engine, episodes):
    """Iterations a second of CPU time."""
    rng, n = np.random.default_rng(0), 1319
    outputs = np.where(rng.random(n) < 0.56, 512, rng.integers(60, 300, n))
    requests = np.stack([np.zeros(n, np.int64), rng.integers(30, 120, n), outputs], 1)
    for label, rule, chunk, cache in (
        ("exclusive, threshold", engine.Threshold(14), 0, None),
        ("the same, roomy cache", engine.Threshold(14), 0, (2, 10_000)),
        ("V1's rule of memory, prefill first", engine.Threshold(1), 0, (2, 2_500)),
        ("V0's", engine.Threshold(1), 0, (1, 2_500)),
        ("mixed, 512 tokens", engine.Mixer(), 512, None),
        ("the same with a tight cache", engine.Mixer(), 512, (2, 2_500)),
    ):
        made = [
            engine.Episode(
                requests, 200, PAPER_NS, 2048, chunk, engine.KVCache(200, cache[0], 16, cache[1]) if cache else None
            )
            for _ in range(episodes)
        ]
        begin = time.process_time()
        iterations = sum(episode.run(rule) for episode in made)
        rate = iterations / (time.process_time() - begin)
        print(f"{label}: {rate / 1e6:.2f} M iterations/s, {made[0].result()}")


if __name__ == "__main__":
    uncompiled = sys.argv[1:] == ["uncompiled"]
    engine = load(uncompiled)
    compare(engine)
    measure(engine, 1 if uncompiled else 200)
