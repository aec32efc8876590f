"""Posters: a picture for a film, drawn from its title by a plain function.

It computes, up to a millisecond or two, and on the event loop everybody would wait for it. As an operation it runs in
the threads of its upstream, never more of them at once than the pool has places.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from html import escape
from math import cos, exp, pi, sin
from random import Random
from textwrap import wrap

WIDTH, HEIGHT = 200, 300
LINE = 12
"""Letters on a line of the title, if they are to be large."""
LINES = 5
PALETTES = (  # ground, far, near, light
    ("#1d2b3a", "#3d5a73", "#e07a4f", "#f4e3c1"),
    ("#2b1d33", "#6b3f69", "#e8a87c", "#f6e7d8"),
    ("#12312b", "#2f6b5c", "#d9b44a", "#f2ead3"),
    ("#3a1f1d", "#8c3b33", "#e9c46a", "#fbf1dd"),
    ("#1b2440", "#41508f", "#9fc2cc", "#eef2f0"),
    ("#33291c", "#7a6240", "#8fb3a3", "#f3ecdd"),
    ("#0f2a3d", "#1f6f8b", "#f0a36b", "#fdf3e3"),
    ("#26262b", "#5c5c66", "#d96c75", "#f3efe9"),
)


def draw(title: str) -> bytes:
    """The poster of a film: an SVG, the same for the same title every time."""
    random = Random(sha256(title.encode(errors="replace")).digest())  # noqa: S311 - a picture, no secret
    ground, far, near, light = random.choice(PALETTES)
    motif = random.choice((ridges, rings, skyline, moon, sunset))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{ground}"/>'
        f"{''.join(motif(random, far, near, light))}"
        f'<g fill="{light}" font-family="Georgia, \'Times New Roman\', serif" font-weight="700">'
        f"{''.join(lettering(title))}</g>"
        "</svg>"
    ).encode()


def lettering(title: str) -> Iterator[str]:
    """The title, from the top down."""
    printable = "".join(letter if letter.isprintable() else " " for letter in title)
    lines = wrap(printable, LINE, max_lines=LINES, placeholder=" …") or ["?"]
    size = min(27.0, (WIDTH - 32) / (0.62 * max(map(len, lines))))  # a bold letter is about so wide
    for number, line in enumerate(lines):
        yield f'<text x="18" y="{18 + size * (0.9 + 1.12 * number):.1f}" font-size="{size:.1f}">{escape(line)}</text>'


def path(points: list[tuple[float, float]]) -> str:
    """Points as the `d` of a path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def disc(x: float, y: float, radius: float, fill: str, opacity: float = 1.0) -> str:
    """A circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" fill-opacity="{opacity}"/>'


def ridges(random: Random, far: str, near: str, light: str) -> Iterator[str]:
    """Mountains behind mountains."""
    layers = 9
    for layer in range(layers):
        base, depth = 150 + 17 * layer, layer / (layers - 1)
        bumps = [(random.uniform(0, WIDTH), random.uniform(14, 50), random.uniform(12, 46)) for _ in range(5)]
        line: list[tuple[float, float]] = []
        for x in range(0, WIDTH + 1, 4):
            rise = sum(height * exp(-(((x - at) / width) ** 2)) for at, width, height in bumps)
            line.append((x, base - rise / (1 + depth)))
        shape = path([*line, (WIDTH, HEIGHT), (0, HEIGHT)])
        fill = near if layer == layers - 1 else far
        yield f'<path d="{shape}Z" fill="{fill}" fill-opacity="{0.25 + 0.75 * depth:.2f}"/>'
        yield f'<path d="{path(line)}" fill="none" stroke="{light}" stroke-opacity=".25"/>'


def rings(random: Random, far: str, near: str, light: str) -> Iterator[str]:
    """Circles that do not quite meet."""
    x, y = random.uniform(70, 130), random.uniform(185, 215)
    for number in range(11, 0, -1):
        circle: list[tuple[float, float]] = []
        for step in range(73):
            angle = 2 * pi * step / 72
            radius = number * 9 + 2.2 * sin(angle * (3 + number % 4) + number)
            circle.append((x + radius * cos(angle), y + radius * sin(angle)))
        fill, opacity = (near, 0.95) if number == 1 else (far, 0.16)
        line = light if number % 3 else near
        yield f'<path d="{path(circle)}Z" fill="{fill}" fill-opacity="{opacity}" stroke="{line}" stroke-opacity=".55"/>'


def skyline(random: Random, far: str, near: str, light: str) -> Iterator[str]:
    """A city, with somebody still awake."""
    for fill, least, most in ((far, 70, 140), (near, 30, 85)):
        x = -random.uniform(0, 10)
        while x < WIDTH:
            width, height = random.uniform(16, 34), random.uniform(least, most)
            yield box(x, HEIGHT - height, width, height, fill)
            if fill == far:
                awake = [level for level in range(int(height // 13)) if random.getrandbits(1)]
                for level in awake:
                    yield box(x + random.uniform(3, width - 6), HEIGHT - height + 6 + 13 * level, 3, 5, light)
            x += width + random.uniform(0, 3)


def moon(random: Random, far: str, near: str, light: str) -> Iterator[str]:
    """A moon over water."""
    x, y, radius = random.uniform(60, 140), random.uniform(160, 180), random.uniform(26, 38)
    yield disc(x, y, radius, light)
    yield disc(x + radius * 0.3, y - radius * 0.1, radius * 0.7, near, 0.3)
    yield box(0, 225, WIDTH, HEIGHT - 225, far)
    for number in range(12):
        half = random.uniform(4, 34)
        yield box(x - half, 230 + number * 5.6, 2 * half, 1.6, light)


def sunset(random: Random, far: str, near: str, light: str) -> Iterator[str]:
    """A sun in stripes, and a road."""
    x = random.uniform(80, 120)
    yield disc(x, 220, random.uniform(52, 64), near)
    for number in range(5):
        yield box(0, 204 + number * 10, WIDTH, 2 + number, far)
    yield box(0, 252, WIDTH, HEIGHT - 252, far)
    yield f'<path d="M{x - 2:.1f} 252h4L{x + 46:.1f} 300h-92Z" fill="{light}" fill-opacity=".85"/>'
