"""The streams: composed once for all who look, while somebody looks; who does not keep up is let go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web

from gateway import Gateway
from gateway.admin import live, serve
from gateway.admin.live import MOST, Stream, full_flushed
from gateway.testing import assert_nothing_left
from tests.edges.admin.asking import admin_of, ask
from tests.edges.serving import served
from tests.support import QUIET, gone, until

pytestmark = pytest.mark.asyncio
PATIENCE = 5.0


class Viewer:
    """Somebody who looks, or only holds the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self.reader, self.writer = reader, writer
        self.head = head.decode()

    async def message(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            while not (line := await self.reader.readline()).startswith((b"data: ", b"ping:", b":")):
                assert line, "the stream has ended"
            return line

    async def document(self) -> Any:
        return json.loads((await self.message()).removeprefix(b"data: "))

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()


@asynccontextmanager
async def viewing(url: str, path: str = "/live", *, accept: str = "identity") -> AsyncIterator[Viewer]:
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {accept}\r\n\r\n".encode())
        yield Viewer(reader, writer, await reader.readuntil(b"\r\n\r\n"))
    finally:
        writer.close()


@asynccontextmanager
async def stream_of(compose: Callable[[], Any], **settings: Any) -> AsyncIterator[tuple[Stream, str]]:
    stream = Stream("test", compose, **{"every": 0.01, **settings})
    app = web.Application()
    app.router.add_get("/live", stream.show)
    async with served(app) as url:
        yield stream, url
        await stream.close()


class Composer:
    """Composes numbered messages."""

    def __init__(self, size: int = 10) -> None:
        self.number = 0
        self.size = size

    async def __call__(self) -> bytes:
        self.number += 1
        return b"data: %d %s\n\n" % (self.number, b"x" * self.size)


async def test_the_document_comes_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gateway()
    gate.upstream("ratings", policy=QUIET)
    async with admin_of(gate) as admin:
        admin._routes.live._every = 0.01
        async with viewing(admin.url) as viewer:
            first, second = await viewer.document(), await viewer.document()
    assert "content-type: text/event-stream; charset=utf-8" in viewer.head.lower()
    assert "content-security-policy: default-src 'none'" in viewer.head.lower()
    assert first["upstreams"][0]["name"] == "ratings"
    assert second["at"] > first["at"]
    assert_nothing_left(gate)


@pytest.mark.parametrize("path", ["/hystrix.stream", "/actuator/hystrix.stream"])
async def test_hystrix_dashboard_gets_its_stream(path: str) -> None:
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=QUIET)

    @ratings.operation
    async def stars() -> str:
        return "5"

    async with admin_of(gate) as admin:
        admin._routes.hystrix._every = 0.01
        async with viewing(admin.url, path) as viewer:
            ping = await viewer.message()
            await stars()
            while (message := await viewer.message()) == ping:
                pass
    assert "content-type: text/event-stream;charset=utf-8" in viewer.head.lower()
    assert ping == b"ping: \n"
    assert json.loads(message.removeprefix(b"data: "))["name"] == "ratings.stars"
    assert not gate.listeners.call_finished, "who has no such dashboard pays nothing for it"


async def test_twenty_viewers_share_what_is_composed_once() -> None:
    compose = Composer()
    async with stream_of(compose, every=0.05) as (_, url), asyncio.TaskGroup() as group:

        async def look() -> list[bytes]:
            async with viewing(url) as viewer:
                return [await viewer.message() for _ in range(3)]

        seen = [group.create_task(look()) for _ in range(20)]
        await asyncio.wait(seen)
        assert compose.number <= 6
    assert all(len(task.result()) == 3 for task in seen)


async def test_packed_messages_are_the_same_for_all_whenever_they_came() -> None:
    compose = Composer(size=500)
    async with (
        stream_of(compose) as (stream, url),
        ClientSession(url, headers={"Accept-Encoding": "gzip"}) as session,
        session.get("/live") as first,
    ):
        seen = [await first.content.readuntil(b"\n\n") for _ in range(3)]
        async with session.get("/live") as second:
            later = [await second.content.readuntil(b"\n\n") for _ in range(3)]
            assert stream.viewers == 2
    assert first.headers["Content-Encoding"] == "gzip"
    assert [message.split()[1] for message in seen] == [b"1", b"2", b"3"]
    assert all(message.endswith(b"x" * 500 + b"\n\n") for message in (*seen, *later))
    assert len(full_flushed(b"data: " + b"x" * 500)) < 50


@pytest.mark.parametrize(
    ("said", "packed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("identity", False), ("gzip;q=0", False), ("", False)],
)
async def test_messages_are_packed_for_those_who_take_it(said: str, packed: bool) -> None:
    async with stream_of(Composer()) as (_, url), viewing(url, accept=said) as viewer:
        assert ("content-encoding: gzip" in viewer.head.lower()) is packed


async def test_nothing_is_composed_while_nobody_looks() -> None:
    compose = Composer()
    async with stream_of(compose) as (stream, url):
        await asyncio.sleep(0.03)
        assert compose.number == 0
        async with viewing(url) as viewer:
            await viewer.message()
        await until(lambda: stream.viewers == 0)
        assert not stream._looking
        seen = compose.number
        await asyncio.sleep(0.03)
        assert compose.number == seen
        async with viewing(url) as viewer:
            assert int((await viewer.message()).split()[1]) > seen


async def test_a_later_viewer_sees_something_at_once() -> None:
    compose = Composer()
    async with stream_of(compose, every=3600) as (_, url), viewing(url) as first:
        await first.message()
        async with viewing(url) as second:
            assert (await second.message()).startswith(b"data: 1 ")


async def test_who_takes_nothing_is_let_go_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PATIENCE", 0.04)
    compose = Composer(size=2**20)
    async with stream_of(compose) as (stream, url), viewing(url) as stuck:
        async with viewing(url) as quick:
            reading = asyncio.create_task(quick.rest())
            await until(lambda: stream.viewers == 1)
            at = compose.number
            await until(lambda: compose.number > at + 3)
            await gone(reading)
        assert stuck.writer is not None
        await until(lambda: stream.viewers == 0)


class Line:
    """A transport as far as a viewer needs one: what was written to it, and what of that is not taken yet."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.left = 0
        self.closing = False

    def write(self, message: bytes) -> None:
        self.written.append(message)

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


def viewer_of(line: Line) -> live.Viewer:
    return live.Viewer(line, "", packed=False, chunked=True, at=100.0)  # type: ignore[arg-type]


async def test_a_viewer_who_is_busy_with_a_message_gets_none_and_is_let_go_after_a_while() -> None:
    line = Line()
    viewer = viewer_of(line)
    line.left = 1

    assert not viewer.takes(100.0 + live.PATIENCE)
    assert not viewer.gone.is_set()
    line.left = 0
    assert viewer.takes(200.0)
    line.left = 1
    assert not viewer.takes(200.0)
    assert viewer.gone.is_set()
    assert line.closing


async def test_a_viewer_who_takes_each_message_in_time_stays_however_long_he_looks() -> None:
    line, stream = Line(), Stream("test", Composer())
    viewer = viewer_of(line)
    for number in (1, 2):
        stream._message, stream._number = b"data: %d\n\n" % number, number
        stream._hand(viewer, 1000.0 * number)
    line.left = 1

    assert len(line.written) == 2
    assert not viewer.takes(2000.0 + live.PATIENCE)
    assert not viewer.gone.is_set()


async def test_a_viewer_who_has_left_gets_nothing_and_is_noticed() -> None:
    line = Line()
    viewer = viewer_of(line)
    line.closing = True

    assert not viewer.takes(100.0)
    assert viewer.gone.is_set()


async def test_who_comes_while_the_first_message_is_composed_gets_nothing_before_it() -> None:
    composed = asyncio.Event()

    async def compose() -> bytes:
        await composed.wait()
        return b"data: first\n\n"

    async with stream_of(compose) as (stream, url), viewing(url), viewing(url) as second:
        await until(lambda: len(stream._looking) == 2)
        composed.set()

        assert await second.reader.readline() == b"d\r\n"  # the length of a chunk; 0 would end the stream
        assert await second.message() == b"data: first\n"


async def test_all_who_look_are_handed_the_same_bytes_packed_and_framed_once() -> None:
    compose = Telling()
    stream = Stream("test", compose, whole=compose.whole, beside=compose.beside, every=3600)
    lines = [Line() for _ in range(20)]
    stream._looking = [viewer_of(line) for line in lines]
    stream._viewers = len(lines)

    stream._begin()
    await until(lambda: all(line.written for line in lines))
    await stream.close()

    assert len({id(line.written[0]) for line in lines}) == 1
    whole = b"data: all of 1\n\n"
    assert lines[0].written == [b"%x\r\n%b\r\n" % (len(whole), whole)]


async def test_who_speaks_http_as_before_chunks_gets_a_stream_that_ends_with_the_connection() -> None:
    async with stream_of(Composer()) as (stream, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        first = await reader.readuntil(b"\n\n")
        await stream.close()
        async with asyncio.timeout(PATIENCE):
            rest = await reader.read()
        writer.close()

    assert b"chunked" not in head
    assert first == b"data: 1 xxxxxxxxxx\n\n"
    assert not rest.endswith(b"0\r\n\r\n")


async def test_details_are_not_packed_and_stand_in_a_packed_stream_all_the_same() -> None:
    compose, stream = Telling(size=500), []
    details = bytes(range(32, 127)).replace(b'"', b"") * 900  # more than one block of what is not packed

    async def asking(request: web.Request) -> web.StreamResponse:
        return await stream[0].show(request, request.query.get("details", ""))

    stream.append(Stream("test", compose, beside=lambda _: b"data: %b\n\n" % details, every=0.01))
    app = web.Application()
    app.router.add_get("/live", asking)
    async with (
        served(app) as url,
        ClientSession(url, headers={"Accept-Encoding": "gzip"}, read_bufsize=2**20) as session,
        session.get("/live?details=films") as viewer,
    ):
        seen = [await viewer.content.readuntil(b"\n\n") for _ in range(4)]
        await stream[0].close()

    assert viewer.headers["Content-Encoding"] == "gzip"
    assert seen[0] == seen[2] == b"data: %b\n\n" % details
    assert [message.split()[1] for message in seen[1::2]] == [b"1", b"2"]


async def test_a_message_that_cannot_be_composed_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    failures = [RuntimeError("no")]

    async def compose() -> bytes:
        if failures:
            raise failures.pop()
        return b"data: well\n\n"

    async with stream_of(compose) as (_, url), viewing(url) as viewer:
        assert await viewer.message() == b": it could not be composed\n"
        assert await viewer.message() == b"data: well\n"
    assert "could not be composed" in caplog.text


class Telling(Composer):
    """Composes news, and the whole for who has not got the news before."""

    def whole(self) -> bytes:
        return b"data: all of %d\n\n" % self.number

    def beside(self, asked_for: str) -> bytes:
        return b"data: %b of %d\n\n" % (asked_for.encode(), self.number) if asked_for else b""


async def test_the_first_message_is_the_whole_and_then_there_is_news() -> None:
    compose = Telling()
    async with stream_of(compose, whole=compose.whole) as (_, url), viewing(url) as first:
        seen = [(await first.message()).split()[1:3] for _ in range(3)]
        async with viewing(url) as second:
            later = [(await second.message()).split()[1:3] for _ in range(2)]

    assert seen[0] == [b"all", b"of"]
    assert [number for number, _ in seen[1:]] == [b"2", b"3"]
    assert later[0] == [b"all", b"of"]
    assert later[1][0].isdigit()


async def test_who_missed_a_message_gets_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compose, takes = Telling(), live.Viewer.takes

    def takes_every_other(self: live.Viewer, now: float) -> bool:
        return takes(self, now) and compose.number % 2 == 1

    monkeypatch.setattr(live.Viewer, "takes", takes_every_other)

    async with stream_of(compose, whole=compose.whole) as (_, url), viewing(url) as viewer:
        seen = [await viewer.message() for _ in range(4)]

    assert all(message.startswith(b"data: all of ") for message in seen)


async def test_after_a_message_that_could_not_be_composed_comes_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Telling):
        async def __call__(self) -> bytes:
            message = await super().__call__()
            if self.number == 3:
                raise RuntimeError("no")
            return message

    compose = Failing()
    async with stream_of(compose, whole=compose.whole) as (_, url), viewing(url) as viewer:
        seen = [(await viewer.message()).split()[1] for _ in range(5)]

    assert seen == [b"all", b"2", b"it", b"all", b"5"]
    assert "could not be composed" in caplog.text


async def test_nothing_is_whole_before_anything_was_composed() -> None:
    class Failing(Telling):
        async def __call__(self) -> bytes:
            message = await super().__call__()
            if self.number == 1:
                raise RuntimeError("no")
            return message

    compose = Failing()
    async with stream_of(compose, whole=compose.whole) as (_, url), viewing(url) as viewer:
        assert await viewer.message() == b": it could not be composed\n"
        assert (await viewer.message()).startswith(b"data: all of ")


async def test_a_whole_that_cannot_be_composed_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def whole() -> bytes:
        raise RuntimeError("no")

    async with stream_of(Composer(), whole=whole) as (_, url), viewing(url) as viewer:
        assert await viewer.message() == b": it could not be composed\n"
        assert (await viewer.message()).startswith(b"data: ")
    assert "could not be composed" in caplog.text


async def test_what_is_asked_for_comes_before_each_message_to_those_who_asked() -> None:
    compose, stream = Telling(), []

    async def asking(request: web.Request) -> web.StreamResponse:
        return await stream[0].show(request, request.query.get("details", ""))

    stream.append(Stream("test", compose, beside=compose.beside, every=0.01))
    app = web.Application()
    app.router.add_get("/live", asking)
    async with served(app) as url, viewing(url, "/live?details=films") as one, viewing(url) as other:
        asked = [await one.message() for _ in range(4)]
        plain = [await other.message() for _ in range(2)]
        await stream[0].close()

    assert [message.startswith(b"data: films of ") for message in asked] == [True, False, True, False]
    assert not any(b"films" in message for message in plain)


async def test_there_are_only_so_many_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST", 1)
    async with stream_of(Composer()) as (stream, url), viewing(url):
        await until(lambda: stream.viewers == 1)
        async with viewing(url) as second:
            assert second.head.startswith("HTTP/1.1 503 ")
    assert MOST == 100


async def test_closing_the_server_lets_all_viewers_go() -> None:
    gate = Gateway()
    async with gate:
        admin = await serve(gate, port=0)
        async with viewing(admin.url) as viewer, viewing(admin.url, "/hystrix.stream") as other:
            await viewer.message()
            async with asyncio.timeout(1.0):
                await admin.close()
            await viewer.rest()
            await other.rest()
        await admin.close()
    with pytest.raises(OSError, match="onnect"):
        await ask(admin, "GET", "/state")


@pytest.mark.parametrize("turns", range(1, 12))
async def test_a_close_that_is_cancelled_is_done_all_the_same_and_a_second_one_waits_for_it(turns: int) -> None:
    """Or streams and what looks for them went on for ever, and requests of old connections were answered."""
    gate = Gateway()
    async with gate:
        admin = await serve(gate, port=0)
        async with viewing(admin.url) as viewer, viewing(admin.url, "/hystrix.stream") as other:
            await viewer.message()
            closing = asyncio.create_task(admin.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])

            async with asyncio.timeout(PATIENCE):
                await admin.close()
                await viewer.rest()
                await other.rest()
        assert_nothing_left(gate)
        async with await serve(gate, port=0):
            pass
