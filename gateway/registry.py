"""The upstreams of a process: registered, looked up, tuned, observed, opened and closed together."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Event, Future, Task, current_task, get_running_loop, sleep, timeout
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fallbacks.last_good import LastGood
from gateway import events
from gateway.bulkhead import Bulkhead
from gateway.context import AMBIENT, clock_of
from gateway.outcome import ConfigError, GatewayClosed, UnknownName, WrongLoop
from gateway.policy import HttpPolicy, Policy
from gateway.threads import ThreadPool
from gateway.upstream import Upstream, UpstreamSnapshot, Workers

if TYPE_CHECKING:
    from gateway.http.client import HttpUpstream

U = TypeVar("U", bound=Upstream)
L = TypeVar("L", bound=Callable[[Any], object])


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySnapshot:
    """All upstreams as they are now."""

    upstreams: Mapping[str, UpstreamSnapshot]


class Gateway:
    """The upstreams of a process.

        gate = Gateway()
        ratings = gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=20)))

    Registering needs no event loop. It opens by `async with`, by `open()` or on first use, and belongs to one running
    loop at a time; on another loop, while the first is open, calls raise WrongLoop. After `close()` only `open()` or
    `async with` opens it again; if its loop was closed under it, the next use does.
    """

    def __init__(self) -> None:
        self.listeners = events.Listeners()
        self._upstreams: dict[str, Upstream] = {}
        self._loop: AbstractEventLoop | None = None  # the one it is open on, or closing
        self._closed = False
        self._closing: Event | None = None

    # -- upstreams

    def upstream(self, name: str, *, policy: Policy = Policy()) -> Upstream:
        """Register a service under a name of its own; a ConfigError if the name is taken."""
        self._check_name(name)
        return self._add(Upstream(name, policy, self))

    def http(
        self, name: str, url: str | Sequence[str], *, policy: Policy = Policy(), http: HttpPolicy = HttpPolicy()
    ) -> HttpUpstream:
        """Register an HTTP API by its base URL. Raises ConfigError."""
        from gateway.http.client import HttpUpstream  # noqa: PLC0415 - aiohttp is imported by who needs it

        self._check_name(name)
        return self._add(HttpUpstream(name, url, policy, http, self))

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError("upstream name", f"{name!r} is no name", "give a non-empty str")
        if name in self._upstreams:
            problem = "an upstream of that name is registered already"
            raise ConfigError(f"upstream {name!r}", problem, f"use gate[{name!r}], or another name")

    def _add(self, upstream: U) -> U:
        self._upstreams[upstream.name] = upstream
        if self._loop is not None and not self._loop.is_closed():
            upstream.bind(self._loop, clock_of(self._loop))
            if self._closing is not None:
                upstream.refuse()
        return upstream

    def __getitem__(self, name: str) -> Upstream:
        try:
            return self._upstreams[name]
        except KeyError:
            raise UnknownName.among("upstream", name, self._upstreams) from None

    def __contains__(self, name: object) -> bool:
        return name in self._upstreams

    def __iter__(self) -> Iterator[Upstream]:
        return iter(tuple(self._upstreams.values()))

    def snapshot(self) -> GatewaySnapshot:
        """All upstreams as they are now; needs no running loop."""
        return GatewaySnapshot(upstreams=MappingProxyType({up.name: up.snapshot() for up in self}))

    # -- events

    def on(self, *kinds: type[events.Event]) -> Callable[[L], L]:
        """Tell a function of these kinds of events (all, if none is named). A decorator; gives the function back."""
        events.check_kinds(kinds)

        def add(listener: L) -> L:
            self.listeners.add(listener, kinds)
            return listener

        return add

    def off(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        self.listeners.remove(listener)

    # -- opening and closing

    async def open(self) -> None:
        """Open on the running loop; nothing happens if it is open there already. Raises WrongLoop."""
        await self._being_closed()
        self._closed = False
        self._open_here()

    async def close(self, *, drain_for: float = 5.0, join_for: float = 5.0) -> tuple[str, ...]:
        """Refuse new calls, let those in flight finish for `drain_for` seconds, then cancel them.

        Then threads are joined for at most `join_for` seconds; gives the names of those that are stuck (they cannot be
        stopped, and do not keep the process alive). Calls from now on raise GatewayClosed.
        """
        if await self._being_closed():
            return ()
        self._closed = True
        if self._loop is None or self._loop.is_closed():
            self._loop = None
            await self._disconnect(join_for)
            return ()
        if self._loop is not get_running_loop():
            self._closed = False
            raise self._wrong_loop()
        self._closing = closing = Event()
        for upstream in self:
            upstream.refuse()
        here = current_task()  # a call that closes its own gateway does not wait for itself
        try:
            await self._idle(drain_for, here)
        finally:
            try:
                await self._cancel_the_rest(join_for, here)
                await self._flush(join_for)
                await self._disconnect(join_for)
                stuck = await self._join_threads(join_for)
            finally:
                if self._closing is closing:  # else this loop died meanwhile, and it is open on another
                    self._loop = self._closing = None
                closing.set()
        return stuck

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- what its upstreams ask of it

    def enter(self, upstream: str, operation: str) -> None:
        """Be open on the running loop, or raise."""
        if self._closing is not None and get_running_loop() is self._loop:
            ambient = AMBIENT.get()
            if ambient is not None and ambient.world.gateway is self:
                return  # a call in flight may still make the calls it needs to finish
        if self._closed:
            closed = GatewayClosed("the gateway is closed; open() or `async with` opens it again")
            closed.upstream, closed.operation = upstream, operation
            raise closed
        self._open_here()

    def workers(self, name: str, bulkhead: Bulkhead, loop: AbstractEventLoop) -> Workers:
        """Threads for an upstream."""
        return ThreadPool(name, bulkhead, loop)

    async def _being_closed(self) -> bool:
        """Whether it was being closed; it is, now."""
        closing = self._closing
        if closing is None or self._loop is not get_running_loop():
            return False
        await closing.wait()
        return True

    def _open_here(self) -> None:
        loop = get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise self._wrong_loop()
        self._loop, self._closing = loop, None
        clock = clock_of(loop)
        for upstream in self:
            upstream.bind(loop, clock)

    @staticmethod
    def _wrong_loop() -> WrongLoop:
        return WrongLoop("the gateway is open on another event loop; close it there, or use one gateway for each loop")

    def _tasks(self, here: Task[Any] | None) -> set[Task[Any]]:
        """The tasks of the calls in flight, save our own."""
        return {call.task for up in self for operation in up for call in operation.calls if call.task is not here}

    async def _idle(self, patience: float, here: Task[Any] | None) -> None:
        """Wait until no call but our own is in flight, at most this many seconds."""
        idle = Event()

        def look(_: events.CallFinished) -> None:
            if not self._tasks(here):
                idle.set()

        if self._tasks(here) and patience > 0:
            self.listeners.add(look, (events.CallFinished,))
            try:
                with suppress(TimeoutError):
                    async with timeout(patience):
                        await idle.wait()
            finally:
                self.listeners.remove(look)

    async def _cancel_the_rest(self, patience: float, here: Task[Any] | None) -> None:
        for task in self._tasks(here):
            task.cancel("the gateway was closed")
        await self._idle(patience, here)

    async def _flush(self, patience: float) -> None:
        """Let the memories write behind what they still have to write."""
        memories = [tier for up in self for operation in up for tier in operation.tiers if isinstance(tier, LastGood)]
        try:
            with suppress(TimeoutError):
                async with timeout(patience):
                    for memory in memories:
                        await memory.flush()
        finally:
            for memory in memories:
                memory.stop_writing()

    async def _disconnect(self, patience: float) -> None:
        with suppress(TimeoutError):
            async with timeout(patience):
                for upstream in self:
                    await upstream.disconnect()

    async def _join_threads(self, patience: float) -> tuple[str, ...]:
        workers = [workers for upstream in self if (workers := upstream.dismiss()) is not None]
        stuck = join_all(workers, 0.01)
        if stuck:
            stuck = await in_thread_of_its_own(lambda: join_all(workers, patience))
        await sleep(0)  # what ended in the threads meanwhile is told in the loop's next turn
        return stuck


async def in_thread_of_its_own(wait: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """What a blocking function gives; the loop's own executor may be busy for longer than anybody wants to wait."""
    loop = get_running_loop()
    future: Future[tuple[str, ...]] = loop.create_future()

    def ended(names: tuple[str, ...]) -> None:
        if not future.done():
            future.set_result(names)

    def run() -> None:
        names = wait()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(ended, names)

    hold: Callable[[int], None] = getattr(loop, "hold_clock", lambda _: None)  # virtual time waits for threads
    hold(1)
    try:
        Thread(target=run, name="gateway: join", daemon=True).start()
        return await future
    finally:
        hold(-1)


def join_all(workers: Iterable[Workers], patience: float) -> tuple[str, ...]:
    """Wait for the threads of all; the names of those that are stuck. Blocks."""
    over_at = monotonic() + patience
    return tuple(name for pool in workers for name in pool.join(max(0.0, over_at - monotonic())))
