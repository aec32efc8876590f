"""What may be kept of HTTP answers, and for whom: the rules of RFC 9111 that protect one user from another.

An answer is named by method, path and query, by the request headers that the reply's `Vary` names, and by who asked, as
far as the request says: its `Authorization` and `Cookie`. What a server calls `private`, or sets a cookie with, is kept
only where that, or `identity=`, says whose it is; `no-store` not at all. How long it is fresh is the operation's own
affair.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sized
from functools import lru_cache
from typing import Any

from msgspec import Struct

from fallbacks.copying import KINDS_KNOWN
from fallbacks.spelling import spelled
from gateway.arguments import canonical
from gateway.http.reply import HttpReply
from gateway.http.request import HttpRequest, Pairs
from gateway.http.session import NONE, propagated
from gateway.memory import worth_remembering
from gateway.outcome import KeyNeeded
from gateway.policy import HttpPolicy

CREDENTIALS = frozenset({"authorization", "cookie"})
TRACES = frozenset(
    {
        *("traceparent", "tracestate", "b3", "uber-trace-id", "sentry-trace", "x-request-id", "x-correlation-id"),
        *("x-amzn-trace-id", "x-cloud-trace-context", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"),
        *("x-b3-sampled", "x-b3-flags"),
    }
)
"""Headers that are another one for each request, and change nothing about its answer. Not `baggage`: that may name the
user, and a server may go by it."""
CODING = "accept-encoding"
"""It is said by the client itself, the same for all, and what it changes is undone before a reply is a reply."""
NOTHING = frozenset({b"", b"[]", b"{}", b"null", b'""'})
VARIES_KEPT = 10_000
SUCCESSES = range(200, 300)
IN_PART = frozenset({206, 304})
"""Answers to what only this request asked: for a part, or whether something has changed. They are nobody else's."""

ANYBODY = ("for", None, None)
NOBODY = frozenset({ANYBODY, ("for", None, canonical(None))})
"""Where a key says whose it is: nobody's."""

Key = tuple[Hashable, ...]


class Names:
    """What the answers of one operation are remembered, and shared, under.

    `constant`: headers that all its requests have, so that they tell none from another.
    """

    __slots__ = ("_constant", "_identity", "_policy", "_secret", "_vary", "_where")

    def __init__(
        self,
        where: str,
        policy: HttpPolicy,
        *,
        identity: Callable[[], Hashable] | None = None,
        secret: bool = False,
        constant: Pairs = (),
    ) -> None:
        self._where = where
        self._policy = policy
        self._identity = identity
        self._secret = secret
        self._constant = {name.lower(): value for name, value in constant}
        self._vary: OrderedDict[Key, tuple[tuple[str, ...], Key]] = OrderedDict()  # of the last reply, and its own key

    def key(self, request: HttpRequest, named: Hashable = None) -> Key:
        """The key that an answer to this request would be found under. `named`: what `key=` calls it.

        Raises KeyNeeded where `identity=` gives none.
        """
        sent = self._sent(request)
        base = self._base(request, named, sent)
        vary, last = self._vary.get(base, ((), None))
        if not vary and last is not None:
            return last  # whatever this request says: the server does not look at it
        return self._variant(base, vary, sent)

    def flight_key(self, request: HttpRequest, key: Key | None) -> Key | None:
        """What requests have in common that may share one flight: all that a server could look at."""
        if key is None:
            return None
        headers = {name: value for name, value in self._sent(request).items() if name not in TRACES | CREDENTIALS}
        return (*base_of(key), *sorted(headers.items()))

    def kept_under(self, request: HttpRequest, reply: HttpReply, key: Key, *, asked_for: bool = False) -> Key | None:
        """The key for the answer to a call that began with this key; None if it is not to be kept.

        `asked_for`: also where the status is no success.
        """
        if reply.status in IN_PART or not (asked_for or reply.status in SUCCESSES):
            return None
        said, sent, base = said_in(reply.lines), self._sent(request), base_of(key)
        if said.no_store or (request.headers and said_in(request.headers).no_store):
            return None
        vary = said.vary
        if vary is None or not self._is_still(base, sent) or (said.for_one and not belongs(base)):
            return None
        if vary:
            vary = tuple(name for name in vary if name not in CREDENTIALS and (name != CODING or name in sent))
        name = self._variant(base, vary, sent)
        self._vary[base] = (vary, name)
        self._vary.move_to_end(base)
        if len(self._vary) > VARIES_KEPT:
            self._vary.popitem(last=False)
        return name

    def is_shareable(self, request: HttpRequest, reply: HttpReply, key: Key | None) -> bool:
        """Whether others who sent the same request at the same time may have this answer, too.

        No key: the answers were forgotten meanwhile, and with them whose this is.
        """
        said = said_in(reply.lines)
        if said.vary is None:
            return False
        base = None if key is None else base_of(key)
        if base is not None and not self._is_still(base, self._sent(request)):
            return False
        return (base is not None and belongs(base)) or not (said.no_store or said.for_one)

    def below(self, path: str, *, whole: bool = False) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names a request whose path begins so, or, if that is the `whole` of it, is this."""

        def meant(key: Hashable) -> bool:
            if type(key) is not tuple or key[0] != self._where:
                return False
            return self._secret or (key[2] == path if whole else str(key[2]).startswith(path))

        return meant

    def called(self, meant: Callable[[Hashable], bool]) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names a request that `key=` calls what is meant."""
        return lambda key: type(key) is tuple and key[0] == self._where and meant(key[2])

    @staticmethod
    def variants(key: Key) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names the same request, whatever the headers that its answer varies by."""
        base = base_of(key)

        def meant(other: Hashable) -> bool:
            return type(other) is tuple and other[: len(base)] == base

        return meant

    def _base(self, request: HttpRequest, named: Hashable, sent: dict[str, str]) -> Key:
        body = None if request.body is None else spelled(request.body)
        what: Key = (request.path, request.params, body)
        if named is not None:
            what = (named,)
        elif self._secret:
            what = (spelled(what),)
        if request.idempotency_key is not None:  # it names the deed: the answer to another one is no answer
            what = (*what, spelled(request.idempotency_key))
        return (self._where, request.method, *what, self._who(sent))

    def _who(self, sent: dict[str, str]) -> Hashable:
        """Whose the answer is, as far as the request tells; no credentials stand in a key."""
        if not sent and self._identity is None:
            return ANYBODY
        shown = tuple((name, sent[name]) for name in sorted(CREDENTIALS) if name in sent)
        who = None if self._identity is None else self._named(self._identity)
        return ("for", spelled(shown) if shown else None, who)

    def _is_still(self, base: Key, sent: dict[str, str]) -> bool:
        """Whether who asks is who asked when the call began: what tells that may have changed while it waited."""
        try:
            return self._who(sent) == base[-1]
        except KeyNeeded:
            return False

    def _named(self, identity: Callable[[], Hashable]) -> Hashable:
        try:
            return canonical(identity())
        except Exception as error:
            problem = f"{self._where}: its identity= gave none: {error!r}"
            raise KeyNeeded(f"{problem}; give a function that returns plain data") from error

    def _variant(self, base: Key, vary: tuple[str, ...], sent: dict[str, str]) -> Key:
        """The key of one of the answers to the same request.

        A request without headers of its own has one only, whatever the server looks at: so it is found after a restart,
        when nobody knows yet what that is. One with such headers is never answered with that.
        """
        if not sent:
            return base
        own = sent.keys() - CREDENTIALS - TRACES
        if all(sent[name] == self._constant.get(name) for name in own):
            return base
        return (*base, ("vary", *values_of(vary, sent)))

    def _sent(self, request: HttpRequest) -> dict[str, str]:
        """The headers of a request that are its own, by their names in small letters."""
        context = NONE if self._policy.propagate is None else propagated(self._policy.propagate)
        if not context and not request.headers:
            return {}
        sent = {name.lower(): value for name, value in context.items()}
        own: dict[str, str] = {}
        for name, value in request.headers:
            small = name.lower()
            own[small] = f"{own[small]}, {value}" if small in own else value
        return {**sent, **own}


def base_of(key: Key) -> Key:
    """A key without what its answer varies by."""
    last = key[-1]
    return key[:-1] if type(last) is tuple and last[0] == "vary" else key


def belongs(base: Key) -> bool:
    """Whether a key says whose it is."""
    return base[-1] not in NOBODY


class Said(Struct, frozen=True):
    """What header lines say of who may have an answer.

    `for_one`: who asked, and nobody else; the server says so, or begins a session with it. `vary`: the names of the
    headers that matter; None: no other request is like this one.
    """

    no_store: bool
    for_one: bool
    vary: tuple[str, ...] | None


def said_in(lines: Pairs) -> Said:
    """What these lines say; one look at each, as this is on the way of every reply that is remembered."""
    control, vary, cookie = "", "", False
    for name, value in lines:
        small = name.lower()
        if small == "cache-control":
            control = f"{control},{value}"
        elif small == "vary":
            vary = f"{vary},{value}"
        elif small == "set-cookie":
            cookie = True
    said = directives(control)
    return Said("no-store" in said, cookie or "private" in said, names_in(vary))


@lru_cache(maxsize=256)
def directives(control: str) -> frozenset[str]:
    """The names of the directives in a `Cache-Control`."""
    return frozenset(part.partition("=")[0].strip().lower() for part in control.split(","))


@lru_cache(maxsize=256)
def names_in(vary: str) -> tuple[str, ...] | None:
    """The names in a `Vary`, in small letters and in order; None for one that makes each request another."""
    names = {part.strip().lower() for part in vary.split(",")} - {""}
    return None if "*" in names or not names.isdisjoint(TRACES) else tuple(sorted(names))


def values_of(names: Iterable[str], sent: dict[str, str]) -> tuple[Hashable, ...]:
    """What a request says under these names; credentials and all else as digests, since they may be secrets."""
    return tuple((name, spelled(sent[name]) if name in sent else None) for name in names)


def worth_keeping(value: Any, method: str = "GET") -> bool:
    """Whether a reply may take the place of an older one: a success with something in it. So with what it was made."""
    kind: Any = type(value)
    if kind is not HttpReply:
        return worth_remembering(value) if may_be_empty(kind) else value is not None
    return value.status in SUCCESSES and (method == "HEAD" or value.body.strip() not in NOTHING)


@lru_cache(maxsize=KINDS_KNOWN)
def may_be_empty(kind: type) -> bool:
    """Whether values of a class have a length; known by class, as to ask it of each Struct is dear."""
    return issubclass(kind, Sized)


def size_of_reply(reply: HttpReply) -> int:
    """Its bytes: those of the body and of the header lines."""
    return len(reply.body) + sum(len(name) + len(value) for name, value in reply.lines)
