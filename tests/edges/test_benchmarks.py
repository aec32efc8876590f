"""The benchmarks themselves: ours go through every workload, and the guard notices what it is there for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat
from math import inf

import pytest
from aiohttp import ClientSession, web

from benchmarks import aggregators, blast, catalogs, faults, guard, picture, profile, report, watching, workloads
from benchmarks.contenders import KNOWN, OURS, contender
from benchmarks.contenders.ours import Called
from benchmarks.rounds import Runner, Spread, interleaved, over
from benchmarks.terms import CannotDo, Function, Missing, Terms, stand_in
from benchmarks.upstreams import Connection, State
from benchmarks.workloads import WORKLOADS
from gateway.demo.catalog import Catalog


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["bare", "floor", *OURS])
@pytest.mark.asyncio
async def test_each_of_ours_goes_once_through_each_workload_or_says_why_not(name: str, workload, monkeypatch) -> None:
    monkeypatch.setattr(workloads, "IN_FLIGHT", 100)
    one = contender(name)

    try:
        runner = await workload.prepare(one)
        took = await runner.timed()
    except CannotDo as reason:
        took, why = None, str(reason)

    await one.close()
    if took is None:
        assert why.startswith("has no ")
        assert name in {"bare", "gateway-minimum"}
    else:
        assert 0 < took < 1


def test_every_contender_can_be_made_or_says_what_is_missing() -> None:
    missing: list[str] = []
    words: list[str] = []

    for name in KNOWN:
        try:
            made = contender(name)
        except Missing as reason:
            missing.append(name)
            words.append(str(reason))
        else:
            words += [made.name, made.note]
    assert all(words)
    assert not {"bare", "floor", *OURS} & set(missing)


@pytest.mark.asyncio
async def test_rounds_of_all_are_interleaved() -> None:
    order: list[str] = []

    def runner(name: str) -> Runner:
        async def batch(_: int) -> None:
            order.append(name)

        return Runner(batch, fixed=True)

    figures = await interleaved({"a": runner("a"), "b": runner("b")}, rounds=5)

    rounds = order[2:]  # after one of each to warm up
    assert all(set(pair) == {"a", "b"} for pair in zip(rounds[::2], rounds[1::2], strict=True))
    assert {name: len(values) for name, values in figures.items()} == {"a": 5, "b": 5}


@pytest.mark.asyncio
async def test_the_parts_of_a_call_and_what_is_left_make_the_whole(monkeypatch) -> None:
    monkeypatch.setattr(profile, "ROUNDS", 3)
    monkeypatch.setattr(profile, "CALLS", 20)

    figures = await profile.measure()
    _, page, _ = profile.lines({"this Python": figures})

    assert set(profile.WORDS) < set(figures)
    assert all(0 < figure < 1_000 for figure in figures.values())
    assert profile.explained(figures) < profile.of_all(figures)
    shown = [float(row.split("|")[2].strip(" *x")) for row in page.splitlines()[2:]]
    *parts, whole = shown[: len(profile.WORDS) + 2]
    assert sum(parts) == pytest.approx(whole, abs=0.1)  # each is rounded


def test_figures_are_compared_within_their_round() -> None:
    assert over([3.0, 13.0], [1.0, 11.0]) == [2.0, 2.0]
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([1.0]) == Spread(1.0, 1.0, 1.0)


class Slowed(Called):
    """Ours, if every call did everything five times: a busy machine hides less."""

    def _spelled(self, operation) -> Function:
        async def call(key: str) -> object:
            for _ in range(4):
                with suppress(Exception):
                    await operation(key)
            return await operation(key)

        return call


@pytest.mark.asyncio
async def test_the_guard_sees_a_call_that_has_become_dearer() -> None:
    usual, slowed = [], []

    for _ in range(3):
        usual.append(guard.ratios(await guard.measure(contender("gateway"), seconds=0.1)))
        slowed.append(guard.ratios(await guard.measure(Slowed(), seconds=0.1)))

    record, figures = ({name: min(one[name] for one in all_) for name in guard.FIGURES} for all_ in (usual, slowed))
    assert set(guard.dearer(figures, record)) == set(guard.FIGURES)
    assert not guard.dearer(record, record)


@pytest.mark.parametrize(("grown", "well"), [(1.0, True), (1.15, True), (1.34, False), (0.5, True)])
def test_a_third_more_fails_and_a_little_more_does_not(grown: float, *, well: bool, capsys, monkeypatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.0)

    assert guard.check({"a live call": 3.0}, lambda: {"a live call": 3.0 * grown, "floor": 1.0}) is well

    said = capsys.readouterr().out
    assert ("DEARER by 34%" in said) is not well


def test_what_seems_dearer_is_measured_again_and_the_quickest_rounds_count(capsys) -> None:
    disturbed = [{"a live call": 9.0, "floor": 1.0}] * guard.PROCESSES
    takes = chain(disturbed, [{"a live call": 3.1, "floor": 1.0}])

    assert guard.check({"a live call": 3.0}, lambda: next(takes))

    assert "3.10 x the floor, recorded 3.00: ok" in capsys.readouterr().out
    assert list(takes) == []


def test_a_disturbed_floor_does_not_hide_what_has_become_dearer(monkeypatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.0)
    takes = chain([{"a live call": 4.5, "floor": 1.0}], repeat({"a live call": 4.5, "floor": 1.5}))

    assert not guard.check({"a live call": 3.0}, lambda: next(takes))


def test_the_records_hold_every_figure_for_the_pythons_that_ci_runs() -> None:
    records = guard.json.loads(guard.RECORDS.read_text())

    assert set(records) >= {"3.11", "3.13"}
    for record in records.values():
        assert set(record) == set(guard.FIGURES)
        assert all(1 < figure < inf for figure in record.values())


def test_a_part_that_is_measured_anew_leaves_the_others(tmp_path) -> None:
    page = tmp_path / "benchmarks.md"
    for name, says in (("growth", "old"), ("speed", "fast"), ("growth", "new")):
        report.write(name, report.Section(f"About {name}", (says,)), took=1.0, quick=True, page=page)

    text = page.read_text()

    assert text.index("## About speed") < text.index("## About growth")
    assert "new" in text
    assert "old" not in text
    assert text.count("made by `make bench`") == 2


def test_the_loop_that_is_asked_for_is_the_one_that_is_measured() -> None:
    from benchmarks.speed import factory

    loop = factory("uvloop")()

    assert type(loop).__module__.startswith("uvloop")
    assert not isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()


PROBES_WITHOUT_A_PAUSE = (
    "a cancelled caller's place",
    "a listener that raises",
    "healthy refusals",
    "context in threads",
    "async plan B",
    "200 rejections",
    "beside a hanging call",
)


@pytest.mark.parametrize("title", PROBES_WITHOUT_A_PAUSE)
def test_the_fault_table_finds_nothing_wrong_with_ours(title: str, caplog) -> None:
    caplog.set_level("CRITICAL")

    assert faults.in_time("gateway", faults.PROBES[title]) == "ok"


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("a cancelled caller's place", "0 of 2 places left"),
        ("200 rejections", "frames"),
        ("async plan B", "not awaited"),
    ],
)
def test_the_fault_table_finds_what_is_wrong_with_a_bad_one(title: str, found: str, monkeypatch) -> None:
    monkeypatch.setattr(faults, "contender", lambda _: Bad())

    assert found in faults.in_time("bad", faults.PROBES[title])


class Bad:
    """Loses places, raises one error again and again, hands on what is to be awaited."""

    def guard(self, function: Function, terms: Terms) -> Function:
        places, failures, error = terms.limit, 0, LookupError("open")

        async def call(key: str) -> object:
            nonlocal places, failures
            if failures >= 5:
                raise error
            if not places:
                return await asyncio.sleep(3600)
            places -= 1
            try:
                value = await function(key)
            except Exception:
                places, failures = places + 1, failures + 1
                return stand_in() if terms.plan_b else None
            places += 1
            return value

        return call


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[str, State]]:
    state = State(delay=0.0)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", state
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio
async def test_both_catalogs_give_the_same_page() -> None:
    pages = []

    async with upstream() as (url, state), ClientSession() as session:
        for app in (Catalog(ratings_url=url, info_url=url).create(), catalogs.Bare(url).create()):
            async with serving(app) as here, session.get(f"{here}/catalog/ada") as response:
                pages.append((response.status, await response.json()))

    assert pages[0] == pages[1]
    assert pages[0][0] == 200
    assert len(pages[0][1]) == 5
    assert state.seen == 2 * (1 + 5)


@pytest.mark.asyncio
@pytest.mark.parametrize(("kind", "ill"), [("gateway", "200 true"), ("bare", "502 None")])
async def test_an_aggregator_makes_its_page_of_three_and_says_when_one_is_missing(kind: str, ill: str) -> None:
    said = []

    async with upstream() as (url, _), upstream() as (sick, state), ClientSession() as session:
        made = aggregators.KINDS[kind]({"a": url, "b": sick, "c": url})
        async with serving(aggregators.app(made)) as here:
            for mode, path in (("none", "page"), ("fail", "page"), ("fail", "other")):
                state.mode = mode
                async with session.get(f"{here}/{path}/ada") as response:
                    said.append(f"{response.status} {response.headers.get('X-Degraded')}")

    assert said == ["200 false", ill, "200 false"]


@pytest.mark.asyncio
async def test_an_upstream_is_as_ill_as_it_is_told_and_counts_what_it_is_asked() -> None:
    async with upstream() as (url, state), ClientSession() as session:
        async with session.post(f"{url}/mode/fail") as response:
            assert response.status == 204
        async with session.get(f"{url}/items/ada") as response:
            assert response.status == 500
        async with session.post(f"{url}/mode/hang"):
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), session.get(f"{url}/items/ada"):
                pass
        async with session.post(f"{url}/mode/drip"):
            pass
        async with session.get(f"{url}/items/ada") as response:
            assert len(await response.content.read(100)) < 50
        async with session.get(f"{url}/seen") as response:
            assert await response.text() == "3"
        assert state.mode == "drip"


def test_pages_are_back_when_half_a_second_of_them_is_live() -> None:
    plan = blast.phases(quick=True)
    ill = plan[1]
    kinds = ("degraded" if ill.begins <= number / 10 < ill.ends + 1.0 else "live" for number in range(1000))
    made = blast.Run(plan, [blast.Request(n / 10, 0.01 * (n % 5), True, kind) for n, kind in enumerate(kinds)])

    assert made.recovery(ill) == pytest.approx(1.0)
    assert blast.share(made.of(ill, pages=True), "degraded") == 1.0
    assert blast.p99(made.requests) == pytest.approx(0.04)
    assert "ours: 0 of 1,000 pages lost" in picture.draw({"ours": made})


@pytest.mark.asyncio
async def test_calls_are_measured_with_an_admin_server_and_without(monkeypatch) -> None:
    for name, value in (("UPSTREAMS", 2), ("RATE", 100), ("SETTLE", 0.02)):
        monkeypatch.setattr(watching, name, value)

    async with upstream() as (url, state):
        measured = await watching.turns(url, rounds=1, seconds=0.05, ways=(watching.OFF, watching.ON))
    by_listener = await watching.listeners(rounds=1)

    assert state.seen > 2 * 5
    assert all(len(one["cpu"]) == len(one["p99"]) == 1 for one in measured.values())
    text = "\n".join(watching.lines({"turns": measured, "listeners": by_listener}))
    assert f"| {watching.ON} |" in text
    assert f"| {watching.LOGGED} |" in text
