"""One knob's value: from a file into a policy, and back."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isinf
from typing import Any, cast

from gateway.config.document import FromEnvironment, Path, key_of, quoted, shown
from gateway.config.knobs import Knob
from gateway.config.units import bytes_in, seconds_in
from gateway.config.waits import STRATEGIES, wait_of, words_for
from gateway.outcome import ConfigError, ConfigErrors, UnknownName
from gateway.policy import Quantity, Wait

EXAMPLES = {
    "seconds": 'give seconds such as 0.3, or "300ms", "5m"',
    "bytes": 'give bytes such as 65536, or "10MiB"',
    "count": "give a whole number",
    "share": "give a share: 0.5 for 50 %",
    "number": "give a number",
}
STRATEGY = '{ jitter = "100ms", max = "2s" }, { exponential = "100ms" }, { fixed = "1s" }, { random = ["1s", "2s"] }'
FARTHEST = 2**63
"""Integers beyond this are none in TOML, and none that a policy could use."""


def value_of(knob: Knob, raw: Any, path: Path) -> object:
    """What a knob is set to by a value in a file; a ConfigError for what cannot be meant."""
    if raw == "none":
        if knob.none:
            return None
        raise wrong(path, '"none" is not for this knob', expected(knob))
    if isinstance(knob.takes, Quantity):
        return number_of(knob.takes, raw, path, remedy=expected(knob))
    if knob.takes == "wait":
        return wait_in(raw, path)
    if knob.takes is bool:
        raw = {"true": True, "false": False}.get(raw, raw) if isinstance(raw, FromEnvironment) else raw
        if isinstance(raw, bool):
            return raw
        raise wrong(path, f"{shown_of(raw)} is neither true nor false", expected(knob))
    if isinstance(raw, str) and raw in cast("tuple[str, ...]", knob.takes):
        return str(raw)
    raise wrong(path, f"{shown_of(raw)} is not among its words", expected(knob))


def expected(knob: Knob) -> str:
    """What would be right for a knob."""
    if isinstance(knob.takes, Quantity):
        right = EXAMPLES[knob.takes.unit] + (', or "inf"' if knob.takes.endless else "")
    elif knob.takes == "wait":
        right = f"give one of {STRATEGY}"
    elif knob.takes is bool:
        right = "give true or false"
    else:
        right = "give " + " or ".join(quoted(word) for word in cast("tuple[str, ...]", knob.takes))
    return right + (', or "none"' if knob.none else "")


def number_of(quantity: Quantity, raw: Any, path: Path, *, remedy: str) -> float:
    """A number; of a text only where its unit says so, or where it is the environment's."""
    if isinstance(raw, str):
        try:
            return number_in(quantity, raw)
        except ValueError:
            problem = f"{shown_of(raw)} is no {'number' if quantity.unit in {'count', 'number'} else quantity.unit}"
            problem = problem.replace("no seconds", "no duration").replace("no bytes", "no size")
            raise wrong(path, problem, remedy) from None
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise wrong(path, f"{shown_of(raw)} is not a number", remedy)
    if isinstance(raw, int) and abs(raw) > FARTHEST:
        raise wrong(path, "it is farther from 0 than any integer in TOML", remedy)
    return raw


def number_in(quantity: Quantity, text: str) -> float:
    """The number that a text names; a ValueError if it names none."""
    if text == "inf":
        return float(text)
    if isinstance(text, FromEnvironment) and text.isascii() and "_" not in text:  # what the environment says is text
        try:
            return int(text) if text.lstrip("+-").isdigit() and len(text) < len(str(FARTHEST)) else float(text)
        except ValueError:
            pass
    if quantity.unit == "seconds":
        return seconds_in(text)
    if quantity.unit == "bytes":
        return bytes_in(text)
    raise ValueError(text)


def wait_in(raw: Any, path: Path) -> Wait:
    """A wait strategy."""
    if not isinstance(raw, Mapping) or not raw:
        raise wrong(path, f"{shown_of(raw)} is no wait strategy", f"give one of {STRATEGY}")
    named = [word for word in raw if word in STRATEGIES]
    if len(named) != 1:
        problem = f"{' and '.join(named)} are two strategies" if named else f"{shown(list(raw))} name no strategy"
        raise wrong(path, problem, f"give one of {STRATEGY}")
    (strategy,) = named
    known = STRATEGIES[strategy]
    words = dict(raw)
    if strategy == "random":
        words |= two_of(words.pop("random"), (*path, "random"))
    errors: list[ConfigError] = [
        unknown((*path, word), word, written(strategy)) for word in words if word not in known.arguments
    ]
    missing = [word for word in known.needed if word not in words]
    errors += [wrong((*path, word), "it is missing", f"give {word} as well") for word in missing]
    numbers: dict[str, float] = {}
    for word in words.keys() & known.arguments.keys():
        try:
            numbers[word] = number_of_wait(word, words[word], (*path, word))
        except ConfigError as error:
            errors.append(error)
    if not errors and numbers.get("min", 0.0) > numbers.get("max", numbers.get("min", 0.0)):
        problem = f"{shown_of(words['min'])} is more than max, {shown_of(words['max'])}"
        errors.append(wrong((*path, "min"), problem, "give at most max"))
    if errors:
        raise ConfigErrors.together(errors)
    return wait_of(strategy, numbers)


def written(strategy: str) -> list[str]:
    """The keys that a strategy has in a file."""
    return ["random"] if strategy == "random" else list(STRATEGIES[strategy].arguments)


def two_of(raw: Any, path: Path) -> dict[str, Any]:
    """The shortest and the longest wait."""
    if not isinstance(raw, list) or len(raw) != len(("low", "high")):
        raise wrong(
            path, f"{shown_of(raw)} is no pair of waits", 'give the shortest and the longest: ["100ms", "300ms"]'
        )
    low, high = (number_of_wait("random", one, path) for one in raw)
    if low > high:
        least, most = (shown_of(one) for one in raw)
        raise wrong(path, f"{least} is more than {most}", "give the shorter one first")
    return {"low": low, "high": high}


def number_of_wait(word: str, raw: Any, path: Path) -> float:
    """A number of a wait strategy: a duration, save for the base of its growth."""
    quantity = Quantity("number" if word == "base" else "seconds")
    remedy = EXAMPLES[quantity.unit]
    number = number_of(quantity, raw, path, remedy=remedy)
    if not (number >= 0 and (isfinite(number) or word == "max")) or (word == "base" and not number > 0):
        raise wrong(path, f"{shown_of(raw)} is no wait" if word != "base" else f"{shown_of(raw)} is no base", remedy)
    return number


def shown_of(raw: Any) -> str:
    """A value as an error shows it; what the environment said is not shown."""
    if isinstance(raw, FromEnvironment):
        return f"what {' and '.join(raw.variables)} stands for"
    return "it" if of_environment(raw) else shown(raw)


def of_environment(value: Any) -> bool:
    """Whether some of it was said by the environment."""
    if isinstance(value, Mapping):
        return any(map(of_environment, value.values()))
    return isinstance(value, FromEnvironment) or (isinstance(value, list) and any(map(of_environment, value)))


def wrong(path: Path, problem: str, remedy: str) -> ConfigError:
    """The error at a key."""
    return ConfigError(key_of(path), problem, remedy)


def unknown(path: Path, name: str, known: list[str]) -> UnknownName:
    """The error for a key that there is not."""
    return UnknownName.among(key_of(path), name if len(name) <= len(shown(name)) else shown(name), known)


def written_value(value: object, path: Path) -> str:
    """A value in TOML; a ConfigError for what has no spelling."""
    if value is None or isinstance(value, str):
        return quoted("none" if value is None else value.replace("${", "$${"))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return '"inf"' if isinf(value) else float.__repr__(value)
    words = words_for(cast("Wait", value))
    if words is None:
        problem = f"{shown(value)} has no spelling in a file"
        raise wrong(path, problem, f"use a strategy such as {STRATEGY}, or set it in code")
    strategy, numbers = words
    if strategy == "random":
        return f"{{ random = [{', '.join(written_value(numbers[word], path) for word in ('low', 'high'))}] }}"
    return f"{{ {', '.join(f'{word} = {written_value(number, path)}' for word, number in numbers.items())} }}"
