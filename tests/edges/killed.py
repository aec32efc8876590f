"""Writers that are killed in the middle, and what they leave: `python -m tests.edges.killed FILE ROUNDS SEED`.

Each round a child writes batch after batch, in which all entries are of one number, and says when one is done. It is
killed at some moment. Whatever was said to be done must be there, whole, or else the whole batch after it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

from fallbacks.envelope import unwrap, wrap
from fallbacks.stores import SQLiteStore

KEYS = [f"film {number}" for number in range(60)]
FILLER = "x" * 500


async def write(path: Path, said: int) -> None:
    store = SQLiteStore(path, max_entries=100)
    number = await latest(store)
    while True:
        number += 1
        pairs = [(key, wrap({"of": key, "number": number, "filler": FILLER}, time.time())) for key in KEYS]
        await store.multi_set([*pairs, (f"other {number}", b"x")], ttl=60)
        os.write(said, b"%d\n" % number)


async def latest(store: SQLiteStore) -> int:
    """The number of all entries; AssertionError if they are of several, or anybody else's."""
    values = [unwrap(data)[0] for data in await store.multi_get(KEYS) if data is not None]
    assert len(values) in {0, len(KEYS)}, f"{len(values)} entries of {len(KEYS)}"
    assert [value["of"] for value in values] in ([], KEYS), "an entry of another key"
    numbers = {value["number"] for value in values}
    assert len(numbers) <= 1, f"batches are mixed: {numbers}"
    return max(numbers, default=0)


async def look(path: Path) -> int:
    store = SQLiteStore(path)
    number = await latest(store)
    await store.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counted = database.execute("SELECT count(*), sum(length(key) + length(value)) FROM entries").fetchall()
    assert counted == database.execute("SELECT entries, bytes FROM totals").fetchall(), "the totals do not add up"
    assert counted[0][0] <= 100
    database.close()
    return number


def main(path: Path, rounds: int, seed: int) -> None:
    choose = random.Random(seed)
    before = 0
    for _ in range(rounds):
        heard, said = os.pipe()
        child = os.fork()
        if not child:
            os.close(heard)
            asyncio.run(write(path, said))
        os.close(said)
        told = os.read(heard, 1)  # it has begun
        time.sleep(choose.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(heard, 65536):
            told += more
        os.close(heard)
        done = int(told.split(b"\n")[-2])
        number = asyncio.run(look(path))
        assert done <= number <= done + 1, f"{done} was done, {number} is there"
        assert number > before
        before = number
    aside = [one.name for one in path.parent.iterdir() if "corrupt" in one.name]
    assert not aside, aside
    print(f"killed {rounds} times, {before} batches, nothing lost, nothing wrong")  # noqa: T201 - it is what it is for


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
