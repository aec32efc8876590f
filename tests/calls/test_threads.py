"""Plain functions: threads of their upstream's own, and what becomes of those that cannot be stopped."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from math import inf

import pytest
import pytest_asyncio

from gateway import (
    BulkheadFull,
    BulkheadPolicy,
    Deadline,
    Failed,
    FailedTimeout,
    Gateway,
    GatewayClosed,
    NotSent,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownTimeout,
    Upstream,
    WrongLoop,
)
from tests.support import QUIET, Boom, assert_all_gone, counted, ended, gone, until, wait_until


def threads_of(up: Upstream) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{up.name}-")]


def ident() -> int:
    return threading.get_ident()


class Work:
    """A plain function that ends when the test says so, and counts how many run at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.lock = threading.Lock()
        self.running = self.most = self.calls = 0

    def __call__(self) -> str:
        with self.lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.go.wait(10)
        with self.lock:
            self.running -= 1
        return "done"


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.go.set()


@pytest_asyncio.fixture
async def gate(work: Work) -> AsyncIterator[Gateway]:
    async with Gateway() as gate:
        yield gate
        work.go.set()
        await until(lambda: not any(up.snapshot().bulkhead.in_use for up in gate))
    assert_all_gone(gate)
    assert not [up for up in gate if threads_of(up)]


def pool(limit: int, *, attempt: float = 5.0, queue: int = 0) -> Policy:
    timeout = TimeoutPolicy(call=10.0, attempt=attempt)
    return replace(QUIET, bulkhead=BulkheadPolicy(limit=limit, queue=queue, max_wait=5.0), timeout=timeout)


@pytest.mark.asyncio
async def test_the_callers_context_is_visible_and_what_the_thread_sets_stays_there(gate: Gateway) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")  # peers, row 10

    @gate.upstream("world").operation(idempotent=True)
    def ask() -> tuple[str, float]:
        seen = user.get()
        user.set("the thread's")
        return seen, Deadline.current().remaining()

    user.set("ada")
    seen, remaining = await ask()

    assert seen == "ada"
    assert 0.0 < remaining <= 10.0
    assert user.get() == "ada"


@pytest.mark.asyncio
async def test_threads_are_made_as_they_are_needed_and_used_again(gate: Gateway, work: Work) -> None:
    up = gate.upstream("world", policy=pool(4))
    quick = up.operation(name="quick", idempotent=True)(ident)
    operation = up.operation(name="ask", idempotent=True)(work)

    idents = [await quick() for _ in range(20)]
    one = len(threads_of(up))
    calls = [asyncio.ensure_future(operation()) for _ in range(4)]
    await until(lambda: work.running == 4)
    four = len(threads_of(up))
    work.go.set()

    assert await asyncio.gather(*calls) == ["done"] * 4
    assert len(set(idents)) == 1
    assert (one, four) == (1, 4)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("idempotent", "kind"), [(True, FailedTimeout), (None, FailedTimeout), (False, UnknownTimeout)]
)
async def test_a_thread_that_takes_too_long_keeps_its_place_until_it_ends(gate, work: Work, idempotent, kind) -> None:
    up = gate.upstream("world", policy=pool(1, attempt=0.05))  # peers, row 2
    operation = up.operation(name="ask", idempotent=idempotent)(work)

    late = await ended(operation())
    abandoned = up.snapshot().bulkhead
    full = await ended(operation())
    work.go.set()
    await until(lambda: up.snapshot().bulkhead.in_use == 0)

    assert type(late) is kind
    assert (abandoned.in_use, abandoned.abandoned) == (1, 1)
    assert type(full) is BulkheadFull
    assert up.snapshot().bulkhead.abandoned == 0
    assert await operation() == "done"
    assert work.most == 1


@pytest.mark.asyncio
async def test_a_thread_whose_caller_left_keeps_its_place_and_is_no_evidence(gate: Gateway, work: Work) -> None:
    up = gate.upstream("world", policy=pool(2))
    operation = up.operation(name="ask", idempotent=True)(work)
    call = asyncio.ensure_future(operation())
    await until(lambda: work.running == 1)

    await gone(call)
    left = up.snapshot()
    work.go.set()
    await until(lambda: up.snapshot().bulkhead.in_use == 0)

    assert (left.bulkhead.in_use, left.bulkhead.abandoned) == (1, 1)
    assert (left.breaker.calls, left.counts.cancelled) == (0, 1)


@pytest.mark.asyncio
async def test_the_end_of_an_abandoned_thread_wakes_who_waits(gate: Gateway, work: Work) -> None:
    up = gate.upstream("world", policy=pool(1, queue=3))
    operation = up.operation(name="ask", idempotent=True)(work)
    leaving = asyncio.ensure_future(operation())
    await until(lambda: work.running == 1)
    waiting = asyncio.ensure_future(operation())

    await gone(leaving)
    still_waiting = up.snapshot().bulkhead.waiting
    work.go.set()

    assert still_waiting == 1
    assert await waiting == "done"
    assert work.most == 1


@pytest.mark.asyncio
async def test_a_retry_does_not_run_beside_the_thread_that_was_given_up(gate: Gateway, work: Work) -> None:
    policy = replace(pool(1, attempt=0.2, queue=1), retry=RetryPolicy(attempts=2, wait=lambda state: 0.0))
    up = gate.upstream("world", policy=policy)
    operation = up.operation(name="ask", idempotent=True)(work)

    call = asyncio.ensure_future(operation())
    await until(lambda: up.snapshot().bulkhead.waiting == 1)
    work.go.set()

    assert await call == "done"
    assert (work.most, work.calls) == (1, 2)


@pytest.mark.asyncio
async def test_the_pool_grows_and_shrinks_while_it_runs(gate: Gateway, work: Work) -> None:  # demands, rows 3 and 12
    up = gate.upstream("world", policy=pool(2, queue=50))
    operation = up.operation(name="ask", idempotent=True)(work)
    calls = [asyncio.ensure_future(operation()) for _ in range(12)]
    await until(lambda: work.running == 2)

    up.tune(bulkhead=BulkheadPolicy(limit=6, queue=50, max_wait=5.0))
    await until(lambda: work.running == 6)
    up.tune(bulkhead=BulkheadPolicy(limit=1, queue=50, max_wait=5.0))
    in_use = up.snapshot().bulkhead.in_use
    work.go.set()

    assert await asyncio.gather(*calls) == ["done"] * 12
    assert in_use == 6
    assert work.most == 6
    await until(lambda: len(threads_of(up)) == 1)


@pytest.mark.asyncio
async def test_the_default_executor_of_the_loop_is_left_alone(gate: Gateway) -> None:
    operation = gate.upstream("world").operation(name="ask", idempotent=True)(ident)

    await operation()

    assert asyncio.get_running_loop()._default_executor is None


ENDS = {
    "an error": Boom,
    "a StopIteration": StopIteration,
    "a cancel": asyncio.CancelledError,
    "a TimeoutError": TimeoutError,
}


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ENDS.values(), ids=ENDS)
async def test_what_a_thread_raises_is_a_failure(gate: Gateway, kind: type[BaseException]) -> None:
    up = gate.upstream("world", policy=pool(1))

    @up.operation(idempotent=True, fallback=[Static("s")])
    def ask() -> None:
        raise kind("in the thread")

    answer = await ask.ask()

    assert answer.value == "s"
    assert isinstance(answer.error, Failed)
    cause = answer.error.__cause__
    assert isinstance(cause, kind) or isinstance(cause.__cause__, kind)
    assert up.snapshot().breaker.failures == 1


@pytest.mark.asyncio
async def test_a_thread_that_could_not_be_started_is_a_failure_and_takes_no_place(
    gate, work: Work, monkeypatch
) -> None:
    up = gate.upstream("world", policy=pool(2))
    operation = up.operation(name="ask", idempotent=True)(work)

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        error = await ended(operation())
    failed_calls, in_use = work.calls, up.snapshot().bulkhead.in_use
    calls = [asyncio.ensure_future(operation()) for _ in range(2)]
    await until(lambda: work.running == 2)
    work.go.set()

    assert type(error) is Failed
    assert isinstance(error.__cause__, NotSent)
    assert (failed_calls, in_use) == (0, 0)
    assert await asyncio.gather(*calls) == ["done", "done"]
    assert work.calls == 2


@pytest.mark.asyncio
async def test_a_gateway_used_inside_one_of_its_threads_says_that_this_is_another_loop(gate: Gateway) -> None:
    up = gate.upstream("world")
    nested = []

    @up.operation(idempotent=True)
    async def inside() -> int:
        return 1

    @up.operation(idempotent=True)
    def outside() -> None:
        nested.append(asyncio.run(ended(inside())))

    await outside()

    assert type(nested[0]) is WrongLoop


@pytest.mark.asyncio
async def test_a_stuck_thread_is_named_when_the_gateway_closes(work: Work) -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=pool(2, attempt=0.02))
    operation = up.operation(name="ask", idempotent=True)(work)
    await ended(operation())

    stuck = await gate.close(join_for=0.05)
    work.go.set()
    await until(lambda: not threads_of(up))

    assert stuck == ("world-1",)
    assert up.snapshot().bulkhead.in_use == 0


@pytest.mark.asyncio
async def test_a_closed_gateway_has_the_places_of_threads_back_that_have_ended(work: Work) -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=pool(2, attempt=0.02))
    operation = up.operation(name="ask", idempotent=True)(work)
    await ended(operation())
    work.go.set()

    stuck = await gate.close()

    assert stuck == ()
    assert up.snapshot().bulkhead.in_use == 0


@pytest.mark.asyncio
async def test_who_leaves_while_threads_are_joined_leaves_nothing(work: Work) -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=pool(2, attempt=0.02))
    await ended(up.operation(name="ask", idempotent=True)(work)())

    closing = asyncio.ensure_future(gate.close(join_for=0.045))
    await asyncio.sleep(0.005)
    closing.cancel()
    await asyncio.wait({closing})
    await asyncio.sleep(0.05)  # the join ends, and finds nobody

    assert closing.cancelled()
    with pytest.raises(GatewayClosed):
        await up["ask"]()
    work.go.set()


@pytest.mark.asyncio
async def test_closing_waits_for_threads_as_long_as_it_takes_if_it_is_told_so(work: Work) -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=pool(2, attempt=0.02))
    operation = up.operation(name="ask", idempotent=True)(work)
    await ended(operation())
    timer = threading.Timer(0.1, work.go.set)
    timer.start()

    stuck = await gate.close(join_for=inf)
    timer.join()

    assert stuck == ()
    assert not threads_of(up)


def test_loops_that_are_closed_without_close_leave_no_threads() -> None:
    gate = Gateway()
    up = gate.upstream("leaky")
    operation = up.operation(name="ask", idempotent=True)(ident)

    for _ in range(5):
        asyncio.run(operation())

    wait_until(lambda: len(threads_of(up)) == 1)
    asyncio.run(opened_and_closed(gate))
    wait_until(lambda: not threads_of(up))


async def opened_and_closed(gate: Gateway) -> None:
    async with gate:
        pass


def test_a_thread_that_ends_after_its_loop_was_closed_bothers_nobody(work: Work) -> None:
    gate = Gateway()
    up = gate.upstream("world", policy=pool(1))
    operation = up.operation(name="ask", idempotent=True)(work)

    async def leaves() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(operation(), 0.05)

    async def again() -> str:
        async with gate:
            return await operation()

    asyncio.run(leaves())
    work.go.set()

    assert asyncio.run(again()) == "done"
    assert up.snapshot().bulkhead.in_use == 0


def slow() -> str:
    time.sleep(0.1)
    return "slow"


@pytest.mark.virtual_time
async def test_the_clock_of_a_virtual_loop_stands_still_while_a_thread_works() -> None:
    async with Gateway() as gate:
        up = gate.upstream("world", policy=pool(1, attempt=0.05))
        operation = up.operation(name="ask", idempotent=True)(slow)
        loop = asyncio.get_running_loop()
        began = loop.time()

        assert await operation() == "slow"
        assert loop.time() == began
        assert counted(up) == {"asked": 1, "live": 1, "attempts": 1}
