"""The tier that remembers: the last good answer to the same question.

A bounded, synchronous LRU; an answer from it costs no `await`. Expiry is lazy, there is no timer per key. Behind it may
stand a store, any aiocache backend: written behind the answer, read only when memory has nothing. Sources: RFC 5861,
stale-if-error and stale-while-revalidate; Netflix EVCache's use behind Hystrix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from fallbacks.answer import Answer, Question, Source
from fallbacks.behind import Behind, StoreSnapshot
from fallbacks.copying import ATOMS, copied
from fallbacks.sizes import size_of
from fallbacks.wall import WALL

if TYPE_CHECKING:
    from aiocache.base import BaseCache

LAST_GOOD = Source.LAST_GOOD  # a module global, as LIVE is
MIB = 1024 * 1024
MOST_DRIVEN_OUT = 1_000
"""A value that would drive out more others than this is not kept: to forget them takes the loop's time, too."""


class Entry:
    """A value, when it was live, its bytes, and whether it is immutable, so that everybody may have this very one.

    Overwritten in place when the same call is answered again: that is what happens most of all.
    """

    __slots__ = ("at", "shared", "size", "value")

    def __init__(self, value: Any, at: float, size: int, shared: bool) -> None:  # noqa: FBT001 - private
        self.value = value
        self.at = at
        self.size = size
        self.shared = shared


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySnapshot:
    """A memory as it is now, and what it was asked since it was made.

    `too_old`: it had the answer, and that was older than allowed; `evicted`: driven out by others.
    """

    entries: int
    bytes: int
    hits: int
    misses: int
    too_old: int
    evicted: int
    store: StoreSnapshot | None


class LastGood:
    """Answers with the last live value of the same call, if it is at most `max_age` seconds old.

        @ratings.operation(idempotent=True, fallback=[LastGood(max_age=300)])

    Bounded by `max_entries` exactly and by `max_bytes` as counted; the least recently used go first. Mutable values are
    copied when they are remembered and when they are served, so that no caller can change another's answer
    (`copy=False` opts out). `store` is an aiocache backend behind it, see `fallbacks.stores`. `after_unknown=True`:
    answer even when the call may have taken effect. Raises ValueError for a bound that is not above 0.
    """

    __slots__ = (
        "_behind",
        "_bytes",
        "_copy",
        "_entries",
        "_forgets",
        "_frozen",
        "_frozen_bytes",
        "after_unknown",
        "evicted",
        "hits",
        "max_age",
        "max_bytes",
        "max_entries",
        "misses",
        "too_old",
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
        self.hits = self.misses = self.too_old = self.evicted = 0
        self._copy = copy
        self._behind = None if store is None else Behind(store, max_age=max_age, max_bytes=max_bytes)
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._bytes = 0
        self._forgets = 0  # how often something was forgotten: what was read of the store before does not come back
        self._frozen: dict[str, bytes] = {}  # what a warm start brought, as it stood in the store, by its name there
        self._frozen_bytes = 0

    def __len__(self) -> int:
        return len(self._entries) + len(self._frozen)

    @property
    def bytes_used(self) -> int:
        """The bytes of the remembered values, as counted."""
        return self._bytes + self._frozen_bytes

    @property
    def awaits(self) -> bool:
        """Whether an answer may take time."""
        return self._behind is not None

    @property
    def behind(self) -> Behind | None:
        """What stands behind it: the store, and what is known of it."""
        return self._behind

    def remember(self, key: Hashable, value: Any, now: float) -> None:
        """Keep a live value; memory at once, the store behind. A call without a key is nobody's: it is not kept."""
        of = type(value)
        if not ((of is str and value.isascii()) or of is bytes):
            self.remember_as(key, value, now, size_of, Any)
        elif (entry := self._entries.get(key)) is not None and entry.size == len(value) and self._behind is None:
            entry.value, entry.at = value, now  # as `_put` would: this is on every call's way
            self._entries.move_to_end(key)
        else:
            self._put(key, value, now, len(value), True, Any)

    def remember_as(self, key: Hashable, value: Any, now: float, size_of: Callable[[Any], int], kind: Any) -> None:
        """The same; `size_of` tells its bytes, `kind` the declared type that it is made when it comes from a store."""
        if type(value) in ATOMS or not self._copy:
            self._put(key, value, now, size_of(value), True, kind)
        else:
            mine = copied(value)
            self._put(key, mine, now, size_of(mine), mine is value, kind)

    def recall(
        self, key: Hashable, now: float, max_age: float = inf, kind: Any = Any, operation: str = ""
    ) -> tuple[Any, float] | None:
        """What memory has under a key, and its age in seconds; None if nothing, or nothing young enough.

        What the store gave at a warm start counts as memory; `kind` and `operation` are as in a `Question`.
        """
        entry = self._entries.get(key)
        if entry is None and self._frozen and self._behind is not None:
            entry = self._thawed(self._behind, key, now, kind, operation)
        if entry is None:
            self.misses += 1
            return None
        age = now - entry.at
        if not 0.0 <= age <= self.max_age or age > max_age:
            self.too_old += 1
            return None
        self.hits += 1
        if key in self._entries:  # not one that is too large to be kept
            self._entries.move_to_end(key)
        return (entry.value if entry.shared else copied(entry.value)), age

    def answer(self, question: Question, /) -> Answer[Any] | Awaitable[Answer[Any] | None] | None:
        """The last good value, with its age."""
        found = self.recall(question.key, question.now, question.max_age, question.kind, question.operation)
        if found is not None:
            value, age = found
            return Answer(value, LAST_GOOD, age, question.error, WALL.now() - age)
        if self._behind is not None and question.key is not None:
            return self._from_store(self._behind, question)
        return None

    def forget(self, key: Hashable) -> bool:
        """Forget one answer, in the store too; whether memory had it."""
        self._forgets += 1
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
        if self._behind is None:
            return entry is not None
        frozen = self._frozen and self._thaw(self._behind, key)
        self._behind.forget(key)
        return entry is not None or bool(frozen)

    def forget_where(self, meant: Callable[[Hashable], bool], operation: str = "") -> int:
        """Forget the answers under all keys that are meant, and all that the store has of the operation; how many.

        A store knows no parts of keys: there, forgetting too much is the safe side.
        """
        self._forgets += 1
        keys = [key for key in self._entries if meant(key)]
        for key in keys:
            self._bytes -= self._entries.pop(key).size
        if self._behind is not None:
            self._frozen.clear()
            self._frozen_bytes = 0
            self._behind.forget_all(operation)
        return len(keys)

    def snapshot(self) -> MemorySnapshot:
        """The memory as it is now."""
        return MemorySnapshot(
            entries=len(self),
            bytes=self.bytes_used,
            hits=self.hits,
            misses=self.misses,
            too_old=self.too_old,
            evicted=self.evicted,
            store=None if self._behind is None else self._behind.snapshot(),
        )

    async def warm_start(self) -> int:
        """Take in what the store has, as far as it can list that and the bounds allow; how many answers."""
        if self._behind is None:
            return 0
        forgets = self._forgets
        frozen = await self._behind.newest(self.max_entries, self.max_bytes)
        if self._forgets != forgets:  # it may be among these; the store is asked one by one, then
            return 0
        self._frozen = frozen
        self._frozen_bytes = sum(map(len, self._frozen.values()))
        self._melt()
        return len(self._frozen)

    async def flush(self) -> None:
        """Wait until what is to be written behind is written."""
        if self._behind is not None:
            await self._behind.flush()

    def stop_writing(self) -> None:
        """Give up what is still to be written behind."""
        if self._behind is not None:
            self._behind.stop()

    def _put(self, key: Hashable, value: Any, now: float, size: int, shared: bool, kind: Any) -> None:  # noqa: FBT001, PLR0917 - private
        entries = self._entries
        entry = entries.get(key)
        if entry is not None and entry.size == size:
            entry.value, entry.at, entry.shared = value, now, shared
            entries.move_to_end(key)
        elif key is None:
            return
        else:
            self._insert(key, Entry(value, now, size, shared), entry)
        if self._behind is not None:
            self._behind.write(key, value, kind, size)

    def _insert(self, key: Hashable, entry: Entry, old: Entry | None) -> None:
        """A new entry, in the place of an old one if there was any."""
        if type(entry.size) is not int or entry.size < 0:  # of a user's size_of=: it would count wrong for ever
            raise TypeError(f"size_of= gave {entry.size!r}, which is no number of bytes")
        self._entries[key] = entry
        if old is not None:
            self._entries.move_to_end(key)
            self._bytes -= old.size
        self._bytes += entry.size
        self._make_room(key, entry.size)

    def _make_room(self, key: Hashable, size: int) -> None:
        """For a new entry of this size: the least recently used go."""
        entries = self._entries
        if size > self.max_bytes:  # it would not fit alone, and need not drive out the rest
            del entries[key]
            self._bytes -= size
        driven_out = 0
        while len(entries) > self.max_entries or self._bytes > self.max_bytes:
            if driven_out == MOST_DRIVEN_OUT:
                del entries[key]
                self._bytes -= size
                driven_out += 1
                continue
            _, oldest = entries.popitem(last=False)
            self._bytes -= oldest.size
            driven_out += 1
        self.evicted += driven_out
        if self._frozen:
            self._melt()

    # -- the store behind

    def _thawed(self, behind: Behind, key: Hashable, now: float, kind: Any, operation: str) -> Entry | None:
        """What a warm start brought under a key; it is in memory from now on."""
        data = self._thaw(behind, key)
        if data is None:
            return None
        tombstone = self._frozen.get(behind.tombstone(operation)) if operation else None
        found = behind.opened(behind.spelled(key), data, kind, operation, tombstone)
        return None if found is None else self._kept(key, found[0], now - found[1])

    def _thaw(self, behind: Behind, key: Hashable) -> bytes | None:
        try:
            data = self._frozen.pop(behind.spelled(key), None)
        except TypeError:  # a key without a name in the store
            return None
        if data is not None:
            self._frozen_bytes -= len(data)
        return data

    def _melt(self) -> None:
        """Make room for what was live since: of what a warm start brought, the oldest go first."""
        frozen = self._frozen
        while frozen and (len(self) > self.max_entries or self.bytes_used > self.max_bytes):
            self._frozen_bytes -= len(frozen.pop(next(iter(frozen))))

    async def _from_store(self, behind: Behind, question: Question) -> Answer[Any] | None:
        entry, forgets = self._entries.get(question.key), self._forgets
        before = None if entry is None else entry.at
        found = await behind.read(question.key, question.kind, question.operation)
        if found is None:
            return None
        value, age, stored_at = found
        if age > self.max_age:
            return None
        now = self._entries.get(question.key)
        # Unless a live one came meanwhile, which stays, or something was forgotten, which may be this.
        if now is entry and (now is None or now.at == before) and self._forgets == forgets:
            entry = self._kept(question.key, value, question.now - age)
            value = entry.value if entry.shared else copied(entry.value)
        return Answer(value, LAST_GOOD, age, question.error, stored_at)

    def _kept(self, key: Hashable, value: Any, at: float) -> Entry:
        """An entry made of what came out of the store: nobody else has it yet."""
        entry = Entry(value, at, size_of(value), not self._copy or copied(value) is value)
        self._insert(key, entry, self._entries.get(key))
        return entry
