"""A store that all replicas share: memcached, through emcache (the extra `memcached`).

Not aiomcache: there a cancelled get leaves its reply on the connection, and every later one is off by one. A server
that is gone is noticed by a connection of our own before emcache is asked, as that would wait for one; a frozen one
costs `op_timeout`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from asyncio import AbstractEventLoop, Task
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from functools import wraps
from hashlib import sha256
from math import ceil, inf
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from aiocache.base import BaseCache

from fallbacks.stores.octets import Octets, checked, checked_namespace, named
from fallbacks.wall import WALL, WallClock

if TYPE_CHECKING:
    from emcache import Client

log = logging.getLogger("gateway")

P = ParamSpec("P")
T = TypeVar("T")

KEY = re.compile(r"[!-~]{1,250}")
"""What memcached takes as a key: no spaces, no control characters, 250 bytes."""
LARGEST = 1024 * 1024 - 1024
"""Bytes of key and value that fit into an item of memcached's default size, with what it adds."""
LONGEST_TTL = 30 * 86_400
"""Seconds above which memcached takes a time to live for an instant."""
LAST_INSTANT = 2**31 - 1
CYCLE = 8
"""Bytes in front of every value: of which life of its namespace it is, see `clear`."""
TRIES = 10


def apart(
    method: Callable[Concatenate[MemcachedStore, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[MemcachedStore, P], Coroutine[Any, Any, T]]:
    """Have a method run in a task of its own, which ends by itself when the caller leaves, within `op_timeout`.

    Cancelled, emcache would close the connection, and complain to the loop about a reply that comes all the same.
    """

    @wraps(method)
    async def run(self: MemcachedStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        task = loop.create_task(method(self, *args, **kwargs), name="gateway: memcached", context=Context())
        self.tasks.add(task)
        task.add_done_callback(self.task_ended)
        await asyncio.wait({task})
        return task.result()

    return run


def in_turn(
    method: Callable[Concatenate[MemcachedStore, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[MemcachedStore, P], Coroutine[Any, Any, T]]:
    """Have a method that changes something run apart, and after those before it.

    One whose caller left must not overwrite what was written since.
    """

    @wraps(method)
    async def run(self: MemcachedStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.settle()
        async with self.turn:
            return await method(self, *args, **kwargs)

    return apart(run)


class MemcachedStore(BaseCache):
    """Holds bytes in a memcached at `host` and `port`.

        LastGood(max_age=3600, store=MemcachedStore("cache.internal", 11211, namespace="catalog-v3"))

    `namespace` keeps those who share the server apart; `clear` empties one namespace, and never the server. Keys that
    memcached does not take are hashed. Values over `max_value` bytes are not stored, but counted (`too_large`).
    `connect_timeout` and `op_timeout` are in seconds. Raises ImportError without emcache.
    """

    NAME = "memcached"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 11211,
        *,
        namespace: str | None = None,
        connections: int = 4,
        connect_timeout: float = 0.25,
        op_timeout: float = 0.5,
        max_value: int = LARGEST,
        timeout: float | None = 5.0,
        wall: WallClock = WALL,
    ) -> None:
        try:
            import emcache  # noqa: PLC0415 - an extra: who does not use it need not have it
        except ImportError as error:
            remedy = "pip install 'async-worker-gateway[memcached]'"
            raise ImportError(f"MemcachedStore needs emcache, which is not installed: {remedy}") from error
        theirs = logging.getLogger("emcache")
        if theirs.level == logging.NOTSET:  # a line for every call whose caller left; who wants them sets a level
            theirs.setLevel(logging.ERROR)
        checked_namespace(namespace)
        if not host:
            raise ValueError("MemcachedStore host: it is empty; give a name or an address")
        for name, value in (("port", port), ("connections", connections), ("max_value", max_value)):
            if not value >= 1:
                raise ValueError(f"MemcachedStore {name}: {value} is below 1; give 1 or more")
        for name, seconds in (("connect_timeout", connect_timeout), ("op_timeout", op_timeout)):
            if not 0.0 < seconds < inf:
                raise ValueError(f"MemcachedStore {name}: {seconds} is no limit; give seconds above 0")
        super().__init__(  # type: ignore[no-untyped-call]
            serializer=Octets(),  # type: ignore[no-untyped-call]
            namespace=namespace or "",
            key_builder=self.build_key,
            timeout=timeout,
        )
        self.host = host
        self.port = port
        self.connections = connections
        self.connect_timeout = connect_timeout
        self.op_timeout = op_timeout
        self.max_value = max_value
        self.too_large = 0
        self._wall = wall
        self._emcache = emcache
        self._client: Client | None = None
        self._loop: AbstractEventLoop | None = None
        self._process = os.getpid()
        self.tasks: set[Task[Any]] = set()  # what is under way, also if nobody waits for it
        self.turn = asyncio.Lock()

    def build_key(self, key: str, namespace: str | None = None) -> str:
        """The key within its namespace."""
        return named(key, namespace if namespace is not None else self.namespace)

    # -- the connections

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """The client of this loop.

        One that has no connection left after a failure is given up: it would try again in its own time, up to a minute
        later, and let everybody wait for that.
        """
        self.settle()
        if self._client is None:
            await self._try_to_connect()
        if self._client is None:  # nobody else made one meanwhile
            self._client = await self._emcache.create_client(
                [self._emcache.MemcachedHostAddress(self.host, self.port)],
                timeout=self.op_timeout,
                max_connections=self.connections,
                connection_timeout=self.connect_timeout,
                purge_unused_connections_after=None,  # its timer is not ended by `close`
            )
        client = self._client
        try:
            yield client
        except (Exception, asyncio.CancelledError):
            if not connections_of(client):
                await self._give_up(client)
            raise

    def settle(self) -> None:
        """Begin anew on a loop that is another, or in a process that was forked: the connections are not ours there."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._process != os.getpid():
            self._loop, self._process = loop, os.getpid()
            self._client, self.turn = None, asyncio.Lock()

    async def _try_to_connect(self) -> None:
        """Raise OSError, of which TimeoutError is one, if nobody listens."""
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, writer = await asyncio.open_connection(self.host, self.port)
        except TimeoutError:
            raise TimeoutError(f"no connection to {self.host}:{self.port} within {self.connect_timeout} s") from None
        writer.transport.abort()

    async def _give_up(self, client: Client) -> None:
        if self._client is client:
            self._client = None
        await client.close()

    # -- what aiocache asks of a backend

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return (await self._multi_get([key]))[0]

    async def _gets(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return await self._get(key)

    @apart
    async def _multi_get(
        self, keys: Sequence[str], encoding: str | None = None, _conn: object = None
    ) -> list[bytes | None]:
        async with self._connected() as client:
            cycles = {key: cycle_of(key) for key in keys}
            wanted = dict.fromkeys([*(fit(key) for key in keys), *cycles.values()])
            items = await client.get_many(list(wanted))
        values: list[bytes | None] = []
        for key in keys:
            item, cycle = items.get(fit(key)), items.get(cycles[key])
            ours = item is not None and cycle is not None and item.value[:CYCLE] == cycle.value
            values.append(item.value[CYCLE:] if ours and item is not None else None)
        return values

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: bytes | None = None, _conn: object = None
    ) -> bool:
        if _cas_token is not None and await self._get(key) != _cas_token:
            return False
        return await self._multi_set([(key, value)], ttl)

    async def _multi_set(
        self, pairs: Iterable[tuple[str, bytes]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        rest = deque(
            {key: checked(value) for key, value in pairs}.items()
        )  # of one key, the last: they go side by side
        try:
            await self._set_all(rest, self._exptime(ttl))
        except asyncio.CancelledError:
            rest.clear()  # what has begun ends, and no more of it begins
            raise
        return True

    @in_turn
    async def _set_all(self, rest: deque[tuple[str, bytes]], exptime: int) -> None:
        if not rest:
            return
        async with self._connected() as client:
            cycles: dict[bytes, bytes] = {}

            async def work() -> None:
                while rest:
                    key, value = rest.popleft()
                    name, cycle = fit(key), cycle_of(key)
                    if CYCLE + len(name) + len(value) > self.max_value:
                        self._refused()
                        with suppress(self._emcache.NotFoundCommandError):
                            await client.delete(name)  # as the server itself does: what was there may be forgotten
                        continue
                    if cycle not in cycles:
                        cycles[cycle] = await self._cycle(client, cycle)
                    try:
                        await client.set(name, cycles[cycle] + value, exptime=exptime)
                    except self._emcache.StorageCommandError as error:
                        if "too large" not in str(error):
                            raise
                        self._refused()

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.connections, len(rest))):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    @in_turn
    async def _add(self, key: str, value: bytes, ttl: float | None = None, _conn: object = None) -> bool:
        async with self._connected() as client:
            cycle = await self._cycle(client, cycle_of(key))
            if (await self._get(key)) is None:
                item = await client.gets(fit(key))  # there may be one of an earlier life
                with suppress(self._emcache.StorageCommandError):
                    if item is None:
                        await client.add(fit(key), cycle + checked(value), exptime=self._exptime(ttl))
                    else:
                        await client.cas(fit(key), cycle + checked(value), item.cas or 0, exptime=self._exptime(ttl))
                    return True
        raise ValueError(f"the key {key} is there already; use set to change its value")

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return await self._get(key) is not None

    @in_turn
    async def _increment(self, key: str, delta: int, _conn: object = None) -> int:
        async with self._connected() as client:
            cycle = await self._cycle(client, cycle_of(key))
            for _ in range(TRIES):
                item = await client.gets(fit(key))
                there = item is not None and item.value[:CYCLE] == cycle
                try:
                    total = delta + (int(item.value[CYCLE:]) if there and item is not None else 0)
                except ValueError:
                    raise TypeError("the value is no whole number") from None
                with suppress(self._emcache.StorageCommandError):  # another was faster
                    if item is None:
                        await client.add(fit(key), cycle + b"%d" % total)
                    else:
                        await client.cas(fit(key), cycle + b"%d" % total, item.cas or 0)
                    return total
        raise RuntimeError(f"the key {key} is changed by too many at once")

    @in_turn
    async def _expire(self, key: str, ttl: float, _conn: object = None) -> bool:
        async with self._connected() as client:
            try:
                await client.touch(fit(key), self._exptime(ttl))
            except self._emcache.NotFoundCommandError:
                return False
        return True

    @in_turn
    async def _delete(self, key: str, _conn: object = None) -> int:
        async with self._connected() as client:
            try:
                await client.delete(fit(key))
            except self._emcache.NotFoundCommandError:
                return 0
        return 1

    @in_turn
    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        """Memcached cannot list keys: a namespace begins a new life, and what was of the last one is not found."""
        async with self._connected() as client:
            await client.set(cycle_of(self.build_key("", namespace)), os.urandom(CYCLE))
        return True

    async def _redlock_release(self, key: str, value: bytes) -> int:
        return await self._delete(key) if await self._get(key) == value else 0

    async def _close(self, *_: object, **__: object) -> None:
        mine = {task for task in self.tasks if task.get_loop() is asyncio.get_running_loop()}
        if mine:
            await asyncio.wait(mine, timeout=self.connect_timeout + self.op_timeout)
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop() and self._process == os.getpid():
            await client.close()

    def task_ended(self, task: Task[Any]) -> None:
        """Let go of it; its error is nobody's if nobody waits any more."""
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _cycle(self, client: Client, name: bytes) -> bytes:
        """Which life a namespace is in. One that the server has lost is not taken up again: it may have been ended."""
        for _ in range(TRIES):
            item = await client.get(name)
            if item is not None and len(item.value) == CYCLE:
                return item.value
            fresh = os.urandom(CYCLE)
            try:
                if item is None:
                    await client.add(name, fresh)
                else:
                    await client.set(name, fresh)
            except self._emcache.NotStoredStorageCommandError:  # another was faster
                continue
            return fresh
        raise RuntimeError(f"{self.host}:{self.port} does not keep what it is told to")

    def _refused(self) -> None:
        self.too_large += 1
        if self.too_large.bit_count() == 1:
            log.warning("%d answers so far are too large for the memcached at %s", self.too_large, self.host)

    def _exptime(self, ttl: float | None) -> int:
        """A time to live as memcached wants it: whole seconds; 0 for ever; an instant if it is long."""
        if not ttl or ttl == inf:
            return 0
        if ttl <= LONGEST_TTL:
            return ceil(ttl)
        until = ceil(self._wall.now() + ttl)
        return until if until <= LAST_INSTANT else 0


def fit(key: str) -> bytes:
    """A key that memcached takes; a hash of one that it does not. The others hold a colon, and cannot look like it."""
    if KEY.fullmatch(key):
        return key.encode()
    return b"#" + sha256(key.encode(errors="surrogatepass")).hexdigest().encode()


def cycle_of(key: str) -> bytes:
    """Where the life of a key's namespace is told."""
    return fit("#" + key.partition(":")[0] + "#")


def connections_of(client: Client) -> int:
    """How many connections it has, or believes to have."""
    return sum(pool.cur_connections for pool in client.cluster_managment().connection_pool_metrics().values())
