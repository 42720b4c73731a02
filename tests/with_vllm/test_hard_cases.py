"""What makes a scheduler difficult: little memory, cached prefixes, long prompts, aborts, and policies that fail."""

from __future__ import annotations

import csv
import warnings

import pytest

pytest.importorskip("vllm.config")

import vllm_bare as bare
from vllm.v1.request import RequestStatus
from vllm_playing import COST, REQUESTS, SLO, Playing, compare, drawn, options

from llmsched_env.engines.session import EngineWarning
from llmsched_env.errors import ConfigError, LLMSchedError

TIGHT = {"blocks 20": (20, 16, 0.0), "blocks 14, five seats": (14, 5, 0.0), "watermark": (20, 16, 0.12)}


@pytest.mark.parametrize("room", TIGHT)
@pytest.mark.parametrize(
    ("policy", "parameters", "more"),
    [
        ("prefill_first", [], {}),
        ("threshold", [3], {}),
        ("mixed_first", [], {"mixed_tokens": 64, "mixed_counts_active": True}),
    ],
    ids=["prefill_first", "threshold", "mixing"],
)
def test_it_preempts_as_the_simulator_does(model, room, policy, parameters, more):
    """Every field of the view, the memory's among them, though vLLM's own block pool decides."""
    blocks, seats, watermark = TIGHT[room]
    requests = drawn(5, 150, 900, (1, 60), (1, 60))
    told = options(policy, parameters, kv=True, **more)
    serving = bare.scheduler(model, told, seats=seats, blocks=blocks, watermark=watermark)
    playing = Playing(serving)
    playing.play(requests)
    compare(playing, policy, parameters, requests)
    assert playing.preemptions > 0, "nobody gave way: the tight cache was not tested"


def test_a_hidden_memory_limits_all_the_same(model):
    requests = drawn(5, 80, 900, (1, 60), (1, 60))
    serving = bare.scheduler(model, options("threshold", [3]), seats=16, blocks=16)
    playing = Playing(serving)
    playing.play(requests)
    assert playing.preemptions > 0
    assert not any(view["kv_used"] or view["kv_budget_tokens"] for view in playing.views)
    assert any(view["preempted"] for view in playing.views)
    assert len(playing.last_ns) == len(requests)


def test_cached_prefixes_are_not_read_again(model):
    told = options("threshold", [3])
    serving = bare.scheduler(model, told, seats=8, caching=True)
    playing = Playing(serving)
    playing.play([(100 * i, 100, 5) for i in range(60)])  # all alike
    assert len(playing.last_ns) == 60
    assert playing.tokens_read < 60 * 100 / 2, "no prefix was cached"
    assert serving.session.driver.look().active == 0


def test_a_prompt_above_the_cap_is_read_alone(model):
    requests = [(0, 450, 5), (0, 30, 9), (50, 700, 3), (60, 20, 4)]
    serving = bare.scheduler(model, options("threshold", [2]))
    playing = Playing(serving)
    playing.play(requests)
    compare(playing, "threshold", [2], requests)


def test_a_prompt_above_the_token_budget_is_read_in_parts(model):
    serving = bare.scheduler(model, options("threshold", [2]), tokens=256)
    playing = Playing(serving)
    playing.play([(0, 600, 5), (0, 30, 9), (50, 700, 3), (60, 20, 4), *drawn(3, 40, 2000)[4:]])
    assert len(playing.last_ns) == 40
    assert max(playing.reads) == 256


def test_aborted_requests_leave(model):
    """Waiting, active and partly read ones; in the middle of an iteration, too."""
    serving = bare.scheduler(model, options("threshold", [3]), tokens=256, seats=4)
    for i in range(30):
        serving.add_request(bare.request(str(i), 0, 600 if i == 3 else 20 + i, 30))
    seen = set()
    for i in range(200):
        output = serving.schedule()
        for number in {3: (20, 25), 6: (0, 1), 9: (7,), 12: (3, 4, 5), 40: (9, 10, 29)}.get(i, ()):
            one = serving.requests.get(str(number))
            if one is not None:
                seen.add((one.status == RequestStatus.RUNNING, one.num_computed_tokens < one.num_prompt_tokens))
                serving.finish_requests(str(number), RequestStatus.FINISHED_ABORTED)
        bare.answer(serving, output)
        view = serving.session.driver.look()
        waiting = sum(len(getattr(serving, name)) for name in ("waiting",))
        assert (view.waiting + view.preempted, view.active + view.idle) == (waiting, 4)
        if not serving.requests:
            break
    assert not serving.requests
    assert {(False, True), (True, False)} <= seen, "no waiting or no active request was aborted"
    assert not serving.session.lost
    assert (view.waiting, view.active, view.waiting_tokens, view.context_tokens) == (0, 0, 0, 0)


class Fails:
    name, kind, clairvoyant = "fails", "rule", False

    def reset(self, start):
        self.asked = 0

    def act(self, view):
        self.asked += 1
        if self.asked % 3 == 0:
            raise RuntimeError("no idea")
        return "prefill" if self.asked % 3 == 1 else 17


def test_a_policy_that_fails_stops_nothing(model):
    """vLLM's own schedule for those steps, one warning, and the same requests complete."""
    serving = bare.scheduler(model, options("test_hard_cases:Fails"))
    own = bare.scheduler(model, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(60):
            for one in (serving, own):
                one.add_request(bare.request(str(i), 0, 20 + i, 10))
            theirs, ours = own.schedule(), serving.schedule()
            assert ours.num_scheduled_tokens == theirs.num_scheduled_tokens
            bare.answer(own, theirs)
            bare.answer(serving, ours)
    words = [str(one.message) for one in said if one.category is EngineWarning]
    assert len(words) == 1
    assert "the engine goes by its own schedule in this step" in words[0]
    assert serving.session.failed > 20
    assert not serving.session.lost


@pytest.mark.parametrize("policy", ["threshold", "mixed_first"])
def test_a_shadow_changes_nothing(model, tmp_path, policy):
    more = {"mixed_tokens": 64, "mixed_counts_active": True} if policy == "mixed_first" else {}
    log = tmp_path / "log.csv"
    told = options(policy, [] if more else [4], shadow=True, log=str(log), **more)
    playing, alone = Playing(bare.scheduler(model, told, tokens=128)), bare.scheduler(model, None, tokens=128)
    for number, (_, prompt, output) in enumerate(REQUESTS["batch"]):
        playing.serving.add_request(bare.request(str(number), 0, prompt, output))
        alone.add_request(bare.request(str(number), 0, prompt, output))
    count = 0
    while alone.requests:
        theirs, ours = alone.schedule(), playing.serving.schedule()
        assert ours.num_scheduled_tokens == theirs.num_scheduled_tokens
        bare.answer(alone, theirs)
        bare.answer(playing.serving, ours)
        count += 1
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    kinds = {(row["policy_kind"], row["engine_kind"]) for row in rows}
    assert ("decode", "mixed") in kinds if policy == "threshold" else ("mixed", "mixed") in kinds
    assert {row["same"] for row in rows} == {"0", "1"}
    assert float(rows[-1]["start_s"]) + float(rows[-1]["engine_s"]) == pytest.approx(
        playing.serving.session.driver.clock_ns / 1e9
    )


@pytest.mark.parametrize("blocks", [10_000, 24])
def test_iterations_may_be_scheduled_ahead(model, blocks):
    """As vLLM schedules asynchronously: the next iteration before the last one has ended."""
    from llmsched_env.engines.vllm import AsyncLLMSchedScheduler

    told = options("threshold", [3])
    serving = bare.scheduler(model, told, kind=AsyncLLMSchedScheduler, overlapping=True, blocks=blocks)
    tokens, under_way = {}, []
    for number, (_, prompt, output) in enumerate(drawn(5, 80, 0, (1, 60), (1, 60))):
        serving.add_request(bare.request(str(number), 0, prompt, output))
    wanted = {name: one.max_tokens for name, one in serving.requests.items()}
    for _ in range(5000):
        output = serving.schedule()
        under_way.append((output, bare.sampling(serving, output)))
        while len(under_way) > (1 if output.num_scheduled_tokens else 0):
            for name, count in bare.answer(serving, *under_way.pop(0)).items():
                tokens[name] = tokens.get(name, 0) + count
        if not serving.requests:
            break
    assert {name: min(count, wanted[name]) for name, count in tokens.items()} == wanted
    assert not serving.session.lost
    view = serving.session.driver.look()
    assert (view.waiting, view.active, view.preempted, view.context_tokens) == (0, 0, 0, 0)
    assert view.prefills > 10
    assert view.mixed == 0


@pytest.mark.parametrize(
    ("more", "named", "words"),
    [
        ({"policy": "beam"}, {}, "plans with the true output lengths, which no engine knows"),
        ({"policy": "rollout"}, {}, "plans with futures of the running episode"),
        ({"policy": "hybrid"}, {}, "queues of the clients' own|one shared queue"),
        ({"policy": "deadline"}, {}, "needs SLOs"),
        ({"policy": "threshhold"}, {}, "threshold"),
        ({"policy": "threshold", "parameters": [1, 2, 3]}, {}, "does not take parameters"),
        ({"policy": "threshold", "colour": 3}, {}, "colour"),
        ({"policy": "threshold", "lengths": "predicted"}, {}, "without predictions"),
        ({"policy": "threshold", "prefill_token_cap": 4096}, {}, "exceeds the engine's token budget of 2048"),
        ({"policy": "vllm_v1", "mixed_tokens": 64}, {"tokens": 256}, "mixed_tokens = 2048"),
        ({"policy": "memory_aware"}, {}, "needs a budget"),
        ({"policy": "memory_aware", "kv": True}, {"caching": True}, "prefix caching"),
        ({"policy": "threshold", "log": "/proc/none/log.csv"}, {}, "cannot write"),
        ({"policy": "threshold"}, {"policy": "priority"}, "scheduling policy 'priority' is not supported"),
        ({"policy": "threshold"}, {"long_prefill_token_threshold": 64}, "long_prefill_token_threshold"),
        ({"policy": "threshold"}, {"overlapping": True}, "AsyncLLMSchedScheduler"),
        ({"policy": "threshold", "log": 5}, {}, "log = 5: give the path"),
        ({"policy": "threshold", "mean_output_tokens": "x"}, {}, "mean_output_tokens = 'x': give a number"),
        ({}, {}, "give a mapping with a policy"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_request(model, more, named, words):
    told = {"cost": COST, **more}
    with pytest.raises(LLMSchedError, match=words):
        bare.scheduler(model, told, **named)


def test_the_engine_says_who_decides(model, caplog):
    with caplog.at_level("INFO", "vllm"):
        bare.scheduler(model, options("threshold", [3]))
    assert "policy 'threshold' decides: 8 seats, 400 prompt tokens an iteration, cost model 'toy'." in caplog.messages


def test_another_version_is_refused(model, monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.11.2")
    with pytest.raises(ConfigError, match=r"vLLM 0.11.2 is not supported.*0.27.1 to 0.32.0"):
        bare.scheduler(model, options("threshold", [3]))


def test_many_requests_outgrow_the_table(model, monkeypatch):
    from llmsched_env.engines import driver

    monkeypatch.setattr(driver, "ROOM", 16)
    mixing = {"mixed_tokens": 64, "mixed_counts_active": True, "kv": True}
    for name, parameters, more, blocks in (
        ("threshold", [4], {}, 10_000),
        ("deadline", [4, 0.5], {**SLO, "order": "late_last"}, 10_000),
        ("mixed_first", [], mixing, 20),
    ):
        requests = REQUESTS["arrivals"] if blocks > 20 else drawn(5, 150, 900, (1, 60), (1, 60))
        playing = Playing(bare.scheduler(model, options(name, parameters, **more), seats=8, blocks=blocks))
        playing.play(requests)
        compare(playing, name, parameters, requests)
