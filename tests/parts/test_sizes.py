"""How many bytes a value takes: near the exact count of all it leads to, without looking at all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from msgspec import Struct

from fallbacks.sizes import SAMPLE, size_of

MIX = 3_000


class Film(Struct):
    name: str
    stars: list[int]


@dataclass
class Page:
    title: str
    films: Any


def exact(value: Any) -> int:
    """Bytes of an object and of all it leads to, each once; bytes and text as their content alone, as promised."""
    if type(value) in (bytes, str):
        return len(value if type(value) is bytes else value.encode())
    seen: set[int] = set()
    todo, size = [value], 0
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            size += sys.getsizeof(one)
            todo += parts(one)
    return size


def parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, Struct):
        yield from (getattr(value, name) for name in value.__struct_fields__)
    elif isinstance(value, Page):
        yield vars(value)


def a_value(random: Random, depth: int = 0) -> Any:
    """As upstreams answer: records, lists of records, texts; most small, some large."""
    pick = random.random()
    if depth > 2 or pick < 0.25:
        return random.choice([a_text(random), random.randrange(10**9), random.random(), None, a_text(random).encode()])
    if pick < 0.45:
        return {a_text(random): a_value(random, depth + 1) for _ in range(random.choice([0, 1, 3, 8]))}
    if pick < 0.65:
        return [a_value(random, depth + 1) for _ in range(random.choice([0, 1, 3, 8]))]
    rows = range(random.choice([0, 1, 10, 10, 50]) if depth or random.random() < 0.95 else 5 * SAMPLE)
    if pick < 0.8:
        return [{"name": a_text(random), "stars": random.randrange(5), "tags": [a_text(random)]} for _ in rows]
    if pick < 0.9:
        return tuple(a_text(random) for _ in rows)
    if pick < 0.95:
        return Film(a_text(random), [random.randrange(5) for _ in rows])
    return Page(a_text(random), a_value(random, depth + 1))


def a_text(random: Random) -> str:
    return random.choice(["x", "ä", "."]) * random.choice([1, 5, 20, 20, 100, 1000]) + str(random.random())


@pytest.fixture(scope="module")
def mix() -> list[tuple[int, int]]:
    """Exact and estimated bytes of each value."""
    random = Random(1)
    values = (a_value(random) for _ in range(MIX))
    return [(exact(value), size_of(value)) for value in values]


def test_over_a_mix_of_values_it_is_right_within_a_fifth(mix: list[tuple[int, int]]) -> None:
    right = sum(truth for truth, _ in mix)
    told = sum(estimate for _, estimate in mix)

    assert told == pytest.approx(right, rel=0.2)


def test_of_nearly_every_value_it_is_right_within_a_fifth(mix: list[tuple[int, int]]) -> None:
    off = [(truth, estimate) for truth, estimate in mix if abs(estimate - truth) > 0.2 * max(truth, 100)]

    assert len(off) < 0.02 * MIX


def test_what_is_large_and_even_is_told_from_its_parts() -> None:
    rows = [{"name": f"film {number}", "stars": number} for number in range(20_000)]

    assert size_of(rows) == pytest.approx(exact(rows), rel=0.2)


def test_what_a_value_holds_many_times_is_counted_once() -> None:
    large = "x" * 100_000

    assert size_of([large] * 50) < 2 * 100_000


def test_what_leads_back_to_itself_has_an_end() -> None:
    circle: list[Any] = ["x" * 1000]
    circle.append(circle)

    assert 1000 < size_of(circle) < 2000


def test_it_looks_at_a_sample_only() -> None:
    looked = 0

    class Part:
        __slots__ = ()

        def __sizeof__(self) -> int:
            nonlocal looked
            looked += 1
            return 100

    assert size_of([Part() for _ in range(50_000)]) == pytest.approx(50_000 * 116, rel=0.2)
    assert looked <= 2 * SAMPLE + 1


def test_what_stands_twice_in_a_record_is_counted_once() -> None:
    class Pair(Struct):
        one: str
        other: str

    same = "the same text, and not two that are alike"

    assert size_of(Pair(same, same)) == exact(Pair(same, same)) == size_of(Pair(same, "")) - sys.getsizeof("")
