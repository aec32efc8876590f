"""Who plays in the scenario, each in a process of its own: `python -m gateway.demo.cast ROLE SOCKET OPTIONS`.

The services are those of the demo, with what the scenario needs of them: ratings of a fixed capacity, a catalog that
tells what its circuits do.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from asyncio.subprocess import PIPE, Process
from socket import socket

import msgspec
from aiohttp import web

from gateway import CircuitChanged
from gateway.demo import info, load, ratings, site
from gateway.demo.capacity import Capacity
from gateway.demo.catalog import Catalog
from gateway.demo.faults import answer
from gateway.demo.plain import TIMEOUT, PlainCatalog
from gateway.demo.plan import Plan
from gateway.demo.processes import ROOT
from gateway.demo.seconds import UPSTREAMS, Change

HOST = "127.0.0.1"
PLACES = 10
TAKES = {"/ratingsdata/user/{user_id}": 0.025, "/ratingsdata/movies/{movie_id}": 0.1}
"""Of the ratings service. Users who ask for 110 pages a second need 2.75 of its places; a flood of 120 a second for the
ratings of a film, which are harder to come by, needs 12 more."""
INFO_QUEUE = 150
"""Thirty pages that come in a heap, of five films each: with the 10 that the demo has, a machine that is busy elsewhere
for 60 ms would cost live answers."""


class Upstreams(msgspec.Struct, frozen=True):
    """What a catalog asks, and how."""

    ratings_url: str
    info_url: str
    plan: Plan
    timeouts: bool = True


def catalog(upstreams: Upstreams) -> web.Application:
    """The catalog, with `GET /circuits`: the changes, `at` instants of the monotonic clock that all processes share."""
    served = Catalog(ratings_url=upstreams.ratings_url, info_url=upstreams.info_url)
    changes: list[Change] = []
    for name in UPSTREAMS:
        served.gate[name].tune_fields(
            {"breaker.open_for": upstreams.plan.open_for, "breaker.window_for": upstreams.plan.window_for}
        )
    served.gate["info"].tune_fields({"bulkhead.queue": INFO_QUEUE})

    @served.gate.on(CircuitChanged)
    def note(event: CircuitChanged) -> None:
        changes.append(Change(event.at, event.upstream, event.after))

    async def circuits(_: web.Request) -> web.Response:
        served.gate.snapshot()  # a circuit that is due to change does so when somebody looks
        return answer(changes)

    app = served.create()
    app.router.add_get("/circuits", circuits)
    return app


def plain(upstreams: Upstreams) -> web.Application:
    """The catalog without a gateway; no circuits."""
    timeout = TIMEOUT if upstreams.timeouts else None
    served = PlainCatalog(ratings_url=upstreams.ratings_url, info_url=upstreams.info_url, timeout=timeout)
    return served.create()


def limited_ratings() -> web.Application:
    """The ratings, so many at once."""
    app = ratings.create()
    Capacity(PLACES, TAKES).install(app)
    return app


async def start(role: str, listening: socket | None, options: object = None) -> Process:
    """Start a process; it has the socket then, and we have not."""
    number = -1 if listening is None else listening.fileno()
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway.demo.cast", role, str(number), msgspec.json.encode(options).decode()),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=() if listening is None else (number,),
            process_group=0,  # Ctrl-C is for the one who started them
            cwd=ROOT,
        )
    finally:
        if listening is not None:
            listening.close()


def main(role: str, number: str, options: str) -> None:
    """Play it."""
    gc.freeze()  # what is imported stays: no need to look at it again and again
    if role == "load":
        asyncio.run(load.run(msgspec.json.decode(options, type=load.Order)))
        return
    # Without a gateway everything is as aiohttp has it: a page is worked on to the end, even if its user left.
    listening = socket(fileno=int(number))
    serving = site.serve(
        create(role, options), listening, host=HOST, has_parent=True, handler_cancellation=role != "plain"
    )
    asyncio.run(serving)


def create(role: str, options: str) -> web.Application:
    """The service of a role."""
    if role == "info":
        return info.create()
    if role == "ratings":
        return limited_ratings()
    upstreams = msgspec.json.decode(options, type=Upstreams)
    return catalog(upstreams) if role == "catalog" else plain(upstreams)


if __name__ == "__main__":
    main(*sys.argv[1:])
