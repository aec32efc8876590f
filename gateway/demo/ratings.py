"""The ratings service: who gave which film how many stars. Invented, but the same in every run."""

from __future__ import annotations

from hashlib import sha256

from aiohttp import web

from gateway.demo.faults import FaultSwitch, answer
from gateway.demo.films import films

FILMS_PER_USER = 5
STARS = (3, 4, 5, 2, 4, 5, 1, 4)


def create() -> web.Application:
    """The service."""
    app = web.Application()
    FaultSwitch().install(app)
    app.router.add_get("/ratingsdata/user/{user_id}", of_user)
    app.router.add_get("/ratingsdata/movies/{movie_id}", of_movie)
    return app


async def of_user(request: web.Request) -> web.Response:
    """A user's ratings. Everybody has seen something."""
    user_id = request.match_info["user_id"]
    seen = sorted(films(), key=lambda movie_id: draw(user_id, movie_id))[:FILMS_PER_USER]
    ratings = [{"movieId": movie_id, "rating": stars(user_id, movie_id)} for movie_id in seen]
    return answer({"userId": user_id, "ratings": ratings})


async def of_movie(request: web.Request) -> web.Response:
    """A film's rating."""
    movie_id = request.match_info["movie_id"]
    if movie_id not in films():
        return answer({"error": f"there is no film {movie_id!r}"}, status=404)
    return answer({"movieId": movie_id, "rating": stars("", movie_id)})


def stars(user_id: str, movie_id: str) -> int:
    """From 1 to 5."""
    return STARS[draw(user_id, movie_id)[-1] % len(STARS)]


def draw(user_id: str, movie_id: str) -> bytes:
    """A number drawn for a user and a film, the same one every time."""
    return sha256(f"{user_id}/{movie_id}".encode(errors="surrogatepass")).digest()
