"""The admin server: a port of its own, on loopback unless a token guards it, from `serve` to `close`."""

from __future__ import annotations

import logging
import os
from asyncio import BaseProtocol, BaseTransport, Server, Task, Transport, get_running_loop, shield
from collections.abc import Collection, Mapping
from contextvars import Context
from functools import partial
from socket import socket
from types import MappingProxyType
from typing import Self, cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.admin.auth import SAFE, Guards, NotAllowed
from gateway.admin.journal import Journal, Record
from gateway.admin.pages import page
from gateway.admin.routes import LARGEST, ROLE, Handler, Problem, Routes, errors, sentence
from gateway.admin.state import State, Tuned
from gateway.admin.tuning import Tuning
from gateway.outcome import ConfigError
from gateway.registry import Gateway

log = logging.getLogger("gateway")

PATIENCE = 1.0
"""Seconds that requests in flight get at the end."""
CONNECTIONS = 300
"""At once; two streams may have 100 viewers each."""
LINGERING = 0.3
"""Seconds in which a body that nobody wants is swallowed, so that its sender reads why."""
HIGHEST_PORT = 65535
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Server": "gateway",
    }
)
"""On every answer: nothing but our own files runs, nobody frames it, nothing is kept, no version is told."""


class Admin:
    """A server that runs. `url` and `port` say where; `close()`, or the end of `async with`, ends it."""

    def __init__(self, gate: Gateway, guards: Guards, journal: Journal, host: str) -> None:
        self.host = host
        self.port = 0
        self._gate = gate
        self._journal = journal
        self._tuning = Tuning(gate, journal, on_record=self._recorded)
        self._state = State(gate, tuned=self._tuned, journal=journal.kept)
        self._state.stories.told_elsewhere = lambda: self._tuning.applying
        self._routes = Routes(gate, self._state, self._tuning)
        app = web.Application(client_max_size=LARGEST, middlewares=[errors, guarding(guards)])
        app.on_response_prepare.append(add_headers)
        self._routes.install(app)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=PATIENCE, lingering_time=LINGERING
        )
        self._server: Server | None = None
        self._ending: Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it is, as a browser on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104 - no bind
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self, port: int, listening: socket | None) -> None:
        """Listen, then lay what is tuned over the policies, and look at what moves."""
        await self._runner.setup()
        create = partial(get_running_loop().create_server, self._connection)
        try:
            if listening is None:
                self._server = await create(host=self.host or None, port=port)
            else:
                self._server = await create(sock=listening)
        except OSError as error:
            problem = f"{port} on {self.host or 'every address'} cannot be had: {error.strerror or error}"
            raise ConfigError("admin port", problem, "give another one; 0: any that is free") from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._tuning.start()
        self._state.start()

    async def close(self) -> None:
        """Let everybody go, carry changes through to their end, and let go of the port and the journal.

        It is done once, for all who want it, and to its end: who is cancelled meanwhile leaves only himself.
        """
        if self._ending is None:
            self._ending = get_running_loop().create_task(self._end(), name="gateway: admin ends", context=Context())
        await shield(self._ending)

    async def _end(self) -> None:
        try:
            if self._server is not None:
                self._server.close()
            for stream in self._routes.streams:
                await stream.close()
            await self._runner.cleanup()
        finally:
            try:
                await self._tuning.close()
                await self._state.close()
            finally:
                self._journal.close()

    def _connection(self) -> BaseProtocol:
        """Whoever answers a new connection. There may be only so many: the files are those of the gateway, too."""
        server = self._runner.server
        return TooMany() if server is None or len(server.connections) >= CONNECTIONS else server()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _tuned(self, name: str) -> Tuned:
        return Tuned(etag=self._tuning.etag(name), drift=self._tuning.drift(name))

    def _recorded(self, record: Record) -> None:
        if record.who not in {"code", "file"}:
            self._state.stories.note("control", record.upstream, sentence(record))


class TooMany(BaseProtocol):
    """Ends a connection before it says anything."""

    def connection_made(self, transport: BaseTransport) -> None:
        """At once."""
        cast("Transport", transport).abort()


def guarding(guards: Guards) -> Middleware:
    """Let nobody in who may not."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guards.check_host(request)
            guards.check_url(request)
            if request.method not in SAFE or request.path not in page():
                request[ROLE] = role = guards.role_of(request)
                if request.method not in SAFE:
                    guards.check_write(request, role)
        except NotAllowed as error:
            raise Problem.of(error.status, "access", error.problem, error.remedy, error.headers) from None
        return await handler(request)

    return guarded


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Say what browsers may do with it."""
    response.headers.update(HEADERS)


async def serve(
    gate: Gateway,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    read_token: str | None = None,
    journal: str | os.PathLike[str] | None = None,
    hosts: Collection[str] = (),
    listening: socket | None = None,
) -> Admin:
    """Let operators watch and tune a gateway at `http://HOST:PORT/`, and programs by the same server.

        async with gate, await admin.serve(gate, port=8080) as server:
            print(server.url)

    `token` may do everything, `read_token` only look; else they are GATEWAY_ADMIN_TOKEN and GATEWAY_ADMIN_READ_TOKEN.
    Without any everybody on this machine may do everything, and nobody else reaches it. `hosts`: names beside `host`
    that lead here. `journal`: the file of who changed what, and of what is tuned; without one it is that of the policy
    file with `.journal` at the end, or nothing is kept.

    Port 0 is any that is free; `listening` is a socket that listens already, whose host and port count. Raises
    ConfigError for what cannot work, another host without a token first of all, and WrongLoop if the gateway is open on
    another event loop.
    """
    if listening is not None:
        host, port = listening.getsockname()[:2]
    check_settings(gate, host, port, hosts)
    guards = Guards(host=host, token=token, read_token=read_token, hosts=hosts)
    gate.on_its_loop(lambda: None)  # or raise
    kept = journal_for(gate, journal)
    admin = Admin(gate, guards, kept, host)
    try:
        await admin.start(port, listening)
    except BaseException:
        await admin.close()
        raise
    return admin


def check_settings(gate: object, host: object, port: object, hosts: object) -> None:
    """Raise a ConfigError for what cannot be meant."""
    if not isinstance(gate, Gateway):
        raise ConfigError("admin gate", f"{type(gate).__name__} is no Gateway", "give the gateway itself")
    if not isinstance(host, str):
        raise ConfigError("admin host", f"{host!r} is no name or address", 'give "127.0.0.1"')
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= HIGHEST_PORT:
        raise ConfigError("admin port", f"{port!r} is no port", f"give a number from 0 to {HIGHEST_PORT}")
    if isinstance(hosts, str) or not all(isinstance(name, str) for name in hosts):  # type: ignore[attr-defined]
        raise ConfigError("admin hosts", f"{hosts!r} are no names", 'give a list: ["admin.example"]')


def journal_for(gate: Gateway, path: str | os.PathLike[str] | None) -> Journal:
    """The journal that is asked for; else the one beside the policy file, if there can be one; else none."""
    if path is not None or gate.policy_file is None:
        return Journal(path)
    beside = f"{os.fspath(gate.policy_file)}.journal"
    if os.path.exists(beside) or os.access(os.path.dirname(beside) or ".", os.W_OK):  # noqa: PTH110, PTH120 - a str
        return Journal(beside)
    log.warning("%s cannot be written: what is tuned is forgotten at the end; give journal= a path", beside)
    return Journal(None)
