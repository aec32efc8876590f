"""A GET through the gateway, beside one of an aiohttp session as it comes: from a loopback server, sixteen at once.

The server is a process of its own, and as little as can be. All take their turns in one process, in another order each
round. The processor's time says what a GET costs; the time that passes also has what the server takes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from random import Random
from time import perf_counter, process_time
from typing import Any

import msgspec
from aiohttp import ClientSession, ClientTimeout

from benchmarks import machine, processes
from benchmarks.report import Section, table
from benchmarks.rounds import Spread, middle
from benchmarks.speed import LOOPS, factory
from gateway import BulkheadPolicy, Deadline, Gateway, LastGood, Policy, Static

AT_ONCE = 16
PATH = "/movies/603"
NEVER = 60.0
"""Seconds; a limit that is there, and that nothing reaches."""
BASE = "aiohttp: a session as it comes"
Get = Callable[[], Awaitable[Any]]


class Movie(msgspec.Struct, frozen=True):
    """What the server answers with."""

    name: str
    description: str


NO_MOVIE = Movie("", "")


def of_aiohttp(session: ClientSession, url: str) -> Iterator[tuple[str, Get]]:
    """What one would write without the gateway."""
    limits = ClientTimeout(total=NEVER, connect=NEVER, sock_read=NEVER)

    async def as_it_comes() -> bytes:
        async with session.get(url + PATH) as response:
            return await response.read()

    async def limited() -> bytes:
        async with session.get(url + PATH, timeout=limits) as response:
            return await response.read()

    async def decoded() -> Movie:
        async with session.get(url + PATH, raise_for_status=True) as response:
            return msgspec.json.decode(await response.read(), type=Movie)

    yield BASE, as_it_comes
    yield "aiohttp: with limits on connecting, silence, the whole", limited
    yield "aiohttp: and the body decoded", decoded


def of_gateway(gate: Gateway, url: str) -> Iterator[tuple[str, Get]]:
    """The same, and all that the gateway does besides."""
    up = gate.http("films", url, policy=Policy(bulkhead=BulkheadPolicy(limit=4 * AT_ONCE)))

    @up.get("/movies/{movie_id}", into=Movie)
    async def movie(movie_id: str) -> Any: ...

    @up.get("/movies/{movie_id}", into=Movie, fallback=[LastGood(), Static(NO_MOVIE)])
    async def remembered(movie_id: str) -> Any: ...

    async def get() -> Any:
        return await up.get(PATH)

    async def hurried() -> Any:
        with Deadline.after(1.0):
            return await up.get(PATH)

    async def decoded() -> Any:
        return await movie("603")

    async def kept() -> Any:
        return await remembered("603")

    yield "gateway: await up.get(path)", get
    yield "gateway: under a nearer Deadline", hurried
    yield "gateway: declared, and the body decoded", decoded
    yield "gateway: and remembered for a bad day", kept


async def measure(*, rounds: int, gets: int) -> dict[str, dict[str, list[float]]]:
    """Seconds for a GET, of the processor and by the clock, round by round."""
    async with AsyncExitStack() as stack:
        port = processes.free_port()
        await stack.enter_async_context(processes.running("benchmarks.upstreams", str(port), "0"))
        url = f"http://127.0.0.1:{port}"
        session = await stack.enter_async_context(ClientSession())
        gate = await stack.enter_async_context(Gateway())
        contenders = dict((*of_aiohttp(session, url), *of_gateway(gate, url)))
        found: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in contenders}
        for get in contenders.values():
            await turn(get, gets)  # connections are opened, code is specialized
        random = Random(0)
        for _ in range(rounds):
            order = list(contenders)
            random.shuffle(order)
            for name in order:
                gc.collect()
                cpu, wall = process_time(), perf_counter()
                await turn(contenders[name], gets)
                found[name]["cpu"].append((process_time() - cpu) / gets)
                found[name]["wall"].append((perf_counter() - wall) / gets)
        return found


async def turn(get: Get, gets: int) -> None:
    """So many, so many at once."""

    async def some() -> None:
        for _ in range(gets // AT_ONCE):
            await get()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """Measure with each of these Pythons, on each loop, and put it into words."""
    rounds, gets = (9, 800) if quick else (31, 1600)
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for python in pythons:
        for loop in LOOPS:
            order = [python, "-m", "benchmarks.http", loop, str(rounds), str(gets)]
            done = subprocess.run(order, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True)
            result = json.loads(done.stdout)
            found[result["python"], loop] = result["figures"]
    return Section("A GET", tuple(lines(found)))


def lines(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[str]:
    """A table for each Python and loop."""
    yield (
        f"A film of some 180 bytes from a loopback server, {AT_ONCE} at once, over connections that are kept. *CPU* is "
        "the processor's time of the process that asks, *clock* the time that passes, both in microseconds for a GET: "
        "the median, and the middle half of all rounds. Ratios are to the session as it comes, round by round. The "
        "gateway's have a pool, a circuit, limits on connecting, silence, the try and the call, counters, and headers "
        "that tell how much time is left. Why they can cost less than a session: [what a page costs](http-cost.md)."
    )
    for (python, loop), figures in reversed(found.items()):
        yield f"**{loop}, {python}**"
        yield table(("a GET", "CPU", "ratio", "clock", "ratio"), rows(figures), align="lrrrr")


def rows(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[tuple[str, ...]]:
    """A row for each contender."""
    base = figures[BASE]
    for name, one in figures.items():
        row = [name]
        for kind in ("cpu", "wall"):
            spread = Spread.of([seconds * 1e6 for seconds in one[kind]])
            ratio = middle([mine / other for mine, other in zip(one[kind], base[kind], strict=True)])
            row += [f"{spread.middle:.1f} ({spread.low:.1f} to {spread.high:.1f})", f"{ratio:.2f}"]
        yield tuple(row)


def main(loop: str, rounds: str, gets: str) -> None:
    """What a process of its own does."""
    with asyncio.Runner(loop_factory=factory(loop)) as runner:
        figures = runner.run(measure(rounds=int(rounds), gets=int(gets)))
    json.dump({"python": machine.python(), "figures": figures}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
