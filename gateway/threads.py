"""A sync function as an operation: threads of its upstream's own, the caller's contextvars, a place until it ends.

A thread cannot be stopped. When its caller leaves, the place stays taken until the function really returns (it counts
as abandoned), so that no more run at once than the bulkhead allows. Threads are daemons: one that is stuck never keeps
the process alive. Completions cross to the loop in batches, one wake-up for all that ended meanwhile.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from inspect import iscoroutine
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Thread
from time import monotonic
from typing import Any

from msgspec import Struct

from gateway.blocking import HERE, Visit
from gateway.bulkhead import Bulkhead
from gateway.outcome import ConfigError, NotSent


class Job(Struct, eq=False):
    """One call of a function, on its way to a thread and back."""

    context: Context
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: Future[Any]
    value: Any = None
    error: BaseException | None = None
    left: bool = False  # its caller has left, and the place is its own
    ended: bool = False  # and the loop has seen it
    inner: Visit[Any] | None = None  # what the function waits for in `call_blocking`

    def run(self) -> None:
        """Call the function, unless its caller left before it began; in the thread."""
        if self.left or self.future.cancelled():
            return
        try:
            value = self.context.run(self.function, *self.args, **self.kwargs)
            if hasattr(type(value), "__await__"):
                self.error = returns_awaitable(self.function, value)
            else:
                self.value = value
        except StopIteration as stop:  # as PEP 479: a future cannot carry it
            self.error = RuntimeError(f"{self.function!r} raised StopIteration")
            self.error.__cause__ = stop
        except BaseException as error:  # noqa: BLE001 - every end of the function is the caller's
            self.error = error


def returns_awaitable(function: Callable[..., Any], value: object) -> ConfigError:
    """The error for a plain function that was not one."""
    if iscoroutine(value):
        value.close()
    name = getattr(function, "__qualname__", repr(function))
    return ConfigError(name, "a plain function returned an awaitable", "declare it `async def`")


class ThreadPool:
    """The threads of one upstream on one loop: never more than calls at once, which the bulkhead bounds."""

    __slots__ = (
        "_bulkhead",
        "_busy",
        "_done",
        "_hold",
        "_jobs",
        "_loop",
        "_made",
        "_name",
        "_staying",
        "_threads",
        "_wake_up_sent",
    )

    def __init__(self, name: str, bulkhead: Bulkhead, loop: AbstractEventLoop) -> None:
        self._name = name
        self._bulkhead = bulkhead
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: deque[Job] = deque()
        self._wake_up_sent = False
        self._busy = 0  # jobs handed over whose end the loop has not seen
        self._made = 0
        self._staying = 0  # threads that were not told to go
        self._threads: list[Thread] = []
        self._hold: Callable[[int], None] | None = getattr(loop, "hold_clock", None)  # virtual time waits for threads

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function in a thread. The caller holds a place of the bulkhead."""
        if self._busy >= self._staying:
            self._start_thread()  # where the system has no more, this raises, and nothing was handed over
        job = Job(copy_context(), function, args, kwargs, self._loop.create_future())
        self._busy += 1
        if self._hold is not None:
            self._hold(1)
        self._jobs.put(job)
        try:
            return await job.future
        except BaseException:
            if not job.ended:  # the caller leaves; the thread goes on, and keeps the place
                job.left = True
                if job.inner is not None:
                    job.inner.cancel()
                self._bulkhead.keep()
            else:  # the error's traceback leads to the job: a circle that only the garbage collector would undo
                job.future = None  # type: ignore[assignment]  # nobody looks at it again
            raise

    def dismiss(self) -> None:
        """Tell all threads to go when they are done."""
        for _ in range(self._staying):
            self._jobs.put(None)
        self._staying = 0

    def join(self, patience: float) -> tuple[str, ...]:
        """Wait for dismissed threads, at most this many seconds; the names of those that are stuck. Blocks."""
        over_at = monotonic() + patience
        for thread in self._threads:
            thread.join(min(max(0.0, over_at - monotonic()), TIMEOUT_MAX))
        return tuple(thread.name for thread in self._threads if thread.is_alive())

    def _start_thread(self) -> None:
        thread = Thread(target=self._work, name=f"{self._name}-{self._made + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise NotSent(f"the system has no thread for {self._name}") from error
        self._made += 1
        self._staying += 1
        self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]

    def _work(self) -> None:
        if self._hold is not None:
            HERE.held = self._loop
        while (job := self._jobs.get()) is not None:
            HERE.errand = job
            job.run()
            HERE.errand = None
            self._done.append(job)  # first append, then look: see _collect
            del job
            if not self._wake_up_sent:
                self._wake_up_sent = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop was closed meanwhile: nobody waits for this any more
                    return

    def _collect(self) -> None:
        self._wake_up_sent = False  # first clear, then collect: nothing can be missed
        while self._done:
            job = self._done.popleft()
            self._busy -= 1
            if self._hold is not None:
                self._hold(-1)
            job.ended = True
            if job.left:
                self._bulkhead.work_ended()
            elif job.future.cancelled():
                pass  # in this tick: the caller has not run yet, holds its place still, and gives it back itself
            elif job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.value)
            job.error = None  # as above: no circles
        while self._staying > max(self._busy, self._bulkhead.policy.limit):  # the pool was made smaller
            self._staying -= 1
            self._jobs.put(None)
