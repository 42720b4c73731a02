"""The rules that are shipped, compiled: what each of them mimics is said in the package ``baselines``.

Symbols as in docs/model.md: W waiting, A active, F idle, J clients, R idle clients that have something to take. Where
only two actions are, a rule is asked only where A > 0 and R > 0. None of them reads the forecast.
"""

from __future__ import annotations

import math

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import View


class Always(Rule):
    """The same action wherever it is asked.

    Args:
        action: number of it.
    """

    action: cython.int

    def __init__(self, action: int) -> None:
        self.reads_forecast = False
        self.action = action

    def act(self, view: View) -> cython.int:
        """That action."""
        return self.action


class IdleThreshold(Rule):
    """A prefill, or another action, where F >= ``count`` or everything that waits fits.

    Args:
        count: of idle clients.
        action: instead of a decode.
    """

    count: cython.double
    action: cython.int

    def __init__(self, count: float, action: int = 1) -> None:
        self.reads_forecast = False
        self.count = count
        self.action = action

    def act(self, view: View) -> cython.int:
        """That action from ``count`` idle clients on."""
        return self.action if view.idle >= self.count or view.ready >= view.waiting else 0


class ReadyThreshold(Rule):
    """A prefill where R >= ``count``.

    Args:
        count: of idle clients that have something to take.
    """

    count: cython.double

    def __init__(self, count: float) -> None:
        self.reads_forecast = False
        self.count = count

    def act(self, view: View) -> cython.int:
        """A prefill from ``count`` ready clients on."""
        return 1 if view.ready >= self.count else 0


class Deadline(Rule):
    """A prefill where R >= ``count``, or some request has waited for a share of its TTFT limit.

    Args:
        count: of ready clients.
        ttft_share: of the TTFT limit. The oldest request counts that is not late.
    """

    count: cython.double
    ttft_share: cython.double

    def __init__(self, count: float, ttft_share: float) -> None:
        self.reads_forecast = False
        self.count = count
        self.ttft_share = ttft_share

    def act(self, view: View) -> cython.int:
        """A prefill when it is time."""
        waited: cython.longlong = view.clock_ns - view.in_time_release_ns
        return 1 if view.ready >= self.count or waited >= self.ttft_share * view.ttft_ns else 0


class LastSchedulable(Rule):
    """A prefill until the last time at which a decode can begin within the TPOT limit of the last token.

    Args:
        offset: durations of a decode before that limit.
        budget: prompt tokens from which on a prefill leaves no room for a decode; 0 where none is mixed.
        mixed: the mixed iteration.

    Attributes:
        decodes: decodes when this was asked last; -1 where nobody was active.
        token_ns: when the request that has waited longest had its last token.
    """

    offset: cython.double
    budget: cython.longlong
    mixed: cython.int
    decodes: cython.longlong
    token_ns: cython.longlong

    def __init__(self, offset: float, budget: int = 0, mixed: int = 0) -> None:
        self.reads_forecast = False
        self.offset = offset
        self.budget = budget
        self.mixed = mixed
        self.decodes = -1
        self.token_ns = 0

    def begin(self) -> None:
        """Nobody has had a token."""
        self.decodes = -1

    def act(self, view: View) -> cython.int:
        """A prefill while a decode can wait for it; beside one that cannot, or that has room, what is mixed."""
        if view.active == 0:
            self.decodes = -1
            return codes.PREFILL
        if view.decodes != self.decodes:  # whoever began since then has a later token
            self.decodes = view.decodes
            self.token_ns = view.clock_ns
        if view.clock_ns - self.token_ns + self.offset * view.decode_ns >= view.tpot_ns:
            return self.mixed
        return codes.PREFILL if view.batch_tokens >= self.budget else self.mixed


class StaticBatching(Rule):
    """A batch is filled with what waited when it opened, and then decoded until nobody is active.

    Attributes:
        chosen: number of the last prefill that was chosen here. One that was not began with nobody active, so it opened
            a batch.
        opened_ns: when the batch opened.
    """

    chosen: cython.longlong
    opened_ns: cython.longlong

    def __init__(self) -> None:
        self.reads_forecast = False
        self.chosen = -1
        self.opened_ns = 0

    def begin(self) -> None:
        """No batch is open."""
        self.chosen = -1
        self.opened_ns = 0

    def act(self, view: View) -> cython.int:
        """A prefill while the batch has not decoded yet, of what came before it opened."""
        if view.consecutive_prefills == 0:
            return 0
        if view.prefills != self.chosen:
            self.opened_ns = view.clock_ns - view.last_prefill_ns
        if view.oldest_release_ns > self.opened_ns:
            return 0
        self.chosen = view.prefills + 1
        return 1


class AfterDecodes(Rule):
    """A prefill once so many decodes have passed since the last one.

    Args:
        count: of decodes.
    """

    count: cython.double

    def __init__(self, count: float) -> None:
        self.reads_forecast = False
        self.count = count

    def act(self, view: View) -> cython.int:
        """A prefill after ``count`` decodes."""
        return 1 if view.decodes - view.last_prefill_decode >= self.count else 0


class EveryNthDecode(Rule):
    """A prefill at every ``count``-th decode since the last prefill that began with nobody active.

    Args:
        count: of decodes.

    Attributes:
        chosen: decodes at the last prefill that was chosen here.
        opened: decodes at the last that began with nobody active.
    """

    count: cython.double
    chosen: cython.longlong
    opened: cython.longlong

    def __init__(self, count: float) -> None:
        self.reads_forecast = False
        self.count = count
        self.chosen = 0
        self.opened = 0

    def begin(self) -> None:
        """Nothing has been chosen."""
        self.chosen = 0
        self.opened = 0

    def act(self, view: View) -> cython.int:
        """A prefill at every n-th decode."""
        decodes: cython.double
        if view.last_prefill_decode != self.chosen:
            self.opened = view.last_prefill_decode
        decodes = view.decodes - self.opened
        if view.decodes == view.last_prefill_decode or math.fmod(decodes, self.count) != 0.0:
            return 0
        self.chosen = view.decodes
        return 1


class ServedRatio(Rule):
    """A prefill whose batch is at least a share of A, or after so many decodes.

    Args:
        ratio: of the batch to the active clients, rounded down.
        most_decodes: since the last prefill.
    """

    ratio: cython.double
    most_decodes: cython.double

    def __init__(self, ratio: float, most_decodes: float) -> None:
        self.reads_forecast = False
        self.ratio = ratio
        self.most_decodes = most_decodes

    def act(self, view: View) -> cython.int:
        """A prefill when the batch is worth it."""
        if view.batch_requests >= math.floor(view.active * self.ratio):
            return 1
        return 1 if view.decodes - view.last_prefill_decode >= self.most_decodes else 0


class Waited(Rule):
    """A prefill once the oldest waiting request has waited longer than a multiple of the last prefill.

    Args:
        factor: of its duration.
    """

    factor: cython.double

    def __init__(self, factor: float) -> None:
        self.reads_forecast = False
        self.factor = factor

    def act(self, view: View) -> cython.int:
        """A prefill after so much waiting."""
        return 1 if view.clock_ns - view.oldest_release_ns > self.factor * view.last_prefill_ns else 0


class InTurns(Rule):
    """At most so many prefills in a row, then at least so many decodes.

    Args:
        prefills: at most.
        decodes: at least.
    """

    prefills: cython.double
    decodes: cython.double

    def __init__(self, prefills: float, decodes: float) -> None:
        self.reads_forecast = False
        self.prefills = prefills
        self.decodes = decodes

    def act(self, view: View) -> cython.int:
        """A prefill when it is their turn."""
        if view.consecutive_prefills > 0:
            return 1 if view.consecutive_prefills < self.prefills else 0
        return 1 if view.decodes - view.last_prefill_decode >= self.decodes else 0


class Coin(Rule):
    """A prefill by lot: xorshift64, kept below 2^62.

    Args:
        probability: of a prefill, in whole millionths.
        seed: above 0 and below 2^62.

    Attributes:
        state: of the generator.
    """

    probability: cython.double
    seed: cython.ulonglong
    state: cython.ulonglong

    def __init__(self, probability: float, seed: int) -> None:
        self.reads_forecast = False
        self.probability = probability
        self.seed = seed
        self.state = seed

    def begin(self) -> None:
        """The same lots again."""
        self.state = self.seed

    def act(self, view: View) -> cython.int:
        """A prefill if the lot says so."""
        one: cython.ulonglong = 1
        lot: cython.longlong
        self.state ^= (self.state << 13) & ((one << 62) - 1)
        self.state ^= self.state >> 7
        self.state ^= (self.state << 17) & ((one << 62) - 1)
        lot = cython.cast(cython.longlong, (self.state >> 8) % 1000000)
        return 1 if lot < self.probability * 1000000 else 0


class Lagrangian(Rule):
    """A prefill where the idle time that has accumulated costs as much as a prefill: C_d >= lambda C_p.

    Args:
        multiplier: lambda.
    """

    multiplier: cython.double

    def __init__(self, multiplier: float) -> None:
        self.reads_forecast = False
        self.multiplier = multiplier

    def act(self, view: View) -> cython.int:
        """alpha_d * (sum of R since the last prefill) >= lambda * alpha_p * A."""
        charge: cython.longlong = view.idle_charge * view.alpha_decode_ns
        return 1 if charge >= self.multiplier * view.alpha_prefill_ns * view.active else 0


class LagrangianLookahead(Lagrangian):
    """The same, with the coming decode counted as if it had been run."""

    def __init__(self, multiplier: float) -> None:
        Lagrangian.__init__(self, multiplier)

    def act(self, view: View) -> cython.int:
        """alpha_d * (sum of R + R now) >= lambda * alpha_p * A."""
        charge: cython.longlong = (view.idle_charge + view.ready) * view.alpha_decode_ns
        return 1 if charge >= self.multiplier * view.alpha_prefill_ns * view.active else 0


class LagrangianLiteral(Lagrangian):
    """The same, with whole durations in place of the fixed times."""

    def __init__(self, multiplier: float) -> None:
        Lagrangian.__init__(self, multiplier)

    def act(self, view: View) -> cython.int:
        """T_d * (sum of R) >= lambda * T_p * A."""
        charge: cython.longlong = view.idle_charge * view.decode_ns
        return 1 if charge >= self.multiplier * view.prefill_ns * view.active else 0


class LagrangianInstant(Lagrangian):
    """One iteration's costs compared, nothing accumulated."""

    def __init__(self, multiplier: float) -> None:
        Lagrangian.__init__(self, multiplier)

    def act(self, view: View) -> cython.int:
        """R * T_d >= lambda * T_p * A."""
        charge: cython.longlong = view.ready * view.decode_ns
        return 1 if charge >= self.multiplier * view.prefill_ns * view.active else 0


class UpToTheCap(Rule):
    """An action as long as no more than so many clients are active after it.

    Args:
        most: active clients.
        action: 1 for a prefill of all that fit; above, one that is a cap and stops there by itself.
    """

    most: cython.double
    action: cython.int

    def __init__(self, most: float, action: int = 1) -> None:
        self.reads_forecast = False
        self.most = most
        self.action = action

    def act(self, view: View) -> cython.int:
        """That action, or a decode."""
        joining: cython.longlong = view.batch_requests if self.action == 1 else 1
        return self.action if view.active + joining <= self.most else 0


class WithPrefill(Rule):
    """Another rule, whose prefills are another action: by an order, where orders are actions.

    Where nobody is active it is a prefill: with two actions the rule would not be asked.

    Args:
        rule: that decides.
        action: instead of its prefills.
    """

    rule: Rule
    action: cython.int

    def __init__(self, rule: Rule, action: int) -> None:
        self.reads_forecast = rule.reads_forecast
        self.rule = rule
        self.action = action

    def begin(self) -> None:
        """So does the rule."""
        self.rule.begin()

    def twin(self) -> Rule:
        """With a twin of the rule."""
        return WithPrefill(self.rule.twin(), self.action)

    def act(self, view: View) -> cython.int:
        """What the rule does, by that action."""
        chosen: cython.int
        if view.active == 0:
            return self.action
        chosen = self.rule.act(view)
        return self.action if chosen == codes.PREFILL else chosen
