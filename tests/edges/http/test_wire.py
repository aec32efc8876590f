"""What goes over the wire, and what comes back in an unusual way: requests are written by us, as aiohttp would."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar

from gateway import BulkheadPolicy, ConfigError, Deadline, Gateway, HttpPolicy, Policy, TimeoutPolicy
from gateway.http.request import HttpRequest
from gateway.http.session import AT_ONCE
from tests.edges.http.misbehaving import OK, Visit, always, reply, serving
from tests.support import NEVER_OPENS, ONE_TRY, ended

pytestmark = pytest.mark.asyncio
QUIET = Policy(retry=ONE_TRY, breaker=NEVER_OPENS)
SILENT = HttpPolicy(deadline_header=None)
OURS = {"x-deadline-ms", "x-attempts-left"}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/users/1", {}),
    ("GET", "/a.b/~c/d_e-f/", {}),
    ("GET", "/", {}),
    ("GET", "/.well-known/x", {}),
    ("GET", "/a%2Fb/%C3%A4", {}),
    ("GET", "/ä/ö?ü=1&a=b+c", {}),
    ("GET", "/x", {"params": {"q": "a b&c", "n": "ä"}}),
    ("HEAD", "/x", {}),
    ("DELETE", "/x", {}),
    ("OPTIONS", "/x", {}),
    ("POST", "/x", {}),
    ("PUT", "/x", {}),
    ("PATCH", "/x", {}),
    ("POST", "/x", {"data": b"12345", "headers": {"Content-Type": "a/b"}}),
    ("PUT", "/x", {"data": b"", "headers": {"Content-Type": "a/b"}}),
    ("DELETE", "/x", {"data": b"12", "headers": {"Content-Type": "a/b"}}),
    ("GET", "/x", {"headers": {"User-Agent": "me", "accept": "text/html", "X-One": "ä"}}),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: f"{one[0]} {one[1]} {sorted(one[2])}")
async def test_a_request_is_what_aiohttp_would_send(gate: Gateway, request_: tuple[str, str, dict[str, Any]]) -> None:
    method, path, given = request_
    async with serving(always(reply(b""))) as server:
        up = gate.http("up", server.url, policy=QUIET, http=SILENT)
        await up.request(method)(path, **given)
        async with ClientSession(cookie_jar=DummyCookieJar()) as session:
            await session.request(method, server.url + path, **given)

        (mine, mine_body), (theirs, theirs_body) = (one.split(b"\r\n\r\n", 1) for one in server.requests)
        assert mine.split(b"\r\n")[0] == theirs.split(b"\r\n")[0]
        assert server.headers(0) == server.headers(1)
        assert len(mine.split(b"\r\n")) == len(theirs.split(b"\r\n"))
        assert mine_body == theirs_body


async def test_a_short_body_and_a_long_one_go_with_the_same_headers(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url + "/v1", policy=QUIET, http=HttpPolicy(headers={"X-Api-Key": "k"}))

        for length in (AT_ONCE, AT_ONCE + 1):
            await up.post("/x", data=b"a" * length, headers={"X-Own": "o"}, idempotency_key="deed")

        short, long = ({k: v for k, v in server.headers(n).items() if k not in OURS} for n in (0, 1))
        assert short.pop("content-length") == f"{AT_ONCE}"
        assert long.pop("content-length") == f"{AT_ONCE + 1}"
        assert short == long
        assert server.targets() == ["/v1/x", "/v1/x"]


async def test_a_connection_that_is_not_kept_says_so(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(keepalive_for=0))

        await up.get("/")

        assert server.headers()["connection"] == "close"


@pytest.mark.parametrize("said_by", ["caller", "policy"])
async def test_the_time_that_is_left_goes_before_one_that_was_handed_on(gate: Gateway, said_by: str) -> None:
    old = {"x-deadline-ms": "999999"}
    async with serving(always(OK)) as server:
        http = HttpPolicy(headers=old if said_by == "policy" else {})
        up = gate.http("up", server.url, policy=QUIET, http=http)

        with Deadline.after(1.0):
            await up.get("/x", headers=old if said_by == "caller" else {})

        assert 0 < int(server.headers()["x-deadline-ms"]) <= 1000
        assert server.requests[0].lower().count(b"x-deadline-ms") == 1


@pytest.mark.parametrize("knob", ["deadline_header", "idempotency_header"])
async def test_a_header_that_would_be_two_is_refused_at_registration(gate: Gateway, knob: str) -> None:
    with pytest.raises(ConfigError, match="no header name"):
        gate.http("up", "http://localhost", http=HttpPolicy(**{knob: "X-A: 1\r\nX-B"}))


async def test_what_nobody_has_checked_is_no_second_header_either(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, policy=QUIET)
        made_by_hand = HttpRequest("GET", "/", headers=(("X-A", "1\r\nX-B: 2"),))

        error = await ended(up.get(made_by_hand))

        assert isinstance(error.__cause__, ValueError)
        assert server.requests == []


async def test_answers_that_only_announce_another_one_are_passed_over(gate: Gateway) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with serving(always(early + early + OK)) as server:
        up = gate.http("up", server.url, policy=QUIET)

        for _ in range(2):
            assert (await up.get("/")).body == b"ok"
        assert server.connections == 1


# -- silence, once headers or a part of the body are here


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"%s1234" % OK.replace(b"2\r", b"9\r"),
    ],
    ids=["nothing", "a line", "headers", "a part of the body"],
)
async def test_silence_is_timed_wherever_it_begins(gate: Gateway, said: bytes) -> None:
    async def falls_silent(visit: Visit) -> None:
        await visit.request()
        await visit.say(said)
        await asyncio.sleep(100)

    async with serving(falls_silent) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY, timeout=TimeoutPolicy(read=1.6, attempt=9.0)))
        began = asyncio.get_running_loop().time()

        error = await ended(up.get("/"))

        assert error.waited_for == "read"
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.6, rel=0.1)


@pytest.mark.virtual_time
async def test_an_answer_that_never_falls_silent_may_take_longer_than_silence_may(gate: Gateway) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"

    async def drips(visit: Visit) -> None:
        await visit.request()
        for start, end in pairwise([0, 20, *range(38, 45)]):
            await asyncio.sleep(1.0)
            await visit.say(whole[start:end])

    async with serving(drips) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY, timeout=TimeoutPolicy(read=1.6, attempt=19.0)))

        assert (await up.get("/")).body == b"abcdef"


async def test_answers_that_come_at_once_make_no_timer_each(gate: Gateway) -> None:
    made: list[Callable[..., object]] = []
    loop: Any = asyncio.get_running_loop()
    call_at = loop.call_at

    async with serving(always(reply(b"x" * 100))) as server:
        up = gate.http("up", server.url, policy=Policy(bulkhead=BulkheadPolicy(limit=10)))
        await asyncio.gather(*(up.get("/") for _ in range(10)))
        loop.call_at = lambda when, callback, *args, **kwargs: (
            made.append(callback),
            call_at(when, callback, *args, **kwargs),
        )[1]
        try:
            await asyncio.gather(*(up.get("/") for _ in range(10)))
        finally:
            del loop.call_at

    assert len(made) <= 1


@pytest.mark.virtual_time
async def test_a_reader_who_takes_his_time_is_no_silence_of_the_server(gate: Gateway) -> None:
    many = 4 * 1024 * 1024  # bytes, once unpacked: more than is unpacked before somebody reads
    zipped = gzip.compress(b" " * many)

    async with serving(always(reply(zipped, "Content-Encoding: gzip"))) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY, timeout=TimeoutPolicy(read=1.0, attempt=9.0)))

        async with up.stream("GET", "/") as stream:
            await asyncio.sleep(5.0)
            length = sum([len(piece) async for piece in stream])

        assert length == many
