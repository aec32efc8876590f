"""The blast radius: who notices when one of three upstreams falls ill, again and again, under load that does not wait.

Everything is a process of its own, on real sockets: three upstreams, the aggregator, and the users, who are here. They
ask for pages, made of all three, and for something else that does not need the one that falls ill. A page that does
not come, or takes more than a second from the instant at which it was to be asked for, is lost.
"""

from __future__ import annotations

import asyncio
from asyncio import TaskGroup
from asyncio.subprocess import Process
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from math import ceil, inf
from random import Random
from time import monotonic

import aiohttp
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from benchmarks import picture, processes
from benchmarks.aggregators import CALL, KINDS, LIMIT, NAMES, OPEN_FOR, OPENS_AFTER, QUEUE, TOTAL, TRY
from benchmarks.report import DOCS, Section, table
from benchmarks.upstreams import DRIP_EVERY, SLOW_FOR

PAGES, OTHERS = 100, 50
"""A second."""
USERS = 50
IN_TIME = 1.0
PATIENCE = 3.0
DELAY = 0.01
"""What an upstream takes when it is well."""
ILL = "b"
WARM_UP = 1.0
STEP = 0.5
LIVE_AGAIN = 0.99
TITLES = {"gateway": "gateway", "bare": "bare aiohttp", "glue": "the glue"}
FAULTS = {
    "hangs": "hang",
    "fails": "fail",
    "slows down": "slow",
    "drips": "drip",
    "dies": "dead",
}
WELL = "well"


@dataclass(frozen=True, slots=True)
class Phase:
    """Some seconds of one condition."""

    name: str
    begins: float
    ends: float


@dataclass(frozen=True, slots=True)
class Request:
    """What became of one."""

    sent: float
    took: float
    page: bool
    kind: str
    """live, degraded or lost."""


@dataclass(slots=True)
class Run:
    """All of one aggregator."""

    phases: tuple[Phase, ...]
    requests: list[Request] = field(default_factory=list)
    sent_to_ill: dict[str, int | None] = field(default_factory=dict)

    def of(self, phase: Phase, *, pages: bool) -> list[Request]:
        """Those of a phase."""
        return [one for one in self.requests if one.page is pages and phase.begins <= one.sent < phase.ends]

    def recovery(self, phase: Phase) -> float | None:
        """Seconds from the end of a fault until pages are live again; None if not before the next."""
        after = next(one for one in self.phases if one.begins >= phase.ends)
        at = after.begins
        while at < after.ends:
            pages = [one for one in self.requests if one.page and at <= one.sent < at + STEP]
            if pages and share(pages, "live") >= LIVE_AGAIN:
                return at - after.begins
            at += 0.1
        return None


def phases(*, quick: bool) -> tuple[Phase, ...]:
    """Well, and then ill and well in turn."""
    ill_for, well_for = (2.0, 3.0) if quick else (6.0, 6.0)
    made, at = [Phase(WELL, 0.0, well_for)], well_for
    for name in FAULTS:
        made += [Phase(name, at, at + ill_for), Phase(f"after it {name}", at + ill_for, at + ill_for + well_for)]
        at += ill_for + well_for
    return tuple(made)


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """One aggregator after the other, on the newest Python; a table and a picture."""
    plan = phases(quick=quick)
    found = {kind: asyncio.run(play(kind, plan, python=pythons[-1])) for kind in KINDS}
    svg = DOCS / "blast-radius.svg"
    svg.write_text(picture.draw({TITLES[kind]: one for kind, one in found.items()}))
    return Section("Blast radius", tuple(lines(found)))


class Ill:
    """The upstream that falls ill."""

    def __init__(self, port: int, python: str, session: ClientSession) -> None:
        self._port, self._python, self._session = port, python, session
        self._url = f"http://127.0.0.1:{port}"
        self._process: Process | None = None

    async def be(self, mode: str) -> None:
        """Fall ill, or get well; from death by a new process."""
        if mode == "dead":
            await self.end()
        elif self._process is None:
            self._process = await processes.start(
                "benchmarks.upstreams", str(self._port), str(DELAY), python=self._python
            )
        if mode != "dead":
            async with self._session.post(f"{self._url}/mode/{mode}"):
                pass

    async def seen(self) -> int | None:
        """How many requests have come to it; None while it is dead."""
        if self._process is None:
            return None
        async with self._session.get(f"{self._url}/seen") as response:
            return int(await response.read())

    async def end(self) -> None:
        """It is gone."""
        if self._process is not None:
            await processes.end(self._process)
            self._process = None


async def play(kind: str, plan: tuple[Phase, ...], *, python: str) -> Run:
    """One aggregator through all of it."""
    ports = {name: processes.free_port() for name in (*NAMES, "aggregator")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            ClientSession(connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar())
        )
        for name in NAMES:
            if name != ILL:
                order = ("benchmarks.upstreams", str(ports[name]), str(DELAY))
                await stack.enter_async_context(processes.running(*order, python=python))
        ill = Ill(ports[ILL], python, session)
        stack.push_async_callback(ill.end)
        await ill.be("none")
        order = ("benchmarks.aggregators", kind, str(ports["aggregator"]), *(urls[name] for name in NAMES))
        await stack.enter_async_context(processes.running(*order, python=python))
        await users(session, urls["aggregator"], Run(()), seconds=WARM_UP, start=monotonic())
        made = Run(plan)
        start = monotonic() + 0.1
        async with TaskGroup() as group:
            group.create_task(users(session, urls["aggregator"], made, seconds=plan[-1].ends, start=start))
            group.create_task(conditions(ill, made, start=start))
        return made


async def conditions(ill: Ill, made: Run, *, start: float) -> None:
    """Let the upstream fall ill and get well, on time, and count what is sent to it."""
    for phase in made.phases:
        await asyncio.sleep(start + phase.begins - monotonic())
        await ill.be(FAULTS.get(phase.name, "none"))
        before = await ill.seen()
        await asyncio.sleep(start + phase.ends - 0.05 - monotonic())
        after = await ill.seen()
        made.sent_to_ill[phase.name] = None if before is None or after is None else after - before


async def users(session: ClientSession, url: str, made: Run, *, seconds: float, start: float) -> None:
    """Ask for everything at its instant; nobody waits for another's answer."""
    random = Random(1)
    async with TaskGroup() as group:
        for number in range(int(seconds * (PAGES + OTHERS))):
            at = (number + random.random()) / (PAGES + OTHERS)
            page = number % (PAGES + OTHERS) * PAGES % (PAGES + OTHERS) < PAGES
            user = f"user-{random.randrange(USERS)}"
            await asyncio.sleep(start + at - monotonic())
            group.create_task(ask(session, f"{url}/{'page' if page else 'other'}/{user}", made, at, start, page=page))


async def ask(session: ClientSession, url: str, made: Run, at: float, start: float, *, page: bool) -> None:
    """One request."""
    left = start + at + PATIENCE - monotonic()
    kind = "lost"
    try:
        async with session.get(url, timeout=ClientTimeout(total=max(0.001, left), ceil_threshold=inf)) as response:
            await response.read()
            if response.status == 200:
                kind = "degraded" if response.headers.get("X-Degraded") == "true" else "live"
    except (TimeoutError, aiohttp.ClientError):
        pass
    took = monotonic() - start - at
    made.requests.append(Request(at, took, page, kind if took <= IN_TIME else "lost"))


def share(requests: Sequence[Request], kind: str) -> float:
    """Of all, those of a kind."""
    return sum(one.kind == kind for one in requests) / max(1, len(requests))


def p99(requests: Sequence[Request]) -> float:
    """What 99 of 100 take at the most, in seconds."""
    took = sorted(one.took for one in requests)
    return took[ceil(len(took) * 0.99) - 1] if took else 0.0


def lines(found: dict[str, Run]) -> Iterator[str]:
    """The table."""
    yield (
        f"An aggregator asks three upstreams for each page, at once; {PAGES} pages a second, and {OTHERS} requests a "
        f"second for something that needs only two of them. The third falls ill: it *hangs*, *fails* at once with 500, "
        f"*slows down* to {SLOW_FOR:g} s from {DELAY:g} s, *drips* a byte every {DRIP_EVERY:g} s, *dies* (its process "
        f"is killed), and each time gets well again. A page that fails, or takes more than {IN_TIME:g} s, is lost."
    )
    yield (
        f"*Gateway* and *the glue* (tenacity, purgatory, a semaphore, `asyncio.timeout`, aiocache; "
        f"benchmarks/aggregators.py) have the same numbers where there is a place for them: {LIMIT} at once for each "
        f"upstream, a try {TRY:g} s, a call {CALL:g} s, two tries, the last good answer, a circuit that opens for "
        f"{OPEN_FOR:g} s. The gateway's opens when half of the last ten seconds' calls have failed, of at least "
        f"{OPENS_AFTER}; the glue's after {OPENS_AFTER} failures in a row. {QUEUE} more may wait in the gateway, and "
        f"in the glue as many as come. *Bare aiohttp* is one session as it comes, 100 connections, with a limit of "
        f"{TOTAL:g} s on each request; a part that fails fails the page."
    )
    yield (
        "*Requests sent to b* counts retries, and is what b saw; *live again after* is the time from the end of the "
        f"illness until half a second of pages is live to {LIVE_AGAIN:.0%} (after its death that includes the start of "
        "its new process)."
    )
    yield "![Pages by what they were: live, degraded, lost](blast-radius.svg)"
    head = (
        *("upstream b", "with", "pages in time", "of them degraded", "p99 of pages", "p99 of the other route"),
        *("lost there", "requests sent to b", "live again after"),
    )
    yield table(head, (row for phase in shown(found) for row in of_phase(found, phase)), align="ll" + 7 * "r")


def shown(found: dict[str, Run]) -> list[Phase]:
    """The first healthy phase, and every illness."""
    return [one for one in next(iter(found.values())).phases if one.name in {WELL, *FAULTS}]


def of_phase(found: dict[str, Run], phase: Phase) -> Iterator[tuple[str, ...]]:
    """A row for each aggregator."""
    for kind, made in found.items():
        pages, others = made.of(phase, pages=True), made.of(phase, pages=False)
        in_time = 1 - share(pages, "lost")
        sent = made.sent_to_ill[phase.name]
        back = made.recovery(phase) if phase.name in FAULTS else 0.0
        yield (
            phase.name if kind == next(iter(found)) else "",
            TITLES[kind],
            f"{in_time:.1%}",
            f"{share(pages, 'degraded') / in_time:.0%}" if in_time else "-",
            f"{p99(pages) * 1000:,.0f} ms",
            f"{p99(others) * 1000:,.0f} ms",
            f"{share(others, 'lost'):.1%}",
            "nobody there" if sent is None else f"{sent:,}",
            "" if phase.name == WELL else "not before the next" if back is None else f"{back:.1f} s",
        )
