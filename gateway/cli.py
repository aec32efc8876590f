"""The command `gateway`. It imports what a command needs when the command runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gateway import commands

SERVICES = ("catalog", "info", "ratings")
HIGHEST_PORT = 65535
PORT = click.IntRange(0, HIGHEST_PORT)
MOST_INSTANCES = 9
SVG = click.Path(dir_okay=False, writable=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="async-worker-gateway", prog_name="gateway")
def main() -> None:
    """An async gateway: every upstream has its own pool, circuit, limits on time and plan B."""


def http_url(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A URL that can be asked."""
    if value is not None and not commands.is_base_url(value):
        raise click.BadParameter(f"{value!r} is no base URL such as http://127.0.0.1:8083", param=option)
    return value


def http_urls(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """URLs that can be asked."""
    for value in values:
        http_url(context, option, value)
    return values


@main.command()
@click.argument("service", required=False, type=click.Choice(SERVICES))
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen on this address.")
@click.option("--port", type=PORT, help="With SERVICE: its port, 0 for any free one.")
@click.option("--catalog-port", type=PORT, default=8081, show_default=True, help="0 for any free one, here and below.")
@click.option("--info-port", type=PORT, default=8082, show_default=True)
@click.option("--ratings-port", type=PORT, default=8083, show_default=True)
@click.option(
    "--admin-port", type=PORT, default=8080, show_default=True, help="To watch and tune the catalog's gateway."
)
@click.option("--info-url", callback=http_url, help="Let the catalog ask this info service instead of our own.")
@click.option(
    "--ratings-url",
    callback=http_urls,
    multiple=True,
    help="Let the catalog ask this ratings service instead of our own. Once for each of its instances.",
)
@click.option(
    "--instances",
    type=click.IntRange(1, MOST_INSTANCES),
    default=1,
    show_default=True,
    help="How many ratings services; --ratings-port is that of the first.",
)
@click.option(
    "--memory",
    type=click.Path(dir_okay=False),
    help="Let the catalog remember in this file; none: only until it ends.  [default: one in your cache folder]",
)
@click.option("--scenario", is_flag=True, help="Play a minute of faults under load, print what becomes of each page.")
@click.option("--seconds", type=click.IntRange(12, 3600), help="With --scenario: how long it is.  [default: 60]")
@click.option("--svg", type=SVG, help="With --scenario: draw it into this file.  [default: scenario*.svg]")
@click.option("--unprotected", is_flag=True, help="With --scenario: without a gateway, for comparison.")
@click.option("--no-timeouts", is_flag=True, help="With --unprotected: and without any limit on time.")
@click.option("--from-parent", type=int, hidden=True, help="Serve on this inherited socket until standard input ends.")
@click.option("--admin-from-parent", type=int, hidden=True, help="Let operators in on this inherited socket.")
def demo(service: str | None, port: int | None, **options: Any) -> None:
    """Run the movie catalog: three services over HTTP, or one SERVICE of them alone. Ctrl-C ends it.

    Each can be made to misbehave: POST /fault/MODE, where MODE is one of hang, fail, slow, drip, flood, reset and none.
    """
    if service is None and port is not None:
        raise click.UsageError("--port goes with a SERVICE; all three have --catalog-port, --info-port, --ratings-port")
    check_scenario(service, **options)
    check_instances(service, **options)
    check_memory(service, **options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))  # from here on; imports take a moment
    if options["scenario"]:
        play(**options)
    elif service is None:
        run_all(**options)
    else:
        run_one(service, port, **options)


@main.command()
@click.argument("file", type=click.Path())
def check(file: str) -> None:
    """Say all that is wrong with the policies in FILE, one line each. Exits with 1 if anything is."""
    from gateway.config.watch import PolicyFile, located, one_line
    from gateway.outcome import ConfigError
    from gateway.upstream import unwise

    try:
        read = PolicyFile(file).read()
    except ConfigError as error:
        for line in located(error, name=file):
            click.echo(line, err=True)
        sys.exit(1)
    policies = read.policies
    for name, policy in policies.items():
        for warning in unwise(policy):
            text = "its numbers are unwise; some are the environment's, and not shown" if read.hidden[name] else warning
            click.echo(one_line(f"{file}: warning: {name}: {text}"), err=True)
    upstreams = f"{len(policies)} upstream{'s' * (len(policies) != 1)}"
    click.echo(one_line(f"{file}: {upstreams}, no errors"))


@main.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    import json

    from gateway import config

    click.echo(json.dumps(config.schema(), indent=2))


@main.command()
@commands.asking
@click.option("--once", is_flag=True, help="Print one picture and end; so it is where the output is no terminal.")
def top(admin: str, *, once: bool) -> None:
    """Watch all upstreams of a running gateway in this terminal; q ends it."""
    try:
        from gateway import top as watching
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        raise click.ClickException("it needs rich: pip install 'async-worker-gateway[top]'") from None
    token = commands.token_in(commands.READ_TOKEN, commands.WRITE_TOKEN)
    try:
        watching.run(admin, token=token, once=once or not sys.stdout.isatty())
    except watching.NotAnswered as error:
        raise click.ClickException(str(error)) from None


for command in commands.COMMANDS:
    main.add_command(command)


def check_scenario(service: str | None, **options: Any) -> None:
    """What goes with --scenario, and what does not."""
    if options["scenario"] and service is not None:
        raise click.UsageError("--scenario starts all services itself; leave SERVICE out")
    alone = [
        f"--{name.replace('_', '-')}" for name in ("seconds", "svg", "unprotected", "no_timeouts") if options[name]
    ]
    if alone and not options["scenario"]:
        raise click.UsageError(f"{alone[0]} goes with --scenario")
    if options["no_timeouts"] and not options["unprotected"]:
        raise click.UsageError("--no-timeouts goes with --unprotected; with a gateway there is always a limit")


def check_instances(service: str | None, **options: Any) -> None:
    """What goes with --instances, and what does not."""
    if options["instances"] == 1 or options["from_parent"] is not None:
        return
    if service is not None:
        raise click.UsageError("--instances is for the whole demo; leave SERVICE out")
    if options["scenario"]:
        raise click.UsageError("--instances does not go with --scenario, which has one of each service")
    if options["ratings_url"]:
        raise click.UsageError("--instances are our own; give --ratings-url once for each of yours instead")
    if options["ratings_port"] + options["instances"] - 1 > HIGHEST_PORT:
        raise click.UsageError("--ratings-port is that of the first of the --instances, and leaves no room for them")


def check_memory(service: str | None, **options: Any) -> None:
    """What goes with --memory."""
    if options["memory"] is None:
        return
    if options["scenario"]:
        raise click.UsageError("--memory does not go with --scenario, which begins with nothing")
    if service not in {None, "catalog"}:
        raise click.UsageError("--memory is the catalog's; leave it out")


def play(**options: Any) -> None:
    """The scenario."""
    import asyncio

    from gateway.demo import processes, scenario, site
    from gateway.demo.plan import WRITTEN_FOR, Plan

    unprotected, no_timeouts = options["unprotected"], options["no_timeouts"]
    svg = Path(options["svg"] or f"scenario{'-unprotected' * unprotected}{'-no-timeouts' * no_timeouts}.svg")
    if not os.access(svg.parent, os.W_OK):
        raise click.UsageError(f"cannot write to the folder {str(svg.parent)!r}; choose another file with --svg")
    settings = scenario.Settings(
        plan=Plan(options["seconds"] or WRITTEN_FOR),
        protected=not unprotected,
        timeouts=not no_timeouts,
        svg=svg,
    )
    try:
        ending = asyncio.run(scenario.run(settings))
    except processes.ServiceEnded as error:
        raise click.ClickException(str(error)) from None
    for line in ending.lines:
        site.say(line)
    sys.exit(0 if ending.held else 1)


def run_all(**options: Any) -> None:
    """The services that nobody else provides, each in a process of its own."""
    import asyncio
    from dataclasses import replace

    from gateway.demo import processes, site

    host: str = options["host"]
    several: int = options["instances"]
    wanted = [name for name in SERVICES if not options.get(f"{name}_url")]
    urls: dict[str, list[str]] = {"info": [options["info_url"]], "ratings": list(options["ratings_url"])}
    services = []
    try:
        for name in wanted:
            urls[name] = []
            for number in range(several if name == "ratings" else 1):
                first = options[f"{name}_port"]
                listening = site.listen(host, first and first + number, option=f"--{name}-port")
                port = listening.getsockname()[1]
                urls[name].append(site.url_of(reached_at(host), port))
                services.append(
                    processes.Service(
                        name=name,
                        listening=listening,
                        options=("--host", host),
                        instance=number + 1 if name == "ratings" and several > 1 else None,
                        address=(host, port),
                    )
                )
        admin = listen_for_admin(**options)
    except site.CannotListen as error:
        raise click.ClickException(str(error)) from None
    asked = ["--info-url", *urls["info"], "--instances", str(several)]
    for url in urls["ratings"]:
        asked += ["--ratings-url", url]
    if options["memory"] is not None:
        asked += ["--memory", in_this_folder(options["memory"])]
    asked += ["--admin-from-parent", str(admin.fileno())]
    services[0] = replace(services[0], options=(*services[0].options, *asked), also=(admin,))
    try:
        asyncio.run(processes.run(services, when_ready=hints(urls, admin, ours="ratings" in wanted)))
    except processes.ServiceEnded as error:
        raise click.ClickException(str(error)) from None


def run_one(service: str, port: int | None, **options: Any) -> None:
    """One service, in this process."""
    import asyncio

    from gateway.demo import site

    host: str = options["host"]
    parent: int | None = options["from_parent"]
    try:
        listening = (
            site.listen(host, options[f"{service}_port"] if port is None else port, option="--port")
            if parent is None
            else socket.socket(fileno=parent)
        )
        if service == "catalog":
            options["admin"] = listen_for_admin(**options)
            if parent is None:
                site.say(f"watch it, and tune it: {watched_at(options['admin'])}")
    except site.CannotListen as error:
        raise click.ClickException(str(error)) from None

    async def run() -> None:
        await site.serve(create(service, **options), listening, host=host, has_parent=parent is not None)

    asyncio.run(run())


def create(service: str, **options: Any) -> Any:
    """The application of one service."""
    from gateway import log
    from gateway.demo import site

    log.configure(json=False)
    if service == "info":
        from gateway.demo import info

        return info.create()
    if service == "ratings":
        from gateway.demo import ratings

        return ratings.create()
    from gateway.demo import catalog

    near = reached_at(options["host"])
    return catalog.create(
        ratings_url=options["ratings_url"] or site.url_of(near, options["ratings_port"]),
        info_url=options["info_url"] or site.url_of(near, options["info_port"]),
        tell=site.say if options["instances"] > 1 else None,
        admin=options["admin"],
        memory=options["memory"],
    )


def listen_for_admin(**options: Any) -> socket.socket:
    """Where operators are listened to: where the rest is if a token guards it, else where only this machine comes.

    A port that nobody asked for and somebody has is another one.
    """
    from gateway.admin.auth import Guards, has_token, is_loopback
    from gateway.demo import site
    from gateway.outcome import ConfigError

    if options["admin_from_parent"] is not None:
        return socket.socket(fileno=options["admin_from_parent"])
    host: str = options["host"]
    near = host if is_loopback(host) or has_token() else "127.0.0.1"
    try:
        Guards(host=near)  # a token that is none is told here, and not by a service that ends of it
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    try:
        return site.listen(near, options["admin_port"], option="--admin-port")
    except site.CannotListen:
        said = click.get_current_context().get_parameter_source("admin_port")
        if said is not ParameterSource.DEFAULT:
            raise
        return site.listen(near, 0, option="--admin-port")


def in_this_folder(file: str) -> str:
    """The file as the services find it, which run in another folder."""
    from gateway.demo.memory import NOWHERE

    return file if file == NOWHERE else str(Path(file).absolute())


def reached_at(host: str) -> str:
    """Where this machine reaches what listens on a host; "everywhere" is no address to ask."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - looked up, not bound


def watched_at(admin: socket.socket) -> str:
    """Where operators look, and what those need who are elsewhere."""
    from gateway.admin.auth import has_token
    from gateway.demo import site

    host, port = admin.getsockname()[:2]
    return f"{site.url_of(reached_at(host), port)}/{' (with the token)' * has_token()}"


def hints(urls: dict[str, list[str]], admin: socket.socket, *, ours: bool) -> str:
    """What to try first. Faults are for ratings services of ours: what others do with such a request nobody knows."""
    (catalog,), (ratings, *more) = urls["catalog"], urls["ratings"]
    several = bool(more) and ours
    shown = [
        ("look at it, and kill an instance there" if several else "look at it", f"{catalog}/"),
        ("watch its gateway, and tune it", watched_at(admin)),
        ("a user's films", f"curl '{catalog}/catalog/ada'"),
        ("and where they are from", f"curl '{catalog}/catalog/ada?explain=1'"),
    ]
    if ours:
        shown += [
            (
                "let the first of the ratings hang" if several else "let the ratings hang",
                f"curl -X POST {ratings}/fault/hang",
            ),
            ("let them recover", f"curl -X POST {ratings}/fault/none"),
        ]
    width = max(len(what) for what, _ in shown)
    return "\n".join(["", *(f"  {what:{width}}  {how}" for what, how in shown), "Ctrl-C ends it."])


if __name__ == "__main__":
    main()
