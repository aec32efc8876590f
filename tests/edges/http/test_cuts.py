"""A server that cuts at every stage, for every method: what it means, and how often it took effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway import BreakerPolicy, ConfigError, Gateway, HttpReply, NotSent, Outcome, Policy, RetryPolicy
from tests.edges.http.misbehaving import Visit, serving
from tests.edges.running import free_ports
from tests.support import counted, ended

pytestmark = pytest.mark.asyncio

METHODS = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"]
RISKY = ["POST", "PATCH"]
TWICE = Policy(
    retry=RetryPolicy(attempts=2, wait=lambda _: 0.0, budget=None), breaker=BreakerPolicy(min_calls=1_000_000)
)


class Till:
    """What took effect."""

    effects = 0


def stage(name: str, till: Till) -> Callable[[Visit], Awaitable[None]]:
    """A server that closes at this stage, having taken effect if it knows the request."""
    where, _, how = name.partition(" by ")

    async def behaviour(visit: Visit) -> None:
        if where == "after accept":
            pass
        elif where == "within the request":
            await visit.reader.readexactly(10)
        else:
            await visit.request()
            till.effects += 1
            said = {
                "before the reply": b"",
                "within the status line": b"HTTP/1.1 2",
                "within the headers": b"HTTP/1.1 200 OK\r\nContent-Le",
                "after the headers": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
                "within the body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
                "within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345",
                "between chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
                "garbage within chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",
                "within a body without length": b"HTTP/1.1 200 OK\r\n\r\n12345",
                "within zipped": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08",
            }[where]
            await visit.say(said)
            await asyncio.sleep(0.005)  # else the reset would overtake what was said
        if how == "reset":
            visit.reset()

    return behaviour


STAGES = [
    *("after accept", "after accept by reset", "within the request by reset", "before the reply"),
    *("before the reply by reset", "within the status line", "within the headers", "within the headers by reset"),
    *("after the headers", "within the body", "within the body by reset", "within a chunk", "between chunks"),
    *("within a body without length by reset", "within zipped"),
    "garbage within chunks",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", STAGES)
async def test_a_cut_is_failed_where_it_may_be_repeated_else_unknown(gate: Gateway, method: str, where: str) -> None:
    if method == "HEAD" and ("after the headers" in where or "body" in where or "chunk" in where or "zip" in where):
        pytest.skip("the reply to HEAD ends with its headers")
    till = Till()
    async with serving(stage(where, till)) as server:
        up = gate.http("up", server.url, policy=TWICE)

        error = await ended(up.request(method)("/deed", data=b"12345" if method in {"PUT", *RISKY} else None))

        assert error.outcome is (Outcome.UNKNOWN if method in RISKY else Outcome.FAILED), error
        assert error.attempts == (1 if method in RISKY else 2)
        assert not isinstance(error.__cause__, NotSent)
        assert type(error.__cause__).__module__ == "gateway.http.errors"
        knows = where.partition(" by ")[0] not in {"after accept", "within the request"}
        assert till.effects == knows * error.attempts  # and aiohttp itself sends nothing twice
        assert server.connections == error.attempts


@pytest.mark.parametrize("method", METHODS)
async def test_where_nobody_listens_nothing_is_sent_and_all_may_be_repeated(gate: Gateway, method: str) -> None:
    up = gate.http("up", f"http://127.0.0.1:{free_ports(1)[0]}", policy=TWICE)

    error = await ended(up.request(method)("/deed"))

    assert error.outcome is Outcome.FAILED
    assert error.attempts == 2
    assert isinstance(error.__cause__, NotSent)
    assert error.__cause__.reason == "unreachable"


@pytest.mark.parametrize("method", METHODS)
async def test_a_key_lets_all_be_repeated_and_is_the_same_over_all_tries(gate: Gateway, method: str) -> None:
    async with serving(stage("before the reply", Till())) as server:
        up = gate.http("up", server.url, policy=TWICE)

        error = await ended(up.request(method)("/deed", data=b"x", idempotency_key="order-1"))

        assert error.outcome is Outcome.FAILED
        assert [server.headers(n)["idempotency-key"] for n in range(len(server.requests))] == ["order-1"] * 2


def charging(server_till: dict[str, int], *, cut: int) -> Callable[[Visit], Awaitable[None]]:
    """A payment provider that knows keys; it dies after the effect of its first `cut` requests."""

    async def behaviour(visit: Visit) -> None:
        while True:
            await visit.request()
            server_till.setdefault(visit.server.headers()["idempotency-key"], 0)
            key = visit.server.headers()["idempotency-key"]
            server_till[key] = 1  # the same deed, once
            if len(visit.server.requests) <= cut:
                return
            await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return behaviour


async def test_the_same_order_twice_is_charged_once(gate: Gateway) -> None:
    till: dict[str, int] = {}
    async with serving(charging(till, cut=1)) as server:
        up = gate.http("up", server.url, policy=TWICE)

        first = await up.post("/charges", json={"amount": 1}, idempotency_key="order-1")
        second = await up.post("/charges", json={"amount": 1}, idempotency_key="order-1")

        assert (first.status, second.status) == (200, 200)
        assert till == {"order-1": 1}
        assert len(server.requests) == 3
        assert counted(up)["retries"] == 1


@pytest.mark.parametrize("none", [None, False])
async def test_a_deed_that_its_function_does_not_name_is_not_sent_let_alone_twice(gate: Gateway, none: Any) -> None:
    till = Till()
    async with serving(stage("before the reply", till)) as server:
        up = gate.http("up", server.url, policy=TWICE)

        @up.post("/charges", into=HttpReply, idempotency_key=lambda order: order)
        async def charge(order: str) -> HttpReply: ...

        @up.post("/likes", into=HttpReply, idempotent=True, idempotency_key=lambda user: user)
        async def like(user: str) -> HttpReply: ...

        with pytest.raises(ConfigError, match="names no deed"):
            await charge(none)
        assert (server.requests, counted(up)) == ([], {})

        await ended(charge("order-1"))
        await ended(like(none))  # safe without one: it says so itself

        assert [server.headers(n).get("idempotency-key") for n in range(4)] == ["order-1", "order-1", None, None]


async def test_a_key_of_its_own_is_new_for_each_call_and_the_same_for_its_tries(gate: Gateway) -> None:
    till: dict[str, int] = {}
    async with serving(charging(till, cut=1)) as server:
        up = gate.http("up", server.url, policy=TWICE)

        await up.post("/charges", idempotency_key=True)
        await up.post("/charges", idempotency_key=True)

        keys = [server.headers(n)["idempotency-key"] for n in range(3)]
        assert keys[0] == keys[1] != keys[2]


async def test_a_new_connection_that_is_closed_is_not_tried_again_unseen(gate: Gateway) -> None:
    async def closes(visit: Visit) -> None:
        await visit.request()

    async with serving(closes) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(attempts=1)))

        await ended(up.get("/"))

        assert len(server.requests) == 1
