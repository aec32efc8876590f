"""The tier that remembers, without a gateway: its bounds, whose the values are, and the store behind it."""

from __future__ import annotations

from asyncio import create_task, sleep
from collections import defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from math import inf, nan
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct

from fallbacks import Answer, Fallback, LastGood, Question, Source, Static
from fallbacks.behind import name_of
from fallbacks.chain import may_await
from fallbacks.copying import copied
from fallbacks.envelope import wrap
from fallbacks.last_good import MIB, MOST_DRIVEN_OUT, Entry, MemorySnapshot
from fallbacks.sizes import ATOM_SIZE, size_of
from fallbacks.wall import WALL
from gateway.testing import VirtualTimeLoop
from tests.stores import Store
from tests.support import Boom, now, steps

pytestmark = pytest.mark.virtual_time


def question(key: Any = "k", at: float = 0.0, **given: Any) -> Question:
    facts: dict[str, Any] = {"args": (), "kwargs": {}, "error": Boom(), "deadline": inf}
    return Question(key=key, now=at, **{**facts, **given})


def served(memory: LastGood, key: Any = "k", at: float = 0.0) -> Any:
    """What it has under a key, None if nothing."""
    answer = memory.answer(question(key, at))
    assert answer is None or type(answer) is Answer
    return None if answer is None else answer.value


def filled(*keys: str, **knobs: Any) -> LastGood:
    """A memory that has these keys, each with itself as value."""
    memory = LastGood(**knobs)
    for key in keys:
        memory.remember(key, key, 0.0)
    return memory


def keys_of(memory: LastGood) -> list[Any]:
    """The keys, the next to be forgotten first."""
    return list(memory._entries)


# -- remembering


def test_what_was_live_is_answered_with_its_age() -> None:
    memory = LastGood()
    memory.remember("k", "v", 100.0)
    asked = question(at=112.5)

    answer = memory.answer(asked)

    assert isinstance(answer, Answer)
    assert (answer.value, answer.source, answer.age, answer.error) == ("v", Source.LAST_GOOD, 12.5, asked.error)
    assert answer.stored_at == pytest.approx(WALL.now() - 12.5, abs=1.0)


def test_what_was_never_live_is_no_answer() -> None:
    memory = filled("a")

    assert memory.answer(question("b")) is None


@pytest.mark.parametrize("value", [None, 0, "", [], False], ids=repr)
def test_any_value_can_be_remembered(value: object) -> None:
    memory = LastGood()

    memory.remember("k", value, 0.0)

    answer = memory.answer(question())
    assert isinstance(answer, Answer)
    assert answer.value == value


def test_the_last_value_replaces_the_one_before() -> None:
    memory = LastGood()
    memory.remember("k", "first", 1.0)
    memory.remember("k", "second", 2.0)

    answer = memory.answer(question(at=2.5))

    assert isinstance(answer, Answer)
    assert (answer.value, answer.source, answer.age) == ("second", Source.LAST_GOOD, 0.5)
    assert len(memory) == 1


def test_a_call_without_a_key_is_nobodys() -> None:
    memory = LastGood(store=object())  # type: ignore[arg-type]

    memory.remember(None, "secret", 0.0)

    assert len(memory) == 0
    assert memory.bytes_used == 0
    assert memory.answer(question(None)) is None


def test_it_takes_no_time_and_is_silent_after_unknown_by_default() -> None:
    assert not may_await(LastGood())
    assert LastGood().after_unknown is False
    assert LastGood(after_unknown=True).after_unknown is True


def test_the_defaults_are_those_of_the_contract() -> None:
    memory = LastGood()

    assert (memory.max_age, memory.max_entries, memory.max_bytes) == (3600.0, 10_000, 64 * MIB)


@pytest.mark.parametrize("knob", ["max_age", "max_entries", "max_bytes"])
@pytest.mark.parametrize("value", [0, -1, -0.5, -inf, nan])
def test_a_knob_that_cannot_work_is_an_error_that_says_what_can(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"LastGood {knob}: {value} is not above 0; give a number above 0, or inf"):
        LastGood(**{knob: value})


def test_endless_knobs_are_no_limits() -> None:
    memory = LastGood(max_age=inf, max_entries=inf, max_bytes=inf)  # type: ignore[arg-type]
    memory.remember("k", "v", 0.0)

    assert served(memory, at=1e12) == "v"


# -- how old


@pytest.mark.parametrize(("age", "value"), [(0.0, "v"), (9.999, "v"), (10.0, "v"), (10.000001, None), (1e9, None)])
def test_a_value_is_served_up_to_its_greatest_age_and_not_longer(age: float, value: object) -> None:
    memory = LastGood(max_age=10.0)
    memory.remember("k", "v", 100.0)

    assert served(memory, at=100.0 + age) == value


def test_a_clock_that_went_back_serves_nothing_from_the_future() -> None:
    memory = LastGood()
    memory.remember("k", "v", 100.0)

    assert served(memory, at=99.0) is None
    assert served(memory, at=100.0) == "v"


def test_a_value_that_is_live_again_is_young_again() -> None:
    memory = LastGood(max_age=10.0)
    memory.remember("k", "v", 0.0)
    memory.remember("k", "v", 8.0)

    assert served(memory, at=18.0) == "v"


# -- how many


def test_the_least_recently_used_goes_first_and_the_bound_is_exact() -> None:
    memory = filled("a", "b", "c", max_entries=3)

    memory.remember("d", "d", 0.0)

    assert keys_of(memory) == ["b", "c", "d"]
    assert len(memory) == 3


def test_an_answer_is_a_use_and_so_is_a_new_value_of_any_size() -> None:
    memory = filled("a", "b", "c", "d", max_entries=4)

    served(memory, "a")
    memory.remember("b", "B", 0.0)
    memory.remember("c", "longer", 0.0)

    assert keys_of(memory) == ["d", "a", "b", "c"]


def test_a_question_without_an_answer_is_no_use() -> None:
    memory = filled("a", "b", max_age=1.0)

    served(memory, "a", at=5.0)

    assert keys_of(memory) == ["a", "b"]


def test_one_entry_is_a_bound_too() -> None:
    memory = filled(*"abc", max_entries=1)

    assert keys_of(memory) == ["c"]


# -- how much


def test_bytes_are_counted_and_the_least_recently_used_make_room() -> None:
    memory = LastGood(max_bytes=10)
    memory.remember("a", "x" * 4, 0.0)
    memory.remember("b", "x" * 4, 0.0)
    exactly = memory.bytes_used

    memory.remember("c", "x" * 2, 0.0)
    full = (memory.bytes_used, keys_of(memory))
    memory.remember("d", b"x" * 5, 0.0)

    assert exactly == 8
    assert full == (10, ["a", "b", "c"])
    assert (memory.bytes_used, keys_of(memory)) == (7, ["c", "d"])


def test_a_value_too_large_alone_is_not_kept_and_drives_nobody_out() -> None:
    memory = filled("a", "b", max_bytes=10)

    memory.remember("c", "x" * 11, 0.0)

    assert keys_of(memory) == ["a", "b"]
    assert memory.bytes_used == 2


def test_a_value_that_just_fits_alone_is_kept() -> None:
    memory = filled("a", "b", max_bytes=10)

    memory.remember("c", "x" * 10, 0.0)

    assert keys_of(memory) == ["c"]


def test_a_value_too_large_takes_the_one_it_replaces_with_it() -> None:
    memory = filled("a", "b", max_bytes=10)

    memory.remember("a", "x" * 11, 1.0)

    assert keys_of(memory) == ["b"]
    assert memory.bytes_used == 1


@pytest.mark.parametrize("sizes", [(1, 5, 2), (5, 5, 5), (9, 1, 10)])
def test_a_replaced_value_of_another_size_is_counted_once(sizes: tuple[int, ...]) -> None:
    memory = filled("z", max_bytes=100)

    for size in sizes:
        memory.remember("k", "x" * size, 0.0)
        assert memory.bytes_used == 1 + size

    assert len(memory) == 2


def test_a_value_that_grows_makes_others_go_and_stays_itself() -> None:
    memory = filled("a", "b", "c", max_bytes=3)

    memory.remember("a", "xx", 0.0)

    assert keys_of(memory) == ["c", "a"]


Point = namedtuple("Point", "x y")  # noqa: PYI024 - a record as people write them


class Row(Struct):
    name: str
    tags: list[str]


@dataclass
class Line:
    name: str


class Shelf(dict[str, str]):
    pass


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: [text],
        lambda text: (text,),
        lambda text: {text},
        lambda text: frozenset({text}),
        lambda text: {"k": text},
        lambda text: {text: "v"},
        lambda text: [[{"deep": (text,)}]],
        lambda text: Row(text, []),
        lambda text: Row("n", [text]),
        Line,
        lambda text: Point(text, 1),
        lambda text: Shelf(k=text),
        lambda text: defaultdict(list, k=[text]),
        bytearray,
    ],
    ids=[
        *["list", "tuple", "set", "frozenset", "dict", "keys", "nested", "struct", "structs-list"],
        *["line", "point", "shelf", "default", "bytes"],
    ],
)
def test_what_a_value_holds_is_counted(wrap: Callable[[Any], object]) -> None:
    small, large = wrap(b"x" * 10), wrap(b"x" * 10_010)

    assert 9_900 <= size_of(large) - size_of(small) <= 10_100
    assert size_of(small) > 10


@pytest.mark.parametrize(
    "value", [1, 1.0, True, None, Decimal(1), UUID(int=1), datetime(2024, 1, 1, tzinfo=UTC)], ids=repr
)
def test_a_number_takes_what_a_number_takes(value: object) -> None:
    assert size_of(value) == ATOM_SIZE


@pytest.mark.parametrize("value", [[], (), {}, set(), object()], ids=lambda value: type(value).__name__)
def test_what_is_empty_takes_a_little(value: object) -> None:
    assert 0 < size_of(value) < 300


@pytest.mark.parametrize(
    "value", [[f"{n:0100}" for n in range(5000)], {f"{n:050}": "x" * 50 for n in range(5000)}], ids=["list", "dict"]
)
def test_large_containers_are_counted_by_sample(value: object) -> None:
    assert 500_000 <= size_of(value) <= 900_000


# -- whose value it is


@dataclass(frozen=True)
class Frozen:
    name: str
    parts: Any = ()


@dataclass
class Open:
    parts: list[int] = field(default_factory=list)


class Ice(Struct, frozen=True):
    name: str
    parts: Any = ()


class Water(Struct):
    parts: list[int]


class Heir(Frozen):
    """A plain heir of a frozen record: it may hold more."""


@dataclass(frozen=True, init=False, eq=False)
class Names(list[int]):
    """A frozen record that is a list as well."""


class Colour(Enum):
    RED = 1


class Plain:
    def __init__(self) -> None:
        self.parts = [1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.parts == other.parts

    __hash__ = None  # type: ignore[assignment]


def change_parts(value: Any) -> None:
    value.parts.append(2)


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "list": (lambda: [1], lambda v: v.append(2)),
    "dict": (lambda: {"a": 1}, lambda v: v.update(a=2)),
    "set": (lambda: {1}, lambda v: v.add(2)),
    "bytearray": (lambda: bytearray(b"1"), lambda v: v.extend(b"2")),
    "nested lists": (lambda: [[[1]]], lambda v: v[0][0].append(2)),
    "dict of lists": (lambda: {"a": [1]}, lambda v: v["a"].append(2)),
    "list of sets": (lambda: [{1}], lambda v: v[0].add(2)),
    "tuple of lists": (lambda: ([1],), lambda v: v[0].append(2)),
    "tuple of tuples of lists": (lambda: (((1, [1]),),), lambda v: v[0][0][1].append(2)),
    "dataclass": (lambda: Open([1]), change_parts),
    "dataclass, field replaced": (lambda: Open([1]), lambda v: setattr(v, "parts", [2])),
    "frozen dataclass of a list": (lambda: Frozen("n", [1]), change_parts),
    "heir of a frozen dataclass": (lambda: Heir("n"), lambda v: vars(v).update(name="m")),
    "frozen dataclass that is a list": (lambda: Names([1]), lambda v: v.append(2)),
    "Struct": (lambda: Water([1]), change_parts),
    "frozen Struct of a list": (lambda: Ice("n", [1]), change_parts),
    "list of frozen Structs of dicts": (lambda: [Ice("n", {"a": 1})], lambda v: v[0].parts.update(a=2)),
    "named tuple of a list": (lambda: Point([1], 2), lambda v: v.x.append(2)),
    "defaultdict": (lambda: defaultdict(list, a=[1]), lambda v: v["a"].append(2)),
    "frozenset in a list": (lambda: [frozenset({1})], lambda v: v.clear()),
    "an object": (Plain, change_parts),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("when", ["the function's", "the first answer", "the second answer"])
def test_a_caller_that_changes_its_value_changes_nobody_elses(kind: str, when: str) -> None:  # promise 7
    make, change = CHANGES[kind]
    memory = LastGood()
    live = make()
    memory.remember("k", live, 0.0)
    values = {"the function's": live, "the first answer": served(memory), "the second answer": served(memory)}
    others = [name for name in values if name != when]

    change(values[when])

    assert served(memory) == make()
    assert [values[name] for name in others] == [make(), make()]
    assert type(served(memory)) is type(make())


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        7,
        None,
        Decimal("1.0"),
        UUID(int=7),
        datetime(2024, 1, 1, tzinfo=UTC),
        Colour.RED,
        Colour,
        (1, ("a", None), frozenset({1})),
        frozenset({(1, 2)}),
        Frozen("n", (1, 2)),
        Ice("n", (Frozen("m"), Colour.RED)),
        (),
    ],
    ids=repr,
)
def test_what_nobody_can_change_is_shared(value: object) -> None:
    memory = LastGood()

    memory.remember("k", value, 0.0)

    assert served(memory) is value
    assert served(memory) is value


def test_the_immutable_parts_of_a_copy_are_shared_and_the_others_are_not() -> None:
    ice, water = Ice("n"), Water([1])

    copy = copied([ice, water, (ice, water), frozenset({ice})])

    assert copy[0] is ice
    assert copy[1] is not water
    assert copy[2][0] is ice
    assert copy[2][1] is not water
    assert copied(frozenset({1})) == frozenset({1})


def test_the_keys_and_members_that_have_an_equality_of_their_own_are_copied_too() -> None:
    class Member:
        """Can be hashed, and changed."""

        def __init__(self) -> None:
            self.parts = [1]

    member = Member()

    (key,), (one,) = copied({member: 1}), copied(frozenset({member}))

    assert member not in {key, one}
    key.parts.append(2)
    one.parts.append(2)
    assert member.parts == [1]


def test_without_copying_all_have_the_very_same() -> None:
    memory = LastGood(copy=False)
    live = {"stars": [5]}

    memory.remember("k", live, 0.0)

    assert served(memory) is live
    assert memory.bytes_used == size_of(live)


def test_a_value_that_cannot_be_copied_leaves_the_memory_as_it_was() -> None:
    memory = filled("k")

    with pytest.raises(TypeError):
        memory.remember("k", (part for part in "abc"), 1.0)

    assert served(memory) == "k"
    assert memory.bytes_used == 1


# -- the store behind: what it does itself is in test_behind.py, here is what the two do together


async def asked(memory: LastGood, key: Any = "k", **given: Any) -> Answer[Any] | None:
    """What it answers, wherever it has it from."""
    return await Fallback([memory]).answer(question(key, now(), **given))


async def value_of(memory: LastGood, key: Any = "k", **given: Any) -> Any:
    answer = await asked(memory, key, **given)
    return None if answer is None else answer.value


def test_a_memory_with_a_store_may_take_time() -> None:
    assert may_await(LastGood(store=Store()))


async def test_what_memory_has_is_not_asked_of_the_store() -> None:
    store = Store()
    memory = LastGood(store=store)
    memory.remember("k", "v", now())
    await memory.flush()

    assert await value_of(memory) == "v"
    assert store.names == [name_of("k")]
    assert store.gets == []


async def test_the_same_call_answered_again_is_written_to_the_store_again() -> None:
    store = Store()
    memory = LastGood(store=store)
    for value in ("1st", "2nd"):
        memory.remember("k", value, now())
        await memory.flush()

    assert await value_of(LastGood(store=store)) == "2nd"


async def test_what_memory_lacks_is_read_from_the_store_with_its_age_and_kept() -> None:
    store = Store()
    store.put("k", ["v"], age=12.0)
    memory = LastGood(max_age=60.0, store=store)

    first = await asked(memory)
    await sleep(5.0)
    second = await asked(memory)

    assert first is not None
    assert second is not None
    assert (first.value, first.source, first.degraded) == (["v"], "last_good", True)
    assert first.age == pytest.approx(12.0, abs=2.0)
    assert second.age == pytest.approx(first.age + 5.0)
    assert first.stored_at == pytest.approx(WALL.now() - 12.0, abs=2.0)
    assert len(store.gets) == 1
    assert len(memory) == 1
    assert size_of([]) < memory.bytes_used < 200


async def test_what_is_too_old_in_memory_may_be_younger_in_the_store() -> None:
    store = Store()
    store.put("k", "theirs", age=1.0)
    memory = LastGood(max_age=60.0, store=store)
    memory._insert("k", Entry("ours", now() - 61.0, 4, True), None)

    assert await value_of(memory) == "theirs"


async def test_a_value_in_the_store_grows_too_old_like_any_other() -> None:
    store = Store()
    store.put("old", "v", age=61.0)
    store.put("young", "v", age=30.0)
    memory = LastGood(max_age=60.0, store=store)

    old, young = await value_of(memory, "old"), await value_of(memory, "young")
    store._cache.clear()
    await sleep(25.0)
    older = await value_of(memory, "young")
    await sleep(6.0)

    assert (old, young, older, len(memory)) == (None, "v", "v", 1)
    assert await value_of(memory, "young") is None


async def test_a_caller_who_wants_nothing_so_old_gets_none_from_the_store() -> None:
    store = Store()
    store.put("k", "v", age=30.0)
    memory = LastGood(store=store)

    assert await value_of(memory, max_age=10.0) is None
    assert await value_of(memory, max_age=60.0) == "v"


async def test_a_value_too_large_for_memory_is_served_from_the_store() -> None:
    memory = LastGood(max_bytes=10, store=Store())
    memory.remember("k", "x" * 50, now())
    await memory.flush()

    assert await value_of(memory) == "x" * 50
    assert len(memory) == 0


IN_A_STORE: dict[str, tuple[Any, Callable[[], Any], Callable[[Any], object]]] = {
    name: (kind, *CHANGES[name])
    for name, kind in {
        "list": Any,
        "dict": Any,
        "set": set[int],
        "nested lists": Any,
        "dict of lists": Any,
        "tuple of lists": tuple[list[int]],
        "dataclass": Open,
        "Struct": Water,
        "frozen Struct of a list": Ice,
    }.items()
}


@pytest.mark.parametrize("kind", IN_A_STORE)
@pytest.mark.parametrize("start", ["cold", "warm"])
async def test_a_caller_that_changes_its_value_changes_nothing_in_the_store(kind: str, start: str) -> None:
    declared, make, change = IN_A_STORE[kind]
    store = Store()
    writer, reader = LastGood(store=store), LastGood(store=store)
    live = make()
    writer.remember_as("k", live, now(), size_of, declared)
    change(live)
    await writer.flush()
    if start == "warm":
        await reader.warm_start()

    change(await value_of(reader, kind=declared))
    change(await value_of(reader, kind=declared))

    assert await value_of(reader, kind=declared) == make()
    assert await value_of(LastGood(store=store), kind=declared) == make()
    assert len(store.gets) == (2 if start == "cold" else 1)


async def test_without_copying_what_came_from_the_store_is_shared() -> None:
    store = Store()
    store.put("k", ["v"], age=0.0)
    memory = LastGood(copy=False, store=store)

    first, second = await value_of(memory), await value_of(memory)

    assert first is second


async def test_a_live_value_that_comes_while_the_store_is_read_stays() -> None:
    store = Store()
    store.put("k", "old", age=5.0)
    store.delay = 0.05
    memory = LastGood(store=store)
    reading = create_task(value_of(memory))
    await steps(2)

    memory.remember("k", "new", now())
    read = await reading
    await memory.flush()

    assert read == "old"
    assert served(memory, at=now()) == "new"


async def test_nothing_in_the_store_is_no_answer_and_no_failure() -> None:
    store = Store()
    memory = LastGood(store=store)
    fallback = Fallback([memory])

    assert await fallback.answer(question("k", now())) is None
    assert await fallback.answer(question(None, now())) is None
    assert (fallback.failed, len(store.gets)) == (0, 1)


async def test_a_store_that_fails_hands_on_and_memory_serves() -> None:
    store = Store()
    store.error = Boom("disk full")
    memory = LastGood(store=store)
    fallback = Fallback([memory, Static("s")])
    memory.remember("k", "v", now())
    await memory.flush()

    unknown = await fallback.answer(question("other", now()))
    known = await fallback.answer(question("k", now()))
    memory.stop_writing()

    assert unknown is not None
    assert known is not None
    assert (unknown.value, known.value, fallback.failed) == ("s", "v", 0)
    assert memory.snapshot().store.errors >= 2  # type: ignore[union-attr]


async def test_a_store_that_hangs_on_reading_costs_the_tiers_time_and_hands_on() -> None:
    store = Store()
    store.delay = 3600.0
    fallback = Fallback([LastGood(store=store), Static("s")], timeout=0.25)
    began = now()

    answer = await fallback.answer(question("k", began))

    assert answer is not None
    assert answer.value == "s"
    assert now() - began == pytest.approx(0.25)
    assert fallback.failed == 1


@pytest.mark.parametrize("garbage", [b"", b"gw", b"garbage", "text", 5, wrap("v", 1.0)[:-1]], ids=repr)
@pytest.mark.parametrize("start", ["cold", "warm"])
async def test_garbage_in_the_store_is_no_answer_and_no_failure(garbage: Any, start: str) -> None:
    store = Store()
    store._cache[name_of("k")] = garbage
    memory = LastGood(store=store)
    fallback = Fallback([memory, Static("s")])
    if start == "warm":
        await memory.warm_start()

    answer = await fallback.answer(question("k", now()))

    assert answer is not None
    assert (answer.value, fallback.failed, len(memory)) == ("s", 0, 0)
    assert memory.snapshot().store.undecodable >= 1  # type: ignore[union-attr]


async def test_a_key_that_cannot_be_spelled_is_remembered_but_not_written(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    memory = LastGood(store=store)

    memory.remember(1.5, "v", now())
    await memory.flush()

    assert served(memory, 1.5, at=now()) == "v"
    assert store.names == []
    assert "no spelling" in caplog.text


async def test_flushing_what_was_never_written_is_nothing() -> None:
    await LastGood().flush()
    await LastGood(store=Store()).flush()
    LastGood(store=Store()).stop_writing()


@pytest.mark.parametrize("again", [False, True], ids=["stopped", "written again"])
def test_a_memory_outlives_the_loop_it_was_written_on(again: bool) -> None:
    store = Store()
    memory = LastGood(store=store)

    async def remember_two() -> None:
        memory.remember("a", "a", now())
        await steps(2)
        memory.remember("b", "b", now())

    async def go_on() -> None:
        if again:
            memory.remember("c", "c", now())
            await memory.flush()
        memory.stop_writing()

    first, second = VirtualTimeLoop(), VirtualTimeLoop()
    first.run_until_complete(remember_two())
    first.close()
    second.run_until_complete(go_on())
    second.close()

    assert store.names == ([name_of(key) for key in "abc"] if again else [])
    assert memory.snapshot().store.dropped_writes == (0 if again else 2)  # type: ignore[union-attr]
    assert len(memory) == (3 if again else 2)


# -- a warm start


async def test_what_the_store_has_is_there_from_the_start() -> None:
    store = Store()
    store.put("k", ["v"], age=12.0)
    memory = LastGood(store=store)

    brought = await memory.warm_start()
    first = memory.recall("k", now())

    assert brought == 1
    assert first == (["v"], pytest.approx(12.0, abs=2.0))
    assert store.gets == []
    assert (len(memory), memory.snapshot().hits) == (1, 1)


async def test_what_was_brought_is_read_as_its_declared_type() -> None:
    store = Store()
    store.put("k", Water([1]), age=1.0, kind=Water)
    memory = LastGood(store=store)
    await memory.warm_start()

    assert await value_of(memory, kind=Water) == Water([1])


async def test_what_was_brought_counts_against_the_bounds_and_the_oldest_makes_room_for_what_is_live() -> None:
    store = Store()
    for age in range(9, 0, -1):
        store.put(f"k{age}", "v", age=age)
    memory = LastGood(max_entries=5, store=store)

    brought = await memory.warm_start()
    memory.remember("live", "v", now())
    memory.remember("live too", "v", now())
    full = len(memory)

    assert (brought, full) == (5, 5)
    assert [served(memory, f"k{age}", at=now()) for age in (3, 2, 1)] == ["v"] * 3
    assert (len(memory), memory.recall("k4", now())) == (5, None)


async def test_what_was_brought_is_bounded_by_bytes() -> None:
    store = Store()
    for number in range(10):
        store.put(number, "x" * 100, age=1.0)
    memory = LastGood(max_bytes=500, store=store)

    await memory.warm_start()
    brought = memory.bytes_used
    memory.remember("live", "x" * 450, now())

    assert 300 < brought <= 500
    assert memory.bytes_used <= 500
    assert served(memory, "live", at=now()) == "x" * 450


async def test_a_live_value_wins_over_what_was_brought() -> None:
    store = Store()
    store.put("k", "old", age=1.0)
    memory = LastGood(store=store)
    await memory.warm_start()

    memory.remember("k", "new", now())

    assert served(memory, at=now()) == "new"


async def test_what_was_brought_and_has_grown_too_old_is_no_answer() -> None:
    store = Store()
    store.put("k", "v", age=100.0)
    memory = LastGood(max_age=60.0, store=store)

    await memory.warm_start()

    assert await value_of(memory) is None


async def test_a_store_that_fails_at_the_start_brings_nothing() -> None:
    store = Store()
    store.put("k", "v", age=1.0)
    store.error = Boom()
    memory = LastGood(store=store)

    assert await memory.warm_start() == 0
    assert await LastGood().warm_start() == 0


# -- forgetting


async def test_what_is_forgotten_is_gone_from_memory_and_from_the_store() -> None:
    store = Store()
    memory = LastGood(store=store)
    memory.remember("k", "v", now())
    memory.remember("other", "v", now())
    await memory.flush()

    known, again = memory.forget("k"), memory.forget("k")
    at_once = await value_of(memory)
    await memory.flush()

    assert (known, again, at_once) == (True, False, None)
    assert store.names == [name_of("other")]
    assert memory.bytes_used == 1


async def test_what_a_warm_start_brought_can_be_forgotten_unread() -> None:
    store = Store()
    store.put("k", "v", age=1.0)
    memory = LastGood(store=store)
    await memory.warm_start()

    known = memory.forget("k")
    await memory.flush()

    assert (known, len(memory), memory.bytes_used) == (True, 0, 0)
    assert await value_of(memory) is None


async def test_all_that_is_meant_is_forgotten_and_all_of_the_operation_in_the_store() -> None:
    store = Store()
    memory = LastGood(store=store)
    for key in ("a1", "a2", "b1"):
        memory.remember(key, key, now())
    await memory.flush()

    forgotten = memory.forget_where(lambda key: str(key).startswith("a"), "world.ask")
    await memory.flush()
    kept = [memory.recall(key, now(), operation="world.ask") for key in ("a1", "a2", "b1")]
    elsewhere = [await value_of(LastGood(store=store), key, operation="world.ask") for key in ("a1", "b1")]

    assert (forgotten, kept) == (2, [None, None, ("b1", 0.0)])
    assert elsewhere == [None, None]  # a store knows no parts of keys: too much is the safe side
    assert await value_of(LastGood(store=store), "b1", operation="world.other") == "b1"


async def test_what_is_forgotten_while_the_store_is_read_does_not_come_back() -> None:
    store = Store()
    store.put("k", "old", age=5.0)
    store.delay = 0.05
    memory = LastGood(store=store)
    reading = create_task(value_of(memory))
    await steps(2)

    memory.forget("k")
    await reading
    in_memory = served(memory, at=now()) if len(memory) else None
    await memory.flush()

    assert in_memory is None
    assert await value_of(memory) is None


@pytest.mark.parametrize("how", ["one", "all"])
async def test_what_is_forgotten_during_a_warm_start_is_not_brought(how: str) -> None:
    store = Store()
    store.put("k", "old", age=5.0)
    store.delay = 0.05
    memory = LastGood(store=store)
    starting = create_task(memory.warm_start())
    await steps(2)

    if how == "one":
        memory.forget("k")
    else:
        memory.forget_where(lambda _: True, "world.ask")
    await starting
    found = memory.recall("k", now(), operation="world.ask")
    await memory.flush()

    assert found is None
    assert await value_of(memory, operation="world.ask") is None


# -- numbers


def test_a_memory_counts_what_it_was_asked() -> None:
    memory = filled("a", "b", "c", max_entries=2, max_age=10.0)

    for key, at in (("a", 0.0), ("b", 0.0), ("b", 1.0), ("c", 11.0)):
        memory.recall(key, at)

    assert memory.snapshot() == MemorySnapshot(entries=2, bytes=2, hits=2, misses=1, too_old=1, evicted=1, store=None)


def test_a_value_that_would_drive_out_too_many_is_not_kept() -> None:
    memory = filled(*(f"{number:04}" for number in range(MOST_DRIVEN_OUT + 500)), max_bytes=4 * MOST_DRIVEN_OUT + 2000)

    memory.remember("large", "x" * 4 * (MOST_DRIVEN_OUT + 400), 0.0)

    assert served(memory, "large") is None
    assert len(memory) == 500
    assert memory.bytes_used == 4 * 500


@pytest.mark.parametrize("size", [None, "5", -1, nan, 2.5], ids=repr)
def test_a_size_that_is_none_leaves_the_memory_as_it_was(size: Any) -> None:
    memory = filled("a", "k")

    with pytest.raises((TypeError, ValueError)):
        memory.remember_as("k", ["v"], 1.0, lambda _: size, Any)

    assert keys_of(memory) == ["a", "k"]
    assert memory.bytes_used == 2
