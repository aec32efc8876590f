"""Keys: which calls are one call, which are not, and which have no name at all."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from fractions import Fraction
from io import BytesIO
from itertools import product
from math import inf, nan
from pathlib import PurePosixPath
from typing import Any, Generic, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from msgspec import Struct

from gateway.arguments import SHAPES_KEPT, Arguments, Keys, canonical, namer
from gateway.outcome import KeyNeeded

T = TypeVar("T")


def keys(
    function: Callable[..., Any],
    *,
    key: Callable[..., Hashable] | None = None,
    identity: Callable[[], Hashable] | None = None,
) -> Keys:
    return Keys("world", "ask", Arguments(function), key=key, identity=identity)


def named(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Calls of a function, as their keys."""
    of = keys(function)
    return lambda *args, **kwargs: of.of(args, kwargs)


def one(what: Any) -> None: ...


def two(user: Any, deep: Any = False) -> None: ...


def by_name(user: Any, *, deep: Any = False, limit: Any = 10) -> None: ...


def anything(*args: Any, **kwargs: Any) -> None: ...


def key_of(value: Any) -> tuple[Any, ...]:
    return keys(one).of((value,), {})


# -- one call, one key


def test_a_call_has_one_key_however_it_is_written() -> None:
    call = named(two)

    calls = [call(1), call(user=1), call(1, False), call(1, deep=False), call(deep=False, user=1)]

    assert len(set(calls)) == 1
    assert call(1, True) not in calls
    assert call(False, 1) not in calls


def test_a_call_has_one_key_however_often_it_is_asked_for() -> None:
    call = named(one)

    assert len({call("a") for _ in range(3)} | {call(what="a") for _ in range(3)}) == 1


def test_a_default_that_is_not_given_is_the_one_that_is() -> None:
    call = named(by_name)

    calls = [call(1), call(1, deep=False), call(1, limit=10), call(limit=10, deep=False, user=1)]

    assert len(set(calls)) == 1
    assert call(1, limit=11) not in calls


def test_a_function_may_take_nothing_or_only_defaults() -> None:
    def nothing() -> None: ...

    def default(what: Any = 1) -> None: ...

    assert named(nothing)() == named(nothing)()
    assert named(default)() == named(default)(1) == named(default)(what=1) != named(default)("1")


def test_what_must_be_given_by_name_is_part_of_the_key() -> None:
    def strict(*, user: Any, deep: Any = False) -> None: ...

    call = named(strict)

    assert call(user=1) == call(deep=False, user=1)
    assert len({call(user=1), call(user=2), call(user=1, deep=True)}) == 3


def test_any_number_of_arguments_is_told_apart() -> None:
    call = named(anything)
    calls = [
        call(),
        call(1),
        call(1, 2),
        call(2, 1),
        call((1, 2)),
        call((1,), 2),
        call(a=1),
        call(b=1),
        call(1, a=1),
        call(a=1, b=2),
        call(a=2, b=1),
        call(("a", 1)),
        call((("a", 1),)),
    ]

    assert len(set(calls)) == len(calls)
    assert call(a=1, b=2) == call(b=2, a=1)


def test_arguments_by_place_and_by_name_are_told_apart_where_both_are_free() -> None:
    def mixed(first: Any, *rest: Any, last: Any = None, **options: Any) -> None: ...

    call = named(mixed)

    assert call(1) == call(first=1) == call(1, last=None)
    assert len({call(1), call(1, 2), call(1, last=2), call(1, options=2), call(1, rest=2), call(1, (2,))}) == 6


def test_extra_names_do_not_change_the_key_of_a_call_without_them() -> None:
    def open_ended(user: Any, **options: Any) -> None: ...

    call = named(open_ended)

    assert call(1) == call(user=1)
    assert call(1, deep=True) != call(1)


def test_positional_only_arguments_are_arguments() -> None:
    def strict(user: Any, /, deep: Any = False) -> None: ...

    call = named(strict)

    assert call(1) == call(1, deep=False)
    assert call(1) != call(2)


def test_upstreams_and_operations_have_keys_of_their_own() -> None:
    parameters = Arguments(one)
    names = [("a", "b"), ("a", "c"), ("b", "b"), ("a.b", ""), ("", "a.b"), ("a'.'b", "c"), ("a", "b'.'c")]

    plain = {Keys(*name, parameters, key=None, identity=None).of((1,), {}) for name in names}
    others = {Keys(*name, parameters, key=None, identity=None).of((1.0,), {}) for name in names}
    by_user = {Keys(*name, parameters, key=lambda what: what, identity=None).of((1,), {}) for name in names}

    assert len(plain | others | by_user) == 3 * len(names)


# -- types apart


class Colour(Enum):
    RED = 1
    GREEN = 2


class Shade(Enum):
    RED = 1


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    ONE = "1"


class Bits(IntFlag):
    ONE = 1


@dataclass(frozen=True)
class Movie:
    name: Any
    year: Any = 1979


@dataclass(frozen=True)
class Film:
    name: Any
    year: Any = 1979


class Ice(Struct, frozen=True):
    name: Any
    year: Any = 1979


class Snow(Struct, frozen=True):
    name: Any
    year: Any = 1979


@dataclass(frozen=True)
class Sequel(Movie):
    number: int = 2


class ColdIce(Ice, frozen=True):
    pass


@dataclass(frozen=True)
class Box(Generic[T]):
    content: T


@dataclass(frozen=True)
class Quiet:
    """A record that compares by less than all it holds."""

    name: str
    secret: str = field(compare=False)


NOON = datetime(2024, 6, 1, 12, 0)  # noqa: DTZ001 - naive on purpose
BERLIN = ZoneInfo("Europe/Berlin")
ONE_AND_THE_LIKE: list[Any] = [
    *(1, 1.0, True, "1", b"1", 1 + 0j, Decimal(1), Decimal("1.0"), Fraction(1), None, "None", "", b"", (), ((),)),
    *(0, 0.0, -0.0, False, 0j, complex(-0.0, 0.0), complex(0.0, -0.0), Decimal(0), Decimal("-0"), Decimal("0.0")),
    *(inf, -inf, nan, Decimal("inf"), Decimal("nan"), "nan"),
    *((1,), (1.0,), (True,), ("1",), ((1,),), (1, None), (None, 1), (0.0,), (-0.0,)),
    *(Colour.RED, Colour.GREEN, Shade.RED, Number.ONE, Word.ONE, Bits.ONE, Bits(0), Bits(8), (Number.ONE,)),
    *(UUID(int=1), UUID(int=2), str(UUID(int=1))),
    *(date(2024, 6, 1), NOON, time(12), timedelta(days=1), timedelta(seconds=1)),
    *(NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=BERLIN), NOON.replace(tzinfo=BERLIN, fold=1), NOON.replace(fold=1)),
    *(NOON.replace(tzinfo=timezone(timedelta(hours=2))), NOON.replace(tzinfo=timezone(timedelta(0), "Zulu"))),
    *(datetime(2024, 6, 1, 10, 0, tzinfo=UTC), NOON.replace(microsecond=1), time(12, tzinfo=UTC), time(12, fold=1)),
    *(Movie("alien"), Film("alien"), Ice("alien"), Snow("alien"), Sequel("alien"), ColdIce("alien"), ("alien", 1979)),
    *(
        Movie("alien", 1980),
        Movie(1),
        Movie(1.0),
        Movie(True),
        Movie(Movie(1)),
        Movie(-0.0),
        Movie(0.0),
        Ice(1),
        Ice(1.0),
    ),
    *(Movie((1, Colour.RED)), Movie((1, Shade.RED)), Ice(Movie(1)), Movie(Ice(1)), Box(1), Box(1.0), Box("1")),
    *(Quiet("n", "a"), Quiet("n", "b")),
]


def test_values_that_are_not_the_same_have_keys_of_their_own() -> None:
    made = [key_of(value) for value in ONE_AND_THE_LIKE]

    assert len(set(made)) == len(made)


def test_equal_values_of_equal_types_have_one_key() -> None:
    again: list[Any] = [
        *(
            int("1000"),
            str(b"ab", "ascii"),
            bytes([1, 2]),
            float("1e3"),
            Decimal("1.50"),
            UUID(int=7),
            (1, ("a", None)),
        ),
        *(
            Movie(Ice((1, 2.0))),
            datetime(2024, 6, 1, tzinfo=ZoneInfo.no_cache("Europe/Berlin")),
            Bits(8),
            Fraction(2, 4),
        ),
    ]
    same: list[Any] = [
        *(1000, "ab", b"\x01\x02", 1000.0, Decimal("1.50"), UUID(int=7), (1, ("a", None))),
        *(Movie(Ice((1, 2.0))), datetime(2024, 6, 1, tzinfo=BERLIN), Bits(8), Fraction(1, 2)),
    ]

    assert [key_of(value) for value in again] == [key_of(value) for value in same]


def test_types_are_told_apart_in_every_place_and_however_given() -> None:
    call = named(two)

    assert len({call(*pair) for pair in product((1, 1.0, True), repeat=2)}) == 9
    assert call(1, deep=0) != call(1, deep=False)
    assert call(user=True) != call(user=1)


def test_a_known_shape_of_types_does_not_swallow_another() -> None:
    of = keys(one)

    first, again, other = of.of((1,), {}), of.of((1,), {}), of.of((True,), {})

    assert first == again != other
    assert of.of((1.0,), {}) not in {first, other}


# -- what has no name


class Object:
    pass


class Text(str):
    __slots__ = ()


class Heir(Movie):
    """A plain heir of a frozen record: it may hold more."""


@dataclass(frozen=True, init=False, eq=False)
class UserId(str):
    """A frozen record that is a text as well: its fields tell nothing."""

    __slots__ = ()


@dataclass
class Open:
    name: str = "n"


class Water(Struct):
    name: str = "n"


@dataclass(frozen=True, slots=True)
class Half:
    name: str


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)


def unnamed_zone() -> tzinfo:
    """UTC, from a file that is nowhere."""
    block = (
        b"TZif2"
        + b"\0" * 15
        + b"".join(count.to_bytes(4, "big") for count in (0, 0, 0, 0, 1, 4))
        + b"\0" * 6
        + b"UTC\0"
    )
    return ZoneInfo.from_file(BytesIO(block + block + b"\nUTC0\n"))


NAMELESS: list[Any] = [
    *(object(), Object(), Object, int, len, print, Ellipsis, NotImplemented, range(3), slice(1)),
    *([], {}, set(), frozenset({1}), bytearray(b"1"), memoryview(b"1"), [1], (1, [2]), (((Object(),),),)),
    *(Text("t"), Heir("n"), UserId("ada"), Open(), Water(), Movie([1]), Movie(Object()), Ice({}), Ice(Text("t"))),
    *(NOON.replace(tzinfo=Zone()), time(12, tzinfo=Zone()), (NOON.replace(tzinfo=Zone()),), Exception("e")),
    *(PurePosixPath("/"), (x for x in ()), lambda: None, object.__new__(Half)),
]


@pytest.mark.parametrize("value", NAMELESS, ids=[f"{n} {type(value).__name__}" for n, value in enumerate(NAMELESS)])
def test_what_is_not_plain_data_is_refused(value: object) -> None:
    with pytest.raises(KeyNeeded, match=r"'world'\.'ask': .*; give the operation key=, a function of its arguments"):
        key_of(value)


@pytest.mark.parametrize("value", NAMELESS[10:15], ids=lambda value: type(value).__name__)
def test_it_is_refused_in_every_place(value: object) -> None:
    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        (two, (1, value), {}),
        (two, (1,), {"deep": value}),
        (by_name, (1,), {"limit": value}),
        (anything, (1, value), {}),
        (anything, (), {"a": value}),
        (one, (Movie(Ice((value,))),), {}),
    ]

    for function, args, kwargs in calls:
        with pytest.raises(KeyNeeded):
            keys(function).of(args, kwargs)


def test_a_default_that_is_not_plain_data_is_refused_too() -> None:
    def listed(user: Any, tags: Any = []) -> None: ...  # noqa: B006 - what people write

    with pytest.raises(KeyNeeded, match="a list names no call"):
        named(listed)(1)

    assert named(listed)(1, ()) == named(listed)(1, tags=())


def test_a_time_zone_without_a_name_is_refused() -> None:
    with pytest.raises(KeyNeeded, match="a datetime names no call"):
        key_of(NOON.replace(tzinfo=unnamed_zone()))


def test_refusing_one_call_forgets_nothing_of_the_next() -> None:
    of = keys(one)
    before = of.of((1,), {})

    with pytest.raises(KeyNeeded):
        of.of(([],), {})

    assert of.of((1,), {}) == before


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = (value,)
    return value


def test_what_is_nested_too_deep_is_refused_and_what_is_not_is_named() -> None:
    assert key_of(nested(50)) == key_of(nested(50)) != key_of(nested(51))

    with pytest.raises(KeyNeeded):
        key_of(nested(5_000))


def test_a_circle_is_refused() -> None:
    movie = Movie("n")
    object.__setattr__(movie, "name", (movie,))

    with pytest.raises(KeyNeeded):
        key_of(movie)


# -- methods


def test_self_and_cls_name_no_call() -> None:
    class Movies:
        def stars(self, movie: str) -> None: ...

        @classmethod
        def best(cls, movie: str) -> None: ...

    for function in (Movies.stars, Movies.best.__func__):  # type: ignore[attr-defined]
        of = keys(function)
        assert of.method
        with pytest.raises(KeyNeeded, match="a method's self or cls names no call"):
            of.of((1, "alien"), {})


def test_a_method_with_a_key_of_its_own_gets_all_arguments() -> None:
    class Movies:
        shop = "corner"

        def stars(self, movie: str, *, deep: bool = False) -> None: ...

    of = keys(Movies.stars, key=lambda self, movie, *, deep=False: (self.shop, movie, deep))

    assert of.of((Movies(), "alien"), {}) == of.of((Movies(),), {"movie": "alien", "deep": False})
    assert of.of((Movies(), "alien"), {}) != of.of((Movies(), "alien"), {"deep": True})


@pytest.mark.parametrize("function", [one, two, by_name, anything])
def test_functions_are_no_methods(function: Callable[..., Any]) -> None:
    assert not keys(function).method


# -- key=


def test_a_key_of_ones_own_names_the_call_instead_of_its_arguments() -> None:
    of = keys(two, key=lambda user, deep=False: user.name)

    assert of.of((Movie("alien", 1),), {}) == of.of((Movie("alien", [2]), True), {})
    assert of.of((Movie("alien"),), {}) != of.of((Movie("brazil"),), {})


def test_keys_of_ones_own_are_told_apart_by_type_too() -> None:
    of = keys(one, key=lambda what: what)
    values = [*ONE_AND_THE_LIKE, Text("1"), Text("t"), "t", frozenset({1}), UserId("ada"), Object, int, Heir("alien")]

    made = [of.of((value,), {}) for value in values]

    assert len(set(made)) == len(made)


def test_a_key_of_ones_own_kind_goes_by_its_own_equality() -> None:
    thing = Object()
    of = keys(one, key=lambda what: what)

    assert of.of((thing,), {}) == of.of((thing,), {}) != of.of((Object(),), {})
    assert of.of((frozenset({1, 2}),), {}) == of.of((frozenset({2, 1}),), {})
    assert of.of((UserId("ada"),), {}) == of.of((UserId("ada"),), {})


def test_a_key_of_ones_own_is_never_mistaken_for_arguments() -> None:
    mine, default = keys(one, key=lambda what: what), keys(one)

    assert all(mine.of((value,), {}) != default.of((value,), {}) for value in ONE_AND_THE_LIKE)


def test_none_is_a_key_like_any_other() -> None:
    of = keys(one, key=lambda what: None)

    assert of.of((1,), {}) == of.of((2,), {})


@pytest.mark.parametrize(
    "key",
    [lambda what: [what], lambda what: ({},), lambda what: what.missing, lambda: 1, lambda what: 1 / 0],
    ids=["a list", "a dict inside", "no attribute", "other arguments", "raises"],
)
def test_a_key_of_ones_own_that_cannot_be_is_an_error_that_says_so(key: Callable[..., Hashable]) -> None:
    with pytest.raises(KeyNeeded, match="its key= raised") as caught:
        keys(one, key=key).of((1,), {})

    assert isinstance(caught.value.__cause__, Exception)


def test_arguments_that_do_not_fit_are_the_callers_error_and_not_the_keys() -> None:
    of = keys(one, key=lambda *args: args)

    with pytest.raises(TypeError, match="too many positional") as caught:
        of.of((1, 2), {})

    assert not isinstance(caught.value, KeyNeeded)


# -- identity=


def test_an_identity_is_mixed_into_every_key() -> None:
    user: ContextVar[Any] = ContextVar("user")
    default, mine = keys(one, identity=user.get), keys(one, key=lambda what: "same", identity=user.get)

    made = []
    for who in (1, 1.0, True, "1", None, Movie("ada"), Colour.RED):
        user.set(who)
        made += [default.of((1,), {}), default.of((1.0,), {}), mine.of((1,), {})]
        assert made[-3:] == [default.of((1,), {}), default.of((), {"what": 1.0}), mine.of((2,), {})]

    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    "identity",
    [ContextVar("nobody").get, list, Object, lambda: 1 / 0, lambda: Text("t")],
    ids=["not set", "a list", "an object", "raises", "an heir"],
)
def test_where_nobody_is_known_no_call_has_a_key(identity: Callable[[], Hashable]) -> None:
    of = keys(one, identity=identity)

    for _ in range(2):
        with pytest.raises(KeyNeeded, match="its identity= gave none"):
            of.of((1,), {})


# -- whether arguments fit

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (args, kwargs)
    for args in [(), (1,), (1, 2), (1, 2, 3)]
    for kwargs in [{}, {"user": 1}, {"deep": 1}, {"user": 1, "deep": 2}, {"limit": 1}, {"what": 1}, {"other": 1}]
]


def required(user: Any, *, deep: Any) -> None: ...


def only_by_place(user: Any, deep: Any = 1, /) -> None: ...


def open_ended(user: Any, *rest: Any, **options: Any) -> None: ...


@pytest.mark.parametrize("function", [one, two, by_name, anything, required, only_by_place, open_ended])
def test_arguments_fit_exactly_where_the_function_takes_them(function: Callable[..., Any]) -> None:
    arguments = Arguments(function)

    for args, kwargs in [*CALLS, *CALLS]:  # the second time from what it knows
        try:
            function(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError):
                arguments.check(args, kwargs)
            with pytest.raises(TypeError):
                arguments.bound(args, kwargs)
        else:
            arguments.check(args, kwargs)
            arguments.bound(args, kwargs)


@pytest.mark.parametrize("function", [one, two, by_name, required, only_by_place, anything, open_ended])
def test_what_is_named_without_binding_is_what_binding_names(function: Callable[..., Any]) -> None:
    arguments = Arguments(function)

    for n, tail in arguments.tails.items():
        args = tuple(range(n))
        assert args + tail == arguments.bound(args, {})


def test_what_must_be_given_by_name_has_no_key_by_place_however_often_it_was_named() -> None:
    def strict(*, deep: Any = False) -> None: ...

    call = named(strict)
    call()

    with pytest.raises(TypeError, match="too many positional"):
        call(False)


# -- bounds


def test_no_more_shapes_of_names_are_kept_than_the_bound_and_all_are_checked() -> None:
    arguments = Arguments(anything)

    for number in range(2 * SHAPES_KEPT):
        arguments.check((), {f"name_{number}": 1})
        assert len(arguments._shapes) <= SHAPES_KEPT

    assert len(arguments._shapes) == SHAPES_KEPT


def test_a_shape_that_does_not_fit_is_not_kept() -> None:
    arguments = Arguments(two)

    for _ in range(2):
        with pytest.raises(TypeError):
            arguments.check((1,), {"wrong": 1})

    assert not arguments._shapes


def test_no_more_shapes_of_types_are_kept_than_the_bound_and_all_have_keys() -> None:
    def four(a: Any, b: Any, c: Any, d: Any) -> None: ...

    of = keys(four)
    shapes = list(product((1, True, "1", b"1", None), repeat=4))

    first = [of.of(args, {}) for args in shapes]
    again = [of.of(args, {}) for args in shapes]

    assert len(shapes) > 2 * SHAPES_KEPT
    assert first == again
    assert len(set(first)) == len(shapes)
    assert len(of._names) == SHAPES_KEPT


def test_no_key_keeps_an_object_alive() -> None:
    assert canonical(Movie("alien")) == (Movie, (str, "alien"), (int, 1979))
    assert not any(isinstance(part, Movie) for part in key_of(Movie("alien")))


def test_a_function_that_shows_no_parameters_is_asked_with_the_arguments() -> None:
    assert namer("up.ask circuit_by=", max)((3, 4), {}) == 4
