"""The wall clock, for what survives a restart or leaves the process, protected against its jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

SLEW = 1.0
"""Seconds the clock may be corrected by at once without this being a jump: NTP moves it by less."""


class WallClock:
    """Seconds since 1970 that never make a remembered answer look younger than it is.

    What the wall clock is ahead of the monotonic one is trusted as it was first seen, and followed as it drifts. Set
    forward, the clock is believed: answers look older, which is the safe side, and a correction brings all back. Set
    back, it is not: time goes on as it did.
    """

    __slots__ = ("_monotonic", "_trusted", "_wall")

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._trusted = wall() - monotonic()

    def now(self) -> float:
        """The time, in seconds since 1970."""
        measured = self._wall()
        passed = self._monotonic()
        ahead = measured - passed - self._trusted
        if -SLEW <= ahead <= SLEW:
            self._trusted = measured - passed
            return measured
        return measured if ahead > 0.0 else passed + self._trusted


WALL = WallClock()
