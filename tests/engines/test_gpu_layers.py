"""The measurement of LLaMA-65B's layers, at the size of a toy: it runs, and its decode is the decoder that it says."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def layers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_layers

    return gpu_layers


@torch.inference_mode()
def test_a_decode_on_a_cache_computes_what_a_prefill_computes(layers):
    torch.manual_seed(0)
    layer = layers.Layer(layers.TOY, torch.device("cpu"), torch.float32)
    prompt = torch.randn(2, 5, layers.TOY.width)
    whole = layer(prompt, None, 0)
    head = layers.TOY.width // layers.TOY.heads
    cache = tuple(torch.zeros(2, layers.TOY.heads, 5, head) for _ in range(2))
    for at in range(5):
        so_far = tuple(part[:, :, : at + 1] for part in cache)  # views: each token is written to the whole cache
        last = layer(prompt[:, at : at + 1], so_far, at)
    assert torch.allclose(last[:, 0], whole[:, -1], atol=1e-5)


def test_the_toy_is_measured_and_fitted(layers, tmp_path, capsys):
    torch.set_num_threads(1)
    assert layers.main(["--out", str(tmp_path), "--toy", "--repeats", "3"]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 layers" in said
    assert "llama-65b-paper:" in said
    rows = (tmp_path / "iterations.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(layers.TOY_SIZES.prefills) + 2 * len(layers.TOY_SIZES.clients)


def test_without_a_gpu_the_whole_size_is_refused(layers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert layers.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
