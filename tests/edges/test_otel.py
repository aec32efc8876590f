"""OpenTelemetry: the spans of a call and of its tries, the context that goes along, the numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Gateway,
    HttpPolicy,
    LastGood,
    NotSent,
    Policy,
    Refused,
    RetryPolicy,
    Static,
    TimeoutPolicy,
)
from gateway.otel import Instrumentation, headers, instrument
from gateway.testing import Faults, assert_nothing_left
from tests.edges.serving import served
from tests.support import NEVER_OPENS, ONE_TRY, QUIET, Boom, counted, ended, gone

virtual = pytest.mark.virtual_time
SECRET = "s3cret"  # noqa: S105 - it is to be seen nowhere


@dataclass
class Seen:
    """What was exported."""

    gate: Gateway
    exporter: InMemorySpanExporter
    tracer: trace.Tracer
    reader: InMemoryMetricReader
    instrumentation: Instrumentation

    def spans(self) -> list[ReadableSpan]:
        """In the order they ended."""
        return list(self.exporter.get_finished_spans())

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name == name]
        return found

    def numbers(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def seen() -> Iterator[Seen]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    gate = Gateway()
    instrumentation = instrument(gate, tracer_provider=tracers, meter_provider=meters)
    yield Seen(gate, exporter, tracers.get_tracer("test"), reader, instrumentation)
    instrumentation.remove()
    meters.shutdown()
    tracers.shutdown()
    assert not gate.listeners.call_finished


def again(seen: Seen) -> None:
    """Know the operations that were registered since."""
    for upstream in seen.gate:
        for operation in upstream:
            if operation not in seen.instrumentation._known:
                seen.instrumentation._put_in(upstream, operation)


def policy(**more: Any) -> Policy:
    return Policy(
        **{
            "retry": RetryPolicy(wait=lambda _: 0.05),
            "breaker": NEVER_OPENS,
            "timeout": TimeoutPolicy(attempt=0.3),
            **more,
        }
    )


@virtual
async def test_a_call_is_a_span_and_each_try_is_one_below_it(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())
    inside: list[str] = []

    @ratings.operation(idempotent=True)
    async def stars(film: str) -> int:
        span = trace.get_current_span()
        inside.append(span.name)  # type: ignore[attr-defined]
        if len(inside) == 1:
            raise Boom(SECRET)
        await asyncio.sleep(0.1)
        return 5

    again(seen)
    async with seen.gate:
        with seen.tracer.start_as_current_span("request"):
            await stars(SECRET)
            assert trace.get_current_span().name == "request"  # type: ignore[attr-defined]

    first, second, call, request = seen.spans()
    assert inside == [first.name, second.name] == ["ratings.stars try 1", "ratings.stars try 2"]
    assert call.name == "ratings.stars"
    assert first.parent is not None
    assert second.parent is not None
    assert call.parent is not None
    assert first.parent.span_id == second.parent.span_id == call.context.span_id
    assert call.parent.span_id == request.context.span_id
    assert first.kind is second.kind is SpanKind.CLIENT
    assert call.kind is SpanKind.INTERNAL
    assert first.attributes is not None
    assert first.attributes["error.type"] == "Boom"
    assert first.attributes["peer.service"] == "ratings"
    assert first.attributes["gateway.outcome"] == "failed"
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is call.status.status_code is StatusCode.UNSET
    assert dict(call.attributes or {}) == {
        "peer.service": "ratings",
        "gateway.upstream": "ratings",
        "gateway.operation": "stars",
        "gateway.outcome": "success",
        "gateway.source": "live",
        "gateway.tries": 2,
    }
    assert SECRET not in "".join(span.to_json() for span in seen.spans())


@virtual
async def test_a_try_that_timed_out_says_which_limit_it_was(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy(retry=ONE_TRY))

    @ratings.operation(idempotent=True, fallback=[LastGood(max_age=60), Static(0)])
    async def stars() -> int:
        await asyncio.sleep(1.0)
        return 5

    again(seen)
    async with seen.gate:
        await stars()

    attempt, call = seen.spans()
    assert (attempt.attributes or {})["error.type"] == "timeout_attempt"
    assert attempt.status.status_code is StatusCode.ERROR
    about = dict(call.attributes or {})
    assert (about["gateway.source"], about["error.type"], about["gateway.outcome"]) == (
        "static",
        "timeout_attempt",
        "failed",
    )
    assert call.status.status_code is StatusCode.UNSET  # it has an answer
    assert [event.attributes for event in call.events] == [{"gateway.note": "LastGood had no answer"}]


@virtual
async def test_what_was_never_sent_has_no_try(seen: Seen) -> None:
    sick = seen.gate.upstream("sick", policy=policy(retry=ONE_TRY, breaker=BreakerPolicy()))

    @sick.operation(idempotent=True)
    async def stars() -> int:
        return 5

    again(seen)
    sick.isolate()
    async with seen.gate:
        await ended(stars())

    (call,) = seen.spans()
    assert (call.attributes or {})["error.type"] == "CircuitOpen"
    assert (call.attributes or {})["gateway.outcome"] == "rejected"
    assert call.status.status_code is StatusCode.ERROR


@virtual
async def test_a_refusal_and_a_caller_who_left_are_no_errors(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    async def stars(*, no: bool) -> int:
        if no:
            raise Refused("no such film")
        await asyncio.sleep(0.2)
        return 5

    again(seen)
    async with seen.gate:
        await ended(stars(no=True))
        call = asyncio.create_task(stars(no=False))
        await asyncio.sleep(0.1)
        await gone(call)

    spans = seen.spans()
    assert [(span.name, span.status.status_code) for span in spans] == [
        ("ratings.stars try 1", StatusCode.UNSET),
        ("ratings.stars", StatusCode.UNSET),
    ] * 2
    assert [(span.attributes or {}).get("gateway.outcome") for span in spans[1::2]] == ["refused", "cancelled"]
    assert seen.instrumentation._calls == {}


@virtual
async def test_the_wait_for_a_place_is_told(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy(bulkhead=BulkheadPolicy(limit=1)))

    @ratings.operation(idempotent=True)
    async def stars() -> None:
        await asyncio.sleep(0.1)

    again(seen)
    async with seen.gate:
        await asyncio.gather(stars(), stars())

    waits = [(span.attributes or {}).get("gateway.queue.wait") for span in seen.spans() if span.name == "ratings.stars"]
    assert waits == [None, pytest.approx(0.1)]


@virtual
async def test_calls_beside_each_other_do_not_take_each_others_place(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    async def stars(takes: float) -> str:
        await asyncio.sleep(takes)
        return format(trace.get_current_span().get_span_context().trace_id, "x")

    again(seen)
    async with seen.gate:
        traces = await asyncio.gather(*(stars(0.01 * number) for number in range(5)))

    assert len(set(traces)) == 5
    for attempt in [span for span in seen.spans() if "try" in span.name]:
        (call,) = [one for one in seen.spans() if attempt.parent and one.context.span_id == attempt.parent.span_id]
        assert call.context.trace_id == attempt.context.trace_id


@virtual
async def test_a_plain_function_runs_below_its_try_in_its_thread(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    def stars() -> str:
        return str(trace.get_current_span().name)  # type: ignore[attr-defined]

    again(seen)
    async with seen.gate:
        assert await stars() == "ratings.stars try 1"


@virtual
async def test_a_slot_is_a_call_with_one_try_and_its_block_is_below_that(seen: Seen) -> None:
    warehouse = seen.gate.upstream("warehouse", policy=policy())
    async with seen.gate:
        async with warehouse.slot("report"):
            pass
        async with warehouse.slot("report"):
            below = trace.get_current_span().name  # type: ignore[attr-defined]
        with pytest.raises(Boom):
            async with warehouse.slot("report"):
                raise Boom
        outside = trace.get_current_span()

    assert below == "warehouse.report try 1"
    assert not outside.get_span_context().is_valid
    assert seen.names() == ["warehouse.report", *["warehouse.report try 1", "warehouse.report"] * 2]
    assert seen.spans()[3].status.status_code is StatusCode.ERROR


@virtual
async def test_an_operation_that_comes_later_is_known_after_its_first_call(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    async def stars() -> None:
        await asyncio.sleep(0.2)

    async with seen.gate:
        with seen.tracer.start_as_current_span("request"):
            await asyncio.gather(stars(), stars())
            await stars()

    assert seen.names() == [*["ratings.stars"] * 1, "ratings.stars try 1", "ratings.stars", "request"]
    first, *_, request = seen.spans()
    assert first.parent is not None
    assert first.parent.span_id == request.context.span_id
    assert first.end_time is not None
    assert first.start_time is not None
    assert first.end_time - first.start_time == pytest.approx(0.2e9, rel=0.01)


@virtual
async def test_a_refresh_in_the_background_is_below_the_call_that_asked_for_it(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True, fresh_for=1.0, revalidate="background")
    async def stars() -> int:
        await asyncio.sleep(0.1)
        return 5

    again(seen)
    async with seen.gate:
        await stars()
        await asyncio.sleep(5.0)
        await stars()
        await asyncio.sleep(1.0)

    assert seen.names() == ["ratings.stars try 1", "ratings.stars", "ratings.stars", "ratings.stars try 1"]
    cached, refresh = seen.spans()[2:]
    assert (cached.attributes or {})["gateway.source"] == "cached"
    assert (cached.attributes or {})["gateway.answer.age"] == pytest.approx(5.0)
    assert refresh.parent is not None
    assert refresh.parent.span_id == cached.context.span_id


@virtual
async def test_a_refresh_that_fails_is_a_try_that_failed(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())
    well = True

    @ratings.operation(idempotent=True, fresh_for=1.0, revalidate="background")
    async def stars() -> int:
        if not well:
            raise Boom
        return 5

    again(seen)
    async with seen.gate:
        await stars()
        well = False
        await asyncio.sleep(5.0)
        await stars()
        await asyncio.sleep(1.0)

    refresh = seen.spans()[-1]
    assert refresh.name == "ratings.stars try 1"
    assert refresh.status.status_code is StatusCode.ERROR
    assert (refresh.attributes or {})["error.type"] == "Boom"


@virtual
async def test_what_follows_a_try_is_below_the_call_and_not_the_try(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())
    inside: list[str] = []

    def worth(value: int) -> bool:
        inside.append(trace.get_current_span().name)  # type: ignore[attr-defined]
        return True

    @ratings.operation(idempotent=True, fresh_for=1.0, remember=worth)
    async def stars() -> int:
        return 5

    again(seen)
    async with seen.gate:
        await stars()

    assert inside == ["ratings.stars"]


@virtual
async def test_what_a_tier_failed_with_is_in_no_span(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy(retry=ONE_TRY))

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        raise Boom(SECRET)

    @stars.fallback
    async def broken(why: Exception) -> int:
        raise Boom(SECRET)

    again(seen)
    async with seen.gate:
        await ended(stars())

    call = seen.one("ratings.stars")
    assert [dict(event.attributes or {}) for event in call.events] == [{"gateway.note": "handler broken failed"}]
    assert SECRET not in "".join(span.to_json() for span in seen.spans())


async def the_context_goes_along(seen: Seen) -> tuple[list[str | None], web.Application]:
    got: list[str | None] = []

    async def films(request: web.Request) -> web.Response:
        got.append(request.headers.get("traceparent"))
        return web.Response(status=503 if len(got) == 2 else 200, text="[]")

    app = web.Application()
    app.router.add_get("/films", films)
    return got, app


@pytest.mark.asyncio
async def test_the_context_goes_to_an_http_upstream_with_each_try(seen: Seen) -> None:
    got, app = await the_context_goes_along(seen)
    async with served(app) as url, seen.gate:
        retry = RetryPolicy(wait=lambda _: 0.0)
        films = seen.gate.http("films", url, policy=Policy(retry=retry), http=HttpPolicy(propagate=headers))
        await films.get("/films")
        await films.get("/films")

    spans = {format(span.context.span_id, "016x"): span for span in seen.spans()}
    tries = [spans[str(parent).split("-")[2]] for parent in got[1:]]
    assert [span.name for span in tries] == ["films.get try 1", "films.get try 2"]
    assert [dict(span.attributes or {}) for span in tries] == [
        {
            "peer.service": "films",
            "gateway.upstream": "films",
            "gateway.operation": "get",
            "http.request.method": "GET",
            "gateway.try": 1,
            "http.response.status_code": 503,
            "gateway.outcome": "failed",
            "error.type": "503",
        },
        {
            "peer.service": "films",
            "gateway.upstream": "films",
            "gateway.operation": "get",
            "http.request.method": "GET",
            "gateway.try": 2,
            "http.request.resend_count": 1,
            "http.response.status_code": 200,
        },
    ]


@virtual
async def test_who_takes_it_out_pays_nothing_any_more(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        return 5

    before = (stars._send, stars._begin)
    again(seen)
    assert stars._send is not before[0]

    seen.instrumentation.remove()

    assert (stars._send, stars._begin) == before
    async with seen.gate:
        await stars()
    assert seen.names() == []


@virtual
async def test_it_is_taken_out_below_what_another_put_in(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=QUIET)

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        return 5

    again(seen)
    async with seen.gate:
        with Faults(stars).error(NotSent("no")) as faults:
            seen.instrumentation.remove()
            assert isinstance(await ended(stars()), Exception)
            assert await stars() == 5
            assert faults.tries == 2
        assert await stars() == 5
    assert_nothing_left(seen.gate)
    assert seen.names() == []


class Raising(SpanProcessor):
    """Of somebody's own: it raises when a span begins, or ends."""

    def __init__(self, at: str) -> None:
        self.at = at

    def on_start(self, span: object, parent_context: object = None) -> None:
        if self.at == "the start":
            raise Boom

    def on_end(self, span: object) -> None:
        if self.at == "the end":
            raise Boom


@virtual
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("at", ["the start", "the end"])
async def test_who_hears_of_spans_and_raises_is_logged_and_fails_no_call(
    seen: Seen, caplog: pytest.LogCaptureFixture, at: str, failures: int
) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy(retry=RetryPolicy(wait=lambda _: 0.05, attempts=2)))
    fails = [True] * failures + [False] * 2

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        if fails.pop(0):
            raise Boom
        return 5

    again(seen)
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Raising(at))
    seen.instrumentation._tracer = tracers.get_tracer("test")

    async with seen.gate:
        answers = [await stars(), await stars()]
        assert_nothing_left(seen.gate)

    assert answers == [5, 5]
    assert (counts := counted(ratings)).pop("retries", 0) == failures
    assert counts == {"asked": 2, "live": 2, "attempts": 2 + failures}
    assert caplog.text.count("nothing is traced any more") == 1
    assert not seen.gate.listeners.call_finished
    tracers.shutdown()


@virtual
async def test_calls_in_flight_end_well_when_it_is_taken_out(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        await asyncio.sleep(0.1)
        return 5

    again(seen)
    async with seen.gate:
        call = asyncio.create_task(stars())
        await asyncio.sleep(0.05)
        seen.instrumentation.remove()
        assert await call == 5

    assert sorted(seen.names()) == ["ratings.stars", "ratings.stars try 1"]


@virtual
async def test_numbers_are_those_of_the_snapshot(seen: Seen) -> None:
    ratings = seen.gate.upstream("ratings", policy=policy())

    @ratings.operation(idempotent=True, fallback=[Static(0)])
    async def stars(error: Exception | None = None) -> int:
        await asyncio.sleep(0.1)
        if error is not None:
            raise error
        return 5

    again(seen)
    async with seen.gate:
        await stars()
        await stars(Boom())
        numbers = seen.numbers()

    assert {dict(point.attributes)["gateway.ended"]: point.value for point in numbers["gateway.calls"]} == {
        "live": 1,
        "static": 1,
    }
    assert [point.value for point in numbers["gateway.tries"]] == [3]
    assert [point.value for point in numbers["gateway.retries"]] == [1]
    usage = {dict(point.attributes)["gateway.pool.state"]: point.value for point in numbers["gateway.pool.usage"]}
    assert usage == {"limit": 20, "in_use": 0, "abandoned": 0, "waiting": 0}
    states = {
        dict(point.attributes)["gateway.circuit.state"]: point.value for point in numbers["gateway.circuit.state"]
    }
    assert states == {"closed": 1, "open": 0, "half_open": 0, "isolated": 0}
    durations = {dict(point.attributes)["gateway.ended"]: point for point in numbers["gateway.call.duration"]}
    assert durations["live"].sum == pytest.approx(0.1)
    assert durations["static"].sum == pytest.approx(0.25)
