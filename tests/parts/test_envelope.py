"""What a store holds for an answer, and what is none of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from math import inf, isnan, nan
from typing import Annotated, Any, Literal
from uuid import UUID
from zlib import crc32

import msgspec
import pytest

from fallbacks.envelope import HEADER, MARK, STAMP, VERSION, Undecodable, check_kind, stamp_of, unwrap, wrap
from gateway import HttpReply
from tests.support import steady


class Colour(Enum):
    RED = 1


@dataclass
class Film:
    name: str
    stars: list[int]


@dataclass
class Sequel(Film):
    number: int = 2


class Seat(msgspec.Struct):
    row: int
    film: Film | None = None


class Tree(msgspec.Struct):
    parts: list["Tree"] = []  # noqa: UP037 - it names itself


class Own:
    pass


FILM = Film("Alien", [5, 4])
KEPT: list[tuple[Any, Any]] = [
    *((value, Any) for value in (None, True, 0, -1, 2**63, 1.5, -0.0, inf, "", "ä", b"", b"\x00", [], {}, [1, ["a"]])),
    *((value, Any) for value in ({"a": [1, {"b": None}]}, {1: "a"}, {b"k": 1})),
    *(
        (1, int),
        (1, float),
        (1.5, float),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        (frozenset("ab"), frozenset),
    ),
    *(
        (Colour.RED, Colour),
        (UUID(int=7), UUID),
        (Decimal("1.10"), Decimal),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime),
    ),
    *((FILM, Film), ([FILM], list[Film]), (Seat(1, FILM), Seat), (Seat(1), Seat), (Tree([Tree()]), Tree)),
    *(
        (HttpReply(200, (("A", "b"), ("A", "c")), b"\x00\xff"), HttpReply),
        (None, Film | None),
        ("a", Literal["a", "b"]),
    ),
    *((5, Annotated[int, msgspec.Meta(ge=1)]), (5, Annotated[int, []]), (bytearray(b"x"), bytearray)),
]
REFUSED: list[tuple[Any, Any]] = [
    *((value, Any) for value in ((1, 2), {1}, FILM, Seat(1), Colour.RED, Decimal(1), UUID(int=1), 2**64, Own(), Own)),
    *(
        (value, Any)
        for value in ("\ud800", [1, (2,)], {"a": {1}}, {frozenset(): 2}, bytearray(b"x"), len, lambda: None, nan and 1j)
    ),
    *(
        ("a", int),
        (1, str),
        (Sequel("Aliens", []), Film),
        ((1,), list[int]),
        ({"a": (1,)}, dict),
        ([Sequel("A", [])], list[Film]),
    ),
    *(
        (True, float),
        (2**80, float),
        ([datetime(2026, 1, 1)], list),  # noqa: DTZ001
        (Own(), Own),
        (0, Annotated[int, msgspec.Meta(ge=1)]),
    ),
]


def deep(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def sealed(payload: bytes, at: float = 100.0, version: int = VERSION, mark: bytes = MARK) -> bytes:
    """As somebody would write it who knows the format."""
    stamped = STAMP.pack(at) + payload
    return HEADER.pack(mark, version, crc32(stamped)) + stamped


@pytest.mark.parametrize(("value", "kind"), KEPT, ids=steady)
def test_a_value_comes_back_as_what_it_is(value: Any, kind: Any) -> None:
    back, at = unwrap(wrap(value, 123.5, kind), kind, now=200.0)

    assert (back, at) == (value, 123.5)
    assert type(back) is type(value) or (type(value), kind) == (int, float)
    assert repr(back) == repr(value) or kind is float or isinstance(value, (set, frozenset))


def test_no_number_comes_back_too() -> None:
    back, _ = unwrap(wrap([nan], 1.0), now=1.0)

    assert isnan(back[0])


@pytest.mark.parametrize(("value", "kind"), REFUSED, ids=steady)
def test_what_would_come_back_as_something_else_is_refused(value: Any, kind: Any) -> None:
    with pytest.raises(TypeError, match="cannot be kept in a store"):
        wrap(value, 1.0, kind)


def test_a_value_nested_too_deeply_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        wrap(deep(100_000), 1.0)


@pytest.mark.parametrize("kind", [float, list, dict, tuple[int, str], Film, Seat, HttpReply, Any, Film | None, Tree])
def test_types_of_plain_data_can_be_carried(kind: Any) -> None:
    check_kind(kind)


@pytest.mark.parametrize(
    "kind", [Own, list[Own], dict[str, Own], Own | None, Callable[[], int], complex, tuple[int, Own]]
)
def test_a_type_that_cannot_be_carried_is_an_error_that_says_what_to_do(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot be kept in a store: .*; declare a dataclass"):
        check_kind(kind)


def test_a_field_that_cannot_be_carried_is_found() -> None:
    holder = msgspec.defstruct("Holder", [("films", list[dict[str, Own]])])

    with pytest.raises(TypeError, match=r"Own is not plain data"):
        check_kind(holder)


# -- what is none of ours


GOOD = wrap({"name": "Alien", "stars": [5]}, 100.0)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_what_is_cut_short_is_undecodable(length: int) -> None:
    with pytest.raises(Undecodable):
        unwrap(GOOD[:length], now=100.0)


def test_any_bit_that_flips_is_noticed() -> None:
    for position in range(8 * len(GOOD)):
        flipped = bytearray(GOOD)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(Undecodable):
            unwrap(bytes(flipped), now=100.0)


@pytest.mark.parametrize(
    "data",
    [
        *(None, "", b"", 5, [], {}, {"value": 1, "at": 2}, ("v", 1.0), bytearray(GOOD), GOOD.decode("latin-1")),
        *(
            GOOD + b"x",
            b"x" + GOOD,
            b"\x80\x04K\x01.",
            sealed(b"\x01", version=VERSION + 1),
            sealed(b"\x01", mark=b"GW"),
        ),
        *(
            sealed(b""),
            sealed(b"\x01\x01"),
            sealed(b"\xc1"),
            sealed(b"\xdd\xff\xff\xff\xff"),
            sealed(b"\xdf\xff\xff\xff\xff"),
        ),
        *(sealed(b"\xc6\xff\xff\xff\xff"), sealed(b"\xdb\xff\xff\xff\xff"), sealed(b"\x91" * 200_000 + b"\x01")),
        *(sealed(b"\x81" * 100_000), sealed(b"\xa1\xff")),
        *(sealed(b"\x01", at) for at in (nan, inf, -inf, -1.0, 105.1, 1e300)),
    ],
    ids=lambda data: repr(data)[:40],
)
@pytest.mark.parametrize("kind", [Any, Film, int | None], ids=repr)
def test_garbage_is_undecodable_and_nothing_else(data: Any, kind: Any) -> None:
    with pytest.raises(Undecodable):
        unwrap(data, kind, now=100.0)


def test_what_was_written_under_one_name_is_undecodable_under_another() -> None:
    data = wrap("Ada's", 100.0, name="g2:ada")

    assert unwrap(data, now=100.0, name="g2:ada") == ("Ada's", 100.0)
    with pytest.raises(Undecodable, match="another's"):
        unwrap(data, now=100.0, name="g2:bob")


def test_a_value_of_another_type_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="no <class 'int'>"):
        unwrap(wrap("a", 1.0), int, now=1.0)


def test_a_clock_a_little_ahead_is_no_lie() -> None:
    assert unwrap(wrap("v", 104.9), now=100.0) == ("v", 104.9)
    assert stamp_of(wrap("v", 1e12), inf) == 1e12
