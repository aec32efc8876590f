"""A store in one file, for one machine: what was remembered survives a restart, a crash, and kill -9.

SQLite in WAL mode. All its work is done in one thread of the store's own, a batch in one transaction; the loop never
waits for a disk. Several processes may share the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from aiocache.base import BaseCache

from fallbacks.stores.octets import Octets, checked, checked_namespace, named
from fallbacks.wall import WALL, WallClock

log = logging.getLogger("gateway")

T = TypeVar("T")

MIB = 1024 * 1024
BUSY_MS = 250
"""Milliseconds to wait for another process that writes: its batches take a few."""
LONG_EXPIRED = 86_400.0
"""An entry is deleted when it expired this long ago, in seconds. Before that it only does not show: a clock that was
set wrong and is corrected must not have cost anything."""
SWEEP = 100
"""Oldest entries that are looked at with each batch, for some that expired long ago."""
APPLICATION = 0x67776C67
"""Marks the file as ours, for `file` and for ourselves: another program's database is not written to."""
VERSION = 1
INHERITED: list[sqlite3.Connection | None] = []
"""Connections of the process that this one was forked from: closed here, they would end what is under way there."""
SIDES = ("-wal", "-shm", "")
"""In the order in which they are moved: the journal of a file must not meet a new one."""
CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""The last: there is no such column, say. As the file says that it is ours, its schema is damaged."""
KEYS_AT_ONCE = 500
WRITE = "INSERT OR REPLACE INTO entries (key, expires_at, value) VALUES (?, ?, ?)"
DELETE = "DELETE FROM entries WHERE key = ?"

SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS entries (
        seq INTEGER PRIMARY KEY,  -- in the order of writing
        key BLOB NOT NULL UNIQUE,
        expires_at REAL,          -- by the wall clock; NULL: never
        value BLOB NOT NULL
    );
    CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
    CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON entries BEGIN
        UPDATE totals SET entries = entries + 1, bytes = bytes + length(new.key) + length(new.value);
    END;
    CREATE TRIGGER IF NOT EXISTS deleted AFTER DELETE ON entries BEGIN
        UPDATE totals SET entries = entries - 1, bytes = bytes - length(old.key) - length(old.value);
    END;
    PRAGMA application_id = {APPLICATION};
    PRAGMA user_version = {VERSION};
    COMMIT;
"""  # noqa: S608 - two numbers of ours


class SQLiteStore(BaseCache):
    """Holds bytes in the file `path`, which is made when it is first used; its folder must exist.

        LastGood(max_age=3600, store=SQLiteStore("/var/lib/catalog/answers.db"))

    Bounded by `max_entries` exactly and by `max_bytes` of keys and values (the file is somewhat larger); the first
    written go first. A file that is corrupt is moved aside, and begun anew. One that can only be read is read.
    `namespace` keeps several users of one file apart. Raises ValueError for a path that cannot be one.
    """

    NAME = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_entries: int = 100_000,
        max_bytes: float = 256 * MIB,
        namespace: str | None = None,
        timeout: float | None = 5.0,
        wall: WallClock = WALL,
    ) -> None:
        checked_namespace(namespace)
        super().__init__(  # type: ignore[no-untyped-call]
            serializer=Octets(),  # type: ignore[no-untyped-call]
            namespace=namespace or "",
            key_builder=self.build_key,
            timeout=timeout,
        )
        for name, value in (("max_entries", max_entries), ("max_bytes", max_bytes)):
            if not value > 0:
                raise ValueError(f"SQLiteStore {name}: {value} is not above 0; give a number above 0")
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise ValueError(f"SQLiteStore path: {self.path} is a folder; give the path of a file in it")
        if not self.path.parent.is_dir():
            raise ValueError(f"SQLiteStore path: there is no folder {self.path.parent}; make it first")
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.too_large = 0
        self._wall = wall
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which file it is that is open
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def build_key(self, key: str, namespace: str | None = None) -> str:
        """The key within its namespace."""
        return named(key, namespace if namespace is not None else self.namespace)

    # -- in the thread

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        if self._process != os.getpid():  # a fork has neither the thread nor a right to the connection
            INHERITED.append(self._database)
            self._process, self._executor, self._database = os.getpid(), None, None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "gateway: sqlite")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._do, work, args)

    def _do(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Do it on the open file; on a fresh one if this one is corrupt, on one opened anew if it was exchanged."""
        try:
            try:
                return work(self._opened(), *args)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not is_corrupt(error):
                    raise
                self._move_aside(error)
                return work(self._opened(), *args)
        except sqlite3.Error as error:
            if not is_busy(error):
                self._close_file()  # whatever it is, the next to come opens it anew
            raise

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None and self._file != identity(self.path):  # moved away, or deleted
            self._close_file()
        if self._database is None:
            self._database = database = self._open()
            try:
                self._prepare(database)
            except BaseException:
                self._close_file()
                raise
        return self._database

    def _open(self) -> sqlite3.Connection:
        """The file, for reading and writing if that can be, else for reading."""
        self._file = identity(self.path)
        writable = self._file is None or os.access(self.path, os.W_OK)
        modes = ("mode=rwc", "mode=ro", "immutable=1")  # the last: where not even the files beside it can be made
        for mode in modes if writable else modes[1:]:
            database = sqlite3.connect(
                f"{self.path.as_uri()}?{mode}",
                uri=True,
                timeout=BUSY_MS / 1000,
                isolation_level=None,  # transactions begin where they are said to
                check_same_thread=False,  # the thread may be another after `close`
            )
            try:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError as error:
                database.close()
                if mode == modes[-1] or is_busy(error):
                    raise
            except BaseException:
                database.close()
                raise
            else:
                break
        self._file = identity(self.path)
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == application == version == 0:
            wait_until_free(database.execute, "PRAGMA journal_mode = WAL")
            wait_until_free(database.executescript, SCHEMA)
        elif (application, version) != (APPLICATION, VERSION):
            whose = f"of version {version}" if application == APPLICATION else "of another program"
            raise sqlite3.NotSupportedError(f"{self.path} is a database {whose}; give SQLiteStore another path")
        database.execute("PRAGMA recursive_triggers = ON")  # so that an entry that is replaced counts as deleted
        database.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may cost the last ones, not the file
        database.execute(f"PRAGMA journal_size_limit = {16 * MIB}")

    def _move_aside(self, error: sqlite3.DatabaseError | UnicodeDecodeError) -> None:
        """Let a corrupt file be, under another name; unless another process has done so already."""
        was = self._file
        self._close_file()
        if was == identity(self.path):
            aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
            log.warning("the store %s is corrupt (%s): moved to %s, and begun anew", self.path, error, aside)
            for side in SIDES:
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{side}").rename(f"{aside}{side}")

    def _close_file(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.close()

    # -- what aiocache asks of a backend

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return (await self._in_thread(self._fetch, [encoded(key)]))[0]

    async def _gets(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return await self._get(key)

    async def _multi_get(
        self, keys: Sequence[str], encoding: str | None = None, _conn: object = None
    ) -> list[bytes | None]:
        return await self._in_thread(self._fetch, [encoded(key) for key in keys])

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: bytes | None = None, _conn: object = None
    ) -> bool:
        return await self._in_thread(self._keep, [(encoded(key), checked(value))], ttl, None, _cas_token)

    async def _multi_set(
        self, pairs: Iterable[tuple[str, bytes]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        return await self._in_thread(self._keep, [(encoded(key), checked(value)) for key, value in pairs], ttl)

    async def _add(self, key: str, value: bytes, ttl: float | None = None, _conn: object = None) -> bool:
        if not await self._in_thread(self._keep, [(encoded(key), checked(value))], ttl, False):
            raise ValueError(f"the key {key} is there already; use set to change its value")
        return True

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return await self._get(key) is not None

    async def _increment(self, key: str, delta: int, _conn: object = None) -> int:
        return await self._in_thread(self._add_to, encoded(key), delta)

    async def _expire(self, key: str, ttl: float, _conn: object = None) -> bool:
        change = "UPDATE entries SET expires_at = ? WHERE key = ?"
        return bool(await self._in_thread(self._changed, change, self._expiry(ttl), encoded(key)))

    async def _delete(self, key: str, _conn: object = None) -> int:
        return await self._in_thread(self._changed, DELETE, encoded(key))

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        start = encoded(self.build_key("", namespace))
        await self._in_thread(self._changed, "DELETE FROM entries WHERE substr(key, 1, ?) = ?", len(start), start)
        return True

    async def _redlock_release(self, key: str, value: bytes) -> int:
        change = "DELETE FROM entries WHERE key = ? AND value = ?"
        return await self._in_thread(self._changed, change, encoded(key), value)

    async def _close(self, *_: object, **__: object) -> None:
        executor, self._executor = self._executor, None
        if executor is not None and self._process == os.getpid():
            closing = executor.submit(self._close_file)  # not by the loop: who is cancelled only does not wait for it
            try:
                await asyncio.get_running_loop().run_in_executor(executor, closing.result)
            finally:
                executor.shutdown(wait=False)  # what is queued there is done before it ends

    async def newest(self, most_entries: int, most_bytes: float = inf) -> dict[str, bytes]:
        """The entries of this namespace that were written last and do still hold, by their keys; the newest last."""
        start = encoded(self.build_key(""))
        return await self._in_thread(self._fetch_newest, start, most_entries, most_bytes)

    # -- the same, in the thread

    def _fetch(self, database: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
        now = self._wall.now()
        found: dict[bytes, bytes] = {}
        for begin in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[begin : begin + KEYS_AT_ONCE]
            query = f"SELECT key, value, expires_at FROM entries WHERE key IN ({', '.join('?' * len(some))})"  # noqa: S608 - question marks
            found.update(
                (key, value) for key, value, expires_at in database.execute(query, some) if held(expires_at, now)
            )
        return [found.get(key) for key in keys]

    def _fetch_newest(
        self, database: sqlite3.Connection, start: bytes, most_entries: int, most_bytes: float
    ) -> dict[str, bytes]:
        now = self._wall.now()
        rows: list[tuple[str, bytes]] = []
        query = "SELECT key, value, expires_at FROM entries WHERE substr(key, 1, ?) = ? ORDER BY seq DESC"
        entries = database.execute(query, (len(start), start))
        while len(rows) < most_entries and (row := entries.fetchone()) is not None:
            key, value, expires_at = row
            if held(expires_at, now):
                most_bytes -= len(value)
                if most_bytes < 0:
                    break
                rows.append((decoded(key[len(start) :]), value))
        entries.close()
        return dict(reversed(rows))

    def _keep(
        self,
        database: sqlite3.Connection,
        pairs: Sequence[tuple[bytes, bytes]],
        ttl: float | None,
        over: bool | None = None,  # noqa: FBT001 - private
        token: bytes | None = None,
    ) -> bool:
        """Write entries, all or none. `over=False`: not over one that is there; `token`: only over this one."""
        fit = [(key, self._expiry(ttl), value) for key, value in pairs if len(key) + len(value) <= self.max_bytes]
        too_large = [(key,) for key, value in pairs if len(key) + len(value) > self.max_bytes]
        if too_large:
            self._refused(len(too_large))
        with transaction(database):
            if over is False or token is not None:
                (there,) = self._fetch(database, [pairs[0][0]])
                if there != token:
                    return False
            database.executemany(DELETE, too_large)  # what was there before may have been forgotten meanwhile
            database.executemany(WRITE, fit)
            self._trim(database)
        return True

    def _trim(self, database: sqlite3.Connection) -> None:
        """Delete what expired long ago, among the oldest, and the oldest over the bounds."""
        database.execute(
            "DELETE FROM entries WHERE seq IN"
            " (SELECT seq FROM (SELECT seq, expires_at FROM entries ORDER BY seq LIMIT ?) WHERE expires_at < ?)",
            (SWEEP, self._wall.now() - LONG_EXPIRED),
        )
        entries, size = database.execute("SELECT entries, bytes FROM totals").fetchone()
        if entries <= self.max_entries and size <= self.max_bytes:
            return
        last = 0
        oldest = database.execute("SELECT seq, length(key) + length(value) FROM entries ORDER BY seq")
        while entries > self.max_entries or size > self.max_bytes:
            last, bytes_of_it = oldest.fetchone()
            entries -= 1
            size -= bytes_of_it
        oldest.close()
        database.execute("DELETE FROM entries WHERE seq <= ?", (last,))

    def _refused(self, number: int) -> None:
        before = self.too_large
        self.too_large += number
        if self.too_large.bit_length() > before.bit_length():
            log.warning("%d answers so far are larger than all that %s may hold", self.too_large, self.path)

    def _add_to(self, database: sqlite3.Connection, key: bytes, delta: int) -> int:
        with transaction(database):
            row = database.execute("SELECT value, expires_at FROM entries WHERE key = ?", (key,)).fetchone()
            before, expires_at = row if row is not None and held(row[1], self._wall.now()) else (b"0", None)
            try:
                total = int(before) + delta
            except ValueError:
                raise TypeError("the value is no whole number") from None
            database.execute(WRITE, (key, expires_at, b"%d" % total))
            self._trim(database)
        return total

    def _changed(self, database: sqlite3.Connection, change: str, *values: object) -> int:
        return database.execute(change, values).rowcount

    def _expiry(self, ttl: float | None) -> float | None:
        return self._wall.now() + ttl if ttl and ttl < inf else None


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")


def held(expires_at: float | None, now: float) -> bool:
    """Whether an entry still holds."""
    return expires_at is None or now < expires_at


def identity(path: Path) -> tuple[int, int] | None:
    """Which file stands under this path; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def encoded(key: str) -> bytes:
    """A key as bytes; text that is no UTF-8 has some, too."""
    return key.encode(errors="surrogatepass")


def decoded(key: bytes) -> str:
    """The key that these bytes are."""
    return key.decode(errors="surrogatepass")


def is_corrupt(error: sqlite3.DatabaseError | UnicodeDecodeError) -> bool:
    """Whether it says that the file is none of SQLite's, or damaged, or that our statements make no sense there."""
    if isinstance(error, UnicodeDecodeError):  # there is garbage in what it says
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in CORRUPT


def is_busy(error: sqlite3.Error) -> bool:
    """Whether it says that another process writes."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def wait_until_free(do: Callable[[str], object], what: str) -> None:
    """Do it, also while other processes open the same new file: SQLite itself does not wait for all of that."""
    over_at = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            do(what)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > over_at:
                raise
            time.sleep(0.005)
        else:
            return
