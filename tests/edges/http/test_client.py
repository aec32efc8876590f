"""How it reads: methods, declared operations, calls within a function, deadlines on the wire."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Any

import pytest
from msgspec import DecodeError, Struct, defstruct

from fallbacks import LastGood
from fallbacks.envelope import unwrap, wrap
from gateway import (
    Answer,
    BulkheadPolicy,
    ConfigError,
    Deadline,
    Gateway,
    GatewayClosed,
    HttpPolicy,
    HttpRefused,
    HttpReply,
    NotSent,
    Operation,
    Outcome,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownName,
)
from gateway.http.client import HttpUpstream
from gateway.http.errors import BadReply
from tests.edges.http.misbehaving import OK, Visit, always, reply, serving
from tests.edges.running import free_ports
from tests.support import ONE_TRY, counted, ended, steps

pytestmark = pytest.mark.asyncio


class Shelf(Struct):
    """Its films are defined further down."""

    films: list[Film]  # noqa: F821 - that is the point


class UserRating(Struct, frozen=True):
    user: str
    stars: int


async def echoes(visit: Visit) -> None:
    while True:
        request = await visit.request()
        method, target = request.split(b" ")[:2]
        said = {
            "method": method.decode(),
            "target": target.decode(),
            "body": request.partition(b"\r\n\r\n")[2].decode(),
        }
        await visit.say(reply(json.dumps(said).encode(), "X-A: 1", "X-A: 2"))


async def test_each_method_asks_what_it_says(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url)

        for method in ("get", "options", "put", "delete", "post", "patch"):
            answered = await getattr(up, method)("/a")
            assert answered.json()["method"] == method.upper()
            assert (await up.request(method.upper())("/a")).json() == answered.json()
        with pytest.raises(ConfigError, match="TRACE"):
            up.request("TRACE")

        assert up["get"] is up.get
        assert {operation.name: operation.idempotent for operation in up} == {
            "get": True,
            "options": True,
            "put": True,
            "delete": True,
            "post": False,
            "patch": False,
        }


async def test_a_reply(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url)

        answered = await up.get("/a?key=s3cret")
        answer = await up.get.ask("/a")

        assert isinstance(answer, Answer)
        assert answer.source == "live"
        assert isinstance(answered, HttpReply)
        assert answered.headers.getall("x-a") == ["1", "2"]
        assert repr(answered) == f"<HttpReply 200, {len(answered.body)} bytes>"
        with pytest.raises(AttributeError):
            answered.status = 201  # type: ignore[misc]
        with pytest.raises(TypeError):
            answered.headers["x"] = "y"  # type: ignore[index]
        assert answered.json(dict[str, str])["target"] == "/a?key=s3cret"


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
async def test_a_header_that_is_not_ascii_is_text_that_a_store_can_hold(gate: Gateway, charset: str) -> None:
    line = "X-Name: café".encode(charset)
    async with serving(always(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + line + b"\r\n\r\nOK")) as server:
        up = gate.http("up", server.url)

        reply = await up.get("/")

        assert reply.headers["X-Name"] == "café"
        assert unwrap(wrap(reply, 1.0, HttpReply), HttpReply, 1.0) == (reply, 1.0)


async def test_a_reply_is_remembered_by_what_was_asked(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))
        up.get.fallback(LastGood(max_age=60))
        asked: list[dict[str, Any]] = [{}, {"params": {"a": 1}}, {"headers": {"Authorization": "ada"}}]

        live = [await up.get("/a", **one) for one in asked]
        up.isolate()
        remembered = [await up.get.ask("/a", **one) for one in asked]
        unknown = await ended(up.get("/a", headers={"Authorization": "eve"}))

        assert [one.value.body for one in remembered] == [one.body for one in live]
        assert {str(one.source) for one in remembered} == {"last_good"}
        assert isinstance(unknown, Exception)


# -- declared


async def test_a_declared_operation_is_typed_and_has_a_plan_b(gate: Gateway) -> None:
    async with serving(always(reply(b'{"user":"ada","stars":5}'))) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))

        @up.get("/users/{user_id}/ratings", into=UserRating, fallback=[LastGood(max_age=60), Static(None)])
        async def user_rating(
            user_id: str, *, since: date | None = None, tags: tuple[str, ...] = (), deep: bool = False
        ) -> UserRating: ...

        rating = await user_rating("ada", since=date(2026, 1, 2), tags=("a", "b"), deep=True)
        await user_rating("eve")
        up.isolate()
        again = await user_rating.ask("ada", deep=True, since=date(2026, 1, 2), tags=("a", "b"))

        assert rating == UserRating("ada", 5)
        assert server.targets() == [
            "/users/ada/ratings?since=2026-01-02&tags=a&tags=b&deep=true",
            "/users/eve/ratings?deep=false",
        ]
        assert (again.value, again.source) == (rating, "last_good")
        assert isinstance(user_rating, Operation)
        assert up["user_rating"] is user_rating
        with pytest.raises(TypeError):
            await user_rating()
        assert counted(up)["asked"] == 3


@pytest.mark.parametrize(("method", "outcome"), [("get", Outcome.FAILED), ("post", Outcome.UNKNOWN)])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"user":"ada"}',
        b'{"user":"ada","stars":"5"}',
        b'{"user":"\xff","stars":5}',
        b'{"a":' * 100_000,
    ],
    ids=["empty", "no JSON", "too little", "of another type", "not UTF-8", "too deep"],
)
async def test_an_answer_not_as_agreed_is_no_success(gate: Gateway, method: str, outcome: Outcome, body: bytes) -> None:
    async with serving(always(reply(body))) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))

        @getattr(up, method)("/rating", into=UserRating)
        async def rating() -> UserRating: ...

        error = await ended(rating())

        assert error.outcome is outcome
        assert "not as agreed" in str(error)
        assert error.__cause__.reply.body == body
        assert type(error.__cause__) is BadReply
        with pytest.raises(DecodeError):
            error.__cause__.reply.json(into=UserRating)
        assert up.snapshot().breaker.failures == 1


async def test_a_declared_post_names_its_parts(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url)
        calls: list[Any] = []

        @up.post(
            "/orders/{order}/charges",
            into=HttpReply,
            params={"v": 2},
            headers={"X-A": "1"},
            idempotency_key=lambda order, json, **_: f"charge-{order}",
        )
        async def charge(
            order: str, json: object, headers: dict[str, str] | None = None, dry: bool | None = None
        ) -> HttpReply: ...

        @charge.fallback
        async def later(error: Exception, *args: object, **kwargs: object) -> HttpReply:
            calls.append((args, kwargs))
            return HttpReply(202)

        await charge("o1", {"amount": 1}, headers={"X-B": "2"})
        up.isolate()
        await charge("o2", json=[])

        assert charge.idempotent is True
        assert server.targets() == ["/orders/o1/charges?v=2"]
        assert server.requests[0].endswith(b'{"amount":1}')
        assert {"x-a": "1", "x-b": "2", "idempotency-key": "charge-o1"}.items() <= server.headers().items()
        assert calls == [(("o2",), {"json": []})]


async def test_a_minted_key_of_a_declared_operation_is_one_for_each_call(gate: Gateway) -> None:
    async def dies_first(visit: Visit) -> None:
        while True:
            await visit.request()
            if len(visit.server.requests) == 1:
                return
            await visit.say(OK)

    async with serving(dies_first) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(wait=lambda _: 0.0)))

        @up.post("/charges", into=HttpReply, idempotency_key=True)
        async def charge() -> HttpReply: ...

        await charge()
        await charge()

        keys = [server.headers(n)["idempotency-key"] for n in range(3)]
        assert keys[0] == keys[1] != keys[2]


async def test_what_cannot_be_declared_is_a_config_error(gate: Gateway) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    def one(user: str) -> None: ...
    def many(*users: str) -> None: ...

    for path, function in (("/{usr}", one), ("/{", one), ("/}", one), ("/../{user}", one), ("/a", many), ("/a", 7)):
        with pytest.raises(ConfigError):
            up.get(path, into=HttpReply)(function)  # type: ignore[arg-type]
    up.get("/{user}", into=HttpReply)(one)
    with pytest.raises(ConfigError, match="registered already"):
        up.get("/{user}", into=HttpReply)(one)
    with pytest.raises(ConfigError, match="timeout"):
        up.get("/{user}", into=HttpReply, timeout=3, name="two")(one)  # type: ignore[call-overload]


async def test_a_parameter_that_has_no_form_is_the_caller_s_error(gate: Gateway) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    @up.get("/{user}", into=HttpReply)
    async def of(user: object) -> HttpReply: ...

    with pytest.raises(TypeError, match="has no form in a URL"):
        await of(object())
    assert counted(up) == {}


# -- within a function of the same upstream


async def test_within_a_function_a_call_is_just_its_request(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url, policy=Policy(bulkhead=BulkheadPolicy(limit=1, queue=0)))

        @up.operation(idempotent=True)
        async def both() -> int:
            with Deadline.after(5.0):
                first = await up.get("/a")
            second, third = await asyncio.gather(up.get("/b"), up.post("/c"))
            return first.status + second.status + third.status

        assert await both() == 600
        assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}
        assert up.snapshot().breaker.calls == 1


@pytest.mark.parametrize(("status", "kind"), [(404, HttpRefused), (429, NotSent), (500, Exception)])
async def test_within_a_function_statuses_mean_what_they_mean(gate: Gateway, status: int, kind: type) -> None:
    async with serving(always(reply(b"", status=status))) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))

        @up.operation
        async def deed() -> None:
            await up.post("/a")

        error = await ended(deed())

        assert isinstance(error if status == 404 else error.__cause__, kind)
        if status != 404:
            assert error.outcome is (Outcome.FAILED if status == 429 else Outcome.UNKNOWN)


async def test_in_a_function_of_another_upstream_a_call_takes_a_place(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url)
        other = gate.upstream("other")

        @other.operation(idempotent=True)
        async def through() -> int:
            return (await up.get("/a")).status

        assert await through() == 200
        assert counted(up)["asked"] == 1


async def test_a_task_that_outlives_its_function_takes_a_place_of_its_own(gate: Gateway) -> None:
    async with serving(echoes) as server:
        up = gate.http("up", server.url)
        left: list[asyncio.Task[HttpReply]] = []

        @up.operation(idempotent=True)
        async def leaves_one() -> None:
            async def later() -> HttpReply:
                await steps(3)
                return await up.get("/a")

            left.append(asyncio.create_task(later()))

        await leaves_one()
        await left[0]

        assert counted(up) == {"asked": 2, "live": 2, "attempts": 2}


async def test_within_a_function_a_limit_on_time_still_ends_it(gate: Gateway) -> None:
    async def silent(visit: Visit) -> None:
        await visit.request()
        await asyncio.Event().wait()

    async with serving(silent) as server:
        up = gate.http("up", server.url, policy=Policy(timeout=TimeoutPolicy(attempt=0.03), retry=ONE_TRY))

        @up.operation(idempotent=True)
        async def stubborn() -> str:
            try:
                await up.get("/a")
            except Exception:  # a limit is no Exception here: it cannot be swallowed by accident
                return "swallowed"
            return "answered"

        error = await ended(stubborn())

        assert error.waited_for == "attempt"


async def test_a_function_that_sends_a_second_request_in_vain_has_sent_the_first(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(attempts=3, wait=lambda _: 0.0)))
        gone = gate.http("gone", f"http://127.0.0.1:{free_ports(1)[0]}")

        @up.operation(idempotent=False)
        async def deed() -> None:
            await up.post("/charge")
            try:
                await gone.post("/x")
            except Exception as error:
                raise NotSent("so it was not sent, says the function") from error

        error = await ended(deed())

        assert error.outcome is Outcome.UNKNOWN
        assert len(server.requests) == 1


# -- the deadline on the wire


async def test_the_time_left_goes_along(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, policy=Policy(timeout=TimeoutPolicy(attempt=2.0)))
        with Deadline.after(1.0):
            await up.get("/")
        await up.post("/")

        assert 900 < int(server.headers(0)["x-deadline-ms"]) <= 1000
        assert 1900 < int(server.headers(1)["x-deadline-ms"]) <= 2000
        assert server.headers(0)["x-attempts-left"] == "1"
        with Deadline.from_headers(server.headers(0)) as deadline:
            assert 0.8 < deadline.remaining() <= 1.0


@pytest.mark.parametrize(("unit", "least", "most"), [("ms", 900.0, 1000.0), ("s", 0.9, 1.0)])
async def test_its_name_and_unit_are_as_agreed(gate: Gateway, unit: Any, least: float, most: float) -> None:
    async with serving(always(OK)) as server:
        http = HttpPolicy(deadline_header="X-Request-Timeout", deadline_unit=unit)
        up = gate.http("up", server.url, http=http)
        none = gate.http("none", server.url, http=HttpPolicy(deadline_header=None))

        with Deadline.after(1.0):
            await up.get("/")
            await none.get("/")

        assert least < float(server.headers(0)["x-request-timeout"]) <= most
        assert not {"x-deadline-ms", "x-request-timeout", "x-attempts-left"} & server.headers(1).keys()


# -- a gateway and its HTTP upstreams


async def test_it_is_an_upstream_in_all_else(gate: Gateway) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    assert isinstance(up, HttpUpstream)
    assert gate["up"] is up
    with pytest.raises(ConfigError, match="registered already"):
        gate.http("up", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="HttpPolicy"):
        gate.http("two", "http://127.0.0.1:9", http=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="base URL"):
        gate.http("two", [])
    with pytest.raises(UnknownName):
        up["no such"]


async def test_a_closed_gateway_sends_nothing(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)
        await gate.close()

        assert isinstance(await ended(up.get("/")), GatewayClosed)
        assert server.connections == 0


async def test_limits_are_tuned_live(gate: Gateway) -> None:
    async def slow(visit: Visit) -> None:
        while True:
            await visit.request()
            await asyncio.sleep(0.03)
            await visit.say(OK)

    async with serving(slow) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))
        assert (await up.get("/")).status == 200

        up.tune(timeout=TimeoutPolicy(read=0.01))

        assert (await ended(up.get("/"))).waited_for == "read"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_body": 0}, {"max_header": 0.5}, {"max_headers": -1}, {"redirects": -1}, {"keepalive_for": -1}),
        *({"keepalive_margin": -1}, {"dns_for": float("nan")}, {"stream_for": 0}, {"trust_env": 1}, {"resolve": "a"}),
        *(
            {"deadline_unit": "h"},
            {"certificate_key": "a"},
            {"headers": [1]},
            {"headers": {"a": 1}},
            {"params": {1: "a"}},
        ),
    ],
)
async def test_what_cannot_work_is_a_config_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"http.{next(iter(wrong))}"):
        HttpPolicy(**wrong)


async def test_an_argument_that_begins_a_declared_path_names_no_server(gate: Gateway) -> None:
    up = gate.http("up", "http://localhost")

    @up.get("{what}:x", into=HttpReply)
    async def asked(what: str) -> Any: ...

    with pytest.raises(ConfigError, match="a server of its own"):
        await asked("http")


async def test_an_answer_may_be_of_a_type_that_is_defined_further_down(gate: Gateway) -> None:
    async with serving(always(reply(b'{"films": [{"name": "Alien"}]}'))) as server:
        up = gate.http("up", server.url)

        @up.get("/shelf", into=Shelf)
        async def shelf() -> Shelf:
            raise NotImplementedError

        globals()["Film"] = make_film()
        try:
            found = await shelf()
        finally:
            del globals()["Film"]

    assert found.films[0].name == "Alien"


def make_film() -> type[Struct]:
    return defstruct("Film", [("name", str)])


async def test_a_type_that_no_answer_can_become_is_refused_where_it_is_declared(gate: Gateway) -> None:
    up = gate.http("up", "http://127.0.0.1:1")

    with pytest.raises(ConfigError) as caught:

        @up.get("/shelf", into=list[int] | set[int])  # type: ignore[call-overload]
        async def shelf() -> object:
            raise NotImplementedError

    assert caught.value.field == "up.shelf into"
    assert "msgspec" in caught.value.remedy
    assert "shelf" not in up


@pytest.mark.parametrize("spelled", ["by place", "by name"])
async def test_a_template_makes_no_dots_of_what_is_put_into_it(gate: Gateway, spelled: str) -> None:
    up = gate.http("up", "http://127.0.0.1:1")

    @up.get("/q/%2{x}", into=HttpReply)
    async def ask(x: str) -> HttpReply:
        raise NotImplementedError

    with pytest.raises(ConfigError):
        await (ask("e") if spelled == "by place" else ask(x="e"))
