"""No answer that was somebody's is ever anybody else's: by name, in memory, shared in flight, or after a restart.

Every body says whose it is and whether it may be kept; every answer that anybody gets is looked at. Users show who they
are by a header, a cookie, the context or `identity=`, or not at all; the server, which keeps to HTTP's rules, says
`private`, `no-store`, `Vary`, `Set-Cookie` or nothing, as it likes.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from fallbacks import LastGood
from fallbacks.stores import SQLiteStore
from gateway import Gateway, HttpPolicy, HttpReply, Operation, Source
from gateway.http.kept import Key, Names
from gateway.http.request import HttpRequest, request_of
from tests.edges.http.misbehaving import Visit, reply, serving
from tests.support import QUIET, ended

USERS = ("ada", "bob", "eve", None)
USER: ContextVar[str | None] = ContextVar("user", default=None)
ANYBODY = "anybody"


# -- names alone: thousands of requests, replies and restarts


HEADERS = ("Authorization", "Cookie", "Accept-Language", "X-User", "traceparent")
REQUESTS = st.builds(
    lambda path, headers: request_of("GET", path, headers=headers),
    st.sampled_from(["/a", "/b"]),
    st.dictionaries(st.sampled_from(HEADERS), st.sampled_from(["ada", "bob"]), max_size=3),
)
REPLIES = st.builds(
    lambda vary, control, cookie: HttpReply(200, (*vary, *control, *cookie), b"x"),
    st.sampled_from([(), *((("Vary", name),) for name in (*HEADERS, "*", "Accept-Encoding", "X-User, Cookie"))]),
    st.sampled_from([(), (("Cache-Control", "private"),), (("Cache-Control", "no-store"),)]),
    st.sampled_from([(), (("Set-Cookie", "a=b"),)]),
)
VISITS = st.lists(st.tuples(REQUESTS, REPLIES, st.booleans()), max_size=30)


@given(VISITS)
@settings(max_examples=200)
def test_what_is_found_under_a_name_may_be_said_to_who_asks(visits: list[tuple[HttpRequest, HttpReply, bool]]) -> None:
    names = Names("'api'.'get'", HttpPolicy())
    store: dict[Key, tuple[HttpRequest, HttpReply]] = {}

    for request, answer, restarted in visits:
        if restarted:
            names = Names("'api'.'get'", HttpPolicy())
        key = names.key(request)
        if key in store:
            assert_meant_for(request, *store[key])
        kept = names.kept_under(request, answer, key)
        if kept is not None:
            store[kept] = (request, answer)
            assert names.key(request) == kept


def assert_meant_for(request: HttpRequest, first: HttpRequest, answer: HttpReply) -> None:
    """By RFC 9111: the answer to the first request may be given to this one."""
    assert request.path == first.path
    ours, theirs = (one_of(headers) for headers in (request.headers, first.headers))
    varies = answer.headers.get("Vary", "").lower().split(", ")
    for name in ("authorization", "cookie", *varies):
        assert ours.get(name) == theirs.get(name)
    control = answer.headers.get("Cache-Control", "")
    assert control != "no-store"
    if control == "private" or "Set-Cookie" in answer.headers:
        assert "authorization" in ours or "cookie" in ours


def one_of(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


# -- programs, users, a server, and a file that outlives them


class Said(Struct, frozen=True):
    """What every body says."""

    whose: str
    keep: bool
    number: int


@dataclass
class Honest:
    """A server that says whose its answers are, as HTTP wants it, in one of several ways."""

    random: Random
    down: bool = False
    number: int = 0

    async def __call__(self, visit: Visit) -> None:
        while True:
            head = (await visit.request()).decode()
            down = self.down
            await asyncio.sleep(self.random.choice([0.0, 0.0, 0.002]))
            await visit.say(reply(b"", status=500) if down else self.said(head))

    def said(self, head: str) -> bytes:
        lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        by = next((name for name in ("authorization", "cookie", "x-user") if name in lines), None)
        whose = "nobody" if by is None else lines[by]
        self.number += 1
        if "/all/" in head or self.random.random() < 0.2:
            return self.answer(ANYBODY, True, self.random.choice([[], ["Vary: Accept-Encoding"], ["Vary: Origin"]]))
        ways = [
            (["Cache-Control: private, max-age=9"], True),
            (["Set-Cookie: session=1"], True),
            ([f"Vary: {by or 'x-user'}, Accept"], True),
            (["Cache-Control: no-store"], False),
            (["Vary: *"], False),
        ]
        if by in ("authorization", "cookie") or "/identity/" in head:
            ways.append(([], True))  # it need not say more: these are never shared
        lines_of, keep = self.random.choice(ways)
        return self.answer(whose, keep, lines_of)

    def answer(self, whose: str, keep: bool, lines: list[str]) -> bytes:
        return reply(json.dumps({"whose": whose, "keep": keep, "number": self.number}).encode(), *lines)


WAYS = ("authorization", "cookie", "x-user", "context", "identity", "all")


class Program:
    """One run of a program that asks the server for its users, in several ways."""

    def __init__(self, url: str, file: Path, random: Random) -> None:
        self.gate = Gateway()
        http = HttpPolicy(propagate=lambda: {} if USER.get() is None else {"Authorization": str(USER.get())})
        plain, knows = self.gate.http("plain", url, policy=QUIET), self.gate.http("knows", url, policy=QUIET, http=http)
        memory = LastGood(store=SQLiteStore(file))
        self.asks: dict[str, Operation[..., Said]] = {}
        for way in WAYS:
            up = knows if way == "context" else plain
            said: dict[str, Any] = {
                "coalesce": random.random() < 0.7,
                "fresh_for": random.choice([0.0, 60.0]),
                "revalidate": random.choice([None, "background"]),
                "identity": USER.get if way == "identity" else None,
            }
            self.asks[way] = up.get(f"/{way}/{{film}}", into=Said, fallback=[memory], **said)(named(way))

    async def ask(self, user: str | None, way: str, film: str, **wants: Any) -> tuple[str | None, Any]:
        """What somebody gets, in a task of his own."""
        USER.set(user)
        headers = {"x-user" if way == "identity" else way: user} if user is not None and way != "context" else {}
        ask = self.asks[way].using(**wants)
        return user, await ended(ask.ask(film, {} if way == "all" else headers))


def named(name: str) -> Any:
    async def asked(film: str, headers: dict[str, str]) -> Said: ...  # type: ignore[empty-body]

    asked.__name__ = name
    return asked


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(8))
async def test_no_answer_of_one_user_is_ever_anothers(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    server = Honest(random)
    seen: Counter[str] = Counter()
    async with serving(server.__call__) as where:
        for _ in range(4):  # runs of the program: it ends, and is started again
            server.down = random.random() < 0.3
            program = Program(where.url, tmp_path / "answers.sqlite", random)
            async with program.gate:
                for _ in range(6):
                    await visits(program, random, seen)
                    server.down = random.random() < 0.4
                    if random.random() < 0.2:
                        random.choice(list(program.asks.values())).forget_all()
                server.down = True
                await visits(program, random, seen)

    assert seen["live"] > 50
    assert seen["cached"] + seen["last_good"] + seen["coalesced"] > 20  # which of them is a matter of moments


async def visits(program: Program, random: Random, seen: Counter[str]) -> None:
    asked = []
    for _ in range(20):
        wants = random.choice([{}, {}, {}, {"only_live": True}, {"max_age": 0.005}])
        asked.append((random.choice(USERS), random.choice(WAYS), random.choice("12"), wants))
    tasks = [asyncio.create_task(program.ask(user, way, film, **wants)) for user, way, film, wants in asked]
    for user, answer in await asyncio.gather(*tasks):
        if isinstance(answer, Exception):
            continue
        seen[answer.source] += 1
        assert answer.value.whose in (user or "nobody", ANYBODY), answer
        assert answer.value.keep or answer.source in (Source.LIVE, Source.COALESCED), answer
