"""The tiers in order, without a gateway."""

from __future__ import annotations

import asyncio
import gc
import warnings
from asyncio import CancelledError, create_task, current_task, gather, sleep
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import pytest

from fallbacks import Alternate, Answer, Fallback, LastGood, Question, Source, Static, handler
from fallbacks.chain import LONGEST, cancels, may_await, name_of
from tests.support import Boom, gone, now, steps

pytestmark = pytest.mark.virtual_time


def question(**given: Any) -> Question:
    facts: dict[str, Any] = {"key": "k", "args": (), "kwargs": {}, "error": Boom(), "now": now(), "deadline": inf}
    return Question(**{**facts, **given})


def notes(asked: Question) -> list[str]:
    return getattr(asked.error, "__notes__", [])


class Tier:
    """A tier that gives what a function gives, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Question], Any], **says: Any) -> None:
        self.asked: list[Question] = []
        self._answer = answer
        vars(self).update(says)

    def answer(self, question: Question, /) -> Any:
        self.asked.append(question)
        return self._answer(question)


def declining(**says: Any) -> Tier:
    return Tier(lambda _: None, **says)


def raising(error: BaseException, **says: Any) -> Tier:
    def fail(_: Question) -> None:
        raise error

    return Tier(fail, **says)


def taking(seconds: float, value: object = "slow", **says: Any) -> Tier:
    async def answer(_: Question) -> Answer[Any]:
        await sleep(seconds)
        return Answer(value, Source.HANDLER)

    return Tier(answer, **says)


def promising(value: object, **says: Any) -> Tier:
    async def answer(_: Question) -> object:
        return value

    return Tier(answer, **says)


# -- order


async def test_without_tiers_there_is_no_answer() -> None:
    asked = question()

    assert await Fallback([]).answer(asked) is None
    assert notes(asked) == []


async def test_the_first_answer_is_the_answer_and_nobody_after_it_is_asked() -> None:
    first, second, third = declining(), Tier(lambda _: Answer(2, Source.STATIC)), Tier(lambda _: Answer(3))
    asked = question()

    answer = await Fallback([first, second, third]).answer(asked)

    assert answer == Answer(2, Source.STATIC, 0.0, asked.error)
    assert (len(first.asked), len(second.asked), len(third.asked)) == (1, 1, 0)


async def test_tiers_may_come_from_any_iterable_once() -> None:
    tiers = iter([declining(), Static("s")])

    fallback = Fallback(tiers)

    assert len(fallback.tiers) == 2
    assert (await fallback.answer(question())).value == "s"
    assert (await fallback.answer(question())).value == "s"


@pytest.mark.parametrize("tier", [declining(), promising(None)], ids=["at once", "in a while"])
async def test_a_tier_that_declines_has_not_failed(tier: Tier) -> None:
    fallback = Fallback([tier])
    asked = question()

    answer = await fallback.answer(asked)

    assert answer is None
    assert fallback.failed == 0
    assert notes(asked) == ["Tier had no answer"]


async def raises_later(_: Question) -> None:
    await sleep(0)
    raise Boom("later")


@pytest.mark.parametrize("tier", [raising(Boom("now")), Tier(raises_later)], ids=["at once", "in a while"])
async def test_a_tier_that_raises_has_failed_and_hands_on(tier: Tier) -> None:
    fallback = Fallback([tier, Static("s")])
    asked = question()

    answer = await fallback.answer(asked)

    assert answer.value == "s"
    assert answer.error is asked.error
    assert fallback.failed == 1
    assert "Tier failed: Boom(" in notes(asked)[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_an_interrupt_is_nothing_that_a_tier_answers(error: BaseException) -> None:
    second = Tier(lambda _: Answer(2))
    asked = Question(key="k", args=(), kwargs={}, error=Boom(), now=0.0, deadline=inf)

    async def ask() -> None:
        with pytest.raises(type(error)):
            await Fallback([raising(error), second]).answer(asked)

    asyncio.run(ask())

    assert second.asked == []


async def test_every_tier_leaves_one_note_under_its_own_name() -> None:
    tiers = [declining(name="the shelf"), raising(Boom()), LastGood(), handler(lambda error: 1 / 0), taking(9.0)]
    asked = question()

    await Fallback(tiers).answer(asked)

    assert [note.split(":")[0] for note in notes(asked)] == [
        "the shelf had no answer",
        "Tier failed",
        "LastGood had no answer",
        "handler <lambda> failed",
        "Tier failed",
    ]


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unspeakable(), "Unspeakable"),
        (Boom("x" * 10_000), "Boom('" + "x" * (LONGEST - 6) + "..."),
        (Boom("x" * (LONGEST - 8)), "Boom('" + "x" * (LONGEST - 8) + "')"),
    ],
    ids=["unspeakable", "long", "just short enough"],
)
async def test_a_note_is_short_whatever_the_error_says_of_itself(error: Exception, said: str) -> None:
    asked = question()

    answer = await Fallback([raising(error), Static(1)]).answer(asked)

    assert answer is not None
    assert notes(asked) == [f"Tier failed: {said}"]


def test_a_tier_without_a_name_goes_by_its_kind() -> None:
    assert name_of(Static(1)) == "Static"
    assert name_of(declining(name="")) == "Tier"
    assert name_of(declining(name="mine")) == "mine"


# -- what a tier may give


@pytest.mark.parametrize(
    "tier",
    [
        Tier(lambda _: "a text"),
        Tier(lambda _: 0),
        Tier(lambda _: Answer),
        promising("a text"),
        promising(False),
        Tier(lambda _: Answer("v", "static")),  # type: ignore[arg-type]
        Tier(lambda _: Answer("v", "a source of its own", 0.0, Boom())),  # type: ignore[arg-type]
        promising(Answer("v", None)),  # type: ignore[arg-type]
    ],
    ids=["text", "zero", "the class", "text later", "False later", "text for source", "no source", "None for source"],
)
async def test_a_tier_that_gives_nonsense_has_failed_and_hands_on(tier: Tier) -> None:
    fallback = Fallback([tier, Static("s")])
    asked = question()

    answer = await fallback.answer(asked)

    assert answer.value == "s"
    assert fallback.failed == 1
    assert "Tier failed: TypeError(" in notes(asked)[0]


async def test_an_answer_of_a_tier_is_never_live_and_says_what_it_stands_in_for() -> None:
    asked = question()

    answer = await Fallback([Tier(lambda _: Answer("v"))]).answer(asked)

    assert answer == Answer("v", Source.HANDLER, 0.0, asked.error)


async def test_an_answer_keeps_its_source_its_age_and_its_own_error() -> None:
    own = Boom("its own")
    without = await Fallback([Tier(lambda _: Answer("v", Source.CACHED, 7.0))]).answer(asked := question())
    with_one = await Fallback([Tier(lambda _: Answer("v", Source.CACHED, 7.0, own))]).answer(question())

    assert without == Answer("v", Source.CACHED, 7.0, asked.error)
    assert with_one == Answer("v", Source.CACHED, 7.0, own)


async def test_an_answer_that_is_there_at_once_costs_no_turn_of_the_loop() -> None:
    call = Fallback([LastGood(), Static("s")]).answer(question())

    with pytest.raises(StopIteration) as end:
        call.send(None)

    assert end.value.value.value == "s"


# -- after unknown


async def test_tiers_that_answer_at_once_can_be_asked_without_await() -> None:
    asked = question()

    answer = Fallback([declining(), raising(Boom()), Static("s")]).ask(asked)

    assert answer == Answer("s", Source.STATIC, 0.0, asked.error)
    assert Fallback([declining()]).ask(asked) is None


async def test_what_takes_its_time_is_to_be_awaited_and_those_after_it_are_told_how_late_it_is() -> None:
    after = Tier(lambda asked: Answer(asked.now, Source.HANDLER))
    asked, began = question(), now()

    promise = Fallback([declining(), Tier(lambda _: sleep(3.0)), after], timeout=5.0).ask(asked)

    assert not isinstance(promise, Answer)
    assert promise is not None
    answer = await promise
    assert answer is not None
    assert answer.value == began + 3.0


async def test_after_unknown_only_those_are_asked_that_say_so() -> None:
    timid, brave = Tier(lambda _: Answer("timid")), Tier(lambda _: Answer("brave"), after_unknown=True)
    fallback = Fallback([timid, brave])
    asked = question(outcome="unknown")

    answer = await fallback.answer(asked)

    assert answer.value == "brave"
    assert timid.asked == []
    assert notes(asked) == ["Tier was not asked: it may have taken effect"]
    assert fallback.failed == 0


async def test_after_unknown_nobody_answers_by_default() -> None:
    memory = LastGood()
    memory.remember("k", "v", now())
    tiers = [memory, handler(lambda error: "h"), Alternate(None), Static("s")]  # type: ignore[arg-type]
    asked = question(outcome="unknown")

    assert await Fallback(tiers).answer(asked) is None
    assert len(notes(asked)) == 4


# -- time


async def test_a_tier_has_the_common_time_or_its_own() -> None:
    common, own, none = taking(9.0), taking(9.0, timeout=0.5), taking(9.0, timeout=None)
    fallback = Fallback([common, own, none, last := declining()], timeout=0.25)
    began = now()
    asked = question()

    await fallback.answer(asked)

    assert own.asked[0].now - began == pytest.approx(0.25)
    assert none.asked[0].now - began == pytest.approx(0.75)
    assert last.asked[0].now - began == pytest.approx(1.0)
    assert now() - began == pytest.approx(1.0)
    assert fallback.failed == 3
    assert all("TimeoutError" in note for note in notes(asked)[:3])


async def test_a_tier_that_is_in_time_answers() -> None:
    assert (await Fallback([taking(0.25)], timeout=0.26).answer(question())).value == "slow"


async def test_no_tier_outlasts_the_deadline() -> None:
    tier = taking(9.0, timeout=5.0)
    began = now()

    await Fallback([tier]).answer(question(deadline=began + 2.0))

    assert now() - began == pytest.approx(2.0)


async def test_a_tier_that_shares_leaves_half_of_what_is_left_to_those_after_it() -> None:
    tier = taking(9.0, timeout=5.0, shares=True)
    began = now()

    await Fallback([tier, last := declining()]).answer(question(deadline=began + 2.0))

    assert last.asked[0].now - began == pytest.approx(1.0)


async def test_with_no_time_left_only_those_answer_that_need_none() -> None:
    fallback = Fallback([taking(0.0), Static("s")])
    asked = question(deadline=now())

    answer = await fallback.answer(asked)

    assert answer.value == "s"
    assert "no time was left" in notes(asked)[0]
    assert fallback.failed == 1


async def test_endless_patience_waits_without_a_timer() -> None:
    asking = create_task(Fallback([taking(1e6)], timeout=inf).answer(question()))
    await steps(2)
    timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    assert (await asking).value == "slow"
    assert len(timers) == 1  # the tier's own


async def test_a_tier_that_awaits_has_the_end_of_its_time_as_ambient_deadline() -> None:
    ends: list[float] = []
    inside: list[bool] = []

    @contextmanager
    def scope(end: float) -> Iterator[None]:
        ends.append(end)
        inside.append(True)
        yield
        inside.pop()

    seen: list[list[bool]] = []
    looking = Tier(lambda _: looks())

    async def looks() -> Answer[str]:
        seen.append(list(inside))
        return Answer("v")

    began = now()
    fallback = Fallback([Tier(lambda _: None), looking], timeout=0.25, scope=scope)
    await fallback.answer(question())
    await fallback.answer(question(deadline=began + 0.125))

    assert ends == pytest.approx([began + 0.25, began + 0.125])
    assert seen == [[True], [True]]
    assert inside == []


# -- how many at once


async def test_no_more_than_the_limit_are_in_a_tier_and_nobody_waits_for_it() -> None:
    tier = taking(0.05)
    fallback = Fallback([tier, Static("s")], limit=2)
    began = now()

    async def ask() -> tuple[object, float]:
        answer = await fallback.answer(question())
        return answer.value, now() - began

    answers = await gather(*(ask() for _ in range(5)))
    again = await ask()

    assert answers == [("slow", pytest.approx(0.05))] * 2 + [("s", 0.0)] * 3
    assert fallback.failed == 3
    assert again[0] == "slow"


async def test_each_tier_has_a_limit_of_its_own() -> None:
    fallback = Fallback([taking(0.05, "one"), taking(0.05, "two"), Static("s")], limit=1)

    answers = await gather(*(fallback.answer(question()) for _ in range(3)))

    assert [answer.value for answer in answers] == ["one", "two", "s"]


async def test_answers_that_are_there_at_once_know_no_limit() -> None:
    assert (await Fallback([Static("s")], limit=0).answer(question())).value == "s"


async def test_endless_limit_is_none() -> None:
    fallback = Fallback([taking(0.05)], limit=inf)

    answers = await gather(*(fallback.answer(question()) for _ in range(100)))

    assert {answer.value for answer in answers} == {"slow"}


@pytest.mark.parametrize("how", ["late", "failing", "left"])
async def test_a_place_in_a_tier_is_given_back_however_it_ends(how: str) -> None:
    ends = {"late": lambda: sleep(9.0), "failing": lambda: raises_later(None), "left": lambda: sleep(9.0)}  # type: ignore[arg-type]
    tier = Tier(lambda _: ends[how]())
    fallback = Fallback([tier], limit=1)

    asking = create_task(fallback.answer(question()))
    await steps(1)
    if how == "left":
        asking.cancel()
    with suppress(CancelledError):
        await asking
    tier._answer = promising(Answer("v"))._answer

    assert (await fallback.answer(question())).value == "v"


@pytest.mark.parametrize("why", ["full", "no time"])
async def test_what_is_not_awaited_is_closed(why: str) -> None:
    started: list[str] = []
    closed: list[str] = []

    async def coroutine() -> None:
        started.append("coroutine")
        await sleep(1)

    async def task() -> None:
        try:
            await sleep(99)
        except CancelledError:
            closed.append("task")
            raise

    class Closable:
        def __await__(self) -> Iterator[None]:
            started.append("closable")
            yield

        def close(self) -> None:
            closed.append("closable")

    class Plain:
        def __await__(self) -> Iterator[None]:
            started.append("plain")
            yield

    limit = 0 if why == "full" else 10
    deadline = inf if why == "full" else now()
    running = create_task(task())
    await steps(1)
    promises: list[Awaitable[None]] = [coroutine(), Closable(), running, Plain()]
    fallback = Fallback([Tier(lambda _: promises.pop(0)) for _ in promises], limit=limit)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        answer = await fallback.answer(question(deadline=deadline))
        await steps(2)
        gc.collect()

    assert answer is None
    assert fallback.failed == 4
    assert started == []
    assert closed == ["closable", "task"]
    assert not warned


# -- who is cancelled


async def inner_cancelled(_: Question) -> None:
    inner = create_task(sleep(99))
    await steps(1)
    inner.cancel()
    await inner


async def test_a_tier_whose_own_task_is_cancelled_has_failed_and_hands_on() -> None:
    fallback = Fallback([Tier(inner_cancelled), Static("s")])
    asked = question()

    answer = await fallback.answer(asked)

    assert answer.value == "s"
    assert fallback.failed == 1
    assert notes(asked) == ["Tier failed: a task of its own was cancelled"]


async def test_a_tier_that_says_cancelled_without_a_task_has_failed_too() -> None:
    fallback = Fallback([raising(CancelledError()), Static("s")])

    assert (await fallback.answer(question())).value == "s"
    assert fallback.failed == 1


async def test_a_tier_that_cancels_its_own_caller_at_once_has_ended_the_call() -> None:
    def leave(_: Question) -> None:
        current_task().cancel()  # type: ignore[union-attr]
        raise CancelledError

    after = Tier(lambda _: Answer("late", Source.HANDLER))

    asking = create_task(Fallback([Tier(leave), after]).answer(question()))
    await asyncio.wait([asking])

    assert asking.cancelled()
    assert after.asked == []


async def test_a_caller_that_leaves_is_cancelled_and_nobody_else_is_asked() -> None:
    last = Tier(lambda _: Answer("v"))
    fallback = Fallback([taking(9.0, timeout=10.0), last])
    asked = question()
    asking = create_task(fallback.answer(asked))
    await sleep(0.5)

    await gone(asking)

    assert asking.cancelled()
    assert last.asked == []
    assert notes(asked) == []
    assert fallback.failed == 0


async def test_a_caller_that_leaves_in_the_tick_in_which_the_tiers_task_is_cancelled_has_left() -> None:
    inner = create_task(sleep(99))

    async def waits(_: Question) -> None:
        await inner

    last = Tier(lambda _: Answer("v"))
    asking = create_task(Fallback([Tier(waits), last]).answer(question()))
    await steps(2)

    inner.cancel()
    asking.cancel()
    await gone(asking, inner)

    assert asking.cancelled()
    assert last.asked == []


async def test_a_caller_that_was_told_to_leave_before_asks_nobody() -> None:
    tier = Tier(lambda _: Answer("v"))
    told = []

    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        told.append(cancels())
        await Fallback([tier]).answer(question())

    calling = create_task(call())
    await asyncio.wait({calling})

    assert told == [1]
    assert calling.cancelled()
    assert tier.asked == []


@pytest.mark.parametrize("tier", [Tier(inner_cancelled), taking(9.0)], ids=["inner task", "timeout"])
async def test_a_caller_that_was_cancelled_long_ago_and_stayed_gets_its_answer(tier: Tier) -> None:
    async def call() -> object:
        with suppress(CancelledError):
            await sleep(99)
        return (await Fallback([tier, Static("s")]).answer(question())).value

    calling = create_task(call())
    await steps(1)
    calling.cancel()

    assert await calling == "s"


def test_outside_of_tasks_nobody_is_cancelled() -> None:
    counts: list[int] = []
    loop = asyncio.new_event_loop()

    loop.call_soon(lambda: counts.append(cancels()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()

    assert counts == [0]


# -- what to keep back


def test_nothing_is_kept_back_for_tiers_that_take_no_time() -> None:
    assert Fallback([]).reserve == 0.0
    assert Fallback([LastGood(), Static("s")], timeout=5.0).reserve == 0.0
    assert Fallback([declining()], timeout=5.0).reserve == 0.0


def test_for_tiers_that_may_await_the_longest_is_kept_back() -> None:
    assert Fallback([handler(print), Static("s")], timeout=0.25).reserve == 0.25
    assert Fallback([handler(print), handler(print, timeout=2.0)], timeout=0.25).reserve == 2.0
    assert Fallback([handler(print, timeout=0.125)], timeout=0.25).reserve == 0.125
    assert Fallback([LastGood(store=object())], timeout=0.25).reserve == 0.25  # type: ignore[arg-type]


def test_a_tier_of_ones_own_may_await_if_it_says_so_in_any_way() -> None:
    class Async:
        async def answer(self, question: Question) -> None:
            return None

    assert may_await(Async())
    assert may_await(declining(timeout=1.0))
    assert may_await(declining(awaits=True))
    assert not may_await(declining(timeout=1.0, awaits=False))
    assert not may_await(declining(timeout=None))


async def test_limits_may_be_tuned_while_it_is_used() -> None:
    fallback = Fallback([taking(0.5), Static("s")], timeout=0.25, limit=0)
    full = await fallback.answer(question())

    fallback.timeout, fallback.limit = 1.0, 1

    assert full.value == "s"
    assert fallback.reserve == 0.0
    assert (await fallback.answer(question())).value == "slow"
