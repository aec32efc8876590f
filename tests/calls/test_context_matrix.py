"""Whatever the caller's context holds is there at every place where a call runs the users' own code.

Each hop of a call, by each kind of ambient fact: a plain ContextVar, the Deadline, a span of OpenTelemetry, what
structlog binds, the precision of decimal. And the other way: what code sets in its context, and who sees it then.
"""

from __future__ import annotations

import asyncio
import decimal
from asyncio import CancelledError, create_task, sleep
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from tenacity import wait_fixed

from gateway import (
    Alternate,
    AttemptFailed,
    BulkheadPolicy,
    CallFinished,
    Deadline,
    Gateway,
    GatewayError,
    LastGood,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    Upstream,
    gather,
)
from gateway.context import AMBIENT
from gateway.testing import Faults
from tests.support import QUIET, Boom, ended, gone, steps

virtual = pytest.mark.virtual_time

LEFT = 8.0
"""Seconds that the caller has."""
LONG = TimeoutPolicy(call=1000.0, attempt=1000.0)
ONCE = replace(QUIET, timeout=LONG)
TWICE = replace(ONCE, retry=RetryPolicy(attempts=2, wait=wait_fixed(0.0)))

USER: ContextVar[str] = ContextVar("user", default="nobody")
TRACER = TracerProvider().get_tracer("tests")

Look = Callable[[], None]
Call = Callable[[], Awaitable[Any]]
Hop = Callable[[Gateway, Look], Awaitable[Call]]
Read = Callable[[], Any]


# -- what is ambient: a block that sets it and gives what is to be seen, and how it is seen


@contextmanager
def a_variable() -> Iterator[object]:
    token = USER.set("ada")
    yield "ada"
    USER.reset(token)


@contextmanager
def a_variable_under_a_deadline() -> Iterator[object]:
    with Deadline.after(LEFT), a_variable() as seen:
        yield seen


@contextmanager
def a_deadline() -> Iterator[object]:
    with Deadline.after(LEFT):
        yield LEFT


@contextmanager
def a_span() -> Iterator[object]:
    with TRACER.start_as_current_span("page") as span:
        yield span


@contextmanager
def what_structlog_binds() -> Iterator[object]:
    with structlog.contextvars.bound_contextvars(user="ada"):
        yield {"user": "ada"}


@contextmanager
def a_precision() -> Iterator[object]:
    with decimal.localcontext() as context:
        context.prec = 7
        yield 7


def left() -> float:
    deadline = Deadline.current()
    assert deadline is not None
    return deadline.remaining()


AMBIENTS: dict[str, tuple[Callable[[], AbstractContextManager[object]], Read]] = {
    "a ContextVar": (a_variable, USER.get),
    "a ContextVar under a Deadline": (a_variable_under_a_deadline, USER.get),
    "the Deadline": (a_deadline, left),
    "a span": (a_span, trace.get_current_span),
    "structlog": (what_structlog_binds, structlog.contextvars.get_contextvars),
    "decimal": (a_precision, lambda: decimal.getcontext().prec),
}


# -- where it is to be seen: each makes what it needs, and gives the call


def world(gate: Gateway, policy: Policy = ONCE) -> Upstream:
    return gate.upstream("world", policy=policy)


def failing(gate: Gateway) -> Any:
    """An operation that fails, for the tiers after it."""

    @world(gate).operation(idempotent=True)
    async def ask() -> str:
        raise Boom

    return ask


async def an_async_function(gate: Gateway, look: Look) -> Call:
    @world(gate).operation(idempotent=True)
    async def ask() -> None:
        look()
        await sleep(0)
        look()

    return ask


async def an_async_function_on_a_retry(gate: Gateway, look: Look) -> Call:
    @world(gate, TWICE).operation(idempotent=True)
    async def ask() -> None:
        look()

    async def call() -> None:
        with Faults(ask).error(Boom):
            await ask()

    return call


async def an_async_function_after_the_queue(gate: Gateway, look: Look) -> Call:
    free = asyncio.Event()

    @world(gate, replace(ONCE, bulkhead=BulkheadPolicy(limit=1, max_wait=100.0))).operation(idempotent=True)
    async def ask(wait: bool = False) -> None:
        if wait:
            await free.wait()
        else:
            look()

    holder = create_task(ask(wait=True))
    await steps(2)

    async def call() -> None:
        asyncio.get_running_loop().call_soon(free.set)
        await ask()
        await holder

    return call


async def a_sync_function(gate: Gateway, look: Look) -> Call:
    def ask(see: bool = True) -> None:
        if see:
            look()

    operation = world(gate).operation(idempotent=True)(ask)
    await operation(see=False)  # its thread is there already, and knows another context
    return operation


async def a_sync_function_on_a_retry(gate: Gateway, look: Look) -> Call:
    tries = []

    @world(gate, TWICE).operation(idempotent=True)
    def ask() -> None:
        tries.append(1)
        look()
        if len(tries) == 1:
            raise Boom

    return ask


async def a_sync_function_after_the_queue(gate: Gateway, look: Look) -> Call:
    up = world(gate, replace(ONCE, bulkhead=BulkheadPolicy(limit=1, max_wait=100.0)))
    ask = up.operation(name="ask", idempotent=True)(look)
    free = asyncio.Event()

    @up.operation(idempotent=True)
    async def hold() -> None:
        await free.wait()

    holder = create_task(hold())
    await steps(2)

    async def call() -> None:
        asyncio.get_running_loop().call_soon(free.set)
        await ask()
        await holder

    return call


async def a_key(gate: Gateway, look: Look) -> Call:
    def key() -> str:
        look()
        return "k"

    @world(gate).operation(idempotent=True, key=key, fallback=[LastGood()])
    async def ask() -> None: ...

    return ask


async def a_key_for_a_tier_that_only_looks(gate: Gateway, look: Look) -> Call:
    def key() -> str:
        look()
        return "k"

    @world(gate).operation(idempotent=True, key=key, fallback=[Static("s")])
    async def ask() -> str:
        raise Boom

    return ask


async def an_identity(gate: Gateway, look: Look) -> Call:
    def identity() -> str:
        look()
        return "i"

    @world(gate).operation(idempotent=True, identity=identity, fallback=[LastGood()])
    async def ask() -> None: ...

    return ask


async def a_classifier_of_values(gate: Gateway, look: Look) -> Call:
    def classify(what: object) -> Outcome | None:
        look()
        return None

    @world(gate).operation(idempotent=True, classify=classify)
    async def ask() -> None: ...

    return ask


async def a_classifier_of_errors(gate: Gateway, look: Look) -> Call:
    def classify(what: object) -> Outcome | None:
        look()
        return Outcome.REFUSED

    @world(gate).operation(idempotent=True, classify=classify)
    def ask() -> None:
        raise Boom

    async def call() -> None:
        assert type(await ended(ask())) is Boom

    return call


async def a_sync_handler(gate: Gateway, look: Look) -> Call:
    ask = failing(gate)

    @ask.fallback
    def plan_b(error: Exception) -> str:
        look()
        return "b"

    return ask


async def an_async_handler(gate: Gateway, look: Look) -> Call:
    ask = failing(gate)

    @ask.fallback(timeout=2.0)
    async def plan_b(error: Exception) -> str:
        look()
        await sleep(0)
        look()
        return "b"

    return ask


async def a_tier_after_one_that_failed(gate: Gateway, look: Look) -> Call:
    ask = failing(gate)

    @ask.fallback
    async def plan_b(error: Exception) -> str:
        await sleep(0)
        raise Boom

    @ask.fallback(timeout=2.0)
    async def plan_c(error: Exception) -> str:
        look()
        return "c"

    return ask


async def a_tier_of_ones_own(gate: Gateway, look: Look) -> Call:
    class Own:
        def remember(self, key: object, value: object, now: float) -> None:
            look()

        def answer(self, question: object) -> None:
            look()

    async def call() -> None:
        await ask()
        with Faults(ask).error(Boom):
            await ask()

    @world(gate).operation(idempotent=True, fallback=[Own(), Static("s")])
    async def ask() -> str:
        return "a"

    return call


async def an_alternate(gate: Gateway, look: Look) -> Call:
    @gate.upstream("other", policy=ONCE).operation(idempotent=True)
    async def other() -> None:
        look()

    failing(gate).fallback(Alternate(other, timeout=2.0))
    return gate["world"]["ask"]  # type: ignore[return-value]


async def a_sync_alternate(gate: Gateway, look: Look) -> Call:
    other = gate.upstream("other", policy=ONCE).operation(name="other", idempotent=True)(look)
    failing(gate).fallback(Alternate(other, timeout=2.0))
    return gate["world"]["ask"]  # type: ignore[return-value]


async def the_parts_of_gather(gate: Gateway, look: Look) -> Call:
    @world(gate).operation(idempotent=True)
    async def ask() -> None:
        look()

    @gate["world"].operation(idempotent=True)
    def plain() -> None:
        look()

    async def bare() -> None:
        look()

    async def call() -> None:
        await gather(
            required={"a": ask.ask(), "b": plain()}, optional={"c": bare(), "d": gather(required={"e": ask()})}
        )

    return call


async def an_operation_inside_another(gate: Gateway, look: Look) -> Call:
    @gate.upstream("other", policy=ONCE).operation(idempotent=True)
    def inner() -> None:
        look()

    @world(gate).operation(idempotent=True)
    async def outer() -> None:
        await inner()
        look()

    return outer


async def a_function_under_faults(gate: Gateway, look: Look) -> Call:
    ask = world(gate).operation(name="ask", idempotent=True)(look)

    async def call() -> None:
        with Faults(ask).delay(0.0):
            await ask()
            await ask()

    return call


async def a_child_of_a_task_group(gate: Gateway, look: Look) -> Call:
    @world(gate).operation(idempotent=True)
    async def ask() -> None:
        look()

    async def call() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(ask())

    return call


async def a_listener(gate: Gateway, look: Look) -> Call:
    gate.on(CallFinished, AttemptFailed)(lambda _: look())
    failing(gate).fallback(Static("s"))
    return gate["world"]["ask"]  # type: ignore[return-value]


async def a_refresh(gate: Gateway, look: Look) -> Call:
    @world(gate).operation(idempotent=True, revalidate="background")
    async def ask() -> str:
        look()
        await sleep(0)
        look()
        return "a"

    await ask()

    async def refreshed() -> None:
        await ask()
        await steps(5)

    return refreshed


async def a_call_that_is_handed_over(gate: Gateway, look: Look) -> Call:
    leading = True

    @world(gate).operation(idempotent=True, coalesce=True)
    async def ask() -> str:
        if leading:
            await sleep(1e6)
        look()
        return "a"

    leader = create_task(ask())
    await steps(2)

    async def followed() -> None:
        nonlocal leading
        following = create_task(ask())
        await steps(2)
        leading = False
        await gone(leader)
        await following

    return followed


async def what_is_said_of_remembering(gate: Gateway, look: Look) -> Call:
    @world(gate).operation(
        idempotent=True,
        fallback=[LastGood()],
        remember=lambda _: look() is None,
        size_of=lambda _: (look() is None and 1) or 1,
        key=lambda: look() is None and "k",
    )
    async def ask() -> str:
        return "a"

    return ask


HOPS: list[Hop] = [
    an_async_function,
    an_async_function_on_a_retry,
    an_async_function_after_the_queue,
    a_sync_function,
    a_sync_function_on_a_retry,
    a_sync_function_after_the_queue,
    a_key,
    a_key_for_a_tier_that_only_looks,
    an_identity,
    a_classifier_of_values,
    a_classifier_of_errors,
    a_sync_handler,
    an_async_handler,
    a_tier_after_one_that_failed,
    a_tier_of_ones_own,
    an_alternate,
    a_sync_alternate,
    the_parts_of_gather,
    an_operation_inside_another,
    a_function_under_faults,
    a_child_of_a_task_group,
    a_listener,
    a_refresh,
    a_call_that_is_handed_over,
    what_is_said_of_remembering,
]
LIMITED: dict[Hop, float] = dict.fromkeys(
    (an_async_handler, a_tier_after_one_that_failed, an_alternate, a_sync_alternate), 2.0
)
"""Tiers that take time have a limit of their own, in seconds, and the ambient deadline there is that."""


@virtual
@pytest.mark.parametrize("hop", HOPS, ids=lambda hop: hop.__name__.replace("_", " "))
@pytest.mark.parametrize("ambient", AMBIENTS)
async def test_the_callers_context_is_there(gate: Gateway, ambient: str, hop: Hop) -> None:
    enter, read = AMBIENTS[ambient]
    seen: list[Any] = []
    call = await hop(gate, lambda: seen.append(read()))

    with enter() as expected:
        seen.clear()
        await call()

    assert seen
    if read is left:
        expected = pytest.approx(ONCE.timeout.attempt if hop is a_refresh else min(LEFT, LIMITED.get(hop, LEFT)))
    assert all(one == expected for one in seen)


# -- the deadline, where time has passed


@virtual
async def test_the_deadline_at_a_try_is_what_is_left_then(gate: Gateway) -> None:
    policy = replace(TWICE, retry=RetryPolicy(attempts=3, wait=wait_fixed(1.0)))
    seen = []

    @world(gate, policy).operation(idempotent=True, fallback=[Static("s")])
    async def ask() -> None:
        seen.append(left())
        await sleep(0.5)
        raise Boom

    with Deadline.after(LEFT):
        await ask()

    assert seen == [pytest.approx(LEFT), pytest.approx(LEFT - 1.5), pytest.approx(LEFT - 3.0)]


@virtual
async def test_the_deadline_at_a_try_keeps_the_time_of_the_tiers_and_a_tier_has_its_own(gate: Gateway) -> None:
    seen = []

    @world(gate).operation(idempotent=True)
    async def ask() -> None:
        seen.append(left())
        raise Boom

    @ask.fallback(timeout=1.0)
    async def plan_b(error: Exception) -> None:
        seen.append(left())

    with Deadline.after(LEFT):
        await ask()

    assert seen == [pytest.approx(LEFT - 1.0), pytest.approx(1.0)]


# -- what the users' code sets


@virtual
async def test_what_an_async_function_sets_is_seen_by_all_that_comes_after_it(gate: Gateway) -> None:
    seen = []

    @world(gate, TWICE).operation(idempotent=True)
    async def ask() -> str:
        seen.append(USER.get())
        USER.set(f"{USER.get()}+")
        raise Boom

    @ask.fallback
    async def plan_b(error: Exception) -> str:
        seen.append(USER.get())
        USER.set("plan b")
        return "b"

    USER.set("ada")
    await ask()

    assert seen == ["ada", "ada+", "ada++"]  # as if it were called bare: the same task, the same context
    assert USER.get() == "plan b"


@virtual
async def test_what_a_thread_sets_is_seen_by_nobody_after_it(gate: Gateway) -> None:
    seen = []

    @world(gate, TWICE).operation(idempotent=True)
    def ask() -> str:
        seen.append(USER.get())
        USER.set("the thread's")
        seen.append(USER.get())
        raise Boom

    @ask.fallback
    def plan_b(error: Exception) -> str:
        seen.append(USER.get())
        return "b"

    USER.set("ada")
    await ask()

    assert seen == ["ada", "the thread's", "ada", "the thread's", "ada"]
    assert USER.get() == "ada"


@virtual
async def test_what_a_part_of_gather_sets_is_seen_by_no_other_and_not_by_the_caller(gate: Gateway) -> None:
    @world(gate).operation(idempotent=True)
    async def ask(name: str) -> str:
        before = USER.get()
        USER.set(name)
        await sleep(0)
        return f"{before} {USER.get()}"

    USER.set("ada")
    page = await gather(required={"a": ask("bob"), "b": ask("eve")})

    assert [one.value for one in page.values()] == ["ada bob", "ada eve"]
    assert USER.get() == "ada"


@virtual
async def test_a_span_that_a_function_left_open_is_not_the_callers(gate: Gateway) -> None:
    @world(gate).operation(idempotent=True)
    async def ask() -> object:
        with TRACER.start_as_current_span("inner") as span:
            await sleep(0)
            assert trace.get_current_span() is span
        raise Boom

    with TRACER.start_as_current_span("page") as page:
        await ended(ask())
        after = trace.get_current_span()

    assert after is page


# -- the library's own ambient fact


async def succeeds() -> str:
    return "a"


async def fails() -> str:
    raise Boom


async def refuses() -> str:
    raise Refused


async def hangs() -> str:
    await sleep(1e6)
    return "never"


async def gives_up() -> str:
    raise CancelledError


async def sets_a_deadline() -> str:
    Deadline.after(0.001).__enter__()  # and never leaves it
    return "a"


ENDINGS = [succeeds, fails, refuses, hangs, gives_up, sets_a_deadline]


@virtual
@pytest.mark.parametrize("tiers", [(), (Static("s"),)], ids=["no tier", "a tier"])
@pytest.mark.parametrize("under", [False, True], ids=["no deadline", "a deadline"])
@pytest.mark.parametrize("function", ENDINGS, ids=lambda function: function.__name__.replace("_", " "))
async def test_after_every_ending_the_ambient_deadline_is_the_callers_again(
    gate: Gateway, function: Callable[[], Awaitable[str]], under: bool, tiers: tuple[Any, ...]
) -> None:
    ask = world(gate, TWICE).operation(idempotent=True, fallback=tiers)(function)

    with Deadline.after(LEFT if under else float("inf")):
        before = AMBIENT.get()
        await ended(ask())
        after = AMBIENT.get()

    assert after is before
    assert AMBIENT.get() is None


@virtual
@pytest.mark.parametrize("turns", range(8))
async def test_after_a_cancel_the_ambient_deadline_is_the_callers_again(gate: Gateway, turns: int) -> None:
    ask = world(gate, TWICE).operation(idempotent=True)(hangs)
    seen = []

    async def caller() -> None:
        with Deadline.after(LEFT):
            before = AMBIENT.get()
            try:
                await (gather(required={"a": ask()}) if turns % 2 else ask())
            finally:
                seen.append(AMBIENT.get() is before)
        seen.append(AMBIENT.get() is None)

    call = create_task(caller())
    await steps(1 + turns)
    await gone(call)

    assert seen[0]
    assert call.cancelled()


@virtual
async def test_after_a_rejection_the_ambient_deadline_is_the_callers_again(gate: Gateway) -> None:
    ask = world(gate).operation(name="ask", idempotent=True)(succeeds)
    gate["world"].isolate()

    with Deadline.after(LEFT):
        before = AMBIENT.get()
        with pytest.raises(GatewayError):
            await ask()
        after = AMBIENT.get()

    assert after is before
