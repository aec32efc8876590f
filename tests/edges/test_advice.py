"""Advice, on workloads whose best settings are known: found by the law, and tried out in the engine itself."""

from __future__ import annotations

import asyncio
import json
from math import inf
from random import Random
from typing import Any

import pytest

from gateway import BreakerPolicy, BulkheadPolicy, Gateway, Policy, TimeoutPolicy, Upstream
from gateway.admin.advice import Measured, attempt, counted, poisson, pool, round_up, safe_volume, volume
from gateway.admin.sampler import NONE, Buckets, Loads
from gateway.admin.state import State
from gateway.counts import Histogram
from tests.support import NEVER_OPENS, ONE_TRY, Boom, ended

virtual = pytest.mark.virtual_time


async def workload(policy: Policy, *, rate: float, seconds: float, service: Any, seed: int = 7) -> tuple[Upstream, Any]:
    """Calls come at random, as many a second on average; the upstream, and the advice on it by its knobs."""
    gate = Gateway()
    upstream = gate.upstream("ratings", policy=policy)
    random = Random(seed)

    @upstream.operation(idempotent=True)
    async def stars(takes: float) -> None:
        await asyncio.sleep(abs(takes))
        if takes < 0:
            raise Boom

    async with gate:
        state = State(gate, plain_every=1_000_000)
        state.start()
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            while asyncio.get_running_loop().time() < until:
                group.create_task(ended(stars(service(random))))
                await asyncio.sleep(random.expovariate(rate))
        advice = {one["knob"]: one for one in json.loads(json.dumps(state.advice()))["advice"]}
        await state.close()
    return upstream, advice


def waited(upstream: Upstream) -> float:
    """The share of calls that had to wait for a place, or got none."""
    snapshot = upstream.snapshot()
    return (snapshot.waits.count + snapshot.bulkhead.rejected) / snapshot.counts.asked


def policy(limit: float, *, attempt: float = 5.0, breaker: BreakerPolicy = NEVER_OPENS) -> Policy:
    return Policy(
        retry=ONE_TRY,
        breaker=breaker,
        bulkhead=BulkheadPolicy(limit=limit, queue=inf, max_wait=10.0),
        timeout=TimeoutPolicy(call=20.0, attempt=attempt),
    )


# -- three workloads with a known optimum


def exponential(mean: float) -> Any:
    return lambda random: random.expovariate(1 / mean)


@virtual
async def test_a_pool_that_is_far_too_large_shrinks_to_what_littles_law_says() -> None:
    """100 a second, 100 ms each: 10 at once, and Poisson(10) exceeds 21 once in 1,000 instants (20.98)."""
    upstream, advice = await workload(policy(limit=200), rate=100, seconds=70, service=exponential(0.1))
    (one, now) = advice["bulkhead.limit"], upstream.policy.bulkhead.limit

    assert one["now"] == now == 200
    assert 21 <= one["suggested"] <= 27
    assert one["sure"] == "medium"
    assert "Little's law" in one["why"]
    assert 8 <= one["picture"]["concurrency"]["p50"] <= 12
    assert one["picture"]["limit"] == 200

    tried, again = await workload(
        policy(limit=one["suggested"]), rate=100, seconds=30, service=exponential(0.1), seed=8
    )
    assert waited(tried) < 0.005
    assert again["bulkhead.limit"]["suggested"] == one["suggested"]  # and then it is left alone


@virtual
async def test_a_pool_that_is_too_small_grows_to_where_hardly_anybody_waits() -> None:
    """The same calls, whatever their scatter: half take 20 ms, half 180. With 12 places for 10 many wait."""
    upstream, advice = await workload(
        policy(limit=12), rate=100, seconds=70, service=lambda random: random.choice((0.02, 0.18))
    )
    one = advice["bulkhead.limit"]

    assert waited(upstream) > 0.1
    assert 20 <= one["suggested"] <= 27
    assert "all taken" in one["why"]

    tried, again = await workload(
        policy(limit=one["suggested"]), rate=100, seconds=30, service=lambda random: random.choice((0.02, 0.18)), seed=8
    )
    assert waited(tried) < 0.005
    assert again["bulkhead.limit"]["suggested"] == one["suggested"]


@virtual
async def test_a_limit_on_time_follows_the_slow_tail_and_a_circuit_the_traffic() -> None:
    """One answer in 50 comes from a cold cache, in 400 ms; 5 s is far more than any needs."""
    upstream, advice = await workload(
        policy(limit=20, attempt=5.0, breaker=BreakerPolicy(min_calls=500)),
        rate=20,
        seconds=70,
        service=lambda random: 0.4 if random.random() < 0.02 else 0.02,
    )
    limit, circuit = advice["timeout.attempt"], advice["breaker.min_calls"]

    assert limit["now"] == 5.0
    assert 0.4 < limit["suggested"] <= 0.64  # a third over it, and the step of a bucket
    assert limit["picture"]["latency"]["p50"] < 0.025
    assert sum(number for _, number in limit["picture"]["histogram"]) == upstream.snapshot().counts.live
    assert circuit["now"] == 500
    assert 80 <= circuit["suggested"] <= 120  # half of 20 a second in 10 s
    assert "cannot open" in circuit["why"]

    tried, again = await workload(
        policy(limit=20, attempt=limit["suggested"], breaker=BreakerPolicy(min_calls=circuit["suggested"])),
        rate=20,
        seconds=30,
        service=lambda random: 0.4 if random.random() < 0.02 else 0.02,
        seed=8,
    )
    assert tried.snapshot().counts.failed == 0
    assert again["timeout.attempt"]["suggested"] == limit["suggested"]
    assert again["breaker.min_calls"]["suggested"] == circuit["suggested"]


# -- what it makes of numbers


def seen(
    *,
    rate: float = 100.0,
    takes: tuple[float, ...] = (0.1,),
    calls: int = 20_000,
    seconds: float = 600.0,
    loads: tuple[int, ...] = (10,),
    queued: float = 0.0,
    failed: int = 0,
    crowd: int = 0,
) -> Measured:
    histogram = Histogram()
    for number in range(calls):
        histogram.record(takes[number % len(takes)])
    both = Loads()
    for load in loads:
        both.record(load)
    return Measured(
        seconds=seconds,
        arrivals=(rate,) * int(seconds),
        latency=Buckets.of(histogram),
        loads=both,
        queued=queued,
        tries=calls + failed,
        failed=failed,
        crowd=crowd,
    )


def test_a_pool_that_fits_is_left_alone_and_how_sure_that_is_depends_on_what_was_seen() -> None:
    fits = pool(policy(limit=25), seen())

    assert (fits["suggested"], fits["sure"]) == (25, "high")
    assert pool(policy(limit=25), seen(calls=2000))["sure"] == "medium"
    assert pool(policy(limit=25), seen(calls=100))["sure"] == "low"
    assert pool(policy(limit=25), seen(seconds=30.0))["sure"] == "low"


def test_a_pool_without_a_limit_is_given_one() -> None:
    one = pool(policy(limit=inf), seen())

    assert (one["now"], one["suggested"]) == ("inf", 21)
    assert json.dumps(one, allow_nan=False)


def test_bursts_that_were_seen_count_more_than_the_law() -> None:
    assert pool(policy(limit=200), seen(loads=(*[10] * 100, 60)))["suggested"] == 61


def test_while_little_was_seen_a_crowd_that_once_was_there_is_not_advised_away() -> None:
    short = {"rate": 1.0, "takes": (0.003,), "loads": (0,), "crowd": 5}

    assert pool(policy(limit=20), seen(seconds=30.0, calls=100, **short))["suggested"] == 5  # type: ignore[arg-type]
    assert pool(policy(limit=20), seen(**short))["suggested"] == 1  # type: ignore[arg-type]


def test_a_pool_that_is_full_for_no_reason_that_the_law_knows_is_no_sure_case() -> None:
    one = pool(policy(limit=30), seen(queued=0.2, loads=(30,)))

    assert (one["suggested"], one["sure"]) == (30, "low")
    assert "bursts" in one["why"]


def test_a_peak_is_that_of_ten_seconds_not_of_one() -> None:
    quiet = seen()
    arrivals = (*[10.0] * 100, *[100.0] * 10, *[10.0] * 100, 500.0, *[10.0] * 20)

    peak = Measured(**{**{name: getattr(quiet, name) for name in quiet.__slots__}, "arrivals": arrivals}).peak

    assert peak == pytest.approx(100.0)


def test_a_limit_that_cuts_the_tail_is_raised_and_that_is_a_guess() -> None:
    one = attempt(policy(limit=20, attempt=0.5), seen(takes=(0.1, 0.2, 0.3, 0.47), failed=2000))

    assert one is not None
    assert (one["suggested"], one["sure"]) == (1.0, "low")
    assert "9.1% of the tries fail" in one["why"]


def test_a_limit_is_never_raised_over_that_of_the_call() -> None:
    tight = Policy(timeout=TimeoutPolicy(call=0.5, attempt=0.5), bulkhead=BulkheadPolicy(max_wait=0.1))

    one = attempt(tight, seen(takes=(0.48,)))

    assert one is not None
    assert one["suggested"] == 0.5
    assert "timeout.call" in one["why"]


def test_a_limit_that_fits_is_left_alone_and_none_is_given_where_there_is_none() -> None:
    fits = attempt(policy(limit=20, attempt=0.25), seen())
    endless = attempt(Policy(timeout=TimeoutPolicy(call=inf, attempt=inf)), seen())

    assert fits is not None
    assert endless is not None
    assert fits["suggested"] == 0.25
    assert endless["now"] == "inf"
    assert 0.13 <= endless["suggested"] <= 0.17
    assert "for ever" in endless["why"]


def test_a_circuit_that_cannot_open_looks_back_further_where_calls_are_rare() -> None:
    one = volume(Policy(breaker=BreakerPolicy(min_calls=10, window_for=10)), seen(rate=0.2, calls=120))

    assert one is not None
    assert one["knob"] == "breaker.window_for"
    assert one["suggested"] == 30
    assert one["suggested"] * 0.2 >= 2 * 3
    assert "min_calls=3" in one["why"]


def test_a_circuit_that_opens_by_chance_needs_more_calls() -> None:
    one = volume(Policy(breaker=BreakerPolicy(min_calls=5)), seen(calls=9000, failed=1000))

    assert one is not None
    assert one["suggested"] == safe_volume(0.1, 0.5) > 10
    assert "by chance" in one["why"]
    assert volume(Policy(breaker=BreakerPolicy(min_calls=inf)), seen()) is None


def test_poisson_is_poissons() -> None:
    """Quantiles at 99.9 %, from tables."""
    assert [poisson(mean) for mean in (0.01, 1.0, 5.0, 10.0, 20.0, 100.0)] == [1, 5, 13, 21, 35, 132]
    assert poisson(501) == pytest.approx(poisson(500), abs=3)
    assert poisson(0.0) == 1


def test_limits_are_round() -> None:
    assert [round_up(seconds) for seconds in (0.4387, 0.44, 1.01, 12.3, 0.000123)] == [0.44, 0.44, 1.1, 13.0, 0.00013]


def test_chance_is_that_of_the_binomial_law() -> None:
    assert safe_volume(0.0, 0.5) == 3
    assert safe_volume(0.01, 0.5) < safe_volume(0.1, 0.5) < safe_volume(0.25, 0.5) < 1000


def test_seconds_are_counted_by_their_calls() -> None:
    assert counted((0.0, 1.5, 2.0, 70.0, 1e9)) == [(0, 1), (2, 2), (70, 1), (1_000_000_000, 1)]


def test_of_nothing_nothing_is_said() -> None:
    assert Measured(
        seconds=1.0, arrivals=(), latency=NONE, loads=Loads(), queued=0.0, tries=0, failed=0
    ).peak == 0.0  # fmt: skip


@virtual
async def test_of_few_calls_nothing_is_said() -> None:
    _, advice = await workload(policy(limit=20), rate=2, seconds=5, service=lambda _: 0.01)

    assert advice == {}
