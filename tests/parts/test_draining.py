"""An endpoint that an operator drains: no new calls, nothing learned, the floor is that of the others."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.endpoints import Endpoints
from gateway.outcome import ConfigError
from gateway.policy import EndpointsPolicy
from tests.clock import Clock

AT_ONCE = EndpointsPolicy(failures_in_a_row=3, ramp_for=0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def make(clock: Clock) -> Callable[..., Endpoints]:
    def made(urls: Any = "abc", policy: EndpointsPolicy = AT_ONCE, **more: Any) -> Endpoints:
        return Endpoints(list(urls), policy, clock=clock, random=Random(7), **more)

    return made


def states(endpoints: Endpoints) -> list[str]:
    return [one.state for one in endpoints.snapshot().endpoints]


def chosen(endpoints: Endpoints, times: int = 60) -> set[str]:
    found = (endpoints.choose() for _ in range(times))
    return {one.url for one in found if one is not None}


def fail(endpoints: Endpoints, url: str, times: int = 3) -> None:
    for _ in range(times):
        endpoints[url].begin(endpoints.clock()).end(endpoints.clock(), "failure")


def test_a_drained_one_gets_no_new_calls_and_says_so(make: Callable[..., Endpoints]) -> None:
    endpoints = make()

    endpoints.drain("b")

    assert chosen(endpoints) == {"a", "c"}
    assert states(endpoints) == ["healthy", "draining", "healthy"]


def test_calls_in_flight_end_there_and_teach_nothing(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    leases = [endpoints["b"].begin(clock()) for _ in range(5)]

    endpoints.drain("b")
    in_flight = endpoints["b"].in_flight
    for lease in leases:
        lease.end(clock(), "failure")
    endpoints.restore("b")

    assert in_flight == 5
    assert endpoints["b"].in_flight == 0
    assert states(endpoints)[1] == "healthy"


def test_a_restored_one_begins_with_few_calls(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make(policy=EndpointsPolicy())
    endpoints.drain("b")

    endpoints.restore("b")

    assert states(endpoints)[1] == "ramping"
    clock.now += 10.0
    assert states(endpoints)[1] == "healthy"


def test_the_last_one_that_calls_can_go_to_is_not_drained(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    endpoints.drain("a")

    with pytest.raises(ConfigError, match="b is the last one"):
        endpoints.drain("b")

    assert chosen(endpoints) == {"b"}
    endpoints.drain("a")  # again is nothing


def test_of_one_there_is_none_to_drain(make: Callable[..., Endpoints]) -> None:
    with pytest.raises(ConfigError, match="isolate the upstream"):
        make("a").drain("a")


def test_what_is_not_in_the_list_is_a_key_error(make: Callable[..., Endpoints]) -> None:
    for act in (make().drain, make().restore):
        with pytest.raises(KeyError):
            act("z")


def test_the_floor_is_that_of_the_others(make: Callable[..., Endpoints]) -> None:
    """Of two that are left one may be out; the third is drained and does not count, nor help when all are ill."""
    endpoints = make(policy=EndpointsPolicy(failures_in_a_row=3, ramp_for=0.0, max_ejected=0.67))
    endpoints.drain("c")

    fail(endpoints, "a")
    fail(endpoints, "b")

    assert endpoints.snapshot().out == 1
    assert endpoints.snapshot().panic
    assert chosen(endpoints) == {"a", "b"}


def test_one_that_is_out_may_be_drained_and_is_out_when_it_comes_back_too_soon(
    make: Callable[..., Endpoints], clock: Clock
) -> None:
    endpoints = make()
    fail(endpoints, "a")

    endpoints.drain("a")
    drained = states(endpoints)[0]
    endpoints.restore("a")
    restored = states(endpoints)[0]
    clock.now += 5.1

    assert (drained, restored) == ("draining", "ejected")
    assert states(endpoints)[0] == "healthy"


def test_draining_puts_back_what_the_floor_needs(make: Callable[..., Endpoints]) -> None:
    endpoints = make("ab")
    fail(endpoints, "a")

    endpoints.drain("b")

    assert chosen(endpoints) == {"a"}


def test_checks_of_a_drained_one_are_heard_for_later(make: Callable[..., Endpoints], clock: Clock) -> None:
    endpoints = make()
    endpoints.drain("a")

    endpoints.report("a", healthy=False, now=clock())
    told = states(endpoints)[0]
    endpoints.restore("a")

    assert told == "draining"
    assert states(endpoints)[0] == "down"
    assert "a" not in chosen(endpoints)


def test_it_stays_drained_over_another_list_unless_no_other_is_left(make: Callable[..., Endpoints]) -> None:
    endpoints = make()
    endpoints.drain("a")

    endpoints.replace(["a", "d"])
    kept = chosen(endpoints)
    endpoints.replace(["a"])

    assert kept == {"d"}
    assert chosen(endpoints) == {"a"}
    assert states(endpoints) == ["healthy"]


def test_listeners_hear_of_it(make: Callable[..., Endpoints]) -> None:
    heard: list[tuple[str, str, str]] = []
    endpoints = make(on_change=lambda url, before, after, _: heard.append((url, before, after)))

    endpoints.drain("a")
    endpoints.restore("a")

    assert heard == [("a", "healthy", "draining"), ("a", "draining", "healthy")]


STEPS = st.lists(st.tuples(st.sampled_from("drfsco"), st.sampled_from("abcd"), st.floats(0.0, 6.0)), max_size=40)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_whatever_happens_calls_go_somewhere_and_never_where_it_is_drained(steps: list[tuple[str, str, float]]) -> None:
    clock = Clock(1000.0)
    endpoints = Endpoints(list("abcd"), AT_ONCE, clock=clock, random=Random(1))
    for step, url, seconds in steps:
        match step:
            case "d":
                try:
                    endpoints.drain(url)
                except ConfigError:
                    assert sum(state != "draining" for state in states(endpoints)) == 1
            case "r":
                endpoints.restore(url)
            case "f":
                fail(endpoints, url)
            case "s":
                endpoints[url].begin(clock()).end(clock(), "success")
            case "c":
                endpoints.report(url, healthy=seconds > 3.0, now=clock())
            case _:
                clock.now += seconds
        drained = {one.url for one in endpoints.snapshot().endpoints if one.state == "draining"}
        found = chosen(endpoints, 8)
        assert found
        assert not found & drained
        assert endpoints.snapshot().out <= max(0, (4 - len(drained)) // 2)
