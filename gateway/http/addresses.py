"""Where a request goes: below its base URL, through a proxy, where a redirect leads."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from gateway.http.request import PATHS_KEPT, BaseUrl


@lru_cache(maxsize=PATHS_KEPT)
def url_of(prefix: str, path: str) -> URL:
    """The address of a path below a base URL, which `confined` has looked at."""
    return URL(prefix + path if path.startswith(("/", "?")) or not path else f"{prefix}/{path}")


def followed(url: URL, location: str | None) -> URL | None:
    """Where a redirect leads, if that is of the same origin."""
    if location is None:
        return None
    try:
        target = URL(urljoin(str(url), location)).with_fragment(None)
        same = target.origin() == url.origin() and target.user is None and target.password is None
    except ValueError:
        return None
    return target if same else None


def proxy_for(base: BaseUrl) -> URL | None:
    """The proxy that the environment names for a server."""
    proxy = getproxies().get(base.scheme)
    return None if proxy is None or proxy_bypass(base.host) else URL(proxy)
