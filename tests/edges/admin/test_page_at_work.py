"""The page before a gateway that runs: what an operator sees, changes, and is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest

from gateway import BulkheadPolicy, Gateway, LastGood, Policy, TimeoutPolicy
from gateway.admin import Admin
from tests.edges.admin.asking import admin_of, ask
from tests.edges.browser import Browser, Tab
from tests.support import gone

pytestmark = pytest.mark.asyncio

PLACES = "document.querySelector('.one .pool-bar').parentElement.querySelector('.strong').textContent"
SAID = "document.querySelector('.tune .said').textContent"
DEED = "[data-deed={}]"


class World:
    """A gateway with one upstream of two places, whose calls end when they are told to."""

    def __init__(self, gate: Gateway | None = None) -> None:
        self.gate = gate or Gateway()
        pool = BulkheadPolicy(limit=2, queue=10, max_wait=60)
        policy = Policy(bulkhead=pool, timeout=TimeoutPolicy(call=60, attempt=60))
        self.ratings = self.gate.upstream("ratings", policy=policy)
        self.go_on = asyncio.Event()
        self.calls: list[asyncio.Task[Any]] = []

        @self.ratings.operation(idempotent=True, fallback=[LastGood()])
        async def stars(_: str) -> int:
            await self.go_on.wait()
            return 4

        self.stars = stars

    def ask(self, number: int) -> None:
        self.calls += [asyncio.create_task(self.stars(f"user {at}")) for at in range(number)]


@asynccontextmanager
async def looking(
    browser: Browser, world: World, path: str = "/", *, live: str = "live", **settings: Any
) -> AsyncIterator[tuple[Tab, Admin]]:
    async with admin_of(world.gate, **settings) as admin, browser.tab() as tab:
        try:
            await tab.size(1440, 900)
            await tab.open(admin.url + path)
            await tab.until(f"document.documentElement?.dataset.line === '{live}'")
            yield tab, admin
            assert [problem for problem in tab.problems if "status of" not in problem] == []
            assert all(asked.startswith((admin.url + "/", "data:")) for asked in tab.asked)
        finally:
            await gone(*world.calls)


async def put(tab: Tab, knob: str, text: str) -> None:
    """Type into the form, in place of what is there."""
    await tab.until(f"document.getElementById('knob-{knob}')")
    await tab.run(f"document.getElementById('knob-{knob}').focus(), document.getElementById('knob-{knob}').select()")
    await tab.call("Input.insertText", text=text)


async def agree(tab: Tab, why: str = "") -> None:
    """Say yes to what is asked."""
    await tab.until("document.querySelector('dialog[open]')")
    if why:
        await tab.run("document.querySelector('dialog input').focus()")
        await tab.call("Input.insertText", text=why)
    await tab.press("dialog [type=submit]")
    await tab.until("!document.querySelector('dialog')")


async def test_a_fault_is_seen_within_a_second_and_a_larger_pool_drains_the_queue(browser) -> None:
    world = World()
    async with looking(browser, world) as (tab, _):
        await tab.until("document.querySelector('.row')")
        began_at = time.monotonic()
        world.ask(6)
        await tab.until("document.querySelector('.reason').textContent === 'pool full, 4 callers wait'", 5)
        seen_after = time.monotonic() - began_at
        await tab.press(".open")
        await put(tab, "bulkhead.limit", "10")
        await tab.press(".tune .well")
        await tab.until("document.querySelector('dialog[open]')")
        shown = await tab.run("document.querySelector('dialog .changes tbody').innerText")
        await agree(tab, why="they queue — überall")
        await tab.until(f"{PLACES} === '6 of 10 in use'", 5)
        world.go_on.set()
        values = await asyncio.gather(*world.calls)
        await tab.until(f"{PLACES} === '0 of 10 in use'", 5)
        drift = await tab.run("document.querySelector('.drift-note').innerText")
        await tab.run("location.hash = '#/audit'")
        await tab.until("document.querySelector('.audit b')")
        audit = await tab.run("document.querySelector('.audit li').innerText")

    assert seen_after < 2.5  # told each second, and drawn, by a browser on a machine that may be busy
    assert values == [4] * 6
    assert shown.split() == ["bulkhead.limit", "2", "10"]
    assert "bulkhead.limit" in drift
    assert "bulkhead.limit 2 → 10" in audit
    assert "“they queue — überall”" in audit


async def test_wrong_values_are_told_where_they_stand_and_nothing_is_applied(browser) -> None:
    world = World()
    before = world.ratings.policy
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, _):
        await put(tab, "bulkhead.limit", "0")
        await put(tab, "bulkhead.queue", "many")
        await put(tab, "timeout.call", "5s")
        await tab.press(".tune .well")
        await agree(tab)
        await tab.until(SAID)
        wrong = {
            knob: await tab.run(f"document.querySelector('[data-knob=\"{knob}\"] .wrong').textContent")
            for knob in ("bulkhead.limit", "bulkhead.queue", "timeout.call")
        }
        said = await tab.run(SAID)
        focused = await tab.run("document.activeElement.id")
        await tab.press(".tune .tool[type=button]:not([hidden])")
        await tab.until(f"!{SAID}")
        restored = await tab.run("document.getElementById('knob-bulkhead.limit').value")

    assert "nothing was applied" in said.lower()
    assert "0 is" in wrong["bulkhead.limit"]
    assert "many" in wrong["bulkhead.queue"]
    assert focused == "knob-bulkhead.limit"
    assert restored == "2"
    assert world.ratings.policy is before


async def test_of_two_operators_the_second_is_told_what_the_first_did_and_loses_nothing(browser) -> None:
    world = World()
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, admin):
        await tab.until("document.querySelector('.knob')")
        world.ratings.tune_fields({"bulkhead.queue": 11})
        await tab.until("document.getElementById('knob-bulkhead.queue').value === '11'", 5)
        world.ratings.tune_fields({"bulkhead.queue": 10})
        await tab.until("document.getElementById('knob-bulkhead.queue').value === '10'", 8)
        await put(tab, "bulkhead.limit", "40")
        other = await ask(
            admin, "PATCH", "/upstreams/ratings/policy", json_={"bulkhead": {"limit": 7, "queue": 3}}, If_Match="*"
        )
        await tab.press(".tune .well")
        await agree(tab)
        await tab.until(SAID)
        said, limit = await tab.run(SAID), world.ratings.policy.bulkhead.limit
        await tab.press(".tune .choices .tool")
        await tab.until(f"!{SAID}")
        kept = await tab.run("document.getElementById('knob-bulkhead.limit').value")
        theirs = await tab.run("document.querySelector('[data-knob=\"bulkhead.limit\"] .other').textContent")
        queue = await tab.run("document.getElementById('knob-bulkhead.queue').value")
        before = await tab.run("document.querySelector('.diff .was').textContent")
        await tab.press(".tune .well")
        await agree(tab)
        await tab.until("document.querySelector('.drift-note:not([hidden])')?.innerText.includes('40')", 5)

    assert (other.status, limit) == (200, 7)
    assert said.startswith("Somebody else changed this upstream")
    assert (kept, queue, before) == ("40", "3", "7")
    assert theirs == "somebody else made it 7; it was 2"
    assert (world.ratings.policy.bulkhead.limit, world.ratings.policy.bulkhead.queue) == (40, 3)


async def test_what_is_done_by_hand_is_asked_first_and_done_then(browser) -> None:
    world = World()
    world.gate.http("api", ["http://127.0.0.1:9", "http://127.0.0.2:9"])
    world.go_on.set()
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, _):
        await world.stars("ada")
        await tab.until(f"document.querySelector('{DEED.format('isolate')}:enabled')")
        await tab.press(DEED.format("isolate"))
        await tab.until("document.querySelector('dialog[open]')")
        await tab.press("dialog [type=button]")
        await tab.until("!document.querySelector('dialog')")
        left = world.ratings.snapshot().breaker.state, await tab.run("document.getElementById('lost').hidden")
        await tab.press(DEED.format("isolate"))
        await agree(tab)
        await tab.until("document.querySelector('.panel > .circuit').textContent === 'isolated'", 5)
        isolated = world.ratings.snapshot().breaker.state
        await tab.press(DEED.format("restore"))
        await agree(tab)
        await tab.until("document.querySelector('.panel > .circuit').textContent === 'closed'", 5)
        await tab.press(DEED.format("enforce"))
        await agree(tab)
        await tab.until(f"document.querySelector('{DEED.format('enforce')}').textContent === 'Enforce'", 5)
        enforced = world.ratings.policy.breaker.enforce
        await tab.press(DEED.format("drop"))
        await agree(tab)
        await tab.until("document.querySelector('.drift-note').hidden", 5)
        await tab.run("location.hash = '#/upstreams/api'")
        await tab.until("document.querySelectorAll('.endpoints li').length === 2", 5)
        await tab.press(".endpoints li button")
        await agree(tab)
        await tab.until("document.querySelector('.endpoint').dataset.state.startsWith('drain')", 5)
        await tab.press(".endpoints li button")
        await agree(tab)
        await tab.until("document.querySelector('.endpoint').dataset.state === 'up'", 5)
        events = await tab.run("[...document.querySelectorAll('.event')].map(event => event.innerText).join()")

    assert (left, isolated, enforced) == (("closed", True), "isolated", False)
    assert world.ratings.policy.breaker.enforce is True
    assert "drain" in events


async def test_tuned_values_are_folded_into_the_policy_file_and_its_comments_stay(browser, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text("[upstreams.ratings.bulkhead]\nlimit = 2  # measured in May\n")
    world = World(Gateway.from_file(file, check_every=inf, on_hangup=False))
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, admin):
        tuned = await ask(admin, "PATCH", "/upstreams/ratings/policy", json_={"bulkhead": {"limit": 7}})
        await tab.until(f"document.querySelector('{DEED.format('fold')}')", 5)
        await tab.press(DEED.format("fold"))
        await tab.until("document.querySelector('dialog[open]')")
        shown = await tab.run("document.querySelector('dialog[open] .changes tbody').innerText")
        asked = await tab.run("document.querySelector('dialog[open]').innerText")
        unfolded = file.read_text()
        await agree(tab, why="it held all week")
        await tab.until("document.querySelector('.drift-note').hidden", 5)
        audit = await ask(admin, "GET", "/audit")

    assert tuned.status == 200
    assert shown.split() == ["bulkhead.limit", "2", "7"]
    assert str(file) in asked
    assert "limit = 2 " in unfolded
    assert file.read_text() == "[upstreams.ratings.bulkhead]\nlimit = 7  # measured in May\n"
    assert world.ratings.policy.bulkhead.limit == 7
    assert audit.json["audit"][0]["why"] == "it held all week"


async def test_one_circuit_of_many_is_isolated_and_restored_by_its_key(browser) -> None:
    world, long = World(), "tenant of " + "a very long name, " * 10
    keys: dict[str, object] = {"ada": "ada", "tenant of": long, "7": 7}
    for key in keys.values():
        world.ratings.circuit(key)
    isolated = {}
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, _):
        for shown, key in keys.items():
            circuit = f"[data-circuit^='{shown}']"
            state = f'document.querySelector("{circuit} .circuit")?.dataset.state'
            await tab.until(f"{state} === 'closed'", 5)
            await tab.press(f"{circuit} button")
            await agree(tab)
            await tab.until(f"{state} === 'isolated'", 5)
            shots = world.ratings.snapshot().circuits
            isolated[key] = [one for one, shot in shots.items() if shot.state == "isolated"]
            await tab.press(f"{circuit} button")
            await agree(tab)
            await tab.until(f"{state} === 'closed'", 5)
    shot = world.ratings.snapshot()

    assert isolated == {key: [key] for key in keys.values()}
    assert {one.state for one in (shot.breaker, *shot.circuits.values())} == {"closed"}
    assert len(shot.circuits) == len(keys)


async def test_remembered_answers_are_forgotten(browser) -> None:
    world = World()
    world.go_on.set()
    async with looking(browser, world, "/#/upstreams/ratings") as (tab, _):
        await world.stars("ada")
        await tab.until(f"document.querySelector('{DEED.format('forget')}:enabled')", 5)
        await tab.press(DEED.format("forget"))
        await agree(tab)
        world.ratings.isolate()
        with pytest.raises(Exception, match="isolated"):
            await world.stars("ada")


async def test_a_token_is_asked_for_and_stays_in_its_tab(browser) -> None:
    world = World()
    tokens = {"token": "w" * 20, "read_token": "r" * 20}
    async with looking(browser, world, live="locked", **tokens) as (tab, _):
        for secret in ("wrong", tokens["read_token"]):
            await tab.until("document.querySelector('dialog[open] [type=password]')")
            await tab.run("document.querySelector('dialog[open] [type=password]').focus()")
            await tab.call("Input.insertText", text=secret)
            await tab.press("dialog[open] .well")
        await tab.until("document.querySelector('.row')")
        await tab.press(".open")
        await tab.until(f"document.querySelector('{DEED.format('isolate')}:enabled')")
        await tab.press(DEED.format("isolate"))
        await agree(tab)
        await tab.until("document.getElementById('lost').textContent.startsWith('Not allowed')")
        said = await tab.run("document.getElementById('lost').textContent")
        kept = await tab.run("JSON.stringify({...localStorage}) + document.cookie + location.href")
        nothing_in_urls = all(secret not in url for url in tab.asked for secret in tokens.values())

    assert "this token may look, and change nothing" in said
    assert "rrrr" not in kept
    assert nothing_in_urls
    assert world.ratings.snapshot().breaker.state == "closed"
