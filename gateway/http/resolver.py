"""The addresses of names, looked up where it holds up nobody else.

The system's lookup cannot be stopped. In the loop's own executor (aiohttp's way) a few that hang would take all of its
threads: those of other upstreams, and of whoever calls `asyncio.to_thread`; and the process could not end before them.
Here each lookup has a daemon thread of its own; aiohttp joins those for the same name, so there is one for a name.
"""

from __future__ import annotations

import socket
from asyncio import get_running_loop
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread

from aiohttp.abc import AbstractResolver, ResolveResult

Resolve = Callable[[str], Sequence[str]]


def addresses_of(host: str) -> list[str]:
    """The addresses of a name, as the system tells them."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(address[0]) + (f"%{address[3]}" if len(address) > 2 and address[3] else "") for *_, address in found]  # noqa: PLR2004 - IPv6


class Resolver(AbstractResolver):
    """Looks names up by a plain function, each time in a thread of its own."""

    def __init__(self, resolve: Resolve | None) -> None:
        self._resolve = resolve or addresses_of

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - any will do
    ) -> list[ResolveResult]:
        """The addresses, as aiohttp wants them. Raises OSError."""
        loop = get_running_loop()
        found = loop.create_future()

        def tell(addresses: list[str] | None, error: Exception | None) -> None:
            if found.done():
                return
            if addresses is None:
                found.set_exception(error or OSError("no address"))
            else:
                found.set_result(addresses)

        def run() -> None:
            addresses, error = None, None
            try:
                addresses = list(self._resolve(host))
            except OSError as failed:
                error = failed
            except Exception as failed:  # noqa: BLE001 - a user's function: whatever it raises, there is no address
                error = OSError(f"resolve raised {type(failed).__name__}: {failed}")
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, addresses, error)

        hold: Callable[[int], None] = getattr(loop, "hold_clock", lambda _: None)  # virtual time waits for threads
        hold(1)
        try:
            Thread(target=run, name=f"resolve {host}", daemon=True).start()
            addresses = await found
        finally:
            hold(-1)
        if not addresses:
            raise OSError("the name has no address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing to close: threads end with their lookups."""
