"""How long a server may be silent, with one timer for all requests that wait for their answers to begin.

aiohttp's own limit makes a timer for every request and another for every read. Nearly all answers begin long before a
limit on silence could say anything, so only a request that has waited for a part of it gets aiohttp's timer, for the
rest of it. That one starts anew with each read, as the limit is on silence and not on the answer.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from math import inf
from typing import Protocol

from gateway.context import Clock

PART = 1 / 16
"""Of the limit: how much of it passes before a request has a timer of its own. A server that says a part of its headers
within that, and then no more, is given up on by as much too early."""
LEAST = 0.001
"""Seconds; what a timer gets when the loop comes late to start it."""


class Line(Protocol):
    """A connection that an answer comes over: aiohttp's `ResponseHandler`."""

    read_timeout: float | None

    def start_timeout(self) -> None:
        """Be silent for `read_timeout` at most, from now and from each read on."""
        ...


class Silence:
    """The limit, in seconds, on one loop."""

    __slots__ = ("_clock", "_loop", "_part", "_timer", "_waiting", "seconds")

    def __init__(self, seconds: float, *, loop: AbstractEventLoop, clock: Clock) -> None:
        self.seconds = seconds
        self._part = seconds * PART
        self._loop = loop
        self._clock = clock
        self._waiting: dict[Line, float] = {}  # since when; the longest first
        self._timer: TimerHandle | None = None

    def begins(self, line: Line) -> None:
        """A request was sent: its answer is waited for."""
        self._waiting[line] = self._clock()
        if self._timer is None:
            self._look_in(self._part)

    def ends(self, line: Line) -> None:
        """Its answer begins, or nobody waits for it any more."""
        self._waiting.pop(line, None)

    def goes_on(self, line: Line) -> None:
        """Its answer has begun, and more of it is to come."""
        if self.seconds != inf:
            line.read_timeout = self.seconds
            line.start_timeout()

    def stop(self) -> None:
        """Nobody waits any more, nor will."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        if seconds != inf:
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Give timers to those that have waited for a while."""
        self._timer = None
        now = self._clock()
        late = []
        for line, since in self._waiting.items():
            left = since + self._part - now
            if left > 0:
                self._look_in(left)
                break
            late.append((line, since))
        for line, since in late:
            del self._waiting[line]
            line.read_timeout = max(LEAST, since + self.seconds - now)
            line.start_timeout()
            line.read_timeout = self.seconds
