"""Who may change something: this very page, or a program. Never another site that a browser has open."""

from __future__ import annotations

from aiohttp import web
from yarl import URL


def comes_from_elsewhere(request: web.Request) -> bool:
    """Whether a browser says that another site sent this. Programs such as curl say nothing, and may."""
    if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        return True
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    try:
        return URL(origin).authority.lower() != URL(f"{request.scheme}://{request.host}").authority.lower()
    except ValueError:
        return True


def refuse_elsewhere(request: web.Request) -> None:
    """Raise a 403 for what another site sent."""
    if comes_from_elsewhere(request):
        raise web.HTTPForbidden(
            text='{"error":"another site may not change anything here"}', content_type="application/json"
        )
