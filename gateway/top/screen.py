"""What is looked at in the terminal, and how: the keys change it, and it is drawn to fit."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from math import inf

from rich.console import Group, RenderableType
from rich.text import Text

from gateway.top.picture import LEVELS, ROOM_FOR_ONE, event_line, one_upstream, table
from gateway.top.verdict import Document, detailed, judged, plural, printable, seconds

ORDERS = ("worst first", "by name", "by traffic")
EVENTS = 6
"""Lines of the log, where the upstreams leave room for them."""
SILENT_FOR = 3.5
"""Seconds without a word from the server after which the numbers are called old."""


@dataclass(slots=True, kw_only=True)
class Screen:
    """What is looked at, and how. `told`: what the server said last; `heard_at`: when, on the monotonic clock."""

    told: Document | None = None
    heard_at: float = -inf
    problem: str = "not heard of yet"
    order: int = 0
    at: int = 0
    one: bool = False
    held: bool = False
    quit: asyncio.Event = field(default_factory=asyncio.Event)
    turned: asyncio.Event = field(default_factory=asyncio.Event)  # another one is open, or none any more

    @property
    def opened(self) -> str:
        """The name of the upstream that more is shown of; "" while all are."""
        upstreams = self.upstreams() if self.one else []
        return str(upstreams[min(self.at, len(upstreams) - 1)]["name"]) if upstreams else ""

    @property
    def has_details(self) -> bool:
        """Whether there is all to see of what is open."""
        opened = self.opened
        return not opened or any(detailed(one) for one in self.upstreams() if one["name"] == opened)

    def tell(self, document: Document) -> None:
        """What the server says now."""
        self.heard_at = time.monotonic()
        self.problem = ""
        opened = self.opened
        if not self.held or not self.has_details:
            self.told = document
            names = [one["name"] for one in self.upstreams()]
            if opened in names:  # it stays open, wherever it is in the order now
                self.at = names.index(opened)

    def press(self, keys: str) -> None:
        """What a person pressed."""
        keys = keys.replace("\x1b[A", "k").replace("\x1b[B", "j").replace("\x1b", "q" if not self.one else "\r")
        opened = self.opened
        for key in keys:
            if key in {"q", "\x03", "\x04"}:
                self.quit.set()
            elif key in {"j", "k"}:
                self.at = max(0, min(len(self.upstreams()) - 1, self.at + (1 if key == "j" else -1)))
            elif key == "s":
                self.order = (self.order + 1) % len(ORDERS)
            elif key in {"\r", "\n"}:
                self.one = not self.one
            elif key in {"p", " "}:
                self.held = not self.held
        if self.opened != opened:
            self.turned.set()

    def upstreams(self) -> list[Document]:
        """All of them, in the order that was asked for."""
        each = sorted(self.told["upstreams"] if self.told else [], key=lambda one: str(one["name"]))
        if ORDERS[self.order] == "worst first":
            return sorted(each, key=lambda one: -judged(one).level)
        if ORDERS[self.order] == "by traffic":
            return sorted(each, key=lambda one: -float(one["window"]["rates"]["asked"]))
        return each

    def draw(self, width: int, height: int) -> RenderableType:
        """The picture, for a terminal of this size."""
        head = self.head()
        if self.told is None:
            return head
        upstreams = self.upstreams()
        self.at = max(0, min(len(upstreams) - 1, self.at))
        if self.one and upstreams:
            return Group(head, *one_upstream(upstreams[self.at], self.told, width=width, height=height - 1))
        spare = min(EVENTS, height - 4 - len(upstreams) - 2) if height > ROOM_FOR_ONE else 0
        events = self.told["events"][-spare:] if spare > 0 else []
        room = max(1, height - 3 - (len(events) + 1 if events else 0))
        first = max(0, min(self.at - room // 2, len(upstreams) - room))
        parts: list[RenderableType] = [
            head,
            table(upstreams[first : first + room], width=width, selected=self.at - first),
        ]
        if events:
            parts += [Text(""), *(event_line(event) for event in reversed(events))]
        foot = (
            f"{first + 1} to {min(len(upstreams), first + room)} of {len(upstreams)}" if len(upstreams) > room else ""
        )
        parts.append(
            Text(f"{foot}  " * bool(foot) + "q quit  j k move  Enter more  s order  p hold", style="dim", no_wrap=True)
        )
        return Group(*parts)

    def head(self) -> Text:
        """The one line on all of them."""
        if self.told is None:
            return Text(
                f"gateway top: {self.problem}; trying again", style="bold red", overflow="ellipsis", no_wrap=True
            )
        text = Text(no_wrap=True, overflow="ellipsis")
        silent = time.monotonic() - self.heard_at
        if silent > SILENT_FOR:
            text.append(
                f"◯ LOST for {silent:.0f} s: {self.problem or 'nothing is heard'}; trying again  ",
                style="bold reverse red",
            )
        elif self.held:
            text.append("‖ held  ", style="bold reverse")
        broken = [one["name"] for one in self.told["upstreams"] if not one["adds_up"]]
        if broken or not self.told["gateway"]["adds_up"]:
            names = printable(", ".join(broken[:3])) or "somewhere"
            text.append(f"✕ NUMBERS DO NOT ADD UP: {names}  ", style="bold reverse red")
        levels = [judged(one).level for one in self.told["upstreams"]]
        ill = sum(level > 1 for level in levels)
        mark, style = LEVELS[max(levels, default=0)]
        verdict = (
            f"{ill} of {len(levels)} need{'s' * (ill == 1)} a look"
            if ill
            else f"{plural(len(levels), 'upstream')}, all answered"
        )
        text.append(f"{mark} {verdict}", style=style)
        asked = sum(one["window"]["rates"]["asked"] for one in self.told["upstreams"])
        lag = self.told["gateway"]["lag"]["now"]
        text.append(f"  {asked:.0f} calls/s  loop {seconds(lag)} late  {ORDERS[self.order]}", style="dim")
        return text
