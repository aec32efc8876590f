"""What is known of all upstreams: all of it at first, then what is another since the message before.

The page of the admin server puts the same messages together, in static/news.js. A row leaves out rates that are 0; the
details of the upstream that is open come before the rows.
"""

from __future__ import annotations

from collections import defaultdict

from gateway.top.verdict import Document

SECONDS, LINES = 60, 100
SPARKS = ("spark", "spark_degraded", "spark_failed")


class Missed(Exception):
    """A message is missing between what is known and what was told."""


class News:
    """What one line to the server has told."""

    def __init__(self) -> None:
        self._told: Document | None = None
        self._opened: Document = {}

    def hear(self, message: Document) -> Document | None:
        """What is known now; None after a message that tells nothing by itself. Raises Missed."""
        if "opened" in message:
            self._opened = message["opened"]
            return None
        self._told = told = self._merged(message) if "after" in message else whole(message)
        opened, self._opened = self._opened, {}  # it comes with each message
        rows = [row | opened if row["name"] == opened.get("name") else row for row in told["upstreams"]]
        return told | {"upstreams": rows}

    def _merged(self, message: Document) -> Document:
        told = self._told
        if told is None or told["number"] != message["after"]:
            raise Missed("a message is missing")
        moved = {row["name"]: filled(row) for row in message["upstreams"]}
        rows = [slid(row, moved.pop(row["name"], None), message["second"]) for row in told["upstreams"]]
        events = [*told["events"], *message["events"]]
        return message | {"upstreams": [*rows, *moved.values()], "events": events[-LINES:]}


def whole(message: Document) -> Document:
    """A message that has all of it."""
    return message | {"upstreams": [filled(row) for row in message.get("upstreams", [])]}


def filled(row: Document) -> Document:
    """A row that has every rate."""
    window = row["window"]
    return row | {"window": window | {"rates": defaultdict(float, window["rates"])}}


def slid(row: Document, now: Document | None, second: int) -> Document:
    """A row as it is now; its sparklines up to that second. In a second that nothing was told of, nothing was asked."""
    if now is None and second <= row["second"]:
        return row
    news = now or {"second": second}
    sparks = {}
    for spark in SPARKS:
        last = news.get(spark, [])
        gap = news["second"] - len(last) - row["second"]
        before = row[spark][:gap] if gap < 0 else [*row[spark], *[0] * gap]
        sparks[spark] = [*before, *last][-SECONDS:]
    return row | news | sparks
