"""Plays requests through a scheduler on its virtual clock, and compares each iteration with the simulator's."""

from __future__ import annotations

import random
from typing import Any

import vllm_bare as bare
from beside_simulator import Row, fields, played

COST = {"name": "toy", "alpha_prefill_ns": 1000, "beta_prefill_ns": 10, "alpha_decode_ns": 300, "beta_decode_ns": 7,
        "gamma_decode_ns": 0, "prefill_token_cap": 400}  # fmt: skip
SLO = {"ttft_s": 3e-5, "tpot_s": 1e-6}
MEAN = 20.0


def drawn(
    seed: int, count: int, gap_ns: int, prompts: tuple[int, int] = (5, 150), outputs: tuple[int, int] = (1, 40)
) -> list[Row]:
    """Requests with lengths drawn evenly, one after another in 0 to 2 ``gap_ns``."""
    rng = random.Random(seed)
    clock, found = 0, []
    for _ in range(count):
        found.append((clock, rng.randint(*prompts), rng.randint(*outputs)))
        clock += rng.randint(0, 2 * gap_ns)
    return found


REQUESTS = {"batch": drawn(1, 200, 0), "arrivals": drawn(2, 300, 3500)}


def options(policy: str, parameters: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """Options of a scheduler on the virtual clock."""
    told = {"policy": policy, "parameters": parameters or [], "cost": COST, "clock": "virtual"}
    return {**told, "mean_output_tokens": MEAN, **more}


class Playing:
    """Requests through one scheduler of ours.

    Attributes:
        views: (iterations,) the view before each.
        actions: (iterations,) of the policy's table.
        clocks_ns: (iterations,) at the end of each.
        first_ns: when each request had its first token,
        last_ns: and its last one.
        reads: prompt tokens of each iteration.
        preemptions: of all requests.
    """

    def __init__(self, serving: Any) -> None:
        self.serving = serving
        self.views: list[dict[str, Any]] = []
        self.actions: list[int] = []
        self.clocks_ns: list[int] = []
        self.first_ns: dict[int, int] = {}
        self.last_ns: dict[int, int] = {}
        self.reads: list[int] = []
        self.preemptions = 0

    @property
    def tokens_read(self) -> int:
        """Prompt tokens that were computed."""
        return sum(self.reads)

    def listen(self) -> None:
        """Note what the driver is asked and told from now on."""
        driver = self.serving.session.driver
        decide, ran = driver.decide, driver.ran

        def noting(now_ns: int = 0) -> Any:
            plan = decide(now_ns)
            if plan is not None:
                self.views.append(fields(driver.shown))
                self.actions.append(plan.action)
            return plan

        def counting(done: Any, now_ns: int = 0) -> int:
            self.reads.append(sum(tokens for _, tokens, _ in done.reads))
            self.preemptions += len(done.preempted)
            expected_ns = ran(done, now_ns)
            self.clocks_ns.append(driver.clock_ns)
            return int(expected_ns)

        driver.decide, driver.ran = noting, counting

    def play(self, requests: list[Row]) -> None:
        """From the first arrival to the last token."""
        session, driver = self.serving.session, self.serving.session.driver
        added, left = 0, [output for _, _, output in requests]
        self.listen()
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
            for name, count in tokens.items():
                number = int(name)
                left[number] -= count
                if count:
                    self.first_ns.setdefault(number, driver.clock_ns)
                if not left[number]:
                    self.last_ns.setdefault(number, driver.clock_ns)
        assert not session.failed
        assert not session.lost


def compare(playing: Playing, policy: str, parameters: list[Any], requests: list[Row], *, served: bool = True) -> int:
    """Whether the simulator did the same, iteration for iteration; how many there were.

    Args:
        playing: what the engine did.
        policy: that decided,
        parameters: with these numbers.
        requests: that were played.
        served: whether the times of first and last tokens were noted, to be compared, too.
    """
    driver, count = playing.serving.session.driver, 0
    for count, (action, view, run) in enumerate(
        played(policy, parameters, driver.scenario, requests, driver.mean_output_tokens), 1
    ):
        at = count - 1
        theirs = playing.views[at]
        apart = {name: (theirs.get(name), value) for name, value in view.items() if theirs.get(name) != value}
        assert not apart, f"iteration {at}: (the engine's, the simulator's) {apart}"
        assert playing.actions[at] == action, f"iteration {at}: action {playing.actions[at]}, simulated {action}"
        assert playing.clocks_ns[at] == int(run.log["end_ns"][at]), f"iteration {at} ends at another time"
    assert count == len(playing.actions) == len(playing.clocks_ns)
    if served:
        times = run.served
        assert [playing.first_ns[i] for i in range(len(requests))] == times["first_token_ns"].tolist()
        assert [playing.last_ns[i] for i in range(len(requests))] == times["completion_ns"].tolist()
    return count
