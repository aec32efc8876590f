"""One call from a thread: what becomes of it where the loop, or a cancel, comes between."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Callable, Coroutine
from threading import Thread
from typing import Any

import pytest

from gateway import GatewayClosed
from gateway.blocking import Visit
from tests.support import Boom


def end_of(visit: Visit[Any], patience: float = 5.0) -> tuple[Thread, list[object]]:
    """A thread that waits for it, and what it gets."""
    ends: list[object] = []

    def wait() -> None:
        try:
            ends.append(visit.wait(patience))
        except BaseException as error:
            ends.append(error)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    return thread, ends


async def joined(thread: Thread) -> None:
    while thread.is_alive():
        await asyncio.sleep(0.001)


async def well() -> str:
    return "well"


def test_on_a_loop_that_is_closed_nothing_is_begun() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    with pytest.raises(GatewayClosed, match="was closed"):
        Visit(loop, well).wait()


@pytest.mark.asyncio
async def test_what_enter_raises_is_raised_in_the_thread_and_nothing_is_begun() -> None:
    asked = []

    def enter() -> None:
        raise Boom

    thread, ends = end_of(Visit(asyncio.get_running_loop(), lambda: asked.append(1) or well(), enter))
    await joined(thread)

    assert type(ends[0]) is Boom
    assert not asked


@pytest.mark.asyncio
async def test_a_task_that_cannot_be_made_is_the_threads_error_and_leaves_no_coroutine() -> None:
    loop = asyncio.get_running_loop()

    def factory(*_: Any, **__: Any) -> Any:
        raise Boom

    visit = Visit(loop, well)
    loop.set_task_factory(factory)
    try:
        thread, ends = end_of(visit)
        loop.call_later(0.02, loop.set_task_factory, None)
        await joined(thread)
    finally:
        loop.set_task_factory(None)

    assert type(ends.pop()) is Boom
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        gc.collect()
    assert not warned


@pytest.mark.asyncio
async def test_a_cancel_that_comes_first_lets_nothing_begin() -> None:
    asked = []
    visit = Visit(asyncio.get_running_loop(), lambda: asked.append(1) or well(), lambda: asked.append(0))

    visit.cancel()
    thread, ends = end_of(visit)
    await joined(thread)

    assert type(ends[0]) is CancelledError
    assert not asked


@pytest.mark.asyncio
async def test_a_cancel_in_the_moment_it_begins_lets_nothing_be_asked() -> None:
    loop = asyncio.get_running_loop()
    asked = []
    visit: Visit[str] = Visit(loop, lambda: asked.append(1) or well())

    def factory(loop: AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **context: Any) -> asyncio.Task[Any]:
        visit._cancelled = True  # as by another thread between two lines
        return asyncio.Task(coroutine, loop=loop, **context)

    loop.set_task_factory(factory)
    try:
        thread, ends = end_of(visit)
        await joined(thread)
    finally:
        loop.set_task_factory(None)

    assert type(ends[0]) is CancelledError
    assert not asked


@pytest.mark.asyncio
@pytest.mark.parametrize("late", [True, False], ids=["and ends with a value all the same", "and ends"])
async def test_a_cancel_while_it_runs_is_the_threads_end_of_it(late: bool) -> None:
    begun = asyncio.Event()

    async def ask() -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        except CancelledError:
            if not late:
                raise
        return "well"

    visit = Visit(asyncio.get_running_loop(), ask)
    thread, ends = end_of(visit)
    await begun.wait()
    visit.cancel()
    await joined(thread)

    assert type(ends[0]) is CancelledError


@pytest.mark.asyncio
async def test_patience_may_end_first_and_the_call_is_cancelled() -> None:
    ended: Callable[[], None]
    over = asyncio.Event()
    ended = over.set

    async def ask() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended()

    thread, ends = end_of(Visit(asyncio.get_running_loop(), ask), patience=0.01)
    await joined(thread)
    await over.wait()

    assert type(ends[0]) is TimeoutError


def test_a_loop_that_stands_still_between_two_runs_is_waited_for() -> None:
    loop = asyncio.new_event_loop()
    visit = Visit(loop, well)

    thread, ends = end_of(visit)
    while not visit._missed:
        time.sleep(0.001)
    loop.run_until_complete(joined(thread))
    loop.close()

    assert ends == ["well"]


@pytest.mark.asyncio
async def test_an_eager_task_is_one_too() -> None:
    loop = asyncio.get_running_loop()
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("needs Python 3.12")

    loop.set_task_factory(factory)
    try:
        thread, ends = end_of(Visit(loop, well))
        await joined(thread)
    finally:
        loop.set_task_factory(None)

    assert ends == ["well"]
