"""What a caller gets, and what a tier is asked."""

from __future__ import annotations

import copy
from math import inf
from types import SimpleNamespace
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


# -- what it tells an HTTP client


class Sent(Exception):
    """Stands for a `GatewayError`, of which this package knows nothing."""

    def __init__(self, attempts: int, status: int | None = None) -> None:
        super().__init__()
        self.attempts = attempts
        self.__cause__ = Boom()
        if status is not None:
            self.__cause__.reply = SimpleNamespace(status=status)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer("v"), "fwd=miss"),
        (Answer("v", Source.COALESCED), "fwd=miss; collapsed"),
        (Answer("v", Source.CACHED, 3.0, None, 1.0), "hit"),
        (Answer("v", Source.LAST_GOOD, 3.0, Sent(2), 1.0), "fwd=stale; detail=last_good"),
        (Answer("v", Source.LAST_GOOD, 3.0, Sent(2, 503), 1.0), "fwd=stale; fwd-status=503; detail=last_good"),
        (Answer("v", Source.LAST_GOOD, 3.0, Sent(0), 1.0), "hit; detail=last_good"),
        (Answer("v", Source.STATIC, 0.0, Sent(1)), "fwd=miss; detail=static"),
        (Answer("v", Source.STATIC, 0.0, Sent(1, 500)), "fwd=miss; fwd-status=500; detail=static"),
        (Answer("v", Source.STATIC, 0.0, Sent(0)), "detail=static"),
        (Answer("v", Source.HANDLER, 0.0, Sent(0)), "detail=handler"),
        (Answer("v", Source.ALTERNATE, 0.0, Sent(0)), "fwd=miss; detail=alternate"),
        (Answer("v", Source.HANDLER, 0.0, Boom()), "fwd=miss; detail=handler"),
    ],
    ids=str,
)
def test_a_client_is_told_where_an_answer_came_from(answer: Answer[str], status: str) -> None:
    headers = answer.to_headers("catalog")

    assert headers["Cache-Status"] == f"catalog; {status}"
    assert ("Age" in headers) is (answer.stored_at is not None)


@pytest.mark.parametrize(("age", "told"), [(0.0, "0"), (0.9, "0"), (12.7, "12"), (-1.0, "0"), (inf, "2147483648")])
def test_a_client_is_told_the_age_in_whole_seconds(age: float, told: str) -> None:
    assert Answer("v", Source.CACHED, age, None, 1.0).to_headers()["Age"] == told


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("gateway", "gateway"),
        ("catalog.example:8081", "catalog.example:8081"),
        ("*", "*"),
        ("the catalog", '"the catalog"'),
        ("8081", '"8081"'),
        ('say "a\\b"', r'"say \"a\\b\""'),
        ("", '""'),
    ],
)
def test_a_name_is_spelled_as_structured_headers_have_it(name: str, spelled: str) -> None:
    assert Answer("v").to_headers(name)["Cache-Status"] == f"{spelled}; fwd=miss"


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x", "a\nb", "é", "\x7f"], ids=repr)
def test_a_name_that_is_more_than_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"Answer\.to_headers cache"):
        Answer("v").to_headers(name)
