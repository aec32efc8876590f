"""One account of retries: what is paid in, what is paid out, and that time alone never pays for a storm."""

from __future__ import annotations

from math import inf

import pytest

from gateway import BudgetPolicy
from gateway.retry import BudgetSnapshot, RetryBudget
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


def spent(budget: RetryBudget) -> int:
    """How many retries it grants in one go."""
    granted = 0
    while budget.withdraw():
        granted += 1
    return granted


def test_it_begins_with_a_burst(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(burst=7), clock=clock)

    assert spent(budget) == 7


def test_five_calls_pay_for_one_retry_to_the_letter(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.2, minimum=0.0, burst=1), clock=clock)
    spent(budget)

    granted = []
    for _ in range(100):
        budget.deposit()
        granted.append(budget.withdraw())

    assert granted == [False, False, False, False, True] * 20


def test_time_pays_the_minimum(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=10.0, burst=100), clock=clock)
    spent(budget)

    clock.now += 0.35

    assert spent(budget) == 3


@pytest.mark.parametrize("idle", [60.0, 1e9])
def test_what_is_saved_up_is_never_more_than_the_burst(clock: Clock, idle: float) -> None:
    budget = RetryBudget(BudgetPolicy(burst=10), clock=clock)

    clock.now += idle
    budget.deposit(1_000_000)

    assert spent(budget) == 10


def test_a_clock_that_goes_back_pays_for_no_second_twice(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=1.0, burst=10), clock=clock)
    spent(budget)

    clock.now -= 5.0
    after_the_jump = spent(budget)
    clock.now += 2.0

    on_the_way_back = spent(budget)
    clock.now += 5.0

    assert (after_the_jump, on_the_way_back, spent(budget)) == (0, 0, 2)


def test_a_retry_that_is_not_granted_is_counted_and_costs_nothing(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=1.0, burst=1), clock=clock)
    spent(budget)

    clock.now += 0.5

    assert not budget.withdraw()
    assert budget.snapshot() == BudgetSnapshot(left=0.5, suppressed=2)


def test_an_endless_ratio_pays_nothing_without_a_call(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=inf, minimum=0.0, burst=2), clock=clock)

    granted = spent(budget)
    budget.deposit()

    assert (granted, spent(budget)) == (2, 2)


def test_without_an_end_everything_is_granted(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(minimum=inf, burst=inf), clock=clock)

    assert all(budget.withdraw() for _ in range(10_000))


def test_an_endless_minimum_refills_the_burst_whenever_time_passes(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=inf, burst=3), clock=clock)

    first = spent(budget)
    clock.now += 1e-6

    assert (first, spent(budget)) == (3, 3)


def test_tuning_keeps_what_is_in_the_account_up_to_the_new_burst(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(minimum=1.0, burst=10), clock=clock)
    for _ in range(4):
        budget.withdraw()

    budget.policy = BudgetPolicy(minimum=1.0, burst=20)
    kept = budget.snapshot().left
    budget.policy = BudgetPolicy(minimum=1.0, burst=2)

    assert (kept, budget.snapshot().left) == (6.0, 2.0)


def test_time_before_tuning_is_paid_by_the_old_numbers(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=1.0, burst=10), clock=clock)
    spent(budget)

    clock.now += 3.0
    budget.policy = BudgetPolicy(ratio=0.0, minimum=100.0, burst=10)

    assert budget.snapshot().left == 3.0


def test_another_clock_pays_from_now_on(clock: Clock) -> None:
    budget = RetryBudget(BudgetPolicy(ratio=0.0, minimum=1.0, burst=10), clock=clock)
    spent(budget)
    other = Clock()
    other.now = 5.0

    budget.restart(other)
    other.now += 1.0

    assert spent(budget) == 1


def test_it_says_by_which_numbers_it_goes(clock: Clock) -> None:
    policy = BudgetPolicy(burst=3)

    assert RetryBudget(policy, clock=clock).policy is policy
