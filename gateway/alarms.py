"""What is to be done at instants, by one timer of the loop for all of them.

To set a timer of a loop costs more than all the rest of a wait, and nearly every wait is over before that comes. So
whoever waits with a limit sets an alarm instead, an entry of a heap, and takes it back by a mark: the heap is not
touched. The loop's timer is set for the first instant of the heap, and comes for the next ones in turn.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle, get_running_loop
from collections.abc import Callable
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any

from msgspec import Struct

from gateway.context import HALF_MICROSECOND, Clock, clock_of

MILLISECOND = 0.001
TAKEN_BACK = 64
"""So many alarms that were taken back are kept at least, beside as many as there are others."""


class Alarm(Struct, order=True):
    """What is to be done at an instant: `act(waiter, now)`, which must not raise.

    `waiter` is None when it has come. Whoever waits no longer sets that to take the alarm back.
    """

    at: float
    number: int  # of two for one instant, the one that was set first comes first
    act: Callable[[Any, float], object]
    waiter: Any


class Alarms:
    """The alarms of those who wait on one loop, by a clock that agrees with it."""

    __slots__ = ("_heap", "_most", "_numbers", "_timer", "_timer_at", "clock", "loop")

    def __init__(self, loop: AbstractEventLoop, clock: Clock) -> None:
        self.loop = loop
        self.clock = clock
        self._heap: list[Alarm] = []  # some were taken back
        self._most = TAKEN_BACK
        self._numbers = count()
        self._timer: TimerHandle | None = None
        self._timer_at = inf

    def __len__(self) -> int:
        """How many are to come."""
        return sum(alarm.waiter is not None for alarm in self._heap)

    def set(self, at: float, act: Callable[[Any, float], object], waiter: Any) -> Alarm:
        """Do this at that instant, unless it is taken back; never at `inf`."""
        alarm, heap = Alarm(at, next(self._numbers), act, waiter), self._heap
        if len(heap) >= self._most:
            self._forget()
        heappush(heap, alarm)
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(at)
        return alarm

    def set_in(self, seconds: float, act: Callable[[Any, float], object], waiter: Any) -> Alarm:
        """The same, so many seconds from now."""
        return self.set(self.clock() + seconds, act, waiter)

    def _forget(self) -> None:
        """Let go of those that were taken back, which is done rarely enough to cost each of them next to nothing."""
        heap = self._heap
        heap[:] = [alarm for alarm in heap if alarm.waiter is not None]
        heapify(heap)
        self._most = TAKEN_BACK + 2 * len(heap)

    def _set_timer(self, at: float, late: float = 0.0) -> None:
        if at != inf:
            # In no caller's context: it is set anew from there, and would keep what that holds as long as calls come.
            self._timer = self.loop.call_at(at + late, self._come, context=Context())
            self._timer_at = at

    def _come(self) -> None:
        now, heap = self.clock(), self._heap
        early = self._timer_at - now > HALF_MICROSECOND  # uvloop counts whole milliseconds
        self._timer, self._timer_at = None, inf
        due = []
        while heap and (heap[0].waiter is None or heap[0].at - now <= HALF_MICROSECOND):
            due.append(heappop(heap))
        if heap:
            self._set_timer(heap[0].at, MILLISECOND if early else 0.0)
        for alarm in due:
            waiter, alarm.waiter = alarm.waiter, None
            if waiter is not None:  # nor taken back by what another one set off
                alarm.act(waiter, now)


def alarms_here(known: Alarms | None) -> Alarms:
    """Those of the running loop: the known ones, unless they are another's, which may be closed by now."""
    loop = get_running_loop()
    return known if known is not None and known.loop is loop else Alarms(loop, clock_of(loop))
