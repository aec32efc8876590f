"""How a key is written down where it outlives the process."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, Flag, IntFlag, StrEnum
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from fallbacks.spelling import spelled
from gateway.arguments import Arguments, Keys, canonical
from tests.support import steady


class Colour(Enum):
    RED = 1


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


@dataclass(frozen=True)
class Film:
    name: str
    year: float


class Seat(msgspec.Struct, frozen=True):
    row: int
    of: Film


APART: list[Any] = [
    *(1, True, "1", b"1", None, "None", "", b"", 0, False, -1, "-1", "True", 10**30, 16, "10", 10),
    *((), (1,), ((1,),), ("1",), (True,), ("a", "b"), ("ab",), ("a", ("b",)), (("a",), "b"), ("", "ab"), ("ab", "")),
    *(int, "int", str, "builtins:str", (int, 1), (int, "1"), (str, "1"), Colour, Outer.Colour, type, type(None)),
    *(Colour.RED, Shade.RED, Word.RED, Outer.Colour.RED, "RED", Marks.ONE, Marks(0)),
    *(Bits(0), Bits.ONE, Bits(8), Bits(16), Bits(9), "\ud800", "\ufffd", "ä", "ä".encode()),
    "type 5:m:str" + "str 3:RED",
]
ARGUMENTS: list[Any] = [
    *(1, "a", b"a", True, None, 1.5, -0.0, 0.0, 2j, Decimal("1.10"), Decimal("1.1"), Fraction(1, 3), UUID(int=1)),
    *(date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), timedelta(1)),  # noqa: DTZ001
    *(datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), Colour.RED, Bits(9), (1, ("a", 2.5))),
    *(Film("Alien", 1979.0), Seat(3, Film("Alien", 1979.0)), 10**5000, "\ud800"),
]
HERE = """
import tests.parts.test_spelling as here
from fallbacks.spelling import spelled
print(*[spelled(here.key_of(value)) for value in here.ARGUMENTS])
"""


def one(what: Any) -> None: ...


def key_of(value: Any) -> tuple[Any, ...]:
    return Keys("up", "op", Arguments(one), key=None, identity=lambda: "ada").of((value,), {})


def test_keys_are_spelled_alike_only_if_they_are_equal_and_of_equal_types() -> None:
    spellings = [spelled(key) for key in APART]

    assert len(set(spellings)) == len(APART)
    assert spellings == [spelled(deepcopy(key)) for key in APART]


def test_a_key_is_spelled_alike_in_every_process_and_release() -> None:
    assert spelled(("'world'.'ask'(str, int)", "alien", 1)) == (
        "78e1775bb09c20f8d29eb52e40a0d7f7c0fc4317ac69f77576dfcc5d881c8744"
    )


def test_every_argument_that_makes_a_key_is_spelled_and_alike_in_another_process() -> None:
    here = [spelled(key_of(value)) for value in ARGUMENTS]

    there = subprocess.run([sys.executable, "-c", HERE], capture_output=True, text=True, check=True)

    assert there.stdout.split() == here
    assert len(set(here)) == len(ARGUMENTS)


@pytest.mark.parametrize(
    "key", [1.5, Decimal(1), frozenset(), Film("n", 1), object(), UUID(int=1), (1, (2, 3j))], ids=steady
)
def test_what_is_not_plain_has_no_spelling(key: Any) -> None:
    with pytest.raises(TypeError, match="no spelling that survives this process"):
        spelled(key)


def test_an_heir_of_a_plain_kind_has_no_spelling_either() -> None:
    class Secret(str):
        __slots__ = ()

    with pytest.raises(TypeError, match=r"a .*Secret in a key has no spelling"):
        spelled(Secret("s"))


def made(year: int) -> Any:
    @dataclass(frozen=True)
    class Local:
        name: str

    return Local("same")


def test_classes_that_share_a_name_are_not_taken_for_each_other() -> None:
    for value in (made(1), made(2), Enum("str", "RED", module="m").RED):  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="not found by its name"):
            spelled(canonical(value))


def test_a_key_nested_too_deeply_is_a_type_error() -> None:
    key: Any = ()
    for _ in range(100_000):
        key = (key,)

    with pytest.raises(TypeError, match="nested so deeply"):
        spelled(key)
