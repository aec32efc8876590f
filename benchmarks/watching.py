"""What it costs to be watched: the processor's time and the p99 of calls, with nobody, somebody and twenty looking.

One process makes real HTTP calls at a steady rate, round 200 upstreams with three operations each. In some of its
turns it has the admin server as well, in some of these others look at it: 20 viewers of the page's stream, who are a
process of their own, or a Prometheus that scrapes. Turns are in another order each time.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from random import Random
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from benchmarks import machine, processes
from benchmarks.report import Section, table
from benchmarks.rounds import Runner, Spread, interleaved, over
from benchmarks.speed import us
from benchmarks.workloads import answers
from gateway import Gateway, LastGood, admin, log
from gateway.admin.state import State

UPSTREAMS = 200
VIEWERS = 20
RATE = 400
"""Calls a second: about a third of a core, here."""
TICK = 0.01
SETTLE = 2.0
"""Seconds from the beginning of a turn until its calls are measured."""
OFF, ON, SCRAPED, WATCHED = (
    "no admin server",
    "admin server, nobody looks",
    "scraped every second",
    f"{VIEWERS} viewers",
)
WAYS = (OFF, ON, SCRAPED, WATCHED)
ALONE, LOGGED, SHOWN = "nobody listens", "gateway.log listens", "the admin server listens"


def operations_of(gate: Gateway, url: str) -> list[Any]:
    """Three of each upstream, shuffled."""
    made = []
    for number in range(UPSTREAMS):
        upstream = gate.http(f"upstream-{number}", url)
        for name in ("items", "films", "shelves"):

            async def asks(key: str) -> Any: ...

            declared = upstream.get(f"/{name}/{{key}}", name=name, into=dict, fallback=[LastGood(max_age=60.0)])
            made.append(declared(asks))
    Random(0).shuffle(made)
    return made


async def calls_for(seconds: float, operations: Iterator[Any]) -> tuple[float, list[float]]:
    """Calls at a steady rate, whoever is still waiting; the processor's time for each, and what each took."""
    took: list[float] = []

    async def call() -> None:
        began_at = perf_counter()
        await next(operations)("ada")
        took.append(perf_counter() - began_at)

    before, due = process_time(), perf_counter()
    ends_at = due + seconds
    async with asyncio.TaskGroup() as group:
        while due < ends_at:
            for _ in range(round(RATE * TICK)):
                group.create_task(call())
            due += TICK
            await asyncio.sleep(due - perf_counter())
    return (process_time() - before) / len(took), took


@asynccontextmanager
async def watched(how: str, gate: Gateway) -> AsyncIterator[None]:
    """An admin server for a turn, and whoever looks at it."""
    if how == OFF:
        yield
        return
    async with await admin.serve(gate, port=0) as server:
        if how == ON:
            yield
        else:
            async with processes.running("benchmarks.watching", "look", how, server.url):
                yield


async def look(how: str, url: str) -> None:
    """Look, until standard input ends: as browsers do, or as Prometheus."""
    gone = processes.until_stdin_ends()
    async with ClientSession(url, auto_decompress=False, timeout=ClientTimeout(total=None)) as session:

        async def view(details: str) -> None:
            order = {"params": {"details": details}, "headers": {"Accept-Encoding": "gzip"}}
            async with session.get("/live", **order) as response:
                async for _ in response.content.iter_any():
                    pass

        async def scrape() -> None:
            while True:
                async with session.get("/metrics") as response:
                    await response.read()
                await asyncio.sleep(1.0)

        # One in four has an upstream open; the others look at all of them.
        open_there = [f"upstream-{seat}" if seat % 4 == 0 else "" for seat in range(VIEWERS)]
        looks = [scrape()] if how == SCRAPED else [view(details) for details in open_there]
        looking = [asyncio.create_task(one) for one in looks]
        await gone.wait()
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def turns(
    url: str, *, rounds: int, seconds: float, ways: Sequence[str] = WAYS
) -> dict[str, dict[str, list[float]]]:
    """All ways, in turn: CPU per call and p99 of each turn, in seconds."""
    found: dict[str, dict[str, list[float]]] = {how: {"cpu": [], "p99": []} for how in ways}
    random = Random(1)
    async with Gateway() as gate:
        operations = cycle(operations_of(gate, url))
        await calls_for(UPSTREAMS * 6 / RATE, operations)  # every connection is open
        for _ in range(rounds):
            for how in random.sample(list(found), len(found)):
                async with watched(how, gate):
                    await calls_for(SETTLE, operations)
                    cpu, took = await calls_for(seconds, operations)
                found[how]["cpu"].append(cpu)
                found[how]["p99"].append(quantiles(took, n=100)[-1])
    return found


async def listeners(*, rounds: int) -> dict[str, list[float]]:
    """Seconds for a call that does nothing, by who listens to its end."""
    runners, states, gates = {}, [], []
    for name in (ALONE, LOGGED, SHOWN):
        gate = Gateway()
        gates.append(gate)
        operation = gate.upstream("films").operation(idempotent=True)(answers)

        async def batch(times: int, operation: Any = operation) -> None:
            for _ in range(times):
                await operation("ada")

        await operation("ada")
        if name == LOGGED:
            log.listen(gate)
        if name == SHOWN:
            states.append(State(gate))
            states[-1].start()
        runners[name] = Runner(batch)
    figures = await interleaved(runners, rounds=rounds)
    for state in states:
        await state.close()
    for gate in gates:
        await gate.close()
    return figures


def work(url: str, rounds: str, seconds: str) -> dict[str, Any]:
    """What the watched process measures."""
    return {
        "turns": asyncio.run(turns(url, rounds=int(rounds), seconds=float(seconds))),
        "listeners": asyncio.run(listeners(rounds=40 * int(rounds))),
    }


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """On the newest Python, with its own event loop."""
    rounds, seconds = (3, 4.0) if quick else (10, 10.0)
    found = asyncio.run(play(pythons[-1], rounds, seconds))
    return Section("Being watched", tuple(lines(found)))


async def play(python: str, rounds: int, seconds: float) -> Any:
    """The upstream, and the process that asks it and is watched."""
    port = processes.free_port()
    async with processes.running("benchmarks.upstreams", str(port), "0.005", python=python):
        url = f"http://127.0.0.1:{port}"
        order = [python, "-m", "benchmarks.watching", "work", url, str(rounds), str(seconds)]
        asked = await asyncio.create_subprocess_exec(*order, cwd=processes.ROOT, stdout=subprocess.PIPE)
        said, _ = await asked.communicate()
        return json.loads(said)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The tables."""
    yield (
        f"{machine.python()}, asyncio. {RATE} calls a second of loopback HTTP through `gate.http`, round {UPSTREAMS} "
        "upstreams with three operations each; every upstream is asked twice a second, so every one of them moves. "
        "One viewer in four has an upstream open, the others look at all of them, as the page does. "
        "*CPU per call* is the processor's time of the whole process, by its calls; the viewers and the upstream are "
        "processes of their own, on the same cores. Medians of all turns, their middle half; *more* is by the turn "
        "without an admin server of the same round."
    )
    base = found["turns"][OFF]
    rows = (
        (
            how,
            spread(figures["cpu"]),
            more(figures["cpu"], base["cpu"]) if how != OFF else "",
            spread(figures["p99"]),
            more(figures["p99"], base["p99"]) if how != OFF else "",
        )
        for how, figures in found["turns"].items()
    )
    yield table(("", "CPU per call, us", "more", "p99, us", "more"), rows, align="lrrrr")
    yield (
        "The aim is at most 5% more CPU per call and at most 10% more p99 with 20 viewers. What the watching takes of "
        f"each second: {a_second(found['turns'])}."
    )
    yield "A call of a function that returns at once, by who listens to its end; nothing else is there:"
    figures = found["listeners"]
    rest = (
        (name, spread(one), us(Spread.of(over(one, figures[ALONE])).middle) if name != ALONE else "")
        for name, one in figures.items()
    )
    yield table(("", "us per call", "more"), rest, align="lrr")
    yield "Prometheus listens to nothing: what it reads is counted anyway, and a scrape costs what it costs."


def a_second(found: dict[str, Any]) -> str:
    """Milliseconds of the processor in each second."""
    base = found[OFF]["cpu"]
    each = ((how, Spread.of(over(one["cpu"], base)).middle * RATE * 1e3) for how, one in found.items() if how != OFF)
    return ", ".join(f"{cost:.1f} ms with {how}" if how == WATCHED else f"{cost:.1f} ms ({how})" for how, cost in each)


def spread(figures: Sequence[float]) -> str:
    """In microseconds."""
    one = Spread.of(figures)
    return f"{us(one.middle)} ({us(one.low)} to {us(one.high)})"


def more(figures: Sequence[float], base: Sequence[float]) -> str:
    """By how much they exceed it, round by round, in the middle."""
    return f"{Spread.of([one / other - 1 for one, other in zip(figures, base, strict=True)]).middle:+.1%}"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        if sys.argv[1] == "look":
            asyncio.run(look(*sys.argv[2:]))
        else:
            json.dump(work(*sys.argv[2:]), sys.stdout)
