"""Numbers as pictures in letters. Nothing is told by colour alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import inf

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.top.verdict import Document, detailed, judged, number, percent, printable, seconds, shares

KINDS = {"live": ("●", "green"), "last_good": ("◐", "yellow"), "default": ("◇", "magenta"), "error": ("✕", "red")}
CIRCUITS = {
    "closed": ("● closed", "green"),
    "open": ("◯ open", "bold red"),
    "half_open": ("◑ half-open", "yellow"),
    "isolated": ("■ isolated", "bold red"),
}
LEVELS = (("●", "green"), ("◐", "yellow"), ("▲", "bold yellow"), ("✕", "bold red"))
BLOCKS = "▁▂▃▄▅▆▇█"
PLACES = 8
NOTHING = "-"
ROOM_FOR_ONE = 16
"""Lines that the picture of one upstream takes."""


def table(upstreams: list[Document], *, width: int, selected: int = -1) -> Table:
    """A line for each; narrow terminals leave the least telling columns out."""
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    columns = columns_for(width, longest=max([8, *(len(printable(one["name"])) for one in upstreams)]))
    for name, room, _ in columns:
        right = name in {"calls/s", "p50", "p99", "queue"}
        drawn.add_column(name, width=room, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    for at, upstream in enumerate(upstreams):
        cells = [cell(upstream, room) for _, room, cell in columns]
        drawn.add_row(*cells, style="reverse" if at == selected else "")
    return drawn


def columns_for(width: int, *, longest: int) -> list[tuple[str, int, Callable[[Document, int], Text]]]:
    """The columns that there is room for, each with its width: the first ones are the most telling."""
    left = width - 1
    offered: list[tuple[str, int, Callable[[Document, int], Text]]] = [
        ("", 1, lambda one, _: mark_of(one)),
        ("upstream", min(longest, 24), lambda one, _: Text(printable(one["name"]))),
        ("circuit", 11, lambda one, _: circuit_of(one)),
        ("calls/s", 7, lambda one, _: Text(f"{one['window']['rates']['asked']:.1f}")),
        ("pool", 22, lambda one, _: pool_of(one)),
        ("answers", 22, lambda one, _: answers_of(one)),
        ("p99", 7, lambda one, _: figure_of(one, "latency", "p99")),
        ("p50", 7, lambda one, _: figure_of(one, "latency", "p50")),
        ("queue", 7, lambda one, _: figure_of(one, "waits", "p99")),
        ("a minute", 12, spark_of),
        ("what it is", 28, lambda one, _: Text(judged(one).reason, style="dim")),
    ]
    taken = []
    for name, room, cell in offered:
        if left < room + 1:
            break
        taken.append((name, room, cell))
        left -= room + 1
    return [(name, room + min(left, 48) if name == "a minute" else room, cell) for name, room, cell in taken]


def mark_of(upstream: Document) -> Text:
    """How ill it is."""
    mark, style = LEVELS[judged(upstream).level]
    return Text(mark, style=style)


def circuit_of(upstream: Document) -> Text:
    """Its circuit."""
    words, style = CIRCUITS[upstream["circuit"]["state"]]
    return Text(words + ("" if upstream["circuit"]["enforced"] else ", not enforced"), style=style)


def answers_of(upstream: Document) -> Text:
    """Which kinds of answers there were."""
    text = Text()
    for kind, share in shares(upstream["window"]["rates"]).items():
        if share:
            mark, style = KINDS[kind]
            text.append(f"{mark} {percent(share)} ", style=style)
    return text


def pool_of(upstream: Document) -> Text:
    """Its places: used, stuck, free; and who waits."""
    pool = upstream["pool"]
    limit = number(pool["limit"])
    places = max(1.0, pool["in_use"], pool["peak"] if limit == inf else limit)
    used = min(PLACES, -(-PLACES * (pool["in_use"] - pool["abandoned"]) // places))
    stuck = min(PLACES - used, -(-PLACES * pool["abandoned"] // places))
    text = Text("█" * int(used), style="cyan")
    text.append("▚" * int(stuck), style="red")
    text.append("·" * int(PLACES - used - stuck), style="dim")
    text.append(f" {pool['in_use']}/{'∞' if limit == inf else pool['limit']}", style="default")
    if pool["waiting"]:
        text.append(f" +{pool['waiting']} wait", style="bold yellow")
    return text


def spark_of(upstream: Document, room: int) -> Text:
    """The calls of its last seconds, as many as there is room for."""
    asked, degraded, failed = (upstream[name][-room:] for name in ("spark", "spark_degraded", "spark_failed"))
    most = max([4, *asked])
    text = Text(" " * (room - len(asked)))
    for count, helped, ill in zip(asked, degraded, failed, strict=True):
        style = "red" if ill else "yellow" if helped else "green"
        text.append(BLOCKS[min(7, int(7 * count // most))] if count else " ", style=style)
    return text


def figure_of(upstream: Document, which: str, quantile: str) -> Text:
    """A percentile, if anything was measured."""
    figures = upstream["window"][which]
    return Text(seconds(figures[quantile]) if figures["count"] else NOTHING)


def event_line(event: Document) -> Text:
    """Something that happened."""
    at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{at} ", style="dim")
    text.append(printable(event["upstream"]), style="bold")
    return text.append(f" {printable(event['kind'])}: {printable(event['text'])}")


def one_upstream(upstream: Document, told: Document, *, width: int, height: int) -> Iterator[RenderableType]:
    """All there is to say of one of them."""
    title = Text(printable(upstream["name"]), style="bold")
    if not detailed(upstream):
        yield Panel("its details are under way", title=title, title_align="left")
        return
    window, total, pool, circuit = upstream["window"], upstream["total"], upstream["pool"], upstream["circuit"]
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    facts.add_row("it is", Text(judged(upstream).reason))
    rate = f"{window['rates']['asked']:.1f} calls/s, {window['rates']['retries']:.1f} retries/s"
    facts.add_row("calls", Text(f"{rate}; in all {total['asked']}, {total['in_flight']} in flight"))
    facts.add_row("a minute", spark_of(upstream, max(10, min(60, width - 16))))
    facts.add_row("answers", answers_of(upstream))
    more = f"  {pool['waiting']} of {pool['queue']} queued, peak {pool['peak']}, {pool['rejected']} turned away"
    facts.add_row("pool", pool_of(upstream).append(more, style="default"))
    failing = f"  {circuit['failures']} of {circuit['calls']} failed, {circuit['rejected']} refused"
    facts.add_row("circuit", circuit_of(upstream).append(failing, style="default"))
    for name, which in (("time", "latency"), ("in the queue", "waits")):
        figures = window[which]
        quantiles = "  ".join(f"{quantile} {seconds(figures[quantile])}" for quantile in ("p50", "p90", "p99", "max"))
        facts.add_row(name, Text(quantiles if figures["count"] else NOTHING))
    changed = ", ".join(f"{knob} {before} → {now}" for knob, (before, now) in upstream["drift"].items())
    facts.add_row("tuned", Text(printable(changed) or NOTHING))
    facts.add_row(
        "numbers", Text("● they add up") if upstream["adds_up"] else Text("✕ do not add up", style="bold red")
    )
    yield Panel(facts, title=title, title_align="left")
    events = [event for event in told["events"] if event["upstream"] == upstream["name"]]
    room = max(0, height - ROOM_FOR_ONE)
    yield from (event_line(event) for event in reversed(events[-room:] if room else []))
