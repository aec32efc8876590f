"""A fixed value, a function, another upstream: each alone."""

from __future__ import annotations

import asyncio
import gc
from asyncio import CancelledError, Future, create_task, sleep
from copy import deepcopy
from math import inf
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from fallbacks import Alternate, Answer, Fallback, Question, Source, Static, handler
from fallbacks.chain import may_await, name_of
from tests.support import Boom, now, steady, steps

pytestmark = pytest.mark.virtual_time


def question(*args: Any, kwargs: dict[str, Any] | None = None, **given: Any) -> Question:
    facts: dict[str, Any] = {"key": "k", "error": Boom(), "now": now(), "deadline": inf}
    return Question(args=args, kwargs=kwargs or {}, **{**facts, **given})


# -- Static


class Catalogue:
    """Equal only to itself, and its copies would be others."""


class Sealed:
    """Says no to whoever would copy it."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("one is enough")


@pytest.mark.parametrize("value", [None, 0, "", "s", (), (1, ("a",)), object(), Catalogue(), [object()], Sealed()])
async def test_a_static_answers_with_this_very_value(value: object) -> None:
    asked = question()

    answer = Static(value).answer(asked)

    assert answer == Answer(value, Source.STATIC, 0.0, asked.error)
    assert answer.value is value


@pytest.mark.parametrize("value", [[1], {"stars": [1]}, {1}, ([1],), bytearray(b"1")], ids=repr)
async def test_nobody_changes_the_default_of_another(value: Any) -> None:
    static, as_it_was = Static(value), deepcopy(value)

    mine = static.answer(question()).value
    inside = mine[0] if isinstance(mine, tuple) else mine.get("stars") if isinstance(mine, dict) else mine
    inside.clear()

    assert mine != as_it_was
    assert static.answer(question()).value == as_it_was
    assert value == as_it_was


def test_a_static_takes_no_time_and_is_silent_after_unknown_by_default() -> None:
    assert not may_await(Static("s"))
    assert Static("s").after_unknown is False
    assert Static("s", after_unknown=True).after_unknown is True


async def test_a_static_may_answer_after_unknown_if_it_says_so() -> None:
    answer = await Fallback([Static("s", after_unknown=True)]).answer(question(outcome="unknown"))

    assert answer.value == "s"


# -- handler


def seen(error: Exception, *args: object, **kwargs: object) -> tuple[object, ...]:
    return type(error), args, kwargs


async def seen_later(error: Exception, *args: object, **kwargs: object) -> tuple[object, ...]:
    await sleep(0.01)
    return seen(error, *args, **kwargs)


def seen_in_a_future(error: Exception, *args: object, **kwargs: object) -> Future[tuple[object, ...]]:
    return asyncio.ensure_future(seen_later(error, *args, **kwargs))


@pytest.mark.parametrize("function", [seen, seen_later, seen_in_a_future])
async def test_a_handler_gets_the_error_and_the_arguments(function: Any) -> None:
    asked = question(1, kwargs={"deep": True})

    answer = await Fallback([handler(function)]).answer(asked)

    assert answer == Answer((Boom, (1,), {"deep": True}), Source.HANDLER, 0.0, asked.error)


async def test_a_sync_handler_answers_at_once() -> None:
    assert type(handler(seen).answer(question())) is Answer


async def nothing_later(error: Exception) -> None:
    return None


@pytest.mark.parametrize("function", [lambda error: None, nothing_later], ids=["sync", "async"])
async def test_none_is_an_answer_of_a_handler(function: Any) -> None:
    answer = await Fallback([handler(function), Static("never asked")]).answer(question())

    assert (answer.value, answer.source) == (None, "handler")


async def test_a_handler_that_gives_an_answer_gives_a_value_like_any_other() -> None:
    inner = Answer("v")

    answer = await Fallback([handler(lambda error: inner)]).answer(question())

    assert answer.value is inner
    assert answer.degraded


async def test_a_handler_that_raises_hands_on() -> None:
    async def raises(error: Exception) -> None:
        raise error

    answer = await Fallback([handler(raises), handler(lambda: "takes no error"), Static("s")]).answer(question())

    assert answer.value == "s"


async def test_an_async_handler_has_its_own_time() -> None:
    async def slow(error: Exception) -> str:
        await sleep(0.4)
        return "slow"

    quick = Fallback([handler(slow, timeout=0.3), Static("s")], timeout=9.0)
    patient = Fallback([handler(slow, timeout=0.5), Static("s")], timeout=0.1)

    assert (await quick.answer(question())).value == "s"
    assert (await patient.answer(question())).value == "slow"


async def test_a_handler_that_nobody_awaits_is_closed_or_cancelled() -> None:
    started: list[int] = []
    cancelled: list[int] = []

    async def plan_b(error: Exception) -> None:
        started.append(1)
        try:
            await sleep(99)
        except CancelledError:
            cancelled.append(1)
            raise

    def in_a_task(error: Exception) -> object:
        return create_task(plan_b(error))

    async def ask() -> Answer[Any] | None:
        return await Fallback([handler(plan_b), handler(in_a_task)], limit=0).answer(question())

    answer = await ask()
    await steps(2)
    gc.collect()

    assert answer is None
    assert started == []  # told to leave before it began
    assert cancelled == []


def test_a_handler_goes_by_the_name_of_its_function() -> None:
    class Callable:
        def __call__(self, error: Exception) -> None: ...

        def __repr__(self) -> str:
            return "<mine>"

    assert name_of(handler(seen)) == "handler seen"
    assert name_of(handler(Callable())) == "handler <mine>"


@pytest.mark.parametrize("thing", [None, 5, "plan b", Static("s")], ids=steady)
def test_what_cannot_be_called_is_no_handler(thing: Any) -> None:
    with pytest.raises(TypeError, match="is not a function"):
        handler(thing)


def test_a_handler_may_await_and_says_how_long_and_when() -> None:
    plain, special = handler(seen), handler(seen, timeout=2.0, after_unknown=True)

    assert may_await(plain)
    assert (plain.timeout, plain.after_unknown) == (None, False)
    assert (special.timeout, special.after_unknown) == (2.0, True)


# -- Alternate


class Other:
    """An operation elsewhere."""

    name = "elsewhere"

    def __init__(self, *, seconds: float = 0.0, call: float | None = None, answer: Answer[Any] | None = None) -> None:
        self.asked: list[tuple[tuple[object, ...], dict[str, object]]] = []
        self.took: list[float] = []
        self._seconds = seconds
        self._answer = answer
        if call is not None:
            self.timeout = SimpleNamespace(call=call)

    async def ask(self, *args: object, **kwargs: object) -> Answer[Any]:
        self.asked.append((args, kwargs))
        began = now()
        try:
            await sleep(self._seconds)
        finally:
            self.took.append(now() - began)
        return self._answer or Answer("there")


async def test_an_alternate_asks_the_other_with_the_same_arguments() -> None:
    other = Other(answer=Answer("there", Source.LAST_GOOD, 7.0, Boom("theirs")))
    asked = question("alien", kwargs={"deep": True}, outcome="rejected")

    answer = await Fallback([Alternate(other)]).answer(asked)

    assert other.asked == [(("alien",), {"deep": True})]
    assert answer == Answer("there", Source.ALTERNATE, 7.0, asked.error)


@pytest.mark.parametrize(
    ("outcome", "idempotent", "not_sent", "asks"),
    [
        ("rejected", True, True, True),
        ("rejected", False, True, True),
        ("rejected", None, True, True),
        ("rejected", None, False, True),
        ("failed", True, False, True),
        ("failed", True, True, True),
        ("failed", False, True, True),
        ("failed", False, False, True),  # failed and not idempotent: it certainly took no effect
        ("failed", None, False, False),
        ("failed", None, True, True),
        ("unknown", True, False, False),
        ("unknown", False, False, False),
        ("unknown", None, False, False),
        ("unknown", None, True, False),
    ],
)
async def test_an_alternate_is_asked_only_where_the_call_may_be_made_again(
    outcome: str, idempotent: bool | None, not_sent: bool, asks: bool
) -> None:
    other = Other()

    promise = Alternate(other).answer(question(outcome=outcome, idempotent=idempotent, not_sent=not_sent))
    answer = None if promise is None else await promise

    assert (answer is not None) is asks
    assert len(other.asked) == asks


async def test_an_alternate_is_never_asked_after_unknown_by_a_chain() -> None:
    other = Other()

    assert await Fallback([Alternate(other)]).answer(question(outcome="unknown", idempotent=True)) is None
    assert other.asked == []


async def test_an_alternate_has_the_others_own_time() -> None:
    other = Other(seconds=99.0, call=4.0)

    await Fallback([Alternate(other)]).answer(question(idempotent=True, deadline=now() + 20.0))

    assert other.took == pytest.approx([4.0])


async def test_an_alternate_takes_no_more_than_half_of_what_is_left() -> None:
    first, second = Other(seconds=99.0, call=50.0), Other(seconds=99.0, call=50.0)
    tiers = [Alternate(first), Alternate(second), Static("s")]

    answer = await Fallback(tiers).answer(question(idempotent=True, deadline=now() + 20.0))

    assert answer.value == "s"
    assert (*first.took, *second.took) == pytest.approx((10.0, 5.0))


async def test_an_alternate_that_names_its_time_gets_all_of_it() -> None:
    other = Other(seconds=99.0, call=1.0)

    await Fallback([Alternate(other, timeout=15.0)]).answer(question(idempotent=True, deadline=now() + 20.0))

    assert other.took == pytest.approx([15.0])


async def test_an_alternate_of_which_nobody_says_how_long_has_the_common_time() -> None:
    other = Other(seconds=99.0)

    await Fallback([Alternate(other)], timeout=0.25).answer(question(idempotent=True))

    assert other.took == pytest.approx([0.25])


async def test_an_alternate_that_fails_hands_on() -> None:
    class Broken(Other):
        async def ask(self, *args: object, **kwargs: object) -> Answer[Any]:
            raise Boom

    fallback = Fallback([Alternate(Broken()), Static("s")])

    answer = await fallback.answer(asked := question(idempotent=True))

    assert answer.value == "s"
    assert asked.error.__notes__ == ["alternate elsewhere failed: Boom()"]


def test_an_alternate_goes_by_the_name_of_the_other() -> None:
    class Nameless:
        def ask(self) -> Any: ...

        def __repr__(self) -> str:
            return "<nameless>"

    assert name_of(Alternate(Other())) == "alternate elsewhere"
    assert name_of(Alternate(Nameless())) == "alternate <nameless>"


def test_an_alternate_may_await() -> None:
    assert may_await(Alternate(Other()))
    assert Fallback([Alternate(Other(call=4.0))], timeout=0.1).reserve == 4.0
    assert Fallback([Alternate(Other(call=4.0), timeout=2.0)], timeout=0.1).reserve == 2.0
