"""What a store holds for an answer: bytes that say their format, when the answer was live, and what it was.

    "gw" | version | checksum | seconds since 1970 | the value as MessagePack

The checksum is that of all behind it and of the entry's name, so that no damage, and no mistake of a store, makes the
answer to one question that to another.
The value is read back into the declared type, by msgspec, which makes nothing but data: never by pickle, which runs
what it is told to. Nothing is trusted to be ours: what is cut short, flipped, of another version or hostile is
`Undecodable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from math import isnan
from struct import Struct as Layout
from typing import Any
from zlib import crc32

import msgspec
from msgspec import inspect
from msgspec.msgpack import Decoder, Encoder

from fallbacks.wall import WALL

MARK = b"gw"
VERSION = 2
HEADER = Layout("<2sBI")
STAMP = Layout("<d")
START = HEADER.size + STAMP.size
AHEAD = 5.0
"""Seconds that another machine's clock may be ahead of ours."""
KINDS_KEPT = 1_024
PLAIN = frozenset({str, int, bool, bytes, type(None)})

ENCODE = Encoder().encode


class Undecodable(Exception):
    """Bytes from a store that are no answer of this kind."""


def wrap(value: Any, at: float, kind: Any = Any, name: str = "") -> bytes:
    """A value that was live at an instant of the wall clock, as bytes that hold under this name only.

    Raises TypeError for one that would not come back from `unwrap` as what it is: of another type than declared, a
    tuple or a set where nothing is declared, or no data at all.
    """
    try:
        payload = ENCODE(value)
        same = alike(value, decoder(kind).decode(payload))
    except Exception as error:
        raise TypeError(f"a {type(value).__qualname__} cannot be kept in a store as {kind}: {error}") from error
    if not same:
        problem = "it would come back as something else"
        raise TypeError(f"a {type(value).__qualname__} cannot be kept in a store as {kind}: {problem}")
    stamped = STAMP.pack(at) + payload
    return HEADER.pack(MARK, VERSION, checksum_of(name, stamped)) + stamped


def unwrap(data: object, kind: Any = Any, now: float | None = None, name: str = "") -> tuple[Any, float]:
    """The value, typed, and when it was live. Raises Undecodable for anything else. `now`: on the same wall clock."""
    at = stamp_of(data, now, name)
    try:
        return decoder(kind).decode(memoryview(data)[START:]), at  # type: ignore[arg-type]  # it is bytes
    except Exception as error:
        raise Undecodable(f"no {kind}: {error!r}") from error


def stamp_of(data: object, now: float | None = None, name: str = "") -> float:
    """When the value in these bytes was live.

    Raises Undecodable for bytes that are not whole, of another format, or under another name than they were written.
    """
    if not isinstance(data, bytes) or len(data) < START:
        raise Undecodable(f"no envelope, but a {type(data).__qualname__}")
    mark, version, checksum = HEADER.unpack_from(data)
    if mark != MARK or version != VERSION:
        raise Undecodable("of another format")
    if checksum_of(name, memoryview(data)[HEADER.size :]) != checksum:
        raise Undecodable("not whole, or another's")
    at: float = STAMP.unpack_from(data, HEADER.size)[0]
    latest = (WALL.now() if now is None else now) + AHEAD
    if not 0.0 <= at <= latest:
        raise Undecodable("from the future, or from no time at all")
    return at


def checksum_of(name: str, stamped: bytes | memoryview) -> int:
    """The checksum of an entry."""
    return crc32(stamped, crc32(name.encode()))


def check_kind(kind: Any) -> None:
    """Raise TypeError if values of this type cannot be carried, saying what in it cannot be."""
    try:
        decoder(kind)
        for part in parts_of(inspect.type_info(kind)):
            if isinstance(part, inspect.CustomType):
                what = f"{part.cls.__module__}.{part.cls.__qualname__}"
                raise TypeError(f"{what} is not plain data")  # noqa: TRY301 - its text joins that of msgspec's own
    except TypeError as error:
        remedy = "declare a dataclass, a msgspec.Struct or builtin types"
        raise TypeError(f"answers of the type {kind} cannot be kept in a store: {error}; {remedy}") from None


def parts_of(info: object) -> Iterator[object]:
    """A type and all that it is made of, each once: a type may hold itself."""
    seen: set[int] = set()
    rest = [info]
    while rest:
        part = rest.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (tuple, list)):
            rest.extend(part)
        elif isinstance(part, (inspect.Type, inspect.Field)):
            yield part
            rest.extend(getattr(part, name) for name in part.__struct_fields__ if name != "default")


def decoder(kind: Any) -> Decoder[Any]:
    """The decoder for a type; making one takes far longer than using it."""
    try:
        hash(kind)
    except TypeError:  # metadata of Annotated may have no hash
        return Decoder(kind)
    return kept_decoder(kind)


@lru_cache(maxsize=KINDS_KEPT, typed=True)
def kept_decoder(kind: Any) -> Decoder[Any]:
    """One per type."""
    return Decoder(kind)


def alike(one: Any, other: Any) -> bool:  # noqa: PLR0911 - as many cases as kinds of data
    """Whether two values are equal and of the same types throughout. A whole number may come back as a float."""
    kind = type(one)
    if kind is not type(other):
        return kind is int and type(other) is float and one == other
    if kind in PLAIN:  # most parts of most values
        return bool(one == other)
    if kind is list or kind is tuple:
        return len(one) == len(other) and all(map(alike, one, other))
    if kind is dict:
        return len(one) == len(other) and all(map(alike, one, other)) and all(map(alike, one.values(), other.values()))
    if kind is set or kind is frozenset:
        return {(type(part), part) for part in one} == {(type(part), part) for part in other}
    if kind is float:
        return one == other or (isnan(one) and isnan(other))
    if isinstance(one, msgspec.Struct):
        return all(alike(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    if is_dataclass(kind):
        return all(alike(getattr(one, field.name), getattr(other, field.name)) for field in fields(kind))
    return bool(one == other)
