"""Iterations of LLaMA-65B's decoder layers on the accelerator that is there: a cost model by measurement.

    python benchmarks/gpu_layers.py --out RUN               # 8 of the 80 layers, bf16; about six minutes of a GPU
    python benchmarks/gpu_layers.py --out RUN --toy         # a thousandth of it, on any CPU: to see that it runs

Weights are random, since times do not depend on them. Torch alone computes: RMSNorm, rotary attention by
`scaled_dot_product_attention` on a KV cache of full size, and the gated MLP; neither sampling nor the output layer is
in it, nor what several cards would say to each other. Times are of some layers, multiplied by all / some. Shapes:
Touvron et al. 2023, LLaMA, table 2 (65B: dimension 8192, 64 heads, 80 layers; MLP 22016 in its released code).

`RUN/iterations.csv` is what `llmsched_env.calibration.fit_cost_model` reads; the fit, and how far published presets are
from it, are printed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from llmsched_env.calibration import fit_cost_model
from llmsched_env.cost import PRESETS, cost_model
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole

WARM_UP, REPEATS = 3, 9


class Shape(NamedTuple):
    """Of a decoder.

    Attributes:
        width: of a token's vector.
        heads: of attention.
        inner: of the MLP.
        layers: of the whole model.
        measured: layers that are run.
    """

    width: int
    heads: int
    inner: int
    layers: int
    measured: int


LLAMA_65B = Shape(8192, 64, 22016, 80, 8)
TOY = Shape(64, 4, 160, 4, 2)


class Sizes(NamedTuple):
    """What is measured: prefills of so many tokens, so many a prompt; decodes of so many clients, and contexts."""

    prefills: Sequence[int]
    prompt: int
    clients: Sequence[int]
    contexts: Sequence[int]


REAL_SIZES = Sizes((64, 128, 256, 512, 1024, 2048, 4096), 64, (1, 8, 32, 64, 128, 192, 256), (64, 256, 512, 1024))
TOY_SIZES = Sizes((8, 16, 32, 64), 8, (1, 4, 8), (8, 32))


class Layer:
    """One decoder layer, its weights drawn at random."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        def weight(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, device=device, dtype=dtype) / columns**0.5

        self.shape = shape
        self.qkv = weight(3 * shape.width, shape.width)
        self.out = weight(shape.width, shape.width)
        self.gate_up = weight(2 * shape.inner, shape.width)
        self.down = weight(shape.width, shape.inner)

    def __call__(self, x: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None, at: int) -> torch.Tensor:
        """(batch, tokens, width) on; ``cache``: keys and values (batch, heads, context, width / heads), or none.

        With a cache the one token of each client is written to place ``at`` of it, and reads what is there.
        """
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.shape.heads, -1).transpose(1, 2)
            for part in (rms_norm(x, (width,)) @ self.qkv.T).split(width, dim=-1)
        )
        q, k = _rotated(q, at), _rotated(k, at)
        if cache is None:
            read = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            keys, values = cache
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = k, v
            read = scaled_dot_product_attention(q, keys, values)
        x = x + read.transpose(1, 2).reshape(batch, tokens, width) @ self.out.T
        gate, up = (rms_norm(x, (width,)) @ self.gate_up.T).chunk(2, dim=-1)
        return x + (silu(gate) * up) @ self.down.T


def _rotated(x: torch.Tensor, at: int) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021) of tokens at ``at`` and after."""
    half = x.shape[-1] // 2
    angle = (at + torch.arange(x.shape[-2], device=x.device))[:, None] * 1e4 ** (
        -torch.arange(half, device=x.device) / half
    )
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def measured_s(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of so many runs, after some that warm up."""
    times = []
    for number in range(WARM_UP + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


@torch.inference_mode()
def measure(shape: Shape, sizes: Sizes, device: torch.device, dtype: torch.dtype, repeats: int) -> list[list[object]]:
    """(kind, prefill_tokens, active_clients, context_tokens, duration_s) of each size, in a whole model."""
    layers = [Layer(shape, device, dtype) for _ in range(shape.measured)]
    scale = shape.layers / shape.measured
    head = shape.width // shape.heads

    def through(x: torch.Tensor, caches: Sequence[tuple[torch.Tensor, torch.Tensor] | None], at: int) -> torch.Tensor:
        for layer, cache in zip(layers, caches, strict=True):
            x = layer(x, cache, at)
        return x

    rows: list[list[object]] = []
    work = [*(("prefill", tokens, 0) for tokens in sizes.prefills)]
    work += [("decode", clients, context) for clients, context in itertools.product(sizes.clients, sizes.contexts)]
    for kind, size, context in Progress(work, desc="measuring", unit="size", leave=True):
        if kind == "prefill":
            x = torch.randn(size // sizes.prompt, sizes.prompt, shape.width, device=device, dtype=dtype)
            caches: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * shape.measured
        else:
            x = torch.randn(size, 1, shape.width, device=device, dtype=dtype)
            cache = (size, shape.heads, context, head)
            caches = [
                (torch.randn(cache, device=device, dtype=dtype), torch.randn(cache, device=device, dtype=dtype))
                for _ in layers
            ]
        at = max(0, context - 1)
        seconds = scale * measured_s(lambda x=x, caches=caches, at=at: through(x, caches, at), device, repeats)
        tokens = [size, "", ""] if kind == "prefill" else ["", size, size * context]
        rows.append([kind, *tokens, f"{seconds:.9f}"])
        del caches
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, fit, compare; 2 where there is no GPU for the whole size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--toy", action="store_true", help="a tiny model on whatever is there")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.toy:
        print("error: no CUDA device: LLaMA-65B's layers need one with 100 GB. --toy runs anywhere.", file=sys.stderr)
        return 2
    shape, sizes = (TOY, TOY_SIZES) if options.toy else (LLAMA_65B, REAL_SIZES)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = measure(shape, sizes, device, dtype, options.repeats)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "iterations.csv"
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "prefill_tokens", "active_clients", "context_tokens", "duration_s"])
        writer.writerows(rows)
    fitted = fit_cost_model(path, name="toy" if options.toy else "llama-65b-measured")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {shape.measured} of {shape.layers} layers\n\n{fitted.report()}\n")
    print("ratio of published presets to this, for a prefill of 1,024 tokens and a decode of 200 clients of 256:")
    ours = fitted.model
    for name in PRESETS:
        other = cost_model(name)
        ratios = (
            other.prefill_ns(1024) / max(1, ours.prefill_ns(1024)),
            other.decode_ns(200, 51_200) / max(1, ours.decode_ns(200, 51_200)),
        )
        print(f"  {name}: {ratios[0]:.2f}, {ratios[1]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
