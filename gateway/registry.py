"""The upstreams of a process: registered, looked up, tuned, observed, opened and closed together."""

from __future__ import annotations

import atexit
import logging
import os
from asyncio import (
    AbstractEventLoop,
    CancelledError,
    Event,
    Future,
    Task,
    _get_running_loop,
    create_task,
    current_task,
    gather,
    get_running_loop,
    sleep,
    timeout,
    wait,
)
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from math import inf
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

from fallbacks.chain import cancelled_inside_has_failed
from fallbacks.last_good import LastGood
from gateway import events
from gateway.background import Background
from gateway.blocking import EXIT, Visit, refuse_on_a_loop
from gateway.bulkhead import Bulkhead
from gateway.context import AMBIENT, clock_of
from gateway.outcome import ConfigError, GatewayClosed, UnknownName, WrongLoop
from gateway.policy import HttpPolicy, Policy
from gateway.readonly import ReadOnly
from gateway.threads import ThreadPool
from gateway.upstream import Upstream, UpstreamSnapshot, Workers, check_policy

log = logging.getLogger("gateway")

if TYPE_CHECKING:
    from aiocache.base import BaseCache

    from gateway.config.reloading import Reloading
    from gateway.config.watch import Watch
    from gateway.http.client import HttpUpstream

U = TypeVar("U", bound=Upstream)
T = TypeVar("T")
L = TypeVar("L", bound=Callable[[Any], object])
Overlay = Callable[[str, Policy], Policy]
"""What is to hold for an upstream, by its name and what the file or code says of it. It must not raise."""
USUAL = Policy()
"""The policy of who gives none."""
WARM_START_FOR = 5.0
"""Seconds that opening waits for the stores behind the memories."""


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

    A program that is not async calls `operation.call_blocking(...)`: with no loop to be open on, it opens on one of its
    own, in a background thread. `with gate:` opens and closes that.
    """

    def __init__(self) -> None:
        self.listeners = events.Listeners()
        self._upstreams: dict[str, Upstream] = {}
        self._loop: AbstractEventLoop | None = None  # the one it is open on, or closing
        self._closed = False
        self._closing: Event | None = None
        self._reloading: Reloading | None = None
        self._watch: Watch | None = None
        self._warming: Task[None] | None = None  # the memories, from their stores
        self._in_code: dict[str, Policy] = {}  # what code said, by the names it has asked for
        self._overlay: Overlay | None = None
        self._opening = Lock()  # first uses in several threads
        self._background: Background | None = None
        self._of_the_parent: object = None
        GATEWAYS.add(self)

    # -- policies in a file

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, check_every: float = 1.0, on_hangup: bool = True) -> Self:
        """A gateway with the upstreams of a policy file (TOML), registered and looked up by `gate["ratings"]`.

            [upstreams.ratings.bulkhead]
            limit = 20

        While it is open, the file is read again as by `reload()` when it changes (looked at every `check_every`
        seconds, never if that is inf; two looks must agree, so that nothing half-written counts), and on SIGHUP. That
        is heard from now on until it is closed, if this is the main thread and nobody else handles it; while it is not
        open, the file is read again when it opens. If that fails, the log says why, and the policies stay as they are.
        On a virtual loop only SIGHUP counts. Raises ConfigError with all that is wrong with the file.
        """
        from gateway.config.reloading import Reloading  # noqa: PLC0415 - files are read by who has one
        from gateway.config.watch import Watch, located  # noqa: PLC0415

        gate = cls()
        gate._reloading = reloading = Reloading(
            path, gate._upstreams, in_code=gate._in_code, usual=USUAL, register=gate._register, overlaid=gate._overlaid
        )
        gate._watch = Watch(reloading.file, gate.reload, check_every=check_every, on_hangup=on_hangup)
        try:
            gate.reload()
        except ConfigError as error:
            error.add_note("\n".join(located(error, name=reloading.file.name)))
            raise
        gate._watch.listen()
        return gate

    def reload(self) -> tuple[str, ...]:
        """Read the policy file again, and go by it: all of it, or nothing. Gives the names of upstreams that changed.

        What the file says holds, also where `tune` had changed it. Circuits, counters, waiters and remembered answers
        survive. New upstreams are registered; one that has left the file goes by what code gave it. From any thread:
        where the loop of the gateway runs in another one, it is done there, and this thread waits. Raises ConfigError,
        also without a file, and for limits that contradict those of an operation; WrongLoop in a thread that runs
        another loop.
        """
        if self._reloading is None:
            raise ConfigError("policy file", "this gateway was not made from one", "use Gateway.from_file(path)")
        return self.on_its_loop(self._reloading.reload)

    @property
    def policy_file(self) -> str | os.PathLike[str] | None:
        """Where the policies come from; None: from code."""
        return None if self._reloading is None else self._reloading.file.path

    @property
    def reloading(self) -> bool:
        """Whether the policies that change now are those of the file."""
        return self._reloading is not None and self._reloading.applies

    def lay_over(self, overlay: Overlay | None) -> None:
        """Let what the file and code say from now on go through this before it holds: what operators have tuned.

        What holds already stays as it is. None: nothing is laid over it any more. ConfigError where something is laid
        over it already: who of the two were right?
        """
        if overlay is not None and self._overlay is not None:
            raise ConfigError("overlay", "the policies are tuned by another one already", "close that one first")
        self._overlay = overlay

    def told_of(self, name: str) -> Policy:
        """What the file says of an upstream, else code: what would hold if nobody tuned it."""
        in_file = None if self._reloading is None else self._reloading.policies.get(name)
        return self._in_code.get(name, USUAL) if in_file is None else in_file

    def _overlaid(self, name: str, policy: Policy) -> Policy:
        if self._overlay is None or not (isinstance(name, str) and isinstance(policy, Policy)):
            return policy  # what is neither is told of later on
        return self._overlay(name, policy)

    # -- upstreams

    def upstream(self, name: str, *, policy: Policy = USUAL) -> Upstream:
        """Register a service under a name of its own; a ConfigError if the name is taken.

        A name that stands in the policy file gives the upstream of the file, once; its policy is that of the file.
        """
        known = self._unclaimed(name)
        upstream = self._register(name, self._overlaid(name, policy)) if known is None else known
        if known is not None:
            known.policy = self._overlaid(name, self._policy_of(name, policy))
        self._in_code[name] = policy
        return upstream

    def http(
        self,
        name: str,
        url: str | Iterable[str | tuple[str, float]],
        *,
        policy: Policy = USUAL,
        http: HttpPolicy = HttpPolicy(),
    ) -> HttpUpstream:
        """Register an HTTP API by its base URL, or by several that do the same, with weights where they differ in size.

            gate.http("ratings", ["http://a", "http://b", ("http://c", 2.0)])

        Raises ConfigError.

        A name that stands in the policy file goes by the policy of the file.
        """
        from gateway.http.client import HttpUpstream  # noqa: PLC0415 - aiohttp is imported by who needs it

        known = self._unclaimed(name)
        if known is None:
            self._check_name(name)
            upstream = HttpUpstream(name, url, self._overlaid(name, policy), http, self)
        elif next(iter(known), None) is not None:
            problem = "it has operations already, and is no HTTP API"
            raise ConfigError(f"upstream {name!r}", problem, "call gate.http(...) before its operations are registered")
        else:
            upstream = HttpUpstream(name, url, self._overlaid(name, self._policy_of(name, policy)), http, self)
        self._in_code[name] = policy
        return self._add(upstream)

    def _unclaimed(self, name: object) -> Upstream | None:
        """The upstream that the file has registered, and that code has not asked for yet."""
        return self._upstreams.get(name) if isinstance(name, str) and name not in self._in_code else None

    def _policy_of(self, name: str, policy: Policy) -> Policy:
        """What holds for an upstream that the file has registered: the file, while it names it."""
        check_policy(name, policy)
        in_file = None if self._reloading is None else self._reloading.policies.get(name)
        if in_file is None:
            return policy
        if policy is not USUAL:
            log.info("%s: the policy file wins over the policy= in code", name)
        return in_file

    def _register(self, name: str, policy: Policy) -> Upstream:
        self._check_name(name)
        return self._add(Upstream(name, policy, self))

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or not is_text(name):
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
        return GatewaySnapshot(upstreams=ReadOnly({up.name: up.snapshot() for up in self}))

    # -- events

    def on(self, *kinds: type[events.Event], plain_every: int = 1) -> Callable[[L], L]:
        """Tell a function of these kinds of events (all, if none is named). A decorator; gives the function back.

        `plain_every`: of the calls that went plainly well (answered live, from fresh memory or with an identical one,
        at once and at the first try) it is told of one in so many of each operation, and with 0 of none: most calls
        cost next to nothing then. ConfigError for what is no kind of event, and for no such number.
        """
        events.check_kinds(kinds)
        events.check_plain_every(plain_every)

        def add(listener: L) -> L:
            events.check_listener(listener)
            self.listeners.add(listener, kinds, plain_every=plain_every)
            return listener

        return add

    def off(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        self.listeners.remove(listener)

    # -- opening and closing

    async def open(self) -> None:
        """Open on the running loop; nothing happens if it is open there already. Raises WrongLoop.

        What the stores behind `LastGood`s have is in memory before the first call, for as long as `WARM_START_FOR`.
        """
        await self._being_closed()
        self._open_here(again=True)
        await self._warm_start()

    async def close(self, *, drain_for: float = 5.0, join_for: float = 5.0) -> tuple[str, ...]:
        """Refuse new calls, let those in flight finish for `drain_for` seconds, then cancel them.

        Then threads are joined for at most `join_for` seconds; gives the names of those that are stuck (they cannot be
        stopped, and do not keep the process alive). Calls from now on raise GatewayClosed. Raises ConfigError and
        WrongLoop.
        """
        for field, seconds in (("drain_for", drain_for), ("join_for", join_for)):
            if not (isinstance(seconds, int | float) and seconds >= 0):
                raise ConfigError(f"close {field}", f"{seconds!r} is no number of seconds", "give 0 or more, or inf")
        if await self._being_closed():
            return ()
        with self._opening:
            was_open = self._is_open()
            if not was_open:
                self._let_go()
            elif self._loop is not get_running_loop():
                raise self._wrong_loop()
            else:
                self._closed = True
                self._closing = closing = Event()
        if not was_open:
            await self._disconnect(join_for)
            return ()
        for upstream in self:
            upstream.refuse()
        here = current_task()  # a call that closes its own gateway does not wait for itself
        try:
            await self._idle(drain_for, here)
        finally:
            try:
                async with AsyncExitStack() as ending:  # the last first, and each of them, whatever cuts another short
                    ending.push_async_callback(self._disconnect, join_for)
                    ending.push_async_callback(self._close_stores, join_for)
                    ending.push_async_callback(self._flush, join_for)
                    ending.push_async_callback(self._end_background, join_for, here)
                    await self._cancel_the_rest(join_for, here)
                stuck = await self._join_threads(join_for)
            finally:
                with self._opening:
                    if self._closing is closing:  # else this loop died meanwhile, and it is open on another
                        for upstream in self:
                            upstream.dismiss()  # whatever cut this short: their threads end
                        self._let_go()
                closing.set()
        return stuck

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- opening and closing where no loop runs

    def open_blocking(self) -> None:
        """Open on a loop in a background thread; nothing happens if it is open there already. Raises WrongLoop."""
        refuse_on_a_loop("open_blocking()", "use `await gate.open()`")
        with self._opening:
            if self._is_open() and not self._is_in_background():
                raise self._wrong_loop()
            closing = None if self._closing is None else self._background
        if closing is not None:
            closing.join(inf)
        self._open_in_background(again=True)
        with self._opening:
            if self._is_open() and not self._is_in_background():  # another thread's loop was first
                raise self._wrong_loop()
            if self._is_open() and self._watch is not None:  # the thread of the loop hears no signals
                self._watch.listen()

    def close_blocking(self, *, drain_for: float = 5.0, join_for: float = 5.0) -> tuple[str, ...]:
        """As `close()`, for a gateway that is open in the background; the thread of its loop is joined, too.

        Raises WrongLoop if it is open on another loop: close it there.
        """
        refuse_on_a_loop("close_blocking()", "use `await gate.close()`")
        with self._opening:  # look and write in one: another thread may open it meanwhile
            loop, background = self._loop, self._background
            if loop is None or loop.is_closed():
                self._let_go()
                return ()
            if background is None or background.loop is not loop:
                raise self._wrong_loop()
        close = partial(self.close, drain_for=drain_for, join_for=join_for)
        try:
            stuck = Visit(loop, close).wait(drain_for + 3 * join_for + 1.0)  # calls, memories and threads: each as long
        except (GatewayClosed, WrongLoop):  # another thread was first, and a third one may have opened it elsewhere
            stuck = ()
        except TimeoutError:  # a function holds the loop up: leave it alone with that
            stuck = ()
            with self._opening:
                if self._loop is loop:
                    self._let_go()
        if self._watch is not None:
            from gateway.config import hangup  # noqa: PLC0415 - as in `from_file`

            hangup.give_back()  # the thread of the loop cannot
        return stuck + background.join(join_for)

    def __enter__(self) -> Self:
        self.open_blocking()
        return self

    def __exit__(self, *_: object) -> None:
        self.close_blocking()

    # -- what its upstreams ask of it

    def enter(self, upstream: str, operation: str) -> None:
        """Be open on the running loop, or raise."""
        if self._closing is not None and get_running_loop() is self._loop:
            ambient = AMBIENT.get()
            if ambient is not None and ambient.world.gateway is self:
                return  # a call in flight may still make the calls it needs to finish
        if self._closed:
            raise closed_to(upstream, operation)
        self._open_here()

    def loop_elsewhere(self, upstream: str, operation: str) -> AbstractEventLoop:
        """The loop it is open on, in another thread; starts one in the background if there is none."""
        loop = self._loop
        while loop is None or loop.is_closed():
            if self._closed:
                raise closed_to(upstream, operation)
            self._open_in_background()
            loop = self._loop
        return loop

    def on_its_loop(self, act: Callable[[], T]) -> T:
        """Do it on the thread of the loop it is open on; right here if there is none, or it does not run.

        Raises what it raises; WrongLoop in a thread that runs another loop, and then it is not done.
        """

        async def done() -> T:
            return act()

        while (loop := self._loop) is not None and loop.is_running():
            running = _get_running_loop()
            if running is loop:
                break
            if running is not None:
                raise self._wrong_loop()
            with suppress(GatewayClosed):  # the loop went away, and nothing has begun: look again
                return Visit(loop, done).wait()
        return act()

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

    def _open_here(self, *, again: bool = False, background: Background | None = None) -> None:
        """Open on the running loop; after `close()` only if it is said that it shall be open again.

        `background`: whose loop it is. One that was stopped meanwhile has been given up, and perhaps replaced.
        """
        loop = get_running_loop()
        if self._loop is loop and not self._closed:
            return
        with self._opening:  # of two loops in two threads, one is first; and who closes it closes all or nothing
            if self._is_open() and self._loop is not loop:
                raise self._wrong_loop()
            if (self._closed and not again) or (background is not None and background.stopped):
                raise closed_to("", "")
            self._closed = False
            if self._loop is loop:
                return
            self._loop, self._closing = loop, None
            clock = clock_of(loop)
            for upstream in self:
                upstream.bind(loop, clock)
            self._warming = None
            if any(memory.behind is not None for memory in self._memories()):
                self._warming = loop.create_task(self._warm_memories(), name="gateway: warm start", context=Context())
            if self._watch is not None:
                self._watch.start(loop)

    def _is_open(self) -> bool:
        return self._loop is not None and not self._loop.is_closed()

    def _is_in_background(self) -> bool:
        return self._background is not None and self._background.loop is self._loop

    def _open_in_background(self, *, again: bool = False) -> None:
        """Start a loop in a thread, once however many ask for it, and wait until it is open."""
        with self._opening:
            if again and self._closing is None:
                self._closed = False
            background = self._background
            if background is None or background.error is not None or (background.ready and not self._is_open()):
                self._stop_background()
                background = Background(self._open_unless_closed)
                background.start()
                self._background = background
                atexit.register(self._close_at_exit)
        background.wait()
        if background.error is not None and not isinstance(background.error, (WrongLoop, GatewayClosed)):
            raise RuntimeError("the gateway could not be opened in the background") from background.error

    async def _open_unless_closed(self, background: Background) -> None:
        self._open_here(background=background)
        await self._warm_start()

    def _let_go(self) -> None:
        """Be closed, and open on no loop. The caller holds the lock."""
        self._stop_watching()
        self._closed, self._loop, self._closing = True, None, None
        self._stop_background()

    def _stop_background(self) -> None:
        background, self._background = self._background, None
        if background is not None:
            background.stop()
            atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        EXIT.set()
        with suppress(Exception):
            self.close_blocking(drain_for=0.0, join_for=0.5)

    def forget_the_parents_loop(self) -> None:
        """After a fork: no loop of the parent runs in the child, so be open on none."""
        calls = [call for up in self for operation in up for call in operation.calls]
        # Kept as it is: to close the loop, or to end its tasks, would reach into the parent's open files.
        self._of_the_parent = (self._of_the_parent, self._loop, self._background, calls)
        self._opening = Lock()
        self._loop = self._closing = self._background = None
        if self._watch is not None:
            self._watch.forget()
        for upstream in self:
            upstream.refuse()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()

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

    def _memories(self) -> set[LastGood]:
        return {memory for up in self for operation in up for memory in operation.memories}

    async def _warm_start(self) -> None:
        """Wait for what the stores have; one that takes too long goes on behind the first calls."""
        if self._warming is not None:
            await wait((self._warming,), timeout=WARM_START_FOR)

    async def _warm_memories(self) -> None:
        await gather(*(memory.warm_start() for memory in self._memories()))  # no store holds up another's

    async def _end_background(self, patience: float, here: Task[Any] | None) -> None:
        """End what no caller waits for, save ourselves; what resists goes on by itself."""
        tasks = {task for up in self for task in up.refreshing.values()}
        if self._warming is not None:
            tasks.add(self._warming)
        self._warming = None
        tasks.discard(here)
        for task in tasks:
            task.cancel()
        if tasks:
            await wait(tasks, timeout=patience)

    async def _flush(self, patience: float) -> None:
        """Let the memories write behind what they still have to write."""
        memories = self._memories()
        try:
            with suppress(TimeoutError):
                async with timeout(patience):
                    await gather(*(memory.flush() for memory in memories))  # nor here
        finally:
            for memory in memories:
                memory.stop_writing()

    async def _close_stores(self, patience: float) -> None:
        stores = {memory.behind.store for memory in self._memories() if memory.behind is not None}
        closing = [create_task(self._close_store(store, patience)) for store in stores]
        try:
            if closing:
                await wait(closing)
        except CancelledError:
            for one in closing:  # each has begun by now: `gather` would have told them before that
                one.cancel()
            raise

    @staticmethod
    async def _close_store(store: BaseCache, patience: float) -> None:
        try:
            with cancelled_inside_has_failed():
                async with timeout(patience):
                    await store.close()
        except Exception:
            log.exception("the store behind LastGood could not be closed")

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


def is_text(name: str) -> bool:
    """Whether it can be written anywhere: half of a pair of surrogates is in no encoding."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


GATEWAYS: WeakSet[Gateway] = WeakSet()
"""All there are: a fork makes each of them forget its loop."""


def forget_the_parents_loops() -> None:
    """In the child, right after the fork, while it has only one thread."""
    for gateway in GATEWAYS:
        gateway.forget_the_parents_loop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_the_parents_loops)


def closed_to(upstream: str, operation: str) -> GatewayClosed:
    """The error for a call of a closed gateway."""
    closed = GatewayClosed("the gateway is closed; open() or `async with` opens it again")
    closed.upstream, closed.operation = upstream, operation
    return closed


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
