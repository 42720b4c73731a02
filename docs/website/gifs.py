"""An episode of each id as a GIF, drawn by the environment's own viewer. One that has been made is kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from llmsched_env import ENVIRONMENTS, make_scenario
from llmsched_env.baselines import make_policy
from llmsched_env.evaluation import begin
from llmsched_env.sources import package_digest
from llmsched_env.viewer.cells import COLOURS

from .environments import rule_of
from .markdown import slug

SIZE = (640, 400)
FRAMES = 32
FRAME_MS, LAST_MS = 150, 2500
MOST_BYTES = 600_000


def draw(kept: Path, target: Path) -> list[str]:
    """Put the GIF of every id into ``target``, from ``kept`` where it is there. Returns the ids that were drawn."""
    kept.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name in ENVIRONMENTS:
        file = kept / f"{slug(name)}-{_key(name)}.gif"
        if not file.exists():
            for old in kept.glob(f"{slug(name)}-*.gif"):
                if old.stem.rpartition("-")[0] == slug(name):
                    old.unlink()
            part = file.with_suffix(".part")
            record(name, part)
            part.replace(file)
            drawn.append(name)
        placed = target / f"{slug(name)}.gif"
        if not placed.exists() or placed.read_bytes() != file.read_bytes():
            shutil.copyfile(file, placed)
    return drawn


def record(name: str, file: Path) -> None:
    """Play test case 0 under the rule of the page, and write pictures at equal distances."""
    from PIL import Image

    iterations = _play(name, None)
    wanted = {round(x) for x in np.linspace(iterations / FRAMES, iterations, FRAMES)}
    frames = [Image.fromarray(array) for array in _play(name, wanted)]
    palette = _palette(frames[-1])
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    lasting = [FRAME_MS] * (len(small) - 1) + [LAST_MS]
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=lasting, loop=0, optimize=True)
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise RuntimeError(f"the picture of {name} has {size} bytes, more than {MOST_BYTES}: draw fewer frames.")


def _palette(last: Any) -> Any:
    """Colours of the last picture, and those of the viewer even where they are rare there."""
    from PIL import Image

    whole = Image.new("RGB", (last.width, 2 * last.height))
    whole.paste(last)
    stripes = np.repeat(np.array(list(COLOURS.values()), np.uint8)[None, :, :3], last.height, axis=0)
    whole.paste(Image.fromarray(stripes).resize(last.size, Image.Resampling.NEAREST), (0, last.height))
    return whole.quantize(64, method=Image.Quantize.MAXCOVERAGE)


def _play(name: str, wanted: set[int] | None) -> Any:
    """The number of steps of the episode, or its pictures after these steps."""
    mode = {} if wanted is None else {"render_mode": "rgb_array", "render_size": SIZE}
    env = gymnasium.make(name, split="test", disable_env_checker=True, **mode)
    env.reset(options={"case": 0})
    simulator = env.unwrapped.simulator
    policy = make_policy(rule_of(make_scenario(name)))
    begin(policy, env)
    steps, over, frames = 0, False, []
    while not over:
        action = policy.act(simulator.view) if simulator.has_choice else simulator.forced_action
        _, _, terminated, truncated, _ = env.step(action)
        steps, over = steps + 1, terminated or truncated
        if wanted is not None and steps in wanted:
            frames.append(env.render())
    return steps if wanted is None else frames


def _key(name: str) -> str:
    """What a picture depends on."""
    made_of = [package_digest(), Path(__file__).read_text(encoding="utf-8"), name, rule_of(make_scenario(name))]
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
