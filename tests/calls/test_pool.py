"""The pool in the engine: who gets a place, who waits, and that every way out gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from gateway import (
    BreakerPolicy,
    BulkheadFull,
    BulkheadPolicy,
    CallFinished,
    CircuitOpen,
    Deadline,
    DeadlineExceeded,
    Gateway,
    Policy,
    Refused,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    Upstream,
)
from tests.support import ONE_TRY, QUIET, Boom, counted, ended, fail_until_open, gone, now, steps


def pool(limit: float, queue: float = 0, max_wait: float = 1.0, **others: Any) -> Policy:
    return replace(QUIET, bulkhead=BulkheadPolicy(limit=limit, queue=queue, max_wait=max_wait), **others)


class World:
    """An upstream whose calls end when the test says so."""

    def __init__(self, up: Upstream) -> None:
        self.up = up
        self.running = self.most = 0
        self.open = asyncio.Event()
        self.began: list[object] = []
        self.ask = up.operation(name="ask", idempotent=True)(self.answer)
        self.tasks: list[asyncio.Task[Any]] = []

    async def answer(self, name: object = None) -> object:
        self.began.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        return name

    async def callers(self, *names: object) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.ensure_future(ended(self.ask(name))) for name in names]
        self.tasks += tasks
        await steps(2)
        return tasks


@pytest_asyncio.fixture
async def world(gate: Gateway) -> AsyncIterator[World]:
    world = World(gate.upstream("world", policy=pool(2, 3)))
    yield world
    world.open.set()
    await gone(*world.tasks)


@pytest.mark.virtual_time
async def test_no_more_than_the_limit_run_at_once(world: World) -> None:  # peers, row 15
    world.up.policy = pool(5, 1000, 10.0)

    await world.callers(*range(100))
    most_at_first = world.most
    world.open.set()
    await asyncio.gather(*world.tasks)

    assert most_at_first == world.most == 5
    assert world.up.snapshot().bulkhead.peak == 5
    assert counted(world.up) == {"asked": 100, "live": 100, "attempts": 100}


@pytest.mark.virtual_time
async def test_who_waits_is_served_in_turn(world: World) -> None:
    await world.callers(*"abcde")

    world.open.set()
    await asyncio.gather(*world.tasks)

    assert "".join(world.began) == "abcde"


@pytest.mark.virtual_time
async def test_a_newcomer_does_not_overtake_who_waits(world: World) -> None:
    world.up.policy = pool(1, 3)
    first, second = await world.callers("first", "second")
    first.cancel()

    (third,) = await world.callers("third")
    world.open.set()
    await asyncio.gather(second, third)

    assert world.began == ["first", "second", "third"]


@pytest.mark.virtual_time
async def test_the_queue_has_an_end_and_so_has_the_wait(world: World) -> None:
    began = now()

    tasks = await world.callers(*range(7))
    full = [task.result() for task in tasks if task.done()]
    late = [await task for task in tasks[2:5]]

    assert [error.reason for error in full] == ["queue_full"] * 2
    assert [error.reason for error in late] == ["max_wait"] * 3
    assert now() - began == pytest.approx(1.0)
    snapshot = world.up.snapshot().bulkhead
    assert (snapshot.in_use, snapshot.waiting, snapshot.rejected) == (2, 0, 5)


@pytest.mark.virtual_time
async def test_without_a_queue_the_call_over_the_limit_fails_at_once(world: World) -> None:
    world.up.policy = pool(2, 0)
    began = now()

    tasks = await world.callers(*range(5))

    assert [task.done() for task in tasks] == [False, False, True, True, True]
    assert {type(task.result()) for task in tasks[2:]} == {BulkheadFull}
    assert now() == began


@pytest.mark.virtual_time
async def test_who_left_the_queue_in_this_tick_is_in_nobodys_way(world: World) -> None:  # hole 13
    world.up.policy = pool(1, 1)
    _, waiting = await world.callers("runs", "waits")

    waiting.cancel()
    (newcomer,) = await world.callers("newcomer")

    assert not newcomer.done()
    assert world.up.snapshot().bulkhead.waiting == 1


@pytest.mark.virtual_time
async def test_a_place_given_to_one_who_leaves_in_the_same_tick_goes_to_the_next(world: World) -> None:
    world.up.policy = pool(1, 5)
    holder, leaving, next_one = await world.callers("holder", "leaving", "next")

    holder.cancel()
    await steps(1)  # the holder's place is on its way to `leaving`
    leaving.cancel()
    await steps(3)

    assert world.began == ["holder", "next"]
    assert not next_one.done()


@pytest.mark.virtual_time
async def test_the_wait_is_counted_and_told(world: World, gate: Gateway) -> None:
    told: list[CallFinished] = []
    gate.on(CallFinished)(told.append)
    world.up.policy = pool(1, 3)
    await world.callers("runs", "waits")

    await asyncio.sleep(0.4)
    world.open.set()
    await asyncio.gather(*world.tasks)

    waits = world.up.snapshot().waits
    assert waits.count == 1
    assert waits.max == pytest.approx(0.4)
    assert [event.waited for event in told] == [0.0, pytest.approx(0.4)]


@pytest.mark.virtual_time
async def test_the_time_in_the_queue_is_no_service_time(world: World) -> None:
    world.up.policy = pool(1, 3)
    await world.callers("runs", "waits")

    await asyncio.sleep(0.4)
    world.open.set()
    await asyncio.gather(*world.tasks)

    assert world.up.snapshot().latency.count == 2
    assert world.up.snapshot().latency.mean == pytest.approx(0.2)


WAYS_OUT = {
    "a value": lambda: None,
    "an error": Boom,
    "a refusal": Refused,
    "a cancel of its own": asyncio.CancelledError,
    "an exit": SystemExit,
    "an interrupt": KeyboardInterrupt,
}


@pytest.mark.virtual_time
@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
async def test_every_way_out_gives_the_place_back(gate: Gateway, way) -> None:  # peers, row 1
    up = gate.upstream("world", policy=pool(1))
    seen = []

    @up.operation(idempotent=True)
    async def ask() -> None:
        seen.append(up.snapshot().bulkhead.in_use)
        if (error := way()) is not None:
            raise error

    for _ in range(5):
        with suppress(Exception, SystemExit, KeyboardInterrupt):
            await ask()

    assert seen == [1] * 5
    assert up.snapshot().bulkhead.in_use == 0


@pytest.mark.virtual_time
async def test_a_rejection_by_the_circuit_takes_no_place(gate: Gateway) -> None:
    up = gate.upstream("world", policy=pool(1))
    operation = up.operation(name="ask", idempotent=True)(lambda: None)
    up.isolate()

    for _ in range(5):
        assert type(await ended(operation())) is CircuitOpen

    pool_then = up.snapshot().bulkhead
    assert (pool_then.in_use, pool_then.peak) == (0, 0)


@pytest.mark.virtual_time
async def test_a_rejection_after_the_queue_gives_the_place_back(world: World) -> None:
    breaker = BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, probes=1, max_half_open=60.0)
    world.up.policy = pool(1, 10, 60.0, breaker=breaker)
    await world.callers("of before")
    await fail_until_open(world.up)
    await asyncio.sleep(1.1)
    _, second = await world.callers("the probe", "waited for nothing")

    world.up.policy = pool(3, 10, 60.0, breaker=breaker)
    await steps(3)

    assert type(second.result()) is CircuitOpen
    assert world.began == ["of before", "the probe"]
    assert world.up.snapshot().bulkhead.in_use == 2


# -- together with the circuit


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["failures", "an operator"])
async def test_when_the_circuit_opens_who_waits_is_rejected_at_once(world: World, how: str) -> None:
    world.up.policy = pool(2, 10, breaker=BreakerPolicy(min_calls=1, open_for=5.0))
    tasks = await world.callers(*range(6))
    began = now()

    if how == "failures":
        await fail_until_open(world.up)
    else:
        world.up.isolate()
    await steps(3)

    errors = [task.result() for task in tasks if task.done()]
    assert [type(error) for error in errors] == [CircuitOpen] * 4
    assert len({id(error) for error in errors}) == 4
    assert [error.retry_after for error in errors] == ([5.0] * 4 if how == "failures" else [None] * 4)
    assert now() == began
    assert world.up.snapshot().bulkhead.waiting == 0
    assert world.running == 2


@pytest.mark.virtual_time
async def test_a_circuit_that_enforces_nothing_rejects_nobody_who_waits(world: World) -> None:
    world.up.policy = pool(2, 10, 5.0, breaker=BreakerPolicy(min_calls=1, enforce=False))
    tasks = await world.callers(*range(6))

    await fail_until_open(world.up)
    await steps(3)
    world.open.set()

    assert await asyncio.gather(*tasks) == list(range(6))


@pytest.mark.virtual_time
async def test_an_open_circuit_rejects_before_anyone_queues(world: World) -> None:
    world.up.policy = pool(2, 10, breaker=BreakerPolicy(min_calls=1))
    await world.callers("a", "b")
    await fail_until_open(world.up)

    (late,) = await world.callers("c")

    assert type(late.result()) is CircuitOpen
    assert world.up.snapshot().waits.count == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("full", [False, True])
async def test_who_comes_too_late_is_told_so_though_the_circuit_is_open(world: World, full: bool) -> None:
    world.up.policy = pool(1, 10)
    await world.callers(*("a",) * full)
    world.up.isolate()

    with Deadline.after(-1.0):
        (late,) = await world.callers("b")

    assert type(late.result()) is DeadlineExceeded
    assert world.up.snapshot().breaker.rejected == 0


@pytest.mark.virtual_time
async def test_no_probe_is_spent_on_a_caller_who_still_waits(world: World) -> None:
    breaker = BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, probes=2, max_half_open=60.0)
    world.up.policy = pool(1, 10, 60.0, breaker=breaker)
    await fail_until_open(world.up)
    await asyncio.sleep(1.1)

    await world.callers("probe", "waits", "waits too", "and too")
    state = world.up.breaker.state
    probes_left = state.probes_left

    assert world.began == ["probe"]
    assert probes_left == 1


@pytest.mark.virtual_time
async def test_a_waiter_who_leaves_in_half_open_takes_no_probe_along(world: World) -> None:
    breaker = BreakerPolicy(min_calls=2, window_calls=2, open_for=1.0, probes=2, max_half_open=60.0)
    world.up.policy = pool(1, 10, 60.0, breaker=breaker)
    await fail_until_open(world.up)
    await asyncio.sleep(1.1)
    _, leaves, _ = await world.callers("probe", "leaves", "stays")

    leaves.cancel()
    world.open.set()
    await asyncio.gather(*world.tasks, return_exceptions=True)

    assert world.began == ["probe", "stays"]
    assert world.up.snapshot().breaker.state == "closed"


@pytest.mark.virtual_time
async def test_a_cancelled_probe_gives_its_leave_back(world: World) -> None:  # peers, row 4
    breaker = BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, probes=1, max_half_open=60.0)
    world.up.policy = pool(9, breaker=breaker)
    await fail_until_open(world.up)
    await asyncio.sleep(1.1)
    (probe,) = await world.callers("probe")

    await gone(probe)
    state = world.up.snapshot().breaker.state
    (second,) = await world.callers("second probe")
    world.open.set()

    assert state == "half_open"
    assert await second == "second probe"
    assert world.up.snapshot().breaker.state == "closed"


@pytest.mark.virtual_time
async def test_half_open_admits_its_probes_and_no_more_of_a_thousand(world: World) -> None:  # peers, row 3
    world.up.policy = pool(1000, 0, breaker=BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, probes=3))
    await fail_until_open(world.up)
    await asyncio.sleep(1.1)

    tasks = await world.callers(*range(1000))

    assert world.running == 3
    assert sum(task.done() and type(task.result()) is CircuitOpen for task in tasks) == 997


@pytest.mark.virtual_time
async def test_who_is_rejected_is_answered_by_the_tiers(world: World) -> None:
    world.ask.fallback(Static("s"))
    world.up.policy = pool(1, 0)

    _, rejected = await world.callers("runs", "is rejected")

    assert rejected.result() == "s"
    assert counted(world.up) == {"asked": 2, "static": 1, "in_flight": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_nested_calls_of_one_upstream_that_need_the_same_place_end_by_the_limit_on_waiting(gate: Gateway) -> None:
    up = gate.upstream("world", policy=pool(1, 5, 0.5))

    @up.operation(idempotent=True)
    async def inside() -> str:
        return "in"

    @up.operation(idempotent=True)
    async def outside() -> str:
        return await inside()

    error = await ended(outside())

    assert error.__cause__.reason == "max_wait"
    assert counted(up) == {"asked": 2, "failed": 1, "rejected": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_the_upstreams_are_apart(gate: Gateway) -> None:
    sick = World(gate.upstream("sick", policy=pool(2, 2)))
    well = gate.upstream("well", policy=pool(2, 2))

    @well.operation(idempotent=True)
    async def quick() -> str:
        await asyncio.sleep(0.01)
        return "well"

    await sick.callers(*range(50))
    began = now()
    answers = await asyncio.gather(*(quick() for _ in range(4)))
    took = now() - began
    sick.open.set()
    await asyncio.gather(*sick.tasks)

    assert answers == ["well"] * 4
    assert took == pytest.approx(0.02)


@pytest.mark.virtual_time
async def test_a_sibling_that_is_called_goes_through_the_siblings_protection(gate: Gateway) -> None:  # promise 9
    policy = Policy(timeout=TimeoutPolicy(call=5.0), retry=ONE_TRY, breaker=BreakerPolicy(min_calls=3))
    up = gate.upstream("movies", policy=policy)

    class Movies:
        @up.operation(idempotent=True, fallback=[Static("unknown")])
        async def stars(self, movie: str) -> str:
            raise Boom

        @up.operation(idempotent=True)
        async def page(self, movie: str) -> str:
            return f"{movie}: {await self.stars(movie)}"

    assert await Movies().page("alien") == "alien: unknown"
    assert counted(up) == {"asked": 2, "live": 1, "static": 1, "attempts": 2}
    assert up.snapshot().breaker.calls == 2


@pytest.mark.virtual_time
async def test_with_retries_each_try_takes_a_place_of_its_own(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(pool(1), retry=RetryPolicy(attempts=3, wait=lambda state: 0.1)))
    in_use = []

    @up.operation(idempotent=True)
    async def ask() -> None:
        in_use.append(up.snapshot().bulkhead.in_use)
        raise Boom

    await ended(ask())

    assert in_use == [1, 1, 1]
