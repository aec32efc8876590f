"""What may be kept of HTTP answers, and for whom: the rules of RFC 9111 that protect one user from another.

An answer is named by method, path and query, by the request headers that the reply's `Vary` names, and by who asked, as
far as the request says: its `Authorization` and `Cookie`. What a server calls `private`, or sets a cookie with, is kept
only where that, or `identity=`, says whose it is; `no-store` not at all. How long it is fresh is the operation's own
affair.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from fallbacks.spelling import spelled
from gateway.arguments import canonical
from gateway.http.reply import HttpReply
from gateway.http.request import HttpRequest, Pairs
from gateway.http.session import propagated
from gateway.memory import worth_remembering
from gateway.outcome import KeyNeeded
from gateway.policy import HttpPolicy

CREDENTIALS = frozenset({"authorization", "cookie"})
TRACES = frozenset(
    {
        *("traceparent", "tracestate", "baggage", "b3", "uber-trace-id", "sentry-trace", "x-request-id"),
        *("x-correlation-id", "x-amzn-trace-id", "x-cloud-trace-context", "x-b3-traceid", "x-b3-spanid"),
        *("x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"),
    }
)
"""Headers that are another one for each request, and change nothing about its answer."""
NOTHING = frozenset({b"", b"[]", b"{}", b"null", b'""'})
VARIES_KEPT = 10_000
BAD_STATUS = 400


class Names:
    """What the answers of one operation are remembered, and shared, under."""

    __slots__ = ("_identity", "_policy", "_secret", "_vary", "_where")

    def __init__(
        self, where: str, policy: HttpPolicy, *, identity: Callable[[], Hashable] | None = None, secret: bool = False
    ) -> None:
        self._where = where
        self._policy = policy
        self._identity = identity
        self._secret = secret
        self._vary: OrderedDict[Hashable, tuple[str, ...]] = OrderedDict()  # what the last reply said, where it did

    def key(self, request: HttpRequest, named: Hashable = None) -> tuple[Hashable, ...]:
        """The key that an answer to this request would be found under. `named`: what `key=` calls it.

        Raises KeyNeeded where `identity=` gives none.
        """
        base = self._base(request, named)
        vary = self._vary.get(base)
        return base if vary is None else (*base, ("vary", *values_of(vary, self._sent(request))))

    def flight_key(self, request: HttpRequest, named: Hashable = None) -> tuple[Hashable, ...]:
        """What requests have in common that may share one flight: all that a server could look at."""
        headers = {name: value for name, value in self._sent(request).items() if name not in TRACES | CREDENTIALS}
        return (*self._base(request, named), *sorted(headers.items()))

    def kept_under(
        self, request: HttpRequest, reply: HttpReply, named: Hashable = None, *, asked_for: bool = False
    ) -> tuple[Hashable, ...] | None:
        """The key for this answer; None if it is not to be kept. `asked_for`: also where the status is a no."""
        said = directives(reply.lines)
        if "no-store" in said or (reply.status >= BAD_STATUS and not asked_for):
            return None
        if "no-store" in directives(request.headers):
            return None
        base = self._base(request, named)
        if is_for_one(reply.lines, said) and not self._belongs(base):
            return None
        vary = vary_of(reply.lines)
        if vary is None:
            return None
        vary = tuple(name for name in vary if name not in CREDENTIALS)  # these are in every key
        if vary:
            self._vary[base] = vary
            self._vary.move_to_end(base)
            if len(self._vary) > VARIES_KEPT:
                self._vary.popitem(last=False)
            return (*base, ("vary", *values_of(vary, self._sent(request))))
        self._vary.pop(base, None)
        return base

    def is_shareable(self, request: HttpRequest, reply: HttpReply) -> bool:
        """Whether others who sent the same request at the same time may have this answer, too."""
        said = directives(reply.lines)
        for_one = "no-store" in said or is_for_one(reply.lines, said)
        return vary_of(reply.lines) is not None and not (for_one and not self._belongs(self._base(request, None)))

    def below(self, path: str) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names a request whose path begins so."""

        def meant(key: Hashable) -> bool:
            return type(key) is tuple and key[0] == self._where and (self._secret or str(key[2]).startswith(path))

        return meant

    def variants(self, key: tuple[Hashable, ...]) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names the same request, whatever the headers that its answer varies by."""
        base = key[:-1] if type(key[-1]) is tuple and key[-1][:1] == ("vary",) else key

        def meant(other: Hashable) -> bool:
            return type(other) is tuple and other[: len(base)] == base

        return meant

    def _base(self, request: HttpRequest, named: Hashable) -> tuple[Hashable, ...]:
        body = None if request.body is None else spelled(request.body)
        what: tuple[Hashable, ...] = (request.path, request.params, body)
        if named is not None:
            what = (named,)
        elif self._secret:
            what = (spelled(what),)
        return (self._where, request.method, *what, self._who(request))

    def _who(self, request: HttpRequest) -> Hashable:
        """Whose the answer is, as far as the request tells; no credentials stand in a key."""
        sent = self._sent(request)
        shown = tuple((name, sent[name]) for name in sorted(CREDENTIALS) if name in sent)
        who = None if self._identity is None else self._named(self._identity)
        return ("for", spelled(shown) if shown else None, who)

    def _named(self, identity: Callable[[], Hashable]) -> Hashable:
        try:
            return canonical(identity())
        except Exception as error:
            problem = f"{self._where}: its identity= gave none: {error!r}"
            raise KeyNeeded(f"{problem}; give a function that returns plain data") from error

    @staticmethod
    def _belongs(base: tuple[Hashable, ...]) -> bool:
        """Whether a key says whose it is."""
        return base[-1] != ("for", None, None) and base[-1] != ("for", None, canonical(None))

    def _sent(self, request: HttpRequest) -> dict[str, str]:
        """The headers of a request that are its own, by their names in small letters."""
        sent: dict[str, str] = {}
        if self._policy.propagate is not None:
            sent.update((name.lower(), value) for name, value in propagated(self._policy.propagate).items())
        own: dict[str, str] = {}
        for name, value in request.headers:
            small = name.lower()
            own[small] = f"{own[small]}, {value}" if small in own else value
        return {**sent, **own}


def directives(lines: Pairs) -> frozenset[str]:
    """The names of the directives in `Cache-Control`."""
    said = [value for name, value in lines if name.lower() == "cache-control"]
    if not said:
        return frozenset()
    return frozenset(part.partition("=")[0].strip().lower() for part in ",".join(said).split(","))


def is_for_one(lines: Pairs, said: frozenset[str]) -> bool:
    """Whether an answer is for who asked, and nobody else: the server says so, or begins a session with it."""
    return "private" in said or any(name.lower() == "set-cookie" for name, _ in lines)


def vary_of(lines: Pairs) -> tuple[str, ...] | None:
    """The names in `Vary`, in small letters and in order; None: it says that no other request is like this one."""
    said = [value for name, value in lines if name.lower() == "vary"]
    names = {part.strip().lower() for part in ",".join(said).split(",")} - {""}
    return None if "*" in names else tuple(sorted(names))


def values_of(names: Iterable[str], sent: dict[str, str]) -> tuple[Hashable, ...]:
    """What a request says under these names; credentials and all else as digests, since they may be secrets."""
    return tuple((name, spelled(sent[name]) if name in sent else None) for name in names)


def worth_keeping(value: Any) -> bool:
    """Whether a reply may take the place of an older one: a success with something in it. So with what it was made."""
    if not isinstance(value, HttpReply):
        return worth_remembering(value)
    return value.status < BAD_STATUS and value.body.strip() not in NOTHING


def size_of_reply(reply: HttpReply) -> int:
    """Its bytes: those of the body and of the header lines."""
    return len(reply.body) + sum(len(name) + len(value) for name, value in reply.lines)
