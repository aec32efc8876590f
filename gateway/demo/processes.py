"""The three services together: each in a process of its own, all of them ending together."""

from __future__ import annotations

import asyncio
import sys
from asyncio import FIRST_COMPLETED, Event, Task, create_task
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from socket import socket

import gateway
from gateway.demo.site import ending_signals, say

END_FOR = 5.0
"""Seconds that a service gets to end, before it is killed."""
SIGNAL_FOR = 0.3
"""Who ends everything, as systemd does, may reach a child a moment before us."""
ROOT = Path(gateway.__file__).parents[1]


class ServiceEnded(Exception):
    """A service ended by itself."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What one process is to serve: a socket that listens already, and the options of `gateway demo NAME`."""

    name: str
    listening: socket
    options: Sequence[str]

    async def start(self) -> Process:
        """Start the process. It has the socket; ours is closed, so that the port is free when the process ends."""
        listening = self.listening.fileno()
        with self.listening:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "gateway.cli", "demo", self.name, "--from-parent", str(listening), *self.options),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=(listening,),
                process_group=0,  # Ctrl-C is ours to answer, for all of them
                cwd=ROOT,  # where `-m` finds this very package, installed or not
            )


async def run(services: Sequence[Service], *, when_ready: str) -> None:
    """Run until SIGINT or SIGTERM; raises ServiceEnded if one of them ends before that. The first asks the others."""
    stop = Event()
    processes: dict[str, Process] = {}
    with ending_signals(stop):
        try:
            for service in services:
                processes[service.name] = await service.start()
            ended = await until_one_ends(processes, stop, when_ready)
        finally:
            await end(processes)
    if ended is not None:
        raise ServiceEnded(f"the {ended} service ended by itself ({how(processes[ended])}), and so does the demo")


async def until_one_ends(processes: Mapping[str, Process], stop: Event, when_ready: str) -> str | None:
    """Say when all are ready; the name of the first that ends, or None when `stop` was set."""
    stopping = create_task(stop.wait())
    ready = create_task(all_ready(processes, when_ready))
    ends: dict[Task[int], str] = {create_task(process.wait()): name for name, process in processes.items()}
    try:
        done, _ = await asyncio.wait({stopping, *ends}, return_when=FIRST_COMPLETED)
        if stopping not in done:
            with suppress(TimeoutError):
                async with asyncio.timeout(SIGNAL_FOR):
                    await stop.wait()
        return None if stop.is_set() else next(name for task, name in ends.items() if task in done)
    finally:
        for task in (stopping, ready, *ends):
            task.cancel()


async def all_ready(processes: Mapping[str, Process], when_ready: str) -> None:
    """Hand on what each has to say, and then our own line."""
    for name, process in processes.items():
        line = b"" if process.stdout is None else await process.stdout.readline()
        if not line:
            return  # it ended
        say(f"{name} {line.decode().strip()}")
    say(when_ready)


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
