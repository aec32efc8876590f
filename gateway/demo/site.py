"""A service of the demo on its socket, from the ready line to the last connection.

What only starts services needs this too, and serves nothing: aiohttp is imported by who serves.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio import Event
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

STDIN, STDOUT = 0, 1
ENDING = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.0
"""Seconds that requests in flight get at the end: as long as a page may take."""


class CannotListen(Exception):
    """The port is taken, or not to be had at all."""


def listen(host: str, port: int, *, option: str) -> socket.socket:
    """A listening socket; port 0 is any free one. `option` is what the user would change if it cannot be had."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotListen(f"the host {host!r} is not known ({error.strerror}); choose another with --host") from None
    addresses.sort(key=lambda one: one[0] is not socket.AF_INET)  # localhost may be IPv6 first
    family, kind, protocol, _, address = addresses[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        problem = "is taken" if error.errno == EADDRINUSE else f"cannot be had ({error.strerror})"
        raise CannotListen(f"port {port} on {host} {problem}; choose another with {option} (0: any free)") from None
    return listening


def url_of(host: str, port: int) -> str:
    """Where to reach what listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say(line: str) -> None:
    """Write a line to standard output; it may have no reader any more."""
    with suppress(OSError):
        os.write(STDOUT, f"{line}\n".encode())


@contextmanager
def ending_signals(stop: Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; afterwards they are ignored, for the end has begun and takes no longer for it."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


async def serve(
    app: web.Application, listening: socket.socket, *, host: str, has_parent: bool, handler_cancellation: bool = True
) -> None:
    """Serve until SIGINT or SIGTERM, or, with a parent, until standard input ends.

    The parent holds the other end of it, and closes it to end the service; when it is killed, the kernel does.
    """
    from aiohttp import web

    stop, loop = Event(), asyncio.get_running_loop()
    # A client that leaves cancels its handler, and with it the calls made on its behalf.
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, access_log=None, shutdown_timeout=PATIENCE)

    def look_for_the_end() -> None:
        if not os.read(STDIN, 1024):
            loop.remove_reader(STDIN)
            stop.set()

    if has_parent:
        loop.add_reader(STDIN, look_for_the_end)
    with ending_signals(stop):
        await runner.setup()
        try:
            await web.SockSite(runner, listening).start()
            say(f"ready {url_of(host, listening.getsockname()[1])}")
            await stop.wait()
        finally:
            loop.remove_reader(STDIN)
            await runner.cleanup()
