"""A circuit under random use, held to a model that is written from Resilience4j's rules and to the promises.

The model knows neither buckets, rings, floats nor objects for states: it keeps every verdict of a state in a list, and
counts whole milliseconds and nanoseconds. What it does not take from Resilience4j is what this project decided
differently: a straggler's verdict is ignored, a refusal is a sign of life, a lost permit returns.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen

SEEDS = range(50)
CIRCUITS_PER_SEED = 16
STEPS_PER_CIRCUIT = 125


@dataclass(frozen=True, kw_only=True)
class Config:
    """Percent, milliseconds and counts; None: none."""

    seconds: int | None
    calls: int | None
    minimum: int
    failure_percent: Fraction
    slow_ms: int | None
    slow_percent: Fraction
    wait_ms: int
    factor: int
    cap_ms: int
    probes: int
    max_half_open_ms: int | None
    then: str
    automatic: bool

    def policy(self):
        return BreakerPolicy(
            window_for=self.seconds,
            window_calls=self.calls,
            min_calls=self.minimum,
            failure_rate=float(self.failure_percent) / 100,
            slow_after=None if self.slow_ms is None else self.slow_ms / 1000,
            slow_rate=float(self.slow_percent) / 100,
            open_for=self.wait_ms / 1000,
            open_factor=float(self.factor),
            open_cap=self.cap_ms / 1000,
            probes=self.probes,
            max_half_open=inf if self.max_half_open_ms is None else self.max_half_open_ms / 1000,
            after_max_half_open=self.then,
            auto_half_open=self.automatic,
        )

    @classmethod
    def drawn(cls, random):
        by_time = random.random() < 0.5
        wait_ms = random.choice([1, 2, 250, 999, 1000, 1001, 1500, 5000])
        percents = [1, 10, 25, Fraction("33.3"), Fraction("35.2"), 50, 60, Fraction("66.6"), 75, Fraction("99.9"), 100]
        return cls(
            seconds=random.choice([1, 2, 3, 5, 10, 60]) if by_time else None,
            calls=None if by_time else random.choice([1, 2, 3, 4, 7, 10, 125]),
            minimum=random.choice([1, 2, 3, 5, 8, 20]),
            failure_percent=Fraction(random.choice(percents)),
            slow_ms=random.choice([None, 1, 100, 2000]),
            slow_percent=Fraction(random.choice(percents)),
            wait_ms=wait_ms,
            factor=random.choice([1, 1, 2, 3]),
            cap_ms=random.choice([wait_ms, 4 * wait_ms, 7000]) if wait_ms < 7000 else wait_ms,
            probes=random.choice([1, 1, 2, 3, 5, 10]),
            max_half_open_ms=random.choice([None, 1, 50, 1500, 20_000]),
            then=random.choice(["open", "open", "closed"]),
            automatic=random.random() < 0.4,
        )


@dataclass
class Model:
    """The rules, by number as in Resilience4j's behaviour: windows 1 to 6, states 7 to 15."""

    config: Config
    now_ms: int
    state: str = "closed"
    number: int = 0  # of the state: a verdict carries the number of the state that gave leave
    began_ms: int = 0
    in_a_row: int = 0
    verdicts: list = field(default_factory=list)
    left: int = 0
    alive: bool = False
    refused: int = 0
    heard: list = field(default_factory=list)

    def become(self, state, at_ms):
        if state != self.state:
            self.heard.append((self.state, state))
        if state == "open":
            self.in_a_row += 1
        elif state in {"closed", "isolated"}:
            self.in_a_row = 0
        self.state, self.began_ms = state, at_ms
        self.number += 1
        self.verdicts, self.left, self.alive, self.refused = [], self.config.probes, False, 0

    @property
    def wait_ms(self):
        grown = self.config.factor ** min(self.in_a_row - 1, 20)  # by then it is longer than any cap here
        return min(self.config.wait_ms * grown, self.config.cap_ms)

    def due(self):
        """What happens next by itself, and when."""
        if self.state == "half_open" and self.config.max_half_open_ms is not None:
            well = self.alive and not any(failed for _, failed, _ in self.verdicts)
            return self.began_ms + self.config.max_half_open_ms, "closed" if well else self.config.then
        if self.state == "open" and self.config.automatic:
            return self.began_ms + self.wait_ms, "half_open"
        return None

    def let_it_happen(self):
        while (due := self.due()) is not None and due[0] <= self.now_ms:
            self.become(due[1], due[0])

    def acquire(self):
        if self.state == "open" and self.now_ms > self.began_ms + self.wait_ms:
            self.become("half_open", self.now_ms)
        if self.state == "half_open" and self.left > 0:
            self.left -= 1
            return True
        if self.state == "closed":
            return True
        self.refused += 1
        return False

    def record(self, number, failed, slow):
        if number != self.number:
            return
        self.verdicts.append((self.now_ms // 1000, failed, slow))
        calls, failures, slows = self.counts()
        if calls < self.least:
            return
        bad = (
            Fraction(100 * failures, calls) >= self.config.failure_percent
            or Fraction(100 * slows, calls) >= self.config.slow_percent
        )
        if bad:
            self.become("open", self.now_ms)
        elif self.state == "half_open":
            self.become("closed", self.now_ms)

    def give_back(self, number, *, alive):
        if number == self.number and self.state == "half_open":
            self.left += 1
            self.alive = self.alive or alive

    @property
    def least(self):
        if self.state == "half_open":
            return min(self.config.minimum, self.config.probes)
        return min(self.config.minimum, self.config.calls or inf)

    def counts(self):
        if self.state not in {"closed", "half_open"}:
            return 0, 0, 0
        kept = self.verdicts
        if self.state == "closed" and self.config.seconds is not None:
            oldest = self.now_ms // 1000 - self.config.seconds + 1
            kept = [verdict for verdict in kept if verdict[0] >= oldest]
        elif self.state == "closed":
            kept = kept[-self.config.calls :]
        return len(kept), sum(failed for _, failed, _ in kept), sum(slow for _, _, slow in kept)

    def rates(self):
        calls, failures, slows = self.counts()
        if calls < self.least or self.state not in {"closed", "half_open"}:
            return None, None
        return failures / calls, slows / calls


class Pair:
    """The circuit and the model, side by side through the same steps."""

    def __init__(self, config, start_ms):
        self.model = Model(config, start_ms, began_ms=start_ms)
        self.start_ms = start_ms
        self.heard = []
        self.breaker = CircuitBreaker(
            config.policy(),
            clock=lambda: self.start_ms / 1000 + (self.model.now_ms - self.start_ms) / 1000,
            on_change=lambda before, after, at: self.heard.append((before, after)),
        )
        self.calls = []  # permit, number of the state, when

    def step(self, random):
        op = random.choice(["acquire"] * 6 + ["verdict"] * 6 + ["nothing"] * 2 + ["clock"] * 4 + ["operator"])
        if op == "verdict" and self.calls:
            return op, self.verdict(self.calls.pop(random.randrange(len(self.calls))), random)
        if op == "nothing" and self.calls:
            return op, self.nothing(self.calls.pop(random.randrange(len(self.calls))), random)
        if op == "clock":
            return op, self.move_clock(random)
        if op == "operator" and random.random() < 0.3:
            return op, self.operator(random)
        return "acquire", self.acquire()

    def acquire(self):
        expected = self.model.acquire()
        try:
            permit = self.breaker.admit()
        except CircuitOpen:
            assert not expected, "refused, and should not have been"
            return "refused"
        assert expected, "admitted, and should not have been"
        self.calls.append((permit, self.model.number, self.model.now_ms))
        return "admitted"

    def verdict(self, call, random):
        permit, number, began_ms = call
        failed = random.random() < random.choice([0.1, 0.5, 0.9])
        slow_ms = self.model.config.slow_ms
        if random.random() < 0.4:
            duration, slow = None, slow_ms is not None and self.model.now_ms - began_ms > slow_ms
        else:
            nanoseconds = (slow_ms or 50) * 1_000_000 + random.choice([-7_000, -1, 0, 1, 250_000])
            duration, slow = nanoseconds / 1e9, slow_ms is not None and nanoseconds > slow_ms * 1_000_000
        self.model.record(number, failed, slow)
        (permit.failed if failed else permit.succeeded)(duration)
        if random.random() < 0.1:
            permit.failed(1e6)  # a second report is ignored
        return failed, duration

    def nothing(self, call, random):
        permit, number, _ = call
        how = random.choice(["ignored", "refused", "lost"])
        self.model.give_back(number, alive=how == "refused")
        if how != "lost":
            getattr(permit, how)()
        del permit, call  # it may be the last reference
        return how

    def operator(self, random):
        if random.random() < 0.3:
            if self.model.state != "isolated":
                self.model.become("isolated", self.model.now_ms)
            self.breaker.isolate()
            return "isolate"
        self.model.become("closed", self.model.now_ms)
        self.breaker.restore()
        return "restore"

    def move_clock(self, random):
        now_ms, config = self.model.now_ms, self.model.config
        due = self.model.due()
        targets = [now_ms + 1, now_ms + random.randrange(1, 3000), (now_ms // 1000 + 1) * 1000 - random.choice([0, 1])]
        if due is not None:
            targets += [due[0] - 1, due[0], due[0] + 1] * 2
        if self.model.state == "open":
            targets += [self.model.began_ms + self.model.wait_ms + late for late in (-1, 0, 1)] * 2
        if random.random() < 0.1:
            targets.append(now_ms + (config.seconds or 5) * 1000 + random.choice([-1, 0, 1, 40_000]))
        self.model.now_ms = max(now_ms, random.choice(targets))
        self.model.let_it_happen()
        return self.model.now_ms - now_ms

    def assert_alike(self):
        model, seen = self.model, self.breaker.snapshot()
        assert seen.state == model.state
        if model.config.automatic:  # long idling may pass over whole rounds of opening and half-opening
            assert self.heard[-1:] == model.heard[-1:]
        else:
            assert self.heard == model.heard
        self.heard.clear()
        model.heard.clear()
        assert (seen.calls, seen.failures, seen.slow) == model.counts()
        assert (seen.failure_rate, seen.slow_rate) == model.rates()
        assert seen.rejected == model.refused
        if model.state == "open":
            assert seen.open_until * 1000 == pytest.approx(model.began_ms + model.wait_ms, abs=1e-3, rel=0)
        else:
            assert seen.open_until is None
        if model.state == "half_open":
            assert self.breaker.state.probes_left == model.left


@pytest.mark.parametrize("seed", SEEDS)
def test_it_agrees_with_the_model_at_every_step(seed):
    random = Random(seed)
    steps = 0

    for _ in range(CIRCUITS_PER_SEED):
        config = Config.drawn(random)
        pair = Pair(config, random.choice([0, 1, 999, 1_234_567, 1_700_000_778_645, 2_100_000_000_000]))
        taken = []
        for _ in range(STEPS_PER_CIRCUIT):
            try:
                taken.append(pair.step(random))
                if random.random() < 0.6:  # what is due between two looks happens all the same
                    pair.assert_alike()
            except AssertionError as error:
                error.add_note(f"{config} after {taken}")
                raise
            steps += 1

    assert steps == CIRCUITS_PER_SEED * STEPS_PER_CIRCUIT


POLICIES = st.builds(
    BreakerPolicy,
    window_for=st.sampled_from([1.0, 2.0, 10.0]),
    min_calls=st.integers(1, 4),
    failure_rate=st.sampled_from([0.1, 0.5, 1.0]),
    slow_after=st.sampled_from([None, 0.5]),
    open_for=st.sampled_from([0.5, 5.0]),
    open_factor=st.sampled_from([1.0, 2.0]),
    open_jitter=st.sampled_from([0.0, 0.3]),
    probes=st.integers(1, 5),
    max_half_open=st.sampled_from([0.5, 10.0]),
    after_max_half_open=st.sampled_from(["open", "closed"]),
    auto_half_open=st.booleans(),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "succeeded", "failed", "ignored", "refused", "lost", "wait"]),
        st.floats(0, 6),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(policy=POLICIES, steps=STEPS)
def test_half_open_admits_at_most_its_probes(policy, steps):
    now = 100.0
    breaker = CircuitBreaker(policy, clock=lambda: now)
    permits = []
    out = {}  # by half-open state: the probes that are out or have given their verdict

    for what, amount in steps:
        if what == "admit":
            try:
                permit = breaker.admit()
            except CircuitOpen:
                continue
            permits.append((permit, breaker.state))
            out[breaker.state] = out.get(breaker.state, 0) + 1
        elif what == "wait":
            now += amount
        elif permits:
            permit, state = permits.pop(int(amount * 1000) % len(permits))
            if what in {"succeeded", "failed"}:
                getattr(permit, what)()
            else:
                out[state] -= 1
                if what != "lost":
                    getattr(permit, what)()
                del permit

        assert all(probes <= policy.probes for state, probes in out.items() if state.name == "half_open")


@settings(deadline=None, max_examples=200)
@given(policy=POLICIES, steps=STEPS)
def test_whatever_happened_somebody_is_admitted_again_after_a_while(policy, steps):
    now = 100.0
    breaker = CircuitBreaker(policy, clock=lambda: now)
    permits = []
    for what, amount in steps:
        if what == "admit":
            try:
                permits.append(breaker.admit())  # and, mostly, kept for ever
            except CircuitOpen:
                continue
        elif what == "wait":
            now += amount
        elif what in {"succeeded", "failed"} and permits:
            getattr(permits.pop(), what)()

    now += policy.max_half_open + 0.001
    now = max(now, breaker.snapshot().open_until or 0.0) + 0.001

    breaker.admit()


@settings(deadline=None, max_examples=200)
@given(policy=POLICIES, steps=STEPS)
def test_refusals_and_callers_who_leave_never_open_it(policy, steps):
    now = 100.0
    heard = []
    breaker = CircuitBreaker(
        policy, clock=lambda: now, on_change=lambda before, after, at: heard.append((before, after))
    )
    permits = []

    for what, amount in steps:
        if what == "admit":
            permits.append(breaker.admit())
        elif what == "wait":
            now += amount
        elif permits:
            permit = permits.pop(int(amount * 1000) % len(permits))
            if what in {"ignored", "refused", "lost"}:
                getattr(permit, what if what != "lost" else "__del__")()
            else:
                permit.succeeded(0.5)

    assert heard == []


@settings(deadline=None, max_examples=200)
@given(policy=POLICIES, nothings=st.lists(st.sampled_from(["ignored", "refused", "lost"]), max_size=30))
def test_from_half_open_refusals_close_it_and_silence_does_not(policy, nothings):
    now = 100.0
    breaker = CircuitBreaker(policy, clock=lambda: now)
    for _ in range(policy.min_calls):
        breaker.admit().failed()
    now = breaker.snapshot().open_until + 0.001

    for nothing in nothings:
        permit = breaker.admit()
        if nothing == "lost":
            del permit
        else:
            getattr(permit, nothing)()
    now += policy.max_half_open

    was_half_open = nothings or policy.auto_half_open
    well = "refused" in nothings or (policy.after_max_half_open == "closed" and was_half_open)
    assert breaker.snapshot().state == ("closed" if well else "open")
