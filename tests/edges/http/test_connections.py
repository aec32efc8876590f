"""Connections: used again while they are surely good, closed when nobody needs them, verified where they are TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import BulkheadPolicy, ConfigError, Gateway, HttpPolicy, NotSent, Policy
from gateway.http.connections import SERVERS_KNOWN
from tests.edges.http.misbehaving import OK, Behaviour, Visit, always, reply, serving
from tests.support import NEVER_OPENS, ONE_TRY, ended, now, steps, until

pytestmark = pytest.mark.asyncio
QUIET = Policy(retry=ONE_TRY, breaker=NEVER_OPENS)


def worst_case(idle_for: float, said: str = "") -> Behaviour:
    """Closes when a request comes after more than so many seconds: it crosses with the closing on its way."""

    async def behaviour(visit: Visit) -> None:
        last = now()
        while True:
            await visit.request()
            if now() - last > idle_for:
                return
            await visit.say(reply(b"ok", *([said] if said else [])))
            last = now()

    return behaviour


# -- keep-alive


@pytest.mark.virtual_time
@pytest.mark.parametrize("pause", [0.5, 0.999, 1.001, 1.5, 3.0])
async def test_posts_to_the_worst_case_server_all_succeed(gate: Gateway, pause: float) -> None:
    async with serving(worst_case(1.0, "Keep-Alive: timeout=1, max=100")) as server:
        up = gate.http("up", server.url, policy=QUIET)

        for _ in range(20):
            results = await asyncio.gather(*(ended(up.post("/", data=b"x")) for _ in range(10)))
            assert {getattr(one, "status", one) for one in results} == {200}
            await asyncio.sleep(pause)


@pytest.mark.virtual_time
async def test_a_thousand_posts_at_odd_times_all_succeed(gate: Gateway) -> None:
    async with serving(worst_case(2.0, "keep-alive: max=5, timeout=2")) as server:
        up = gate.http("up", server.url, policy=QUIET)

        for n in range(1000):
            assert (await up.post("/", data=b"x")).status == 200
            await asyncio.sleep((n * 37 % 100) / 25)  # 0 to 4 s

        assert 100 < server.connections < 900  # kept where it was safe


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("said", "margin", "pause", "used_again"),
    [(4, 1.0, 2.9, True), (4, 1.0, 3.1, False), (1, 1.0, 0.4, True), (1, 1.0, 0.6, False), (4, 0.0, 3.9, True)],
)
async def test_a_connection_is_left_alone_some_time_before_its_end(
    gate: Gateway, said: int, margin: float, pause: float, used_again: bool
) -> None:
    async with serving(always(reply(b"ok", f"Keep-Alive: timeout={said}"))) as server:
        up = gate.http("up", server.url, http=HttpPolicy(keepalive_margin=margin))

        await up.post("/")
        await asyncio.sleep(pause)
        await up.post("/")

        assert server.connections == (1 if used_again else 2)


@pytest.mark.virtual_time
async def test_what_servers_that_are_gone_have_said_makes_room_for_others(gate: Gateway) -> None:
    async with serving(worst_case(1.0, "Keep-Alive: timeout=1")) as server:
        up = gate.http("up", server.url, policy=QUIET)
        connections = up.session().connections
        for number in range(2 * SERVERS_KNOWN):
            connections.learn("10.0.0.1", number, "timeout=5")

        for _ in range(3):
            assert (await up.post("/", data=b"x")).status == 200
            await asyncio.sleep(1.5)

        assert len(connections._longest_idle) == SERVERS_KNOWN


@pytest.mark.virtual_time
async def test_without_a_word_from_the_server_the_policy_s_own_time_holds(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url, http=HttpPolicy(keepalive_for=0))

        await up.get("/")
        await up.get("/")

        assert server.connections == 2


async def test_what_the_server_says_unasked_is_no_answer_to_the_next_request(gate: Gateway) -> None:
    answered, said = asyncio.Event(), asyncio.Event()

    async def chatters(visit: Visit) -> None:
        await visit.request()
        await visit.say(OK)
        await answered.wait()
        await visit.say(reply(b"not yours", status=408))
        said.set()
        await visit.request()
        await visit.say(OK)

    async with serving(chatters) as server:
        up = gate.http("up", server.url, policy=QUIET)

        await up.get("/")
        answered.set()
        await said.wait()
        await steps(3)

        assert (await up.post("/")).body == b"ok"
        assert server.connections == 2


@pytest.mark.virtual_time
async def test_idle_connections_shrink_after_a_burst_while_traffic_goes_on(gate: Gateway) -> None:
    async def slow(visit: Visit) -> None:
        while True:
            await visit.request()
            await asyncio.sleep(0.01)
            await visit.say(OK)

    async with serving(slow) as server:
        policy = Policy(bulkhead=BulkheadPolicy(limit=50))
        up = gate.http("up", server.url, policy=policy)
        await asyncio.gather(*(up.get("/") for _ in range(50)))
        assert server.open == 50

        for _ in range(40):
            await asyncio.gather(*(up.get("/") for _ in range(5)))
            await asyncio.sleep(1.0)

        assert server.open == 5
        assert server.connections == 50


async def test_closing_the_gateway_closes_all_connections(gate: Gateway) -> None:
    async with serving(always(OK)) as server:
        up = gate.http("up", server.url)
        await asyncio.gather(*(up.get("/") for _ in range(5)))

        await gate.close()

        await until(lambda: server.open == 0)
        await gate.open()
        assert (await up.get("/")).status == 200


@pytest.mark.parametrize("leave", ["cancel", "reply"])
async def test_an_upload_that_nobody_reads_leaves_no_connection(gate: Gateway, leave: str) -> None:
    async def deaf(visit: Visit) -> None:
        visit.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
        if leave == "reply":
            await visit.say(reply(b"no", status=413))
        await asyncio.sleep(0.2)

    async with serving(deaf) as server:
        up = gate.http("up", server.url, policy=QUIET)
        call = asyncio.create_task(up.put("/", data=b"x" * 50_000_000))
        await until(lambda: server.connections)

        connections = up.session().connections
        sockets = [line.transport.get_extra_info("socket") for line in connections._acquired]
        if leave != "reply":
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)

        assert sockets or leave == "reply"
        await until(lambda: {one.fileno() for one in sockets} <= {-1})
        assert connections.in_use == 0
        assert connections.idle == 0


async def test_a_loop_that_is_closed_under_it_takes_nothing_along() -> None:
    async def server_and_call() -> int:
        async with serving(always(OK)) as server:
            up = gate.http(f"up {server.port}", server.url, http=HttpPolicy(keepalive_for=0))
            again.append(up)
            status = (await up.get("/")).status
            for upstream in again[:-1]:
                await ended(upstream.get("/"))
            return status

    gate = Gateway()
    again: list[object] = []  # type: ignore[assignment]

    def three_loops() -> list[int]:
        statuses = [asyncio.run(server_and_call()) for _ in range(3)]
        asyncio.run(gate.close())
        return statuses

    assert await asyncio.to_thread(three_loops) == [200] * 3


async def test_names_are_looked_up_again_after_a_while(gate: Gateway) -> None:
    asked: list[str] = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"]

    async with serving(always(OK)) as server:
        once = gate.http("once", server.named("a.test"), http=HttpPolicy(resolve=resolve, keepalive_for=0))
        await asyncio.gather(*(once.get("/") for _ in range(5)))
        await once.get("/")
        assert asked == ["a.test"]

        always_new = HttpPolicy(resolve=resolve, keepalive_for=0, dns_for=0)
        new = gate.http("new", server.named("b.test"), http=always_new)
        await new.get("/")
        await asyncio.sleep(0.001)
        await new.get("/")
        assert asked == ["a.test", "b.test", "b.test"]


@pytest.mark.parametrize("wrong", [[], OSError("no such name"), ValueError("bug")])
async def test_a_name_without_an_address_is_not_sent(gate: Gateway, wrong: object) -> None:
    def resolve(_: str) -> list[str]:
        if isinstance(wrong, Exception):
            raise wrong
        return []

    up = gate.http("up", "http://a.test", policy=QUIET, http=HttpPolicy(resolve=resolve))

    error = await ended(up.post("/"))

    assert isinstance(error.__cause__, NotSent)
    assert "the name was not resolved" in str(error)


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[str], str]], Path]:
    """A certificate for a.test, signed by itself, and one for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def make(program: Callable[[str], str]) -> Path:
        for name in ("a.test", "client"):
            if not (folder / f"{name}.pem").exists():
                command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name}"
                extension = f"-addext subjectAltName=DNS:{name} -keyout {name}.key -out {name}.pem"
                done = [program("openssl"), *command.split(), *extension.split()]
                subprocess.run(done, cwd=folder, check=True, capture_output=True)
        return folder

    return make


def server_side(folder: Path, *, asks: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "a.test.pem", folder / "a.test.key")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "client.pem")
    return context


def here(**more: str) -> HttpPolicy:
    return HttpPolicy(resolve=lambda _: ["127.0.0.1"], **more)  # type: ignore[arg-type]


async def test_a_certificate_of_ones_own_authority_is_good(
    gate: Gateway, certificates: Callable[..., Path], program: Callable[[str], str]
) -> None:
    folder = certificates(program)
    async with serving(always(OK), tls=server_side(folder)) as server:
        up = gate.http("up", server.named("a.test"), http=here(ca_file=str(folder / "a.test.pem")))

        assert [(await up.get("/")).status for _ in range(3)] == [200] * 3
        assert server.connections == 1


@pytest.mark.parametrize(("name", "known"), [("a.test", False), ("b.test", True)])
async def test_a_server_that_is_not_verified_is_told_nothing(
    gate: Gateway, certificates: Callable[..., Path], program: Callable[[str], str], name: str, known: bool
) -> None:
    folder = certificates(program)
    asyncio.get_running_loop().set_exception_handler(None)
    async with serving(always(OK), tls=server_side(folder)) as server:
        http = here(ca_file=str(folder / "a.test.pem")) if known else here()
        up = gate.http("up", server.named(name), policy=QUIET, http=http)

        error = await ended(up.post("/", data=b"secret"))

        assert isinstance(error.__cause__, NotSent)
        assert "TLS: " in str(error)
        assert server.requests == []


async def test_a_client_shows_its_certificate(
    gate: Gateway, certificates: Callable[..., Path], program: Callable[[str], str]
) -> None:
    folder = certificates(program)
    async with serving(always(OK), tls=server_side(folder, asks=True)) as server:
        files = {"ca_file": "a.test.pem", "certificate": "client.pem", "certificate_key": "client.key"}
        http = here(**{name: str(folder / file) for name, file in files.items()})
        up = gate.http("up", server.named("a.test"), http=http)

        assert (await up.get("/")).status == 200


async def test_certificates_that_cannot_be_read_are_a_config_error(gate: Gateway, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for http in (
        HttpPolicy(ca_file=str(tmp_path / "none.pem")),
        HttpPolicy(ca_file=str(tmp_path / "no.pem")),
        HttpPolicy(certificate=str(tmp_path / "none.pem")),
    ):
        with pytest.raises(ConfigError, match="certificates"):
            gate.http("up", "https://a.test", http=http)
