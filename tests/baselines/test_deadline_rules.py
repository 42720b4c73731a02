"""WAIT and SLAI on paper. Prefill 100 + 10 a token, decode 50 + 1 a client, in ns."""

from __future__ import annotations

import math
import pickle

import pytest
from playing import COST, asked, kinds, start_of, view_of, world
from strategies import Case

from llmsched_env.baselines import make_policy
from llmsched_env.baselines.deadlines import fluid_threshold, slai, wait
from llmsched_env.baselines.iteration import eb_threshold, min_batch
from llmsched_env.baselines.registry import default_names, entry
from llmsched_env.config import Mixed
from llmsched_env.cost import MixedCost
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import play
from llmsched_env.simulator import Simulator

DECODE, PREFILL, MIXED = 0, 1, 2

SLO = world(mean_gap_ns=300, queue="shared", order="fcfs", ttft_s=1e-6, tpot_s=1.1e-7)


class TestFluidThreshold:
    """40 clients, prompts of 2 tokens, outputs of 11: each request takes part in 10 decodes.

    A request takes 10 * 2 + 10 * 1 = 30 ns of its own, and 10 * 50 / 40 = 12.5 ns of decodes with all clients: at most
    one in 42.5 ns can be served.
    """

    PLACE = world(queue="shared", num_clients=40)

    def at(self, gap_ns, **changes):
        return fluid_threshold(self.PLACE.replace(**changes), 1e9 / gap_ns, 2.0, 11.0)

    def test_a_prefill_to_every_decode(self):
        # A gap of 80 ns: 80 - 30 = 50 ns a request are left for 100 + 50 of a prefill and a decode, so n = 3 in 240 ns.
        # They keep 3 * 10 = 30 <= 40 clients busy: 100 / (80 - 42.5) = 2.67 is less.
        assert self.at(80.0) == 3
        assert 100 + 3 * 20 + 50 + 30 * 1 == 3 * 80

    def test_enough_that_the_clients_suffice(self):
        # A gap of 60 ns: a prefill to every decode is 150 / (60 - 30) = 5 requests, so 50 clients. With 40, a prefill
        # needs 100 / (60 - 42.5) = 5.71 requests: m = 1.43 decodes of 40 clients.
        m = 100 / 17.5 * 10 / 40
        assert 100 + 100 / 17.5 * 20 + m * (50 + 40) == pytest.approx(100 / 17.5 * 60)
        assert self.at(60.0) == 6

    def test_at_most_what_is_best_for_a_saturated_queue(self):
        # x / (1 - x) + ln(1 - x) = (1 / 11) * 100 / 50 has the root 0.422: floor(40 * 0.422) = 16.
        share = 0.422
        assert share / (1 - share) + math.log1p(-share) == pytest.approx(2 / 11, abs=3e-4)
        saturated = eb_threshold().compiled(start_of(self.PLACE, mean_output_tokens=11.0)).count
        assert saturated == 16
        assert self.at(42.6) == 16  # 100 / 0.1 = 1000
        assert self.at(42.5) == 16  # no equilibrium
        assert self.at(20.0) == 16
        assert fluid_threshold(self.PLACE, math.inf, 2.0, 11.0) == 16

    def test_at_most_what_a_prefill_may_read(self):
        assert COST.prefill_token_cap == 60
        assert fluid_threshold(self.PLACE, math.inf, 9.0, 11.0) == 6  # 60 / 9
        assert fluid_threshold(self.PLACE, math.inf, 70.0, 11.0) == 1

    def test_at_least_one(self):
        assert self.at(1e9) == 1
        assert fluid_threshold(self.PLACE, 0.0, 2.0, 11.0) == 1


def test_wait_is_that_threshold():
    rule = wait()
    rule.reset(start_of(SLO))
    count = int(rule.compiled(start_of(SLO)).count)
    assert count > 1, "it would be prefill_first"
    assert rule.act(view_of(active=3, ready=count - 1, waiting=99)) == DECODE
    assert rule.act(view_of(active=3, ready=count, waiting=count)) == PREFILL
    log = play(wait(), SLO, 0, record=True).log
    assert log.tobytes() == play(min_batch(count), SLO, 0, record=True).log.tobytes()


def test_without_arrivals_wait_is_the_threshold_of_a_saturated_queue():
    batch = world(queue="shared", num_clients=40, ttft_s=1e-6, tpot_s=1e-6)
    assert 1 < wait().compiled(start_of(batch)).count <= 16


def slai_view(**fields):
    return view_of(active=2, ready=1, tpot_ns=200, **fields)


def test_slai_delays_a_decode_until_its_last_schedulable_time():
    rule = slai()
    rule.reset(start_of(SLO))
    # Its last token came at 1000, a decode lasts 52: the last schedulable time is 1000 + 200 - 52 = 1148.
    assert rule.act(slai_view(decodes=7, clock_ns=1000, decode_ns=52)) == PREFILL
    assert rule.act(slai_view(decodes=7, clock_ns=1147, decode_ns=52)) == PREFILL
    assert rule.act(slai_view(decodes=7, clock_ns=1148, decode_ns=52)) == DECODE
    # With three clients it is 1147.
    assert rule.act(slai_view(decodes=7, clock_ns=1147, decode_ns=53)) == DECODE
    # The decode has given everybody a token.
    assert rule.act(slai_view(decodes=8, clock_ns=1201, decode_ns=53)) == PREFILL
    # An offset of two decodes: 1201 + 200 - 106 = 1295.
    rule = slai(2.0)
    rule.reset(start_of(SLO))
    assert rule.act(slai_view(decodes=8, clock_ns=1201, decode_ns=53)) == PREFILL
    assert rule.act(slai_view(decodes=8, clock_ns=1294, decode_ns=53)) == PREFILL
    assert rule.act(slai_view(decodes=8, clock_ns=1295, decode_ns=53)) == DECODE


# Each prefill reads one prompt of a token, and lasts 110. The first one ends at 110, and the decodes that it begins.
CASE = Case((1,) * 4, (3,) * 4, 4, token_cap=1, ttft_ns=1000, tpot_ns=200)


def run(rule, case, **start):
    rule.reset(start_of(SLO.replace(**start)))
    simulator = asked(rule, Simulator(case.problem(), record=True))
    ran = Simulator(case.problem(), record=True)
    ran.run(rule.compiled(start_of(SLO.replace(**start))))
    assert ran.log.tobytes() == simulator.log.tobytes()
    return simulator


def test_slai_on_paper():
    """A limit of 200 ns.

    Token at 110; 110 + 200 - 51 = 259 is later than 110: a prefill until 220; 220 + 200 - 52 counts from 110, so 258:
    another until 330, then a decode of 53 until 383. The fourth request is read from 383 to 493, since 383 + 200 - 53
    is later; then nobody waits.
    """
    simulator = run(slai(), CASE, tpot_s=2e-7)
    assert kinds(simulator) == "PPPDP" + "DD"
    assert simulator.log["end_ns"].tolist()[:5] == [110, 220, 330, 383, 493]


def test_slai_decodes_first_where_a_decode_does_not_meet_the_limit():
    assert kinds(run(slai(), Case((1,) * 2, (3,) * 2, 2, token_cap=1, ttft_ns=1000, tpot_ns=51), tpot_s=5.1e-8)) == (
        "PDDPDD"
    )


def test_slai_beside_prompts():
    """Two tokens a mixed iteration of 100 + 10 a token + 1 a client; else as above.

    Prefill until 110. Then the prefill (1 token) would leave room in a budget of 2: the decode joins, 100 + 20 + 1
    until 231, with two prompts. The fourth: again mixed.
    """
    mixed = Mixed(2, False, False, MixedCost(False, 100, 10, 1))
    case = Case((1,) * 4, (3,) * 4, 4, token_cap=1, ttft_ns=1000, tpot_ns=200, mixed=mixed)
    simulator = run(slai(), case, tpot_s=2e-7, mixed_tokens=2)
    assert simulator.log["mixed"].tolist() == [0, 1, 1, 0, 0]
    assert simulator.log["end_ns"].tolist()[:3] == [110, 231, 231 + 113]
    # A prefill that fills the budget leaves it out until it is urgent: at 220 + 51 > 310 - 51 it is.
    case = Case((1,) * 4, (3,) * 4, 4, token_cap=1, ttft_ns=1000, tpot_ns=161, mixed=Mixed(1, False, False, mixed.cost))
    simulator = run(slai(), case, tpot_s=1.61e-7, mixed_tokens=1)
    assert simulator.log["mixed"].tolist()[:4] == [0, 0, 1, 0]
    assert simulator.log["end_ns"].tolist()[:4] == [110, 220, 220 + 112, 332 + 110]


def test_they_need_slos_and_are_compared_there():
    for name in ("wait", "slai"):
        assert name in default_names(SLO)
        assert f"{name}@late_last" in default_names(SLO.replace(choose_order=True))
        with pytest.raises(ConfigError, match=f"policy '{name}' needs SLOs: take a scenario with ttft_s and tpot_s"):
            entry(name, world())
        assert pickle.loads(pickle.dumps(make_policy(name))).name == name
    with pytest.raises(ConfigError, match="policy 'slai' needs SLOs"):
        slai().reset(start_of(world()))
