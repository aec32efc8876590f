"""The tier that remembers, without a gateway: its bounds, whose the values are, and the store behind it."""

from __future__ import annotations

from asyncio import create_task, sleep
from collections import defaultdict, namedtuple
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, Flag, IntFlag, StrEnum
from math import inf, nan
from time import time
from typing import Any
from uuid import UUID

import pytest
from aiocache import SimpleMemoryCache
from msgspec import Struct

from fallbacks import Answer, Fallback, LastGood, Question, Source, Static
from fallbacks.behind import PENDING_WRITES, STORE_TIMEOUT
from fallbacks.chain import may_await
from fallbacks.copying import copied
from fallbacks.last_good import MIB
from fallbacks.sizes import ATOM_SIZE, size_of
from fallbacks.spelling import spelled
from gateway.testing import VirtualTimeLoop
from tests.support import Boom, gone, now, steps

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

    assert answer == Answer("v", Source.LAST_GOOD, 12.5, asked.error)


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

    assert answer == Answer("second", Source.LAST_GOOD, 0.5, answer.error)  # type: ignore[union-attr]
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
    "value", [["x" * 100] * 5000, {f"{n:050}": "x" * 50 for n in range(5000)}], ids=["list", "dict"]
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


# -- the store behind


class Store(SimpleMemoryCache):
    """A backend that counts, and does as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.sets: list[str] = []
        self.gets: list[str] = []
        self.ttls: list[float | None] = []
        self.error: Exception | None = None
        self.hangs = False

    async def _set(self, key: str, value: Any, ttl: float | None = None, **kwargs: Any) -> Any:
        self.sets.append(key)
        self.ttls.append(ttl)
        await self._do()
        self._cache[key] = value
        return True

    async def _get(self, key: str, **kwargs: Any) -> Any:
        self.gets.append(key)
        await self._do()
        return self._cache.get(key)

    async def _do(self) -> None:
        if self.hangs:
            await sleep(3600)
        if self.error is not None:
            raise self.error

    def put(self, key: Any, value: Any, age: float) -> None:
        """As another process would have written it so many seconds ago."""
        self._cache[spelled(key)] = {"value": value, "at": time() - age}


async def asked(memory: LastGood, key: Any = "k", at: float | None = None) -> Answer[Any] | None:
    """What it answers, wherever it has it from."""
    return await Fallback([memory]).answer(question(key, now() if at is None else at))


async def test_a_live_value_is_written_behind() -> None:
    store = Store()
    memory = LastGood(max_age=59.5, store=store)

    memory.remember("k", "v", now())
    at_once = list(store.sets)
    await memory.flush()

    assert at_once == []
    assert store.sets == [spelled("k")]
    assert store.ttls == [60]
    assert store._cache[spelled("k")] == {"value": "v", "at": pytest.approx(time(), abs=5.0)}


async def test_what_has_no_greatest_age_is_kept_in_the_store_for_ever() -> None:
    store = Store()
    memory = LastGood(max_age=inf, store=store)

    memory.remember("k", "v", now())
    await memory.flush()

    assert store.ttls == [None]


async def test_several_values_of_one_call_are_written_once_the_last_one() -> None:
    store = Store()
    memory = LastGood(store=store)

    for key, value in (("a", 1), ("b", 1), ("a", 2), ("a", 3)):
        memory.remember(key, value, now())
    await memory.flush()

    assert store.sets == [spelled("b"), spelled("a")]
    assert store._cache[spelled("a")]["value"] == 3


async def test_what_comes_while_it_writes_is_written_too() -> None:
    store = Store()
    memory = LastGood(store=store)
    memory.remember("a", 1, now())
    await steps(1)
    memory.remember("b", 2, now())

    await memory.flush()
    memory.remember("c", 3, now())
    await memory.flush()

    assert store.sets == [spelled(key) for key in "abc"]
    assert memory._pending_bytes == 0


async def test_what_memory_has_is_not_asked_of_the_store() -> None:
    store = Store()
    memory = LastGood(store=store)
    memory.remember("k", "v", now())
    await memory.flush()

    answer = await asked(memory)

    assert answer is not None
    assert answer.value == "v"
    assert store.gets == []


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
    assert first.age == pytest.approx(12.0, abs=5.0)
    assert second.age == pytest.approx(first.age + 5.0)
    assert len(store.gets) == 1
    assert len(memory) == 1
    assert size_of([]) < memory.bytes_used < 200


async def test_what_is_too_old_in_memory_may_be_younger_in_the_store() -> None:
    store = Store()
    store.put("k", "theirs", age=1.0)
    memory = LastGood(max_age=60.0, store=store)
    memory._put("k", ("ours", now() - 61.0, 4, True))

    answer = await asked(memory)

    assert answer is not None
    assert answer.value == "theirs"


async def test_a_value_in_the_store_grows_too_old_like_any_other() -> None:
    store = Store()
    store.put("old", "v", age=61.0)
    store.put("young", "v", age=30.0)
    memory = LastGood(max_age=60.0, store=store)

    old = await asked(memory, "old")
    young = await asked(memory, "young")
    store._cache.clear()
    await sleep(25.0)
    older = await asked(memory, "young")
    await sleep(6.0)

    assert (old, len(memory)) == (None, 1)
    assert young is not None
    assert older is not None
    assert await asked(memory, "young") is None


async def test_a_value_from_a_clock_ahead_of_ours_is_new() -> None:
    store = Store()
    store.put("k", "v", age=-500.0)

    answer = await asked(LastGood(store=store))

    assert answer is not None
    assert answer.age == 0.0


async def test_a_value_too_large_for_memory_is_served_from_the_store() -> None:
    store = Store()
    memory = LastGood(max_bytes=10, store=store)
    memory.remember("k", "x" * 50, now())
    await memory.flush()

    answer = await asked(memory)

    assert answer is not None
    assert answer.value == "x" * 50
    assert len(memory) == 0


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_caller_that_changes_its_value_changes_nothing_in_the_store(kind: str) -> None:
    make, change = CHANGES[kind]
    store = Store()
    writer, reader = LastGood(store=store), LastGood(store=store)
    live = make()
    writer.remember("k", live, now())
    change(live)
    await writer.flush()

    first = await asked(reader)
    assert first is not None
    change(first.value)
    change(served(reader, at=now()))

    assert store._cache[spelled("k")]["value"] == make()
    assert served(reader, at=now()) == make()


async def test_without_copying_the_stores_own_value_is_served() -> None:
    store = Store()
    value = ["v"]
    store.put("k", value, age=0.0)
    memory = LastGood(copy=False, store=store)

    first, second = await asked(memory), await asked(memory)

    assert first is not None
    assert second is not None
    assert first.value is second.value is value


async def test_a_live_value_that_comes_while_the_store_is_read_stays() -> None:
    class Slow(Store):
        async def _do(self) -> None:
            await sleep(0.05)

    store = Slow()
    store.put("k", "old", age=5.0)
    memory = LastGood(store=store)
    reading = create_task(asked(memory))
    await steps(2)

    memory.remember("k", "new", now())
    answer = await reading
    await memory.flush()

    assert answer is not None
    assert served(memory, at=now()) == "new"


async def test_nothing_in_the_store_is_no_answer_and_no_failure() -> None:
    store = Store()
    memory = LastGood(store=store)
    fallback = Fallback([memory])

    assert await fallback.answer(question("k", now())) is None
    assert await fallback.answer(question(None, now())) is None
    assert (memory.store_errors, fallback.failed, len(store.gets)) == (0, 0, 1)


def test_a_memory_with_a_store_may_take_time() -> None:
    assert may_await(LastGood(store=Store()))


# -- a store that is out of order


def counts_in(caplog: pytest.LogCaptureFixture, what: str) -> list[int]:
    """How many failures each line of the log speaks of."""
    lines = [record for record in caplog.records if record.name == "gateway" and record.levelname == "WARNING"]
    assert all(record.args[0] == what for record in lines)  # type: ignore[index]
    return [record.args[1] for record in lines]  # type: ignore[index, misc]


async def test_a_store_that_fails_to_read_hands_on_and_is_logged_rarely(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.error = Boom("disk full")
    memory = LastGood(store=store)
    fallback = Fallback([memory, Static("s")])

    answers = [await fallback.answer(question("k", now())) for _ in range(9)]

    assert {answer.value for answer in answers} == {"s"}
    assert (memory.store_errors, fallback.failed) == (9, 9)
    assert counts_in(caplog, "read") == [1, 2, 4, 8]
    assert "disk full" in caplog.text


async def test_a_store_that_fails_to_write_is_logged_rarely_and_memory_serves(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.error = Boom("disk full")
    memory = LastGood(store=store)

    for number in range(9):
        memory.remember(number, "v", now())
    await memory.flush()

    assert memory.store_errors == 9
    assert len(store.sets) == 9
    assert counts_in(caplog, "write") == [1, 2, 4, 8]
    assert served(memory, 8, at=now()) == "v"


async def test_a_store_that_hangs_on_writing_is_given_up_on_each_time(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    store.hangs = True
    memory = LastGood(store=store)
    began = now()

    for number in range(4):
        memory.remember(number, "v", now())
    await memory.flush()

    assert now() - began == pytest.approx(4 * STORE_TIMEOUT)
    assert memory.store_errors == 4
    assert counts_in(caplog, "write") == [1, 2, 4]
    assert "TimeoutError" in caplog.text


async def test_a_store_that_hangs_on_reading_costs_the_tiers_time_and_hands_on() -> None:
    store = Store()
    store.hangs = True
    fallback = Fallback([LastGood(store=store), Static("s")], timeout=0.25)
    began = now()

    answer = await fallback.answer(question("k", began))

    assert answer.value == "s"
    assert now() - began == pytest.approx(0.25)
    assert fallback.failed == 1


@pytest.mark.parametrize(
    "garbage",
    [
        "text",
        5,
        [],
        {},
        {"value": 1},
        {"at": 1.0},
        {"value": 1, "at": None},
        {"value": 1, "at": "noon"},
        ("value", "at"),
    ],
    ids=repr,
)
async def test_a_store_that_gives_garbage_has_failed_and_hands_on(
    garbage: object, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    store._cache[spelled("k")] = garbage
    memory = LastGood(store=store)
    fallback = Fallback([memory, Static("s")])

    answer = await fallback.answer(question("k", now()))

    assert answer.value == "s"
    assert (memory.store_errors, fallback.failed, len(memory)) == (1, 1, 0)
    assert counts_in(caplog, "read") == [1]


async def test_a_value_of_no_age_is_too_old() -> None:
    store = Store()
    store._cache[spelled("k")] = {"value": "v", "at": nan}

    assert await asked(LastGood(max_age=inf, store=store)) is None


async def test_a_key_that_cannot_be_spelled_is_remembered_but_not_written(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    memory = LastGood(store=store)

    memory.remember(1.5, "v", now())
    await memory.flush()

    assert served(memory, 1.5, at=now()) == "v"
    assert store.sets == []
    assert "no spelling" in caplog.text


async def test_a_store_that_works_again_is_written_again() -> None:
    store = Store()
    store.error = Boom()
    memory = LastGood(store=store)
    memory.remember("a", 1, now())
    await memory.flush()

    store.error = None
    memory.remember("b", 2, now())
    await memory.flush()

    assert list(store._cache) == [spelled("b")]


async def test_what_waits_to_be_written_is_bounded_by_number() -> None:
    store = Store()
    memory = LastGood(store=store)

    for number in range(PENDING_WRITES + 500):
        memory.remember(number, "v", now())
        assert len(memory._pending) <= PENDING_WRITES
    await memory.flush()

    assert memory.dropped_writes == 500
    assert store.sets == [spelled(number) for number in range(500, PENDING_WRITES + 500)]


async def test_what_waits_to_be_written_is_bounded_by_bytes() -> None:  # promise 8
    store = Store()
    store.hangs = True
    memory = LastGood(max_bytes=1000, store=store)

    for number in range(20):
        memory.remember(number, "x" * 300, now())
        await steps(2)
        assert memory._pending_bytes == 300 * len(memory._pending) <= 1000
    memory.remember("large", "x" * 5000, now())
    waiting = list(memory._pending)
    dropped = memory.dropped_writes
    memory.stop_writing()
    await steps(2)

    assert waiting == ["large"]  # alone it may be too large for memory: the store is where it is kept
    assert dropped == 19  # the first is being written
    assert memory._pending_bytes == 0


async def test_a_value_that_waits_is_counted_with_its_new_size() -> None:
    memory = LastGood(store=Store())

    for size in (10, 500, 3):
        memory.remember("k", "x" * size, now())
        assert memory._pending_bytes == size

    await memory.flush()
    assert memory._pending_bytes == 0


async def test_flushing_what_was_never_written_is_nothing() -> None:
    await LastGood().flush()
    await LastGood(store=Store()).flush()
    LastGood(store=Store()).stop_writing()


async def test_stopping_gives_up_what_waits_and_writing_may_go_on_later() -> None:
    store = Store()
    store.hangs = True
    memory = LastGood(store=store)
    for number in range(5):
        memory.remember(number, "v", now())
    await steps(2)

    memory.stop_writing()
    await memory.flush()
    stopped = memory.dropped_writes
    store.hangs = False
    memory.remember("k", "v", now())
    await memory.flush()

    assert stopped == 4  # the first was on its way
    assert list(store._cache) == [spelled("k")]


async def test_who_waits_for_the_flush_and_leaves_stops_no_writing() -> None:
    store = Store()
    store.hangs = True
    memory = LastGood(store=store)
    memory.remember("k", "v", now())
    flushing = create_task(memory.flush())
    await steps(2)

    await gone(flushing)
    still = memory._writer is not None and not memory._writer.done()
    memory.stop_writing()
    await steps(2)

    assert flushing.cancelled()
    assert still


async def test_what_is_written_behind_has_a_context_of_its_own() -> None:
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    class Looks(Store):
        async def _do(self) -> None:
            seen.append(user.get())

    memory = LastGood(store=Looks())
    user.set("ada")
    memory.remember("k", "v", now())
    await memory.flush()

    assert seen == ["nobody"]


@pytest.mark.parametrize("again", [False, True], ids=["stopped", "written again"])
def test_a_memory_outlives_the_loop_it_was_written_on(again: bool) -> None:
    store = Store()
    store.hangs = True
    memory = LastGood(store=store)

    async def remember_two() -> None:
        memory.remember("a", "a", now())
        await steps(2)
        memory.remember("b", "b", now())

    async def go_on() -> None:
        await memory.flush()
        if again:
            memory.remember("c", "c", now())
            await memory.flush()
        memory.stop_writing()

    first, second = VirtualTimeLoop(), VirtualTimeLoop()
    first.run_until_complete(remember_two())
    first.close()
    store.hangs = False
    second.run_until_complete(go_on())
    second.close()

    assert list(store._cache) == ([spelled("b"), spelled("c")] if again else [])
    assert memory.dropped_writes == (0 if again else 1)
    assert len(memory) == (3 if again else 2)


# -- how a key is spelled in a store


class Shade(Enum):
    RED = 1


class Word(StrEnum):
    RED = "RED"


class Bits(IntFlag):
    ONE = 1


class Marks(Flag):
    ONE = 1


class Outer:
    class Colour(Enum):
        RED = 1


Text = Enum("str", "RED", module="m")  # type: ignore[misc]  # a kind that goes by the name of another
APART: list[Any] = [
    *(1, True, "1", b"1", None, "None", "", b"", 0, False, -1, "-1", "True", 10**30),
    *((), (1,), ((1,),), ("1",), (True,), ("a", "b"), ("ab",), ("a", ("b",)), (("a",), "b"), ("", "ab"), ("ab", "")),
    *(int, "int", str, "builtins:str", (int, 1), (int, "1"), (str, "1"), Colour, Outer.Colour, type),
    *(Colour.RED, Shade.RED, Word.RED, Outer.Colour.RED, "RED", Text.RED, Marks.ONE, Marks(0)),
    *(Bits(0), Bits.ONE, Bits(8), Bits(16), Bits(9), "\ud800", "\ufffd", "ä", "ä".encode()),
    "type 5:m:str" + "str 3:RED",
]


def test_keys_are_spelled_alike_only_if_they_are_equal_and_of_equal_types() -> None:
    spellings = [spelled(key) for key in APART]

    assert len(set(spellings)) == len(APART)
    assert spellings == [spelled(deepcopy(key)) for key in APART]


def test_a_key_is_spelled_alike_in_every_process_and_release() -> None:
    assert spelled(("'world'.'ask'(str, int)", "alien", 1)) == (
        "78e1775bb09c20f8d29eb52e40a0d7f7c0fc4317ac69f77576dfcc5d881c8744"
    )


@pytest.mark.parametrize(
    "key", [1.5, Decimal(1), frozenset(), Frozen("n"), object(), UUID(int=1), (1, (2, 3j))], ids=repr
)
def test_what_is_not_plain_has_no_spelling(key: Any) -> None:
    with pytest.raises(TypeError, match="no spelling that survives this process"):
        spelled(key)


def test_an_heir_of_a_plain_kind_has_no_spelling_either() -> None:
    class Secret(str):
        __slots__ = ()

    with pytest.raises(TypeError, match=r"a .*Secret in a key has no spelling"):
        spelled(Secret("s"))
