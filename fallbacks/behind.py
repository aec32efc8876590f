"""What stands behind remembered answers: a store, any aiocache backend, that the live path never waits for.

Answers are written behind: `write` puts them into a bounded queue, one per key, and a task hands them over in batches.
They are read only when memory has nothing and the upstream fails. A store that fails is left alone for a while, as an
upstream would be, and costs a counter and a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle, get_running_loop
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Hashable
from contextvars import Context
from dataclasses import dataclass
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from fallbacks.chain import cancelled_inside_has_failed
from fallbacks.envelope import Undecodable, stamp_of, unwrap, wrap
from fallbacks.spelling import spelled
from fallbacks.wall import WALL, WallClock

if TYPE_CHECKING:
    from aiocache.base import BaseCache

log = logging.getLogger("gateway")

PENDING_WRITES = 1_000
BATCH = 200
BATCH_BYTES = 1024 * 1024
LINGER = 0.02
"""Seconds a write may wait for others to go with it: each batch costs a thread or a round trip."""
ENCODE_FOR = 0.002
"""Seconds of encoding after which the loop gets its turn."""
STORE_TIMEOUT = 1.0
WARM_TIMEOUT = 5.0
FLUSH_FOR = 5.0
FAILURES = 5
"""Failures in a row after which the store is left alone."""
REST = 5.0
SLOW_AFTER = 0.05
"""A read that was given up on after this long, in seconds, says something about the store, not about the caller."""
FEWER = 14
"""How a batch shrinks after a failure: 200, 14, 1. One value that a store does not take must not cost it all others,
nor fail often enough to have the store left alone."""
PREFIX = "g2:"


class Forgotten:
    """In place of a value: the entry is to go."""


class Tombstone:
    """In place of a value: all entries of a group that are older are void."""


FORGOTTEN = Forgotten()
TOMBSTONE = Tombstone()

Write = tuple[Any, float, Any, int, bool]
"""Value, when it was live by the wall clock, its declared type, its bytes; whether what the store has is to go even if
this does not get there: it was forgotten."""
Found = tuple[Any, float, float]
"""Value, its age, when it was live by the wall clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSnapshot:
    """A store's numbers. `resting`: it fails, and is left alone but for a try now and then."""

    writes: int
    dropped_writes: int
    unencodable: int
    reads: int
    hits: int
    undecodable: int
    errors: int
    pending: int
    resting: bool


class Behind:
    """One store behind one memory.

    `write`, `forget` and `forget_all` return at once, on any running loop, and never raise. Counted: `writes` (entries
    the store took), `dropped_writes` (given up: the store was slower than the answers, or the program ended),
    `unencodable` (no data, or not what was declared), `reads`, `hits`, `undecodable`, and `errors` of the store.
    """

    __slots__ = (
        "_batch",
        "_bytes",
        "_failures",
        "_loop",
        "_max_bytes",
        "_most",
        "_pending",
        "_probing",
        "_rested_at",
        "_rests_on",
        "_store",
        "_timer",
        "_ttl",
        "_void_until",
        "_wall",
        "_writer",
        "dropped_writes",
        "errors",
        "hits",
        "max_age",
        "reads",
        "resting",
        "undecodable",
        "unencodable",
        "writes",
    )

    def __init__(self, store: BaseCache, *, max_age: float, max_bytes: float, wall: WallClock = WALL) -> None:
        self._store = store
        self.max_age = max_age
        self._ttl = None if max_age == inf else ceil(max_age)  # memcached takes whole seconds only
        self._max_bytes = max_bytes
        self._wall = wall
        self._pending: OrderedDict[Hashable, Write] = OrderedDict()
        self._bytes = 0
        self._void_until = -inf  # stamps of the queue that are not newer are not to be passed on
        self._batch: dict[Hashable, Write] = {}  # what is being written: taken from the queue, not yet in the store
        self._most = BATCH
        self._loop: AbstractEventLoop | None = None  # where a writer, or a timer that starts one, is under way
        self._timer: TimerHandle | None = None
        self._writer: Task[None] | None = None
        self._failures = 0  # in a row
        self.resting = False
        self._rested_at = 0.0  # by the clock of the loop it rests on
        self._rests_on: AbstractEventLoop | None = None
        self._probing = False
        self.writes = self.dropped_writes = self.unencodable = 0
        self.reads = self.hits = self.undecodable = self.errors = 0

    @property
    def store(self) -> BaseCache:
        """The backend itself."""
        return self._store

    # -- writing

    def write(self, key: Hashable, value: Any, kind: Any = Any, size: int = 0) -> None:
        """Have a live value written. It must be nobody else's to change: it is encoded later.

        One that is queued already gives its place and its stamp to the newer value, which then looks older than it is
        by what it waited: a few hundredths of a second, on the safe side, and calls need not tell the time.
        """
        pending = self._pending
        old = pending.get(key)
        if old is not None and old[3] == size and old[1] > self._void_until and not self.resting:
            pending[key] = (value, old[1], kind, size, old[4] or value is FORGOTTEN)
            return
        pending.pop(key, None)
        goes = value is FORGOTTEN or value is TOMBSTONE or (old is not None and old[4])
        pending[key] = (value, self._wall.now(), kind, size, goes)
        self._bytes += size if old is None else size - old[3]
        if len(pending) > PENDING_WRITES or self._bytes > self._max_bytes:
            self._drop_oldest()
        try:
            if self._loop is not get_running_loop():
                self._start_in(LINGER)
        except RuntimeError:  # no loop runs here: the next write on one takes this along
            pass

    def forget(self, key: Hashable) -> None:
        """Have an entry deleted; what is still to be written of it is not."""
        self.write(key, FORGOTTEN)

    def forget_all(self, within: str) -> None:
        """Void all entries of a group that were live until now, here and for all who share the store."""
        self._void_until = self._wall.now()
        self.write(group(within), TOMBSTONE)

    def _drop_oldest(self) -> None:
        """The store is slower than the answers. What is to be forgotten goes only where all that waits is that."""
        pending, spared = self._pending, 0
        while len(pending) > PENDING_WRITES or (self._bytes > self._max_bytes and len(pending) > 1):
            key, write = pending.popitem(last=False)
            self._bytes -= write[3]
            if write[4] and spared > PENDING_WRITES:
                self.dropped_writes += 1
            else:
                spared += write[4]
                self._let_go(key, write)

    def _let_go(self, key: Hashable, write: Write) -> None:
        """An answer is given up; what was forgotten is still to go, after the others."""
        value, at, _, _, goes = write
        if value is not FORGOTTEN and value is not TOMBSTONE:
            self.dropped_writes += 1
            value = FORGOTTEN
        if goes:
            self._pending.setdefault(key, (value, at, Any, 0, True))

    def _start_in(self, seconds: float) -> None:
        """Start a writer in a while."""
        loop = get_running_loop()
        if self._loop is not None:  # it was closed under its writer
            self._put_back()
            self._writer = None
        self._loop = loop
        self._timer = loop.call_later(seconds, self._start, context=Context())

    def _start(self) -> Task[None]:
        """The writer, started unless it runs."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is None:
            self._loop = loop = get_running_loop()
            self._writer = loop.create_task(self._write(), name="gateway: write behind", context=Context())
        return self._writer

    async def _write(self) -> None:
        """Hand over what is queued, batch by batch, until nothing is or the store is to be left alone."""
        me = asyncio.current_task()
        pause = 0.0
        try:
            while self._pending:
                if not self._may_go():
                    pause = max(self._rest_left(), LINGER)  # or until the one that tries knows
                    break
                batch = self._next_batch()
                try:
                    await self._hand_over(batch)
                finally:
                    if self._writer is me:
                        self._put_back()  # what was not handed over: nothing, unless it failed or was cancelled
        finally:
            if self._writer is me:
                self._writer = self._loop = None
                if self._pending and pause:
                    self._start_in(pause)

    def _next_batch(self) -> dict[Hashable, Write]:
        batch: dict[Hashable, Write] = {}
        self._batch = batch
        size = 0
        while self._pending and len(batch) < self._most and size < BATCH_BYTES:
            key, write = self._pending.popitem(last=False)
            self._bytes -= write[3]
            size += write[3]
            batch[key] = write
        return batch

    def _put_back(self) -> None:
        """What of a batch is not in the store goes back to the front, unless there is newer."""
        batch, self._batch = self._batch, {}
        for key, write in reversed(batch.items()):
            newer = self._pending.get(key)
            if newer is not None:
                self._pending[key] = (*newer[:4], newer[4] or write[4])
            else:
                self._pending[key] = write
                self._pending.move_to_end(key, last=False)
                self._bytes += write[3]
        self._drop_oldest()

    async def _hand_over(self, batch: dict[Hashable, Write]) -> None:
        """Write one batch; what is done with, in the store or given up, is taken out of it."""
        try:
            pairs = await self._encoded(batch)
            asked = bool(batch)
            with cancelled_inside_has_failed():
                async with asyncio.timeout(STORE_TIMEOUT):
                    await self._store_all(batch, pairs)
        except Exception as error:  # noqa: BLE001 - a store that fails costs a log line and a counter
            self._failed("write", error)
            if self._most == 1:
                self._give_up(batch)
            self._most = max(1, self._most // FEWER)
        except BaseException:
            self._probing = False
            raise
        else:
            if asked:
                self._worked()
            self._probing = False
            self._most = min(BATCH, self._most * FEWER)
        await asyncio.sleep(0)  # a store that never waits must not keep the loop

    async def _store_all(self, batch: dict[Hashable, Write], pairs: list[tuple[Hashable, str, bytes | str]]) -> None:
        if pairs:
            named = [(name, data) for _, name, data in pairs]
            await self._store.multi_set(named, ttl=self._ttl, dumps_fn=as_it_is, timeout=0)
            self.writes += len(pairs)
            for key, _, _ in pairs:
                del batch[key]
        for key in list(batch):  # all that is left is to be forgotten
            await self._store.delete(name_of(key), timeout=0)
            del batch[key]

    async def _encoded(self, batch: dict[Hashable, Write]) -> list[tuple[Hashable, str, bytes | str]]:
        """The values of a batch as key, name in the store, bytes. What cannot be encoded is taken out of the batch."""
        pairs: list[tuple[Hashable, str, bytes | str]] = []
        turn_ends = monotonic() + ENCODE_FOR
        for key, (value, at, kind, _, goes) in list(batch.items()):
            name = ""
            try:
                name = name_of(key)
                if value is FORGOTTEN:
                    continue
                data = wrap(None if value is TOMBSTONE else value, at, kind, name)
                pairs.append((key, name, self._spoken(data)))
            except Exception as error:  # noqa: BLE001 - whatever users' values do
                del batch[key]
                if goes and name:
                    batch[key] = (FORGOTTEN, at, Any, 0, True)
                self.unencodable += 1
                if self.unencodable.bit_count() == 1:
                    log.warning("the store behind LastGood cannot keep %d answers so far: %r", self.unencodable, error)
            if monotonic() > turn_ends:
                await asyncio.sleep(0)
                turn_ends = monotonic() + ENCODE_FOR
        return pairs

    def _give_up(self, batch: dict[Hashable, Write]) -> None:
        """What the store does not take even alone stands in the way of the others. To forget is tried again, last."""
        for key, write in batch.items():
            self._let_go(key, write)
        batch.clear()

    async def flush(self) -> None:
        """Wait until what is queued is written, or the store fails, or 5 s are over. Other callers' writes go on."""
        loop = get_running_loop()
        over_at = loop.time() + FLUSH_FOR
        while (self._pending or self._batch) and (left := over_at - loop.time()) > 0:
            if self._loop is not loop:
                self._start_in(0.0)
            self._rested_at = -inf  # this is the moment for a try
            await asyncio.wait({self._start()}, timeout=left)
            if self.resting:
                return

    def stop(self) -> None:
        """Give up what is still to be written."""
        loop, timer, writer = self._loop, self._timer, self._writer
        self.dropped_writes += len(self._pending) + len(self._batch)
        self._pending.clear()
        self._batch = {}
        self._bytes = 0
        self._loop = self._timer = self._writer = None
        self._probing = False
        if loop is not None and not loop.is_closed():  # else they are gone with it
            if timer is not None:
                timer.cancel()
            if writer is not None:
                writer.cancel()

    # -- reading

    async def read(self, key: Hashable, kind: Any = Any, within: str = "") -> Found | None:
        """The value of a key, its age and when it was live; None where there is none, or it cannot be had.

        `within`: the group it belongs to, see `forget_all`.
        """
        if key in self._pending or key in self._batch:
            return self._unwritten(key, within)
        if not self._may_go():
            return None
        self.reads += 1
        loop = get_running_loop()
        began = loop.time()
        try:
            names = [name_of(key), self.tombstone(within)] if within else [name_of(key)]
        except TypeError:  # nothing was written under it either
            self._probing = False
            return None
        try:
            with cancelled_inside_has_failed():
                async with asyncio.timeout(STORE_TIMEOUT):
                    answers = await self._store.multi_get(names, loads_fn=as_it_is, timeout=0)
        except Exception as error:  # noqa: BLE001 - a store that fails costs a log line and a counter
            self._failed("read", error)
            return None
        except BaseException as left:
            self._probing = False
            if isinstance(left, CancelledError) and loop.time() - began >= SLOW_AFTER:
                self._failed("read", TimeoutError(f"no answer within {SLOW_AFTER} s"))
            raise
        self._worked()
        entry, tombstone = (*answers, None, None)[:2]  # none at all where AIOCACHE_DISABLE is set
        found = self.opened(
            names[0], entry, kind, within, tombstone if within else None, self._unwritten_tombstone(within)
        )
        self.hits += found is not None
        return found

    def opened(  # noqa: PLR0917 - as `read` says it
        self, name: str, entry: Any, kind: Any, within: str = "", tombstone: Any = None, void_until: float = -inf
    ) -> Found | None:
        """What an entry of the store says, if it says anything that still holds: value, age, when it was live."""
        if entry is None:
            return None
        now = self._wall.now()
        try:
            if tombstone is not None:  # one that cannot be read, or is ahead of its time, voids all the same
                void_until = max(void_until, stamp_of(heard(tombstone), inf, self.tombstone(within)))
            value, at = unwrap(heard(entry), kind, now, name)
        except Undecodable:
            self.undecodable += 1
            return None
        age = max(now - at, 0.0)
        return None if at <= void_until or age > self.max_age else (value, age, at)

    async def newest(self, most_entries: int, most_bytes: float) -> dict[str, bytes]:
        """Of a store that can tell, the entries written last, by their names; the newest last. For `opened`."""
        if self._pending and self._loop is not get_running_loop():  # left by a loop that was closed
            self._start_in(LINGER)
        tell = getattr(self._store, "newest", None)
        if tell is None or not self._may_go():
            return {}
        try:
            with cancelled_inside_has_failed():
                async with asyncio.timeout(WARM_TIMEOUT):
                    entries: dict[str, bytes] = await tell(most_entries, most_bytes)
        except Exception as error:  # noqa: BLE001 - a store that fails costs a log line and a counter
            self._failed("read", error)
            return {}
        except BaseException:
            self._probing = False
            raise
        self._worked()
        return {name: data for name, data in entries.items() if name.startswith(PREFIX) and isinstance(data, bytes)}

    def spelled(self, key: Hashable) -> str:
        """The name of a key's entry in the store. Raises TypeError for a key that has none."""
        return name_of(key)

    def tombstone(self, within: str) -> str:
        """The name of what voids a group's entries."""
        return name_of(group(within))

    def _unwritten(self, key: Hashable, within: str) -> Found | None:
        """What is still to be written is as good as written."""
        value, at, *_ = self._pending[key] if key in self._pending else self._batch[key]
        self.reads += 1
        age = max(self._wall.now() - at, 0.0)
        if value is FORGOTTEN or at <= self._unwritten_tombstone(within) or age > self.max_age:
            return None
        self.hits += 1
        return value, age, at

    def _unwritten_tombstone(self, within: str) -> float:
        write = (self._pending.get(group(within)) or self._batch.get(group(within))) if within else None
        return -inf if write is None else write[1]

    def _spoken(self, data: bytes) -> bytes | str:
        """Bytes, as this store takes them: some backends decode all they hold as text."""
        return data if getattr(self._store.serializer, "encoding", None) is None else b64encode(data).decode()

    # -- a store that fails

    def _may_go(self) -> bool:
        """Whether the store may be asked: always, unless it rests; then one operation at a time may try."""
        if not self.resting:
            return True
        if self._rest_left() > 0.0 or self._probing:
            return False
        self._probing = True
        return True

    def _rest_left(self) -> float:
        loop = get_running_loop()
        if self._rests_on is not loop:  # each loop has a clock of its own
            self._rests_on = loop
            self._rested_at = loop.time()
            self._probing = False
        return self._rested_at - loop.time()

    def _failed(self, what: str, error: Exception) -> None:
        self.errors += 1
        if self.errors.bit_count() == 1:  # the 1st, 2nd, 4th, 8th: a store that is gone is not a flood
            log.warning("the store behind LastGood failed to %s, %d times so far: %r", what, self.errors, error)
        self._failures += 1
        self._probing = False
        if self._failures >= FAILURES:
            loop = get_running_loop()
            self.resting, self._rests_on, self._rested_at = True, loop, loop.time() + REST

    def _worked(self) -> None:
        self._failures = 0
        if self.resting:
            self.resting = self._probing = False
            log.info("the store behind LastGood works again, after %d failures in all", self.errors)

    def snapshot(self) -> StoreSnapshot:
        """The numbers, as they are now."""
        return StoreSnapshot(
            writes=self.writes,
            dropped_writes=self.dropped_writes,
            unencodable=self.unencodable,
            reads=self.reads,
            hits=self.hits,
            undecodable=self.undecodable,
            errors=self.errors,
            pending=len(self._pending) + len(self._batch),
            resting=self.resting,
        )


def name_of(key: Hashable) -> str:
    """The name of a key's entry; the prefix is that of this format, as other formats may share the store."""
    return PREFIX + spelled(key)


def group(within: str) -> Hashable:
    """The key of a group's tombstone."""
    return ("forgotten", within)


def as_it_is(value: Any) -> Any:
    """In place of a backend's own serializer, which may be pickle."""
    return value


def heard(data: Any) -> Any:
    """Bytes again, of what `_spoken` made of them. Raises Undecodable."""
    if not isinstance(data, str):
        return data
    try:
        return b64decode(data, validate=True)
    except ValueError as error:
        raise Undecodable("no Base64") from error
