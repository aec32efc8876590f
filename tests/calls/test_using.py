"""Callers who want more of an answer: none that is too old, or only a live one."""

from __future__ import annotations

import asyncio
from asyncio import create_task, gather, sleep
from copy import copy
from typing import Any

import pytest

from gateway import Alternate, ConfigError, Deadline, Failed, Gateway, LastGood, Source, Static
from tests.calls.remembered import World, facts
from tests.support import Boom, counted, ended, now, steps

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


# -- nothing too old


@pytest.mark.parametrize(("max_age", "source"), [(4.9, "live"), (5.0, "cached"), (60.0, "cached"), (0, "live")])
async def test_nothing_older_comes_from_memory(world: World, max_age: float, source: str) -> None:
    ask = world.ask(fresh_for=10.0)
    await ask("alien")
    await sleep(5.0)

    assert str((await ask.using(max_age=max_age).ask("alien")).source) == source


@pytest.mark.parametrize(("max_age", "value"), [(20.9, ["s"]), (21.1, ["alien", 1])])
async def test_nor_from_a_fallback(world: World, max_age: float, value: list[Any]) -> None:
    ask = world.ask(fallback=[LastGood(), Static(["s"])])
    await ask("alien")
    world.error = Boom()
    await sleep(20.0)

    answer = await ask.using(max_age=max_age).ask("alien")

    assert answer.value == value


async def test_nor_from_what_an_alternate_remembers(gate: Gateway, world: World) -> None:
    other = gate.upstream("other")

    @other.operation(idempotent=True, fresh_for=60.0)
    async def elsewhere(movie: str) -> list[Any]:
        return ["elsewhere"]

    ask = world.ask(fallback=[Alternate(elsewhere)])
    world.error = Boom()
    await elsewhere("alien")
    await sleep(20.0)

    assert (await ask.ask("alien")).age == pytest.approx(21.0)
    assert type(await ended(ask.using(max_age=5.0)("alien"))) is Failed


async def test_a_stale_answer_that_is_young_enough_is_given_and_asked_for_anew(world: World) -> None:
    ask = world.ask(fresh_for=5.0, revalidate="background")
    await ask("alien")
    await sleep(8.0)

    answer = await ask.using(max_age=10.0).ask("alien")
    await sleep(2.0)

    assert facts(answer) == (["alien", 1], "cached", 8.0)
    assert world.sent == 2


async def test_what_it_brings_is_remembered_for_all(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")
    await sleep(5.0)
    await ask.using(max_age=1.0)("alien")

    assert facts(await ask.ask("alien")) == (["alien", 2], "cached", 0.0)


# -- only live


async def test_only_live_asks_the_upstream_whatever_is_remembered(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")

    answer = await ask.using(only_live=True).ask("alien")

    assert facts(answer) == (["alien", 2], "live", 0.0)
    assert facts(await ask.ask("alien"))[:2] == (["alien", 2], "cached")


async def test_only_live_or_an_error(world: World) -> None:
    ask = world.ask(fallback=[LastGood(), Static(["s"])])
    await ask("alien")
    world.error = Boom()

    error = await ended(ask.using(only_live=True)("alien"))

    assert type(error) is Failed
    assert not hasattr(error, "__notes__")


async def test_only_live_is_no_other_calls_answer(world: World) -> None:
    ask = world.ask(coalesce=True)
    first = create_task(ask.ask())
    await steps(1)

    second = await ask.using(only_live=True).ask()

    assert facts(second)[:2] == (["alien", 2], "live")
    await first


# -- the same operation in all else


async def test_its_calls_are_the_operations_own(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    using = ask.using(max_age=5.0)
    await using("alien")

    assert counted(world.up) == {"asked": 1, "live": 1, "attempts": 1}
    assert (using.name, using.upstream, using.operation) == ("ask", world.up, ask)
    assert using.forget("alien") is True
    assert using.snapshot() == ask.snapshot()
    assert repr(using).startswith("<Operation world.ask> using Wants(max_age=5.0")


async def test_a_copy_of_it_wants_the_same(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")
    using = copy(ask.using(only_live=True))

    answer = await using.ask("alien")

    assert answer.source is Source.LIVE
    assert using.operation is ask


async def test_the_deadline_holds_for_it(world: World) -> None:
    ask = world.ask()
    began = now()

    with Deadline.after(0.5):
        error = await ended(ask.using(only_live=True)())

    assert type(error).__name__ == "FailedTimeout"
    assert now() - began == pytest.approx(0.5)


async def test_one_that_leaves_is_cancelled(world: World) -> None:
    call = create_task(world.ask().using(only_live=True)())
    await sleep(0.5)

    call.cancel()
    await asyncio.wait({call})

    assert call.cancelled()
    assert counted(world.up) == {"asked": 1, "cancelled": 1, "attempts": 1}


async def test_the_last_wish_counts(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")

    assert (await ask.using(only_live=True).using(max_age=50.0).ask("alien")).source is Source.CACHED


async def test_a_wish_for_nothing_is_none(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")

    assert (await ask.using().ask("alien")).source is Source.CACHED


async def test_of_a_method(world: World) -> None:
    class Films:
        def __init__(self, name: str) -> None:
            self.name = name

        @world.up.operation(idempotent=True, fresh_for=60.0, key=lambda self, movie: (self.name, movie))
        async def stars(self, movie: str) -> list[str]:
            world.sent += 1
            return [self.name, movie]

        @world.up.operation(idempotent=True, fresh_for=60.0, key=lambda cls, movie: movie)
        @classmethod
        async def of_all(cls, movie: str) -> list[str]:
            return [cls.__name__, movie]

    films = Films("ada")
    await films.stars("alien")

    live = await films.stars.using(only_live=True).ask("alien")
    young = await films.stars.using(max_age=5.0).ask("alien")
    of_all = await Films.of_all.using(only_live=True)("alien")

    assert facts(live) == (["ada", "alien"], "live", 0.0)
    assert facts(young) == (["ada", "alien"], "cached", 0.0)
    assert of_all == ["Films", "alien"]
    assert world.sent == 2


async def test_from_a_thread(world: World) -> None:
    world.took = 0.0
    ask = world.ask(fresh_for=60.0)
    await ask("alien")
    using = ask.using(only_live=True)

    value = await asyncio.to_thread(using.call_blocking, "alien")
    answer = await asyncio.to_thread(using.ask_blocking, "alien")

    assert value == ["alien", 2]
    assert facts(answer) == (["alien", 3], "live", 0.0)


async def test_as_an_alternate_it_is_asked_as_it_wishes(gate: Gateway, world: World) -> None:
    other = gate.upstream("other")
    asked = 0

    @other.operation(idempotent=True, fresh_for=60.0)
    async def elsewhere(movie: str) -> list[Any]:
        nonlocal asked
        asked += 1
        return [asked]

    ask = world.ask(fallback=[Alternate(elsewhere.using(only_live=True))])
    world.error = Boom()

    answers = [await ask.ask("alien") for _ in range(2)]

    assert [answer.value for answer in answers] == [[1], [2]]


def test_circles_of_alternates_are_seen_through_it(world: World) -> None:
    ask = world.ask()

    with pytest.raises(ConfigError, match="its Alternates lead back to itself"):
        ask.fallback(Alternate(ask.using(only_live=True)))


@pytest.mark.parametrize("age", [-1.0, True, "5", float("nan")], ids=repr)
def test_an_age_that_is_none_is_an_error(world: World, age: Any) -> None:
    with pytest.raises(ConfigError, match=r"world.ask.using max_age"):
        world.ask().using(max_age=age)


async def test_two_at_once_do_not_mix_their_wishes(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask("alien")

    answers = await gather(
        ask.using(only_live=True).ask("alien"), ask.ask("alien"), ask.using(max_age=0.0).ask("alien")
    )

    assert [str(answer.source) for answer in answers] == ["live", "cached", "cached"]
