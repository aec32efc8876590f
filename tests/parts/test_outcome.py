"""The words for how calls end, and the errors that say what may be done next."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from math import inf, nan
from typing import Any

import pytest

import gateway
from gateway import (
    BulkheadFull,
    CircuitOpen,
    ConfigError,
    ConfigErrors,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    GatewayClosed,
    GatewayError,
    KeyNeeded,
    NotSent,
    Outcome,
    Refused,
    Rejected,
    Unknown,
    UnknownName,
    UnknownTimeout,
    WrongLoop,
    outcome,
)
from gateway.outcome import retry_after_of

REJECTIONS = [CircuitOpen, BulkheadFull, DeadlineExceeded, GatewayClosed]
ERRORS = [GatewayError, Rejected, *REJECTIONS, Failed, FailedTimeout, Unknown, UnknownTimeout]


class Said(Exception):
    """A foreign error that says when to come back."""

    def __init__(self, retry_after: object) -> None:
        self.retry_after = retry_after


def again(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own


def test_outcomes_are_their_own_names() -> None:
    assert [str(one) for one in Outcome] == ["success", "refused", "failed", "unknown", "rejected", "cancelled"]
    assert Outcome.FAILED == "failed"


@pytest.mark.parametrize("kind", [Rejected, *REJECTIONS])
def test_what_was_never_sent_was_rejected(kind: type[GatewayError]) -> None:
    assert issubclass(kind, Rejected)
    assert kind().outcome is Outcome.REJECTED


@pytest.mark.parametrize(("kind", "ended"), [(Failed, Outcome.FAILED), (Unknown, Outcome.UNKNOWN)])
def test_a_failure_without_effect_and_one_that_may_have_had_an_effect_are_two(
    kind: type[GatewayError], ended: Outcome
) -> None:
    timeout = {Failed: FailedTimeout, Unknown: UnknownTimeout}[kind]

    assert kind().outcome is timeout().outcome is ended
    assert issubclass(timeout, kind)
    assert not issubclass(Failed, Unknown)
    assert not issubclass(Unknown, Failed)


@pytest.mark.parametrize("kind", ERRORS)
def test_what_ran_out_of_time_is_a_timeout_error_and_nothing_else_is(kind: type[GatewayError]) -> None:
    in_time = kind not in {DeadlineExceeded, FailedTimeout, UnknownTimeout}

    assert issubclass(kind, TimeoutError) is not in_time


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_says_nothing_that_nobody_told_it(kind: type[GatewayError]) -> None:
    error = kind("why")

    assert isinstance(error, GatewayError)
    assert str(error) == "why"
    assert (error.upstream, error.operation, error.attempts) == ("", "", 0)
    assert (error.retry_after, error.waited_for) == (None, None)


def test_a_full_pool_says_what_was_full() -> None:
    assert BulkheadFull().reason == "queue_full"


@pytest.mark.parametrize("kind", [Refused, NotSent])
def test_what_users_raise_is_no_error_of_the_gateway(kind: type[Refused | NotSent]) -> None:
    plain, later = kind("no", 404), kind("no", retry_after=3.0)

    assert not isinstance(plain, GatewayError)
    assert (plain.args, plain.retry_after) == (("no", 404), None)
    assert (later.args, later.retry_after) == (("no",), 3.0)


def test_a_config_error_says_field_problem_and_remedy() -> None:
    error = ConfigError("bulkhead.limit", "0 is too few", "give 1 or more")

    assert isinstance(error, ValueError)
    assert (error.field, error.problem, error.remedy) == ("bulkhead.limit", "0 is too few", "give 1 or more")
    assert str(error) == "bulkhead.limit: 0 is too few; give 1 or more"


@pytest.mark.parametrize(
    ("name", "known", "remedy"),
    [
        ("ratngs", {"info", "ratings"}, "did you mean 'ratings'?"),
        ("x", {"ratings", "info"}, "known are: info, ratings"),
        ("x", (), "known are: none yet"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_one_or_all_of_them(name: str, known: Any, remedy: str) -> None:
    error = UnknownName.among("upstream", name, known)

    assert type(error) is UnknownName
    assert isinstance(error, ConfigError)
    assert isinstance(error, LookupError)
    assert (error.field, error.problem, error.remedy) == ("upstream", f"there is no {name!r}", remedy)


def test_misuse_is_an_error_of_the_kind_python_has_for_it() -> None:
    assert issubclass(KeyNeeded, TypeError)
    assert issubclass(WrongLoop, RuntimeError)
    assert not issubclass(KeyNeeded, GatewayError)
    assert not issubclass(WrongLoop, GatewayError)


@pytest.mark.parametrize("duplicate", [again, copy.copy, copy.deepcopy])
def test_errors_survive_being_copied_and_sent_to_another_process(duplicate: Any) -> None:
    failure = FailedTimeout("late")
    failure.upstream, failure.attempts, failure.waited_for = "ratings", 2, "attempt"

    seen = duplicate(failure)
    refused = duplicate(Refused("no", retry_after=3.0))
    config = duplicate(ConfigError("field", "problem", "remedy"))

    assert (type(seen), str(seen), seen.upstream, seen.attempts, seen.waited_for) == (
        FailedTimeout, "late", "ratings", 2, "attempt",
    )  # fmt: skip
    assert (refused.args, refused.retry_after) == (("no",), 3.0)
    assert (config.field, str(config)) == ("field", "field: problem; remedy")


@pytest.mark.parametrize(("said", "seconds"), [(0, 0.0), (3, 3.0), (0.25, 0.25), (inf, inf)])
def test_an_error_may_say_in_seconds_when_to_come_back(said: float, seconds: float) -> None:
    found = retry_after_of(Said(said))

    assert found == seconds
    assert type(found) is float


@pytest.mark.parametrize("said", [None, nan, -1.0, -inf, True, "3", b"3", [3]], ids=repr)
def test_what_is_no_number_of_seconds_says_nothing(said: object) -> None:
    assert retry_after_of(Said(said)) is None


def test_an_error_that_knows_of_no_time_says_nothing() -> None:
    assert retry_after_of(ValueError("no")) is None
    assert retry_after_of(Refused("no")) is None


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    drawn = re.findall(r"^([ │├└─]*)([A-Z]\w+)(?: \((\w+)\))?(?:  |$)", str(outcome.__doc__), re.MULTILINE)
    branch: list[type] = []

    for indent, name, also in drawn:
        kind = getattr(gateway, name, None) or getattr(builtins, name)
        branch = [*branch[: len(indent) // 4], kind]
        assert all(issubclass(kind, above) for above in branch)
        assert not also or issubclass(kind, getattr(builtins, also))

    assert {name for _, name, _ in drawn} == {
        kind.__name__
        for kind in [Exception, *ERRORS, Refused, NotSent, ConfigError, ConfigErrors, UnknownName, KeyNeeded, WrongLoop]
    }
