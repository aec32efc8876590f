"""What goes wrong with a request. The gateway raises its own errors from these: `Failed` or `Unknown`.

They are made anew, hold on to nothing of aiohttp's, and name no secret: an address here is scheme, host, port and path,
never a query, a name with a password, or a header.

Exception
├── NotSent
│   └── Unreachable             no connection: refused, no such name, a certificate that does not fit
│       └── ConnectTimeout          (also a TimeoutError) no connection in time
│   └── StatedNotDone           a status by which the server says that it did nothing: 429
├── BadReply                    an answer that is none: a status such as 500, a body too long or not as agreed
├── ConnectionLost (ConnectionError)   it broke after the request was handed over, before the answer was complete
├── ReadTimeout (TimeoutError)  silence
└── AnswerTimeout (TimeoutError)    the time of the try, or of the call, was over
"""

from __future__ import annotations

import re

from gateway.outcome import NotSent, Reason, WaitedFor

from gateway.http.reply import HttpReply  # isort: skip


QUOTE = re.compile(r"\n|(?<!\w)b?['\"]")


def wrong_with(message: str) -> str:
    """What aiohttp found wrong with an answer, without what it quotes of that: it may be a cookie, or half a body."""
    return QUOTE.split(message, maxsplit=1)[0].strip(" :")[:80]


class Unreachable(NotSent):
    """No connection, so nothing was sent."""


class ConnectTimeout(Unreachable, TimeoutError):
    """No connection in time, so nothing was sent."""

    def __init__(self, *args: object, waited_for: WaitedFor = "connect") -> None:
        super().__init__(*args)
        self.waited_for = waited_for


class StatedNotDone(NotSent):
    """The server did nothing, and says so."""

    def __init__(self, what: str, *, reply: HttpReply, retry_after: float | None, reason: Reason) -> None:
        super().__init__(f"{what}: {reply.status}", retry_after=retry_after, reason=reason)
        self.reply = reply


class BadReply(Exception):
    """An answer that is none; `reply` where there is a whole one."""

    def __init__(self, *args: object, reply: HttpReply | None = None, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.reply = reply
        self.retry_after = retry_after


class ConnectionLost(ConnectionError):
    """The connection broke after the request was handed over."""


class ReadTimeout(TimeoutError):
    """Silence: nothing came for longer than `timeout.read`."""

    waited_for: WaitedFor = "read"


class AnswerTimeout(TimeoutError):
    """The answer was not complete when the time of the try, or of the whole call, was over."""

    def __init__(self, *args: object, waited_for: WaitedFor) -> None:
        super().__init__(*args)
        self.waited_for = waited_for
