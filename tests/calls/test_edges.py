"""The edges: interrupts, clocks that jump, functions at war with their cancellation, odd surroundings."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tenacity import wait_fixed

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Deadline,
    FailedTimeout,
    Gateway,
    LastGood,
    RetryPolicy,
    Static,
    TimeoutPolicy,
)
from gateway.context import AMBIENT
from gateway.testing import Faults, VirtualTimeLoop, assert_nothing_left
from tests.support import QUIET, Boom, assert_all_gone, counted, ended, gone, now, steps

# -- interrupts


@pytest.mark.virtual_time
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_interrupt_passes_untouched_and_is_no_evidence(gate: Gateway, kind) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1)))
    interrupt = kind("now")

    @up.operation(idempotent=True, fallback=[Static("never asked")])
    async def ask() -> None:
        raise interrupt

    with pytest.raises(kind) as caught:
        await ask()

    assert caught.value is interrupt
    assert caught.value.__cause__ is None
    assert not hasattr(caught.value, "__notes__")
    assert up.snapshot().breaker.calls == 0
    assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}


def test_an_interrupt_ends_the_program_that_is_inside_a_call() -> None:
    gate = Gateway()

    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(ask())

    assert_nothing_left(gate)


@pytest.mark.virtual_time
async def test_an_interrupt_in_a_tier_passes_untouched(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    @ask.fallback
    async def plan_b(error: Exception) -> None:
        raise SystemExit(3)

    ask.fallback(Static("never asked"))

    with pytest.raises(SystemExit):
        await ask()

    assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_call_in_an_async_generator_that_is_not_read_to_its_end(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> int:
        await asyncio.sleep(0.1)
        return 1

    async def stream() -> AsyncIterator[int]:
        for _ in range(3):
            yield await ask()

    reading = stream()
    first = await anext(reading)
    await reading.aclose()

    assert first == 1
    assert counted(gate["world"]) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_coroutine_that_is_never_awaited_was_never_asked(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> int:
        return 1

    ask.ask().close()
    ask().close()

    assert counted(gate["world"]) == {}


# -- clocks


@pytest.mark.virtual_time
@pytest.mark.parametrize("hours", [1, -1])
async def test_a_wall_clock_that_jumps_changes_nothing(gate: Gateway, monkeypatch, hours: int) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1, open_for=5.0)))

    @up.operation(idempotent=True, fallback=[LastGood(max_age=60.0)])
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    await ask(0.0)
    call = asyncio.ensure_future(ask(2.0))
    await asyncio.sleep(1.0)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    with Faults(ask).error(Boom):
        answer = await ask.ask(0.0)
    state = up.snapshot().breaker

    assert await call == 2.0
    assert (answer.source, answer.age) == ("last_good", pytest.approx(1.0))
    assert state.state == "open"
    assert state.open_until == pytest.approx(now() - 1.0 + 5.0)


@pytest.mark.virtual_time
async def test_a_loop_clock_that_jumps_an_hour_ends_all_that_was_due_once(gate: Gateway) -> None:
    policy = replace(
        QUIET, bulkhead=BulkheadPolicy(limit=50, queue=50, max_wait=9.0), breaker=BreakerPolicy(min_calls=200)
    )
    up = gate.upstream("world", policy=policy)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    cancelled = []

    @up.operation(idempotent=True)
    async def ask() -> None:
        try:
            await asyncio.sleep(5000)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    calls = [asyncio.ensure_future(ended(ask())) for _ in range(100)]
    await steps(2)
    loop.advance(3600.0)
    began = now()
    ends = await asyncio.gather(*calls)

    assert now() == began
    assert [type(end).__name__ for end in ends] == ["FailedTimeout"] * 50 + ["BulkheadFull"] * 50
    assert len(cancelled) == 50
    assert counted(up) == {"asked": 100, "failed": 50, "rejected": 50, "attempts": 50}
    assert up.snapshot().breaker.failures == 50


@pytest.mark.virtual_time
async def test_a_loop_clock_that_jumps_in_the_pause_leaves_no_time_for_another_try(gate: Gateway) -> None:
    policy = replace(QUIET, retry=RetryPolicy(attempts=2, wait=wait_fixed(1.0)))
    up = gate.upstream("world", policy=policy)
    tries = []

    @up.operation(idempotent=True)
    async def ask() -> None:
        tries.append(1)
        raise Boom

    call = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(0.5)
    asyncio.get_running_loop().advance(3600.0)
    error = await call

    assert len(tries) == 1
    assert isinstance(error.__cause__, Boom)
    assert "DeadlineExceeded" in error.__notes__[0]


@pytest.mark.virtual_time
async def test_a_loop_clock_that_jumps_while_a_tier_works_ends_the_tier(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    @ask.fallback
    async def plan_b(error: Exception) -> None:
        asyncio.get_running_loop().advance(3600.0)
        await asyncio.sleep(1.0)

    ask.fallback(Static("s"))

    assert await ask() == "s"


@pytest.mark.virtual_time
async def test_a_circuit_that_nobody_looked_at_for_an_hour_asks_with_its_probes(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=2, probes=2)))

    @up.operation(idempotent=True)
    async def ask() -> None: ...

    with Faults(ask).error(Boom).error(Boom):
        await ended(ask())
        await ended(ask())
    opened = up.snapshot().breaker.state
    asyncio.get_running_loop().advance(3600.0)
    await ask()
    await ask()

    assert opened == "open"
    assert (up.snapshot().breaker.state, up.snapshot().breaker.calls) == ("closed", 0)


@pytest.mark.virtual_time
async def test_stale_failures_do_not_open_a_circuit_after_idling(gate: Gateway) -> None:  # peers, row 13
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=3, window_for=10.0)))

    @up.operation(idempotent=True)
    async def ask() -> None: ...

    with Faults(ask).error(Boom).error(Boom):
        await ended(ask())
        await ended(ask())
    await asyncio.sleep(11.0)
    with Faults(ask).error(Boom):
        await ended(ask())

    assert (up.snapshot().breaker.state, up.snapshot().breaker.calls) == ("closed", 1)


# -- where it is called


@pytest.mark.virtual_time
async def test_outside_of_a_task_it_says_that_it_needs_one(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> int:
        return 1

    loop = asyncio.get_running_loop()
    failed: asyncio.Future[str] = loop.create_future()

    def callback() -> None:
        try:
            ask().send(None)
        except RuntimeError as error:
            failed.set_result(str(error))

    loop.call_soon(callback)

    assert "task" in await failed
    assert counted(gate["world"]) == {}


def test_without_a_loop_it_is_pythons_own_error(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> int:
        return 1

    call = ask()
    with pytest.raises(RuntimeError, match="loop"):
        call.send(None)

    assert counted(gate["world"]) == {}


@pytest.mark.virtual_time
async def test_in_task_groups_and_eager_tasks(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        if seconds == 0.5:
            raise Boom
        return seconds

    factory = getattr(asyncio, "eager_task_factory", None)
    asyncio.get_running_loop().set_task_factory(factory)
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            well = group.create_task(ask(0.1))
            for seconds in (0.5, 9.0, 9.0):
                group.create_task(ask(seconds))
    asyncio.get_running_loop().set_task_factory(None)

    assert well.result() == 0.1
    assert counted(gate["world"]) == {"asked": 4, "live": 1, "failed": 1, "cancelled": 2, "attempts": 4}


@pytest.mark.virtual_time
async def test_a_task_group_inside_a_function_ends_with_the_try(gate: Gateway) -> None:
    policy = replace(QUIET, timeout=TimeoutPolicy(call=5.0, attempt=1.0))
    cancelled = []

    async def part() -> None:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    @gate.upstream("world", policy=policy).operation(idempotent=True)
    async def ask() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
            group.create_task(part())

    error = await ended(ask())

    assert type(error) is FailedTimeout
    assert cancelled == [1, 1]
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_timeout_inside_a_function_is_the_functions_own(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, timeout=TimeoutPolicy(call=5.0, attempt=1.0)))

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(99)
        except TimeoutError:
            return "its own"
        return "never"

    own = await ask(0.5)
    ours = await ended(ask(2.0))
    together = await ended(ask(1.0))

    assert own == "its own"
    assert type(ours) is FailedTimeout
    assert together == "its own" or type(together) is FailedTimeout
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_call_behind_a_shield_goes_on_when_its_caller_leaves(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> str:
        await asyncio.sleep(1.0)
        return "live"

    inner = asyncio.ensure_future(ask())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(inner), 0.5)

    assert await inner == "live"
    assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_task_that_outlives_its_call_keeps_its_deadline_and_harms_nobody(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, timeout=TimeoutPolicy(call=2.0, attempt=1.0)))
    background: list[asyncio.Task[Any]] = []

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def later() -> object:
        await asyncio.sleep(1.5)
        return await ended(ask(0.0))

    @up.operation(idempotent=True)
    async def spawns() -> str:
        background.append(asyncio.ensure_future(later()))
        return "done"

    assert await spawns() == "done"
    assert type(await background[0]).__name__ == "DeadlineExceeded"
    assert await ask(0.5) == 0.5


@pytest.mark.virtual_time
async def test_each_task_has_its_own_ambient_facts(gate: Gateway) -> None:
    seen = {}

    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask(name: str) -> None:
        await asyncio.sleep(0.01)
        seen[name] = Deadline.current().remaining()

    async def caller(name: str, seconds: float) -> None:
        with Deadline.after(seconds):
            await ask(name)

    await asyncio.gather(caller("near", 0.5), caller("far", 5.0), ask("none"))

    assert seen == {"near": pytest.approx(0.49), "far": pytest.approx(4.99), "none": pytest.approx(9.99)}
    assert AMBIENT.get() is None


@pytest.mark.virtual_time
async def test_a_function_that_changes_its_context_changes_its_callers_as_if_it_were_called_bare(gate: Gateway) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    @gate.upstream("world").operation(idempotent=True)
    async def login(name: str) -> None:
        user.set(name)

    await login("ada")

    assert user.get() == "ada"
    assert AMBIENT.get() is None


@pytest.mark.virtual_time
async def test_a_recursion_without_end_is_stopped_by_the_pool(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, bulkhead=BulkheadPolicy(limit=5, queue=0)))

    @up.operation(idempotent=True)
    async def ask(depth: int) -> int:
        return await ask(depth + 1)

    error = await ended(ask(0))

    depth = 0
    while error.__cause__ is not None:
        error, depth = error.__cause__, depth + 1
    assert (type(error).__name__, depth) == ("BulkheadFull", 5)
    assert counted(up) == {"asked": 6, "failed": 5, "rejected": 1, "attempts": 5}


@pytest.mark.virtual_time
async def test_many_upstreams_are_as_protected_as_few(gate: Gateway) -> None:  # demands, row 44
    ups = [
        gate.upstream(f"world {number}", policy=replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=0)))
        for number in range(500)
    ]

    async def hang() -> None:
        await asyncio.sleep(99)

    calls = []
    for up in ups:
        operation = up.operation(name="hang", idempotent=True)(hang)
        calls += [asyncio.ensure_future(ended(operation())) for _ in range(2)]
    await steps(2)
    rejected = sum(call.done() for call in calls)
    await gone(*calls)

    assert rejected == 500


@pytest.mark.virtual_time
async def test_a_million_keys_do_not_fill_the_memory(gate: Gateway) -> None:  # peers, row 7; promise 8
    memory = LastGood(max_entries=100)
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[memory])
    async def ask(number: int) -> int:
        return number

    for number in range(5000):
        await ask(number)

    assert len(memory) == 100
    with Faults(ask).error(Boom).error(Boom):
        assert (await ask.ask(4900)).source == "last_good"
        assert type(await ended(ask(4899))).__name__ == "Failed"


@pytest.mark.virtual_time
async def test_a_listener_and_a_collector_may_come_at_any_time(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        gc.collect()
        await asyncio.sleep(0)

    gc.freeze()  # it is about what the calls make; all that other tests have left takes seconds to look through
    try:
        await asyncio.gather(*(ask() for _ in range(20)))
    finally:
        gc.unfreeze()

    assert_all_gone(gate)


@pytest.mark.asyncio
async def test_two_gateways_on_one_loop_know_nothing_of_each_other() -> None:
    one, two = Gateway(), Gateway()
    first = one.upstream("world").operation(name="ask", idempotent=True)(quick)
    second = two.upstream("world").operation(name="ask", idempotent=True)(quick)

    async with two:
        async with one:
            await first()
        closed, live = await ended(first()), await second()

    assert (type(closed).__name__, live) == ("GatewayClosed", "quick")
    assert_all_gone(one)
    assert_all_gone(two)


async def quick() -> str:
    return "quick"
