"""Which endpoint a call goes to, which ones are left alone for how long, and that the floor always holds."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from math import exp, inf, nan
from random import Random
from typing import Any

import pytest

from gateway.http.endpoint import Endpoint, EndpointSnapshot, Lease
from gateway.http.endpoints import Endpoints
from gateway.outcome import ConfigError
from gateway.policy import EndpointsPolicy
from tests.clock import Clock

AT_ONCE = EndpointsPolicy(failures_in_a_row=3, ramp_for=0.0)
"""Three failures eject, for 5, 10, 15 s; who comes back carries all at once."""


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def make(clock: Clock) -> Callable[..., Endpoints]:
    def made(urls: Iterable[Any] = "abc", policy: EndpointsPolicy = AT_ONCE, **more: Any) -> Endpoints:
        return Endpoints(list(urls), policy, clock=clock, random=Random(7), **more)

    return made


def of(endpoints: Endpoints, url: str) -> Endpoint:
    return endpoints._all[url]


def seen(endpoints: Endpoints, url: str) -> EndpointSnapshot:
    return next(one for one in endpoints.snapshot().endpoints if one.url == url)


def states(endpoints: Endpoints) -> str:
    """One letter for each: healthy, ejected, ramping, down; a capital for one that is held."""
    return "".join(one.state[0].upper() if one.held else one.state[0] for one in endpoints.snapshot().endpoints)


def fail(endpoints: Endpoints, url: str, times: int = 3, latency: float = 0.001) -> None:
    call(endpoints, url, "failure", times, latency)


def succeed(endpoints: Endpoints, url: str, times: int = 1, latency: float = 0.01) -> None:
    call(endpoints, url, "success", times, latency)


def call(endpoints: Endpoints, url: str, verdict: Any, times: int, latency: float) -> None:
    for _ in range(times):
        of(endpoints, url).begin(endpoints.clock()).end(endpoints.clock(), verdict, latency)


def chosen(endpoints: Endpoints, times: int = 3000, exclude: str = "") -> Counter[str]:
    """How often each is chosen while nothing else happens."""
    tried = [of(endpoints, url) for url in exclude]
    return Counter(one.url for _ in range(times) if (one := endpoints.choose(tried)) is not None)


# -- which one


class NoDice(Random):
    def random(self) -> float:
        raise AssertionError("there is nothing to draw")


def test_one_alone_is_chosen_without_a_draw_or_a_look_at_the_clock(clock: Clock) -> None:
    endpoints = Endpoints("http://only", clock=clock, random=NoDice())
    endpoints.clock = NoDice().random

    only = endpoints.choose()

    assert only is not None
    assert only.url == "http://only"
    assert endpoints.choose({only}) is None


def test_of_two_drawn_the_less_loaded_one_is_chosen(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab")
    kept = [of(endpoints, "a").begin(clock()) for _ in range(2)]

    assert chosen(endpoints) == {"b": 3000}
    assert len(kept) == 2


def test_of_two_drawn_the_quicker_one_is_chosen(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a", latency=0.2)
    succeed(endpoints, "b", latency=0.1)

    assert chosen(endpoints) == {"b": 3000}


def test_the_load_makes_up_for_a_latency(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a", latency=0.2)
    succeed(endpoints, "b", latency=0.1)

    kept = [of(endpoints, "b").begin(clock()) for _ in range(3)]

    assert chosen(endpoints) == {"a": 3000}
    assert len(kept) == 3


def test_what_differs_little_is_drawn(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a", latency=0.12)
    succeed(endpoints, "b", latency=0.1)

    assert 1300 < chosen(endpoints)["a"] < 1700


def test_what_draws_no_call_for_its_latency_is_tried_again_in_the_end(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a", latency=1.0)
    picks = []

    for _ in range(100):
        clock.now += 1.0
        succeed(endpoints, "b", latency=0.01)
        picks.append(chosen(endpoints, 1))

    assert {"a": 1} not in picks[:40]
    assert {"a": 1} in picks[40:60]


def test_after_hours_without_a_call_nothing_is_too_old(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a")
    clock.now += 1e6
    succeed(endpoints, "b")

    assert set(chosen(endpoints)) == {"a"}


def test_who_refuses_at_once_does_not_draw_the_load(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a", 10)
    succeed(endpoints, "b", 10)

    fail(endpoints, "b", 2, latency=0.0001)

    assert chosen(endpoints) == {"a": 3000}


def test_latencies_are_averages_over_time(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab", EndpointsPolicy(decay_for=10.0))
    for _ in range(100):
        succeed(endpoints, "a", latency=0.1)

    clock.now += 10.0
    succeed(endpoints, "a", latency=0.2)

    assert seen(endpoints, "a").latency == pytest.approx(0.1 + 0.1 * (1 - 1 / 2.718281828))
    assert seen(endpoints, "b").latency is None


def test_the_first_few_latencies_count_alike(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()

    for latency in (0.4, 0.1, 0.1):
        clock.now += 0.001
        succeed(endpoints, "a", latency=latency)

    assert seen(endpoints, "a").latency == pytest.approx(0.2)


def test_without_a_latency_a_lease_measures(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    lease = of(endpoints, "a").begin(clock())

    clock.now += 0.25
    lease.end(clock(), "success")

    assert seen(endpoints, "a").latency == pytest.approx(0.25)


def test_an_excluded_one_is_never_chosen(make: Callable[..., Endpoints]) -> None:
    endpoints = make("abcd")

    assert set(chosen(endpoints, exclude="ab")) == {"c", "d"}
    assert chosen(endpoints, exclude="abc") == {"d": 3000}
    assert endpoints.choose(list(endpoints._all.values())) is None


def test_one_that_is_out_is_not_chosen_for_want_of_others(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    fail(endpoints, "a")

    assert chosen(endpoints) == {"b": 3000}
    assert endpoints.choose([of(endpoints, "b")]) is None


def test_excluding_respects_weights(make: Callable[..., Endpoints]) -> None:
    endpoints = make([("a", 1), ("b", 1), ("c", 3)])

    assert 600 < chosen(endpoints, exclude="a")["b"] < 900


def test_weights_are_respected(make: Callable[..., Endpoints]) -> None:
    endpoints = make([("a", 1), ("b", 2), ("c", 7)])

    counts = chosen(endpoints, 10_000)

    assert [round(counts[url] / 1000) for url in "abc"] == [1, 2, 7]


def test_a_light_one_is_full_sooner(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make([("a", 1), ("b", 4)])

    kept = [of(endpoints, url).begin(clock()) for url in "abb"]

    assert chosen(endpoints, 1000)["a"] < 100  # only when both draws are the light one
    assert len(kept) == 3


# -- leases


def test_a_lease_ends_once(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    lease = of(endpoints, "a").begin(clock())

    lease.end(clock(), "failure")
    lease.end(clock(), "failure")

    assert (seen(endpoints, "a").in_flight, seen(endpoints, "a").failures) == (0, 1)


def test_a_lost_lease_gives_its_load_back_and_says_nothing(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    lease: Lease | None = of(endpoints, "a").begin(clock())
    before = seen(endpoints, "a").in_flight

    del lease
    gc.collect()

    assert (before, seen(endpoints, "a").in_flight, seen(endpoints, "a").calls) == (1, 0, 0)


def test_a_call_that_says_nothing_is_no_evidence(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    fail(endpoints, "a", 2)

    call(endpoints, "a", "nothing", 100, 9.0)
    before = seen(endpoints, "a")
    fail(endpoints, "a", 1)

    assert (before.calls, before.failures_in_a_row, before.latency) == (2, 2, None)
    assert states(endpoints) == "ehh"


# -- ejections


def test_failures_in_a_row_eject(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()

    fail(endpoints, "a", 2)
    before = states(endpoints)
    fail(endpoints, "a", 1)

    assert (before, states(endpoints)) == ("hhh", "ehh")
    assert seen(endpoints, "a").ejected_until == clock.now + 5.0
    assert set(chosen(endpoints)) == {"b", "c"}


def test_a_success_ends_a_row(make: Callable[..., Endpoints]) -> None:
    endpoints = make()

    fail(endpoints, "a", 2)
    succeed(endpoints, "a")
    fail(endpoints, "a", 2)

    assert states(endpoints) == "hhh"


@pytest.mark.parametrize(("good", "ejected"), [(10, True), (11, False)])
def test_a_rate_of_failures_ejects_once_there_are_enough_calls(
    make: Callable[..., Endpoints], good: int, ejected: bool
) -> None:
    endpoints = make(policy=EndpointsPolicy(failures_in_a_row=inf, min_calls=20, failure_rate=0.5))

    succeed(endpoints, "a", good)
    fail(endpoints, "a", 9)
    before = states(endpoints)
    fail(endpoints, "a", 1)

    assert before == "hhh"
    assert (states(endpoints) == "ehh") is ejected


def test_what_left_the_window_is_forgotten(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=EndpointsPolicy(failures_in_a_row=inf, min_calls=10, window_for=10))

    fail(endpoints, "a", 9)
    clock.now += 10.0
    fail(endpoints, "a", 9)

    assert (states(endpoints), seen(endpoints, "a").failures) == ("hhh", 9)


def test_stragglers_say_nothing_about_another_time(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    stragglers = [of(endpoints, "a").begin(clock()) for _ in range(30)]
    fail(endpoints, "a")
    until = seen(endpoints, "a").ejected_until

    for lease in stragglers[:15]:
        lease.end(clock(), "failure")
    while_out = seen(endpoints, "a")
    clock.now += 5.0
    endpoints.choose()
    for lease in stragglers[15:]:
        lease.end(clock(), "failure")

    assert (while_out.ejected_until, while_out.in_flight) == (until, 15)
    assert states(endpoints) == "hhh"
    assert seen(endpoints, "a").failures_in_a_row == 0


def test_who_comes_back_begins_anew(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")

    clock.now += 5.0
    back = states(endpoints)
    fail(endpoints, "a", 2)
    two = states(endpoints)
    fail(endpoints, "a", 1)

    assert (back, two, states(endpoints)) == ("hhh", "hhh", "ehh")


def test_what_was_known_of_its_latency_before_is_forgotten(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    succeed(endpoints, "a", latency=3.0)
    fail(endpoints, "a")

    clock.now += 5.0

    assert seen(endpoints, "a").latency is None


def test_a_rate_is_reached_to_the_letter(make: Callable[..., Endpoints]) -> None:
    endpoints = make(policy=replace(AT_ONCE, failures_in_a_row=inf, min_calls=100, failure_rate=0.07))

    succeed(endpoints, "a", 93)
    fail(endpoints, "a", 7)  # 7 % of 100, and as a float 0.07 x 100 is above 7

    assert states(endpoints) == "ehh"


def test_ejections_grow_up_to_a_cap_and_shrink_while_all_is_well(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, eject_cap=12.0, forgive_after=30.0))
    lengths = []

    for well_for in (0.0, 0.0, 0.0, 29.0, 30.0, 1e9, 0.0):
        clock.now += well_for
        fail(endpoints, "a")
        lengths.append(seen(endpoints, "a").ejected_until - clock.now)
        clock.now += lengths[-1]
        endpoints.snapshot()

    assert lengths == [5.0, 10.0, 12.0, 12.0, 12.0, 5.0, 10.0]


def test_the_count_of_ejections_shrinks_where_it_is_seen(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    for length in (5.0, 10.0, 15.0):
        fail(endpoints, "a")
        clock.now += length
        endpoints.snapshot()
    counts = []

    for _ in range(5):
        counts.append(seen(endpoints, "a").ejections)
        clock.now += 30.0

    assert counts == [3, 2, 1, 0, 0]


def test_a_slow_one_is_ejected_where_that_is_asked_for(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, slow_factor=3.0, min_calls=5))
    for url, latency in (("b", 0.1), ("c", 0.12), ("a", 0.31)):
        succeed(endpoints, url, 5, latency)
    below = states(endpoints)

    clock.now += 2.0
    succeed(endpoints, "a", 1, 1.0)

    assert (below, states(endpoints)) == ("hhh", "ehh")


def test_slower_is_what_is_slower_than_the_others(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab", policy=replace(AT_ONCE, slow_factor=3.0, min_calls=5))

    succeed(endpoints, "a", 5, 0.1)
    succeed(endpoints, "b", 5, 1.0)
    clock.now += 1.0
    succeed(endpoints, "b", 1, 1.0)

    assert states(endpoints) == "he"


@pytest.mark.parametrize(
    ("policy", "calls", "others"),
    [
        ({"slow_factor": None}, 5, 5),
        ({"slow_factor": 3.0}, 4, 5),
        ({"slow_factor": 3.0}, 5, 4),
    ],
)
def test_a_slow_one_stays_where_it_is_not_known_or_not_asked(
    make: Callable[..., Endpoints], policy: dict[str, Any], calls: int, others: int
) -> None:
    endpoints = make(policy=replace(AT_ONCE, min_calls=5, **policy))
    for url, latency, times in (("b", 0.1, others), ("c", 0.1, others), ("a", 9.0, calls)):
        succeed(endpoints, url, times, latency)

    assert states(endpoints) == "hhh"


# -- the floor


@pytest.mark.parametrize(
    ("urls", "share", "most"),
    [
        ("a", 1.0, 0),
        ("ab", 0.5, 1),
        ("ab", 1.0, 1),
        ("abc", 0.5, 1),
        ("abc", 0.67, 2),
        ("abc", 1.0, 2),
        ("abcdefghij", 0.3, 3),
        ("abcdefghij", 0.09, 0),
        ([str(n) for n in range(100)], 0.29, 29),
    ],
)
@pytest.mark.parametrize("by_checks", [False, True])
def test_never_more_than_the_share_and_never_the_last(
    make: Callable[..., Endpoints], clock: Clock, urls: Iterable[str], share: float, most: int, by_checks: bool
) -> None:
    endpoints = make(urls, replace(AT_ONCE, max_ejected=share))

    for url in urls:
        if by_checks:
            endpoints.report(url, False, clock())
        else:
            fail(endpoints, url)

    snapshot = endpoints.snapshot()
    assert snapshot.out == sum(one.state in {"ejected", "down"} for one in snapshot.endpoints) == most


def test_an_ejection_that_the_floor_forbids_is_counted_once_and_seen(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    fail(endpoints, "a")

    fail(endpoints, "b", 100)

    assert states(endpoints) == "eHh"
    assert endpoints.snapshot().forbidden == 1
    assert seen(endpoints, "b").ejections == 0


def test_a_held_one_that_is_well_again_is_held_no_more(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    fail(endpoints, "a")
    fail(endpoints, "b")

    succeed(endpoints, "b")

    assert states(endpoints) == "ehh"


def test_a_held_one_whose_rate_is_still_bad_stays_held(make: Callable[..., Endpoints]) -> None:
    endpoints = make(policy=replace(AT_ONCE, min_calls=20))
    fail(endpoints, "a")
    fail(endpoints, "b", 30)

    succeed(endpoints, "b", 30)
    half = states(endpoints)
    succeed(endpoints, "b")

    assert (half, states(endpoints)) == ("eHh", "ehh")


def test_a_held_one_goes_with_its_next_failure_once_there_is_room(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    fail(endpoints, "b")

    clock.now += 5.0
    fail(endpoints, "b", 1)

    assert states(endpoints) == "heh"


def test_a_held_one_that_checks_call_down_goes_at_once_when_there_is_room(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make()
    fail(endpoints, "a")
    endpoints.report("b", False, clock())
    before = states(endpoints)

    clock.now += 5.0

    assert (before, states(endpoints)) == ("eHh", "hdh")


def test_what_was_due_before_a_failure_is_not_laid_at_its_door(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    endpoints.report("b", False, clock())
    leases = [of(endpoints, "b").begin(clock()) for _ in range(3)]

    clock.now += 5.0
    for lease in leases:
        lease.end(clock(), "failure")

    assert (states(endpoints), seen(endpoints, "b").ejections) == ("hdh", 0)


def test_where_the_list_shrinks_those_that_would_be_back_first_come_back(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make("abcdefg")
    endpoints.report("a", False, clock())
    fail(endpoints, "b")
    clock.now += 1.0
    fail(endpoints, "c")

    endpoints.replace([*"abcd"])
    four = states(endpoints)
    endpoints.replace([*"abc"])
    three = states(endpoints)
    endpoints.replace([*"a"])

    assert (four, three, states(endpoints)) == ("dHeh", "dHH", "H")
    assert endpoints.snapshot().forbidden == 3


def test_a_lower_share_brings_back_who_is_too_many(make: Callable[..., Endpoints]) -> None:
    endpoints = make("abcd")
    fail(endpoints, "a")
    fail(endpoints, "b")

    endpoints.policy = replace(AT_ONCE, max_ejected=0.25)

    assert states(endpoints) == "Hehh"


def test_when_all_are_ill_the_load_is_shared_among_all(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    for url in "abc":
        fail(endpoints, url)

    snapshot = endpoints.snapshot()

    assert (states(endpoints), snapshot.panic, snapshot.out) == ("eHH", True, 1)
    assert min(chosen(endpoints)[url] for url in "abc") > 0


def test_in_a_panic_who_fails_does_not_draw_the_load_by_being_out(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    for url in "abc":
        succeed(endpoints, url, 20)
        fail(endpoints, url, 30, latency=0.0001)

    fail(endpoints, "a", 10, latency=0.0001)

    assert endpoints.snapshot().panic
    assert chosen(endpoints)["a"] < 1000


def test_a_success_in_a_panic_ends_an_ejection(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    for url in "abc":
        fail(endpoints, url)

    succeed(endpoints, "a")

    assert (states(endpoints), endpoints.snapshot().panic) == ("hHH", False)
    fail(endpoints, "b", 1)
    assert states(endpoints) == "heH"


def test_a_success_in_a_panic_may_come_when_the_ejection_is_over(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    for url in "abc":
        fail(endpoints, url)
    lease = of(endpoints, "a").begin(clock())

    clock.now += 5.0
    lease.end(clock(), "success")

    assert states(endpoints) == "hHH"


def test_a_success_in_a_panic_is_no_answer_to_a_check(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    for url in "abc":
        endpoints.report(url, False, clock())

    succeed(endpoints, "a")

    assert states(endpoints) == "dHH"


def test_a_panic_ends_when_one_is_well(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    for url in "abc":
        fail(endpoints, url)

    succeed(endpoints, "b")

    assert (states(endpoints), endpoints.snapshot().panic) == ("ehH", False)
    assert set(chosen(endpoints)) == {"b", "c"}


# -- the ramp


def test_who_comes_back_begins_with_a_tenth(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("abc", replace(AT_ONCE, ramp_for=10.0))
    fail(endpoints, "a")
    shares = []

    clock.now += 5.0
    for _ in range(5):
        shares.append((states(endpoints), round(chosen(endpoints, 20_000)["a"] / 20_000, 2)))
        clock.now += 2.5

    assert [state for state, _ in shares] == ["rhh"] * 4 + ["hhh"]
    for (_, share), weight in zip(shares, (0.1, 0.25, 0.5, 0.75, 1.0), strict=True):
        assert share == pytest.approx(weight / (2 + weight), abs=0.02)


def test_who_is_new_in_the_list_has_its_ramp_too(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab", replace(AT_ONCE, ramp_for=10.0))

    endpoints.replace([*"abc"])
    share = chosen(endpoints, 20_000)["c"] / 20_000
    before = states(endpoints)
    clock.now += 10.0

    assert (before, states(endpoints)) == ("hhr", "hhh")
    assert share == pytest.approx(0.1 / 2.1, abs=0.02)


def test_one_that_fails_in_its_ramp_is_ejected_again(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, ramp_for=10.0))
    fail(endpoints, "a")
    clock.now += 6.0
    endpoints.snapshot()

    fail(endpoints, "a")

    assert seen(endpoints, "a").ejected_until == clock.now + 10.0
    assert states(endpoints) == "ehh"


# -- checks


def test_one_that_checks_call_down_is_not_chosen_until_they_call_it_healthy(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make()

    endpoints.report("a", False, clock())
    down = states(endpoints), set(chosen(endpoints))
    clock.now += 3.0
    endpoints.report("a", True, clock())

    assert down == ("dhh", {"b", "c"})
    assert (states(endpoints), set(chosen(endpoints))) == ("hhh", {"a", "b", "c"})


def test_if_the_checks_end_nobody_is_down_for_ever(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, max_report_age=60.0))
    endpoints.report("a", False, clock())

    clock.now += 59.0
    before = states(endpoints)
    clock.now += 1.0

    assert (before, states(endpoints)) == ("dhh", "hhh")


def test_a_check_does_not_end_what_calls_have_said(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")

    endpoints.report("a", True, clock())
    one = states(endpoints)
    endpoints.report("a", False, clock())
    two = states(endpoints)
    endpoints.report("a", True, clock())

    assert (one, two, states(endpoints)) == ("ehh", "dhh", "ehh")


def test_an_ejection_and_a_check_may_both_be_over(make: Callable[..., Endpoints], clock: Clock) -> None:
    heard: list[tuple[Any, ...]] = []
    endpoints = make(
        policy=replace(AT_ONCE, max_report_age=2.0), on_change=lambda *change: heard.append((*change[1:3], change[3]))
    )
    fail(endpoints, "a")
    endpoints.report("a", False, clock())

    clock.now += 100.0
    endpoints.snapshot()

    assert heard == [
        ("healthy", "ejected", 1000.0),
        ("ejected", "down", 1000.0),
        ("down", "ejected", 1002.0),
        ("ejected", "healthy", 1005.0),
    ]


def test_a_check_that_outlasts_an_ejection_keeps_it_out(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    endpoints.report("a", False, clock())

    clock.now += 10.0
    before = states(endpoints)
    clock.now += 50.0

    assert (before, states(endpoints)) == ("dhh", "hhh")


def test_a_check_frees_one_that_was_held_for_it(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    endpoints.report("b", False, clock())
    fail(endpoints, "c")

    before = states(endpoints)
    endpoints.report("b", True, clock())
    endpoints.report("c", True, clock())

    assert (before, states(endpoints)) == ("eHH", "ehH")


def test_a_success_does_not_free_one_that_checks_call_down(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    endpoints.report("b", False, clock())

    succeed(endpoints, "b")

    assert (states(endpoints), endpoints.snapshot().forbidden) == ("eHh", 1)


def test_old_reports_and_those_of_others_say_nothing(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    endpoints.report("a", True, clock())

    endpoints.report("a", False, clock() - 1.0)
    endpoints.report("nobody", False, clock())

    assert states(endpoints) == "hhh"


# -- another list, other numbers


def test_those_in_both_lists_keep_all_they_have(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    lease = of(endpoints, "b").begin(clock())
    succeed(endpoints, "b", latency=0.5)
    fail(endpoints, "b", 2)
    fail(endpoints, "a")
    before = endpoints.snapshot().endpoints

    endpoints.replace(["d", ("b", 5), "a", "e"])

    kept = {one.url: one for one in endpoints.snapshot().endpoints}
    assert list(kept) == ["d", "b", "a", "e"]
    assert kept["a"] == before[0]
    assert kept["b"] == replace(before[1], weight=5.0)
    assert kept["b"].in_flight == 1
    lease.end(clock(), "failure")
    assert seen(endpoints, "b").state == "ejected"


def test_leases_of_those_that_are_gone_end_harmlessly(make: Callable[..., Endpoints], clock: Clock) -> None:
    heard: list[Any] = []
    endpoints = make(on_change=lambda *change: heard.append(change))
    gone = of(endpoints, "a")
    leases = [gone.begin(clock()) for _ in range(5)]

    endpoints.replace([*"bc"])
    leases.append(gone.begin(clock()))
    endpoints.replace([*"abc"])
    for lease in leases:
        lease.end(clock(), "failure")

    assert (gone.in_flight, heard) == (0, [])
    assert (seen(endpoints, "a").in_flight, seen(endpoints, "a").failures, states(endpoints)) == (0, 0, "hhh")


@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["a", "a"],
        [""],
        [3],
        [("a", 0)],
        [("a", -1)],
        [("a", inf)],
        [("a", nan)],
        [("a", True)],
        [("a", "1")],
    ],
)
def test_a_list_that_cannot_be_is_an_error_and_changes_nothing(make: Callable[..., Endpoints], urls: list[Any]) -> None:
    endpoints = make()
    before = endpoints.snapshot()

    with pytest.raises(ConfigError) as caught:
        endpoints.replace(urls)
    with pytest.raises(ConfigError):
        make(urls)

    assert caught.value.field == "endpoints"
    assert endpoints.snapshot() == before


def test_tuning_keeps_all_state(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a")
    fail(endpoints, "b", 2)
    before = endpoints.snapshot()

    endpoints.policy = replace(AT_ONCE, eject_for=100.0, failures_in_a_row=5)
    after = endpoints.snapshot()
    fail(endpoints, "b", 2)
    four = states(endpoints)
    clock.now += 5.0

    assert (after, four, states(endpoints)) == (before, "ehh", "hhh")


def test_a_window_of_another_size_starts_empty(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    fail(endpoints, "a", 2)

    endpoints.policy = replace(AT_ONCE, window_for=20)
    one = seen(endpoints, "a")
    endpoints.policy = replace(AT_ONCE, window_for=20, min_calls=50)

    assert (one.calls, one.failures_in_a_row) == (0, 2)


def test_what_failures_cost_is_tuned_at_once(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    succeed(endpoints, "a")
    succeed(endpoints, "b")
    fail(endpoints, "b", 2)

    endpoints.policy = replace(AT_ONCE, failure_cost=0.0)

    assert 1300 < chosen(endpoints)["a"] < 1700


def test_a_ramp_that_is_tuned_away_is_over(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab", replace(AT_ONCE, ramp_for=10.0))
    endpoints.replace([*"abc"])

    endpoints.policy = AT_ONCE

    assert states(endpoints) == "hhh"


def test_one_that_is_left_alone_can_be_well_again(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    fail(endpoints, "a")
    endpoints.replace([*"a"])
    held = states(endpoints)

    succeed(endpoints, "a")

    assert (held, states(endpoints)) == ("H", "h")


# -- the clock


def test_a_clock_that_goes_back_lengthens_nothing(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("abcd", replace(AT_ONCE, ramp_for=10.0))
    endpoints.report("b", False, clock())
    fail(endpoints, "a")
    clock.now += 3.0
    endpoints.snapshot()

    clock.now -= 900.0
    left = seen(endpoints, "a").ejected_until - clock.now
    clock.now += 2.0
    back = states(endpoints)
    clock.now += 10.0

    assert (left, back, states(endpoints)) == (2.0, "rdhh", "hdhh")
    endpoints.report("b", True, clock())
    assert states(endpoints) == "hrhh"


def test_a_clock_that_goes_back_leaves_no_failures_that_never_age(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, failures_in_a_row=inf))
    fail(endpoints, "a", 19)

    clock.now -= 900.0
    endpoints.choose()
    clock.now += 11.0
    fail(endpoints, "a", 1)

    assert (states(endpoints), seen(endpoints, "a").failures) == ("hhh", 1)


def test_that_the_clock_went_back_is_seen_by_what_calls_said_too(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=replace(AT_ONCE, failures_in_a_row=inf))
    clock.now += 900.0
    fail(endpoints, "a", 19)

    clock.now -= 890.0
    endpoints.choose()
    clock.now += 11.0

    assert seen(endpoints, "a").failures == 0


def test_after_a_clock_went_back_averages_and_forgiveness_go_on(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "b")
    clock.now += 5.0
    for _ in range(100):
        succeed(endpoints, "a", latency=0.1)
    clock.now += 25.0
    endpoints.snapshot()

    clock.now -= 900.0
    before = seen(endpoints, "b").ejections
    clock.now += 6.0
    succeed(endpoints, "a", latency=0.2)

    assert (before, seen(endpoints, "b").ejections) == (1, 0)
    assert seen(endpoints, "a").latency == pytest.approx(0.1 + 0.1 * (1 - exp(-3.1)))


def test_after_a_clock_went_back_slow_ones_are_looked_for(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make("ab", policy=replace(AT_ONCE, slow_factor=3.0, min_calls=5))
    succeed(endpoints, "a", 5, 0.1)
    succeed(endpoints, "b", 5, 0.1)

    clock.now -= 900.0
    endpoints.choose()
    clock.now += 10.0
    succeed(endpoints, "a", 5, 0.1)
    succeed(endpoints, "b", 5, 1.0)
    clock.now += 1.0
    succeed(endpoints, "b", 1, 1.0)

    assert states(endpoints) == "he"


def test_a_tick_back_forgets_nothing(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    fail(endpoints, "a", 2)

    clock.now -= 0.001
    endpoints.choose()

    assert seen(endpoints, "a").failures == 2


# -- who listens


def test_changes_are_told_as_of_the_instant_they_were_due(make: Callable[..., Endpoints], clock: Clock) -> None:
    heard: list[tuple[Any, ...]] = []
    endpoints = make(policy=replace(AT_ONCE, ramp_for=10.0), on_change=lambda *change: heard.append(change))
    fail(endpoints, "a")

    clock.now += 60.0
    endpoints.choose()

    assert heard == [
        ("a", "healthy", "ejected", 1000.0),
        ("a", "ejected", "ramping", 1005.0),
        ("a", "ramping", "healthy", 1015.0),
    ]


def test_a_listener_may_change_everything(make: Callable[..., Endpoints], clock: Clock) -> None:
    heard: list[str] = []

    def only_b(url: str, _before: str, after: str, _at: float) -> None:
        heard.append(f"{url} {after}")
        endpoints.policy = replace(AT_ONCE, max_ejected=1.0)
        endpoints.replace([*"b"])

    endpoints = make(on_change=only_b)

    fail(endpoints, "a")

    assert heard == ["a ejected"]
    assert chosen(endpoints) == {"b": 3000}


def test_a_listener_that_changes_the_list_while_one_is_chosen_is_heeded(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make(on_change=lambda *change: endpoints.replace("z") if change[1] == "ejected" else None)
    fail(endpoints, "a")
    clock.now += 5.0

    one = endpoints.choose()

    assert one is not None
    assert one.url == "z"


# -- the policy


def test_the_defaults() -> None:
    policy = EndpointsPolicy()

    assert {field.name: getattr(policy, field.name) for field in fields(policy)} == {
        "failures_in_a_row": 5,
        "window_for": 10.0,
        "min_calls": 20,
        "failure_rate": 0.5,
        "slow_factor": None,
        "eject_for": 5.0,
        "eject_cap": 60.0,
        "forgive_after": 30.0,
        "max_ejected": 0.5,
        "ramp_for": 10.0,
        "decay_for": 10.0,
        "failure_cost": 1.0,
        "max_report_age": 60.0,
        "share_keys": False,
    }


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("failures_in_a_row", [0, 1.5, -1, nan, "5", True]),
        ("window_for", [0, 0.5, 1.5, inf, None]),
        ("min_calls", [0, 1.5, nan]),
        ("failure_rate", [0, 1.1, -0.5, inf]),
        ("slow_factor", [1, 0.5, 0, nan, "2"]),
        ("eject_for", [0, -1, 1e-7, nan]),
        ("eject_cap", [0, -1]),
        ("forgive_after", [0, -1]),
        ("max_ejected", [0, 1.1, 50]),
        ("ramp_for", [-1, inf, nan]),
        ("decay_for", [0, -1]),
        ("failure_cost", [-1, inf]),
        ("max_report_age", [0, -1]),
    ],
)
def test_what_cannot_work_is_an_error_that_names_the_field(name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            EndpointsPolicy(**{name: value})

        assert caught.value.field == f"endpoints.{name}"


def test_the_cap_of_ejections_is_never_below_them() -> None:
    assert EndpointsPolicy(eject_for=90.0).eject_cap == 90.0
    assert EndpointsPolicy(eject_cap=2.0).eject_for == 2.0
    assert replace(EndpointsPolicy(eject_for=90.0), eject_for=3.0).eject_cap == 60.0
    with pytest.raises(ConfigError):
        EndpointsPolicy(eject_for=9.0, eject_cap=8.0)
