"""Plain functions in threads. Rows are those of the list of what users of such libraries reported (demands.md)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from asyncio import CancelledError, Task, create_task, current_task, get_running_loop, sleep
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from math import inf
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, cast

import pytest
import pytest_asyncio

import gateway.threads
from gateway import (
    Bulkhead,
    BulkheadFull,
    BulkheadPolicy,
    ConfigError,
    Deadline,
    Failed,
    Gateway,
    NotSent,
    Policy,
    TimeoutPolicy,
    Upstream,
)
from gateway.testing import VirtualTimeLoop, assert_nothing_left
from gateway.threads import Job, ThreadPool
from tests.support import NEVER_OPENS, ONE_TRY, Boom, ended, gone, now, steps, until

CALLER: ContextVar[str] = ContextVar("caller", default="nobody")


class Crew:
    """A pool with its bulkhead, used as an operation uses them."""

    def __init__(self, limit: float = 4, kind: type[ThreadPool] = ThreadPool) -> None:
        self.bulkhead = Bulkhead(BulkheadPolicy(limit=limit, queue=inf, max_wait=inf))
        self.pool = kind("u", self.bulkhead, get_running_loop())

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await self.bulkhead.acquire()
        try:
            return await self.pool.run(function, args, kwargs)
        finally:
            self.bulkhead.release()

    def resize(self, limit: float) -> None:
        self.bulkhead.policy = BulkheadPolicy(limit=limit, queue=inf, max_wait=inf)

    @property
    def alive(self) -> int:
        return sum(thread.is_alive() for thread in self.pool._threads)

    @property
    def left(self) -> tuple[int, int, int]:
        return self.bulkhead.in_use, self.bulkhead.abandoned, self.bulkhead.waiting


class Blocked:
    """Functions that run until they are let go, and how many of them run."""

    def __init__(self) -> None:
        self.end = Event()
        self.began = self.running = self.most = 0
        self._lock = Lock()

    def __call__(self, value: Any = None) -> Any:
        with self._lock:
            self.began += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.end.wait(20.0)
        with self._lock:
            self.running -= 1
        return value

    def wait_for(self, running: int) -> None:
        """Wait until so many have begun, and let the loop do nothing meanwhile."""
        given_up_at = time.monotonic() + 10.0
        while self.running < running and time.monotonic() < given_up_at:
            time.sleep(0.001)


@pytest_asyncio.fixture
async def crew() -> AsyncIterator[Crew]:
    crew = Crew()
    yield crew
    crew.pool.dismiss()
    assert crew.pool.join(5.0) == ()
    assert crew.left == (0, 0, 0)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    blocked = Blocked()
    yield blocked
    blocked.end.set()


# -- a function in a thread


@pytest.mark.asyncio
async def test_a_function_is_called_with_its_arguments_and_its_value_comes_back(crew: Crew) -> None:
    def add(first: int, *, second: int) -> int:
        return first + second

    assert await crew.call(add, 1, second=2) == 3


@pytest.mark.asyncio
async def test_a_function_runs_in_a_daemon_thread_named_after_its_upstream(crew: Crew) -> None:
    thread = await crew.call(threading.current_thread)

    assert thread is not threading.main_thread()
    assert (thread.name, thread.daemon) == ("u-1", True)


@pytest.mark.asyncio
async def test_a_function_sees_the_callers_context_and_keeps_its_own_changes(crew: Crew) -> None:
    """Row 28: context is lost in the threads of others."""

    def look() -> str:
        seen = CALLER.get()
        CALLER.set("changed in the thread")
        return seen

    async def call(name: str) -> tuple[str, str]:
        CALLER.set(name)
        return await crew.call(look), CALLER.get()

    seen = await asyncio.gather(*(call(name) for name in ("ada", "bob", "eve")))

    assert seen == [("ada", "ada"), ("bob", "bob"), ("eve", "eve")]


@pytest.mark.asyncio
async def test_a_function_sees_the_deadline_of_its_call() -> None:
    gate = Gateway()
    upstream = gate.upstream("u", policy=Policy(timeout=TimeoutPolicy(call=60.0, attempt=20.0)))

    @upstream.operation
    def left() -> float:
        current = Deadline.current()
        assert current is not None
        return current.remaining()

    async with gate:
        by_policy = await left()
        with Deadline.after(5.0):
            by_caller = await left()

    assert 15.0 < by_policy <= 20.0
    assert 1.0 < by_caller <= 5.0


@pytest.mark.asyncio
async def test_the_default_executor_of_the_loop_is_never_used() -> None:
    class Untouchable(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("somebody used the default executor")

    get_running_loop().set_default_executor(Untouchable())
    gate = Gateway()

    @gate.upstream("u").operation
    def plain() -> str:
        return threading.current_thread().name

    async with gate:
        names = await asyncio.gather(*(plain() for _ in range(20)))

    assert {name.split("-")[0] for name in names} == {"u"}


@pytest.mark.asyncio
async def test_a_thread_is_used_again_rather_than_another_started(crew: Crew) -> None:
    names = {(await crew.call(threading.current_thread)).name for _ in range(50)}

    assert names == {"u-1"}


@pytest.mark.asyncio
async def test_threads_are_started_when_they_are_needed_and_never_more_than_the_limit(
    crew: Crew, blocked: Blocked
) -> None:
    calls = [create_task(crew.call(blocked, number)) for number in range(10)]
    await until(lambda: blocked.running == 4)
    alive = crew.alive
    blocked.end.set()

    values = await asyncio.gather(*calls)

    assert values == list(range(10))
    assert (alive, crew.alive, blocked.most) == (4, 4, 4)


@pytest.mark.asyncio
async def test_completions_cross_to_the_loop_in_batches(crew: Crew, blocked: Blocked) -> None:
    calls = [create_task(crew.call(blocked)) for _ in range(4)]
    await until(lambda: blocked.running == 4)

    blocked.end.set()
    while blocked.running or len(crew.pool._done) < 4:
        time.sleep(0.001)  # the loop is busy with something else
    ready = [handle for handle in get_running_loop()._ready if handle._callback == crew.pool._collect]  # type: ignore[attr-defined]

    assert 1 <= len(ready) <= 2  # two only if two threads ended at the very same moment
    await asyncio.gather(*calls)


@pytest.mark.asyncio
async def test_nothing_of_a_call_is_kept_when_it_is_over(crew: Crew) -> None:
    class Large:
        pass

    argument = Large()
    known = [weakref.ref(argument)]

    def work(_: Large) -> Large:
        value = Large()
        known.append(weakref.ref(value))
        return value

    await crew.call(work, argument)
    del argument
    await until(lambda: all(one() is None for one in known))

    assert len(known) == 2


# -- how a function can end


@pytest.mark.asyncio
async def test_an_error_of_a_function_reaches_its_caller_as_it_is(crew: Crew) -> None:
    error = Boom("mine")

    def fail() -> None:
        raise error

    with pytest.raises(Boom) as caught:
        await crew.call(fail)

    assert caught.value is error


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopAsyncIteration])
async def test_any_other_end_of_a_function_reaches_its_caller_and_the_thread_lives_on(
    crew: Crew, kind: type[BaseException]
) -> None:
    def leave() -> None:
        raise kind

    with pytest.raises(kind):
        await crew.call(leave)

    assert (await crew.call(threading.current_thread)).name == "u-1"


@pytest.mark.asyncio
async def test_stop_iteration_becomes_a_runtime_error_as_in_a_generator(crew: Crew) -> None:
    def stop() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        await crew.call(stop)

    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.asyncio
async def test_a_cancelled_error_of_a_functions_own_cancels_nobody(crew: Crew) -> None:
    def cancelled() -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        await crew.call(cancelled)

    assert current_task().cancelling() == 0  # type: ignore[union-attr]


@pytest.mark.asyncio
async def test_system_exit_passes_through_an_operation_and_leaves_nothing() -> None:
    gate = Gateway()

    @gate.upstream("u").operation
    def leave() -> None:
        sys.exit(3)

    async with gate:
        with pytest.raises(SystemExit):
            await leave()
        assert_nothing_left(gate)


@pytest.mark.asyncio
async def test_a_plain_function_that_returns_an_awaitable_is_a_clear_error(crew: Crew) -> None:
    async def coroutine() -> None:
        pass

    class Awaitable:
        def __await__(self) -> Iterator[None]:
            yield

    for returns in (coroutine, Awaitable, get_running_loop().create_future):
        with pytest.raises(ConfigError, match="a plain function returned an awaitable; declare it `async def`"):
            await crew.call(lambda returns=returns: returns())


@pytest.mark.asyncio
async def test_where_the_system_has_no_thread_left_the_call_was_not_sent(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread(Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    ran: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(gateway.threads, "Thread", NoThread)
        with pytest.raises(NotSent, match="the system has no thread for u"):
            await crew.call(ran.append, 1)

    await crew.call(ran.append, 2)

    assert ran == [2]
    assert crew.alive == 1


# -- callers that leave


@pytest.mark.asyncio
async def test_who_leaves_keeps_the_place_until_the_thread_ends(crew: Crew, blocked: Blocked) -> None:
    """Row 1 (BentoML #5642): the place was free when the request was cancelled, and the thread ran on."""
    crew.resize(1)
    leaving = create_task(crew.call(blocked))
    await until(lambda: blocked.running)
    waiting = create_task(crew.call(blocked))

    await gone(leaving)
    await sleep(0.01)

    assert leaving.cancelled()
    assert crew.left == (1, 1, 1)
    assert blocked.began == 1
    blocked.end.set()
    await waiting
    assert (blocked.began, blocked.most) == (2, 1)


@pytest.mark.virtual_time
async def test_a_timeout_does_not_free_the_place_of_a_thread_that_works(blocked: Blocked) -> None:
    """Rows 7 and 9 (resilience4j #2296, opossum): with a capacity of 2, 10 ran."""
    gate = Gateway()
    policy = Policy(
        timeout=TimeoutPolicy(call=5.0),
        retry=ONE_TRY,
        breaker=NEVER_OPENS,
        bulkhead=BulkheadPolicy(limit=2, queue=0),
    )
    upstream = gate.upstream("u", policy=policy)
    operation = upstream.operation(idempotent=True, name="blocked")(blocked.__call__)

    async with gate:
        calls = [create_task(ended(operation())) for _ in range(10)]
        await steps(2)
        blocked.wait_for(2)
        cast("VirtualTimeLoop", get_running_loop()).advance(6.0)  # no time passes by itself while threads work
        first = await asyncio.gather(*calls)
        seen = upstream.bulkhead.snapshot()
        later = [await ended(operation()) for _ in range(3)]
        blocked.end.set()
        await sleep(1.0)  # until they have ended, that is
        assert_nothing_left(gate)

    assert sorted(type(end).__name__ for end in first) == ["BulkheadFull"] * 8 + ["FailedTimeout"] * 2
    assert (seen.in_use, seen.abandoned) == (2, 2)
    assert [type(end) for end in later] == [BulkheadFull] * 3
    assert (blocked.began, blocked.most) == (2, 2)


@pytest.mark.asyncio
async def test_a_timeout_ends_one_call_and_not_its_neighbours(crew: Crew, blocked: Blocked) -> None:
    """Row 9 (opossum): it aborted the calls of others."""

    async def limited(seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            return await crew.call(blocked, "well")

    hasty, patient = create_task(limited(0.01)), create_task(limited(10.0))
    await until(hasty.done)
    blocked.end.set()

    assert await patient == "well"
    assert isinstance(hasty.exception(), TimeoutError)
    await until(lambda: crew.left == (0, 0, 0))


@pytest.mark.asyncio
async def test_what_a_function_gives_after_its_caller_has_left_is_dropped(crew: Crew, blocked: Blocked) -> None:
    def fails_late() -> None:
        blocked()
        raise Boom("nobody is there to hear it")

    callers = [create_task(crew.call(fails_late)), create_task(crew.call(blocked, "value"))]
    await until(lambda: blocked.running == 2)
    await gone(*callers)

    blocked.end.set()
    await until(lambda: crew.left == (0, 0, 0))

    assert all(caller.cancelled() for caller in callers)


@pytest.mark.asyncio
async def test_a_call_that_is_thrown_away_keeps_its_place_until_the_thread_ends(crew: Crew, blocked: Blocked) -> None:
    call = crew.call(blocked)
    call.send(None)
    await until(lambda: blocked.running)

    call.close()

    assert crew.left == (1, 1, 0)
    blocked.end.set()
    await until(lambda: crew.left == (0, 0, 0))


class LateThreads(ThreadPool):
    """Threads that come when they are let in."""

    __slots__ = ("late",)

    def _start_thread(self) -> None:
        self.late = super()._start_thread
        self._staying += 1

    def let_in(self) -> None:
        self._staying -= 1
        self.late()


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", [0, 2])
async def test_what_is_cancelled_before_a_thread_took_it_is_not_begun(turns: int) -> None:
    crew = Crew(kind=LateThreads)
    ran: list[int] = []
    leaving = create_task(crew.call(ran.append, 1))
    await steps(1)

    leaving.cancel()
    await steps(turns)  # its caller has run and left, or is still to run
    cast("LateThreads", crew.pool).let_in()
    await asyncio.wait([leaving])
    await until(lambda: crew.left == (0, 0, 0))

    assert ran == []
    assert leaving.cancelled()
    crew.pool.dismiss()
    assert crew.pool.join(5.0) == ()


@pytest.mark.asyncio
async def test_a_thread_that_ends_in_the_tick_in_which_its_caller_leaves_is_nobodys(
    crew: Crew, blocked: Blocked
) -> None:
    leaving = create_task(crew.call(blocked))
    await until(lambda: blocked.running)
    seen: list[tuple[int, int, int]] = []
    loop = get_running_loop()

    blocked.end.set()
    while not any(handle._callback == crew.pool._collect for handle in loop._ready):  # type: ignore[attr-defined]
        time.sleep(0.001)
    loop.call_soon(lambda: seen.append(crew.left))  # after the thread's end is seen, before the caller runs
    leaving.cancel()
    await asyncio.wait([leaving])

    assert seen == [(1, 0, 0)]  # the caller has not run: it holds its place, and nothing is abandoned
    assert leaving.cancelled()
    assert crew.left == (0, 0, 0)


@pytest.mark.asyncio
async def test_a_caller_that_leaves_in_the_tick_after_its_thread_ended_leaves_nothing(
    crew: Crew, blocked: Blocked
) -> None:
    leaving = create_task(crew.call(blocked))
    await until(lambda: blocked.running)
    loop = get_running_loop()

    blocked.end.set()
    while not any(handle._callback == crew.pool._collect for handle in loop._ready):  # type: ignore[attr-defined]
        time.sleep(0.001)
    loop.call_soon(leaving.cancel)
    await asyncio.wait([leaving])

    assert leaving.cancelled()
    assert crew.left == (0, 0, 0)


# -- resizing


@pytest.mark.asyncio
async def test_a_pool_that_grows_starts_more_threads(crew: Crew, blocked: Blocked) -> None:
    crew.resize(1)
    calls = [create_task(crew.call(blocked)) for _ in range(6)]
    await until(lambda: blocked.running == 1)

    crew.resize(3)
    await until(lambda: blocked.running == 3)

    assert (crew.alive, crew.bulkhead.waiting) == (3, 3)
    blocked.end.set()
    await asyncio.gather(*calls)
    assert blocked.most == 3


@pytest.mark.asyncio
async def test_a_pool_that_shrinks_sends_threads_away_as_calls_end(crew: Crew, blocked: Blocked) -> None:
    calls = [create_task(crew.call(blocked)) for _ in range(4)]
    await until(lambda: blocked.running == 4)

    crew.resize(1)
    interrupted = blocked.running < 4
    blocked.end.set()
    await asyncio.gather(*calls)
    await until(lambda: crew.alive == 1)

    assert not interrupted
    assert (await crew.call(lambda: "still there")) == "still there"


@pytest.mark.asyncio
async def test_an_idle_pool_that_was_shrunk_sends_threads_away_with_the_next_call(crew: Crew, blocked: Blocked) -> None:
    blocked.end.set()
    await asyncio.gather(*(crew.call(time.sleep, 0.01) for _ in range(4)))
    before = crew.alive

    crew.resize(2)
    await crew.call(blocked)
    await until(lambda: crew.alive == 2)

    assert before == 4


@pytest.mark.asyncio
async def test_a_pool_can_grow_again_after_it_has_shrunk(crew: Crew) -> None:
    for limit in (4, 1, 3, 1, 4):
        blocked = Blocked()
        crew.resize(limit)
        calls = [create_task(crew.call(blocked)) for _ in range(8)]
        await until(lambda blocked=blocked, limit=limit: blocked.running == limit)
        blocked.end.set()
        await asyncio.gather(*calls)
        assert blocked.most == limit

    await until(lambda: crew.alive <= 4)


@pytest.mark.asyncio
async def test_a_pool_that_shrank_under_way_and_grew_again_begins_new_calls_at_once(crew: Crew) -> None:
    old = [Blocked() for _ in range(4)]
    calls = [create_task(crew.call(blocked)) for blocked in old]
    await until(lambda: all(blocked.running for blocked in old))

    crew.resize(1)
    old[0].end.set()
    await calls[0]
    crew.resize(4)
    value = await crew.call(lambda: "at once")

    assert value == "at once"
    assert [blocked.running for blocked in old] == [0, 1, 1, 1]
    for blocked in old:
        blocked.end.set()
    await asyncio.gather(*calls)


# -- the end


@pytest.mark.asyncio
async def test_threads_go_when_they_are_dismissed(crew: Crew) -> None:
    await asyncio.gather(*(crew.call(time.sleep, 0.005) for _ in range(4)))

    crew.pool.dismiss()

    assert crew.pool.join(5.0) == ()
    assert crew.alive == 0


@pytest.mark.asyncio
async def test_joining_has_a_limit_and_names_who_is_stuck(crew: Crew, blocked: Blocked) -> None:
    calls = [create_task(crew.call(blocked)) for _ in range(2)]
    calls.append(create_task(crew.call(lambda: None)))
    await calls[2]
    crew.pool.dismiss()
    began_at = time.monotonic()

    stuck = crew.pool.join(0.03)

    assert len(stuck) == 2
    assert set(stuck) < {"u-1", "u-2", "u-3"}
    assert 0.03 <= time.monotonic() - began_at < 5.0
    blocked.end.set()
    await asyncio.gather(*calls)
    assert crew.pool.join(inf) == ()


@pytest.mark.asyncio
async def test_closing_a_gateway_names_the_threads_that_are_stuck(blocked: Blocked) -> None:
    gate = Gateway()
    upstream: Upstream = gate.upstream("ratings")
    stuck = upstream.operation(idempotent=True, name="stuck")(blocked.__call__)
    well = gate.upstream("info").operation(name="well")(lambda: "well")
    await gate.open()
    call = create_task(stuck())
    await until(lambda: blocked.running)
    await gone(call)
    assert await well() == "well"
    began_at = time.monotonic()

    names = await gate.close(join_for=0.03)

    assert names == ("ratings-1",)
    assert time.monotonic() - began_at < 5.0
    blocked.end.set()
    await until(lambda: not upstream.bulkhead.in_use)


@pytest.mark.asyncio
async def test_closing_a_gateway_whose_threads_are_idle_takes_no_time_and_names_nobody() -> None:
    gate = Gateway()
    operation = gate.upstream("u").operation(name="f")(threading.current_thread)
    await gate.open()
    thread = await operation()

    names = await gate.close(join_for=inf)

    assert names == ()
    assert not thread.is_alive()


def test_a_stuck_thread_does_not_keep_the_process_alive() -> None:
    program = """
        import asyncio, threading
        from gateway import Gateway

        gate = Gateway()
        began = threading.Event()

        @gate.upstream("u").operation
        def stuck():
            began.set()
            threading.Event().wait()

        async def main():
            call = asyncio.create_task(stuck())
            while not began.is_set():
                await asyncio.sleep(0.001)
            call.cancel()
            print(await gate.close(join_for=0.02))

        asyncio.run(main())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(gateway.__file__).parents[1])}

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )

    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "('u-1',)", "")


def test_a_loop_that_is_closed_under_a_thread_lets_it_end_in_peace(blocked: Blocked) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Crew, Any]:
        crew = Crew()
        call = crew.call(blocked)
        call.send(None)
        await until(lambda: blocked.running)
        return crew, call

    crew, call = loop.run_until_complete(begin())
    loop.close()
    blocked.end.set()
    crew.pool.dismiss()

    assert crew.pool.join(5.0) == ()
    call.close()  # on 3.11 as on 3.13 without a word about the closed loop


def test_on_another_loop_a_gateway_has_threads_of_its_own_and_the_old_ones_go() -> None:
    gate = Gateway()
    operation = gate.upstream("u").operation(name="f")(threading.current_thread)

    async def call() -> Thread:
        thread = await operation()
        assert isinstance(thread, Thread)
        return thread

    with asyncio.Runner() as first:
        old = first.run(call())
    with asyncio.Runner() as second:
        new = second.run(call())
        old.join(5.0)
        alive = old.is_alive()
        second.run(gate.close())

    assert old is not new
    assert not alive


def test_a_thread_of_an_older_loop_gives_its_place_back_to_nobody(blocked: Blocked) -> None:
    gate = Gateway()
    upstream = gate.upstream("u")
    stuck = upstream.operation(idempotent=True, name="stuck")(blocked.__call__)
    well = upstream.operation(name="well")(lambda: "well")

    async def leave_it_behind() -> None:
        call = create_task(stuck())
        await until(lambda: blocked.running)
        await gone(call)

    async def call() -> object:
        value = await well()
        blocked.end.set()
        await until(lambda: not blocked.running)
        assert_nothing_left(gate)
        await gate.close()
        return value

    with asyncio.Runner() as first:
        first.run(leave_it_behind())
    with asyncio.Runner() as second:
        value = second.run(call())

    assert value == "well"
    assert upstream.snapshot().bulkhead.in_use == 0


# -- in virtual time


@pytest.mark.virtual_time
async def test_the_clock_stands_still_while_a_thread_works() -> None:
    gate = Gateway()
    policy = Policy(timeout=TimeoutPolicy(call=1.0, attempt=0.001), retry=ONE_TRY)
    nap = gate.upstream("u", policy=policy).operation(idempotent=True, name="nap")(lambda: time.sleep(0.02))
    began_at = now()

    await asyncio.gather(*(nap() for _ in range(4)))

    assert now() == began_at
    assert not cast("VirtualTimeLoop", get_running_loop()).held
    await gate.close()


@pytest.mark.virtual_time
async def test_the_clock_stands_still_while_an_abandoned_thread_works(blocked: Blocked) -> None:
    crew = Crew()
    leaving = create_task(crew.call(blocked))
    await steps(2)
    blocked.wait_for(1)
    alarm = create_task(sleep(0.001))

    await gone(leaving)
    await steps(100)
    seen = (crew.left, alarm.done(), cast("VirtualTimeLoop", get_running_loop()).held)
    blocked.end.set()
    await alarm

    assert seen == ((1, 1, 0), False, True)
    assert crew.left == (0, 0, 0)
    crew.pool.dismiss()
    assert crew.pool.join(5.0) == ()


@pytest.mark.virtual_time
async def test_a_thread_that_fails_lets_the_clock_go() -> None:
    gate = Gateway()
    fail: Any = gate.upstream("u", policy=Policy(retry=ONE_TRY)).operation(name="fail")(lambda: 1 / 0)

    end = await ended(fail())

    assert isinstance(end, Failed)
    began_at = now()
    await sleep(5.0)
    assert now() - began_at == pytest.approx(5.0)
    await gate.close()


# -- one job


@pytest.mark.asyncio
async def test_a_job_without_a_caller_does_nothing() -> None:
    ran: list[int] = []
    job = Job(copy_context(), ran.append, (1,), {}, get_running_loop().create_future(), left=True)

    job.run()

    assert (ran, job.value, job.error) == ([], None, None)


@pytest.mark.asyncio
async def test_many_callers_at_once_each_get_their_own_value(crew: Crew) -> None:
    tasks: list[Task[int]] = [create_task(crew.call(int, str(number))) for number in range(500)]

    assert await asyncio.gather(*tasks) == list(range(500))
    assert crew.alive <= 4
