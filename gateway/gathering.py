"""Several things asked at once, for one page: some it cannot do without, some it can.

The shape of every aggregator: all parts start together, under one deadline; what is not needed any more is cancelled
and waited for; no error is lost on the way. Sources: trio's nurseries and `asyncio.TaskGroup`, where nothing outlives
the block and one failure ends the others.
"""

from __future__ import annotations

from asyncio import (
    AbstractEventLoop,
    CancelledError,
    Future,
    TimerHandle,
    current_task,
    get_running_loop,
    isfuture,
    sleep,
)
from collections import deque
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from inspect import isawaitable
from math import inf
from reprlib import repr as brief
from types import CoroutineType, MappingProxyType
from typing import Any, cast

from fallbacks.answer import Answer, Source
from fallbacks.chain import told
from gateway.context import AMBIENT, Deadline
from gateway.lane import Timer
from gateway.outcome import ConfigError, Unknown, UnknownTimeout

GRACE: ContextVar[float] = ContextVar("gateway gather", default=0.05)
"""Seconds that parts get after the deadline: upstreams end by themselves at it, and a default needs a turn to answer.

A gather inside a part has half of it, so that the inner one has answered before the outer one cuts it off.
"""
NOTHING: Mapping[str, Awaitable[Any]] = MappingProxyType({})


def gather(
    *, required: Mapping[str, Awaitable[Any]] = NOTHING, optional: Mapping[str, Awaitable[Any]] = NOTHING
) -> Coroutine[Any, Any, Mapping[str, Answer[Any]]]:
    """Await all parts together; every answer by the name of its part, the required ones first.

        page = await gather(
            required={"movie": movie.ask("alien")},
            optional={"ratings": ratings.ask("alien"), "ads": ads.ask()},
        )
        page["movie"].value, page["ads"].degraded

    What `operation.ask` gives stays as it is; any other value becomes a live `Answer`. An optional part that fails, is
    refused or comes too late is `Answer(None, "static")` with its error. When a required part fails, the others are
    cancelled and waited for, and its error is raised as it is, with notes that name it and all others that failed.

    The parts share the ambient `Deadline`: upstreams end at it, anything else is cut 0.05 s later, as an
    `UnknownTimeout`. In an operation or a slot, whose limit ends the gather itself, they end as much earlier. A part
    that was cancelled from within is an `Unknown`. Cancelled, it cancels every part and waits for them; then the
    CancelledError has a note for each that failed. Tasks and futures are cancelled as the other parts are. Raises
    ConfigError, before anything is started, for what is no part.
    """
    return Gathering(checked(required, optional), frozenset(required)).answers()


class Gathering:
    """The parts under way. What ends is noted as it ends; what is told to end is still waited for."""

    __slots__ = (
        "_cut",
        "_errors",
        "_names",
        "_required",
        "_running",
        "_timer",
        "_told",
        "_unstarted",
        "_values",
        "_waiter",
    )

    def __init__(self, parts: Mapping[str, Awaitable[Any]], required: frozenset[str]) -> None:
        self._names = tuple(parts)
        self._required = required
        self._unstarted = deque(parts.items())
        self._running: dict[Future[Any], str] = {}
        self._values: dict[str, Answer[Any]] = {}
        self._errors: dict[str, BaseException] = {}  # in the order in which they failed
        self._told = False  # to end: by the deadline (then it was cut), or because none is needed any more
        self._cut = False
        self._timer: TimerHandle | None = None
        self._waiter: Future[None] | None = None

    async def answers(self) -> Mapping[str, Answer[Any]]:
        """Start the parts, wait until all have ended, and say how."""
        stop: BaseException | None = None
        try:
            try:
                await self._start()
            except GeneratorExit:
                raise  # thrown away: it may not wait for anything any more
            except BaseException as error:  # noqa: BLE001 - raised below, when all that had started has ended
                stop = error
                self._end()
            while self._running:
                self._waiter = get_running_loop().create_future()
                try:
                    await self._waiter
                except CancelledError as cancelled:  # the caller's, maybe not the first: each is passed on to the parts
                    stop = cancelled
                    self._end()
            first = self._first()
            if first is not None and (stop is None or not isinstance(self._errors[first], Exception)):
                stop = self._errors.pop(first)
                note(stop, f'part "{first}"')
            if stop is None:
                answer = self._answer if self._errors else self._values.__getitem__
                return MappingProxyType({name: answer(name) for name in self._names})
            for name, other in self._errors.items():
                note(stop, f'part "{name}" failed: {told(other)}')
            raise stop
        finally:
            with suppress(RuntimeError):  # a gather that is thrown away cannot wait; its loop may be closed
                self._end()
            del stop  # no circles: the traceback of what is raised leads to this frame

    async def _start(self) -> None:
        """Begin with what runs already: if a required part of these has failed, nothing else is started."""
        loop = get_running_loop()
        task = current_task(loop)
        self._adopt(task)
        if task is not None and task.cancelling():
            await sleep(0)  # a cancel that is pending ends it before anything is started
        deadline, grace = AMBIENT.get(), GRACE.get()
        earlier: AbstractContextManager[object] = nullcontext()
        if isinstance(deadline, Timer) and deadline.task is task:  # at its end it would cancel the gather itself
            world = deadline.world
            grace = max(0.0, min(grace, (deadline.at - world.clock()) / 2))
            earlier = Deadline(deadline.at - grace, world.clock, world.gateway)
            grace /= 2
        with earlier:
            deadline = AMBIENT.get()
            token = GRACE.set(grace / 2)
            try:
                self._start_all(loop)
            finally:
                GRACE.reset(token)
        if not self._told and deadline is not None and deadline.at != inf:
            left = deadline.at - deadline.world.clock()
            self._timer = loop.call_later(max(left, 0.0) + grace, self._cut_off)

    def _start_all(self, loop: AbstractEventLoop) -> None:
        while self._unstarted:
            name, part = self._unstarted.popleft()
            awaited = part if type(part) is CoroutineType or isinstance(part, Coroutine) else waiting_for(part)
            try:
                self._watch(name, loop.create_task(awaited, name=f"gateway: part {name}"))
            except BaseException:
                awaited.close()
                raise

    def _adopt(self, task: Future[Any] | None) -> None:
        """Watch the tasks and futures among the parts."""
        futures = [(name, part) for name, part in self._unstarted if type(part) is not CoroutineType and isfuture(part)]
        if not futures:
            return
        for name, part in futures:
            if part is task or part.get_loop() is not get_running_loop():
                problem = "is the task that gathers" if part is task else "belongs to another event loop"
                raise ConfigError(f'gather "{name}"', problem, "give what this loop can await")
        self._unstarted = deque((name, part) for name, part in self._unstarted if not isfuture(part))
        for name, part in futures:
            self._watch(name, part)

    def _watch(self, name: str, future: Future[Any]) -> None:
        self._running[future] = name
        if future.done():
            self._ended(future)
        else:
            future.add_done_callback(self._ended)
            if self._told:  # by one before it that had failed already
                future.cancel()

    def _ended(self, future: Future[Any]) -> None:
        """A part has ended: note how, and whether the others are still needed."""
        name = self._running.pop(future)
        error = error_of(future)
        if isinstance(error, CancelledError):
            error = self._why_cancelled(name, error)
        elif error is None:
            value = future.result()
            self._values[name] = value if isinstance(value, Answer) else Answer(value)
        if error is not None:
            self._errors[name] = error
            if not self._told and (name in self._required or not isinstance(error, Exception)):
                self._end()
        if not self._running and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _why_cancelled(self, name: str, cancelled: CancelledError) -> Unknown | None:
        """The failure of a part that ended in a cancel; None if that was because it was not needed any more."""
        failure: Unknown
        if self._cut:
            failure = UnknownTimeout(f'part "{name}": no answer by the deadline')
            failure.waited_for = "deadline"
        elif self._told:
            return None
        else:
            failure = Unknown(f'part "{name}": cancelled, though nobody here cancelled it')
        failure.__cause__ = cancelled
        return failure

    def _cut_off(self) -> None:
        """The deadline is over, and what still runs does not know it."""
        self._cut = True
        self._end()

    def _end(self) -> None:
        """None of what still runs is needed; what was not started is not started."""
        self._told = True
        if self._timer is not None:
            self._timer.cancel()
        self._close()
        for future in tuple(self._running):
            future.cancel()

    def _first(self) -> str | None:
        """The part whose error is raised: one that ends programs, else the first required one that failed."""
        if not self._errors:
            return None
        fatal = (name for name, error in self._errors.items() if not isinstance(error, Exception))
        return next(fatal, next((name for name in self._errors if name in self._required), None))

    def _answer(self, name: str) -> Answer[Any]:
        error = cast("Exception | None", self._errors.get(name))  # any other would have been raised
        return self._values[name] if error is None else Answer(None, Source.STATIC, 0.0, error)

    def _close(self) -> None:
        while self._unstarted:
            close(self._unstarted.popleft()[1])

    def __del__(self) -> None:
        self._close()  # of a gather that was never awaited, or cancelled before its first turn


def checked(
    required: Mapping[str, Awaitable[Any]], optional: Mapping[str, Awaitable[Any]]
) -> dict[str, Awaitable[Any]]:
    """All parts by name, the required ones first. If one is none, all coroutines are closed, and ConfigError raised."""
    given = {"required": required, "optional": optional}
    try:
        check(given)
    except ConfigError:
        for parts in given.values():
            listed = parts if isinstance(parts, list | tuple | set) else [parts]
            for part in parts.values() if isinstance(parts, Mapping) else listed:
                close(part)
        raise
    return {**required, **optional}


def check(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for what is no part, or is one twice."""
    names: set[str] = set()
    seen: dict[int, str] = {}
    for argument, parts in given.items():
        if not isinstance(parts, Mapping):
            problem = f"{brief(parts)} is no mapping"
            raise ConfigError(f"gather {argument}", problem, "give the parts by name: {name: part}")
        for name, part in parts.items():
            twice = seen.setdefault(id(part), name)
            if not isinstance(name, str):
                problem, remedy = "the name is no str", "name the part by a str"
            elif name in names:
                problem, remedy = "the name is in required, too", "give each part a name of its own"
            elif type(part) is not CoroutineType and not isawaitable(part):
                problem, remedy = f"{brief(part)} is not awaitable", "give what a call gives: operation.ask(...)"
            elif twice is not name:
                problem, remedy = f"it is the part {brief(twice)}, too", "call once for each part"
            else:
                names.add(name)
                continue
            raise ConfigError(f"gather {argument}[{brief(name)}]", problem, remedy)


async def waiting_for(part: Awaitable[Any]) -> Any:
    """What any awaitable gives, as a coroutine."""
    return await part


def note(error: BaseException, text: str) -> None:
    """Add a note, once: an error that several ask for is raised several times."""
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)


def close(part: object) -> None:
    """Close a coroutine that will not be awaited, so that Python does not complain of it."""
    if isinstance(part, Coroutine):
        part.close()


def error_of(future: Future[Any]) -> BaseException | None:
    """What a future that is done raises, a CancelledError too."""
    try:
        future.result()  # not `exception()`: this one sets the traceback back, which grows with each raise
    except BaseException as error:  # noqa: BLE001 - looked at, not handled
        # Without the line that leads to this frame: it would keep all that is below it, and the failure made of this.
        return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    return None
