"""`async with upstream.slot():` a block of code has the pool, circuit, limits and numbers of an operation."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from tenacity import wait_none

from gateway import (
    Alternate,
    AttemptFailed,
    BreakerPolicy,
    BulkheadFull,
    BulkheadPolicy,
    CallFinished,
    CircuitOpen,
    ConfigError,
    Deadline,
    DeadlineExceeded,
    Event,
    Failed,
    FailedTimeout,
    Gateway,
    GatewayClosed,
    NotSent,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Slot,
    Source,
    Static,
    TimeoutPolicy,
    Upstream,
    WrongLoop,
)
from gateway.context import AMBIENT
from gateway.lane import Timer
from gateway.slot import MOST_NAMES
from gateway.testing import Faults, VirtualTimeLoop
from tests.support import NEVER_OPENS, QUIET, Boom, assert_all_gone, counted, ended, fail_until_open, gone, now, steps

ONE_PLACE = Policy(
    bulkhead=BulkheadPolicy(limit=1, queue=5, max_wait=5.0),
    timeout=TimeoutPolicy(call=20.0, attempt=5.0),
    retry=RetryPolicy(attempts=3, wait=wait_none()),
    breaker=NEVER_OPENS,
)


async def held(up: Upstream, seconds: float) -> Slot:
    async with up.slot() as slot:
        await asyncio.sleep(seconds)
    return slot


async def raised_in(up: Upstream, error: BaseException, **said: Any) -> BaseException:
    """What leaves the block when this is raised in it."""
    try:
        async with up.slot(**said):
            raise error
    except BaseException as left:
        return left


@pytest_asyncio.fixture
async def took() -> Callable[[], float]:
    """How many seconds the test has taken, to the microsecond."""
    began = now()
    return lambda: round(now() - began, 6)


# -- what a block has


@pytest.mark.virtual_time
async def test_a_block_holds_a_place_while_it_runs_and_has_numbers_of_its_name(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    async with up.slot("report"):
        during = up.snapshot()
        await asyncio.sleep(0.25)

    assert (during.bulkhead.in_use, during.operations["report"].counts.in_flight, up.timers) == (1, 1, 0)
    after = up.snapshot().operations["report"]
    assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}
    assert (after.counts.live, after.latency.count, after.latency.max) == (1, 1, 0.25)
    assert up.snapshot().breaker.calls == 1


@pytest.mark.virtual_time
async def test_blocks_and_operations_queue_for_the_same_places_first_come_first_served(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    order: list[str] = []

    @up.operation(idempotent=True)
    async def ask(name: str) -> None:
        order.append(name)
        await asyncio.sleep(1.0)

    async def block(name: str) -> float:
        async with up.slot() as slot:
            order.append(name)
            await asyncio.sleep(1.0)
        return slot.waited

    one, _, three, _ = await asyncio.gather(block("one"), ask("two"), block("three"), ask("four"))

    assert order == ["one", "two", "three", "four"]
    assert (one, three) == (0.0, 2.0)
    assert up.snapshot().waits.count == 3


@pytest.mark.virtual_time
async def test_the_deadline_of_a_slot_is_the_ambient_one_of_its_block(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    slot = up.slot()

    before = slot.deadline
    async with slot as same:
        deadline, ambient = slot.deadline, Deadline.current()
        await asyncio.sleep(1.0)
        left = deadline.remaining()

    assert same is slot
    assert (before, slot.deadline) == (None, None)
    assert deadline.at == ambient.at
    assert left == 4.0


@pytest.mark.virtual_time
async def test_a_slot_without_limits_has_no_deadline(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(timeout=TimeoutPolicy(call=float("inf"), attempt=float("inf"))))

    async with up.slot() as slot:
        deadline = slot.deadline

    assert deadline is None


@pytest.mark.virtual_time
async def test_a_block_may_have_limits_of_its_own_and_tuning_changes_the_rest(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async def limit(**said: Any) -> float:
        async with up.slot(**said) as slot:
            return slot.deadline.remaining()

    own = TimeoutPolicy(attempt=0.5)
    before = await limit(), await limit(name="short", timeout=own)
    up.tune(timeout=TimeoutPolicy(call=6.0, attempt=2.0))
    after = await limit(), await limit(name="short", timeout=own)

    assert before == (5.0, 0.5)
    assert after == (2.0, 0.5)


@pytest.mark.virtual_time
async def test_the_first_call_of_all_tells_what_it_waited_by_the_right_clock(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    waited = []

    async def caller() -> None:
        asyncio.current_task().cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        async with up.slot() as slot:  # has to look first whether a cancel is pending
            waited.append(slot.waited)

    await asyncio.create_task(caller())

    assert waited == [0.0]


@pytest.mark.virtual_time
async def test_events_tell_of_blocks_as_of_calls(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    heard: list[Event] = []
    gate.on(CallFinished, AttemptFailed)(heard.append)

    holding = asyncio.ensure_future(held(up, 1.0))
    await steps(1)
    error = await raised_in(up, Boom())
    await holding

    assert isinstance(error, Boom)
    first, failed, second = heard
    assert (first.operation, first.outcome, first.source, first.duration) == ("slot", "success", Source.LIVE, 1.0)
    assert (failed.attempt, failed.outcome, failed.error.__cause__ is error) == (1, Outcome.FAILED, True)
    assert (second.outcome, second.waited, second.attempts, second.error) == ("failed", 1.0, 1, failed.error)


# -- entering


@pytest.mark.virtual_time
async def test_an_open_circuit_lets_no_block_begin(gate: Gateway) -> None:
    up = gate.upstream("world")
    await fail_until_open(up)

    with pytest.raises(CircuitOpen) as caught:
        async with up.slot("report"):
            pytest.fail("it must not run")

    error = caught.value
    assert (error.upstream, error.operation, error.attempts, error.outcome) == ("world", "report", 0, "rejected")
    assert counted(up) == {"asked": 1, "rejected": 1}


@pytest.mark.virtual_time
async def test_a_full_pool_and_a_long_wait_reject_a_block(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(bulkhead=BulkheadPolicy(limit=1, queue=1, max_wait=0.5)))

    ends = await asyncio.gather(held(up, 1.0), ended(held(up, 1.0)), ended(held(up, 1.0)))

    assert [type(end) for end in ends] == [Slot, BulkheadFull, BulkheadFull]
    assert [end.reason for end in ends[1:]] == ["max_wait", "queue_full"]
    assert [(end.upstream, end.operation) for end in ends[1:]] == [("world", "slot")] * 2


@pytest.mark.virtual_time
async def test_a_deadline_that_has_passed_or_passes_in_the_queue_rejects_a_block(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    with Deadline.after(0.0):
        too_late = await ended(held(up, 1.0))
    holding = asyncio.ensure_future(held(up, 1.0))
    await steps(1)
    with Deadline.after(0.5):
        in_the_queue = await ended(held(up, 1.0))
    await holding

    assert (type(too_late), too_late.waited_for) == (DeadlineExceeded, "deadline")
    assert (type(in_the_queue), in_the_queue.waited_for) == (DeadlineExceeded, "queue")


@pytest.mark.virtual_time
async def test_a_closed_gateway_lets_no_block_begin(gate: Gateway) -> None:
    up = gate.upstream("world")
    await gate.open()
    await gate.close()

    error = await ended(held(up, 1.0))

    assert (type(error), error.upstream, error.operation) == (GatewayClosed, "world", "slot")
    assert not counted(up)


@pytest.mark.virtual_time
async def test_a_block_on_another_loop_than_the_gateways_is_refused(gate: Gateway) -> None:
    up = gate.upstream("world")
    await gate.open()

    error = await asyncio.to_thread(lambda: asyncio.run(ended(held(up, 0.0))))

    assert isinstance(error, WrongLoop)


# -- how a block ends


ENDS = [
    (Boom(), {"failed": 1}, 1),
    (NotSent(), {"failed": 1}, 1),
    (Refused("no"), {"refused": 1}, 0),
    (KeyError(), {"refused": 1}, 0),
    (asyncio.CancelledError(), {"failed": 1}, 1),
    (StopIteration(), {"failed": 1}, 1),
    (TimeoutError(), {"failed": 1}, 1),
    (KeyboardInterrupt(), {"cancelled": 1}, 0),
    (GeneratorExit(), {"cancelled": 1}, 0),
    (ExceptionGroup("two", [Boom(), Boom()]), {"failed": 1}, 1),
    (FailedTimeout("of another"), {"failed": 1}, 1),
]


@pytest.mark.virtual_time
@pytest.mark.parametrize(("error", "counts", "calls"), ENDS, ids=lambda value: type(value).__name__)
async def test_what_a_block_raises_leaves_it_as_it_is(gate: Gateway, error: Any, counts: Any, calls: int) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)  # of three tries: none is repeated

    left = await raised_in(up, error, refused=(KeyError,))

    assert left is error
    assert (left.__cause__, left.__context__, getattr(left, "__notes__", [])) == (None, None, [])
    assert [frame.name for frame in traceback.extract_tb(left.__traceback__)] == ["raised_in"]
    assert counted(up) == {"asked": 1, "attempts": 1, **counts}
    assert up.snapshot().breaker.calls == up.snapshot().breaker.failures == calls
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_an_error_with_a_history_keeps_it(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    error = Boom()

    async def fetch() -> None:
        try:
            raise KeyError
        except KeyError as cause:
            raise error from cause

    with pytest.raises(Boom) as caught:
        async with up.slot():
            await fetch()

    assert caught.value is error
    assert isinstance(error.__cause__, KeyError)
    assert [frame.name for frame in caught.traceback][-1:] == ["fetch"]
    assert "/gateway/" not in "".join(traceback.format_exception(error))


@pytest.mark.virtual_time
async def test_an_interrupt_while_a_block_is_left_is_not_lost(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @gate.on(CallFinished)
    def interrupted(event: CallFinished) -> None:
        raise KeyboardInterrupt

    assert isinstance(await raised_in(up, Boom()), KeyboardInterrupt)
    gate.off(interrupted)


@pytest.mark.virtual_time
async def test_a_failing_block_opens_the_circuit_and_a_refusal_does_not(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=5)))

    for _ in range(20):
        await raised_in(up, Refused())
    refused = up.snapshot().breaker
    for _ in range(5):
        await raised_in(up, Boom())

    assert (refused.state, refused.calls) == ("closed", 0)
    assert up.snapshot().breaker.state == "open"


@pytest.mark.virtual_time
async def test_a_block_that_takes_too_long_ends_in_a_timeout(gate: Gateway, took: Any) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    with pytest.raises(FailedTimeout) as caught:
        async with up.slot():
            await asyncio.sleep(99)

    error = caught.value
    assert took() == 5.0
    assert (error.upstream, error.operation, error.attempts, error.waited_for) == ("world", "slot", 1, "attempt")
    assert isinstance(error, TimeoutError)
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert [entry.name for entry in caught.traceback][1:] == ["__aexit__", "end"]
    assert [entry.name for entry in traceback.extract_tb(error.__cause__.__traceback__)][1:] == ["sleep"]
    assert asyncio.current_task().cancelling() == 0
    assert counted(up) == {"asked": 1, "attempts": 1, "failed": 1}


@pytest.mark.virtual_time
@pytest.mark.parametrize(("seconds", "failures"), [(0.3, 0), (0.7, 1)])
async def test_an_outer_deadline_ends_a_block_and_is_evidence_only_after_a_while(
    gate: Gateway, took: Any, seconds: float, failures: int
) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    with Deadline.after(seconds):
        error = await ended(held(up, 99))

    assert (type(error), error.waited_for, took()) == (FailedTimeout, "deadline", seconds)
    assert up.snapshot().breaker.failures == failures


@pytest.mark.virtual_time
async def test_a_block_that_ends_well_but_late_is_a_success_that_overran(gate: Gateway, took: Any) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async with up.slot():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(99)
        await asyncio.sleep(1.0)

    assert took() == 6.0
    assert asyncio.current_task().cancelling() == 0
    assert counted(up) == {"asked": 1, "attempts": 1, "live": 1, "overran": 1}
    assert up.snapshot().breaker.failures == 0


@pytest.mark.virtual_time
async def test_an_error_of_its_own_after_the_limit_goes_on_as_it_is(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    error = Boom()

    with pytest.raises(Boom) as caught:
        async with up.slot():
            try:
                await asyncio.sleep(99)
            except asyncio.CancelledError:
                raise error from None

    assert caught.value is error
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_return_break_and_continue_end_a_block_well(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    async def blocks() -> str:
        for number in range(9):
            async with up.slot():
                if number < 3:
                    continue
                break
        async with up.slot():
            return "value"

    assert await blocks() == "value"
    assert counted(up) == {"asked": 5, "live": 5, "attempts": 5}
    assert AMBIENT.get() is None


@pytest.mark.virtual_time
async def test_a_slot_may_be_entered_by_an_exit_stack(gate: Gateway) -> None:
    up, other = gate.upstream("world", policy=QUIET), gate.upstream("other", policy=QUIET)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(up.slot())
        second = await stack.enter_async_context(other.slot())
        in_use = up.bulkhead.in_use, other.bulkhead.in_use
    with pytest.raises(Boom):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(up.slot())
            raise Boom

    assert isinstance(first, Slot)
    assert isinstance(second, Slot)
    assert in_use == (1, 1)
    assert counted(up) == {"asked": 2, "live": 1, "failed": 1, "attempts": 2}


# -- one in another


@pytest.mark.virtual_time
async def test_what_a_block_calls_inherits_its_limit(gate: Gateway, took: Any) -> None:
    up, other = gate.upstream("world", policy=ONE_PLACE), gate.upstream("other", policy=QUIET)
    seen: list[Any] = []

    @other.operation(idempotent=True)
    async def ask() -> float:
        return Deadline.current().remaining()

    @other.operation(idempotent=True, fallback=[Static("late")])
    async def hang() -> str:
        await asyncio.sleep(99)
        return "never"

    with pytest.raises(FailedTimeout) as caught:
        async with up.slot():
            await asyncio.sleep(1.0)
            async with other.slot() as inner:
                seen.append(inner.deadline.remaining())
            seen.append(await ask())
            seen.append(await hang())  # its limit is that of the block, which is told to end

    assert seen == [4.0, 4.0]
    assert (caught.value.operation, took()) == ("slot", 5.0)
    assert AMBIENT.get() is None


@pytest.mark.virtual_time
async def test_a_task_that_outlives_the_block_it_was_started_in_keeps_its_deadline(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async def later() -> float:
        await asyncio.sleep(1.0)
        return Deadline.current().remaining()

    async with up.slot():
        task = asyncio.create_task(later())  # as one that an operation's function started

    assert await task == 4.0


@pytest.mark.virtual_time
async def test_a_slot_in_an_operation_inherits_its_limit_and_ends_with_it(gate: Gateway, took: Any) -> None:
    up, other = gate.upstream("world", policy=ONE_PLACE), gate.upstream("other", policy=QUIET)

    @up.operation
    async def ask() -> None:
        async with other.slot() as slot:
            assert slot.deadline.remaining() == 5.0
            await asyncio.sleep(99)

    error = await ended(ask())

    assert took() == 5.0
    assert (type(error), error.waited_for) == (FailedTimeout, "attempt")
    assert counted(other) == {"asked": 1, "attempts": 1, "cancelled": 1}  # from above
    assert up.snapshot().breaker.failures == other.snapshot().breaker.failures == 1  # a hang all the same


@pytest.mark.virtual_time
@pytest.mark.parametrize("sooner", ["inner", "outer"])
async def test_of_two_slots_the_sooner_limit_ends_its_own_block(gate: Gateway, took: Any, sooner: str) -> None:
    up = gate.upstream("world", policy=QUIET)
    short, long = TimeoutPolicy(attempt=1.0), TimeoutPolicy(attempt=3.0)
    ends = []

    with pytest.raises(FailedTimeout) as caught:
        async with up.slot("outer", timeout=long if sooner == "inner" else short):
            try:
                async with up.slot("inner", timeout=short if sooner == "inner" else long):
                    await asyncio.sleep(99)
            except FailedTimeout as error:
                ends.append((error.operation, error.waited_for, took()))
            await asyncio.sleep(99)

    assert ends == ([("inner", "attempt", 1.0)] if sooner == "inner" else [])
    assert (caught.value.operation, caught.value.waited_for) == ("outer", "attempt")
    assert took() == (3.0 if sooner == "inner" else 1.0)


@pytest.mark.virtual_time
@pytest.mark.parametrize("where", ["around", "inside"])
async def test_a_timeout_of_asyncios_ends_what_it_is_around(gate: Gateway, took: Any, where: str) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    if where == "around":
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1.0), up.slot():
                await asyncio.sleep(99)
    else:
        with pytest.raises(TimeoutError) as caught:
            async with up.slot(), asyncio.timeout(1.0):
                await asyncio.sleep(99)

    assert type(caught.value) is TimeoutError
    assert took() == 1.0
    assert counted(up) == {"asked": 1, "attempts": 1, "cancelled" if where == "around" else "failed": 1}
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_the_limit_of_a_block_passes_through_timeouts_and_groups_in_it(gate: Gateway, took: Any) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    inner = []

    async def part() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            inner.append(took())

    with pytest.raises(FailedTimeout) as caught:
        async with up.slot(), asyncio.timeout(50), asyncio.TaskGroup() as group:
            group.create_task(part())
            group.create_task(part())

    assert caught.value.waited_for == "attempt"
    assert inner == [5.0] * 2
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_group_of_tasks_that_fails_in_a_block_fails_it(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async def part() -> None:
        raise Boom

    with pytest.raises(ExceptionGroup) as caught:
        async with up.slot(), asyncio.TaskGroup() as group:
            group.create_task(part())
            await asyncio.sleep(99)  # before 3.13, a group that is told only at its end leaves its task cancelled

    assert caught.group_contains(Boom)
    assert counted(up) == {"asked": 1, "attempts": 1, "failed": 1}


# -- cancelled, thrown away, closed under


TURNS = 14


async def a_life(up: Upstream, trace: list[str]) -> None:
    """Queue, block, a call in the block, a slot in the slot: in turns of the loop only."""
    async with up.slot():
        trace.append("in")
        await steps(2)
        async with up.slot("inner"):
            await steps(2)
        await steps(1)
    trace.append("out")
    await steps(1)


async def queued_life(gate: Gateway, trace: list[str]) -> tuple[Upstream, asyncio.Task[Any]]:
    policy = Policy(bulkhead=BulkheadPolicy(limit=2, queue=9, max_wait=5.0), breaker=BreakerPolicy(min_calls=50))
    up = gate.upstream("world", policy=policy)

    async def hold(turns: int) -> None:
        async with up.slot("holding"):
            await steps(turns)

    holding = [asyncio.ensure_future(hold(turns)) for turns in (2, 3)]
    await steps(1)
    life = asyncio.ensure_future(a_life(up, trace))
    life.add_done_callback(lambda _: [task.cancel() for task in holding])
    return up, life


@pytest.mark.virtual_time
async def test_a_life_uncancelled_goes_through_everything(gate: Gateway) -> None:
    trace: list[str] = []
    up, life = await queued_life(gate, trace)

    await steps(1)
    waiting = up.bulkhead.waiting
    await life

    assert waiting == 1
    assert trace == ["in", "out"]
    assert counted(up)["live"] == 4


@pytest.mark.virtual_time
@pytest.mark.parametrize("cancels", [1, 2])
@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_block_cancelled_after_any_number_of_turns_leaves_nothing(
    gate: Gateway, turns: int, cancels: int
) -> None:
    trace: list[str] = []
    up, life = await queued_life(gate, trace)

    await steps(turns)
    was_done = life.done()
    for _ in range(cancels):
        life.cancel()
    await asyncio.wait({life})
    await steps(5)

    assert life.cancelled() != was_done
    assert up.snapshot().breaker.failures == 0
    mine = up.snapshot().operations.get("slot")
    assert mine is None or "out" in trace or mine.counts.cancelled == mine.counts.asked == 1
    assert turns < TURNS - 1 or was_done
    assert_all_gone(gate)


@pytest.mark.virtual_time
@pytest.mark.parametrize("first", ["grant", "cancel"])
async def test_granted_and_cancelled_in_one_tick_passes_the_place_on(gate: Gateway, first: str) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    await gate.open()
    up.bulkhead.acquire_nowait()
    one, two = (asyncio.ensure_future(held(up, 0.0)) for _ in range(2))
    await steps(1)

    if first == "grant":
        up.bulkhead.release()
        one.cancel()
    else:
        one.cancel()
        up.bulkhead.release()
    await asyncio.wait({one, two})

    assert one.cancelled()
    assert isinstance(two.result(), Slot)
    assert counted(up) == {"asked": 2, "cancelled": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_cancel_that_is_pending_ends_a_slot_before_its_block(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    trace: list[str] = []

    async def caller() -> None:
        asyncio.current_task().cancel()
        await a_life(up, trace)

    task = asyncio.ensure_future(caller())
    await asyncio.wait({task})

    assert task.cancelled()
    assert not trace
    assert counted(up) == {"asked": 1, "cancelled": 1}


@pytest.mark.virtual_time
async def test_whoever_leaves_is_no_evidence_whatever_the_block_makes_of_it(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    errors: list[BaseException] = []

    async def caller() -> None:
        try:
            async with up.slot():
                try:
                    await asyncio.sleep(99)
                except asyncio.CancelledError:
                    timeout = FailedTimeout("closed under us")
                    timeout.waited_for = "attempt"  # as if it were the limit's
                    raise timeout from None
        except BaseException as error:
            errors.append(error)
            assert asyncio.current_task().uncancel() == 0

    task = asyncio.ensure_future(caller())
    await steps(1)
    task.cancel()
    await task

    assert [str(error) for error in errors] == ["closed under us"]
    assert [frame.name for frame in traceback.extract_tb(errors[0].__traceback__)] == ["caller"]
    assert counted(up) == {"asked": 1, "attempts": 1, "cancelled": 1}
    assert up.snapshot().breaker.calls == 0


@pytest.mark.virtual_time
async def test_a_cancelled_probe_gives_its_leave_back(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=5, probes=1, open_for=1.0)))
    await fail_until_open(up)
    await asyncio.sleep(1.1)

    probe = asyncio.ensure_future(held(up, 9.0))
    await steps(1)
    second = await ended(held(up, 0.0))
    await gone(probe)
    await held(up, 0.0)

    assert isinstance(second, CircuitOpen)
    assert up.snapshot().breaker.state == "closed"


@pytest.mark.virtual_time
@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its context", "elsewhere"])
@pytest.mark.parametrize("suspensions", range(1, 9))
async def test_a_block_that_is_thrown_away_at_any_await_leaves_nothing(
    gate: Gateway, suspensions: int, elsewhere: bool
) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    holding = asyncio.ensure_future(held(up, 0.0))
    await steps(1)

    async def life() -> None:
        with Deadline.after(4.0):
            async with up.slot():
                await steps(8)

    coroutine = life()
    ambient: list[object] = []

    async def some() -> None:
        for _ in range(suspensions):
            awaited = coroutine.send(None)
            if awaited is None:
                await asyncio.sleep(0)
            else:
                awaited._asyncio_future_blocking = False
                await asyncio.wait({awaited})
        if not elsewhere:
            coroutine.close()
            ambient.append(AMBIENT.get())

    await asyncio.get_running_loop().create_task(some(), context=contextvars.copy_context())
    coroutine.close()
    await holding

    assert ambient == ([] if elsewhere else [None])
    assert up.snapshot().operations["slot"].counts.cancelled == 1
    assert up.snapshot().breaker.failures == 0


@pytest.mark.virtual_time
async def test_a_slot_that_is_never_left_gives_its_place_back_when_it_is_thrown_away(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    slot = up.slot()
    await slot.__aenter__()
    in_use = up.bulkhead.in_use
    del slot

    assert (in_use, up.bulkhead.in_use) == (1, 0)
    assert AMBIENT.get() is None
    assert counted(up) == {"asked": 1, "attempts": 1, "cancelled": 1}


@pytest.mark.virtual_time
async def test_a_generator_that_nobody_finishes_gives_its_place_back_and_limits_nobody(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async def rows() -> AsyncIterator[int]:
        async with up.slot():
            yield 1
            yield 2

    left = []
    for seconds in (7.0, None):
        if seconds is None:
            async for _ in rows():
                break
        else:
            with Deadline.after(seconds):
                async for _ in rows():
                    break
                await steps(3)  # the loop closes it, in a task of its own
                left.append(Deadline.current().remaining())
    await steps(3)

    assert up.bulkhead.in_use == 0
    assert left == [7.0]
    assert Deadline.current() is None
    await asyncio.sleep(6.0)
    assert isinstance(await held(up, 1.0), Slot)  # what lies around of the old limit does no harm
    assert counted(up) == {"asked": 3, "attempts": 3, "live": 1, "cancelled": 2}
    AMBIENT.set(None)


@pytest.mark.virtual_time
async def test_a_generator_that_is_finished_or_closed_in_time_is_an_ordinary_block(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    async def rows() -> AsyncIterator[int]:
        async with up.slot():
            yield 1
            yield 2

    assert [row async for row in rows()] == [1, 2]
    some = rows()
    assert await anext(some) == 1
    await some.aclose()

    assert AMBIENT.get() is None
    assert counted(up) == {"asked": 2, "attempts": 2, "live": 1, "cancelled": 1}


@pytest.mark.virtual_time
async def test_generators_that_finish_out_of_turn_limit_nobody_afterwards(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    async def rows(name: str, number: int) -> AsyncIterator[int]:
        async with up.slot(name):
            for row in range(number):
                yield row

    first, second = rows("first", 1), rows("second", 2)
    with Deadline.after(60.0):
        assert [await anext(first), await anext(second)] == [0, 0]
        assert [row async for row in first] == []
        assert [row async for row in second] == [1]
        left = Deadline.current().remaining()

    assert left == 60.0
    assert counted(up) == {"asked": 2, "attempts": 2, "live": 2}


@pytest.mark.virtual_time
async def test_closing_the_gateway_lets_blocks_finish_and_then_cancels_them(gate: Gateway, took: Any) -> None:
    up = gate.upstream("world", policy=Policy(timeout=TimeoutPolicy(call=60.0, attempt=60.0)))
    short, long = asyncio.ensure_future(held(up, 3.0)), asyncio.ensure_future(held(up, 30.0))
    calls = []

    async def calling() -> None:
        async with up.slot():
            await asyncio.sleep(1.0)
            calls.append(await held(up, 0.0))  # needed to finish, and so let in

    third = asyncio.ensure_future(calling())
    await steps(1)
    await gate.close(drain_for=5.0)

    assert took() == 5.0
    assert isinstance(short.result(), Slot)
    assert third.result() is None
    assert long.cancelled()
    assert len(calls) == 1
    assert counted(up) == {"asked": 4, "attempts": 4, "live": 3, "cancelled": 1}


def test_a_loop_that_is_closed_under_a_block_does_no_harm() -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=ONE_PLACE)
    loop = VirtualTimeLoop()
    tasks = []

    async def begin() -> None:
        tasks.extend([asyncio.ensure_future(held(up, 9.0)) for _ in range(2)])
        await steps(2)

    loop.run_until_complete(begin())
    for task in tasks:
        task._log_destroy_pending = False
    loop.close()
    waited = asyncio.run(held(up, 0.0)).waited
    coroutines = [task.get_coro() for task in tasks]
    for coroutine in coroutines:
        with suppress(RuntimeError):  # a waiter of the closed loop
            coroutine.close()

    assert waited == 0.0
    assert counted(up) == {"asked": 3, "attempts": 2, "live": 1, "cancelled": 2}
    assert_all_gone(gate)


@pytest.mark.virtual_time
async def test_tuning_while_blocks_run_and_wait(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    blocks = [asyncio.ensure_future(held(up, 1.0)) for _ in range(4)]
    await steps(1)

    up.tune(bulkhead=BulkheadPolicy(limit=3), timeout=TimeoutPolicy(call=20.0, attempt=0.5))
    await steps(2)
    in_use = up.bulkhead.in_use
    ends = await asyncio.gather(*blocks, return_exceptions=True)

    assert in_use == 3
    assert [type(end) for end in ends] == [Slot, FailedTimeout, FailedTimeout, FailedTimeout]  # the new limit
    assert counted(up) == {"asked": 4, "attempts": 4, "live": 1, "failed": 3}


def test_it_lives_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    gate = Gateway()
    up = gate.upstream("world", policy=Policy(bulkhead=BulkheadPolicy(limit=1)))

    async def main() -> list[Any]:
        async with gate:
            short = TimeoutPolicy(attempt=0.01)
            one, two = await asyncio.gather(held(up, 0.01), held(up, 0.0))

            async def late() -> None:
                async with up.slot("late", timeout=short):
                    await asyncio.sleep(9)

            return [one.waited, two.waited > 0.005, type(await ended(late()))]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [0.0, True, FailedTimeout]
    assert_all_gone(gate)


# -- what a slot is not for


@pytest.mark.virtual_time
async def test_a_slot_is_entered_once(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    slot, rejected = up.slot(), up.slot()

    async with slot:
        with pytest.raises(RuntimeError, match="entered once"):
            await slot.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await slot.__aenter__()
    up.isolate()
    with pytest.raises(CircuitOpen):
        await rejected.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await rejected.__aenter__()

    assert counted(up) == {"asked": 2, "attempts": 1, "live": 1, "rejected": 1}


@pytest.mark.virtual_time
async def test_a_slot_is_left_once_after_it_was_entered(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    slot, fresh = up.slot(), up.slot()

    with pytest.raises(RuntimeError, match="left once"):
        await fresh.__aexit__(None, None, None)
    async with slot:
        pass
    with pytest.raises(RuntimeError, match="left once"):
        await slot.__aexit__(None, None, None)

    assert counted(up) == {"asked": 1, "attempts": 1, "live": 1}


@pytest.mark.virtual_time
async def test_a_slot_that_is_left_while_it_is_entered_is_misused_and_keeps_its_place_in_the_queue(
    gate: Gateway,
) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    holding = asyncio.ensure_future(held(up, 1.0))
    await steps(1)
    slot = up.slot()

    async def enter_and_leave() -> None:
        async with slot:
            pass

    entering = asyncio.ensure_future(enter_and_leave())
    await steps(1)
    with pytest.raises(RuntimeError, match="left once"):
        await slot.__aexit__(None, None, None)
    await asyncio.gather(holding, entering)

    assert slot.waited == 1.0


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [None, Boom()], ids=["well", "badly"])
async def test_a_slot_left_by_another_task_is_an_error_and_gives_its_place_back(gate: Gateway, error: Any) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    slot = up.slot()

    async def enter() -> None:
        await slot.__aenter__()
        await asyncio.sleep(9.0)
        assert Deadline.current() is None  # the old limit lies around, and limits nobody

    entering = asyncio.ensure_future(enter())
    await steps(1)
    with pytest.raises(RuntimeError, match="the task that entered it") as caught:
        await slot.__aexit__(error and type(error), error, None)
    in_use = up.bulkhead.in_use, up.timers
    del caught  # the place was free while there was an error, and a traceback
    await entering

    assert in_use == (0, 0)
    assert counted(up) == {"asked": 1, "attempts": 1, "cancelled": 1}


@pytest.mark.virtual_time
async def test_a_slot_left_by_another_task_after_its_limit_takes_the_cancel_back(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    slot = up.slot()
    cancelling = []

    async def enter() -> None:
        await slot.__aenter__()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(9.0)
        cancelling.append(asyncio.current_task().cancelling())
        await asyncio.sleep(1.0)
        cancelling.append(asyncio.current_task().cancelling())

    entering = asyncio.ensure_future(enter())
    await asyncio.sleep(5.5)
    with suppress(RuntimeError):
        await slot.__aexit__(None, None, None)
    await entering

    assert cancelling == [1, 0]


@pytest.mark.virtual_time
async def test_a_block_has_no_fallback_and_is_nobodys(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    up.slot()

    with pytest.raises(ConfigError, match="stand in for a block"):
        up["slot"].fallback(Static(1))
    with pytest.raises(TypeError, match="block"):
        await up["slot"]()

    assert not counted(up)


@pytest.mark.virtual_time
async def test_as_an_alternate_a_block_is_the_alternates_failure(gate: Gateway) -> None:
    up, other = gate.upstream("world", policy=QUIET), gate.upstream("other", policy=QUIET)
    other.slot()

    @up.operation(idempotent=True, fallback=[Alternate(other["slot"]), Static("s")])
    async def ask() -> str:
        raise Boom

    assert await ask() == "s"
    assert not counted(other)


@pytest.mark.virtual_time
async def test_nothing_is_said_of_idempotence(gate: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    up = gate.upstream("world")

    with caplog.at_level(logging.DEBUG, "gateway"):
        await held(up, 0.0)

    assert up["slot"].idempotent is None
    assert not caplog.records


# -- names


@pytest.mark.virtual_time
async def test_slots_of_one_name_share_their_numbers_and_say_the_same(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    said: dict[str, Any] = {"refused": (KeyError,), "timeout": TimeoutPolicy(attempt=1.0)}

    for _ in range(2):
        async with up.slot("report", **said):
            pass
        async with up.slot("report", refused=[KeyError], timeout=TimeoutPolicy(attempt=1.0)):
            pass
    for other in (
        {},
        {**said, "refused": ()},
        {**said, "timeout": None},
        {**said, "timeout": TimeoutPolicy(attempt=2.0)},
    ):
        with pytest.raises(ConfigError, match="another timeout"):
            up.slot("report", **other)

    assert up.snapshot().operations["report"].counts.live == 4


def test_a_list_that_changes_is_not_what_was_said() -> None:
    up = Gateway().upstream("world")
    refused: list[type[BaseException]] = [KeyError]
    up.slot("report", refused=refused)

    refused.append(ValueError)

    with pytest.raises(ConfigError):
        up.slot("report", refused=refused)


def test_a_limit_that_somebody_gave_is_not_the_default_of_the_same_length() -> None:
    up = Gateway().upstream("world")
    up.slot("given", timeout=TimeoutPolicy(attempt=10.0))
    up.slot("empty", timeout=TimeoutPolicy())

    with pytest.raises(ConfigError):
        up.slot("given", timeout=TimeoutPolicy())
    assert isinstance(up.slot("empty"), Slot)


def test_slots_and_operations_do_not_take_each_others_names() -> None:
    up = Gateway().upstream("world")
    up.operation(name="ask")(steps)
    up.slot()

    with pytest.raises(ConfigError) as caught:
        up.slot("ask")
    with pytest.raises(ConfigError):
        up.operation(name="slot")(steps)

    assert (caught.value.field, caught.value.remedy) == ("world.slot('ask')", 'give another: slot("...")')
    assert "slot" in up
    assert [operation.name for operation in up] == ["ask", "slot"]


def test_names_are_few() -> None:
    up = Gateway().upstream("world")
    for number in range(MOST_NAMES):
        up.slot(f"block {number}")

    with pytest.raises(ConfigError, match="not which one"):
        up.slot("one more")

    assert isinstance(up.slot("block 0"), Slot)
    assert len(list(up)) == MOST_NAMES


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (5, {}),
        ("", {}),
        ([], {}),
        ("a", {"refused": KeyError}),
        ("a", {"refused": (5,)}),
        ("a", {"refused": 5}),
        ("a", {"timeout": 5.0}),
        ("a", {"timeout": TimeoutPolicy(attempt=30.0)}),
    ],
)
def test_what_cannot_be_said_of_a_slot(name: Any, said: Any) -> None:
    up = Gateway().upstream("world", policy=Policy(timeout=TimeoutPolicy(call=20.0)))

    with pytest.raises(ConfigError):
        up.slot(name, **said)

    assert not list(up)


# -- faults


@pytest.mark.virtual_time
async def test_faults_of_a_slot_come_on_entering(gate: Gateway, took: Any) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    up.slot()

    with Faults(up["slot"]).error(Boom).hang().delay(1.0):
        failed, late, well = [await ended(held(up, 0.0)) for _ in range(3)]

    assert (type(failed), type(failed.__cause__)) == (Failed, Boom)
    assert (type(late), late.waited_for) == (FailedTimeout, "attempt")
    assert well.waited == 1.0
    assert took() == 6.0


@pytest.mark.virtual_time
async def test_what_stands_in_for_the_block_is_found_out(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    up.slot()
    real: Callable[..., Coroutine[Any, Any, Any]]

    async def dawdle(block: object) -> None:
        await real(block)
        await asyncio.sleep(1.0)

    with Faults(up["slot"]).value(1), pytest.raises(RuntimeError, match="without its block"):
        await held(up, 0.0)
    real = up["slot"].swap_sender(dawdle)
    with pytest.raises(RuntimeError, match="did not end with its block") as caught:
        await held(up, 0.0)

    assert up.bulkhead.in_use == 0
    del caught  # the place was free while there was an error, and a traceback


# -- memory


class Held:
    """Something large, for example."""


@pytest.mark.virtual_time
@pytest.mark.parametrize("way", ["well", "failed", "refused", "rejected"])
async def test_what_a_block_held_is_free_as_soon_as_it_is_over(gate: Gateway, way: str) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)
    if way == "rejected":
        up.isolate()

    async def block(what: Held) -> None:
        slot = up.slot()
        async with slot:
            if way != "well":
                raise Refused if way == "refused" else Boom

    what = Held()
    alive = weakref.ref(what)
    gc.collect()
    gc.disable()
    try:
        with suppress(Exception):
            await block(what)
        del what
        free = alive() is None
    finally:
        gc.enable()
        up.restore()

    assert free


@pytest.mark.virtual_time
async def test_the_traceback_of_a_timeout_does_not_lead_to_the_task_that_may_end_in_it(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    error = await ended(held(up, 99))

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "/gateway/" in frame.f_code.co_filename]
    assert len(frames) == 2
    assert not any(isinstance(value, Timer) for frame in frames for value in frame.f_locals.values())


@pytest.mark.virtual_time
async def test_blocks_leave_no_memory(gate: Gateway) -> None:
    up = gate.upstream("world", policy=ONE_PLACE)

    def ours() -> int:
        gc.collect()
        names = {"Call", "Failed", "FailedTimeout", "Slot", "Timer", "coroutine", "generator"}
        return sum(type(thing).__name__ in names for thing in gc.get_objects())

    async def some() -> None:
        await held(up, 0.0)
        await raised_in(up, Boom())
        with Deadline.after(0.1):
            await ended(held(up, 9.0))

    await some()
    before = ours()
    for _ in range(100):
        await some()

    assert ours() < before + 400  # the loop keeps up to a hundred timers that were cancelled, with what they hold


# -- who asks, and which circuit


WHO: ContextVar[str] = ContextVar("who")


@pytest.mark.virtual_time
async def test_the_blocks_of_one_caller_alone_open_no_circuit(gate: Gateway) -> None:
    policy = replace(QUIET, breaker=BreakerPolicy(min_calls=4, min_callers=2))
    up = gate.upstream("world", policy=policy)

    async def fail(who: str) -> object:
        WHO.set(who)
        try:
            async with up.slot(caller=WHO):
                raise Boom
        except Exception as error:
            return error

    alone = [await fail("mallory") for _ in range(50)]
    others = [await fail(who) for who in ("ada", "bob", "ada", "bob", "ada")]

    assert {type(error) for error in alone} == {Boom}
    assert [type(error) for error in others] == [Boom] * 4 + [CircuitOpen]


@pytest.mark.virtual_time
@pytest.mark.parametrize("by", ["operation", WHO], ids=["operation", "variable"])
async def test_blocks_may_have_a_circuit_of_their_own(gate: Gateway, by) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=2)))
    WHO.set("report")
    for _ in range(2):
        with suppress(Boom):
            async with up.slot("report", circuit_by=by):
                raise Boom

    with pytest.raises(CircuitOpen):
        await up.slot("report", circuit_by=by).__aenter__()

    assert {key: one.state for key, one in up.snapshot().circuits.items()} == {"report": "open"}
    async with up.slot("other"):
        pass


@pytest.mark.virtual_time
async def test_a_block_that_names_nobody_is_nobodys_where_callers_are_told_apart(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=2, min_callers=2)))

    for _ in range(5):
        with suppress(Boom):
            async with up.slot():
                raise Boom

    assert up.breaker.snapshot().state == "closed"
    up.tune(timeout=TimeoutPolicy(call=3.0))  # is checked with the blocks there are


@pytest.mark.parametrize(
    ("knob", "value"), [("caller", print), ("caller", "ada"), ("circuit_by", print), ("circuit_by", "ada")]
)
def test_a_block_is_named_by_context_variables(knob: str, value: object) -> None:
    up = Gateway().upstream("world")

    with pytest.raises(ConfigError, match=rf"world\.slot\('slot'\) {knob}: .* does not fit; .*a ContextVar"):
        up.slot(**{knob: value})

    assert list(up) == []


@pytest.mark.virtual_time
async def test_blocks_of_one_name_say_the_same_of_callers_and_circuits(gate: Gateway) -> None:
    up = gate.upstream("world")
    up.slot("report", caller=WHO)

    with pytest.raises(ConfigError, match="say the same each time"):
        up.slot("report")
