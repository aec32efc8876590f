"""The time limit of one try.

The tries of one upstream all last the same, so their deadlines are monotone: a dict in order of entry is the priority
queue, and one loop timer serves every call in flight. Only a try that must end sooner gets a timer of its own.

When its time comes, a timer cancels the task; `stop` takes exactly that cancel back, and says whether it was the
reason. The rules are those of `asyncio.timeout` (Python 3.11, `asyncio/timeouts.py`); a differential fuzz in the tests
holds us to them.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle
from math import inf
from typing import Any, Protocol

from gateway.call import Call
from gateway.context import HALF_MICROSECOND, Ambient, Clock
from gateway.policy import RetryPolicy


class Timer(Ambient, eq=False):
    """A time limit that runs, and what the calls made under it inherit. Stop it exactly once."""

    task: Task[Any]
    cancelling: int  # cancels that were pending before ours
    pending: dict[Timer, None]
    nearer: bool = False  # it ends sooner than the lane
    handle: TimerHandle | None = None
    fired_at: float | None = None
    first: bool = False  # it fired, and nobody had cancelled the task before
    sent: bool = False  # a request that must not be repeated went out under it, beside what it is the limit of

    def stop(self) -> bool:
        """End the limit; whether it had fired, so that what comes now comes late."""
        if self.fired_at is None:
            del self.pending[self]
            if self.handle is not None:
                self.handle.cancel()
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

    __slots__ = ("_armed", "_loop", "_own", "_pending", "_retry", "clock", "gateway", "seconds")

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
        self._own: dict[Timer, None] = {}
        self._armed = False

    @property
    def attempts(self) -> float:
        """How many tries a call under these limits has in all."""
        return 1 if self._retry is None else self._retry.policy.attempts

    @property
    def running(self) -> int:
        """How many limits run."""
        return len(self._pending) + len(self._own)

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
        timer = Timer(at, self, call.tries, call.task, call.cancelling, self._own, nearer=True)
        self._own[timer] = None
        if not isinstance(outer, Timer) or outer.task is not call.task or outer.at != at or outer.fired_at is not None:
            timer.handle = self._loop.call_at(at, self._fire_own, timer)
        # else the call that this one is made in ends at the same instant: its timer serves both, and is surely first
        return timer

    def _fire_own(self, timer: Timer) -> None:
        now = self.clock()
        if timer.at - now > HALF_MICROSECOND:  # uvloop counts whole milliseconds, and may come early
            timer.handle = self._loop.call_later(timer.at - now + 0.001, self._fire_own, timer)
        else:
            self._fire(timer, now)

    def _arm(self, at: float) -> None:
        if at != inf:
            self._armed = True
            self._loop.call_at(at, self._tick)

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
            self._fire(timer, now)

    @staticmethod
    def _fire(timer: Timer, now: float) -> None:
        del timer.pending[timer]
        timer.fired_at = now
        timer.first = timer.task.cancelling() <= timer.cancelling
        timer.task.cancel()
