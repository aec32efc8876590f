"""The tiers in the engine: who is asked, in which order, for how long, and whose value it is."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from aiocache import SimpleMemoryCache

from gateway import (
    Alternate,
    Answer,
    AttemptFailed,
    BreakerPolicy,
    CallFinished,
    CircuitOpen,
    Deadline,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    NotSent,
    Operation,
    Policy,
    Question,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Unknown,
    handler,
)
from gateway.testing import Faults, VirtualTimeLoop
from tests.support import QUIET, Boom, counted, ended, now, steps


@pytest.fixture
def failing(gate: Gateway) -> Operation[..., Any]:
    """An operation that fails."""

    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask(*args: object, **kwargs: object) -> object:
        raise Boom

    return ask


class Recording:
    """A tier that says what it was asked."""

    def __init__(self, answer: Answer[Any] | None = None) -> None:
        self.questions: list[Question] = []
        self._answer = answer

    def answer(self, question: Question) -> Answer[Any] | None:
        self.questions.append(question)
        return self._answer


# -- order


@pytest.mark.virtual_time
async def test_the_tiers_are_asked_in_order_until_one_answers(failing: Operation[..., Any]) -> None:
    asked = []

    def declines(error: Exception) -> None:
        asked.append("first")
        raise Boom

    async def answers(error: Exception) -> str:
        asked.append("second")
        return "second"

    failing.fallback(declines)
    failing.fallback(answers)
    failing.fallback(lambda error: asked.append("third"))

    answer = await failing.ask()

    assert asked == ["first", "second"]
    assert (answer.value, answer.source, answer.degraded) == ("second", "handler", True)
    assert type(answer.error) is Failed
    assert len(answer.error.__notes__) == 1
    assert counted(failing.upstream) == {"asked": 1, "handler": 1, "attempts": 1, "fallback_failed": 1}


@pytest.mark.virtual_time
async def test_when_none_answers_the_error_has_a_note_from_each(failing: Operation[..., Any]) -> None:
    class NoAnswer:
        name = "the empty shelf"

        def answer(self, question: Question) -> None:
            return None

    failing.fallback(LastGood())
    failing.fallback(NoAnswer())
    failing.fallback(handler(lambda error: 1 / 0))

    error = await ended(failing())

    assert [note.split(" ")[0] for note in error.__notes__] == ["LastGood", "the", "handler"]
    assert counted(failing.upstream) == {"asked": 1, "failed": 1, "attempts": 1, "fallback_failed": 1}


@pytest.mark.virtual_time
async def test_no_tier_is_asked_when_there_is_a_live_answer(gate: Gateway) -> None:
    tier = Recording(Answer("t", Source.STATIC))
    operation = gate.upstream("world").operation(name="ask", fallback=[tier])(lambda: "live")

    assert await operation.ask() == Answer("live")
    assert not tier.questions
    await gate.close()


@pytest.mark.virtual_time
async def test_a_tier_is_asked_with_all_there_is_to_know(failing: Operation[..., Any]) -> None:
    tier = Recording(Answer("t", Source.STATIC))
    failing.fallback(tier)
    began = now()

    answer = await failing.ask(1, deep=True)

    (question,) = tier.questions
    assert question.args == (1,)
    assert question.kwargs == {"deep": True}
    assert question.error is answer.error
    assert question.now == began
    assert question.deadline == began + 20.0
    assert (question.outcome, question.idempotent, question.not_sent) == ("failed", True, False)
    assert question.key is not None
    with pytest.raises(AttributeError):
        question.key = None  # type: ignore[misc]


@pytest.mark.virtual_time
async def test_a_tier_is_told_when_nothing_was_sent(gate: Gateway) -> None:
    tier = Recording(Answer("t", Source.STATIC))
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=False, fallback=[tier])
    async def ask() -> None:
        raise NotSent

    await ask()
    up.isolate()
    await ask()
    up.restore()

    assert [(question.outcome, question.not_sent) for question in tier.questions] == [
        ("failed", True),
        ("rejected", True),
    ]


@pytest.mark.virtual_time
async def test_a_tier_is_told_the_time_and_that_which_the_tiers_before_it_took(failing: Operation[..., Any]) -> None:
    tier = Recording(Answer("t", Source.STATIC))

    @failing.fallback(timeout=1.0)
    async def slow(error: Exception) -> None:
        await asyncio.sleep(0.75)
        raise Boom

    failing.fallback(tier)
    began = now()
    await failing()

    assert tier.questions[0].now == pytest.approx(began + 0.75)


@pytest.mark.virtual_time
async def test_a_tier_of_ones_own_may_answer_without_saying_whence(failing: Operation[..., Any]) -> None:
    failing.fallback(Recording(Answer("t")))

    answer = await failing.ask()

    assert (answer.value, answer.degraded, type(answer.error)) == ("t", True, Failed)
    assert answer.source is not Source.LIVE
    assert "live" not in counted(failing.upstream)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "nonsense", ["a text", 5, Answer("t", "a source of its own")], ids=["text", "number", "source"]
)
async def test_a_tier_that_answers_nonsense_hands_on(failing: Operation[..., Any], nonsense) -> None:
    async def in_a_while() -> object:
        return nonsense

    class Later:
        def answer(self, question: Question) -> object:
            return in_a_while()

    failing.fallback(Recording(nonsense))
    failing.fallback(Later())
    failing.fallback(Static("s"))

    answer = await failing.ask()

    assert answer.value == "s"
    assert len(answer.error.__notes__) == 2
    assert counted(failing.upstream)["fallback_failed"] == 2


class Unprintable(Exception):
    def __repr__(self) -> str:
        raise ValueError("it cannot be printed")

    __str__ = __repr__


@pytest.mark.virtual_time
async def test_a_tier_whose_error_cannot_even_be_printed_hands_on(failing: Operation[..., Any]) -> None:
    def raises(error: Exception) -> None:
        raise Unprintable

    failing.fallback(raises)
    failing.fallback(Static("s"))

    answer = await failing.ask()

    assert answer.value == "s"
    assert "raises" in answer.error.__notes__[0]


@pytest.mark.virtual_time
async def test_an_error_that_cannot_even_be_printed_is_a_failure_like_others(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Unprintable

    error = await ended(ask())

    assert type(error) is Failed
    assert "Unprintable" in str(error)


# -- Static, handler


@pytest.mark.virtual_time
@pytest.mark.parametrize("value", [None, 0, [], "s"], ids=["nothing", "zero", "list", "text"])
async def test_a_static_answers_with_anything(failing: Operation[..., Any], value) -> None:
    failing.fallback(Static(value))

    answer = await failing.ask()

    assert (answer.value, answer.source, answer.age, answer.degraded) == (value, "static", 0.0, True)


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["sync", "async", "a future"])
async def test_a_handler_gets_the_error_and_the_arguments_and_none_is_an_answer(
    failing: Operation[..., Any], how
) -> None:
    seen: list[tuple[object, ...]] = []

    def sync(error: Exception, movie: str, *, deep: bool) -> None:
        seen.append((type(error), movie, deep))

    async def later(error: Exception, movie: str, *, deep: bool) -> None:
        sync(error, movie, deep=deep)

    def future(error: Exception, movie: str, *, deep: bool) -> object:
        return asyncio.ensure_future(later(error, movie, deep=deep))

    failing.fallback({"sync": sync, "async": later, "a future": future}[how])
    failing.fallback(Static("never asked"))

    answer = await failing.ask("alien", deep=True)

    assert (answer.value, answer.source) == (None, "handler")
    assert seen == [(Failed, "alien", True)]


@pytest.mark.virtual_time
async def test_a_handler_of_a_method_gets_its_object(gate: Gateway) -> None:
    up = gate.upstream("movies", policy=QUIET)

    class Movies:
        shop = "corner"

        @up.operation(idempotent=True)
        async def stars(self, movie: str) -> str:
            raise Boom

        @stars.fallback
        async def plan_b(self_is_the_error, self: Movies, movie: str) -> str:  # noqa: N805 - the error comes first
            return f"{self.shop}: {movie}"

    assert await Movies().stars("alien") == "corner: alien"


@pytest.mark.virtual_time
async def test_what_a_handler_does_with_the_arguments_of_the_wrong_shape_is_its_failure(
    failing: Operation[..., Any],
) -> None:
    failing.fallback(lambda error: "too few")
    failing.fallback(Static("s"))

    assert await failing("alien") == "s"


@pytest.mark.virtual_time
async def test_a_handler_may_raise_anything_and_the_error_stays_that_of_the_call(failing: Operation[..., Any]) -> None:
    failing.fallback(handler(raises_refused))

    error = await ended(failing())

    assert type(error) is Failed
    assert "Refused" in error.__notes__[0]


def raises_refused(error: Exception) -> None:
    raise Refused("plan B says no")


# -- after unknown


@pytest.mark.virtual_time
async def test_no_tier_answers_an_unknown_end_unless_it_says_so(gate: Gateway) -> None:
    asked = []
    up = gate.upstream("payments", policy=QUIET)

    @up.operation(idempotent=False, fallback=[Static("never asked")])
    async def pay() -> None:
        raise Boom

    @up.operation(idempotent=False)
    async def pay_bravely() -> None:
        raise Boom

    @pay_bravely.fallback
    def timid(error: Exception) -> None:
        asked.append("timid")

    @pay_bravely.fallback(after_unknown=True)
    def brave(error: Exception) -> str:
        asked.append("brave")
        return "look it up later"

    error, answer = await ended(pay()), await pay_bravely.ask()

    assert type(error) is Unknown
    assert "may have taken effect" in error.__notes__[0]
    assert answer.value == "look it up later"
    assert type(answer.error) is Unknown
    assert asked == ["brave"]
    assert counted(up) == {"asked": 2, "unknown": 1, "handler": 1, "attempts": 2}


@pytest.mark.virtual_time
async def test_memory_may_answer_after_unknown_if_it_says_so(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    ends = [1, Boom(), Boom()]

    def judge(what: object) -> object:
        return "unknown" if isinstance(what, Boom) else None

    @up.operation(idempotent=True, classify=judge, fallback=[LastGood(after_unknown=True)])
    async def ask() -> int:
        if isinstance(end := ends.pop(0), Exception):
            raise end
        return end

    await ask()

    assert (await ask.ask()).source == "last_good"


# -- limits


@pytest.mark.virtual_time
async def test_a_tier_has_the_policys_time_or_its_own(failing: Operation[..., Any]) -> None:
    took = []

    async def slow(error: Exception) -> None:
        began = now()
        try:
            await asyncio.sleep(99)
        finally:
            took.append(now() - began)

    failing.fallback(slow)
    failing.fallback(timeout=0.7)(slow)
    failing.upstream.tune(fallback_timeout=0.3)

    await ended(failing())

    assert took == pytest.approx([0.3, 0.7])


@pytest.mark.virtual_time
async def test_no_more_than_the_limit_are_in_a_tier_and_the_next_is_asked_at_once(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, fallback_limit=2))
    inside = []

    @up.operation(idempotent=True)
    async def ask(number: int) -> None:
        raise Boom

    @ask.fallback
    async def slow(error: Exception, number: int) -> str:
        inside.append(number)
        await asyncio.sleep(0.05)
        return "slow"

    ask.fallback(Static("s"))
    answers = await asyncio.gather(*(ask.ask(number) for number in range(5)))

    assert [answer.value for answer in answers] == ["slow", "slow", "s", "s", "s"]
    assert inside == [0, 1]
    assert counted(up)["fallback_failed"] == 3
    assert await ask(9) == "slow"


@pytest.mark.virtual_time
@pytest.mark.parametrize("why", ["full", "no time"])
async def test_a_coroutine_that_is_not_awaited_is_closed(gate: Gateway, why: str) -> None:  # hole 14
    up = gate.upstream("world", policy=replace(QUIET, fallback_limit=1))

    @up.operation(idempotent=True)
    async def ask() -> None:
        await steps(1)
        raise Boom

    @ask.fallback
    async def plan_b(error: Exception) -> str:
        await asyncio.sleep(0.01)
        return "b"

    ask.fallback(Alternate(ask_of(gate.upstream("other"))))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if why == "full":
            await asyncio.gather(ended(ask()), ended(ask()), ended(ask()))
        else:
            with Deadline.after(0.0):
                await ended(ask())
        gc.collect()

    assert not warned


def ask_of(up) -> Operation[..., Any]:
    async def ask() -> str:
        await asyncio.sleep(0.01)
        return up.name

    return up.operation(name="ask", idempotent=True)(ask)


# -- Alternate


@pytest.mark.virtual_time
async def test_an_alternate_asks_the_other_upstream_with_the_same_arguments(gate: Gateway) -> None:
    one, two = gate.upstream("one", policy=QUIET), gate.upstream("two", policy=QUIET)

    @two.operation(idempotent=True)
    async def mirror(movie: str, *, deep: bool = False) -> tuple[str, bool]:
        return movie, deep

    @one.operation(idempotent=True, fallback=[Alternate(mirror), Static("never asked")])
    async def ask(movie: str, *, deep: bool = False) -> tuple[str, bool]:
        raise Boom

    answer = await ask.ask("alien", deep=True)

    assert (answer.value, answer.source, answer.age) == (("alien", True), "alternate", 0.0)
    assert answer.error.upstream == "one"
    assert counted(one) == {"asked": 1, "alternate": 1, "attempts": 1}
    assert counted(two) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.virtual_time
async def test_an_alternate_that_is_itself_degraded_hands_its_age_on(gate: Gateway) -> None:
    two = gate.upstream("two", policy=QUIET)

    @two.operation(idempotent=True, fallback=[LastGood()])
    async def mirror() -> str:
        return "old"

    @gate.upstream("one", policy=QUIET).operation(idempotent=True, fallback=[Alternate(mirror)])
    async def ask() -> str:
        raise Boom

    await mirror()
    await asyncio.sleep(7.0)
    with Faults(mirror).error(Boom):
        answer = await ask.ask()

    assert (answer.value, answer.source, answer.age) == ("old", "alternate", 7.0)


@pytest.mark.virtual_time
async def test_alternates_may_stand_in_a_row(gate: Gateway) -> None:
    third = ask_of(gate.upstream("third", policy=QUIET))
    second = ask_of(gate.upstream("second", policy=QUIET))
    first = ask_of(gate.upstream("first", policy=QUIET))
    second.fallback(Alternate(third))
    first.fallback(Alternate(second))

    with Faults(first).error(Boom), Faults(second).error(Boom):
        answer = await first.ask()

    assert answer.value == "third"


@pytest.mark.virtual_time
async def test_an_alternate_gets_its_own_time_but_never_more_than_half_of_what_is_left(gate: Gateway) -> None:
    took = []

    @gate.upstream("two", policy=replace(QUIET, timeout=TimeoutPolicy(call=50.0))).operation(idempotent=True)
    async def mirror() -> None:
        began = now()
        try:
            await asyncio.sleep(99)
        finally:
            took.append(now() - began)

    @gate.upstream("one", policy=QUIET).operation(idempotent=True, fallback=[Alternate(mirror)])
    async def ask() -> None:
        raise Boom

    ask.fallback(Alternate(mirror, timeout=3.0))
    error = await ended(ask())

    assert took == pytest.approx([10.0, 3.0])
    assert len(error.__notes__) == 2


@pytest.mark.virtual_time
async def test_an_alternate_of_a_method_has_the_methods_time(gate: Gateway) -> None:
    up = gate.upstream("two", policy=replace(QUIET, timeout=TimeoutPolicy(call=4.0)))

    class Movies:
        @up.operation(idempotent=True)
        async def stars(self) -> str:
            await asyncio.sleep(2.0)
            return "stars"

    @gate.upstream("one", policy=QUIET).operation(idempotent=True, fallback=[Alternate(Movies().stars)])
    async def ask() -> str:
        raise Boom

    assert await ask() == "stars"


@pytest.mark.virtual_time
async def test_anything_with_ask_is_an_alternate(failing: Operation[..., Any]) -> None:
    class Elsewhere:
        async def ask(self, movie: str) -> Answer[str]:
            return Answer(movie)

    failing.fallback(Alternate(Elsewhere()))

    answer = await failing.ask("alien")

    assert (answer.value, answer.source) == ("alien", "alternate")


@pytest.mark.virtual_time
async def test_an_alternate_is_asked_after_what_was_not_sent_whoever_asks(gate: Gateway) -> None:
    mirror = ask_of(gate.upstream("two"))

    @gate.upstream("one", policy=QUIET).operation(idempotent=False, fallback=[Alternate(mirror)])
    async def pay() -> None:
        raise NotSent

    assert await pay() == "two"


# -- LastGood


@pytest.mark.virtual_time
async def test_the_last_live_value_answers_with_its_age(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(max_age=10.0)])
    async def ask(movie: str) -> str:
        return movie + str(now())

    first = await ask("alien")
    await asyncio.sleep(1.0)
    second = await ask("alien")
    await asyncio.sleep(10.0)
    with Faults(ask).error(Boom).error(Boom).error(Boom):
        answer = await ask.ask("alien")
        other = await ended(ask("brazil"))
        await asyncio.sleep(0.001)
        too_old = await ended(ask("alien"))

    assert first != second
    assert (answer.value, answer.source, answer.age) == (second, "last_good", pytest.approx(10.0))
    assert type(other) is Failed
    assert type(too_old) is Failed


@pytest.mark.virtual_time
async def test_only_live_values_are_remembered(gate: Gateway) -> None:  # promise 7
    mirror = ask_of(gate.upstream("two"))
    up = gate.upstream("one", policy=QUIET)
    memory = LastGood()

    @up.operation(idempotent=True, fallback=[memory, Alternate(mirror)])
    async def ask() -> str:
        raise Boom

    answers = [await ask.ask() for _ in range(2)]

    assert [answer.source for answer in answers] == ["alternate", "alternate"]
    assert len(memory) == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize("when", ["given", "served", "kept by the function"])
async def test_who_changes_an_answer_changes_nobody_elses(gate: Gateway, when: str) -> None:
    up = gate.upstream("world", policy=QUIET)
    kept = [{"stars": [5]}]

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask() -> list[dict[str, list[int]]]:
        return kept

    live = await ask()
    with Faults(ask).error(Boom).error(Boom):
        first = await ask()
        {"given": live, "served": first, "kept by the function": kept}[when][0]["stars"].append(1)
        second = await ask()

    assert second == [{"stars": [5]}]


@pytest.mark.virtual_time
async def test_one_memory_may_serve_two_operations_and_keeps_them_apart(gate: Gateway) -> None:
    memory = LastGood()
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[memory])
    async def stars(movie: str) -> str:
        return "stars of " + movie

    @up.operation(idempotent=True, fallback=[memory])
    async def price(movie: str) -> str:
        return "price of " + movie

    await stars("alien")
    await price("alien")
    with Faults(stars).error(Boom), Faults(price).error(Boom):
        assert (await stars("alien"), await price("alien")) == ("stars of alien", "price of alien")


@pytest.mark.virtual_time
async def test_calls_are_told_apart_by_arguments_and_their_types_not_by_their_spelling(gate: Gateway) -> None:  # hole 8
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(what: object, deep: bool = False) -> str:
        return f"{what!r} {deep}"

    for argument in (1, 1.0, True, "1", b"1", None, (1,), (True,)):
        await ask(argument)
    await ask(1, deep=True)

    with Faults(ask).chance(1.0, Boom):
        same = [
            await ask(1),
            await ask(what=1),
            await ask(1, False),
            await ask(1, deep=False),
            await ask(deep=False, what=1),
        ]
        others = [await ask(argument) for argument in (1.0, True, "1", b"1", None, (1,), (True,))]
        deep = await ask(1, True)

    assert same == ["1 False"] * 5
    assert others == ["1.0 False", "True False", "'1' False", "b'1' False", "None False", "(1,) False", "(True,) False"]
    assert deep == "1 True"


@dataclass(frozen=True)
class Movie:
    name: str


@pytest.mark.virtual_time
async def test_plain_records_are_arguments_like_others(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(*movies: Movie, **options: int) -> str:
        return f"{movies} {options}"

    live = await ask(Movie("alien"), Movie("brazil"), a=1, b=2)
    with Faults(ask).error(Boom).error(Boom):
        assert await ask(Movie("alien"), Movie("brazil"), b=2, a=1) == live
        assert type(await ended(ask(Movie("brazil"), Movie("alien"), a=1, b=2))) is Failed


@pytest.mark.virtual_time
async def test_an_identity_is_mixed_into_every_key(gate: Gateway) -> None:  # promise 7
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood()], identity=user.get)
    async def mine() -> str:
        return f"secret of {user.get()}"

    @up.operation(name="named", idempotent=True, fallback=[LastGood()], identity=user.get, key=lambda: "same")
    async def named() -> str:
        return f"secret of {user.get()}"

    for operation in (mine, named):
        user.set("ada")
        await operation()
        with Faults(operation).chance(1.0, Boom):
            user.set("bob")
            assert type(await ended(operation())) is Failed
            user.set("ada")
            assert await operation() == "secret of ada"


@pytest.mark.virtual_time
@pytest.mark.parametrize("own", [False, True], ids=["LastGood", "a memory of ones own"])
async def test_a_memory_added_while_calls_run_mixes_nobody_up(gate: Gateway, own: bool) -> None:  # promise 7
    class Shelf:
        def __init__(self) -> None:
            self.values: dict[object, object] = {}

        def remember(self, key: object, value: object, at: float) -> None:
            self.values[key] = value

        def answer(self, question: Question) -> Answer[object] | None:
            known = question.key in self.values
            return Answer(self.values[question.key], Source.LAST_GOOD, 0.0, question.error) if known else None

    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask(user: str) -> str:
        await asyncio.sleep(0.1 if user == "ada" else 0.2)
        if user == "bob":
            raise Boom
        return f"secret of {user}"

    ada, bob = asyncio.ensure_future(ask("ada")), asyncio.ensure_future(ended(ask("bob")))
    await steps(1)
    ask.fallback(Shelf() if own else LastGood())

    assert await ada == "secret of ada"
    assert type(await bob) is Failed


@pytest.mark.virtual_time
async def test_a_memory_that_fails_to_remember_fails_no_call(gate: Gateway, caplog) -> None:  # hole 7
    class Broken:
        def remember(self, key: object, value: object, at: float) -> None:
            raise Boom("no room")

        def answer(self, question: Question) -> None:
            return None

    up = gate.upstream("world", policy=QUIET)
    tries = []

    @up.operation(idempotent=True, fallback=[Broken(), LastGood()])
    async def ask() -> str:
        tries.append(1)
        return "live"

    assert await ask() == "live"
    assert len(tries) == 1
    assert up.snapshot().breaker.failures == 0
    assert "no room" in caplog.text
    with Faults(ask).error(Boom):
        assert (await ask.ask()).source == "last_good"


@pytest.mark.virtual_time
async def test_a_value_that_cannot_be_copied_fails_no_call(gate: Gateway, caplog) -> None:
    class Socket:
        def __deepcopy__(self, memo: object) -> object:
            raise TypeError("a socket cannot be copied")

    up = gate.upstream("world", policy=QUIET)
    memory = LastGood()
    socket = Socket()

    @up.operation(idempotent=True, fallback=[memory])
    async def ask() -> Socket:
        return socket

    assert await ask() is socket
    assert len(memory) == 0
    assert "cannot be copied" in caplog.text


@pytest.mark.virtual_time
async def test_a_late_value_is_remembered_too(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, timeout=TimeoutPolicy(call=5.0, attempt=1.0)))

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask() -> str:
        asyncio.get_running_loop().advance(3.0)
        return "late"

    await ask()
    with Faults(ask).error(Boom):
        assert (await ask.ask()).value == "late"


@pytest.mark.virtual_time
async def test_behind_the_memory_may_stand_any_backend_of_aiocache(gate: Gateway) -> None:
    store = SimpleMemoryCache()
    up = gate.upstream("world", policy=QUIET)

    async def ask(movie: str) -> str:
        return movie

    first = up.operation(name="ask", idempotent=True, fallback=[LastGood(store=store)])(ask)
    async with gate:
        await first("alien")

    # another process: the same names, the same store, an empty memory
    elsewhere = Gateway()
    again = elsewhere.upstream("world", policy=QUIET).operation(
        name="ask", idempotent=True, fallback=[LastGood(store=store)]
    )(ask)
    async with elsewhere:
        with Faults(again).chance(1.0, Boom):
            answer = await again.ask("alien")
            missing = await ended(again("brazil"))
    for timer in store._handlers.values():  # its own: one for each key, which even clear() leaves
        timer.cancel()

    assert (answer.value, answer.source) == ("alien", "last_good")
    assert type(missing) is Failed


@pytest.mark.virtual_time
async def test_a_store_that_hangs_costs_no_more_than_its_time(gate: Gateway) -> None:
    class Hanging(SimpleMemoryCache):
        async def _multi_get(self, *args: object, **kwargs: object) -> object:
            await asyncio.sleep(99)

    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood(store=Hanging()), Static("s")])
    async def ask() -> str:
        raise Boom

    began = now()

    assert await ask() == "s"
    assert now() - began == pytest.approx(0.1)


# -- cancelled in a tier


@pytest.mark.virtual_time
async def test_a_caller_who_leaves_while_a_tier_works_is_cancelled(failing: Operation[..., Any]) -> None:
    failing.fallback(timeout=5.0)(hanging)
    failing.fallback(Static("never asked"))

    call = asyncio.ensure_future(failing())
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait({call})

    assert call.cancelled()
    assert counted(failing.upstream) == {"asked": 1, "cancelled": 1, "attempts": 1}


async def hanging(error: Exception) -> None:
    await asyncio.sleep(99)


@pytest.mark.virtual_time
async def test_the_calls_limit_is_not_the_tiers_fault(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(timeout=TimeoutPolicy(call=1.0), retry=RetryPolicy(attempts=1)))

    @up.operation(idempotent=True)
    async def ask() -> None:
        await asyncio.sleep(99)

    ask.fallback(timeout=0.4)(hanging)
    began = now()
    error = await ended(ask())

    assert type(error) is FailedTimeout
    assert now() - began == pytest.approx(1.0)


@pytest.mark.virtual_time
async def test_tiers_answer_while_the_circuit_is_open_without_asking_the_upstream(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=2)))

    @up.operation(idempotent=True, fallback=[Static("s")])
    async def ask() -> None:
        raise Boom

    for _ in range(50):
        assert await ask() == "s"

    assert counted(up) == {"asked": 50, "static": 50, "attempts": 2}


@pytest.mark.virtual_time
@pytest.mark.parametrize("isolated", [True, False])
async def test_an_error_that_is_answered_by_a_tier_was_never_raised(
    gate: Gateway, failing: Operation[..., Any], isolated: bool
) -> None:
    """To raise it and catch it again was the dearest part of a plan B."""
    failing.fallback(Static("s"))
    if isolated:
        gate["world"].isolate()

    answer = await failing.ask()

    assert type(answer.error) is (CircuitOpen if isolated else Failed)
    assert answer.error.__traceback__ is None
    assert isolated or answer.error.__cause__.__traceback__ is not None


@pytest.mark.virtual_time
@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("waits", [True, False])
async def test_a_handler_is_called_in_the_handling_of_the_error(
    gate: Gateway, failing: Operation[..., Any], caplog: pytest.LogCaptureFixture, isolated: bool, waits: bool
) -> None:
    """So that it may log it, or raise it again, as Python does in any `except`."""
    handled: list[BaseException | None] = []

    def heard(error: Exception) -> str:
        handled.append(sys.exc_info()[1])
        logging.getLogger("plan b").exception("no live answer")  # noqa: LOG004 - it is called in the handling of one
        return "b"

    async def heard_later(error: Exception) -> str:
        await asyncio.sleep(0.01)
        return heard(error)

    failing.fallback(heard_later if waits else heard)
    if isolated:
        gate["world"].isolate()
    answer = await failing.ask()

    assert handled == [answer.error]
    assert type(answer.error).__name__ in caplog.text
    assert answer.error.__traceback__ is None
    assert sys.exc_info()[1] is None


@pytest.mark.virtual_time
async def test_a_handler_hands_on_with_a_bare_raise(failing: Operation[..., Any]) -> None:
    @failing.fallback
    def hands_on(error: Exception) -> None:
        raise  # noqa: PLE0704

    failing.fallback(Static("s"))
    answer = await failing.ask()

    assert answer.value == "s"
    assert answer.error.__notes__ == [f"handler hands_on failed: {answer.error!r}"]


# -- time that passes while nothing awaits


def blocking(seconds: float) -> None:
    """The loop is busy for so long."""
    cast("VirtualTimeLoop", asyncio.get_running_loop()).advance(seconds)


def asked_once(gate: Gateway, *tiers: Any) -> tuple[Operation[..., Any], list[Any]]:
    """An operation that gives each of these answers once, the last first, and fails when there is none left."""
    ends: list[Any] = ["v"]

    @gate.upstream("world", policy=QUIET).operation(idempotent=True, fallback=tiers)
    async def ask(key: str) -> Any:
        if not ends:
            raise Boom
        return ends.pop()

    return ask, ends


def handler_that_blocks(error: Exception, *_: object) -> object:
    blocking(2.0)
    raise Boom


def handler_that_blocks_and_promises(error: Exception, *_: object) -> object:
    blocking(2.0)

    async def fail() -> None:
        raise Boom

    return fail()


@pytest.mark.parametrize("first", [handler_that_blocks, handler_that_blocks_and_promises])
@pytest.mark.virtual_time
async def test_what_grows_too_old_while_a_tier_before_it_blocks_is_no_answer(gate: Gateway, first: Any) -> None:
    ask, ends = asked_once(gate, handler(first, timeout=9.0), LastGood(max_age=3.0))
    await ask("k")
    await asyncio.sleep(2.0)

    assert isinstance(await ended(ask("k")), Failed)
    ends.append("w")
    await ask("k")
    answer = await ask.ask("k")
    assert (answer.value, answer.age) == ("w", 2.0)


@pytest.mark.virtual_time
async def test_what_grows_too_old_while_a_listener_blocks_is_no_answer(gate: Gateway) -> None:
    @gate.on(AttemptFailed)
    def listen(_: AttemptFailed) -> None:
        blocking(2.0)

    ask, _ = asked_once(gate, LastGood(max_age=3.0))
    await ask("k")
    await asyncio.sleep(2.0)

    assert isinstance(await ended(ask("k")), Failed)


def handler_that_blocks_and_hangs(error: Exception, *_: object) -> object:
    blocking(2.0)
    return asyncio.sleep(60)


async def handler_that_hangs(error: Exception, *_: object) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("tiers", [(handler_that_blocks, handler_that_hangs), (handler_that_blocks_and_hangs,)])
@pytest.mark.virtual_time
async def test_tiers_that_block_end_at_the_deadline_all_the_same(gate: Gateway, tiers: tuple[Any, ...]) -> None:
    @gate.upstream("world", policy=QUIET).operation(
        idempotent=True, fallback=[handler(tier, timeout=50.0) for tier in tiers]
    )
    async def ask() -> None:
        raise Boom

    began = now()
    with Deadline.after(5.0):
        await ended(ask())

    assert now() - began == pytest.approx(5.0)


@pytest.mark.virtual_time
async def test_what_grows_too_old_while_the_tiers_look_whether_the_caller_has_left_is_no_answer(gate: Gateway) -> None:
    ask, _ = asked_once(gate, LastGood(max_age=3.0))
    await ask("k")
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # it stayed
        await asyncio.sleep(0)
    loop.call_soon(loop.call_soon, blocking, 4.0)  # the call itself looks first

    end = await ended(ask("k"))
    task.uncancel()

    assert isinstance(end, Failed)


@pytest.mark.parametrize("source", [Source.CACHED, Source.COALESCED])
@pytest.mark.virtual_time
async def test_an_answer_that_a_tier_has_from_elsewhere_does_not_make_the_call_a_success(
    gate: Gateway, source: Source, failing: Operation[..., Any]
) -> None:
    failing.fallback(Recording(Answer("theirs", source, 1.0)))
    heard: list[CallFinished] = []
    gate.on(CallFinished)(heard.append)

    answer = await failing.ask()

    assert (answer.value, answer.source, answer.degraded) == ("theirs", source, True)
    assert (heard[0].outcome, heard[0].source) == ("failed", source)


@pytest.mark.virtual_time
async def test_no_tiers_answer_is_live_whatever_it_says(failing: Operation[..., Any]) -> None:
    own = Boom("own")
    failing.fallback(Recording(Answer("v", Source.LIVE, 0.0, own)))

    answer = await failing.ask()

    assert (answer.source, answer.error) == (Source.HANDLER, own)
    assert counted(failing.upstream) == {"asked": 1, "handler": 1, "attempts": 1}  # type: ignore[arg-type]
