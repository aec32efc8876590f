"""What a call costs when there is more of everything: upstreams, calls in flight, remembered keys. No curve may bend.

Where a machine has small caches and slow memory, more of anything costs more; so beside each figure stands the same
for the least that a program could do: a call of one of so many functions, a dict with so many keys; and for upstreams
the hand-written floor, one for each, which has the same things to look at as we have, only fewer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import cycle
from math import inf
from random import Random
from typing import Any

from benchmarks import machine, processes
from benchmarks.floor import Floor
from benchmarks.report import Section, table
from benchmarks.rounds import Runner, Spread, interleaved
from benchmarks.speed import us
from benchmarks.terms import VALUE, Terms
from benchmarks.workloads import answers
from gateway import BulkheadPolicy, Gateway, LastGood, Policy, TimeoutPolicy

UPSTREAMS = (1, 100, 1_000, 10_000)
IN_FLIGHT = (1, 10, 100, 1_000, 10_000)
KEYS = (1, 1_000, 100_000, 1_000_000)
PICKED = 4_096
IDLE = 1_000
OPEN = Policy(timeout=TimeoutPolicy(call=60.0, attempt=30.0), bulkhead=BulkheadPolicy(limit=inf))
ROUND_FOR = 0.01
LEAST, FLOOR, OURS = "least", "floor", "gateway"

Figures = dict[str, list[float]]


async def with_upstreams(many: int, *, rounds: int) -> Figures:
    """Calls go round all of them."""
    gate = Gateway()
    functions = [answering() for _ in range(many)]
    operations = [gate.upstream(f"u{number}").operation(idempotent=True)(one) for number, one in enumerate(functions)]
    order = list(range(many))
    Random(0).shuffle(order)
    floors = [Floor().guard(one, Terms()) for one in functions]
    contenders = {LEAST: functions, FLOOR: floors, OURS: operations}
    figures = await side_by_side(
        {who: [calls[n] for n in order] for who, calls in contenders.items()}, ["a"], rounds=rounds
    )
    await gate.close()
    return figures


def answering() -> Callable[[str], Awaitable[str]]:
    """A function of its own."""

    async def answer(_: str) -> str:
        return VALUE

    return answer


async def with_keys(many: int, *, rounds: int) -> Figures:
    """So many are remembered; calls renew some of them, picked at random."""
    gate = Gateway()
    memory = LastGood(max_entries=many, max_bytes=inf)
    operation = gate.upstream("films").operation(idempotent=True, fallback=[memory])(answers)
    kept: OrderedDict[tuple[str], Any] = OrderedDict()

    async def least(key: str) -> str:
        value = await answers(key)
        kept[key,] = (value, 0.0)
        kept.move_to_end((key,))
        return value

    keys = [f"film {number}" for number in range(many)]
    for key in keys:
        kept[key,] = (VALUE, 0.0)
        await operation(key)
    assert len(memory) == many  # noqa: S101 - or it is not what is measured
    random = Random(0)
    picked = [random.choice(keys) for _ in range(min(many, PICKED))]
    figures = await side_by_side({LEAST: [least], OURS: [operation]}, picked, rounds=rounds)
    await gate.close()
    return figures


async def side_by_side(
    contenders: Mapping[str, Sequence[Callable[[str], Awaitable[Any]]]], keys: Sequence[str], *, rounds: int
) -> Figures:
    """Rounds of all in turn."""

    def runner(calls: Sequence[Callable[[str], Awaitable[Any]]]) -> Runner:
        following, names = cycle(calls), cycle(keys)

        async def batch(times: int) -> None:
            for _ in range(times):
                await next(following)(next(names))

        return Runner(batch)

    runners = {who: runner(calls) for who, calls in contenders.items()}
    return await interleaved(runners, rounds=rounds, round_for=ROUND_FOR)


async def with_in_flight(many: int, *, rounds: int) -> Figures:
    """So many wait at once for one event; per call."""
    gate = Gateway()
    door = asyncio.Event()
    waiting = 0

    async def waits(_: str) -> str:
        nonlocal waiting
        waiting += 1
        await door.wait()
        return VALUE

    operation = gate.upstream("films", policy=OPEN).operation(idempotent=True)(waits)

    def runner(call: Callable[[str], Awaitable[Any]]) -> Runner:
        async def batch(_: int) -> None:
            nonlocal waiting, door
            for _ in range(max(1, 1_000 // many)):
                waiting, door = 0, asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    for _ in range(many):
                        group.create_task(once(call))
                    while waiting < many:  # noqa: ASYNC110 - an event would cost more than what is measured
                        await asyncio.sleep(0)
                    door.set()

        return Runner(batch, many * max(1, 1_000 // many), fixed=True)

    figures = await interleaved({LEAST: runner(waits), OURS: runner(operation)}, rounds=rounds)
    await gate.close()
    return figures


async def once(call: Callable[[str], Awaitable[Any]]) -> None:
    """One call in a task."""
    await call("a")


async def memory_of_idle() -> dict[str, float]:
    """Bytes for an upstream with one operation, that nobody has called, and that has been called once."""
    gate = Gateway()
    await gate.upstream("first").operation(idempotent=True)(answers)("a")
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    operations = [gate.upstream(f"u{number}").operation(idempotent=True)(answers) for number in range(IDLE)]
    gc.collect()
    registered = tracemalloc.get_traced_memory()[0]
    for operation in operations:
        await operation("a")
    gc.collect()
    called = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    await gate.close()
    return {"registered": (registered - before) / IDLE, "called": (called - before) / IDLE}


PARTS = {
    "upstreams": (with_upstreams, UPSTREAMS),
    "in flight": (with_in_flight, IN_FLIGHT),
    "keys": (with_keys, KEYS),
}


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """Each point of each curve in a process of its own, on the newest Python."""
    found: dict[str, dict[int, Figures]] = {}
    for part, (_, sizes) in PARTS.items():
        found[part] = {many: started(pythons[-1], part, many, 5 if quick else 31) for many in sizes}
    return Section("Growth", tuple(lines(found, started(pythons[-1], "idle", 0, 0))))


def started(python: str, part: str, many: int, rounds: int) -> Any:
    """The figures of one point."""
    order = [python, "-m", "benchmarks.growth", part, str(many), str(rounds)]
    return json.loads(subprocess.run(order, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True).stdout)


def lines(found: dict[str, dict[int, Figures]], idle: dict[str, float]) -> Iterator[str]:
    """The tables."""
    yield (
        f"Microseconds per call, median and middle half; {machine.python()}, asyncio. *The least*: the same without "
        "the engine; what that grows by is the machine's memory. *The engine's part* is the difference, and *grows by* "
        "compares it with the first row; so with the hand-written floor's."
    )
    words = {
        "upstreams": ("upstreams registered, called in turn", "the bare functions, called in turn"),
        "in flight": ("calls in flight", "the bare function, in tasks"),
        "keys": ("keys remembered, some renewed at random", "an OrderedDict, renewed likewise"),
    }
    for part, points in found.items():
        head, least = words[part]
        first = next(iter(points.values()))
        names = [head, "gateway", f"the least: {least}", "the engine's part", "grows by"]
        rows = [
            [f"{many:,}", spread(figures[OURS]), spread(figures[LEAST]), *growth(figures, first, OURS)]
            for many, figures in points.items()
        ]
        if FLOOR in first:
            names += ["the floor's part, one for each", "grows by"]
            for row, figures in zip(rows, points.values(), strict=True):
                row.extend(growth(figures, first, FLOOR))
        yield table(names, rows, align="r" * len(names))
    yield (
        f"An upstream with one operation takes {idle['registered'] / 1024:.1f} KiB of memory once registered, and "
        f"{idle['called'] / 1024:.1f} KiB once it has been called (`tracemalloc`, {IDLE:,} of them). So "
        f"{UPSTREAMS[-1]:,} of them are {idle['called'] * UPSTREAMS[-1] / 1024**2:,.0f} MiB. Called in turn, each is "
        "cold when its turn comes: what its call then waits for is memory, a line of the cache for every object that "
        f"it looks at ({machine.caches()}). No call looks at more than the one upstream that it asks."
    )


def growth(figures: Figures, first: Figures, who: str) -> list[str]:
    """What one adds, and by how much that is more than at first."""
    return [us(added(figures, who)), f"{added(figures, who) / added(first, who):.2f}"]


def added(figures: Figures, who: str) -> float:
    """What one adds to the least, in the middle."""
    return Spread.of([whole - least for whole, least in zip(figures[who], figures[LEAST], strict=True)]).middle


def spread(figures: Sequence[float]) -> str:
    """In microseconds."""
    one = Spread.of(figures)
    return f"{us(one.middle)} ({us(one.low)} to {us(one.high)})"


def work(part: str, many: str, rounds: str) -> Any:
    """One point."""
    if part == "idle":
        return asyncio.run(memory_of_idle())
    return asyncio.run(PARTS[part][0](int(many), rounds=int(rounds)))


if __name__ == "__main__":
    json.dump(work(*sys.argv[1:]), sys.stdout)
