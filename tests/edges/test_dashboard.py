"""The page of the admin server, as a person sees it in a real browser; some upstreams are made up, others are real."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.top.verdict import judged
from tests.edges.browser import FAINT, NAMELESS, Browser, Tab
from tests.edges.pretended import STATIC, Pretended
from tests.edges.serving import served

pytestmark = pytest.mark.asyncio

SMALL = (
    "[...document.querySelectorAll('button, .tool, input, select')].filter(b => b.offsetHeight && b.offsetHeight < 32)"
)
LOST = "net::ERR_"


@asynccontextmanager
async def looking(browser: Browser, server: Pretended, path: str = "/") -> AsyncIterator[Tab]:
    """A browser before the page; at the end nothing may have gone wrong in it, and nobody else have been asked."""
    async with served(server.create()) as url, browser.tab() as tab:
        await tab.size(1440, 900)
        await tab.open(url + path)
        await tab.until("document.documentElement?.dataset.line === 'live'")
        yield tab
        assert [problem for problem in tab.problems if LOST not in problem] == []
        assert all(url in asked or asked.startswith("data:") for asked in tab.asked)


def row(name: str, inside: str = "") -> str:
    return f"document.querySelector('[data-upstream=\"{name}\"] {inside}')"


async def test_the_files_name_no_other_host_and_have_no_script_or_style_within() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")

        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text.replace("http%3A//", "")), file.name
        assert "innerHTML" not in text, file.name
        assert not re.findall(r"<script>|<style>|\sstyle=|\son[a-z]+=\"", text), file.name


async def test_all_upstreams_are_told_at_a_glance_the_worst_first(browser) -> None:
    server = Pretended(10, ratings="hang", info="slow", stock="isolated", mail="stuck")
    async with looking(browser, server) as tab:
        await tab.until(row("ratings"))
        order = await tab.run("[...document.querySelectorAll('.row')].map(row => row.dataset.upstream).slice(0, 5)")
        said = await tab.run("document.getElementById('verdict').textContent")
        texts = {name: await tab.run(f"{row(name)}.innerText") for name in ("ratings", "info", "stock", "mail")}

    assert (order[0], order[4]) == ("ratings", "maps")
    assert said.startswith("4 of 10 need a look. ratings: circuit open, tries ")
    assert re.search(r"circuit open, tries in \d\.\d s", texts["ratings"])
    assert {"last good", "default", "error"} <= set(re.findall(r"(last good|default|error) \d+ %", texts["ratings"]))
    assert "20 of 20 in use, 7 wait" in texts["info"]
    assert "isolated" in texts["stock"]
    assert "2 stuck" in texts["mail"]


async def test_advice_is_put_into_the_form_and_sent_only_when_that_is_agreed_to(browser) -> None:
    server = Pretended(3)
    ratings = server.upstreams["ratings"]
    async with looking(browser, server, "/#/upstreams/ratings") as tab:
        await tab.until("document.querySelector('.advice button') && document.querySelector('.knob')")
        await tab.press(".advice button")
        await tab.until("document.querySelector('.diff .will')")
        value = await tab.run("document.getElementById('knob-bulkhead.limit').value")
        focused = await tab.run("document.activeElement.id")
        unsent = ratings.policy["bulkhead"]["limit"]
        await tab.press(".tune .well")
        await tab.until("document.querySelector('dialog[open]')")
        await tab.press("dialog [type=submit]")
        await tab.until("document.querySelector('.drift-note:not([hidden])')", 5)

    assert (value, focused, unsent) == ("12", "knob-bulkhead.limit", 20)
    assert ratings.policy["bulkhead"]["limit"] == 12


async def test_numbers_that_do_not_add_up_are_told_in_red_wherever_one_looks(browser) -> None:
    server = Pretended(10, users="broken")
    async with looking(browser, server, "/#/why") as tab:
        await tab.until("!document.getElementById('broken').hidden")
        banner = await tab.run("document.getElementById('broken').textContent")
        colour = await tab.run("getComputedStyle(document.getElementById('broken')).backgroundColor")
        await tab.run("location.hash = '#/upstreams/users'")
        await tab.until("document.querySelector('.sums')?.dataset.ok === 'false'")
        sums = await tab.run("document.querySelector('.sums').textContent")
        server.upstreams["users"].ill = ""
        await tab.until("document.getElementById('broken').hidden", 5)

    assert banner.startswith("✕ Numbers do not add up: users.")
    assert colour == "rgb(171, 46, 43)"
    assert "3 calls ended in no way" in sums


async def test_the_page_and_the_terminal_judge_alike(browser) -> None:
    ills = {"ratings": "hang", "info": "slow", "stock": "isolated", "mail": "stuck", "users": "broken"}
    told = Pretended(10, **ills).document()["upstreams"]
    for number, state in enumerate(("half_open", "open", "closed")):
        told[number + 2]["circuit"] |= {"state": state, "closes_in": 0.01}
    told[8]["window"]["rates"] |= {"failed": 0.1, "retries": 1.0}
    told[9]["window"]["rates"] = dict.fromkeys(told[9]["window"]["rates"], 0.0)
    told[9]["endpoints"][0]["state"] = "ejected"
    async with looking(browser, Pretended(1)) as tab:
        script = f"import('./static/words.js').then(words => ({json.dumps(told)}).map(words.judged))"
        page = await tab.run(script)

    assert page == [{"level": judged(one).level, "reason": judged(one).reason} for one in told]
    assert {one["level"] for one in page} == {0, 1, 2, 3}


async def test_a_name_is_text_whatever_it_says(browser) -> None:
    name = "<script>alert(1)</script>'\"&/..%2F?#"
    server = Pretended(1)
    server.upstreams = {name: server.upstreams["ratings"]}
    server.upstreams[name].name = name
    server.happened("control", name, "<img src=x onerror=alert(2)>")
    async with looking(browser, server) as tab:
        await tab.until("document.querySelector('.row')")
        shown = await tab.run("document.querySelector('.open').textContent")
        event = await tab.run("document.querySelector('.event').textContent")
        await tab.press(".open")
        await tab.until(
            "document.querySelector('.one h1')?.textContent.startsWith('<script>') && document.querySelector('.knob')"
        )
        title = await tab.run("document.querySelector('.one h1').textContent")
        made = await tab.run("document.querySelectorAll('main script, img').length")

    assert shown == title == name
    assert "<img src=x" in event
    assert made == 0


async def test_the_keys_move_find_open_and_go_back(browser) -> None:
    async with looking(browser, Pretended(10)) as tab:
        await tab.until(row("users"))
        await tab.key("j", 74, "j")
        await tab.key("j", 74, "j")
        await tab.key("k", 75, "k")
        first = await tab.run("document.activeElement.textContent")
        await tab.key("/", 191, "/")
        for letter in "sto":
            await tab.key(letter, ord(letter.upper()), letter)
        await tab.until("document.querySelectorAll('.row').length === 1")
        await tab.key("Enter", 13, "\r")
        found = await tab.run("document.activeElement.textContent")
        await tab.key("Enter", 13, "\r")
        await tab.until("document.querySelector('.one')?.dataset.upstream === 'stock'")
        await tab.key("j", 74, "j")
        await tab.until("document.querySelector('.one')?.dataset.upstream === 'users'")
        await tab.key("Escape", 27)
        await tab.until("document.querySelector('.overview')")
        await tab.key("Escape", 27)
        await tab.until("document.querySelectorAll('.row').length === 10")
        await tab.key("?", 191, "?")
        helped = await tab.run("document.querySelector('dialog[open]').innerText")
        await tab.key("Escape", 27)
        await tab.until("!document.querySelector('dialog')")
        await tab.key("v", 86, "v")
        view = await tab.run("document.querySelector('.overview').dataset.view")

    assert (first, found, view) == ("info", "stock", "wall")
    assert "worst first, by name, by traffic" in helped


async def test_before_anything_is_known_there_is_nothing_half_drawn(browser) -> None:
    empty = "[...document.querySelectorAll('.heads, #view, #order')].filter(node => node.offsetHeight).map(n => n.id)"
    server = Pretended(2)
    server.silent = True
    async with served(server.create()) as url, browser.tab() as tab:
        await tab.open(url)
        await tab.until("document.querySelector('.heads')")

        assert await tab.run(empty) == []

        server.silent = False
        await tab.until("document.documentElement?.dataset.line === 'live'")
        await tab.until(f"{empty}.length === 2")


async def test_a_line_that_is_lost_is_told_and_found_again(browser) -> None:
    server = Pretended(3)
    async with looking(browser, server) as tab:
        server.silent = True
        await tab.until("document.documentElement.dataset.line === 'lost'", 6)
        await tab.until("!document.getElementById('lost').hidden")
        said = await tab.run("document.getElementById('lost').textContent")
        server.silent = False
        await tab.until("document.documentElement.dataset.line === 'live'", 6)
        await tab.until("document.getElementById('lost').hidden")

    assert re.search(r"These numbers are \d+ seconds? old; trying again", said)


async def test_a_call_tells_its_story(browser) -> None:
    async with looking(browser, Pretended(3), "/#/upstreams/ratings") as tab:
        await tab.until("document.querySelectorAll('.call').length === 3")
        await tab.press("[data-call='0'] .call")
        steps = await tab.run(
            "[...document.querySelectorAll('[data-call=\"0\"] .steps li .told')].map(one => one.textContent)"
        )
        await tab.press("[data-filter=error]")
        ended = await tab.run("[...document.querySelectorAll('.call .kind')].map(one => one.textContent)")

    assert steps[2] == "attempt 1: no answer within 0.300 s (read)"
    assert steps[-1] == "answered by last good, 8 s old"
    assert ended == ["rejected", "last good, 8 s old"]  # the one that is being read stays


async def test_200_upstreams_cost_a_look_at_what_is_seen(browser) -> None:
    server = Pretended(200, **{"maps-13": "hang"})
    async with looking(browser, server) as tab:
        await tab.until("document.querySelectorAll('.row').length === 200")
        await tab.run(WATCHED)
        await asyncio.sleep(0.05)
        await tab.until("window.told >= 2", 10)
        changed, added, first = await tab.run(
            "[window.changed.size, window.added, document.querySelector('.row').dataset.upstream]"
        )
        fits = await tab.run("document.querySelectorAll('.row').length")

    assert (added, first, fits) == (0, "maps-13", 200)
    assert 2 <= changed < 60


WATCHED = """(() => {
    window.changed = new Set(); window.added = 0; window.told = 0;
    new MutationObserver(records => {
        for (const { target, addedNodes } of records) {
            const row = (target.nodeType === 1 ? target : target.parentElement)?.closest('.row');
            if (row) window.changed.add(row.dataset.upstream);
            window.added += [...addedNodes].filter(node => node.nodeType === 1).length;
        }
        window.told += 1;
    }).observe(document.querySelector('.upstreams'),
        { subtree: true, childList: true, characterData: true, attributes: true });
})()"""


@pytest.mark.parametrize(("width", "dark"), [(360, True), (800, False), (1440, True)])
async def test_it_fits_every_screen_and_is_read_by_day_and_night(browser, width: int, dark: bool) -> None:
    server = Pretended(10, ratings="hang", info="slow", stock="isolated", users="broken")
    server.upstreams["info"].drift = {"bulkhead.limit": [20, 40]}
    async with looking(browser, server) as tab:
        if dark:
            await tab.dark()
        await tab.size(width, 900, phone=width < 500)
        for path in ("#/", "#/upstreams/info", "#/why", "#/audit"):
            await tab.run(f"location.hash = '{path}'")
            await tab.until("document.querySelector('.row, .call, .audit li')")
            if path == "#/upstreams/info":
                await tab.until("document.querySelector('.call') && document.querySelector('.knob')")

            assert await tab.run("document.documentElement.scrollWidth") <= width, path
            assert await tab.run(NAMELESS) == [], path
            assert await tab.run(f"{SMALL}.map(node => node.outerHTML)") == [], path
            assert await tab.run(FAINT) == [], path
