"""README.md: every block in it runs, and prints what it shows.

```sh is run line by line by a shell, ```python as it stands, and ```output, right after one of them, is what it prints,
save for ages and times. The demo listens on other ports than the README says, for those may be taken.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from codeop import CommandCompiler
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from inspect import iscoroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.admin.auth import WRITE_TOKEN
from gateway.testing import assert_nothing_left
from tests.edges.running import ANY_PORTS, PATIENCE, Running, free_ports, listens, running

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
Program = Callable[[str], str]
PORTS = {"catalog": "8081", "info": "8082", "ratings": "8083"}


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and what it is said to print."""

    language: str
    text: str
    section: str
    line: int
    output: str | None


@cache
def blocks() -> list[Block]:
    text = README.read_text()
    found = []
    fenced = re.compile(r"^```(\w*)\n(.*?)^```\n(?:```output\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
    for one in fenced.finditer(text):
        section = re.findall(r"^## (.*)$", text[: one.start()], re.MULTILINE)[-1]
        found.append(Block(one[1], one[2], section, text.count("\n", 0, one.start()) + 1, one[3]))
    return found


def of(section: str, language: str) -> list[Block]:
    return [block for block in blocks() if (block.section, block.language) == (section, language)]


def alike(text: str | None) -> str:
    """What has to be the same every time."""
    without_ages = re.sub(r"age=\d+\.\d", "age=A", text or "")
    lines = re.sub(r"\b\d\.\d{3,} s\b", "T s", without_ages).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def test_every_block_is_run_here() -> None:
    run = [
        *of("See it", "sh"),
        *of("Write it", "python"),
        *of("Test it", "sh"),
        *of("Install it", "sh"),
        *of("A short tour", "python"),
    ]

    assert run == blocks()
    assert len(run) > 15


# -- the demo


def made(stamp: str, program: Program) -> list[str]:
    """`make`, for the environment that runs these tests; skips if make would have to set it up first."""
    make = [program("make"), "--no-print-directory", "-C", str(ROOT), f"VENV={sys.prefix}"]
    fresh = (Path(sys.prefix) / stamp).exists() and subprocess.run(
        [*make, "-q", f"{sys.prefix}/{stamp}"], capture_output=True, check=False
    )
    if not fresh or fresh.returncode:
        pytest.skip("this environment is not as `make` leaves it")
    return make


def test_the_first_command_runs_the_demo_and_ctrl_c_ends_it(program: Program) -> None:
    (first, *_) = of("See it", "sh")
    assert first.text == "make demo\n"
    make = made(".run", program)

    ports = {name: str(port) for name, port in zip(PORTS, free_ports(3), strict=True)}
    arguments = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    with running("demo", f"ARGS={arguments} --admin-port 0", command=make, group=True) as demo:
        urls, admin = demo.urls, urlsplit(demo.admin)
        assert listens(admin.port or 0)
        os.killpg(demo.process.pid, signal.SIGINT)
        _, _, complaints = demo.ended()

    assert urls == {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    assert "Traceback" not in complaints
    assert not any(listens(int(port)) for port in (*ports.values(), admin.port or 0))


def test_the_demo_answers_as_shown(program: Program) -> None:
    program("curl")
    (_, *shown) = of("See it", "sh")

    with running("demo", *ANY_PORTS) as demo:
        printed = [alike(typed(block.text, demo)) for block in shown]

    assert printed == [alike(block.output) for block in shown]


def typed(commands: str, demo: Running) -> str:
    for name, port in PORTS.items():
        commands = commands.replace(f":{port}", f":{demo.ports[name]}")
    done = subprocess.run(
        ["sh", "-e"],
        input=commands,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as an environment that is activated
            "GATEWAY_ADMIN": demo.admin,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout
    for name, port in PORTS.items():
        said = said.replace(f":{demo.ports[name]}/", f":{port}/")
    return said


# -- the code


def test_the_program_prints_what_is_shown(tmp_path: Path) -> None:
    (block,) = of("Write it", "python")
    (tmp_path / "program.py").write_text(block.text)

    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert alike(done.stdout) == alike(block.output)


@pytest.mark.virtual_time
async def test_the_tour_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes a file
    names: dict[str, Any] = {"__name__": "tour"}
    printed = []
    for block in of("A short tour", "python"):
        out = io.StringIO()
        text = "\n" * block.line + block.text  # so that a traceback names the line of the README
        code = compile(text, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        with redirect_stdout(out):
            result = eval(code, names)  # noqa: S307 - our own page
            if iscoroutine(result):
                await result
        printed.append(out.getvalue())

    assert printed == [block.output or "" for block in of("A short tour", "python")]
    assert_nothing_left(names["gate"])


@pytest.mark.parametrize("block", of("A short tour", "python"), ids=lambda block: f"line {block.line}")
def test_the_tour_can_be_typed_line_by_line(block: Block) -> None:
    compiled = CommandCompiler()  # as a prompt does: what is indented ends with a line that is empty
    compiled.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    typed: list[str] = []

    for line in [*block.text.splitlines(), ""]:
        typed.append(line)
        if compiled("\n".join(typed), f"README.md, line {block.line}") is not None:
            typed = []

    assert not typed


# -- the other commands


def test_the_second_command_runs_the_tests(program: Program) -> None:
    (block,) = of("Test it", "sh")
    assert block.text == "make test\n"
    make = made(".dev", program)

    done = subprocess.run(
        [*make, "test", "ARGS=--version"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )

    assert done.returncode == 0
    assert done.stdout.startswith("pytest ")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`", README.read_text()))))
def test_every_target_that_is_named_exists(target: str, program: Program) -> None:
    done = subprocess.run(
        [program("make"), "-C", str(ROOT), "-n", target, f"VENV={sys.prefix}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_it_can_be_installed_from_a_clone() -> None:
    install, *_ = of("Install it", "sh")
    program, *arguments = shlex.split(install.text)
    assert program == "pip"

    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--dry-run", "--no-deps", "--no-build-isolation", "--no-input"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "Would install async-worker-gateway" in done.stdout


def test_the_container_runs_what_the_readme_says() -> None:
    _, docker, _ = of("Install it", "sh")
    build, run = (shlex.split(line) for line in docker.text.splitlines())
    steps = dockerfile()

    assert build == ["docker", "build", "-t", "gateway", "."]
    assert run[:2] == ["docker", "run"]
    assert run[-1] == "gateway"
    assert {one for one in run if ":" in one} == {f"{port}:{port}" for port in PORTS.values()}
    assert set(PORTS.values()) <= set(steps["EXPOSE"].split())
    assert steps["ENTRYPOINT"] == '["gateway"]'


def test_in_the_container_operators_need_a_token_and_memory_has_a_place() -> None:
    *_, docker = of("Install it", "sh")
    export, _, run = (shlex.split(line) for line in docker.text.replace("\\\n", "").splitlines())
    steps = dockerfile()
    given = {option: [run[at + 1] for at, one in enumerate(run) if one == option] for option in ("-p", "-e", "-v")}
    _, volume = given["-v"][0].split(":")

    assert export[1].startswith(f"{WRITE_TOKEN}=")
    assert given["-e"] == [WRITE_TOKEN]
    assert set(given["-p"]) == {"127.0.0.1:8080:8080", *(f"{port}:{port}" for port in PORTS.values())}
    assert "8080" in steps["EXPOSE"].split()
    assert volume == steps["VOLUME"]
    assert steps["ENV"] == f"XDG_CACHE_HOME={volume}"


def dockerfile() -> dict[str, str]:
    """What each instruction says; of one that is there twice, the last."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if line[:1].isupper())


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text())

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
