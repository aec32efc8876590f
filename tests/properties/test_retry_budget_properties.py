"""Promise 5: in any stretch of time, retries <= ratio x calls + minimum x seconds + burst; and no call is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import combinations_with_replacement
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from gateway import BudgetPolicy, BulkheadPolicy, Failed, Gateway, NotSent, Policy, RetryPolicy
from gateway.retry import RetryBudget
from tests.support import NEVER_OPENS, assert_all_gone, ended, now

BUDGETS = st.builds(
    BudgetPolicy,
    ratio=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    minimum=st.sampled_from([0.0, 0.5, 3.0, 10.0]),
    burst=st.integers(1, 12),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("time"), st.floats(0.0, 3.0)),
        st.tuples(st.just("calls"), st.integers(1, 30)),
        st.tuples(st.just("retries"), st.integers(1, 30)),
    ),
    max_size=40,
)


@given(BUDGETS, STEPS)
@settings(max_examples=300, deadline=None)
def test_in_any_stretch_of_time_retries_stay_within_the_budget(policy: BudgetPolicy, steps) -> None:
    at, calls, retries = 0.0, 0, 0
    budget = RetryBudget(policy, clock=lambda: at)
    seen = [(at, calls, retries)]

    for what, amount in steps:
        if what == "time":
            at += amount
        elif what == "calls":
            budget.deposit(amount)
            calls += amount
        else:
            retries += sum(budget.withdraw() for _ in range(amount))
        seen.append((at, calls, retries))

    for before, after in combinations_with_replacement(seen, 2):
        seconds, paid_in, paid_out = (y - x for x, y in zip(before, after, strict=True))
        assert paid_out <= policy.ratio * paid_in + policy.minimum * seconds + policy.burst + 1e-6


@pytest.fixture
def gate() -> Iterator[Gateway]:
    gate = Gateway()
    yield gate
    assert_all_gone(gate)


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", range(20))
async def test_all_retries_of_an_upstream_stay_within_its_budget_and_no_call_is_lost(gate: Gateway, seed: int) -> None:
    random = Random(seed)
    budget = BudgetPolicy(
        ratio=random.choice([0.0, 0.1, 0.2]), minimum=random.choice([0.1, 0.5, 1.0]), burst=random.randint(1, 6)
    )
    retry = RetryPolicy(attempts=random.randint(2, 4), budget=budget, wait=wait_none(), wait_throttled=None)
    policy = Policy(retry=retry, breaker=NEVER_OPENS, bulkhead=BulkheadPolicy(limit=inf))
    up = gate.upstream("up", policy=policy)
    sent: list[tuple[float, bool]] = []
    share = random.uniform(0.5, 1.0)

    async def ask(tries: list[None]) -> None:
        sent.append((now(), bool(tries)))
        tries.append(None)
        await asyncio.sleep(random.uniform(0.0, 0.3))
        if random.random() < share:
            raise NotSent("no")

    operations = [up.operation(name=f"ask {n}", idempotent=random.choice([True, None]))(ask) for n in range(3)]

    async def call() -> object:
        await asyncio.sleep(random.uniform(0.0, 10.0))
        return await ended(random.choice(operations)([]))

    endings = await asyncio.gather(*(call() for _ in range(200)))

    snapshot = up.snapshot()
    assert {type(ending) for ending in endings} <= {type(None), Failed}
    assert snapshot.counts.asked == snapshot.counts.live + snapshot.counts.failed == 200
    assert snapshot.counts.retries == sum(again for _, again in sent)
    assert snapshot.budget is not None
    assert snapshot.budget.suppressed > 0
    for begin in range(len(sent)):
        first = again = 0
        for at, is_retry in sent[begin:]:
            first, again = first + (not is_retry), again + is_retry
            seconds = at - sent[begin][0]
            assert again <= budget.ratio * first + budget.minimum * seconds + budget.burst + 1e-6
