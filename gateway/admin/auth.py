"""Who may look, and who may change something.

A request has to pass, in this order: a host name that is ours (or a name that an attacker points at us would make his
page ours: DNS rebinding), no token in its URL (logs keep those), a token that may do it, and, if it changes something,
no sign that another site's page sent it (CSRF). Who guesses tokens is soon told to wait, and not listened to meanwhile.

Sources: OWASP's cheat sheets on CSRF and on DNS rebinding; RFC 6750; the checks of Go's `CrossOriginProtection`.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from math import ceil
from time import monotonic
from typing import Literal
from urllib.parse import unquote_plus

from aiohttp import web
from yarl import URL

from gateway.outcome import ConfigError

Role = Literal["read", "write"]
WRITE_TOKEN, READ_TOKEN = "GATEWAY_ADMIN_TOKEN", "GATEWAY_ADMIN_READ_TOKEN"
GUESSES = 10
"""Wrong tokens that a remote may send before it is not listened to; so many typing errors are none."""
FORGIVEN_AFTER = 6.0
"""Seconds after which each of them is forgotten: ten a minute find nothing."""
REMOTES = 1000
"""Remotes whose guesses are counted; over it the one that has not guessed for longest is forgotten."""
IPV6_NETWORK = 64
"""Bits of an IPv6 address that tell remotes apart: one customer has all the rest."""
IN_URL = frozenset({"token", "access_token", "api_key", "apikey", "auth", "authorization", "password", "bearer"})
OURS = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class NotAllowed(Exception):
    """This request may not be answered: status, what is wrong, what would be right, headers that say more."""

    def __init__(self, status: int, problem: str, remedy: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, problem, remedy)
        self.status, self.problem, self.remedy, self.headers = status, problem, remedy, headers or {}


class Guards:
    """What a request has to pass. `host`: where we listen; `hosts`: other names that lead to us.

    Raises ConfigError for tokens that could never be sent, and where everybody could come in.
    """

    def __init__(
        self,
        *,
        host: str,
        token: str | None = None,
        read_token: str | None = None,
        hosts: Collection[str] = (),
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        token = token if token is not None else environment.get(WRITE_TOKEN) or None
        read_token = read_token if read_token is not None else environment.get(READ_TOKEN) or None
        for field, secret in (("token", token), ("read_token", read_token)):
            check_token(f"admin {field}", secret)
        if token is not None and token == read_token:
            raise ConfigError("admin read_token", "it is the token that may write", "give another one, or none")
        self.open = token is None and read_token is None
        if self.open and not is_loopback(host):
            problem = f"{host or 'every address'} is reached by others, and there is no token"
            raise ConfigError("admin host", problem, f'give token=, or {WRITE_TOKEN}, or listen on "127.0.0.1"')
        secrets: tuple[tuple[Role, str | None], ...] = (("write", token), ("read", read_token))
        self._secrets = [(role, digest(secret)) for role, secret in secrets if secret is not None]
        self._names = {*OURS, host.lower(), *(name.lower() for name in hosts)}
        self._by_number = not is_loopback(host)
        self._guesses = Guesses(clock)

    def check_host(self, request: web.Request) -> None:
        """Raise unless the request means us."""
        name = host_of(request)
        if name in self._names or (self._by_number and is_address(name)):
            return
        raise NotAllowed(403, "this host name is not ours", "use 127.0.0.1, or name it to serve(hosts=[...])")

    def check_url(self, request: web.Request) -> None:
        """Raise for what is called a token where logs will keep it."""
        if any(name.lower() in IN_URL for name in request.query):
            raise self._kept_by_logs()

    def role_of(self, request: web.Request) -> Role:
        """What the request may do. Raises for one that may do nothing, and for any token in its URL.

        Only who has a token is told of that: anybody else would learn from it whether a word is one, uncounted.
        """
        if self.open:
            return "write"
        remote = remote_of(request.remote or "")
        wait = self._guesses.wait_for(remote)
        if wait > 0:
            seconds = str(ceil(wait))
            raise NotAllowed(429, "too many wrong tokens", f"wait {seconds} s", {"Retry-After": seconds})
        given = request.headers.getall("Authorization", [])
        if not given:
            raise NotAllowed(401, "a token is needed", *self._bearer())
        role = self._role_by(given[0]) if len(given) == 1 else None
        if role is None:
            self._guesses.count(remote)
            raise NotAllowed(401, "this token is not known", *self._bearer())
        if self._has_secret(request.path_qs):
            raise self._kept_by_logs()
        return role

    def check_write(self, request: web.Request, role: Role) -> None:
        """Raise unless the request may change something."""
        if role != "write":
            raise NotAllowed(403, "this token may look, and change nothing", f"send the token of {WRITE_TOKEN}")
        if comes_from_elsewhere(request):
            raise NotAllowed(403, "another site may not change anything here", "use the page of this server")

    def _role_by(self, header: str) -> Role | None:
        """What a header gives leave to do. As a password, which Hystrix' dashboard can send, a token may only look.

        A browser would send a password by itself, with whatever another site lets it send.
        """
        scheme, _, secret = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._role(secret.strip())
        if scheme.lower() == "basic":
            try:
                _, _, secret = b64decode(secret.strip(), validate=True).decode().partition(":")
            except ValueError:
                return None
            return "read" if self._role(secret) else None
        return None

    def _role(self, secret: str) -> Role | None:
        """Whose token it is. All are compared, in a time that says nothing of how near it comes to any."""
        given, found = digest(secret), None
        for role, known in self._secrets:
            if compare_digest(given, known):
                found = role
        return found

    def _has_secret(self, target: str) -> bool:
        """Whether some part of a URL is a token."""
        if len(target) > len("/?&=") * 4096:
            return False
        words = target.replace("?", "/").replace("&", "/").replace("=", "/").split("/")
        return any(self._role(unquote_plus(word)) is not None for word in words if word)

    def _kept_by_logs(self) -> NotAllowed:
        status = 400 if self.open else 401
        return NotAllowed(status, "a token in a URL is kept by logs", *self._bearer("change it, for it is known"))

    def _bearer(self, also: str = "") -> tuple[str, Mapping[str, str]]:
        remedy = "send it as the header `Authorization: Bearer TOKEN`" + (f", and {also}" if also else "")
        return remedy, {} if self.open else {"WWW-Authenticate": 'Bearer realm="gateway"'}


class Guesses:
    """Wrong tokens, by who sent them: so many at once, then one for each that is forgotten."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._made: OrderedDict[str, float] = OrderedDict()  # when all of a remote's are forgotten

    def count(self, remote: str) -> None:
        """One more."""
        now = self._clock()
        self._made[remote] = max(now, self._made.pop(remote, now)) + FORGIVEN_AFTER
        while len(self._made) > REMOTES:
            self._made.popitem(last=False)

    def wait_for(self, remote: str) -> float:
        """Seconds until this remote is listened to."""
        return self._made.get(remote, 0.0) - self._clock() - (GUESSES - 1) * FORGIVEN_AFTER

    def __len__(self) -> int:
        return len(self._made)


def has_token(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment gives one."""
    return bool(environment.get(WRITE_TOKEN) or environment.get(READ_TOKEN))


def check_token(field: str, secret: object) -> None:
    """Raise for a token that no header could carry."""
    if secret is None:
        return
    if not isinstance(secret, str) or not secret or any(not "!" <= c <= "~" for c in secret):
        raise ConfigError(field, "it is no word of visible ASCII characters", "give secrets.token_urlsafe(), say")


def digest(secret: str) -> bytes:
    """A token as bytes of one length: comparing them does not even tell how long it is."""
    return sha256(secret.encode(errors="surrogateescape")).digest()


def host_of(request: web.Request) -> str:
    """The name in the Host header, without the port; "" if there is none, or several."""
    given = request.headers.getall("Host", [])
    if len(given) != 1:
        return ""
    name = given[0].lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def is_address(name: str) -> bool:
    """Whether it is a number, which no attacker can point elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def remote_of(address: str) -> str:
    """Who is told apart by an address: of an IPv6 one only its network."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if not isinstance(known, IPv6Address):
        return address
    if known.ipv4_mapped is not None:
        return str(known.ipv4_mapped)
    return f"{IPv6Address(int(known) >> IPV6_NETWORK << IPV6_NETWORK)}/{IPV6_NETWORK}"


def comes_from_elsewhere(request: web.Request) -> bool:
    """Whether a browser says that another site sent this. Programs such as curl say nothing, and have tokens."""
    if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        return True
    origins = request.headers.getall("Origin", [])
    if not origins:
        return False
    try:
        return len(origins) > 1 or URL(origins[0]).authority.lower() != URL(f"//{request.host}").authority.lower()
    except ValueError:
        return True
