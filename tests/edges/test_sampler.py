"""What moves, second by second: windows, sparklines, loads, lag; and what it costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway import BulkheadPolicy, Gateway, Operation, Policy, RetryPolicy, Static, Upstream
from gateway.admin.sampler import GENERATION, LOADS, NONE, SPARK, WINDOW, Buckets, Loads, Sampler, look_of
from gateway.counts import Histogram
from gateway.testing import VirtualTimeLoop
from tests.support import QUIET, Boom, ended, gone

virtual = pytest.mark.virtual_time


@pytest.fixture
def gate() -> Gateway:
    return Gateway()


@pytest.fixture
def ratings(gate: Gateway) -> Upstream:
    return gate.upstream("ratings", policy=QUIET)


@pytest.fixture
def stars(ratings: Upstream) -> Operation[..., Any]:
    @ratings.operation(idempotent=True)
    async def stars(takes: float = 0.0, error: Exception | None = None) -> int:
        await asyncio.sleep(takes)
        if error is not None:
            raise error
        return 5

    return stars


@asynccontextmanager
async def sampling(gate: Gateway) -> AsyncIterator[Sampler]:
    sampler = Sampler(gate)
    sampler.start()
    try:
        yield sampler
    finally:
        await sampler.close()


@virtual
async def test_a_window_shows_what_happened_in_it(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    async with gate, sampling(gate) as sampler:
        for _ in range(20):
            await stars(0.1)
        await ended(stars(error=Boom()))
        await asyncio.sleep(2.05)
        window = sampler.track(ratings).window()

    assert window.counts["asked"] == 21
    assert window.counts["live"] == 20
    assert window.counts["failed"] == 1
    assert window.seconds == pytest.approx(4.0)
    assert window.rates["live"] == pytest.approx(5.0)
    assert window.latency.snapshot().count == 20
    assert window.latency.snapshot().p50 == pytest.approx(0.1, rel=0.2)


@virtual
async def test_what_is_older_than_a_window_is_no_longer_in_it(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    async with gate, sampling(gate) as sampler:
        await stars(0.5)
        await asyncio.sleep(WINDOW + 2)
        await stars(0.001)
        await asyncio.sleep(1.1)
        window = sampler.track(ratings).window()

    assert window.counts["asked"] == 1
    assert window.latency.snapshot().max < 0.01
    assert window.seconds == pytest.approx(WINDOW)


@virtual
async def test_each_operation_has_a_window_of_its_own(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    @ratings.operation(idempotent=True)
    async def titles() -> str:
        return "Alien"

    async with gate, sampling(gate) as sampler:
        await stars(0.2)
        await titles()
        await titles()
        await asyncio.sleep(1.1)
        track = sampler.track(ratings)

        assert track.window("titles").counts["asked"] == 2
        assert track.window("stars").counts["asked"] == 1
        assert track.window("stars").latency.snapshot().max == pytest.approx(0.2, rel=0.2)
        assert track.window("none").counts["asked"] == 0


@virtual
async def test_an_operation_that_comes_later_begins_at_nothing(gate: Gateway, ratings: Upstream) -> None:
    async with gate, sampling(gate) as sampler:
        await asyncio.sleep(3.05)

        @ratings.operation(idempotent=True)
        async def late() -> int:
            return 1

        await late()
        await asyncio.sleep(1.0)

        assert sampler.track(ratings).window("late").counts["live"] == 1


@virtual
async def test_a_sparkline_tells_answers_of_tiers_and_none_apart(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    @ratings.operation(idempotent=True, fallback=[Static(0)])
    async def shaky() -> int:
        raise Boom

    async with gate, sampling(gate) as sampler:
        await asyncio.sleep(1.05)
        await stars()
        await shaky()
        await ended(stars(error=Boom()))
        await ended(stars(error=Boom()))
        await asyncio.sleep(1.0)
        track = sampler.track(ratings)

    assert len(track.asked) == len(track.degraded) == len(track.failed) == SPARK
    assert list(track.asked)[-3:] == pytest.approx([0.0, 0.0, 4.0])
    assert list(track.degraded)[-3:] == pytest.approx([0.0, 0.0, 1.0])
    assert list(track.failed)[-3:] == pytest.approx([0.0, 0.0, 2.0])


@virtual
async def test_memory_is_bounded_however_long_it_looks(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    async with gate, sampling(gate) as sampler:
        await stars()
        await asyncio.sleep(3 * GENERATION)
        track = sampler.track(ratings)

    assert len(track.looks) == WINDOW + 1
    assert len(track.asked) == len(track.degraded) == len(track.failed) == SPARK
    assert len(track.arrivals) == 2 * GENERATION
    assert len(track.spans) == 2
    assert len(track.peaks) == WINDOW
    assert len(sampler.lags) == SPARK
    assert len({id(look.operations["stars"].latency) for look in track.looks}) == 1  # one that rests is kept once


@virtual
async def test_advice_forgets_what_is_two_generations_old(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    async with gate, sampling(gate) as sampler:
        call = asyncio.create_task(stars(30.0))
        await asyncio.sleep(40.0)
        busy = sampler.track(ratings).loads.max
        await asyncio.sleep(2 * GENERATION)
        idle = sampler.track(ratings).loads.max
        await gone(call)

    assert (busy, idle) == (1, 0)


@virtual
async def test_how_many_are_in_the_pool_is_seen_five_times_a_second(gate: Gateway, ratings: Upstream) -> None:
    ratings.tune(bulkhead=BulkheadPolicy(limit=2, queue=5, max_wait=5.0))

    @ratings.operation(idempotent=True)
    async def slow() -> None:
        await asyncio.sleep(1.09)  # not a whole number of looks: no call begins or ends at the instant of one

    async with gate, sampling(gate) as sampler:
        calls = [asyncio.create_task(slow()) for _ in range(3)]
        await asyncio.sleep(2.05)
        await asyncio.gather(*calls)
        track = sampler.track(ratings)

    assert dict(track.loads) == {1: 5, 2: 5}
    assert track.spans[-1].queued == 5
    assert max(track.peaks) == 2


@virtual
async def test_the_lag_is_how_late_its_own_timer_comes() -> None:
    gate = Gateway()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with gate, sampling(gate) as sampler:
        await asyncio.sleep(1.01)
        in_time = sampler.lag
        loop.advance(0.5)  # as a function would that blocks the loop
        await asyncio.sleep(0.5)
        late = sampler.lag
        await asyncio.sleep(2.0)
        later = sampler.lag

    assert in_time == (0.0, 0.0)
    assert late[0] == pytest.approx(0.31, abs=0.02)
    assert later[0] == 0.0
    assert later[1] == late[1] == late[0]


@virtual
async def test_a_loop_that_stood_still_is_not_made_up_for(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with gate, sampling(gate) as sampler:
        await asyncio.sleep(0.9)
        await stars()
        loop.advance(30.0)
        await asyncio.sleep(0.3)
        track = sampler.track(ratings)
        looks = track.loads.looks
        await asyncio.sleep(1.0)

    assert looks <= 6
    assert list(track.asked)[-3:] == [0.0, round(1 / 30.9, 2), 0.0]  # over the time it really took


@virtual
async def test_closing_leaves_nothing_and_may_be_done_twice(gate: Gateway) -> None:
    sampler = Sampler(gate)

    sampler.start()
    await sampler.close()
    await sampler.close()

    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("gateway: ")]


def test_percentiles_of_a_difference_are_those_of_what_came(gate: Gateway) -> None:
    histogram = Histogram()
    for _ in range(1000):
        histogram.record(1.0)
    before = Buckets.of(histogram)
    for milliseconds in range(1, 101):
        histogram.record(milliseconds / 1000)

    came = Buckets.of(histogram).since(before).snapshot()

    assert came.count == 100
    assert came.mean == pytest.approx(0.0505)
    assert 0.05 <= came.p50 <= 0.05 * 1.19
    assert 0.09 <= came.p90 <= 0.09 * 1.19
    assert 0.1 <= came.max <= 0.1 * 1.19


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_histograms_put_together_are_one_of_all_that_came(order: tuple[int, ...]) -> None:
    durations = [[0.3, 0.35, 0.3], [0.00002, 0.001], [7.0, 0.0001]]
    each, both = [Histogram(), Histogram(), Histogram()], Histogram()
    for histogram, came in zip(each, durations, strict=True):
        for seconds in came:
            histogram.record(seconds)
            both.record(seconds)

    together = Buckets.together([NONE, *[Buckets.of(each[place]) for place in order]])

    assert list(together.bars()) == list(Buckets.of(both).bars())
    assert (together.total, together.max) == (7, 7.0)
    assert together.sum == pytest.approx(sum(map(sum, durations)))


def test_nothing_came_is_no_number_but_zero() -> None:
    histogram = Histogram()
    histogram.record(0.5)
    at_rest = Buckets.of(histogram)

    assert at_rest.since(at_rest) is NONE
    assert NONE.snapshot().p99 == 0.0
    assert Buckets.of(histogram, at_rest) is at_rest


def test_loads_are_exact_where_pools_are_small_and_near_where_they_are_large() -> None:
    loads = Loads()
    for load in (0, 3, 3, 64, 1000, 10_000_000):
        loads.record(load)

    seen = dict(loads)

    assert seen[0] == 1
    assert seen[3] == 2
    assert seen[64] == 1
    assert any(1000 <= load <= 1100 for load in seen)
    assert seen[10_000_000] == 1
    assert loads.quantile(0.5) == 3
    assert loads.quantile(1.0) == 10_000_000
    assert sorted(set(LOADS)) == LOADS


@virtual
async def test_two_hundred_upstreams_cost_little(gate: Gateway) -> None:
    """A second's work for 200 x 3 operations, each with traffic: below 1 % of a core on a machine of today.

    The bound is five times that: tests run on machines that are busy.
    """
    async with gate:
        for number in range(200):
            upstream = gate.upstream(f"up{number}", policy=Policy())
            for name in "abc":

                @upstream.operation(idempotent=True, name=name)
                async def one() -> int:
                    return 1

                await one()
        sampler = Sampler(gate)
        for upstream in gate:
            sampler.track(upstream)
        best = 1.0
        for _ in range(5):
            for upstream in gate:
                for operation in upstream:
                    operation.latency.record(0.01)
            began = time.thread_time()
            for _ in range(5):
                sampler.tick(0.0)
            for upstream in gate:
                sampler.track(upstream).take(look_of(upstream, sampler.now() + 1.0, sampler.track(upstream).now))
            best = min(best, time.thread_time() - began)

    assert best < 0.05


@virtual
async def test_what_memory_answers_needs_no_place_and_a_retry_does(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=RetryPolicy(attempts=2, wait=lambda _: 0.0)))
    failures = iter([True, False])

    @up.operation(idempotent=True, fresh_for=60.0)
    async def remembered() -> int:
        return 1

    @up.operation(idempotent=True)
    async def shaky() -> int:
        if next(failures):
            raise Boom
        return 1

    async with gate, sampling(gate) as sampler:
        for _ in range(10):
            await remembered()
        await shaky()
        await asyncio.sleep(1.05)
        track = sampler.track(up)

    assert track.asked[-1] == pytest.approx(11.0)
    assert track.arrivals[-1] == pytest.approx(3.0)


@virtual
async def test_the_pauses_between_many_upstreams_are_no_lag(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.slices.PAUSE", 0.5)
    for number in range(10):
        gate.upstream(f"upstream {number}")

    async with gate, sampling(gate) as sampler:
        await asyncio.sleep(5.0)

        assert sampler.seconds >= 3
        assert sampler.lag == (pytest.approx(0.0), pytest.approx(0.0))


@virtual
async def test_upstreams_that_are_well_are_looked_at_in_turn(gate: Gateway) -> None:
    for number in range(6):
        gate.upstream(f"up-{number}", policy=QUIET)
    looked_at: list[tuple[int, str]] = []

    async with gate, sampling(gate) as sampler:
        sampler.stride = 3
        sampler.of_each.append(lambda upstream: looked_at.append((sampler.seconds, upstream.name)))
        gate["up-4"].isolate()
        await asyncio.sleep(6.05)

    by_name = {name: [second for second, one in looked_at if one == name] for _, name in looked_at}
    assert by_name["up-4"] == [0, 1, 2, 3, 4, 5]
    assert [len(seconds) for name, seconds in sorted(by_name.items()) if name != "up-4"] == [2] * 5
    assert {tuple(seconds) for name, seconds in by_name.items() if name != "up-4"} == {(0, 3), (1, 4), (2, 5)}


@virtual
async def test_a_longer_stride_shows_averages_and_loses_no_call(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    async with gate, sampling(gate) as sampler:
        sampler.stride = 5
        for _ in range(40):
            await stars(0.01)
            await asyncio.sleep(0.49)
        await asyncio.sleep(5.1)
        track = sampler.track(ratings)

        assert sum(track.asked) == pytest.approx(40.0)
        assert len(track.asked) == SPARK
        assert sum(track.arrivals) == pytest.approx(40.0)
        assert track.loads.looks == pytest.approx(5 * track.second)
        assert WINDOW - 0.01 <= track.window().seconds <= WINDOW + 5.1
        assert track.window().rates["asked"] == pytest.approx(2.0, rel=0.6)


@virtual
async def test_who_looks_now_and_then_catches_up_first(gate: Gateway, ratings: Upstream, stars: Any) -> None:
    other = gate.upstream("other", policy=QUIET)

    async with gate, sampling(gate) as sampler:
        sampler.stride = 5
        await asyncio.sleep(6.05)
        await stars()
        await asyncio.sleep(1.0)
        before = [sampler.track(one).second for one in (ratings, other)]
        await sampler.catch_up()
        track = sampler.track(ratings)
        window, seconds = track.window(), [sampler.track(one).second for one in (ratings, other)]
        await sampler.catch_up()

    assert min(before) < sampler.seconds
    assert seconds == [7, 7]
    assert window.counts["asked"] == 1
    assert len(track.looks) == len({look.at for look in track.looks})


@virtual
async def test_two_who_catch_up_at_once_take_each_second_once(gate: Gateway) -> None:
    for number in range(50):
        gate.upstream(f"up-{number}", policy=QUIET)

    async with gate, sampling(gate) as sampler:
        sampler.stride = 5
        await asyncio.sleep(7.1)
        await asyncio.gather(sampler.catch_up(), sampler.catch_up())
        tracks = list(sampler.tracks.values())

    assert {track.second for track in tracks} == {7}
    assert all(len(track.looks) == len({look.at for look in track.looks}) <= 4 for track in tracks)
