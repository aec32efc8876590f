"""The classic scenarios that need a wire: effects made twice, connections used again, what goes along.

Between client and server stands a small TCP proxy that takes its time, drips, or goes silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

import pytest

from gateway import Deadline, FailedTimeout, Gateway, HttpPolicy, Outcome, Policy, RetryPolicy, TimeoutPolicy
from tests.edges.http.misbehaving import OK, Server, Visit, always, reply, serving
from tests.support import NEVER_OPENS, ONE_TRY, ended, now

pytestmark = pytest.mark.asyncio


@dataclass
class Proxy:
    """What stands between client and server; it can be told how to be while it runs."""

    port: int = 0
    delay: float = 0.0  # seconds that each piece takes one way
    drip: bool = False  # one byte at a time
    silent: bool = False  # takes everything, passes nothing on, and never says goodbye
    cut_after: float = float("inf")  # bytes of the answer
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def between(server: Server) -> AsyncIterator[Proxy]:
    """A TCP proxy in front of a server."""
    proxy = Proxy()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        passed = 0
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(1 if proxy.drip and answer else 65536):
                if proxy.silent:
                    continue
                await asyncio.sleep(proxy.delay)
                if answer and passed + len(data) > proxy.cut_after:
                    writer.write(data[: int(proxy.cut_after) - passed])
                    break
                passed += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.connections += 1
        task = asyncio.current_task()
        assert task is not None
        proxy.tasks.add(task)
        await asyncio.sleep(2 * proxy.delay)  # to connect is a way there and a way back
        to_server = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await asyncio.gather(pump(reader, to_server[1], answer=False), pump(to_server[0], writer, answer=True))
        except asyncio.CancelledError:
            pass  # at the end of the test
        finally:
            for one in (writer, to_server[1]):
                one.close()
            proxy.tasks.discard(task)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        for task in tuple(proxy.tasks):
            task.cancel()
        await asyncio.gather(*proxy.tasks, return_exceptions=True)


# -- S19: an effect whose answer comes too late


@pytest.mark.virtual_time
@pytest.mark.parametrize(("asks_first", "likes"), [(True, 1), (False, 2)], ids=["a like", "a plain counter"])
async def test_s19_an_effect_that_checks_is_made_once_however_often_it_is_asked_for(
    gate: Gateway, asks_first: bool, likes: int
) -> None:
    liked: list[str] = []

    async def like(visit: Visit) -> None:
        while True:
            who = (await visit.request()).split(b" ")[1].decode()
            if not asks_first or who not in liked:
                liked.append(who)
            if len(visit.server.requests) == 1:
                await asyncio.sleep(60)  # it has taken effect, and its answer comes too late
            await visit.say(OK)

    async with serving(like) as server:
        policy = Policy(timeout=TimeoutPolicy(call=20.0, attempt=6.0, read=5.0), breaker=NEVER_OPENS)
        up = gate.http("likes", server.url, policy=policy)

        answer = await up.put("/films/1/likes/ada")

        assert (answer.status, len(server.requests), len(liked)) == (200, 2, likes)


# -- S22: connections that are used again


async def test_s22_only_the_first_request_pays_for_the_connection_in_real_time(gate: Gateway) -> None:
    """Real sockets with 25 ms each way: 50 ms there and back, and as much once more to connect."""
    async with serving(always(OK)) as server, between(server) as proxy:
        proxy.delay = 0.025
        up = gate.http("far", proxy.url)
        took = []

        for _ in range(4):
            began = now()
            await up.get("/")
            took.append(now() - began)

        assert proxy.connections == 1
        assert took[0] >= 0.095
        assert 0.045 <= min(took[1:]) < 0.095  # the quickest: a machine that is busy adds to any


# -- what a wire can do


@pytest.mark.virtual_time
async def test_a_wire_that_goes_silent_is_noticed_by_the_read_limit(gate: Gateway) -> None:
    async with serving(always(OK)) as server, between(server) as proxy:
        policy = Policy(timeout=TimeoutPolicy(call=20.0, attempt=9.0, read=5.0), retry=ONE_TRY)
        up = gate.http("up", proxy.url, policy=policy)
        await up.get("/")

        proxy.silent = True
        began = now()
        error = await ended(up.get("/"))

        assert (type(error), error.waited_for) == (FailedTimeout, "read")
        assert now() - began == pytest.approx(5.0, abs=0.05)


@pytest.mark.virtual_time
async def test_a_wire_that_drips_brings_a_whole_answer(gate: Gateway) -> None:
    async with serving(always(reply(b"whole"))) as server, between(server) as proxy:
        proxy.drip, proxy.delay = True, 0.05

        assert (await gate.http("up", proxy.url).get("/")).body == b"whole"


@pytest.mark.virtual_time
@pytest.mark.parametrize("after", [0, 9, 30, 40])
async def test_a_wire_that_is_cut_leaves_a_post_unknown(gate: Gateway, after: int) -> None:
    async with serving(always(reply(b"whole"))) as server, between(server) as proxy:
        proxy.cut_after = after
        policy = Policy(retry=RetryPolicy(attempts=3), breaker=NEVER_OPENS)

        error = await ended(gate.http("up", proxy.url, policy=policy).post("/orders", json={}))

        assert error.outcome is Outcome.UNKNOWN
        assert len(server.requests) == 1


# -- what goes along


TRACE: ContextVar[dict[str, str]] = ContextVar("trace", default={})  # noqa: B039 - nobody changes it
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.virtual_time
@pytest.mark.parametrize("within", [False, True], ids=["a call", "within a function"])
async def test_the_trace_goes_along_with_each_try(gate: Gateway, within: bool) -> None:
    async def fails_once(visit: Visit) -> None:
        while True:
            await visit.request()
            await visit.say(reply(status=500 if len(visit.server.requests) == 1 else 200))

    async with serving(fails_once) as server:
        up = gate.http("up", server.url, http=HttpPolicy(propagate=TRACE.get))

        @up.operation(idempotent=True)
        async def ask() -> None:
            await up.get("/")

        with Deadline.from_headers({"X-Deadline-Ms": "900"}):
            TRACE.set({"traceparent": PARENT})
            await (ask() if within else up.get("/"))

        assert [server.headers(n)["traceparent"] for n in (0, 1)] == [PARENT] * 2
        assert all(int(server.headers(n)["x-deadline-ms"]) <= 900 for n in (0, 1))


@pytest.mark.virtual_time
async def test_what_a_caller_says_himself_goes_before_what_goes_along(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(propagate=lambda: {"traceparent": PARENT, "x-b": "b"}))

        await up.get("/", headers={"Traceparent": "own"})

        assert (server.headers()["traceparent"], server.headers()["x-b"]) == ("own", "b")


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "wrong", [lambda: {"x": "a\r\nevil: 1"}, lambda: {}["no"], lambda: None], ids=["CR/LF", "raises", "None"]
)
async def test_what_cannot_go_along_stays_behind_and_the_request_goes(
    gate: Gateway, wrong: Callable[[], dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(propagate=wrong))

        await up.get("/")

        assert not {"x", "evil"} & set(server.headers())
        assert "HttpPolicy.propagate failed" in caplog.text
