"""Several accelerators: how a case is shared among them, the bound, the table, the picture and the page's example."""

from __future__ import annotations

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.baselines.registry import entry
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import play
from llmsched_env.offline import lb1_ns
from llmsched_env.studies import accelerators as study
from llmsched_env.studies.accelerators import CLIENTS, METHOD, SHARINGS, SharedWorkload, accelerators
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import workload


@pytest.mark.parametrize("sharing", SHARINGS)
def test_shares_are_the_whole_case(sharing):
    whole = workload("gsm8k").requests("test", 4, num_requests=30)
    shared = SharedWorkload("gsm8k", 3, 30, sharing)
    shares = [shared.requests("test", 3 * 4 + accelerator) for accelerator in range(3)]
    pairs = [
        list(zip(share.prompt_tokens.tolist(), share.output_tokens.tolist(), strict=True)) for share in (whole, *shares)
    ]
    assert sorted(itertools.chain(*pairs[1:])) == sorted(pairs[0])
    assert {share.mean_output_tokens for share in shares} == {whole.mean_output_tokens}
    if sharing == "round_robin":
        assert pairs[1:] == [pairs[0][accelerator::3] for accelerator in range(3)]
    else:
        tokens = [0, 0, 0]
        for length in sorted(whole.output_tokens.tolist(), reverse=True):
            tokens[tokens.index(min(tokens))] += length
        assert [int(share.output_tokens.sum()) for share in shares] == tokens
    assert SharedWorkload("gsm8k", 1, 30, sharing).requests("test", 4).digest() == whole.digest()
    assert shared.pool_size("test") == 300
    assert pickle.loads(pickle.dumps(shared)) == shared, "not to be sent to other processes or machines"


def test_the_whole_takes_as_long_as_its_last_accelerator():
    found = accelerators("gsm8k-smooth", 2, 500, "round_robin", 2)
    assert found == accelerators("gsm8k-smooth", 2, 500, "round_robin", 2, workers=2, engine="threading")
    row = entry(METHOD, Scenario(SharedWorkload("gsm8k-smooth", 2, 500, "round_robin"), "test", num_clients=CLIENTS))
    ends = [play(row.policy, row.scenario, case).view.clock_ns / 1e9 for case in range(4)]
    assert found["makespan_s"] == [max(ends[:2]), max(ends[2:])]
    assert len(set(ends)) == 4, "accelerators that end together: the last one was not tested"
    requests = workload("gsm8k-smooth").requests("test", 1, num_requests=500)
    assert found["bound_s"][1] == lb1_ns(requests, CLIENTS, Scenario().cost_model) / 2e9


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_no_way_to_share_beats_the_bound(count, sharing):
    found = accelerators("gsm8k", count, 300, sharing, 3)
    assert (np.array(found["bound_s"]) <= found["makespan_s"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gsm8k", 0, 10), ConfigError, "accelerators = 0 is out of range"),
        (("gsm8k", 4, 3), ConfigError, "num_requests = 3 is less than accelerators = 4: each of them needs a request"),
        (("gsm9k", 4, 30), UnknownNameError, "unknown workload 'gsm9k'"),
        (("gsm8k", 4, 30, "lpd"), UnknownNameError, "Did you mean 'lpt'"),
    ],
)
def test_bad_accelerators(arguments, error, message):
    with pytest.raises(error, match=message):
        SharedWorkload(*arguments)


def test_a_share_of_fewer_requests_is_checked_too():
    with pytest.raises(ConfigError, match="num_requests = 2 is less"):
        SharedWorkload("gsm8k", 4, 30).requests("test", 0, num_requests=2)


def test_the_table_and_the_picture(tmp_path, monkeypatch, figures):
    monkeypatch.setattr(study, "ACCELERATORS", (1, 2))
    found = run(study.STUDY, Options(2), tmp_path, workers=1, progress=False)
    assert len(found) == 2 * 2 * 2
    (table,) = study.STUDY.tables(found)
    assert [row[:3] for row in table.rows] == [
        [lengths, count, requests]
        for lengths in ("GSM8K", "smooth")
        for count, requests in (("1", "2,638"), ("2", "1,319"))
    ]
    one, two = (np.array(found[f"accelerators gsm8k {count} lpt"]["makespan_s"]) for count in (1, 2))
    bound = np.array(found["accelerators gsm8k 2 lpt"]["bound_s"])
    second = dict(zip(table.header, table.rows[1], strict=True))
    assert second["LPT: speed-up"] == f"{np.mean(one / two):.2f}"
    assert second["LPT: gap, %"].startswith(f"{100 * np.mean(two / bound - 1):.2f} ± ")
    assert study.STUDY.short({"shares": table}) == table
    assert (tmp_path / "accelerators.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    for axes, lengths in zip(figure.axes, study.LENGTHS, strict=True):
        assert axes.get_ylim()[0] == 0
        for line, sharing in zip(axes.lines, SHARINGS, strict=True):
            values = [found[f"accelerators {lengths} {count} {sharing}"] for count in (1, 2)]
            gaps = [100 * np.mean(np.divide(value["makespan_s"], value["bound_s"]) - 1) for value in values]
            assert line.get_ydata() == pytest.approx(gaps)


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "studies" / "accelerators.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?SharedWorkload.*?)```", page, re.DOTALL)
    exec(block, {})
    found = accelerators("gsm8k", 8, 10_552, "lpt", 1)
    assert float(capsys.readouterr().out) == found["makespan_s"][0]
