"""The time limit of one try.

The tries of one upstream all last the same, so their deadlines are monotone: a dict in order of entry is the priority
queue, and one loop timer serves every call in flight. What must end sooner, as the calls do that a page makes under its
deadline, is kept by the instant at which it ends, and one more loop timer serves the first of these instants: to set a
timer of the loop costs more than all the rest of a limit, and nearly every limit is over before it comes.

When its time comes, a timer cancels the task; `stop` takes exactly that cancel back, and says whether it was the
reason. The rules are those of `asyncio.timeout` (Python 3.11, `asyncio/timeouts.py`); a differential fuzz in the tests
holds us to them.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle
from contextvars import Context
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol

from msgspec import Struct

from gateway.call import Call
from gateway.context import HALF_MICROSECOND, Ambient, Clock
from gateway.policy import RetryPolicy

MILLISECOND = 0.001
PASSED_BY = 64
"""So many instants that nobody waits for any more are kept at least, beside as many as there are others."""


class Timer(Ambient, eq=False):
    """A time limit that runs, and what the calls made under it inherit. Stop it exactly once."""

    task: Task[Any]
    cancelling: int  # cancels that were pending before ours
    pending: dict[Timer, None]
    nearer: bool = False  # it ends sooner than the lane
    moment: Moment | None = None  # that it ends at, where that is nearer
    fired_at: float | None = None
    first: bool = False  # it fired, and nobody had cancelled the task before
    sent: bool = False  # a request that must not be repeated went out under it, beside what it is the limit of

    def stop(self) -> bool:
        """End the limit; whether it had fired, so that what comes now comes late."""
        if self.fired_at is None:
            del self.pending[self]
            if self.moment is not None and not self.pending:
                self.moment.pass_by()
            return False
        self.task.uncancel()
        return True

    def stop_on(self, error: BaseException) -> bool:
        """End the limit; whether this limit, and nothing else, is why the try ended with `error`."""
        if not self.stop():
            return False
        return self.task.cancelling() <= self.cancelling and isinstance(error, CancelledError)


class Repeats(Protocol):
    """What repeats a call: a `Retry`."""

    policy: RetryPolicy


class Lane:
    """Time limits of one duration, in seconds, on one loop. `retry`: what repeats a call that fails, if anything."""

    __slots__ = (
        "_alarm",
        "_alarm_at",
        "_armed",
        "_instants",
        "_loop",
        "_moments",
        "_pending",
        "_retry",
        "_served",
        "clock",
        "gateway",
        "seconds",
    )

    def __init__(
        self,
        seconds: float,
        loop: AbstractEventLoop,
        clock: Clock,
        gateway: object = None,
        retry: Repeats | None = None,
    ) -> None:
        self.seconds = seconds
        self.gateway = gateway
        self._retry = retry
        self._loop = loop
        self.clock = clock
        self._pending: dict[Timer, None] = {}
        self._served: dict[Timer, None] = {}  # those that the timer of the call they are made in ends as well
        self._moments: dict[float, Moment] = {}  # those at which limits end that are nearer than the lane's
        self._instants: list[float] = []  # theirs, a heap; some have passed by
        self._alarm: TimerHandle | None = None  # for the first of them
        self._alarm_at = inf
        self._armed = False

    @property
    def attempts(self) -> float:
        """How many tries a call under these limits has in all."""
        return 1 if self._retry is None else self._retry.policy.attempts

    @property
    def running(self) -> int:
        """How many limits run."""
        return sum(map(len, (self._pending, self._served, *(moment.timers for moment in self._moments.values()))))

    def start(self, call: Call) -> Timer:
        """A limit that ends `seconds` from where the call is now, or at its cutoff if that is sooner."""
        at = call.at + self.seconds
        if call.cutoff < at:
            return self._start_own(call)
        timer = Timer(at, self, call.tries, call.task, call.cancelling, self._pending)
        self._pending[timer] = None
        if not self._armed:
            self._arm(at)
        return timer

    def _start_own(self, call: Call) -> Timer:
        at, outer = call.cutoff, call.outer
        if isinstance(outer, Timer) and outer.task is call.task and outer.at == at and outer.fired_at is None:
            # The call that this one is made in ends at the same instant: its timer serves both, and is surely first.
            moment, pending = None, self._served
        else:
            moment = self._moments.get(at) or self._new_moment(at)
            pending = moment.timers
        timer = Timer(at, self, call.tries, call.task, call.cancelling, pending, nearer=True, moment=moment)
        pending[timer] = None
        return timer

    def _new_moment(self, at: float) -> Moment:
        moments, instants = self._moments, self._instants
        moment = moments[at] = Moment(at, {}, moments)
        heappush(instants, at)
        if len(instants) > PASSED_BY + 2 * len(moments):
            instants[:] = moments
            heapify(instants)
        if at < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._set_alarm(at)
        return moment

    def _set_alarm(self, at: float, late: float = 0.0) -> None:
        self._alarm = self._loop.call_at(at + late, self._come, context=Context())  # as in `_arm`
        self._alarm_at = at

    def _come(self) -> None:
        now, moments, instants = self.clock(), self._moments, self._instants
        early = self._alarm_at - now > HALF_MICROSECOND  # uvloop counts whole milliseconds
        self._alarm, self._alarm_at = None, inf
        due = []
        while instants and (instants[0] - now <= HALF_MICROSECOND or instants[0] not in moments):
            moment = moments.pop(heappop(instants), None)
            if moment is not None:
                due.append(moment)
        if instants:
            self._set_alarm(instants[0], MILLISECOND if early else 0.0)
        for moment in due:
            for timer in tuple(moment.timers):
                fire(timer, now)

    def _arm(self, at: float) -> None:
        if at != inf:
            self._armed = True
            # In no caller's context: it is set anew from there, and would keep what that holds as long as calls come.
            self._loop.call_at(at, self._tick, context=Context())

    def _tick(self) -> None:
        self._armed = False
        now = self.clock()
        expired = []  # one pass: next(iter(d)) per entry would rescan the holes, O(n^2)
        for timer in self._pending:
            if timer.at - now > HALF_MICROSECOND:
                self._arm(timer.at)
                break
            expired.append(timer)
        for timer in expired:
            fire(timer, now)


class Moment(Struct, eq=False):
    """The limits that end at one instant, nearer than those of the lane.

    It lasts as long as any of them runs. `moments`: where it is found meanwhile, by its instant.
    """

    at: float
    timers: dict[Timer, None]
    moments: dict[float, Moment]

    def pass_by(self) -> None:
        """The last of them has stopped: nobody waits for it any more."""
        if self.moments.get(self.at) is self:  # not if it has just come, and this one was stopped by what that set off
            del self.moments[self.at]


def fire(timer: Timer, now: float) -> None:
    """Its time has come."""
    if timer not in timer.pending:
        return  # it was stopped by what another one's cancel set off: a future of the user's own kind may do anything
    del timer.pending[timer]
    timer.fired_at = now
    timer.first = timer.task.cancelling() <= timer.cancelling
    try:
        timer.task.cancel()
    except BaseException as error:  # noqa: BLE001 - of what the task waits for; the others are to end all the same
        loop = timer.task.get_loop()
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            loop.call_soon(throw, error)
        else:
            loop.call_exception_handler({"message": "a call could not be ended in time", "exception": error})


def throw(error: BaseException) -> None:
    """Raise what ends the program, when all that was due has been done."""
    raise error
