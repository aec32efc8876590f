"""`gateway top`: the picture for any size, the keys, and the whole of it in a real terminal."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from gateway import Gateway
from gateway.top import NotAnswered
from gateway.top import line as top_line
from gateway.top.line import documents, follow
from gateway.top.picture import spark_of
from gateway.top.screen import Screen
from gateway.top.verdict import percent, seconds
from tests.edges.admin.asking import admin_of
from tests.edges.pretended import Pretended
from tests.edges.running import GATEWAY
from tests.edges.serving import served
from tests.support import gone

ILL = {"ratings": "hang", "info": "slow", "mail": "stuck"}


def screen_of(number: int = 10, **ills: str) -> Screen:
    screen = Screen()
    screen.tell(Pretended(number, **ills).document())
    return screen


def drawn(screen: Screen, width: int = 120, height: int = 30) -> list[str]:
    """The lines of the picture, as a terminal of this size would show them."""
    console = Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(screen.draw(width, height))
    return console.file.getvalue().rstrip("\n").split("\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "height"), [(20, 5), (60, 10), (80, 24), (120, 30), (250, 60), (80, 1)])
@pytest.mark.parametrize("one", [False, True])
def test_it_fits_a_terminal_of_any_size(width: int, height: int, one: bool) -> None:
    screen = screen_of(40, **ILL)
    screen.one = one

    lines = drawn(screen, width, height)

    assert all(len(line) <= width for line in lines)
    if not one and height > 3:
        assert len(lines) <= height


def test_every_upstream_is_a_line_the_worst_first() -> None:
    head, _, ratings, info, *_ = drawn(screen_of(**ILL), 150)

    assert head.startswith("✕ 3 of 10 need a look")
    assert re.match(r"✕ ratings +◯ open .* ◐ \d\d % ◇ \d\d % ✕ \d\d % .* circuit open, tries in \d\.\d s", ratings)
    assert re.match(r"▲ info +● closed .* 20/20 \+7 wait ● .* pool full, 7 callers wait", info)


def test_one_that_is_ill_needs_a_look() -> None:
    assert drawn(screen_of(ratings="hang"), 150)[0].startswith("✕ 1 of 10 needs a look")


def test_what_there_is_no_room_for_gives_way_and_what_matters_stays() -> None:
    heads = {width: drawn(screen_of(), width)[1].split() for width in (60, 80, 110, 160)}

    assert heads[60] == ["upstream", "circuit", "calls/s", "pool"]
    assert heads[80] == [*heads[60], "answers"]
    assert heads[110] == [*heads[80], "p99", "p50", "queue"]
    assert " ".join(heads[160]).endswith("a minute what it is")


def test_numbers_that_do_not_add_up_are_said_first() -> None:
    assert drawn(screen_of(users="broken"))[0].startswith("✕ NUMBERS DO NOT ADD UP: users")


def test_numbers_that_are_old_are_said_to_be() -> None:
    screen = screen_of()
    screen.heard_at -= 10
    screen.problem = "it was reset"

    assert drawn(screen)[0].startswith("◯ LOST for 10 s: it was reset; trying again")


def test_a_sparkline_shows_averages_too() -> None:
    upstream = {"spark": [0.0, 0.2, 2.4, 4.8], "spark_degraded": [0.0, 0.0, 0.4, 0.0], "spark_failed": [0.0] * 4}

    line = spark_of(upstream, 6)

    assert line.plain == "   ▁▄█"
    assert [str(span.style) for span in line.spans][-3:] == ["green", "yellow", "green"]


@pytest.mark.parametrize(("height", "lines"), [(14, 0), (20, 4), (24, 6), (40, 6)])
def test_the_log_gets_what_room_the_upstreams_leave(height: int, lines: int) -> None:
    server, screen = Pretended(10), Screen()
    for number in range(30):
        server.happened("circuit", "ratings", f"event {number}")
    screen.tell(server.document())

    shown = [line for line in drawn(screen, 120, height) if "event" in line]
    of_many = drawn(screen_of(40, **ILL), 120, height)

    assert len(shown) == lines
    assert not shown or "event 29" in shown[0]
    assert sum("closed" in line or "open" in line for line in of_many) >= height - 4


def test_a_name_cannot_reach_the_terminal() -> None:
    screen = Screen()
    server = Pretended(1)
    server.upstreams["ratings"].name = "a\x1b]0;owned\x07\nb[bold]"
    server.happened("control", "\x1b[2J", "\r\x1b[H")
    screen.tell(server.document())

    for one in (False, True):
        screen.one = one
        text = "\n".join(drawn(screen))

        assert "\x1b" not in text
        assert "a\N{REPLACEMENT CHARACTER}]0;owned" in text


def test_keys_move_order_open_hold_and_quit() -> None:
    screen = screen_of(**ILL)

    screen.press("jj\x1b[Bk")
    moved = screen.at
    screen.press("kkkkk")
    top = screen.at
    screen.press("j" * 50)
    bottom = screen.at
    screen.press("s")
    by_name = [one["name"] for one in screen.upstreams()]
    screen.press("\r")
    opened = drawn(screen)[1]
    screen.press("\x1b")
    screen.press("p")
    before = screen.told
    screen.tell(Pretended(1).document())
    held = screen.told is before and drawn(screen)[0].startswith("‖ held")

    assert (moved, top, bottom) == (2, 0, 9)
    assert by_name == sorted(by_name)
    assert by_name[9] in opened
    assert (screen.one, held, screen.quit.is_set()) == (False, True, False)
    screen.press("q")
    assert screen.quit.is_set()


def test_the_line_that_is_looked_at_stays_in_sight() -> None:
    screen = screen_of(40)
    screen.press("s")
    screen.press("j" * 30)

    lines = drawn(screen, 100, 12)

    assert any(screen.upstreams()[30]["name"] in line for line in lines)
    assert len(lines) <= 12


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0 µs"), (0.00042, "420 µs"), (0.0042, "4.2 ms"), (0.042, "42 ms"), (0.42, "420 ms"), (4.2, "4.2 s")],
)
def test_durations_are_said_as_people_read_them(value: float, said: str) -> None:
    assert seconds(value) == said


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0 %"), (0.001, "< 1 %"), (0.5, "50 %"), (0.999, "99 %"), (1, "100 %")]
)
def test_a_share_that_is_there_is_not_0_and_one_that_is_not_whole_not_100(share: float, said: str) -> None:
    assert percent(share) == said


@pytest.mark.asyncio
async def test_a_stream_that_ends_is_followed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_line, "AGAIN_AFTER", 0.01)
    asked = 0

    async def live(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f': hello\n\ndata: {{"number": {asked}}}\n\n'.encode())
        return response

    app, screen, three = web.Application(), Screen(), asyncio.Event()
    app.router.add_get("/live", live)

    def draw() -> None:
        if screen.told and screen.told["number"] == 3:
            three.set()

    async with served(app) as url:
        task = asyncio.create_task(follow(screen, url + "/", None, draw=draw))
        async with asyncio.timeout(5):
            await three.wait()
        await gone(task)

    assert asked >= 3


@pytest.mark.asyncio
@pytest.mark.parametrize(("status", "said"), [(401, "a token is needed"), (404, "no admin server of a gateway")])
async def test_a_server_that_will_never_tell_is_not_asked_again(status: int, said: str) -> None:
    async def live(request: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/live", live)
    async with served(app) as url:
        with pytest.raises(NotAnswered, match=said):
            await follow(Screen(), url, None, draw=lambda: None)


@pytest.mark.asyncio
async def test_the_token_goes_in_a_header_and_nowhere_else() -> None:
    seen: list[tuple[str, str | None]] = []

    async def live(request: web.Request) -> web.Response:
        seen.append((request.path_qs, request.headers.get("Authorization")))
        return web.Response(body=b"data: {}\n\n")

    app = web.Application()
    app.router.add_get("/live", live)
    async with served(app) as url:
        told = [document async for document in documents(url, "s3cret")]

    assert (told, seen) == ([{"upstreams": []}], [("/live?details=", "Bearer s3cret")])


@pytest.mark.asyncio
async def test_more_is_asked_of_the_one_that_is_open_and_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_line, "AGAIN_AFTER", 60)  # it does not wait for this
    gate, screen = Gateway(), Screen(order=1)
    for name in ("films", "ratings"):
        gate.upstream(name)

    def detailed() -> list[str]:
        return [one["name"] for one in screen.upstreams() if "operations" in one]

    async def until(names: list[str]) -> None:
        async with asyncio.timeout(5):
            while screen.told is None or detailed() != names:
                await asyncio.sleep(0.01)

    async with admin_of(gate) as admin:
        following = asyncio.create_task(follow(screen, admin.url, None, draw=lambda: None))
        await until([])
        screen.press("j\r")
        under_way = "\n".join(drawn(screen))
        await until(["ratings"])
        opened = "\n".join(drawn(screen))
        screen.press("pk")  # held, and the one above
        await until(["films"])
        held = screen.told
        screen.press("\rp")
        await until([])
        await gone(following)

    assert "its details are under way" in under_way
    assert "they add up" in opened
    assert held is not screen.told


def test_the_one_that_is_open_stays_open_wherever_it_is_in_the_order() -> None:
    screen = screen_of(10)
    screen.press("jj\r")
    name = screen.opened

    screen.tell(Pretended(10, **{name: "hang"}).document())
    ill = screen.opened, screen.at
    screen.tell(Pretended(1).document())

    assert ill == (name, 0)
    assert screen.opened == "ratings"


# -- the whole of it


class Terminal:
    """A real one, without a window: tmux, with a server of its own."""

    def __init__(self, tmux: str, socket: Path) -> None:
        self._command = (tmux, "-S", str(socket), "-f", os.devnull)

    async def ask(self, *arguments: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [*self._command, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or arguments[0] == "kill-server", done.stderr
        return done.stdout

    async def until(self, pattern: str) -> str:
        """What is to be seen, once this is."""
        text = ""
        for _ in range(200):
            text = await self.ask("capture-pane", "-p")
            if re.search(pattern, text):
                return text
            await asyncio.sleep(0.05)
        raise AssertionError(f"never seen: {pattern}\n{text}")

    async def press(self, *keys: str) -> None:
        await self.ask("send-keys", *keys)


@asynccontextmanager
async def terminal(tmux: str, command: str, width: int, height: int) -> AsyncIterator[Terminal]:
    with TemporaryDirectory() as folder:
        one = Terminal(tmux, Path(folder) / "tmux")
        await one.ask("new-session", "-d", "-x", str(width), "-y", str(height), command)
        try:
            yield one
        finally:
            await one.ask("kill-server")


@pytest.mark.asyncio
async def test_in_a_real_terminal_it_is_live_resized_and_left(program: Any) -> None:
    server = Pretended(10, **ILL)
    async with served(server.create()) as url:
        command = f"LC_ALL=C.UTF-8 {' '.join(GATEWAY)} top --admin {url}; echo ended with $?; read _"
        async with terminal(program("tmux"), command, 150, 20) as one:
            wide = await one.until(r"✕ ratings +◯ open")
            await one.ask("resize-window", "-x", "70", "-y", "9")
            narrow = await one.until(r"1 to 6 of 10")
            await one.press("j", "Enter")
            await one.until("─ info ─")
            await one.press("Escape")
            await one.until(r"1 to 6 of 10")
            server.upstreams["ratings"].ill, server.upstreams["ratings"].state = "", "closed"
            await one.until(r"ratings +● closed")
            await one.press("q")
            left = await one.until("ended with")

    assert "what it is" in wide
    assert "what it is" not in narrow
    assert "ended with 0" in left
    assert "ratings" not in left


@pytest.mark.asyncio
async def test_where_nobody_watches_it_prints_one_picture() -> None:
    async with served(Pretended(3).create()) as url:
        done = await asyncio.create_subprocess_exec(*GATEWAY, "top", "--admin", url, stdout=-1, stderr=-1)
        out, err = await done.communicate()

    assert (done.returncode, err) == (0, b"")
    assert out.decode().splitlines()[0].startswith("● 3 upstreams, all answered")


@pytest.mark.asyncio
async def test_the_token_is_that_of_the_environment() -> None:
    gate = Gateway()
    gate.upstream("ratings")
    ended = []
    async with admin_of(gate, token="w" * 20, read_token="r" * 20) as admin:
        for environment in ({}, {"GATEWAY_ADMIN_READ_TOKEN": "r" * 20}):
            command = (*GATEWAY, "top", "--admin", admin.url)
            done = await asyncio.create_subprocess_exec(
                *command, stdout=-1, stderr=-1, env={**os.environ, **environment}
            )
            out, err = await done.communicate()
            ended.append((done.returncode, out.decode().partition(" ")[0], err.decode()))

    assert ended[0][0] == 1
    assert ended[0][2].startswith("Error: a token is needed")
    assert ended[1] == (0, "●", "")


@pytest.mark.asyncio
async def test_a_server_that_is_not_there_is_one_line() -> None:
    done = await asyncio.create_subprocess_exec(
        *GATEWAY, "top", "--once", "--admin", "http://127.0.0.1:9", stdout=-1, stderr=-1
    )
    out, err = await done.communicate()

    assert (done.returncode, out) == (1, b"")
    assert re.fullmatch(r"Error: http://127\.0\.0\.1:9: .*Connect.*\n", err.decode())


def test_without_rich_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('No module named rich', name='rich')")
    done = subprocess.run(
        [*GATEWAY, "top"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PATH": os.defpath, "HOME": str(tmp_path)},
    )

    assert done.returncode == 1, sys.path
    assert "pip install 'async-worker-gateway[top]'" in done.stderr
