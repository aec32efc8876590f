"""The pool of places. Rows are those of the list of what users of such libraries reported (demands.md)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from asyncio import CancelledError, Task, create_task, get_running_loop, sleep
from collections.abc import Callable, Coroutine
from dataclasses import FrozenInstanceError
from math import inf
from typing import Any

import pytest
import pytest_asyncio

from gateway.bulkhead import Bulkhead, BulkheadSnapshot
from gateway.outcome import BulkheadFull, CircuitOpen, DeadlineExceeded
from gateway.policy import BulkheadPolicy
from tests.support import timers_of

pytestmark = pytest.mark.virtual_time


@pytest_asyncio.fixture(autouse=True)
async def little_patience() -> None:
    """A lost place shows as a caller that waits for ever: half a real second of that is enough."""
    get_running_loop().patience = 0.5  # type: ignore[attr-defined]


def pool(limit: float = 1, queue: float = 10, max_wait: float = inf) -> Bulkhead:
    return Bulkhead(BulkheadPolicy(limit=limit, queue=queue, max_wait=max_wait))


def full_pool(limit: int = 1, queue: float = 10, max_wait: float = inf) -> Bulkhead:
    """A pool whose places are all taken."""
    bulkhead = pool(limit, queue, max_wait)
    for _ in range(limit):
        assert bulkhead.acquire_nowait()
    return bulkhead


def resize(bulkhead: Bulkhead, limit: float, queue: float = 10) -> None:
    bulkhead.policy = BulkheadPolicy(limit=limit, queue=queue, max_wait=inf)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(4):
        await sleep(0)


async def queued(bulkhead: Bulkhead, deadline: float = inf) -> Task[None]:
    """A caller that waits for a place."""
    before = bulkhead.waiting
    caller = create_task(bulkhead.acquire(deadline))
    await sleep(0)
    assert bulkhead.waiting == before + 1
    return caller


async def ending(*callers: Task[Any]) -> list[object]:
    """How these callers end: None with a place, else the exception."""
    return await asyncio.gather(*callers, return_exceptions=True)


def assert_idle(bulkhead: Bulkhead) -> None:
    """Every place is free, nobody waits, and no timer runs."""
    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.abandoned) == (0, 0, 0)
    assert not bulkhead._waiters
    assert timers() == []


def timers() -> list[asyncio.TimerHandle]:
    return list(timers_of(get_running_loop()))


def run_inline(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that must not suspend."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


# -- places


async def test_a_free_place_is_taken_without_suspending() -> None:
    bulkhead = pool(limit=2)

    run_inline(bulkhead.acquire())

    assert bulkhead.in_use == 1
    assert bulkhead.acquire_nowait()
    assert bulkhead.in_use == 2


async def test_no_more_than_the_limit_get_a_place() -> None:
    bulkhead = pool(limit=3)

    got = [bulkhead.acquire_nowait() for _ in range(5)]

    assert got == [True, True, True, False, False]
    assert bulkhead.in_use == 3


async def test_a_full_pool_makes_callers_wait_until_a_place_is_free() -> None:
    bulkhead = full_pool()
    caller = await queued(bulkhead)
    await sleep(3600)
    waited = not caller.done()

    bulkhead.release()
    await caller

    assert waited
    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


async def test_waiters_are_served_first_come_first_served() -> None:
    bulkhead = full_pool()
    served: list[int] = []

    async def caller(number: int) -> None:
        async with bulkhead:
            served.append(number)

    callers = [create_task(caller(number)) for number in range(10)]
    await settle()

    bulkhead.release()
    await ending(*callers)

    assert served == list(range(10))
    assert_idle(bulkhead)


async def test_each_release_serves_one() -> None:
    bulkhead = full_pool(limit=2)
    first, second, third = [await queued(bulkhead) for _ in range(3)]

    bulkhead.release()
    bulkhead.release()
    await settle()

    assert (first.done(), second.done(), third.done()) == (True, True, False)
    assert (bulkhead.in_use, bulkhead.waiting) == (2, 1)
    bulkhead.release()
    await third


async def test_nobody_overtakes_a_waiter_that_was_given_a_place() -> None:
    bulkhead = full_pool()
    waiter = await queued(bulkhead)

    bulkhead.release()
    overtook = bulkhead.acquire_nowait()

    assert not overtook
    await waiter
    assert bulkhead.in_use == 1


async def test_a_place_that_is_released_with_nobody_waiting_is_free() -> None:
    bulkhead = full_pool()

    bulkhead.release()

    assert bulkhead.acquire_nowait()


async def test_a_release_without_a_place_taken_is_an_error_and_frees_nothing() -> None:
    bulkhead = pool(limit=1)

    with pytest.raises(RuntimeError, match=r"^release\(\) without a place taken$"):
        bulkhead.release()

    assert [bulkhead.acquire_nowait(), bulkhead.acquire_nowait()] == [True, False]


async def test_a_pool_without_a_limit_never_makes_anybody_wait() -> None:
    bulkhead = pool(limit=inf, queue=0)

    for _ in range(10_000):
        run_inline(bulkhead.acquire())

    assert (bulkhead.in_use, bulkhead.snapshot().limit) == (10_000, inf)


async def test_a_place_is_held_for_the_length_of_a_with_block() -> None:
    bulkhead = pool(limit=1)

    async with bulkhead as entered:
        inside = bulkhead.in_use

    assert entered is bulkhead
    assert inside == 1
    assert_idle(bulkhead)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, CancelledError])
async def test_a_with_block_that_raises_gives_its_place_back(error: type[BaseException]) -> None:
    bulkhead = pool(limit=1)

    with pytest.raises(error):
        async with bulkhead:
            raise error

    assert_idle(bulkhead)


async def test_a_cancelled_with_block_gives_its_place_back() -> None:
    bulkhead = pool(limit=1)

    async def caller() -> None:
        async with bulkhead:
            await sleep(3600)

    task = create_task(caller())
    await settle()
    task.cancel()
    await ending(task)

    assert task.cancelled()
    assert_idle(bulkhead)


# -- the queue


async def test_without_a_queue_the_caller_over_the_limit_is_rejected_at_once() -> None:
    bulkhead = full_pool(queue=0)

    with pytest.raises(BulkheadFull, match=r"^all 1 places are taken, and 0 wait$") as caught:
        run_inline(bulkhead.acquire())

    assert (caught.value.reason, caught.value.waited_for) == ("queue_full", None)
    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.rejected) == (1, 0, 1)


async def test_a_full_queue_rejects_the_newcomer_and_nobody_else() -> None:
    bulkhead = full_pool(limit=2, queue=3)
    waiters = [await queued(bulkhead) for _ in range(3)]

    with pytest.raises(BulkheadFull, match=r"^all 2 places are taken, and 3 wait$"):
        await bulkhead.acquire()

    assert (bulkhead.waiting, bulkhead.rejected) == (3, 1)
    resize(bulkhead, 5)
    assert await ending(*waiters) == [None, None, None]


async def test_a_queue_without_a_limit_takes_everybody() -> None:
    bulkhead = full_pool(queue=inf)

    waiters = [create_task(bulkhead.acquire()) for _ in range(5_000)]
    await settle()

    assert (bulkhead.waiting, bulkhead.rejected) == (5_000, 0)
    resize(bulkhead, inf)
    await ending(*waiters)


async def test_who_waits_longer_than_max_wait_is_rejected() -> None:
    bulkhead = full_pool(max_wait=1.5)
    began_at = get_running_loop().time()

    with pytest.raises(BulkheadFull, match=r"^no place within 1\.5 s$") as caught:
        await bulkhead.acquire()

    assert get_running_loop().time() - began_at == pytest.approx(1.5)
    assert (caught.value.reason, caught.value.waited_for) == ("max_wait", "queue")
    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.rejected) == (1, 0, 1)


async def test_a_place_that_is_free_before_max_wait_is_given() -> None:
    bulkhead = full_pool(max_wait=1.5)
    get_running_loop().call_later(1.4, bulkhead.release)

    await bulkhead.acquire()

    assert (bulkhead.in_use, bulkhead.rejected) == (1, 0)
    assert timers() == []


async def test_with_no_patience_at_all_a_waiter_is_rejected_in_no_time() -> None:
    bulkhead = full_pool(max_wait=0)
    began_at = get_running_loop().time()

    with pytest.raises(BulkheadFull) as caught:
        await bulkhead.acquire()

    assert get_running_loop().time() == began_at
    assert caught.value.reason == "max_wait"


async def test_endless_patience_needs_no_timer() -> None:
    bulkhead = full_pool(max_wait=inf)

    caller = await queued(bulkhead)

    assert timers() == []
    bulkhead.release()
    await caller


async def test_max_wait_is_counted_from_each_waiters_own_arrival() -> None:
    bulkhead = full_pool(max_wait=1.0)
    first = await queued(bulkhead)
    await sleep(0.6)
    second = await queued(bulkhead)

    await sleep(0.6)

    assert (first.done(), second.done()) == (True, False)
    await sleep(0.6)
    assert [type(end) for end in await ending(first, second)] == [BulkheadFull, BulkheadFull]


async def test_a_deadline_nearer_than_max_wait_ends_the_wait() -> None:
    bulkhead = full_pool(max_wait=2.0)
    now = get_running_loop().time()

    with pytest.raises(DeadlineExceeded, match=r"^the deadline passed in the queue$") as caught:
        await bulkhead.acquire(now + 0.5)

    assert get_running_loop().time() == pytest.approx(now + 0.5)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.waited_for == "queue"
    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.rejected) == (1, 0, 1)
    assert timers() == []


async def test_a_deadline_ends_the_wait_of_the_endlessly_patient_too() -> None:
    bulkhead = full_pool(max_wait=inf)

    with pytest.raises(DeadlineExceeded):
        await bulkhead.acquire(get_running_loop().time() + 0.5)

    assert bulkhead.waiting == 0


async def test_where_deadline_and_max_wait_end_together_the_queue_is_to_blame() -> None:
    bulkhead = full_pool(max_wait=0.5)

    with pytest.raises(BulkheadFull):
        await bulkhead.acquire(get_running_loop().time() + 0.5)


@pytest.mark.parametrize("late_by", [0.0, 1.0])
async def test_a_deadline_that_has_passed_is_rejected_without_queueing(late_by: float) -> None:
    bulkhead = full_pool(queue=0)

    with pytest.raises(DeadlineExceeded):
        run_inline(bulkhead.acquire(get_running_loop().time() - late_by))

    assert (bulkhead.waiting, bulkhead.rejected) == (0, 1)


async def test_a_deadline_is_told_by_the_clock_of_the_pool() -> None:
    bulkhead = Bulkhead(BulkheadPolicy(limit=1, queue=1, max_wait=inf), clock=lambda: 50.0)
    bulkhead.acquire_nowait()
    began_at = get_running_loop().time()

    with pytest.raises(DeadlineExceeded):
        await bulkhead.acquire(50.25)

    assert get_running_loop().time() - began_at == pytest.approx(0.25)


async def test_max_wait_does_not_depend_on_what_time_the_clock_tells() -> None:
    bulkhead = Bulkhead(BulkheadPolicy(limit=1, queue=1, max_wait=0.25), clock=lambda: 50.0)
    bulkhead.acquire_nowait()
    began_at = get_running_loop().time()

    with pytest.raises(BulkheadFull):
        await bulkhead.acquire()

    assert get_running_loop().time() - began_at == pytest.approx(0.25)


async def test_every_rejection_is_an_exception_of_its_own() -> None:
    bulkhead = full_pool(queue=2, max_wait=1.0)

    waiters = [create_task(bulkhead.acquire()) for _ in range(4)]
    ends = await ending(*waiters)

    assert [end.reason for end in ends] == ["max_wait", "max_wait", "queue_full", "queue_full"]  # type: ignore[attr-defined]
    assert len({id(end) for end in ends}) == 4
    assert bulkhead.rejected == 4


# -- live resize


async def test_growing_wakes_as_many_waiters_as_there_are_new_places_in_their_order() -> None:
    bulkhead = full_pool(limit=1)
    waiters = [await queued(bulkhead) for _ in range(4)]

    resize(bulkhead, 3)
    await settle()

    assert [waiter.done() for waiter in waiters] == [True, True, False, False]
    assert (bulkhead.in_use, bulkhead.waiting) == (3, 2)
    resize(bulkhead, inf)
    await ending(*waiters)


async def test_shrinking_interrupts_nobody_and_then_only_falls() -> None:
    bulkhead = full_pool(limit=4)
    waiter = await queued(bulkhead)

    resize(bulkhead, 2)
    seen = [bulkhead.in_use]
    for _ in range(2):
        bulkhead.release()
        await settle()
        assert not bulkhead.acquire_nowait()
        seen.append(bulkhead.in_use)

    assert seen == [4, 3, 2]
    assert not waiter.done()
    bulkhead.release()
    await waiter
    assert bulkhead.in_use == 2


async def test_a_resize_decides_from_what_is_free_now_and_not_from_the_difference() -> None:
    """Row 2 (anyio #1223): a limit lowered, then raised again, gave out as many places as it had been raised by."""
    bulkhead = full_pool(limit=4)
    waiters = [await queued(bulkhead) for _ in range(3)]

    resize(bulkhead, 1)
    resize(bulkhead, 3)
    resize(bulkhead, 4)
    await settle()

    assert not any(waiter.done() for waiter in waiters)
    assert (bulkhead.in_use, bulkhead.waiting) == (4, 3)
    resize(bulkhead, 7)
    assert await ending(*waiters) == [None, None, None]
    assert bulkhead.in_use == 7


async def test_assigning_the_same_numbers_changes_nothing() -> None:
    bulkhead = full_pool()
    waiter = await queued(bulkhead)

    bulkhead.policy = BulkheadPolicy(limit=1, queue=10, max_wait=inf)
    await settle()

    assert not waiter.done()
    bulkhead.release()
    await waiter


async def test_a_shorter_queue_sends_nobody_away_who_waits_already() -> None:
    bulkhead = full_pool(queue=5)
    waiters = [await queued(bulkhead) for _ in range(3)]

    bulkhead.policy = tuned = BulkheadPolicy(limit=1, queue=1, max_wait=inf)

    assert bulkhead.policy is tuned
    assert bulkhead.waiting == 3
    with pytest.raises(BulkheadFull):
        await bulkhead.acquire()
    resize(bulkhead, 4)
    assert await ending(*waiters) == [None, None, None]


async def test_another_max_wait_holds_for_those_who_come_later() -> None:
    bulkhead = full_pool(max_wait=1.0)
    early = await queued(bulkhead)
    bulkhead.policy = BulkheadPolicy(limit=1, queue=10, max_wait=3.0)
    late = await queued(bulkhead)

    await sleep(2.0)

    assert (early.done(), late.done()) == (True, False)
    await sleep(2.0)
    assert [type(end) for end in await ending(early, late)] == [BulkheadFull, BulkheadFull]


# -- leaving the queue


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    bulkhead = full_pool(max_wait=1.0)
    first, second = [await queued(bulkhead) for _ in range(2)]

    first.cancel()
    await settle()

    assert first.cancelled()
    assert bulkhead.waiting == 1
    bulkhead.release()
    await second
    assert (bulkhead.in_use, bulkhead.rejected) == (1, 0)
    assert timers() == []


async def test_a_caller_that_is_cancelled_before_its_first_step_never_queues() -> None:
    bulkhead = full_pool()
    caller = create_task(bulkhead.acquire())

    caller.cancel()
    await ending(caller)

    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


async def test_a_waiter_whose_coroutine_is_thrown_away_leaves_the_queue() -> None:
    bulkhead = full_pool(max_wait=1.0)
    waiting = bulkhead.acquire()
    waiting.send(None)

    waiting.close()

    assert bulkhead.waiting == 0
    bulkhead.release()
    assert_idle(bulkhead)


async def test_a_waiter_that_was_given_a_place_and_is_thrown_away_passes_it_on() -> None:
    bulkhead = full_pool()
    thrown_away = bulkhead.acquire()
    thrown_away.send(None)
    next_one = await queued(bulkhead)
    bulkhead.release()

    thrown_away.close()

    await next_one
    assert bulkhead.in_use == 1


async def test_ten_thousand_waiters_cancelled_at_once_leave_nothing() -> None:
    bulkhead = full_pool(queue=inf, max_wait=5.0)
    callers = [create_task(bulkhead.acquire()) for _ in range(10_000)]
    await settle()

    for caller in callers:
        caller.cancel()
    await ending(*callers)

    assert all(caller.cancelled() for caller in callers)
    bulkhead.release()
    assert_idle(bulkhead)


async def test_a_clock_that_jumps_an_hour_ends_every_wait_once() -> None:
    bulkhead = full_pool(queue=100, max_wait=1.0)
    callers = [await queued(bulkhead) for _ in range(100)]

    get_running_loop().advance(3600.0)  # type: ignore[attr-defined]
    ends = await ending(*callers)

    assert {type(end) for end in ends} == {BulkheadFull}
    assert bulkhead.rejected == 100
    bulkhead.release()
    assert_idle(bulkhead)


async def test_a_pool_that_stays_full_keeps_nothing_of_those_who_gave_up() -> None:
    bulkhead = full_pool(queue=100, max_wait=1.0)

    callers = [create_task(bulkhead.acquire()) for _ in range(100)]
    await ending(*callers)

    assert not bulkhead._waiters


# -- sending all waiters away


def shut() -> CircuitOpen:
    return CircuitOpen("the circuit is open")


async def test_all_who_wait_can_be_sent_away_each_with_an_error_of_its_own() -> None:
    bulkhead = full_pool(max_wait=1.0)
    waiters = [await queued(bulkhead) for _ in range(3)]

    bulkhead.reject_waiters(shut)

    assert bulkhead.waiting == 0
    assert not bulkhead._waiters
    ends = await ending(*waiters)
    assert [type(end) for end in ends] == [CircuitOpen] * 3
    assert len({id(end) for end in ends}) == 3
    assert (bulkhead.in_use, bulkhead.rejected) == (1, 0)
    bulkhead.release()
    assert_idle(bulkhead)


async def test_who_comes_after_the_others_were_sent_away_may_wait() -> None:
    bulkhead = full_pool()
    sent_away = await queued(bulkhead)

    bulkhead.reject_waiters(shut)
    waiter = await queued(bulkhead)
    bulkhead.release()

    assert [type(end) for end in await ending(sent_away, waiter)] == [CircuitOpen, type(None)]


async def test_no_reason_is_spent_on_a_waiter_that_has_left() -> None:
    bulkhead = full_pool()
    leaving, staying = [await queued(bulkhead) for _ in range(2)]
    reasons: list[CircuitOpen] = []

    def reason() -> CircuitOpen:
        reasons.append(shut())
        return reasons[-1]

    leaving.cancel()
    bulkhead.reject_waiters(reason)
    ends = await ending(leaving, staying)

    assert len(reasons) == 1
    assert [type(end) for end in ends] == [CancelledError, CircuitOpen]


# -- work that goes on when its caller leaves


async def test_work_that_cannot_be_stopped_keeps_its_place_until_it_ends() -> None:
    """Row 1 (BentoML #5642): the place was given back when the caller left, though the thread went on."""
    bulkhead = full_pool(limit=1)
    waiter = await queued(bulkhead)

    bulkhead.keep()  # as the threads do when their caller leaves,
    bulkhead.release()  # and as every caller does when it leaves
    await settle()

    assert (bulkhead.in_use, bulkhead.abandoned, bulkhead.waiting) == (1, 1, 1)
    assert not bulkhead.acquire_nowait()
    bulkhead.work_ended()
    await waiter
    assert (bulkhead.in_use, bulkhead.abandoned) == (1, 0)


async def test_each_abandoned_piece_of_work_counts() -> None:
    bulkhead = full_pool(limit=3)

    for _ in range(3):
        bulkhead.keep()
        bulkhead.release()
    seen = [(bulkhead.in_use, bulkhead.abandoned)]
    for _ in range(3):
        bulkhead.work_ended()
        seen.append((bulkhead.in_use, bulkhead.abandoned))

    assert seen == [(3, 3), (2, 2), (1, 1), (0, 0)]
    assert bulkhead.peak == 3


async def test_an_async_body_that_resists_its_timeout_keeps_its_place() -> None:
    """Rows 7 and 9 (resilience4j #2296, opossum): a timeout freed the place while the work ran on: 10 ran, of 2."""
    bulkhead = pool(limit=2, queue=20)
    running = most = 0

    async def stubborn() -> None:
        nonlocal running, most
        async with bulkhead:
            running += 1
            most = max(most, running)
            try:
                await sleep(10.0)
            except CancelledError:
                await sleep(1.0)  # slow to leave
                raise
            finally:
                running -= 1

    async def limited(seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await stubborn()

    callers = [create_task(limited(0.1 + number * 0.7)) for number in range(10)]
    ends = await ending(*callers)

    assert {type(end) for end in ends} == {TimeoutError}
    assert most == 2
    assert_idle(bulkhead)


async def test_a_timeout_touches_nobody_elses_call() -> None:
    """Row 9 (opossum): one shared AbortController aborted the healthy calls of others."""
    bulkhead = pool(limit=2)

    async def call(seconds: float, limit: float) -> str:
        async with bulkhead, asyncio.timeout(limit):
            await sleep(seconds)
        return "well"

    hangs, healthy = create_task(call(10.0, 0.1)), create_task(call(1.0, 5.0))
    ends = await ending(hangs, healthy)

    assert [type(ends[0]), ends[1]] == [TimeoutError, "well"]
    assert_idle(bulkhead)


# -- two things in one tick


async def test_released_then_cancelled_in_one_tick_the_place_goes_to_the_next() -> None:
    """Row 45 (concurrency-limits #179) and row 2: a place given at the instant of leaving was lost for ever."""
    bulkhead = full_pool()
    leaving, next_one = [await queued(bulkhead) for _ in range(2)]

    bulkhead.release()
    leaving.cancel()
    ends = await ending(leaving, next_one)

    assert [type(end) for end in ends] == [CancelledError, type(None)]
    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


async def test_released_then_cancelled_in_one_tick_with_nobody_else_the_place_is_free() -> None:
    bulkhead = full_pool()
    leaving = await queued(bulkhead)

    bulkhead.release()
    leaving.cancel()
    await ending(leaving)

    assert_idle(bulkhead)


async def test_cancelled_then_released_in_one_tick_the_place_goes_to_the_next() -> None:
    bulkhead = full_pool()
    leaving, next_one = [await queued(bulkhead) for _ in range(2)]

    leaving.cancel()
    bulkhead.release()
    ends = await ending(leaving, next_one)

    assert [type(end) for end in ends] == [CancelledError, type(None)]
    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


async def test_cancelled_then_released_in_one_tick_with_nobody_else_the_place_is_free() -> None:
    bulkhead = full_pool()
    leaving = await queued(bulkhead)

    leaving.cancel()
    bulkhead.release()

    assert bulkhead.in_use == 0
    await ending(leaving)
    assert_idle(bulkhead)


async def test_a_place_passed_on_to_one_who_leaves_too_is_passed_on_again() -> None:
    bulkhead = full_pool()
    first, second, third = [await queued(bulkhead) for _ in range(3)]

    bulkhead.release()
    first.cancel()
    second.cancel()
    ends = await ending(first, second, third)

    assert [type(end) for end in ends] == [CancelledError, CancelledError, type(None)]
    assert bulkhead.in_use == 1


async def test_a_waiter_cancelled_in_this_tick_is_not_counted_as_waiting() -> None:
    """Row 41 (cockatiel #112): an aborted waiter held a place in the queue, and a newcomer was told "full"."""
    bulkhead = full_pool(queue=2)
    leaving, staying = [await queued(bulkhead) for _ in range(2)]

    leaving.cancel()
    seen = bulkhead.waiting
    newcomer = bulkhead.acquire()
    newcomer.send(None)  # in the same tick, with no turn of the loop between

    assert seen == 1
    assert (bulkhead.waiting, bulkhead.rejected) == (2, 0)
    newcomer.close()
    bulkhead.release()
    assert [type(end) for end in await ending(leaving, staying)] == [CancelledError, type(None)]


async def test_cancelled_waiters_make_room_for_just_as_many_newcomers() -> None:
    bulkhead = full_pool(queue=3)
    waiters = [await queued(bulkhead) for _ in range(3)]

    waiters[0].cancel()
    waiters[2].cancel()
    newcomers = [bulkhead.acquire() for _ in range(3)]
    for newcomer in newcomers[:2]:
        newcomer.send(None)
    with pytest.raises(BulkheadFull, match="and 3 wait"):
        newcomers[2].send(None)

    for newcomer in newcomers:
        newcomer.close()
    bulkhead.release()
    await ending(*waiters)


async def test_newcomers_in_the_tick_of_a_release_do_not_push_out_who_waits() -> None:
    """Row 41 (cockatiel): an accepted, queued call was rejected as "full" when newcomers came in that turn."""
    bulkhead = full_pool(queue=1)
    waiter = await queued(bulkhead)

    bulkhead.release()
    newcomers = [create_task(bulkhead.acquire()) for _ in range(3)]
    await waiter
    await settle()

    assert (bulkhead.in_use, bulkhead.waiting) == (1, 1)
    assert [newcomer.done() for newcomer in newcomers] == [False, True, True]
    bulkhead.release()
    assert [type(end) for end in await ending(*newcomers)] == [type(None), BulkheadFull, BulkheadFull]


async def test_a_waiter_that_expired_is_never_handed_a_place() -> None:
    """Row 4 (failsafe #393): a waiter that timed out stayed queued, and got a place that nobody returned."""
    bulkhead = full_pool(max_wait=1.0)

    for _ in range(5):
        with pytest.raises(BulkheadFull):
            await bulkhead.acquire()
    bulkhead.release()

    assert_idle(bulkhead)
    assert bulkhead.acquire_nowait()


async def test_a_waiter_that_somebody_else_times_out_is_never_handed_a_place() -> None:
    """Row 4 again, the timeout from outside."""
    bulkhead = full_pool()

    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await bulkhead.acquire()
    bulkhead.release()

    assert_idle(bulkhead)
    assert bulkhead.acquire_nowait()


async def test_cancelled_in_the_queue_a_with_block_takes_no_place_along() -> None:
    """Row 8 (hyx): cancelled while queued in the form of a context manager, it took a place away for ever."""
    bulkhead = full_pool(limit=2)

    async def caller() -> None:
        async with bulkhead:
            pytest.fail("nobody let it in")

    callers = [create_task(caller()) for _ in range(3)]
    await settle()
    for task in callers:
        task.cancel()
    await ending(*callers)
    bulkhead.release()
    bulkhead.release()

    assert_idle(bulkhead)
    assert [bulkhead.acquire_nowait() for _ in range(3)] == [True, True, False]


async def test_released_then_expired_in_one_tick_the_waiter_has_its_place() -> None:
    """Row 45: the place was given; that its time ran out in the same instant changes nothing."""
    bulkhead = full_pool(max_wait=1.0)
    waiter = await queued(bulkhead)
    loop = get_running_loop()

    loop.call_later(0.999, bulkhead.release)
    loop.advance(2.0)  # type: ignore[attr-defined]  # both are due now, the release first
    await waiter

    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.rejected) == (1, 0, 0)


async def test_expired_then_released_in_one_tick_the_place_goes_to_the_next() -> None:
    """Row 45: the other way round."""
    bulkhead = full_pool(max_wait=1.0)
    expiring = await queued(bulkhead)
    await sleep(0.5)
    next_one = await queued(bulkhead)
    loop = get_running_loop()

    loop.call_later(0.501, bulkhead.release)
    loop.advance(0.6)  # type: ignore[attr-defined]
    ends = await ending(expiring, next_one)

    assert [type(end) for end in ends] == [BulkheadFull, type(None)]
    assert (bulkhead.in_use, bulkhead.waiting, bulkhead.rejected) == (1, 0, 1)


async def test_expired_then_cancelled_in_one_tick_it_was_cancelled() -> None:
    bulkhead = full_pool(max_wait=1.0)
    waiter = await queued(bulkhead)
    loop = get_running_loop()

    loop.call_later(1.001, waiter.cancel)
    loop.advance(2.0)  # type: ignore[attr-defined]
    ends = await ending(waiter)

    assert isinstance(ends[0], CancelledError)
    bulkhead.release()
    assert_idle(bulkhead)


async def test_cancelled_then_expired_in_one_tick_it_was_cancelled_and_is_not_counted_as_rejected() -> None:
    bulkhead = full_pool(max_wait=1.0)
    waiter = await queued(bulkhead)
    loop = get_running_loop()

    loop.call_later(0.999, waiter.cancel)
    loop.advance(2.0)  # type: ignore[attr-defined]
    ends = await ending(waiter)

    assert isinstance(ends[0], CancelledError)
    assert bulkhead.rejected == 0
    bulkhead.release()
    assert_idle(bulkhead)


async def test_grown_then_cancelled_in_one_tick_the_place_goes_to_the_next() -> None:
    bulkhead = full_pool()
    leaving, next_one, last = [await queued(bulkhead) for _ in range(3)]

    resize(bulkhead, 2)
    leaving.cancel()
    await settle()

    assert (leaving.cancelled(), next_one.done(), last.done()) == (True, True, False)
    assert (bulkhead.in_use, bulkhead.waiting) == (2, 1)
    bulkhead.release()
    await last


async def test_cancelled_then_grown_in_one_tick_the_place_goes_to_the_next() -> None:
    bulkhead = full_pool()
    leaving, next_one, last = [await queued(bulkhead) for _ in range(3)]

    leaving.cancel()
    resize(bulkhead, 2)
    await settle()

    assert (leaving.cancelled(), next_one.done(), last.done()) == (True, True, False)
    assert (bulkhead.in_use, bulkhead.waiting) == (2, 1)
    bulkhead.release()
    await last


async def test_given_a_place_shrunk_and_cancelled_in_one_tick_the_place_is_not_passed_on() -> None:
    bulkhead = full_pool(limit=2)
    leaving, next_one = [await queued(bulkhead) for _ in range(2)]

    bulkhead.release()
    resize(bulkhead, 1)
    leaving.cancel()
    await settle()

    assert (bulkhead.in_use, bulkhead.waiting) == (1, 1)
    bulkhead.release()
    await next_one


async def test_grown_and_shrunk_in_one_tick_who_got_a_place_has_it() -> None:
    bulkhead = full_pool()
    first, second = [await queued(bulkhead) for _ in range(2)]

    resize(bulkhead, 2)
    resize(bulkhead, 1)
    await settle()

    assert (first.done(), second.done()) == (True, False)
    assert bulkhead.in_use == 2
    bulkhead.release()
    await settle()
    assert not second.done()
    bulkhead.release()
    await second


async def test_released_then_sent_away_in_one_tick_who_got_a_place_has_it() -> None:
    bulkhead = full_pool()
    given, sent_away = [await queued(bulkhead) for _ in range(2)]

    bulkhead.release()
    bulkhead.reject_waiters(shut)
    ends = await ending(given, sent_away)

    assert [type(end) for end in ends] == [type(None), CircuitOpen]
    assert bulkhead.in_use == 1


async def test_sent_away_then_released_in_one_tick_the_place_is_free() -> None:
    bulkhead = full_pool()
    sent_away = await queued(bulkhead)

    bulkhead.reject_waiters(shut)
    bulkhead.release()

    assert bulkhead.in_use == 0
    assert isinstance((await ending(sent_away))[0], CircuitOpen)
    assert_idle(bulkhead)


async def test_sent_away_then_cancelled_in_one_tick_it_was_cancelled_and_has_no_place() -> None:
    bulkhead = full_pool()
    waiter = await queued(bulkhead)

    bulkhead.reject_waiters(shut)
    waiter.cancel()
    ends = await ending(waiter)

    assert isinstance(ends[0], CancelledError)
    assert bulkhead.in_use == 1
    bulkhead.release()
    assert_idle(bulkhead)


async def test_sent_away_then_expired_in_one_tick_it_is_rejected_once() -> None:
    bulkhead = full_pool(max_wait=1.0)
    waiter = await queued(bulkhead)
    loop = get_running_loop()

    loop.advance(2.0)  # type: ignore[attr-defined]  # its time is over, though nobody has told it
    bulkhead.reject_waiters(shut)
    ends = await ending(waiter)

    assert isinstance(ends[0], CircuitOpen)
    assert bulkhead.rejected == 0


async def test_the_end_of_abandoned_work_and_a_cancel_in_one_tick_lose_no_place() -> None:
    bulkhead = full_pool()
    leaving, next_one = [await queued(bulkhead) for _ in range(2)]
    bulkhead.keep()
    bulkhead.release()

    bulkhead.work_ended()
    leaving.cancel()
    ends = await ending(leaving, next_one)

    assert [type(end) for end in ends] == [CancelledError, type(None)]
    assert (bulkhead.in_use, bulkhead.abandoned) == (1, 0)


# -- what can be seen


async def test_a_snapshot_shows_the_pool_as_it_is_now_and_stays_as_it_was() -> None:
    bulkhead = full_pool(limit=3, queue=1)
    waiter = await queued(bulkhead)
    with pytest.raises(BulkheadFull):
        await bulkhead.acquire()
    bulkhead.keep()
    bulkhead.release()

    snapshot = bulkhead.snapshot()
    bulkhead.work_ended()
    await waiter

    assert snapshot == BulkheadSnapshot(limit=3, in_use=3, waiting=1, abandoned=1, rejected=1, peak=3)
    with pytest.raises(FrozenInstanceError):
        snapshot.in_use = 0  # type: ignore[misc]


async def test_a_new_pool_is_empty() -> None:
    bulkhead = pool(limit=3)

    snapshot = bulkhead.snapshot()

    assert snapshot == BulkheadSnapshot(limit=3, in_use=0, waiting=0, abandoned=0, rejected=0, peak=0)


async def test_the_peak_is_the_most_that_ever_ran_at_once() -> None:
    bulkhead = pool(limit=5)
    peaks: list[int] = []

    for change in (1, 1, -1, -1, 1, 1, 1, -1, 1):
        if change > 0:
            bulkhead.acquire_nowait()
        else:
            bulkhead.release()
        peaks.append(bulkhead.peak)

    assert peaks == [1, 2, 2, 2, 2, 2, 3, 3, 3]


async def test_the_peak_counts_those_who_waited_too() -> None:
    bulkhead = full_pool(limit=1)
    waiters = [await queued(bulkhead) for _ in range(2)]

    resize(bulkhead, 3)
    await ending(*waiters)
    bulkhead.release()
    bulkhead.release()
    one_more = bulkhead.acquire_nowait()

    assert one_more
    assert (bulkhead.in_use, bulkhead.peak) == (2, 3)


async def test_waiters_leave_no_timer_behind_however_they_leave() -> None:
    ways: list[Callable[[Bulkhead, Task[None]], object]] = [
        lambda bulkhead, _: bulkhead.release(),
        lambda _, waiter: waiter.cancel(),
        lambda bulkhead, _: bulkhead.reject_waiters(shut),
        lambda bulkhead, _: resize(bulkhead, 2),
    ]
    left: list[int] = []

    for way in ways:
        for deadline in (inf, get_running_loop().time() + 1.0):
            bulkhead = full_pool(max_wait=5.0)
            waiter = await queued(bulkhead, deadline)
            assert len(timers()) == 1
            way(bulkhead, waiter)
            await ending(waiter)
            left.append(len(timers()))

    assert left == [0] * 8


def test_a_pool_needs_no_loop_until_somebody_waits() -> None:
    bulkhead = pool(limit=1)

    run_inline(bulkhead.acquire())
    taken = bulkhead.acquire_nowait()
    resize(bulkhead, 2)
    bulkhead.release()

    assert not taken
    assert bulkhead.snapshot().in_use == 0


def test_waiters_whose_loop_was_closed_under_them_are_passed_over() -> None:
    bulkhead = full_pool(max_wait=1.0)
    dead = asyncio.new_event_loop()
    left_behind = [bulkhead.acquire() for _ in range(3)]

    async def wait() -> None:
        for waiting in left_behind:
            waiting.send(None)

    async def on_another_loop() -> str:
        waiter = await queued(bulkhead)
        bulkhead.release()
        await waiter
        return "has its place"

    dead.run_until_complete(wait())
    dead.close()
    with asyncio.Runner() as runner:
        end = runner.run(on_another_loop())
    for waiting in left_behind:
        waiting.close()

    assert end == "has its place"
    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


def test_waiters_whose_loop_was_closed_under_them_can_be_sent_away_without_a_word() -> None:
    bulkhead = full_pool()
    dead = asyncio.new_event_loop()
    left_behind = bulkhead.acquire()

    async def wait() -> None:
        left_behind.send(None).add_done_callback(lambda _: None)  # as a task does, to be woken

    dead.run_until_complete(wait())
    dead.close()
    bulkhead.reject_waiters(shut)
    left_behind.close()

    assert (bulkhead.in_use, bulkhead.waiting) == (1, 0)


@pytest.mark.parametrize("deadline", [0.2, inf])
async def test_who_waited_in_vain_leaves_no_circle(deadline: float) -> None:
    bulkhead = full_pool(max_wait=0.3)
    gc.collect()
    gc.disable()
    try:
        try:
            await bulkhead.acquire(get_running_loop().time() + deadline)
        except (BulkheadFull, DeadlineExceeded) as error:
            seen = weakref.ref(error)
        await create_task(sleep(0))

        assert seen() is None
    finally:
        gc.enable()
