"""Frames, text and the window."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from llmsched_env import viewer
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, MissingExtraError
from llmsched_env.snapshot import snapshot
from llmsched_env.viewer.cells import COLOURS
from llmsched_env.viewer.scales import round_step, round_up, ticks, time_unit

SMALL = {"num_clients": 6, "num_requests": 12, "assignment": "lpt"}


def has_colour(picture, kind):
    return (picture == COLOURS[kind]).all(axis=2)


def finish(episode):
    while not episode.done:
        episode.step(0)


@pytest.mark.parametrize("num_clients", [1, 2, 60, 5000])
def test_frames_keep_their_size(random_episode, num_clients):
    episode = random_episode(num_clients)
    sizes = {viewer.frame(episode).shape}
    for _ in range(5):
        episode.step(1)
        sizes.add(viewer.frame(episode).shape)
    finish(episode)
    last = viewer.frame(episode)
    assert sizes | {last.shape} == {(600, 960, 3)}
    assert last.dtype == np.uint8
    assert viewer.frame(episode, width=640, height=400).shape == (400, 640, 3)


def test_a_frame_shows_each_kind_for_its_time(by_hand):
    """Below the legend, pixels of a kind are to all pixels of the timeline as its client-time is to all of it."""
    picture = viewer.frame(by_hand)[100:]
    pixels = {kind: int(has_colour(picture, kind).sum()) for kind in COLOURS}
    total = sum(pixels.values())
    expected = {"prefill": 20 + 30 + 15, "decode": 6 + 6 + 5, "stalled": 30 + 15, "idle": 20 + 5}
    assert sum(expected.values()) == 2 * 76
    for kind, client_ns in expected.items():
        # Columns of several kinds have mixed colours: at most one a border of 5 iterations.
        assert pixels[kind] / total == pytest.approx(client_ns / (2 * 76), abs=0.02)


def test_a_frame_does_not_change_the_episode_or_a_frame_before(by_hand):
    before = viewer.frame(by_hand)
    kept, state = before.copy(), pickle.dumps(snapshot(by_hand.episode))
    after = viewer.frame(by_hand)
    assert (after == kept).all()
    after[:] = 0
    assert (before == kept).all()
    assert (viewer.frame(by_hand) == kept).all()
    assert pickle.dumps(snapshot(by_hand.episode)) == state


def test_the_start_is_empty(by_hand):
    by_hand.reset()
    picture = viewer.frame(by_hand)[100:]
    assert not any(has_colour(picture, kind).any() for kind in COLOURS)


@pytest.mark.parametrize(("size", "words"), [({"width": 961}, "width = 961"), ({"height": 398}, "height = 398")])
def test_sizes_that_no_video_takes(by_hand, size, words):
    with pytest.raises(ConfigError, match=f"{words} pixels is odd or too small.*at least"):
        viewer.frame(by_hand, **size)


def test_a_frame_needs_a_record(by_hand):
    by_hand.reset()
    with pytest.raises(ConfigError, match="record=True"):
        viewer.frame(by_hand.fork())


def test_text_by_hand(by_hand):
    assert viewer.text(by_hand).splitlines() == [
        "time     76.000 ns   utilization 53.9 %",  # (20 + 30 + 2 * 6 + 15 + 5) / (2 * 76)
        "done     3 of 3 requests   3 prefills   2 decodes",
        "clients  [..] 0 active, 2 idle",
        f"queue    [{' ' * 60}] 0 waiting",
        "last     PPDPD",
        "end      all requests complete, 26.67 % above the lower bound",  # 76 / 60
    ]


def test_text_in_the_middle(by_hand):
    by_hand.reset()
    assert "last     nothing yet" in viewer.text(by_hand)
    by_hand.step(1)
    said = viewer.text(by_hand)
    assert "[#.] 1 active, 1 idle" in said
    assert "next     prefill 1 request, 20 tokens, 0.0 ms | decode 1 client, 0.0 ms" in said
    assert "nothing recorded" in viewer.text(by_hand.fork())


@pytest.mark.parametrize("num_clients", [1, 2, 5000])
def test_text_stays_narrow(random_episode, num_clients):
    episode = random_episode(num_clients)
    while not episode.done:
        assert max(map(len, viewer.text(episode).splitlines())) < 110
        episode.step(1)


@pytest.fixture
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return pytest.importorskip("pygame", reason="pygame-ce is not installed")


def test_window(no_screen, by_hand):
    window = viewer.Window(1000)
    assert not window.is_open
    window.show(by_hand)
    assert window.is_open
    shown = no_screen.surfarray.array3d(no_screen.display.get_surface()).transpose(1, 0, 2)
    assert (shown == viewer.frame(by_hand)).all()
    window.close()
    window.close()
    assert not window.is_open


def test_a_closed_window_stays_closed(no_screen, by_hand):
    window = viewer.Window(1000)
    window.show(by_hand)
    no_screen.event.post(no_screen.event.Event(no_screen.QUIT))
    for _ in range(2):
        window.show(by_hand)
        assert not window.is_open
    window.close()


def test_no_display(no_screen, by_hand, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-driver")
    with pytest.raises(ConfigError, match=r"cannot open a window.*rgb_array"):
        viewer.Window(30).show(by_hand)


def test_human_mode(no_screen):
    env = gymnasium.make("LLMSched/GSM8K-v0", render_mode="human", **SMALL)
    env.unwrapped.metadata["render_fps"] = 1000
    env.reset(seed=0)
    env.step(1)
    env.close()


@pytest.mark.parametrize(
    ("library", "draw", "words"),
    [
        ("PIL", viewer.frame, "needs pillow"),
        ("pygame", lambda _: viewer.Window(30), "needs pygame-ce"),
    ],
)
def test_a_missing_library_is_named(by_hand, hide, library, draw, words):
    hide(library)
    with pytest.raises(MissingExtraError, match=rf"{words}.*llmsched-env\[viz\]"):
        draw(by_hand)
    assert isinstance(viewer.text(by_hand), str), "text needs no library"


def test_importing_the_viewer_imports_no_library():
    code = "import sys, llmsched_env.viewer; sys.exit(str({'PIL', 'pygame', 'matplotlib'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == "set()"


@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_check_env(mode):
    env = gymnasium.make("LLMSched/GSM8K-v0", render_mode=mode, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_record_video(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("moviepy", reason="moviepy is not installed: RecordVideo needs it")
    import imageio_ffmpeg  # which writes it for moviepy

    env = gymnasium.make("LLMSched/GSM8K-v0", render_mode="rgb_array", **SMALL)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "films"), video_length=12, disable_logger=True)
    env.reset(seed=0)
    for action in [1] * 12:
        env.step(action)
    env.close()
    (film,) = tmp_path.glob("films/*.mp4")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(film), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    pictures = pixels.reshape(-1, 600, 960, 3).astype(int)
    assert 12 <= len(pictures) <= 13, "a film's last picture may be shown twice"
    # Compressed, so that colours are nearly those of the cells.
    decoded = [(np.abs(one - COLOURS["decode"]).max(axis=2) < 30)[100:].sum() for one in pictures]
    assert decoded[0] < 100 < decoded[-1], "nothing happens in it"


def test_frames_of_another_size_and_a_stride():
    made = gymnasium.make("LLMSched/GSM8K-v0", render_mode="rgb_array", render_size=(640, 400), render_every=7, **SMALL)
    env = made.unwrapped
    env.reset(seed=0)
    frames, done = [env.render()], False
    while not done:
        _, _, done, _, _ = env.step(1)
        frames.append(env.render())
    assert {frame.shape for frame in frames} == {(400, 640, 3)}
    drawn = [0, *(step for step in range(1, len(frames)) if frames[step] is not frames[step - 1])]
    last = len(frames) - 1
    assert last % 7, "the end would be drawn anyway"
    assert drawn == [*range(0, last, 7), last]
    np.testing.assert_array_equal(frames[last], viewer.frame(env.simulator, width=640, height=400))
    np.testing.assert_array_equal(frames[7], frames[13])
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frames[0])


def test_a_stride_counts_iterations_not_steps():
    env = LLMSchedEnv(render_mode="rgb_array", render_every=10, skip_forced=True, **{**SMALL, "num_requests": 60})
    env.reset(seed=0)
    frame, before, done, jumps = env.render(), len(env.simulator.log), False, 0
    while not done:
        _, _, done, _, _ = env.step(1)
        again, now = env.render(), len(env.simulator.log)
        assert (again is frame) == (now - before < 10 and not done)
        if again is not frame:
            jumps += now - before > 10
            frame, before = again, now
    assert jumps, "no step had more than one iteration"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"render_size": (320, 200)}, "width = 320 pixels is odd or too small"),
        ({"render_size": (960, 601)}, "height = 601 pixels is odd"),
        ({"render_size": 960}, "render_size = 960 is not a pair"),
        ({"render_size": (960, "x")}, "height of render_size = 'x' is not a whole number"),
        ({"render_every": 0}, r"render_every = 0 is out of range"),
    ],
)
def test_sizes_and_strides_that_are_none(changes, words):
    with pytest.raises(ConfigError, match=words):
        LLMSchedEnv(render_mode="rgb_array", **changes)


def test_scales():
    assert [round_up(x) for x in (0.9, 1.0, 1.01, 7.0, 8.1, 184.0)] == pytest.approx([1, 1, 1.25, 8, 10, 200])
    assert round_step(200, 8) == pytest.approx(50)
    assert ticks(200, 8) == pytest.approx([0, 50, 100, 150, 200])
    assert ticks(0.3, 3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [time_unit(x)[0] for x in (3e9, 1.9e9, 3e6, 3e3, 3.0)] == ["s", "ms", "ms", "µs", "ns"]
