"""The policies of a gateway that come from a file: gone by all at once, or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from gateway.config.document import key_of
from gateway.config.policies import ROOT, UNSHOWN, Policies, alike, told
from gateway.config.watch import PolicyFile
from gateway.outcome import ConfigError, ConfigErrors
from gateway.policy import Policy
from gateway.upstream import Upstream

log = logging.getLogger("gateway")


class Reloading:
    """What a policy file says of the upstreams of a gateway, which are handed in as they stand there.

    `in_code` is what code said of those that it has asked for: what holds where the file says nothing, else `usual`.
    `register` makes those that only the file knows. `overlaid` gives what holds, by a name and what is said of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        upstreams: dict[str, Upstream],
        *,
        in_code: Mapping[str, Policy],
        usual: Policy,
        register: Callable[[str, Policy], object],
        overlaid: Callable[[str, Policy], Policy],
    ) -> None:
        self.file = PolicyFile(path)
        self.applies = False  # right now
        self.policies: Mapping[str, Policy] = {}  # what it said when it was last read well
        self._hidden: Mapping[str, frozenset[str]] = {}  # which knobs of an upstream were the environment's then
        self._upstreams = upstreams
        self._in_code = in_code
        self._usual = usual
        self._register = register
        self._overlaid = overlaid

    def reload(self) -> tuple[str, ...]:
        """Read the file, and go by it; gives the names of upstreams that changed. Raises ConfigError."""
        read = self.file.read()
        names = dict.fromkeys([*self.policies, *read.policies])
        before, told = self._told_by(self.policies, names), self._told_by(read.policies, names)
        wanted = {name: self._overlaid(name, policy) for name, policy in told.items()}
        wanted = {
            name: policy
            for name, policy in wanted.items()
            if name not in self._upstreams or not alike(self._upstreams[name].policy, policy)
        }
        # What is laid over has been checked; what it is laid over must hold without it, or the next start would fail.
        self._check(wanted | {name: policy for name, policy in told.items() if not alike(before[name], policy)}, read)
        self._apply(wanted, read)
        self.policies, self._hidden = read.policies, read.hidden
        return tuple(wanted)

    def _told_by(self, policies: Mapping[str, Policy], names: Iterable[str]) -> dict[str, Policy]:
        """What is said of these upstreams by a file with these policies, else by code."""
        return {name: policies.get(name, self._in_code.get(name, self._usual)) for name in names}

    def _check(self, wanted: Mapping[str, Policy], read: Policies) -> None:
        """Raise all that operations have against these policies."""
        errors: list[ConfigError] = []
        for name, policy in wanted.items():
            if name in self._upstreams:
                try:
                    self._upstreams[name].check(policy)
                except ConfigError as error:
                    hidden = bool(read.hidden.get(name))
                    problem, remedy = UNSHOWN if hidden else (error.problem, error.remedy)
                    field = f"{key_of((ROOT, name))}.{error.field.removeprefix(f'{name}.')}"
                    errors.append(ConfigError(field, f"with the limits of an operation, {problem}", remedy))
        if errors:
            raise ConfigErrors.together(errors)

    def _apply(self, wanted: Mapping[str, Policy], read: Policies) -> None:
        """Go by these policies. If one cannot be had after all, all are as before."""
        before = {name: self._upstreams[name].policy for name in wanted if name in self._upstreams}
        self.applies = True
        try:
            for name, policy in wanted.items():
                if name in self._upstreams:
                    self._upstreams[name].policy = policy
                else:
                    self._register(name, policy)
        except BaseException:
            for name in wanted:
                if name not in before:
                    self._upstreams.pop(name, None)
                else:
                    with suppress(Exception):
                        self._upstreams[name].policy = before[name]
            raise
        finally:
            self.applies = False
        for name, policy in wanted.items():
            if name in before:
                hidden = self._hidden.get(name, frozenset()) | read.hidden.get(name, frozenset())
                log.info("%s: %s", name, told(before[name], policy, hidden=hidden))
