"""A pool of places: at most `limit` calls at once, at most `queue` waiting, first come, first served.

    async with bulkhead:
        ...                       # one of at most `limit`

    bulkhead.policy = BulkheadPolicy(limit=40)    # live: nothing running is interrupted, waiters move up

Source of the word: the compartments of a ship (Nygard, "Release It!"). The rules that peers got wrong, and that hold
here: a waiter that is cancelled, expires or is rejected never keeps a place; a place that is freed goes to the first
who still waits; a resize decides from what is free now, never from the difference of the limits (anyio #1223).
"""

from __future__ import annotations

from asyncio import Future
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, Self

from gateway.alarms import Alarms, alarms_here
from gateway.context import Clock
from gateway.outcome import BulkheadFull, DeadlineExceeded, Rejected
from gateway.policy import BulkheadPolicy

Waiter = Future[Rejected | None]
"""Done with None: it has a place. Done with a rejection: it has none, and that is why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkheadSnapshot:
    """A pool as it is now. `abandoned` of those in use are threads whose caller has left."""

    limit: float
    in_use: int
    waiting: int
    abandoned: int
    rejected: int
    peak: int


class Bulkhead:
    """At most `limit` at once; at most `queue` waiting, each at most `max_wait` seconds.

    Invariant: nobody waits while a place is free. Every line that frees a place, or makes one, ends in `_grant`; so
    `acquire_nowait` need not look at the queue, and nobody can overtake it.
    """

    __slots__ = ("_alarms", "_clock", "_limit", "_policy", "_waiters", "abandoned", "in_use", "peak", "rejected")

    def __init__(self, policy: BulkheadPolicy, *, clock: Clock | None = None) -> None:
        self._policy = policy
        self._limit = policy.limit
        self._clock = clock
        self._alarms: Alarms | None = None  # of those who wait, once somebody does
        self._waiters: OrderedDict[Waiter, object] = OrderedDict()  # in order of arrival, with the circuit of each
        self.in_use = self.abandoned = self.peak = self.rejected = 0

    @property
    def policy(self) -> BulkheadPolicy:
        """The numbers it goes by. Assign another: growing wakes waiters, shrinking interrupts nobody."""
        return self._policy

    @policy.setter
    def policy(self, policy: BulkheadPolicy) -> None:
        self._policy = policy
        self._limit = policy.limit
        self._grant()

    @property
    def has_room(self) -> bool:
        """Whether a place is free."""
        return self.in_use < self._limit

    @property
    def waiting(self) -> int:
        """How many wait. A waiter that was cancelled in this tick, and has not run yet, is no longer one."""
        return sum(not waiter.done() for waiter in self._waiters)

    def acquire_nowait(self) -> bool:
        """Take a place if one is free."""
        in_use = self.in_use
        if in_use < self._limit:
            self.in_use = in_use = in_use + 1
            if in_use > self.peak:
                self.peak = in_use
            return True
        return False

    async def acquire(self, deadline: float = inf, *, circuit: object = None) -> None:
        """Take a place, waiting for one if need be; `deadline` is an instant of the clock.

        `circuit`: whose refusal would make the wait vain, see `reject_waiters`.
        Raises BulkheadFull when the queue is full or `max_wait` is over, DeadlineExceeded when the deadline is sooner.
        """
        if self.acquire_nowait():
            return
        alarms = self._alarms = alarms_here(self._alarms)
        now = (self._clock or alarms.clock)()
        if deadline <= now:
            raise self._too_late()
        if len(self._waiters) >= self._policy.queue and self.waiting >= self._policy.queue:
            raise self._full("queue_full", f"all {self._limit} places are taken, and {self._policy.queue} wait")
        waiter: Waiter = alarms.loop.create_future()
        max_wait = self._policy.max_wait
        if deadline < now + max_wait:
            alarm = alarms.set_in(deadline - now, self._end_too_late, waiter)
        else:
            alarm = alarms.set_in(max_wait, self._end_waited_too_long, waiter)
        self._waiters[waiter] = circuit
        try:
            rejection = await waiter
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.result() is None:
                self.release()  # granted and cancelled in one tick: pass the place on
            raise
        finally:
            alarm.waiter = None
        if rejection is not None:
            try:
                raise rejection
            finally:
                del rejection, waiter  # no circles: its traceback leads to this frame

    def release(self) -> None:
        """Give a place back; it goes to the first who still waits."""
        in_use = self.in_use
        if in_use <= 0:
            msg = "release() without a place taken"
            raise RuntimeError(msg)
        self.in_use = in_use - 1
        if self._waiters:
            self._grant()

    def keep(self) -> None:
        """The caller leaves, and its work cannot be stopped: the place stays taken, until `work_ended`."""
        self.in_use += 1
        self.abandoned += 1

    def work_ended(self) -> None:
        """The end of work whose caller had left."""
        self.abandoned -= 1
        self.release()

    def reject_waiters(self, reason: Callable[[], Rejected], circuit: object = None) -> None:
        """Send everybody who waits under this circuit away, each with an error of its own."""
        for waiter, its_circuit in tuple(self._waiters.items()):
            if its_circuit is circuit:
                self._reject(waiter, reason)

    def snapshot(self) -> BulkheadSnapshot:
        """The pool as it is now."""
        return BulkheadSnapshot(
            limit=self._limit,
            in_use=self.in_use,
            waiting=self.waiting,
            abandoned=self.abandoned,
            rejected=self.rejected,
            peak=self.peak,
        )

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def _grant(self) -> None:
        while self._waiters and self.in_use < self._limit:
            waiter, _ = self._waiters.popitem(last=False)
            # Done: cancelled in this tick, and not run yet. A loop that was closed under its waiters runs none of them.
            if not waiter.done() and not waiter.get_loop().is_closed():
                self.acquire_nowait()
                waiter.set_result(None)

    def _end_too_late(self, waiter: Waiter, _: float) -> None:
        self._reject(waiter, self._too_late)

    def _end_waited_too_long(self, waiter: Waiter, _: float) -> None:
        self._reject(waiter, self._waited_too_long)

    def _reject(self, waiter: Waiter, reason: Callable[[], Rejected]) -> None:
        self._waiters.pop(waiter, None)
        if not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_result(reason())

    def _full(self, reason: Literal["queue_full", "max_wait"], message: str) -> BulkheadFull:
        self.rejected += 1
        full = BulkheadFull(message)
        full.reason = reason
        return full

    def _waited_too_long(self) -> BulkheadFull:
        full = self._full("max_wait", f"no place within {self._policy.max_wait} s")
        full.waited_for = "queue"
        return full

    def _too_late(self) -> DeadlineExceeded:
        self.rejected += 1
        late = DeadlineExceeded("the deadline passed in the queue")
        late.waited_for = "queue"
        return late
