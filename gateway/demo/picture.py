"""A picture of the scenario, as SVG: where the pages came from, how long they took, what the circuits did.

It brings its own background and both sets of colours, so it can be read in the light and in the dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

from gateway.demo.plan import DEADLINE, RATE
from gateway.demo.seconds import KINDS, UPSTREAMS, Change, Kind, Second
from gateway.demo.verdict import Run

WIDTH, LEFT, RIGHT = 960, 84, 24
ANSWERS, LATENCY, CIRCUITS = (116, 180), (344, 150), (536, 58)
"""Top and height of each part."""
VERDICT = 648
FASTEST, SLOWEST = 0.001, 10.0
"""Seconds: the scale of latencies is logarithmic, and the same in every picture."""
CLASSES: dict[Kind, str] = {"live": "live", "last good": "good", "default": "default", "error": "error"}
LINES = frozenset({"p50", "p99", "limit"})

STYLE = """
  svg { --paper: #ffffff; --ink: #1f2933; --soft: #5b6773; --line: #dde3e9; --ill: #f4ece2;
        --live: #159a74; --good: #58b4e5; --default: #b9a3d6; --error: #d1442f; --open: #d1442f; --half: #e2a316; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #14191f; --ink: #e8edf2; --soft: #9aa7b4; --line: #2c353f; --ill: #272320;
          --live: #2bb389; --good: #4aa3d6; --default: #9a83c0; --error: #e7634d; --open: #e7634d; --half: #e8b13a; }
  }
  text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--soft) }
  .title { font-size: 19px; font-weight: 600; fill: var(--ink) }
  .head { font-weight: 600; fill: var(--ink) }
  .end { text-anchor: end } .middle { text-anchor: middle }
  .paper { fill: var(--paper); stroke: var(--line) } .ill { fill: var(--ill) }
  .grid { stroke: var(--line); stroke-width: 1 } .limit { stroke: var(--error); stroke-dasharray: 5 4 }
  .live { fill: var(--live) } .good { fill: var(--good) }
  .default { fill: var(--default) } .error { fill: var(--error) }
  .closed { fill: var(--live) } .open { fill: var(--open) } .half_open { fill: var(--half) }
  .p50, .p99 { fill: none; stroke-width: 2.2; stroke-linejoin: round }
  .p50 { stroke: var(--soft) } .p99 { stroke: var(--ink) }
"""


def draw(run: Run, seconds: Sequence[Second], *, title: str, verdict: Sequence[str]) -> str:
    """The whole picture."""
    height = VERDICT + 20 * len(verdict)
    x = Axis(run.plan.seconds)
    parts = [
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        text(LEFT, 36, title, "title"),
        *phases(run, x),
        *answers(seconds, x),
        *latency(seconds, x),
        *(circuits(run.changes, x) if seconds[0].circuits else no_circuits()),
        *(text(LEFT, VERDICT + 20 * row, sentence.strip()) for row, sentence in enumerate(verdict)),
    ]
    label = escape(f"{title}. {' '.join(verdict)}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{label}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


@dataclass(frozen=True)
class Axis:
    """The axis of time."""

    seconds: int

    def __call__(self, second: float) -> float:
        """Where an instant stands."""
        return LEFT + (WIDTH - LEFT - RIGHT) * second / self.seconds


def phases(run: Run, x: Axis) -> Iterator[str]:
    """What happens when: the ill phases are shaded through all parts."""
    top, bottom = ANSWERS[0] - 8, sum(CIRCUITS) + 4
    for phase in run.plan.phases:
        left, right = x(phase.begins), x(phase.ends)
        if not phase.calm:
            yield box("ill", left, top, right - left, bottom - top)
        yield text((left + right) / 2, top - 7, phase.name, "head middle" if not phase.calm else "middle")
        yield text(left, bottom + 16, f"{phase.begins}", "middle")
    yield text(x(x.seconds), bottom + 16, f"{x.seconds} s", "middle")


def answers(seconds: Sequence[Second], x: Axis) -> Iterator[str]:
    """Bars: the pages of each second, by where they came from."""
    top, height = ANSWERS
    most = max(RATE, *(second.requests for second in seconds))
    width = x(1) - x(0)
    seen = [kind for kind in KINDS if any(second.kinds[kind] for second in seconds)]
    yield from legend(((CLASSES[kind], kind) for kind in seen), top - 48)
    for pages in (0, 50, 100):
        y = top + height - height * pages / most
        yield rule(y)
        yield text(LEFT - 8, y + 4, f"{pages}", "end")
    yield side("pages a second", top + height / 2)
    for second in seconds:
        y = float(top + height)
        for kind in KINDS:
            tall = height * second.kinds[kind] / most
            y -= tall
            if tall:
                yield box(CLASSES[kind], x(second.number) + 0.6, y, width - 1.2, tall)


def latency(seconds: Sequence[Second], x: Axis) -> Iterator[str]:
    """Two lines, on a logarithmic scale, and the deadline."""
    top, height = LATENCY

    def y(took: float) -> float:
        share = log10(max(FASTEST, took) / FASTEST) / log10(SLOWEST / FASTEST)
        return top + height * (1 - min(1.0, share))

    yield from legend((("p50", "half of the pages"), ("p99", "99 of 100"), ("limit", "the deadline")), top - 18)
    for took, label in ((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s")):
        yield rule(y(took), "limit" if took == DEADLINE else "grid")
        yield text(LEFT - 8, y(took) + 4, label, "end")
    yield side("time to answer", top + height / 2)
    for name, values in (("p50", [one.p50 for one in seconds]), ("p99", [one.p99 for one in seconds])):
        points = " ".join(f"{x(number + 0.5):.1f},{y(took):.1f}" for number, took in enumerate(values))
        yield f'<polyline class="{name}" points="{points}"/>'


def circuits(changes: Sequence[Change], x: Axis) -> Iterator[str]:
    """A bar for each circuit."""
    top, height = CIRCUITS
    yield from legend((("closed", "closed"), ("open", "open: nothing is sent"), ("half_open", "half-open")), top - 14)
    yield side("circuits", top + height / 2)
    for row, upstream in enumerate(UPSTREAMS):
        y = top + row * height / 2
        own = [one for one in changes if one.upstream == upstream and 0 <= one.at < x.seconds]
        begins = [(0.0, "closed"), *((one.at, one.state) for one in own)]
        ends = [*(one.at for one in own), float(x.seconds)]
        yield text(LEFT - 8, y + 15, upstream, "end")
        for (begin, state), until in zip(begins, ends, strict=True):
            thick = 6 if state == "closed" else 16
            yield box(state, x(begin), y + 10 - thick / 2, max(1.5, x(until) - x(begin)), thick)


def no_circuits() -> Iterator[str]:
    """There is none."""
    middle = CIRCUITS[0] + CIRCUITS[1] / 2
    yield side("circuits", middle)
    yield text((LEFT + WIDTH - RIGHT) / 2, middle + 4, "none: whoever asks is sent, and waits", "middle")


def legend(entries: Iterable[tuple[str, str]], y: float) -> Iterator[str]:
    """Which colour is what."""
    x = float(LEFT)
    for class_, label in entries:
        if class_ in LINES:
            yield f'<line class="{class_}" x1="{x:.1f}" x2="{x + 14:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
        else:
            yield box(class_, x, y - 10, 12, 12)
        yield text(x + 18, y, label)
        x += 40 + 7.2 * len(label)


def text(x: float, y: float, content: str, class_: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{class_}">{escape(content)}</text>'


def box(class_: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle."""
    return f'<rect class="{class_}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def rule(y: float, class_: str = "grid") -> str:
    """A line across."""
    return f'<line class="{class_}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def side(content: str, y: float) -> str:
    """What an axis measures, written upwards."""
    return f'<text transform="translate(20 {y:.1f}) rotate(-90)" class="head middle">{escape(content)}</text>'
