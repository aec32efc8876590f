"""Ten ways in that must not be any, and what is told to those who try."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import pytest_asyncio

from gateway import BulkheadPolicy, ConfigError, Gateway, Policy
from gateway.admin import Admin, serve, server
from gateway.admin.auth import GUESSES, REMOTES, Guards, Guesses, remote_of
from gateway.admin.pages import page
from gateway.admin.routes import LARGEST
from tests.edges.admin.asking import admin_of, ask
from tests.support import until

pytestmark = pytest.mark.asyncio

WRITE, READ = "write-" + "w" * 20, "read-" + "r" * 20
POLICY = "/upstreams/ratings/policy"
PATCH = {"bulkhead": {"limit": 40}}
NASTY = '<script>alert("1")</script>&\u2028\u202e'


@pytest.fixture
def gate() -> Gateway:
    gate = Gateway()
    gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=20)))
    return gate


@pytest_asyncio.fixture
async def guarded(gate: Gateway) -> AsyncIterator[Admin]:
    async with admin_of(gate, token=WRITE, read_token=READ) as admin:
        yield admin


@pytest_asyncio.fixture
async def open_(gate: Gateway) -> AsyncIterator[Admin]:
    async with admin_of(gate) as admin:
        yield admin


def limit(gate: Gateway) -> float:
    return gate["ratings"].policy.bulkhead.limit


# -- 1, 2, 3: tokens


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/state"),
        ("GET", "/live"),
        ("GET", "/upstreams"),
        ("GET", POLICY),
        ("GET", "/calls"),
        ("GET", "/advice"),
        ("GET", "/audit"),
        ("GET", "/nothing-there"),
        ("PATCH", POLICY),
        ("POST", "/upstreams/ratings/isolate"),
        ("POST", "/"),
    ],
)
async def test_without_a_token_nothing_is_told_and_nothing_done(
    guarded: Admin, gate: Gateway, method: str, path: str
) -> None:
    reply = await ask(guarded, method, path, json_=PATCH if method == "PATCH" else None)

    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert limit(gate) == 20
    assert gate["ratings"].snapshot().breaker.state == "closed"


@pytest.mark.parametrize("token", ["wrong", WRITE[:-1], WRITE + "w", WRITE.upper(), "", "é", f"{WRITE} {WRITE}"])
async def test_a_wrong_token_is_as_good_as_none(guarded: Admin, gate: Gateway, token: str) -> None:
    reply = await ask(guarded, "PATCH", POLICY, json_=PATCH, token=token)

    assert reply.status == 401
    assert limit(gate) == 20


@pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
async def test_a_token_counts_as_a_bearer_token_only(guarded: Admin, scheme: str) -> None:
    assert (await ask(guarded, "GET", "/state", Authorization=f"{scheme} {WRITE}".strip())).status == 401


async def test_as_a_password_a_token_may_look_and_no_more(guarded: Admin, gate: Gateway) -> None:
    """Hystrix' dashboard knows no other way."""
    password = f"Basic {b64encode(f'ada:{WRITE}'.encode()).decode()}"

    looked = await ask(guarded, "GET", "/state", Authorization=password)
    written = await ask(guarded, "PATCH", POLICY, json_=PATCH, Authorization=password)
    wrong = await ask(guarded, "GET", "/state", Authorization=f"Basic {b64encode(b'ada:x').decode()}")

    assert (looked.status, written.status, wrong.status) == (200, 403, 401)
    assert limit(gate) == 20


async def test_two_tokens_are_none(guarded: Admin) -> None:
    assert (await ask(guarded, "GET", "/state", token=WRITE, authorization=f"Bearer {READ}")).status == 401


async def test_the_read_token_reads_and_writes_nothing(guarded: Admin, gate: Gateway) -> None:
    looked = await ask(guarded, "GET", POLICY, token=READ)
    written = await ask(guarded, "PATCH", POLICY, json_=PATCH, token=READ)
    isolated = await ask(guarded, "POST", "/upstreams/ratings/isolate", token=READ)

    assert (looked.status, written.status, isolated.status) == (200, 403, 403)
    assert limit(gate) == 20
    assert gate["ratings"].snapshot().breaker.state == "closed"


async def test_the_write_token_does_both(guarded: Admin, gate: Gateway) -> None:
    assert (await ask(guarded, "GET", POLICY, token=WRITE)).status == 200
    assert (await ask(guarded, "PATCH", POLICY, json_=PATCH, token=WRITE)).status == 200
    assert limit(gate) == 40


async def test_tokens_may_come_from_the_environment(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", WRITE)
    monkeypatch.setenv("GATEWAY_ADMIN_READ_TOKEN", READ)

    async with admin_of(gate) as admin:
        statuses = [(await ask(admin, "GET", "/state", token=token)).status for token in (None, READ, WRITE)]

    assert statuses == [401, 200, 200]


async def test_the_page_itself_needs_no_token_for_it_asks_for_one(guarded: Admin) -> None:
    replies = [await ask(guarded, "GET", path) for path in page()]

    assert [reply.status for reply in replies] == [200] * len(page())
    assert replies[0].headers["content-type"] == "text/html; charset=utf-8"
    assert all(WRITE.encode() not in reply.body for reply in replies)


# -- 4, 5, 6: other sites


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_foreign_host_is_not_served(open_: Admin, gate: Gateway, host: str, method: str) -> None:
    path = "/state" if method == "GET" else "/upstreams/ratings/isolate"

    reply = await ask(open_, method, path, host=host)

    assert reply.status in {400, 403}  # without a Host at all it is no HTTP/1.1
    assert b"ratings" not in reply.body
    assert gate["ratings"].snapshot().breaker.state == "closed"


async def test_two_hosts_are_none(open_: Admin) -> None:
    assert (await ask(open_, "GET", "/state", host="127.0.0.1", HOST="evil.example")).status in {400, 403}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "localhost.", "proxy.example"])
async def test_our_own_names_are_served_whatever_the_port(gate: Gateway, host: str) -> None:
    async with admin_of(gate, hosts=["proxy.example"]) as admin:
        assert (await ask(admin, "GET", "/state", host=host)).status == 200


@pytest.mark.parametrize("token", [None, WRITE])
@pytest.mark.parametrize(
    "said",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://[evil"},
    ],
)
async def test_another_site_changes_nothing(gate: Gateway, said: dict[str, str], token: str | None) -> None:
    async with admin_of(gate, token=token) as admin:
        reply = await ask(admin, "PATCH", POLICY, json_=PATCH, token=token, **said)

    assert reply.status == 403
    assert limit(gate) == 20


async def test_the_page_of_this_server_may_change_things(open_: Admin, gate: Gateway) -> None:
    own = {"Origin": open_.url, "Sec_Fetch_Site": "same-origin"}

    assert (await ask(open_, "PATCH", POLICY, json_=PATCH, **own)).status == 200
    assert limit(gate) == 40


async def test_no_site_is_told_that_it_may_read(open_: Admin) -> None:
    asked = await ask(open_, "OPTIONS", POLICY, Origin="http://evil.example", Access_Control_Request_Method="PATCH")
    read = await ask(open_, "GET", "/state", Origin="http://evil.example")

    assert asked.status == 405
    assert not [name for reply in (asked, read) for name in reply.headers if name.startswith("access-control")]
    assert read.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/live", "/live?details=", "/hystrix.stream"])
async def test_of_a_stream_nobody_gets_the_headers_alone(open_: Admin, path: str) -> None:
    reply = await ask(open_, "HEAD", path)

    assert (reply.status, reply.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain"])
@pytest.mark.parametrize("body", [b"", b'{"bulkhead": {"limit": 40}}'])
async def test_a_form_does_nothing(open_: Admin, gate: Gateway, kind: str, body: bytes) -> None:
    replies = [
        await ask(open_, method, path, body=body, Content_Type=kind)
        for method, path in (("PATCH", POLICY), ("POST", "/upstreams/ratings/isolate"))
    ]

    assert [reply.status for reply in replies] == [415, 415]
    assert limit(gate) == 20
    assert gate["ratings"].snapshot().breaker.state == "closed"


# -- 7: paths


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../../../etc/passwd",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/static/%2e%2e/server.py",
        "/static/%252e%252e/server.py",
        "/static//etc/passwd",
        "/static/..\\..\\server.py",
        "/static/",
        "/static",
        "//etc/passwd",
        "/static/index.html%00.png",
        "/upstreams/..%2f..%2fetc/policy",
        "/upstreams/%00/policy",
    ],
)
async def test_no_path_leads_out(open_: Admin, path: str) -> None:
    reply = await ask(open_, "GET", path)

    assert reply.status in {400, 404}
    assert b"root:" not in reply.body
    assert b"import" not in reply.body


# -- 8: names


async def test_a_name_with_markup_is_data_and_nothing_else() -> None:
    gate = Gateway()
    gate.upstream(NASTY)
    async with admin_of(gate) as admin:
        state = await ask(admin, "GET", "/state")
        path = f"/upstreams/{quote(NASTY, safe='')}/policy"
        patched = await ask(admin, "PATCH", path, json_=PATCH, X_Gateway_Operator=quote(NASTY + "\r\n\x1b[31m"))
        missing = await ask(admin, "GET", "/upstreams/%3Cscript%3E/policy")
        audit = await ask(admin, "GET", "/audit")

    for reply in (state, patched, missing, audit):
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert state.json["upstreams"][0]["name"] == NASTY
    who = audit.json["audit"][0]["who"]
    assert not [c for c in who if not c.isprintable()], "it is shown on terminals, too"
    assert missing.status == 404


# -- 9: a token in the URL


@pytest.mark.parametrize("target", [f"/state?token={WRITE}", f"/state?x={WRITE}", "/?access_token=1", f"/x/{READ}"])
async def test_a_token_in_the_url_is_refused_even_beside_a_right_one(guarded: Admin, target: str) -> None:
    bare, beside = await ask(guarded, "GET", target), await ask(guarded, "GET", target, token=WRITE)

    assert (bare.status, beside.status) == (401, 401)
    assert "kept by logs" in beside.problem


@pytest.mark.parametrize("target", ["/?{}", "/static/style.css?x={}", "/state?x={}", "/upstreams/{}/policy", "/x/{}"])
async def test_a_url_does_not_tell_whether_a_word_in_it_is_a_token(guarded: Admin, target: str) -> None:
    """Or all words of a dictionary could be tried there, and none of them would count as a guess."""
    answers = [await ask(guarded, "GET", target.format(word)) for word in ("guess", WRITE, READ)]

    assert len({(answer.status, answer.body) for answer in answers}) == 1


# -- 10: brute force


async def test_who_guesses_is_not_listened_to_for_a_while(guarded: Admin) -> None:
    guesses = [(await ask(guarded, "GET", "/state", token=f"guess-{n}")).status for n in range(GUESSES + 5)]

    right = await ask(guarded, "GET", "/state", token=WRITE)

    assert guesses == [401] * GUESSES + [429] * 5
    assert right.status == 429, "or each further guess would be answered"
    assert 1 <= int(right.headers["retry-after"]) <= 60


async def test_who_sends_no_token_guesses_nothing(guarded: Admin) -> None:
    """A page of another site can send such requests from the operator's own machine; it must not lock him out."""
    for _ in range(2 * GUESSES):
        await ask(guarded, "GET", "/state")

    assert (await ask(guarded, "GET", "/state", token=READ)).status == 200


async def test_guesses_are_forgotten_one_after_the_other_and_take_bounded_memory() -> None:
    now = 100.0
    guesses = Guesses(lambda: now)
    for _ in range(GUESSES):
        guesses.count("a")
    waited = guesses.wait_for("a")
    now += waited + 0.001
    after = guesses.wait_for("a")
    guesses.count("a")

    for n in range(REMOTES + 10):
        guesses.count(f"b{n}")

    assert 0 < waited <= 6.0
    assert after <= 0 < 6.0
    assert len(guesses) == REMOTES
    assert guesses.wait_for("nobody") <= 0


@pytest.mark.parametrize(
    ("address", "remote"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
async def test_who_has_a_network_of_addresses_is_one_remote(address: str, remote: str) -> None:
    assert remote_of(address) == remote


# -- 11: bodies


async def test_a_body_that_is_too_large_is_not_read(open_: Admin, gate: Gateway) -> None:
    reply = await ask(open_, "PATCH", POLICY, body=b" " * (LARGEST + 1), Content_Type="application/json")

    assert reply.status == 413
    assert reply.headers["connection"] == "close"
    assert limit(gate) == 20


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(open_: Admin) -> None:
    async with asyncio.timeout(2.0):
        reply = await ask(open_, "PATCH", POLICY, Content_Length="1000000000", Content_Type="application/json")

    assert reply.status == 413


async def test_a_body_that_does_not_say_how_large_it_is_ends_at_the_limit(open_: Admin) -> None:
    half = b"%x\r\n%b\r\n" % (LARGEST // 2, b" " * (LARGEST // 2))

    reply = await ask(
        open_,
        "PATCH",
        POLICY,
        raw=half * 3 + b"0\r\n\r\n",
        Content_Type="application/json",
        Transfer_Encoding="chunked",
    )

    assert reply.status == 413


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 30_000, b"\xff", b'{"a": "\xff"}', b"NaN", b'{"bulkhead": {"limit": 40}} x']
)
async def test_what_is_no_json_is_told_so(open_: Admin, gate: Gateway, body: bytes) -> None:
    reply = await ask(open_, "PATCH", POLICY, body=body, Content_Type="application/json")

    assert reply.status == 400
    assert limit(gate) == 20


async def test_there_are_only_so_many_connections(open_: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who opens thousands takes the files that the gateway needs for its upstreams."""
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    held = [await asyncio.open_connection("127.0.0.1", open_.port) for _ in range(3)]
    await until(lambda: len(open_._runner.server.connections) == 3)

    reader, writer = await asyncio.open_connection("127.0.0.1", open_.port)
    async with asyncio.timeout(2.0):
        assert await reader.read() == b""

    for _, one in (*held, (reader, writer)):
        one.close()
    await until(lambda: not open_._runner.server.connections)
    assert (await ask(open_, "GET", "/state")).status == 200


# -- settings that would let everybody in


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "admin.example"])  # noqa: S104 - refused
async def test_another_host_than_loopback_needs_a_token(gate: Gateway, host: str) -> None:
    with pytest.raises(ConfigError, match="there is no token") as caught:
        await serve(gate, host=host, port=0)

    assert caught.value.field == "admin host"


async def test_where_others_reach_us_numbers_are_served_and_foreign_names_are_not(gate: Gateway) -> None:
    async with admin_of(gate, host="0.0.0.0", token=WRITE) as admin:  # noqa: S104 - with a token
        by_number = await ask(admin, "GET", "/state", host="192.0.2.7:80", token=WRITE)
        by_name = await ask(admin, "GET", "/state", host="evil.example", token=WRITE)

    assert (by_number.status, by_name.status) == (200, 403)
    assert admin.url == f"http://127.0.0.1:{admin.port}"


@pytest.mark.parametrize("token", ["", "two words", "tab\t", "ünicode", 3])
async def test_a_token_that_no_header_carries_is_an_error(token: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Guards(host="127.0.0.1", token=token)  # type: ignore[arg-type]

    assert caught.value.field == "admin token"
    assert str(token) not in caught.value.problem or not token


async def test_one_token_for_both_is_an_error() -> None:
    with pytest.raises(ConfigError, match="it is the token that may write"):
        Guards(host="127.0.0.1", token=WRITE, read_token=WRITE)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"host": 3}, "admin host"),
        ({"port": 70_000}, "admin port"),
        ({"port": True}, "admin port"),
        ({"port": "80"}, "admin port"),
        ({"hosts": "a.example"}, "admin hosts"),
    ],
)
async def test_settings_that_cannot_be_are_named(gate: Gateway, settings: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await serve(gate, **settings)  # type: ignore[arg-type]

    assert caught.value.field == field


async def test_a_port_that_is_taken_is_named_and_nothing_is_left(gate: Gateway) -> None:
    async with admin_of(gate) as admin:
        with pytest.raises(ConfigError, match=f"{admin.port} on 127.0.0.1 cannot be had"):
            await serve(gate, port=admin.port)
        assert (await ask(admin, "GET", "/state")).status == 200
