"""hystrix.stream: every field that Netflix' dashboard asks for, and what a call is to it.

It was looked at in the dashboard itself (Hystrix 1.5.x, monitor.html): it drops a record that lacks one of these.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Gateway,
    LastGood,
    Policy,
    Refused,
    Static,
    TimeoutPolicy,
    Upstream,
)
from gateway.admin.hystrix import MOST, Hystrix, safe
from gateway.admin.sampler import Sampler
from tests.support import NEVER_OPENS, ONE_TRY, QUIET, Boom, ended, gone

virtual = pytest.mark.virtual_time

COMMAND = {
    *("type", "name", "group", "isCircuitBreakerOpen", "errorPercentage", "errorCount", "requestCount"),
    *("rollingCountCollapsedRequests", "rollingCountExceptionsThrown", "rollingCountFailure"),
    *("rollingCountFallbackFailure", "rollingCountFallbackRejection", "rollingCountFallbackSuccess"),
    *("rollingCountResponsesFromCache", "rollingCountSemaphoreRejected", "rollingCountShortCircuited"),
    *("rollingCountSuccess", "rollingCountThreadPoolRejected", "rollingCountTimeout"),
    *("currentConcurrentExecutionCount", "latencyExecute_mean", "latencyExecute"),
    *(
        f"propertyValue_{name}"
        for name in (
            *("circuitBreakerRequestVolumeThreshold", "circuitBreakerSleepWindowInMilliseconds"),
            *("circuitBreakerErrorThresholdPercentage", "circuitBreakerForceOpen", "circuitBreakerForceClosed"),
            *("executionIsolationStrategy", "executionIsolationThreadTimeoutInMilliseconds"),
            *("executionIsolationThreadInterruptOnTimeout", "executionIsolationSemaphoreMaxConcurrentRequests"),
            *("fallbackIsolationSemaphoreMaxConcurrentRequests", "requestCacheEnabled", "requestLogEnabled"),
            "metricsRollingStatisticalWindowInMilliseconds",
        )
    ),
}
POOL = {
    *("type", "name", "currentActiveCount", "currentCompletedTaskCount", "currentCorePoolSize"),
    *("currentLargestPoolSize", "currentMaximumPoolSize", "currentPoolSize", "currentQueueSize", "currentTaskCount"),
    *("rollingCountThreadsExecuted", "rollingMaxActiveThreads", "propertyValue_queueSizeRejectionThreshold"),
    "propertyValue_metricsRollingStatisticalWindowInMilliseconds",
}
"""What is required, and must not be null."""


@asynccontextmanager
async def told(gate: Gateway) -> AsyncIterator[Hystrix]:
    sampler = Sampler(gate)
    sampler.start()
    hystrix = Hystrix(gate, sampler)
    list(hystrix.messages())
    async with gate:
        try:
            yield hystrix
        finally:
            hystrix.leave()
            await sampler.close()
            assert not gate.listeners.call_finished


def heard(hystrix: Hystrix) -> dict[str, Any]:
    """By type and name, as an EventSource takes it apart."""
    messages = b"".join(hystrix.messages()).decode().split("\n\n")
    assert messages.pop() == ""
    assert all(message.startswith("data: ") and "\n" not in message for message in messages)
    each = [json.loads(message.removeprefix("data: ")) for message in messages]
    return {f"{one['type'].removeprefix('Hystrix')} {one['name']}": one for one in each}


def operation(upstream: Upstream, name: str = "stars", **said: Any) -> Any:
    @upstream.operation(name=name, idempotent=True, **said)
    async def one(*, takes: float = 0.0, error: Exception | None = None) -> int:
        await asyncio.sleep(takes)
        if error is not None:
            raise error
        return 5

    return one


@virtual
async def test_every_field_that_is_required_is_there_and_none_is_null() -> None:
    gate = Gateway()
    policy = Policy(bulkhead=BulkheadPolicy(limit=inf, queue=inf), breaker=BreakerPolicy(min_calls=inf, open_for=inf))
    stars = operation(gate.upstream("ratings", policy=policy))

    async with told(gate) as hystrix:
        await stars()
        await asyncio.sleep(1.1)
        messages = heard(hystrix)

    command, pool = messages["Command ratings.stars"], messages["ThreadPool ratings"]
    assert command.keys() >= COMMAND
    assert pool.keys() >= POOL
    assert set(command["latencyExecute"]) == {"0", "25", "50", "75", "90", "95", "99", "99.5", "100"}
    for message in (command, pool):
        for name, value in message.items():
            assert value is not None, name
            assert isinstance(value, bool | int | str | dict), name  # a float is no int to Java
    assert pool["currentPoolSize"] == command["propertyValue_circuitBreakerSleepWindowInMilliseconds"] == MOST
    assert command["propertyValue_executionIsolationStrategy"] == "THREAD"
    assert (command["group"], command["threadPool"]) == ("ratings", "ratings")


@virtual
async def test_what_was_never_asked_is_not_told() -> None:
    gate = Gateway()
    operation(gate.upstream("ratings"))

    async with told(gate) as hystrix:
        assert heard(hystrix) == {}


@virtual
async def test_each_way_to_end_is_what_hystrix_calls_it() -> None:
    gate = Gateway()
    policy = Policy(
        retry=ONE_TRY,
        breaker=NEVER_OPENS,
        timeout=TimeoutPolicy(call=1.0, attempt=0.2),
        bulkhead=BulkheadPolicy(limit=2, queue=0),
    )
    ratings = gate.upstream("ratings", policy=policy)
    stars = operation(ratings)
    with_tier = operation(ratings, "with tier", fallback=[Static(0)])

    async with told(gate) as hystrix:
        await stars(takes=0.1)
        await stars(takes=0.1)
        await ended(stars(error=Boom()))
        await ended(stars(error=Refused()))
        await ended(stars(takes=0.5))
        await with_tier(error=Boom())
        await with_tier(takes=0.5)
        call = asyncio.create_task(stars(takes=0.1))
        await asyncio.sleep(0)
        await gone(call)
        calls = [asyncio.create_task(stars(takes=0.1)) for _ in range(2)]
        await asyncio.sleep(0)
        await ended(stars())
        await asyncio.gather(*calls)
        await asyncio.sleep(1.1)
        messages = heard(hystrix)

    command = messages["Command ratings.stars"]
    assert command["rollingCountSuccess"] == 4
    assert command["rollingCountFailure"] == 1
    assert command["rollingCountTimeout"] == 1
    assert command["rollingCountBadRequests"] == 1
    assert command["rollingCountThreadPoolRejected"] == 1
    assert command["rollingCountShortCircuited"] == 0
    assert command["errorCount"] == 3
    assert command["requestCount"] == 7
    assert command["errorPercentage"] == 42
    assert command["rollingCountFallbackMissing"] == 3
    assert 100 <= command["latencyExecute"]["50"] <= 119
    assert command["latencyExecute_mean"] == 100
    other = messages["Command ratings.with tier"]
    assert (other["rollingCountFailure"], other["rollingCountTimeout"]) == (1, 1)
    assert other["rollingCountFallbackSuccess"] == 2
    assert other["rollingCountExceptionsThrown"] == other["rollingCountFallbackFailure"] == 0
    pool = messages["ThreadPool ratings"]
    assert 1 <= pool["rollingMaxActiveThreads"] <= 2  # as seen five times a second
    assert pool["rollingCountThreadsExecuted"] == 10
    assert pool["currentLargestPoolSize"] == 2


@virtual
async def test_circuits_are_open_as_hystrix_means_it() -> None:
    gate = Gateway()
    breaker = BreakerPolicy(min_calls=1, open_for=5.0)
    names = ("sick", "lenient", "aside", "well")
    for name in names:
        policy = Policy(retry=ONE_TRY, breaker=breaker)
        operation(gate.upstream(name, policy=policy), fallback=[LastGood(max_age=60)], key=lambda **_: 1)
    gate["lenient"].tune_fields({"breaker.enforce": False})

    async with told(gate) as hystrix:
        await gate["well"]["stars"]()
        for name in ("sick", "lenient", "aside"):
            await ended(gate[name]["stars"](error=Boom()))
        gate["aside"].isolate()
        for _ in range(3):
            await ended(gate["sick"]["stars"]())
        await asyncio.sleep(1.1)
        messages = heard(hystrix)

    def circuit(name: str) -> tuple[bool, bool, bool]:
        command = messages[f"Command {name}.stars"]
        return (
            command["isCircuitBreakerOpen"],
            command["propertyValue_circuitBreakerForceOpen"],
            command["propertyValue_circuitBreakerForceClosed"],
        )

    assert circuit("sick") == (True, False, False)
    assert circuit("lenient") == (False, False, True)
    assert circuit("aside") == (True, True, False)
    assert circuit("well") == (False, False, False)
    assert messages["Command sick.stars"]["rollingCountShortCircuited"] == 3


@virtual
async def test_an_operations_own_circuit_is_shown_as_its() -> None:
    gate = Gateway()
    up = gate.upstream("up", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1)))
    sick = operation(up, "sick", circuit_by="operation")
    well = operation(up, "well")

    async with told(gate) as hystrix:
        await ended(sick(error=Boom()))
        await well()
        await asyncio.sleep(1.1)
        messages = heard(hystrix)

    assert messages["Command up.sick"]["isCircuitBreakerOpen"] is True
    assert messages["Command up.well"]["isCircuitBreakerOpen"] is False


@virtual
async def test_what_is_old_leaves_the_window() -> None:
    gate = Gateway()
    stars = operation(gate.upstream("ratings", policy=QUIET))

    async with told(gate) as hystrix:
        await ended(stars(error=Boom()))
        await asyncio.sleep(1.1)
        young = heard(hystrix)["Command ratings.stars"]
        await asyncio.sleep(12.0)
        old = heard(hystrix)["Command ratings.stars"]

    assert (young["errorCount"], young["requestCount"]) == (1, 1)
    assert young["propertyValue_metricsRollingStatisticalWindowInMilliseconds"] == 1000
    assert (old["errorCount"], old["requestCount"], old["errorPercentage"]) == (0, 0, 0)
    assert old["propertyValue_metricsRollingStatisticalWindowInMilliseconds"] == pytest.approx(10_000, abs=1)


@virtual
async def test_a_name_means_nothing_in_html() -> None:
    gate = Gateway()
    nasty = "a\"b <img src=x onerror=alert(1)> 'c\\\n&amp; /x?{y}"
    one = operation(gate.upstream(nasty))

    async with told(gate) as hystrix:
        await one()
        messages = b"".join(hystrix.messages()).decode()

    assert safe(nasty) == "a_b _img src=x onerror=alert(1)_ _c___amp; /x?{y}"
    assert not {"<", ">", "'", "&", "\\"} & set(messages)


@virtual
async def test_who_has_no_such_dashboard_pays_nothing() -> None:
    gate = Gateway()
    sampler = Sampler(gate)
    hystrix = Hystrix(gate, sampler)

    assert not gate.listeners.call_finished
    list(hystrix.messages())
    assert gate.listeners.call_finished
    assert gate.listeners.of_plain(1) == [], "what goes plainly well it counts by the samples"
    hystrix.leave()
