"""The scenario: real services, real load, faults by the clock; a table while it runs, then a verdict and a picture.

load ──▶ catalog (or the plain one) ──▶ ratings, of a fixed capacity
                                   └──▶ info
this process: starts the others, turns their faults on and off, prints
"""

from __future__ import annotations

import asyncio
from asyncio import FIRST_COMPLETED, Event, create_task
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from time import monotonic

import msgspec
from aiohttp import ClientError, ClientSession

from gateway.demo import cast, picture, report
from gateway.demo.cast import HOST
from gateway.demo.load import Order, Page
from gateway.demo.plan import FAULTS, SETTLE, Plan, arrivals
from gateway.demo.processes import ServiceEnded, end
from gateway.demo.seconds import Change, Second, circuits_at, second
from gateway.demo.site import ending_signals, listen, say, url_of
from gateway.demo.verdict import Run, violations

START_IN = 0.5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user chose."""

    plan: Plan
    protected: bool = True
    timeouts: bool = True
    svg: Path | None = None

    @property
    def title(self) -> str:
        """What this is."""
        if self.protected:
            return "A page from two services, behind a gateway"
        limits = "with HTTP timeouts of 2 s" if self.timeouts else "without timeouts"
        return f"The same page and load without a gateway, {limits}"


class Ending(msgspec.Struct, frozen=True):
    """How it went: the last lines, and whether it held what it promises. Without a gateway nothing is promised."""

    lines: tuple[str, ...]
    held: bool = True


async def run(settings: Settings) -> Ending:
    """Start everything, play the scenario, end everything. SIGINT and SIGTERM end it early."""
    stop = Event()
    processes: dict[str, Process] = {}
    with ending_signals(stop):
        try:
            stage = await set_up(settings, processes)
            return await until(stop, stage.play())
        finally:
            await end(dict(reversed(processes.items())))


async def until(stop: Event, playing: Coroutine[None, None, Ending]) -> Ending:
    """Play to the end, unless told to stop."""
    tasks = create_task(playing), create_task(stop.wait())
    try:
        await asyncio.wait(tasks, return_when=FIRST_COMPLETED)
        return Ending(("ended early: no verdict",)) if stop.is_set() else await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def set_up(settings: Settings, processes: dict[str, Process]) -> Stage:
    """All processes, at once: what comes before its service is up waits in the line of the socket."""
    sockets = {role: listen(HOST, 0, option="") for role in ("ratings", "info", "catalog")}
    urls = {role: url_of(HOST, one.getsockname()[1]) for role, one in sockets.items()}
    asked = cast.Upstreams(
        ratings_url=urls["ratings"], info_url=urls["info"], plan=settings.plan, timeouts=settings.timeouts
    )
    order = Order(catalog_url=urls["catalog"], ratings_url=urls["ratings"], plan=settings.plan)
    for role in ("info", "ratings"):
        processes[role] = await cast.start(role, sockets[role])
    processes["catalog"] = await cast.start("catalog" if settings.protected else "plain", sockets["catalog"], asked)
    processes["load"] = await cast.start("load", None, order)
    return Stage(settings, urls, processes)


class Stage:
    """Where it plays, and what has happened so far."""

    def __init__(self, settings: Settings, urls: dict[str, str], processes: dict[str, Process]) -> None:
        self._settings = settings
        self._plan = settings.plan
        self._urls = urls
        self._processes = processes
        self._start = 0.0
        self._pages: list[list[Page]] = [[] for _ in range(self._plan.seconds)]
        self._expected = Counter(int(arrival.at) for arrival in arrivals(self._plan.seconds))
        self._seconds: list[Second] = []
        self._changes: list[Change] = []
        self._switched: dict[int, float] = {}

    async def play(self) -> Ending:
        """From the first second to the verdict."""
        for process in self._processes.values():
            await line_of(process)
        say(report.HEADER)
        self._start = monotonic() + START_IN
        async with ClientSession() as session:
            tell(self._processes["load"], f"{self._start}\n")
            switching = create_task(self._switch(session))
            try:
                await self._watch(session)
                await switching
            except ClientError as error:
                raise ServiceEnded(f"a service of the scenario does not answer any more: {error}") from error
            finally:
                switching.cancel()
                await asyncio.gather(switching, return_exceptions=True)
        return self._ending()

    async def _switch(self, session: ClientSession) -> None:
        """Turn the faults on and off."""
        on: str | None = None
        for phase in self._plan.phases:
            fault = FAULTS.get(phase.name)
            await self._sleep_until(phase.begins + (0 if phase.calm else SETTLE))
            if on is not None:
                await self._turn(session, on, "none")
            on = None if fault is None else fault[0]
            if fault is not None:
                await self._turn(session, *fault)
            self._switched[phase.begins] = monotonic() - self._start

    async def _turn(self, session: ClientSession, service: str, mode: str) -> None:
        async with session.post(f"{self._urls[service]}/fault/{mode}", raise_for_status=True):
            pass

    async def _watch(self, session: ClientSession) -> None:
        """Read what became of each page; print each second of which all is known."""
        decode = msgspec.json.Decoder(Page).decode
        while len(self._seconds) < self._plan.seconds:
            page = decode(await line_of(self._processes["load"]))
            self._pages[int(page.sent)].append(page)
            while self._next_is_known():
                await self._print(session, len(self._seconds))

    def _next_is_known(self) -> bool:
        number = len(self._seconds)
        return number < self._plan.seconds and len(self._pages[number]) == self._expected[number]

    async def _print(self, session: ClientSession, number: int) -> None:
        await self._sleep_until(number + 1)
        circuits: dict[str, str] = {}
        if self._settings.protected:
            async with session.get(f"{self._urls['catalog']}/circuits", raise_for_status=True) as response:
                changes = msgspec.json.decode(await response.read(), type=list[Change])
            self._changes = [Change(one.at - self._start, one.upstream, one.state) for one in changes]
            circuits = circuits_at(number + 1, self._changes)
        self._seconds.append(second(number, self._plan.at(number).name, self._pages[number], circuits))
        say(report.line(self._seconds[-1]))

    async def _sleep_until(self, at: float) -> None:
        await asyncio.sleep(self._start + at - monotonic())

    def _ending(self) -> Ending:
        pages = sorted((page for pages in self._pages for page in pages), key=lambda page: page.sent)
        run = Run(self._plan, pages, self._changes, self._switched)
        settings = self._settings
        verdict = report.protected(run) if settings.protected else report.unprotected(run)
        lines = ["", *report.phases(run, protected=settings.protected), "", *verdict]
        if settings.svg is not None:
            settings.svg.write_text(picture.draw(run, self._seconds, title=settings.title, verdict=verdict))
            lines.append(f"picture: {settings.svg}")
        return Ending(tuple(lines), held=not (settings.protected and violations(run)))


async def line_of(process: Process) -> bytes:
    """What a process has to say next; raises ServiceEnded if it ended instead."""
    line = b"" if process.stdout is None else await process.stdout.readline()
    if not line:
        raise ServiceEnded("a process of the scenario ended by itself, and so does the scenario")
    return line


def tell(process: Process, text: str) -> None:
    """Write to its standard input."""
    if process.stdin is not None:
        process.stdin.write(text.encode())
