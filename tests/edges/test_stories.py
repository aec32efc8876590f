"""Why a call ended as it did: the stories, and the log beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gateway import (
    AttemptFailed,
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    CallFinished,
    CircuitChanged,
    FailedTimeout,
    Gateway,
    LastGood,
    Operation,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Upstream,
)
from gateway.admin.stories import A_SECOND, KEPT, KEPT_PLAIN, LINES, LONGEST, UNDER_WAY, Stories, changed, short, spell
from tests.support import NEVER_OPENS, ONE_TRY, Boom, ended, gone

virtual = pytest.mark.virtual_time
SECRET = "s3cret"  # noqa: S105 - it is to be seen nowhere


@pytest.fixture
def gate() -> Gateway:
    return Gateway()


@pytest.fixture
def stories(gate: Gateway) -> Iterator[Stories]:
    stories = Stories(gate, clock=lambda: 0.0)
    stories.listen()
    yield stories
    stories.leave()
    assert not gate.listeners.call_finished


@pytest.fixture
def ratings(gate: Gateway) -> Upstream:
    policy = Policy(
        retry=ONE_TRY,
        breaker=NEVER_OPENS,
        timeout=TimeoutPolicy(call=2.0, attempt=0.3),
        bulkhead=BulkheadPolicy(limit=1, queue=1),
    )
    return gate.upstream("ratings", policy=policy)


def operation(upstream: Upstream, **said: Any) -> Operation[..., Any]:
    """One that takes its time, and raises what it is given."""

    @upstream.operation(name="stars", idempotent=True, **said)
    async def stars(secret: str = SECRET, *, takes: float = 0.0, error: BaseException | None = None) -> str:
        await asyncio.sleep(takes)
        if error is not None:
            raise error
        return secret

    return stars


def texts(stories: Stories) -> list[str]:
    return [story.text for story in stories.of()]


# -- what a story says


@virtual
async def test_a_plainly_live_call_is_told_once_in_so_many(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stories.plain_every = 10
    stories.listen()  # again: what is said last holds
    stars = operation(ratings)

    async with gate:
        for _ in range(25):
            await stars(takes=0.012)

    assert texts(stories) == ["circuit closed; attempt 1: answered; answered live in 12 ms"] * 3
    assert all(story.plain for story in stories.of())


@virtual
async def test_a_call_that_queued_and_was_answered_by_last_good(
    gate: Gateway, stories: Stories, ratings: Upstream
) -> None:
    stars = operation(ratings, fallback=[LastGood(max_age=300)], key=lambda *_, **__: "ada")

    async with gate:
        await stars()
        await asyncio.sleep(8.0)
        first = asyncio.create_task(stars(takes=0.05))
        await asyncio.sleep(0)
        answer = await stars.ask(takes=1.0)
        await first

    story = next(story for story in stories.of() if story.source is Source.LAST_GOOD)
    assert answer.source is Source.LAST_GOOD
    assert story.text.startswith(
        "queued 50 ms; circuit closed; attempt 1: no answer within 0.300 s (attempt); answered by last good"
    )
    assert [step.kind for step in story.steps] == ["queue", "circuit", "attempt", "end"]
    assert story.steps[0].seconds == pytest.approx(0.05)
    assert story.steps[-1].ok


@virtual
async def test_a_live_call_that_queued_is_always_told(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stars = operation(ratings)

    async with gate:
        await asyncio.gather(stars(takes=0.1), stars(takes=0.1))

    queued = [story for story in stories.of() if not story.plain]
    assert [story.text for story in queued] == [
        "queued 100 ms; circuit closed; attempt 1: answered; answered live in 200 ms"
    ]


@virtual
async def test_why_there_was_no_further_try_is_told(gate: Gateway, stories: Stories) -> None:
    budget = BudgetPolicy(ratio=0.0, minimum=0.001, burst=1)
    policy = Policy(breaker=NEVER_OPENS, retry=RetryPolicy(attempts=2, wait=lambda _: 0.0, budget=budget))
    stars = operation(gate.upstream("ratings", policy=policy))

    async with gate:
        await ended(stars(error=Boom("down")))
        await ended(stars(error=Boom("down")))

    assert "retry budget of ratings is used up" in texts(stories)[0]
    assert "no further try" not in texts(stories)[1]


@virtual
async def test_tiers_that_had_nothing_are_told(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stars = operation(ratings, fallback=[LastGood(max_age=300), Static("0")], key=lambda *_, **__: "ada")

    async with gate:
        await stars(error=Boom("down"))

    (text,) = texts(stories)
    assert text == "circuit closed; attempt 1: Boom('down'); LastGood had no answer; answered by static"


@virtual
async def test_an_open_circuit_says_when_it_is_tried_again(gate: Gateway, stories: Stories) -> None:
    policy = Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1, open_for=5.0))
    stars = operation(gate.upstream("ratings", policy=policy))

    async with gate:
        await ended(stars(error=Boom("down")))
        await ended(stars())

    assert texts(stories)[0] == "the circuit is open; tried again in 5 s; rejected: nothing was sent"
    assert [step.ok for step in stories.of()[0].steps] == [False, False]


@virtual
async def test_a_full_queue_is_told(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stars = operation(ratings)

    async with gate:
        calls = [asyncio.create_task(stars(takes=0.1)) for _ in range(2)]
        await asyncio.sleep(0)
        await ended(stars())
        await asyncio.gather(*calls)

    text = texts(stories)[-1]
    assert text == "no place: all 1 places are taken, and 1 wait; rejected: nothing was sent"


@virtual
async def test_who_left_is_told(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stars = operation(ratings)

    async with gate:
        call = asyncio.create_task(stars(takes=0.2))
        await asyncio.sleep(0.1)
        await gone(call)

    (text,) = texts(stories)
    assert text == "circuit closed; attempt 1: the caller left; cancelled after 100 ms: the caller left"


@virtual
async def test_a_refusal_is_an_answer(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stars = operation(ratings)

    async with gate:
        await ended(stars(error=Refused("no such film")))

    (story,) = stories.of()
    assert story.text == (
        "circuit closed; attempt 1: refused: Refused('no such film'); refused by the upstream, which is an answer"
    )
    assert story.steps[-1].ok


@virtual
async def test_a_whole_story_as_the_engine_tells_it(gate: Gateway, stories: Stories) -> None:
    budget = BudgetPolicy(ratio=0.0, minimum=0.001, burst=1)
    policy = Policy(
        breaker=NEVER_OPENS,
        retry=RetryPolicy(attempts=3, wait=lambda _: 0.05, budget=budget),
        timeout=TimeoutPolicy(call=3.0, attempt=0.3),
        bulkhead=BulkheadPolicy(limit=1),
    )
    ratings = gate.upstream("ratings", policy=policy)
    stars = operation(ratings, fallback=[LastGood(max_age=300)], key=lambda *_, **__: "ada")

    async with gate:
        await stars()
        await asyncio.sleep(7.0)
        first = asyncio.create_task(stars(takes=0.012))
        await asyncio.sleep(0)
        answer = await stars.ask(takes=1.0)
        await first

    assert answer.age == pytest.approx(0.65)
    assert texts(stories)[0] == (
        "queued 12 ms; circuit closed; attempt 1: no answer within 0.300 s (attempt); again after 50 ms; "
        "attempt 2: no answer within 0.300 s (attempt); no further try: the retry budget of ratings is used up; "
        "answered by last good, 650 ms old"
    )


# -- events of one call


def failed_try(number: int, *, call: int = 7, at: float = 1.0, text: str = "no answer within 0.300 s") -> AttemptFailed:
    error = FailedTimeout(f"ratings.stars: {text}")
    error.waited_for = "read"
    return AttemptFailed(
        upstream="ratings",
        at=at,
        operation="stars",
        attempt=number,
        outcome=Outcome.FAILED,
        error=error,
        duration=0.3,
        call=call,
    )


def end(*, call: int = 7, source: Source | None = Source.LIVE, attempts: int = 2, error: Any = None) -> CallFinished:
    outcome = Outcome.SUCCESS if source is Source.LIVE else Outcome.FAILED
    return CallFinished(
        upstream="ratings",
        at=2.0,
        operation="stars",
        outcome=outcome,
        source=source,
        duration=1.3,
        waited=0.0,
        attempts=attempts,
        error=error,
        call=call,
        age=8.0 if source is Source.LAST_GOOD else 0.0,
    )


def test_tries_and_the_pauses_between_them_are_told(stories: Stories) -> None:
    stories.attempt_failed(failed_try(1, at=1.0))
    stories.attempt_failed(failed_try(2, at=1.35))
    stories.call_finished(end(attempts=3))

    (story,) = stories.of()
    assert story.text == (
        "circuit closed; attempt 1: no answer within 0.300 s (read); again after 50 ms; "
        "attempt 2: no answer within 0.300 s (read); tried again; attempt 3: answered; answered live in 1.3 s"
    )


def test_the_age_of_an_answer_is_told(stories: Stories) -> None:
    attempt = failed_try(1)
    stories.attempt_failed(attempt)
    stories.call_finished(end(source=Source.LAST_GOOD, attempts=1, error=attempt.error))

    (story,) = stories.of()
    assert story.text.endswith("attempt 1: no answer within 0.300 s (read); answered by last good, 8 s old")


def test_a_number_that_is_used_again_begins_anew(stories: Stories) -> None:
    stories.attempt_failed(failed_try(1, text="of another call"))
    stories.attempt_failed(failed_try(1))
    stories.call_finished(end())

    assert "of another call" not in stories.of()[0].text


def test_a_try_that_nobody_waited_for_is_not_taken_for_that_of_a_later_call(stories: Stories) -> None:
    stories.attempt_failed(failed_try(1, at=0.5))  # of a refresh, say, which no call finished
    stories.call_finished(end(source=None, attempts=1, error=Boom("down")))

    assert stories.of()[0].tries == ()


@virtual
async def test_answers_from_memory_and_of_calls_in_flight_are_as_good_as_live(gate: Gateway, stories: Stories) -> None:
    stories.plain_every = 1
    stories.listen()  # again: what is said last holds
    stars = operation(gate.upstream("ratings"), fresh_for=60.0, coalesce=True, key=lambda *_, **__: "ada")

    async with gate:
        await asyncio.gather(stars(takes=0.1), stars(takes=0.1))
        await asyncio.sleep(8.0)
        await stars()

    assert all(story.plain for story in stories.of())
    assert texts(stories)[0] == "answered from memory, 8 s old and fresh"
    assert "answered in 100 ms with an identical call in flight" in texts(stories)


@virtual
async def test_a_policy_that_changes_is_in_the_log(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    ratings.tune_fields({"bulkhead.limit": 7})

    assert line(stories) == ("policy", "ratings", "bulkhead.limit 1 -> 7")


def test_calls_under_way_are_kept_within_bounds(stories: Stories) -> None:
    for call in range(1, UNDER_WAY + 50):
        stories.attempt_failed(failed_try(1, call=call))

    assert len(stories._under_way) == UNDER_WAY
    stories.call_finished(end(call=1))
    assert stories.of()[0].text.startswith("circuit closed; tried again; attempt 2: answered")


# -- what it must not do


@virtual
async def test_a_story_has_no_arguments_or_values(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    stories.plain_every = 1
    stories.listen()  # again: what is said last holds
    stars = operation(ratings, fallback=[Static("static " + SECRET)])

    async with gate:
        await stars(SECRET)
        await stars(SECRET, error=Boom("down"))
        await ended(stars(SECRET, takes=1.0))

    told = "".join(f"{story!r} {story.text}" for story in stories.of())
    assert len(stories.of()) == 3
    assert SECRET not in told


@virtual
async def test_texts_of_errors_can_be_left_out(gate: Gateway, ratings: Upstream) -> None:
    stories = Stories(gate, clock=lambda: 0.0, errors=False)
    stories.listen()

    async def broken(why: Exception, /, *_: Any, **__: Any) -> str:
        raise Boom(SECRET)

    stars = operation(ratings)
    stars.fallback(broken)

    async with gate:
        await ended(stars(error=Boom(SECRET)))
        await ended(stars(error=Refused(SECRET)))

    assert len(texts(stories)) == 2
    assert "broken failed" in texts(stories)[1]
    assert SECRET not in "".join(f"{story!r} {story.text}" for story in stories.of())
    stories.leave()


@virtual
async def test_errors_are_not_kept_alive(gate: Gateway, stories: Stories, ratings: Upstream) -> None:
    import gc
    import weakref

    stars = operation(ratings)
    error = Boom("down")
    kept = weakref.ref(error)

    async with gate:
        await ended(stars(error=error))
    del error
    gc.collect()

    assert kept() is None
    assert len(stories.of()) == 1


def test_long_texts_are_cut_to_one_line(stories: Stories) -> None:
    stories.call_finished(end(source=None, attempts=1, error=Boom("a\nb" + "x" * 10_000)))

    (story,) = stories.of()
    assert story.error is not None
    assert len(story.error.text) <= LONGEST + 3
    assert "\n" not in story.text


def test_one_upstream_drives_no_others_stories_out(stories: Stories) -> None:
    other = end(source=None, attempts=1, error=Boom("once"))
    stories.call_finished(other)
    for _ in range(10 * KEPT):
        stories.call_finished(
            CallFinished(
                upstream="loud", at=1.0, operation="op", outcome=Outcome.FAILED, source=None, duration=0.1,
                waited=0.0, attempts=1, error=Boom("again"),
            )
        )  # fmt: skip
        stories.call_finished(
            CallFinished(
                upstream="loud", at=1.0, operation="op", outcome=Outcome.SUCCESS, source=Source.LIVE, duration=0.1,
                waited=0.0, attempts=1, error=None,
            )
        )  # fmt: skip

    assert len(stories.of("ratings")) == 1
    assert len(stories.of("loud", 10_000)) == KEPT + KEPT_PLAIN
    ids = [story.id for story in stories.of(limit=10)]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 10
    assert stories.of("nobody") == []


def test_of_a_flood_a_hundred_a_second_are_told(stories: Stories) -> None:
    def fails(at: float, call: int) -> None:
        error = Boom("down")
        stories.attempt_failed(
            AttemptFailed(
                upstream="loud", at=at, operation="op", attempt=1, outcome=Outcome.FAILED, error=error, duration=0.1,
                call=call,
            )
        )  # fmt: skip
        stories.call_finished(
            CallFinished(
                upstream="loud", at=at, operation="op", outcome=Outcome.FAILED, source=None, duration=0.1,
                waited=0.0, attempts=1, error=error, call=call,
            )
        )  # fmt: skip

    for number in range(1000):
        fails(5.0 + number / 1001, number)
    told = stories.of("loud", 10_000)
    fails(6.5, 7)

    assert len(told) == A_SECOND
    assert told[0].at < 5.2
    assert stories.of("loud", 1)[0].at == 6.5
    assert len(stories.of("loud", 1)[0].tries) == 1
    assert not stories._under_way


# -- the log


def line(stories: Stories) -> tuple[str, str, str]:
    last = stories.lines[-1]
    return last.kind, last.upstream, last.text


@virtual
async def test_transitions_are_in_the_log_and_since_when_is_known(
    gate: Gateway, stories: Stories, ratings: Upstream
) -> None:
    loop = asyncio.get_running_loop()
    stars = operation(ratings)

    async with gate:
        await stars()
        assert stories.since("ratings") is None
        await asyncio.sleep(3.0)
        ratings.isolate()

        assert line(stories) == ("control", "ratings", "closed -> isolated")
        assert stories.since("ratings") == pytest.approx(loop.time())
        ratings.restore()
        assert line(stories) == ("control", "ratings", "isolated -> closed")


def test_a_circuit_of_a_key_is_told_with_it(stories: Stories) -> None:
    stories.circuit_changed(CircuitChanged(upstream="ratings", at=5.0, before="closed", after="open", key="ada"))

    assert line(stories) == ("circuit", "ratings", "closed -> open (ada)")
    assert stories.since("ratings", "ada") == 5.0
    assert stories.since("ratings") is None


def test_no_more_keys_are_remembered_than_are_shown(stories: Stories) -> None:
    for key in range(1000):
        stories.circuit_changed(CircuitChanged(upstream="ratings", at=5.0, before="closed", after="open", key=key))

    assert len(stories._kept["ratings"].circuits) == KEPT
    assert len(stories.lines) == LINES


def test_a_changed_policy_is_told_knob_by_knob() -> None:
    before = Policy(bulkhead=BulkheadPolicy(limit=20))
    after = Policy(
        bulkhead=BulkheadPolicy(limit=40), retry=RetryPolicy(budget=None), breaker=BreakerPolicy(slow_after=0.5)
    )

    assert list(changed(before, after)) == [
        ("retry.budget", "BudgetPolicy", None),
        ("breaker.slow_after", None, "0.5"),
        ("bulkhead.limit", 20, 40),
    ]
    assert list(changed(before, before)) == []


def test_durations_read_as_people_say_them() -> None:
    said = [spell(seconds) for seconds in (0.0000123, 0.012, 0.3, 1.0, 1.54, 8.0, 42.4, 300.0, 10_000.0)]

    assert said == ["12 us", "12 ms", "300 ms", "1 s", "1.5 s", "8 s", "42 s", "5 min", "3 h"]
    assert short("a  b\n c") == "a b c"
