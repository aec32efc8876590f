"""The numbers of a gateway for Prometheus, in its own format or as OpenMetrics.

    metrics = Exposition(gate)
    body, content_type = metrics.read(request.headers.get("Accept", ""))

    prometheus_client.REGISTRY.register(Metrics(gate))    # or beside your own, in the registry you have

Nothing is counted for it: a scrape reads what the calls count anyway. Labels are names that code gives: upstreams,
operations, endpoints, the ways a call can end. Circuits of their own have keys that come with calls, so they are told
by their number in each state, whatever the keys. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.counts import AGE_BOUNDS, BOUNDS, Histogram
from gateway.exposition import Buckets, Encode, Family, Lines, Read, Samples, Spelling
from gateway.http.client import HttpUpstream
from gateway.operation import Operation
from gateway.slices import sliced
from gateway.upstream import Upstream

STATES = ("closed", "open", "half_open", "isolated")
ENDPOINT_STATES = ("healthy", "ramping", "ejected", "down", "draining")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SLICE = 8
"""Upstreams that are read in one turn of the loop."""


DURATIONS = Buckets(BOUNDS, 4, first=200e-6, last=40.0)
"""From a quarter of a millisecond to 34 s, each twice the one before."""
AGES = Buckets(AGE_BOUNDS, 4, first=0.5, last=100_000.0)
"""From a second to a day, each four times the one before."""


class Gate(Protocol):
    """What is read: a gateway."""

    def __iter__(self) -> Iterator[Upstream]:
        """Its upstreams."""
        ...


class Series(Protocol):
    """A family in one scrape."""

    def add(self, labels: tuple[str, ...], number: float) -> None:
        """A series of it."""
        ...

    def observe(self, labels: tuple[str, ...], histogram: Histogram) -> None:
        """A histogram of it."""
        ...


S = TypeVar("S", bound=Series)


class Reading(Generic[S]):
    """The metrics of one scrape; `begin` begins a family of it."""

    def __init__(self, begin: Callable[[Family], S], lag: float | None = None) -> None:
        self.all: list[S] = []
        self._begin = begin
        if lag is not None:
            late = self._gauge("event_loop_lag_seconds", "How late a timer of the event loop came of late, at worst")
            late.add((), lag)
        each = ("upstream", "operation")
        of = ("upstream",)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.asked = counter("calls_asked", "Calls that were made", *each)
        self.ended = counter("calls", "Calls that are over, by how they ended", *each, "ended")
        self.in_flight = gauge("calls_in_flight", "Calls that are not over", *each)
        self.attempts = counter("attempts", "Tries that were sent", *each)
        self.retries = counter("retries", "Tries after a first one", *each)
        self.overran = counter("attempts_overran", "Tries that ended later than they were told to", *each)
        self.fallback_failed = counter("fallback_failures", "Tiers that raised, came too late, or were full", *each)
        self.refreshed = counter("refreshes", "Remembered answers that were asked for anew in the background", *each)
        self.refresh_failed = counter("refresh_failures", "Those of them that came to nothing", *each)
        self.took = histogram(DURATIONS, "attempt_duration_seconds", "How long tries took that succeeded", *each)
        self.ages = histogram(AGES, "answer_age_seconds", "How old remembered answers were when they were given", *each)
        self.entries = gauge("memory_entries", "Answers that are remembered", *each)
        self.bytes = gauge("memory_bytes", "What they take, as counted", *each)
        self.hits = counter("memory_hits", "Answers that memory had", *each)
        self.misses = counter("memory_misses", "Answers that memory did not have", *each)
        self.too_old = counter("memory_too_old", "Answers that memory had, older than allowed", *each)
        self.evicted = counter("memory_evicted", "Answers that others drove out", *each)
        self.waits = histogram(DURATIONS, "queue_wait_seconds", "How long calls waited that queued for a place", *of)
        self.limit = gauge("pool_limit", "Places in the pool", *of)
        self.in_use = gauge("pool_in_use", "Places that are taken", *of)
        self.abandoned = gauge("pool_abandoned", "Of those, places of threads whose caller has left", *of)
        self.waiting = gauge("pool_waiting", "Callers that wait for a place", *of)
        self.queue = gauge("pool_queue_limit", "Callers that may wait", *of)
        self.peak = gauge("pool_peak", "The most places that were taken at once", *of)
        self.rejected = counter("pool_rejections", "Callers that got no place", *of)
        self.circuit = gauge("circuit_state", "1 for the state that the circuit is in", *of, "state")
        self.enforced = gauge("circuit_enforced", "Whether it refuses calls, or only counts", *of)
        self.failing = gauge("circuit_failure_ratio", "The share of failures it goes by, if that is known", *of)
        self.slow = gauge("circuit_slow_ratio", "The share of slow calls it goes by, if that is known", *of)
        self.threshold = gauge("circuit_failure_ratio_threshold", "The share of failures it opens at", *of)
        self.circuits = gauge("circuits", "Circuits that have a key, by the state they are in", *of, "state")
        self.budget = gauge("retry_budget", "Retries that may be made at once", *of)
        self.suppressed = counter("retry_budget_suppressed", "Retries that it left out", *of)
        self.timeout = gauge("timeout_seconds", "How long may be waited", *of, "limit")
        at = ("upstream", "endpoint")
        self.endpoint = gauge("endpoint_state", "1 for the state that the endpoint is in", *at, "state")
        self.load = gauge("endpoint_in_flight", "Calls that are there", *at)
        self.latency = gauge("endpoint_latency_seconds", "What calls there took of late, on average", *at)

    def add(self, upstream: Upstream) -> None:
        """Read an upstream. Nothing of it moves meanwhile."""
        name = (upstream.name,)
        self._pool(upstream, name)
        self._circuit(upstream, name)
        if upstream.budget is not None:
            upstream._pay_in()  # noqa: SLF001 - as its snapshot does: what is left is known only then
            shot = upstream.budget.snapshot()
            self.budget.add(name, shot.left)
            self.suppressed.add(name, shot.suppressed)
        self.waits.observe(name, upstream.waits)
        for limit in ("call", "attempt"):
            self.timeout.add((*name, limit), getattr(upstream.policy.timeout, limit))
        for operation in upstream:
            self._operation(operation, (*name, operation.name))
        if isinstance(upstream, HttpUpstream):
            self._endpoints(upstream)

    def _operation(self, operation: Operation[..., Any], name: tuple[str, str]) -> None:
        tally = operation.tally
        self.asked.add(name, tally.asked)
        for end, count in tally.ended.items():
            self.ended.add((*name, str(end)), count)
        self.in_flight.add(name, len(operation.calls))
        self.attempts.add(name, tally.attempts)
        self.retries.add(name, tally.retries)
        self.overran.add(name, tally.overran)
        self.fallback_failed.add(name, operation._fallback.failed)  # noqa: SLF001 - see `add`
        self.took.observe(name, operation.latency)
        self.refreshed.add(name, tally.refreshed)
        self.refresh_failed.add(name, tally.refresh_failed)
        if operation.memories:
            memory = operation.memories[0].snapshot()
            self.entries.add(name, memory.entries)
            self.bytes.add(name, memory.bytes)
            self.hits.add(name, memory.hits)
            self.misses.add(name, memory.misses)
            self.too_old.add(name, memory.too_old)
            self.evicted.add(name, memory.evicted)
            self.ages.observe(name, operation.ages)

    def _pool(self, upstream: Upstream, name: tuple[str]) -> None:
        pool = upstream.bulkhead.snapshot()
        self.limit.add(name, pool.limit)
        self.in_use.add(name, pool.in_use)
        self.abandoned.add(name, pool.abandoned)
        self.waiting.add(name, pool.waiting)
        self.queue.add(name, upstream.policy.bulkhead.queue)
        self.peak.add(name, pool.peak)
        self.rejected.add(name, pool.rejected)

    def _circuit(self, upstream: Upstream, name: tuple[str]) -> None:
        circuit = upstream.breaker.snapshot()
        for state in STATES:
            self.circuit.add((*name, state), circuit.state == state)
        self.enforced.add(name, circuit.enforced)
        self.threshold.add(name, upstream.policy.breaker.failure_rate)
        if circuit.failure_rate is not None:
            self.failing.add(name, circuit.failure_rate)
        if circuit.slow_rate is not None:
            self.slow.add(name, circuit.slow_rate)
        if len(upstream.circuits):
            number = dict.fromkeys(STATES, 0)
            for _, breaker in upstream.circuits:
                number["closed" if breaker.at_rest else breaker.state.name] += 1
            for state in STATES:
                self.circuits.add((*name, state), number[state])

    def _endpoints(self, upstream: HttpUpstream) -> None:
        for shot in upstream.endpoints.endpoints:
            at = (upstream.name, bare(shot.url))
            for state in ENDPOINT_STATES:
                self.endpoint.add((*at, state), shot.state == state)
            self.load.add(at, shot.in_flight)
            if shot.latency is not None:
                self.latency.add(at, shot.latency)

    # -- families

    def _family(self, kind: Any, name: str, means: str, labels: Sequence[str], buckets: Buckets | None = None) -> S:
        series = self._begin(Family(kind=kind, name=name, means=means, labels=labels, buckets=buckets))
        self.all.append(series)
        return series

    def _counter(self, name: str, means: str, *labels: str) -> S:
        return self._family(CounterMetricFamily, name, means, labels)

    def _gauge(self, name: str, means: str, *labels: str) -> S:
        return self._family(GaugeMetricFamily, name, means, labels)

    def _histogram(self, buckets: Buckets, name: str, means: str, *labels: str) -> S:
        return self._family(HistogramMetricFamily, name, means, labels, buckets)


class Metrics(Collector):
    """A gateway as prometheus_client collects it. `lag` tells how late the event loop is, in seconds, if anybody knows.

    Register it where your other metrics are. On the thread of the gateway's loop, as all that reads it.
    """

    def __init__(self, gate: Gate, *, lag: Callable[[], float] | None = None) -> None:
        self.gate = gate
        self.lag = lag

    def collect(self) -> Iterable[Metric]:
        """All of them as they are now."""
        reading = Reading(Samples, None if self.lag is None else self.lag())
        for upstream in self.gate:
            reading.add(upstream)
        return [samples.metric for samples in reading.all]


class Exposition:
    """The answers to `GET /metrics`, one after another: only the first one spells the names. `lag` as for `Metrics`."""

    def __init__(self, gate: Gate, *, lag: Callable[[], float] | None = None) -> None:
        self.gate = gate
        self.lag = lag
        self._spellings: dict[tuple[str, str], Spelling] = {}

    def read(self, accept: str = "") -> tuple[bytes, str]:
        """What a scraper gets that accepts this, and its content type."""
        encode, content_type = encoder_for(accept)
        reading = self._begin(encode, content_type)
        for upstream in self.gate:
            reading.add(upstream)
        return told(reading, encode), content_type

    async def read_in_slices(self, accept: str = "") -> tuple[bytes, str]:
        """The same, a few upstreams in each turn of the loop: calls go on meanwhile."""
        encode, content_type = encoder_for(accept)
        reading = self._begin(encode, content_type)
        async for upstream in sliced(self.gate, size=SLICE):
            reading.add(upstream)
        return told(reading, encode), content_type

    def _begin(self, encode: Encode, content_type: str) -> Reading[Lines]:
        def begin(family: Family) -> Lines:
            known = (content_type, family.name)
            spelling = self._spellings.get(known)
            if spelling is None:
                spelling = self._spellings[known] = Spelling(family, encode)
            return Lines(spelling)

        return Reading(begin, None if self.lag is None else self.lag())


def told(reading: Reading[Lines], encode: Encode) -> bytes:
    """A scrape as a scraper gets it; what ends it is what there is without any metric."""
    return "".join(lines.text() for lines in reading.all).encode() + encode(Read(()))


def encoder_for(accept: str) -> tuple[Encode, str]:
    """How prometheus_client writes it for a scraper that accepts this, and the content type of that."""
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    # No more of it: prometheus_client trips over versions that are none, and repeats what it does not know.
    return choose_encoder(OPENMETRICS if OPENMETRICS.partition(";")[0] in kinds else "")


def exposition(gate: Gate, accept: str = "", *, lag: Callable[[], float] | None = None) -> tuple[bytes, str]:
    """The answer to one `GET /metrics`: a body, and its content type. Where many are to come, keep an `Exposition`."""
    encode, content_type = encoder_for(accept)
    return encode(Metrics(gate, lag=lag)), content_type


def bare(url: str) -> str:
    """A URL without a name and a password in it."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"
