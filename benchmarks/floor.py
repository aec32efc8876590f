"""The floor: what a guarded call costs at least, in Python, written by hand for one function.

It does what our engine does for a call that goes well, and no more: a counted pool with a queue, a circuit over the
last hundred calls, a limit on time from one timer for all calls, tries, the last good answers. No counters for
anybody to read, no events, no ambient deadline, no outcomes, no tiers, nothing to tune; one frame. It is the yardstick
of the guard, too: whoever changes it changes what everything is measured by.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Future, Task, current_task, get_running_loop
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from time import monotonic
from typing import Any

from benchmarks.terms import DEFAULT, CannotDo, Function, Terms, check

RING = 100


class Full(Exception):
    """The queue is."""


class Open(Exception):
    """The circuit is."""


class Pool:
    """A counter, and who waits."""

    __slots__ = ("active", "limit", "queue", "waiters")

    def __init__(self, limit: int, queue: int) -> None:
        self.limit = limit
        self.queue = queue
        self.active = 0
        self.waiters: deque[Future[None]] = deque()

    async def wait(self) -> None:
        """Wait for a place; it comes with the wake-up."""
        if len(self.waiters) >= self.queue:
            raise Full
        waiter = get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            await waiter
        except CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Hand the place on, or give it back."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.active -= 1


class Ring:
    """A circuit over the last calls."""

    __slots__ = ("at", "failed", "filled", "least", "open_for", "open_until", "ring")

    def __init__(self, least: float, open_for: float) -> None:
        self.ring = bytearray(RING)
        self.at = self.filled = self.failed = 0
        self.least = least
        self.open_for = open_for
        self.open_until = 0.0  # 0: closed

    def admit(self, now: float) -> None:
        """It is not closed: whether one may try."""
        if now < self.open_until:
            raise Open
        self.open_until = now + self.open_for  # one probe; who comes meanwhile is refused

    def failure(self, now: float) -> None:
        """Count one."""
        at = self.at
        self.failed += 1 - self.ring[at]
        self.ring[at] = 1
        self.at = (at + 1) % RING
        self.filled += self.filled < RING
        if self.filled >= self.least and self.failed * 2 >= self.filled:
            self.open_until = now + self.open_for

    def close(self) -> None:
        """A probe went well."""
        self.__init__(self.least, self.open_for)  # type: ignore[misc]


class Lane:
    """Limits on time that all last the same: a dict in order of entry, and one timer."""

    __slots__ = ("armed", "loop", "pending", "seconds")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self.seconds = seconds
        self.loop = loop
        self.pending: dict[object, tuple[float, Task[Any]]] = {}
        self.armed = False

    def arm(self) -> None:
        """Come back when the first is due."""
        self.armed = True
        self.loop.call_later(self.seconds, self.tick)

    def tick(self) -> None:
        """Cancel what is due."""
        self.armed = False
        now = monotonic()
        due = []
        for key, (at, task) in self.pending.items():
            if at > now:
                self.armed = True
                self.loop.call_later(at - now, self.tick)
                break
            due.append((key, task))
        for key, task in due:
            del self.pending[key]
            task.cancel()


class Floor:
    """The contender that has nothing that it does not need."""

    name = "hand-written floor"
    note = "one frame, written for this one function; no counters, events, ambient deadline, outcomes, tuning"

    def guard(self, function: Function, terms: Terms) -> Function:  # noqa: C901, PLR0915 - one frame is the point
        """All of it in one coroutine."""
        check(terms, "refused", "listener", "window_for")
        if terms.plan_b == "async function":
            raise CannotDo("has no function as plan B")
        if terms.single_flight:
            return single_flight(function)
        pool, ring = Pool(terms.limit, terms.queue), Ring(terms.opens_after, terms.open_for)
        kept: dict[str, Any] = {}
        attempts, seconds, pause, most = terms.attempts, terms.timeout, terms.pause, terms.remembers
        remembers, default = terms.plan_b == "last good", terms.plan_b == "default"
        lane: Lane | None = None

        async def call(key: str) -> Any:  # noqa: C901, PLR0912, PLR0915 - see above
            nonlocal lane
            attempt = 1
            try:
                while True:
                    now = monotonic()
                    if ring.open_until:
                        ring.admit(now)
                    if pool.active < pool.limit:
                        pool.active += 1
                    else:
                        await pool.wait()
                    loop = get_running_loop()
                    if lane is None or lane.loop is not loop:
                        lane = Lane(seconds, loop)
                    task = current_task()
                    cancelling = task.cancelling()
                    mark = object()
                    pending = lane.pending
                    pending[mark] = (now + seconds, task)
                    if not lane.armed:
                        lane.arm()
                    try:
                        try:
                            value = await function(key)
                        except CancelledError as error:
                            if pending.pop(mark, None) is None and task.uncancel() <= cancelling:
                                raise TimeoutError from error
                            raise
                        except BaseException:
                            if pending.pop(mark, None) is None:
                                task.uncancel()
                            raise
                        if pending.pop(mark, None) is None:
                            task.uncancel()
                    except Exception:
                        ring.failure(monotonic())
                        if attempt >= attempts:
                            raise
                    else:
                        if ring.open_until:
                            ring.close()
                        at = ring.at
                        if ring.ring[at]:
                            ring.ring[at] = 0
                            ring.failed -= 1
                        at += 1
                        ring.at = 0 if at == RING else at
                        if ring.filled < RING:
                            ring.filled += 1
                        if remembers:
                            if key not in kept and len(kept) >= most:
                                del kept[next(iter(kept))]
                            kept[key] = (value, now)
                        return value
                    finally:
                        if pool.waiters:
                            pool.release()
                        else:
                            pool.active -= 1
                    attempt += 1
                    await asyncio.sleep(pause)
            except Exception:
                if remembers and key in kept:
                    return kept[key][0]
                if default:
                    return DEFAULT
                raise

        return call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The same round a pool of threads, with the caller's context."""
        pool = self._threads = ThreadPoolExecutor(terms.limit)

        async def in_thread(key: str) -> Any:
            return await get_running_loop().run_in_executor(pool, copy_context().run, function, key)

        return self.guard(in_thread, terms)

    async def close(self) -> None:
        """End the threads."""
        if hasattr(self, "_threads"):
            self._threads.shutdown()


def single_flight(function: Function) -> Function:
    """A dict of what is under way."""
    under_way: dict[str, Future[Any]] = {}

    async def call(key: str) -> Any:
        flight = under_way.get(key)
        if flight is not None:
            return await flight
        flight = under_way[key] = get_running_loop().create_future()
        try:
            value = await function(key)
        except BaseException as error:
            flight.set_exception(error if isinstance(error, Exception) else RuntimeError("the first caller left"))
            raise
        finally:
            del under_way[key]
        flight.set_result(value)
        return value

    return call


class Bare:
    """No guard at all."""

    name = "bare await"
    note = "nothing between the caller and the function; threads: `loop.run_in_executor`"

    def guard(self, function: Function, terms: Terms) -> Function:
        """The function."""
        check(terms, "plan_b", "must_remember", "single_flight", "circuit")
        return function

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """An executor's."""
        self._threads = ThreadPoolExecutor(terms.limit)

        async def in_thread(key: str) -> Any:
            return await get_running_loop().run_in_executor(self._threads, function, key)

        return in_thread

    async def close(self) -> None:
        """End the threads."""
        if hasattr(self, "_threads"):
            self._threads.shutdown()
