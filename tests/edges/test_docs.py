"""The guide in docs/: its code runs, prints what the pages show, and names only what there is.

How a page is read, block by block, in order and in virtual time:

- ```python runs in the namespace of the page; `await` may stand outside of functions. If its first line is a comment
  that names a file (`# conftest.py`), it becomes that file in an empty folder, which can be imported from.
- ```sh runs line by line in that folder; the program is `python`.
- ```output, right after one of these, is what it prints, to the letter (save for the seconds that pytest took).
  What shows no output prints none.

The tables of knobs in docs/numbers.md and docs/http.md are made of the docstrings in gateway/policy.py. To make them
anew:

    .venv/bin/python tests/edges/test_docs.py
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from inspect import iscoroutine
from itertools import pairwise
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gateway
from gateway import EndpointsPolicy, Gateway, HttpPolicy, Outcome, Source
from gateway.config.knobs import Knob, knobs, tables
from gateway.http.statuses import Statuses
from gateway.policy import KNOBS, SECTIONS, Quantity
from gateway.testing import assert_nothing_left

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NUMBERS = DOCS / "numbers.md"
TABLE_BEGINS = "<!-- the knobs: made by tests/edges/test_docs.py from gateway/policy.py -->\n"
HTTP = DOCS / "http.md"
HTTP_TABLE_BEGINS = "<!-- the knobs of HTTP: made by tests/edges/test_docs.py from gateway/policy.py -->\n"
TABLE_ENDS = "<!-- end of the knobs -->\n"

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])


# -- reading a page


@dataclass(frozen=True)
class Block:
    """What stands between two fences; `line` is the number of the opening one."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is, if it is one."""
        name = re.match(r"# (\w+\.py)\n", self.text)
        return name[1] if name and self.language == "python" else None


def blocks_of(page: Path) -> list[Block]:
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text()
    return [Block(one[1], one[2], text.count("\n", 0, one.start()) + 1) for one in fenced.finditer(text)]


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


# -- running it


class Reader:
    """Does what a page says, in a folder of its own."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.module = ModuleType(f"docs_{page.stem.replace('-', '_')}")

    async def do(self, block: Block) -> str:
        """Run a block; what a program printed."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "python":
            await self._run_python(block)
        elif block.language == "sh":
            return "".join(self._run_program(line) for line in block.text.splitlines())
        return ""

    async def _run_python(self, block: Block) -> None:
        text = "\n" * block.line + block.text  # so that a traceback names the line of the page
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(text, str(self.page), "exec", flags=flags, dont_inherit=True)
        result = eval(code, vars(self.module))  # noqa: S307 - our own pages
        if iscoroutine(result):
            await result

    def _run_program(self, line: str) -> str:
        program, *arguments = shlex.split(line)
        assert program == "python", f"{self.page.name}: what runs here is `python`, not {line!r}"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return re.sub(r"\bin \d+\.\d+s\b", "in 0.05s", done.stdout)

    async def close(self) -> None:
        """Look round after the page, and close its gateways."""
        for value in {id(value): value for value in vars(self.module).values()}.values():
            if isinstance(value, Gateway):
                assert_nothing_left(value)
                await value.close()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Reader]]:
    before = set(sys.modules)

    def read(page: Path) -> Reader:
        reader = Reader(page, tmp_path)
        monkeypatch.setitem(sys.modules, reader.module.__name__, reader.module)
        monkeypatch.syspath_prepend(tmp_path)
        return reader

    yield read

    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@each_page
@pytest.mark.virtual_time
async def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path, reader: Callable[[Path], Reader], capsys: pytest.CaptureFixture[str]
) -> None:
    the_reader = reader(page)

    for block, after in pairwise([*blocks_of(page), Block("", "", 0)]):
        printed = await the_reader.do(block) + capsys.readouterr().out
        shown = after.text if after.language == "output" and block.language in {"python", "sh"} else ""
        assert printed == shown, f"{page.name}, line {block.line}"

    await the_reader.close()


# -- the table of knobs


def knobs_of(source: str) -> dict[str, tuple[str, str]]:
    """Default and reason of every knob, by its path: both as they stand in the source of the policies."""
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    return {
        f"{table}.{name}".lstrip("."): (default, reason)
        for table, kind in tables().items()
        for name, default, reason in documented(classes[kind.__name__])
    }


def documented(policy: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Name, default and docstring of each field that has one."""
    for field, below in pairwise(policy.body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            default = field.value
            if isinstance(default, ast.Call) and ast.unparse(default.func) == "Derived":
                (default,) = default.args
            elif isinstance(default, ast.Call) and ast.unparse(default.func) == "field":
                factory = next(one.value for one in default.keywords if one.arg == "default_factory")
                default = (
                    factory.body if isinstance(factory, ast.Lambda) else ast.Call(func=factory, args=[], keywords=[])
                )
            yield field.target.id, ast.unparse(default), " ".join(str(below.value.value).split())


def table_of_knobs() -> str:
    rows = ["| knob | takes | default | what it is, and why |", "|---|---|---|---|"]
    known = knobs_of((ROOT / "gateway" / "policy.py").read_text())
    rows += [
        f"| `{path}` | {takes(knobs()[path])} | `{default}` | {reason} |" for path, (default, reason) in known.items()
    ]
    return "\n".join(rows) + "\n"


def table_of_http_knobs() -> str:
    rows = ["| knob | default | what it is, and why |", "|---|---|---|"]
    classes = {
        node.name: node
        for node in ast.parse((ROOT / "gateway" / "policy.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    for table, kind in (("http", HttpPolicy), ("http.endpoints", EndpointsPolicy)):
        told = list(documented(classes[kind.__name__]))
        assert {name for name, *_ in told} == {field.name for field in fields(kind)}
        rows += [f"| `{table}.{name}` | `{default}` | {reason} |" for name, default, reason in told]
    return "\n".join(rows) + "\n"


def takes(knob: Knob) -> str:
    """What stands in the column of that name, from the annotation in gateway/policy.py."""
    if isinstance(knob.takes, Quantity):
        least = knob.takes.least if knob.takes.least % 1 else int(knob.takes.least)
        words = f"{knob.takes.unit} {'above' if knob.takes.above else 'from'} {least}"
        words += f" to {knob.takes.most:g}" if knob.takes.most < inf else ", or inf" if knob.takes.endless else ""
    elif knob.takes is bool:
        words = "True or False"
    elif knob.takes == "wait":
        words = "a wait strategy"
    else:
        words = "a policy" if knob.takes == "policy" else " or ".join(map(repr, knob.takes))
    return words + ", or None" * knob.none


def with_table(page: str, table: str, begins: str = TABLE_BEGINS) -> str:
    before, _, rest = page.partition(begins)
    _, _, after = rest.partition(TABLE_ENDS)
    return f"{before}{begins}\n{table}\n{TABLE_ENDS}{after}"


def test_every_knob_has_a_default_and_a_reason() -> None:
    knobs = knobs_of((ROOT / "gateway" / "policy.py").read_text())

    assert sorted(knobs) == KNOBS
    assert all(reason.endswith(".") for _, reason in knobs.values())


def test_the_table_of_knobs_is_that_of_the_code() -> None:
    page = NUMBERS.read_text()

    assert page == with_table(page, table_of_knobs()), f"run: .venv/bin/python {Path(__file__).relative_to(ROOT)}"


def test_the_table_of_the_knobs_of_http_is_that_of_the_code() -> None:
    page = HTTP.read_text()

    made = with_table(page, table_of_http_knobs(), HTTP_TABLE_BEGINS)
    assert page == made, f"run: .venv/bin/python {Path(__file__).relative_to(ROOT)}"


def test_the_table_of_statuses_is_that_of_the_code() -> None:
    """Every status that there can be, with and without a `Retry-After`, for what may be repeated and what may not."""
    table = next(table for table in re.findall(r"(?:^\|.*\|\n)+", HTTP.read_text(), re.MULTILINE) if "2xx" in table)
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()]
    statuses = Statuses({})

    for status in range(200, 600):
        for wait in (None, 1.0):
            told = next(meanings for says, *meanings in rows[2:] if names(says, status, wait))
            meaning = statuses.meaning(status, wait)
            assert told[1] == meaning, status
            assert told[0] == (Outcome.FAILED if meaning is Outcome.UNKNOWN else meaning), status


def names(row: str, status: int, wait: float | None) -> bool:
    """Whether the first cell of a row is about a status."""
    if "`Retry-After`" in row and wait is None:
        return False
    return str(status) in row or f"{status // 100}xx" in row


# -- what the pages name


@each_page
def test_a_page_names_no_knob_that_there_is_not(page: Path) -> None:
    sections = "|".join(SECTIONS)

    named = set(re.findall(rf"`((?:{sections})\.\w+)[`=]", page.read_text()))

    assert named <= set(KNOBS)


def test_the_defaults_beside_those_of_others_are_ours() -> None:
    knobs = knobs_of((ROOT / "gateway" / "policy.py").read_text())
    compared = 0

    for names, ours in rows_of(DOCS / "coming-from.md", last="ours"):
        known = [name for name in re.findall(r"`([\w.]+)[`=]", names) if name in knobs]
        if ours not in {"", "jitter"}:
            assert [ast.literal_eval(one) for one in ours.split(", ")] == [
                ast.literal_eval(knobs[name][0]) for name in known
            ], names
            compared += 1
    for ours, where in rows_of(NUMBERS, last="where"):
        assert float(ours.split()[0]) == ast.literal_eval(knobs[where.split("`")[1]][0]), where
        compared += 1

    assert compared > 40


def rows_of(page: Path, *, last: str) -> Iterator[tuple[str, str]]:
    """The last two cells of each row of the tables whose last heading is this."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose_of(page), flags=re.MULTILINE):
        rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
        if rows[0][-1] == last:
            yield from ((row[-2], row[-1]) for row in rows[2:])


@each_page
def test_a_page_imports_only_what_users_have(page: Path) -> None:
    ours = {f"gateway.{name}" for name in ("admin", "config", "log", "metrics", "testing")}
    public = {"fallbacks", "fallbacks.stores", "gateway", *ours}
    tools = {"aiohttp", "msgspec", "pytest", "pytest_asyncio", "tenacity"}
    own = {block.file.removesuffix(".py") for block in blocks_of(page) if block.file}

    imported = {
        name
        for block in blocks_of(page)
        if block.language == "python"
        for node in ast.walk(ast.parse(block.text))
        for name in imported_by(node)
    }

    theirs = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert theirs <= public | tools | own


def imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []


def test_the_ideas_name_every_error_and_every_outcome() -> None:
    public: dict[str, Any] = {name: getattr(gateway, name) for name in gateway.__all__}
    errors = {name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, Exception)}
    ideas = prose_of(DOCS / "ideas.md")

    assert {name for name in errors if f"`{name}`" not in ideas} == set()
    assert {outcome for outcome in Outcome if f"*{outcome}*" not in ideas} == set()


def test_the_glossary_has_every_outcome_and_every_source() -> None:
    glossary = prose_of(DOCS / "glossary.md")

    assert {word for word in (*Outcome, *Source) if f"**{word}**" not in glossary} == set()


@each_page
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(there), f"{page.name}: {target}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to hyphens, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    NUMBERS.write_text(with_table(NUMBERS.read_text(), table_of_knobs()))
    HTTP.write_text(with_table(HTTP.read_text(), table_of_http_knobs(), HTTP_TABLE_BEGINS))
