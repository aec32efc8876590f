"""What an HTTP server answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from msgspec import DecodeError, Struct
from msgspec.json import decode

from gateway.outcome import Refused

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

T = TypeVar("T")


class HttpReply(Struct, frozen=True, gc=False):
    """An answer: its status, its header lines, the bytes of its body. Plain data: safe to remember and to share."""

    status: int
    lines: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The headers, a read-only multi-mapping in which case does not matter: `reply.headers["content-type"]`."""
        from multidict import CIMultiDict, CIMultiDictProxy  # noqa: PLC0415 - comes with aiohttp, and not before

        return CIMultiDictProxy(CIMultiDict(self.lines))

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, into: type[T]) -> T: ...
    def json(self, into: Any = Any) -> Any:
        """The body, read as JSON into a type. Raises msgspec.DecodeError, or its kind ValidationError."""
        return decoded(partial(decode, type=into), self.body)

    def text(self) -> str:
        """The body as text, in the charset that the server named; else UTF-8. What is none is shown as U+FFFD."""
        content_type = self.headers.get("Content-Type", "").lower()
        charset = content_type.partition("charset=")[2].partition(";")[0].strip(" \"'")
        try:
            return self.body.decode(charset or "utf-8", "replace")
        except (LookupError, UnicodeError):  # there is none of that name, or it has no "replace": "idna", "undefined"
            return self.body.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<HttpReply {self.status}, {len(self.body)} bytes>"


def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """What a decoder makes of a body. Raises DecodeError, whatever is wrong with it."""
    try:
        return decode(body)
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8, from byte {error.start} on"
    except RecursionError:
        problem = "it is nested too deeply"
    raise DecodeError(problem)  # here it has no context: that would hold all of the body


class HttpRefused(Refused):
    """A healthy "no", such as 404: `status`, and the whole `reply`. Reaches the caller untouched; never repeated."""

    def __init__(self, what: str, *, reply: HttpReply, retry_after: float | None = None) -> None:
        super().__init__(f"{what}: {reply.status}", retry_after=retry_after)
        self.reply = reply

    @property
    def status(self) -> int:
        """The status."""
        return self.reply.status
