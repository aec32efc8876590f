"""All that the page shows, as one document: plain dicts and lists, made of what is kept and of what is now.

    state = State(gate)
    state.start()                     # on the gateway's loop
    document = state.document()       # or `await state.encoded()`, which lets calls in between
    await state.close()

Seconds are floats, "inf" for what has no end; instants are the time of day, in seconds since 1970. Names and texts are
as they are: whoever shows them escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from math import isfinite
from time import time
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from msgspec import Raw
from msgspec.json import decode
from yarl import URL

from gateway.admin.advice import advice_for
from gateway.admin.hystrix import Hystrix
from gateway.admin.pieces import COUNTS, ENCODER, Piece, Pieces, number
from gateway.admin.sampler import Sampler, Track, added
from gateway.admin.stories import LINES, PLAIN_EVERY, Stories, Story, short
from gateway.breaker import BreakerSnapshot, CircuitBreaker
from gateway.http.client import HttpUpstream
from gateway.http.endpoint import EndpointSnapshot
from gateway.http.health import StateName as EndpointState
from gateway.operation import Operation
from gateway.policy import BudgetPolicy, Policy
from gateway.registry import Gateway
from gateway.retry import BudgetSnapshot
from gateway.slices import sliced
from gateway.upstream import Upstream

CIRCUITS = 20
"""Circuits with a key that an upstream shows: those that are not at rest first."""
LONGEST_KEY = 100
SLICE = 2
"""Upstreams that are put down in one turn of the loop: 200 are within a quarter of a second."""
WORDS = {"healthy": "up", "ramping": "up"}
"""What the document calls an endpoint's state, where the word differs."""
Document = dict[str, Any]


class Tuned(NamedTuple):
    """What is known of an upstream's policy beside its numbers: a tag of it, and the knobs that an operator moved."""

    etag: str = ""
    drift: Mapping[str, tuple[object, object]] = MappingProxyType({})


UNTUNED = Tuned()


class Made(NamedTuple):
    """All that an upstream's part of the document is made of."""

    operations: list[Piece]
    window: Raw
    spark: float | None
    circuit: BreakerSnapshot
    since: float | None
    circuits: int
    pool: tuple[int, int, int, int, int]
    budget: BudgetSnapshot | None
    endpoints: tuple[EndpointSnapshot, ...] | None
    policy: Policy
    warnings: tuple[str, ...]
    tuned: Tuned

    @property
    def keeps(self) -> bool:
        """Whether it says the same for as long as nothing moves: no seconds are counted down, no circuit has a key."""
        return self.circuit.open_until is None and self.circuit.held_until is None and not self.circuits


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
        heed = self.sampler.wanted.add
        self.stories = Stories(gate, clock=self.sampler.now, amiss=heed, plain_every=plain_every, errors=errors)
        self.hystrix = Hystrix(gate, self.sampler)
        self._warned: dict[str, tuple[str, ...]] = {}
        self._endpoints: dict[str, dict[str, str]] = {}  # the states that were told, by what is shown of the URLs
        self._states: dict[str, dict[str, EndpointState]] = {}
        self._pieces: dict[str, Pieces] = {}
        self._amiss: set[tuple[str, str]] = set()  # operations whose numbers do not add up, which is told once

    def start(self) -> None:
        """Begin, on the running loop."""
        self.sampler.start()
        self.sampler.of_each.append(self._look_at)
        self.stories.listen()
        for upstream in self.gate:
            self._look_at(upstream)

    async def close(self) -> None:
        """Look and listen no more."""
        self.hystrix.leave()
        self.stories.leave()
        await self.sampler.close()

    # -- the document

    def document(self) -> Document:
        """The whole of it, at once."""
        upstreams = [self.upstream(upstream) for upstream in self.gate]
        return cast("Document", decode(ENCODER.encode(self._around(upstreams))))

    async def encoded(self) -> bytes:
        """The whole of it as JSON, a few upstreams in each turn of the loop: calls go on meanwhile."""
        await self.sampler.catch_up()
        parts = [self.upstream(upstream) async for upstream in sliced(self.gate, size=SLICE)]
        return ENCODER.encode(self._around(parts))

    def _around(self, upstreams: list[Any]) -> Document:
        return {**self.around(), "upstreams": upstreams, "events": self.lines()}

    def around(self) -> Document:
        """What is there beside the upstreams and the log."""
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
        }

    def lines(self, after: int = 0) -> list[Document]:
        """The log, from the line after this one on."""
        return [
            {
                "id": line.id,
                "at": self.sampler.wall_of(line.at),
                "kind": line.kind,
                "upstream": line.upstream,
                "text": line.text,
            }
            for line in self.stories.lines
            if line.id > after
        ]

    def endpoints_of(self, upstream: Upstream) -> Mapping[str, str] | None:
        """The states of its endpoints, as of the last second; None if it is no HTTP upstream."""
        return self._endpoints.get(upstream.name, {}) if isinstance(upstream, HttpUpstream) else None

    def adds_up(self, upstream: Upstream) -> bool:
        """Promise 10, as of the last second."""
        return not self._amiss or all(name != upstream.name for name, _ in self._amiss)

    def upstream(self, upstream: Upstream) -> Raw:
        """One upstream, as JSON: what was put down of it the last time, if nothing has moved."""
        name, pool = upstream.name, upstream.bulkhead
        pieces = self._pieces.get(name)
        if pieces is None:
            pieces = self._pieces[name] = Pieces()
        track, tuned = self.sampler.track(upstream), self.tuned(name)
        after, before = track.ends
        operations = [pieces.operation(operation, after, before, track) for operation in upstream]
        upstream._pay_in()  # noqa: SLF001 - as its snapshot does: what is left of the budget is known only then
        endpoints = upstream.endpoints.endpoints if isinstance(upstream, HttpUpstream) else None
        made_of = Made(
            operations=operations,
            window=pieces.window(after, before, track),
            spark=None if track.is_flat else after.at,
            circuit=upstream.breaker.snapshot(),
            since=self.stories.since(name),
            circuits=len(upstream.circuits),
            pool=(pool.in_use, pool.abandoned, pool.waiting, pool.peak, pool.rejected),
            budget=None if upstream.budget is None else upstream.budget.snapshot(),
            endpoints=endpoints,
            policy=upstream.policy,
            warnings=upstream.warnings,
            tuned=tuned,
        )
        if made_of != pieces.made_of or not made_of.keeps:
            pieces.made_of, pieces.json = made_of, Raw(ENCODER.encode(self._shown(upstream, track, made_of)))
        return pieces.json

    def _shown(self, upstream: Upstream, track: Track, made_of: Made) -> Document:
        """One upstream; what seldom moves in it is JSON already."""
        in_use, abandoned, waiting, peak, rejected = made_of.pool
        policy, tuned = made_of.policy, made_of.tuned
        numbers = [one.numbers for one in made_of.operations]
        return {
            "name": upstream.name,
            "kind": "http" if isinstance(upstream, HttpUpstream) else "plain",
            "warnings": list(made_of.warnings),
            "etag": tuned.etag,
            "drift": {knob: [number(old), number(new)] for knob, (old, new) in tuned.drift.items()},
            "circuit": self._circuit(upstream, made_of.circuit),
            "circuits": [
                {"key": short(str(key), LONGEST_KEY), **self._circuit(upstream, breaker.snapshot(), key)}
                for key, breaker in worth_showing(upstream)
            ],
            "circuits_in_all": made_of.circuits,
            "pool": {
                "limit": number(policy.bulkhead.limit),
                "in_use": in_use,
                "abandoned": abandoned,
                "waiting": waiting,
                "queue": number(policy.bulkhead.queue),
                "peak": peak,
                "rejected": rejected,
            },
            "budget": budget_of(made_of.budget, policy.retry.budget),
            "window": made_of.window,
            "total": dict(zip(COUNTS, added(numbers) if numbers else repeat(0), strict=False)),
            "adds_up": all(one.adds_up for one in made_of.operations),
            "spark": list(track.asked),
            "spark_degraded": list(track.degraded),
            "spark_failed": list(track.failed),
            "operations": [one.json for one in made_of.operations],
            "endpoints": None if made_of.endpoints is None else list(map(endpoint_of, made_of.endpoints)),
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

    def _look_at(self, upstream: Upstream) -> None:
        """Write into the log what no event tells: unwise numbers, endpoints, numbers that do not add up."""
        before = self._warned.get(upstream.name, ())
        if upstream.warnings != before:
            for warning in upstream.warnings:
                if warning not in before:
                    self.stories.note("warning", upstream.name, warning)
            self._warned[upstream.name] = upstream.warnings
        if isinstance(upstream, HttpUpstream):
            self._look_at_endpoints(upstream)
        if self.sampler.track(upstream).moved:
            for operation in upstream:
                tally = operation.tally
                adds_up = tally.asked == len(operation.calls) + sum(tally.ended.values())
                if not adds_up or self._amiss:
                    self._note_whether(adds_up, upstream, operation)

    def _look_at_endpoints(self, upstream: HttpUpstream) -> None:
        states = upstream.routes.endpoints.states()
        if states == self._states.get(upstream.name):
            return
        self._states[upstream.name] = states
        known = self._endpoints.get(upstream.name, {})
        present = {bare(url): WORDS.get(state, state) for url, state in states.items()}
        for url, state in present.items():
            before = known.get(url)
            if before != state and (before is not None or state != "up"):
                self.stories.note("endpoint", upstream.name, f"{url} {before or 'new'} -> {state}")
        for url in known.keys() - present.keys():
            self.stories.note("endpoint", upstream.name, f"{url} {known[url]} -> gone")
        self._endpoints[upstream.name] = present

    def _note_whether(self, adds_up: bool, upstream: Upstream, operation: Operation[..., Any]) -> None:  # noqa: FBT001
        """Promise 10, for as long as anybody watches. It holds between any two lines of ours: nothing awaits here."""
        name = (upstream.name, operation.name)
        if not adds_up and name not in self._amiss:
            self._amiss.add(name)
            self.stories.note("warning", upstream.name, f"the numbers of {operation.name} do not add up (promise 10)")
        elif adds_up:
            self._amiss.discard(name)


@cache
def version_of_this() -> str:
    """The version of this package."""
    try:
        return version("async-worker-gateway")
    except PackageNotFoundError:  # run from a folder that was never installed
        return ""


def left(until: float | None, now: float) -> float | None:
    """Seconds until an instant; None where there is none, or no end."""
    return None if until is None or not isfinite(until) else max(0.0, until - now)


def budget_of(shot: BudgetSnapshot | None, policy: BudgetPolicy | None) -> Document | None:
    """The account of retries, and its numbers."""
    if shot is None or policy is None:
        return None
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


def endpoint_of(shot: EndpointSnapshot) -> Document:
    """An endpoint of an HTTP upstream."""
    return {
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


@cache
def bare(url: str) -> str:
    """A URL without what may be a secret in it: user, password, query."""
    parsed = URL(url)
    return str(parsed.with_user(None).with_query(None).with_fragment(None)) if parsed.absolute else url
