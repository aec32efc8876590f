"""What a status means: the table, and what a policy says instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gateway import (
    CircuitOpen,
    ConfigError,
    Gateway,
    HttpPolicy,
    HttpRefused,
    HttpReply,
    NotSent,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Static,
)
from gateway.http.statuses import retry_after_in
from tests.edges.http.misbehaving import always, reply, serving
from tests.support import NEVER_OPENS, ONE_TRY, counted, ended

pytestmark = pytest.mark.asyncio
QUIET = Policy(retry=RetryPolicy(attempts=1, pushback_shared=False), breaker=NEVER_OPENS)
"""A `Retry-After` is told to its caller, and holds nobody else."""
SECONDS = "Retry-After: 7"

TABLE = [
    *((status, (), "success", "success") for status in (200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308)),
    *((status, (), "refused", "refused") for status in (400, 401, 403, 404, 405, 409, 410, 418, 422, 451, 499)),
    *((status, (), "not sent", "not sent") for status in (408, 425, 429)),
    *((status, (SECONDS,), "not sent", "not sent") for status in (408, 425, 429, 503)),
    *((status, (), "failed", "unknown") for status in (500, 501, 502, 503, 504, 599)),
    *((status, (), "failed", "unknown") for status in (0, 101, 600, 999)),
    *((status, (SECONDS,), "failed", "unknown") for status in (500, 502, 504)),
    (404, (SECONDS,), "refused", "refused"),
]


def kind_of(result: object) -> str:
    if isinstance(result, HttpReply):
        return "success"
    if isinstance(result, Refused):
        return "refused"
    if isinstance(result.__cause__, NotSent):  # type: ignore[attr-defined]
        assert result.outcome is Outcome.FAILED  # type: ignore[attr-defined]
        return "not sent"
    return str(result.outcome)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("status", "headers", "idempotent", "risky"), TABLE)
async def test_the_table(gate: Gateway, status: int, headers: tuple[str, ...], idempotent: str, risky: str) -> None:
    body = b"" if status in {204, 304} else b"why"
    async with serving(always(reply(body, *headers, status=status))) as server:
        up = gate.http("up", server.url, policy=QUIET)

        got, posted = await ended(up.get("/a?secret=1")), await ended(up.post("/a"))

        assert (kind_of(got), kind_of(posted)) == (idempotent, risky)
        if idempotent != "success":
            assert str(status) in str(got)
            assert "secret" not in str(got)
            assert getattr(got, "retry_after", None) == (7.0 if headers else None)


async def test_a_refusal_has_its_status_and_its_reply_and_opens_nothing(gate: Gateway) -> None:
    async with serving(always(reply(b'{"why":"no such user"}', status=404))) as server:
        up = gate.http("up", server.url)
        up.get.fallback(Static(None))

        with pytest.raises(HttpRefused) as refused:
            await up.get("/users/1")

        assert refused.value.status == 404
        assert refused.value.reply.json() == {"why": "no such user"}
        assert str(refused.value) == f"GET {server.url}/users/1: 404"
        assert counted(up) == {"asked": 1, "refused": 1, "attempts": 1}
        assert up.snapshot().breaker.failures == 0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_wish_to_be_left_alone_holds_for_all_calls(gate: Gateway, status: int) -> None:
    async with serving(always(reply(b"", SECONDS, status=status))) as server:
        up = gate.http("up", server.url, policy=Policy(retry=ONE_TRY))
        await ended(up.get("/a"))

        error = await ended(up.post("/b"))

        assert isinstance(error, CircuitOpen)
        assert 6 < error.retry_after <= 7
        assert len(server.requests) == 1


async def test_a_503_that_says_when_is_tried_again_then_for_a_post_too(gate: Gateway) -> None:
    replies = [reply(b"", "Retry-After: 0", status=503), reply(b"paid")]

    async def recovers(visit: object) -> None:
        while True:
            await visit.request()  # type: ignore[attr-defined]
            await visit.say(replies.pop(0))  # type: ignore[attr-defined]

    async with serving(recovers) as server:  # type: ignore[arg-type]
        up = gate.http("up", server.url, policy=Policy(retry=RetryPolicy(wait=lambda _: 0.0)))

        paid = await up.post("/charges")

        assert paid.body == b"paid"
        assert len(server.requests) == 2


async def test_a_proxy_s_502_may_hide_an_effect(gate: Gateway) -> None:
    async with serving(always(reply(b"bad gateway", status=502))) as server:
        up = gate.http("up", server.url)

        error = await ended(up.post("/charges"))

        assert error.outcome is Outcome.UNKNOWN
        assert error.__cause__.reply.status == 502
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "status", "idempotent", "risky"),
    [
        ({404: "success"}, 404, "success", "success"),
        ({"4xx": "failed"}, 404, "not sent", "not sent"),
        ({"4xx": "failed", 404: "refused"}, 404, "refused", "refused"),
        ({500: "refused"}, 500, "refused", "refused"),
        ({"5xx": "failed"}, 502, "not sent", "not sent"),
        ({429: "unknown"}, 429, "failed", "unknown"),
        ({"3xx": "unknown"}, 302, "failed", "unknown"),
        ({404: "success"}, 500, "failed", "unknown"),
    ],
)
async def test_a_policy_says_what_a_status_means(
    gate: Gateway, said: dict[int | str, str], status: int, idempotent: str, risky: str
) -> None:
    async with serving(always(reply(b"", status=status))) as server:
        up = gate.http("up", server.url, policy=QUIET, http=HttpPolicy(statuses=said))

        assert kind_of(await ended(up.get("/"))) == idempotent
        assert kind_of(await ended(up.post("/"))) == risky


@pytest.mark.parametrize("said", [{404: "fine"}, {99: "success"}, {"6xx": "success"}, {True: "success"}, [404]])
async def test_what_cannot_be_a_table_is_a_config_error(gate: Gateway, said: object) -> None:
    with pytest.raises(ConfigError, match=r"http\.statuses"):
        HttpPolicy(statuses=said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("000000000000005", 5.0),
        ("99999999999999999999", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("²", None),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
    ],
)
async def test_when_to_come_again(text: str | None, seconds: float | None) -> None:
    assert retry_after_in(text) == seconds


@pytest.mark.parametrize("gmt", [True, False])
async def test_when_to_come_again_as_a_date(gmt: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=gmt)

    seconds = retry_after_in(date)

    assert seconds is not None
    assert 55 < seconds <= 60
