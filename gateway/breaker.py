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
that is not theirs. Where callers are told apart, or few are let in, or nobody for a while, a guard stands in front of
the closed state; who needs none pays for none. Sources: Nygard, "Release It!"; the rules of windows, rates and half-
open are Resilience4j's, and the tests hold us to recorded traces of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import inf
from random import random as uniform
from time import monotonic
from typing import Literal, Self, TypeVar

from gateway.callers import CallerCountWindow, CallerTimeWindow, CallerWindow, Wishes
from gateway.context import HALF_MICROSECOND, Clock
from gateway.outcome import CircuitOpen
from gateway.policy import BreakerPolicy
from gateway.states import Closed, Guarded, HalfOpen, Isolated, Open, Ramp
from gateway.window import ALMOST_ONE, CountWindow, TimeWindow

StateName = Literal["closed", "open", "half_open", "isolated"]
OnChange = Callable[[StateName, StateName, float], None]
State = Closed | Guarded | Open | HalfOpen | Isolated
S = TypeVar("S", bound=State)
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
    held_until: float | None = None
    """Until when the upstream asked to be left alone; an instant of the circuit's clock."""


class Permit:
    """Leave to try once, for those who use the circuit alone. It reports once; a second report is ignored.

    A probe's permit is a lease: ignored, or lost to the garbage collector, it goes back to the circuit.
    """

    __slots__ = ("_breaker", "_caller", "_started_at", "_state")

    def __init__(self, breaker: CircuitBreaker, state: State, started_at: float, caller: Hashable = None) -> None:
        self._breaker = breaker
        self._caller = caller
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
            self._breaker.leave(state, self._breaker.clock(), None, False, self._caller)

    def refused(self) -> None:
        """The upstream is well and said no: no verdict, but in half-open a sign of life."""
        if (state := self._spend()) is not None:
            self._breaker.leave_refused(state, self._breaker.clock(), self._caller)

    def _judge(self, failed: bool, duration: float | None) -> None:  # noqa: FBT001 - private
        if (state := self._spend()) is not None:
            breaker, now = self._breaker, self._breaker.clock()
            slow = now - self._started_at > breaker.slow_beyond if duration is None else duration > breaker.slow_after
            breaker.leave(state, now, failed, slow, self._caller)

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
    A `caller` is any hashable, told apart only if `min_callers` is above 1; those who give none are one caller.
    """

    __slots__ = (
        "_held_until", "_on_change", "_policy", "_random", "_state", "_wishes", "clock", "in_use", "slow_after",
        "slow_beyond", "unguarded",
    )  # fmt: skip

    unguarded: Closed | None
    """The state it is in, if that is closed and nothing stands in front: the leave of everybody. Else None: `enter`."""

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
        self.in_use = 0  # calls that hold it, queued or in a pause too: counted by who keeps circuits by key
        self._held_until = -inf
        self._wishes = Wishes()
        self._state: State
        self._take(self._closed_anew(clock()))

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
        if before.min_callers == 1 < policy.min_callers:
            self._tell_callers_apart(now)
            return
        closed = self._closed
        if closed is not None and window_of(before) != window_of(policy):
            closed.window = self._new_window(now)

    @property
    def state(self) -> State:
        """The state it is in; what is due since it was last looked at happens first."""
        return self._at(self.clock())

    @property
    def at_rest(self) -> bool:
        """Whether it is closed, and lets everybody in. Only looks: what is due goes on being due."""
        state = self._state
        if type(state) is Guarded:
            now = self.clock()
            self._stand_down(state, now)
            return state.ramp is None and not self._held(now)
        return type(state) is Closed

    def would_be_missed(self, now: float) -> bool:
        """Whether a new circuit in its place would know less, or let in whom it does not. Only looks, as `at_rest`."""
        if (closed := self._closed) is None or not self.at_rest:
            return True
        window = closed.window
        if window.bad:
            window.advance(now)
        return window.bad

    def is_stale(self, now: float, unused_since: float) -> bool:
        """Whether it refused nobody, and nobody came, for longer than any opening lasts. Only looks, as `at_rest`."""
        state = self._state
        if type(state) is Open:
            over_at, needed = state.until, now - state.until <= HALF_MICROSECOND
        elif type(state) is HalfOpen:
            over_at, needed = state.ends_at, state.probes_out > 0 or self._held(now)
        else:  # closed, held, ramping, or isolated
            over_at, needed = unused_since, not self.at_rest
        if self._policy.auto_half_open:  # it goes round by itself, whenever somebody looks
            over_at = min(over_at, unused_since)
        return not needed and now - over_at > self._policy.open_cap

    def check(self, caller: Hashable = None) -> None:
        """Raise the CircuitOpen that `admit` would raise, and spend nothing: for those who are about to queue."""
        if self.unguarded is None and self.refuses(now := self.clock(), caller):
            raise self.refusal(now)

    def refuses(self, now: float, caller: Hashable = None) -> bool:
        """Whether `enter` would raise; this spends nothing."""
        state = self._state
        if type(state) is Open and state.until - now > HALF_MICROSECOND:
            return self._policy.enforce  # nothing is due yet, and this is what an open circuit does all day
        state = self._at(now)
        return self._refuses(state) and self._shut(state, now, caller)

    def admit(self, caller: Hashable = None) -> Permit:
        """Leave to try, or CircuitOpen."""
        now = self.clock()
        return Permit(self, self.enter(now, caller), now, caller)

    def enter(self, now: float, caller: Hashable = None) -> State:
        """Leave to try, or CircuitOpen. The leave is the state that gives it: hand it back to `leave`."""
        return self.unguarded or self._enter_slowly(now, caller)

    def leave(self, state: State, now: float, failed: bool | None, slow: bool, caller: Hashable = None) -> None:  # noqa: FBT001 - the hot path
        """How it went (None: evidence of nothing). Counts only if the circuit is still in that state."""
        closed = self.unguarded
        if state is not closed:
            self._leave_slowly(state, now, failed, slow, caller)
        elif failed is not None:
            window = closed.window
            window.record(now, failed, slow)
            if window.bad:
                self._decide(state, now)

    def leave_refused(self, state: State, now: float, caller: Hashable = None) -> None:
        """It was refused: evidence of nothing, but whoever refuses is alive."""
        if type(state) is HalfOpen and state is self._at(now):  # not if half-open has just ended
            state.seen_alive = True
        self.leave(state, now, None, False, caller)

    def hold(self, until: float, caller: Hashable = None) -> None:
        """Let nobody in until strictly later than this instant: the upstream asked to be left alone.

        A hold only ever moves later. With `min_callers` above 1 it takes the wishes of as many different callers; it
        lasts for as long as they agree. `restore()` ends it; an isolated circuit takes no note.
        """
        now = self.clock()
        state = self._at(now)
        if type(state) is Isolated or not now - until <= HALF_MICROSECOND:
            return
        until = self._wishes.add(caller, until, now, int(self._policy.min_callers))
        if until <= self._held_until:
            return
        before, self._held_until = self._held_until, until
        if type(state) is Open:
            state.until = max(state.until, until)
        elif type(state) is Closed:
            self._take(Guarded(state))
        elif type(state) is Guarded and state.ramp is not None:
            state.ramp.pause(until - max(now, before))

    def held_for(self, now: float) -> float:
        """Seconds for which the upstream still wants to be left alone; 0.0 if it does not."""
        return max(0.0, self._held_until - now)

    def isolate(self) -> None:
        """Refuse everybody until `restore()`; wins over `enforce=False`."""
        now = self.clock()
        if type(self._at(now)) is not Isolated:
            self._release()
            self._become(Isolated(), now)

    def restore(self) -> None:
        """Close the circuit, with an empty window; everybody is let in at once."""
        now = self.clock()
        self._at(now)
        self._release()
        self._become(self._closed_anew(now), now)

    def restart(self, clock: Clock) -> None:
        """Begin anew by another clock; what an operator isolated stays so."""
        self.clock = clock
        self._release()
        if type(self._state) is not Isolated:
            self._take(self._closed_anew(clock()))

    def snapshot(self) -> BreakerSnapshot:
        """The circuit as it is now."""
        now = self.clock()
        state = self._at(now)
        calls = failures = slow = 0
        known = False
        counted = state if type(state) is HalfOpen else self._closed
        if counted is not None:
            window = counted.window
            window.advance(now)
            calls, failures, slow = window.calls, window.failures, window.slow
            known = calls >= self._least(counted)
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
            held_until=self._held_until if self._held(now) else None,
        )

    # -- what is due

    def _at(self, now: float) -> State:
        """The state as of now: what was due happens, each at the instant it was due."""
        while (ends_at := self._ends_at()) - now <= HALF_MICROSECOND:
            due = round(ends_at, 6)  # to the microsecond, else the roundings of many rounds would add up
            state = self._state
            if type(state) is not HalfOpen:
                self._half_open(state, due)  # type: ignore[arg-type]  # no other state ends by itself
            elif well := self._ends_well(state):
                self._become(self._closed_anew(due, ramping=True), due)
            else:  # a round that told nothing is not one more in which the upstream was ill
                self._skip_idle_rounds(self._open(due, state.in_a_row + (well is False)), now)
        if type(self._state) is Guarded:
            self._stand_down(self._state, now)
        return self._state

    def _stand_down(self, state: Guarded, now: float) -> None:
        """A guard goes when there is nothing left to guard."""
        policy = self._policy
        if state.ramp is not None and state.ramp.is_over(now, policy.ramp_for):
            state.ramp = None
        if state.ramp is None and policy.min_callers == 1 and not self._held(now):
            self._take(state.closed)

    def _ends_at(self) -> float:
        """When the state ends by itself; inf if it does not."""
        state = self._state
        if type(state) is HalfOpen:
            return state.ends_at
        return state.until if type(state) is Open and self._policy.auto_half_open else inf

    def _skip_idle_rounds(self, state: Open, now: float) -> None:
        """Nobody looked for long, and open and half-open took turns: pass over whole rounds, however many."""
        policy, opening = self._policy, self._opening(state.in_a_row)
        growth = int(policy.min_callers == 1)  # else a round without verdicts tells nothing
        if not policy.auto_half_open or state.until > now or opening != self._opening(state.in_a_row + growth):
            return  # it does not leave by itself, not yet, or it still grows
        rounds = int((now - state.until) / (opening + policy.max_half_open))
        state.until += rounds * (opening + policy.max_half_open)
        state.in_a_row += rounds * growth

    def _tell_callers_apart(self, now: float) -> None:
        """From now on. Calls that are under way are nobody knows whose: their leave is that of no state any more."""
        state = self._state
        later: Guarded | HalfOpen
        if type(state) is HalfOpen:
            later = HalfOpen(int(self._policy.probes), state.ends_at, state.in_a_row, int(self._policy.min_callers) - 1)
            later.seen_alive = state.seen_alive
        elif (closed := self._closed) is not None:
            ramp = state.ramp if type(state) is Guarded else None
            later = Guarded(Closed(self._new_window(now)), ramp)
            state = closed
        else:
            return
        later.rejected = state.rejected
        self._take(later)

    def _ends_well(self, state: HalfOpen) -> bool | None:
        """How half-open ends that was not decided; None if nothing that happened in it counts."""
        if self._policy.after_max_half_open == "closed":
            return True
        if state.seen_alive and state.window.failures <= state.left_out:
            return True
        # A caller who fails, or hangs, has one probe: where few call, too few verdicts are no sign of illness.
        return bool(state.left_out) and self._judged(state, 1, state.probes_out)

    # -- who is let in

    @property
    def _closed(self) -> Closed | None:
        """The closed state, whatever stands in front of it."""
        state = self._state
        if type(state) is Guarded:
            return state.closed
        return state if type(state) is Closed else None

    def _held(self, now: float) -> bool:
        return now - self._held_until <= HALF_MICROSECOND

    def _release(self) -> None:
        self._held_until = -inf
        self._wishes = Wishes()

    def _enter_slowly(self, now: float, caller: Hashable) -> State:
        state = self._at(now)
        if type(state) is Open and now - state.until > HALF_MICROSECOND:
            self._half_open(state, now)
            state = self._state  # whoever heard of the change may have changed it again
        if not self._shut(state, now, caller):
            if type(state) is HalfOpen:
                return state.take_probe(caller)
            if type(state) is not Guarded:
                return state
            if state.ramp is not None:
                state.ramp.let_in(now, self._policy.ramp_for)
            return state.closed
        if self._refuses(state):
            raise self.refusal(now)
        state.rejected += 1
        return UNCOUNTED

    def _leave_slowly(
        self,
        state: State,
        now: float,
        failed: bool | None,  # noqa: FBT001 - as `leave`
        slow: bool,  # noqa: FBT001
        caller: Hashable,
    ) -> None:
        current = self._at(now)  # half-open may just have ended
        if type(state) is HalfOpen and state is current:
            if failed is None:
                state.give_back(caller)
            else:
                state.record(now, failed, slow, caller)
                self._decide_half_open(state, now)
        elif type(state) is Closed and state is self._closed and failed is not None:
            window = state.window
            if isinstance(window, CallerWindow):
                window.record(now, failed, slow, caller)
            else:
                window.record(now, failed, slow)
            if window.bad:
                self._decide(state, now)

    def _shut(self, state: State, now: float, caller: Hashable) -> bool:
        """Whether this caller is not let in. In a ramp it has asked then."""
        if type(state) is Guarded:
            ramp = state.ramp
            return self._held(now) or (ramp is not None and ramp.refuses(now, self._policy.ramp_for))
        if type(state) is Open:
            return now - state.until <= HALF_MICROSECOND
        if type(state) is HalfOpen:
            return self._held(now) or not state.has_room_for(caller)
        return type(state) is Isolated

    def _refuses(self, state: State) -> bool:
        return self._policy.enforce or type(state) is Isolated

    def refusal(self, refused_at: float | None = None) -> CircuitOpen:
        """The error for a caller who is not admitted now, or was not at that instant; counts it."""
        state, now = self._state, self.clock()
        state.rejected += 1
        if type(state) is Open:
            return refused("the circuit is open", max(0.0, state.until - now))
        if self._held(now if refused_at is None else refused_at):
            return refused("the upstream asked to be left alone", max(0.0, self._held_until - now))
        if type(state) is Guarded:
            return refused("the circuit lets in more and more", 0.0)
        if type(state) is HalfOpen:
            return refused("the circuit is half-open", 0.0)
        return refused(f"the circuit is {state.name}", None)

    # -- what a verdict changes

    def _decide(self, state: Closed, now: float) -> None:
        window, policy = state.window, self._policy
        least = self._least(state)
        if window.calls < least:
            return
        failed, slow = window.failures / window.calls, window.slow / window.calls
        if failed >= policy.failure_rate * ALMOST_ONE or slow >= policy.slow_rate * ALMOST_ONE:
            if isinstance(window, CallerWindow) and self._is_of_few(window, least):
                return
            self._open(now, 1)

    def _is_of_few(self, window: CallerWindow, least: float) -> bool:
        """Whether no rate is reached without the worst few callers."""
        policy, few = self._policy, int(self._policy.min_callers) - 1
        return not (
            window.stands("failures", policy.failure_rate, least, few)
            or window.stands("slow", policy.slow_rate, least, few)
        )

    def _decide_half_open(self, state: HalfOpen, now: float) -> None:
        well = self._judged(state, self._least(state))
        if well:
            self._become(self._closed_anew(now, ramping=True), now)
        elif well is not None:
            self._open(now, state.in_a_row + 1)

    def _judged(self, state: HalfOpen, least: float, hanging: int = 0) -> bool | None:
        return state.judge(self._policy.failure_rate, self._policy.slow_rate, least, hanging)

    def _least(self, state: Closed | HalfOpen) -> float:
        """How many calls it takes to know a rate."""
        size = state.probes if type(state) is HalfOpen else self._policy.window_calls
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
        return self._become(Open(max(now + wait, self._held_until), in_a_row), now)

    def _half_open(self, state: Open, now: float) -> HalfOpen:
        policy = self._policy
        ends_at, left_out = now + policy.max_half_open, int(policy.min_callers) - 1
        return self._become(HalfOpen(int(policy.probes), ends_at, state.in_a_row, left_out), now)

    def _take(self, state: State) -> None:
        """Be in this state. No other line says which it is."""
        self._state = state
        self.unguarded = state if type(state) is Closed else None

    def _become(self, state: S, at: float) -> S:
        before = self._state
        self._take(state)
        if self._on_change is not None and before.name != state.name:
            self._on_change(before.name, state.name, at)
        return state

    def _closed_anew(self, now: float, *, ramping: bool = False) -> Closed | Guarded:
        closed = Closed(self._new_window(now))
        ramp = Ramp(max(now, self._held_until)) if ramping and self._policy.ramp_for else None
        simply = ramp is None and self._policy.min_callers == 1 and not self._held(now)
        return closed if simply else Guarded(closed, ramp)

    def _new_window(self, now: float) -> TimeWindow | CountWindow | CallerTimeWindow | CallerCountWindow:
        seconds, calls, tell_apart = window_of(self._policy)
        if calls is not None:
            return CallerCountWindow(int(calls)) if tell_apart else CountWindow(int(calls))
        seconds = int(seconds or 1)
        return CallerTimeWindow(seconds, now) if tell_apart else TimeWindow(seconds, now)

    def _use(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.slow_after = inf if policy.slow_after is None else policy.slow_after
        self.slow_beyond = self.slow_after + HALF_MICROSECOND


def window_of(policy: BreakerPolicy) -> tuple[float | None, int | None, bool]:
    """What kind of window a policy asks for: seconds or calls, and whether callers are told apart."""
    return policy.window_for, policy.window_calls, policy.min_callers > 1


def refused(message: str, retry_after: float | None) -> CircuitOpen:
    """The error for a caller who is not admitted."""
    error = CircuitOpen(message)
    error.retry_after = retry_after
    return error
