"""A stale answer at once, and one refresh in the background: never queued, capped, and nobody's burden."""

from __future__ import annotations

import asyncio
from asyncio import create_task, gather, sleep
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest

from gateway import (
    AttemptFailed,
    BreakerPolicy,
    BulkheadPolicy,
    CallFinished,
    Deadline,
    Failed,
    Gateway,
    LastGood,
    Policy,
    Source,
    TimeoutPolicy,
)
from gateway.testing import VirtualTimeLoop
from tests.calls.remembered import World, facts
from tests.support import ONE_TRY, QUIET, Boom, counted, ended, gone, now, steps

pytestmark = pytest.mark.virtual_time

ANEW: dict[str, Any] = {"fresh_for": 10.0, "revalidate": "background"}


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


async def grown_stale(ask: Any, *movies: str, seconds: float = 11.0) -> None:
    """Have these answers in memory, and let them grow stale."""
    await gather(*(ask(movie) for movie in movies or ("alien",)))
    await sleep(seconds)


async def test_a_stale_answer_is_given_at_once_and_the_next_is_anew(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask, seconds=20.0)
    began = now()

    stale = await ask.ask("alien")
    took = now() - began
    await sleep(2.0)
    anew = await ask.ask("alien")

    assert facts(stale) == (["alien", 1], "cached", 20.0)
    assert took == 0.0
    assert facts(anew) == (["alien", 2], "cached", 1.0)
    counts = counted(world.up)
    assert counts == {"asked": 3, "live": 1, "cached": 2, "attempts": 2, "refreshed": 1}


async def test_one_refresh_runs_however_many_ask(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)

    await gather(*(ask("alien") for _ in range(20)))
    await sleep(0.5)
    await ask("alien")
    await sleep(2.0)

    assert world.sent == 2


async def test_a_fresh_answer_is_not_asked_for_anew(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask, seconds=8.9)

    await ask("alien")
    await sleep(2.0)

    assert world.sent == 1


async def test_keys_that_were_written_together_are_asked_for_one_after_the_other(world: World) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=200), refresh_limit=200)
    world.took = 0.0
    ask = world.ask(**ANEW)
    movies = [f"movie {number}" for number in range(100)]
    await gather(*(ask(movie) for movie in movies))

    begun = []
    await sleep(8.9)
    for _ in range(13):
        before = world.sent
        await gather(*(ask(movie) for movie in movies))
        await sleep(0.1)
        begun.append(world.sent - before)

    assert sum(begun) == 100
    assert max(begun) < 40  # all 100 at once, without their moments of their own


async def test_an_answer_that_is_too_old_is_asked_for_and_waited_for(world: World) -> None:
    ask = world.ask(**ANEW, fallback=[LastGood(max_age=60.0)])
    await grown_stale(ask, seconds=61.0)

    assert facts(await ask.ask("alien")) == (["alien", 2], "live", 0.0)


async def test_a_refresh_that_fails_leaves_the_old_answer(world: World) -> None:
    ask = world.ask(**ANEW, fallback=[LastGood(max_age=60.0)])
    await grown_stale(ask)
    world.error = Boom()

    first = await ask.ask("alien")
    await sleep(2.0)
    second = await ask.ask("alien")
    await sleep(2.0)

    assert (first.value, second.value) == (["alien", 1], ["alien", 1])
    assert world.sent == 3
    assert counted(world.up) | {} == {
        "asked": 3,
        "live": 1,
        "cached": 2,
        "attempts": 3,
        "refreshed": 2,
        "refresh_failed": 2,
    }
    assert world.up.snapshot().breaker.failures == 2  # evidence like any


async def test_an_empty_answer_does_not_replace_the_old_one(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.value = lambda _: []

    await ask("alien")
    await sleep(2.0)

    assert (await ask.ask("alien")).value == ["alien", 1]
    await sleep(2.0)


# -- only into free places


async def test_where_no_place_is_free_nothing_is_asked(world: World) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=5))
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    other = create_task(ask("other"))
    await steps(1)

    answer = await ask.ask("alien")

    assert answer.source is Source.CACHED
    assert world.up.snapshot().bulkhead.waiting == 0
    await other
    assert counted(world.up) == {"asked": 3, "live": 2, "cached": 1, "attempts": 2}


async def test_one_that_finds_its_place_taken_meanwhile_does_not_queue(world: World) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=5))
    ask = world.ask(**ANEW)
    await grown_stale(ask)

    await ask("alien")  # the refresh has a task, which has not run
    other = create_task(ask("other"))  # a caller's task, after it
    first = world.up.bulkhead.acquire_nowait()
    await steps(2)
    world.up.bulkhead.release()
    await other

    assert first
    assert counted(world.up)["refresh_failed"] == 1


async def test_refreshes_are_capped(world: World) -> None:
    movies = [f"movie {number}" for number in range(8)]
    world.up.policy = replace(QUIET, refresh_limit=3)
    ask = world.ask(**ANEW)
    await grown_stale(ask, *movies)
    world.peak = 0

    await gather(*(ask(movie) for movie in movies))
    await sleep(0.5)

    assert world.running == 3
    await sleep(2.0)
    assert counted(world.up)["refreshed"] == 3


async def test_while_the_circuit_is_open_nothing_is_asked(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.up.isolate()

    answer = await ask.ask("alien")
    await steps(3)

    assert answer.source is Source.CACHED
    assert "refreshed" not in counted(world.up)


async def test_a_refresh_closes_a_circuit_that_may_be_tried_again(world: World) -> None:
    world.up.policy = Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1, open_for=5.0, probes=1))
    ask = world.ask(**ANEW, fallback=[LastGood()])
    await grown_stale(ask)
    world.error = Boom()
    await ask("alien")
    await sleep(7.0)
    opened = world.up.snapshot().breaker.state
    world.error = None

    await ask("alien")
    await sleep(2.0)

    assert opened in {"open", "half_open"}
    assert world.up.snapshot().breaker.state == "closed"
    assert facts(await ask.ask("alien")) == (["alien", 3], "cached", 1.0)


# -- in which context


async def test_it_has_the_callers_context_and_a_deadline_of_its_own(world: World) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[Any] = []

    @world.up.operation(idempotent=True, timeout=TimeoutPolicy(call=7.0, attempt=3.0), **ANEW)
    async def ask() -> str:
        limit = Deadline.current()
        seen.append((user.get(), None if limit is None else round(limit.remaining(), 3)))
        user.set("changed in there")
        return "v"

    user.set("ada")
    await ask()
    await sleep(11.0)
    user.set("bob")
    with Deadline.after(0.5):
        await ask()
    await sleep(1.0)

    assert seen == [("ada", 3.0), ("bob", 3.0)]
    assert user.get() == "bob"


async def test_what_is_asked_of_its_answer_has_no_deadline(world: World) -> None:
    seen: list[Any] = []

    def remember(_: object) -> bool:
        seen.append(Deadline.current())
        return True

    ask = world.ask(remember=remember, **ANEW)
    await grown_stale(ask)
    with Deadline.after(0.5):
        await ask("alien")
    await sleep(2.0)

    assert seen == [None, None]


async def test_who_asked_may_leave(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)

    async def caller() -> None:
        await ask("alien")
        await sleep(99.0)

    task = create_task(caller())
    await steps(2)
    await gone(task)
    await sleep(2.0)

    assert facts(await ask.ask("alien")) == (["alien", 2], "cached", 1.0)


async def test_one_that_hangs_ends_by_the_limits_of_the_operation(world: World) -> None:
    world.up.policy = Policy(timeout=TimeoutPolicy(call=4.0, attempt=2.0), retry=ONE_TRY)
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.took = 99.0

    await ask("alien")
    await sleep(2.5)

    assert world.running == 0
    assert counted(world.up)["refresh_failed"] == 1


async def test_it_is_tried_once(world: World) -> None:
    world.up.policy = Policy(breaker=QUIET.breaker)
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.error = Boom()

    await ask("alien")
    await sleep(5.0)

    assert world.sent == 2


async def test_listeners_hear_of_its_failure_and_of_no_call(gate: Gateway, world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.error = Boom()
    events: list[Any] = []
    gate.on(CallFinished, AttemptFailed)(events.append)

    await ask("alien")
    await sleep(2.0)

    assert [type(event) for event in events] == [CallFinished, AttemptFailed]
    assert type(events[1].error) is Failed


# -- with others


async def test_who_wants_it_newer_shares_the_refresh_that_runs(world: World) -> None:
    ask = world.ask(**ANEW, coalesce=True)
    await grown_stale(ask)

    await ask("alien")
    await sleep(0.5)
    answer = await ask.using(max_age=5.0).ask("alien")

    assert facts(answer) == (["alien", 2], "coalesced", 0.0)
    assert world.sent == 2


async def test_who_follows_a_refresh_that_finds_no_place_asks_himself(world: World) -> None:
    world.up.policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=5, max_wait=60.0))
    ask = world.ask(**ANEW, coalesce=True)
    await grown_stale(ask)

    await ask("alien")  # its refresh has a task, which has not run
    assert world.up.bulkhead.acquire_nowait()
    follower = create_task(ask.using(max_age=5.0).ask("alien"))
    await steps(3)
    world.up.bulkhead.release()

    assert facts(await follower) == (["alien", 2], "live", 0.0)


async def test_who_follows_a_refresh_that_fails_is_told_so(world: World) -> None:
    ask = world.ask(**ANEW, coalesce=True)
    await grown_stale(ask)
    world.error = Boom()

    await ask("alien")
    await sleep(0.5)
    error = await ended(ask.using(max_age=5.0)("alien"))

    assert type(error) is Failed
    assert world.sent == 2


async def test_a_circuit_by_key_is_held_while_it_runs_and_then_let_go(world: World) -> None:
    who: ContextVar[str] = ContextVar("who", default="a")
    world.up.policy = replace(QUIET, breaker=BreakerPolicy(min_calls=1000, min_callers=2))
    ask = world.ask(**ANEW, circuit_by=who, caller=who)
    await grown_stale(ask)

    await ask("alien")
    await sleep(0.5)
    during = {key: breaker.in_use for key, breaker in world.up.circuits}
    await sleep(1.0)

    assert during == {"a": 1}
    assert {key: breaker.in_use for key, breaker in world.up.circuits} == {"a": 0}


async def test_what_names_the_circuit_is_asked_in_the_call_only(world: World) -> None:
    asked = 0

    def by(movie: str = "alien") -> str:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise Boom
        return movie

    ask = world.ask(**ANEW, circuit_by=by)
    await grown_stale(ask)

    await ask("alien")
    await sleep(2.0)

    assert counted(world.up)["refreshed"] == 1
    assert "refresh_failed" not in counted(world.up)


# -- when things end


async def test_a_gateway_that_closes_ends_them(gate: Gateway, world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    world.took = 99.0
    await ask("alien")
    await steps(2)
    began = now()

    await gate.close()

    assert world.running == 0
    assert now() - began == 0.0
    assert "refresh_failed" not in counted(world.up)


@pytest.mark.parametrize("at", range(5))
async def test_whenever_the_gateway_closes_nothing_is_left(gate: Gateway, world: World, at: int) -> None:
    ask = world.ask(**ANEW, coalesce=True, circuit_by="operation")
    await grown_stale(ask)
    await ask("alien")
    await steps(at)

    await gate.close()

    assert world.running == 0
    assert all(not breaker.in_use for _, breaker in world.up.circuits)


async def test_one_that_resists_keeps_the_end_no_longer_than_it_was_told(gate: Gateway, world: World) -> None:
    released = asyncio.Event()

    @world.up.operation(idempotent=True, **ANEW)
    async def ask() -> str:
        if world.sent:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    world.running += 1
        world.sent += 1
        return "v"

    await ask()
    await sleep(11.0)
    await ask()
    await steps(2)
    began = now()

    await gate.close(join_for=2.0)
    took = now() - began
    released.set()
    await steps(5)

    assert took == pytest.approx(2.0, abs=0.1)
    assert world.running >= 1


async def test_one_that_closes_its_own_gateway_does_not_wait_for_itself(gate: Gateway, world: World) -> None:
    closed: list[Any] = []

    @world.up.operation(idempotent=True, **ANEW)
    async def ask() -> str:
        world.sent += 1
        if world.sent == 2:
            closed.append(await gate.close(drain_for=0.0, join_for=1.0))
        return "v"

    await ask()
    await sleep(11.0)
    await ask()
    began = now()
    await sleep(0.5)

    assert closed == [()]
    assert not world.up.refreshing
    assert now() - began == pytest.approx(0.5)


async def test_one_that_outlives_its_gateway_ends_nothing_of_what_began_since(gate: Gateway, world: World) -> None:
    released = asyncio.Event()

    @world.up.operation(idempotent=True, **ANEW)
    async def ask() -> str:
        world.sent += 1
        while world.sent == 2 and not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                world.running += 1
        await sleep(1.0)
        return "v"

    await ask()
    await sleep(11.0)
    await ask()
    await steps(2)
    await gate.close(join_for=0.1)
    await gate.open()
    world.sent = 10
    await ask()
    await sleep(0.5)

    released.set()
    await steps(5)
    running = len(world.up.refreshing)
    await ask()
    await sleep(2.0)

    assert running == 1
    assert world.sent == 11


async def test_one_that_runs_while_the_operation_is_tuned_goes_on(world: World) -> None:
    ask = world.ask(**ANEW)
    await grown_stale(ask)
    await ask("alien")
    await sleep(0.5)

    world.up.tune(
        timeout=TimeoutPolicy(call=0.1),
        breaker=BreakerPolicy(min_calls=5),
        bulkhead=BulkheadPolicy(limit=1, queue=0),
        refresh_limit=1,
    )
    await sleep(1.0)

    assert facts(await ask.ask("alien")) == (["alien", 2], "cached", 0.5)


def test_when_the_loop_is_closed_under_them_they_are_over(gate: Gateway) -> None:
    world = World(gate)
    ask = world.ask(**ANEW, coalesce=True, circuit_by="operation")

    async def stale_and_off() -> None:
        await grown_stale(ask)
        world.took = 99.0
        await ask("alien")
        await sleep(0.5)

    async def again() -> Any:
        world.took = 1.0
        await sleep(30.0)
        return await ask.using(max_age=5.0).ask("alien")

    first, second = VirtualTimeLoop(), VirtualTimeLoop()
    first.run_until_complete(stale_and_off())
    assert len(world.up.refreshing) == 1
    for task in asyncio.all_tasks(first):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    first.close()
    answer = second.run_until_complete(again())
    in_use = [breaker.in_use for _, breaker in world.up.circuits]
    second.run_until_complete(gate.close())
    second.close()

    assert answer.source == "live"
    assert in_use == [0]
    assert not world.up.refreshing
