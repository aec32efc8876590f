"""Tuned values in the policy file: in their places, with everything else as it stood there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway import BulkheadPolicy, ConfigError, Policy
from gateway.admin import folding
from gateway.admin.folding import fold_into
from gateway.config import load, loads
from gateway.config.patch import laid_over

FILE = """\
#:schema ./policies.schema.json

# What the ratings can carry was measured in May.
[upstreams.ratings]
fallback_timeout = "100ms"  # quick

[upstreams.ratings.bulkhead]
limit = 20      # one for each worker of theirs
queue = 10

[upstreams.ratings.retry]
wait = { jitter = "50ms", max = "200ms" }   # polite

[upstreams."a.b c"]
timeout.call = "2s"   # dotted
bulkhead = { limit = 3 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    path.write_text(FILE)
    return path


def fold(file: Path, name: str, **knobs: Any) -> str:
    tuned = {knob.replace("__", "."): value for knob, value in knobs.items()}
    policy = laid_over(load(file).get(name, Policy()), tuned)

    fold_into(file, name, policy, tuned)

    assert load(file)[name] == policy
    return file.read_text()


def test_a_value_takes_the_place_of_the_old_one_and_its_comment_stays(file: Path) -> None:
    text = fold(file, "ratings", bulkhead__limit=40)

    assert text == FILE.replace("limit = 20 ", "limit = 40 ")


def test_a_table_that_is_not_there_is_made(file: Path) -> None:
    text = fold(file, "ratings", breaker__open_for=2.5, retry__budget__ratio=0.1)

    assert "[upstreams.ratings.breaker]\nopen_for = 2.5\n" in text
    assert "ratio = 0.1" in text
    for line in FILE.splitlines():
        assert line in text


@pytest.mark.parametrize(
    "knobs",
    [
        {"retry__wait": {"fixed": 1.0}},
        {"retry__wait": {"random": [0.1, 0.2]}},
        {"retry__wait": None},
        {"retry__budget": "none"},
        {"timeout__call": "inf", "timeout__attempt": 3},
        {"breaker__slow_after": "none", "breaker__enforce": False, "breaker__after_max_half_open": "closed"},
        {"bulkhead__limit": None, "bulkhead__queue": None},
        {"fallback_timeout": 0.05},
        {"timeout__read": None},
    ],
)
@pytest.mark.parametrize("name", ["ratings", "a.b c"])
def test_every_sort_of_value_is_read_as_it_was_tuned(file: Path, name: str, knobs: dict[str, Any]) -> None:
    other = "a.b c" if name == "ratings" else "ratings"
    before = load(file)[other]

    text = fold(file, name, **knobs)

    assert load(file)[other] == before
    assert "# What the ratings can carry was measured in May." in text


def test_a_budget_comes_back_where_there_was_none(file: Path) -> None:
    fold(file, "ratings", retry__budget="none")

    text = fold(file, "ratings", retry__budget__ratio=0.3, retry__budget__minimum=None, retry__budget__burst=None)

    assert "none" not in text


def test_what_the_file_does_not_know_is_written_in_full(file: Path) -> None:
    """It wins over the code from then on, so it has to say all that the code said."""
    policy = Policy(bulkhead=BulkheadPolicy(limit=7))

    fold_into(file, "info", laid_over(policy, {"timeout.call": 3}), {"timeout.call": 3})

    said = load(file)["info"]
    assert (said.bulkhead.limit, said.timeout.call) == (7, 3)
    assert file.read_text().startswith(FILE)


def test_a_wait_that_has_no_spelling_is_an_error_and_the_file_as_it_was(file: Path) -> None:
    policy = Policy().tuned_fields({"retry.wait": lambda _: 1.0})

    with pytest.raises(ConfigError, match="no spelling"):
        fold_into(file, "info", policy, {"bulkhead.limit": 3})

    assert file.read_text() == FILE


def test_a_file_that_would_say_something_else_stays_as_it_is(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"fallback_limit would be another"):
        fold_into(file, "ratings", load(file)["ratings"].tuned_fields({"fallback_limit": 3}), {"bulkhead.limit": 20})

    assert file.read_text() == FILE


@pytest.mark.parametrize(
    "text",
    ["upstreams.ratings.bulkhead.limit = 5\n", "[upstreams]\nratings.bulkhead.limit = 5\ninfo.retry.attempts = 1\n"],
)
def test_a_file_that_cannot_be_written_in_its_own_way_stays_as_it_is_and_that_is_said(file: Path, text: str) -> None:
    """It would be no policy file: what is wrong with that is nothing that the operator has written."""
    file.write_text(text)

    with pytest.raises(ConfigError, match=r"^upstreams\.ratings: the file would not say what holds now"):
        fold(file, "ratings", bulkhead__limit=None)

    assert file.read_text() == text


def test_a_value_of_the_environment_is_replaced_and_the_rest_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE", "11")
    monkeypatch.setenv("LIMIT", "12")
    file.write_text('[upstreams.ratings.bulkhead]\nlimit = "${LIMIT}"\nqueue = "${QUEUE}"\n')

    assert fold(file, "ratings", bulkhead__limit=40) == (
        '[upstreams.ratings.bulkhead]\nlimit = 40\nqueue = "${QUEUE}"\n'
    )


def test_what_somebody_writes_meanwhile_is_not_overwritten(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written_meanwhile(*_: Any) -> str:
        file.write_text("# by hand\n" + FILE)
        return FILE.replace("limit = 20", "limit = 40")

    monkeypatch.setattr(folding, "folded", written_meanwhile)

    with pytest.raises(ConfigError, match="somebody is writing it"):
        fold(file, "ratings", bulkhead__limit=40)

    assert file.read_text() == "# by hand\n" + FILE


def test_a_link_stays_one_and_rights_stay_too(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "current.toml"
    link.symlink_to(file)
    file.chmod(0o640)

    fold(link, "ratings", bulkhead__limit=40)

    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert loads(file.read_text())["ratings"].bulkhead.limit == 40
    assert sorted(one.name for one in tmp_path.iterdir()) == ["current.toml", "policies.toml"]


def test_lines_end_as_they_did(file: Path) -> None:
    file.write_bytes(FILE.replace("\n", "\r\n").encode())

    fold(file, "ratings", bulkhead__limit=40)
    fold(file, "new", bulkhead__limit=40)

    content = file.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n")


def test_a_disk_that_is_full_leaves_the_file_and_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        fold(file, "ratings", bulkhead__limit=40)

    assert file.read_text() == FILE
    assert [one.name for one in file.parent.iterdir()] == ["policies.toml"]
