"""What searches that follow each other know of the plans that were finished before."""

from __future__ import annotations

import pytest
from playing import WORLDS, start_of

from llmsched_env.baselines import planners
from llmsched_env.cases import build_problem
from llmsched_env.engine.search import Beam, Ends
from llmsched_env.simulator import Simulator

NOT_DONE = 2**62
"""The engine's mark of a finish that was given up."""


@pytest.mark.parametrize("name", ["shared", "client, arrivals", "memory", "mixed"])
def test_a_search_that_knows_ends_finds_the_same_with_less(name):
    base, width, met = 3, 6, 0
    for case in range(6):
        simulator = Simulator(build_problem(WORLDS[name], case))
        rules = [rule.compiled(start_of(WORLDS[name])) for rule in planners._references(start_of(WORLDS[name]))]
        pool = [simulator.problem.episode() for _ in range(5 * width + 1)]
        first, second = (planners._schedule(simulator, rules[i]) for i in (0, base))
        knowing, fresh = Ends(), Ends()

        def search(reference, ends, simulator=simulator, pool=pool, rules=rules):
            return Beam(simulator.episode, pool, rules[base], width, reference, ends).search().tolist()

        search(first, knowing)
        before = len(knowing.ends)
        assert search(second, knowing) == search(second, fresh)
        met += before + len(fresh.ends) - len(knowing.ends)
    assert met > 50, "hardly any plan was finished by both"


def test_what_is_known_of_an_end():
    ends = Ends()
    plan = ends.number(ends.number(0, 5), 9)
    assert ends.number(ends.number(0, 5), 9) == plan
    assert len({plan, ends.number(0, 5), ends.number(0, 9), ends.number(plan, 9)}) == 4
    assert ends.known(plan, 100) == -1
    ends.keep(plan, NOT_DONE, 100)  # given up at a loss of 100
    assert [ends.known(plan, limit) for limit in (99, 100, 101)] == [NOT_DONE, NOT_DONE, -1]
    ends.keep(plan, 130, 200)
    assert [ends.known(plan, limit) for limit in (99, 200)] == [130, 130]
