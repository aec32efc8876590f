"""What moves, second by second: taken from the numbers that the calls count anyway, so that a call pays nothing for it.

A task looks once a second at the running totals of each operation and keeps what it saw for a while. All that a window
shows is the difference of two looks: rates, and percentiles from buckets. Five times a second it looks at how many are
in each pool, and notes how late it came itself: the lag of the event loop.

Memory is bounded: so many looks, so many bounds, whatever the traffic.
"""

from __future__ import annotations

from asyncio import Task, get_running_loop, sleep, wait
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import Context
from itertools import accumulate
from operator import add, attrgetter, itemgetter, sub
from time import monotonic, time
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.context import Clock, clock_of
from gateway.counts import BOUNDS, ENDS, Histogram, LatencySnapshot
from gateway.operation import Operation
from gateway.slices import sliced
from gateway.upstream import Upstream

TICK = 0.2
"""Seconds between two looks at the pools and at the lag."""
TICKS_A_SECOND = round(1 / TICK)
WINDOW = 10
"""Seconds that a window looks back over, as a circuit's does."""
CALM = 5
"""The stride while nobody looks."""
MANY = 100
"""Upstreams above which those that are well are looked at as seldom as if nobody looked: so many rows of figures that
are those of ten seconds anyway are nobody's to read every second."""
SPARK = 60
"""Seconds that a sparkline looks back over."""
GENERATION = 300
"""Seconds after which advice begins to forget: it goes by the present generation and the one before."""
SLICE = 20
"""Upstreams that are looked at in one turn of the loop, which costs as much as to look at a few of them."""

TALLIED = ("asked", "attempts", "retries", "overran", "refreshed", "refresh_failed")
TAKEN = attrgetter(*TALLIED)
MOVING = (*TALLIED, *map(str, ENDS))
"""What is taken of each operation, in this order."""
ASKED, ATTEMPTS, RETRIES, REFRESHED = 0, 1, 2, 4
SPARED = itemgetter(*map(MOVING.index, ("cached", "coalesced")))
DEGRADED = itemgetter(*map(MOVING.index, ("last_good", "static", "handler", "alternate")))
FAILED = itemgetter(*map(MOVING.index, ("failed", "unknown", "rejected")))
NOTHING = (0,) * len(MOVING)
LOADS: list[int] = [*range(65), *(round(64 * 1.1**i) for i in range(1, 100))]
"""How many are in a pool: exactly up to 64, then in steps of 10 %, up to 800,000."""


class Buckets(Struct, frozen=True, gc=False):
    """A histogram as it was at some instant, or what came to it between two of them.

    `counts` begin at its place `first` and end where it does: what one operation takes differs by a few steps, and all
    other places stay empty. Hundreds of these are made each second, and kept for ten: numbers in tuples, and nothing
    that the garbage collector would look through again and again.
    """

    first: int
    counts: tuple[int, ...]
    sum: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram, before: Buckets | None = None) -> Buckets:
        """It as it is now; of one that has not moved since `before` there is only one copy."""
        # A snapshot would work out percentiles, and most of these nobody looks at.
        counts, total, highest = histogram._buckets, histogram._sum, histogram._max  # noqa: SLF001
        if before is NONE and not highest and not counts[0]:
            return NONE  # most upstreams, of the waits for their pools
        first = len(counts) if before is None else before.first
        if any(counts[:first]):
            first = next(place for place, number in enumerate(counts) if number)
        elif first >= len(counts):
            return NONE
        kept = tuple(counts[first : bisect_left(histogram._bounds, highest) + 1])  # noqa: SLF001
        if before is not None and total == before.sum and kept == before.counts:
            return before
        return cls(first, kept, total, highest)

    def since(self, before: Buckets) -> Buckets:
        """What came to it since then. Its `max` may be too high: by the step of a bucket, no more than that."""
        if not before.counts:
            return self
        if before is self or before.counts == self.counts:
            return NONE
        counts = tuple(map(sub, self.counts, before.counts_from(self.first, len(self.counts))))
        return Buckets(self.first, counts, self.sum - before.sum, self.max)

    @classmethod
    def together(cls, all_of_them: Iterable[Buckets]) -> Buckets:
        """All of them as one."""
        each = [one for one in all_of_them if one.counts]
        if len(each) <= 1:
            return each[0] if each else NONE
        first = min([one.first for one in each])
        size = max([one.first + len(one.counts) for one in each]) - first
        counts = added([one.counts_from(first, size) for one in each])
        return cls(first, counts, sum([one.sum for one in each]), max([one.max for one in each]))

    def counts_from(self, first: int, size: int) -> tuple[int, ...]:
        """As many counts from an earlier place on."""
        before = self.first - first
        after = size - before - len(self.counts)
        return (0,) * before + self.counts + (0,) * after if before or after else self.counts

    def snapshot(self) -> LatencySnapshot:
        """The figures."""
        heights = list(accumulate(self.counts))
        count = heights[-1] if heights else 0
        if not count:
            return IDLE
        return LatencySnapshot(
            count=count,
            mean=self.sum / count,
            p50=self._at(heights, 0.5),
            p90=self._at(heights, 0.9),
            p99=self._at(heights, 0.99),
            max=self._at(heights, 1.0),
        )

    @property
    def total(self) -> int:
        """How many."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """What this share of them does not exceed, in seconds; at most the step of a bucket too high. 0.0 of none."""
        heights = list(accumulate(self.counts))
        return self._at(heights, share) if heights and heights[-1] else 0.0

    def bars(self) -> Iterator[tuple[float, int]]:
        """Each bound that something was below, and how much; seconds. The last has no end, but its `max`."""
        bounds = [*BOUNDS[self.first :], self.max]
        return ((bound, number) for bound, number in zip(bounds, self.counts, strict=False) if number)

    def _at(self, heights: Sequence[int], share: float) -> float:
        place = self.first + bisect_left(heights, share * heights[-1])
        return min(BOUNDS[place], self.max) if place < len(BOUNDS) else self.max


NONE = Buckets(len(BOUNDS) + 1, (), 0.0, 0.0)
IDLE = LatencySnapshot(count=0, mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)


class Loads:
    """How often how many were in a pool."""

    __slots__ = ("counts", "looks", "max")

    def __init__(self) -> None:
        self.counts = [0] * (len(LOADS) + 1)
        self.looks = self.max = 0

    def record(self, load: int) -> None:
        """One look."""
        self.counts[load if load < 65 else bisect_left(LOADS, load)] += 1  # noqa: PLR2004 - as in LOADS
        self.looks += 1
        if load > self.max:
            self.max = load

    def rest(self, looks: int) -> None:
        """So many looks that saw nobody."""
        self.counts[0] += looks
        self.looks += looks

    def plus(self, other: Loads) -> Loads:
        """Both together."""
        both = Loads()
        both.counts = list(map(add, self.counts, other.counts))
        both.looks, both.max = self.looks + other.looks, max(self.max, other.max)
        return both

    def quantile(self, share: float) -> int:
        """What this share of the looks does not exceed."""
        seen = 0
        for bound, number in zip(LOADS, self.counts, strict=False):
            seen += number
            if number and seen >= share * self.looks:
                return min(self.max, bound)
        return self.max

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each load that was seen, and how often."""
        return ((bound, number) for bound, number in zip((*LOADS, self.max), self.counts, strict=True) if number)


class Mark(Struct, frozen=True, gc=False):
    """The totals of an operation at some instant: `MOVING`, and the service times of its successful tries."""

    counts: tuple[int, ...]
    latency: Buckets

    @classmethod
    def of(cls, operation: Operation[..., object], before: Mark) -> Mark:
        """As they are now; of one that has not moved since `before` there is only one."""
        tally, latency = operation.tally, operation.latency
        if before is BEGINNING and not tally.asked:
            return before  # it was never asked, as most of the methods that each HTTP upstream has
        counts = TAKEN(tally) + tuple(tally.ended.values())
        if counts == before.counts and latency._sum == before.latency.sum:  # noqa: SLF001 - see Buckets
            return before
        return cls(counts, Buckets.of(latency, before.latency))


BEGINNING = Mark(NOTHING, NONE)


class Look(Struct, eq=False, gc=False):
    """An upstream's totals at some instant: of each operation, of all, and the waits of the calls that queued."""

    at: float
    operations: dict[str, Mark]
    counts: tuple[int, ...]
    waits: Buckets
    together: Buckets | None = None

    def again(self, at: float, waits: Buckets) -> Look:
        """It as of later: no operation has moved since."""
        return Look(at, self.operations, self.counts, waits, self.together)

    @property
    def latency(self) -> Buckets:
        """The service times of all operations: put together when somebody looks at them."""
        if self.together is None:
            self.together = Buckets.together([mark.latency for mark in self.operations.values()])
        return self.together


class Window(NamedTuple):
    """What happened in so many seconds; `moved` has the numbers of `MOVING`."""

    seconds: float
    moved: tuple[int, ...]
    latency: Buckets
    waits: Buckets

    @property
    def counts(self) -> dict[str, int]:
        """Each by its name."""
        return dict(zip(MOVING, self.moved, strict=True))

    @property
    def rates(self) -> dict[str, float]:
        """Each of them for a second."""
        seconds = self.seconds
        return {name: count and count / seconds for name, count in zip(MOVING, self.moved, strict=True)}


class Span:
    """What advice goes by: one generation of it, from some instant on."""

    __slots__ = ("began_at", "loads", "mark", "queued")

    def __init__(self, look: Look) -> None:
        self.began_at = look.at
        self.mark = look
        self.loads = Loads()
        self.queued = 0  # looks that saw somebody wait


class Track:
    """What is kept of one upstream."""

    def __init__(self, look: Look, second: int = 0) -> None:
        self.looks: deque[Look] = deque([look], WINDOW + 1)
        self.second = second  # the one of the sampler that was taken last
        self.asked, self.degraded, self.failed = (deque([0.0] * SPARK, SPARK) for _ in range(3))  # a second each
        self.still_for = SPARK  # seconds in which no spark moved
        self.arrivals: deque[float] = deque(maxlen=2 * GENERATION)
        self.peaks: deque[int] = deque([0], WINDOW)  # the most that were in the pool, second by second
        self.busy = 0  # looks at the pool since then that saw somebody in it
        self.spans: deque[Span] = deque([Span(look)], 2)

    @property
    def now(self) -> Look:
        """The last look."""
        return self.looks[-1]

    @property
    def ends(self) -> tuple[Look, Look]:
        """The looks that the window of now lies between, the later one first."""
        return self.looks[-1], self.looks[0]

    @property
    def moved(self) -> bool:
        """Whether anything was counted in the last second."""
        return len(self.looks) == 1 or self.looks[-1].operations is not self.looks[-2].operations

    @property
    def began(self) -> Look:
        """Where what advice goes by begins."""
        return self.spans[0].mark

    @property
    def loads(self) -> Loads:
        """How many were in the pool, of late."""
        first, *rest = (span.loads for span in self.spans)
        return first.plus(rest[0]) if rest else first

    @property
    def is_flat(self) -> bool:
        """Whether its sparklines show nothing but that nothing was asked."""
        return self.still_for >= SPARK

    def tick(self, in_use: int, waiting: bool) -> None:  # noqa: FBT001 - five times a second for each upstream
        """A look at the pool that saw somebody in it; those that saw nobody are told of all at once."""
        span = self.spans[-1]
        self.busy += 1
        span.loads.record(in_use)
        span.queued += waiting
        if in_use > self.peaks[-1]:
            self.peaks[-1] = in_use

    def take(self, look: Look, *, whole: int = 1) -> None:
        """A look at the totals, so many whole seconds after the last one: a sparkline shows their average then."""
        before = self.looks[-1]
        seconds = look.at - before.at
        if seconds <= 0.0:
            return
        self.looks.append(look)
        while self.looks[1].at <= look.at - WINDOW + TICK:
            self.looks.popleft()
        came = NOTHING if look.counts == before.counts else tuple(map(sub, look.counts, before.counts))
        asked, degraded, failed = came[ASKED], sum(DEGRADED(came)), sum(FAILED(came))
        self.asked.extend((asked and round(asked / seconds, 2),) * whole)
        self.degraded.extend((degraded and round(degraded / seconds, 2),) * whole)
        self.failed.extend((failed and round(failed / seconds, 2),) * whole)
        self.still_for = 0 if asked or degraded or failed else self.still_for + whole
        # A place in the pool was for each call that memory did not answer, nor an identical one in flight, for each
        # retry, and each refresh.
        wanted = asked + came[RETRIES] + came[REFRESHED] - sum(SPARED(came))
        self.arrivals.extend((max(0, wanted) / seconds,) * whole)
        self.spans[-1].loads.rest(max(0, TICKS_A_SECOND * whole - self.busy))
        self.busy = 0
        self.peaks.extend((0,) * whole)
        if look.at - self.spans[-1].began_at >= GENERATION:
            self.spans.append(Span(look))

    def between(self, after: Look, before: Look, operation: str | None = None) -> Window:
        """What happened between two looks, to all operations or to one."""
        new, old = (
            (after, before)
            if operation is None
            else (after.operations.get(operation, BEGINNING), before.operations.get(operation, BEGINNING))
        )
        counts = NOTHING if new.counts == old.counts else tuple(map(sub, new.counts, old.counts))
        latency, waits = new.latency.since(old.latency), after.waits.since(before.waits)
        return Window(max(after.at - before.at, 1e-9), counts, latency, waits)

    def window(self, operation: str | None = None) -> Window:
        """What happened in the last `WINDOW` seconds."""
        return self.between(*self.ends, operation)


class Upstreams(Protocol):
    """What is looked at: a gateway."""

    def __iter__(self) -> Iterator[Upstream]:
        """Its upstreams."""
        ...


class Sampler:
    """Looks at a gateway from `start` to `close`. `wall` tells the time of day, in seconds since 1970.

    `each` hears of every second that was taken, when it was; `of_each` of every upstream whose totals were.
    `stride`: seconds from one look at the totals of an upstream that is well to the next; a part of them is looked at
    in each second. Who looks at them where it is more than one calls `catch_up` first. `wanted` are the names of those
    that are looked at in the next second, whosever turn it is: something went wrong there, callers wait, or somebody
    has one open.
    """

    NAME = "gateway: sampler"

    def __init__(self, gate: Upstreams, *, wall: Callable[[], float] = time) -> None:
        self.gate = gate
        self.wall = wall
        self.tracks: dict[str, Track] = {}
        self.lags: deque[float] = deque([0.0], SPARK)  # the worst of each second
        self.stride = 1
        self.wanted: set[str] = set()
        self.seconds = 0  # that were taken
        self.each: list[Callable[[], object]] = []
        self.of_each: list[Callable[[Upstream], object]] = []
        self.clock: Clock = monotonic
        self.began_at = 0.0
        self._task: Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        loop = get_running_loop()
        self.clock = clock_of(loop)
        self.began_at = self.clock()
        for upstream in self.gate:
            self.track(upstream)
        self._task = loop.create_task(self._run(), name=self.NAME, context=Context())

    async def close(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await wait([task])  # not the task itself: a cancel of who waits would be taken for its own

    @property
    def lag(self) -> tuple[float, float]:
        """How late a timer of this loop came in the last second, and in the last minute, at worst; seconds."""
        late = self.lags[-2] if len(self.lags) > 1 else self.lags[-1]
        return max(late, self.lags[-1]), max(self.lags)

    def now(self) -> float:
        """The instant it is, by the clock of the loop that it looks on."""
        return self.clock()

    def wall_of(self, at: float) -> float:
        """An instant of the gateway's clock as time of day."""
        return self.wall() - (self.clock() - at)

    def track(self, upstream: Upstream) -> Track:
        """What is kept of an upstream; of one that is new, from now on."""
        track = self.tracks.get(upstream.name)
        if track is None:
            track = self.tracks[upstream.name] = Track(look_of(upstream, self.clock()), self.seconds)
        return track

    def look_at(self, upstream: Upstream, second: int) -> None:
        """Take its totals up to this second, if that was not done."""
        track = self.track(upstream)
        if second > track.second:
            track.take(look_of(upstream, self.clock(), track.now), whole=second - track.second)
            track.second = second
            if track.failed[-1] or track.degraded[-1]:
                self.wanted.add(upstream.name)

    async def _run(self) -> None:
        due = self.clock() + TICK
        ticks = 0
        while True:
            await sleep(max(0.0, due - self.clock()))
            now = self.clock()
            self.tick(now - due)
            ticks += 1
            if ticks % TICKS_A_SECOND == 0:
                await self.take_second()
                self.lags.append(0.0)
                now = self.clock()  # its pauses are no lag
            due = due + TICK if due + TICK > now else now + TICK  # what was missed is not made up for

    def tick(self, late: float) -> None:
        """Look at the pools."""
        self.lags[-1] = max(self.lags[-1], late)
        for upstream in self.gate:
            bulkhead = upstream.bulkhead
            in_use = bulkhead.in_use
            if in_use:
                queued = in_use >= bulkhead.policy.limit and bulkhead.waiting > 0
                self.track(upstream).tick(in_use, queued)
                if queued:
                    self.wanted.add(upstream.name)

    async def take_second(self) -> None:
        """Look at the totals, a few in each turn of the loop: of those whose turn it is, are wanted, or are ill."""
        second, stride, known = self.seconds + 1, self.stride, self.tracks
        wanted = self.wanted.copy()
        self.wanted.clear()
        due = [
            upstream
            for place, upstream in enumerate(self.gate)
            if (place + second) % stride == 0
            or upstream.name in wanted
            or upstream.name not in known
            or not upstream.breaker.at_rest
        ]
        async for upstream in sliced(due, size=SLICE):
            self.look_at(upstream, second)
            for hears in self.of_each:
                hears(upstream)
        self.seconds = second
        for listener in self.each:
            listener()

    async def catch_up(self) -> None:
        """Look at the totals of those that it was not the turn of in the last second."""
        behind = [upstream for upstream in self.gate if self.track(upstream).second < self.seconds]
        async for upstream in sliced(behind, size=SLICE):
            self.look_at(upstream, self.seconds)


def look_of(upstream: Upstream, at: float, before: Look | None = None) -> Look:
    """The totals of an upstream as they are now. What has not moved since `before` is the same object."""
    known = {} if before is None else before.operations
    operations = known
    for operation in upstream:
        old = known.get(operation.name, BEGINNING)
        mark = Mark.of(operation, old)
        if mark is not old:
            if operations is known:
                operations = known.copy()
            operations[operation.name] = mark
    waits = Buckets.of(upstream.waits, None if before is None else before.waits)
    if before is not None and operations is known:
        return before.again(at, waits)
    return Look(at, operations, added([mark.counts for mark in operations.values()]), waits)


def added(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The sum of rows of numbers that are as long as each other, column by column; of no row, `NOTHING`."""
    first, *others = rows or (NOTHING,)
    total: Iterable[int] = first
    for row in others:
        total = map(add, total, row)  # all of it in one pass, at the end
    return tuple(total)
