"""Tuned values written into the policy file: in their places, everything else as it stands there, comments too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import tomlkit
from tomlkit.container import Container
from tomlkit.items import AbstractTable

from gateway.config import dumps
from gateway.config.document import content_of, document_of, key_of
from gateway.config.policies import ROOT, differences, policies_in
from gateway.config.knobs import tables
from gateway.outcome import ConfigError
from gateway.policy import Policy

Tables = Container | AbstractTable


def fold_into(path: str | os.PathLike[str], name: str, policy: Policy, tuned: Mapping[str, Any]) -> None:
    """Make the file say of an upstream what holds, `policy`, by writing the `tuned` knobs into it.

    Of an upstream that the file does not know it says everything from then on, for it then wins over the code. Blocks.
    Raises ConfigError for a file that cannot be written, and where what it would say then is not that policy.
    """
    target = Path(path).resolve()  # not the link that leads to it
    content = content_of(target)
    text = folded(document_of(content, name=str(target)).text, name, policy, tuned)
    said = policies_in(document_of(text, name=str(target))).policies[name]
    wrong = next(iter(differences(said, policy)), None)
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


def folded(text: str, name: str, policy: Policy, tuned: Mapping[str, Any]) -> str:
    """The text of a policy file with tuned values in it."""
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
    for part in where:
        inner = table.get(part)
        if not isinstance(inner, Mapping):
            if value is None:
                return
            if inner is not None:
                del table[part]
            table[part] = tomlkit.inline_table() if is_inline(table) else tomlkit.table()
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


def is_inline(table: Any) -> bool:
    """Whether it stands in one line, as do those in it."""
    return isinstance(table, tomlkit.items.InlineTable)


def replace(target: Path, content: bytes) -> None:
    """Another content, all at once, and on disk when this returns."""
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            shutil.copymode(target, file.name)
            found = target.stat()
            with suppress(PermissionError):
                os.chown(file.name, found.st_uid, found.st_gid)
            os.fsync(file.fileno())
            Path(file.name).replace(target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
