"""A gateway as Hystrix would tell of it, for the dashboards that people have: `hystrix.stream`.

    for message in hystrix.messages():           # bytes: "data: {...}", one for each command and each pool
        await response.write(message)

A command is an operation, `upstream.operation`; its group and its pool are the upstream. What a call is to Hystrix:

    live                              success
    refused                           bad request, which is no error
    failed, unknown                   failure, or timeout where a limit on time was the reason
    rejected by the circuit           short-circuited
    rejected for want of a place      rejected by the thread pool
    rejected for want of time         timeout
    coalesced                         collapsed
    cached                            response from cache

A call that a tier answered has its error, and a fallback's success beside it. One that was cancelled is not counted.
Every field that Netflix' dashboard asks for is there, none is null: it drops a record otherwise. Its pages put names
into HTML as they are, so those characters that mean something there are replaced.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from math import isinf
from typing import Any, Protocol

from msgspec.json import Encoder

from gateway.admin.sampler import WINDOW, Buckets, Sampler, Track, Window
from gateway.breaker import BreakerSnapshot
from gateway.bulkhead import BulkheadSnapshot
from gateway.events import CallFinished, Event
from gateway.operation import Operation
from gateway.outcome import BulkheadFull, CircuitOpen, Outcome
from gateway.policy import Policy
from gateway.upstream import Upstream

INTERVAL = 0.5
"""Seconds between two rounds of messages, as Hystrix has it. Its proxy gives up after 10 s of silence."""
PING = b"ping: \n\n"
"""Sent when there is nothing to tell."""
HEADERS = {
    "Content-Type": "text/event-stream;charset=UTF-8",
    "Cache-Control": "no-cache, no-store, max-age=0, must-revalidate",
    "Pragma": "no-cache",
}
MOST = 2**31 - 1
"""What Java has for infinity in an int."""
UNSAFE = re.compile(r"[<>&\"'\\\x00-\x1f\x7f]")
SHARES = {
    "0": 0.0, "25": 0.25, "50": 0.5, "75": 0.75, "90": 0.9, "95": 0.95, "99": 0.99, "99.5": 0.995, "100": 1.0,
}  # fmt: skip
ENCODER = Encoder()
Message = dict[str, Any]


class Reasons:
    """Why calls of an operation got no live answer."""

    __slots__ = ("failure", "pool_rejected", "short_circuited", "timeout")

    def __init__(self, failure: int = 0, timeout: int = 0, short_circuited: int = 0, pool_rejected: int = 0) -> None:
        self.failure = failure
        self.timeout = timeout
        self.short_circuited = short_circuited
        self.pool_rejected = pool_rejected

    def count(self, error: BaseException | None) -> None:
        """One more, that ended in this error."""
        if isinstance(error, CircuitOpen):
            self.short_circuited += 1
        elif isinstance(error, BulkheadFull):
            self.pool_rejected += 1
        elif isinstance(error, TimeoutError):
            self.timeout += 1
        elif error is not None:
            self.failure += 1

    def since(self, before: Reasons) -> Reasons:
        """Those that came since then."""
        return Reasons(*(getattr(self, one) - getattr(before, one) for one in INSIDE))

    def copy(self) -> Reasons:
        """As they are now."""
        return Reasons(*(getattr(self, one) for one in INSIDE))

    @property
    def all(self) -> int:
        """How many."""
        return self.failure + self.timeout + self.short_circuited + self.pool_rejected


INSIDE = ("failure", "timeout", "short_circuited", "pool_rejected")
NONE = Reasons()


class Gate(Protocol):
    """What is told of: a gateway."""

    def __iter__(self) -> Iterator[Upstream]:
        """Its upstreams."""
        ...

    def on(self, *kinds: type[Event], plain_every: int = 1) -> Callable[[Any], Any]:
        """Tell a function of events; of calls that went plainly well, of one in so many."""
        ...

    def off(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        ...


class Hystrix:
    """Tells of a gateway, from the first time that it is asked until `leave`. `sampler` has the windows.

    Why calls failed is known from then on: who has no such dashboard pays nothing for it.
    """

    def __init__(self, gate: Gate, sampler: Sampler) -> None:
        self.gate = gate
        self.sampler = sampler
        self._listening = False
        self._reasons: dict[tuple[str, str], Reasons] = {}
        self._marks: deque[dict[tuple[str, str], Reasons]] = deque([{}], WINDOW + 1)

    def leave(self) -> None:
        """Listen no more."""
        if self._listening:
            self._listening = False
            self.gate.off(self.call_finished)
            self.sampler.each.remove(self._mark)

    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self.gate.on(CallFinished, plain_every=0)(self.call_finished)
            self.sampler.each.append(self._mark)

    def call_finished(self, event: CallFinished) -> None:
        """A call is over."""
        if event.error is None or event.outcome is Outcome.REFUSED or event.outcome is Outcome.CANCELLED:
            return
        name = (event.upstream, event.operation)
        reasons = self._reasons.get(name)
        if reasons is None:
            reasons = self._reasons[name] = Reasons()
        reasons.count(event.error)

    def _mark(self) -> None:
        self._marks.append({name: reasons.copy() for name, reasons in self._reasons.items()})

    def reasons(self, upstream: str, operation: str) -> Reasons:
        """Why calls of the last seconds got no live answer."""
        name = (upstream, operation)
        return self._marks[-1].get(name, NONE).since(self._marks[0].get(name, NONE))

    def messages(self) -> Iterator[bytes]:
        """One round: each command that was ever asked, then the pools that were ever used."""
        self._listen()
        now = round(self.sampler.wall() * 1000)
        pools: list[Message] = []
        for upstream in self.gate:
            track = self.sampler.track(upstream)
            pool = upstream.bulkhead.snapshot()
            circuit = upstream.breaker.snapshot()
            used = False
            for operation in upstream:
                if operation.tally.asked:
                    own = circuit_of(upstream, operation) or circuit
                    reasons = self.reasons(upstream.name, operation.name)
                    yield framed(command(upstream, operation, own, track.window(operation.name), reasons, now=now))
                    used = used or operation.tally.attempts > 0
            if used:
                pools.append(thread_pool(upstream, pool, track, now=now))
        yield from map(framed, pools)


def framed(message: Message) -> bytes:
    """A message as it is sent."""
    return b"data: " + ENCODER.encode(message) + b"\n\n"


def circuit_of(upstream: Upstream, operation: Operation[..., Any]) -> BreakerSnapshot | None:
    """The circuit that an operation has of its own."""
    own = None if operation.circuit_key is None else upstream.circuits.peek(operation.circuit_key)
    return None if own is None else own.snapshot()


def command(
    upstream: Upstream,
    operation: Operation[..., Any],
    circuit: BreakerSnapshot,
    window: Window,
    reasons: Reasons,
    *,
    now: int,
) -> Message:
    """An operation, as a command."""
    policy, counts = upstream.policy, window.counts
    errors, success = reasons.all, counts["live"]
    requests = success + errors
    without = counts["failed"] + counts["unknown"] + counts["rejected"]
    name = safe(f"{upstream.name}.{operation.name}")
    latency = latencies(window.latency)
    mean = milliseconds(window.latency.snapshot().mean)
    return {
        "type": "HystrixCommand",
        "name": name,
        "group": safe(upstream.name),
        "currentTime": now,
        "isCircuitBreakerOpen": circuit.state == "isolated" or (circuit.enforced and circuit.state != "closed"),
        "errorPercentage": errors * 100 // requests if requests else 0,
        "errorCount": errors,
        "requestCount": requests,
        "rollingCountBadRequests": counts["refused"],
        "rollingCountCollapsedRequests": counts["coalesced"],
        "rollingCountEmit": 0,
        "rollingCountExceptionsThrown": without,
        "rollingCountFailure": reasons.failure,
        "rollingCountFallbackEmit": 0,
        "rollingCountFallbackFailure": without if operation.tiers else 0,
        "rollingCountFallbackMissing": 0 if operation.tiers else without,
        "rollingCountFallbackRejection": 0,
        "rollingCountFallbackSuccess": sum(counts[tier] for tier in TIERS),
        "rollingCountResponsesFromCache": counts["cached"],
        "rollingCountSemaphoreRejected": 0,
        "rollingCountShortCircuited": reasons.short_circuited,
        "rollingCountSuccess": success,
        "rollingCountThreadPoolRejected": reasons.pool_rejected,
        "rollingCountTimeout": reasons.timeout,
        "currentConcurrentExecutionCount": len(operation.calls),
        "rollingMaxConcurrentExecutionCount": len(operation.calls),
        "latencyExecute_mean": mean,
        "latencyExecute": latency,
        "latencyTotal_mean": mean,
        "latencyTotal": latency,
        **properties(policy, operation.timeout.attempt),
        "propertyValue_circuitBreakerForceOpen": circuit.state == "isolated",
        "propertyValue_metricsRollingStatisticalWindowInMilliseconds": rolling(window),
        "reportingHosts": 1,
        "threadPool": safe(upstream.name),
    }


TIERS = ("last_good", "static", "handler", "alternate")


def properties(policy: Policy, attempt: float) -> Message:
    """An upstream's rules."""
    breaker = policy.breaker
    return {
        "propertyValue_circuitBreakerRequestVolumeThreshold": whole(breaker.min_calls),
        "propertyValue_circuitBreakerSleepWindowInMilliseconds": milliseconds(breaker.open_for),
        "propertyValue_circuitBreakerErrorThresholdPercentage": round(breaker.failure_rate * 100),
        "propertyValue_circuitBreakerForceClosed": not breaker.enforce,
        "propertyValue_circuitBreakerEnabled": True,
        "propertyValue_executionIsolationStrategy": "THREAD",
        "propertyValue_executionIsolationThreadTimeoutInMilliseconds": milliseconds(attempt),
        "propertyValue_executionTimeoutInMilliseconds": milliseconds(attempt),
        "propertyValue_executionIsolationThreadInterruptOnTimeout": True,
        "propertyValue_executionIsolationSemaphoreMaxConcurrentRequests": whole(policy.bulkhead.limit),
        "propertyValue_fallbackIsolationSemaphoreMaxConcurrentRequests": whole(policy.fallback_limit),
        "propertyValue_requestCacheEnabled": False,
        "propertyValue_requestLogEnabled": False,
    }


def thread_pool(upstream: Upstream, pool: BulkheadSnapshot, track: Track, *, now: int) -> Message:
    """An upstream's bulkhead, as a thread pool."""
    window = track.window()
    sent = sum(operation.tally.attempts for operation in upstream)
    return {
        "type": "HystrixThreadPool",
        "name": safe(upstream.name),
        "currentTime": now,
        "currentActiveCount": pool.in_use,
        "currentCompletedTaskCount": max(0, sent - pool.in_use),
        "currentCorePoolSize": whole(pool.limit),
        "currentLargestPoolSize": pool.peak,
        "currentMaximumPoolSize": whole(pool.limit),
        "currentPoolSize": whole(pool.limit),
        "currentQueueSize": pool.waiting,
        "currentTaskCount": sent + pool.waiting,
        "rollingCountThreadsExecuted": window.counts["attempts"],
        "rollingMaxActiveThreads": max(pool.in_use, *track.peaks),
        "rollingCountCommandRejections": window.counts["rejected"],
        "propertyValue_queueSizeRejectionThreshold": whole(upstream.policy.bulkhead.queue),
        "propertyValue_metricsRollingStatisticalWindowInMilliseconds": rolling(window),
        "reportingHosts": 1,
    }


def latencies(buckets: Buckets) -> dict[str, int]:
    """Percentiles, in whole milliseconds."""
    return {name: milliseconds(buckets.quantile(max(share, 1e-9))) for name, share in SHARES.items()}


def rolling(window: Window) -> int:
    """How long the window is, in milliseconds: the dashboard divides by it."""
    return max(1000, round(window.seconds * 1000))


def milliseconds(seconds: float) -> int:
    """As Java has them: whole, and an end to everything."""
    return whole(seconds * 1000)


def whole(number: float) -> int:
    """A whole number that Java can have."""
    return MOST if isinf(number) else min(MOST, round(number))


def safe(name: str) -> str:
    """A name without what means something in HTML or in a selector."""
    return UNSAFE.sub("_", name)
