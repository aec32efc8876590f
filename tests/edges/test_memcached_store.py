"""The store that replicas share, against a real memcached: what it takes, what it does not, frozen, killed, back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from fallbacks.behind import FAILURES, Behind
from fallbacks.stores import MemcachedStore
from fallbacks.stores.memcached import LARGEST, LONGEST_TTL, cycle_of, fit
from fallbacks.wall import WallClock
from tests.clock import Clock
from tests.edges.running import free_ports, listens
from tests.support import ended, gone, steps

pytestmark = pytest.mark.asyncio


class Server:
    """A memcached of this process, that may be frozen, killed and started again."""

    def __init__(self, program: str) -> None:
        (self.port,) = free_ports(1)
        self.command = [
            program,
            "-l",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-u",
            "nobody",
            "-U",
            "0",
            "-m",
            "16",
            "-t",
            "1",
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            if listens(self.port):
                return
            time.sleep(0.01)
        raise AssertionError("memcached does not start")

    def freeze(self) -> None:
        """Stops it, and waits until it stands: until then it may answer what comes after the signal."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def server(program: Callable[[str], str]) -> Iterator[Server]:
    server = Server(program("memcached"))
    server.start()
    yield server
    server.kill()


Make = Callable[..., MemcachedStore]


@pytest_asyncio.fixture
async def make(server: Server) -> AsyncIterator[Make]:
    stores = []

    def one(**settings: Any) -> MemcachedStore:
        stores.append(MemcachedStore(port=server.port, **{"op_timeout": 0.05, **settings}))
        return stores[-1]

    yield one
    for store in stores:
        await store.close()
    await steps(3)


@pytest.fixture
def store(make: Make) -> MemcachedStore:
    return make(op_timeout=10.0, connect_timeout=10.0)


async def took(call: Any) -> tuple[Any, float]:
    """How a call ended, and its seconds."""
    began = time.monotonic()
    return await ended(call), time.monotonic() - began


# -- what it holds

ODD = [
    "a b",
    "a_b",
    "",
    "line\nfeed",
    "tab\t",
    "\x00",
    "\x7f",
    "ä",
    "\ud800",
    "x" * 249,
    "x" * 250,
    "x" * 5000,
    "#",
    "k" * 3,
]


async def test_it_holds_bytes_under_any_key(store: MemcachedStore) -> None:
    await store.multi_set([(key, repr(key).encode()) for key in ODD], ttl=60)

    assert await store.multi_get(ODD) == [repr(key).encode() for key in ODD]
    assert await store.multi_get(["x" * 248, "a  b", "a\nb", "none"]) == [None] * 4
    assert await store.multi_get([]) == []
    await store.set("empty", b"")
    await store.set("lines", b"\r\nEND\r\nVALUE a 0 1\r\n")
    assert await store.multi_get(["empty", "lines", "lines"]) == [b"", *[b"\r\nEND\r\nVALUE a 0 1\r\n"] * 2]
    for value in ("text", 5, None):
        with pytest.raises(TypeError, match="holds bytes"):
            await store.set("k", value)


async def test_it_does_what_aiocache_asks_of_a_backend(store: MemcachedStore) -> None:
    assert await store.add("a", b"1", ttl=60)
    with pytest.raises(ValueError, match="is there already"):
        await store.add("a", b"2")
    assert await store.exists("a")
    assert not await store.exists("b")
    assert await store.set("a", b"2", _cas_token=b"1")
    assert not await store.set("a", b"3", _cas_token=b"1")
    assert await store.get("a") == b"2"
    assert [await store.increment("n"), await store.increment("n", 41), await store.increment("n", -50)] == [1, 42, -8]
    with pytest.raises(TypeError, match="no whole number"):
        await store.increment("n2" if await store.set("n2", b"x") else "")
    assert await store.expire("n", 60)
    assert not await store.expire("none", 60)
    assert [await store.delete("n"), await store.delete("n")] == [1, 0]
    assert [await store._redlock_release(":a", b"x"), await store._redlock_release(":a", b"2")] == [0, 1]


async def test_increments_at_once_are_all_counted(store: MemcachedStore) -> None:
    await asyncio.gather(*(store.increment("n") for _ in range(4)))

    assert await store.get("n") == b"4"


async def test_a_namespace_is_cleared_for_all_and_nobody_elses_is(make: Make) -> None:
    one, same, other, none = make(namespace="a"), make(namespace="a"), make(namespace="ab"), make()
    for store in (one, other, none):
        await store.multi_set([("k", b"v"), ("b:k", b"v")])
    before = await same.get("k")

    await one.clear()

    assert before == b"v"
    assert [await store.get("k") for store in (one, same, other, none)] == [None, None, b"v", b"v"]
    assert await one.add("k", b"new")
    assert await same.get("k") == b"new"
    assert await same.increment("b:k") == 1
    await none.clear(namespace="ab")
    assert [await store.get("k") for store in (one, other, none)] == [b"new", None, b"v"]


async def test_a_life_that_the_server_has_lost_is_not_taken_up_again(make: Make) -> None:
    store = make(namespace="a")
    await store.set("old", b"v")
    await store.clear()
    async with store._connected() as client:
        await client.delete(cycle_of("a:"))

    await store.set("new", b"v")

    assert await store.multi_get(["old", "new"]) == [None, b"v"]


@pytest.mark.parametrize(
    "ttl", [1.0, 0.4, 60.0, 59.5, LONGEST_TTL, LONGEST_TTL + 1, 365 * 86_400.0, 1e12, float("inf"), 0, None]
)
async def test_any_time_to_live_is_one(store: MemcachedStore, ttl: Any) -> None:
    await store.set("k", b"v", ttl=ttl)

    assert await store.get("k") == b"v"


async def test_a_time_to_live_is_whole_seconds_or_an_instant_if_it_is_long(make: Make) -> None:
    wall = Clock(1_700_000_000.5)
    store = make(wall=WallClock(wall, lambda: 0.0))

    assert [store._exptime(ttl) for ttl in (0.4, 59.5, LONGEST_TTL, None)] == [1, 60, LONGEST_TTL, 0]
    assert store._exptime(LONGEST_TTL + 1) == 1_700_000_000 + LONGEST_TTL + 2
    assert store._exptime(1e10) == 0  # memcached's instants end in 2038


async def test_what_is_too_large_is_counted_and_costs_nothing_else(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    store, careless = make(op_timeout=2.0), make(op_timeout=2.0, max_value=10_000_000)
    fits = b"x" * (LARGEST - 100)

    for _ in range(3):
        await store.multi_set([("large", b"x" * LARGEST), ("fits", fits), ("small", b"v")])
    await careless.multi_set([("large", b"x" * 2_000_000), ("after", b"v")])

    assert await store.multi_get(["large", "fits", "small", "after"]) == [None, fits, b"v", b"v"]
    assert (store.too_large, careless.too_large) == (3, 1)
    assert len([record for record in caplog.records if "too large" in record.message]) == 3


@pytest.mark.parametrize("max_value", [LARGEST, 10_000_000])
async def test_what_is_too_large_takes_what_it_replaces_with_it(make: Make, max_value: int) -> None:
    store = make(op_timeout=2.0, max_value=max_value)
    await store.set("large", b"small")

    await store.set("large", b"x" * 2_000_000)
    await store.set("never there", b"x" * 2_000_000)

    assert await store.multi_get(["large", "never there"]) == [None, None]


async def test_what_memcached_takes_as_a_key_is_its_key() -> None:
    assert fit("films:7") == b"films:7"
    assert fit("x" * 251) != fit("x" * 252)
    assert len({fit(key) for key in ODD}) == len(ODD)
    assert all(len(fit(key)) <= 250 and fit(key).isascii() for key in ODD)


async def test_what_cannot_be_is_refused_at_once() -> None:
    for settings in (
        {"host": ""},
        {"port": 0},
        {"connections": 0},
        {"op_timeout": 0},
        {"connect_timeout": float("inf")},
    ):
        with pytest.raises(ValueError, match=f"MemcachedStore {next(iter(settings))}: .*; give"):
            MemcachedStore(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"namespace.*colon"):
        MemcachedStore(namespace="a:b")


async def test_without_emcache_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emcache", None)

    with pytest.raises(ImportError, match=r"pip install 'async-worker-gateway\[memcached\]'"):
        MemcachedStore()


# -- who leaves, and a server that does


async def test_who_leaves_a_get_leaves_no_reply_behind(store: MemcachedStore) -> None:
    for number in range(200):
        reading = [asyncio.create_task(store.multi_get([str(number - 1), "x"])) for _ in range(2)]
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await gone(*reading)
        await store.set(str(number), b"%d" % number)
        assert await store.multi_get([str(number), "none"]) == [b"%d" % number, None]


async def test_who_leaves_a_write_leaves_nothing_behind(store: MemcachedStore) -> None:
    for number in range(100):
        writing = asyncio.create_task(store.multi_set([(str(n), b"%d" % number) for n in range(20)]))
        for _ in range(number % 11):
            await asyncio.sleep(0)
        await gone(writing)

    await store.multi_set([(str(n), b"last") for n in range(20)])
    assert set(await store.multi_get([str(n) for n in range(20)])) == {b"last"}


async def test_a_write_waits_for_those_before_it(store: MemcachedStore) -> None:
    await store.set("k", b"old")

    async with store.turn:  # as of one whose caller has left
        writing = [asyncio.create_task(store.set("k", b"new")), asyncio.create_task(store.delete("other"))]
        await asyncio.sleep(0.03)
        meanwhile = await store.get("k")

    await asyncio.gather(*writing)
    assert meanwhile == b"old"
    assert await store.get("k") == b"new"


async def test_of_one_key_in_a_batch_the_last_value_stays(store: MemcachedStore) -> None:
    for _ in range(20):
        await store.multi_set([("k", b"%d" % number) for number in range(8)])
        assert await store.get("k") == b"7"


async def test_of_a_batch_whose_caller_left_no_more_is_begun(store: MemcachedStore, server: Server) -> None:
    await store.set("first", b"v")
    server.freeze()
    writing = asyncio.create_task(store.multi_set([(str(number), b"v") for number in range(50)]))
    await asyncio.sleep(0.03)
    await gone(writing)
    server.thaw()
    await store.set("last", b"v")

    held = await store.multi_get([str(number) for number in range(50)])

    assert sum(value is not None for value in held) <= store.connections


async def test_many_at_once_share_few_connections(store: MemcachedStore) -> None:
    await store.set("k", b"v")

    assert set(await asyncio.gather(*(store.get("k") for _ in range(300)))) == {b"v"}


async def test_a_server_that_is_not_there_is_noticed_at_once() -> None:
    store = MemcachedStore(port=free_ports(1)[0], connect_timeout=10.0, op_timeout=10.0)

    error, seconds = await took(store.get("k"))
    other, _ = await took(store.multi_set([("k", b"v")]))

    assert isinstance(error, ConnectionRefusedError)
    assert isinstance(other, ConnectionRefusedError)
    assert seconds < 5.0
    await store.close()


async def test_a_server_that_takes_no_connection_costs_the_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(*args: Any) -> Any:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio, "open_connection", hangs)
    store = MemcachedStore(connect_timeout=0.02)

    error, seconds = await took(store.get("k"))

    assert isinstance(error, TimeoutError)
    assert "no connection to 127.0.0.1:11211 within 0.02 s" in str(error)
    assert seconds < 5.0


async def test_a_frozen_server_costs_the_op_timeout_and_thaws(make: Make, server: Server) -> None:
    store = make(op_timeout=0.1)
    await store.set("k", b"v")

    server.freeze()
    frozen = [await took(store.get("k")), await took(store.multi_set([(str(n), b"v") for n in range(10)]))]
    server.thaw()
    thawed = await store.get("k")

    assert [type(error) for error, _ in frozen] == [TimeoutError, TimeoutError]
    assert all(seconds < 1.0 for _, seconds in frozen)
    assert thawed == b"v"


async def test_a_server_that_is_killed_is_found_again_when_it_is_back(make: Make, server: Server) -> None:
    store = make()
    await store.set("k", b"v")

    server.kill()
    dead = [await took(store.get("k")) for _ in range(3)]
    server.start()
    back = await store.get("k")
    await store.set("k", b"w")

    assert all(isinstance(error, OSError) for error, _ in dead)  # TimeoutError is one
    assert isinstance(dead[-1][0], ConnectionRefusedError)
    assert all(seconds < 1.0 for _, seconds in dead)
    assert back is None
    assert await store.get("k") == b"w"


async def test_nobody_notices_but_the_counters(make: Make, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    mine, theirs = (Behind(make(namespace="app"), max_age=60.0, max_bytes=1e6) for _ in range(2))
    mine.write("k", {"a": 1})
    await mine.flush()
    shared = await theirs.read("k", dict[str, int], within="op")

    server.kill()
    for number in range(500):
        mine.write(number, number)
        assert await theirs.read("k") is None
    await mine.flush()
    server.start()
    await asyncio.sleep(0)
    mine._rested_at = theirs._rested_at = 0.0
    mine.write("last", 1)
    await mine.flush()

    assert shared is not None
    assert shared[0] == {"a": 1}
    assert theirs.errors == FAILURES
    assert (await theirs.read("last") or [None])[0] == 1
    assert mine.writes + mine.dropped_writes == 502
    assert len(caplog.records) < 10


async def test_it_may_be_used_on_one_loop_after_another(server: Server) -> None:
    store = MemcachedStore(port=server.port)

    async def once(value: bytes) -> bytes | None:
        before = await store.get("k")
        await store.set("k", value)
        await store.close()
        return before

    assert [await asyncio.to_thread(asyncio.run, once(value)) for value in (b"1", b"2")] == [None, b"1"]


async def test_it_may_be_used_again_after_it_was_closed(store: MemcachedStore) -> None:
    await store.set("k", b"v")
    await store.close()
    await store.close()

    assert await store.get("k") == b"v"
