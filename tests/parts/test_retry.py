import logging
from datetime import datetime
from math import inf
from random import Random

import pytest
from tenacity import RetryCallState, wait_exponential, wait_fixed, wait_none, wait_random_exponential

from gateway import NotSent, Outcome, Retry, RetryPolicy
from gateway.outcome import retry_after_of

FAILED = Outcome.FAILED
BOOM = ConnectionError("no")


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not FAILED])
def test_only_a_failure_is_tried_again(outcome: Outcome) -> None:
    retry = Retry(RetryPolicy(attempts=5, wait=wait_none()))

    assert retry.pause(1, BOOM, outcome, inf) is None
    assert retry.pause(1, BOOM, FAILED, inf) == 0.0


@pytest.mark.parametrize(("attempts", "again"), [(1, [False]), (2, [True, False]), (4, [True, True, True, False])])
def test_there_are_as_many_tries_as_the_policy_says(attempts: int, again: list[bool]) -> None:
    retry = Retry(RetryPolicy(attempts=attempts, wait=wait_none()))

    assert [retry.pause(n, BOOM, FAILED, inf) is not None for n in range(1, attempts + 1)] == again


def test_the_default_wait_is_full_jitter_that_doubles_up_to_two_seconds() -> None:
    retry = Retry(RetryPolicy(attempts=20), random=Random(1))

    longest = {n: max(retry.pause(n, BOOM, FAILED, inf) or 0.0 for _ in range(500)) for n in (1, 2, 3, 5, 6, 9)}
    shortest = min(retry.pause(9, BOOM, FAILED, inf) or 0.0 for _ in range(500))

    assert longest == pytest.approx({1: 0.1, 2: 0.2, 3: 0.4, 5: 1.6, 6: 2.0, 9: 2.0}, rel=0.02)
    assert all(longest[n] <= 0.1 * 2 ** (n - 1) for n in longest)
    assert shortest < 0.05


def test_a_seed_makes_the_jitter_repeatable() -> None:
    one, same, other = (Retry(RetryPolicy(attempts=9), random=Random(seed)) for seed in (7, 7, 8))

    pauses = [[retry.pause(3, BOOM, FAILED, inf) for _ in range(20)] for retry in (one, same, other)]

    assert pauses[0] == pauses[1]
    assert pauses[0] != pauses[2]


def test_any_wait_of_tenacity_serves_and_sees_the_error_and_the_number_of_the_try() -> None:
    seen = []

    def wait(state) -> float:
        seen.append((state.attempt_number, state.outcome.exception()))
        return 0.25

    assert Retry(RetryPolicy(wait=wait)).pause(1, BOOM, FAILED, inf) == 0.25
    assert seen == [(1, BOOM)]
    assert Retry(RetryPolicy(attempts=5, wait=wait_exponential(multiplier=1))).pause(3, BOOM, FAILED, inf) == 4.0
    combined = wait_fixed(1) + wait_random_exponential(multiplier=0.1, max=1)
    assert 1.0 <= (Retry(RetryPolicy(wait=combined)).pause(1, BOOM, FAILED, inf) or 0.0) <= 2.0


def test_a_wait_strategy_is_told_of_the_failure_as_by_tenacity() -> None:
    seen: list[RetryCallState] = []

    def wait(state: RetryCallState) -> float:
        seen.append(state)
        return 0.0

    Retry(RetryPolicy(wait=wait)).pause(1, BOOM, FAILED, inf)

    (state,) = seen
    outcome = state.outcome
    assert outcome is not None
    assert (outcome.failed, outcome.exception(), outcome.attempt_number) == (True, BOOM, 1)
    assert state.outcome is outcome
    assert (state.seconds_since_start, state.idle_for) == (0.0, 0.0)
    assert f"failed ({type(BOOM).__name__}" in repr(state)


def test_a_pause_and_a_try_worth_the_name_must_fit_before_the_end() -> None:
    retry = Retry(RetryPolicy(wait=wait_fixed(1.0), min_try=0.5))

    assert retry.pause(1, BOOM, FAILED, 1.5) == 1.0
    assert retry.pause(1, BOOM, FAILED, 1.49) is None


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [(None, 0.2), (0.1, 0.2), (0.5, 0.5), (10.0, 10.0), (10.1, None), (inf, None)],
)
def test_what_an_error_says_of_when_to_come_back_is_honoured_up_to_a_limit(
    retry_after: float | None, pause: float | None
) -> None:
    retry = Retry(RetryPolicy(wait=wait_fixed(0.2)))

    assert retry.pause(1, NotSent("busy", retry_after=retry_after), FAILED, 60.0) == pause


def test_a_time_to_come_back_that_does_not_fit_forbids_the_retry() -> None:
    retry = Retry(RetryPolicy(wait=wait_none()))

    assert retry.pause(1, NotSent("busy", retry_after=3.0), FAILED, 2.0) is None


@pytest.mark.parametrize("strange", ["120", datetime(2026, 1, 1), True, float("nan"), [1]])  # noqa: DTZ001
def test_a_time_to_come_back_that_is_no_number_of_seconds_is_none(strange: object) -> None:
    error = ConnectionError("no")
    error.retry_after = strange  # type: ignore[attr-defined]

    assert retry_after_of(error) is None
    assert Retry(RetryPolicy(wait=wait_none())).pause(1, error, FAILED, inf) == 0.0


@pytest.mark.parametrize(("wait", "pause"), [(-1.0, 0.0), (inf, None), (float("nan"), None)])
def test_a_wait_that_is_no_time_to_wait(wait: float, pause: float | None) -> None:
    assert Retry(RetryPolicy(wait=lambda _: wait)).pause(1, BOOM, FAILED, 60.0) == pause


def test_a_wait_that_raises_is_logged_and_means_no_retry(caplog: pytest.LogCaptureFixture) -> None:
    def wait(_) -> float:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "gateway"):
        pause = Retry(RetryPolicy(wait=wait)).pause(1, BOOM, FAILED, inf)

    assert pause is None
    assert "RetryPolicy.wait raised" in caplog.text
