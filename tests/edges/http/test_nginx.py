"""nginx in front: idle connections that it closes, bodies that it zips, backends that die behind it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway import Gateway, Outcome, Policy
from tests.edges.http.misbehaving import Visit, serving
from tests.edges.running import free_ports, listens
from tests.support import NEVER_OPENS, ONE_TRY, ended

pytestmark = pytest.mark.asyncio
QUIET = Policy(retry=ONE_TRY, breaker=NEVER_OPENS)
CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    keepalive_timeout {keepalive};
    gzip on; gzip_min_length 1; gzip_types *;
    server {{
        listen 127.0.0.1:{port};
        location /text {{ default_type application/json; return 200 '{{"a":1}}'; }}
        location / {{ proxy_pass http://127.0.0.1:{backend}; proxy_next_upstream off; }}
    }}
}}
"""


@asynccontextmanager
async def nginx(program: Callable[[str], str], folder: Path, *, backend: int = 9, keepalive: str) -> AsyncIterator[str]:
    """An nginx of this process; its URL."""
    (port,) = free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, backend=backend, keepalive=keepalive))
    command = [program("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            if process.poll() is not None or listens(port):
                break
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


# Who does not say when it closes may do so while a request is on its way, which is then lost: not at that moment.
@pytest.mark.parametrize(
    ("keepalive", "pauses"),
    [("1s 1s", [0.9 + n / 50 for n in range(10)]), ("1s", [0.7, 0.8, 1.2, 1.3])],
    ids=["said", "not said"],
)
async def test_posts_in_real_time_around_the_end_of_keep_alive_all_succeed(
    gate: Gateway, program: Callable[[str], str], tmp_path: Path, keepalive: str, pauses: list[float]
) -> None:
    async def backend(visit: Visit) -> None:
        await visit.request()
        await visit.say(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with serving(backend) as server, nginx(program, tmp_path, backend=server.port, keepalive=keepalive) as url:

        async def posts(pause: float) -> list[object]:
            up, results = gate.http(f"up{pause}", url, policy=QUIET), []
            for _ in range(3):
                results.append(getattr(await ended(up.post("/", data=b"x")), "status", "lost"))
                await asyncio.sleep(pause)
            return results

        results = await asyncio.gather(*(posts(pause) for pause in pauses))

        assert results == [[200] * 3] * len(pauses)


async def test_what_nginx_zips_is_unpacked(gate: Gateway, program: Callable[[str], str], tmp_path: Path) -> None:
    async with nginx(program, tmp_path, keepalive="1s 1s") as url:
        up = gate.http("up", url)

        answered = await up.get("/text")

        assert answered.headers["content-encoding"] == "gzip"
        assert answered.json() == {"a": 1}


async def test_a_backend_that_takes_effect_and_dies_is_unknown_and_asked_once(
    gate: Gateway, program: Callable[[str], str], tmp_path: Path
) -> None:
    async def dies(visit: Visit) -> None:
        await visit.request()

    async with serving(dies) as backend, nginx(program, tmp_path, backend=backend.port, keepalive="1s 1s") as url:
        up = gate.http("up", url)

        error = await ended(up.post("/charges", data=b"x"))

        assert error.outcome is Outcome.UNKNOWN
        assert error.__cause__.reply.status == 502
        assert len(backend.requests) == 1
