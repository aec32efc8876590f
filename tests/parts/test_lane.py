"""The time limit of one try. Held to `asyncio.timeout` at length in tests/properties/test_lane_fuzz.py."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, CancelledError, Task, create_task, current_task, get_running_loop, sleep
from collections.abc import Awaitable, Callable
from math import inf
from time import monotonic, process_time
from typing import Any, cast

import pytest

from gateway import BreakerPolicy, CircuitBreaker, Gateway, Policy, TimeoutPolicy
from gateway.call import Call
from gateway.context import HALF_MICROSECOND, Ambient, clock_of
from gateway.lane import Lane, Timer
from gateway.testing import VirtualTimeLoop, assert_nothing_left
from tests.support import ONE_TRY, ended, now, page_of, steps


def a_lane(seconds: float) -> Lane:
    loop = get_running_loop()
    return Lane(seconds, loop, clock_of(loop))


def a_call(lane: Lane, cutoff: float = inf, outer: Ambient | None = None, task: Any = None) -> Call:
    """A call that begins its try here and now."""
    task, at = task or current_task(), lane.clock()
    return Call(
        (), {}, None, task, task.cancelling(), at, at, cutoff, cutoff, outer, CircuitBreaker(BreakerPolicy()), None
    )


async def limited(lane: Lane, work: Awaitable[Any], cutoff: float = inf, outer: Ambient | None = None) -> Any:
    """Some work under a limit of the lane, as `asyncio.timeout` would limit it."""
    timer = lane.start(a_call(lane, cutoff, outer))
    try:
        value = await work
    except BaseException as error:
        if timer.stop_on(error):
            raise TimeoutError from error
        raise
    timer.stop()
    return value


def timers() -> list[asyncio.TimerHandle]:
    return [handle for handle in get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


class Worker:
    """Stands in for a task that keeps count of its cancels."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancelling(self) -> int:
        return self.cancels

    def cancel(self) -> None:
        self.cancels += 1

    def uncancel(self) -> None:
        self.cancels -= 1


# -- one limit


@pytest.mark.virtual_time
async def test_what_ends_in_time_is_left_alone() -> None:
    lane = a_lane(1.0)

    value = await limited(lane, sleep(0.9, "value"))

    assert (value, lane.running) == ("value", 0)
    await sleep(5.0)
    assert current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.virtual_time
async def test_what_lasts_longer_is_ended_at_the_instant() -> None:
    lane = a_lane(1.0)
    began_at = now()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60))

    assert now() - began_at == pytest.approx(1.0)
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_a_task_lives_on_after_its_time_ran_out() -> None:
    lane = a_lane(1.0)

    for _ in range(3):
        assert isinstance(await ended(limited(lane, sleep(60))), TimeoutError)
        await sleep(2.0)

    assert current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.virtual_time
async def test_each_try_has_its_full_time_though_the_lane_is_shared() -> None:
    """Row 52 (hyx): a second entry of a shared timeout stopped the first one's timer, and 49 of 50 never ended."""
    lane = a_lane(1.0)
    took: list[float] = []

    async def call(after: float) -> None:
        await sleep(after)
        began_at = now()
        assert isinstance(await ended(limited(lane, sleep(60))), TimeoutError)
        took.append(now() - began_at)

    await asyncio.gather(*(call(number * 0.07) for number in range(50)))

    assert took == pytest.approx([1.0] * 50)
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_one_timer_of_the_loop_serves_all_who_are_in_flight() -> None:
    lane = a_lane(1.0)

    calls = [create_task(limited(lane, asyncio.Event().wait())) for _ in range(1_000)]
    await steps(1)

    assert (lane.running, len(timers())) == (1_000, 1)
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {TimeoutError}
    assert (lane.running, timers()) == (0, [])


@pytest.mark.virtual_time
async def test_an_idle_lane_lets_its_timer_run_out_and_sets_no_other() -> None:
    """Hole 15: the one timer stays up to `seconds` after the last call. That is no leak."""
    lane = a_lane(1.0)

    await limited(lane, sleep(0))

    assert len(timers()) == 1
    await sleep(1.5)
    assert timers() == []


@pytest.mark.virtual_time
async def test_a_lane_whose_first_calls_have_left_waits_for_those_who_stay() -> None:
    lane = a_lane(1.0)
    began_at = now()

    await limited(lane, sleep(0.2))
    await limited(lane, sleep(0.2))
    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60))

    assert now() - began_at == pytest.approx(1.4)


@pytest.mark.virtual_time
async def test_a_limit_without_end_needs_no_timer() -> None:
    lane = a_lane(inf)

    call = create_task(limited(lane, sleep(1e6)))
    await steps(1)

    assert (lane.running, len(timers())) == (1, 1)  # the sleep's own
    await call
    assert lane.running == 0


# -- limits that end sooner than the lane


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [1.0, inf])
async def test_a_nearer_cutoff_ends_the_try_sooner(seconds: float) -> None:
    lane = a_lane(seconds)
    began_at = now()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), cutoff=began_at + 0.4)

    assert now() - began_at == pytest.approx(0.4)
    assert (lane.running, timers()) == (0, [])


@pytest.mark.virtual_time
async def test_a_nearer_cutoff_that_is_not_needed_lets_its_timer_run_out() -> None:
    """As an idle lane does, and as that it is no leak."""
    lane = a_lane(1.0)

    await limited(lane, sleep(0.1), cutoff=now() + 0.4)

    assert (lane.running, len(timers())) == (0, 1)
    await sleep(0.5)
    assert timers() == []


@pytest.mark.virtual_time
async def test_only_a_cutoff_that_is_really_nearer_gets_a_timer_of_its_own() -> None:
    lane = a_lane(1.0)

    limits = [lane.start(a_call(lane, now() + seconds)) for seconds in (0.999, 1.0, 1.001)]

    assert [limit.nearer for limit in limits] == [True, False, False]
    assert [limit.at - now() for limit in limits] == pytest.approx([0.999, 1.0, 1.0])
    assert len(timers()) == 2
    assert [limit.stop() for limit in limits] == [False, False, False]


@pytest.mark.virtual_time
async def test_near_cutoffs_do_not_disturb_the_others_of_the_lane() -> None:
    lane = a_lane(1.0)
    began_at = now()
    took: list[float] = []

    async def call(cutoff: float) -> None:
        assert isinstance(await ended(limited(lane, sleep(60), cutoff)), TimeoutError)
        took.append(now() - began_at)

    await asyncio.gather(*(call(began_at + seconds) for seconds in (inf, 0.5, inf, 0.25)))

    assert took == pytest.approx([0.25, 0.5, 1.0, 1.0])


# -- cancelled from outside


@pytest.mark.virtual_time
@pytest.mark.parametrize("cutoff", [inf, 1.0])
async def test_a_cancel_from_outside_stays_a_cancel(cutoff: float) -> None:
    lane = a_lane(2.0)
    call = create_task(limited(lane, sleep(60), now() + cutoff))
    await sleep(0.5)

    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert call.cancelling() == 1
    assert lane.running == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("cutoff", [inf, 1.0])
@pytest.mark.parametrize("cancel_at", [0.999, 1.001])
async def test_cancelled_from_outside_in_the_tick_of_its_end_it_is_cancelled(cutoff: float, cancel_at: float) -> None:
    lane = a_lane(1.0 if cutoff == inf else 2.0)
    call = create_task(limited(lane, sleep(60), now() + cutoff))
    await steps(1)
    loop = cast("VirtualTimeLoop", get_running_loop())

    loop.call_later(cancel_at, call.cancel)
    loop.advance(1.5)  # both are due now, in that order
    await asyncio.wait([call])

    assert call.cancelled()
    assert call.cancelling() == 1
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_a_cancel_that_was_pending_before_the_call_is_not_mixed_up_with_its_own() -> None:
    lane = a_lane(1.0)
    ends: list[object] = []

    async def stubborn() -> None:
        try:
            await sleep(60)
        except CancelledError:
            ends.extend((await ended(limited(lane, sleep(60))), current_task().cancelling()))  # type: ignore[union-attr]

    call = create_task(stubborn())
    await sleep(0.5)
    call.cancel()
    await call

    assert isinstance(ends[0], TimeoutError)
    assert ends[1] == 1


# -- functions that resist


@pytest.mark.virtual_time
@pytest.mark.parametrize("cutoff", [inf, 0.5])
async def test_a_value_that_comes_after_its_time_is_late_and_no_cancel_stays_behind(cutoff: float) -> None:
    lane = a_lane(1.0)
    timer = lane.start(a_call(lane, now() + cutoff))

    with pytest.raises(CancelledError):
        await sleep(60)

    assert timer.stop()
    assert current_task().cancelling() == 0  # type: ignore[union-attr]
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_an_error_made_of_the_cancel_is_an_error_and_no_timeout() -> None:
    lane = a_lane(1.0)

    async def converts() -> None:
        try:
            await sleep(60)
        except CancelledError:
            raise ValueError("made of it") from None

    with pytest.raises(ValueError, match="made of it"):
        await limited(lane, converts())

    assert current_task().cancelling() == 0  # type: ignore[union-attr]
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_a_cancelled_error_of_the_functions_own_is_no_timeout() -> None:
    lane = a_lane(1.0)

    async def awaits_a_cancelled_task() -> None:
        inner = create_task(sleep(60))
        inner.cancel()
        await inner

    with pytest.raises(CancelledError):
        await limited(lane, awaits_a_cancelled_task())

    assert current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.virtual_time
@pytest.mark.parametrize("value_at", [0.999, 1.001])
async def test_a_value_in_the_tick_of_the_timeout_is_decided_once_as_asyncio_does(value_at: float) -> None:
    async def by_lane(work: Awaitable[Any]) -> Any:
        return await limited(a_lane(1.0), work)

    async def by_asyncio(work: Awaitable[Any]) -> Any:
        async with asyncio.timeout(1.0):
            return await work

    async def end_of(limit: Callable[[Awaitable[Any]], Awaitable[Any]]) -> tuple[type, int]:
        loop = cast("VirtualTimeLoop", get_running_loop())
        value = loop.create_future()
        call: Task[Any] = create_task(limit(value))  # type: ignore[arg-type]
        await steps(1)
        loop.call_later(value_at, lambda: value.done() or value.set_result("value"))
        loop.advance(1.5)
        await asyncio.wait([call])
        return type(call.exception()), call.cancelling()

    ours, theirs = await end_of(by_lane), await end_of(by_asyncio)

    assert ours == theirs == (TimeoutError, 0)


# -- nested limits


@pytest.mark.virtual_time
async def test_of_two_nested_limits_the_inner_one_may_end_first() -> None:
    outer, inner = a_lane(2.0), a_lane(1.0)

    end = await limited(outer, ended(limited(inner, sleep(60))))

    assert isinstance(end, TimeoutError)
    assert (outer.running, inner.running) == (0, 0)


@pytest.mark.virtual_time
async def test_of_two_nested_limits_the_outer_one_ends_both() -> None:
    outer, inner = a_lane(1.0), a_lane(2.0)
    seen: list[type] = []

    async def call() -> None:
        try:
            await limited(inner, sleep(60))
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(TimeoutError):
        await limited(outer, call())

    assert seen == [CancelledError]
    assert (outer.running, inner.running) == (0, 0)


@pytest.mark.virtual_time
async def test_limits_that_end_at_one_instant_share_one_timer_and_one_cancel() -> None:
    """Hole 3: two cancels in one instant, and a function that swallows one swallows both."""
    lane = a_lane(1.0)
    at = now() + 0.5
    outer = lane.start(a_call(lane, at))
    inner = lane.start(a_call(lane, at, outer))
    innermost = lane.start(a_call(lane, at, inner))
    timers_set = len(timers())

    with pytest.raises(CancelledError) as caught:
        await sleep(60)

    assert timers_set == 1
    assert current_task().cancelling() == 1  # type: ignore[union-attr]
    assert [limit.stop_on(caught.value) for limit in (innermost, inner, outer)] == [False, False, True]
    assert current_task().cancelling() == 0  # type: ignore[union-attr]
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_one_timer_serves_the_limits_of_all_instants_and_is_set_for_the_first_of_them() -> None:
    lane = a_lane(1.0)
    began_at = now()
    outer = lane.start(a_call(lane, began_at + 0.5))

    inner = lane.start(a_call(lane, began_at + 0.4, outer))

    assert [handle.when() - began_at for handle in timers()] == pytest.approx([0.4])
    assert [inner.stop(), outer.stop()] == [False, False]


@pytest.mark.virtual_time
async def test_a_timer_that_was_set_for_a_limit_that_has_stopped_comes_for_the_next_in_time() -> None:
    lane = a_lane(1.0)
    began_at = now()
    lane.start(a_call(lane, began_at + 0.2)).stop()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), began_at + 0.5)

    assert now() - began_at == pytest.approx(0.5, abs=1e-9)
    assert timers() == []


@pytest.mark.parametrize("nearer", [False, True])
@pytest.mark.virtual_time
async def test_a_timer_that_is_set_keeps_nothing_of_the_caller_whose_call_set_it(nearer: bool) -> None:
    """It is set anew in its own context: what that holds would be kept for as long as calls come."""
    lane = a_lane(1.0)

    page = await page_of(lambda: limited(lane, sleep(0), now() + 0.5 if nearer else inf))

    assert len(timers()) == 1
    assert page is None


@pytest.mark.parametrize("error", [ZeroDivisionError, CancelledError, GeneratorExit])
@pytest.mark.parametrize("nearer", [False, True])
@pytest.mark.virtual_time
async def test_one_that_cannot_be_ended_keeps_no_other_from_its_end(nearer: bool, error: type[BaseException]) -> None:
    """A future of somebody's own kind may raise when the task that waits for it is cancelled."""
    lane = a_lane(0.5)
    cutoff = now() + 0.4 if nearer else inf
    told: list[dict[str, Any]] = []
    loop = get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))

    class Raising(Worker):
        def cancel(self) -> None:
            raise error

        def get_loop(self) -> asyncio.AbstractEventLoop:
            return loop

    other = Worker()
    limits = [lane.start(a_call(lane, cutoff, task=worker)) for worker in (Raising(), other)]
    await sleep(0.6)

    assert other.cancels == 1
    assert [type(context["exception"]) for context in told] == [error]
    assert [limit.fired_at is not None for limit in limits] == [True, True]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_it_when_all_that_was_due_has_been_done(error: type[BaseException]) -> None:
    other = Worker()

    async def main() -> None:
        loop, lane = get_running_loop(), a_lane(0.5)

        class Raising(Worker):
            def cancel(self) -> None:
                raise error

            def get_loop(self) -> asyncio.AbstractEventLoop:
                return loop

        for worker in (Raising(), other):
            lane.start(a_call(lane, now() + 0.4, task=worker))
        await sleep(0.6)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(error):
        runner.run(main())

    assert other.cancels == 1


@pytest.mark.virtual_time
async def test_limits_that_end_at_one_instant_share_a_timer_as_long_as_one_of_them_runs() -> None:
    lane = a_lane(1.0)
    at = now() + 0.5

    limits = [lane.start(a_call(lane, at)) for _ in range(3)]
    shared, running = len(timers()), lane.running
    for limit in limits[:2]:
        limit.stop()
    left, running_then = len(timers()), lane.running
    limits[2].stop()

    assert (shared, running) == (1, 3)
    assert (left, running_then) == (1, 1)
    assert (lane.running, len(lane._alarms)) == (0, 0)


@pytest.mark.virtual_time
async def test_a_limit_after_the_others_of_its_instant_have_stopped_gets_a_timer_again() -> None:
    lane = a_lane(1.0)
    at = now() + 0.5
    lane.start(a_call(lane, at)).stop()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), at)

    assert now() == pytest.approx(at)


@pytest.mark.virtual_time
async def test_of_limits_that_share_a_timer_each_ends_its_own_task_and_those_that_stopped_none() -> None:
    lane = a_lane(1.0)
    at = now() + 0.5
    late = [create_task(limited(lane, sleep(60), at)) for _ in range(2)]
    early = create_task(limited(lane, sleep(0.3, "in time"), at))

    ends = [await ended(task) for task in (early, *late)]

    assert ends[0] == "in time"
    assert [type(end) for end in ends[1:]] == [TimeoutError, TimeoutError]
    assert now() == pytest.approx(at)
    assert lane.running == 0


@pytest.mark.parametrize("nearer", [False, True])
@pytest.mark.virtual_time
async def test_a_limit_that_is_stopped_by_the_cancel_of_another_is_left_alone(nearer: bool) -> None:
    """A task that waits for a future of somebody's own kind runs that one's `cancel` at once."""
    lane = a_lane(0.5)
    cutoff = now() + 0.4 if nearer else inf

    class Stopping(Worker):
        def cancel(self) -> None:
            super().cancel()
            second.stop()

    first = lane.start(a_call(lane, cutoff, task=Stopping()))
    other = Worker()
    second = lane.start(a_call(lane, cutoff, task=other))
    await sleep(0.6)

    assert (first.fired_at is not None, second.fired_at, other.cancels) == (True, None, 0)
    assert first.stop()
    assert lane.running == 0


@pytest.mark.virtual_time
async def test_a_deadline_that_only_tells_serves_nobody_as_a_timer() -> None:
    lane = a_lane(1.0)
    at = now() + 0.5

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), at, Ambient(at, lane, None))

    assert now() == pytest.approx(at)


@pytest.mark.virtual_time
async def test_another_task_under_the_same_limit_gets_a_timer_of_its_own() -> None:
    lane = a_lane(1.0)
    at = now() + 0.5
    outer = lane.start(a_call(lane, at))
    child = create_task(limited(lane, sleep(60), at, outer))

    with pytest.raises(CancelledError):
        await sleep(60)

    assert outer.stop()
    assert isinstance(await ended(child), TimeoutError)


@pytest.mark.virtual_time
async def test_a_limit_that_has_ended_already_serves_nobody_any_more() -> None:
    """It may end half a microsecond before its instant; a call made after that, and before it, would never end."""
    lane = a_lane(1.0)
    loop = cast("VirtualTimeLoop", get_running_loop())
    at = now() + 0.5
    outer = lane.start(a_call(lane, at))
    lane._alarms._timer.cancel()  # type: ignore[union-attr]
    loop.call_at(at - HALF_MICROSECOND / 2, lane._alarms._come)
    with pytest.raises(CancelledError):
        await sleep(60)

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), at, outer)

    assert outer.stop()


@pytest.mark.virtual_time
async def test_a_limit_knows_whether_it_was_the_first_to_cancel() -> None:
    lane = a_lane(1.0)
    firsts: list[bool] = []

    async def call(*, cancelled: bool) -> None:
        timer = lane.start(a_call(lane))
        if cancelled:
            get_running_loop().call_later(0.5, current_task().cancel)  # type: ignore[union-attr]
        for _ in range(2 if cancelled else 1):
            with pytest.raises(CancelledError):
                await sleep(60)
        timer.stop()
        firsts.append(timer.first)

    await create_task(call(cancelled=False))
    await create_task(call(cancelled=True))

    assert firsts == [True, False]


# -- clocks


@pytest.mark.virtual_time
async def test_a_clock_that_jumps_an_hour_ends_all_that_was_due_once_and_nothing_else() -> None:
    short, long = a_lane(1.0), a_lane(7200.0)
    cancels: list[int] = []

    async def counts(lane: Lane, cutoff: float = inf) -> None:
        timer = lane.start(a_call(lane, cutoff))
        try:
            await sleep(20_000)
        except CancelledError:
            cancels.append(current_task().cancelling())  # type: ignore[union-attr]
        await sleep(1.0)  # a second cancel would end this
        assert timer.stop()

    due = [create_task(counts(short)) for _ in range(100)]
    due += [create_task(counts(long, now() + 0.5 + number / 1000)) for number in range(100)]
    not_due = create_task(counts(long))
    await steps(2)

    cast("VirtualTimeLoop", get_running_loop()).advance(3600.0)
    await asyncio.gather(*due)

    assert cancels == [1] * 200
    assert (short.running, long.running) == (0, 1)
    await not_due
    assert cancels == [1] * 201


@pytest.mark.virtual_time
async def test_a_timer_that_comes_before_its_time_waits_for_it() -> None:
    """As on uvloop, whose timers count whole milliseconds."""
    loop = get_running_loop()
    lane = Lane(10.0, loop, lambda: loop.time() - 0.0004)  # the loop is ahead of the clock
    began_at = lane.clock()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(60), cutoff=began_at + 0.5)

    assert 0.5 <= lane.clock() - began_at < 0.502
    assert timers() == []


@pytest.mark.asyncio
async def test_on_an_ordinary_loop_limits_end_in_real_time() -> None:
    lane = a_lane(0.02)
    began_at = monotonic()

    with pytest.raises(TimeoutError):
        await limited(lane, sleep(5))
    with pytest.raises(TimeoutError):
        await limited(lane, sleep(5), cutoff=lane.clock() + 0.01)

    assert 0.03 - 2 * HALF_MICROSECOND <= monotonic() - began_at < 10.0
    assert lane.running == 0


def test_on_uvloop_limits_end_in_real_time_and_never_too_soon() -> None:
    """Hole 1: uvloop's own clock moves in whole milliseconds."""
    uvloop = pytest.importorskip("uvloop", reason="the extra `speed` is not installed")
    took: list[tuple[float, float]] = []

    async def call(lane: Lane, seconds: float, cutoff_in: float) -> None:
        began_at = monotonic()
        assert isinstance(await ended(limited(lane, sleep(5), began_at + cutoff_in)), TimeoutError)
        took.append((min(seconds, cutoff_in), monotonic() - began_at))

    async def main() -> int:
        loop = get_running_loop()
        assert type(loop).__module__.startswith("uvloop")
        lanes = {seconds: Lane(seconds, loop, clock_of(loop)) for seconds in (0.0107, 0.0203, 1.0)}
        calls = [call(lane, seconds, inf) for seconds, lane in lanes.items() if seconds < 1 for _ in range(5)]
        calls += [call(lanes[1.0], 1.0, number * 0.0013 + 0.001) for number in range(15)]
        await asyncio.gather(*calls)
        return sum(lane.running for lane in lanes.values())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left = runner.run(main())

    assert left == 0
    assert len(took) == 25
    assert all(limit - 2 * HALF_MICROSECOND <= real < limit + 5.0 for limit, real in took), took


# -- many


def time_of_a_tick(entries: int) -> float:
    """Processor seconds it takes to end this many calls at once, which all began in one lane."""

    async def main() -> float:
        lane = a_lane(1.0)
        workers = [Worker() for _ in range(entries)]
        limits = [lane.start(a_call(lane, task=worker)) for worker in workers]
        assert lane.running == entries
        cast("VirtualTimeLoop", get_running_loop()).advance(1.5)
        began_at = process_time()
        await steps(2)
        took = process_time() - began_at
        assert {worker.cancels for worker in workers} == {1}
        assert all(limit.stop() for limit in limits)
        assert lane.running == 0
        return took

    loop = VirtualTimeLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_ending_a_hundred_thousand_calls_at_once_is_not_quadratic() -> None:
    few = min(time_of_a_tick(10_000) for _ in range(3))
    many = time_of_a_tick(100_000)

    assert many < 40 * few + 0.05, f"ten times as many take {many / few:.0f} times as long"


# -- in an upstream


@pytest.mark.virtual_time
async def test_tuning_the_timeout_starts_a_new_lane_and_the_old_one_drains() -> None:
    gate = Gateway()
    upstream = gate.upstream("u", policy=Policy(timeout=TimeoutPolicy(call=60.0, attempt=5.0), retry=ONE_TRY))
    ends: list[tuple[str, float]] = []

    @upstream.operation(idempotent=True)
    async def hang() -> None:
        await sleep(3600)

    async def call(name: str) -> None:
        began_at = now()
        assert isinstance(await ended(hang()), TimeoutError)
        ends.append((name, round(now() - began_at, 3)))

    before = create_task(call("before"))
    await steps(2)
    upstream.tune(timeout=TimeoutPolicy(call=60.0, attempt=1.0))
    after = create_task(call("after"))
    await asyncio.gather(before, after)

    assert ends == [("after", 1.0), ("before", 5.0)]
    upstream.tune(timeout=TimeoutPolicy(call=60.0, attempt=2.0))
    assert len(upstream._lanes) == 1
    assert_nothing_left(gate)


@pytest.mark.virtual_time
async def test_a_timer_is_what_calls_under_it_inherit() -> None:
    lane = a_lane(1.0)

    timer = lane.start(a_call(lane))

    assert isinstance(timer, Timer)
    assert isinstance(timer, Ambient)
    assert (timer.at, timer.world) == (now() + 1.0, lane)
    timer.stop()


def test_a_lane_knows_its_loop_by_the_clock_it_is_given() -> None:
    loop: AbstractEventLoop = VirtualTimeLoop()

    lane = Lane(1.0, loop, loop.time, "the gateway")

    assert (lane.seconds, lane.gateway, lane.running) == (1.0, "the gateway", 0)
    assert lane.clock() == loop.time()
    loop.close()
