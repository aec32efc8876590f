"""The store behind the answers: written behind, read when memory has nothing, left alone when it fails."""

from __future__ import annotations

import asyncio
import gc
import logging
from asyncio import CancelledError, create_task, sleep
from contextvars import ContextVar
from math import inf
from pathlib import Path
from typing import Any

import pytest
from aiocache import SimpleMemoryCache
from aiocache.base import BaseCache
from aiocache.serializers import JsonSerializer, NullSerializer, PickleSerializer, StringSerializer

from fallbacks.behind import BATCH, FAILURES, FLUSH_FOR, LINGER, PENDING_WRITES, REST, STORE_TIMEOUT, Behind
from fallbacks.envelope import wrap
from fallbacks.spelling import spelled
from fallbacks.stores import SQLiteStore
from fallbacks.stores.octets import Octets
from fallbacks.wall import WallClock
from gateway.testing import VirtualTimeLoop
from tests.clock import Clock
from tests.support import Boom, gone, now, steps

pytestmark = pytest.mark.virtual_time


class Store(SimpleMemoryCache):
    """A backend that holds bytes and does as it is told."""

    def __init__(self) -> None:
        super().__init__(serializer=Octets())
        self.batches: list[list[str]] = []
        self.deleted: list[str] = []
        self.gets: list[list[str]] = []
        self.ttls: list[Any] = []
        self.error: BaseException | None = None
        self.poison: bytes | None = None
        self.delay = 0.0

    async def _multi_set(self, pairs: Any, ttl: Any = None, **kwargs: Any) -> Any:
        pairs = list(pairs)
        self.batches.append([name for name, _ in pairs])
        self.ttls.append(ttl)
        await self._do()
        if self.poison is not None and any(self.poison in data for _, data in pairs):
            raise Boom("poison")
        self._cache.update(pairs)

    async def _multi_get(self, keys: Any, **kwargs: Any) -> Any:
        self.gets.append(list(keys))
        await self._do()
        return [self._cache.get(key) for key in keys]

    async def _delete(self, key: str, **kwargs: Any) -> int:
        self.deleted.append(key)
        await self._do()
        return int(self._cache.pop(key, None) is not None)

    async def _do(self) -> None:
        if self.delay:
            await sleep(self.delay)
        if self.error is not None:
            raise self.error

    def put(self, key: Any, value: Any, at: float) -> None:
        """As another process would have written it."""
        self._cache[name(key)] = wrap(value, at, name=name(key))


def name(key: Any) -> str:
    return f"g2:{spelled(key)}"


@pytest.fixture
def wall() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def behind(store: Store, wall: Clock) -> Behind:
    return made(store, wall)


def made(store: BaseCache, wall: Clock, max_age: float = 60.0, max_bytes: float = inf) -> Behind:
    return Behind(store, max_age=max_age, max_bytes=max_bytes, wall=WallClock(wall, wall))


def counts(behind: Behind) -> dict[str, Any]:
    """The numbers that are not 0."""
    seen = behind.snapshot()
    return {field: number for field in seen.__slots__ if (number := getattr(seen, field))}


# -- writing


async def test_a_value_is_written_behind_with_a_whole_number_of_seconds_to_live(store: Store, wall: Clock) -> None:
    behind = made(store, wall, max_age=59.5)

    behind.write("k", ["v"])
    at_once = list(store.batches)
    await sleep(2 * LINGER)

    assert at_once == []
    assert store.ttls == [60]
    assert type(store.ttls[0]) is int
    assert store._cache == {name("k"): wrap(["v"], 1_000_000.0, name=name("k"))}
    assert counts(behind) == {"writes": 1}


async def test_what_has_no_greatest_age_is_kept_for_ever(store: Store, wall: Clock) -> None:
    behind = made(store, wall, max_age=inf)

    behind.write("k", "v")
    await behind.flush()

    assert store.ttls == [None]


async def test_writes_of_one_key_are_one_the_last_and_all_go_together(store: Store, behind: Behind) -> None:
    for key, value in (("a", 1), ("b", 1), ("a", 2), ("a", 3)):
        behind.write(key, value)
    await behind.flush()

    assert store.batches == [[name("a"), name("b")]]
    assert await behind.read("a") == (3, 0.0, 1_000_000.0)


async def test_a_newer_value_takes_the_stamp_of_the_one_it_replaces_in_the_queue(behind: Behind, wall: Clock) -> None:
    behind.write("a", 1)
    wall.wait(0.5)

    behind.write("a", 2)

    assert await behind.read("a") == (2, 0.5, 1_000_000.0)  # it looks older than it is, never younger


async def test_what_is_live_after_all_was_forgotten_is_not_void_with_what_it_replaces(
    behind: Behind, wall: Clock
) -> None:
    behind.write("a", 1)
    wall.wait(0.5)
    behind.forget_all("op")
    wall.wait(0.5)

    behind.write("a", 2)

    assert await behind.read("a", within="op") == (2, 0.0, 1_000_001.0)


async def test_many_are_written_in_batches(store: Store, behind: Behind) -> None:
    for number in range(PENDING_WRITES):
        behind.write(number, "v")
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await sleep(0)
            turns += 1

    turning = create_task(turn())
    await behind.flush()
    await gone(turning)

    assert [len(batch) for batch in store.batches] == [BATCH] * (PENDING_WRITES // BATCH)
    assert turns >= PENDING_WRITES // BATCH  # the store never waits: the loop has its turn all the same


async def test_large_values_go_in_smaller_batches(store: Store, behind: Behind) -> None:
    for number in range(4):
        behind.write(number, "v", size=600_000)
    await behind.flush()

    assert [len(batch) for batch in store.batches] == [2, 2]


async def test_what_comes_while_it_writes_is_written_too_and_the_newest_last(store: Store, behind: Behind) -> None:
    store.delay = 0.5
    behind.write("a", 1)
    await sleep(0.1)
    behind.write("a", 2)
    behind.write("b", 2)

    await behind.flush()

    assert store.batches == [[name("a")], [name("a"), name("b")]]
    assert (await behind.read("a"))[0] == 2  # type: ignore[index]


async def test_the_queue_is_bounded_by_number(store: Store, behind: Behind) -> None:
    for number in range(PENDING_WRITES + 500):
        behind.write(number, "v")
        assert behind.snapshot().pending <= PENDING_WRITES
    await behind.flush()

    assert counts(behind) == {"writes": PENDING_WRITES, "dropped_writes": 500}
    assert store.batches[0][0] == name(500)  # the oldest were dropped


async def test_the_queue_is_bounded_by_bytes(store: Store, wall: Clock) -> None:
    behind = made(store, wall, max_bytes=1000)

    for number in range(20):
        behind.write(number, "v", size=300)
        assert behind._bytes == 300 * len(behind._pending) <= 1000
    behind.write(19, "v", size=10)
    smaller = behind._bytes
    behind.write("large", "v", size=5000)
    await behind.flush()

    assert smaller == 610
    assert store.batches == [[name("large")]]  # alone it may be too large for memory: the store is where it is kept
    assert behind._bytes == 0
    assert counts(behind) == {"writes": 1, "dropped_writes": 20}


async def test_what_cannot_be_encoded_is_counted_and_keeps_nothing_up(
    store: Store, behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    class Nasty:
        def __eq__(self, other: object) -> bool:
            raise Boom

        __hash__ = None  # type: ignore[assignment]

    for key, value in (("a", object()), (1.5, "no name"), ("b", (1,)), ("n", Nasty()), ("c", "good")):
        behind.write(key, value)
    await behind.flush()

    assert store.batches == [[name("c")]]
    assert counts(behind) == {"writes": 1, "unencodable": 4}
    assert len(caplog.records) == 3  # the 1st, the 2nd, the 4th
    assert "cannot keep" in caplog.text


async def test_only_what_cannot_be_encoded_does_not_ask_the_store(store: Store, behind: Behind) -> None:
    behind.write("a", object())
    await behind.flush()

    assert store.batches == []


async def test_a_value_is_written_as_its_declared_type(behind: Behind) -> None:
    behind.write("k", (1, "a"), tuple[int, str])
    await behind.flush()

    assert await behind.read("k", tuple[int, str]) == ((1, "a"), 0.0, 1_000_000.0)
    assert await behind.read("k", dict[str, int]) is None
    assert counts(behind) == {"writes": 1, "reads": 2, "hits": 1, "undecodable": 1}


async def test_encoding_much_lets_the_loop_turn(behind: Behind) -> None:
    value = [{"a": number} for number in range(2_000)]
    for number in range(50):
        behind.write(number, value)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await sleep(0)
            turns += 1

    turning = create_task(turn())
    await behind.flush()
    await gone(turning)

    assert turns > 10


async def test_what_is_written_behind_has_a_context_of_its_own(store: Store, wall: Clock) -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    class Looks(Store):
        async def _do(self) -> None:
            seen.append(user.get())
            seen.append(asyncio.current_task().get_name())  # type: ignore[union-attr]

    behind = made(Looks(), wall)
    user.set("ada")
    behind.write("k", "v")
    await sleep(2 * LINGER)

    assert seen == ["nobody", "gateway: write behind"]


def test_a_write_where_no_loop_runs_waits_for_one(store: Store, wall: Clock) -> None:
    behind = made(store, wall)
    behind.write("a", 1)

    async def go_on() -> None:
        behind.write("b", 2)
        await sleep(2 * LINGER)

    loop = VirtualTimeLoop()
    loop.run_until_complete(go_on())
    behind.write("c", 3)
    loop.close()

    assert store.batches == [[name("a"), name("b")]]


# -- reading


async def test_what_another_process_wrote_is_read_with_its_age(store: Store, behind: Behind) -> None:
    store.put("k", ["v"], 1_000_000.0 - 12.0)

    assert await behind.read("k") == (["v"], 12.0, 1_000_000.0 - 12.0)
    assert await behind.read("other") is None
    assert counts(behind) == {"reads": 2, "hits": 1}


async def test_a_value_grows_too_old(store: Store, behind: Behind, wall: Clock) -> None:
    store.put("k", "v", 1_000_000.0)

    wall.wait(60.0)
    still = await behind.read("k")
    wall.wait(0.001)

    assert still == ("v", 60.0, 1_000_000.0)
    assert await behind.read("k") is None


async def test_a_clock_a_little_ahead_makes_no_negative_age_and_one_far_ahead_is_not_believed(
    store: Store, behind: Behind
) -> None:
    store.put("near", "v", 1_000_003.0)
    store.put("far", "v", 1_000_500.0)

    assert await behind.read("near") == ("v", 0.0, 1_000_003.0)
    assert await behind.read("far") is None
    assert behind.undecodable == 1


@pytest.mark.parametrize(
    "garbage", ["text", "", "é", 5, [], {}, b"", b"gw", b"\x80\x04K\x01.", {"value": 1, "at": 2}], ids=repr
)
async def test_garbage_is_a_miss_with_a_counter(store: Store, behind: Behind, garbage: Any) -> None:
    store._cache[name("k")] = garbage

    assert await behind.read("k") is None
    assert counts(behind) == {"reads": 1, "undecodable": 1}


async def test_what_waits_to_be_written_is_read_already(store: Store, behind: Behind, wall: Clock) -> None:
    store.delay = 0.5
    store.put("k", "old", 999_999.0)
    behind.write("k", "new")
    waiting = await behind.read("k")
    await sleep(0.1)
    on_its_way = await behind.read("k")
    await behind.flush()

    assert waiting == on_its_way == ("new", 0.0, 1_000_000.0)
    assert store.gets == []


async def test_a_key_without_a_name_is_a_miss(store: Store, behind: Behind) -> None:
    assert await behind.read(1.5) is None
    assert store.gets == []


async def test_a_store_that_is_switched_off_is_a_miss(
    store: Store, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOCACHE_DISABLE", "1")

    behind.write("k", "v")
    await behind.flush()

    assert await behind.read("k", within="op") is None
    assert behind.errors == 0


# -- forgetting


async def test_what_is_forgotten_is_gone_at_once_and_from_the_store(store: Store, behind: Behind) -> None:
    store.put("k", "v", 1_000_000.0)
    behind.write("unwritten", "v")

    behind.forget("k")
    behind.forget("unwritten")
    at_once = [await behind.read("k"), await behind.read("unwritten")]
    await behind.flush()

    assert at_once == [None, None]
    assert store._cache == {}
    assert store.batches == []


async def test_what_comes_after_a_forget_is_kept(behind: Behind) -> None:
    behind.write("k", 1)
    behind.forget("k")
    behind.write("k", 2)
    await behind.flush()

    assert await behind.read("k") == (2, 0.0, 1_000_000.0)


async def test_a_forget_that_fails_is_tried_again_and_keeps_nothing_up(store: Store, behind: Behind) -> None:
    store.put("k", "v", 1_000_000.0)

    async def fails(key: str, **kwargs: Any) -> int:
        raise Boom

    works, store._delete = store._delete, fails  # type: ignore[method-assign]
    behind.forget("k")
    behind.write("other", 1)
    await behind.flush()
    kept_from_view = await behind.read("k")
    store._delete = works  # type: ignore[method-assign]
    await behind.flush()

    assert name("other") in store._cache
    assert kept_from_view is None
    assert name("k") not in store._cache


async def test_a_forget_is_not_driven_out_of_the_queue_by_answers(store: Store, behind: Behind) -> None:
    """In an outage of the store the queue overflows. An answer is only missed; what was forgotten would come back."""
    store.put("k", "v", 1_000_000.0)
    behind.forget("k")
    behind.forget_all("all of it")

    for number in range(2 * PENDING_WRITES):
        behind.write(number, "v")
    await behind.flush()

    assert name("k") not in store._cache
    assert behind.tombstone("all of it") in store._cache
    assert behind.dropped_writes == PENDING_WRITES + 2
    assert len(behind._pending) == 0


@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize("how", ["driven out", "not taken", "not to be encoded", "not in time for the batch"])
async def test_what_was_forgotten_goes_even_if_what_came_after_it_is_not_written(
    store: Store, behind: Behind, how: str, size: int
) -> None:
    store.put("k", "of before", 1_000_000.0)
    store.poison = b"poison"
    behind.write("k", "unwritten", size=size)
    behind.forget("k")
    if how == "not in time for the batch":
        store.error, store.delay = Boom(), 0.01
        await sleep(LINGER + 0.005)
    behind.write("k", {"driven out": "v", "not to be encoded": object()}.get(how, "poison"), size=size)

    for number in range(2 * PENDING_WRITES if how == "driven out" else 0):
        behind.write(number, "v")
    await behind.flush()
    store.error = None
    await behind.flush()
    await behind.flush()

    assert store._cache.get(name("k")) is None
    assert behind.snapshot().pending == 0


@pytest.mark.parametrize("size", [0, 5])
async def test_what_is_forgotten_while_it_waits_to_be_written_is_not_driven_out(
    store: Store, behind: Behind, size: int
) -> None:
    store.put("k", "of before", 1_000_000.0)
    behind.write("k", "v", size=size)
    behind.forget("k")

    for number in range(2 * PENDING_WRITES):
        behind.write(number, "v")
    await behind.flush()

    assert name("k") not in store._cache


async def test_of_nothing_but_forgets_the_oldest_goes(store: Store, behind: Behind) -> None:
    store.put(0, "v", 1_000_000.0)
    store.put(1, "v", 1_000_000.0)

    for number in range(PENDING_WRITES + 1):
        behind.forget(number)
    await behind.flush()

    assert (name(0) in store._cache, name(1) in store._cache) == (True, False)
    assert counts(behind)["dropped_writes"] == 1


async def test_all_of_a_group_is_forgotten_for_all_who_share_the_store(store: Store, wall: Clock) -> None:
    mine, theirs = made(store, wall), made(store, wall)
    mine.write("old", 1)
    await mine.flush()

    wall.wait(1.0)
    theirs.forget_all("op")
    at_once = await theirs.read("old", within="op")
    await theirs.flush()
    wall.wait(1.0)
    mine.write("new", 2)
    await mine.flush()

    assert at_once is None
    assert await mine.read("old", within="op") is None
    assert await mine.read("old", within="other") == (1, 2.0, 1_000_000.0)
    assert await theirs.read("new", within="op") == (2, 0.0, 1_000_002.0)
    assert store.gets[-1] == [name("new"), theirs.tombstone("op")]


async def test_a_group_is_forgotten_up_to_this_instant_with_what_still_waits(behind: Behind) -> None:
    behind.write("k", 1)
    behind.forget_all("op")

    assert await behind.read("k", within="op") is None
    await behind.flush()
    assert await behind.read("k", within="op") is None


async def test_a_tombstone_that_cannot_be_read_voids_all_the_same(store: Store, behind: Behind) -> None:
    store.put("k", "v", 1_000_000.0)
    store._cache[behind.tombstone("op")] = b"garbage"

    assert await behind.read("k", within="op") is None


async def test_a_tombstone_from_a_clock_ahead_voids(store: Store, behind: Behind) -> None:
    store.put("k", "v", 1_000_000.0)
    store._cache[behind.tombstone("op")] = wrap(None, 1_000_100.0, name=behind.tombstone("op"))

    assert await behind.read("k", within="op") is None
    assert behind.undecodable == 0


# -- a store that is out of order


async def test_a_store_that_mixes_up_its_entries_gives_nobody_what_is_another_s(store: Store, behind: Behind) -> None:
    behind.write("ada", ["Ada's"])
    behind.write("bob", ["Bob's"])
    await behind.flush()
    ada, bob = name("ada"), name("bob")
    store._cache[ada], store._cache[bob] = store._cache[bob], store._cache[ada]

    found = [await behind.read("ada"), await behind.read("bob")]

    assert found == [None, None]
    assert behind.undecodable == 2


def warned(caplog: pytest.LogCaptureFixture, what: str) -> list[int]:
    """How many failures each line of the log speaks of."""
    lines = [record for record in caplog.records if record.levelname == "WARNING"]
    assert all(record.args[0] == what for record in lines)  # type: ignore[index]
    return [record.args[1] for record in lines]  # type: ignore[index, misc]


@pytest.mark.parametrize(
    "error", [Boom("disk full"), CancelledError()], ids=["an error", "a task of its own cancelled"]
)
async def test_a_store_that_fails_is_left_alone_and_tried_again(
    store: Store, behind: Behind, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    store.error = error
    store.put("k", "v", 1_000_000.0)

    answers = [await behind.read("k") for _ in range(20)]
    asked_while_ill = len(store.gets)
    resting = behind.snapshot().resting
    await sleep(REST + 0.1)
    answers.append(await behind.read("k"))
    answers.append(await behind.read("k"))
    asked_later = len(store.gets)
    store.error = None
    await sleep(REST + 0.1)
    found = await behind.read("k")

    assert answers == [None] * 22
    assert (asked_while_ill, asked_later, resting) == (FAILURES, FAILURES + 1, True)
    assert found is not None
    assert not behind.snapshot().resting
    assert warned(caplog, "read") == [1, 2, 4]
    assert "works again" in caplog.text


async def test_only_one_tries_a_store_that_rested(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for _ in range(FAILURES):
        await behind.read("k")
    await sleep(REST + 0.1)
    store.error, store.delay = None, 0.5

    await asyncio.gather(*(behind.read("k") for _ in range(50)))

    assert len(store.gets) == FAILURES + 1


@pytest.mark.parametrize("how", ["cancelled", "no name"])
async def test_a_try_that_comes_to_nothing_leaves_the_next_one_free(store: Store, behind: Behind, how: str) -> None:
    store.error = Boom()
    for _ in range(FAILURES):
        await behind.read("k")
    await sleep(REST + 0.1)
    store.error, store.delay = None, 0.01

    if how == "cancelled":
        trying = create_task(behind.read("k"))
        await steps(2)
        await gone(trying)
    else:
        await behind.read(1.5)
    asked = len(store.gets)
    await behind.read("k")

    assert len(store.gets) == asked + 1
    assert not behind.resting


async def test_a_writer_that_is_cancelled_while_it_tries_leaves_the_next_one_free(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for _ in range(FAILURES):
        await behind.read("k")
    store.error, store.delay = None, 0.5
    behind.write("a", 1)
    await sleep(REST + 0.1)
    behind.write("a", 2)
    await sleep(2 * LINGER)
    assert behind._writer is not None

    await gone(behind._writer)
    await behind.read("k")

    assert len(store.gets) == FAILURES + 1
    assert not behind.resting
    behind.stop()


async def test_what_cannot_be_encoded_does_not_speak_for_the_store(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for _ in range(FAILURES - 1):
        await behind.read("k")
    behind.write("a", object())
    await behind.flush()
    await behind.read("k")

    assert behind.resting


async def test_batches_grow_again_after_a_failure(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for number in range(500):
        behind.write(number, number)
    await behind.read("k")
    writing = create_task(behind.flush())
    while not store.batches:
        await sleep(0)
    store.error = None
    await writing

    assert [len(batch) for batch in store.batches] == [200, 14, 196, 200, 90]


async def test_writes_wait_while_the_store_rests_and_go_on_by_themselves(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for _ in range(FAILURES):
        await behind.read("k")

    for number in range(300):
        behind.write(number, "v")
    await sleep(REST / 2)
    while_resting = list(store.batches)
    store.error = None
    await sleep(REST)

    assert while_resting == []
    assert [len(batch) for batch in store.batches] == [200, 100]
    assert counts(behind) == {"writes": 300, "reads": FAILURES, "errors": FAILURES}


async def test_a_store_that_fails_loses_next_to_nothing(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for number in range(300):
        behind.write(number, "v")
    await sleep(REST)

    store.error = None
    await sleep(2 * REST)

    assert behind.writes + behind.dropped_writes == 300
    assert behind.dropped_writes <= FAILURES
    assert behind.snapshot().pending == 0


async def test_one_value_that_the_store_does_not_take_costs_only_itself(store: Store, behind: Behind) -> None:
    store.poison = b"poison"
    for number in range(300):
        behind.write(number, "poison" if number == 150 else "v")

    await behind.flush()

    assert behind.writes == 299
    assert behind.dropped_writes == 1
    assert not behind.resting
    assert behind.snapshot().pending == 0


async def test_a_store_that_hangs_is_given_up_on(
    store: Store, behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    store.delay = 3600.0
    began = now()
    behind.write("k", "v")

    answer = await behind.read("other")
    took = now() - began
    await behind.flush()
    behind.stop()

    assert answer is None
    assert took == pytest.approx(STORE_TIMEOUT)
    assert "TimeoutError" in caplog.text
    assert now() - began <= 2 * STORE_TIMEOUT + FLUSH_FOR + 0.1


async def test_callers_that_leave_a_hanging_store_have_it_left_alone(store: Store, behind: Behind) -> None:
    store.delay = 3600.0
    for _ in range(FAILURES):
        reading = create_task(behind.read("k"))
        await sleep(0.1)
        await gone(reading)

    began = now()
    answer = await behind.read("k")

    assert (answer, now() - began) == (None, 0.0)
    assert behind.errors == FAILURES


async def test_callers_that_leave_at_once_say_nothing_about_the_store(store: Store, behind: Behind) -> None:
    store.delay = 3600.0
    for _ in range(20):
        reading = create_task(behind.read("k"))
        await steps(2)
        await gone(reading)
        assert reading.cancelled()

    assert counts(behind) == {"reads": 20}


async def test_a_newer_value_wins_over_one_that_is_put_back(store: Store, behind: Behind) -> None:
    store.delay, store.error = 0.1, Boom()
    behind.write("a", "old")
    behind.write("b", "only")
    await sleep(2 * LINGER)
    behind.write("a", "new")
    await sleep(0.09)
    store.delay, store.error = 0.0, None
    await behind.flush()

    assert (await behind.read("a"))[0] == "new"  # type: ignore[index]
    assert (await behind.read("b"))[0] == "only"  # type: ignore[index]


async def test_what_is_put_back_goes_first(store: Store, behind: Behind) -> None:
    store.delay, store.error = 0.1, Boom()
    behind.write("a", 1)
    behind.write("b", 1)
    await sleep(2 * LINGER)
    behind.write("c", 1)
    await sleep(0.09)
    store.delay, store.error = 0.0, None
    await behind.flush()

    assert store.batches[-1] == [name("a"), name("b"), name("c")]


# -- ends


async def test_flushing_nothing_is_nothing(behind: Behind) -> None:
    await behind.flush()
    behind.stop()

    assert counts(behind) == {}


async def test_flushing_tries_a_store_that_rests_once_and_gives_up(store: Store, behind: Behind) -> None:
    store.error = Boom()
    for _ in range(FAILURES):
        await behind.read("k")
    behind.write("k", "v")
    began = now()

    await behind.flush()
    tried = len(store.batches)
    behind.stop()

    assert now() == began
    assert tried == 1
    assert behind.dropped_writes == 1


async def test_stopping_gives_up_what_waits_and_writing_may_go_on_later(store: Store, behind: Behind) -> None:
    store.delay = 0.5
    for number in range(300):
        behind.write(number, "v")
    await sleep(2 * LINGER)

    behind.stop()
    await steps(3)
    stopped = counts(behind)
    store.delay = 0.0
    behind.write("k", "v")
    await behind.flush()

    assert stopped == {"dropped_writes": 300}
    assert list(store._cache) == [name("k")]


async def test_stopping_ends_the_timer_that_would_write(store: Store, behind: Behind) -> None:
    behind.write("k", "v")

    behind.stop()
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    await sleep(1.0)

    assert timers == []
    assert store.batches == []


async def test_a_writer_whose_store_was_cancelled_has_failed_and_is_not_begun_again_without_end(
    store: Store, behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    store.error = CancelledError()
    behind.write("k", "v")

    await behind.flush()

    assert len(store.batches) <= FAILURES
    assert behind.errors == len(store.batches)
    assert "failed to write" in caplog.text


async def test_a_writer_that_is_cancelled_loses_nothing(store: Store, behind: Behind) -> None:
    store.delay = 0.5
    for number in range(300):
        behind.write(number, "v")
    await sleep(2 * LINGER)
    assert behind._writer is not None

    await gone(behind._writer)
    waiting = behind.snapshot().pending
    store.delay = 0.0
    behind.write("k", "v")
    await behind.flush()

    assert waiting == 300
    assert len(store._cache) == 301


async def test_who_waits_for_the_flush_and_leaves_stops_no_writing(store: Store, behind: Behind) -> None:
    store.delay = 0.5
    behind.write("k", "v")
    flushing = create_task(behind.flush())
    await steps(3)

    await gone(flushing)
    await sleep(1.0)

    assert flushing.cancelled()
    assert list(store._cache) == [name("k")]


@pytest.mark.parametrize("when", ["while it lingers", "while it writes", "while it rests"])
def test_what_waits_outlives_the_loop_it_was_written_on(when: str, store: Store, wall: Clock) -> None:
    behind = made(store, wall)

    async def begin() -> None:
        if when == "while it rests":
            store.error = Boom()
            for _ in range(FAILURES):
                await behind.read("k")
        behind.write("a", 1)
        if when == "while it writes":
            store.delay = 3600.0
            await sleep(2 * LINGER)

    async def go_on(*, flush: bool) -> None:
        behind.write("b", 2)
        await (behind.flush() if flush else sleep(2 * LINGER))

    for flush in (True, False):
        first, second = VirtualTimeLoop(), VirtualTimeLoop()
        first.run_until_complete(begin())
        first.close()
        store.delay, store.error = 0.0, None
        second.run_until_complete(go_on(flush=flush))
        second.close()
        gc.collect()

        assert set(store._cache) == {name("a"), name("b")}
        assert behind.dropped_writes == 0
        assert behind.snapshot().pending == 0
        store._cache.clear()


# -- warm start


async def test_a_store_that_tells_its_newest_is_asked_for_them(wall: Clock, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "answers.db", namespace="app")
    behind = made(store, wall)
    for number in range(5):
        behind.write(number, number)
    await behind.flush()
    await store.set("somebody else's", b"x")

    newest = await behind.newest(4, inf)
    await store.close()

    assert list(newest) == [behind.spelled(2), behind.spelled(3), behind.spelled(4)]
    assert behind.opened(behind.spelled(4), newest[behind.spelled(4)], int) == (4, 0.0, 1_000_000.0)


async def test_a_store_that_tells_nothing_has_no_newest(behind: Behind) -> None:
    assert await behind.newest(10, inf) == {}


@pytest.mark.parametrize("error", [Boom, CancelledError], ids=["an error", "a task of its own cancelled"])
async def test_a_store_that_fails_to_tell_its_newest_has_none(
    store: Store, behind: Behind, error: type[BaseException]
) -> None:
    async def newest(most_entries: int, most_bytes: float) -> dict[str, bytes]:
        raise error

    store.newest = newest  # type: ignore[attr-defined]

    assert await behind.newest(10, inf) == {}
    assert behind.errors == 1


# -- any backend


class Textual(SimpleMemoryCache):
    """As aiocache's networked backends do: what a store holds is bytes, read by the serializer's encoding."""

    async def _multi_set(self, pairs: Any, ttl: Any = None, **kwargs: Any) -> Any:
        assert ttl is None or type(ttl) is int
        self._cache.update({key: data.encode() if isinstance(data, str) else data for key, data in pairs})

    async def _multi_get(self, keys: Any, encoding: Any = "utf-8", **kwargs: Any) -> Any:
        held = [self._cache.get(key) for key in keys]
        return [data if data is None or encoding is None else data.decode(encoding) for data in held]


class Explosive:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("serializer", [NullSerializer, StringSerializer, JsonSerializer, PickleSerializer, Octets])
@pytest.mark.parametrize("backend", [SimpleMemoryCache, Textual])
async def test_any_backend_with_any_serializer_will_do(backend: Any, serializer: Any, wall: Clock) -> None:
    store = backend(serializer=serializer())
    behind = made(store, wall)
    value = {"a": [1, "ä", b"\xff", None, 1.5]}

    behind.write("k", value)
    behind.write("gone", 1)
    await behind.flush()
    behind.forget("gone")
    behind.forget_all("op")
    await behind.flush()

    assert await behind.read("k") == (value, 0.0, 1_000_000.0)
    assert await behind.read("gone") is None
    assert await behind.read("k", within="op") is None
    assert behind.errors == behind.undecodable == 0
    await store.clear()


async def test_nothing_in_a_store_is_ever_unpickled(wall: Clock) -> None:
    store = SimpleMemoryCache(serializer=PickleSerializer())
    behind = made(store, wall)
    await store.set(name("k"), Explosive())

    assert await behind.read("k") is None
    assert behind.undecodable == 1
