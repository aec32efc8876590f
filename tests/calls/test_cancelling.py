"""Cancelled, thrown away or interrupted at any of its awaits, a call leaves nothing behind (promise 2)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tenacity import wait_fixed, wait_none

from gateway import (
    Alternate,
    BreakerPolicy,
    BulkheadPolicy,
    Deadline,
    Failed,
    Gateway,
    LastGood,
    Operation,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
)
from tests.support import Boom, assert_all_gone, counted, ended, gone, now, steps

ENOUGH = 60
"""More turns of the loop than the longest life below takes."""


@dataclass
class Life:
    """A call that goes through everything, in turns of the loop only: queue, try, pause, try, two tiers, a default."""

    gate: Gateway
    ask: Operation[..., Any]
    holding: asyncio.Task[Any]
    evidence: Callable[[], int]

    @staticmethod
    async def begin(*, half_open: bool = False) -> Life:
        gate = Gateway()
        breaker = BreakerPolicy(min_calls=50, window_calls=50, open_for=1.0, probes=5, max_half_open=1e6)
        policy = Policy(
            bulkhead=BulkheadPolicy(limit=1, queue=5, max_wait=5.0),
            retry=RetryPolicy(attempts=2, wait=wait_none()),
            timeout=TimeoutPolicy(call=20.0, attempt=5.0),
            breaker=breaker,
        )
        up, other = gate.upstream("world", policy=policy), gate.upstream("other", policy=policy)
        await gate.open()
        if half_open:
            for _ in range(50):
                up.breaker.admit().failed()
            await asyncio.sleep(1.1)

        @other.operation(idempotent=True)
        async def elsewhere() -> None:
            await steps(2)
            raise Boom

        @up.operation(idempotent=True, fallback=[LastGood()])
        async def ask() -> None:
            await steps(3)
            raise Boom

        @ask.fallback
        async def plan_b(error: Exception) -> None:
            await steps(2)
            raise Boom

        ask.fallback(Alternate(elsewhere))
        ask.fallback(Static("s"))

        @up.operation(idempotent=True)
        async def hold() -> None:
            await steps(3)

        holding = asyncio.ensure_future(hold())
        await steps(1)
        return Life(gate, ask, holding, lambda: up.snapshot().breaker.failures)

    async def end(self) -> None:
        await self.holding
        await steps(3)
        assert_all_gone(self.gate)


@pytest.mark.virtual_time
async def test_uncancelled_it_goes_through_everything() -> None:
    life = await Life.begin()

    answer = await life.ask.ask()
    await life.end()

    assert answer.value == "s"
    world, other = counted(life.gate["world"]), counted(life.gate["other"])
    assert world == {
        "asked": 2, "live": 1, "static": 1, "attempts": 3, "retries": 1, "fallback_failed": 2,
    }  # fmt: skip
    assert other == {"asked": 1, "failed": 1, "attempts": 2, "retries": 1}
    assert life.gate["world"].snapshot().waits.count == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("half_open", [False, True], ids=["closed", "half-open"])
@pytest.mark.parametrize("turns", range(ENOUGH))
async def test_a_call_cancelled_after_any_number_of_turns_leaves_nothing(turns: int, half_open: bool) -> None:
    life = await Life.begin(half_open=half_open)
    call = asyncio.ensure_future(life.ask.ask())

    await steps(turns)
    was_done = call.done()
    call.cancel()
    await asyncio.wait({call})
    await life.end()

    assert call.cancelled() != was_done
    assert was_done or counted(life.gate["world"]).get("cancelled", 0) == (1 if turns else 0)
    assert life.evidence() <= 2


@pytest.mark.virtual_time
async def test_no_cancel_comes_too_late_for_the_test_above() -> None:
    life = await Life.begin()
    call = asyncio.ensure_future(life.ask.ask())

    await steps(ENOUGH - 1)
    done = call.done()
    await call
    await life.end()

    assert done


@pytest.mark.virtual_time
@pytest.mark.parametrize("turns", range(0, ENOUGH, 2))
async def test_twice_cancelled_leaves_nothing_either(turns: int) -> None:
    life = await Life.begin()
    call = asyncio.ensure_future(life.ask.ask())

    await steps(turns)
    call.cancel()
    call.cancel()
    await asyncio.wait({call})
    await life.end()


class Driven:
    """A coroutine driven by hand, one suspension at a time, as a task would."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.done = False

    async def step(self) -> None:
        try:
            awaited = self.call.send(None)
        except StopIteration:
            self.done = True
            return
        if awaited is not None:
            awaited._asyncio_future_blocking = False
            await asyncio.wait({awaited})
        else:
            await asyncio.sleep(0)


@pytest.mark.virtual_time
@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its context", "by the collector"])
@pytest.mark.parametrize("suspensions", range(25))
async def test_a_call_that_is_thrown_away_at_any_await_leaves_nothing(suspensions: int, elsewhere: bool) -> None:
    life = await Life.begin()
    context = contextvars.copy_context()
    driven = Driven(life.ask.ask())

    async def some() -> None:
        for _ in range(suspensions):
            if not driven.done:
                await driven.step()
        if not elsewhere:
            driven.call.close()

    await asyncio.get_running_loop().create_task(some(), context=context)
    driven.call.close()
    await life.end()

    if not driven.done and suspensions:
        assert counted(life.gate["world"])["cancelled"] == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit], ids=["interrupt", "exit"])
@pytest.mark.parametrize("suspensions", range(25))
async def test_an_interrupt_at_any_await_passes_untouched_and_leaves_nothing(suspensions: int, error) -> None:
    life = await Life.begin()
    driven = Driven(life.ask.ask())
    for _ in range(suspensions + 1):
        if not driven.done:
            await driven.step()
    interrupt = error("now")

    if not driven.done:
        with pytest.raises(error) as caught:
            driven.call.throw(interrupt)
        assert caught.value is interrupt
        assert counted(life.gate["world"])["cancelled"] == 1
    await life.end()


@pytest.mark.virtual_time
@pytest.mark.parametrize("tie", [False, True], ids=["between", "on the instant"])
@pytest.mark.parametrize("tenths", range(42))
async def test_a_call_cancelled_at_any_time_leaves_nothing(gate: Gateway, tenths: int, tie: bool) -> None:
    policy = Policy(
        bulkhead=BulkheadPolicy(limit=1, queue=5, max_wait=5.0),
        retry=RetryPolicy(attempts=2, wait=wait_fixed(0.5)),
        timeout=TimeoutPolicy(call=20.0, attempt=1.0),
        breaker=BreakerPolicy(min_calls=50),
    )
    up = gate.upstream("world", policy=policy)

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @ask.fallback(timeout=1.0)
    async def plan_b(error: Exception, seconds: float) -> None:
        await asyncio.sleep(seconds)

    holding = asyncio.ensure_future(ask(0.5))
    await steps(1)
    began = now()
    call = asyncio.ensure_future(ended(ask(99)))  # queues 0.5, tries 1.0, pauses 0.5, tries 1.0, plan B 1.0
    await asyncio.sleep(tenths / 10 + (0.0 if tie else 0.05))
    call.cancel()
    await asyncio.wait({call, holding})

    assert now() - began <= max(0.5, tenths / 10 + 0.05) + 1e-6
    assert tie or call.cancelled() == (tenths < 40)
    failures = (tenths >= 15) + (tenths >= 30)
    assert up.snapshot().breaker.failures in ({failures, failures - 1} if tie else {failures})


@pytest.mark.virtual_time
async def test_a_task_cancelled_before_its_first_step_never_asked(gate: Gateway) -> None:  # hole 9
    up = gate.upstream("world")

    @up.operation(idempotent=True)
    async def ask() -> int:
        return 1

    await ask()
    await gone(asyncio.ensure_future(ask()))

    assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_cancel_that_is_pending_ends_the_call_before_anything_is_sent(gate: Gateway) -> None:
    up = gate.upstream("world")
    sent = []

    @up.operation(idempotent=False)
    async def ask() -> None:
        sent.append(1)

    async def caller() -> None:
        asyncio.current_task().cancel()
        await ask()

    task = asyncio.ensure_future(caller())
    await asyncio.wait({task})

    assert task.cancelled()
    assert not sent
    assert counted(up) == {"asked": 1, "cancelled": 1}


@pytest.mark.virtual_time
async def test_who_was_cancelled_may_still_call_while_cleaning_up(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(timeout=TimeoutPolicy(call=5.0, attempt=1.0)))
    ends = []

    @up.operation(idempotent=True, fallback=[Static("s")])
    async def ask(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "live"

    async def caller() -> None:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            ends.extend([await ask(0.1), await ask(9.0)])
            raise

    task = asyncio.ensure_future(caller())
    await steps(1)
    task.cancel()
    await asyncio.wait({task})

    assert ends == ["live", "s"]
    assert task.cancelled()


@pytest.mark.virtual_time
async def test_a_tiers_own_cancelled_task_is_its_failure_even_in_a_task_that_was_cancelled_before(
    gate: Gateway,
) -> None:
    up = gate.upstream("world", policy=Policy(retry=RetryPolicy(attempts=1)))

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    @ask.fallback
    async def plan_b(error: Exception) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(9))
        inner.cancel()
        await inner

    ask.fallback(Static("s"))
    ends = []

    async def caller() -> None:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            ends.append(await ask())

    task = asyncio.ensure_future(caller())
    await steps(1)
    task.cancel()
    await asyncio.wait({task})

    assert ends == ["s"]


@pytest.mark.virtual_time
async def test_ten_thousand_callers_cancelled_at_once_leave_nothing(gate: Gateway) -> None:
    policy = Policy(bulkhead=BulkheadPolicy(limit=4000, queue=5000, max_wait=10.0))
    up = gate.upstream("world", policy=policy)

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(number: int) -> None:
        with Deadline.after(5.0):
            await asyncio.sleep(99)

    callers = [asyncio.ensure_future(ask(number)) for number in range(10_000)]
    await steps(2)
    in_flight = up.snapshot()
    for caller in callers:
        caller.cancel()
    ends = await asyncio.gather(*callers, return_exceptions=True)

    assert (in_flight.bulkhead.in_use, in_flight.bulkhead.waiting) == (4000, 5000)
    assert sum(isinstance(end, asyncio.CancelledError) for end in ends) == 9000
    assert counted(up) == {"asked": 10_000, "cancelled": 9000, "rejected": 1000, "attempts": 4000}
    assert up.snapshot().breaker.calls == 0
    assert_all_gone(gate)


@contextmanager
def no_collector() -> Iterator[None]:
    """What is gone in here is gone by itself."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["fails", "is cancelled in its pause", "is cancelled in its try"])
@pytest.mark.virtual_time
async def test_a_call_in_a_task_of_its_own_leaves_no_circle(gate: Gateway, how: str) -> None:
    class Argument:
        pass

    policy = Policy(retry=RetryPolicy(attempts=1 if how == "fails" else 2, wait=wait_fixed(1.0)))

    @gate.upstream("up", policy=policy).operation(idempotent=True)
    async def ask(argument: Argument) -> None:
        if how == "is cancelled in its try":
            await asyncio.sleep(60)
        raise Boom

    async def once() -> weakref.ref[Argument]:
        argument = Argument()
        asking = asyncio.create_task(ask.ask(argument))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait([asking])
        return weakref.ref(argument)

    with no_collector():
        left = await once()
        await steps(3)
        assert left() is None


@pytest.mark.virtual_time
async def test_a_try_that_failed_leaves_no_circle_when_the_next_one_succeeds(gate: Gateway) -> None:
    class Argument:
        pass

    tries: list[int] = []

    @gate.upstream("up", policy=Policy(retry=RetryPolicy(attempts=2, wait=wait_none()))).operation(idempotent=True)
    async def ask(argument: Argument) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Boom
        return "well"

    async def once() -> weakref.ref[Argument]:
        argument = Argument()
        assert await ask(argument) == "well"
        return weakref.ref(argument)

    with no_collector():
        left = await once()
        assert left() is None


@pytest.mark.virtual_time
async def test_an_error_that_ends_the_task_of_an_outer_call_leaves_no_circle(gate: Gateway) -> None:
    class Argument:
        pass

    up = gate.upstream("up", policy=Policy(retry=RetryPolicy(attempts=1)))

    @up.operation(idempotent=True)
    async def inner(argument: Argument) -> None:
        raise Boom

    @up.operation(idempotent=True)
    async def outer(argument: Argument) -> BaseException | None:
        asking = asyncio.create_task(inner.ask(argument))  # its own way to the error, and the limit of this try
        await asyncio.wait([asking])
        return asking.exception()

    async def fail_with_what_was_answered(argument: Argument) -> None:
        error = await outer(argument)
        try:
            assert error is not None
            raise error
        finally:
            del error

    async def once() -> weakref.ref[Argument]:
        argument = Argument()
        failing = asyncio.create_task(fail_with_what_was_answered(argument))
        await asyncio.wait([failing])
        assert isinstance(failing.exception(), Failed)
        return weakref.ref(argument)

    with no_collector():
        left = await once()
        await steps(3)
        assert left() is None
