"""From a trace, a machine and SLOs to a setting: instances on paper, laws, and the command."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.engines.options import EngineFacts, EngineOptions
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.evaluation import CoverageWarning, evaluate
from llmsched_env.recommend import VLLM_DEFAULT, Machine, Setting, recommend, try_setting
from llmsched_env.recommend.__main__ import main, seconds
from llmsched_env.recommend.answer import (
    RESOLUTION,
    Candidate,
    Capacity,
    _capacity,
    _choose,
    _last_that_holds,
    attainable,
    halves,
)
from llmsched_env.recommend.page import finding, page
from llmsched_env.recommend.search import search
from llmsched_env.recommend.setting import RULES
from llmsched_env.recommend.trial import BLOCKS, Load, Outcome
from llmsched_env.workload.requests import Requests

# A prefill of p tokens takes 10 + p ms, a decode of any number of clients 5 ms, a mixed iteration 10 + c ms.
PAPER = CostModel("paper", 10_000_000, 1_000_000, 5_000_000, 0, prefill_token_cap=4096)
MACHINE = Machine(PAPER, 0.1, 0.02, longest_prompt_tokens=50, cost_name="paper")


def regular(count: int, every_ms: int, prompt: int = 20, output: int = 3) -> Requests:
    """Requests in even distances."""
    return Requests.of([prompt] * count, [output] * count, release_ns=np.arange(count) * every_ms * 10**6)


def trace(count: int = 1_200, rate: float = 6.0, seed: int = 0) -> Requests:
    """Requests as a server may see them."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1e9 / rate, count).astype(np.int64)
    prompts, outputs = rng.integers(50, 1_500, count), rng.integers(5, 300, count)
    return Requests.of(prompts, outputs, release_ns=np.cumsum(gaps) - gaps[0])


def _outcome(ttft_s) -> Outcome:
    """Requests of one token each, with a limit of 0.1 s on TTFT."""
    return Outcome(ttft_s, np.zeros(len(ttft_s)), ttft_s <= 0.1, np.ones(len(ttft_s), bool), 0.1, 0.02, 1.0, 0)


def test_an_outcome_on_paper():
    """Alone a request of 20 + 3 tokens has its first token after 10 + 20 ms, and two decodes of 5 ms follow."""
    outcome = try_setting(Setting(4, 64, "prefill_first"), MACHINE, Load("paper", regular(40, 100)))
    assert outcome.ttft_s == pytest.approx(np.full(32, 0.030))  # a tenth at each end is not counted
    assert outcome.tpot_s == pytest.approx(np.full(32, 0.005))
    assert outcome.used == pytest.approx(np.full(32, 0.3))  # 30 of 100 ms, 5 of 20
    assert outcome.goodput.mean == outcome.goodput.high == 1.0
    assert outcome.value(0.99) == pytest.approx(1.7)
    assert outcome.served_per_s == pytest.approx(40 / 3.940)  # the last comes after 3.9 s


def test_a_miss_on_paper():
    """With 25 ms between arrivals and 40 ms a request, waits grow by 15 ms a request: the 5th is the first to miss."""
    outcome = try_setting(Setting(1, 64, "prefill_first"), MACHINE, Load("paper", regular(10, 25)))
    assert outcome.ttft_s == pytest.approx([0.030 + 0.015 * i for i in range(1, 9)])
    assert outcome.met.tolist() == [True] * 4 + [False] * 4  # 90 ms for number 4, 105 ms for number 5
    assert outcome.value(0.99) == 0.5
    assert outcome.value(0.5) == pytest.approx(2 - 0.090 / 0.1)  # half of the eight use at most 90 of 100 ms
    assert outcome.value(0.25) == pytest.approx(2 - 0.060 / 0.1)  # and two of them at most 60 ms


@pytest.mark.parametrize("met", [99, 98])
def test_a_setting_that_just_meets_the_target_is_worth_more_than_one_that_does_not(met):
    """Of 100 requests 99 or 98 use half of their limit, the others ten times as much as it."""
    ttft_s = np.where(np.arange(100) < met, 0.05, 1.0)
    assert _outcome(ttft_s).value(0.99) == (1.5 if met == 99 else 0.98)


def test_what_can_be_attained_on_paper():
    """A prompt of 95 tokens takes at least 105 ms; a decode 5 ms."""
    requests = Requests.of([20, 95, 90, 20], [3, 3, 3, 1], release_ns=[0, 1, 2, 3])
    assert attainable(requests, MACHINE) == 0.75
    assert attainable(requests, replace(MACHINE, tpot_s=0.004)) == 0.25  # the one of a single token
    for setting in (Setting(4, 256), Setting(4, 256, "prefill_first")):
        load = Load("apart", Requests.of([95, 20] * 20, [3] * 40, release_ns=np.arange(40) * 10**9))
        assert try_setting(setting, MACHINE, load).goodput.mean <= attainable(load.given, MACHINE) == 0.5


def test_halves_share_no_request():
    first, second = halves(trace(401))
    assert (len(first), len(second)) == (200, 201)
    assert first.release_ns[0] == second.release_ns[0] == 0


def test_intervals_on_paper():
    """Of 40 requests in 20 blocks of two, those of the first five miss: goodput 0.75, the blocks' sd 0.4443."""
    burst = _outcome(np.where(np.arange(40) < 10, 0.2, 0.05))
    assert BLOCKS == 20
    assert burst.blocks().tolist() == [0.0] * 5 + [1.0] * 15
    # Student's t(0.975, 19) = 2.093024; sd sqrt(0.1875 * 20 / 19) = 0.444262: half width 2.093024 * sd / sqrt(20).
    assert burst.goodput == pytest.approx((0.75, 0.75 - 0.207921, 0.75 + 0.207921), abs=1e-6)
    assert _outcome(np.full(40, 0.05)).better_than(burst) == pytest.approx((0.25, 0.042079, 0.457921), abs=1e-6)
    assert burst.quantile("ttft_s", 0.5) == (0.05, 0.05, 0.05)
    assert burst.quantile("ttft_s", 0.99).mean == pytest.approx(0.2)


def test_blocks_without_a_miss_prove_no_certainty():
    """All of 40: Wilson's interval begins at 1 / (1 + z^2 / 40) with z = 1.959964, so at 40 / 43.841459."""
    assert _outcome(np.full(40, 0.05)).goodput == pytest.approx((1.0, 0.912378, 1.0), abs=1e-6)
    # 30 of 40, one in every second block: the blocks say 0.75 +- 0.120043, Wilson's interval is wider at its lower end.
    even = _outcome(np.where(np.arange(40) % 4 == 0, 0.2, 0.05)).goodput
    assert even == pytest.approx((0.75, 0.598060, 0.870043), abs=1e-6)


def test_an_outcome_is_what_evaluate_measures():
    """The same run, measured by another part of the package: goodput, its parts and the mean TTFT."""
    machine = Machine(cost_model("qwen3-8b-h200"), 0.4, 0.02, cost_name="qwen3-8b-h200")
    setting, load = Setting(256, 512), Load("busy", trace(rate=9.0))
    outcome = try_setting(setting, machine, load)
    with pytest.warns(CoverageWarning):
        columns = evaluate(setting.policy(), machine.scenario(setting, load), 1).columns
    assert 0 < outcome.goodput.mean < 1, "the SLOs do not bind: nothing was tested"
    assert outcome.goodput.mean == pytest.approx(columns["goodput"][0])
    assert outcome.ttft_met.mean() == pytest.approx(columns["ttft_met"][0])
    assert outcome.tpot_met.mean() == pytest.approx(columns["tpot_met"][0])
    assert outcome.ttft_s.mean() == pytest.approx(columns["ttft_s"][0])


@pytest.mark.parametrize("rule", RULES)
def test_what_is_printed_for_vllm_is_taken_there(rule):
    """The options of the scheduler class are those that it reads, and lead to the rule and scenario simulated."""
    numbers = {"min_batch": (4,), "deadline": (4, 0.5), "max_wait": (2,), "tgi": (0.3,), "lagrangian": (1.0,)}
    setting = Setting(64, 1_024, rule, numbers.get(rule, ()), "late_last")
    machine = Machine(cost_model("qwen3-8b-h200"), 1.0, 0.05, longest_prompt_tokens=3_000, cost_name="qwen3-8b-h200")
    words = shlex.split(setting.vllm_command(machine).replace("\\\n", " "))
    told = json.loads(words[words.index("--additional-config") + 1])["llmsched"]
    budget = int(words[words.index("--max-num-batched-tokens") + 1])
    seats = int(words[words.index("--max-num-seqs") + 1])
    assert budget == (1_024 if rule == "mixed_first" else 3_000)
    session = EngineOptions.read(told).session(EngineFacts(seats, budget, budget, None))
    simulated = machine.scenario(setting, Load("some", trace(50)))
    for name in ("num_clients", "order", "ttft_s", "tpot_s", "mixed_tokens", "mixed_counts_active"):
        assert getattr(session.driver.scenario, name) == getattr(simulated, name), name
    if rule != "mixed_first":
        assert session.driver.scenario.cost_model.prefill_token_cap == simulated.cost_model.prefill_token_cap


def test_flags_alone_where_they_suffice():
    assert Setting(64, 512).vllm_command(MACHINE) == "vllm serve MODEL --max-num-seqs 64 --max-num-batched-tokens 512"


def test_the_search_repeats_and_keeps_within_its_simulations():
    load = Load("busy", trace(600, 12.0))
    machine = Machine(cost_model("qwen3-8b-h200"), 0.5, 0.03, cost_name="qwen3-8b-h200")
    counted: list[float] = []
    once = search(machine, load, target=0.99, max_simulations=60, progress=counted.append)
    assert once.values == search(machine, load, target=0.99, max_simulations=60).values
    assert len(once.values) == len(counted) == 60
    assert counted == sorted(counted)
    best = once.best()
    assert once.values[best] == try_setting(best, machine, load).value(0.99) == max(once.values.values())
    assert all(one.tokens >= one.max_num_seqs for one in once.values if one.chunked)  # as vLLM demands


def test_a_recommendation_holds_together():
    machine = Machine(cost_model("qwen3-8b-h200"), 0.5, 0.03, longest_prompt_tokens=1_500, cost_name="qwen3-8b-h200")
    answer = recommend(trace(1_200, 6.0), machine, max_simulations=120)
    assert answer.holds
    assert answer.searched + answer.confirmed == 1_200
    assert answer.stock.setting == VLLM_DEFAULT
    for one in (answer.chosen, *answer.others):
        capacity = one.capacity
        assert capacity.low <= capacity.mean <= capacity.high
        goodput = dict(one.tried)
        assert goodput[capacity.mean].mean >= answer.target  # bisection ends between two simulated rates
        above = min(rate for rate in goodput if rate > capacity.mean)
        assert goodput[above].mean < answer.target
        assert above <= capacity.mean * RESOLUTION * (1 + 1e-9)
    assert answer.chosen.outcome.goodput.mean >= answer.target
    plain = json.loads(json.dumps(answer.as_json()))
    assert plain["recommended"]["command"].startswith("vllm serve")
    assert len(plain["tried"]) == len(answer.found.values)


def test_a_rate_that_holds_is_found_within_its_resolution():
    """Up to 7.3 times the rate, or down to a fifth of it; nothing above 0, or whatever is asked."""
    for limit in (7.3, 1.0, 0.2):
        found = _last_that_holds(lambda step, limit=limit: step <= limit, 0.01, 100.0)
        assert limit / RESOLUTION <= found <= limit
    assert _last_that_holds(lambda step: False, 0.01, 100.0) == 0.0
    assert 100.0 / RESOLUTION <= _last_that_holds(lambda step: True, 0.01, 100.0) <= 100.0


FLAGS, CLASS = Setting(64, 1_024), Setting(64, 1_024, "max_wait", (2,))


def _candidate(setting: Setting, met: int, holds_per_s: float, surely_per_s: float) -> Candidate:
    """So many of 1,000 requests meet the SLOs at the rate of 10 requests/s that was asked for."""
    outcome = _outcome(np.where(np.arange(1_000) < met, 0.05, 0.2))
    return Candidate("", setting, outcome, Capacity(holds_per_s, surely_per_s, 100.0), ())


@pytest.mark.parametrize(
    ("stock", "flags", "scheduler", "chosen"),
    [
        ((995, 12.0, 11.0), (999, 12.1, 11.0), (999, 30.0, 29.0), VLLM_DEFAULT),  # all hold: neither 2 % more rate...
        ((995, 12.0, 11.0), (995, 12.3, 11.0), (999, 30.0, 29.0), FLAGS),  # ... but 2.5 %, and flags surely hold
        ((995, 12.0, 9.0), (995, 12.1, 9.0), (999, 30.0, 29.0), CLASS),  # flags do not surely hold
        ((950, 9.0, 8.0), (954, 9.1, 8.0), (954, 9.1, 8.0), VLLM_DEFAULT),  # 0.4 points and 1 % of the rate
        ((950, 9.0, 8.0), (956, 8.0, 7.0), (950, 9.0, 8.0), FLAGS),  # 0.6 points
        ((950, 9.0, 8.0), (940, 12.0, 8.0), (940, 12.0, 8.0), VLLM_DEFAULT),  # less goodput at the rate asked for
        ((950, 9.0, 8.0), (950, 9.0, 8.0), (956, 9.0, 8.0), VLLM_DEFAULT),  # 0.6 points, but not surely: no class
        ((500, 9.0, 8.0), (500, 9.0, 8.0), (956, 9.0, 8.0), CLASS),  # 46 points are sure
    ],
)
def test_what_is_recommended_on_paper(stock, flags, scheduler, chosen):
    """Target 99 %: goodput above it counts for nothing; a change is worth half a point, or 2 % of the rate."""
    settings = (VLLM_DEFAULT, FLAGS, CLASS)
    candidates = [_candidate(one, *values) for one, values in zip(settings, (stock, flags, scheduler), strict=True)]
    best, others = _choose(candidates, 0.99, 10.0)
    assert best.setting == chosen
    assert {one.setting for one in others} == {*settings} - {chosen}


def test_of_two_that_are_level_the_one_that_holds_more():
    """0.4 points apart, 10.0 and 13.0 requests/s: goodput at a rate that is too high is not all."""
    other = Setting(64, 1_024, "tgi", (0.3,))
    found = [
        _candidate(VLLM_DEFAULT, 500, 5.0, 4.0),
        _candidate(CLASS, 954, 10.0, 9.0),
        _candidate(other, 950, 13.0, 12.0),
    ]
    assert _choose(found, 0.99, 10.0)[0].setting == other
    found[2] = _candidate(other, 948, 13.0, 12.0)
    assert _choose(found, 0.99, 10.0)[0].setting == CLASS


def test_no_scheduler_class_where_flags_hold():
    """Far below its capacity a server is left as it is."""
    machine = Machine(cost_model("qwen3-8b-h200"), 2.0, 0.1, longest_prompt_tokens=1_500, cost_name="qwen3-8b-h200")
    answer = recommend(trace(800, 1.0), machine, max_simulations=60)
    assert answer.chosen.setting == VLLM_DEFAULT


def test_a_machine_that_is_too_small():
    machine = Machine(cost_model("qwen3-8b-h200"), 0.5, 0.03, longest_prompt_tokens=1_500, cost_name="qwen3-8b-h200")
    answer = recommend(trace(1_200, 6.0), machine, rate_per_s=200.0, max_simulations=60)
    assert not answer.holds
    assert answer.searched_at_per_s < 200.0
    assert answer.machines() > 1
    assert 0 < answer.chosen.capacity.mean < 200.0


def test_slos_that_the_second_half_can_keep_at_no_rate():
    """Every 60th prompt of it takes 160 of the 100 ms: goodput stays below 0.99 however far apart requests are."""
    requests = trace(1_000, 5.0)
    prompts = np.full(1_000, 50)
    prompts[500::60] = 150
    given = Requests.of(prompts, np.full(1_000, 3), release_ns=requests.release_ns)
    machine = replace(MACHINE, longest_prompt_tokens=150)
    assert 0.99 < attainable(given, machine) < 1
    for rate in (None, 1e-3):
        answer = recommend(given, machine, rate_per_s=rate, max_simulations=40)
        assert not answer.holds
        assert (answer.chosen.capacity.mean, answer.chosen.capacity.low, answer.machines()) == (0.0, 0.0, 0)
        assert "no setting found holds the SLOs at any rate" in finding(answer)


@pytest.mark.filterwarnings("ignore::llmsched_env.units.UnitWarning")  # half an hour is meant
def test_slos_that_hold_at_every_rate():
    """Half an hour for 400 requests of some 90 ms: they may as well come at once."""
    machine = replace(MACHINE, ttft_s=1_800.0, tpot_s=1.0)
    for target in (0.97, 1e-4):
        answer = recommend(trace(800, 5.0), machine, target=target, max_simulations=40)
        assert answer.holds
        assert answer.chosen.capacity.low > 1e5


def test_few_requests_prove_no_high_target():
    """Of 160 that count, all met: Wilson's interval begins at 160 / (160 + 1.96^2) = 0.9766."""
    answer = recommend(trace(400, 2.0), replace(MACHINE, ttft_s=1_800.0, tpot_s=1.0), max_simulations=40)
    assert answer.holds
    assert answer.chosen.outcome.provable == pytest.approx(0.97655, abs=1e-5)
    assert answer.chosen.capacity.low == 0
    assert "if all 160 that count met the SLOs, only 97.7%" in page(answer, "")


def test_capacity_is_that_of_a_plain_sweep_over_the_rate():
    """A fixed step in place of the bisection; one request after another, so the limit is sharp."""
    setting, load = Setting(1, 4_096, "prefill_first"), Load("even", regular(400, 100))
    machine = replace(MACHINE, ttft_s=0.05)
    own = load.given.rate_per_s
    capacity, tried = _capacity(setting, machine, load, 0.99, own)
    rates = np.arange(10.0, 40.0, 0.1)
    held = [rate for rate in rates if try_setting(setting, machine, load.at_rate(rate)).goodput.mean >= 0.99]
    assert max(held) == pytest.approx(capacity.mean, rel=0.012)
    assert capacity.mean == pytest.approx(25.0, rel=0.02)  # 40 ms a request; a few more, while the wait is within 20 ms
    assert len(tried) < 40


def test_what_is_known_of_lengths_is_the_first_halfs():
    """Else the search would know of requests that are to confirm it."""
    requests = Requests.of([10] * 6, [1, 2, 3, 90, 90, 90], release_ns=range(6))
    first, second = halves(requests)
    assert first.mean_output_tokens == second.mean_output_tokens == 2.0


def test_own_engines_choose_admission():
    machine = Machine(
        cost_model("qwen3-8b-h200"), 0.5, 0.03, kv_tokens=8_000, longest_prompt_tokens=1_500, cost_name="qwen3-8b-h200"
    )
    found = search(machine, Load("busy", trace(400, 9.0)), target=0.99, max_simulations=150, own_engine=True)
    assert {one.admission for one in found.values} == {"vllm", "fits", "watermark"}
    assert {
        one.admission for one in search(machine, Load("x", trace(400)), target=0.99, max_simulations=60).values
    } == {"vllm"}


@pytest.mark.parametrize(("text", "expected"), [("50ms", 0.05), ("1s", 1.0), ("1.5 s", 1.5), ("2min", 120.0)])
def test_times_have_units(text, expected):
    assert seconds(text) == pytest.approx(expected)


def test_bad_requests_and_targets():
    with pytest.raises(WorkloadError, match=r"has 399 requests.*at least 400"):
        recommend(trace(399), MACHINE)
    with pytest.raises(ConfigError, match=r"target = 1\.5 is out of range"):
        recommend(trace(), MACHINE, target=1.5)
    with pytest.raises(ConfigError, match="even alone on this machine only"):
        recommend(trace(), MACHINE)
    with pytest.raises(WorkloadError, match="come at one time"):
        recommend(Requests.of([20] * 400, [3] * 400), replace(MACHINE, ttft_s=60.0))


@pytest.fixture
def file(tmp_path):
    requests = trace(900, 6.0)
    path = tmp_path / "mine.csv"
    rows = zip(requests.release_ns / 1e9, requests.prompt_tokens, requests.output_tokens, strict=True)
    lines = [f"{release:.9f},{prompt},{output}" for release, prompt, output in rows]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


COMMON = ["--cost", "qwen3-8b-h200", "--ttft", "500ms", "--tpot", "30ms", "--max-simulations", "60"]


def test_the_command_writes_page_figures_and_pictures(file, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["--trace", str(file), *COMMON, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"recommendation.json", "recommendation.md", "violations.png", "latencies.png", "search.png"}
    assert "vllm serve MODEL" in printed
    assert (out / "recommendation.md").read_text() in printed
    assert json.loads((out / "recommendation.json").read_text())["holds"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "500"], "500 requests/s are too many for this machine"),
        (["--kv-gb", "64"], "--kv-gb without --kv-bytes-per-token"),
        (["--kv-gb", "64", "--kv-tokens", "5"], "both say how large the KV cache is"),
        (["--own-engine"], "--own-engine without a KV budget"),
        (["--kv-tokens", "9000", "--swap-gb-per-s", "5"], "without --own-engine"),
        (["--kv-tokens", "100"], "100"),
        (["--max-simulations", "3"], "--max-simulations 3"),
        (["--tpot", "1ms"], "even alone on this machine only"),
        (["--cost", "no-such"], "no-such"),
        (["--trace", "nowhere.csv"], "nowhere.csv"),
        (["--mixed-cost", "fitted", "--cost", "llama-65b-paper"], "fitted"),
    ],
)
def test_what_cannot_be_done_is_said(file, capsys, words, message):
    assert main(["--trace", str(file), *COMMON, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_without_times_needs_a_rate(tmp_path, capsys):
    path = tmp_path / "lengths.csv"
    requests = trace(500)
    rows = zip(requests.prompt_tokens, requests.output_tokens, strict=True)
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "".join(f"{p},{n}\n" for p, n in rows))
    assert main(["--trace", str(path), *COMMON]) == 2
    assert "has no arrival times: give --rate" in capsys.readouterr().err
    assert main(["--trace", str(path), *COMMON, "--rate", "2"]) == 0
    assert "they come at random (Poisson)" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--ttft", "1000"], ["--ttft", "1h"], ["--rate", "-3"], ["--target", "150%"]])
def test_values_that_are_none(file, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(["--trace", str(file), *COMMON, *words])
    assert stopped.value.code == 2
    assert words[1] in capsys.readouterr().err


def test_a_trace_without_times_says_that_arrivals_are_drawn(tmp_path, capsys):
    """And not that all requests arrive at 0, as its reader does."""
    given = {"input_lens": [200] * 400, "output_lens": [20] * 400}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    assert main(["--trace", str(path), "--cost", "qwen3-8b-h200", "--ttft", "1s", "--tpot", "50ms", "--rate", "2"]) == 0
    out = capsys.readouterr().out
    assert "they come at random (Poisson)" in out
    assert "the file has no start_times (older benchmarks write none)." in out.replace("The file", "the file")
    assert "arrive at 0" not in out
