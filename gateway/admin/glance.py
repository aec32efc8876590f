"""What the overview shows of each upstream, and of those that moved: what 200 of them cost somebody who looks.

The page shows all upstreams at a glance, and the details of one. So it is told of each what a row shows, all of it
once, and from then on what is another since the message before. What rests is not told again: its sparkline moves on
in the browser, up to the second that all have been looked at in. The details of the one that is open come beside it.

    glance = Glance(state)
    news = await glance.compose()     # once a second, when the sampler has taken it
    everything = glance.whole()       # for whoever has not got the message before
    glance.leave()
"""

from __future__ import annotations

from asyncio import Event
from operator import sub
from typing import Any, NamedTuple

from msgspec import Raw

from gateway.admin.pieces import ENCODER, figures_of, number
from gateway.admin.sampler import MOVING, SLICE, SPARK, Look, Track
from gateway.admin.state import CIRCUITS, Document, State, left
from gateway.slices import sliced
from gateway.upstream import Upstream

NO_OWN: list[str] = []


class Shown(NamedTuple):
    """A row as JSON, save its sparklines, and all that it was made of; `head` is what of it seldom moves."""

    made_of: tuple[object, ...]
    status: tuple[object, ...]
    head: bytes
    row: bytes


class Glance:
    """Rows of all upstreams, kept from the first `compose` until `leave`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sampler = state.sampler
        self._shown: dict[str, Shown] = {}
        self._moved: set[str] = set()  # since the last message
        self._taken = Event()
        self._listens = False
        self._amiss: Exception | None = None
        self._number = 0  # of the last message
        self._second = 0  # the last one of the sampler that it told of
        self._line = 0  # of the log, that was told last

    def leave(self) -> None:
        """Nobody looks any more."""
        if self._listens:
            self._listens = False
            self._sampler.of_each.remove(self._look_at)
            self._sampler.each.remove(self._taken.set)
            self._shown.clear()

    async def compose(self) -> bytes:
        """What is another since the message before, when the sampler has taken another second; at first, at once."""
        if self._listens:
            await self._taken.wait()
        else:
            await self._begin()
        self._taken.clear()
        amiss, self._amiss = self._amiss, None
        if amiss is not None:
            raise amiss
        moved, self._moved = self._moved, set()
        after, second = self._number, self._sampler.seconds
        new = second - self._second + self._sampler.stride  # more than enough: the page knows which second is which
        self._number, self._second = after + 1, second
        tracks, shown = self._sampler.tracks, self._shown
        rows = [row_with(shown[name].row, sparks_of(tracks[name], new)) for name in moved]
        lines = self._state.lines(after=self._line)
        if lines:
            self._line = lines[-1]["id"]
        return self._message(rows, lines, after=after)

    async def _begin(self) -> None:
        self._listens = True
        self._sampler.each.append(self._taken.set)
        self._sampler.of_each.append(self._look_at)
        await self._sampler.catch_up()
        async for upstream in sliced(self._state.gate, size=SLICE):
            self._look_at(upstream)

    def _look_at(self, upstream: Upstream) -> None:
        """Once a second, just after the sampler has: what both look at is at hand then."""
        try:
            if self._moves(upstream, self._sampler.track(upstream)):
                self._moved.add(upstream.name)
        except Exception as error:  # noqa: BLE001 - it is the message that cannot be composed; the sampler goes on
            self._amiss = error

    def whole(self) -> bytes:
        """All there is to see, as of the last message."""
        rows = []
        for upstream in self._state.gate:
            shown = self._shown.get(upstream.name)
            if shown is not None:  # else it is new, and in the next message
                rows.append(row_with(shown.row, sparks_of(self._sampler.track(upstream))))
        return self._message(rows, [line for line in self._state.lines() if line["id"] <= self._line])

    def opened(self, name: str) -> bytes:
        """The details of one upstream, as in the whole document; nothing of one that there is not."""
        gate = self._state.gate
        if name not in gate:
            return b""
        self._sampler.wanted.add(name)
        return b'data: {"opened":%b}\n\n' % bytes(self._state.upstream(gate[name]))

    def _message(self, rows: list[Raw], lines: list[Document], **since: int) -> bytes:
        told = {"number": self._number, **since, "second": self._second - self._sampler.stride + 1}
        around = {**told, **self._state.around(), "upstreams": rows, "events": lines}
        return b"data: %b\n\n" % ENCODER.encode(around)

    def _moves(self, upstream: Upstream, track: Track) -> bool:
        """Whether its row is another than it was; then it is put down anew."""
        pool, (after, before), status = upstream.bulkhead, track.ends, self._status(upstream)
        looks = (after.operations, before.operations, after.waits, before.waits, round(after.at - before.at, 1))
        made_of = (*looks, pool.in_use, pool.peak, pool.abandoned, pool.waiting)
        kept = self._shown.get(upstream.name)
        if kept is not None and kept.made_of == made_of and kept.status == status:
            return False
        head = kept.head if kept is not None and kept.status == status else self._head(upstream, status)
        row = joined(head, ENCODER.encode({"pool": pool_of(upstream), "window": moving(after, before)}))
        self._shown[upstream.name] = Shown(made_of, status, head, row)
        return True

    def _status(self, upstream: Upstream) -> tuple[object, ...]:
        """How it is, and how it is tuned."""
        state, breaker = self._state, upstream.breaker
        circuit, closes_in = "closed", None
        if not breaker.at_rest:
            shot = breaker.snapshot()
            circuit, closes_in = shot.state, left(shot.open_until, upstream.clock())
        own = [one.state.name for _, one in upstream.circuits if not one.at_rest] if len(upstream.circuits) else NO_OWN
        drift, policy = state.tuned(upstream.name).drift, upstream.policy
        return (circuit, closes_in, own, state.endpoints_of(upstream), drift, state.adds_up(upstream), policy)

    @staticmethod
    def _head(upstream: Upstream, status: Any) -> bytes:
        """What of a row is made of its status, with the names of the whole document."""
        circuit, closes_in, own, endpoints, drift, adds_up, policy = status
        return ENCODER.encode(
            {
                "name": upstream.name,
                "kind": "plain" if endpoints is None else "http",
                "drift": {knob: [number(old), number(new)] for knob, (old, new) in drift.items()},
                "circuit": {"state": circuit, "closes_in": closes_in, "enforced": policy.breaker.enforce},
                "circuits": [{"state": name} for name in own[:CIRCUITS]],
                "adds_up": adds_up,
                "endpoints": None if endpoints is None else [{"state": name} for name in endpoints.values()],
            }
        )


def joined(one: bytes, other: bytes) -> bytes:
    """Both objects as one."""
    return b"%b,%b" % (one[:-1], other[1:])


def pool_of(upstream: Upstream) -> Document:
    """Its places."""
    pool, policy = upstream.bulkhead, upstream.policy.bulkhead
    return {
        "limit": number(policy.limit),
        "in_use": pool.in_use,
        "abandoned": pool.abandoned,
        "waiting": pool.waiting,
        "queue": number(policy.queue),
        "peak": pool.peak,
    }


def row_with(row: bytes, sparks: Document) -> Raw:
    """A row with its sparklines."""
    return Raw(joined(row, ENCODER.encode(sparks)))


def sparks_of(track: Track, last: int = SPARK) -> Document:
    """The last seconds of its sparklines, and which one they end with."""
    asked, degraded, failed = [[*spark][-last:] for spark in (track.asked, track.degraded, track.failed)]
    return {"second": track.second, "spark": asked, "spark_degraded": degraded, "spark_failed": failed}


def moving(after: Look, before: Look) -> Document:
    """What happened between two looks, as in the whole document; but a rate that is not there is 0."""
    seconds = max(after.at - before.at, 1e-9)
    moved = zip(MOVING, map(sub, after.counts, before.counts), strict=True)
    return {
        "seconds": round(seconds, 3),
        "rates": {name: round(number / seconds, 3) for name, number in moved if number},
        "latency": figures_of(after.latency.since(before.latency)),
        "waits": figures_of(after.waits.since(before.waits)),
    }
