"""The shares of client-time behind every timeline."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.cases import build_problem
from llmsched_env.config import Mixed
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine import codes
from llmsched_env.engine.rules import Always
from llmsched_env.errors import ConfigError
from llmsched_env.metrics import final_metrics
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.cells import COLOURS, KINDS, colours, kinds_of, shares, waiting
from llmsched_env.workload import Requests

PREFILL, DECODE, STALLED, IDLE, MIXED = range(5)

frame_module = importlib.import_module("llmsched_env.viewer.frame")  # the package has a function of that name


def test_kinds_by_hand(by_hand):
    edges = np.arange(77.0)
    cells = shares(by_hand, edges, 2)
    lengths = (20, 30, 6, 15, 5)
    first = np.repeat([PREFILL, STALLED, DECODE, STALLED, DECODE], lengths)
    second = np.repeat([IDLE, PREFILL, DECODE, PREFILL, IDLE], lengths)
    assert (cells == np.eye(5)[np.stack([first, second])].transpose(2, 0, 1)).all()


def test_shares_of_a_cell_by_hand(by_hand):
    # [45, 61): client 0 is stalled 5, decodes 6, is stalled 5; client 1 is in prefills 5 + 5, decodes 6.
    one = shares(by_hand, np.array([45.0, 61.0]), 2)[:, :, 0]
    assert one == pytest.approx(np.array([[0, 6, 10, 0, 0], [10, 6, 0, 0, 0]]).T / 16)
    both = shares(by_hand, np.array([45.0, 61.0]), 1)[:, 0, 0]
    assert both == pytest.approx(np.array([10, 12, 10, 0, 0]) / 32)


def test_queue_by_hand(by_hand):
    # Two wait in [0, 20), one in [20, 56), none after.
    assert waiting(by_hand, np.array([0.0, 20.0, 56.0, 76.0])) == pytest.approx([2, 1, 0])
    assert waiting(by_hand, np.array([10.0, 30.0])) == pytest.approx([1.5])


def test_after_the_clock_there_is_nothing(by_hand):
    edges = np.array([70.0, 78.0, 90.0])
    cells = shares(by_hand, edges, 2)
    assert cells[:, :, 0].sum(axis=0) == pytest.approx([1, 1])
    assert cells[DECODE, 0, 0] == pytest.approx(5 / 6)
    assert (cells[:, :, 1] == 0).all()
    assert np.isnan(waiting(by_hand, edges)[1])
    assert (colours(cells, (1, 2, 3))[:, 1] == (1, 2, 3)).all()


def test_a_running_request_lasts_until_now(by_hand):
    by_hand.reset()
    by_hand.step(1)
    by_hand.step(1)
    cells = shares(by_hand, np.array([0.0, 20.0, 50.0]), 2)
    assert cells[:, 0].argmax(axis=0).tolist() == [PREFILL, STALLED]
    assert cells[:, 1].argmax(axis=0).tolist() == [IDLE, PREFILL]
    assert waiting(by_hand, np.array([20.0, 50.0])) == pytest.approx([1])


@pytest.mark.parametrize("num_clients", [1, 3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_replay(random_episode, num_clients, seed):
    """The same shares from watching each client before and after every iteration."""
    episode = random_episode(num_clients, seed=seed)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, 6500, 41)
    spent = np.zeros((5, num_clients, 40))
    begin = 0
    jumped = 0
    while not episode.done:
        running = np.array(episode.episode.clients)[:, codes.RUNNING]
        start_ns = int(episode.view.clock_ns)
        jumped += start_ns > begin
        spent[IDLE] += overlap(edges, begin, start_ns)
        episode.step(int(rng.random() < 0.5))
        end_ns = int(episode.log[-1]["end_ns"])
        began = episode.served["prefill_start_ns"] == start_ns
        takers = set(episode.served["client"][began & (episode.served["first_token_ns"] > 0)].tolist())
        for client in range(num_clients):
            if episode.log[-1]["prefill"]:
                kind = PREFILL if client in takers else STALLED if running[client] >= 0 else IDLE
            else:
                kind = DECODE if running[client] >= 0 else IDLE
            spent[kind, client] += overlap(edges, start_ns, end_ns)
        begin = end_ns
    assert jumped, "no gap between arrivals: the jump of the clock was not tested"
    width = np.maximum(np.diff(np.minimum(edges, begin)), 1e-9)
    assert shares(episode, edges, num_clients) == pytest.approx(spent / width, abs=1e-5)


def overlap(edges, start, end):
    return np.maximum(0, np.minimum(edges[1:], end) - np.maximum(edges[:-1], start))


@pytest.mark.parametrize(("rows", "columns"), list(itertools.product([1, 3, 4, 9], [1, 10, 333])))
def test_time_is_conserved_at_any_size(random_episode, rows, columns):
    """Prefill and decode over all cells are the utilization, weighted by the clients of each row."""
    episode = random_episode(9)
    while not episode.done:
        episode.step(0)
    now = float(episode.view.clock_ns)
    cells = shares(episode, np.linspace(0, now, columns + 1), rows)
    weight = np.bincount(np.arange(9) * rows // 9) / 9
    busy = weight @ (cells[PREFILL] + cells[DECODE]).mean(axis=1)
    assert busy == pytest.approx(float(episode.totals.busy_client_ns) / (9 * now), rel=1e-5)
    assert cells.sum(axis=0) == pytest.approx(1, abs=1e-5)


def test_colours_mix_by_share():
    cells = np.zeros((5, 1, 2), np.float32)
    cells[DECODE, 0, 0] = 1
    cells[[DECODE, IDLE], 0, 1] = 0.5
    mixed = colours(cells)
    assert tuple(mixed[0, 0]) == COLOURS["decode"]
    half = (np.array(COLOURS["decode"]) + COLOURS["idle"]) / 2
    assert np.abs(mixed[0, 1] - half).max() <= 0.5


def test_kinds_differ_in_grey():
    grey = sorted(np.dot(COLOURS[kind], (0.299, 0.587, 0.114)) for kind in KINDS)
    assert min(np.diff(grey)) > 10


def test_a_partial_record_is_refused(by_hand):
    by_hand.reset()
    by_hand.step(1)
    twin = by_hand.fork(record=True)
    twin.step(1)
    with pytest.raises(ConfigError, match=r"1 of 2 were recorded.*record=True"):
        shares(twin, np.arange(3.0), 2)
    silent = by_hand.fork()
    with pytest.raises(ConfigError, match="0 of 1 were recorded"):
        waiting(silent, np.arange(3.0))


@pytest.mark.parametrize(
    "place",
    [
        {"name": "LLMSched/KVMemory-v0", "num_clients": 40, "kv_budget_tokens": 4000, "choose_cap": False},
        {"name": "LLMSched/KVMemory-v0", "num_clients": 40, "kv_budget_tokens": 4000, "kv_swap_gb_per_s": 25.0},
        {"name": "LLMSched/Migration-v0", "num_clients": 12},
    ],
    ids=["recompute", "swap", "moves"],
)
def test_nobody_is_drawn_twice_where_requests_are_preempted_or_move(place):
    scenario = make_scenario(**{"split": "test", "num_requests": 80, **place})
    simulator = Simulator(build_problem(scenario, 0), record=True)
    seen = 0
    while not simulator.done:
        for _ in range(60):
            if not simulator.done:
                simulator.step(1)  # a decode where no prefill is feasible
        seen += int(simulator.totals.preemptions + simulator.totals.migrations)
        now_ns = float(simulator.view.clock_ns)
        cells = shares(simulator, np.linspace(0.0, now_ns, 300), scenario.num_clients)
        assert cells.sum(axis=0) == pytest.approx(np.ones(cells.shape[1:]), abs=1e-5)
    assert seen > 0
    events = simulator.events
    left = events[events["event"] == codes.SUSPENDED]
    assert (left["client"] != simulator.served["client"][left["request"]]).any(), "all came back to where they were"
    # Drawn on every client that they had, they fill what the engine counts as busy.
    drawn = shares(simulator, np.array([0.0, now_ns]), 1)[[PREFILL, DECODE]].sum()
    assert drawn == pytest.approx(final_metrics(simulator)["utilization"], rel=1e-5)


def test_mixed_iterations_have_a_colour_of_their_own():
    """On paper: two clients, two prompts of 4 tokens, chunks of 4; a mixed iteration of c prompt tokens lasts 10 + c.

    The first prompt is read alone, [0, 14); while the second is read, [14, 28), client 0 decodes beside it; then both
    decode, [28, 38).
    """
    requests = Requests.of([4, 4], [3, 2])
    problem = Problem.build(
        requests, requests.output_tokens, CostModel("paper", 10, 1, 10, 0), 2, client_of=None, order="fcfs",
        stealing=False, bound_ns=30, mechanisms=(Mixed(4, False, False, MixedCost(alpha_ns=10, beta_prompt_ns=1)),),
    )  # fmt: skip
    simulator = Simulator(problem, record=True)
    assert kinds_of(simulator) == KINDS
    for action in (2, 2, 0):
        simulator.step(action)
    assert simulator.done
    cells = shares(simulator, np.array([0.0, 14.0, 28.0, 38.0]), 2)
    assert cells.argmax(axis=0).tolist() == [[PREFILL, MIXED, DECODE], [IDLE, PREFILL, DECODE]]
    assert set(np.unique(cells)) == {0.0, 1.0}
    assert "mixed" in texts_of(simulator)


def texts_of(simulator):
    """What a frame has written on it: read off the calls, since letters cannot be."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_module, "_drawer", lambda picture: Listening(picture, said))
        frame_module._furniture.cache_clear()
        frame_module.frame(simulator)
    frame_module._furniture.cache_clear()
    return said


class Listening:
    def __init__(self, picture, said):
        from PIL import ImageDraw

        self._draw, self._said = ImageDraw.Draw(picture), said

    def text(self, place, text, **options):
        self._said.append(text)
        self._draw.text(place, text, **options)

    def __getattr__(self, name):
        return getattr(self._draw, name)


@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("LLMSched/GSM8K-v0", {"utilization", "prefills", "decodes"}, {"goodput", "memory", "mixed", "load"}),
        ("LLMSched/Serving-v0", {"goodput", "late", "load", "0.90"}, {"utilization", "memory", "mixed"}),
        ("LLMSched/KVMemory-v0", {"memory"}, {"mixed"}),
        ("LLMSched/Mixed-v0", {"mixed"}, {"memory"}),
    ],
)
def test_a_frame_has_the_numbers_of_its_world(name, there, absent):
    scenario = make_scenario(name, split="test", num_requests=200, num_clients=20)
    simulator = Simulator(build_problem(scenario, 0), record=True)
    assert "-" in texts_of(simulator), "before the first iteration there is no share of anything"
    for _ in range(100):
        simulator.step(1)
    said = texts_of(simulator)
    assert there <= {*said}
    assert not absent & {*said}
    if "goodput" in there:
        simulator.run(Always(1))  # of the whole case it is the metric
        assert f"{100 * final_metrics(simulator)['goodput']:.1f} %" in texts_of(simulator)
        assert f"{int(simulator.totals.ttft_violations):,}" in texts_of(simulator)
    if "memory" in there:
        assert f"{100 * int(simulator.view.kv_used) / int(simulator.view.kv_budget_tokens):.1f} %" in said
