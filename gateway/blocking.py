"""A call from a thread that waits for it: to the loop and back, and no hang where either of the two goes away.

The thread hands a `Visit` to the loop and waits for a lock; on the loop the call is a task like any other. What the
thread may be besides is known to `HERE`: a pool's thread, whose own caller may leave meanwhile, or one for which a
virtual clock stands still. Source: `asyncio.run_coroutine_threadsafe`, which does neither look after a loop that is
gone nor cancel the call of a waiting thread that is interrupted.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Task, get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from math import inf
from threading import Event, Lock, get_ident, local, main_thread
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from gateway.outcome import GatewayClosed, WrongLoop

T = TypeVar("T")
LOOK_EVERY = 0.25
"""Seconds of real time after which a thread that waits looks whether the loop is still there."""
GRACE = 1.0
"""A thread that is interrupted waits this long for the end of the call that it cancels, in seconds of real time."""
EXIT = Event()
"""Set when the interpreter ends: what waits then in a daemon thread is left waiting, and says nothing any more."""


class Errand(Protocol):
    """What a pool's thread does for a caller, who may have left."""

    left: bool
    inner: Visit[Any] | None


class Here(local):
    """What this thread is."""

    errand: Errand | None = None
    held: AbstractEventLoop | None = None  # the loop whose virtual clock stands still while this thread works


HERE = Here()


def refuse_on_a_loop(name: str, remedy: str) -> None:
    """Raise WrongLoop in a thread that runs an event loop: it would wait for itself, or hold all others up."""
    try:
        get_running_loop()
    except RuntimeError:
        return
    raise WrongLoop(f"{name} would hold up the event loop that runs in this thread; {remedy}")


def nothing() -> None:
    """Nothing has to be asked before."""


class Visit(Generic[T]):
    """One call from a thread. `enter` and `ask` are called on the loop, in a copy of the thread's context.

    What `enter` raises is raised in the thread, and then nothing has begun.
    """

    __slots__ = (
        "_ask",
        "_cancelled",
        "_end",
        "_enter",
        "_errand",
        "_forgotten",
        "_held",
        "_loop",
        "_missed",
        "_over",
        "_task",
        "_thread",
    )

    def __init__(
        self, loop: AbstractEventLoop, ask: Callable[[], Coroutine[Any, Any, T]], enter: Callable[[], None] = nothing
    ) -> None:
        self._loop = loop
        self._ask = ask
        self._enter = enter
        self._errand = HERE.errand
        self._held = HERE.held is loop
        self._thread = get_ident()
        self._over = Lock()
        self._over.acquire()
        self._end: tuple[T | None, BaseException | None] | None = None
        self._task: Task[None] | None = None
        self._cancelled = False
        self._forgotten = False  # nobody will look at how it ends
        self._missed = 0  # looks at a loop that did not run

    # -- in the thread

    def wait(self, patience: float = inf) -> T:
        """What the call gives or raises; TimeoutError after so many seconds of real time."""
        errand = self._errand
        if errand is None:
            return self._wait(patience)
        errand.inner = self  # first say so, then look; who leaves does it the other way round: one of the two sees it
        try:
            if errand.left:
                raise CancelledError("the caller of this thread has left")
            return self._wait(patience)
        finally:
            errand.inner = None

    def cancel(self) -> None:
        """End it soon; from any thread."""
        self._cancelled = True
        with suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._cancel_here)

    def _wait(self, patience: float) -> T:
        over_at = monotonic() + patience
        gone: BaseException | None = None
        try:
            try:
                self._loop.call_soon_threadsafe(self._begin)
            except RuntimeError:  # the loop is closed
                gone = self._gone()
            while gone is None and not self._over.acquire(timeout=max(0.0, min(LOOK_EVERY, over_at - monotonic()))):
                gone = self._look(over_at)
        except BaseException:  # a KeyboardInterrupt: a signal came while it waited
            self._forgotten = True
            self.cancel()
            self._over.acquire(timeout=GRACE)
            raise
        value, error = self._taken() if gone is None else (None, gone)
        if error is None:
            return value  # type: ignore[return-value]  # where there is no error there is a value
        try:
            raise error
        finally:
            del error, gone  # its traceback leads here: a circle that only the garbage collector would undo

    def _look(self, over_at: float) -> BaseException | None:
        """Why it makes no sense to go on waiting."""
        if EXIT.is_set() and self._is_daemons():
            return None
        self._missed = 0 if self._loop.is_running() else self._missed + 1
        if self._missed > 1:  # once is no evidence: it may be between two `run_until_complete`
            return self._gone()
        if monotonic() < over_at:
            return None
        self._forgotten = True
        self.cancel()
        return TimeoutError()

    def _gone(self) -> BaseException:
        """The error for a loop that is gone. If it ever runs again, it finds the call cancelled."""
        self._forgotten = True
        self.cancel()
        why = "was closed" if self._loop.is_closed() else "does not run"
        if self._task is None:
            return GatewayClosed(f"nothing was sent: the event loop of the gateway {why}")
        return CancelledError(f"the event loop of the gateway {why} under the call")

    def _taken(self) -> tuple[T | None, BaseException | None]:
        """How it ended, once."""
        end, self._end = self._end, None
        return end or (None, None)

    # -- on the loop

    def _begin(self) -> None:
        if self._cancelled:
            self._finish()
            return
        coroutine = None
        try:
            self._enter()
            coroutine = self._run()
            self._hold(-1)
            self._task = self._loop.create_task(coroutine)
        except BaseException as error:  # noqa: BLE001 - it is the thread's
            if coroutine is not None:
                coroutine.close()
                self._hold(1)
            self._end = (None, error)
            self._finish()
            return
        self._task.add_done_callback(self._done)
        if self._cancelled:  # from another thread, just now
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self._end = (await self._ask(), None)
        except BaseException as error:
            self._end = (None, error)
            if not isinstance(error, (Exception, CancelledError)) and get_ident() == main_thread().ident:
                raise  # a KeyboardInterrupt, perhaps: it is the whole program's

    def _done(self, task: Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it has been seen
        self._hold(1)  # before the thread goes on
        self._finish()

    def _finish(self) -> None:
        self._task = None
        if self._end is None or (self._cancelled and self._end[1] is None):
            self._end = (None, CancelledError())
        if self._forgotten:
            self._end = None
        if not (EXIT.is_set() and self._is_daemons()):
            self._over.release()

    def _cancel_here(self) -> None:
        if self._task is not None:
            self._task.cancel("nobody waits for it any more")

    def _hold(self, change: int) -> None:
        if self._held:
            self._loop.hold_clock(change)  # type: ignore[attr-defined]  # only loops that have it are `held`

    def _is_daemons(self) -> bool:
        """Whether a daemon thread of the user's waits, which would print a traceback on the way out."""
        return self._errand is None and self._thread != main_thread().ident
