"""The scenario: what is judged and how, on runs made by hand; and once for real, short, in processes of its own."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from gateway.cli import demo, main
from gateway.demo import cast, picture, report
from gateway.demo.capacity import Capacity
from gateway.demo.load import Page, Users, complete, sources_of
from gateway.demo.plain import PlainCatalog
from gateway.demo.plan import RATE, RECOVERY, SHORTEST, USERS, WRITTEN_FOR, Arrival, Plan, arrivals
from gateway.demo.scenario import Settings
from gateway.demo.seconds import Change, Second, circuits_at, kind_of, percentile, second
from gateway.demo.verdict import Run, live_again, violations
from tests.edges.running import lives, running

ROOT = Path(__file__).parents[2]
PLAN = Plan(WRITTEN_FOR)
LIVE = {"ratings": "live", "info": "live"}
LAST_GOOD = {"ratings": "last_good", "info": "live"}
DEFAULT = {"ratings": "static", "info": "live"}
SOON = 2.0
"""Seconds after which the pages of a good run are live again."""

Edit = Callable[[Page], Page]


def good_run() -> Run:
    """A run that holds all that is promised."""
    recoveries = {phase.begins for phase in PLAN.phases if phase.name == RECOVERY}
    pages = []
    for arrival in arrivals(PLAN.seconds):
        phase = PLAN.at(arrival.at)
        seen = arrival.user.startswith("user-") and arrival.at > 5
        well = phase.calm and (phase.begins not in recoveries or arrival.at >= phase.begins + SOON)
        pages.append(Page(arrival.at, 0.03, seen, LIVE if well else LAST_GOOD if seen else DEFAULT))
    changes = [Change(17.0, "ratings", "open"), Change(22.0, "ratings", "half_open"), Change(22.0, "ratings", "closed")]
    return Run(PLAN, pages, changes, {phase.begins: phase.begins + 0.01 for phase in PLAN.phases})


def changed(run: Run, begin: float, end: float, edit: Edit, *, every: int = 1) -> Run:
    """The same, with some of its pages as they should not be."""
    hit = run.between(begin, end)[::every]
    pages = [edit(page) if page in hit else page for page in run.pages]
    return msgspec.structs.replace(run, pages=pages)


def now(**fields: Any) -> Edit:
    return lambda page: msgspec.structs.replace(page, **fields)


# -- the plan


def test_the_phases_at_the_default_length() -> None:
    named = [(phase.name, phase.begins, phase.ends) for phase in PLAN.phases]

    assert named == [
        ("healthy", 0, 10),
        ("ratings hang", 10, 20),
        ("recovery", 20, 28),
        ("info fails", 28, 34),
        ("recovery", 34, 42),
        ("ratings flooded", 42, 52),
        ("recovery", 52, 60),
    ]
    assert (PLAN.open_for, PLAN.window_for) == (5.0, 10.0)


@pytest.mark.parametrize("seconds", [SHORTEST, 13, 20, 37, 59, 60, 61, 600, 3600])
def test_the_phases_fill_any_length_without_a_gap(seconds: int) -> None:
    plan = Plan(seconds)
    phases = plan.phases

    assert [phases[0].begins, *(phase.ends for phase in phases)] == [*(phase.begins for phase in phases), seconds]
    assert all(phase.ends - phase.begins >= 1 for phase in phases)
    assert all(phase.ends - phase.begins >= plan.open_for for phase in phases if phase.name == RECOVERY)
    assert all(plan.at(phase.ends - 0.01) is not None for phase in phases)
    assert plan.open_for <= 5.0
    assert plan.window_for in range(1, 11)


def test_at_least_100_requests_in_each_second_and_50_users() -> None:
    wanted = list(arrivals(20))

    assert min(Counter(int(arrival.at) for arrival in wanted).values()) >= 100
    assert len({arrival.user for arrival in wanted if arrival.user.startswith("user-")}) == USERS == 50
    assert wanted == list(arrivals(20))
    assert [arrival.at for arrival in wanted] == sorted(arrival.at for arrival in wanted)


# -- what a second was like


def test_percentiles_by_nearest_rank() -> None:
    values = [number / 100 for number in range(1, 101)]

    assert percentile(values, 50) == 0.5
    assert percentile(values, 99) == 0.99
    assert percentile([0.7], 99) == 0.7
    assert percentile([0.1, 0.2], 50) == 0.1
    assert percentile([], 99) == 0.0


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (Page(0.0, 0.03, False, LIVE), "live"),
        (Page(0.0, 0.03, False, {}), "live"),
        (Page(0.0, 0.03, True, LAST_GOOD), "last good"),
        (Page(0.0, 0.03, True, {"ratings": "last_good", "info": "static"}), "default"),
        (Page(0.0, 0.03, False, {}, "status 502"), "error"),
        (Page(0.0, 1.05, False, LIVE), "live"),
        (Page(0.0, 1.051, False, LIVE), "error"),
    ],
)
def test_a_page_is_as_good_as_its_worst_part(page: Page, kind: str) -> None:
    assert kind_of(page) == kind


def test_a_circuit_is_what_it_last_became() -> None:
    changes = [Change(1.0, "ratings", "open"), Change(2.5, "ratings", "half_open")]

    assert circuits_at(0.9, changes) == {"ratings": "closed", "info": "closed"}
    assert circuits_at(2.0, changes)["ratings"] == "open"
    assert circuits_at(3.0, changes)["ratings"] == "half_open"


def test_a_row_of_the_table() -> None:
    pages = [Page(17.2, 0.004, True, LAST_GOOD)] * 3 + [Page(17.3, 1.2, False, LIVE), Page(17.4, 0.503, False, DEFAULT)]

    row = report.line(second(17, "ratings hang", pages, {"ratings": "half_open", "info": "closed"}))
    plain = report.line(second(17, "ratings hang", pages, {}))

    assert re.split(r" {2,}", row.strip()) == [
        *("17", "ratings hang", "5", "4", "1,200", "-", "3", "1", "1", "half-open", "closed")
    ]
    assert plain.split()[-2:] == ["none", "none"]


# -- the verdict


def test_a_good_run_holds_all() -> None:
    run = good_run()

    assert violations(run) == []
    assert "\n".join(report.protected(run)) == (
        "ok: all 6,600 pages were complete and in time, the slowest after 30 ms;\n"
        "healthy and recovered seconds were 100.0% live; again 2.0, 2.0, 2.0 s after the recoveries;\n"
        "while ratings hung, users seen before got their last good page 100.0% of the time;\n"
        "the circuit was open 7.0 s after ratings began to hang."
    )


def one_failed(run: Run) -> Run:
    return changed(run, 14.0, 14.005, now(problem="status 503"))


def one_late(run: Run) -> Run:
    return changed(run, 14.0, 14.005, now(took=1.06))


def two_not_live(run: Run) -> Run:
    return changed(run, 3.0, 4.0, now(sources=LAST_GOOD), every=55)


def two_not_live_after_the_recovery(run: Run) -> Run:
    return changed(run, 26.0, 27.0, now(sources=LAST_GOOD), every=55)


def forgotten(run: Run) -> Run:
    return changed(run, 10.0, 20.0, now(sources=DEFAULT), every=15)


def nobody_seen(run: Run) -> Run:
    return changed(run, 10.0, 20.1, now(seen=False))


def never_open(run: Run) -> Run:
    return msgspec.structs.replace(run, changes=[])


def another_open(run: Run) -> Run:
    return msgspec.structs.replace(run, changes=[Change(17.0, "info", "open"), Change(21.0, "ratings", "open")])


def open_late(run: Run) -> Run:
    return msgspec.structs.replace(
        run, plan=(plan := Plan(120)), changes=[Change(30.5, "ratings", "open")], switched={}, pages=long_pages(plan)
    )


def long_pages(plan: Plan) -> list[Page]:
    return [
        Page(one.at, 0.03, True, LIVE if plan.at(one.at).calm else LAST_GOOD) for one in arrivals(plan.seconds, rate=20)
    ]


def not_live_again(run: Run) -> Run:
    return changed(run, 34.0, 42.0, now(sources=LAST_GOOD))


def live_again_late(run: Run) -> Run:
    plan = Plan(120)
    pages = [
        msgspec.structs.replace(page, sources=LAST_GOOD) if 40 <= page.sent < 48.5 else page
        for page in long_pages(plan)
    ]
    return Run(plan, pages, [Change(25.0, "ratings", "open")], {})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (one_failed, "1 of 6,600 pages failed or came too late (the first in second 14: status 503)"),
        (one_late, "1 of 6,600 pages failed or came too late (the first in second 14: too late)"),
        (two_not_live, "second 3 (healthy) was only 98.2% live"),
        (two_not_live_after_the_recovery, "second 26 (recovery) was only 98.2% live"),
        (forgotten, "while ratings hung, users seen before got their last good page only 93.3% of the time"),
        (nobody_seen, "no user seen before asked for a page while ratings hung"),
        (never_open, "the circuit of ratings did not open while they hung"),
        (another_open, "the circuit of ratings did not open while they hung"),
        (open_late, "the circuit of ratings opened 10.5 s after they began to hang, later than 10 s"),
        (not_live_again, "after the recovery in second 34 pages did not become live again"),
        (live_again_late, "after the recovery in second 40 it took 8.5 s until pages were live again, more than 8 s"),
    ],
)
def test_each_promise_that_is_not_held_has_its_sentence(spoil: Callable[[Run], Run], sentence: str) -> None:
    run = spoil(good_run())

    assert violations(run) == [sentence]
    assert report.protected(run) == (f"FAILED: {sentence}",)


def test_one_page_of_a_hundred_may_be_less_than_live() -> None:
    assert violations(changed(good_run(), 3.0, 3.005, now(sources=LAST_GOOD))) == []


def test_pages_are_live_again_when_a_whole_second_of_them_is() -> None:
    run = changed(good_run(), 21.0, 21.2, now(sources=LIVE))  # for a moment

    at = live_again(run, run.plan.phases[2])

    assert at == pytest.approx(22.0, abs=0.02)


def test_without_a_gateway_it_is_said_how_many_pages_were_lost() -> None:
    bad = changed(good_run(), 10.0, 21.0, now(took=2.0))

    said = " ".join(report.unprotected(bad))

    assert said.startswith("without a gateway, 1,210 of 6,600 pages (18%) failed or came too late: 100% of those")
    assert "110 sent when nothing was wrong any more" in said


# -- the picture


def seconds_of(run: Run, *, protected: bool) -> list[Second]:
    return [
        second(n, PLAN.at(n).name, run.between(n, n + 1), circuits_at(n + 1, run.changes) if protected else {})
        for n in range(PLAN.seconds)
    ]


@pytest.mark.parametrize("protected", [True, False])
def test_the_picture_is_xml_with_a_bar_for_every_second(protected: bool) -> None:
    run = good_run()
    title = Settings(plan=PLAN, protected=protected).title
    drawn = picture.draw(run, seconds_of(run, protected=protected), title=title, verdict=('it\'s <well> & "good"',))

    root = ET.fromstring(drawn)  # noqa: S314 - our own
    boxes = Counter(str(one.get("class")) for one in root.iter("{http://www.w3.org/2000/svg}rect"))
    texts = [str(one.text) for one in root.iter("{http://www.w3.org/2000/svg}text")]

    assert boxes["ill"] == 3
    live = [one for one in seconds_of(run, protected=protected) if one.kinds["live"]]
    assert boxes["live"] == len(live) + 1  # and what the colour means
    assert boxes["open"] == (2 if protected else 0)
    assert {title, "ratings hang", "60 s", 'it\'s <well> & "good"'} <= set(texts)
    assert "prefers-color-scheme: dark" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")


# -- the load


@dataclass
class Slow:
    """A catalog that takes its time, and sees with how much of it people come."""

    takes: float = 0.0
    content: Any = field(default_factory=lambda: [{"name": "Alien"}])
    status: int = 200
    deadlines: list[int] = field(default_factory=list)

    async def page(self, request: web.Request) -> web.Response:
        self.deadlines.append(int(request.headers["X-Deadline-Ms"]))
        await asyncio.sleep(self.takes)
        headers = {"X-Answer-Source": "ratings=last_good;age=12.4, info=live"} if request.query else {}
        return web.json_response(self.content, status=self.status, headers=headers)


async def asked(slow: Slow, *, late: float = 0.0, times: int = 1) -> list[Page]:
    app = web.Application()
    app.router.add_get("/catalog/{user_id}", slow.page)
    pages: list[Page] = []
    async with TestServer(app) as server, ClientSession() as session:
        users = Users(session, str(server.make_url("")).rstrip("/"), pages.append)
        for _ in range(times):
            await users.ask(Arrival(3.0, "ada"), monotonic() - late - 3.0)
    return pages


@pytest.mark.asyncio
async def test_latency_runs_from_the_instant_at_which_the_page_was_to_be_asked_for() -> None:
    slow = Slow()

    (page,) = await asked(slow, late=0.4)

    assert page.sent == 3.0
    assert page.took >= 0.4
    assert slow.deadlines[0] <= 600


@pytest.mark.asyncio
async def test_who_comes_too_late_has_no_time_left_to_give() -> None:
    slow = Slow()

    (page,) = await asked(slow, late=1.5)

    assert slow.deadlines == [0]
    assert kind_of(page) == "error"


@pytest.mark.asyncio
async def test_a_user_leaves_when_patience_ends() -> None:
    (page,) = await asked(Slow(takes=5.0), late=4.9)

    assert page.problem == "the user left"
    assert page.took == pytest.approx(5.0, abs=0.4)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("slow", "problem"),
    [
        (Slow(status=502), "status 502"),
        (Slow(content=[]), "not a page"),
        (Slow(content={"error": "none"}), "not a page"),
        (Slow(), ""),
    ],
)
async def test_only_a_page_with_films_is_one(slow: Slow, problem: str) -> None:
    assert [page.problem for page in await asked(slow)] == [problem]


@pytest.mark.asyncio
async def test_a_user_is_seen_before_once_there_was_a_live_page() -> None:
    assert [page.seen for page in await asked(Slow(), times=2)] == [False, True]
    assert [page.seen for page in await asked(Slow(status=503), times=2)] == [False, False]


def test_the_sources_of_a_page_are_in_its_header() -> None:
    assert sources_of("ratings=last_good;age=12.4, info=live") == LAST_GOOD
    assert sources_of("") == {}
    assert complete(b'[{"name":"Alien","desc":"","rating":5}]')
    assert not complete(b"oops")


# -- the cast


@pytest.mark.asyncio
async def test_a_service_of_fixed_capacity_makes_the_others_wait() -> None:
    at_once, most = 0, 0

    async def work(_: web.Request) -> web.Response:
        return web.Response()

    async def count(request: web.Request) -> web.Response:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        await asyncio.sleep(0.01)
        at_once -= 1
        return await work(request)

    app = web.Application()
    Capacity(2, {"/": 0.01}).install(app)
    app.router.add_get("/", count)
    async with TestServer(app) as server, ClientSession() as session:

        async def get() -> int:
            async with session.get(server.make_url("/")) as response:
                return response.status

        statuses = await asyncio.gather(*(get() for _ in range(8)))

    assert statuses == [200] * 8
    assert most == 2


@pytest.mark.asyncio
async def test_the_plain_catalog_makes_the_same_page_and_fails_when_one_of_them_does() -> None:
    async with TestServer(cast.create("ratings", "null")) as ratings, TestServer(cast.create("info", "null")) as info:
        ratings_url, info_url = (str(server.make_url("")).rstrip("/") for server in (ratings, info))
        ours = cast.Upstreams(ratings_url=ratings_url, info_url=info_url, plan=PLAN)
        app = cast.create("catalog", msgspec.json.encode(ours).decode())
        plain = PlainCatalog(ratings_url=ratings_url, info_url=info_url, timeout=0.2).create()
        async with TestServer(app) as behind, TestServer(plain) as bare, ClientSession() as session:
            pages = [await get(session, server, "/catalog/ada") for server in (behind, bare)]
            circuits = await get(session, behind, "/circuits")
            async with session.post(f"{ratings_url}/fault/hang"):
                hanging = await get(session, bare, "/catalog/ada")
            async with session.post(f"{ratings_url}/fault/fail"):
                failing = await get(session, bare, "/catalog/ada")

    assert pages[0] == pages[1]
    assert pages[0][0] == 200
    assert circuits == (200, [])
    assert hanging[0] == failing[0] == 502


async def get(session: ClientSession, server: TestServer, path: str) -> tuple[int, Any]:
    async with session.get(server.make_url(path)) as response:
        return response.status, await response.json()


# -- the command


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--seconds", "20"], "--seconds goes with --scenario"),
        (["--svg", "x.svg"], "--svg goes with --scenario"),
        (["--unprotected"], "--unprotected goes with --scenario"),
        (["--scenario", "--no-timeouts"], "--no-timeouts goes with --unprotected"),
        (["catalog", "--scenario"], "--scenario starts all services itself"),
        (["--scenario", "--seconds", "11"], "11 is not in the range"),
        (["--scenario", "--seconds", "soon"], "is not a valid integer"),
        (["--scenario", "--svg", "/nowhere/to/be/found.svg"], "cannot write to the folder '/nowhere/to/be'"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, ["demo", *arguments])

    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def pids_of_the_cast(parent: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        pid = int(entry.name)
        if "gateway.demo.cast" in command and lives(pid) and parent_of(pid) == parent:
            yield pid


@pytest.mark.alone
def test_a_short_scenario_for_real(tmp_path: Path) -> None:
    svg = tmp_path / "picture.svg"

    with running("demo", "--scenario", "--seconds", f"{SHORTEST}", "--svg", f"{svg}", until="picture:") as one:
        code, _, complaints = one.ended()

    rows = [line for line in one.said if re.match(r" +\d+  ", line)]
    assert [int(row.split()[0]) for row in rows] == list(range(SHORTEST))
    assert all(f" {RATE} " in row for row in rows)
    assert complaints == ""
    assert "last good" in one.said[1]
    assert "open" in rows[3]
    ET.parse(svg)  # noqa: S314 - our own
    # The machine may be busy with other things: what counts is that the exit status says what the verdict says.
    verdict = [line for line in one.said if line.startswith(("ok: ", "FAILED: "))]
    assert verdict
    assert code == (0 if verdict[0].startswith("ok: ") else 1), verdict
    assert not any("status" in line or "not a page" in line for line in verdict), verdict


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_ended_early_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with running("demo", "--scenario", "--unprotected", "--svg", f"{tmp_path / 'x.svg'}", until="       0 ") as one:
        started = set(pids_of_the_cast(one.process.pid))
        code, said, complaints = one.end(number)

    assert len(started) >= 4
    assert code == 0
    assert "ended early: no verdict" in said
    assert complaints == ""
    assert not [pid for pid in started if lives(pid)]
    assert not (tmp_path / "x.svg").exists()


def test_a_service_that_ends_by_itself_ends_the_scenario(tmp_path: Path) -> None:
    with running("demo", "--scenario", "--svg", f"{tmp_path / 'x.svg'}", until="       0 ") as one:
        started = {role_of(pid): pid for pid in pids_of_the_cast(one.process.pid)}
        subprocess.run(["kill", "-KILL", str(started["load"])], check=True)
        code, _, complaints = one.ended()

    assert code == 1
    assert "ended by itself" in complaints
    assert not [pid for pid in started.values() if lives(pid)]


def role_of(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return command[command.index("gateway.demo.cast") + 1]


def parent_of(pid: int) -> int:
    found = re.search(r"\nPPid:\t(\d+)\n", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


# -- docs/scenario.md


def test_the_commands_in_the_docs_are_those_there_are() -> None:
    told = re.findall(r"^\$ gateway demo (.*)$", (ROOT / "docs" / "scenario.md").read_text(), flags=re.MULTILINE)

    parsed = [demo.make_context("demo", line.split()).params for line in told]

    assert [(one["scenario"], one["unprotected"], one["no_timeouts"]) for one in parsed] == [
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


@pytest.mark.parametrize("name", ["scenario.svg", "scenario-unprotected.svg"])
def test_the_pictures_in_the_docs_are_of_the_runs_told_there(name: str) -> None:
    told = (ROOT / "docs" / "scenario.md").read_text().splitlines()

    root = ET.parse(ROOT / "docs" / name).getroot()  # noqa: S314 - our own
    texts = [str(one.text) for one in root.iter("{http://www.w3.org/2000/svg}text")]

    verdict = texts[-sum(f"> {text}" in told for text in texts) :]
    assert len(verdict) >= 3
    assert all(f"> {line}" in told for line in verdict)
