"""``python -m baselines`` with SLOs: loads, pairs of a rule and an order, files, pictures, complaints."""

from __future__ import annotations

import csv
import itertools
import json
import textwrap
import warnings

import pytest
from test_command import complaint, folder, numbers  # noqa: F401  # `folder` is a fixture

import llmsched_env.baselines.__main__ as command
import llmsched_env.baselines.lookahead
from llmsched_env import cases, make_scenario
from llmsched_env.baselines import comparing
from llmsched_env.baselines.comparing import compare
from llmsched_env.baselines.iteration import min_batch
from llmsched_env.baselines.registry import AGENTS, BATCH_PLANNERS, POLICIES, SLO_POLICIES, default_names, entry
from llmsched_env.cases import build_problem
from llmsched_env.config import ORDER_CODES
from llmsched_env.cost import CostModel, capacity_requests_per_s
from llmsched_env.engine.codes import OUTPUT, PROMPT
from llmsched_env.errors import ConfigError, UnknownNameError

SERVING = ["--scenario", "LLMSched/Serving-v0", "--requests", "120", "--clients", "8", "--cases", "2"]
ORDERED = ["--scenario", "LLMSched/ServingOrder-v0", *SERVING[2:]]
PAIRS = "prefill_first,min_batch,min_batch@late_last,threshold@shortest_first,lookahead"
ESTIMATED = (
    "goodput", "ttft_s", "ttft_p99_s", "tpot_s", "tpot_p99_s", "worst_token_gap_s", "longest_wait_s",
    "served_requests_per_s", "makespan_s", "utilization", "prefills", "decodes", "gap_to_bound",
)  # fmt: skip


@pytest.fixture(autouse=True)
def tuned_at_once(monkeypatch):
    """What scores count from is tuned elsewhere: here it is a rule as it is."""

    def best(scenario):
        return "min_batch@late_last" if scenario.choose_order else "min_batch"

    monkeypatch.setattr(comparing, "best_tuned", best)
    init = llmsched_env.baselines.lookahead.Lookahead.__init__
    monkeypatch.setattr(
        llmsched_env.baselines.lookahead.Lookahead, "__init__", lambda self, base=None: init(self, base or min_batch())
    )


def run_json(path, *arguments):
    assert command.main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def test_json_has_the_agreed_shape(tmp_path):
    found = run_json(tmp_path / "x.json", *ORDERED, "--policies", PAIRS, "--loads", "0.9,0.6")
    assert [*found["loads"]] == ["0.9", "0.6"]
    whole = {key: value for key, value in found.items() if key != "loads"}
    assert whole == found["loads"]["0.9"], "the first load is what stands above the others"
    for load, one in found["loads"].items():
        assert one["load"] == float(load)
        assert (one["scenario"], one["split"], one["cases"]) == ("LLMSched/ServingOrder-v0", "test", 2)
        assert [*one["policies"]] == PAIRS.split(",")
        assert (one["score_reference"], one["score_planner"]) == ("min_batch@late_last", "lookahead")
        for name, row in one["policies"].items():
            assert row["kind"] == ("planner" if name == "lookahead" else "rule")
            assert row["clairvoyant"] == (name == "lookahead"), "orders go by predictions"
            for metric in ESTIMATED:
                assert set(row[metric]) == {"mean", "ci95"}
                low, high = row[metric]["ci95"]
                assert low <= row[metric]["mean"] <= high
            assert 0 <= row["goodput"]["mean"] <= 1
            assert row["ttft_s"]["mean"] <= row["ttft_p99_s"]["mean"] <= row["longest_wait_s"]["mean"] + 1
            assert row["tpot_s"]["mean"] <= row["tpot_p99_s"]["mean"] <= row["worst_token_gap_s"]["mean"]
        assert one["policies"]["lookahead"]["goodput"]["mean"] == max(
            row["goodput"]["mean"] for row in one["policies"].values()
        )
        assert one["policies"]["min_batch@late_last"]["score"]["mean"] == 0
        assert one["policies"]["lookahead"]["score"]["mean"] == 1
    by_load = [one["policies"]["prefill_first"] for one in found["loads"].values()]
    assert by_load[0]["goodput"]["mean"] < by_load[1]["goodput"]["mean"], "goodput falls where more comes"
    # Decisions are timed once, at the first load.
    assert by_load[0]["decision_us"]["p50"] > 0
    assert by_load[1]["decision_us"] == {"p50": None, "p99": None, "max": None}
    assert numbers(found)


def test_without_other_loads_there_is_one_comparison(tmp_path):
    found = run_json(tmp_path / "x.json", *SERVING, "--loads", "0.7", "--policies", "min_batch,threshold")
    assert "loads" not in found
    assert found["load"] == 0.7
    assert not any(row["clairvoyant"] for row in found["policies"].values())


def options_of(*arguments):
    return command._parser().parse_args([*arguments])


def test_the_scenarios_own_load_comes_first():
    scenario = command.scenario_of(options_of(*SERVING))
    recorded = scenario.replace(load=None)

    def loads(where, *arguments):
        return [place.load for place in command.places_of(options_of(*arguments), where)]

    assert loads(scenario) == [0.9, 0.7, 0.8, 0.97]
    assert loads(scenario, "--loads", "1.2, 0.5,1.2") == [1.2, 0.5]
    assert loads(recorded) == [None]
    assert loads(recorded, "--loads", "0.5") == [0.5]
    assert loads(command.scenario_of(options_of())) == [None]
    assert command.places_of(options_of("--loads", "recorded"), scenario) == [recorded]
    rates = command.places_of(options_of("--rate", "12, 20,recorded,12"), scenario)
    assert rates == [recorded.replace(requests_per_s=12.0), recorded.replace(requests_per_s=20.0), recorded]


def test_rates_stand_beside_loads(tmp_path, capsys):
    """Both ways to say how much comes give the same figures; by the formula of the capacity, or by the clock."""
    out = tmp_path / "out"
    few = [*SERVING, "--policies", "prefill_first,threshold", "--cases", "1"]
    by_load = run_json(tmp_path / "load.json", *few, "--loads", "0.9")
    where = command.scenario_of(options_of(*SERVING))
    requests = build_problem(where, 0).requests
    release_s = build_problem(where, 0).release_ns / 1e9
    rate = float(119 / (release_s[-1] - release_s[0]))
    prompt, output = requests[:, PROMPT].mean(), requests[:, OUTPUT].mean()
    assert by_load["requests_per_s"] == pytest.approx(rate, rel=1e-9)
    assert rate == pytest.approx(0.9 * capacity_requests_per_s(where.cost_model, 8, prompt, output), rel=1e-6)
    capsys.readouterr()
    by_rate = run_json(tmp_path / "rate.json", *few, "--rate", f"{rate!r},recorded", "--out", str(out))
    assert [*by_rate["rates"]] == [repr(rate), "recorded"]
    for name, row in by_load["policies"].items():
        for metric in ("goodput", "ttft_s", "makespan_s"):
            assert row[metric]["mean"] == pytest.approx(by_rate["policies"][name][metric]["mean"], rel=1e-6)
    assert by_rate["load"] == pytest.approx(0.9, rel=1e-6)
    # 'serving' comes at one request a second by itself, in the mean.
    assert by_rate["rates"]["recorded"]["requests_per_s"] == pytest.approx(1, rel=0.5)
    printed, written = capsys.readouterr().out, (out / "table.md").read_text(encoding="utf-8")
    assert f"{rate:.4g} requests/s (load 0.9)" in printed
    assert f"## At {rate:.4g} requests/s (load 0.9)" in written
    own = by_rate["rates"]["recorded"]
    assert f"The workload's own times ({own['requests_per_s']:.4g} requests/s, load {own['load']:.3g})" in printed
    with (out / "table.csv").open(encoding="utf-8") as file:
        assert {float(row["requests_per_s"]) for row in csv.DictReader(file)} == {rate, own["requests_per_s"]}
    assert json.loads((out / "configuration.json").read_text())["rates"] == [rate, "recorded"]


def test_a_rate_needs_no_capacity():
    """A cost model with a context term has none, so no load; requests/s are all that is said."""
    context = CostModel("context", 10**6, 10**3, 10**7, 10**4, gamma_decode_ns=2)
    where = make_scenario(
        "LLMSched/Serving-v0", cost=context, load=None, requests_per_s=2, num_requests=60, num_clients=8, split="test"
    )
    found = compare(["prefill_first"], where, 2)
    assert found.offered == (2.0, None)
    assert found.arrivals() == "2 requests/s"
    with pytest.raises(ConfigError, match=r"load = 0.5 with cost model 'context', .* give requests_per_s in place"):
        where.replace(requests_per_s=None, load=0.5)


def test_requests_that_come_at_once_have_no_rate():
    where = make_scenario("LLMSched/GSM8K-Blind-v0", ttft_s=2, tpot_s=0.1, num_requests=20, num_clients=8, split="test")
    found = compare(["prefill_first"], where, 1)
    assert found.offered == (None, None)
    assert found.arrivals() == "the workload's own times (all at once)"


def test_options_reach_the_scenario():
    scenario = command.scenario_of(options_of(*ORDERED, "--ttft-s", "0.5", "--tpot-s", "0.03", "--predictor", "prompt"))
    assert (scenario.ttft_s, scenario.tpot_s, scenario.predictor) == (0.5, 0.03, "prompt")
    assert scenario.choose_order
    assert command.scenario_of(options_of(*ORDERED, "--lengths", "known")).predictor is None
    assert command.scenario_of(options_of(*SERVING, "--order", "late_last")).order == "late_last"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            ([*SERVING, "--loads", text], f"--loads {text!r}: give numbers above 0, as 0.8,0.9, or 'recorded'")
            for text in ("", "x", "0.8,", "0.8;0.9", "0.8-0.9")
        ),
        ([*SERVING, "--loads=0"], "--loads 0.0 is out of range: it is above 0 and at most 10."),
        ([*SERVING, "--loads=0.5,-1"], "--loads -1.0 is out of range"),
        ([*SERVING, "--loads=0.5,nan"], "--loads nan is out of range"),
        ([*SERVING, "--loads=inf"], "--loads inf is out of range"),
        ([*SERVING, "--loads=0.5,11"], "--loads 11.0 is out of range"),
        ([*SERVING, "--rate", "fast"], "--rate 'fast': give numbers above 0, as 12,20, or 'recorded' for"),
        ([*SERVING, "--rate", "0"], "--rate 0.0 is out of range: it is above 0 and at most 1e+09."),
        ([*SERVING, "--rate=12,-1"], "--rate -1.0 is out of range"),
        ([*SERVING, "--rate", "1e-9"], "--rate 1e-09 is too low for 120 requests"),
        ([*SERVING, "--rate", "12", "--loads", "0.9"], "--loads '0.9' with --rate '12': give one of them."),
        ([*SERVING, "--arguments", "requests_per_s=12"], "--loads 0.9 with --rate 12.0: each is the rate of arrivals"),
        ([*SERVING, "--requests", "1", "--rate", "2"], "--rate 2.0: a case of one request has no rate"),
        (["--rate", "9"], "--rate '9': take a scenario with SLOs, as LLMSched/ServingOrder-v0."),
        (["--scenario", "LLMSched/GSM8K-Blind-v0", "--ttft-s", "2", "--tpot-s", "0.1", "--rate", "8"],
         "--rate 8.0: the requests of workload 'gsm8k' are all released at one time"),
        (["--loads", "0.9"], "--loads '0.9': take a scenario with SLOs, as LLMSched/ServingOrder-v0."),
        (["--ttft-s", "2"], "--ttft-s 2.0, --tpot-s None: give both or none."),
        (["--predictor", "noisy"], "--predictor noisy but --lengths known: nobody would read what it says."),
        ([*SERVING, "--predictor", "noisy"], "--predictor noisy but --lengths hidden"),
        ([*ORDERED, "--predictor", "nosy"], "unknown predictor 'nosy'. Did you mean 'noisy'"),
        ([*ORDERED, "--predictor", "noisy:2"], "correlation = 2.0"),
        ([*ORDERED, "--lengths", "known", "--predictor", "noisy"], "nobody would read what it says"),
        ([*SERVING, "--ttft-s", "-1"], "--ttft-s -1.0 is out of range"),
        ([*SERVING, "--tpot-s", "nan"], "--tpot-s nan is out of range"),
        ([*SERVING, "--tpot-s", "fast"], "argument --tpot-s: invalid float value: 'fast'"),
        ([*ORDERED, "--order", "late_last"], "--order late_last with choose_order=True"),
        ([*SERVING, "--workload", "gsm8k"], "all released at one time, which no rate describes"),
        ([*SERVING, "--requests", "1"], "--loads 0.9: a case of one request has no rate"),
        (["--scenario", "LLMSched/GSM8K-Blind-v0", "--ttft-s", "2", "--tpot-s", "0.1", "--loads", "0.8"],
         "--loads 0.8: the requests of workload 'gsm8k' are all released at one time"),
        ([*SERVING, "--policies", "beam"], "policy 'beam' minimises the makespan of a batch: leave it out where"),
        ([*SERVING, "--policies", "hybrid"], "policy 'hybrid' minimises the makespan of a batch"),
        ([*SERVING, "--policies", "threshold@latest"], "unknown order 'latest'. Did you mean 'late_last'"),
        ([*SERVING, "--policies", "lookahead@fcfs"], "'lookahead' is no rule, or brings its own order"),
        ([*SERVING, "--policies", "treshold@fcfs"], "unknown policy 'treshold'. Did you mean 'threshold'"),
        (["--policies", "lookahead"], "policy 'lookahead' needs SLOs: take a scenario with --ttft-s and --tpot-s."),
        (["--queue", "shared", "--policies", "threshold@late_last"], "--order late_last needs SLOs"),
    ],
)  # fmt: skip
def test_unusable_arguments(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(command, "compare", lambda *_, **__: pytest.fail("the long work came first"))
    monkeypatch.setattr(comparing, "best_tuned", lambda _: pytest.fail("the long work came first"))
    assert words in complaint(capsys, *arguments, "--json", str(tmp_path / "x.json"), "--out", str(tmp_path / "out"))
    assert [*tmp_path.iterdir()] == []


def scenario_of_id(name):
    return make_scenario(f"LLMSched/{name}-v0", num_requests=60, num_clients=5)


def test_what_is_compared_by_default():
    rules = [name for name in (*POLICIES, *SLO_POLICIES) if name not in (*BATCH_PLANNERS, "lookahead")]
    worlds = map(scenario_of_id, ("Serving", "ServingOrder"))
    plain, found = ([name for name in default_names(where) if name not in AGENTS] for where in worlds)
    assert plain == [*rules, "lookahead"]
    pairs = [name if order == "fcfs" else f"{name}@{order}" for name in rules for order in ORDER_CODES]
    assert found == [*pairs, "lookahead"]
    assert len(set(found)) == len(found)
    for name in found:
        made = entry(name, scenario_of_id("ServingOrder"))
        assert made.name == name


def test_pairs_by_name():
    ordered = scenario_of_id("ServingOrder")
    for rule, order in itertools.product(("threshold", "deadline"), ORDER_CODES):
        made = entry(f"{rule}@{order}", ordered)
        assert (made.name, made.policy.name, made.kind) == (f"{rule}@{order}", rule, "rule")
        assert (made.scenario.order, made.scenario.choose_order) == (order, False)
        assert made.scenario == ordered.replace(order=order, choose_order=False)
    plain = entry("threshold", ordered)
    assert (plain.scenario.order, plain.scenario.choose_order) == ("fcfs", False)
    planner = entry("lookahead", ordered)
    assert planner.scenario == ordered.replace(lengths="known", predictor=None)
    assert planner.scenario.choose_order
    weighed = ordered.replace(sd_weight=1.0)
    assert entry("lookahead", weighed).scenario == planner.scenario
    with pytest.raises(UnknownNameError, match="unknown order ''"):
        entry("threshold@", ordered)
    with pytest.raises(ConfigError, match="policy 'rollout' minimises the makespan"):
        entry("rollout@fcfs", ordered)


def test_the_folder_holds_everything_whole(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "served"
    assert command.main([*ORDERED, "--policies", PAIRS, "--loads", "0.9,0.6", "--out", str(out)]) == 0
    names = {
        "comparison.json", "configuration.json", "table.csv", "table.md", "goodput_against_load.png", "latencies.png",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == names
    for name in names:
        assert not name.endswith(".png") or (out / name).read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert "warning" not in said.err.lower()
    for text in (
        "the order chosen at each prefill, lengths predicted, noisy:0.6",
        "SLOs: first token within 2 s (TTFT), then 100 ms a token (TPOT)",
        "The first and the last 10% of a case",
        "Load 0.9 (",
        " requests/s). Score: 0 = min_batch@late_last (goodput ",
        "Load 0.6 (",
        f"Written to {out}",
    ):
        assert text in said.out
    assert "None" not in said.out
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    configuration = json.loads((out / "configuration.json").read_text(encoding="utf-8"))
    assert configuration["loads"] == [0.9, 0.6]
    assert configuration["arguments"]["ttft_s"] == 2.0
    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert {row["load"] for row in rows} == {"0.9", "0.6"}
    assert {row["policy"] for row in rows} == {*PAIRS.split(",")}
    for load, policy, metric in itertools.product(
        ("0.9", "0.6"), ("min_batch@late_last", "lookahead"), ("goodput", "ttft_s")
    ):
        (row,) = (row for row in rows if (row["load"], row["policy"], row["metric"]) == (load, policy, metric))
        assert float(row["mean"]) == found["loads"][load]["policies"][policy][metric]["mean"]
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page.count("| lookahead ") == 2
    assert "## At load 0.9" in page
    assert "## At load 0.6" in page


def test_one_load_and_no_planner_is_drawn_too(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = [*SERVING, "--policies", "decode_first", "--loads", "0.5", "--cases", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"latencies.png"}


OWN = textwrap.dedent(
    '''
    class Eager:
        """Prefills when it can."""

        name, kind, clairvoyant = "eager", "rule", False

        def reset(self, start):
            assert start.simulator is None

        def act(self, view):
            return 1
    '''
)


def test_a_rule_of_ones_own_is_compared_and_drawn(folder, capsys):  # noqa: F811
    pytest.importorskip("matplotlib")
    (folder / "my_own_rules.py").write_text(OWN)
    names = "prefill_first,my_own_rules:Eager"
    assert command.main([*ORDERED, "--policies", names, "--loads", "0.9", "--out", "out"]) == 0
    assert "| eager " in capsys.readouterr().out
    found = json.loads((folder / "out" / "comparison.json").read_text(encoding="utf-8"))["policies"]
    # In a scenario with orders to choose, its prefills are by the first one.
    assert found["eager"]["goodput"] == found["prefill_first"]["goodput"]
    assert (folder / "out" / "latencies.png").is_file()


def test_leaving_the_range_of_the_cost_model_is_said_in_one_line(capsys):
    arguments = [*ORDERED, "--policies", "prefill_first,min_batch,min_batch@late_last", "--cost", "qwen3-8b-h200"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert command.main([*arguments, "--loads", "0.9,0.6"]) == 0
    assert seen == []
    said = capsys.readouterr().err.strip().split("\r")[-1].strip()  # after the bar
    assert said.startswith(
        "warning: 3 of 3 policies left the range of their cost model. The first is prefill_first: cost "
    )
    assert said.endswith("record such iterations and fit again.")
    assert len(said.splitlines()) == 1


def test_slos_that_nobody_meets_are_said_once(capsys, monkeypatch):
    monkeypatch.setattr(cases, "_said", set())
    monkeypatch.setattr(cases, "_problems", {})
    arguments = [*ORDERED, "--policies", "prefill_first,min_batch", "--ttft-s", "0.01", "--loads", "0.9,0.6"]
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: --ttft-s 0.01: no schedule meets this SLO") == 1
    rows = [line.split("|") for line in said.out.splitlines() if line.startswith("| prefill_first ")]
    assert [row[4].split()[0] for row in rows] == ["0.0", "0.0"]


def test_workers_share_the_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "draw_serving", lambda *_: [])
    tables = []
    for name, workers in (("alone", []), ("shared", ["--workers", "1"]), ("shared", ["--workers", "1"])):
        arguments = [*ORDERED, "--policies", "min_batch,lookahead", "--loads", "0.9", *workers]
        assert command.main([*arguments, "--out", str(tmp_path / name)]) == 0
        tables.append((tmp_path / name / "table.csv").read_bytes())
    assert len(set(tables)) == 1
    assert len([*(tmp_path / "shared" / "chunks").iterdir()]) == 3, "two policies, and the rule that scores count from"
