"""Run as a program: tune, fold and drop in a child that is killed (-9) at one step after the other.

After each death a new process would find the journal and the policy file as they are. What then holds must be what the
audit says, and whatever was acknowledged must hold. Prints the number of steps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gateway import Gateway
from gateway.admin.folding import fold_into
from gateway.admin.journal import By, Journal
from gateway.admin.tuning import Tuning

FILE = "# ours\n[upstreams.ratings.bulkhead]\nlimit = 20  # a guess\n"
ADA = By(who="ada", why="a test")
STEPS = ("write", "fsync", "replace", "link", "ftruncate", "unlink")
SMALL = 700
"""Bytes of a journal that begins anew after two or three records."""


def gate_of(folder: Path, *, smallest: int) -> tuple[Gateway, Tuning]:
    gate = Gateway.from_file(folder / "policies.toml", check_every=1e9, on_hangup=False)
    journal = Journal(folder / "journal")
    journal.largest = smallest
    return gate, Tuning(gate, journal)


async def tune(folder: Path, acknowledge: Any) -> None:
    _, tuning = gate_of(folder, smallest=SMALL)
    tuning.start()

    async def limit(number: int) -> None:
        await tuning.patch("ratings", {"bulkhead": {"limit": number}}, ADA)
        acknowledge(number)

    await limit(40)
    await limit(50)
    await tuning.fold("ratings", ADA, partial(fold_into, folder / "policies.toml"))
    acknowledge(50)
    await limit(60)
    await tuning.drop("ratings", ADA)
    acknowledge(50)
    await limit(70)
    await tuning.close()


def die_at(step: int, *, torn: bool) -> Any:
    """Let the process be killed at the n-th step that leaves a trace; `torn`: in the midst of it, if it is a write."""
    count = 0

    def guarded(name: str, real: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                if torn and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return act

    for name in STEPS:
        setattr(os, name, guarded(name, getattr(os, name)))
    return lambda: count


def live(folder: Path, write: Callable[[bytes], int], step: int, *, torn: bool) -> None:
    """What the child does, as long as it may."""
    die_at(step, torn=torn)
    asyncio.run(tune(folder, lambda number: write(bytes([number]))))
    os._exit(0)


def look(folder: Path, acknowledged: list[int]) -> None:
    """What a new process goes by, and what the audit says."""
    gate, tuning = gate_of(folder, smallest=10**9)
    said = 20
    for record in tuning.journal.recent:
        if "bulkhead.limit" in record.changes and record.kind in {"tune", "drop"}:
            said = int(record.changes["bulkhead.limit"][1])
        elif record.kind == "kept" and record.tuned:
            said = int(record.tuned["bulkhead.limit"])
        elif record.kind == "kept":
            said = int(gate["ratings"].policy.bulkhead.limit)

    async def start() -> int:
        tuning.start()
        await tuning.close()
        return int(gate["ratings"].policy.bulkhead.limit)

    holds = asyncio.run(start())
    tuning.journal.close()
    last = acknowledged[-1] if acknowledged else 20
    following = {20: {40}, 40: {50}, 50: {60, 50, 70}, 60: {50}, 70: set()}
    assert holds == said, (holds, said, acknowledged)
    assert holds == last or holds in following[last], (holds, acknowledged)
    assert "# a guess" in (folder / "policies.toml").read_text()


def main(folder: Path) -> None:
    step, steps = 0, 0
    while True:
        step += 1
        survived = False
        for torn in (False, True):
            (folder / "policies.toml").write_text(FILE)
            for left in folder.glob("journal*"):
                left.unlink()
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)
                live(folder, partial(os.write, writing), step, torn=torn)
            os.close(writing)
            with os.fdopen(reading, "rb") as pipe:
                acknowledged = list(pipe.read())
            _, status = os.waitpid(child, 0)
            survived = os.waitstatus_to_exitcode(status) == 0
            assert survived or os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            look(folder, acknowledged)
        if survived:
            break
        steps = step
    sys.stdout.write(f"{steps}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
