"""The demo's catalog under wrk, beside a bare aiohttp one that does the same work.

All variants are there at once, idle until it is their turn; the turns are short and in another order each time. The
processor's time for a request says more than requests a second, which go by what else the machine does.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random

from benchmarks import machine, processes
from benchmarks.report import Section, table
from benchmarks.rounds import Spread, middle

CONNECTIONS = 16
KINDS = {"bare": "bare aiohttp", "gateway": "the demo's catalog"}
HOWS = ("asyncio", "uvloop", "uvloop, gc")
PAGE = "/catalog/ada"


class NoWrk(Exception):
    """It is not installed."""


@dataclass(slots=True)
class Variant:
    """One catalog, one loop."""

    kind: str
    how: str
    url: str
    process: Process
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    """Seconds of the processor for one request."""

    async def measure(self, wrk: str, seconds: int) -> None:
        """A turn."""
        before = processes.cpu_seconds(self.process)
        order = ("-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"{self.url}{PAGE}")
        asking = await create_subprocess_exec(wrk, *order, stdout=PIPE)
        said = (await asking.communicate())[0].decode()
        used = processes.cpu_seconds(self.process) - before
        if "Non-2xx" in said or "Socket errors" in said:
            raise RuntimeError(f"the {self.kind} catalog failed under wrk:\n{said}")
        requests = re.search(r"(\d+) requests in", said)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
        if requests is None or rate is None:
            raise RuntimeError(f"wrk said what is not understood:\n{said}")
        self.rates.append(float(rate[1]))
        self.costs.append(used / int(requests[1]))


def run(pythons: Sequence[str], *, quick: bool) -> Section:
    """All of it, on every Python there is."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return Section("The catalog under wrk", ("wrk is not installed here: nothing was measured.",))
    rounds, seconds = (2, 1) if quick else (8, 3)
    found = asyncio.run(play(pythons, wrk, rounds=rounds, seconds=seconds))
    return Section("The catalog under wrk", tuple(lines(found)))


async def play(pythons: Sequence[str], wrk: str, *, rounds: int, seconds: int) -> dict[str, list[Variant]]:
    """Start all variants, give each its turns."""
    async with AsyncExitStack() as stack:
        port = processes.free_port()
        await stack.enter_async_context(processes.running("benchmarks.upstreams", str(port), "0", python=pythons[-1]))
        upstream = f"http://127.0.0.1:{port}"
        variants = {}
        for python in pythons:
            of_python = variants[await version(python)] = []
            for how in HOWS:
                for kind in KINDS:
                    port = processes.free_port()
                    order = ("benchmarks.catalogs", kind, how, str(port), upstream)
                    process = await stack.enter_async_context(processes.running(*order, python=python))
                    of_python.append(Variant(kind, how, f"http://127.0.0.1:{port}", process))
        order = [one for of_python in variants.values() for one in of_python]
        for variant in order:
            await variant.measure(wrk, 1)  # connections are opened, code is specialized
            variant.rates.clear()
            variant.costs.clear()
        random = Random(0)
        for _ in range(rounds):
            random.shuffle(order)
            for variant in order:
                await variant.measure(wrk, seconds)
        return variants


async def version(python: str) -> str:
    """What a Python says of itself."""
    order = (python, "-c", "from benchmarks import machine; print(machine.python())")
    asked = await create_subprocess_exec(*order, cwd=processes.ROOT, stdout=PIPE)
    return (await asked.communicate())[0].decode().strip() or machine.python()


def lines(found: dict[str, list[Variant]]) -> Iterator[str]:
    """The tables."""
    yield (
        f"The page of the demo's catalog: one request for the ratings, then five at once for the films, from an "
        f"upstream that costs next to nothing. `wrk -t1 -c{CONNECTIONS}`; the catalog, its upstream and wrk share the "
        "machine. The bare one decodes, composes and encodes the same, with one session and nothing round it; the "
        "demo's has more places in its pools than usual, so that it asks for every film, too. *gc*: `gc.freeze()` once "
        "it is up, and higher thresholds. Ratios are to the bare one on plain asyncio, turn by turn. Where the rest "
        "goes: [what a page costs](http-cost.md)."
    )
    for python, variants in found.items():
        yield f"**{python}**"
        head = ("loop", "catalog", "requests a second", "ratio", "CPU a request, us", "ratio")
        yield table(head, rows(variants), align="llrrrr")
        yield verdict(variants)


def rows(variants: Sequence[Variant]) -> Iterator[tuple[str, ...]]:
    """A row for each variant."""
    base = variants[0]
    for one in variants:
        rate, cost = Spread.of(one.rates), Spread.of([cost * 1e6 for cost in one.costs])
        yield (
            one.how if one.kind == "bare" else "",
            KINDS[one.kind],
            f"{rate.middle:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})",
            f"{ratio(one.rates, base.rates):.2f}",
            f"{cost.middle:,.0f} ({cost.low:,.0f} to {cost.high:,.0f})",
            f"{ratio(one.costs, base.costs):.2f}",
        )


def verdict(variants: Sequence[Variant]) -> str:
    """How near ours comes to the bare one on the same loop; 1 is as good."""
    pairs = tuple(zip(variants[::2], variants[1::2], strict=True))
    rates = (f"{ratio(ours.rates, bare.rates):.2f} on {ours.how}" for bare, ours in pairs)
    costs = (f"{ratio(bare.costs, ours.costs):.2f} on {ours.how}" for bare, ours in pairs)
    return (
        f"The demo's catalog by the bare one on the same loop: requests a second {', '.join(rates)}; by the "
        f"processor's time for a request, {', '.join(costs)}."
    )


def ratio(figures: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios, turn by turn."""
    return middle([one / other for one, other in zip(figures, base, strict=True)])
