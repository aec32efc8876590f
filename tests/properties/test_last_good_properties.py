"""LastGood under random use, held to a model in plain lists, and what copies and spellings of random data must be.

The model keeps what it knows in a list, the next to be forgotten first, and adds up all sizes anew at every step. The
seeded walks alone are 40,000 steps; after each, the memory must hold just what the model holds, in its order, and be
within its bounds. Clocks go back now and then, values are too large now and then, keys come again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, defstruct

from fallbacks import Answer, LastGood, Question, Source
from fallbacks.copying import ATOMS, copied
from fallbacks.sizes import size_of, weight_of
from fallbacks.spelling import spelled
from gateway.arguments import canonical

WALKS = 20
STEPS_A_WALK = 2_000


@dataclass
class Model:
    """What it has to hold: key, value, when, bytes."""

    max_age: float
    max_entries: float
    max_bytes: float
    held: list[tuple[str, Any, float, int]] = field(default_factory=list)

    def remember(self, key: str, value: Any, now: float) -> None:
        self.held = [one for one in self.held if one[0] != key]
        size = len(value) if isinstance(value, (str, bytes)) else size_of(copied(value))
        if size > self.max_bytes:
            return
        self.held.append((key, value, now, size))
        while len(self.held) > self.max_entries or self.bytes_used > self.max_bytes:
            self.held.pop(0)

    def answer(self, key: str, now: float) -> tuple[Any, float] | None:
        for one in self.held:
            if one[0] == key and 0.0 <= now - one[2] <= self.max_age:
                self.held.remove(one)
                self.held.append(one)
                return one[1], now - one[2]
        return None

    @property
    def bytes_used(self) -> int:
        return sum(size for *_, size in self.held)


def a_value(random: Random, step: int) -> Any:
    """Never the same twice; mostly small."""
    size = random.choice([0, 1, 5, 5, 20, 60, 200])
    text = f"{step}:" + "x" * size
    return random.choice([text, text, text.encode(), step, [text], {"text": text}, (text, [step])])


@pytest.mark.parametrize("seed", range(WALKS))
def test_it_holds_what_the_model_holds_and_keeps_its_bounds_at_every_step(seed: int) -> None:
    random = Random(seed)
    knobs = {
        "max_age": random.choice([0.5, 10.0, 1000.0, inf]),
        "max_entries": random.choice([1, 2, 5, 20, inf]),
        "max_bytes": random.choice([1, 100, 300, 2000, inf]),
    }
    memory, model, error = LastGood(**knobs), Model(**knobs), ValueError()
    keys = [f"key {number}" for number in range(random.choice([2, 10, 40]))]
    now, answers = 1000.0, 0

    for step in range(STEPS_A_WALK):
        now += random.choice([0.0, 0.0, 0.25, 0.5, 3.0, -0.25, -2.0])
        key = random.choice(keys)
        if random.random() < 0.5:
            value = a_value(random, step)
            memory.remember(key, value, now)
            model.remember(key, value, now)
        else:
            answer, expected = memory.answer(Question(key, (), {}, error, now, inf)), model.answer(key, now)
            got = (answer.value, answer.age) if isinstance(answer, Answer) else None
            assert got == expected
            if isinstance(answer, Answer):
                answers += 1
                assert 0.0 <= answer.age <= memory.max_age
                assert (answer.source, answer.error) == (Source.LAST_GOOD, error)
                if isinstance(answer.value, list):
                    answer.value.clear()  # a caller may do as it likes
        assert list(memory._entries) == [one[0] for one in model.held]
        assert memory.bytes_used == model.bytes_used <= memory.max_bytes
        assert len(memory) <= memory.max_entries

    assert answers or memory.max_bytes == 1


# -- copies

atoms = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary())
Frozen = make_dataclass("Frozen", ["part"], frozen=True)
Frozen.__module__ = __name__  # where it is found
Open = make_dataclass("Open", ["part"])
Ice: Any = defstruct("Ice", ["part"], frozen=True)
Water: Any = defstruct("Water", ["part"])
data = st.recursive(
    atoms,
    lambda parts: st.one_of(
        st.lists(parts),
        st.lists(parts).map(tuple),
        st.dictionaries(st.text(), parts),
        st.sets(st.integers()),
        st.frozensets(st.text()),
        *(st.builds(kind, parts) for kind in (Frozen, Open, Ice, Water)),
    ),
    max_leaves=20,
)


def parts_of(value: Any) -> list[Any]:
    """What it holds, at the first level."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return [value.part] if isinstance(value, (Struct, Frozen, Open)) else []


def changeable(value: Any) -> list[Any]:
    """All that can be changed in it, itself included."""
    inside = [one for part in parts_of(value) for one in changeable(part)]
    return [value, *inside] if isinstance(value, (list, dict, set, Open, Water)) else inside


@given(data)
@settings(deadline=None)
def test_a_copy_is_equal_and_has_nothing_in_common_that_can_be_changed(value: Any) -> None:
    copy = copied(value)

    assert copy == value
    assert type(copy) is type(value)
    assert not {id(one) for one in changeable(copy)} & {id(one) for one in changeable(value)}


@given(data)
@settings(deadline=None)
def test_what_cannot_be_changed_is_not_copied(value: Any) -> None:
    assert (copied(value) is value) is (not changeable(value))


@given(data)
@settings(deadline=None)
def test_a_value_takes_at_least_what_its_parts_take(value: Any) -> None:
    parts = {id(part): part for part in parts_of(value)}.values()  # each counts once, however often it is in there

    assert size_of(value) >= (0 if type(value) in ATOMS else sum(weight_of(part, set()) for part in parts) // 2)


# -- spelled keys

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0]),
    st.text("a1", max_size=2),
    st.binary(max_size=1),
)
plain_keys = st.recursive(
    plain, lambda parts: st.one_of(st.lists(parts, max_size=3).map(tuple), st.builds(Frozen, parts)), max_leaves=4
)


@given(plain_keys, plain_keys)
@settings(deadline=None, max_examples=500)
def test_keys_are_spelled_alike_just_when_they_are_equal(one: Any, other: Any) -> None:
    first, second = canonical(one), canonical(other)

    assert (spelled(first) == spelled(second)) is (first == second)
    assert spelled(first) == spelled(canonical(one))
