"""The blast radius as a picture: a row for each aggregator, a bar for every half second, shaded where b is ill.

It brings its own background and both sets of colours, so it can be read in the light and in the dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.blast import Run

WIDTH, LEFT, RIGHT = 960, 74, 24
TOP, ROW, BARS = 96, 168, 96
STEP = 0.5
KINDS = ("live", "degraded", "lost")

STYLE = """
  svg { --paper: #ffffff; --ink: #1f2933; --soft: #5b6773; --line: #dde3e9; --ill: #f4ece2;
        --live: #159a74; --degraded: #58b4e5; --lost: #d1442f }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #14191f; --ink: #e8edf2; --soft: #9aa7b4; --line: #2c353f; --ill: #272320;
          --live: #2bb389; --degraded: #4aa3d6; --lost: #e7634d }
  }
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft) }
  .title { font-size: 19px; font-weight: 600; fill: var(--ink) } .head { font-weight: 600; fill: var(--ink) }
  .end { text-anchor: end } .middle { text-anchor: middle }
  .paper { fill: var(--paper); stroke: var(--line) } .ill { fill: var(--ill) } .grid { stroke: var(--line) }
  .live { fill: var(--live) } .degraded { fill: var(--degraded) } .lost { fill: var(--lost) }
"""


def draw(runs: Mapping[str, Run]) -> str:
    """The whole picture."""
    height = TOP + ROW * len(runs) + 12
    title = "One of three upstreams falls ill, again and again: what becomes of the pages"
    parts = [
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        text(LEFT, 34, title, "title"),
        *legend(),
    ]
    for number, (name, run) in enumerate(runs.items()):
        parts += row(name, run, TOP + number * ROW)
    label = escape(f"{title}. {'; '.join(summary(name, run) for name, run in runs.items())}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{label}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def legend() -> Iterator[str]:
    """Which colour is what."""
    said = {"live": "live, in time", "degraded": "in time, from memory or a default", "lost": "failed, or too late"}
    x = float(LEFT)
    for kind, label in said.items():
        yield box(kind, x, 50, 12, 12)
        yield text(x + 18, 60, label)
        x += 44 + 7.0 * len(label)


def row(name: str, run: Run, top: float) -> Iterator[str]:
    """One aggregator."""
    seconds = run.phases[-1].ends
    scale = (WIDTH - LEFT - RIGHT) / seconds
    y = top + 36
    yield text(LEFT, top + 8, name, "head")
    yield text(LEFT + 10 + 8 * len(name), top + 8, summary(name, run).partition(": ")[2])
    for phase in run.phases:
        if not phase.name.startswith(("well", "after")):
            left, wide = LEFT + phase.begins * scale, (phase.ends - phase.begins) * scale
            yield box("ill", left, y - 10, wide, BARS + 14)
            yield text(left + wide / 2, top + 24, f"b {phase.name}", "middle")
    pages = [one for one in run.requests if one.page]
    counts = [[0] * len(KINDS) for _ in range(int(seconds / STEP))]
    for one in pages:
        counts[min(len(counts) - 1, int(one.sent / STEP))][KINDS.index(one.kind)] += 1
    most = max(sum(kinds) for kinds in counts)
    for number in (0, 1):
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + BARS * number}" y2="{y + BARS * number}"/>'
    yield text(LEFT - 8, y + 5, f"{most / STEP:.0f}/s", "end")
    yield text(LEFT - 8, y + BARS + 4, "0", "end")
    for number, kinds in enumerate(counts):
        bottom = y + BARS
        for kind, count in zip(KINDS, kinds, strict=True):
            tall = BARS * count / most
            bottom -= tall
            if count:
                yield box(kind, LEFT + number * STEP * scale + 0.4, bottom, STEP * scale - 0.8, tall)
    for phase in run.phases[::2]:
        yield text(LEFT + phase.begins * scale, y + BARS + 18, f"{phase.begins:.0f} s", "middle")


def summary(name: str, run: Run) -> str:
    """What is to be said of it."""
    pages = [one for one in run.requests if one.page]
    lost = sum(one.kind == "lost" for one in pages)
    others = [one for one in run.requests if not one.page]
    away = sum(one.kind == "lost" for one in others)
    return f"{name}: {lost:,} of {len(pages):,} pages lost, and {away:,} of {len(others):,} requests that do not need b"


def text(x: float, y: float, content: str, class_: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{class_}">{escape(content)}</text>'


def box(class_: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle."""
    return f'<rect class="{class_}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
