"""The numbers of a gateway for Prometheus, in its own format or as OpenMetrics.

    body, content_type = exposition(gate, accept=request.headers.get("Accept", ""))

    prometheus_client.REGISTRY.register(Metrics(gate))    # or beside your own, in the registry you have

Nothing is counted for it: a scrape reads what the calls count anyway. Labels are names that code gives: upstreams,
operations, endpoints, the ways a call can end. Circuits of their own have keys that come with calls, so they are told
by their number in each state, whatever the keys. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeVar

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.counts import AGE_BOUNDS, BOUNDS, Histogram
from gateway.http.client import HttpUpstream
from gateway.operation import Operation
from gateway.upstream import Upstream

STATES = ("closed", "open", "half_open", "isolated")
ENDPOINT_STATES = ("healthy", "ramping", "ejected", "down", "draining")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SLICE = 8
"""Upstreams that are read in one turn of the loop."""
F = TypeVar("F", bound=Metric)


class Buckets:
    """Fewer bounds than a histogram has, each one of its own: what is counted below it is exact."""

    def __init__(self, bounds: Sequence[float], every: int, *, first: float, last: float) -> None:
        chosen = [i for i in range(0, len(bounds), every) if first <= bounds[i] <= last]
        self.places = [*chosen, len(bounds)]
        self.names = [*(str(bounds[i]) for i in chosen), "+Inf"]

    def of(self, histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
        """Name and height of each, and the sum."""
        heights = list(accumulate(histogram._buckets))  # noqa: SLF001 - a snapshot has no buckets
        each: list[tuple[str, float]] = [
            (name, heights[place]) for name, place in zip(self.names, self.places, strict=True)
        ]
        return each, histogram._sum  # noqa: SLF001


DURATIONS = Buckets(BOUNDS, 4, first=200e-6, last=40.0)
"""From a quarter of a millisecond to 34 s, each twice the one before."""
AGES = Buckets(AGE_BOUNDS, 4, first=0.5, last=100_000.0)
"""From a second to a day, each four times the one before."""


class Gate(Protocol):
    """What is read: a gateway."""

    def __iter__(self) -> Iterator[Upstream]:
        """Its upstreams."""
        ...


class Reading:
    """The metrics of one scrape."""

    def __init__(self, lag: float | None = None) -> None:
        self.all: list[Metric] = []
        if lag is not None:
            self._gauge(
                "event_loop_lag_seconds", "How late a timer of the event loop came of late, at worst"
            ).add_metric((), lag)
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
        self.took = histogram("attempt_duration_seconds", "How long tries took that succeeded", *each)
        self.ages = histogram("answer_age_seconds", "How old remembered answers were when they were given", *each)
        self.entries = gauge("memory_entries", "Answers that are remembered", *each)
        self.bytes = gauge("memory_bytes", "What they take, as counted", *each)
        self.hits = counter("memory_hits", "Answers that memory had", *each)
        self.misses = counter("memory_misses", "Answers that memory did not have", *each)
        self.too_old = counter("memory_too_old", "Answers that memory had, older than allowed", *each)
        self.evicted = counter("memory_evicted", "Answers that others drove out", *each)
        self.waits = histogram("queue_wait_seconds", "How long calls waited that queued for a place", *of)
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
            self.budget.add_metric(name, shot.left)
            self.suppressed.add_metric(name, shot.suppressed)
        self.waits.add_metric(name, *DURATIONS.of(upstream.waits))
        for limit in ("call", "attempt"):
            self.timeout.add_metric((*name, limit), getattr(upstream.policy.timeout, limit))
        for operation in upstream:
            self._operation(operation, (*name, operation.name))
        if isinstance(upstream, HttpUpstream):
            self._endpoints(upstream)

    def _operation(self, operation: Operation[..., Any], name: tuple[str, str]) -> None:
        tally = operation.tally
        self.asked.add_metric(name, tally.asked)
        for end, count in tally.ended.items():
            self.ended.add_metric((*name, str(end)), count)
        self.in_flight.add_metric(name, len(operation.calls))
        self.attempts.add_metric(name, tally.attempts)
        self.retries.add_metric(name, tally.retries)
        self.overran.add_metric(name, tally.overran)
        self.fallback_failed.add_metric(name, operation._fallback.failed)  # noqa: SLF001 - see `add`
        self.took.add_metric(name, *DURATIONS.of(operation.latency))
        self.refreshed.add_metric(name, tally.refreshed)
        self.refresh_failed.add_metric(name, tally.refresh_failed)
        if operation.memories:
            memory = operation.memories[0].snapshot()
            self.entries.add_metric(name, memory.entries)
            self.bytes.add_metric(name, memory.bytes)
            self.hits.add_metric(name, memory.hits)
            self.misses.add_metric(name, memory.misses)
            self.too_old.add_metric(name, memory.too_old)
            self.evicted.add_metric(name, memory.evicted)
            self.ages.add_metric(name, *AGES.of(operation.ages))

    def _pool(self, upstream: Upstream, name: tuple[str]) -> None:
        pool = upstream.bulkhead.snapshot()
        self.limit.add_metric(name, pool.limit)
        self.in_use.add_metric(name, pool.in_use)
        self.abandoned.add_metric(name, pool.abandoned)
        self.waiting.add_metric(name, pool.waiting)
        self.queue.add_metric(name, upstream.policy.bulkhead.queue)
        self.peak.add_metric(name, pool.peak)
        self.rejected.add_metric(name, pool.rejected)

    def _circuit(self, upstream: Upstream, name: tuple[str]) -> None:
        circuit = upstream.breaker.snapshot()
        for state in STATES:
            self.circuit.add_metric((*name, state), circuit.state == state)
        self.enforced.add_metric(name, circuit.enforced)
        self.threshold.add_metric(name, upstream.policy.breaker.failure_rate)
        if circuit.failure_rate is not None:
            self.failing.add_metric(name, circuit.failure_rate)
        if circuit.slow_rate is not None:
            self.slow.add_metric(name, circuit.slow_rate)
        if len(upstream.circuits):
            number = dict.fromkeys(STATES, 0)
            for _, breaker in upstream.circuits:
                number["closed" if breaker.at_rest else breaker.state.name] += 1
            for state in STATES:
                self.circuits.add_metric((*name, state), number[state])

    def _endpoints(self, upstream: HttpUpstream) -> None:
        for shot in upstream.endpoints.endpoints:
            at = (upstream.name, bare(shot.url))
            for state in ENDPOINT_STATES:
                self.endpoint.add_metric((*at, state), shot.state == state)
            self.load.add_metric(at, shot.in_flight)
            if shot.latency is not None:
                self.latency.add_metric(at, shot.latency)

    # -- families

    def _kept(self, metric: F) -> F:
        self.all.append(metric)
        return metric

    def _counter(self, name: str, means: str, *labels: str) -> CounterMetricFamily:
        return self._kept(CounterMetricFamily(f"gateway_{name}", f"{means}.", labels=labels))

    def _gauge(self, name: str, means: str, *labels: str) -> GaugeMetricFamily:
        return self._kept(GaugeMetricFamily(f"gateway_{name}", f"{means}.", labels=labels, unit=unit_of(name)))

    def _histogram(self, name: str, means: str, *labels: str) -> HistogramMetricFamily:
        return self._kept(HistogramMetricFamily(f"gateway_{name}", f"{means}.", labels=labels, unit=unit_of(name)))


class Metrics(Collector):
    """A gateway as prometheus_client collects it. `lag` tells how late the event loop is, in seconds, if anybody knows.

    Register it where your other metrics are. On the thread of the gateway's loop, as all that reads it.
    """

    def __init__(self, gate: Gate, *, lag: Callable[[], float] | None = None) -> None:
        self.gate = gate
        self.lag = lag

    def collect(self) -> Iterable[Metric]:
        """All of them as they are now."""
        reading = self._begin()
        for upstream in self.gate:
            reading.add(upstream)
        return reading.all

    async def collect_in_slices(self) -> list[Metric]:
        """The same, a few upstreams in each turn of the loop: calls go on meanwhile."""
        reading = self._begin()
        for number, upstream in enumerate(self.gate, 1):
            reading.add(upstream)
            if number % SLICE == 0:
                await sleep(0)
        return reading.all

    def _begin(self) -> Reading:
        return Reading(None if self.lag is None else self.lag())


class Read(Collector):
    """What was collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """That."""
        return self._metrics


def written(metrics: Collector, accept: str = "") -> tuple[bytes, str]:
    """What a scraper gets that accepts this, and its content type. It may take a while: many lines are made.

    Pure, so that a thread may do it for metrics that are collected (`Read`).
    """
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    # No more of it: prometheus_client trips over versions that are none, and repeats what it does not know.
    encode, content_type = choose_encoder(OPENMETRICS if OPENMETRICS.partition(";")[0] in kinds else "")
    return encode(metrics), content_type


def exposition(gate: Gate, accept: str = "", *, lag: Callable[[], float] | None = None) -> tuple[bytes, str]:
    """The answer to `GET /metrics`: a body, and its content type."""
    return written(Metrics(gate, lag=lag), accept)


def unit_of(name: str) -> str:
    """The unit that a name ends in."""
    return next((unit for unit in ("seconds", "bytes") if name.endswith(f"_{unit}")), "")


def bare(url: str) -> str:
    """A URL without a name and a password in it."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"
