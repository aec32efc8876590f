"""An upstream: as little of an HTTP server as can be, so that what is measured is who asks it. `POST /mode/hang`.

It answers with ratings, films, or an item of the name that is asked for. What it takes to answer is `delay` seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import cache

from benchmarks import processes

FILMS = ("603", "550", "680", "13", "155")
SLOW_FOR = 0.3
"""Seconds: thirty times what it usually takes, and within its limits."""
DRIP_EVERY = 0.05
MODES = ("none", "hang", "fail", "slow", "drip")


@cache
def content(path: str) -> bytes:
    """What a path gives."""
    *_, kind, key = ["", *path.strip("/").split("/")]
    match kind:
        case "user":
            ratings = [{"movieId": film, "rating": 1 + number} for number, film in enumerate(FILMS)]
            made: object = {"userId": key, "ratings": ratings}
        case "movies":
            made = {"movieId": key, "name": f"Film {key}", "description": "Someone wants something, and gets it. " * 3}
        case _:
            made = {"key": key, "value": "as good as ever " * 6}
    return json.dumps(made).encode()


@cache
def reply(path: str) -> bytes:
    """The whole of it."""
    body = content(path)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
DONE = b"HTTP/1.1 204 No Content\r\n\r\n"


class State:
    """What all connections share."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.mode = "none"
        self.seen = 0


class Connection(asyncio.Protocol):
    """One of them: requests without a body, one after the other."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._rest = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            verb, path, _ = request.split(b" ", 2)
            self._answer(verb, path.partition(b"?")[0].decode())

    def _answer(self, verb: bytes, path: str) -> None:
        state = self._state
        if verb == b"POST":
            state.mode = path.rpartition("/")[2]
            self._send(DONE)
        elif path == "/seen":
            body = b"%d" % state.seen
            self._send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        else:
            state.seen += 1
            match state.mode:
                case "hang":
                    return
                case "fail":
                    self._send(FAILURE)
                case "drip":
                    self._drip(reply(path))
                case mode:
                    delay = SLOW_FOR if mode == "slow" else state.delay
                    if delay:
                        self._loop.call_later(delay, self._send, reply(path))
                    else:
                        self._send(reply(path))

    def _drip(self, left: bytes) -> None:
        if left and not self._transport.is_closing():
            head = max(1, left.find(b"\r\n\r\n") + 4)  # the headers at once, and then a byte at a time
            self._send(left[:head])
            self._loop.call_later(DRIP_EVERY, self._drip, left[head:])

    def _send(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def serve(port: int, delay: float) -> None:
    """Until standard input ends."""
    state = State(delay)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(state), "127.0.0.1", port, backlog=1024, reuse_address=True)
    await processes.until_stdin_ends().wait()


def main(port: str, delay: str) -> None:
    """Serve, on the quickest loop there is."""
    try:
        import uvloop as loops  # noqa: PLC0415
    except ImportError:
        loops = asyncio
    loops.run(serve(int(port), float(delay)))


if __name__ == "__main__":
    main(*sys.argv[1:])
