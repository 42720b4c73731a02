"""Plays requests through a scheduler on its virtual clock, and compares each iteration with the simulator's."""

from __future__ import annotations

from typing import Any

import vllm_bare as bare
from simulated import Row, fields, played


class Playing:
    """Requests through one scheduler of ours.

    Attributes:
        views: (iterations,) the view before each.
        actions: (iterations,) of the policy's table.
        clocks_ns: (iterations,) at the end of each.
        first_ns: when each request had its first token,
        last_ns: and its last one.
        preemptions: of all requests.
    """

    def __init__(self, serving: Any) -> None:
        self.serving = serving
        self.views: list[dict[str, Any]] = []
        self.actions: list[int] = []
        self.clocks_ns: list[int] = []
        self.first_ns: dict[int, int] = {}
        self.last_ns: dict[int, int] = {}
        self.preemptions = 0

    def play(self, requests: list[Row]) -> None:
        """From the first arrival to the last token."""
        session, driver = self.serving.session, self.serving.session.driver
        decide, added, left = driver.decide, 0, [output for _, _, output in requests]

        def noting(now_ns: int = 0) -> Any:
            plan = decide(now_ns)
            if plan is not None:
                self.views.append(fields(driver.shown))
                self.actions.append(plan.action)
            return plan

        driver.decide = noting
        while any(left):
            while added < len(requests) and requests[added][0] <= driver.clock_ns:
                self.serving.add_request(bare.request(str(added), *requests[added]))
                added += 1
            output = self.serving.schedule()
            if not output.num_scheduled_tokens:
                assert added < len(requests), f"nothing runs, and {sum(map(bool, left))} requests are left"
                bare.answer(self.serving, output)
                driver.wait_until(requests[added][0])
                continue
            tokens = bare.answer(self.serving, output)
            self.clocks_ns.append(driver.clock_ns)
            for name, count in tokens.items():
                number = int(name)
                left[number] -= count
                if count:
                    self.first_ns.setdefault(number, driver.clock_ns)
                if not left[number]:
                    self.last_ns.setdefault(number, driver.clock_ns)
        assert not session.failed
        assert not session.lost


def compare(
    playing: Playing, policy: str, parameters: list[Any], scenario: Any, requests: list[Row], mean: float
) -> int:
    """Whether the simulator did the same, iteration for iteration; how many there were."""
    count = 0
    for count, (action, view, run) in enumerate(played(policy, parameters, scenario, requests, mean), 1):
        at = count - 1
        theirs = playing.views[at]
        apart = {name: (theirs.get(name), value) for name, value in view.items() if theirs.get(name) != value}
        assert not apart, f"iteration {at}: (the engine's, the simulator's) {apart}"
        assert playing.actions[at] == action, f"iteration {at}: action {playing.actions[at]}, simulated {action}"
        assert playing.clocks_ns[at] == int(run.log["end_ns"][at]), f"iteration {at} ends at another time"
    assert count == len(playing.actions) == len(playing.clocks_ns)
    served = run.served
    assert [playing.first_ns[i] for i in range(len(requests))] == served["first_token_ns"].tolist()
    assert [playing.last_ns[i] for i in range(len(requests))] == served["completion_ns"].tolist()
    return count
