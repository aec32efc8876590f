"""What the page is told: all of it once, then what is another; put together it is what the whole document says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway import BulkheadPolicy, Gateway, Outcome, Refused, Static
from gateway.admin.glance import Glance
from gateway.admin.sampler import CALM, MANY, SPARK
from gateway.admin.state import State
from gateway.top.news import Missed, News
from tests.edges.admin.asking import admin_of
from tests.edges.browser import Browser
from tests.edges.pretended import Pretended
from tests.edges.serving import served
from tests.support import QUIET, Boom, ended, gone, steps

pytestmark = pytest.mark.asyncio
SPARKS = ("spark", "spark_degraded", "spark_failed")
SHARED = ("name", "kind", "drift", "adds_up")


class World:
    """Eight upstreams, two of them shaky; seconds go by when they are told to."""

    def __init__(self, stride: int) -> None:
        self.gate = Gateway()
        self.state = State(self.gate)
        self.glance = Glance(self.state)
        self.random = Random(stride)
        self.now = 0.0
        self.sampler = self.state.sampler
        self.sampler.stride = stride
        for number in range(8):
            self.add(number)

    def add(self, number: int) -> None:
        upstream = self.gate.upstream(f"up-{number}", policy=QUIET)

        @upstream.operation(name="calls", idempotent=True)
        async def calls(error: Exception | None = None) -> int:
            if error is not None:
                raise error
            return 1

        @upstream.operation(name="helped", idempotent=True, fallback=[Static(0)])
        async def helped() -> int:
            raise Boom

    async def second(self, *, busy: bool = True) -> None:
        """Some calls, and then the sampler looks."""
        for upstream in self.gate if busy else ():
            if self.random.random() < 0.5:
                for _ in range(self.random.randrange(4)):
                    await upstream["calls"]()
                if upstream.name in {"up-2", "up-5"}:
                    await upstream["helped"]()
                    await ended(upstream["calls"](Boom()))
        self.now += 1.0
        await self.sampler.take_second()

    async def message(self) -> dict[str, Any]:
        return said(await self.glance.compose())


def said(message: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(message.removeprefix(b"data: "))
    return told


@asynccontextmanager
async def world_of(stride: int = 1) -> AsyncIterator[World]:
    world = World(stride)
    async with world.gate:
        world.state.start()
        await world.sampler.close()  # seconds are taken by hand
        world.now = world.sampler.now()
        world.sampler.clock = lambda: world.now
        yield world
        world.glance.leave()
        await world.state.close()


class Reader:
    """Puts messages together, as static/news.js does."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.number = 0
        self.events: list[Any] = []

    def hear(self, message: dict[str, Any]) -> None:
        if "after" not in message:
            self.rows, self.events = {}, []
        else:
            assert message["after"] == self.number
        self.number = message["number"]
        told = {row["name"]: row for row in message["upstreams"]}
        for name, row in self.rows.items():
            now = told.pop(name, {})
            second = now.get("second", max(row["second"], message["second"]))
            for spark in SPARKS:
                last = now.get(spark, [])
                kept = second - len(last) - row["second"]
                line = (row[spark][:kept] if kept < 0 else row[spark] + [0] * kept) + last
                row[spark] = line[-SPARK:]
            row.update({key: value for key, value in now.items() if key not in SPARKS}, second=second)
        self.rows |= told
        self.events += message["events"]


def differences(reader: Reader, world: World) -> list[Any]:
    """What a reader knows otherwise than the document says."""
    document = world.state.document()
    found: list[Any] = []
    for whole in document["upstreams"]:
        row, track = reader.rows[whole["name"]], world.sampler.tracks[whole["name"]]
        pairs = [(row[key], whole[key]) for key in SHARED]
        pairs += [(row["pool"][key], whole["pool"][key]) for key in row["pool"]]
        pairs += [(row["circuit"][key], whole["circuit"][key]) for key in row["circuit"]]
        window = whole["window"]
        rates = {name: rate for name, rate in window["rates"].items() if rate}
        pairs += [(row["window"]["rates"], rates), (row["window"]["latency"], window["latency"])]
        ahead = track.second - row["second"]
        assert 0 <= ahead < world.sampler.stride
        for spark in SPARKS:  # that of one that came later is as long as it is there
            line = whole[spark][: SPARK - ahead]
            both = min(len(line), len(row[spark]))
            pairs.append((row[spark][-both:], line[-both:]))
        found += [(whole["name"], one, other) for one, other in pairs if one != other]
    assert [event["id"] for event in document["events"]] == [event["id"] for event in reader.events]
    return found


@pytest.mark.parametrize("stride", [1, 2])
async def test_messages_put_together_are_what_the_document_says(stride: int) -> None:
    async with world_of(stride) as world:
        reader = Reader()
        await world.message()
        reader.hear(said(world.glance.whole()))

        for number in range(75):
            if number == 40:
                world.add(8)  # one that comes later
            await world.second(busy=number % 30 < 20)
            if number % 7 != 3:  # a message that comes late tells of two seconds
                reader.hear(await world.message())
            if stride == 1 and number % 7 != 3:
                assert differences(reader, world) == []
        for _ in range(14):
            await world.second(busy=False)
            reader.hear(await world.message())
        world.gate["up-1"].tune(bulkhead=BulkheadPolicy(limit=7))
        world.gate["up-3"].isolate()
        for _ in range(stride):
            await world.second(busy=False)
            reader.hear(await world.message())

        assert differences(reader, world) == []
        assert reader.rows["up-1"]["pool"]["limit"] == 7
        assert reader.rows["up-3"]["circuit"]["state"] == "isolated"
        late = Reader()
        late.hear(said(world.glance.whole()))
        assert late.rows.keys() == reader.rows.keys()
        assert differences(late, world) == []


async def test_what_rests_is_not_told_again() -> None:
    async with world_of() as world:
        await world.second()
        await world.message()
        for _ in range(80):
            await world.second(busy=False)
            resting = await world.message()

        await world.gate["up-4"]["calls"]()
        await world.second(busy=False)
        moved = await world.message()

    assert resting["upstreams"] == []
    assert [row["name"] for row in moved["upstreams"]] == ["up-4"]
    assert moved["upstreams"][0]["window"]["rates"]["asked"] == pytest.approx(0.1)


async def test_of_many_those_that_are_ill_are_told_of_every_second() -> None:
    async with world_of(stride=2) as world:
        await world.message()
        seen: dict[str, int] = {}
        for _ in range(10):
            for upstream in world.gate:
                await upstream["calls"]()
            await ended(world.gate["up-5"]["calls"](Boom()))
            await world.second(busy=False)
            for row in (await world.message())["upstreams"]:
                seen[row["name"]] = seen.get(row["name"], 0) + 1

    assert seen["up-5"] >= 9
    assert {number for name, number in seen.items() if name != "up-5"} == {5}


async def test_one_that_gave_no_live_answer_is_told_of_in_the_next_second_whosever_turn_it_is() -> None:
    async with world_of(stride=CALM) as world:
        await world.message()
        told: list[set[str]] = []
        for name in ("up-1", "up-2", "up-3", "up-4", "up-5"):
            for upstream in world.gate:
                await upstream["calls"]()
            await ended(world.gate[name]["calls"](Boom()))
            await world.second(busy=False)
            told.append({row["name"] for row in (await world.message())["upstreams"]})

    assert all(name in names for name, names in zip(("up-1", "up-2", "up-3", "up-4", "up-5"), told, strict=True))
    assert all(len(names) < len(list(world.gate)) for names in told), "the others wait for their turn"


async def test_a_refusal_and_a_caller_who_left_are_no_reason_to_look_sooner() -> None:
    async with world_of(stride=CALM) as world:

        @world.gate["up-1"].operation(idempotent=True)
        async def hangs() -> None:
            await asyncio.Event().wait()

        await ended(world.gate["up-1"]["calls"](Refused("no")))
        leaving = asyncio.ensure_future(hangs())
        await steps(3)
        await gone(leaving)

        assert hangs.tally.ended[Outcome.CANCELLED] == 1
        assert world.sampler.wanted == set()


async def test_the_one_that_is_open_is_looked_at_every_second_for_as_long_as_it_is() -> None:
    async with world_of(stride=CALM) as world:
        await world.message()

        async def seconds_behind(*, is_open: bool) -> list[int]:
            behind = []
            for _ in range(CALM):
                if is_open:
                    world.glance.opened("up-2")
                await world.second(busy=False)
                behind.append(world.sampler.seconds - world.sampler.tracks["up-2"].second)
            return behind

        assert await seconds_behind(is_open=True) == [0] * CALM
        assert any(await seconds_behind(is_open=False))


async def test_a_row_that_cannot_be_put_down_harms_neither_the_sampler_nor_the_next_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world_of() as world:
        await world.message()
        with monkeypatch.context() as broken:
            broken.setattr("gateway.admin.glance.moving", lambda *_: 1 / 0)
            await world.second()
            with pytest.raises(ZeroDivisionError):
                await world.glance.compose()
        taken = world.sampler.seconds

        await world.second()
        message = await world.message()

    assert taken == 1
    assert message["upstreams"]


async def test_a_line_of_the_log_is_told_once() -> None:
    async with world_of() as world:
        reader = Reader()
        await world.second()
        await world.message()
        world.state.stories.note("warning", "up-1", "between two messages")

        reader.hear(said(world.glance.whole()))
        before = [event["text"] for event in reader.events]
        await world.second()
        reader.hear(await world.message())

    assert "between two messages" not in before
    assert [event["text"] for event in reader.events].count("between two messages") == 1


async def test_the_first_picture_is_of_now_however_seldom_totals_were_taken() -> None:
    async with world_of(stride=CALM) as world:
        for _ in range(9):
            await world.second()

        await world.message()
        rows = said(world.glance.whole())["upstreams"]

    assert {row["second"] for row in rows} == {9}


async def test_nobody_who_looks_is_nothing_kept() -> None:
    async with world_of() as world:
        await world.message()

        world.glance.leave()
        world.glance.leave()

        assert world.sampler.each == []
        assert world.sampler.of_each == [world.state._look_at]
        assert world.glance._shown == {}


async def test_the_details_are_those_of_the_one_that_is_open() -> None:
    async with world_of() as world:
        await world.second()
        await world.message()

        opened = said(world.glance.opened("up-2"))["opened"]

        assert opened == next(one for one in world.state.document()["upstreams"] if one["name"] == "up-2")
        assert world.glance.opened("gone") == b""


@pytest.mark.parametrize("packed", [True, False])
async def test_the_server_tells_of_all_and_of_the_one_that_is_open(packed: bool) -> None:
    gate = Gateway()
    for name in ("films", "ratings"):
        gate.upstream(name)
    headers = {"Accept-Encoding": "gzip" if packed else "identity"}

    async with (
        admin_of(gate) as admin,
        ClientSession(admin.url, headers=headers) as session,
        session.get("/live", params={"details": "ratings"}) as one,
        session.get("/live", params={"details": ""}) as none,
        session.get("/live", params={"details": "gone"}) as gone,
    ):
        details = said(await one.content.readuntil(b"\n\n"))
        rows = [said(await stream.content.readuntil(b"\n\n")) for stream in (one, none, gone)]

    assert details["opened"]["name"] == "ratings"
    assert details["opened"]["operations"] == []
    assert all([row["name"] for row in message["upstreams"]] == ["films", "ratings"] for message in rows)
    assert all("after" not in message for message in rows)


async def test_totals_are_taken_as_often_as_they_are_seen() -> None:
    gate = Gateway()
    gate.upstream("ratings")
    many = Gateway()
    for number in range(MANY + 1):
        many.upstream(f"up-{number}")
    strides = []

    for one in (gate, many):
        async with admin_of(one) as admin, ClientSession(admin.url) as session:
            sampler = admin._state.sampler
            strides.append(sampler.stride)
            async with session.get("/live", params={"details": ""}) as stream:
                await stream.content.readuntil(b"\n\n")
                strides.append(sampler.stride)
            async with asyncio.timeout(5.0):
                while sampler.stride != CALM:
                    await asyncio.sleep(0.005)

    assert strides == [CALM, 1, CALM, CALM]


async def test_the_terminal_puts_them_together_alike() -> None:
    async with world_of() as world:
        reader, news = Reader(), News()
        await world.message()
        messages = [said(world.glance.whole())]
        for number in range(70):
            await world.second(busy=number % 30 < 20)
            if number % 7 != 3:
                messages.append(await world.message())
        for message in messages:
            reader.hear(message)
            told = news.hear(message)
        news.hear(said(world.glance.opened("up-2")))
        details = news.hear(said(world.glance.whole()))
        document = world.state.document()["upstreams"]

    assert told is not None
    assert details is not None
    assert [row["name"] for row in told["upstreams"]] == list(reader.rows)
    for row, whole in zip(told["upstreams"], document, strict=True):
        assert [row[spark] for spark in SPARKS] == [reader.rows[row["name"]][spark] for spark in SPARKS]
        assert {name: row["window"]["rates"][name] for name in whole["window"]["rates"]} == whole["window"]["rates"]
        assert row["pool"] == reader.rows[row["name"]]["pool"]
    assert details["upstreams"][2]["operations"] == document[2]["operations"]
    assert "operations" not in details["upstreams"][3]


async def test_the_terminal_knows_when_it_missed_a_message() -> None:
    async with world_of() as world:
        news = News()
        await world.message()
        news.hear(said(world.glance.whole()))
        await world.second()
        await world.message()
        await world.second()

        with pytest.raises(Missed):
            news.hear(await world.message())


async def test_the_page_puts_them_together_alike(browser: Browser) -> None:
    async with world_of(stride=2) as world:
        await world.message()
        messages = [said(world.glance.whole()), said(world.glance.opened("up-2"))]
        for number in range(70):
            await world.second(busy=number % 30 < 20)
            if number % 7 != 3:
                messages.append(await world.message())
        reader = Reader()
        for message in messages:
            if "opened" not in message:
                reader.hear(message)

    async with served(Pretended(1).create()) as url, browser.tab() as tab:
        await tab.open(url)
        script = f"""import("/static/news.js").then(({{ News }}) => {{
            const news = new News(), told = {json.dumps(messages)}.map((message) => news.hear(message));
            return [told[1], told[2].upstreams[2].operations.length, told.at(-1)];
        }})"""
        nothing, operations, page = await tab.run(script)

    assert nothing is None
    assert operations == 2
    assert page["number"] == reader.number
    for row in page["upstreams"]:
        known = reader.rows[row["name"]]
        assert {name: rate for name, rate in row["window"]["rates"].items() if rate} == known["window"]["rates"]
        assert row["window"]["rates"]["static"] >= 0
        assert [row[spark] for spark in SPARKS] == [known[spark] for spark in SPARKS]
        assert (row["pool"], row["circuit"], row["second"]) == (known["pool"], known["circuit"], known["second"])
