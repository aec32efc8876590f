"""Circuits by key: one upstream, many tenants or shards, and each is ill on its own.

    circuits.of("tenant-7").enter(now)  # made when it is first asked for

Memory is bounded: over `max_circuits` the least recently used one goes that nobody would miss: it lets everybody in,
no call of late was bad, and no call holds it. Then those go that nobody came for in longer than any opening lasts.
Where none may go, a new key shares the upstream's own circuit, which so hears of an outage that is wider than its room.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import chain
from math import inf
from random import random as uniform
from typing import ClassVar, cast

from gateway.arguments import canonical
from gateway.breaker import BreakerSnapshot, CircuitBreaker, State, StateName
from gateway.context import Clock
from gateway.outcome import CircuitOpen, ConfigError
from gateway.policy import BreakerPolicy

log = logging.getLogger("gateway")

OnChange = Callable[[Hashable, CircuitBreaker, StateName, StateName, float], None]
LOOKS = 16
"""How many circuits that were needed are looked at again for one new key: to look at all would cost much."""
LOOK_AGAIN_AFTER = 1.0
"""Seconds in which each of them is looked at again; no sooner, as long as new keys come."""
BY_HAND = 100
"""Circuits over `max_circuits` that operators may have made, by asking for them by key."""


class OfOperation:
    """The key of an operation's own circuit. It is shown as the operation's name, and is no user's key of that name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Kept:
    """A circuit, the key that is shown for it, and what tells it from a later one of the same key."""

    __slots__ = ("breaker", "key", "name", "token", "unused_since")

    def __init__(self, name: Hashable, key: Hashable, breaker: CircuitBreaker, token: object) -> None:
        self.name = name
        self.key = key.name if type(key) is OfOperation else key
        self.breaker = breaker
        self.token = token
        self.unused_since = inf


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
        # Those that may perhaps go, the least recently used first; and those that could not when they were looked at,
        # until somebody asks for them or they close. So a new key finds one at once, however many are needed.
        self._known: OrderedDict[Hashable, Kept] = OrderedDict()
        self._needed: OrderedDict[Hashable, Kept] = OrderedDict()
        self._isolated = False
        self._look_again_at = -inf
        self._warned: set[str] = set()

    def of(self, key: Hashable) -> CircuitBreaker:
        """The circuit of this key, made if need be; it is the most recently used then. TypeError if it has no hash.

        Where there is no room for one more it is the upstream's own.
        """
        name = key if type(key) is str else name_of(key)
        kept = self._known.get(name)
        if kept is not None:  # as `_used` does it, for the commonest case
            self._known.move_to_end(name)
            return kept.breaker
        kept = self._used(name)
        if kept is not None:
            return kept.breaker
        return self._make(name, key) if self._has_room() else self.shared

    def own(self, key: Hashable) -> CircuitBreaker:
        """The circuit of this key, and of no other: for operators. ConfigError where too many were made by hand."""
        name = name_of(key)
        kept = self._used(name)
        if kept is not None:
            return kept.breaker
        if not self._has_room() and len(self) >= self._policy.max_circuits + BY_HAND:
            problem = f"there are {len(self)} circuits with a key, and none may go, so {key!r} can have none of its own"
            remedy = "restore() some that are isolated, or raise breaker.max_circuits"
            raise ConfigError(f"{self.name} breaker.max_circuits", problem, remedy)
        return self._make(name, key)

    def peek(self, key: Hashable) -> CircuitBreaker | None:
        """The circuit of this key, if there is one of its own."""
        kept = self._find(name_of(key))
        return None if kept is None else kept.breaker

    def __len__(self) -> int:
        return len(self._known) + len(self._needed)

    def __iter__(self) -> Iterator[tuple[Hashable, CircuitBreaker]]:
        """Keys and circuits: those that may not go first, then the least recently used first."""
        return iter([(kept.key, kept.breaker) for kept in self._all()])

    def snapshots(self) -> dict[Hashable, BreakerSnapshot]:
        """Each as it is now, by the user's own key. Of keys that Python takes for one, the later show their types.

        So does a user's key that is the name of an operation with a circuit of its own.
        """
        seen: dict[Hashable, BreakerSnapshot] = {}
        for kept in sorted(self._all(), key=lambda kept: type(kept.name) is not OfOperation):
            seen[typed(kept.key) if kept.key in seen else kept.key] = kept.breaker.snapshot()
        return seen

    @property
    def policy(self) -> BreakerPolicy:
        """The numbers they all go by. Assign others: the states survive, circuits over a lower `max_circuits` go."""
        return self._policy

    @policy.setter
    def policy(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        for _, breaker in self:
            breaker.policy = policy
        self._look_at_all_again()
        while len(self) > policy.max_circuits and self._drop_one():
            pass

    @property
    def isolated(self) -> bool:
        """Whether all are, and those that are made from now on, save such as were restored by key."""
        return self._isolated

    def isolate(self) -> None:
        """Refuse everybody, whatever the key, until `restore()`."""
        self._isolated = True
        for _, breaker in self:
            breaker.isolate()

    def restore(self) -> None:
        """Close all of them, with empty windows."""
        self._isolated = False
        self._look_at_all_again()
        for _, breaker in self:
            breaker.restore()

    def restart(self, clock: Clock) -> None:
        """Begin anew by another clock; what an operator isolated stays so."""
        self._clock = clock
        for _, breaker in self:
            breaker.restart(clock)
        self._look_at_all_again()

    def _all(self) -> Iterator[Kept]:
        return chain(self._needed.values(), self._known.values())

    def _find(self, name: Hashable) -> Kept | None:
        return self._known.get(name) or self._needed.get(name)

    def _used(self, name: Hashable) -> Kept | None:
        """What is kept under this name; it is the most recently used then."""
        kept = self._known.get(name)
        if kept is not None:
            self._known.move_to_end(name)
        elif (kept := self._needed.pop(name, None)) is not None:
            self._known[name] = kept
        return kept

    def _make(self, name: Hashable, key: Hashable) -> CircuitBreaker:
        token = object()
        breaker = CircuitBreaker(
            self._policy, clock=self._clock, random=self._random, on_change=partial(self._changed, name, token)
        )
        if self._isolated:
            breaker.isolate()  # born so: there is no transition to tell of
        self._known[name] = Kept(name, key, breaker, token)
        return breaker

    def _has_room(self) -> bool:
        """Whether there is room for one more, after making some if need be."""
        while len(self) >= self._policy.max_circuits:
            self._warn_once("%s: %s circuits have a key, breaker.max_circuits; the least recently used closed ones go")
            if not self._drop_one():
                self._warn_once(
                    "%s: %s circuits have a key, and none may go; new keys share the upstream's own circuit"
                )
                return False
        return True

    def _drop_one(self) -> bool:
        """Drop a circuit that may go, the least recently used first. Each look is paid for by a call, or bounded."""
        if self._isolated:
            return False  # what was restored by key would come back isolated
        now = self._clock()
        while self._known:
            name, kept = self._known.popitem(last=False)
            if not kept.breaker.in_use and not kept.breaker.would_be_missed(now):
                return True
            kept.unused_since = now
            self._needed[name] = kept
        if now < self._look_again_at:
            return False
        for _ in range(min(LOOKS, len(self._needed))):
            name, kept = self._needed.popitem(last=False)
            if not kept.breaker.in_use:
                if not kept.breaker.would_be_missed(now):
                    return True
                if kept.breaker.is_stale(now, kept.unused_since):
                    self._warn_once(
                        "%s: %s circuits have a key, and all are needed; those that refuse nobody any more, and that "
                        "nobody came for in longer than breaker.open_cap, go"
                    )
                    return True
            self._needed[name] = kept
        self._look_again_at = now + LOOK_AGAIN_AFTER * min(1.0, LOOKS / len(self._needed))
        return False

    def _look_at_all_again(self) -> None:
        self._look_again_at = -inf
        self._needed.update(self._known)
        self._known, self._needed = self._needed, OrderedDict()

    def _changed(self, name: Hashable, token: object, before: StateName, after: StateName, at: float) -> None:
        kept = self._find(name)
        if kept is None or kept.token is not token:
            return  # it was dropped, and calls that were in flight then still report to it
        if after == "closed":
            self._used(name)
        self._on_change(kept.key, kept.breaker, before, after, at)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, self.name, self._policy.max_circuits)


class Asked:
    """A circuit as one caller sees it: what the engine asks of a circuit, with the caller passed on.

    One of whom nobody knows who he is is let in like the others, and what he says does not count (`counts=False`).
    """

    unguarded: ClassVar[None] = None
    """There is no leave for everybody where callers are told apart."""
    __slots__ = ("breaker", "caller", "counts")

    def __init__(self, breaker: CircuitBreaker, caller: Hashable, *, counts: bool = True) -> None:
        self.breaker = breaker
        self.caller = caller
        self.counts = counts

    @property
    def slow_beyond(self) -> float:
        """A call that takes longer, in seconds, is slow."""
        return self.breaker.slow_beyond

    def refuses(self, now: float) -> bool:
        """Whether `enter` would raise; this spends nothing."""
        return self.breaker.refuses(now, self.caller)

    def enter(self, now: float, caller: Hashable = None) -> State:  # noqa: ARG002 - it knows its own
        """Leave to try, or CircuitOpen."""
        return self.breaker.enter(now, self.caller)

    def leave(self, state: State, now: float, failed: bool | None, slow: bool, caller: Hashable = None) -> None:  # noqa: ARG002, FBT001 - as the circuit's
        """How it went (None: evidence of nothing)."""
        self.breaker.leave(state, now, failed if self.counts else None, slow, self.caller)

    def leave_refused(self, state: State, now: float) -> None:
        """It was refused: evidence of nothing, but whoever refuses is alive."""
        self.breaker.leave_refused(state, now, self.caller)

    def hold(self, until: float) -> None:
        """The upstream asked this caller to leave it alone until this instant."""
        if self.counts:
            self.breaker.hold(until, self.caller)

    def held_for(self, now: float) -> float:
        """Seconds for which the upstream still wants to be left alone."""
        return self.breaker.held_for(now)

    def refusal(self, refused_at: float | None = None) -> CircuitOpen:
        """The error for a caller who is not admitted now, or was not at that instant; counts it."""
        return self.breaker.refusal(refused_at)


def name_of(key: Hashable) -> Hashable:
    """What tells a key from those that Python takes for the same (1, 1.0 and True). A str is its own name."""
    if type(key) is str or type(key) is OfOperation:
        return key
    try:
        return canonical(key)
    except (AttributeError, TypeError, RecursionError):  # of the user's own kind: its own equality tells
        return ("", type(key), key)


def typed(key: Hashable) -> Hashable:
    """A key with its type, for showing."""
    return (str, key) if type(key) is str else name_of(key)


def breaker_of(circuit: object) -> CircuitBreaker:
    """The circuit itself, whoever asks."""
    return circuit.breaker if isinstance(circuit, Asked) else cast("CircuitBreaker", circuit)
