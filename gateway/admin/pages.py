"""The files of the page, read once: what is not among them is not there, whatever a path says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
NO_PAGE = b"<!doctype html><title>Gateway</title><p>This package came without its page. See /state and /metrics."


@dataclass(frozen=True, slots=True)
class File:
    """What is sent, and as what."""

    body: bytes
    kind: str


@cache
def page() -> dict[str, File]:
    """The files by their paths: the page itself at "/", what it needs below "/static/"."""
    found = {"/": File(NO_PAGE, KINDS[".html"])}
    folder = files(__package__ or "").joinpath("static")
    if folder.is_dir():
        for entry in folder.iterdir():
            kind = KINDS.get(PurePosixPath(entry.name).suffix)
            if kind is not None and entry.is_file():
                file = File(entry.read_bytes(), kind)
                found["/" if entry.name == INDEX else f"/static/{entry.name}"] = file
    return found
