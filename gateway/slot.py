"""A block of code as a call: `async with upstream.slot():`.

There is one place where a call lives, `Operation._ask`, and a block is one of its calls. That of a block sends itself a
function that stops where the block begins. Entering drives the coroutine of the call by hand, in the caller's own task
and context, up to there; leaving takes it on, with the block's error if it has one, to its end. So a block has the
pool, the circuit, the limits on time, the numbers and the events of an operation, and the engine knows nothing of it.
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Coroutine, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from math import inf
from types import TracebackType, coroutine
from typing import Any, Literal, NamedTuple, NoReturn, Self, cast

from fallbacks.answer import Tier
from gateway.call import Call
from gateway.context import AMBIENT, Clock, Deadline
from gateway.host import Host
from gateway.lane import Timer
from gateway.operation import Operation
from gateway.outcome import ConfigError, Failed
from gateway.policy import Policy, TimeoutPolicy, given
from gateway.terms import Terms, are_types

BEGUN = object()
"""What the call of a block yields instead of something to wait for: the place is taken, the limit on time runs."""
MOST_NAMES = 64
"""The most names that the slots of one upstream may have: each has numbers that are kept."""
Refusals = Sequence[type[BaseException]]


@coroutine
def stop_here(block: object) -> Generator[object, None, None]:
    """The function of a block's call: it is over when the block is."""
    yield block


@coroutine
def until_begun(call: Coroutine[Any, Any, Any], upstream: Host) -> Generator[Any, Any, float]:
    """Take a call to where its block begins, and wait in its place for what it waits for; the seconds it waited."""
    try:
        awaited = call.send(None)
        if awaited is BEGUN:
            return 0.0
        clock: Clock = upstream.clock  # not before: the first call of all is told the time by another clock
        asked_at = clock()
        while awaited is not BEGUN:
            thrown: BaseException | None = None
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - a cancel is for the call, which knows what to do
                thrown = error
            if thrown is None:
                awaited = call.send(sent)
                continue
            try:
                awaited = call.throw(thrown)  # not up there: all that the call raises would have it as its context
            finally:
                del thrown  # its traceback leads to this frame
        return clock() - asked_at
    except StopIteration:
        raise RuntimeError("the call of a slot was answered without its block") from None


def end(call: Coroutine[Any, Any, Any], error: BaseException | None) -> None:
    """Take a call to its end, after its block; raises FailedTimeout if the limit on time has ended that."""
    shown = None if error is None else error.__traceback__
    try:
        if error is None:
            call.send(None)
        else:
            call.throw(error)
    except StopIteration:
        pass
    except Failed as failure:
        if failure is not error and failure.waited_for is not None:
            raise failure.with_traceback(None)  # noqa: B904 - the block's error is its cause already
    except BaseException as raised:
        if raised is not error:
            raise
    else:
        call.close()
        raise RuntimeError("the call of a slot did not end with its block")
    finally:
        if error is not None:
            error.__traceback__ = shown  # it goes on as if only the block had been there


class Said(NamedTuple):
    """What a user says of the slots of one name."""

    name: str
    timeout: TimeoutPolicy | None
    refused: tuple[type[BaseException], ...]
    circuit_by: Literal["operation"] | ContextVar[Any] | None
    caller: ContextVar[Any] | None


class Block(Operation[[object], None]):
    """What the blocks of one name are calls of: never repeated, and answered by nobody else."""

    repeats = False
    names_callers = False  # it is made where it runs, too late for a no

    def __init__(self, upstream: Host, policy: Policy, said: Said) -> None:
        super().__init__(
            upstream,
            policy,
            stop_here,
            stop_here,
            name=said.name,
            idempotent=True,  # or it would be logged that nobody said so
            said=Terms(refused=said.refused, timeout=said.timeout, circuit_by=said.circuit_by, caller=said.caller),
        )
        self.idempotent = None
        self._said = said

    def is_said(self, said: Said) -> bool:
        """Whether this is what was said of it at first."""
        known = self._said
        same = said.circuit_by is known.circuit_by and said.caller is known.caller and said.refused == known.refused
        return same and (said.timeout is known.timeout or limits_given(said.timeout) == limits_given(known.timeout))

    def _pause(self, call: Call) -> None:
        """No next try, whatever its failure allows: a block runs once."""

    def _add(self, tier: Tier) -> NoReturn:
        field = f"{self.upstream.name}.{self.name} fallback"
        raise ConfigError(field, f"{tier!r} cannot stand in for a block of code", "catch what the slot raises")


def known_block(upstream: str, operations: Mapping[str, Operation[..., Any]], said: Said) -> Block | None:
    """The block of this name; None if the name is free. A ConfigError for what was said otherwise before."""
    known = operations.get(said.name)
    if isinstance(known, Block) and known.is_said(said):
        return known
    field = f"{upstream}.slot({said.name!r})"
    if isinstance(known, Block):
        problem = "it was used with another timeout=, refused=, circuit_by= or caller="
        raise ConfigError(field, problem, "say the same each time, or give another name")
    if known is not None:
        raise ConfigError(field, "an operation of that name is registered already", 'give another: slot("...")')
    if sum(isinstance(operation, Block) for operation in operations.values()) >= MOST_NAMES:
        problem = f"there are {MOST_NAMES} names of slots already, and the numbers of each are kept"
        raise ConfigError(field, problem, "name what kind of block it is, not which one")
    return None


def checked(
    upstream: str, name: object, *, timeout: object, refused: object, circuit_by: object, caller: object
) -> Said:
    """What was said of a slot; a ConfigError for what cannot be."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{upstream}.slot name", f"{name!r} is no name", "give a non-empty str")
    if refused != () and not are_types(refused):
        raise ConfigError(f"{upstream}.slot({name!r}) refused", f"{refused!r} does not fit", "give a tuple of types")
    if timeout is not None and not isinstance(timeout, TimeoutPolicy):
        raise ConfigError(f"{upstream}.slot({name!r}) timeout", f"{timeout!r} does not fit", "give TimeoutPolicy(...)")
    if circuit_by not in (None, "operation") and not isinstance(circuit_by, ContextVar):
        remedy = 'give "operation" or a ContextVar: a block has no arguments'
        raise ConfigError(f"{upstream}.slot({name!r}) circuit_by", f"{circuit_by!r} does not fit", remedy)
    if not isinstance(caller, ContextVar | None):
        remedy = "give a ContextVar: a block has no arguments"
        raise ConfigError(f"{upstream}.slot({name!r}) caller", f"{caller!r} does not fit", remedy)
    return Said(name, timeout, tuple(cast("Refusals", refused)), circuit_by, caller)


def limits_given(timeout: TimeoutPolicy | None) -> dict[str, float]:
    """What a user said of the time: a number that nobody gave is equal to one that somebody did, and means less."""
    if timeout is None:
        return {}
    return {f.name: value for f in fields(timeout) if given(value := getattr(timeout, f.name))}


class Slot:
    """A place with an upstream for a block of code: made by `Upstream.slot()`, entered once, left by the same task.

        async with warehouse.slot() as slot:
            ...                                 # in the pool, under the circuit, limited in time

    `waited`: the seconds it waited for its place. Leaving never awaits, so it cannot be cancelled.
    """

    __slots__ = ("__weakref__", "_block", "_call", "_limit", "_outer_at", "waited")

    def __init__(self, block: Block) -> None:
        self._block: Block | None = block  # until it is entered
        self._call: Coroutine[Any, Any, Any] | None = None  # while the block runs, and so is
        self._limit: Timer | None = None
        self._outer_at = inf
        self.waited = 0.0

    @property
    def deadline(self) -> Deadline | None:
        """When the block is told to end: its own limit, or an outer deadline if that is sooner. None: never."""
        limit = self._limit
        return None if limit is None or limit.at == inf else Deadline(limit.at, limit.world.clock)

    async def __aenter__(self) -> Self:
        block, self._block = self._block, None
        if block is None:
            raise RuntimeError("a slot is entered once; make another with upstream.slot()")
        outer = AMBIENT.get()
        if outer is not None:
            self._outer_at = outer.at
        call = block.ask(BEGUN)
        self.waited = await until_begun(call, block.upstream)
        self._call, self._limit = call, cast("Timer", AMBIENT.get())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        limit, self._limit = self._limit, None
        if call is None or limit is None:
            raise RuntimeError("a slot is left once, after it was entered")
        here = current_task(limit.task.get_loop()) is limit.task
        if not here or AMBIENT.get() is not limit:
            limit.at = self._outer_at  # out of turn it stays ambient, or comes back as such: let it limit nobody
        del limit  # it leads to the task, and so to its error, and so to this frame
        if here:
            end(call, error)
            return
        call.close()
        if error is None or isinstance(error, Exception):  # else the end of a generator that nobody finished, say
            raise RuntimeError("a slot is left by the task that entered it; its place is free again")
