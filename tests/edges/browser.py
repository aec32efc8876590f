"""A real browser, as far as tests need one: Chromium without a window, driven over its own DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
from asyncio.subprocess import DEVNULL
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
PATIENCE = 30.0
MIDDLE = """selector => {
    const node = document.querySelector(selector);
    node.scrollIntoView({ block: "center" });
    const box = node.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
}"""

NAMELESS = """[...document.querySelectorAll('button, input, a, [role=img]')]
    .filter(node => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
    .map(node => node.outerHTML)"""
FAINT = """(() => {  // WCAG AA: text of less than 4.5 : 1 against what is behind it
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3).map(one => one / 255)
        .map(one => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
        .reduce((sum, one, at) => sum + one * [.2126, .7152, .0722][at], 0);
    const behind = node => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (numbers(colour)[3] !== 0) return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    const texts = 'h1, h2, h3, p, button, a, dt, dd, th, td, label, time, summary, legend, li > span, ' +
        '.badge, .circuit, .shares li, .kind, .reason, figcaption span';
    return [...document.querySelectorAll(texts)]
        .filter(node => node.textContent.trim() && node.offsetHeight > 2).map(node => {
            const [front, back] = [light(getComputedStyle(node).color), light(behind(node))];
            return [(Math.max(front, back) + .05) / (Math.min(front, back) + .05), node.textContent.trim()];
        }).filter(([contrast]) => contrast < 4.5);
})()"""


class Tab:
    """One page in it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        """Exceptions that no script caught, and errors that the browser wrote to its console."""
        self.asked: list[str] = []
        """The addresses that the page asked for."""

    async def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, and its result; events that come meanwhile are kept."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            self._keep(message)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def _keep(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(told["exceptionDetails"])[:500])
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.problems.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])

    async def open(self, url: str) -> None:
        """Go there."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, condition: str, patience: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        try:
            async with asyncio.timeout(patience):
                while not await self.run(f"Boolean({condition})"):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"not within {patience} s: {condition}\n{text}\n{self.problems}") from None

    async def press(self, selector: str) -> None:
        """Click on an element where a person would: in the middle of what is seen of it."""
        at = await self.run(f"({MIDDLE})({json.dumps(selector)})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    async def key(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        more = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **more)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """As large as this."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def dark(self) -> None:
        """As if it were night."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    async def picture(self, path: Path) -> None:
        """What is to be seen, from top to bottom."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(b64decode(shot["data"]))


class Browser:
    """A browser that runs: its tabs share nothing but the process, as long as their servers have ports of their own."""

    def __init__(self, port: str) -> None:
        self._url = f"http://127.0.0.1:{port}/json"

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        """A new one, empty; it is closed at the end."""
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self._url}/new?about:blank") as response:
                told = await response.json(content_type=None)
            try:
                async with session.ws_connect(told["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
            finally:
                async with session.get(f"{self._url}/close/{told['id']}") as response:
                    await response.read()


@contextmanager
def started(chromium: str) -> Iterator[Browser]:
    """A browser for many tests: starting one takes longer than most of them."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={home}", "about:blank"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            yield Browser(asyncio.run(port_of(Path(home) / "DevToolsActivePort")))
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def port_of(file: Path) -> str:
    """The port that it listens on, once it does."""
    async with asyncio.timeout(PATIENCE):
        while not (file.exists() and "\n" in (text := file.read_text())):
            await asyncio.sleep(0.05)
    return text.split("\n", maxsplit=1)[0]
