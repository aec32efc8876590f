"""Which HTTP answers are kept, for whom, and under which names: no sockets, requests and replies alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest

from gateway import HttpPolicy, HttpReply, KeyNeeded
from gateway.http.kept import Key, Names, size_of_reply, worth_keeping
from gateway.http.request import HttpRequest, request_of


def names(propagate: Callable[[], dict[str, str]] | None = None, **said: Any) -> Names:
    return Names("'api'.'get'", HttpPolicy(propagate=propagate), **said)


def get(path: str = "/a", method: str = "GET", **said: Any) -> HttpRequest:
    return request_of(method, path, **said)


def reply(status: int = 200, *lines: tuple[str, str], body: bytes = b"x") -> HttpReply:
    return HttpReply(status, lines, body)


def kept(of: Names, request: HttpRequest, answer: HttpReply | None = None, **said: Any) -> Key | None:
    return of.kept_under(request, reply() if answer is None else answer, of.key(request), **said)


def vary(*named: str) -> HttpReply:
    return reply(200, ("Vary", ", ".join(named)))


ADA = {"Authorization": "Bearer ada"}
BOB = {"Authorization": "Bearer bob"}
PRIVATE = reply(200, ("Cache-Control", "max-age=60, private"))
COOKIE = reply(200, ("Set-Cookie", "session=1"))


# -- what a request is called


@pytest.mark.parametrize(
    "other",
    [
        get("/b"),
        get("/a?x=1"),
        get(params={"x": 1}),
        get(method="HEAD"),
        get(method="PUT", json=1),
        get(method="PUT", data=b"1"),
        get(headers=ADA),
        get(headers={"Cookie": "who=ada"}),
        get(method="POST", idempotency_key="order 1"),
    ],
    ids=["path", "query", "params", "method", "json", "data", "authorization", "cookie", "deed"],
)
def test_what_a_server_answers_by_is_in_the_name(other: HttpRequest) -> None:
    of = names()

    assert of.key(other) != of.key(get())
    assert of.key(other) == names().key(other)
    hash(of.key(other))


def test_each_body_and_each_deed_has_a_name_of_its_own() -> None:
    of = names()
    posts = [
        get(method="POST", json=1),
        get(method="POST", json=2),
        get(method="POST", json=1, idempotency_key="1"),
        get(method="POST", json=1, idempotency_key="2"),
    ]

    assert len({of.key(post) for post in posts}) == 4
    assert len({of.key(post, "said by key=") for post in posts}) == 3  # that stands for the body, not for the deed


def test_credentials_and_bodies_stand_in_no_name() -> None:
    secrets = {"Authorization": "Bearer sesame", "Cookie": "pin=1234"}
    of = names()

    name = kept(of, get(method="PUT", headers=secrets, data=b"swordfish"), vary("Cookie", "Authorization"))

    assert not any(word in repr(name) for word in ("sesame", "1234", "swordfish"))


def test_the_name_of_a_header_has_no_case() -> None:
    of = names()

    assert of.key(get(headers=ADA)) == of.key(get(headers={"AUTHORIZATION": "Bearer ada"}))
    assert of.key(get(headers=ADA)) != of.key(get(headers=BOB))


def test_what_the_context_sends_along_says_who_asks_unless_the_request_does() -> None:
    who = {"authorization": "Bearer ada"}
    of = names(lambda: dict(who))
    by_ada = of.key(get())

    who["authorization"] = "Bearer bob"

    assert of.key(get()) != by_ada
    assert of.key(get(headers=ADA)) == by_ada


def test_arguments_that_are_secret_make_a_digest_of_the_path() -> None:
    of = names(secret=True)

    name = of.key(get("/users/ada", params={"token": "sesame"}))

    assert "ada" not in repr(name)
    assert "sesame" not in repr(name)
    assert name != of.key(get("/users/bob", params={"token": "sesame"}))


def test_an_identity_that_cannot_be_told_is_an_error_at_once() -> None:
    of = names(identity=object)

    with pytest.raises(KeyNeeded, match=r"identity=.*plain data"):
        of.key(get())


# -- what is kept


@pytest.mark.parametrize("status", [200, 201, 203, 204])
def test_a_success_is_kept_under_its_name(status: int) -> None:
    of = names()

    assert kept(of, get(), reply(status)) == of.key(get())


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410, 500])
def test_what_is_no_success_is_kept_where_that_is_asked_for(status: int) -> None:
    of = names()

    assert kept(of, get(), reply(status)) is None
    assert kept(of, get(), reply(status), asked_for=True) == of.key(get())


@pytest.mark.parametrize("status", [206, 304])
@pytest.mark.parametrize("asked_for", [False, True])
def test_a_part_and_a_not_modified_are_for_who_asked_for_that(status: int, asked_for: bool) -> None:
    assert kept(names(), get(headers={"Range": "bytes=0-1"}), reply(status), asked_for=asked_for) is None


@pytest.mark.parametrize("said", ["no-store", "No-Store", "max-age=60,no-store", "private, no-store", "no-store=x"])
def test_what_is_not_to_be_stored_is_not(said: str) -> None:
    of = names(identity=lambda: "ada")

    assert kept(of, get(), reply(200, ("cache-control", said)), asked_for=True) is None
    assert kept(of, get(headers={"Cache-Control": said})) is None


def test_directives_may_come_in_several_lines() -> None:
    assert kept(names(), get(), reply(200, ("Cache-Control", "max-age=9"), ("Cache-Control", "private"))) is None


@pytest.mark.parametrize("said", ['community="no-store"', "no-storey", "max-age=60", "no-cache", ""])
def test_what_only_looks_like_it_is_kept(said: str) -> None:
    assert kept(names(), get(), reply(200, ("Cache-Control", said))) is not None


@pytest.mark.parametrize("answer", [PRIVATE, COOKIE], ids=["private", "set-cookie"])
def test_what_is_for_one_is_kept_where_it_is_known_for_whom(answer: HttpReply) -> None:
    assert kept(names(), get(), answer) is None
    assert kept(names(identity=lambda: None), get(), answer) is None
    assert kept(names(), get(headers={"X-Api-Key": "ada"}), answer) is None
    assert kept(names(), get(headers=ADA), answer) is not None
    assert kept(names(), get(headers={"Cookie": "who=ada"}), answer) is not None
    assert kept(names(lambda: ADA), get(), answer) is not None
    assert kept(names(identity=lambda: "ada"), get(), answer) is not None


def test_who_has_become_another_while_he_waited_is_given_nothing_and_gives_nothing() -> None:
    user = ["ada"]
    of = names(identity=lambda: user[0])
    key = of.key(get())

    user[0] = "bob"

    assert of.kept_under(get(), reply(), key) is None
    assert not of.is_shareable(get(), reply(), key)


def test_an_identity_that_is_gone_when_the_answer_comes_costs_no_answer() -> None:
    user: list[Hashable] = ["ada"]
    of = names(identity=lambda: user[0])
    key = of.key(get())

    user.clear()

    assert of.kept_under(get(), reply(), key) is None
    assert not of.is_shareable(get(), reply(), key)


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (reply(body=b"x"), True),
        (reply(201, body=b"0"), True),
        (reply(body=b""), False),
        (reply(body=b" [ ] "), True),
        (reply(body=b"[]\r\n"), False),
        (reply(body=b"{}"), False),
        (reply(body=b"null"), False),
        (reply(204), True),
        (reply(204, body=b""), False),
        (reply(302, body=b"x"), False),
        (reply(404, body=b"x"), False),
    ],
    ids=lambda one: f"{one.status} {one.body!r}" if isinstance(one, HttpReply) else str(one),
)
def test_a_success_with_something_in_it_is_worth_keeping(answer: HttpReply, worth: bool) -> None:
    assert worth_keeping(answer) is worth


def test_the_answer_to_a_head_is_in_its_headers() -> None:
    assert worth_keeping(reply(body=b""), "HEAD")
    assert not worth_keeping(reply(404, body=b""), "HEAD")


def test_a_reply_takes_the_bytes_of_its_body_and_its_lines() -> None:
    assert size_of_reply(reply(200, ("Age", "10"), ("X", "y"), body=b"12345")) == 5 + 5 + 2


# -- what its headers change


def test_an_answer_that_varies_is_found_by_requests_that_say_the_same_there() -> None:
    of = names()
    de, en = get(headers={"Accept-Language": "de", "X": "1"}), get(headers={"Accept-Language": "en", "X": "1"})

    name = kept(of, de, vary("accept-language"))

    assert of.key(get(headers={"ACCEPT-LANGUAGE": "de", "X": "2"})) == name
    assert of.key(en) != name
    assert of.key(get()) != name


def test_an_answer_that_does_not_vary_is_found_whatever_a_request_says() -> None:
    of = names()

    for stored in (get(), get(headers={"X": "1"})):
        name = kept(of, stored)

        assert {of.key(other) for other in (get(), get(headers={"X": "1"}), get(headers={"X": "2"}))} == {name}


@pytest.mark.parametrize(
    "answer",
    [reply(), vary("Origin"), vary("Accept-Language"), vary("Accept-Encoding")],
    ids=["no Vary", "Origin", "Accept-Language", "Accept-Encoding"],
)
def test_a_request_without_headers_of_its_own_finds_its_answer_after_a_restart(answer: HttpReply) -> None:
    assert kept(names(), get(), answer) == names().key(get())
    assert kept(names(), get(headers=ADA), answer) == names().key(get(headers=ADA))


@pytest.mark.parametrize("answer", [reply(), vary("Accept-Encoding")], ids=["no Vary", "Accept-Encoding"])
def test_a_request_with_headers_finds_after_a_restart_what_does_not_vary(answer: HttpReply) -> None:
    said = get(headers={"Accept": "text/html"})

    assert kept(names(), said, answer) == names().key(said)


@pytest.mark.parametrize("stored", [{}, {"Accept-Language": "en"}, {"X": "1"}], ids=str)
def test_after_a_restart_no_request_finds_what_was_said_in_another_language(stored: dict[str, str]) -> None:
    name = kept(names(), get(headers=stored), vary("Accept-Language"))

    assert names().key(get(headers={"Accept-Language": "de"})) != name


def test_headers_that_all_requests_have_tell_none_from_another() -> None:
    constant = (("X-Api-Key", "1"), ("Accept", "text/html"))
    usual = get(headers=constant)

    name = kept(names(constant=constant), usual, vary("Accept"))

    assert name == names(constant=constant).key(usual)
    assert name != names(constant=constant).key(get(headers={"X-Api-Key": "2"}))


@pytest.mark.parametrize("said", ["*", "Accept, *", " * "])
def test_an_answer_that_varies_by_anything_is_not_kept_and_not_shared(said: str) -> None:
    of = names(identity=lambda: "ada")

    assert kept(of, get(), reply(200, ("Vary", said))) is None
    assert not of.is_shareable(get(), reply(200, ("Vary", said)), of.key(get()))


def test_what_an_answer_varies_by_is_what_the_last_one_said() -> None:
    of = names()
    de = get(headers={"Accept-Language": "de"})

    kept(of, de, vary("Accept-Language"))
    name = kept(of, de, reply())

    assert of.key(get(headers={"Accept-Language": "en"})) == name


def test_what_is_known_of_headers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.kept.VARIES_KEPT", 10)
    of = names()

    for number in range(100):
        kept(of, get(f"/{number}"))

    assert len(of._vary) == 10


# -- who may share a flight


def test_requests_that_differ_in_what_a_server_could_look_at_share_no_flight() -> None:
    of = names()
    requests = [
        get(),
        get("/b"),
        get(headers=ADA),
        get(headers=BOB),
        get(headers={"X-User": "ada"}),
        get(headers={"X-User": "bob"}),
        get(headers={"baggage": "user=ada"}),
        get(headers={"Range": "bytes=0-1"}),
        get(method="POST", json=1, idempotency_key="1"),
        get(method="POST", json=1, idempotency_key="2"),
    ]

    assert len({of.flight_key(request, of.key(request)) for request in requests}) == len(requests)


def test_a_trace_is_no_reason_to_ask_twice() -> None:
    of = names()
    one, other = get(headers={"traceparent": "00-1-2-01"}), get(headers={"TraceParent": "00-3-4-01"})

    assert of.flight_key(one, of.key(one)) == of.flight_key(other, of.key(other))
    assert not of.is_shareable(one, vary("traceparent"), of.key(one))
    assert of.is_shareable(one, vary("Accept"), of.key(one))


def test_what_a_reply_varied_by_before_changes_nothing_for_those_in_flight() -> None:
    of = names()
    request = get(headers={"Accept": "text/html"})
    before = of.flight_key(request, of.key(request))

    kept(of, request, vary("Accept"))

    assert of.flight_key(request, of.key(request)) == before


NO_STORE = reply(200, ("Cache-Control", "no-store"))


@pytest.mark.parametrize("answer", [PRIVATE, COOKIE, NO_STORE], ids=["private", "set-cookie", "no-store"])
def test_what_is_for_one_is_shared_by_those_who_are_the_same(answer: HttpReply) -> None:
    of, by_ada = names(), get(headers=ADA)

    assert of.is_shareable(by_ada, answer, of.key(by_ada))
    assert not of.is_shareable(get(), answer, of.key(get()))
    assert not of.is_shareable(by_ada, answer, None)
    assert of.is_shareable(by_ada, reply(), None)


# -- what is to be forgotten


def test_a_request_is_forgotten_in_all_its_variants() -> None:
    of = names()
    de, en = (kept(of, get(headers={"Accept-Language": said}), vary("Accept-Language")) for said in ("de", "en"))
    meant = of.variants(of.key(get()))

    assert [meant(name) for name in (de, en, of.key(get()))] == [True, True, True]
    assert not meant(of.key(get("/b")))
    assert not meant(of.key(get(headers=ADA)))
    assert not meant("not of HTTP")


def test_paths_are_forgotten_by_how_they_begin_for_all_who_asked() -> None:
    of = names()
    meant = of.below("/users/1")

    assert all(meant(of.key(get(path, headers=ADA))) for path in ("/users/1", "/users/1/films", "/users/10"))
    assert not meant(of.key(get("/users")))
    assert not meant(Names("'api'.'other'", HttpPolicy()).key(get("/users/1")))
    assert not meant("not of HTTP")
    assert not of.below("/users/1", whole=True)(of.key(get("/users/10")))


def test_where_paths_are_secret_all_are_forgotten() -> None:
    of = names(secret=True)

    assert of.below("/users/1")(of.key(get("/users/2")))
