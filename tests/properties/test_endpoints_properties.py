"""Endpoints against simple models: the floor, the leases, the clock, the share of the load; and one of three that dies.

The last is a simulation of 300 calls a second to three endpoints, one of which refuses, hangs or answers 500 for 20 s.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import floor, inf
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.endpoint import Endpoint, Lease
from gateway.http.endpoints import Endpoints, EndpointsSnapshot
from gateway.policy import EndpointsPolicy

POLICIES = st.builds(
    EndpointsPolicy,
    failures_in_a_row=st.sampled_from([1, 2, 3, inf]),
    min_calls=st.sampled_from([1, 4, inf]),
    window_for=st.sampled_from([1, 3]),
    failure_rate=st.sampled_from([0.3, 0.5, 1.0]),
    slow_factor=st.sampled_from([None, 1.5]),
    eject_for=st.sampled_from([1.0, 3.0]),
    eject_cap=st.sampled_from([3.0, 7.0]),
    forgive_after=st.sampled_from([2.0, inf]),
    max_ejected=st.sampled_from([0.1, 0.34, 0.5, 0.67, 1.0]),
    ramp_for=st.sampled_from([0.0, 2.0]),
    max_report_age=st.sampled_from([2.0, inf]),
)
LISTS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([0.5, 1.0, 3.0])),
    min_size=1,
    max_size=6,
    unique_by=lambda pair: pair[0],
)
SOME = st.integers(0, 50)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), SOME),
        st.tuples(st.just("begin"), SOME),
        st.tuples(st.just("success"), SOME),
        st.tuples(st.just("failure"), SOME),
        st.tuples(st.just("failure"), SOME),
        st.tuples(st.just("nothing"), SOME),
        st.tuples(st.just("lose"), SOME),
        st.tuples(st.just("time"), st.sampled_from([0.0, 1e-7, 0.01, 0.5, 1.0, 3.0, 1e6, -0.001, -0.7, -5.0, -1e6])),
        st.tuples(st.just("report"), st.tuples(st.sampled_from("abcdefg"), st.booleans())),
        st.tuples(st.just("replace"), LISTS),
        st.tuples(st.just("tune"), POLICIES),
        st.tuples(st.just("storm"), st.sampled_from("abcdef")),
    ),
    max_size=60,
)


class World:
    """Endpoints under a schedule, next to what must hold of them."""

    def __init__(self, urls: list[tuple[str, float]], policy: EndpointsPolicy, seed: int = 0) -> None:
        self.now = 0.0
        self.told = {url: "healthy" for url, _ in urls}
        self.endpoints = Endpoints(urls, policy, clock=lambda: self.now, random=Random(seed), on_change=self.hear)
        self.urls = [url for url, _ in urls]
        self.leases: list[tuple[Endpoint, Lease]] = []
        self.known: set[Endpoint] = set(self.endpoints._all.values())

    def hear(self, url: str, before: str, after: str, at: float) -> None:
        assert self.told.get(url, before) == before != after
        self.told[url] = after

    def step(self, what: str, how: Any) -> None:
        endpoints = self.endpoints
        if what == "begin":
            self.begin(Random(how))
        elif what in {"success", "failure", "nothing"} and self.leases:
            _, lease = self.leases.pop(how % len(self.leases))
            lease.end(self.now, what, how / 100)
        elif what == "lose" and self.leases:
            del self.leases[how % len(self.leases)]
        elif what == "time":
            self.now += how
        elif what == "report":
            endpoints.report(*how, self.now)
        elif what == "replace":
            endpoints.replace(how)
            self.urls = [url for url, _ in how]
            self.known.update(endpoints._all.values())
            self.told = {one.url: one.state for one in endpoints.snapshot().endpoints}
        elif what == "tune":
            endpoints.policy = how
        elif what == "storm" and how in endpoints._all:
            for _ in range(4):
                endpoints._all[how].begin(self.now).end(self.now, "failure")

    def begin(self, random: Random) -> None:
        """Choose, with up to two of them tried already."""
        before = self.endpoints.snapshot()
        tried = random.sample(list(self.endpoints._all.values()), min(len(self.urls), random.choice([0, 0, 1, 2])))
        one = self.endpoints.choose(tried)
        may = {end.url for end in before.endpoints if before.panic or end.state in {"healthy", "ramping"}}
        left = may - {end.url for end in tried}
        assert (one is None) == (not left)
        if one is not None:
            assert one.url in left
            self.leases.append((one, one.begin(self.now)))

    def check(self) -> EndpointsSnapshot:
        policy, snapshot = self.endpoints.policy, self.endpoints.snapshot()
        each = snapshot.endpoints
        held = Counter(id(endpoint) for endpoint, _ in self.leases)
        out = [one for one in each if one.state in {"ejected", "down"}]
        assert [one.url for one in each] == self.urls
        assert len(out) == snapshot.out <= min(len(each) - 1, floor(policy.max_ejected * len(each) + 1e-9))
        assert all(endpoint.in_flight == held[id(endpoint)] for endpoint in self.known)
        assert snapshot.panic == all(one in out or one.held for one in each)
        assert not any(one in out and one.held for one in each)
        assert {one.url: one.state for one in each} == {url: self.told[url] for url in self.urls}
        for one in out:
            assert one.ejected_until is not None
            assert self.now < one.ejected_until
        assert all(one.ejected_until is None for one in each if one not in out)
        return snapshot


@given(LISTS, POLICIES, STEPS)
@settings(max_examples=400, deadline=None)
def test_whatever_happens_the_floor_holds_and_no_lease_is_lost(
    urls: list[tuple[str, float]], policy: EndpointsPolicy, steps: list[tuple[str, Any]]
) -> None:
    world = World(urls, policy)

    for what, how in steps:
        world.step(what, how)
        world.check()

    world.leases.clear()
    gc.collect(0)
    assert not any(endpoint.in_flight for endpoint in world.known)


@pytest.mark.parametrize("seed", range(30))
def test_long_schedules_too(seed: int) -> None:
    random = Random(seed)
    urls = [(url, random.choice([0.5, 1.0, 3.0])) for url in "abcdef"[: random.randint(1, 6)]]
    policy = EndpointsPolicy(failures_in_a_row=3, max_ejected=random.choice([0.34, 0.5, 1.0]), ramp_for=2.0)
    world = World(urls, policy, seed)

    for _ in range(600):
        what = random.choice(["begin", "begin", "success", "failure", "failure", "nothing", "lose", "time", "report"])
        how: Any = random.randrange(50)
        if what == "time":
            how = random.choice([0.01, 0.1, 1.0, 5.0, -0.5, -20.0])
        elif what == "report":
            how = (random.choice("abcdef"), random.random() < 0.7)
        if random.random() < 0.01:
            what, how = "replace", [(url, 1.0) for url in random.sample("abcdef", random.randint(1, 6))]
        world.step(what, how)
        world.check()


@given(
    st.lists(st.floats(0.0, 200.0), max_size=20),
    st.sampled_from([1.0, 5.0, 7.5]),
    st.sampled_from([8.0, 60.0]),
    st.sampled_from([10.0, 30.0, inf]),
)
@settings(max_examples=200, deadline=None)
def test_ejections_grow_by_their_number_and_shrink_with_the_time_in_rotation(
    well: list[float], eject_for: float, eject_cap: float, forgive_after: float
) -> None:
    now = 0.0
    policy = EndpointsPolicy(eject_for=eject_for, eject_cap=eject_cap, forgive_after=forgive_after, ramp_for=0.0)
    endpoints = Endpoints(["a", "b", "c"], policy, clock=lambda: now, random=Random(1))
    ill, number = endpoints._all["a"], 0

    for well_for in well:
        back = now
        now += well_for
        for _ in range(5):
            ill.begin(now).end(now, "failure")
        number = max(0, number - floor((now - back) / forgive_after)) + 1
        seen = endpoints.snapshot().endpoints[0]
        assert seen.ejections == number
        assert seen.ejected_until == now + min(eject_cap, eject_for * number)
        now = seen.ejected_until
        assert endpoints.snapshot().endpoints[0].state == "healthy"


@given(STEPS, st.floats(-1e5, -1.5))
@settings(max_examples=200, deadline=None)
def test_a_clock_that_goes_back_is_as_if_it_had_stood_still(steps: list[tuple[str, Any]], jump: float) -> None:
    policy = EndpointsPolicy(failures_in_a_row=2, min_calls=inf, eject_for=2.0, ramp_for=2.0, forgive_after=4.0)
    urls = [(url, 1.0) for url in "abcd"]
    plain, jumped = World(urls, policy), World(urls, policy)

    for number, (what, how) in enumerate(steps):
        if what == "tune" or (what == "time" and (how < 0 or how > 100)):
            continue
        for world in (plain, jumped):
            world.step(what, how)
        if number % 7 == 3:
            jumped.check()
            jumped.now = round(jumped.now + jump, 3)
            jumped.leases, plain.leases = [], []  # a lease that began before the jump measures nonsense
        before, after = plain.check(), jumped.check()
        assert [like(one, plain.now) for one in before.endpoints] == [like(one, jumped.now) for one in after.endpoints]


def like(one: Any, now: float) -> tuple[Any, ...]:
    """What two worlds, at different times, have in common."""
    left = None if one.ejected_until is None else round(one.ejected_until - now, 3)
    return one.url, one.state, one.held, one.failures_in_a_row, left, one.ejections, one.in_flight


# -- the share of the load


Service = Callable[[str, float, Random], tuple[float, Literal["success", "failure"]]]


@dataclass
class Call:
    """A call in the simulation: when it came, and where it went, try by try."""

    at: float
    tries: list[tuple[str, float, bool]]

    @property
    def well(self) -> bool:
        return bool(self.tries) and self.tries[-1][2]


def simulated(endpoints: Endpoints, clock: list[float], service: Service, rate: float, until: float) -> list[Call]:
    """Calls that come at random times, each tried once more elsewhere when it fails."""
    random, number = Random(5), count()
    ends: list[tuple[float, int, Lease, str, Endpoint, Call]] = []
    calls: list[Call] = []
    kept: dict[int, tuple[Endpoint, ...]] = {}

    def go(call: Call, tried: tuple[Endpoint, ...]) -> None:
        endpoint = endpoints.choose(tried)
        if endpoint is None:
            return
        lease = endpoint.begin(clock[0])
        took, verdict = service(endpoint.url, clock[0], random)
        call.tries.append((endpoint.url, clock[0], verdict == "success"))
        kept[id(call)] = (*tried, endpoint)
        heappush(ends, (clock[0] + took, next(number), lease, verdict, endpoint, call))

    comes = random.expovariate(rate)
    while comes < until or ends:
        if ends and (ends[0][0] <= comes or comes >= until):
            clock[0], _, lease, verdict, _endpoint, call = heappop(ends)
            lease.end(clock[0], verdict)  # type: ignore[arg-type]
            if verdict == "failure" and len(call.tries) < 2:
                go(call, kept[id(call)])
            continue
        clock[0] = comes
        calls.append(Call(comes, []))
        go(calls[-1], ())
        comes += random.expovariate(rate)
    assert not any(one.in_flight for one in endpoints.snapshot().endpoints)
    return calls


def steady(_url: str, _at: float, _random: Random) -> tuple[float, Literal["success"]]:
    return 0.01, "success"


def scattered(_url: str, _at: float, random: Random) -> tuple[float, Literal["success"]]:
    return 0.01 * random.lognormvariate(0.0, 1.0), "success"


@pytest.mark.parametrize("rate", [3.0, 100.0, 2000.0])
@pytest.mark.parametrize(("service", "off"), [(steady, 0.1), (scattered, 0.2)])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 3), (1, 2, 7)])
def test_load_is_shared_by_weight(service: Service, off: float, rate: float, weights: tuple[int, ...]) -> None:
    clock = [0.0]
    urls = [(url, weight) for url, weight in zip("abc", weights, strict=False)]
    endpoints = Endpoints(urls, clock=lambda: clock[0], random=Random(1))

    calls = simulated(endpoints, clock, service, rate, 9000 / rate)

    counts = Counter(call.tries[0][0] for call in calls)
    for url, weight in urls:
        fair = len(calls) * weight / sum(weights)
        light = 0.4 if weight < max(weights) else 0.0  # they are idle more often, and idle ones are chosen
        assert (1 - off - light / 4) * fair < counts[url] < (1 + off + light) * fair


@pytest.mark.parametrize("seed", range(3))
def test_at_no_time_one_of_equals_has_many_more_in_flight(seed: int) -> None:
    clock, widest = [0.0], 0
    endpoints = Endpoints([str(n) for n in range(10)], clock=lambda: clock[0], random=Random(seed))

    def watched(_url: str, _at: float, random: Random) -> tuple[float, Literal["success"]]:
        nonlocal widest
        loads = [one.in_flight for one in endpoints._all.values()]
        widest = max(widest, max(loads) - min(loads))
        return random.uniform(0.09, 0.11), "success"

    simulated(endpoints, clock, watched, 1000.0, 20.0)  # 10 in flight at each on average

    assert widest <= 12  # drawn without a choice, it is 20


# -- one of three dies


FAULTS: dict[str, float] = {"refuses": 0.0005, "hangs until a timeout": 0.3, "answers 500": 0.01}


@dataclass
class Death:
    """What the simulation shows of the death of `a` from 10 s to 30 s."""

    calls: list[Call]
    changes: list[tuple[str, str, str, float]]

    @property
    def detected(self) -> float:
        return next(at for url, _, after, at in self.changes if (url, after) == ("a", "ejected"))

    @property
    def back(self) -> float:
        """When it comes back for good."""
        return [at for url, _, after, at in self.changes if (url, after) == ("a", "ramping")][-1]

    def rate(self, url: str, since: float, seconds: float = 1.0) -> float:
        tries = (at for call in self.calls for one, at, _ in call.tries if one == url)
        return sum(since <= at < since + seconds for at in tries) / seconds

    def failed_first(self, since: float, until: float) -> tuple[int, int]:
        during = [call for call in self.calls if since <= call.at < until]
        return sum(not call.tries[0][2] for call in during), len(during)


def death(fault: str, seed: int, *, dead: str = "a", policy: EndpointsPolicy | None = None) -> Death:
    clock = [0.0]
    changes: list[tuple[str, str, str, float]] = []

    def service(url: str, at: float, random: Random) -> tuple[float, Literal["success", "failure"]]:
        if url in dead and 10.0 <= at < 30.0:
            return FAULTS[fault], "failure"
        return 0.01 * random.lognormvariate(0.0, 0.5), "success"

    endpoints = Endpoints(
        ["a", "b", "c"],
        policy,
        clock=lambda: clock[0],
        random=Random(seed),
        on_change=lambda *change: changes.append(change),
    )
    return Death(simulated(endpoints, clock, service, 300.0, 70.0), changes)


@pytest.mark.parametrize("fault", FAULTS)
def test_when_one_of_three_dies_its_load_moves_and_comes_back_slowly(fault: str) -> None:
    seen = death(fault, 1)

    failed, during = seen.failed_first(seen.detected, 30.0)
    assert all(call.well for call in seen.calls)
    assert seen.detected - 10.0 < (1.5 if fault.startswith("hangs") else 0.2)
    assert seen.failed_first(10.0, seen.detected)[0] <= 15
    assert failed <= 0.005 * during
    assert max(seen.rate(url, at) for url in "bc" for at in range(10, 30)) < 1.3 * 150
    for second in range(12):
        weight = min(1.0, (second + 1) / 10)
        assert seen.rate("a", seen.back + second) < 2 * 300 * weight / (2 + weight) + 15  # as two draws of two
    assert 75 < seen.rate("a", seen.back + 15.0, 5.0) < 125


@pytest.mark.parametrize("fault", FAULTS)
def test_when_two_of_three_die_the_third_carries_what_it_is_asked(fault: str) -> None:
    seen = death(fault, 1, dead="ab")

    failed, during = seen.failed_first(12.0, 30.0)

    assert failed < 0.1 * during
    assert sum(not call.well for call in seen.calls) < 0.05 * during


@pytest.mark.parametrize("fault", FAULTS)
def test_when_all_die_all_are_tried_and_all_come_back(fault: str) -> None:
    seen = death(fault, 1, dead="abc", policy=EndpointsPolicy(eject_for=20.0))

    assert min(seen.rate(url, 12.0, 18.0) for url in "abc") > 10
    assert all(call.well for call in seen.calls if call.at > 31.5)
    assert all(70 < seen.rate(url, 60.0, 10.0) < 130 for url in "abc")


def test_a_policy_that_forbids_all_ejections_shows_it() -> None:
    now = 0.0
    endpoints = Endpoints(["a", "b", "c"], EndpointsPolicy(max_ejected=0.1), clock=lambda: now, random=Random(1))

    for _ in range(100):
        endpoints._all["a"].begin(now).end(now, "failure")

    snapshot = endpoints.snapshot()
    assert (snapshot.out, snapshot.forbidden, snapshot.endpoints[0].held) == (0, 1, True)
