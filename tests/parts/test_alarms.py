"""One timer of the loop for all instants. What it does for tries is in test_lane.py, for queues in test_bulkhead.py."""

from __future__ import annotations

import asyncio
import gc
import weakref
from asyncio import get_running_loop, sleep
from math import inf
from random import Random
from time import monotonic
from typing import cast

import pytest

from gateway.alarms import Alarms, alarms_here
from gateway.context import HALF_MICROSECOND, clock_of
from gateway.testing import VirtualTimeLoop
from tests.support import now, page_of, steps


class Told:
    """What came, and when."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.at: list[float] = []

    def tell(self, name: str, at: float) -> None:
        self.names.append(name)
        self.at.append(at)


def handles() -> list[asyncio.TimerHandle]:
    """Timers of the loop, idle ones as well."""
    return [handle for handle in get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


@pytest.mark.virtual_time
async def test_each_comes_at_its_instant_in_whatever_order_they_were_set() -> None:
    alarms, told, began_at = alarms_here(None), Told(), now()

    for seconds in (3.0, 1.0, 2.0, 1.5):
        alarms.set(began_at + seconds, told.tell, str(seconds))
    await sleep(5.0)

    assert told.names == ["1.0", "1.5", "2.0", "3.0"]
    assert told.at == pytest.approx([began_at + seconds for seconds in (1.0, 1.5, 2.0, 3.0)], abs=1e-6)
    assert handles() == []


@pytest.mark.virtual_time
async def test_one_timer_serves_all_and_is_set_for_the_first() -> None:
    alarms, began_at = alarms_here(None), now()

    for number in range(1_000):
        alarms.set(began_at + 1.0 + abs(number - 500) / 1000, Told().tell, "x")

    assert [handle.when() - began_at for handle in handles()] == pytest.approx([1.0])
    assert len(alarms) == 1_000


@pytest.mark.virtual_time
async def test_of_those_for_one_instant_the_first_that_was_set_comes_first() -> None:
    alarms, told, at = alarms_here(None), Told(), now() + 1.0

    for number in range(20):
        alarms.set(at, told.tell, str(number))
    await sleep(2.0)

    assert told.names == [str(number) for number in range(20)]


@pytest.mark.virtual_time
async def test_one_that_was_taken_back_does_not_come_and_the_next_one_comes_in_time() -> None:
    alarms, told, began_at = alarms_here(None), Told(), now()
    first = alarms.set_in(0.2, told.tell, "first")
    alarms.set_in(0.5, told.tell, "second")

    first.waiter = None
    await sleep(1.0)

    assert told.names == ["second"]
    assert told.at == pytest.approx([began_at + 0.5], abs=1e-6)


@pytest.mark.virtual_time
async def test_when_nobody_waits_any_more_the_timer_runs_out_and_no_other_is_set() -> None:
    alarms = alarms_here(None)
    for seconds in (0.2, 5.0):
        alarms.set_in(seconds, Told().tell, "nobody").waiter = None

    await sleep(0.3)

    assert (len(alarms), handles()) == (0, [])


@pytest.mark.virtual_time
async def test_one_that_another_takes_back_in_the_same_tick_does_not_come() -> None:
    alarms, told = alarms_here(None), Told()

    def take_back(_: str, __: float) -> None:
        second.waiter = None

    alarms.set_in(0.5, take_back, "first")
    second = alarms.set_in(0.5, told.tell, "second")
    await sleep(1.0)

    assert told.names == []


@pytest.mark.virtual_time
async def test_one_may_be_set_while_others_come() -> None:
    alarms, told, began_at = alarms_here(None), Told(), now()

    alarms.set_in(0.5, lambda _, __: alarms.set_in(0.5, told.tell, "again"), "first")
    await sleep(2.0)

    assert told.at == pytest.approx([began_at + 1.0], abs=1e-6)


@pytest.mark.virtual_time
async def test_one_without_end_needs_no_timer_and_keeps_no_other_from_coming() -> None:
    alarms, told = alarms_here(None), Told()

    alarms.set(inf, told.tell, "never")
    endless = handles()
    alarms.set_in(1.0, told.tell, "in time")
    await sleep(2.0)

    assert endless == handles() == []
    assert (told.names, len(alarms)) == (["in time"], 1)


@pytest.mark.virtual_time
async def test_those_that_were_taken_back_are_forgotten_in_time() -> None:
    alarms, most = alarms_here(None), 0
    stay = [alarms.set_in(500.0 + number, Told().tell, "stays") for number in range(10)]

    for number in range(10_000):
        alarms.set_in(100.0 + number / 1000, Told().tell, "leaves").waiter = None
        most = max(most, len(alarms._heap))

    assert most < 150
    assert len(alarms) == 10
    assert all(alarm in alarms._heap for alarm in stay)
    assert len(handles()) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_set_and_taken_back_the_others_come_in_time(seed: int) -> None:
    random, alarms, told = Random(seed), alarms_here(None), Told()
    wanted: dict[str, float] = {}

    for number in range(1_000):
        name, at = str(number), now() + random.random() * 10.0
        alarm = alarms.set(at, told.tell, name)
        if random.random() < 0.8:
            alarm.waiter = None
        else:
            wanted[name] = at
        if random.random() < 0.1:
            await sleep(random.random() * 0.1)
    await sleep(10.0)

    assert told.names == sorted(wanted, key=wanted.__getitem__)
    assert told.at == pytest.approx(sorted(wanted.values()), abs=1e-6)
    assert (len(alarms), handles()) == (0, [])


@pytest.mark.virtual_time
async def test_nothing_is_kept_of_who_took_it_back_nor_of_who_was_told() -> None:
    class Waiter:
        """Who waits."""

    alarms, waiters = alarms_here(None), [Waiter(), Waiter()]
    seen = [weakref.ref(waiter) for waiter in waiters]
    kept = [
        alarms.set_in(seconds, lambda _, __: None, waiter) for seconds, waiter in zip((1.0, 9.0), waiters, strict=True)
    ]
    await sleep(2.0)
    kept[1].waiter = None

    waiters.clear()
    del waiters
    await steps(1)
    gc.collect()

    assert [ref() for ref in seen] == [None, None]


@pytest.mark.virtual_time
async def test_the_timer_keeps_nothing_of_the_context_it_was_set_in() -> None:
    alarms = alarms_here(None)

    async def call() -> None:
        alarms.set_in(0.5, Told().tell, "x")

    page = await page_of(call)

    assert len(handles()) == 1
    assert page is None


@pytest.mark.virtual_time
async def test_a_clock_that_jumps_brings_all_that_were_due_once() -> None:
    alarms, told = alarms_here(None), Told()
    for number in range(100):
        alarms.set_in(0.5 + number / 1000, told.tell, str(number))
    alarms.set_in(7200.0, told.tell, "not due")

    cast("VirtualTimeLoop", get_running_loop()).advance(3600.0)
    await steps(2)

    assert told.names == [str(number) for number in range(100)]
    assert set(told.at) == {now()}
    assert len(alarms) == 1


@pytest.mark.virtual_time
async def test_a_timer_that_comes_before_its_time_waits_for_it() -> None:
    """As on uvloop, whose timers count whole milliseconds."""
    loop, told = get_running_loop(), Told()
    alarms = Alarms(loop, lambda: loop.time() - 0.0004)  # the loop is ahead of the clock
    at = alarms.clock() + 0.5

    alarms.set(at, told.tell, "x")
    await sleep(1.0)

    assert len(told.at) == 1
    assert at <= told.at[0] < at + 0.002


@pytest.mark.virtual_time
async def test_half_a_microsecond_before_its_instant_it_has_come() -> None:
    loop, told = get_running_loop(), Told()
    alarms = Alarms(loop, lambda: loop.time() - HALF_MICROSECOND / 2)
    at = alarms.clock() + 0.5

    alarms.set(at, told.tell, "x")
    await sleep(1.0)

    assert told.at == pytest.approx([at - HALF_MICROSECOND / 2], abs=1e-9)


def test_on_uvloop_none_comes_too_soon() -> None:
    uvloop = pytest.importorskip("uvloop", reason="the extra `speed` is not installed")
    told, wanted = Told(), []

    async def main() -> None:
        alarms = alarms_here(None)
        for number in range(15):
            at = monotonic() + 0.001 + number * 0.0013
            wanted.append(at)
            alarms.set(at, told.tell, str(number))
        while len(told.at) < len(wanted):
            await sleep(0.005)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())

    assert all(at - 2 * HALF_MICROSECOND <= real for at, real in zip(wanted, told.at, strict=True))


def test_on_another_loop_there_are_others() -> None:
    async def here(known: Alarms | None) -> Alarms:
        alarms = alarms_here(known)
        assert alarms is alarms_here(alarms)
        assert (alarms.loop, alarms.clock) == (get_running_loop(), clock_of(get_running_loop()))
        alarms.set_in(60.0, Told().tell, "left behind")
        return alarms

    first = asyncio.run(here(None))
    second = asyncio.run(here(first))

    assert second is not first
