"""Instances that can be done on paper. Unless said otherwise: prefill 100 + 10 a token, decode 50 + 1 a client."""

from __future__ import annotations

from strategies import DECODE, PREFILL, Case

from llmsched_env.config import Mixed
from llmsched_env.cost import MixedCost
from llmsched_env.simulator import Simulator


def play(case, actions, **options):
    simulator = Simulator(case.problem(**options), record=True)
    for action in actions:
        simulator.step(action)
    assert simulator.done, "the instance on paper ends here"
    assert simulator.totals.invalid_actions == 0
    return simulator


def times(simulator, name):
    return simulator.served[name].tolist()


def test_one_request():
    # Prefill of 3 tokens: 100 + 30 = 130. Two more tokens: 2 decodes of 50 + 1.
    simulator = play(Case((3,), (3,), 1), [PREFILL, DECODE, DECODE])
    assert times(simulator, "first_token_ns") == [130]
    assert times(simulator, "completion_ns") == [130 + 51 + 51]
    assert simulator.totals.busy_client_ns == simulator.view.clock_ns == 232


def test_a_request_of_one_token_ends_with_its_prefill():
    # Clients 0, 1 take requests 0, 1: prefill 100 + 10 (1 + 2) = 130. Request 0 is complete and leaves client 0 idle,
    # which takes request 2: 100 + 30 = 130, in which client 1 stalls. It has one token too. Then client 1 decodes once.
    simulator = play(Case((1, 2, 3), (1, 2, 1), 2), [PREFILL, PREFILL, DECODE])
    assert times(simulator, "completion_ns") == [130, 130 + 130 + 51, 260]
    assert times(simulator, "client") == [0, 1, 0]
    # Busy: 2 clients in the first prefill, 1 in the second, 1 in the decode.
    assert simulator.totals.busy_client_ns == 2 * 130 + 130 + 51
    assert simulator.totals.idle_client_decodes == 1


def test_decode_before_refill():
    # 2 clients, FCFS, outputs 2, 3, 2. Prefill of 0 and 1: 120. Decode: 52, request 0 done at 172. Decode with client 0
    # idle: 51, request 1 done at 223. Prefill of 2: 110 -> 333. Decode: 51 -> 384.
    simulator = play(Case((1, 1, 1), (2, 3, 2), 2), [PREFILL, DECODE, DECODE, PREFILL, DECODE])
    assert times(simulator, "completion_ns") == [172, 223, 384]
    assert simulator.view.clock_ns == 384
    # J * D = sum of decodes + idle client-decodes: 2 * 3 = (1 + 2 + 1) + 2.
    assert (simulator.view.decodes, simulator.totals.idle_client_decodes) == (3, 2)
    # Everything is there from the start: the integral of requests in the system is the sum of completion times.
    assert simulator.totals.request_ns == 172 + 223 + 384


def test_the_cap_stops_at_the_first_that_would_exceed_it_and_skips_nobody():
    # Cap 10, three idle clients, prompts 6, 5, 4: 6 fits, 6 + 5 = 11 does not, and 4 is not tried though 6 + 4 = 10.
    simulator = Simulator(Case((6, 5, 4), (1, 1, 1), 3, token_cap=10).problem(), record=True)
    simulator.step(PREFILL)
    assert times(simulator, "first_token_ns") == [160, 0, 0]
    # 5 + 4 = 9 fits: 100 + 90.
    assert simulator.view.batch_tokens == 9
    simulator.step(PREFILL)
    assert times(simulator, "first_token_ns") == [160, 160 + 190, 160 + 190]


def test_a_batch_may_fill_the_cap_exactly():
    simulator = play(Case((6, 4), (1, 1), 2, token_cap=10), [PREFILL])
    assert simulator.view.clock_ns == 100 + 10 * 10


def test_a_prompt_above_the_cap_is_prefilled_alone():
    # Cap 10, prompts 25, 1: the first is always taken, 100 + 250, and the next does not fit beside it.
    simulator = play(Case((25, 1), (1, 1), 2, token_cap=10), [PREFILL, PREFILL])
    assert times(simulator, "completion_ns") == [350, 350 + 110]


def test_the_cap_binds_in_the_order_of_clients():
    # Prompts: client 0 has 8, client 1 nothing, client 2 has 8, client 3 has 1. Cap 10: 8 + 8 does not fit, so client 3
    # is not asked, though 8 + 1 would.
    case = Case((8, 8, 1), (1, 1, 1), 4, queues=(0, 2, 3), token_cap=10)
    simulator = Simulator(case.problem(), record=True)
    assert simulator.view.ready == 3
    simulator.step(PREFILL)
    assert times(simulator, "completion_ns") == [180, 0, 0]
    simulator.step(PREFILL)
    assert times(simulator, "completion_ns") == [180, 180 + 190, 180 + 190]
    assert times(simulator, "client") == [0, 2, 3]


def test_steal_from_the_most_loaded():
    # Outputs: client 0 has 9, 2 waiting; client 1: 3, 3, 3; client 2: none. When client 2 composes, the others hold
    # theirs: client 0 has 8 to decode and 2 waiting = 10, client 1 has 2 + 6 = 8. It takes request 1, from client 0.
    case = Case((1,) * 5, (9, 2, 3, 3, 3), 3, queues=(0, 0, 1, 1, 1), stealing=True)
    simulator = Simulator(case.problem(), record=True)
    simulator.step(PREFILL)
    assert times(simulator, "client")[:3] == [0, 2, 1]
    assert times(simulator, "first_token_ns") == [130, 130, 130, 0, 0]
    assert simulator.totals.steals == 1
    # One decode ends request 1. Client 2 is idle again; only client 1 has waiting requests: it is robbed.
    simulator.step(DECODE)
    simulator.step(PREFILL)
    assert times(simulator, "client")[3] == 2
    assert simulator.totals.steals == 2


def test_equal_work_robs_the_lowest_client():
    # Client 0 is the thief. Clients 1 and 2: one request of 4 waiting each, and both idle.
    case = Case((1, 1), (4, 4), 3, queues=(1, 2), stealing=True)
    simulator = Simulator(case.problem(), record=True)
    simulator.step(PREFILL)
    # Client 0 takes client 1's request; client 1, left with nothing, takes client 2's; client 2 finds none.
    assert times(simulator, "client") == [0, 1]
    assert simulator.totals.steals == 2


def test_without_stealing_a_client_waits_for_its_own():
    case = Case((1, 1), (1, 2), 2, queues=(0, 0), stealing=False)
    simulator = Simulator(case.problem(), record=True)
    assert simulator.view.ready == 1
    simulator.step(PREFILL)
    simulator.step(PREFILL)
    simulator.step(DECODE)
    assert times(simulator, "client") == [0, 0]
    assert times(simulator, "completion_ns") == [110, 110 + 110 + 51]


def test_order_within_a_queue_is_by_estimate():
    # Estimates 1, 9, 5 (the truth is otherwise): longest first takes 1, 2, 0; shortest first 0, 2, 1.
    for order, sequence in (("longest_first", [1, 2, 0]), ("shortest_first", [0, 2, 1]), ("fcfs", [0, 1, 2])):
        case = Case((1, 1, 1), (1, 1, 1), 1, estimates=(1, 9, 5), order=order)
        simulator = play(case, [PREFILL] * 3)
        assert sorted(range(3), key=times(simulator, "completion_ns").__getitem__) == sequence


def test_time_jumps_to_the_next_arrival():
    # Released at 70, 500: the clock starts at 70; the first is done at 180; nothing to do until 500; done at 610.
    case = Case((1, 1), (1, 1), 1, releases_ns=(70, 500))
    simulator = Simulator(case.problem(), record=True)
    assert simulator.view.clock_ns == 70
    simulator.step(PREFILL)
    assert simulator.view.clock_ns == 500
    simulator.step(PREFILL)
    assert times(simulator, "completion_ns") == [180, 610]
    assert simulator.totals.jump_ns == 70 + (500 - 180)
    assert simulator.totals.request_ns == 110 + 110
    assert simulator.totals.busy_client_ns == 220


def test_an_arrival_inside_an_iteration_waits_for_its_end():
    # Prefill of request 0 from 0 to 110. Request 1 arrives at 30, is seen at 110, taken then, done at 220.
    case = Case((1, 1), (5, 1), 2, releases_ns=(0, 30))
    simulator = Simulator(case.problem(), record=True)
    assert simulator.view.waiting == 1
    simulator.step(PREFILL)
    assert (simulator.view.waiting, simulator.view.oldest_release_ns) == (1, 30)
    simulator.step(PREFILL)
    assert times(simulator, "completion_ns") == [0, 220]
    # Request 0 has been there for 220, request 1 from 30 to 220.
    assert simulator.totals.request_ns == 220 + 190


def test_prefill_levels():
    # Levels 5 -> 90 and 20 -> 200: 5 tokens take 90, 6 tokens 200.
    levels = ((5, 90), (20, 200))
    assert play(Case((5,), (1,), 1, levels=levels, token_cap=20), [PREFILL]).view.clock_ns == 90
    assert play(Case((5, 1), (1, 1), 2, levels=levels, token_cap=20), [PREFILL]).view.clock_ns == 200
    assert play(Case((5, 1), (1, 1), 2, levels=levels, token_cap=5), [PREFILL, PREFILL]).view.clock_ns == 90 + 90


def test_context_makes_decodes_longer():
    # Prompts 4 and 6, both with 3 tokens, 2 ns a token of context. After the prefill they hold 5 + 7 = 12, then 14.
    # Prefill 100 + 100 = 200; decodes 50 + 2 + 24 = 76 and 50 + 2 + 28 = 80.
    simulator = play(Case((4, 6), (3, 3), 2, gamma_decode_ns=2), [PREFILL, DECODE, DECODE])
    assert simulator.view.clock_ns == 200 + 76 + 80


def test_the_first_decode_after_a_prefill_lasts_longer():
    # Prompts 4 and 6, outputs of 3 and 2, 30 ns after a prefill. Prefills of 4 and of 6 tokens: 140 and 160.
    # Prefill, first decode 50 + 1 + 30 = 81, prefill, first decode of two 52 + 30 = 82: both requests are complete.
    case = Case((4, 6), (3, 2), 2, token_cap=6, first_decode_ns=30)
    simulator = Simulator(case.problem())
    shown = []
    for action in (PREFILL, DECODE, PREFILL, DECODE):
        shown.append((int(simulator.view.prefill_ns), int(simulator.view.decode_ns)))
        simulator.step(action)
    assert (shown[0][0], shown[1][1], shown[2][0], shown[3][1]) == (140, 81, 160, 82)
    assert (shown[2][1], simulator.view.clock_ns, simulator.done) == (51, 140 + 81 + 160 + 82, True)
    # Both prefills first, then three iterations: 300 and 82, then one client alone for its last token, 51.
    simulator = play(case, [PREFILL, PREFILL, DECODE, DECODE])
    assert simulator.view.clock_ns == 140 + 160 + 82 + 51


def test_no_decode_is_the_first_after_a_mixed_iteration():
    # Prompts 4 and 6: prefill 100 + 40 = 140; 6 tokens beside a decode 100 + 60 + 1 = 161; decodes of two, then one.
    mixed = Mixed(6, False, False, MixedCost(False, 100, 10, 1))
    case = Case((4, 6), (4, 2), 2, token_cap=6, mixed=mixed, first_decode_ns=30)
    assert play(case, [PREFILL, 2, DECODE, DECODE]).view.clock_ns == 140 + 161 + 52 + 51


def test_an_infeasible_action_is_replaced_and_counted():
    simulator = Simulator(Case((1,), (3,), 1).problem())
    simulator.step(DECODE)  # nobody is active: a prefill
    assert (simulator.view.prefills, simulator.view.decodes) == (1, 0)
    simulator.step(PREFILL)  # nothing waits: a decode
    assert (simulator.view.prefills, simulator.view.decodes) == (1, 1)
    assert simulator.totals.invalid_actions == 2


def test_what_a_view_expects():
    # Estimates 2, 4, 20, 3 of requests that really have 2, 4, 2, 9 tokens, all started together.
    case = Case((1,) * 4, (2, 4, 2, 9), 4, estimates=(2, 4, 20, 3))
    simulator = Simulator(case.problem())
    simulator.step(PREFILL)
    view = simulator.view
    # To go: 1, 3, 19, 2.
    assert (view.due_1, view.due_4, view.due_16, view.due_64) == (1, 2, 0, 1)
    assert (view.remaining, view.remaining_squared) == (1 + 3 + 19 + 2, 1 + 9 + 361 + 4)
    assert view.last_due == 19
    # After a decode requests 0 and 2 are done, the latter 18 before its time: 2 and 1 to go.
    simulator.step(DECODE)
    assert (view.due_1, view.due_4, view.due_64, view.remaining) == (1, 1, 0, 3)
    assert view.last_due == 3
    # After another, request 3 is overdue: it was expected to have 3 tokens.
    simulator.step(DECODE)
    assert (view.overdue, view.due_1, view.remaining) == (1, 1, 1)
