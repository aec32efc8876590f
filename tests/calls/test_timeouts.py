"""Time: what ends when, what is reserved for the tiers, what comes late, and what of it is evidence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from tenacity import wait_fixed, wait_none

from gateway import (
    Alternate,
    Answer,
    BreakerPolicy,
    BulkheadPolicy,
    CircuitOpen,
    Deadline,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    Policy,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    UnknownTimeout,
    handler,
)
from tests.support import NEVER_OPENS, ONE_TRY, QUIET, Boom, counted, ended, gone, now, steps


async def hanging(*_: object) -> None:
    await asyncio.sleep(99)


def limited(call: float, attempt: float | None = None, **others: Any) -> Policy:
    timeout = TimeoutPolicy(call=call) if attempt is None else TimeoutPolicy(call=call, attempt=attempt)
    return replace(QUIET, timeout=timeout, **others)


# -- one try, one call


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("idempotent", "kind"), [(True, FailedTimeout), (None, FailedTimeout), (False, UnknownTimeout)]
)
async def test_a_try_ends_at_its_limit(gate: Gateway, idempotent, kind) -> None:
    operation = gate.upstream("world", policy=limited(5.0, 0.3)).operation(idempotent=idempotent)(hanging)
    began = now()

    error = await ended(operation())

    assert now() - began == pytest.approx(0.3)
    assert type(error) is kind
    assert error.waited_for == "attempt"
    assert "0.300 s" in str(error)


@pytest.mark.virtual_time
async def test_calls_that_begin_one_after_the_other_end_each_at_its_own_limit(gate: Gateway) -> None:  # peers, row 16
    policy = limited(5.0, 0.5, bulkhead=BulkheadPolicy(limit=100))
    operation = gate.upstream("world", policy=policy).operation(idempotent=True)(hanging)

    async def timed() -> float:
        began = now()
        await ended(operation())
        return now() - began

    calls = []
    for _ in range(50):
        calls.append(asyncio.ensure_future(timed()))
        await asyncio.sleep(0.013)

    assert await asyncio.gather(*calls) == pytest.approx([0.5] * 50)


@pytest.mark.virtual_time
async def test_a_call_ends_at_its_limit_over_all_tries_and_pauses(gate: Gateway) -> None:
    policy = limited(3.0, 1.0, retry=RetryPolicy(attempts=10, wait=wait_fixed(0.2)))
    operation = gate.upstream("world", policy=policy).operation(idempotent=True)(hanging)
    began = now()

    error = await ended(operation())

    assert now() - began == pytest.approx(3.0)  # tries from 0, 1.2 and 2.4; the last gets what is left
    assert error.attempts == 3
    assert error.waited_for == "deadline"


@pytest.mark.virtual_time
async def test_the_limit_of_a_call_covers_the_queue(gate: Gateway) -> None:
    policy = limited(1.0, 1.0, bulkhead=BulkheadPolicy(limit=1, max_wait=inf))
    up = gate.upstream("world", policy=policy)

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    began = now()
    first = asyncio.ensure_future(ask(0.7))
    await steps(1)
    second = await ended(ask(0.7))

    assert await first == 0.7
    assert type(second) is FailedTimeout
    assert now() - began == pytest.approx(1.0)
    assert second.attempts == 1


@pytest.mark.virtual_time
async def test_a_call_whose_time_passes_in_the_queue_is_never_sent(gate: Gateway) -> None:
    policy = limited(1.0, 1.0, bulkhead=BulkheadPolicy(limit=1, max_wait=inf))
    up = gate.upstream("world", policy=policy)
    operation = up.operation(idempotent=True)(hanging)
    first = asyncio.ensure_future(ended(operation()))
    await steps(1)

    with Deadline.after(0.5):
        error = await ended(operation())

    assert type(error) is DeadlineExceeded
    assert error.waited_for == "queue"
    assert error.attempts == 0
    await first
    assert up.snapshot().counts.attempts == 1


@pytest.mark.virtual_time
async def test_without_limits_a_call_takes_what_it_takes(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(inf, inf))

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert await ask(100_000.0) == 100_000.0
    with Deadline.after(1.0):
        assert type(await ended(ask(2.0))) is FailedTimeout


@pytest.mark.virtual_time
async def test_a_value_that_comes_with_its_timeout_is_decided_once(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0))

    @up.operation(idempotent=True)
    async def ask(nearer: bool) -> int:
        await asyncio.sleep(0.5 if nearer else 1.0)
        return 1

    ends = [await ended(ask(False))]
    with Deadline.after(0.5):
        ends.append(await ended(ask(True)))

    live = sum(end == 1 for end in ends)
    assert all(end == 1 or type(end) is FailedTimeout for end in ends)
    assert counted(up) in (
        {"asked": 2, "attempts": 2, **({"live": live} if live else {}), **({"failed": 2 - live} if live < 2 else {})},
        {"asked": 2, "attempts": 2, "live": 2, "overran": 2},
    )


# -- the deadline


@pytest.mark.virtual_time
async def test_the_ambient_deadline_ends_a_call_when_it_is_sooner(gate: Gateway) -> None:
    operation = gate.upstream("world", policy=limited(5.0, 3.0)).operation(idempotent=True)(hanging)
    began = now()

    with Deadline.after(0.4):
        error = await ended(operation())

    assert now() - began == pytest.approx(0.4)
    assert (type(error), error.waited_for) == (FailedTimeout, "deadline")


@pytest.mark.virtual_time
async def test_a_deadline_only_moves_nearer(gate: Gateway) -> None:
    operation = gate.upstream("world").operation(idempotent=True)(hanging)
    began = now()

    with Deadline.after(0.4), Deadline.after(10.0):
        await ended(operation())

    assert now() - began == pytest.approx(0.4)


@pytest.mark.virtual_time
async def test_a_deadline_cancels_nothing_but_calls(gate: Gateway) -> None:
    operation = gate.upstream("world").operation(idempotent=True)(hanging)

    with Deadline.after(0.1) as deadline:
        await asyncio.sleep(0.5)
        left = deadline.remaining()
        error = await ended(operation())

    assert left == 0.0
    assert type(error) is DeadlineExceeded


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [0.0, -5.0])
async def test_a_function_that_never_suspends_is_not_sent_when_its_deadline_has_passed(gate: Gateway, seconds) -> None:
    sent = []  # hole 2

    @gate.upstream("world").operation(idempotent=False)
    async def ask() -> None:
        sent.append(1)

    with Deadline.after(seconds):
        error = await ended(ask())

    assert type(error) is DeadlineExceeded
    assert not sent


@pytest.mark.virtual_time
async def test_a_deadline_that_has_passed_spends_no_probe(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1, open_for=1.0, probes=1)))
    operation = up.operation(idempotent=True)(hanging)
    await gate.open()
    up.breaker.admit().failed()
    await asyncio.sleep(1.1)

    with Deadline.after(0.0):
        error = await ended(operation())

    assert type(error) is DeadlineExceeded
    assert up.snapshot().breaker.state == "open"


@pytest.mark.virtual_time
async def test_memory_and_static_answer_even_with_no_time_left(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(), Static("s")])
    async def ask(what: str) -> str:
        return what

    await ask("known")
    with Deadline.after(0.0):
        known, unknown = await ask.ask("known"), await ask.ask("unknown")

    assert (known.value, known.source) == ("known", "last_good")
    assert (unknown.value, unknown.source) == ("s", "static")


@pytest.mark.virtual_time
async def test_a_handler_is_not_begun_with_no_time_left(gate: Gateway) -> None:
    begun = []
    up = gate.upstream("world", policy=QUIET)
    operation = up.operation(idempotent=True)(hanging)

    @operation.fallback
    async def plan_b(error: Exception) -> None:
        begun.append(1)

    with Deadline.after(0.0):
        error = await ended(operation())

    assert type(error) is DeadlineExceeded
    assert "no time" in error.__notes__[0]
    assert not begun
    assert up.snapshot().counts.fallback_failed == 1


@pytest.mark.virtual_time
async def test_what_a_function_calls_inherits_the_end_of_its_try(gate: Gateway) -> None:
    inner = gate.upstream("inner", policy=limited(20.0, 10.0))
    outer = gate.upstream("outer", policy=limited(2.0, 0.5))
    seen: list[float] = []

    @inner.operation(idempotent=True)
    async def inside() -> None:
        seen.append(Deadline.current().remaining())
        await asyncio.sleep(99)

    @outer.operation(idempotent=True)
    async def outside() -> None:
        seen.append(Deadline.current().remaining())
        await asyncio.sleep(0.1)
        await inside()

    began = now()
    error = await ended(outside())

    assert now() - began == pytest.approx(0.5)
    assert seen == pytest.approx([0.5, 0.4])
    assert (type(error), error.upstream) == (FailedTimeout, "outer")
    assert Deadline.current() is None
    assert counted(inner) == {"asked": 1, "cancelled": 1, "attempts": 1}
    assert counted(outer) == {"asked": 1, "failed": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_what_a_tier_calls_inherits_the_end_of_the_tier(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(2.0, 1.0))
    other = gate.upstream("other", policy=limited(20.0, 10.0)).operation(name="other", idempotent=True)(hanging)
    seen: list[float] = []
    operation = up.operation(idempotent=True)(hanging)

    @operation.fallback(timeout=0.3)
    async def plan_b(error: Exception) -> None:
        seen.append(Deadline.current().remaining())
        await other()

    began = now()
    error = await ended(operation())

    assert now() - began == pytest.approx(1.3)
    assert seen == pytest.approx([0.3])
    assert type(error) is FailedTimeout


@pytest.mark.virtual_time
async def test_a_deadline_of_a_nested_call_does_not_shorten_the_next(gate: Gateway) -> None:
    seen: list[float] = []
    inner = gate.upstream("inner", policy=limited(1.0, 0.2)).operation(name="inner", idempotent=True)(hanging)

    @gate.upstream("outer", policy=limited(5.0, 5.0)).operation(idempotent=True)
    async def outside() -> str:
        await ended(inner())
        seen.append(Deadline.current().remaining())
        return "done"

    assert await outside() == "done"
    assert seen == pytest.approx([4.8])


# -- the cutoff


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("tiers", "sent_until"),
    [
        ([], 2.0),
        ([Static(1)], 2.0),
        ([LastGood(), Static(1)], 2.0),
        ([handler(hanging)], 1.9),
        ([handler(hanging, timeout=0.5)], 1.5),
        ([handler(hanging, timeout=0.2), handler(hanging, timeout=0.6)], 1.4),
        ([LastGood(), handler(hanging, timeout=0.5), Static(1)], 1.5),
        ([handler(hanging, timeout=50.0)], 1.0),
    ],
    ids=["none", "static", "memory", "handler", "its own timeout", "the largest", "among others", "at most half"],
)
async def test_tries_end_where_the_time_of_the_tiers_begins(gate: Gateway, tiers, sent_until: float) -> None:
    sent = []

    @gate.upstream("world", policy=limited(2.0, 2.0)).operation(idempotent=True, fallback=tiers)
    async def ask() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            sent.append(now() - began)

    began = now()
    await ended(ask())

    assert sent == [pytest.approx(sent_until)]
    assert now() - began <= 2.0 + 1e-6


@pytest.mark.virtual_time
@pytest.mark.parametrize(("seconds", "sent_until"), [(1.0, 0.9), (0.4, 0.3), (0.1, 0.05)])
async def test_under_a_near_deadline_the_tiers_get_their_time_but_at_most_half(
    gate: Gateway, seconds, sent_until
) -> None:
    operation = gate.upstream("world", policy=limited(2.0, 2.0)).operation(idempotent=True)(hanging)
    began = now()
    asked_after = []

    @operation.fallback
    async def plan_b(error: Exception) -> str:
        asked_after.append(now() - began)
        return "b"

    with Deadline.after(seconds):
        answer = await operation.ask()

    assert answer.value == "b"
    assert asked_after == [pytest.approx(sent_until)]


@pytest.mark.virtual_time
async def test_the_queue_and_the_pauses_end_at_the_cutoff_too(gate: Gateway) -> None:
    policy = limited(
        2.0, 0.5, bulkhead=BulkheadPolicy(limit=1, max_wait=inf), retry=RetryPolicy(attempts=9, wait=wait_fixed(0.7))
    )
    up = gate.upstream("world", policy=policy)
    operation = up.operation(idempotent=True, fallback=[handler(lambda error: now(), timeout=0.5)])(hanging)
    holding = up.operation(name="holding", idempotent=True, timeout=TimeoutPolicy(call=9.0, attempt=9.0))(hanging)
    began = now()

    paused = await operation.ask()
    holder = asyncio.ensure_future(holding())
    await steps(1)
    queued_at = now()
    queued = await operation.ask()
    await gone(holder)

    assert paused.value - began == pytest.approx(0.5 + 0.7 + 0.3)
    assert queued.value - queued_at == pytest.approx(1.5)
    assert type(queued.error) is DeadlineExceeded


@pytest.mark.virtual_time
@pytest.mark.parametrize("kind", ["handler", "its own timeout", "alternate"])
async def test_endless_tiers_of_an_endless_call_take_no_try_from_it(gate: Gateway, kind: str) -> None:
    endless = limited(inf, inf, fallback_timeout=inf, retry=RetryPolicy(attempts=3, wait=wait_none()))
    other = gate.upstream("other", policy=endless)
    up = gate.upstream("world", policy=endless)

    @other.operation(idempotent=True)
    async def plan_b(*_: object) -> str:
        return "b"

    tiers = {
        "handler": handler(lambda error: "b"),
        "its own timeout": handler(lambda error: "b", timeout=inf),
        "alternate": Alternate(plan_b),
    }

    @up.operation(idempotent=True, fallback=[tiers[kind]])
    async def ask() -> str:
        raise Boom

    assert await ask() == "b"
    assert up.snapshot().counts.attempts == 3


@pytest.mark.virtual_time
async def test_a_tier_that_hangs_ends_with_its_time_and_the_call_with_its_deadline(gate: Gateway) -> None:
    operation = gate.upstream("world", policy=limited(2.0, 1.0)).operation(idempotent=True)(hanging)
    operation.fallback(timeout=0.3)(hanging)
    operation.fallback(timeout=5.0)(hanging)
    began = now()

    error = await ended(operation())

    assert now() - began == pytest.approx(2.0)
    assert len(error.__notes__) == 2


# -- what comes late


@pytest.mark.virtual_time
async def test_a_value_that_comes_late_is_live_and_counted(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0))

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask() -> str:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            return "late"

    answer = await ask.ask()

    assert answer == Answer("late", Source.LIVE)
    assert counted(up) == {"asked": 1, "live": 1, "attempts": 1, "overran": 1}
    assert (up.snapshot().breaker.calls, up.snapshot().breaker.failures) == (1, 0)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_value_of_a_function_that_held_up_the_loop_is_live_and_counted(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0))

    @up.operation(idempotent=True)
    async def ask() -> str:
        asyncio.get_running_loop().advance(3.0)  # as time.sleep would
        return "late"

    assert await ask() == "late"
    assert counted(up) == {"asked": 1, "live": 1, "attempts": 1, "overran": 1}


@pytest.mark.virtual_time
async def test_a_function_that_swallows_its_cancel_keeps_its_place_and_is_counted(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0, bulkhead=BulkheadPolicy(limit=1, queue=0)))

    @up.operation(idempotent=True)
    async def ask() -> str:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            await asyncio.sleep(2.0)
        return "late"

    call = asyncio.ensure_future(ask())
    await asyncio.sleep(2.5)
    in_use = up.snapshot().bulkhead.in_use
    rejected = await ended(ask())

    assert in_use == 1
    assert rejected.reason == "queue_full"
    assert await call == "late"
    assert up.snapshot().counts.overran == 1


@pytest.mark.virtual_time
async def test_a_function_with_slow_cleanup_keeps_its_place_until_it_ends(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0))

    @up.operation(idempotent=True)
    async def ask() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            await asyncio.sleep(0.5)

    call = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(1.25)
    in_use = up.snapshot().bulkhead.in_use
    error = await call

    assert in_use == 1
    assert type(error) is FailedTimeout
    assert error.waited_for == "attempt"
    assert up.snapshot().counts.overran == 1


@pytest.mark.virtual_time
async def test_a_cleanup_that_fails_is_what_the_try_ends_with(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0))

    @up.operation(idempotent=True)
    async def ask() -> None:
        try:
            await asyncio.sleep(99)
        finally:
            raise Boom

    error = await ended(ask())

    assert type(error) is Failed
    assert isinstance(error.__cause__, Boom)
    assert up.snapshot().breaker.failures == 1
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_function_that_swallows_the_end_of_two_calls_at_once_is_counted(gate: Gateway) -> None:  # hole 3
    inner = gate.upstream("inner", policy=limited(5.0, 1.0))
    outer = gate.upstream("outer", policy=limited(5.0, 1.0))

    @inner.operation(idempotent=True)
    async def inside() -> str:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
        return "late"

    @outer.operation(idempotent=True)
    async def outside() -> str:
        return await inside()

    assert await outside() == "late"
    assert counted(outer) == {"asked": 1, "live": 1, "attempts": 1, "overran": 1}
    assert counted(inner) == {"asked": 1, "live": 1, "attempts": 1, "overran": 1}
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.virtual_time
async def test_a_timeout_of_the_callers_own_is_a_cancel_and_no_evidence(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=1)))
    operation = up.operation(idempotent=True, fallback=[Static("never asked")])(hanging)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5.0):
            await operation()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(operation(), 5.0)

    assert counted(up) == {"asked": 2, "cancelled": 2, "attempts": 2}
    assert up.snapshot().breaker.calls == 0


# -- evidence


@pytest.mark.virtual_time
async def test_a_caller_with_a_few_milliseconds_cannot_open_a_circuit(gate: Gateway) -> None:  # design, section 4
    up = gate.upstream("world")
    operation = up.operation(idempotent=True)(hanging)

    for _ in range(200):
        with Deadline.after(0.005):
            assert type(await ended(operation())) is FailedTimeout

    circuit = up.snapshot().breaker
    assert (circuit.state, circuit.calls, circuit.failures) == ("closed", 0, 0)


@pytest.mark.virtual_time
async def test_pages_with_a_deadline_of_a_second_notice_a_hang_under_the_default_policy(gate: Gateway) -> None:
    up = gate.upstream("world")  # design, section 4
    operation = up.operation(idempotent=True)(hanging)

    async def page() -> Exception:
        with Deadline.after(1.0):
            return await ended(operation())

    ends = await asyncio.gather(*(page() for _ in range(10)))

    assert {type(end) for end in ends} == {FailedTimeout}
    assert up.snapshot().breaker.state == "open"
    assert type(await page()) is CircuitOpen


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("attempt", "evidence_after", "seconds", "failures"),
    [
        (10.0, None, 0.499, 0),
        (10.0, None, 0.5, 1),
        (0.6, None, 0.299, 0),
        (0.6, None, 0.3, 1),
        (10.0, 2.0, 1.999, 0),
        (10.0, 2.0, 2.0, 1),
        (10.0, 0.0, 0.001, 1),
    ],
)
async def test_a_cut_is_evidence_only_after_a_while(gate: Gateway, attempt, evidence_after, seconds, failures) -> None:
    breaker = BreakerPolicy(min_calls=100, evidence_after=evidence_after)
    up = gate.upstream("world", policy=limited(20.0, attempt, breaker=breaker))
    operation = up.operation(idempotent=True)(hanging)

    with Deadline.after(seconds):
        await ended(operation())

    circuit = up.snapshot().breaker
    assert (circuit.calls, circuit.failures) == (failures, failures)


@pytest.mark.virtual_time
async def test_a_try_that_had_all_its_time_is_evidence_however_short_that_is(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(0.01, 0.01))
    operation = up.operation(idempotent=True)(hanging)

    await ended(operation())

    assert up.snapshot().breaker.failures == 1


@pytest.mark.virtual_time
async def test_an_error_is_evidence_even_under_a_near_deadline(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        await asyncio.sleep(0.001)
        raise Boom

    with Deadline.after(0.005):
        await ended(ask())

    assert up.snapshot().breaker.failures == 1


@pytest.mark.virtual_time
async def test_a_cut_is_no_evidence_when_the_function_makes_an_error_of_it(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            raise ConnectionError("closed under us") from None

    with Deadline.after(0.005):
        short = await ended(ask())
    short_calls = up.snapshot().breaker.calls
    with Deadline.after(1.0):
        long = await ended(ask())

    assert (type(short), type(long)) == (Failed, Failed)
    assert short_calls == 0
    assert up.snapshot().breaker.failures == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["in its task", "in tasks of its own"])
async def test_a_hang_further_in_is_seen_by_the_circuit_there(gate: Gateway, how: str) -> None:
    inner = gate.upstream("inner", policy=Policy(retry=ONE_TRY, breaker=NEVER_OPENS))
    outer = gate.upstream("outer", policy=Policy(retry=ONE_TRY, breaker=NEVER_OPENS))
    inside = inner.operation(name="inside", idempotent=True)(hanging)

    @outer.operation(idempotent=True)
    async def outside() -> None:
        if how == "in its task":
            await inside()
        else:
            await asyncio.gather(inside(), inside())

    with Deadline.after(1.0):
        error = await ended(outside())

    number = 1 if how == "in its task" else 2
    assert type(error) is FailedTimeout
    assert outer.snapshot().breaker.failures == 1
    assert inner.snapshot().breaker.failures == number
    assert counted(inner) == {"asked": number, "cancelled": number, "attempts": number}


@pytest.mark.virtual_time
@pytest.mark.parametrize("seconds", [0.1, 5.0])
async def test_a_caller_who_leaves_is_no_evidence_anywhere(gate: Gateway, seconds: float) -> None:
    inner, outer = gate.upstream("inner"), gate.upstream("outer")
    inside = inner.operation(name="inside", idempotent=True)(hanging)

    @outer.operation(idempotent=True)
    async def outside() -> None:
        await inside()

    call = asyncio.ensure_future(outside())
    await asyncio.sleep(seconds)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    for up in (inner, outer):
        assert up.snapshot().breaker.calls == 0
        assert counted(up) == {"asked": 1, "cancelled": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_a_call_that_is_cut_as_soon_as_it_begins_is_no_evidence_further_in(gate: Gateway) -> None:
    inner = gate.upstream("inner", policy=QUIET)
    inside = inner.operation(name="inside", idempotent=True)(hanging)

    @gate.upstream("outer", policy=limited(5.0, 1.0)).operation(idempotent=True)
    async def outside() -> None:
        await asyncio.sleep(0.9)
        await inside()

    await ended(outside())

    assert inner.snapshot().breaker.calls == 0


@pytest.mark.virtual_time
async def test_a_caller_with_a_few_milliseconds_cannot_open_the_circuit_of_a_call_around_another(gate: Gateway) -> None:
    inner, outer = gate.upstream("inner"), gate.upstream("outer")
    inside = inner.operation(name="inside", idempotent=True)(hanging)

    @inside.fallback
    async def plan_b(error: Exception) -> None:
        raise Boom

    @outer.operation(idempotent=True)
    async def outside() -> None:
        await inside()

    for _ in range(20):
        with Deadline.after(0.005):
            assert type(await ended(outside())) is FailedTimeout

    assert outer.snapshot().breaker.state == inner.snapshot().breaker.state == "closed"
    assert outer.snapshot().breaker.failures == 0


@pytest.mark.virtual_time
async def test_nothing_is_slow_that_was_cut_early_but_a_long_hang_is(gate: Gateway) -> None:
    breaker = BreakerPolicy(min_calls=100, slow_after=0.2)
    up = gate.upstream("world", policy=limited(5.0, 1.0, breaker=breaker))
    operation = up.operation(idempotent=True)(hanging)

    with Deadline.after(0.1):
        await ended(operation())
    early = up.snapshot().breaker.slow
    await ended(operation())

    assert early == 0
    assert (up.snapshot().breaker.slow, up.snapshot().breaker.failures) == (1, 1)


@pytest.mark.virtual_time
async def test_each_operation_has_its_own_limits(gate: Gateway) -> None:
    up = gate.upstream("world", policy=limited(5.0, 1.0, retry=RetryPolicy(attempts=2, wait=wait_none())))
    quick = up.operation(name="quick", idempotent=True, timeout=TimeoutPolicy(call=0.3))(hanging)
    slow = up.operation(name="slow", idempotent=True, timeout=TimeoutPolicy(attempt=2.0))(hanging)
    began = now()

    await ended(quick())
    after_quick = now() - began
    error = await ended(slow())

    assert after_quick == pytest.approx(0.3)
    assert now() - began == pytest.approx(0.3 + 4.0)
    assert error.attempts == 2
