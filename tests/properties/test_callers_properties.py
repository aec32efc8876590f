"""A circuit that tells callers apart, ramps up and is held, against a model that keeps everything in lists.

The model leaves out every choice of callers there is, and counts whole milliseconds and fractions; it knows neither
buckets nor tallies, and remembers nothing of what it decided.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen
from tests.clock import Clock

CALLERS = "abcde"


@dataclass
class Model:
    policy: BreakerPolicy
    now: int = 100_000
    state: str = "closed"
    number: int = 0
    verdicts: list = field(default_factory=list)
    until: int = 0
    probed: list = field(default_factory=list)  # callers with a probe that is out, or has its verdict
    alive: bool = False
    began: int = 0
    in_a_row: int = 0
    held: float = -inf
    wishes: list = field(default_factory=list)
    ramping: bool = False
    credit: Fraction = Fraction(0)
    warmed: Fraction = Fraction(0)
    warmed_at: int = 0

    @property
    def few(self):
        return self.policy.min_callers - 1

    def become(self, state, at):
        self.state, self.began = state, at
        self.number += 1
        self.verdicts, self.probed, self.alive = [], [], False
        if state == "open":
            opening = self.policy.open_for * self.policy.open_factor ** (self.in_a_row - 1)
            self.until = max(at + ms(min(self.policy.open_cap, opening)), self.held)

    def close(self, at):
        self.in_a_row = 0
        self.become("closed", at)
        self.ramping = self.policy.ramp_for > 0
        self.credit, self.warmed, self.warmed_at = Fraction(0), 0, at

    def warm(self):
        self.warmed += self.now - min(max(self.held, self.warmed_at), self.now)
        self.warmed_at = self.now

    def let_it_happen(self):
        if self.state == "half_open" and self.now >= (at := self.began + ms(self.policy.max_half_open)):
            failures = sum(failed for _, _, failed, _ in self.verdicts)
            well = self.alive and failures <= self.few
            judged = "ill"
            if self.few:
                self.verdicts += [(self.now // 1000, None, True, True)] * (len(self.probed) - len(self.verdicts))
                judged = self.judged(1)
            if well or judged == "well" or self.policy.after_max_half_open == "closed":
                self.close(at)
            else:
                self.in_a_row += judged == "ill"
                self.become("open", at)

    def acquire(self, caller):
        self.let_it_happen()
        if self.state == "open":
            if self.now <= self.until:
                return False
            self.become("half_open", self.now)
        if self.now <= self.held:
            return False
        if self.state == "half_open":
            full = len(self.probed) >= self.policy.probes + self.few
            if self.few and caller in self.probed:
                some_are_out = len(self.probed) > len(self.verdicts)
                full = full or some_are_out or any(v[2] or v[3] for v in self.verdicts if v[1] == caller)
            if not full:
                self.probed.append(caller)
            return not full
        self.warm()
        ramp_for = ms(self.policy.ramp_for)
        self.ramping = self.ramping and self.warmed < ramp_for
        if self.ramping:
            self.credit += max(Fraction(1, 10), Fraction(self.warmed, ramp_for))
            if self.credit < 1:
                return False
            self.credit -= 1
        return True

    def nothing(self, number, caller, *, alive):
        self.let_it_happen()
        if number == self.number and self.state == "half_open":
            self.probed.remove(caller)
            self.alive = self.alive or alive

    def record(self, number, caller, failed, slow):
        self.let_it_happen()
        if number != self.number:
            return
        self.verdicts.append((self.now // 1000, caller, failed, slow))
        if self.state == "half_open":
            judged = self.judged(min(self.policy.min_calls, self.policy.probes))
            if judged == "ill":
                self.in_a_row += 1
                self.become("open", self.now)
            elif judged == "well":
                self.close(self.now)
        elif self.reached(2, self.policy.failure_rate) or self.reached(3, self.policy.slow_rate):
            self.in_a_row = 1
            self.become("open", self.now)

    def kept(self):
        if self.state != "closed":
            return self.verdicts
        if self.policy.window_calls is not None:
            return self.verdicts[-self.policy.window_calls :]
        return [v for v in self.verdicts if v[0] > self.now // 1000 - self.policy.window_for]

    def reached(self, bad, rate):
        """Whether it is, whoever is left out."""
        least = min(self.policy.min_calls, self.policy.window_calls or inf)
        kept = self.kept()
        for left_out in (choice for size in range(self.few + 1) for choice in combinations(CALLERS, size)):
            rest = [v for v in kept if v[1] not in left_out]
            if len(rest) < least or Fraction(sum(v[bad] for v in rest), len(rest)) < Fraction(str(rate)):
                return False
        return True

    def judged(self, least):
        """Half-open: with the worst left out."""
        known = True
        for bad, rate in ((2, self.policy.failure_rate), (3, self.policy.slow_rate)):
            worst_first = sorted(self.verdicts, key=lambda v: not v[bad])
            rest = worst_first[min(self.few, sum(v[bad] for v in worst_first)) :]
            if len(rest) < least:
                known = False
            elif Fraction(sum(v[bad] for v in rest), len(rest)) >= Fraction(str(rate)):
                return "ill"
        return "well" if known else None

    def hold(self, caller, until):
        self.let_it_happen()
        if until < self.now:
            return
        self.warm()
        self.wishes = [(who, at) for who, at in [*self.wishes, (caller, until)] if at >= self.now]
        latest = sorted({who: max(at for w, at in self.wishes if w == who) for who, _ in self.wishes}.values())
        if self.few == 0:
            self.held = max(self.held, until)
        elif len(latest) > self.few:
            self.held = max(self.held, latest[-self.policy.min_callers])
        if self.state == "open":
            self.until = max(self.until, self.held)


def ms(seconds):
    return round(seconds * 1000)


POLICIES = st.builds(
    lambda window, **knobs: BreakerPolicy(**window, **knobs),
    window=st.sampled_from([{"window_for": 2}, {"window_for": 10}, {"window_calls": 4}, {"window_calls": 15}]),
    min_calls=st.integers(1, 4),
    failure_rate=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
    slow_after=st.just(1.0),
    slow_rate=st.sampled_from([0.3, 0.5, 1.0]),
    open_for=st.sampled_from([0.5, 3.0]),
    open_factor=st.sampled_from([1.0, 2.0]),
    open_cap=st.sampled_from([5.0, 60.0]),
    probes=st.integers(1, 3),
    max_half_open=st.sampled_from([1.0, 10.0]),
    after_max_half_open=st.sampled_from(["open", "open", "closed"]),
    min_callers=st.sampled_from([1, 2, 2, 3, 4]),
    ramp_for=st.sampled_from([0.0, 0.0, 2.0, 7.0]),
)


class Pair:
    def __init__(self, policy):
        self.model = Model(policy)
        self.clock = Clock(100.0)
        self.breaker = CircuitBreaker(policy, clock=self.clock)
        self.calls = []

    def step(self, what, caller, amount):
        model, breaker = self.model, self.breaker
        if what == "wait":
            model.now += amount
            self.clock.now = model.now / 1000
        elif what == "hold":
            model.hold(caller, model.now + amount - 200)
            breaker.hold((model.now + amount - 200) / 1000, caller)
        elif what == "ask":
            expected = model.acquire(caller)
            try:
                self.calls.append((breaker.admit(caller), model.number, caller))
            except CircuitOpen:
                assert not expected, "refused, and should not have been"
            else:
                assert expected, "admitted, and should not have been"
        elif self.calls:
            permit, number, caller = self.calls.pop(amount % len(self.calls))
            if what in {"good", "bad", "slow"}:
                model.record(number, caller, what == "bad", what == "slow")
                (permit.failed if what == "bad" else permit.succeeded)(2.0 if what == "slow" else 0.0)
            else:
                model.nothing(number, caller, alive=what == "refused")
                getattr(permit, what)()
            del permit
        self.assert_alike()

    def assert_alike(self):
        model, seen = self.model, self.breaker.snapshot()
        model.let_it_happen()
        assert seen.state == model.state
        if model.state != "open":
            kept = model.kept()
            assert (seen.calls, seen.failures, seen.slow) == (
                len(kept), sum(v[2] for v in kept), sum(v[3] for v in kept),
            )  # fmt: skip
        assert seen.open_until == (pytest.approx(model.until / 1000) if model.state == "open" else None)
        assert seen.held_until == (pytest.approx(model.held / 1000) if model.held >= model.now else None)


WHATS = ["ask"] * 6 + ["good"] * 2 + ["bad"] * 3 + ["slow", "ignored", "refused", "wait", "wait", "hold"]
STEPS = st.lists(
    st.tuples(st.sampled_from(WHATS), st.sampled_from(CALLERS), st.integers(0, 3000)), min_size=10, max_size=100
)


@settings(deadline=None, max_examples=300)
@given(policy=POLICIES, steps=STEPS)
def test_it_agrees_with_the_model_at_every_step(policy, steps):
    pair = Pair(policy)

    for step in steps:
        pair.step(*step)


@pytest.mark.parametrize("seed", range(25))
def test_it_agrees_with_the_model_on_long_schedules(seed):
    random = Random(seed)
    for _ in range(8):
        policy = BreakerPolicy(
            **random.choice([{"window_for": 2}, {"window_for": 10}, {"window_calls": 15}]),
            min_calls=random.choice([1, 3, 6]),
            failure_rate=random.choice([0.3, 0.5, 0.9]),
            slow_after=1.0,
            slow_rate=random.choice([0.4, 1.0]),
            open_for=0.5,
            open_factor=random.choice([1.0, 2.0]),
            probes=random.choice([1, 2, 3]),
            max_half_open=2.0,
            after_max_half_open=random.choice(["open", "closed"]),
            min_callers=random.choice([1, 2, 3]),
            ramp_for=random.choice([0.0, 3.0]),
        )
        pair, taken = Pair(policy), []
        whats = ["ask"] * 8 + ["good"] * random.choice([2, 5]) + ["bad"] * random.choice([1, 4])
        whats += ["slow", "ignored", "refused", "wait", random.choice(["wait", "hold"])]
        for _ in range(150):
            taken.append((random.choice(whats), random.choice(CALLERS), random.choice([1, 90, 500, 1000, 2500])))
            try:
                pair.step(*taken[-1])
            except AssertionError as error:
                error.add_note(f"{policy} after {taken}")
                raise


@settings(deadline=None, max_examples=200)
@given(policy=POLICIES.filter(lambda policy: policy.min_callers > 1), steps=STEPS)
def test_as_many_failing_callers_as_may_be_left_out_never_open_it(policy, steps):
    bad = set(CALLERS[: policy.min_callers - 1])
    heard = []
    clock = Clock()
    breaker = CircuitBreaker(policy, clock=clock, on_change=lambda *change: heard.append(change))

    for what, caller, amount in steps:
        if what == "wait":
            clock.wait(amount / 1000)
        else:
            permit = breaker.admit(caller)
            permit.failed(2.0) if caller in bad else permit.succeeded(0.0)

    assert heard == []
