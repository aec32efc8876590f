"""Replicas that share what was good in a real memcached; and one that is killed under them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fallbacks.behind import FAILURES
from tests.edges.running import free_ports, listens
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 10.0


class Asked:
    """A replica, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def replica(port: int) -> Iterator[Asked]:
    command = [sys.executable, "-m", "tests.edges.replica", str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield Asked(process)
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Traceback" not in complaints


@contextmanager
def memcached(program: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [program, "-l", "127.0.0.1", "-p", str(port), "-u", "nobody", "-U", "0", "-m", "16", "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: listens(port))
        yield process
        process.kill()


def test_what_was_good_for_one_replica_stands_in_for_another(program: Callable[[str], str]) -> None:
    (port,) = free_ports(1)
    with memcached(program("memcached"), port) as shared, replica(port) as one, replica(port) as other:
        live = one("ask Alien")
        wait_until(lambda: one("counts")["writes"] == 1)
        other("fail")
        remembered, unknown = other("ask Alien"), other("ask Psycho")

        assert (live["source"], live["value"]) == ("live", {"Alien": 5})
        assert (remembered["source"], remembered["value"]) == ("last_good", {"Alien": 5})
        assert 0.0 < remembered["age"] < PATIENCE
        assert (unknown["source"], unknown["value"]) == ("static", {"default": 0})

        shared.kill()
        shared.wait()
        asked = [one(f"ask film {number}") for number in range(20)]
        known = other("ask Alien")
        unknown = other("ask Vertigo")

        assert [answer["source"] for answer in asked] == ["live"] * 20
        assert (known["source"], known["value"]) == ("last_good", {"Alien": 5})
        assert (unknown["source"], unknown["value"]) == ("static", {"default": 0})
        assert max(answer["took"] for answer in (*asked, known, unknown)) < 1.0
        wait_until(lambda: one("counts")["errors"] > 0)
        assert other("counts")["errors"] > 0


def test_replicas_go_on_sharing_when_it_is_back(program: Callable[[str], str]) -> None:
    (port,) = free_ports(1)
    with replica(port) as one, replica(port) as other:
        asked = one("ask Alien")
        wait_until(lambda: one("counts")["errors"] > 0)
        other("fail")
        for _ in range(FAILURES - 1):  # one more, and it would be left alone for longer than a test may take
            other("ask Alien")
        with memcached(program("memcached"), port):
            one("ask Psycho")
            wait_until(lambda: other("ask Psycho")["source"] == "last_good")

    assert asked["source"] == "live"
