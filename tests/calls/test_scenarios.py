"""The classic scenarios: what happens to a service when something it depends on misbehaves.

Each runs in virtual time against the real engine, and asserts figures that were computed by hand. The unprotected side
is plain asyncio, as people write it. `pytest -q -s tests/calls/test_scenarios.py` prints all figures as a table; a
dagger marks those that a small model had computed before they were measured here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from tenacity import wait_fixed, wait_incrementing, wait_none
from tenacity.wait import wait_base

from gateway import (
    BreakerPolicy,
    BudgetPolicy,
    BulkheadFull,
    BulkheadPolicy,
    CallFinished,
    CircuitChanged,
    CircuitOpen,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    NotSent,
    Outcome,
    Policy,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    UnknownTimeout,
    handler,
)
from gateway.testing import Faults, assert_nothing_left

pytestmark = pytest.mark.virtual_time

NO_LIMIT = TimeoutPolicy(call=inf, attempt=inf)
NO_RETRY = RetryPolicy(attempts=1)
NO_CIRCUIT = BreakerPolicy(enforce=False)
NO_BULKHEAD = BulkheadPolicy(limit=inf)
NO_QUEUE = BulkheadPolicy(limit=20, queue=0)

# -- the table

TABLE: list[tuple[str, str, object, object]] = []


def expect(scenario: str, what: str, expected: Any, measured: Any) -> None:
    TABLE.append((scenario, what, expected, measured))
    assert measured == pytest.approx(expected, abs=1e-6)  # instants are told apart to the nearest microsecond


def shown(figure: object) -> str:
    if isinstance(figure, list | tuple):
        return ", ".join(shown(one) for one in figure)
    return f"{figure:,.7g}" if isinstance(figure, int | float) else str(figure)


@pytest.fixture(scope="session", autouse=True)
def print_the_table() -> Iterator[None]:
    yield
    lines = ["", "", "| # | figure | expected | measured |", "|---|---|---|---|"]
    lines += [f"| {number} | {what} | {shown(want)} | {shown(got)} |" for number, what, want, got in TABLE]
    sys.stdout.write("\n".join(lines) + "\n")


# -- the stage


@pytest_asyncio.fixture
async def gate() -> AsyncIterator[Gateway]:
    gate = Gateway()

    yield gate

    assert_nothing_left(gate)
    await gate.close()


def now() -> float:
    return asyncio.get_running_loop().time()


class Stopwatch:
    def __init__(self) -> None:
        self.began = now()

    @property
    def seconds(self) -> float:
        return now() - self.began

    async def wait_until(self, seconds: float) -> None:
        await asyncio.sleep(self.began + seconds - now())


@dataclass
class Visit:
    """How one caller fared; seconds."""

    asked: float
    waited: float = 0.0
    took: float = 0.0
    error: Exception | None = None


Page = Callable[[], Awaitable[object]]


@dataclass
class Service:
    """A servlet-like service: so many workers, a line before them; a visitor keeps a worker for the whole page."""

    workers: int = 200
    busy: int = 0
    peak: int = 0  # for longer than an instant
    all_busy_from: list[float] = field(default_factory=list)
    all_busy_for: float = 0.0

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.workers)
        self._clock = Stopwatch()
        self._looked_at = 0.0

    async def visit(self, page: Page) -> Visit:
        watch, visit = Stopwatch(), Visit(self._clock.seconds)
        async with self._free:
            visit.waited = watch.seconds
            self._enter()
            try:
                await page()
            except Exception as error:
                visit.error = error
            finally:
                self._leave()
        visit.took = watch.seconds
        return visit

    def _enter(self) -> None:
        self._look()
        self.busy += 1
        if self.busy == self.workers:
            self.all_busy_from.append(self._clock.seconds)

    def _leave(self) -> None:
        self._look()
        if self.busy == self.workers:
            self.all_busy_for += self._clock.seconds - self.all_busy_from[-1]
        self.busy -= 1

    def _look(self) -> None:
        if self._clock.seconds > self._looked_at:
            self.peak = max(self.peak, self.busy)
        self._looked_at = self._clock.seconds


async def visit_in_waves(service: Service, waves: Mapping[float, Sequence[Page]]) -> dict[float, list[Visit]]:
    """Each wave comes at its second. A place that is given back in the same instant is free for it."""
    watch = Stopwatch()
    visits: dict[float, list[asyncio.Task[Visit]]] = {}
    async with asyncio.TaskGroup() as group:
        for second, pages in waves.items():
            await watch.wait_until(second)
            visits[second] = [group.create_task(service.visit(page)) for page in pages]
    return {second: [task.result() for task in tasks] for second, tasks in visits.items()}


async def outcome_of(awaitable: Awaitable[object]) -> Visit:
    """Ask, and tell how long it took."""
    watch, visit = Stopwatch(), Visit(0.0)
    try:
        await awaitable
    except Exception as error:
        visit.error = error
    visit.took = watch.seconds
    return visit


async def hang() -> None:
    await asyncio.Event().wait()


async def b_answers_after_a_minute() -> str:
    await asyncio.sleep(60.0)
    return "b"


async def page_without_b() -> str:
    return "page"


def third_of(visits: dict[float, list[Visit]]) -> tuple[list[Visit], list[Visit]]:
    """The third hundred of S1 to S3: half of them need B, half do not."""
    return visits[20.0][:50], visits[20.0][50:]


def the_three_hundred(page_with_b: Page) -> dict[float, list[Page]]:
    return {0.0: [page_with_b] * 100, 10.0: [page_with_b] * 100, 20.0: [page_with_b] * 50 + [page_without_b] * 50}


def longest(visits: Sequence[Visit], what: str) -> float:
    """The longest of them; it is the shortest too, since all of a wave fare alike."""
    seconds = [getattr(visit, what) for visit in visits]
    assert max(seconds) == pytest.approx(min(seconds), abs=1e-6)
    return max(seconds)


# -- S1, S2, S3: a service with 200 workers, and B that hangs


@pytest.mark.parametrize("by", ["plain asyncio", "a gateway with all limits off"])
async def test_s1_a_hanging_upstream_takes_all_workers_and_pages_that_do_not_need_it_wait(
    gate: Gateway, by: str
) -> None:
    off = Policy(timeout=NO_LIMIT, retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=NO_BULKHEAD)
    ask_b = gate.upstream("b", policy=off).operation(idempotent=True)(b_answers_after_a_minute)
    service = Service()

    visits = await visit_in_waves(
        service, the_three_hundred(b_answers_after_a_minute if by == "plain asyncio" else ask_b)
    )

    with_b, without_b = third_of(visits)
    expect("S1", f"all 200 workers busy from, s ({by})", 10.0, service.all_busy_from[0])
    expect("S1", f"a page without B waits, s ({by})", 40.0, longest(without_b, "waited"))
    expect("S1", f"a page with B is over after, s † ({by})", 100.0, longest(with_b, "took"))


async def test_s1_under_the_default_policy_no_page_waits(gate: Gateway) -> None:
    ask_b = gate.upstream("b").operation(idempotent=True)(b_answers_after_a_minute)
    service = Service()

    visits = await visit_in_waves(service, the_three_hundred(ask_b))

    with_b, without_b = third_of(visits)
    expect("S1", "ours, default policy: a page without B waits, s", 0.0, longest(without_b, "waited"))
    expect("S1", "ours, default policy: a page with B waits, s", 0.0, longest(with_b, "waited"))
    assert service.all_busy_from == []
    assert max(visit.took for wave in visits.values() for visit in wave) < 11.0  # one try of 10 s, and a pause


async def test_s2_a_limit_on_time_gives_the_workers_back(gate: Gateway) -> None:
    five_seconds = Policy(timeout=TimeoutPolicy(attempt=5.0), retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=NO_BULKHEAD)
    ask_b = gate.upstream("b", policy=five_seconds).operation(idempotent=True)(b_answers_after_a_minute)
    service = Service()

    visits = await visit_in_waves(service, the_three_hundred(ask_b))

    expect("S2", "workers busy, at most", 100, service.peak)
    expect("S2", "every call of the first wave is over after, s", 5.0, longest(visits[0.0], "took"))
    expect("S2", "the third wave waits, s †", 0.0, longest(visits[20.0], "waited"))
    assert all(isinstance(visit.error, FailedTimeout) for visit in visits[0.0])
    assert {visit.error.waited_for for visit in visits[0.0]} == {"attempt"}


@pytest.mark.parametrize("queue", [0, 20])
async def test_s3_a_bulkhead_keeps_the_workers_for_the_other_pages(gate: Gateway, queue: int) -> None:
    twenty = Policy(
        timeout=NO_LIMIT, retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=BulkheadPolicy(limit=20, queue=queue)
    )
    ask_b = gate.upstream("b", policy=twenty).operation(idempotent=True)(b_answers_after_a_minute)
    service = Service()

    visits = await visit_in_waves(service, the_three_hundred(ask_b))

    _, without_b = third_of(visits)
    expect("S3", f"a page without B waits, s † (queue={queue})", 0.0, longest(without_b, "waited"))
    expect("S3", f"workers busy, at most (queue={queue})", 20 + queue, service.peak)
    assert [visit.error for visit in visits[0.0][:20]] == [None] * 20
    assert all(isinstance(visit.error, BulkheadFull) for visit in visits[0.0][20:])


# -- S4: a hundred users who refresh the page every ten seconds, while B takes a minute


async def waves_of(ask: Callable[[int], Awaitable[object]], *, leave: bool) -> list[asyncio.Task[Visit]]:
    """A hundred users ask, and ask again, six times in all; those who leave give up on what they had asked."""
    watch, visits = Stopwatch(), []
    before: list[asyncio.Task[Visit]] = []
    for seconds in range(0, 60, 10):
        await watch.wait_until(seconds)
        if leave:
            for visit in before:
                visit.cancel()
        before = [asyncio.ensure_future(outcome_of(ask(user))) for user in range(100)]
        visits += before
    await asyncio.wait(visits)
    return visits


async def test_s4_unprotected_six_hundred_requests_pile_up() -> None:
    service = Service()

    visits = await visit_in_waves(service, {float(at): [b_answers_after_a_minute] * 100 for at in range(0, 60, 10)})

    begun_by_50 = sum(at + visit.waited <= 50.0 for at, wave in visits.items() for visit in wave)
    expect("S4", "unprotected: requests in 50 s", 600, sum(map(len, visits.values())))
    expect("S4", "unprotected: of them queued at 50 s", 400, 600 - begun_by_50)
    expect("S4", "unprotected: a page of the last wave is over after, s †", 140.0, longest(visits[50.0], "took"))


async def test_s4_callers_who_leave_take_their_calls_with_them(gate: Gateway) -> None:
    off = Policy(timeout=NO_LIMIT, retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=NO_BULKHEAD)
    b = gate.upstream("b", policy=off)

    @b.operation(idempotent=True)
    async def ask_b(user: int) -> str:
        return await b_answers_after_a_minute()

    visits = await waves_of(ask_b, leave=True)

    counts = b.snapshot().counts
    expect("S4", "ours, callers who leave: in flight, at most", 100, b.snapshot().bulkhead.peak)
    expect("S4", "ours, callers who leave: sent", 600, counts.attempts)
    expect("S4", "ours, callers who leave: answered", 100, counts.live)
    assert sum(visit.cancelled() for visit in visits) == counts.cancelled == 500


async def test_s4_callers_who_stay_share_what_they_asked(gate: Gateway) -> None:
    off = Policy(timeout=NO_LIMIT, retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=NO_BULKHEAD)
    b = gate.upstream("b", policy=off)

    @b.operation(idempotent=True, coalesce=True)
    async def ask_b(user: int) -> str:
        return await b_answers_after_a_minute()

    visits = await waves_of(ask_b, leave=False)

    counts = b.snapshot().counts
    expect("S4", "ours, callers who stay, coalesced: sent", 100, counts.attempts)
    expect("S4", "ours, callers who stay, coalesced: answered with another's answer", 500, counts.coalesced)
    expect(
        "S4", "ours, callers who stay, coalesced: the last wave waits, s", 10.0, longest(results(visits[500:]), "took")
    )


def results(visits: Sequence[asyncio.Task[Visit]]) -> list[Visit]:
    return [visit.result() for visit in visits]


# -- S5: the law of the pool


async def ten_a_second(seconds: int, ask: Callable[[], Awaitable[object]]) -> list[Visit]:
    """Ask ten times a second; the callers, and when they asked."""

    async def caller(asked: float) -> Visit:
        visit = await outcome_of(ask())
        visit.asked = asked
        return visit

    watch = Stopwatch()
    async with asyncio.TaskGroup() as group:
        callers = []
        for number in range(10 * seconds):
            await watch.wait_until(number / 10)
            callers.append(group.create_task(caller(number / 10)))
    return [caller.result() for caller in callers]


async def test_s5_ten_calls_a_second_that_take_a_minute_need_600_places(gate: Gateway) -> None:
    open_house = Policy(timeout=NO_LIMIT, bulkhead=NO_BULKHEAD)
    just_enough = Policy(timeout=NO_LIMIT, bulkhead=BulkheadPolicy(limit=600, queue=0))
    one_too_few = Policy(timeout=NO_LIMIT, bulkhead=BulkheadPolicy(limit=599, queue=0))
    names = {"open house": open_house, "just enough": just_enough, "one too few": one_too_few}
    asks = [gate.upstream(name, policy=policy).operation(b_answers_after_a_minute) for name, policy in names.items()]

    everybody = await asyncio.gather(*(ten_a_second(120, ask) for ask in asks))

    rejected = [sum(visit.error is not None for visit in visits) for visits in everybody]
    expect("S5", "places needed for 10 calls/s of 60 s", 600, gate["open house"].bulkhead.peak)
    expect("S5", "rejected with 600 places", 0, rejected[1])
    assert rejected[2] > 0


async def test_s5_two_hundred_places_are_full_after_20_seconds(gate: Gateway) -> None:
    two_hundred = Policy(timeout=NO_LIMIT, bulkhead=BulkheadPolicy(limit=200, queue=0))
    ask = gate.upstream("b", policy=two_hundred).operation(b_answers_after_a_minute)
    service = Service()

    visits = await ten_a_second(30, ask)
    waits = await ten_a_second(30, lambda: service.visit(b_answers_after_a_minute))

    full_at = next(visit.asked for visit in visits if visit.error is not None)
    waits_at = next(visit.asked for visit in waits if visit.took > 60.5)
    expect("S5", "plain asyncio, 200 workers: the first who has to wait comes at, s", 20.0, waits_at)
    expect("S5", "ours, 200 places: the first who is rejected comes at, s", 20.0, full_at)


# -- S9, S10: payments


class Provider:
    """A payment provider. It approves ten seconds after a request reached it, whether or not anybody still listens."""

    def __init__(self) -> None:
        self.requests = 0
        self.charges: list[float] = []
        self._watch = Stopwatch()
        self._work: set[asyncio.Task[str]] = set()

    async def pay(self) -> str:
        self.requests += 1
        work = asyncio.create_task(self._approve())
        self._work.add(work)
        return await asyncio.shield(work)

    async def _approve(self) -> str:
        await asyncio.sleep(10.0)
        self.charges.append(self._watch.seconds)
        return "approved"

    async def finish(self) -> None:
        await asyncio.gather(*self._work)


async def test_s9_a_payment_that_may_have_been_made_is_unknown_and_nothing_papers_over_it(gate: Gateway) -> None:
    provider, asked_tiers, finished = Provider(), [], []
    gate.on(CallFinished)(finished.append)
    tiers = [handler(asked_tiers.append), Static("declined")]
    payments = gate.upstream("payments", policy=Policy(timeout=TimeoutPolicy(attempt=5.0)))
    pay = payments.operation(idempotent=False, fallback=tiers)(provider.pay)

    visit = await outcome_of(pay())

    expect("S9", "limit 5: the caller knows after, s", 5.0, visit.took)
    expect("S9", "limit 5: the outcome", "unknown", str(visit.error.outcome))
    assert isinstance(visit.error, UnknownTimeout)
    assert not isinstance(visit.error, Failed)
    assert [event.outcome for event in finished] == [Outcome.UNKNOWN]
    assert asked_tiers == []
    assert len(visit.error.__notes__) == 2  # each tier says why it was not asked
    await provider.finish()
    expect("S9", "limit 5: requests sent, charges made", [1, 1], [provider.requests, len(provider.charges)])
    counts = payments.snapshot().counts
    assert (counts.unknown, counts.failed, counts.retries, counts.static, counts.handler) == (1, 0, 0, 0, 0)


async def test_s9_a_limit_that_fits_the_provider_gets_the_approval_live(gate: Gateway) -> None:
    provider = Provider()
    payments = gate.upstream("payments", policy=Policy(timeout=TimeoutPolicy(attempt=15.0)))
    pay = payments.operation(idempotent=False, fallback=[Static("declined")])(provider.pay)
    watch = Stopwatch()

    answer = await pay.ask()

    expect("S9", "limit 15: live after, s", 10.0, watch.seconds)
    assert (answer.value, answer.source) == ("approved", Source.LIVE)
    expect("S9", "limit 15: requests sent, charges made", [1, 1], [provider.requests, len(provider.charges)])


async def test_s9_unprotected_a_blind_retry_charges_twice_and_reports_a_failure() -> None:
    provider = Provider()

    async def pay() -> str:
        for _ in range(2):
            try:
                return await asyncio.wait_for(provider.pay(), 5.0)
            except TimeoutError:
                continue
        return "failed"

    told = await pay()

    await provider.finish()
    expect(
        "S9", "plain asyncio, limit 5 and a retry: told, charges made", "failed, 2", f"{told}, {len(provider.charges)}"
    )


def a_minute_of_payments(pay: Page) -> dict[float, list[Page]]:
    waves: dict[float, list[Page]] = {float(second): [pay] * 100 for second in range(0, 60, 10)}
    return dict(sorted({**waves, 12.0: [page_without_b]}.items()))


async def plain_payment_with_a_limit_of_15() -> None:
    await asyncio.wait_for(hang(), 15.0)


@pytest.mark.parametrize("by", ["plain asyncio", "a gateway without a bulkhead"])
async def test_s10_payments_that_hang_saturate_the_workers_again_and_again(gate: Gateway, by: str) -> None:
    limit_only = Policy(timeout=TimeoutPolicy(attempt=15.0), breaker=NO_CIRCUIT, bulkhead=NO_BULKHEAD)
    pay = gate.upstream("payments", policy=limit_only).operation(idempotent=False)(hang)
    service = Service()

    waves = a_minute_of_payments(plain_payment_with_a_limit_of_15 if by == "plain asyncio" else pay)
    visits = await visit_in_waves(service, waves)

    expect("S10", f"saturated, s of 60 † ({by})", 25.0, service.all_busy_for)
    expect("S10", f"a page that comes at 12 s waits, s † ({by})", 3.0, visits[12.0][0].waited)


@pytest.mark.parametrize("queue", [0, 20])
async def test_s10_with_a_bulkhead_of_100_pages_never_wait_for_payments(gate: Gateway, queue: int) -> None:
    hundred = BulkheadPolicy(limit=100, queue=queue)
    policy = Policy(timeout=TimeoutPolicy(attempt=15.0), breaker=NO_CIRCUIT, bulkhead=hundred)
    payments = gate.upstream("payments", policy=policy)
    pay = payments.operation(idempotent=False)(hang)
    service = Service()

    visits = await visit_in_waves(service, a_minute_of_payments(pay))

    ours = f"(bulkhead of 100, queue={queue})"
    expect("S10", f"saturated, s of 60 {ours}", 0.0, service.all_busy_for)
    expect("S10", f"a page that comes at 12 s waits, s † {ours}", 0.0, visits[12.0][0].waited)
    expect(
        "S10",
        f"payments sent, rejected {ours}",
        [300, 300],
        [payments.snapshot().counts.attempts, payments.bulkhead.rejected],
    )


# -- S11, S12: what a circuit saves


@dataclass
class Line:
    """When each caller came, and when it was through, however it ended; seconds."""

    stays: list[tuple[float, float]] = field(default_factory=list)

    def backlog(self, at: float) -> int:
        """Those who came before, and were not through by then."""
        return sum(came < at - 1e-6 and left > at + 1e-6 for came, left in self.stays)


async def one_a_second_for_five_minutes(ask: Page) -> Line:
    line, watch = Line(), Stopwatch()

    async def caller(came: float) -> None:
        left = inf
        try:
            await outcome_of(ask())
            left = watch.seconds
        finally:
            line.stays.append((came, left))

    callers = []
    for second in range(300):
        await watch.wait_until(second)
        callers.append(asyncio.create_task(caller(second)))
    await watch.wait_until(300.5)
    for task in callers:
        task.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return line


@pytest.mark.parametrize("by", ["plain asyncio", "a gateway without a circuit"])
async def test_s11_where_three_come_while_one_times_out_the_backlog_only_grows(gate: Gateway, by: str) -> None:
    one_place = BulkheadPolicy(limit=1, queue=inf, max_wait=inf)
    timeout = TimeoutPolicy(call=inf, attempt=3.0)
    policy = Policy(timeout=timeout, retry=NO_RETRY, breaker=NO_CIRCUIT, bulkhead=one_place)
    ask = gate.upstream("b", policy=policy).operation(idempotent=True)(hang)
    place = asyncio.Semaphore(1)

    async def ask_plainly() -> None:
        async with place:
            await asyncio.wait_for(hang(), 3.0)

    line = await one_a_second_for_five_minutes(ask_plainly if by == "plain asyncio" else ask)

    expect("S11", f"backlog after 30, 60, 300 s † ({by})", [20, 40, 200], [line.backlog(at) for at in (30, 60, 300)])


async def test_s11_with_a_circuit_the_backlog_goes_at_once_and_never_comes_back(gate: Gateway) -> None:
    five_timeouts = BreakerPolicy(window_calls=5, min_calls=5, probes=1)
    one_place = BulkheadPolicy(limit=1, queue=inf, max_wait=inf)
    timeout = TimeoutPolicy(call=inf, attempt=3.0)
    policy = Policy(timeout=timeout, retry=NO_RETRY, breaker=five_timeouts, bulkhead=one_place)
    ask = gate.upstream("b", policy=policy).operation(idempotent=True)(hang)

    line = await one_a_second_for_five_minutes(ask)

    backlogs = [line.backlog(at) for at in (30, 60, 300)]
    expect("S11", "backlog after 30, 60, 300 s (ours, with a circuit)", [0, 0, 0], backlogs)
    expect("S11", "most in line before it opens at 15 s", 11, max(line.backlog(half / 2) for half in range(30)))
    expect("S11", "most in line from then on: the one probe", 1, max(line.backlog(half / 2) for half in range(30, 600)))


async def a_thousand_in_a_row(ask: Page) -> float:
    watch = Stopwatch()
    for _ in range(1000):
        await outcome_of(ask())
    return watch.seconds


async def test_s12_without_a_circuit_a_thousand_timeouts_in_a_row_take_fifty_minutes(gate: Gateway) -> None:
    policy = Policy(timeout=TimeoutPolicy(attempt=3.0), retry=NO_RETRY, breaker=NO_CIRCUIT)
    ask = gate.upstream("b", policy=policy).operation(idempotent=True)(hang)

    plain = await a_thousand_in_a_row(lambda: asyncio.wait_for(hang(), 3.0))
    ours = await a_thousand_in_a_row(ask)

    expect("S12", "1,000 calls, plain asyncio, s", 3000.0, plain)
    expect("S12", "1,000 calls, ours without a circuit, s", 3000.0, ours)


@pytest.mark.parametrize(("min_calls", "seconds"), [(5, 15.0), (20, 60.0), (100, 300.0)])
async def test_s12_a_count_window_ends_them_after_min_calls(gate: Gateway, min_calls: int, seconds: float) -> None:
    breaker = BreakerPolicy(window_calls=100, min_calls=min_calls)
    policy = Policy(timeout=TimeoutPolicy(attempt=3.0), retry=NO_RETRY, breaker=breaker)
    ask = gate.upstream("b", policy=policy).operation(idempotent=True)(hang)

    took = await a_thousand_in_a_row(ask)

    expect("S12", f"1,000 calls, count window, min_calls={min_calls}, s †", seconds, took)


@pytest.mark.parametrize(("min_calls", "seconds"), [(4, 12.0), (5, 3000.0), (10, 3000.0)])
async def test_s12_a_time_window_of_ten_seconds_holds_only_four_of_them(
    gate: Gateway, min_calls: int, seconds: float
) -> None:
    breaker = BreakerPolicy(window_for=10.0, min_calls=min_calls)
    policy = Policy(timeout=TimeoutPolicy(attempt=3.0), retry=NO_RETRY, breaker=breaker)
    ask = gate.upstream("b", policy=policy).operation(idempotent=True)(hang)

    took = await a_thousand_in_a_row(ask)

    dagger = " †" if min_calls >= 5 else ""
    expect("S12", f"1,000 calls, time window of 10 s, min_calls={min_calls}, s{dagger}", seconds, took)


async def test_s12_the_registration_says_that_such_a_circuit_cannot_open(
    gate: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = BreakerPolicy(window_for=10.0, min_calls=5)
    policy = Policy(timeout=TimeoutPolicy(attempt=3.0), breaker=breaker, bulkhead=BulkheadPolicy(limit=1))

    with caplog.at_level(logging.WARNING, logger="gateway"):
        b = gate.upstream("b", policy=policy)

    expect("S12", "warnings at registration with limit=1", 1, len(b.warnings))
    assert "cannot open on timeouts" in b.warnings[0]
    assert [b.warnings[0] in message for message in caplog.messages] == [True]


# -- S13, S15: retries


@pytest.mark.parametrize(
    ("pauses", "wait", "attempts", "tries", "told"),
    [
        ("no pause", wait_none(), 2, [0.0, 3.0], "failed at 6"),
        ("a fixed pause of 4 s", wait_fixed(4.0), 2, [0.0, 7.0], "live at 7"),
        ("growing pauses of 1 and 2 s", wait_incrementing(start=1.0, increment=1.0), 3, [0.0, 4.0, 9.0], "live at 9"),
    ],
)
async def test_s13_only_a_pause_carries_a_call_over_an_outage(
    gate: Gateway, pauses: str, wait: wait_base, attempts: int, tries: list[float], told: str
) -> None:
    policy = Policy(retry=RetryPolicy(attempts=attempts, wait=wait))
    watch, began = Stopwatch(), []

    @gate.upstream("b", policy=policy).operation(idempotent=False)  # never sent, so even this may be repeated
    async def order() -> str:
        began.append(watch.seconds)
        if watch.seconds < 6.0:
            await asyncio.sleep(3.0)
            raise NotSent("no connection within 3 s")
        return "ordered"

    visit = await outcome_of(order())

    ended = "live" if visit.error is None else str(visit.error.outcome)
    expect("S13", f"{pauses}: tries at, s", tries, began)
    expect("S13", f"{pauses}: ends", told, f"{ended} at {shown(visit.took)}")


async def test_s15_without_a_budget_two_attempts_double_the_load_of_an_upstream_that_is_down(gate: Gateway) -> None:
    sent = {"plain asyncio": 0, "ours": 0}
    policy = Policy(
        timeout=TimeoutPolicy(attempt=1.0),
        retry=RetryPolicy(budget=None),
        breaker=NO_CIRCUIT,
        bulkhead=NO_BULKHEAD,
    )
    b = gate.upstream("b", policy=policy)

    @b.operation(idempotent=True)
    async def ask() -> None:
        sent["ours"] += 1
        await hang()

    async def ask_plainly() -> None:
        for _ in range(2):
            sent["plain asyncio"] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(hang(), 1.0)

    calls = len(await ten_a_second(100, ask))
    await ten_a_second(100, ask_plainly)

    expect("S15", "load, plain asyncio, x", 2.00, sent["plain asyncio"] / calls)
    expect("S15", "load, ours without a budget, x", 2.00, sent["ours"] / calls)
    counts = b.snapshot().counts
    assert (counts.asked, counts.attempts, counts.retries, counts.failed) == (1000, 2000, 1000, 1000)


@pytest.mark.parametrize("minimum", [0.0, 1.0])
async def test_s15_with_a_budget_of_a_fifth_the_load_is_a_fifth_more_and_the_minimum(
    gate: Gateway, minimum: float
) -> None:
    seconds = 100
    policy = Policy(
        timeout=TimeoutPolicy(attempt=1.0),
        retry=RetryPolicy(budget=BudgetPolicy(ratio=0.2, minimum=minimum, burst=10)),
        breaker=NO_CIRCUIT,
        bulkhead=NO_BULKHEAD,
    )
    b = gate.upstream("b", policy=policy)
    operation = b.operation(name="ask", idempotent=True)(hang)

    calls = len(await ten_a_second(seconds, operation))

    counts = b.snapshot().counts
    most = 1.20 + (minimum * (seconds + 1) + 10) / calls  # the last calls fail a second after they were made
    assert counts.attempts / calls <= most + 1e-6
    expect("S15", f"load, a fifth and {minimum:g}/s granted, x", round(most, 2), round(counts.attempts / calls, 2))
    assert counts.failed == calls


@pytest.mark.parametrize("failing", [1.0, 0.5], ids=["outage", "brown-out"])
async def test_s15_three_layers_of_three_tries_ask_three_times_and_not_27(gate: Gateway, failing: float) -> None:
    random, asked = Random(15), {"plain asyncio": 0, "ours": 0}
    pages, most = 200, {"plain asyncio": 0, "ours": 0}

    async def bottom(who: str) -> None:
        asked[who] += 1
        if random.random() < failing:
            raise ConnectionError

    async def thrice(below: Callable[[str], Awaitable[None]], who: str) -> None:
        for left in (2, 1, 0):
            try:
                await below(who)
                break
            except ConnectionError:
                if not left:
                    raise

    def layer(name: str, below: Callable[[str], Awaitable[None]]) -> Callable[[str], Awaitable[None]]:
        policy = Policy(retry=RetryPolicy(attempts=3, wait=wait_none(), budget=None), breaker=NO_CIRCUIT)

        async def ask(who: str) -> None:
            await below(who)

        return gate.upstream(name, policy=policy).operation(idempotent=True)(ask)

    ours = layer("page", layer("films", layer("store", bottom)))
    plain = partial(thrice, partial(thrice, partial(thrice, bottom)))
    for page, who in ((ours, "ours"), (plain, "plain asyncio")):
        for _ in range(pages):
            before = asked[who]
            with suppress(Failed, ConnectionError):
                await page(who)
            most[who] = max(most[who], asked[who] - before)

    name = "outage" if failing == 1.0 else "brown-out"
    expect("S15", f"three layers of three tries, {name}: most calls for a page", 3, most["ours"])
    if failing == 1.0:
        expect("S15", "the same in plain asyncio", 27, most["plain asyncio"])
    else:
        # A page of ours fails only if three of three tries fail; one in 8 at 50 %.
        assert gate["page"].snapshot().counts.failed / pages == pytest.approx(failing**3, abs=0.06)
        assert asked["ours"] / pages == pytest.approx(1 + failing + failing**2, abs=0.15)


# -- S16: the bulkhead


def rejected_as(visits: Sequence[Visit], reason: str) -> list[Visit]:
    return [visit for visit in visits if isinstance(visit.error, BulkheadFull) and visit.error.reason == reason]


async def a_hundred_at_once(ask: Callable[[], Awaitable[object]]) -> list[Visit]:
    return list(await asyncio.gather(*(outcome_of(ask()) for _ in range(100))))


async def test_s16_without_a_queue_twenty_run_and_eighty_are_rejected_at_once(gate: Gateway) -> None:
    b = gate.upstream("b", policy=Policy(bulkhead=NO_QUEUE))

    @b.operation(idempotent=True)
    async def ask() -> None:
        await asyncio.sleep(0.5)

    visits = await a_hundred_at_once(ask)

    rejected = rejected_as(visits, "queue_full")
    expect("S16", "queue=0: run, rejected", [20, 80], [b.snapshot().counts.live, len(rejected)])
    expect("S16", "queue=0: rejected after, s", 0.0, longest(rejected, "took"))
    assert b.bulkhead.peak == 20


async def test_s16_unprotected_all_hundred_run_at_once() -> None:
    service = Service(workers=200)

    async def ask() -> None:
        await asyncio.sleep(0.5)

    await a_hundred_at_once(lambda: service.visit(ask))

    expect("S16", "plain asyncio, 200 workers: run at once", 100, service.peak)


async def test_s16_with_a_queue_twenty_run_twenty_wait_and_sixty_are_rejected_at_once(gate: Gateway) -> None:
    b = gate.upstream("b", policy=Policy(bulkhead=BulkheadPolicy(limit=20, queue=20, max_wait=1.0)))

    @b.operation(idempotent=True)
    async def ask() -> None:
        await asyncio.sleep(0.5)

    visits = await a_hundred_at_once(ask)

    rejected = rejected_as(visits, "queue_full")
    served = [visit.took for visit in visits if visit.error is None]
    waits = b.snapshot().waits
    expect(
        "S16", "queue=20: run, wait, rejected", [20, 20, 60], [len(served) - waits.count, waits.count, len(rejected)]
    )
    expect("S16", "queue=20: rejected after, s", 0.0, longest(rejected, "took"))
    expect("S16", "queue=20: served after, s", [0.5, 1.0], sorted(set(served)))


async def test_s16_those_who_queue_leave_after_max_wait(gate: Gateway) -> None:
    one_second = BulkheadPolicy(limit=20, queue=20, max_wait=1.0)
    b = gate.upstream("b", policy=Policy(timeout=NO_LIMIT, bulkhead=one_second))
    ask = b.operation(idempotent=True)(b_answers_after_a_minute)

    visits = await a_hundred_at_once(ask)

    left = rejected_as(visits, "max_wait")
    expect("S16", "queue=20, max_wait=1: leave the queue, after, s", [20, 1.0], [len(left), longest(left, "took")])
    assert len(rejected_as(visits, "queue_full")) == 60


# -- S17, S18: the circuit


async def fewest_failures_that_open(breaker: BreakerPolicy, *, calls: int, pause: float) -> int:
    """Make so many calls, in an order of no importance, with ever more failures among them, until the circuit opens."""
    for failures in range(calls + 1):
        gate = Gateway()
        b = gate.upstream("b", policy=Policy(retry=NO_RETRY, breaker=breaker))
        ask = b.operation(idempotent=True)(page_without_b)
        script = [True] * failures + [False] * (calls - failures)
        Random(failures).shuffle(script)
        with Faults(ask) as faults:
            for fails in script:
                _ = faults.error(ConnectionError()) if fails else faults.value("page")
                await outcome_of(ask())
                await asyncio.sleep(pause)
        assert b.snapshot().counts.attempts == calls  # nobody was rejected before the last one was in
        assert_nothing_left(gate)
        state = b.breaker.snapshot().state
        await gate.close()
        if state == "open":
            return failures
    return -1


@pytest.mark.parametrize(("rate", "opens_at"), [(0.5, 50), (0.505, 51)])
async def test_s17_of_the_last_hundred_calls_so_many_failures_open_it(rate: float, opens_at: int) -> None:
    breaker = BreakerPolicy(window_calls=100, min_calls=100, failure_rate=rate)

    failures = await fewest_failures_that_open(breaker, calls=100, pause=0.0)

    expect("S17", f"of 100 calls, at failure_rate={rate}, opens at", opens_at, failures)


@pytest.mark.parametrize(("rate", "opens_at"), [(0.5, 10), (0.55, 11)])
async def test_s17_of_twenty_calls_in_ten_seconds_so_many_failures_open_it(rate: float, opens_at: int) -> None:
    breaker = BreakerPolicy(window_for=10.0, min_calls=20, failure_rate=rate)

    failures = await fewest_failures_that_open(breaker, calls=20, pause=0.5)

    expect("S17", f"of 20 calls in 10 s, at failure_rate={rate}, opens at", opens_at, failures)


@pytest.mark.parametrize(
    ("probes", "bulkhead", "through"),
    [
        (1, NO_BULKHEAD, "probes=1"),
        (3, NO_BULKHEAD, "probes=3"),
        (3, BulkheadPolicy(limit=20, queue=20), "probes=3, a pool of 20 + 20"),
    ],
)
async def test_s18_strictly_after_open_for_the_probes_go_and_nobody_else(
    gate: Gateway, probes: int, bulkhead: BulkheadPolicy, through: str
) -> None:
    breaker = BreakerPolicy(window_calls=2, min_calls=2, open_for=5.0, probes=probes)
    b = gate.upstream("b", policy=Policy(retry=NO_RETRY, breaker=breaker, bulkhead=bulkhead))
    sent = 0

    @b.operation(idempotent=True)
    async def ask() -> None:
        nonlocal sent
        sent += 1
        await asyncio.sleep(1.0)

    with Faults(ask).error(ConnectionError()).error(ConnectionError()):
        await outcome_of(ask())
        await outcome_of(ask())
    watch = Stopwatch()

    await watch.wait_until(5.0)
    too_early, sent_too_early = await outcome_of(ask()), sent
    await watch.wait_until(5.001)
    crowd = await asyncio.gather(*(outcome_of(ask()) for _ in range(1000)))

    refused = [visit for visit in crowd if isinstance(visit.error, CircuitOpen)]
    expect("S18", f"sent at 5.000 s ({through})", 0, sent_too_early)
    expect("S18", f"of 1,000 at 5.001 s: sent, refused ({through})", [probes, 1000 - probes], [sent, len(refused)])
    expect("S18", f"refused after, s ({through})", 0.0, longest(refused, "took"))
    assert isinstance(too_early.error, CircuitOpen)
    assert b.breaker.snapshot().state == "closed"


# -- S20: a refusal


class InvalidRating(Exception):
    """The upstream is well, and says no."""


async def test_s20_a_refusal_is_tried_once_asks_no_tier_and_leaves_the_circuit_alone(gate: Gateway) -> None:
    refusal, asked_tiers, tries = InvalidRating("six stars"), [], []
    jumpy = BreakerPolicy(window_calls=10, min_calls=1, failure_rate=0.01)
    ratings = gate.upstream("ratings", policy=Policy(retry=RetryPolicy(attempts=3), breaker=jumpy))

    @ratings.operation(
        idempotent=True, refused=(InvalidRating,), fallback=[LastGood(), handler(asked_tiers.append), Static("thanks")]
    )
    async def rate(stars: int) -> None:
        tries.append(stars)
        raise refusal

    visits = [await outcome_of(rate(6)) for _ in range(100)]

    expect("S20", "100 refusals: tries, tiers asked", [100, 0], [len(tries), len(asked_tiers)])
    circuit = ratings.breaker.snapshot()
    expect("S20", "the circuit: state, calls counted", "closed, 0", f"{circuit.state}, {circuit.calls}")
    assert all(visit.error is refusal for visit in visits)
    counts = ratings.snapshot().counts
    assert (counts.refused, counts.retries, counts.static, counts.last_good) == (100, 0, 0, 0)


# -- S21: a call inside a transaction


class Database:
    """Ten connections; how long they were held, and how long of that a query ran."""

    def __init__(self, gate: Gateway) -> None:
        ten = BulkheadPolicy(limit=10, queue=inf, max_wait=inf)
        self.upstream = gate.upstream(
            "database", policy=Policy(timeout=TimeoutPolicy(call=inf, attempt=10.0), bulkhead=ten)
        )
        self.queried = 0.0

    async def query(self) -> None:
        await asyncio.sleep(0.1)
        self.queried += 0.1


async def five_hundred(transaction: Callable[[], Awaitable[object]]) -> float:
    watch = Stopwatch()
    await asyncio.gather(*(transaction() for _ in range(500)))
    return watch.seconds


async def test_s21_a_call_inside_a_transaction_makes_the_pool_the_bottleneck(gate: Gateway) -> None:
    database = Database(gate)
    shop = gate.upstream("shop", policy=Policy(bulkhead=NO_BULKHEAD))

    @shop.operation(idempotent=True)
    async def call_out() -> None:
        await asyncio.sleep(4.8)

    @database.upstream.operation(idempotent=False)
    async def transaction() -> None:
        await database.query()
        await call_out()
        await database.query()

    seconds = await five_hundred(transaction)

    expect("S21", "transactions/s, call inside", 2.0, 500 / seconds)
    expect("S21", "share of the time that connections are used, call inside", 0.04, database.queried / (10 * seconds))
    assert database.upstream.bulkhead.peak == 10


async def test_s21_outside_of_it_the_same_ten_connections_do_25_times_as_much(gate: Gateway) -> None:
    database = Database(gate)
    shop = gate.upstream("shop", policy=Policy(bulkhead=NO_BULKHEAD))
    query = database.upstream.operation(idempotent=True)(database.query)

    @shop.operation(idempotent=True)
    async def call_out() -> None:
        await asyncio.sleep(4.8)

    async def transaction() -> None:
        await query()
        await call_out()
        await query()

    seconds = await five_hundred(transaction)

    expect("S21", "transactions/s, call outside", 50.0, 500 / seconds)
    expect("S21", "share of the time that connections are used, call outside", 1.0, database.queried / (10 * seconds))
    assert database.upstream.bulkhead.peak == 10


# -- S23: failure attacks


class Crowd:
    """Healthy callers, of whose calls one in a hundred fails, and one whose calls always do, 10,000 a second."""

    def __init__(self, gate: Gateway, **knobs: Any) -> None:
        circuit = BreakerPolicy(window_for=2.0, min_calls=10, open_for=1.0, **knobs)
        policy = Policy(retry=NO_RETRY, breaker=circuit, bulkhead=NO_BULKHEAD)
        self.upstream = gate.upstream("b", policy=policy)
        self.down = False
        self.refused = 0  # healthy callers that were kept away
        self.opened_at: list[float] = []
        self._random = Random(23)
        self._watch = Stopwatch()

        @gate.on(CircuitChanged)
        def opened(change: CircuitChanged) -> None:
            if change.after == "open":
                self.opened_at.append(self._watch.seconds)

        @self.upstream.operation(idempotent=True, caller=lambda who: who)
        async def ask(who: str) -> None:
            if self.down or who == "mallory" or self._random.random() < 0.01:
                raise ConnectionError

        self._ask = ask

    async def calls(self, seconds: float, *, attacked: bool = True) -> None:
        """A hundred calls a second of twenty healthy callers, and 10,000 of the other one."""
        for _ in range(round(seconds * 100)):
            for _ in range(100 if attacked else 0):
                with suppress(Failed, CircuitOpen):
                    await self._ask("mallory")
            try:
                await self._ask(f"caller {self._random.randrange(20)}")
            except CircuitOpen:
                self.refused += 1
            except Failed:
                pass
            await asyncio.sleep(0.01)


async def test_s23_a_caller_whose_requests_always_fail_closes_the_upstream_for_nobody(gate: Gateway) -> None:
    crowd = Crowd(gate, min_callers=2)

    await crowd.calls(5.0)

    expect("S23", "healthy callers kept away, of 500", 0, crowd.refused)
    expect("S23", "circuit opened at, s", [], crowd.opened_at)


async def test_s23_where_callers_are_not_told_apart_he_does(gate: Gateway) -> None:
    crowd = Crowd(gate)

    await crowd.calls(5.0)

    assert crowd.refused > 400


async def test_s23_a_real_outage_still_opens_within_a_window_and_a_second(gate: Gateway) -> None:
    crowd = Crowd(gate, min_callers=2)

    await crowd.calls(2.0)
    crowd.down = True
    await crowd.calls(3.0)

    assert crowd.opened_at[0] - 2.0 <= 2.0 + 1.0
    expect("S23", "real outage under attack: open after, s", 1.0, round(crowd.opened_at[0] - 2.0, 1))


async def test_s23_from_half_open_too_he_alone_re_opens_nothing(gate: Gateway) -> None:
    crowd = Crowd(gate, min_callers=2, probes=1)
    crowd.down = True
    await crowd.calls(2.0, attacked=False)
    crowd.down = False

    await crowd.calls(3.0)

    expect("S23", "openings after the outage, from half-open", 0, sum(at > 2.0 for at in crowd.opened_at))
    assert crowd.upstream.snapshot().breaker.state == "closed"
