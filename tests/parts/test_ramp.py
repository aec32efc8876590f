"""Not everybody at once: a circuit that has just closed ramps up, and one that was asked to leave alone is held."""

from dataclasses import replace
from math import inf, nan

import pytest

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen
from gateway.breaker import Closed
from tests.clock import Clock

RAMP = BreakerPolicy(
    window_calls=20, min_calls=4, open_for=5.0, probes=1, max_half_open=10.0, auto_half_open=True, ramp_for=10.0
)
PLAIN = replace(RAMP, ramp_for=0.0, auto_half_open=False)


@pytest.fixture
def clock():
    return Clock()


def opened(clock, policy=RAMP, **others):
    breaker = CircuitBreaker(policy, clock=clock, **others)
    for caller in range(3 + policy.min_callers):
        breaker.admit(caller).failed(0.0)
    assert state_of(breaker) == "open"
    return breaker


def ramping(clock, policy=RAMP, **others):
    """Just closed by a good probe."""
    breaker = opened(clock, policy, **others)
    clock.wait(5.001)
    breaker.admit("well").succeeded(0.0)
    assert state_of(breaker) == "closed"
    return breaker


def refusal_of(breaker):
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    return caught.value


def admitted(breaker, calls):
    """Which of so many calls in a row are let in: a string of ones and noughts."""
    return "".join("1" if is_let_in(breaker) else "0" for _ in range(calls))


def is_let_in(breaker, caller=None):
    try:
        breaker.admit(caller).ignored()
    except CircuitOpen:
        return False
    return True


def state_of(breaker):
    return breaker.snapshot().state


def is_plain(breaker):
    return type(breaker.state) is Closed


# -- the ramp


def test_at_first_every_tenth_call_is_let_in(clock):
    breaker = ramping(clock)

    assert admitted(breaker, 30) == "000000000100000000010000000001"


@pytest.mark.parametrize(("elapsed", "share"), [(0.5, 0.1), (1.0, 0.1), (2.5, 0.25), (5.0, 0.5), (7.5, 0.75)])
def test_the_share_grows_evenly_from_a_tenth_on(clock, elapsed, share):
    breaker = ramping(clock)

    clock.wait(elapsed)

    assert admitted(breaker, 1000).count("1") == pytest.approx(1000 * share, abs=1)


def test_at_the_end_everybody_is_let_in_and_the_circuit_is_as_plain_as_ever(clock):
    breaker = ramping(clock)

    clock.wait(10.0 - 1e-6)
    before = is_plain(breaker)
    clock.wait(1e-6)

    assert not before
    assert is_plain(breaker)
    assert admitted(breaker, 50) == "1" * 50


def test_who_is_not_let_in_is_told_why_and_counted(clock):
    breaker = ramping(clock)

    error = refusal_of(breaker)

    assert (str(error), error.retry_after) == ("the circuit lets in more and more", 0.0)
    seen = breaker.snapshot()
    assert (seen.state, seen.rejected, seen.open_until, seen.held_until) == ("closed", 1, None, None)


def test_what_was_rejected_in_the_ramp_still_shows_after_it(clock):
    breaker = ramping(clock)
    refusal_of(breaker)

    clock.wait(10.0)

    assert breaker.snapshot().rejected == 1


def test_verdicts_count_during_the_ramp_and_after_it_in_one_window(clock):
    breaker = ramping(clock)
    clock.wait(5.0)
    is_let_in(breaker)  # no: it is half a call
    breaker.admit().failed()
    is_let_in(breaker)
    late = breaker.admit()

    clock.wait(5.0)
    before = breaker.snapshot().failures
    late.failed()

    assert before == 1
    assert breaker.snapshot().failures == 2
    assert is_plain(breaker)


def test_failures_open_it_during_the_ramp(clock):
    breaker = ramping(clock)
    clock.wait(9.0)
    for _ in range(6):
        if is_let_in(breaker):
            breaker.leave(breaker.state.closed, clock.now, True, False)

    assert state_of(breaker) == "open"


def test_closing_again_ramps_again_from_a_tenth(clock):
    breaker = ramping(clock)
    clock.wait(20.0)
    for _ in range(4):
        breaker.admit().failed()

    clock.wait(5.001)
    breaker.admit().succeeded()

    assert admitted(breaker, 10) == "0000000001"


def test_closing_is_told_once(clock):
    heard = []
    breaker = ramping(clock, on_change=lambda *change: heard.append(change))
    clock.wait(20.0)
    breaker.admit().succeeded()

    assert [(before, after) for before, after, _ in heard] == [
        ("closed", "open"), ("open", "half_open"), ("half_open", "closed"),
    ]  # fmt: skip


def test_a_half_open_that_ends_closed_ramps_from_its_end_on(clock):
    breaker = opened(clock, replace(RAMP, after_max_half_open="closed"))

    clock.wait(5.0 + 10.0 + 5.0)

    assert admitted(breaker, 10) == "0101010101"


def test_an_operator_who_restores_lets_everybody_in_at_once(clock):
    breaker = opened(clock)

    breaker.restore()

    assert is_plain(breaker)


def test_restoring_ends_a_ramp(clock):
    breaker = ramping(clock)

    breaker.restore()

    assert admitted(breaker, 10) == "1" * 10


def test_a_new_circuit_and_a_restarted_one_do_not_ramp(clock):
    breaker = ramping(clock)

    breaker.restart(clock)

    assert is_plain(breaker)
    assert is_plain(CircuitBreaker(RAMP, clock=clock))


def test_check_spends_nothing_where_it_lets_pass(clock):
    breaker = ramping(clock)
    assert admitted(breaker, 9) == "0" * 9

    breaker.check()
    breaker.check()

    assert admitted(breaker, 10) == "1" + "0" * 9


def test_a_call_that_is_refused_by_check_has_asked(clock):
    breaker = ramping(clock)

    for _ in range(9):
        with pytest.raises(CircuitOpen):
            breaker.check()
    breaker.check()

    assert breaker.snapshot().rejected == 9
    assert admitted(breaker, 1) == "1"


def test_not_enforced_everybody_is_let_in_and_what_would_have_been_refused_is_counted(clock):
    breaker = ramping(clock, replace(RAMP, enforce=False))

    for _ in range(20):
        breaker.check()
        breaker.admit().failed()

    seen = breaker.snapshot()
    assert (seen.state, seen.rejected, seen.calls) == ("closed", 18, 2)


def test_a_ramp_of_nothing_ends_the_one_that_runs(clock):
    breaker = ramping(clock)

    breaker.policy = PLAIN

    assert is_plain(breaker)


def test_a_ramp_of_nothing_is_over_though_the_clock_went_back(clock):
    breaker = ramping(clock)
    clock.wait(-50.0)

    breaker.policy = replace(RAMP, ramp_for=0.0)

    assert admitted(breaker, 10) == "1" * 10


def test_an_instant_that_is_none_does_not_stop_a_ramp(clock):
    breaker = ramping(clock)

    breaker.hold(nan)
    clock.wait(10.0)

    assert is_plain(breaker)


@pytest.mark.parametrize(("ramp_for", "share"), [(4.0, 0.5), (20.0, 0.1), (5.0, 0.4), (2.0, 1.0)])
def test_a_ramp_of_another_length_counts_from_when_it_began(clock, ramp_for, share):
    breaker = ramping(clock)
    clock.wait(2.0)

    breaker.policy = replace(RAMP, ramp_for=ramp_for)

    assert admitted(breaker, 100).count("1") == pytest.approx(100 * share, abs=1)


def test_a_ramp_that_is_over_does_not_come_back_by_tuning(clock):
    breaker = ramping(clock, replace(RAMP, min_callers=2, ramp_for=1.0))
    clock.wait(2.0)
    breaker.admit().ignored()

    breaker.policy = replace(RAMP, min_callers=2, ramp_for=60.0)

    assert admitted(breaker, 10) == "1" * 10


def test_a_clock_that_goes_back_lets_in_a_tenth(clock):
    breaker = ramping(clock)

    clock.wait(-50.0)

    assert admitted(breaker, 10) == "0000000001"


def test_callers_are_told_apart_in_a_ramp_too(clock):
    breaker = CircuitBreaker(replace(RAMP, min_callers=2), clock=clock)
    for caller in "ab":
        for _ in range(4):
            breaker.admit(caller).failed()
    clock.wait(5.001)
    breaker.admit("ada").succeeded()
    clock.wait(9.99)

    for _ in range(10):
        if is_let_in(breaker):
            breaker.leave(breaker.state.closed, clock.now, True, False, "ada")
    before = state_of(breaker)
    for _ in range(4):
        breaker.leave(breaker.state.closed, clock.now, True, False, "bob")

    assert before == "closed"
    assert state_of(breaker) == "open"


# -- the hold


def test_nobody_is_let_in_until_strictly_later_than_the_hold(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.hold(103.0)

    clock.wait(1.0)
    error = refusal_of(breaker)
    clock.now = 103.0 + 4e-7
    edge = is_let_in(breaker)
    clock.now = 103.0 + 6e-7

    assert (str(error), error.retry_after) == ("the upstream asked to be left alone", 2.0)
    assert not edge
    assert is_let_in(breaker)
    assert is_plain(breaker)


def test_a_hold_shows_and_the_state_stays_closed(clock):
    heard = []
    breaker = CircuitBreaker(PLAIN, clock=clock, on_change=lambda *change: heard.append(change))
    breaker.admit().failed()

    breaker.hold(103.0)
    refusal_of(breaker)

    seen = breaker.snapshot()
    assert (seen.state, seen.held_until, seen.open_until, seen.rejected, seen.failures) == ("closed", 103.0, None, 1, 1)
    clock.wait(3.001)
    assert breaker.snapshot().held_until is None
    assert heard == []


def test_check_refuses_while_it_is_held(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.hold(103.0)

    with pytest.raises(CircuitOpen) as caught:
        breaker.check()

    assert caught.value.retry_after == 3.0
    clock.wait(3.001)
    breaker.check()


def test_a_hold_only_ever_moves_later(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.hold(110.0)

    breaker.hold(105.0)
    kept = breaker.snapshot().held_until
    breaker.hold(112.0)

    assert kept == 110.0
    assert breaker.snapshot().held_until == 112.0


@pytest.mark.parametrize("instant", [99.0, -inf, nan])
def test_an_instant_that_has_passed_or_is_none_holds_nothing(clock, instant):
    breaker = CircuitBreaker(PLAIN, clock=clock)

    breaker.hold(instant)

    assert is_plain(breaker)
    assert breaker.snapshot().held_until is None


def test_verdicts_in_flight_count_behind_a_hold_and_may_open_it(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    permits = [breaker.admit() for _ in range(5)]
    breaker.hold(103.0)

    for permit in permits[:3]:
        permit.failed()
    permits[4].ignored()
    before = breaker.snapshot()
    permits[3].failed()

    assert (before.state, before.failures) == ("closed", 3)
    assert breaker.snapshot().open_until == 105.0


def test_behind_a_hold_is_the_same_window(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.admit().failed()
    straggler = breaker.admit()
    breaker.hold(103.0)

    clock.wait(3.001)
    breaker.admit().failed()
    straggler.failed()

    assert breaker.snapshot().failures == 3


def test_a_circuit_that_opens_while_it_is_held_stays_open_at_least_as_long(clock):
    longer, shorter = CircuitBreaker(PLAIN, clock=clock), CircuitBreaker(PLAIN, clock=clock)
    for breaker, until in ((longer, 109.0), (shorter, 104.0)):
        permits = [breaker.admit() for _ in range(4)]
        breaker.hold(until)
        for permit in permits:
            permit.failed()

    assert longer.snapshot().open_until == 109.0
    assert shorter.snapshot().open_until == 105.0


def test_a_hold_moves_the_end_of_an_opening_later_and_never_sooner(clock):
    breaker = opened(clock, PLAIN)

    breaker.hold(103.0)
    sooner = breaker.snapshot().open_until
    breaker.hold(109.0)

    assert sooner == 105.0
    assert (breaker.snapshot().open_until, breaker.snapshot().held_until) == (109.0, 109.0)
    assert (str(refusal_of(breaker)), refusal_of(breaker).retry_after) == ("the circuit is open", 9.0)
    clock.now = 109.001
    assert is_let_in(breaker)


def test_a_held_half_open_admits_nobody_and_then_its_probes(clock):
    breaker = opened(clock, PLAIN)
    clock.wait(5.001)
    breaker.admit().ignored()

    breaker.hold(clock.now + 2.0)
    error = refusal_of(breaker)
    with pytest.raises(CircuitOpen):
        breaker.check()
    clock.wait(2.001)

    assert (str(error), error.retry_after) == ("the upstream asked to be left alone", 2.0)
    breaker.admit().succeeded()
    assert state_of(breaker) == "closed"


def test_a_half_open_that_fails_while_held_opens_at_least_as_long(clock):
    breaker = opened(clock, PLAIN)
    clock.wait(5.001)
    probe = breaker.admit()
    until = clock.now + 8.0

    breaker.hold(until)
    probe.failed()

    assert breaker.snapshot().open_until == until


def test_a_half_open_that_closes_while_held_is_held_and_then_ramps(clock):
    breaker = opened(clock, replace(PLAIN, ramp_for=10.0))
    clock.wait(5.001)
    probe = breaker.admit()

    breaker.hold(clock.now + 5.0)
    probe.succeeded()
    held = str(refusal_of(breaker))
    clock.wait(5.001)

    assert held == "the upstream asked to be left alone"
    assert admitted(breaker, 10) == "0000000001"


def test_a_half_open_that_closes_while_held_is_held_without_a_ramp_too(clock):
    breaker = opened(clock, PLAIN)
    clock.wait(5.001)
    probe = breaker.admit()

    breaker.hold(clock.now + 5.0)
    probe.succeeded()

    assert (state_of(breaker), is_let_in(breaker)) == ("closed", False)
    clock.wait(5.001)
    assert is_let_in(breaker)


def test_half_open_ends_by_itself_though_it_is_held(clock):
    breaker = opened(clock, PLAIN)
    clock.wait(5.001)
    breaker.admit().ignored()
    began = clock.now

    breaker.hold(began + 60.0)
    clock.wait(10.0)

    assert breaker.snapshot().state == "open"
    assert breaker.snapshot().open_until == pytest.approx(began + 60.0)


def test_time_that_is_held_is_no_time_to_ramp_up_in(clock):
    breaker = ramping(clock)
    clock.wait(5.0)
    breaker.hold(clock.now + 60.0)
    clock.wait(30.0)
    breaker.hold(clock.now + 40.0)

    clock.wait(40.001)

    assert admitted(breaker, 100).count("1") == 50


def test_an_isolated_circuit_takes_no_note_of_a_hold(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.isolate()

    breaker.hold(110.0)

    assert breaker.snapshot().held_until is None
    assert refusal_of(breaker).retry_after is None


def test_isolating_and_restoring_end_a_hold(clock):
    isolated, restored = CircuitBreaker(PLAIN, clock=clock), CircuitBreaker(PLAIN, clock=clock)
    for breaker in (isolated, restored):
        breaker.hold(110.0)

    isolated.isolate()
    restored.restore()

    assert isolated.snapshot().held_until is None
    assert is_plain(restored)


def test_a_restart_ends_a_hold(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.hold(110.0)

    breaker.restart(Clock(7.0))

    assert is_plain(breaker)
    assert breaker.snapshot().held_until is None


def test_restoring_forgets_what_callers_wished_for(clock):
    breaker = CircuitBreaker(replace(PLAIN, min_callers=2), clock=clock)
    breaker.hold(110.0, "ada")

    breaker.restore()
    breaker.hold(110.0, "bob")

    assert breaker.snapshot().held_until is None


def test_not_enforced_a_hold_counts_and_refuses_nothing(clock):
    breaker = CircuitBreaker(replace(PLAIN, enforce=False), clock=clock)
    breaker.hold(110.0)

    breaker.check()
    breaker.admit().failed()

    seen = breaker.snapshot()
    assert (seen.rejected, seen.calls, seen.held_until) == (1, 0, 110.0)


def test_one_caller_cannot_hold_all_where_callers_are_told_apart(clock):
    breaker = CircuitBreaker(replace(PLAIN, min_callers=2), clock=clock)
    breaker.hold(110.0, "ada")
    breaker.hold(115.0, "ada")
    before = is_let_in(breaker, "bob")

    breaker.hold(105.0, "bob")

    assert before
    assert breaker.snapshot().held_until == 105.0
    assert not is_let_in(breaker, "cyd")
    clock.now = 105.001
    assert is_let_in(breaker, "cyd")
    breaker.hold(120.0, "cyd")
    assert breaker.snapshot().held_until == 115.0


def test_a_policy_may_change_while_it_is_held(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.admit().failed()
    breaker.hold(110.0)

    breaker.policy = replace(PLAIN, window_calls=7)

    assert breaker.snapshot().calls == 0
    assert not is_let_in(breaker)
    clock.wait(10.001)
    assert is_plain(breaker)


def test_a_refusal_made_when_the_hold_is_just_over_says_that_nothing_is_left_to_wait(clock):
    breaker = CircuitBreaker(PLAIN, clock=clock)
    breaker.hold(110.0)
    clock.now = 111.0

    with pytest.raises(CircuitOpen) as caught:
        breaker.enter(109.0)

    assert (str(caught.value), caught.value.retry_after) == ("the upstream asked to be left alone", 0.0)


@pytest.mark.parametrize("policy", [PLAIN, replace(PLAIN, min_callers=2)], ids=["plain", "callers told apart"])
def test_at_rest_is_closed_and_neither_held_nor_ramping(clock, policy):
    breaker = CircuitBreaker(policy, clock=clock)

    at_first = breaker.at_rest
    breaker.hold(105.0, "ada")
    breaker.hold(105.0, "bob")
    held = breaker.at_rest
    clock.now = 105.001

    assert (at_first, held, breaker.at_rest) == (True, False, True)
    assert not opened(clock, PLAIN).at_rest
    ramp = ramping(clock)
    assert not ramp.at_rest
    clock.wait(10.0)
    assert ramp.at_rest
