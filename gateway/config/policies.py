"""Policies in a file: all of them, or all that is wrong; and a file of policies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from gateway.config.document import Document, Path, content_of, document_of, filled, key_of, shown, shown_path
from gateway.config.knobs import knobs, settings, tables
from gateway.config.values import expected, of_environment, shown_of, unknown, value_of, written_value, wrong
from gateway.config.waits import same
from gateway.outcome import ConfigError, ConfigErrors, UnknownName
from gateway.policy import NESTED, Derived, Policy, given

ROOT = "upstreams"
Found = tuple[Path, ConfigError]
"""Something wrong, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What a file says: a policy for each upstream; which of its knobs are the environment's, by upstream."""

    policies: Mapping[str, Policy]
    hidden: Mapping[str, frozenset[str]]


# -- reading


def load(path: str | os.PathLike[str], *, environment: Mapping[str, str] = os.environ) -> dict[str, Policy]:
    """The policies in a file, by the names of their upstreams.

    Raises ConfigError for what is wrong with it: as it is if it is one thing, else ConfigErrors with all of them.
    """
    content = content_of(path)
    return dict(policies_in(document_of(content, name=shown_path(path)), environment).policies)


def loads(text: str, *, environment: Mapping[str, str] = os.environ) -> dict[str, Policy]:
    """The policies in a text; as `load`."""
    return dict(policies_in(document_of(text, name="policies"), environment).policies)


def policies_in(document: Document, environment: Mapping[str, str] = os.environ) -> Policies:
    """The policies in a document. Raises all that is wrong with it, in the order of its lines."""
    found: list[Found] = []
    policies: dict[str, Policy] = {}
    hidden: dict[str, frozenset[str]] = {}
    try:
        for name, table in _upstreams(document, found):
            reading = Reading((ROOT, name), environment, found)
            reading.read(table)
            policies[name] = reading.policy()
            hidden[name] = frozenset(reading.hidden)
    except RecursionError:
        raise ConfigError(document.name, "it is nested too deeply", "see the page on policy files") from None
    if found:
        raise ConfigErrors.together(_in_order(document, found))
    return Policies(policies=policies, hidden=hidden)


def _in_order(document: Document, found: list[Found]) -> list[ConfigError]:
    """The errors by their lines, which they are told."""
    lines = document.lines()
    errors: list[ConfigError] = []
    for path, error in found:
        for one in error.errors if isinstance(error, ConfigErrors) else (error,):
            one.line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
            errors.append(one)
    return sorted(errors, key=lambda error: error.line or 0)


def _upstreams(document: Document, found: list[Found]) -> Iterator[tuple[str, dict[str, Any]]]:
    found.extend(((key,), unknown((key,), key, [ROOT])) for key in document.table if key != ROOT)
    upstreams = document.table.get(ROOT)
    if not isinstance(upstreams, dict):
        problem = "the file has no such table" if upstreams is None else f"{shown(upstreams)} is no table"
        found.append(((ROOT,), ConfigError(ROOT, problem, "give each upstream a table: [upstreams.NAME]")))
        return
    for name, table in upstreams.items():
        path = (ROOT, name)
        if not name:
            found.append((path, wrong(path, "it has no name", "give [upstreams.NAME]")))
        elif not isinstance(table, dict):
            found.append((path, wrong(path, f"{shown(table)} is no table", f"give [{key_of(path)}]")))
        else:
            yield name, table


class Reading:
    """One upstream's table on its way to a policy: what it says, laid over `base`.

    `environment`: where `${NAME}` is looked up; None: it means nothing. A null, which TOML does not have and JSON does,
    is a knob as by default: it goes on following where it follows. `reset` has those.
    """

    def __init__(
        self,
        path: Path,
        environment: Mapping[str, str] | None,
        found: list[Found],
        *,
        base: Policy = Policy(),
    ) -> None:
        self.path = path
        self.environment = environment
        self.found = found
        self.base = base
        self.values: dict[str, object] = {}
        self.hidden: set[str] = set()
        self.reset: set[str] = set()

    def read(self, table: Mapping[str, Any], where: Path = ()) -> None:
        """Take what a table says; note what it cannot mean."""
        kind = tables()[".".join(where)]
        own = sorted(f.name for f in fields(kind))
        for key, raw in table.items():
            path = (*where, key)
            knob = ".".join(path)
            if key not in own:
                self._note(path, self._unknown(path, own))
            elif raw is None:
                self._reset(knob)
            elif key in NESTED.get(kind, {}) and isinstance(raw, dict):
                if not raw and knob in knobs():
                    self.values[knob] = NESTED[kind][key]()
                self.read(raw, path)
            else:
                try:
                    self.values[knob] = self._value(knob, raw, (*self.path, *path))
                except ConfigError as error:
                    self._note(path, error)

    def _reset(self, knob: str) -> None:
        for path, known in knobs().items():
            if known.takes != "policy" and (path == knob or path.startswith(f"{knob}.")):
                self.values[path] = known.default
                self.reset.add(path)

    def policy(self) -> Policy:
        """The policy of what could be read, after noting what contradicts what."""
        try:
            return self.base.tuned_fields(self.values)
        except ConfigError:
            values = {knob: value for knob, value in self.values.items() if self._stands_alone(knob, value)}
        told: set[str] = set()
        while True:
            try:
                return self.base.tuned_fields(values)
            except ConfigError as error:
                if error.field not in told:  # else it is what stands in `base` that does not fit, either
                    self._contradiction(error)
                told.add(error.field)
                rest = {
                    knob: value
                    for knob, value in values.items()
                    if knob != error.field and not knob.startswith(f"{error.field}.")
                }
                values = rest if len(rest) < len(values) else {}

    def _value(self, knob: str, raw: Any, path: Path) -> object:
        errors: list[ConfigError] = []
        value = raw if self.environment is None else filled(raw, path, self.environment, errors)
        if errors:
            raise ConfigErrors.together(errors)
        if of_environment(value):
            self.hidden.add(knob)
        known = knobs().get(knob)
        if known is not None and known.takes != "policy":
            return value_of(known, value, path)
        if known is not None and known.none and value == "none":
            return None
        remedy = f"give [{key_of(path)}]" + (', or "none"' if known is not None and known.none else "")
        raise wrong(path, f"{shown_of(value)} is no table", remedy)

    def _stands_alone(self, knob: str, value: object) -> bool:
        """Whether a value could be right at all; notes why not."""
        path = tuple(knob.split("."))
        try:
            Policy().tuned_fields({knob: value})
        except ConfigError as error:
            problem, remedy = error.problem, error.remedy
            if knob in self.hidden:
                problem, remedy = "what the environment says is out of its range", expected(knobs()[knob])
            self._note(path, wrong((*self.path, *path), problem, remedy))
            return False
        return True

    def _contradiction(self, error: ConfigError) -> None:
        path = tuple(error.field.split("."))
        problem, remedy = UNSHOWN if self.hidden else (error.problem, error.remedy)
        self._note(path, wrong((*self.path, *path), problem, remedy))

    def _unknown(self, path: Path, own: list[str]) -> ConfigError:
        *_, key = path
        elsewhere = [knob for knob in knobs() if knob.rpartition(".")[2] == key]
        if not elsewhere or get_close_matches(key, own, n=1):
            return unknown((*self.path, *path), key, own)
        table, _, _ = elsewhere[0].rpartition(".")
        there = key_of((*self.path, *filter(None, table.split("."))))
        problem = f"there is no {key!r} in this table"
        return UnknownName(key_of((*self.path, *path)), problem, f"it stands in [{there}]")

    def _note(self, path: Path, error: ConfigError) -> None:
        self.found.append(((*self.path, *path), error))


UNSHOWN = (
    "it contradicts other values of this upstream",
    "make them fit; they are not shown, since some are the environment's",
)


# -- comparing


def differences(before: Policy, after: Policy) -> dict[str, tuple[object, object]]:
    """The knobs that differ, with both values; None where one of them is not there. What follows counts as well."""
    old, new = settings(before), settings(after)
    return {
        knob: (old.get(knob), new.get(knob))
        for knob in dict.fromkeys([*old, *new])
        if (knob in old) != (knob in new) or not same(old[knob], new[knob])
    }


def alike(one: Policy, other: Policy) -> bool:
    """Whether two policies are the same, also in what was given and what only follows."""
    first, second = settings(one), settings(other)
    return not differences(one, other) and all(given(first[knob]) == given(second[knob]) for knob in first)


def told(before: Policy, after: Policy, *, hidden: frozenset[str]) -> str:
    """What is different, as a log line says it; not the values that the environment gives or gave, nor what follows."""
    old, new = settings(before), settings(after)
    values = (
        f"{knob} {_told(knob, old.get(knob), new.get(knob), hidden=hidden)}"
        for knob in differences(before, after)
        if knob not in tables()  # its knobs are told
    )
    return ", ".join(values) or "the same values, otherwise given"


def _told(knob: str, old: object, new: object, *, hidden: frozenset[str]) -> str:
    if knob in hidden:
        return "(from the environment)"
    if hidden and not (given(old) and given(new)):
        return "(it follows; some values are the environment's)"
    return f"{_in_words(old)} -> {_in_words(new)}"


def _in_words(value: object) -> str:
    """A value for the log: a wait strategy as files write it."""
    if value is None or not callable(value):
        return str(value)
    try:
        return written_value(value, ())
    except ConfigError:
        return shown(value)


# -- writing


def dumps(policies: Mapping[str, Policy], *, everything: bool = False) -> str:
    """Policies as the text of a policy file; reading it gives equal ones.

    What is as by default is left out, unless `everything` is wanted; what nobody gave is left out always, so that it
    goes on following. Raises ConfigError for a wait strategy that has no spelling.
    """
    return (
        "\n".join(_written(name, policy, everything=everything) for name, policy in policies.items()) or f"[{ROOT}]\n"
    )


def _written(name: str, policy: Policy, *, everything: bool) -> str:
    path = (ROOT, name)
    if not isinstance(name, str) or not name or any("\ud800" <= c <= "\udfff" for c in name):
        raise ConfigError(ROOT, f"{shown(name)} is no name", "give a non-empty str")
    usual = settings(Policy())
    lines: dict[str, list[str]] = {table: [] for table in tables()}
    for knob, value in settings(policy).items():
        nobodys = not given(value) or (value is None and type(usual.get(knob)) is Derived)
        as_usual = knob in usual and given(usual[knob]) and same(value, usual[knob])
        if nobodys or (as_usual and not everything):
            continue
        table, _, key = knob.rpartition(".")
        lines[table].append(f"{key} = {written_value(value, (*path, *knob.split('.')))}\n")
    parts = [
        f"[{key_of((*path, *filter(None, table.split('.'))))}]\n" + "".join(own)
        for table, own in lines.items()
        if own or not table
    ]
    return "\n".join(parts)
