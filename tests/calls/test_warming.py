"""Answers that are in memory before anybody asks: by name, and from the store when the gateway opens."""

from __future__ import annotations

import asyncio
from asyncio import create_task, gather, sleep
from dataclasses import replace
from typing import Any

import pytest

from fallbacks.behind import name_of
from gateway import ConfigError, Gateway, GatewayClosed, KeyNeeded, LastGood, Source
from gateway.registry import WARM_START_FOR
from gateway.remembering import MOST_WARMING
from tests.calls.remembered import World, facts
from tests.stores import Store
from tests.support import QUIET, Boom, ended, gone, now

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


# -- by name


async def test_what_is_warmed_is_fresh(world: World) -> None:
    ask = world.ask(fresh_for=60.0)

    warmed = await ask.warm(["alien", ("brazil",)])

    assert warmed == 2
    assert [str((await ask.ask(movie)).source) for movie in ("alien", "brazil")] == ["cached", "cached"]


async def test_what_is_there_is_not_asked_for(world: World) -> None:
    ask = world.ask(fallback=[LastGood()])
    await ask("alien")

    assert await ask.warm(["alien", "brazil"]) == 2
    assert world.sent == 2


async def test_what_the_store_has_is_not_asked_for_either(gate: Gateway, world: World) -> None:
    store = Store()
    ask = world.ask(fallback=[LastGood(store=store)])
    store.put(ask._key_for(("alien",), {}), ["alien", 7], age=5.0)

    assert await ask.warm(["alien"]) == 1
    assert world.sent == 0
    await gate.close()


async def test_one_that_fails_is_left_out(world: World) -> None:
    ask = world.ask(fresh_for=60.0)

    def value(movie: str) -> Any:
        if movie == "brazil":
            raise Boom
        return [movie]

    world.value = value

    assert await ask.warm(["alien", "brazil", "casablanca"]) == 2
    assert world.sent == 3


async def test_an_answer_that_is_not_worth_remembering_is_not_warm(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    world.value = lambda _: []

    assert await ask.warm(["alien"]) == 0


async def test_a_fallback_warms_nothing(world: World) -> None:
    ask = world.ask(fallback=[LastGood()])
    world.error = Boom()

    @ask.fallback
    def plan_b(error: Exception, movie: str) -> list[Any]:
        raise AssertionError("asked for nobody")

    assert await ask.warm(["alien"]) == 0


async def test_no_more_at_once_than_refreshes(world: World) -> None:
    world.up.policy = replace(QUIET, refresh_limit=3)
    ask = world.ask(fresh_for=60.0)

    warmed = await ask.warm(f"movie {number}" for number in range(10))

    assert (warmed, world.peak) == (10, 3)


async def test_without_a_limit_there_is_one_all_the_same(world: World) -> None:
    world.up.policy = replace(QUIET, refresh_limit=float("inf"), bulkhead=replace(QUIET.bulkhead, limit=1000))
    ask = world.ask(fresh_for=60.0)

    await ask.warm(f"movie {number}" for number in range(MOST_WARMING + 50))

    assert world.peak == MOST_WARMING


async def test_nothing_to_warm_is_nothing(world: World) -> None:
    assert await world.ask(fresh_for=60.0).warm([]) == 0


async def test_what_remembers_nothing_cannot_be_warmed(world: World) -> None:
    with pytest.raises(ConfigError, match=r"world.ask.warm: it remembers nothing"):
        await world.ask().warm(["alien"])


@pytest.mark.parametrize("wrong", [("alien", "too", "many"), object()], ids=["too many", "no key"])
async def test_arguments_that_are_no_call_say_so(world: World, wrong: object) -> None:
    ask = world.ask(fresh_for=60.0)

    error = await ended(ask.warm(["alien", wrong, "brazil"]))

    assert type(error) in {TypeError, KeyNeeded}


async def test_who_leaves_warms_no_more(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    warming = create_task(ask.warm(f"movie {number}" for number in range(100)))
    await sleep(2.5)

    await gone(warming)
    await sleep(5.0)

    assert world.sent == 15
    assert world.running == 0


async def test_of_a_closed_gateway_it_says_so(gate: Gateway, world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await gate.open()
    await gate.close()

    with pytest.raises(GatewayClosed):
        await ask.warm(["alien"])


async def test_of_one_that_is_not_open_yet_it_opens_it(gate: Gateway, world: World) -> None:
    ask = world.ask(fresh_for=60.0)

    await ask.warm(["alien"])

    assert facts(await ask.ask("alien")) == (["alien", 1], "cached", 0.0)


# -- from the store


async def test_what_the_store_has_is_there_before_the_first_call(world: World, gate: Gateway) -> None:
    store = Store()
    ask = world.ask(fresh_for=60.0, fallback=[LastGood(store=store)])
    store.put(ask._key_for(("alien",), {}), ["alien", 7], age=5.0)

    await gate.open()
    answer = await ask.ask("alien")
    await gate.close()

    assert answer.value == ["alien", 7]
    assert answer.source is Source.CACHED
    assert answer.age == pytest.approx(5.0, abs=1.0)
    assert (world.sent, store.gets) == (0, [])


async def test_a_restart_goes_on_where_it_was(gate: Gateway, world: World) -> None:
    store = Store()
    ask = world.ask(fallback=[LastGood(store=store)])
    await ask("alien")
    await gate.close()

    async with Gateway() as later:
        again = World(later)
        once_more = again.ask(fallback=[LastGood(store=store)])
        again.error = Boom()
        answer = await once_more.ask("alien")

    assert facts(answer)[:2] == (["alien", 1], "last_good")
    assert answer.age < 2.0


async def test_a_store_that_hangs_keeps_the_opening_for_a_while_only(gate: Gateway, world: World) -> None:
    store = Store()
    store.delay = 3600.0
    ask = world.ask(fallback=[LastGood(store=store)])
    began = now()

    await gate.open()
    took = now() - began
    answer = await ask.ask("alien")

    assert took == pytest.approx(WARM_START_FOR)
    assert answer.source is Source.LIVE
    await gate.close(join_for=0.1)


async def test_on_first_use_nobody_waits_for_the_store(gate: Gateway, world: World) -> None:
    store = Store()
    store.delay = 0.5
    ask = world.ask(fallback=[LastGood(store=store)])
    began = now()

    await ask("alien")

    assert now() - began == pytest.approx(1.0)
    await gate.close()


@pytest.mark.parametrize("at", [0.0, 0.25, 0.5])
async def test_who_leaves_while_it_opens_leaves_nothing(gate: Gateway, world: World, at: float) -> None:
    store = Store()
    store.delay = 0.5
    world.ask(fallback=[LastGood(store=store)])
    opening = create_task(gate.open())
    await sleep(at)

    await gone(opening)
    await gate.close()

    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("gateway")] == []


async def test_closing_while_it_still_warms_ends_that(gate: Gateway, world: World) -> None:
    store = Store()
    store.delay = 60.0
    ask = world.ask(fallback=[LastGood(store=store)])
    world.took = 0.0
    await ask("alien")
    began = now()

    await gate.close(join_for=2.0)

    assert now() - began < 5.0


async def test_of_several_memories_each_is_warm(gate: Gateway, world: World) -> None:
    stores = Store(), Store()
    first = world.ask(fallback=[LastGood(store=stores[0])])
    second = world.up.operation(name="more", idempotent=True, fallback=[LastGood(store=stores[1])])(first.__wrapped__)
    for operation, store in zip((first, second), stores, strict=True):
        store.put(operation._key_for(("alien",), {}), [operation.name], age=1.0)
    world.error = Boom()

    async with gate:
        answers = await gather(first.ask("alien"), second.ask("alien"))

    assert [answer.value for answer in answers] == [["ask"], ["more"]]
    assert [store.gets for store in stores] == [[], []]


async def test_a_store_that_hangs_holds_up_no_other(gate: Gateway, world: World) -> None:
    stores = Store(), Store(), Store()
    stores[0].delay = stores[2].delay = 3600.0
    memories = [LastGood(store=store) for store in stores]
    ask = world.ask(fallback=memories)
    stores[1].put(ask._key_for(("alien",), {}), ["alien", 7], age=1.0)

    await gate.open()
    warm = [len(memory) for memory in memories]
    await ask("brazil")
    await gate.close(join_for=2.0)

    assert warm == [0, 1, 0]
    assert name_of(ask._key_for(("brazil",), {})) in stores[1].names
