"""Where the time of a usual call goes: its parts, one by one, and what is left for the frames between them.

Each part is what the engine does with it in one call, on objects of the engine, in a loop of its own. A part alone,
with everything near in the caches, is somewhat quicker than in its place: the parts are an account, not a stopwatch.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable, Iterator, Sequence
from math import inf
from threading import get_ident
from time import perf_counter
from typing import Any

from benchmarks import machine, processes
from benchmarks.contenders import contender
from benchmarks.report import Section, table
from benchmarks.workloads import no_op
from fallbacks.answer import LIVE, Answer
from gateway import Gateway, LastGood, Static
from gateway.call import Call
from gateway.context import ambient_here, put_ambient, take_back

PROCESSES = 3
"""The quickest of all counts: a process may have bad luck with its memory for all its life."""
ROUNDS, CALLS = 400, 500
Figures = dict[str, float]
"""Microseconds."""

WORDS = {
    "way": "two coroutines, one in the other, and arguments handed on as `*args, **kwargs`",
    "clock": "two looks at the clock",
    "who": "whose task it is, on which thread, and whether it was told to end before",
    "key": "the key of the call: its name, and the types of its arguments",
    "call": "the record of the call, and its place among those in flight",
    "place": "a place in the pool, and back",
    "circuit": "leave from the circuit, and the verdict",
    "limit": "the limit on time: started and stopped",
    "ambient": "that limit told to what is called in turn, by a context variable",
    "latency": "the time it took, in the histogram",
    "memory": "the last good answer",
    "answer": "the `Answer`",
    "counts": "three counts: asked, tries, how it ended",
}


NOT_OF_THE_FLOOR = ("call", "ambient", "key", "latency", "answer", "counts")


async def echo(value: str) -> str:
    """What is asked."""
    return value


async def wrapped(*args: Any, **kwargs: Any) -> Any:
    """Once round it."""
    return await inside(args, kwargs)


async def inside(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Twice."""
    return await (echo(*args, **kwargs) if kwargs else echo(*args))


async def measure() -> Figures:
    """The quickest rounds of one process: of the whole, of its parts, and of what they are compared with."""
    async with Gateway() as gate:
        up = gate.upstream("films")
        operation = up.operation(name="film", idempotent=True, fallback=[LastGood(), Static("")])(echo)
        floor = await no_op(contender("floor"))
        floor.calls = CALLS
        await operation.ask("Alien")
        parts = parts_of(operation)
        calls = {"bare": echo, "way": wrapped, "ask": operation.ask, "value": operation}
        found: Figures = dict.fromkeys([*calls, "floor", "nothing", *parts], inf)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                found[name] = min(found[name], await awaited(call))
            found["floor"] = min(found["floor"], await floor.timed() * 1e6)
            for name, part in parts.items():
                found[name] = min(found[name], done(part))
            found["nothing"] = min(found["nothing"], done(nothing))
    return found


def parts_of(operation: Any) -> dict[str, Callable[[], object]]:
    """What a call does, part by part."""
    up = operation.upstream
    pool, breaker, lane, memory = up.bulkhead, up.breaker, operation._lane, operation._memory  # noqa: SLF001 - as the engine has them
    args: tuple[Any, ...] = ("Alien",)
    kwargs: dict[str, Any] = {}
    task = current_task()
    now, key, key_of, clock = up.clock(), operation._key_of(args, kwargs), operation._key_of, up.clock  # noqa: SLF001
    in_flight: set[Call] = set()
    tally, latency = operation.tally, operation.latency

    def record() -> Call:
        return Call(args, kwargs, key, task, 0, now, now, inf, inf, None, breaker, None)  # type: ignore[arg-type]

    usual = record()

    def call() -> None:
        made = record()
        in_flight.add(made)
        in_flight.remove(made)

    def place() -> None:
        pool.acquire_nowait()
        pool.release()

    def circuit() -> None:
        breaker.leave(breaker.unguarded or breaker.enter(now), now, False, breaker.slow_beyond < 0.0, None)

    def limit() -> None:
        lane.start(usual).stop()

    def ambient() -> None:
        ambient_here()
        take_back(put_ambient(None))

    def counts() -> None:
        tally.asked += 1
        tally.attempts += 1
        tally.ended[LIVE] += 1

    def who() -> None:
        found = current_task(up.loop)
        if found is not None and get_ident() == up.thread:
            found.cancelling()

    return {
        "clock": lambda: (clock(), clock()),
        "who": who,
        "key": lambda: key_of(args, kwargs),
        "call": call,
        "place": place,
        "circuit": circuit,
        "limit": limit,
        "ambient": ambient,
        "latency": lambda: latency.record(1e-5),
        "memory": lambda: memory.keep(usual, "Alien"),
        "answer": lambda: Answer("Alien"),
        "counts": counts,
    }


def nothing() -> None:
    """What it costs to call a part."""


async def awaited(call: Callable[[str], Awaitable[Any]]) -> float:
    """Microseconds for a call, of one round."""
    started = perf_counter()
    for _ in range(CALLS):
        await call("Alien")
    return (perf_counter() - started) / CALLS * 1e6


def done(part: Callable[[], object]) -> float:
    """Microseconds for a part, of one round."""
    started = perf_counter()
    for _ in range(CALLS):
        part()
    return (perf_counter() - started) / CALLS * 1e6


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """On every Python there is."""
    found = {}
    for python in pythons:
        several = [started(python) for _ in range(1 if quick else PROCESSES)]
        found[several[0][0]] = {name: min(figures[name] for _, figures in several) for name in several[0][1]}
    return Section("Where the time of a call goes", tuple(lines(found)))


def started(python: str) -> tuple[str, Figures]:
    """What a Python says of itself, and the figures of one process of it."""
    order = [python, "-m", "benchmarks.profile"]
    said: tuple[str, Figures] = json.loads(
        subprocess.run(order, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True).stdout
    )
    return said


def lines(found: dict[str, Figures]) -> Iterator[str]:
    """The table, and the sum."""
    yield (
        "Microseconds, the quickest of many rounds, for a call of a function that returns at once, with everything "
        "armed and nobody listening. Each part was measured alone, as the engine uses it; what is left are the "
        "frames of the engine's own methods, and its looks at their attributes. A bare await is left out everywhere."
    )
    pythons = tuple(found)
    rows = [(words, *(us(part(found[python], name)) for python in pythons)) for name, words in WORDS.items()]
    rest = ("what is left", *(us(of_all(found[python]) - explained(found[python])) for python in pythons))
    whole = ("**`await op.ask()`**", *(f"**{us(of_all(found[python]))}**" for python in pythons))
    value = ("`await op()`", *(us(found[python]["value"] - found[python]["bare"]) for python in pythons))
    floor = ("the hand-written floor", *(us(of_floor(found[python])) for python in pythons))
    times = ("`ask` by the floor", *(f"{of_all(found[python]) / of_floor(found[python]):.2f} x" for python in pythons))
    yield table(("part", *pythons), [*rows, rest, whole, value, floor, times], align="l" + "r" * len(pythons))
    beyond = ", ".join(
        f"{us(sum(part(found[python], name) for name in NOT_OF_THE_FLOOR))} on {python}" for python in pythons
    )
    yield (
        "The floor has one frame, written for its one function, and does nothing but guard it. It keeps no record of "
        "the call that others can look at, tells nobody below of the limit, measures and counts nothing, does not tell "
        f"1 from True in a key, and gives no `Answer`: of what a call costs here, {beyond} are such things. The rest "
        "of the difference is what it costs that the parts are objects with methods, which can be tuned while they "
        "run, looked at, and used alone."
    )


def part(figures: Figures, name: str) -> float:
    """What a part takes, without the call of it."""
    return figures[name] - figures["bare" if name == "way" else "nothing"]


def explained(figures: Figures) -> float:
    """All parts."""
    return sum(part(figures, name) for name in WORDS)


def of_all(figures: Figures) -> float:
    """What the engine adds."""
    return figures["ask"] - figures["bare"]


def of_floor(figures: Figures) -> float:
    """What the floor adds."""
    return figures["floor"] - figures["bare"]


def us(figure: float) -> str:
    """To the hundredth."""
    return f"{figure:.2f}"


if __name__ == "__main__":
    json.dump((machine.python(), asyncio.run(measure())), sys.stdout)
