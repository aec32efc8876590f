"""An event loop whose time jumps to the next timer as soon as nothing else is left to do.

Real loopback sockets and threads still work: while a thread of a gateway or of an executor runs, the clock stands
still, and before a jump, open sockets get a moment of real time to deliver. The idea is trio's autojump clock.
"""

from __future__ import annotations

import asyncio
import selectors
from asyncio import Future, TimerHandle
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context
from functools import partial
from math import ceil, inf
from time import monotonic
from typing import ClassVar, TypeVar, TypeVarTuple, Unpack

from gateway.blocking import HERE

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop with virtual time; seconds as ever, but nobody waits for them.

    `io_grace`: real seconds that open sockets get before a jump. `patience`: real seconds after which a loop that waits
    for a thread, or for nothing at all, raises RuntimeError instead of hanging the tests. Each loop's time begins where
    the last one's ended, so that what is remembered by one test is not from the future in the next.
    """

    _latest: ClassVar[float] = 1000.0

    def __init__(self, *, io_grace: float = 0.002, patience: float = 30.0) -> None:
        self._now = float(ceil(VirtualTimeLoop._latest))
        self._threads = 0
        self.io_grace = io_grace
        self.patience = patience
        super().__init__(JumpingSelector(self))

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        """As ever; but what is due at the end of time is nothing to jump to, a day at a time and for ever."""
        if when == inf:
            return TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def advance(self, seconds: float) -> None:
        """Let the clock jump, as when a machine slept: all that is due then happens at once."""
        self._now += seconds
        VirtualTimeLoop._latest = max(VirtualTimeLoop._latest, self._now)

    def hold_clock(self, change: int) -> None:
        """One more (1) or one fewer (-1) thread works; while any does, the clock stands still."""
        self._threads += change

    @property
    def held(self) -> bool:
        """Whether the clock stands still."""
        return self._threads > 0

    def run_in_executor(self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> Future[T]:
        """As ever; the clock stands still meanwhile, save while the function waits in `call_blocking`."""
        if executor is None or isinstance(executor, ThreadPoolExecutor):  # else in another process
            future = super().run_in_executor(executor, partial(holding, self, func, *args))
        else:
            future = super().run_in_executor(executor, func, *args)
        self.hold_clock(1)
        future.add_done_callback(lambda _: self.hold_clock(-1))
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109
        """As ever; its threads end in real time, so `patience` limits the wait, and not the clock's own seconds."""
        self.hold_clock(1)
        try:
            await super().shutdown_default_executor()
        finally:
            self.hold_clock(-1)


def holding(loop: VirtualTimeLoop, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Call the function in a thread for which the clock stands still."""
    HERE.held = loop
    try:
        return func(*args)
    finally:
        HERE.held = None


class JumpingSelector(selectors.DefaultSelector):
    """Where the loop would sleep until the next timer, it moves the clock."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Events of real files; if there are none, time passes."""
        events: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None or self._loop.held:
            return self._wait()
        if len(self.get_map()) > 1:  # more than the loop's own wake-up pipe: give the network a moment
            events = super().select(self._loop.io_grace)
        if not events:
            self._loop.advance(timeout)
        return events

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        given_up_at = monotonic() + self._loop.patience
        events: list[tuple[selectors.SelectorKey, int]] = super().select(self._loop.patience)
        if not events and monotonic() >= given_up_at:
            what = "a thread that does not end" if self._loop.held else "nothing: no timer, no thread, no event"
            msg = f"virtual time stood still for {self._loop.patience} real seconds, waiting for {what}"
            raise RuntimeError(msg)
        return events
