"""Retry: what is tried again, after which pause, and when it is not worth it."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import replace
from datetime import timedelta
from math import inf, nan

import pytest
from tenacity import wait_chain, wait_exponential, wait_fixed, wait_none, wait_random

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Deadline,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    NotSent,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    handler,
)
from tests.support import NEVER_OPENS, Boom, counted, ended, now, steps


def retrying(attempts: int = 2, **knobs) -> Policy:
    return Policy(retry=RetryPolicy(attempts=attempts, **({"wait": wait_none()} | knobs)), breaker=NEVER_OPENS)


class Flaky:
    """Fails a number of times, and says when each try began."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.began: list[float] = []

    async def __call__(self) -> str:
        self.began.append(now())
        if self.errors:
            raise self.errors.pop(0)
        return "well"

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in zip(self.began, self.began[1:], strict=False)]


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "tiers", [[], [LastGood(), Static("s")], [handler(lambda error: "h")]], ids=["none", "sync", "handler"]
)
async def test_with_the_default_policy_a_first_try_that_hangs_leaves_time_for_a_second(gate: Gateway, tiers) -> None:
    tries = []

    @gate.upstream("world").operation(idempotent=True, fallback=tiers)
    async def ask() -> str:
        tries.append(now())
        if len(tries) == 1:
            await asyncio.sleep(99)
        await asyncio.sleep(5.0)
        return "well"

    began = now()
    answer = await ask.ask()

    assert (answer.value, answer.source) == ("well", "live")
    assert len(tries) == 2
    assert 10.0 <= tries[1] - began <= 10.2


@pytest.mark.virtual_time
async def test_it_tries_as_often_as_the_policy_says_and_raises_the_last_error(gate: Gateway) -> None:
    errors = [Boom(number) for number in range(9)]
    up = gate.upstream("world", policy=retrying(5))
    operation = up.operation(name="ask", idempotent=True)(Flaky(*errors))

    error = await ended(operation())

    assert error.__cause__ is errors[4]
    assert error.attempts == 5
    assert counted(up) == {"asked": 1, "failed": 1, "attempts": 5, "retries": 4}


@pytest.mark.virtual_time
async def test_one_attempt_is_no_retry(gate: Gateway) -> None:
    up = gate.upstream("world", policy=retrying(1))
    operation = up.operation(name="ask", idempotent=True)(Flaky(NotSent()))

    assert type(await ended(operation())) is Failed
    assert counted(up) == {"asked": 1, "failed": 1, "attempts": 1}


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("wait", "pauses"),
    [
        (wait_none(), [0.0, 0.0, 0.0]),
        (wait_fixed(0.25), [0.25, 0.25, 0.25]),
        (wait_exponential(multiplier=0.1), [0.1, 0.2, 0.4]),
        (wait_chain(wait_fixed(0.1), wait_fixed(0.3)), [0.1, 0.3, 0.3]),
        (wait_fixed(0.1) + wait_fixed(0.2), [0.3, 0.3, 0.3]),
        (lambda state: state.attempt_number / 10, [0.1, 0.2, 0.3]),
        (lambda state: -1.0, [0.0, 0.0, 0.0]),
    ],
    ids=["none", "fixed", "exponential", "chain", "sum", "function", "negative"],
)
async def test_the_pause_is_any_of_tenacitys_waits(gate: Gateway, wait, pauses) -> None:
    flaky = Flaky(Boom(), Boom(), Boom())
    operation = gate.upstream("world", policy=retrying(4, wait=wait)).operation(name="ask", idempotent=True)(flaky)

    assert await operation() == "well"
    assert flaky.pauses == pytest.approx(pauses)


@pytest.mark.virtual_time
async def test_the_wait_sees_the_error_of_the_try(gate: Gateway) -> None:
    seen = []

    def wait(state) -> float:
        seen.append((state.attempt_number, type(state.outcome.exception())))
        return 0.0

    flaky = Flaky(Boom(), TimeoutError())
    operation = gate.upstream("world", policy=retrying(3, wait=wait)).operation(name="ask", idempotent=True)(flaky)

    await operation()

    assert seen == [(1, Boom), (2, TimeoutError)]


@pytest.mark.virtual_time
async def test_a_wait_that_raises_means_no_retry_and_hides_nothing(gate: Gateway, caplog) -> None:
    up = gate.upstream("world", policy=retrying(3, wait=lambda state: 1 / 0))
    bare = up.operation(name="bare", idempotent=True)(Flaky(Boom()))
    covered = up.operation(name="covered", idempotent=True, fallback=[Static("s")])(Flaky(Boom()))

    error, answer = await ended(bare()), await covered()

    assert isinstance(error.__cause__, Boom)
    assert answer == "s"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.virtual_time
async def test_the_default_pause_is_full_jitter_that_doubles(gate: Gateway) -> None:
    policy = Policy(retry=RetryPolicy(attempts=8), breaker=NEVER_OPENS)
    up = gate.upstream("world", policy=policy)
    each: list[list[float]] = [[] for _ in range(7)]

    for number in range(50):
        flaky = Flaky(*[Boom() for _ in range(8)])
        await ended(up.operation(name=f"ask {number}", idempotent=True)(flaky)())
        for pauses, pause in zip(each, flaky.pauses, strict=True):
            pauses.append(pause)

    for number, pauses in enumerate(each):
        most = min(2.0, 0.1 * 2**number)
        assert 0.0 <= min(pauses) < most / 2 < max(pauses) <= most + 1e-6


# -- what does not fit


@pytest.mark.virtual_time
async def test_it_does_not_sleep_into_a_pause_that_cannot_end_in_time(gate: Gateway) -> None:  # peers, row 9
    flaky = Flaky(Boom(), Boom())
    operation = gate.upstream("world", policy=retrying(3, wait=wait_fixed(0.5))).operation(name="ask", idempotent=True)(
        flaky
    )
    began = now()

    with Deadline.after(0.4):
        error = await ended(operation())

    assert now() == began
    assert error.attempts == 1


@pytest.mark.virtual_time
async def test_a_pause_must_end_before_the_time_of_the_tiers_begins(gate: Gateway) -> None:
    policy = replace(retrying(2, wait=wait_fixed(1.2)), timeout=TimeoutPolicy(call=2.0))
    flaky = Flaky(Boom(), Boom())
    operation = gate.upstream("world", policy=policy).operation(name="ask", idempotent=True)(flaky)
    operation.fallback(timeout=1.0)(lambda error: "plan B")
    began = now()

    assert await operation() == "plan B"
    assert now() == began
    assert len(flaky.began) == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize(("left", "tries"), [(0.249, 1), (0.25, 2), (0.26, 2)])
async def test_a_pause_and_the_least_time_of_a_try_must_fit(gate: Gateway, left: float, tries: int) -> None:
    policy = retrying(2, wait=wait_fixed(0.2))
    flaky = Flaky(Boom(), Boom())
    operation = gate.upstream("world", policy=policy).operation(name="ask", idempotent=True)(flaky)

    with Deadline.after(left):
        await ended(operation())

    assert len(flaky.began) == tries


@pytest.mark.virtual_time
async def test_the_last_try_gets_what_is_left_but_no_more_than_a_try_may_take(gate: Gateway) -> None:
    policy = replace(retrying(3), timeout=TimeoutPolicy(call=2.5, attempt=1.0))
    took = []

    @gate.upstream("world", policy=policy).operation(idempotent=True)
    async def ask() -> None:
        began = now()
        try:
            await asyncio.sleep(99)
        finally:
            took.append(now() - began)

    error = await ended(ask())

    assert took == pytest.approx([1.0, 1.0, 0.5])
    assert type(error) is FailedTimeout


@pytest.mark.virtual_time
async def test_who_pauses_holds_no_place(gate: Gateway) -> None:
    policy = replace(retrying(2, wait=wait_fixed(1.0)), bulkhead=BulkheadPolicy(limit=1, queue=0))
    up = gate.upstream("world", policy=policy)
    pausing = up.operation(name="pausing", idempotent=True)(Flaky(Boom()))
    other = up.operation(name="other", idempotent=True)(Flaky())

    call = asyncio.ensure_future(pausing())
    await asyncio.sleep(0.5)

    assert up.snapshot().bulkhead.in_use == 0
    assert await other() == "well"
    assert await call == "well"


# -- retry_after


class Busy(Exception):
    def __init__(self, retry_after: object) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [(0.5, 0.5), (0.05, 0.1), (3, 3.0), (10.0, 10.0), (None, 0.1), (0, 0.1)],
    ids=str,
)
async def test_the_pause_is_at_least_what_the_upstream_asks_for(gate: Gateway, retry_after, pause) -> None:
    flaky = Flaky(Busy(retry_after))
    operation = gate.upstream("world", policy=retrying(wait=wait_fixed(0.1))).operation(name="ask", idempotent=True)(
        flaky
    )

    assert await operation() == "well"
    assert flaky.pauses == [pytest.approx(pause)]


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["above the most", "not before the cutoff", "for ever", "never"])
async def test_what_is_too_long_to_wait_for_is_not_waited_for(gate: Gateway, how: str) -> None:
    retry_after = {"above the most": 10.1, "not before the cutoff": 4.0, "for ever": inf, "never": -1}[how]
    policy = replace(retrying(), timeout=TimeoutPolicy(call=4.0 if how == "not before the cutoff" else 30.0))
    flaky = Flaky(Busy(retry_after))
    operation = gate.upstream("world", policy=policy).operation(name="ask", idempotent=True)(flaky)
    began = now()

    error = await ended(operation())

    assert now() == began
    assert error.attempts == 1
    assert error.retry_after == (inf if how == "never" else retry_after)


@pytest.mark.virtual_time
async def test_how_long_it_waits_at_most_is_a_knob(gate: Gateway) -> None:
    flaky = Flaky(Busy(0.5))
    policy = retrying(max_retry_after=0.4)
    operation = gate.upstream("world", policy=policy).operation(name="ask", idempotent=True)(flaky)

    assert (await ended(operation())).attempts == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [NotSent("busy", retry_after=0.7), Busy(0.7)], ids=["NotSent", "any error"])
async def test_any_error_may_say_how_long(gate: Gateway, error) -> None:
    flaky = Flaky(error)
    operation = gate.upstream("world", policy=retrying()).operation(name="ask", idempotent=True)(flaky)

    assert await operation() == "well"
    assert flaky.pauses == [pytest.approx(0.7)]


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "nonsense", ["120", "Wed, 21 Oct 2026 07:28:00 GMT", timedelta(seconds=3), nan, [], True], ids=str
)
async def test_a_retry_after_that_is_no_number_is_nobodys_business(gate: Gateway, nonsense) -> None:
    up = gate.upstream("world", policy=retrying())
    again = up.operation(name="again", idempotent=True)(Flaky(Busy(nonsense)))
    covered = up.operation(name="covered", idempotent=False, fallback=[Static("s", after_unknown=True)])(
        Flaky(Busy(nonsense))
    )

    assert await again() == "well"
    answer = await covered.ask()
    assert answer.value == "s"
    assert answer.error.retry_after is None


# -- a rejection in between


@pytest.mark.virtual_time
async def test_a_rejection_after_a_sent_try_does_not_hide_it(gate: Gateway) -> None:
    policy = replace(retrying(), breaker=BreakerPolicy(min_calls=1))
    up = gate.upstream("world", policy=policy)
    boom = Boom()
    operation = up.operation(name="ask", idempotent=True)(Flaky(boom))

    error = await ended(operation())

    assert type(error) is Failed
    assert error.__cause__ is boom
    assert error.attempts == 1
    assert "rejected" in error.__notes__[0]
    assert "CircuitOpen" in error.__notes__[0]
    assert counted(up) == {"asked": 1, "failed": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_pool_that_is_full_by_then_does_not_hide_it_either(gate: Gateway) -> None:
    policy = replace(retrying(wait=wait_fixed(0.1)), bulkhead=BulkheadPolicy(limit=1, queue=0))
    up = gate.upstream("world", policy=policy)
    operation = up.operation(name="ask", idempotent=True, fallback=[Static("s")])(Flaky(Boom()))

    @up.operation(idempotent=True)
    async def holding() -> None:
        await asyncio.sleep(1.0)

    first = asyncio.ensure_future(operation.ask())
    await steps(3)
    holder = asyncio.ensure_future(holding())
    answer = await first
    await holder

    assert answer.value == "s"
    assert type(answer.error) is Failed
    assert "BulkheadFull" in answer.error.__notes__[0]
    assert up.snapshot().counts.retries == 0


# -- what is not lost on the way


@pytest.mark.asyncio
async def test_the_callers_context_is_there_in_every_try_and_every_tier() -> None:  # demands, row 28
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    async with Gateway() as gate:
        up = gate.upstream("world", policy=retrying())
        seen = []

        @up.operation(idempotent=True)
        def plain() -> None:
            seen.append(("thread", user.get()))
            raise Boom

        @plain.fallback
        async def plan_b(error: Exception) -> str:
            seen.append(("tier", user.get()))
            return "b"

        user.set("ada")
        assert await plain() == "b"

    assert seen == [("thread", "ada"), ("thread", "ada"), ("tier", "ada")]


@pytest.mark.virtual_time
async def test_nothing_is_repeated_after_the_caller_left(gate: Gateway) -> None:
    tries = []

    @gate.upstream("world", policy=retrying(3)).operation(idempotent=True, fallback=[Static("never asked")])
    async def ask() -> None:
        tries.append(1)
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            raise ConnectionError("closed under us") from None

    call = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(0.1)
    call.cancel()
    error = await call

    assert type(error) is ConnectionError
    assert tries == [1]
    assert counted(gate["world"]) == {"asked": 1, "cancelled": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_the_jitter_of_a_users_own_wait_is_its_own(gate: Gateway) -> None:
    flaky = Flaky(Boom())
    policy = retrying(wait=wait_random(0.2, 0.4))
    operation = gate.upstream("world", policy=policy).operation(name="ask", idempotent=True)(flaky)

    await operation()

    assert 0.2 <= flaky.pauses[0] <= 0.4 + 1e-6
