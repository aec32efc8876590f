"""How many bytes a value takes, as near as can be told without looking at all of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from sys import getsizeof
from typing import Any

from msgspec import Struct

from fallbacks.copying import ATOMS, KINDS_KNOWN

ATOM_SIZE = 32
"""Bytes a number takes, give or take a few."""
SAMPLE = 100
"""Parts of a large container that are looked at; the others are taken to be like them."""


def size_of(value: Any) -> int:
    """Bytes a value takes: exact for bytes and plain str, else counted, large containers by sample."""
    kind = type(value)
    if kind is bytes:
        return len(value)
    if kind is str:
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    return ATOM_SIZE if kind in ATOMS else weight_of(value, set())


def weight_of(value: Any, seen: set[int]) -> int:  # noqa: PLR0911 - as many as there are kinds of containers
    """Bytes of an object and of all it leads to, each counted once."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    kind: Any = type(value)
    if kind in ATOMS:
        return int(value.__sizeof__())  # as `getsizeof` does, which then looks for more, and takes thrice as long
    size = getsizeof(value)
    if (fields := struct_fields(kind)) is not None:
        return size + weight_of_fields(value, fields, seen)
    if isinstance(value, dict):
        size += weight_of_all(islice(value.keys(), SAMPLE), len(value), seen)
        return size + weight_of_all(islice(value.values(), SAMPLE), len(value), seen)
    if isinstance(value, (list, tuple)):
        step = len(value) // SAMPLE or 1  # from all over it: what was put in first may be unlike the rest
        return size + weight_of_all(value[::step], len(value), seen)
    if isinstance(value, (set, frozenset)):
        return size + weight_of_all(islice(value, SAMPLE), len(value), seen)
    if hasattr(value, "__dict__"):
        size += weight_of(vars(value), seen)
    names = (name for kind in type(value).__mro__ for name in slots_of(kind))
    return size + sum(weight_of(getattr(value, name), seen) for name in names if hasattr(value, name))


def weight_of_fields(value: Any, fields: Iterable[str], seen: set[int]) -> int:
    """Bytes of the fields of a record. Most of them are atoms, and a call for each would be most of it."""
    size = 0
    for name in fields:
        part = getattr(value, name)
        if type(part) not in ATOMS:
            size += weight_of(part, seen)
        elif id(part) not in seen:
            seen.add(id(part))
            size += part.__sizeof__()
    return size


def weight_of_all(sample: Iterable[Any], count: int, seen: set[int]) -> int:
    """Bytes of `count` parts, going by some of them."""
    weights = [weight_of(part, seen) for part in sample]
    return int(sum(weights) * count / len(weights)) if weights else 0


@lru_cache(maxsize=KINDS_KNOWN)
def struct_fields(kind: type) -> tuple[str, ...] | None:
    """The fields of a class of Structs; None for any other. Known by class: what a Struct is, Python tells slowly."""
    return kind.__struct_fields__ if issubclass(kind, Struct) else None


def slots_of(kind: type) -> tuple[str, ...]:
    """The slots that a class itself adds."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in {"__dict__", "__weakref__"} and not name.startswith("__"))
