"""The page at `/`: the films, what stands behind them, and buttons that break it.

    GET  /                                the page: one file, no build step, no other host
    GET  /upstreams                       the state of each upstream, for the page to draw once a second
    GET  /upstreams/{name}/fault          the mode its service is in, null if it does not say
    POST /upstreams/{name}/fault/{mode}   hand a fault on to its service
    POST /upstreams/{name}/limit/{n}      give its pool another size, live
    POST /upstreams/{name}/instances/{n}/{kill|start}     end an instance of its service, or bring it back; from 1

Where a service has several instances a fault is for all of them.

What changes something may be sent by this page and by programs, not by another site.
"""

from __future__ import annotations

from asyncio import gather
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from re import DOTALL, search
from time import monotonic
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from gateway import ConfigError, Gateway, Upstream, UpstreamSnapshot
from gateway.demo.faults import MODES, answer
from gateway.demo.origin import refuse_elsewhere

ANSWER_WITHIN = aiohttp.ClientTimeout(total=2.0)
"""A service that does not even answer about its fault is told so to the page."""
TURNED = 204
DEEDS = ("kill", "start")


class Mode(msgspec.Struct, frozen=True):
    """What a service says of its fault switch."""

    mode: str


class Page:
    """The page and what it asks for. `services` are the upstreams that are services, and where their instances are.

    `tell`: how to reach whoever started the instances; None where that was somebody else.
    """

    def __init__(
        self, gate: Gateway, services: Mapping[str, Sequence[str]], *, tell: Callable[[str], object] | None = None
    ) -> None:
        self._gate = gate
        self._services = {name: [url.rstrip("/") for url in urls] for name, urls in services.items()}
        self._tell = tell

    def install(self, app: web.Application) -> None:
        """Add the page to a service."""
        app.cleanup_ctx.append(self._session_for)
        app.router.add_get("/", self.show)
        app.router.add_get("/upstreams", self.upstreams)
        app.router.add_get("/upstreams/{name}/fault", self.fault)
        app.router.add_post("/upstreams/{name}/fault/{mode}", self.turn)
        app.router.add_post("/upstreams/{name}/limit/{n}", self.limit)
        app.router.add_post("/upstreams/{name}/instances/{n}/{deed}", self.instance)

    async def _session_for(self, _: web.Application) -> AsyncIterator[None]:
        # Not through the upstream: its pool may be full of calls that hang, and this is how they are let go.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=ANSWER_WITHIN) as self._session:
            yield

    async def show(self, _: web.Request) -> web.Response:
        """The page itself."""
        html, policy = page()
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
        return web.Response(body=html, content_type="text/html", charset="utf-8", headers=headers)

    async def upstreams(self, _: web.Request) -> web.Response:
        """How each upstream is doing now."""
        states = [self._state(upstream) for upstream in self._gate]
        return answer({"upstreams": states, "modes": MODES}, headers={"Cache-Control": "no-store"})

    async def fault(self, request: web.Request) -> web.Response:
        """The mode that a service is in."""
        found = await gather(*(self._mode_of(url) for url in self._service(request)))
        modes = {mode for mode, up in found if up}
        content: dict[str, Any] = {"mode": modes.pop() if len(modes) == 1 else None}
        if len(found) > 1:
            content["instances"] = [{"mode": mode, "up": up} for mode, up in found]
        return answer(content, headers={"Cache-Control": "no-store"})

    async def _mode_of(self, url: str) -> tuple[str | None, bool]:
        """The mode of an instance, None if it does not say; and whether it is there at all."""
        try:
            async with self._session.get(f"{url}/fault", allow_redirects=False) as response:
                return msgspec.json.decode(await response.content.read(1024), type=Mode).mode, True
        except aiohttp.ClientConnectorError:
            return None, False
        except (aiohttp.ClientError, msgspec.DecodeError, TimeoutError):
            return None, True  # another implementation has no such switch

    async def turn(self, request: web.Request) -> web.Response:
        """Make a service misbehave, or well again."""
        refuse_elsewhere(request)
        mode = request.match_info["mode"]
        urls = self._service(request)
        if mode not in MODES:
            raise unknown(f"there is no fault {mode!r}", "modes", MODES)
        problems = await gather(*(self._turn(f"{url}/fault/{mode}") for url in urls))
        if all(problems):
            return answer({"error": problems[0]}, status=502)
        return web.Response(status=TURNED)

    async def _turn(self, url: str) -> str | None:
        """Hand it on to one instance; what is in the way, if anything."""
        try:
            async with self._session.post(url, allow_redirects=False) as response:
                turned = response.status == TURNED
                return None if turned else f"{url} answers {response.status}: it has no faults to switch"
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{url}: {str(error) or type(error).__name__}"

    async def instance(self, request: web.Request) -> web.Response:
        """End an instance as `kill -9` does, or bring it back."""
        refuse_elsewhere(request)
        known = range(1, len(self._service(request)) + 1)
        name, n, deed = (request.match_info[part] for part in ("name", "n", "deed"))
        if n not in map(str, known):
            raise unknown(f"{name} has no instance {n!r}", "instances", [*known])
        if deed not in DEEDS:
            raise unknown(f"an instance cannot {deed!r}", "deeds", DEEDS)
        if self._tell is None or len(known) == 1:
            problem = f"{name} has no instances that this page started; `gateway demo --instances 3` has"
            return answer({"error": problem}, status=409)
        self._tell(f"{deed} {name}-{n}")
        return web.Response(status=204)

    async def limit(self, request: web.Request) -> web.Response:
        """Give a pool another size. Nothing in flight is lost."""
        refuse_elsewhere(request)
        upstream = self._upstream(request)
        try:
            upstream.tune_fields({"bulkhead.limit": number(request.match_info["n"])})
        except ConfigError as error:
            content = {"error": str(error), "field": error.field, "problem": error.problem, "remedy": error.remedy}
            return answer(content, status=400)
        return web.Response(status=204)

    def _upstream(self, request: web.Request) -> Upstream:
        name = request.match_info["name"]
        if name not in self._gate:
            raise unknown(f"there is no upstream {name!r}", "upstreams", [upstream.name for upstream in self._gate])
        return self._gate[name]

    def _state(self, upstream: Upstream) -> dict[str, Any]:
        urls = self._services.get(upstream.name, [])
        told = state(upstream.snapshot(), service=bool(urls))
        if len(urls) > 1:
            told["instances"] = instances(urls, getattr(upstream, "endpoints", None))
            told["startable"] = self._tell is not None
        return told

    def _service(self, request: web.Request) -> list[str]:
        name = self._upstream(request).name
        if name not in self._services:
            raise unknown(f"{name} are threads of this process, and have no faults", "upstreams", [*self._services])
        return self._services[name]


@cache
def page() -> tuple[bytes, str]:
    """The file, and a policy for browsers: nothing but it runs, and nobody else is asked, nor may frame its buttons."""
    html = files(__package__ or "").joinpath("page.html").read_bytes()
    script, style = (hash_of(html, tag) for tag in ("script", "style"))
    return html, (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def hash_of(html: bytes, tag: str) -> str:
    """The source expression that allows the one element of this name."""
    found = search(f"<{tag}>(.*?)</{tag}>".encode(), html, DOTALL)
    return f"'sha256-{b64encode(sha256(found[1] if found else b'').digest()).decode()}'"


def state(snapshot: UpstreamSnapshot, *, service: bool) -> dict[str, Any]:
    """What the page draws of an upstream; counts are totals, the page takes differences."""
    pool, circuit, counts = snapshot.bulkhead, snapshot.breaker, snapshot.counts
    rejections = counts.failed + counts.unknown + counts.rejected
    return {
        "name": snapshot.name,
        "service": service,
        "pool": {
            "limit": finite(pool.limit),
            "in_use": pool.in_use,
            "queue": finite(snapshot.policy.bulkhead.queue),
            "waiting": pool.waiting,
            "abandoned": pool.abandoned,
            "rejected": pool.rejected,
            "peak": pool.peak,
        },
        "circuit": {
            "state": circuit.state,
            "open_left": None if circuit.open_until is None else round(max(0.0, circuit.open_until - monotonic()), 2),
            "failure_rate": circuit.failure_rate,
            "calls": circuit.calls,
            "failures": circuit.failures,
        },
        "counts": {
            "asked": counts.asked,
            "live": counts.live + counts.coalesced + counts.cached + counts.refused,  # a "no" is an answer
            "last_good": counts.last_good,
            "default": counts.static + counts.handler + counts.alternate,
            "error": rejections,
            "cancelled": counts.cancelled,
            "in_flight": counts.in_flight,
        },
        "latency": {"p50": snapshot.latency.p50, "p99": snapshot.latency.p99},
    }


def instances(urls: Sequence[str], endpoints: Any) -> list[dict[str, Any]]:
    """What each instance gets; `state` is None where the upstream does not tell."""
    known = {} if endpoints is None else {one.url.rstrip("/"): one for one in endpoints.endpoints}
    told = []
    for url in urls:
        one = known.get(url)
        left = None if one is None or one.ejected_until is None else max(0.0, one.ejected_until - monotonic())
        told.append(
            {
                "url": url,
                "state": None if one is None else one.state,
                "back_in": None if left is None else round(left, 2),
                "in_flight": 0 if one is None else one.in_flight,
                "calls": 0 if one is None else one.calls,
                "failures": 0 if one is None else one.failures,
            }
        )
    return told


def finite(number: float) -> float | str:
    """JSON has no infinity."""
    return "inf" if number == float("inf") else number


def number(text: str) -> object:
    """A number, if it is one; the policy says what is wrong with what is not."""
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def unknown(problem: str, field: str, known: object) -> web.HTTPNotFound:
    """A 404 that names what there is."""
    text = msgspec.json.encode({"error": problem, field: known}).decode()
    return web.HTTPNotFound(text=text, content_type="application/json")
