"""Circuits of their own for operations and tenants; callers told apart; a server that asks to be left alone."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from dataclasses import replace

import pytest
from tenacity import wait_fixed, wait_none

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    CircuitChanged,
    CircuitOpen,
    ConfigError,
    Failed,
    Gateway,
    KeyNeeded,
    LastGood,
    NotSent,
    Policy,
    Refused,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownName,
    Upstream,
)
from gateway.testing import assert_nothing_left
from tests.support import NEVER_OPENS, ONE_TRY, Boom, counted, ended, gone, now

QUICK = Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=2, probes=1))
TENANT: ContextVar[str] = ContextVar("tenant")


def tenant_here() -> str:
    return TENANT.get()


def failing_for(upstream: Upstream, *sick: str, **declared):
    """An operation of a tenant, that fails for some of them."""

    @upstream.operation(idempotent=True, **declared)
    async def ask(tenant: str) -> str:
        if tenant in sick:
            raise Boom
        return tenant

    return ask


async def twice(operation, *args) -> None:
    """Fail until the circuit opens."""
    for _ in range(2):
        assert isinstance(await ended(operation(*args)), Failed)


# -- circuits by key


@pytest.mark.virtual_time
async def test_by_operation_one_that_is_ill_does_not_close_the_whole_api(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    sick = failing_for(up, "ada", name="sick", circuit_by="operation")
    well = failing_for(up, name="well", circuit_by="operation")
    other = failing_for(up, name="other")

    await twice(sick, "ada")

    assert isinstance(await ended(sick("bob")), CircuitOpen)
    assert (await well("ada"), await other("ada")) == ("ada", "ada")
    assert {key: one.state for key, one in up.snapshot().circuits.items()} == {"sick": "open", "well": "closed"}
    assert up.snapshot().breaker.state == up.breaker.snapshot().state == "closed"
    assert up.circuit("sick").snapshot().state == "open"


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "by", [lambda tenant: tenant, TENANT, TENANT.get, tenant_here], ids=["arguments", "var", "get", "nothing"]
)
async def test_by_tenant_one_that_fails_does_not_close_it_for_the_others(gate: Gateway, by) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, "ada", circuit_by=by)

    TENANT.set("ada")
    await twice(ask, "ada")
    refusal = await ended(ask("ada"))
    TENANT.set("bob")

    assert await ask("bob") == "bob"
    assert isinstance(refusal, CircuitOpen)
    assert set(up.snapshot().circuits) == {"ada", "bob"}


@pytest.mark.virtual_time
async def test_calls_without_a_key_go_through_the_upstreams_own_circuit(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, "ada", circuit_by=lambda tenant: None)

    await twice(ask, "ada")

    assert up.snapshot().breaker.state == "open"
    assert up.snapshot().circuits == {}


@pytest.mark.virtual_time
@pytest.mark.parametrize("wrong", ["raises", "no hash"])
@pytest.mark.parametrize("knob", ["circuit_by", "caller"])
async def test_a_call_that_cannot_be_named_is_neither_sent_nor_counted(gate: Gateway, wrong: str, knob: str) -> None:
    def by(tenant: str) -> object:
        if wrong == "raises":
            raise Boom
        return [tenant]

    up = gate.upstream("up", policy=replace(QUICK, breaker=BreakerPolicy(min_callers=2)))
    ask = failing_for(up, **({"caller": TENANT} | {knob: by}))

    error = await ended(ask("ada"))

    assert isinstance(error, KeyNeeded)
    assert f"up.ask {knob}=" in str(error)
    assert counted(up) == {}


@pytest.mark.virtual_time
async def test_an_operator_isolates_one_key_or_all(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, circuit_by=lambda tenant: tenant)

    async def answers() -> list[bool]:
        return [await ended(ask(tenant)) == tenant for tenant in ("ada", "bob", "cy")]

    up.isolate("ada")
    one = await answers()
    up.restore("ada")
    none = await answers()
    up.isolate()
    every, new = await answers(), await ended(ask("dee"))
    up.restore()

    assert (one, none, every) == ([False, True, True], [True] * 3, [False] * 3)
    assert isinstance(new, CircuitOpen)
    assert await ask("dee") == "dee"
    assert await answers() == [True] * 3


@pytest.mark.virtual_time
async def test_a_key_that_nobody_used_is_not_restored(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    await failing_for(up, circuit_by=lambda tenant: tenant)("tenant-a")

    with pytest.raises(UnknownName, match="did you mean 'tenant-a'"):
        up.restore("tenant-b")


@pytest.mark.virtual_time
async def test_an_opening_sends_away_only_those_who_wait_for_that_circuit(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(QUICK, bulkhead=BulkheadPolicy(limit=2, queue=9, max_wait=20.0)))
    began = now()

    @up.operation(idempotent=True, circuit_by=lambda tenant: tenant or None)
    async def ask(tenant: str) -> str:
        await asyncio.sleep(1.0)
        if tenant == "ada":
            raise Boom
        return tenant

    async def end_of(tenant: str) -> tuple[str, float]:
        return type(await ended(ask(tenant))).__name__, now() - began

    endings = await asyncio.gather(*(end_of(tenant) for tenant in ("ada", "ada", "bob", "ada", "")))

    assert endings == [("Failed", 1.0), ("Failed", 1.0), ("str", 2.0), ("CircuitOpen", 1.0), ("str", 2.0)]
    assert counted(up)["rejected"] == 1


@pytest.mark.virtual_time
async def test_the_opening_of_the_upstreams_own_circuit_leaves_those_of_a_key_in_the_queue(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(QUICK, bulkhead=BulkheadPolicy(limit=2, queue=9, max_wait=20.0)))

    @up.operation(idempotent=True, circuit_by=lambda tenant: tenant or None)
    async def ask(tenant: str) -> str:
        await asyncio.sleep(1.0)
        if not tenant:
            raise Boom
        return tenant

    endings = await asyncio.gather(*(ended(ask(tenant)) for tenant in ("", "", "bob", "")))

    assert [type(ending).__name__ for ending in endings] == ["Failed", "Failed", "str", "CircuitOpen"]


@pytest.mark.virtual_time
async def test_a_change_says_of_which_circuit_it_is(gate: Gateway) -> None:
    up, heard = gate.upstream("up", policy=QUICK), []
    gate.on(CircuitChanged)(heard.append)
    keyed, plain = failing_for(up, "ada", name="keyed", circuit_by=lambda tenant: tenant), failing_for(up, "ada")

    await twice(keyed, "ada")
    await twice(plain, "ada")

    assert [(one.key, one.before, one.after) for one in heard] == [
        ("ada", "closed", "open"),
        (None, "closed", "open"),
    ]


@pytest.mark.virtual_time
async def test_tuning_reaches_the_circuits_of_keys_and_leaves_their_states(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, "ada", "bob", circuit_by=lambda tenant: tenant)
    await twice(ask, "ada")
    await ended(ask("bob"))

    up.tune(breaker=BreakerPolicy(min_calls=3, probes=1))
    await ended(ask("bob"))
    still = up.circuit("bob").snapshot().state
    await ended(ask("bob"))

    assert (up.circuit("ada").snapshot().state, still, up.circuit("bob").snapshot().state) == ("open", "closed", "open")


@pytest.mark.virtual_time
async def test_circuits_are_bounded_and_say_when_they_are_full(gate: Gateway, caplog) -> None:
    caplog.set_level(logging.WARNING, "gateway")
    up = gate.upstream("up", policy=replace(QUICK, breaker=BreakerPolicy(min_calls=2, max_circuits=10)))
    ask = failing_for(up, "sick", circuit_by=lambda tenant: tenant)
    await twice(ask, "sick")
    caplog.clear()

    for number in range(100):
        await ask(f"tenant {number}")

    circuits = up.snapshot().circuits
    assert len(circuits) == 10
    assert circuits["sick"].state == "open"
    assert "tenant 99" in circuits
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("by", ["tenant", 3, ["operation"]], ids=repr)
def test_what_splits_no_circuit_is_refused_at_registration(by: object) -> None:
    with pytest.raises(ConfigError, match="circuit_by"):
        Gateway().upstream("up").operation(name="ask", circuit_by=by)(failing_for)


@pytest.mark.parametrize("who", ["ada", 3], ids=repr)
def test_what_names_no_caller_is_refused_at_registration(who: object) -> None:
    with pytest.raises(ConfigError, match="caller"):
        Gateway().upstream("up").operation(name="ask", caller=who)(failing_for)


@pytest.mark.parametrize("knob", ["circuit_by", "caller"])
def test_an_async_function_names_nothing(knob: str) -> None:
    async def by(tenant: str) -> str:
        return tenant

    with pytest.raises(ConfigError, match=f"up.ask {knob}: .* does not fit; give a plain function"):
        Gateway().upstream("up").operation(name="ask", **{knob: by})(failing_for)


@pytest.mark.virtual_time
async def test_only_reading_a_context_variable_names_who_is_there(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, circuit_by=TENANT.set)  # a slip: it sets what it should read

    assert isinstance(await ended(ask("ada")), KeyNeeded)


@pytest.mark.virtual_time
async def test_on_another_loop_the_circuits_of_keys_begin_anew(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask = failing_for(up, "ada", circuit_by=lambda tenant: tenant)
    await twice(ask, "ada")

    await gate.close()
    await gate.open()
    up.bind(asyncio.get_running_loop(), asyncio.get_running_loop().time)

    assert isinstance(await ended(ask("ada")), Failed)


# -- callers


def attacked(gate: Gateway, **knobs) -> Upstream:
    return gate.upstream(
        "up", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=4, **({"min_callers": 2} | knobs)))
    )


@pytest.mark.virtual_time
@pytest.mark.parametrize("who", [lambda tenant: tenant, TENANT, TENANT.get], ids=["arguments", "var", "get"])
async def test_one_callers_failures_alone_open_no_circuit(gate: Gateway, who) -> None:
    up = attacked(gate)
    ask = failing_for(up, "mallory", "ada", "bob", caller=who)

    async def fails(tenant: str) -> object:
        TENANT.set(tenant)
        return await ended(ask(tenant))

    alone = [await fails("mallory") for _ in range(100)]
    with_others = [await fails(tenant) for tenant in ("ada", "bob", "ada", "bob", "ada")]

    assert {type(error) for error in alone} == {Failed}
    # Without the worst of the three, four calls of the others are enough to know the rate.
    assert [type(error) for error in with_others] == [Failed] * 4 + [CircuitOpen]


@pytest.mark.virtual_time
async def test_with_one_caller_enough_nobody_is_asked_for_a_name(gate: Gateway) -> None:
    asked: list[str] = []
    up = attacked(gate, min_callers=1)
    ask = failing_for(up, "mallory", caller=asked.append)

    for _ in range(4):
        await ended(ask("mallory"))

    assert asked == []
    assert up.snapshot().breaker.state == "open"


@pytest.mark.virtual_time
async def test_callers_are_told_apart_as_soon_as_tuning_says_so(gate: Gateway) -> None:
    up = attacked(gate, min_callers=1)
    ask = failing_for(up, "mallory", caller=lambda tenant: tenant)

    up.tune_fields({"breaker.min_callers": 2})
    for _ in range(50):
        await ended(ask("mallory"))

    assert up.snapshot().breaker.state == "closed"


def test_callers_that_nothing_names_are_refused_at_registration_and_when_tuning() -> None:
    up = Gateway().upstream("up", policy=Policy(breaker=BreakerPolicy(min_callers=2)))
    other = Gateway().upstream("other")
    failing_for(other)

    with pytest.raises(ConfigError, match=r"up\.ask caller: .*min_callers=2.*give caller="):
        failing_for(up)
    with pytest.raises(ConfigError, match=r"other\.ask caller"):
        other.tune(breaker=BreakerPolicy(min_callers=2))

    assert list(up) == []
    assert other.policy.breaker.min_callers == 1


@pytest.mark.virtual_time
async def test_a_caller_and_a_key_go_together(gate: Gateway) -> None:
    up = attacked(gate)
    ask = failing_for(up, "mallory", caller=lambda tenant: tenant, circuit_by="operation")

    for _ in range(50):
        await ended(ask("mallory"))

    assert up.circuit("ask").snapshot().state == "closed"
    assert up.circuit("ask").snapshot().failures == 50
    assert up.breaker.snapshot().failures == 0


@pytest.mark.virtual_time
async def test_a_refusal_and_a_cancelled_call_of_a_named_caller_are_no_failures(gate: Gateway) -> None:
    up = attacked(gate)

    @up.operation(idempotent=True, caller=lambda who: who)
    async def ask(who: str) -> None:
        if who == "no":
            raise Refused
        await asyncio.sleep(60)

    await ended(ask("no"))
    leaving = asyncio.ensure_future(ask("leaves"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])

    assert up.breaker.snapshot().calls == 0


# -- pushback


class Busy(Exception):
    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after


def busy_once(upstream: Upstream, retry_after: float, **declared):
    """An operation that is told to come back later, once; and when it was tried."""
    tried: list[float] = []

    @upstream.operation(idempotent=True, **declared)
    async def ask(number: int) -> int:
        tried.append(now())
        if len(tried) == 1:
            raise Busy(retry_after)
        return number

    return ask, tried


PATIENT = Policy(retry=RetryPolicy(attempts=2, wait=wait_fixed(0.1)), breaker=NEVER_OPENS)


@pytest.mark.virtual_time
async def test_who_was_told_to_wait_comes_back_when_he_was_told_to(gate: Gateway) -> None:
    ask, tried = busy_once(gate.upstream("up", policy=PATIENT), 3.0)

    assert await ask(1) == 1
    assert tried[1] - tried[0] == pytest.approx(3.0)


@pytest.mark.virtual_time
async def test_a_wish_to_be_left_alone_reaches_all_calls_of_the_upstream_for_its_time(gate: Gateway) -> None:
    up = gate.upstream("up", policy=PATIENT)
    ask, tried = busy_once(up, 3.0)
    other, others = busy_once(up, 0.0, name="other")

    first = asyncio.ensure_future(ask(1))
    await asyncio.sleep(1.0)
    refusal = await ended(other(2))
    await asyncio.sleep(1.99)
    too_early = await ended(other(3))
    await first
    in_time = await ended(other(4))

    assert isinstance(refusal, CircuitOpen)
    assert refusal.retry_after == pytest.approx(2.0, abs=0.01)
    assert isinstance(too_early, CircuitOpen)
    assert in_time == 4
    assert min(others) - tried[0] >= 3.0 - 0.001


@pytest.mark.virtual_time
async def test_all_who_were_told_to_wait_come_back_when_nobody_is_held_any_more(gate: Gateway) -> None:
    up, told = gate.upstream("up", policy=PATIENT), set()

    @up.operation(idempotent=True)
    async def ask(number: int) -> int:
        await asyncio.sleep(number / 1000)
        if number not in told:
            told.add(number)
            raise Busy(5.0 if number == 7 else 2.0)
        return number

    answers = await asyncio.gather(*(ended(ask(number)) for number in range(10)))

    assert answers == list(range(10))
    assert counted(up)["retries"] == 10


@pytest.mark.virtual_time
async def test_who_cannot_wait_for_as_long_as_others_were_told_is_rejected_at_his_own_time(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(PATIENT, timeout=TimeoutPolicy(call=6.0)))
    began = now()

    @up.operation(idempotent=True)
    async def ask(wish: float) -> None:
        await asyncio.sleep(0.01)
        raise Busy(wish)

    short, _ = await asyncio.gather(ended(ask(2.0)), ended(ask(9.0)))

    assert now() - began == pytest.approx(2.01, abs=0.05)
    assert "the next try was rejected: CircuitOpen('the upstream asked to be left alone')" in short.__notes__[0]


@pytest.mark.virtual_time
async def test_a_caller_who_leaves_while_others_are_waited_for_leaves_nothing(gate: Gateway) -> None:
    up = gate.upstream("up", policy=PATIENT)

    @up.operation(idempotent=True)
    async def ask(wish: float) -> None:
        await asyncio.sleep(0.01)
        raise Busy(wish)

    waiting = [asyncio.create_task(ask(wish)) for wish in (2.0, 5.0)]
    await asyncio.sleep(3.0)
    await gone(*waiting)

    assert counted(up) == {"asked": 2, "cancelled": 2, "attempts": 2}


@pytest.mark.virtual_time
async def test_those_who_are_kept_away_get_what_was_good_before(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(PATIENT, retry=ONE_TRY))
    ask, _ = busy_once(up, 3.0)
    page = up.operation(name="page", idempotent=True, fallback=[Static("default")])(steps_of_nothing)

    await ended(ask(1))
    answer = await page.ask()

    assert (answer.value, type(answer.error)) == ("default", CircuitOpen)


async def steps_of_nothing() -> str:
    return "live"


@pytest.mark.virtual_time
async def test_a_wish_for_ever_is_one_calls_and_a_long_one_is_cut(gate: Gateway) -> None:
    policy = replace(PATIENT, retry=RetryPolicy(attempts=1, max_retry_after=5.0))
    never, _ = busy_once(gate.upstream("never", policy=policy), -1)
    long, _ = busy_once(gate.upstream("long", policy=policy), 3600.0)

    await ended(never(1))
    await ended(long(1))
    held = await ended(long(2))
    await asyncio.sleep(5.0)

    assert await never(2) == 2
    assert isinstance(held, CircuitOpen)
    assert await long(3) == 3


@pytest.mark.virtual_time
async def test_a_wish_may_be_kept_to_the_call_that_was_told(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(PATIENT, retry=RetryPolicy(attempts=1, pushback_shared=False)))
    ask, _ = busy_once(up, 3.0)

    await ended(ask(1))

    assert await ask(2) == 2


@pytest.mark.virtual_time
async def test_the_wish_of_an_upstream_further_on_is_not_this_ones(gate: Gateway) -> None:
    inner, _ = busy_once(gate.upstream("inner", policy=replace(PATIENT, retry=ONE_TRY)), 3.0)
    outer = gate.upstream("outer", policy=replace(PATIENT, retry=ONE_TRY))
    ask = outer.operation(name="ask", idempotent=True)(inner.__call__)
    well = outer.operation(name="well", idempotent=True)(steps_of_nothing)

    error = await ended(ask(1))

    assert (type(error), error.retry_after) == (Failed, 3.0)
    assert await well() == "live"


@pytest.mark.virtual_time
async def test_a_refusal_that_names_a_time_holds_nobody(gate: Gateway) -> None:
    up = gate.upstream("up", policy=PATIENT)

    @up.operation(idempotent=True)
    async def ask(who: str) -> str:
        if who == "ada":
            raise Refused("your quota is used up", retry_after=60.0)
        return who

    await ended(ask("ada"))

    assert await ask("bob") == "bob"


@pytest.mark.virtual_time
async def test_a_wish_reaches_only_the_circuit_of_its_key(gate: Gateway) -> None:
    up = gate.upstream("up", policy=replace(PATIENT, retry=ONE_TRY))
    ask, _ = busy_once(up, 3.0, circuit_by=lambda number: number % 2)

    await ended(ask(1))

    assert await ask(2) == 2
    assert isinstance(await ended(ask(3)), CircuitOpen)


@pytest.mark.virtual_time
async def test_one_caller_who_is_told_to_wait_holds_nobody_else(gate: Gateway) -> None:
    policy = replace(PATIENT, retry=ONE_TRY, breaker=BreakerPolicy(min_callers=2))
    up = gate.upstream("up", policy=policy)

    @up.operation(idempotent=True, caller=lambda who: who, fallback=[LastGood()])
    async def ask(who: str) -> str:
        if who != "cy":
            raise Busy(3.0)
        return who

    for _ in range(5):
        await ended(ask("ada"))
    alone = await ended(ask("cy"))
    await ended(ask("bob"))

    assert alone == "cy"
    assert (await ask.ask("cy")).degraded


# -- waits by class


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (NotSent("429", reason="throttled"), 4.0),
        (NotSent("503", reason="unavailable"), 3.0),
        (NotSent("no connection"), 2.0),
        (ConnectionRefusedError("no"), 2.0),
        (Boom(), 1.0),
        (NotSent("429", reason="throttled", retry_after=5.0), 5.0),
        (NotSent("something else", reason="odd"), 1.0),  # type: ignore[arg-type]
    ],
    ids=repr,
)
async def test_each_class_of_trouble_has_a_wait_of_its_own(gate: Gateway, error: Exception, pause: float) -> None:
    retry = RetryPolicy(
        wait=wait_fixed(1.0),
        wait_unreachable=wait_fixed(2.0),
        wait_unavailable=wait_fixed(3.0),
        wait_throttled=wait_fixed(4.0),
    )
    tried = []

    @gate.upstream("up", policy=Policy(retry=retry)).operation(idempotent=True)
    async def ask() -> None:
        tried.append(now())
        if len(tried) == 1:
            raise error

    await ask()

    assert tried[1] - tried[0] == pytest.approx(pause)


@pytest.mark.virtual_time
@pytest.mark.parametrize("reason", ["throttled", "unavailable", "unreachable"])
async def test_a_class_without_a_wait_of_its_own_waits_as_the_rest(gate: Gateway, reason) -> None:
    retry = RetryPolicy(wait=wait_none(), wait_throttled=None)
    tried = []

    @gate.upstream("up", policy=Policy(retry=retry)).operation
    async def ask() -> None:
        tried.append(now())
        if len(tried) == 1:
            raise NotSent("no", reason=reason)

    await ask()

    assert tried[1] == tried[0]


# -- no room for one more circuit


FULL = BreakerPolicy(min_calls=2, probes=1, max_circuits=1)


def recorded(upstream: Upstream, **declared):
    """An operation that fails for ada, takes a second, and writes down whom it was asked for."""
    sent: list[str] = []

    @upstream.operation(idempotent=True, **declared)
    async def ask(tenant: str) -> str:
        sent.append(tenant)
        if tenant == "ada":
            raise Boom
        await asyncio.sleep(1.0)
        return tenant

    return ask, sent


@pytest.mark.virtual_time
@pytest.mark.parametrize("key", [None, "ada"])
async def test_isolating_reaches_a_call_in_its_pause_whatever_was_asked_since(gate: Gateway, key: str | None) -> None:
    policy = Policy(retry=RetryPolicy(attempts=2, wait=wait_fixed(1.0)), breaker=FULL)
    up = gate.upstream("up", policy=policy)
    ask, sent = recorded(up, circuit_by=lambda tenant: tenant)
    pausing = asyncio.ensure_future(ended(ask("ada")))
    await asyncio.sleep(0.1)
    others = asyncio.gather(ask("bob"), ask("cy"))
    await asyncio.sleep(0.1)

    up.isolate(key)
    error = await pausing
    await others

    assert isinstance(error, Failed)
    assert sent == ["ada", "bob", "cy"]


@pytest.mark.virtual_time
async def test_isolating_reaches_a_call_in_the_queue_whatever_was_asked_since(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(bulkhead=BulkheadPolicy(limit=1, queue=9), breaker=FULL))
    ask, sent = recorded(up, circuit_by=lambda tenant: tenant)
    calls = []
    for tenant in ("bob", "cy", "dee"):
        calls.append(asyncio.ensure_future(ended(ask(tenant))))
        await asyncio.sleep(0)

    up.isolate()
    endings = await asyncio.gather(*calls)

    assert sent == ["bob"]
    assert [type(ending) for ending in endings] == [str, CircuitOpen, CircuitOpen]


@pytest.mark.virtual_time
async def test_what_calls_in_flight_will_tell_is_not_lost(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=FULL))

    @up.operation(idempotent=True, circuit_by=lambda tenant: tenant)
    async def ask(tenant: str) -> str:
        if tenant == "ada":
            await asyncio.sleep(1.0)
            raise Boom
        return tenant

    calls = [asyncio.ensure_future(ended(ask("ada"))) for _ in range(2)]
    await asyncio.sleep(0.1)
    await ask("bob")
    await asyncio.gather(*calls)

    assert isinstance(await ended(ask("ada")), CircuitOpen)


@pytest.mark.virtual_time
@pytest.mark.parametrize("ending", ["answered", "failed", "refused", "cancelled", "rejected", "no caller"])
async def test_a_circuit_is_held_by_its_calls_until_they_end_however_they_do(gate: Gateway, ending: str) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=replace(FULL, min_callers=2)))

    def who(tenant: str) -> str:
        if ending == "no caller":
            raise LookupError
        return tenant

    @up.operation(idempotent=True, circuit_by=lambda tenant: tenant, caller=who)
    async def ask(tenant: str) -> None:
        await asyncio.sleep(1.0)
        if ending == "failed":
            raise Boom
        if ending == "refused":
            raise Refused

    if ending == "rejected":
        up.isolate("ada")
    calls = [asyncio.ensure_future(ask("ada")) for _ in range(3)]
    await asyncio.sleep(0.5)
    held = up.circuit("ada").in_use
    if ending == "cancelled":
        for call in calls:
            call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    assert held == (0 if ending in {"rejected", "no caller"} else 3)
    assert up.circuit("ada").in_use == 0


@pytest.mark.virtual_time
async def test_a_slot_holds_its_circuit_as_a_call_does(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(breaker=FULL))
    tenant: ContextVar[str] = ContextVar("tenant", default="ada")
    ask, _ = recorded(up, circuit_by=lambda tenant: tenant)

    async with up.slot(circuit_by=tenant):
        await ask("bob")
        held = list(up.snapshot().circuits)
    await ask("bob")

    assert held == ["ada"]
    assert list(up.snapshot().circuits) == ["bob"]


def test_calls_of_a_loop_that_was_closed_hold_their_circuits_no_more() -> None:
    gate = Gateway()
    up = gate.upstream("up", policy=QUICK)
    ask, _ = recorded(up, circuit_by=lambda tenant: tenant)
    loop = asyncio.new_event_loop()
    left = loop.create_task(ask("bob"))
    loop.run_until_complete(asyncio.sleep(0))
    held = up.circuit("bob").in_use
    loop.close()

    asyncio.run(ended(ask("ada")))

    assert (held, up.circuit("bob").in_use) == (1, 0)
    left.get_coro().close()
    assert up.circuit("bob").in_use == 0


@pytest.mark.virtual_time
async def test_isolating_one_key_never_isolates_the_upstream(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=replace(FULL, max_circuits=2)))
    ask = failing_for(up, "ada", "bob", circuit_by=lambda tenant: tenant)
    for tenant in ("ada", "bob"):
        await twice(ask, tenant)

    up.isolate("evil")
    others = [await ask("good"), await ask("other")]
    evil = await ended(ask("evil"))
    up.restore("evil")

    assert others == ["good", "other"]
    assert isinstance(evil, CircuitOpen)
    assert await ask("evil") == "evil"
    assert up.circuit("evil") is not up.breaker


@pytest.mark.virtual_time
async def test_more_keys_than_there_is_room_for_do_not_hide_a_dead_upstream(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(max_circuits=10)))
    ask = failing_for(up, "ada", circuit_by=TENANT)

    for _ in range(100):
        for number in range(11):
            TENANT.set(f"tenant {number}")
            await ended(ask("ada"))

    assert up.snapshot().counts.attempts == 110


@pytest.mark.virtual_time
async def test_a_week_after_an_outage_there_is_room_again(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=replace(FULL, max_circuits=3)))
    ask = failing_for(up, "a", "b", "c", "bad", circuit_by=lambda tenant: tenant)
    for tenant in "abc":
        await twice(ask, tenant)
    await asyncio.sleep(7 * 24 * 3600)

    await twice(ask, "bad")

    assert await ask("good") == "good"
    assert up.snapshot().circuits["bad"].state == "open"


# -- by hand


def test_none_is_the_key_of_the_upstreams_own_circuit() -> None:
    up = Gateway().upstream("up")

    assert up.circuit(None) is up.breaker
    assert up.snapshot().circuits == {}


@pytest.mark.virtual_time
async def test_while_all_are_isolated_one_key_can_be_let_in_and_stays_so(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=replace(FULL, max_circuits=2)))
    ask = failing_for(up, circuit_by=lambda tenant: tenant)

    up.isolate()
    up.restore("acme")
    endings = [await ended(ask(tenant)) for tenant in ("acme", "bob", "cy", "dee", "acme")]

    assert [type(ending) for ending in endings] == [str, CircuitOpen, CircuitOpen, CircuitOpen, str]


@pytest.mark.virtual_time
async def test_a_tenant_of_an_operations_name_does_not_share_its_circuit(gate: Gateway) -> None:
    up, heard = gate.upstream("up", policy=QUICK), []
    gate.on(CircuitChanged)(heard.append)
    search = failing_for(up, name="search", circuit_by="operation")
    orders = failing_for(up, "search", name="orders", circuit_by=lambda tenant: tenant)

    await twice(orders, "search")
    tenants = await ended(orders("search"))
    operations = await search("anything")
    seen = up.snapshot().circuits
    up.isolate("search")

    assert isinstance(tenants, CircuitOpen)
    assert operations == "anything"
    assert {key: one.state for key, one in seen.items()} == {"search": "closed", (str, "search"): "open"}
    assert isinstance(await ended(search("anything")), CircuitOpen)
    assert [(one.key, one.after) for one in heard] == [("search", "open"), ("search", "isolated")]
    up.restore("search")
    assert await search("anything") == "anything"


def test_a_key_that_has_no_circuit_is_shown_with_its_type_beside_a_few_that_have() -> None:
    up = Gateway().upstream("up")
    for number in range(20):
        up.circuit(number)

    with pytest.raises(UnknownName, match="there is no '7'; ") as one:
        up.restore("7")
    with pytest.raises(UnknownName) as another:
        up.restore("tenant")
    with pytest.raises(UnknownName, match="known are: none yet"):
        Gateway().upstream("up").restore("tenant")

    assert "mean '7'" not in str(one.value)
    assert str(another.value) == (
        "up circuit: there is no 'tenant'; known are: 0, 1, 10, 11, 12, 13, 14, 15, 16, 17 and 10 more"
    )


# -- callers are told apart from now on


@pytest.mark.virtual_time
async def test_one_caller_opens_no_circuit_though_his_calls_began_before_callers_were_told_apart(gate: Gateway) -> None:
    retry = RetryPolicy(attempts=2, wait=wait_fixed(0.5), budget=None)
    up = gate.upstream("up", policy=Policy(retry=retry, bulkhead=BulkheadPolicy(limit=15, queue=50, max_wait=9.0)))

    @up.operation(idempotent=True, caller=lambda who: who)
    async def ask(who: str) -> None:
        await asyncio.sleep(0.5)
        raise NotSent("no")

    before = [asyncio.ensure_future(ended(ask("mallory"))) for _ in range(30)]  # in flight, and in the queue
    await asyncio.sleep(0.1)
    up.tune_fields({"breaker.min_callers": 2})
    after = [asyncio.ensure_future(ended(ask("mallory"))) for _ in range(15)]
    await asyncio.gather(*before, *after)

    seen = up.snapshot().breaker
    assert (seen.state, seen.failures, seen.calls) == ("closed", 30, 30)


@pytest.mark.virtual_time
async def test_a_call_of_a_key_that_began_before_holds_its_circuit_to_the_end(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    ask, _ = recorded(up, circuit_by=lambda tenant: tenant, caller=lambda tenant: tenant)
    call = asyncio.ensure_future(ask("bob"))
    await asyncio.sleep(0.1)

    up.tune_fields({"breaker.min_callers": 2})
    held = up.circuit("bob").in_use
    await call

    assert (held, up.circuit("bob").in_use, up.circuit("bob").snapshot().calls) == (1, 0, 0)


@pytest.mark.virtual_time
async def test_who_was_named_while_callers_were_told_apart_stays_so(gate: Gateway) -> None:
    up = attacked(gate)
    ask, _ = recorded(up, caller=lambda tenant: tenant)
    call = asyncio.ensure_future(ask("bob"))
    await asyncio.sleep(0.1)

    up.tune_fields({"breaker.min_callers": 1})
    up.tune_fields({"breaker.min_callers": 2})
    named = next(iter(ask.calls)).breaker
    await call

    assert named.caller == "bob"
    assert named.counts


# -- the last look round


@pytest.mark.virtual_time
async def test_a_probe_of_a_keys_circuit_that_never_reports_is_left_behind(gate: Gateway) -> None:
    up = gate.upstream("up", policy=QUICK)
    await twice(failing_for(up, "ada", circuit_by=lambda tenant: tenant), "ada")
    await asyncio.sleep(5.1)
    probe = up.circuit("ada").admit()

    with pytest.raises(AssertionError, match="up: of the circuit 'ada', 1 probes that never reported"):
        assert_nothing_left(gate)
    probe.ignored()
    up.circuit("ada").in_use += 1
    with pytest.raises(AssertionError, match="up: of the circuit 'ada', 1 calls that hold it"):
        assert_nothing_left(gate)
    up.circuit("ada").in_use -= 1

    assert_nothing_left(gate)
