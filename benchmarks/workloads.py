"""What the contenders are made to do. Each looks at the answers first: who does less than was asked is not measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from itertools import count
from math import inf
from types import coroutine
from typing import Any

from benchmarks.rounds import Runner
from benchmarks.terms import DEFAULT, VALUE, CannotDo, Contender, Function, Terms, Trouble

ROOM = Terms()
IN_FLIGHT = 3_000
IN_THREADS = 16
TOGETHER = 100
PATIENCE = 10.0
"""Seconds for what is done before measuring."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Something to do: its name, what it says, and how it is made ready for a contender."""

    name: str
    says: str
    prepare: Callable[[Contender], Coroutine[Any, Any, Runner]]
    share: float = 1.0
    """Of the usual number of rounds, where one takes long."""


@coroutine
def suspension() -> Generator[None, None, None]:
    """Let the loop go round once."""
    yield


async def answers(_: str) -> str:
    """An upstream that is there at once."""
    return VALUE


async def suspends(_: str) -> str:
    """An upstream that is waited for, for one turn of the loop."""
    await suspension()
    return VALUE


def one_after_the_other(call: Function) -> Runner:
    """Calls from one task."""

    async def batch(calls: int) -> None:
        for _ in range(calls):
            await call("Alien")

    return Runner(batch)


async def must(call: Function, wanted: object, *, key: str = "Alien") -> None:
    """Look at one answer."""
    async with asyncio.timeout(PATIENCE):
        got = await call(key)
    if got != wanted:
        raise CannotDo(f"answers {got!r}")


async def no_op(contender: Contender) -> Runner:
    """Nothing to wait for."""
    call = contender.guard(answers, ROOM)
    await must(call, VALUE)
    return one_after_the_other(getattr(call, "ask", call) if wants_answers(contender) else call)


async def one_suspension(contender: Contender) -> Runner:
    """One turn of the loop."""
    call = contender.guard(suspends, ROOM)
    await must(call, VALUE)
    return one_after_the_other(getattr(call, "ask", call) if wants_answers(contender) else call)


def wants_answers(contender: Contender) -> bool:
    """Whether it is measured with what `ask` gives."""
    return contender.name.endswith(".ask()")


async def in_flight(contender: Contender) -> Runner:
    """Thousands at once."""
    doors = [asyncio.Event()]
    waiting = 0

    async def waits(_: str) -> str:
        nonlocal waiting
        waiting += 1
        await doors[-1].wait()
        return VALUE

    call = contender.guard(waits, Terms(limit=IN_FLIGHT, timeout=30.0))

    async def batch(_: int) -> None:
        nonlocal waiting
        waiting, doors[:] = 0, [asyncio.Event()]
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(call("Alien"))
            while waiting < IN_FLIGHT:  # noqa: ASYNC110 - an event would be one more cost to all
                await asyncio.sleep(0)
            doors[-1].set()

    async with asyncio.timeout(PATIENCE):
        await batch(IN_FLIGHT)
    return Runner(batch, IN_FLIGHT, fixed=True)


async def failing(contender: Contender) -> Runner:
    """Three tries, all of which fail, and a default."""
    asked = 0

    async def fails(_: str) -> str:
        nonlocal asked
        asked += 1
        raise Trouble("out of order")

    terms = Terms(attempts=3, opens_after=inf, plan_b="default")
    call = contender.guard(fails, terms)
    await must(call, DEFAULT)
    if asked != terms.attempts:
        raise CannotDo(f"tries {asked} times for {terms.attempts}")
    return one_after_the_other(call)


async def one_failure(contender: Contender) -> Runner:
    """One try, which fails, and a default."""

    async def fails(_: str) -> str:
        raise Trouble("out of order")

    call = contender.guard(fails, Terms(attempts=1, opens_after=inf, plan_b="default"))
    await must(call, DEFAULT)
    return one_after_the_other(call)


async def rejection(contender: Contender) -> Runner:
    """An open circuit, and no plan B."""
    asked = 0

    async def fails(_: str) -> str:
        nonlocal asked
        asked += 1
        raise Trouble("out of order")

    call = contender.guard(fails, Terms(attempts=1, opens_after=5, must_open=True, plan_b=None))

    async def batch(calls: int) -> None:
        for _ in range(calls):
            try:
                await call("Alien")
            except Exception:  # noqa: BLE001, S112 - that is what is measured
                continue

    await batch(200)
    asked = 0
    await batch(20)
    if asked:
        raise CannotDo("its circuit does not open")
    return Runner(batch)


async def from_memory(contender: Contender) -> Runner:
    """An open circuit, and the last good answer."""
    well, asked = True, 0

    async def ill(_: str) -> str:
        nonlocal asked
        asked += 1
        if not well:
            raise Trouble("out of order")
        return VALUE

    call = contender.guard(ill, Terms(attempts=1, opens_after=5, must_open=True, must_remember=True))
    await must(call, VALUE)
    well = False
    for _ in range(200):
        await must(call, VALUE)
    asked = 0
    for _ in range(20):
        await must(call, VALUE)
    if asked:
        raise CannotDo("its circuit does not open")
    return one_after_the_other(call)


async def threads(contender: Contender) -> Runner:
    """A function that blocks, from so many tasks at once."""

    def plain(_: str) -> str:
        return VALUE

    call = contender.guard_plain(plain, Terms(limit=IN_THREADS))
    await must(call, VALUE)

    async def one(calls: int) -> None:
        for _ in range(calls):
            await call("Alien")

    async def batch(calls: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_THREADS):
                group.create_task(one(calls // IN_THREADS))

    return Runner(batch, 2 * IN_THREADS, fixed=True)


async def single_flight(contender: Contender) -> Runner:
    """So many callers who ask the same at once; each time something else."""
    asked = 0
    films = (f"film {number}" for number in count())

    async def waited_for(_: str) -> str:
        nonlocal asked
        asked += 1
        await suspension()
        return VALUE

    call = contender.guard(waited_for, Terms(attempts=1, limit=1_000, single_flight=True))

    async def batch(_: int) -> None:
        film = next(films)
        async with asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(call(film))

    async with asyncio.timeout(PATIENCE):
        await batch(TOGETHER)
    if asked != 1:
        raise CannotDo(f"asks {asked} times for {TOGETHER} callers")
    return Runner(batch, TOGETHER, fixed=True)


WORKLOADS = (
    Workload("no-op", "the function returns at once", no_op),
    Workload("one suspension", "the function waits for one turn of the loop", one_suspension),
    Workload("3,000 in flight", f"{IN_FLIGHT:,} tasks wait for one event, which comes", in_flight, 0.25),
    Workload("failing", "the function raises: three tries without a pause, then a default", failing),
    Workload("one failure", "the function raises: one try, then a default", one_failure),
    Workload("rejection", "the circuit is open, and there is no plan B: the error", rejection),
    Workload("open circuit", "nothing is sent: the last good answer", from_memory),
    Workload("threads", f"a plain function that returns at once, from {IN_THREADS} tasks", threads),
    Workload("single flight", f"{TOGETHER} tasks ask the same at once; per caller", single_flight),
)
