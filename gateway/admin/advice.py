"""What the numbers of an upstream say about its knobs."""

from __future__ import annotations

from typing import Any

from gateway.admin.sampler import Track
from gateway.upstream import Upstream


def advice_for(upstream: Upstream, track: Track) -> list[dict[str, Any]]:  # noqa: ARG001 - the next commit
    """Nothing yet."""
    return []
