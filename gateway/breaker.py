"""A circuit: stop asking an upstream that is ill, and find out when it is well again.

         rates reach a threshold               open_for is over, somebody asks
    CLOSED ───────────────────────▶ OPEN ────────────────────────────▶ HALF-OPEN
      ▲                              ▲                                  │     │
      │                              └──── probes fail, or too long ────┘     │
      └───────────────────────────────────── probes succeed ─────────────────┘

    permit = breaker.admit()          # raises CircuitOpen, which says how long to wait
    with permit:                      # succeeded / failed on an Exception / ignored on cancellation
        ...

Synchronous and pure: it takes instants and verdicts, and needs no timer. What is due happens when somebody looks, as of
the instant it was due. A state is an object that holds only its own data, and the leave to try *is* that object: a
verdict counts only while the circuit is still in the state that gave the leave, so stragglers cannot speak for a time
that is not theirs. Sources: Nygard, "Release It!"; the rules of windows, rates and half-open are Resilience4j's, and
the tests hold us to recorded traces of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import random as uniform
from time import monotonic
from typing import ClassVar, Literal, Self, TypeVar

from gateway.context import HALF_MICROSECOND, Clock
from gateway.outcome import CircuitOpen
from gateway.policy import BreakerPolicy
from gateway.window import CountWindow, TimeWindow, Window

ALMOST_ONE = 1 - 1e-9
"""Shares this near are equal: a threshold of 35.2 / 100 is, as a float, above the 44 failures of 125 that it means."""
StateName = Literal["closed", "open", "half_open", "isolated"]
OnChange = Callable[[StateName, StateName, float], None]


class Closed:
    """All well: everybody is admitted, and every verdict counts."""

    name: ClassVar[StateName] = "closed"
    __slots__ = ("rejected", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self.rejected = 0


class Open:
    """Nobody is admitted until strictly later than `until`."""

    name: ClassVar[StateName] = "open"
    __slots__ = ("in_a_row", "rejected", "until")

    def __init__(self, until: float, in_a_row: int) -> None:
        self.until = until
        self.in_a_row = in_a_row
        self.rejected = 0


class HalfOpen:
    """A few probes are admitted, and the first verdicts decide. `seen_alive`: a refusal came back, so it answers."""

    name: ClassVar[StateName] = "half_open"
    __slots__ = ("ends_at", "in_a_row", "probes_left", "rejected", "seen_alive", "window")

    def __init__(self, probes: int, ends_at: float, in_a_row: int) -> None:
        self.window = CountWindow(probes)
        self.probes_left = probes
        self.ends_at = ends_at
        self.in_a_row = in_a_row
        self.seen_alive = False
        self.rejected = 0


class Isolated:
    """An operator said no. Nobody is admitted until `restore()`."""

    name: ClassVar[StateName] = "isolated"
    __slots__ = ("rejected",)

    def __init__(self) -> None:
        self.rejected = 0


State = Closed | Open | HalfOpen | Isolated
S = TypeVar("S", Closed, Open, HalfOpen, Isolated)
UNCOUNTED = Isolated()
"""The leave of a call that an unenforced circuit would have refused: no circuit is ever in it, so nothing counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSnapshot:
    """A circuit as it is now; counts and rates are those of the current state (open and isolated have no window).

    Rates are shares from 0 to 1, None while there are too few calls to know. `rejected` counts since the state began.
    """

    state: StateName
    enforced: bool
    failure_rate: float | None
    slow_rate: float | None
    calls: int
    failures: int
    slow: int
    rejected: int
    open_until: float | None


class Permit:
    """Leave to try once, for those who use the circuit alone. It reports once; a second report is ignored.

    A probe's permit is a lease: ignored, or lost to the garbage collector, it goes back to the circuit.
    """

    __slots__ = ("_breaker", "_started_at", "_state")

    def __init__(self, breaker: CircuitBreaker, state: State, started_at: float) -> None:
        self._breaker = breaker
        self._state: State | None = state  # None once it has reported
        self._started_at = started_at

    def succeeded(self, duration: float | None = None) -> None:
        """It went well. Without a duration, in seconds, the permit measures by the clock."""
        self._judge(False, duration)

    def failed(self, duration: float | None = None) -> None:
        """It failed."""
        self._judge(True, duration)

    def ignored(self) -> None:
        """It says nothing about the upstream: cancelled, or never sent."""
        if (state := self._spend()) is not None:
            self._breaker.leave(state, self._breaker.clock(), None, False)

    def refused(self) -> None:
        """The upstream is well and said no: no verdict, but in half-open a sign of life."""
        if (state := self._spend()) is not None:
            self._breaker.leave_refused(state, self._breaker.clock())

    def _judge(self, failed: bool, duration: float | None) -> None:  # noqa: FBT001 - private
        if (state := self._spend()) is not None:
            breaker, now = self._breaker, self._breaker.clock()
            slow = now - self._started_at > breaker.slow_beyond if duration is None else duration > breaker.slow_after
            breaker.leave(state, now, failed, slow)

    def _spend(self) -> State | None:
        state, self._state = self._state, None
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.succeeded()
        elif issubclass(kind, Exception):
            self.failed()
        else:
            self.ignored()

    def __del__(self) -> None:
        self.ignored()


class CircuitBreaker:
    """One circuit. `clock` gives monotonic seconds, `random` numbers in [0, 1) for the jitter of openings.

    Users `admit()` and report to the permit. The engine, which has read the clock anyway and reports once by its shape,
    uses `enter` and `leave`, with the state itself as the leave. `on_change(before, after, at)` hears every transition.
    """

    __slots__ = ("_on_change", "_policy", "_random", "_state", "clock", "slow_after", "slow_beyond")

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        clock: Clock = monotonic,
        random: Callable[[], float] = uniform,
        on_change: OnChange | None = None,
    ) -> None:
        self.clock = clock
        self._random = random
        self._on_change = on_change
        self._use(policy)
        self._state: State = Closed(self._new_window(clock()))

    @property
    def policy(self) -> BreakerPolicy:
        """The numbers it goes by. Assign another: the state survives, a window of another size starts empty."""
        return self._policy

    @policy.setter
    def policy(self, policy: BreakerPolicy) -> None:
        now = self.clock()
        self._at(now)  # what was due was due under the old numbers
        before = self._policy
        self._use(policy)
        resized = (before.window_for, before.window_calls) != (policy.window_for, policy.window_calls)
        if resized and type(self._state) is Closed:
            self._state.window = self._new_window(now)

    @property
    def state(self) -> State:
        """The state it is in; what is due since it was last looked at happens first."""
        return self._at(self.clock())

    def check(self) -> None:
        """Raise the CircuitOpen that `admit` would raise, and spend nothing: for those who are about to queue."""
        if type(self._state) is not Closed:
            now = self.clock()
            state = self._at(now)
            if self._shut(state, now) and self._refuses(state):
                raise self.refusal()

    def admit(self) -> Permit:
        """Leave to try, or CircuitOpen."""
        now = self.clock()
        return Permit(self, self.enter(now), now)

    def enter(self, now: float) -> State:
        """Leave to try, or CircuitOpen. The leave is the state that gives it: hand it back to `leave`."""
        state = self._state
        return state if type(state) is Closed else self._enter_slowly(now)

    def leave(self, state: State, now: float, failed: bool | None, slow: bool) -> None:  # noqa: FBT001 - the hot path
        """How it went (None: evidence of nothing). Counts only if the circuit is still in that state."""
        if type(state) is not Closed:
            self._leave_slowly(state, now, failed, slow)
        elif state is self._state and failed is not None:
            window = state.window
            window.record(now, failed, slow)
            if window.bad:
                self._decide(state, now)

    def leave_refused(self, state: State, now: float) -> None:
        """It was refused: evidence of nothing, but whoever refuses is alive."""
        if type(state) is HalfOpen and state is self._at(now):  # not if half-open has just ended
            state.seen_alive = True
        self.leave(state, now, None, False)

    def isolate(self) -> None:
        """Refuse everybody until `restore()`; wins over `enforce=False`."""
        now = self.clock()
        if type(self._at(now)) is not Isolated:
            self._become(Isolated(), now)

    def restore(self) -> None:
        """Close the circuit, with an empty window."""
        now = self.clock()
        self._at(now)
        self._become(Closed(self._new_window(now)), now)

    def restart(self, clock: Clock) -> None:
        """Begin anew by another clock; what an operator isolated stays so."""
        self.clock = clock
        if type(self._state) is not Isolated:
            self._state = Closed(self._new_window(clock()))

    def refusal(self) -> CircuitOpen:
        """The error for a caller who is not admitted now; counts it."""
        state = self._state
        state.rejected += 1
        refusal = CircuitOpen(f"the circuit is {state.name.replace('_', '-')}")
        if type(state) is Open:
            refusal.retry_after = max(0.0, state.until - self.clock())
        elif type(state) is HalfOpen:
            refusal.retry_after = 0.0
        return refusal

    def snapshot(self) -> BreakerSnapshot:
        """The circuit as it is now."""
        now = self.clock()
        state = self._at(now)
        calls = failures = slow = 0
        known = False
        if type(state) is Closed or type(state) is HalfOpen:
            window = state.window
            window.advance(now)
            calls, failures, slow = window.calls, window.failures, window.slow
            known = calls >= self._least(state)
        return BreakerSnapshot(
            state=state.name,
            enforced=self._policy.enforce,
            failure_rate=failures / calls if known else None,
            slow_rate=slow / calls if known else None,
            calls=calls,
            failures=failures,
            slow=slow,
            rejected=state.rejected,
            open_until=state.until if type(state) is Open else None,
        )

    # -- what is due

    def _at(self, now: float) -> State:
        """The state as of now: what was due happens, each at the instant it was due."""
        while (ends_at := self._ends_at()) - now <= HALF_MICROSECOND:
            due = round(ends_at, 6)  # to the microsecond, else the roundings of many rounds would add up
            state = self._state
            if type(state) is not HalfOpen:
                self._half_open(state, due)  # type: ignore[arg-type]  # no other state ends by itself
            elif self._ends_well(state):
                self._become(Closed(self._new_window(due)), due)
            else:
                self._skip_idle_rounds(self._open(due, state.in_a_row + 1), now)
        return self._state

    def _ends_at(self) -> float:
        """When the state ends by itself; inf if it does not."""
        state = self._state
        if type(state) is HalfOpen:
            return state.ends_at
        return state.until if type(state) is Open and self._policy.auto_half_open else inf

    def _skip_idle_rounds(self, state: Open, now: float) -> None:
        """Nobody looked for long, and open and half-open took turns: pass over whole rounds, however many."""
        policy, opening = self._policy, self._opening(state.in_a_row)
        if not policy.auto_half_open or state.until > now or opening != self._opening(state.in_a_row + 1):
            return  # it does not leave by itself, not yet, or it still grows
        rounds = int((now - state.until) / (opening + policy.max_half_open))
        state.until += rounds * (opening + policy.max_half_open)
        state.in_a_row += rounds

    def _ends_well(self, state: HalfOpen) -> bool:
        return (state.seen_alive and not state.window.failures) or self._policy.after_max_half_open == "closed"

    # -- who is let in

    def _enter_slowly(self, now: float) -> State:
        state = self._at(now)
        if type(state) is Open and now - state.until > HALF_MICROSECOND:
            self._half_open(state, now)
            state = self._state  # whoever heard of the change may have changed it again
        if type(state) is HalfOpen and state.probes_left > 0:
            state.probes_left -= 1
            return state
        if type(state) is Closed:
            return state
        if self._refuses(state):
            raise self.refusal()
        state.rejected += 1
        return UNCOUNTED

    def _leave_slowly(self, state: State, now: float, failed: bool | None, slow: bool) -> None:  # noqa: FBT001 - private
        if state is not self._at(now) or type(state) is not HalfOpen:  # half-open may just have ended
            return
        if failed is None:
            state.probes_left += 1
        else:
            state.window.record(now, failed, slow)
            self._decide(state, now)

    @staticmethod
    def _shut(state: State, now: float) -> bool:
        if type(state) is Open:
            return now - state.until <= HALF_MICROSECOND
        return type(state) is Isolated or (type(state) is HalfOpen and state.probes_left <= 0)

    def _refuses(self, state: State) -> bool:
        return self._policy.enforce or type(state) is Isolated

    # -- what a verdict changes

    def _decide(self, state: Closed | HalfOpen, now: float) -> None:
        window, policy = state.window, self._policy
        if window.calls < self._least(state):
            return
        failed, slow = window.failures / window.calls, window.slow / window.calls
        if failed >= policy.failure_rate * ALMOST_ONE or slow >= policy.slow_rate * ALMOST_ONE:
            self._open(now, state.in_a_row + 1 if type(state) is HalfOpen else 1)
        elif type(state) is HalfOpen:
            self._become(Closed(self._new_window(now)), now)

    def _least(self, state: Closed | HalfOpen) -> float:
        """How many calls it takes to know a rate."""
        size = state.window.size if type(state) is HalfOpen else self._policy.window_calls
        return self._policy.min_calls if size is None else min(self._policy.min_calls, size)

    def _opening(self, in_a_row: int) -> float:
        """How long the n-th opening in a row lasts, before jitter."""
        policy = self._policy
        if policy.open_factor == 1.0:
            return policy.open_for
        try:
            return min(policy.open_cap, policy.open_for * policy.open_factor ** (in_a_row - 1))
        except OverflowError:
            return policy.open_cap

    def _open(self, now: float, in_a_row: int) -> Open:
        wait = self._opening(in_a_row)
        if self._policy.open_jitter:
            wait *= 1 + self._policy.open_jitter * self._random()
        return self._become(Open(now + wait, in_a_row), now)

    def _half_open(self, state: Open, now: float) -> HalfOpen:
        policy = self._policy
        return self._become(HalfOpen(int(policy.probes), now + policy.max_half_open, state.in_a_row), now)

    def _become(self, state: S, at: float) -> S:
        before, self._state = self._state, state
        if self._on_change is not None and before.name != state.name:
            self._on_change(before.name, state.name, at)
        return state

    def _new_window(self, now: float) -> Window:
        policy = self._policy
        if policy.window_calls is not None:
            return CountWindow(int(policy.window_calls))
        return TimeWindow(int(policy.window_for or 1), now)

    def _use(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.slow_after = inf if policy.slow_after is None else policy.slow_after
        self.slow_beyond = self.slow_after + HALF_MICROSECOND
