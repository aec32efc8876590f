"""The store in one file: its bounds, its file and what may befall it, several loops, processes, and kill -9."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fallbacks.behind import Behind
from fallbacks.stores import SQLiteStore
from fallbacks.stores.sqlite import BUSY_MS, INHERITED, LONG_EXPIRED, SWEEP
from fallbacks.wall import WallClock
from tests.clock import Clock
from tests.support import gone, steps

pytestmark = pytest.mark.asyncio
KILLS = os.environ.get("GATEWAY_KILLS", "10")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.db"


@pytest.fixture
def wall() -> Clock:
    return Clock(1_000_000.0)


Make = Callable[..., SQLiteStore]


@pytest_asyncio.fixture
async def make(path: Path, wall: Clock) -> AsyncIterator[Make]:
    """Makes stores on the one file, and closes them."""
    stores = []

    def one(**settings: Any) -> SQLiteStore:
        stores.append(SQLiteStore(path, wall=WallClock(wall, lambda: 0.0), **settings))
        return stores[-1]

    yield one
    for store in stores:
        await store.close()
    assert not [thread.name for thread in threading.enumerate() if "sqlite" in thread.name and not dying(thread)]


def dying(thread: threading.Thread) -> bool:
    thread.join(1.0)
    return not thread.is_alive()


@pytest.fixture
def store(make: Make) -> SQLiteStore:
    return make()


def keys_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [key.decode().removeprefix(":") for (key,) in database.execute("SELECT key FROM entries ORDER BY seq")]


# -- what it holds


async def test_it_holds_bytes(store: SQLiteStore) -> None:
    await store.multi_set([("a", b"1"), ("ä\ud800", b"\x00\xff"), ("empty", b"")], ttl=60)

    assert await store.multi_get(["ä\ud800", "none", "a", "a", "empty"]) == [b"\x00\xff", None, b"1", b"1", b""]
    assert await store.get("a") == b"1"
    assert await store.multi_get([]) == []
    assert await store.multi_get([str(number) for number in range(1200)] + ["a"]) == [None] * 1200 + [b"1"]
    for value in ("text", 5, None, bytearray(b"x")):
        with pytest.raises(TypeError, match="holds bytes"):
            await store.set("k", value)


async def test_it_does_what_aiocache_asks_of_a_backend(store: SQLiteStore) -> None:
    assert await store.add("a", b"1", ttl=60)
    with pytest.raises(ValueError, match="is there already"):
        await store.add("a", b"2")
    assert await store.exists("a")
    assert not await store.exists("b")
    assert await store.set("a", b"2", _cas_token=b"1")
    assert not await store.set("a", b"3", _cas_token=b"1")
    assert await store.get("a") == b"2"
    assert [await store.increment("n"), await store.increment("n", 41), await store.increment("n", -50)] == [1, 42, -8]
    await store.set("text", b"x")
    with pytest.raises(TypeError, match="no whole number"):
        await store.increment("text")
    await store.set("after", b"v")  # what failed is no longer under way
    assert await store.expire("n", 60)
    assert not await store.expire("none", 60)
    assert [await store.delete("n"), await store.delete("n")] == [1, 0]
    assert [await store._redlock_release(":a", b"x"), await store._redlock_release(":a", b"2")] == [0, 1]


async def test_namespaces_are_apart(make: Make) -> None:
    one, other, none = make(namespace="a"), make(namespace="ab"), make()
    for store, value in ((one, b"one"), (other, b"other"), (none, b"none")):
        await store.multi_set([("k", value), ("b:k", value)])

    await one.clear()

    assert [await store.get("k") for store in (one, other, none)] == [None, b"other", b"none"]
    assert await none.get("k", namespace="ab") == b"other"
    await none.clear(namespace="ab")
    assert [await store.get("k") for store in (one, other, none)] == [None, None, b"none"]
    assert await none.newest(10) == {"k": b"none", "b:k": b"none"}
    with pytest.raises(ValueError, match=r"namespace.*colon"):
        make(namespace="a:b")


async def test_the_newest_are_told_the_newest_last(store: SQLiteStore, wall: Clock) -> None:
    for number in range(5):
        await store.set(str(number), b"%d" % number * 100, ttl=100)
    await store.set("1", b"again", ttl=200)
    await store.set("over", b"x", ttl=1)
    wall.wait(1.0)

    assert list(await store.newest(3)) == ["3", "4", "1"]
    assert list(await store.newest(10, 205)) == ["3", "4", "1"]
    assert list(await store.newest(10, 204)) == ["4", "1"]
    assert await store.newest(1) == {"1": b"again"}


# -- its bounds


async def test_it_holds_exactly_as_many_entries_as_it_may_the_last_written(make: Make, path: Path) -> None:
    store = make(max_entries=10)
    await store.multi_set([(str(number), b"v") for number in range(10)])
    await store.set("0", b"again")
    for number in range(10, 13):
        await store.set(str(number), b"v")
    await store.multi_set([(str(number), b"v") for number in range(13, 15)])

    assert keys_in(path) == ["6", "7", "8", "9", "0", "10", "11", "12", "13", "14"]


async def test_it_holds_as_many_bytes_as_it_may(make: Make, path: Path) -> None:
    store = make(max_bytes=100)
    for number in range(9):
        await store.set(f"{number}", b"x" * 18)  # and two of the key: ":0"
    full = keys_in(path)
    await store.set("8", b"x" * 58)

    assert full == ["4", "5", "6", "7", "8"]
    assert keys_in(path) == ["6", "7", "8"]


async def test_what_is_larger_than_all_it_may_hold_is_counted_and_drives_nothing_out(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(max_bytes=100)
    await store.set("a", b"v")

    for _ in range(3):
        await store.multi_set([("large", b"x" * 100), ("b", b"v")])

    assert await store.multi_get(["a", "b", "large"]) == [b"v", b"v", None]
    assert store.too_large == 3
    assert len(caplog.records) == 2


async def test_what_is_too_large_takes_what_it_replaces_with_it(make: Make) -> None:
    store = make(max_bytes=200)
    behind = Behind(store, max_age=60.0, max_bytes=inf)
    behind.write("k", "of a user who left")
    await behind.flush()

    behind.forget("k")
    behind.write("k", "x" * 200)
    await behind.flush()

    assert await behind.read("k") is None


async def test_a_smaller_bound_holds_from_the_next_write(make: Make, path: Path) -> None:
    await make().multi_set([(str(number), b"v") for number in range(50)])

    await make(max_entries=3).set("last", b"v")

    assert keys_in(path) == ["48", "49", "last"]


# -- time


async def test_an_entry_expires_by_the_wall_clock_and_a_corrected_clock_brings_it_back(
    store: SQLiteStore, wall: Clock
) -> None:
    await store.set("k", b"v", ttl=60)
    await store.multi_set([("for ever", b"v"), ("nor this", b"v")], ttl=0)

    wall.wait(59.9)
    still = await store.get("k")
    wall.wait(0.1)
    gone = await store.get("k")
    wall.wait(3600.0)
    await store.set("other", b"v")
    wall.wait(-3600.1)

    assert (still, gone) == (b"v", None)
    assert await store.get("k") == b"v"
    assert await store.get("for ever") == b"v"


async def test_what_expired_is_there_no_more_for_add_and_increment(store: SQLiteStore, wall: Clock) -> None:
    await store.multi_set([("a", b"5"), ("n", b"5")], ttl=60)
    wall.wait(60.0)

    assert await store.add("a", b"6")
    assert await store.increment("n") == 1


async def test_an_increment_keeps_the_time_to_live(store: SQLiteStore, wall: Clock) -> None:
    await store.set("n", b"5", ttl=60)
    await store.increment("n")
    wall.wait(60.0)

    assert await store.get("n") is None


async def test_what_expired_long_ago_goes_a_few_at_a_time(store: SQLiteStore, path: Path, wall: Clock) -> None:
    await store.multi_set([(str(number), b"v") for number in range(SWEEP + 10)], ttl=60)
    wall.wait(60.0 + LONG_EXPIRED - 1.0)
    await store.set("a", b"v")
    before = len(keys_in(path))
    wall.wait(2.0)
    await store.set("b", b"v")
    after = len(keys_in(path))
    await store.set("c", b"v")

    assert (before, after) == (SWEEP + 11, 12)
    assert keys_in(path) == ["a", "b", "c"]


# -- its file


async def test_what_is_written_survives_a_restart(make: Make, path: Path) -> None:
    store = make()
    await store.set("k", b"v", ttl=60)
    await store.close()
    files = sorted(one.name for one in path.parent.iterdir())

    assert files == ["answers.db"]
    assert await make().get("k") == b"v"


async def test_it_may_be_used_again_after_it_was_closed(store: SQLiteStore) -> None:
    await store.close()
    await store.set("k", b"v")
    await store.close()
    await store.close()

    assert await store.get("k") == b"v"


async def test_a_path_that_cannot_be_one_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: .* is a folder; give the path of a file in it"):
        SQLiteStore(tmp_path)
    with pytest.raises(ValueError, match=r"path: there is no folder .*; make it first"):
        SQLiteStore(tmp_path / "none" / "answers.db")
    with pytest.raises(ValueError, match="max_entries: 0 is not above 0"):
        SQLiteStore(tmp_path / "answers.db", max_entries=0)
    with pytest.raises(ValueError, match="max_bytes: nan is not above 0"):
        SQLiteStore(tmp_path / "answers.db", max_bytes=float("nan"))
    assert list(tmp_path.iterdir()) == []


async def test_a_close_that_is_cut_short_closes_all_the_same(store: SQLiteStore) -> None:
    await store.set("k", b"v")
    at_work = threading.Event()
    executor = store._executor
    assert executor is not None
    executor.submit(at_work.wait)

    closing = asyncio.create_task(store.close())
    await steps(3)
    closing.cancel()
    await gone(closing)
    at_work.set()
    await asyncio.to_thread(executor.shutdown)

    assert store._database is None


async def test_an_odd_name_is_the_name_of_the_file(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "a?mode=memory#%20 ü.db")
    await store.set("k", b"v")
    await store.close()

    assert [one.name for one in tmp_path.iterdir()] == ["a?mode=memory#%20 ü.db"]


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "garbage":
        path.write_bytes(b"not a database at all, but long enough to look like one" * 100)
    elif how == "header":
        path.write_bytes(b"X" + data[1:])
    elif how == "pages":
        path.write_bytes(data[:100] + os.urandom(len(data) - 100))
    elif how == "schema":
        path.write_bytes(data.replace(b"expires_at REAL", b"expires_if REAL"))
    elif how == "garbled schema":
        path.write_bytes(data.replace(b"value BLOB NOT NULL", b"value BLOB NOT N\xf4LL"))
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2 // 4096 * 4096])


@pytest.mark.parametrize("how", ["garbage", "header", "garbled schema", "pages", "schema", "truncated"])
@pytest.mark.parametrize("first", ["read", "write"])
async def test_a_corrupt_file_is_moved_aside_and_begun_anew(
    make: Make, path: Path, how: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    await store.multi_set([(f"key {number}", os.urandom(1000)) for number in range(200)])
    await store.close()
    damaged(path, how)
    bad = path.read_bytes()

    if first == "read":
        assert set(await store.multi_get([f"key {number}" for number in range(200)])) == {None}
    await store.multi_set([("new", b"v"), *((f"key {number}", b"w") for number in range(200))])

    assert await store.get("new") == b"v"
    (aside,) = [one for one in path.parent.iterdir() if one.name.startswith("answers.db.corrupt-")]
    assert aside.read_bytes()[:4096] == bad[:4096]
    assert "is corrupt" in caplog.text


async def test_a_file_that_is_corrupted_while_it_is_open_is_begun_anew(store: SQLiteStore, path: Path) -> None:
    await store.multi_set([(f"key {number}", os.urandom(1000)) for number in range(200)])
    await store.close()
    await store.get("key 1")
    damaged(path, "pages")

    for _ in range(2):  # pages that it has seen may be remembered
        await store.multi_get([f"key {number}" for number in range(200)])
        await store.set("new", b"v")

    assert await store.get("new") == b"v"


async def test_a_fresh_file_that_another_process_has_begun_meanwhile_is_not_moved(
    store: SQLiteStore, path: Path
) -> None:
    await store.set("k", b"v")

    def recover(database: sqlite3.Connection) -> None:
        store._file = (0, 0)  # the one that was corrupt, and is not there any more
        store._move_aside(sqlite3.DatabaseError("malformed"))

    await store._in_thread(recover)

    assert await store.get("k") == b"v"
    assert [one.name for one in path.parent.iterdir() if "corrupt" in one.name] == []


async def test_a_file_that_is_moved_or_deleted_while_it_is_open_is_made_anew(store: SQLiteStore, path: Path) -> None:
    await store.set("old", b"v")
    path.unlink()

    gone = await store.get("old")
    await store.set("new", b"v")

    assert gone is None
    assert keys_in(path) == ["new"]


@pytest.mark.parametrize("whose", ["another program's", "a later version's"])
async def test_a_database_that_is_not_ours_is_left_as_it_is(store: SQLiteStore, path: Path, whose: str) -> None:
    if whose == "a later version's":
        await store.set("k", b"v")
        await store.close()
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE IF NOT EXISTS entries (a); PRAGMA user_version = 2")
    before = path.read_bytes()

    with pytest.raises(sqlite3.NotSupportedError, match="give SQLiteStore another path"):
        await store.get("k")
    with pytest.raises(sqlite3.NotSupportedError):
        await store.set("k", b"v")

    assert path.read_bytes() == before


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: be somebody else for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.mark.parametrize("what", ["file", "folder", "both"])
async def test_what_can_only_be_read_is_read(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "answers.db"
        store = SQLiteStore(path)
        await store.set("k", b"v")
        await store.close()
        path.chmod(0o666 if what == "folder" else 0o444)
        folder.chmod(0o777 if what == "file" else 0o555)
        with as_nobody():
            assert await store.get("k") == b"v"
            assert list(await store.newest(5)) == ["k"]
            with pytest.raises(sqlite3.OperationalError, match=r"readonly|unable to open"):
                await store.set("k", b"w")
            assert await store.get("k") == b"v"
            await store.close()
        folder.chmod(0o777)


async def test_a_folder_that_is_gone_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    store = SQLiteStore(folder / "answers.db")
    folder.rmdir()

    with pytest.raises(sqlite3.OperationalError):
        await store.get("k")
    folder.mkdir()
    await store.set("k", b"v")

    assert await store.get("k") == b"v"
    await store.close()


async def test_a_full_disk_is_an_error_and_what_was_there_stays(store: SQLiteStore) -> None:
    await store.set("k", b"v")
    await store._in_thread(lambda database: database.execute("PRAGMA max_page_count = 1"))

    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.multi_set([("k", b"w"), ("large", b"x" * 100_000)])

    assert await store.get("k") == b"v"
    await store.set("k", b"w")
    assert await store.get("k") == b"w"


async def test_a_batch_is_written_whole_or_not_at_all(store: SQLiteStore) -> None:
    await store.set("a", b"old")

    def fail(database: sqlite3.Connection) -> None:
        database.execute(
            "CREATE TEMP TRIGGER no BEFORE INSERT ON entries WHEN new.key = CAST(':bad' AS BLOB)"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )

    await store._in_thread(fail)
    with pytest.raises(sqlite3.Error, match="no"):
        await store.multi_set([("a", b"new"), ("bad", b"v")])

    assert await store.multi_get(["a", "bad"]) == [b"old", None]


# -- who else is about


async def test_the_loop_turns_while_the_disk_works(store: SQLiteStore, path: Path) -> None:
    await store.set("k", b"v")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        writing = asyncio.create_task(store.set("k", b"w"))
        turns = 0
        while not writing.done():
            await asyncio.sleep(0.005)
            turns += 1
        took = time.monotonic() - began
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await writing
        read = await store.get("k")
        other.execute("COMMIT")
    await store.set("k", b"w")

    assert turns > 10
    assert took < BUSY_MS / 1000 + 0.5
    assert read == b"v"
    assert await store.get("k") == b"w"


async def test_who_leaves_leaves_nothing_half_done(store: SQLiteStore) -> None:
    for number in range(50):
        tasks = [asyncio.create_task(store.multi_set([("a", b"%d" % number), ("b", b"%d" % number)])) for _ in range(3)]
        await steps(number % 4)
        await gone(*tasks)
        a, b = await store.multi_get(["a", "b"])
        assert a == b

    await store.set("a", b"last")
    assert await store.get("a") == b"last"


@pytest.mark.parametrize("closed", [True, False])
async def test_it_may_be_used_on_one_loop_after_another(path: Path, closed: bool) -> None:
    store = SQLiteStore(path)

    async def first() -> None:
        await store.set("k", b"v")
        if closed:
            await store.close()

    async def second() -> bytes | None:
        value = await store.get("k")
        await store.close()
        return value

    await asyncio.to_thread(asyncio.run, first())

    assert await asyncio.to_thread(asyncio.run, second()) == b"v"


@pytest.mark.virtual_time
async def test_in_virtual_time_the_clock_stands_still_while_it_works(store: SQLiteStore, wall: Clock) -> None:
    behind = Behind(store, max_age=60.0, max_bytes=1e6, wall=WallClock(wall, wall))
    for number in range(100):
        behind.write(number, number)
        await asyncio.sleep(0.01)
    await behind.flush()

    assert behind.errors == 0
    assert behind.writes == 100
    assert await behind.read(7) == (7, 0.0, 1_000_000.0)


async def test_a_fork_has_a_connection_of_its_own(store: SQLiteStore) -> None:
    await store.set("k", b"v")
    executor, store._process = store._executor, -1  # as it is in a child

    assert await store.get("k") == b"v"
    assert store._executor is not executor
    assert executor is not None
    executor.shutdown()
    inherited = INHERITED.pop()
    assert inherited is not None
    inherited.close()


PROCESS = """
import asyncio, sys
from fallbacks.stores import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1], max_entries=150)
    for number in range(40):
        await store.multi_set([(f"{sys.argv[2]} {number} {n}", sys.argv[2].encode()) for n in range(10)])
        await store.increment("total")
    await store.close()

asyncio.run(main())
"""


async def test_several_processes_share_one_new_file(path: Path, make: Make) -> None:
    commands = [[sys.executable, "-c", PROCESS, str(path), name] for name in "abc"]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [await asyncio.to_thread(child.communicate) for child in children]

    assert [(child.returncode, err) for child, (_, err) in zip(children, said, strict=True)] == [(0, "")] * 3
    assert await make().get("total") == b"120"
    assert len(keys_in(path)) == 150
    assert [one.name for one in path.parent.iterdir() if "corrupt" in one.name] == []


async def test_a_writer_that_is_killed_leaves_a_file_that_opens_and_says_nothing_wrong(path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.edges.killed", str(path), KILLS, "7"]

    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "nothing lost, nothing wrong" in ended.stdout
