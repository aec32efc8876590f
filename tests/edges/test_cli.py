"""The command line, in processes of its own: what it prints, how it exits, what it says of mistakes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from socket import create_server, socket

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from gateway import cli
from gateway.demo.site import CannotListen
from tests.edges.running import ANY_PORTS, GATEWAY, PATIENCE, ask, listens, running


def gateway(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GATEWAY, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody has."""
    with create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_it_says_its_version() -> None:
    told = gateway("--version")

    assert told.returncode == 0
    assert told.stdout.strip() == f"gateway, version {version('async-worker-gateway')}"


def test_help_names_every_option_of_the_demo() -> None:
    told = gateway("demo", "--help")

    assert told.returncode == 0
    assert "[catalog|info|ratings]" in told.stdout
    for option in (
        "host",
        "port",
        "catalog-port",
        "info-port",
        "ratings-port",
        "admin-port",
        "info-url",
        "ratings-url",
        "instances",
    ):
        assert f"--{option} " in told.stdout
    assert "--from-parent" not in told.stdout


def test_help_is_quick_because_it_imports_nothing_it_does_not_need() -> None:
    code = "import sys, gateway.cli; print(sorted({'aiohttp', 'structlog', 'gateway.demo'} & sys.modules.keys()))"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("service", ["catalog", "info", "ratings"])
def test_a_service_alone_says_where_it_listens_and_ends_when_told(service: str) -> None:
    with running("demo", service, "--port", "0", until="ready") as alone:
        url = alone.urls[""]
        health = ask("GET", f"{url}/health").status
        ended = alone.end(signal.SIGINT if service == "info" else signal.SIGTERM)

    assert url.startswith("http://127.0.0.1:")
    assert health == 200
    assert ended == (0, "", "")
    assert not listens(alone.ports[""])


def test_options_of_all_three_hold_for_one_alone() -> None:
    with running("demo", "--ratings-port", "0", "--host", "localhost", "ratings", until="ready") as alone:
        assert alone.urls[""].startswith("http://localhost:")
        assert ask("GET", f"{alone.urls['']}/ratingsdata/user/ada").status == 200


def test_the_demo_says_where_its_services_are_and_what_to_try() -> None:
    with running("demo", *ANY_PORTS, "--host", "0.0.0.0") as demo:  # noqa: S104 - in a test
        said, urls = demo.said, demo.urls
        watched = ask("GET", f"{demo.admin}/state")
        elsewhere = ask("GET", f"{demo.admin}/state?token=1")

    assert [one["name"] for one in watched.json["upstreams"]] == ["ratings", "info", "posters"]
    assert elsewhere.status == 400
    assert said[:3] == [f"{name} ready {urls[name]}" for name in ("catalog", "info", "ratings")]
    assert demo.admin.startswith("http://127.0.0.1:"), "without a token others do not reach it"
    assert any(f"curl 'http://127.0.0.1:{demo.ports['catalog']}/catalog/ada'" in line for line in said)
    assert any(f"curl -X POST http://127.0.0.1:{demo.ports['ratings']}/fault/hang" in line for line in said)


def test_faults_are_hinted_at_only_for_ratings_of_the_demo_itself() -> None:
    urls = {"catalog": ["http://127.0.0.1:1"], "ratings": ["http://127.0.0.1:9"]}

    with create_server(("127.0.0.1", 0)) as admin:
        ours, theirs = (cli.hints(urls, admin, ours=ours) for ours in (True, False))

    assert "/fault/" in ours
    assert "/fault/" not in theirs


def test_where_the_token_lets_others_in_the_address_is_one_that_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "t" * 20)

    with running("demo", *ANY_PORTS, "--host", "0.0.0.0") as demo:  # noqa: S104 - in a test
        assert demo.admin.startswith("http://127.0.0.1:")
        assert ask("GET", f"{demo.admin}/state").status == 401
        assert any(line.endswith("/ (with the token)") for line in demo.said)


@pytest.mark.parametrize("option", ["--catalog-port", "--info-port", "--ratings-port", "--admin-port"])
def test_a_port_that_is_taken_is_named_with_its_option(option: str, taken: int) -> None:
    told = gateway("demo", *ANY_PORTS, option, str(taken))

    assert told.returncode == 1
    assert told.stdout == ""
    assert told.stderr == f"Error: port {taken} on 127.0.0.1 is taken; choose another with {option} (0: any free)\n"


def test_a_port_that_is_taken_is_named_by_a_service_alone(taken: int) -> None:
    told = gateway("demo", "info", "--port", str(taken))

    assert told.returncode == 1
    assert told.stderr == f"Error: port {taken} on 127.0.0.1 is taken; choose another with --port (0: any free)\n"


@pytest.mark.parametrize("given", [True, False])
def test_the_port_of_admin_is_another_one_where_nobody_asked_for_it(given: bool, taken: int) -> None:
    options = {"host": "127.0.0.1", "admin_port": taken, "admin_from_parent": None}
    with click.Context(cli.demo) as context:
        context.set_parameter_source("admin_port", ParameterSource.COMMANDLINE if given else ParameterSource.DEFAULT)

        if given:
            with pytest.raises(CannotListen):
                cli.listen_for_admin(**options)
            return
        with cli.listen_for_admin(**options) as listening:
            assert listening.getsockname()[1] not in {0, taken}


@pytest.mark.parametrize(
    ("host", "token", "near"),
    [
        ("0.0.0.0", "", "127.0.0.1"),  # noqa: S104 - that is the point
        ("0.0.0.0", "secret", "0.0.0.0"),  # noqa: S104
        ("127.0.0.1", "", "127.0.0.1"),
    ],
)
def test_admin_is_reached_by_others_only_with_a_token(
    host: str, token: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", token)
    monkeypatch.delenv("GATEWAY_ADMIN_READ_TOKEN", raising=False)

    with cli.listen_for_admin(host=host, admin_port=0, admin_from_parent=None) as listening:
        assert listening.getsockname()[0] == near


def test_a_token_that_is_none_is_told_before_anything_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_TOKEN", "two words")

    told = gateway("demo", *ANY_PORTS)

    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("Error: admin token: it is no word of visible ASCII characters")
    assert told.stderr.count("\n") == 1


def test_a_port_is_free_again_at_once() -> None:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(2):
        with running("demo", "ratings", "--port", str(port), until="ready") as alone:
            assert ask("GET", f"{alone.urls['']}/ratingsdata/user/ada").status == 200


@pytest.mark.parametrize(
    ("host", "complaint"),
    [
        ("nowhere.invalid", "Error: the host 'nowhere.invalid' is not known"),
        ("192.0.2.1", "Error: port 0 on 192.0.2.1 cannot be had"),
    ],
)
def test_a_host_that_is_not_ours_is_named(host: str, complaint: str) -> None:
    told = gateway("demo", *ANY_PORTS, "--host", host)

    assert told.returncode == 1
    assert told.stderr.startswith(complaint)
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("demo", "nonsense"),
        ("demo", "--port", "8083"),
        ("demo", "info", "--port", "65536"),
        ("demo", "catalog", "--info-url", "localhost:8082"),
        ("demo", "catalog", "--ratings-url", "ftp://localhost"),
        ("demo", "catalog", "--ratings-url", "http://localhost", "--ratings-url", "localhost"),
        ("demo", "catalog", "--info-url", "http://[::1"),
        ("demo", "catalog", "--info-url", "http://localhost:99999"),
        ("demo", "--instances", "0"),
        ("demo", "ratings", "--instances", "3"),
        ("demo", "--scenario", "--instances", "3"),
        ("demo", "--scenario", "--memory", "x.sqlite"),
        ("demo", "info", "--memory", "x.sqlite"),
        ("demo", "--memory", "/"),
        ("demo", "--instances", "3", "--ratings-url", "http://127.0.0.1:9"),
        ("demo", "--instances", "3", "--ratings-port", "65534"),
    ],
)
def test_a_wrong_use_exits_with_2_and_says_why(arguments: tuple[str, ...]) -> None:
    told = CliRunner().invoke(cli.main, arguments)

    assert told.exit_code == 2
    assert "Error: " in told.stderr
    assert "Traceback" not in told.stderr


def test_a_wrong_use_of_the_program_itself_exits_with_2_too() -> None:
    told = gateway("demo", "nonsense")

    assert (told.returncode, told.stdout) == (2, "")
    assert "Error: " in told.stderr
    assert "Traceback" not in told.stderr
