"""Records what vLLM tells a driver: ``python tests/with_vllm/recording.py``, in the environment of ``make test-vllm``.

The files of tests/engines/golden hold the driver to it where vLLM is not installed. Each has the options, the requests
(arrival in ns, prompt tokens, output tokens), and a row an iteration: who has arrived before it, the fields of the view
that have changed, the action, whom it read (``number:tokens:left``), whether the others decoded, who gave way, its end
in ns, and who was complete then.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest does

import vllm  # noqa: E402
import vllm_bare as bare  # noqa: E402
from vllm_playing import SLO, Playing, drawn, options  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "engines" / "golden"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[int, int, int]]]] = {
    "batch": (options("threshold", [3]), {"seats": 6}, drawn(11, 40, 0, (5, 150), (1, 25))),
    "arrivals": (
        options("deadline", [4, 0.5], kv=True, **SLO),
        {"seats": 12, "blocks": 14},
        drawn(12, 40, 900, (1, 60), (1, 40)),
    ),
}


def recorded(name: str, model: str) -> dict[str, Any]:
    """One case, played."""
    told, engine, requests = CASES[name]
    playing = Playing(bare.scheduler(model, told, **engine))
    driver = playing.serving.session.driver
    rows: list[list[Any]] = []
    arrived: list[int] = []
    arrive, ran, finish = driver.arrive, driver.ran, driver.finish

    def noting_arrival(key: str, *args: Any) -> None:
        arrived.append(int(key))
        arrive(key, *args)

    def noting(done: Any, now_ns: int = 0) -> int:
        reads = [f"{key}:{tokens}:{left}" for key, tokens, left in done.reads]
        view, before = playing.views[-1], playing.views[-2] if len(playing.views) > 1 else {}
        changed = {field: value for field, value in view.items() if before.get(field, 0) != value}
        expected_ns = int(ran(done, now_ns))
        row = [arrived[:], changed, playing.actions[-1], " ".join(reads), int(done.decodes),
               [int(key) for key in done.preempted], driver.clock_ns, []]  # fmt: skip
        rows.append(row)
        arrived.clear()
        return expected_ns

    def noting_end(key: str) -> None:
        rows[-1][-1].append(int(key))
        finish(key)

    driver.arrive, driver.ran, driver.finish = noting_arrival, noting, noting_end
    playing.play(requests)
    return {"version": vllm.__version__, "options": told, "engine": engine, "block_tokens": bare.BLOCK,
            "requests": requests, "iterations": rows}  # fmt: skip


def main() -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as folder:
        model = bare.write_model(Path(folder))
        for name in CASES:
            told = recorded(name, model)
            lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in told.items() if key != "iterations"]
            rows = ",\n".join(f"  {json.dumps(row)}" for row in told["iterations"])
            text = "{\n" + "\n".join(lines) + f'\n "iterations": [\n{rows}\n ]\n}}\n'
            (GOLDEN / f"{name}.json").write_text(text)
            print(
                name,
                len(told["iterations"]),
                "iterations",
                sum(len(row[5]) for row in told["iterations"]),
                "preemptions",
            )


if __name__ == "__main__":
    main()
