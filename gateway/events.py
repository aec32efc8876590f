"""What happened, as frozen values, for whoever listens. Nobody listening costs one look at an empty tuple.

Listeners are plain functions, called at once and in order. One that raises is logged and removed: observation never
changes what is observed.

Most calls go plainly well: answered live, or as good as that, at once and at the first try. Who has little to say of
them need not hear of each, and what nobody hears of is not made.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Hashable, Iterable
from inspect import iscoroutinefunction, ismethod
from math import gcd
from typing import Any, TypeVar

from msgspec import Struct

from fallbacks.answer import Source
from gateway.outcome import ConfigError, Outcome
from gateway.policy import Policy

log = logging.getLogger("gateway")


class Event(Struct, frozen=True, kw_only=True):
    """Something happened to an upstream, at an instant of the gateway's monotonic clock, in seconds."""

    upstream: str
    at: float


class CallFinished(Event, frozen=True, kw_only=True):
    """A call ended. `source` is None where no answer was had; `waited` are the seconds spent in the queue.

    `age`: of the answer, in seconds. `call` is the same number in all events of one call, while it is in flight.
    """

    operation: str
    outcome: Outcome
    source: Source | None
    duration: float
    waited: float
    attempts: int
    error: BaseException | None
    age: float = 0.0
    call: int = 0


class AttemptFailed(Event, frozen=True, kw_only=True):
    """A try was sent and failed; `attempt` counts from 1, `call` is as of `CallFinished`."""

    operation: str
    attempt: int
    outcome: Outcome
    error: BaseException
    duration: float
    call: int = 0


class CircuitChanged(Event, frozen=True, kw_only=True):
    """A circuit went from one state to another; `at` is when that was due, even if noticed later.

    `key`: of a circuit of its own that `circuit_by=` made; None: the upstream's.
    """

    before: str
    after: str
    key: Hashable = None


class PolicyChanged(Event, frozen=True, kw_only=True):
    """An upstream goes by other numbers from now on."""

    before: Policy
    after: Policy


KINDS: tuple[type[Event], ...] = (CallFinished, AttemptFailed, CircuitChanged, PolicyChanged)
Listener = TypeVar("Listener", bound=Callable[[Any], object])


class Listeners:
    """Who hears what. Its attributes are the listeners of each kind of event."""

    __slots__ = ("_plain", "attempt_failed", "call_finished", "circuit_changed", "plain_step", "policy_changed")

    def __init__(self) -> None:
        self.call_finished: tuple[Callable[[CallFinished], object], ...] = ()
        self.attempt_failed: tuple[Callable[[AttemptFailed], object], ...] = ()
        self.circuit_changed: tuple[Callable[[CircuitChanged], object], ...] = ()
        self.policy_changed: tuple[Callable[[PolicyChanged], object], ...] = ()
        self._plain: tuple[tuple[Callable[[CallFinished], object], int], ...] = ()  # and one in how many they hear of
        self.plain_step = 0  # none of the calls between is heard of by anybody; 0: none at all

    def add(
        self, listener: Callable[[Any], object], kinds: tuple[type[Event], ...] = (), *, plain_every: int = 1
    ) -> None:
        """Tell `listener` of these kinds of events from now on; none, or `Event`, means all of them.

        `plain_every`: of calls that went plainly well, of one in so many; 0: of none. What is said last holds.
        """
        for kind in KINDS:
            if (not kinds or issubclass(kind, kinds)) and not any(same(one, listener) for one in self._of(kind)):
                self._put(kind, (*self._of(kind), listener))
        if not kinds or issubclass(CallFinished, kinds):
            self._plain = (*self._plain_without(listener), *([(listener, plain_every)] if plain_every else []))
            self.plain_step = gcd(*(every for _, every in self._plain))

    def remove(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        for kind in KINDS:
            self._put(kind, tuple(one for one in self._of(kind) if not same(one, listener)))
        self._plain = self._plain_without(listener)
        self.plain_step = gcd(*(every for _, every in self._plain))

    def of_plain(self, number: int) -> list[Callable[[CallFinished], object]]:
        """Who hears of a call that went plainly well, the so manieth of its operation that ended in this way."""
        return [listener for listener, every in self._plain if (number - 1) % every == 0]

    def tell(self, listeners: Iterable[Callable[[Any], object]], event: Event) -> None:
        """Tell each of them."""
        for listener in listeners:
            try:
                listener(event)
            except (Exception, CancelledError):  # nobody is told to leave in a plain function: it asked a dead future
                self.remove(listener)
                log.exception("listener %r raised and was removed", listener)

    def _plain_without(self, listener: Callable[[Any], object]) -> tuple[tuple[Callable[[Any], object], int], ...]:
        return tuple((one, every) for one, every in self._plain if not same(one, listener))

    def _of(self, kind: type[Event]) -> tuple[Callable[[Any], object], ...]:
        listeners: tuple[Callable[[Any], object], ...] = getattr(self, SLOT[kind])
        return listeners

    def _put(self, kind: type[Event], listeners: tuple[Callable[[Any], object], ...]) -> None:
        setattr(self, SLOT[kind], listeners)


def same(one: Callable[[Any], object], other: Callable[[Any], object]) -> bool:
    """Whether two listeners are one. A bound method is another object each time it is looked up."""
    return one is other or (ismethod(one) and ismethod(other) and one == other)


def check_kinds(kinds: tuple[object, ...]) -> None:
    """Raise a ConfigError for what is not a kind of event."""
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise ConfigError(
                "on", f"{kind!r} is not a kind of event", "write @gate.on(Event), or one of its subclasses"
            )


def check_listener(listener: object) -> None:
    """Raise a ConfigError for what cannot be told of an event."""
    if not callable(listener):
        raise ConfigError("on", f"{listener!r} is not a function", "decorate a plain function of the event")
    if iscoroutinefunction(listener) or iscoroutinefunction(getattr(listener, "__call__", None)):  # noqa: B004 - it is looked at
        problem = f"{listener!r} would not be awaited: events are told in the midst of a call"
        raise ConfigError("on", problem, "write a plain function, and put what takes time into a queue of your own")


def check_plain_every(number: object) -> None:
    """Raise a ConfigError for what cannot be counted by."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigError("plain_every", f"{number!r} is no number of calls", "give 1 for each, 100, or 0 for none")


SLOT = {
    CallFinished: "call_finished",
    AttemptFailed: "attempt_failed",
    CircuitChanged: "circuit_changed",
    PolicyChanged: "policy_changed",
}
