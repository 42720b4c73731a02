"""The range that a cost model was fitted on, and the presets taken from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmsched_env.cost import PRESETS, CostModel
from llmsched_env.errors import ConfigError

# (alpha_p, beta_p, alpha_d, beta_d) in ns, from the calibration files of arXiv 2606.00516's code.
PUBLISHED_NS = {
    "qwen3-8b-h200": (1_279_000, 24_850, 8_921_000, 45_860),
    "qwen3-8b-rtx-pro-6000": (4_691_000, 50_080, 10_376_000, 103_880),
    "qwen3-30b-a3b-h200": (17_540_000, 13_470, 24_418_000, 24_270),
    "qwen3-30b-a3b-rtx-pro-6000": (31_139_000, 26_900, 22_420_000, 121_940),
    "llama-3.1-8b-h200": (347_000, 24_200, 6_791_000, 44_400),
}
NOTES = Path(__file__).parents[3] / "shared" / "BASELINES.md"


def coefficients_ns(model: CostModel) -> tuple[int, int, int, int]:
    return model.alpha_prefill_ns, model.beta_prefill_ns, model.alpha_decode_ns, model.beta_decode_ns


@pytest.mark.parametrize("name", PUBLISHED_NS)
def test_published_presets_are_transcribed_right(name):
    model = PRESETS[name]
    assert coefficients_ns(model) == PUBLISHED_NS[name]
    assert (model.covers_prefill_tokens, model.covers_active_clients) == ((256, 4096), (16, 1024))
    assert model.is_affine


def test_published_presets_are_those_of_the_notes():
    if not NOTES.is_file():
        pytest.skip("the notes with the published figures are not beside this checkout")
    number = r"([\d.]+(?:e-\d+)?)"
    found = {}
    for row in re.finditer(
        rf"((?:Qwen|Llama)[\w.-]*)/([\w ]+) {number},\s{number},\s{number},\s{number}",
        NOTES.read_text(encoding="utf-8"),
    ):
        name = f"{row[1]}-{row[2]}".lower().replace(" ", "-")
        found[name] = tuple(round(float(value) * 1e9) for value in row.groups()[2:])
    assert found == PUBLISHED_NS


def test_every_preset_is_named_as_it_is_filed():
    assert len(PRESETS) == 3 + len(PUBLISHED_NS)
    assert all(model.name == name for name, model in PRESETS.items())


MODEL = CostModel("m", 1, 1, 1, 1, covers_prefill_tokens=(256, 4096), covers_active_clients=(16, 1024))


def test_inside_coverage_is_silent():
    assert MODEL.outside_coverage(256, 4096, 16, 1024) is None
    assert CostModel("m", 1, 1, 1, 1).outside_coverage(1, 10**6, 1, 10**6) is None


@pytest.mark.parametrize(
    ("used", "words", "absent"),
    [
        ((255, 4096, 16, 1024), "prefills of 255-4096 prompt tokens (fitted on prefills of 256-4096", "decodes"),
        ((256, 4097, 16, 1024), "prefills of 256-4097", "decodes"),
        ((256, 4096, 15, 1024), "decodes of 15-1024 active clients (fitted on decodes of 16-1024", "prefills"),
        ((256, 4096, 16, 1025), "decodes of 16-1025", "prefills"),
        ((1, 9999, 1, 9999), "prompt tokens); decodes of 1-9999", "None"),
    ],
)
def test_outside_coverage_says_what_and_by_how_much(used, words, absent):
    text = MODEL.outside_coverage(*used)
    assert text is not None
    assert words in text
    assert absent not in text
    assert text.startswith("cost model 'm' was used outside the range that it was fitted on: ")
    assert text.endswith("record such iterations and fit again.")


def test_coverage_of_one_kind_may_be_unknown():
    model = CostModel("m", 1, 1, 1, 1, covers_active_clients=(2, 3))
    text = model.outside_coverage(1, 10**6, 1, 3)
    assert text is not None
    assert "prefills" not in text
    assert model.with_cap(7).covers_active_clients == (2, 3)


@pytest.mark.parametrize("value", [(5, 4), (0, 4), (1,), (1, 2, 3), [1, 2], (1.0, 2), (True, 2), 3, "12"])
@pytest.mark.parametrize("key", ["covers_prefill_tokens", "covers_active_clients"])
def test_bad_coverage(key, value):
    with pytest.raises(ConfigError) as caught:
        CostModel("m", 1, 1, 1, 1, **{key: value})
    assert f"{key} = {value!r} is not a range: pass a pair of ints (fewest, most)" in str(caught.value)
