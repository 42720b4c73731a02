"""One frame of the live timeline: clients × time, the queue below it, the numbers of the moment above."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import capacity_requests_per_s
from llmsched_env.engine.codes import OUTPUT, PROMPT
from llmsched_env.errors import ConfigError
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.cells import COLOURS, colours, kinds_of, shares, waiting
from llmsched_env.viewer.extras import viz_module
from llmsched_env.viewer.scales import round_up, ticks, time_unit

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["MIN_HEIGHT", "MIN_WIDTH", "check_size", "frame"]

MIN_WIDTH, MIN_HEIGHT = 640, 400
"""Smaller than this, labels would be too small to read."""

INK, FAINT, RULE, PAPER = (38, 50, 56), (105, 117, 125), (214, 219, 223), (255, 255, 255)
QUEUE = (120, 144, 156)

FIRST_SPAN_DECODES = 48
"""The time axis starts with room for that many full decodes, and grows from there."""


class _Layout(NamedTuple):
    """Where things are, in pixels."""

    scale: float
    left: int
    right: int
    caption: int  # top of the line with last iteration and legend
    top: int  # of the timeline
    bottom: int
    queue_top: int
    queue_bottom: int

    @classmethod
    def of(cls, width: int, height: int) -> _Layout:
        scale = min(width / 960, height / 600)

        def px(at_full_size: float) -> int:
            return round(at_full_size * scale)

        queue_bottom = height - px(40)
        queue_top = queue_bottom - px(72)
        return cls(scale, px(64), width - px(22), px(66), px(92), queue_top - px(16), queue_top, queue_bottom)


@functools.cache
def _font(size: int) -> Any:
    return viz_module("PIL.ImageFont", "pillow", "Drawing a frame").load_default(size)


def _drawer(picture: Any) -> ImageDraw:
    return viz_module("PIL.ImageDraw", "pillow", "Drawing a frame").Draw(picture)  # type: ignore[no-any-return]


def check_size(width: int, height: int) -> None:
    """Whether a frame may have this size.

    Raises:
        ConfigError: it may not.
    """
    for name, value, least in (("width", width, MIN_WIDTH), ("height", height, MIN_HEIGHT)):
        if value < least or value % 2:
            raise ConfigError(
                f"{name} = {value} pixels is odd or too small: give an even number of at least {least} (video codecs "
                "take no odd sizes)."
            )


def frame(simulator: Simulator, *, width: int = 960, height: int = 600) -> NDArray[np.uint8]:
    """The episode so far as a picture: each client a line, coloured by what it did, and the queue under it.

    With more clients than pixels, a line is the mean of a group of clients. A pixel that covers several iterations has
    their mean colour, so the picture shows shares of time and not samples.

    Args:
        simulator: an episode recorded from its beginning.
        width: pixels, even, at least 640.
        height: pixels, even, at least 400.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ConfigError: a size that is odd or too small, or an episode that was not recorded.
        MissingExtraError: pillow is not installed.
    """
    check_size(width, height)
    place = _Layout.of(width, height)
    span_ns = _span_ns(simulator)
    columns = place.right - place.left
    edges_ns = np.linspace(0.0, span_ns, columns + 1)
    now = min(columns, int(np.ceil(float(simulator.view.clock_ns) / span_ns * columns)))  # columns in use

    length = _queue(simulator, edges_ns[: now + 1])
    most_waiting = round_up(max(1.0, float(simulator.view.waiting), float(length.max(initial=0.0))))

    said = _numbers(simulator)
    names = tuple(number[:2] for number in said)
    fixed = (simulator.problem.num_clients, span_ns, most_waiting, names, kinds_of(simulator))
    pixels = _furniture(width, height, *fixed).copy()
    _fill_timeline(pixels, place, simulator, edges_ns[: now + 1])
    _fill_queue(pixels, place, length / most_waiting)
    for top, bottom in ((place.top, place.bottom), (place.queue_top, place.queue_bottom)):
        pixels[top:bottom, place.left + now] = INK
    picture = viz_module("PIL.Image", "pillow", "Drawing a frame").fromarray(pixels)
    _draw_moment(_drawer(picture), place, simulator, said)
    return np.array(picture)


def _span_ns(simulator: Simulator) -> float:
    """Length of the time axis: round, and grown in steps, so that the picture seldom jumps."""
    cost = simulator.problem.data.believed
    decode_ns = int(cost.alpha_decode_ns) + int(cost.beta_decode_ns) * simulator.problem.num_clients
    return round_up(max(FIRST_SPAN_DECODES * float(decode_ns), float(simulator.view.clock_ns), 1.0))


def _fill_timeline(pixels: NDArray[np.uint8], place: _Layout, simulator: Simulator, edges_ns: NDArray[Any]) -> None:
    lines = place.bottom - place.top
    if len(edges_ns) < 2:
        shares(simulator, np.zeros(2), 1)  # the same complaint about a missing record at time 0
        return
    rows = min(simulator.problem.num_clients, lines)
    cells = colours(shares(simulator, edges_ns, rows), PAPER)
    pixels[place.top : place.bottom, place.left : place.left + len(edges_ns) - 1] = cells[
        np.arange(lines) * rows // lines
    ]


def _queue(simulator: Simulator, edges_ns: NDArray[Any]) -> NDArray[Any]:
    """(columns,) mean number of waiting requests."""
    if len(edges_ns) < 2:
        return np.zeros(0)
    return np.nan_to_num(waiting(simulator, edges_ns))


def _fill_queue(pixels: NDArray[np.uint8], place: _Layout, height: NDArray[Any]) -> None:
    lines = place.queue_bottom - place.queue_top
    filled = np.arange(lines, 0, -1)[:, None] <= np.ceil(height * lines)  # (lines, columns)
    pixels[place.queue_top : place.queue_bottom, place.left : place.left + len(height)][filled] = QUEUE


@functools.lru_cache(maxsize=16)
def _furniture(
    width: int,
    height: int,
    num_clients: int,
    span_ns: float,
    most_waiting: float,
    names: tuple[tuple[str, float], ...],
    kinds: tuple[str, ...],
) -> NDArray[np.uint8]:
    """(height, width, 3): what stays the same from one frame to the next; rendering text is slow."""
    place = _Layout.of(width, height)
    picture = viz_module("PIL.Image", "pillow", "Drawing a frame").new("RGB", (width, height), PAPER)
    draw = _drawer(picture)
    small = _font(round(12 * place.scale))
    for x, (name, _) in zip(_number_places(place, names), names, strict=True):
        draw.text((x, round(14 * place.scale)), name, fill=FAINT, font=small)
    _draw_legend(draw, place, kinds)
    _draw_axes(draw, place, num_clients, span_ns, most_waiting)
    return np.array(picture)


def _numbers(simulator: Simulator) -> list[tuple[str, float, str]]:
    """(name, share of the width, value): under SLOs goodput, late requests and load, of a KV cache its use.

    Goodput so far is that of the counted requests that are released; one that is late has missed its TTFT.
    """
    view, problem, totals = simulator.view, simulator.problem, simulator.totals
    unit, length_ns = time_unit(_span_ns(simulator))
    clock_ns, serving = int(view.clock_ns), "slo" in problem.options
    busy = float(totals.busy_client_ns) / (problem.num_clients * clock_ns) if clock_ns else None
    said = [(f"time ({unit})", 1.0, f"{clock_ns / length_ns:,.2f}")]
    if serving:
        released = int(np.searchsorted(problem.release_ns, clock_ns, "right"))
        first, last = (int(problem.options["slo"][end]) for end in ("first", "last"))
        counted = min(released, last) - first
        goodput = None if counted <= 0 else 1.0 - int(totals.violations) / counted
        late = f"{int(totals.ttft_violations):,}"
        said += [("goodput", 1.0, _percent(goodput)), ("late", 0.8, late), ("load", 0.7, _load(problem))]
    else:
        said.append(("utilization", 1.0, _percent(busy)))
    if "kv" in problem.options:
        said.append(("memory", 1.0, _percent(int(view.kv_used) / int(view.kv_budget_tokens))))
    said += [
        ("complete", 1.5, f"{int(view.completed):,} / {problem.num_requests:,}"),
        ("waiting", 0.85, f"{int(view.waiting):,}"),
        ("active", 1.25, f"{int(view.active):,} / {problem.num_clients:,}"),
    ]
    if not serving:
        said += [("prefills", 0.85, f"{int(view.prefills):,}"), ("decodes", 0.85, f"{int(view.decodes):,}")]
    return said


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _load(problem: Problem) -> str:
    """The rate of arrivals as a share of the capacity; requests/s where a cost model has none."""
    release_ns, model = problem.release_ns, problem.data.actual.model
    span_s = float(release_ns[-1] - release_ns[0]) / 1e9
    if span_s == 0:
        return "-"
    rate = (len(release_ns) - 1) / span_s
    try:
        means = (float(problem.requests[:, column].mean()) for column in (PROMPT, OUTPUT))
        return f"{rate / capacity_requests_per_s(model, problem.num_clients, *means):.2f}"
    except ConfigError:
        return f"{rate:.3g}/s"


def _number_places(place: _Layout, names: Sequence[tuple[str, float]]) -> NDArray[Any]:
    """(numbers,) left ends: wider where two of them stand side by side."""
    share = np.array([width for _, width in names])
    before: NDArray[Any] = (np.cumsum(share) - share) / share.sum()
    return place.left + before * (place.right - place.left)


def _draw_moment(draw: ImageDraw, place: _Layout, simulator: Simulator, said: Sequence[tuple[str, float, str]]) -> None:
    large = _font(round(19 * place.scale))
    for x, (_, _, value) in zip(_number_places(place, [one[:2] for one in said]), said, strict=True):
        draw.text((x, round(29 * place.scale)), value, fill=INK, font=large)
    caption = "before the first iteration"
    if len(simulator.log):
        last = simulator.log[-1]
        kind, clients = "prefill" if last["prefill"] else "decode", int(last["clients"])
        kind = "mixed" if last["mixed"] else kind
        duration_ms = (int(last["end_ns"]) - int(last["start_ns"])) / 1e6
        caption = f"last: {kind}, {clients:,} client{'s' * (clients != 1)}, {duration_ms:,.1f} ms"
    draw.text((place.left, place.caption), caption, fill=FAINT, font=_font(round(13 * place.scale)))


def _draw_legend(draw: ImageDraw, place: _Layout, kinds: tuple[str, ...]) -> None:
    font, size = _font(round(13 * place.scale)), round(11 * place.scale)
    x = float(place.right)
    for kind in reversed(kinds):
        x -= font.getlength(kind)
        draw.text((x, place.caption), kind, fill=INK, font=font)
        x -= size + round(6 * place.scale)
        top = place.caption + round(3 * place.scale)
        draw.rectangle((x, top, x + size, top + size), fill=COLOURS[kind], outline=FAINT)
        x -= round(18 * place.scale)


def _draw_axes(draw: ImageDraw, place: _Layout, num_clients: int, span_ns: float, most_waiting: float) -> None:
    font, scale = _font(round(12 * place.scale)), place.scale
    gap, mark = round(7 * scale), round(4 * scale)
    for top, bottom in ((place.top, place.bottom), (place.queue_top, place.queue_bottom)):
        draw.line([(place.left - 1, top), (place.left - 1, bottom), (place.right, bottom)], fill=RULE)

    line = (place.bottom - place.top) / num_clients
    few = num_clients <= 5
    for name in range(num_clients) if few else ticks(num_clients - 1, 5):
        y = place.top + (name + (0.5 if num_clients <= 50 else 0.0)) * line
        draw.line([(place.left - mark, y), (place.left - 1, y)], fill=FAINT)
        draw.text((place.left - gap, y), f"{round(name):,}", fill=FAINT, font=font, anchor="rm")
    draw.text((round(8 * scale), place.caption), "client", fill=FAINT, font=font)

    draw.text((place.left - gap, place.queue_top), f"{most_waiting:,g}", fill=FAINT, font=font, anchor="rt")
    draw.text((place.left - gap, place.queue_bottom), "0", fill=FAINT, font=font, anchor="rs")
    middle = (place.queue_top + place.queue_bottom) // 2
    draw.text((place.left - gap, middle), "waiting", fill=FAINT, font=font, anchor="rm")

    unit, length_ns = time_unit(span_ns)
    for name in ticks(span_ns / length_ns, 8):
        x = place.left + name * length_ns / span_ns * (place.right - place.left)
        draw.line([(x, place.queue_bottom), (x, place.queue_bottom + mark)], fill=FAINT)
        draw.text((x, place.queue_bottom + gap), f"{name:,g}", fill=FAINT, font=font, anchor="mt")
    draw.text(
        (place.right, place.queue_bottom + round(22 * scale)), f"time ({unit})", fill=FAINT, font=font, anchor="rt"
    )
