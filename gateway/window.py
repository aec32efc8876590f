"""What happened lately, in O(1) a call and bounded memory.

The rules are Resilience4j's: a time window has one bucket a second, aligned to whole seconds of the clock, and at
second S holds what was recorded in seconds S - n + 1 to S; a count window is a ring of the last n calls.
"""

from __future__ import annotations

from math import floor
from typing import Protocol

from gateway.context import HALF_MICROSECOND

ALMOST_ONE = 1 - 1e-9
"""Shares this near are equal: a threshold of 35.2 / 100 is, as a float, above the 44 failures of 125 that it means."""


class Window(Protocol):
    """Calls, failures and slow calls of late; `bad` is false as long as there is nothing to decide about."""

    failures: int
    slow: int
    bad: bool

    @property
    def calls(self) -> int:
        """How many calls it holds."""
        ...

    def record(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001 - the hot path names no arguments
        """One more call, that ended now."""
        ...

    def advance(self, now: float) -> None:
        """Forget what is too old by now."""
        ...


class Bucket:
    """One second's worth."""

    __slots__ = ("calls", "failures", "slow")

    def __init__(self) -> None:
        self.calls = self.failures = self.slow = 0


class TimeWindow:
    """The last `seconds` seconds."""

    __slots__ = ("_buckets", "_current", "_past", "_second_ends", "bad", "failures", "second", "slow")

    def __init__(self, seconds: int, now: float) -> None:
        self._buckets = [Bucket() for _ in range(seconds)]
        self._past = self.failures = self.slow = 0
        self.bad = False
        self._enter(floor(now + HALF_MICROSECOND))

    def record(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001 - the hot path names no arguments
        """One more call, that ended now."""
        if now >= self._second_ends:
            self.advance(now)
        bucket = self._current
        bucket.calls += 1
        if failed or slow:
            self.bad = True
            self.failures += failed
            bucket.failures += failed
            self.slow += slow
            bucket.slow += slow

    @property
    def calls(self) -> int:
        """How many calls it holds."""
        return self._past + self._current.calls

    def advance(self, now: float) -> None:
        """Forget the seconds that have left the window. A clock that went back stays in the newest second."""
        second, size = floor(now + HALF_MICROSECOND), len(self._buckets)
        if second <= self.second:
            return
        for passed in range(self.second + 1, min(second, self.second + size) + 1):  # after long idling: each once
            old = self._buckets[passed % size]
            self.failures -= old.failures
            self.slow -= old.slow
            self._buckets[passed % size] = Bucket()
        self.bad = self.failures > 0 or self.slow > 0
        self._enter(second)

    def _enter(self, second: int) -> None:
        self._past = sum(bucket.calls for bucket in self._buckets)  # the newest is empty yet
        self.second = second  # the newest, as a whole number of the clock's
        self._second_ends = second + 1 - HALF_MICROSECOND
        self._current = self._buckets[second % len(self._buckets)]


class CountWindow:
    """The last `size` calls: one byte each, bit 0 failed, bit 1 slow."""

    __slots__ = ("_next", "_ring", "bad", "calls", "failures", "slow")

    def __init__(self, size: int) -> None:
        self._ring = bytearray(size)
        self._next = 0
        self.calls = self.failures = self.slow = 0
        self.bad = False

    @property
    def size(self) -> int:
        """How many calls it holds when full."""
        return len(self._ring)

    @property
    def oldest(self) -> int:
        """The verdict that the next one takes the place of: bit 0 failed, bit 1 slow."""
        return self._ring[self._next]

    def record(self, now: float, failed: bool, slow: bool) -> None:  # noqa: ARG002, FBT001 - as Window says
        """One more call, that ended now."""
        ring, at = self._ring, self._next
        old, new = ring[at], failed + 2 * slow
        if self.calls < len(ring):
            self.calls += 1
        if old != new:
            self.failures += (new & 1) - (old & 1)
            self.slow += (new >> 1) - (old >> 1)
            ring[at] = new
            self.bad = self.failures > 0 or self.slow > 0
        self._next = at + 1 if at + 1 < len(ring) else 0

    def advance(self, now: float) -> None:
        """Calls do not age here."""
