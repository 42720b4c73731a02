"""Serving metrics against arithmetic on paper, and against a loop over the tokens of an episode that is watched."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import accumulate, cycle, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ACTIONS, DECODE, PREFILL, REPEATABLE, Case, cases, seeded_case

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import SERVING_METRICS, request_metrics, serving_metrics
from llmsched_env.simulator import Simulator

NS = 1e-9
DOC = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")

# Two clients. Prefill 100 + 10 a token, decode 50 + 1 a client, prompts of one token.
# P of 0 (0-110), D (110-161), P of 1 (161-271, its only token), D (271-322, request 0 ends), nothing until 1000,
# P of 2 (1000-1110), D (1110-1161, request 2 ends).
CASE = Case((1, 1, 1), (3, 1, 2), 2, releases_ns=(0, 50, 1000))
ACTIONS_ON_PAPER = (PREFILL, DECODE, PREFILL, DECODE, PREFILL, DECODE)


def played(case=CASE, actions=ACTIONS_ON_PAPER):
    simulator = Simulator(case.problem(), record=True)
    for action in actions:
        simulator.step(action)
    return simulator


def measured(simulator, *, ttft_ns=10**6, tpot_ns=10**6, first=0, last=None):
    last = simulator.problem.num_requests if last is None else last
    return serving_metrics(simulator, ttft_s=ttft_ns * NS, tpot_s=tpot_ns * NS, first=first, last=last)


def test_all_requests_on_paper():
    simulator = played()
    assert simulator.done
    found = measured(simulator, ttft_ns=110, tpot_ns=105)
    assert tuple(found) == SERVING_METRICS
    assert all(type(value) is float for value in found.values())
    # TTFT 110, 221, 110; waits 0, 111, 0; TPOT (322 - 110) / 2 = 106 and 51; latencies 322, 221, 161.
    # In the 1000 ns between the releases of 0 and 2 two requests end, and four tokens are emitted.
    assert found == pytest.approx(
        {
            "goodput": 1 / 3,  # request 2: 0 is too slow later on, 1 begins too late
            "ttft_met": 2 / 3,
            "tpot_met": 2 / 3,
            "ttft_s": 441 / 3 * NS,
            "ttft_p50_s": 110 * NS,
            "ttft_p99_s": (110 + 0.98 * 111) * NS,
            "tpot_s": 78.5 * NS,
            "tpot_p50_s": 78.5 * NS,
            "tpot_p99_s": (51 + 0.99 * 55) * NS,
            "worst_token_gap_s": 161 * NS,  # request 0, across the prefill of request 1
            "longest_wait_s": 111 * NS,
            "queueing_s": 37 * NS,
            "latency_s": 704 / 3 * NS,
            "latency_p99_s": (221 + 0.98 * 101) * NS,
            "served_requests_per_s": 2e6,
            "served_tokens_per_s": 4e6,
        }
    )
    assert request_metrics(simulator)["queueing_s"] == pytest.approx([0, 111 * NS, 0])


def test_warm_up_is_left_out_and_served():
    found = measured(played(), first=1, last=3)
    assert found["ttft_s"] == pytest.approx((221 + 110) / 2 * NS)
    assert found["worst_token_gap_s"] == pytest.approx(51 * NS)
    # From 50 to 1000 request 0 still ends and emits: the throughput is the server's, not that of the counted alone.
    assert found["served_requests_per_s"] == pytest.approx(2 / (950 * NS))
    assert found["served_tokens_per_s"] == pytest.approx(4 / (950 * NS))


def test_the_stretch_of_a_throughput_holds_its_end_and_not_its_beginning():
    # Request 2 comes when 0 ends: from 0 to 322 two requests end. Request 1 comes with the first token of 0.
    simulator = played(replace(CASE, releases_ns=(0, 110, 322)))
    for first, tokens in ((0, 4), (1, 3)):
        found, window_s = measured(simulator, first=first), (322 - 110 * first) * NS
        assert found["served_requests_per_s"] == pytest.approx(2 / window_s)
        assert found["served_tokens_per_s"] == pytest.approx(tokens / window_s)


@pytest.mark.parametrize(
    ("ttft_ns", "tpot_ns", "met"),
    [(110, 106, 2), (109, 106, 0), (110, 105, 1), (220, 106, 2), (221, 106, 3), (221, 51, 2), (221, 50, 1)],
)
def test_an_slo_is_met_to_the_nanosecond(ttft_ns, tpot_ns, met):
    assert measured(played(), ttft_ns=ttft_ns, tpot_ns=tpot_ns)["goodput"] == met / 3


def test_slos_are_rounded_to_the_nanosecond():
    for ttft_s, met in ((109.6e-9, 2), (109.4e-9, 0), (110.4e-9, 2)):
        assert serving_metrics(played(), ttft_s=ttft_s, tpot_s=1.0, first=0, last=3)["ttft_met"] == met / 3


def test_half_a_nanosecond_a_token_is_seen():
    # 52 + 51 ns over two decodes: 51.5 a token, in whole numbers neither 51 nor 52.
    simulator = played(Case((1, 1), (3, 2), 2), (PREFILL, DECODE, DECODE))
    met = [measured(simulator, tpot_ns=tpot_ns, last=1)["tpot_met"] for tpot_ns in (51, 52)]
    assert met == [0, 1]


def test_the_longest_slos_are_met_by_everything():
    found = serving_metrics(played(), ttft_s=4e9, tpot_s=4e9, first=0, last=3)
    assert found["goodput"] == 1


def test_one_token_has_no_time_per_token_and_keeps_it():
    found = measured(played(), tpot_ns=1, first=1, last=2)
    assert found["tpot_met"] == found["goodput"] == 1
    undefined = {name for name, value in found.items() if math.isnan(value)}
    # A single release is no stretch of time.
    assert undefined == {
        "tpot_s", "tpot_p50_s", "tpot_p99_s", "worst_token_gap_s",
        "served_requests_per_s", "served_tokens_per_s",
    }  # fmt: skip


def test_what_is_cut_short_has_no_metrics():
    # After four iterations requests 0 and 1 are complete, and 2 has been released.
    simulator = played(actions=ACTIONS_ON_PAPER[:4])
    assert all(math.isnan(value) for value in measured(simulator).values())
    assert measured(simulator, last=2) == measured(played(), last=2)


def test_a_recording_that_begins_late_counts_what_comes_after():
    whole = played()
    late = played(actions=ACTIONS_ON_PAPER[:4]).fork(record=True)
    assert late.view.clock_ns == CASE.releases_ns[2]
    assert math.isnan(measured(late, first=2)["ttft_s"])
    for action in ACTIONS_ON_PAPER[4:]:
        late.step(action)
    # Request 1 is complete, but this recording saw nothing of it.
    assert all(math.isnan(value) for value in measured(late, first=1).values())
    assert measured(late, first=2) == pytest.approx(measured(whole, first=2), nan_ok=True)
    # Request 1 waits at 110: all of its service is seen, and not the token that 0 emitted meanwhile.
    late = played(actions=ACTIONS_ON_PAPER[:1]).fork(record=True)
    for action in ACTIONS_ON_PAPER[1:]:
        late.step(action)
    assert not math.isnan(request_metrics(late)["latency_s"][1])
    assert all(math.isnan(value) for value in measured(late, first=1).values())


def test_docs_define_every_metric():
    section = DOC[DOC.index("## Of serving") : DOC.index("## Over cases")]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    }
    assert named == set(SERVING_METRICS)


class Watched:
    """Release, start of the prefill and token times of one request, as seen from outside while an episode runs."""

    def __init__(self, release_ns):
        self.release_ns, self.start_ns, self.tokens_ns = release_ns, 0, []

    @property
    def ttft_ns(self):
        return self.tokens_ns[0] - self.release_ns

    @property
    def latency_ns(self):
        return self.tokens_ns[-1] - self.release_ns

    @property
    def gaps_ns(self):
        return [after - before for before, after in pairwise(self.tokens_ns)]


def watch(case, actions, iterations=10**6):
    """A recorded episode, and what was seen of each request: it emits where its count of tokens grows."""
    simulator = Simulator(case.problem(), record=True)
    seen = [Watched(release_ns) for release_ns in case.releases_ns]
    before = simulator.emitted
    for action in islice(cycle(actions), iterations):
        if simulator.done:
            break
        simulator.step(action)
        last = simulator.log[-1]
        start_ns, end_ns = int(last["start_ns"]), int(last["end_ns"])
        emitted = simulator.emitted
        for request in map(seen.__getitem__, np.flatnonzero(emitted > before)):
            request.start_ns = request.start_ns if request.tokens_ns else start_ns
            request.tokens_ns.append(end_ns)
        before = emitted
    return simulator, seen


def quantile(values, share):
    ordered = sorted(values)
    if not ordered:
        return math.nan
    below = math.floor(share * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (share * (len(ordered) - 1) - below) * (ordered[above] - ordered[below])


def mean(values):
    return sum(values) / len(values) if values else math.nan


def slow_metrics(case, seen, ttft_ns, tpot_ns, first, last):
    counted = range(first, last)
    if any(len(seen[i].tokens_ns) < case.outputs[i] for i in counted):
        return dict.fromkeys(SERVING_METRICS, math.nan)
    early = {i for i in counted if seen[i].ttft_ns <= ttft_ns}
    steady = {i for i in counted if sum(seen[i].gaps_ns) <= tpot_ns * len(seen[i].gaps_ns)}
    ttft = [seen[i].ttft_ns * NS for i in counted]
    tpot = [mean(seen[i].gaps_ns) * NS for i in counted if seen[i].gaps_ns]
    waits = [(seen[i].start_ns - seen[i].release_ns) * NS for i in counted]
    latency = [seen[i].latency_ns * NS for i in counted]
    begin, end = case.releases_ns[first], case.releases_ns[last - 1]
    tokens = sum(begin < token <= end for request in seen for token in request.tokens_ns)
    ended = sum(
        len(request.tokens_ns) == output and begin < request.tokens_ns[-1] <= end
        for request, output in zip(seen, case.outputs, strict=True)
    )
    return {
        "goodput": len(early & steady) / len(counted),
        "ttft_met": len(early) / len(counted),
        "tpot_met": len(steady) / len(counted),
        "ttft_s": mean(ttft),
        "ttft_p50_s": quantile(ttft, 0.5),
        "ttft_p99_s": quantile(ttft, 0.99),
        "tpot_s": mean(tpot),
        "tpot_p50_s": quantile(tpot, 0.5),
        "tpot_p99_s": quantile(tpot, 0.99),
        "worst_token_gap_s": max((gap * NS for i in counted for gap in seen[i].gaps_ns), default=math.nan),
        "longest_wait_s": max(waits),
        "queueing_s": mean(waits),
        "latency_s": mean(latency),
        "latency_p99_s": quantile(latency, 0.99),
        "served_requests_per_s": ended / ((end - begin) * NS) if end > begin else math.nan,
        "served_tokens_per_s": tokens / ((end - begin) * NS) if end > begin else math.nan,
    }


def test_against_a_loop_over_tokens():
    met = Counter()

    @settings(REPEATABLE, max_examples=600)
    @given(cases(), ACTIONS, st.data())
    def law(case, actions, data):
        n = len(case.prompts)
        gaps_ns = data.draw(st.lists(st.sampled_from([0, 40, 150, 600, 2000]), min_size=n, max_size=n))
        case = replace(case, releases_ns=tuple(accumulate(gaps_ns)))
        simulator, seen = watch(case, actions)
        missing = data.draw(st.sampled_from([0, 0, 0, 1, 3]))
        if missing:
            simulator, seen = watch(case, actions, max(0, len(simulator.log) - missing))
        first = data.draw(st.integers(0, n - 1))
        last = data.draw(st.integers(first + 1, n))
        # SLOs that one request just meets, or just violates.
        ttfts = [one.ttft_ns for one in seen if one.tokens_ns]
        tpots = [round(mean(one.gaps_ns)) for one in seen if one.gaps_ns]
        ttft_ns, tpot_ns = (
            max(1, data.draw(st.sampled_from([50, *values])) + data.draw(st.sampled_from([-1, 0, 1])))
            for values in (ttfts, tpots)
        )
        found = measured(simulator, ttft_ns=ttft_ns, tpot_ns=tpot_ns, first=first, last=last)
        slow = slow_metrics(case, seen, ttft_ns, tpot_ns, first, last)
        assert found == pytest.approx(slow, rel=1e-12, nan_ok=True)
        for name in ("goodput", "ttft_met", "tpot_met"):
            assert found[name] == slow[name] or math.isnan(slow[name])
        met["undefined"] += math.isnan(slow["goodput"])
        met["cut, and defined"] += not simulator.done and not math.isnan(slow["goodput"])
        met["both kinds"] += 0 < slow["goodput"] < min(slow["ttft_met"], slow["tpot_met"])
        met["waits"] += slow["queueing_s"] > 0
        met["rates"] += slow["served_requests_per_s"] > 0
        met["gaps"] += slow["worst_token_gap_s"] > slow["tpot_p99_s"]

    law()
    assert min(met.values()) >= 3, f"hardly tested: {met}"


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_a_larger_case_against_a_loop_over_tokens(seed):
    case = seeded_case(seed)
    simulator, seen = watch(case, (0, 1, 0, 0, 1))
    for ttft_ns, tpot_ns in ((3000, 90), (6000, 80)):
        slow = slow_metrics(case, seen, ttft_ns, tpot_ns, 5, 35)
        assert 0 < slow["goodput"] < 1, "SLOs too easy or too hard: nothing was told apart"
        found = measured(simulator, ttft_ns=ttft_ns, tpot_ns=tpot_ns, first=5, last=35)
        assert found == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first": 2, "last": 2}, "first = 2, last = 2 counts no requests.*0 <= first < last <= 3"),
        ({"first": -1}, "first = -1, last = 3 counts no requests"),
        ({"last": 4}, "first = 0, last = 4 counts no requests"),
        ({"first": 0.5}, "first = 0.5, last = 3: give whole numbers"),
        ({"ttft_s": 0.0}, "ttft_s = 0.0 is out of range: a limit is a time from 1e-09 to 4e\\+09 seconds"),
        ({"ttft_s": 1e-10}, "ttft_s = 1e-10 is out of range"),
        ({"tpot_s": -0.05}, "tpot_s = -0.05 is out of range"),
        ({"tpot_s": math.nan}, "tpot_s = nan is out of range"),
        ({"tpot_s": math.inf}, "tpot_s = inf is out of range"),
    ],
)
def test_bad_input(changes, words):
    with pytest.raises(ConfigError, match=words):
        serving_metrics(played(), **{"ttft_s": 1.0, "tpot_s": 0.05, "first": 0, "last": 3, **changes})


def test_an_episode_must_be_recorded():
    with pytest.raises(ConfigError, match=r"not recorded: make it with Simulator\(problem, record=True\)"):
        measured(Simulator(CASE.problem()))
