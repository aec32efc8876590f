"""The time limit of one try.

The tries of one upstream all last the same, so their deadlines are monotone: a dict in order of entry is the priority
queue, and one loop timer serves every call in flight. What must end sooner, as the calls do that a page makes under its
deadline, sets an alarm for the instant at which it ends, see `gateway.alarms`.

When its time comes, a timer cancels the task; `stop` takes exactly that cancel back, and says whether it was the
reason. The rules are those of `asyncio.timeout` (Python 3.11, `asyncio/timeouts.py`); a differential fuzz in the tests
holds us to them.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task
from contextvars import Context
from math import inf
from typing import Any, Protocol

from gateway.alarms import Alarm, Alarms
from gateway.call import Call
from gateway.context import HALF_MICROSECOND, Ambient, Clock
from gateway.policy import RetryPolicy


class Timer(Ambient, eq=False):
    """A time limit that runs, and what the calls made under it inherit. Stop it exactly once."""

    task: Task[Any]
    cancelling: int  # cancels that were pending before ours
    pending: dict[Timer, None]
    nearer: bool = False  # it ends sooner than the lane
    alarm: Alarm | None = None  # that ends it, where it is nearer and no outer limit's does
    fired_at: float | None = None
    first: bool = False  # it fired, and nobody had cancelled the task before
    sent: bool = False  # a request that must not be repeated went out under it, beside what it is the limit of

    def stop(self) -> bool:
        """End the limit; whether it had fired, so that what comes now comes late."""
        if self.fired_at is None:
            del self.pending[self]
            if self.alarm is not None:
                self.alarm.waiter = None
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
        "_alarms",
        "_armed",
        "_loop",
        "_nearer",
        "_pending",
        "_retry",
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
        self._nearer: dict[Timer, None] = {}  # those that end sooner
        self._alarms = Alarms(loop, clock)  # theirs
        self._armed = False

    @property
    def attempts(self) -> float:
        """How many tries a call under these limits has in all."""
        return 1 if self._retry is None else self._retry.policy.attempts

    @property
    def running(self) -> int:
        """How many limits run."""
        return len(self._pending) + len(self._nearer)

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
        timer = Timer(at, self, call.tries, call.task, call.cancelling, self._nearer, nearer=True)
        self._nearer[timer] = None
        # Where the call that this one is made in ends at the same instant, its timer ends both, and is surely first.
        if not (isinstance(outer, Timer) and outer.task is call.task and outer.at == at and outer.fired_at is None):
            timer.alarm = self._alarms.set(at, fire, timer)
        return timer

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
