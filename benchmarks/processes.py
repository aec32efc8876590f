"""Processes of ours that serve on a port, started, asked and ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
READY = b"ready\n"
READY_WITHIN = 20.0
"""Seconds."""


def free_port() -> int:
    """A port that nobody has, for now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def start(*arguments: str, python: str = sys.executable) -> Process:
    """A module of ours as a process, once it has said that it is ready. It ends with its standard input."""
    process = await asyncio.create_subprocess_exec(python, "-m", *arguments, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    async with asyncio.timeout(READY_WITHIN):
        if await process.stdout.readline() != READY:
            raise ChildProcessError(f"{arguments[0]} ended before it was ready")
    return process


async def end(process: Process) -> None:
    """At once: nothing it has is worth keeping."""
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def running(*arguments: str, python: str = sys.executable) -> AsyncIterator[Process]:
    """A process for a block."""
    process = await start(*arguments, python=python)
    try:
        yield process
    finally:
        await end(process)


def until_stdin_ends() -> asyncio.Event:
    """Set when our parent lets go of us, or is gone; says that we are ready."""
    gone, loop = asyncio.Event(), asyncio.get_running_loop()

    def look() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            gone.set()

    loop.add_reader(0, look)
    os.write(1, READY)
    return gone


def cpu_seconds(process: Process) -> float:
    """What a process has had of the processor so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
