"""The tier that remembers: the last good answer to the same question.

A bounded, synchronous LRU; an answer from it costs no `await`. Expiry is lazy, there is no timer per key. Behind it may
stand a store, any aiocache backend: written behind the answer, read only when memory has nothing. Sources: RFC 5861,
stale-if-error; Netflix EVCache's use behind Hystrix.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Hashable
from contextvars import Context
from copy import deepcopy
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from hashlib import sha256
from itertools import islice
from math import ceil, inf
from sys import getsizeof
from time import time as wall_clock
from typing import TYPE_CHECKING, Any
from uuid import UUID

from msgspec import Struct

from fallbacks.answer import Answer, Question, Source

if TYPE_CHECKING:
    from aiocache.base import BaseCache

log = logging.getLogger("gateway")

ATOMS = frozenset({str, bytes, int, float, bool, type(None), complex, Decimal, UUID, date, datetime, time, timedelta})
ATOM_SIZE = 32
"""Bytes a number takes, give or take a few."""
MIB = 1024 * 1024
PENDING_WRITES = 1_000
STORE_TIMEOUT = 1.0
SAMPLE = 100


Entry = tuple[Any, float, int, bool]
"""Value, when it was live, its bytes, and whether it is immutable, so that everybody may have this very one."""


class LastGood:
    """Answers with the last live value of the same call, if it is at most `max_age` seconds old.

        @ratings.operation(idempotent=True, fallback=[LastGood(max_age=300)])

    Bounded by `max_entries` exactly and by `max_bytes` as counted; the least recently used go first. Mutable values are
    copied when they are remembered and when they are served, so that no caller can change another's answer
    (`copy=False` opts out). `store` is an aiocache backend behind it. `after_unknown=True`: answer even when the call
    may have taken effect.
    """

    __slots__ = (
        "_bytes",
        "_copy",
        "_entries",
        "_pending",
        "_pending_bytes",
        "_store",
        "_writer",
        "after_unknown",
        "dropped_writes",
        "max_age",
        "max_bytes",
        "max_entries",
        "store_errors",
    )

    def __init__(
        self,
        *,
        max_age: float = 3600.0,
        max_entries: int = 10_000,
        max_bytes: float = 64 * MIB,
        copy: bool = True,
        store: BaseCache | None = None,
        after_unknown: bool = False,
    ) -> None:
        for name, value in (("max_age", max_age), ("max_entries", max_entries), ("max_bytes", max_bytes)):
            if not value > 0:
                msg = f"LastGood {name}: {value} is not above 0; give a number above 0, or inf"
                raise ValueError(msg)
        self.max_age = max_age
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.after_unknown = after_unknown
        self.store_errors = 0
        self.dropped_writes = 0
        self._copy = copy
        self._store = store
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._bytes = 0
        self._pending: OrderedDict[Hashable, tuple[dict[str, Any], int]] = OrderedDict()
        self._pending_bytes = 0
        self._writer: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_used(self) -> int:
        """The bytes of the remembered values, as counted."""
        return self._bytes

    @property
    def awaits(self) -> bool:
        """Whether an answer may take time."""
        return self._store is not None

    def remember(self, key: Hashable, value: Any, now: float) -> None:
        """Keep a live value; memory at once, the store behind. A call without a key is nobody's: it is not kept."""
        if key is None:
            return
        kind = type(value)
        if kind in ATOMS:
            entry = (value, now, len(value) if kind is str or kind is bytes else ATOM_SIZE, True)
        elif not self._copy:
            entry = (value, now, size_of(value), True)
        else:
            mine = copied(value)
            entry = (mine, now, size_of(mine), mine is value)
        self._put(key, entry)
        if self._store is not None:
            self._write_behind(key, entry[0], entry[2])

    def answer(self, question: Question, /) -> Answer[Any] | Awaitable[Answer[Any] | None] | None:
        """The last good value, with its age."""
        entry = self._entries.get(question.key)
        if entry is not None:
            value, at, _, shared = entry
            age = question.now - at
            if 0.0 <= age <= self.max_age:
                self._entries.move_to_end(question.key)
                if not shared:
                    value = copied(value)
                return Answer(value, Source.LAST_GOOD, age, question.error)
        if self._store is not None and question.key is not None:
            return self._from_store(self._store, question)
        return None

    async def flush(self) -> None:
        """Wait until what is to be written behind is written."""
        if self._writer is not None and self._writer.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({self._writer})

    def stop_writing(self) -> None:
        """Give up what is still to be written behind."""
        if self._writer is not None and not self._writer.get_loop().is_closed():  # else it is gone with its loop
            self._writer.cancel()
        self.dropped_writes += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    def _put(self, key: Hashable, entry: Entry) -> None:
        entries = self._entries
        old = entries.get(key)
        entries[key] = entry
        if old is not None:
            entries.move_to_end(key)
            if old[2] == entry[2]:
                return
            self._bytes -= old[2]
        self._bytes += entry[2]
        if entry[2] > self.max_bytes:  # it would not fit alone, and need not drive out the rest
            del entries[key]
            self._bytes -= entry[2]
        while len(entries) > self.max_entries or self._bytes > self.max_bytes:
            _, oldest = entries.popitem(last=False)
            self._bytes -= oldest[2]

    # -- the store behind

    def _write_behind(self, key: Hashable, value: Any, size: int) -> None:
        pending = self._pending
        self._pending_bytes += size - pending.pop(key, (None, 0))[1]
        pending[key] = ({"value": value, "at": wall_clock()}, size)
        while len(pending) > PENDING_WRITES or (self._pending_bytes > self.max_bytes and len(pending) > 1):
            self._next_pending()  # the store is slower than the answers: the oldest are not written
            self.dropped_writes += 1
        loop = asyncio.get_running_loop()
        if self._writer is None or self._writer.done() or self._writer.get_loop() is not loop:
            self._writer = loop.create_task(self._write(), name="gateway: write behind", context=Context())

    def _next_pending(self) -> tuple[Hashable, dict[str, Any]]:
        key, (envelope, size) = self._pending.popitem(last=False)
        self._pending_bytes -= size
        return key, envelope

    async def _write(self) -> None:
        ttl = None if self.max_age == inf else ceil(self.max_age)
        while self._pending and self._store is not None:
            key, envelope = self._next_pending()
            try:
                async with asyncio.timeout(STORE_TIMEOUT):
                    await self._store.set(spelled(key), envelope, ttl=ttl, timeout=0)
            except Exception as error:  # noqa: BLE001 - a store that fails costs a log line and a counter
                self._store_failed("write", error)

    async def _from_store(self, store: BaseCache, question: Question) -> Answer[Any] | None:
        entry = self._entries.get(question.key)
        try:
            envelope = await store.get(spelled(question.key), timeout=0)
            if envelope is None:
                return None
            kept, age = envelope["value"], max(wall_clock() - envelope["at"], 0.0)
        except Exception as error:
            self._store_failed("read", error)
            raise
        if not age <= self.max_age:  # too old, or no number
            return None
        value = copied(kept) if self._copy else kept
        if self._entries.get(question.key) is entry:  # else a live one came meanwhile, and stays
            self._put(question.key, (value, question.now - age, size_of(value), not self._copy))
        return Answer(copied(value) if self._copy else value, Source.LAST_GOOD, age, question.error)

    def _store_failed(self, what: str, error: Exception) -> None:
        self.store_errors += 1
        if self.store_errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th: a store that is gone is not a flood
            log.warning("the store behind LastGood failed to %s, %d times so far: %r", what, self.store_errors, error)


def copied(value: Any) -> Any:
    """A copy that nobody else can change; the value itself where nobody can change it anyway."""
    kind = type(value)
    if kind in ATOMS or isinstance(value, (Enum, type)):
        return value
    if kind is list:
        return [copied(part) for part in value]
    if kind is dict:
        return {copied(key): copied(part) for key, part in value.items()}
    if kind is tuple or kind is frozenset:
        parts = [copied(part) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else kind(parts)
    return value if frozen(value, kind) else deepcopy(value)


def frozen(value: Any, kind: type) -> bool:
    """Whether this is a frozen record of immutable fields. A plain heir of one is not: it may hold more."""
    if isinstance(value, (list, dict, set, bytearray)):  # a record by its fields, and more than that
        return False
    if isinstance(value, Struct) and value.__struct_config__.frozen:
        names = value.__struct_fields__
    elif "__dataclass_params__" in vars(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        names = tuple(field.name for field in fields(kind))
    else:
        return False
    return all(copied(part) is part for part in (getattr(value, name) for name in names))


def size_of(value: Any) -> int:
    """Bytes a value takes: exact for bytes and plain str, else counted, large containers by sample."""
    kind = type(value)
    if kind in ATOMS:
        return len(value) if kind is str or kind is bytes else ATOM_SIZE
    size = getsizeof(value)
    if isinstance(value, dict):
        parts = [*islice(value.keys(), SAMPLE), *islice(value.values(), SAMPLE)]
        return size + scaled(parts, 2 * len(value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return size + scaled(list(islice(value, SAMPLE)), len(value))
    if isinstance(value, Struct):
        return size + sum(size_of(getattr(value, name)) for name in value.__struct_fields__)
    if is_dataclass(kind):
        return size + sum(size_of(getattr(value, field.name)) for field in fields(kind))
    return size


def scaled(sample: list[Any], count: int) -> int:
    """The size of `count` parts, going by some of them."""
    return int(sum(map(size_of, sample)) * count / len(sample)) if sample else 0


def spelled(key: Hashable) -> str:
    """A key as 64 hexadecimal digits, the same in every process. Raises TypeError for what is not plain data."""
    return sha256(spelled_out(key)).hexdigest()


def spelled_out(key: Hashable) -> bytes:
    """A key as bytes that no other key has: each part with its kind and its length."""
    kind = type(key).__qualname__
    if type(key) is tuple:
        text = b"".join(map(spelled_out, key))
    elif isinstance(key, type):
        kind, text = "type", f"{key.__module__}:{key.__qualname__}".encode()
    elif isinstance(key, Enum):  # by name, which outlives a change of the value; bits without a member have no name
        name = key.value if isinstance(key, Flag) else key.name
        kind, text = "enum", spelled_out(type(key)) + spelled_out(name)
    elif type(key) is bytes:
        text = key
    elif type(key) in {str, int, bool, type(None)}:
        text = str(key).encode(errors="surrogatepass")
    else:
        msg = f"a {kind} in a key has no spelling that survives this process"
        raise TypeError(msg)
    return b"%s %d:%s" % (kind.encode(), len(text), text)
