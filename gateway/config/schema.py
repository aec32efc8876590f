"""The JSON Schema of a policy file, for editors: what may stand where, what it is by default, and why."""

from __future__ import annotations

from math import inf, isinf
from typing import Any, cast

from gateway.config.knobs import Knob, knobs, tables
from gateway.config.policies import ROOT
from gateway.config.units import DURATION, SIZE
from gateway.config.waits import STRATEGIES, words_for
from gateway.policy import Policy, Quantity, Wait

Schema = dict[str, Any]
_ENVIRONMENT: Schema = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"}


def schema() -> Schema:
    """JSON Schema, draft 7, of a policy file; `gateway schema` prints it."""
    upstream = _table("", Policy)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Policies of async-worker-gateway",
        "type": "object",
        "additionalProperties": False,
        "required": [ROOT],
        "properties": {
            ROOT: {
                "description": "The upstreams, by their names.",
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/definitions/upstream"},
            }
        },
        "definitions": {"upstream": upstream, "wait": _wait()},
    }


def _table(where: str, kind: type[Any]) -> Schema:
    """A policy, and the policies in it."""
    properties: Schema = {}
    inside = {table for table in tables() if table and table.rpartition(".")[0] == where}
    for path, knob in knobs().items():
        if path.rpartition(".")[0] == where and path not in inside:
            properties[path.rpartition(".")[2]] = _knob(knob)
    for path in inside:
        table = _table(path, tables()[path])
        known = knobs().get(path)
        if known is not None and known.none:
            table = {"anyOf": [table, {"const": "none"}, _ENVIRONMENT], "description": known.reason}
        properties[path.rpartition(".")[2]] = table
    description = " ".join((kind.__doc__ or "").split())
    return {"type": "object", "description": description, "additionalProperties": False, "properties": properties}


def _knob(knob: Knob) -> Schema:
    """What one knob takes."""
    if isinstance(knob.takes, Quantity):
        kinds = _number(knob.takes)
    elif knob.takes == "wait":
        kinds = [{"$ref": "#/definitions/wait"}]
    elif knob.takes is bool:
        kinds = [{"type": "boolean"}, _ENVIRONMENT]
    else:
        kinds = [{"enum": list(cast("tuple[str, ...]", knob.takes))}, _ENVIRONMENT]
    if knob.none:
        kinds.append({"const": "none"})
        if knob.takes == "wait":
            kinds.append(_ENVIRONMENT)  # it may say "none"
    found = {"anyOf": kinds, "default": _default(knob)}
    return found | ({"description": knob.reason} if knob.reason else {})


def _number(quantity: Quantity) -> list[Schema]:
    number: Schema = {"type": "integer" if quantity.unit in {"count", "bytes"} else "number"}
    number["exclusiveMinimum" if quantity.above else "minimum"] = quantity.least
    if quantity.most < inf:
        number["maximum"] = quantity.most
    kinds = [number, _ENVIRONMENT]
    if quantity.unit in {"seconds", "bytes"}:
        kinds.append({"type": "string", "pattern": f"^{DURATION if quantity.unit == 'seconds' else SIZE}$"})
    return [*kinds, {"const": "inf"}] if quantity.endless else kinds


def _wait() -> Schema:
    """The strategies."""
    seconds: Schema = {"anyOf": _number(Quantity("seconds", endless=False))}
    pair = {"type": "array", "items": seconds, "minItems": 2, "maxItems": 2}
    special = {
        "max": {"anyOf": _number(Quantity("seconds"))},
        "base": {"anyOf": _number(Quantity("number", above=True, endless=False))},
    }
    shapes: list[Schema] = []
    for name, strategy in STRATEGIES.items():
        words = {"random": pair} if name == "random" else {w: special.get(w, seconds) for w in strategy.arguments}
        needed = ["random"] if name == "random" else list(strategy.needed)
        shapes.append({"type": "object", "additionalProperties": False, "required": needed, "properties": words})
    return {"description": "A wait strategy of tenacity.", "anyOf": shapes}


def _default(knob: Knob) -> object:
    """A default as it stands in a file."""
    value = knob.default
    if value is None:
        return "none"
    if isinstance(value, float):
        return "inf" if isinf(value) else float(value)
    if knob.takes == "wait":
        words = words_for(cast("Wait", value))
        return None if words is None else words[1]
    return value
