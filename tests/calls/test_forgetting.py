"""What is forgotten is gone: from memory, from the store, and from what is under way."""

from __future__ import annotations

import asyncio
from asyncio import create_task, gather, sleep
from contextvars import ContextVar
from typing import Any

import pytest

from gateway import Gateway, KeyNeeded, LastGood, Source
from tests.calls.remembered import World, facts
from tests.stores import Store
from tests.support import Boom, ended, steps

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


async def test_what_is_forgotten_is_asked_for_anew(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await gather(ask("alien"), ask("brazil"))

    known, again = ask.forget("alien"), ask.forget(movie="alien")
    answers = [await ask.ask(movie) for movie in ("alien", "brazil")]

    assert (known, again) == (True, False)
    assert [str(answer.source) for answer in answers] == ["live", "cached"]


async def test_it_is_no_fallback_any_more(world: World) -> None:
    ask = world.ask(fallback=[LastGood(), LastGood()])
    await ask("alien")
    ask.forget("alien")
    world.error = Boom()

    assert type(await ended(ask("alien"))).__name__ == "Failed"


@pytest.mark.parametrize("first", ["warm", "cold"])
async def test_it_is_forgotten_in_the_store(gate: Gateway, world: World, first: str) -> None:
    store = Store()
    ask = world.ask(fallback=[LastGood(store=store)])
    await ask("alien")
    await gate.close()
    elsewhere = Gateway()
    again = World(elsewhere).ask(fallback=[LastGood(store=store)])
    if first == "warm":
        await elsewhere.open()

    again.forget("alien")
    with_it = World(other := Gateway()).ask(fallback=[LastGood(store=store)])
    async with elsewhere:
        pass
    other["world"].isolate()

    assert type(await ended(with_it("alien"))).__name__ == "CircuitOpen"
    await other.close()


async def test_arguments_that_are_no_call_say_so(world: World) -> None:
    ask = world.ask(fresh_for=60.0)

    with pytest.raises(TypeError):
        ask.forget("alien", "brazil")
    with pytest.raises(KeyNeeded):
        ask.forget(object())


async def test_of_a_user_his_own_is_forgotten(world: World) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    ask = world.ask(fresh_for=60.0, identity=user.get)

    async def asked_by(name: str) -> Any:
        user.set(name)
        return await ask.ask()

    async def forgotten_by(name: str) -> bool:
        user.set(name)
        return ask.forget("alien")

    await gather(*(create_task(asked_by(name)) for name in ("ada", "bob")))
    await create_task(forgotten_by("ada"))

    assert [str((await create_task(asked_by(name))).source) for name in ("ada", "bob")] == ["live", "cached"]


# -- what is under way


async def test_a_call_under_way_is_not_remembered(world: World) -> None:
    ask = world.ask(fresh_for=60.0, fallback=[LastGood()])
    call = create_task(ask.ask("alien"))
    await sleep(0.5)

    ask.forget("alien")
    answer = await call

    assert facts(answer) == (["alien", 1], "live", 0.0)
    assert ask.snapshot().memory.entries == 0
    assert (await ask.ask("alien")).source is Source.LIVE


async def test_who_asks_from_now_on_does_not_join_what_is_under_way(world: World) -> None:
    ask = world.ask(fresh_for=60.0, coalesce=True)
    old = [create_task(ask.ask("alien")) for _ in range(2)]
    await sleep(0.5)

    ask.forget("alien")
    new = [create_task(ask.ask("alien")) for _ in range(2)]
    answers = await gather(*old, *new)

    assert [facts(answer)[:2] for answer in answers] == [
        (["alien", 1], "live"),
        (["alien", 1], "coalesced"),
        (["alien", 2], "live"),
        (["alien", 2], "coalesced"),
    ]
    assert facts(await ask.ask("alien"))[:2] == (["alien", 2], "cached")


async def test_a_follower_who_takes_over_what_was_forgotten_is_not_remembered_either(world: World) -> None:
    ask = world.ask(fresh_for=60.0, coalesce=True)
    leader = create_task(ask.ask("alien"))
    await steps(1)
    follower = create_task(ask.ask("alien"))
    await sleep(0.5)

    ask.forget("alien")
    leader.cancel()
    answer = await follower

    assert answer.source is Source.LIVE
    assert (await ask.ask("alien")).source is Source.LIVE


async def test_a_refresh_under_way_is_not_remembered(world: World) -> None:
    ask = world.ask(fresh_for=10.0, revalidate="background", coalesce=True)
    await ask("alien")
    await sleep(11.0)
    await ask("alien")
    await sleep(0.5)

    ask.forget("alien")
    await sleep(1.0)

    assert ask.snapshot().memory.entries == 0
    assert facts(await ask.ask("alien"))[:2] == (["alien", 3], "live")


async def test_calls_of_other_arguments_are_remembered_all_the_same(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    call = create_task(ask.ask("brazil"))
    await sleep(0.5)

    ask.forget("alien")
    await call

    assert (await ask.ask("brazil")).source is Source.CACHED


async def test_a_call_that_was_forgotten_may_still_fall_back(world: World) -> None:
    ask = world.ask(fallback=[LastGood(), LastGood()])
    await ask("alien")
    world.error = Boom()
    call = create_task(ended(ask("alien")))
    await sleep(0.5)

    ask.forget("alien")

    assert type(await call).__name__ == "Failed"


# -- many at once


@pytest.fixture
def of_users(world: World) -> Any:
    @world.up.operation(idempotent=True, fresh_for=60.0, secret=("hush",), fallback=[LastGood()])
    async def ratings(user: str, page: int, hush: str = "t") -> list[Any]:
        world.sent += 1
        return [user, page]

    return ratings


PAGES = [("ada", 1), ("ada", 2), ("bob", 1)]


async def cached(operation: Any) -> list[bool]:
    return [operation.snapshot().memory.entries and (await operation.ask(*page)).source == "cached" for page in PAGES]


@pytest.mark.parametrize(
    ("first", "forgotten", "left"),
    [
        ((), 3, []),
        (("ada",), 2, [("bob", 1)]),
        (("ada", 2), 1, [("ada", 1), ("bob", 1)]),
        (("ada", 2, "t"), 1, [("ada", 1), ("bob", 1)]),
        (("ada", 2, "other"), 0, PAGES),
        (("eve",), 0, PAGES),
        (("ad",), 0, PAGES),
        ((1,), 0, PAGES),
    ],
    ids=str,
)
async def test_all_calls_that_begin_so_are_forgotten(of_users: Any, first: Any, forgotten: int, left: Any) -> None:
    for page in PAGES:
        await of_users(*page)

    assert of_users.forget_all(*first) == forgotten
    assert [page for page in PAGES if (await of_users.ask(*page)).source == "cached"] == left


async def test_another_operation_in_the_same_memory_is_left_alone(world: World) -> None:
    memory = LastGood()
    ask = world.ask(fresh_for=60.0, fallback=[memory])
    other = world.up.operation(name="ask_more", idempotent=True, fresh_for=60.0, fallback=[memory])(ask.__wrapped__)
    await gather(ask("alien"), other("alien"))

    assert ask.forget_all() == 1
    assert (await other.ask("alien")).source == "cached"
    assert ask.forget_all() == 0


async def test_all_under_way_are_forgotten_too(world: World) -> None:
    ask = world.ask(fresh_for=60.0, coalesce=True)
    calls = [create_task(ask.ask(movie)) for movie in ("alien", "brazil")]
    await sleep(0.5)

    forgotten = ask.forget_all()
    await gather(*calls)

    assert forgotten == 0
    assert ask.snapshot().memory.entries == 0


async def test_by_what_key_gives(world: World) -> None:
    @world.up.operation(idempotent=True, fresh_for=60.0, key=lambda user, page: (user, page))
    async def ratings(user: Any, page: int) -> list[Any]:
        return [page]

    for page in PAGES:
        await ratings(*page)

    assert ratings.forget_all("ada") == 2
    assert ratings.forget("bob", 1) is True


async def test_of_a_method(world: World) -> None:
    class Films:
        @world.up.operation(idempotent=True, fresh_for=60.0, key=lambda self, movie: movie)
        async def stars(self, movie: str) -> list[str]:
            return [movie]

    films = Films()
    await films.stars("alien")

    assert films.stars.forget("alien") is True
    assert films.stars.forget("alien") is False


# -- from anywhere


async def test_from_another_thread(gate: Gateway, world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    world.took = 0.0
    await ask("alien")

    known = await asyncio.to_thread(ask.forget, "alien")
    all_of_them = await asyncio.to_thread(ask.forget_all)

    assert (known, all_of_them) == (True, 0)
    assert (await ask.ask("alien")).source is Source.LIVE


def test_where_no_loop_runs(gate: Gateway) -> None:
    ask = World(gate).ask(fresh_for=60.0)

    assert ask.forget("alien") is False
    assert ask.forget_all() == 0
