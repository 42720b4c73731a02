"""Loads and SLOs that nothing can be made of are refused in words; those that nobody can meet are warned of."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction

import gymnasium
import numpy as np
import pytest

from llmsched_env import cases
from llmsched_env.cases import SLOWarning, build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, FileFormatError, PathError, WorkloadError
from llmsched_env.evaluation import evaluate
from llmsched_env.simulator import Simulator
from llmsched_env.vector_env import LLMSchedVectorEnv
from llmsched_env.workload import Requests

SERVED = Scenario(
    workload="serving", num_requests=20, num_clients=3, queue="shared", order="fcfs", load=0.9, ttft_s=2.0, tpot_s=0.1
)
PLAIN = {"ttft_s": None, "tpot_s": None}
LEVELS = CostModel("levels", 0, 0, 10, 1, prefill_token_cap=100, prefill_levels=((50, 30), (4096, 90)))
CONTEXT = CostModel("context", 50, 3, 10, 1, gamma_decode_ns=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"load": x}, rf"load = {x} is out of range: it is above 0 and at most 10\.") for x in (0, -0.5, 10.5)),
        ({"load": 90}, r"at most 10\. As a share, 90 % is 0\.9\."),
        ({"uncounted_share": 10}, r"at each end\. As a share, 10 % is 0\.1\."),
        *(({"load": x}, rf"load = {x} is out of range: it is above 0") for x in (math.nan, math.inf)),
        ({"load": "0.9"}, r"load = '0.9' is not a number"),
        ({"load": True}, r"load = True is not a number"),
        ({"load": [0.9]}, r"load = \[0.9\] is not a number"),
        ({"cost": LEVELS}, r"load = 0.9 with cost model 'levels', which has prefill levels or a context term: .* Take"),
        ({"cost": CONTEXT}, r"load = 0.9 with cost model 'context', which .*give requests_per_s in place of load"),
        ({"tpot_s": None}, r"ttft_s = 2.0, tpot_s = None: give both or none"),
        ({"ttft_s": None}, r"ttft_s = None, tpot_s = 0.1: give both or none"),
        ({"queue": "client", "choose_order": True}, r"choose_order = True with queue = 'client': orders by deadline"),
        ({"queue": "client", "order": "late_last"}, r"order = 'late_last' with queue = 'client': .*'shared'"),
        *(
            ({**PLAIN, name: value}, rf"{name} = {value!r} needs SLOs: give ttft_s and tpot_s")
            for name, value in (("order", "late_last"), ("reward", "goodput"), ("choose_order", True))
        ),
        ({"choose_order": True, "order": "late_last"}, r"order = 'late_last' with .*: the order is the action's; set"),
        ({"choose_order": True, "order": "longest_first"}, r"set order='fcfs'"),  # which is the default
        ({"choose_order": 1}, r"choose_order = 1 is neither True nor False"),
        *(
            ({"uncounted_share": x}, rf"uncounted_share = {x!r} is out of range: it lies in \[0, 0.5\), at each end")
            for x in (-0.1, 0.5, 1, math.nan, math.inf)
        ),
        ({"uncounted_share": Fraction(10**19 // 2 - 1, 10**19)}, r"uncounted_share = Fraction\(.* is out of range"),
        *(({"uncounted_share": x}, "uncounted_share = .* is not a number") for x in ("0.1", None, True, [0.1])),
        *(
            ({name: x}, rf"{name} = {x} is out of range: it is at least 1e-09 and at most {most}")
            for name, most in (("ttft_s", r"1e\+06"), ("tpot_s", "500"))
            for x in (0, -1.0, 4e-10, 2e6, math.nan, math.inf)
        ),
        *(({name: x}, rf"{name} = {x!r} is not a number") for name in ("ttft_s", "tpot_s") for x in ("2", True, 1j)),
    ],
)  # fmt: skip
def test_refused_at_once(changes, words):
    with pytest.raises(ConfigError, match=words):
        SERVED.replace(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"workload": "gsm8k"},
            r"load = 0.9: the requests of workload 'gsm8k' are all released at one time.* or no load",
        ),
        ({"num_requests": 1}, r"load = 0.9: a case of one request has no rate of arrivals. Give it more requests, or"),
        ({"load": 1e-12}, r"load = 1e-12: requests_per_s = .* is too low for 20 requests"),
    ],
)
def test_refused_when_the_case_is_made(changes, words):
    for make in (LLMSchedEnv, lambda scenario: LLMSchedVectorEnv(2, scenario)):
        with pytest.raises(ConfigError, match=words):
            make(SERVED.replace(**changes)).reset(seed=0)


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.4999, math.nextafter(0.5, 0), np.float32(0.3), Fraction(1, 3)])
def test_some_request_is_always_counted(share):
    scenario = SERVED.replace(uncounted_share=share)
    assert type(scenario.uncounted_share) is float
    for n in (*range(1, 60), 2**24 - 1, 2**24):
        counted = scenario.slo(n)
        assert 0 <= counted.first < counted.last <= n
        assert counted.first == n - counted.last <= share * n
    assert SERVED.replace(**PLAIN).slo(5) is None


def test_numbers_of_numpy_are_numbers():
    scenario = SERVED.replace(load=np.float32(0.5), ttft_s=np.int64(3), tpot_s=np.float64(0.25))
    assert {type(getattr(scenario, name)) for name in ("load", "ttft_s", "tpot_s")} == {float}
    assert scenario == SERVED.replace(load=0.5, ttft_s=3, tpot_s=0.25)


def trace(folder, text, name="trace.csv"):
    path = folder / name
    path.write_text(text)
    return path


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
DAY = "2023-11-16 18:17:0"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("arrival_s,prompt_tokens\n0,3\n", 1, "'output_tokens'"),
        ("prompt_tokens,output_tokens,arrival_s\n3,5,2\n3,5,1\n", 3, "'arrival_s'.*earlier|goes back|before"),
        ("prompt_tokens,output_tokens,arrival_s\n3,5,0\n3,0,1\n", 3, "'output_tokens'"),
        ("prompt_tokens,output_tokens,arrival_s\n0.5,3,5\n1.5,4,7\n", 2, "'prompt_tokens'"),  # times in front
        (AZURE + f"{DAY}3,3,5\n{DAY}2,4,7\n", 3, "'TIMESTAMP'.* is earlier than the row before: sort"),
        (AZURE + f"{DAY}3,3,5\n{DAY}4,4,0\n", 3, "'GeneratedTokens': 0 output tokens: remove the row"),
        (AZURE + f"3,{DAY}3,5\n", 2, "'TIMESTAMP': '3' is not a time"),
        ("TIMESTAMP,ContextTokens\nx,1\n", 1, "prompt_tokens.* is missing|'GeneratedTokens'"),
    ],
)  # fmt: skip
def test_traces_that_cannot_be_served(tmp_path, text, line, words):
    env = LLMSchedEnv(SERVED.replace(workload=trace(tmp_path, text), num_requests=None))
    with pytest.raises(FileFormatError, match=words) as caught:
        env.reset(seed=0)
    assert caught.value.line == line
    assert str(tmp_path) in str(caught.value)


def test_files_without_arrivals_and_files_that_are_not_there(tmp_path):
    together = trace(tmp_path, "prompt_tokens,output_tokens\n3,5\n4,6\n")
    with pytest.raises(ConfigError, match=r"load = 0.9: the requests of workload 'trace' are all released at one time"):
        build_problem(SERVED.replace(workload=together, num_requests=None), 0)
    with pytest.raises(PathError, match="cannot read"):
        build_problem(SERVED.replace(workload=tmp_path / "absent.csv"), 0)
    short = trace(tmp_path, AZURE + f"{DAY}3,3,5\n{DAY}4,4,7\n", "short.csv")
    with pytest.raises(WorkloadError, match=r"is too short: its train stretch .* Pass num_requests of at most"):
        build_problem(SERVED.replace(workload=short), 0)


@dataclass(frozen=True)
class Drawn:
    """Two requests of 10 to 17 and 30 prompt tokens and 5 and 1 of output, a second apart."""

    name: str = "drawn"

    def pool_size(self, split):
        return 8

    def requests(self, split, number, *, num_requests=None):
        return Requests.of([10 + number % 8, 30], [5, 1], release_ns=[0, 10**9])


AFFINE = CostModel("affine", 1000, 10, 500, 7)
"""In ns: a prefill of 10 tokens lasts 1100, a decode of one client 507."""


@pytest.fixture
def nothing_said(monkeypatch):
    monkeypatch.setattr(cases, "_said", set())
    monkeypatch.setattr(cases, "_problems", {})


def tight(**changes):
    """SLOs that a request alone just meets."""
    exact = SERVED.replace(uncounted_share=0.0, load=None, num_requests=None, workload=Drawn(), cost=AFFINE)
    return exact.replace(**{"ttft_s": 1.1e-6, "tpot_s": 5.07e-7, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ttft_s": 1.099e-6}, r"ttft_s = 1.099e-06: no schedule meets this SLO in case 0 of workload 'drawn', "
         r"since the shortest prefill of a request lasts 1.1e-06 s under cost model 'affine'\. Allow more than that"),
        ({"tpot_s": 5.06e-7}, r"tpot_s = 5.06e-07: no schedule .* but for requests of one token, since decodes of one "
         r"client alone last 5.07e-07 s"),
        # Levels: 30 ns for a prefill of 10 tokens. With 2 ns of context: the first request decodes four times, at 11,
        # 12, 13 and 14 tokens, which is 12.5 in the mean: 11 + 25 = 36 ns.
        ({"cost": LEVELS, "ttft_s": 2.9e-8}, r"prefill of a request lasts 3e-08 s under cost model 'levels'"),
        ({"cost": CONTEXT, "tpot_s": 3.5e-8}, r"one client alone last 3.6e-08 s under cost model 'context'"),
    ],
)  # fmt: skip
def test_slos_that_no_schedule_meets(nothing_said, changes, words):
    with pytest.warns(SLOWarning, match=words) as seen:
        build_problem(tight(**changes), 0)
    assert len(seen) == 1
    name = "ttft_s" if "ttft_s" in changes else "tpot_s"
    barely = build_problem(tight(**{**changes, name: changes[name] + 1e-9}), 0)  # just possible: no warning
    assert barely.num_requests == 2


def test_what_the_warning_says_is_so(nothing_said):
    """Under the tightest SLOs that are not warned of the first request meets both; a nanosecond less, and none."""
    for less, met in ((0.0, True), (1e-9, False)):
        for cost, ttft_s, tpot_s in ((AFFINE, 1.1e-6, 5.07e-7), (CONTEXT, 8e-8, 3.6e-8)):
            scenario = tight(cost=cost, ttft_s=ttft_s - less, tpot_s=tpot_s - less)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                simulator = Simulator(build_problem(scenario, 0))
            while simulator.view.completed == 0:
                simulator.step(int(simulator.can_prefill))
            assert (simulator.totals.ttft_violations, simulator.totals.tpot_violations) == ((0, 0) if met else (1, 1))
            assert len(seen) == (0 if met else 2)


class Waits:
    """Prefills when it can."""

    name, kind, clairvoyant = "waits", "rule", False

    def reset(self, start):
        pass

    def act(self, view):
        return 1


def test_it_is_said_once(nothing_said, tmp_path):
    scenario = tight(ttft_s=1e-6)

    def much():
        env = LLMSchedVectorEnv(40, scenario)
        env.reset(seed=0)
        for _ in range(40):
            env.step(np.ones(40, np.int64))
        evaluate(Waits(), scenario, 20)
        evaluate(Waits(), scenario.replace(order="late_last", split="test"), 20)
        evaluate(Waits(), scenario, 20, folder=tmp_path)
        single = LLMSchedEnv(scenario)
        for case in range(100, 130):
            single.reset(options={"case": case})

    with pytest.warns(SLOWarning, match="ttft_s = 1e-06") as seen:
        much()
    assert len(seen) == 1
    # Another SLO is another message.
    with pytest.warns(SLOWarning, match="ttft_s = 9e-07") as seen:
        evaluate(Waits(), scenario.replace(ttft_s=9e-7), 3)
    assert len(seen) == 1


def test_it_is_said_here_where_workers_run_the_cases(nothing_said):
    with pytest.warns(SLOWarning, match="no schedule meets this SLO in case 5") as seen:
        evaluate(Waits(), tight(ttft_s=1e-6), range(5, 9), workers=2, chunk=2)
    assert len(seen) == 1


def test_as_an_error_it_stays_one(nothing_said):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(SLOWarning):
                build_problem(tight(ttft_s=1e-6), 0)


def test_a_scenario_and_the_ids_are_silent(nothing_said, tmp_path):
    tight(ttft_s=1e-6, workload=tmp_path / "absent.csv")  # touches no disk, so it cannot know
    for name in ("Serving", "ServingOrder"):
        gymnasium.make(f"LLMSched/{name}-v0").reset(seed=0)
