"""The demo as a user runs it: processes of its own, ports that are free, ended at the end of the test."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

GATEWAY = (sys.executable, "-m", "gateway.cli")
ANY_PORTS = ("--catalog-port", "0", "--info-port", "0", "--ratings-port", "0", "--admin-port", "0")
PATIENCE = 20.0


@dataclass
class Reply:
    """What a service answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """What the admin server says is wrong."""
        return self.json["errors"][0]["problem"]

    @property
    def source(self) -> str:
        """The header, without ages."""
        return re.sub(r";age=\d+\.\d", "", self.headers["x-answer-source"])


@dataclass
class Running:
    """A `gateway` that runs, and what it said until it was ready."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def urls(self) -> dict[str, str]:
        """By the name of the service; of a service alone, by ""."""
        found = (re.fullmatch(r"(?:(\w+) )?ready (http://\S+)", line) for line in self.said)
        return {one[1] or "": one[2] for one in found if one}

    @property
    def admin(self) -> str:
        """The admin server of its catalog."""
        return next(found[1] for line in self.said if (found := re.search(r"tune it\W+(http://\S+)/", line)))

    @property
    def ports(self) -> dict[str, int]:
        return {name: int(url.rpartition(":")[2]) for name, url in self.urls.items()}

    def get(self, service: str, path: str) -> Reply:
        return ask("GET", self.urls[service] + path)

    def fault(self, service: str, mode: str) -> None:
        assert ask("POST", f"{self.urls[service]}/fault/{mode}").status == 204

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """The exit status, what it said in the end, and what it complained of."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@contextmanager
def running(
    *arguments: str, until: str = "Ctrl-C ends it.", command: Sequence[str] = GATEWAY, group: bool = False
) -> Iterator[Running]:
    """Run `gateway ...` until it says a line that begins so; at the latest, the test's end is its end.

    `group`: in a process group of its own, as a shell would. What it remembers is gone at the end, unless it is given
    a file. It speaks no TLS, and does not read the machine's certificates first.
    """
    cache = TemporaryDirectory()
    process = subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "XDG_CACHE_HOME": cache.name, "SSL_CERT_FILE": os.devnull},
        process_group=0 if group else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    one = Running(process)
    try:
        for line in lines_of(process):
            one.said.append(line)
            if line.startswith(until):
                break
        else:
            raise AssertionError(f"it ended: {process.communicate(timeout=PATIENCE)}")
        yield one
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        cache.cleanup()


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines it says, as they come; an AssertionError if there is none for long."""
    assert process.stdout is not None
    pending = b""
    while select.select([process.stdout], [], [], PATIENCE)[0]:
        part = os.read(process.stdout.fileno(), 4096)
        if not part:
            return
        *lines, pending = (pending + part).split(b"\n")
        yield from (line.decode() for line in lines)
    raise AssertionError("it said nothing more")


def ask(method: str, url: str) -> Reply:
    """One request, one connection."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def free_ports(number: int) -> list[int]:
    """Ports that nobody has, at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def free_ports_in_a_row(number: int) -> int:
    """The first of so many ports, one after the other, that nobody has at this moment."""
    while True:
        (first,) = free_ports(1)
        with ExitStack() as held, suppress(OSError, OverflowError):
            for port in range(first, first + number):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children_of(pid: int) -> dict[str, int]:
    """The services that a demo started, by name."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "status").read_text(), (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if f"\nPPid:\t{pid}\n" in status and "demo" in command:
            found[command[command.index("demo") + 1]] = int(entry.name)
    return found


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
