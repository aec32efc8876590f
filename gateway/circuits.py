"""Circuits by key: one upstream, many tenants or shards, and each is ill on its own.

    circuits.of("tenant-7").enter(now)  # made when it is first asked for

Memory is bounded: over `max_circuits` the least recently used one goes that is closed and lets everybody in, which is
to say that knows nothing to anybody's harm. Where none may go, a new key shares the upstream's own circuit.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from math import inf
from random import random as uniform
from typing import NamedTuple

from gateway.arguments import canonical
from gateway.breaker import BreakerSnapshot, CircuitBreaker, State, StateName
from gateway.context import Clock
from gateway.outcome import CircuitOpen
from gateway.policy import BreakerPolicy

log = logging.getLogger("gateway")

OnChange = Callable[[Hashable, CircuitBreaker, StateName, StateName, float], None]
LOOK_AGAIN_AFTER = 1.0
"""Seconds for which it is believed that no circuit may go: looking at all of them for each new key would cost much."""


class Kept(NamedTuple):
    """A circuit, the user's own key of it, and what tells it from a later one of the same key."""

    key: Hashable
    breaker: CircuitBreaker
    token: object


class Circuits:
    """The circuits of one upstream that have a key. `shared` is the upstream's own one.

    Keys are any hashables, told apart with their types: 1, True, 1.0 and "1" are four. `on_change(key, breaker, before,
    after, at)` hears every transition. `name` begins its warnings, on the logger `gateway`.
    """

    def __init__(
        self,
        policy: BreakerPolicy,
        *,
        shared: CircuitBreaker,
        clock: Clock,
        on_change: OnChange,
        random: Callable[[], float] = uniform,
        name: str = "circuits",
    ) -> None:
        self.shared = shared
        self.name = name
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._random = random
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()  # the least recently used first
        self._isolated = False
        self._stuck_until = -inf
        self._warned: set[str] = set()

    def of(self, key: Hashable) -> CircuitBreaker:
        """The circuit of this key, made if need be; it is the most recently used then. TypeError if it has no hash."""
        name = key if type(key) is str else name_of(key)
        kept = self._kept.get(name)
        if kept is None:
            return self._make(name, key)
        self._kept.move_to_end(name)
        return kept.breaker

    def peek(self, key: Hashable) -> CircuitBreaker | None:
        """The circuit of this key, if there is one of its own."""
        kept = self._kept.get(name_of(key))
        return None if kept is None else kept.breaker

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[tuple[Hashable, CircuitBreaker]]:
        """Keys and circuits, the least recently used first."""
        return iter([(kept.key, kept.breaker) for kept in self._kept.values()])

    def snapshots(self) -> dict[Hashable, BreakerSnapshot]:
        """Each as it is now, by the user's own key. Of keys that Python takes for one, the later show their types."""
        seen: dict[Hashable, BreakerSnapshot] = {}
        for key, breaker in self:
            seen[name_of(key) if key in seen else key] = breaker.snapshot()
        return seen

    @property
    def policy(self) -> BreakerPolicy:
        """The numbers they all go by. Assign others: the states survive, circuits over a lower `max_circuits` go."""
        return self._policy

    @policy.setter
    def policy(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._stuck_until = -inf
        for _, breaker in self:
            breaker.policy = policy
        while len(self._kept) > policy.max_circuits and self._drop_one():
            pass

    def isolate(self) -> None:
        """Refuse everybody, whatever the key, until `restore()`."""
        self._isolated = True
        for _, breaker in self:
            breaker.isolate()

    def restore(self) -> None:
        """Close all of them, with empty windows."""
        self._isolated = False
        for _, breaker in self:
            breaker.restore()

    def restart(self, clock: Clock) -> None:
        """Begin anew by another clock; what an operator isolated stays so."""
        self._clock = clock
        self._stuck_until = -inf
        for _, breaker in self:
            breaker.restart(clock)

    def _make(self, name: Hashable, key: Hashable) -> CircuitBreaker:
        if len(self._kept) >= self._policy.max_circuits:
            self._warn_once("%s: %s circuits have a key, breaker.max_circuits; the least recently used closed ones go")
            if not self._drop_one():
                self._warn_once(
                    "%s: %s circuits have a key, and none may go; new keys share the upstream's own circuit"
                )
                return self.shared
        token = object()
        breaker = CircuitBreaker(
            self._policy, clock=self._clock, random=self._random, on_change=partial(self._changed, name, token)
        )
        if self._isolated:
            breaker.isolate()  # born so: there is no transition to tell of
        self._kept[name] = Kept(key, breaker, token)
        return breaker

    def _drop_one(self) -> bool:
        """Drop the least recently used circuit that may go. Those that may not are looked at last, the next time."""
        now = self._clock()
        if now < self._stuck_until:
            return False
        for _ in range(len(self._kept)):
            name = next(iter(self._kept))
            if self._kept[name].breaker.at_rest:
                del self._kept[name]
                return True
            self._kept.move_to_end(name)
        self._stuck_until = now + LOOK_AGAIN_AFTER
        return False

    def _changed(self, name: Hashable, token: object, before: StateName, after: StateName, at: float) -> None:
        kept = self._kept.get(name)
        if kept is None or kept.token is not token:
            return  # it was dropped, and calls that were in flight then still report to it
        if after == "closed":
            self._stuck_until = -inf
        self._on_change(kept.key, kept.breaker, before, after, at)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, self.name, self._policy.max_circuits)


class Asked:
    """A circuit as one caller sees it: what the engine asks of a circuit, with the caller passed on."""

    __slots__ = ("breaker", "caller")

    def __init__(self, breaker: CircuitBreaker, caller: Hashable) -> None:
        self.breaker = breaker
        self.caller = caller

    @property
    def slow_beyond(self) -> float:
        """A call that takes longer, in seconds, is slow."""
        return self.breaker.slow_beyond

    def check(self) -> None:
        """Raise the CircuitOpen that `enter` would raise, and spend nothing."""
        self.breaker.check(self.caller)

    def enter(self, now: float) -> State:
        """Leave to try, or CircuitOpen."""
        return self.breaker.enter(now, self.caller)

    def leave(self, state: State, now: float, failed: bool | None, slow: bool) -> None:  # noqa: FBT001 - as the circuit's
        """How it went (None: evidence of nothing)."""
        self.breaker.leave(state, now, failed, slow, self.caller)

    def leave_refused(self, state: State, now: float) -> None:
        """It was refused: evidence of nothing, but whoever refuses is alive."""
        self.breaker.leave_refused(state, now, self.caller)

    def hold(self, until: float) -> None:
        """The upstream asked this caller to leave it alone until this instant."""
        self.breaker.hold(until, self.caller)

    def held_for(self, now: float) -> float:
        """Seconds for which the upstream still wants to be left alone."""
        return self.breaker.held_for(now)

    def refusal(self) -> CircuitOpen:
        """The error for a caller who is not admitted now; counts it."""
        return self.breaker.refusal()


def name_of(key: Hashable) -> Hashable:
    """What tells a key from those that Python takes for the same (1, 1.0 and True). A str is its own name."""
    if type(key) is str:
        return key
    try:
        return canonical(key)
    except (AttributeError, TypeError, RecursionError):  # of the user's own kind: its own equality tells
        return ("", type(key), key)
