"""HTTP answers that are remembered, shared, asked for anew and forgotten: over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from fallbacks import LastGood
from fallbacks.stores import SQLiteStore
from gateway import ConfigError, Failed, Gateway, HttpPolicy, HttpRefused, HttpReply, Source
from gateway.http.client import HttpUpstream
from gateway.testing import Faults
from tests.edges.http.instances import instances, urls
from tests.edges.http.misbehaving import Server, Visit, reply, serving
from tests.support import QUIET, ended, steps, until

pytestmark = pytest.mark.asyncio

USER: ContextVar[str] = ContextVar("user", default="nobody")


class Film(Struct, frozen=True):
    name: str
    by: str = ""


@dataclass
class Api:
    """A server whose answers say what was asked; `lines` are its headers. `down`: it says 500 to all."""

    server: Server
    lines: list[str] = field(default_factory=list)
    status: int = 200
    down: bool = False
    slow: asyncio.Event | None = None
    body: Callable[[bytes], bytes] | None = None

    @property
    def asked(self) -> int:
        return len(self.server.requests)

    async def __call__(self, visit: Visit) -> None:
        while True:
            head = await visit.request()
            number = self.asked
            if self.slow is not None:
                await self.slow.wait()
            if self.down:
                await visit.say(reply(b"", status=500))
                continue
            method, target = head.split(b" ")[:2]
            body = self.body(head) if self.body else b'{"name":"%s","by":"answer %d"}' % (target, number)
            said = reply(body, *self.lines, status=self.status)
            await visit.say(said[: -len(body)] if method == b"HEAD" else said)


@asynccontextmanager
async def api() -> AsyncIterator[Api]:
    async def each(visit: Visit) -> None:
        await one(visit)

    async with serving(each) as server:
        one = Api(server)
        yield one


def http(gate: Gateway, one: Api, **said: Any) -> HttpUpstream:
    return gate.http("api", one.server.url, policy=QUIET, http=HttpPolicy(**said))


ADA, BOB = {"Authorization": "Bearer ada"}, {"Authorization": "Bearer bob"}


# -- the last good reply


async def test_a_reply_is_remembered_by_method_path_and_query(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        live = await up.get("/a", params={"x": 1})

        one.down = True
        again = await up.get.ask("/a", params={"x": 1})

        assert (again.source, again.value, again.stored_at is None) == (Source.LAST_GOOD, live, False)
        for path, params in (("/a", {"x": 2}), ("/a", {}), ("/b", {"x": 1})):
            with pytest.raises(Failed):
                await up.get(path, params=params)
        with pytest.raises(Failed):
            await up.head("/a", params={"x": 1})


async def test_a_declared_operation_remembers_its_struct(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/films/{film}", into=Film, fallback=[LastGood()])
        async def about(film: str, deep: bool = False) -> Film: ...

        live = await about("603")
        one.down = True

        assert await about(film="603", deep=False) == live
        assert isinstance(await ended(about("603", deep=True)), Failed)
        assert isinstance(await ended(about("604")), Failed)


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([], True),
        (["Vary: Accept-Encoding"], True),
        (["Vary: *"], False),
        (["Cache-Control: no-store"], False),
        (["Cache-Control: private"], False),
        (["Set-Cookie: session=1"], False),
    ],
    ids=str,
)
async def test_what_the_server_says_of_it_decides(gate: Gateway, lines: list[str], kept: bool) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        one.lines = lines
        await up.get("/a")

        one.down = True

        assert isinstance(await ended(up.get("/a")), HttpReply if kept else Failed)


@pytest.mark.parametrize("lines", [[], ["Cache-Control: private"], ["Set-Cookie: session=1"]], ids=str)
@pytest.mark.parametrize("header", ["Authorization", "Cookie"])
async def test_what_was_said_to_one_is_said_to_no_other(gate: Gateway, header: str, lines: list[str]) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        one.lines = lines
        to_ada = await up.get("/me", headers={header: "ada"})

        one.down = True

        assert await up.get("/me", headers={header: "ada"}) == to_ada
        assert isinstance(await ended(up.get("/me", headers={header: "bob"})), Failed)
        assert isinstance(await ended(up.get("/me")), Failed)


async def test_credentials_from_the_context_say_who_asks(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one, propagate=lambda: {"Authorization": USER.get()})

        @up.get("/me", into=Film, fallback=[LastGood()], fresh_for=60, coalesce=True)
        async def me() -> Film: ...

        USER.set("ada")
        to_ada = await me()
        USER.set("bob")
        to_bob = await me()
        one.down = True

        assert to_ada != to_bob
        assert (await me.ask()).value == to_bob
        USER.set("ada")
        assert (await me.ask()).value == to_ada
        USER.set("eve")
        assert isinstance(await ended(me()), Failed)


async def test_an_identity_says_who_asks_where_no_header_does(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/me", into=Film, fallback=[LastGood()], identity=USER.get)
        async def me() -> Film: ...

        one.lines = ["Cache-Control: private"]
        USER.set("ada")
        to_ada = await me()
        one.down = True

        assert await me() == to_ada
        USER.set("bob")
        assert isinstance(await ended(me()), Failed)


async def test_an_answer_that_varies_is_found_by_who_says_the_same(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        one.lines = ["Vary: Accept-Language"]
        de = await up.get("/a", headers={"Accept-Language": "de"})
        en = await up.get("/a", headers={"Accept-Language": "en"})

        one.down = True

        assert await up.get("/a", headers={"Accept-Language": "de"}) == de != en
        assert await up.get("/a", headers={"Accept-Language": "en", "X": "1"}) == en
        assert isinstance(await ended(up.get("/a", headers={"Accept-Language": "fr"})), Failed)
        assert isinstance(await ended(up.get("/a")), Failed)


async def test_a_404_is_an_answer_only_where_that_is_asked_for(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one, statuses={404: "success"})

        @up.get("/a", into=HttpReply, fallback=[LastGood()])
        async def usual() -> HttpReply: ...

        @up.get("/a", into=HttpReply, fallback=[LastGood()], remember=lambda reply: True)
        async def asked_for() -> HttpReply: ...

        one.status = 404
        await usual()
        await asked_for()
        one.down = True

        assert isinstance(await ended(usual()), Failed)
        assert (await asked_for()).status == 404


async def test_a_refusal_is_never_remembered_nor_answered_from_memory(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        good = await up.get("/a")
        one.status = 404

        with pytest.raises(HttpRefused):
            await up.get("/a")
        one.down = True

        assert await up.get("/a") == good


async def test_an_empty_body_does_not_replace_a_good_one(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        good = await up.get("/a")
        one.body = lambda _: b"[]"
        assert (await up.get("/a")).body == b"[]"

        one.down = True

        assert await up.get("/a") == good


async def test_the_headers_of_a_head_are_remembered(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.head.fallback(LastGood())

        @up.head("/b", into=HttpReply, fallback=[LastGood()])
        async def looked() -> HttpReply: ...

        one.lines = ["ETag: 1"]
        await up.head("/a")
        await looked()
        one.down = True

        assert (await up.head("/a")).headers["etag"] == "1"
        assert (await looked()).headers["etag"] == "1"


async def test_a_part_of_a_page_does_not_stand_for_the_page(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        one.status, one.lines = 206, ["Content-Range: bytes 0-1/9"]
        await up.get("/a", headers={"Range": "bytes=0-1"})

        one.down = True

        assert isinstance(await ended(up.get("/a")), Failed)
        assert isinstance(await ended(up.get("/a", headers={"Range": "bytes=0-1"})), Failed)


# -- deeds


async def test_what_may_not_be_repeated_remembers_nothing(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        for refused in ({"fallback": [LastGood()]}, {"fresh_for": 1.0}, {"coalesce": True}):
            with pytest.raises(ConfigError):
                up.post("/orders", into=Film, **refused)(named("order"))
        with pytest.raises(ConfigError, match="LastGood"):
            up.post.fallback(LastGood())


def named(name: str) -> Any:
    async def order() -> Film: ...  # type: ignore[empty-body]

    order.__name__ = name
    return order


async def test_the_answer_to_a_deed_is_that_of_no_other_deed(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.keyed("POST").fallback(LastGood())
        first = await up.post("/orders", json="tea", idempotency_key="1")

        one.down = True

        assert await up.post("/orders", json="tea", idempotency_key="1") == first
        assert isinstance(await ended(up.post("/orders", json="tea", idempotency_key="2")), Failed)
        assert isinstance(await ended(up.post("/orders", json="tea", idempotency_key=True)), Failed)


async def test_two_orders_of_the_same_are_two_orders(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.post("/orders", into=Film, coalesce=True, idempotency_key=lambda json, order: order)
        async def order(json: str, order: str) -> Film: ...

        one.slow = asyncio.Event()
        orders = [asyncio.create_task(order.ask("tea", number)) for number in ("1", "2", "1")]
        await until(lambda: one.asked == 2)
        one.slow.set()
        answers = await asyncio.gather(*orders)

        assert one.asked == 2
        assert [answer.source for answer in answers] == ["live", "live", "coalesced"]
        assert answers[0].value == answers[2].value != answers[1].value


async def test_only_live_is_live_for_a_deed_too(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.keyed("POST").fallback(LastGood())
        await up.post("/orders", json="tea", idempotency_key="1")
        one.down = True

        only_live = up.post.using(only_live=True)

        assert isinstance(await ended(only_live("/orders", json="tea", idempotency_key="1")), Failed)


# -- several endpoints


async def test_what_one_endpoint_said_stands_in_when_all_are_gone(gate: Gateway) -> None:
    async with instances(3) as running:
        up = gate.http("api", urls(running), policy=QUIET)
        up.get.fallback(LastGood())

        @up.get("/b", into=HttpReply, fallback=[LastGood()], fresh_for=60)
        async def declared() -> HttpReply: ...

        live, other = await up.get("/a"), await declared()
        for one in running:
            one.mode = "500"

        assert await up.get("/a") == live
        cached = await declared.ask()
        assert (cached.source, cached.value) == (Source.CACHED, other)


async def test_endpoints_change_nothing_about_names(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("api", urls(running), policy=QUIET)
        up.get.fallback(memory := LastGood())

        for _ in range(6):
            await up.get("/a")

        assert sum(one.calls for one in running) == 6
        assert len(memory) == 1


# -- without asking


async def test_a_fresh_reply_is_not_asked_for(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/a", into=HttpReply, fresh_for=60)
        async def fresh() -> HttpReply: ...

        live = await fresh()
        cached = await fresh.ask()

        assert (cached.source, cached.value, one.asked) == (Source.CACHED, live, 1)
        assert (await fresh.using(only_live=True).ask()).source is Source.LIVE
        assert one.asked == 2


async def test_a_stale_reply_is_given_at_once_and_asked_for_anew(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one, propagate=lambda: {"Authorization": USER.get()})

        @up.get("/me", into=Film, revalidate="background", fallback=[LastGood()])
        async def me() -> Film: ...

        USER.set("ada")
        first = await me()
        stale = await me.ask()
        await until(lambda: not up.refreshing)
        newer = await me.ask()
        await until(lambda: not up.refreshing)

        assert (stale.source, stale.value) == (Source.CACHED, first)
        assert newer.value not in (first, None)
        assert [one.server.headers(number)["authorization"] for number in range(3)] == ["ada"] * 3
        assert up.snapshot().counts.refreshed == 2


async def test_a_refresh_goes_to_any_of_several_endpoints(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("api", urls(running), policy=QUIET)

        @up.get("/a", into=HttpReply, revalidate="background")
        async def anew() -> HttpReply: ...

        for _ in range(4):
            await anew()
            await until(lambda: not up.refreshing)

        assert sum(one.calls for one in running) == 4
        assert up.snapshot().counts.refreshed == 3


async def test_requests_in_flight_that_are_alike_share_one(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/films/{film}", into=Film, coalesce=True)
        async def about(film: str, headers: dict[str, str] | None = None) -> Film: ...

        one.slow = asyncio.Event()
        alike = [asyncio.create_task(about.ask("603", {"traceparent": str(number)})) for number in range(50)]
        others = [asyncio.create_task(about.ask("603", said)) for said in (ADA, BOB, {"X-User": "eve"})]
        await until(lambda: one.asked == 4)
        one.slow.set()
        answers = await asyncio.gather(*alike)
        apart = await asyncio.gather(*others)

        assert one.asked == 4
        assert [answer.source for answer in answers] == ["live"] + ["coalesced"] * 49
        assert len({answer.value for answer in answers}) == 1
        assert len({answer.value for answer in apart}) == 3


FOR_ONE = ["Set-Cookie: session=1", "Cache-Control: private", "Vary: *", "Cache-Control: no-store"]


@pytest.mark.parametrize("line", FOR_ONE)
async def test_a_reply_that_is_for_one_is_shared_with_no_stranger(gate: Gateway, line: str) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/login", into=Film, coalesce=True)
        async def login() -> Film: ...

        one.slow, one.lines = asyncio.Event(), [line]
        logins = [asyncio.create_task(login.ask()) for _ in range(5)]
        await until(lambda: one.asked == 1)
        await steps(5)
        one.slow.set()
        answers = await asyncio.gather(*logins)

        assert len({answer.value for answer in answers}) == one.asked == 5
        assert {answer.source for answer in answers} == {Source.LIVE}


# -- forgetting, warming


async def test_a_request_is_forgotten_for_who_asks(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        for headers in (ADA, BOB):
            await up.get("/me", headers=headers)

        assert up.get.forget("/me", headers=ADA)
        assert not up.get.forget("/me", headers=ADA)
        one.down = True

        assert isinstance(await ended(up.get("/me", headers=ADA)), Failed)
        assert isinstance(await ended(up.get("/me", headers=BOB)), HttpReply)


async def test_a_request_is_forgotten_in_all_languages(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(memory := LastGood())
        one.lines = ["Vary: Accept-Language"]
        for said in ("de", "en"):
            await up.get("/a", headers={"Accept-Language": said})

        assert up.get.forget("/a")

        assert len(memory) == 0


async def test_paths_are_forgotten_by_how_they_begin(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(memory := LastGood())
        for path in ("/users/1", "/users/2", "/films/1"):
            for headers in (ADA, BOB):
                await up.get(path, headers=headers)

        assert up.get.forget_all("/users/") == 4
        assert len(memory) == 2
        assert up.get.forget_all() == 2


async def test_declared_answers_are_forgotten_by_their_first_arguments(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/users/{user}/films/{film}", into=Film, fallback=[LastGood()])
        async def seen(user: str, film: str, deep: bool = False) -> Film: ...

        @up.get("/users/{user}", into=Film, fallback=[LastGood()])
        async def about(user: str) -> Film: ...

        for user in ("1", "10", "a/b"):
            await about(user)
            for film in ("1", "2"):
                await seen(user, film)

        assert seen.forget("1", "2")
        assert [seen.forget_all("1"), seen.forget_all("a/b", "1"), seen.forget_all("b")] == [1, 1, 0]
        assert [about.forget_all("1"), about.forget_all("a/b"), about.forget_all()] == [1, 1, 1]
        with pytest.raises(ConfigError, match="stand in the path"):
            seen.forget_all("1", "1", True)


async def test_answers_that_key_names_are_forgotten_by_what_it_says(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)

        @up.get("/films/{film}", into=Film, fallback=[LastGood()], key=lambda film: (film.lower(), 1))
        async def about(film: str) -> Film: ...

        live = await about("Alien")
        await about("Psycho")
        one.down = True

        assert await about("ALIEN") == live
        assert [about.forget_all("up"), about.forget_all("alien"), about.forget_all()] == [0, 1, 1]


async def test_who_forgets_for_all_ends_the_flights_of_all(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one, propagate=lambda: {"Authorization": USER.get()})

        @up.get("/me", into=Film, coalesce=True, fallback=[memory := LastGood()])
        async def me() -> Film: ...

        one.slow = asyncio.Event()
        before = asyncio.create_task(as_user("ada", me.ask))
        await until(lambda: one.asked == 1)
        me.forget_all()  # by nobody, while ada's answer, outdated now, is on its way
        after = asyncio.create_task(as_user("ada", me.ask))
        await until(lambda: one.asked == 2)
        one.slow.set()
        outdated, current = await asyncio.gather(before, after)

        assert outdated.value != current.value
        assert len(memory) == 1
        one.down = True
        assert (await as_user("ada", me.ask)).value == current.value


async def as_user(user: str, ask: Callable[[], Any]) -> Any:
    token = USER.set(user)
    try:
        return await ask()
    finally:
        USER.reset(token)


async def test_answers_are_fetched_before_they_are_asked_for(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())

        @up.get("/films/{film}", into=Film, fresh_for=60)
        async def about(film: str, headers: dict[str, str] | None = None) -> Film: ...

        one.lines = ["Vary: Accept"]
        assert await up.get.warm(["/a", ("/b",)]) == 2
        assert await about.warm(["1", ("2", {"Accept": "text/html"})]) == 2
        asked = one.asked
        one.down = True

        assert asked == 4
        assert (await about.ask("2", {"Accept": "text/html"})).source is Source.CACHED
        assert (await up.get.ask("/b")).source is Source.LAST_GOOD
        assert await up.get.warm(["/c"]) == 0


async def test_a_caller_may_want_nothing_older(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())
        live = await up.get("/a")
        one.down = True
        await asyncio.sleep(0.02)

        assert await up.get.using(max_age=60)("/a") == live
        assert isinstance(await ended(up.get.using(max_age=0.01)("/a")), Failed)
        assert isinstance(await ended(up.get.using(only_live=True)("/a")), Failed)


# -- in tests of users, and after a restart


async def test_values_from_faults_are_remembered_as_if_they_had_come(gate: Gateway) -> None:
    async with api() as one:
        up = http(gate, one)
        up.get.fallback(LastGood())

        @up.get("/a", into=Film, fallback=[LastGood()], coalesce=True)
        async def declared() -> Film: ...

        with Faults(declared).value(Film("made up")), Faults(up.get).value(HttpReply(200, (), b"made up")):
            await declared()
            await up.get("/b")
        one.down = True

        assert await declared() == Film("made up")
        assert (await up.get("/b")).body == b"made up"


class Stars(Struct, frozen=True):
    user: str
    films: dict[str, int]


async def test_replies_and_structs_come_back_typed_after_a_restart(tmp_path: Path) -> None:
    async with api() as one:
        one.body = lambda _: b'{"user":"ada","films":{"603":5}}'
        one.lines = ["Vary: Accept-Encoding", "X-A: 1", "X-A: 2"]
        before = await visited(one, tmp_path)
        one.down = True
        after = await visited(one, tmp_path)
        strangers = await visited(one, tmp_path, headers=BOB)

    assert [answer.source for answer in before] == ["live"] * 4
    assert [answer.source for answer in after] == ["last_good"] * 4
    assert [answer.value for answer in after] == [answer.value for answer in before]
    assert after[0].value.headers.getall("x-a") == ["1", "2"]
    assert [type(answer.value) for answer in after] == [HttpReply, HttpReply, Stars, Stars]
    assert [type(answer) for answer in strangers[1:]] == [Failed, Failed, Failed]


async def visited(one: Api, folder: Path, headers: dict[str, str] = ADA) -> list[Any]:
    """What a program of three operations gets, that ends thereafter."""
    async with Gateway() as gate:
        up = http(gate, one)
        up.tune(fallback_timeout=1.0)  # a file may be slow where other tests write theirs
        up.get.fallback(LastGood(store=SQLiteStore(folder / "answers.sqlite")))

        @up.get("/reply", into=HttpReply, headers=headers, fallback=list(up.get.tiers))
        async def whole() -> HttpReply: ...

        @up.get("/struct/{user}", into=Stars, headers=headers, fallback=list(up.get.tiers), secret=("user",))
        async def typed(user: str) -> Stars: ...

        @up.put("/struct", into=Stars, fallback=list(up.get.tiers))
        async def said(json: Any, headers: dict[str, str]) -> Stars: ...

        asked = [up.get.ask("/plain"), whole.ask(), typed.ask("ada"), said.ask({"x": 1}, headers)]
        return [await ended(one) for one in asked]


async def test_headers_that_all_requests_have_hide_nothing_after_a_restart(tmp_path: Path) -> None:
    async with api() as one:
        one.lines = ["Vary: Accept, Origin"]
        answers = []
        for one.down in (False, True):
            async with Gateway() as gate:
                memory = LastGood(store=SQLiteStore(tmp_path / "answers.sqlite"))
                asked = http(gate, one).get("/a", into=Film, headers={"Accept": "text/html"}, fallback=[memory])
                answers.append(await asked(named("about")).ask())

    assert [answer.source for answer in answers] == ["live", "last_good"]
    assert answers[0].value == answers[1].value


async def test_what_a_restart_finds_under_the_same_name_is_of_the_same_operation(tmp_path: Path) -> None:
    async with api() as one:
        async with Gateway() as gate:
            up = http(gate, one)
            up.get.fallback(LastGood(store=SQLiteStore(tmp_path / "answers.sqlite")))
            await up.get("/a")
        one.down = True
        async with Gateway() as gate:
            up = http(gate, one)

            @up.get("/a", into=Film, fallback=[LastGood(store=SQLiteStore(tmp_path / "answers.sqlite"))])
            async def declared() -> Film: ...

            assert isinstance(await ended(declared()), Failed)
