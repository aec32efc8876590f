"""Three ratings services: the page goes on while one of them is killed, and the page itself may kill it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.demo import info, ratings
from gateway.demo.catalog import Catalog
from gateway.demo.processes import SIGNAL_FOR
from gateway.testing import assert_nothing_left
from tests.edges.browser import Browser
from tests.edges.running import ANY_PORTS, Running, ask, free_ports_in_a_row, lives, running
from tests.edges.serving import served

THREE = (*ANY_PORTS, "--instances", "3")


# -- what the page asks the catalog for


class Client:
    """Somebody who asks a catalog before several ratings services; `told` is what the catalog asked for."""

    def __init__(self, session: aiohttp.ClientSession, url: str, instances: list[str], told: list[str]) -> None:
        self.session, self.url, self.instances, self.told = session, url, instances, told

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, headers=headers) as response:
            return response.status, await response.json() if await response.read() else None


@asynccontextmanager
async def client_of(*extra: str, killing: bool = True) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(served(ratings.create())) for _ in range(2)]
        urls += extra
        told: list[str] = []
        catalog = Catalog(
            ratings_url=urls,
            info_url=await stack.enter_async_context(served(info.create())),
            tell=told.append if killing else None,
        )
        url = await stack.enter_async_context(served(catalog.create()))
        yield Client(await stack.enter_async_context(aiohttp.ClientSession()), url, urls, told)
        assert_nothing_left(catalog.gate)


@pytest.mark.asyncio
async def test_the_page_is_told_what_each_instance_gets() -> None:
    async with client_of() as client:
        for number in range(30):
            await client.ask("GET", f"/ratings/{number}")
        _, shown = await client.ask("GET", "/upstreams")

    ratings, info, _ = shown["upstreams"]
    assert [one["url"] for one in ratings["instances"]] == client.instances
    assert {one["state"] for one in ratings["instances"]} == {"healthy"}
    assert sum(one["calls"] for one in ratings["instances"]) == 30
    assert ratings["startable"] is True
    assert "instances" not in info


@pytest.mark.asyncio
async def test_a_wish_of_the_page_goes_to_whoever_started_the_instances() -> None:
    async with client_of() as client:
        done = [await client.ask("POST", f"/upstreams/ratings/instances/{wish}") for wish in ("2/kill", "2/start")]

    assert done == 2 * [(204, None)]
    assert client.told == ["kill ratings-2", "start ratings-2"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "path",
    [
        *("ratings/instances/0/kill", "ratings/instances/3/kill", "ratings/instances/1%0Akill/kill"),
        *("ratings/instances/1/x", "posters/instances/1/kill", "nobody/instances/1/kill"),
    ],
)
async def test_what_is_not_there_cannot_be_killed(path: str) -> None:
    async with client_of() as client:
        status, _ = await client.ask("POST", f"/upstreams/{path}")

    assert (status, client.told) == (404, [])


@pytest.mark.asyncio
async def test_nobody_kills_what_somebody_else_started_nor_the_only_one() -> None:
    async with client_of(killing=False) as client:
        others = await client.ask("POST", "/upstreams/ratings/instances/1/kill")
    async with client_of() as client:
        only = await client.ask("POST", "/upstreams/info/instances/1/kill")

    assert (others[0], only[0], client.told) == (409, 409, [])
    assert "gateway demo --instances" in others[1]["error"]


@pytest.mark.asyncio
async def test_another_site_may_not_kill() -> None:
    async with client_of() as client:
        status, _ = await client.ask("POST", "/upstreams/ratings/instances/1/kill", **{"Sec-Fetch-Site": "cross-site"})

    assert (status, client.told) == (403, [])


@pytest.mark.asyncio
async def test_a_fault_is_for_all_instances_that_are_there() -> None:
    async with client_of("http://127.0.0.1:9") as client:
        turned = await client.ask("POST", "/upstreams/ratings/fault/slow")
        shown = await client.ask("GET", "/upstreams/ratings/fault")
        async with client.session.post(f"{client.instances[0]}/fault/none"):
            pass
        mixed = await client.ask("GET", "/upstreams/ratings/fault")

    up, dead = {"mode": "slow", "up": True}, {"mode": None, "up": False}
    assert turned == (204, None)
    assert shown == (200, {"mode": "slow", "instances": [up, up, dead]})
    assert mixed[1]["mode"] is None


# -- the processes


@pytest.fixture(scope="module")
def first() -> int:
    """The port of the first of three."""
    return free_ports_in_a_row(3)


@pytest.fixture(scope="module")
def demo(first: int) -> Iterator[Running]:
    with running("demo", *THREE, "--ratings-port", str(first)) as one:
        yield one


def instances_of(demo: Running) -> list[str]:
    return [line.removeprefix("ratings ready ") for line in demo.said if line.startswith("ratings ready ")]


def state_of(demo: Running, number: int) -> bool:
    return bool(demo.get("catalog", "/upstreams/ratings/fault").json["instances"][number - 1]["up"])


def until(demo: Running, number: int, *, up: bool) -> None:
    given_up_at = time.monotonic() + 10.0
    while state_of(demo, number) is not up:
        assert time.monotonic() < given_up_at
        time.sleep(0.02)


def wish(demo: Running, number: int, deed: str) -> None:
    reply = ask("POST", f"{demo.urls['catalog']}/upstreams/ratings/instances/{number}/{deed}")
    assert reply.status == 204


def test_there_are_three_ratings_services(demo: Running) -> None:
    assert len(set(instances_of(demo))) == 3
    assert {ask("GET", f"{url}/health").status for url in instances_of(demo)} == {200}


def test_pages_stay_live_while_the_page_kills_an_instance_and_starts_it_again(demo: Running) -> None:
    before = demo.get("catalog", "/catalog/ada")
    wish(demo, 2, "kill")
    until(demo, 2, up=False)
    during = [demo.get("catalog", f"/catalog/{number}") for number in range(50)]
    wish(demo, 2, "start")
    until(demo, 2, up=True)
    there = ask("GET", f"{instances_of(demo)[1]}/health")
    after = demo.get("catalog", "/catalog/ada")

    assert {page.source for page in (before, *during, after)} == {"ratings=live, info=live"}
    assert there.status == 200


def test_an_instance_that_is_killed_by_hand_does_not_end_the_demo(demo: Running) -> None:
    pid = pid_of(instances_of(demo)[0])
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    until(demo, 1, up=False)
    pages = []
    while time.monotonic() < killed_at + 3 * SIGNAL_FOR:  # by then it would have begun to end
        pages.append(demo.get("catalog", f"/catalog/{len(pages)}"))
    wish(demo, 1, "start")
    until(demo, 1, up=True)

    assert {page.source for page in pages} == {"ratings=live, info=live"}
    assert demo.process.poll() is None


def pid_of(url: str) -> int:
    """The process that listens there."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    inode = next(line[9] for line in lines if line[1].endswith(port) and line[3] == "0A")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if f"socket:[{inode}]" in files:
            return int(process.name)
    raise AssertionError(f"nobody listens at {url}")


def test_all_of_them_end_with_the_demo_also_one_that_was_started_again() -> None:
    with running("demo", *THREE) as demo:
        wish(demo, 3, "kill")
        until(demo, 3, up=False)
        wish(demo, 3, "start")
        until(demo, 3, up=True)
        wish(demo, 1, "kill")
        until(demo, 1, up=False)
        pids = [pid_of(url) for url in instances_of(demo)[1:]]
        code, said, complaints = demo.end()

    assert (code, complaints) == (0, "")
    assert re.fullmatch(r"ratings-3 was killed\nratings ready http://\S+\nratings-1 was killed\n", said)
    assert not any(lives(pid) for pid in pids)


def test_their_ports_begin_with_that_of_the_first(demo: Running, first: int) -> None:
    ports = [int(url.rpartition(":")[2]) for url in instances_of(demo)]

    assert ports == [first, first + 1, first + 2]


# -- what a person sees


@pytest.mark.asyncio
async def test_who_kills_one_of_three_sees_it_dead_and_the_page_live(browser: Browser) -> None:
    starting = running("demo", *THREE)
    demo = await asyncio.to_thread(starting.__enter__)
    rows = "[...document.querySelectorAll('[data-upstream=ratings] .instances li')]"
    try:
        async with browser.tab() as tab:
            await tab.size(360, 800, phone=True)
            await tab.open(demo.urls["catalog"] + "/?user=ada")
            await tab.until(f"{rows}.length === 3")
            await tab.press("[aria-label='Kill instance 2 of ratings']")
            await tab.until(f"{rows}[1].textContent.includes('dead')")
            await asyncio.to_thread(until, demo, 2, up=False)
            await tab.until("document.getElementById('verdict').textContent === 'Complete, and all live'")
            wide = await tab.run("document.documentElement.scrollWidth")
            await tab.press("[aria-label='Start instance 2 of ratings']")
            await asyncio.to_thread(until, demo, 2, up=True)
            await tab.until(f"!{rows}[1].textContent.includes('dead')")
            total = await tab.run("document.getElementById('total').textContent")
            problems = tab.problems
    finally:
        await asyncio.to_thread(starting.__exit__, None, None, None)

    assert wide <= 360
    assert total.endswith(" 0 failed")
    assert problems == []
