"""`gateway top`: all upstreams of a running gateway in a terminal, as its admin server tells them once a second.

    q  quit        j k  next, previous        s  order: worst first, by name, by traffic
    Enter  more of one upstream, and back     p  hold still, and go on

It fits whatever size the terminal has, and says nothing by colour alone. Needs rich: the extra `top`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress

import aiohttp
import msgspec
from rich.console import Console, ConsoleDimensions
from rich.live import Live

from gateway.top.line import NotAnswered, documents, follow
from gateway.top.picture import table
from gateway.top.screen import Screen

__all__ = ["NotAnswered", "run"]


async def show(url: str, token: str | None) -> None:
    """Draw once a second, at each key and whenever the size changes, until somebody quits."""
    console, screen, loop = Console(), Screen(), asyncio.get_running_loop()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw() -> None:
            with suppress(OSError):  # $COLUMNS may be of another terminal, and is not what this one is resized to
                console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
            live.update(screen.draw(console.width, console.height), refresh=True)

        def pressed(keys: str) -> None:
            screen.press(keys)
            draw()

        async def every_second() -> None:
            while True:
                draw()
                await asyncio.sleep(1.0)

        with suppress(NotImplementedError, AttributeError, ValueError):  # no such signal, or not in this thread
            loop.add_signal_handler(signal.SIGWINCH, draw)
        with keyboard(loop, pressed):
            tasks = [
                loop.create_task(follow(screen, url, token, draw=draw), name="gateway: top follows"),
                loop.create_task(every_second(), name="gateway: top draws"),
                loop.create_task(screen.quit.wait(), name="gateway: top is asked to end"),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def show_once(url: str, token: str | None) -> None:
    """One picture, where nobody watches a terminal."""
    console, screen = Console(), Screen()
    async with aclosing(documents(url, token)) as told:
        async for document in told:
            screen.tell(document)
            console.print(screen.head())
            console.print(table(screen.upstreams(), width=console.width))
            return
    raise NotAnswered(f"{url}/live tells nothing")


@contextmanager
def keyboard(loop: asyncio.AbstractEventLoop, pressed: Callable[[str], object]) -> Iterator[None]:
    """Single keys, as they are pressed, without an echo; the terminal is as it was afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # noqa: PLC0415 - not on Windows, where there are no keys then
    import tty  # noqa: PLC0415

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        loop.add_reader(descriptor, lambda: pressed(os.read(descriptor, 64).decode(errors="replace")))
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def run(url: str, *, token: str | None, once: bool) -> None:
    """Until somebody quits, or once. Raises NotAnswered."""
    try:
        asyncio.run(show_once(url, token) if once else show(url, token))
    except KeyboardInterrupt:
        return
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        raise NotAnswered(f"{url}: {str(error) or type(error).__name__}") from None
