"""One stream for many viewers: each message is composed once, and only while somebody looks.

A viewer gets the newest message and none in between that he had no time for. One who takes nothing for a while is let
go: what he would have to be told is kept nowhere, whatever he does.
"""

from __future__ import annotations

import logging
from asyncio import Event, Task, get_running_loop, sleep, timeout, wait
from collections.abc import Awaitable, Callable
from contextvars import Context

from aiohttp import web

log = logging.getLogger("gateway")

EVERY = 1.0
"""Seconds from one message to the next."""
PATIENCE = 5.0
"""Seconds that a viewer may take to take a message; then he is gone, or as good as gone."""
MOST = 100
"""Viewers of one stream; the next is told to come back."""


class Stream:
    """Server-sent events, from the first viewer to the last. `compose` gives the bytes of a message, all of them.

    `on_end` hears when nobody looks any more.
    """

    def __init__(
        self,
        name: str,
        compose: Callable[[], Awaitable[bytes]],
        *,
        every: float = EVERY,
        kind: str = "text/event-stream; charset=utf-8",
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._kind = kind
        self._on_end = on_end
        self._name = name
        self._compose = compose
        self._every = every
        self._task: Task[None] | None = None
        self._viewers = 0
        self._message = b""
        self._next = Event()
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    async def show(self, request: web.Request) -> web.StreamResponse:
        """Serve a viewer until he leaves, or the stream is closed."""
        if self._viewers >= MOST or self._closed:
            return web.Response(status=503, headers={"Retry-After": "5"}, text="too many viewers\n")
        response = web.StreamResponse(headers={"Content-Type": self._kind})
        self._viewers += 1
        try:
            await response.prepare(request)
            if self._task is None:
                self._begin()
            elif self._message:
                await self._hand(request, response, self._message)  # nobody waits a second for something to look at
            while not self._closed:
                await self._next.wait()
                if self._message and not self._closed:
                    await self._hand(request, response, self._message)
        except (ConnectionError, TimeoutError):
            pass  # he has left
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._end()
        return response

    async def close(self) -> None:
        """Let all viewers go."""
        self._closed = True
        task = self._task
        self._end()
        self._next.set()
        if task is not None:
            await wait([task])

    async def _hand(self, request: web.Request, response: web.StreamResponse, message: bytes) -> None:
        try:
            async with timeout(PATIENCE):
                await response.write(message)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # not closed, which would wait for him
            raise

    def _begin(self) -> None:
        self._task = get_running_loop().create_task(self._run(), name=f"gateway: {self._name}", context=Context())

    def _end(self) -> None:
        task, self._task = self._task, None
        self._message = b""
        if task is not None:
            task.cancel()
            self._on_end()

    async def _run(self) -> None:
        while True:
            try:
                self._message = await self._compose()
            except Exception:
                log.exception("what %s shows could not be composed", self._name)
                self._message = b": it could not be composed\n\n"
            woken, self._next = self._next, Event()
            woken.set()
            await sleep(self._every)
