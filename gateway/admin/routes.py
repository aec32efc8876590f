"""What the admin server answers: each path, what it takes, what it gives. All of it JSON, save the page and metrics.

    GET   /                                  the page; its files below /static/
    GET   /state  /live                      all numbers; the same each second, as server-sent events
    GET   /live?details={name}               of each upstream what the page shows of all, and the details of that one
    GET   /metrics                           the numbers for Prometheus
    GET   /hystrix.stream                    the numbers for Hystrix' dashboard; also below /actuator/
    GET   /upstreams                         the upstreams
    GET   /upstreams/{name}/policy           every knob, and an ETag; ?knobs=1: with what each knob takes and means
    PATCH /upstreams/{name}/policy           a JSON merge patch (null: as by default), If-Match as you like
    POST  /upstreams/{name}/isolate          send nothing; {"circuit": key} for one circuit; restore takes it back
    POST  /upstreams/{name}/restore
    POST  /upstreams/{name}/enforce          {"enforce": false}: the circuit only counts
    POST  /upstreams/{name}/forget           remembered answers: all, {"operation": "..."}, also with "args": [...]
    POST  /upstreams/{name}/endpoints/drain  {"url": "..."}; restore takes it back
    POST  /upstreams/{name}/endpoints/restore
    POST  /upstreams/{name}/tuned/drop       take back what is tuned; fold writes it into the policy file
    POST  /upstreams/{name}/tuned/fold
    GET   /calls  /advice  /audit            stories of calls, what numbers say, who did what; ?upstream= &limit=

Errors are {"errors": [{"field", "problem", "remedy"}, ...]}: all that is wrong, at once.
"""

from __future__ import annotations

import logging
from asyncio import timeout
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from gateway.admin.auth import Role
from gateway.admin.folding import fold_into
from gateway.admin.glance import Glance
from gateway.admin.hystrix import HEADERS as OF_HYSTRIX
from gateway.admin.hystrix import INTERVAL, PING, Hystrix
from gateway.admin.journal import SHOWN, By, Record
from gateway.admin.live import Stream
from gateway.admin.pages import page
from gateway.admin.sampler import CALM, MANY
from gateway.admin.state import LONGEST_KEY, State
from gateway.admin.stories import short
from gateway.admin.tuning import NotKept, Stale, Tuning
from gateway.config.knobs import Knob, knobs
from gateway.config.patch import as_json, given_in, json_of
from gateway.config.watch import one_line
from gateway.http.client import HttpUpstream
from gateway.metrics import Exposition
from gateway.outcome import ConfigError, ConfigErrors, UnknownName, WrongLoop
from gateway.policy import Quantity
from gateway.registry import Gateway
from gateway.upstream import Upstream

KIND = OF_HYSTRIX["Content-Type"]
log = logging.getLogger("gateway")

LARGEST = 64 * 1024
"""Bytes of a body: a whole policy has less than two thousand."""
BODY_WITHIN = 5.0
"""Seconds in which it has to be there."""
LONGEST_NAME, LONGEST_REASON = 100, 500
"""Characters of what operators say of themselves and of their reasons."""
JSON = frozenset({"application/json", "application/merge-patch+json"})
FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""What a page of another site can send without asking first (Fetch, "CORS-safelisted request-header")."""
UNREAD = frozenset({401, 403, 408, 413, 415, 429})
ROLE: web.RequestKey[Role] = web.RequestKey("role")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(Exception):
    """A request that cannot be answered as it is."""

    def __init__(self, status: int, *errors: ConfigError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, errors)
        self.status, self.errors, self.headers = status, errors, headers or {}

    @classmethod
    def of(
        cls, status: int, field: str, problem: str, remedy: str, headers: Mapping[str, str] | None = None
    ) -> Problem:
        """One thing that is wrong."""
        return cls(status, ConfigError(field, problem, remedy), headers=headers)

    def response(self) -> web.Response:
        """What is told."""
        errors = [{"field": one.field, "problem": one.problem, "remedy": one.remedy} for one in self.errors]
        response = answer({"errors": errors}, status=self.status, headers=self.headers)
        if self.status in UNREAD:
            response.force_close()  # nobody reads the rest of what he has to say
        return response


class Routes:
    """The handlers, and what they need."""

    def __init__(self, gate: Gateway, state: State, tuning: Tuning) -> None:
        self.gate = gate
        self.state = state
        self.tuning = tuning
        glance = Glance(state)
        self._hystrix = Hystrix(gate, state.sampler)
        pace = (self._pace,)
        self.live = Stream("live", self._message, on_begin=pace, on_end=pace)
        self.glances = Stream(
            "glances",
            glance.compose,
            whole=glance.whole,
            beside=glance.opened,
            on_begin=pace,
            on_end=(glance.leave, *pace),
        )
        self.hystrix = Stream(
            "hystrix",
            self._commands,
            every=INTERVAL,
            kind=KIND,
            packed=False,
            on_begin=pace,
            on_end=(self._hystrix.leave, *pace),
        )
        self._metrics = Exposition(gate, lag=lambda: state.sampler.lag[0])
        self.streams = (self.live, self.glances, self.hystrix)
        self._pace()

    def install(self, app: web.Application) -> None:
        """Add them all."""
        get, post = app.router.add_get, app.router.add_post
        for path in page():
            get(path, self.file)
        get("/state", self.document)
        get("/live", self.follow, allow_head=False)  # a stream without end, to which nobody would listen
        get("/metrics", self.metrics)
        for path in ("/hystrix.stream", "/actuator/hystrix.stream"):
            get(path, self.hystrix.show, allow_head=False)
        get("/upstreams", self.upstreams)
        get("/calls", self.calls)
        get("/advice", self.advice)
        get("/audit", self.audit)
        get("/upstreams/{name}/policy", self.policy)
        app.router.add_patch("/upstreams/{name}/policy", self.patch)
        for name, deed in {"isolate": self.isolate, "restore": self.restore, "enforce": self.enforce}.items():
            post(f"/upstreams/{{name}}/{name}", deed)
        post("/upstreams/{name}/forget", self.forget)
        post("/upstreams/{name}/endpoints/{deed:drain|restore}", self.endpoint)
        post("/upstreams/{name}/tuned/drop", self.drop)
        post("/upstreams/{name}/tuned/fold", self.fold)

    # -- looking

    def _pace(self) -> None:
        """Look at the totals as often as it is seen."""
        seen = any(stream.viewers for stream in self.streams)
        self.state.sampler.stride = 1 if seen and len(list(self.gate)) <= MANY else CALM

    @staticmethod
    async def file(request: web.Request) -> web.Response:
        """A file of the page."""
        file = page()[request.path]
        return web.Response(body=file.body, content_type=file.kind, charset="utf-8")

    async def document(self, _: web.Request) -> web.Response:
        """All there is to see now."""
        return web.Response(body=await self.state.encoded(), content_type="application/json", charset="utf-8")

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """All there is to see, each second; or with the details of one upstream, and of none if it is not named."""
        details = request.query.get("details")
        return await (self.live.show(request) if details is None else self.glances.show(request, details))

    async def _message(self) -> bytes:
        return b"data: %b\n\n" % await self.state.encoded()

    async def _commands(self) -> bytes:
        return b"".join(self._hystrix.messages()) or PING

    async def metrics(self, request: web.Request) -> web.Response:
        """The numbers as Prometheus takes them."""
        body, kind = await self._metrics.read_in_slices(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": kind})

    async def upstreams(self, _: web.Request) -> web.Response:
        """The upstreams, as in the document."""
        await self.state.sampler.catch_up()
        return answer({"upstreams": self.state.document()["upstreams"]})

    async def calls(self, request: web.Request) -> web.Response:
        """The latest calls and their stories."""
        name = self._asked_for(request)
        return answer(self.state.calls(name, limit_in(request)))

    async def advice(self, request: web.Request) -> web.Response:
        """What the numbers say of the knobs."""
        name = self._asked_for(request)
        await self.state.sampler.catch_up()
        advice = self.state.advice()["advice"]
        return answer({"advice": [one for one in advice if name in {None, one["upstream"]}]})

    async def audit(self, request: web.Request) -> web.Response:
        """Who did what, the last first."""
        name = self._asked_for(request)
        records = [record for record in reversed(self.tuning.journal.recent) if name in {None, record.upstream}]
        shown = [told(record) for record in records[: limit_in(request)]]
        return answer({"audit": shown, "journal": self.tuning.journal.name})

    async def policy(self, request: web.Request) -> web.Response:
        """Every knob of an upstream."""
        upstream = self._upstream(request)
        if request.query.get("knobs") != "1":
            return self._policy(upstream)
        drift, given = self.tuning.drift(upstream.name), given_in(upstream.policy)
        content = {
            "policy": as_json(upstream.policy),
            "given": sorted(given),
            "drift": drift,
            "aside": self.tuning.aside.get(upstream.name),
            "file": None if self.gate.policy_file is None else str(self.gate.policy_file),
            "knobs": [described(knob) for knob in knobs().values() if knob.takes != "policy"],
        }
        return answer(content, headers={"ETag": self.tuning.etag(upstream.name)})

    def _policy(self, upstream: Upstream) -> web.Response:
        return answer(as_json(upstream.policy), headers={"ETag": self.tuning.etag(upstream.name)})

    # -- tuning

    async def patch(self, request: web.Request) -> web.Response:
        """Change knobs, all or none."""
        upstream = self._upstream(request)
        patch = await body_of(request)
        if not isinstance(patch, dict):
            raise Problem.of(400, "policy", "a patch is an object", 'send {"bulkhead": {"limit": 40}}')
        await self.tuning.patch(upstream.name, patch, by(request), if_match=request.headers.get("If-Match"))
        return self._policy(upstream)

    async def enforce(self, request: web.Request) -> web.Response:
        """Let the circuit refuse, or only count."""
        upstream = self._upstream(request)
        body = await options_of(request, "enforce")
        patch = {"breaker": {"enforce": body.get("enforce", True)}}
        await self.tuning.patch(upstream.name, patch, by(request), if_match=request.headers.get("If-Match"))
        return self._policy(upstream)

    async def drop(self, request: web.Request) -> web.Response:
        """Take back what is tuned."""
        upstream = self._upstream(request)
        await options_of(request)
        dropped = await self.tuning.drop(upstream.name, by(request))
        return answer({"dropped": dropped}, headers={"ETag": self.tuning.etag(upstream.name)})

    async def fold(self, request: web.Request) -> web.Response:
        """Write what is tuned into the policy file."""
        upstream = self._upstream(request)
        await options_of(request)
        file = self.gate.policy_file
        if file is None:
            problem = "there is no policy file: the policies come from code"
            raise Problem.of(409, "policy file", problem, "change them there, and drop what is tuned")
        folded = await self.tuning.fold(upstream.name, by(request), partial(fold_into, file))
        return answer({"folded": folded, "file": str(file)}, headers={"ETag": self.tuning.etag(upstream.name)})

    # -- by hand

    async def isolate(self, request: web.Request) -> web.Response:
        """Send nothing any more."""
        upstream = self._upstream(request)
        key = circuit_of(upstream, await options_of(request, "circuit"))
        return await self._done(request, upstream, "isolate", lambda: upstream.isolate(key), circuit=key)

    async def restore(self, request: web.Request) -> web.Response:
        """Let calls through again."""
        upstream = self._upstream(request)
        key = circuit_of(upstream, await options_of(request, "circuit"))
        return await self._done(request, upstream, "restore", lambda: upstream.restore(key), circuit=key)

    async def forget(self, request: web.Request) -> web.Response:
        """Forget remembered answers."""
        upstream = self._upstream(request)
        body = await options_of(request, "operation", "args")
        name, args = body.get("operation"), body.get("args", [])
        if name is not None and (not isinstance(name, str) or name not in upstream):
            raise Problem(404, UnknownName.among("operation", shown(str(name)), [one.name for one in upstream]))
        if not isinstance(args, list) or (args and name is None):
            raise Problem.of(422, "args", "they are those of one operation", 'send {"operation": "...", "args": [...]}')
        operations = list(upstream) if name is None else [upstream[name]]
        return await self._done(request, upstream, "forget", lambda: forget(operations, args), operation=name)

    async def endpoint(self, request: web.Request) -> web.Response:
        """Take an endpoint out of rotation, or let it in again."""
        upstream, deed = self._upstream(request), request.match_info["deed"]
        if not isinstance(upstream, HttpUpstream):
            raise Problem.of(409, "endpoints", f"{upstream.name} is no HTTP API", "isolate it")
        url = (await options_of(request, "url")).get("url")
        if not isinstance(url, str):
            raise Problem.of(422, "url", "it is not said which", 'send {"url": "..."}')
        act = upstream.drain_endpoint if deed == "drain" else upstream.restore_endpoint
        return await self._done(request, upstream, f"{deed} endpoint", lambda: act(url), url=url)

    async def _done(
        self, request: web.Request, upstream: Upstream, kind: str, act: Callable[[], Any], **facts: object
    ) -> web.Response:
        said = {
            name: fact if isinstance(fact, (str, int, float)) else str(fact) for name, fact in facts.items() if fact
        }
        value, kept = await self.tuning.note(kind, upstream.name, by(request), act, said)
        content: dict[str, Any] = {"upstream": upstream.name, "done": kind, "recorded": kept}
        if isinstance(value, int):
            content["forgotten"] = value
        return answer(content)

    # -- what a request says

    def _upstream(self, request: web.Request) -> Upstream:
        return self._named(request.match_info["name"])

    def _named(self, name: str) -> Upstream:
        try:
            return self.gate[name]
        except UnknownName as error:
            raise Problem(404, error) from None

    def _asked_for(self, request: web.Request) -> str | None:
        name = request.query.get("upstream")
        return None if name is None else self._named(name).name


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What is wrong, as JSON; of what went wrong in here nothing but that."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 - it is logged, if it is none of ours
        return problem_of(request, error).response()


def problem_of(request: web.Request, error: Exception) -> Problem:  # noqa: PLR0911 - as many as there are
    """What is told of an error."""
    match error:
        case Problem():
            return error
        case Stale():
            problem, remedy = "somebody has changed it meanwhile", "look at it again, and send If-Match with its ETag"
            return Problem.of(412, "If-Match", problem, remedy, {"ETag": error.etag})
        case NotKept():
            return Problem.of(503, "journal", str(error), "nothing was changed; see to the disk")
        case WrongLoop():
            return Problem.of(409, "gateway", str(error), "serve() where the gateway is open")
        case ConfigErrors():
            return Problem(422, *error.errors)
        case ConfigError():
            return Problem(422, error)
        case web.HTTPRequestEntityTooLarge():
            return too_large()
        case web.HTTPException():
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return Problem.of(error.status, "request", error.reason, "see the page on the admin server", headers)
    log.error("%s %s could not be answered", request.method, request.path, exc_info=error)
    return Problem.of(500, "request", "it could not be answered", "see the log of the process")


def answer(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A response with JSON."""
    body = msgspec.json.encode(content, enc_hook=str)
    return web.Response(status=status, headers=headers, body=body, content_type="application/json", charset="utf-8")


def too_large() -> Problem:
    """For a body that is."""
    return Problem.of(413, "body", f"it has more than {LARGEST} bytes", "send what you want changed")


async def body_of(request: web.Request) -> Any:
    """What a request says, in JSON; None if it says nothing. A form is none, whatever stands in it."""
    kind = request.content_type
    if kind in FORMS or (request.can_read_body and kind not in JSON):
        raise Problem.of(415, "Content-Type", f"{shown(kind)} is no JSON", "send application/json")
    if not request.can_read_body:
        return None
    if (request.content_length or 0) > LARGEST:
        raise too_large()
    try:
        async with timeout(BODY_WITHIN):
            content = await request.read()
        return msgspec.json.decode(content) if content else None
    except TimeoutError:
        raise Problem.of(408, "body", "it did not come", "send all of it") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem.of(400, "body", f"it is no JSON: {shown(str(error))}", "mend it") from None


async def options_of(request: web.Request, *known: str) -> dict[str, Any]:
    """What a request says beside its path, which is nothing but these."""
    body = await body_of(request)
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise Problem.of(400, "body", "it is no object", "send {}")
    unknown = [UnknownName.among(shown(name), shown(name), known) for name in body if name not in known]
    if unknown:
        raise Problem(422, *unknown)
    return body


def by(request: web.Request) -> By:
    """Who wants it, as far as he says so."""
    name = said(request, "X-Gateway-Operator", LONGEST_NAME)
    why = said(request, "X-Gateway-Reason", LONGEST_REASON)
    return By(who=name or "somebody", role=request[ROLE], remote=request.remote or "", why=why)


def said(request: web.Request, header: str, longest: int) -> str:
    """What a header says, which is percent-encoded where it is more than ASCII."""
    text = unquote(request.headers.get(header, ""), errors="replace").strip()
    return shown(text, longest)


def shown(text: str, longest: int = 200) -> str:
    """A text as it may stand in a file and on a terminal: in one line, and never long."""
    text = one_line(text.encode(errors="replace").decode())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def limit_in(request: web.Request) -> int:
    """How many are wanted."""
    text = request.query.get("limit", "100")
    if not (text.isascii() and text.isdigit() and len(text) < len("10000") and 1 <= int(text) <= SHOWN):
        raise Problem.of(422, "limit", f"{shown(text)} is no number from 1 to {SHOWN}", "leave it out for 100")
    return int(text)


def circuit_of(upstream: Upstream, body: Mapping[str, Any]) -> Hashable:
    """The key of the circuit that is meant: as it is, or as it is shown. None: all."""
    key = body.get("circuit")
    if key is None:
        return None
    if not isinstance(key, (str, int, float)):
        raise Problem.of(422, "circuit", "it is neither text nor number", "send the key as the page shows it")
    known = [one for one, _ in upstream.circuits]
    if any(type(one) is type(key) and one == key for one in known):
        return key
    shown_so = [one for one in known if key in {str(one), repr(one), short(str(one), LONGEST_KEY)}]
    return shown_so[0] if len(shown_so) == 1 else key


def forget(operations: Iterable[Any], args: list[Any]) -> int:
    """Forget what operations remember; how many answers that were."""
    try:
        return sum(operation.forget(*args) if args else operation.forget_all() for operation in operations)
    except TypeError as error:  # they do not bind, or cannot be a key
        raise ConfigError("args", shown(str(error)), "give what the operation is called with") from None


def told(record: Record) -> dict[str, Any]:
    """A record as the page shows it."""
    return {
        "id": record.id,
        "at": record.at,
        "kind": record.kind,
        "upstream": record.upstream,
        "who": record.who,
        "role": record.role,
        "remote": record.remote,
        "why": record.why,
        "changes": record.changes,
        "facts": record.facts,
        "text": sentence(record),
    }


def sentence(record: Record) -> str:
    """A record in words."""
    changes = ", ".join(f"{knob} {words(old)} -> {words(new)}" for knob, (old, new) in record.changes.items())
    facts = ", ".join(f"{name} {fact}" for name, fact in record.facts.items())
    text = f"{record.kind} by {record.who}" + "".join(f": {part}" for part in (changes, facts) if part)
    return text + (f" ({record.why})" if record.why else "")


def words(value: object) -> str:
    """A value of a knob."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def described(knob: Knob) -> dict[str, Any]:
    """What a knob takes, is by default, and means."""
    takes: dict[str, Any] = {"path": knob.path, "none": knob.none, "default": json_of(knob.default)}
    if isinstance(knob.takes, Quantity):
        quantity = knob.takes
        takes |= {"kind": "number", "unit": quantity.unit, "least": quantity.least, "most": json_of(quantity.most)}
        takes |= {"above": quantity.above, "endless": quantity.endless}
    elif knob.takes is bool:
        takes["kind"] = "boolean"
    elif isinstance(knob.takes, tuple):
        takes |= {"kind": "words", "words": list(knob.takes)}
    else:
        takes["kind"] = str(knob.takes)
    takes["meaning"] = knob.reason
    return takes
