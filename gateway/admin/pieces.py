"""What is put down of an upstream, piece by piece, as JSON; a piece is kept while nothing of it moves.

Most operations rest most of the time, and who looks at 200 upstreams looks at them every second. So a piece is kept
with all that it was made of, and made anew when any of that is another: it can be no older than what it shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import accumulate
from math import inf, isinf
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import Raw
from msgspec.json import Encoder

from gateway.admin.sampler import BEGINNING, MOVING, NONE, NOTHING, Buckets, Look, Mark, Track, Window
from gateway.admin.stories import short
from gateway.counts import BOUNDS, ENDS, Counts, LatencySnapshot, Tally
from gateway.operation import Operation

ENCODER = Encoder(enc_hook=str)
TALLIED = [one.name for one in fields(Counts) if one.name in Tally.__slots__]
TALLIES = attrgetter(*TALLIED)
COUNTS = [*TALLIED, *map(str, ENDS), "in_flight", "fallback_failed"]
STILL: dict[str, float] = dict.fromkeys(MOVING, 0)
BOUNDED = [*(round(bound, 6) for bound in BOUNDS), inf]


class Piece(NamedTuple):
    """What was put down of an operation, and all that it was made of."""

    marks: tuple[Mark, Mark]
    seconds: float
    numbers: tuple[int, ...]
    memory: object
    ages: Buckets | None
    window: Window
    remembered: tuple[Any, Any]
    adds_up: bool
    json: Raw


class Pieces:
    """What was put down of an upstream the last time."""

    __slots__ = ("_operations", "_window", "_window_of", "json", "made_of")

    def __init__(self) -> None:
        self.made_of: object = None
        self.json = Raw()
        self._operations: dict[str, Piece] = {}
        self._window_of: object = None
        self._window = Raw()

    def operation(self, operation: Operation[..., Any], after: Look, before: Look, track: Track) -> Piece:
        """One operation as it is now, and as it moved between two looks.

        `memory` and `ages` are those of its remembered answers, None where it remembers none. Its window has no
        `waits`: calls queue for the upstream's pool, and are not told apart there. What a snapshot of the operation
        would have beside this is worked out only where it is shown.
        """
        name = operation.name
        kept = self._operations.get(name)
        marks = after.operations.get(name, BEGINNING), before.operations.get(name, BEGINNING)
        seconds, numbers = round(after.at - before.at, 1), numbers_of(operation)
        memories = operation.memories
        memory = memories[0].snapshot() if memories else None
        ages = Buckets.of(operation.ages, None if kept is None else kept.ages) if memories else None
        made_of = (marks, seconds, numbers, memory, ages)
        if kept is None:
            window, (remembered, its_ages) = track.between(after, before, name), (plain(memory), ages_of(operation))
        elif kept[:5] == made_of:
            return kept
        else:
            window = kept.window if (kept.marks, kept.seconds) == made_of[:2] else track.between(after, before, name)
            remembered, its_ages = kept.remembered
            if kept.memory != memory:
                remembered = plain(memory)
            if kept.ages is not ages:
                its_ages = ages_of(operation)
        adds_up = add_up(numbers)
        shown = {
            "name": name,
            "total": dict(zip(COUNTS, numbers, strict=True)),
            "window": window_of(window),
            "memory": remembered,
            "ages": its_ages,
            "adds_up": adds_up,
        }
        json = Raw(ENCODER.encode(shown))
        piece = self._operations[name] = Piece(*made_of, window, (remembered, its_ages), adds_up, json)
        return piece

    def window(self, after: Look, before: Look, track: Track) -> Raw:
        """The window of them all, and of the waits for the pool."""
        window = track.between(after, before)
        made_of = (round(window.seconds, 1), *window[1:])
        if made_of != self._window_of:
            self._window_of = made_of
            self._window = Raw(ENCODER.encode({**window_of(window), "waits": figures_of(window.waits)}))
        return self._window


def numbers_of(operation: Operation[..., Any]) -> tuple[int, ...]:
    """`COUNTS` of an operation, as they are now."""
    tally = operation.tally
    return (
        *TALLIES(tally),
        *tally.ended.values(),
        len(operation.calls),
        operation._fallback.failed,  # noqa: SLF001 - a snapshot would make much that nobody looks at
    )


def ages_of(operation: Operation[..., Any]) -> dict[str, Any] | None:
    """How old its remembered answers were; None where it remembers none."""
    return figures(operation.ages.snapshot()) if operation.memories else None


def add_up(numbers: Sequence[int]) -> bool:
    """Promise 10, of `COUNTS`: every call that was asked ended in exactly one way, or is in flight."""
    ended_and_in_flight = numbers[len(TALLIED) : -1]
    return numbers[0] == sum(ended_and_in_flight)


def window_of(window: Window) -> dict[str, Any]:
    """What happened of late. Rounded to what can be seen: there are many of them."""
    seconds = window.seconds
    rates = STILL
    if window.moved is not NOTHING:
        rates = STILL | {
            name: round(count / seconds, 3) for name, count in zip(MOVING, window.moved, strict=True) if count
        }
    return {"seconds": round(seconds, 3), "rates": rates, "latency": figures_of(window.latency)}


def figures_of(buckets: Buckets) -> dict[str, Any]:
    """The same of buckets, without a snapshot between: there are four of these for most upstreams, every second."""
    if buckets is NONE:
        return NO_FIGURES
    heights = [*accumulate(buckets.counts)]
    count = heights[-1] if heights else 0
    if not count:
        return NO_FIGURES
    highest, first = round(buckets.max, 6), buckets.first
    p50, p90, p99, at_most = [BOUNDED[first + bisect_left(heights, share * count)] for share in (0.5, 0.9, 0.99, 1.0)]
    return {
        "count": count,
        "mean": round(buckets.sum / count, 6),
        "p50": min(p50, highest),
        "p90": min(p90, highest),
        "p99": min(p99, highest),
        "max": min(at_most, highest),
    }


def figures(shot: LatencySnapshot) -> dict[str, Any]:
    """Durations."""
    if not shot.count:
        return NO_FIGURES
    return {
        "count": shot.count,
        "mean": round(shot.mean, 6),
        "p50": round(shot.p50, 6),
        "p90": round(shot.p90, 6),
        "p99": round(shot.p99, 6),
        "max": round(shot.max, 6),
    }


NO_FIGURES = {"count": 0, "mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}


def plain(snapshot: Any) -> Any:
    """A frozen value as dicts, all the way down."""
    kind: Any = type(snapshot)
    names = names_of(kind)
    return {name: plain(getattr(snapshot, name)) for name in names} if names else number(snapshot)


@cache
def names_of(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass; none of anything else."""
    return tuple(one.name for one in fields(kind)) if is_dataclass(kind) else ()


def number(value: object) -> Any:
    """A number as JSON can say it; what is neither number nor text is told in words."""
    if isinstance(value, float):
        if isinf(value):
            return "inf" if value > 0 else "-inf"
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    return value if value is None or isinstance(value, bool | int | str) else short(str(value))
