"""One request, as its caller says it: checked, complete, and the same over all tries.

What cannot be sent safely is a ConfigError before anything is counted: a path that leaves the base URL, a line break
in a header. What belongs to one connection only (RFC 9110, 7.6.1) is left out, so that the headers of an incoming
request can be handed on as they are.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit
from uuid import UUID, uuid4

from msgspec import Struct
from msgspec.json import encode

from gateway.outcome import ConfigError

Pairs = tuple[tuple[str, str], ...]
Params = Mapping[str, Any] | Sequence[tuple[str, Any]]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]
Data = bytes | bytearray | memoryview | str | Mapping[str, Any]

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length"),
    }
)
"""Of one connection only, or of this message: aiohttp says them itself, or nobody does."""
NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HALF = r"\ud800-\udfff"
"""Halves of a pair of surrogates: they are in no encoding, and in a URL would be left out without a word."""
UNSAFE = re.compile(rf"[\x00-\x08\x0a-\x1f\x7f{HALF}]")
"""Control characters: with them a value would be more than one header, or a path more than one request."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
LEAVES = re.compile(r"[\\\x00-\x1f\x7f]")
NO_PATH = re.compile(rf"[#\x00-\x20\x7f{HALF}]")
NO_TEXT = re.compile(f"[{HALF}]")
IDEMPOTENT = {"GET": True, "HEAD": True, "OPTIONS": True, "PUT": True, "DELETE": True, "POST": False, "PATCH": False}
"""RFC 9110, 9.2.2."""
PATHS_KEPT = 512


class HttpRequest(Struct, frozen=True, gc=False):
    """A request: what fallbacks and `Alternate` get of a call of `up.get` and its like."""

    method: str
    path: str
    params: Pairs = ()
    headers: Pairs = ()
    body: bytes | None = None
    idempotency_key: str | None = None

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.path.partition('?')[0]}>"  # a query may hold a secret


def request_of(
    method: str,
    path: str,
    *,
    params: Params | None = None,
    headers: Headers | None = None,
    json: object = None,
    data: Data | None = None,
    idempotency_key: str | bool | None = None,
) -> HttpRequest:
    """The request for these arguments. Raises ConfigError for what must not be sent, TypeError for what is no body."""
    confined(path)
    sent = checked(headers) if headers else ()
    body, kind = body_of(json, data) if json is not None or data is not None else (None, "")
    if kind and not any(name.lower() == "content-type" for name, _ in sent):
        sent = (*sent, ("Content-Type", kind))
    return HttpRequest(method, path, pairs_of(params) if params else (), sent, body, key_of(idempotency_key))


@lru_cache(maxsize=PATHS_KEPT)
def confined(path: str) -> str:
    """A path below the base URL, as it is; ConfigError for one that would leave it, or be more than a path."""
    if not isinstance(path, str):
        raise ConfigError("path", f"{type(path).__name__} is no str", 'give "/users/1"')
    plain = path.partition("?")[0]
    decoded = unquote(unquote(plain))  # a server that decodes twice is no way out either
    if plain.startswith("//") or SCHEME.match(plain) is not None:
        raise ConfigError("path", "it names a server of its own", "give a path below the base URL")
    if LEAVES.search(decoded) or NO_PATH.search(path):
        problem = "it holds a space, a control character, half a character, # or \\"
        raise ConfigError("path", problem, "use a template, or quote it")
    if any(segment in (".", "..") for segment in decoded.split("/")):
        raise ConfigError("path", "it has . or .. in it, and could leave the base URL", "give the path itself")
    return path


def segment_of(value: object) -> str:
    """A value as one segment of a path."""
    text = quote(text_of(value), safe="")
    if text in ("", ".", ".."):
        raise ConfigError("path", f"{text!r} cannot stand in a path", "give a value that names something")
    return text


def checked(headers: Headers) -> Pairs:
    """Headers that may be sent; ConfigError for a name or a value that would be more than that."""
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    left_out = HOP_BY_HOP
    for name, value in given:
        if not isinstance(name, str) or NAME.fullmatch(name) is None:
            raise ConfigError("headers", "a name is no header name", "give letters, digits and -")
        if not isinstance(value, str) or UNSAFE.search(value) is not None:
            raise ConfigError(f"headers {name}", "its value is no single line of text", "give what can be sent")
        if name.lower() == "connection":
            left_out = left_out | {token.strip().lower() for token in value.split(",")}
    return tuple((name, value) for name, value in given if name.lower() not in left_out)


def pairs_of(params: Params) -> Pairs:
    """A query: None is left out, a list is repeated, truth is true or false."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items() if isinstance(params, Mapping) else params:
        if isinstance(value, (list, tuple, set, frozenset)):
            pairs += [(text_of(name), text_of(one)) for one in value]
        elif value is not None:
            pairs.append((text_of(name), text_of(value)))
    return tuple(pairs)


def text_of(value: object) -> str:
    """Plain data as it stands in a URL; TypeError for anything else, ConfigError for text that is in no encoding."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if NO_TEXT.search(value) is not None:
            raise ConfigError("text", "it holds half a character", "decode it as what it is, or leave it out")
        return value
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (int, float, Decimal, UUID)):
        return str(value)
    msg = f"a {type(value).__name__} has no form in a URL"
    raise TypeError(msg)


def body_of(json: object, data: object) -> tuple[bytes, str]:
    """The bytes of a body, and what kind they are."""
    if json is not None:
        if data is not None:
            raise TypeError("give json= or data=, not both")
        return encode(json), "application/json"
    if isinstance(data, str):
        return data.encode(), "text/plain; charset=utf-8"
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), "application/octet-stream"
    if isinstance(data, Mapping):
        return urlencode(pairs_of(data)).encode(), "application/x-www-form-urlencoded"
    if isinstance(data, AsyncIterable):
        raise TypeError("a body that comes piece by piece can be sent once only: give it to stream()")
    msg = f"a {type(data).__name__} is no body: give bytes, str, or a dict for a form"
    raise TypeError(msg)


def key_of(key: str | bool | None) -> str | None:  # noqa: FBT001 - True asks for one to be made
    """The idempotency key that is sent; True: one of its own for this call."""
    if key is None or key is False:
        return None
    if key is True:
        return str(uuid4())
    if not isinstance(key, str) or not key or not key.isascii() or UNSAFE.search(key) is not None:
        raise ConfigError(
            "idempotency_key", "it is no single line of ASCII text", "give what names the deed: an order id"
        )
    return key


class BaseUrl:
    """A base URL: where requests go, and what goes with them only there."""

    __slots__ = ("address", "authorization", "host", "prefix", "scheme")

    def __init__(self, field: str, url: object) -> None:
        if not isinstance(url, str) or UNSAFE.search(url) is not None:
            raise ConfigError(field, "it is no URL", 'give "https://host/path"')
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(field, "its port is no number from 0 to 65535", "give host:port") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(field, "it names no server over http or https", 'give "https://host/path"')
        if parts.query or parts.fragment:
            raise ConfigError(field, "a base URL has no query and no fragment", "give them as http.params")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.scheme = parts.scheme
        self.host = parts.hostname
        self.address = f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")
        self.prefix = self.address + confined(parts.path).rstrip("/")
        self.authorization: str | None = None
        if parts.username is not None:  # for this server only, and in no text
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.authorization = "Basic " + b64encode(pair.encode()).decode()

    def __repr__(self) -> str:
        return f"<BaseUrl {self.prefix}>"
