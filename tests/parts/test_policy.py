from dataclasses import FrozenInstanceError, fields, replace
from math import inf, nan
from typing import Any

import pytest

from gateway import BreakerPolicy, BulkheadPolicy, ConfigError, Policy, RetryPolicy, TimeoutPolicy, UnknownName
from gateway.policy import KNOBS, given

DEFAULTS = {
    TimeoutPolicy: {"call": 20.0, "attempt": 10.0, "connect": 3.0, "read": 5.0},
    RetryPolicy: {"attempts": 2, "min_try": 0.05, "max_retry_after": 10.0},
    BulkheadPolicy: {"limit": 20, "queue": 20, "max_wait": 1.0},
    BreakerPolicy: {
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
        "enforce": True,
    },
    Policy: {"fallback_timeout": 0.1, "fallback_limit": 10},
}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_the_defaults_are_those_of_the_design(kind: type) -> None:
    policy = kind()

    assert {name: getattr(policy, name) for name in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_a_policy_is_a_frozen_value_with_keywords_only(kind: type) -> None:
    policy = kind()

    with pytest.raises(FrozenInstanceError):
        setattr(policy, fields(kind)[0].name, 1)
    with pytest.raises(TypeError):
        kind(1)
    assert policy == kind()
    assert all(field.kw_only for field in fields(kind))


@pytest.mark.parametrize(
    ("told", "follows"),
    [
        ({"call": 0.8}, {"attempt": 0.8, "connect": 0.8, "read": 0.8}),
        ({"call": 60.0}, {"attempt": 10.0, "connect": 3.0, "read": 5.0}),
        ({"attempt": 4.0}, {"call": 20.0, "connect": 3.0, "read": 4.0}),
        ({"attempt": 30.0}, {"call": 30.0}),
        ({"read": 30.0}, {"call": 30.0, "attempt": 30.0}),
        ({"read": 30.0, "call": 60.0}, {"attempt": 30.0}),
        ({"attempt": inf}, {"call": 20.0}),
        ({"call": inf}, {"attempt": 10.0}),
    ],
)
def test_a_limit_that_nobody_gave_follows_those_that_were_given(
    told: dict[str, float], follows: dict[str, float]
) -> None:
    policy = TimeoutPolicy(**told)

    assert {name: getattr(policy, name) for name in follows} == follows
    assert {name for name in ("call", "attempt", "connect", "read") if given(getattr(policy, name))} == set(told)


def test_what_followed_follows_again_when_a_policy_is_replaced() -> None:
    shorter = replace(TimeoutPolicy(call=60.0), call=0.5)
    counted = replace(BreakerPolicy(), window_calls=50)
    timed = replace(counted, window_calls=None)
    longer = replace(BreakerPolicy(), open_for=90.0)

    assert (shorter.attempt, shorter.read) == (0.5, 0.5)
    assert (counted.window_for, counted.window_calls) == (None, 50)
    assert (timed.window_for, timed.window_calls) == (10.0, None)
    assert longer.open_cap == 90.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TimeoutPolicy(call=1.0, attempt=2.0), "timeout.attempt"),
        (lambda: TimeoutPolicy(attempt=1.0, connect=2.0), "timeout.connect"),
        (lambda: TimeoutPolicy(attempt=1.0, read=2.0), "timeout.read"),
        (lambda: TimeoutPolicy(call=1.0, read=2.0), "timeout.read"),
        (lambda: BreakerPolicy(window_for=10.0, window_calls=10), "breaker.window_for"),
        (lambda: BreakerPolicy(open_for=10.0, open_cap=5.0), "breaker.open_cap"),
        (
            lambda: Policy(timeout=TimeoutPolicy(call=1.0), bulkhead=BulkheadPolicy(max_wait=2.0)),
            "bulkhead.max_wait",
        ),
        (lambda: Policy(timeout=TimeoutPolicy(call=1.0), fallback_timeout=2.0), "fallback_timeout"),
        (
            lambda: Policy(timeout=TimeoutPolicy(attempt=1.0), breaker=BreakerPolicy(evidence_after=2.0)),
            "breaker.evidence_after",
        ),
    ],
    ids=range(9),
)
def test_limits_that_contradict_each_other_are_refused_where_both_were_given(make: Any, field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make()

    assert raised.value.field == field
    assert raised.value.problem
    assert raised.value.remedy
    assert str(raised.value) == f"{field}: {raised.value.problem}; {raised.value.remedy}"


def test_equal_limits_and_no_limits_contradict_nothing() -> None:
    equal = TimeoutPolicy(call=1.0, attempt=1.0, connect=1.0, read=1.0)
    endless = Policy(
        timeout=TimeoutPolicy(call=1.0, attempt=inf),
        bulkhead=BulkheadPolicy(limit=inf, queue=inf, max_wait=inf),
        fallback_limit=inf,
        fallback_timeout=inf,
    )

    assert equal.read == equal.call
    assert endless.bulkhead.limit == inf


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *(
            (TimeoutPolicy, name, value)
            for name in ("call", "attempt", "connect", "read")
            for value in (0, -1, nan, "1")
        ),
        *((RetryPolicy, "attempts", value) for value in (0, 1.5, True, "2")),
        *((RetryPolicy, name, value) for name in ("min_try", "max_retry_after") for value in (-0.1, nan, None)),
        (RetryPolicy, "wait", 1.0),
        *((BulkheadPolicy, "limit", value) for value in (0, -1, 2.5, nan, "20", True)),
        *((BulkheadPolicy, "queue", value) for value in (-1, 0.5, nan)),
        *((BulkheadPolicy, "max_wait", value) for value in (-1.0, nan)),
        *((BreakerPolicy, "window_for", value) for value in (0, 0.5, 10.5, inf, nan)),
        *((BreakerPolicy, name, value) for name in ("window_calls", "min_calls", "probes") for value in (0, 1.5)),
        *((BreakerPolicy, name, inf) for name in ("window_calls", "probes")),
        *((BreakerPolicy, name, value) for name in ("failure_rate", "slow_rate") for value in (0, 1.01, -0.5, nan)),
        *(
            (BreakerPolicy, name, value)
            for name in ("slow_after", "open_for", "open_cap", "max_half_open")
            for value in (0, -1)
        ),
        (BreakerPolicy, "open_factor", 0.5),
        (BreakerPolicy, "open_jitter", -0.1),
        (BreakerPolicy, "after_max_half_open", "half_open"),
        (BreakerPolicy, "evidence_after", -1),
        *((Policy, "fallback_timeout", value) for value in (0, -1, nan)),
        *((Policy, "fallback_limit", value) for value in (0, 1.5)),
        (Policy, "timeout", 2.0),
        (Policy, "bulkhead", BreakerPolicy()),
    ],
)
def test_a_number_that_cannot_work_is_refused_by_the_name_of_its_field(kind: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as raised:
        kind(**{field: value})

    assert raised.value.field.split(".")[-1] == field


def test_limits_of_an_operation_lie_over_those_of_its_upstream() -> None:
    upstream = TimeoutPolicy(call=20.0, attempt=10.0, read=8.0)

    patient = upstream.overlaid(TimeoutPolicy(attempt=15.0))
    hasty = upstream.overlaid(TimeoutPolicy(call=2.0))

    assert (patient.call, patient.attempt, patient.read) == (20.0, 15.0, 8.0)
    assert (hasty.call, hasty.attempt, hasty.read) == (2.0, 2.0, 2.0)
    with pytest.raises(ConfigError):
        upstream.overlaid(TimeoutPolicy(attempt=30.0))


def test_tuning_replaces_whole_sections() -> None:
    policy = Policy(bulkhead=BulkheadPolicy(limit=5, queue=7))

    tuned = policy.tuned(bulkhead=BulkheadPolicy(limit=40), fallback_limit=3)

    assert (tuned.bulkhead.limit, tuned.bulkhead.queue, tuned.fallback_limit) == (40, 20, 3)
    assert policy.bulkhead.limit == 5
    with pytest.raises(UnknownName, match="did you mean 'bulkhead'"):
        policy.tuned(bulkhed=BulkheadPolicy())


def test_tuning_by_fields_changes_these_and_nothing_else() -> None:
    policy = Policy(timeout=TimeoutPolicy(call=30.0), bulkhead=BulkheadPolicy(limit=5, queue=7))

    tuned = policy.tuned_fields({"bulkhead.limit": 40, "timeout.call": 0.5, "fallback_timeout": 0.2})

    assert (tuned.bulkhead.limit, tuned.bulkhead.queue) == (40, 7)
    assert (tuned.timeout.call, tuned.timeout.attempt) == (0.5, 0.5)
    assert tuned.fallback_timeout == 0.2
    assert tuned.breaker == policy.breaker


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("bulkhead.limt", "did you mean 'bulkhead.limit'"),
        ("bulkhead", "known are"),
        ("limit", "there is no 'limit'"),
        ("fallback_timeout.x", "there is no"),
        ("nothing.like.it", "there is no"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known(path: str, said: str) -> None:
    with pytest.raises(UnknownName) as raised:
        Policy().tuned_fields({path: 1})

    assert raised.value.field == path
    assert said in str(raised.value) or "did you mean" in str(raised.value)
    assert isinstance(raised.value, LookupError)


def test_every_knob_has_a_path() -> None:
    assert "bulkhead.limit" in KNOBS
    assert "fallback_timeout" in KNOBS
    assert len(KNOBS) == len(set(KNOBS)) == sum(len(fields(kind)) for kind in DEFAULTS) - 4
