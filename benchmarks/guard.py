"""Fails when a call has become dearer: `.ci/run` runs it.

The yardstick is the hand-written floor, measured in turn with the engine, in short rounds, in the same processes. Of
all rounds of all processes the quickest counts, of the engine and of the floor: nothing makes a round quicker than it
is. A process may have bad luck with its memory, and is then slower by a third or more for all its life, the more so
the busier the machine: so there are several, short ones, and more of them as long as something seems dearer, within
limits. A figure is a ratio: a call, by a no-op call through the floor.

benchmarks/guard.json holds the figures that were found good, one for each minor version of Python. A figure that is
more than a fifth, or a quarter, above its record fails, so that a growth by a third surely does, and noise does not.
To change a record is a decision of its own: `python -m benchmarks.guard --record`, and a commit that gives the reason.

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
from time import perf_counter

from benchmarks import machine, processes
from benchmarks.contenders import contender
from benchmarks.terms import Contender
from benchmarks.workloads import from_memory, no_op, one_failure

RECORDS = Path(__file__).with_name("guard.json")
FIGURES = {"a live call": no_op, "an open circuit, from memory": from_memory, "a failure, a default": one_failure}
TOLERATED = {"a live call": 1.2, "an open circuit, from memory": 1.25, "a failure, a default": 1.25}
"""By its record. An error, with its traceback, needs more memory, and scatters more."""
PROCESSES = 5
"""At least."""
SECONDS = 0.5
"""For each of them; to start, it takes as long again."""
PATIENCE = 15.0
"""Seconds after which no other is started."""
ROUND_FOR = 0.001
"""Short: the less a round lasts, the more of them nobody disturbs."""
FLOOR = "floor"
Quickest = dict[str, float]
"""Seconds per call."""


async def measure(engine: Contender, *, seconds: float) -> Quickest:
    """The quickest rounds of this process, without the garbage collector."""
    floor = contender("floor")
    runners = {name: await prepare(engine) for name, prepare in FIGURES.items()} | {FLOOR: await no_op(floor)}
    for runner in runners.values():
        await runner.calibrate(ROUND_FOR)
    quickest = dict.fromkeys(runners, inf)
    gc.collect()
    gc.disable()
    ends = perf_counter() + seconds
    try:
        while perf_counter() < ends:
            for name, runner in runners.items():
                quickest[name] = min(quickest[name], await runner.timed())
    finally:
        gc.enable()
    await engine.close()
    await floor.close()
    return quickest


def of_a_process() -> Quickest:
    """The quickest rounds of a process of its own."""
    order = [sys.executable, "-m", "benchmarks.guard", "--one"]
    done = subprocess.run(order, cwd=processes.ROOT, stdout=subprocess.PIPE, check=True)
    found: Quickest = json.loads(done.stdout)
    return found


def ratios(quickest: Quickest) -> dict[str, float]:
    """The figures."""
    return {name: took / quickest[FLOOR] for name, took in quickest.items() if name != FLOOR}


def measured(take: Callable[[], Quickest], *, enough: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The figures of several processes; of more than that, as long as they are not good enough and there is time."""
    ends = perf_counter() + PATIENCE
    quickest = take()
    taken = 1
    while taken < PROCESSES or (not enough(ratios(quickest)) and perf_counter() < ends):
        more = take()
        quickest = {name: min(took, more[name]) for name, took in quickest.items()}
        taken += 1
    return ratios(quickest)


def dearer(figures: Mapping[str, float], record: Mapping[str, float]) -> dict[str, float]:
    """What has grown beyond what is tolerated, and by which factor."""
    factors = {name: figures[name] / was for name, was in record.items()}
    return {name: factor for name, factor in factors.items() if factor > TOLERATED[name]}


def check(record: Mapping[str, float], take: Callable[[], Quickest] = of_a_process) -> bool:
    """Measure, say what was found, and whether it is well."""
    figures = measured(take, enough=lambda figures: not dearer(figures, record))
    worse = dearer(figures, record)
    for name, was in record.items():
        verdict = f"DEARER by {worse[name] - 1:.0%}, {TOLERATED[name] - 1:.0%} are tolerated" if name in worse else "ok"
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
        figures = measured(of_a_process, enough=lambda _: False)
        records[version] = {name: round(figure, 2) for name, figure in figures.items()}
        RECORDS.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
        print(f"recorded for Python {version}: {records[version]}")
        return 0
    if version not in records:
        print(f"nothing is recorded for Python {version}: nothing to compare with")
        return 0
    return 0 if check(records[version]) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
