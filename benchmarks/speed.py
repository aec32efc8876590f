"""What a call costs: every contender, in every workload, on every loop and Python that is there.

Each Python and loop is a process of its own, started several times in turn: a process that had bad luck with its
memory has it for all its life.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders import KNOWN, contender
from benchmarks.node import peers as node
from benchmarks.report import Section, table
from benchmarks.rounds import Runner, Spread, interleaved, middle, over
from benchmarks.terms import CannotDo
from benchmarks.workloads import WORKLOADS, Workload

LOOPS = ("asyncio", "uvloop")
MICRO = 1e6
MOST = 60.0
"""Seconds for one contender to get ready."""


async def measure(workload: Workload, *, rounds: int, seed: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of one workload: seconds per call, or in words why there are none."""
    runners: dict[str, Runner] = {}
    reasons: dict[str, str] = {}
    made = []
    for name in only or KNOWN:
        try:
            one = contender(name)
            made.append(one)
            runners[name] = await workload.prepare(one)
        except CannotDo as reason:
            reasons[name] = str(reason)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way; that is what there is to say of it
            reasons[name] = f"fails: {type(error).__name__}"
    figures = await interleaved(runners, rounds=max(2, round(rounds * workload.share)), seed=seed)
    for one in made:
        await one.close()
    return {"figures": figures, "reasons": reasons}


def work(loop: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """All workloads, on one loop: what a process of its own does."""
    found = {"python": machine.python(), "workloads": {}}
    for workload in WORKLOADS:
        with asyncio.Runner(loop_factory=factory(loop)) as runner:
            found["workloads"][workload.name] = runner.run(measure(workload, rounds=rounds, seed=seed))
    return found


def factory(loop: str) -> Any:
    """What makes the loop."""
    if loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - only where it is asked for

    return uvloop.new_event_loop


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """Measure, with each of these Pythons, and put it into words."""
    passes, rounds = (1, 7) if quick else (4, 15)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number in range(passes):
        for python in pythons:
            for loop in LOOPS:
                add(found, started(python, loop, rounds=rounds, seed=number), loop)
    return Section("What a call costs", tuple(lines(found, node.speed(quick=quick))))


def started(python: str, loop: str, *, rounds: int, seed: int) -> dict[str, Any]:
    """The figures of a process of its own."""
    order = [python, "-m", "benchmarks.speed", loop, str(rounds), str(seed)]
    root = Path(__file__).parent.parent
    done = subprocess.run(order, cwd=root, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def add(found: dict[tuple[str, str], dict[str, Any]], more: dict[str, Any], loop: str) -> None:
    """Put the figures of one process with those of its like."""
    known = found.setdefault((more["python"], loop), {"workloads": {}})
    for workload, result in more["workloads"].items():
        there = known["workloads"].setdefault(workload, {"figures": {}, "reasons": {}})
        there["reasons"].update(result["reasons"])
        for name, figures in result["figures"].items():
            there["figures"].setdefault(name, []).extend(figures)


def lines(found: dict[tuple[str, str], dict[str, Any]], of_node: dict[str, Any]) -> Iterator[str]:
    """A table for each Python and loop, the figures behind it, and who is who."""
    yield (
        "Microseconds per call, the median of all rounds; in brackets, what the call adds to the bare await, by what "
        "the hand-written floor adds to it, round by round (where there is no bare await: the whole, by the floor's). "
        "Where there is no figure, the contender has no such thing, or does less than was asked; the reasons stand "
        "below."
    )
    yield "\n".join(f"- *{workload.name}*: {workload.says}" for workload in WORKLOADS)
    for (python, loop), result in reversed(found.items()):
        yield f"**{loop}, {python}**"
        head = ("us (x floor)", *(workload.name for workload in WORKLOADS))
        yield table(head, overview(result["workloads"]), align="l" + "r" * len(WORKLOADS))
    if "workloads" in of_node:
        yield f"**{of_node['runtime']}**: another runtime; in brackets, what each adds to its own bare await, in us"
        head = ("us (adds)", *(workload.name for workload in WORKLOADS))
        yield table(head, overview_of_node(of_node["workloads"]), align="l" + "r" * len(WORKLOADS))
    yield "### Who is who"
    yield "\n".join(legend())
    if "why" in of_node:
        yield f"opossum and cockatiel, for Node: {of_node['why']}."
    yield "### The figures behind it"
    yield (
        "The median, and in brackets the middle half of all rounds, in microseconds. *Adds*: over the bare await, "
        "round by round."
    )
    for workload in WORKLOADS:
        yield f"<details><summary>{workload.name}: {workload.says}</summary>"
        for (python, loop), result in reversed(found.items()):
            one = result["workloads"][workload.name]
            yield f"**{loop}, {python}**"
            head = ("contender", "us per call", "adds", "x floor", "x bare")
            yield table(head, rows(one["figures"], one["reasons"]), align="lrrrr")
        yield "</details>"


def overview(workloads: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each contender, a column for each workload."""
    for name in KNOWN:
        yield (title(name), *(in_short(name, workloads[workload.name]["figures"]) for workload in WORKLOADS))


def in_short(name: str, figures: dict[str, list[float]]) -> str:
    """One figure, and its ratio to the floor."""
    if name not in figures:
        return "-"
    times = x_floor(name, figures)
    return us(middle(figures[name])) + (f" ({times})" if times else "")


def x_floor(name: str, figures: dict[str, list[float]]) -> str:
    """What a contender adds, by what the floor adds; the whole by the whole, where there is no bare await."""
    bare, floor = figures.get("bare"), figures.get("floor")
    if name == "bare" or floor is None:
        return ""
    mine, least = (over(one, bare) if bare else one for one in (figures[name], floor))
    both_cost = middle(least) > 0 and middle(mine) > 0  # the pool of threads of asyncio is no floor: it can be beaten
    return f"{middle(mine) / middle(least):.1f}" if both_cost else ""


def overview_of_node(workloads: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The same for Node."""
    for name in next(iter(workloads.values())):
        row = [name]
        for workload in WORKLOADS:
            of_workload = workloads.get(workload.name, {})
            figures, bare = of_workload.get(name, "-"), of_workload.get("bare", "-")
            if isinstance(figures, str):
                row.append("-")
                continue
            adds = "" if name == "bare" or isinstance(bare, str) else f" ({us(middle(over(figures, bare)))})"
            row.append(us(middle(figures)) + adds)
        yield tuple(row)


def rows(figures: dict[str, list[float]], reasons: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """A row for each contender, with its quartiles."""
    bare = figures.get("bare")
    for name in KNOWN:
        if name not in figures:
            yield title(name), reasons.get(name, ""), "", "", ""
            continue
        spread = Spread.of(figures[name])
        yield (
            title(name),
            f"{us(spread.middle)} ({us(spread.low)} to {us(spread.high)})",
            us(middle(over(figures[name], bare))) if bare and name != "bare" else "",
            x_floor(name, figures),
            f"{spread.middle / middle(bare):.1f}" if bare else "",
        )


def us(seconds: float) -> str:
    """Microseconds, with as many digits as mean something."""
    value = seconds * MICRO
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def title(name: str) -> str:
    """How a contender is called in the tables."""
    try:
        return contender(name).name
    except CannotDo:
        return name


def legend() -> Iterator[str]:
    """What each is made of."""
    for name in KNOWN:
        try:
            one = contender(name)
            yield f"- {one.name}: {one.note}"
        except CannotDo as reason:
            yield f"- {name}: {reason}"


if __name__ == "__main__":
    json.dump(work(sys.argv[1], rounds=int(sys.argv[2]), seed=int(sys.argv[3])), sys.stdout)
