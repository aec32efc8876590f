"""Tuning live: assignment of a policy, in any state, all of it or nothing."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from tenacity import wait_fixed, wait_none

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    ConfigError,
    Deadline,
    FailedTimeout,
    Gateway,
    Operation,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownName,
    Upstream,
)
from tests.support import ONE_TRY, QUIET, Boom, counted, ended, fail_until_open, gone, now, steps


@pytest.fixture
def up(gate: Gateway) -> Upstream:
    return gate.upstream("world", policy=QUIET)


@pytest.fixture
def ask(up: Upstream) -> Operation[..., Any]:
    @up.operation(idempotent=True)
    async def ask(seconds: float = 99.0) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return ask


# -- what it changes


def test_a_section_is_replaced_and_the_others_stay(up: Upstream) -> None:
    up.tune(bulkhead=BulkheadPolicy(limit=40), fallback_timeout=0.2)

    assert up.policy == replace(QUIET, bulkhead=BulkheadPolicy(limit=40), fallback_timeout=0.2)
    assert up.snapshot().bulkhead.limit == 40
    assert up.snapshot().policy is up.policy


def test_single_fields_are_merged(up: Upstream) -> None:
    up.policy = Policy(bulkhead=BulkheadPolicy(limit=5, queue=7))

    up.tune_fields({"bulkhead.limit": 40, "timeout.call": 2.0, "fallback_limit": 3})

    assert up.policy.bulkhead == BulkheadPolicy(limit=40, queue=7)
    assert (up.policy.timeout.call, up.policy.timeout.attempt) == (2.0, 2.0)
    assert up.policy.fallback_limit == 3
    assert up.policy.retry == Policy().retry


def test_what_was_not_given_goes_on_following(up: Upstream) -> None:
    up.policy = Policy()

    up.tune_fields({"timeout.call": 2.0})
    up.tune_fields({"timeout.call": 30.0})

    assert up.policy.timeout == TimeoutPolicy(call=30.0)
    assert up.policy.timeout.attempt == 10.0


def test_a_window_may_change_its_kind_and_back(up: Upstream) -> None:
    up.tune_fields({"breaker.window_calls": 50})
    count = (up.policy.breaker.window_calls, up.policy.breaker.window_for)
    up.tune_fields({"breaker.window_calls": None})

    assert count == (50, None)
    assert (up.policy.breaker.window_calls, up.policy.breaker.window_for) == (None, 10.0)


def test_no_change_is_no_change(up: Upstream) -> None:
    before = up.policy

    up.tune()
    up.tune_fields({})

    assert up.policy == before


# -- all of it or nothing


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bulkhead.limit": 40, "bulkhead.queue": -1}, "bulkhead.queue"),
        ({"bulkhead.limit": 40, "timeout.attempt": 99.0, "timeout.call": 1.0}, "timeout.attempt"),
        ({"bulkhead.limit": "many"}, "bulkhead.limit"),
        ({"retry.attempts": 0, "bulkhead.limit": 40}, "retry.attempts"),
    ],
    ids=["one of two", "together", "of the wrong kind", "in another section"],
)
def test_fields_that_cannot_work_change_nothing(up: Upstream, changes, field: str) -> None:
    before = up.policy

    with pytest.raises(ConfigError) as caught:
        up.tune_fields(changes)

    assert caught.value.field == field
    assert up.policy is before
    assert up.snapshot().bulkhead.limit == before.bulkhead.limit


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ("bulkhead.limits", "limit"),
        ("bulkheads.limit", "bulkhead.limit"),
        ("limit", None),
        ("fallback_time", "fallback_timeout"),
    ],
)
def test_an_unknown_field_is_an_error_that_guesses_what_was_meant(up: Upstream, change: str, meant: str | None) -> None:
    with pytest.raises(UnknownName) as caught:
        up.tune_fields({"bulkhead.queue": 3, change: 40})

    assert meant is None or meant in caught.value.remedy
    assert up.policy is QUIET


@pytest.mark.parametrize("change", ["bulkhead", "bulkhead.", ".limit", ""])
def test_a_whole_section_is_no_field(up: Upstream, change: str) -> None:
    with pytest.raises(ConfigError):
        up.tune_fields({change: 40})

    assert up.policy is QUIET


def test_a_section_of_another_kind_is_an_error(up: Upstream) -> None:
    with pytest.raises(ConfigError) as caught:
        up.tune(bulkhead=40)
    with pytest.raises(UnknownName, match="did you mean 'bulkhead'"):
        up.tune(bulkheads=BulkheadPolicy())
    with pytest.raises(ConfigError):
        up.policy = BulkheadPolicy()  # type: ignore[assignment]

    assert caught.value.field == "bulkhead"
    assert up.policy is QUIET


def test_limits_that_contradict_those_of_an_operation_change_nothing(up: Upstream) -> None:
    async def ask() -> None: ...

    operation = up.operation(idempotent=True, timeout=TimeoutPolicy(attempt=5.0))(ask)

    with pytest.raises(ConfigError) as caught:
        up.tune(timeout=TimeoutPolicy(call=1.0), bulkhead=BulkheadPolicy(limit=40))

    assert caught.value.field == "timeout.attempt"
    assert up.policy is QUIET
    assert up.snapshot().bulkhead.limit == 20
    assert operation.timeout.attempt == 5.0


# -- live


@pytest.mark.virtual_time
async def test_more_places_wake_who_waits_at_once(up: Upstream, ask) -> None:
    up.tune(bulkhead=BulkheadPolicy(limit=1, queue=10))
    calls = [asyncio.ensure_future(ask(0.5)) for _ in range(6)]
    await steps(2)
    began = now()

    up.tune(bulkhead=BulkheadPolicy(limit=4, queue=10))
    in_use = up.snapshot().bulkhead.in_use
    await asyncio.gather(*calls)

    assert in_use == 4
    assert now() - began == pytest.approx(1.0)


@pytest.mark.virtual_time
async def test_fewer_places_interrupt_nobody(up: Upstream, ask) -> None:
    calls = [asyncio.ensure_future(ask(0.5)) for _ in range(10)]
    await steps(2)

    up.tune(bulkhead=BulkheadPolicy(limit=2, queue=10))
    over = up.snapshot().bulkhead.in_use
    late = asyncio.ensure_future(ask(0.5))
    await steps(2)
    waiting = up.snapshot().bulkhead.waiting

    assert await asyncio.gather(*calls, late) == [0.5] * 11
    assert (over, waiting) == (10, 1)


@pytest.mark.virtual_time
async def test_places_lowered_and_raised_again_are_never_given_twice(up: Upstream, ask) -> None:  # anyio 1223
    calls = [asyncio.ensure_future(ask(0.5)) for _ in range(4)]
    await steps(2)

    for limit in (1, 6, 2, 5, 1, 6):
        up.tune(bulkhead=BulkheadPolicy(limit=limit, queue=50, max_wait=5.0))
    calls += [asyncio.ensure_future(ask(0.5)) for _ in range(10)]
    await steps(2)
    in_use = up.snapshot().bulkhead.in_use
    await asyncio.gather(*calls)

    assert in_use == 6
    assert up.snapshot().bulkhead.peak == 6


@pytest.mark.virtual_time
async def test_a_shorter_limit_holds_for_the_next_try_and_leaves_those_in_flight_theirs(up: Upstream, ask) -> None:
    began = now()
    before = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(1.0)

    up.tune_fields({"timeout.attempt": 0.5})
    after = await ended(ask())
    after_took = now() - began
    error = await before

    assert (type(after), after_took) == (FailedTimeout, pytest.approx(1.5))
    assert (type(error), now() - began) == (FailedTimeout, pytest.approx(10.0))


@pytest.mark.virtual_time
async def test_lanes_that_nobody_uses_any_more_are_given_up(up: Upstream, ask) -> None:
    for attempt in range(1, 100):
        up.tune_fields({"timeout.attempt": attempt / 10})
        await ask(0.0)

    assert len(up._lanes) <= 2


@pytest.mark.virtual_time
async def test_what_is_tuned_in_the_pause_holds_for_the_next_try(up: Upstream, ask) -> None:
    up.tune(retry=RetryPolicy(attempts=2, wait=wait_fixed(1.0)), timeout=TimeoutPolicy(call=20.0, attempt=1.0))
    began = now()
    call = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(1.5)

    up.tune(timeout=TimeoutPolicy(call=20.0, attempt=3.0))
    await call

    assert now() - began == pytest.approx(1.0 + 1.0 + 3.0)


@pytest.mark.virtual_time
async def test_more_attempts_hold_for_calls_in_flight(up: Upstream, ask) -> None:
    up.tune(timeout=TimeoutPolicy(call=20.0, attempt=1.0))
    call = asyncio.ensure_future(ended(ask()))
    await asyncio.sleep(0.5)

    up.tune(retry=RetryPolicy(attempts=3, wait=wait_none()))

    assert (await call).attempts == 3


@pytest.mark.virtual_time
@pytest.mark.parametrize("state", ["closed", "open", "half_open", "isolated"])
async def test_the_state_of_the_circuit_survives_in_every_state(up: Upstream, ask, state: str) -> None:
    up.tune(breaker=BreakerPolicy(min_calls=4, open_for=5.0, probes=3, failure_rate=1.0))
    await gate_of(up).open()
    if state in {"open", "half_open"}:
        await fail_until_open(up)
    if state == "half_open":
        await asyncio.sleep(5.1)
        await ask(0.0)
    if state == "isolated":
        up.isolate()
    if state == "closed":
        up.breaker.admit().failed()
    before = up.snapshot().breaker

    up.tune(
        breaker=BreakerPolicy(min_calls=9, open_for=7.0, probes=9, failure_rate=0.7), bulkhead=BulkheadPolicy(limit=3)
    )
    after = up.snapshot().breaker

    assert before.state == after.state == state
    assert (after.calls, after.failures, after.rejected) == (before.calls, before.failures, before.rejected)
    assert after.open_until == before.open_until
    up.restore()


def gate_of(up: Upstream) -> Gateway:
    assert isinstance(up.gateway, Gateway)
    return up.gateway


@pytest.mark.virtual_time
async def test_a_window_of_another_size_starts_empty_and_the_rest_survives(up: Upstream, ask) -> None:
    await gate_of(up).open()
    await ask(0.0)
    up.breaker.admit().failed()
    before = up.snapshot()

    up.tune_fields({"breaker.window_for": 20.0})
    after = up.snapshot()

    assert (before.breaker.calls, after.breaker.calls) == (2, 0)
    assert after.counts == before.counts


@pytest.mark.virtual_time
async def test_counts_waiters_and_calls_in_flight_survive(up: Upstream, ask) -> None:
    up.tune(bulkhead=BulkheadPolicy(limit=1, queue=5))
    await ask(0.0)
    calls = [asyncio.ensure_future(ask(0.4)) for _ in range(2)]
    await steps(2)
    before = up.snapshot()

    up.policy = replace(up.policy, retry=RetryPolicy(attempts=5), fallback_limit=1)
    after = up.snapshot()

    assert after.counts == before.counts
    assert after.bulkhead == before.bulkhead
    assert await asyncio.gather(*calls) == [0.4, 0.4]


@pytest.mark.virtual_time
async def test_enforcing_can_be_switched_off_and_on_while_it_is_open(up: Upstream, ask) -> None:
    up.tune(breaker=BreakerPolicy(min_calls=1))
    await fail_until_open(up)

    up.tune_fields({"breaker.enforce": False})
    off = await ended(ask(0.0))
    up.tune_fields({"breaker.enforce": True})
    on = await ended(ask(0.0))

    assert off == 0.0
    assert type(on).__name__ == "CircuitOpen"


@pytest.mark.virtual_time
async def test_evidence_follows_the_limits_of_the_operation(up: Upstream, ask) -> None:
    up.tune(timeout=TimeoutPolicy(call=20.0, attempt=0.2))
    own = up.operation(name="own", idempotent=True, timeout=TimeoutPolicy(attempt=8.0))(ask.__wrapped__)

    async with asyncio.timeout(5.0):
        for operation in (ask, own):
            with Deadline.after(0.15):
                await ended(operation())

    assert up.snapshot().breaker.failures == 1


@pytest.mark.virtual_time
async def test_the_limits_of_the_tiers_are_tuned_too(up: Upstream) -> None:
    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    @ask.fallback
    async def slow(error: Exception) -> str:
        await asyncio.sleep(0.3)
        return "slow"

    ask.fallback(Static("s"))

    before = await ask()
    up.tune(fallback_timeout=0.5)
    after = await ask()

    assert (before, after) == ("s", "slow")


@pytest.mark.virtual_time
async def test_a_limit_without_end_and_back(up: Upstream, ask) -> None:
    up.tune(bulkhead=BulkheadPolicy(limit=inf))
    many = [asyncio.ensure_future(ask()) for _ in range(500)]
    await steps(2)
    in_use = up.snapshot().bulkhead.in_use
    up.tune(bulkhead=BulkheadPolicy(limit=1, queue=0))
    full = await ended(ask(0.0))
    await gone(*many)

    assert in_use == 500
    assert full.reason == "queue_full"
    assert await ask(0.0) == 0.0


# -- warnings

HOPELESS = Policy(timeout=TimeoutPolicy(call=60.0, attempt=30.0), bulkhead=BulkheadPolicy(limit=2), retry=ONE_TRY)


def warned(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "gateway" and r.levelno == logging.WARNING]


def test_what_is_unwise_is_said_in_words_and_logged(gate: Gateway, caplog) -> None:
    up = gate.upstream("world", policy=HOPELESS)

    (warning,) = up.warnings
    assert "cannot open on timeouts" in warning
    assert warned(caplog) == [f"world: {warning}"]


def test_what_is_wise_says_nothing(gate: Gateway, caplog) -> None:
    up = gate.upstream("world")

    assert up.warnings == ()
    assert warned(caplog) == []


def test_warnings_follow_the_policy_and_each_is_logged_when_it_comes_up(gate: Gateway, caplog) -> None:
    up = gate.upstream("world", policy=HOPELESS)

    up.tune(fallback_limit=3)
    same = (len(up.warnings), len(warned(caplog)))
    up.tune(breaker=BreakerPolicy(window_calls=10))
    none = up.warnings
    up.tune(breaker=BreakerPolicy(window_calls=10, slow_after=40.0))
    slow = up.warnings

    assert same == (1, 1)
    assert none == ()
    assert "slow" in slow[0]
    assert len(warned(caplog)) == 2


@pytest.mark.parametrize(
    ("limit", "window_for", "attempt", "min_calls", "unwise"),
    [
        (20, 10.0, 10.0, 10, False),
        (1, 10.0, 3.0, 3, False),
        (1, 10.0, 3.0, 5, True),
        (10, 10.0, 10.0, 10, False),
        (9, 10.0, 10.0, 10, True),
    ],
)
def test_a_circuit_that_cannot_open_on_timeouts_is_unwise(gate, limit, window_for, attempt, min_calls, unwise) -> None:
    policy = Policy(
        bulkhead=BulkheadPolicy(limit=limit),
        breaker=BreakerPolicy(window_for=window_for, min_calls=min_calls),
        timeout=TimeoutPolicy(attempt=attempt),
    )

    assert bool(gate.upstream("world", policy=policy).warnings) == unwise


# -- isolating


@pytest.mark.virtual_time
async def test_isolated_it_sends_nothing_and_restored_it_is_closed_with_an_empty_window(up: Upstream, ask) -> None:
    await ask(0.0)
    in_flight = asyncio.ensure_future(ask(0.5))
    await steps(1)

    up.isolate()
    up.isolate()
    rejected = await ended(ask(0.0))
    state = up.snapshot().breaker.state
    finished = await in_flight
    up.restore()

    assert type(rejected).__name__ == "CircuitOpen"
    assert state == "isolated"
    assert finished == 0.5
    assert (up.snapshot().breaker.state, up.snapshot().breaker.calls) == ("closed", 0)
    assert await ask(0.0) == 0.0
    assert counted(up) == {"asked": 4, "live": 3, "rejected": 1, "attempts": 3}


@pytest.mark.virtual_time
async def test_isolating_wins_over_not_enforcing(up: Upstream, ask) -> None:
    up.tune_fields({"breaker.enforce": False})

    up.isolate()

    assert type(await ended(ask(0.0))).__name__ == "CircuitOpen"
    up.restore()
