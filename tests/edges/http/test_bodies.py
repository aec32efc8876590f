"""Bodies: what goes out, how much comes in, and what is read piece by piece."""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway import (
    BulkheadPolicy,
    Failed,
    FailedTimeout,
    Gateway,
    HttpPolicy,
    HttpRefused,
    HttpReply,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    Unknown,
    UnknownTimeout,
)
from gateway.lane import fire
from gateway.outcome import ConfigError
from tests.edges.http.misbehaving import OK, Visit, always, reply, serving
from tests.support import NEVER_OPENS, ONE_TRY, counted, ended, now, steps, until

pytestmark = pytest.mark.asyncio
QUIET = Policy(retry=ONE_TRY, breaker=NEVER_OPENS)
MEGABYTE = 1024 * 1024


# -- what goes out


def connected_to(port: int) -> int:
    """How many sockets of this process are connected to a port."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as sock:
            count += sock.family is socket.AF_INET and sock.getpeername()[1] == port
    return count


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which sockets are open")
async def test_a_server_that_does_not_read_keeps_no_connection_when_the_call_is_over(gate: Gateway) -> None:
    async def never_reads(visit: Visit) -> None:
        visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3600)

    async with serving(never_reads) as server:
        up = gate.http("up", server.url, policy=Policy(timeout=TimeoutPolicy(attempt=10.0), retry=ONE_TRY))

        call = asyncio.create_task(ended(up.post("/", data=b"x" * 16 * MEGABYTE)))
        await until(lambda: server.open)
        await asyncio.sleep(0.02)
        fire(next(iter(next(iter(up._lanes.values()))._pending)), up.clock())

        assert isinstance(await call, UnknownTimeout)
        await until(lambda: connected_to(server.port) == 0)


@pytest.mark.parametrize(
    ("given", "body", "kind"),
    [
        ({"json": {"a": [1, None]}}, b'{"a":[1,null]}', "application/json"),
        ({"data": b"\x00\xff"}, b"\x00\xff", "application/octet-stream"),
        ({"data": "é"}, "é".encode(), "text/plain; charset=utf-8"),
        ({"data": {"a": "b c", "d": 1}}, b"a=b+c&d=1", "application/x-www-form-urlencoded"),
        ({"data": b"x", "headers": {"content-type": "image/png"}}, b"x", "image/png"),
    ],
)
async def test_a_body_and_its_kind(gate: Gateway, given: dict[str, object], body: bytes, kind: str) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)

        await up.post("/", **given)  # type: ignore[arg-type]

        assert server.requests[0].endswith(b"\r\n\r\n" + body)
        assert server.headers()["content-type"] == kind


@pytest.mark.parametrize(
    "given", [{"json": {}, "data": b""}, {"data": 7}, {"json": object()}, {"params": {"a": object()}}]
)
async def test_what_is_no_body_is_the_caller_s_error_before_anything_is_counted(
    gate: Gateway, given: dict[str, object]
) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    with pytest.raises(TypeError):
        await up.post("/", **given)  # type: ignore[arg-type]

    assert counted(up) == {}


async def test_a_query(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(params={"key": "k"}))

        await up.get("/a?b=1", params={"c": [1, 2], "d": None, "e": True, "f": "x y&z", "g": 1.5})
        await up.get("/a", params=[("c", 1), ("c", 2)])

        assert server.targets() == ["/a?b=1&key=k&c=1&c=2&e=true&f=x+y%26z&g=1.5", "/a?key=k&c=1&c=2"]


# -- what comes in


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_cap_is_failed(gate: Gateway, announced: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 1001\r\n" if announced else b"Connection: close\r\n") + b"\r\n"

    async def long(visit: Visit) -> None:
        await visit.request()
        await visit.say(head + b"x" * 1001)

    async with serving(long) as server:
        up = gate.http("up", server.url, policy=QUIET, http=HttpPolicy(max_body=1000))
        enough = gate.http("enough", server.url, policy=QUIET, http=HttpPolicy(max_body=1001))

        got, posted = await ended(up.get("/")), await ended(up.post("/"))

        assert isinstance(got, Failed)
        assert isinstance(posted, Unknown)
        assert f"GET {server.url}/: a body of more than 1000 bytes" in str(got)
        assert len((await enough.get("/")).body) == 1001


async def test_a_gzip_bomb_is_refused_within_milliseconds_and_megabytes(gate: Gateway) -> None:
    bomb = gzip.compress(b"\0" * 300 * MEGABYTE)
    async with serving(always(reply(bomb, "Content-Encoding: gzip"))) as server:
        up = gate.http("up", server.url, policy=QUIET)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()

        error = await ended(up.get("/"))

        assert time.thread_time() - began < 0.5
        assert "a body of more than 10485760 bytes" in str(error)
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60


async def test_zipped_bodies_are_unpacked(gate: Gateway) -> None:
    async with serving(always(reply(gzip.compress(b'{"a":1}'), "Content-Encoding: gzip"))) as server:
        up = gate.http("up", server.url)

        assert (await up.get("/")).json() == {"a": 1}


@pytest.mark.parametrize("flood", ["many", "long"])
async def test_a_flood_of_headers_is_failed(gate: Gateway, flood: str) -> None:
    lines = [f"X-{n}: y" for n in range(200)] if flood == "many" else ["X: " + "y" * 9000]
    async with serving(always(reply(b"ok", *lines))) as server:
        up = gate.http("up", server.url, policy=QUIET)
        wider = gate.http("wider", server.url, policy=QUIET, http=HttpPolicy(max_headers=300, max_header=10_000))

        assert isinstance(await ended(up.get("/")), Failed)
        assert (await wider.get("/")).status == 200


@pytest.mark.virtual_time
async def test_endless_headers_end_with_the_try(gate: Gateway) -> None:
    async def endless(visit: Visit) -> None:
        await visit.request()
        while True:
            await visit.say(b"HTTP/1.1 102 Processing\r\n\r\n")
            await asyncio.sleep(1.0)

    async with serving(endless) as server:
        up = gate.http("up", server.url, policy=QUIET)
        began = now()

        error = await ended(up.get("/"))

        assert now() - began == pytest.approx(10.0, abs=0.01)
        assert error.waited_for == "attempt"


async def test_a_head_has_no_body_whatever_it_would_be_long(gate: Gateway) -> None:
    async with serving(always(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")) as server:
        up = gate.http("up", server.url)

        assert [(await up.head("/")).body for _ in range(2)] == [b"", b""]
        assert server.connections == 1


async def test_text_is_read_as_the_server_says(gate: Gateway) -> None:
    async with serving(always(reply("é".encode("latin-1"), 'Content-Type: text/plain; charset="latin-1"'))) as server:
        up = gate.http("up", server.url)

        assert (await up.get("/")).text() == "é"


@pytest.mark.parametrize("charset", ["klingon", "undefined", "idna", ""])
async def test_text_is_utf_8_else(charset: str) -> None:
    kind = f"text/plain; charset={charset}" if charset else ""

    assert HttpReply(200, (("Content-Type", kind),), "é".encode() + b"\xff").text() == "é�"


# -- piece by piece


async def count_to(visit: Visit, number: int, *, then: bytes = b"0\r\n\r\n") -> None:
    await visit.request()
    await visit.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for n in range(number):
        await visit.say(b"1\r\n%d\r\n" % (n % 10))
        await asyncio.sleep(0)
    await visit.say(then)


async def test_a_stream_gives_what_comes_and_holds_its_place(gate: Gateway) -> None:
    async with serving(lambda visit: count_to(visit, 5)) as server:
        up = gate.http("up", server.url, policy=Policy(bulkhead=BulkheadPolicy(limit=1)))

        async with up.stream("GET", "/export") as answer:
            assert (answer.status, answer.headers["transfer-encoding"]) == (200, "chunked")
            held = up.snapshot().bulkhead.in_use
            body = b"".join([piece async for piece in answer])

        assert (held, body) == (1, b"01234")
        assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}
        assert up.snapshot().bulkhead.in_use == 0


async def test_a_stream_holds_the_server_back(gate: Gateway) -> None:
    sent = 0

    async def floods(visit: Visit) -> None:
        nonlocal sent
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while sent < 100_000_000:
            await visit.say(b"x" * 100_000)
            sent += 100_000

    async with serving(floods) as server:
        up = gate.http("up", server.url)

        async with up.stream("GET", "/"):
            await asyncio.sleep(0.04)

        assert sent < 20_000_000


async def test_an_upload_is_held_back_by_the_server(gate: Gateway) -> None:
    made = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(1000):
            made += 1
            yield b"x" * 100_000

    async def deaf(visit: Visit) -> None:
        visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)

    async with serving(deaf) as server:
        up = gate.http("up", server.url, policy=Policy(timeout=TimeoutPolicy(read=0.04)))
        task = asyncio.create_task(ended(up.stream("PUT", "/", data=pieces()).__aenter__()))
        await until(lambda: made)
        await asyncio.sleep(0.04)

        assert made < 200
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_upload_arrives_whole(gate: Gateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)

        async with up.stream("POST", "/", data=pieces()) as answer:
            assert [piece async for piece in answer] == [b"ok"]

        assert server.requests[0].endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize(("method", "kind"), [("GET", Failed), ("POST", Unknown)])
async def test_a_stream_that_breaks_is_not_begun_again(gate: Gateway, method: str, kind: type[Exception]) -> None:
    async with serving(lambda visit: count_to(visit, 3, then=b"5\r\nx")) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(attempts=3, wait=lambda _: 0.0)))
        seen = b""

        with pytest.raises(kind):
            async with up.stream(method, "/") as answer:
                async for piece in answer:
                    seen += piece

        assert seen.startswith(b"012")
        assert len(server.requests) == 1
        assert counted(up)["failed" if method == "GET" else "unknown"] == 1


@pytest.mark.parametrize(("method", "kind"), [("GET", FailedTimeout), ("POST", UnknownTimeout)])
async def test_silence_ends_a_stream(gate: Gateway, method: str, kind: type[Exception]) -> None:
    async def stops(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await asyncio.sleep(1)

    async with serving(stops) as server:
        up = gate.http("up", server.url, policy=Policy(timeout=TimeoutPolicy(read=0.03)))

        with pytest.raises(kind) as error:
            async with up.stream(method, "/") as answer:
                async for _ in answer:
                    pass

        assert error.value.waited_for == "read"  # type: ignore[attr-defined]


@pytest.mark.virtual_time
async def test_a_stream_lasts_at_most_its_time(gate: Gateway) -> None:
    async def drips(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await visit.say(b".")
            await asyncio.sleep(1)

    async with serving(drips) as server:
        up = gate.http("up", server.url, http=HttpPolicy(stream_for=60.0))
        began = now()

        with pytest.raises(FailedTimeout):
            async with up.stream("GET", "/") as answer:
                async for _ in answer:
                    pass

        assert now() - began == pytest.approx(60.0, abs=0.01)
        assert up.snapshot().bulkhead.in_use == 0


async def test_before_its_headers_a_stream_is_tried_again(gate: Gateway) -> None:
    replies = [reply(b"", "Retry-After: 0", status=503), OK]

    async def recovers(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.say(replies.pop(0))

    async with serving(recovers) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(wait=lambda _: 0.0)))

        async with up.stream("POST", "/") as answer:
            assert answer.status == 200

        assert len(server.requests) == 2


async def test_an_upload_is_not_begun_twice(gate: Gateway) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    async def cuts(visit: Visit) -> None:
        await visit.request()

    async with serving(cuts) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(attempts=3, wait=lambda _: 0.0)))

        with pytest.raises(Failed):
            async with up.stream("PUT", "/", data=pieces()):
                pass

        assert len(server.requests) == 1


class Unplugged(OSError):
    """What a caller reads from has gone."""


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("spoiled", [Unplugged("gone"), ZeroDivisionError(), TimeoutError(), "a text"], ids=repr)
async def test_an_upload_that_fails_by_itself_is_the_callers_own_error_and_no_evidence(
    gate: Gateway, method: str, spoiled: Exception | str
) -> None:
    async def pieces() -> AsyncIterator[Any]:
        yield b"one"
        if isinstance(spoiled, Exception):
            raise spoiled
        yield spoiled

    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(attempts=3, wait=lambda _: 0.0)))

        error = await ended(up.stream(method, "/", data=pieces()).__aenter__())

        assert error is spoiled or type(error) is TypeError
        assert counted(up) == {"asked": 1, "refused": 1, "attempts": 1}
        assert (up.snapshot().breaker.failures, up.snapshot().bulkhead.in_use) == (0, 0)


@pytest.mark.parametrize("later", range(12))
async def test_an_upload_that_fails_while_its_answer_comes_is_the_callers_own_error(gate: Gateway, later: int) -> None:
    answered = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await answered.wait()
        await steps(later)
        raise Unplugged("gone")

    async def half(visit: Visit) -> None:
        await visit.reader.readuntil(b"one")
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nyes")
        answered.set()
        await visit.reader.read()

    async with serving(half) as server:
        up = gate.http("up", server.url, http=HttpPolicy(stream_for=1.0))

        with pytest.raises(Unplugged):
            async with up.stream("POST", "/", data=pieces()) as answer:
                async for _ in answer:
                    pass

        assert counted(up) == {"asked": 1, "refused": 1, "attempts": 1}
        assert (up.snapshot().breaker.failures, up.snapshot().bulkhead.in_use) == (0, 0)


async def test_a_refusal_of_a_stream_is_one(gate: Gateway) -> None:
    async with serving(always(reply(b"why", status=404))) as server:
        up = gate.http("up", server.url)

        with pytest.raises(HttpRefused) as refused:
            async with up.stream("GET", "/"):
                pass

        assert refused.value.reply.body == b"why"


async def test_the_block_s_own_error_goes_on_and_is_no_evidence(gate: Gateway) -> None:
    async with serving(lambda visit: count_to(visit, 5)) as server:
        up = gate.http("up", server.url)

        with pytest.raises(ZeroDivisionError):
            async with up.stream("GET", "/"):
                _ = 1 / 0

        assert up.snapshot().breaker.failures == 0
        assert up.snapshot().bulkhead.in_use == 0


async def test_a_stream_that_is_left_early_leaves_nothing(gate: Gateway) -> None:
    async with serving(lambda visit: count_to(visit, 1_000_000)) as server:
        up = gate.http("up", server.url)

        async with up.stream("GET", "/") as answer:
            async for _ in answer:
                break

        await until(lambda: server.open == 0)
        assert counted(up)["live"] == 1


async def test_a_caller_who_leaves_a_stream_leaves_nothing(gate: Gateway) -> None:
    async with serving(lambda visit: count_to(visit, 1_000_000)) as server:
        up, begun = gate.http("up", server.url), asyncio.Event()

        async def reads() -> None:
            async with up.stream("GET", "/") as answer:
                async for _ in answer:
                    begun.set()
                    await asyncio.sleep(0.001)

        task = asyncio.create_task(reads())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert task.cancelled()
        assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}


async def test_nobody_stands_in_for_a_stream(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)
        async with up.stream("GET", "/") as answer:
            pass

        with pytest.raises(ConfigError):
            up["stream get"].fallback(Static(None))
        with pytest.raises(RuntimeError):
            await answer.__aenter__()
        with pytest.raises(RuntimeError):
            await answer.__aexit__(None, None, None)
        with pytest.raises(RuntimeError):
            _ = up.stream("GET", "/").status


async def test_a_stream_whose_connections_are_closed_under_it_is_broken() -> None:
    async def begins(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")
        await asyncio.sleep(3600)

    async with serving(begins) as server, Gateway() as gate:
        up = gate.http("up", server.url, policy=QUIET)

        with pytest.raises(Failed) as lost:
            async with up.stream("GET", "/") as answer:
                async for _ in answer:
                    await up.disconnect()

        assert isinstance(lost.value.__cause__, ConnectionError)
