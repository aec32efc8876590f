"""Two ages: how long an answer is as good as a live one, and how old it may be when there is none.

The table is that of all cells: how the upstream is, what is remembered, who else could answer.
"""

from __future__ import annotations

from asyncio import CancelledError, create_task, current_task, gather, get_running_loop, sleep
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, cast

import pytest

from fallbacks.wall import WALL
from gateway import (
    Alternate,
    CallFinished,
    ConfigError,
    Failed,
    Gateway,
    LastGood,
    Outcome,
    Policy,
    Source,
    Static,
    TimeoutPolicy,
)
from gateway.testing import VirtualTimeLoop
from tests.calls.remembered import World, facts
from tests.stores import Store
from tests.support import ONE_TRY, Boom, counted, ended, now

pytestmark = pytest.mark.virtual_time


@pytest.fixture
def world(gate: Gateway) -> World:
    return World(gate)


# -- fresh


async def test_a_fresh_answer_is_given_without_asking(world: World) -> None:
    ask = world.ask(fresh_for=10.0)
    await ask()
    await sleep(9.0)
    began = now()

    answer = await ask.ask()

    assert facts(answer) == (["alien", 1], "cached", 9.0)
    assert answer.stored_at == pytest.approx(WALL.now() - 9.0, abs=1.0)
    assert not answer.degraded
    assert now() == began
    assert counted(world.up) == {"asked": 2, "live": 1, "cached": 1, "attempts": 1}


async def test_one_that_grows_too_old_while_the_call_looks_whether_its_caller_has_left_is_no_answer(
    world: World,
) -> None:
    ask = world.ask(fresh_for=10.0)
    await ask()
    task, loop = current_task(), cast("VirtualTimeLoop", get_running_loop())
    assert task is not None
    task.cancel()
    with suppress(CancelledError):  # it stayed; so its calls look whether it is told to leave again
        await sleep(0)
    loop.call_soon(loop.advance, 11.0)

    answer = await ask.ask()
    task.uncancel()

    assert (answer.source, counted(world.up)["attempts"]) == ("live", 2)


async def test_one_that_is_no_more_fresh_is_asked_for_anew(world: World) -> None:
    ask = world.ask(fresh_for=10.0)
    await ask()
    await sleep(10.001)

    assert facts(await ask.ask()) == (["alien", 2], "live", 0.0)


async def test_fresh_for_nothing_is_never_fresh(world: World) -> None:
    ask = world.ask(fallback=[LastGood()])

    assert [str((await ask.ask()).source) for _ in range(2)] == ["live", "live"]


async def test_a_fresh_answer_needs_no_place_and_no_circuit(world: World, gate: Gateway) -> None:
    ask = world.ask(fresh_for=60.0)
    await ask()
    world.up.isolate()

    assert (await ask.ask()).source is Source.CACHED
    assert world.up.snapshot().bulkhead.peak == 1


async def test_a_stale_answer_serves_when_the_upstream_cannot(world: World) -> None:
    ask = world.ask(fresh_for=10.0, fallback=[LastGood(max_age=60.0)])
    await ask()
    world.error = Boom()
    await sleep(30.0)

    stale = await ask.ask()
    await sleep(29.5)

    assert facts(stale) == (["alien", 1], "last_good", 31.0)
    assert type(stale.error) is Failed
    assert type(await ended(ask())) is Failed


async def test_one_that_is_fresh_alone_serves_no_longer_than_that(world: World) -> None:
    ask = world.ask(fresh_for=10.0)
    await ask()
    world.error = Boom()
    await sleep(20.0)

    assert type(await ended(ask())) is Failed


async def test_a_caller_that_changes_a_fresh_answer_changes_nobody_elses(world: World) -> None:
    ask = world.ask(fresh_for=60.0)
    live = await ask()
    live.append("changed")

    first = await ask()
    first.append("changed")

    assert await ask() == ["alien", 1]


async def test_of_another_user_it_is_not_fresh(world: World) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    ask = world.ask(fresh_for=60.0, identity=user.get)
    world.value = lambda _: user.get()

    async def asked_by(name: str) -> Any:
        user.set(name)
        return await ask()

    answers = [await create_task(asked_by(name)) for name in ("ada", "bob", "ada", "bob")]

    assert answers == ["ada", "bob"] * 2
    assert world.sent == 2


async def test_an_empty_answer_is_given_and_not_remembered(world: World) -> None:
    ask = world.ask(fresh_for=10.0, fallback=[LastGood(max_age=60.0)])
    await ask()
    await sleep(11.0)
    world.value = lambda _: []

    empty = await ask.ask()
    world.error = Boom()

    assert facts(empty) == ([], "live", 0.0)
    assert (await ask.ask()).value == ["alien", 1]


async def test_what_a_fallback_said_is_never_remembered(world: World) -> None:
    ask = world.ask(fresh_for=10.0, fallback=[LastGood(), Static(["s"])])
    world.error = Boom()

    assert (await ask(), await ask()) == (["s"], ["s"])
    assert world.sent == 2
    assert ask.snapshot().memory.entries == 0


@pytest.mark.parametrize("who", ["remember", "size_of"])
async def test_what_is_said_of_remembering_and_raises_costs_the_caller_nothing(
    world: World, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_: object) -> Any:
        raise Boom

    ask = world.ask(fresh_for=10.0, **{who: raises})

    assert facts(await ask.ask()) == (["alien", 1], "live", 0.0)
    assert ask.snapshot().memory.entries == 0
    assert "world.ask" in caplog.text


async def test_with_single_flight_a_fresh_answer_comes_first(world: World) -> None:
    ask = world.ask(fresh_for=10.0, coalesce=True)

    sources = [str(answer.source) for answer in await gather(*(ask.ask() for _ in range(3)))]
    sources += [str((await ask.ask()).source)]

    assert sources == ["live", "coalesced", "coalesced", "cached"]


# -- what cannot be


@pytest.mark.parametrize(
    "said", [{"fresh_for": 5.0}, {"revalidate": "background"}, {"coalesce": True}], ids=["fresh", "anew", "shared"]
)
def test_what_does_something_each_time_is_not_remembered(world: World, said: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"world.ask .*on idempotent=False"):
        world.ask(idempotent=False, **said)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("fresh_for", value) for value in (-1.0, "5", True, float("nan"))],
        *[("revalidate", value) for value in ("foreground", True)],
        *[("remember", value) for value in (True, sleep)],
        *[("size_of", value) for value in (5, sleep)],
        *[("coalesce", value) for value in (1, "yes")],
        *[("secret", value) for value in ("token", [5])],
    ],
)
def test_what_cannot_work_is_an_error_that_names_it(world: World, name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        world.ask(**{name: value})

    assert caught.value.field.endswith(f"ask {name}")


def test_a_last_good_that_comes_too_short_is_an_error_and_changes_nothing(world: World) -> None:
    ask = world.ask(fresh_for=400.0)

    with pytest.raises(ConfigError, match="fresh_for"):
        ask.fallback(LastGood(max_age=300))

    assert ask.tiers == ()
    assert ask.memories[0].max_age == 400.0


# -- the answer says so


async def test_events_and_numbers_say_how_old_it_was(gate: Gateway, world: World) -> None:
    events: list[CallFinished] = []
    gate.on(CallFinished)(events.append)
    ask = world.ask(fresh_for=10.0, fallback=[LastGood()])
    await ask()
    await sleep(5.0)
    await ask()
    world.error = Boom()
    await sleep(15.0)
    await ask()

    seen = ask.snapshot()

    assert [(event.source, event.outcome, round(event.age, 3), event.attempts) for event in events] == [
        ("live", "success", 0.0, 1),
        ("cached", "success", 5.0, 0),
        ("last_good", "failed", 21.0, 1),
    ]
    assert seen.ages.count == 2
    assert seen.ages.max == pytest.approx(21.0)
    assert (seen.memory.entries, seen.memory.hits, seen.memory.misses) == (1, 2, 1)


# -- the table


HOW_OLD = {"fresh": 2.0, "stale": 30.0, "too old": 90.0}
TIERS = ["none", "LastGood", "LastGood, Static", "handler", "LastGood, handler", "LastGood, Alternate"]
FRESH, LAST = 5.0, 60.0


def remembers(tiers: str) -> bool:
    return "LastGood" in tiers


CELLS = [
    (upstream, kept, tiers, where)
    for upstream in ("up", "failing", "hanging", "open")
    for kept in (*HOW_OLD, "empty", "corrupt")
    for tiers in TIERS
    for where in ("memory", "cold store", "warm store")
    if (where == "memory" and kept != "corrupt") or (where != "memory" and remembers(tiers))
]


def expected(upstream: str, kept: str, tiers: str, where: str) -> tuple[str, float]:
    """Source and age; the age counts from when it was live."""
    age = HOW_OLD.get(kept)
    if kept == "fresh" and (where == "memory" or (where == "warm store" and remembers(tiers))):
        return "cached", HOW_OLD["fresh"]
    if upstream == "up":
        return "live", 0.0
    took = {"failing": 1.0, "hanging": 2.0, "open": 0.0}[upstream]
    if remembers(tiers) and age is not None and age + took <= LAST:
        return "last_good", age + took
    for tier in ("Static", "handler", "Alternate"):
        if tier in tiers:
            return tier.lower(), 0.0
    return {"failing": "Failed", "hanging": "FailedTimeout", "open": "CircuitOpen"}[upstream], 0.0


@pytest.mark.parametrize(("upstream", "kept", "tiers", "where"), CELLS)
async def test_who_answers_and_how_old_that_is(gate: Gateway, upstream: str, kept: str, tiers: str, where: str) -> None:
    policy = Policy(timeout=TimeoutPolicy(call=6.0, attempt=2.0), retry=ONE_TRY, fallback_timeout=1.0)
    world = World(gate, policy)
    store = Store()
    other = gate.upstream("other", policy=policy)

    @other.operation(idempotent=True)
    async def elsewhere(movie: str = "alien") -> list[Any]:
        return ["elsewhere"]

    def plan_b(error: Exception, movie: str) -> list[Any]:
        return ["plan b"]

    made: dict[str, Any] = {
        "LastGood": LastGood(max_age=LAST, store=None if where == "memory" else store),
        "Static": Static(["static"]),
        "Alternate": Alternate(elsewhere),
    }
    ask = world.ask(fresh_for=FRESH, fallback=[made[name] for name in tiers.split(", ") if name in made])
    if "handler" in tiers:
        ask.fallback(plan_b)
    key = ask._key_for(("alien",), {})
    if where != "memory" and kept != "empty":
        store.put(key, ["alien", 1], HOW_OLD.get(kept, 0.0))
    if kept == "corrupt":
        store._cache = {name: data[:-1] + b"?" for name, data in store._cache.items()}
    if where == "warm store":
        await gate.open()
    elif where == "memory" and kept in HOW_OLD:
        await ask("alien")
        await sleep(HOW_OLD[kept])
    if upstream == "failing":
        world.error = Boom()
    elif upstream == "hanging":
        world.took = 99.0
    elif upstream == "open":
        world.up.isolate()

    end = await ended(ask.ask("alien"))

    got = (type(end).__name__, 0.0) if isinstance(end, Exception) else (str(end.source), end.age)
    source, age = expected(upstream, kept, tiers, where)
    if where != "memory" and source == "last_good":
        age -= {"failing": 1.0, "hanging": 2.0, "open": 0.0}[upstream] if where == "cold store" else 0.0
    assert got == (source, pytest.approx(age, abs=0.5))
    if isinstance(end, Exception):
        assert end.outcome == (Outcome.REJECTED if upstream == "open" else Outcome.FAILED)  # type: ignore[attr-defined]
    elif source in ("cached", "last_good"):
        assert end.value == ["alien", 1]
        assert end.stored_at == pytest.approx(WALL.now() - end.age, abs=0.5)
    await gate.close()


# -- many keys


async def test_many_keys_stay_within_the_bound(world: World) -> None:
    memory = LastGood(max_entries=500, max_bytes=20_000)
    world.took = 0.0
    ask = world.ask(fallback=[memory], size_of=len)
    world.value = lambda movie: movie

    for number in range(5_000):
        await ask(f"movie {number:05}")
        assert len(memory) <= 500
        assert memory.bytes_used <= 20_000

    assert memory.snapshot().evicted == 4_500


# -- who leaves, whenever


@pytest.mark.parametrize("at", range(16))
@pytest.mark.parametrize("state", ["cold", "fresh", "stale", "failing", "in the store"])
async def test_whenever_a_caller_leaves_nothing_is_left_and_all_is_counted(
    gate: Gateway, world: World, state: str, at: int
) -> None:
    store = Store()
    store.delay = 0.01
    world.took = 0.0
    said: dict[str, Any] = {"fresh_for": 10.0, "revalidate": "background", "coalesce": True, "circuit_by": "operation"}
    ask = world.ask(fallback=[LastGood(max_age=60.0, store=store)], **said)
    await gate.open()
    if state in ("fresh", "stale"):
        await ask("alien")
        await sleep(20.0 if state == "stale" else 1.0)
    if state == "in the store":
        store.put(ask._key_for(("alien",), {}), ["alien", 7], age=1.0)
    if state in ("failing", "in the store"):
        world.error = Boom()
    tasks = [create_task(ask.ask("alien")) for _ in range(3)]

    for _ in range(at):
        await sleep(0 if at % 2 else 0.002)
    for task in tasks[:2]:
        task.cancel()
    ends = await gather(*tasks, return_exceptions=True)
    await sleep(1.0)
    counts = ask.snapshot().counts
    await gate.close()

    assert type(ends[2]) is Failed if state == "failing" else ends[2].value[0] == "alien"  # type: ignore[union-attr]
    assert counts.adds_up
    assert counts.in_flight == 0
    assert all(not breaker.in_use for _, breaker in world.up.circuits)
