"""The services together: each in a process of its own, all of them ending together.

Of a service with several instances each may end, and be started again: by hand, or by the page, whose wishes the
catalog writes to its standard output, a line each: `kill ratings-2`, `start ratings-2`.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import FIRST_COMPLETED, Event, Task, create_task
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from socket import socket

import gateway
from gateway.demo.site import CannotListen, ending_signals, listen, say

END_FOR = 5.0
"""Seconds that a service gets to end, before it is killed."""
SIGNAL_FOR = 0.3
"""Who ends everything, as systemd does, may reach a child a moment before us."""
ROOT = Path(gateway.__file__).parents[1]


class ServiceEnded(Exception):
    """A service ended by itself."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What one process is to serve: a socket that listens already, and the options of `gateway demo NAME`.

    `also`: other sockets that it gets. `instance` numbers those of which there are several, from 1; the others end when
    it does not.
    """

    name: str
    listening: socket
    options: Sequence[str]
    instance: int | None = None
    address: tuple[str, int] = ("", 0)
    also: Sequence[socket] = ()

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return self.name if self.instance is None else f"{self.name}-{self.instance}"

    async def start(self) -> Process:
        """Start the process. It has the sockets; ours are closed, so that the ports are free when the process ends."""
        listening = self.listening.fileno()
        with ExitStack() as ours:
            for one in (self.listening, *self.also):
                ours.enter_context(one)
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway.cli", "demo", self.name, "--from-parent", str(listening), *self.options),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=(listening, *(one.fileno() for one in self.also)),
                process_group=0,  # Ctrl-C is ours to answer, for all of them
                cwd=ROOT,  # where `-m` finds this very package, installed or not
            )

    async def start_again(self) -> Process:
        """Start another process at the same address. Raises CannotListen."""
        host, port = self.address
        return await replace(self, listening=listen(host, port, option=f"--{self.name}-port")).start()


async def run(services: Sequence[Service], *, when_ready: str) -> None:
    """Run until SIGINT or SIGTERM; raises ServiceEnded if one of them ends before that. The first asks the others."""
    stop = Event()
    known = {service.key: service for service in services}
    processes: dict[str, Process] = {}
    with ending_signals(stop):
        try:
            for service in services:
                processes[service.key] = await service.start()
            ended = await until_one_ends(known, processes, stop, when_ready)
        finally:
            await end(processes)
    if ended is not None:
        raise ServiceEnded(f"the {ended} service ended by itself ({how(processes[ended])}), and so does the demo")


async def until_one_ends(
    services: Mapping[str, Service], processes: dict[str, Process], stop: Event, when_ready: str
) -> str | None:
    """Say when all are ready; the name of the first that ends the rest by its end, or None when `stop` was set."""
    stopping, ready = create_task(stop.wait()), Event()
    leading = create_task(lead(services, processes, ready, when_ready))
    ends: dict[Task[int], str] = {create_task(process.wait()): name for name, process in processes.items()}
    fatal: list[str] = []
    try:
        while not fatal and not stop.is_set():
            done, _ = await asyncio.wait({stopping, *ends}, return_when=FIRST_COMPLETED)
            ended = [ends.pop(task) for task in list(ends) if task in done]
            fatal = [name for name in ended if services[name].instance is None or not ready.is_set()]
        if not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(SIGNAL_FOR):
                    await stop.wait()
        return None if stop.is_set() else fatal[0]
    finally:
        for task in (stopping, leading, *ends):
            task.cancel()


async def lead(services: Mapping[str, Service], processes: dict[str, Process], ready: Event, when_ready: str) -> None:
    """Hand on what each has to say, and then our own line; from then on do what the first wishes."""
    for name in services:
        if not await introduce(services[name], processes[name]):
            return  # it ended
    ready.set()
    say(when_ready)
    wishes = processes[next(iter(services))].stdout
    while wishes is not None and (line := await wishes.readline()):
        deed, _, name = line.decode().strip().partition(" ")
        if name in services and services[name].instance is not None:
            await (kill_one if deed == "kill" else start_again)(services[name], processes)


async def introduce(service: Service, process: Process) -> bool:
    """Hand on its ready line; false if it ended before that."""
    line = b"" if process.stdout is None else await process.stdout.readline()
    if line:
        say(f"{service.name} {line.decode().strip()}")
    return bool(line)


async def kill_one(service: Service, processes: Mapping[str, Process]) -> None:
    """End an instance without a warning."""
    process = processes[service.key]
    if process.returncode is None:
        process.kill()
        await process.wait()
        say(f"{service.key} was killed")


async def start_again(service: Service, processes: dict[str, Process]) -> None:
    """Bring an instance back, if it is not there."""
    if processes[service.key].returncode is None:
        return
    try:
        processes[service.key] = await service.start_again()
    except CannotListen as error:
        say(f"{service.key} cannot be started: {error}")
    else:
        await introduce(service, processes[service.key])


async def end(processes: Mapping[str, Process]) -> None:
    """End all, by closing their standard input: first the one that asks the others, then these; kill who does not."""
    names = list(processes)
    for together in (names[:1], names[1:]):
        for name in together:
            close_stdin(processes[name])
        try:
            async with asyncio.timeout(END_FOR):
                for name in together:
                    await processes[name].wait()
        except TimeoutError:
            for name in together:
                await kill(name, processes[name])


def close_stdin(process: Process) -> None:
    """Let go of the thread that it hangs by."""
    if process.stdin is not None:
        process.stdin.close()


async def kill(name: str, process: Process) -> None:
    """End a process that does not want to."""
    if process.returncode is None:
        say(f"the {name} service does not end, and is killed")
        process.kill()
        await process.wait()


def how(process: Process) -> str:
    """How a process ended, in words."""
    code = process.returncode or 0
    return f"killed by {Signals(-code).name}" if code < 0 else f"exit status {code}"
