"""A storm of blocks and operations on one upstream, with cancels, limits, an operator and generators nobody finishes.

Promises 1, 2, 3 and 10 of the design hold for blocks too, and a block leaves nothing ambient. Virtual time; a storm is
known by its seed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from random import Random
from typing import Any

import pytest
from tenacity import wait_none

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    CallFinished,
    Deadline,
    Failed,
    Gateway,
    NotSent,
    Outcome,
    Policy,
    Refused,
    Rejected,
    RetryPolicy,
    Source,
    TimeoutPolicy,
)
from gateway.context import AMBIENT
from gateway.testing import VirtualTimeLoop
from tests.support import Boom, assert_all_gone

SEEDS = 60
CHUNKS = 6
CALLERS = 60
CALL = 0.5


class Storm:
    """One storm. `resisting`: some blocks swallow their cancel."""

    def __init__(self, seed: int, *, resisting: bool) -> None:
        self.random = Random(seed)
        self.resisting = resisting
        self.gate = Gateway()
        self.up = self.gate.upstream("world", policy=self.policy())
        self.finished: list[CallFinished] = []
        self.gate.on(CallFinished)(self.finished.append)
        self.running = 0
        self.allowed: float = self.up.policy.bulkhead.limit
        self.latest = self.waited = 0.0
        self.cancelled: set[asyncio.Task[Any]] = set()
        self.ends: Counter[str] = Counter()
        self.up.operation(name="ask", idempotent=True)(self.work)

    def policy(self) -> Policy:
        pick = self.random.choice
        return Policy(
            timeout=TimeoutPolicy(call=CALL, attempt=pick([0.1, 0.2, 0.5])),
            retry=RetryPolicy(attempts=pick([1, 3]), wait=wait_none(), min_try=0.01),
            bulkhead=BulkheadPolicy(limit=pick([1, 2, 4, 8]), queue=pick([0, 3, 20]), max_wait=pick([0.02, 0.1, 0.5])),
            breaker=BreakerPolicy(
                min_calls=pick([2, 8, 1000]),
                open_for=pick([0.05, 0.3]),
                probes=pick([1, 3]),
                max_half_open=pick([0.2, 1.0]),
            ),
        )

    def check(self) -> None:
        pool = self.up.bulkhead.snapshot()
        self.allowed = max(pool.limit, min(self.allowed, pool.in_use))
        assert pool.in_use <= self.allowed, f"{pool.in_use} of {pool.limit} places in use"
        assert self.running <= pool.in_use, f"{self.running} run in {pool.in_use} places"
        assert not (pool.waiting and pool.in_use < pool.limit), f"{pool.waiting} wait while a place is free"
        for operation in self.up:
            counts = operation.snapshot().counts
            assert counts.adds_up, operation
            assert operation.name == "ask" or counts.retries == 0

    async def work(self) -> None:
        """What is done in a place; ends in any way."""
        self.running += 1
        try:
            self.check()
            await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.05, 0.15, 5]))
            end = self.random.random()
            if end < 0.4:
                raise Boom if end < 0.2 else Refused if end < 0.3 else NotSent
        except asyncio.CancelledError:
            if self.resisting and self.random.random() < 0.3:
                await asyncio.sleep(0.03)
                if self.random.random() < 0.5:
                    return
                raise Boom from None
            raise
        finally:
            self.running -= 1

    async def block(self) -> None:
        async with self.up.slot() as slot:
            assert Deadline.current().at == slot.deadline.at
            self.waited += slot.waited
            await self.work()

    async def quick(self) -> None:
        async with self.up.slot("quick", timeout=TimeoutPolicy(attempt=0.02)):
            await self.work()

    async def nested(self) -> None:
        async with self.up.slot("outer") as outer:
            await self.work()
            async with self.up.slot("inner") as inner:
                assert inner.deadline.at <= outer.deadline.at
                await self.work()
            await self.up["ask"]()

    async def stacked(self) -> None:
        async with AsyncExitStack() as stack:
            for name in ("first", "second"):
                await stack.enter_async_context(self.up.slot(name))
            async with asyncio.timeout(self.random.choice([0.01, 9])):
                await self.work()

    async def grouped(self) -> None:
        async with self.up.slot("group"), asyncio.TaskGroup() as group:
            group.create_task(self.up["ask"]())
            await asyncio.sleep(0.02)

    async def rows(self) -> AsyncIterator[int]:
        async with self.up.slot("rows"):
            for row in range(3):
                await asyncio.sleep(0.01)
                yield row

    async def reading(self) -> None:
        end = self.random.randrange(5)
        async for row in self.rows():
            if row == end:
                break  # the loop closes the rest, in a task of its own

    async def caller(self, patience: float | None) -> None:
        began = asyncio.get_running_loop().time()
        what = self.random.choice(
            [self.block, self.block, self.quick, self.nested, self.stacked, self.grouped, self.reading, self.up["ask"]]
        )
        try:
            with nullcontext() if patience is None else Deadline.after(patience):
                await what()
            end: Any = None
        except (Boom, Refused, NotSent, Rejected, Failed, TimeoutError, ExceptionGroup) as error:
            end = error
        finally:
            ambient = AMBIENT.get()
            late = asyncio.get_running_loop().time() - began - (CALL if patience is None else patience)
            if what not in {self.reading, self.grouped, self.nested}:  # two calls, one after the other
                self.latest = max(self.latest, late)
        assert ambient is None or what == self.reading  # whose slot was left elsewhere, and limits nobody
        if isinstance(end, Failed):  # of a block: only where its limit ended it
            cut = end.waited_for is not None and isinstance(end.__cause__, asyncio.CancelledError)
            assert cut or end.operation == "ask", end
        self.ends[type(end).__name__] += 1
        if what == self.reading:
            await asyncio.sleep(1.0)
            assert Deadline.current() is None

    async def blow(self) -> None:
        random, loop = self.random, asyncio.get_running_loop()
        tasks, cancels = [], []
        for _ in range(CALLERS):
            task = loop.create_task(self.caller(random.choice([None, None, 0.005, 0.2])))
            tasks.append(task)
            if random.random() < 0.3:
                cancels.append(loop.call_later(random.choice([0, 0, 0.001, 0.1, 0.2, 0.3]), self.cancel, task))
            if random.random() < 0.1:
                self.up.policy = self.policy()
                self.allowed = max(self.up.policy.bulkhead.limit, self.up.bulkhead.in_use)
            if random.random() < 0.02:
                self.up.isolate()
            if random.random() < 0.1:
                self.up.restore()
            if random.random() < 0.5:
                await asyncio.sleep(random.choice([0, 0, 0.001, 0.02, 0.1]))
            self.check()
        for task, end in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(end, Exception):
                raise end
            assert end is None or task in self.cancelled, "it ended cancelled, and nobody had cancelled it"
        for cancel in cancels:
            cancel.cancel()
        await asyncio.sleep(0)

    def cancel(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self.cancelled.add(task)

    async def run(self) -> None:
        async with self.gate:
            await self.blow()
            self.check()
            assert self.running == 0
            assert_all_gone(self.gate)
            assert self.resisting or self.latest <= 1e-6, f"{self.latest} s late"
            self.check_events()

    def check_events(self) -> None:
        total = self.up.snapshot().counts
        told = Counter(str(event.source or event.outcome) for event in self.finished)
        assert len(self.finished) == total.asked
        for end in (Source.LIVE, Outcome.REFUSED, Outcome.FAILED, Outcome.REJECTED, Outcome.CANCELLED):
            assert told[str(end)] == getattr(total, end), end
        assert sum(event.attempts for event in self.finished) == total.attempts
        waited = sum(event.waited for event in self.finished if event.operation == "slot" and event.attempts)
        assert self.waited == pytest.approx(waited)
        for operation in self.up:
            mine = [event for event in self.finished if event.operation == operation.name]
            assert len(mine) == operation.snapshot().counts.asked
            assert operation.name == "ask" or all(event.attempts <= 1 for event in mine)


@pytest.mark.parametrize("resisting", [False, True], ids=["obedient", "resisting"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nothing_is_left_of_blocks_and_their_numbers_add_up(chunk: int, resisting: bool) -> None:
    ends: Counter[str] = Counter()
    for seed in range(chunk, SEEDS, CHUNKS):
        storm = Storm(seed, resisting=resisting)
        try:
            with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                runner.run(storm.run())
                assert not asyncio.all_tasks(runner.get_loop())
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        ends += storm.ends

    assert {"NoneType", "Boom", "NotSent", "Refused", "FailedTimeout", "BulkheadFull", "CircuitOpen"} <= set(ends)
