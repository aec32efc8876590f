"""What a caller gets, and what a tier is asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import fallbacks
from fallbacks import Alternate, Answer, LastGood, Question, Source, Static, Tier, handler
from tests.support import Boom


def question(**given: Any) -> Question:
    facts: dict[str, Any] = {"key": "k", "args": (), "kwargs": {}, "error": Boom(), "now": 0.0, "deadline": 1.0}
    return Question(**{**facts, **given})


def test_a_plain_answer_is_live_fresh_and_not_degraded() -> None:
    answer = Answer("v")

    assert (answer.value, answer.source, answer.age, answer.error) == ("v", Source.LIVE, 0.0, None)
    assert answer.degraded is False


@pytest.mark.parametrize("source", Source)
def test_an_answer_with_an_error_is_degraded_whatever_its_source(source: Source) -> None:
    assert Answer("v", source, 0.0, Boom()).degraded is True
    assert Answer("v", source).degraded is False


@pytest.mark.parametrize("name", ["value", "source", "age", "error", "degraded", "invented"])
def test_an_answer_cannot_be_changed(name: str) -> None:
    answer = Answer("v")

    with pytest.raises(AttributeError):
        setattr(answer, name, "w")

    assert answer == Answer("v")


@pytest.mark.parametrize("name", [*Question.__struct_fields__, "invented"])
def test_a_question_cannot_be_changed(name: str) -> None:
    asked = question()

    with pytest.raises(AttributeError):
        setattr(asked, name, "w")

    assert getattr(asked, name, None) != "w"


def test_a_question_that_says_no_more_is_of_a_call_that_failed_after_it_was_sent() -> None:
    asked = question()

    assert (asked.outcome, asked.idempotent, asked.not_sent) == ("failed", None, False)


def test_answers_are_equal_if_all_they_say_is_equal() -> None:
    error = Boom()

    assert Answer(1, Source.STATIC, 2.0, error) == Answer(1, Source.STATIC, 2.0, error)
    assert Answer(1, Source.STATIC, 2.0) != Answer(1, Source.STATIC, 3.0)
    assert copy.copy(Answer(1)) == Answer(1)


def test_an_answer_may_say_the_type_of_its_value() -> None:
    assert type(Answer[int](1)) is Answer


def test_sources_are_their_own_names() -> None:
    names = {"live", "coalesced", "cached", "last_good", "static", "handler", "alternate"}

    assert set(Source) == names
    assert f"{Source.LAST_GOOD}" == "last_good"


@pytest.mark.parametrize(
    "tier", [Static(1), handler(print), LastGood(), Alternate(None)], ids=lambda t: type(t).__name__
)  # type: ignore[arg-type]
def test_what_the_library_brings_are_tiers(tier: object) -> None:
    assert isinstance(tier, Tier)


def test_what_has_no_answer_is_no_tier() -> None:
    assert not isinstance(Answer("v"), Tier)


def test_the_public_names_are_sorted_and_there() -> None:
    assert fallbacks.__all__ == sorted(fallbacks.__all__)
    assert all(hasattr(fallbacks, name) for name in fallbacks.__all__)
