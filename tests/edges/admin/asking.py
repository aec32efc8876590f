"""Requests to an admin server, byte by byte as a test wants them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway import Gateway
from gateway.admin import Admin, serve
from tests.edges.running import Reply


@asynccontextmanager
async def admin_of(gate: Gateway, **settings: Any) -> AsyncIterator[Admin]:
    """An admin server on any free port, with the gateway open."""
    async with gate, await serve(gate, **{"port": 0, **settings}) as admin:
        yield admin


async def ask(
    admin: Admin,
    method: str,
    path: str,
    *,
    json_: Any = None,
    body: bytes | None = None,
    raw: bytes = b"",
    token: str | None = None,
    host: str | None = None,
    **headers: str,
) -> Reply:
    """One request, one connection. Headers by their names, with _ for -; `raw` goes after them as it is."""
    content = body if json_ is None else json.dumps(json_).encode()
    lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
    if host != "":
        lines.append(f"Host: {host or f'127.0.0.1:{admin.port}'}")
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if json_ is not None:
        lines.append("Content-Type: application/json")
    if content is not None:
        lines.append(f"Content-Length: {len(content)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + (content or raw))
        return reply_in(await reader.read())
    finally:
        writer.close()


def reply_in(raw: bytes) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(first.split()[1]), headers, body)
