"""Three waits, three errors: for a place, for a connection, for the answer; the class follows the phase reached."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gateway import (
    BulkheadFull,
    BulkheadPolicy,
    Deadline,
    FailedTimeout,
    Gateway,
    HttpPolicy,
    NotSent,
    Outcome,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownTimeout,
)
from gateway.lane import fire
from tests.edges.http.misbehaving import OK, Visit, always, serving
from tests.support import NEVER_OPENS, ONE_TRY, counted, ended, gone, now, until

pytestmark = pytest.mark.asyncio


def quiet(**timeouts: float) -> Policy:
    return Policy(timeout=TimeoutPolicy(**timeouts), retry=ONE_TRY, breaker=NEVER_OPENS)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The URL of a server whose backlog is full: connecting to it takes for ever."""
    with ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What a hanging lookup waits for, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def silent(visit: Visit) -> None:
    await visit.request()
    await asyncio.Event().wait()


def dripping(*, every: float, times: int) -> object:
    async def behaviour(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % times)
        for _ in range(times):
            await asyncio.sleep(every)
            await visit.say(b".")
        await asyncio.Event().wait()

    return behaviour


# -- for a place


async def test_no_place_is_told_as_such(gate: Gateway) -> None:
    async with serving(silent) as server:
        policy = Policy(bulkhead=BulkheadPolicy(limit=1, queue=0), retry=ONE_TRY)
        up = gate.http("up", server.url, policy=policy)
        first = asyncio.create_task(up.get("/"))
        await until(lambda: server.requests)

        error = await ended(up.get("/"))

        assert isinstance(error, BulkheadFull)
        assert error.reason == "queue_full"
        await gone(first)


# -- for a connection


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_black_hole_is_given_up_after_connect_and_may_be_repeated(
    gate: Gateway, black_hole: str, method: str
) -> None:
    policy = Policy(timeout=TimeoutPolicy(connect=0.03), retry=RetryPolicy(attempts=2, wait=lambda _: 0.0))
    up = gate.http("up", black_hole, policy=policy)

    error = await ended(up.request(method)("/deed?secret=1"))

    assert isinstance(error, FailedTimeout)
    assert (error.outcome, error.waited_for, error.attempts) == (Outcome.FAILED, "connect", 2)
    assert f"{method} {black_hole}/deed: no connection within 0.030 s" in str(error)
    assert "secret" not in str(error)
    assert isinstance(error.__cause__, NotSent)


@pytest.mark.virtual_time
@pytest.mark.parametrize("limit", [3.0, 5.2])
async def test_the_connect_limit_is_not_rounded_up(gate: Gateway, black_hole: str, limit: float) -> None:
    up = gate.http("up", black_hole, policy=quiet(connect=limit))
    began = now()

    await ended(up.get("/"))

    assert now() - began == pytest.approx(limit, abs=1e-3)


async def test_the_connect_limit_covers_the_lookup(gate: Gateway, never: threading.Event) -> None:
    http = HttpPolicy(resolve=lambda _: ["127.0.0.1"] if never.wait(20) else [])
    up = gate.http("up", "http://a.test", policy=quiet(connect=0.03), http=http)

    error = await ended(up.post("/"))

    assert (error.outcome, error.waited_for) == (Outcome.FAILED, "connect")
    assert "http://a.test/: no connection within 0.030 s" in str(error)


async def test_lookups_that_hang_hold_up_nobody_else(gate: Gateway, never: threading.Event) -> None:
    hung = HttpPolicy(resolve=lambda _: ["127.0.0.1"] if never.wait(20) else [])
    asked = [
        asyncio.create_task(gate.http(f"hung {n}", f"http://n{n}.test", policy=quiet(connect=0.04), http=hung).get("/"))
        for n in range(40)
    ]
    await asyncio.sleep(0.01)

    assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10.0) == 1  # the loop's own threads are free

    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize(("method", "kind"), [("GET", FailedTimeout), ("POST", FailedTimeout)])
@pytest.mark.parametrize("limit", ["attempt", "deadline"])
async def test_any_limit_that_ends_the_connecting_finds_nothing_sent(
    gate: Gateway, black_hole: str, method: str, kind: type[Exception], limit: str
) -> None:
    connect = {"connect": float("inf")}
    up = gate.http("up", black_hole, policy=quiet(**connect, **({"attempt": 0.03} if limit == "attempt" else {})))

    with Deadline.after(0.03 if limit == "deadline" else 5.0):
        error = await ended(up.request(method)("/"))

    assert type(error) is kind
    assert (error.outcome, error.waited_for) == (Outcome.FAILED, limit)
    assert isinstance(error.__cause__, NotSent)
    assert f"{black_hole}/: no connection within the 0." in str(error)


async def test_a_caller_who_leaves_while_connecting_has_left(gate: Gateway, black_hole: str) -> None:
    up = gate.http("up", black_hole)
    call = asyncio.create_task(up.get("/"))
    await asyncio.sleep(0.01)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}


async def test_a_caller_who_leaves_as_the_time_is_over_has_left(gate: Gateway, black_hole: str) -> None:
    up = gate.http("up", black_hole, policy=quiet(attempt=10.0, connect=float("inf")))
    call = asyncio.create_task(up.get("/"))
    await until(lambda: [lane for lane in up._lanes.values() if lane._pending])
    limit = next(iter(up._lanes.values()))
    timer = next(iter(limit._pending))

    fire(timer, up.clock())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert counted(up)["cancelled"] == 1


# -- for the answer


@pytest.mark.parametrize(("method", "kind"), [("GET", FailedTimeout), ("POST", UnknownTimeout)])
@pytest.mark.parametrize("limit", ["read", "attempt", "deadline"])
async def test_any_limit_that_ends_the_waiting_finds_it_sent(
    gate: Gateway, method: str, kind: type[Exception], limit: str
) -> None:
    async with serving(silent) as server:
        up = gate.http("up", server.url, policy=quiet(**({limit: 0.03} if limit != "deadline" else {})))

        with Deadline.after(0.03 if limit == "deadline" else 5.0):
            error = await ended(up.request(method)("/deed?secret=1"))

        assert type(error) is kind
        assert error.waited_for == limit
        assert f"{method} {server.url}/deed: " in str(error)
        assert ("silence for 0.030 s" if limit == "read" else "no whole answer within 0.") in str(error)
        assert len(server.requests) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("limit", [5.0, 30.0])
async def test_the_read_limit_is_not_rounded_up(gate: Gateway, limit: float) -> None:
    async with serving(silent) as server:
        up = gate.http("up", server.url, policy=quiet(read=limit, attempt=60.0))
        began = now()

        error = await ended(up.post("/"))

        assert now() - began == pytest.approx(limit, abs=1e-3)
        assert error.outcome is Outcome.UNKNOWN


@pytest.mark.virtual_time
async def test_a_drip_feed_never_trips_the_read_limit_and_the_try_ends_it(gate: Gateway) -> None:
    async with serving(dripping(every=4.0, times=30)) as server:  # type: ignore[arg-type]
        patient = gate.http("patient", server.url, policy=quiet(read=5.0, attempt=200.0))
        strict = gate.http("strict", server.url, policy=quiet(read=5.0, attempt=30.0))
        began = now()

        assert len((await patient.get("/")).body) == 30
        patiently, began = now() - began, now()
        error = await ended(strict.get("/"))

        assert patiently == pytest.approx(120.0, abs=1e-3)
        assert now() - began == pytest.approx(30.0, abs=1e-3)
        assert error.waited_for == "attempt"


@pytest.mark.virtual_time
@pytest.mark.parametrize(("limit", "took"), [(5.0, 5.0), (15.0, 10.0)])
async def test_a_payment_that_is_slow_is_unknown_and_never_charged_twice(
    gate: Gateway, limit: float, took: float
) -> None:
    async def approves_after_ten_seconds(visit: Visit) -> None:
        await visit.request()
        await asyncio.sleep(10.0)
        await visit.say(OK)

    async with serving(approves_after_ten_seconds) as server:
        policy = Policy(timeout=TimeoutPolicy(call=40.0, attempt=limit, read=limit))
        provider = gate.http("provider", server.url, policy=policy)
        provider.post.fallback(Static("nothing happened"))
        began = now()

        result = await ended(provider.post("/charges", json={"amount": 1}))

        assert now() - began == pytest.approx(took, abs=1e-3)
        assert len(server.requests) == 1
        assert result.outcome is Outcome.UNKNOWN if limit == 5.0 else result.status == 200


@pytest.mark.virtual_time
@pytest.mark.parametrize("retries", [1, 2])
async def test_the_time_grows_with_the_retries(gate: Gateway, retries: int) -> None:
    async with serving(silent) as server:
        policy = Policy(
            timeout=TimeoutPolicy(call=60.0, read=5.0),
            retry=RetryPolicy(attempts=1 + retries, wait=lambda _: 0.0),
            breaker=NEVER_OPENS,
        )
        up = gate.http("up", server.url, policy=policy)
        began = now()

        await ended(up.get("/"))

        assert now() - began == pytest.approx(5.0 * (1 + retries), abs=1e-2)


# -- within a function of the same upstream


@pytest.mark.parametrize("idempotent", [None, False])
async def test_within_a_function_the_phase_is_the_functions(
    gate: Gateway, black_hole: str, idempotent: bool | None
) -> None:
    up = gate.http("up", black_hole, policy=quiet(attempt=0.03, connect=float("inf")))

    @up.operation(idempotent=idempotent)
    async def deed() -> None:
        await up.post("/")

    error = await ended(deed())

    assert (error.outcome, error.waited_for) == (Outcome.FAILED, "attempt")


@pytest.mark.parametrize("idempotent", [None, False])
async def test_what_a_function_sent_before_is_sent(gate: Gateway, idempotent: bool | None) -> None:
    async def once(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await visit.request()

    async with serving(once) as server:
        up = gate.http("up", server.url)

        @up.operation(idempotent=idempotent)
        async def deed() -> None:
            await up.post("/charge")
            raise NotSent("the second half")

        error = await ended(deed())

        assert error.outcome is Outcome.UNKNOWN
        assert len(server.requests) == 1


async def test_a_thousand_requests_one_after_another_need_one_connection(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)

        for _ in range(1000):
            await up.get("/")

        assert server.connections == 1


async def test_a_caller_s_own_timeout_is_one_while_no_connection_is_made_too(gate: Gateway) -> None:
    def never(name: str) -> list[str]:
        time.sleep(0.2)
        return []

    up = gate.http("up", "http://nowhere.test", http=HttpPolicy(resolve=never))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await up.get("/")

    assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}
