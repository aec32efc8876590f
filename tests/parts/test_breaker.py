import gc
from dataclasses import replace
from math import inf
from random import Random

import pytest

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen
from tests.clock import Clock

SMALL = BreakerPolicy(window_calls=4, min_calls=2, open_for=5.0, probes=2, max_half_open=10.0)


@pytest.fixture
def clock():
    return Clock()


def breaker_of(clock, policy=SMALL, **others):
    return CircuitBreaker(policy, clock=clock, **others)


def opened(clock, policy=SMALL, **others):
    breaker = breaker_of(clock, policy, **others)
    for _ in range(policy.min_calls):
        breaker.admit().failed(0.0)
    assert breaker.snapshot().state == "open"
    return breaker


def half_opened(clock, policy=SMALL, **others):
    """Half-open, with no probe out."""
    breaker = opened(clock, policy, **others)
    clock.now = breaker.snapshot().open_until + 0.001
    breaker.admit().ignored()
    assert breaker.snapshot().state == "half_open"
    return breaker


def refusal_of(breaker):
    with pytest.raises(CircuitOpen) as caught:
        breaker.admit()
    return caught.value


def is_refused(breaker):
    try:
        breaker.admit().ignored()
    except CircuitOpen:
        return True
    return False


def state_of(breaker):
    return breaker.snapshot().state


# -- closed


def test_a_new_circuit_is_closed_and_knows_nothing(clock):
    seen = breaker_of(clock).snapshot()

    assert (seen.state, seen.enforced, seen.calls, seen.failures, seen.slow) == ("closed", True, 0, 0, 0)
    assert (seen.failure_rate, seen.slow_rate, seen.rejected, seen.open_until) == (None, None, 0, None)


def test_a_circuit_by_itself_goes_by_the_monotonic_clock():
    breaker = CircuitBreaker(SMALL)

    breaker.admit().failed()
    breaker.admit().failed()

    assert 4.9 < refusal_of(breaker).retry_after <= 5.0


def test_below_min_calls_no_rate_is_known_and_nothing_opens(clock):
    breaker = breaker_of(clock, replace(SMALL, min_calls=3))

    breaker.admit().failed()
    breaker.admit().failed()

    seen = breaker.snapshot()
    assert (seen.state, seen.calls, seen.failures, seen.failure_rate, seen.slow_rate) == ("closed", 2, 2, None, None)


def test_rates_are_shares_of_the_calls_in_the_window(clock):
    breaker = breaker_of(clock, replace(SMALL, failure_rate=1.0, slow_after=1.0, slow_rate=1.0))

    breaker.admit().failed(0.0)
    breaker.admit().succeeded(2.0)
    breaker.admit().succeeded(2.0)
    breaker.admit().succeeded(0.0)

    seen = breaker.snapshot()
    assert (seen.calls, seen.failures, seen.slow, seen.failure_rate, seen.slow_rate) == (4, 1, 2, 0.25, 0.5)


def test_rates_are_known_from_min_calls_on(clock):
    breaker = breaker_of(clock)

    breaker.admit().succeeded()
    breaker.admit().succeeded()

    assert breaker.snapshot().failure_rate == 0.0
    assert breaker.snapshot().slow_rate == 0.0


def test_it_opens_at_the_failure_rate_and_not_below(clock):
    breaker = breaker_of(clock, replace(SMALL, failure_rate=0.5))

    breaker.admit().succeeded()
    breaker.admit().succeeded()
    breaker.admit().failed()
    before = state_of(breaker)
    breaker.admit().failed()

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_it_opens_at_the_slow_rate_and_not_below(clock):
    breaker = breaker_of(clock, replace(SMALL, slow_after=1.0, slow_rate=0.5))

    breaker.admit().succeeded(0.5)
    breaker.admit().succeeded(0.5)
    breaker.admit().succeeded(1.5)
    before = state_of(breaker)
    breaker.admit().succeeded(1.5)

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_a_slow_failure_counts_as_both(clock):
    breaker = breaker_of(clock, replace(SMALL, min_calls=4, slow_after=1.0))

    breaker.admit().failed(1.5)

    assert (breaker.snapshot().failures, breaker.snapshot().slow) == (1, 1)


def test_without_slow_after_no_call_is_slow(clock):
    breaker = breaker_of(clock)

    for _ in range(4):
        breaker.admit().succeeded(1e9)

    assert (breaker.snapshot().slow, state_of(breaker)) == (0, "closed")


def test_slow_is_strictly_longer_than_slow_after(clock):
    breaker = breaker_of(clock, replace(SMALL, window_calls=10, min_calls=10, slow_after=0.25))

    breaker.admit().succeeded(0.25)
    breaker.admit().succeeded(0.250000001)

    assert breaker.snapshot().slow == 1


def test_without_a_duration_the_permit_measures_by_the_clock(clock):
    breaker = breaker_of(clock, replace(SMALL, window_calls=10, min_calls=10, slow_after=0.25))

    for took in (0.2, 0.25, 0.25 + 4e-7, 0.250001, 0.3):
        permit = breaker.admit()
        clock.wait(took)
        permit.succeeded()

    assert breaker.snapshot().slow == 2


def test_a_duration_of_zero_is_a_duration(clock):
    breaker = breaker_of(clock, replace(SMALL, slow_after=0.25))
    permit = breaker.admit()
    clock.wait(10.0)

    permit.succeeded(0.0)

    assert breaker.snapshot().slow == 0


def test_a_success_can_be_the_call_that_opens_it(clock):
    breaker = breaker_of(clock, replace(SMALL, min_calls=3))
    breaker.admit().failed()
    breaker.admit().failed()

    breaker.admit().succeeded()

    assert state_of(breaker) == "open"


def test_successes_that_leave_the_window_open_nothing_by_themselves(clock):
    breaker = breaker_of(clock, BreakerPolicy(window_for=2, min_calls=1, failure_rate=0.6))
    breaker.admit().succeeded()
    clock.wait(1.0)
    breaker.admit().failed()
    clock.wait(1.0)

    seen = breaker.snapshot()
    assert (seen.state, seen.failure_rate) == ("closed", 1.0)
    breaker.admit().failed()
    assert state_of(breaker) == "open"


def test_min_calls_is_clipped_to_a_count_window(clock):
    breaker = breaker_of(clock, BreakerPolicy(window_calls=2, min_calls=100))

    breaker.admit().failed()
    before = state_of(breaker)
    breaker.admit().failed()

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_min_calls_is_not_clipped_in_a_time_window(clock):
    breaker = breaker_of(clock, BreakerPolicy(window_for=1, min_calls=30))

    for _ in range(29):
        breaker.admit().failed()
    before = state_of(breaker)
    breaker.admit().failed()

    assert before == "closed"
    assert state_of(breaker) == "open"


def test_a_time_window_forgets_what_is_older_than_window_for(clock):
    breaker = breaker_of(clock, BreakerPolicy(window_for=10, min_calls=2))
    breaker.admit().failed()

    clock.wait(9.999)
    kept = breaker.snapshot().calls
    clock.wait(0.001)

    assert kept == 1
    assert breaker.snapshot().calls == 0


def test_ignored_and_refused_calls_are_no_evidence(clock):
    breaker = breaker_of(clock)

    for _ in range(20):
        breaker.admit().ignored()
        breaker.admit().refused()

    seen = breaker.snapshot()
    assert (seen.state, seen.calls) == ("closed", 0)


@pytest.mark.parametrize(
    ("rate", "failures", "calls"),
    [(35.2 / 100, 44, 125), (0.9 / 100, 9, 1000), (99.9 / 100, 999, 1000), (57.6 / 100, 72, 125), (1 / 3, 1, 3)],
)
def test_a_threshold_with_a_rounding_error_is_the_share_it_means(clock, rate, failures, calls):
    reached = breaker_of(clock, BreakerPolicy(window_calls=calls, min_calls=calls, failure_rate=rate))
    missed = breaker_of(clock, BreakerPolicy(window_calls=calls, min_calls=calls, failure_rate=rate))

    for call in range(calls):
        permit = reached.admit()
        permit.failed() if call < failures else permit.succeeded()
        permit = missed.admit()
        permit.failed() if call < failures - 1 else permit.succeeded()

    assert state_of(reached) == "open"
    assert state_of(missed) == "closed"


def test_the_smallest_rates_open_on_the_first_failure_and_on_nothing_less(clock):
    policy = BreakerPolicy(window_calls=4, min_calls=1, failure_rate=1e-12, slow_after=1.0, slow_rate=1e-12, probes=1)
    breaker = half_opened(clock, policy)

    breaker.admit().succeeded(0.0)
    breaker.admit().succeeded(0.0)
    before = state_of(breaker)
    breaker.admit().failed(0.0)

    assert before == "closed"
    assert state_of(breaker) == "open"


@pytest.mark.parametrize(
    ("rate", "window", "opens_at"),
    [
        (0.5, {"window_calls": 100, "min_calls": 100}, 50),
        (0.505, {"window_calls": 100, "min_calls": 100}, 51),
        (0.5, {"window_for": 10, "min_calls": 20}, 10),
        (0.55, {"window_for": 10, "min_calls": 20}, 11),
    ],
)
@pytest.mark.parametrize("one_fewer", [False, True])
def test_s17_how_many_failures_of_100_calls_or_of_20_in_10_s_open_it(clock, rate, window, opens_at, one_fewer):
    breaker = breaker_of(clock, BreakerPolicy(failure_rate=rate, **window))
    calls = window["min_calls"]
    clock.now = 100.0

    for call in range(calls):
        permit = breaker.admit()
        permit.failed() if call < opens_at - one_fewer else permit.succeeded()
        clock.wait(9.9 / calls)

    assert state_of(breaker) == ("closed" if one_fewer else "open")


# -- open


def test_an_open_circuit_refuses_and_says_how_long(clock):
    breaker = opened(clock)
    clock.wait(1.5)

    error = refusal_of(breaker)

    assert error.retry_after == 3.5
    assert error.outcome == "rejected"
    assert str(error) == "the circuit is open"


def test_each_refusal_is_an_error_of_its_own(clock):
    breaker = opened(clock)

    first, second = refusal_of(breaker), refusal_of(breaker)

    assert first is not second


def test_open_shows_empty_counts_since_when_it_rejects_and_until_when(clock):
    breaker = opened(clock)
    refusal_of(breaker)
    refusal_of(breaker)

    seen = breaker.snapshot()

    assert (seen.state, seen.open_until, seen.rejected) == ("open", 105.0, 2)
    assert (seen.calls, seen.failures, seen.slow, seen.failure_rate, seen.slow_rate) == (0, 0, 0, None, None)


def test_s18_refused_at_5_000_and_a_probe_at_5_001(clock):
    breaker = opened(clock)

    clock.wait(5.0)
    at_the_edge = refusal_of(breaker)
    clock.wait(0.001)
    permit = breaker.admit()

    assert at_the_edge.retry_after == 0.0
    assert state_of(breaker) == "half_open"
    permit.ignored()


def test_s18_of_a_thousand_callers_at_half_open_probes_are_admitted(clock):
    breaker = opened(clock, replace(SMALL, probes=3))
    clock.wait(5.001)
    permits = []

    for _ in range(1000):
        try:
            permits.append(breaker.admit())
        except CircuitOpen:
            continue

    assert len(permits) == 3
    assert breaker.snapshot().rejected == 997


def test_the_edge_is_told_to_the_nearest_microsecond(clock):
    breaker = opened(clock)

    clock.now = 105.0 + 4e-7
    just_at_the_edge = is_refused(breaker)
    clock.now = 105.0 + 6e-7

    assert just_at_the_edge
    assert not is_refused(breaker)


def test_open_stays_open_until_somebody_asks(clock):
    breaker = opened(clock)

    clock.wait(3600.0)
    before = state_of(breaker)
    breaker.admit().ignored()

    assert before == "open"
    assert state_of(breaker) == "half_open"


def test_a_refusal_made_late_says_that_nothing_is_left_to_wait(clock):
    breaker = opened(clock)
    clock.wait(60.0)

    assert breaker.refusal().retry_after == 0.0


def test_open_for_ever_is_for_ever(clock):
    breaker = opened(clock, replace(SMALL, open_for=inf))

    clock.wait(1e12)

    assert refusal_of(breaker).retry_after == inf
    assert breaker.snapshot().open_until == inf


def openings(breaker, clock, number):
    """How long each of so many openings in a row lasts."""
    lasted = []
    for _ in range(number):
        until = breaker.snapshot().open_until
        lasted.append(until - clock.now)
        clock.now = until + 0.001
        breaker.admit().failed()
        while state_of(breaker) == "half_open":
            breaker.admit().failed()
    return lasted


def test_each_opening_in_a_row_lasts_longer_up_to_the_cap(clock):
    breaker = opened(clock, replace(SMALL, open_for=1.0, open_factor=2.0, open_cap=7.0))

    assert openings(breaker, clock, 5) == pytest.approx([1.0, 2.0, 4.0, 7.0, 7.0])


def test_without_a_factor_every_opening_lasts_the_same(clock):
    breaker = opened(clock)

    assert openings(breaker, clock, 3) == pytest.approx([5.0, 5.0, 5.0])


def test_the_cap_is_not_below_open_for(clock):
    breaker = opened(clock, replace(SMALL, open_for=90.0, open_factor=2.0))

    assert openings(breaker, clock, 3) == pytest.approx([90.0, 90.0, 90.0])


def test_openings_begin_anew_after_closing(clock):
    breaker = opened(clock, replace(SMALL, open_for=1.0, open_factor=2.0))
    openings(breaker, clock, 3)
    breaker.restore()

    breaker.admit().failed()
    breaker.admit().failed()

    assert breaker.snapshot().open_until == clock.now + 1.0


def test_growth_beyond_all_numbers_ends_at_the_cap(clock):
    capped = opened(clock, replace(SMALL, open_factor=1e300, open_cap=60.0))
    uncapped = opened(clock, replace(SMALL, open_factor=1e300, open_cap=inf, max_half_open=inf))

    assert openings(capped, clock, 4) == pytest.approx([5.0, 60.0, 60.0, 60.0])
    clock.now = 100.0
    assert openings(uncapped, clock, 1) == pytest.approx([5.0])
    assert uncapped.snapshot().open_until == pytest.approx(5e300)
    clock.now = 6e300
    uncapped.admit().failed()
    uncapped.admit().failed()
    assert uncapped.snapshot().open_until == inf


def test_a_half_open_that_ends_may_open_for_ever(clock):
    breaker = half_opened(clock, replace(SMALL, open_factor=inf, open_cap=inf))

    clock.wait(1e6)

    assert breaker.snapshot().open_until == inf


def test_jitter_lengthens_each_opening_by_a_share_of_up_to_it(clock):
    always = [0.0, 0.5, 1.0]

    lasted = [
        opened(clock, replace(SMALL, open_jitter=0.4), random=lambda drawn=drawn: drawn).snapshot().open_until - 100.0
        for drawn in always
    ]

    assert lasted == pytest.approx([5.0, 6.0, 7.0])


def test_without_jitter_nothing_is_drawn(clock):
    def unexpected():
        raise AssertionError

    assert opened(clock, random=unexpected).snapshot().open_until == 105.0


def test_the_jitter_is_the_same_for_the_same_seed(clock):
    policy = replace(SMALL, open_jitter=0.5)

    first, second = (opened(clock, policy, random=Random(7).random).snapshot().open_until for _ in range(2))

    assert first == second
    assert 105.0 < first < 107.5


def test_jitter_is_drawn_from_chance_by_default(clock):
    untils = {opened(clock, replace(SMALL, open_jitter=0.5)).snapshot().open_until for _ in range(5)}

    assert len(untils) > 1


# -- half-open


def test_half_open_closes_when_the_probes_succeed(clock):
    breaker = half_opened(clock)

    breaker.admit().succeeded()
    before = breaker.snapshot()
    breaker.admit().succeeded()

    assert (before.state, before.calls, before.failure_rate) == ("half_open", 1, None)
    after = breaker.snapshot()
    assert (after.state, after.calls, after.rejected) == ("closed", 0, 0)


def test_half_open_opens_again_when_the_rate_of_the_probes_reaches_the_threshold(clock):
    breaker = half_opened(clock)

    breaker.admit().succeeded()
    breaker.admit().failed()

    assert breaker.snapshot().open_until == clock.now + 5.0


def test_slow_probes_open_it_again(clock):
    breaker = half_opened(clock, replace(SMALL, slow_after=1.0))

    breaker.admit().succeeded(2.0)
    breaker.admit().succeeded(2.0)

    assert state_of(breaker) == "open"


def test_half_open_decides_as_soon_as_a_rate_is_known(clock):
    breaker = half_opened(clock, replace(SMALL, min_calls=2, probes=10))

    breaker.admit().succeeded()
    before = state_of(breaker)
    breaker.admit().succeeded()

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_half_open_decides_on_as_many_probes_as_there_are(clock):
    breaker = half_opened(clock, replace(SMALL, window_calls=50, min_calls=40, probes=3))

    for _ in range(2):
        breaker.admit().succeeded()
    before = state_of(breaker)
    breaker.admit().succeeded()

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_one_probe_decides_alone(clock):
    well = half_opened(clock, replace(SMALL, probes=1))
    clock.now = 100.0
    ill = half_opened(clock, replace(SMALL, probes=1))

    well.admit().succeeded()
    ill.admit().failed()

    assert (state_of(well), state_of(ill)) == ("closed", "open")


def test_half_open_counts_its_own_calls_only(clock):
    breaker = half_opened(clock)

    seen = breaker.snapshot()

    assert (seen.calls, seen.failures, seen.rejected, seen.open_until) == (0, 0, 0, None)


def test_half_open_refuses_when_its_probes_are_out_and_says_that_it_may_be_any_moment(clock):
    breaker = half_opened(clock)
    kept = [breaker.admit(), breaker.admit()]

    error = refusal_of(breaker)

    assert error.retry_after == 0.0
    assert str(error) == "the circuit is half-open"
    assert breaker.snapshot().rejected == 1
    del kept


def test_a_probe_that_has_reported_does_not_make_room(clock):
    breaker = half_opened(clock, replace(SMALL, probes=3, min_calls=3))

    first = [breaker.admit() for _ in range(3)]
    first[0].succeeded()

    assert is_refused(breaker)


@pytest.mark.parametrize("nothing", ["ignored", "refused"])
def test_a_probe_without_a_verdict_gives_its_lease_back(clock, nothing):
    breaker = half_opened(clock, replace(SMALL, probes=1))
    permit = breaker.admit()
    out = is_refused(breaker)

    getattr(permit, nothing)()

    assert out
    assert not is_refused(breaker)


def test_a_lost_probe_gives_its_lease_back(clock):
    breaker = half_opened(clock, replace(SMALL, probes=1))
    permit = breaker.admit()
    out = is_refused(breaker)

    del permit

    assert out
    assert not is_refused(breaker)


def test_a_probe_lost_in_a_circle_of_objects_gives_its_lease_back(clock):
    breaker = half_opened(clock, replace(SMALL, probes=1))
    circle = [breaker.admit()]
    circle.append(circle)
    del circle

    gc.collect()

    assert not is_refused(breaker)


def test_half_open_ends_by_itself_and_opens_again(clock):
    breaker = half_opened(clock)
    began = clock.now
    kept = [breaker.admit(), breaker.admit()]

    clock.now = began + 9.999
    before = state_of(breaker)
    clock.now = began + 10.0

    assert before == "half_open"
    assert state_of(breaker) == "open"
    assert breaker.snapshot().open_until == pytest.approx(began + 15.0)
    del kept


def test_the_end_of_half_open_is_told_to_the_nearest_microsecond(clock):
    breaker = half_opened(clock)
    began = clock.now

    clock.now = began + 10.0 - 6e-7
    before = state_of(breaker)
    clock.now = began + 10.0 - 4e-7

    assert before == "half_open"
    assert state_of(breaker) == "open"


def test_what_was_due_while_nobody_looked_happened_when_it_was_due(clock):
    heard = []
    breaker = half_opened(clock, on_change=lambda *change: heard.append(change))
    ends_at = clock.now + 10.0

    clock.wait(12.0)
    seen = breaker.snapshot()

    assert seen.open_until == pytest.approx(ends_at + 5.0)
    assert heard[-1] == ("half_open", "open", pytest.approx(ends_at))
    clock.now = ends_at + 5.001
    assert not is_refused(breaker)


def test_a_half_open_that_ends_counts_as_one_more_opening_in_a_row(clock):
    breaker = half_opened(clock, replace(SMALL, open_factor=2.0))
    ends_at = clock.now + 10.0

    clock.wait(10.0)

    assert breaker.snapshot().open_until == pytest.approx(ends_at + 10.0)


def test_half_open_may_end_closed(clock):
    heard = []
    policy = replace(SMALL, after_max_half_open="closed")
    breaker = half_opened(clock, policy, on_change=lambda *change: heard.append(change))
    ends_at = clock.now + 10.0
    breaker.admit().failed()

    clock.wait(12.0)

    seen = breaker.snapshot()
    assert (seen.state, seen.calls) == ("closed", 0)
    assert heard[-1] == ("half_open", "closed", pytest.approx(ends_at))


def test_half_open_may_last_for_ever(clock):
    breaker = half_opened(clock, replace(SMALL, max_half_open=inf))

    clock.wait(1e12)

    assert state_of(breaker) == "half_open"


def test_an_upstream_that_only_refuses_is_alive_and_half_open_ends_closed(clock):
    breaker = half_opened(clock)
    for _ in range(5):
        breaker.admit().refused()
    before = state_of(breaker)

    clock.wait(10.0)

    assert before == "half_open"
    assert state_of(breaker) == "closed"


def test_a_failure_beside_the_refusals_ends_open(clock):
    breaker = half_opened(clock)
    breaker.admit().failed()
    breaker.admit().refused()

    clock.wait(10.0)

    assert state_of(breaker) == "open"


def test_an_ignored_probe_is_no_sign_of_life(clock):
    breaker = half_opened(clock)
    breaker.admit().ignored()

    clock.wait(10.0)

    assert state_of(breaker) == "open"


def test_a_refusal_that_comes_after_the_end_is_no_sign_of_life(clock):
    breaker = half_opened(clock)
    permit = breaker.admit()

    clock.wait(10.0)
    permit.refused()

    assert state_of(breaker) == "open"


def test_whole_floats_are_whole_numbers(clock):
    breaker = opened(clock, BreakerPolicy(window_calls=4.0, min_calls=2, probes=2.0))
    breaker.policy = replace(breaker.policy, min_calls=2.0)
    clock.wait(5.001)

    breaker.admit().succeeded()
    breaker.admit().succeeded()

    assert state_of(breaker) == "closed"


# -- who may speak for which state


def test_a_straggler_of_closed_does_not_speak_for_half_open(clock):
    breaker = breaker_of(clock)
    stragglers = [breaker.admit() for _ in range(4)]
    breaker.admit().failed()
    breaker.admit().failed()
    clock.wait(5.001)
    probes = [breaker.admit(), breaker.admit()]

    stragglers[0].failed()
    stragglers[1].succeeded()
    stragglers[2].ignored()
    stragglers[3].refused()

    assert breaker.snapshot().calls == 0
    assert is_refused(breaker)
    clock.wait(10.0)
    assert state_of(breaker) == "open"
    del probes


def test_a_straggler_of_closed_does_not_speak_for_open(clock):
    breaker = breaker_of(clock)
    straggler = breaker.admit()
    breaker.admit().failed()
    breaker.admit().failed()

    straggler.failed()

    assert breaker.snapshot().open_until == 105.0
    assert breaker.snapshot().calls == 0


def test_a_straggler_of_half_open_does_not_speak_for_closed(clock):
    breaker = half_opened(clock, replace(SMALL, probes=3, min_calls=2))
    straggler = breaker.admit()
    breaker.admit().succeeded()
    breaker.admit().succeeded()

    straggler.failed()

    seen = breaker.snapshot()
    assert (seen.state, seen.calls) == ("closed", 0)


def test_a_straggler_of_an_earlier_half_open_does_not_speak_for_a_later_one(clock):
    breaker = half_opened(clock)
    straggler, other = breaker.admit(), breaker.admit()
    clock.now = breaker.snapshot().open_until or clock.now + 15.0
    breaker.snapshot()
    clock.wait(0.001)
    probe = breaker.admit()

    straggler.ignored()
    other.failed()

    assert breaker.snapshot().calls == 0
    assert breaker.state.probes_left == 1
    probe.ignored()


def test_a_probe_that_reports_after_the_end_of_half_open_is_a_straggler(clock):
    breaker = half_opened(clock, replace(SMALL, probes=1))
    permit = breaker.admit()

    clock.wait(10.0)
    permit.succeeded()

    assert state_of(breaker) == "open"


def test_a_straggler_of_an_earlier_closed_does_not_speak_for_a_later_one(clock):
    breaker = breaker_of(clock)
    straggler = breaker.admit()

    breaker.restore()
    straggler.failed()

    assert breaker.snapshot().calls == 0


@pytest.mark.parametrize("second", ["succeeded", "failed", "ignored", "refused"])
@pytest.mark.parametrize("first", ["succeeded", "failed", "ignored", "refused"])
def test_a_second_report_is_ignored(clock, first, second):
    policy = replace(SMALL, probes=3, min_calls=3)
    once = half_opened(clock, policy)
    clock.now = 100.0
    twice = half_opened(clock, policy)

    getattr(once.admit(), first)()
    permit = twice.admit()
    getattr(permit, first)()
    getattr(permit, second)()

    assert twice.snapshot() == once.snapshot()
    assert twice.state.probes_left == once.state.probes_left
    assert twice.state.seen_alive == once.state.seen_alive


def test_a_permit_that_reported_gives_nothing_back_when_it_is_lost(clock):
    breaker = half_opened(clock)
    permit = breaker.admit()
    permit.succeeded()

    del permit

    assert breaker.state.probes_left == 1


# -- the permit as a context manager


def test_a_block_that_ends_well_is_a_success(clock):
    breaker = breaker_of(clock, replace(SMALL, slow_after=1.0))

    with breaker.admit() as permit:
        clock.wait(2.0)
    permit.failed()

    seen = breaker.snapshot()
    assert (seen.calls, seen.failures, seen.slow) == (1, 0, 1)


def test_a_block_that_raises_is_a_failure(clock):
    breaker = breaker_of(clock)

    with pytest.raises(ValueError, match="no"), breaker.admit():
        raise ValueError("no")

    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (1, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_that_is_ended_from_outside_is_nothing(clock, error):
    breaker = half_opened(clock, replace(SMALL, probes=1))

    with pytest.raises(error), breaker.admit():
        raise error

    assert breaker.snapshot().calls == 0
    assert not is_refused(breaker)


def test_a_verdict_given_inside_the_block_counts(clock):
    breaker = breaker_of(clock)

    with breaker.admit() as permit:
        permit.failed()

    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (1, 1)


# -- check


def test_check_lets_pass_what_admit_would_admit(clock):
    closed = breaker_of(clock)
    half_open = half_opened(clock)

    closed.check()
    half_open.check()

    assert half_open.state.probes_left == 2
    assert (closed.snapshot().rejected, half_open.snapshot().rejected) == (0, 0)


def test_check_raises_what_admit_would_raise(clock):
    breaker = opened(clock)
    clock.wait(2.0)

    with pytest.raises(CircuitOpen) as caught:
        breaker.check()

    assert caught.value.retry_after == 3.0
    assert breaker.snapshot().rejected == 1


def test_check_at_the_edge_of_open(clock):
    breaker = opened(clock)

    clock.now = 105.0 + 4e-7
    with pytest.raises(CircuitOpen):
        breaker.check()
    clock.now = 105.0 + 6e-7
    breaker.check()

    assert state_of(breaker) == "open"


def test_check_lets_pass_the_last_probe(clock):
    breaker = half_opened(clock)
    kept = breaker.admit()

    breaker.check()

    assert breaker.state.probes_left == 1
    del kept


def test_check_refuses_half_open_without_probes(clock):
    breaker = half_opened(clock)
    kept = [breaker.admit(), breaker.admit()]

    with pytest.raises(CircuitOpen) as caught:
        breaker.check()

    assert caught.value.retry_after == 0.0
    del kept


def test_check_knows_what_was_due(clock):
    ended = half_opened(clock)
    clock.wait(10.0)
    with pytest.raises(CircuitOpen):
        ended.check()

    automatic = opened(clock, replace(SMALL, auto_half_open=True))
    clock.wait(5.0)
    automatic.check()

    assert state_of(automatic) == "half_open"


def test_check_refuses_an_isolated_circuit(clock):
    breaker = breaker_of(clock, replace(SMALL, enforce=False))
    breaker.isolate()

    with pytest.raises(CircuitOpen):
        breaker.check()


# -- isolate, restore, restart


def test_an_isolated_circuit_refuses_for_as_long_as_it_is_isolated(clock):
    breaker = breaker_of(clock)
    breaker.isolate()

    clock.wait(1e9)
    error = refusal_of(breaker)

    assert error.retry_after is None
    assert str(error) == "the circuit is isolated"
    seen = breaker.snapshot()
    assert (seen.state, seen.rejected, seen.calls, seen.failure_rate, seen.open_until) == (
        "isolated", 1, 0, None, None,
    )  # fmt: skip


def test_isolating_twice_is_isolating_once(clock):
    heard = []
    breaker = breaker_of(clock, on_change=lambda *change: heard.append(change))
    breaker.isolate()
    refusal_of(breaker)

    breaker.isolate()

    assert breaker.snapshot().rejected == 1
    assert heard == [("closed", "isolated", 100.0)]


def test_isolation_wins_over_enforce_false(clock):
    breaker = breaker_of(clock, replace(SMALL, enforce=False))

    breaker.isolate()

    assert is_refused(breaker)


def test_a_straggler_does_not_speak_for_an_isolated_circuit(clock):
    breaker = breaker_of(clock)
    stragglers = [breaker.admit() for _ in range(4)]
    breaker.isolate()

    for straggler in stragglers:
        straggler.failed()

    assert state_of(breaker) == "isolated"


@pytest.mark.parametrize("make", [breaker_of, opened, half_opened], ids=["closed", "open", "half_open"])
def test_restore_closes_with_an_empty_window(clock, make):
    breaker = make(clock)
    if state_of(breaker) == "closed":
        breaker.admit().failed()

    breaker.restore()

    seen = breaker.snapshot()
    assert (seen.state, seen.calls, seen.rejected) == ("closed", 0, 0)
    breaker.admit().failed()
    assert state_of(breaker) == "closed"


def test_restore_ends_isolation(clock):
    heard = []
    breaker = breaker_of(clock, on_change=lambda *change: heard.append(change))
    breaker.isolate()
    clock.wait(3.0)

    breaker.restore()

    assert not is_refused(breaker)
    assert heard[-1] == ("isolated", "closed", 103.0)


def test_restoring_a_closed_circuit_is_no_transition(clock):
    heard = []
    breaker = breaker_of(clock, on_change=lambda *change: heard.append(change))

    breaker.restore()

    assert heard == []


def test_a_restart_begins_anew_by_another_clock(clock):
    breaker = opened(clock, BreakerPolicy(window_for=2, min_calls=2))
    other = Clock(7.0)

    breaker.restart(other)

    assert state_of(breaker) == "closed"
    breaker.admit().failed()
    other.wait(2.0)
    assert breaker.snapshot().calls == 0


def test_a_restart_does_not_end_isolation(clock):
    breaker = breaker_of(clock)
    breaker.isolate()

    breaker.restart(Clock(7.0))

    assert is_refused(breaker)


# -- not enforced


def test_not_enforced_it_shows_what_would_have_been_refused_and_refuses_nothing(clock):
    breaker = opened(clock, replace(SMALL, enforce=False))

    permits = [breaker.admit() for _ in range(3)]
    breaker.check()

    seen = breaker.snapshot()
    assert (seen.state, seen.enforced, seen.rejected) == ("open", False, 3)
    del permits


@pytest.mark.parametrize("verdict", ["succeeded", "failed", "ignored", "refused"])
def test_the_verdict_of_a_call_that_would_have_been_refused_counts_nowhere(clock, verdict):
    breaker = opened(clock, replace(SMALL, enforce=False))
    permit = breaker.admit()
    clock.wait(5.001)
    probe = breaker.admit()

    getattr(permit, verdict)()

    assert breaker.snapshot().calls == 0
    assert breaker.state.probes_left == 1
    assert not breaker.state.seen_alive
    probe.ignored()


def test_not_enforced_it_still_goes_through_its_states(clock):
    breaker = opened(clock, replace(SMALL, enforce=False))
    clock.wait(5.001)

    probes = [breaker.admit(), breaker.admit()]
    beyond = breaker.admit()
    seen = breaker.snapshot()
    beyond.failed()
    for probe in probes:
        probe.succeeded()

    assert (seen.state, seen.rejected) == ("half_open", 1)
    assert state_of(breaker) == "closed"


# -- the policy is replaced


def test_a_new_policy_keeps_the_state_and_what_it_counted(clock):
    breaker = breaker_of(clock)
    breaker.admit().failed()

    breaker.policy = replace(SMALL, min_calls=3, open_for=9.0)

    assert breaker.policy.open_for == 9.0
    assert breaker.snapshot().calls == 1
    breaker.admit().failed()
    breaker.admit().failed()
    assert breaker.snapshot().open_until == 109.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (SMALL, replace(SMALL, window_calls=5)),
        (BreakerPolicy(window_for=5), BreakerPolicy(window_for=6)),
        (SMALL, BreakerPolicy(window_for=5, min_calls=2)),
        (BreakerPolicy(window_for=5), SMALL),
    ],
)
def test_a_changed_window_starts_empty(clock, before, after):
    breaker = breaker_of(clock, before)
    breaker.admit().failed()

    breaker.policy = after

    assert breaker.snapshot().calls == 0
    for _ in range(after.min_calls):
        breaker.admit().failed()
    assert state_of(breaker) == "open"


def test_a_changed_time_window_starts_at_the_present_second(clock):
    breaker = breaker_of(clock, BreakerPolicy(window_for=5))
    clock.wait(50.0)

    breaker.policy = BreakerPolicy(window_for=2)
    breaker.admit().failed()
    clock.wait(1.0)
    kept = breaker.snapshot().calls
    clock.wait(1.0)

    assert kept == 1
    assert breaker.snapshot().calls == 0


def test_a_window_of_the_same_size_is_the_same_window(clock):
    breaker = breaker_of(clock, BreakerPolicy())
    breaker.admit().failed()

    breaker.policy = BreakerPolicy(window_for=10)

    assert breaker.snapshot().calls == 1


def test_open_stays_open_for_as_long_as_it_was_to_be(clock):
    breaker = opened(clock)

    breaker.policy = replace(SMALL, open_for=50.0, window_calls=7)

    assert breaker.snapshot().open_until == 105.0


def test_half_open_keeps_its_probes_and_its_end(clock):
    breaker = half_opened(clock)
    ends_at = clock.now + 10.0
    breaker.admit().succeeded()

    breaker.policy = replace(SMALL, probes=9, max_half_open=99.0, window_calls=7)

    assert (breaker.snapshot().calls, breaker.state.probes_left) == (1, 1)
    clock.now = ends_at
    assert state_of(breaker) == "open"


def test_what_was_due_was_due_under_the_old_policy(clock):
    breaker = half_opened(clock)
    ends_at = clock.now + 10.0
    clock.wait(12.0)

    breaker.policy = replace(SMALL, open_for=50.0)

    assert breaker.snapshot().open_until == pytest.approx(ends_at + 5.0)


def test_a_new_limit_on_slowness_counts_from_now_on(clock):
    breaker = breaker_of(clock)
    permit = breaker.admit()
    clock.wait(2.0)

    breaker.policy = replace(SMALL, min_calls=4, slow_after=1.0)
    permit.succeeded()
    breaker.admit().succeeded(1.5)
    breaker.admit().succeeded(0.5)

    assert breaker.snapshot().slow == 2


def test_enforcing_may_begin_and_end_while_it_is_open(clock):
    breaker = opened(clock, replace(SMALL, enforce=False))

    breaker.policy = SMALL
    enforced = is_refused(breaker)
    breaker.policy = replace(SMALL, enforce=False)

    assert enforced
    assert not is_refused(breaker)


# -- transitions by themselves


def test_auto_half_open_leaves_open_at_the_instant_it_is_over(clock):
    heard = []
    breaker = opened(clock, replace(SMALL, auto_half_open=True), on_change=lambda *change: heard.append(change))

    clock.wait(4.999)
    before = state_of(breaker)
    clock.wait(0.001)

    assert before == "open"
    assert state_of(breaker) == "half_open"
    assert heard[-1] == ("open", "half_open", 105.0)


def test_auto_half_open_and_its_end_take_turns_while_nobody_looks(clock):
    heard = []
    policy = replace(SMALL, open_factor=2.0, open_cap=20.0, auto_half_open=True)
    breaker = opened(clock, policy, on_change=lambda *change: heard.append(change))
    # open to 105, half-open to 115, open to 125, half-open to 135, open to 155, half-open to 165, open to 185 ...

    clock.now = 160.0
    seen = breaker.snapshot()

    assert seen.state == "half_open"
    assert heard[1:] == [
        ("open", "half_open", 105.0), ("half_open", "open", 115.0),
        ("open", "half_open", 125.0), ("half_open", "open", 135.0),
        ("open", "half_open", 155.0),
    ]  # fmt: skip
    clock.now = 170.0
    assert breaker.snapshot().open_until == 185.0


@pytest.mark.parametrize("idle", [1e6, 1e9])
def test_auto_half_open_is_quick_after_any_idling(clock, idle):
    heard = []
    policy = replace(SMALL, open_for=0.002, max_half_open=0.001, auto_half_open=True)
    breaker = opened(clock, policy, on_change=lambda *change: heard.append(change))

    clock.wait(idle)
    state = state_of(breaker)

    assert state in {"open", "half_open"}
    assert len(heard) < 20


def test_after_any_idling_it_is_in_the_phase_it_would_be_in(clock):
    policy = replace(SMALL, open_for=2.0, max_half_open=1.0, auto_half_open=True)
    breakers = [opened(clock, policy) for _ in range(3)]
    seen = []

    for breaker, late in zip(breakers, (0.5, 1.999, 2.0), strict=True):
        clock.now = 100.0 + 3.0 * 1_000_000 + late
        seen.append((state_of(breaker), breaker.snapshot().open_until))

    opens = pytest.approx(100.0 + 3.0 * 1_000_000 + 2.0)
    assert seen == [("open", opens), ("open", opens), ("half_open", None)]


def test_openings_that_still_grow_are_not_passed_over(clock):
    policy = replace(SMALL, open_for=1.0, open_factor=2.0, open_cap=8.0, max_half_open=1.0, auto_half_open=True)
    breaker = opened(clock, policy)
    # 1, 2, 4 seconds open, each with a second of half-open: 110 is when the first of 8 begins; then rounds of 9

    clock.now = 110.0 + 9.0 * 1000 + 4.0
    seen = breaker.snapshot()

    assert seen.open_until == pytest.approx(110.0 + 9.0 * 1000 + 8.0)


def test_exactly_half_a_microsecond_is_the_same_instant():
    policy = BreakerPolicy(window_calls=1, min_calls=1, slow_after=0.25, open_for=1e-6)
    clock = Clock(0.0)
    measured = breaker_of(clock, policy)
    permit = measured.admit()
    clock.now = 0.25 + 5e-7
    permit.succeeded()
    assert state_of(measured) == "closed"

    clock.now = -1e-6
    lazy = opened(clock, policy)
    clock.now = -1e-6
    automatic = opened(clock, replace(policy, auto_half_open=True))
    assert lazy.snapshot().open_until == 0.0

    clock.now = -5e-7
    assert state_of(automatic) == "half_open"
    clock.now = 5e-7
    with pytest.raises(CircuitOpen):
        lazy.check()
    assert is_refused(lazy)


def test_in_each_of_a_thousand_rounds_it_is_on_time_at_the_size_of_the_epoch():
    start_us = 1_700_000_778_645_000
    clock = Clock(start_us / 1e6)
    breaker = opened(clock, replace(SMALL, open_for=0.001, max_half_open=0.05, auto_half_open=True))
    wrong = []

    for round_us in range(start_us, start_us + 51_000 * 1000, 51_000):
        for passed_us, state in ((998, "open"), (1000, "half_open"), (50_998, "half_open"), (51_000, "open")):
            clock.now = (round_us + passed_us) / 1e6
            if state_of(breaker) != state:
                wrong.append((round_us - start_us, passed_us))

    assert wrong == []


def test_auto_half_open_without_a_limit_on_half_open_stays_there(clock):
    breaker = opened(clock, replace(SMALL, max_half_open=inf, auto_half_open=True))

    clock.wait(1e9)

    assert state_of(breaker) == "half_open"


def test_opening_for_ever_is_not_half_opened_by_any_clock(clock):
    breaker = opened(clock, replace(SMALL, open_for=inf, auto_half_open=True))

    clock.wait(1e300)

    assert state_of(breaker) == "open"


def test_auto_half_open_that_ends_closed_stays_closed(clock):
    breaker = opened(clock, replace(SMALL, after_max_half_open="closed", auto_half_open=True))

    clock.wait(1e9)

    assert state_of(breaker) == "closed"


# -- who listens


def test_every_transition_is_heard_with_what_was_before_and_after_and_when(clock):
    heard = []
    breaker = opened(clock, on_change=lambda *change: heard.append(change))
    clock.now = 106.0
    probes = [breaker.admit(), breaker.admit()]
    clock.now = 107.0

    for probe in probes:
        probe.succeeded()

    assert heard == [("closed", "open", 100.0), ("open", "half_open", 106.0), ("half_open", "closed", 107.0)]


def test_a_listener_sees_the_state_that_it_is_told_of(clock):
    seen = []
    breaker = breaker_of(clock, on_change=lambda before, after, at: seen.append((after, breaker.state.name)))
    breaker.admit().failed()

    breaker.admit().failed()

    assert seen == [("open", "open")]


def test_a_listener_may_change_the_state_again(clock):
    breaker = opened(clock, on_change=lambda before, after, at: after == "half_open" and breaker.isolate())
    clock.wait(5.001)

    error = refusal_of(breaker)

    assert error.retry_after is None
    assert state_of(breaker) == "isolated"


def test_a_closed_circuit_is_entered_by_the_short_way(clock):
    class Short(CircuitBreaker):
        def _enter_slowly(self, now):
            raise AssertionError

    breaker = Short(SMALL, clock=clock)

    assert breaker.enter(clock()) is breaker.state


def test_checking_a_closed_circuit_does_not_even_look_at_the_clock(clock):
    looks = []
    breaker = CircuitBreaker(SMALL, clock=lambda: looks.append(1) or 100.0)
    looks.clear()

    breaker.check()

    assert looks == []


def test_the_engine_reports_by_the_state_that_gave_leave(clock):
    breaker = breaker_of(clock)

    leave = breaker.enter(clock())
    breaker.leave(leave, clock(), True, False)
    breaker.leave(leave, clock(), None, False)
    breaker.leave(breaker.enter(clock()), clock(), False, True)

    seen = breaker.snapshot()
    assert (seen.calls, seen.failures, seen.slow, seen.state) == (0, 0, 0, "open")
