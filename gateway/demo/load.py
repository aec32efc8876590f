"""The load of the scenario, from a process of its own: users who ask for pages and do not care how busy we are.

A page's time runs from the instant at which it was to be asked for. If this process is late, or has to wait for a
connection, that counts as well: a user does not know whose fault it is.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import FIRST_COMPLETED, StreamReader, StreamReaderProtocol, TaskGroup
from collections import Counter
from collections.abc import Callable
from math import inf
from time import monotonic

import aiohttp
import msgspec
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from gateway.demo.plan import DEADLINE, FLOODED, PATIENCE, RATE, SETTLE, Arrival, Plan, arrivals
from gateway.demo.site import say

OK = 200
WARM_UP_FOR = 1
"""Seconds of load before the start that do not count: connections are opened, code is run for the first time."""
FLOOD_BURST = 60
FLOOD_RATE = 120
"""A second, after so many at once: the service does 100 of these a second, and has the users as well."""
FLOOD_PATIENCE = 2.0
FLOOD_AT_ONCE = 250
"""The flood is bounded: so many of its requests are under way at most."""


class Page(msgspec.Struct, frozen=True, array_like=True):
    """What became of one page. `sent` is when it was to be asked for, in seconds from the start."""

    sent: float
    took: float
    seen: bool
    """This user had a live page before."""
    sources: dict[str, str]
    """Where the answer of each upstream came from; empty if the page does not say."""
    problem: str = ""
    """Why there is no page."""


class Order(msgspec.Struct, frozen=True):
    """What to ask whom."""

    catalog_url: str
    ratings_url: str
    plan: Plan


class Users:
    """Those who ask for pages, and what became of it."""

    def __init__(self, session: ClientSession, url: str, report: Callable[[Page], object]) -> None:
        self._session = session
        self._url = url
        self._report = report
        self._live_pages: Counter[str] = Counter()

    async def ask(self, arrival: Arrival, start: float) -> None:
        """Ask for one page, and report."""
        seen = self._live_pages[arrival.user] > 0
        due = start + arrival.at
        sources, problem = await self._page(arrival.user, due)
        took = monotonic() - due
        if not problem and set(sources.values()) <= {"live"}:
            self._live_pages[arrival.user] += 1
        self._report(Page(round(arrival.at, 6), round(took, 6), seen, sources, problem))

    async def _page(self, user: str, due: float) -> tuple[dict[str, str], str]:
        late = monotonic() - due
        headers = {"X-Deadline-Ms": f"{max(0, DEADLINE - late) * 1000:.0f}"}
        timeout = ClientTimeout(total=max(0.001, PATIENCE - late), ceil_threshold=inf)
        try:
            async with self._session.get(f"{self._url}/catalog/{user}", headers=headers, timeout=timeout) as response:
                body = await response.read()
        except TimeoutError:
            return {}, "the user left"
        except aiohttp.ClientError as error:
            return {}, type(error).__name__
        if response.status != OK:
            return {}, f"status {response.status}"
        if not complete(body):
            return {}, "not a page"
        return sources_of(response.headers.get("X-Answer-Source", "")), ""


def complete(body: bytes) -> bool:
    """It is a page: at least one film."""
    try:
        return bool(msgspec.json.decode(body, type=list[dict[str, object]]))
    except msgspec.DecodeError:
        return False


def sources_of(header: str) -> dict[str, str]:
    """`ratings=last_good;age=12.4, info=live` in parts."""
    parts = (part.strip().partition("=") for part in header.split(",") if part.strip())
    return {name: value.partition(";")[0] for name, _, value in parts}


async def drive(users: Users, plan: Plan, start: float) -> None:
    """Send every page at its instant, and wait for the last."""
    async with TaskGroup() as group:
        for arrival in arrivals(plan.seconds):
            await asyncio.sleep(start + arrival.at - monotonic())
            group.create_task(users.ask(arrival, start))


async def warm_up(session: ClientSession, url: str) -> None:
    """Pages that do not count, for somebody who is not one of the users."""
    users = Users(session, url, report=lambda _: None)
    start = monotonic()
    async with TaskGroup() as group:
        for number in range(WARM_UP_FOR * RATE):
            at = number / RATE
            await asyncio.sleep(start + at - monotonic())
            group.create_task(users.ask(Arrival(at, "somebody-else"), start))


async def flood(session: ClientSession, url: str, *, begin: float, end: float) -> None:
    """What others ask of the ratings service meanwhile: more than it can do."""
    under_way: set[asyncio.Task[None]] = set()
    async with TaskGroup() as group:
        for number in range(FLOOD_BURST + int((end - begin) * FLOOD_RATE)):
            await asyncio.sleep(begin + max(0, number - FLOOD_BURST) / FLOOD_RATE - monotonic())
            if len(under_way) < FLOOD_AT_ONCE:
                task = group.create_task(other(session, f"{url}/ratingsdata/movies/550"))
                under_way.add(task)
                task.add_done_callback(under_way.discard)


async def other(session: ClientSession, url: str) -> None:
    """One of the flood."""
    try:
        async with session.get(url, timeout=ClientTimeout(total=FLOOD_PATIENCE)) as response:
            await response.read()
    except (TimeoutError, aiohttp.ClientError):
        return  # that is how floods end


async def run(order: Order) -> None:
    """Say that we are ready, read when to start, and report each page in a line, to the last, or our parent's end."""
    loop = asyncio.get_running_loop()
    parent = StreamReader()
    await loop.connect_read_pipe(lambda: StreamReaderProtocol(parent), sys.stdin)
    async with session() as users, session() as others:
        await warm_up(users, order.catalog_url)
        say("ready")
        start = await parent.readline()
        if not start:
            return
        driving = loop.create_task(both(order, users, others, float(start)))
        ended = loop.create_task(parent.read())
        await asyncio.wait({driving, ended}, return_when=FIRST_COMPLETED)
        for task in (driving, ended):
            task.cancel()
        await asyncio.gather(driving, ended, return_exceptions=True)


async def both(order: Order, users: ClientSession, others: ClientSession, start: float) -> None:
    """The users, and at its time the flood."""
    encode = msgspec.json.Encoder().encode
    asking = Users(users, order.catalog_url, report=lambda page: say(encode(page).decode()))
    flooded = order.plan.phase(FLOODED)
    async with TaskGroup() as group:
        group.create_task(drive(asking, order.plan, start))
        group.create_task(
            flood(others, order.ratings_url, begin=start + flooded.begins + SETTLE, end=start + flooded.ends)
        )


def session() -> ClientSession:
    """A client without a limit of its own, for users do not queue for each other's connections."""
    return ClientSession(connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar())
