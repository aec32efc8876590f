"""One stream for many viewers: each message is composed once, and only while somebody looks.

It is packed once, too. A gzip stream is a row of blocks; a message whose blocks look back at nothing before it ("full
flush", RFC 1951) has its place in any of them, so the same bytes go to all, whenever they came. Forty times fewer. What
few ask for is put into such a stream as it is: to pack five KiB for one viewer costs more than to send them.

It is handed out in one go, too: as a chunk that was framed once, straight to the transport of each viewer. The tasks of
the viewers sleep until they leave; to wake twenty of them, and have each write the same bytes, took as long again as
the system takes to send them.

A viewer gets the newest message and none in between that he had no time for. Where a message tells what is another
since the one before, who has not got that one gets the whole instead. One who takes nothing for a while is let go: what
he would have to be told is kept nowhere, whatever he does.
"""

from __future__ import annotations

import logging
from asyncio import Event, Task, Transport, get_running_loop, sleep, wait
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from zlib import DEFLATED, Z_BEST_SPEED, Z_FULL_FLUSH, Z_NO_COMPRESSION, compressobj

from aiohttp import HttpVersion11, web
from aiohttp.hdrs import ACCEPT_ENCODING

from gateway.slices import sliced

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
AS_IT_IS = Z_NO_COMPRESSION
MOST = 100
"""Viewers of one stream; the next is told to come back."""
SLICE = 5
"""Viewers that are handed a message in one turn of the loop: a millisecond, if one of them has an upstream open."""
FAILED, INSTEAD = "what %s shows could not be composed", b": it could not be composed\n\n"
NONE_YET = -1
"""The number of the last message that a viewer got who got none."""


class Viewer:
    """Somebody who looks: what he asked for, where it goes, and which message he got last."""

    __slots__ = ("asked_for", "chunked", "gone", "handed_at", "packed", "seen", "transport")

    def __init__(self, transport: Transport, asked_for: str, *, packed: bool, chunked: bool, at: float) -> None:
        self.transport = transport
        self.asked_for = asked_for
        self.packed = packed
        self.chunked = chunked  # as HTTP/1.1 frames what has no length; before it, the connection's end was its end
        self.seen = NONE_YET
        self.handed_at = at
        self.gone = Event()

    def takes(self, now: float) -> bool:
        """Whether he has taken what he was given. Who has not for too long is let go; so is who has left."""
        transport = self.transport
        if transport.is_closing():
            self.gone.set()
        elif not transport.get_write_buffer_size():
            return True
        elif now - self.handed_at > PATIENCE:
            transport.abort()  # not closed, which would wait for him
            self.gone.set()
        return False


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
        self._viewers = 0  # with those that are not there yet
        self._looking: list[Viewer] = []
        self._number = 0  # of the message
        self._message = b""
        self._parts: dict[tuple[str, bool], bytes] = {}  # what it is handed out as, packed or not
        self._framed: dict[tuple[str, bool, bool, bool], bytes] = {}  # all of it, by whom it is for
        self._well = True
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
        if request.version == HttpVersion11:
            response.enable_chunked_encoding()
        self._viewers += 1
        try:
            await response.prepare(request)
            if packed:
                await response.write(GZIP)
            await self._look(request, asked_for, packed=packed, chunked=response.chunked)
        except ConnectionError:
            pass  # he has left
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._end()
        return response

    async def _look(self, request: web.Request, asked_for: str, *, packed: bool, chunked: bool) -> None:
        """Until he leaves: all that he gets is handed to him from elsewhere."""
        if request.transport is None or self._closed:
            return
        now = get_running_loop().time()
        viewer = Viewer(request.transport, asked_for, packed=packed, chunked=chunked, at=now)
        self._looking.append(viewer)
        try:
            if self._task is None:
                self._begin()
            else:  # nobody waits a second for something to look at
                self._hand(viewer, now)
            await viewer.gone.wait()
        finally:
            self._looking.remove(viewer)

    async def close(self) -> None:
        """Let all viewers go."""
        self._closed = True
        task = self._task
        self._end()
        for viewer in self._looking:
            viewer.gone.set()
        if task is not None:
            await wait([task])

    def _hand(self, viewer: Viewer, now: float) -> None:
        """Give him the newest message, unless he has it, or is busy with one before."""
        if self._message and viewer.seen != self._number and viewer.takes(now):
            viewer.transport.write(self._message_for(viewer))
            viewer.seen, viewer.handed_at = self._number, now

    def _message_for(self, viewer: Viewer) -> bytes:
        """The message, framed, as all get it who asked for the same, have the one before or not, and take it so."""
        missed = viewer.seen != self._number - 1
        of = (viewer.asked_for, missed, viewer.packed, viewer.chunked)
        framed = self._framed.get(of)
        if framed is None:
            message = self._bytes(viewer.asked_for, missed=missed, packed=viewer.packed)
            framed = self._framed[of] = b"%x\r\n%b\r\n" % (len(message), message) if viewer.chunked else message
        return framed

    def _bytes(self, asked_for: str, *, missed: bool, packed: bool) -> bytes:
        """The message as a viewer gets it who missed the one before, or not."""
        if not self._well:
            return self._part("news", lambda: self._message, packed=packed)
        beside = self._part(f"beside {asked_for}", lambda: self._beside(asked_for), packed=packed, level=AS_IT_IS)
        if missed and self._whole is not None:
            return beside + self._part("whole", self._whole, packed=packed)
        return beside + self._part("news", lambda: self._message, packed=packed)

    def _part(self, name: str, make: Callable[[], bytes], *, packed: bool, level: int = Z_BEST_SPEED) -> bytes:
        """A part of it that many viewers share; made when the first of them wants it."""
        part = self._parts.get((name, packed))
        if part is None:
            part = full_flushed(self._part(name, make, packed=False), level) if packed else self._made(make)
            self._parts[name, packed] = part
        return part

    def _made(self, make: Callable[[], bytes]) -> bytes:
        try:
            return make()
        except Exception:
            log.exception(FAILED, self._name)
            return INSTEAD

    def _begin(self) -> None:
        for hears in self._on_begin:
            hears()
        self._task = get_running_loop().create_task(self._run(), name=f"gateway: {self._name}", context=Context())

    def _end(self) -> None:
        task, self._task = self._task, None
        self._message = b""
        self._parts, self._framed = {}, {}
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
            self._message, self._number = message, before + 1
            self._parts, self._framed = {}, {}
            async for viewer in sliced(tuple(self._looking), size=SLICE):
                self._hand(viewer, loop.time())
            took = loop.time() - began_at  # it counts; but between two messages there is always a rest
            await sleep(max(self._every - took, self._every / 5))


def full_flushed(message: bytes, level: int = Z_BEST_SPEED) -> bytes:
    """A message in blocks that need nothing of what came before, and end on a whole byte."""
    if not message:
        return b""
    packer = compressobj(level, DEFLATED, LOOKING_BACK, MEMORY)
    return packer.compress(message) + packer.flush(Z_FULL_FLUSH)


def takes_gzip(request: web.Request) -> bool:
    """Whether it may be compressed, as all browsers say."""
    codings = (part.replace(" ", "").lower() for part in request.headers.get(ACCEPT_ENCODING, "").split(","))
    return any(coding == "gzip" or (coding.startswith("gzip;q=") and coding != "gzip;q=0") for coding in codings)
