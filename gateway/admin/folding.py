"""Tuned values written into the policy file: in their places, everything else as it stands there, comments too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE
from typing import Any

from gateway.admin.journal import sync_folder
from gateway.config import dumps
from gateway.config.document import content_of, document_of, key_of
from gateway.config.policies import ROOT, differences, policies_in
from gateway.outcome import ConfigError
from gateway.policy import Policy


def fold_into(path: str | os.PathLike[str], name: str, policy: Policy, tuned: Mapping[str, Any]) -> None:
    """Make the file say of an upstream what holds, `policy`, by writing the `tuned` knobs into it.

    Of an upstream that the file does not know it says everything from then on, for it then wins over the code. Blocks.
    Raises ConfigError for a file that cannot be written, and where what it would say then is not that policy.
    """
    target = Path(path).resolve()  # not the link that leads to it
    content = content_of(target)
    document = document_of(content, name=str(target))
    text = folded(document.text, name, policy, tuned)
    wrong = next(unlike(text, {**policies_in(document).policies, name: policy}), None)
    if wrong is not None:
        problem = f"the file would not say what holds now: {wrong} would be another"
        raise ConfigError(key_of((ROOT, name)), problem, "write it there by hand, and drop what is tuned")
    if content_of(target) != content:
        raise ConfigError(str(target), "somebody is writing it", "fold again")
    try:
        replace(target, text.encode())
    except OSError as error:
        raise ConfigError(
            str(target), f"it cannot be written: {error.strerror}", "let this process write it, or write it by hand"
        ) from None


def unlike(text: str, wanted: Mapping[str, Policy]) -> Iterator[str]:
    """The knobs of which a text does not say what is wanted. tomlkit may leave no policy file of dotted keys."""
    try:
        said = policies_in(document_of(text, name="policies")).policies
    except ConfigError:
        said = {}
    if said.keys() != wanted.keys():
        yield "all of it"
        return
    for name, policy in wanted.items():
        yield from differences(said[name], policy)


def folded(text: str, name: str, policy: Policy, tuned: Mapping[str, Any]) -> str:
    """The text of a policy file with tuned values in it."""
    import tomlkit  # noqa: PLC0415 - who never folds never needs it

    newline = "\r\n" if "\r\n" in text else "\n"
    document = tomlkit.parse(text)
    upstreams = document.get(ROOT)
    if not isinstance(upstreams, Mapping) or name not in upstreams:
        end = "" if not text.strip() else text.rstrip("\r\n") + newline * 2
        return end + dumps({name: policy}).replace("\n", newline)
    table: Any = upstreams[name]
    for knob, value in tuned.items():
        *where, key = knob.split(".")
        put(table, where, key, value)
    return tomlkit.dumps(document)


def put(table: Any, where: list[str], key: str, value: Any) -> None:
    """Set a key of a table, or of one in it; None takes it away."""
    import tomlkit  # noqa: PLC0415 - as above
    from tomlkit.items import InlineTable  # noqa: PLC0415

    for part in where:
        inner = table.get(part)
        if not isinstance(inner, Mapping):
            if value is None:
                return
            if inner is not None:
                del table[part]
            table[part] = tomlkit.inline_table() if isinstance(table, InlineTable) else tomlkit.table()
        table = table[part]
    if value is None:
        if key in table:
            del table[key]
    elif isinstance(value, dict):
        strategy = tomlkit.inline_table()
        strategy.update(value)
        table[key] = strategy
    else:
        table[key] = value


def replace(target: Path, content: bytes) -> None:
    """Another content, all at once, and on disk when this returns."""
    found = target.stat()
    fresh = target.with_name(f".{target.name}.folded")  # always the same: what a death leaves is no litter
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            file.write(content)
            file.flush()
            with suppress(PermissionError):
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            os.fchmod(file.fileno(), S_IMODE(found.st_mode))
            os.fsync(file.fileno())
            fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    sync_folder(target)
