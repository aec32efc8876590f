"""The benchmarks themselves: ours go through every workload, and the guard notices what it is there for."""

from __future__ import annotations

import asyncio
from itertools import chain, repeat
from math import inf

import pytest

from benchmarks import guard, report
from benchmarks.contenders import KNOWN, OURS, contender
from benchmarks.contenders.ours import Called
from benchmarks.rounds import Runner, Spread, interleaved, over
from benchmarks.terms import CannotDo, Function, Missing
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["bare", "floor", *OURS])
@pytest.mark.asyncio
async def test_each_of_ours_goes_once_through_each_workload_or_says_why_not(name: str, workload) -> None:
    one = contender(name)

    try:
        runner = await workload.prepare(one)
        took = await runner.timed()
    except CannotDo as reason:
        took, why = None, str(reason)

    await one.close()
    if took is None:
        assert why.startswith(("has no ", "not in this version")), why
        assert name != "gateway" or workload.name == "single flight"
    else:
        assert 0 < took < 1


def test_every_contender_can_be_made_or_says_what_is_missing() -> None:
    for name in KNOWN:
        try:
            made = contender(name)
        except Missing as reason:
            assert name not in {"bare", "floor", *OURS}, reason
        else:
            assert made.name
            assert made.note


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


def test_figures_are_compared_within_their_round() -> None:
    assert over([3.0, 13.0], [1.0, 11.0]) == [2.0, 2.0]
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([1.0]) == Spread(1.0, 1.0, 1.0)


class Slowed(Called):
    """Ours, if every call did two thirds of it twice."""

    def _spelled(self, operation) -> Function:
        async def call(key: str) -> object:
            await operation(key)
            return await operation(key)

        return call


@pytest.mark.asyncio
async def test_the_guard_sees_a_call_that_has_become_dearer() -> None:
    usual = await guard.measure(contender("gateway"), seconds=0.3)

    slowed = await guard.measure(Slowed(), seconds=0.3)

    assert set(guard.dearer(slowed, usual)) == set(guard.FIGURES)
    assert not guard.dearer(usual, usual)


@pytest.mark.parametrize(("grown", "well"), [(1.0, True), (1.2, True), (1.34, False), (0.5, True)])
def test_a_third_more_fails_and_a_fifth_does_not(grown: float, *, well: bool, capsys) -> None:
    record = {"a live call": 3.0}

    assert guard.check(record, lambda: {"a live call": 3.0 * grown}) is well

    said = capsys.readouterr().out
    assert ("DEARER by 34%" in said) is not well


def test_what_seems_dearer_once_is_looked_at_once_more(capsys) -> None:
    figures = chain([{"a live call": 9.0}], repeat({"a live call": 3.0}))

    assert guard.check({"a live call": 3.0}, lambda: next(figures))

    assert "ok" in capsys.readouterr().out


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
