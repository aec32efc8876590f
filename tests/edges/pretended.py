"""An admin server whose upstreams are made up: for states that are dear, or impossible, to reach with real ones.

`python -m tests.edges.pretended 200` serves it on 8090, to look at.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway import Counts

STATIC = Path(str(files("gateway"))) / "admin" / "static"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NAMES = ("ratings", "info", "posters", "payments", "search", "stock", "mail", "users", "prices", "maps")
ENDS = ("live", "last_good", "static", "failed", "rejected")
ADDED = tuple(Counts.__slots__)


def latency(count: int, p50: float) -> dict[str, float]:
    return {
        "count": count,
        "mean": 1.2 * p50,
        "p50": p50,
        "p90": 2 * p50,
        "p99": 4 * p50,
        "max": 6 * p50,
    }


class PretendedUpstream:
    """One, with numbers that move."""

    def __init__(self, name: str, *, seed: int, ill: str = "") -> None:
        self.random = random.Random(seed)
        self.name, self.ill, self.pace = name, ill, self.random.choice((3, 12, 40, 120))
        self.policy: dict[str, Any] = {
            "timeout": {"call": 0.8, "attempt": 0.3, "connect": 0.3, "read": 0.3},
            "bulkhead": {"limit": 20, "queue": 10, "max_wait": 1.0},
            "retry": {"attempts": 2, "wait": {"exponential": 0.1}, "budget": {"ratio": 0.2}},
            "breaker": {"failure_rate": 0.5, "open_for": 5.0, "slow_after": None, "enforce": True},
            "fallback_timeout": 0.1,
        }
        self.etag, self.drift, self.state = 1, {}, {"hang": "open", "isolated": "isolated"}.get(ill, "closed")
        self.total: dict[str, int] = dict.fromkeys(ADDED, 0)
        self.sparks: list[dict[str, int]] = []
        for _ in range(60):
            self.step()

    def step(self) -> None:
        asked = max(0, round(self.random.gauss(self.pace, self.pace**0.5)))
        ended = dict.fromkeys(ENDS, 0)
        if not self.ill:
            ended["live"] = asked
        for _ in range(asked if self.ill else 0):
            kinds = {"hang": "last_good last_good last_good static rejected", "slow": "live live live last_good"}
            ended[self.random.choice(kinds.get(self.ill, "live").split())] += 1
        for end, count in ended.items():
            self.total[end] += count
        self.total["asked"] += asked
        self.total["attempts"] += ended["live"]
        self.sparks = [*self.sparks[-59:], ended]

    def told(self) -> dict[str, Any]:
        ten = self.sparks[-10:]
        rates = dict.fromkeys(ADDED, 0.0) | {end: sum(one[end] for one in ten) / 10 for end in ENDS}
        rates["asked"] = sum(rates[end] for end in ENDS)
        rates["attempts"] = rates["live"]
        base = 0.004 * (1 + hash(self.name) % 7) * (20 if self.ill == "slow" else 1)
        p50 = base * self.random.uniform(0.9, 1.2)
        limit = self.policy["bulkhead"]["limit"]
        wanted = {"hang": 0, "slow": 27}.get(self.ill, round(rates["asked"] * p50 * 3))
        in_use = min(limit, wanted)
        waiting = min(self.policy["bulkhead"]["queue"], wanted - in_use)
        window = {"seconds": 10, "rates": rates, "latency": latency(int(rates["live"] * 10), p50)}
        window["waits"] = latency(int(waiting * 10), p50 / 2)
        memory = {"entries": 120, "bytes": 48_000, "hits": 30, "misses": 4, "evicted": 0}
        adds_up = self.ill != "broken"
        total = self.total | ({} if adds_up else {"asked": self.total["asked"] + 3})
        return {
            "name": self.name,
            "kind": "http",
            "warnings": ["the circuit cannot open on timeouts"] if self.ill == "unwise" else [],
            "etag": f'"{self.etag}"',
            "drift": self.drift,
            "circuit": {
                "state": self.state,
                "since": time.time() - 12,
                "enforced": self.policy["breaker"]["enforce"],
                "failure_rate": 0.9 if self.state == "open" else 0.0,
                "slow_rate": None,
                "calls": 40,
                "failures": 36 if self.state == "open" else 0,
                "rejected": 120 if self.state == "open" else 0,
                "opens_in": None,
                "closes_in": 5 - time.time() % 4 if self.state == "open" else None,
                "threshold": 0.5,
                "min_calls": 10,
            },
            "circuits": [],
            "pool": {
                "limit": limit,
                "in_use": in_use,
                "abandoned": 2 if self.ill == "stuck" else 0,
                "waiting": waiting,
                "queue": self.policy["bulkhead"]["queue"],
                "peak": 20,
                "rejected": 0,
            },
            "budget": {"left": 9.5},
            "window": window,
            "total": total,
            "adds_up": adds_up,
            "spark": [sum(one.values()) for one in self.sparks],
            "spark_degraded": [one["last_good"] + one["static"] for one in self.sparks],
            "spark_failed": [one["failed"] + one["rejected"] for one in self.sparks],
            "operations": [
                {
                    "name": "of_user",
                    "total": total,
                    "window": window,
                    "memory": memory,
                    "ages": None,
                    "adds_up": adds_up,
                }
            ],
            "endpoints": [{"url": "http://10.0.0.1:8083", "state": "up", "in_use": in_use, "latency": p50}],
        }


class Pretended:
    """The server. `ills`: the ill of an upstream by its name."""

    def __init__(self, number: int = 3, **ills: str) -> None:
        plain = [*NAMES, *(f"{NAMES[at % 10]}-{at // 10}" for at in range(10, max(11, number)))][:number]
        self.upstreams = {
            name: PretendedUpstream(name, seed=at, ill=ills.get(name, "")) for at, name in enumerate(plain)
        }
        self.events: list[dict[str, Any]] = []
        self.silent = False
        for name, ill in ills.items():
            self.happened("circuit", name, "closed -> open" if ill == "hang" else ill)

    def happened(self, kind: str, upstream: str, text: str) -> None:
        event = {"id": len(self.events), "at": time.time(), "kind": kind, "upstream": upstream, "text": text}
        self.events = [*self.events, event][-100:]

    def document(self) -> dict[str, Any]:
        told = [one.told() for one in self.upstreams.values()]
        return {
            "at": time.time(),
            "gateway": {
                "lag": {"now": 0.0007, "max": 0.012},
                "adds_up": all(one["adds_up"] for one in told),
                "version": "0.1.0",
                "uptime": 60.0,
                "journal": True,
            },
            "upstreams": told,
            "events": self.events,
        }

    def create(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.file)
        app.router.add_get("/static/{name}", self.file)
        app.router.add_get("/live", self.live)
        app.router.add_get("/calls", self.calls)
        app.router.add_get("/advice", self.advice)
        app.router.add_get("/audit", self.audit)
        app.router.add_get("/upstreams/{name}/policy", self.policy)
        app.router.add_patch("/upstreams/{name}/policy", self.tune)
        app.router.add_post("/upstreams/{name}/{deed}", self.deed)
        app.router.add_post("/upstreams/{name}/tuned/{deed}", self.deed)
        return app

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        return web.FileResponse(STATIC / name, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-store"})

    async def live(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            if not self.silent:
                for one in self.upstreams.values():
                    one.step()
                await response.write(b"data: " + json.dumps(self.document()).encode() + b"\n\n")
            await asyncio.sleep(1)

    async def calls(self, request: web.Request) -> web.Response:
        wanted = request.query.get("upstream")
        steps = [
            {"kind": "queue", "seconds": 0.012, "ok": True, "text": "queued 12 ms"},
            {"kind": "circuit", "seconds": None, "ok": True, "text": "circuit closed"},
            {"kind": "attempt", "seconds": 0.3, "ok": False, "text": "attempt 1: no answer within 0.300 s (read)"},
            {"kind": "retry", "seconds": None, "ok": False, "text": "retry refused: the budget is spent"},
            {"kind": "tier", "seconds": None, "ok": True, "text": "answered by last good, 8 s old"},
        ]
        kinds = [
            ("failed", "last_good", 8.0),
            ("failed", "static", 0.0),
            ("rejected", None, None),
            ("success", "live", 0.0),
        ]
        calls = []
        for name in self.upstreams:
            for at, (outcome, source, age) in enumerate(kinds):
                if wanted in {None, name}:
                    one = {"id": len(calls), "at": time.time() - at, "upstream": name, "operation": "of_user"}
                    one |= {"outcome": outcome, "source": source, "age": age, "duration": 0.3121, "waited": 0.012}
                    one |= {"attempts": 1, "plain": source == "live", "steps": steps}
                    calls.append(one | {"text": "; ".join(step["text"] for step in steps)})
        return web.json_response({"calls": calls[: int(request.query.get("limit", "100"))]})

    async def advice(self, request: web.Request) -> web.Response:
        picture = {"limit": 20, "histogram": [[n, max(0, 60 - (n - 5) ** 2)] for n in range(1, 15)]}
        times = {"limit": 0.3, "histogram": [[0.001 * 1.19**n, max(0, 80 - (n - 12) ** 2)] for n in range(30)]}
        why = "At 40 calls a second and 90 ms a call, 3.6 places are in use on average and 9 in the worst hundredth."
        advice = []
        for name in self.upstreams.keys() & {request.query["upstream"]}:
            one = {"upstream": name, "knob": "bulkhead.limit", "now": 20, "suggested": 12, "sure": "high", "why": why}
            advice.append(one | {"picture": picture})
            one |= {"knob": "timeout.attempt", "now": 0.3, "suggested": 0.12, "sure": "low"}
            advice.append(one | {"why": "99 in 100 answers came within 80 ms.", "picture": times})
        return web.json_response({"advice": advice})

    async def audit(self, _: web.Request) -> web.Response:
        one = {"at": time.time() - 60, "who": "ada", "upstream": "ratings", "kind": "tune", "why": "load test"}
        return web.json_response({"audit": [one | {"changes": {"bulkhead.limit": [20, 40]}}]})

    async def policy(self, request: web.Request) -> web.Response:
        upstream = self.upstreams[request.match_info["name"]]
        knobs = []
        for path, value in flat(upstream.policy):
            kind = "boolean" if isinstance(value, bool) else "wait" if isinstance(value, dict) else "number"
            unit = "seconds" if "timeout" in path or path.endswith(("_for", "_wait", "_after")) else "count"
            knobs.append({"path": path, "kind": kind, "unit": unit, "none": value is None, "default": value})
            knobs[-1]["meaning"] = "What it is, and why it is so by default."
        content = {"policy": upstream.policy, "knobs": knobs, "file": "policies.toml"}
        return web.json_response(content, headers={"ETag": f'"{upstream.etag}"'})

    async def tune(self, request: web.Request) -> web.Response:
        upstream = self.upstreams[request.match_info["name"]]
        if request.headers["If-Match"] != f'"{upstream.etag}"':
            return web.json_response({"errors": []}, status=412)
        policy = deepcopy(upstream.policy)
        for section, fields in (await request.json()).items():
            policy[section] |= fields
        if not isinstance(policy["bulkhead"]["limit"], int) or policy["bulkhead"]["limit"] < 1:
            wrong = {"field": "bulkhead.limit", "problem": "it is not a whole number from 1 up", "remedy": "give 1"}
            return web.json_response({"errors": [wrong]}, status=422)
        upstream.drift = upstream.drift | {"bulkhead.limit": [20, policy["bulkhead"]["limit"]]}
        upstream.policy, upstream.etag = policy, upstream.etag + 1
        self.happened("policy", upstream.name, f"bulkhead.limit 20 -> {policy['bulkhead']['limit']}")
        return web.json_response({"policy": policy}, headers={"ETag": f'"{upstream.etag}"'})

    async def deed(self, request: web.Request) -> web.Response:
        upstream, deed = self.upstreams[request.match_info["name"]], request.match_info["deed"]
        if deed in {"isolate", "restore"}:
            upstream.state = "isolated" if deed == "isolate" else "closed"
        if deed in {"fold", "drop"}:
            upstream.drift = {}
        self.happened("control", upstream.name, deed)
        return web.Response(status=204)


def flat(policy: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    """The knobs, by their paths."""
    found = []
    for name, value in policy.items():
        inner = isinstance(value, dict) and name != "wait"
        found += flat(value, f"{where}{name}.") if inner else [(where + name, value)]
    return found


if __name__ == "__main__":
    ills = dict(one.split("=") for one in sys.argv[2:])
    web.run_app(Pretended(int(sys.argv[1]), **ills).create(), host="127.0.0.1", port=8090)
