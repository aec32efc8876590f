"""The tiers of an operation, asked in order until one answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import iscoroutinefunction
from math import inf
from typing import Any

import msgspec

from fallbacks.answer import LIVE, Answer, Question, Source, Tier

Scope = Callable[[float], AbstractContextManager[object]]
"""Makes an instant the ambient deadline, for tiers that call other upstreams."""


LONGEST = 300
"""Characters of a foreign error that go into a message or a note."""
CANCELLED_INSIDE = "a task of its own was cancelled"


class Fallback:
    """The tiers in order. Each is limited in time, and in how many may be in it at once: a counter that never waits.

    `timeout` (seconds) is for tiers that do not say for themselves. A tier that fails, comes too late, is full or
    declines hands on to the next; each leaves a note on the error.
    """

    __slots__ = ("_running", "_scope", "failed", "limit", "tiers", "timeout")

    def __init__(
        self, tiers: Iterable[Tier], *, timeout: float = 0.1, limit: float = 10, scope: Scope = nullcontext
    ) -> None:
        self.tiers = tuple(tiers)
        self.timeout = timeout
        self.limit = limit
        self.failed = 0  # tiers that raised, came too late, or were full
        self._scope = scope
        self._running = [0] * len(self.tiers)

    @property
    def reserve(self) -> float:
        """Seconds to keep back for the tiers that may await; 0.0 where none does."""
        return max((self._timeout_of(tier) for tier in self.tiers if may_await(tier)), default=0.0)

    async def answer(self, question: Question) -> Answer[Any] | None:
        """The first answer; None when no tier has one."""
        return await kept(self.ask(question))

    def ask(self, question: Question) -> Answer[Any] | Awaitable[Answer[Any] | None] | None:
        """The same, at once as long as the tiers answer at once: what they remember, and defaults, cost no `await`."""
        if before := cancels():
            return self._after_a_look_round(question, before)
        return self._from(0, question, here_and_now(), 0)

    async def _after_a_look_round(self, question: Question, before: int) -> Answer[Any] | None:
        began = here_and_now()
        await asyncio.sleep(0)  # a cancel that is pending ends it here; those of the past are no news
        now = here_and_now()
        return await kept(self._from(0, later(question, now - began), now, before))

    def _from(
        self, place: int, question: Question, began: float, before: int
    ) -> Answer[Any] | Awaitable[Answer[Any] | None] | None:
        """The tiers from this place on. `began`: the loop's time at the question's now; `before`: cancels of old."""
        for tier in self.tiers[place:]:
            if question.outcome == "unknown" and not getattr(tier, "after_unknown", False):
                question.error.add_note(f"{name_of(tier)} was not asked: it may have taken effect")
                place += 1
                continue
            if place and (passed := here_and_now() - began):
                question, began = later(question, passed), began + passed
            try:
                answer = tier.answer(question)
                if answer is not None and type(answer) is not Answer:
                    return self._wait(place, tier, answer, question, began)
                answer = fitting(answer, question)
            except (Exception, asyncio.CancelledError) as error:
                if has_left(error, before):
                    raise
                self._note_failure(tier, question, error)  # whatever it raises, the next tier is asked
            else:
                if answer is not None:
                    return answer
                question.error.add_note(f"{name_of(tier)} had no answer")
            place += 1
        return None

    async def _wait(
        self, place: int, tier: Tier, promise: object, question: Question, began: float
    ) -> Answer[Any] | None:
        """What a tier has promised; else what the tiers after it have."""
        before = cancels()
        try:
            passed = here_and_now() - began
            found = await self._wait_for(place, tier, promise, later(question, passed) if passed else question)
            answer = fitting(found, question)
        except (Exception, asyncio.CancelledError) as error:
            if has_left(error, before):
                raise
            self._note_failure(tier, question, error)
        else:
            if answer is not None:
                return answer
            question.error.add_note(f"{name_of(tier)} had no answer")
        return await kept(self._from(place + 1, question, began, before))

    def _note_failure(self, tier: Tier, question: Question, error: BaseException) -> None:
        self.failed += 1
        why = CANCELLED_INSIDE if isinstance(error, asyncio.CancelledError) else told(error)
        question.error.add_note(f"{name_of(tier)} failed: {why}")

    async def _wait_for(self, place: int, tier: Tier, promise: object, question: Question) -> Answer[Any] | None:
        if not isinstance(promise, Awaitable):
            raise TypeError(f"answer() gave {promise!r}, which is no Answer, None or awaitable")
        if self._running[place] >= self.limit:
            dismiss(promise)
            raise RuntimeError(f"{self.limit} are in it already")
        patience = min(self._timeout_of(tier, question), question.deadline - question.now)
        if patience <= 0:
            dismiss(promise)
            raise TimeoutError("no time was left")
        running = self._running
        running[place] += 1
        try:
            with self._scope(question.now + patience):
                async with asyncio.timeout(None if patience == inf else patience):
                    answer: object = await promise
        finally:
            running[place] -= 1
        if answer is not None and not isinstance(answer, Answer):
            raise TypeError(f"answer() promised {answer!r}, which is no Answer or None")
        return answer

    def _timeout_of(self, tier: Tier, question: Question | None = None) -> float:
        timeout: float | None = getattr(tier, "timeout", None)
        if timeout is None:
            return self.timeout
        if question is not None and getattr(tier, "shares", False):
            return min(timeout, (question.deadline - question.now) / 2)
        return timeout


def may_await(tier: Tier) -> bool:
    """Whether a tier may take time: it says so (`awaits`), it names a timeout, or its `answer` is `async def`."""
    says = getattr(tier, "awaits", None)
    if says is not None:
        return bool(says)
    return getattr(tier, "timeout", None) is not None or iscoroutinefunction(tier.answer)


def name_of(tier: Tier) -> str:
    """What a note calls a tier."""
    return getattr(tier, "name", None) or type(tier).__name__


def fitting(answer: Answer[Any] | None, question: Question) -> Answer[Any] | None:
    """A tier's answer as the caller gets it; None for one that is too old for him."""
    if answer is None or answer.age > question.max_age:
        return None
    if type(answer.source) is not Source:
        raise TypeError(f"{answer.source!r} is no Source")
    return answer if answer.error is not None and answer.source is not LIVE else degraded(answer, question)


def degraded(answer: Answer[Any], question: Question) -> Answer[Any]:
    """A tier's answer that does not say what it stands in for, or that it does."""
    source = Source.HANDLER if answer.source is LIVE else answer.source
    error = question.error if answer.error is None else answer.error
    return msgspec.structs.replace(answer, source=source, error=error)


async def kept(promise: Answer[Any] | Awaitable[Answer[Any] | None] | None) -> Answer[Any] | None:
    """What was promised; what is there already, at once."""
    return promise if promise is None or isinstance(promise, Answer) else await promise


def here_and_now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def later(question: Question, passed: float) -> Question:
    """The same question, so many seconds later."""
    return msgspec.structs.replace(question, now=question.now + passed)


def told(error: BaseException) -> str:
    """An error in a message: short, whatever its `repr` does."""
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not replace the error
        text = type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def dismiss(promise: object) -> None:
    """Close a coroutine that will not be awaited, so that Python does not complain of it; a task is cancelled."""
    end = getattr(promise, "close", None) or getattr(promise, "cancel", None)
    if end is not None:
        end()


def has_left(error: BaseException, before: int) -> bool:
    """Whether it is the caller who was told to leave, and not something inside that was cancelled."""
    return isinstance(error, asyncio.CancelledError) and cancels() > before


@contextmanager
def cancelled_inside_has_failed() -> Iterator[None]:
    """For what others wrote: a CancelledError that its caller was not told is a failure of it, as any other."""
    before = cancels()
    try:
        yield
    except asyncio.CancelledError as error:
        if has_left(error, before):
            raise
        raise RuntimeError(CANCELLED_INSIDE) from error


def cancels() -> int:
    """How often the caller was told to leave."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
