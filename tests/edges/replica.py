"""One of several programs that share a memcached: `python -m tests.edges.replica PORT`.

It reads lines and answers each with one of JSON: `ask KEY`, `fail` and `work` (its upstream, from now on), `counts`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from fallbacks.stores import MemcachedStore
from gateway import Gateway, LastGood, Static
from tests.support import QUIET


class Replica:
    def __init__(self, port: int) -> None:
        self.gate = Gateway()
        self.failing = False
        self.memory = LastGood(store=MemcachedStore(port=port, namespace="replicas", op_timeout=5.0))
        ratings = self.gate.upstream("ratings", policy=QUIET)

        @ratings.operation(idempotent=True, fallback=[self.memory, Static({"default": 0})])
        async def stars(film: str) -> dict[str, int]:
            if self.failing:
                raise OSError("unplugged")
            return {film: 5}

        self.stars = stars

    async def do(self, what: str, film: str) -> Any:
        if what == "ask":
            began = time.perf_counter()
            answer = await self.stars.ask(film)
            took = time.perf_counter() - began
            return {"source": answer.source, "value": answer.value, "age": answer.age, "took": took}
        if what == "counts":
            behind = self.memory.behind
            assert behind is not None
            return asdict(behind.snapshot())
        self.failing = what == "fail"
        return what

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self.gate:
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                what, _, film = line.strip().partition(" ")
                sys.stdout.write(f"{json.dumps(await self.do(what, film))}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Replica(int(sys.argv[1])).run())
