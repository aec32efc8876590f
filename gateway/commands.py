"""The commands that watch and tune a gateway that runs: they ask its admin server.

The token is GATEWAY_ADMIN_TOKEN (or GATEWAY_ADMIN_READ_TOKEN, to look): as an argument every process could read it.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click

F = TypeVar("F", bound=Callable[..., Any])
PATIENCE = 10.0
"""Seconds that the server gets to answer."""
WRITE_TOKEN, READ_TOKEN = "GATEWAY_ADMIN_TOKEN", "GATEWAY_ADMIN_READ_TOKEN"
BY_DEFAULT = "default"
STALE = 412


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answered: what it said, and the tag of a policy where it gave one."""

    content: Any
    etag: str | None = None


class Refused(click.ClickException):
    """The server says no."""

    def __init__(self, status: int, content: Any) -> None:
        try:
            errors = content["errors"] if isinstance(content, dict) else []
            lines = [": ".join(filter(None, (one["field"], f"{one['problem']}; {one['remedy']}"))) for one in errors]
        except (KeyError, TypeError):  # whoever says this no is no admin server
            lines = []
        super().__init__("\n".join(map(plain, lines)) or f"the server answers {status}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An admin server, and what is said of who asks."""

    url: str
    why: str = ""

    def ask(self, method: str, path: str, *, body: Any = None, etag: str | None = None) -> Reply:
        """One request. Raises click's errors, with all that the server has to say."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        headers = {"Accept": "application/json", "X-Gateway-Operator": quote(operator())}
        token = token_in(WRITE_TOKEN, READ_TOKEN)
        if method != "GET" and self.why:
            headers["X-Gateway-Reason"] = quote(self.why)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if etag is not None:
            headers["If-Match"] = etag
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = kind(parts.hostname or "", parts.port, timeout=PATIENCE)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, parts.path.rstrip("/") + path, content, headers)
            return reply_of(connection.getresponse())
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise click.ClickException(f"{plain(self.url)} cannot be asked: {reason}") from None
        finally:
            connection.close()

    def of(self, upstream: str, deed: str) -> str:
        """The path of something that is done to an upstream."""
        return f"/upstreams/{quote(upstream, safe='')}/{deed}"


def reply_of(response: HTTPResponse) -> Reply:
    """What is in a response; raises Refused for a no."""
    text = response.read()
    try:
        content = json.loads(text) if text else None
    except ValueError:
        content = None
    if response.status >= 300:  # noqa: PLR2004 - anything but a success
        raise Refused(response.status, content)
    if not isinstance(content, dict):
        raise click.ClickException("what answers there is no admin server")
    return Reply(content=content, etag=response.headers.get("ETag"))


def token_in(*variables: str) -> str | None:
    """The token in the first of these that has one. One that no header carries is an error, which does not show it."""
    for variable in variables:
        token = os.environ.get(variable)
        if token and not all("!" <= c <= "~" for c in token):
            problem = "it has something else than visible ASCII characters in it, the end of a line maybe"
            raise click.ClickException(f"{variable} is no token: {problem}")
        if token:
            return token
    return None


def operator() -> str:
    """Who types this, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def plain(text: str) -> str:
    """A text that controls no terminal; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def say(text: str) -> None:
    """A line, or several."""
    click.echo(plain(text))


# -- options


def is_base_url(url: str) -> bool:
    """Whether something over HTTP can be asked there, and below it."""
    try:
        parts = urlsplit(url)
        known = parts.port is None or parts.port > 0
    except ValueError:  # half an IPv6 address; a port that is none
        return False
    return known and parts.scheme in {"http", "https"} and bool(parts.hostname) and not (parts.query or parts.fragment)


def admin_url(_: click.Context, option: click.Parameter, value: str) -> str:
    """A URL that can be asked, with nothing secret in it."""
    if not is_base_url(value) or urlsplit(value).username:
        raise click.BadParameter(f"{value!r} is no URL such as http://127.0.0.1:8080", param=option)
    return value


def asking(function: F) -> F:
    """The option that says where the admin server is."""
    return click.option(
        "--admin",
        default="http://127.0.0.1:8080",
        show_default=True,
        envvar="GATEWAY_ADMIN",
        callback=admin_url,
        help="The admin server.",
    )(function)


def changing(function: F) -> F:
    """The options of what changes something."""
    return asking(click.option("--why", default="", help="For the audit.")(function))


def upstream(function: F) -> F:
    """The argument that names one."""
    return click.argument("upstream")(function)


# -- looking


@click.command()
@click.argument("upstream", required=False)
@click.option("--json", "as_json", is_flag=True, help="All of it, for scripts.")
@asking
def snapshot(upstream: str | None, as_json: bool, admin: str) -> None:  # noqa: FBT001 - click gives them by name
    """Show the numbers of all upstreams, or of one, as they are now."""
    document = Server(url=admin).ask("GET", "/state").content
    known = document["upstreams"]
    if upstream is not None:
        document["upstreams"] = [one for one in known if one["name"] == upstream]
        if not document["upstreams"]:
            names = ", ".join(one["name"] for one in known) or "none yet"
            raise click.ClickException(plain(f"there is no upstream {upstream!r}; known are: {names}"))
        document["events"] = [event for event in document["events"] if event["upstream"] == upstream]
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    rows: list[tuple[str, ...]] = [
        ("upstream", "circuit", "in use", "waiting", "asked/s", "degraded/s", "failed/s", "p50", "p99", "")
    ]
    rows += [row_of(one) for one in document["upstreams"]]
    say(table(rows))
    if not document["gateway"]["adds_up"]:
        raise click.ClickException("the numbers do not add up (promise 10)")


def row_of(one: Mapping[str, Any]) -> tuple[str, ...]:
    """An upstream in one line."""
    rates, latency, pool = one["window"]["rates"], one["window"]["latency"], one["pool"]
    degraded = sum(rates[name] for name in ("last_good", "static", "handler", "alternate"))
    failed = sum(rates[name] for name in ("failed", "unknown", "rejected"))
    return (
        one["name"],
        one["circuit"]["state"],
        f"{pool['in_use']}/{pool['limit']}",
        f"{pool['waiting']}/{pool['queue']}",
        *(f"{rate:.1f}" for rate in (rates["asked"], degraded, failed)),
        *(f"{latency[name] * 1000:.0f} ms" for name in ("p50", "p99")),
        f"tuned: {', '.join(one['drift'])}" if one["drift"] else "",
    )


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows with their columns below each other."""
    every = [[plain(cell).replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every
    )


@click.command()
@click.argument("upstream", required=False)
@click.option("--json", "as_json", is_flag=True, help="With the numbers behind it, for scripts.")
@asking
def advise(upstream: str | None, as_json: bool, admin: str) -> None:  # noqa: FBT001 - as above
    """Say what the numbers say of the knobs, of all upstreams or of one."""
    query = f"?{urlencode({'upstream': upstream})}" if upstream is not None else ""
    advice = Server(url=admin).ask("GET", f"/advice{query}").content
    if as_json:
        click.echo(json.dumps(advice, indent=2))
        return
    for one in advice["advice"]:
        change = "fits" if one["now"] == one["suggested"] else f"-> {one['suggested']}"
        say(f"{one['upstream']}: {one['knob']} {one['now']} {change} (sure: {one['sure']})")
        say(f"  {one['why']}")
    if not advice["advice"]:
        say("no advice yet: it takes some traffic, and some time")


# -- tuning


@click.command()
@upstream
@click.argument("settings", nargs=-1, required=True, metavar="KNOB=VALUE...")
@changing
def tune(upstream: str, settings: tuple[str, ...], why: str, admin: str) -> None:
    """Change knobs of an upstream while it runs, all of them or none.

    gateway tune ratings bulkhead.limit=40 timeout.attempt=800ms

    Values are written as in a policy file: 40, 300ms, 0.5, inf, none, true. "default" is as by default.
    """
    server = Server(url=admin, why=why)
    path = server.of(upstream, "policy")
    patch = patch_of(settings)
    before = server.ask("GET", path)
    try:
        after = server.ask("PATCH", path, body=patch, etag=before.etag)
    except Refused as error:
        if error.status == STALE:
            raise click.ClickException("somebody has changed it at this very moment; look, and tune again") from None
        raise
    show_changes(upstream, flat(before.content), flat(after.content))


def show_changes(upstream: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """What is different now, also what only follows."""
    both = {knob: (spelled(old.get(knob)), spelled(new.get(knob))) for knob in dict.fromkeys([*old, *new])}
    changed = {knob: values for knob, values in both.items() if values[0] != values[1]}
    for knob, (before, after) in changed.items():
        say(f"{upstream}: {knob} {before} -> {after}")
    if not changed:
        say(f"{upstream}: as it was")


def patch_of(settings: Iterable[str]) -> dict[str, Any]:
    """The merge patch that settings of knobs are."""
    patch: dict[str, Any] = {}
    for setting in settings:
        knob, equals, text = setting.partition("=")
        if not equals or not all(knob.split(".")):
            raise click.UsageError(f"{setting!r} is no setting such as bulkhead.limit=40")
        *where, key = knob.split(".")
        inner = patch
        for part in where:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise click.UsageError(f"{knob} is set in part and as a whole")
        if key in inner:
            raise click.UsageError(f"{knob} is set twice")
        inner[key] = value_of(text)
    return patch


def value_of(text: str) -> Any:
    """A value: JSON where it is some, else a text."""
    if text == BY_DEFAULT:
        return None
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return text


def no_constant(text: str) -> NoReturn:
    """NaN and Infinity, which Python takes for JSON."""
    raise ValueError(text)


def flat(policy: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A policy as paths and values; a wait strategy is a value."""
    values: dict[str, Any] = {}
    for key, value in policy.items():
        if isinstance(value, dict) and not key.startswith("wait"):
            values |= flat(value, f"{where}{key}.")
        else:
            values[where + key] = value
    return values


def spelled(value: Any) -> str:
    """A value, as one would write it."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def do(admin: str, why: str, upstream: str, deed: str, **body: Any) -> Any:
    """Do something to an upstream; what the server says of it."""
    server = Server(url=admin, why=why)
    said = {name: value for name, value in body.items() if value is not None}
    done = server.ask("POST", server.of(upstream, deed), body=said).content
    if done.get("recorded") is False:
        click.echo("warning: it is done, but the audit could not be written", err=True)
    return done


@click.command()
@upstream
@changing
def fold(upstream: str, why: str, admin: str) -> None:
    """Write what is tuned into the policy file, in its place: it is no drift any more."""
    done = do(admin, why, upstream, "tuned/fold")
    for knob, (old, new) in done["folded"].items():
        say(f"{upstream}: {knob} {spelled(old)} -> {spelled(new)} in {done['file']}")
    if not done["folded"]:
        say(f"{upstream}: nothing is tuned")


@click.command()
@upstream
@changing
def drop(upstream: str, why: str, admin: str) -> None:
    """Take back what is tuned: what the policy file or the code says holds again."""
    done = do(admin, why, upstream, "tuned/drop")
    for knob, (told, tuned) in done["dropped"].items():
        say(f"{upstream}: {knob} {spelled(tuned)} -> {spelled(told)}")
    if not done["dropped"]:
        say(f"{upstream}: nothing is tuned")


# -- by hand


@click.command()
@upstream
@click.option("--circuit", help="The key of one circuit; else all of them.")
@changing
def isolate(upstream: str, circuit: str | None, why: str, admin: str) -> None:
    """Send nothing to an upstream any more: plan B answers, until `gateway restore`."""
    do(admin, why, upstream, "isolate", circuit=circuit)
    say(f"{upstream}: isolated" + (f", circuit {circuit}" if circuit is not None else ""))


@click.command()
@upstream
@click.option("--circuit", help="The key of one circuit; else all of them.")
@click.option("--endpoint", help="The URL of an endpoint that was drained.")
@changing
def restore(upstream: str, circuit: str | None, endpoint: str | None, why: str, admin: str) -> None:
    """Let calls through again: close the circuits, or let a drained endpoint in."""
    if endpoint is not None and circuit is not None:
        raise click.UsageError("--endpoint and --circuit are two things; restore one after the other")
    if endpoint is not None:
        do(admin, why, upstream, "endpoints/restore", url=endpoint)
        say(f"{upstream}: calls go to {endpoint} again")
        return
    do(admin, why, upstream, "restore", circuit=circuit)
    say(f"{upstream}: restored" + (f", circuit {circuit}" if circuit is not None else ""))


@click.command()
@upstream
@click.argument("endpoint")
@changing
def drain(upstream: str, endpoint: str, why: str, admin: str) -> None:
    """Send no new calls to an ENDPOINT (its URL), until `gateway restore UPSTREAM --endpoint ENDPOINT`."""
    do(admin, why, upstream, "endpoints/drain", url=endpoint)
    say(f"{upstream}: no new calls go to {endpoint}")


@click.command()
@upstream
@click.argument("switch", type=click.Choice(["on", "off"]))
@changing
def enforce(upstream: str, switch: str, why: str, admin: str) -> None:
    """Let the circuit refuse calls (on), or only count what it would have refused (off)."""
    do(admin, why, upstream, "enforce", enforce=switch == "on")
    say(f"{upstream}: its circuit {'refuses calls' if switch == 'on' else 'only counts'}")


@click.command()
@upstream
@click.argument("operation", required=False)
@click.argument("args", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="ARGS are JSON: 603 is a number. Else they are texts.")
@changing
def forget(  # noqa: PLR0917 - as above
    upstream: str,
    operation: str | None,
    args: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - as above
    why: str,
    admin: str,
) -> None:
    """Forget remembered answers: of all operations, of one, or the one to these ARGS of it."""
    given = [value_of(arg) for arg in args] if as_json else list(args)
    done = do(admin, why, upstream, "forget", operation=operation, args=given or None)
    number = done.get("forgotten", 0)
    say(f"{upstream}: {number} answer{'s' * (number != 1)} forgotten")


COMMANDS = (advise, drain, drop, enforce, fold, forget, isolate, restore, snapshot, tune)
"""All of them, for the command line."""
