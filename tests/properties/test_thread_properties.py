"""Random schedules of plain functions in real threads: promise 1 holds for what really runs."""

from __future__ import annotations

import asyncio
import time
from asyncio import CancelledError, create_task, sleep
from collections import Counter
from math import inf
from random import Random
from threading import Lock

import pytest

from gateway import Bulkhead, BulkheadPolicy
from gateway.threads import ThreadPool
from tests.support import Boom

SEEDS = range(8)
CALLS = 150
LIMITS = (1, 2, 3, 5, 8)


class Work:
    """What really runs, as the threads themselves see it."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.ran: Counter[int] = Counter()
        self.running = self.most = 0
        self.broken: list[str] = []
        self._lock = Lock()

    def __call__(self, number: int, seconds: float, *, fails: bool) -> int:
        # While the lock is held, nothing that runs can end, so no place of what runs can be given back.
        with self._lock:
            self.running += 1
            self.ran[number] += 1
            self.most = max(self.most, self.running)
            if self.running > self.bulkhead.in_use:
                self.broken.append(f"{self.running} run in {self.bulkhead.in_use} places")
        time.sleep(seconds)
        with self._lock:
            self.running -= 1
        if fails:
            raise Boom(number)
        return number


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", SEEDS)
async def test_never_more_run_than_have_a_place_whoever_leaves_and_whatever_the_size(seed: int) -> None:
    random = Random(seed)
    bulkhead = Bulkhead(BulkheadPolicy(limit=3, queue=inf, max_wait=inf))
    pool = ThreadPool("u", bulkhead, asyncio.get_running_loop())
    work = Work(bulkhead)
    largest = 3

    async def call(number: int, seconds: float, *, fails: bool) -> int:
        await bulkhead.acquire()
        try:
            value = await pool.run(work, (number, seconds), {"fails": fails})
            assert isinstance(value, int)
            return value
        finally:
            bulkhead.release()

    calls = []
    for number in range(CALLS):
        calls.append(create_task(call(number, random.random() * 0.004, fails=random.random() < 0.1)))
        leaving = random.choice([*(task for task in calls[-30:] if not task.done()), calls[-1]])
        if random.random() < 0.3:
            leaving.cancel()
        if random.random() < 0.1:
            limit = random.choice(LIMITS)
            largest = max(largest, limit)
            bulkhead.policy = BulkheadPolicy(limit=limit, queue=inf, max_wait=inf)
        if random.random() < 0.5:
            await sleep(random.random() * 0.002)
    ends = await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(10.0):
        while bulkhead.in_use:
            await sleep(0.001)

    assert work.broken == []
    assert work.most <= largest
    assert (bulkhead.in_use, bulkhead.abandoned, bulkhead.waiting, work.running) == (0, 0, 0, 0)
    assert set(work.ran.values()) == {1}
    for number, end in enumerate(ends):
        assert end == number or (isinstance(end, Boom) and end.args == (number,)) or isinstance(end, CancelledError)
        assert work.ran[number] == 1 or isinstance(end, CancelledError)
    assert sum(isinstance(end, CancelledError) for end in ends) >= 5
    pool.dismiss()
    assert pool.join(5.0) == ()


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", SEEDS)
async def test_shrinking_under_way_interrupts_nobody_and_loses_no_place(seed: int) -> None:
    random = Random(seed)
    bulkhead = Bulkhead(BulkheadPolicy(limit=8, queue=inf, max_wait=inf))
    pool = ThreadPool("u", bulkhead, asyncio.get_running_loop())
    work = Work(bulkhead)

    async def call(number: int) -> int:
        async with bulkhead:
            value = await pool.run(work, (number, random.random() * 0.003), {"fails": False})
        assert isinstance(value, int)
        return value

    calls = [create_task(call(number)) for number in range(CALLS)]
    while not all(task.done() for task in calls):
        bulkhead.policy = BulkheadPolicy(limit=random.choice(LIMITS), queue=inf, max_wait=inf)
        await sleep(random.random() * 0.004)

    assert [task.result() for task in calls] == list(range(CALLS))
    assert work.broken == []
    assert work.most <= 8
    assert (bulkhead.in_use, bulkhead.abandoned, bulkhead.waiting) == (0, 0, 0)
    bulkhead.policy = BulkheadPolicy(limit=1, queue=inf, max_wait=inf)
    await call(0)
    pool.dismiss()
    assert pool.join(5.0) == ()
