"""The info service: what there is to say about a film. From our own file, or, with a key for it, from TMDB."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from gateway.demo.faults import FaultSwitch, answer
from gateway.demo.films import films
from gateway.demo.tmdb import Tmdb
from gateway.log import listen


def create(environment: Mapping[str, str] = os.environ) -> web.Application:
    """The service."""
    app = web.Application()
    FaultSwitch().install(app)
    tmdb = Tmdb.from_environment(environment)
    if tmdb is None:
        app.router.add_get("/movies/{movie_id}", movie)
    else:
        listen(tmdb.gate)
        tmdb.install(app)
    return app


async def movie(request: web.Request) -> web.Response:
    """One film, or 404."""
    movie_id = request.match_info["movie_id"]
    film = films().get(movie_id)
    if film is None:
        return answer({"error": f"there is no film {movie_id!r}"}, status=404)
    return answer({"movieId": film.id, "name": film.name, "description": film.description})
