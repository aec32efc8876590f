"""One stream for many viewers: each message is composed once, and only while somebody looks.

It is packed once, too. A gzip stream is a row of blocks; a message whose blocks look back at nothing before it ("full
flush", RFC 1951) has its place in any of them, so the same bytes go to all, whenever they came. Forty times fewer.

A viewer gets the newest message and none in between that he had no time for. Where a message tells what is another
since the one before, who has not got that one gets the whole instead. One who takes nothing for a while is let go: what
he would have to be told is kept nowhere, whatever he does.
"""

from __future__ import annotations

import logging
from asyncio import Event, Task, get_running_loop, sleep, timeout, wait
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from zlib import DEFLATED, Z_BEST_SPEED, Z_FULL_FLUSH, compressobj

from aiohttp import web
from aiohttp.hdrs import ACCEPT_ENCODING

log = logging.getLogger("gateway")

EVERY = 1.0
"""Seconds from one message to the next."""
PATIENCE = 5.0
"""Seconds that a viewer may take to take a message; then he is gone, or as good as gone."""
GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""How a gzip stream begins (RFC 1952): deflated, no name, no time, by whatever system."""
LOOKING_BACK, MEMORY = -13, 6
"""How far packing looks back, 8 KiB, and what it may take (zlib.h, "windowBits", "memLevel"): rows repeat within half a
KiB, and usual settings would have 256 KiB made ready for each message, twice the work and all of the processor's cache.
"""
MOST = 100
"""Viewers of one stream; the next is told to come back."""
FAILED, INSTEAD = "what %s shows could not be composed", b": it could not be composed\n\n"
NONE_YET = -1
"""The number of the last message that a viewer got who got none."""


class Stream:
    """Server-sent events, from the first viewer to the last. `compose` gives the bytes of a message.

    `whole`: what a viewer gets instead who has not got the message before. `beside`: what he gets before each message
    if he asked for it, by what he asked for. `packed`: compressed for those who take that. `on_begin` hear when
    somebody begins to look, `on_end` when nobody does any more.
    """

    def __init__(
        self,
        name: str,
        compose: Callable[[], Awaitable[bytes]],
        *,
        whole: Callable[[], bytes] | None = None,
        beside: Callable[[str], bytes] = lambda _: b"",
        every: float = EVERY,
        kind: str = "text/event-stream; charset=utf-8",
        packed: bool = True,
        on_begin: Sequence[Callable[[], object]] = (),
        on_end: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._kind = kind
        self._packs = packed
        self._on_begin = on_begin
        self._on_end = on_end
        self._name = name
        self._compose = compose
        self._whole = whole
        self._beside = beside
        self._every = every
        self._task: Task[None] | None = None
        self._viewers = 0
        self._number = 0  # of the message
        self._message = b""
        self._parts: dict[tuple[str, bool], bytes] = {}  # what it is handed out as, packed or not
        self._well = True
        self._next = Event()
        self._closed = False

    @property
    def viewers(self) -> int:
        """How many look."""
        return self._viewers

    async def show(self, request: web.Request, asked_for: str = "") -> web.StreamResponse:
        """Serve a viewer until he leaves, or the stream is closed."""
        if self._viewers >= MOST or self._closed:
            return web.Response(status=503, headers={"Retry-After": "5"}, text="too many viewers\n")
        response = web.StreamResponse(headers={"Content-Type": self._kind})
        packed = self._packs and takes_gzip(request)
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        self._viewers += 1
        seen = NONE_YET
        try:
            await response.prepare(request)
            if packed:
                await response.write(GZIP)
            if self._task is None:
                self._begin()
            while not self._closed:
                if self._message and seen != self._number:  # nobody waits a second for something to look at
                    message = self._bytes(asked_for, missed=seen != self._number - 1, packed=packed)
                    seen = self._number
                    await self._hand(request, response, message)
                else:
                    await self._next.wait()
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

    def _bytes(self, asked_for: str, *, missed: bool, packed: bool) -> bytes:
        """The message as a viewer gets it who missed the one before, or not."""
        if not self._well:
            return self._part("news", lambda: self._message, packed=packed)
        beside = self._part(f"beside {asked_for}", lambda: self._beside(asked_for), packed=packed)
        if missed and self._whole is not None:
            return beside + self._part("whole", self._whole, packed=packed)
        return beside + self._part("news", lambda: self._message, packed=packed)

    def _part(self, name: str, make: Callable[[], bytes], *, packed: bool) -> bytes:
        """A part of it that many viewers share; made when the first of them wants it."""
        part = self._parts.get((name, packed))
        if part is None:
            part = full_flushed(self._part(name, make, packed=False)) if packed else self._made(make)
            self._parts[name, packed] = part
        return part

    def _made(self, make: Callable[[], bytes]) -> bytes:
        try:
            return make()
        except Exception:
            log.exception(FAILED, self._name)
            return INSTEAD

    async def _hand(self, request: web.Request, response: web.StreamResponse, message: bytes) -> None:
        try:
            async with timeout(PATIENCE):
                await response.write(message)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # not closed, which would wait for him
            raise

    def _begin(self) -> None:
        for hears in self._on_begin:
            hears()
        self._task = get_running_loop().create_task(self._run(), name=f"gateway: {self._name}", context=Context())

    def _end(self) -> None:
        task, self._task = self._task, None
        self._message = b""
        self._parts = {}
        if task is not None:
            task.cancel()
            for hears in self._on_end:
                hears()

    async def _run(self) -> None:
        loop = get_running_loop()
        while True:
            began_at = loop.time()
            before = self._number if self._well else self._number + 1  # which nobody has got
            try:
                message, self._well = await self._compose(), True
            except Exception:
                log.exception(FAILED, self._name)
                message, self._well = INSTEAD, False
            self._message, self._parts, self._number = message, {}, before + 1
            woken, self._next = self._next, Event()
            woken.set()
            took = loop.time() - began_at  # it counts; but between two messages there is always a rest
            await sleep(max(self._every - took, self._every / 5))


def full_flushed(message: bytes) -> bytes:
    """A message in blocks that need nothing of what came before, and end on a whole byte."""
    if not message:
        return b""
    packer = compressobj(Z_BEST_SPEED, DEFLATED, LOOKING_BACK, MEMORY)
    return packer.compress(message) + packer.flush(Z_FULL_FLUSH)


def takes_gzip(request: web.Request) -> bool:
    """Whether it may be compressed, as all browsers say."""
    codings = (part.replace(" ", "").lower() for part in request.headers.get(ACCEPT_ENCODING, "").split(","))
    return any(coding == "gzip" or (coding.startswith("gzip;q=") and coding != "gzip;q=0") for coding in codings)
