"""The page at `/`: what it asks the catalog for, and what a person sees and presses in a browser."""

from __future__ import annotations

import asyncio
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from math import inf
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from gateway.demo import info, posters, ratings
from gateway.demo.catalog import Catalog
from gateway.demo.faults import MODES
from gateway.demo.films import films
from gateway.testing import assert_nothing_left
from tests.edges.browser import FAINT, NAMELESS, Browser, Tab
from tests.edges.running import ANY_PORTS, running
from tests.edges.serving import served

pytestmark = pytest.mark.asyncio


# -- the endpoints


class Client:
    """Somebody who asks a catalog."""

    def __init__(self, catalog: Catalog, session: aiohttp.ClientSession, urls: dict[str, str]) -> None:
        self.catalog, self.session, self.urls = catalog, session, urls

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.request(method, self.urls["catalog"] + path, headers=headers) as response:
            body = await response.read()
            return response.status, await response.json() if body else None

    async def upstream(self, name: str) -> Any:
        _, state = await self.ask("GET", "/upstreams")
        return next(one for one in state["upstreams"] if one["name"] == name)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with client_of() as one:
        yield one


@asynccontextmanager
async def client_of(**elsewhere: str) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        urls = {
            name: elsewhere.get(name) or await stack.enter_async_context(served(create()))
            for name, create in {"ratings": ratings.create, "info": info.create}.items()
        }
        catalog = Catalog(ratings_url=urls["ratings"], info_url=urls["info"])
        urls["catalog"] = await stack.enter_async_context(served(catalog.create()))
        yield Client(catalog, await stack.enter_async_context(aiohttp.ClientSession()), urls)
        assert_nothing_left(catalog.gate)


async def test_the_page_is_one_file_that_needs_no_other_host(client: Client) -> None:
    async with client.session.get(client.urls["catalog"] + "/") as response:
        text, headers = await response.text(), response.headers

    assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
    assert text == files("gateway.demo").joinpath("page.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", text)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


async def test_the_state_of_each_upstream_is_told(client: Client) -> None:
    await client.ask("GET", "/catalog/ada")
    status, state = await client.ask("GET", "/upstreams")

    assert status == 200
    assert {one["name"]: one["service"] for one in state["upstreams"]} == {
        "ratings": True,
        "info": True,
        "posters": False,
    }
    assert state["modes"] == MODES
    one = await client.upstream("ratings")
    assert one["pool"] == {
        "limit": 20,
        "in_use": 0,
        "queue": 10,
        "waiting": 0,
        "abandoned": 0,
        "rejected": 0,
        "peak": 1,
    }
    assert one["circuit"] == {"state": "closed", "open_left": None, "failure_rate": None, "calls": 1, "failures": 0}
    ended = {"last_good": 0, "default": 0, "error": 0, "cancelled": 0, "in_flight": 0}
    assert one["counts"] == {"asked": 1, "live": 1, **ended}
    assert 0 < one["latency"]["p50"] < 1


async def test_the_time_that_a_circuit_stays_open_is_told(client: Client) -> None:
    await client.ask("POST", "/upstreams/ratings/fault/fail")
    for _ in range(5):
        await client.ask("GET", "/catalog/ada")

    circuit = (await client.upstream("ratings"))["circuit"]
    assert circuit["state"] == "open"
    assert 4 < circuit["open_left"] <= 5
    assert (await client.upstream("ratings"))["counts"]["default"] == 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("upstream", ["ratings", "info"])
async def test_a_fault_is_handed_on_to_its_service(client: Client, upstream: str, mode: str) -> None:
    turned = await client.ask("POST", f"/upstreams/{upstream}/fault/{mode}")
    shown = await client.ask("GET", f"/upstreams/{upstream}/fault")
    async with client.session.get(client.urls[upstream] + "/fault") as response:
        own = await response.json()

    assert (turned, shown, own) == ((204, None), (200, {"mode": mode}), {"mode": mode})


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/upstreams/nobody/fault/hang", {"upstreams": ["ratings", "info", "posters"]}),
        ("/upstreams/nobody/limit/3", {"upstreams": ["ratings", "info", "posters"]}),
        ("/upstreams/posters/fault/hang", {"upstreams": ["ratings", "info"]}),
        ("/upstreams/ratings/fault/melt", {"modes": MODES}),
        ("/upstreams/ratings/fault/..%2Fhealth", {"modes": MODES}),
    ],
)
async def test_what_is_not_known_is_a_404_that_names_what_is(client: Client, path: str, known: Any) -> None:
    status, content = await client.ask("POST", path)

    assert status == 404
    assert content.pop("error")
    assert content == known


async def test_another_implementation_need_not_have_faults() -> None:
    async with served(web.Application()) as url, client_of(ratings=url, info="http://127.0.0.1:9") as client:
        modes = [await client.ask("GET", f"/upstreams/{name}/fault") for name in ("ratings", "info")]
        without = await client.ask("POST", "/upstreams/ratings/fault/hang")
        absent = await client.ask("POST", "/upstreams/info/fault/hang")

    assert modes == 2 * [(200, {"mode": None})]
    assert without == (502, {"error": f"{url}/fault/hang answers 404: it has no faults to switch"})
    assert absent[0] == 502
    assert "127.0.0.1:9" in absent[1]["error"]


@pytest.mark.parametrize(("n", "limit", "shown"), [("1", 1, 1), ("40", 40, 40), ("2e2", 200, 200), ("inf", inf, "inf")])
async def test_a_pool_is_given_another_size(client: Client, n: str, limit: float, shown: object) -> None:
    changed = await client.ask("POST", f"/upstreams/info/limit/{n}")

    assert changed == (204, None)
    assert client.catalog.gate["info"].policy.bulkhead.limit == limit
    assert client.catalog.gate["info"].policy.bulkhead.queue == 10
    assert (await client.upstream("info"))["pool"]["limit"] == shown


@pytest.mark.parametrize("n", ["0", "-1", "2.5", "many", "nan", "-inf"])
async def test_a_size_that_cannot_be_is_a_400_that_says_what_could(client: Client, n: str) -> None:
    status, content = await client.ask("POST", f"/upstreams/info/limit/{n}")

    assert status == 400
    assert content["field"] == "bulkhead.limit"
    assert content["remedy"].startswith("give ")
    assert client.catalog.gate["info"].policy.bulkhead.limit == 20


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[oops"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_site_may_not_change_anything(client: Client, headers: dict[str, str]) -> None:
    tried = [
        await client.ask("POST", path, **headers)
        for path in ("/upstreams/info/limit/3", "/upstreams/info/fault/hang", "/fault/hang")
    ]
    read = await client.ask("GET", "/upstreams/info/fault", **headers)

    assert tried == 3 * [(403, {"error": "another site may not change anything here"})]
    assert read == (200, {"mode": "none"})
    assert client.catalog.gate["info"].policy.bulkhead.limit == 20


async def test_the_page_itself_may(client: Client) -> None:
    own = {"Origin": client.urls["catalog"], "Sec-Fetch-Site": "same-origin"}

    assert await client.ask("POST", "/upstreams/info/limit/3", **own) == (204, None)


# -- posters


async def test_a_poster_is_drawn_in_a_thread_and_kept_by_the_browser(client: Client) -> None:
    async with client.session.get(client.urls["catalog"] + "/movies/11/poster") as response:
        drawn, headers = await response.read(), response.headers
    _, page = await client.ask("GET", "/catalog/ada?explain=1")

    assert (response.content_type, drawn) == ("image/svg+xml", posters.draw("Star Wars"))
    assert headers["X-Answer-Source"] == "info=live, posters=live"
    assert headers["Cache-Control"] == "max-age=3600"
    assert (await client.upstream("posters"))["counts"]["live"] == 1
    assert page["posters"][0].startswith("/movies/")
    assert len(page["posters"]) == len(page["items"])


async def test_a_poster_of_no_film_is_a_404(client: Client) -> None:
    assert (await client.ask("GET", "/movies/0/poster"))[0] == 404


async def test_a_poster_of_a_film_that_nobody_can_name_now_is_not_kept(client: Client) -> None:
    await client.ask("POST", "/upstreams/info/fault/fail")
    async with client.session.get(client.urls["catalog"] + "/movies/11/poster") as response:
        headers = response.headers

    assert (response.status, headers["Cache-Control"]) == (200, "no-store")
    assert headers["X-Answer-Source"] == "info=static, posters=live"


async def test_every_title_has_a_poster_that_is_always_the_same() -> None:
    titles = [*(film.name for film in films().values()), "", "<script>&\"'", "a\x00b\ud800c", "x" * 500, "七人の侍"]
    drawn = {title: posters.draw(title) for title in titles}

    for title, poster in drawn.items():
        assert ET.fromstring(poster).tag.endswith("svg"), title  # noqa: S314 - our own
        assert poster == posters.draw(title)
        assert len(poster) < 20_000
    assert len(set(drawn.values())) == len(titles)


# -- what a person sees


@asynccontextmanager
async def looking(browser: Browser, path: str = "/?user=ada") -> AsyncIterator[Tab]:
    """A browser before a whole demo; the page shows the films, and nothing may have gone wrong in it at the end."""
    demo = running("demo", *ANY_PORTS)
    one = await asyncio.to_thread(demo.__enter__)
    try:
        async with browser.tab() as tab:
            await tab.size(1280, 900)
            await tab.open(one.urls["catalog"] + path)
            await tab.until(f"{BADGES}.length === 5 && {ALL_ARE('live')} && document.querySelectorAll('.upstream')[2]")
            yield tab
            assert not tab.problems
            assert all(url.startswith((one.urls["catalog"] + "/", "data:")) for url in tab.asked)
    finally:
        await asyncio.to_thread(demo.__exit__, None, None, None)


BADGES = "[...document.querySelectorAll('.film .badge')]"
NAMES = "[...document.querySelectorAll('.film h3')].map(name => name.textContent).join()"
CIRCUIT = "document.querySelector('[data-upstream={}] .circuit').dataset.state"


def ALL_ARE(source: str) -> str:  # noqa: N802 - stands among constants
    return f"{BADGES}.every(badge => badge.dataset.source === '{source}')"


async def test_who_hangs_the_ratings_sees_badges_change_and_the_page_stay_whole(browser) -> None:
    async with looking(browser) as tab:
        before = await tab.run(NAMES)
        await tab.press("[aria-label='5 visitors a second']")
        await tab.press("[data-upstream=ratings] [data-mode=hang]")
        await tab.until(ALL_ARE("last_good"))
        badge = await tab.run(f"{BADGES}[0].textContent")
        verdict = await tab.run("document.getElementById('spoken').textContent")
        await tab.until(f"{CIRCUIT.format('ratings')} === 'open'", 15)
        opened = await tab.run("document.querySelector('[data-upstream=ratings] .circuit').textContent")
        during = await tab.run(NAMES)
        pressed = await tab.run(
            "document.querySelector('[data-upstream=ratings] [data-mode=hang]').getAttribute('aria-pressed')"
        )
        other = await tab.run(CIRCUIT.format("info"))
        await tab.press("[data-upstream=ratings] [data-mode=none]")
        await tab.until(f"{ALL_ARE('live')} && {CIRCUIT.format('ratings')} === 'closed'", 15)
        after = await tab.run(NAMES)
        total = await tab.run("document.getElementById('total').textContent")

    assert re.fullmatch(r"\d+ s old", badge)
    assert verdict == "Complete, but degraded. ratings: last good"
    assert opened.startswith("circuit open, tries ")
    assert (pressed, other) == ("true", "closed")
    assert before == during == after
    assert total.endswith("answered, 0 failed")


async def test_a_user_never_seen_has_defaults_and_other_users_their_own_films(browser) -> None:
    async with looking(browser) as tab:
        mine = await tab.run(NAMES)
        await tab.press("a[href='?user=grace']")
        await tab.until(f"{NAMES} !== '{mine}'")
        heading = await tab.run("document.getElementById('whose').textContent")
        here = await tab.run("location.search")
        await tab.press("[data-upstream=ratings] [data-mode=fail]")
        await tab.press("a[href='?user=hedy']")
        await tab.until(f"{BADGES}.length === 1 && {ALL_ARE('default')}")
        named = await tab.run(NAMES)

    assert (heading, here) == ("Films of Grace", "?user=grace")
    assert named == "Movie Not Found"


async def test_a_pool_grows_and_shrinks_by_keyboard_and_says_what_cannot_be(browser) -> None:
    limit = "document.querySelector('[data-upstream=info] input')"
    async with looking(browser) as tab:
        await tab.run("document.querySelector('[aria-label=\"Shrink the pool of info\"]').focus()")
        await tab.key("Enter", 13, "\r")
        await tab.until("document.querySelectorAll('[data-upstream=info] .slots i').length === 12")
        await tab.key("Tab", 9)
        focused = await tab.run(f"document.activeElement === {limit}")
        outline = await tab.run("getComputedStyle(document.activeElement).outlineStyle")
        await tab.run(f"{limit}.value = '0'; {limit}.dispatchEvent(new Event('change'))")
        await tab.until("document.querySelector('[data-upstream=info] .said').textContent")
        said = await tab.run("document.querySelector('[data-upstream=info] .said').textContent")
        tab.problems.clear()  # the browser notes the 400

    assert (focused, outline) == (True, "solid")
    assert said == "bulkhead.limit: 0 is not a whole number from 1 up; give 1 or more, or inf"


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (800, False), (1280, True)])
async def test_it_fits_every_screen_and_is_read_by_day_and_night(browser, width: int, dark: bool) -> None:
    async with looking(browser) as tab:
        if dark:
            await tab.dark()
        await tab.size(width, 800, phone=width < 500)
        wide = await tab.run("document.documentElement.scrollWidth")
        nameless = await tab.run(NAMELESS)
        small = await tab.run(
            "[...document.querySelectorAll('button, a.pick')].filter(b => b.offsetHeight < 34).length"
        )
        faint = await tab.run(FAINT)

    assert wide <= width
    assert nameless == []
    assert small == 0
    assert faint == []
