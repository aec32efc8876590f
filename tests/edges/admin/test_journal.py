"""The journal: what is on disk, what a torn or foreign file means, and deaths between any two steps."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway import ConfigError
from gateway.admin.journal import By, Journal, Record
from tests.edges.running import PATIENCE

ADA = By(who="ada")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def kept(journal: Journal, upstream: str = "ratings", **tuned: object) -> Record:
    record = journal.record("tune", upstream, ADA, tuned=tuned)
    journal.write(record)
    journal.take(record)
    return record


def found_in(path: Path) -> Journal:
    journal = Journal(path)
    journal.close()
    return journal


def test_what_was_written_is_found_again(path: Path) -> None:
    journal = Journal(path, wall=lambda: 1_764_316_800.5)
    kept(journal, limit=1)
    kept(journal, limit=2)
    kept(journal, "info", limit=3)
    kept(journal, "info")
    journal.close()

    found = found_in(path)

    assert found.tuned == {"ratings": {"limit": 2}}
    assert [(one.id, one.upstream, one.at) for one in found.recent] == [
        (1, "ratings", 1_764_316_800.5),
        (2, "ratings", 1_764_316_800.5),
        (3, "info", 1_764_316_800.5),
        (4, "info", 1_764_316_800.5),
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_changes_no_values_leaves_them(path: Path) -> None:
    journal = Journal(path)
    kept(journal, limit=1)
    record = journal.record("isolate", "ratings", ADA)
    journal.write(record)
    journal.take(record)
    journal.close()

    assert found_in(path).tuned == {"ratings": {"limit": 1}}


@pytest.mark.parametrize(
    "tail", [b'{"id":3,"at":1.0,"ki', b"\0" * 100, b"\0" * 50 + b"\n" + b"\0" * 50, b"{}\n{", b'{"who":"\xff"}\n']
)
def test_what_was_not_written_to_its_end_is_cut_off(path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(path)
    kept(journal, limit=1)
    kept(journal, limit=2)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + tail)

    with caplog.at_level(logging.WARNING, "gateway"):
        found = Journal(path)
    kept(found, limit=3)
    found.close()

    assert [one.getMessage() for one in caplog.records if "cut off" in one.getMessage()]
    assert found_in(path).tuned == {"ratings": {"limit": 3}}
    assert path.read_bytes().startswith(whole)


def test_a_line_without_its_end_was_never_acknowledged(path: Path) -> None:
    journal = Journal(path)
    kept(journal, limit=1)
    kept(journal, limit=2)
    journal.close()
    path.write_bytes(path.read_bytes()[:-1])

    assert found_in(path).tuned == {"ratings": {"limit": 1}}


def test_a_line_in_the_midst_that_is_no_record_is_an_error(path: Path) -> None:
    journal = Journal(path)
    for limit in (1, 2, 3):
        kept(journal, limit=limit)
    journal.close()
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"# nothing\n" + third)

    with pytest.raises(ConfigError, match="line 2 is no record"):
        Journal(path)

    assert path.read_bytes() == first + b"# nothing\n" + third


def test_two_cannot_go_by_one_journal(path: Path) -> None:
    journal = Journal(path)

    with pytest.raises(ConfigError, match="another gateway goes by it"):
        Journal(path)

    journal.close()
    found_in(path)


@pytest.mark.parametrize("where", ["", "missing/journal"])
def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Journal(tmp_path / where)

    assert "journal=" in caught.value.remedy


def test_a_pipe_is_no_journal(path: Path) -> None:
    os.mkfifo(path)

    with pytest.raises(ConfigError, match="no regular file"):
        Journal(path)


def test_a_write_that_fails_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    kept(journal, limit=1)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.write(journal.record("tune", "ratings", ADA, tuned={"limit": 2}))
    assert path.read_bytes() == before
    kept(journal, limit=3)
    journal.close()

    assert found_in(path).tuned == {"ratings": {"limit": 3}}


def test_a_file_that_cannot_be_mended_is_written_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a torn line would stand in its midst."""
    journal = Journal(path)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(OSError, match="Input"):
            journal.write(journal.record("tune", "ratings", ADA, tuned={"limit": 2}))

    with pytest.raises(OSError, match="could not be mended"):
        journal.write(journal.record("tune", "ratings", ADA, tuned={"limit": 2}))
    journal.close()


def test_a_large_file_begins_anew_with_what_holds(path: Path) -> None:
    journal = Journal(path)
    kept(journal, "info", limit=7)
    journal.largest = 1000
    for limit in range(30):
        kept(journal, limit=limit)
    journal.close()

    found = found_in(path)

    assert found.tuned == {"info": {"limit": 7}, "ratings": {"limit": 29}}
    assert path.stat().st_size < 1500
    assert found.recent[-1].id == 31
    old = [msgspec.json.decode(line, type=Record) for line in path.with_name("journal.1").read_bytes().splitlines()]
    assert old[-1].id < 31
    assert not path.with_name("journal.new").exists()


def test_a_new_file_is_still_ours_alone(path: Path) -> None:
    journal = Journal(path)
    journal.largest = 100
    kept(journal, limit=1)
    kept(journal, limit=2)

    with pytest.raises(ConfigError, match="another gateway"):
        Journal(path)

    journal.close()


def test_without_a_path_it_is_kept_in_memory_and_bounded() -> None:
    journal = Journal(None)
    for limit in range(1200):
        kept(journal, limit=limit)

    assert journal.tuned == {"ratings": {"limit": 1199}}
    assert len(journal.recent) == 1000
    assert not journal.kept


def test_wherever_it_is_killed_values_and_audit_agree(tmp_path: Path) -> None:
    """`kill -9` at every step that leaves a trace, and in the midst of every write: tests/edges/admin/killed.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.edges.admin.killed", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
