"""Planning with wrong lengths: the study at a size that takes seconds."""

from __future__ import annotations

import pytest

from llmsched_env.config import Scenario
from llmsched_env.cost import cost_model
from llmsched_env.evaluation import evaluate
from llmsched_env.offline.joint import stored_plan
from llmsched_env.studies import planning as study
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import workload


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "ERRORS", (0.0, 1.0))
    return Options(cases=1, clients=(6,))


def test_the_plan_leads_where_lengths_are_known_and_not_where_they_are_wrong(small, tmp_path):
    found = run(study.STUDY, small, tmp_path, workers=1, progress=False)
    assert [*found] == ["gsm8k/0/0", "gsm8k/1/0", "gsm8k-smooth/0/0", "gsm8k-smooth/1/0"]
    for name in ("gsm8k", "gsm8k-smooth"):
        requests = workload(name).requests("test", 0, num_requests=40)
        plan = stored_plan(requests, 6, cost_model("llama-65b-paper"))
        known, wrong = (found[f"{name}/{error}/0"] for error in (0, 1))
        followed = known[study.FOLLOWED]
        assert followed == pytest.approx(plan.gap, abs=0.02), "LB1 and the plan's bound differ a little"
        assert known[study.AGAIN] <= followed
        assert wrong[study.FOLLOWED] > followed
        where = Scenario(
            workload=name, num_clients=6, num_requests=40, queue="shared", order="longest_first", split="test"
        )
        beam = evaluate(study.entry("beam", where).policy, where, [0]).columns
        gap = beam["makespan_s"][0] / beam["lb1_s"][0] - 1.0
        assert known["one queue, beam that knows the lengths"] == pytest.approx(gap, rel=1e-9)
    (table,) = study.tables(found)
    assert [row[:2] for row in table.rows] == [
        [name, error] for name in ("gsm8k", "gsm8k-smooth") for error in ("0 %", "100 %")
    ]
    assert len(table.header) == len(table.rows[0]) == 2 + len(study.SHOWN)
    assert study.short({"gaps": table}).rows == table.rows
    assert (tmp_path / "planning.png").read_bytes().startswith(b"\x89PNG")
