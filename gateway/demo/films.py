"""The films: facts, with our own words about them. The ids are those of TMDB."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import msgspec


class Film(msgspec.Struct, frozen=True):
    """One film."""

    id: str
    name: str
    year: int
    director: str
    description: str


@cache
def films() -> dict[str, Film]:
    """All films by id, in the order of the file."""
    text = files(__package__ or "").joinpath("films.json").read_bytes()
    return {film.id: film for film in msgspec.json.decode(text, type=list[Film])}
