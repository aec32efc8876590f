"""Opening and closing: one loop at a time, a drain that lets calls finish, and opening again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from aiocache import SimpleMemoryCache

from gateway import (
    Alternate,
    BreakerPolicy,
    BulkheadPolicy,
    ConfigError,
    Gateway,
    GatewayClosed,
    LastGood,
    Rejected,
    RetryPolicy,
    Static,
    WrongLoop,
    handler,
)
from gateway.testing import Faults, assert_nothing_left
from tests.support import QUIET, Boom, assert_all_gone, counted, ended, fail_until_open, gone, now, steps

MODULE_LEVEL = Gateway()
SHARED = MODULE_LEVEL.upstream("shared", policy=QUIET)


@SHARED.operation(idempotent=True, fallback=[LastGood()])
async def shared(what: str) -> str:
    await asyncio.sleep(0)
    return what


def sleeping(gate: Gateway, **declared: Any) -> Any:
    """An operation that takes the seconds it is given."""

    @gate.upstream("world", policy=QUIET).operation(idempotent=True, **declared)
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return ask


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


# -- one loop at a time


@pytest.mark.asyncio
@pytest.mark.parametrize("test", [1, 2, 3])
async def test_a_gateway_of_a_module_lives_in_one_test_after_the_other(test: int) -> None:
    assert await shared(f"live {test}") == f"live {test}"
    assert_nothing_left(MODULE_LEVEL)


@pytest.mark.virtual_time
async def test_and_in_a_test_in_virtual_time() -> None:
    assert await shared("live") == "live"
    assert_all_gone(MODULE_LEVEL)


def test_registering_and_snapshots_need_no_loop(gate: Gateway) -> None:
    operation = sleeping(gate)

    before = gate.snapshot()
    run(lambda: operation(0.0))
    after = gate.snapshot()

    assert before.upstreams["world"].counts.asked == 0
    assert after.upstreams["world"].counts.asked == 1
    assert after.upstreams["world"].operations["ask"].counts.live == 1


def test_a_second_loop_is_an_error_while_the_first_is_open(gate: Gateway) -> None:  # peers, row 14
    operation = sleeping(gate)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert first.run_until_complete(operation(0.0)) == 0.0

        error = second.run_until_complete(ended(operation(0.0)))
        assert type(error) is WrongLoop
        assert type(second.run_until_complete(ended(gate.open()))) is WrongLoop
        assert type(second.run_until_complete(ended(gate.close()))) is WrongLoop

        assert counted(gate["world"]) == {"asked": 1, "live": 1, "attempts": 1}
        assert first.run_until_complete(operation(0.0)) == 0.0
    finally:
        first.close()
        second.close()


def test_another_thread_is_told_even_while_a_task_of_the_first_loop_holds_it_up(gate: Gateway) -> None:
    operation = sleeping(gate)
    elsewhere: list[object] = []

    def other_thread() -> None:
        elsewhere.append(asyncio.run(ended(operation(0.0))))

    async def main() -> None:
        await operation(0.0)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()

    run(main)

    assert type(elsewhere[0]) is WrongLoop
    assert counted(gate["world"]) == {"asked": 1, "live": 1, "attempts": 1}


def test_after_close_another_loop_may_open_it(gate: Gateway) -> None:
    operation = sleeping(gate)

    async def main() -> float:
        async with gate:
            return await operation(0.0)

    assert [run(main), run(main)] == [0.0, 0.0]


def test_when_its_loop_was_closed_without_close_the_next_use_opens_it(gate: Gateway) -> None:
    operation = sleeping(gate)

    assert [run(lambda: operation(0.0)) for _ in range(3)] == [0.0] * 3
    assert counted(gate["world"]) == {"asked": 3, "live": 3, "attempts": 3}


def test_calls_whose_loop_was_closed_under_them_are_counted_and_leave_nothing(gate: Gateway) -> None:
    operation = sleeping(gate)
    tasks = left_on_a_closed_loop(*(operation(99.0) for _ in range(3)))

    in_flight = counted(gate["world"])["in_flight"]
    live = run(lambda: operation(0.0))
    before_they_are_collected = counted(gate["world"])
    errors = throw_away(tasks)

    assert errors == []
    assert in_flight == 3
    assert live == 0.0
    assert before_they_are_collected == {"asked": 4, "live": 1, "cancelled": 3, "attempts": 4}
    assert counted(gate["world"]) == before_they_are_collected


@pytest.mark.parametrize("reopened", [False, True], ids=["not used again", "used again"])
def test_a_place_given_back_after_the_loop_was_closed_is_offered_to_nobody(reopened: bool) -> None:
    gate = Gateway()
    operation = sleeping(gate, fallback=[handler(plan_b)])
    gate["world"].tune(bulkhead=BulkheadPolicy(limit=1, queue=5))
    tasks = left_on_a_closed_loop(*(operation(99.0) for _ in range(3)))

    if reopened:
        assert run(lambda: operation(0.0)) == 0.0
    errors = throw_away(tasks)

    assert errors == []
    assert counted(gate["world"])["cancelled"] == 3
    assert_all_gone(gate)


async def plan_b(error: Exception, seconds: float) -> float:
    await asyncio.sleep(0)
    return seconds


def left_on_a_closed_loop(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Calls that have begun, on a loop that was then closed."""
    loop = asyncio.new_event_loop()

    async def begin() -> list[asyncio.Task[Any]]:
        tasks = []
        for call in calls:
            tasks.append(loop.create_task(call))
            await steps(2)
        return tasks

    tasks = loop.run_until_complete(begin())
    loop.close()
    return tasks


def throw_away(tasks: list[asyncio.Task[Any]]) -> list[RuntimeError]:
    """What the collector does with them, sooner or later; what it would have complained of."""
    errors = []
    for task in tasks:
        task._log_destroy_pending = False
        try:
            task.get_coro().close()
        except RuntimeError as error:
            errors.append(error)
    return errors


def test_policies_and_memories_survive_another_loop_and_circuits_begin_anew(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    fails = False

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(what: str) -> str:
        if fails:
            raise Boom
        return what

    async def first() -> None:
        await ask("remembered")
        up.tune(bulkhead=BulkheadPolicy(limit=3), breaker=BreakerPolicy(min_calls=1, open_for=1000.0))
        await fail_until_open(up)

    run(first)
    fails = True
    answer = run(lambda: ask.ask("remembered"))

    assert (answer.value, answer.source) == ("remembered", "last_good")
    assert type(answer.error.__cause__) is Boom
    assert up.snapshot().bulkhead.limit == 3


def test_what_an_operator_isolated_stays_so_on_another_loop(gate: Gateway) -> None:
    operation = sleeping(gate)
    gate["world"].isolate()

    kinds = [type(run(lambda: ended(operation(0.0)))).__name__ for _ in range(2)]

    assert kinds == ["CircuitOpen"] * 2


# -- closing


@pytest.mark.virtual_time
async def test_close_refuses_new_calls_and_lets_those_in_flight_finish(gate: Gateway) -> None:
    operation = sleeping(gate)
    calls = [asyncio.ensure_future(operation(seconds)) for seconds in (1.0, 2.0)]
    await steps(1)
    began = now()

    closing = asyncio.ensure_future(gate.close(drain_for=5.0))
    await steps(1)
    refused = await ended(operation(0.0))

    assert await closing == ()
    assert now() - began == pytest.approx(2.0)
    assert [call.result() for call in calls] == [1.0, 2.0]
    assert type(refused) is GatewayClosed


@pytest.mark.virtual_time
async def test_close_cancels_what_does_not_finish_in_time(gate: Gateway) -> None:
    operation = sleeping(gate, fallback=[Static("never asked")])
    call = asyncio.ensure_future(operation(99.0))
    await steps(1)
    began = now()

    await gate.close(drain_for=3.0)

    assert now() - began == pytest.approx(3.0)
    assert call.cancelled()
    assert counted(gate["world"]) == {"asked": 1, "cancelled": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_close_without_a_drain_cancels_at_once(gate: Gateway) -> None:
    operation = sleeping(gate)
    gate["world"].tune(bulkhead=BulkheadPolicy(limit=1, queue=5))
    calls = [asyncio.ensure_future(operation(99.0)) for _ in range(3)]
    await steps(2)
    began = now()

    await gate.close(drain_for=0.0)
    await asyncio.wait(calls)

    assert now() == began
    assert all(call.cancelled() for call in calls)
    assert_all_gone(gate)


@pytest.mark.virtual_time
async def test_close_waits_for_those_who_clean_up_after_their_cancel(gate: Gateway) -> None:
    cleaned = []

    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(0.5)
            cleaned.append(1)

    call = asyncio.ensure_future(ask())
    await steps(1)

    await gate.close(drain_for=1.0)

    assert cleaned == [1]
    assert call.cancelled()


@pytest.mark.virtual_time
async def test_close_does_not_wait_for_ever_for_those_who_resist(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(30)

    call = asyncio.ensure_future(ask())
    await steps(1)
    began = now()

    await gate.close(drain_for=1.0, join_for=2.0)
    took = now() - began
    await call

    assert took == pytest.approx(3.0)


@pytest.mark.virtual_time
async def test_a_call_that_drains_may_still_make_the_calls_it_needs(gate: Gateway) -> None:
    inner = gate.upstream("inner", policy=QUIET)

    @inner.operation(idempotent=True)
    async def inside(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @gate.upstream("outer", policy=QUIET).operation(idempotent=True)
    async def outside() -> float:
        first = await inside(0.1)
        await asyncio.sleep(0.5)
        return first + await inside(0.1)

    call = asyncio.ensure_future(outside())
    await steps(2)
    await gate.close(drain_for=5.0)

    assert await call == pytest.approx(0.2)


@pytest.mark.virtual_time
async def test_a_call_that_drains_may_still_retry_and_fall_back(gate: Gateway) -> None:
    inner = gate.upstream("inner", policy=QUIET)
    policy = replace(QUIET, retry=RetryPolicy(attempts=2, wait=lambda state: 0.5))

    @inner.operation(idempotent=True)
    async def inside() -> str:
        return "in"

    @gate.upstream("outer", policy=policy).operation(idempotent=True)
    async def outside() -> str:
        await asyncio.sleep(0.5)
        raise Boom

    @outside.fallback
    async def plan_b(error: Exception) -> str:
        return await inside() + "side"

    other = gate.upstream("other", policy=policy).operation(
        name="other", idempotent=True, fallback=[Alternate(inside)]
    )(outside.__wrapped__)
    calls = [asyncio.ensure_future(outside()), asyncio.ensure_future(other())]
    await steps(1)

    await gate.close(drain_for=5.0)

    assert await asyncio.gather(*calls) == ["inside", "in"]
    assert gate["outer"].snapshot().counts.attempts == 2


@pytest.mark.virtual_time
async def test_calls_while_closed_ask_no_tier_and_count_nothing(gate: Gateway) -> None:
    asked = []
    operation = sleeping(gate, fallback=[handler(lambda error, seconds: asked.append(1), after_unknown=True)])
    async with gate:
        await operation(0.0)

    errors = [await ended(operation(0.0)) for _ in range(3)]

    assert [type(error) for error in errors] == [GatewayClosed] * 3
    assert isinstance(errors[0], Rejected)
    assert (errors[0].upstream, errors[0].operation, errors[0].attempts) == ("world", "ask", 0)
    assert errors[0].outcome == "rejected"
    assert not asked
    assert counted(gate["world"]) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_only_opening_opens_what_was_closed(gate: Gateway) -> None:
    operation = sleeping(gate)
    await gate.close()
    closed = await ended(operation(0.0))

    await gate.open()
    opened = await operation(0.0)
    await gate.close()
    async with gate:
        again = await operation(0.0)

    assert type(closed) is GatewayClosed
    assert (opened, again) == (0.0, 0.0)
    assert type(await ended(operation(0.0))) is GatewayClosed


def test_closed_stays_closed_when_its_loop_is_closed_too(gate: Gateway) -> None:
    operation = sleeping(gate)

    async def main() -> None:
        async with gate:
            await operation(0.0)

    run(main)

    assert type(run(lambda: ended(operation(0.0)))) is GatewayClosed


@pytest.mark.virtual_time
async def test_opening_twice_and_closing_twice_is_once(gate: Gateway) -> None:
    operation = sleeping(gate)

    async with gate:
        await gate.open()
        async with gate:
            assert await operation(0.0) == 0.0
    assert await gate.close() == ()

    assert type(await ended(operation(0.0))) is GatewayClosed


@pytest.mark.virtual_time
async def test_who_closes_while_another_closes_waits_for_the_same_end(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = asyncio.ensure_future(operation(2.0))
    await steps(1)
    began = now()

    results = await asyncio.gather(gate.close(), gate.close(), gate.close())

    assert results == [(), (), ()]
    assert now() - began == pytest.approx(2.0)
    assert await call == 2.0


@pytest.mark.virtual_time
async def test_who_opens_while_another_closes_waits_and_then_it_is_open(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = asyncio.ensure_future(operation(2.0))
    await steps(1)
    closing = asyncio.ensure_future(gate.close())
    await steps(1)

    await gate.open()

    assert closing.done()
    assert call.result() == 2.0
    assert await operation(0.0) == 0.0


@pytest.mark.virtual_time
async def test_a_call_may_close_its_own_gateway_and_waits_only_for_the_others(gate: Gateway) -> None:
    operation = sleeping(gate)

    @gate["world"].operation(idempotent=True)
    async def closer() -> str:
        await gate.close(drain_for=5.0)
        return "closed"

    other = asyncio.ensure_future(operation(0.5))
    await steps(1)
    began = now()

    assert await closer() == "closed"
    assert now() - began == pytest.approx(0.5)
    assert await other == 0.5
    assert_nothing_left(gate)


@pytest.mark.virtual_time
async def test_a_close_that_is_cancelled_closes_all_the_same(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = asyncio.ensure_future(operation(99.0))
    await steps(1)
    closing = asyncio.ensure_future(gate.close(drain_for=50.0))
    await asyncio.sleep(1.0)

    await gone(closing)
    await steps(2)

    assert call.cancelled()
    assert type(await ended(operation(0.0))) is GatewayClosed
    await gate.open()
    assert await operation(0.0) == 0.0


@pytest.mark.virtual_time
async def test_a_drain_without_end_waits_as_long_as_it_takes(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = asyncio.ensure_future(operation(9.0))
    await steps(1)

    await gate.close(drain_for=inf, join_for=inf)

    assert call.result() == 9.0


@pytest.mark.virtual_time
async def test_an_error_in_the_block_passes_and_the_gateway_is_closed(gate: Gateway) -> None:
    operation = sleeping(gate)

    with pytest.raises(Boom):
        async with gate:
            raise Boom

    assert type(await ended(operation(0.0))) is GatewayClosed


@pytest.mark.virtual_time
async def test_an_upstream_and_an_operation_may_be_added_while_it_is_open(gate: Gateway) -> None:
    async with gate:
        operation = sleeping(gate)
        first = await operation(0.0)

        @gate["world"].operation(idempotent=True)
        async def later() -> str:
            return "later"

        assert (first, await later()) == (0.0, "later")


@pytest.mark.virtual_time
async def test_an_upstream_added_while_it_closes_is_closed_too(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = asyncio.ensure_future(operation(1.0))
    await steps(1)
    closing = asyncio.ensure_future(gate.close())
    await steps(1)

    late = gate.upstream("late").operation(name="late")(operation.__wrapped__)

    assert type(await ended(late(0.0))) is GatewayClosed
    await closing
    assert await call == 1.0


@pytest.mark.virtual_time
async def test_a_closed_gateway_can_be_registered_with_and_tuned(gate: Gateway) -> None:
    await gate.open()
    await gate.close()

    operation = sleeping(gate)
    gate["world"].tune(bulkhead=BulkheadPolicy(limit=7))
    await gate.open()

    assert await operation(0.0) == 0.0
    assert gate["world"].snapshot().bulkhead.limit == 7


@pytest.mark.virtual_time
async def test_what_is_to_be_written_behind_is_written_before_it_is_closed(gate: Gateway) -> None:
    class Slow(SimpleMemoryCache):
        async def _set(self, *args: Any, **kwargs: Any) -> bool:
            await asyncio.sleep(0.1)
            kwargs["ttl"] = None
            return await super()._set(*args, **kwargs)

    store = Slow()
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(store=store)])
    async def ask(number: int) -> int:
        return number

    async with gate:
        for number in range(10):
            await ask(number)

    assert len(store._cache) == 10


class Lasting(SimpleMemoryCache):
    """A memory that takes a while to write, keeps no time, and says whether it was closed."""

    closed = False

    async def _set(self, *args: Any, **kwargs: Any) -> bool:
        await asyncio.sleep(0.3)
        kwargs["ttl"] = None
        return await super()._set(*args, **kwargs)

    async def close(self, *_: Any, **__: Any) -> None:
        self.closed = True


@pytest.mark.virtual_time
@pytest.mark.parametrize(("after", "kept"), [(0.1, 1), (0.25, 0)], ids=["while calls end", "while it writes"])
async def test_a_close_that_is_cut_short_in_one_step_takes_all_the_others(gate: Gateway, after, kept) -> None:
    store = Lasting()
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(store=store)])
    async def ask(seconds: float) -> float:
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.sleep(seconds / 10)
        return seconds

    call = asyncio.ensure_future(ask(2.0))
    await steps(1)
    await ask(0.0)
    closing = asyncio.ensure_future(gate.close(drain_for=0.0))
    await asyncio.sleep(after)

    await gone(closing)

    assert len(store._cache) == kept
    assert store.closed
    await gone(call)


@pytest.mark.virtual_time
@pytest.mark.parametrize("turns", range(1, 15))
async def test_a_store_is_closed_whenever_it_is_that_who_closes_the_gateway_leaves(gate: Gateway, turns: int) -> None:
    store = Lasting()
    sleeping(gate, fallback=[LastGood(store=store)])
    await gate.open()
    closing = asyncio.ensure_future(gate.close())
    await steps(turns)

    await gone(closing)
    await steps(3)

    assert store.closed


@pytest.mark.virtual_time
async def test_a_store_that_hangs_does_not_hold_up_the_close_and_leaves_no_task(gate: Gateway) -> None:
    class Hanging(SimpleMemoryCache):
        async def _set(self, *args: Any, **kwargs: Any) -> bool:
            await asyncio.sleep(99)
            return False

    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(store=Hanging()), LastGood(store=Hanging())])
    async def ask(number: int) -> int:
        return number

    for number in range(20):
        await ask(number)
    began = now()
    await gate.close(join_for=3.0)
    took = now() - began
    await steps(3)

    assert took == pytest.approx(3.0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [Boom(), asyncio.CancelledError()], ids=["an error", "a task of its own cancelled"])
async def test_a_store_that_cannot_be_closed_is_a_log_line_and_the_others_are_closed(
    gate: Gateway, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    closed: list[object] = []

    class Stubborn(SimpleMemoryCache):
        async def close(self, *args: Any, **kwargs: Any) -> None:
            closed.append(self)
            raise error

    sleeping(gate, fallback=[LastGood(store=Stubborn()), LastGood(store=Stubborn())])
    await gate.open()

    assert await gate.close() == ()

    assert len(closed) == 2
    assert caplog.text.count("could not be closed") == 2


@pytest.mark.virtual_time
async def test_stores_that_hang_are_closed_all_at_once(gate: Gateway) -> None:
    class Hanging(SimpleMemoryCache):
        async def close(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(99)

    sleeping(gate, fallback=[LastGood(store=Hanging()) for _ in range(5)])
    await gate.open()
    began = now()

    await gate.close(join_for=3.0)

    assert now() - began == pytest.approx(3.0)


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [None, "5", -1.0, nan], ids=["nothing", "text", "less than none", "nan"])
@pytest.mark.parametrize("field", ["drain_for", "join_for"])
async def test_a_close_that_is_to_take_no_time_there_is_does_not_begin(gate: Gateway, field, seconds) -> None:
    operation = sleeping(gate)
    await operation(0.0)

    with pytest.raises(ConfigError, match=field):
        await gate.close(**{field: seconds})

    assert await operation(0.0) == 0.0


@pytest.mark.virtual_time
async def test_who_leaves_a_close_while_a_store_is_closed_has_left(gate: Gateway) -> None:
    class Hanging(SimpleMemoryCache):
        async def close(self, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(99)

    sleeping(gate, fallback=[LastGood(store=Hanging())])
    await gate.open()
    closing = asyncio.create_task(gate.close())
    await asyncio.sleep(1.0)

    closing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await closing


@pytest.mark.virtual_time
async def test_a_tier_with_a_flush_of_its_own_is_nobodys_business(gate: Gateway) -> None:
    class Tier:
        def answer(self, question: object) -> None:
            return None

        def flush(self) -> None:
            raise Boom

    operation = sleeping(gate, fallback=[Tier()])
    await operation(0.0)

    assert await gate.close() == ()


def test_a_loop_that_dies_while_the_gateway_closes_does_not_keep_it_from_opening() -> None:
    gate = Gateway()
    operation = sleeping(gate)
    call, closing = left_on_a_closed_loop(operation(99.0), gate.close(drain_for=50.0))

    async def again() -> list[object]:
        async with gate:
            ends = [await ended(operation(0.0))]
            throw_away([closing])
            throw_away([closing])  # once more: it wants to wait even then
            ends.append(await ended(operation(0.0)))
        return [*ends, type(await ended(operation(0.0)))]

    assert run(again) == [0.0, 0.0, GatewayClosed]
    assert throw_away([call]) == []
    assert_all_gone(gate)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
async def test_it_lives_on_uvloop_too(kind: str) -> None:
    uvloop = pytest.importorskip("uvloop")
    gate = Gateway()
    operation = sleeping(gate)
    operation_that_fails = gate.upstream("sick", policy=replace(QUIET)).operation(name="fails", idempotent=True)(
        operation.__wrapped__
    )

    async def main() -> list[object]:
        async with gate:
            with Faults(operation_that_fails).error(Boom):
                ends = [await ended(operation(0.001)), await ended(operation_that_fails(0.0))]
            gate["world"].tune_fields({"timeout.call": 0.02})
            ends.append(await ended(operation(9.0)))
            return ends

    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop

    def thread() -> list[object]:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    ends = await asyncio.to_thread(thread)

    assert ends[0] == 0.001
    assert [type(end).__name__ for end in ends[1:]] == ["Failed", "FailedTimeout"]
    assert_nothing_left(gate)
