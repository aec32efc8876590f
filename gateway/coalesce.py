"""Single flight: identical calls that are under way at once share one.

The first of them leads: it makes the call, in its own task and by its own deadline. The others follow: each waits for
how it ends, and no longer than it would wait for a call of its own. A leader that leaves (its caller went away, or its
own deadline came) hands over to the follower with the most time left, who makes the call anew. A leader whose upstream
failed ends the flight for all: whoever asked at the same moment would hear the same. Source: Go's
`golang.org/x/sync/singleflight`, which shares the first caller's fate with everybody; here nobody's leaving is shared.
"""

from __future__ import annotations

import logging
from asyncio import Future
from collections.abc import Callable, Hashable
from contextlib import suppress
from copy import copy
from math import inf
from operator import is_
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from fallbacks.copying import copied
from gateway.alarms import Alarms, alarms_here
from gateway.outcome import Outcome, Refused

if TYPE_CHECKING:
    from asyncio import Task

log = logging.getLogger("gateway")

E = TypeVar("E", bound=BaseException)
MOST_FLIGHTS = 1_000
MOST_FOLLOWERS = 10_000
"""Of one flight. Over these bounds a call goes alone."""


class Landed(Struct, frozen=True):
    """The flight is over: a value, or the error of its leader and what is known of that."""

    value: Any = None
    immutable: bool = False
    error: BaseException | None = None
    outcome: Outcome = Outcome.SUCCESS
    not_sent: bool = False

    def value_for_one(self) -> Any:
        """The value, for one caller to do with as he likes."""
        return self.value if self.immutable else copied(self.value)


class Told(Struct, frozen=True):
    """What a follower is told when it is no end that is shared."""

    what: str


LEAD = Told("the leader has left: make the call")
ALONE = Told("this answer is not for you: make a call of your own")
TOO_LATE = Told("your time is over")

News = Landed | Told


class Flight:
    """One call that several wait for."""

    __slots__ = ("_flights", "followers", "key", "task")

    def __init__(self, flights: Flights, key: Hashable, task: Task[Any]) -> None:
        self._flights = flights
        self.key = key
        self.task = task  # of who leads it: whoever asks for the same in there would wait for himself
        self.followers: dict[Future[News], float] = {}  # each with the seconds it may wait at most, as an instant

    @property
    def full(self) -> bool:
        """Whether nobody else may follow."""
        return len(self.followers) >= MOST_FOLLOWERS

    async def follow(self, clock: Callable[[], float], cutoff: float) -> News:
        """Wait for its end, or for the lead, until `cutoff`, an instant of that clock."""
        now = clock()
        if cutoff <= now:
            return TOO_LATE
        alarms = self._flights.alarms = alarms_here(self._flights.alarms)
        told: Future[News] = alarms.loop.create_future()
        alarm = alarms.set_in(cutoff - now, tell_too_late, told)
        self.followers[told] = cutoff
        try:
            return await told
        except BaseException:
            if told.done() and not told.cancelled() and told.result() is LEAD:
                self.hand_over(clock())  # given the lead and cancelled in one tick: pass it on
            raise
        finally:
            self.followers.pop(told, None)
            alarm.waiter = None

    def land(self, value: Any) -> None:
        """Its answer is here. Each follower gets a copy of its own, of what the leader cannot change any more."""
        self._flights.end(self)
        if not any(not follower.done() for follower in self.followers):
            return
        try:
            mine = copied(value)
        except Exception:
            log.exception("an answer could not be copied, so that those who wait for it make calls of their own")
            self._tell_all(ALONE)
        else:
            self._tell_all(Landed(mine, immutable=mine is value))

    def fail(self, landed: Landed) -> None:
        """It came to nothing, for all."""
        self._flights.end(self)
        self._tell_all(landed)

    def part(self) -> None:
        """Its answer is for nobody but its leader: the others go alone."""
        self._flights.end(self)
        self._tell_all(ALONE)

    def hand_over(self, now: float, least: float = 0.0) -> None:
        """Its leader leaves: the follower with the most time left leads, if that is at least so many seconds."""
        waiting = [(cutoff, place) for place, (told, cutoff) in enumerate(self.followers.items()) if not told.done()]
        cutoff, place = max(waiting, key=lambda one: (one[0], -one[1]), default=(-inf, 0))
        if cutoff - now >= least and cutoff > now:
            tell(list(self.followers)[place], LEAD)
            return
        self._flights.end(self)
        self._tell_all(TOO_LATE)  # too little time for a call, and none that would bring them an answer

    def _tell_all(self, news: News) -> None:
        for follower in tuple(self.followers):
            tell(follower, news)


class Flights:
    """The flights of one operation, by the keys of their calls."""

    __slots__ = ("_under_way", "alarms")

    def __init__(self) -> None:
        self.alarms: Alarms | None = None  # of those who follow, once somebody does
        self._under_way: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def of(self, key: Hashable) -> Flight | None:
        """The flight that is under way."""
        return self._under_way.get(key)

    def begin(self, key: Hashable, task: Task[Any]) -> Flight | None:
        """A flight to lead, in this task; None where there are too many, or one of this key: then a call goes alone."""
        if key is None or len(self._under_way) >= MOST_FLIGHTS or key in self._under_way:
            return None
        flight = self._under_way[key] = Flight(self, key, task)
        return flight

    def end(self, flight: Flight) -> None:
        """It is over, or those who ask from now on are not to join it."""
        if self._under_way.get(flight.key) is flight:
            del self._under_way[flight.key]

    def clear(self) -> None:
        """Their loop was closed under them."""
        self._under_way.clear()


def tell(follower: Future[News], news: News) -> None:
    """Wake a follower, unless it has left or was told already."""
    if not follower.done() and not follower.get_loop().is_closed():
        follower.set_result(news)


def tell_too_late(follower: Future[News], _: float) -> None:
    """Its alarm has come."""
    tell(follower, TOO_LATE)


def again(error: E) -> E:
    """The same error once more, for another caller, from the same cause.

    One object raised by many would collect the traceback and the notes of them all. Where no other can be made, it has
    to be that one.
    """
    twin = twin_of(error)
    if twin is None:
        return error
    if hasattr(error, "__notes__"):
        twin.__notes__ = list(error.__notes__)
    if isinstance(error, Refused):  # with a value that `classify=` judged, for one caller to do with as he likes
        with suppress(Exception):
            twin.args = copied(error.args)
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    return twin


def twin_of(error: E) -> E | None:
    """Another of the same kind, that says the same; None for one that is made in ways of its own."""
    for made in (copy, remade):
        with suppress(Exception):
            twin = made(error)
            same = len(twin.args) == len(error.args) and all(map(is_, twin.args, error.args))
            if type(twin) is type(error) and twin is not error and same:
                return twin
    return None


def remade(error: E) -> E:
    """A copy of an error whose `__init__` takes other arguments than it passes on."""
    twin = type(error).__new__(type(error), *error.args)
    twin.args = error.args
    vars(twin).update(vars(error))
    return twin
