"""All that the page shows, as one document: plain dicts and lists, made of what is kept and of what is now.

    state = State(gate)
    state.start()                     # on the gateway's loop
    document = state.document()       # or `await state.encoded()`, which lets calls in between
    await state.close()

Seconds are floats, "inf" for what has no end; instants are the time of day, in seconds since 1970. Names and texts are
as they are: whoever shows them escapes them.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import isfinite, isinf
from time import time
from typing import Any

from msgspec import Raw
from msgspec.json import Encoder
from yarl import URL

from gateway.admin.advice import advice_for
from gateway.admin.hystrix import Hystrix
from gateway.admin.sampler import NONE, NOTHING, Sampler, Window
from gateway.admin.stories import LINES, PLAIN_EVERY, Stories, Story, short
from gateway.breaker import BreakerSnapshot, CircuitBreaker
from gateway.counts import ENDS, Counts, LatencySnapshot, Tally
from gateway.http.client import HttpUpstream
from gateway.operation import Operation
from gateway.registry import Gateway
from gateway.upstream import Upstream

CIRCUITS = 20
"""Circuits with a key that an upstream shows: those that are not at rest first."""
LONGEST_KEY = 100
SLICE = 2
"""Upstreams that are put down in one turn of the loop."""
WORDS = {"healthy": "up", "ramping": "up"}
"""What the document calls an endpoint's state, where the word differs."""
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What is known of an upstream's policy beside its numbers: a tag of it, and the knobs that an operator moved."""

    etag: str = ""
    drift: Mapping[str, tuple[object, object]] = field(default_factory=dict)


UNTUNED = Tuned()


class State:
    """A gateway's samples, stories and log, from `start` to `close`, and the document that is made of them.

    `tuned` tells of an upstream's name what is known of its policy; `journal`: whether what is tuned is written down.
    `plain_every` and `errors` are as for `Stories`.
    """

    def __init__(
        self,
        gate: Gateway,
        *,
        tuned: Callable[[str], Tuned] = lambda _: UNTUNED,
        journal: bool = False,
        plain_every: int = PLAIN_EVERY,
        errors: bool = True,
        wall: Callable[[], float] = time,
    ) -> None:
        self.gate = gate
        self.tuned = tuned
        self.journal = journal
        self.sampler = Sampler(gate, wall=wall)
        self.stories = Stories(gate, clock=self.sampler.now, plain_every=plain_every, errors=errors)
        self.hystrix = Hystrix(gate, self.sampler)
        self._warned: dict[str, tuple[str, ...]] = {}
        self._endpoints: dict[tuple[str, str], str] = {}
        self._amiss: set[str] = set()  # operations whose numbers do not add up, which is told once

    def start(self) -> None:
        """Begin, on the running loop."""
        self.sampler.start()
        self.sampler.each.append(self._look_round)
        self.stories.listen()
        self._look_round()

    async def close(self) -> None:
        """Look and listen no more."""
        self.hystrix.leave()
        self.stories.leave()
        await self.sampler.close()

    # -- the document

    def document(self) -> Document:
        """The whole of it, at once."""
        return self._around([self.upstream(upstream) for upstream in self.gate])

    async def encoded(self) -> bytes:
        """The whole of it as JSON, a few upstreams in each turn of the loop: calls go on meanwhile."""
        parts: list[Raw] = []
        for number, upstream in enumerate(self.gate, 1):
            parts.append(Raw(ENCODER.encode(self.upstream(upstream))))
            if number % SLICE == 0:
                await sleep(0)
        return ENCODER.encode(self._around(parts))

    def _around(self, upstreams: list[Any]) -> Document:
        sampler = self.sampler
        late, latest = sampler.lag
        return {
            "at": sampler.wall(),
            "gateway": {
                "lag": {"now": late, "max": latest},
                "adds_up": not self._amiss,
                "version": version_of_this(),
                "uptime": sampler.clock() - sampler.began_at,
                "journal": self.journal,
            },
            "upstreams": upstreams,
            "events": [
                {
                    "id": line.id,
                    "at": sampler.wall_of(line.at),
                    "kind": line.kind,
                    "upstream": line.upstream,
                    "text": line.text,
                }
                for line in self.stories.lines
            ],
        }

    def upstream(self, upstream: Upstream) -> Document:
        """One upstream."""
        name, track, tuned = upstream.name, self.sampler.track(upstream), self.tuned(upstream.name)
        policy, pool = upstream.policy, upstream.bulkhead.snapshot()
        upstream._pay_in()  # noqa: SLF001 - as its snapshot does: what is left of the budget is known only then
        budget = upstream.budget
        window, each = track.windows()
        operations = [operation_of(operation, each.get(operation.name, NOTHING_YET)) for operation in upstream]
        total = dict(
            zip(COUNTS, map(sum, zip(*(one["total"].values() for one in operations), strict=True)), strict=False)
        )
        return {
            "name": name,
            "kind": "http" if isinstance(upstream, HttpUpstream) else "plain",
            "warnings": list(upstream.warnings),
            "etag": tuned.etag,
            "drift": {knob: [number(old), number(new)] for knob, (old, new) in tuned.drift.items()},
            "circuit": self._circuit(upstream, upstream.breaker.snapshot()),
            "circuits": [
                {"key": short(str(key), LONGEST_KEY), **self._circuit(upstream, breaker.snapshot(), key)}
                for key, breaker in worth_showing(upstream)
            ],
            "circuits_in_all": len(upstream.circuits),
            "pool": {
                "limit": number(pool.limit),
                "in_use": pool.in_use,
                "abandoned": pool.abandoned,
                "waiting": pool.waiting,
                "queue": number(policy.bulkhead.queue),
                "peak": pool.peak,
                "rejected": pool.rejected,
            },
            "budget": None if budget is None else budget_of(upstream),
            "window": {**window_of(window), "waits": figures(window.waits.snapshot())},
            "total": total or dict.fromkeys(COUNTS, 0),
            "adds_up": all(one["adds_up"] for one in operations),
            "spark": list(track.asked),
            "spark_degraded": list(track.degraded),
            "spark_failed": list(track.failed),
            "operations": operations,
            "endpoints": endpoints_of(upstream),
        }

    def _circuit(self, upstream: Upstream, shot: BreakerSnapshot, key: Hashable = None) -> Document:
        now = upstream.clock()
        since = self.stories.since(upstream.name, key)
        breaker = upstream.policy.breaker
        return {
            "state": shot.state,
            "since": None if since is None else self.sampler.wall_of(since),
            "enforced": shot.enforced,
            "failure_rate": shot.failure_rate,
            "slow_rate": shot.slow_rate,
            "calls": shot.calls,
            "failures": shot.failures,
            "slow": shot.slow,
            "rejected": shot.rejected,
            "opens_in": None,
            "closes_in": left(shot.open_until, now),
            "held_for": left(shot.held_until, now),
            "threshold": breaker.failure_rate,
            "min_calls": number(breaker.min_calls),
        }

    # -- what is asked for beside it

    def calls(self, upstream: str | None = None, limit: int = LINES) -> Document:
        """The latest calls and their stories, the last first. UnknownName for an upstream that there is not."""
        if upstream is not None:
            self.gate[upstream]  # or raise
        return {"calls": [self._story(story) for story in self.stories.of(upstream, limit)]}

    def _story(self, story: Story) -> Document:
        steps = story.steps
        return {
            "id": story.id,
            "at": self.sampler.wall_of(story.at),
            "upstream": story.upstream,
            "operation": story.operation,
            "outcome": story.outcome,
            "source": story.source,
            "age": story.age,
            "duration": story.duration,
            "waited": story.waited,
            "attempts": story.attempts,
            "plain": story.plain,
            "steps": [{"kind": step.kind, "seconds": step.seconds, "ok": step.ok, "text": step.text} for step in steps],
            "text": "; ".join(step.text for step in steps),
        }

    def advice(self) -> Document:
        """What the numbers of each upstream say about its knobs."""
        return {"advice": [one for upstream in self.gate for one in advice_for(upstream, self.sampler.track(upstream))]}

    # -- once a second

    def _look_round(self) -> None:
        """Write into the log what no event tells: unwise numbers, endpoints, numbers that do not add up."""
        for upstream in self.gate:
            before = self._warned.get(upstream.name, ())
            for warning in upstream.warnings:
                if warning not in before:
                    self.stories.note("warning", upstream.name, warning)
            self._warned[upstream.name] = upstream.warnings
            if isinstance(upstream, HttpUpstream):
                self._look_at_endpoints(upstream)
            for operation in upstream:
                self._add_up(upstream, operation)

    def _look_at_endpoints(self, upstream: HttpUpstream) -> None:
        known = {url: state for (of, url), state in self._endpoints.items() if of == upstream.name}
        present = {bare(shot.url): WORDS.get(shot.state, shot.state) for shot in upstream.endpoints.endpoints}
        for url, state in present.items():
            before = known.get(url)
            if before != state and (before is not None or state != "up"):
                self.stories.note("endpoint", upstream.name, f"{url} {before or 'new'} -> {state}")
            self._endpoints[upstream.name, url] = state
        for url in known.keys() - present.keys():
            self.stories.note("endpoint", upstream.name, f"{url} {known[url]} -> gone")
            del self._endpoints[upstream.name, url]

    def _add_up(self, upstream: Upstream, operation: Operation[..., Any]) -> None:
        """Promise 10, for as long as anybody watches. It holds between any two lines of ours: nothing awaits here."""
        name = f"{upstream.name}.{operation.name}"
        tally = operation.tally
        adds_up = tally.asked == len(operation.calls) + sum(tally.ended.values())
        if not adds_up and name not in self._amiss:
            self._amiss.add(name)
            self.stories.note("warning", upstream.name, f"the numbers of {operation.name} do not add up (promise 10)")
        elif adds_up:
            self._amiss.discard(name)


ENCODER = Encoder(enc_hook=str)


@cache
def version_of_this() -> str:
    """The version of this package."""
    try:
        return version("async-worker-gateway")
    except PackageNotFoundError:  # run from a folder that was never installed
        return ""


def number(value: object) -> Any:
    """A number as JSON can say it; what is neither number nor text is told in words."""
    if isinstance(value, float):
        if isinf(value):
            return "inf" if value > 0 else "-inf"
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    return value if value is None or isinstance(value, bool | int | str) else short(str(value))


def left(until: float | None, now: float) -> float | None:
    """Seconds until an instant; None where there is none, or no end."""
    return None if until is None or not isfinite(until) else max(0.0, until - now)


def window_of(window: Window) -> Document:
    """What happened of late. Rounded to what can be seen: there are many of them."""
    return {
        "seconds": round(window.seconds, 3),
        "rates": {name: rate and round(rate, 3) for name, rate in window.rates.items()},
        "latency": figures(window.latency.snapshot()),
    }


def figures(shot: LatencySnapshot) -> Document:
    """Durations."""
    return {
        "count": shot.count,
        "mean": round(shot.mean, 6),
        "p50": round(shot.p50, 6),
        "p90": round(shot.p90, 6),
        "p99": round(shot.p99, 6),
        "max": round(shot.max, 6),
    }


def operation_of(operation: Operation[..., Any], window: Window) -> Document:
    """One operation. `memory` and `ages` are those of its remembered answers, None where it remembers none.

    Its window has no `waits`: calls queue for the upstream's pool, and are not told apart there. What a snapshot of
    the operation would have beside this is worked out only where it is shown.
    """
    tally, in_flight = operation.tally, len(operation.calls)
    numbers = {
        **{name: getattr(tally, name) for name in TALLIED},
        **dict(zip(ENDED, tally.ended.values(), strict=True)),
        "in_flight": in_flight,
        "fallback_failed": operation._fallback.failed,  # noqa: SLF001
    }
    memories = operation.memories
    return {
        "name": operation.name,
        "total": numbers,
        "window": window_of(window),
        "memory": plain(memories[0].snapshot()) if memories else None,
        "ages": figures(operation.ages.snapshot()) if memories else None,
        "adds_up": tally.asked == in_flight + sum(tally.ended.values()),
    }


TALLIED = [one.name for one in fields(Counts) if one.name in Tally.__slots__]
ENDED = [str(end) for end in ENDS]
NOTHING_YET = Window(1.0, NOTHING, NONE, NONE)
COUNTS = [*TALLIED, *ENDED, "in_flight", "fallback_failed"]


def plain(snapshot: Any) -> Any:
    """A frozen value as dicts, all the way down."""
    if hasattr(snapshot, "__dataclass_fields__"):
        return {one.name: plain(getattr(snapshot, one.name)) for one in fields(snapshot)}
    return number(snapshot)


def budget_of(upstream: Upstream) -> Document | None:
    """The account of retries, and its numbers."""
    budget, policy = upstream.budget, upstream.policy.retry.budget
    if budget is None or policy is None:
        return None
    shot = budget.snapshot()
    return {
        "left": number(shot.left),
        "suppressed": shot.suppressed,
        "ratio": number(policy.ratio),
        "minimum": number(policy.minimum),
        "burst": number(policy.burst),
    }


def worth_showing(upstream: Upstream) -> Iterator[tuple[Hashable, CircuitBreaker]]:
    """The circuits with a key that an upstream shows, those that are not at rest first."""
    every = list(upstream.circuits)
    shown = sorted(every, key=lambda one: one[1].at_rest)  # a sort that keeps the order of what is equal
    return iter(shown[:CIRCUITS])


def endpoints_of(upstream: Upstream) -> list[Document] | None:
    """The endpoints of an HTTP upstream."""
    if not isinstance(upstream, HttpUpstream):
        return None
    return [
        {
            "url": bare(shot.url),
            "state": WORDS.get(shot.state, shot.state),
            "ramping": shot.state == "ramping",
            "held": shot.held,
            "in_use": shot.in_flight,
            "latency": shot.latency,
            "weight": number(shot.weight),
            "calls": shot.calls,
            "failures": shot.failures,
        }
        for shot in upstream.endpoints.endpoints
    ]


@cache
def bare(url: str) -> str:
    """A URL without what may be a secret in it: user, password, query."""
    parsed = URL(url)
    return str(parsed.with_user(None).with_query(None).with_fragment(None)) if parsed.absolute else url
