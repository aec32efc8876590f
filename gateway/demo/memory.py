"""Where the catalog remembers answers beyond its end: a file of the user's, or nowhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fallbacks.stores import SQLiteStore

log = logging.getLogger("gateway")

NOWHERE = "none"
PLACE = Path("async-worker-gateway", "catalog.sqlite")


def store_in(file: str | None) -> SQLiteStore | None:
    """The store in a file, or in the user's cache folder; None for "none", or where there cannot be one."""
    if file == NOWHERE:
        return None
    try:
        path = cache_folder() / PLACE if file is None else Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return SQLiteStore(path)
    except (OSError, RuntimeError, ValueError) as error:  # no right to it; no home; a folder of that name
        log.warning("the catalog remembers only until it ends, choose a file with --memory: %s", error)
        return None


def cache_folder() -> Path:
    """As the XDG Base Directory Specification has it. Raises RuntimeError for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
