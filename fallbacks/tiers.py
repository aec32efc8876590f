"""The tiers that remember nothing: a fixed value, a function, another upstream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable
from typing import Any, Protocol

from fallbacks.answer import Answer, Question, Source
from fallbacks.chain import dismiss
from fallbacks.copying import copied

STATIC = Source.STATIC  # a module global, as LIVE is


class Static:
    """A default that is always there: Static([]) answers with an empty list when nothing better is left.

    It stands last. What can be changed is copied for each who gets it, so that no caller changes another's default.
    `after_unknown=True`: answer even when the call may have taken effect.
    """

    __slots__ = ("_shared", "after_unknown", "value")

    awaits = False

    def __init__(self, value: Any, *, after_unknown: bool = False) -> None:
        self.value = value
        self.after_unknown = after_unknown
        self._shared = is_for_all(value)

    def answer(self, question: Question, /) -> Answer[Any]:
        """The default."""
        return Answer(self.value if self._shared else copied(self.value), STATIC, 0.0, question.error)


def is_for_all(value: Any) -> bool:
    """Whether everybody may have this very value: nobody can change it, or no copy of it would be the same.

    The latter is an object that only equals itself, such as `MISSING = object()`, and what cannot be copied at all.
    """
    try:
        copy = copied(value)
        return copy is value or bool(copy != value)
    except Exception:  # noqa: BLE001 - of a user's own kind
        return True


class Handler:
    """A function that answers instead: called with the error and the call's own arguments. Made by `handler`."""

    __slots__ = ("_function", "after_unknown", "name", "timeout")

    awaits = True

    def __init__(self, function: Callable[..., Any], *, timeout: float | None, after_unknown: bool) -> None:
        if not callable(function):
            raise TypeError(f"handler: {function!r} is not a function")
        self._function = function
        self.name = f"handler {getattr(function, '__name__', repr(function))}"
        self.timeout = timeout
        self.after_unknown = after_unknown

    def answer(self, question: Question, /) -> Answer[Any] | Awaitable[Answer[Any]]:
        """What the function makes of it, at once or in a while.

        It is called in the handling of the error: `log.exception("...")` tells of it, `raise` hands on.
        """
        error = question.error
        shown = error.__traceback__
        try:
            raise error  # noqa: TRY301
        except Exception:  # noqa: BLE001 - an error that a tier may answer was not raised yet
            value = self._function(error, *question.args, **question.kwargs)
        finally:
            error.__traceback__ = shown  # without this frame, which leads to the error
        if isawaitable(value):
            return Later(value, question)
        return Answer(value, Source.HANDLER, 0.0, error)


class Later:
    """What an async handler will answer. Await it, or close it."""

    __slots__ = ("_question", "_value")

    def __init__(self, value: Awaitable[Any], question: Question) -> None:
        self._value = value
        self._question = question

    def __await__(self) -> Generator[Any, None, Answer[Any]]:
        error = self._question.error
        shown = error.__traceback__
        try:
            raise error  # noqa: TRY301 - as in `Handler.answer`
        except Exception:  # noqa: BLE001
            value = yield from self._value.__await__()
        finally:
            error.__traceback__ = shown
        return Answer(value, Source.HANDLER, 0.0, error)

    def close(self) -> None:
        """Nobody will await it."""
        dismiss(self._value)


def handler(function: Callable[..., Any], *, timeout: float | None = None, after_unknown: bool = False) -> Handler:
    """A function as a tier: `handler(fn)` answers with `fn(error, *args, **kwargs)`, sync or async.

    It runs in the handling of the error: `log.exception("...")` tells of that, a bare `raise` hands on. Its None is an
    answer; to hand on to the next tier it raises. `timeout` is in seconds, by default the policy's
    `fallback_timeout`. A sync function runs on the event loop, so it must be quick. Raises TypeError for no function.
    """
    return Handler(function, timeout=timeout, after_unknown=after_unknown)


class Askable(Protocol):
    """Anything with `ask`: an operation of another upstream."""

    def ask(self, *args: Any, **kwargs: Any) -> Awaitable[Answer[Any]]:
        """An answer."""
        ...


class Alternate:
    """Another operation with the same arguments: a second provider, another region.

    Asked after a rejection or a failure that is safe to repeat elsewhere, never when the call may have taken effect.
    `timeout` (seconds) is by default the other operation's `timeout.call`, but never more than half of what is left.
    """

    __slots__ = ("_timeout", "operation")

    awaits = True
    after_unknown = False

    def __init__(self, operation: Askable, *, timeout: float | None = None) -> None:
        self.operation = operation
        self._timeout = timeout

    @property
    def name(self) -> str:
        """What a note calls it."""
        return f"alternate {getattr(self.operation, 'name', repr(self.operation))}"

    @property
    def timeout(self) -> float | None:
        """Seconds it may take; None where neither we nor the other operation say."""
        if self._timeout is not None:
            return self._timeout
        limit: float | None = getattr(getattr(self.operation, "timeout", None), "call", None)
        return limit

    @property
    def shares(self) -> bool:
        """Whether it takes no more than half of what is left, for the sake of the tiers after it."""
        return self._timeout is None

    def answer(self, question: Question, /) -> Awaitable[Answer[Any]] | None:
        """The other operation's answer, if the call may be made again at all."""
        if question.outcome == "unknown":
            return None
        if question.outcome == "failed" and question.idempotent is None and not question.not_sent:
            return None
        return self._ask(question)

    async def _ask(self, question: Question) -> Answer[Any]:
        answer = await self.operation.ask(*question.args, **question.kwargs)
        return Answer(answer.value, Source.ALTERNATE, answer.age, question.error, answer.stored_at)
