"""Fails when a call has become dearer: `.ci/run` runs it.

The yardstick is the hand-written floor, measured in turn with the engine, in short rounds, in the same process: what
else the machine does, and how quick it is, hits both alike. Of many rounds the quickest counts, for nothing makes a
round quicker than it is; of several processes the median, for each has its own luck with its memory. A figure is a
ratio: a call, by a no-op call through the floor.

benchmarks/guard.json holds the figures that were found good, one for each minor version of Python. A figure that is
more than a quarter above its record fails, so that a growth by a third surely does. To change a record is a decision
of its own: `python -m benchmarks.guard --record`, and a commit that gives the reason.

Instruction counts were tried. Virtual machines often give programs none (`perf stat`: not supported), and valgrind's
took 23 s for one figure and scattered by 5 %, since starting the interpreter is most of what is counted: dearer than
this, and less steady.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import machine
from benchmarks.contenders import contender
from benchmarks.rounds import Runner
from benchmarks.terms import Contender
from benchmarks.workloads import from_memory, no_op, one_failure

RECORDS = Path(__file__).with_name("guard.json")
FIGURES = {"a live call": no_op, "an open circuit, from memory": from_memory, "a failure, a default": one_failure}
TOLERATED = 1.25
PROCESSES = 3
SECONDS = 2.0
"""For each process; the interpreter starts in less than one more."""
ROUND_FOR = 0.001
"""Short: the less a round lasts, the more of them nobody disturbs."""


async def measure(engine: Contender, *, seconds: float) -> dict[str, float]:
    """The figures of this process."""
    floor = contender("floor")
    runners = {name: await prepare(engine) for name, prepare in FIGURES.items()}
    yardstick = await no_op(floor)
    all_of_them = [yardstick, *runners.values()]
    for runner in all_of_them:
        await runner.calibrate(ROUND_FOR)
    quickest = await quickest_of(all_of_them, seconds=seconds)
    await engine.close()
    await floor.close()
    return {name: quickest[id(runner)] / quickest[id(yardstick)] for name, runner in runners.items()}


async def quickest_of(runners: list[Runner], *, seconds: float) -> dict[int, float]:
    """The quickest round of each, in turn, without the garbage collector."""
    quickest = dict.fromkeys(map(id, runners), inf)
    ends = perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while perf_counter() < ends:
            for runner in runners:
                quickest[id(runner)] = min(quickest[id(runner)], await runner.timed())
    finally:
        gc.enable()
    return quickest


def measured() -> dict[str, float]:
    """The median of several processes."""
    order = [sys.executable, "-m", "benchmarks.guard", "--one"]
    root = Path(__file__).parent.parent
    found = []
    for _ in range(PROCESSES):
        done = subprocess.run(order, cwd=root, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout))
    return {name: median(one[name] for one in found) for name in FIGURES}


def dearer(figures: Mapping[str, float], record: Mapping[str, float]) -> dict[str, float]:
    """What has grown beyond what is tolerated, and by which factor."""
    factors = {name: figures[name] / was for name, was in record.items()}
    return {name: factor for name, factor in factors.items() if factor > TOLERATED}


def check(record: Mapping[str, float], take: Callable[[], dict[str, float]] = measured) -> bool:
    """Measure, say what was found, and whether it is well. What seems dearer is looked at once more."""
    figures = take()
    if dearer(figures, record):
        again = take()
        figures = {name: min(figure, again[name]) for name, figure in figures.items()}
    worse = dearer(figures, record)
    for name, was in record.items():
        verdict = f"DEARER by {worse[name] - 1:.0%}, {TOLERATED - 1:.0%} are tolerated" if name in worse else "ok"
        print(f"{name}: {figures[name]:.2f} x the floor, recorded {was:.2f}: {verdict}")
    return not worse


def main(*arguments: str) -> int:
    """Check, or `--record`, or `--one` process's figures."""
    if "--one" in arguments:
        json.dump(asyncio.run(measure(contender("gateway"), seconds=SECONDS)), sys.stdout)
        return 0
    records: dict[str, dict[str, float]] = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    version = machine.short()
    if "--record" in arguments:
        records[version] = {name: round(figure, 2) for name, figure in measured().items()}
        RECORDS.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
        print(f"recorded for Python {version}: {records[version]}")
        return 0
    if version not in records:
        print(f"nothing is recorded for Python {version}: nothing to compare with")
        return 0
    return 0 if check(records[version]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
