"""What happens in the scenario, and when: written for 60 s, stretched to any other length, in whole seconds.

    0         10             20         28           34         42                52         60
    healthy   ratings hang   recovery   info fails   recovery   ratings flooded   recovery

The load is the same whoever answers it: so many pages a second, each sent at its own instant within its slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

import msgspec

WRITTEN_FOR = 60
SHORTEST = 12
"""Seconds. Below it a circuit has no time to open, or to close again."""
RATE = 110
"""Pages a second."""
USERS = 50
NEWCOMER_EVERY = 22
"""So many pages for one that somebody asks for whom nobody knows yet: 5 a second."""
DEADLINE = 1.0
"""Seconds that a page may take, from the instant at which it was to be asked for."""
PATIENCE = 5.0
"""Seconds after which a user leaves. Until then we look how long it would have taken."""
SETTLE = 0.2
"""Seconds from the beginning of a phase to its fault: what was asked for before it has its answer."""
OPEN_FOR = 5.0
WINDOW_FOR = 10.0

HEALTHY, RECOVERY = "healthy", "recovery"
RATINGS_HANG, INFO_FAILS, FLOODED = "ratings hang", "info fails", "ratings flooded"
BEGINS = {0: HEALTHY, 10: RATINGS_HANG, 20: RECOVERY, 28: INFO_FAILS, 34: RECOVERY, 42: FLOODED, 52: RECOVERY}
FAULTS = {RATINGS_HANG: ("ratings", "hang"), INFO_FAILS: ("info", "fail")}
"""Which service is switched to what. The flood is no switch: it is load from elsewhere."""


class Phase(msgspec.Struct, frozen=True):
    """A part of the scenario, from second `begins` to second `ends`."""

    name: str
    begins: int
    ends: int

    @property
    def calm(self) -> bool:
        """Nothing is wrong with anybody, any more or yet."""
        return self.name in {HEALTHY, RECOVERY}


class Plan(msgspec.Struct, frozen=True):
    """The whole of it."""

    seconds: int = WRITTEN_FOR

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In order, without a gap."""
        begins = [*(round(begin * self._stretch) for begin in BEGINS), self.seconds]
        return tuple(Phase(name, *pair) for name, pair in zip(BEGINS.values(), pairwise(begins), strict=True))

    def phase(self, name: str) -> Phase:
        """The first one of this name."""
        return next(phase for phase in self.phases if phase.name == name)

    def at(self, second: float) -> Phase:
        """The one that a second lies in."""
        return next(phase for phase in reversed(self.phases) if phase.begins <= second)

    @property
    def open_for(self) -> float:
        """How long a circuit stays open. In a shorter scenario the illnesses are shorter, and so is this."""
        return OPEN_FOR * min(1.0, self._stretch)

    @property
    def window_for(self) -> float:
        """What a circuit judges by, in whole seconds."""
        return max(1.0, WINDOW_FOR * min(1.0, self._stretch) // 1)

    @property
    def _stretch(self) -> float:
        return self.seconds / WRITTEN_FOR


class Arrival(msgspec.Struct, frozen=True):
    """A user is to ask for a page, this many seconds after the start."""

    at: float
    user: str


def arrivals(seconds: int, *, rate: int = RATE) -> Iterator[Arrival]:
    """All of them, the same in every run. None waits for the answer to another: the load is open."""
    random = Random(seconds)  # noqa: S311 - no secret
    for number in range(seconds * rate):
        user = f"new-{number}" if number % NEWCOMER_EVERY == NEWCOMER_EVERY - 1 else f"user-{random.randrange(USERS)}"
        yield Arrival((number + random.random()) / rate, user)
