"""What does not travel: cookies, credentials, hop-by-hop headers, line breaks; and nowhere but to the base URL."""

from __future__ import annotations

import asyncio
import os
import traceback
from base64 import b64encode
from typing import Any

import pytest

from gateway import Alternate, ConfigError, Failed, Gateway, GatewayError, HttpPolicy, HttpReply, Policy
from tests.edges.http.misbehaving import OK, Visit, always, reply, serving
from tests.support import ONE_TRY, counted, ended

pytestmark = pytest.mark.asyncio
HERE = HttpPolicy(resolve=lambda _: ["127.0.0.1"])


async def test_a_cookie_of_one_caller_is_not_sent_for_another(gate: Gateway) -> None:
    async with serving(always(reply(b"", "Set-Cookie: sid=user1; Path=/"))) as server:
        up = gate.http("up", server.named("a.test"), http=HERE)

        first = await up.get("/")
        await up.get("/")

        assert first.headers["set-cookie"] == "sid=user1; Path=/"
        assert "cookie" not in server.headers(1)


async def test_a_cookie_that_a_caller_sends_is_sent(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)

        await up.get("/", headers={"Cookie": "sid=user2"})

        assert server.headers()["cookie"] == "sid=user2"


async def test_headers_of_one_connection_stay_behind(gate: Gateway) -> None:
    incoming = {
        "Connection": "close, X-Mine",
        "Keep-Alive": "timeout=99",
        "Transfer-Encoding": "chunked",
        "TE": "trailers",
        "Upgrade": "h2c",
        "Proxy-Authorization": "Basic x",
        "Host": "evil.test",
        "Content-Length": "7",
        "X-Mine": "1",
        "traceparent": "00-1-2-01",
        "Expect": "100-continue",
        "X-Deadline-Ms": "999999",
    }
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)

        await up.get("/", headers=incoming)

        headers = server.headers()
        assert not headers.keys() & {
            "connection",
            "keep-alive",
            "transfer-encoding",
            "te",
            "upgrade",
            "x-mine",
            "expect",
        }
        assert not headers.keys() & {"proxy-authorization", "content-length"}
        assert headers["host"] == f"127.0.0.1:{server.port}"
        assert headers["traceparent"] == "00-1-2-01"
        assert int(headers["x-deadline-ms"]) <= 10_000


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1\r\nX-B: 2"},
        {"X-A": "1\nX-B: 2"},
        {"X-A": "1\x00"},
        {"X-A": "\udcff"},
        {"X-A\r\nX-B": "1"},
        {"X A": "1"},
        {"": "1"},
        {"X-A:": "1"},
        {"X-A": 1},
    ],
)
async def test_a_header_that_would_be_two_is_refused_before_anything_is_counted(
    gate: Gateway, headers: dict[str, str]
) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    with pytest.raises(ConfigError):
        await up.get("/", headers=headers)
    with pytest.raises(ConfigError):
        gate.http("other", "http://127.0.0.1:9", http=HttpPolicy(headers=headers))

    assert counted(up) == {}


ESCAPES = [
    *(
        "/../admin",
        "/a/../../b",
        "/..",
        "..",
        "/./a",
        "/%2e%2e/admin",
        "/a%2f..%2fb",
        "/%252e%252e/admin",
        "/%5c..%5cb",
    ),
    *("//evil.test/", "http://evil.test/", "HTTP:evil", "https:/x", "/a b", "/a\r\nX: 1", "/a\tb", "/a#b", "/a%0d%0ab"),
    *("\\\\evil", "/\\evil", "/a\x00b", "?a=1\r\nb", "javascript:1", "/users/\udcff"),
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_a_path_that_leaves_the_base_is_refused_before_anything_is_counted(gate: Gateway, path: str) -> None:
    up = gate.http("up", "http://127.0.0.1:9/api")

    with pytest.raises(ConfigError, match="path"):
        await up.get(path)
    with pytest.raises(ConfigError, match="path"):
        await up.get.ask(path)

    assert counted(up) == {}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/api"),
        ("/", "/api/"),
        ("users", "/api/users"),
        ("/users/a%2Fb", "/api/users/a%2Fb"),
        ("/users/é", "/api/users/%C3%A9"),
        ("/a..b/...", "/api/a..b/..."),
        ("/a?b=c", "/api/a?b=c"),
        ("?b=c", "/api?b=c"),
        ("/items:search", "/api/items:search"),
    ],
)
async def test_other_paths_go_below_the_base(gate: Gateway, path: str, target: str) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url + "/api/")

        await up.get(path)

        assert server.targets() == [target]


async def test_a_declared_path_takes_any_value_as_one_segment(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url + "/api")

        @up.get("/users/{user}/ratings", into=HttpReply)
        async def ratings(user: str) -> HttpReply: ...

        await ratings("a/b?x#y z%é")

        assert server.targets() == ["/api/users/a%2Fb%3Fx%23y%20z%25%C3%A9/ratings"]
        for user in ("", ".", "..", "../../admin", "a\r\nb", "..\\b"):
            with pytest.raises(ConfigError):
                await ratings(user)
        assert counted(up)["asked"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a.test",
        "http://",
        "http://a?b=c",
        "http://a#b",
        "http://a:b",
        "http://a\r\n",
        "//a",
        "",
        7,
        "http:///x",
    ],
)
async def test_what_is_no_base_url_is_a_config_error(gate: Gateway, url: str) -> None:
    with pytest.raises((ConfigError, TypeError)):
        gate.http("up", url)

    assert "up" not in gate


@pytest.mark.parametrize("params", [{"q": "\udcff"}, {"\udcff": "q"}, [("q", ["fine", "\udcff"])]])
async def test_half_a_character_is_not_left_out_of_what_is_asked(gate: Gateway, params: Any) -> None:
    up = gate.http("up", "http://127.0.0.1:9")

    @up.delete("/users/{user}", into=HttpReply)
    async def remove(user: str) -> HttpReply: ...

    with pytest.raises(ConfigError, match="half a character"):
        await up.get("/", params=params)
    with pytest.raises(ConfigError, match="half a character"):
        await up.post("/", data=dict(params))
    with pytest.raises(ConfigError, match="half a character"):
        await remove("\udcff")

    assert counted(up) == {}


async def test_what_cannot_go_along_from_the_context_keeps_no_request_back(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(propagate=lambda: {"X-Request-Id": "\udcff"}))

        reply = await up.get("/")

        assert reply.status == 200
        assert "x-request-id" not in server.headers()


async def test_redirects_are_replies(gate: Gateway) -> None:
    async with serving(always(reply(b"", "Location: /there", status=302))) as server:
        up = gate.http("up", server.url)

        assert (await up.get("/")).headers["location"] == "/there"
        assert len(server.requests) == 1


async def test_redirects_are_followed_within_the_origin_when_asked_for(gate: Gateway) -> None:
    async def sends_on(visit: Visit) -> None:
        while True:
            request = await visit.request()
            path = request.split(b" ")[1].decode()
            if path == "/end":
                await visit.say(OK)
            else:
                await visit.say(reply(b"x" * 10, f"Location: {places[path]}", status=302))

    async with serving(sends_on) as server, serving(always(OK)) as elsewhere:
        places = {
            "/": "/end",
            "/relative": "end",
            "/loop": "/loop",
            "/away": elsewhere.url + "/",
            "/user": "/end",
            "/scheme": f"https://127.0.0.1:{server.port}/end",
            "/odd": "http://[",
            "/name": server.named("localhost"),
        }
        up = gate.http("up", server.url, http=HttpPolicy(redirects=3))

        results = {path: (await up.get(path)).status for path in places}
        posted = await up.post("/")

        assert results == {
            "/": 200,
            "/relative": 200,
            "/loop": 302,
            "/away": 302,
            "/user": 200,
            "/scheme": 302,
            "/odd": 302,
            "/name": 302,
        }
        assert posted.status == 302
        assert elsewhere.requests == []
        assert server.targets().count("/loop") == 4


async def test_credentials_of_the_url_are_sent_and_shown_nowhere(gate: Gateway) -> None:
    async with serving(always(reply(b"", status=500))) as server:
        http = HttpPolicy(headers={"X-Api-Key": "s3cret-key"}, params={"token": "s3cret-token"})
        url = server.url.replace("//", "//ada:s3cret%2Fword@")
        up = gate.http("up", url, policy=Policy(retry=ONE_TRY), http=http)

        error = await ended(up.get("/a", params={"q": "s3cret-q"}, headers={"Authorization-2": "s3cret-h"}))

        assert server.headers()["authorization"] == "Basic " + b64encode(b"ada:s3cret/word").decode()
        assert server.headers()["x-api-key"] == "s3cret-key"
        assert server.targets() == ["/a?token=s3cret-token&q=s3cret-q"]
        assert "s3cret" not in "".join(traceback.format_exception(error)) + repr(up) + repr(http) + repr(up.routes.only)


@pytest.mark.parametrize("cut", ["refused", "before the reply", "garbage", "cookie", "body"])
@pytest.mark.parametrize("way", ["call", "stream", "upload"])
async def test_no_error_holds_a_secret(gate: Gateway, cut: str, way: str) -> None:
    async def cuts(visit: Visit) -> None:
        await visit.request()
        if cut == "garbage":
            await visit.say(b"SMTP s3cret nonsense\r\n\r\n")
        if cut == "cookie":
            await visit.say(b"HTTP/1.1 200 OK\r\nSet-Cookie\x00: sid=s3cret\r\n\r\n")
        if cut == "body":
            await visit.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")

    async with serving(cuts) as server:
        url = server.url if cut != "refused" else "http://127.0.0.1:9"
        up = gate.http("up", url, policy=Policy(retry=ONE_TRY), http=HttpPolicy(params={"key": "s3cret"}))

        async def ask() -> None:
            if way == "call":
                await up.get("/a?b=s3cret", headers={"Authorization": "s3cret"})
            elif way == "upload":
                await up.put("/a?b=s3cret", headers={"Authorization": "s3cret"}, data=b"s3cret" * 100_000)
            else:
                async with up.stream("GET", "/a?b=s3cret", headers={"Authorization": "s3cret"}) as stream:
                    _ = [piece async for piece in stream]

        error = await ended(ask())

        assert isinstance(error, GatewayError)
        chain: list[BaseException] = [error]
        while (one := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(one)
        assert all("s3cret" not in repr(one) + str(vars(one)) for one in chain)
        assert all(type(one).__module__.startswith("gateway.") for one in chain)


async def test_the_environment_is_asked_for_a_proxy_only_when_told_to(
    gate: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(always(OK)) as server, serving(always(OK)) as proxy:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("http_proxy", proxy.url)
        plain = gate.http("plain", server.named("a.test"), http=HERE)
        told = gate.http(
            "told", server.named("a.test"), http=HttpPolicy(trust_env=True, resolve=lambda _: ["127.0.0.1"])
        )

        await plain.get("/")
        await told.get("/x")

        assert server.targets() == ["/"]
        assert proxy.targets() == [server.named("a.test") + "/x"]


async def test_an_alternate_is_asked_the_same_at_its_own_base(gate: Gateway) -> None:
    async with serving(always(OK)) as second:
        first = gate.http("first", "http://127.0.0.1:9", policy=Policy(retry=ONE_TRY))
        other = gate.http("other", second.url + "/v2")
        first.post.fallback(Alternate(other.post))

        answer = await first.post.ask("/charges", json={"amount": 1})

        assert answer.source == "alternate"
        assert second.targets() == ["/v2/charges"]
        assert second.requests[0].endswith(b'{"amount":1}')


async def test_an_alternate_of_another_method_sends_nothing_that_it_would_repeat(gate: Gateway) -> None:
    async with serving(always(reply(b"", status=500))) as second:
        first = gate.http("first", "http://127.0.0.1:9", policy=Policy(retry=ONE_TRY))
        other = gate.http("other", second.url)
        first.post.fallback(Alternate(other.put))

        error = await ended(first.post.ask("/charges", json={"amount": 1}))

        assert isinstance(error, Failed)
        assert "it cannot send a POST" in str(error.__notes__)
        assert second.targets() == []


async def test_two_callers_at_once_do_not_share_a_connection(gate: Gateway) -> None:
    async def slow(visit: Visit) -> None:
        while True:
            request = await visit.request()
            await asyncio.sleep(0.005)
            await visit.say(reply(request.split(b" ")[1]))

    async with serving(slow) as server:
        up = gate.http("up", server.url)

        replies = await asyncio.gather(*(up.get(f"/{n}") for n in range(10)))

        assert [one.text() for one in replies] == [f"/{n}" for n in range(10)]
        assert server.connections == 10
