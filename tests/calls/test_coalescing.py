"""Identical calls in flight share one: who is asked, who hears what, and when, whoever leaves."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, create_task, gather, sleep
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
from tenacity import wait_none

from gateway import (
    AttemptFailed,
    BreakerPolicy,
    BulkheadFull,
    BulkheadPolicy,
    CallFinished,
    CircuitOpen,
    ConfigError,
    Deadline,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
)
from tests.calls.remembered import World, facts
from tests.support import ONE_TRY, QUIET, Boom, counted, ended, gone, now, steps

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


async def under(seconds: float, call: Any) -> Any:
    with Deadline.after(seconds):
        return await ended(call())


# -- one is asked for all


async def test_identical_calls_in_flight_are_one(world: World) -> None:
    ask = world.ask(coalesce=True)

    answers = await gather(*(ask.ask("alien") for _ in range(5)))

    assert world.sent == 1
    assert [facts(answer) for answer in answers] == [
        (["alien", 1], "live", 0.0),
        *[(["alien", 1], "coalesced", 0.0)] * 4,
    ]
    assert all(answer.stored_at is None and not answer.degraded for answer in answers)
    assert counted(world.up) == {"asked": 5, "live": 1, "coalesced": 4, "attempts": 1}


async def test_other_arguments_are_another_call(world: World) -> None:
    ask = world.ask(coalesce=True)

    answers = await gather(ask("alien"), ask("brazil"), ask(movie="alien"))

    assert world.sent == 2
    assert answers[0] == answers[2] != answers[1]


async def test_who_comes_after_it_has_landed_asks_anew(world: World) -> None:
    ask = world.ask(coalesce=True)

    assert (await ask(), await ask()) == (["alien", 1], ["alien", 2])


async def test_without_it_each_asks(world: World) -> None:
    ask = world.ask()

    await gather(ask(), ask())

    assert world.sent == 2


async def test_of_different_users_nobody_waits_for_anothers(gate: Gateway, world: World) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    ask = world.ask(coalesce=True, identity=user.get)
    world.value = lambda _: user.get()

    async def asked_by(name: str) -> Any:
        user.set(name)
        return await ask()

    names = ["ada", "bob", "ada", "bob"]
    answers = await gather(*(create_task(asked_by(name)) for name in names))

    assert answers == names
    assert world.sent == 2


async def test_only_what_may_be_repeated_may_be_shared(world: World) -> None:
    with pytest.raises(ConfigError, match="coalesce=True on idempotent=False"):
        world.ask(coalesce=True, idempotent=False)


async def test_a_caller_who_wants_his_own_answer_gets_it_and_leads_for_others(world: World) -> None:
    ask = world.ask(coalesce=True)
    live = ask.using(only_live=True)

    first = create_task(ask.ask())
    await steps(1)
    own = create_task(live.ask())
    await gather(first, own)
    led = create_task(live.ask())
    await steps(1)
    follows = create_task(ask.ask())

    assert [str((await one).source) for one in (first, own, led, follows)] == ["live", "live", "live", "coalesced"]
    assert world.sent == 3


async def test_a_caller_that_changes_the_value_he_got_changes_nobody_elses(world: World) -> None:
    ask = world.ask(coalesce=True, fallback=[LastGood()])

    values = await gather(*(ask() for _ in range(4)))
    for number, value in enumerate(values):
        value.append(number)
    world.error = Boom()
    last = await ask()
    last.append("changed")

    assert values == [["alien", 1, number] for number in range(4)]
    assert await ask() == ["alien", 1]


async def test_a_flight_costs_one_place_and_one_probe(world: World) -> None:
    world.up.policy = Policy(bulkhead=BulkheadPolicy(limit=1, queue=0))
    ask = world.ask(coalesce=True)

    answers = await gather(*(ask.ask() for _ in range(50)))

    assert len(answers) == 50
    assert world.up.snapshot().bulkhead.peak == 1
    assert world.up.snapshot().breaker.calls == 1


# -- what fails, fails for all


async def test_a_failure_ends_it_and_each_raises_an_error_of_his_own(world: World) -> None:
    ask = world.ask(coalesce=True)
    cause = world.error = Boom("down")

    errors = await gather(*(ended(ask()) for _ in range(3)))

    assert world.sent == 1
    assert [type(error) for error in errors] == [Failed] * 3
    assert len({id(error) for error in errors}) == 3
    assert all(error.__cause__ is cause for error in errors)
    assert [(error.upstream, error.operation, error.attempts) for error in errors] == [("world", "ask", 1)] * 3
    assert counted(world.up) == {"asked": 3, "failed": 3, "attempts": 1}
    assert world.up.snapshot().breaker.failures == 1


async def test_each_asks_his_own_tiers(world: World) -> None:
    ask = world.ask(coalesce=True, fallback=[LastGood()])
    world.error = Boom()
    users: list[str] = []
    user: ContextVar[str] = ContextVar("user")

    @ask.fallback
    def plan_b(error: Exception) -> str:
        users.append(user.get())
        return user.get()

    async def asked_by(name: str) -> Any:
        user.set(name)
        return await ask.ask()

    answers = await gather(*(create_task(asked_by(name)) for name in ("ada", "bob")))

    assert [answer.value for answer in answers] == users == ["ada", "bob"]
    assert world.sent == 1
    for answer in answers:
        assert answer.error.__notes__ == ["LastGood had no answer"]
    assert counted(world.up) == {"asked": 2, "handler": 2, "attempts": 1}


async def test_a_refusal_is_told_to_all_and_asks_no_tier(world: World) -> None:
    ask = world.ask(coalesce=True, refused=(KeyError,), fallback=[Static("s")])
    world.error = KeyError("no such film")

    errors = await gather(*(ended(ask()) for _ in range(3)))

    assert [type(error) for error in errors] == [KeyError] * 3
    assert len({id(error) for error in errors}) == 3
    assert counted(world.up) == {"asked": 3, "refused": 3, "attempts": 1}


async def test_a_value_that_was_judged_is_each_callers_own(world: World) -> None:
    ask = world.ask(coalesce=True, classify=lambda value: None if isinstance(value, Exception) else Outcome.REFUSED)

    errors = await gather(*(ended(ask()) for _ in range(3)))
    for error in errors:
        assert type(error) is Refused
        error.args[0].append("changed")

    assert [error.args for error in errors] == [(["alien", 1, "changed"],)] * 3
    assert world.sent == 1


async def test_a_value_judged_a_failure_fails_for_all(world: World) -> None:
    ask = world.ask(coalesce=True, classify=lambda value: Outcome.FAILED if isinstance(value, list) else None)

    errors = await gather(*(ended(ask()) for _ in range(3)))

    assert [(type(error), error.__cause__) for error in errors] == [(Failed, None)] * 3
    assert world.sent == 1


async def test_what_may_have_taken_effect_is_unknown_to_all(world: World) -> None:
    ask = world.ask(coalesce=True, classify=lambda _: Outcome.UNKNOWN, fallback=[Static("s")])
    world.error = Boom()

    errors = await gather(*(ended(ask()) for _ in range(2)))

    assert [error.outcome for error in errors] == ["unknown"] * 2
    assert world.sent == 1


async def test_the_leaders_retries_are_all_there_are(world: World) -> None:
    world.up.policy = Policy(retry=RetryPolicy(attempts=3, wait=wait_none()))
    ask = world.ask(coalesce=True)
    world.error = Boom()

    errors = await gather(*(ended(ask()) for _ in range(4)))

    assert world.sent == 3
    assert {error.attempts for error in errors} == {3}
    assert counted(world.up) == {"asked": 4, "failed": 4, "attempts": 3, "retries": 2}


@pytest.mark.parametrize("why", ["open", "full"])
async def test_a_rejection_is_each_callers_own(world: World, gate: Gateway, why: str) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=1, max_wait=0.2))
    ask = world.ask(coalesce=True)
    await gate.open()
    if why == "open":
        world.up.isolate()
        errors = await gather(*(ended(ask()) for _ in range(3)))
    else:
        other = create_task(ask("other"))
        await steps(1)
        errors = await gather(*(ended(ask()) for _ in range(3)))
        await other

    assert [type(error) for error in errors] == [CircuitOpen if why == "open" else BulkheadFull] * 3
    assert len({id(error) for error in errors}) == 3
    assert all((error.upstream, error.operation, error.attempts) == ("world", "ask", 0) for error in errors)
    assert counted(world.up)["rejected"] == 3


async def test_an_error_that_cannot_be_made_twice_is_still_told_to_all(world: World) -> None:
    class Strict(Exception):
        def __new__(cls, *args: object) -> Any:
            raise TypeError

    class Odd(Exception):
        def __reduce__(self) -> Any:
            raise TypeError

        def __init__(self, code: int, *, why: str) -> None:
            super().__init__(f"{code}{why}")

    ask = world.ask(coalesce=True, refused=(Odd,))
    world.error = Odd(5, why="no")

    errors = await gather(*(ended(ask()) for _ in range(3)))

    assert [type(error) for error in errors] == [Odd] * 3


# -- each by his own time


async def test_nobody_waits_beyond_his_own_deadline(world: World) -> None:
    ask = world.ask(coalesce=True, fallback=[Static("s")])
    world.took = 5.0
    leader = create_task(ask.ask())
    await steps(1)
    began = now()

    with Deadline.after(0.5):
        answer = await ask.ask()

    assert answer.value == "s"
    assert now() - began == pytest.approx(0.5)
    assert type(answer.error) is FailedTimeout
    assert answer.error.waited_for == "deadline"
    assert "identical call in flight" in str(answer.error)
    assert (await leader).source == "live"
    assert world.sent == 1
    assert counted(world.up) == {"asked": 2, "live": 1, "static": 1, "attempts": 1}


async def test_a_followers_tiers_have_their_reserve(world: World) -> None:
    ask = world.ask(coalesce=True)
    world.took = 5.0

    @ask.fallback(timeout=0.2)
    async def plan_b(error: Exception) -> str:
        await sleep(0.15)
        return "b"

    leader = create_task(ask.ask())
    await steps(1)
    began = now()

    assert await under(1.0, ask) == "b"
    assert now() - began == pytest.approx(0.95)
    await leader


async def test_a_leader_whose_own_deadline_comes_hands_over(world: World) -> None:
    ask = world.ask(coalesce=True)
    short = create_task(under(0.5, ask))
    await steps(1)
    long = create_task(ask.ask())

    ends = await gather(short, long)

    assert type(ends[0]) is FailedTimeout
    assert facts(ends[1]) == (["alien", 2], "live", 0.0)
    assert world.sent == 2


async def test_an_upstream_that_hangs_beyond_the_limit_of_a_try_fails_for_all(world: World) -> None:
    world.up.policy = Policy(timeout=TimeoutPolicy(call=5.0, attempt=0.5), retry=ONE_TRY)
    ask = world.ask(coalesce=True)
    began = now()

    errors = await gather(*(ended(ask()) for _ in range(3)))

    assert [(type(error), error.waited_for) for error in errors] == [(FailedTimeout, "attempt")] * 3
    assert now() - began == pytest.approx(0.5)
    assert world.sent == 1


# -- who leaves


async def test_a_leader_who_leaves_hands_over_to_the_one_with_the_most_time(world: World) -> None:
    ask = world.ask(coalesce=True)
    leader = create_task(ask())
    await steps(1)
    followers = [create_task(under(seconds, ask.ask)) for seconds in (1.2, 9.0, 4.0)]
    await sleep(0.5)

    await gone(leader)
    ends = await gather(*followers)

    assert leader.cancelled()
    assert world.sent == 2
    assert [getattr(end, "source", type(end)) for end in ends] == [FailedTimeout, Source.LIVE, Source.COALESCED]
    assert counted(world.up) == {
        "asked": 4,
        "cancelled": 1,
        "live": 1,
        "coalesced": 1,
        "failed": 1,
        "attempts": 2,
    }


async def test_when_all_leave_nothing_is_asked_any_more(world: World) -> None:
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask()) for _ in range(5)]
    await sleep(0.5)

    await gone(*tasks)
    await sleep(5.0)

    assert world.sent == 1
    assert counted(world.up) == {"asked": 5, "cancelled": 5, "attempts": 1}


async def test_when_they_leave_one_after_the_other_each_leader_asks_once(world: World) -> None:
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(4)]
    for task in tasks[:3]:
        await sleep(0.1)
        await gone(task)

    answer = await tasks[3]

    assert facts(answer) == (["alien", 4], "live", 0.0)


async def test_a_follower_who_leaves_changes_nothing(world: World) -> None:
    ask = world.ask(coalesce=True)
    leader, follower = create_task(ask.ask()), create_task(ask.ask())
    await sleep(0.5)

    await gone(follower)

    assert (await leader).value == ["alien", 1]
    assert world.sent == 1


async def test_one_who_was_just_given_the_lead_may_leave_in_the_same_tick(world: World) -> None:
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(3)]
    await sleep(0.5)

    tasks[0].cancel()
    await steps(1)
    tasks[1].cancel()
    answer = await tasks[2]

    assert answer.source == "live"
    assert world.sent == 2
    await gone(*tasks)


@pytest.mark.parametrize("at", range(8))
async def test_whenever_the_leader_leaves_the_others_are_answered(world: World, at: int) -> None:
    world.took = 0.0
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(3)]

    await steps(at)
    tasks[0].cancel()
    ends = await gather(*tasks, return_exceptions=True)

    assert world.sent <= 2
    assert [end.value[0] for end in ends[1:]] == ["alien"] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("which", [1, 2])
async def test_whenever_one_leaves_after_his_leader_the_last_is_answered(world: World, at: int, which: int) -> None:
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(3)]
    await sleep(0.5)

    tasks[0].cancel()
    await steps(at)
    tasks[which].cancel()
    ends = await gather(*tasks, return_exceptions=True)

    (last,) = {1, 2} - {which}
    assert ends[last].value[0] == "alien"  # type: ignore[union-attr]
    assert world.sent <= 3


async def test_a_caller_with_a_cancel_pending_leaves_before_he_leads(world: World) -> None:
    ask = world.ask(coalesce=True)

    async def caller() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await ask()

    task = create_task(caller())
    await gone(task)

    assert world.sent == 0
    assert await ask() == ["alien", 1]


async def test_a_leader_in_the_queue_who_leaves_hands_over(world: World) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=5, max_wait=60.0))
    ask = world.ask(coalesce=True)
    other = create_task(ask("other"))
    await steps(1)
    leader = create_task(ask())
    await steps(1)
    follower = create_task(ask.ask())
    await sleep(0.5)

    await gone(leader)
    answer = await follower
    await other

    assert facts(answer) == (["alien", 2], "live", 0.0)


async def test_a_leader_in_a_pause_before_a_retry_who_leaves_hands_over(world: World) -> None:
    world.up.policy = Policy(retry=RetryPolicy(attempts=2, wait=lambda _: 5.0))
    ask = world.ask(coalesce=True)
    world.error = Boom()
    leader = create_task(ask())
    await steps(1)
    follower = create_task(ask.ask())
    await sleep(2.0)

    world.error = None
    await gone(leader)

    assert facts(await follower) == (["alien", 2], "live", 0.0)


async def test_with_too_little_time_for_a_try_a_follower_does_not_lead(world: World) -> None:
    ask = world.ask(coalesce=True, fallback=[Static("s")])
    leader = create_task(ask())
    await steps(1)
    follower = create_task(under(0.5, ask.ask))
    await sleep(0.49)

    await gone(leader)
    answer = await follower

    assert answer.value == "s"
    assert world.sent == 1


# -- calls in calls


async def test_a_call_that_asks_the_same_of_itself_does_not_wait_for_itself(world: World) -> None:
    depth = 0

    @world.up.operation(idempotent=True, coalesce=True, key=lambda number: "all the same")
    async def countdown(number: int) -> int:
        nonlocal depth
        depth += 1
        return 0 if number == 0 else await countdown(number - 1) + 1

    began = now()

    assert await countdown(3) == 3
    assert (depth, now() - began) == (4, 0.0)


async def test_through_another_operation_neither(world: World) -> None:
    asked = 0

    @world.up.operation(idempotent=True)
    async def between() -> str:
        return await outer()

    @world.up.operation(idempotent=True, coalesce=True)
    async def outer() -> str:
        nonlocal asked
        asked += 1
        return "deep" if asked == 2 else await between()

    assert await outer() == "deep"
    assert asked == 2


async def test_nor_does_one_who_was_given_the_lead(world: World) -> None:
    @world.up.operation(idempotent=True, coalesce=True)
    async def ask() -> str:
        world.sent += 1
        if world.sent == 2:
            return await ask() + " through himself"
        await sleep(1.0)
        return "an answer"

    leader, follower = create_task(ask()), create_task(ask())
    await sleep(0.5)
    await gone(leader)
    began = now()

    assert await follower == "an answer through himself"
    assert now() - began == pytest.approx(1.0)


async def test_in_a_task_of_his_own_he_waits_no_longer_than_his_time(world: World) -> None:
    world.up.policy = replace(QUIET, timeout=TimeoutPolicy(call=2.0, attempt=1.0))

    @world.up.operation(idempotent=True, coalesce=True, fallback=[Static("s")])
    async def outer() -> Any:
        (inner,) = await gather(outer())
        return inner

    began = now()

    assert await outer() == "s"
    assert now() - began == pytest.approx(1.0)


async def test_a_nested_flight_spends_from_the_outermost_calls_tries(gate: Gateway, world: World) -> None:
    retrying = Policy(retry=RetryPolicy(attempts=3, wait=wait_none(), budget=None))
    world.up.policy = retrying
    ask = world.ask(coalesce=True)
    world.error = Boom()
    page = gate.upstream("page", policy=retrying)

    @page.operation(idempotent=True)
    async def parts() -> Any:
        return await gather(ask(), ask())

    await ended(parts())

    assert world.sent <= 3


# -- what else depends on it


async def test_a_circuit_of_his_own_is_held_by_a_follower_only_while_he_waits(world: World) -> None:
    who: ContextVar[str] = ContextVar("who", default="a")
    ask = world.ask(coalesce=True, circuit_by=who)
    leader, follower, left = (create_task(ask.ask()) for _ in range(3))
    await sleep(0.5)
    during = {key: breaker.in_use for key, breaker in world.up.circuits}

    await gone(left)
    await gather(leader, follower)

    assert during == {"a": 3}
    assert {key: breaker.in_use for key, breaker in world.up.circuits} == {"a": 0}


async def test_callers_who_are_told_apart_follow_each_other(world: World) -> None:
    who: ContextVar[str] = ContextVar("who", default="a")
    world.up.policy = replace(QUIET, breaker=BreakerPolicy(min_calls=1000, min_callers=2))
    ask = world.ask(coalesce=True, caller=who, circuit_by="operation")
    world.error = Boom()

    async def asked_by(name: str) -> Any:
        who.set(name)
        return await ended(ask())

    errors = await gather(*(create_task(asked_by(name)) for name in "abc"))

    assert [type(error) for error in errors] == [Failed] * 3
    assert world.sent == 1
    assert all(not breaker.in_use for _, breaker in world.up.circuits)


async def test_each_caller_is_told_of_once_and_the_tries_count_as_the_leaders(gate: Gateway, world: World) -> None:
    events: list[Any] = []
    gate.on(CallFinished, AttemptFailed)(events.append)
    ask = world.ask(coalesce=True)

    await gather(*(ask() for _ in range(3)))
    world.error = Boom()
    await gather(*(ended(ask()) for _ in range(3)))

    finished = [event for event in events if type(event) is CallFinished]
    assert [(event.source, event.outcome, event.attempts) for event in finished[:3]] == [
        ("live", "success", 1),
        ("coalesced", "success", 0),
        ("coalesced", "success", 0),
    ]
    assert [(event.source, event.outcome, event.attempts) for event in finished[3:]] == [
        (None, "failed", 1),
        (None, "failed", 0),
        (None, "failed", 0),
    ]
    assert len({event.call for event in finished[:3]}) == 3
    assert [event.duration for event in finished] == [pytest.approx(1.0)] * 6
    assert sum(type(event) is AttemptFailed for event in events) == 1


async def test_a_retry_budget_is_paid_by_the_leader_alone(world: World) -> None:
    ask = world.ask(coalesce=True)

    await gather(*(ask() for _ in range(50)))

    assert world.up.snapshot().counts.attempts == 1


async def test_what_is_not_worth_remembering_is_shared_all_the_same(world: World) -> None:
    ask = world.ask(coalesce=True, fallback=[LastGood()])
    world.value = lambda _: []

    assert await gather(ask(), ask()) == [[], []]
    assert world.sent == 1
    assert ask.snapshot().memory.entries == 0


async def test_what_cannot_be_copied_makes_each_ask_for_himself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ask = world.ask(coalesce=True)
    world.value = lambda movie: (letter for letter in movie)

    values = await gather(ask(), ask(), ask())

    assert ["".join(value) for value in values] == ["alien"] * 3
    assert len({id(value) for value in values}) == 3
    assert world.sent >= 2


async def test_what_can_be_copied_only_once_makes_the_others_ask_for_themselves(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Once:
        copies = 0

        def __deepcopy__(self, memo: object) -> Once:
            if type(self).copies:
                raise TypeError("no more")
            type(self).copies += 1
            return Once()

    ask = world.ask(coalesce=True)
    world.value = lambda _: Once()

    answers = await gather(*(ask.ask() for _ in range(2)))

    assert [str(answer.source) for answer in answers] == ["live", "live"]
    assert counted(world.up)["live"] == 2


# -- when things end


async def test_a_gateway_that_closes_lets_followers_finish_with_their_leader(gate: Gateway, world: World) -> None:
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(3)]
    await sleep(0.5)

    await gate.close()

    assert [str((await task).source) for task in tasks] == ["live", "coalesced", "coalesced"]


async def test_a_gateway_that_waits_no_longer_cancels_all_of_them(gate: Gateway, world: World) -> None:
    ask = world.ask(coalesce=True)
    world.took = 9.0
    tasks = [create_task(ask.ask()) for _ in range(3)]
    await sleep(0.5)

    await gate.close(drain_for=1.0)
    ends = await gather(*tasks, return_exceptions=True)

    assert [type(end) for end in ends] == [CancelledError] * 3
    assert counted(world.up) == {"asked": 3, "cancelled": 3, "attempts": world.sent}


async def test_tuning_while_they_wait_leaves_them_their_deadlines(world: World) -> None:
    ask = world.ask(coalesce=True)
    world.took = 5.0
    tasks = [create_task(ask.ask()) for _ in range(2)]
    await sleep(0.5)

    world.up.tune(timeout=TimeoutPolicy(call=0.1), bulkhead=BulkheadPolicy(limit=1, queue=0))

    assert [str((await task).source) for task in tasks] == ["live", "coalesced"]


async def test_ten_thousand_callers_on_a_cold_key_are_one_call(world: World) -> None:
    world.took = 0.5
    ask = world.ask(coalesce=True)

    answers = await gather(*(ask.ask() for _ in range(10_000)))

    assert world.sent == 1
    assert sum(answer.source is Source.COALESCED for answer in answers) == 9_999


async def test_when_the_leader_of_ten_thousand_is_cancelled_they_are_two(world: World) -> None:
    world.took = 0.5
    ask = world.ask(coalesce=True)
    tasks = [create_task(ask.ask()) for _ in range(10_000)]
    await sleep(0.25)

    tasks[0].cancel()
    ends = await gather(*tasks, return_exceptions=True)

    assert world.sent == 2
    assert sum(isinstance(end, CancelledError) for end in ends) == 1


async def test_over_the_bound_of_followers_a_call_goes_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.coalesce.MOST_FOLLOWERS", 3)
    ask = world.ask(coalesce=True)

    answers = await gather(*(ask.ask() for _ in range(6)))

    assert world.sent == 3
    assert [str(answer.source) for answer in answers].count("coalesced") == 3


async def test_over_the_bound_of_flights_a_call_goes_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.coalesce.MOST_FLIGHTS", 1)
    ask = world.ask(coalesce=True)

    await gather(ask("a"), ask("b"), ask("b"), ask("a"))

    assert world.sent == 3
