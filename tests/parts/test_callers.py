from dataclasses import replace
from math import inf
from random import Random

import pytest

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen
from gateway.callers import MOST_TOLD_APART, CallerCountWindow, CallerTimeWindow, Wishes
from gateway.policy import MOST_CALLERS
from tests.clock import Clock

TWO = BreakerPolicy(window_calls=20, min_calls=4, probes=2, open_for=5.0, max_half_open=10.0, min_callers=2)


@pytest.fixture
def clock():
    return Clock()


def breaker_of(clock, policy=TWO, **others):
    return CircuitBreaker(policy, clock=clock, **others)


def asked(breaker, caller, *, failed=False, times=1, took=0.0):
    for _ in range(times):
        permit = breaker.admit(caller)
        permit.failed(took) if failed else permit.succeeded(took)


def opened(clock, policy=TWO, **others):
    breaker = breaker_of(clock, policy, **others)
    for caller in range(policy.min_callers):
        asked(breaker, caller, failed=True, times=policy.min_calls)
        if state_of(breaker) == "open":
            break
    assert state_of(breaker) == "open"
    return breaker


def half_opened(clock, policy=TWO, **others):
    breaker = opened(clock, policy, **others)
    clock.now = breaker.snapshot().open_until + 0.001
    breaker.admit("nobody").ignored()
    assert state_of(breaker) == "half_open"
    return breaker


def is_refused(breaker, caller=None):
    try:
        breaker.admit(caller).ignored()
    except CircuitOpen:
        return True
    return False


def state_of(breaker):
    return breaker.snapshot().state


def recorded(window, *calls):
    for at, caller, failed in calls:
        window.record(at, failed, False, caller)
    return window


# -- closed


def test_one_caller_alone_does_not_open_it(clock):
    breaker = breaker_of(clock)

    asked(breaker, "ada", failed=True, times=1000)

    seen = breaker.snapshot()
    assert (seen.state, seen.calls, seen.failures, seen.failure_rate) == ("closed", 20, 20, 1.0)


def test_it_opens_when_the_rest_is_known_and_as_bad(clock):
    breaker = breaker_of(clock)
    asked(breaker, "ada", failed=True, times=10)

    asked(breaker, "bob", failed=True, times=3)
    before = state_of(breaker)
    asked(breaker, "bob", failed=True)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_the_rest_has_to_reach_the_rate_by_itself(clock):
    breaker = breaker_of(clock)
    asked(breaker, "ada", failed=True, times=10)
    asked(breaker, "bob", times=4)

    asked(breaker, "cyd", failed=True, times=3)
    before = state_of(breaker)
    asked(breaker, "cyd", failed=True)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_the_whole_has_to_reach_the_rate_too(clock):
    breaker = breaker_of(clock)
    asked(breaker, "ada", times=10)

    asked(breaker, "bob", failed=True, times=4)
    asked(breaker, "cyd", failed=True, times=4)

    assert state_of(breaker) == "closed"


def test_worst_is_who_lifts_the_rate_most_and_not_who_fails_most_often(clock):
    breaker = breaker_of(clock, replace(TWO, window_calls=1000, failure_rate=0.25))
    for call in range(120):
        asked(breaker, "many calls, few failures", failed=call % 10 == 0)

    asked(breaker, "nothing but failures", failed=True, times=11)
    before = breaker.snapshot()
    asked(breaker, "nothing but failures", failed=True, times=100)

    assert (before.state, before.failures) == ("closed", 23)
    assert state_of(breaker) == "closed"


def test_the_rest_is_known_only_if_it_is_whoever_is_left_out(clock):
    breaker = breaker_of(clock, replace(TWO, window_calls=100, failure_rate=0.26))
    for call in range(40):
        asked(breaker, "busy", failed=call % 4 == 3)  # a quarter: below the rate, and most of the calls

    for caller in "abc":
        asked(breaker, caller, failed=True)
    before = breaker.snapshot()
    asked(breaker, "d", failed=True)

    assert (before.state, before.failure_rate) == ("closed", 13 / 43)
    assert state_of(breaker) == "open"


def test_three_callers_means_that_two_may_fail(clock):
    breaker = breaker_of(clock, replace(TWO, min_callers=3, window_calls=100))
    asked(breaker, "ada", failed=True, times=30)
    asked(breaker, "bob", failed=True, times=30)
    before = state_of(breaker)

    asked(breaker, "cyd", failed=True, times=4)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_those_who_give_no_name_are_one_caller(clock):
    breaker = breaker_of(clock)

    for _ in range(20):
        breaker.admit().failed()
    before = state_of(breaker)
    asked(breaker, "ada", failed=True, times=4)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_one_slow_caller_alone_does_not_open_it_and_two_do(clock):
    breaker = breaker_of(clock, replace(TWO, slow_after=1.0, slow_rate=0.5))
    asked(breaker, "ada", took=2.0, times=10)
    before = state_of(breaker)

    asked(breaker, "bob", took=2.0, times=4)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_failures_and_slowness_are_told_apart(clock):
    breaker = breaker_of(clock, replace(TWO, slow_after=1.0, slow_rate=0.5))

    asked(breaker, "ada", failed=True, times=10)
    asked(breaker, "bob", took=2.0, times=10)

    assert state_of(breaker) == "closed"


def test_by_default_nobody_is_told_apart(clock):
    breaker = breaker_of(clock, replace(TWO, min_callers=1))

    asked(breaker, "ada", failed=True, times=4)

    assert state_of(breaker) == "open"
    assert type(breaker_of(clock, replace(TWO, min_callers=1)).state).__name__ == "Closed"


def test_a_call_that_has_left_the_window_speaks_no_more_for_its_caller(clock):
    breaker = breaker_of(clock, replace(TWO, window_calls=None, window_for=2))
    asked(breaker, "ada", failed=True, times=10)
    clock.wait(2.0)

    asked(breaker, "bob", failed=True, times=10)
    before = state_of(breaker)
    asked(breaker, "ada", failed=True, times=4)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_ignored_and_refused_calls_are_no_evidence(clock):
    breaker = breaker_of(clock)

    for caller in "abc":
        for _ in range(20):
            breaker.admit(caller).ignored()
            breaker.admit(caller).refused()

    assert (state_of(breaker), breaker.snapshot().calls) == ("closed", 0)


def test_a_straggler_does_not_speak_for_a_later_closed(clock):
    breaker = breaker_of(clock)
    straggler = breaker.admit("ada")
    breaker.restore()

    straggler.failed()

    assert breaker.snapshot().calls == 0


def test_the_engine_passes_the_caller_on(clock):
    breaker = breaker_of(clock)

    for caller in "ab":
        for _ in range(4):
            breaker.check(caller)
            state = breaker.enter(clock.now, caller)
            breaker.leave(state, clock.now, True, False, caller)

    assert state_of(breaker) == "open"


# -- half-open


def test_one_more_probe_is_admitted_for_each_caller_who_may_fail(clock):
    breaker = half_opened(clock, replace(TWO, min_callers=3))

    permits = [breaker.admit(caller) for caller in "abcd"]

    assert is_refused(breaker, "e")
    del permits


def test_one_caller_takes_one_probe_and_is_told_so_before_it_queues(clock):
    breaker = half_opened(clock)
    breaker.check("ada")
    permit = breaker.admit("ada")

    with pytest.raises(CircuitOpen) as caught:
        breaker.check("ada")

    assert str(caught.value) == "the circuit is half-open"
    assert caught.value.retry_after == 0.0
    assert is_refused(breaker, "ada")
    assert not is_refused(breaker, "bob")
    permit.failed()
    assert is_refused(breaker, "ada")
    assert breaker.snapshot().rejected == 3


@pytest.mark.parametrize("nothing", ["ignored", "refused", "__del__"])
def test_a_probe_without_a_verdict_may_be_had_by_the_same_caller_again(clock, nothing):
    breaker = half_opened(clock)
    permit = breaker.admit("ada")
    others = [breaker.admit("bob"), breaker.admit("cyd")]

    getattr(permit, nothing)()

    assert is_refused(breaker, "bob")
    assert not is_refused(breaker, "ada")
    del others


def test_a_failed_probe_of_one_caller_decides_nothing_and_a_good_one_of_another_closes(clock):
    breaker = half_opened(clock, replace(TWO, probes=1))

    asked(breaker, "ada", failed=True)
    before = state_of(breaker)
    asked(breaker, "bob")

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_two_callers_who_fail_open_it_again(clock):
    breaker = half_opened(clock, replace(TWO, probes=1))

    asked(breaker, "ada", failed=True)
    asked(breaker, "bob", failed=True)

    assert breaker.snapshot().open_until == clock.now + 5.0


def test_two_slow_callers_open_it_again_and_one_does_not(clock):
    breaker = half_opened(clock, replace(TWO, probes=1, slow_after=1.0))

    asked(breaker, "ada", took=2.0)
    before = state_of(breaker)
    asked(breaker, "bob", took=2.0)

    assert before == "half_open"
    assert state_of(breaker) == "open"


def test_a_good_probe_closes_without_waiting_for_those_who_may_fail(clock):
    breaker = half_opened(clock)

    asked(breaker, "ada")
    before = state_of(breaker)
    asked(breaker, "bob")

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_half_open_with_nothing_but_one_callers_failure_ends_open(clock):
    breaker = half_opened(clock)
    asked(breaker, "ada", failed=True)

    clock.wait(9.999)
    before = state_of(breaker)
    clock.wait(0.001)

    assert before == "half_open"
    assert state_of(breaker) == "open"


def test_half_open_that_ends_with_too_few_callers_goes_by_the_ones_there_were(clock):
    well, ill = half_opened(clock, replace(TWO, probes=3)), half_opened(clock, replace(TWO, probes=3))
    asked(well, "ada", failed=True)
    asked(well, "bob")
    for caller in "abc":
        asked(ill, caller, failed=caller != "c")

    clock.wait(10.0)

    assert state_of(well) == "closed"
    assert state_of(ill) == "open"


def test_who_hangs_alone_does_not_keep_it_from_closing_at_the_end(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    hangs = breaker.admit("mallory")
    asked(breaker, "ada")
    asked(breaker, "bob")

    clock.wait(9.999)
    before = state_of(breaker)
    clock.wait(0.001)

    assert (before, state_of(breaker)) == ("half_open", "closed")
    del hangs


def test_more_probes_that_hang_than_may_be_left_out_are_bad(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    asked(breaker, "ada")
    hang = [breaker.admit("bob"), breaker.admit("cyd")]

    clock.wait(10.0)

    assert state_of(breaker) == "open"
    del hang


def test_one_who_fails_and_one_who_hangs_are_two(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    asked(breaker, "ada")
    asked(breaker, "bob", failed=True)
    hangs = breaker.admit("cyd")

    clock.wait(10.0)

    assert state_of(breaker) == "open"
    del hangs


def test_who_hangs_alone_is_no_sign_of_health(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    hangs = breaker.admit("mallory")

    clock.wait(10.0)

    assert state_of(breaker) == "open"
    del hangs


GROWING = replace(TWO, open_factor=2.0, probes=3)


@pytest.mark.parametrize("how", ["fails", "hangs", "does not come"])
def test_openings_do_not_grow_by_what_one_caller_does(clock, how):
    breaker = half_opened(clock, GROWING)
    if how == "fails":
        asked(breaker, "mallory", failed=True)
    hangs = breaker.admit("mallory") if how == "hangs" else None
    ended_at = clock.now + 10.0

    clock.wait(10.0)

    assert breaker.snapshot().open_until == pytest.approx(ended_at - 0.001 + 5.0, abs=0.002)
    del hangs


def test_openings_grow_by_what_two_callers_do(clock):
    breaker = half_opened(clock, GROWING)
    asked(breaker, "ada", failed=True)
    hangs = breaker.admit("bob")
    ended_at = clock.now + 10.0

    clock.wait(10.0)

    assert breaker.snapshot().open_until == pytest.approx(ended_at + 10.0, abs=0.002)
    del hangs


@pytest.mark.parametrize(("min_callers", "opening"), [(1, 40.0), (2, 5.0)])
def test_rounds_that_nobody_looked_at_tell_nothing_of_callers_told_apart(clock, min_callers, opening):
    policy = replace(GROWING, min_callers=min_callers, auto_half_open=True, open_cap=40.0)
    breaker = opened(clock, policy)
    clock.wait(100_000.0)
    while state_of(breaker) != "open":
        clock.wait(1.0)
    until = breaker.snapshot().open_until

    clock.now = until + 0.001 + 10.0

    assert breaker.snapshot().open_until == pytest.approx(until + 10.0 + opening)


def test_such_rounds_do_not_count_for_a_factor_that_comes_later(clock):
    breaker = opened(clock, replace(GROWING, open_factor=1.0, auto_half_open=True))
    clock.wait(100_000.0)
    while state_of(breaker) != "open":
        clock.wait(1.0)
    until = breaker.snapshot().open_until

    breaker.policy = replace(GROWING, auto_half_open=True)
    clock.now = until + 0.001 + 10.0

    assert breaker.snapshot().open_until == pytest.approx(until + 10.0 + 5.0)


def test_two_healthy_callers_close_it_without_a_wait(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))

    asked(breaker, "ada")
    asked(breaker, "bob")
    before = state_of(breaker)
    asked(breaker, "ada")

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_one_healthy_caller_closes_it_alone(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))

    asked(breaker, "ada", times=3)

    assert state_of(breaker) == "closed"


def test_who_had_a_good_probe_comes_after_those_whose_probe_is_out(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    asked(breaker, "ada")
    permit = breaker.admit("bob")

    before = is_refused(breaker, "ada"), is_refused(breaker, "cyd")
    permit.ignored()

    assert before == (True, False)
    assert not is_refused(breaker, "ada")


@pytest.mark.parametrize("how", ["fails", "is slow"])
def test_a_further_probe_that_is_bad_is_that_callers_last(clock, how):
    breaker = half_opened(clock, replace(TWO, probes=3, slow_after=1.0))
    asked(breaker, "ada")
    asked(breaker, "ada", failed=how == "fails", took=2.0 if how == "is slow" else 0.0)

    refused_now = is_refused(breaker, "ada")
    clock.wait(10.0)

    assert refused_now
    assert state_of(breaker) == "closed"


def test_beside_one_who_fails_one_healthy_caller_closes_it(clock):
    breaker = half_opened(clock, replace(TWO, probes=3))
    asked(breaker, "mallory", failed=True)

    for _ in range(3):
        before = state_of(breaker)
        asked(breaker, "ada")

    assert (before, state_of(breaker)) == ("half_open", "closed")


def test_a_refusal_is_a_sign_of_life_beside_one_callers_failure_and_not_beside_two(clock):
    well, ill = half_opened(clock, replace(TWO, probes=3)), half_opened(clock, replace(TWO, probes=3))
    asked(well, "ada", failed=True)
    for caller in "ab":
        asked(ill, caller, failed=True)
    for breaker in (well, ill):
        breaker.admit("cyd").refused()

    clock.wait(10.0)

    assert state_of(well) == "closed"
    assert state_of(ill) == "open"


def test_without_callers_told_apart_good_probes_that_are_too_few_end_open(clock):
    breaker = half_opened(clock, replace(TWO, min_callers=1, probes=3))
    asked(breaker, "ada")

    clock.wait(10.0)

    assert state_of(breaker) == "open"


# -- the policy is replaced


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_window_that_begins_or_ends_to_tell_callers_apart_starts_empty(clock, before, after):
    breaker = breaker_of(clock, replace(TWO, min_callers=before))
    asked(breaker, "ada", failed=True, times=3)

    breaker.policy = replace(TWO, min_callers=after)
    empty = breaker.snapshot().calls
    asked(breaker, "ada", failed=True, times=4)

    assert empty == 0
    assert state_of(breaker) == ("open" if after == 1 else "closed")


def test_callers_are_told_apart_from_the_moment_it_is_asked_for(clock):
    breaker = breaker_of(clock, replace(TWO, min_callers=1))
    permit = breaker.admit("ada")

    breaker.policy = TWO
    permit.failed()
    asked(breaker, "ada", failed=True, times=4)
    before = state_of(breaker)
    asked(breaker, "bob", failed=True, times=4)

    assert before == "closed"
    assert state_of(breaker) == "open"


@pytest.mark.parametrize("ramp_for", [0.0, 100.0])
def test_whose_call_it_was_that_began_before_nobody_knows_so_it_counts_as_nothing(clock, ramp_for):
    breaker = breaker_of(clock, replace(TWO, min_callers=1, ramp_for=ramp_for, probes=1))
    if ramp_for:
        for caller in "abcd":
            breaker.admit(caller).failed()
        clock.wait(5.001)
        breaker.admit().succeeded()
        clock.wait(99.0)
    breaker.policy = replace(breaker.policy, enforce=False)
    permits = [breaker.admit("mallory") for _ in range(20)]
    with_a_ramp = breaker.state

    breaker.policy = replace(breaker.policy, min_callers=2, enforce=True)
    for permit in permits:
        permit.failed()
    asked(breaker, "mallory", failed=True, times=4)

    assert (state_of(breaker), breaker.snapshot().failures) == ("closed", 4)
    assert (getattr(with_a_ramp, "ramp", None) is None) == (ramp_for == 0.0)
    assert breaker.state.ramp is getattr(with_a_ramp, "ramp", None)


def test_half_open_too_begins_to_tell_callers_apart_and_forgets_the_probes_that_are_out(clock):
    breaker = half_opened(clock, replace(TWO, min_callers=1, probes=1))
    ends_at = breaker.state.ends_at
    permit = breaker.admit("mallory")
    assert is_refused(breaker, "ada")

    breaker.policy = replace(TWO, probes=1)
    permit.failed()
    before = breaker.snapshot()
    asked(breaker, "mallory", failed=True)
    asked(breaker, "ada")

    assert (before.state, before.calls, before.rejected) == ("half_open", 0, 1)
    assert state_of(breaker) == "closed"
    assert ends_at == clock.now + 10.0


def test_a_sign_of_life_in_half_open_is_kept_when_callers_are_told_apart(clock):
    breaker = half_opened(clock, replace(TWO, min_callers=1))
    breaker.admit("ada").refused()

    breaker.policy = TWO
    clock.wait(10.0)

    assert state_of(breaker) == "closed"


def test_what_is_open_stays_so_when_callers_are_told_apart(clock):
    breaker = opened(clock, replace(TWO, min_callers=1))
    state = breaker.state

    breaker.policy = TWO

    assert breaker.state is state


def test_a_verdict_in_flight_counts_though_callers_are_told_apart_no_more(clock):
    breaker = breaker_of(clock)
    permit = breaker.admit("ada")

    breaker.policy = replace(TWO, min_callers=1)
    permit.failed()

    assert breaker.snapshot().failures == 1


def test_fewer_callers_count_from_the_next_verdict_on(clock):
    breaker = breaker_of(clock, replace(TWO, min_callers=3, window_calls=100))
    for caller in "ab":
        asked(breaker, caller, failed=True, times=20)
    before = state_of(breaker)

    breaker.policy = replace(breaker.policy, min_callers=2)
    kept = breaker.snapshot().calls
    asked(breaker, "a", failed=True)

    assert (before, kept) == ("closed", 40)
    assert state_of(breaker) == "open"


def test_the_window_is_kept_when_only_their_number_changes(clock):
    breaker = breaker_of(clock)
    asked(breaker, "ada", failed=True, times=3)

    breaker.policy = replace(TWO, min_callers=5)

    assert breaker.snapshot().calls == 3


# -- the windows


WINDOWS = pytest.mark.parametrize(
    "make", [lambda: CallerTimeWindow(10, 0.0), lambda: CallerCountWindow(10_000)], ids=["time", "count"]
)


@WINDOWS
def test_more_callers_than_are_told_apart_lose_their_identity_and_stay_in_the_totals(make):
    window = make()

    for caller in range(5000):
        window.record(0.0, caller % 2 == 0, False, caller)

    assert window.told_apart <= MOST_TOLD_APART
    assert (window.calls, window.failures) == (5000, 2500)
    assert window.stands("failures", 0.4, 10, MOST_CALLERS - 1)


@WINDOWS
def test_the_caller_with_most_bad_calls_is_never_lost(make):
    window = make()

    for caller in range(5000):
        window.record(0.0, False, False, caller)
        window.record(0.0, True, False, "ada")

    assert not window.stands("failures", 0.5, 10, 1)
    assert window.stands("failures", 0.5, 10, 0)


@WINDOWS
def test_of_callers_equally_bad_the_busy_ones_are_kept(make):
    window = make()
    for caller in ("ill", "ill too"):  # so that the rate is reached without either of them
        window.record(0.0, True, False, caller)
    for caller in range(200):
        window.record(0.0, False, False, caller)
    for _ in range(600):
        window.record(0.0, False, False, "busy")

    for caller in range(200, 299):
        window.record(0.0, False, False, caller)

    assert not window.stands("failures", 0.001, 310, 1)


@WINDOWS
@pytest.mark.parametrize("slow", [False, True])
def test_a_caller_with_one_bad_call_is_kept_before_busy_ones_with_none(make, slow):
    window = make()
    for caller in range(200):
        window.record(0.0, False, False, caller)
        window.record(0.0, False, False, caller)
    window.record(0.0, not slow, slow, "ill")

    for caller in range(200, 400):
        window.record(0.0, False, False, caller)
        window.record(0.0, False, False, caller)

    assert not window.stands("slow" if slow else "failures", 0.0001, 1, 1)


def test_the_share_of_the_rest_is_told_with_the_same_care():
    window = CallerTimeWindow(1, 0.0)
    for call in range(125):
        window.record(0.0, call < 44, False, "all the others")
    for _ in range(126):
        window.record(0.0, True, False, "ada")

    assert 44 / 125 < 35.2 / 100
    assert window.stands("failures", 35.2 / 100, 10, 1)


def test_a_culprit_who_was_lost_is_none_any_more():
    window = CallerTimeWindow(1, 0.0)
    for _ in range(2):
        window.record(0.5, True, False, "ada")
    assert not window.stands("failures", 0.5, 1, 1)
    for caller in range(400):
        for _ in range(3):
            window.record(0.5, True, False, caller)

    for caller in ("bob", "cyd"):
        window.record(1.5, True, False, caller)

    assert window.stands("failures", 0.5, 1, 1)


def test_a_caller_who_was_lost_and_came_again_is_told_apart_from_then_on():
    window = CallerCountWindow(1000)
    window.record(0, True, False, "ada")
    for caller in range(300):
        for _ in range(2):
            window.record(0, True, False, caller)
    for _ in range(3):
        window.record(0, True, False, "ada")

    for _ in range(400):  # what she was lost with leaves
        window.record(0, False, False, "bob")

    assert window._wholes["ada"].calls == 3


def test_what_was_lost_is_forgotten_in_time_and_may_come_again():
    window = CallerTimeWindow(2, 0.0)
    for caller in range(1000):
        window.record(0.0, True, False, caller)
    for caller in range(1000):
        window.record(1.0, True, False, caller)

    window.advance(2.0)
    after_one = (window.calls, window.told_apart)
    window.advance(3.0)

    assert after_one[0] == 1000
    assert 0 < after_one[1] <= MOST_TOLD_APART
    assert (window.calls, window.told_apart) == (0, 0)


def test_a_second_holds_no_more_callers_than_are_told_apart():
    window = CallerTimeWindow(3, 0.0)

    for second in range(3):
        for caller in range(2000):
            window.record(second, True, False, (second, caller))

    assert all(len(shares) <= MOST_TOLD_APART for _, shares in window._past)
    assert len(window._past) == 3


def test_a_caller_whose_calls_have_all_left_a_count_window_is_known_no_more():
    window = recorded(CallerCountWindow(3), (0, "a", True), (0, "b", True), (0, "c", False), (0, "c", False))

    before = window.told_apart
    recorded(window, (0, "c", False))

    assert before == 2
    assert window.told_apart == 1


def test_a_caller_who_alone_fills_a_count_window_is_told_apart():
    window = recorded(CallerCountWindow(1), (0, "a", True), (0, "a", True))

    assert window.told_apart == 1
    assert not window.stands("failures", 0.5, 1, 1)


def test_the_tallies_of_a_count_window_follow_what_leaves_it():
    window = CallerCountWindow(4)
    window.record(0, True, True, "a")
    for _ in range(4):
        window.record(0, False, False, "a")
    window.record(0, True, True, "b")

    assert (window.failures, window.slow) == (1, 1)
    assert not window.stands("failures", 0.2, 1, 1)
    assert not window.stands("slow", 0.2, 1, 1)
    window.record(0, True, True, "a")
    assert window.stands("failures", 0.25, 1, 1)
    assert window.stands("slow", 0.25, 1, 1)


def test_after_long_idling_nobody_is_known():
    window = recorded(CallerTimeWindow(3, 0.0), (0, "a", True), (1, "b", True), (2, "c", True))

    window.record(1e9 + 0.5, True, False, "d")

    assert (window.calls, window.told_apart) == (1, 1)


def test_while_the_known_culprit_goes_on_nobody_is_searched():
    window = CallerTimeWindow(10, 0.0)
    for caller in range(50):
        window.record(0.0, False, False, caller)
    window.record(0.0, True, False, "ada")
    for _ in range(100):
        window.record(0.0, True, False, "ada")
    assert not window.stands("failures", 0.5, 10, 1)
    window._wholes = None  # whoever searches fails

    for _ in range(1000):
        window.record(0.0, True, False, "ada")
        assert not window.stands("failures", 0.5, 10, 1)


# -- wishes


def test_a_wish_for_one_is_granted_at_once():
    assert Wishes().add("ada", 107.0, 100.0, 1) == 107.0


def test_as_many_different_callers_have_to_agree_as_it_takes():
    wishes = Wishes()

    given = [
        wishes.add("ada", 109.0, 100.0, 3), wishes.add("ada", 119.0, 100.0, 3),
        wishes.add("bob", 105.0, 100.0, 3), wishes.add("cyd", 107.0, 100.0, 3),
        wishes.add("dan", 110.0, 100.0, 3),
    ]  # fmt: skip

    assert given == [-inf, -inf, -inf, 105.0, 107.0]


def test_a_wish_that_is_over_is_no_wish():
    wishes = Wishes()
    wishes.add("ada", 105.0, 100.0, 2)

    assert wishes.add("bob", 110.0, 105.0, 2) == 105.0
    assert wishes.add("cyd", 107.0, 106.0, 2) == 107.0
    assert wishes.add("dan", 120.0, 108.0, 2) == 110.0
    assert wishes.add("dan", 125.0, 115.0, 2) == -inf


def test_a_wish_is_not_taken_back():
    wishes = Wishes()
    wishes.add("ada", 109.0, 100.0, 2)
    wishes.add("ada", 103.0, 100.0, 2)

    assert wishes.add("bob", 120.0, 100.0, 2) == 109.0


def test_no_more_wishes_are_kept_than_it_takes():
    wishes = Wishes()

    for caller in range(1000):
        wishes.add(caller, 200.0 + caller, 100.0, 5)

    assert len(wishes._until) == 5


# -- S23: one caller whose requests always fail, among healthy ones


PER_SECOND = 10_000  # of the attacker; the others make 500, and 1 % of these fail
IN_THE_SMALL = 1000  # where it is the shares that matter


class Crowd:
    """Healthy callers and an attacker, a tenth of a second at a time."""

    def __init__(self, breaker, clock, random, attack=IN_THE_SMALL, healthy=500, callers=50):
        self.breaker, self.clock, self.random = breaker, clock, random
        self.attack, self.healthy, self.callers = attack, healthy, callers
        self.errors = 0.01

    def call(self, caller, chance):
        try:
            state = self.breaker.enter(self.clock.now, caller)
        except CircuitOpen:
            return
        self.breaker.leave(state, self.clock.now, self.random.random() < chance, False, caller)

    def until(self, seconds, state=None):
        """Go on for so long, or until that state; gives the states seen and the time it took."""
        began, seen = self.clock.now, set()
        while self.clock.now - began < seconds - 1e-9 and state not in seen:
            for _ in range(self.attack // 10):
                self.call("attacker", 1.0)
            for _ in range(self.healthy // 10):
                self.call(self.random.randrange(self.callers), self.errors)
            seen.add(state_of(self.breaker))
            self.clock.wait(0.1)
        return seen, self.clock.now - began


POLICIES = pytest.mark.parametrize(
    "policy", [BreakerPolicy(min_callers=2), BreakerPolicy(min_callers=2, window_calls=2000)], ids=["time", "count"]
)


@POLICIES
def test_s23_the_circuit_stays_closed(clock, policy):
    crowd = Crowd(breaker_of(clock, policy), clock, Random(1), attack=PER_SECOND)

    seen, _ = crowd.until(12.0)

    assert seen == {"closed"}
    assert crowd.breaker.snapshot().failure_rate > 0.9


def test_s23_without_it_the_attacker_closes_the_upstream_for_all(clock):
    crowd = Crowd(breaker_of(clock, BreakerPolicy()), clock, Random(1))

    seen, _ = crowd.until(5.0)

    assert "open" in seen


@pytest.mark.parametrize("seed", range(20))
def test_s23_from_half_open_it_closes_whoever_fails_at_it(clock, seed):
    breaker = opened(clock, BreakerPolicy(min_callers=2))
    clock.now = breaker.snapshot().open_until + 0.001
    crowd = Crowd(breaker, clock, Random(seed))

    seen, took = crowd.until(1.0, "closed")

    assert seen <= {"half_open", "closed"}
    assert took < 0.2
    assert crowd.until(5.0)[0] == {"closed"}


@POLICIES
@pytest.mark.parametrize("attack", [0, IN_THE_SMALL, PER_SECOND // 2])
def test_s23_a_real_outage_opens_it_within_a_window_and_a_second(clock, policy, attack):
    crowd = Crowd(breaker_of(clock, policy), clock, Random(2), attack=attack)
    crowd.until(12.0)
    crowd.errors = 1.0

    seen, took = crowd.until(30.0, "open")

    assert "open" in seen
    assert took <= 11.0
