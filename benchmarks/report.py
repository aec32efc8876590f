"""docs/benchmarks.md, part by part: a part that is measured anew replaces its own section and leaves the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
MARK = "<!-- {name}: made by `make bench` -->"
INTRODUCTION = """\
# Measured, side by side

What this engine costs and what it is good for, beside what one would use instead. Nothing here is typed in by hand:

```console
$ make bench
```

runs all of it and writes this page; `make bench ARGS="speed"` runs one part (speed, profile, faults, blast, http,
catalog, growth, watching), and `ARGS="--quick"` shows in a few minutes that it works. The figures of two runs differ;
the order, and the ratios within a table, should not. Every section says when and where it was measured.
"""
ORDER = ("speed", "profile", "faults", "blast", "http", "catalog", "growth", "watching")


@dataclass(frozen=True, slots=True)
class Section:
    """A chapter: its title, and paragraphs and tables."""

    title: str
    parts: tuple[str, ...]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "") -> str:
    """A table of Markdown."""
    marks = {"l": "---", "r": "---:", "c": ":---:"}
    rules = [marks[one] for one in align or "l" * len(head)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rules, *rows))


def write(name: str, section: Section, *, took: float, quick: bool, before: str = "?", page: Path = PAGE) -> None:
    """Put a section into the page."""
    sections = read(page)
    how = f'`make bench ARGS="{name}{" --quick" if quick else ""}"`'
    when = (
        f"*{machine.now()}, {machine.here()}, load average {before} before it and {machine.load()} at "
        f"its end; {took:,.0f} s. {how}" + ("; a quick run, whose figures are rough" if quick else "") + "*"
    )
    sections[name] = "\n\n".join([f"## {section.title}", when, *section.parts]) + "\n"
    known = [f"{MARK.format(name=one)}\n\n{sections[one]}" for one in ORDER if one in sections]
    page.write_text("\n".join([INTRODUCTION, *known]))


def read(page: Path) -> dict[str, str]:
    """The sections that are there, by name."""
    if not page.exists():
        return {}
    pieces = re.split(MARK.format(name=r"(\w+)").replace("`", "`"), page.read_text())[1:]
    return {name: text.strip("\n") + "\n" for name, text in zip(pieces[::2], pieces[1::2], strict=True)}
