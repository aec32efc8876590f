"""The numbers of an operation: how its calls ended, and how long the upstream took.

Every number is counted where it happens, none is computed from the others; so that they add up is a fact, not a
definition: asked = live + coalesced + cached + each tier + each error + cancelled + in flight.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, fields

from fallbacks.answer import Source
from gateway.outcome import Outcome

BOUNDS = [1e-6 * 2 ** (i / 4) for i in range(4 * 30)]  # 1 us to 18 minutes, four steps to the octave
AGE_BOUNDS = [1e-3 * 2 ** (i / 2) for i in range(2 * 32)]  # 1 ms to 50 days
ENDS = [*Source, Outcome.REFUSED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.REJECTED, Outcome.CANCELLED]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySnapshot:
    """Seconds. The percentiles come from buckets that grow by 19 %, and are at most that much too high."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How the calls ended, one name for every way, and what it took.

    `attempts` are tries that were sent, `retries` those after a first; `overran` are tries that ended later than they
    were told to; `fallback_failed` are tiers that raised, came too late, or were full. `refreshed` are answers that
    were asked for anew in the background, `refresh_failed` those of them that came to nothing: no caller waited for
    them, so they are in `attempts` and in nothing else.
    """

    asked: int = 0
    live: int = 0
    coalesced: int = 0
    cached: int = 0
    last_good: int = 0
    static: int = 0
    handler: int = 0
    alternate: int = 0
    refused: int = 0
    failed: int = 0
    unknown: int = 0
    rejected: int = 0
    cancelled: int = 0
    in_flight: int = 0
    attempts: int = 0
    retries: int = 0
    overran: int = 0
    fallback_failed: int = 0
    refreshed: int = 0
    refresh_failed: int = 0

    @property
    def adds_up(self) -> bool:
        """Promise 10: every call that was asked ended in exactly one way, or is in flight."""
        ended: int = sum(getattr(self, end) for end in ENDS)
        return self.asked == self.in_flight + ended

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """The sum, field by field."""
        each = list(counts)
        return cls(**{field.name: sum(getattr(one, field.name) for one in each) for field in fields(cls)})


class Tally:
    """Counts that still move."""

    __slots__ = ("asked", "attempts", "ended", "overran", "refresh_failed", "refreshed", "retries")

    def __init__(self) -> None:
        self.asked = self.attempts = self.retries = self.overran = self.refreshed = self.refresh_failed = 0
        self.ended: dict[str, int] = dict.fromkeys(ENDS, 0)  # filled in advance: counting is then one dict operation

    def snapshot(self, *, in_flight: int, fallback_failed: int) -> Counts:
        """The counts as they are now."""
        return Counts(
            asked=self.asked,
            in_flight=in_flight,
            attempts=self.attempts,
            retries=self.retries,
            overran=self.overran,
            fallback_failed=fallback_failed,
            refreshed=self.refreshed,
            refresh_failed=self.refresh_failed,
            **{str(end): count for end, count in self.ended.items()},
        )


class Histogram:
    """Durations in buckets; bounded memory, whatever the traffic."""

    __slots__ = ("_bounds", "_buckets", "_max", "_sum")

    def __init__(self, bounds: list[float] = BOUNDS) -> None:
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._sum = self._max = 0.0

    def record(self, seconds: float) -> None:
        """One more."""
        self._buckets[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds
        if seconds > self._max:
            self._max = seconds

    def add(self, other: Histogram) -> None:
        """All of another's."""
        self._buckets = [mine + theirs for mine, theirs in zip(self._buckets, other._buckets, strict=True)]
        self._sum += other._sum
        self._max = max(self._max, other._max)

    def snapshot(self) -> LatencySnapshot:
        """The figures as they are now."""
        count = sum(self._buckets)
        return LatencySnapshot(
            count=count,
            mean=self._sum / count if count else 0.0,
            p50=self._quantile(0.5, count),
            p90=self._quantile(0.9, count),
            p99=self._quantile(0.99, count),
            max=self._max,
        )

    def _quantile(self, share: float, count: int) -> float:
        if not count:
            return 0.0
        seen = 0
        for bound, calls in zip(self._bounds, self._buckets, strict=False):
            seen += calls
            if seen >= share * count:
                return min(bound, self._max)
        return self._max
