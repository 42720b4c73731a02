"""What the simulator wrote is read, priced and played again without a nanosecond's difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import TRUTH, recorded, scenario

from llmsched_env.cost import MeasuredCost, MixedCost
from llmsched_env.engines.fitting import fit_recording, predicted_ns
from llmsched_env.engines.recording import RecordingWarning, latencies_s, read_recording, write_recording
from llmsched_env.engines.replay import engine_entry, replay, scenario_of, simulate
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import play


@pytest.fixture(scope="module")
def mixing():
    """vLLM's own scheduler, with arrivals."""
    return recorded()


KINDS = ("prefill", "decode", "mixed")


def kinds_of(recording):
    reads, decodes = recording.iterations["prefill_tokens"] > 0, recording.iterations["decode_requests"] > 0
    return dict(zip(KINDS, (int(x.sum()) for x in (reads & ~decodes, decodes & ~reads, reads & decodes)), strict=True))


def same(a, b):
    return a.iterations.tolist() == b.iterations.tolist() and a.requests.tolist() == b.requests.tolist()


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("engine", {}),
        ("engine", {"within_ns": 0}),
        ("threshold", {"mixes": False}),
        ("prefill_first", {"mixes": False, "within_ns": 0}),
    ],
    ids=["mixed, arrivals", "mixed, at once", "threshold, arrivals", "prefill first, at once"],
)
def test_calibration_finds_the_cost_and_replay_is_exact(tmp_path, policy, options):
    written = recorded(policy, **options)
    write_recording(tmp_path / "r", written)
    read = read_recording(tmp_path / "r")
    assert same(read, written)
    fit = fit_recording(read)
    numbers = ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns")
    assert [getattr(fit.model, n) for n in numbers] == [getattr(TRUTH, n) for n in numbers]
    assert fit.model.mixed == (TRUTH.mixed if options.get("mixes", True) else None)
    assert fit.decode.r_squared == 1.0
    assert (fit.context.used, fit.interference.used, fit.outliers, fit.excess) == (False, False, 0, 0.0)
    assert same(replay(read, fit.model), written)
    happened = kinds_of(read)
    needed = KINDS if options.get("mixes", True) else KINDS[:2]
    assert all(happened[kind] >= (1 if kind == "prefill" else 40) for kind in needed), happened


def test_context_and_interference_are_found_and_replayed():
    truth = MeasuredCost(
        "truth", 3_100_000, 21_000, 2_500_000, 310_000, 170, prefill_token_cap=512,
        mixed=MixedCost(False, 3_100_000, 21_000, 290_000, 150_000),
    )  # fmt: skip
    written = recorded(cost=truth)
    fit = fit_recording(written)
    assert fit.context.used
    assert fit.interference.used
    got, asked = fit.model, truth
    for name in ("alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns"):
        assert getattr(got, name) == getattr(asked, name), name
    for name in ("alpha_ns", "beta_prompt_ns", "beta_active_ns", "interference_ns"):
        # The simulator rounds the interference down to whole ns.
        assert getattr(got.mixed, name) == pytest.approx(getattr(asked.mixed, name), abs=3), name
    again = replay(written, truth)
    assert same(again, written)
    assert predicted_ns(written, truth).tolist() == written.iterations["duration_ns"].tolist()


@pytest.mark.parametrize(
    "options", [{}, {"within_ns": 0}, {"mixes": True}], ids=["arrivals", "at once", "beside an engine that could mix"]
)
@pytest.mark.parametrize("gamma_ns", [0, 170])
def test_a_first_decode_is_found_and_replayed(options, gamma_ns):
    policy, options = "threshold", {"mixes": False, **options}
    truth = replace(TRUTH, first_decode_ns=730_000, gamma_decode_ns=gamma_ns)
    written = recorded(policy, cost=truth, **options)
    fit = fit_recording(written)
    assert fit.after_prefill.used
    assert fit.context.used == (gamma_ns > 0)
    for name in ("alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns", "first_decode_ns"):
        assert getattr(fit.model, name) == getattr(truth, name), name
    if not gamma_ns:
        assert fit.excess == 0.0
        assert same(replay(written, fit.model, policy), written)
    assert predicted_ns(written, truth).tolist() == written.iterations["duration_ns"].tolist()
    assert same(replay(written, truth, policy), written)
    assert not same(replay(written, TRUTH, policy), written)


def test_after_mixed_iterations_there_is_no_first_decode(mixing):
    """Prefills of an engine that mixes are those with nobody active: few decodes follow one."""
    truth = replace(TRUTH, first_decode_ns=730_000)
    written = recorded(cost=truth)
    assert same(replay(written, truth), written)
    assert predicted_ns(written, truth).tolist() == written.iterations["duration_ns"].tolist()
    longer = int(written.iterations["duration_ns"].sum() - predicted_ns(written, TRUTH).sum())
    kinds = kinds_of(written)
    assert kinds["mixed"] > 40
    assert 730_000 <= longer <= 730_000 * kinds["prefill"]


def test_under_a_tight_cache_it_preempts_and_replays():
    few = {"kv_budget_tokens": 4096, "kv_block_tokens": 16, "kv_rule": "vllm_v1"}
    written = recorded(within_ns=0, **few)
    assert (written.settings.num_blocks, written.settings.block_size) == (256, 16)
    where = scenario_of(written, TRUTH)
    assert where.kv_budget_tokens == 4096
    simulator = play(engine_entry("engine", where).policy, where, 0, record=True)
    assert simulator.totals.preemptions > 0, "nothing was preempted: the case is not tested"
    again = replay(written, TRUTH)
    assert same(again, written)
    decoded, read = written.iterations["decode_requests"].sum(), written.iterations["prefill_requests"]
    assert (read[written.iterations["prefill_tokens"] > 0] > 0).all()
    assert decoded < (written.requests["output_tokens"] - 1).sum(), "a request that was preempted is read again"


def test_latencies_are_those_of_the_simulator(mixing):
    """The same numbers as the metrics, which are computed elsewhere."""
    where = scenario()
    simulator = play(engine_entry("engine", where).policy, where, 0, record=True)
    served = simulator.served
    told = latencies_s(mixing)
    assert told["makespan_s"] * 1e9 == pytest.approx(
        served["completion_ns"].max() - simulator.problem.release_ns[0], abs=1
    )
    assert told["ttft_s"] == pytest.approx(
        float((served["first_token_ns"] - simulator.problem.release_ns).mean()) / 1e9
    )


def test_other_policies_run_under_the_same_settings(mixing):
    vllm, own = (replay(mixing, TRUTH, name) for name in ("vllm_v1", "engine"))
    assert same(vllm, own), "the recording's budget holds, not the system's usual one"
    threshold = replay(mixing, TRUTH, "threshold")
    assert threshold.decided_by == "threshold"
    assert kinds_of(threshold)["mixed"] == 0
    assert threshold.requests["output_tokens"].tolist() == mixing.requests["output_tokens"].tolist()
    with pytest.raises(UnknownNameError, match="Did you mean 'threshold'"):
        replay(mixing, TRUTH, "treshold")
    with pytest.raises(ConfigError, match="needs SLOs"):
        replay(mixing, TRUTH, "deadline")


def test_a_recording_that_begins_later_keeps_its_clock(mixing):
    entry = engine_entry("engine", scenario())
    late = simulate(entry.policy, entry.scenario, from_ns=5_000_000_001)
    assert (late.requests["arrival_ns"] - mixing.requests["arrival_ns"]).tolist() == [5_000_000_001] * len(
        mixing.requests
    )
    assert same(replay(late, TRUTH), late)


def test_client_queues_are_no_recording():
    where = scenario(mixes=False, queue="client")
    with pytest.raises(ConfigError, match="engines have one queue"):
        simulate(engine_entry("threshold", where).policy, where)


def test_what_happens_between_iterations_counts(mixing):
    """Each iteration 1 ms shorter, and a gap after it: what requests wait for is unchanged."""
    rows = mixing.iterations.copy()
    rows["duration_ns"] -= 1_000_000
    assert (rows["duration_ns"] > 0).all()
    gaps = replace(mixing, iterations=rows)
    busy = gaps.busy_ns
    idle_next = np.flatnonzero(np.diff(mixing.iterations["start_ns"]) != mixing.iterations["duration_ns"][:-1])
    assert 0 < len(idle_next) < 40, "the engine was idle at times"
    expected = mixing.iterations["duration_ns"].copy()
    expected[[*idle_next, -1]] -= 1_000_000
    assert busy.tolist() == expected.tolist()


def test_who_decided_plays_again_where_it_is_of_this_package(mixing, recwarn):
    """An agent by its name; nothing is imported because a recording says so."""
    exclusive = recorded("prefill_first", mixes=False)
    agent = replay(replace(exclusive, decided_by="serving"), TRUTH, ttft_s=2.0, tpot_s=0.2)
    assert agent.decided_by == "serving"
    assert replay(replace(mixing, decided_by="the engine's own scheduler"), TRUTH).decided_by == "engine"
    assert not recwarn.list
    with pytest.warns(RecordingWarning, match="'no_such_module:Class' decided, .* the engine's own scheduler plays"):
        assert replay(replace(exclusive, decided_by="no_such_module:Class"), TRUTH).decided_by == "prefill_first"
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        replay(exclusive, TRUTH, "no_such_module:Class")


@pytest.mark.parametrize("number", ["four", {"a": 1}, None, float("inf"), float("nan")])
def test_parameters_are_finite_numbers(number):
    exclusive = recorded("threshold", mixes=False)
    with pytest.raises(ConfigError, match=r"does not take .* among its parameters: give finite numbers"):
        replay(replace(exclusive, parameters=(number,)), TRUTH)


def test_what_is_not_simulated_is_said(mixing):
    exclusive = recorded("threshold", mixes=False)
    longer = exclusive.requests.copy()
    longer["prompt_tokens"][:2] = exclusive.iterations["prefill_tokens"].max() + 1
    with pytest.warns(RecordingWarning, match="2 prompts are longer than any iteration: the engine read them in parts"):
        replay(replace(exclusive, requests=longer), TRUTH, prefill_token_cap=10_000)
    fewer = mixing.iterations.copy()
    fewer["prefill_tokens"][0] -= 1
    cached = replace(mixing, iterations=fewer, settings=replace(mixing.settings, prefix_caching=True))
    with pytest.warns(RecordingWarning, match=r"1 of \d+ prompt tokens were cached, and the simulator reads all"):
        replay(cached, TRUTH)
