import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, fields, replace
from math import inf, nan

import pytest
from tenacity import wait_fixed, wait_random_exponential

from gateway import (
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    ConfigError,
    HttpPolicy,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
    UnknownName,
)
from gateway.policy import KNOBS, SECTIONS
from gateway.policy import given as is_given

POLICIES = [Policy, TimeoutPolicy, RetryPolicy, BulkheadPolicy, BreakerPolicy]


def values_of(policy):
    return {field.name: getattr(policy, field.name) for field in fields(policy)}


def error_of(make, /, **knobs):
    with pytest.raises(ConfigError) as caught:
        make(**knobs)
    return caught.value


# -- defaults


def test_the_defaults_of_time():
    assert values_of(TimeoutPolicy()) == {"call": 20.0, "attempt": 10.0, "connect": 3.0, "read": 5.0}


def test_the_defaults_of_retrying():
    policy = RetryPolicy()

    assert (policy.attempts, policy.min_try, policy.max_retry_after) == (2, 0.05, 10.0)
    assert type(policy.wait) is wait_random_exponential
    assert (policy.wait.multiplier, policy.wait.exp_base, policy.wait.max, policy.wait.min) == (0.1, 2, 2.0, 0)


def test_the_defaults_of_the_pool():
    assert values_of(BulkheadPolicy()) == {"limit": 20, "queue": 20, "max_wait": 1.0}


def test_the_defaults_of_the_circuit():
    assert values_of(BreakerPolicy()) == {
        "window_for": 10.0,
        "window_calls": None,
        "min_calls": 10,
        "failure_rate": 0.5,
        "slow_after": None,
        "slow_rate": 1.0,
        "open_for": 5.0,
        "open_factor": 1.0,
        "open_cap": 60.0,
        "open_jitter": 0.0,
        "probes": 3,
        "max_half_open": 10.0,
        "after_max_half_open": "open",
        "auto_half_open": False,
        "evidence_after": None,
        "min_callers": 1,
        "ramp_for": 0.0,
        "max_circuits": 1000,
        "enforce": True,
    }


def test_the_defaults_of_an_upstream():
    policy = Policy()

    assert (policy.timeout, policy.breaker, policy.bulkhead) == (TimeoutPolicy(), BreakerPolicy(), BulkheadPolicy())
    assert (policy.retry.attempts, policy.fallback_timeout, policy.fallback_limit) == (2, 0.1, 10)


@pytest.mark.parametrize("kind", POLICIES)
def test_policies_are_frozen_and_take_no_positions(kind):
    policy = kind()

    with pytest.raises(FrozenInstanceError):
        setattr(policy, fields(policy)[0].name, 1)
    with pytest.raises(TypeError):
        kind(1)


@pytest.mark.parametrize("kind", POLICIES)
def test_equal_policies_are_equal(kind):
    again = replace(kind())

    assert again == kind()


# -- what follows


@pytest.mark.parametrize(
    ("given", "follows"),
    [
        ({"call": 0.8}, {"call": 0.8, "attempt": 0.8, "connect": 0.8, "read": 0.8}),
        ({"call": 15.0}, {"call": 15.0, "attempt": 10.0, "connect": 3.0, "read": 5.0}),
        ({"call": 60.0}, {"call": 60.0, "attempt": 10.0, "connect": 3.0, "read": 5.0}),
        ({"call": inf}, {"call": inf, "attempt": 10.0, "connect": 3.0, "read": 5.0}),
        ({"attempt": 4.0}, {"call": 20.0, "attempt": 4.0, "connect": 3.0, "read": 4.0}),
        ({"attempt": 30.0}, {"call": 30.0, "attempt": 30.0, "connect": 3.0, "read": 5.0}),
        ({"attempt": inf}, {"call": 20.0, "attempt": inf, "connect": 3.0, "read": 5.0}),
        ({"read": 15.0}, {"call": 20.0, "attempt": 15.0, "connect": 3.0, "read": 15.0}),
        ({"read": 30.0}, {"call": 30.0, "attempt": 30.0, "connect": 3.0, "read": 30.0}),
        ({"connect": 12.0}, {"call": 20.0, "attempt": 12.0, "connect": 12.0, "read": 5.0}),
        ({"read": inf}, {"call": 20.0, "attempt": 10.0, "connect": 3.0, "read": inf}),
        ({"call": 12.0, "read": 11.0}, {"call": 12.0, "attempt": 11.0, "connect": 3.0, "read": 11.0}),
        ({"call": 0.8, "attempt": 0.3}, {"call": 0.8, "attempt": 0.3, "connect": 0.3, "read": 0.3}),
    ],
)
def test_a_limit_that_is_not_given_follows_the_one_that_is(given, follows):
    policy = TimeoutPolicy(**given)

    assert values_of(policy) == follows
    assert {name for name in follows if is_given(getattr(policy, name))} == set(given)


def test_what_follows_goes_on_following_through_replace():
    policy = replace(TimeoutPolicy(call=0.8), call=12.0)

    assert values_of(policy) == {"call": 12.0, "attempt": 10.0, "connect": 3.0, "read": 5.0}


def test_what_was_given_stays_through_replace():
    policy = replace(TimeoutPolicy(attempt=0.5), call=12.0)

    assert policy.attempt == 0.5
    with pytest.raises(ConfigError):
        replace(policy, call=0.4)


def pickled(policy):
    return pickle.loads(pickle.dumps(policy))  # noqa: S301 - our own


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_follows_as_the_original_does(duplicate):
    policy = duplicate(TimeoutPolicy(call=0.8))

    assert replace(policy, call=5.0).attempt == 5.0


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_what_goes_out_with_http_requests_can_be_copied_and_sent_to_another_process(duplicate):
    policy = HttpPolicy(headers={"X-Api-Key": "secret"}, params={"v": "3"}, statuses={404: "success"})

    same = duplicate(policy)

    assert same == policy
    assert asdict(same)["headers"] == {"X-Api-Key": "secret"}
    assert "secret" not in repr(same)
    with pytest.raises(TypeError):
        same.headers["X-Api-Key"] = "another"


def test_windows_by_calls_replace_windows_by_time():
    policy = BreakerPolicy(window_calls=100)

    assert (policy.window_calls, policy.window_for) == (100, None)
    assert replace(policy, window_calls=None).window_for == 10.0
    assert replace(policy, window_calls=None, window_for=7).window_for == 7
    assert replace(BreakerPolicy(), window_calls=5).window_for is None


def test_without_any_window_it_is_the_usual_one():
    assert BreakerPolicy(window_for=None).window_for == 10.0


@pytest.mark.parametrize(
    ("given", "open_for", "open_cap"),
    [
        ({"open_for": 90.0}, 90.0, 90.0),
        ({"open_for": inf}, inf, inf),
        ({"open_cap": 3.0}, 3.0, 3.0),
        ({"open_cap": 30.0}, 5.0, 30.0),
        ({"open_cap": inf}, 5.0, inf),
        ({"open_for": 7.0, "open_cap": 7.0}, 7.0, 7.0),
    ],
)
def test_the_cap_of_openings_is_never_below_them(given, open_for, open_cap):
    policy = BreakerPolicy(**given)

    assert (policy.open_for, policy.open_cap) == (open_for, open_cap)


# -- what contradicts itself


@pytest.mark.parametrize(
    ("make", "knobs", "field", "named"),
    [
        (TimeoutPolicy, {"call": 1.0, "attempt": 2.0}, "timeout.attempt", "timeout.call"),
        (TimeoutPolicy, {"attempt": 1.0, "connect": 2.0}, "timeout.connect", "timeout.attempt"),
        (TimeoutPolicy, {"attempt": 1.0, "read": 2.0}, "timeout.read", "timeout.attempt"),
        (TimeoutPolicy, {"call": 1.0, "connect": 2.0}, "timeout.connect", "timeout.call"),
        (TimeoutPolicy, {"call": 1.0, "read": 2.0}, "timeout.read", "timeout.call"),
        (BreakerPolicy, {"window_for": 10, "window_calls": 10}, "breaker.window_for", "only one"),
        (BreakerPolicy, {"window_for": 86_401}, "breaker.window_for", "at most 86400"),
        (BreakerPolicy, {"window_calls": 100_001}, "breaker.window_calls", "at most 100000"),
        (BreakerPolicy, {"open_for": 5.0, "open_cap": 4.0}, "breaker.open_cap", "breaker.open_for"),
        (
            Policy,
            {"timeout": TimeoutPolicy(call=1.0), "bulkhead": BulkheadPolicy(max_wait=2.0)},
            "bulkhead.max_wait",
            "timeout.call",
        ),
        (Policy, {"timeout": TimeoutPolicy(call=1.0), "fallback_timeout": 2.0}, "fallback_timeout", "timeout.call"),
        (
            Policy,
            {"timeout": TimeoutPolicy(attempt=1.0), "breaker": BreakerPolicy(evidence_after=2.0)},
            "breaker.evidence_after",
            "timeout.attempt",
        ),
    ],
)
def test_two_limits_of_which_one_can_never_fire_are_an_error_that_names_both(make, knobs, field, named):
    error = error_of(make, **knobs)

    assert error.field == field
    assert named in str(error)
    assert error.problem
    assert error.remedy


@pytest.mark.parametrize(
    ("make", "knobs"),
    [
        (TimeoutPolicy, {"call": 1.0, "attempt": 1.0, "connect": 1.0, "read": 1.0}),
        (BreakerPolicy, {"open_for": 5.0, "open_cap": 5.0}),
        (Policy, {"timeout": TimeoutPolicy(call=1.0), "bulkhead": BulkheadPolicy(max_wait=1.0)}),
        (Policy, {"timeout": TimeoutPolicy(call=1.0), "fallback_timeout": 1.0}),
        (Policy, {"timeout": TimeoutPolicy(attempt=1.0), "breaker": BreakerPolicy(evidence_after=1.0)}),
    ],
)
def test_equal_limits_are_allowed(make, knobs):
    make(**knobs)


@pytest.mark.parametrize(
    ("make", "knobs"),
    [
        (TimeoutPolicy, {"call": 1.0, "attempt": inf, "connect": inf, "read": inf}),
        (Policy, {"timeout": TimeoutPolicy(call=0.5)}),
        (Policy, {"timeout": TimeoutPolicy(call=0.05)}),
        (Policy, {"timeout": TimeoutPolicy(call=1.0), "bulkhead": BulkheadPolicy(max_wait=inf)}),
        (Policy, {"bulkhead": BulkheadPolicy(max_wait=30.0)}),
        (Policy, {"breaker": BreakerPolicy(evidence_after=30.0)}),
    ],
)
def test_no_limit_and_what_nobody_gave_contradict_nothing(make, knobs):
    make(**knobs)


# -- what is no value


SECONDS = [
    (TimeoutPolicy, "timeout.call"),
    (TimeoutPolicy, "timeout.attempt"),
    (TimeoutPolicy, "timeout.connect"),
    (TimeoutPolicy, "timeout.read"),
    (BreakerPolicy, "breaker.slow_after"),
    (BreakerPolicy, "breaker.open_for"),
    (BreakerPolicy, "breaker.open_cap"),
    (BreakerPolicy, "breaker.max_half_open"),
    (Policy, "fallback_timeout"),
]
SECONDS_OR_NONE = [
    (RetryPolicy, "retry.min_try"),
    (RetryPolicy, "retry.max_retry_after"),
    (BulkheadPolicy, "bulkhead.max_wait"),
    (BreakerPolicy, "breaker.evidence_after"),
]
NUMBERS = [
    (RetryPolicy, "retry.attempts"),
    (BulkheadPolicy, "bulkhead.limit"),
    (BreakerPolicy, "breaker.min_calls"),
    (Policy, "fallback_limit"),
]
FINITE_NUMBERS = [
    (BreakerPolicy, "breaker.probes"),
    (BreakerPolicy, "breaker.window_calls"),
    (BreakerPolicy, "breaker.window_for"),
]
SHARES = [(BreakerPolicy, "breaker.failure_rate"), (BreakerPolicy, "breaker.slow_rate")]
OTHERS = [
    (BulkheadPolicy, "bulkhead.queue"),
    (BreakerPolicy, "breaker.open_factor"),
    (BreakerPolicy, "breaker.open_jitter"),
]


def refuses(make, path, value):
    return error_of(make, **{path.rpartition(".")[2]: value}).field == path


@pytest.mark.parametrize(("make", "path"), SECONDS + SECONDS_OR_NONE + NUMBERS + FINITE_NUMBERS + SHARES + OTHERS)
def test_what_is_no_number_is_refused(make, path):
    for value in (nan, True, False, "1", "inf", b"1", [1], 1 + 0j):
        assert refuses(make, path, value)


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.001, -inf])
@pytest.mark.parametrize(("make", "path"), SECONDS)
def test_a_limit_on_time_is_above_zero(make, path, value):
    assert refuses(make, path, value)


@pytest.mark.parametrize("value", [-1, -0.001, -inf])
@pytest.mark.parametrize(("make", "path"), SECONDS_OR_NONE)
def test_other_durations_may_be_zero_and_not_less(make, path, value):
    make(**{path.rpartition(".")[2]: 0})

    assert refuses(make, path, value)


@pytest.mark.parametrize(("make", "path"), SECONDS + SECONDS_OR_NONE)
def test_inf_is_no_limit(make, path):
    name = path.rpartition(".")[2]

    assert getattr(make(**{name: inf}), name) == inf


@pytest.mark.parametrize("value", [0, -1, 1.5, -inf])
@pytest.mark.parametrize(("make", "path"), NUMBERS + FINITE_NUMBERS)
def test_a_number_of_things_is_whole_and_at_least_one(make, path, value):
    make(**{path.rpartition(".")[2]: 1})
    make(**{path.rpartition(".")[2]: 2.0})

    assert refuses(make, path, value)


@pytest.mark.parametrize(("make", "path"), NUMBERS)
def test_a_number_may_be_without_limit(make, path):
    make(**{path.rpartition(".")[2]: inf})


@pytest.mark.parametrize(("make", "path"), FINITE_NUMBERS)
def test_what_takes_memory_has_a_limit(make, path):
    assert refuses(make, path, inf)


@pytest.mark.parametrize("value", [-1, 0.5, -inf])
def test_a_queue_may_be_of_no_length_or_any(value):
    assert [BulkheadPolicy(queue=queue).queue for queue in (0, 7, inf)] == [0, 7, inf]
    assert refuses(BulkheadPolicy, "bulkhead.queue", value)


@pytest.mark.parametrize("value", [0, -0.1, 1.0001, inf, -inf])
@pytest.mark.parametrize(("make", "path"), SHARES)
def test_a_rate_is_a_share_above_0_up_to_1(make, path, value):
    make(**{path.rpartition(".")[2]: 1})
    make(**{path.rpartition(".")[2]: 1e-9})

    assert refuses(make, path, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("open_factor", 0.999),
        ("open_jitter", -0.1),
        ("open_jitter", inf),
        ("after_max_half_open", "half_open"),
        ("after_max_half_open", None),
        ("after_max_half_open", []),
        ("auto_half_open", 1),
        ("enforce", "false"),
        ("enforce", None),
        ("open_for", 1e-7),
        ("open_cap", 1e-7),
        ("max_half_open", 1e-7),
    ],
)
def test_a_circuit_refuses_what_cannot_work(field, value):
    named = "open_for" if field == "open_cap" else field  # it follows

    assert error_of(BreakerPolicy, **{field: value}).field == f"breaker.{named}"


def test_states_may_be_as_short_as_a_microsecond():
    BreakerPolicy(open_for=1e-6, max_half_open=1e-6)


def test_a_wait_is_a_function():
    assert RetryPolicy(wait=wait_fixed(1)).wait.wait_fixed == 1
    assert refuses(RetryPolicy, "retry.wait", 3.0)


def test_a_budget_is_a_policy_or_none():
    assert RetryPolicy(budget=None).budget is None
    assert refuses(RetryPolicy, "retry.budget", 0.2)


@pytest.mark.parametrize(("section", "kind"), SECTIONS.items())
def test_a_section_is_a_policy_of_its_kind(section, kind):
    error = error_of(Policy, **{section: {"limit": 3}})

    assert error.field == section
    assert kind.__name__ in error.remedy


def test_a_config_error_is_a_value_error_that_says_field_problem_and_remedy():
    error = error_of(BulkheadPolicy, limit=0)

    assert isinstance(error, ValueError)
    assert str(error) == "bulkhead.limit: 0 is not a whole number from 1 up; give 1 or more, or inf"


# -- tuning


def test_whole_sections_are_replaced():
    policy = Policy(retry=RetryPolicy(attempts=3)).tuned(bulkhead=BulkheadPolicy(limit=40), fallback_timeout=0.2)

    assert (policy.bulkhead, policy.fallback_timeout, policy.retry.attempts) == (BulkheadPolicy(limit=40), 0.2, 3)


def test_an_unknown_section_is_an_error_with_the_nearest_name():
    with pytest.raises(UnknownName) as caught:
        Policy().tuned(bulkhed=BulkheadPolicy())

    assert caught.value.field == "bulkhed"
    assert caught.value.remedy == "did you mean 'bulkhead'?"


def test_single_fields_are_changed_by_their_paths():
    policy = Policy(bulkhead=BulkheadPolicy(queue=7)).tuned_fields(
        {"bulkhead.limit": 40, "timeout.call": 0.8, "retry.attempts": 1, "fallback_limit": 3, "bulkhead.max_wait": 0.1}
    )

    assert policy.bulkhead == BulkheadPolicy(limit=40, queue=7, max_wait=0.1)
    assert (policy.timeout.attempt, policy.retry.attempts, policy.fallback_limit) == (0.8, 1, 3)


def test_changed_fields_are_checked_together():
    policy = Policy(timeout=TimeoutPolicy(call=1.0, attempt=1.0))

    both = policy.tuned_fields({"timeout.attempt": 2.0, "timeout.call": 3.0})

    assert (both.timeout.attempt, both.timeout.call) == (2.0, 3.0)
    with pytest.raises(ConfigError):
        policy.tuned_fields({"timeout.attempt": 2.0})


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("bulkhead.limits", "did you mean 'limit'?"),
        ("bulkhaed.limit", "did you mean 'bulkhead.limit'?"),
        ("fallback_timeuot", "did you mean 'fallback_timeout'?"),
        ("limit", "known are: "),
        ("bulkhead", "did you mean"),
        ("bulkhead.", "did you mean"),
        ("fallback_limit.x", "did you mean 'fallback_limit'?"),
    ],
)
def test_an_unknown_path_is_an_error_with_the_nearest_one(path, remedy):
    with pytest.raises(UnknownName) as caught:
        Policy().tuned_fields({path: 1})

    assert caught.value.field == path
    assert remedy in caught.value.remedy


def test_tuning_leaves_the_old_policy_as_it_was():
    policy = Policy()

    policy.tuned_fields({"bulkhead.limit": 40})

    assert policy.bulkhead.limit == 20


def test_every_knob_has_a_path():
    sections = [*SECTIONS.values(), BudgetPolicy]

    assert len(KNOBS) == sum(len(fields(kind)) for kind in sections) + 3
    for path in KNOBS:
        value = Policy()
        for name in path.split("."):
            value = getattr(value, name)
        if value is not None:
            assert Policy().tuned_fields({path: value}).tuned_fields({path: value})


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=["many", "negative", "unprintable"])
def test_an_integer_that_no_float_can_hold_is_refused(number):
    assert refuses(BulkheadPolicy, "bulkhead.limit", number)


# -- an operation's own limits over the upstream's


@pytest.mark.parametrize(
    ("upstream", "operation", "expected"),
    [
        ({}, {}, (20.0, 10.0, 3.0, 5.0)),
        ({}, {"call": 2.0}, (2.0, 2.0, 2.0, 2.0)),
        ({"call": 8.0, "attempt": 6.0}, {"attempt": 1.0}, (8.0, 1.0, 1.0, 1.0)),
        ({"call": 8.0, "attempt": 6.0, "read": 6.0}, {"call": 4.0}, (4.0, 4.0, 3.0, 4.0)),
        ({"call": 8.0, "attempt": 6.0}, {"call": 30.0}, (30.0, 6.0, 3.0, 5.0)),
        ({"call": 0.8}, {"call": 30.0}, (30.0, 10.0, 3.0, 5.0)),
        ({}, {"attempt": 30.0}, (30.0, 30.0, 3.0, 5.0)),
        ({}, {"read": 30.0}, (30.0, 30.0, 3.0, 30.0)),
        ({"attempt": inf}, {"call": 2.0}, (2.0, 2.0, 2.0, 2.0)),
    ],
)
def test_an_operations_own_limits_win_and_the_others_follow(upstream, operation, expected):
    limits = TimeoutPolicy(**upstream).overlaid(TimeoutPolicy(**operation))

    assert tuple(values_of(limits).values()) == expected


@pytest.mark.parametrize(
    ("upstream", "operation", "field"),
    [
        ({"call": 8.0}, {"attempt": 9.0}, "timeout.attempt"),
        ({"attempt": 4.0}, {"read": 5.0}, "timeout.read"),
        ({"call": 4.0}, {"connect": 5.0}, "timeout.connect"),
    ],
)
def test_an_operations_own_limit_that_cannot_fire_is_an_error(upstream, operation, field):
    with pytest.raises(ConfigError) as caught:
        TimeoutPolicy(**upstream).overlaid(TimeoutPolicy(**operation))

    assert caught.value.field == field
