"""Threads that wait for a call: beside the loop of an app, and in programs that have no loop at all."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway import (
    BulkheadFull,
    BulkheadPolicy,
    CircuitOpen,
    ConfigError,
    Deadline,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    Gateway,
    GatewayClosed,
    GatewayError,
    KeyNeeded,
    LastGood,
    Policy,
    Refused,
    Static,
    TimeoutPolicy,
    WrongLoop,
)
from gateway.background import Background
from gateway.testing import assert_nothing_left
from tests.support import QUIET, Boom, assert_all_gone, counted, ended, gone, until, wait_until

ROOT = Path(__file__).parents[2]
USER: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.fixture
def gate() -> Iterator[Gateway]:
    """A gateway that is closed at the end, with nothing left of it."""
    gate = Gateway()
    yield gate
    with suppress(WrongLoop):
        assert gate.close_blocking(join_for=10.0) == ()
    assert_all_gone(gate)
    assert not loops_in_background()


def loops_in_background() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == Background.NAME]


def in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """What a function gives in a thread of its own, which holds no clock."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            value = function(*args)
        except BaseException as error:
            future.set_exception(Left() if isinstance(error, CancelledError) else error)
        else:
            future.set_result(value)

    threading.Thread(target=run, daemon=True).start()
    return future


class Left(Exception):
    """A CancelledError, where a future of a thread cannot carry one."""


def pool(limit: int, *, attempt: float = 5.0, queue: int = 0, max_wait: float = 5.0) -> Policy:
    timeout = TimeoutPolicy(call=10.0, attempt=attempt)
    return replace(QUIET, bulkhead=BulkheadPolicy(limit=limit, queue=queue, max_wait=max_wait), timeout=timeout)


def sleeping(gate: Gateway, name: str = "inner", **declared: Any) -> Any:
    """An async operation that takes the seconds it is given."""

    @gate.upstream(name, policy=pool(50)).operation(idempotent=True, **declared)
    async def sleep(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return sleep


# -- a program without a loop


def test_a_program_without_a_loop_calls_and_gets_values_answers_and_errors(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, refused=(LookupError,), fallback=[Static("plan b")])
    async def ask(what: str) -> str:
        await asyncio.sleep(0)
        if what == "boom":
            raise Boom
        if what == "no":
            raise LookupError(what)
        return what

    live = ask.ask_blocking("ada")
    degraded = ask.ask_blocking("boom")
    with pytest.raises(LookupError) as refused:
        ask.call_blocking("no")

    assert ask.call_blocking("bob") == "bob"
    assert (live.value, live.source) == ("ada", "live")
    assert (degraded.value, degraded.source) == ("plan b", "static")
    assert isinstance(degraded.error, Failed)
    assert refused.value.args == ("no",)
    assert counted(up) == {"asked": 4, "live": 2, "static": 1, "refused": 1, "attempts": 4}


def test_a_plain_function_is_called_in_a_thread_of_its_upstream(gate: Gateway) -> None:
    operation = gate.upstream("world").operation(name="ask", idempotent=True)(lambda: threading.current_thread().name)

    assert operation.call_blocking() == "world-1"


def test_however_many_threads_come_first_one_loop_is_started(gate: Gateway) -> None:
    operation = sleeping(gate)
    starting_line = threading.Barrier(20)

    def call() -> float:
        starting_line.wait()
        return operation.call_blocking(0.001)

    with ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(call) for _ in range(20)]
        values = [one.result() for one in calls]

    assert values == [0.001] * 20
    assert len(loops_in_background()) == 1
    assert counted(gate["inner"]) == {"asked": 20, "live": 20, "attempts": 20}


def test_the_threads_context_is_copied(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> str:
        seen = USER.get()
        USER.set("the call's")
        return seen

    token = USER.set("ada")
    seen = ask.call_blocking()
    after = USER.get()
    USER.reset(token)

    assert (seen, after) == ("ada", "ada")


def test_the_threads_deadline_holds(gate: Gateway) -> None:
    operation = sleeping(gate)
    began = time.monotonic()

    with Deadline.after(0.05), pytest.raises(FailedTimeout) as late:
        operation.call_blocking(10.0)
    took = time.monotonic() - began
    with Deadline.after(0.0), pytest.raises(DeadlineExceeded):
        operation.call_blocking(10.0)

    assert 0.05 <= took < 5.0
    assert late.value.waited_for == "deadline"


def test_arguments_that_name_no_call_raise_and_nothing_is_counted(gate: Gateway) -> None:
    up = gate.upstream("world")

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(what: object) -> object:
        return what

    with pytest.raises(TypeError, match="what"):
        ask.call_blocking()
    with pytest.raises(KeyNeeded):
        ask.call_blocking(object())

    assert counted(up) == {}


def test_methods_have_both_spellings(gate: Gateway) -> None:
    class Movies:
        @gate.upstream("movies").operation(idempotent=True)
        async def by_name(self, name: str) -> tuple[Movies, str]:
            return self, name

    movies = Movies()

    assert movies.by_name.call_blocking("alien") == (movies, "alien")
    assert movies.by_name.ask_blocking("alien").value == (movies, "alien")
    assert Movies.by_name.call_blocking(movies, "alien") == (movies, "alien")


class Argument:
    """Something that a weak reference can watch."""


@pytest.mark.parametrize("kind", ["async", "plain", "plain that calls"])
@pytest.mark.parametrize("error", [None, Refused])
def test_what_is_over_keeps_nothing_alive(gate: Gateway, kind: str, error: type[Exception] | None) -> None:
    async def inside(argument: Argument) -> None:
        if error is not None:
            raise error

    def plain(argument: Argument) -> None:
        if error is not None:
            raise error

    def calling(argument: Argument) -> None:
        inner.call_blocking(argument)

    inner = gate.upstream("inner", policy=QUIET).operation(name="inner", idempotent=True)(inside)
    functions: dict[str, Callable[..., Any]] = {"async": inside, "plain": plain, "plain that calls": calling}
    operation = gate.upstream("world", policy=QUIET).operation(name="ask", idempotent=True)(functions[kind])
    watched = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            argument = Argument()
            watched.append(weakref.ref(argument))
            with suppress(Refused):
                operation.call_blocking(argument)
            del argument
        deadline = time.monotonic() + 2.0  # the threads have a line or two to go
        while any(one() is not None for one in watched) and time.monotonic() < deadline:
            time.sleep(0.001)
        alive = [one for one in watched if one() is not None]
    finally:
        gc.enable()

    assert not alive


def test_each_caller_gets_an_exception_of_its_own_with_the_way_it_came(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None:
        raise Boom("in the function")

    errors = []
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            ask.call_blocking()
        errors.append(failed)

    names = [entry.name for entry in errors[0].traceback]
    assert errors[0].value is not errors[1].value
    assert len(errors[0].traceback) == len(errors[1].traceback)
    assert names[0] == test_each_caller_gets_an_exception_of_its_own_with_the_way_it_came.__name__
    assert "_ask" in names
    assert isinstance(errors[0].value.__cause__, Boom)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_would_end_a_program_ends_the_thread_that_asked(gate: Gateway, kind: type[BaseException]) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask(*, ends: bool) -> str:
        if ends:
            raise kind
        return "well"

    with pytest.raises(kind):
        ask.call_blocking(ends=True)

    assert ask.call_blocking(ends=False) == "well"


# -- opening and closing


def test_with_opens_it_and_closes_it(gate: Gateway) -> None:
    operation = sleeping(gate)

    with gate as same:
        inside = operation.call_blocking(0.0), len(loops_in_background())
    with pytest.raises(GatewayClosed) as closed:
        operation.call_blocking(0.0)
    loops = loops_in_background()
    with gate:
        again = operation.call_blocking(0.0)

    assert same is gate
    assert inside == (0.0, 1)
    assert (closed.value.upstream, closed.value.operation) == ("inner", "sleep")
    assert not loops
    assert again == 0.0
    assert counted(gate["inner"]) == {"asked": 2, "live": 2, "attempts": 2}


def test_it_can_be_opened_twice_and_closed_twice(gate: Gateway) -> None:
    gate.open_blocking()
    gate.open_blocking()
    loops = len(loops_in_background())

    assert gate.close_blocking() == ()
    assert gate.close_blocking() == ()
    assert loops == 1


def test_what_was_never_opened_is_closed_all_the_same(gate: Gateway) -> None:
    operation = sleeping(gate)

    stuck = gate.close_blocking()

    assert stuck == ()
    with pytest.raises(GatewayClosed):
        operation.call_blocking(0.0)
    assert not loops_in_background()


def test_async_code_is_told_of_the_loop_in_the_background_until_it_is_closed(gate: Gateway) -> None:
    operation = sleeping(gate)
    operation.call_blocking(0.0)

    error = asyncio.run(ended(operation(0.0)))
    opening = asyncio.run(ended(gate.open()))
    closing = asyncio.run(ended(gate.close()))
    gate.close_blocking()

    async def main() -> float:
        async with gate:
            return await operation(0.0)

    assert [type(one) for one in (error, opening, closing)] == [WrongLoop] * 3
    assert asyncio.run(main()) == 0.0


def test_closing_lets_calls_finish_and_then_cancels_them(gate: Gateway) -> None:
    operation = sleeping(gate)
    quick, slow = in_thread(operation.call_blocking, 0.05), in_thread(operation.call_blocking, 30.0)
    wait_until(lambda: gate["inner"].snapshot().counts.attempts == 2)

    stuck = gate.close_blocking(drain_for=0.1)

    assert stuck == ()
    assert quick.result(5) == 0.05
    assert type(slow.exception(5)) is Left
    assert counted(gate["inner"]) == {"asked": 2, "live": 1, "cancelled": 1, "attempts": 2}


def test_closing_names_threads_that_are_stuck(gate: Gateway) -> None:
    go = threading.Event()
    operation = gate.upstream("world", policy=pool(2, attempt=0.02)).operation(name="ask", idempotent=True)(go.wait)
    with pytest.raises(FailedTimeout):
        operation.call_blocking(10)

    stuck = gate.close_blocking(join_for=0.05)
    go.set()

    assert stuck == ("world-1",)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "world-1"])
    with gate:  # on another loop its place is free again
        assert gate["world"].snapshot().bulkhead.in_use == 0


def test_a_loop_that_is_held_up_is_left_alone_with_that(gate: Gateway) -> None:
    go, began = threading.Event(), threading.Event()

    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask(*, blocks: bool) -> str:
        if blocks:
            began.set()
            go.wait(10)
        return "well"

    call = in_thread(lambda: ask.call_blocking(blocks=True))
    began.wait(5)
    stuck = gate.close_blocking(drain_for=0.0, join_for=0.0)
    with gate:
        again = ask.call_blocking(blocks=False)
    go.set()

    assert stuck == (Background.NAME,)
    assert again == "well"
    assert call.exception(5) is None or type(call.exception()) is Left
    wait_until(lambda: not loops_in_background())


def test_many_threads_may_close_it_at_once(gate: Gateway) -> None:
    operation = sleeping(gate)
    operation.call_blocking(0.0)
    starting_line = threading.Barrier(8)

    def close() -> tuple[str, ...]:
        starting_line.wait()
        return gate.close_blocking()

    closes = [in_thread(close) for _ in range(8)]

    assert [one.result(10) for one in closes] == [()] * 8
    with pytest.raises(GatewayClosed):
        operation.call_blocking(0.0)


def test_a_loop_that_could_not_be_started_is_started_the_next_time(gate: Gateway, monkeypatch) -> None:
    operation = sleeping(gate)

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        with pytest.raises(RuntimeError, match="new thread"):
            operation.call_blocking(0.0)

    assert operation.call_blocking(0.0) == 0.0


def test_what_keeps_it_from_opening_is_told_to_each_who_asks(gate: Gateway, monkeypatch) -> None:
    operation = sleeping(gate)

    def broken(*_: object) -> None:
        raise Boom

    with monkeypatch.context() as patched:
        patched.setattr(gate["inner"], "bind", broken)
        with pytest.raises(RuntimeError, match="could not be opened") as caught:
            operation.call_blocking(0.0)
    gate._loop = None  # the half that was open is closed

    assert isinstance(caught.value.__cause__, Boom)
    assert operation.call_blocking(0.0) == 0.0


def test_who_opens_while_another_closes_waits_for_that(gate: Gateway) -> None:
    operation = sleeping(gate)
    call = in_thread(operation.call_blocking, 30.0)
    wait_until(lambda: gate["inner"].snapshot().counts.attempts == 1)

    closing = in_thread(lambda: gate.close_blocking(drain_for=0.1))
    wait_until(lambda: gate._closing is not None)
    dying = gate._loop
    gate.open_blocking()

    assert gate._loop is not dying
    assert operation.call_blocking(0.0) == 0.0
    assert closing.result(5) == ()
    assert type(call.exception(5)) is Left


# -- in the wrong place


@pytest.mark.asyncio
async def test_a_close_that_is_cut_short_still_dismisses_the_threads() -> None:
    gate = Gateway()
    plain = gate.upstream("plain", policy=QUIET).operation(idempotent=True)(threading.current_thread)
    sleep = sleeping(gate)
    thread = await plain()
    call = asyncio.create_task(sleep(0.05))
    await asyncio.sleep(0)

    closing = asyncio.create_task(gate.close())
    await asyncio.sleep(0.005)
    closing.cancel()
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(CancelledError):
        await closing

    await until(lambda: not thread.is_alive())
    await asyncio.wait([call])
    assert await gate.close() == ()


@pytest.mark.asyncio
async def test_on_the_loop_itself_it_is_an_error_with_a_remedy_and_nothing_is_counted() -> None:
    gate = Gateway()
    operation = sleeping(gate)
    await operation(0.0)

    with pytest.raises(WrongLoop, match=r"inner\.sleep .* await it, or .*to_thread\(sleep\.call_blocking"):
        operation.call_blocking(0.0)
    with pytest.raises(WrongLoop, match=r"await gate\.open"):
        gate.open_blocking()
    with pytest.raises(WrongLoop, match=r"await gate\.close"):
        gate.close_blocking()

    assert counted(gate["inner"]) == {"asked": 1, "live": 1, "attempts": 1}
    await gate.close()


def test_on_any_other_loop_too(gate: Gateway) -> None:
    operation = sleeping(gate)
    operation.call_blocking(0.0)

    async def main() -> None:
        operation.call_blocking(0.0)

    with pytest.raises(WrongLoop):
        asyncio.run(main())
    assert counted(gate["inner"])["asked"] == 1


@pytest.mark.asyncio
async def test_a_gateway_on_the_apps_loop_is_opened_and_closed_there() -> None:
    gate = Gateway()
    async with gate:
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(gate.open_blocking)
        with pytest.raises(WrongLoop):
            await asyncio.to_thread(gate.close_blocking)

        assert await asyncio.to_thread(sleeping(gate).call_blocking, 0.0) == 0.0


def test_on_the_thread_of_a_loop_that_does_not_run_it_is_an_error_too(gate: Gateway) -> None:
    operation = sleeping(gate)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(operation(0.0))

    with pytest.raises(WrongLoop, match="does not run"):
        operation.call_blocking(0.0)
    loop.close()

    assert operation.call_blocking(0.0) == 0.0


# -- a loop that goes away


def test_a_loop_that_does_not_run_is_waited_for_but_not_for_ever(gate: Gateway) -> None:
    operation = sleeping(gate)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(operation(0.0))

    error = in_thread(operation.call_blocking, 0.0).exception(5)
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()

    assert type(error) is GatewayClosed
    assert (error.upstream, error.operation) == ("inner", "sleep")
    assert counted(gate["inner"]) == {"asked": 1, "live": 1, "attempts": 1}


def test_a_loop_that_is_closed_under_a_call_cancels_it(gate: Gateway) -> None:
    operation = sleeping(gate)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(gate.open())
    call = in_thread(operation.call_blocking, 30.0)
    loop.run_until_complete(until(lambda: gate["inner"].snapshot().counts.attempts))

    tasks = asyncio.all_tasks(loop)
    loop.close()
    error = call.exception(5)
    again = operation.call_blocking(0.0)
    for task in tasks:
        task._log_destroy_pending = False

    assert type(error) is Left
    assert again == 0.0
    assert counted(gate["inner"]) == {"asked": 2, "live": 1, "cancelled": 1, "attempts": 2}


def test_an_app_that_ends_cancels_the_calls_of_its_threads(gate: Gateway) -> None:
    operation = sleeping(gate)
    calls = []

    async def main() -> None:
        async with gate:
            calls.extend(in_thread(operation.call_blocking, 30.0) for _ in range(3))
            await until(lambda: gate["inner"].snapshot().counts.attempts == 3)
            await gate.close(drain_for=0.0)

    asyncio.run(main())

    assert [type(call.exception(5)) for call in calls] == [Left] * 3
    assert counted(gate["inner"]) == {"asked": 3, "cancelled": 3, "attempts": 3}


def test_who_comes_while_an_app_closes_is_refused(gate: Gateway) -> None:
    operation = sleeping(gate)

    async def main() -> BaseException | None:
        await gate.open()
        slow = in_thread(operation.call_blocking, 0.2)
        await until(lambda: gate["inner"].snapshot().counts.attempts == 1)
        closing = asyncio.ensure_future(gate.close())
        await until(lambda: gate._closing is not None)
        refused = await asyncio.to_thread(in_thread(operation.call_blocking, 0.0).exception, 5)
        await closing
        assert slow.result(5) == 0.2
        return refused

    assert type(asyncio.run(main())) is GatewayClosed


def test_what_ends_the_program_on_its_main_thread_still_does(gate: Gateway) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None:
        raise SystemExit(3)

    calls = []

    async def main() -> None:
        await gate.open()
        calls.append(in_thread(ask.call_blocking))
        await asyncio.sleep(60)

    with pytest.raises(SystemExit):
        asyncio.run(main())

    assert type(calls[0].exception(5)) is SystemExit


# -- threads whose own caller leaves


class Nested:
    """A plain function that calls an async operation, and what becomes of the two."""

    def __init__(self, gate: Gateway, policy: Policy) -> None:
        self.inner = sleeping(gate)
        self.ends: list[BaseException | float] = []
        self.refused: list[BaseException] = []
        self.ended = threading.Event()
        self.outer: Any = gate.upstream("outer", policy=policy).operation(name="outer", idempotent=True)(self._work)

    def _work(self, seconds: float) -> float:
        try:
            self.ends.append(self.inner.call_blocking(seconds))
        except BaseException as error:
            self.ends.append(error)
            try:
                self.inner.call_blocking(0.0)
            except BaseException as refused:
                self.refused.append(refused)
            raise
        finally:
            self.ended.set()
        return seconds


@pytest.mark.asyncio
@pytest.mark.parametrize("leaves", ["cancelled", "timed out"])
async def test_when_the_caller_of_a_thread_leaves_the_call_it_waits_for_is_cancelled(leaves: str) -> None:
    async with Gateway() as gate:
        nested = Nested(gate, pool(1, attempt=0.05 if leaves == "timed out" else 5.0))
        call = asyncio.ensure_future(nested.outer(30.0))
        await until(lambda: gate["inner"].snapshot().counts.attempts == 1)

        await gone(call) if leaves == "cancelled" else await ended(call)
        left_at = time.monotonic()
        await until(lambda: gate["outer"].snapshot().bulkhead.in_use == 0)

        assert time.monotonic() - left_at < 2.0
        assert nested.ended.is_set()
        # Where the time is over for both at the same instant, the inner call may be told so first.
        assert isinstance(nested.ends[0], CancelledError if leaves == "cancelled" else (CancelledError, FailedTimeout))
        assert [type(one) for one in nested.refused] == [CancelledError]
        assert gate["inner"].snapshot().counts.asked == 1
        assert_nothing_left(gate)


@pytest.mark.asyncio
async def test_a_call_that_ends_in_the_moment_its_caller_leaves_is_cancelled_all_the_same() -> None:
    async with Gateway() as gate:
        up = gate.upstream("inner", policy=QUIET)
        call: asyncio.Task[None]

        @up.operation(idempotent=True)
        async def last() -> str:
            call.cancel()
            return "too late"

        seen: list[object] = []

        def work() -> None:
            try:
                seen.append(last.call_blocking())
            except CancelledError as cancelled:
                seen.append(type(cancelled))
                raise

        outer = gate.upstream("outer", policy=pool(1)).operation(name="outer", idempotent=True)(work)
        call = asyncio.ensure_future(outer())
        await asyncio.wait({call})
        await until(lambda: gate["outer"].snapshot().bulkhead.in_use == 0)

        assert call.cancelled()
        assert seen in (
            [CancelledError],
            ["too late"],
        )  # the thread is told on the same turn of the loop, or had gone on
        assert_nothing_left(gate)


@pytest.mark.asyncio
async def test_a_thread_that_goes_on_after_its_caller_left_starts_no_call() -> None:
    go, seen = threading.Event(), []
    async with Gateway() as gate:
        inner = sleeping(gate)

        def work() -> None:
            go.wait(10)
            try:
                inner.call_blocking(0.0)
            except BaseException as error:
                seen.append(error)

        outer = gate.upstream("outer", policy=pool(1)).operation(name="outer", idempotent=True)(work)
        call = asyncio.ensure_future(outer())
        await until(lambda: gate["outer"].snapshot().counts.attempts == 1)
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})
        go.set()
        await until(lambda: gate["outer"].snapshot().bulkhead.in_use == 0)

        assert [type(error) for error in seen] == [CancelledError]
        assert counted(gate["inner"]) == {}
        assert_nothing_left(gate)


@pytest.mark.asyncio
async def test_the_next_job_of_a_thread_is_not_taken_for_the_one_before() -> None:
    async with Gateway() as gate:
        nested = Nested(gate, pool(1, queue=1))
        call = asyncio.ensure_future(nested.outer(30.0))
        await until(lambda: gate["inner"].snapshot().counts.attempts == 1)
        call.cancel()
        await asyncio.wait({call})

        assert await nested.outer(0.0) == 0.0


@pytest.mark.virtual_time
async def test_the_deadline_of_the_caller_holds_in_the_thread_and_its_calls() -> None:
    async with Gateway() as gate:
        remaining = []

        @gate.upstream("inner", policy=QUIET).operation(idempotent=True)
        async def inner() -> None:
            remaining.append(Deadline.current().remaining())

        outer = gate.upstream("outer", policy=pool(1)).operation(name="outer", idempotent=True)(inner.call_blocking)
        with Deadline.after(2.0):
            await outer()

        assert remaining == [2.0]


@pytest.mark.asyncio
async def test_a_full_pool_that_calls_itself_is_refused_and_not_stuck() -> None:
    async with Gateway() as gate:
        up = gate.upstream("world", policy=pool(1, queue=1, max_wait=0.03))

        @up.operation(idempotent=True)
        def again(depth: int) -> int:
            return depth and again.call_blocking(depth - 1)

        began = time.monotonic()
        error = await ended(again(1))
        took = time.monotonic() - began

        assert isinstance(error, Failed)
        assert isinstance(error.__cause__, BulkheadFull)
        assert error.__cause__.reason == "max_wait"
        assert 0.03 <= took < 1.0
        assert await again(0) == 0
        assert_nothing_left(gate)


def test_two_pools_may_call_each_other(gate: Gateway) -> None:
    one, two = gate.upstream("one", policy=pool(8, queue=100)), gate.upstream("two", policy=pool(8, queue=100))

    @one.operation(idempotent=True)
    def to_two(depth: int) -> int:
        return depth and 1 + to_one.call_blocking(depth - 1)

    @two.operation(idempotent=True)
    def to_one(depth: int) -> int:
        return depth and 1 + to_two.call_blocking(depth - 1)

    with ThreadPoolExecutor(4) as threads:
        values = list(threads.map(to_two.call_blocking, [3] * 4))

    assert values == [3] * 4
    assert_nothing_left(gate)


def test_hundreds_of_threads_share_the_places(gate: Gateway) -> None:
    up = gate.upstream("world", policy=pool(7, queue=1000))
    lock, running, most = threading.Lock(), [0], [0]

    @up.operation(idempotent=True)
    def ask(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.0005)
        with lock:
            running[0] -= 1
        return number

    with ThreadPoolExecutor(200) as threads:
        values = list(threads.map(ask.call_blocking, range(1000)))

    assert values == list(range(1000))
    assert most[0] == 7
    assert counted(up) == {"asked": 1000, "live": 1000, "attempts": 1000}
    assert_nothing_left(gate)


def test_who_closes_while_another_thread_opens_it_wins(gate: Gateway) -> None:
    operation = sleeping(gate)
    with gate._opening:  # the loop runs, and is about to be opened
        call = in_thread(operation.call_blocking, 0.0)
        gate._closed = True

    assert type(call.exception(5)) is GatewayClosed
    wait_until(lambda: not loops_in_background())


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("change", ["tune", "tune_fields", "policy", "isolate", "restore"])
def test_what_a_thread_tunes_or_isolates_reaches_who_waits_at_once(gate: Gateway, change: str, debug: bool) -> None:
    up = gate.upstream("pool", policy=pool(1, queue=5))
    end = threading.Event()

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> float:
        while seconds and not end.is_set():
            await asyncio.sleep(0.001)
        return seconds

    gate.open_blocking()
    assert gate._loop is not None
    gate._loop.set_debug(debug)
    holder = in_thread(ask.call_blocking, 1.0)
    wait_until(lambda: up.snapshot().bulkhead.in_use)
    waiter = in_thread(ask.call_blocking, 0.0)
    wait_until(lambda: up.snapshot().bulkhead.waiting)

    if change == "tune":
        up.tune(bulkhead=BulkheadPolicy(limit=2))
    elif change == "tune_fields":
        up.tune_fields({"bulkhead.limit": 2})
    elif change == "policy":
        up.policy = pool(2, queue=5)
    else:
        up.isolate()
    if change == "restore":
        up.restore()

    if change in {"isolate", "restore"}:
        assert type(waiter.exception(0.5)) is CircuitOpen
    else:
        assert waiter.result(0.5) == 0.0
    end.set()
    assert holder.result(5) == 1.0
    up.restore()


def test_what_a_thread_tunes_wrongly_is_its_error_and_changes_nothing(gate: Gateway) -> None:
    up = gate.upstream("pool", policy=pool(1))
    gate.open_blocking()

    with pytest.raises(ConfigError) as caught:
        up.tune_fields({"bulkhead.limit": 0})

    assert caught.value.field == "bulkhead.limit"
    assert up.policy == pool(1)


def test_on_another_loop_tuning_is_an_error_and_changes_nothing(gate: Gateway) -> None:
    up = gate.upstream("pool", policy=pool(1))
    gate.open_blocking()
    acts: list[Callable[[], object]] = [
        up.isolate,
        up.restore,
        lambda: up.tune_fields({"bulkhead.limit": 2}),
        lambda: up.tune(bulkhead=BulkheadPolicy(limit=2)),
    ]

    async def use() -> None:
        for act in acts:
            with pytest.raises(WrongLoop):
                act()

    asyncio.run(use())
    assert up.policy == pool(1)
    assert up.snapshot().breaker.state == "closed"


def test_on_a_loop_that_ends_meanwhile_it_is_done_right_here(gate: Gateway) -> None:
    up = gate.upstream("pool", policy=pool(1))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(gate.open())
    entered, go_on = threading.Event(), threading.Event()

    async def hold_up() -> None:
        entered.set()
        loop.stop()
        go_on.wait(5)

    task = loop.create_task(hold_up())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    entered.wait(5)
    tuned = in_thread(up.tune_fields, {"bulkhead.limit": 2})
    time.sleep(0.02)
    go_on.set()
    thread.join(5)

    tuned.result(5)

    assert up.policy.bulkhead.limit == 2
    assert task.done()
    loop.run_until_complete(gate.close())
    loop.close()


def test_who_opens_in_the_moment_another_closes_what_is_not_open_is_not_lost(gate: Gateway) -> None:
    operation = sleeping(gate)
    opened: list[Future[Any]] = []

    class Between:
        """In the place of a watch: told to stop between look and write."""

        def stop(self) -> None:
            if not opened:
                opened.append(in_thread(gate.open_blocking))
                time.sleep(0.02)  # enough for a gateway that nothing guards

        def start(self, _: object) -> None: ...

        def listen(self) -> None: ...

    gate._watch = Between()  # type: ignore[assignment]

    gate.close_blocking()
    opened[0].result(5)

    assert gate._is_open()
    assert in_thread(operation.call_blocking, 0.0).result(5) == 0.0


@pytest.mark.asyncio
async def test_who_opens_in_the_moment_a_loop_closes_what_is_not_open_is_not_lost() -> None:
    gate = Gateway()
    operation = sleeping(gate)
    opened: list[Future[Any]] = []

    class Between:
        def stop(self) -> None:
            if not opened:
                opened.append(in_thread(gate.open_blocking))
                time.sleep(0.02)

        def start(self, _: object) -> None: ...

        def listen(self) -> None: ...

    gate._watch = Between()  # type: ignore[assignment]

    await gate.close()
    await asyncio.to_thread(opened[0].result, 5)

    assert await asyncio.to_thread(operation.call_blocking, 0.0) == 0.0
    assert await asyncio.to_thread(gate.close_blocking) == ()


def test_a_loop_in_the_background_that_the_gateway_is_not_open_on_is_replaced(gate: Gateway) -> None:
    operation = sleeping(gate)
    gate.open_blocking()
    gate._loop = None

    assert in_thread(operation.call_blocking, 0.0).result(5) == 0.0
    wait_until(lambda: len(loops_in_background()) == 1)


def test_a_loop_in_the_background_that_was_given_up_before_it_began_opens_nothing(gate: Gateway) -> None:
    operation = sleeping(gate)
    given_up = Background(gate._open_unless_closed)
    given_up.stop()

    given_up.start()
    given_up.wait()

    assert type(given_up.error) is GatewayClosed
    assert given_up.join(5.0) == ()
    with gate:
        assert in_thread(operation.call_blocking, 0.0).result(5) == 0.0


# -- virtual time


@pytest.mark.virtual_time
@pytest.mark.parametrize("where", ["a pool's thread", "an executor's thread", "a thread of its own"])
async def test_a_thread_that_waits_does_not_hold_the_clock(where: str) -> None:
    async with Gateway() as gate:
        inner, loop = sleeping(gate), asyncio.get_running_loop()
        held = []

        def work() -> float:
            value = inner.call_blocking(3.0)
            held.append(loop.held)
            return value

        began, real = loop.time(), time.monotonic()
        if where == "a pool's thread":
            value = await gate.upstream("outer", policy=pool(1)).operation(name="outer", idempotent=True)(work)()
        elif where == "an executor's thread":
            value = await asyncio.to_thread(work)
        else:
            value = await asyncio.wrap_future(in_thread(work))

        own = where == "a thread of its own"  # the clock knows nothing of it, and may go on when its call is over
        assert value == 3.0
        assert loop.time() - began == 3.0 or own
        assert time.monotonic() - real < 1.0
        assert held == [not own]
        assert not loop.held


@pytest.mark.virtual_time
async def test_the_clock_stands_still_again_before_the_thread_goes_on() -> None:
    async with Gateway() as gate:
        inner, loop = sleeping(gate), asyncio.get_running_loop()

        def work() -> float:
            inner.call_blocking(1.0)
            before = loop.time()
            time.sleep(0.02)
            return loop.time() - before

        ticking = asyncio.ensure_future(asyncio.sleep(1000.0))
        passed = await gate.upstream("outer", policy=pool(1)).operation(name="outer", idempotent=True)(work)()
        ticking.cancel()

        assert passed == 0.0


@pytest.mark.virtual_time
async def test_a_refused_call_leaves_the_clock_as_it_was() -> None:
    async with Gateway() as gate:
        inner, loop = sleeping(gate), asyncio.get_running_loop()
        await inner(0.0)
        await gate.close()

        error = await ended(asyncio.to_thread(inner.call_blocking, 0.0))

        assert type(error) is GatewayClosed
        assert loop._threads == 0


@pytest.mark.virtual_time
async def test_a_deadline_of_a_threads_real_clock_counts_virtual_seconds_on_the_loop() -> None:
    async with Gateway() as gate:
        inner, loop = sleeping(gate), asyncio.get_running_loop()

        def work() -> None:
            with Deadline.after(2.0), pytest.raises(FailedTimeout):
                inner.call_blocking(60.0)

        began = loop.time()
        await asyncio.to_thread(work)

        assert 1.0 < loop.time() - began <= 2.0


# -- a random storm


@pytest.mark.parametrize("seed", range(6))
def test_whoever_calls_leaves_or_closes_it_all_adds_up_and_every_thread_ends(gate: Gateway, seed: int) -> None:
    from random import Random

    random = Random(seed)
    inner = sleeping(gate)
    names = ("a", "b")
    operations = []
    for name in names:
        policy = pool(random.choice([2, 4, 8]), queue=random.choice([0, 10, 100]), max_wait=0.02, attempt=0.02)

        @gate.upstream(name, policy=policy).operation(idempotent=random.choice([True, False]))
        def work(depth: int, seconds: float) -> int:
            inner.call_blocking(seconds)
            if depth:
                random.choice(operations).call_blocking(depth - 1, seconds)
            if seconds > 0.009:
                raise Boom
            return depth

        operations.append(work)
    over = threading.Event()
    ends: list[object] = []

    def caller(seed: int) -> None:
        own = Random(seed)
        while not over.is_set():
            try:
                with Deadline.after(own.choice([0.003, 0.01, 1.0])):
                    ends.append(own.choice(operations).call_blocking(own.randrange(3), own.random() * 0.01))
            except BaseException as error:
                ends.append(error)
                time.sleep(0.001)  # twelve that spin while it is closed would leave nobody the time to open it

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(12)]
    for thread in callers:
        thread.start()
    for _ in range(4):
        time.sleep(0.03)
        stuck = gate.close_blocking(drain_for=random.choice([0.0, 0.005]))
        assert stuck == ()
        gate.open_blocking()
    over.set()
    for thread in callers:
        thread.join(10)

    assert not [thread for thread in callers if thread.is_alive()]
    wait_until(lambda: not any(up.snapshot().bulkhead.in_use for up in gate))
    assert_nothing_left(gate)
    assert all(isinstance(end, (int, GatewayError, CancelledError)) for end in ends), Counter(map(type, ends))
    assert sum(isinstance(end, int) for end in ends) > 0
    assert gate.close_blocking() == ()
    assert not [thread for thread in threading.enumerate() if thread.name[:2] in {"a-", "b-"}]


# -- programs


PROGRAM = """
import asyncio, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 does not like a fork of a program with threads
from gateway import *

gate = Gateway()
up = gate.upstream("world", policy=Policy(retry=RetryPolicy(attempts=1)))

@up.operation(idempotent=True)
async def sleep(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds

@up.operation(idempotent=True)
def plain(seconds: float) -> float:
    time.sleep(seconds)
    return seconds

"""

ENDS = {
    "open": "print(sleep.call_blocking(0.0), plain.call_blocking(0.0))",
    "closed": "with gate: print(sleep.call_blocking(0.0), plain.call_blocking(0.0))",
    "with a call in flight": """
        threading.Thread(target=sleep.call_blocking, args=(60.0,), daemon=True).start()
        threading.Thread(target=plain.call_blocking, args=(60.0,), daemon=True).start()
        while up.snapshot().counts.attempts < 2: time.sleep(0.001)
        print(0.0, 0.0)
        """,
    "with an executor used": """
        @up.operation(idempotent=True)
        async def in_executor() -> float:
            return await asyncio.to_thread(float, 0)
        print(in_executor.call_blocking(), plain.call_blocking(0.0))
        """,
    "with sys.exit": "print(sleep.call_blocking(0.0), plain.call_blocking(0.0)); sys.exit(0)",
    "after its own atexit": """
        import atexit
        print(sleep.call_blocking(0.0), end=" ")
        atexit.register(lambda: print(sleep.call_blocking(0.0)))
        """,
    "after async code used it too": """
        print(sleep.call_blocking(0.0), end=" ")
        gate.close_blocking()
        async def main():
            async with gate:
                print(await sleep(0.0))
        asyncio.run(main())
        """,
}


def script(text: str) -> subprocess.Popen[str]:
    from textwrap import dedent

    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", PROGRAM + dedent(text)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = program.communicate(timeout=20)
    return program.returncode, out, err


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_a_program_ends_without_a_word(text: str) -> None:
    began = time.monotonic()

    assert said(script(text)) == (0, "0.0 0.0\n", "")
    assert time.monotonic() - began < 10


def test_at_the_end_of_the_program_calls_in_flight_end_in_order() -> None:
    program = script("""
        @up.operation(idempotent=True)
        async def hanging() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                print("closed", flush=True)

        threading.Thread(target=hanging.call_blocking, daemon=True).start()
        while not up.snapshot().counts.attempts: time.sleep(0.001)
        """)

    assert said(program) == (0, "closed\n", "")


def test_an_interrupt_cancels_the_call_and_is_raised() -> None:
    program = script("""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
        cancelled = []

        @up.operation(idempotent=True)
        async def stubborn() -> None:
            try:
                print("asked", flush=True)
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)
                cancelled.append(True)
                raise

        try:
            stubborn.call_blocking()
        except KeyboardInterrupt:
            counts = up.snapshot().counts
            print("interrupted", cancelled, counts.cancelled, counts.in_flight, sleep.call_blocking(0.0))
        """)

    assert program.stdout is not None
    assert program.stdout.readline() == "asked\n"
    program.send_signal(signal.SIGINT)

    assert said(program) == (0, "interrupted [True] 1 0 0.0\n", "")


FORKED = """
    def child() -> None:
        try:
            print("child", {use}, len(threading.enumerate()), flush=True)
            gate.close_blocking()
            code = 0
        except BaseException as error:
            print(repr(error), flush=True)
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def fork() -> None:
        pid = os.fork()
        if not pid:
            child()
        print("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "parent",
    [
        "gate.open_blocking(); plain.call_blocking(0.0); fork(); print(sleep.call_blocking(0.0))",
        """
        threading.Thread(target=sleep.call_blocking, args=(0.5,)).start()
        while not up.snapshot().counts.attempts: time.sleep(0.001)
        fork()
        print(sleep.call_blocking(0.0))
        """,
        """
        async def main():
            await sleep(0.0)
            fork()
            await asyncio.to_thread(fork)
            print(await sleep(0.0))
        asyncio.run(main())
        """,
    ],
    ids=["in the background", "with a call in flight", "on a loop of its own"],
)
def test_after_a_fork_the_child_starts_anew_and_the_parent_goes_on(parent: str) -> None:
    from textwrap import dedent

    forked = dedent(FORKED.format(use="sleep.call_blocking(0.0), plain.call_blocking(0.0)"))

    code, out, err = said(script(forked + dedent(parent)))

    assert (code, err) == (0, "")
    forks = 2 if "to_thread" in parent else 1
    assert out == "child 0.0 0.0 3\ncode 0\n" * forks + "0.0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_async_code_starts_anew_too() -> None:
    from textwrap import dedent

    forked = dedent(FORKED.format(use="asyncio.run(sleep(0.0))"))

    assert said(script(forked + "sleep.call_blocking(0.0); fork()")) == (0, "child 0.0 1\ncode 0\n", "")
