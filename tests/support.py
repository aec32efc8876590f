"""What several tests build on."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic, sleep
from typing import Any

from gateway import BreakerPolicy, Counts, Gateway, Policy, RetryPolicy, Upstream
from gateway.alarms import Alarms
from gateway.context import AMBIENT
from gateway.lane import Lane
from gateway.testing import assert_nothing_left

ONE_TRY = RetryPolicy(attempts=1)
NEVER_OPENS = BreakerPolicy(min_calls=1_000_000)
QUIET = Policy(retry=ONE_TRY, breaker=NEVER_OPENS)
"""One try, and no circuit to speak of: for tests of something else."""


class Boom(Exception):
    """What a function raises that fails."""


def steady(value: object) -> str:
    """An id for a parameter that is the same in every process: without addresses, and without the order of sets."""
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=repr)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


async def ended(call: Awaitable[Any]) -> Any:
    """How a call ended: its value, or the exception it raised. A cancel of the test itself passes."""
    try:
        return await call
    except Exception as error:
        return error


async def steps(number: int) -> None:
    """Let the loop turn this many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait, in real time, until something holds that a thread, a socket or a process brings about."""
    given_up_at = monotonic() + within
    while not holds():
        assert monotonic() < given_up_at, "it did not come to pass"
        await asyncio.sleep(0.001)


def wait_until(holds: Callable[[], object], *, within: float = 10.0) -> None:
    """As `until`, and the thread does nothing meanwhile."""
    given_up_at = monotonic() + within
    while not holds():
        assert monotonic() < given_up_at, "it did not come to pass"
        sleep(0.001)


class Page:
    """What a service keeps in a context variable."""


async def page_of(call: Callable[[], Awaitable[object]]) -> Page | None:
    """What was kept in a context variable while this was done, if anything keeps that still."""

    async def done() -> weakref.ref[Page]:
        page = Page()
        ContextVar[Page]("page").set(page)
        await call()
        return weakref.ref(page)

    page = await asyncio.create_task(done())
    await asyncio.create_task(asyncio.sleep(0))  # what woke this one has still the context it was woken in
    gc.collect()
    return page()


async def gone(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


def now() -> float:
    """The time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()


def counted(upstream: Upstream) -> dict[str, int]:
    """The numbers of an upstream that are not 0."""
    counts = upstream.snapshot().counts
    return {name: number for name in Counts.__slots__ if (number := getattr(counts, name))}


async def fail_until_open(upstream: Upstream) -> None:
    """Open the gateway here, and the circuit, as failures would."""
    await upstream.gateway.open()  # type: ignore[attr-defined]  # an upstream knows less of its gateway than tests do
    for _ in range(upstream.policy.breaker.min_calls):
        upstream.breaker.admit().failed()
    assert upstream.snapshot().breaker.state == "open"


def assert_all_gone(gate: Gateway) -> None:
    """Nothing is left: what `assert_nothing_left` looks for, ambient facts, and timers other than one for each lane."""
    assert_nothing_left(gate)
    assert AMBIENT.get() is None
    for upstream in gate:
        assert not upstream.refreshing
        for operation in upstream:
            assert not operation._flights, f"flights of {operation.name} under way"
            assert not operation._background
    timers = list(timers_left(gate))
    assert not timers, f"timers left: {timers}"


def timers_left(gate: Gateway) -> Iterator[Any]:
    """Timers of the loops that upstreams live on which are neither cancelled nor a lane's own, and alarms to come."""
    for loop in {upstream._bound_to for upstream in gate}:
        yield from timers_of(loop)


def timers_of(loop: Any) -> Iterator[Any]:
    """Timers of a loop that somebody still waits for: one that serves many stays until its time comes."""
    for timer in getattr(loop, "_scheduled", ()):
        owner = getattr(timer._callback, "__self__", None)
        idle = isinstance(owner, Lane) or (isinstance(owner, Alarms) and not len(owner))
        if not timer.cancelled() and not idle:
            yield timer
