"""A gateway in OpenTelemetry: a span for each call, one for each try, numbers; and the context goes to the upstreams.

    from gateway import otel                      # pip install 'async-worker-gateway[otel]'

    gate.http("ratings", url, http=HttpPolicy(propagate=otel.headers))
    instrumentation = otel.instrument(gate)       # the tracer and the meter of the process, or those you give

    ratings.user_rating                 the call: queue, tries, pauses, fallbacks
    ├── ratings.user_rating try 1       what the upstream took; what the function calls in turn is below it
    └── ratings.user_rating try 2

Who does not instrument pays nothing: where a call begins, and where it is sent, other functions are put in for it. An
operation that is made later, as the methods of HTTP upstreams are, is instrumented when its first call is over; that
call has a span without tries. Names of attributes are those of the semantic conventions where there are any
(`peer.service`, `error.type`, `http.request.method`, ...), else they begin with `gateway.`. Arguments and values are in
none of them; an error is its type. If a sampler or a processor of spans raises, that is logged, and nothing is traced
any more: observation never changes what is observed.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError, current_task
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import Token
from time import time_ns
from typing import Any, Protocol, TypeVar

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from gateway.call import Call
from gateway.events import AttemptFailed, CallFinished, Event
from gateway.http.method import Method
from gateway.http.reply import HttpReply
from gateway.operation import Operation
from gateway.outcome import GatewayError, Outcome
from gateway.upstream import Upstream

log = logging.getLogger("gateway")

NAME = "gateway"
NO_ANSWER = frozenset({Outcome.FAILED, Outcome.UNKNOWN, Outcome.REJECTED})
TRACED = context.create_key("gateway-call")
Sender = Callable[..., Awaitable[Any]]
Done = TypeVar("Done")
Begin = Callable[[tuple[Any, ...], dict[str, Any]], Call]


class Gate(Protocol):
    """What is instrumented: a gateway."""

    def __iter__(self) -> Iterator[Upstream]:
        """Its upstreams."""
        ...

    def __getitem__(self, name: str) -> Upstream:
        """An upstream."""
        ...

    def on(self, *kinds: type[Event]) -> Callable[[Any], Any]:
        """Tell a function of events."""
        ...

    def off(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        ...


class Traced:
    """A call under way: its span, the task it runs in, and the span of its last try until the verdict on it is told."""

    __slots__ = ("attempt", "span", "task", "token", "tries")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.task = current_task()
        self.token: Token[Context]
        self.tries = 0
        self.attempt: Span | None = None

    def end_attempt(self, error: str | None = None) -> None:
        """Its last try is judged."""
        span, self.attempt = self.attempt, None
        if span is not None:
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR))
            span.end()


def instrument(
    gate: Gate, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Instrumentation:
    """Trace and measure a gateway from now on, until `remove()`. Upstreams may be registered later."""
    return Instrumentation(gate, tracer_provider, meter_provider)


def headers() -> Mapping[str, str]:
    """The context as headers, such as `traceparent`: for `HttpPolicy(propagate=otel.headers)`."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


class Instrumentation:
    """What `instrument` has put in; `remove()` takes it out again, and leaves calls in flight as they are."""

    def __init__(
        self, gate: Gate, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self.gate = gate
        self._tracer = trace.get_tracer(NAME, tracer_provider=tracer_provider)
        self._calls: dict[int, Traced] = {}
        self._known: dict[Operation[..., Any], tuple[Sender, Sender]] = {}
        self._removed = False
        self._measure(meter_provider)
        for upstream in gate:
            for operation in upstream:
                self._put_in(upstream, operation)
        gate.on(CallFinished)(self.call_finished)
        gate.on(AttemptFailed)(self.attempt_failed)

    def remove(self) -> None:
        """Trace no more. What another has put in above it stays, and calls nothing of this any more."""
        self._removed = True
        self.gate.off(self.call_finished)
        self.gate.off(self.attempt_failed)
        for operation, (ours, real) in self._known.items():
            vars(operation).pop("_begin", None)
            now = operation.swap_sender(real)
            if now is not ours:
                operation.swap_sender(now)
        self._known.clear()
        for traced in self._calls.values():
            with suppress(Exception):
                traced.end_attempt()
            with suppress(Exception):
                traced.span.end()
        self._calls.clear()

    def _safely(self, do: Callable[..., Done], *args: Any, **kwargs: Any) -> Done | None:
        """Do it; who raises in it has traced for the last time."""
        try:
            return do(*args, **kwargs)
        except Exception:
            log.exception("what hears of spans raised: nothing is traced any more")
            self.remove()
            return None

    # -- spans

    def _put_in(self, upstream: Upstream, operation: Operation[..., Any]) -> None:
        name = f"{upstream.name}.{operation.name}"
        about = {"peer.service": upstream.name, "gateway.upstream": upstream.name, "gateway.operation": operation.name}
        if isinstance(operation, Method):
            about["http.request.method"] = operation.method
        begin: Begin = operation._begin  # noqa: SLF001 - where each call begins, however it is made
        vars(operation)["_begin"] = self._beginning(name, about, begin)
        real: Sender = operation._cold.sender  # noqa: SLF001 - what stands there now
        ours = self._sending(name, about, real)
        operation.swap_sender(ours)
        self._known[operation] = (ours, real)

    def _beginning(self, name: str, about: dict[str, str], begin: Begin) -> Begin:
        def begin_traced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            call = begin(args, kwargs)
            span = self._safely(self._tracer.start_span, name, attributes=about)
            if span is None:
                return call
            traced = Traced(span)
            around = context.set_value(TRACED, traced, trace.set_span_in_context(traced.span))
            traced.token = context.attach(around)
            self._calls[id(call)] = traced
            return call

        return begin_traced

    def _sending(self, name: str, about: dict[str, str], send: Sender) -> Sender:
        async def send_traced(*args: Any, **kwargs: Any) -> Any:
            if self._removed:
                return await send(*args, **kwargs)
            traced = context.get_value(TRACED)
            if not isinstance(traced, Traced) or traced.task is not current_task():
                traced = None  # a refresh in the background: below the call it was begun by, but no try of that
            number = 1
            if traced is not None:
                traced.end_attempt()
                traced.tries = number = traced.tries + 1
            more: dict[str, str | int] = {**about, "gateway.try": number}
            if number > 1 and "http.request.method" in about:
                more["http.request.resend_count"] = number - 1
            span = self._safely(self._tracer.start_span, f"{name} try {number}", kind=SpanKind.CLIENT, attributes=more)
            if span is None:
                return await send(*args, **kwargs)
            token = context.attach(trace.set_span_in_context(span))
            try:
                value = await send(*args, **kwargs)
            except GeneratorExit:  # it is thrown away, in a context that is not its own
                self._safely(span.end)
                raise
            except BaseException as error:
                context.detach(token)
                self._safely(self._ended_badly, span, traced, error)
                raise
            context.detach(token)
            if isinstance(value, HttpReply):
                span.set_attribute("http.response.status_code", value.status)
            self._safely(span.end)
            return value

        return send_traced

    @staticmethod
    def _ended_badly(span: Span, traced: Traced | None, error: BaseException) -> None:
        if (status := status_of(error)) is not None:
            span.set_attribute("http.response.status_code", status)
        if traced is not None:
            traced.attempt = span  # the verdict follows, in this very turn of the loop: it knows who was out of time
            return
        if not isinstance(error, CancelledError):
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def attempt_failed(self, event: AttemptFailed) -> None:
        """The verdict on a try."""
        self._safely(self._judged, event)

    def call_finished(self, event: CallFinished) -> None:
        """A call is over."""
        self._safely(self._over, event)

    def _judged(self, event: AttemptFailed) -> None:
        traced = self._calls.get(event.call)
        if traced is not None:
            if traced.attempt is not None:
                traced.attempt.set_attribute("gateway.outcome", str(event.outcome))
            traced.end_attempt(type_of(event.error))

    def _over(self, event: CallFinished) -> None:
        traced = self._calls.pop(event.call, None)
        ended = str(event.source or event.outcome)
        about = {"gateway.upstream": event.upstream, "gateway.operation": event.operation, "gateway.ended": ended}
        if event.source is None and event.outcome in NO_ANSWER:
            about["error.type"] = type_of(event.error)
        self._durations.record(event.duration, about)
        if traced is None:
            self._tell_of_the_first(event)
            return
        traced.end_attempt()
        if traced.task is current_task():
            context.detach(traced.token)
        describe(traced.span, event)
        traced.span.end()

    def _tell_of_the_first(self, event: CallFinished) -> None:
        """The first call of an operation that was not known; from the next one on, it is."""
        upstream = self.gate[event.upstream]
        operation = upstream[event.operation]
        if operation in self._known:
            return  # it began before
        now = time_ns()
        span = self._tracer.start_span(
            f"{event.upstream}.{event.operation}",
            kind=SpanKind.CLIENT,
            attributes={
                "peer.service": event.upstream,
                "gateway.upstream": event.upstream,
                "gateway.operation": event.operation,
            },
            start_time=now - round(event.duration * 1e9),
        )
        describe(span, event)
        span.end(now)
        self._put_in(upstream, operation)

    # -- numbers

    def _measure(self, provider: MeterProvider | None) -> None:
        meter = get_meter(NAME, meter_provider=provider)
        self._durations = meter.create_histogram(
            "gateway.call.duration", unit="s", description="How long calls took, with all that is in them."
        )
        meter.create_observable_counter(
            "gateway.calls", [self._observe(calls_of)], "{call}", "Calls that are over, by how they ended."
        )
        meter.create_observable_counter("gateway.tries", [self._observe(tries_of)], "{try}", "Tries that were sent.")
        meter.create_observable_counter(
            "gateway.retries", [self._observe(retries_of)], "{try}", "Tries after a first one."
        )
        meter.create_observable_gauge(
            "gateway.pool.usage", [self._observe(usage_of)], "{place}", "Places of the pool, by what they are."
        )
        meter.create_observable_gauge(
            "gateway.circuit.state", [self._observe(state_of)], "1", "1 for the state that the circuit is in."
        )

    def _observe(
        self, each: Callable[[Upstream], Iterable[Observation]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            if not self._removed:
                for upstream in self.gate:
                    yield from each(upstream)

        return observe


def describe(span: Span, event: CallFinished) -> None:
    """How a call ended, on its span."""
    if not span.is_recording():
        return
    about: dict[str, str | float] = {"gateway.outcome": str(event.outcome), "gateway.tries": event.attempts}
    if event.source is not None:
        about["gateway.source"] = str(event.source)
    if event.waited:
        about["gateway.queue.wait"] = event.waited
    if event.age:
        about["gateway.answer.age"] = event.age
    if event.error is not None:
        about["error.type"] = type_of(event.error)
        for note in getattr(event.error, "__notes__", ()):
            span.add_event("gateway.note", {"gateway.note": note.partition(":")[0]})  # what follows may be anything
    span.set_attributes(about)
    if event.source is None and event.outcome in NO_ANSWER:
        span.set_status(Status(StatusCode.ERROR))


def type_of(error: BaseException | None) -> str:
    """What went wrong, in one of few words: the limit that was reached, a status, or the type of the error."""
    if isinstance(error, GatewayError):
        if error.waited_for is not None and isinstance(error, TimeoutError):
            return f"timeout_{error.waited_for}"
        if error.__cause__ is not None:
            error = error.__cause__
    if (status := status_of(error)) is not None:
        return str(status)
    return "_OTHER" if error is None else type(error).__qualname__


def status_of(error: BaseException | None) -> int | None:
    """The status of the reply that an error of HTTP came with."""
    status = getattr(getattr(error, "reply", None), "status", None)
    return status if isinstance(status, int) else None


def calls_of(upstream: Upstream) -> Iterator[Observation]:
    """Calls, by how they ended."""
    for operation in upstream:
        for end, count in operation.tally.ended.items():
            if count:
                yield Observation(count, {**named(upstream, operation), "gateway.ended": str(end)})


def tries_of(upstream: Upstream) -> Iterator[Observation]:
    """Tries that were sent."""
    return (Observation(one.tally.attempts, named(upstream, one)) for one in upstream)


def retries_of(upstream: Upstream) -> Iterator[Observation]:
    """Tries after a first one."""
    return (Observation(one.tally.retries, named(upstream, one)) for one in upstream)


def usage_of(upstream: Upstream) -> Iterator[Observation]:
    """Places of the pool. `limit` may be infinite."""
    pool = upstream.bulkhead.snapshot()
    for state in ("limit", "in_use", "abandoned", "waiting"):
        yield Observation(getattr(pool, state), {"gateway.upstream": upstream.name, "gateway.pool.state": state})


def state_of(upstream: Upstream) -> Iterator[Observation]:
    """The circuit."""
    now = upstream.breaker.snapshot().state
    for state in ("closed", "open", "half_open", "isolated"):
        yield Observation(int(now == state), {"gateway.upstream": upstream.name, "gateway.circuit.state": state})


def named(upstream: Upstream, operation: Operation[..., Any]) -> dict[str, str]:
    """Whose number it is."""
    return {"gateway.upstream": upstream.name, "gateway.operation": operation.name}
