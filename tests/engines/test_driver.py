"""The driver without an engine: recorded events of vLLM, the simulator beside it, its speed, and what it refuses."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from beside_simulator import fields, played

from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engines.driver import Driver, Memory, Ran
from llmsched_env.engines.options import EngineFacts, EngineOptions
from llmsched_env.engines.session import DecisionLog, EngineWarning, Session
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownArgumentError, UnknownNameError

GOLDEN = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "golden").glob("*.json")}
COST = CostModel("toy", 1000, 10, 300, 7, 0, 400)
SLO = {"ttft_s": 3e-5, "tpot_s": 1e-6}


def scenario(**changes):
    return Scenario(
        **{"num_clients": 4, "cost": COST, "lengths": "hidden", "order": "fcfs", "queue": "shared", **changes}
    )


def session_of(recorded):
    engine, block = recorded["engine"], recorded["block_tokens"]
    memory = Memory(engine.get("blocks", 10_000) * block, block)
    facts = EngineFacts(engine["seats"], 2048, 8192, memory)
    return EngineOptions.read(recorded["options"]).session(facts)


def test_two_engines_were_recorded():
    assert set(GOLDEN) == {"batch", "arrivals"}
    assert sum(len(row[5]) for row in GOLDEN["arrivals"]["iterations"]) >= 5, "nobody gave way"
    assert len({row[2] for row in GOLDEN["batch"]["iterations"]}) == 2


@pytest.mark.parametrize("name", ["batch", "arrivals"])
def test_recorded_events_give_the_recorded_decisions(name):
    recorded = GOLDEN[name]
    driver, view = session_of(recorded).driver, {}
    for i, (arrived, changed, action, reads, decodes, preempted, end_ns, finished) in enumerate(recorded["iterations"]):
        for number in arrived:
            at_ns, prompt, output = recorded["requests"][number]
            driver.wait_until(at_ns)
            driver.arrive(number, prompt, at_ns, output)
        plan = driver.decide()
        view |= changed
        assert {key: value for key, value in fields(driver.shown).items() if view.get(key, 0) != value} == {}, i
        assert plan.action == action, i
        rows = [tuple(map(int, part.split(":"))) for part in reads.split()]
        driver.ran(Ran(bool(decodes), rows, preempted))
        assert driver.clock_ns == end_ns
        for number in finished:
            driver.finish(number)
    assert driver.look().completed == len(recorded["requests"])


@pytest.mark.parametrize("name", ["batch", "arrivals"])
def test_the_simulator_did_the_same(name):
    recorded = GOLDEN[name]
    told = EngineOptions.read(recorded["options"])
    driver = session_of(recorded).driver
    run, view = None, {}
    steps = played(told.policy, told.parameters, driver.scenario, recorded["requests"], told.mean_output_tokens)
    for row, (action, before, run) in zip(recorded["iterations"], steps, strict=True):
        view |= row[1]
        assert {key: value for key, value in before.items() if view.get(key, 0) != value} == {}
        assert (action, int(run.view.clock_ns) >= row[6]) == (row[2], True)
    assert run.done
    assert run.log["end_ns"].tolist() == [row[6] for row in recorded["iterations"]]


def follow(driver, plan):
    """An engine that does what it is told."""
    driver.ran(Ran(plan.decodes, [(key, tokens, 0) for key, tokens in plan.reads], (), plan.kind == "mixed"))


def test_an_instance_on_paper():
    """Two seats, three prompts of 10 tokens, two tokens each: prefill 1000 + 200, decode 300 + 14, then the third."""
    driver = Driver("prefill_first", scenario(num_clients=2), mean_output_tokens=2, virtual=True)
    for key in "abc":
        driver.arrive(key, 10, 0)
    plan = driver.decide()
    assert (plan.kind, plan.reads, plan.expected_ns) == ("prefill", (("a", 10), ("b", 10)), 1200)
    follow(driver, plan)
    plan = driver.decide()
    assert (plan.kind, plan.expected_ns, plan.asked, driver.clock_ns) == ("decode", 314, False, 1200)
    follow(driver, plan)
    driver.finish("a")
    driver.finish("b")
    plan = driver.decide()
    assert (plan.kind, plan.reads, driver.clock_ns, driver.shown.completed) == ("prefill", (("c", 10),), 1514, 2)
    driver.finish("c")
    assert driver.decide() is None


def test_the_first_decode_after_a_prefill_on_paper():
    """50 ns more after a prefill, by either clock; another table in between forgets nothing."""
    cost = CostModel("toy", 1000, 10, 300, 7, 0, 400, first_decode_ns=50)
    for virtual in (True, False):
        driver = Driver("prefill_first", scenario(cost=cost), mean_output_tokens=3, virtual=virtual)
        driver.arrive("a", 10, 0)
        follow(driver, driver.decide())
        driver._grow()
        plan = driver.decide()
        assert (plan.kind, plan.expected_ns, int(driver.shown.decode_ns)) == ("decode", 357, 357)
        assert driver.ran(Ran(plan.decodes)) == 357
        assert driver.decide().expected_ns == 307


@pytest.mark.parametrize("policy", ["threshold", "prefill_first", "mixed_first"])
def test_first_decodes_are_those_of_the_simulator(policy):
    """Fifty requests at once: every view, action and time, on the virtual clock."""
    cost = CostModel("toy", 1000, 10, 300, 7, 1, 400, first_decode_ns=150)
    more = {"mixed_tokens": 48, "mixed_counts_active": True} if policy == "mixed_first" else {}
    where = scenario(cost=cost, **more)
    requests = [(0, 5 + 37 * i % 90, 1 + 13 * i % 21) for i in range(50)]
    driver = Driver(policy, where, mean_output_tokens=9, virtual=True)
    for key, (at_ns, prompt, _) in enumerate(requests):
        driver.arrive(key, prompt, at_ns)
    left, done, paid = {key: row[1] for key, row in enumerate(requests)}, set(), 0
    for action, before, run in played(policy, [], where, requests, 9.0):
        plan = driver.decide()
        assert (fields(driver.shown), plan.action) == (before, action)
        paid += plan.kind == "decode" and before["consecutive_prefills"] > 0
        for key, tokens in plan.reads:
            left[key] -= tokens
        driver.ran(Ran(plan.decodes, [(key, n, left[key]) for key, n in plan.reads], (), plan.kind == "mixed"))
        assert driver.clock_ns == run.view.clock_ns
        for key, (_, _, output) in enumerate(requests):
            if key not in done and run.emitted[key] == output:
                done.add(key)
                driver.finish(key)
    assert len(done) == len(requests)
    assert (paid > 5) == (policy != "mixed_first")


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "prefill (('a', 120),)\n"


def test_arrivals_are_no_work_for_those_who_wait():
    """A table is left for another when it is full; nobody is lost, and keys may come again."""
    driver = Driver("threshold", scenario(), parameters=[2], mean_output_tokens=3, virtual=True)
    for i in range(10_000):
        driver.arrive(i % 50 if i >= 50 else i, 10, 0)
        if i >= 49:
            driver.finish((i + 1) % 50)
        if i % 7 == 0:
            driver.look()
    view = driver.look()
    assert (view.waiting, view.waiting_tokens, view.completed) == (49, 490, 9951)


@pytest.mark.parametrize(
    ("policy", "more", "error", "words"),
    [
        ("beam", {}, ConfigError, "'beam' plans with the true output lengths, which no engine knows"),
        ("rollout", {}, ConfigError, "futures of the running episode"),
        ("hybrid", {}, ConfigError, "one shared queue"),
        ("deadline", {}, ConfigError, "needs SLOs"),
        ("threshhold", {}, UnknownNameError, "threshold"),
        ("threshold", {"lengths": "predicted"}, ConfigError, "come without predictions"),
        ("threshold", {"lengths": "known", "order": "longest_first"}, ConfigError, "orders by length are not kept"),
        ("threshold", {"kv_budget_tokens": 1000}, ConfigError, "kv_rule = 'keep_growth'"),
        (
            "mixed_first",
            {"mixed_tokens": 64, "mixed_within_slack": True, "ttft_s": 1.0, "tpot_s": 0.1},
            ConfigError,
            "mixed_within_slack = True: an engine composes its iterations within one token budget",
        ),
        (
            "fairbatching",
            {"mixed_tokens": 64, "ttft_s": 1.0, "tpot_s": 0.1},
            ConfigError,
            "mixed_within_slack = True: an engine composes its iterations within one token budget",
        ),
    ],
)
def test_what_no_engine_can_give_is_refused(policy, more, error, words):
    with pytest.raises(error, match=words):
        Driver(policy, scenario(**more))


class Stumbles:
    name, kind, clairvoyant = "stumbles", "rule", False

    def reset(self, start):
        raise KeyError("x")

    def act(self, view):
        return 0


def test_options_are_checked():
    facts = EngineFacts(8, 2048, 8192, None)
    for given, error, words in (
        ({}, ConfigError, "give a mapping with a policy"),
        ({"policy": 3}, ConfigError, "policy = 3: give text"),
        ({"policy": "threshold", "seats": 3}, UnknownArgumentError, "seats"),
        ({"policy": "threshold", "log": ["a"]}, ConfigError, "log = .* give the path of a CSV file"),
        ({"policy": "threshold", "log": ""}, ConfigError, "log = '': give the path of a CSV file"),
        ({"policy": "threshold", "shadow": 1}, ConfigError, "shadow = 1: give true or false"),
        ({"policy": "threshold", "mean_output_tokens": "x"}, ConfigError, "mean_output_tokens = 'x': give a number in"),
        ({"policy": "threshold", "mean_output_tokens": -3}, ConfigError, "mean_output_tokens = -3: give a number in"),
        ({"policy": "threshold", "mean_output_tokens": float("nan")}, ConfigError, "nan: give a number in"),
        ({"policy": "threshold", "parameters": ["x"]}, ConfigError, "does not take 'x' among its parameters"),
        ({"policy": "test_driver:Stumbles"}, ConfigError, "cannot begin: its reset raised KeyError: 'x'"),
        ({"policy": "threshold", "clock": "sun"}, ConfigError, "clock = 'sun'"),
        ({"policy": "threshold", "parameters": "14"}, ConfigError, "a list of the rule's numbers"),
        ({"policy": "serving", "parameters": [1], **SLO}, ConfigError, "only rules by name take numbers"),
        ({"policy": "threshold", "cost": {"alpha": 1}}, ConfigError, "Give the fields of llmsched_env.CostModel"),
        ({"policy": "threshold", "prefill_token_cap": 4096}, ConfigError, "token budget of 2048"),
        ({"policy": "threshold", "kv": True}, ConfigError, "no budget describes this engine's KV cache"),
        ({"policy": "mixed_first", "mixed_tokens": 2048}, ConfigError, "iterations of 2056 tokens"),
    ):
        with pytest.raises(error, match=words):
            EngineOptions.read(given).session(facts)


def test_keys_and_limits():
    driver = Driver("threshold", scenario(lengths="known"), mean_output_tokens=3)
    with pytest.raises(ConfigError, match="no limit of output tokens"):
        driver.arrive("a", 10, 0)
    driver.arrive("a", 10, 0, 7)
    with pytest.raises(ConfigError, match="'a' is there already"):
        driver.arrive("a", 10, 0, 7)
    assert driver.look(5).waiting_work == 7
    driver.finish("nobody")


class Answers:
    name, kind, clairvoyant = "answers", "rule", False

    def __init__(self, answer):
        self.answer = answer

    def reset(self, start):
        pass

    def act(self, view):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", ["prefill", "1", 0.5, [1], None, 2, -1, 1e400, RuntimeError("no idea"), SystemExit(3)]
)
def test_a_session_goes_on_without_an_answer(answer):
    session = Session(Driver(Answers(answer), scenario(), mean_output_tokens=3))
    for key in "abcdefg":
        session.arrive(key, 10, 0)
    session.began(Ran(False, [("a", 10, 0)]))
    session.end(50)
    with pytest.warns(EngineWarning, match="the engine goes by its own schedule in this step"):
        assert session.ask(60) is None
    session.began(Ran(True, [("b", 10, 0)]))
    assert session.ask(90) is None
    assert (session.failed, session.lost, session.decoding) == (2, False, {"a", "b"})


def test_a_session_says_who_decides():
    told = "4 seats, 400 prompt tokens an iteration, cost model 'toy'"
    assert str(Session(Driver("prefill_first", scenario()))) == f"policy 'prefill_first' decides: {told}"
    shadow = Session(Driver("mixed_first", scenario(mixed_tokens=64)), shadow=True)
    beside = "the engine's own scheduler decides, policy 'mixed_first' is asked beside it"
    assert str(shadow) == f"{beside}: {told.replace('400', '64')}"


def test_a_session_that_is_lost_stays_out_of_the_way():
    session = Session(Driver("prefill_first", scenario(), mean_output_tokens=3))
    for key in "abc":
        session.arrive(key, 10, 0)
    session.ask(1)
    session.began(Ran(False, [("a", 5, 5), ("b", 5, 5)]))
    with pytest.warns(EngineWarning, match="lost track .*a is partly|lost track .*partly read.* from here on"):
        session.end(10)
    assert session.lost
    assert session.ask(20) is None
    session.finish("a")
    session.began(Ran(True))
    session.end(30)


def test_the_log_waits_for_the_output_where_the_next_iteration_is_scheduled_before(tmp_path):
    """A prefill from 5 to 1,000 ns, a decode to 1,300: the log says so, though both are scheduled by 20."""
    log = DecisionLog(tmp_path / "log.csv")
    session = Session(Driver("prefill_first", scenario(), mean_output_tokens=3), log=log)
    session.arrive("a", 10, 0)
    session.ask(5)
    session.began(Ran(False, [("a", 10, 0)]), "first")
    assert session.ask(20).kind == "decode", "the view counts the prefill as over"
    session.began(Ran(True), "second")
    session.end(900, "one that ran nothing")
    session.end(1000, "first")
    session.finish("a")
    assert "a" in session.decoding, "the second one runs"
    assert session.ask(1010) is None
    session.end(1300, "second")
    session.close()
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [(row[7], row[1], row[11]) for row in rows] == [
        ("prefill", "0.000000005", "0.000000995"),
        ("decode", "0.000001000", "0.000000300"),
    ]


class Sleeps(Answers):
    def act(self, view):
        time.sleep(0.003)
        return 1


def test_a_slow_policy_is_warned_of_once(monkeypatch):
    monkeypatch.setattr("llmsched_env.engines.session.SLOW_NS", 2_000_000)
    session = Session(Driver(Sleeps(1), scenario(), mean_output_tokens=3))
    for key in "ab":
        session.arrive(key, 10, 0)
    session.ask(1)
    session.began(Ran(False, [("a", 10, 0)]))
    for _ in range(9):
        session.ask(2)
    with pytest.warns(EngineWarning, match="took more than 2 ms for each of 10 decisions, .*the engine waits"):
        session.ask(3)
    session.ask(4)
    assert session.failed == 0


def test_the_log_has_whole_rows(tmp_path):
    path = tmp_path / "new" / "log.csv"
    session = Session(Driver("prefill_first", scenario(), mean_output_tokens=3), shadow=True, log=DecisionLog(path))
    session.arrive("a", 10, 0)
    assert session.ask(5) is None, "a shadow leads nobody"
    session.began(Ran(False, [("a", 10, 0)]))
    session.ask(1105)
    session.close()
    assert path.read_text().splitlines() == [
        ",".join(DecisionLog.COLUMNS),
        "0,0.000000005,prefill,prefill,1,10,0.000001100,prefill,1,10,0.000001100,0.000001100,1",
    ]
    with pytest.raises(LLMSchedError, match="cannot write"):
        DecisionLog("/proc/none/log.csv")


class Full:
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path):
    log = DecisionLog(tmp_path / "log.csv")
    log.close()
    log._file = Full()
    session = Session(Driver("prefill_first", scenario(), mean_output_tokens=3), log=log)
    for key in "ab":
        session.arrive(key, 10, 0)
    session.ask(1)
    session.began(Ran(False, [("a", 10, 0)]))
    with pytest.warns(EngineWarning, match="cannot write .*No space left.* its rows end here"):
        plan = session.ask(10)
    assert plan is not None
    assert not session.lost


def test_a_policy_that_is_made_takes_no_numbers():
    with pytest.raises(ConfigError, match="give them to its factory"):
        Driver(Answers(0), scenario(), parameters=[3])
