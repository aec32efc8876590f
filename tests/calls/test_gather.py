"""Several parts at once: answers with their sources, one deadline, nothing left running, no error lost."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import traceback
import weakref
from asyncio import CancelledError, create_task, sleep
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import pytest

from gateway import (
    Answer,
    ConfigError,
    Deadline,
    FailedTimeout,
    Gateway,
    LastGood,
    Policy,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Unknown,
    UnknownTimeout,
    gather,
)
from gateway.context import AMBIENT
from gateway.testing import Faults, assert_nothing_left
from tests.support import QUIET, Boom, ended, gone, now, steps

virtual = pytest.mark.virtual_time


async def gives(value: Any, *, after: float = 0.0) -> Any:
    if after:
        await sleep(after)
    return value


async def fails(error: BaseException, *, after: float = 0.0) -> Any:
    await sleep(after)
    raise error


class Part:
    """One that tells what became of it; told to end, it takes `resists` turns, and then ends as it was told to."""

    def __init__(self, *, resists: int = 0, then: object = CancelledError) -> None:
        self.resists, self.then = resists, then
        self.began = self.ended = False
        self.cancels = 0

    async def run(self) -> object:
        self.began = True
        try:
            await sleep(1000)
        except CancelledError:
            self.cancels += 1
            await steps(self.resists)
            if self.then is CancelledError:
                raise
            if isinstance(self.then, Exception):
                raise self.then from None
            return self.then
        finally:
            self.ended = True
        return "never"


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


# -- what it gives


@virtual
async def test_answers_stay_as_they_are_and_values_become_live_ones(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True, fallback=[LastGood(), Static("s")])
    async def ask(name: str) -> str:
        return name

    await ask("b")
    with Faults(ask).error(Boom).error(Boom):
        page = await gather(
            required={"default": ask.ask("a"), "old": ask.ask("b")}, optional={"bare": ask("c"), "mine": gives(5)}
        )

    assert list(page) == ["default", "old", "bare", "mine"]
    assert [(one.value, one.source, one.degraded) for one in page.values()] == [
        ("s", Source.STATIC, True),
        ("b", Source.LAST_GOOD, True),
        ("c", Source.LIVE, False),
        (5, Source.LIVE, False),
    ]


@virtual
async def test_the_order_is_that_of_the_arguments_not_of_the_ends() -> None:
    page = await gather(
        optional={"x": gives(1, after=0.3), "y": fails(Boom(), after=0.1)},
        required={"b": gives(2, after=0.2), "a": gives(3)},
    )

    assert list(page) == ["b", "a", "x", "y"]
    assert [one.value for one in page.values()] == [2, 3, 1, None]


@virtual
async def test_the_answers_can_be_read_and_not_written() -> None:
    page = await gather(required={"a": gives(None)})

    assert page == {"a": Answer(None)}
    assert isinstance(page, MappingProxyType)
    with pytest.raises(TypeError):
        page["a"] = Answer(2)  # type: ignore[index]


@virtual
async def test_no_parts_no_answers_at_once() -> None:
    page = await gather()

    assert page == {}
    assert await gather(required={}, optional={}) == {}


@virtual
async def test_the_parts_run_together_a_thousand_of_them() -> None:
    began = now()

    page = await gather(
        required={f"r{n}": gives(n, after=1.0) for n in range(1000)},
        optional={f"o{n}": fails(Boom(n), after=1.0) for n in range(1000)},
    )

    assert now() - began == pytest.approx(1.0)
    assert [one.value for one in page.values()] == [*range(1000), *[None] * 1000]
    assert [one.error.args for one in list(page.values())[1000:]] == [(n,) for n in range(1000)]


@virtual
async def test_tasks_and_futures_and_any_awaitable_are_parts() -> None:
    class Later:
        def __await__(self):
            return (yield from gives("later", after=0.1).__await__())

    async def twice(future: Awaitable[Any]) -> Any:
        return await future

    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()
    done.set_result("done")
    open_ = loop.create_future()
    loop.call_later(0.2, open_.set_result, "future")
    failed: asyncio.Future[str] = loop.create_future()
    failed.set_exception(boom := Boom())

    page = await gather(
        required={"later": Later(), "done": done, "open": open_, "task": create_task(gives("task", after=0.1))},
        optional={"failed": failed, "nested": twice(gives("nested"))},
    )

    assert [one.value for one in page.values()] == ["later", "done", "future", "task", None, "nested"]
    assert page["failed"].error is boom


@virtual
async def test_parts_that_are_done_cost_no_turn_of_the_loop() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result(1)
    turns = []
    asyncio.get_running_loop().call_soon(turns.append, 1)

    page = await gather(required={"a": done})

    assert page["a"] == Answer(1)
    assert turns == []


@virtual
async def test_a_gather_can_be_a_part_of_a_gather() -> None:
    page = await gather(required={"inner": gather(required={"a": gives(1)}, optional={"b": fails(Boom())})})

    assert page["inner"].source is Source.LIVE
    assert page["inner"].value["a"] == Answer(1)
    assert type(page["inner"].value["b"].error) is Boom


@virtual
async def test_each_part_has_a_copy_of_the_callers_context() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    async def who(name: str) -> str:
        before = user.get()
        user.set(name)
        await sleep(0)
        return before + user.get()

    user.set("caller ")
    page = await gather(required={"a": who("a"), "b": who("b")})

    assert [one.value for one in page.values()] == ["caller a", "caller b"]
    assert user.get() == "caller "


# -- a part that fails


@virtual
@pytest.mark.parametrize("error", [Boom("x"), Refused("no"), TimeoutError()], ids=lambda error: type(error).__name__)
async def test_an_optional_part_that_fails_is_there_with_its_own_error(error: Exception) -> None:
    page = await gather(required={"a": gives(1, after=0.1)}, optional={"b": fails(error)})

    assert page["a"] == Answer(1)
    answer = page["b"]
    assert (answer.value, answer.source, answer.age, answer.degraded) == (None, Source.STATIC, 0.0, True)
    assert answer.error is error
    assert notes(error) == []


@virtual
async def test_a_required_part_that_fails_ends_the_others_and_raises_its_own_error_by_name() -> None:
    boom, lost = Boom("mine"), Boom("in the cleaning up")
    hanging, slow, bad = Part(), Part(resists=5, then="unneeded"), Part(resists=2, then=lost)

    with pytest.raises(Boom) as caught:
        await gather(
            required={"hanging": hanging.run(), "movie": fails(boom, after=0.2), "slow": slow.run()},
            optional={"early": fails(Refused("no"), after=0.1), "bad": bad.run()},
        )

    assert caught.value is boom
    assert boom.__cause__ is None
    assert notes(boom) == [
        'part "movie"',
        "part \"early\" failed: Refused('no')",
        "part \"bad\" failed: Boom('in the cleaning up')",
    ]
    assert all(part.ended and part.cancels == 1 for part in (hanging, slow, bad))


@virtual
async def test_of_two_that_fail_in_the_same_turn_the_first_is_raised_and_the_other_told() -> None:
    first, second = Boom(1), Boom(2)

    with pytest.raises(Boom) as caught:
        await gather(required={"a": fails(first), "b": fails(second)})

    assert caught.value is first
    assert notes(first) == ['part "a"', 'part "b" failed: Boom(2)']


@virtual
async def test_a_part_that_fails_at_once_ends_those_that_had_just_begun() -> None:
    async def at_once() -> None:
        raise Boom

    hanging = Part()

    with pytest.raises(Boom):
        await gather(required={"a": at_once()}, optional={"b": hanging.run()})

    assert (hanging.began, hanging.ended) == (True, True)


@virtual
async def test_nothing_is_started_for_a_future_that_had_failed_already() -> None:
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(Boom())
    running, part = create_task(Part().run()), Part()
    await sleep(0)

    with pytest.raises(Boom) as caught:
        await gather(required={"a": part.run(), "b": failed}, optional={"c": running})

    assert notes(caught.value) == ['part "b"']
    assert not part.began
    assert running.cancelled()


@virtual
async def test_what_ends_programs_passes_from_any_part() -> None:
    class Exit(BaseException):
        pass

    part = Part()

    with pytest.raises(Exit) as caught:
        await gather(
            required={"a": part.run(), "b": fails(Boom())}, optional={"c": fails(Exit()), "d": Part(resists=3).run()}
        )

    assert part.ended
    assert notes(caught.value) == ['part "c"', 'part "b" failed: Boom()']


@virtual
async def test_what_ends_programs_ends_the_required_parts_at_once() -> None:
    class Exit(BaseException):
        pass

    began, part = now(), Part()

    with pytest.raises(Exit):
        await gather(required={"a": part.run()}, optional={"b": fails(Exit(), after=0.1)})

    assert part.ended
    assert now() - began == pytest.approx(0.1)


def test_an_interrupt_in_a_part_ends_the_program() -> None:
    part = Part()

    async def main() -> None:
        await gather(required={"a": part.run()}, optional={"b": fails(KeyboardInterrupt())})

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    assert part.ended


@virtual
@pytest.mark.parametrize("optional", [False, True])
async def test_a_part_that_was_cancelled_from_within_has_failed(optional: bool) -> None:
    async def gives_up() -> None:
        raise CancelledError("enough")

    other = Part()
    parts = {"a": gives_up()}
    call = gather(optional=parts) if optional else gather(required=parts, optional={"other": other.run()})
    end = await ended(call)

    error = end["a"].error if optional else end
    assert type(error) is Unknown
    assert str(error) == 'part "a": cancelled, though nobody here cancelled it'
    assert repr(error.__cause__) == "CancelledError('enough')"
    assert optional or other.ended


@virtual
async def test_a_task_that_somebody_else_cancels_has_failed() -> None:
    loop = asyncio.get_running_loop()
    theirs, odd = create_task(Part().run()), loop.create_future()
    loop.call_later(0.1, theirs.cancel)
    loop.call_later(0.1, odd.set_exception, CancelledError())

    page = await gather(optional={"theirs": theirs, "odd": odd})

    assert [type(answer.error) for answer in page.values()] == [Unknown, Unknown]


@virtual
async def test_neither_the_raised_error_nor_those_in_the_answers_are_in_a_circle() -> None:
    async def bad() -> None:
        await sleep(0)
        raise Boom

    async def gives_up() -> None:
        raise CancelledError

    async def main() -> list[weakref.ref[BaseException]]:
        page = await gather(optional={"a": bad(), "b": gives_up()})
        errors = [weakref.ref(answer.error) for answer in page.values() if answer.error]
        try:
            await gather(required={"a": bad(), "b": bad()}, optional={"c": Part().run()})
        except Boom as error:
            errors.append(weakref.ref(error))
        with Deadline.after(0.1):
            try:
                await gather(required={"a": sleep(1)})
            except TimeoutError as error:
                errors.append(weakref.ref(error))
        return errors

    gc.collect()
    gc.disable()
    try:
        errors = await main()
        left = [error() for error in errors]
    finally:
        gc.enable()

    assert left == [None] * 4


# -- the deadline


@virtual
async def test_upstreams_end_at_the_deadline_by_themselves_and_answer_as_they_do(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[Static("s")])
    async def with_default() -> str:
        await sleep(1000)
        return "never"

    @up.operation(idempotent=True)
    async def without() -> str:
        await sleep(1000)
        return "never"

    began = now()
    with Deadline.after(1.0):
        page = await gather(required={"a": with_default.ask()}, optional={"b": without.ask()})

    assert now() - began == pytest.approx(1.0)
    assert (page["a"].value, page["a"].source) == ("s", Source.STATIC)
    assert type(page["a"].error) is type(page["b"].error) is FailedTimeout


@virtual
async def test_what_knows_no_deadline_is_cut_shortly_after_it() -> None:
    began = now()

    with Deadline.after(1.0):
        page = await gather(
            required={"a": gives(1, after=0.9)}, optional={"b": sleep(100), "c": Part(then="late").run()}
        )

    assert now() - began == pytest.approx(1.05)
    assert page["a"] == Answer(1)
    assert type(page["b"].error) is UnknownTimeout
    assert page["b"].error.waited_for == "deadline"
    assert type(page["b"].error.__cause__) is CancelledError
    assert page["c"] == Answer("late")  # late, but here


@virtual
async def test_a_required_part_without_an_answer_by_the_deadline_is_a_timeout_that_names_it() -> None:
    began = now()

    with Deadline.after(1.0), pytest.raises(TimeoutError) as caught:
        await gather(
            required={"a": gives(1), "b": sleep(100), "c": Part(resists=3, then=Boom("closed")).run()},
            optional={"d": sleep(100)},
        )

    assert now() - began == pytest.approx(1.05)
    assert type(caught.value) is UnknownTimeout
    assert str(caught.value) == 'part "b": no answer by the deadline'
    assert notes(caught.value) == [
        'part "b"',
        'part "d" failed: UnknownTimeout(\'part "d": no answer by the deadline\')',
        "part \"c\" failed: Boom('closed')",
    ]


@virtual
async def test_a_part_is_cut_once_and_its_cleaning_up_is_waited_for() -> None:
    part = Part(resists=10)

    with Deadline.after(1.0), pytest.raises(TimeoutError):
        await gather(required={"a": sleep(100), "b": part.run()})

    assert (part.cancels, part.ended) == (1, True)


@virtual
async def test_a_deadline_that_has_passed_still_gives_parts_their_turn(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True, fallback=[Static("s")])
    async def ask() -> str:
        return "never"

    with Deadline.after(1.0):
        await sleep(10)
        began = now()
        page = await gather(required={"a": ask.ask()}, optional={"b": sleep(100)})

    assert page["a"].value == "s"
    assert type(page["b"].error) is UnknownTimeout
    assert now() - began == pytest.approx(0.05)


@virtual
async def test_a_gather_inside_a_gather_has_answered_before_it_is_cut() -> None:
    async def inner(depth: int) -> Any:
        if depth:
            return (await gather(required={"a": inner(depth - 1)}, optional={"b": sleep(100)}))["a"].value
        return (await gather(optional={"b": sleep(100)}))["b"].error

    with Deadline.after(1.0):
        page = await gather(required={"a": inner(3)})

    assert type(page["a"].value) is UnknownTimeout


@virtual
async def test_one_gather_after_another_has_as_much_time() -> None:
    for _ in range(2):
        began = now()
        with Deadline.after(1.0):
            await gather(optional={"a": sleep(100)})
        assert now() - began == pytest.approx(1.05)


@virtual
@pytest.mark.parametrize("failed_already", [False, True])
async def test_cleaning_up_after_a_failure_is_not_cut_by_the_deadline(failed_already: bool) -> None:
    cancels, loop = [], asyncio.get_running_loop()
    failed = loop.create_future()
    if failed_already:
        failed.set_exception(Boom())
    else:
        loop.call_later(0.5, failed.set_exception, Boom())

    async def slow() -> None:
        while True:
            try:
                return await sleep(3 if cancels else 1000)
            except CancelledError:
                cancels.append(now())

    task = create_task(slow())
    await sleep(0)
    with Deadline.after(1.0):
        error = await ended(gather(required={"a": failed}, optional={"b": task}))

    assert type(error) is Boom
    assert len(cancels) == 1


@virtual
@pytest.mark.parametrize("deadline", [nullcontext(), Deadline.from_headers({})], ids=["none", "endless"])
async def test_without_a_deadline_there_is_no_limit_and_no_timer(deadline: Any) -> None:
    loop = asyncio.get_running_loop()

    async def timers() -> list[Any]:
        await sleep(1e6)
        return list(loop._scheduled)  # type: ignore[attr-defined]

    with deadline:
        page = await gather(required={"a": timers()})

    assert page["a"] == Answer([])


@virtual
async def test_the_ambient_deadline_is_that_of_the_parts_and_the_callers_is_as_before() -> None:
    async def left() -> float:
        deadline = Deadline.current()
        assert deadline is not None
        return deadline.remaining()

    with Deadline.after(1.0):
        before = AMBIENT.get()
        page = await gather(required={"a": left()}, optional={"b": fails(Boom())})
        assert AMBIENT.get() is before

    assert page["a"].value == pytest.approx(1.0)
    assert AMBIENT.get() is None


@virtual
async def test_no_timer_is_left_whatever_the_end() -> None:
    loop = asyncio.get_running_loop()

    with Deadline.after(10.0):
        await gather(required={"a": gives(1, after=0.1)})
        await ended(gather(required={"a": fails(Boom())}))
        await gone(create_task(gather(required={"a": sleep(1)})))

    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]


# -- the caller leaves


@virtual
async def test_a_caller_who_leaves_takes_all_parts_along_and_waits_for_them() -> None:
    part, resisting, bad = Part(), Part(resists=5, then="late"), Part(resists=2, then=Boom("closed"))

    async def main() -> None:
        await gather(
            required={"a": part.run(), "b": resisting.run()}, optional={"c": bad.run(), "d": fails(Boom("early"))}
        )

    call = create_task(main())
    await sleep(0.1)
    call.cancel()
    with pytest.raises(CancelledError) as caught:
        await call

    assert (part.ended, resisting.ended, bad.ended) == (True, True, True)
    assert call.cancelling() == 1
    assert notes(caught.value) == ["part \"d\" failed: Boom('early')", "part \"c\" failed: Boom('closed')"]


@virtual
@pytest.mark.parametrize("turns", range(12))
async def test_a_caller_cancelled_after_any_number_of_turns_leaves_nothing(turns: int) -> None:
    before = asyncio.all_tasks()
    parts = [Part(), Part(resists=2), Part(resists=4, then="late")]

    async def main() -> None:
        failing = fails(Boom(), after=0.0) if turns % 2 else sleep(0)
        await gather(
            required={f"{n}": part.run() for n, part in enumerate(parts)},
            optional={"failing": failing, "inner": gather(required={"x": Part(resists=3).run()})},
        )

    call = create_task(main())
    await steps(turns)
    call.cancel()
    await asyncio.wait({call})

    assert call.cancelled()
    assert asyncio.all_tasks() == before
    assert all(part.ended == part.began for part in parts)


@virtual
async def test_a_caller_who_leaves_while_the_others_end_is_told_of_the_failure_in_a_note() -> None:
    part = Part(resists=5)

    async def main() -> None:
        await gather(required={"a": fails(Boom()), "b": part.run()})

    call = create_task(main())
    await steps(6)
    assert part.cancels == 1
    call.cancel()
    with pytest.raises(CancelledError) as caught:
        await call

    assert part.ended
    assert notes(caught.value) == ['part "a" failed: Boom()']


@virtual
async def test_what_ends_programs_passes_though_the_caller_has_left() -> None:
    class Exit(BaseException):
        pass

    async def exits() -> None:
        try:
            await sleep(1000)
        finally:
            raise Exit

    call = create_task(gather(required={"a": exits()}))
    await sleep(0.1)
    call.cancel()

    with pytest.raises(Exit):
        await call


@virtual
async def test_each_cancel_of_the_caller_reaches_a_part_that_ignores_them() -> None:
    cancels = []

    async def stubborn() -> None:
        while len(cancels) < 3:
            try:
                await sleep(1000)
            except CancelledError:
                cancels.append(now())

    call = create_task(gather(required={"a": stubborn()}))
    for _ in range(3):
        await sleep(1)
        call.cancel()
    await asyncio.wait({call})

    assert call.cancelled()
    assert len(cancels) == 3


@virtual
@pytest.mark.parametrize("turns", [0, 1])
async def test_a_caller_cancelled_in_the_turn_in_which_the_last_part_ends_has_left(turns: int) -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    call = create_task(gather(required={"a": first}, optional={"b": second}))
    await steps(2)

    first.set_result(1)
    second.set_exception(Boom())
    await steps(turns)
    call.cancel()
    with pytest.raises(CancelledError) as caught:
        await call

    assert notes(caught.value) == ['part "b" failed: Boom()']


@virtual
async def test_a_caller_cancelled_just_before_the_last_part_ends_has_left() -> None:
    last = asyncio.get_running_loop().create_future()
    call = create_task(gather(required={"a": last}))
    await steps(2)

    call.cancel()
    last.set_result(1)
    await asyncio.wait({call})

    assert call.cancelled()


@virtual
async def test_a_cancel_that_is_pending_ends_it_before_anything_is_started() -> None:
    part, running = Part(), create_task(Part(resists=2).run())
    await sleep(0)

    async def main() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await gather(required={"a": part.run()}, optional={"b": running})

    call = create_task(main())
    await asyncio.wait({call})

    assert call.cancelled()
    assert not part.began
    assert running.cancelled()


@virtual
async def test_a_cancel_of_the_past_is_no_news() -> None:
    async def main() -> Any:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        try:
            await sleep(1)
        except CancelledError:
            return await gather(required={"a": gives(1, after=0.1)})

    call = create_task(main())

    assert (await call)["a"] == Answer(1)
    assert call.cancelling() == 1


@virtual
async def test_a_timeout_around_it_is_a_timeout() -> None:
    part = Part(resists=2)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await gather(required={"a": part.run()})

    assert part.ended
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@virtual
async def test_inside_an_operation_its_limit_on_time_ends_the_parts(gate: Gateway) -> None:
    part = Part(resists=2)

    @gate.upstream("world", policy=QUIET).operation(idempotent=True, fallback=[Static("s")])
    async def page() -> Any:
        return await gather(required={"a": part.run()})

    with Deadline.after(1.0):
        answer = await page.ask()

    assert (answer.value, part.ended) == ("s", True)
    assert type(answer.error) is FailedTimeout
    assert_nothing_left(gate)


@virtual
@pytest.mark.parametrize("turns", [0, 1], ids=["before its first turn", "before the parts' first turn"])
async def test_cancelled_or_dropped_before_its_turn_it_complains_of_no_coroutine(turns: int) -> None:
    part, other = Part(), Part()

    call = create_task(gather(required={"a": part.run()}, optional={"b": gather(optional={"c": other.run()})}))
    await steps(turns)
    call.cancel()
    await asyncio.wait({call})
    gather(required={"a": part.run()}).close()

    assert call.cancelled()
    assert part.ended == part.began
    assert other.ended == other.began


@virtual
@pytest.mark.parametrize("turns", [0, 1], ids=["at its first wait", "waiting"])
async def test_thrown_away_while_it_waits_it_tells_the_parts_to_end(turns: int) -> None:
    part = Part()
    running = create_task(part.run())
    call = gather(required={"a": running})
    call.send(None)

    await steps(turns)
    call.close()
    await asyncio.wait({running})

    assert running.cancelled()


@virtual
async def test_thrown_away_before_its_parts_began_it_starts_none() -> None:
    part = Part()

    async def main() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        call = gather(required={"a": part.run()}, optional={"b": create_task(sleep(0))})
        call.send(None)  # it waits for the cancel that is pending
        call.close()

    call = create_task(main())
    await asyncio.wait({call})

    assert not part.began


# -- what is no part


def nothing() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "not awaitable": (lambda: {"required": {"a": 5}}, "gather required['a']: 5 is not awaitable"),
    "a function": (lambda: {"required": {"a": gives}}, "is not awaitable; give what a call gives"),
    "in both": (lambda: {"required": {"fine": gives(1)}}, "gather optional['fine']: the name is in required, too"),
    "no name": (lambda: {"required": {1: gives(1)}}, "gather required[1]: the name is no str"),
    "no mapping": (lambda: {"required": [nothing()]}, "gather required: [<Future pending>] is no mapping"),
    "a list of coroutines": (lambda: {"required": [gives(1), gives(2)]}, "is no mapping; give the parts by name"),
    "a coroutine": (lambda: {"required": gives(1)}, "is no mapping; give the parts by name"),
}


@virtual
@pytest.mark.parametrize(("parts", "message"), BAD.values(), ids=BAD)
async def test_what_is_no_part_is_told_before_anything_starts(parts: Callable[[], Any], message: str) -> None:
    part = Part()

    with pytest.raises(ConfigError) as caught:
        gather(**parts(), optional={"fine": part.run()})

    assert message in str(caught.value)
    assert caught.value.problem
    assert caught.value.remedy
    assert not part.began


@virtual
async def test_the_same_part_twice_is_told() -> None:
    part, task = Part(), create_task(gives(1))
    once = part.run()

    for parts in ({"required": {"a": once, "b": once}}, {"required": {"a": task}, "optional": {"b": task}}):
        with pytest.raises(ConfigError, match="it is the part 'a', too"):
            await gather(**parts)

    assert not part.began
    assert await task == 1  # a task goes on: nothing was touched


@virtual
async def test_parts_are_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        gather({"a": 1})  # type: ignore[misc]


@virtual
async def test_a_future_of_another_loop_is_told_and_nothing_is_started() -> None:
    other = asyncio.new_event_loop()
    part = Part()
    future = other.create_future()

    with pytest.raises(ConfigError, match="belongs to another event loop"):
        await gather(required={"a": part.run(), "b": future})
    other.close()

    assert not part.began


@virtual
async def test_a_task_cannot_gather_itself() -> None:
    part = Part()

    with pytest.raises(ConfigError, match="is the task that gathers"):
        await gather(required={"a": part.run()}, optional={"b": asyncio.current_task()})

    assert not part.began


@virtual
async def test_where_no_task_can_be_made_what_was_started_ends() -> None:
    loop = asyncio.get_running_loop()
    first, second = Part(), Part()
    made = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if len(made) == 1:
            raise RuntimeError("no more tasks")
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    try:
        error = await ended(gather(required={"a": first.run(), "b": second.run(), "c": gives(1)}))
    finally:
        loop.set_task_factory(None)

    assert str(error) == "no more tasks"
    assert made[0].cancelled()
    assert not second.began


# -- other loops


@virtual
@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
async def test_with_eager_tasks_a_failure_at_once_starts_no_other_part() -> None:
    async def at_once() -> None:
        raise Boom

    loop = asyncio.get_running_loop()
    before, after = Part(), Part()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        page = await gather(required={"a": gives(1), "b": gives(2, after=0.1)}, optional={"c": at_once()})
        error = await ended(gather(required={"a": before.run(), "b": at_once(), "c": after.run()}))
    finally:
        loop.set_task_factory(None)

    assert (page["a"], page["b"]) == (Answer(1), Answer(2))
    assert type(page["c"].error) is Boom
    assert notes(error) == ['part "b"']
    assert (before.ended, after.began) == (True, False)


def test_it_works_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> Any:
        part = Part()
        with Deadline.after(0.01):
            page = await gather(required={"a": gives(1)}, optional={"b": sleep(100), "c": fails(Boom())})
        error = await ended(gather(required={"a": part.run(), "b": fails(Boom())}))
        return page, error, part

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        page, error, part = runner.run(main())

    assert page["a"] == Answer(1)
    assert [type(page[name].error) for name in "bc"] == [UnknownTimeout, Boom]
    assert (type(error), part.ended) == (Boom, True)


# -- inside a try that ends the gather itself


@pytest.mark.virtual_time
@pytest.mark.parametrize("where", ["an operation", "a slot", "a gather in an operation"])
async def test_inside_a_limit_an_optional_part_that_hangs_costs_no_other(gate: Gateway, where: str) -> None:
    limits = TimeoutPolicy(call=0.5, attempt=0.5)
    outer = gate.upstream("page", policy=Policy(timeout=limits, retry=RetryPolicy(attempts=1)))
    began = now()

    async def parts() -> dict[str, object]:
        answers = await gather(required={"film": asyncio.sleep(0.1, "film")}, optional={"ad": asyncio.sleep(60)})
        return {name: answer.value for name, answer in answers.items()}

    async def page() -> dict[str, object]:
        if where == "a slot":
            async with outer.slot():
                return await parts()
        if where == "an operation":
            return await outer.operation(parts)()
        inner = outer.operation(name="page")(nested)
        return await inner()

    async def nested() -> dict[str, object]:
        return (await gather(required={"parts": parts()}))["parts"].value

    assert await page() == {"film": "film", "ad": None}
    assert now() - began == pytest.approx(0.47, abs=0.03)


@pytest.mark.virtual_time
@pytest.mark.parametrize("left", [0.02, 0.0])
async def test_where_little_time_is_left_the_parts_get_half_of_it(gate: Gateway, left: float) -> None:
    outer = gate.upstream(
        "page", policy=Policy(timeout=TimeoutPolicy(call=0.5, attempt=0.5), retry=RetryPolicy(attempts=1))
    )

    @outer.operation
    async def page() -> object:
        await asyncio.sleep(0.5 - left)
        return (await gather(optional={"ad": asyncio.sleep(60)}))["ad"].error

    ending = await ended(page())

    assert isinstance(ending, UnknownTimeout if left else FailedTimeout)


@pytest.mark.virtual_time
async def test_an_error_that_many_ask_for_does_not_grow() -> None:
    async def load() -> None:
        raise LookupError("no configuration")

    shared = asyncio.create_task(load())
    await asyncio.sleep(0)
    frames = set()

    for _ in range(5):
        error = await ended(gather(required={"configuration": shared}))
        frames.add(len(traceback.extract_tb(error.__traceback__)))

    assert error.__notes__ == ['part "configuration"']
    assert max(frames) <= 3
