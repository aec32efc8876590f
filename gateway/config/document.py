"""A policy file as text: bounded, in UTF-8, in TOML; where its keys stand, and what it takes from the environment."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

from gateway.outcome import ConfigError

MOST_BYTES = 1024 * 1024
MOST_IN_LINE = 4096
"""Characters: for keys of very many parts tomllib takes minutes."""
VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|(\$\{)")
BARE = re.compile(r"[A-Za-z0-9_-]+")
Path = tuple[str, ...]

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlevel = 2


def shown(value: object) -> str:
    """A value as an error shows it: never long."""
    return _repr.repr(value)


class FromEnvironment(str):
    """A text with something in it that the environment said: no error shows it."""

    __slots__ = ("variables",)

    variables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """What stands in a file. `name` is what errors call it."""

    name: str
    text: str
    table: dict[str, Any]

    def lines(self) -> dict[Path, int]:
        """The line where each key first stands, as far as it can be told."""
        return dict(reversed(list(lines_of(self.text.replace("\r\n", "\n")))))


def content_of(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of at most 1 MiB; a ConfigError for anything else."""
    try:
        # A path, that is: a number would be a file that somebody has open, and close it.
        with open(os.fspath(path), "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(shown_path(path), "it is no regular file", "give the path of a TOML file")
            content = file.read(MOST_BYTES + 1)
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            shown_path(path), f"it cannot be read: {why}", "give the path of a TOML file that this process may read"
        ) from None
    if len(content) > MOST_BYTES:
        raise ConfigError(shown_path(path), "it is larger than 1 MiB", "give the path of a policy file")
    return content


def _without_waiting(path: str, flags: int) -> int:
    """Open it; a pipe that nobody writes to must not hold up the event loop."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def shown_path(path: object) -> str:
    """A path as errors name it."""
    return path if isinstance(path, str) else os.fspath(path) if isinstance(path, os.PathLike) else shown(path)


def document_of(content: bytes | str, *, name: str) -> Document:
    """The TOML in a file's content; a ConfigError with line and column for what is none."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at_line = error.object.count(b"\n", 0, error.start) + 1
        wrong = ConfigError(name, f"it is not UTF-8 (at line {at_line}, byte {error.start})", "save it as UTF-8")
        wrong.line = at_line
        raise wrong from None
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MOST_IN_LINE:
            wrong = ConfigError(name, f"line {number} has more than {MOST_IN_LINE} characters", "make it shorter")
            wrong.line = number
            raise wrong
    try:
        return Document(name, text, tomllib.loads(text))
    except RecursionError:
        raise ConfigError(
            name, "it is nested too deeply", "see the page on policy files for what stands in it"
        ) from None
    except ValueError as error:  # also for integers of thousands of digits
        at = re.search(r"line (\d+)", str(error))
        wrong = ConfigError(name, f"it is no TOML: {error}", "mend it there")
        wrong.line = int(at[1]) if at else None
        raise wrong from None


def key_of(path: Path) -> str:
    """A path as TOML writes it."""
    return ".".join(part if BARE.fullmatch(part) else quoted(part) for part in path)


def quoted(text: str) -> str:
    """A text as a TOML string."""
    plain = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    special = (f"\\u{ord(c):04x}" if ord(c) < ord(" ") or c == "\x7f" else c for c in text)
    return '"' + "".join(plain.get(c, s) for c, s in zip(text, special, strict=True)) + '"'


def lines_of(text: str) -> Iterator[tuple[Path, int]]:
    """Where keys and headers stand: what looks like one, line by line. tomllib does not tell."""
    here: Path = ()
    around: Path
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.lstrip().startswith("["):
                around, key = (), _first_path(tomllib.loads(line))
                here = key
            elif "=" in line:
                around, key = here, _first_path(tomllib.loads(line.partition("=")[0] + "= 0"))
            else:
                continue
            yield from ((around + key[:n], number) for n in range(1, len(key) + 1))
        except (ValueError, RecursionError):  # not the beginning of anything
            continue


def _first_path(table: Any) -> Path:
    path: Path = ()
    while isinstance(table, dict) and table:
        key = next(iter(table))
        path, table = (*path, key), table[key]
    return path


def filled(value: Any, path: Path, environment: Mapping[str, str], errors: list[ConfigError]) -> Any:
    """A value with the environment's words for each `${NAME}` in its texts; `$${` stands for `${` itself."""
    if isinstance(value, str):
        return _filled(value, path, environment, errors)
    if isinstance(value, list):
        return [filled(one, path, environment, errors) for one in value]
    if isinstance(value, dict):
        return {key: filled(one, (*path, key), environment, errors) for key, one in value.items()}
    return value


def _filled(text: str, path: Path, environment: Mapping[str, str], errors: list[ConfigError]) -> str:
    names: list[str] = []

    def word(found: re.Match[str]) -> str:
        escaped, name, stray = found.groups()
        if escaped:
            return "${"
        if stray:
            problem = "a `${` that no variable follows"
            errors.append(ConfigError(key_of(path), problem, 'write "${NAME}", or "$${" for the characters themselves'))
        elif name not in environment:
            problem = f"the environment has no {name}"
            errors.append(ConfigError(key_of(path), problem, f"set {name}, or write the value itself"))
        names.append(name)
        return environment.get(name or "", "")

    text = VARIABLE.sub(word, text)
    if not names:
        return text
    secret = FromEnvironment(text)
    secret.variables = tuple(name for name in names if name)
    return secret
